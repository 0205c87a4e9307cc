//! The log's share of a cycle: which frames are copied into the journal, which files are synced directly, and what
//! is durable when either is done.
//!
//! A file with much dirty is synced directly; the cycle after its sync names it, and that cycle's sync acknowledges
//! its entries. While a direct sync of a file is under way its new frames wait, so that the next one covers more.

use std::sync::Arc;

use super::{Log, Mark, MarkKind, State};
use crate::bugs::Bug;
use crate::cycles::WriteBack;
use crate::ids::FileId;
use crate::journal::cycle::{CycleBuilder, FRAME_OVERHEAD, SMALL_RECORDS};
use crate::segment::Segment;

/// What a log put into a cycle.
#[derive(Debug)]
pub(crate) struct CycleShare {
    pub(crate) log: Arc<Log>,
    /// Version of the hard state that the cycle holds.
    pub(crate) hard: Option<u64>,
    /// The commit index that the cycle tells of.
    pub(crate) commit: u64,
    /// Files whose headers the cycle holds.
    pub(crate) new_files: Vec<Arc<Segment>>,
    /// Whether frames of the log, or an install, are in the cycle.
    pub(crate) frames: bool,
    /// Direct syncs to start.
    pub(crate) direct: Vec<(Arc<Segment>, u64)>,
    /// Bytes to write back ahead of the checkpoint, so that it finds little to do.
    pub(crate) write_back: Vec<WriteBack>,
    /// Something stayed behind for a later cycle.
    pub(crate) more: bool,
}

/// How much a cycle may still take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes for frames.
    pub(crate) frames: u64,
    /// Bytes for everything.
    pub(crate) total: u64,
    /// A file with this many new bytes is synced directly.
    pub(crate) direct_from: u64,
    /// The ring is short of space: sync directly what does not fit, rather than wait.
    pub(crate) short: bool,
}

impl Log {
    /// Moves what is pending into the cycle. `None` when not even the small records fit.
    pub(crate) fn share_of_cycle(
        self: &Arc<Self>,
        cycle: &mut CycleBuilder,
        room: Room,
    ) -> Option<CycleShare> {
        let mut state = self.state.lock();
        // As many new files as fit: what one follower catches up with may begin more than a cycle holds.
        let records = room.total.saturating_sub(cycle.len()) / SMALL_RECORDS;
        let files = records.saturating_sub(1).min(state.new_files.len() as u64) as usize;
        if records == 0 || files == 0 && !state.new_files.is_empty() {
            return None;
        }
        state.queued = false;
        let mut share = CycleShare {
            log: self.clone(),
            hard: None,
            commit: 0,
            new_files: Vec::new(),
            frames: false,
            direct: Vec::new(),
            write_back: Vec::new(),
            more: false,
        };
        if state.removed {
            return Some(share);
        }
        if state.unborn {
            cycle.create(&self.spec);
        }
        if let Some(install) = state.install.take() {
            // What was appended behind it waits behind it.
            cycle.install(self.spec.replica, install.file, install.last_file);
            state.marks.push_front(Mark {
                last_index: install.last_index,
                kind: MarkKind::Cycle,
                done: false,
            });
            share.frames = true;
            share.commit = install.last_index;
        }
        let later = state.new_files.split_off(files);
        share.new_files = std::mem::replace(&mut state.new_files, later);
        share.more = !state.new_files.is_empty();
        for file in &share.new_files {
            cycle.new_file(&crate::file_header::FileHeader {
                id: file.id,
                spec: self.spec,
                cut: file.first,
            });
        }
        if state.hard_durable < state.hard_version || state.unborn {
            cycle.hard_state(self.spec.replica, &state.hard);
            share.hard = Some(state.hard_version);
            share.commit = state.hard.commit;
            if self.shared.has_bug(Bug::VoteEarly) {
                state.hard_durable = state.hard_version;
            }
        }
        state.unborn = false;
        self.share_frames(&mut state, cycle, room, &mut share);
        // What stays behind keeps its place in the queue.
        state.queued = share.more;
        Some(share)
    }

    fn share_frames(
        self: &Arc<Self>,
        state: &mut State,
        cycle: &mut CycleBuilder,
        room: Room,
        share: &mut CycleShare,
    ) {
        while let Some(first) = state.pending.front() {
            let segment = first.segment.clone();
            // Its header comes with a later cycle, and so do its frames.
            if state.new_files.iter().any(|file| file.id == segment.id) {
                return;
            }
            let of_file = state
                .pending
                .iter()
                .take_while(|p| p.segment.id == segment.id);
            let (mut count, mut bytes, mut last_index, mut upto) = (0, 0, 0, 0);
            for frame in of_file {
                count += 1;
                bytes += frame.len + FRAME_OVERHEAD;
                last_index = frame.index;
                upto = frame.pos + frame.len;
            }
            let syncing = state
                .marks
                .iter()
                .any(|m| matches!(m.kind, MarkKind::Direct { file, synced: false, .. } if file == segment.id));
            if syncing {
                // Its end puts the log into the queue again.
                return;
            }
            let fits = cycle.len() + bytes <= room.frames;
            let mark = if bytes >= room.direct_from || (!fits && room.short) {
                share.direct.push((segment.clone(), upto));
                MarkKind::Direct {
                    file: segment.id,
                    upto,
                    synced: false,
                }
            } else if fits {
                for frame in state.pending.iter().take(count) {
                    cycle.frame(
                        frame.segment.id,
                        frame.pos,
                        &[&frame.head[..frame.head_len], &frame.body],
                        frame.len,
                    );
                }
                share.frames = true;
                if let Some((from, to)) =
                    segment.take_write_back(self.shared.options.write_back_bytes)
                {
                    let segment = segment.clone();
                    share.write_back.push(WriteBack { segment, from, to });
                }
                MarkKind::Cycle
            } else {
                share.more = true;
                return;
            };
            state.marks.push_back(Mark {
                last_index,
                kind: mark,
                done: false,
            });
            for frame in state.pending.drain(..count) {
                state.pending_bytes -= frame.len;
            }
        }
    }

    /// The cycle is synced. Returns the durable index if it moved, or if a hard state became durable.
    pub(crate) fn cycle_synced(self: &Arc<Self>, share: &CycleShare) -> Option<u64> {
        let mut state = self.state.lock();
        let voted = share.hard.filter(|&version| version > state.hard_durable);
        if let Some(version) = voted {
            state.hard_durable = version;
        }
        state.commit_durable = state.commit_durable.max(share.commit);
        for file in &share.new_files {
            file.set_announced();
        }
        if !share.new_files.is_empty() {
            self.release_seals(&mut state);
        }
        if share.frames {
            for mark in state.marks.iter_mut().filter(|m| m.kind == MarkKind::Cycle) {
                mark.done = true;
            }
        }
        let moved = Self::advance(&mut state);
        moved.or(voted.map(|_| state.durable))
    }

    /// A direct sync is done: the next may start, in the cycle that names this one.
    pub(crate) fn direct_synced(self: &Arc<Self>, synced_file: FileId, synced_to: u64) {
        let mut state = self.state.lock();
        for mark in state.marks.iter_mut() {
            if let MarkKind::Direct { file, upto, synced } = &mut mark.kind
                && *file == synced_file
                && *upto <= synced_to
            {
                *synced = true;
            }
        }
        if !state.pending.is_empty() {
            self.enqueue(&mut state);
        }
    }

    /// A synced cycle names a direct sync. Returns the durable index if it moved.
    pub(crate) fn direct_named(self: &Arc<Self>, synced: FileId, synced_to: u64) -> Option<u64> {
        let mut state = self.state.lock();
        for mark in state.marks.iter_mut() {
            if let MarkKind::Direct { file, upto, .. } = mark.kind
                && file == synced
                && upto <= synced_to
            {
                mark.done = true;
            }
        }
        Self::advance(&mut state)
    }

    fn advance(state: &mut State) -> Option<u64> {
        let before = state.durable;
        while let Some(mark) = state.marks.front().filter(|m| m.done) {
            state.durable = state.durable.max(mark.last_index);
            state.marks.pop_front();
        }
        (state.durable > before).then_some(state.durable)
    }
}
