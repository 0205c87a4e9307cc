//! `timberline drill`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use tempfile::TempDir;
use timberline_workload::ClusterOptions;
use timberline_workload::drill::{
    self, DrillEvent, DrillKind, DrillOptions, DrillReport, GapSummary,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::output::{Format, facts, print};
use crate::values::parse_size;

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

pub(crate) async fn run(args: DrillArgs) -> Result<(), Failure> {
    let (kind, args) = match args.command {
        DrillCommand::LeaderKill(args) => (DrillKind::LeaderKill, args),
        DrillCommand::Handoff(args) => (DrillKind::Handoff, args),
        DrillCommand::RackLoss(args) => (DrillKind::RackLoss, args),
        DrillCommand::BrokerLoss(args) => (DrillKind::BrokerLoss, args),
    };
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("finding this program: {error}")))?;
    let place = Place::new(args.dir.clone())?;
    let mut racks = args.racks;
    racks.truncate(args.brokers);
    let options = DrillOptions {
        kind,
        cluster: ClusterOptions {
            racks,
            ..ClusterOptions::new(program, place.path(), args.brokers)
        },
        times: args.times,
        partitions: args.partitions,
        rate: args.rate,
        size: args.size,
    };
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure::failed(format!("listening for signals: {error}")))?;
    let story = |event: DrillEvent| {
        // With standard error closed there is nobody to tell.
        let _ = io::stderr().write_all(told(&event).as_bytes());
    };
    // Dropped in the middle, it takes its brokers with it.
    let ran = tokio::select! {
        ran = Box::pin(drill::run(&options, story)) => ran,
        _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted")),
        _ = terminate.recv() => return Err(Failure::failed("terminated")),
    };
    let report = match ran {
        Ok(report) => report,
        Err(error) => return Err(place.blame(error.into())),
    };
    let value = serde_json::to_value(&report)
        .map_err(|error| Failure::failed(format!("writing the result: {error}")))?;
    print(args.output, &value, || summary(kind, &report))?;
    if report.is_clean() {
        return Ok(());
    }
    let cause = match &report.failure {
        Some(failure) => failure.clone(),
        None => format!(
            "{} lost, {} duplicated, {} errors",
            report.lost, report.duplicated, report.errors
        ),
    };
    Err(place.blame(Failure::failed(cause)))
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
            let brokers: Vec<_> = brokers.iter().map(i32::to_string).collect();
            let role = match controller {
                true => " (leads the metadata)",
                false => "",
            };
            format!("{round:>4}  struck {}{role}", brokers.join(", "))
        }
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
