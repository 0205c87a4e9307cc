//! The receiver's side of a snapshot: segments are staged beside the log, checked, synced, and made live at once.
//!
//! ```text
//! begin ─► write … write ─► (each segment: checked, footer and header of its own, synced) ─► finish: row, directory
//!                                                                                              └─► Log::install
//! ```
//!
//! Staged files are in no table and no journal record, so a start deletes them: staging begins anew after a restart
//! of the process. Within the process it goes on where it was, also with another sender: what is kept is told by
//! index, term and chain, never by a file's name.
//!
//! Invariants: nothing of a peer is believed but what the frames prove, and producers and members of the last footer,
//! which nothing here can prove and its checksum covers. Every byte that the row claims is synced before the row is,
//! and the row before the journal's record that makes it live.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::bugs::Bug;
use crate::disk::{DiskFile, OpenMode};
use crate::error::{Error, Result};
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::footer::Footer;
use crate::frame::{EntryKind, FrameHeader};
use crate::ids::FileId;
use crate::index::SparseIndex;
use crate::log::effects::Effects;
use crate::log::{Log, check_whole, max_timestamp};
use crate::membership::Membership;
use crate::place::Place;
use crate::producers::Producers;
use crate::ranges::Ranges;
use crate::scan::FrameScan;
use crate::segment::{Segment, full_or};
use crate::shared::Shared;
use crate::snapshot::{EntryPlace, SegmentManifest, SnapshotManifest};
use crate::table::{InstallRow, TableFile, TableReplica};
use crate::terms::TermRuns;

/// Staged bytes of a segment are synced in pieces of this size: in one burst they would hold up the journal's syncs.
const SYNC_EVERY: u64 = 4 << 20;

/// What a segment still lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its place in the manifest.
    pub segment: usize,
    /// Its first and last entry.
    pub indexes: (u64, u64),
    /// Positions to be read from the sender, in order; none when only the space for its footer was missing, which
    /// [`Install::finish`] tries again.
    pub ranges: Vec<Range<u64>>,
}

/// A snapshot on its way in. Dropped before it is installed, it leaves nothing.
#[derive(Debug)]
pub struct Install {
    log: Arc<Log>,
    manifest: SnapshotManifest,
    stages: Vec<Stage>,
    /// Index and chain of the log's committed place when it began: a snapshot that holds the entry agrees with it.
    committed: (u64, u64),
    /// What finishing made: the file of the row, and the row.
    finished: Option<(Arc<Segment>, InstallRow)>,
    installed: bool,
}

/// One segment on its way in.
#[derive(Debug, Default)]
struct Stage {
    /// Made with the first bytes.
    open: Option<Staged>,
    received: Ranges,
    /// Written since the last sync, bytes.
    unsynced: u64,
    checked: Option<Checked>,
}

#[derive(Debug)]
struct Staged {
    id: FileId,
    path: PathBuf,
    /// Given up once it is synced.
    file: Option<Arc<dyn DiskFile>>,
}

/// What the frames of a whole segment prove, and what its footer says.
#[derive(Debug)]
struct Checked {
    /// First index and term of each run.
    terms: Vec<(u64, u64)>,
    /// The last config entry in it.
    config: Option<Membership>,
    state: Option<(Producers, Membership)>,
}

impl Log {
    /// Begins to take in a snapshot that goes further than what is committed here. One at a time.
    ///
    /// # Errors
    /// [`Error::Refused`]: one is under way, or it is of no use here. [`Error::Corrupt`]: no replica writes such a
    /// manifest.
    pub fn begin_install(self: &Arc<Self>, manifest: SnapshotManifest) -> Result<Install> {
        let committed = self.check_useful(&manifest)?;
        if self.staging.swap(true, Ordering::AcqRel) {
            return Err(Error::Refused("a snapshot is on its way in already".into()));
        }
        let stages = manifest.segments.iter().map(|_| Stage::default());
        Ok(Install {
            stages: stages.collect(),
            log: self.clone(),
            manifest,
            committed,
            finished: None,
            installed: false,
        })
    }

    fn check_useful(&self, manifest: &SnapshotManifest) -> Result<(u64, u64)> {
        manifest.check()?;
        let spec = self.spec();
        if (manifest.topic, manifest.partition) != (spec.topic, spec.partition) {
            return Err(Error::Refused("it is of another partition".into()));
        }
        let committed = self.with_state(|state, _| state.committed);
        if manifest.last().index <= committed.index {
            return Err(Error::Refused(format!(
                "it ends at entry {}, committed is {}",
                manifest.last().index,
                committed.index
            )));
        }
        Ok((committed.index, committed.chain))
    }
}

impl Install {
    /// What is being taken in.
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// Goes on with another manifest, of the same sender or another one: segments that hold the same entries are
    /// kept as far as they came, others are dropped.
    ///
    /// # Errors
    /// As [`Log::begin_install`]; nothing is changed then.
    pub fn resume(&mut self, manifest: SnapshotManifest) -> Result<()> {
        self.committed = self.log.check_useful(&manifest)?;
        self.drop_row();
        let mut before: Vec<_> = self
            .manifest
            .segments
            .drain(..)
            .zip(self.stages.drain(..))
            .collect();
        for segment in &manifest.segments {
            let same = before
                .iter()
                .position(|(had, _)| had.has_frames_of(segment));
            let mut stage = Stage::default();
            if let Some(at) = same {
                let (had, kept) = before.swap_remove(at);
                stage = kept;
                if (had.footer_len, had.footer_crc) != (segment.footer_len, segment.footer_crc) {
                    stage.keep_frames(segment);
                }
            }
            self.stages.push(stage);
        }
        for (_, mut stage) in before {
            stage.discard(&self.log.shared);
        }
        self.manifest = manifest;
        self.keep_state_of_last();
        Ok(())
    }

    /// The last segment's footer is needed: one that was checked as an inner segment may lack what it says.
    fn keep_state_of_last(&mut self) {
        let shared = &self.log.shared;
        if let Some(stage) = self.stages.last_mut()
            && stage.checked.as_ref().is_some_and(|c| c.state.is_none())
        {
            stage.discard(shared);
        }
    }

    /// Segments that lack bytes, by index range; none when all are checked and synced.
    pub fn missing(&self) -> Vec<Missing> {
        let segments = self.manifest.segments.iter().zip(&self.stages).enumerate();
        let lacking = segments.filter(|(_, (_, stage))| stage.checked.is_none());
        lacking
            .map(|(segment, (manifest, stage))| Missing {
                segment,
                indexes: (manifest.first.index + 1, manifest.last.index),
                ranges: stage.received.gaps(FIRST_FRAME, manifest.end()),
            })
            .collect()
    }

    /// Bytes that are still to come.
    pub fn missing_bytes(&self) -> u64 {
        let ranges = self.missing().into_iter().flat_map(|m| m.ranges);
        ranges.map(|r| r.end - r.start).sum()
    }

    /// Takes bytes of a segment, in any order, also again. The bytes that make a segment whole also have it checked
    /// and synced, which takes as long as reading it. Blocking.
    ///
    /// # Errors
    /// [`Error::InvalidFrame`], [`Error::Diverged`], [`Error::Corrupt`]: the segment is not what it should be, and
    /// missing again as a whole. [`Error::Refused`] for bytes outside. [`Error::StorageFull`]: retry when space was
    /// freed. [`Error::Poisoned`], I/O errors.
    pub fn write(&mut self, segment: usize, pos: u64, bytes: &[u8]) -> Result<()> {
        self.log.shared.check_poison()?;
        let Some(&manifest) = self.manifest.segments.get(segment) else {
            return Err(Error::Refused(format!("there is no segment {segment}")));
        };
        let end = pos.checked_add(bytes.len() as u64);
        let Some(end) = end.filter(|&end| pos >= FIRST_FRAME && end <= manifest.end()) else {
            return Err(Error::Refused(format!("position {pos} is outside")));
        };
        if self.stages[segment].checked.is_some() {
            return Ok(());
        }
        let file = self.open(segment)?;
        file.write_at(pos, &[bytes])
            .map_err(|e| full_or(e, bytes.len() as u64, self.io(segment, "writing")))?;
        let stage = &mut self.stages[segment];
        stage.received.add(pos, end);
        stage.unsynced += bytes.len() as u64;
        if stage.unsynced >= SYNC_EVERY {
            stage.unsynced = 0;
            self.sync(segment, &*file)?;
        }
        let stage = &self.stages[segment];
        if stage.received.end_at(FIRST_FRAME) < manifest.end() {
            return Ok(());
        }
        self.complete(segment)
    }

    /// The staged file, made and with its space reserved.
    fn open(&mut self, segment: usize) -> Result<Arc<dyn DiskFile>> {
        let stage = &self.stages[segment];
        if let Some(file) = stage.open.as_ref().and_then(|open| open.file.clone()) {
            return Ok(file);
        }
        let end = self.manifest.segments[segment].end();
        let shared = &self.log.shared;
        let id = shared.allocate_file();
        let path = shared.segment_path(self.log.spec(), id);
        let file = create(shared, &path)?;
        let reserved = file.reserve(0, end);
        self.stages[segment].open = Some(Staged {
            id,
            path,
            file: Some(file.clone()),
        });
        if let Err(e) = reserved {
            let error = full_or(e, end, self.io(segment, "extending"));
            self.discard(segment);
            return Err(error);
        }
        if self.log.shared.has_bug(Bug::StagedLive) {
            self.log
                .announce_staged(id, &self.manifest.segments[segment].first);
        }
        Ok(file)
    }

    fn io(&self, segment: usize, what: &str) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = self.stages[segment].open.as_ref().map(|open| &open.path);
        let name = path.map(|p| p.display().to_string()).unwrap_or_default();
        Error::io(format!("{what} {name}"))
    }

    fn sync(&self, segment: usize, file: &dyn DiskFile) -> Result<()> {
        let shared = &self.log.shared;
        if shared.has_bug(Bug::InstallUnsynced) {
            return Ok(());
        }
        shared.check_poison()?;
        let synced = file.sync().map_err(self.io(segment, "syncing"));
        shared.fatal(synced)
    }

    fn discard(&mut self, segment: usize) {
        self.stages[segment].discard(&self.log.shared);
    }

    #[cfg(test)]
    pub(crate) fn discard_for_test(&mut self, segment: usize) {
        self.discard(segment);
    }

    /// All bytes of a segment are there: checks them, makes footer and header its own, syncs the file.
    fn complete(&mut self, segment: usize) -> Result<()> {
        match self.check(segment) {
            Ok(checked) => {
                self.stages[segment].checked = Some(checked);
                Ok(())
            }
            Err(error) => {
                let retry = matches!(error, Error::StorageFull { .. });
                if !retry {
                    self.discard(segment);
                }
                Err(error)
            }
        }
    }

    fn check(&mut self, segment: usize) -> Result<Checked> {
        let is_last = segment + 1 == self.manifest.segments.len();
        let manifest = self.manifest.segments[segment];
        let file = self.open(segment)?;
        let Some((id, name)) = self.stages[segment]
            .open
            .as_ref()
            .map(|open| (open.id, open.path.display().to_string()))
        else {
            return Err(Error::Refused("the segment was dropped".into()));
        };
        let mut walk = Walk::new(&manifest, self.committed);
        walk.run(&*file, &name)?;
        // Space may be reserved beyond.
        file.set_len(manifest.end())
            .map_err(self.io(segment, "cutting"))?;
        let theirs = match manifest.footer_len {
            0 => None,
            _ => Footer::read(&*file, &name)?,
        };
        let state = theirs.filter(|f| {
            let places = (EntryPlace::of(&f.first), EntryPlace::of(&f.last));
            places == (manifest.first, manifest.last) && f.membership.index > 0
        });
        let state = state.map(|f| (f.producers, f.membership));
        if is_last {
            self.check_state(state.as_ref(), &name)?;
        }
        let footer = Footer {
            first: installed_first(&manifest),
            last: manifest.last.within(id, manifest.frames_end),
            producers: state
                .as_ref()
                .map_or_else(Producers::default, |s| s.0.clone()),
            index: walk.index,
            membership: state
                .as_ref()
                .map_or_else(Membership::default, |s| s.1.clone()),
        };
        let bytes = footer.encode();
        let header = FileHeader {
            id,
            spec: *self.log.spec(),
            cut: footer.first,
        };
        file.write_at(manifest.frames_end, &[&bytes])
            .and_then(|()| file.set_len(manifest.frames_end + bytes.len() as u64))
            .and_then(|()| file.write_at(0, &[&header.encode()]))
            .map_err(|e| full_or(e, bytes.len() as u64, self.io(segment, "sealing")))?;
        self.sync(segment, &*file)?;
        if let Some(open) = &mut self.stages[segment].open {
            open.file = None;
        }
        Ok(Checked {
            terms: walk.terms,
            config: walk.config,
            state,
        })
    }

    /// Whether the last footer says what the manifest does.
    fn check_state(&self, state: Option<&(Producers, Membership)>, name: &str) -> Result<()> {
        let manifest = &self.manifest;
        let agrees = state.is_some_and(|(_, members)| {
            (members.index, &members.payload) == (manifest.membership_index, &manifest.membership)
        });
        match agrees {
            true => Ok(()),
            false => Err(Error::corrupt(name, "its footer is not the manifest's")),
        }
    }

    /// Checks the whole and makes it ready to be installed: files, directory and the row are durable then. Blocking.
    ///
    /// # Errors
    /// [`Error::Refused`]: bytes are missing. [`Error::Corrupt`]: the membership is not that of the entries.
    /// [`Error::StorageFull`], [`Error::Poisoned`], I/O errors.
    pub fn finish(&mut self) -> Result<()> {
        if self.finished.is_some() {
            return Ok(());
        }
        for segment in 0..self.stages.len() {
            let stage = &self.stages[segment];
            let end = self.manifest.segments[segment].end();
            if stage.checked.is_none() && stage.received.end_at(FIRST_FRAME) >= end {
                // There was no space for its footer.
                self.complete(segment)?;
            }
        }
        if let Some(missing) = self.missing().first() {
            return Err(Error::Refused(format!(
                "segment {} of the snapshot is not complete",
                missing.segment
            )));
        }
        let row = self.row()?;
        let shared = self.log.shared.clone();
        shared.check_poison()?;
        let id = shared.allocate_file();
        let path = shared.install_path(self.log.spec(), id);
        let file = create(&shared, &path)?;
        if let Err(error) = write_row(&shared, &*file, &row, id) {
            let _ = shared.disk.remove_file(&path);
            return Err(error);
        }
        if let Some(dir) = path.parent() {
            shared.fatal(shared.dirs.sync(&*shared.disk, dir))?;
        }
        let holder = Segment::found(id, Place::default(), path, 0, false, 0);
        self.finished = Some((Arc::new(holder), row));
        Ok(())
    }

    /// The log as it will be.
    fn row(&self) -> Result<InstallRow> {
        let manifest = &self.manifest;
        let mut files = Vec::with_capacity(self.stages.len());
        let first = manifest.first();
        let mut terms = TermRuns::at(first.index, first.term);
        let mut config = None;
        let mut state = None;
        for (segment, stage) in manifest.segments.iter().zip(&self.stages) {
            let (Some(open), Some(checked)) = (&stage.open, &stage.checked) else {
                return Err(Error::Refused("a segment is not complete".into()));
            };
            files.push(TableFile {
                id: open.id,
                first: installed_first(segment),
                end: segment.frames_end,
                sealed: true,
            });
            for &(index, term) in &checked.terms {
                terms.push(index, term, manifest.last().index);
            }
            config = checked.config.as_ref().or(config);
            state = checked.state.as_ref();
        }
        let (Some((producers, membership)), Some(last)) = (state, files.last()) else {
            return Err(Error::Refused("the last footer is missing".into()));
        };
        let proven = match config {
            Some(config) => config == membership,
            None => membership.index <= first.index,
        };
        let told = (manifest.membership_index, &manifest.membership);
        if !proven || (membership.index, &membership.payload) != told {
            return Err(Error::corrupt(
                "the snapshot",
                "its membership is not that of its entries",
            ));
        }
        let tail = manifest.last().within(last.id, last.end);
        let mut encoded = Vec::new();
        producers.encode(&mut encoded);
        let row = TableReplica {
            spec: *self.log.spec(),
            hard: crate::options::HardState {
                term: tail.term,
                vote: 0,
                commit: tail.index,
            },
            log_start: manifest.log_start,
            // Bytes of a footer lie behind the last frame.
            tail_closed: true,
            broken: false,
            unproven: false,
            tail,
            committed: tail,
            files,
            producers: Arc::new(encoded),
            membership: membership.clone(),
            terms,
        };
        Ok(InstallRow {
            row,
            producers: producers.clone(),
        })
    }

    /// Its last entry: index and term, and the membership as of it. As of a finished one this is proven.
    pub fn end(&self) -> (u64, u64, Bytes) {
        let last = self.manifest.last();
        (last.index, last.term, self.manifest.membership.clone())
    }

    /// The log it is for.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What was finished, to be made live: the files stay from here on.
    pub(crate) fn into_live(mut self) -> Option<(Arc<Segment>, InstallRow, Vec<Arc<Segment>>)> {
        let (holder, row) = self.finished.take()?;
        let map_len = self.log.config().segment_bytes;
        let mut files = Vec::with_capacity(row.row.files.len());
        for (file, stage) in row.row.files.iter().zip(&self.stages) {
            let path = stage.open.as_ref().map(|open| open.path.clone())?;
            let segment = Segment::found(file.id, file.first, path, file.end, true, map_len);
            segment.set_verified(FIRST_FRAME, file.end);
            files.push(Arc::new(segment));
        }
        self.installed = true;
        Some((holder, row, files))
    }

    fn drop_row(&mut self) {
        if let Some((holder, _)) = self.finished.take() {
            remove(&self.log.shared, &holder.path);
        }
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if !self.installed {
            self.drop_row();
            for stage in &mut self.stages {
                stage.discard(&self.log.shared);
            }
        }
        self.log.staging.store(false, Ordering::Release);
    }
}

impl Stage {
    /// Its bytes are of no use: they come again, into another file.
    fn discard(&mut self, shared: &Shared) {
        if let Some(open) = self.open.take() {
            remove(shared, &open.path);
        }
        *self = Stage::default();
    }

    /// The same frames with another footer behind them. A checked one has a footer of its own already.
    fn keep_frames(&mut self, segment: &SegmentManifest) {
        if self.checked.is_none() {
            self.received.cut(segment.frames_end);
        }
    }
}

/// What an installed file's first frame continues lies in no file of this directory. Its header says so: were it
/// taken for a new file's, it would join nothing.
fn installed_first(segment: &SegmentManifest) -> Place {
    segment.first.within(FileId::ELSEWHERE, 0)
}

fn create(shared: &Shared, path: &std::path::Path) -> Result<Arc<dyn DiskFile>> {
    let what = || Error::io(format!("creating {}", path.display()));
    let dir = path.parent().map(PathBuf::from).unwrap_or_default();
    let file = match shared.disk.open(path, OpenMode::CreateNew) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            shared.create_topic_dir(&dir)?;
            shared.disk.open(path, OpenMode::CreateNew)
        }
        other => other,
    }
    .map_err(|e| full_or(e, 4096, what()))?;
    shared.dirs.changed(&dir);
    Ok(file)
}

/// A staged file that stays behind is deleted by the next start.
fn remove(shared: &Shared, path: &std::path::Path) {
    let _ = shared.disk.remove_file(path);
    if let Some(dir) = path.parent() {
        shared.dirs.changed(dir);
    }
}

fn write_row(shared: &Shared, file: &dyn DiskFile, row: &InstallRow, id: FileId) -> Result<()> {
    let bytes = row.row.encode_install(id);
    let what = || Error::io("writing an install's row");
    let len = bytes.len() as u64;
    file.reserve(0, len)
        .and_then(|()| file.write_at(0, &[&bytes]))
        .and_then(|()| file.set_len(len))
        .map_err(|e| full_or(e, len, what()))?;
    shared.fatal(file.sync().map_err(what()))
}

/// The walk over a whole segment's frames.
struct Walk<'a> {
    manifest: &'a SegmentManifest,
    committed: (u64, u64),
    place: EntryPlace,
    pos: u64,
    index: SparseIndex,
    terms: Vec<(u64, u64)>,
    config: Option<Membership>,
}

impl<'a> Walk<'a> {
    fn new(manifest: &'a SegmentManifest, committed: (u64, u64)) -> Self {
        Walk {
            manifest,
            committed,
            place: manifest.first,
            pos: FIRST_FRAME,
            index: SparseIndex::new(),
            terms: Vec::new(),
            config: None,
        }
    }

    fn run(&mut self, file: &dyn DiskFile, name: &str) -> Result<()> {
        let end = self.manifest.frames_end;
        let mut scan = FrameScan::new(file, name.to_owned(), end, false);
        while self.pos < end {
            let invalid = |fault| Error::InvalidFrame {
                index: self.place.index + 1,
                fault,
            };
            let (header, payload) = scan.frame(self.pos)?.map_err(invalid)?;
            check_whole(&header, payload).map_err(invalid)?;
            self.follow(&header)?;
            self.accept(&header, payload);
        }
        match self.place == self.manifest.last {
            true => Ok(()),
            false => Err(Error::corrupt(name, "it does not end as the manifest says")),
        }
    }

    fn follow(&self, header: &FrameHeader) -> Result<()> {
        let before = &self.place;
        let follows = header
            .check_follows(before.index, before.next_offset, before.chain)
            .is_ok();
        let (index, chain) = self.committed;
        let agrees = header.index != index || header.chain == chain;
        if follows
            && agrees
            && header.append_time_ms >= before.time_ms
            && header.term >= before.term
        {
            return Ok(());
        }
        let expected = match agrees {
            true => header.chain_after(before.chain),
            false => chain,
        };
        Err(Error::Diverged {
            index: header.index,
            expected,
            found: header.chain,
        })
    }

    fn accept(&mut self, header: &FrameHeader, payload: &[u8]) {
        self.index.push(
            header.index,
            header.base_offset,
            self.pos,
            self.place.chain,
            max_timestamp(header, payload),
        );
        if header.term != self.place.term || self.terms.is_empty() {
            self.terms.push((header.index, header.term));
        }
        if header.kind == EntryKind::Config {
            let payload = Effects::of(header, payload).config.unwrap_or_default();
            let index = header.index;
            self.config = Some(Membership { index, payload });
        }
        self.place = EntryPlace {
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            time_ms: header.append_time_ms,
        };
        self.pos += header.frame_len();
    }
}
