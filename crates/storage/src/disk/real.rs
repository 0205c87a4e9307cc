//! The operating system's file system (Linux): `pwritev`, `fdatasync`, `fallocate`, `O_DIRECT`, `flock`, `mmap`.
//!
//! Errors are the system's own, so `raw_os_error` is there; paths are the caller's to add. Interrupted calls are
//! repeated, a failed sync never is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::mapping::{self, Mapping};
use super::{DirEntry, DirLock, Disk, DiskFile, MappedFile, OpenMode};

/// Buffers per `pwritev`: Linux's IOV_MAX.
const MAX_IOV: usize = 1024;
/// Alignment of direct reads in memory and file: a page, which every block size in use divides.
const DIRECT_ALIGN: usize = 4096;
/// Largest direct read at once, and so the bounce buffer's bound.
const DIRECT_CHUNK: usize = 1 << 20;
/// Files hold users' data: nothing for others.
const FILE_MODE: u32 = 0o640;
/// As [`FILE_MODE`], for directories.
const DIR_MODE: u32 = 0o750;

/// The operating system's disk. Clones share the note that direct reads were refused.
#[derive(Clone, Debug, Default)]
pub struct RealDisk {
    direct_refused: Arc<AtomicBool>,
}

impl RealDisk {
    /// A disk that reaches whatever paths the process can.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a file system refused direct reads so far: then [`DiskFile::read_device_at`] cannot see behind the
    /// page cache.
    #[must_use]
    pub fn direct_reads_refused(&self) -> bool {
        self.direct_refused.load(Ordering::Relaxed)
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        match mode {
            OpenMode::Existing => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
            OpenMode::CreateOrOpen => options.write(true).create(true),
            OpenMode::ReadOnly => &mut options,
        };
        let file = options.open(path)?;
        if mode == OpenMode::ReadOnly && file.metadata()?.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        Ok(Arc::new(RealFile {
            file,
            direct_refused: Arc::clone(&self.direct_refused),
        }))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(DIR_MODE).create(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && fs::metadata(path)?.is_dir() => {
                Ok(())
            }
            other => other,
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let meta = match fs::metadata(entry.path()) {
                Ok(meta) => meta,
                // Removed since the directory was read, or a link to nowhere.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir: meta.is_dir(),
                len: if meta.is_dir() { 0 } else { meta.len() },
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECTORY.bits() as i32)
            .open(path)?;
        dir.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<DirLock> {
        let created = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path);
        let file = match created {
            Err(e) if e.kind() == ErrorKind::IsADirectory => File::open(path)?,
            other => other?,
        };
        // flock belongs to the open file, not to the process: a second lock in this process conflicts too.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(DirLock::new(file))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

/// An open file. The descriptor of direct reads is opened per call: only recovery and scrubbing use it, and a
/// second descriptor per segment would halve the number of files the process can hold.
#[derive(Debug)]
struct RealFile {
    file: File,
    direct_refused: Arc<AtomicBool>,
}

impl RealFile {
    /// The same file (not the same path, which may have been renamed) opened past the page cache.
    fn open_direct(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    fn read_direct(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let direct = self.open_direct()?;
        let align = DIRECT_ALIGN as u64;
        let mut bounce = AlignedBuf::new(buf.len());
        let mut done = 0;
        while done < buf.len() {
            let at = pos
                .checked_add(done as u64)
                .ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
            let start = at - at % align;
            let skip = (at - start) as usize;
            let want = (skip + buf.len() - done).next_multiple_of(DIRECT_ALIGN);
            let bytes = bounce.first(want);
            let read = retry(|| direct.read_at(bytes, start))?;
            // At the end of the file the last block is short and is met a second time: then nothing is new.
            if read <= skip {
                break;
            }
            let n = (read - skip).min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&bytes[skip..skip + n]);
            done += n;
        }
        Ok(done)
    }

    /// The second best where direct reads are refused: drop the clean pages, then read through the cache.
    fn read_dropping_cache(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !self.direct_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the file system refuses direct reads (O_DIRECT): after a failed sync, recovery cannot tell what the device holds"
            );
        }
        // Advice only: mapped and dirty pages stay.
        let _ = rustix::fs::fadvise(
            &self.file,
            pos,
            std::num::NonZeroU64::new(buf.len() as u64),
            Advice::DontNeed,
        );
        self.read_at(pos, buf)
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, mut pos: u64, bufs: &[&[u8]]) -> io::Result<()> {
        if let [buf] = bufs {
            return self.file.write_all_at(buf, pos);
        }
        let mut slices: Vec<IoSlice<'_>> = bufs
            .iter()
            .filter(|buf| !buf.is_empty())
            .map(|buf| IoSlice::new(buf))
            .collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MAX_IOV)];
            let written = retry(|| Ok(rustix::io::pwritev(&self.file, batch, pos)?))?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            pos += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = pos
                .checked_add(done as u64)
                .ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
            match retry(|| self.file.read_at(&mut buf[done..], at))? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn read_device_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.read_direct(pos, buf) {
            Err(e) if refuses_direct(&e) => self.read_dropping_cache(pos, buf),
            other => other,
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_write_back(&self, from: u64, to: u64) {
        mapping::start_write_back(&self.file, from, to);
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let meta = self.file.metadata()?;
        let before = meta.len();
        // Asked first, because a reservation that fails half-way has meanwhile taken the room of everybody else, and
        // keeps it where it filled holes. This is the least that is needed: all behind the end, or what the blocks
        // of the whole file do not cover.
        let holes = (to - from).saturating_sub(meta.blocks().saturating_mul(512));
        let needed = to.saturating_sub(from.max(before)).max(holes);
        let stat = rustix::fs::fstatvfs(&self.file)?;
        if needed > stat.f_bavail.saturating_mul(stat.f_frsize) {
            return Err(Errno::NOSPC.into());
        }
        let reserved = retry(|| {
            let flags = FallocateFlags::empty();
            Ok(rustix::fs::fallocate(&self.file, flags, from, to - from)?)
        });
        if let Err(error) = reserved {
            // ext4 keeps, and shows as length, what it found before space ran out: give it back.
            if error.kind() == ErrorKind::StorageFull && self.len()? > before {
                self.set_len(before)?;
            }
            return Err(error);
        }
        Ok(())
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedFile>> {
        Ok(Arc::new(Mapping::new(&self.file, len)?))
    }
}

/// Memory for direct reads: a window of a vector that starts on the alignment.
struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuf {
    /// Room for a read of `len` bytes at any position, at most [`DIRECT_CHUNK`].
    fn new(len: usize) -> Self {
        let room = len
            .saturating_add(2 * DIRECT_ALIGN)
            .min(DIRECT_CHUNK + DIRECT_ALIGN);
        let bytes = vec![0; room.next_multiple_of(DIRECT_ALIGN) + DIRECT_ALIGN];
        let start = bytes.as_ptr().addr().next_multiple_of(DIRECT_ALIGN) - bytes.as_ptr().addr();
        Self { bytes, start }
    }

    /// The first `len` bytes, or all there are; a multiple of the alignment if `len` is.
    fn first(&mut self, len: usize) -> &mut [u8] {
        let room = (self.bytes.len() - self.start) / DIRECT_ALIGN * DIRECT_ALIGN;
        &mut self.bytes[self.start..self.start + len.min(room)]
    }
}

/// Whether a direct open or read failed because the file system has no direct reads.
fn refuses_direct(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
