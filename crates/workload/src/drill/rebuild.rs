//! `timberline drill rebuild`: a large replica is built anew under load, how fast that goes, and what producers feel of it.
//!
//! A topic of one partition is filled, and its beginning is trimmed, so that the log can't be sent from its first entry.
//! Then a load of fixed rate runs for a while on its own, and on while a broker that does not lead loses its replica with
//! its disk, or a fresh broker takes over from it. In the end the new replica is made the leader, and all is read from it.
//!
//! **What is measured**: the bytes of the log, as the leader has them when the rebuilding begins, over the time from the
//! start of the process, or of the move, until the replica is in sync; what the load adds meanwhile is not counted. The
//! latencies of the load run from when a record was due until its acknowledgement.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timberline_client::{Client, NewTopic, ProducerOptions, TopicInfo, TrimTarget};

use super::books::{Books, RECORDS_MAX, SIZE_MIN, Seen, recognize};
use super::load::{Load, Plan};
use super::tail::read_all;
use super::{REPLICAS, START_PATIENCE, TOPIC, wait_acknowledged, wait_done, wait_whole};
use crate::cluster::{Cluster, ClusterOptions};
use crate::error::{Error, Result};
use crate::latency::LatencySummary;
use crate::observer::{LOOK_EVERY, Observer};

/// The partition that is rebuilt.
const PARTITION: i32 = 0;
/// How long the rebuilding may take.
const REBUILD_PATIENCE: Duration = Duration::from_secs(900);
/// The load runs for so long before it is measured.
const WARM_UP: Duration = Duration::from_secs(3);
/// Segments of a log that is rebuilt, at least, so that most of it is sealed.
const SEGMENTS_MIN: u64 = 8;
/// Bounds of a segment, in bytes.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Records a second while the topic is filled: the producer's buffer is what holds them up.
const AS_FAST_AS_POSSIBLE: f64 = 1e12;

/// How the replica came to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebuildWay {
    /// A broker is killed and comes back with an empty directory.
    LostDisk,
    /// A broker joins and takes the replica over from another one.
    NewBroker,
}

/// How it is rehearsed.
#[derive(Clone, Debug)]
pub struct RebuildOptions {
    /// On which brokers; they are started for it, and ended with it.
    pub cluster: ClusterOptions,
    /// How.
    pub way: RebuildWay,
    /// Bytes of values that are to be rebuilt.
    pub size: u64,
    /// Bytes of values before those, that are trimmed.
    pub trimmed: u64,
    /// Bytes of values a second.
    pub rate: f64,
    /// Bytes of a value.
    pub record_size: usize,
    /// How long the load is measured on its own.
    pub before: Duration,
}

/// What happens, as it happens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RebuildEvent {
    /// The log is there.
    Filled {
        /// Clients' addresses.
        bootstrap: String,
        /// Where logs and data are.
        dir: PathBuf,
        /// The first offset there still is.
        log_start: i64,
        /// The bytes of the log.
        bytes: u64,
        /// How long that took.
        took: Duration,
    },
    /// The load was measured on its own; now the replica is built.
    Begun {
        /// On this broker.
        broker: i32,
        /// Latencies of the load.
        before: LatencySummary,
    },
    /// The replica is in sync.
    Rebuilt {
        /// How long it took.
        took: Duration,
        /// Latencies of the load meanwhile.
        during: LatencySummary,
    },
    /// The replica leads, and all is read from it.
    Reading {
        /// The broker that it is on.
        broker: i32,
    },
}

/// What it came to; the fields of `drill rebuild -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RebuildReport {
    /// Bytes of the log that was rebuilt.
    pub bytes: u64,
    /// The first offset of it.
    pub log_start: i64,
    /// How long the rebuilding took.
    pub rebuild_seconds: f64,
    /// MB a second (10⁶ bytes) of it.
    pub rebuild_mb_s: f64,
    /// Latencies of the load before, in milliseconds.
    pub before_ms: LatencySummary,
    /// The same while the replica was rebuilt.
    pub during_ms: LatencySummary,
    /// The 99th percentile of these to that of those.
    pub p99_ratio: f64,
    /// Records of the load that were acknowledged.
    pub acknowledged: u64,
    /// Records read from the new replica, the load's and older ones, each counted once.
    pub read: u64,
    /// Acknowledged, not trimmed, and not read.
    pub lost: u64,
    /// Times that a record was read again.
    pub duplicated: u64,
    /// Records that the producer gave up, or that were read altered or elsewhere.
    pub errors: u64,
    /// How long it all took.
    pub seconds: f64,
    /// The first error of a record; told beside the figures.
    #[serde(skip)]
    pub failure: Option<String>,
}

impl RebuildReport {
    /// Nothing is lost, doubled or wrong.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.errors == 0
    }
}

/// Rehearses it once. The brokers are killed when it ends or is dropped; their directory is left to the caller.
///
/// # Errors
/// The options make no sense, or it could not be gone through to its end.
pub async fn run(
    options: &RebuildOptions,
    mut tell: impl FnMut(RebuildEvent) + Send,
) -> Result<RebuildReport> {
    let begun = Instant::now();
    let fill = check(options)?;
    let mut report = RebuildReport::default();
    let mut stage = Stage::start(options).await?;
    let filled = stage.fill(&fill, options.trimmed, &mut tell).await?;
    report.bytes = filled.bytes;
    report.log_start = filled.log_start;

    let producer = ProducerOptions::default().linger(Duration::ZERO);
    let producer = stage.client.producer(producer).await?;
    producer.prepare(TOPIC).await?;
    let plan = Plan {
        rate: options.rate / options.record_size as f64,
        run: fill.run.wrapping_add(1),
        records: None,
        ..fill.clone()
    };
    let load = Load::start(producer.clone(), &plan);
    tokio::time::sleep(WARM_UP).await;
    wait_acknowledged(&mut stage.cluster, &load, Instant::now()).await?;
    load.gaps.take_latencies();
    tokio::time::sleep(options.before).await;
    report.before_ms = load.gaps.take_latencies().summary();

    let mut told = |broker| {
        tell(RebuildEvent::Begun {
            broker,
            before: report.before_ms,
        });
    };
    let (broker, took) = match options.way {
        RebuildWay::LostDisk => stage.lose_disk(&load, &mut told).await?,
        RebuildWay::NewBroker => stage.replace(&load, &mut told).await?,
    };
    report.during_ms = load.gaps.take_latencies().summary();
    report.rebuild_seconds = took.as_secs_f64();
    report.rebuild_mb_s = filled.bytes as f64 / 1e6 / took.as_secs_f64();
    report.p99_ratio = report.during_ms.p99 / report.before_ms.p99;
    tell(RebuildEvent::Rebuilt {
        took,
        during: report.during_ms,
    });
    wait_acknowledged(&mut stage.cluster, &load, Instant::now()).await?;

    let mut loaded = load.finish().await?;
    report.errors += loaded.failed;
    report.failure = loaded.first_error.map(|error| error.to_string());
    let _ = producer.close().await;
    stage.make_leader(broker).await?;
    tell(RebuildEvent::Reading { broker });
    let mut old = Old {
        run: fill.run,
        next: filled.log_start,
        end: filled.end,
        wrong: 0,
    };
    let books = loaded.books.first_mut().ok_or(Error::Invalid(
        "there are no books of the partition".to_owned(),
    ))?;
    read_all(&stage.client, TOPIC, 1, |_, offset, value| {
        if offset < old.end {
            old.read(value, offset);
        } else {
            books.read(value, offset);
        }
    })
    .await?;
    report.count(books, &old, filled.log_start);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

impl RebuildReport {
    fn count(&mut self, books: &Books, old: &Old, log_start: i64) {
        let verdict = books.verdict();
        self.acknowledged = verdict.acknowledged;
        self.read = verdict.read + (old.next - log_start) as u64;
        self.lost += verdict.lost + (old.end - old.next) as u64;
        self.duplicated += verdict.duplicated;
        self.errors += verdict.altered
            + verdict.misplaced
            + verdict.unknown
            + verdict.out_of_order
            + old.wrong;
    }
}

/// Returns what the topic is filled with.
fn check(options: &RebuildOptions) -> Result<Plan> {
    let invalid = |what: String| Err(Error::Invalid(what));
    if options.record_size < SIZE_MIN {
        return invalid(format!("a value has at least {SIZE_MIN} bytes"));
    }
    if options.cluster.brokers < REPLICAS {
        return invalid(format!("it takes at least {REPLICAS} brokers"));
    }
    let record = options.record_size as u64;
    if !options.rate.is_finite() || options.rate < record as f64 {
        return invalid("the rate must be at least a record a second".to_owned());
    }
    let records = options.trimmed / record + options.size / record;
    if options.size < record || records > RECORDS_MAX {
        return invalid(format!(
            "a log of 1 to {RECORDS_MAX} records can be rebuilt, not {records}"
        ));
    }
    Ok(Plan {
        topic: TOPIC.to_owned(),
        partitions: 1,
        rate: AS_FAST_AS_POSSIBLE,
        size: options.record_size,
        run: rand::random(),
        records: Some(records),
    })
}

/// The log that is to be rebuilt.
struct Filled {
    log_start: i64,
    end: i64,
    bytes: u64,
}

/// What is read of it: record N of the producer that filled it lies at offset N.
struct Old {
    run: u64,
    next: i64,
    end: i64,
    wrong: u64,
}

impl Old {
    fn read(&mut self, value: &[u8], offset: i64) {
        let expected = Seen::Record {
            partition: PARTITION,
            number: offset as u64,
        };
        if offset != self.next || recognize(self.run, value) != expected {
            self.wrong += 1;
            return;
        }
        self.next += 1;
    }
}

/// The cluster that it happens to.
struct Stage {
    cluster: Cluster,
    client: Client,
    observer: Observer,
}

impl Stage {
    async fn start(options: &RebuildOptions) -> Result<Stage> {
        let mut cluster = Cluster::start(&options.cluster)?;
        cluster.wait_ready(START_PATIENCE).await?;
        let client = Client::connect(cluster.client_options()).await?;
        let segment = (options.size / SEGMENTS_MIN).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let topic = NewTopic::new(TOPIC, 1)
            .replication_factor(REPLICAS as i32)
            .config("segment.bytes", segment.to_string());
        client.admin().create_topic(topic).await?;
        let observer = Observer::connect(cluster.client_options(), TOPIC).await?;
        Ok(Stage {
            cluster,
            client,
            observer,
        })
    }

    async fn fill(
        &mut self,
        plan: &Plan,
        trimmed: u64,
        tell: &mut (impl FnMut(RebuildEvent) + Send),
    ) -> Result<Filled> {
        let begun = Instant::now();
        let producer = self.client.producer(ProducerOptions::default()).await?;
        producer.prepare(TOPIC).await?;
        let mut loaded = Load::start(producer.clone(), plan).end().await?;
        let _ = producer.close().await;
        if let Some(error) = loaded.first_error.take() {
            return Err(error.into());
        }
        let before = (trimmed / plan.size as u64) as i64;
        if before > 0 {
            let target = TrimTarget {
                partition: PARTITION,
                before_offset: Some(before),
            };
            for outcome in self.client.admin().trim(TOPIC, &[target], false).await? {
                outcome.result.map_err(timberline_client::Error::from)?;
            }
        }
        wait_whole(&mut self.cluster, &self.observer, REPLICAS, START_PATIENCE).await?;
        let described = self.client.admin().describe_topic(TOPIC).await?;
        let Some(state) = described.partitions.first() else {
            return Err(Error::Invalid("nobody leads the partition".to_owned()));
        };
        let filled = Filled {
            log_start: state.log_start_offset,
            end: plan.records.unwrap_or_default() as i64,
            bytes: state.size_bytes as u64,
        };
        tell(RebuildEvent::Filled {
            bootstrap: self.cluster.bootstrap(),
            dir: self.home(),
            log_start: filled.log_start,
            bytes: filled.bytes,
            took: begun.elapsed(),
        });
        Ok(filled)
    }

    fn home(&self) -> PathBuf {
        let spec = self.cluster.specs().next();
        let home = spec.and_then(|spec| Some(spec.log.parent()?.parent()?.to_owned()));
        home.unwrap_or_default()
    }

    /// A broker that does not lead loses all it has. Returns which, and how long it took until its replica was there again.
    async fn lose_disk(
        &mut self,
        load: &Load,
        tell: &mut (impl FnMut(i32) + Send),
    ) -> Result<(i32, Duration)> {
        let (_, victim) = self.leader_and_other().await?;
        self.cluster.kill(victim)?;
        let spec = self.cluster.specs().find(|spec| spec.id == victim);
        if let Some(spec) = spec {
            std::fs::remove_dir_all(&spec.data_dir)
                .map_err(Error::io(format!("removing {}", spec.data_dir.display())))?;
        }
        // Or the replica that is gone could be taken for the new one.
        self.wait_for(|topic| !in_sync(topic, victim)).await?;
        load.gaps.take_latencies();
        tell(victim);
        let begun = Instant::now();
        self.cluster.restart(victim)?;
        self.cluster
            .process(victim)?
            .wait_ready(START_PATIENCE)
            .await?;
        self.wait_for(|topic| in_sync(topic, victim)).await?;
        Ok((victim, begun.elapsed()))
    }

    /// A broker joins and takes the place of one that does not lead, in its rack.
    async fn replace(
        &mut self,
        load: &Load,
        tell: &mut (impl FnMut(i32) + Send),
    ) -> Result<(i32, Duration)> {
        let (leader, old) = self.leader_and_other().await?;
        let rack = self.cluster.specs().find(|spec| spec.id == old);
        let rack = rack.and_then(|spec| spec.rack.clone());
        let joined = self.cluster.join(rack.as_deref())?;
        self.cluster.wait_ready(START_PATIENCE).await?;
        let topic = self.observer.look().await?;
        let mut replicas = vec![leader];
        if let Some(info) = topic.partitions.first() {
            let stay = info
                .replicas
                .iter()
                .filter(|id| ![leader, old].contains(id));
            replicas.extend(stay);
        }
        replicas.push(joined);
        load.gaps.take_latencies();
        tell(joined);
        let begun = Instant::now();
        let admin = self.client.admin();
        let operation = admin
            .move_partition(TOPIC, PARTITION, &replicas, false)
            .await?;
        wait_done(&self.client, "the move", operation).await?;
        self.wait_for(|topic| in_sync(topic, joined)).await?;
        Ok((joined, begun.elapsed()))
    }

    /// The leader of the partition, and another broker that has it.
    async fn leader_and_other(&self) -> Result<(i32, i32)> {
        let topic = self.observer.look().await?;
        let found = topic.partitions.first().and_then(|info| {
            let leader = info.leader_id?;
            let other = info.replicas.iter().rev().find(|id| **id != leader)?;
            Some((leader, *other))
        });
        found.ok_or_else(|| Error::Invalid("nobody leads the partition".to_owned()))
    }

    async fn make_leader(&mut self, broker: i32) -> Result<()> {
        let admin = self.client.admin();
        let led = |topic: &TopicInfo| {
            let info = topic.partitions.first();
            info.is_some_and(|info| info.leader_id == Some(broker))
        };
        admin
            .transfer_leader(TOPIC, PARTITION, Some(broker))
            .await?;
        self.wait_for(led).await
    }

    async fn wait_for(&mut self, done: impl Fn(&TopicInfo) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !self.observer.look().await.is_ok_and(|topic| done(&topic)) {
            self.cluster.check_alive()?;
            if begun.elapsed() > REBUILD_PATIENCE {
                return Err(Error::NotInSync {
                    after: REBUILD_PATIENCE,
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// The broker has the replica, and it is up to date.
fn in_sync(topic: &TopicInfo, broker: i32) -> bool {
    topic
        .partitions
        .first()
        .is_some_and(|info| info.in_sync.contains(&broker) && info.leader_id.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::books::value;
    use super::*;

    fn options() -> RebuildOptions {
        RebuildOptions {
            cluster: ClusterOptions::new("timberline", "dir", 3),
            way: RebuildWay::LostDisk,
            size: 1 << 20,
            trimmed: 1 << 19,
            rate: 1e6,
            record_size: 1024,
            before: Duration::ZERO,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(check(&options()).unwrap().records, Some(1536));
        let changes: [fn(&mut RebuildOptions); 5] = [
            |options| options.size = 0,
            |options| options.size = u64::MAX / 2,
            |options| options.rate = f64::NAN,
            |options| options.record_size = 3,
            |options| options.cluster.brokers = 2,
        ];
        for change in changes {
            let mut options = options();
            change(&mut options);
            assert!(matches!(check(&options), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn old_records_lie_where_their_numbers_say() {
        let filler = bytes::Bytes::from(vec![5; 100]);
        let mut old = Old {
            run: 7,
            next: 3,
            end: 6,
            wrong: 0,
        };
        for (number, offset) in [(3, 3), (4, 4), (4, 5)] {
            old.read(&value(7, 0, number, &filler), offset);
        }
        let mut report = RebuildReport::default();
        report.count(&Books::new(8, 0), &old, 3);
        assert_eq!((report.read, report.lost, report.errors), (2, 1, 1));
        assert!(!report.is_clean());
    }
}
