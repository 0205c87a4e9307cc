//! `timberline drill`.

mod group;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tempfile::TempDir;
use timberline_workload::drill::rebuild::{
    self, RebuildEvent, RebuildOptions, RebuildReport, RebuildWay,
};
use timberline_workload::drill::{
    self, DrillEvent, DrillKind, DrillOptions, DrillReport, GapSummary,
};
use timberline_workload::{ClusterOptions, LatencySummary};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::output::{Format, facts, print};
use crate::values::{parse_duration, parse_size};

/// Rehearse a failure under load on a cluster of its own, and report what it cost.
///
/// Brokers are started on free ports in a temporary directory, a topic of three replicas gets a steady load, and the
/// failure is repeated. Then all is read back and compared with what was acknowledged. Exit code 1 when anything is lost,
/// duplicated or failed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline drill leader-kill --times 20
  timberline drill leader-kill --times 200 --partitions 30 --rate 3000 -o json
  timberline drill handoff --times 6
  timberline drill rack-loss --times 3 --brokers 6 --racks a,b,c
  timberline drill resize --times 4 --partitions 12
  timberline drill rebuild --size 2GiB --rate 10MB
  timberline drill group-join --consumers 10 --partitions 900

A gap is the longest time between two acknowledgements that one partition saw within a repetition. With R records a second
over P partitions, gaps below P/R seconds can't be told from none.")]
pub(crate) struct DrillArgs {
    #[command(subcommand)]
    command: DrillCommand,
}

#[derive(Debug, Subcommand)]
enum DrillCommand {
    /// kill -9 of the broker that leads most partitions, every third time of the metadata's leader.
    LeaderKill(LoadArgs),
    /// Stop brokers gracefully, one after another, as a rolling restart does.
    Handoff(LoadArgs),
    /// kill -9 of all brokers of a rack, rack after rack.
    RackLoss(LoadArgs),
    /// kill -9 of a broker that stays away for some seconds.
    BrokerLoss(LoadArgs),
    /// Two brokers join, replicas move onto them, and two leave for good: old ones, then young ones.
    Resize(LoadArgs),
    Rebuild(RebuildArgs),
    GroupJoin(group::JoinArgs),
    GroupKill(group::KillArgs),
    CoordinatorKill(group::CoordinatorArgs),
}

/// A replica is built anew under load: how fast, and what producers feel of it.
///
/// A log is written, and its beginning is trimmed. Then a load runs, by itself and while a replica of that log is built on
/// a broker that lost its disk, or on a new one. The new replica is made the leader, and everything is read from it. The
/// latencies are those of the load, from when a record was due.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline drill rebuild --size 2GiB --rate 10MB
  timberline drill rebuild --size 2GiB --rate 10MB --by new-broker --trimmed 0")]
struct RebuildArgs {
    /// Bytes of the log that is to be rebuilt.
    #[arg(short, long, default_value = "256MiB", value_parser = parse_size, value_name = "SIZE")]
    size: usize,
    /// Bytes that are written before it, and trimmed.
    #[arg(long, default_value = "64MiB", value_parser = parse_size, value_name = "SIZE")]
    trimmed: usize,
    /// Bytes a second of the load.
    #[arg(short, long, default_value = "10MB", value_parser = parse_size, value_name = "SIZE")]
    rate: usize,
    /// Bytes of a value.
    #[arg(long, default_value = "1KiB", value_parser = parse_size, value_name = "SIZE")]
    record_size: usize,
    /// How long the load is measured by itself.
    #[arg(long, default_value = "20s", value_parser = parse_duration, value_name = "TIME")]
    before: Duration,
    /// What makes it necessary.
    #[arg(long, value_enum, default_value_t)]
    by: By,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum By {
    /// A broker comes back with an empty disk.
    #[default]
    LostDisk,
    /// A broker joins and takes the replica over.
    NewBroker,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// Repetitions.
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    times: u64,
    /// Partitions of the topic.
    #[arg(short, long, default_value_t = 30, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Records a second in total; at least 20 for each partition.
    #[arg(short, long, default_value_t = 1500.0)]
    rate: f64,
    /// Bytes of each value.
    #[arg(short, long, default_value = "100", value_parser = parse_size, value_name = "SIZE")]
    size: usize,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What every one of them takes.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// Number of brokers.
    #[arg(long, default_value_t = 3)]
    brokers: usize,
    /// Racks, dealt out to the brokers in turn.
    #[arg(
        long,
        default_value = "a,b,c",
        value_name = "RACK,…",
        value_delimiter = ','
    )]
    racks: Vec<String>,
    /// Where logs and data go, and stay; it must be empty [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How the result is printed; the story goes to standard error.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl PlaceArgs {
    fn cluster(self, dir: &Path) -> Result<ClusterOptions, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("finding this program: {error}")))?;
        let mut racks = self.racks;
        racks.truncate(self.brokers);
        Ok(ClusterOptions {
            racks,
            ..ClusterOptions::new(program, dir, self.brokers)
        })
    }
}

pub(crate) async fn run(args: DrillArgs) -> Result<(), Failure> {
    match args.command {
        DrillCommand::LeaderKill(args) => strike(DrillKind::LeaderKill, args).await,
        DrillCommand::Handoff(args) => strike(DrillKind::Handoff, args).await,
        DrillCommand::RackLoss(args) => strike(DrillKind::RackLoss, args).await,
        DrillCommand::BrokerLoss(args) => strike(DrillKind::BrokerLoss, args).await,
        DrillCommand::Resize(args) => strike(DrillKind::Resize, args).await,
        DrillCommand::Rebuild(args) => rebuild(args).await,
        DrillCommand::GroupJoin(args) => group::join(args).await,
        DrillCommand::GroupKill(args) => group::kill(args).await,
        DrillCommand::CoordinatorKill(args) => group::coordinator(args).await,
    }
}

async fn strike(kind: DrillKind, args: LoadArgs) -> Result<(), Failure> {
    let place = Place::new(args.place.dir.clone())?;
    let output = args.place.output;
    let options = DrillOptions {
        kind,
        cluster: args.place.cluster(place.path())?,
        times: args.times,
        partitions: args.partitions,
        rate: args.rate,
        size: args.size,
    };
    let story = |event: DrillEvent| tell(&told(&event));
    let report = match until_told(drill::run(&options, story)).await? {
        Ok(report) => report,
        Err(error) => return Err(place.blame(error.into())),
    };
    show(output, &report, || summary(kind, &report))?;
    if report.is_clean() {
        return Ok(());
    }
    let cause = match &report.failure {
        Some(failure) => failure.clone(),
        None => wrong(report.lost, report.duplicated, report.errors),
    };
    Err(place.blame(Failure::failed(cause)))
}

async fn rebuild(args: RebuildArgs) -> Result<(), Failure> {
    let place = Place::new(args.place.dir.clone())?;
    let output = args.place.output;
    let options = RebuildOptions {
        cluster: args.place.cluster(place.path())?,
        way: match args.by {
            By::LostDisk => RebuildWay::LostDisk,
            By::NewBroker => RebuildWay::NewBroker,
        },
        size: args.size as u64,
        trimmed: args.trimmed as u64,
        rate: args.rate as f64,
        record_size: args.record_size,
        before: args.before,
    };
    let story = |event: RebuildEvent| tell(&told_of_rebuild(&event));
    let report = match until_told(rebuild::run(&options, story)).await? {
        Ok(report) => report,
        Err(error) => return Err(place.blame(error.into())),
    };
    show(output, &report, || rebuild_summary(&report))?;
    if report.is_clean() {
        return Ok(());
    }
    let cause = match &report.failure {
        Some(failure) => failure.clone(),
        None => wrong(report.lost, report.duplicated, report.errors),
    };
    Err(place.blame(Failure::failed(cause)))
}

/// Runs a drill until its end, or until somebody ends it. Dropped in the middle, it takes its brokers with it.
async fn until_told<T>(drill: impl Future<Output = T>) -> Result<T, Failure> {
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure::failed(format!("listening for signals: {error}")))?;
    tokio::select! {
        ran = Box::pin(drill) => Ok(ran),
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        _ = terminate.recv() => Err(Failure::failed("terminated")),
    }
}

fn tell(story: &str) {
    // With standard error closed there is nobody to tell.
    let _ = io::stderr().write_all(story.as_bytes());
}

fn show(
    output: Format,
    report: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let value = serde_json::to_value(report)
        .map_err(|error| Failure::failed(format!("writing the result: {error}")))?;
    print(output, &value, text)
}

fn wrong(lost: u64, duplicated: u64, errors: u64) -> String {
    format!("{lost} lost, {duplicated} duplicated, {errors} errors")
}

/// Where the brokers of a drill have their logs and data.
enum Place {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Place {
    fn new(given: Option<PathBuf>) -> Result<Place, Failure> {
        let Some(dir) = given else {
            let dir = tempfile::Builder::new()
                .prefix("timberline-drill-")
                .tempdir();
            return dir.map(Place::Temporary).map_err(|error| {
                Failure::failed(format!("making a temporary directory: {error}"))
            });
        };
        let failed = |error: io::Error| Failure::failed(format!("{}: {error}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(failed)?;
        if std::fs::read_dir(&dir).map_err(failed)?.next().is_some() {
            return Err(Failure::usage(format!("{} is not empty", dir.display()))
                .next("A drill begins with nothing: name another --dir, or leave it out."));
        }
        let dir = std::path::absolute(&dir).map_err(failed)?;
        Ok(Place::Given(dir))
    }

    fn path(&self) -> &Path {
        match self {
            Place::Temporary(dir) => dir.path(),
            Place::Given(dir) => dir,
        }
    }

    /// Keeps what may tell why, and says where it is.
    fn blame(self, failure: Failure) -> Failure {
        let dir = match self {
            Place::Temporary(dir) => dir.keep(),
            Place::Given(dir) => dir,
        };
        failure.next(format!(
            "Logs and data of the brokers are in {}.",
            dir.display()
        ))
    }
}

fn told(event: &DrillEvent) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    match event {
        DrillEvent::Loaded {
            bootstrap,
            dir,
            rate,
        } => format!(
            "brokers at {bootstrap}, logs in {}; {rate:.0} records a second\n",
            dir.display()
        ),
        DrillEvent::Struck {
            round,
            brokers,
            controller,
        } => {
            format!(
                "{round:>4}  struck {}{}",
                listed(brokers),
                role(*controller)
            )
        }
        DrillEvent::Grown {
            round,
            brokers,
            moves,
            took,
        } => format!(
            "{round:>4}  {} joined, {moves} replicas moved in {:.0} ms",
            listed(brokers),
            ms(*took)
        ),
        DrillEvent::Shrunk {
            brokers,
            controller,
            took,
            ..
        } => format!(
            "; {}{} left in {:.0}",
            listed(brokers),
            role(*controller),
            ms(*took)
        ),
        DrillEvent::Recovered {
            gaps,
            last_leader,
            caught_up,
            ..
        } => {
            let led = last_leader.map_or(String::new(), |took| {
                format!(", all led by others after {:.0}", ms(took))
            });
            format!(
                ": gap {:.0} ms (partition {}), any {:.0}{led}, caught up in {:.0}\n",
                ms(gaps.worst),
                gaps.partition,
                ms(gaps.any),
                ms(*caught_up)
            )
        }
        DrillEvent::Reading { acknowledged } => {
            format!("reading {acknowledged} acknowledged records back\n")
        }
        _ => String::new(),
    }
}

fn listed(brokers: &[i32]) -> String {
    let brokers: Vec<_> = brokers.iter().map(i32::to_string).collect();
    brokers.join(", ")
}

fn role(controller: bool) -> &'static str {
    match controller {
        true => " (leads the metadata)",
        false => "",
    }
}

fn told_of_rebuild(event: &RebuildEvent) -> String {
    match event {
        RebuildEvent::Filled {
            bootstrap,
            dir,
            log_start,
            bytes,
            took,
        } => format!(
            "brokers at {bootstrap}, logs in {}; {:.0} MB from offset {log_start} on, written in {:.1} s\n",
            dir.display(),
            *bytes as f64 / 1e6,
            took.as_secs_f64()
        ),
        RebuildEvent::Begun { broker, before } => {
            format!(
                "before: {}\nbroker {broker} builds its replica\n",
                latencies(before)
            )
        }
        RebuildEvent::Rebuilt { took, during } => format!(
            "during: {}\nin sync after {:.1} s\n",
            latencies(during),
            took.as_secs_f64()
        ),
        RebuildEvent::Reading { broker } => format!("reading it back from broker {broker}\n"),
        _ => String::new(),
    }
}

fn latencies(of: &LatencySummary) -> String {
    format!(
        "p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.0} ms",
        of.p50, of.p90, of.p99, of.max
    )
}

fn rebuild_summary(report: &RebuildReport) -> String {
    facts(&[
        ("rebuilt", format!("{:.0} MB", report.bytes as f64 / 1e6)),
        ("took", format!("{:.1} s", report.rebuild_seconds)),
        ("rate", format!("{:.1} MB/s", report.rebuild_mb_s)),
        ("acknowledged before", latencies(&report.before_ms)),
        ("acknowledged meanwhile", latencies(&report.during_ms)),
        ("ratio of p99", format!("{:.2}", report.p99_ratio)),
        ("acknowledged", report.acknowledged.to_string()),
        ("read", report.read.to_string()),
        ("lost", report.lost.to_string()),
        ("duplicated", report.duplicated.to_string()),
        ("errors", report.errors.to_string()),
    ])
}

fn summary(kind: DrillKind, report: &DrillReport) -> String {
    let gaps = |gaps: &GapSummary| {
        format!(
            "p50 {:.0}, p99 {:.0}, max {:.0} ms",
            gaps.p50, gaps.p99, gaps.max
        )
    };
    facts(&[
        ("drill", format!("{} × {}", kind.as_str(), report.times)),
        (
            "worst partition's gap",
            gaps(&report.worst_partition_gap_ms),
        ),
        ("gap of all", gaps(&report.any_ack_gap_ms)),
        ("last leader after", gaps(&report.last_leader_ms)),
        ("caught up after", gaps(&report.caught_up_ms)),
        ("acknowledged", report.acknowledged.to_string()),
        ("read", report.read.to_string()),
        ("lost", report.lost.to_string()),
        ("duplicated", report.duplicated.to_string()),
        ("errors", report.errors.to_string()),
        ("took", format!("{:.1} s", report.seconds)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Place::new(Some(dir.path().join("new"))).is_ok());
        // It was made just now.
        assert!(Place::new(Some(dir.path().to_owned())).is_err());
    }
}
