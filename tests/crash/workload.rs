//! What happens to the logs: an environment that plays Raft and its clients.
//!
//! Each step does one thing to one replica, tells the oracle, and compares the log's answer with it at once. It
//! keeps Raft's rules (a term is set before an entry of it is appended, nothing committed is truncated, a commit
//! may run ahead of what is durable here), since the store may rely on them.

use bytes::Bytes;
use timberline_record::{Batch, BatchBuilder, BatchHeader, Codec, ProducerStamp, TimestampType};
use timberline_storage::{
    Appended, EntryKind, Error, FrameHeader, HardState, LogConfig, ReplicaId, ReplicaSpec,
    SequenceCheck,
};
use uuid::Uuid;

use crate::oracle::{Check, Payload, Replica, ensure};
use crate::rng::Rng;
use crate::sim::Sim;

/// Replicas alive at a time.
const REPLICAS_MAX: usize = 4;
/// Producers that write to a replica.
const PRODUCERS: u64 = 3;

/// A batch of random records.
pub(crate) fn batch(
    rng: &mut Rng,
    sizes: &[u64; 4],
    now_ms: i64,
    producer: Option<ProducerStamp>,
) -> (Batch, Vec<i64>) {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    let mut timestamps = Vec::new();
    let records = if rng.chance(70) { 1 } else { rng.within(2, 5) };
    let len = match rng.weighted(sizes) {
        0 => rng.within(10, 400),
        1 => rng.within(400, 6_000),
        2 => rng.within(6_000, 24_000),
        _ => rng.within(24_000, 90_000),
    };
    for _ in 0..records {
        let timestamp = now_ms + rng.below(2_000) as i64 - 1_000;
        let value = rng.bytes((len / records) as usize);
        builder
            .append(timestamp, None, Some(&value), &[])
            .expect("a small record fits an empty batch");
        timestamps.push(timestamp);
    }
    let batch = builder.build(producer).expect("it holds records");
    (batch, timestamps)
}

/// Any valid header, for questions about producers.
pub(crate) fn template() -> BatchHeader {
    *batch(&mut Rng::new(0), &[1, 0, 0, 0], 0, None).0.header()
}

impl Sim {
    /// One step of the environment.
    pub(crate) fn environment(&mut self) -> Check {
        self.now_ms += self.rng.below(50) as i64;
        if self.replicas.is_empty() {
            return self.create_replica();
        }
        let at = self.rng.below(self.replicas.len() as u64) as usize;
        let Some(id) = self.replicas.keys().nth(at).copied() else {
            return Ok(());
        };
        if self.replicas[&id].removed {
            return Ok(());
        }
        match self
            .rng
            .weighted(&[400, 50, 20, 180, 50, 40, 20, 12, 4, 60, 20, 12])
        {
            0 => self.append_batch(id),
            1 => self.append_plain(id),
            2 => self.append_log_start(id),
            3 => self.commit(id),
            4 => self.new_term(id),
            5 => self.truncate(id),
            6 => self.roll(id),
            7 => self.create_replica(),
            8 => self.remove_replica(id),
            9 => self.read(id),
            10 => self.reserve(id),
            _ => self.begin_install(id),
        }
    }

    fn create_replica(&mut self) -> Check {
        if self.replicas.values().filter(|r| !r.removed).count() >= REPLICAS_MAX {
            return Ok(());
        }
        self.next_replica += 1;
        let spec = ReplicaSpec {
            replica: ReplicaId(self.next_replica),
            topic: Uuid::from_u128(u128::from(1 + self.rng.below(3))),
            partition: self.rng.below(4) as u32,
        };
        let config = self.log_config();
        self.note(format!("create {} {config:?}", spec.replica));
        match self.store().create_replica(spec, config) {
            Ok(log) => {
                self.logs.insert(spec.replica.0, log);
                self.replicas.insert(spec.replica.0, Replica::new(spec));
                Ok(())
            }
            Err(error) => self.judge("creating a replica", error),
        }
    }

    pub(crate) fn log_config(&mut self) -> LogConfig {
        LogConfig {
            segment_bytes: self.rng.pick(&[4 << 10, 16 << 10, 48 << 10, 128 << 10]),
            segment_ms: 20_000,
            retention_bytes: self.rng.pick(&[None, Some(64 << 10), Some(256 << 10)]),
            retention_ms: self.rng.pick(&[None, Some(10_000)]),
            ..LogConfig::default()
        }
    }

    fn remove_replica(&mut self, id: u64) -> Check {
        self.note(format!("remove r{id}"));
        match self.store().remove_replica(ReplicaId(id)) {
            Ok(()) => {
                self.logs.remove(&id);
                self.replica(id).removed = true;
                self.stats.removed += 1;
                Ok(())
            }
            Err(error) => self.judge("removing a replica", error),
        }
    }

    pub(crate) fn append_batch(&mut self, id: u64) -> Check {
        let term = self.leader_term(id)?;
        let producer = self.next_batch_of_producer(id);
        let (now, sizes) = (self.now_ms, self.profile.sizes);
        let (batch, timestamps) = batch(&mut self.rng, &sizes, now, producer);
        let log = self.log(id);
        let verdict = log.check_producer(batch.header());
        ensure!(
            verdict == SequenceCheck::Accept,
            "r{id}: the next batch of {producer:?} is answered {verdict:?} (INV-8)"
        );
        if self.rng.chance(4) && !self.replicas[&id].damaged {
            // A client that retries what it had acknowledged, or jumps ahead.
            let template = self.template;
            self.replicas[&id].check_producers(&log, &template)?;
        }
        let payload = Payload::Batch(&batch, timestamps);
        let outcome = if self.rng.chance(50) {
            self.send(id, term, EntryKind::Data, &payload)?
        } else {
            log.append_batch(term, &batch, now)
        };
        self.appended(id, term, EntryKind::Data, payload, outcome)
    }

    fn next_batch_of_producer(&mut self, id: u64) -> Option<ProducerStamp> {
        // What an unreadable batch did to its producer is not known.
        if self.rng.chance(50) || self.replicas[&id].damaged {
            return None;
        }
        let producer = 1 + self.rng.below(PRODUCERS) as i64;
        let known = self.replicas[&id].producers.get(&producer);
        let (epoch, next) = known.map_or((0, 0), |(epoch, marks, _)| {
            (*epoch, marks.back().map_or(0, |m| m.last + 1))
        });
        let fresh = self.rng.chance(3);
        Some(ProducerStamp {
            id: producer,
            epoch: epoch + i16::from(fresh),
            base_sequence: if fresh { 0 } else { next },
        })
    }

    fn append_plain(&mut self, id: u64) -> Check {
        let term = self.leader_term(id)?;
        let kind = self
            .rng
            .pick(&[EntryKind::Noop, EntryKind::Config, EntryKind::Command]);
        let len = self
            .rng
            .below(if kind == EntryKind::Noop { 1 } else { 600 });
        let bytes = Bytes::from(self.rng.bytes(len as usize));
        let payload = Payload::Plain(bytes.clone());
        let outcome = if self.rng.chance(50) {
            self.send(id, term, kind, &payload)?
        } else {
            self.log(id).append(term, kind, bytes, self.now_ms)
        };
        self.appended(id, term, kind, payload, outcome)
    }

    /// The entry comes as a frame from another replica; now and then a wrong one comes before it.
    fn send(
        &mut self,
        id: u64,
        term: u64,
        kind: EntryKind,
        payload: &Payload<'_>,
    ) -> Check<Result<Appended, Error>> {
        let log = self.log(id);
        let (header, node) = self.replicas[&id].next(term, kind, payload, self.now_ms);
        if self.rng.chance(10) {
            self.send_wrong(id, &header, &node.stored)?;
        }
        self.stats.sent += 1;
        Ok(log.append_frame(&header, node.stored))
    }

    /// Frames that must be refused, each in its way, and change nothing.
    fn send_wrong(&mut self, id: u64, right: &FrameHeader, payload: &Bytes) -> Check {
        let log = self.log(id);
        if log.broken().is_some() || self.store().poisoned().is_some() {
            return Ok(());
        }
        let (mut header, mut payload) = (*right, payload.clone());
        let what = self.rng.below(6);
        match what {
            0 => header.index += self.rng.within(1, 3),
            1 if right.index > 1 => header.index -= 1,
            2 if log.last_term() > 0 && right.kind != EntryKind::Data => {
                header.term = log.last_term() - 1;
            }
            3 => header.chain ^= 1 << self.rng.below(64),
            4 => header.append_time_ms += 1,
            _ if payload.is_empty() => return Ok(()),
            _ => {
                let mut bytes = payload.to_vec();
                let at = self.rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << self.rng.below(8);
                payload = bytes.into();
            }
        }
        let outcome = log.append_frame(&header, payload);
        let refused = match what {
            0..=2 if header != *right => matches!(outcome, Err(Error::Refused(_))),
            3 | 4 => matches!(outcome, Err(Error::Diverged { .. })),
            _ => matches!(outcome, Err(Error::InvalidFrame { .. })),
        };
        ensure!(
            refused || self.disk.crashed(),
            "r{id}: a wrong frame ({what}) is answered {outcome:?}"
        );
        self.replicas[&id].check_figures(&log)
    }

    fn append_log_start(&mut self, id: u64) -> Check {
        let log = self.log(id);
        let replica = &self.replicas[&id];
        let (start, end) = (replica.log_start(), replica.high_watermark());
        let retained = log.retention_target(self.now_ms);
        let target = match retained {
            Some(target) => target,
            None if self.rng.chance(30) => start + self.rng.below((end - start + 1) as u64) as i64,
            None => return Ok(()),
        };
        ensure!(
            (start..=end).contains(&target),
            "r{id}: retention to {target} outside {start}..={end}"
        );
        let term = self.leader_term(id)?;
        self.stats.log_starts += 1;
        let (kind, payload) = (EntryKind::LogStart, Payload::LogStart(target));
        let outcome = if self.rng.chance(50) {
            self.send(id, term, kind, &payload)?
        } else {
            log.append_log_start(term, target, self.now_ms)
        };
        self.appended(id, term, kind, payload, outcome)
    }

    /// Compares the answer to an append with the oracle's; a refused one must have changed nothing.
    fn appended(
        &mut self,
        id: u64,
        term: u64,
        kind: EntryKind,
        payload: Payload<'_>,
        outcome: Result<Appended, Error>,
    ) -> Check {
        let (now, log) = (self.now_ms, self.log(id));
        match outcome {
            Ok(appended) => {
                let node = self.replica(id).append(term, kind, payload, now);
                let want = (node.index, node.base_offset);
                self.note(format!("r{id} append {kind:?} {want:?} term {term}"));
                ensure!(
                    (appended.index, appended.base_offset) == want,
                    "r{id}: appended as {appended:?}, must be {want:?} (INV-2)"
                );
                self.stats.appends += 1;
                self.replicas[&id].check_figures(&log)
            }
            Err(error) => {
                self.note(format!("r{id} append {kind:?} refused: {error}"));
                if !self.disk.crashed() {
                    self.stats.refused += 1;
                    self.replicas[&id].check_figures(&log)?;
                    if !self.replicas[&id].damaged {
                        let template = self.template;
                        self.replicas[&id].check_producers(&log, &template)?;
                    }
                }
                self.judge("appending", error)
            }
        }
    }

    fn commit(&mut self, id: u64) -> Check {
        let replica = &self.replicas[&id];
        let (from, acked, last) = (replica.committed, replica.acked, replica.last());
        // A follower may learn of a commit before its own entries are durable.
        let top = if self.rng.chance(80) { acked } else { last };
        if top <= from || self.installs.contains_key(&id) {
            return Ok(());
        }
        let to = if self.rng.chance(50) {
            top
        } else {
            self.rng.within(from + 1, top)
        };
        self.note(format!("r{id} commit {to} (durable {acked}, last {last})"));
        let log = self.log(id);
        log.commit_to(to);
        self.replica(id).commit(to);
        self.replicas[&id].check_figures(&log)
    }

    /// A term that entries can be appended in: one that was set.
    fn leader_term(&mut self, id: u64) -> Check<u64> {
        if self.replicas[&id].hard().0 == 0 {
            self.set_term(id, 1)?;
        }
        Ok(self.replicas[&id].hard().0)
    }

    fn set_term(&mut self, id: u64, by: u64) -> Check {
        let replica = &self.replicas[&id];
        let (mut term, mut vote) = replica.hard();
        if by == 0 && vote == 0 {
            vote = self.rng.within(1, 3);
        } else {
            term += by.max(1);
            vote = self.rng.within(0, 3);
        }
        self.note(format!("r{id} term {term} vote {vote}"));
        let commit = replica_commit(&self.replicas[&id]);
        let version = self
            .log(id)
            .set_hard_state(HardState { term, vote, commit });
        self.replica(id).set_hard(term, vote, version)
    }

    fn new_term(&mut self, id: u64) -> Check {
        let by = self.rng.below(3);
        self.set_term(id, by)
    }

    /// A leader of a new term replaces the uncommitted tail.
    fn truncate(&mut self, id: u64) -> Check {
        let replica = &self.replicas[&id];
        let (committed, last) = (replica.committed, replica.last());
        let log = self.log(id);
        if committed > 0 && self.rng.chance(5) {
            let outcome = log.truncate_after(committed - 1);
            ensure!(outcome.is_err(), "r{id}: truncated what is committed");
        }
        if last == committed {
            return Ok(());
        }
        let to = self.rng.within(committed, last - 1);
        self.note(format!(
            "r{id} truncate after {to} of {last}, committed {committed}"
        ));
        if let Err(error) = log.truncate_after(to) {
            return self.judge("truncating", error);
        }
        self.replica(id).truncate(to);
        self.stats.truncations += 1;
        self.replicas[&id].check_figures(&log)?;
        if self.rng.chance(85) {
            self.set_term(id, 1)?;
            for _ in 0..self.rng.within(1, 3) {
                if self.rng.chance(80) {
                    self.append_batch(id)?;
                } else {
                    self.append_plain(id)?;
                }
            }
        }
        self.replicas[&id].check_terms(&log)?;
        self.replicas[&id].check_membership(&log)
    }

    fn roll(&mut self, id: u64) -> Check {
        self.now_ms += self.rng.pick(&[100, 25_000]);
        let config = self.log_config();
        let log = self.log(id);
        if self.rng.chance(20) {
            log.set_config(config);
        }
        self.note(format!("r{id} roll at {}", self.now_ms));
        match log.maybe_roll(self.now_ms) {
            Ok(()) => self.replicas[&id].check_figures(&log),
            Err(error) => self.judge("rolling", error),
        }
    }

    fn reserve(&mut self, id: u64) -> Check {
        let bytes = self.rng.within(1, 40_000);
        match self.log(id).reserve(bytes) {
            Ok(()) => Ok(()),
            Err(error) => self.judge("reserving", error),
        }
    }

    fn read(&mut self, id: u64) -> Check {
        let log = self.log(id);
        let replica = &self.replicas[&id];
        let (start, end) = (replica.log_start(), replica.high_watermark());
        let from = start + self.rng.below((end - start + 1) as u64) as i64;
        let max = self.rng.pick(&[1, 2_000, 100_000, 1 << 20]);
        let result = self.replicas[&id].check_reads(&log, from, max);
        if self.disk.crashed() {
            return Ok(());
        }
        result?;
        self.read_frames(id)?;
        self.stats.reads += 1;
        if self.rng.chance(20) {
            let time = self.now_ms - self.rng.below(30_000) as i64;
            self.replicas[&id].check_time(&log, time)?;
            self.replicas[&id].check_bounds(&log)?;
        }
        Ok(())
    }

    /// Some frames, as a leader sends them to one that lags.
    fn read_frames(&mut self, id: u64) -> Check {
        let log = self.log(id);
        let (first, last) = (log.first_index(), log.last_index());
        if first > last {
            return Ok(());
        }
        let from = self.rng.within(first, last);
        let to = self.rng.within(from, last);
        let max = self.rng.pick(&[1, 2_000, 100_000, 1 << 20]);
        let result = self.replicas[&id].check_frames(&log, from, to, max);
        if self.disk.crashed() { Ok(()) } else { result }
    }
}

fn replica_commit(replica: &Replica) -> u64 {
    replica.committed
}
