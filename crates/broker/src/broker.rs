//! Starting and stopping, top to bottom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle as Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_storage::disk::{Disk, RealDisk};
use timberline_storage::{Log, LogConfig, Opened, Running, Store, StoreOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::config::BrokerConfig;
use crate::core::Core;
use crate::group::Solo;
use crate::http::{self, Slot};
use crate::lifecycle::{Lifecycle, Phase};
use crate::listen::{self, Listener};
use crate::metadata::backend::{Backend, Committed, METADATA_REPLICA, metadata_spec};
use crate::metadata::frontend::Frontend;
use crate::metadata::leadership::Alone;
use crate::metadata::plan::{Bounds, Registration, register_broker};
use crate::metadata::table::{FEATURE_LEVEL_MAX, Table};
use crate::metrics::Metrics;
use crate::partition::{Budget, Directory, Partition};
use crate::shard::{Shards, Work};
use crate::topic::config::Defaults;
use crate::{Error, clock, grpc};

/// How long connections get to close by themselves after the last stream ended.
const HANG_UP_AFTER: Duration = Duration::from_millis(250);

/// A broker that is to be started.
pub struct Broker;

/// A broker that serves. Dropped without [`RunningBroker::shutdown`], it ends as by a crash: nothing acknowledged is
/// lost, the next start recovers.
pub struct RunningBroker {
    core: Arc<Core>,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    health: grpc::Health,
    parts: Mutex<Option<Parts>>,
    stopped: Arc<Notify>,
}

/// What is taken down, in the order it goes.
struct Parts {
    housekeeping: JoinHandle<()>,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    http: JoinHandle<std::io::Result<()>>,
    http_slot: Slot,
    committed: Arc<Committed>,
    backend: Thread<()>,
    storage: Running,
}

impl Broker {
    /// Starts a broker on the current tokio runtime. Returns when it serves.
    ///
    /// # Errors
    /// [`Error`]: an address in use, a data directory in use by another process or damaged, a metadata log that can't be
    /// understood. Nothing is left running then.
    pub async fn start(config: BrokerConfig) -> Result<RunningBroker, Error> {
        Broker::start_on(config, Arc::new(RealDisk::new())).await
    }

    /// As [`Broker::start`], on a disk of the caller's: tests bring one that fails on purpose.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn start_on(
        config: BrokerConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<RunningBroker, Error> {
        let started = Instant::now();
        let lifecycle = Lifecycle::new();
        let metrics = Arc::new(Metrics::new().map_err(|error| Error::System {
            what: "metrics",
            why: error.to_string(),
        })?);
        let (grpc_socket, grpc_addr) = listen::bind(config.listen.grpc, "listen.grpc").await?;
        let (http_socket, http_addr) = listen::bind(config.listen.http, "listen.http").await?;
        let handshake = config.listen.handshake_timeout.duration();
        let listener = |socket, max, name| {
            Listener::new(
                socket,
                max,
                handshake,
                metrics.connections(name),
                Arc::clone(&lifecycle),
            )
        };
        // Probes are answered while the log recovers.
        let http_slot = Slot::default();
        let http_listener = listener(http_socket, config.listen.http_connections_max, "http");
        let http = http::serve(&http_slot, &lifecycle, http_listener);
        let addresses = Addresses {
            grpc: advertised(&config, grpc_addr),
            http: http_addr.to_string(),
        };
        let grpc_connections = config.listen.connections_max;
        let recovered =
            Recovered::run(config, disk, addresses, started, &metrics, &lifecycle).await;
        let (core, committed, backend, storage) = match recovered {
            Ok(parts) => parts,
            Err(error) => {
                http.abort();
                return Err(error);
            }
        };
        let (health, grpc) = grpc::serve(&core, listener(grpc_socket, grpc_connections, "grpc"))?;
        health.set(true).await;
        http_slot.store(Some(Arc::clone(&core)));
        lifecycle.enter(Phase::Serving);
        tracing::info!(%grpc_addr, %http_addr, took = ?started.elapsed(), "serving");
        let housekeeping = tokio::spawn(housekeep(
            Arc::clone(&core.shards),
            core.config.log.housekeeping_interval.duration(),
        ));
        Ok(RunningBroker {
            core,
            grpc_addr,
            http_addr,
            health,
            parts: Mutex::new(Some(Parts {
                housekeeping,
                grpc,
                http,
                http_slot,
                committed,
                backend,
                storage,
            })),
            stopped: Arc::new(Notify::new()),
        })
    }
}

/// What clients are told to connect to.
struct Addresses {
    grpc: String,
    http: String,
}

fn advertised(config: &BrokerConfig, bound: SocketAddr) -> String {
    if config.listen.grpc_advertise.is_empty() {
        bound.to_string()
    } else {
        config.listen.grpc_advertise.clone()
    }
}

/// One timer for all partitions.
async fn housekeep(shards: Arc<Shards>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        shards.housekeep();
    }
}

/// From a data directory to a broker that could serve.
struct Recovered;

impl Recovered {
    async fn run(
        config: BrokerConfig,
        disk: Arc<dyn Disk>,
        addresses: Addresses,
        started: Instant,
        metrics: &Arc<Metrics>,
        lifecycle: &Arc<Lifecycle>,
    ) -> Result<(Arc<Core>, Arc<Committed>, Thread<()>, Running), Error> {
        let opened = open_store(&config, disk).await?;
        let store = opened.store.clone();
        let shards =
            Shards::start(config.broker.shards, metrics).map_err(|error| Error::System {
                what: "starting the shard threads",
                why: error.to_string(),
            })?;
        let result = Self::replay(&config, opened, &shards).await;
        let (committed, directory, backend, storage) = match result {
            Ok(parts) => parts,
            Err(error) => {
                shards.stop();
                return Err(error);
            }
        };
        let defaults = Defaults::new(&config);
        let bounds = Bounds {
            topic_partitions_max: config.limits.topic_partitions_max,
            partitions_max: config.limits.partitions_max,
            defaults: defaults.clone(),
        };
        let metadata = Frontend::new(
            Arc::clone(&committed),
            Arc::clone(&shards),
            Arc::clone(&directory),
            bounds,
            config.log.metadata_image_commands,
        );
        let result = found(&metadata, &config, &addresses, &store).await;
        if let Err(error) = result {
            committed.stop();
            let _ = backend.join();
            shards.stop();
            let _ = storage.stop();
            return Err(error);
        }
        let core = Arc::new(Core {
            budget: Budget::new(
                config.limits.broker_in_flight_bytes.0,
                config.limits.partition_in_flight_bytes.0,
            ),
            defaults,
            store,
            shards,
            leadership: Arc::new(Alone {
                broker: config.broker.id,
                directory: Arc::clone(&directory),
            }),
            directory,
            metadata,
            metrics: Arc::clone(metrics),
            lifecycle: Arc::clone(lifecycle),
            started,
            grpc_address: addresses.grpc,
            http_address: addresses.http,
            config,
        });
        Ok((core, committed, backend, storage))
    }

    /// Replays the metadata log, matches local logs to it, and starts what follows it.
    async fn replay(
        config: &BrokerConfig,
        opened: Opened,
        shards: &Arc<Shards>,
    ) -> Result<(Arc<Committed>, Arc<Directory>, Thread<()>, Running), Error> {
        let committed = Committed::new();
        let directory = Arc::new(Directory::default());
        let store = opened.store;
        let (mine, others): (Vec<Arc<Log>>, Vec<Arc<Log>>) = opened
            .logs
            .into_iter()
            .partition(|log| log.spec().replica == METADATA_REPLICA);
        let log = match mine.into_iter().next() {
            Some(log) => log,
            None => store.create_replica(metadata_spec(), metadata_log_config())?,
        };
        let first_index = log.first_stored_index();
        let group = Solo::lead(Arc::clone(&log));
        let follow = Arc::clone(&committed);
        shards.submit(
            METADATA_REPLICA,
            Work::Adopt {
                group: Box::new(group),
                partition: Partition::new(Arc::clone(&log)),
                on_commit: Some(Arc::new(move |index, payload| {
                    follow.committed(index, payload)
                })),
            },
        );
        let mut backend = Backend {
            broker_id: config.broker.id,
            log,
            store: store.clone(),
            committed: Arc::clone(&committed),
            directory: Arc::clone(&directory),
            shards: Arc::clone(shards),
            defaults: Defaults::new(config),
            next_index: first_index,
        };
        let blocking = tokio::task::spawn_blocking(move || {
            backend.recover(others)?;
            Ok::<_, Error>(backend)
        });
        let backend = blocking
            .await
            .map_err(|error| Error::Start(error.to_string()))??;
        check_identity(config, &committed)?;
        let storage = store.start(Arc::clone(shards) as Arc<dyn timberline_storage::Listener>)?;
        let backend = std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || backend.run())
            .map_err(|error| Error::System {
                what: "starting the metadata thread",
                why: error.to_string(),
            })?;
        Ok((committed, directory, backend, storage))
    }
}

/// Segments of the metadata log: small, it is read as a whole at start.
fn metadata_log_config() -> LogConfig {
    LogConfig {
        segment_bytes: 16 << 20,
        segment_ms: u64::MAX,
        retention_bytes: None,
        retention_ms: None,
        ..LogConfig::default()
    }
}

async fn open_store(config: &BrokerConfig, disk: Arc<dyn Disk>) -> Result<Opened, Error> {
    let options = StoreOptions {
        journal_bytes: config.storage.journal_bytes.0,
        direct_sync_bytes: config.storage.direct_sync_bytes.0,
        checkpoint_bytes: config.storage.checkpoint_bytes.0,
        open_files_max: config.storage.open_files_max,
        sync_threads: config.storage.sync_threads,
        ..StoreOptions::default()
    };
    let dir = config.storage.data_dir.clone();
    let open = move || Store::open(disk, &dir, options);
    let opened = tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| Error::Start(error.to_string()))??;
    tracing::info!(directory = %opened.store.directory_id(), boot = opened.store.boot(), replicas = opened.logs.len(), "data directory opened");
    Ok(opened)
}

/// A data directory keeps the id of its broker for life.
fn check_identity(config: &BrokerConfig, committed: &Committed) -> Result<(), Error> {
    let table = committed.table.read();
    match table.brokers().keys().next() {
        Some(&found) if !table.brokers().contains_key(&config.broker.id) => {
            Err(Error::WrongBroker {
                found,
                configured: config.broker.id,
            })
        }
        _ => Ok(()),
    }
}

/// Founds the cluster on an empty directory, and registers this broker when what it says of itself has changed.
async fn found(
    metadata: &Arc<Frontend>,
    config: &BrokerConfig,
    addresses: &Addresses,
    store: &Store,
) -> Result<(), Error> {
    if store.poisoned().is_some() {
        return Ok(());
    }
    let refused = |error: timberline_proto::error::ApiError| Error::Start(error.to_string());
    if metadata.table().cluster().is_none() {
        let found = Command::FoundCluster(pb::FoundCluster {
            cluster_id: Uuid::new_v4().to_string(),
            founded_at_ms: clock::now_ms(),
            feature_level: FEATURE_LEVEL_MAX,
        });
        metadata.change("", |_| Ok(found)).await.map_err(refused)?;
    }
    let registration = Registration {
        id: config.broker.id,
        rack: config.broker.rack.clone(),
        directory: store.directory_id(),
        grpc: addresses.grpc.clone(),
        peer: String::new(),
        http: addresses.http.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let known = registration.is_known(&metadata.table());
    if !known {
        let register = |table: &Table| register_broker(table, &registration, false);
        metadata.change("", register).await.map_err(refused)?;
    }
    Ok(())
}

impl RunningBroker {
    /// The clients' gRPC address, with the port that was taken.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// The HTTP address, with the port that was taken.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// What clients are told to connect to, HOST:PORT.
    pub fn advertised(&self) -> &str {
        &self.core.grpc_address
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> String {
        let table = self.core.metadata.table();
        table
            .cluster()
            .map(|cluster| cluster.id.clone())
            .unwrap_or_default()
    }

    /// Ends when the broker has stopped, whoever stopped it.
    pub async fn wait(&self) {
        let stopped = self.stopped.notified();
        if self.core.lifecycle.phase() == Phase::Stopped {
            return;
        }
        stopped.await;
    }

    /// Stops cleanly: not serving, streams told to go, pending answers given, everything synced, a last checkpoint.
    /// A second call waits for the first.
    ///
    /// # Errors
    /// [`Error::Storage`] when the last checkpoint fails; nothing acknowledged is lost then either.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let Some(parts) = self.parts.lock().take() else {
            self.wait().await;
            return Ok(());
        };
        let lifecycle = &self.core.lifecycle;
        self.health.set(false).await;
        lifecycle.enter(Phase::Draining);
        parts.housekeeping.abort();
        let grace = self.core.config.shutdown.drain_timeout.duration();
        if tokio::time::timeout(grace, lifecycle.idle()).await.is_err() {
            tracing::warn!("streams are still open, closing them");
        }
        // Idle connections close by themselves on HTTP/2's GOAWAY; the rest are hung up.
        let mut grpc = parts.grpc;
        if tokio::time::timeout(HANG_UP_AFTER, &mut grpc)
            .await
            .is_err()
        {
            lifecycle.hang_up.notify_waiters();
            grpc.abort();
        }
        let (shards, committed, backend, storage) = (
            Arc::clone(&self.core.shards),
            parts.committed,
            parts.backend,
            parts.storage,
        );
        let stopped = tokio::task::spawn_blocking(move || {
            // No appends behind the last checkpoint; what it makes durable is still answered.
            shards.close();
            let stopped = storage.stop();
            shards.stop();
            committed.stop();
            let _ = backend.join();
            stopped
        })
        .await;
        parts.http_slot.store(None);
        lifecycle.enter(Phase::Stopped);
        lifecycle.hang_up.notify_waiters();
        parts.http.abort();
        self.stopped.notify_waiters();
        match stopped {
            Ok(result) => result.map_err(Error::from),
            Err(error) => Err(Error::Start(error.to_string())),
        }
    }
}
