//! The sparse index of a segment: every so many bytes, which entry, offset and time begin there.
//!
//! Derived data: it is rebuilt from the frames, and where it was read from a footer, the frame at the position it
//! names is checked before it is believed. A wrong index costs time, never a wrong answer.

use crate::codec::{Malformed, Put, Reader};
use crate::frame::FrameHeader;

/// Bytes of frames between two index entries.
pub(crate) const INDEX_EVERY: u64 = 64 << 10;

/// The start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) index: u64,
    pub(crate) offset: i64,
    pub(crate) pos: u64,
    /// Chain up to the entry before this frame, so that a check can begin here.
    pub(crate) chain: u64,
    /// Largest record timestamp before this frame, within the segment.
    pub(crate) max_timestamp_before: i64,
}

impl IndexEntry {
    /// Whether the frame at the entry's position is the one it tells of.
    pub(crate) fn confirmed_by(&self, header: &FrameHeader) -> bool {
        header.index == self.index && header.base_offset == self.offset
    }
}

/// The index of one segment, in order of position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    entries: Vec<IndexEntry>,
    /// Largest record timestamp of the segment so far.
    pub(crate) max_timestamp: i64,
}

impl SparseIndex {
    pub(crate) fn new() -> Self {
        SparseIndex {
            entries: Vec::new(),
            max_timestamp: i64::MIN,
        }
    }

    /// Tells the index of a frame; it keeps the first and then one every [`INDEX_EVERY`] bytes.
    pub(crate) fn push(
        &mut self,
        index: u64,
        offset: i64,
        pos: u64,
        chain: u64,
        max_timestamp: i64,
    ) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| pos >= last.pos + INDEX_EVERY);
        if due {
            self.entries.push(IndexEntry {
                index,
                offset,
                pos,
                chain,
                max_timestamp_before: self.max_timestamp,
            });
        }
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
    }

    /// The last indexed frame whose first offset is at or before this.
    pub(crate) fn by_offset(&self, offset: i64) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|e| e.offset <= offset);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// The last indexed frame whose entry index is at or before this.
    pub(crate) fn by_index(&self, index: u64) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|e| e.index <= index);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// The last indexed frame before which no record is as late as `timestamp`.
    pub(crate) fn by_time(&self, timestamp: i64) -> Option<IndexEntry> {
        let after = self
            .entries
            .partition_point(|e| e.max_timestamp_before < timestamp);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// Forgets what lies at or behind `pos`.
    pub(crate) fn truncate(&mut self, pos: u64) {
        self.entries.retain(|e| e.pos < pos);
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.i64(self.max_timestamp);
        out.u32(self.entries.len() as u32);
        for entry in &self.entries {
            out.u64(entry.index);
            out.i64(entry.offset);
            out.u64(entry.pos);
            out.u64(entry.chain);
            out.i64(entry.max_timestamp_before);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<SparseIndex, Malformed> {
        let max_timestamp = reader.i64()?;
        let count = reader.count(40)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(IndexEntry {
                index: reader.u64()?,
                offset: reader.i64()?,
                pos: reader.u64()?,
                chain: reader.u64()?,
                max_timestamp_before: reader.i64()?,
            });
        }
        if !entries.is_sorted_by(|a, b| a.pos < b.pos && a.offset <= b.offset && a.index < b.index)
        {
            return Err(Malformed("index out of order"));
        }
        Ok(SparseIndex {
            entries,
            max_timestamp,
        })
    }
}
