//! A data directory: its logs, its journal, its checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::checkpoint::Checkpoints;
use crate::cycles::Journal;
use crate::disk::{DirLock, Disk};
use crate::error::{Error, Result};
use crate::ids::{ReplicaId, ReplicaSpec};
use crate::log::{Log, LogParts};
use crate::options::{LogConfig, StoreOptions};
use crate::recovery::{self, RecoveryReport};
use crate::shared::{Queue, Shared};

/// A data directory, open. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) logs: RwLock<BTreeMap<ReplicaId, Arc<Log>>>,
    pub(crate) journal: Mutex<Journal>,
    pub(crate) checkpoints: Mutex<Checkpoints>,
    pub(crate) directory: Uuid,
    pub(crate) boot: u64,
    /// Held as long as anything of the store lives.
    pub(crate) _lock: DirLock,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What waits holds logs, which hold the queue.
        *self.shared.queue.lock() = Queue::default();
    }
}

/// What [`Store::open`] gives back.
#[derive(Debug)]
pub struct Opened {
    /// The directory.
    pub store: Store,
    /// The logs found, by replica id.
    pub logs: Vec<Arc<Log>>,
    /// What recovery met.
    pub report: RecoveryReport,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes in segments.
    pub log_bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Segments mapped now.
    pub mapped_segments: usize,
    /// Bytes appended that no cycle took yet.
    pub pending_bytes: u64,
    /// Cycles written since the start.
    pub journal_cycles: u64,
    /// Bytes written to the journal since the directory was made; over the ring's length, its laps.
    pub journal_position: u64,
    /// Files synced beside the journal since the start.
    pub direct_syncs: u64,
    /// Checkpoints since the start.
    pub checkpoints: u64,
    /// Bytes free on the file system; `None` when it can't be asked.
    pub disk_free_bytes: Option<u64>,
    /// Size of the file system, bytes.
    pub disk_total_bytes: Option<u64>,
}

impl Store {
    /// Opens a data directory, makes one when it is empty or missing, and recovers what is in it. Blocking. Nothing
    /// runs yet: see [`Store::start`].
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::NewerFormat`], [`Error::Corrupt`] (the directory is left as it was), I/O errors.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: StoreOptions) -> Result<Opened> {
        create_all(&*disk, dir)?;
        let lock = disk.lock(dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked {
                dir: dir.to_owned(),
            },
            _ => Error::io(format!("locking {}", dir.display()))(e),
        })?;
        recovery::open(Arc::new(Shared::new(disk, dir.to_owned(), options)), lock)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// The directory's id, made with it; a copy of the directory has the same.
    pub fn directory_id(&self) -> Uuid {
        self.inner.directory
    }

    /// Counts the starts on this directory, from 1.
    pub fn boot(&self) -> u64 {
        self.inner.boot
    }

    /// Where it lies.
    pub fn dir(&self) -> PathBuf {
        self.shared().dir.clone()
    }

    /// All logs, by replica id.
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.inner.logs.read().values().cloned().collect()
    }

    /// One log.
    pub fn log(&self, replica: ReplicaId) -> Option<Arc<Log>> {
        self.inner.logs.read().get(&replica).cloned()
    }

    /// Makes a replica. It is durable with the next cycle, and costs no file until its first entry.
    ///
    /// # Errors
    /// [`Error::Refused`] for an id that exists, [`Error::Poisoned`].
    pub fn create_replica(&self, spec: ReplicaSpec, config: LogConfig) -> Result<Arc<Log>> {
        self.shared().check_poison()?;
        let log = Arc::new(Log::new(
            self.shared().clone(),
            spec,
            config,
            LogParts::empty(&spec),
        ));
        {
            let mut logs = self.inner.logs.write();
            if logs.contains_key(&spec.replica) {
                return Err(Error::Refused(format!("replica {} exists", spec.replica)));
            }
            logs.insert(spec.replica, log.clone());
        }
        log.with_state(|state, _| log.enqueue(state));
        Ok(log)
    }

    /// Takes a replica out of service; its files are deleted after the next checkpoint.
    ///
    /// # Errors
    /// [`Error::Refused`] for an unknown id.
    pub fn remove_replica(&self, replica: ReplicaId) -> Result<()> {
        let log = self.inner.logs.write().remove(&replica);
        let log = log.ok_or_else(|| Error::Refused(format!("there is no replica {replica}")))?;
        let files = log.retire();
        self.inner.checkpoints.lock().graveyard.extend(files);
        let mut queue = self.shared().queue.lock();
        queue.removed.push(replica);
        queue.checkpoint_wanted = true;
        drop(queue);
        self.shared().wake.notify_one();
        self.shared().wake_upkeep.notify_one();
        Ok(())
    }

    /// Why nothing is written any more, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.shared().poisoned().map(str::to_owned)
    }

    /// Figures of now. Walks all logs: for a scrape, not for a loop.
    pub fn stats(&self) -> StoreStats {
        let shared = self.shared();
        let (mut log_bytes, mut segments, mut pending_bytes) = (0, 0, 0);
        for log in self.logs() {
            log_bytes += log.size_bytes();
            segments += log.segments();
            pending_bytes += log.with_state(|state, _| state.pending_bytes);
        }
        let journal = self.inner.journal.lock();
        StoreStats {
            log_bytes,
            segments,
            mapped_segments: shared.handles.mapped(),
            pending_bytes,
            journal_cycles: journal.cycles,
            journal_position: journal.head,
            direct_syncs: journal.direct_syncs,
            checkpoints: self.inner.checkpoints.lock().done,
            disk_free_bytes: shared.disk.free_bytes(&shared.dir).ok(),
            disk_total_bytes: shared.disk.total_bytes(&shared.dir).ok(),
        }
    }
}

/// Creates a directory and those above it, durably.
fn create_all(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    let mut at = Some(dir);
    while let Some(path) = at.filter(|p| !p.as_os_str().is_empty()) {
        if disk.list(path).is_ok() {
            break;
        }
        missing.push(path);
        at = path.parent();
    }
    for path in missing.into_iter().rev() {
        disk.create_dir(path)
            .map_err(Error::io(format!("creating {}", path.display())))?;
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        disk.sync_dir(parent)
            .map_err(Error::io(format!("syncing {}", parent.display())))?;
    }
    Ok(())
}
