//! Records, and the iterator that hands them out without copying.

use std::iter::FusedIterator;

use bytes::Bytes;

use crate::varint::Reader;
use crate::{BatchHeader, Error, Limits, Offset, RecordFlaw, Result, TimestampMs, TimestampType};
use crate::{header, walk};

/// One header of a record (KIP-82). Their order counts and a key may occur again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The key; UTF-8 by convention, which is not enforced.
    pub key: Bytes,
    /// The value, which may be null.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header of `key` and `value`.
    pub fn new(key: impl Into<Bytes>, value: Option<impl Into<Bytes>>) -> Header {
        Header {
            key: key.into(),
            value: value.map(Into::into),
        }
    }
}

/// One record as a reader sees it. Its bytes share the batch's buffer: keeping a record for long
/// keeps the batch in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset in the partition, if the batch's base offset was stamped.
    pub offset: Offset,
    /// Its timestamp in ms: the producer's, or with log append time the batch's.
    pub timestamp: TimestampMs,
    /// Its key, which may be null.
    pub key: Option<Bytes>,
    /// Its value; null is a tombstone in a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers in order.
    pub headers: Vec<Header>,
}

/// The records of a batch in order, from [`crate::Batch::records`].
///
/// Each is checked when its turn comes; after the first error nothing follows. An error also
/// replaces the end if bytes are left over. Nothing is allocated for a record without headers.
#[derive(Clone, Debug)]
pub struct Records {
    data: Bytes,
    at: usize,
    index: usize,
    count: usize,
    /// The least offset delta that may come next, beyond `i32` after the last.
    next_delta: i64,
    done: bool,
    header: BatchHeader,
    limits: Limits,
}

impl Records {
    /// Over `data`, the decompressed body of the batch with `header`.
    pub(crate) fn new(data: Bytes, header: BatchHeader, limits: Limits) -> Records {
        Records {
            data,
            at: 0,
            index: 0,
            count: header.record_count.max(0) as usize,
            next_delta: 0,
            done: false,
            header,
            limits,
        }
    }

    fn read(&mut self) -> Result<Record> {
        let raw = walk::record(&self.data, self.at, self.index, &self.limits)?;
        let invalid = |flaw| Error::InvalidRecord {
            index: self.index,
            flaw,
        };
        let delta = i64::from(raw.offset_delta);
        if delta < self.next_delta || raw.offset_delta > self.header.last_offset_delta {
            return Err(invalid(RecordFlaw::OffsetOutOfOrder));
        }
        let timestamp = match self.header.timestamp_type() {
            TimestampType::LogAppendTime => self.header.max_timestamp,
            TimestampType::CreateTime => self
                .header
                .base_timestamp
                .checked_add(raw.timestamp_delta)
                .ok_or(invalid(RecordFlaw::TimestampOverflow))?,
        };
        let headers = self.headers(&raw).map_err(invalid)?;
        let record = Record {
            // No overflow: the header's base and last offset were checked.
            offset: self.header.base_offset.saturating_add(delta),
            timestamp,
            key: raw.key.map(|range| self.data.slice(range)),
            value: raw.value.map(|range| self.data.slice(range)),
            headers,
        };
        self.next_delta = delta + 1;
        self.at = raw.end;
        Ok(record)
    }

    fn headers(&self, raw: &walk::RawRecord) -> Result<Vec<Header>, RecordFlaw> {
        if raw.header_count == 0 {
            return Ok(Vec::new());
        }
        // The count was walked: so many headers are there, and the limit allows them.
        let mut headers = Vec::with_capacity(raw.header_count);
        let mut reader = Reader::new(&self.data[..raw.end], raw.headers_at);
        for _ in 0..raw.header_count {
            let found = walk::header(&mut reader)?;
            headers.push(Header {
                key: self.data.slice(found.key),
                value: found.value.map(|range| self.data.slice(range)),
            });
        }
        Ok(headers)
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    #[inline]
    fn next(&mut self) -> Option<Result<Record>> {
        if self.done {
            return None;
        }
        if self.index == self.count {
            self.done = true;
            let extra = self.data.len() - self.at;
            return (extra > 0).then_some(Err(Error::TrailingBytes { extra }));
        }
        let read = self.read();
        self.index += 1;
        self.done = read.is_err();
        Some(read)
    }

    /// Nothing is promised from below: the count is a claim, and a collection would allocate for it.
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = if self.done {
            0
        } else {
            self.count - self.index + 1
        };
        (
            0,
            Some(left.min(1 + (self.data.len() - self.at) / header::MIN_RECORD_LEN + 1)),
        )
    }
}

impl FusedIterator for Records {}
