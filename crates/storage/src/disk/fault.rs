//! An in-memory disk that crashes, loses power, runs full, rots and fails to sync, always the same for a seed.
//!
//! The model is that of the design's durability study: 512-byte sectors and directory entries have a cache and a
//! device state; a sync brings what is dirty to the device; a power loss leaves each unsynced sector and entry old
//! or new. *Kill* and *power loss* differ: after the first the cache survives, after the second it does not.
//!
//! Every call takes one lock and nothing looks at a clock, so one thread and one seed give one history; several
//! threads give a history each run. Simplifications: a reservation is as durable as the length; a call that the
//! crash stops has no effect, except a write (a prefix of its sectors) and a sync (a random subset); data of a
//! removed file is on the device until the removal is.

mod content;
mod ranges;
mod rng;
mod tree;
mod world;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use self::content::View;
use self::tree::Ino;
use self::world::World;
use super::{
    DirEntry, DirLock, Disk, DiskFile, MapAdvice, MappedFile, OpenMode, SECTOR, map_range,
};

pub use self::world::{DiskStats, Fault, is_crashed};

/// Sectors fit any 64-bit byte position up to this; a write or length behind it is refused as the kernel does.
const MAX_FILE_LEN: u64 = i64::MAX as u64;

/// The disk and its controls; clones are handles to the same disk.
#[derive(Clone, Debug)]
pub struct FaultDisk {
    world: Arc<Mutex<World>>,
}

impl FaultDisk {
    /// An empty disk: only the root directory exists. The seed decides every random choice.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(World::new(seed))),
        }
    }

    /// A copy of the disk in its present state, cache included, without handles and locks, that goes its own way
    /// with its own seed: to try many ends of one history, or to bring back an old state of the directory.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(self.world.lock().fork(seed))),
        }
    }

    /// Lets `ops` more operations pass (a sector written, begin, middle and end of a sync, a change of a directory,
    /// a length or a reservation); the next one and every call after it fail, see [`is_crashed`], until
    /// [`FaultDisk::kill`] or [`FaultDisk::power_loss`].
    pub fn crash_after(&self, ops: u64) {
        self.world.lock().fuse = Some(ops);
    }

    /// Whether the fuse of [`FaultDisk::crash_after`] has burned down.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.world.lock().crashed
    }

    /// The process dies and may start again: handles and maps are dead, locks free, the cache survives.
    pub fn kill(&self) {
        self.world.lock().kill();
    }

    /// Power fails and comes back: as [`FaultDisk::kill`], and each unsynced sector, length and entry is old or new.
    pub fn power_loss(&self) {
        self.world.lock().power_loss();
    }

    /// Background writeback of up to `sectors` random dirty sectors.
    pub fn writeback(&self, sectors: u64) {
        self.world.lock().writeback(sectors);
    }

    /// The kernel drops its clean pages: reads through the cache find what the device holds.
    pub fn evict_clean(&self) {
        let mut world = self.world.lock();
        world.tree.files_mut().for_each(|file| file.evict_clean());
    }

    /// Plans a fault for a call on a path that contains `path_part`, after `skip` such calls have passed unharmed.
    /// Happens once, and survives kill and power loss.
    ///
    /// # Panics
    /// If 4,096 faults are planned and have not happened.
    pub fn inject(&self, fault: Fault, path_part: &str, skip: u64) {
        self.world.lock().plan(fault, path_part, skip);
    }

    /// The next sync of such a path fails with EIO and marks its sectors clean: some are on the device, at least
    /// one is not, the cache shows all.
    pub fn fail_next_sync(&self, path_part: &str) {
        self.inject(Fault::SyncError, path_part, 0);
    }

    /// The next sync of such a path reports success and loses at least one sector, if any was dirty.
    pub fn lose_next_sync(&self, path_part: &str) {
        self.inject(Fault::SyncLies, path_part, 0);
    }

    /// Reads of the sector fail with EIO until [`FaultDisk::heal`].
    pub fn bad_sector(&self, path: &Path, sector: u64) -> io::Result<()> {
        self.change(path, |file| file.bad.insert(sector)).map(drop)
    }

    /// Makes every sector of the file readable again.
    pub fn heal(&self, path: &Path) -> io::Result<()> {
        self.change(path, |file| file.bad.clear())
    }

    /// Flips one to eight bytes of a sector, chosen by `seed`, on the device and in the cache; nothing behind the
    /// file's length.
    pub fn rot(&self, path: &Path, sector: u64, seed: u64) -> io::Result<()> {
        self.change(path, |file| file.rot(sector, seed))?;
        self.world.lock().stats.rotten += 1;
        Ok(())
    }

    /// Limits the disk's size; `None` takes the limit away. What is allocated beyond stays.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity = bytes;
    }

    /// Another process cuts or extends the file, durably.
    pub fn truncate_outside(&self, path: &Path, len: u64) -> io::Result<()> {
        self.change(path, |file| file.set_len_durably(len))
    }

    /// Another process overwrites bytes within the file, durably.
    pub fn overwrite_outside(&self, path: &Path, pos: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(path, |file| {
            let keep = file.len().saturating_sub(pos).min(bytes.len() as u64) as usize;
            file.overwrite_durably(pos, &bytes[..keep]);
        })
    }

    /// Another process removes the file, durably.
    pub fn delete_outside(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        let key = world.tree.parent(path)?;
        let ino = world.tree.find(path)?;
        world.tree.file(ino)?;
        world.tree.remove(&key)?;
        world.tree.sync_entry(&key)
    }

    /// Every file with its length as the process sees it, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let world = self.world.lock();
        let paths = world.tree.paths().into_iter();
        paths
            .map(|(path, ino)| {
                let len = world.tree.file(ino).map_or(0, |file| file.len());
                (path, len)
            })
            .collect()
    }

    /// The file's bytes as the page cache shows them, unreadable sectors included.
    pub fn raw(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.raw_view(path, View::Cache)
    }

    /// The file's bytes as a direct read would show them, unreadable sectors included.
    pub fn raw_device(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.raw_view(path, View::Direct)
    }

    /// What the disk has met so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.world.lock().stats.clone()
    }

    /// A hash of the whole state, the generator's included: equal histories give equal hashes.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.world.lock().hash()
    }

    /// Runs a control on a file; controls work on a crashed disk too.
    fn change<T>(
        &self,
        path: &Path,
        change: impl FnOnce(&mut content::Content) -> T,
    ) -> io::Result<T> {
        let mut world = self.world.lock();
        let ino = world.tree.find(path)?;
        Ok(change(world.tree.file_mut(ino)?))
    }

    fn raw_view(&self, path: &Path, view: View) -> io::Result<Vec<u8>> {
        let world = self.world.lock();
        let file = world.tree.file(world.tree.find(path)?)?;
        let mut bytes = vec![0; file.len() as usize];
        file.read(0, &mut bytes, view);
        Ok(bytes)
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world.lock();
        let ino = world.open(path, mode)?;
        world.tree.opened(ino);
        Ok(Arc::new(FaultFile {
            handle: Handle {
                disk: self.clone(),
                ino,
                epoch: world.epoch,
            },
            path: path.to_owned(),
            writable: mode != OpenMode::ReadOnly,
        }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.world.lock().remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world.lock().rename(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.world.lock().create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.world.lock().remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.world.lock().list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.world.lock().sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DirLock> {
        let mut world = self.world.lock();
        let (ino, id) = world.take_lock(path)?;
        Ok(DirLock::new(HeldLock {
            disk: self.clone(),
            ino,
            id,
        }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let world = self.world.lock();
        world.alive()?;
        world.tree.find(path)?;
        Ok(world.free_bytes())
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        let world = self.world.lock();
        world.alive()?;
        world.tree.find(path)?;
        Ok(world.total_bytes())
    }
}

/// A lock that frees itself.
#[derive(Debug)]
struct HeldLock {
    disk: FaultDisk,
    ino: Ino,
    id: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.disk.world.lock().free_lock(self.ino, self.id);
    }
}

/// A reference to an inode that keeps it alive, until the process dies.
#[derive(Debug)]
struct Handle {
    disk: FaultDisk,
    ino: Ino,
    epoch: u64,
}

impl Handle {
    /// Runs `call` if the process that opened the handle still lives.
    fn with<T>(&self, call: impl FnOnce(&mut World, Ino) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.world.lock();
        world.alive()?;
        if world.epoch != self.epoch {
            return Err(world::crashed_error());
        }
        call(&mut world, self.ino)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut world = self.disk.world.lock();
        if world.epoch == self.epoch {
            world.tree.closed(self.ino);
        }
    }
}

#[derive(Debug)]
struct FaultFile {
    handle: Handle,
    /// Where it was opened: what planned faults are matched with.
    path: PathBuf,
    writable: bool,
}

impl FaultFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(rustix::io::Errno::BADF.into())
        }
    }

    fn read(&self, pos: u64, buf: &mut [u8], view: View) -> io::Result<usize> {
        self.handle
            .with(|world, ino| world.read(ino, &self.path, pos, buf, view))
    }
}

impl DiskFile for FaultFile {
    fn write_at(&self, pos: u64, bufs: &[&[u8]]) -> io::Result<()> {
        self.check_writable()?;
        self.handle
            .with(|world, ino| world.write(ino, &self.path, pos, &bufs.concat()))
    }

    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(pos, buf, View::Cache)
    }

    fn read_device_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(pos, buf, View::Direct)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle
            .with(|world, ino| world.sync_file(ino, &self.path))
    }

    /// Some sectors are written back, or none; which, nobody may build on.
    fn start_write_back(&self, _from: u64, _to: u64) {
        let _ = self.handle.with(|world, ino| world.hint_write_back(ino));
    }

    fn len(&self) -> io::Result<u64> {
        self.handle
            .with(|world, ino| Ok(world.tree.file(ino)?.len()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.handle.with(|world, ino| world.set_len(ino, len))
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        self.check_writable()?;
        self.handle
            .with(|world, ino| world.reserve(ino, &self.path, from, to))
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedFile>> {
        self.handle.with(|world, ino| {
            usize::try_from(len).map_err(|_| ErrorKind::InvalidInput)?;
            world.tree.opened(ino);
            Ok(())
        })?;
        Ok(Arc::new(FaultMap {
            handle: Handle {
                disk: self.handle.disk.clone(),
                ino: self.handle.ino,
                epoch: self.handle.epoch,
            },
            len,
        }))
    }
}

/// A map copies from the cache as it is at the time of the call.
#[derive(Debug)]
struct FaultMap {
    handle: Handle,
    len: u64,
}

impl MappedFile for FaultMap {
    /// # Panics
    /// As every map does, and where the real one would end in SIGBUS: in a page wholly behind the end of the file.
    fn bytes(self: Arc<Self>, from: u64, len: usize) -> Bytes {
        let range = map_range(self.len, from, len);
        let mut bytes = vec![0; range.len()];
        let read = self.handle.with(|world, ino| {
            let file = world.tree.file(ino)?;
            world.stats.mapped_bad_sectors += u64::from(file.meets_bad(from, len));
            file.read(from, &mut bytes, View::Cache);
            Ok(file.len())
        });
        match read {
            Ok(file_len) => assert!(
                len == 0 || from + len as u64 <= file_len.next_multiple_of(PAGE),
                "slice of {len} bytes at {from} of a file of {file_len} bytes: SIGBUS"
            ),
            // The process is dead and cannot look; what still runs of it gets zeros.
            Err(_) => bytes.fill(0),
        }
        Bytes::from(bytes)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn advise(&self, _from: u64, _len: usize, _advice: MapAdvice) {}
}

/// The page that a map can be touched in when the file ends within it.
const PAGE: u64 = 8 * SECTOR as u64;
