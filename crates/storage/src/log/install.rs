//! A staged snapshot becomes the log: in memory at once, on disk by one journal record.
//!
//! From the call on the log is what the snapshot holds; the files it replaces are dead. The record goes with the next
//! cycle, before anything that is appended behind it, and the durable index follows when that cycle is synced: as with
//! an append, nothing may be promised before. Until then, and after a crash before it, what counts is what was
//! committed here before, which the snapshot holds too.
//!
//! A checkpoint in between lists the new files, and the record that comes later finds them there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Log, State};
use crate::bugs::Bug;
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::install::Install;
use crate::log::snapshot::Sealed;
use crate::membership::Memberships;
use crate::snapshot::EntryPlace;

/// A record that waits for a cycle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstallRecord {
    /// The file of the row.
    pub(crate) file: FileId,
    /// The last installed segment.
    pub(crate) last_file: FileId,
    /// The last entry.
    pub(crate) last_index: u64,
}

impl Log {
    /// Makes a finished snapshot the log. Commit index, and term if it is lower, rise to its last entry's; what an
    /// uncommitted tail held is gone, and so is damage. It is durable when [`Log::durability`] tells an index at or
    /// behind the snapshot's last. No I/O: it may be called where appends are.
    ///
    /// # Errors
    /// [`Error::Refused`]: it is not finished, is another log's, or what it holds is committed here already.
    /// [`Error::Poisoned`]. Nothing is changed then, and the staged files are dropped.
    pub fn install(self: &Arc<Self>, install: Install) -> Result<()> {
        self.shared.check_poison()?;
        if !Arc::ptr_eq(install.log(), self) {
            return Err(Error::Refused("the snapshot is another log's".into()));
        }
        let mut state = self.state.lock();
        if state.removed {
            return Err(Error::Refused("the replica was removed".into()));
        }
        if install.end().0 <= state.committed.index {
            return Err(Error::Refused(format!(
                "entry {} is committed, the snapshot ends at {}",
                state.committed.index,
                install.end().0
            )));
        }
        let Some((holder, live, files)) = install.into_live() else {
            return Err(Error::Refused("the snapshot is not finished".into()));
        };
        let (row, producers) = (live.row, live.producers);
        state.install = Some(InstallRecord {
            file: holder.id,
            last_file: row.tail.file,
            last_index: row.tail.index,
        });
        // Both histories have what was committed.
        state.durable = state.durable.min(state.committed.index);
        state.forget_tail();
        if state.hard.term < row.tail.term {
            state.hard.term = row.tail.term;
            state.hard.vote = 0;
            state.hard_version += 1;
        }
        state.hard.commit = row.tail.index;
        state.tail = row.tail;
        state.tail_closed = true;
        state.committed = row.committed;
        state.producers = producers.clone();
        state.producers_committed = producers;
        state.producers_encoded = Some(row.producers);
        state.terms = row.terms;
        state.sealed = Some(Sealed {
            last: row.tail,
            membership: row.membership.clone(),
        });
        state.memberships = Memberships::new(row.membership);
        state.unproven = None;
        state.broken = None;
        let size = files.iter().map(|f| f.end()).sum();
        // The replaced ones count until a checkpoint does without them.
        self.size_bytes.fetch_add(size, Ordering::Relaxed);
        let replaced = std::mem::replace(&mut *self.files.write(), files);
        state.dead.extend(replaced);
        state.dead.push(holder);
        self.hints.forget_behind(0);
        self.end_offset
            .store(row.tail.next_offset, Ordering::Release);
        self.high_watermark
            .fetch_max(row.tail.next_offset, Ordering::AcqRel);
        self.log_start.fetch_max(row.log_start, Ordering::AcqRel);
        self.enqueue(&mut state);
        drop(state);
        self.shared.want_checkpoint();
        Ok(())
    }

    /// Planted: the journal tells of a staged file as of any new one.
    pub(crate) fn announce_staged(self: &Arc<Self>, id: FileId, first: &EntryPlace) {
        if self.shared.has_bug(Bug::StagedLive) {
            let first = first.within(FileId::NONE, 0);
            let path = self.shared.segment_path(&self.spec, id);
            let segment = crate::segment::Segment::found(id, first, path, 0, false, 0);
            let mut state = self.state.lock();
            state.new_files.push(Arc::new(segment));
            self.enqueue(&mut state);
        }
    }
}

impl State {
    /// Nothing waits any more that concerns files of before.
    fn forget_tail(&mut self) {
        self.entries.clear();
        self.pending.clear();
        self.pending_bytes = 0;
        self.new_files.clear();
        self.marks.clear();
        self.complete.clear();
        self.active_since_ms = None;
    }
}
