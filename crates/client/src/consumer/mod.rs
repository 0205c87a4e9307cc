//! The partition consumer.
//!
//! One task, the `driver`, keeps a fetch stream to each broker that leads an assigned partition, grants it bytes as the
//! application consumes, checks what comes and queues it; [`Consumer::recv`] takes it from there. After a lost stream
//! reading resumes behind the last batch received, so nothing is missed and nothing comes twice.

mod batch;
mod driver;
mod shared;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use batch::{BatchRecord, ConsumedRecord, RecordBatch};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;
use timberline_record::{Limits, Records};
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::options::ConsumerOptions;
pub use shared::Outage;
use shared::{Item, Shared, Wanted, Watermarks};

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
    options: Arc<ConsumerOptions>,
    shared: Arc<Shared>,
    items: mpsc::UnboundedReceiver<Item>,
    assigned: Vec<Assigned>,
    /// Index in `assigned`, by assignment id.
    by_id: HashMap<u64, usize>,
    next_id: u64,
    /// The batch that `recv` is in.
    current: Option<Current>,
}

/// A partition as the application sees it.
struct Assigned {
    id: u64,
    topic: Arc<str>,
    topic_id: [u8; 16],
    partition: i32,
    position: i64,
    news: Arc<Watermarks>,
}

struct Current {
    id: u64,
    batch: RecordBatch,
    records: Records,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Consumer {
    pub(crate) fn start(client: Client, options: ConsumerOptions) -> Consumer {
        let options = Arc::new(options);
        let shared = Arc::new(Shared::default());
        let (sender, items) = mpsc::unbounded_channel();
        let driver = driver::Driver::new(client.clone(), options.clone(), shared.clone(), sender);
        tokio::spawn(driver.run());
        Consumer {
            client,
            options,
            shared,
            items,
            assigned: Vec::new(),
            by_id: HashMap::new(),
            next_id: 1,
            current: None,
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
        self.start_at(topic.into(), view.info.topic_id.0, partition, from)
            .await
    }

    async fn start_at(
        &mut self,
        topic: Arc<str>,
        topic_id: [u8; 16],
        partition: i32,
        from: Position,
    ) -> Result<()> {
        let offset = match from {
            Position::Offset(offset) => offset,
            _ => {
                let by_id = v1::TopicRef {
                    r#ref: Some(v1::topic_ref::Ref::Id(topic_id.to_vec().into())),
                };
                self.client
                    .offset_of(&topic, by_id, partition, from)
                    .await?
            }
        };
        // From here on nothing waits: the change is made as a whole.
        let id = self.next_id;
        self.next_id += 1;
        let old = self.find(&topic, partition);
        let news = match old {
            Some(at) if self.assigned[at].topic_id == topic_id => self.assigned[at].news.clone(),
            _ => Arc::default(),
        };
        let wanted = Wanted {
            topic: topic.clone(),
            topic_id,
            partition,
            offset,
            news: news.clone(),
        };
        let assigned = Assigned {
            id,
            topic,
            topic_id,
            partition,
            position: offset,
            news,
        };
        let removed = match old {
            Some(at) => {
                let removed = std::mem::replace(&mut self.assigned[at], assigned).id;
                self.by_id.remove(&removed);
                self.by_id.insert(id, at);
                Some(removed)
            }
            None => {
                self.by_id.insert(id, self.assigned.len());
                self.assigned.push(assigned);
                None
            }
        };
        self.shared.change(removed, Some((id, wanted)));
        Ok(())
    }

    /// Stops reading a partition. Records of it that were fetched ahead are dropped.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn unassign(&mut self, topic: &str, partition: i32) -> Result<()> {
        let at = self
            .find(topic, partition)
            .ok_or_else(|| not_assigned(topic, partition))?;
        let removed = self.assigned.swap_remove(at);
        self.by_id.remove(&removed.id);
        if let Some(moved) = self.assigned.get(at) {
            self.by_id.insert(moved.id, at);
        }
        self.shared.change(Some(removed.id), None);
        Ok(())
    }

    /// Goes on elsewhere in a partition. Records of it that were fetched ahead are dropped.
    ///
    /// Cancel-safe: dropped before it completes, nothing has changed.
    ///
    /// # Errors
    /// [`Error::NotAssigned`], and those of every call.
    pub async fn seek(&mut self, topic: &str, partition: i32, to: Position) -> Result<()> {
        let at = self
            .find(topic, partition)
            .ok_or_else(|| not_assigned(topic, partition))?;
        let assigned = &self.assigned[at];
        self.start_at(assigned.topic.clone(), assigned.topic_id, partition, to)
            .await
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
            if let Some(next) = self.next_of_current() {
                return next;
            }
            let (id, batch) = self.next_batch().await?;
            match batch.open() {
                Ok(records) => self.current = Some(Current { id, batch, records }),
                Err(error) => {
                    self.pause(id);
                    return Err(error);
                }
            }
        }
    }

    /// The next record of the current batch, if there is one that is still wanted.
    fn next_of_current(&mut self) -> Option<Result<ConsumedRecord>> {
        let current = self.current.as_mut()?;
        let assigned = match self.by_id.get(&current.id) {
            Some(&at) => &mut self.assigned[at],
            None => {
                self.current = None;
                return None;
            }
        };
        loop {
            match current.records.next() {
                Some(Ok(record)) if record.offset < current.batch.from => {}
                Some(Ok(record)) => {
                    assigned.position = record.offset + 1;
                    let record = ConsumedRecord::new(&assigned.topic, assigned.partition, record);
                    return Some(Ok(record));
                }
                Some(Err(error)) => {
                    let error = current.batch.corrupt(&error);
                    let id = current.id;
                    self.current = None;
                    self.pause(id);
                    return Some(Err(error));
                }
                None => {
                    assigned.position = assigned.position.max(current.batch.next_offset());
                    self.current = None;
                    return None;
                }
            }
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
        if let Some(current) = self.current.take() {
            if let Some(&at) = self.by_id.get(&current.id) {
                let assigned = &mut self.assigned[at];
                let mut rest = current.batch;
                rest.from = rest.from.max(assigned.position);
                if rest.from < rest.next_offset() {
                    assigned.position = rest.next_offset();
                    return Ok(rest);
                }
            }
        }
        let (id, batch) = self.next_batch().await?;
        if let Some(&at) = self.by_id.get(&id) {
            self.assigned[at].position = batch.next_offset();
        }
        Ok(batch)
    }

    /// The next batch out of the queue that is still wanted. Cancel-safe: waits only for the queue.
    async fn next_batch(&mut self) -> Result<(u64, RecordBatch)> {
        loop {
            if self.assigned.is_empty() {
                return Err(Error::NothingAssigned);
            }
            let item = self.items.recv().await.ok_or(Error::Closed)?;
            match item {
                Item::Data {
                    assignment,
                    batch,
                    credit,
                } => {
                    let threshold = self.options.prefetch_bytes / 4;
                    self.shared
                        .give_back(&credit, batch.bytes().len(), threshold);
                    let Some(&at) = self.by_id.get(&assignment) else {
                        continue;
                    };
                    let assigned = &mut self.assigned[at];
                    let header = batch.header();
                    if header.is_control()
                        || header.record_count == 0
                        || header.next_offset() <= assigned.position
                    {
                        assigned.position = assigned.position.max(header.next_offset());
                        continue;
                    }
                    let batch = RecordBatch {
                        topic: assigned.topic.clone(),
                        partition: assigned.partition,
                        batch,
                        from: assigned.position,
                        limits: Limits {
                            max_decompressed_bytes: self.options.max_decompressed_bytes,
                            ..Limits::default()
                        },
                    };
                    return Ok((assignment, batch));
                }
                Item::Moved { assignment, offset } => {
                    if let Some(&at) = self.by_id.get(&assignment) {
                        self.assigned[at].position = offset;
                    }
                }
                Item::Failed { assignment, error } => {
                    if self.by_id.contains_key(&assignment) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Takes nothing more of this assignment; a seek makes another one.
    fn pause(&mut self, id: u64) {
        if let Some(at) = self.by_id.remove(&id) {
            let paused = self.next_id;
            self.next_id += 1;
            self.assigned[at].id = paused;
            self.by_id.insert(paused, at);
            self.shared.change(Some(id), None);
        }
    }

    /// The offset that comes next: one after the last record handed out, or where reading began.
    /// `None` when the partition is not assigned.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        self.find(topic, partition)
            .map(|at| self.assigned[at].position)
    }

    /// The high watermark last heard of: one after the last readable offset. `None` before the first news.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        let assigned = &self.assigned[self.find(topic, partition)?];
        Some(assigned.news.high_watermark.load(Ordering::Relaxed)).filter(|&offset| offset >= 0)
    }

    /// Tells when a broker that is needed goes out of reach (`Some`) and when all are there again (`None`); the longest
    /// outage, if there are several. The consumer waits for the broker however long that takes: who will not, watches
    /// this beside [`recv`](Self::recv).
    pub fn outages(&self) -> watch::Receiver<Option<Outage>> {
        self.shared.outage.subscribe()
    }

    /// The assigned partitions.
    pub fn assignment(&self) -> Vec<(String, i32)> {
        let name = |assigned: &Assigned| (assigned.topic.to_string(), assigned.partition);
        self.assigned.iter().map(name).collect()
    }

    fn find(&self, topic: &str, partition: i32) -> Option<usize> {
        let is_it =
            |assigned: &Assigned| assigned.partition == partition && *assigned.topic == *topic;
        self.assigned.iter().position(is_it)
    }
}

fn not_assigned(topic: &str, partition: i32) -> Error {
    Error::NotAssigned {
        topic: topic.to_owned(),
        partition,
    }
}
