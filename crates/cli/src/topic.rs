//! `timberline topic`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use serde_json::{Value, json};
use timberline_client::{
    ConfigChange, ConfigEntry, ConfigSource, NewTopic, PartitionInfo, PartitionState,
    TopicDescription, TopicInfo, TrimTarget,
};

use crate::complete::topics;
use crate::confirm::confirm;
use crate::connect::AdminArgs;
use crate::failure::Failure;
use crate::output::{columns, facts, print};
use crate::values::{count, parse_pair, show_size};

/// Create, look at, change and delete topics.
#[derive(Debug, Args)]
pub(crate) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    Create(CreateArgs),
    List(ListArgs),
    Describe(DescribeArgs),
    Config(ConfigArgs),
    AddPartitions(AddPartitionsArgs),
    Trim(TrimArgs),
    Delete(DeleteArgs),
}

/// Create a topic.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline topic create orders --partitions 12
  timberline topic create audit --partitions 3 --config retention.ms=-1 --config max.message.bytes=4194304")]
struct CreateArgs {
    /// 1 to 249 of a-z A-Z 0-9 . _ -
    topic: String,
    /// Partitions: the unit of order and of parallel reading.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Copies of each partition [default: the cluster's].
    #[arg(short, long, value_parser = clap::value_parser!(i32).range(1..))]
    replication_factor: Option<i32>,
    /// A key of the topic, as Kafka names it; may be given again.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    config: Vec<(String, String)>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// List the topics.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline topic list\n  timberline topic list -o json | jq -r '.[].name'"
)]
struct ListArgs {
    /// Also those that the cluster keeps for itself.
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Show a topic: partitions, offsets, sizes, configuration (-o wide).
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline topic describe orders\n  timberline topic describe orders -o wide"
)]
struct DescribeArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    #[command(flatten)]
    common: AdminArgs,
}

/// Show a topic's configuration, or change it: all changes or none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline topic config orders
  timberline topic config orders --set retention.ms=86400000 --reset segment.bytes")]
struct ConfigArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    /// Set a key; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
    /// Take a key back to its default; may be given again.
    #[arg(long, value_name = "KEY")]
    reset: Vec<String>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Raise the number of partitions. Keys go to other partitions from then on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  timberline topic add-partitions orders --total 24")]
struct AddPartitionsArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    /// Partitions there are to be in all.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    total: i32,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Delete the oldest records for good: those below an offset, or all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline topic trim orders --partition 3 --before 150000
  timberline topic trim orders --all --yes")]
#[command(group = clap::ArgGroup::new("where").required(true).args(["before", "all"]))]
struct TrimArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    /// Only these partitions; separated by commas [default: every one].
    #[arg(long = "partition", value_name = "N,…", value_delimiter = ',')]
    partitions: Vec<i32>,
    /// The first offset that stays.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    before: Option<i64>,
    /// Every record that is there now.
    #[arg(long)]
    all: bool,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for the topic's name.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Delete a topic and all its records.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline topic delete orders\n  timberline topic delete orders --yes"
)]
struct DeleteArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for the topic's name.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    common: AdminArgs,
}

pub(crate) async fn run(args: TopicArgs) -> Result<(), Failure> {
    match args.command {
        TopicCommand::Create(args) => create(args).await,
        TopicCommand::List(args) => list(args).await,
        TopicCommand::Describe(args) => describe(args).await,
        TopicCommand::Config(args) => config(args).await,
        TopicCommand::AddPartitions(args) => add_partitions(args).await,
        TopicCommand::Trim(args) => trim(args).await,
        TopicCommand::Delete(args) => delete(args).await,
    }
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let topic = NewTopic::new(args.topic, args.partitions)
        .replication_factor(args.replication_factor.unwrap_or(0))
        .validate_only(args.dry_run);
    let topic = args
        .config
        .into_iter()
        .fold(topic, |topic, (key, value)| topic.config(key, value));
    let name = topic.name.clone();
    let info = admin.create_topic(topic).await?;
    print(args.common.output, &topic_value(&info), || {
        let done = if args.dry_run {
            "would create"
        } else {
            "created"
        };
        format!(
            "{done} {name} with {}\n",
            count(args.partitions, "partition")
        )
    })
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let topics = admin.list_topics(args.internal).await?;
    let value = topics.iter().map(topic_value).collect();
    let wide = args.common.output.is_wide();
    print(args.common.output, &value, || {
        let mut headers = vec!["TOPIC", "PARTITIONS", "REPLICAS"];
        if wide {
            headers.push("ID");
        }
        let row = |topic: &TopicInfo| {
            let mut row = vec![
                topic.name.clone(),
                topic.partitions.len().to_string(),
                topic.replication_factor.to_string(),
            ];
            if wide {
                row.push(topic.topic_id.to_string());
            }
            row
        };
        let rows = topics.iter().map(row).collect();
        columns(&headers, &["PARTITIONS", "REPLICAS"], rows)
    })
}

fn topic_value(topic: &TopicInfo) -> Value {
    json!({
        "name": topic.name,
        "topic_id": topic.topic_id.to_string(),
        "partitions": topic.partitions.len(),
        "replication_factor": topic.replication_factor,
        "internal": topic.internal,
    })
}

async fn describe(args: DescribeArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let topic = admin.describe_topic(&args.topic).await?;
    print(args.common.output, &description_value(&topic), || {
        description_table(&topic, args.common.output.is_wide())
    })
}

/// All partitions with their states; there is none of a partition whose leader told nothing.
fn partitions_of(topic: &TopicDescription) -> Vec<(Option<&PartitionState>, &PartitionInfo)> {
    let state = |number| {
        let mut states = topic.partitions.iter();
        states.find(|state| state.partition == number)
    };
    let infos = topic.topic.partitions.iter();
    infos.map(|info| (state(info.partition), info)).collect()
}

fn description_value(topic: &TopicDescription) -> Value {
    let partitions: Vec<_> = partitions_of(topic)
        .into_iter()
        .map(|(state, info)| {
            let quarantined = |state: &PartitionState| -> Vec<Value> {
                let ranges = state.quarantined.iter();
                ranges
                    .map(|range| json!({"from": range.from, "to": range.to}))
                    .collect()
            };
            json!({
                "partition": info.partition,
                "leader": info.leader_id,
                "leader_epoch": state.map_or(info.leader_epoch, |state| state.leader_epoch),
                "replicas": info.replicas,
                "in_sync": info.in_sync,
                "log_start_offset": state.map(|state| state.log_start_offset),
                "high_watermark": state.map(|state| state.high_watermark),
                "size_bytes": state.map(|state| state.size_bytes),
                "segments": state.map(|state| state.segments),
                "quarantined": state.map(quarantined),
            })
        })
        .collect();
    json!({
        "name": topic.topic.name,
        "topic_id": topic.topic.topic_id.to_string(),
        "replication_factor": topic.topic.replication_factor,
        "internal": topic.topic.internal,
        "partitions": partitions,
        "config": config_value(&topic.config),
    })
}

fn description_table(topic: &TopicDescription, wide: bool) -> String {
    let partitions = partitions_of(topic);
    let told = || partitions.iter().filter_map(|(state, _)| *state);
    let size: i64 = told().map(|state| state.size_bytes).sum();
    let records: i64 = told()
        .map(|state| state.high_watermark - state.log_start_offset)
        .sum();
    let silent = partitions.len() - told().count();
    let sum = |text: String| match silent {
        0 => text,
        some => format!("{text} without {}", count(some, "partition")),
    };
    let head = facts(&[
        ("topic", topic.topic.name.clone()),
        ("id", topic.topic.topic_id.to_string()),
        ("replicas", topic.topic.replication_factor.to_string()),
        ("records", sum(records.to_string())),
        ("size", sum(show_size(size))),
    ]);
    let rows = partitions
        .iter()
        .map(|(state, info)| {
            let damaged = |state: &PartitionState| -> i64 {
                let ranges = state.quarantined.iter();
                ranges.map(|range| range.to - range.from).sum()
            };
            let said = |show: &dyn Fn(&PartitionState) -> String| {
                state.map_or_else(|| "-".to_owned(), show)
            };
            vec![
                info.partition.to_string(),
                info.leader_id
                    .map_or("none".to_owned(), |id| id.to_string()),
                said(&|state| state.leader_epoch.to_string()),
                said(&|state| state.log_start_offset.to_string()),
                said(&|state| state.high_watermark.to_string()),
                said(&|state| show_size(state.size_bytes)),
                said(&|state| state.segments.to_string()),
                said(&|state| damaged(state).to_string()),
            ]
        })
        .collect();
    let headers = [
        "PARTITION",
        "LEADER",
        "EPOCH",
        "START",
        "END",
        "SIZE",
        "SEGMENTS",
        "DAMAGED",
    ];
    let mut text = format!("{head}\n{}", columns(&headers, &headers, rows));
    let set = topic
        .config
        .iter()
        .filter(|entry| wide || entry.source == ConfigSource::Topic);
    let set: Vec<_> = set.cloned().collect();
    if !set.is_empty() {
        text.push('\n');
        text.push_str(&config_table(&set, wide));
    }
    text
}

async fn config(args: ConfigArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let mut changes: BTreeMap<String, ConfigChange> = BTreeMap::new();
    let set = args
        .set
        .into_iter()
        .map(|(key, value)| ConfigChange::set(key, value));
    for change in set.chain(args.reset.into_iter().map(ConfigChange::reset)) {
        if let Some(twice) = changes.insert(change.key.clone(), change) {
            return Err(Failure::usage(format!("{} is given twice", twice.key)));
        }
    }
    let changes: Vec<_> = changes.into_values().collect();
    let entries = if changes.is_empty() {
        admin.describe_config(&args.topic).await?
    } else {
        admin
            .alter_config(&args.topic, &changes, args.dry_run)
            .await?
    };
    let wide = args.common.output.is_wide();
    print(args.common.output, &config_value(&entries), || {
        config_table(&entries, wide)
    })
}

fn source_name(source: ConfigSource) -> &'static str {
    match source {
        ConfigSource::Default => "default",
        ConfigSource::Broker => "broker",
        ConfigSource::Topic => "topic",
        _ => "unknown",
    }
}

fn config_value(entries: &[ConfigEntry]) -> Value {
    let entry = |entry: &ConfigEntry| {
        json!({
            "key": entry.key,
            "value": entry.value,
            "source": source_name(entry.source),
            "default_value": entry.default_value,
            "documentation": entry.documentation,
        })
    };
    entries.iter().map(entry).collect()
}

fn config_table(entries: &[ConfigEntry], wide: bool) -> String {
    let mut headers = vec!["KEY", "VALUE", "SET BY"];
    if wide {
        headers.extend(["DEFAULT", "WHAT IT DOES"]);
    }
    let row = |entry: &ConfigEntry| {
        let mut row = vec![
            entry.key.clone(),
            entry.value.clone(),
            source_name(entry.source).to_owned(),
        ];
        if wide {
            row.extend([entry.default_value.clone(), entry.documentation.clone()]);
        }
        row
    };
    columns(&headers, &[], entries.iter().map(row).collect())
}

async fn add_partitions(args: AddPartitionsArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let info = admin
        .add_partitions(&args.topic, args.total, args.dry_run)
        .await?;
    print(args.common.output, &topic_value(&info), || {
        let has = if args.dry_run { "would have" } else { "has" };
        format!("{} {has} {}\n", args.topic, count(args.total, "partition"))
    })
}

async fn trim(args: TrimArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let topic = admin.describe_topic(&args.topic).await?;
    let mut partitions = args.partitions;
    if partitions.is_empty() {
        partitions = topic
            .topic
            .partitions
            .iter()
            .map(|info| info.partition)
            .collect();
    }
    if !args.dry_run && !args.yes {
        confirm("topic's name", &args.topic, "delete these records for good")?;
    }
    let targets: Vec<_> = partitions
        .into_iter()
        .map(|partition| TrimTarget {
            partition,
            before_offset: args.before,
        })
        .collect();
    let outcomes = admin.trim(&args.topic, &targets, args.dry_run).await?;
    let value = outcomes.iter().map(|outcome| match &outcome.result {
        Ok(start) => json!({"partition": outcome.partition, "log_start_offset": start}),
        Err(error) => json!({
            "partition": outcome.partition,
            "error": error.message,
            "reason": error.reason.map(|reason| reason.as_str()),
        }),
    });
    print(args.common.output, &value.collect(), || {
        let row = |outcome: &timberline_client::TrimOutcome| {
            let result = match &outcome.result {
                Ok(start) => start.to_string(),
                Err(error) => error.to_string(),
            };
            vec![outcome.partition.to_string(), result]
        };
        columns(
            &["PARTITION", "START"],
            &[],
            outcomes.iter().map(row).collect(),
        )
    })?;
    match outcomes
        .into_iter()
        .find_map(|outcome| outcome.result.err())
    {
        None => Ok(()),
        Some(error) => Err(timberline_client::Error::from(error).into()),
    }
}

async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    // A name that does not exist is told before anybody is asked to type it.
    admin.delete_topic(&args.topic, true).await?;
    if !args.dry_run {
        if !args.yes {
            confirm("topic's name", &args.topic, "delete it and all its records")?;
        }
        admin.delete_topic(&args.topic, false).await?;
    }
    let value = json!({"name": args.topic, "deleted": !args.dry_run});
    print(args.common.output, &value, || {
        let done = if args.dry_run {
            "would delete"
        } else {
            "deleted"
        };
        format!("{done} {}\n", args.topic)
    })
}
