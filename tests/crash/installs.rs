//! Snapshots on their way in: another replica, on a disk without faults, has gone on from what is committed here.
//!
//! Its store is made when a snapshot begins and holds the committed entries and some more; what it offers is shipped
//! in pieces in any order, beside everything else that happens to the receiver. While that lasts nothing more is
//! committed here, as with a follower that gets no entries; what is appended is a tail that the snapshot does not have.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use timberline_record::BatchHeader;
use timberline_storage::disk::{Disk, FaultDisk};
use timberline_storage::{
    EntryKind, Error, FrameHeader, HardState, Install, Log, Snapshot, Store, StoreOptions,
};
use uuid::Uuid;

use crate::oracle::{Check, Node, Payload, Replica, ensure};
use crate::sim::{DIR, Sim};
use crate::workload::batch;

/// Snapshots on their way in, at most.
const INCOMING_MAX: usize = 2;

/// One snapshot on its way in.
pub(crate) struct Incoming {
    snapshot: Snapshot,
    install: Install,
    /// Committed here when it began.
    fork: u64,
    /// What the sender has behind that.
    nodes: Vec<Node>,
    _sender: Store,
}

impl Sim {
    /// Another replica offers what it has.
    pub(crate) fn begin_install(&mut self, id: u64) -> Check {
        if self.installs.len() >= INCOMING_MAX || self.installs.contains_key(&id) {
            return Ok(());
        }
        let fork = self.replicas[&id].committed;
        let (sender, log, nodes) = self.sender(id)?;
        let Some(last) = nodes.last() else {
            return Ok(());
        };
        let index = last.index;
        let boundary = log.boundary().map(|b| b.index);
        ensure!(
            boundary == Some(index),
            "r{id}: all is committed up to {index}, the boundary is {boundary:?}"
        );
        let snapshot = log
            .snapshot(index)
            .map_err(|e| format!("a snapshot: {e}"))?
            .ok_or_else(|| format!("r{id}: no snapshot up to {index}"))?;
        self.note(format!(
            "r{id} begin install of {:?}",
            snapshot.manifest().segments
        ));
        let install = match self.log(id).begin_install(snapshot.manifest().clone()) {
            Ok(install) => install,
            Err(error) => return self.judge("beginning an install", error),
        };
        let incoming = Incoming {
            snapshot,
            install,
            fork,
            nodes,
            _sender: sender,
        };
        self.installs.insert(id, incoming);
        self.stats.installs_begun += 1;
        Ok(())
    }

    /// A store that holds what is committed here, and more.
    fn sender(&mut self, id: u64) -> Check<(Store, Arc<Log>, Vec<Node>)> {
        let fault = |what: &str, error: Error| format!("the sender, {what}: {error}");
        let options = StoreOptions {
            directory_id: Some(Uuid::from_u128(2)),
            journal_bytes: 8 << 20,
            direct_sync_bytes: 64 << 10,
            ..StoreOptions::default()
        };
        let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(2));
        let store = Store::open(disk, Path::new(DIR), options)
            .map_err(|e| fault("opening", e))?
            .store;
        let mut config = self.log_config();
        config.segment_bytes = config.segment_bytes.max(16 << 10);
        let here = &self.replicas[&id];
        let mut future = Replica::new(here.spec);
        let log = store
            .create_replica(here.spec, config)
            .map_err(|e| fault("creating", e))?;
        for index in 1..=here.committed {
            let node = here.at(index);
            log.append_frame(&header_of(node), node.stored.clone())
                .map_err(|e| fault("appending", e))?;
            future.adopt_node(node);
            if index % 64 == 0 {
                settle(&store)?;
            }
        }
        let mut nodes = Vec::new();
        let mut term = here.at(here.committed).term.max(1);
        let config_at = self.rng.below(3);
        for n in 0..self.rng.within(3, 20) {
            term += u64::from(self.rng.chance(10));
            self.now_ms += self.rng.below(20) as i64;
            let (now, sizes) = (self.now_ms, self.profile.sizes);
            let (kind, payload);
            let made;
            if n == config_at || self.rng.chance(5) {
                kind = EntryKind::Config;
                payload = Payload::Plain(Bytes::from(self.rng.bytes(40)));
            } else if self.rng.chance(10) {
                kind = EntryKind::LogStart;
                let (start, end) = (future.log_start(), future.tip().next_offset);
                let target = start + self.rng.below((end - start + 1) as u64) as i64;
                payload = Payload::LogStart(target);
            } else {
                kind = EntryKind::Data;
                made = batch(&mut self.rng, &sizes, now, None);
                payload = Payload::Batch(&made.0, made.1.clone());
            }
            let (header, node) = future.next(term, kind, &payload, now);
            log.append_frame(&header, node.stored.clone())
                .map_err(|e| fault("appending", e))?;
            future.adopt_node(&node);
            nodes.push(node);
        }
        log.set_hard_state(HardState {
            term,
            vote: 0,
            commit: 0,
        });
        settle(&store)?;
        log.commit_to(log.last_index());
        log.close_active(log.last_index())
            .map_err(|e| fault("closing", e))?;
        settle(&store)?;
        while let Some(seal) = store.begin_seal() {
            store.run_seal(seal).map_err(|e| fault("sealing", e))?;
        }
        for _ in 0..self.rng.below(3) {
            // What is below the log start goes.
            store
                .checkpoint_now(false)
                .map_err(|e| fault("a checkpoint", e))?;
        }
        Ok((store, log, nodes))
    }

    /// Some bytes arrive, or all are there.
    pub(crate) fn step_install(&mut self) -> Check {
        let at = self.rng.below(self.installs.len() as u64) as usize;
        let Some(id) = self.installs.keys().nth(at).copied() else {
            return Ok(());
        };
        if self.replicas.get(&id).is_none_or(|r| r.removed) || self.rng.chance(1) {
            self.note(format!("r{id} install dropped"));
            self.installs.remove(&id);
            return Ok(());
        }
        let Some(incoming) = self.installs.get_mut(&id) else {
            return Ok(());
        };
        if self.rng.chance(5) {
            let again = incoming.snapshot.manifest().clone();
            if let Err(error) = incoming.install.resume(again) {
                return self.judge("resuming an install", error);
            }
            return Ok(());
        }
        let missing = incoming.install.missing();
        let Some(pick) = missing.get(self.rng.below(missing.len() as u64) as usize) else {
            return self.make_live(id);
        };
        let Some(range) = pick
            .ranges
            .get(self.rng.below(pick.ranges.len() as u64) as usize)
        else {
            // Complete, and there was no space for its footer.
            return match incoming.install.finish() {
                Ok(()) => Ok(()),
                Err(Error::Refused(_)) if missing.len() > 1 => Ok(()),
                Err(error) => self.judge("finishing an install", error),
            };
        };
        let middle = range.start + self.rng.below(range.end - range.start);
        let from = self.rng.pick(&[range.start, range.start, middle]);
        let len = self.rng.pick(&[700, 9_000, 1 << 20]).min(range.end - from);
        self.ship(id, pick.segment, from, len as usize)
    }

    fn ship(&mut self, id: u64, segment: usize, from: u64, len: usize) -> Check {
        let Some(incoming) = self.installs.get_mut(&id) else {
            return Ok(());
        };
        let bytes = incoming
            .snapshot
            .read(segment, from, len)
            .map_err(|e| format!("reading a snapshot: {e}"))?;
        match incoming.install.write(segment, from, &bytes) {
            Ok(()) => Ok(()),
            Err(error) => self.judge("staging", error),
        }
    }

    /// All bytes are there.
    fn make_live(&mut self, id: u64) -> Check {
        let Some(incoming) = self.installs.get_mut(&id) else {
            return Ok(());
        };
        if let Err(error) = incoming.install.finish() {
            return self.judge("finishing an install", error);
        }
        if self.rng.chance(50) {
            return Ok(());
        }
        let Some(incoming) = self.installs.remove(&id) else {
            return Ok(());
        };
        let (fork, nodes) = (incoming.fork, incoming.nodes);
        let log = self.log(id);
        if let Err(error) = log.install(incoming.install) {
            return self.judge("installing", error);
        }
        self.replica(id).adopt(fork, nodes);
        self.note(format!("r{id} installed up to {}", log.last_index()));
        self.stats.installs += 1;
        let replica = &self.replicas[&id];
        replica.check_figures(&log)?;
        replica.check_terms(&log)?;
        replica.check_membership(&log)
    }

    /// One snapshot from beginning to end, with nothing beside.
    pub(crate) fn install_whole(&mut self, id: u64) -> Check {
        let before = self.stats.installs;
        self.begin_install(id)?;
        while self.installs.contains_key(&id)
            && !self.disk.crashed()
            && self.stats.installs == before
        {
            if self.store().poisoned().is_some() {
                return Ok(());
            }
            self.step_install()?;
        }
        Ok(())
    }

    /// What is on its way in is given up.
    pub(crate) fn drop_installs(&mut self) {
        self.installs.clear();
    }
}

fn settle(store: &Store) -> Check {
    let fault = |error: Error| format!("the sender: {error}");
    loop {
        let work = store.begin_cycle(false);
        if work.is_empty() && !work.ring_full {
            return Ok(());
        }
        if work.is_empty() {
            store.checkpoint_now(false).map_err(fault)?;
        }
        for direct in work.direct {
            store.run_direct(&direct).map_err(fault)?;
            store.finish_direct(direct);
        }
        if let Some(cycle) = work.cycle {
            store.run_cycle(&cycle).map_err(fault)?;
            store.finish_cycle(cycle);
        }
    }
}

/// The frame's header of an entry that somebody has.
fn header_of(node: &Node) -> FrameHeader {
    let payload_crc = match node.kind {
        EntryKind::Data => BatchHeader::decode(&node.stored).map_or(0, |b| b.crc),
        _ => crate::oracle::crc32c(&node.stored),
    };
    FrameHeader {
        kind: node.kind,
        payload_len: node.stored.len() as u32,
        payload_crc,
        term: node.term,
        index: node.index,
        base_offset: node.base_offset,
        record_count: (node.next_offset - node.base_offset) as u32,
        append_time_ms: node.time_ms,
        chain: node.chain,
    }
}
