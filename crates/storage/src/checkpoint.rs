//! Checkpoints: sync what the journal stands for, write the table of all replicas, free the lap, delete what no
//! table needs.
//!
//! The table holds the effect of every cycle before its start. A lap is freed when both tables cover it, and a file
//! is deleted when neither lists it, so that one rotten slot loses nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::bugs::Bug;
use crate::cycles::{self, Journal};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::segment::Segment;
use crate::shared::SyncKind;
use crate::store::Store;
use crate::table::{Table, TableReplica};

/// Which table was written last, and what it covers.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    pub(crate) generation: u64,
    /// The slot written last.
    pub(crate) slot: usize,
    pub(crate) slots: [Arc<dyn DiskFile>; 2],
    /// Where the table written last begins in the journal.
    pub(crate) covers: u64,
    pub(crate) running: bool,
    /// Checkpoints completed, for statistics.
    pub(crate) done: u64,
    /// Files of removed replicas, doomed with the next checkpoint.
    pub(crate) graveyard: Vec<Arc<Segment>>,
    /// Files that the newer table does without and the older one may list, deleted with the next checkpoint.
    pub(crate) doomed: Vec<Arc<Segment>>,
    /// Rows as written last, for the planted mistake that forgets idle replicas.
    pub(crate) last_rows: Vec<TableReplica>,
}

/// A checkpoint under way.
#[derive(Debug)]
pub struct Checkpoint {
    table: Table,
    covers_before: u64,
    unsynced: Vec<(Arc<Segment>, u64)>,
    deletable: Vec<Arc<Segment>>,
}

/// One file that is synced for a checkpoint.
#[derive(Debug)]
pub struct CheckpointSync {
    pub(crate) segment: Arc<Segment>,
    pub(crate) upto: u64,
}

impl Store {
    pub(crate) fn checkpoint_is_due(&self, journal: &Journal) -> bool {
        let journaled = journal.head - self.inner.checkpoints.lock().covers;
        journaled >= journal.ring.len() / 4
            || journal.direct_bytes >= self.shared().options.checkpoint_bytes
    }

    /// Captures all replicas. `None` while a checkpoint is under way or the directory is poisoned.
    pub fn begin_checkpoint(&self) -> Option<Checkpoint> {
        self.capture(false)
    }

    pub(crate) fn capture(&self, clean: bool) -> Option<Checkpoint> {
        let shared = self.shared();
        if shared.poisoned().is_some() {
            return None;
        }
        let (from, seq, journal_bytes) = {
            let mut journal = self.inner.journal.lock();
            let mut checkpoints = self.inner.checkpoints.lock();
            if checkpoints.running {
                return None;
            }
            checkpoints.running = true;
            journal.direct_bytes = 0;
            if shared.has_bug(Bug::FreeEarly) {
                journal.tail = journal.head;
            }
            (journal.head, journal.seq, journal.ring.len())
        };
        // The counter before the logs: a file that is allocated and not yet in its log keeps that log locked.
        let next_file = shared.next_file();
        let (mut unsynced, mut rows) = (Vec::new(), Vec::new());
        let mut deletable = std::mem::take(&mut self.inner.checkpoints.lock().graveyard);
        for log in self.logs() {
            let mut capture = log.capture();
            unsynced.append(&mut capture.unsynced);
            deletable.append(&mut capture.deletable);
            rows.push(capture.row);
        }
        let mut checkpoints = self.inner.checkpoints.lock();
        if shared.has_bug(Bug::ForgetIdle) {
            let before = std::mem::replace(&mut checkpoints.last_rows, rows.clone());
            rows.retain(|row| {
                !before
                    .iter()
                    .any(|b| b.spec == row.spec && b.tail == row.tail)
            });
        }
        if shared.has_bug(Bug::DeleteEarly) {
            let _ = self.delete(std::mem::take(&mut deletable));
        }
        Some(Checkpoint {
            table: Table {
                generation: checkpoints.generation + 1,
                directory: self.inner.directory,
                boot: self.inner.boot,
                journal_from: from,
                journal_seq: seq,
                journal_bytes,
                next_file,
                clean,
                replicas: rows,
            },
            covers_before: checkpoints.covers,
            unsynced,
            deletable,
        })
    }

    /// Syncs one file of a checkpoint. Blocking.
    ///
    /// # Errors
    /// Any error poisons the directory.
    pub fn run_checkpoint_sync(&self, sync: &CheckpointSync) -> Result<()> {
        let shared = self.shared();
        if sync.segment.synced_pos() < sync.upto {
            shared.fatal(cycles::sync_segment(
                shared,
                &sync.segment,
                SyncKind::Checkpoint,
            ))?;
            sync.segment.synced_to(sync.upto);
        }
        Ok(())
    }

    /// Writes the table, frees the lap before it, deletes what it does without. All syncs must have run. Blocking.
    ///
    /// # Errors
    /// [`Error::StorageFull`]: there is no space for the table, the one before stays; retry when space was freed. Any
    /// other error before the table is durable poisons the directory; a file that can't be deleted is only logged.
    pub fn finish_checkpoint(&self, checkpoint: Checkpoint) -> Result<()> {
        let shared = self.shared();
        debug_assert!(checkpoint.unsynced.is_empty());
        shared.fatal(shared.dirs.sync_all(&*shared.disk))?;
        // A sync that failed meanwhile may have taken bytes that this table counts.
        shared.check_poison()?;
        let slot = {
            let checkpoints = self.inner.checkpoints.lock();
            1 - checkpoints.slot
        };
        let file = self.inner.checkpoints.lock().slots[slot].clone();
        let bytes = checkpoint.table.encode();
        if let Err(full @ Error::StorageFull { .. }) = Table::reserve(&*file, bytes.len() as u64) {
            let mut checkpoints = self.inner.checkpoints.lock();
            checkpoints.running = false;
            checkpoints.graveyard.extend(checkpoint.deletable);
            return Err(full);
        }
        let began = Instant::now();
        shared.fatal(Table::put(&*file, &bytes))?;
        shared.report_sync(SyncKind::Table, began.elapsed());
        let (due, more) = {
            let mut journal = self.inner.journal.lock();
            let mut checkpoints = self.inner.checkpoints.lock();
            checkpoints.slot = slot;
            checkpoints.generation = checkpoint.table.generation;
            checkpoints.covers = checkpoint.table.journal_from;
            checkpoints.running = false;
            checkpoints.done += 1;
            journal.tail = journal.tail.max(checkpoint.covers_before);
            // Entries that only an old table and a lost file know would take producers' state with them.
            let due = std::mem::replace(&mut checkpoints.doomed, checkpoint.deletable);
            (due, !checkpoints.doomed.is_empty())
        };
        if more {
            shared.want_checkpoint();
        }
        shared.wake.notify_one();
        self.delete(due)
    }

    /// Deletes files that no table needs, and directories that became empty.
    pub(crate) fn delete(&self, segments: Vec<Arc<Segment>>) -> Result<()> {
        let shared = self.shared();
        let mut dirs = BTreeSet::new();
        for segment in segments {
            segment.set_deleted();
            match shared.disk.remove_file(&segment.path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %segment.path.display(), %error, "a dead segment could not be deleted");
                }
            }
            if let Some(dir) = segment.path.parent() {
                shared.dirs.changed(dir);
                dirs.insert(dir.to_owned());
            }
        }
        for dir in dirs {
            self.remove_if_empty(dir);
        }
        Ok(())
    }

    fn remove_if_empty(&self, dir: PathBuf) {
        let shared = self.shared();
        if !shared
            .disk
            .list(&dir)
            .is_ok_and(|entries| entries.is_empty())
        {
            return;
        }
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let logs = self.inner.logs.read();
        let in_use = logs
            .values()
            .any(|log| log.spec().topic.simple().to_string() == name);
        drop(logs);
        if !in_use && shared.disk.remove_dir(&dir).is_ok() {
            shared.dirs.forget(&dir);
            shared.dirs.changed(&shared.logs_dir());
        }
    }
}

impl Checkpoint {
    /// Takes the syncs that must run before the checkpoint is finished.
    pub fn take_syncs(&mut self) -> Vec<CheckpointSync> {
        let unsynced = std::mem::take(&mut self.unsynced);
        let syncs = unsynced.into_iter();
        syncs
            .map(|(segment, upto)| CheckpointSync { segment, upto })
            .collect()
    }
}

impl std::fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "checkpoint {} of {} replicas",
            self.table.generation,
            self.table.replicas.len()
        )
    }
}

/// Recovery's own error for a directory whose tables are both unreadable.
pub(crate) fn no_table(dir: &std::path::Path) -> Error {
    Error::corrupt(
        format!("{}", dir.display()),
        "neither checkpoint table is whole; nothing was changed. Restore the directory, or start this broker with an empty one so that it returns as a new replica",
    )
}
