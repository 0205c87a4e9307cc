//! The producer.
//!
//! [`Producer::send`] encodes a record straight into the open batch of its partition (`accumulator`) and returns; one
//! task, the `driver`, closes batches by time, sends them on one stream per broker (`stream`) and hands out outcomes
//! (`delivery`). What is sent when, and what is retried or fails, is decided by a state machine without I/O
//! (`core`), whose documentation has the rules for sequences, retries, deadlines and epochs. In short: a record that
//! times out before its batch got a sequence fails cleanly; one that times out later fails with its outcome unknown,
//! and the partition goes on under a new epoch, so that the missing sequence blocks nothing.

mod accumulator;
mod batch;
mod core;
mod delivery;
mod driver;
mod observer;
mod partitioner;
mod record;
mod shared;
mod stream;

#[cfg(test)]
mod simulation;

use std::sync::Arc;

pub use delivery::{Delivery, RecordMetadata};
pub use observer::{BatchInfo, Observer, ProducerObserver};
pub use partitioner::{Partitioner, Partitioning};
pub use record::ProducerRecord;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::options::ProducerOptions;
use shared::Shared;

/// Sends records. Clones share buffer, connections and producer id. When the last clone is dropped without
/// [`close`](Self::close), what is buffered is still delivered in the background while the runtime lives.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Tells the driver when nobody can send any more.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}

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
    pub(crate) fn start(client: Client, options: ProducerOptions) -> Producer {
        let (commands, received) = driver::commands();
        let shared = Arc::new(Shared::new(client, options, commands));
        tokio::spawn(driver::Driver::new(shared.clone(), received).run());
        Producer {
            handle: Arc::new(Handle { shared }),
        }
    }

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
        let shared = &self.handle.shared;
        let size = shared.size_of(&record)?;
        let topic = match shared.topic(&record.topic) {
            Some(topic) => topic,
            None => shared.resolve(&record.topic).await?,
        };
        if !shared.try_reserve(size)? {
            shared.reserve(size).await?;
        }
        shared.append(&topic, &record, size)
    }

    /// As [`send`](Self::send), without waiting: gives the record back when the buffer is full or the topic's
    /// metadata is not loaded yet (see [`prepare`](Self::prepare)).
    ///
    /// # Errors
    /// The record and the cause.
    #[allow(
        clippy::result_large_err,
        reason = "the record comes back by value, so that the caller can try again without a copy"
    )]
    pub fn try_send(&self, record: ProducerRecord) -> Result<Delivery, TrySendError> {
        match self.try_append(&record) {
            Ok(delivery) => Ok(delivery),
            Err(error) => Err(TrySendError { record, error }),
        }
    }

    fn try_append(&self, record: &ProducerRecord) -> Result<Delivery> {
        let shared = &self.handle.shared;
        let size = shared.size_of(record)?;
        let Some(topic) = shared.topic(&record.topic) else {
            return Err(Error::TopicNotReady {
                topic: record.topic.to_string(),
            });
        };
        if !shared.try_reserve(size)? {
            return Err(Error::BufferFull);
        }
        shared.append(&topic, record, size)
    }

    /// Loads a topic's metadata, so that the first record need not wait for it.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, and those of fetching metadata.
    pub async fn prepare(&self, topic: &str) -> Result<()> {
        let shared = &self.handle.shared;
        if shared.topic(topic).is_none() {
            shared.resolve(topic).await?;
        }
        Ok(())
    }

    /// Sends what is buffered without lingering and waits until every record sent before this call is
    /// acknowledged or has failed.
    ///
    /// Cancel-safe: the sending goes on.
    ///
    /// # Errors
    /// The first failure among those that were still without an outcome; each [`Delivery`] has its own.
    pub async fn flush(&self) -> Result<()> {
        self.handle.shared.flush().await
    }

    /// Takes no more records from any clone, delivers what is buffered (at most until the delivery timeout) and
    /// ends the streams.
    ///
    /// Cancel-safe: the delivering and closing go on.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub async fn close(self) -> Result<()> {
        let shared = self.handle.shared.clone();
        let flushed = shared.flush().await;
        shared.begin_close();
        shared.closed().await;
        flushed
    }

    /// Bytes of records taken and not yet acknowledged or failed, with a small overhead each; at most
    /// [`buffer_bytes`](crate::ProducerOptions#structfield.buffer_bytes).
    pub fn buffered_bytes(&self) -> usize {
        self.handle.shared.buffered_bytes()
    }
}
