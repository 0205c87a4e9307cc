//! Clients: producers that retry the same batch until it is acknowledged, readers, trims, and now and then an order
//! from the cluster's management.

use std::collections::VecDeque;

use timberline_consensus::{NodeId, Proposal, Refused, Role};
use timberline_record::{Batch, BatchBuilder, Codec, ProducerStamp, TimestampType};
use timberline_storage::{Error, ReadOutcome, SequenceCheck};

use crate::broker::{Pending, Waiter};
use crate::checker::{Check, Told, ensure};
use crate::world::{Event, Planted, Table, World};

/// Batches of one producer that wait for an answer; a broker remembers so many.
const OUTSTANDING_MAX: usize = 5;
/// A producer that was not answered for so long asks again, ms.
const PATIENCE_MS: u64 = 400;

/// A batch that is not acknowledged.
struct Outstanding {
    batch: Batch,
    sequence: i32,
    /// When it was sent, unless it has to be sent again.
    sent: Option<u64>,
}

/// An idempotent producer.
pub(crate) struct Producer {
    id: i64,
    epoch: i16,
    next: i32,
    outstanding: VecDeque<Outstanding>,
    /// The last acknowledged one, which a client might send again.
    last: Option<Batch>,
}

impl Producer {
    pub(crate) fn new(id: i64) -> Producer {
        Producer {
            id,
            epoch: 0,
            next: 0,
            outstanding: VecDeque::new(),
            last: None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        let waits = self.outstanding.iter().map(|o| (o.sequence, o.sent));
        format!(
            "id {} epoch {} next {}: {:?}",
            self.id,
            self.epoch,
            self.next,
            waits.collect::<Vec<_>>()
        )
    }

    pub(crate) fn is_done(&self) -> bool {
        self.outstanding.is_empty()
    }

    pub(crate) fn acked(&mut self, epoch: i16, sequence: i32) {
        if epoch != self.epoch {
            return;
        }
        let at = self.outstanding.iter().position(|o| o.sequence == sequence);
        if let Some(done) = at.and_then(|at| self.outstanding.remove(at)) {
            self.last = Some(done.batch);
        }
    }

    fn room(&self, records: i32) -> bool {
        let oldest = self.outstanding.front();
        self.outstanding.len() < OUTSTANDING_MAX
            && oldest.is_none_or(|o| self.next - o.sequence < OUTSTANDING_MAX as i32)
            && records > 0
    }
}

/// Whoever waits will not be answered.
pub(crate) fn unanswered(table: &mut Table, waiter: Waiter) {
    if let Waiter::Producer {
        at,
        epoch,
        sequence,
    } = waiter
    {
        let producer = &mut table.producers[at];
        if producer.epoch == epoch {
            let mut all = producer.outstanding.iter_mut();
            if let Some(one) = all.find(|o| o.sequence == sequence) {
                one.sent = None;
            }
        }
    }
}

impl World {
    pub(crate) fn client(&mut self) -> Check {
        if self.calm {
            return Ok(());
        }
        self.stats.operations += 1;
        let delay = self.rng.within(1, self.profile.pace_ms * 2);
        self.after(delay, Event::Client);
        let group = self.rng.below(self.groups.len() as u64) as usize;
        match self.rng.weighted(&[550, 30, 40, 230, 40, 25, 30, 20, 6]) {
            0 => self.produce(group),
            1 => self.plain_batch(group),
            2 => self.command(group),
            3 => self.read(group),
            4 => self.trim(group),
            5 => self.retention(group),
            6 => self.change_members(group),
            7 => self.transfer(group),
            _ => self.campaign(group),
        }
    }

    /// Where a client turns to: whoever says to lead, or anybody.
    pub(crate) fn leader(&mut self, group: usize) -> Option<(usize, NodeId)> {
        let mut leaders = Vec::new();
        for (&node, place) in self.replicas.iter().filter(|(_, p)| p.group == group) {
            let at = &self.brokers[place.broker];
            let running = at.running.as_ref().filter(|r| !r.poisoned);
            let replica = running.and_then(|r| r.replicas.get(&node));
            if replica.is_some_and(|r| r.group.is_leader()) && at.paused_until <= self.now {
                leaders.push((place.broker, node));
            }
        }
        (!leaders.is_empty()).then(|| self.rng.pick(&leaders))
    }

    fn build(&mut self, stamp: Option<ProducerStamp>, now_ms: i64) -> Batch {
        let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
        let len = match self.rng.weighted(&self.profile.sizes) {
            0 => self.rng.within(10, 300),
            1 => self.rng.within(300, 3_000),
            _ => self.rng.within(3_000, 30_000),
        };
        let value = self.rng.bytes(len as usize);
        builder
            .append(now_ms, None, Some(&value), &[])
            .expect("a small record fits an empty batch");
        builder.build(stamp).expect("it holds a record")
    }

    /// A producer sends something new, and what was not answered.
    fn produce(&mut self, group: usize) -> Check {
        let at = self.rng.below(self.groups[group].producers.len() as u64) as usize;
        let producer = &mut self.groups[group].producers[at];
        if producer.is_done() && self.rng.chance(1) {
            producer.epoch += 1;
            producer.next = 0;
            producer.last = None;
        }
        if producer.room(1) {
            let stamp = ProducerStamp {
                id: producer.id,
                epoch: producer.epoch,
                base_sequence: producer.next,
            };
            let now_ms = self.clock(0);
            let batch = self.build(Some(stamp), now_ms);
            let producer = &mut self.groups[group].producers[at];
            producer.outstanding.push_back(Outstanding {
                batch,
                sequence: producer.next,
                sent: None,
            });
            producer.next += 1;
        }
        self.send_outstanding(group, at)
    }

    pub(crate) fn send_outstanding(&mut self, group: usize, at: usize) -> Check {
        let now = self.now;
        let producer = &mut self.groups[group].producers[at];
        for one in &mut producer.outstanding {
            one.sent.take_if(|sent| *sent + PATIENCE_MS < now);
        }
        let waits = |o: &&Outstanding| o.sent.is_none();
        let mut due: Vec<(i32, Batch)> = producer
            .outstanding
            .iter()
            .filter(waits)
            .map(|o| (o.sequence, o.batch.clone()))
            .collect();
        if due.is_empty()
            && producer.is_done()
            && self.rng.chance(5)
            && let Some(last) = &self.groups[group].producers[at].last
        {
            // A client that did not believe its answer.
            due.push((last.header().base_sequence, last.clone()));
        }
        if due.is_empty() {
            return Ok(());
        }
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        for (sequence, batch) in due {
            let epoch = batch.header().producer_epoch;
            let waiter = Waiter::Producer {
                at,
                epoch,
                sequence,
            };
            if !self.write(broker, node, batch, waiter)? {
                break;
            }
            let producer = &mut self.groups[group].producers[at];
            let mut all = producer.outstanding.iter_mut();
            if let Some(one) = all.find(|o| o.sequence == sequence) {
                one.sent = Some(now);
            }
        }
        Ok(())
    }

    /// A broker takes a batch: checks its sequence and proposes it. False when it was refused.
    fn write(&mut self, broker: usize, node: NodeId, batch: Batch, waiter: Waiter) -> Check<bool> {
        let now_ms = self.clock(broker);
        let (at, group) = (&mut self.brokers[broker], self.replicas[&node].group);
        let Some(running) = &mut at.running else {
            return Ok(false);
        };
        let Some(replica) = running.replicas.get_mut(&node) else {
            return Ok(false);
        };
        let header = *batch.header();
        let stamp = header.producer().map(|p| (p.id, p.epoch, p.base_sequence));
        let mut told = Told {
            stamp,
            crc: Some(header.crc),
            offset: 0,
        };
        let log = replica.group.log();
        let check = match self.settings.planted {
            Some(Planted::NoSequences) => SequenceCheck::Accept,
            _ => log.check_producer(&header),
        };
        let (index, term) = match check {
            SequenceCheck::Accept => {
                let term = replica.group.term();
                match replica.group.propose(&Proposal::Batch(batch), now_ms) {
                    Ok(appended) => {
                        self.stats.proposals += 1;
                        told.offset = appended.base_offset;
                        let offsets = &mut self.groups[group].offsets;
                        offsets.insert(appended.index, (term, appended.base_offset));
                        (appended.index, Some(term))
                    }
                    Err(refused) => return self.refused(broker, node, refused).map(|()| false),
                }
            }
            SequenceCheck::Duplicate {
                index, base_offset, ..
            } => {
                self.stats.duplicates += 1;
                told.offset = base_offset;
                (index, log.term_at(index))
            }
            refused => {
                let now = self.now;
                self.trace.note(now, ("refuse", node), || {
                    format!("  n{node} answers {stamp:?} with {refused:?}")
                });
                // A deposed leader knows less; one that leads at rest must not.
                ensure!(
                    !self.calm
                        || !replica.group.is_caught_up()
                        || matches!(refused, SequenceCheck::OutOfOrder { .. }),
                    "g{group} n{node}: batch {stamp:?} is answered {refused:?}"
                );
                return Ok(false);
            }
        };
        let now = self.now;
        self.trace.note(now, ("write", node, index), || {
            format!("  n{node} takes {stamp:?} as {index} of term {term:?}")
        });
        self.wait(broker, node, index, term, waiter, told);
        Ok(true)
    }

    /// Somebody waits for an entry.
    fn wait(
        &mut self,
        broker: usize,
        node: NodeId,
        index: u64,
        term: Option<u64>,
        waiter: Waiter,
        told: Told,
    ) {
        if let Some(running) = &mut self.brokers[broker].running
            && let Some(replica) = running.replicas.get_mut(&node)
        {
            let at = replica.pending.partition_point(|p| p.index <= index);
            let pending = Pending {
                index,
                term,
                waiter,
                told,
            };
            replica.pending.insert(at, pending);
        }
        self.mark(broker, node);
    }

    pub(crate) fn refused(&mut self, broker: usize, node: NodeId, why: Refused) -> Check {
        let at = &self.brokers[broker];
        match why {
            Refused::Storage(error) => {
                ensure!(
                    at.may_fail(&error) || matches!(error, Error::Refused(_)),
                    "n{node}: proposing: {error}"
                );
                self.stats.refused_for_space +=
                    u64::from(matches!(error, Error::StorageFull { .. }));
            }
            Refused::Stopped(why) => {
                let excused = at.disk.crashed() || at.write_failed();
                ensure!(excused, "n{node} stops: {why}");
            }
            _ => {}
        }
        self.look(broker)
    }

    fn propose(&mut self, group: usize, proposal: &Proposal, waiter: Waiter) -> Check {
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        let now_ms = self.clock(broker);
        let Some(replica) = self.brokers[broker]
            .running
            .as_mut()
            .and_then(|r| r.replicas.get_mut(&node))
        else {
            return Ok(());
        };
        let term = replica.group.term();
        match replica.group.propose(proposal, now_ms) {
            Ok(appended) => {
                self.stats.proposals += 1;
                let crc = match proposal {
                    Proposal::Batch(batch) => {
                        let offsets = &mut self.groups[group].offsets;
                        offsets.insert(appended.index, (term, appended.base_offset));
                        Some(batch.header().crc)
                    }
                    _ => None,
                };
                let told = Told {
                    stamp: None,
                    crc,
                    offset: appended.base_offset,
                };
                self.wait(broker, node, appended.index, Some(term), waiter, told);
                Ok(())
            }
            Err(why) => self.refused(broker, node, why),
        }
    }

    /// A producer without an id: sent once, whatever becomes of it.
    fn plain_batch(&mut self, group: usize) -> Check {
        let now_ms = self.clock(0);
        let batch = self.build(None, now_ms);
        self.propose(group, &Proposal::Batch(batch), Waiter::Nobody)
    }

    fn command(&mut self, group: usize) -> Check {
        let len = self.rng.below(200) as usize;
        let payload = self.rng.bytes(len).into();
        self.propose(group, &Proposal::Command(payload), Waiter::Nobody)
    }

    /// Any replica is read, the follower below its high watermark; a poisoned broker goes on serving.
    fn read(&mut self, group: usize) -> Check {
        let here: Vec<(NodeId, usize)> = self
            .replicas
            .iter()
            .filter(|(_, p)| p.group == group)
            .map(|(&node, p)| (node, p.broker))
            .collect();
        let (node, broker) = self.rng.pick(&here);
        let at = &self.brokers[broker];
        let Some(running) = &at.running else {
            return Ok(());
        };
        let Some(replica) = running.replicas.get(&node) else {
            return Ok(());
        };
        if at.paused_until > self.now {
            return Ok(());
        }
        let log = replica.group.log();
        let (start, end) = (log.log_start(), log.high_watermark());
        let back = self.rng.pick(&[3, 20, 10_000]);
        let from = start.max(end - self.rng.below(back) as i64);
        let max = self.rng.pick(&[1, 2_000, 40_000]);
        let mut cursor = log.cursor(from);
        self.stats.reads += 1;
        let batches = loop {
            match log.read(&mut cursor, max) {
                Ok(ReadOutcome::Batches(batches)) => break Ok(batches),
                Ok(ReadOutcome::Cold(cold)) => {
                    self.stats.cold_reads += 1;
                    if let Err(error) = cold.run() {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        match batches {
            Ok(batches) => {
                self.stats.batches_read += batches.len() as u64;
                self.checker.history(group).read(node, from, &batches)?;
            }
            Err(error) => ensure!(at.may_fail(&error), "n{node}: reading at {from}: {error}"),
        }
        self.look(broker)
    }

    /// What the log start may move to: every member has what lies below, for there are no snapshots yet.
    fn trimmable(&self, group: usize, broker: usize, node: NodeId) -> Option<i64> {
        let running = self.brokers[broker].running.as_ref()?;
        let leader = &running.replicas.get(&node)?.group;
        let log = leader.log();
        let everywhere = leader.peers().iter().map(|p| p.matched).min()?;
        let upto = everywhere.min(log.commit_index());
        let mut known = self.groups[group].offsets.range(..=upto).rev();
        let (_, &(_, offset)) = known.find(|(i, (term, _))| log.term_at(**i) == Some(*term))?;
        Some(offset)
    }

    fn trim(&mut self, group: usize) -> Check {
        if !self.profile.groups[group].trims {
            return Ok(());
        }
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        let Some(most) = self.trimmable(group, broker, node) else {
            return Ok(());
        };
        let start = self.checker.history(group).log_start();
        if most <= start {
            return Ok(());
        }
        let to = self.rng.within(start as u64, most as u64) as i64;
        self.stats.trims += 1;
        self.propose(group, &Proposal::LogStart(to), Waiter::Trim)
    }

    fn retention(&mut self, group: usize) -> Check {
        if !self.profile.groups[group].trims {
            return Ok(());
        }
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        let now_ms = self.clock(broker);
        let most = self.trimmable(group, broker, node);
        let running = self.brokers[broker].running.as_ref();
        let replica = running.and_then(|r| r.replicas.get(&node));
        let wanted = replica.and_then(|r| r.group.log().retention_target(now_ms));
        let (Some(most), Some(wanted)) = (most, wanted) else {
            return Ok(());
        };
        self.stats.retentions += 1;
        self.propose(group, &Proposal::LogStart(wanted.min(most)), Waiter::Trim)
    }

    fn transfer(&mut self, group: usize) -> Check {
        let Some((broker, node)) = self.leader(group) else {
            return Ok(());
        };
        let members = self.groups[group].members.1.voters.clone();
        if members.is_empty() {
            return Ok(());
        }
        let to = self.rng.pick(&members).node;
        if let Some(running) = &mut self.brokers[broker].running
            && let Some(replica) = running.replicas.get_mut(&node)
        {
            replica.group.transfer(to);
            self.stats.transfers += 1;
        }
        self.mark(broker, node);
        Ok(())
    }

    /// Somebody stands without being asked.
    fn campaign(&mut self, group: usize) -> Check {
        let here: Vec<(NodeId, usize)> = self
            .replicas
            .iter()
            .filter(|(_, p)| p.group == group)
            .map(|(&node, p)| (node, p.broker))
            .collect();
        let (node, broker) = self.rng.pick(&here);
        if !self.brokers[broker].works() {
            return Ok(());
        }
        if let Some(running) = &mut self.brokers[broker].running
            && let Some(replica) = running.replicas.get_mut(&node)
            && replica.group.role() == Role::Follower
        {
            replica.group.campaign();
        }
        self.mark(broker, node);
        Ok(())
    }
}
