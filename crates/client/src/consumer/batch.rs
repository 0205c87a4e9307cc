//! What a consumer hands out.

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::{Batch, Header, Limits, Record, Records};

use crate::error::{Error, Result};

/// A record that was read. Key, value and header values share the memory of their batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumedRecord {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// `None` is a null key.
    pub key: Option<Bytes>,
    /// `None` is a null value.
    pub value: Option<Bytes>,
    /// In order, duplicates possible. Bytes of a key that are not UTF-8 are replaced; [`BatchRecord::headers`]
    /// has them as they are.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl ConsumedRecord {
    pub(crate) fn new(topic: &Arc<str>, partition: i32, record: Record) -> ConsumedRecord {
        let header = |header: Header| {
            (
                String::from_utf8_lossy(&header.key).into_owned(),
                header.value,
            )
        };
        ConsumedRecord {
            topic: topic.clone(),
            partition,
            offset: record.offset,
            timestamp_ms: record.timestamp,
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(header).collect(),
        }
    }
}

/// All records of one fetched batch that are at or behind the position asked for.
#[derive(Clone, Debug)]
pub struct RecordBatch {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) batch: Batch,
    /// Records below are not handed out.
    pub(crate) from: i64,
    pub(crate) limits: Limits,
}

/// A record inside of a [`RecordBatch`]; its bytes share the memory of the batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchRecord {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// `None` is a null key.
    pub key: Option<Bytes>,
    /// `None` is a null value.
    pub value: Option<Bytes>,
    headers: Vec<Header>,
}

impl BatchRecord {
    /// The headers in order, duplicates possible. Keys are UTF-8 by convention only.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.headers
            .iter()
            .map(|header| (&header.key[..], header.value.as_deref()))
    }
}

impl RecordBatch {
    /// The topic's name.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// No record below this offset is handed out; the first one may lie behind it.
    pub fn first_offset(&self) -> i64 {
        self.from.max(self.batch.header().base_offset)
    }

    /// One after the last offset of the batch: the position behind it. Offsets may have gaps.
    pub fn next_offset(&self) -> i64 {
        self.batch.header().next_offset()
    }

    /// Encoded size of the whole batch in bytes.
    pub fn size_bytes(&self) -> usize {
        self.batch.bytes().len()
    }

    /// The records, read in place; a compressed batch is decompressed once per call.
    ///
    /// # Errors
    /// An item is [`Error::CorruptBatch`] when the batch can't be decompressed or the structure is wrong there; it
    /// is the last one then.
    pub fn records(&self) -> impl Iterator<Item = Result<BatchRecord>> {
        let (records, failed) = match self.open() {
            Ok(records) => (Some(records), None),
            Err(error) => (None, Some(Err(error))),
        };
        let good = records
            .into_iter()
            .flatten()
            .filter_map(|record| match record {
                Ok(record) if record.offset < self.from => None,
                Ok(record) => Some(Ok(BatchRecord {
                    offset: record.offset,
                    timestamp_ms: record.timestamp,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                })),
                Err(error) => Some(Err(self.corrupt(&error))),
            });
        good.chain(failed)
    }

    pub(crate) fn open(&self) -> Result<Records> {
        self.batch
            .records(&self.limits)
            .map_err(|error| self.corrupt(&error))
    }

    pub(crate) fn corrupt(&self, error: &timberline_record::Error) -> Error {
        Error::CorruptBatch {
            topic: self.topic.to_string(),
            partition: self.partition,
            from: self.first_offset(),
            to: self.next_offset(),
            message: error.to_string(),
        }
    }
}
