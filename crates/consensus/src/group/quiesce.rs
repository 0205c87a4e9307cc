//! Quiescence: a group in which nothing happens falls silent, and the beats of its members' shards stand for its own.
//!
//! ```text
//! leader     No ──ask (a beat)──► Asked ──all say yes──► Leads ──2 s──► Asked …
//! follower   No ──asked, lacks nothing──► Follows ──leader's shard silent──► its clock runs from when that was heard
//! ```
//!
//! Anything that happens wakes a leader; anything that its leader says, or a new reign, wakes a follower. Nothing depends
//! on both sides seeing it the same way: a follower that is awake beside a silent leader asks for votes in advance, which
//! wakes that, and one that was forgotten stands after a while whatever the leader's shard says. Safety is the library's,
//! which no timer touches.

use raft::{ProgressState, StateRole};

use super::{Group, Output};
use crate::bugs::Bug;
use crate::log_store::LogStore;
use crate::membership::Member;
use crate::message::{Body, Envelope, NodeId};

/// Beats with which a leader asks, before it waits for the next time.
const ASKED_MAX: u8 = 3;

/// Whether a group is silent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Quiet {
    /// It is not.
    No,
    /// The leader asked so often, and these said yes.
    Asked { times: u8, yes: Vec<NodeId> },
    /// The leader says nothing until then, by the shard's count of ticks.
    Leads { until: u64 },
    /// The leader was heard of; it asks again before then.
    Follows { until: u64 },
}

/// What a tick left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    /// Nothing.
    Idle,
    /// A turn.
    Due,
    /// Nothing before this tick, unless a message or a proposal comes, or a member's shard falls silent.
    Quiet {
        /// By the caller's count.
        until: u64,
    },
}

impl<S: LogStore> Group<S> {
    /// Whether it needs no ticks until something happens, or until a member's shard falls silent.
    pub fn is_quiet(&self) -> bool {
        matches!(self.quiet, Quiet::Leads { .. } | Quiet::Follows { .. })
    }

    /// Something happens.
    pub(super) fn wake(&mut self) {
        self.quiet = Quiet::No;
    }

    /// Who leads, and this replica's part in it.
    pub(super) fn reign(&self) -> (u64, NodeId, StateRole) {
        let raft = &self.raw.raft;
        (raft.term, raft.leader_id, raft.state)
    }

    /// Wakes if it is not as it was.
    pub(super) fn wake_unless_same(&mut self, reign: (u64, NodeId, StateRole)) {
        if self.reign() != reign {
            self.wake();
        }
    }

    /// What becomes of a tick in a group that is silent or about to be; `None`: it is one like any other.
    pub(super) fn tick_quiet(
        &mut self,
        number: u64,
        silent_for: impl Fn(Member) -> u64,
        out: &mut Output,
    ) -> Option<Tick> {
        let timing = self.options.timing;
        let is_silent = |silent: u64| silent >= timing.silent_ticks as u64;
        match &self.quiet {
            Quiet::Follows { until } => {
                let until = *until;
                if self.has_bug(Bug::QuietForever) {
                    return Some(Tick::Quiet { until: u64::MAX });
                }
                let silent = self.silence(self.raw.raft.leader_id, silent_for);
                let raft = &mut self.raw.raft;
                // Where it can't be said since when it is silent, ranks decide from the timeout on.
                if number >= until || silent >= timing.forget_ticks as u64 {
                    raft.election_elapsed = raft.election_elapsed.max(timing.election_ticks);
                    self.wake();
                    return None;
                }
                if !is_silent(silent) {
                    raft.election_elapsed = 0;
                    return Some(Tick::Quiet { until });
                }
                raft.election_elapsed = silent as usize - 1;
                None
            }
            Quiet::Leads { until } => {
                let until = *until;
                if self
                    .others_silence(&silent_for)
                    .iter()
                    .any(|&(_, silent)| is_silent(silent))
                {
                    self.note_silence(silent_for);
                    return None;
                }
                if number < until {
                    return Some(Tick::Quiet { until });
                }
                self.ask(0, out);
                Some(Tick::Idle)
            }
            Quiet::Asked { times, yes } => {
                let times = *times;
                if self.others().all(|node| yes.contains(&node)) {
                    let beat = timing.beat_ticks as u64;
                    let until = number / beat * beat + timing.renew_ticks as u64;
                    self.quiet = Quiet::Leads { until };
                    return Some(Tick::Quiet { until });
                }
                if !self.is_beat(number) {
                    return Some(Tick::Idle);
                }
                if times >= ASKED_MAX || !self.may_fall_silent(&silent_for) {
                    self.ask_at = number + timing.renew_ticks as u64;
                    self.note_silence(silent_for);
                    return None;
                }
                self.ask(times, out);
                Some(Tick::Idle)
            }
            Quiet::No => {
                let asks = number >= self.ask_at
                    && self.is_beat(number)
                    && self.is_leader()
                    && self.may_fall_silent(silent_for);
                if !asks {
                    return None;
                }
                self.ask(0, out);
                Some(Tick::Idle)
            }
        }
    }

    fn is_beat(&self, number: u64) -> bool {
        number.is_multiple_of(self.options.timing.beat_ticks as u64)
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        let node = self.options.node;
        let members = self.raw.raft.prs().iter().map(|(&id, _)| id);
        members.filter(move |&id| id != node)
    }

    /// Ticks for which a member's shard was not heard.
    fn silence(&self, node: NodeId, silent_for: impl Fn(Member) -> u64) -> u64 {
        let broker = self.membership.broker_of(node);
        broker.map_or(u64::MAX, |broker| silent_for(Member { node, broker }))
    }

    fn others_silence(&self, silent_for: impl Fn(Member) -> u64) -> Vec<(NodeId, u64)> {
        let others = self.others();
        others
            .map(|node| (node, self.silence(node, &silent_for)))
            .collect()
    }

    /// Whether this leader has nothing to say, and all others have everything.
    fn may_fall_silent(&self, silent_for: impl Fn(Member) -> u64) -> bool {
        let silent_ticks = self.options.timing.silent_ticks as u64;
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        self.is_settled()
            && !self.is_handing_over()
            && !self.membership.is_joint()
            && raft.prs().iter().all(|(&id, progress)| {
                id == self.options.node
                    || progress.state != ProgressState::Snapshot
                        && progress.matched == last
                        && progress.pending_request_snapshot == 0
                        && self.was_heard(id)
                        && self.silence(id, &silent_for) < silent_ticks
            })
            // Its beats' answers tell when those who left may go.
            && self.is_membership_kept()
    }

    /// Whether everything here is committed, durable and said.
    fn is_settled(&self) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let durable = self.log().durability();
        [
            self.log().last_index(),
            raft.raft_log.committed,
            raft.raft_log.applied,
            self.committed,
        ] == [last; 4]
            && durable.hard_version >= self.hard_version
            && (raft.term, raft.vote) == self.hard
            && self.stages.is_empty()
            && self.term_waits.is_empty()
            && self.incoming.is_empty()
            && raft.msgs.is_empty()
    }

    fn ask(&mut self, times: u8, out: &mut Output) {
        let (group, from, term) = (self.options.tag, self.options.node, self.term());
        let commit = self.committed;
        out.messages.extend(self.others().map(|to| Envelope {
            group,
            from,
            to,
            term,
            body: Body::Beat {
                commit,
                quiesce: true,
            },
        }));
        self.quiet = Quiet::Asked {
            times: times + 1,
            yes: Vec::new(),
        };
    }

    /// A member's answer to a beat.
    pub(super) fn note_quiesced(&mut self, from: NodeId, quiesced: bool) {
        match &mut self.quiet {
            Quiet::Asked { yes, .. } if quiesced && !yes.contains(&from) => yes.push(from),
            Quiet::Leads { .. } if !quiesced => self.wake(),
            _ => {}
        }
    }

    /// Until when this follower may go by its leader's shard, if it may.
    pub(super) fn may_follow_quietly(&self, number: u64, silent_for: u64) -> Option<u64> {
        let timing = &self.options.timing;
        let may = silent_for < timing.silent_ticks as u64 && self.is_settled();
        may.then(|| number + timing.forget_ticks as u64)
    }

    /// A leader wakes. Members whose shards are silent count as heard when their shards were, and it has an election timeout in
    /// which to hear of a majority.
    fn note_silence(&mut self, silent_for: impl Fn(Member) -> u64) {
        for (node, silent) in self.others_silence(silent_for) {
            if silent < self.options.timing.silent_ticks as u64 {
                continue;
            }
            self.raw.raft.election_elapsed = 0;
            self.heard
                .insert(node, self.awake_ticks.saturating_sub(silent));
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(node) {
                progress.recent_active = false;
            }
        }
        self.wake();
    }
}
