//! Reads partitions that somebody else decides on: where it stands in each, what comes next.
//!
//! Under both the consumer that is assigned by hand and that of a group. It belongs to one task, and what it knows of a partition is
//! exact: nothing of a partition comes out once it was removed. It resolves nothing and decides nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use timberline_record::{Limits, Records};
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::consumer::batch::{ConsumedRecord, RecordBatch};
use crate::consumer::driver::{Driver, Gone};
use crate::consumer::shared::{Item, Outage, Progress, Shared, Wanted};
use crate::error::{Error, Result};
use crate::options::ConsumerOptions;

/// A partition to read, from an offset on.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: [u8; 16],
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Where it shows how far it is, unless the partition is read already.
    pub(crate) progress: Arc<Progress>,
}

/// A partition as the application sees it.
pub(crate) struct Slot {
    /// Of the assignment it is fetched by; `None` while it is paused.
    id: Option<u64>,
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: [u8; 16],
    pub(crate) partition: i32,
    /// The offset that comes next.
    pub(crate) position: i64,
    pub(crate) progress: Arc<Progress>,
}

struct Current {
    id: u64,
    at: usize,
    batch: RecordBatch,
    records: Records,
}

pub(crate) struct Reader {
    options: Arc<ConsumerOptions>,
    shared: Arc<Shared>,
    items: mpsc::UnboundedReceiver<Item>,
    slots: Vec<Slot>,
    /// Index in `slots`, by assignment id.
    by_id: HashMap<u64, usize>,
    by_topic: HashMap<Arc<str>, HashMap<i32, usize>>,
    next_id: u64,
    /// The batch that records are taken from.
    current: Option<Current>,
    /// The slot that the application has something of in hand.
    in_hand: Option<usize>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Reader {
    pub(crate) fn start(client: Client, options: ConsumerOptions, gone: Gone) -> Reader {
        let options = Arc::new(options);
        let shared = Arc::new(Shared::default());
        let (sender, items) = mpsc::unbounded_channel();
        let driver = Driver::new(client, options.clone(), gone, shared.clone(), sender);
        tokio::spawn(driver.run());
        Reader {
            options,
            shared,
            items,
            slots: Vec::new(),
            by_id: HashMap::new(),
            by_topic: HashMap::new(),
            next_id: 1,
            current: None,
            in_hand: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slot(&self, topic: &str, partition: i32) -> Option<&Slot> {
        self.find(topic, partition).map(|at| &self.slots[at])
    }

    fn find(&self, topic: &str, partition: i32) -> Option<usize> {
        self.by_topic.get(topic)?.get(&partition).copied()
    }

    pub(crate) fn outages(&self) -> watch::Receiver<Option<Outage>> {
        self.shared.outage.subscribe()
    }

    // Which partitions.

    /// Reads these from now on, each from its offset; those that are read already go on there. All at once.
    pub(crate) fn begin(&mut self, all: impl IntoIterator<Item = Begin>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for begin in all {
            let at = match self.find(&begin.topic, begin.partition) {
                Some(at) => {
                    removed.extend(self.stop(at));
                    if self.slots[at].topic_id != begin.topic_id {
                        self.slots[at].progress = begin.progress;
                    }
                    at
                }
                None => {
                    let at = self.slots.len();
                    let of_topic = self.by_topic.entry(begin.topic.clone()).or_default();
                    of_topic.insert(begin.partition, at);
                    self.slots.push(Slot {
                        id: None,
                        topic: begin.topic.clone(),
                        topic_id: begin.topic_id,
                        partition: begin.partition,
                        position: begin.offset,
                        progress: begin.progress,
                    });
                    at
                }
            };
            let slot = &mut self.slots[at];
            slot.topic_id = begin.topic_id;
            slot.position = begin.offset;
            slot.settle();
            added.push(self.fetch(at));
        }
        self.shared.change(&removed, added);
    }

    /// Takes note of a partition of which nothing is to be read before a seek.
    pub(crate) fn begin_paused(&mut self, begin: Begin) {
        let (topic, partition) = (begin.topic.clone(), begin.partition);
        self.begin([begin]);
        self.pause(&topic, partition);
    }

    /// Reads these no more. What was fetched ahead of them is dropped.
    pub(crate) fn remove<'a>(&mut self, all: impl IntoIterator<Item = (&'a str, i32)>) {
        let mut removed = Vec::new();
        for (topic, partition) in all {
            let Some(at) = self.find(topic, partition) else {
                continue;
            };
            removed.extend(self.stop(at));
            self.slots.swap_remove(at);
            let last = self.slots.len();
            self.in_hand = match self.in_hand {
                Some(held) if held == at => None,
                Some(held) if held == last => Some(at),
                held => held,
            };
            if let Some(of_topic) = self.by_topic.get_mut(topic) {
                of_topic.remove(&partition);
                if of_topic.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
            // The last one is in its place now.
            if let Some(moved) = self.slots.get(at) {
                if let Some(id) = moved.id {
                    self.by_id.insert(id, at);
                }
                if let Some(of_topic) = self.by_topic.get_mut(&moved.topic) {
                    of_topic.insert(moved.partition, at);
                }
                let id = moved.id;
                if let Some(current) = self.current.as_mut().filter(|one| Some(one.id) == id) {
                    current.at = at;
                }
            }
        }
        self.shared.change(&removed, Vec::new());
    }

    /// Takes nothing of the partition until it is resumed; what was fetched ahead is dropped. Whether it is read at all.
    pub(crate) fn pause(&mut self, topic: &str, partition: i32) -> bool {
        let Some(at) = self.find(topic, partition) else {
            return false;
        };
        self.pause_at(at);
        true
    }

    fn pause_at(&mut self, at: usize) {
        if let Some(id) = self.stop(at) {
            self.shared.change(&[id], Vec::new());
        }
    }

    /// Goes on where the partition was paused. Whether it is read at all.
    pub(crate) fn resume(&mut self, topic: &str, partition: i32) -> bool {
        let Some(at) = self.find(topic, partition) else {
            return false;
        };
        if self.slots[at].id.is_none() && self.slots[at].position >= 0 {
            let wanted = self.fetch(at);
            self.shared.change(&[], vec![wanted]);
        }
        true
    }

    pub(crate) fn is_paused(&self, topic: &str, partition: i32) -> Option<bool> {
        self.slot(topic, partition).map(|slot| slot.id.is_none())
    }

    /// Ends the assignment that a slot is fetched by.
    fn stop(&mut self, at: usize) -> Option<u64> {
        let id = self.slots[at].id.take()?;
        self.by_id.remove(&id);
        if self.current.as_ref().is_some_and(|one| one.id == id) {
            self.current = None;
        }
        Some(id)
    }

    /// Makes a new assignment for a slot that has none.
    fn fetch(&mut self, at: usize) -> (u64, Wanted) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_id.insert(id, at);
        let slot = &mut self.slots[at];
        slot.id = Some(id);
        let wanted = Wanted {
            topic: slot.topic.clone(),
            topic_id: slot.topic_id,
            partition: slot.partition,
            offset: slot.position,
            progress: slot.progress.clone(),
        };
        (id, wanted)
    }

    // What comes.

    /// The application comes back for more: it is done with what it had in hand.
    pub(crate) fn settle(&mut self) {
        if let Some(at) = self.in_hand.take() {
            self.slots[at].settle();
        }
    }

    /// The next record that is here already. An error is about one partition, which is paused.
    pub(crate) fn next_record(&mut self) -> Option<Result<ConsumedRecord>> {
        let current = self.current.as_mut()?;
        let slot = &mut self.slots[current.at];
        loop {
            match current.records.next() {
                Some(Ok(record)) if record.offset < current.batch.from => {}
                Some(Ok(record)) => {
                    slot.position = record.offset + 1;
                    self.in_hand = Some(current.at);
                    let record = ConsumedRecord::new(&slot.topic, slot.partition, record);
                    return Some(Ok(record));
                }
                Some(Err(error)) => {
                    let error = current.batch.corrupt(&error);
                    let at = current.at;
                    self.pause_at(at);
                    return Some(Err(error));
                }
                None => {
                    slot.position = slot.position.max(current.batch.next_offset());
                    slot.settle();
                    self.current = None;
                    return None;
                }
            }
        }
    }

    /// What is left of the batch that records were taken from.
    pub(crate) fn rest_of_batch(&mut self) -> Option<RecordBatch> {
        let current = self.current.take()?;
        let slot = &mut self.slots[current.at];
        let mut rest = current.batch;
        rest.from = rest.from.max(slot.position);
        if rest.from >= rest.next_offset() {
            return None;
        }
        slot.position = rest.next_offset();
        self.in_hand = Some(current.at);
        Some(rest)
    }

    /// Waits for the next batch and opens it for [`next_record`](Self::next_record). Cancel-safe: waits only for the queue.
    pub(crate) async fn open_next(&mut self) -> Result<()> {
        let (at, batch) = self.next_batch().await?;
        match batch.open() {
            Ok(records) => {
                let id = self.slots[at].id.unwrap_or_default();
                self.current = Some(Current {
                    id,
                    at,
                    batch,
                    records,
                });
                Ok(())
            }
            Err(error) => {
                self.pause_at(at);
                Err(error)
            }
        }
    }

    /// Waits for the next batch and hands it out as a whole. Cancel-safe: waits only for the queue.
    pub(crate) async fn take_next(&mut self) -> Result<RecordBatch> {
        let (at, batch) = self.next_batch().await?;
        self.slots[at].position = batch.next_offset();
        self.in_hand = Some(at);
        Ok(batch)
    }

    /// The next batch out of the queue that is still wanted, and its slot.
    async fn next_batch(&mut self) -> Result<(usize, RecordBatch)> {
        loop {
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
                    let slot = &mut self.slots[at];
                    let header = batch.header();
                    if header.is_control()
                        || header.record_count == 0
                        || header.next_offset() <= slot.position
                    {
                        slot.position = slot.position.max(header.next_offset());
                        slot.settle();
                        continue;
                    }
                    let batch = RecordBatch {
                        topic: slot.topic.clone(),
                        partition: slot.partition,
                        batch,
                        from: slot.position,
                        limits: Limits {
                            max_decompressed_bytes: self.options.max_decompressed_bytes,
                            ..Limits::default()
                        },
                    };
                    return Ok((at, batch));
                }
                Item::Moved { assignment, offset } => {
                    if let Some(&at) = self.by_id.get(&assignment) {
                        self.slots[at].position = offset;
                        self.slots[at].settle();
                    }
                }
                Item::Failed { assignment, error } => {
                    if let Some(&at) = self.by_id.get(&assignment) {
                        self.pause_at(at);
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl Slot {
    /// What came before the position is done with.
    fn settle(&self) {
        self.progress.done.store(self.position, Ordering::Release);
    }

    /// One after the last readable offset, as last heard.
    pub(crate) fn high_watermark(&self) -> Option<i64> {
        let heard = self.progress.high_watermark.load(Ordering::Relaxed);
        Some(heard).filter(|&offset| offset >= 0)
    }

    /// Records from the position to the high watermark, as last heard.
    pub(crate) fn lag(&self) -> Option<i64> {
        Some((self.high_watermark()? - self.position).max(0))
    }
}
