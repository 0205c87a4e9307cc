//! What the senders' tasks and the driver share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use timberline_proto::error::{ApiError, Reason};
use timberline_record::Header;
use tokio::sync::{Notify, Semaphore, TryAcquireError, mpsc, oneshot};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::metadata::TopicView;
use crate::options::ProducerOptions;
use crate::producer::accumulator::{Appended, Encodable, MAX_BATCH_BYTES, Partition, Topic};
use crate::producer::core::SlotId;
use crate::producer::delivery::{Completion, Delivery};
use crate::producer::driver::Command;
use crate::producer::record::ProducerRecord;

/// What a record takes beside its bytes: lengths, deltas, and its part of the bookkeeping.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// Topics one producer writes to; more is an error, as nothing is ever forgotten while it may be in use.
const MAX_TOPICS: usize = 10_000;

pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) options: ProducerOptions,
    /// One permit per byte of the buffer.
    memory: Semaphore,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// All partitions ever used, by slot.
    pub(crate) slots: RwLock<Vec<Arc<Partition>>>,
    /// Slots that have something for the driver; each at most once.
    ready: Mutex<Vec<SlotId>>,
    /// Wakes the driver for `ready` and `closing`.
    pub(crate) wake: Notify,
    closing: AtomicBool,
    finished: AtomicBool,
    /// Wakes those who wait for `finished`.
    finish: Notify,
    commands: mpsc::Sender<Command>,
    /// `batch_bytes`, or less when a broker allows less.
    batch_bytes: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(
        client: Client,
        options: ProducerOptions,
        commands: mpsc::Sender<Command>,
    ) -> Shared {
        Shared {
            client,
            memory: Semaphore::new(options.buffer_bytes),
            topics: RwLock::default(),
            slots: RwLock::default(),
            ready: Mutex::default(),
            wake: Notify::new(),
            closing: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            finish: Notify::new(),
            commands,
            batch_bytes: AtomicUsize::new(options.batch_bytes),
            options,
        }
    }

    // Topics.

    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).cloned()
    }

    /// Asks for a topic's metadata and makes its partitions known.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Arc<Topic>> {
        let view = self.client.topic(name).await?;
        let topic = self.adopt(&view)?;
        // The driver learns the leaders; it asks for them itself if this is lost.
        let _ = self.commands.send(Command::Seen(view)).await;
        Ok(topic)
    }

    /// Takes in a topic's metadata: a new topic, or one made again under the same name, or more partitions.
    pub(crate) fn adopt(&self, view: &TopicView) -> Result<Arc<Topic>> {
        let info = &view.info;
        let mut topics = self.topics.write();
        let known = topics
            .get(info.name.as_str())
            .filter(|topic| topic.topic_id == info.topic_id.0);
        let topic = match known {
            Some(topic) => topic.clone(),
            None if topics.len() >= MAX_TOPICS => {
                return Err(Error::InvalidRecord {
                    message: format!(
                        "this producer writes to {MAX_TOPICS} topics already; use another one"
                    ),
                });
            }
            None => {
                let topic = Arc::new(Topic::new(&info.name, info.topic_id.0));
                topics.insert(topic.name.clone(), topic.clone());
                topic
            }
        };
        let mut partitions = topic.partitions.write();
        let mut slots = self.slots.write();
        while partitions.len() < info.partitions.len() {
            let slot = slots.len() as SlotId;
            let partition = Arc::new(Partition::new(&topic, partitions.len() as i32, slot));
            if self.closing.load(Ordering::SeqCst) {
                partition.close();
            }
            slots.push(partition.clone());
            partitions.push(partition);
        }
        drop((slots, partitions));
        Ok(topic)
    }

    /// Forgets a topic that is gone: the next record asks again.
    pub(crate) fn forget(&self, name: &str, topic_id: &[u8]) {
        let mut topics = self.topics.write();
        if topics
            .get(name)
            .is_some_and(|topic| topic.topic_id == topic_id)
        {
            topics.remove(name);
            self.client.forget_topic(name);
        }
    }

    /// Names of the topics in use.
    pub(crate) fn topic_names(&self) -> Vec<Arc<str>> {
        self.topics.read().keys().cloned().collect()
    }

    // Memory.

    /// Bytes of the buffer that a record takes.
    pub(crate) fn size_of(&self, record: &ProducerRecord) -> Result<usize> {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers = record
            .headers
            .iter()
            .map(|(key, value)| key.len() + len(value) + RECORD_OVERHEAD_BYTES);
        let size =
            len(&record.key) + len(&record.value) + headers.sum::<usize>() + RECORD_OVERHEAD_BYTES;
        let limit = self.options.buffer_bytes.min(MAX_BATCH_BYTES);
        if size > limit {
            return Err(Error::InvalidRecord {
                message: format!(
                    "it takes {size} bytes, at most {limit} are possible (buffer_bytes and the largest batch): split it"
                ),
            });
        }
        Ok(size)
    }

    /// Takes bytes of the buffer if there are as many.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<bool> {
        // `size_of` bounds it far below 4 GiB.
        match self.memory.try_acquire_many(bytes as u32) {
            Ok(permit) => {
                permit.forget();
                Ok(true)
            }
            Err(TryAcquireError::NoPermits) => Ok(false),
            Err(TryAcquireError::Closed) => Err(Error::Closed),
        }
    }

    /// Waits for room, first come, first served.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<()> {
        let permit = self
            .memory
            .acquire_many(bytes as u32)
            .await
            .map_err(|_| Error::Closed)?;
        permit.forget();
        Ok(())
    }

    pub(crate) fn release(&self, bytes: usize) {
        self.memory.add_permits(bytes);
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.options.buffer_bytes - self.memory.available_permits()
    }

    // Records.

    /// Encodes a record, for which `size` bytes were reserved. They are given back on an error.
    pub(crate) fn append(
        &self,
        topic: &Topic,
        record: &ProducerRecord,
        size: usize,
    ) -> Result<Delivery> {
        let appended = self.append_reserved(topic, record, size);
        if appended.is_err() {
            self.release(size);
        }
        appended
    }

    fn append_reserved(
        &self,
        topic: &Topic,
        record: &ProducerRecord,
        size: usize,
    ) -> Result<Delivery> {
        let header =
            |(key, value): &(String, Option<Bytes>)| Header::new(key.clone(), value.clone());
        let headers: Vec<Header> = record.headers.iter().map(header).collect();
        let encodable = Encodable {
            timestamp_ms: record.timestamp_ms.unwrap_or_else(now_ms),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
            reserved: size,
            timeout: record
                .delivery_timeout
                .unwrap_or(self.options.delivery_timeout),
        };
        let partitions = topic.partitions.read();
        let count = partitions.len();
        let (mut chosen, sticky) = match (record.partition, &record.key) {
            (Some(partition), _) => (partition as usize, false),
            (None, _) => match self.options.partitioner.choose(record, count) {
                Some(partition) => (partition, false),
                None => (topic.sticky(&partitions), true),
            },
        };
        let batch_bytes = self.batch_bytes.load(Ordering::Relaxed);
        let mut may_move = sticky && count > 1;
        loop {
            let Some(partition) = partitions.get(chosen) else {
                let message = format!(
                    "{} has partitions 0 to {}, not {chosen}",
                    topic.name,
                    count - 1
                );
                return Err(ApiError::new(Reason::UnknownPartition, message).into());
            };
            match partition.append(&encodable, &self.options, batch_bytes, may_move)? {
                Appended::Taken(delivery, announce) => {
                    self.announce(partition.slot, announce);
                    return Ok(delivery);
                }
                Appended::Full(announce) => {
                    self.announce(partition.slot, announce);
                    chosen = topic.move_on(chosen, &partitions);
                    may_move = false;
                }
                Appended::Refused(error, announce) => {
                    self.announce(partition.slot, announce);
                    return Err(error);
                }
            }
        }
    }

    fn announce(&self, slot: SlotId, announce: bool) {
        if announce {
            self.ready.lock().push(slot);
            self.wake.notify_one();
        }
    }

    /// Slots announced since the last call.
    pub(crate) fn take_ready(&self, into: &mut Vec<SlotId>) {
        into.append(&mut self.ready.lock());
    }

    /// A broker allows batches of at most this size.
    pub(crate) fn limit_batches(&self, bytes: usize) {
        self.batch_bytes.fetch_min(bytes, Ordering::Relaxed);
    }

    // The end.

    pub(crate) async fn flush(&self) -> Result<()> {
        let (reply, waiting) = oneshot::channel();
        if self.commands.send(Command::Flush(reply)).await.is_err() {
            return Ok(());
        }
        // Without a driver there is nothing left that could be waited for.
        let completions: Vec<Arc<Completion>> = waiting.await.unwrap_or_default();
        let mut outcome = Ok(());
        for completion in completions {
            let result = completion.wait().await;
            if outcome.is_ok() {
                outcome = result;
            }
        }
        outcome
    }

    /// From now on no record is taken; what is buffered is delivered.
    pub(crate) fn begin_close(&self) {
        if !self.closing.swap(true, Ordering::SeqCst) {
            self.memory.close();
            self.wake.notify_one();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// The driver has ended.
    pub(crate) fn set_closed(&self) {
        self.finished.store(true, Ordering::SeqCst);
        self.finish.notify_waiters();
    }

    pub(crate) async fn closed(&self) {
        loop {
            let finish = self.finish.notified();
            if self.finished.load(Ordering::SeqCst) {
                return;
            }
            finish.await;
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
