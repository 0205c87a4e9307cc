//! The other brokers: who they are, who lives, who leads what. Soft state, beside the metadata log.
//!
//! - this page: the view that calls and shards look at.
//! - `node`: what other brokers may ask of this one, and where their messages go. `found`: how a cluster begins, and how a
//!   broker finds it. `control`: what the controller looks after. `members`: who votes on the metadata. `transfer`: sealed
//!   segments for followers.
//!
//! **Invariants.** Of two claims about a partition's leader the higher term wins. Nothing here is ever written down.

pub(crate) mod control;
pub(crate) mod found;
mod members;
pub(crate) mod node;
pub(crate) mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, FutureExt};
use parking_lot::{Mutex, RwLock};
use timberline_consensus::Envelope;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_storage::ReplicaId;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::metadata::leadership::Leadership;
use crate::metadata::table::{Broker, id_bytes};
use crate::partition::{Directory, Lead, Partition};
use crate::peer::Peers;
use crate::shard::{Shards, Work};

/// What a client is told to wait while there is no leader: less than an election takes, it asks again.
const RETRY_WITHOUT_LEADER: Duration = Duration::from_millis(20);
/// How long a hand-over may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// Between two looks for the controller.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a broker says again what it leads and who is in sync.
const TELL_AGAIN_EVERY: Duration = Duration::from_secs(5);

/// The metadata log, as a partition.
pub(crate) const METADATA: (Uuid, i32) = (Uuid::nil(), 0);

/// A leader that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    term: u64,
    /// `None`: the term has no leader that is known.
    broker: Option<i32>,
    in_sync: Vec<i32>,
}

/// What this broker knows of the others.
pub(crate) struct Cluster {
    me: i32,
    /// As the metadata has them.
    brokers: ArcSwap<BTreeMap<i32, Broker>>,
    claims: RwLock<HashMap<(Uuid, i32), Claim>>,
    /// Rung whenever a claim or a broker changes; counts up.
    changes: watch::Sender<u64>,
    live: RwLock<BTreeSet<i32>>,
    /// Since when no controller has been known, as [`Cluster::keep_telling`] found it.
    controller_missed_at: Mutex<Option<Instant>>,
    /// `None` for a broker that is a cluster of its own.
    peers: Option<Peers>,
    directory: Arc<Directory>,
    shards: OnceLock<Arc<Shards>>,
    /// The metadata log's replica here.
    metadata: OnceLock<Arc<Partition>>,
}

impl Cluster {
    pub(crate) fn new(me: i32, peers: Option<Peers>, directory: Arc<Directory>) -> Arc<Cluster> {
        Arc::new(Cluster {
            me,
            brokers: ArcSwap::default(),
            claims: RwLock::default(),
            changes: watch::Sender::new(0),
            live: RwLock::new(BTreeSet::from([me])),
            controller_missed_at: Mutex::new(None),
            peers,
            directory,
            shards: OnceLock::new(),
            metadata: OnceLock::new(),
        })
    }

    /// Names the shards, once they run.
    pub(crate) fn set_shards(&self, shards: &Arc<Shards>) {
        let _ = self.shards.set(Arc::clone(shards));
    }

    /// Names the metadata log's replica.
    pub(crate) fn set_metadata(&self, partition: &Arc<Partition>) {
        let _ = self.metadata.set(Arc::clone(partition));
    }

    /// Who leads the metadata, as its replica here knows it.
    pub(crate) fn metadata_lead(&self) -> Lead {
        self.metadata
            .get()
            .map(|partition| partition.lead())
            .unwrap_or_default()
    }

    pub(crate) fn me(&self) -> i32 {
        self.me
    }

    pub(crate) fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    /// The brokers as the metadata has them.
    pub(crate) fn brokers(&self) -> Arc<BTreeMap<i32, Broker>> {
        self.brokers.load_full()
    }

    /// Called by the metadata's backend.
    pub(crate) fn set_brokers(&self, brokers: &BTreeMap<i32, Broker>) {
        if **self.brokers.load() != *brokers {
            self.brokers.store(Arc::new(brokers.clone()));
            self.changed();
        }
    }

    /// A way to wait for changes of leaders and brokers.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// A broker's prompt connection came or went.
    pub(crate) fn set_live(&self, broker: i32, lives: bool) {
        let changed = {
            let mut live = self.live.write();
            match lives {
                true => live.insert(broker),
                false => live.remove(&broker),
            }
        };
        if changed {
            self.changed();
        }
    }

    /// Messages from a shard's groups.
    pub(crate) fn send(&self, broker: i32, shard: u16, messages: Vec<Envelope>) {
        if let Some(peers) = &self.peers {
            peers.send(broker, shard, messages);
        }
    }

    /// A shard of this broker is alive.
    pub(crate) fn shard_beat(&self, shard: u16) {
        if let Some(peers) = &self.peers {
            peers.shard_beat(shard);
        }
    }

    /// A replica here knows more of its leader. Returns what others should hear, if it is this broker that leads.
    pub(crate) fn note_lead(&self, partition: &Partition, lead: Lead) -> Option<pb::Leadership> {
        let place = (partition.topic, partition.number);
        self.claim(place, lead.term, lead.leader, partition.in_sync());
        (lead.here).then(|| leadership(place, lead.term, self.me, partition.in_sync()))
    }

    fn claim(&self, place: (Uuid, i32), term: u64, broker: Option<i32>, in_sync: Vec<i32>) {
        let told = !in_sync.is_empty();
        let claim = Claim {
            term,
            broker,
            // A leader is in sync with itself, whoever else is.
            in_sync: if told {
                in_sync
            } else {
                broker.into_iter().collect()
            },
        };
        {
            let mut claims = self.claims.write();
            match claims.get_mut(&place) {
                Some(known) if known.term > term => return,
                // A leader that is known is not forgotten for one that is not, within its term, but by itself: it has
                // stepped down.
                Some(known)
                    if known.term == term && broker.is_none() && known.broker != Some(self.me) =>
                {
                    return;
                }
                // Only the leader knows who is in sync with it; a follower's own view says nothing about that.
                Some(known) if known.term == term && known.broker == broker && !told => {
                    return;
                }
                Some(known) if *known == claim => return,
                Some(known) => *known = claim,
                None => {
                    claims.insert(place, claim);
                }
            }
        }
        self.changed();
    }

    /// What another broker claims.
    pub(crate) fn hear(&self, leaderships: Vec<pb::Leadership>) {
        for heard in leaderships {
            if let Ok(topic) = Uuid::from_slice(&heard.topic_id) {
                let place = (topic, heard.partition);
                self.claim(place, heard.term, Some(heard.broker_id), heard.in_sync);
            }
        }
    }

    /// Tells all other brokers.
    pub(crate) fn announce(&self, leaderships: Vec<pb::Leadership>) {
        let Some(peers) = self.peers.as_ref().filter(|_| !leaderships.is_empty()) else {
            return;
        };
        for &broker in self.brokers.load().keys() {
            if broker != self.me {
                peers.gossip(broker, leaderships.clone());
            }
        }
    }

    /// Looks for the controller, and says again what this broker leads: news may get lost, and nobody would notice.
    pub(crate) async fn keep_telling(self: Arc<Self>) {
        let mut told_at = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look_for_controller();
            if told_at.elapsed() < TELL_AGAIN_EVERY {
                continue;
            }
            told_at = Instant::now();
            for &broker in self.brokers.load().keys() {
                if broker != self.me {
                    self.announce_all(broker);
                }
            }
        }
    }

    fn look_for_controller(&self) {
        let mut missed = self.controller_missed_at.lock();
        match self.controller() {
            Some(_) => *missed = None,
            None => *missed = missed.or_else(|| Some(Instant::now())),
        }
    }

    /// For how long no controller has been known.
    pub(crate) fn without_controller_for(&self) -> Option<Duration> {
        let missed = *self.controller_missed_at.lock();
        missed.map(|at| at.elapsed())
    }

    /// Tells one broker everything that this one leads.
    pub(crate) fn announce_all(&self, to: i32) {
        let Some(peers) = &self.peers else { return };
        let claims = self.claims.read();
        let mine = claims
            .iter()
            .filter(|(_, claim)| claim.broker == Some(self.me))
            .map(|(place, claim)| leadership(*place, claim.term, self.me, claim.in_sync.clone()));
        peers.gossip(to, mine.collect());
    }

    /// Forgets a deleted topic.
    pub(crate) fn forget(&self, topic: Uuid) {
        self.claims.write().retain(|(id, _), _| *id != topic);
    }

    /// `NOT_LEADER` with where to go, or `NO_LEADER`. `lead` is what the replica here knows, if there is one.
    pub(crate) fn not_leader(&self, topic: Uuid, number: i32, lead: Option<Lead>) -> ApiError {
        let heard = self.claims.read().get(&(topic, number)).cloned();
        let local = lead.map(|lead| (lead.term, lead.leader));
        let heard = heard.map(|claim| (claim.term, claim.broker));
        let best = local.into_iter().chain(heard).max();
        let (term, leader) = best.unwrap_or_default();
        // Nobody is sent to a broker that is gone.
        let there = |leader: &i32| *leader != self.me && self.live.read().contains(leader);
        let Some(leader) = leader.filter(there) else {
            return ApiError::new(
                Reason::NoLeader,
                format!("no leader is known for partition {number} now"),
            )
            .with("leader_epoch", term)
            .with_retry_after(RETRY_WITHOUT_LEADER);
        };
        let mut error = ApiError::new(
            Reason::NotLeader,
            format!("partition {number} is led by broker {leader}"),
        )
        .with("leader_id", leader)
        .with("leader_epoch", term);
        if let Some(broker) = self.brokers.load().get(&leader) {
            error = error.with("leader_address", &broker.grpc);
        }
        error
    }

    fn hosted(&self, topic: Uuid, number: i32) -> Option<Arc<Partition>> {
        if (topic, number) == METADATA {
            return self.metadata.get().cloned();
        }
        self.directory.by_id(topic)?.hosted_here(number)
    }

    fn submit(&self, replica: ReplicaId, work: Work) {
        if let Some(shards) = self.shards.get() {
            shards.submit(replica, work);
        }
    }

    /// Hands a partition that is led here to the replica on `to`.
    async fn hand_over(&self, partition: Arc<Partition>, to: i32) -> Result<(), ApiError> {
        let term = partition.lead().term;
        let mut changes = self.changes();
        let (reply, answer) = oneshot::channel();
        self.submit(
            partition.replica,
            Work::Transfer {
                replica: partition.replica,
                to: Some(to),
                reply: Some(reply),
            },
        );
        answer.await.map_err(|_| crate::errors::gone())??;
        let led = changes.wait_for(|_| {
            let lead = partition.lead();
            lead.term > term && lead.leader == Some(to)
        });
        match tokio::time::timeout(TRANSFER_TIMEOUT, led).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ApiError::new(
                Reason::Timeout,
                format!("broker {to} did not take over in time; the old leader goes on"),
            )),
        }
    }
}

fn leadership(place: (Uuid, i32), term: u64, broker: i32, in_sync: Vec<i32>) -> pb::Leadership {
    pb::Leadership {
        topic_id: id_bytes(place.0),
        partition: place.1,
        term,
        broker_id: broker,
        in_sync,
    }
}

impl Leadership for Cluster {
    fn leader_of(&self, topic: Uuid, partition: i32) -> Option<(u64, i32)> {
        let claims = self.claims.read();
        let claim = claims.get(&(topic, partition))?;
        // A claim outlives its broker; a leader that is gone is none.
        let broker = claim.broker.filter(|id| self.live.read().contains(id))?;
        Some((claim.term, broker))
    }

    fn in_sync(&self, topic: Uuid, partition: i32) -> Vec<i32> {
        let claims = self.claims.read();
        claims
            .get(&(topic, partition))
            .filter(|claim| claim.broker.is_some())
            .map_or_else(Vec::new, |claim| claim.in_sync.clone())
    }

    fn live_brokers(&self) -> BTreeSet<i32> {
        self.live.read().clone()
    }

    fn controller(&self) -> Option<i32> {
        self.leader_of(METADATA.0, METADATA.1)
            .map(|(_, broker)| broker)
    }

    fn transfer(
        &self,
        topic: Uuid,
        partition: i32,
        to: i32,
    ) -> BoxFuture<'_, Result<(), ApiError>> {
        async move {
            let hosted = self.hosted(topic, partition);
            if let Some(hosted) = hosted.filter(|hosted| hosted.lead().here) {
                if to == self.me {
                    return Ok(());
                }
                return self.hand_over(hosted, to).await;
            }
            let leader = self.leader_of(topic, partition);
            let (Some((_, leader)), Some(peers)) = (leader, &self.peers) else {
                return Err(self.not_leader(topic, partition, None));
            };
            if leader == to {
                return Ok(());
            }
            let request = node::transfer_request(topic, partition, to);
            node::forwarded(peers, leader, request).await.map(drop)
        }
        .boxed()
    }
}
