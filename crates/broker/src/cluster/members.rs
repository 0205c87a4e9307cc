//! The metadata group's own members, as the controller looks after them: they follow the brokers, one change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use timberline_consensus::{Change, Member, NodeId, View};

use super::METADATA;
use super::control::{change_members, has, view};
use super::node::metadata_node;
use crate::core::Core;
use crate::metadata::backend::METADATA_REPLICA;
use crate::metadata::leadership::Leadership;
use crate::metadata::table::{Broker, BrokerState};

/// Voters of the metadata group, and where there are as many brokers.
const VOTERS: usize = 3;
const VOTERS_MANY: usize = 5;

/// A broker, as the metadata group's members are chosen.
struct Seat {
    node: NodeId,
    rack: String,
    /// It is being decommissioned: somebody else should vote.
    leaves: bool,
}

/// The metadata group's own members follow the brokers: everybody learns, three or five vote. Gives the brokers whose vote
/// counts; `None` when this broker has nothing to say any more.
pub(super) async fn look_after(core: &Arc<Core>) -> Option<BTreeSet<i32>> {
    let view = view(core, METADATA_REPLICA).await?;
    let seat = |broker: &Broker| Seat {
        node: metadata_node(broker.directory),
        rack: broker.rack.clone(),
        leaves: broker.state == BrokerState::Decommissioning,
    };
    let brokers = core.cluster.brokers();
    let seats: BTreeMap<i32, Seat> = brokers.iter().map(|(id, one)| (*id, seat(one))).collect();
    let membership = &view.membership;
    let voters = membership.voters.iter().chain(&membership.outgoing);
    let voters = match view.membership_kept {
        true => voters.map(|member| member.broker).collect(),
        // Those who just lost theirs may be asked again.
        false => seats.keys().copied().collect(),
    };
    let changes = next_change(&view, &seats);
    if changes.is_empty() {
        return Some(voters);
    }
    // Whoever loses its vote should not be the one that leads through that.
    let me = core.cluster.me();
    if seats.get(&me).is_some_and(|seat| seat.leaves)
        && let Some(next) = successor(&view, &seats)
    {
        let handed = core.cluster.transfer(METADATA.0, METADATA.1, next);
        let handed = handed.await;
        tracing::info!(next, ?handed, "the controller leaves and hands over");
        return None;
    }
    let revision = *core.metadata.revisions().borrow();
    let changed = change_members(core, METADATA_REPLICA, revision, changes.clone()).await;
    tracing::info!(?changes, ?changed, "the metadata group's members change");
    Some(voters)
}

/// Has what is committed, and answers.
fn is_ready(view: &View, member: &Member) -> bool {
    let peer = view.peers.iter().find(|peer| peer.node == member.node);
    peer.is_some_and(|peer| peer.active && peer.matched >= view.committed)
}

/// A voter that stays and could take the metadata over.
fn successor(view: &View, seats: &BTreeMap<i32, Seat>) -> Option<i32> {
    let stays = |member: &&Member| {
        let seat = seats.get(&member.broker);
        seat.is_some_and(|seat| !seat.leaves && seat.node == member.node)
    };
    let mut staying = view.membership.voters.iter().filter(stays);
    let next = staying.find(|member| is_ready(view, member));
    next.map(|member| member.broker)
}

/// One change that brings the metadata group closer to what the brokers are; none while another is under way.
fn next_change(view: &View, brokers: &BTreeMap<i32, Seat>) -> Vec<Change> {
    let membership = &view.membership;
    if membership.is_joint() || brokers.is_empty() {
        return Vec::new();
    }
    let seat = |member: &Member| {
        let known = brokers.get(&member.broker);
        known.filter(|seat| seat.node == member.node)
    };
    let stale = |members: &[Member]| members.iter().find(|one| seat(one).is_none()).copied();
    if let Some(learner) = stale(&membership.learners) {
        return vec![Change::Remove(learner.node)];
    }
    let new = brokers.iter().find(|(_, seat)| !has(membership, seat.node));
    if let Some((broker, seat)) = new {
        return vec![Change::AddLearner(Member {
            node: seat.node,
            broker: *broker,
        })];
    }
    let staying = brokers.values().filter(|seat| !seat.leaves).count();
    let want = match staying {
        many if many >= VOTERS_MANY => VOTERS_MANY,
        few => few.clamp(1, VOTERS),
    };
    let leaves = |member: &Member| seat(member).is_some_and(|seat| seat.leaves);
    let (going, step) = match stale(&membership.voters) {
        Some(gone) => (Some(gone), Some(Change::Remove(gone.node))),
        None => {
            let going = membership.voters.iter().find(|one| leaves(one)).copied();
            // It still has to hear of the metadata.
            (going, going.map(Change::AddLearner))
        }
    };
    if membership.voters.len() >= want && going.is_none() {
        return Vec::new();
    }
    let rack = |member: &Member| brokers.get(&member.broker).map(|seat| seat.rack.as_str());
    let voters_in = |name: Option<&str>| {
        let staying = membership.voters.iter().filter(|v| Some(**v) != going);
        staying.filter(|voter| rack(voter) == name).count()
    };
    let learners = membership.learners.iter();
    let learners = learners.filter(|one| is_ready(view, one) && !leaves(one));
    let best = learners.min_by_key(|learner| (voters_in(rack(learner)), learner.broker));
    let voters = membership.voters.len();
    match (best, step) {
        // More than there should be.
        (_, Some(step)) if voters > want => vec![step],
        (Some(best), Some(step)) => vec![Change::AddVoter(*best), step],
        (Some(best), None) => vec![Change::AddVoter(*best)],
        // Nobody can take the place of one that is gone; without it a majority is easier to have.
        (None, Some(step @ Change::Remove(_))) if voters > 1 => vec![step],
        (None, _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use timberline_consensus::{Membership, PeerView, Role};

    use super::*;

    fn member(broker: i32) -> Member {
        Member {
            node: broker as u64 * 10,
            broker,
        }
    }

    fn members(brokers: &[i32]) -> Vec<Member> {
        brokers.iter().copied().map(member).collect()
    }

    /// A group as its leader sees it; all answer and have everything.
    fn group(voters: &[i32], learners: &[i32]) -> View {
        let peers = voters.iter().chain(learners).map(|broker| PeerView {
            node: member(*broker).node,
            matched: 7,
            committed: 7,
            active: true,
            in_snapshot: false,
        });
        View {
            role: Role::Leader,
            term: 1,
            leader: None,
            committed: 7,
            last_index: 7,
            peers: peers.collect(),
            membership: Membership {
                voters: members(voters),
                learners: members(learners),
                ..Membership::default()
            },
            revision: 1,
            membership_kept: true,
        }
    }

    /// Brokers in racks of their own, some of which leave.
    fn seats(brokers: &[i32], leaving: &[i32]) -> BTreeMap<i32, Seat> {
        let seat = |id: &i32| Seat {
            node: member(*id).node,
            rack: format!("r{id}"),
            leaves: leaving.contains(id),
        };
        brokers.iter().map(|id| (*id, seat(id))).collect()
    }

    #[test]
    fn a_group_that_is_as_it_should_be_stays_so() {
        let fits = next_change(&group(&[1, 2, 3], &[4]), &seats(&[1, 2, 3, 4], &[]));
        assert_eq!(fits, []);
        let alone = next_change(&group(&[1], &[]), &seats(&[1], &[1]));
        assert_eq!(alone, []);
    }

    #[test]
    fn a_newcomer_learns_before_it_votes() {
        let four = seats(&[1, 2, 3, 4], &[]);
        let step = next_change(&group(&[1, 2, 3], &[]), &four);
        assert_eq!(step, [Change::AddLearner(member(4))]);
        let step = next_change(&group(&[1, 2], &[4]), &seats(&[1, 2, 4], &[]));
        assert_eq!(step, [Change::AddVoter(member(4))]);
    }

    #[test]
    fn a_broker_that_leaves_gives_its_vote_to_one_that_stays() {
        let four = seats(&[1, 2, 3, 4], &[2]);
        let step = next_change(&group(&[1, 2, 3], &[4]), &four);
        assert_eq!(
            step,
            [Change::AddVoter(member(4)), Change::AddLearner(member(2))]
        );
        assert_eq!(next_change(&group(&[1, 3, 4], &[2]), &four), []);
        // Who can't take it yet does not get it.
        let mut lags = group(&[1, 2, 3], &[4]);
        lags.peers[3].matched = 6;
        assert_eq!(next_change(&lags, &four), []);
        // Nobody else is there: a majority of two is all there is.
        let step = next_change(&group(&[1, 2, 3], &[]), &seats(&[1, 2, 3], &[2]));
        assert_eq!(step, [Change::AddLearner(member(2))]);
        assert_eq!(
            successor(&group(&[1, 2, 3], &[]), &seats(&[1, 2, 3], &[1])),
            Some(2)
        );
        assert_eq!(successor(&group(&[1], &[2]), &seats(&[1, 2], &[1])), None);
    }

    #[test]
    fn one_that_is_gone_is_replaced_or_left_out() {
        let step = next_change(&group(&[1, 2, 3], &[4]), &seats(&[1, 3, 4], &[]));
        assert_eq!(
            step,
            [Change::AddVoter(member(4)), Change::Remove(member(2).node)]
        );
        let step = next_change(&group(&[1, 2, 3], &[]), &seats(&[1, 3], &[]));
        assert_eq!(step, [Change::Remove(member(2).node)]);
        let mut joint = group(&[1, 2, 3], &[4]);
        joint.membership.outgoing = members(&[1, 2]);
        assert_eq!(next_change(&joint, &seats(&[1, 3], &[])), []);
    }
}
