//! The partition consumer.
//!
//! One task, the `driver`, keeps a fetch stream to each broker that leads an assigned partition, grants it bytes as the
//! application consumes, checks what comes and queues it; the `reader` takes it from there, for [`Consumer::recv`] and for
//! the consumer of a group. After a lost stream reading resumes behind the last batch received, so nothing is missed and
//! nothing comes twice. Nothing here knows of groups.

mod batch;
pub(crate) mod driver;
pub(crate) mod reader;
pub(crate) mod shared;
mod stream;

use std::sync::Arc;

pub use batch::{BatchRecord, ConsumedRecord, RecordBatch};
use timberline_proto::error::{ApiError, Reason};
use tokio::sync::watch;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::options::ConsumerOptions;
use driver::Gone;
use reader::{Begin, Reader, Slot};
pub use shared::Outage;

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

/// Reads partitions assigned by hand. Dropping it ends its streams.
pub struct Consumer {
    client: Client,
    reader: Reader,
}

impl Consumer {
    pub(crate) fn start(client: Client, options: ConsumerOptions) -> Consumer {
        Consumer {
            reader: Reader::start(client.clone(), options, Gone::Fails),
            client,
        }
    }

    /// Starts reading a partition, or moves one that is assigned already.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, and those of every call.
    pub async fn assign(&mut self, topic: &str, partition: i32, from: Position) -> Result<()> {
        let view = self.client.topic(topic).await?;
        if usize::try_from(partition).map_or(true, |partition| partition >= view.leaders.len()) {
            let message = format!(
                "{topic} has partitions 0 to {}, not {partition}",
                view.leaders.len() - 1
            );
            return Err(ApiError::new(Reason::UnknownPartition, message).into());
        }
        let topic_id = view.info.topic_id.0;
        self.start_at(topic.into(), topic_id, partition, from).await
    }

    async fn start_at(
        &mut self,
        topic: Arc<str>,
        topic_id: [u8; 16],
        partition: i32,
        from: Position,
    ) -> Result<()> {
        let asked = self.client.start_of(&topic, topic_id, partition, from);
        let offset = asked.await?;
        // From here on nothing waits: the change is made as a whole.
        self.reader.begin([Begin {
            topic,
            topic_id,
            partition,
            offset,
            progress: Arc::default(),
        }]);
        Ok(())
    }

    /// Stops reading a partition. Records of it that were fetched ahead are dropped.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn unassign(&mut self, topic: &str, partition: i32) -> Result<()> {
        self.assigned(topic, partition)?;
        self.reader.remove([(topic, partition)]);
        Ok(())
    }

    /// Goes on elsewhere in a partition, also in one that is paused. Records of it that were fetched ahead are dropped.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// [`Error::NotAssigned`], and those of every call.
    pub async fn seek(&mut self, topic: &str, partition: i32, to: Position) -> Result<()> {
        let slot = self.assigned(topic, partition)?;
        let (topic, topic_id) = (slot.topic.clone(), slot.topic_id);
        self.start_at(topic, topic_id, partition, to).await
    }

    /// Hands out nothing of a partition until [`resume`](Self::resume). Records of it that were fetched ahead are dropped and
    /// fetched again then, so that a paused partition takes no room from the others.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn pause(&mut self, topic: &str, partition: i32) -> Result<()> {
        self.assigned(topic, partition)?;
        self.reader.pause(topic, partition);
        Ok(())
    }

    /// Goes on where a partition was paused, by [`pause`](Self::pause) or by an error.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn resume(&mut self, topic: &str, partition: i32) -> Result<()> {
        self.assigned(topic, partition)?;
        self.reader.resume(topic, partition);
        Ok(())
    }

    /// Whether a partition is paused, by [`pause`](Self::pause) or by an error. `None` when it is not assigned.
    pub fn is_paused(&self, topic: &str, partition: i32) -> Option<bool> {
        self.reader.is_paused(topic, partition)
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
        loop {
            if let Some(next) = self.reader.next_record() {
                return next;
            }
            self.something_assigned()?;
            self.reader.open_next().await?;
        }
    }

    /// The next batch of any assigned partition; waits for one. Its records are read in place, without an
    /// allocation per record. After [`recv`](Self::recv) left off inside of a batch, the rest of it comes first.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_batch(&mut self) -> Result<RecordBatch> {
        if let Some(rest) = self.reader.rest_of_batch() {
            return Ok(rest);
        }
        self.something_assigned()?;
        self.reader.take_next().await
    }

    fn something_assigned(&self) -> Result<()> {
        match self.reader.is_empty() {
            true => Err(Error::NothingAssigned),
            false => Ok(()),
        }
    }

    /// The offset that comes next: one after the last record handed out, or where reading began.
    /// `None` when the partition is not assigned.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        Some(self.reader.slot(topic, partition)?.position)
    }

    /// The high watermark last heard of: one after the last readable offset. `None` before the first news.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        self.reader.slot(topic, partition)?.high_watermark()
    }

    /// Records from the position to the high watermark last heard of. `None` before the first news.
    pub fn lag(&self, topic: &str, partition: i32) -> Option<i64> {
        self.reader.slot(topic, partition)?.lag()
    }

    /// Tells when a broker that is needed goes out of reach (`Some`) and when all are there again (`None`); the longest
    /// outage, if there are several. The consumer waits for the broker however long that takes: who will not, watches
    /// this beside [`recv`](Self::recv).
    pub fn outages(&self) -> watch::Receiver<Option<Outage>> {
        self.reader.outages()
    }

    /// The assigned partitions.
    pub fn assignment(&self) -> Vec<(String, i32)> {
        let name = |slot: &Slot| (slot.topic.to_string(), slot.partition);
        self.reader.slots().iter().map(name).collect()
    }

    fn assigned(&self, topic: &str, partition: i32) -> Result<&Slot> {
        let slot = self.reader.slot(topic, partition);
        slot.ok_or_else(|| not_assigned(topic, partition))
    }
}

pub(crate) fn not_assigned(topic: &str, partition: i32) -> Error {
    Error::NotAssigned {
        topic: topic.to_owned(),
        partition,
    }
}
