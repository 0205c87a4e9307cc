//! The flusher's work as values: begin a cycle, run it, finish it. The threads of [`crate::Running`] drive it in the
//! product, a seeded test in any order.
//!
//! Locks are taken in the order journal → checkpoints, journal → a log's state → its files → the queue; never back.
//!
//! One cycle is in flight at a time: it is written only after the one before it is synced, so that a whole later
//! cycle proves an earlier one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use crate::bugs::Bug;
use crate::error::{Error, Result};
use crate::ids::{FileId, ReplicaId};
use crate::journal::cycle::{CycleBuilder, REMOVE_RECORD};
use crate::journal::ring::Ring;
use crate::log::{CycleShare, Log, Room};
use crate::segment::Segment;
use crate::shared::{Shared, SyncKind};
use crate::store::Store;

/// Bytes of the ring that frames may not use: hard states, names and file headers fit there while a checkpoint is
/// under way.
const JOURNAL_RESERVE: u64 = 256 << 10;

/// The journal's state.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) ring: Ring,
    /// Absolute position of the next cycle.
    pub(crate) head: u64,
    /// Everything below may be overwritten.
    pub(crate) tail: u64,
    pub(crate) seq: u64,
    pub(crate) synced_seq: u64,
    pub(crate) in_flight: bool,
    /// The last cycle was a closing mark: nothing is left to say.
    pub(crate) closed: bool,
    /// Direct syncs begun and not finished.
    pub(crate) direct_running: usize,
    /// Directly synced since the last checkpoint began, bytes.
    pub(crate) direct_bytes: u64,
    /// Somebody was asked to write ahead of the head.
    pub(crate) prewriting: bool,
    pub(crate) scratch: Vec<u8>,
    /// Cycles written, for statistics.
    pub(crate) cycles: u64,
    /// Direct syncs done, for statistics.
    pub(crate) direct_syncs: u64,
}

/// A cycle that was begun and is to be run and finished.
#[derive(Debug)]
pub struct Cycle {
    at: u64,
    seq: u64,
    closing: bool,
    bytes: Vec<u8>,
    shares: Vec<CycleShare>,
    named: Vec<(Arc<Log>, FileId, u64)>,
}

/// A file that is synced beside the journal.
#[derive(Debug)]
pub struct DirectSync {
    log: Arc<Log>,
    segment: Arc<Segment>,
    upto: u64,
}

/// Journaled bytes of one file that may go to the device ahead of their checkpoint.
#[derive(Debug)]
pub struct WriteBack {
    pub(crate) segment: Arc<Segment>,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What the flusher has to do.
#[derive(Debug, Default)]
pub struct Work {
    /// To be run and finished, by one thread.
    pub cycle: Option<Cycle>,
    /// To be run and finished, by any threads.
    pub direct: Vec<DirectSync>,
    /// To be run by any threads, or dropped: what a checkpoint's syncs would otherwise write in one burst.
    pub write_back: Vec<WriteBack>,
    /// The journal's first lap is to be written ahead ([`Store::prewrite`]), by any thread, or never.
    pub prewrite: bool,
    /// The ring is short: a checkpoint must run before the rest fits.
    pub ring_full: bool,
}

impl Work {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.cycle.is_none() && self.direct.is_empty()
    }
}

impl Store {
    /// Takes what waits and makes a cycle of it. Empty while a cycle is in flight. With `closing`, an idle journal
    /// writes a mark that proves its last cycle.
    pub fn begin_cycle(&self, closing: bool) -> Work {
        let mut journal = self.inner.journal.lock();
        let mut work = Work::default();
        if journal.in_flight || self.shared().poisoned().is_some() {
            return work;
        }
        let free = journal.ring.len() - (journal.head - journal.tail);
        let total = free.min(journal.ring.cycle_bytes_max());
        // The padding to a whole block counts too.
        let usable = total.saturating_sub(crate::journal::cycle::BLOCK);
        let reserve = JOURNAL_RESERVE.min(journal.ring.len() / 8);
        let room = Room {
            frames: usable.min(free.saturating_sub(reserve)),
            total: usable,
            // What is below must fit a cycle of its own, or it would wait for ever.
            direct_from: self
                .shared()
                .options
                .direct_sync_bytes
                .min(journal.ring.cycle_bytes_max() / 2),
            short: free < journal.ring.cycle_bytes_max() + reserve,
        };
        let mut builder = CycleBuilder::new(std::mem::take(&mut journal.scratch));
        let mut shares = Vec::new();
        let named = self.fill(&mut builder, room, &mut shares, &mut work);
        for share in &mut shares {
            work.write_back.append(&mut share.write_back);
            for (segment, upto) in share.direct.drain(..) {
                journal.direct_running += 1;
                work.direct.push(DirectSync {
                    log: share.log.clone(),
                    segment,
                    upto,
                });
            }
        }
        let empty = builder.is_empty();
        let idle = empty && work.direct.is_empty() && journal.direct_running == 0;
        if empty && !(closing && idle && !journal.closed && usable > 0) {
            journal.scratch = builder.into_scratch();
            return work;
        }
        journal.seq += 1;
        let bytes = builder.finish(self.inner.boot, journal.seq, journal.synced_seq, empty);
        work.cycle = Some(Cycle {
            at: journal.head,
            seq: journal.seq,
            closing: empty,
            shares,
            named,
            bytes,
        });
        journal.head += work.cycle.as_ref().map_or(0, |c| c.bytes.len() as u64);
        journal.in_flight = true;
        if !journal.prewriting && journal.ring.is_prewrite_due(journal.head) {
            journal.prewriting = true;
            work.prewrite = true;
        }
        work
    }

    fn fill(
        &self,
        builder: &mut CycleBuilder,
        room: Room,
        shares: &mut Vec<CycleShare>,
        work: &mut Work,
    ) -> Vec<(Arc<Log>, FileId, u64)> {
        let (dirty, mut waiting, mut removed) = {
            let mut queue = self.shared().queue.lock();
            (
                std::mem::take(&mut queue.dirty),
                std::mem::take(&mut queue.named),
                std::mem::take(&mut queue.removed),
            )
        };
        let fit = (room.total.saturating_sub(builder.len()) / REMOVE_RECORD) as usize;
        let removed_later = removed.split_off(fit.min(removed.len()));
        for replica in removed {
            builder.remove(replica);
        }
        // Names first: they acknowledge what was synced already.
        let fit = (room.total.saturating_sub(builder.len()) / 32) as usize;
        let left = waiting.split_off(fit.min(waiting.len()));
        for (_, file, upto) in &waiting {
            builder.named(*file, *upto);
        }
        let mut back = Vec::new();
        for log in dirty {
            match log.share_of_cycle(builder, room) {
                Some(share) => {
                    if share.more {
                        back.push(log);
                    }
                    shares.push(share);
                }
                None => {
                    work.ring_full = true;
                    back.push(log);
                }
            }
        }
        let mut queue = self.shared().queue.lock();
        work.ring_full |= !left.is_empty() || !removed_later.is_empty();
        queue.named.extend(left);
        queue.removed.extend(removed_later);
        // They count as queued already: a log's state is never taken under the queue's lock.
        for log in back.into_iter().rev() {
            queue.dirty.push_front(log);
        }
        waiting
    }

    /// Writes and syncs a cycle. Blocking.
    ///
    /// # Errors
    /// Any error poisons the directory.
    pub fn run_cycle(&self, cycle: &Cycle) -> Result<()> {
        let shared = self.shared();
        let file = {
            let mut journal = self.inner.journal.lock();
            let written = journal.ring.write(cycle.at, &cycle.bytes);
            shared.fatal(written)?;
            journal.ring.file().clone()
        };
        if shared.has_bug(Bug::SkipJournalSync) {
            return Ok(());
        }
        let began = Instant::now();
        let synced = file.sync().map_err(Error::io("syncing the journal"));
        shared.fatal(synced)?;
        shared.report_sync(SyncKind::Journal, began.elapsed());
        Ok(())
    }

    /// Writes zeros ahead of the head in the journal's first lap: a block that is new to the file makes a cycle's sync
    /// several times as long. Piece by piece, for a cycle waits while one is written.
    ///
    /// # Errors
    /// Any error poisons the directory.
    pub fn prewrite(&self) -> Result<()> {
        let shared = self.shared();
        loop {
            shared.check_poison()?;
            let mut journal = self.inner.journal.lock();
            // Cycles begun are below the head, written or not.
            let head = journal.head;
            if !shared.fatal(journal.ring.prewrite(head))? {
                journal.prewriting = false;
                return Ok(());
            }
            MutexGuard::unlock_fair(journal);
        }
    }

    /// Counts what a synced cycle holds. Returns the replicas whose durable index moved, and tells the listener.
    pub fn finish_cycle(&self, cycle: Cycle) -> Vec<(ReplicaId, u64)> {
        let mut updates = BTreeMap::new();
        let mut note = |log: &Arc<Log>, moved: Option<u64>| {
            if let Some(index) = moved {
                updates.insert(log.spec().replica, index);
            }
        };
        for share in &cycle.shares {
            note(&share.log, share.log.cycle_synced(share));
        }
        for (log, file, upto) in &cycle.named {
            note(log, log.direct_named(*file, *upto));
        }
        {
            let mut journal = self.inner.journal.lock();
            journal.in_flight = false;
            journal.synced_seq = cycle.seq;
            journal.closed = cycle.closing;
            journal.cycles += 1;
            journal.scratch = cycle.bytes;
            if self.checkpoint_is_due(&journal) {
                self.shared().want_checkpoint();
            }
        }
        let updates: Vec<_> = updates.into_iter().collect();
        self.shared().report_durable(&updates);
        updates
    }

    /// Syncs one file and, if its entry is new, its directory. Blocking.
    ///
    /// # Errors
    /// Any error poisons the directory.
    pub fn run_direct(&self, direct: &DirectSync) -> Result<()> {
        let shared = self.shared();
        if shared.has_bug(Bug::SkipDirectSync) {
            return Ok(());
        }
        shared.fatal(sync_segment(shared, &direct.segment, SyncKind::Direct))
    }

    /// Starts the write-back of journaled bytes. A hint: nothing is durable by it, an error is the next sync's.
    pub fn run_write_back(&self, piece: &WriteBack) {
        if let Ok(handle) = piece.segment.handle(self.shared()) {
            handle.file.start_write_back(piece.from, piece.to);
        }
    }

    /// Hands the finished sync to the next cycle, which names it.
    pub fn finish_direct(&self, direct: DirectSync) {
        let shared = self.shared();
        {
            let mut journal = self.inner.journal.lock();
            journal.direct_running -= 1;
            journal.direct_syncs += 1;
            let before = direct.segment.synced_pos();
            journal.direct_bytes += direct.upto.saturating_sub(before);
            journal.closed = false;
        }
        direct.segment.synced_to(direct.upto);
        direct.log.direct_synced(direct.segment.id, direct.upto);
        if shared.has_bug(Bug::AckEarly) {
            direct.log.direct_named(direct.segment.id, direct.upto);
        }
        let mut queue = shared.queue.lock();
        queue
            .named
            .push((direct.log, direct.segment.id, direct.upto));
        shared.wake.notify_one();
    }
}

/// Syncs a segment and, if it changed, its directory.
pub(crate) fn sync_segment(shared: &Shared, segment: &Arc<Segment>, kind: SyncKind) -> Result<()> {
    let began = Instant::now();
    match segment.sync(shared) {
        Err(_) if segment.is_deleted() => return Ok(()),
        synced => synced?,
    }
    if let Some(dir) = segment.path.parent() {
        shared.dirs.sync(&*shared.disk, dir)?;
    }
    shared.report_sync(kind, began.elapsed());
    Ok(())
}
