//! Reading entries by index, as a state log or replication wants them.

use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::frame::EntryKind;
use crate::scan::FrameScan;
use crate::segment::Segment;

/// One entry, verified.
#[derive(Clone, Debug)]
pub struct EntryRef {
    /// Position in the sequence of entries.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Offset of its first record, or of the next one.
    pub base_offset: i64,
    /// When it was appended, ms since the epoch.
    pub append_time_ms: i64,
    /// Its payload.
    pub payload: Bytes,
}

impl Log {
    /// Calls `each` with every committed entry from `from_index` on, in order, verified. Blocking.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`] when `from_index` is gone, [`Error::Damaged`], I/O errors, and what `each` returns.
    pub fn replay(
        self: &Arc<Self>,
        from_index: u64,
        mut each: impl FnMut(EntryRef) -> Result<()>,
    ) -> Result<()> {
        let (committed, files) =
            self.with_state(|state, files| (state.committed, files.read().clone()));
        if from_index > committed.index {
            return Ok(());
        }
        let first = files.first().map_or(committed.index, |f| f.first.index);
        if from_index <= first {
            return Err(Error::IndexOutOfRange { index: from_index });
        }
        let begin = files
            .partition_point(|f| f.first.index < from_index)
            .saturating_sub(1);
        for segment in &files[begin..] {
            if segment.first.index >= committed.index {
                break;
            }
            self.replay_file(segment, from_index, committed.index, &mut each)?;
        }
        Ok(())
    }

    /// First index that [`Log::replay`] can give. The term of the entry before it need not be known, so it may lie
    /// below [`Log::first_index`].
    pub fn first_stored_index(&self) -> u64 {
        self.with_state(|state, files| {
            files
                .read()
                .first()
                .map_or(state.committed.index, |f| f.first.index)
                + 1
        })
    }

    fn replay_file(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        from: u64,
        to: u64,
        each: &mut impl FnMut(EntryRef) -> Result<()>,
    ) -> Result<()> {
        if let Some(damage) = segment.damage_at(0) {
            return Err(Error::Damaged {
                from: damage.offsets.0,
                to: damage.offsets.1,
                what: damage.what,
            });
        }
        let handle = segment.handle(&self.shared)?;
        // The writer may go on meanwhile: one end for the scan and the loop.
        let end = segment.end();
        let mut scan = FrameScan::new(&*handle.file, segment.name(), end, false);
        let mut start = segment.index().and_then(|i| i.by_index(from));
        if let Some(entry) = start
            && !scan
                .header(entry.pos)?
                .is_ok_and(|h| entry.confirmed_by(&h))
        {
            start = None;
        }
        let mut pos = start.map_or(FIRST_FRAME, |e| e.pos);
        let mut next_offset = start.map_or(segment.first.next_offset, |e| e.offset);
        while pos < end {
            let (header, payload) = scan.frame(pos)?.map_err(|fault| Error::Damaged {
                from: next_offset,
                to: next_offset + 1,
                what: format!("{} at {pos}: {fault}", segment.name()),
            })?;
            if header.index > to {
                break;
            }
            if header.index >= from {
                each(EntryRef {
                    index: header.index,
                    term: header.term,
                    kind: header.kind,
                    base_offset: header.base_offset,
                    append_time_ms: header.append_time_ms,
                    payload: Bytes::copy_from_slice(payload),
                })?;
            }
            next_offset = header.next_offset();
            pos += header.frame_len();
        }
        Ok(())
    }
}
