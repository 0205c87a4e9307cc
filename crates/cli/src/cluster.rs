//! `timberline cluster`: who is in it, and whether all is well.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use timberline_client::{BrokerInfo, BrokerState, BrokerStatus, ClusterStatus};

use crate::connect::{AdminArgs, ClientArgs};
use crate::failure::Failure;
use crate::output::{Format, columns, facts, print};
use crate::values::{count, show_size};

/// Look at the cluster.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    Info(InfoArgs),
    Health(HealthArgs),
    Brokers(BrokersArgs),
    Racks(RacksArgs),
}

/// Whether all is well: leaders, replicas, racks; exit code 3 if not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  timberline cluster health\n  timberline cluster health -o json"
)]
struct HealthArgs {
    #[command(flatten)]
    common: AdminArgs,
}

/// The brokers, what they are for, and what they hold.
#[derive(Debug, Args)]
struct BrokersArgs {
    #[command(flatten)]
    common: AdminArgs,
}

/// The racks, their brokers, and whether the loss of one would leave every partition a majority.
#[derive(Debug, Args)]
struct RacksArgs {
    #[command(flatten)]
    common: AdminArgs,
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
    match args.command {
        ClusterCommand::Info(args) => info(args).await,
        ClusterCommand::Health(args) => health(&args.common).await,
        ClusterCommand::Brokers(args) => brokers(&args.common).await,
        ClusterCommand::Racks(args) => racks(&args.common).await,
    }
}

async fn info(args: InfoArgs) -> Result<(), Failure> {
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

/// What is wrong, in words, the worst first.
fn troubles(status: &ClusterStatus) -> Vec<String> {
    let mut troubles = Vec::new();
    let mut add = |number: i32, one: &str, what: &str| {
        if number > 0 {
            troubles.push(format!("{} {what}", count(number, one)));
        }
    };
    let brokers = || status.cluster.brokers.iter();
    add(
        i32::from(status.cluster.controller_id.is_none()),
        "metadata group",
        "without a leader",
    );
    add(status.leaderless, "partition", "without a leader");
    let dead = brokers().filter(|broker| !broker.live).count();
    add(dead as i32, "broker", "not connected");
    let readonly = status
        .brokers
        .iter()
        .filter(|state| !state.writable)
        .count();
    add(readonly as i32, "broker", "without writes until a restart");
    add(
        status.under_replicated,
        "partition",
        "with replicas that are not in sync",
    );
    add(
        status.rack_violations,
        "partition",
        "whose spread over racks could be better",
    );
    troubles
}

async fn health(common: &AdminArgs) -> Result<(), Failure> {
    let status = common.admin().await?.cluster_info().await?;
    let troubles = troubles(&status);
    let value = json!({
        "healthy": troubles.is_empty(),
        "controller_id": status.cluster.controller_id,
        "leaderless": status.leaderless,
        "under_replicated": status.under_replicated,
        "rack_violations": status.rack_violations,
        "rack_loss_survivable": status.rack_loss_survivable,
        "troubles": troubles,
    });
    print(common.output, &value, || {
        let survives = match status.rack_loss_survivable {
            true => "every partition keeps a majority",
            false => "some partitions lose their majority",
        };
        let head = facts(&[
            (
                "healthy",
                if troubles.is_empty() { "yes" } else { "NO" }.to_owned(),
            ),
            ("loss of a rack", survives.to_owned()),
        ]);
        troubles
            .iter()
            .fold(head, |text, trouble| format!("{text}  {trouble}\n"))
    })?;
    match troubles.first() {
        None => Ok(()),
        Some(worst) => Err(Failure::unhealthy(worst.clone())
            .next("See `timberline partition list --troubled` and `timberline cluster brokers`.")),
    }
}

async fn brokers(common: &AdminArgs) -> Result<(), Failure> {
    let client = common.client.connect().await?;
    let cluster = client.cluster().await?;
    let topics = client.admin().list_topics(true).await?;
    let leads = |id: i32| {
        let partitions = topics.iter().flat_map(|topic| &topic.partitions);
        partitions.filter(|info| info.leader_id == Some(id)).count()
    };
    let value = cluster.brokers.iter().map(|broker| {
        json!({
            "id": broker.broker_id,
            "rack": broker.rack,
            "state": broker.state.as_str(),
            "live": broker.live,
            "leads": leads(broker.broker_id),
            "replicas": broker.replicas,
            "grpc": broker.address,
            "http": broker.http_address,
            "version": broker.version,
        })
    });
    print(common.output, &value.collect(), || {
        let row = |broker: &timberline_client::BrokerInfo| {
            vec![
                broker.broker_id.to_string(),
                broker.rack.clone().unwrap_or("-".to_owned()),
                broker.state.as_str().to_owned(),
                if broker.live { "yes" } else { "NO" }.to_owned(),
                leads(broker.broker_id).to_string(),
                broker.replicas.to_string(),
                broker.address.clone(),
                broker.version.clone(),
            ]
        };
        let headers = [
            "BROKER", "RACK", "STATE", "LIVE", "LEADS", "REPLICAS", "GRPC", "VERSION",
        ];
        columns(
            &headers,
            &["LEADS", "REPLICAS"],
            cluster.brokers.iter().map(row).collect(),
        )
    })
}

async fn racks(common: &AdminArgs) -> Result<(), Failure> {
    let status = common.admin().await?.cluster_info().await?;
    let mut racks: std::collections::BTreeMap<Option<&str>, Vec<i32>> = Default::default();
    for broker in &status.cluster.brokers {
        racks
            .entry(broker.rack.as_deref())
            .or_default()
            .push(broker.broker_id);
    }
    // Of brokers without a rack each is one.
    let fragile = |rack: Option<&str>| -> i32 {
        let of_rack = status
            .fragile
            .iter()
            .filter(|fragile| fragile.rack.as_deref() == rack);
        of_rack.map(|fragile| fragile.partitions).sum()
    };
    let value = racks.iter().map(|(rack, brokers)| {
        json!({"rack": rack, "brokers": brokers, "partitions_at_risk": fragile(*rack)})
    });
    let value = json!({
        "rack_loss_survivable": status.rack_loss_survivable,
        "racks": value.collect::<Vec<_>>(),
    });
    print(common.output, &value, || {
        let row = |(rack, brokers): (&Option<&str>, &Vec<i32>)| {
            let brokers: Vec<_> = brokers.iter().map(i32::to_string).collect();
            vec![
                rack.unwrap_or("-").to_owned(),
                brokers.join(","),
                fragile(*rack).to_string(),
            ]
        };
        let headers = ["RACK", "BROKERS", "WITHOUT MAJORITY IF LOST"];
        columns(&headers, &headers[2..], racks.iter().map(row).collect())
    })
}

/// Every broker of the cluster, with what it says of itself if it answered.
fn states(status: &ClusterStatus) -> impl Iterator<Item = (&BrokerInfo, Option<&BrokerStatus>)> {
    status.cluster.brokers.iter().map(|broker| {
        let mut states = status.brokers.iter();
        let state = states.find(|state| state.broker.broker_id == broker.broker_id);
        (broker, state)
    })
}

fn value(status: &ClusterStatus) -> Value {
    let uptime_ms =
        |state: &BrokerStatus| u64::try_from(state.uptime.as_millis()).unwrap_or(u64::MAX);
    let brokers: Vec<_> = states(status)
        .map(|(broker, state)| {
            json!({
                "id": broker.broker_id,
                "rack": broker.rack,
                "grpc": broker.address,
                "http": broker.http_address,
                "version": broker.version,
                "live": broker.live,
                "state": broker.state.as_str(),
                "writable": state.map(|state| state.writable),
                "uptime_ms": state.map(uptime_ms),
                "log_size_bytes": state.map(|state| state.log_size_bytes),
                "disk_free_bytes": state.map(|state| state.disk_free_bytes),
                "disk_total_bytes": state.map(|state| state.disk_total_bytes),
            })
        })
        .collect();
    json!({
        "cluster_id": status.cluster.cluster_id,
        "controller_id": status.cluster.controller_id,
        "topics": status.topics,
        "partitions": status.partitions,
        "leaderless": status.leaderless,
        "under_replicated": status.under_replicated,
        "rack_violations": status.rack_violations,
        "rack_loss_survivable": status.rack_loss_survivable,
        "feature_level": status.cluster.feature_level,
        "brokers": brokers,
    })
}

fn table(status: &ClusterStatus) -> String {
    let controller = status.cluster.controller_id;
    let head = facts(&[
        ("cluster", status.cluster.cluster_id.clone()),
        (
            "controller",
            controller.map_or("none".to_owned(), |id| format!("broker {id} (*)")),
        ),
        ("topics", status.topics.to_string()),
        ("partitions", status.partitions.to_string()),
    ]);
    let rows = states(status)
        .map(|(broker, state)| {
            let said =
                |show: &dyn Fn(&BrokerStatus) -> String| state.map_or_else(|| "-".to_owned(), show);
            let condition = match state {
                Some(state) if !state.writable => "READ-ONLY",
                Some(_) if broker.state == BrokerState::Active => "ok",
                Some(_) => broker.state.as_str(),
                None if broker.live => "SILENT",
                None => "AWAY",
            };
            let role = match controller == Some(broker.broker_id) {
                true => " *",
                false => "",
            };
            vec![
                format!("{}{role}", broker.broker_id),
                broker.rack.clone().unwrap_or("-".to_owned()),
                broker.address.clone(),
                condition.to_owned(),
                said(&|state| show_size(state.log_size_bytes)),
                said(&|state| {
                    let free = show_size(state.disk_free_bytes);
                    format!("{free} of {}", show_size(state.disk_total_bytes))
                }),
                said(&|state| {
                    let seconds = std::time::Duration::from_secs(state.uptime.as_secs());
                    humantime::format_duration(seconds).to_string()
                }),
                broker.version.clone(),
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
