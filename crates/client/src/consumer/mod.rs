//! The partition consumer.

mod batch;

pub use batch::{BatchRecord, ConsumedRecord, RecordBatch};

use crate::error::{Error, Result};

/// Where to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The first record there is.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// This offset.
    Offset(i64),
    /// The first record with this timestamp or a later one, milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// Reads partitions assigned by hand.
pub struct Consumer {}

impl Consumer {
    /// Starts reading a partition, or moves one that is assigned already.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, and those of every call.
    pub async fn assign(&mut self, topic: &str, partition: i32, from: Position) -> Result<()> {
        let _ = (topic, partition, from);
        Err(Error::Closed)
    }

    /// Stops reading a partition. Records of it that were fetched ahead are dropped.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn unassign(&mut self, topic: &str, partition: i32) -> Result<()> {
        let _ = (topic, partition);
        Err(Error::Closed)
    }

    /// Goes on elsewhere in a partition. Records of it that were fetched ahead are dropped.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// [`Error::NotAssigned`], and those of every call.
    pub async fn seek(&mut self, topic: &str, partition: i32, to: Position) -> Result<()> {
        let _ = (topic, partition, to);
        Err(Error::Closed)
    }

    /// The next record of any assigned partition; waits for one.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::NothingAssigned`], [`Error::OffsetOutOfRange`], [`Error::DataDamaged`], [`Error::CorruptBatch`] and
    /// refusals that can't be retried. An error is about one partition, which is paused until
    /// [`seek`](Self::seek); the others go on with the next call.
    pub async fn recv(&mut self) -> Result<ConsumedRecord> {
        Err(Error::Closed)
    }

    /// The next batch of any assigned partition; waits for one. Its records are read in place, without an
    /// allocation per record.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_batch(&mut self) -> Result<RecordBatch> {
        Err(Error::Closed)
    }

    /// The offset that comes next: one after the last record handed out, or where reading began.
    /// `None` when the partition is not assigned.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        let _ = (topic, partition);
        None
    }

    /// The high watermark last heard of: one after the last readable offset. `None` before the first news.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        let _ = (topic, partition);
        None
    }

    /// The assigned partitions.
    pub fn assignment(&self) -> Vec<(String, i32)> {
        Vec::new()
    }
}
