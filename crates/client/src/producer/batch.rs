//! A batch from its first record to its outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use timberline_record::{Batch, BatchBuilder, ProducerStamp};

use crate::error::{Error, Result};
use crate::producer::accumulator::Partition;
use crate::producer::core::Payload;
use crate::producer::delivery::{BatchAck, Completion};

/// A closed batch; its bytes are made when it is first sent.
#[derive(Debug)]
pub(crate) struct ClosedBatch {
    partition: Arc<Partition>,
    completion: Arc<Completion>,
    content: Content,
    records: u32,
    /// Bytes of the producer's buffer that its records hold.
    reserved: usize,
    begun: Instant,
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
    ) -> ClosedBatch {
        ClosedBatch {
            partition,
            completion,
            records: builder.record_count() as u32,
            content: Content::Open(builder),
            reserved,
            begun,
        }
    }

    pub(crate) fn begun(&self) -> Instant {
        self.begun
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
        self.completion.complete(outcome);
    }
}

/// Whatever happens to a batch, nobody waits for it forever. Counts only if there was no outcome before.
impl Drop for ClosedBatch {
    fn drop(&mut self) {
        self.completion.complete(Err(Error::Closed));
    }
}

impl Payload for ClosedBatch {
    type Wire = (Arc<Partition>, Bytes);

    fn records(&self) -> u32 {
        self.records
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
        (self.partition.clone(), bytes)
    }
}
