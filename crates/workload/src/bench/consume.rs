//! Reading as fast as it goes.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use timberline_client::{Client, Consumer, ConsumerOptions, Position};
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
    /// Where to begin.
    pub from: Position,
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
        let mut consumer = client
            .consumer(load.options.clone().verify_crc(true))
            .await?;
        for partition in (first..partitions).step_by(consumers) {
            consumer
                .assign(&load.topic, partition as i32, load.from)
                .await?;
        }
        let (goal, progress) = (Arc::clone(&goal), Arc::clone(&progress));
        let starved_after = load.starved_after;
        tasks.spawn(read(consumer, goal, progress, starved_after));
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

async fn read(
    mut consumer: Consumer,
    goal: Arc<Goal>,
    progress: Arc<AtomicU64>,
    starved_after: Duration,
) -> Result<Share> {
    let mut share = Share::default();
    loop {
        let reached = goal.reached.notified();
        if goal.read.load(Ordering::Relaxed) >= goal.wanted {
            return Ok(share);
        }
        let asked = Instant::now();
        let batch = tokio::select! {
            biased;
            batch = tokio::time::timeout(starved_after, consumer.recv_batch()) => batch,
            () = reached => continue,
        };
        let Ok(batch) = batch else {
            return Err(Error::Starved {
                read: goal.read.load(Ordering::Relaxed),
                wanted: goal.wanted,
                after: starved_after,
            });
        };
        let batch = batch?;
        share.latencies.add(asked.elapsed());
        let mut records = 0;
        for record in batch.records() {
            // The optimiser must not find out that nobody looks at it.
            let record = black_box(record?);
            share.bytes += record.value.as_ref().map_or(0, |value| value.len() as u64);
            records += 1;
        }
        share.records += records;
        share.last = Some(Instant::now());
        progress.fetch_add(records, Ordering::Relaxed);
        if goal.read.fetch_add(records, Ordering::Relaxed) + records >= goal.wanted {
            goal.reached.notify_waiters();
        }
    }
}
