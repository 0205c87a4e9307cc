//! Replicas of one group, their logs, and the messages between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use timberline_consensus::{
    ConfigEntry, Envelope, Frame, Frames, Group, GroupOptions, LogStore, Member, NodeId,
    NotInstalled, Output, Proposal, Pulse, Refused, Role, SnapshotMark, SnapshotOffer, Staged,
    Tick, Timing,
};
use timberline_storage::{Appended, Durability, EntryKind, Error, FrameHeader, HardState};

pub(crate) const TAG: u64 = 99;

/// What is on one replica's disk, and what only in its cache.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// Entries before the first frame: how many, and what the last of them says.
    pub(crate) base: Base,
    pub(crate) frames: Vec<Frame>,
    /// Where a snapshot can end.
    pub(crate) boundary: Option<SnapshotMark>,
    /// Sealed segments: their first entries, and how large they are said to be.
    pub(crate) sealed: Vec<(u64, u64)>,
    /// What is on disk while an install is not.
    before_install: Option<Box<Disk>>,
    pub(crate) durable: u64,
    pub(crate) hard: HardState,
    pub(crate) hard_version: u64,
    pub(crate) hard_durable: (u64, HardState),
    pub(crate) committed: u64,
    commit_durable: u64,
    pub(crate) full: bool,
}

/// What is known of entries that are gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Base {
    pub(crate) index: u64,
    term: u64,
    chain: u64,
    offset: i64,
    config: (u64, Bytes),
}

/// A snapshot beside a log.
#[derive(Clone, Debug)]
pub(crate) struct MemStaged {
    base: Base,
    frames: Vec<Frame>,
    mark: SnapshotMark,
}

impl Staged for MemStaged {
    fn mark(&self) -> SnapshotMark {
        self.mark.clone()
    }
}

impl Disk {
    fn last(&self) -> u64 {
        self.base.index + self.frames.len() as u64
    }

    fn upto(&self, index: u64) -> &[Frame] {
        &self.frames[..(index - self.base.index) as usize]
    }

    fn at(&self, index: u64) -> Option<&Frame> {
        let at = index.checked_sub(self.base.index + 1)?;
        self.frames.get(at as usize)
    }

    fn term(&self, index: u64) -> Option<u64> {
        match index == self.base.index {
            true => Some(self.base.term),
            false => self.at(index).map(|f| f.header.term),
        }
    }

    fn config_at(&self, upto: u64) -> (u64, Bytes) {
        let mut frames = self.upto(upto).iter().rev();
        frames
            .find(|frame| frame.header.kind == EntryKind::Config)
            .map_or(self.base.config.clone(), |frame| {
                (frame.header.index, frame.payload.clone())
            })
    }

    /// Seals what is committed.
    pub(crate) fn close(&mut self) {
        let index = self.committed;
        self.boundary = Some(SnapshotMark {
            index,
            term: self.term(index).unwrap(),
            membership: self.config_at(index).1,
        });
    }

    /// Forgets entries up to the index.
    pub(crate) fn drop_upto(&mut self, index: u64) {
        assert!(index <= self.committed);
        let last = self.at(index).unwrap().header;
        let base = Base {
            index,
            term: last.term,
            chain: last.chain,
            offset: last.next_offset(),
            config: self.config_at(index),
        };
        self.frames.drain(..(index - self.base.index) as usize);
        self.base = base;
    }

    pub(crate) fn stage(&self, mark: &SnapshotMark) -> MemStaged {
        MemStaged {
            base: self.base.clone(),
            frames: self.upto(mark.index).to_vec(),
            mark: mark.clone(),
        }
    }

    fn push(&mut self, kind: EntryKind, term: u64, payload: Bytes) -> Appended {
        let (index, chain, offset) = self
            .frames
            .last()
            .map_or((self.base.index, self.base.chain, self.base.offset), |f| {
                (f.header.index, f.header.chain, f.header.next_offset())
            });
        let mut header = FrameHeader {
            kind,
            payload_len: payload.len() as u32,
            payload_crc: crc32c(&payload),
            term,
            index: index + 1,
            base_offset: offset,
            record_count: 0,
            append_time_ms: 0,
            chain: 0,
        };
        header.chain = header.chain_after(chain);
        self.frames.push(Frame { header, payload });
        Appended {
            index: index + 1,
            base_offset: offset,
            bytes: 0,
        }
    }
}

/// Any digest will do.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, &byte: &u8| sum.wrapping_mul(31).wrapping_add(u32::from(byte));
    bytes.iter().fold(7, step)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct MemLog(pub(crate) Arc<Mutex<Disk>>);

impl MemLog {
    pub(crate) fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// The sync that is under way ends.
    pub(crate) fn sync(&self) {
        let mut disk = self.disk();
        disk.durable = disk.last();
        disk.before_install = None;
        disk.hard_durable = (disk.hard_version, disk.hard);
        disk.commit_durable = disk.committed;
    }
}

impl LogStore for MemLog {
    type Staged = MemStaged;

    fn first_index(&self) -> u64 {
        self.disk().base.index + 1
    }

    fn last_index(&self) -> u64 {
        self.disk().last()
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        self.disk().term(index)
    }

    fn commit_index(&self) -> u64 {
        self.disk().committed
    }

    fn hard_state(&self) -> HardState {
        self.disk().hard
    }

    fn membership(&self) -> (u64, Bytes) {
        let disk = self.disk();
        disk.config_at(disk.committed)
    }

    fn reserve(&self, bytes: u64) -> Result<(), Error> {
        match self.disk().full {
            true => Err(Error::StorageFull { wanted: bytes }),
            false => Ok(()),
        }
    }

    fn append(&self, term: u64, proposal: &Proposal, _: i64) -> Result<Appended, Error> {
        let Proposal::Command(payload) = proposal else {
            return Err(Error::Refused("scripts write commands".into()));
        };
        Ok(self.disk().push(EntryKind::Command, term, payload.clone()))
    }

    fn append_internal(
        &self,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        _: i64,
    ) -> Result<Appended, Error> {
        Ok(self.disk().push(kind, term, payload))
    }

    fn append_frame(&self, frame: &Frame) -> Result<(), Error> {
        let mut disk = self.disk();
        let chain = disk
            .frames
            .last()
            .map_or(disk.base.chain, |f| f.header.chain);
        assert_eq!(frame.header.index, disk.last() + 1);
        assert_eq!(frame.header.chain, frame.header.chain_after(chain), "INV-4");
        disk.frames.push(frame.clone());
        Ok(())
    }

    fn truncate_after(&self, index: u64) -> Result<(), Error> {
        let mut disk = self.disk();
        assert!(index >= disk.committed, "a committed entry is never cut");
        let kept = (index - disk.base.index) as usize;
        disk.frames.truncate(kept);
        disk.durable = disk.durable.min(index);
        Ok(())
    }

    fn set_hard_state(&self, hard: HardState) -> u64 {
        let mut disk = self.disk();
        disk.hard = hard;
        disk.hard_version += 1;
        disk.hard_version
    }

    fn durability(&self) -> Durability {
        let disk = self.disk();
        Durability {
            index: disk.durable,
            hard_version: disk.hard_durable.0,
            commit: disk.commit_durable.min(disk.durable),
        }
    }

    fn commit_to(&self, index: u64) {
        let mut disk = self.disk();
        assert!(index <= disk.last());
        disk.committed = disk.committed.max(index);
    }

    fn frames(&self, from: u64, to: u64, max_bytes: usize) -> Result<Frames, Error> {
        let disk = self.disk();
        let mut bytes = 0;
        let frames = disk.upto(to)[(from - disk.base.index) as usize - 1..]
            .iter()
            .take_while(|frame| {
                let first = bytes == 0;
                bytes += frame.payload.len() + 1;
                first || bytes <= max_bytes
            });
        Ok(Frames::Ready(frames.cloned().collect()))
    }

    fn sealed_bytes_from(&self, index: u64) -> u64 {
        let disk = self.disk();
        let behind = disk.sealed.iter().filter(|(first, _)| *first >= index);
        behind.map(|(_, bytes)| bytes).sum()
    }

    fn boundary(&self) -> Option<SnapshotMark> {
        self.disk().boundary.clone()
    }

    fn install(&self, staged: MemStaged) -> Result<(), Error> {
        let mut disk = self.disk();
        assert!(staged.mark.index > disk.committed);
        let before = disk.clone();
        disk.before_install.get_or_insert(Box::new(before));
        disk.durable = disk.durable.min(disk.committed);
        disk.base = staged.base;
        disk.frames = staged.frames;
        disk.committed = staged.mark.index;
        disk.boundary = Some(staged.mark);
        Ok(())
    }
}

/// The replicas and what is between them.
pub(crate) struct World {
    pub(crate) groups: BTreeMap<NodeId, Group<MemLog>>,
    pub(crate) logs: BTreeMap<NodeId, MemLog>,
    pub(crate) wire: VecDeque<Envelope>,
    /// Nothing reaches or leaves these.
    pub(crate) cut_off: BTreeSet<NodeId>,
    /// Their syncs do not end.
    pub(crate) slow: BTreeSet<NodeId>,
    /// Snapshots that leaders want shipped.
    pub(crate) offers: Vec<(NodeId, SnapshotOffer)>,
    /// Leaders that want their active segment closed get it.
    pub(crate) closes: bool,
    /// What was delivered, one line each, for scripts that read it.
    pub(crate) seen: Vec<String>,
    /// Shards beat, so that groups may fall silent.
    pub(crate) shards_beat: bool,
    /// By receiver and sender, the tick at which its shard was heard.
    heard: BTreeMap<(NodeId, NodeId), u64>,
    ticks: u64,
}

fn silence(heard: &BTreeMap<(NodeId, NodeId), u64>, at: NodeId, of: NodeId, now: u64) -> u64 {
    heard.get(&(at, of)).map_or(u64::MAX, |then| now - then)
}

pub(crate) fn member(node: NodeId) -> Member {
    Member {
        node,
        broker: node as i32,
    }
}

pub(crate) fn options(node: NodeId) -> GroupOptions {
    GroupOptions {
        node,
        tag: TAG,
        seed: 1,
        timing: Timing::default(),
    }
}

impl World {
    /// These voters, founded and idle.
    pub(crate) fn of(nodes: &[NodeId]) -> World {
        let mut world = World {
            groups: BTreeMap::new(),
            logs: BTreeMap::new(),
            wire: VecDeque::new(),
            cut_off: BTreeSet::new(),
            slow: BTreeSet::new(),
            offers: Vec::new(),
            closes: true,
            seen: Vec::new(),
            shards_beat: false,
            heard: BTreeMap::new(),
            ticks: 0,
        };
        let founding = ConfigEntry::founding(nodes.iter().copied().map(member).collect());
        for &node in nodes {
            let log = MemLog::default();
            {
                let mut disk = log.disk();
                disk.push(EntryKind::Config, 1, founding.encode());
                disk.hard.term = 1;
                disk.committed = 1;
            }
            log.sync();
            world.logs.insert(node, log);
            world.open(node);
        }
        world
    }

    /// An empty replica that others may add.
    pub(crate) fn add_empty(&mut self, node: NodeId) {
        self.logs.insert(node, MemLog::default());
        self.open(node);
    }

    pub(crate) fn open(&mut self, node: NodeId) {
        let log = self.logs[&node].clone();
        let group = Group::open(options(node), log).unwrap();
        self.groups.insert(node, group);
        self.turn(node);
    }

    /// Power is lost: what was not synced is gone.
    pub(crate) fn crash(&mut self, node: NodeId) {
        self.groups.remove(&node);
        let log = &self.logs[&node];
        let mut disk = log.disk();
        if let Some(before) = disk.before_install.take() {
            *disk = *before;
        }
        let durable = disk.durable;
        let kept = (durable - disk.base.index) as usize;
        disk.frames.truncate(kept);
        disk.hard = disk.hard_durable.1;
        let last = disk.frames.last().map_or(disk.base.term, |f| f.header.term);
        disk.hard.term = disk.hard.term.max(last);
        disk.committed = disk.commit_durable.min(durable);
    }

    pub(crate) fn restart(&mut self, node: NodeId) {
        self.crash(node);
        self.open(node);
    }

    /// One replica works off what it has; its messages go on the wire.
    pub(crate) fn turn(&mut self, node: NodeId) {
        let Some(group) = self.groups.get_mut(&node) else {
            return;
        };
        loop {
            let mut out = Output::default();
            group.turn(0, &mut out);
            assert_eq!(group.stopped(), None, "replica {node}");
            let mut idle = out.messages.is_empty();
            self.wire.extend(out.messages);
            let offers = out.snapshots.into_iter().map(|offer| (node, offer));
            self.offers.extend(offers);
            if out.close_after.is_some() && self.closes {
                self.logs[&node].disk().close();
            }
            if self.slow.contains(&node) {
                break;
            }
            self.logs[&node].sync();
            if idle {
                let mut out = Output::default();
                group.turn(0, &mut out);
                idle = out.messages.is_empty();
                self.wire.extend(out.messages);
                if idle {
                    break;
                }
            }
        }
    }

    /// What a leader offered arrives whole, beside the log of its receiver.
    pub(crate) fn staged(&self, from: NodeId, offer: &SnapshotOffer) -> MemStaged {
        self.logs[&from].disk().stage(&offer.mark)
    }

    /// Ships what is offered, installs it, and says so.
    pub(crate) fn ship(&mut self) {
        for (from, offer) in std::mem::take(&mut self.offers) {
            let staged = self.staged(from, &offer);
            let installed = self.group(offer.to).install(from, offer.term, staged);
            self.turn(offer.to);
            let has_it = matches!(installed, Ok(()) | Err(NotInstalled::Stale));
            self.group(from).snapshot_sent(offer.to, has_it);
            self.turn(from);
        }
        self.settle();
    }

    /// Delivers the oldest message; false when there is none.
    pub(crate) fn deliver(&mut self) -> bool {
        let Some(envelope) = self.wire.pop_front() else {
            return false;
        };
        let (from, to) = (envelope.from, envelope.to);
        if self.cut_off.contains(&from) || self.cut_off.contains(&to) {
            return true;
        }
        self.seen.push(line(&envelope));
        if let Some(group) = self.groups.get_mut(&to) {
            if self.shards_beat {
                let silent = silence(&self.heard, to, from, self.ticks);
                match group.pulse(&envelope, self.ticks, silent) {
                    Pulse::Beat(reply) => self.wire.push_back(reply),
                    Pulse::Reply => {}
                    Pulse::Other => {
                        group.step(envelope).unwrap();
                        self.turn(to);
                    }
                }
                return true;
            }
            group.step(envelope).unwrap();
            self.turn(to);
        }
        true
    }

    /// Delivers until nothing is on the wire.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.deliver() {
                return;
            }
        }
        panic!("the replicas do not come to rest");
    }

    /// Time passes for one.
    pub(crate) fn tick(&mut self, node: NodeId) {
        self.ticks += 1;
        let number = self.ticks;
        let mut out = Output::default();
        let heard = self.heard.clone();
        self.group(node).tick(
            number,
            |of| silence(&heard, node, of.node, number),
            &mut out,
        );
        self.wire.extend(out.messages);
    }

    /// Time passes for everybody, tick by tick.
    pub(crate) fn pass(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.ticks += 1;
            let nodes: Vec<_> = self.logs.keys().copied().collect();
            if self.shards_beat {
                let up = |node: &&NodeId| !self.cut_off.contains(node);
                for from in nodes.iter().filter(up) {
                    let heard = nodes.iter().filter(up).map(|to| ((*to, *from), self.ticks));
                    self.heard.extend(heard);
                }
            }
            for node in nodes {
                if let Some(group) = self.groups.get_mut(&node) {
                    let mut out = Output::default();
                    let silent_for = |of: Member| silence(&self.heard, node, of.node, self.ticks);
                    let tick = group.tick(self.ticks, silent_for, &mut out);
                    self.wire.extend(out.messages);
                    if tick == Tick::Due {
                        self.turn(node);
                    }
                }
            }
            self.settle();
        }
    }

    /// Lets `node` win an election.
    pub(crate) fn elect(&mut self, node: NodeId) {
        // Leases run out first.
        self.groups.get_mut(&node).unwrap().campaign();
        self.turn(node);
        self.settle();
        assert_eq!(self.leader(), Some(node));
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leaders = self.groups.iter().filter(|(_, g)| g.role() == Role::Leader);
        leaders.max_by_key(|(_, g)| g.term()).map(|(&node, _)| node)
    }

    pub(crate) fn propose(&mut self, node: NodeId, text: &str) -> Result<u64, Refused> {
        let proposal = Proposal::Command(Bytes::copy_from_slice(text.as_bytes()));
        let group = self.groups.get_mut(&node).unwrap();
        let appended = group.propose(&proposal, 0)?;
        self.turn(node);
        Ok(appended.index)
    }

    pub(crate) fn group(&mut self, node: NodeId) -> &mut Group<MemLog> {
        self.groups.get_mut(&node).unwrap()
    }

    /// The commands in a log, up to its commit index.
    pub(crate) fn committed(&self, node: NodeId) -> Vec<String> {
        let disk = self.logs[&node].disk();
        let commands = disk.upto(disk.committed).iter();
        commands
            .filter(|f| f.header.kind == EntryKind::Command)
            .map(|f| String::from_utf8_lossy(&f.payload).into_owned())
            .collect()
    }

    /// The commands in a log, committed or not.
    pub(crate) fn written(&self, node: NodeId) -> Vec<String> {
        let disk = self.logs[&node].disk();
        let commands = disk.frames.iter();
        commands
            .filter(|f| f.header.kind == EntryKind::Command)
            .map(|f| String::from_utf8_lossy(&f.payload).into_owned())
            .collect()
    }
}

fn line(envelope: &Envelope) -> String {
    let Envelope {
        from,
        to,
        term,
        body,
        ..
    } = envelope;
    let text = format!("{body:?}");
    let kind = text.split(['(', ' ', '{']).next().unwrap_or_default();
    format!("{from}→{to} t{term} {kind}")
}
