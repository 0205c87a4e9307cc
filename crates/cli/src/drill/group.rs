//! `timberline drill group-join`, `group-kill`, `coordinator-kill`.

use std::time::Duration;

use clap::Args;
use timberline_workload::drill::GapSummary;
use timberline_workload::drill::group::{
    self, GroupDrillEvent, GroupDrillKind, GroupDrillOptions, GroupDrillReport,
};

use super::{Place, PlaceArgs, show, tell, until_told};
use crate::failure::Failure;
use crate::output::facts;
use crate::values::{parse_duration, parse_size};

/// Consumers join a group: how soon all is read again, and whether what stays with its consumer stands still.
///
/// One consumer reads everything, then the others join. Measured from the start of the last one until every partition was read, by
/// the consumer that it came to, of a record sent after that.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline drill group-join
  timberline drill group-join --consumers 10 --partitions 900 --times 5 -o json")]
pub(super) struct JoinArgs {
    #[command(flatten)]
    group: GroupArgs,
    /// Consumers of the group.
    #[arg(short, long, default_value_t = 10)]
    consumers: usize,
    /// Partitions of the topic.
    #[arg(short, long, default_value_t = 90, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
}

/// Consumers of a group are killed, and leave: how soon others read what they had.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline drill group-kill --times 5
  timberline drill group-kill --session 1s -o json")]
pub(super) struct KillArgs {
    #[command(flatten)]
    group: GroupArgs,
    /// Consumers of the group.
    #[arg(short, long, default_value_t = 4)]
    consumers: usize,
    /// Partitions of the topic.
    #[arg(short, long, default_value_t = 30, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
}

/// The broker that coordinates a group is killed while its consumers commit: no commit is lost, no partition moves.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline drill coordinator-kill --times 10 -o json")]
pub(super) struct CoordinatorArgs {
    #[command(flatten)]
    group: GroupArgs,
    /// Consumers of the group.
    #[arg(short, long, default_value_t = 3)]
    consumers: usize,
    /// Partitions of the topic.
    #[arg(short, long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
}

/// What every one of them takes.
#[derive(Debug, Args)]
struct GroupArgs {
    /// Repetitions.
    #[arg(short = 'n', long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    times: u64,
    /// Records a second in total; at least 1 for each partition. A figure can't be finer than partitions by rate.
    #[arg(short, long, default_value_t = 1000.0)]
    rate: f64,
    /// Bytes of each value.
    #[arg(short, long, default_value = "100", value_parser = parse_size, value_name = "SIZE")]
    size: usize,
    /// How long a consumer may be silent before others get what it has [default: 10s; of group-kill, which waits for it, 3s].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    session: Option<Duration>,
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) async fn join(args: JoinArgs) -> Result<(), Failure> {
    let kind = GroupDrillKind::GroupJoin;
    run(kind, args.group, args.consumers, args.partitions).await
}

pub(super) async fn kill(args: KillArgs) -> Result<(), Failure> {
    let kind = GroupDrillKind::GroupKill;
    run(kind, args.group, args.consumers, args.partitions).await
}

pub(super) async fn coordinator(args: CoordinatorArgs) -> Result<(), Failure> {
    let kind = GroupDrillKind::CoordinatorKill;
    run(kind, args.group, args.consumers, args.partitions).await
}

async fn run(
    kind: GroupDrillKind,
    args: GroupArgs,
    consumers: usize,
    partitions: i32,
) -> Result<(), Failure> {
    let place = Place::new(args.place.dir.clone())?;
    let output = args.place.output;
    let options = GroupDrillOptions {
        kind,
        cluster: args.place.cluster(place.path())?,
        times: args.times,
        consumers,
        partitions,
        rate: args.rate,
        size: args.size,
        session: args.session.unwrap_or(match kind {
            GroupDrillKind::GroupKill => Duration::from_secs(3),
            GroupDrillKind::GroupJoin | GroupDrillKind::CoordinatorKill => Duration::from_secs(10),
        }),
    };
    let story = |event: GroupDrillEvent| tell(&told(&event));
    let report = match until_told(group::run(&options, story)).await? {
        Ok(report) => report,
        Err(error) => return Err(place.blame(error.into())),
    };
    show(output, &report, || summary(kind, &report))?;
    if report.is_clean() {
        return Ok(());
    }
    let cause = match &report.failure {
        Some(failure) => failure.clone(),
        None => format!(
            "{} lost, {} commits moved back, {} errors",
            report.lost,
            report.moved_back.unwrap_or(0),
            report.errors
        ),
    };
    Err(place.blame(Failure::failed(cause)))
}

fn told(event: &GroupDrillEvent) -> String {
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    match event {
        GroupDrillEvent::Loaded { bootstrap, dir } => {
            format!("brokers at {bootstrap}, logs in {}\n", dir.display())
        }
        GroupDrillEvent::Joined {
            round,
            took,
            paused,
        } => format!(
            "{round:>4}  all read {:.0} ms after the last consumer came; {paused} that stayed stood still\n",
            ms(took)
        ),
        GroupDrillEvent::TakenOver {
            round,
            killed,
            took,
        } => {
            let what = if *killed { "was killed" } else { "left" };
            format!(
                "{round:>4}  a consumer {what}; others read on after {:.0} ms\n",
                ms(took)
            )
        }
        GroupDrillEvent::Coordinated { round, broker, gap } => format!(
            "{round:>4}  killed {broker}, which coordinated; longest time without a commit {:.0} ms\n",
            ms(gap)
        ),
        GroupDrillEvent::Reading { acknowledged } => {
            format!("{acknowledged} records are acknowledged; the consumers read the rest\n")
        }
        _ => String::new(),
    }
}

fn summary(kind: GroupDrillKind, report: &GroupDrillReport) -> String {
    let gaps = |gaps: &GapSummary| {
        format!(
            "p50 {:.0}, p99 {:.0}, max {:.0} ms",
            gaps.p50, gaps.p99, gaps.max
        )
    };
    let mut lines = vec![
        ("drill", format!("{} × {}", kind.as_str(), report.times)),
        (
            "group",
            format!(
                "{} consumers, {} partitions, session {} ms",
                report.consumers, report.partitions, report.session_timeout_ms
            ),
        ),
    ];
    let mut add = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    add(
        "all read again after",
        report.last_join_to_all_consumed_ms.as_ref().map(gaps),
    );
    add(
        "stayed and stood still",
        report.paused_partitions.map(|paused| {
            let unmoved = report.unmoved_partitions.unwrap_or(0);
            format!("{paused} of {unmoved} partitions")
        }),
    );
    add(
        "stayed, furthest behind",
        report.worst_unmoved_ms.as_ref().map(gaps),
    );
    let takeovers = report.takeover_ms.as_ref();
    add(
        "read on after a kill",
        takeovers.map(|took| gaps(&took.kill)),
    );
    add(
        "read on after a leave",
        takeovers.map(|took| gaps(&took.leave)),
    );
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    add("commits", number(report.commits));
    add("commits lost", number(report.lost_commits));
    add("commits moved back", number(report.moved_back));
    add("partitions that moved", number(report.moved_partitions));
    add(
        "longest without a commit",
        report.worst_commit_gap_ms.as_ref().map(gaps),
    );
    lines.extend([
        ("acknowledged", report.acknowledged.to_string()),
        ("read", report.read.to_string()),
        ("lost", report.lost.to_string()),
        ("read again", report.duplicated.to_string()),
        ("errors", report.errors.to_string()),
        ("took", format!("{:.1} s", report.seconds)),
    ]);
    facts(&lines)
}
