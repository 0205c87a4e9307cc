//! Finding offsets by time.

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::{Batch, Limits};

use super::Log;
use super::read::max_timestamp;
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::frame::{EntryKind, FrameHeader};
use crate::index::IndexEntry;
use crate::scan::FrameScan;
use crate::segment::Segment;

impl Log {
    /// Offset and timestamp of the first readable record whose timestamp is at or after this; `None` when there is
    /// none. Blocking: it may have to index a segment.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Damaged`] when the batch that would answer can't be read.
    pub fn offset_for_time(self: &Arc<Self>, timestamp_ms: i64) -> Result<Option<(i64, i64)>> {
        let files = self.files.read().clone();
        for segment in &files {
            if segment.is_missing() {
                continue;
            }
            let index = match segment.index() {
                Some(index) => index,
                None => self.load_index(segment)?,
            };
            if index.max_timestamp < timestamp_ms {
                continue;
            }
            let from = self.confirmed(segment, index.by_time(timestamp_ms))?;
            if let Some(found) = self.search(segment, from, timestamp_ms)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The position of an index entry if the log confirms it, otherwise the first one.
    fn confirmed(&self, segment: &Arc<Segment>, entry: Option<IndexEntry>) -> Result<u64> {
        let Some(entry) = entry else {
            return Ok(FIRST_FRAME);
        };
        let handle = segment.handle(&self.shared)?;
        let mut scan = FrameScan::new(&*handle.file, segment.name(), segment.end(), false);
        let confirmed = scan
            .header(entry.pos)?
            .is_ok_and(|h| entry.confirmed_by(&h));
        Ok(if confirmed { entry.pos } else { FIRST_FRAME })
    }

    fn search(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        from: u64,
        timestamp_ms: i64,
    ) -> Result<Option<(i64, i64)>> {
        let handle = segment.handle(&self.shared)?;
        let end = segment.end();
        let mut scan = FrameScan::new(&*handle.file, segment.name(), end, false);
        let mut pos = from;
        while pos < end {
            let (header, payload) = match scan.frame(pos)? {
                Ok(frame) => frame,
                Err(_) => match segment.damage_at(pos).filter(|d| d.pos.1 > pos) {
                    Some(damage) => {
                        pos = damage.pos.1;
                        continue;
                    }
                    None => {
                        self.rebuild_index(segment)?;
                        if segment.damage_at(pos).is_none() {
                            return Ok(None);
                        }
                        continue;
                    }
                },
            };
            if header.base_offset >= self.high_watermark() {
                return Ok(None);
            }
            let candidate = header.kind == EntryKind::Data
                && header.next_offset() > self.log_start()
                && max_timestamp(&header, payload) >= timestamp_ms;
            if candidate && let Some(found) = self.first_record(&header, payload, timestamp_ms)? {
                return Ok(Some(found));
            }
            pos += header.frame_len();
        }
        Ok(None)
    }

    fn first_record(
        &self,
        header: &FrameHeader,
        payload: &[u8],
        timestamp_ms: i64,
    ) -> Result<Option<(i64, i64)>> {
        let unreadable = |what: String| Error::Damaged {
            from: header.base_offset,
            to: header.next_offset(),
            what,
        };
        let batch =
            Batch::parse(Bytes::copy_from_slice(payload)).map_err(|e| unreadable(e.to_string()))?;
        for record in batch
            .records(&Limits::default())
            .map_err(|e| unreadable(e.to_string()))?
        {
            let record = record.map_err(|e| unreadable(e.to_string()))?;
            if record.timestamp >= timestamp_ms && record.offset >= self.log_start() {
                return Ok(Some((record.offset, record.timestamp)));
            }
        }
        Ok(None)
    }
}
