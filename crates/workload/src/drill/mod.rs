//! `timberline drill`: a failure rehearsed under load, again and again, and what it cost.
//!
//! A cluster of processes is started, a topic of three replicas gets an open-loop load (`load`), and then each repetition
//! strikes: it kills or stops brokers, waits until every partition has acknowledged a record that was due after that,
//! starts the brokers again, waits until all replicas are up to date, and until every partition has acknowledged once more.
//! Last of all the topic is read from its beginning and compared with what was acknowledged (`books`).
//!
//! **What is measured** (`gaps`): the longest time between two acknowledgements that one partition saw within a
//! repetition, as the application sees it, the repetition's whole course included; a gap that is still open at the end
//! counts as long as it is. A load of R records a second over P partitions can't tell gaps below P/R seconds from none.
//!
//! A `resize` strikes nobody (`resize`), a `rebuild` has figures of its own ([`rebuild`]), and so have
//! the drills of consumer groups ([`group`]).
//!
//! What does not come back within a bound ends the drill; what was measured until then is reported with the failure.

mod books;
mod gaps;
pub mod group;
mod load;
pub mod rebuild;
mod resize;
mod tail;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timberline_client::{Client, NewTopic, Operation, OperationState, ProducerOptions, TopicInfo};

use crate::cluster::{Cluster, ClusterOptions};
use crate::error::{Error, Result};
use crate::ledger::Verdict;
use crate::observer::{LOOK_EVERY, Observer, is_whole, most_leading};
use books::Books;
pub use books::SIZE_MIN;
pub use gaps::{GapSummary, RoundGaps};
use load::{Load, Plan};
use tail::{Tail, ends_of, read_back};

/// The topic of a drill.
pub const TOPIC: &str = "drill";
/// Every partition gets at least so many records a second.
pub const PARTITION_RATE_MIN: f64 = 20.0;
/// Replicas of every partition, where there are brokers enough.
const REPLICAS: usize = 3;
/// How long brokers may take to form a cluster.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a partition may be without an acknowledgement before the drill gives up.
const SILENCE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a broker may take to stop when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long replicas may take to be up to date again.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(180);
/// How long a lost broker stays away.
const LOST_FOR: Duration = Duration::from_secs(10);
/// Between two looks at what is acknowledged.
const GLANCE_EVERY: Duration = Duration::from_millis(2);
/// How long an operation of the cluster may take.
const OPERATION_PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at it.
const OPERATION_EVERY: Duration = Duration::from_millis(50);
/// In every such repetition the broker struck is the one that leads the metadata.
const CONTROLLER_EVERY: u64 = 3;

/// What is rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillKind {
    /// `kill -9` of the broker that leads most partitions; every third time of the one that leads the metadata.
    LeaderKill,
    /// SIGTERM, broker after broker, as a rolling restart does.
    Handoff,
    /// `kill -9` of all brokers of a rack, rack after rack.
    RackLoss,
    /// As [`LeaderKill`](Self::LeaderKill), and the broker stays away for some seconds.
    BrokerLoss,
    /// Two brokers join, replicas move onto them, and two leave for good: the controller and the oldest other one first,
    /// then the youngest. All the time a consumer reads along.
    Resize,
}

impl DrillKind {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            DrillKind::LeaderKill => "leader-kill",
            DrillKind::Handoff => "handoff",
            DrillKind::RackLoss => "rack-loss",
            DrillKind::BrokerLoss => "broker-loss",
            DrillKind::Resize => "resize",
        }
    }
}

/// How it is rehearsed.
#[derive(Clone, Debug)]
pub struct DrillOptions {
    /// What.
    pub kind: DrillKind,
    /// On which brokers; they are started for it, and ended with it.
    pub cluster: ClusterOptions,
    /// Repetitions.
    pub times: u64,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Records a second in total; raised to 20 for each partition.
    pub rate: f64,
    /// Bytes of a value.
    pub size: usize,
}

/// What happens, as it happens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DrillEvent {
    /// The cluster is there and the load runs.
    Loaded {
        /// Clients' addresses.
        bootstrap: String,
        /// Where logs and data are.
        dir: PathBuf,
        /// Records a second.
        rate: f64,
    },
    /// Brokers were struck.
    Struck {
        /// The repetition, from 1.
        round: u64,
        /// Their numbers.
        brokers: Vec<i32>,
        /// One of them led the metadata.
        controller: bool,
    },
    /// Brokers joined, and replicas moved onto them.
    Grown {
        /// The repetition, from 1.
        round: u64,
        /// Their numbers.
        brokers: Vec<i32>,
        /// Replicas that moved.
        moves: usize,
        /// From the start of the first one until the last replica had moved.
        took: Duration,
    },
    /// Brokers have left the cluster.
    Shrunk {
        /// The repetition, from 1.
        round: u64,
        /// Their numbers.
        brokers: Vec<i32>,
        /// One of them led the metadata.
        controller: bool,
        /// From the first one's decommissioning until the last one was removed.
        took: Duration,
    },
    /// All is well again.
    Recovered {
        /// The repetition, from 1.
        round: u64,
        /// Its longest gaps.
        gaps: RoundGaps,
        /// From the strike until every partition was led by a broker that was not struck, if that was seen.
        last_leader: Option<Duration>,
        /// From the start of the brokers until all replicas were up to date.
        caught_up: Duration,
    },
    /// The load has ended; all is read back.
    Reading {
        /// Records acknowledged.
        acknowledged: u64,
    },
}

/// What a drill came to; the fields of `drill -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// Repetitions that were gone through to their end.
    pub times: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records read, each counted once.
    pub read: u64,
    /// Acknowledged and not read.
    pub lost: u64,
    /// Times that a record was read again.
    pub duplicated: u64,
    /// Records that the producer gave up, that were read altered, elsewhere or in another order than they were sent, or that
    /// nobody sent; and 1 for a drill that could not be gone through to its end.
    pub errors: u64,
    /// Over the repetitions, of the longest time between two acknowledgements that one partition saw.
    pub worst_partition_gap_ms: GapSummary,
    /// The same of any two acknowledgements.
    pub any_ack_gap_ms: GapSummary,
    /// From the strike until every partition was led by a broker that was not struck.
    pub last_leader_ms: GapSummary,
    /// From the start of the brokers until all replicas were up to date.
    pub caught_up_ms: GapSummary,
    /// How long it all took.
    pub seconds: f64,
    /// Why it was not gone through to its end, or the first error of a record; told beside the figures.
    #[serde(skip)]
    pub failure: Option<String>,
}

impl DrillReport {
    /// Nothing is lost, doubled or wrong.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.errors == 0
    }

    fn count(&mut self, verdict: &Verdict) {
        self.acknowledged += verdict.acknowledged;
        self.read += verdict.read;
        self.lost += verdict.lost;
        self.duplicated += verdict.duplicated;
        self.errors += verdict.altered + verdict.misplaced + verdict.unknown + verdict.out_of_order;
    }

    /// What a consumer that read along from the beginning saw; only what is wrong with it counts.
    fn count_along(&mut self, books: &[Books]) {
        for books in books {
            let verdict = Verdict {
                acknowledged: 0,
                read: 0,
                ..books.verdict()
            };
            self.count(&verdict);
        }
    }

    fn fail(&mut self, error: &Error) {
        self.errors += 1;
        self.failure.get_or_insert_with(|| error.to_string());
    }
}

/// Runs a drill. The brokers are killed when it ends or is dropped; their directory is left to the caller.
///
/// # Errors
/// It could not even begin: the options make no sense, or there is no cluster to strike. All that goes wrong later is in
/// the report.
pub async fn run(
    options: &DrillOptions,
    mut tell: impl FnMut(DrillEvent) + Send,
) -> Result<DrillReport> {
    let begun = Instant::now();
    let rate = check(options)?;
    let replicas = REPLICAS.min(options.cluster.brokers);
    let mut cluster = Cluster::start(&options.cluster)?;
    cluster.wait_ready(START_PATIENCE).await?;
    let client = Client::connect(cluster.client_options()).await?;
    let topic = NewTopic::new(TOPIC, options.partitions).replication_factor(replicas as i32);
    client.admin().create_topic(topic).await?;
    let observer = Observer::connect(cluster.client_options(), TOPIC).await?;
    let producer = client
        .producer(ProducerOptions::default().linger(Duration::ZERO))
        .await?;
    producer.prepare(TOPIC).await?;
    let plan = Plan {
        topic: TOPIC.to_owned(),
        partitions: options.partitions as usize,
        rate,
        size: options.size,
        run: rand::random(),
        records: None,
    };
    let along = match options.kind {
        DrillKind::Resize => Some(Tail::start(&client, TOPIC, plan.partitions, plan.run).await?),
        _ => None,
    };
    let load = Load::start(producer.clone(), &plan);
    tell(DrillEvent::Loaded {
        bootstrap: cluster.bootstrap(),
        dir: options.cluster.dir.clone(),
        rate,
    });
    let mut stage = Stage {
        cluster,
        client: client.clone(),
        observer,
        load: &load,
        replicas,
        kind: options.kind,
    };
    let mut rounds = Vec::new();
    let mut report = DrillReport::default();
    let mut unfinished = None;
    if let Err(error) = stage.rounds(options.times, &mut rounds, &mut tell).await {
        report.fail(&error);
        // The gap that ended it counts, open as it is.
        unfinished = Some(load.gaps.until(Instant::now()));
    }
    let cluster = stage.cluster;
    summarize(&mut report, &rounds, unfinished);
    match load.finish().await {
        Ok(mut loaded) => {
            report.errors += loaded.failed;
            if let Some(error) = loaded.first_error {
                report.failure.get_or_insert_with(|| error.to_string());
            }
            let _ = producer.close().await;
            let acknowledged = loaded.books.iter().map(Books::acknowledged_count).sum();
            tell(DrillEvent::Reading { acknowledged });
            if let Some(along) = along {
                let mut books = loaded.books.clone();
                match finish_tail(&client, along, &mut books).await {
                    Ok(()) => report.count_along(&books),
                    Err(error) => report.fail(&error),
                }
            }
            if let Err(error) = read_back(&client, TOPIC, &mut loaded.books).await {
                report.fail(&error);
            }
            for books in &loaded.books {
                report.count(&books.verdict());
            }
        }
        Err(error) => report.fail(&error),
    }
    drop(cluster);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

async fn finish_tail(client: &Client, tail: Tail, books: &mut [Books]) -> Result<()> {
    let ends = ends_of(client, TOPIC, books.len()).await?;
    for noted in tail.finish(ends).await? {
        if let Some(books) = books.get_mut(noted.partition as usize) {
            books.seen(noted.seen, noted.offset);
        }
    }
    Ok(())
}

/// Returns the rate to send at.
fn check(options: &DrillOptions) -> Result<f64> {
    let invalid = |what: String| Err(Error::Invalid(what));
    if options.times == 0 || options.partitions < 1 {
        return invalid("a drill has at least one repetition and one partition".to_owned());
    }
    if !options.rate.is_finite() || options.rate < 0.0 {
        return invalid("the rate must be a number of records a second".to_owned());
    }
    if options.size < SIZE_MIN {
        return invalid(format!("a value has at least {SIZE_MIN} bytes"));
    }
    if options.kind == DrillKind::Resize && options.cluster.brokers < REPLICAS {
        return invalid(format!(
            "a cluster that shrinks again has at least {REPLICAS} brokers"
        ));
    }
    let racks = &options.cluster.racks;
    if options.kind == DrillKind::RackLoss && racks.len() < 3 {
        return invalid(format!(
            "a rack can be lost where there are three, not {}: name them with --racks a,b,c",
            racks.len()
        ));
    }
    Ok(options
        .rate
        .max(PARTITION_RATE_MIN * f64::from(options.partitions)))
}

/// What one repetition cost.
#[derive(Clone, Copy, Debug)]
struct Round {
    gaps: RoundGaps,
    last_leader: Option<Duration>,
    caught_up: Duration,
}

fn summarize(report: &mut DrillReport, rounds: &[Round], unfinished: Option<RoundGaps>) {
    report.times = rounds.len() as u64;
    let gaps = || rounds.iter().map(|round| round.gaps).chain(unfinished);
    report.worst_partition_gap_ms = GapSummary::of(gaps().map(|gaps| gaps.worst));
    report.any_ack_gap_ms = GapSummary::of(gaps().map(|gaps| gaps.any));
    report.last_leader_ms = GapSummary::of(rounds.iter().filter_map(|round| round.last_leader));
    report.caught_up_ms = GapSummary::of(rounds.iter().map(|round| round.caught_up));
}

/// The cluster under load.
struct Stage<'a> {
    cluster: Cluster,
    client: Client,
    observer: Observer,
    load: &'a Load,
    replicas: usize,
    kind: DrillKind,
}

impl Stage<'_> {
    async fn rounds(
        &mut self,
        times: u64,
        rounds: &mut Vec<Round>,
        tell: &mut (impl FnMut(DrillEvent) + Send),
    ) -> Result<()> {
        self.wait_whole(START_PATIENCE).await?;
        self.wait_acknowledged(Instant::now()).await?;
        for round in 1..=times {
            let done = match self.kind {
                DrillKind::Resize => self.resize(round, tell).await?,
                _ => self.round(round, tell).await?,
            };
            tell(DrillEvent::Recovered {
                round,
                gaps: done.gaps,
                last_leader: done.last_leader,
                caught_up: done.caught_up,
            });
            rounds.push(done);
        }
        Ok(())
    }

    async fn round(
        &mut self,
        round: u64,
        tell: &mut (impl FnMut(DrillEvent) + Send),
    ) -> Result<Round> {
        let controller = self.observer.controller().await?;
        let topic = self.observer.look().await?;
        let victims = self.victims(round, &topic, controller)?;
        self.load.gaps.begin();
        let struck = Instant::now();
        let observer = self.observer.clone();
        let gone = victims.clone();
        let watching = tokio::spawn(async move {
            let until = struck + SILENCE_PATIENCE;
            observer.led_by_others_than(&gone, until).await
        });
        for &victim in &victims {
            match self.kind {
                DrillKind::Handoff => {
                    self.cluster.terminate(victim, STOP_PATIENCE).await?;
                }
                _ => self.cluster.kill(victim)?,
            }
        }
        tell(DrillEvent::Struck {
            round,
            controller: controller.is_some_and(|id| victims.contains(&id)),
            brokers: victims.clone(),
        });
        // Nobody is left to lead where all brokers were struck: they are started again at once.
        let survived = victims.len() < self.cluster.specs().count();
        if survived {
            self.wait_acknowledged(Instant::now()).await?;
        }
        let last_leader = match survived {
            true => watching.await?.map(|at| at - struck),
            false => {
                watching.abort();
                None
            }
        };
        if self.kind == DrillKind::BrokerLoss {
            tokio::time::sleep(LOST_FOR).await;
        }
        let started = Instant::now();
        for &victim in &victims {
            self.cluster.restart(victim)?;
        }
        for &victim in &victims {
            self.cluster
                .process(victim)?
                .wait_ready(START_PATIENCE)
                .await?;
        }
        self.wait_whole(CATCH_UP_PATIENCE).await?;
        let caught_up = started.elapsed();
        self.wait_acknowledged(Instant::now()).await?;
        Ok(Round {
            gaps: self.load.gaps.until(Instant::now()),
            last_leader,
            caught_up,
        })
    }

    fn victims(&self, round: u64, topic: &TopicInfo, controller: Option<i32>) -> Result<Vec<i32>> {
        let in_turn = |count: usize| ((round - 1) % count.max(1) as u64) as usize;
        let nobody = || Error::Invalid("nobody leads anything".to_owned());
        match self.kind {
            DrillKind::LeaderKill | DrillKind::BrokerLoss => {
                let chosen = match controller {
                    Some(controller) if round.is_multiple_of(CONTROLLER_EVERY) => Some(controller),
                    _ => most_leading(topic),
                };
                Ok(vec![chosen.ok_or_else(nobody)?])
            }
            DrillKind::Handoff => {
                let ids: Vec<_> = self.cluster.specs().map(|spec| spec.id).collect();
                Ok(vec![ids[in_turn(ids.len())]])
            }
            DrillKind::RackLoss => {
                let racks = self.cluster.racks();
                let rack = racks.get(in_turn(racks.len())).ok_or_else(nobody)?;
                Ok(self.cluster.of_rack(rack))
            }
            // Nobody is struck.
            DrillKind::Resize => Ok(Vec::new()),
        }
    }

    async fn wait_acknowledged(&mut self, since: Instant) -> Result<()> {
        wait_acknowledged(&mut self.cluster, self.load, since).await
    }

    async fn wait_whole(&mut self, patience: Duration) -> Result<()> {
        wait_whole(&mut self.cluster, &self.observer, self.replicas, patience).await
    }
}

/// Waits until every partition has acknowledged a record that was due after `since`.
async fn wait_acknowledged(cluster: &mut Cluster, load: &Load, since: Instant) -> Result<()> {
    loop {
        let silent = load.gaps.silent_since(since);
        if silent == 0 {
            return Ok(());
        }
        cluster.check_alive()?;
        if since.elapsed() > SILENCE_PATIENCE {
            return Err(Error::Silent {
                partitions: silent,
                after: SILENCE_PATIENCE,
            });
        }
        tokio::time::sleep(GLANCE_EVERY).await;
    }
}

/// Waits until all replicas of all partitions are there and up to date.
async fn wait_whole(
    cluster: &mut Cluster,
    observer: &Observer,
    replicas: usize,
    patience: Duration,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let seen = observer.look().await;
        if seen.as_ref().is_ok_and(|topic| is_whole(topic, replicas)) {
            return Ok(());
        }
        cluster.check_alive()?;
        if begun.elapsed() > patience {
            seen?;
            return Err(Error::NotInSync { after: patience });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until an operation is done.
async fn wait_done(client: &Client, what: &str, begun: Option<Operation>) -> Result<()> {
    let Some(mut operation) = begun else {
        return Ok(());
    };
    let since = Instant::now();
    while operation.state == OperationState::Running && since.elapsed() < OPERATION_PATIENCE {
        tokio::time::sleep(OPERATION_EVERY).await;
        operation = client.admin().operation(&operation.operation_id).await?;
    }
    if operation.state == OperationState::Done {
        return Ok(());
    }
    Err(Error::Operation {
        what: what.to_owned(),
        state: operation.state.as_str(),
        message: format!(
            "{} of {} are done; {}",
            operation.done, operation.total, operation.message
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: DrillKind) -> DrillOptions {
        DrillOptions {
            kind,
            cluster: ClusterOptions::new("timberline", "dir", 3),
            times: 1,
            partitions: 30,
            rate: 100.0,
            size: 100,
        }
    }

    #[test]
    fn every_partition_gets_its_share() {
        assert_eq!(check(&options(DrillKind::LeaderKill)).unwrap(), 600.0);
        let fast = DrillOptions {
            rate: 3000.0,
            ..options(DrillKind::Handoff)
        };
        assert_eq!(check(&fast).unwrap(), 3000.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let base = || options(DrillKind::RackLoss);
        let times = DrillOptions { times: 0, ..base() };
        let size = DrillOptions { size: 3, ..base() };
        let rate = DrillOptions {
            rate: f64::NAN,
            ..base()
        };
        let mut racks = base();
        racks.cluster.racks.truncate(2);
        for wrong in [times, size, rate, racks] {
            assert!(matches!(check(&wrong), Err(Error::Invalid(_))));
        }
    }

    #[test]
    fn the_fields_are_the_contract() {
        let mut report = DrillReport::default();
        let gaps = |ms| RoundGaps {
            worst: Duration::from_millis(ms),
            partition: 0,
            any: Duration::from_millis(ms / 2),
        };
        let round = |ms| Round {
            gaps: gaps(ms),
            last_leader: None,
            caught_up: Duration::ZERO,
        };
        summarize(&mut report, &[round(100)], Some(gaps(300)));
        let json = serde_json::to_value(&report).unwrap();
        for field in [
            "times",
            "acknowledged",
            "read",
            "lost",
            "duplicated",
            "errors",
        ] {
            assert!(json[field].is_u64(), "{field}");
        }
        assert_eq!(json["times"], 1);
        for (field, worst) in [("worst_partition_gap_ms", 300.0), ("any_ack_gap_ms", 150.0)] {
            assert_eq!(json[field]["max"], worst);
            assert!(json[field]["p50"].is_f64() && json[field]["p99"].is_f64());
        }
        assert!(report.is_clean());
        report.fail(&Error::NotInSync {
            after: Duration::ZERO,
        });
        assert!(!report.is_clean());
    }
}
