//! Starting and stopping, top to bottom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle as Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use timberline_consensus::{ConfigEntry, Member, Timing};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_storage::disk::{Disk, RealDisk};
use timberline_storage::{Log, LogConfig, Opened, Running, Store, StoreOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::cluster::found::{self, Begin};
use crate::cluster::node::{Found, Node, cluster_id, metadata_node};
use crate::cluster::{Cluster, METADATA, control};
use crate::config::BrokerConfig;
use crate::core::Core;
use crate::groups::serve::{self as groups, Coordinators};
use crate::http::{self, Slot};
use crate::lifecycle::{Lifecycle, Phase};
use crate::listen::{self, Listener};
use crate::metadata::backend::{
    Backend, Committed, METADATA_REPLICA, found_group, metadata_spec, open_group,
};
use crate::metadata::frontend::Frontend;
use crate::metadata::leadership::Leadership;
use crate::metadata::plan::Bounds;
use crate::metadata::table::id_bytes;
use crate::metrics::Metrics;
use crate::partition::{Budget, Directory, Partition};
use crate::peer::{PEER_CONNECTIONS_MAX, PeerHandler, PeerIdentity, Peers};
use crate::shard::{Shards, TICK, Work, shard_count};
use crate::topic::config::Defaults;
use crate::{Error, clock, grpc};

/// How long connections get to close by themselves after the last stream ended.
const HANG_UP_AFTER: Duration = Duration::from_millis(250);

/// Between two tries to be registered.
const REGISTER_EVERY: Duration = Duration::from_millis(20);
/// How long a broker that is alone waits at its start for its partitions to have their leader.
const ALONE_WAIT: Duration = Duration::from_secs(2);
/// How long a broker that stops waits for others to take over what it leads.
const RESIGN_WAIT: Duration = Duration::from_secs(3);

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
    tasks: Vec<JoinHandle<()>>,
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
        let in_cluster = !config.cluster.seeds.0.is_empty();
        let peer = match in_cluster {
            true => Some(listen::bind(config.listen.peer, "listen.peer").await?),
            false => None,
        };
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
        let peer_addr = peer.as_ref().map(|(_, bound)| *bound);
        let addresses = Addresses {
            grpc: advertised(&config.listen.grpc_advertise, grpc_addr),
            peer: peer_addr.map_or_else(String::new, |bound| {
                advertised(&config.listen.peer_advertise, bound)
            }),
            http: http_addr.to_string(),
        };
        let peer_listener = peer.map(|(socket, _)| listener(socket, PEER_CONNECTIONS_MAX, "peer"));
        let grpc_connections = config.listen.connections_max;
        let recovered = Recovered::run(
            config,
            disk,
            addresses,
            peer_listener,
            started,
            &metrics,
            &lifecycle,
        );
        let Recovered {
            core,
            committed,
            backend,
            storage,
            tasks,
        } = match recovered.await {
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
                tasks,
            })),
            stopped: Arc::new(Notify::new()),
        })
    }
}

/// What clients are told to connect to.
#[derive(Clone)]
struct Addresses {
    grpc: String,
    peer: String,
    http: String,
}

fn advertised(configured: &str, bound: SocketAddr) -> String {
    match configured {
        "" => bound.to_string(),
        told => told.to_owned(),
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
struct Recovered {
    core: Arc<Core>,
    committed: Arc<Committed>,
    backend: Thread<()>,
    storage: Running,
    /// The peer listener, and what looks after the cluster.
    tasks: Vec<JoinHandle<()>>,
}

/// What is made before the metadata are read.
struct Basis {
    config: BrokerConfig,
    addresses: Addresses,
    store: Store,
    directory: Arc<Directory>,
    cluster: Arc<Cluster>,
    node: Arc<Node>,
    shards: Arc<Shards>,
    timing: Timing,
}

impl Recovered {
    async fn run(
        config: BrokerConfig,
        disk: Arc<dyn Disk>,
        addresses: Addresses,
        peer_listener: Option<Listener>,
        started: Instant,
        metrics: &Arc<Metrics>,
        lifecycle: &Arc<Lifecycle>,
    ) -> Result<Recovered, Error> {
        let opened = open_store(&config, disk).await?;
        let basis = Basis::new(config, addresses, opened.store.clone(), metrics)?;
        let mut tasks = Vec::new();
        if let (Some(peers), Some(listener)) = (basis.cluster.peers(), peer_listener) {
            peers.start(Arc::clone(&basis.node) as Arc<dyn PeerHandler>);
            let serving = peers
                .serve(listener)
                .map_err(|error| Error::Start(error.to_string()))?;
            tasks.push(tokio::spawn(async move {
                if let Ok(Err(error)) = serving.await {
                    tracing::error!(%error, "the peer listener ended");
                }
            }));
        }
        let result = basis.replay(opened.logs).await;
        let (committed, log, backend, storage) = match result {
            Ok(parts) => parts,
            Err(error) => {
                basis.give_up();
                return Err(error);
            }
        };
        let core = basis.core(&committed, log, started, metrics, lifecycle);
        basis.node.set_core(&core);
        let seeds = core.config.cluster.seeds.0.clone();
        let node = Arc::clone(&basis.node);
        tasks.push(tokio::spawn(Arc::clone(&core.cluster).keep_telling()));
        tasks.push(tokio::spawn(groups::run(Arc::clone(&core))));
        tasks.push(tokio::spawn(control::run(
            Arc::clone(&core),
            Arc::clone(&node),
            seeds,
        )));
        let recovered = Recovered {
            core,
            committed,
            backend,
            storage,
            tasks,
        };
        match registered(&recovered.core, &node).await {
            Ok(()) => Ok(recovered),
            Err(error) => {
                recovered.give_up();
                Err(error)
            }
        }
    }

    /// Takes down what was started.
    fn give_up(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(peers) = self.core.cluster.peers() {
            peers.close();
        }
        self.committed.stop();
        let _ = self.backend.join();
        self.core.shards.stop();
        let _ = self.storage.stop();
    }
}

impl Basis {
    fn new(
        config: BrokerConfig,
        addresses: Addresses,
        store: Store,
        metrics: &Arc<Metrics>,
    ) -> Result<Basis, Error> {
        let me = config.broker.id;
        let data = store.directory_id();
        let count = shard_count(config.broker.shards);
        let peers = (!config.cluster.seeds.0.is_empty()).then(|| {
            let identity = PeerIdentity {
                broker_id: me,
                rack: config.broker.rack.clone(),
                directory: data,
                boot: store.boot(),
            };
            Peers::new(identity, count as u16)
        });
        let directory = Arc::new(Directory::default());
        let cluster = Cluster::new(me, peers, Arc::clone(&directory));
        let identity = pb::PeerIdentity {
            broker_id: me,
            rack: config.broker.rack.clone(),
            directory_id: id_bytes(data),
            grpc_address: addresses.grpc.clone(),
            peer_address: addresses.peer.clone(),
            http_address: addresses.http.clone(),
            cluster_id: String::new(),
            seeds: config.cluster.seeds.0.clone(),
        };
        let rate = config.cluster.transfer_rate.0;
        let node = Node::new(identity, data, Arc::clone(&cluster), rate);
        let runtime = tokio::runtime::Handle::current();
        let shards = Shards::start(count, timing(&config), metrics, &cluster, &runtime).map_err(
            |error| Error::System {
                what: "starting the shard threads",
                why: error.to_string(),
            },
        )?;
        cluster.set_shards(&shards);
        node.set_shards(&shards);
        Ok(Basis {
            timing: timing(&config),
            config,
            addresses,
            store,
            directory,
            cluster,
            node,
            shards,
        })
    }

    fn give_up(&self) {
        if let Some(peers) = self.cluster.peers() {
            peers.close();
        }
        self.shards.stop();
    }

    /// Finds the cluster, replays the metadata log, matches local logs to it, and starts what follows it.
    async fn replay(
        &self,
        logs: Vec<Arc<Log>>,
    ) -> Result<(Arc<Committed>, Arc<Log>, Thread<()>, Running), Error> {
        let committed = Committed::new();
        let (mine, others): (Vec<Arc<Log>>, Vec<Arc<Log>>) = logs
            .into_iter()
            .partition(|log| log.spec().replica == METADATA_REPLICA);
        let log = match mine.into_iter().next() {
            Some(log) => log,
            None => self
                .store
                .create_replica(metadata_spec(), metadata_log_config())?,
        };
        self.node.set_metadata(&log);
        self.find_cluster(&log).await?;
        let me = metadata_node(self.store.directory_id());
        let mut group = open_group(&log, me, self.timing)?;
        let membership = group.membership();
        if log.last_index() <= 1 && membership.voters.first().is_some_and(|v| v.node == me) {
            group.campaign();
        }
        let partition = Partition::new(Arc::clone(&log));
        self.cluster.set_metadata(&partition);
        let follow = Arc::clone(&committed);
        let mut backend = Backend {
            broker_id: self.config.broker.id,
            next_index: log.first_stored_index(),
            log: Arc::clone(&log),
            store: self.store.clone(),
            committed: Arc::clone(&committed),
            directory: Arc::clone(&self.directory),
            shards: Arc::clone(&self.shards),
            cluster: Arc::clone(&self.cluster),
            timing: self.timing,
            defaults: Defaults::new(&self.config),
        };
        let blocking = tokio::task::spawn_blocking(move || {
            backend.recover(others)?;
            Ok::<_, Error>(backend)
        });
        let backend = blocking
            .await
            .map_err(|error| Error::Start(error.to_string()))??;
        check_identity(&self.config, &committed)?;
        let listener = Arc::clone(&self.shards) as Arc<dyn timberline_storage::Listener>;
        let storage = self.store.start(listener)?;
        self.shards.submit(
            METADATA_REPLICA,
            Work::Adopt {
                group: Box::new(group),
                partition,
                on_commit: Some(Arc::new(move |index| follow.committed(index))),
            },
        );
        let backend = std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || backend.run())
            .map_err(|error| Error::System {
                what: "starting the metadata thread",
                why: error.to_string(),
            })?;
        Ok((committed, log, backend, storage))
    }

    /// A directory that belongs to a cluster stays in it; another one founds or joins.
    async fn find_cluster(&self, log: &Arc<Log>) -> Result<(), Error> {
        let directory = self.store.directory_id();
        let me = Member {
            node: metadata_node(directory),
            broker: self.config.broker.id,
        };
        let seeds = &self.config.cluster.seeds.0;
        if let Some(found) = known_cluster(log)? {
            self.node.set_found(found);
            return match self.cluster.peers() {
                Some(peers) => found::check_seeds(&self.node, peers, seeds).await,
                None => Ok(()),
            };
        }
        let Some(peers) = self.cluster.peers() else {
            let entry = ConfigEntry::founding(vec![me]);
            self.node.set_found(Found {
                cluster_id: cluster_id(&entry).to_string(),
                founding: entry.encode(),
            });
            return found_group(log, vec![me], clock::now_ms());
        };
        match found::find(&self.node, peers, seeds, directory).await? {
            // The time is not known alike everywhere, and the entry must be.
            Begin::Found(entry) => found_group(log, entry.result.voters, 0),
            Begin::Joined => Ok(()),
        }
    }

    fn core(
        &self,
        committed: &Arc<Committed>,
        log: Arc<Log>,
        started: Instant,
        metrics: &Arc<Metrics>,
        lifecycle: &Arc<Lifecycle>,
    ) -> Arc<Core> {
        let config = self.config.clone();
        let defaults = Defaults::new(&config);
        let bounds = Bounds {
            topic_partitions_max: config.limits.topic_partitions_max,
            partitions_max: config.limits.partitions_max,
            defaults: defaults.clone(),
        };
        let metadata = Frontend::new(
            Arc::clone(committed),
            Arc::clone(&self.cluster),
            log,
            Arc::clone(&self.shards),
            Arc::clone(&self.directory),
            bounds,
            config.log.metadata_image_commands,
        );
        Arc::new(Core {
            budget: Budget::new(
                config.limits.broker_in_flight_bytes.0,
                config.limits.partition_in_flight_bytes.0,
            ),
            defaults,
            store: self.store.clone(),
            shards: Arc::clone(&self.shards),
            leadership: Arc::clone(&self.cluster) as Arc<dyn Leadership>,
            cluster: Arc::clone(&self.cluster),
            cluster_id: self.node.identity().cluster_id,
            directory: Arc::clone(&self.directory),
            metadata,
            groups: Coordinators::new((&self.config.groups).into()),
            metrics: Arc::clone(metrics),
            lifecycle: Arc::clone(lifecycle),
            started,
            grpc_address: self.addresses.grpc.clone(),
            http_address: self.addresses.http.clone(),
            config,
        })
    }
}

/// Timeouts in ticks.
fn timing(config: &BrokerConfig) -> Timing {
    let ticks = |span: Duration| span.as_millis().div_ceil(TICK.as_millis()).max(1) as usize;
    Timing::of(
        ticks(config.cluster.election_timeout.duration()),
        ticks(config.cluster.heartbeat_interval.duration()),
    )
}

/// The cluster that a metadata log is of, if it is of one.
fn known_cluster(log: &Arc<Log>) -> Result<Option<Found>, Error> {
    if log.last_index() == 0 {
        return Ok(None);
    }
    let mut founding = None;
    let mut cluster_id_found = None;
    let replayed = log.replay(log.first_stored_index(), |entry| {
        if entry.kind == timberline_storage::EntryKind::Config && founding.is_none() {
            founding = Some(entry.payload);
        } else if entry.kind == timberline_storage::EntryKind::Command && cluster_id_found.is_none()
        {
            cluster_id_found = founded_in(&entry.payload);
        }
        Ok(())
    });
    replayed.map_err(|error| Error::Metadata(error.to_string()))?;
    let computed = founding
        .as_ref()
        .and_then(|payload| ConfigEntry::decode(payload).ok())
        .map(|entry| cluster_id(&entry).to_string());
    Ok(cluster_id_found.or(computed).map(|cluster_id| Found {
        cluster_id,
        founding: founding.unwrap_or_default(),
    }))
}

/// The cluster's id, if the command tells it.
fn founded_in(payload: &[u8]) -> Option<String> {
    use prost::Message;
    let command = pb::MetadataCommand::decode(payload).ok()?.command?;
    match command {
        Command::FoundCluster(found) => Some(found.cluster_id),
        Command::Image(image) => image.cluster.map(|found| found.cluster_id),
        _ => None,
    }
}

/// Waits until the metadata know this broker as it is, and, where it is alone, until it leads what it has.
async fn registered(core: &Arc<Core>, node: &Arc<Node>) -> Result<(), Error> {
    if core.store.poisoned().is_some() {
        return Ok(());
    }
    let me = core.config.broker.id;
    let directory = core.store.directory_id();
    loop {
        let known = {
            let table = core.metadata.table();
            let known = table.brokers().get(&me);
            // What a broker says of itself beyond that may follow later.
            known.is_some_and(|broker| broker.directory == directory) && table.cluster().is_some()
        };
        let result = core.register_anywhere(&node.identity()).await;
        if known {
            break;
        }
        if let Err(error) = result
            && found::is_hopeless(&error)
        {
            return Err(Error::Start(error.to_string()));
        }
        tokio::time::sleep(REGISTER_EVERY).await;
    }
    if core.cluster.peers().is_none() {
        let all_lead = async {
            let mut changes = core.cluster.changes();
            let leads = |_: &u64| {
                let topics = core.directory.topics();
                let mut hosted = topics.iter().flat_map(|topic| topic.hosted());
                core.metadata.is_controller() && hosted.all(|partition| partition.lead().settled)
            };
            let _ = changes.wait_for(leads).await;
        };
        let _ = tokio::time::timeout(ALONE_WAIT, all_lead).await;
    }
    Ok(())
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

    /// Ends when the broker has stopped, whoever stopped it, or when it has given up and is to be shut down.
    pub async fn wait(&self) {
        tokio::select! {
            () = self.ended() => {}
            () = self.core.lifecycle.gave_up() => {}
        }
    }

    /// Why the broker ended by itself, if it did: it serves nobody and will not do so again.
    pub fn given_up(&self) -> Option<String> {
        self.core.lifecycle.why_given_up()
    }

    async fn ended(&self) {
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
            self.ended().await;
            return Ok(());
        };
        let lifecycle = &self.core.lifecycle;
        self.health.set(false).await;
        self.resign().await;
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
        if let Some(peers) = self.core.cluster.peers() {
            peers.close();
        }
        parts.tasks.iter().for_each(JoinHandle::abort);
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

    /// Hands everything that is led here to others, as far as they can take it. What nobody else is in sync with is not
    /// waited for.
    async fn resign(&self) {
        let core = &self.core;
        if core.cluster.peers().is_none() || core.store.poisoned().is_some() {
            return;
        }
        core.shards.submit_all(|| Work::Resign);
        let mut changes = core.cluster.changes();
        let leads_nothing = |_: &u64| {
            let live = core.cluster.live_brokers();
            let others = |in_sync: Vec<i32>| {
                let mut brokers = in_sync.iter();
                brokers.any(|id| *id != core.cluster.me() && live.contains(id))
            };
            let topics = core.directory.topics();
            let mut hosted = topics.iter().flat_map(|topic| topic.hosted());
            let (topic, number) = METADATA;
            let metadata = core.cluster.metadata_lead().here;
            let metadata = metadata && others(core.cluster.in_sync(topic, number));
            let partitions = hosted.any(|one| one.lead().here && others(one.in_sync()));
            !(metadata || partitions)
        };
        if tokio::time::timeout(RESIGN_WAIT, changes.wait_for(leads_nothing))
            .await
            .is_err()
        {
            tracing::warn!("not everything could be handed over; the rest is elected anew");
        }
    }
}

impl Drop for RunningBroker {
    /// Without a shutdown before, this is a crash: nobody is told, nothing is handed over, and nothing goes on that could
    /// still speak for this broker. Joins threads, which takes them what is in their inboxes.
    fn drop(&mut self) {
        let Some(parts) = self.parts.lock().take() else {
            return;
        };
        parts.housekeeping.abort();
        parts.grpc.abort();
        parts.http.abort();
        parts.tasks.iter().for_each(JoinHandle::abort);
        if let Some(peers) = self.core.cluster.peers() {
            peers.close();
        }
        parts.http_slot.store(None);
        self.core.lifecycle.hang_up.notify_waiters();
        self.core.lifecycle.enter(Phase::Stopped);
        parts.committed.stop();
        let _ = parts.backend.join();
        self.core.shards.stop();
        drop(parts.storage);
        self.stopped.notify_waiters();
    }
}
