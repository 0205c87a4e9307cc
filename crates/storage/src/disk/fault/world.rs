//! The state behind a [`super::FaultDisk`]: the tree, the generator, planned faults, the fuse, and each call.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::super::{DirEntry, OpenMode, SECTOR};
use super::MAX_FILE_LEN;
use super::content::{Content, View, sector_of, sectors_for};
use super::rng::Rng;
use super::tree::{Directory, Ino, Node, Tree};

/// Size of a disk without a limit: large, and safe to add to.
const UNLIMITED: u64 = 1 << 50;
/// Most sectors that a hint writes back, less one.
const HINTED_SECTORS_MAX: u64 = 16;
/// Planned faults that have not happened yet.
const MAX_PLANNED: usize = 4096;

/// A fault that [`super::FaultDisk::inject`] plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A sync of a file fails with EIO and loses sectors that the cache goes on showing as clean; a sync of a
    /// directory fails with EIO and leaves its entries pending.
    SyncError,
    /// As [`Fault::SyncError`], but the error is `StorageFull`.
    SyncFull,
    /// A sync of a file reports success and loses sectors; a sync of a directory reports success and does nothing.
    SyncLies,
    /// A write fails with EIO after a random prefix of its sectors.
    WriteError,
    /// A write fails with `StorageFull` after a random prefix of its sectors.
    WriteFull,
    /// A read, through the cache or direct, fails with EIO.
    ReadError,
    /// A reservation fails with `StorageFull` and changes nothing.
    ReserveFull,
}

/// What a disk has met: operations, faults that struck, and what power losses took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "plain counters, named after what they count")]
pub struct DiskStats {
    /// What [`super::FaultDisk::crash_after`] counts.
    pub ops: u64,
    pub writes: u64,
    pub sectors_written: u64,
    pub reads: u64,
    pub device_reads: u64,
    pub syncs: u64,
    pub dir_syncs: u64,
    pub creates: u64,
    pub removes: u64,
    pub renames: u64,
    pub reserves: u64,
    pub set_lens: u64,
    pub failed_syncs: u64,
    pub lying_syncs: u64,
    /// Dirty sectors that failed or lying syncs marked clean.
    pub sectors_dropped: u64,
    pub write_errors: u64,
    pub read_errors: u64,
    /// Calls refused with `StorageFull`.
    pub no_space: u64,
    pub rotten: u64,
    /// Slices of maps over unreadable sectors: the real disk may kill the process there.
    pub mapped_bad_sectors: u64,
    pub crashes: u64,
    /// Crashes in the middle of a sync of a file or directory.
    pub crashes_in_sync: u64,
    pub kills: u64,
    pub power_losses: u64,
    /// Dirty sectors that power losses left old.
    pub sectors_lost: u64,
    /// Files whose length a power loss set back.
    pub lengths_lost: u64,
    /// Entries that power losses left old.
    pub entries_lost: u64,
}

/// The source of the error that calls on a crashed disk end in.
#[derive(Debug, thiserror::Error)]
#[error("crashed")]
struct Crashed;

/// Whether the error comes from a crashed disk or a handle of a dead process; its kind is `Other`.
#[must_use]
pub fn is_crashed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Crashed>())
}

pub(super) fn crashed_error() -> io::Error {
    io::Error::other(Crashed)
}

#[derive(Clone, Debug)]
struct Planned {
    fault: Fault,
    path_part: String,
    skip: u64,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) tree: Tree,
    rng: Rng,
    /// Operations until the crash.
    pub(super) fuse: Option<u64>,
    pub(super) crashed: bool,
    /// Counts processes: handles of an earlier one are dead.
    pub(super) epoch: u64,
    locks: BTreeMap<Ino, u64>,
    next_lock: u64,
    planned: Vec<Planned>,
    pub(super) capacity: Option<u64>,
    pub(super) stats: DiskStats,
}

/// Life of the machine and of the process.
impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            tree: Tree::new(),
            rng: Rng::new(seed),
            fuse: None,
            crashed: false,
            epoch: 0,
            locks: BTreeMap::new(),
            next_lock: 0,
            planned: Vec::new(),
            capacity: None,
            stats: DiskStats::default(),
        }
    }

    pub(super) fn fork(&self, seed: u64) -> Self {
        let mut fork = self.clone();
        fork.rng = Rng::new(seed);
        fork.end_process();
        fork
    }

    pub(super) fn kill(&mut self) {
        self.stats.kills += 1;
        self.end_process();
    }

    pub(super) fn power_loss(&mut self) {
        self.stats.power_losses += 1;
        self.end_process();
        let common = self.rng.bias();
        for file in self.tree.files_mut() {
            let bias = if self.rng.below(3) == 0 {
                [0, 5, 10][self.rng.below(3) as usize]
            } else {
                common
            };
            let lost = file.power_loss(bias, &mut self.rng);
            self.stats.sectors_lost += lost.sectors;
            self.stats.lengths_lost += lost.lengths;
        }
        self.stats.entries_lost += self.tree.power_loss(&mut self.rng);
    }

    pub(super) fn writeback(&mut self, sectors: u64) {
        for _ in 0..sectors {
            let dirty = |file: &&mut Content| file.dirty_sectors() > 0;
            let files = self.tree.files_mut().filter(dirty).count();
            let nth = self.rng.below(files as u64) as usize;
            let Some(file) = self.tree.files_mut().filter(dirty).nth(nth) else {
                return;
            };
            file.write_back_random(&mut self.rng);
        }
    }

    /// A few random sectors of one file, or none.
    pub(super) fn hint_write_back(&mut self, ino: Ino) -> io::Result<()> {
        for _ in 0..self.rng.below(HINTED_SECTORS_MAX) {
            let file = self.tree.file_mut(ino)?;
            if file.dirty_sectors() == 0 {
                break;
            }
            file.write_back_random(&mut self.rng);
        }
        Ok(())
    }

    pub(super) fn alive(&self) -> io::Result<()> {
        if self.crashed {
            return Err(crashed_error());
        }
        Ok(())
    }

    pub(super) fn plan(&mut self, fault: Fault, path_part: &str, skip: u64) {
        assert!(self.planned.len() < MAX_PLANNED, "too many planned faults");
        self.planned.push(Planned {
            fault,
            path_part: path_part.to_owned(),
            skip,
        });
    }

    pub(super) fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        let mut feed = |bytes: &[u8]| hasher.update(bytes);
        feed(&self.rng.state().to_le_bytes());
        feed(&self.stats.ops.to_le_bytes());
        feed(&self.epoch.to_le_bytes());
        self.tree.hash(&mut feed);
        hasher.digest()
    }

    fn end_process(&mut self) {
        self.epoch += 1;
        self.fuse = None;
        self.crashed = false;
        self.locks.clear();
        self.tree.close_all();
    }

    /// One operation begins, or the crash comes first.
    fn op(&mut self) -> io::Result<()> {
        self.alive()?;
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                self.crashed = true;
                self.stats.crashes += 1;
                return Err(crashed_error());
            }
            *left -= 1;
        }
        self.stats.ops += 1;
        Ok(())
    }

    /// The first of `faults` that is planned for this call. Each planned fault sees each matching call once.
    fn strikes(&mut self, faults: &[Fault], path: &Path) -> Option<Fault> {
        if self.planned.is_empty() {
            return None;
        }
        let path = path.to_string_lossy();
        let mut hit = None;
        for (i, planned) in self.planned.iter_mut().enumerate() {
            if !faults.contains(&planned.fault) || !path.contains(&planned.path_part) {
                continue;
            }
            if planned.skip > 0 {
                planned.skip -= 1;
            } else if hit.is_none() {
                hit = Some(i);
            }
        }
        hit.map(|i| self.planned.remove(i).fault)
    }
}

/// Names.
impl World {
    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<Ino> {
        self.alive()?;
        match self.tree.find(path) {
            Ok(_) if mode == OpenMode::CreateNew => Err(ErrorKind::AlreadyExists.into()),
            Ok(ino) => self.tree.file(ino).map(|_| ino),
            Err(e)
                if e.kind() == ErrorKind::NotFound
                    && matches!(mode, OpenMode::CreateNew | OpenMode::CreateOrOpen) =>
            {
                let key = self.tree.parent(path)?;
                self.op()?;
                self.stats.creates += 1;
                self.tree.create(key, Node::File(Box::new(Content::new())))
            }
            Err(e) => Err(e),
        }
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let ino = self.tree.find(path)?;
        self.tree.file(ino)?;
        let key = self.tree.parent(path)?;
        self.op()?;
        self.stats.removes += 1;
        self.tree.remove(&key)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let source = self.tree.find(from)?;
        let (from_key, to_key) = (self.tree.parent(from)?, self.tree.parent(to)?);
        let source_is_dir = self.tree.dir(source).is_ok();
        if source_is_dir && from_key != to_key && to.starts_with(from) {
            return Err(ErrorKind::InvalidInput.into());
        }
        match self.tree.find(to).and_then(|ino| self.tree.node(ino)) {
            Ok(Node::Dir(_)) if !source_is_dir => return Err(ErrorKind::IsADirectory.into()),
            Ok(Node::Dir(dir)) if !dir.cache.is_empty() && from_key != to_key => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            Ok(Node::File(_)) if source_is_dir => return Err(ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.op()?;
        self.stats.renames += 1;
        self.tree.rename(from_key, to_key)
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        self.alive()?;
        match self.tree.find(path).and_then(|ino| self.tree.node(ino)) {
            Ok(Node::Dir(_)) => Ok(()),
            Ok(Node::File(_)) => Err(ErrorKind::AlreadyExists.into()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let key = self.tree.parent(path)?;
                self.op()?;
                self.stats.creates += 1;
                let node = Node::Dir(Directory::default());
                self.tree.create(key, node).map(drop)
            }
            Err(e) => Err(e),
        }
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let ino = self.tree.find(path)?;
        if !self.tree.dir(ino)?.cache.is_empty() {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        let key = self.tree.parent(path)?;
        self.op()?;
        self.stats.removes += 1;
        self.tree.remove(&key)
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.alive()?;
        let dir = self.tree.dir(self.tree.find(path)?)?;
        let entries = dir.cache.iter().map(|(name, &ino)| {
            let file_len = self.tree.file(ino).map(|file| file.len());
            DirEntry {
                name: name.clone(),
                is_dir: file_len.is_err(),
                len: file_len.unwrap_or(0),
            }
        });
        Ok(entries.collect())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.alive()?;
        let ino = self.tree.find(path)?;
        self.tree.dir(ino)?;
        self.op()?;
        self.stats.dir_syncs += 1;
        match self.strikes(SYNC_FAULTS, path) {
            None => {}
            Some(Fault::SyncLies) => {
                self.stats.lying_syncs += 1;
                return Ok(());
            }
            Some(fault) => {
                self.stats.failed_syncs += 1;
                return Err(fault_error(fault));
            }
        }
        if let Err(crash) = self.op() {
            self.stats.crashes_in_sync += 1;
            self.tree.sync_dir_partly(ino, &mut self.rng);
            return Err(crash);
        }
        self.tree.sync_dir(ino)?;
        self.op()
    }

    /// Takes a lock that is free; returns its inode and the holder's number.
    pub(super) fn take_lock(&mut self, path: &Path) -> io::Result<(Ino, u64)> {
        self.alive()?;
        let ino = match self.tree.find(path) {
            Ok(ino) => ino,
            Err(_) => self.open(path, OpenMode::CreateOrOpen)?,
        };
        if self.locks.contains_key(&ino) {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.next_lock += 1;
        self.locks.insert(ino, self.next_lock);
        Ok((ino, self.next_lock))
    }

    pub(super) fn free_lock(&mut self, ino: Ino, id: u64) {
        if self.locks.get(&ino) == Some(&id) {
            self.locks.remove(&ino);
        }
    }
}

/// What a sync can meet.
const SYNC_FAULTS: &[Fault] = &[Fault::SyncError, Fault::SyncFull, Fault::SyncLies];

/// The error a struck call ends in.
fn fault_error(fault: Fault) -> io::Error {
    match fault {
        Fault::SyncFull | Fault::WriteFull | Fault::ReserveFull => Errno::NOSPC.into(),
        Fault::SyncError | Fault::SyncLies | Fault::WriteError | Fault::ReadError => {
            Errno::IO.into()
        }
    }
}

/// Content.
impl World {
    pub(super) fn total_bytes(&self) -> u64 {
        self.capacity.unwrap_or(UNLIMITED)
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let used = self.tree.used_sectors().saturating_mul(SECTOR as u64);
        self.total_bytes().saturating_sub(used)
    }

    pub(super) fn read(
        &mut self,
        ino: Ino,
        path: &Path,
        pos: u64,
        buf: &mut [u8],
        view: View,
    ) -> io::Result<usize> {
        match view {
            View::Cache => self.stats.reads += 1,
            View::Direct => self.stats.device_reads += 1,
        }
        let struck = self.strikes(&[Fault::ReadError], path).is_some();
        let file = self.tree.file(ino)?;
        if struck || file.meets_bad(pos, buf.len()) {
            self.stats.read_errors += 1;
            return Err(Errno::IO.into());
        }
        let len = file.len().saturating_sub(pos).min(buf.len() as u64) as usize;
        file.read(pos, &mut buf[..len], view);
        Ok(len)
    }

    pub(super) fn write(
        &mut self,
        ino: Ino,
        path: &Path,
        pos: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let end = checked_end(pos, bytes.len())?;
        self.stats.writes += 1;
        let fault = self.strikes(&[Fault::WriteError, Fault::WriteFull], path);
        let sectors = sectors_for(end) - sector_of(pos);
        let stop = fault.map_or(u64::MAX, |_| self.rng.below(sectors));
        // Looked up once: nothing else allocates while the lock is held.
        let mut free = self.capacity.map_or(u64::MAX, |_| self.free_bytes());
        let (mut done, mut written) = (0, 0);
        let outcome = loop {
            if done == bytes.len() {
                break Ok(());
            }
            if let (Some(fault), true) = (fault, written == stop) {
                break Err(fault_error(fault));
            }
            let at = pos + done as u64;
            let n = (SECTOR - (at % SECTOR as u64) as usize).min(bytes.len() - done);
            let needs = self.missing_bytes(ino, at, at + n as u64)?;
            if needs > free {
                break Err(Errno::NOSPC.into());
            }
            if let Err(crash) = self.op() {
                break Err(crash);
            }
            free -= needs;
            let file = self.tree.file_mut(ino)?;
            file.write_within(at, &bytes[done..done + n]);
            self.stats.sectors_written += 1;
            done += n;
            written += 1;
        };
        if done > 0 {
            self.tree.file_mut(ino)?.extend(pos + done as u64);
        }
        if let Err(error) = &outcome {
            self.count_refusal(error);
        }
        outcome
    }

    pub(super) fn sync_file(&mut self, ino: Ino, path: &Path) -> io::Result<()> {
        self.op()?;
        self.stats.syncs += 1;
        if let Some(fault) = self.strikes(SYNC_FAULTS, path) {
            let file = self.tree.file_mut(ino)?;
            self.stats.sectors_dropped += file.sync_losing(&mut self.rng);
            if fault == Fault::SyncLies {
                file.commit_length();
                self.stats.lying_syncs += 1;
                return Ok(());
            }
            self.stats.failed_syncs += 1;
            return Err(fault_error(fault));
        }
        if let Err(crash) = self.op() {
            self.stats.crashes_in_sync += 1;
            self.tree.file_mut(ino)?.sync_partly(&mut self.rng);
            return Err(crash);
        }
        self.tree.file_mut(ino)?.sync();
        self.op()
    }

    /// Refuses an extension that could not be filled, which is stricter than most file systems.
    pub(super) fn set_len(&mut self, ino: Ino, len: u64) -> io::Result<()> {
        checked_end(len, 0)?;
        let old = self.tree.file(ino)?.len();
        if self.missing_bytes(ino, old, len)? > self.free_bytes() {
            self.stats.no_space += 1;
            return Err(Errno::NOSPC.into());
        }
        self.op()?;
        self.stats.set_lens += 1;
        self.tree.file_mut(ino)?.set_len(len);
        Ok(())
    }

    pub(super) fn reserve(&mut self, ino: Ino, path: &Path, from: u64, to: u64) -> io::Result<()> {
        checked_end(to, 0)?;
        if from >= to {
            return Ok(());
        }
        let struck = self.strikes(&[Fault::ReserveFull], path).is_some();
        if struck || self.missing_bytes(ino, from, to)? > self.free_bytes() {
            self.stats.no_space += 1;
            return Err(Errno::NOSPC.into());
        }
        self.op()?;
        self.stats.reserves += 1;
        let file = self.tree.file_mut(ino)?;
        file.allocated.insert(sector_of(from), sectors_for(to));
        file.extend(to);
        Ok(())
    }

    /// Bytes of sectors of `[from, to)` that are not allocated yet.
    fn missing_bytes(&self, ino: Ino, from: u64, to: u64) -> io::Result<u64> {
        let allocated = &self.tree.file(ino)?.allocated;
        Ok(allocated.missing(sector_of(from), sectors_for(to)) * SECTOR as u64)
    }

    fn count_refusal(&mut self, error: &io::Error) {
        if error.kind() == ErrorKind::StorageFull {
            self.stats.no_space += 1;
        } else if !is_crashed(error) {
            self.stats.write_errors += 1;
        }
    }
}

/// The end of a range that a file can have.
fn checked_end(pos: u64, len: usize) -> io::Result<u64> {
    pos.checked_add(len as u64)
        .filter(|&end| end <= MAX_FILE_LEN)
        .ok_or_else(|| Errno::FBIG.into())
}
