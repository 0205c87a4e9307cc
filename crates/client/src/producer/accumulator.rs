//! Where records become batches: each partition has one open batch, and records are encoded straight into it by
//! the task that sends them. The driver takes batches out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use timberline_record::{BatchBuilder, BatchOptions, Codec, Header, Limits, TimestampType};

use crate::error::{Error, Result};
use crate::options::ProducerOptions;
use crate::producer::batch::ClosedBatch;
use crate::producer::core::SlotId;
use crate::producer::delivery::{Completion, Delivery};
use crate::producer::partitioner;

/// Largest batch, hence record, that can be built: the format's lengths are 31 bits and peers hold it in memory.
pub(crate) const MAX_BATCH_BYTES: usize = 32 << 20;

/// What is allocated for a partition's first batch.
const FIRST_BYTES: usize = 4 << 10;

/// A topic's partitions as the producer knows them.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: Arc<str>,
    pub(crate) topic_id: [u8; 16],
    /// Grows when partitions are added.
    pub(crate) partitions: RwLock<Vec<Arc<Partition>>>,
    /// Where records without a key go now.
    sticky: AtomicUsize,
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic_name: Arc<str>,
    pub(crate) topic_id: Bytes,
    pub(crate) partition: i32,
    pub(crate) slot: SlotId,
    /// Bytes taken and without an outcome, for the choice of the sticky partition.
    pub(crate) waiting_bytes: AtomicUsize,
    /// The driver closed the batch that records without a key stuck to.
    unstuck: AtomicBool,
    /// Largest batch that the topic takes, as a broker said when it refused a larger one.
    bytes_max: AtomicUsize,
    accumulator: Mutex<Accumulator>,
}

#[derive(Debug, Default)]
struct Accumulator {
    open: Option<OpenBatch>,
    full: VecDeque<ClosedBatch>,
    /// The driver knows that there is something; set by `append`, cleared by the driver.
    announced: bool,
    /// Nothing is taken any more.
    closed: bool,
    /// Bytes of the batch closed last: as much is allocated for the next.
    last_bytes: usize,
}

#[derive(Debug)]
struct OpenBatch {
    builder: BatchBuilder,
    completion: Arc<Completion>,
    reserved: usize,
    begun: Instant,
    timeout: Duration,
}

/// A record ready to be encoded.
pub(crate) struct Encodable<'a> {
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [Header],
    /// Bytes of the buffer that it holds.
    pub(crate) reserved: usize,
    /// How long until it must be acknowledged: a batch holds records of one timeout.
    pub(crate) timeout: Duration,
}

/// What became of it.
pub(crate) enum Appended {
    /// It is in the open batch; with true the driver must be told.
    Taken(Delivery, bool),
    /// The open batch was full and is closed now; the driver must be told if true. Choose another partition.
    Full(bool),
    /// The record can't be encoded. The batch before it may have been closed all the same: the driver must be told
    /// if true.
    Refused(Error, bool),
}

/// What the driver finds in a partition.
pub(crate) struct Found {
    pub(crate) full: VecDeque<ClosedBatch>,
    /// When the open batch was begun, if there is one, and the timeout of its records.
    pub(crate) open: Option<(Instant, Duration)>,
}

impl Topic {
    pub(crate) fn new(name: &str, topic_id: [u8; 16]) -> Topic {
        Topic {
            name: name.into(),
            topic_id,
            partitions: RwLock::new(Vec::new()),
            sticky: AtomicUsize::new(0),
        }
    }

    /// The current partition for records without a key, of `partitions`, which are not empty.
    pub(crate) fn sticky(&self, partitions: &[Arc<Partition>]) -> usize {
        let current = self.sticky.load(Ordering::Relaxed) % partitions.len();
        if partitions[current].unstuck.load(Ordering::Relaxed) {
            return self.move_on(current, partitions);
        }
        current
    }

    /// The partition after `current`, of `partitions`.
    pub(crate) fn move_on(&self, current: usize, partitions: &[Arc<Partition>]) -> usize {
        let waiting = |at: usize| partitions[at].waiting_bytes.load(Ordering::Relaxed);
        let next = partitioner::next_sticky(current, partitions.len(), waiting);
        partitions[current].unstuck.store(false, Ordering::Relaxed);
        partitions[next].unstuck.store(false, Ordering::Relaxed);
        self.sticky.store(next, Ordering::Relaxed);
        next
    }
}

impl Partition {
    pub(crate) fn new(topic: &Topic, partition: i32, slot: SlotId) -> Partition {
        Partition {
            topic_name: topic.name.clone(),
            topic_id: Bytes::copy_from_slice(&topic.topic_id),
            partition,
            slot,
            waiting_bytes: AtomicUsize::new(0),
            unstuck: AtomicBool::new(false),
            bytes_max: AtomicUsize::new(usize::MAX),
            accumulator: Mutex::new(Accumulator::default()),
        }
    }

    /// Encodes a record into the open batch. With `may_move`, a full batch is closed and the record is not taken.
    pub(crate) fn append(
        self: &Arc<Self>,
        record: &Encodable<'_>,
        options: &ProducerOptions,
        batch_bytes: usize,
        may_move: bool,
    ) -> Result<Appended> {
        let Encodable {
            timestamp_ms,
            key,
            value,
            headers,
            reserved,
            timeout,
        } = *record;
        let batch_bytes = batch_bytes.min(self.bytes_max.load(Ordering::Relaxed));
        let mut accumulator = self.accumulator.lock();
        if accumulator.closed {
            return Err(Error::Closed);
        }
        let mut announce = false;
        if let Some(open) = &accumulator.open {
            let len = open
                .builder
                .encoded_len_with(timestamp_ms, key, value, headers);
            let is_full = len > batch_bytes;
            if is_full || open.timeout != timeout {
                accumulator.close(self);
                announce = accumulator.announce();
                if is_full && may_move {
                    return Ok(Appended::Full(announce));
                }
            }
        }
        let first = accumulator.open.is_none();
        let capacity = (accumulator.last_bytes + accumulator.last_bytes / 8)
            .clamp(FIRST_BYTES, batch_bytes.max(FIRST_BYTES));
        let open = accumulator.open.get_or_insert_with(|| OpenBatch {
            builder: new_builder(options.codec, capacity),
            completion: Completion::new(self.partition),
            reserved: 0,
            begun: Instant::now(),
            timeout,
        });
        let index = open.builder.record_count() as u32;
        if let Err(error) = open.builder.append(timestamp_ms, key, value, headers) {
            if first {
                accumulator.open = None;
            }
            let error = Error::InvalidRecord {
                message: error.to_string(),
            };
            return Ok(Appended::Refused(error, announce));
        }
        open.reserved += reserved;
        let delivery = Delivery::new(open.completion.clone(), index, timestamp_ms);
        self.waiting_bytes.fetch_add(reserved, Ordering::Relaxed);
        announce |= first && accumulator.announce();
        Ok(Appended::Taken(delivery, announce))
    }

    /// What is there for the driver, which takes the full batches. It hears of what comes later.
    pub(crate) fn collect(&self) -> Found {
        let mut accumulator = self.accumulator.lock();
        accumulator.announced = false;
        Found {
            full: std::mem::take(&mut accumulator.full),
            open: accumulator
                .open
                .as_ref()
                .map(|open| (open.begun, open.timeout)),
        }
    }

    /// Closes the open batch and takes all there is.
    pub(crate) fn take(self: &Arc<Self>) -> VecDeque<ClosedBatch> {
        let mut accumulator = self.accumulator.lock();
        if accumulator.open.is_some() {
            self.unstuck.store(true, Ordering::Relaxed);
        }
        accumulator.close(self);
        std::mem::take(&mut accumulator.full)
    }

    /// Batches larger than this were refused: the next ones are no larger, unless it is by one record.
    pub(crate) fn limit_batches(&self, bytes: usize) {
        self.bytes_max.fetch_min(bytes, Ordering::Relaxed);
    }

    /// From now on nothing is taken.
    pub(crate) fn close(&self) {
        self.accumulator.lock().closed = true;
    }
}

impl Accumulator {
    fn close(&mut self, partition: &Arc<Partition>) {
        if let Some(open) = self.open.take() {
            self.last_bytes = open.builder.encoded_len();
            self.full.push_back(ClosedBatch::new(
                partition.clone(),
                open.completion,
                open.builder,
                open.reserved,
                open.begun,
                open.timeout,
            ));
        }
    }

    /// Whether the driver must be told.
    fn announce(&mut self) -> bool {
        !std::mem::replace(&mut self.announced, true)
    }
}

/// What a batch of this producer keeps to.
pub(crate) fn limits() -> Limits {
    Limits {
        max_batch_bytes: MAX_BATCH_BYTES,
        max_decompressed_bytes: MAX_BATCH_BYTES,
        ..Limits::default()
    }
}

pub(crate) fn new_builder(codec: Codec, capacity: usize) -> BatchBuilder {
    BatchBuilder::with_options(BatchOptions {
        codec,
        timestamp_type: TimestampType::CreateTime,
        capacity,
        limits: limits(),
        ..BatchOptions::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH_BYTES: usize = 1 << 10;

    fn append(partition: &Arc<Partition>, value: &[u8]) -> Appended {
        let record = Encodable {
            timestamp_ms: 0,
            key: None,
            value: Some(value),
            headers: &[],
            reserved: value.len(),
            timeout: Duration::from_secs(1),
        };
        let options = ProducerOptions::default();
        partition
            .append(&record, &options, BATCH_BYTES, false)
            .unwrap()
    }

    #[test]
    fn a_batch_closed_by_a_record_that_is_refused_is_announced() {
        let topic = Topic::new("t", [1; 16]);
        let partition = Arc::new(Partition::new(&topic, 0, 0));
        assert!(matches!(
            append(&partition, b"small"),
            Appended::Taken(_, true)
        ));
        // The driver looks: the batch is open, it will come again when the linger is over.
        assert!(partition.collect().open.is_some());
        let too_large = vec![0; MAX_BATCH_BYTES + 1];
        assert!(matches!(
            append(&partition, &too_large),
            Appended::Refused(Error::InvalidRecord { .. }, true)
        ));
        let found = partition.collect();
        assert_eq!((found.full.len(), found.open), (1, None));
        // Nothing was closed this time: there is nothing to tell.
        assert!(matches!(
            append(&partition, &too_large),
            Appended::Refused(_, false)
        ));
        assert!(matches!(
            append(&partition, b"small"),
            Appended::Taken(_, true)
        ));
    }
}
