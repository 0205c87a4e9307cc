//! Which directories have entries that are not durable yet.
//!
//! A file is reachable after a power loss only when its directory was synced after it was created. Directory syncs
//! go beside direct syncs and before each checkpoint table; a directory without a change since is skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    made: u64,
    synced: u64,
}

/// Counts changes of directories and syncs those that changed.
#[derive(Debug, Default)]
pub(crate) struct Dirs {
    changes: Mutex<BTreeMap<PathBuf, Changes>>,
}

impl Dirs {
    /// An entry of `dir` was created, removed or renamed.
    pub(crate) fn changed(&self, dir: &Path) {
        let mut changes = self.changes.lock();
        match changes.get_mut(dir) {
            Some(change) => change.made += 1,
            None => {
                changes.insert(dir.to_owned(), Changes { made: 1, synced: 0 });
            }
        }
    }

    /// Makes the entries of `dir` durable, and first its own name in `parent`.
    pub(crate) fn sync(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        if let Some(parent) = dir.parent() {
            self.sync_one(disk, parent)?;
        }
        self.sync_one(disk, dir)
    }

    fn sync_one(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let made = match self.changes.lock().get(dir) {
            Some(change) if change.made > change.synced => change.made,
            _ => return Ok(()),
        };
        disk.sync_dir(dir)
            .map_err(Error::io(format!("syncing directory {}", dir.display())))?;
        if let Some(change) = self.changes.lock().get_mut(dir) {
            change.synced = change.synced.max(made);
        }
        Ok(())
    }

    /// Syncs every directory that changed.
    pub(crate) fn sync_all(&self, disk: &dyn Disk) -> Result<()> {
        let due: Vec<PathBuf> = {
            let changes = self.changes.lock();
            let due = changes.iter().filter(|(_, c)| c.made > c.synced);
            due.map(|(dir, _)| dir.clone()).collect()
        };
        due.iter().try_for_each(|dir| self.sync_one(disk, dir))
    }

    /// Forgets a directory that was removed.
    pub(crate) fn forget(&self, dir: &Path) {
        self.changes.lock().remove(dir);
    }
}
