//! What only a leader may do: append entries, change the membership, hand over.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use timberline_storage::{Appended, EntryKind};

use super::Group;
use crate::error::Refused;
use crate::log_store::{LogStore, Proposal};
use crate::membership::{Change, ConfigEntry, MEMBERS_MAX, Member, Membership};
use crate::message::NodeId;

impl<S: LogStore> Group<S> {
    /// Appends an entry and starts to replicate it. It is committed, or dropped by a later leader, as later turns tell.
    ///
    /// # Errors
    /// [`Refused`]; nothing is in the log then.
    pub fn propose(&mut self, proposal: &Proposal, now_ms: i64) -> Result<Appended, Refused> {
        self.check_leads()?;
        self.wake();
        let log = self.log();
        // A change of the log start has space of its own: it is what frees space.
        if !matches!(proposal, Proposal::LogStart(_)) {
            log.reserve(proposal.len() as u64)?;
        }
        let appended = log.append(self.term(), proposal, now_ms)?;
        self.stub(appended, EntryType::EntryNormal, bytes::Bytes::new())?;
        Ok(appended)
    }

    fn check_leads(&self) -> Result<(), Refused> {
        if let Some(why) = &self.stopped {
            return Err(Refused::Stopped(why.clone()));
        }
        if !self.is_leader() {
            return Err(Refused::NotLeader {
                leader: self.leader(),
            });
        }
        if self.is_handing_over() {
            return Err(Refused::HandingOver);
        }
        // Elected since the last turn: its first entry comes before any other.
        if self.raw.raft.raft_log.last_index() != self.log().last_index() {
            return Err(Refused::NotLeader { leader: None });
        }
        Ok(())
    }

    /// Tells the library of an entry that the log has.
    fn stub(
        &mut self,
        appended: Appended,
        kind: EntryType,
        data: bytes::Bytes,
    ) -> Result<(), Refused> {
        let mut entry = Entry::default();
        entry.set_entry_type(kind);
        entry.data = data;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.options.node;
        message.set_entries(vec![entry].into());
        self.contained("proposing", |group| {
            group.raw.raft.step(message).map_err(|e| e.to_string())?;
            let last = group.raw.raft.raft_log.last_index();
            if last != appended.index {
                return Err(format!("the log is at {}, raft at {last}", appended.index));
            }
            Ok(())
        });
        match &self.stopped {
            None => Ok(()),
            Some(why) => Err(Refused::Stopped(why.clone())),
        }
    }

    /// Proposes a change of the members. More than one change goes through a joint configuration, which its leader,
    /// whoever that is by then, ends by itself.
    ///
    /// # Errors
    /// [`Refused`]: another change is under way, the revision is behind the last one's, or the result is impossible.
    pub fn propose_membership(
        &mut self,
        revision: u64,
        changes: Vec<Change>,
        now_ms: i64,
    ) -> Result<u64, Refused> {
        self.check_leads()?;
        self.wake();
        if revision < self.revision {
            return Err(Refused::Membership(format!(
                "revision {revision} is behind {}",
                self.revision
            )));
        }
        let raft = &self.raw.raft;
        if raft.pending_conf_index > raft.raft_log.applied {
            return Err(Refused::Membership("another change is under way".into()));
        }
        if self.membership.is_joint() != changes.is_empty() {
            return Err(Refused::Membership(
                match changes.is_empty() {
                    true => "there is no joint configuration to end",
                    false => "the last change has not ended yet",
                }
                .into(),
            ));
        }
        let result =
            after(&self.membership, &changes).map_err(|why| Refused::Membership(why.to_owned()))?;
        let entry = ConfigEntry {
            revision,
            changes,
            result,
        };
        let change = conf_change(&entry.changes);
        let data = change
            .write_to_bytes()
            .map_err(|error| Refused::Membership(error.to_string()))?;
        let payload = entry.encode();
        self.log().reserve(payload.len() as u64)?;
        let appended =
            self.log()
                .append_internal(self.term(), EntryKind::Config, payload.clone(), now_ms)?;
        let store = self.raw.raft.mut_store();
        store.configs.insert(appended.index, payload);
        self.stub(appended, EntryType::EntryConfChangeV2, data.into())?;
        Ok(appended.index)
    }

    /// A leader that finds itself in a joint configuration ends it; it may have been begun by one that is gone.
    /// Returns whether it did.
    pub(super) fn finish_joint(&mut self) -> bool {
        let raft = &self.raw.raft;
        let due = self.is_leader()
            && self.membership.is_joint()
            && raft.pending_conf_index <= raft.raft_log.applied
            && !self.is_handing_over();
        if due {
            // Refused for want of space, it is tried again at the next tick. The time never goes back in a log.
            let _ = self.propose_membership(self.revision, Vec::new(), 0);
        }
        due
    }

    /// Hands over to a voter, which stands at once when it has everything. Ends by itself after `transfer_ticks`.
    pub fn transfer(&mut self, to: NodeId) {
        if self.is_leader() && self.membership.is_voter(to) && to != self.options.node {
            self.wake();
            self.contained("handing over", |group| {
                group.raw.transfer_leader(to);
                Ok(())
            });
        }
    }
}

/// The library's form of changes.
pub(super) fn conf_change(changes: &[Change]) -> ConfChangeV2 {
    let mut all = ConfChangeV2::default();
    if changes.len() > 1 {
        // Left explicitly: `auto_leave` may never come when the leader steps down.
        all.set_transition(ConfChangeTransition::Explicit);
    }
    let single = |change: &Change| {
        let (kind, node) = match *change {
            Change::AddVoter(member) => (ConfChangeType::AddNode, member.node),
            Change::AddLearner(member) => (ConfChangeType::AddLearnerNode, member.node),
            Change::Remove(node) => (ConfChangeType::RemoveNode, node),
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = node;
        single
    };
    all.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    all
}

/// The members after the changes.
pub(super) fn after(before: &Membership, changes: &[Change]) -> Result<Membership, &'static str> {
    let mut next = before.clone();
    if changes.is_empty() {
        next.outgoing.clear();
        let learners_next = std::mem::take(&mut next.learners_next);
        next.learners.extend(learners_next);
        return Ok(next);
    }
    let joint = changes.len() > 1;
    if joint {
        next.outgoing.clone_from(&before.voters);
    }
    for change in changes {
        match *change {
            Change::AddVoter(member) => {
                next.learners.retain(|other| other.node != member.node);
                next.learners_next.retain(|other| other.node != member.node);
                add(&mut next.voters, member);
            }
            Change::AddLearner(member) => {
                next.voters.retain(|other| other.node != member.node);
                let still_votes = next.outgoing.iter().any(|other| other.node == member.node);
                let list = match still_votes {
                    true => &mut next.learners_next,
                    false => &mut next.learners,
                };
                add(list, member);
            }
            Change::Remove(node) => {
                for list in [
                    &mut next.voters,
                    &mut next.learners,
                    &mut next.learners_next,
                ] {
                    list.retain(|member| member.node != node);
                }
            }
        }
    }
    if next.voters.is_empty() {
        return Err("a group needs a voter");
    }
    if next.members().len() > MEMBERS_MAX {
        return Err("too many members");
    }
    let differing = next
        .voters
        .iter()
        .filter(|v| !before.voters.contains(v))
        .count()
        + before
            .voters
            .iter()
            .filter(|v| !next.voters.contains(v))
            .count();
    if !joint && differing > 1 {
        return Err("one step changes one voter");
    }
    Ok(next)
}

fn add(list: &mut Vec<Member>, member: Member) {
    if !list.iter().any(|other| other.node == member.node) {
        list.push(member);
    }
}
