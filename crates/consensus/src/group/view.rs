//! What others may know of a group.

use raft::{ProgressState, StateRole};

use super::Group;
use crate::bugs::Bug;
use crate::log_store::LogStore;
use crate::membership::Membership;
use crate::message::NodeId;

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It follows, or waits to hear of a leader.
    Follower,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
}

/// A member as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The member.
    pub node: NodeId,
    /// Everything up to here is on its stable storage.
    pub matched: u64,
    /// It will still know after a restart that everything up to here is committed.
    pub committed: u64,
    /// It was heard of within the election timeout.
    pub active: bool,
    /// It waits for a snapshot.
    pub in_snapshot: bool,
}

/// A group at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// What this replica is.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Whom it takes for the leader.
    pub leader: Option<NodeId>,
    /// Its commit index.
    pub committed: u64,
    /// Its last index.
    pub last_index: u64,
    /// The members, as applied.
    pub membership: Membership,
    /// Revision of the metadata that asked for this membership.
    pub revision: u64,
    /// Who is no member any more isn't needed again, see [`Group::is_membership_kept`].
    pub membership_kept: bool,
    /// As seen by the leader; empty elsewhere.
    pub peers: Vec<PeerView>,
}

impl<S: LogStore> Group<S> {
    /// What this replica is.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.stopped.is_none() && self.raw.raft.state == StateRole::Leader
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Whom it takes for the leader.
    pub fn leader(&self) -> Option<NodeId> {
        Some(self.raw.raft.leader_id).filter(|&node| node != 0)
    }

    /// This replica.
    pub fn node(&self) -> NodeId {
        self.options.node
    }

    /// The tag of the group.
    pub fn tag(&self) -> u64 {
        self.options.tag
    }

    /// The highest index known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.committed
    }

    /// Whether a leader has committed an entry of its own term: before that its commit index may be behind what was
    /// acknowledged (Raft section 8).
    pub fn is_caught_up(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    /// The members, as applied.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Revision of the metadata that asked for this membership.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Why it takes no part any more.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Whether elections need ticks: a sole voter's do not.
    pub fn needs_ticks(&self) -> bool {
        self.stopped.is_none()
            && !(self.is_sole_voter() && self.is_leader() && self.membership.learners.is_empty())
    }

    /// Whether a leadership transfer is under way.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Whether a member answered within the election timeout. The library's own mark is wiped each time it is counted.
    pub(super) fn was_heard(&self, node: NodeId) -> bool {
        let at = self.heard.get(&node);
        at.is_some_and(|at| self.awake_ticks - at <= self.options.timing.election_ticks as u64)
    }

    /// The members as this leader sees them; empty on others.
    pub fn peers(&self) -> Vec<PeerView> {
        if !self.is_leader() {
            return Vec::new();
        }
        let node = self.options.node;
        let mut peers: Vec<PeerView> = self
            .raw
            .raft
            .prs()
            .iter()
            .map(|(&id, progress)| PeerView {
                node: id,
                matched: progress.matched,
                committed: match id == node {
                    true => self.log().durability().commit,
                    false => progress.committed_index,
                },
                active: id == node || self.was_heard(id),
                in_snapshot: progress.state == ProgressState::Snapshot,
            })
            .collect();
        peers.sort_by_key(|peer| peer.node);
        peers
    }

    /// Whether those who left may go with what they have, as this leader knows it: a majority of the voters, and every
    /// voter that answers, will still know after a restart that the membership is committed. A voter that does not know
    /// asks the members before; one that does tells it with its candidacy. False on others than leaders.
    pub fn is_membership_kept(&self) -> bool {
        if !self.is_leader() || self.membership.is_joint() {
            return false;
        }
        if self.has_bug(Bug::LeaveEarly) {
            return true;
        }
        // Those who follow may have applied what this leader's own disk still holds up.
        if !self.raw.raft.raft_log.store.configs.is_empty() {
            return false;
        }
        let (index, _) = self.log().membership();
        let (knows, unsure): (Vec<_>, Vec<_>) = self
            .peers()
            .into_iter()
            .partition(|peer| peer.committed >= index);
        let voters = knows
            .iter()
            .filter(|peer| self.membership.is_voter(peer.node));
        let majority = self.membership.voters.len() / 2 + 1;
        let mut waits = unsure
            .iter()
            .filter(|peer| peer.active && !peer.in_snapshot);
        voters.count() >= majority && !waits.any(|peer| self.membership.is_voter(peer.node))
    }

    /// Everything at once.
    pub fn view(&self) -> View {
        View {
            role: self.role(),
            term: self.term(),
            leader: self.leader(),
            committed: self.committed,
            last_index: self.raw.raft.raft_log.last_index(),
            membership: self.membership.clone(),
            revision: self.revision,
            membership_kept: self.is_membership_kept(),
            peers: self.peers(),
        }
    }
}
