//! Access to the disk: everything this crate stores goes through [`Disk`].
//!
//! Two implementations: [`RealDisk`] talks to the operating system, [`FaultDisk`] holds an in-memory, deterministic
//! disk that loses power, runs full, rots and fails to sync on request. Both pass one conformance suite, so what
//! is proven over the second holds for the first as far as the contracts below go.
//!
//! Invariants the callers may build on:
//! - *Nothing is durable before a sync.* Content and length of a file need [`DiskFile::sync`]; the entry that gives
//!   it a name (create, remove, rename) needs [`Disk::sync_dir`] of the directory that holds the entry.
//! - *A failed sync is final.* The page cache may go on showing bytes the device does not have; only
//!   [`DiskFile::read_device_at`] tells. Repeating the sync proves nothing.
//! - A 512-byte [`SECTOR`] is old or new after a power loss, never a mixture; several sectors are any mixture.
//! - No room is always [`io::ErrorKind::StorageFull`]; a read past the end of a file is short, not an error.
//!
//! Not here: buffering, checksums, retry, asynchronous calls, or paths in errors (the caller knows the path and
//! adds it). All calls block; run them where blocking is allowed.

pub mod fault;
mod mapping;
mod real;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt::{self, Debug};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use fault::FaultDisk;
pub use real::RealDisk;

/// The unit, in bytes, that a power loss leaves either old or new.
pub const SECTOR: usize = 512;

/// How [`Disk::open`] treats presence and absence of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// Read and write; the file must exist (`NotFound`).
    Existing,
    /// Read and write; the file must not exist (`AlreadyExists`) and is created empty.
    CreateNew,
    /// Read and write; created empty when missing.
    CreateOrOpen,
    /// Read only; the file must exist (`NotFound`). Every change through the handle is an error.
    ReadOnly,
}

/// One entry of a directory, see [`Disk::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name within the directory. Bytes that are no UTF-8 are replaced: such a file is foreign, it can be reported
    /// but not opened by this name.
    pub name: String,
    /// Whether the entry is a directory.
    pub is_dir: bool,
    /// Length in bytes of a file; 0 for a directory.
    pub len: u64,
}

/// An exclusive lock, held until dropped or until the process ends, however it ends.
pub struct DirLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DirLock {
    /// Wraps whatever holds the lock: dropping it must release it.
    fn new(held: impl Any + Send + Sync) -> Self {
        Self {
            _held: Box::new(held),
        }
    }
}

impl Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// A tree of directories and files.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens or creates the file. A created file's entry is durable only after [`Disk::sync_dir`] of its directory.
    /// A directory is refused with `IsADirectory`.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes the file's entry. Open handles and maps stay valid; the space is free when the last is dropped.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Renames within the file system, atomically, replacing a file of the target's name. Durable only after
    /// [`Disk::sync_dir`] of both directories; a power loss before leaves the old name or the new one. Between
    /// the syncs of two directories it may also leave both or neither: sync the target's first.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates one level of directory; `Ok` when the directory exists already.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory (`DirectoryNotEmpty` otherwise).
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The directory's entries, sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// Makes the directory's own entries durable; neither the contents of its files nor what lies deeper, nor the
    /// directory's own name in its parent.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of an existing directory, or of a lock file that is created when missing. Does not
    /// wait: `WouldBlock` while anybody, this process included, holds it.
    fn lock(&self, path: &Path) -> io::Result<DirLock>;

    /// Bytes that this process may still allocate on the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Size in bytes of the file system that holds `path`.
    fn total_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. Positions and lengths are in bytes; calls from several threads may overlap.
pub trait DiskFile: Send + Sync + Debug {
    /// Writes all of `bufs`, in order and without gaps, from `pos` on; extends the file when it ends behind its
    /// length. After an error any part of the range may be written.
    fn write_at(&self, pos: u64, bufs: &[&[u8]]) -> io::Result<()>;

    /// Reads through the page cache. Fills `buf` unless the file ends; returns the bytes read.
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads what the device holds, for any position and length, past pages that a failed sync left clean but
    /// unwritten. Bytes that are still dirty are written back first, so they read as new without being durable.
    /// Where the file system refuses direct reads this is [`DiskFile::read_at`], which is reported once per disk.
    fn read_device_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes durable what was written before the call, and the length needed to reach it. An error is final: see
    /// the module's invariants.
    fn sync(&self) -> io::Result<()>;

    /// A hint: starts to write `[from, to)` back to the device and does not wait for it. Proves nothing, reports
    /// nothing; an error of the write-back is the next sync's.
    fn start_write_back(&self, from: u64, to: u64);

    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends (with zeros, without reserving space) the file. Cutting below the range of a slice of a map
    /// that is in use breaks [`MappedFile::bytes`]'s contract.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves space for `[from, to)`: a later write there does not run out of space. Extends the length to `to`
    /// if it is shorter; bytes never written read as zeros and written ones keep their content. `StorageFull`
    /// leaves length and content as they were (of holes that `set_len` made some may stay filled). Must not run beside writes behind the current length.
    fn reserve(&self, from: u64, to: u64) -> io::Result<()>;

    /// Maps `len` bytes from the start, also beyond the end of the file, which may grow underneath.
    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedFile>>;
}

/// How a range of a map will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapAdvice {
    /// No particular order.
    Normal,
    /// Here and there: do not read ahead.
    Random,
    /// From front to back: read far ahead.
    Sequential,
    /// Soon: start reading now.
    WillNeed,
}

/// A read-only view of a file, which outlives the handle and the file's name.
pub trait MappedFile: Send + Sync + Debug {
    /// The bytes `[from, from + len)`; the slice keeps the map alive. [`RealDisk`] does not copy.
    ///
    /// The caller guarantees that the range lies within the file, has been written, is not written again while the
    /// slice lives, and was verified by [`DiskFile::read_at`] if another process wrote it: an unreadable sector
    /// kills the process here.
    ///
    /// # Panics
    /// If the range exceeds the map: the caller counts positions, they are never taken from stored bytes unchecked.
    fn bytes(self: Arc<Self>, from: u64, len: usize) -> Bytes;

    /// Length of the map in bytes, which may exceed the file's.
    fn len(&self) -> u64;

    /// Whether the map has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A hint; a range outside the map is cut, a refusal ignored.
    fn advise(&self, from: u64, len: usize, advice: MapAdvice);
}

/// The range `[from, from + len)` as indexes of a map of `map_len` bytes.
fn map_range(map_len: u64, from: u64, len: usize) -> std::ops::Range<usize> {
    let end = from.checked_add(len as u64);
    assert!(
        end.is_some_and(|end| end <= map_len),
        "slice of {len} bytes at {from} exceeds the map of {map_len} bytes"
    );
    // A map of `map_len` bytes exists in this address space, so positions within it fit.
    let from = from as usize;
    from..from + len
}
