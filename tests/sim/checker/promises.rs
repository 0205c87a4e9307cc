//! What one replica promised, and what it is known to hold.

use std::collections::BTreeMap;

use timberline_consensus::NodeId;

use super::{Check, Recovered, Terms, ensure};

/// Terms whose votes are remembered; older ones can't be asked for again.
const VOTES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Highest term that it named as its own.
    term: u64,
    votes: BTreeMap<u64, NodeId>,
    /// Highest entry that it told a leader to have, and the term of it.
    accepted: Vec<(u64, u64)>,
    /// Terms of the entries on stable storage, from index 1.
    held: Vec<u64>,
}

impl Promises {
    /// INV-5: one vote a term, also over restarts.
    pub(super) fn votes(&mut self, term: u64, candidate: NodeId) -> Check {
        let given = *self.votes.entry(term).or_insert(candidate);
        ensure!(
            given == candidate,
            "a replica votes for n{given} and n{candidate} in term {term} (INV-5)"
        );
        if self.votes.len() > VOTES_MAX {
            self.votes.pop_first();
        }
        Ok(())
    }

    pub(super) fn reached(&mut self, term: u64) {
        self.term = self.term.max(term);
    }

    pub(super) fn accepts(&mut self, index: u64, term: u64) {
        if self.accepted.last().is_none_or(|last| last.0 < index) {
            self.accepted.push((index, term));
        }
    }

    /// The log may have been cut under a new leader: nobody counts on what is gone.
    pub(super) fn truncated(&mut self, terms: &Terms<'_>) {
        let gone = |index: u64, term: u64| !terms.holds(index, term);
        while self.accepted.last().is_some_and(|&(i, t)| gone(i, t)) {
            self.accepted.pop();
        }
        while let Some(&term) = self.held.last() {
            if !gone(self.held.len() as u64, term) {
                break;
            }
            self.held.pop();
        }
    }

    pub(super) fn durable(&mut self, index: u64, terms: &Terms<'_>) {
        self.truncated(terms);
        while (self.held.len() as u64) < index {
            let next = self.held.len() as u64 + 1;
            // What was trimmed has lost its term; it was committed.
            self.held.push((terms.at)(next).unwrap_or(0));
        }
    }

    pub(super) fn has(&self, index: u64, term: u64) -> bool {
        self.held.get(index as usize - 1) == Some(&term)
    }

    pub(super) fn is_blank(&self) -> bool {
        self.term == 0 && self.votes.is_empty() && self.accepted.is_empty() && self.held.is_empty()
    }

    /// Everything that was promised is found again.
    pub(super) fn recovered(&mut self, found: &Recovered<'_>) -> Check {
        let who = format!("g{} n{}", found.group, found.node);
        ensure!(
            found.term >= self.term,
            "{who}: was in term {} and comes back in term {} (INV-5)",
            self.term,
            found.term
        );
        let vote = self.votes.get(&found.term);
        ensure!(
            vote.is_none_or(|&vote| vote == found.vote),
            "{who}: voted for n{vote:?} in term {} and comes back with a vote for n{} (INV-5)",
            found.term,
            found.vote
        );
        if let Some(&(index, term)) = self.accepted.last() {
            ensure!(
                found.terms.holds(index, term),
                "{who}: accepted entry {index} of term {term} and comes back with {:?}, last {} (INV-5)",
                (found.terms.at)(index),
                found.terms.last
            );
        }
        if let Some(&term) = self.held.last() {
            let index = self.held.len() as u64;
            ensure!(
                found.terms.holds(index, term),
                "{who}: held entry {index} of term {term} on stable storage and comes back with {:?}, last {} (INV-1)",
                (found.terms.at)(index),
                found.terms.last
            );
        }
        // Recovery ends in a checkpoint: all that it shows is on stable storage.
        self.durable(found.terms.last, &found.terms);
        Ok(())
    }
}
