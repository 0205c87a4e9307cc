//! Reading committed records: slices of the map, as they are stored.
//!
//! A reader walks with a [`Cursor`]. What this process wrote or verified is answered at once; a range that it did
//! not is a [`ColdRead`], which verifies it through the file on a thread that may block: an unreadable sector is an
//! error there and kills the process in the map. Damage is remembered and answered with its range.

use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use crate::bugs::Bug;
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::footer::Footer;
use crate::frame::{EntryKind, FRAME_HEADER_LEN, FrameHeader};
use crate::index::SparseIndex;
use crate::scan::FrameScan;
use crate::segment::{DamagedRange, Segment};

/// Bytes verified by one cold read.
const VERIFY_BYTES: u64 = 4 << 20;
/// Most batches returned by one read.
const BATCHES_MAX: usize = 4096;

/// Where a reader stands.
#[derive(Clone, Debug)]
pub struct Cursor {
    offset: i64,
    /// Segment and position of the frame that holds `offset` or comes before it.
    at: Option<(Arc<Segment>, u64)>,
}

impl Cursor {
    /// The next offset wanted.
    pub fn offset(&self) -> i64 {
        self.offset
    }
}

/// The answer to a read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Stored batches in order, without copying. The first may begin before the cursor's offset; none at the high
    /// watermark.
    Batches(Vec<Bytes>),
    /// The range must be verified first.
    Cold(ColdRead),
}

/// Work that makes a range readable.
#[derive(Debug)]
pub struct ColdRead {
    pub(super) log: Arc<Log>,
    pub(super) segment: Arc<Segment>,
    pub(super) task: ColdTask,
}

#[derive(Debug)]
pub(super) enum ColdTask {
    LoadIndex,
    RebuildIndex,
    Verify { pos: u64 },
}

impl ColdRead {
    /// Reads and verifies. Blocking; then read again.
    ///
    /// # Errors
    /// I/O errors. Damage is no error here: the next read answers with it.
    pub fn run(self) -> Result<()> {
        match self.task {
            ColdTask::LoadIndex => self.log.load_index(&self.segment).map(|_| ()),
            ColdTask::RebuildIndex => self.log.rebuild_index(&self.segment).map(|_| ()),
            ColdTask::Verify { pos } => self.log.verify(&self.segment, pos),
        }
    }
}

enum Step {
    At(Arc<Segment>, u64),
    Cold(Arc<Segment>, ColdTask),
    End,
}

impl Log {
    /// A reader that begins at an offset. Whether the offset is valid is answered by the read.
    pub fn cursor(&self, offset: i64) -> Cursor {
        Cursor { offset, at: None }
    }

    /// Whole batches from the cursor on, up to the high watermark and to about `max_bytes`; the first is returned
    /// whatever its size. Moves the cursor behind them.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Damaged`] when the cursor stands on a damaged range, I/O errors.
    pub fn read(self: &Arc<Self>, cursor: &mut Cursor, max_bytes: usize) -> Result<ReadOutcome> {
        let high_watermark = self.high_watermark();
        let log_start = self.log_start();
        if cursor.offset < log_start || cursor.offset > high_watermark {
            return Err(Error::OffsetOutOfRange {
                offset: cursor.offset,
                log_start,
                high_watermark,
            });
        }
        let mut batches = Vec::new();
        let mut room = max_bytes;
        while cursor.offset < high_watermark && room > 0 && batches.len() < BATCHES_MAX {
            let step = match self.locate(cursor) {
                Ok(step) => step,
                Err(_) if !batches.is_empty() => break,
                Err(error) => return Err(error),
            };
            match step {
                Step::At(segment, pos) => {
                    self.walk(
                        cursor,
                        &segment,
                        pos,
                        high_watermark,
                        &mut room,
                        &mut batches,
                    )?;
                }
                Step::End => break,
                Step::Cold(..) if !batches.is_empty() => break,
                Step::Cold(segment, task) => {
                    return Ok(ReadOutcome::Cold(ColdRead {
                        log: self.clone(),
                        segment,
                        task,
                    }));
                }
            }
        }
        Ok(ReadOutcome::Batches(batches))
    }

    /// [`Log::read`] that verifies what it must on this thread. Blocking.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_blocking(
        self: &Arc<Self>,
        cursor: &mut Cursor,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>> {
        loop {
            match self.read(cursor, max_bytes)? {
                ReadOutcome::Batches(batches) => return Ok(batches),
                ReadOutcome::Cold(cold) => cold.run()?,
            }
        }
    }

    /// When the record at this offset, or else the next one there is, was appended, ms since the epoch; `None` at the high
    /// watermark. Blocking.
    ///
    /// # Errors
    /// [`Error::Damaged`] where that can't be told, I/O errors.
    pub fn append_time_of(self: &Arc<Self>, offset: i64) -> Result<Option<i64>> {
        let mut cursor = self.cursor(offset.max(self.log_start()));
        loop {
            if cursor.offset >= self.high_watermark() {
                return Ok(None);
            }
            match self.locate(&mut cursor)? {
                Step::End => return Ok(None),
                Step::Cold(segment, task) => ColdRead {
                    log: self.clone(),
                    segment,
                    task,
                }
                .run()?,
                Step::At(segment, mut pos) => {
                    let trusted = segment.trusted_until(pos);
                    while pos < trusted {
                        let bytes = segment.slice(&self.shared, pos, FRAME_HEADER_LEN)?;
                        let Ok(header) = FrameHeader::decode(&bytes) else {
                            return Err(self.trusted_is_bad(&segment, pos, cursor.offset));
                        };
                        if header.kind == EntryKind::Data && header.next_offset() > cursor.offset {
                            return Ok(Some(header.append_time_ms));
                        }
                        pos += header.frame_len();
                    }
                    cursor.at = Some((segment, pos));
                }
            }
        }
    }

    /// The trusted position where the cursor's next frame lies.
    fn locate(&self, cursor: &mut Cursor) -> Result<Step> {
        if cursor.at.is_none() {
            match self.find(cursor.offset)? {
                Step::At(segment, pos) => cursor.at = Some((segment, pos)),
                other => return Ok(other),
            }
        }
        let Some((segment, pos)) = cursor.at.clone() else {
            return Ok(Step::End);
        };
        self.step_at(cursor, segment, pos)
    }

    /// Goes from a position to the one where the cursor's offset can be read: over file ends and over damage that
    /// lies before it.
    fn step_at(
        &self,
        cursor: &mut Cursor,
        mut segment: Arc<Segment>,
        mut pos: u64,
    ) -> Result<Step> {
        let offset = cursor.offset;
        loop {
            if let Some(damage) = segment.damage_of_offset(offset) {
                return Err(damaged(&damage, offset));
            }
            if pos >= segment.end() {
                let Some(next) = self.file_after(&segment) else {
                    return Ok(Step::End);
                };
                (segment, pos) = (next, FIRST_FRAME);
                cursor.at = Some((segment.clone(), pos));
            } else if let Some(damage) = segment.damage_at(pos) {
                if damage.offsets.1 > offset || damage.pos.1 <= pos {
                    return Err(damaged(&damage, offset));
                }
                pos = damage.pos.1;
                cursor.at = Some((segment.clone(), pos));
            } else if segment.trusted_until(pos) > pos {
                return Ok(Step::At(segment, pos));
            } else {
                return Ok(Step::Cold(segment, ColdTask::Verify { pos }));
            }
        }
    }

    fn find(&self, offset: i64) -> Result<Step> {
        let segment = {
            let files = self.files.read();
            let after = files.partition_point(|f| f.first.next_offset <= offset);
            match after.checked_sub(1) {
                Some(at) => files[at].clone(),
                None => return Ok(Step::End),
            }
        };
        if let Some(damage) = segment.damage_of_offset(offset) {
            return Err(damaged(&damage, offset));
        }
        let Some(index) = segment.index() else {
            return Ok(Step::Cold(segment, ColdTask::LoadIndex));
        };
        let Some(entry) = index.by_offset(offset) else {
            return Ok(Step::At(segment, FIRST_FRAME));
        };
        if segment.trusted_until(entry.pos) <= entry.pos {
            if segment.damage_at(entry.pos).is_none() {
                return Ok(Step::Cold(segment, ColdTask::Verify { pos: entry.pos }));
            }
        } else if !self.shared.has_bug(Bug::TrustIndex) {
            // Derived data is believed only as far as the log confirms it.
            let header =
                FrameHeader::decode(&segment.slice(&self.shared, entry.pos, FRAME_HEADER_LEN)?);
            let confirmed =
                header.is_ok_and(|h| h.base_offset == entry.offset && h.index == entry.index);
            if !confirmed {
                return Ok(Step::Cold(segment, ColdTask::RebuildIndex));
            }
        }
        Ok(Step::At(segment, entry.pos))
    }

    pub(super) fn file_after(&self, segment: &Segment) -> Option<Arc<Segment>> {
        let files = self.files.read();
        let at = files.iter().position(|f| f.id == segment.id);
        match at {
            Some(at) => files.get(at + 1).cloned(),
            // It was deleted under the reader: whatever begins where it ended.
            None => files
                .iter()
                .find(|f| f.first.index > segment.first.index)
                .cloned(),
        }
    }

    fn walk(
        &self,
        cursor: &mut Cursor,
        segment: &Arc<Segment>,
        mut pos: u64,
        high_watermark: i64,
        room: &mut usize,
        batches: &mut Vec<Bytes>,
    ) -> Result<()> {
        let trusted = segment.trusted_until(pos);
        let want = (*room as u64).saturating_add(64 << 10);
        let mut window_at = pos;
        let mut window = segment.window(&self.shared, pos, want)?;
        while pos < trusted {
            let rest = &window[(pos - window_at) as usize..];
            let Ok(header) = FrameHeader::decode(rest) else {
                if rest.len() < FRAME_HEADER_LEN && window_at < pos {
                    // The window ends inside a header.
                    break;
                }
                return Err(self.trusted_is_bad(segment, pos, cursor.offset));
            };
            let end = pos + header.frame_len();
            if end > trusted {
                return Err(self.trusted_is_bad(segment, pos, cursor.offset));
            }
            if header.kind == EntryKind::Data && header.next_offset() > cursor.offset {
                let len = header.payload_len as usize;
                if header.base_offset >= high_watermark || (len > *room && !batches.is_empty()) {
                    *room = 0;
                    break;
                }
                if end > window_at + window.len() as u64 {
                    window = segment.window(&self.shared, pos, end - pos)?;
                    window_at = pos;
                    if (window.len() as u64) < end - pos {
                        return Err(self.trusted_is_bad(segment, pos, cursor.offset));
                    }
                }
                let from = (pos - window_at) as usize + FRAME_HEADER_LEN;
                batches.push(window.slice(from..from + len));
                *room = room.saturating_sub(len);
                cursor.offset = header.next_offset();
            }
            pos = end;
            if *room == 0 || batches.len() >= BATCHES_MAX || pos >= window_at + window.len() as u64
            {
                break;
            }
        }
        cursor.at = Some((segment.clone(), pos));
        Ok(())
    }

    /// Bytes that were good once are not any more.
    pub(super) fn trusted_is_bad(&self, segment: &Segment, pos: u64, offset: i64) -> Error {
        Error::Damaged {
            from: offset,
            to: offset + 1,
            what: format!(
                "{} at {pos} does not hold the frame that was verified there",
                segment.name()
            ),
        }
    }

    /// Verifies frames from a position on.
    fn verify(&self, segment: &Arc<Segment>, pos: u64) -> Result<()> {
        let handle = segment.handle(&self.shared)?;
        // The writer may go on meanwhile: one end for the scan and the loop.
        let end = segment.end();
        let mut scan = FrameScan::new(&*handle.file, segment.name(), end, false);
        let mut at = pos;
        let mut last: Option<FrameHeader> = None;
        while at < end && at - pos < VERIFY_BYTES {
            let fault = match scan.frame(at)? {
                Ok((header, _)) => {
                    let follows = match &last {
                        Some(last) => {
                            header.check_follows(last.index, last.next_offset(), last.chain)
                        }
                        None => Ok(()),
                    };
                    match follows {
                        Ok(()) => {
                            at += header.frame_len();
                            last = Some(header);
                            continue;
                        }
                        Err(fault) => fault,
                    }
                }
                Err(fault) => fault,
            };
            let Some(last) = last else {
                // Perhaps only the index is wrong: a walk from the file's start tells, and notes what is damaged.
                return self.rebuild_index(segment).map(|_| ());
            };
            let (from, index) = (last.next_offset(), last.index);
            segment.add_damage(self.damage_from(segment, &mut scan, at, from, index, fault)?);
            break;
        }
        segment.set_verified(pos, at);
        Ok(())
    }

    fn damage_from(
        &self,
        segment: &Segment,
        scan: &mut FrameScan<'_>,
        at: u64,
        from: i64,
        index: u64,
        fault: crate::frame::FrameFault,
    ) -> Result<DamagedRange> {
        let (pos_to, to) = match scan.next_whole(at, index)? {
            Some((pos, header)) => (pos, header.base_offset),
            None => (segment.end(), self.offset_after(segment)),
        };
        Ok(DamagedRange {
            pos: (at, pos_to),
            offsets: (from, to.max(from)),
            what: format!("{} at {at}: {fault}", segment.name()),
        })
    }

    fn offset_after(&self, segment: &Segment) -> i64 {
        let files = self.files.read();
        let next = files
            .iter()
            .position(|f| f.id == segment.id)
            .and_then(|i| files.get(i + 1));
        next.map_or_else(|| self.end_offset(), |n| n.first.next_offset)
    }

    /// The sparse index of a segment: from its footer, or by reading it through.
    pub(crate) fn load_index(&self, segment: &Arc<Segment>) -> Result<Arc<SparseIndex>> {
        if segment.is_sealed() {
            let handle = segment.handle(&self.shared)?;
            let footer = Footer::read(&*handle.file, &segment.name())?;
            if let Some(footer) = footer.filter(|f| f.first == segment.first) {
                segment.install_index(&footer.index, segment.end());
                return Ok(Arc::new(footer.index));
            }
        }
        self.rebuild_index(segment)
    }

    /// Reads a whole segment: indexes it, verifies it, notes damage.
    pub(super) fn rebuild_index(&self, segment: &Arc<Segment>) -> Result<Arc<SparseIndex>> {
        let handle = segment.handle(&self.shared)?;
        let mut end = segment.end();
        let mut scan = FrameScan::new(&*handle.file, segment.name(), end, false);
        let mut index = SparseIndex::new();
        let (mut pos, mut good_from) = (FIRST_FRAME, FIRST_FRAME);
        let (mut last_index, mut next_offset, mut chain) = (
            segment.first.index,
            segment.first.next_offset,
            segment.first.chain,
        );
        loop {
            while pos < end {
                let checked = match scan.frame(pos)? {
                    Ok((header, payload)) => header
                        .check_follows(last_index, next_offset, chain)
                        .map(|()| (header, max_timestamp(&header, payload))),
                    Err(fault) => Err(fault),
                };
                match checked {
                    Ok((header, timestamp)) => {
                        index.push(header.index, header.base_offset, pos, chain, timestamp);
                        (last_index, next_offset, chain) =
                            (header.index, header.next_offset(), header.chain);
                        pos += header.frame_len();
                    }
                    Err(fault) => {
                        segment.set_verified(good_from, pos);
                        let damage = self.damage_from(
                            segment,
                            &mut scan,
                            pos,
                            next_offset,
                            last_index,
                            fault,
                        )?;
                        pos = damage.pos.1;
                        good_from = pos;
                        segment.add_damage(damage);
                        if let Ok(header) = scan.header(pos)? {
                            // The chain can't be followed across the hole; it goes on behind it.
                            index.push(
                                header.index,
                                header.base_offset,
                                pos,
                                header.chain,
                                i64::MAX,
                            );
                            (last_index, next_offset, chain) =
                                (header.index, header.next_offset(), header.chain);
                            pos += header.frame_len();
                        }
                    }
                }
            }
            segment.set_verified(good_from, pos.min(end));
            if segment.install_index(&index, end) || segment.end() < end {
                return Ok(Arc::new(index));
            }
            // The writer went on: index the rest too.
            end = segment.end();
            scan = FrameScan::new(&*handle.file, segment.name(), end, false);
        }
    }
}

fn damaged(damage: &DamagedRange, offset: i64) -> Error {
    Error::Damaged {
        from: damage.offsets.0.min(offset),
        to: damage.offsets.1,
        what: damage.what.clone(),
    }
}

/// Largest record timestamp of an entry; the smallest possible for one without records.
pub(crate) fn max_timestamp(header: &FrameHeader, payload: &[u8]) -> i64 {
    if header.kind != EntryKind::Data {
        return i64::MIN;
    }
    timberline_record::BatchHeader::decode(payload).map_or(i64::MIN, |b| b.max_timestamp)
}
