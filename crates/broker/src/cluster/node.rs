//! This broker, as others see it: who may speak to it, where their messages go, what they may ask.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use prost::Message;
use timberline_consensus::{ConfigEntry, Envelope, Member, NodeId};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_storage::{Log, ReplicaId, chain_seed};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::transfer::Sends;
use super::{Cluster, METADATA};
use crate::core::Core;
use crate::groups;
use crate::grpc::{self, Services};
use crate::metadata::backend::METADATA_REPLICA;
use crate::metadata::plan::{self, Registration};
use crate::metadata::table::id_bytes;
use crate::peer::{Hello, PeerHandler, Peers, ShardBeats};
use crate::shard::{Shards, Work};

/// How long another broker may take to make a change for us.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(35);
/// Forwarded by us, not by a client.
pub(crate) const TRANSFER: &str = "internal.Transfer";
pub(crate) const REGISTER: &str = "internal.Register";
/// Makes the topic of consumer groups.
pub(crate) const CREATE_GROUPS: &str = "internal.CreateGroups";
/// Ends and ages of partitions that the receiver leads.
pub(crate) const POSITIONS: &str = "internal.Positions";
pub(crate) const FINISH_REASSIGN: &str = "internal.FinishReassign";

/// A broker's replica of the metadata group: as unique as its data directory, so that nobody has to hand it out.
pub(crate) fn metadata_node(directory: Uuid) -> NodeId {
    // Half the range: sums of ids stay in range. 0 is nobody.
    (xxh3_64(directory.as_bytes()) >> 1).max(1)
}

/// The tag of the metadata group.
pub(crate) fn metadata_tag() -> u64 {
    chain_seed(METADATA.0, METADATA.1 as u32)
}

/// The cluster's id: as unique as its founding entry, which every founder writes alike.
pub(crate) fn cluster_id(founding: &ConfigEntry) -> Uuid {
    let digest = xxh3_128(&founding.encode());
    uuid::Builder::from_custom_bytes(digest.to_le_bytes()).into_uuid()
}

/// What a broker that takes part in a cluster is made of, before and after it has one.
pub(crate) struct Node {
    /// What it says of itself; its cluster is filled in when it has one.
    identity: pb::PeerIdentity,
    directory: Uuid,
    cluster: Arc<Cluster>,
    shards: OnceLock<Arc<Shards>>,
    core: OnceLock<Weak<Core>>,
    found: RwLock<Option<Found>>,
    /// The metadata log. What it has may be committed although this broker does not know it yet.
    metadata: OnceLock<Arc<Log>>,
    /// Snapshots on their way to others.
    pub(crate) sends: Sends,
    /// Brokers that founded with us or let us in, as they said who they are; it counts until the metadata has them.
    trusted: RwLock<BTreeMap<i32, pb::PeerIdentity>>,
}

/// The cluster that this broker belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) cluster_id: String,
    /// The founding entry; empty for who joined later.
    pub(crate) founding: bytes::Bytes,
}

impl Node {
    pub(crate) fn new(
        identity: pb::PeerIdentity,
        directory: Uuid,
        cluster: Arc<Cluster>,
        transfer_rate: u64,
    ) -> Arc<Node> {
        Arc::new(Node {
            identity,
            directory,
            cluster,
            shards: OnceLock::new(),
            core: OnceLock::new(),
            found: RwLock::default(),
            metadata: OnceLock::new(),
            sends: Sends::new(transfer_rate),
            trusted: RwLock::default(),
        })
    }

    pub(crate) fn set_shards(&self, shards: &Arc<Shards>) {
        let _ = self.shards.set(Arc::clone(shards));
    }

    pub(crate) fn set_core(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    pub(crate) fn set_metadata(&self, log: &Arc<Log>) {
        let _ = self.metadata.set(Arc::clone(log));
    }

    /// Whether the metadata group has this broker's replica: after a start that may be all that is known.
    fn is_member(&self, broker: i32, directory: Uuid) -> bool {
        let Some(log) = self.metadata.get() else {
            return false;
        };
        let (_, payload) = log.last_membership();
        let members = ConfigEntry::decode(&payload).map(|entry| entry.result.members());
        let member = Member {
            node: metadata_node(directory),
            broker,
        };
        members.is_ok_and(|members| members.contains(&member))
    }

    pub(crate) fn set_found(&self, found: Found) {
        if let Some(peers) = self.cluster.peers() {
            peers.set_cluster(&found.cluster_id);
        }
        *self.found.write() = Some(found);
    }

    pub(crate) fn trust(&self, identity: &pb::PeerIdentity) {
        let mut trusted = self.trusted.write();
        trusted.insert(identity.broker_id, identity.clone());
    }

    /// Those who are let in although the metadata may not have them yet.
    pub(crate) fn trusted(&self) -> Vec<pb::PeerIdentity> {
        self.trusted.read().values().cloned().collect()
    }

    pub(crate) fn identity(&self) -> pb::PeerIdentity {
        let found = self.found.read();
        pb::PeerIdentity {
            cluster_id: found
                .as_ref()
                .map(|found| found.cluster_id.clone())
                .unwrap_or_default(),
            ..self.identity.clone()
        }
    }

    fn core(&self) -> Result<Arc<Core>, ApiError> {
        let core = self.core.get().and_then(Weak::upgrade);
        core.ok_or_else(|| {
            ApiError::new(Reason::Draining, "this broker is starting or stopping")
                .with_retry_after(Duration::from_millis(100))
        })
    }

    /// Where messages for a replica go.
    fn replica_of(&self, envelope: &Envelope) -> Option<ReplicaId> {
        if envelope.group == metadata_tag() {
            return (envelope.to == metadata_node(self.directory)).then_some(METADATA_REPLICA);
        }
        // 0 is the metadata's on every broker.
        (envelope.to != 0).then_some(ReplicaId(envelope.to))
    }

    fn to_all_shards(&self, work: impl Fn() -> Work) {
        if let Some(shards) = self.shards.get() {
            shards.submit_all(work);
        }
    }
}

fn registration(identity: &pb::PeerIdentity) -> Option<Registration> {
    Some(Registration {
        id: identity.broker_id,
        rack: identity.rack.clone(),
        directory: Uuid::from_slice(&identity.directory_id).ok()?,
        grpc: identity.grpc_address.clone(),
        peer: identity.peer_address.clone(),
        http: identity.http_address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Whether the metadata here know a broker as it is.
pub(crate) fn is_registered(core: &Core, identity: &pb::PeerIdentity) -> bool {
    registration(identity).is_some_and(|one| one.is_known(&core.metadata.table()))
}

/// Registers a broker in the metadata. Only where they are led.
///
/// # Errors
/// Those of the plan and of the change.
pub(crate) async fn register(
    core: &Arc<Core>,
    identity: &pb::PeerIdentity,
) -> Result<(), ApiError> {
    let registration = registration(identity)
        .ok_or_else(|| ApiError::invalid("directory_id", "a directory id has 16 bytes"))?;
    if registration.is_known(&core.metadata.table()) {
        return Ok(());
    }
    let lives = {
        use crate::metadata::leadership::Leadership;
        core.cluster.live_brokers().contains(&registration.id)
    };
    let change = core.metadata.change("", |table| {
        plan::register_broker(table, &registration, lives)
    });
    change.await.map(drop)
}

/// A request to hand a partition over.
pub(super) fn transfer_request(topic: Uuid, partition: i32, to: i32) -> pb::ForwardRequest {
    let leadership = pb::Leadership {
        topic_id: id_bytes(topic),
        partition,
        term: 0,
        broker_id: to,
        in_sync: Vec::new(),
    };
    pb::ForwardRequest {
        method: TRANSFER.to_owned(),
        payload: leadership.encode_to_vec().into(),
    }
}

/// Has another broker do something, and gives back its answer and the revision that shows it.
///
/// # Errors
/// Those of the transport and of the other broker.
pub(crate) async fn forwarded(
    peers: &Peers,
    broker: i32,
    request: pb::ForwardRequest,
) -> Result<(bytes::Bytes, u64), ApiError> {
    answered(peers.forward(broker, request, FORWARD_TIMEOUT).await?)
}

/// As [`forwarded`], in less time, and for what changes no metadata.
///
/// # Errors
/// As [`forwarded`].
pub(crate) async fn forwarded_within(
    peers: &Peers,
    broker: i32,
    request: pb::ForwardRequest,
    timeout: Duration,
) -> Result<bytes::Bytes, ApiError> {
    let answer = peers.forward(broker, request, timeout).await?;
    answered(answer).map(|(payload, _)| payload)
}

fn answered(answer: pb::ForwardResponse) -> Result<(bytes::Bytes, u64), ApiError> {
    use pb::forward_response::Outcome;
    match answer.outcome {
        Some(Outcome::Payload(payload)) => Ok((payload, answer.revision)),
        Some(Outcome::Error(error)) => Err(ApiError::from_item(&error)),
        None => Err(ApiError::new(Reason::Internal, "an answer without outcome")),
    }
}

fn malformed(error: prost::DecodeError) -> ApiError {
    ApiError::new(Reason::MalformedMessage, error.to_string())
}

impl Node {
    async fn perform(&self, request: pb::ForwardRequest) -> Result<bytes::Bytes, ApiError> {
        let core = self.core()?;
        match request.method.as_str() {
            TRANSFER => {
                let wanted = pb::Leadership::decode(request.payload).map_err(malformed)?;
                let topic = Uuid::from_slice(&wanted.topic_id)
                    .map_err(|_| ApiError::invalid("topic_id", "a topic id has 16 bytes"))?;
                let hosted = self.cluster.hosted(topic, wanted.partition);
                let hosted = hosted.filter(|hosted| hosted.lead().here);
                let hosted =
                    hosted.ok_or_else(|| self.cluster.not_leader(topic, wanted.partition, None))?;
                self.cluster.hand_over(hosted, wanted.broker_id).await?;
                Ok(bytes::Bytes::new())
            }
            REGISTER => {
                let identity = pb::PeerIdentity::decode(request.payload).map_err(malformed)?;
                register(&core, &identity).await?;
                Ok(bytes::Bytes::new())
            }
            CREATE_GROUPS => {
                groups::serve::log::create(&core).await?;
                Ok(bytes::Bytes::new())
            }
            POSITIONS => {
                let wanted = pb::PositionsRequest::decode(request.payload).map_err(malformed)?;
                let answer = groups::serve::positions::answer(&core, wanted).await?;
                Ok(answer.encode_to_vec().into())
            }
            FINISH_REASSIGN => {
                let finish = pb::FinishReassign::decode(request.payload).map_err(malformed)?;
                super::control::finish_reassign(&core, finish).await?;
                Ok(bytes::Bytes::new())
            }
            _ => grpc::perform_forwarded(&Services::of_peer(core), request).await,
        }
    }
}

#[tonic::async_trait]
impl PeerHandler for Node {
    fn hello(&self, hello: &Hello) -> Result<(), ApiError> {
        let found = self.found.read().as_ref().map(|f| f.cluster_id.clone());
        let Some(mine) = found else {
            return Err(ApiError::new(
                Reason::UnknownBroker,
                "this broker has no cluster yet",
            ));
        };
        if hello.cluster_id != mine {
            return Err(ApiError::new(
                Reason::WrongCluster,
                format!("this is cluster {mine}, not {}", hello.cluster_id),
            ));
        }
        let brokers = self.cluster.brokers();
        let registered = brokers.get(&hello.broker_id).map(|known| known.directory);
        let trusted = self.trusted.read();
        let trusted = trusted.get(&hello.broker_id);
        let trusted = trusted.and_then(|one| Uuid::from_slice(&one.directory_id).ok());
        match registered.or(trusted) {
            Some(directory) if directory == hello.directory => Ok(()),
            _ if self.is_member(hello.broker_id, hello.directory) => Ok(()),
            Some(_) => Err(ApiError::new(
                Reason::DuplicateBroker,
                format!(
                    "broker {} is registered with another data directory",
                    hello.broker_id
                ),
            )),
            None => Err(ApiError::new(
                Reason::UnknownBroker,
                format!("broker {} is not registered", hello.broker_id),
            )),
        }
    }

    fn messages(&self, from: i32, batch: Vec<Envelope>) {
        let Some(shards) = self.shards.get() else {
            return;
        };
        let mut by_replica: BTreeMap<ReplicaId, (Vec<Envelope>, usize)> = BTreeMap::new();
        let mut beats = Vec::new();
        for envelope in batch {
            if let Some(replica) = self.replica_of(&envelope) {
                if envelope.is_beat() {
                    beats.push((replica, envelope));
                    continue;
                }
                let (envelopes, bytes) = by_replica.entry(replica).or_default();
                *bytes += envelope.payload_bytes();
                envelopes.push(envelope);
            }
        }
        shards.submit_beats(from, beats);
        for (replica, (envelopes, bytes)) in by_replica {
            shards.submit(
                replica,
                Work::Messages {
                    replica,
                    from,
                    envelopes,
                    bytes,
                },
            );
        }
    }

    fn shard_beats(&self, from: i32, beats: ShardBeats) {
        if let Some(shards) = self.shards.get() {
            shards.note_alive(from, &beats);
        }
    }

    fn leaderships(&self, _from: i32, leaderships: Vec<pb::Leadership>) {
        self.cluster.hear(leaderships);
    }

    fn connected(&self, broker: i32) {
        tracing::info!(broker, "connected to a broker");
        self.cluster.set_live(broker, true);
        self.cluster.announce_all(broker);
    }

    fn lost(&self, broker: i32, refused: bool) {
        tracing::info!(broker, refused, "lost a broker");
        self.cluster.set_live(broker, false);
        if refused {
            self.to_all_shards(|| Work::PeerLost(broker));
        } else {
            self.to_all_shards(|| Work::PeerUnreachable(broker));
        }
    }

    fn unreachable(&self, broker: i32) {
        self.to_all_shards(|| Work::PeerUnreachable(broker));
    }

    async fn status(&self, _request: pb::StatusRequest) -> Result<pb::StatusResponse, ApiError> {
        let found = self.found.read().clone();
        let peers = self.cluster.brokers();
        let peers = peers.iter().map(|(id, broker)| pb::PeerAddress {
            broker_id: *id,
            address: broker.peer.clone(),
            directory_id: broker.directory.as_bytes().to_vec().into(),
        });
        Ok(pb::StatusResponse {
            answerer: Some(self.identity()),
            founded: found
                .as_ref()
                .map(|found| found.cluster_id.clone())
                .unwrap_or_default(),
            membership: found.map(|found| found.founding).unwrap_or_default(),
            peers: peers.collect(),
        })
    }

    async fn forward(&self, request: pb::ForwardRequest) -> Result<pb::ForwardResponse, ApiError> {
        use pb::forward_response::Outcome;
        let outcome = match self.perform(request).await {
            Ok(payload) => Outcome::Payload(payload),
            Err(error) => Outcome::Error(error.to_item()),
        };
        let core = self.core()?;
        Ok(pb::ForwardResponse {
            outcome: Some(outcome),
            revision: *core.metadata.revisions().borrow(),
        })
    }

    async fn join(&self, request: pb::JoinRequest) -> Result<pb::JoinResponse, ApiError> {
        let core = self.core()?;
        let identity = request
            .broker
            .ok_or_else(|| ApiError::invalid("broker", "who joins?"))?;
        core.register_anywhere(&identity).await?;
        let found = self.found.read().clone();
        let peers = self.cluster.brokers();
        let peers = peers.iter().map(|(id, broker)| pb::PeerAddress {
            broker_id: *id,
            address: broker.peer.clone(),
            directory_id: broker.directory.as_bytes().to_vec().into(),
        });
        Ok(pb::JoinResponse {
            cluster_id: found.map(|found| found.cluster_id).unwrap_or_default(),
            revision: *core.metadata.revisions().borrow(),
            peers: peers.collect(),
        })
    }

    async fn snapshot(
        &self,
        request: pb::SnapshotRequest,
    ) -> Result<pb::SnapshotResponse, ApiError> {
        let core = self.core()?;
        let log = match request.group == metadata_tag() {
            true => self.metadata.get().cloned(),
            false => core.store.log(ReplicaId(request.from)),
        };
        let spec = |log: &Arc<Log>| chain_seed(log.spec().topic, log.spec().partition);
        let log = log.filter(|log| spec(log) == request.group);
        let log = log
            .ok_or_else(|| ApiError::new(Reason::NotLeader, "the replica is not here any more"))?;
        let (group, replica, to) = (request.group, log.spec().replica, request.to);
        let answer = self.sends.answer(log, request).await?;
        if self.sends.is_to_be_told(group, to) {
            let work = Work::SendGoesOn { replica, node: to };
            core.shards.submit(replica, work);
        }
        Ok(answer)
    }
}
