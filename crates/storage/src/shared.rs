//! What the store, its logs and its threads share: the disk, the queue of work, the poison.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::bugs::{self, Bug};
use crate::dirs::Dirs;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::handles::Handles;
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::log::Log;
use crate::log::seal::SealDue;
use crate::options::StoreOptions;

/// Told of what becomes durable. Called on storage threads: it must not block and must not call back into the log.
pub trait Listener: Send + Sync {
    /// Every entry of the replica up to the index is on stable storage. Also called, with the same index again, when
    /// a hard state became durable: see [`Log::durability`].
    fn durable(&self, updates: &[(ReplicaId, u64)]);
    /// Nothing will become durable any more until a restart.
    fn poisoned(&self, why: &str);
    /// A sync took this long.
    fn synced(&self, kind: SyncKind, took: Duration) {
        let _ = (kind, took);
    }
}

/// What was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncKind {
    /// A cycle of the journal.
    Journal,
    /// One segment, beside the journal.
    Direct,
    /// One segment, for a checkpoint.
    Checkpoint,
    /// The checkpoint table.
    Table,
}

/// Work that waits for the flusher. Its size is bounded by what callers may have unacknowledged.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Logs with something for the next cycle, in the order in which they got it.
    pub(crate) dirty: VecDeque<Arc<Log>>,
    /// Finished direct syncs that no cycle names yet.
    pub(crate) named: Vec<(Arc<Log>, FileId, u64)>,
    /// Replicas whose removal is not in the journal yet.
    pub(crate) removed: Vec<ReplicaId>,
    /// Segments whose last entry is committed.
    pub(crate) seals: VecDeque<SealDue>,
    /// Somebody asked for a checkpoint.
    pub(crate) checkpoint_wanted: bool,
    /// The threads must end.
    pub(crate) stop: bool,
}

/// Shared by the store, its logs and its threads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: StoreOptions,
    pub(crate) dirs: Dirs,
    pub(crate) handles: Handles,
    next_file: AtomicU64,
    pub(crate) queue: Mutex<Queue>,
    /// Wakes the flusher.
    pub(crate) wake: Condvar,
    /// Wakes whoever seals and checkpoints.
    pub(crate) wake_upkeep: Condvar,
    poison: OnceLock<String>,
    listener: OnceLock<Told>,
}

/// A listener inside a `Debug` structure.
struct Told(Arc<dyn Listener>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl Shared {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, options: StoreOptions) -> Shared {
        Shared {
            disk,
            dir,
            dirs: Dirs::default(),
            handles: Handles::new(options.open_files_max),
            options,
            next_file: AtomicU64::new(1),
            queue: Mutex::default(),
            wake: Condvar::new(),
            wake_upkeep: Condvar::new(),
            poison: OnceLock::new(),
            listener: OnceLock::new(),
        }
    }

    /// Where segments lie: a directory for each topic.
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A segment's path: `logs/TOPIC-ID/PARTITION-FILE.seg`.
    pub(crate) fn segment_path(&self, spec: &ReplicaSpec, file: FileId) -> PathBuf {
        self.logs_dir()
            .join(spec.topic.simple().to_string())
            .join(format!("{:05}-{:016x}.seg", spec.partition, file.0))
    }

    /// The path of the row that an install makes live, beside the segments.
    pub(crate) fn install_path(&self, spec: &ReplicaSpec, file: FileId) -> PathBuf {
        self.segment_path(spec, file).with_extension("ins")
    }

    pub(crate) fn create_topic_dir(&self, dir: &Path) -> Result<()> {
        self.disk.create_dir(dir).map_err(|e| {
            crate::segment::full_or(e, 4096, Error::io(format!("creating {}", dir.display())))
        })?;
        self.dirs.changed(&self.logs_dir());
        Ok(())
    }

    /// The next file's id. The caller holds its log's state until the file is part of it: a checkpoint that reads
    /// the counter and then the logs misses no file.
    pub(crate) fn allocate_file(&self) -> FileId {
        FileId(self.next_file.fetch_add(1, Ordering::AcqRel))
    }

    pub(crate) fn next_file(&self) -> u64 {
        self.next_file.load(Ordering::Acquire)
    }

    pub(crate) fn files_begin_at(&self, next: u64) {
        self.next_file.store(next, Ordering::Release);
    }

    pub(crate) fn poisoned(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    /// Refuses once something failed for good.
    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poisoned() {
            None => Ok(()),
            Some(why) => Err(Error::Poisoned {
                why: why.to_owned(),
            }),
        }
    }

    /// The directory is read-only from here on: a failed sync can't be repeated, the page cache may show bytes that
    /// the disk does not have.
    pub(crate) fn poison(&self, why: String) {
        if self.poison.set(why.clone()).is_ok() {
            tracing::error!(dir = %self.dir.display(), %why, "writing stops until a restart");
            if let Some(listener) = self.listener.get() {
                listener.0.poisoned(&why);
            }
        }
        self.wake.notify_all();
        self.wake_upkeep.notify_all();
    }

    /// Poisons on an error and hands it on.
    pub(crate) fn fatal<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.poison(error.to_string());
        }
        result
    }

    pub(crate) fn has_bug(&self, bug: Bug) -> bool {
        bugs::planted(&self.options, bug)
    }

    pub(crate) fn mark_dirty(&self, log: &Arc<Log>) {
        self.queue.lock().dirty.push_back(log.clone());
        self.wake.notify_one();
    }

    pub(crate) fn want_checkpoint(&self) {
        self.queue.lock().checkpoint_wanted = true;
        self.wake_upkeep.notify_one();
    }

    /// Sets who is told, once.
    pub(crate) fn listen(&self, listener: Arc<dyn Listener>) -> Result<()> {
        self.listener
            .set(Told(listener))
            .map_err(|_| Error::Refused("the store is running already".into()))
    }

    pub(crate) fn report_durable(&self, updates: &[(ReplicaId, u64)]) {
        if let Some(listener) = self.listener.get().filter(|_| !updates.is_empty()) {
            listener.0.durable(updates);
        }
    }

    pub(crate) fn report_sync(&self, kind: SyncKind, took: Duration) {
        if let Some(listener) = self.listener.get() {
            listener.0.synced(kind, took);
        }
    }
}
