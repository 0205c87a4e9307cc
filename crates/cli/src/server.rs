//! `timberline server`.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use timberline_broker::config::{ConfigError, LogFormat, Overrides, load};
use timberline_broker::{Broker, BrokerConfig, Error, RunningBroker};
use timberline_storage::Error as StorageError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::failure::{ADDRESS_IN_USE, CONFIG_INVALID, DATA_DIR_DAMAGED, DATA_DIR_IN_USE, Failure};
use crate::values::parse_pair;

/// Run a broker in the foreground.
///
/// Without a configuration it is a cluster of one on loopback. SIGTERM or Ctrl-C stop it cleanly: clients are told to
/// go, pending answers are given, everything is synced. A second signal ends it at once; nothing acknowledged is lost then
/// either, the next start recovers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline server
  timberline server --data-dir /var/lib/timberline --config /etc/timberline.toml
  timberline server --grpc-listen 0.0.0.0:7071 --grpc-advertise broker1:7071 --set listen.insecure=true
  TIMBERLINE_LOG__RETENTION_TIME=1d timberline server --log-format json

Probes and metrics: http://127.0.0.1:7073/livez, /readyz, /metrics. Every key: `timberline explain`.")]
pub(crate) struct ServerArgs {
    /// Where everything is kept [default: ./timberline-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Configuration in TOML; the environment (TIMBERLINE_SECTION__KEY) and flags go over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Number of this broker in the cluster [default: 1].
    #[arg(long, value_name = "N")]
    broker_id: Option<i32>,

    /// Failure domain this broker stands in.
    #[arg(long, value_name = "RACK")]
    rack: Option<String>,

    /// Where clients' gRPC is listened for [default: 127.0.0.1:7071]; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", value_parser = parse_address)]
    grpc_listen: Option<SocketAddr>,

    /// What clients are told to connect to [default: the address listened on].
    #[arg(long, value_name = "HOST:PORT")]
    grpc_advertise: Option<String>,

    /// Peer listeners of the brokers that found the cluster, or of some of the cluster to join [default: found one of its own].
    #[arg(long, value_name = "HOST:PORT,…")]
    seeds: Option<String>,

    /// Where other brokers are listened for [default: 127.0.0.1:7072]; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", value_parser = parse_address)]
    peer_listen: Option<SocketAddr>,

    /// What other brokers are told to connect to [default: the address listened on].
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,

    /// Where probes and metrics are listened for [default: 127.0.0.1:7073].
    #[arg(long, value_name = "IP:PORT", value_parser = parse_address)]
    http_listen: Option<SocketAddr>,

    /// Any other configuration key; may be given again.
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,

    /// How log lines look [default: human].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormatArg>,

    /// What is logged, e.g. `info,timberline_broker=debug` [default: info; RUST_LOG is read too].
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,

    #[command(flatten)]
    later: LaterArgs,
}

/// Flags of parts that are not built yet: known, so that the answer can say so.
#[derive(Debug, Args)]
#[command(next_help_heading = "Not built yet (refused)")]
struct LaterArgs {
    /// Where Kafka's protocol is listened for.
    #[arg(long, value_name = "IP:PORT")]
    kafka_listen: Option<String>,
    /// What Kafka's clients are told to connect to.
    #[arg(long, value_name = "HOST:PORT")]
    kafka_advertise: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    Human,
    Json,
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    text.parse()
        .map_err(|_| "expected IP:PORT such as 127.0.0.1:7071".to_owned())
}

impl LaterArgs {
    fn refuse(&self) -> Result<(), Failure> {
        let flags = [
            ("--kafka-listen", &self.kafka_listen, "Kafka's protocol"),
            (
                "--kafka-advertise",
                &self.kafka_advertise,
                "Kafka's protocol",
            ),
        ];
        match flags.iter().find(|(_, value, _)| value.is_some()) {
            None => Ok(()),
            Some((flag, _, what)) => Err(Failure::not_built(format!(
                "{flag}: {what} is not built yet"
            ))),
        }
    }
}

pub(crate) fn run(args: &ServerArgs) -> Result<(), Failure> {
    args.later.refuse()?;
    let overrides = Overrides {
        data_dir: args.data_dir.clone(),
        broker_id: args.broker_id,
        rack: args.rack.clone(),
        grpc_listen: args.grpc_listen,
        grpc_advertise: args.grpc_advertise.clone(),
        peer_listen: args.peer_listen,
        peer_advertise: args.peer_advertise.clone(),
        seeds: args.seeds.clone(),
        http_listen: args.http_listen,
        set: args.set.clone(),
    };
    let mut config =
        load(args.config.as_deref(), std::env::vars(), &overrides).map_err(config_failure)?;
    if let Some(filter) = args
        .log_filter
        .clone()
        .or_else(|| std::env::var("RUST_LOG").ok())
    {
        config.logging.filter = filter;
    }
    match args.log_format {
        Some(LogFormatArg::Human) => config.logging.format = LogFormat::Human,
        Some(LogFormatArg::Json) => config.logging.format = LogFormat::Json,
        None => {}
    }
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("starting threads: {error}")))?;
    let outcome = runtime.block_on(Box::pin(serve(config)));
    // Nothing that still runs is waited for: everything that matters was stopped.
    runtime.shutdown_background();
    outcome
}

fn start_logging(config: &BrokerConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.logging.filter).map_err(|error| {
        Failure::usage(format!("log filter `{}`: {error}", config.logging.filter))
            .next("Write it as `info` or `info,timberline_broker=debug`.")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match config.logging.format {
        LogFormat::Human => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn serve(config: BrokerConfig) -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|e| Failure::failed(format!("listening for signals: {e}")));
    let mut signals = Signals {
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
    };
    let announced = config.clone();
    let broker = tokio::select! {
        started = Box::pin(Broker::start(config)) => started.map_err(start_failure)?,
        name = signals.next() => {
            // What recovery did is found again by the next start.
            return Err(Failure::failed(format!("{name} before the broker served")));
        }
    };
    announce(&announced, &broker);
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "stopping; a second signal ends at once"),
        () = broker.wait() => tracing::warn!("the broker stopped by itself"),
    }
    tokio::select! {
        stopped = broker.shutdown() => {
            stopped.map_err(|error| Failure::failed(format!("stopping: {error}")))?;
            if let Some(why) = broker.given_up() {
                return Err(Failure::failed(why)
                    .next("Its data directory belongs to no cluster any more: start anew with an empty one, or do not start it."));
            }
            tracing::info!("stopped");
            Ok(())
        }
        name = signals.next() => {
            tracing::warn!(signal = name, "ending at once; the next start recovers");
            std::process::exit(1)
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Says on standard output where it listens and where the data lies. Nobody has to be listening.
fn announce(config: &BrokerConfig, broker: &RunningBroker) {
    let dir = &config.storage.data_dir;
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let text = format!(
        "timberline {} serves: broker {} of cluster {}\n  gRPC  {} (clients are told {})\n  HTTP  http://{}/readyz /livez /metrics\n  data  {}\n",
        env!("CARGO_PKG_VERSION"),
        config.broker.id,
        broker.cluster_id(),
        broker.grpc_addr(),
        broker.advertised(),
        broker.http_addr(),
        dir.display(),
    );
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn config_failure(error: ConfigError) -> Failure {
    Failure::usage(error.to_string()).reason(CONFIG_INVALID)
}

fn start_failure(error: Error) -> Failure {
    let failure = Failure::failed(error.to_string());
    match error {
        Error::Config(error) => config_failure(error),
        Error::Listen { .. } => failure.reason(ADDRESS_IN_USE),
        Error::Storage(StorageError::Locked { .. }) => failure.reason(DATA_DIR_IN_USE),
        Error::Storage(StorageError::Corrupt { .. }) | Error::Metadata(_) => {
            failure.reason(DATA_DIR_DAMAGED)
        }
        _ => failure,
    }
}
