//! What is looked after all the time: the controller's rounds, changes of replicas by the partitions' leaders, links to
//! brokers as their addresses change.
//!
//! Everything here starts from what is, not from what was begun: a round that was cut short is made good by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_consensus::{Change, Member, Membership, NodeId, View};
use timberline_proto::error::ApiError;
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_storage::ReplicaId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::found;
use super::members;
use super::node::{self, FINISH_REASSIGN, Node};
use crate::clock;
use crate::core::Core;
use crate::errors;
use crate::metadata::backend::METADATA_REPLICA;
use crate::metadata::control::{self as rounds, Action, Soft};
use crate::metadata::leadership::{Leadership, leaders};
use crate::metadata::moves;
use crate::metadata::table::{Partition, Table, id_bytes};
use crate::peer::PeerInfo;
use crate::shard::Work;

/// Between two rounds at most; a change of what is known brings the next one sooner.
const ROUND_EVERY: Duration = Duration::from_millis(500);
/// Changes that come together are looked at together.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Between two rounds of handing leaderships to preferred leaders.
const LEADERS_EVERY: Duration = Duration::from_secs(3);
/// Leaderships handed over at a time.
const TRANSFERS_AT_ONCE: usize = 16;

/// Runs until the broker drains.
pub(crate) async fn run(core: Arc<Core>, node: Arc<Node>, seeds: Vec<String>) {
    let mut changes = core.cluster.changes();
    let mut revisions = core.metadata.revisions();
    let mut state = State::default();
    let draining = core.lifecycle.reached(crate::lifecycle::Phase::Draining);
    tokio::pin!(draining);
    loop {
        state.round(&core, &node, &seeds).await;
        let sooner = async {
            tokio::select! {
                _ = changes.changed() => {}
                _ = revisions.changed() => {}
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        };
        tokio::select! {
            () = sooner => {}
            () = tokio::time::sleep(ROUND_EVERY) => {}
            () = &mut draining => return,
        }
    }
}

#[derive(Default)]
struct State {
    /// Since when brokers have not been connected, while this broker controls.
    missing_since: BTreeMap<i32, Instant>,
    leaders_at: Option<Instant>,
    /// The metadata had this broker, as it is now.
    was_known: bool,
    asked_seeds_at: Option<Instant>,
    /// Where brokers said that they listen, and what the metadata had then: it counts until the metadata have another
    /// address.
    found: BTreeMap<i32, (PeerInfo, String)>,
}

impl State {
    async fn round(&mut self, core: &Arc<Core>, node: &Arc<Node>, seeds: &[String]) {
        self.relink(core, node, seeds).await;
        if !self.was_removed(core)
            && !node::is_registered(core, &node.identity())
            && let Err(error) = core.register_anywhere(&node.identity()).await
        {
            tracing::debug!(%error, "not registered as it is yet");
        }
        for (replica, node) in node.sends.sweep() {
            core.shards
                .submit(replica, Work::SendEnded { replica, node });
        }
        reassign_led(core).await;
        if !core.metadata.is_controller() {
            self.missing_since.clear();
            self.leaders_at = None;
            return;
        }
        if core.metadata.table().cluster().is_none() {
            if let Err(error) = found_cluster(core, node).await {
                tracing::debug!(%error, "the cluster is not founded yet");
            }
            return;
        }
        let voters = members::look_after(core).await;
        if let Some(voters) = voters {
            self.control(core, &voters).await;
        }
    }

    /// Whether somebody took this broker out of the cluster: then it does not put itself in again.
    fn was_removed(&mut self, core: &Core) -> bool {
        let known = core.cluster.brokers().contains_key(&core.cluster.me());
        if self.was_known && !known {
            core.lifecycle
                .give_up("this broker was removed from the cluster");
        }
        self.was_known |= known;
        self.was_known && !known
    }

    /// Links follow the metadata; who can't be reached is looked for through the seeds, because it may have moved.
    async fn relink(&mut self, core: &Arc<Core>, node: &Arc<Node>, seeds: &[String]) {
        let Some(peers) = core.cluster.peers() else {
            return;
        };
        let brokers = core.cluster.brokers();
        let mut known: BTreeMap<i32, PeerInfo> = brokers
            .iter()
            .filter(|(_, broker)| !broker.peer.is_empty())
            .map(|(id, broker)| {
                let info = PeerInfo {
                    address: broker.peer.clone(),
                    rack: broker.rack.clone(),
                };
                (*id, info)
            })
            .collect();
        for founder in node.trusted() {
            known.entry(founder.broker_id).or_insert(PeerInfo {
                address: founder.peer_address,
                rack: founder.rack,
            });
        }
        let registered = |id: &i32| brokers.get(id).map_or("", |broker| broker.peer.as_str());
        self.found
            .retain(|id, (_, before)| registered(id) == before.as_str());
        let live = core.cluster.live_brokers();
        let missing = known.keys().any(|id| !live.contains(id)) || known.is_empty();
        let due = self
            .asked_seeds_at
            .is_none_or(|at| at.elapsed() > Duration::from_secs(1));
        if missing && due {
            self.asked_seeds_at = Some(Instant::now());
            let mine = node.identity();
            let answers = found::ask(peers, seeds, &mine).await;
            let answers: Vec<_> = answers
                .iter()
                .flatten()
                .filter(|answer| answer.founded == mine.cluster_id)
                .collect();
            for (id, info) in found::addresses(&answers) {
                if !live.contains(&id) {
                    self.found.insert(id, (info, registered(&id).to_owned()));
                }
            }
        }
        for (id, (info, _)) in &self.found {
            known.insert(*id, info.clone());
        }
        peers.set_known(known);
    }

    async fn control(&mut self, core: &Arc<Core>, voters: &BTreeSet<i32>) {
        let live = core.cluster.live_brokers();
        let gone = self.gone(core, &live);
        let now_ms = clock::now_ms();
        let (actions, transfers) = {
            let table = core.metadata.table();
            let leaders = leaders(&table, &*core.cluster);
            let in_sync = |topic: Uuid, number: i32| core.cluster.in_sync(topic, number);
            let soft = Soft {
                view: moves::View {
                    live: &live,
                    gone: &gone,
                },
                leaders: &leaders,
                in_sync: &in_sync,
                voters,
            };
            let due = self
                .leaders_at
                .is_none_or(|at| at.elapsed() >= LEADERS_EVERY);
            let draining = table.brokers().values().any(|broker| !broker.is_active());
            let transfers = match due || draining {
                true => rounds::transfers(&table, &soft),
                false => Vec::new(),
            };
            if due {
                self.leaders_at = Some(Instant::now());
            }
            (rounds::actions(&table, &soft, now_ms), transfers)
        };
        for action in actions {
            self.act(core, &action, now_ms).await;
        }
        for some in transfers.chunks(TRANSFERS_AT_ONCE) {
            let all = some.iter().map(|one| async move {
                let moved = core.cluster.transfer(one.topic, one.partition, one.to);
                if let Err(error) = moved.await {
                    tracing::debug!(?one, %error, "a leadership was not handed over");
                }
            });
            futures::future::join_all(all).await;
        }
    }

    /// Brokers that were not connected for so long that their replicas are rebuilt elsewhere.
    fn gone(&mut self, core: &Core, live: &BTreeSet<i32>) -> BTreeSet<i32> {
        let brokers = core.cluster.brokers();
        self.missing_since
            .retain(|id, _| brokers.contains_key(id) && !live.contains(id));
        for id in brokers.keys().filter(|id| !live.contains(id)) {
            self.missing_since.entry(*id).or_insert_with(Instant::now);
        }
        let after = core.config.cluster.replacement_after.duration();
        let missing = self.missing_since.iter();
        let gone = missing.filter(|(_, since)| since.elapsed() >= after);
        gone.map(|(id, _)| *id).collect()
    }

    async fn act(&self, core: &Arc<Core>, action: &Action, now_ms: i64) {
        // Planned anew on the table it is proposed on, which may have moved on.
        let plan = |table: &Table| action.plan(table, now_ms).ok_or_else(idle);
        match core.metadata.change("", plan).await {
            Ok(_) => tracing::info!(?action, "controller"),
            Err(error) => tracing::debug!(?action, %error, "controller"),
        }
    }
}

/// A plan that has become idle.
fn idle() -> ApiError {
    ApiError::new(
        timberline_proto::error::Reason::InvalidArgument,
        "nothing to do any more",
    )
}

/// The founding command, once every founder is registered: from then on, who is not in the metadata is no broker.
async fn found_cluster(core: &Arc<Core>, node: &Node) -> Result<(), ApiError> {
    for founder in node.trusted() {
        node::register(core, &founder).await?;
    }
    let Some(view) = view(core, METADATA_REPLICA).await else {
        return Ok(());
    };
    let missing = {
        let table = core.metadata.table();
        let members = view.membership.members().into_iter();
        let mut missing = members.filter(|member| !table.brokers().contains_key(&member.broker));
        missing.next()
    };
    if let Some(member) = missing {
        // It registers itself when it is there.
        tracing::debug!(broker = member.broker, "a founder is not registered yet");
        return Ok(());
    }
    let found = Command::FoundCluster(pb::FoundCluster {
        cluster_id: core.cluster_id.clone(),
        founded_at_ms: clock::now_ms(),
        feature_level: 0,
    });
    core.metadata.change("", |_| Ok(found)).await.map(drop)
}

/// A change of replicas that a leader has seen through.
///
/// # Errors
/// Those of the change.
pub(crate) async fn finish_reassign(
    core: &Arc<Core>,
    finish: pb::FinishReassign,
) -> Result<(), ApiError> {
    let topic = Uuid::from_slice(&finish.topic_id)
        .map_err(|_| ApiError::invalid("topic_id", "a topic id has 16 bytes"))?;
    let action = Action::Finish {
        topic,
        partition: finish.partition,
        voters: finish.replica_ids,
        revision: finish.revision,
    };
    let now_ms = clock::now_ms();
    let plan = |ahead: &Table| {
        // A word of an earlier change, or one that another change overtakes, must not be proposed at all.
        let change = |table: &Table| {
            let partition = table.topic(topic)?.partition(finish.partition)?;
            Some((partition.revision, partition.reassign.clone()?))
        };
        let known = change(&core.metadata.table());
        let current = known.filter(|(revision, _)| *revision == finish.revision);
        if current.map(|(_, change)| change) != change(ahead).map(|(_, change)| change) {
            return Err(idle());
        }
        action.plan(ahead, now_ms).ok_or_else(idle)
    };
    core.metadata.change("", plan).await.map(drop)
}

pub(super) async fn view(core: &Core, replica: ReplicaId) -> Option<View> {
    let (reply, view) = oneshot::channel();
    core.shards.submit(replica, Work::View { replica, reply });
    view.await.ok()
}

pub(super) async fn change_members(
    core: &Core,
    replica: ReplicaId,
    revision: u64,
    changes: Vec<Change>,
) -> Result<u64, ApiError> {
    let (reply, changed) = oneshot::channel();
    core.shards.submit(
        replica,
        Work::ChangeMembers {
            replica,
            revision,
            changes,
            reply,
        },
    );
    changed.await.map_err(|_| errors::gone())?
}

/// Partitions that are led here and whose replicas are to become others: one step each.
async fn reassign_led(core: &Arc<Core>) {
    let due: Vec<(Uuid, i32, Partition)> = {
        let table = core.metadata.table();
        let partitions = table.partitions();
        let changing = partitions.filter(|(_, _, partition)| partition.reassign.is_some());
        changing
            .map(|(topic, number, partition)| (topic.id, number, partition.clone()))
            .collect()
    };
    for (topic, number, partition) in due {
        let Some(hosted) = core.cluster.hosted(topic, number) else {
            continue;
        };
        if !hosted.lead().settled {
            continue;
        }
        let Some(view) = view(core, hosted.replica).await else {
            continue;
        };
        match next_step(&view, hosted.replica.0, &partition) {
            Step::Wait => {}
            Step::HandOver(broker) => {
                let handed = core.cluster.hand_over(Arc::clone(&hosted), broker).await;
                tracing::info!(%topic, number, broker, ?handed, "a leader that goes hands over");
            }
            Step::Change(changes) => {
                let revision = partition.revision;
                let changed = change_members(core, hosted.replica, revision, changes).await;
                tracing::info!(%topic, number, ?changed, "replicas change");
            }
            Step::Done => {
                report_finished(core, topic, number, &partition).await;
            }
        }
    }
}

async fn report_finished(core: &Arc<Core>, topic: Uuid, number: i32, partition: &Partition) {
    use prost::Message;
    let target = partition.target().iter();
    let finish = pb::FinishReassign {
        topic_id: id_bytes(topic),
        partition: number,
        replica_ids: target.map(|replica| replica.id).collect(),
        at_ms: clock::now_ms(),
        revision: partition.revision,
    };
    let result = if core.metadata.is_controller() {
        finish_reassign(core, finish).await
    } else {
        core.to_controller(FINISH_REASSIGN, finish.encode_to_vec().into())
            .await
            .map(drop)
    };
    if let Err(error) = result {
        tracing::debug!(%topic, number, %error, "a finished change was not recorded yet");
    }
}

#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    /// To this broker.
    HandOver(i32),
    Change(Vec<Change>),
    Done,
}

/// What brings a group that `leader` leads one step closer to the replicas that the table wants.
fn next_step(view: &View, leader: NodeId, partition: &Partition) -> Step {
    let membership = &view.membership;
    if membership.is_joint() {
        return Step::Wait;
    }
    let target: Vec<Member> = partition
        .target()
        .iter()
        .map(|replica| Member {
            node: replica.id,
            broker: replica.broker,
        })
        .collect();
    let missing = target.iter().find(|wanted| !has(membership, wanted.node));
    if let Some(wanted) = missing {
        return Step::Change(vec![Change::AddLearner(*wanted)]);
    }
    let caught_up = |member: &Member| {
        let peer = view.peers.iter().find(|peer| peer.node == member.node);
        peer.is_some_and(|peer| peer.active && peer.matched >= view.committed)
    };
    let new: Vec<Member> = target
        .iter()
        .filter(|wanted| !membership.is_voter(wanted.node))
        .copied()
        .collect();
    if !new.iter().all(caught_up) {
        return Step::Wait;
    }
    let mut changes: Vec<Change> = new.into_iter().map(Change::AddVoter).collect();
    let wanted = |node: NodeId| target.iter().any(|member| member.node == node);
    if !wanted(leader) {
        // A leader that removes itself leaves the others without one until somebody stands.
        let stays = |member: &&Member| membership.is_voter(member.node) && caught_up(member);
        if let Some(next) = target.iter().find(stays) {
            return Step::HandOver(next.broker);
        }
    }
    let members = membership.members().into_iter();
    let removed = members.filter(|member| !wanted(member.node));
    changes.extend(removed.map(|member| Change::Remove(member.node)));
    if changes.is_empty() && view.revision < partition.revision {
        // An earlier leader may still be about that knows nothing of a change since; this one can only say so by a
        // committed entry.
        let voter = target
            .iter()
            .find(|member| membership.is_voter(member.node));
        changes.extend(voter.map(|member| Change::AddVoter(*member)));
    }
    match changes.is_empty() {
        false => Step::Change(changes),
        true if view.membership_kept => Step::Done,
        // With the record of it the removed ones' files go.
        true => Step::Wait,
    }
}

pub(super) fn has(membership: &Membership, node: NodeId) -> bool {
    membership
        .members()
        .iter()
        .any(|member| member.node == node)
}

impl Core {
    /// Has the controller do something, wherever it is, and waits until it shows here.
    ///
    /// # Errors
    /// `NO_LEADER` while no controller is known, `STORAGE_POISONED` when none will be for that reason; those of the call.
    pub(crate) async fn to_controller(
        &self,
        method: &str,
        payload: bytes::Bytes,
    ) -> Result<bytes::Bytes, ApiError> {
        let (topic, number) = super::METADATA;
        let lead = self.cluster.metadata_lead();
        let controller = self.cluster.controller();
        let controller = controller.filter(|broker| *broker != self.cluster.me());
        let peers = self.cluster.peers();
        let controller =
            controller.filter(|id| peers.and_then(|p| p.state(*id)).is_some_and(|s| s.prompt));
        let (Some(controller), Some(peers)) = (controller, peers) else {
            let error = self.cluster.not_leader(topic, number, Some(lead));
            return Err(self.poisoned_first(error));
        };
        let request = pb::ForwardRequest {
            method: method.to_owned(),
            payload,
        };
        let (payload, revision) = node::forwarded(peers, controller, request).await?;
        self.metadata.shows(revision).await;
        Ok(payload)
    }

    /// Registers a broker, here or where the controller is.
    ///
    /// # Errors
    /// Those of the registration.
    pub(crate) async fn register_anywhere(
        self: &Arc<Self>,
        identity: &pb::PeerIdentity,
    ) -> Result<(), ApiError> {
        use prost::Message;
        if self.metadata.is_controller() {
            return node::register(self, identity).await;
        }
        self.to_controller(node::REGISTER, identity.encode_to_vec().into())
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use timberline_consensus::{PeerView, Role};

    use super::*;
    use crate::metadata::table::{Reassign, Replica};

    fn replica(id: u64) -> Replica {
        Replica {
            id,
            broker: id as i32,
            lost: false,
        }
    }

    fn member(node: u64) -> Member {
        Member {
            node,
            broker: node as i32,
        }
    }

    /// Replicas 1, 2 and 3 are to become these.
    fn to(target: &[u64]) -> Partition {
        Partition {
            replicas: [1, 2, 3].map(replica).into(),
            revision: 5,
            reassign: Some(Reassign {
                target: target.iter().copied().map(replica).collect(),
                abandoned: Box::default(),
                operation: None,
            }),
            founding: false,
        }
    }

    /// Voters 1, 2 and 3 and learner 4, as a leader sees them; these have not caught up.
    fn group(behind: &[u64]) -> View {
        let peer = |node: u64| PeerView {
            node,
            matched: if behind.contains(&node) { 3 } else { 7 },
            committed: 7,
            active: true,
            in_snapshot: false,
        };
        View {
            role: Role::Leader,
            term: 1,
            leader: None,
            committed: 7,
            last_index: 7,
            peers: (1..=4).map(peer).collect(),
            membership: Membership {
                voters: [1, 2, 3].map(member).into(),
                learners: vec![member(4)],
                ..Membership::default()
            },
            revision: 4,
            membership_kept: true,
        }
    }

    #[test]
    fn a_leader_that_goes_hands_over_to_one_that_stays_before_it_goes() {
        let change = Step::Change(vec![Change::AddVoter(member(4)), Change::Remove(1)]);
        assert_eq!(next_step(&group(&[]), 2, &to(&[4, 2, 3])), change);
        let step = |behind: &[u64]| next_step(&group(behind), 1, &to(&[4, 2, 3]));
        assert_eq!(step(&[]), Step::HandOver(2));
        assert_eq!(step(&[2]), Step::HandOver(3));
        assert_eq!(step(&[4]), Step::Wait);
        // Nobody could take over now: it goes all the same.
        assert_eq!(step(&[2, 3]), change);
    }
}
