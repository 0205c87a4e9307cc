//! The memory map of a file, and the hint that no wrapper offers: the one module of the workspace that holds `unsafe`.
//!
//! A map is shared and read-only. Stores into it are impossible; the bytes change only by writes to the file, which
//! [`MappedFile::bytes`] forbids its callers within a range they hold. Pages behind the end of the file may be
//! mapped, and must not be touched (SIGBUS).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::{MapAdvice, MappedFile, map_range};

/// A map of the first bytes of a file, whatever the file's length.
#[derive(Debug)]
pub(super) struct Mapping {
    raw: MmapRaw,
    /// Mapped bytes; `raw` says 1 for an empty map on some systems.
    len: usize,
}

impl Mapping {
    /// Maps `[0, len)` of the file for reading.
    pub(super) fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "map exceeds memory"))?;
        let raw = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Self { raw, len })
    }
}

/// Starts the write-back of `[from, to)` without waiting, and without the commit of the file system's journal that
/// a sync brings.
pub(super) fn start_write_back(file: &File, from: u64, to: u64) {
    let (Ok(from), Ok(len)) = (i64::try_from(from), i64::try_from(to.saturating_sub(from))) else {
        return;
    };
    // A length of 0 would mean: to the end.
    if len > 0 {
        // SAFETY: the call takes no pointers, and the descriptor is open as long as `file` is borrowed. A refusal
        // changes nothing. Without the WAIT flags it does not take the error of a write-back from the next sync.
        let _ = unsafe {
            libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE)
        };
    }
}

/// Owner behind a [`Bytes`]: the range and the reference that keeps its pages mapped.
struct MapSlice {
    map: Arc<Mapping>,
    from: usize,
    len: usize,
}

impl AsRef<[u8]> for MapSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `bytes` checked `from + len <= map.len`, so the range lies in one mapping, which lives as long as
        // `self.map` and so as long as the borrow of `self`. u8 has no alignment and no invalid value. The range is
        // within the file and not written while slices of it live: that is the documented duty of the callers of
        // `MappedFile::bytes`, and the log honours it by never giving a written position new content.
        unsafe { slice::from_raw_parts(self.map.raw.as_ptr().add(self.from), self.len) }
    }
}

impl MappedFile for Mapping {
    fn bytes(self: Arc<Self>, from: u64, len: usize) -> Bytes {
        let range = map_range(self.len as u64, from, len);
        if len == 0 {
            return Bytes::new();
        }
        Bytes::from_owner(MapSlice {
            map: self,
            from: range.start,
            len,
        })
    }

    fn len(&self) -> u64 {
        self.len as u64
    }

    fn advise(&self, from: u64, len: usize, advice: MapAdvice) {
        let from = usize::try_from(from).map_or(self.len, |from| from.min(self.len));
        let len = len.min(self.len - from);
        if len == 0 {
            return;
        }
        let advice = match advice {
            MapAdvice::Normal => Advice::Normal,
            MapAdvice::Random => Advice::Random,
            MapAdvice::Sequential => Advice::Sequential,
            MapAdvice::WillNeed => Advice::WillNeed,
        };
        // A hint: a kernel that refuses it serves the same bytes.
        let _ = self.raw.advise_range(advice, from, len);
    }
}
