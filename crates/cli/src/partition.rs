//! `timberline partition`.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use serde_json::{Value, json};
use timberline_client::{Admin, PartitionInfo};

use crate::broker::{Waiting, operation_value, show_operation};
use crate::complete::topics;
use crate::connect::AdminArgs;
use crate::failure::Failure;
use crate::output::{columns, print};

/// Where partitions are, and moving them and their leaders.
#[derive(Debug, Args)]
pub(crate) struct PartitionArgs {
    #[command(subcommand)]
    command: PartitionCommand,
}

#[derive(Debug, Subcommand)]
enum PartitionCommand {
    List(ListArgs),
    TransferLeader(TransferArgs),
    Move(MoveArgs),
    Balance(BalanceArgs),
}

/// Show leaders and replicas, of one topic or of all.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline partition list\n  timberline partition list orders -o json"
)]
struct ListArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: Option<String>,
    /// Only those without a leader, with replicas behind, or on the move.
    #[arg(long)]
    troubled: bool,
    #[command(flatten)]
    common: AdminArgs,
}

/// Hand a partition's leadership to another replica that is in sync.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline partition transfer-leader orders 3 --to 2
  timberline partition transfer-leader orders 3              to the preferred one")]
struct TransferArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    partition: i32,
    /// The broker that is to lead [default: the preferred one].
    #[arg(long, value_name = "BROKER")]
    to: Option<i32>,
    #[command(flatten)]
    common: AdminArgs,
}

/// Move a partition's replicas to other brokers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  timberline partition move orders 3 --to 2,4,5 --wait")]
struct MoveArgs {
    #[arg(add = ArgValueCandidates::new(topics))]
    topic: String,
    partition: i32,
    /// Where the replicas are to be, the preferred leader first; as many as there are.
    #[arg(long, required = true, value_name = "BROKER,…", value_delimiter = ',')]
    to: Vec<i32>,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    common: AdminArgs,
}

/// Level replicas over brokers, or only leaders, with as few moves as that needs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline partition balance --dry-run
  timberline partition balance --wait
  timberline partition balance --leaders          only hand leaderships back to preferred leaders")]
struct BalanceArgs {
    /// Move no replicas: hand leaderships back to preferred leaders.
    #[arg(long)]
    leaders: bool,
    /// Say what would move, change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    common: AdminArgs,
}

pub(crate) async fn run(args: PartitionArgs) -> Result<(), Failure> {
    match args.command {
        PartitionCommand::List(args) => list(args).await,
        PartitionCommand::TransferLeader(args) => transfer(args).await,
        PartitionCommand::Move(args) => move_replicas(args).await,
        PartitionCommand::Balance(args) => balance(args).await,
    }
}

fn is_troubled(info: &PartitionInfo) -> bool {
    let moves = !info.adding.is_empty() || !info.removing.is_empty();
    info.leader_id.is_none() || info.in_sync.len() < info.replicas.len() || moves
}

fn brokers(ids: &[i32]) -> String {
    let ids: Vec<_> = ids.iter().map(i32::to_string).collect();
    ids.join(",")
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let mut topics = admin.list_topics(true).await?;
    if let Some(name) = &args.topic {
        topics.retain(|topic| topic.name == *name);
        if topics.is_empty() {
            // The error of a topic that is not there.
            admin.describe_topic(name).await?;
        }
    } else {
        topics.retain(|topic| !topic.internal || args.troubled || args.common.output.is_wide());
    }
    let all = || {
        let pairs = topics.iter();
        let pairs = pairs.flat_map(|topic| topic.partitions.iter().map(|info| (&topic.name, info)));
        pairs.filter(|(_, info)| !args.troubled || is_troubled(info))
    };
    let value = |(topic, info): (&String, &PartitionInfo)| {
        json!({
            "topic": topic,
            "partition": info.partition,
            "leader": info.leader_id,
            "leader_epoch": info.leader_epoch,
            "replicas": info.replicas,
            "in_sync": info.in_sync,
            "offline": info.offline,
            "adding": info.adding,
            "removing": info.removing,
        })
    };
    let value: Value = all().map(value).collect();
    print(args.common.output, &value, || {
        let row = |(topic, info): (&String, &PartitionInfo)| {
            vec![
                topic.clone(),
                info.partition.to_string(),
                info.leader_id
                    .map_or("none".to_owned(), |id| id.to_string()),
                info.leader_epoch.to_string(),
                brokers(&info.replicas),
                brokers(&info.in_sync),
                brokers(&info.adding),
                brokers(&info.removing),
            ]
        };
        let headers = [
            "TOPIC",
            "PARTITION",
            "LEADER",
            "EPOCH",
            "REPLICAS",
            "IN SYNC",
            "ADDING",
            "REMOVING",
        ];
        columns(
            &headers,
            &["PARTITION", "LEADER", "EPOCH"],
            all().map(row).collect(),
        )
    })
}

async fn transfer(args: TransferArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let leader = admin
        .transfer_leader(&args.topic, args.partition, args.to)
        .await?;
    let value = json!({"topic": args.topic, "partition": args.partition, "leader": leader});
    print(args.common.output, &value, || {
        format!("broker {leader} leads {}/{}\n", args.topic, args.partition)
    })
}

async fn move_replicas(args: MoveArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let begun = admin
        .move_partition(&args.topic, args.partition, &args.to, args.dry_run)
        .await?;
    show_operation(&admin, begun, &args.waiting, args.common.output).await
}

async fn balance(args: BalanceArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    if args.leaders {
        return balance_leaders(&admin, &args).await;
    }
    let (begun, moves) = admin.balance(args.dry_run).await?;
    let waited = match begun {
        Some(operation) => Some(args.waiting.wait(&admin, operation).await?),
        None => None,
    };
    let moved = moves.iter().map(|moved| {
        json!({"topic": moved.topic, "partition": moved.partition, "from": moved.from, "to": moved.to})
    });
    let value = json!({
        "operation": waited.as_ref().map(operation_value),
        "moves": moved.collect::<Vec<_>>(),
    });
    print(args.common.output, &value, || {
        if moves.is_empty() {
            return "everything is level\n".to_owned();
        }
        let row = |moved: &timberline_client::ReplicaMove| {
            vec![
                moved.topic.clone(),
                moved.partition.to_string(),
                moved.from.to_string(),
                moved.to.to_string(),
            ]
        };
        let headers = ["TOPIC", "PARTITION", "FROM", "TO"];
        columns(&headers, &headers[1..], moves.iter().map(row).collect())
    })
}

async fn balance_leaders(admin: &Admin, args: &BalanceArgs) -> Result<(), Failure> {
    let moves = admin.elect_preferred(None, args.dry_run).await?;
    let value = moves.iter().map(|moved| {
        json!({
            "topic": moved.topic,
            "partition": moved.partition,
            "from": moved.from,
            "to": moved.to,
            "error": moved.error.as_ref().map(|error| &error.message),
        })
    });
    print(args.common.output, &value.collect(), || {
        if moves.is_empty() {
            return "preferred leaders lead\n".to_owned();
        }
        let row = |moved: &timberline_client::LeaderMove| {
            vec![
                moved.topic.clone(),
                moved.partition.to_string(),
                moved.from.to_string(),
                moved.to.to_string(),
                moved
                    .error
                    .as_ref()
                    .map_or(String::new(), ToString::to_string),
            ]
        };
        let headers = ["TOPIC", "PARTITION", "FROM", "TO", "ERROR"];
        columns(&headers, &headers[1..4], moves.iter().map(row).collect())
    })?;
    match moves.into_iter().find_map(|moved| moved.error) {
        None => Ok(()),
        Some(error) => Err(timberline_client::Error::from(error).into()),
    }
}
