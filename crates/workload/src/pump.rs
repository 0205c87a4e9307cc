//! Sending at full speed from a thread, with the outcome of every record accounted for.
//!
//! One thread calls [`Pump::send`]; it blocks only while the producer's buffer is full. Deliveries go, in order, to a task
//! for each partition, which waits for the first of them and then takes all that the same acknowledgement settled. The
//! cost of a record is thus a push, a pop and a look at an atomic; the clock is read once for up to 16 records
//! before they are sent, and once for each run of acknowledgements after they were seen. Both errors make a latency longer,
//! by less than the time of that many sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use timberline_client::{Delivery, Error, Producer, ProducerRecord, RecordMetadata};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::latency::Latencies;

/// Records that share one reading of the clock.
pub(crate) const CLOCK_EVERY: u32 = 16;
/// Deliveries handed to a partition's task at a time.
const CHUNK: usize = 256;
/// Such chunks waiting for a partition's task; beyond, the sender waits.
const CHUNKS_WAITING: usize = 64;

/// How a [`Pump`] keeps its books.
#[derive(Clone, Copy, Debug, Default)]
pub struct PumpOptions {
    /// Keep an [`Ack`] of each record in memory.
    pub keep_acks: bool,
    /// Measure latencies.
    pub measure: bool,
}

/// Where an acknowledged record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// What the sender called it.
    pub tag: u64,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Counts that others may read while the pump runs.
#[derive(Debug, Default)]
pub struct Tally {
    acknowledged: AtomicU64,
    acknowledged_bytes: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Bytes of their values.
    pub fn acknowledged_bytes(&self) -> u64 {
        self.acknowledged_bytes.load(Ordering::Relaxed)
    }

    /// Records that failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What became of all records.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Bytes of their values.
    pub acknowledged_bytes: u64,
    /// Records that failed or may have failed.
    pub failed: u64,
    /// Of the acknowledged ones, those whose first acknowledgement was lost: stored once all the same.
    pub duplicates: u64,
    /// The first failure seen.
    pub first_error: Option<Error>,
    /// Time from due to acknowledged.
    pub latencies: Latencies,
    /// Every acknowledgement, if they were to be kept.
    pub acks: Vec<Ack>,
    /// When the last acknowledgement was seen.
    pub last_ack: Option<Instant>,
}

impl Outcomes {
    fn merge(&mut self, other: Outcomes) {
        self.acknowledged += other.acknowledged;
        self.acknowledged_bytes += other.acknowledged_bytes;
        self.failed += other.failed;
        self.duplicates += other.duplicates;
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
        self.latencies.merge(&other.latencies);
        self.acks.extend(other.acks);
        self.last_ack = self.last_ack.max(other.last_ack);
    }

    /// Takes in what another pump did.
    pub fn add(&mut self, other: Outcomes) {
        self.merge(other);
    }
}

/// A record on its way.
struct Sent {
    delivery: Delivery,
    due: Instant,
    tag: u64,
    bytes: u32,
}

/// A partition: deliveries not handed over yet, and the task that waits for them.
struct Lane {
    chunk: Vec<Sent>,
    sender: mpsc::Sender<Vec<Sent>>,
    task: JoinHandle<Outcomes>,
}

/// Sends records from a thread that may block. Not for use inside of a task.
pub struct Pump {
    producer: Producer,
    handle: Handle,
    options: PumpOptions,
    tally: Arc<Tally>,
    /// By partition; made with the first record of each.
    lanes: Vec<Option<Lane>>,
    /// Lanes with something in their chunk.
    dirty: Vec<usize>,
    /// True: the lanes wait for nothing more.
    aborted: watch::Sender<bool>,
    now: Instant,
    /// The wall clock, read together with `now`, ms since the Unix epoch.
    wall_ms: i64,
    until_clock: u32,
}

impl Pump {
    /// A pump over a producer. `handle` is of the runtime that the producer lives on.
    pub fn new(producer: Producer, handle: Handle, options: PumpOptions) -> Pump {
        Pump {
            producer,
            handle,
            options,
            tally: Arc::default(),
            lanes: Vec::new(),
            dirty: Vec::new(),
            aborted: watch::Sender::new(false),
            now: Instant::now(),
            wall_ms: wall_ms(),
            until_clock: 0,
        }
    }

    /// Counts the others under `tally` too, which other threads may read.
    #[must_use]
    pub fn with_tally(mut self, tally: Arc<Tally>) -> Pump {
        self.tally = tally;
        self
    }

    /// The counts as they are while it runs.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// A clock that is right up to the time of 16 sends, and never ahead.
    #[inline]
    pub fn now(&mut self) -> Instant {
        if self.until_clock == 0 {
            self.now = Instant::now();
            self.wall_ms = wall_ms();
            self.until_clock = CLOCK_EVERY;
        }
        self.until_clock -= 1;
        self.now
    }

    /// The wall clock at the last reading of [`Pump::now`], ms since the Unix epoch.
    pub fn wall_ms(&self) -> i64 {
        self.wall_ms
    }

    /// Sends a record that was due at `due`. Blocks while the producer's buffer is full.
    ///
    /// # Errors
    /// Those of [`Producer::send`]; the record was not taken then.
    #[allow(
        clippy::result_large_err,
        reason = "the error is the client's own; a box would allocate only to hand it on"
    )]
    pub fn send(&mut self, record: ProducerRecord, tag: u64, due: Instant) -> Result<(), Error> {
        let bytes = record.value.as_ref().map_or(0, |value| value.len() as u32);
        let delivery = match self.producer.try_send(record) {
            Ok(delivery) => delivery,
            Err(refused) => match refused.error {
                Error::BufferFull | Error::TopicNotReady { .. } => {
                    self.hand_over();
                    self.until_clock = 0;
                    self.handle.block_on(self.producer.send(refused.record))?
                }
                error => return Err(error),
            },
        };
        let at = usize::try_from(delivery.partition()).unwrap_or(0);
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        let lane = self.lanes[at].get_or_insert_with(|| {
            let (sender, received) = mpsc::channel(CHUNKS_WAITING);
            let collector = Collector {
                options: self.options,
                tally: Arc::clone(&self.tally),
                outcomes: Outcomes::default(),
                aborted: self.aborted.subscribe(),
            };
            Lane {
                chunk: Vec::with_capacity(CHUNK),
                sender,
                task: self.handle.spawn(collector.run(received)),
            }
        });
        if lane.chunk.is_empty() {
            self.dirty.push(at);
        }
        lane.chunk.push(Sent {
            delivery,
            due,
            tag,
            bytes,
        });
        if lane.chunk.len() >= CHUNK {
            lane.hand_over();
            self.dirty.retain(|&dirty| dirty != at);
        }
        Ok(())
    }

    /// Lets the partitions' tasks see all that was sent. To be called before the thread sleeps or waits.
    pub fn hand_over(&mut self) {
        for at in self.dirty.drain(..) {
            if let Some(lane) = &mut self.lanes[at] {
                lane.hand_over();
            }
        }
    }

    /// Takes the outcomes that are there and waits for no more. Records without one are in none of the counts, and may
    /// still be written.
    pub fn abort(mut self) -> Outcomes {
        let lanes = std::mem::take(&mut self.lanes);
        self.aborted.send_replace(true);
        self.handle.block_on(settle(lanes))
    }

    /// Waits for the outcome of every record.
    pub fn finish(mut self) -> Outcomes {
        self.hand_over();
        let lanes = std::mem::take(&mut self.lanes);
        let producer = self.producer.clone();
        self.handle.block_on(async move {
            // Sent without lingering; each record's own failure is found by its lane.
            let _ = producer.flush().await;
            settle(lanes).await
        })
    }
}

/// What the lanes' tasks come to, once nothing more is handed to them.
async fn settle(lanes: Vec<Option<Lane>>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for lane in lanes.into_iter().flatten() {
        drop(lane.sender);
        if let Ok(done) = lane.task.await {
            outcomes.merge(done);
        }
    }
    outcomes
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

impl Lane {
    fn hand_over(&mut self) {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        if !chunk.is_empty() {
            // The task ends only after this sender is gone.
            let _ = self.sender.blocking_send(chunk);
        }
    }
}

/// Waits for the deliveries of one partition, in order.
struct Collector {
    options: PumpOptions,
    tally: Arc<Tally>,
    outcomes: Outcomes,
    aborted: watch::Receiver<bool>,
}

impl Collector {
    async fn run(mut self, mut chunks: mpsc::Receiver<Vec<Sent>>) -> Outcomes {
        while let Some(chunk) = chunks.recv().await {
            // Due times of records settled since the clock was read last.
            let mut settled: Vec<Instant> = Vec::with_capacity(CHUNK);
            for next in chunk {
                let result = match next.delivery.try_result() {
                    Some(result) => result,
                    None => {
                        self.measure(&mut settled);
                        tokio::select! {
                            biased;
                            result = next.delivery => result,
                            // Also when the pump is gone without an end.
                            _ = self.aborted.wait_for(|aborted| *aborted) => continue,
                        }
                    }
                };
                self.count(next.tag, next.bytes, result, &mut settled, next.due);
            }
            self.measure(&mut settled);
        }
        self.outcomes
    }

    fn count(
        &mut self,
        tag: u64,
        bytes: u32,
        result: Result<RecordMetadata, Error>,
        settled: &mut Vec<Instant>,
        due: Instant,
    ) {
        match result {
            Ok(stored) => {
                self.outcomes.acknowledged += 1;
                self.outcomes.acknowledged_bytes += u64::from(bytes);
                self.outcomes.duplicates += u64::from(stored.duplicate);
                self.tally.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.tally
                    .acknowledged_bytes
                    .fetch_add(u64::from(bytes), Ordering::Relaxed);
                if self.options.keep_acks {
                    self.outcomes.acks.push(Ack {
                        tag,
                        partition: stored.partition,
                        offset: stored.offset,
                    });
                }
                settled.push(due);
            }
            Err(error) => {
                self.outcomes.failed += 1;
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
                self.outcomes.first_error.get_or_insert(error);
            }
        }
    }

    fn measure(&mut self, settled: &mut Vec<Instant>) {
        if settled.is_empty() {
            return;
        }
        let now = Instant::now();
        self.outcomes.last_ack = Some(now);
        if self.options.measure {
            for due in settled.iter() {
                self.outcomes
                    .latencies
                    .add(now.saturating_duration_since(*due));
            }
        }
        settled.clear();
    }
}
