//! A batch from its first record to its outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use timberline_record::{Batch, BatchBuilder, ProducerStamp, Record};

use crate::error::{Error, Result};
use crate::producer::accumulator::{Partition, limits, new_builder};
use crate::producer::core::{Payload, sequence_after};
use crate::producer::delivery::{BatchAck, Completion, Part};
use crate::producer::observer::BatchInfo;

/// A closed batch; its bytes are made when it is first sent.
#[derive(Debug)]
pub(crate) struct ClosedBatch {
    partition: Arc<Partition>,
    completion: Arc<Completion>,
    content: Content,
    /// Which of the completion's records it holds: all, unless it was cut.
    part: Part,
    /// Bytes of the producer's buffer that its records hold.
    reserved: usize,
    begun: Instant,
    /// From then to its deadline.
    timeout: Duration,
}

/// What goes over the wire, and what observers are told of it.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) partition: Arc<Partition>,
    pub(crate) records: u32,
    pub(crate) bytes: Bytes,
}

impl Wire {
    pub(crate) fn info(&self) -> BatchInfo<'_> {
        BatchInfo {
            topic: &self.partition.topic_name,
            partition: self.partition.partition,
            records: self.records,
            bytes: self.bytes.len(),
        }
    }
}

#[derive(Debug)]
enum Content {
    Open(BatchBuilder),
    Built(Batch),
    /// Building it failed.
    Spent,
}

impl ClosedBatch {
    pub(crate) fn new(
        partition: Arc<Partition>,
        completion: Arc<Completion>,
        builder: BatchBuilder,
        reserved: usize,
        begun: Instant,
        timeout: Duration,
    ) -> ClosedBatch {
        ClosedBatch {
            partition,
            completion,
            part: Part::whole(builder.record_count() as u32),
            content: Content::Open(builder),
            reserved,
            begun,
            timeout,
        }
    }

    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn info(&self) -> BatchInfo<'_> {
        BatchInfo {
            topic: &self.partition.topic_name,
            partition: self.partition.partition,
            records: self.part.records,
            bytes: self.bytes(),
        }
    }

    pub(crate) fn completion(&self) -> &Arc<Completion> {
        &self.completion
    }

    /// Bytes of the producer's buffer that it holds.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Tells everybody the outcome. Its memory counts as free before, so that who was told finds it free.
    pub(crate) fn complete(self, outcome: Result<BatchAck>) {
        self.partition
            .waiting_bytes
            .fetch_sub(self.reserved, Ordering::Relaxed);
        self.completion.complete(self.part, outcome);
    }
}

/// Whatever happens to a batch, nobody waits for it forever. Counts only if there was no outcome before.
impl Drop for ClosedBatch {
    fn drop(&mut self) {
        self.completion.complete(self.part, Err(Error::Closed));
    }
}

impl Payload for ClosedBatch {
    type Wire = Wire;

    fn records(&self) -> u32 {
        self.part.records
    }

    fn bytes(&self) -> usize {
        match &self.content {
            Content::Open(builder) => builder.encoded_len(),
            Content::Built(batch) => batch.bytes().len(),
            Content::Spent => 0,
        }
    }

    fn seal(&mut self, stamp: Option<ProducerStamp>) -> Result<()> {
        let built = match std::mem::replace(&mut self.content, Content::Spent) {
            Content::Open(builder) => builder.build(stamp),
            // The header's checksum is carried forward from the first one.
            Content::Built(batch) => {
                let header = batch.header().with_producer(stamp);
                batch.with_header(header)
            }
            Content::Spent => Err(timberline_record::Error::EmptyBatch),
        };
        self.content = Content::Built(built.map_err(|error| Error::InvalidRecord {
            message: format!("the batch could not be built: {error}"),
        })?);
        Ok(())
    }

    fn wire(&self) -> Self::Wire {
        let bytes = match &self.content {
            Content::Built(batch) => batch.bytes().clone(),
            Content::Open(_) | Content::Spent => Bytes::new(),
        };
        Wire {
            partition: self.partition.clone(),
            records: self.part.records,
            bytes,
        }
    }

    fn split(&mut self) -> Option<ClosedBatch> {
        let Content::Built(batch) = &self.content else {
            return None;
        };
        let (first, second) = self.part.halves()?;
        let halves = halves(batch, first.records as usize);
        let (kept, cut) = halves
            .inspect_err(|error| tracing::warn!(%error, "a batch that is too large can't be cut"))
            .ok()?;
        // What each record took is not known any more, and need not be: the sum is right.
        let share =
            u128::from(second.records) * self.reserved as u128 / u128::from(self.part.records);
        let reserved = share as usize;
        self.content = Content::Built(kept);
        self.part = first;
        self.reserved -= reserved;
        Some(ClosedBatch {
            partition: self.partition.clone(),
            completion: self.completion.clone(),
            content: Content::Built(cut),
            part: second,
            reserved,
            begun: self.begun,
            timeout: self.timeout,
        })
    }
}

/// The first `count` records of a batch as one and the others as another, with their sequences.
fn halves(batch: &Batch, count: usize) -> timberline_record::Result<(Batch, Batch)> {
    let stamp = batch.header().producer();
    let behind = stamp.map(|stamp| ProducerStamp {
        base_sequence: sequence_after(stamp.base_sequence, count as u32),
        ..stamp
    });
    let records: Vec<Record> = batch.records(&limits())?.collect::<Result<_, _>>()?;
    let (first, second) = records.split_at(count.min(records.len()));
    let build = |records: &[Record], stamp| {
        let capacity = batch.bytes().len();
        let mut builder = new_builder(batch.header().codec(), capacity);
        for record in records {
            builder.append_record(record)?;
        }
        builder.build(stamp)
    };
    Ok((build(first, stamp)?, build(second, behind)?))
}
