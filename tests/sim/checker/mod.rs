//! The checkers: apart from the simulator, they see observations only and know neither `Group` nor `Store`.
//!
//! - `history`: what is committed in a group: agreement, offsets, producers, reads, acknowledgements
//!   (INV-1 at the end, INV-2, INV-3, INV-4, INV-8, the log start).
//! - `promises`: what a replica said on the wire and what it held on stable storage, against what it finds again
//!   (INV-1 at the time, INV-5).
//! - `leaders`: who led when, and with what (INV-7, leader completeness).

mod history;
mod leaders;
mod promises;

use std::collections::BTreeMap;

use bytes::Bytes;
use timberline_consensus::{Body, Envelope, Membership, NodeId};
use timberline_storage::FrameHeader;

pub(crate) use history::{History, Stamp};
use leaders::Leaders;
use promises::Promises;

/// The result of a check; the error says what was violated.
pub(crate) type Check<T = ()> = Result<T, String>;

/// Ends with a violation unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}
pub(crate) use ensure;

/// A replica's log at one moment, as far as terms go.
pub(crate) struct Terms<'a> {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) at: &'a dyn Fn(u64) -> Option<u64>,
}

impl Terms<'_> {
    /// Whether the entry is there; what was trimmed counts as there.
    fn holds(&self, index: u64, term: u64) -> bool {
        index < self.first || index <= self.last && (self.at)(index) == Some(term)
    }
}

/// A replica after it worked.
pub(crate) struct Seen<'a> {
    pub(crate) group: usize,
    pub(crate) node: NodeId,
    /// Tells the openings of a replica apart.
    pub(crate) life: u64,
    /// Seen for the first time since then.
    pub(crate) fresh: bool,
    pub(crate) leads: bool,
    pub(crate) caught_up: bool,
    pub(crate) term: u64,
    pub(crate) committed: u64,
    pub(crate) high_watermark: i64,
    pub(crate) log_start: i64,
    /// Members before and after.
    pub(crate) members: [&'a Membership; 2],
    /// Entries that it did not call committed before.
    pub(crate) news: &'a [(FrameHeader, Bytes)],
    pub(crate) terms: Terms<'a>,
}

/// A replica after recovery.
pub(crate) struct Recovered<'a> {
    pub(crate) group: usize,
    pub(crate) node: NodeId,
    pub(crate) term: u64,
    pub(crate) vote: NodeId,
    pub(crate) committed: u64,
    pub(crate) log_start: i64,
    pub(crate) frames: &'a [(FrameHeader, Bytes)],
    pub(crate) terms: Terms<'a>,
}

/// What a client is told of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) stamp: Option<Stamp>,
    /// Of a batch.
    pub(crate) crc: Option<u32>,
    pub(crate) offset: i64,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    histories: BTreeMap<usize, History>,
    promises: BTreeMap<NodeId, Promises>,
    leaders: Leaders,
}

impl Checker {
    pub(crate) fn found(&mut self, group: usize, chain_seed: u64) {
        self.histories.insert(group, History::new(chain_seed));
    }

    pub(crate) fn history(&mut self, group: usize) -> &mut History {
        self.histories.entry(group).or_default()
    }

    fn promises(&mut self, node: NodeId) -> &mut Promises {
        self.promises.entry(node).or_default()
    }

    /// A replica worked; before its messages are seen.
    pub(crate) fn seen(&mut self, seen: &Seen<'_>) -> Check {
        let node = seen.node;
        self.promises(node).truncated(&seen.terms);
        let history = self.histories.entry(seen.group).or_default();
        if seen.leads {
            history.led(seen)?;
        }
        if seen.caught_up {
            self.leaders.leads(seen.group, seen.term, node, seen.life)?;
        }
        let known = history.committed();
        history.commits(node, seen.term, seen.news)?;
        history.figures(seen)?;
        if seen.leads && history.committed() > known {
            let index = history.committed();
            let of = history.term_at(index);
            ensure!(
                of == Some(seen.term) || seen.fresh,
                "g{} n{node}: leads in term {} and commits entry {index} of term {of:?} by counting (Raft section 5.4.2)",
                seen.group,
                seen.term
            );
            self.on_majority(seen.group, index, seen.members)?;
        }
        Ok(())
    }

    /// INV-1: a majority of the voters has the entry on stable storage, of both sides while a change is under way.
    fn on_majority(&self, group: usize, index: u64, members: [&Membership; 2]) -> Check {
        let Some(term) = self.histories[&group].term_at(index) else {
            return Err(format!("g{group}: entry {index} is committed and unknown"));
        };
        let has = |node: NodeId| {
            let promises = self.promises.get(&node);
            promises.is_some_and(|p| p.has(index, term))
        };
        let enough = |members: &Membership| {
            [&members.voters, &members.outgoing]
                .into_iter()
                .all(|side| {
                    let held = side.iter().filter(|m| has(m.node)).count();
                    side.is_empty() || held > side.len() / 2
                })
        };
        ensure!(
            members.into_iter().any(enough),
            "g{group}: entry {index} of term {term} is committed and on stable storage at no majority of {:?} (INV-1)",
            members[1]
        );
        Ok(())
    }

    /// A message leaves.
    pub(crate) fn sent(
        &mut self,
        group: usize,
        life: u64,
        envelope: &Envelope,
        terms: &Terms<'_>,
    ) -> Check {
        let term = envelope.term;
        if let Body::Append(_) | Body::Beat { .. } | Body::TimeoutNow = &envelope.body {
            self.leaders.leads(group, term, envelope.from, life)?;
        }
        let promises = self.promises(envelope.from);
        match &envelope.body {
            Body::PreVote(_) | Body::PreVoteReply(_) => return Ok(()),
            Body::Vote(_) => promises.votes(term, envelope.from)?,
            Body::VoteReply(reply) if reply.granted => promises.votes(term, envelope.to)?,
            Body::AppendReply(reply) if reply.refused.is_none() => {
                let held = (terms.at)(reply.index);
                ensure!(
                    reply.index <= terms.last,
                    "g{group} n{}: accepts entry {}, its log ends at {} (INV-5)",
                    envelope.from,
                    reply.index,
                    terms.last
                );
                if let Some(held) = held {
                    promises.accepts(reply.index, held);
                }
            }
            _ => {}
        }
        promises.reached(term);
        Ok(())
    }

    /// A sync ended: the log says that everything up to `index` is on stable storage.
    pub(crate) fn durable(&mut self, node: NodeId, index: u64, terms: &Terms<'_>) {
        self.promises(node).durable(index, terms);
    }

    /// Answered to a client.
    pub(crate) fn acked(
        &mut self,
        group: usize,
        index: u64,
        term: Option<u64>,
        what: &Told,
    ) -> Check {
        let history = self.histories.entry(group).or_default();
        history.acked(index, term, what)
    }

    /// A replica came back.
    pub(crate) fn recovered(&mut self, recovered: &Recovered<'_>) -> Check {
        let (group, node) = (recovered.group, recovered.node);
        self.promises(node).recovered(recovered)?;
        let history = self.histories.entry(group).or_default();
        history.recovered(recovered)
    }

    /// A replica did not come back: it must have promised nothing.
    pub(crate) fn missing(&mut self, node: NodeId) -> Check {
        let promises = self.promises(node);
        ensure!(
            promises.is_blank(),
            "n{node} is not found again and had promised {promises:?}"
        );
        Ok(())
    }
}
