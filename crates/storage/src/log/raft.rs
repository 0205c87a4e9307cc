//! What Raft asks of its log beside the entries: hard state, terms, membership, and what of it is durable.
//!
//! All of it is answered from memory. What it means is the caller's.

use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use crate::options::HardState;

/// What is on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durability {
    /// Entries up to here, as they are in the log now: a sync of what was truncated does not count.
    pub index: u64,
    /// Hard states up to this version, see [`Log::set_hard_state`].
    pub hard_version: u64,
    /// A restart finds at least this commit index.
    pub commit: u64,
}

impl Log {
    /// Term, vote and commit index as they were set last.
    pub fn hard_state(&self) -> HardState {
        self.state.lock().hard
    }

    /// Sets term and vote; they are durable with the next cycle. Returns the version that [`Log::durability`] must
    /// reach; it counts up from 0, which is what was found at the start. The commit index rides along with what else
    /// is written; a change of it alone is no new version. It is kept by [`Log::commit_to`], too, and that makes a
    /// version when it commits a membership.
    pub fn set_hard_state(self: &Arc<Self>, hard: HardState) -> u64 {
        let mut state = self.state.lock();
        let commit = state.hard.commit.max(hard.commit.min(state.tail.index));
        let changed = (hard.term, hard.vote) != (state.hard.term, state.hard.vote);
        state.hard = HardState { commit, ..hard };
        if changed {
            state.hard_version += 1;
            self.enqueue(&mut state);
        }
        state.hard_version
    }

    /// Whether the hard state set last is on stable storage.
    pub fn is_hard_state_durable(&self) -> bool {
        let state = self.state.lock();
        state.hard_durable == state.hard_version
    }

    /// Entries and hard states on stable storage, in one look.
    pub fn durability(&self) -> Durability {
        let state = self.state.lock();
        Durability {
            index: state.durable,
            hard_version: state.hard_durable,
            commit: state.commit_durable.min(state.durable),
        }
    }

    /// Every entry up to this index is on stable storage.
    pub fn durable_index(&self) -> u64 {
        self.state.lock().durable
    }

    /// Term of the entry at an index from `first_index() - 1` to [`Log::last_index`], otherwise `None`; of index 0,
    /// as long as the log begins there, 0. No I/O.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        let state = self.state.lock();
        if index > state.tail.index || index + 1 < self.first_index_of(&state) {
            return None;
        }
        state.terms.get(index)
    }

    /// First index whose entry can be read and whose predecessor's term is known.
    pub fn first_index(&self) -> u64 {
        self.first_index_of(&self.state.lock())
    }

    pub(super) fn first_index_of(&self, state: &super::State) -> u64 {
        let files = self.files.read();
        let before = files
            .first()
            .map_or(state.committed.index, |f| f.first.index);
        before.max(state.terms.base()) + 1
    }

    /// The payload of the last committed config entry and the entry's index; `(0, empty)` before any.
    pub fn membership(&self) -> (u64, Bytes) {
        let state = self.state.lock();
        let membership = &state.memberships.committed;
        (membership.index, membership.payload.clone())
    }

    /// The payload of the newest config entry, committed or not, and the entry's index; `(0, empty)` before any.
    pub fn last_membership(&self) -> (u64, Bytes) {
        let state = self.state.lock();
        let membership = state.memberships.last();
        (membership.index, membership.payload.clone())
    }

    /// Why this replica must not vote before a peer has repaired it (INV-6): damage hides the last entry, or it took
    /// terms or config entries that nothing else tells of.
    pub fn unproven(&self) -> Option<String> {
        let state = self.state.lock();
        state.broken.clone().or_else(|| state.unproven.clone())
    }
}
