//! `timberline broker`, and operations, which it and others begin.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use timberline_client::{Admin, Operation, OperationState, PartitionAtRisk};

use crate::connect::AdminArgs;
use crate::failure::Failure;
use crate::output::{Format, columns, facts, print};
use crate::values::{count, parse_duration};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Take brokers out of service and back.
#[derive(Debug, Args)]
#[command(after_help = "\
A planned stop:
  timberline broker can-stop 2 && timberline broker drain 2 --wait
  …restart it…
  timberline broker undrain 2

For good:
  timberline broker decommission 2 --wait")]
pub(crate) struct BrokerArgs {
    #[command(subcommand)]
    command: BrokerCommand,
}

#[derive(Debug, Subcommand)]
enum BrokerCommand {
    /// Hand a broker's leaderships over; its replicas stay and nothing new comes.
    Drain(OperationArgs),
    /// Make a drained broker, or one that is being decommissioned, an active one again.
    Undrain(OneArgs),
    /// Whether every partition and the cluster's metadata would keep a majority if this broker stopped; exit code 3 if not.
    CanStop(OneArgs),
    Decommission(DecommissionArgs),
    /// Show operations, also the last that ended.
    Operations(ListArgs),
    /// End an operation; what it has done stays.
    Cancel(CancelArgs),
}

#[derive(Debug, Args)]
struct OneArgs {
    /// The broker's number.
    #[arg(value_name = "BROKER")]
    broker: i32,
    #[command(flatten)]
    common: AdminArgs,
}

#[derive(Debug, Args)]
struct OperationArgs {
    /// The broker's number.
    #[arg(value_name = "BROKER")]
    broker: i32,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    common: AdminArgs,
}

/// Move all replicas of a broker to others, and take it out of the cluster.
#[derive(Debug, Args)]
struct DecommissionArgs {
    /// The broker's number.
    #[arg(value_name = "BROKER")]
    broker: i32,
    /// Check everything, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the broker out of the cluster; it has no replicas any more.
    #[arg(long, conflicts_with = "dry_run")]
    remove: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    common: AdminArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only those that run.
    #[arg(long)]
    running: bool,
    #[command(flatten)]
    common: AdminArgs,
}

#[derive(Debug, Args)]
struct CancelArgs {
    /// The operation's id.
    operation: String,
    #[command(flatten)]
    common: AdminArgs,
}

/// Whether the end of an operation is waited for.
#[derive(Debug, Args)]
pub(crate) struct Waiting {
    /// Wait until it is done.
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this (exit code 4).
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "TIME")]
    wait_timeout: Duration,
}

impl Waiting {
    /// The operation as it is in the end, or as it is now if nobody waits.
    pub(crate) async fn wait(
        &self,
        admin: &Admin,
        mut operation: Operation,
    ) -> Result<Operation, Failure> {
        let begun = Instant::now();
        while self.wait && operation.state == OperationState::Running {
            if begun.elapsed() > self.wait_timeout {
                return Err(Failure::timed_out(format!(
                    "{} of {} are done after {:?}; it goes on",
                    operation.done, operation.total, self.wait_timeout
                ))
                .next("See it with `timberline broker operations`."));
            }
            tokio::time::sleep(LOOK_EVERY).await;
            operation = admin.operation(&operation.operation_id).await?;
        }
        Ok(operation)
    }
}

pub(crate) async fn run(args: BrokerArgs) -> Result<(), Failure> {
    match args.command {
        BrokerCommand::Drain(args) => {
            let admin = args.common.admin().await?;
            let begun = admin.drain_broker(args.broker).await?;
            show_operation(&admin, Some(begun), &args.waiting, args.common.output).await
        }
        BrokerCommand::Undrain(args) => undrain(args).await,
        BrokerCommand::CanStop(args) => can_stop(args).await,
        BrokerCommand::Decommission(args) => decommission(args).await,
        BrokerCommand::Operations(args) => operations(args).await,
        BrokerCommand::Cancel(args) => {
            let admin = args.common.admin().await?;
            let ended = admin.cancel_operation(&args.operation).await?;
            print(args.common.output, &operation_value(&ended), || {
                text(&ended)
            })
        }
    }
}

pub(crate) fn operation_value(operation: &Operation) -> Value {
    json!({
        "id": operation.operation_id,
        "kind": operation.kind.as_str(),
        "state": operation.state.as_str(),
        "broker": operation.broker_id,
        "topic_id": operation.partition.map(|(topic, _)| topic.to_string()),
        "partition": operation.partition.map(|(_, partition)| partition),
        "done": operation.done,
        "total": operation.total,
        "started_at_ms": operation.started_at_ms,
        "ended_at_ms": operation.ended_at_ms,
        "message": operation.message,
    })
}

fn text(operation: &Operation) -> String {
    facts(&[
        ("operation", operation.operation_id.clone()),
        ("kind", operation.kind.as_str().to_owned()),
        ("state", operation.state.as_str().to_owned()),
        ("done", format!("{} of {}", operation.done, operation.total)),
        ("message", operation.message.clone()),
    ])
}

/// Waits for an operation if that is wanted, and prints it; `None`: it was only checked.
pub(crate) async fn show_operation(
    admin: &Admin,
    begun: Option<Operation>,
    waiting: &Waiting,
    output: Format,
) -> Result<(), Failure> {
    let Some(begun) = begun else {
        return print(output, &json!({"operation": null}), || {
            "it can be done; nothing was changed\n".to_owned()
        });
    };
    let operation = waiting.wait(admin, begun).await?;
    print(output, &operation_value(&operation), || text(&operation))?;
    match operation.state {
        OperationState::Failed | OperationState::Cancelled | OperationState::Superseded => {
            Err(Failure::failed(format!(
                "the operation is {}: {}",
                operation.state.as_str(),
                operation.message
            )))
        }
        _ => Ok(()),
    }
}

async fn undrain(args: OneArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let broker = admin.undrain_broker(args.broker).await?;
    let value = json!({"id": args.broker, "state": broker.state.as_str()});
    print(args.common.output, &value, || {
        format!("broker {} is {}\n", args.broker, broker.state.as_str())
    })
}

async fn can_stop(args: OneArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let told = admin.can_stop(args.broker).await?;
    let at_risk = |risk: &PartitionAtRisk| {
        json!({
            "topic": risk.topic,
            "partition": risk.partition,
            "left": risk.left,
            "needed": risk.needed,
        })
    };
    let value = json!({
        "can_stop": told.can_stop,
        "at_risk_count": told.at_risk_count,
        "at_risk": told.at_risk.iter().map(at_risk).collect::<Vec<_>>(),
    });
    print(args.common.output, &value, || {
        if told.can_stop {
            return format!("broker {} can stop\n", args.broker);
        }
        let row = |risk: &PartitionAtRisk| {
            vec![
                risk.topic.clone(),
                risk.partition.to_string(),
                risk.left.to_string(),
                risk.needed.to_string(),
            ]
        };
        let headers = ["TOPIC", "PARTITION", "LEFT", "NEEDED"];
        columns(
            &headers,
            &headers[1..],
            told.at_risk.iter().map(row).collect(),
        )
    })?;
    if told.can_stop {
        return Ok(());
    }
    // They have no number that a topic's partition could have been meant by.
    let metadata = told
        .at_risk
        .iter()
        .filter(|risk| risk.topic.starts_with('('));
    let metadata = metadata.count() as i32;
    let partitions = count(told.at_risk_count - metadata, "partition");
    let what = match (metadata, told.at_risk_count - metadata) {
        (0, _) => partitions,
        (_, 0) => "the cluster's metadata".to_owned(),
        _ => format!("the cluster's metadata and {partitions}"),
    };
    Err(Failure::unhealthy(format!(
        "without broker {} there is no majority in sync for {what}",
        args.broker
    ))
    .next("Wait until all brokers are there and in sync: `timberline cluster brokers`, `timberline partition list --troubled`."))
}

async fn decommission(args: DecommissionArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    if args.remove {
        admin.remove_broker(args.broker).await?;
        let value = json!({"id": args.broker, "removed": true});
        return print(args.common.output, &value, || {
            format!("broker {} is out of the cluster; stop it\n", args.broker)
        });
    }
    let begun = admin.decommission_broker(args.broker, args.dry_run).await?;
    show_operation(&admin, begun, &args.waiting, args.common.output).await
}

async fn operations(args: ListArgs) -> Result<(), Failure> {
    let admin = args.common.admin().await?;
    let all = admin.list_operations(!args.running).await?;
    let value = all.iter().map(operation_value).collect();
    print(args.common.output, &value, || {
        let row = |operation: &Operation| {
            vec![
                operation.operation_id.clone(),
                operation.kind.as_str().to_owned(),
                operation
                    .broker_id
                    .map_or("-".to_owned(), |id| id.to_string()),
                operation.state.as_str().to_owned(),
                format!("{}/{}", operation.done, operation.total),
                operation.message.clone(),
            ]
        };
        let headers = ["OPERATION", "KIND", "BROKER", "STATE", "DONE", "MESSAGE"];
        columns(&headers, &["BROKER", "DONE"], all.iter().map(row).collect())
    })
}

#[cfg(test)]
mod tests {
    use timberline_client::OperationKind;

    use super::*;

    #[test]
    fn an_operation_in_json() {
        let operation = Operation {
            kind: OperationKind::Drain,
            state: OperationState::Running,
            broker_id: Some(2),
            total: 7,
            ..Operation::default()
        };
        let value = operation_value(&operation);
        assert_eq!(value["kind"], "drain");
        assert_eq!(value["state"], "running");
        assert_eq!((&value["done"], &value["total"]), (&0.into(), &7.into()));
        assert_eq!(value["ended_at_ms"], Value::Null);
    }
}
