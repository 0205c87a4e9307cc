//! `timberline cluster`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use timberline_client::ClusterStatus;

use crate::connect::ClientArgs;
use crate::failure::Failure;
use crate::output::{Format, columns, facts, print};
use crate::values::show_size;

/// Look at the cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    Info(InfoArgs),
}

/// Who is in the cluster and how its brokers are; exit code 3 when one can't write.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline cluster info\n  timberline cluster info -o json --bootstrap broker1:7071"
)]
struct InfoArgs {
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: ClusterArgs) -> Result<(), Failure> {
    let ClusterCommand::Info(args) = args.command;
    let client = args.client.connect().await?;
    let status = client.admin().cluster_info().await?;
    print(args.output, &value(&status), || table(&status))?;
    let sick: Vec<_> = status
        .brokers
        .iter()
        .filter(|broker| !broker.writable)
        .collect();
    match sick.first() {
        None => Ok(()),
        Some(broker) => Err(Failure::unhealthy(format!(
            "broker {} refuses writes until a restart",
            broker.broker.broker_id
        ))
        .next("Look into its log for the failed sync, check the disk, then restart it.")
        .reason(timberline_client::Reason::StoragePoisoned.as_str())),
    }
}

fn value(status: &ClusterStatus) -> Value {
    let brokers: Vec<_> = status
        .brokers
        .iter()
        .map(|state| {
            json!({
                "id": state.broker.broker_id,
                "rack": state.broker.rack,
                "grpc": state.broker.address,
                "http": state.broker.http_address,
                "version": state.broker.version,
                "writable": state.writable,
                "uptime_ms": u64::try_from(state.uptime.as_millis()).unwrap_or(u64::MAX),
                "log_size_bytes": state.log_size_bytes,
                "disk_free_bytes": state.disk_free_bytes,
                "disk_total_bytes": state.disk_total_bytes,
            })
        })
        .collect();
    json!({
        "cluster_id": status.cluster.cluster_id,
        "controller_id": status.cluster.controller_id,
        "topics": status.topics,
        "partitions": status.partitions,
        "brokers": brokers,
    })
}

fn table(status: &ClusterStatus) -> String {
    let controller = status.cluster.controller_id;
    let head = facts(&[
        ("cluster", status.cluster.cluster_id.clone()),
        (
            "controller",
            controller.map_or("none".to_owned(), |id| format!("broker {id}")),
        ),
        ("topics", status.topics.to_string()),
        ("partitions", status.partitions.to_string()),
    ]);
    let rows = status
        .brokers
        .iter()
        .map(|state| {
            vec![
                state.broker.broker_id.to_string(),
                state.broker.rack.clone().unwrap_or("-".to_owned()),
                state.broker.address.clone(),
                if state.writable { "ok" } else { "READ-ONLY" }.to_owned(),
                show_size(state.log_size_bytes),
                format!(
                    "{} of {}",
                    show_size(state.disk_free_bytes),
                    show_size(state.disk_total_bytes)
                ),
                humantime::format_duration(std::time::Duration::from_secs(state.uptime.as_secs()))
                    .to_string(),
                state.broker.version.clone(),
            ]
        })
        .collect();
    let headers = [
        "BROKER",
        "RACK",
        "GRPC",
        "STATE",
        "LOG",
        "DISK FREE",
        "UP",
        "VERSION",
    ];
    format!("{head}\n{}", columns(&headers, &["LOG"], rows))
}
