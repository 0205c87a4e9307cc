//! `timberline group`: consumer groups, their members, where they stand, and how far they are behind.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use clap_complete::ArgValueCandidates;
use serde_json::{Value, json};
use timberline_client::{
    Admin, ApiError, GroupDescription, GroupMember, GroupPartition, GroupSummary, Reason,
    ResetOutcome, ResetTarget, ResetTo, TopicPartition, TopicSelection,
};

use crate::complete::{groups, topics};
use crate::confirm::confirm;
use crate::connect::AdminArgs;
use crate::failure::Failure;
use crate::output::{columns, facts, print};
use crate::values::{From, count, parse_duration, parse_from, show_time};

/// Consumer groups: look at them, move them, delete them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline group list
  timberline group lag billing --watch
  timberline group seek billing --to -1h --dry-run
  timberline consume orders --group billing")]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    List(ListArgs),
    Describe(DescribeArgs),
    Lag(LagArgs),
    Seek(SeekArgs),
    Delete(DeleteArgs),
}

/// List the groups.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline group list\n  timberline group list --prefix team-a. -o json | jq -r '.[].group'"
)]
struct ListArgs {
    /// Only groups whose id begins with this.
    #[arg(long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    common: AdminArgs,
}

/// Show a group: state, members, what each holds; with -o wide also where it stands.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline group describe billing\n  timberline group describe billing -o wide"
)]
struct DescribeArgs {
    #[arg(add = ArgValueCandidates::new(groups))]
    group: String,
    #[command(flatten)]
    common: AdminArgs,
}

/// Show how far a group is behind, partition by partition.
///
/// LAG counts records from the committed offset to the end; AGE is how old the first of them is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline group lag billing
  timberline group lag billing --watch --every 5s
  timberline group lag billing -o json | jq 'map(.lag) | add'")]
struct LagArgs {
    #[arg(add = ArgValueCandidates::new(groups))]
    group: String,
    /// Only this topic.
    #[arg(long, add = ArgValueCandidates::new(topics))]
    topic: Option<String>,
    /// Only partitions that are behind.
    #[arg(long)]
    behind: bool,
    /// Show it again and again, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// With --watch: how often.
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "TIME", requires = "watch")]
    every: Duration,
    #[command(flatten)]
    common: AdminArgs,
}

/// Move where a group goes on. It must have no members; one that is not there yet begins so.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").required(true).args(["to", "by"]))]
#[command(after_help = "\
Examples:
  timberline group seek billing --to beginning --dry-run
  timberline group seek billing --topic orders --to -1h
  timberline group seek billing --topic orders --partition 3 --to 150000
  timberline group seek billing --by -100

TO is beginning, end, an offset, or a time: RFC 3339 with a zone, @UNIX_MS, or a span ago such as -15m.")]
struct SeekArgs {
    #[arg(add = ArgValueCandidates::new(groups))]
    group: String,
    /// Where to: beginning, end, OFFSET or TIME.
    #[arg(long, value_name = "TO", value_parser = parse_from, allow_hyphen_values = true)]
    to: Option<From>,
    /// So many records further, or back, from where it stands.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    by: Option<i64>,
    /// Only this topic; may be given again [default: all in which it has committed].
    #[arg(long = "topic", value_name = "TOPIC", add = ArgValueCandidates::new(topics))]
    topics: Vec<String>,
    /// Only these partitions, separated by commas.
    #[arg(
        long = "partition",
        value_name = "N,…",
        value_delimiter = ',',
        requires = "topics"
    )]
    partitions: Vec<i32>,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Delete a group without members, or what it has committed in a topic.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline group delete billing
  timberline group delete billing --topic orders --yes")]
struct DeleteArgs {
    #[arg(add = ArgValueCandidates::new(groups))]
    group: String,
    /// Only forget what is committed in this topic; no member may be subscribed to it.
    #[arg(long, add = ArgValueCandidates::new(topics))]
    topic: Option<String>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for the group's id.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    common: AdminArgs,
}

pub(crate) async fn run(args: GroupArgs) -> Result<(), Failure> {
    match args.command {
        GroupCommand::List(args) => list(args).await,
        GroupCommand::Describe(args) => describe(args).await,
        GroupCommand::Lag(args) => lag(args).await,
        GroupCommand::Seek(args) => seek(args).await,
        GroupCommand::Delete(args) => delete(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let listed = args.common.admin().await?.list_groups(&args.prefix).await?;
    let value = |group: &GroupSummary| {
        json!({
            "group": group.group,
            "state": group.state.as_str(),
            "assignor": group.assignor,
            "members": group.members,
            "coordinator": group.coordinator_id,
        })
    };
    let values = listed.groups.iter().map(value).collect();
    print(args.common.output, &values, || {
        let row = |group: &GroupSummary| {
            vec![
                group.group.clone(),
                group.state.as_str().to_owned(),
                group.members.to_string(),
                group.assignor.clone(),
                group.coordinator_id.to_string(),
            ]
        };
        let headers = ["GROUP", "STATE", "MEMBERS", "ASSIGNOR", "COORDINATOR"];
        let rows = listed.groups.iter().map(row).collect();
        columns(&headers, &["MEMBERS", "COORDINATOR"], rows)
    })?;
    match listed.errors.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(Failure::from(timberline_client::Error::from(error))
            .while_doing("not all coordinators answered, groups may be missing")),
    }
}

fn partition_value(one: &GroupPartition) -> Value {
    let mut value = json!({
        "topic": one.topic,
        "partition": one.partition,
        "member": one.member_id,
        "committed": one.committed,
        "committed_at_ms": one.committed_at_ms,
        "metadata": one.metadata,
        "log_start": one.log_start,
        "end": one.end,
        "lag": one.lag,
        "lag_ms": one.lag_time.map(|time| time.as_millis() as u64),
    });
    if let Some(error) = &one.error {
        value["error"] = error.message.as_str().into();
        value["reason"] = error.reason.map(|reason| reason.as_str()).into();
    }
    value
}

fn by_topic(parts: &[TopicPartition]) -> BTreeMap<&str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for one in parts {
        topics.entry(&one.topic).or_default().push(one.partition);
    }
    topics
}

fn member_value(member: &GroupMember) -> Value {
    json!({
        "member": member.member_id,
        "instance": member.instance_id,
        "client": member.client_id,
        "address": member.client_address,
        "rack": member.rack,
        "epoch": member.epoch,
        "connected": member.connected,
        "session_timeout_ms": member.session_timeout.as_millis() as u64,
        "topics": member.topics,
        "topic_pattern": member.topic_pattern,
        "assigned": by_topic(&member.assigned),
        "target": by_topic(&member.target),
    })
}

fn group_value(group: &GroupDescription) -> Value {
    json!({
        "group": group.group,
        "state": group.state.as_str(),
        "assignor": group.assignor,
        "epoch": group.epoch,
        "coordinator": group.coordinator_id,
        "members": group.members.iter().map(member_value).collect::<Vec<_>>(),
        "partitions": group.partitions.iter().map(partition_value).collect::<Vec<_>>(),
    })
}

/// `orders 0-3,7`.
fn ranges(parts: &[TopicPartition]) -> String {
    let topics = by_topic(parts).into_iter().map(|(topic, mut numbers)| {
        numbers.sort_unstable();
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => runs.push((number, number)),
            }
        }
        let runs = runs.into_iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        format!("{topic} {}", runs.collect::<Vec<_>>().join(","))
    });
    topics.collect::<Vec<_>>().join("  ")
}

async fn describe(args: DescribeArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let group = admin.describe_group(&args.group, true).await?;
    let wide = args.common.output.is_wide();
    print(args.common.output, &group_value(&group), || {
        group_text(&group, wide)
    })
}

fn group_text(group: &GroupDescription, wide: bool) -> String {
    let lag: i64 = group.partitions.iter().filter_map(|one| one.lag).sum();
    let mut text = facts(&[
        ("group", group.group.clone()),
        ("state", group.state.as_str().to_owned()),
        ("assignor", group.assignor.clone()),
        ("coordinator", format!("broker {}", group.coordinator_id)),
        ("members", group.members.len().to_string()),
        ("partitions", group.partitions.len().to_string()),
        ("lag", lag.to_string()),
    ]);
    if !group.members.is_empty() {
        let mut headers = vec!["MEMBER", "CLIENT", "ADDRESS", "CONNECTED", "HOLDS"];
        if wide {
            headers.extend(["INSTANCE", "RACK", "EPOCH", "IS TO HOLD"]);
        }
        let row = |member: &GroupMember| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let mut row = vec![
                member.member_id.clone(),
                member.client_id.clone(),
                member.client_address.clone(),
                if member.connected { "yes" } else { "no" }.to_owned(),
                ranges(&member.assigned),
            ];
            if wide {
                row.extend([
                    or_none(&member.instance_id),
                    or_none(&member.rack),
                    member.epoch.to_string(),
                    ranges(&member.target),
                ]);
            }
            row
        };
        let rows = group.members.iter().map(row).collect();
        text.push('\n');
        text.push_str(&columns(&headers, &["EPOCH"], rows));
    }
    if wide && !group.partitions.is_empty() {
        text.push('\n');
        let all: Vec<&GroupPartition> = group.partitions.iter().collect();
        text.push_str(&lag_table(&all));
    }
    text
}

fn lag_table(partitions: &[&GroupPartition]) -> String {
    let number = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    let row = |one: &&GroupPartition| {
        let age = one.lag_time.map(|time| {
            // What is younger than a second is not told apart from one look to the next.
            let shown = match time.as_secs() {
                0 => Duration::from_millis(time.as_millis() as u64),
                seconds => Duration::from_secs(seconds),
            };
            humantime::format_duration(shown).to_string()
        });
        vec![
            one.topic.clone(),
            one.partition.to_string(),
            number(one.committed),
            number(one.end),
            match &one.error {
                Some(error) => error
                    .reason
                    .map_or("error", |reason| reason.as_str())
                    .to_owned(),
                None => number(one.lag),
            },
            age.unwrap_or_else(|| "-".to_owned()),
            one.committed_at_ms.map_or("-".to_owned(), show_time),
            one.member_id.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let headers = [
        "TOPIC",
        "PARTITION",
        "COMMITTED",
        "END",
        "LAG",
        "AGE",
        "COMMITTED AT",
        "MEMBER",
    ];
    columns(
        &headers,
        &headers[1..6],
        partitions.iter().map(row).collect(),
    )
}

async fn lag(args: LagArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    loop {
        show_lag(&admin, &args).await?;
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn show_lag(admin: &Admin, args: &LagArgs) -> Result<(), Failure> {
    let group = admin.describe_group(&args.group, true).await?;
    let wanted = |one: &&GroupPartition| {
        let topic = args.topic.as_ref().is_none_or(|topic| one.topic == *topic);
        topic && (!args.behind || one.lag != Some(0))
    };
    if let Some(topic) = &args.topic
        && !group.partitions.iter().any(|one| one.topic == *topic)
    {
        let why = format!(
            "group {} neither reads {topic} nor has committed in it",
            args.group
        );
        return Err(Failure::failed(why).next(format!(
            "See what it reads with `timberline group lag {}`.",
            args.group
        )));
    }
    let shown: Vec<&GroupPartition> = group.partitions.iter().filter(wanted).collect();
    let values = shown.iter().map(|one| partition_value(one)).collect();
    print(args.common.output, &values, || {
        let lag: i64 = shown.iter().filter_map(|one| one.lag).sum();
        let end = match args.watch {
            true => "\n",
            false => "",
        };
        format!(
            "{}{} behind in {}, group {}\n{end}",
            lag_table(&shown),
            count(lag, "record"),
            count(shown.len(), "partition"),
            group.state.as_str(),
        )
    })
}

async fn seek(args: SeekArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let to = match (args.to, args.by) {
        (Some(From::Beginning), _) => ResetTo::Earliest,
        (Some(From::End), _) => ResetTo::Latest,
        (Some(From::Offset(offset)), _) => ResetTo::Offset(offset),
        (Some(From::Time(ms)), _) => ResetTo::Timestamp(ms),
        (None, Some(by)) => ResetTo::ShiftBy(by),
        (None, None) => return Err(Failure::usage("say --to where, or --by how much")),
    };
    let targets = targets(&admin, &args, to).await?;
    let outcomes = admin
        .reset_group_offsets(&args.group, &targets, args.dry_run)
        .await?;
    let value = |one: &ResetOutcome| {
        let mut value = json!({
            "topic": one.topic,
            "partition": one.partition,
            "before": one.before,
            "offset": one.result.as_ref().ok(),
            "changed": one.result.is_ok() && !args.dry_run,
        });
        if let Err(error) = &one.result {
            value["error"] = error.message.as_str().into();
            value["reason"] = error.reason.map(|reason| reason.as_str()).into();
        }
        value
    };
    let values = outcomes.iter().map(value).collect();
    print(args.common.output, &values, || {
        let row = |one: &ResetOutcome| {
            vec![
                one.topic.clone(),
                one.partition.to_string(),
                one.before
                    .map_or("-".to_owned(), |offset| offset.to_string()),
                match &one.result {
                    Ok(offset) => offset.to_string(),
                    Err(error) => error.to_string(),
                },
            ]
        };
        let after = if args.dry_run { "WOULD BE" } else { "NOW" };
        let headers = ["TOPIC", "PARTITION", "BEFORE", after];
        columns(&headers, &headers[1..], outcomes.iter().map(row).collect())
    })?;
    let failed = outcomes.into_iter().find_map(|one| one.result.err());
    failed.map_or(Ok(()), |error| Err(failure_of(error)))
}

fn failure_of(error: ApiError) -> Failure {
    timberline_client::Error::from(error).into()
}

/// Which partitions are moved: those named, or all in which the group has committed.
async fn targets(admin: &Admin, args: &SeekArgs, to: ResetTo) -> Result<Vec<ResetTarget>, Failure> {
    if !args.topics.is_empty() {
        let target = |topic: &String| ResetTarget {
            topic: topic.clone(),
            partitions: args.partitions.clone(),
            to,
        };
        return Ok(args.topics.iter().map(target).collect());
    }
    let committed = match admin.group_offsets(&args.group, &[]).await {
        Err(error) if error.reason() == Some(Reason::UnknownGroup) => Vec::new(),
        answer => answer?,
    };
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for one in committed.into_iter().filter(|one| !one.topic.is_empty()) {
        topics.entry(one.topic).or_default().push(one.partition);
    }
    if topics.is_empty() {
        return Err(Failure::failed(format!(
            "group {} has committed nothing, so nothing says which topics are meant",
            args.group
        ))
        .next("Name them with --topic."));
    }
    let target = |(topic, partitions)| ResetTarget {
        topic,
        partitions,
        to,
    };
    Ok(topics.into_iter().map(target).collect())
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    // What can't be done is told before anybody is asked to type.
    let group = admin.describe_group(&args.group, false).await?;
    if let Some(topic) = &args.topic {
        return delete_offsets(&admin, &args, &group, topic).await;
    }
    if !group.members.is_empty() {
        let members = count(group.members.len(), "member");
        let error = ApiError::new(
            Reason::GroupNotEmpty,
            format!("group {} has {members}", args.group),
        );
        return Err(failure_of(error));
    }
    if !args.dry_run {
        if !args.yes {
            confirm("group's id", &args.group, "delete it and where it stands")?;
        }
        admin.delete_group(&args.group).await?;
    }
    let value = json!({"group": args.group, "deleted": !args.dry_run});
    print(args.common.output, &value, || {
        format!("{} {}\n", done(args.dry_run), args.group)
    })
}

fn done(dry_run: bool) -> &'static str {
    match dry_run {
        true => "would delete",
        false => "deleted",
    }
}

async fn delete_offsets(
    admin: &Admin,
    args: &DeleteArgs,
    group: &GroupDescription,
    topic: &str,
) -> Result<(), Failure> {
    let committed = group.partitions.iter();
    let committed = committed.filter(|one| one.topic == topic && one.committed.is_some());
    let mut forgotten: Vec<i32> = committed.map(|one| one.partition).collect();
    if !args.dry_run {
        if !args.yes {
            confirm(
                "group's id",
                &args.group,
                &format!("forget where it stands in {topic}"),
            )?;
        }
        let selection = [TopicSelection::all(topic)];
        let outcomes = admin.delete_group_offsets(&args.group, &selection).await?;
        if let Some(error) = outcomes.iter().find_map(|one| one.error.clone()) {
            return Err(failure_of(error));
        }
        forgotten = outcomes.iter().map(|one| one.partition).collect();
    }
    let value = json!({
        "group": args.group,
        "topic": topic,
        "partitions": forgotten,
        "deleted": !args.dry_run,
    });
    print(args.common.output, &value, || {
        let offsets = count(forgotten.len(), "offset");
        let (done, group) = (done(args.dry_run), &args.group);
        format!("{done} {offsets} of {group} in {topic}\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_in_short() {
        let parts = |topic: &str, numbers: &[i32]| {
            let one = |number: &i32| TopicPartition::new(topic, *number);
            numbers.iter().map(one).collect::<Vec<_>>()
        };
        let mut all = parts("orders", &[7, 0, 1, 2, 9, 8]);
        all.extend(parts("audit", &[4]));
        assert_eq!(ranges(&all), "audit 4  orders 0-2,7-9");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn a_partition_in_json() {
        let one = GroupPartition {
            topic: "orders".to_owned(),
            partition: 3,
            committed: Some(5),
            end: Some(9),
            lag: Some(4),
            lag_time: Some(Duration::from_millis(1500)),
            ..GroupPartition::default()
        };
        let value = partition_value(&one);
        assert_eq!((&value["lag"], &value["lag_ms"]), (&4.into(), &1500.into()));
        assert_eq!(value["member"], Value::Null);
        assert!(value.get("error").is_none());
    }
}
