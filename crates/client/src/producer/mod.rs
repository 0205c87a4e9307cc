//! The producer.

mod delivery;
mod record;

pub use delivery::{Delivery, RecordMetadata};
pub use record::ProducerRecord;

use crate::error::{Error, Result};

/// Sends records. Clones share buffer, connections and producer id.
#[derive(Clone)]
pub struct Producer {}

/// A record that could not be taken, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct TrySendError {
    /// The record, unchanged.
    pub record: ProducerRecord,
    /// [`Error::BufferFull`], [`Error::TopicNotReady`], [`Error::InvalidRecord`] or [`Error::Closed`].
    pub error: Error,
}

impl Producer {
    /// Puts a record into the batch of its partition. Waits only for room in the buffer and, for the first
    /// record of a topic, for the topic's metadata. Records of one partition are written in the order in which
    /// their `send` futures complete.
    ///
    /// Cancel-safe: dropped before it completes, the record was not taken. Dropping the [`Delivery`] does not
    /// take the record back.
    ///
    /// # Errors
    /// [`Error::InvalidRecord`], [`Error::Closed`], `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, and those of
    /// fetching metadata.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery> {
        let _ = record;
        Err(Error::Closed)
    }

    /// As [`send`](Self::send), without waiting: gives the record back when the buffer is full or the topic's
    /// metadata is not loaded yet (see [`prepare`](Self::prepare)).
    ///
    /// # Errors
    /// The record and the cause.
    // The record comes back by value, so that the caller can try again without a copy.
    #[allow(clippy::result_large_err)]
    pub fn try_send(&self, record: ProducerRecord) -> Result<Delivery, TrySendError> {
        Err(TrySendError {
            record,
            error: Error::Closed,
        })
    }

    /// Loads a topic's metadata, so that the first record need not wait for it.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, and those of fetching metadata.
    pub async fn prepare(&self, topic: &str) -> Result<()> {
        let _ = topic;
        Err(Error::Closed)
    }

    /// Sends what is buffered without lingering and waits until every record sent before this call is
    /// acknowledged or has failed.
    ///
    /// Cancel-safe: the sending goes on.
    ///
    /// # Errors
    /// The first failure among those records; each [`Delivery`] has its own.
    pub async fn flush(&self) -> Result<()> {
        Err(Error::Closed)
    }

    /// Takes no more records from any clone, delivers what is buffered (at most until the delivery timeout) and
    /// ends the streams.
    ///
    /// Cancel-safe: the delivering and closing go on.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub async fn close(self) -> Result<()> {
        Err(Error::Closed)
    }

    /// Bytes of records taken and not yet acknowledged or failed; at most
    /// [`buffer_bytes`](crate::ProducerOptions#structfield.buffer_bytes).
    pub fn buffered_bytes(&self) -> usize {
        0
    }
}
