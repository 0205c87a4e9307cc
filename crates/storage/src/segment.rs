//! One segment file: where it lies, how far it is written, synced and verified, and its index.
//!
//! Invariants: bytes below `end` are never written again; a slice is handed out only of a range that this process
//! wrote or verified; what is cut off is not overwritten (by a footer) while slices of it may live; the file's handle and map are opened when needed and given up under pressure, but never while
//! bytes of it are unsynced (an error of the write-back would be lost with the handle).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::disk::{DiskFile, MappedFile, OpenMode};
use crate::error::{Error, Result};
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::ids::FileId;
use crate::index::SparseIndex;
use crate::place::Place;
use crate::ranges::Ranges;
use crate::shared::Shared;

/// What is written back ahead of a sync are multiples of this, bytes: a page that still fills would go twice.
const PAGE: u64 = 4096;
/// First extent reserved for a new segment, in bytes.
const EXTENT_MIN: u64 = 16 << 10;
/// A map that became too short grows by this, bytes: each new map stays as long as slices of it live.
const MAP_STEP: u32 = 64 << 20;
/// Largest extent reserved at a time, in bytes.
const EXTENT_MAX: u64 = 32 << 20;

/// Offsets that can't be served, and where in the file they would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamagedRange {
    pub(crate) pos: (u64, u64),
    pub(crate) offsets: (i64, i64),
    pub(crate) what: String,
}

/// Open file and, once needed, its map.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) file: Arc<dyn DiskFile>,
    map: OnceLock<Arc<dyn MappedFile>>,
}

/// The maps there are. Only those of cuts matter: see [`Segment::is_cut_part_held`].
#[derive(Debug, Default)]
struct Maps {
    /// Made since the last cut.
    made: Vec<Weak<dyn MappedFile>>,
    /// Their slices may reach behind a cut.
    cut: Vec<Weak<dyn MappedFile>>,
}

/// A segment file of a live log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: FileId,
    /// The place that its first entry continues.
    pub(crate) first: Place,
    pub(crate) path: PathBuf,
    /// Length of the map, bytes; no frame lies beyond.
    map_len: AtomicU64,
    /// Behind the last frame.
    end: AtomicU64,
    /// Space is reserved up to here. Only the writer changes it.
    reserved: AtomicU64,
    /// A finished sync covers the bytes below.
    synced: AtomicU64,
    /// Write-back of the bytes below was asked for.
    written_back: AtomicU64,
    sealed: AtomicBool,
    /// A synced cycle or a table tells of the file: nothing is lost when the one before it is closed for good.
    announced: AtomicBool,
    /// The file is being deleted: work on it that is still under way has become pointless.
    deleted: AtomicBool,
    /// This process wrote everything from here to `end`.
    own_from: u64,
    verified: Mutex<Ranges>,
    damaged: Mutex<Vec<DamagedRange>>,
    index: Mutex<Option<Arc<SparseIndex>>>,
    handle: Mutex<Option<Arc<Handle>>>,
    maps: Mutex<Maps>,
    /// Held while the file is synced.
    syncing: Mutex<()>,
    used: AtomicBool,
    /// Counted in the registry of open handles.
    pub(crate) listed: AtomicBool,
}

impl Segment {
    /// A segment that recovery found; nothing of it is trusted yet.
    pub(crate) fn found(
        id: FileId,
        first: Place,
        path: PathBuf,
        end: u64,
        sealed: bool,
        map_len: u64,
    ) -> Segment {
        Segment {
            id,
            first,
            path,
            map_len: AtomicU64::new(map_len.max(end)),
            end: AtomicU64::new(end),
            reserved: AtomicU64::new(end),
            synced: AtomicU64::new(end),
            written_back: AtomicU64::new(0),
            sealed: AtomicBool::new(sealed),
            announced: AtomicBool::new(true),
            deleted: AtomicBool::new(false),
            own_from: end,
            verified: Mutex::default(),
            damaged: Mutex::default(),
            index: Mutex::new(None),
            handle: Mutex::new(None),
            maps: Mutex::default(),
            syncing: Mutex::new(()),
            used: AtomicBool::new(true),
            listed: AtomicBool::new(false),
        }
    }

    /// Creates the file, reserves its first extent and writes its header. Neither is durable yet.
    pub(crate) fn create(
        shared: &Shared,
        header: &FileHeader,
        path: PathBuf,
        map_len: u64,
    ) -> Result<Segment> {
        let what = || Error::io(format!("creating {}", path.display()));
        let dir = path.parent().map(PathBuf::from).unwrap_or_default();
        let file = match shared.disk.open(&path, OpenMode::CreateNew) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                shared.create_topic_dir(&dir)?;
                shared.disk.open(&path, OpenMode::CreateNew)
            }
            other => other,
        }
        .map_err(|e| full_or(e, EXTENT_MIN, what()))?;
        if let Err(e) = file.reserve(0, EXTENT_MIN) {
            // Leave no empty file behind for every refused append.
            let _ = shared.disk.remove_file(&path);
            return Err(full_or(e, EXTENT_MIN, what()));
        }
        if let Err(e) = file.write_at(0, &[&header.encode()]) {
            let _ = shared.disk.remove_file(&path);
            return Err(what()(e));
        }
        shared.dirs.changed(&dir);
        let segment = Segment {
            own_from: FIRST_FRAME,
            index: Mutex::new(Some(Arc::new(SparseIndex::new()))),
            reserved: AtomicU64::new(EXTENT_MIN),
            synced: AtomicU64::new(0),
            announced: AtomicBool::new(false),
            ..Segment::found(
                header.id,
                header.cut,
                path.clone(),
                FIRST_FRAME,
                false,
                map_len,
            )
        };
        *segment.handle.lock() = Some(Arc::new(Handle {
            file,
            map: OnceLock::new(),
        }));
        Ok(segment)
    }

    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Cuts the segment: what lies behind `end` is not part of the log.
    pub(crate) fn cut_at(&self, end: u64) {
        self.end.store(end, Ordering::Release);
        // New slices come of a new map, and end before the cut.
        let mut handle = self.handle.lock();
        if let Some(open) = handle.as_ref() {
            *handle = Some(Arc::new(Handle {
                file: open.file.clone(),
                map: OnceLock::new(),
            }));
        }
        drop(handle);
        let mut maps = self.maps.lock();
        let made = std::mem::take(&mut maps.made);
        maps.cut.extend(made);
        drop(maps);
        let mut index = self.index.lock();
        if let Some(index) = index.as_mut() {
            Arc::make_mut(index).truncate(end);
        }
    }

    /// Whether anybody may hold bytes that were cut off.
    pub(crate) fn is_cut_part_held(&self) -> bool {
        let mut maps = self.maps.lock();
        maps.cut.retain(|map| map.strong_count() > 0);
        !maps.cut.is_empty()
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn set_sealed(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    pub(crate) fn set_announced(&self) {
        self.announced.store(true, Ordering::Release);
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
        self.synced_to(u64::MAX);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.synced.load(Ordering::Acquire) < self.end() && !self.is_missing()
    }

    /// Whole pages that wait for a checkpoint, once there are `after` bytes of them: in one burst they would hold up
    /// the journal's own syncs. Each is given once.
    pub(crate) fn take_write_back(&self, after: u64) -> Option<(u64, u64)> {
        let to = self.end() / PAGE * PAGE;
        let asked = self.written_back.load(Ordering::Relaxed);
        let from = asked.max(self.synced_pos() / PAGE * PAGE);
        let due = to.checked_sub(from).is_some_and(|bytes| bytes >= after);
        due.then(|| {
            self.written_back.store(to, Ordering::Relaxed);
            (from, to)
        })
    }

    pub(crate) fn synced_pos(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Nothing of it is known to be synced: recovery wrote to it, or counted what it read.
    pub(crate) fn mark_unsynced(&self) {
        self.synced.store(0, Ordering::Release);
    }

    pub(crate) fn synced_to(&self, pos: u64) {
        self.synced.fetch_max(pos, Ordering::AcqRel);
    }

    /// The open file; opens it when it is not.
    pub(crate) fn handle(self: &Arc<Self>, shared: &Shared) -> Result<Arc<Handle>> {
        self.used.store(true, Ordering::Relaxed);
        let handle = {
            let mut slot = self.handle.lock();
            if slot.is_none() {
                let file = shared
                    .disk
                    .open(&self.path, OpenMode::Existing)
                    .map_err(Error::io(format!("opening {}", self.name())))?;
                *slot = Some(Arc::new(Handle {
                    file,
                    map: OnceLock::new(),
                }));
            }
            slot.clone()
        };
        if !self.listed.swap(true, Ordering::AcqRel) {
            shared.handles.register(self);
        }
        handle.ok_or_else(|| Error::Refused("the handle was given up".into()))
    }

    /// Syncs the file; a failure poisons the directory before another sync of it can begin. That one would find
    /// clean pages and succeed, although the bytes are lost.
    pub(crate) fn sync(self: &Arc<Self>, shared: &Shared) -> Result<()> {
        let handle = self.handle(shared)?;
        let _one_at_a_time = self.syncing.lock();
        shared.check_poison()?;
        let synced = handle.file.sync();
        shared.fatal(synced.map_err(Error::io(format!("syncing {}", self.name()))))
    }

    /// Gives up handle and map unless they were used since the last call or bytes are unsynced.
    pub(crate) fn release(&self) -> bool {
        if self.used.swap(false, Ordering::Relaxed) || self.is_dirty() {
            return false;
        }
        self.handle.lock().take();
        if self.sealed.load(Ordering::Acquire) {
            self.index.lock().take();
        }
        self.listed.store(false, Ordering::Release);
        true
    }

    pub(crate) fn is_mapped(&self) -> bool {
        self.handle
            .lock()
            .as_ref()
            .is_some_and(|h| h.map.get().is_some())
    }

    /// Bytes of a range this process wrote or verified.
    pub(crate) fn slice(self: &Arc<Self>, shared: &Shared, from: u64, len: usize) -> Result<Bytes> {
        let handle = self.handle(shared)?;
        let map = match handle.map.get() {
            Some(map) => map.clone(),
            None => {
                let map = handle
                    .file
                    .map(self.map_len.load(Ordering::Acquire))
                    .map_err(Error::io(format!("mapping {}", self.name())))?;
                let map = handle.map.get_or_init(|| map).clone();
                let mut maps = self.maps.lock();
                maps.made.retain(|map| map.strong_count() > 0);
                maps.made.push(Arc::downgrade(&map));
                map
            }
        };
        Ok(map.bytes(from, len))
    }

    /// At most `want` bytes from a position on, as far as they are trusted; none where they are not. The part behind
    /// a cut that comes in between is left out.
    pub(crate) fn window(self: &Arc<Self>, shared: &Shared, from: u64, want: u64) -> Result<Bytes> {
        loop {
            let until = self.trusted_until(from).min(from.saturating_add(want));
            let len = until.saturating_sub(from) as usize;
            if len == 0 {
                return Ok(Bytes::new());
            }
            let window = self.slice(shared, from, len)?;
            // Either the cut shows here, or the slice is of a map that the cut knows of.
            if self.end() >= until {
                return Ok(window);
            }
        }
    }

    /// Reserves space up to `to` for frames and `spare` bytes behind them. Extents grow with use.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        shared: &Shared,
        to: u64,
        spare: u64,
        limit: u64,
    ) -> Result<()> {
        let reserved = self.reserved.load(Ordering::Acquire);
        let need = (to + spare).next_multiple_of(4096);
        if need <= reserved {
            return Ok(());
        }
        let grown = (reserved * 2)
            .min(reserved + EXTENT_MAX)
            .min(limit.next_multiple_of(4096));
        let file = &self.handle(shared)?.file;
        let target = need.max(grown);
        let done = match file.reserve(reserved, target) {
            Ok(()) => target,
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull && target > need => {
                file.reserve(reserved, need).map_err(|e| {
                    full_or(
                        e,
                        need - reserved,
                        Error::io(format!("extending {}", self.name())),
                    )
                })?;
                need
            }
            Err(e) => {
                return Err(full_or(
                    e,
                    need - reserved,
                    Error::io(format!("extending {}", self.name())),
                ));
            }
        };
        self.reserved.store(done, Ordering::Release);
        Ok(())
    }

    /// Writes one frame at the end. The caller has reserved the space.
    pub(crate) fn append(
        self: &Arc<Self>,
        shared: &Shared,
        bufs: &[&[u8]],
        len: u64,
    ) -> Result<()> {
        let pos = self.end();
        let handle = self.handle(shared)?;
        handle
            .file
            .write_at(pos, bufs)
            .map_err(Error::io(format!("writing {}", self.name())))?;
        if pos + len > self.map_len.load(Ordering::Acquire) {
            // A frame larger than a segment: the next map is long enough. Slices of the old one stay valid.
            self.map_len.store(
                (pos + len).next_multiple_of(u64::from(MAP_STEP)),
                Ordering::Release,
            );
            *self.handle.lock() = Some(Arc::new(Handle {
                file: handle.file.clone(),
                map: OnceLock::new(),
            }));
        }
        self.end.store(pos + len, Ordering::Release);
        Ok(())
    }

    pub(crate) fn index_push(
        &self,
        index: u64,
        offset: i64,
        pos: u64,
        chain: u64,
        max_timestamp: i64,
    ) {
        if let Some(sparse) = self.index.lock().as_mut() {
            Arc::make_mut(sparse).push(index, offset, pos, chain, max_timestamp);
        }
    }

    pub(crate) fn index(&self) -> Option<Arc<SparseIndex>> {
        self.index.lock().clone()
    }

    /// Takes an index that was built up to `built_to`. False when the writer went on meanwhile: index the rest first.
    /// An index that the writer keeps is never replaced.
    pub(crate) fn install_index(&self, index: &SparseIndex, built_to: u64) -> bool {
        let mut slot = self.index.lock();
        if slot.is_some() && !self.is_sealed() {
            return true;
        }
        if !self.is_sealed() && self.end() != built_to {
            return false;
        }
        *slot = Some(Arc::new(index.clone()));
        true
    }

    /// How far from `pos` on the bytes may be served from the map.
    pub(crate) fn trusted_until(&self, pos: u64) -> u64 {
        let end = self.end();
        if pos >= self.own_from {
            return end;
        }
        let verified = self.verified.lock().end_at(pos);
        if verified >= self.own_from {
            end
        } else {
            verified.min(end)
        }
    }

    pub(crate) fn set_verified(&self, from: u64, to: u64) {
        self.verified.lock().add(from, to);
    }

    pub(crate) fn damage_at(&self, pos: u64) -> Option<DamagedRange> {
        let damaged = self.damaged.lock();
        damaged
            .iter()
            .find(|d| d.pos.0 <= pos && pos < d.pos.1)
            .cloned()
    }

    /// Whether the file as a whole is gone.
    pub(crate) fn is_missing(&self) -> bool {
        self.damage_at(0).is_some_and(|d| d.pos.1 == u64::MAX)
    }

    pub(crate) fn damage_of_offset(&self, offset: i64) -> Option<DamagedRange> {
        let damaged = self.damaged.lock();
        damaged
            .iter()
            .find(|d| d.offsets.0 <= offset && offset < d.offsets.1)
            .cloned()
    }

    pub(crate) fn add_damage(&self, range: DamagedRange) {
        let mut damaged = self.damaged.lock();
        if !damaged.iter().any(|d| d.pos == range.pos) {
            tracing::error!(file = %self.path.display(), from = range.offsets.0, to = range.offsets.1, what = %range.what,
                "damaged records are quarantined; the rest of the partition is served");
            damaged.push(range);
        }
    }

    pub(crate) fn damage(&self) -> Vec<DamagedRange> {
        self.damaged.lock().clone()
    }
}

/// `StorageFull` for a full disk, otherwise the I/O error.
pub(crate) fn full_or(
    error: std::io::Error,
    wanted: u64,
    other: impl FnOnce(std::io::Error) -> Error,
) -> Error {
    if error.kind() == std::io::ErrorKind::StorageFull {
        Error::StorageFull { wanted }
    } else {
        other(error)
    }
}
