//! Reading as fast as it goes.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use timberline_client::{
    Client, ConsumedRecord, Consumer, ConsumerOptions, GroupConsumer, GroupOptions, Position,
    RecordBatch,
};
use tokio::sync::Notify;

use super::BenchReport;
use crate::error::{Error, Result};
use crate::latency::Latencies;

/// What to read.
#[derive(Clone, Debug)]
pub struct ConsumeLoad {
    /// The topic.
    pub topic: String,
    /// Records in total; `None`: those that are there at the start.
    pub records: Option<u64>,
    /// Where to begin; a group begins where it stands, a new one at the first record there is.
    pub from: Position,
    /// Read as members of this group, each with auto-commit; `None`: assigned by hand.
    pub group: Option<String>,
    /// Take the records one by one, and not in batches.
    pub one_by_one: bool,
    /// Consumers, each with connections of its own; partitions are dealt out among them. `None`: one for each core,
    /// at most one for each partition.
    pub consumers: Option<usize>,
    /// Prefetch and message sizes. Checksums are verified whatever it says.
    pub options: ConsumerOptions,
    /// Give up when no record came for this long.
    pub starved_after: Duration,
}

impl ConsumeLoad {
    /// `records` from the beginning.
    pub fn new(topic: impl Into<String>, records: Option<u64>) -> ConsumeLoad {
        ConsumeLoad {
            topic: topic.into(),
            records,
            from: Position::Earliest,
            group: None,
            one_by_one: false,
            consumers: None,
            options: ConsumerOptions::default(),
            starved_after: Duration::from_secs(30),
        }
    }
}

/// What the consumers share.
#[derive(Debug, Default)]
struct Goal {
    wanted: u64,
    read: AtomicU64,
    /// Wakes those who wait for records when there were enough.
    reached: Notify,
}

/// What one consumer did.
#[derive(Default)]
struct Share {
    records: u64,
    bytes: u64,
    latencies: Latencies,
    last: Option<Instant>,
}

/// Runs the load. `progress` counts records along.
///
/// # Errors
/// The topic does not exist; a batch is damaged; [`Error::Starved`].
pub async fn consume(
    client: &Client,
    load: &ConsumeLoad,
    progress: Arc<AtomicU64>,
) -> Result<BenchReport> {
    let partitions = client.metadata(&load.topic).await?.partitions.len();
    let wanted = match load.records {
        Some(0) => return Err(Error::Invalid("records must be at least 1".to_owned())),
        Some(records) => records,
        None => there_now(client, load, partitions).await?,
    };
    let goal = Arc::new(Goal {
        wanted,
        ..Goal::default()
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let consumers = load.consumers.unwrap_or(cores).clamp(1, partitions.max(1));
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..consumers {
        let fetch = load.options.clone().verify_crc(true);
        let source = match &load.group {
            Some(group) => {
                let options = GroupOptions::new(group).topics([&load.topic]).fetch(fetch);
                Source::Group(Box::new(client.group_consumer(options).await?))
            }
            None => {
                let mut consumer = client.consumer(fetch).await?;
                for partition in (first..partitions).step_by(consumers) {
                    consumer
                        .assign(&load.topic, partition as i32, load.from)
                        .await?;
                }
                Source::Assigned(Box::new(consumer))
            }
        };
        let reading = Reading {
            source,
            goal: Arc::clone(&goal),
            progress: Arc::clone(&progress),
            starved_after: load.starved_after,
            share: Share::default(),
        };
        tasks.spawn(reading.run(load.one_by_one));
    }
    let mut all = Share::default();
    while let Some(share) = tasks.join_next().await {
        let share = share??;
        all.records += share.records;
        all.bytes += share.bytes;
        all.latencies.merge(&share.latencies);
        all.last = all.last.max(share.last);
    }
    let took = all
        .last
        .map_or_else(|| begun.elapsed(), |last| last - begun);
    Ok(BenchReport::new(
        all.records,
        all.bytes,
        0,
        took,
        &all.latencies,
    ))
}

/// Records from the beginning of the load to the ends as they are now.
async fn there_now(client: &Client, load: &ConsumeLoad, partitions: usize) -> Result<u64> {
    let admin = client.admin();
    let at = |position| -> Vec<_> { (0..partitions as i32).map(|n| (n, position)).collect() };
    let ends = admin
        .list_offsets(&load.topic, &at(Position::Latest))
        .await?;
    let starts = admin.list_offsets(&load.topic, &at(load.from)).await?;
    let count = ends
        .iter()
        .zip(&starts)
        .map(|(end, start)| (end.offset - start.offset).max(0) as u64);
    match count.sum() {
        0 => Err(Error::Invalid(format!(
            "topic {} holds no records",
            load.topic
        ))),
        count => Ok(count),
    }
}

/// Where records come from.
enum Source {
    Assigned(Box<Consumer>),
    Group(Box<GroupConsumer>),
}

impl Source {
    async fn batch(&mut self) -> Result<RecordBatch, timberline_client::Error> {
        match self {
            Source::Assigned(consumer) => consumer.recv_batch().await,
            Source::Group(consumer) => consumer.recv_batch().await,
        }
    }

    async fn record(&mut self) -> Result<ConsumedRecord, timberline_client::Error> {
        match self {
            Source::Assigned(consumer) => consumer.recv().await,
            Source::Group(consumer) => consumer.recv().await,
        }
    }
}

struct Reading {
    source: Source,
    goal: Arc<Goal>,
    progress: Arc<AtomicU64>,
    starved_after: Duration,
    share: Share,
}

/// Records taken one by one that are counted at once.
const COUNTED_AT_ONCE: u64 = 256;

impl Reading {
    async fn run(mut self, one_by_one: bool) -> Result<Share> {
        let goal = Arc::clone(&self.goal);
        loop {
            let reached = goal.reached.notified();
            if goal.read.load(Ordering::Relaxed) >= goal.wanted {
                break;
            }
            let taken = async {
                match one_by_one {
                    true => self.take_records().await,
                    false => self.take_batch().await,
                }
            };
            tokio::select! {
                biased;
                taken = taken => taken?,
                () = reached => {}
            }
        }
        if let Source::Group(consumer) = self.source {
            consumer.close().await?;
        }
        Ok(self.share)
    }

    async fn take_batch(&mut self) -> Result<()> {
        let asked = Instant::now();
        let batch = tokio::time::timeout(self.starved_after, self.source.batch()).await;
        let batch = batch.map_err(|_| self.starved())??;
        self.share.latencies.add(asked.elapsed());
        let mut records = 0;
        for record in batch.records() {
            // The optimiser must not find out that nobody looks at it.
            let record = black_box(record?);
            self.share.bytes += record.value.as_ref().map_or(0, |value| value.len() as u64);
            records += 1;
        }
        self.count(records);
        Ok(())
    }

    async fn take_records(&mut self) -> Result<()> {
        let asked = Instant::now();
        let first = tokio::time::timeout(self.starved_after, self.source.record()).await;
        let mut record = first.map_err(|_| self.starved())??;
        self.share.latencies.add(asked.elapsed());
        let mut records = 0;
        loop {
            let taken = black_box(&record);
            self.share.bytes += taken.value.as_ref().map_or(0, |value| value.len() as u64);
            records += 1;
            if records == COUNTED_AT_ONCE {
                break;
            }
            match self.source.record().now_or_never() {
                Some(next) => record = next?,
                None => break,
            }
        }
        self.count(records);
        Ok(())
    }

    fn count(&mut self, records: u64) {
        self.share.records += records;
        self.share.last = Some(Instant::now());
        self.progress.fetch_add(records, Ordering::Relaxed);
        let goal = &self.goal;
        if goal.read.fetch_add(records, Ordering::Relaxed) + records >= goal.wanted {
            goal.reached.notify_waiters();
        }
    }

    fn starved(&self) -> Error {
        Error::Starved {
            read: self.goal.read.load(Ordering::Relaxed),
            wanted: self.goal.wanted,
            after: self.starved_after,
        }
    }
}
