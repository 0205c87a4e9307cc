//! Beats of a group in which nothing happens, past the library: nearly all that a thousand idle groups say.
//!
//! What is done here is what the library would do with the same message, and a turn would make of it. Whatever is not that
//! simple goes the long way, [`Group::step`].

use raft::{ProgressState, StateRole};

use super::Group;
use super::quiesce::Quiet;
use crate::log_store::LogStore;
use crate::message::{Body, Envelope};

/// What became of a message.
#[derive(Debug, PartialEq)]
pub enum Pulse {
    /// A beat, and what is to be answered.
    Beat(Envelope),
    /// The answer to a beat; it is noted.
    Reply,
    /// It takes a step and a turn.
    Other,
}

impl<S: LogStore> Group<S> {
    /// Takes in a message that changes nothing but when its sender was heard last. Nothing waits for a turn after that.
    /// `number` is that of the last tick, `silent_for` the ticks that the sender's shard was not heard for.
    pub fn pulse(&mut self, envelope: &Envelope, number: u64, silent_for: u64) -> Pulse {
        let for_me = envelope.group == self.options.tag
            && envelope.to == self.options.node
            && envelope.from != envelope.to;
        if self.stopped.is_some() || !for_me || envelope.term != self.raw.raft.term {
            return Pulse::Other;
        }
        match envelope.body {
            Body::Beat { commit, quiesce } => {
                let until = quiesce.then(|| self.may_follow_quietly(number, silent_for));
                self.beat(envelope.from, commit, until.flatten())
            }
            Body::BeatReply { commit, quiesced } => {
                self.beat_reply(envelope.from, commit, quiesced)
            }
            _ => Pulse::Other,
        }
    }

    /// A leader that is known, and that has nothing new.
    fn beat(&mut self, from: u64, commit: u64, quiet_until: Option<u64>) -> Pulse {
        let raft = &mut self.raw.raft;
        let known = raft.state == StateRole::Follower && raft.leader_id == from;
        if !known || commit > raft.raft_log.committed || raft.pending_request_snapshot != 0 {
            return Pulse::Other;
        }
        let (term, committed) = (raft.term, raft.raft_log.committed);
        let durable = self.log().durability();
        let hard = (self.raw.raft.term, self.raw.raft.vote);
        if hard != self.hard || durable.hard_version < self.hard_version {
            // The term that it would speak in is not on stable storage.
            return Pulse::Other;
        }
        self.raw.raft.election_elapsed = 0;
        let quiet_until = quiet_until.filter(|_| commit == committed);
        self.quiet = quiet_until.map_or(Quiet::No, |until| Quiet::Follows { until });
        Pulse::Beat(Envelope {
            group: self.options.tag,
            from: self.options.node,
            to: from,
            term,
            body: Body::BeatReply {
                commit: committed.min(durable.commit),
                quiesced: quiet_until.is_some(),
            },
        })
    }

    /// A follower that lacks nothing.
    fn beat_reply(&mut self, from: u64, commit: u64, quiesced: bool) -> Pulse {
        if !self.is_leader() {
            return Pulse::Other;
        }
        let last = self.raw.raft.raft_log.last_index();
        let Some(progress) = self.raw.raft.mut_prs().get_mut(from) else {
            return Pulse::Other;
        };
        let lacks = progress.matched < last
            || progress.state == ProgressState::Snapshot
            || progress.pending_request_snapshot != 0
            || progress.ins.full();
        if lacks {
            return Pulse::Other;
        }
        progress.update_committed(commit.min(last));
        progress.recent_active = true;
        progress.resume();
        self.heard.insert(from, self.awake_ticks);
        self.note_quiesced(from, quiesced);
        Pulse::Reply
    }
}
