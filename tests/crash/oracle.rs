//! What must be true: every entry ever appended, what was acknowledged of it, and the checks of a log against it.
//!
//! A replica's entries form a tree: a truncation leaves a branch behind. The chain of an entry names its whole
//! prefix, so one lookup of a recovered log's last index and chain tells which history it holds. The oracle
//! computes chains, offsets, stored bytes and producer state itself; it takes nothing from the log but its answers.
//!
//! Not here: what happens to a log (`workload`), and how a store is driven and crashed (`sim`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use timberline_record::{Batch, BatchHeader, ProducerStamp};
use timberline_storage::{
    BATCHES_REMEMBERED, EntryKind, Error, FrameHeader, FramesOutcome, HardState, Log, ReplicaSpec,
    SequenceCheck, chain_seed, leader_epoch,
};

/// A finding: what rule was broken, in words.
pub(crate) type Check<T = ()> = Result<T, String>;

/// Fails a check.
macro_rules! ensure {
    ($cond:expr, $($arg:tt)*) => {
        if !$cond {
            return Err(format!($($arg)*));
        }
    };
}
pub(crate) use ensure;

/// What must be found again after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// All that was acknowledged.
    All,
    /// What was acknowledged before the last cycle: its damage looks like a torn tail.
    BeforeLastCycle,
    /// Nothing: the store says that it is damaged, and takes no more writes.
    Nothing,
}

/// Index into [`Replica::nodes`]; the root, before the first entry, is 0.
pub(crate) type NodeId = usize;

/// One entry that was appended at some time.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) kind: EntryKind,
    pub(crate) chain: u64,
    pub(crate) base_offset: i64,
    pub(crate) next_offset: i64,
    pub(crate) time_ms: i64,
    /// The payload as it must be stored.
    pub(crate) stored: Bytes,
    pub(crate) producer: Option<(ProducerStamp, i32)>,
    pub(crate) log_start: Option<i64>,
    /// Timestamps of its records.
    pub(crate) timestamps: Vec<i64>,
}

/// What is remembered of one batch of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) first: i32,
    pub(crate) last: i32,
    pub(crate) base_offset: i64,
    pub(crate) index: u64,
}

/// Producers by id: epoch and the last batches, oldest first, with the number of batches there were before them.
pub(crate) type Producers = BTreeMap<i64, (i16, VecDeque<Mark>, usize)>;

/// One replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) spec: ReplicaSpec,
    pub(crate) nodes: Vec<Node>,
    by_chain: BTreeMap<(u64, u64), NodeId>,
    /// The log as it is now: `path[i]` is the entry with index `i`.
    pub(crate) path: Vec<NodeId>,
    /// Entries up to here were reported durable.
    pub(crate) acked: u64,
    /// What was before the last cycle that was acknowledged.
    pub(crate) before_last_cycle: u64,
    pub(crate) committed: u64,
    /// Terms and votes by version: what recovery found, and all that were set since.
    hard_versions: Vec<(u64, u64)>,
    /// The version that was reported durable.
    hard_acked: usize,
    /// The commit index that was reported to outlive a restart.
    commit_acked: u64,
    /// The highest log start that was durable, by a finished recovery.
    pub(crate) log_start_floor: i64,
    /// It must exist after a crash.
    pub(crate) born: bool,
    /// Removal was begun.
    pub(crate) removed: bool,
    /// It must not exist after a crash.
    pub(crate) gone: bool,
    /// Damage was done: entries may be unreadable.
    pub(crate) damaged: bool,
    /// The log said that its last entry can't be proven.
    pub(crate) broken: bool,
    pub(crate) producers: Producers,
}

impl Replica {
    pub(crate) fn new(spec: ReplicaSpec) -> Replica {
        let root = Node {
            parent: 0,
            index: 0,
            term: 0,
            kind: EntryKind::Noop,
            chain: chain_seed(spec.topic, spec.partition),
            base_offset: 0,
            next_offset: 0,
            time_ms: 0,
            stored: Bytes::new(),
            producer: None,
            log_start: None,
            timestamps: Vec::new(),
        };
        Replica {
            spec,
            by_chain: BTreeMap::from([((0, root.chain), 0)]),
            nodes: vec![root],
            path: vec![0],
            acked: 0,
            before_last_cycle: 0,
            committed: 0,
            hard_versions: vec![(0, 0)],
            hard_acked: 0,
            commit_acked: 0,
            log_start_floor: 0,
            born: false,
            removed: false,
            gone: false,
            damaged: false,
            broken: false,
            producers: Producers::new(),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.path.len() as u64 - 1
    }

    pub(crate) fn at(&self, index: u64) -> &Node {
        &self.nodes[self.path[index as usize]]
    }

    pub(crate) fn tip(&self) -> &Node {
        self.at(self.last())
    }

    /// Next offset behind the committed entries.
    pub(crate) fn high_watermark(&self) -> i64 {
        self.at(self.committed).next_offset
    }

    /// The log start that the committed entries ask for.
    pub(crate) fn log_start(&self) -> i64 {
        let committed = self.path[..=self.committed as usize].iter();
        committed
            .map(|&id| &self.nodes[id])
            .filter_map(|n| n.log_start.map(|s| s.min(n.next_offset)))
            .fold(0, i64::max)
    }

    /// Notes an entry that is appended now. The log's answer is compared by the caller.
    pub(crate) fn append(
        &mut self,
        term: u64,
        kind: EntryKind,
        payload: Payload<'_>,
        now_ms: i64,
    ) -> &Node {
        let (_, node) = self.next(term, kind, &payload, now_ms);
        let id = self.nodes.len();
        self.by_chain.insert((node.index, node.chain), id);
        apply(&mut self.producers, &node);
        self.nodes.push(node);
        self.path.push(id);
        &self.nodes[id]
    }

    /// The entry that would be next, and its frame's header as any leader would write it.
    pub(crate) fn next(
        &self,
        term: u64,
        kind: EntryKind,
        payload: &Payload<'_>,
        now_ms: i64,
    ) -> (FrameHeader, Node) {
        let tip = self.tip();
        let (index, base_offset) = (tip.index + 1, tip.next_offset);
        let mut node = Node {
            parent: self.path[self.path.len() - 1],
            index,
            term,
            kind,
            chain: 0,
            base_offset,
            next_offset: base_offset,
            time_ms: now_ms.max(tip.time_ms),
            stored: Bytes::new(),
            producer: None,
            log_start: None,
            timestamps: Vec::new(),
        };
        let mut crc = 0;
        match payload {
            Payload::Batch(batch, timestamps) => {
                let header = batch.header();
                let mut stored = batch
                    .stamped_header(base_offset, leader_epoch(term))
                    .to_vec();
                stored.extend_from_slice(&batch.body());
                node.stored = stored.into();
                node.next_offset += i64::from(header.record_count);
                node.producer = header.producer().map(|p| (p, header.record_count));
                node.timestamps = timestamps.clone();
                crc = header.crc;
            }
            Payload::Plain(bytes) => node.stored = bytes.clone(),
            Payload::LogStart(start) => {
                node.stored = Bytes::copy_from_slice(&start.to_le_bytes());
                node.log_start = Some(*start);
            }
        }
        if kind != EntryKind::Data {
            crc = crc32c(&node.stored);
        }
        let mut header = FrameHeader {
            kind,
            payload_len: node.stored.len() as u32,
            payload_crc: crc,
            term,
            index,
            base_offset,
            record_count: (node.next_offset - base_offset) as u32,
            append_time_ms: node.time_ms,
            chain: 0,
        };
        header.chain = header.chain_after(tip.chain);
        node.chain = header.chain;
        (header, node)
    }

    /// Another replica's entry is next here, too.
    pub(crate) fn adopt_node(&mut self, node: &Node) {
        let id = self.nodes.len();
        let parent = self.path[self.path.len() - 1];
        self.by_chain.insert((node.index, node.chain), id);
        apply(&mut self.producers, node);
        self.nodes.push(Node {
            parent,
            ..node.clone()
        });
        self.path.push(id);
        self.committed = node.index;
    }

    /// A snapshot took the place of all that is behind `fork`, where nothing more was committed.
    pub(crate) fn adopt(&mut self, fork: u64, nodes: Vec<Node>) {
        self.truncate(fork);
        for node in &nodes {
            self.adopt_node(node);
        }
        let term = self.tip().term;
        if self.hard().0 < term {
            self.hard_versions.push((term, 0));
        }
        self.damaged = false;
        self.broken = false;
    }

    /// The log was truncated.
    pub(crate) fn truncate(&mut self, index: u64) {
        self.path.truncate(index as usize + 1);
        self.acked = self.acked.min(index);
        self.before_last_cycle = self.before_last_cycle.min(index);
        self.recount();
    }

    /// Entries up to here are committed. With a membership among them the log has a new hard state to write.
    pub(crate) fn commit(&mut self, to: u64) {
        let news = self.committed as usize + 1..to as usize + 1;
        let is_config = |&id: &NodeId| self.nodes[id].kind == EntryKind::Config;
        if self.path[news].iter().any(is_config) {
            self.hard_versions.push(self.hard());
        }
        self.committed = to;
    }

    /// Term and vote as set last.
    pub(crate) fn hard(&self) -> (u64, u64) {
        self.hard_versions[self.hard_versions.len() - 1]
    }

    /// Term and vote were set, and the log called that a version.
    pub(crate) fn set_hard(&mut self, term: u64, vote: u64, version: u64) -> Check {
        if (term, vote) != self.hard() {
            self.hard_versions.push((term, vote));
        }
        let want = self.hard_versions.len() as u64 - 1;
        ensure!(
            version == want,
            "{}: term {term} vote {vote} is version {version}, must be {want}",
            self.spec.replica
        );
        Ok(())
    }

    /// A start: what it found is version 0.
    fn hard_is_found(&mut self, log: &Log) {
        let HardState { term, vote, .. } = log.hard_state();
        self.hard_versions = vec![(term, vote)];
        self.hard_acked = 0;
    }

    pub(crate) fn is_acked(&mut self, index: u64) -> Check {
        let last = self.last();
        ensure!(
            index <= last,
            "{}: durable index {index} behind the last entry {last}",
            self.spec.replica
        );
        self.acked = self.acked.max(index);
        self.born = true;
        Ok(())
    }

    /// Takes what the log says is durable by now; returns how many entries that adds.
    pub(crate) fn is_acked_by(&mut self, log: &Log) -> Check<u64> {
        let told = log.durability();
        let durable = told.index;
        ensure!(
            durable >= self.acked,
            "{}: durable went back from {} to {durable}",
            self.spec.replica,
            self.acked
        );
        let more = durable - self.acked;
        if durable > 0 {
            self.is_acked(durable)?;
        }
        let version = told.hard_version as usize;
        ensure!(
            (self.hard_acked..self.hard_versions.len()).contains(&version),
            "{}: hard state {version} is durable, {} was, {} were set",
            self.spec.replica,
            self.hard_acked,
            self.hard_versions.len()
        );
        self.hard_acked = version;
        ensure!(
            told.commit <= self.committed && told.commit <= durable,
            "{}: commit {} is durable, {} is committed, entries are to {durable}",
            self.spec.replica,
            told.commit,
            self.committed
        );
        self.commit_acked = self.commit_acked.max(told.commit);
        self.born |= version > 0;
        Ok(more)
    }

    fn recount(&mut self) {
        let mut producers = Producers::new();
        for &id in &self.path[1..] {
            apply(&mut producers, &self.nodes[id]);
        }
        self.producers = producers;
    }

    fn is_ancestor(&self, node: NodeId, mut of: NodeId) -> bool {
        while self.nodes[of].index > self.nodes[node].index {
            of = self.nodes[of].parent;
        }
        of == node
    }

    /// Compares a recovered log with all that was promised (INV-1, 2, 4, 5), and takes it for the log from here on.
    pub(crate) fn recovered(&mut self, log: &Arc<Log>, promise: Promise) -> Check {
        let id = self.spec.replica;
        let (last, chain, term) = (log.last_index(), log.last_chain(), log.last_term());
        let Some(&node) = self.by_chain.get(&(last, chain)) else {
            return Err(format!(
                "{id}: recovered last entry {last} has a chain that nobody wrote (INV-4)"
            ));
        };
        ensure!(
            log.broken().is_some() || !self.broken,
            "{id}: broken, and at the next start not any more (INV-6)"
        );
        self.broken = log.broken().is_some();
        let acked = match promise {
            Promise::All if log.broken().is_none() => self.acked,
            Promise::BeforeLastCycle if log.broken().is_none() => self.before_last_cycle,
            _ => 0,
        };
        let acked = self.path[acked as usize];
        ensure!(
            self.is_ancestor(acked, node),
            "{id}: acknowledged up to {}, recovered up to {last} of {} history (INV-1)",
            self.acked,
            if last < self.acked {
                "a shorter"
            } else {
                "another"
            }
        );
        ensure!(
            self.nodes[node].term == term,
            "{id}: last term {term}, was {}",
            self.nodes[node].term
        );
        let mut path = vec![node];
        while self.nodes[path[path.len() - 1]].index > 0 {
            path.push(self.nodes[path[path.len() - 1]].parent);
        }
        path.reverse();
        self.path = path;
        self.recount();
        if promise == Promise::All {
            self.check_hard(log)?;
        }
        self.hard_is_found(log);
        let commit = log.hard_state().commit;
        ensure!(
            commit <= last && log.commit_index() == commit,
            "{id}: commit {commit} (applied {}), last {last}",
            log.commit_index()
        );
        ensure!(
            commit <= self.committed,
            "{id}: recovered commit {commit}, only {} was committed",
            self.committed
        );
        ensure!(
            commit >= self.commit_acked || promise != Promise::All || self.damaged,
            "{id}: recovered commit {commit}, {} was durable",
            self.commit_acked
        );
        self.commit_acked = commit;
        self.committed = commit;
        self.acked = last;
        ensure!(
            log.durable_index() == last,
            "{id}: recovered {last}, durable {}",
            log.durable_index()
        );
        ensure!(
            log.log_start() >= self.log_start_floor || promise != Promise::All || self.damaged,
            "{id}: log start went back from {} to {}",
            self.log_start_floor,
            log.log_start()
        );
        self.log_start_floor = log.log_start();
        self.born = true;
        self.check_figures(log)?;
        self.check_terms(log)?;
        self.check_membership(log)
    }

    fn check_hard(&self, log: &Log) -> Check {
        let id = self.spec.replica;
        let acked = self.hard_versions[self.hard_acked];
        let since = &self.hard_versions[self.hard_acked..];
        let HardState { term, vote, .. } = log.hard_state();
        let raised = (term, vote) == (self.tip().term, 0);
        ensure!(
            since.contains(&(term, vote)) || raised,
            "{id}: recovered term {term} vote {vote}, acknowledged and set since {since:?} (INV-5)",
        );
        ensure!(
            term > acked.0 || (term == acked.0 && (acked.1 == 0 || vote == acked.1)),
            "{id}: term and vote went back from {acked:?} to {:?} (INV-5)",
            (term, vote)
        );
        ensure!(
            term >= self.tip().term,
            "{id}: term {term} below the last entry's {}",
            self.tip().term
        );
        Ok(())
    }

    /// The numbers that a log tells at any time.
    pub(crate) fn check_figures(&self, log: &Log) -> Check {
        let id = self.spec.replica;
        let told = (
            log.last_index(),
            log.last_chain(),
            log.end_offset(),
            log.commit_index(),
            log.high_watermark(),
            log.log_start(),
        );
        let tip = self.tip();
        let want = (
            tip.index,
            tip.chain,
            tip.next_offset,
            self.committed,
            self.high_watermark(),
            if self.damaged {
                // The entry that moved it may be unreadable.
                log.log_start()
            } else {
                self.log_start()
            },
        );
        ensure!(
            told == want,
            "{id}: (last, chain, end, commit, high watermark, log start) are {told:?}, must be {want:?}"
        );
        Ok(())
    }

    /// The term of every entry, and of none else.
    pub(crate) fn check_terms(&self, log: &Log) -> Check {
        let id = self.spec.replica;
        let (first, stored, last) = (
            log.first_index(),
            log.first_stored_index(),
            log.last_index(),
        );
        // Damage may take terms; then the log says so.
        let unproven = self.damaged && log.unproven().is_some();
        ensure!(
            first == stored || unproven && first > stored,
            "{id}: terms are known from {first} on, entries are there from {stored} on"
        );
        for index in 0..=last + 1 {
            let known = (first - 1..=last).contains(&index);
            let want = known.then(|| self.at(index).term);
            let told = log.term_at(index);
            ensure!(
                told == want,
                "{id}: term of entry {index} is {told:?}, must be {want:?}; first {first}, last {last}"
            );
        }
        Ok(())
    }

    /// The memberships as the last config entries say.
    pub(crate) fn check_membership(&self, log: &Log) -> Check {
        if self.damaged && log.unproven().is_some() {
            return Ok(());
        }
        for (what, told, upto) in [
            ("committed", log.membership(), self.committed),
            ("last", log.last_membership(), self.last()),
        ] {
            let path = self.path[..=upto as usize].iter();
            let mut nodes = path.rev().map(|&id| &self.nodes[id]);
            let config = nodes.find(|n| n.kind == EntryKind::Config);
            let want = config.map_or((0, Bytes::new()), |n| (n.index, n.stored.clone()));
            ensure!(
                told == want,
                "{}: {what} membership is of entry {}, must be of {}, {upto} entries",
                self.spec.replica,
                told.0,
                want.0
            );
        }
        Ok(())
    }

    /// Frames from an index to another, read in pieces, byte for byte as a leader would have sent them.
    pub(crate) fn check_frames(
        &self,
        log: &Arc<Log>,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Check {
        let id = self.spec.replica;
        let mut next = from;
        while next <= to {
            let frames = match log.frames(next, to, max_bytes) {
                Ok(FramesOutcome::Frames(frames)) => frames,
                Ok(FramesOutcome::Cold(cold)) => {
                    cold.run().map_err(|e| format!("{id}: verifying: {e}"))?;
                    continue;
                }
                Err(Error::Damaged { .. }) if self.damaged => {
                    next += 1;
                    continue;
                }
                Err(error) => return Err(format!("{id}: frames from {next}: {error}")),
            };
            ensure!(!frames.is_empty(), "{id}: no frames from {next} to {to}");
            let bytes: usize = frames.iter().map(|f| f.1.len()).sum();
            ensure!(
                bytes <= max_bytes || frames.len() == 1,
                "{id}: {} frames of {bytes} bytes, at most {max_bytes} asked",
                frames.len()
            );
            for (header, payload) in frames {
                ensure!(next <= to, "{id}: frame {next} was not asked for");
                let node = self.at(next);
                let told = (header.index, header.term, header.kind, header.chain);
                let want = (node.index, node.term, node.kind, node.chain);
                ensure!(
                    told == want && payload == node.stored,
                    "{id}: frame {next} is {told:?}, must be {want:?}, or its payload differs (INV-4)"
                );
                next += 1;
            }
        }
        for (from, to) in [(log.first_index() - 1, to), (from, log.last_index() + 1)] {
            let outcome = log.frames(from, to, 1);
            ensure!(
                matches!(outcome, Err(Error::IndexOutOfRange { .. })),
                "{id}: frames from {from} to {to}, outside the log, are answered"
            );
        }
        Ok(())
    }

    /// Every readable record from an offset on, byte for byte (INV-2, 3, 11). Ranges that the log calls damaged are
    /// skipped where damage was done; returns the entries so skipped.
    pub(crate) fn check_reads(
        &self,
        log: &Arc<Log>,
        from: i64,
        max_bytes: usize,
    ) -> Check<Vec<u64>> {
        let id = self.spec.replica;
        let high_watermark = self.high_watermark();
        let mut due = self.data_from(from).into_iter().peekable();
        let mut cursor = log.cursor(from);
        let mut skipped = Vec::new();
        loop {
            let at = cursor.offset();
            match log.read_blocking(&mut cursor, max_bytes) {
                Ok(batches) if batches.is_empty() => {
                    let next = due.peek().map(|n| n.base_offset);
                    ensure!(
                        next.is_none() && (at >= high_watermark || from >= high_watermark),
                        "{id}: nothing at {at}, high watermark {high_watermark}, due {next:?}"
                    );
                    return Ok(skipped);
                }
                Ok(batches) => {
                    for batch in batches {
                        let Some(node) = due.next() else {
                            return Err(format!("{id}: a batch above the high watermark (INV-3)"));
                        };
                        ensure!(
                            batch == node.stored,
                            "{id}: batch at {} differs from what was appended (INV-4)",
                            node.base_offset
                        );
                    }
                }
                Err(Error::Damaged { from, to, what }) if self.damaged => {
                    ensure!(
                        from <= at && at < to,
                        "{id}: at {at} damage is told of {from}..{to}: {what}"
                    );
                    while let Some(node) = due.next_if(|n| n.base_offset < to) {
                        skipped.push(node.index);
                    }
                    let next = due.peek().map_or(high_watermark, |n| n.base_offset);
                    ensure!(
                        to == next || to >= high_watermark,
                        "{id}: damage {from}..{to} ends inside an entry, next {next}"
                    );
                    cursor = log.cursor(next);
                }
                Err(error) => return Err(format!("{id}: reading at {at}: {error}")),
            }
        }
    }

    /// The first batch that a reader gets at each of some offsets: where it begins depends on an index.
    pub(crate) fn check_seeks(&self, log: &Arc<Log>, every: usize) -> Check {
        if self.damaged {
            return Ok(());
        }
        for node in self.data_from(log.log_start()).into_iter().step_by(every) {
            let mut cursor = log.cursor(node.next_offset - 1);
            let found = log.read_blocking(&mut cursor, 1);
            ensure!(
                found
                    .as_ref()
                    .is_ok_and(|b| b.first() == Some(&node.stored)),
                "{}: seeking offset {} finds another batch, or none",
                self.spec.replica,
                node.next_offset - 1
            );
        }
        Ok(())
    }

    /// Readable data entries from an offset on.
    fn data_from(&self, from: i64) -> Vec<&Node> {
        let committed = &self.path[1..=self.committed as usize];
        let nodes = committed.iter().map(|&id| &self.nodes[id]);
        nodes
            .filter(|n| n.kind == EntryKind::Data && n.next_offset > from)
            .collect()
    }

    /// Committed entries by index, as a state log reads them.
    pub(crate) fn check_replay(&self, log: &Arc<Log>, from: u64) -> Check {
        let id = self.spec.replica;
        let mut next = from;
        let mut wrong = None;
        let result = log.replay(from, |entry| {
            let node = self.path.get(next as usize).map(|&n| &self.nodes[n]);
            let right = node.is_some_and(|n| {
                (n.index, n.term, n.kind, n.base_offset, n.time_ms)
                    == (
                        entry.index,
                        entry.term,
                        entry.kind,
                        entry.base_offset,
                        entry.append_time_ms,
                    )
                    && n.stored == entry.payload
            });
            if !right && wrong.is_none() {
                wrong = Some(format!(
                    "{id}: replayed entry {} is not entry {next}",
                    entry.index
                ));
            }
            next += 1;
            Ok(())
        });
        match (wrong, result) {
            (Some(wrong), _) => Err(wrong),
            (None, Ok(())) => {
                ensure!(
                    next == self.committed + 1 || from > self.committed,
                    "{id}: replay from {from} ended before {next}, committed {}",
                    self.committed
                );
                Ok(())
            }
            (None, Err(Error::Damaged { .. })) if self.damaged => Ok(()),
            (None, Err(error)) => Err(format!("{id}: replay from {from}: {error}")),
        }
    }

    /// What is outside the readable range is refused.
    pub(crate) fn check_bounds(&self, log: &Arc<Log>) -> Check {
        for offset in [log.log_start() - 1, self.high_watermark() + 1] {
            let outcome = log.read_blocking(&mut log.cursor(offset), 1 << 20);
            ensure!(
                matches!(outcome, Err(Error::OffsetOutOfRange { .. })),
                "{}: offset {offset} outside {}..={} is answered with {outcome:?} (INV-3)",
                self.spec.replica,
                log.log_start(),
                self.high_watermark()
            );
        }
        Ok(())
    }

    /// The first record at or after a time.
    pub(crate) fn check_time(&self, log: &Arc<Log>, time: i64) -> Check {
        let start = log.log_start();
        let records = self.data_from(start).into_iter().flat_map(|n| {
            let offsets = n.base_offset..;
            offsets.zip(n.timestamps.iter().copied())
        });
        let want = records
            .into_iter()
            .find(|&(offset, at)| offset >= start && at >= time);
        match log.offset_for_time(time) {
            Ok(found) => ensure!(
                found == want || self.damaged,
                "{}: first offset at time {time} is {found:?}, must be {want:?}",
                self.spec.replica
            ),
            Err(Error::Damaged { .. }) if self.damaged => {}
            Err(error) => return Err(format!("{}: time {time}: {error}", self.spec.replica)),
        }
        Ok(())
    }

    /// Every producer is remembered as its batches in the log say (INV-8).
    pub(crate) fn check_producers(&self, log: &Log, template: &BatchHeader) -> Check {
        for (&producer, (epoch, marks, before)) in &self.producers {
            for mark in marks {
                let header = probe(template, producer, *epoch, mark.first, mark.last);
                let answer = log.check_producer(&header);
                let right = matches!(answer, SequenceCheck::Duplicate { index, base_offset, .. }
                    if (index, base_offset) == (mark.index, mark.base_offset));
                ensure!(
                    right,
                    "{}: producer {producer} repeats {mark:?} and is answered {answer:?} (INV-8)",
                    self.spec.replica
                );
            }
            let newest = marks.back().map_or(-1, |m| m.last);
            let mut expect = vec![
                (newest + 1, SequenceCheck::Accept),
                (
                    newest + 3,
                    SequenceCheck::OutOfOrder {
                        expected: newest + 1,
                    },
                ),
            ];
            if *before > 0 {
                expect.push((0, SequenceCheck::TooOld));
            }
            for (first, want) in expect {
                let answer = log.check_producer(&probe(template, producer, *epoch, first, first));
                ensure!(
                    answer == want,
                    "{}: producer {producer} sends {first} behind {newest}: {answer:?}, must be {want:?} (INV-8)",
                    self.spec.replica
                );
            }
        }
        let unknown = log.check_producer(&probe(template, 1 << 40, 0, 7, 7));
        ensure!(
            unknown == SequenceCheck::Unknown,
            "an unknown producer is answered {unknown:?}"
        );
        Ok(())
    }
}

/// What an entry carries.
pub(crate) enum Payload<'a> {
    Batch(&'a Batch, Vec<i64>),
    Plain(Bytes),
    LogStart(i64),
}

fn apply(producers: &mut Producers, node: &Node) {
    let Some((stamp, count)) = node.producer else {
        return;
    };
    let state = producers
        .entry(stamp.id)
        .or_insert_with(|| (stamp.epoch, VecDeque::new(), 0));
    if state.0 != stamp.epoch {
        *state = (stamp.epoch, VecDeque::new(), 0);
    }
    state.1.push_back(Mark {
        first: stamp.base_sequence,
        last: stamp.base_sequence + count - 1,
        base_offset: node.base_offset,
        index: node.index,
    });
    if state.1.len() > BATCHES_REMEMBERED {
        state.1.pop_front();
        state.2 += 1;
    }
}

/// A header as the producer would send it again.
fn probe(template: &BatchHeader, id: i64, epoch: i16, first: i32, last: i32) -> BatchHeader {
    BatchHeader {
        producer_id: id,
        producer_epoch: epoch,
        base_sequence: first,
        record_count: last - first + 1,
        last_offset_delta: last - first,
        ..*template
    }
}

/// CRC-32C, bit by bit: independent of the one under test, and fast enough for small payloads.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}
