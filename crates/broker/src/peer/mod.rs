//! Between brokers: messages of all Raft groups, soft state, and a few calls.
//!
//! ```text
//!  shard threads ─ send ─► lane queues ─► two connections to each broker ─► server ─► PeerHandler
//!                          prompt · bulk of each shard   (link: dial, greet, back off)
//! ```
//!
//! - `lane`: bounded queues that the streams pull from. `link`: dials, and knows whether the other is there.
//! - `hello`, `sessions`: who may speak. `server`: listens. `convert`: the wire's form of envelopes.
//! - `connection`: one HTTP/2 connection. `limits`: every bound. `stats`: counts.
//!
//! **Invariants.** Nothing that is prompt waits for entries or a disk: it has a connection of its own. Within a lane and a
//! connection order is kept; nothing else is promised, and Raft needs no more. A sender never waits: what does not fit is
//! dropped, counted, and told once. A message is handed over only when its sender was accepted and the message is whole
//! (INV-11). Every queue has a bound (INV-12).
//!
//! What it is not: it knows no group and no metadata. Who may join, and what a message means, is the [`PeerHandler`]'s.

mod connection;
mod convert;
mod handler;
mod hello;
mod lane;
mod limits;
mod link;
mod quiet;
mod server;
mod sessions;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use timberline_consensus::Envelope;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_proto::internal::peer_call_service_client::PeerCallServiceClient;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::listen::Listener;

use connection::{Connection, Use, unreachable};
use limits::{CALL_BYTES_MAX, JOIN_TIMEOUT, SEGMENT_TIMEOUT, SHARDS_MAX, STATUS_TIMEOUT};
use link::Link;
use stats::Counters;

pub(crate) use convert::ShardBeats;
pub(crate) use handler::PeerHandler;
pub(crate) use hello::{Hello, LaneId};
pub(crate) use limits::PEER_CONNECTIONS_MAX;
pub(crate) use stats::PeerStats;

/// What this broker says of itself to others.
#[derive(Clone, Debug)]
pub(crate) struct PeerIdentity {
    /// Its number.
    pub(crate) broker_id: i32,
    /// Where it stands.
    pub(crate) rack: String,
    /// Its data directory.
    pub(crate) directory: Uuid,
    /// Starts of that directory.
    pub(crate) boot: u64,
}

/// Another broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerInfo {
    /// HOST:PORT of its peer listener.
    pub(crate) address: String,
    /// Where it stands.
    pub(crate) rack: String,
}

/// How it stands with one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerState {
    /// Prompt messages go through.
    pub(crate) prompt: bool,
    /// Entries go through.
    pub(crate) bulk: bool,
    /// Why not, as far as is known.
    pub(crate) last_error: Option<ApiError>,
}

/// A way to pull segments from one broker.
pub(crate) struct Segments {
    address: String,
    connection: Connection,
}

impl Segments {
    /// One call.
    ///
    /// # Errors
    /// `PEER_UNREACHABLE`, `TIMEOUT`, or what the other side says.
    pub(crate) async fn ask(
        &self,
        request: pb::SnapshotRequest,
    ) -> Result<pb::SnapshotResponse, ApiError> {
        let ready = Some(self.connection.clone());
        call(&self.address, SEGMENT_TIMEOUT, ready, async |mut client| {
            client.snapshot(request).await
        })
        .await
    }
}

/// All other brokers. A cheap handle.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    identity: PeerIdentity,
    shards: u16,
    /// Empty until the cluster is founded or joined; nobody is dialed before.
    cluster: watch::Sender<String>,
    /// Set by `start`, taken by `close`: it usually holds a `Peers` itself.
    started: RwLock<Option<Started>>,
    links: ArcSwap<BTreeMap<i32, Arc<Link>>>,
    /// What the links are made for, by one at a time.
    known: Mutex<BTreeMap<i32, PeerInfo>>,
    counters: Arc<Counters>,
    closed: watch::Sender<bool>,
}

#[derive(Clone)]
struct Started {
    handler: Arc<dyn PeerHandler>,
    runtime: Handle,
}

impl Peers {
    /// A handle for `shards` sending threads. It does nothing before [`Peers::start`].
    pub(crate) fn new(identity: PeerIdentity, shards: u16) -> Peers {
        Peers {
            shared: Arc::new(Shared {
                identity,
                shards: shards.min(SHARDS_MAX),
                cluster: watch::Sender::new(String::new()),
                started: RwLock::new(None),
                links: ArcSwap::default(),
                known: Mutex::default(),
                counters: Arc::default(),
                closed: watch::Sender::new(false),
            }),
        }
    }

    /// Names who is told, and starts to dial on the current tokio runtime: those known so far, once the cluster has an id.
    pub(crate) fn start(&self, handler: Arc<dyn PeerHandler>) {
        *self.shared.started.write() = Some(Started {
            handler,
            runtime: Handle::current(),
        });
        self.relink();
    }

    /// Listens to other brokers, after [`Peers::start`]. Ends after [`Peers::close`].
    ///
    /// # Errors
    /// `INTERNAL` before the start.
    pub(crate) fn serve(
        &self,
        listener: Listener,
    ) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, ApiError> {
        let started = self.shared.started.read().clone();
        let started =
            started.ok_or_else(|| ApiError::new(Reason::Internal, "peers are not started"))?;
        Ok(server::serve(self.clone(), started.handler, listener))
    }

    /// Says which cluster this broker belongs to. Dialing waits for it.
    pub(crate) fn set_cluster(&self, cluster_id: &str) {
        self.shared.cluster.send_replace(cluster_id.to_owned());
    }

    /// Says who there is. Links of others are cut, an address that changed makes a new link; this broker is left out.
    pub(crate) fn set_known(&self, mut known: BTreeMap<i32, PeerInfo>) {
        known.remove(&self.shared.identity.broker_id);
        *self.shared.known.lock() = known;
        self.relink();
    }

    /// Makes the links those of the brokers known.
    fn relink(&self) {
        let shared = &self.shared;
        let cut: Vec<i32> = {
            let known = shared.known.lock();
            let before = shared.links.load_full();
            let mut kept = BTreeMap::clone(&before);
            kept.retain(|broker, link| {
                known.get(broker).is_some_and(|i| i.address == link.address)
            });
            let cut = before.iter().filter(|(broker, link)| {
                !kept.contains_key(broker) && link.prompt.connected.load(Ordering::SeqCst)
            });
            let cut = cut.map(|(broker, _)| *broker).collect();
            shared.links.store(Arc::new(kept));
            cut
        };
        // Before a new link can say that it is connected.
        for broker in cut {
            self.tell(|handler| handler.lost(broker, false));
        }
        let known = shared.known.lock();
        let Some(started) = shared.started.read().clone() else {
            return;
        };
        let _on_runtime = started.runtime.enter();
        let mut links = BTreeMap::clone(&shared.links.load());
        for (broker, info) in known.iter() {
            links
                .entry(*broker)
                .or_insert_with(|| Arc::new(Link::start(self, *broker, &info.address)));
        }
        shared.links.store(Arc::new(links));
    }

    /// Sends messages of one shard's groups, in order for each lane. Never blocks. What does not fit is dropped; the first
    /// time, [`PeerHandler::unreachable`] is called before this returns, on the calling thread. A broker without a link
    /// gets nothing, which is only counted: there is [`PeerHandler::connected`] when it has one.
    pub(crate) fn send(&self, broker: i32, shard: u16, messages: Vec<Envelope>) {
        let links = self.shared.links.load();
        let Some(link) = links.get(&broker) else {
            let bytes = messages.iter().map(Envelope::payload_bytes).sum();
            self.shared.counters.dropped(messages.len(), bytes);
            return;
        };
        let (bulk, prompt): (Vec<_>, Vec<_>) = messages.into_iter().partition(Envelope::is_bulk);
        let mut began = !prompt.is_empty() && link.prompt_lane().offer(prompt);
        if !bulk.is_empty() {
            match link.bulk_lane(shard) {
                Some(lane) => began |= lane.offer(bulk),
                None => self.shared.counters.dropped(bulk.len(), 0),
            }
        }
        if began {
            self.tell(|handler| handler.unreachable(broker));
        }
    }

    /// Tells all brokers that a shard is alive, by the prompt lane. Never blocks. While a broker is known to be down, it is
    /// dropped.
    pub(crate) fn shard_beat(&self, shard: u16) {
        for link in self.shared.links.load().values() {
            let lane = link.prompt_lane();
            lane.offer_shard_beat(shard, self.shared.shards);
        }
    }

    /// Tells a broker who leads what, by the prompt lane. Never blocks. What does not fit is dropped and only counted; on
    /// [`PeerHandler::connected`] everything should be said again.
    pub(crate) fn gossip(&self, broker: i32, leaderships: Vec<pb::Leadership>) {
        match self.shared.links.load().get(&broker) {
            Some(link) => link.prompt_lane().offer_gossip(leaderships),
            None => self.shared.counters.gossip_dropped(leaderships.len()),
        }
    }

    /// Asks the broker at HOST:PORT who it is; it need not be known.
    ///
    /// # Errors
    /// `PEER_UNREACHABLE`, `TIMEOUT`, or what the other side says.
    pub(crate) async fn status(
        &self,
        address: &str,
        request: pb::StatusRequest,
    ) -> Result<pb::StatusResponse, ApiError> {
        call(address, STATUS_TIMEOUT, None, async |mut client| {
            client.status(request).await
        })
        .await
    }

    /// Asks the broker at HOST:PORT to register this one.
    ///
    /// # Errors
    /// As [`Peers::status`].
    pub(crate) async fn join(
        &self,
        address: &str,
        request: pb::JoinRequest,
    ) -> Result<pb::JoinResponse, ApiError> {
        call(address, JOIN_TIMEOUT, None, async |mut client| {
            client.join(request).await
        })
        .await
    }

    /// Has a known broker make a change of metadata. After `TIMEOUT` or `PEER_UNREACHABLE` the outcome is unknown.
    ///
    /// # Errors
    /// As [`Peers::status`]; `UNKNOWN_BROKER` if there is no link to it.
    pub(crate) async fn forward(
        &self,
        broker: i32,
        request: pb::ForwardRequest,
        timeout: Duration,
    ) -> Result<pb::ForwardResponse, ApiError> {
        let link = self.shared.links.load().get(&broker).cloned();
        let link = link.ok_or_else(|| {
            ApiError::new(
                Reason::UnknownBroker,
                format!("broker {broker} is not known here"),
            )
        })?;
        let ready = link.bulk.connection.lock().clone();
        call(&link.address, timeout, ready, async |mut client| {
            client.forward(request).await
        })
        .await
    }

    /// A connection of its own to a known broker, for segments: neither messages nor entries wait behind them.
    ///
    /// # Errors
    /// `UNKNOWN_BROKER`, `PEER_UNREACHABLE`.
    pub(crate) async fn segments(&self, broker: i32) -> Result<Segments, ApiError> {
        let link = self.shared.links.load().get(&broker).cloned();
        let link = link.ok_or_else(|| {
            ApiError::new(
                Reason::UnknownBroker,
                format!("broker {broker} is not known here"),
            )
        })?;
        let connection = Connection::open(&link.address, Use::Bulk)
            .await
            .map_err(|failure| failure.error)?;
        Ok(Segments {
            address: link.address.clone(),
            connection,
        })
    }

    /// How it stands with a broker. `None`: not known.
    pub(crate) fn state(&self, broker: i32) -> Option<PeerState> {
        let links = self.shared.links.load();
        let link = links.get(&broker)?;
        let error = link.prompt.last_error.lock().clone();
        Some(PeerState {
            prompt: link.prompt.connected.load(Ordering::SeqCst),
            bulk: link.bulk.connected.load(Ordering::SeqCst),
            last_error: error.or_else(|| link.bulk.last_error.lock().clone()),
        })
    }

    /// Totals since the start.
    pub(crate) fn stats(&self) -> PeerStats {
        self.shared.counters.totals()
    }

    /// Hangs up, says goodbye to who is connected, and ends the listener. Without it, dialing goes on as long as the runtime. The handler hears nothing more, but for messages
    /// that are being handed over.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
        *self.shared.started.write() = None;
        let mut known = self.shared.known.lock();
        known.clear();
        self.shared.links.store(Arc::default());
    }
}

// What the parts of this module ask of each other.
impl Peers {
    fn broker_id(&self) -> i32 {
        self.shared.identity.broker_id
    }

    fn shards(&self) -> u16 {
        self.shared.shards
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Calls the handler, if there is one, outside of every lock.
    fn tell(&self, what: impl FnOnce(&dyn PeerHandler)) {
        let handler = self
            .shared
            .started
            .read()
            .as_ref()
            .map(|s| Arc::clone(&s.handler));
        if let Some(handler) = handler {
            what(&*handler);
        }
    }

    fn hello(&self, lane: LaneId) -> Hello {
        let identity = &self.shared.identity;
        Hello {
            cluster_id: self.shared.cluster.borrow().clone(),
            broker_id: identity.broker_id,
            directory: identity.directory,
            boot: identity.boot,
            rack: identity.rack.clone(),
            lane,
        }
    }

    fn accepted(&self, version: u32) -> pb::PeerAccepted {
        pb::PeerAccepted {
            broker_id: self.shared.identity.broker_id,
            boot: self.shared.identity.boot,
            version,
        }
    }

    /// A broker was heard of: whoever waits to dial it does so now.
    fn nudge(&self, broker: i32) {
        if let Some(link) = self.shared.links.load().get(&broker) {
            link.prompt.kick.notify_waiters();
            link.bulk.kick.notify_waiters();
        }
    }

    async fn has_cluster(&self) {
        let mut cluster = self.shared.cluster.subscribe();
        // An error means that all is over; the task that waits is ended then.
        let _ = cluster.wait_for(|id| !id.is_empty()).await;
    }

    /// Ends when `close` was called. Owns what it needs.
    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.shared.closed.subscribe();
        async move {
            let _ = closed.wait_for(|&closed| closed).await;
        }
    }
}

/// A call beside the streams, on the connection that is there or one of its own.
async fn call<R>(
    address: &str,
    timeout: Duration,
    ready: Option<Connection>,
    ask: impl AsyncFnOnce(
        PeerCallServiceClient<Connection>,
    ) -> Result<tonic::Response<R>, tonic::Status>,
) -> Result<R, ApiError> {
    let work = async {
        let connection = match ready.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => Connection::open(address, Use::Bulk)
                .await
                .map_err(|failure| failure.error)?,
        };
        let origin = connection.origin();
        let client = PeerCallServiceClient::with_origin(connection, origin)
            .max_decoding_message_size(CALL_BYTES_MAX)
            .max_encoding_message_size(CALL_BYTES_MAX);
        match ask(client).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => {
                let error = ApiError::from_status(&status);
                // Without a reason it is not the broker that speaks but what lies between.
                let broken = error.reason.is_none()
                    && matches!(error.code, tonic::Code::Unknown | tonic::Code::Unavailable);
                Err(if broken {
                    unreachable(address, error.message)
                } else {
                    error
                })
            }
        }
    };
    tokio::time::timeout(timeout, work).await.map_err(|_| {
        ApiError::new(
            Reason::Timeout,
            format!("the broker at {address} did not answer within {timeout:?}"),
        )
    })?
}
