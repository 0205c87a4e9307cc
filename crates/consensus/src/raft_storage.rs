//! The log as the Raft library sees it: indexes and terms, never payload.
//!
//! An entry is a stub of index, term and type. Payload goes from the log to the wire and from the wire to the log
//! without passing through the library, so that applying and sending cost it nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::log_store::LogStore;
use crate::membership::{Member, Membership};

/// Stubs in one answer for a send: bounds the entries of one message.
const ENTRIES_PER_MESSAGE: u64 = 256;

pub(crate) struct RaftStorage<S> {
    pub(crate) log: S,
    /// Configuration entries that are not applied yet, by index. As many as leaders of one tail can have proposed.
    pub(crate) configs: BTreeMap<u64, Bytes>,
    /// Last index that the library has handed over. A leader's proposals are in the log a moment earlier.
    pub(crate) last_index: u64,
    /// As of the commit index at the start.
    pub(crate) initial: ConfState,
    /// As found at the start.
    pub(crate) hard: timberline_storage::HardState,
}

/// The library's form of a membership.
pub(crate) fn conf_state(membership: &Membership) -> ConfState {
    let ids = |members: &[Member]| members.iter().map(|member| member.node).collect::<Vec<_>>();
    let mut state = ConfState::default();
    state.set_voters(ids(&membership.voters));
    state.set_voters_outgoing(ids(&membership.outgoing));
    state.set_learners(ids(&membership.learners));
    state.set_learners_next(ids(&membership.learners_next));
    state
}

impl<S: LogStore> RaftStorage<S> {
    fn stub(&self, index: u64, term: u64) -> Entry {
        let mut entry = Entry::default();
        entry.index = index;
        entry.term = term;
        if self.configs.contains_key(&index) {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entry
    }
}

impl<S: LogStore> Storage for RaftStorage<S> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let found = self.hard;
        let mut hard = HardState::default();
        hard.term = found.term;
        hard.vote = found.vote;
        hard.commit = self.log.commit_index();
        Ok(RaftState::new(hard, self.initial.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        _max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.log.first_index() {
            return Err(StorageError::Compacted.into());
        }
        // Only sends may be answered in part; everything else wants all, and stubs are small.
        let high = match context.can_async() {
            true => high.min(low + ENTRIES_PER_MESSAGE),
            false => high,
        };
        (low..high)
            .map(|index| match self.log.term_at(index) {
                Some(term) => Ok(self.stub(index, term)),
                None => Err(StorageError::Unavailable.into()),
            })
            .collect()
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.log.term_at(index).ok_or_else(|| {
            if index < self.log.first_index() {
                StorageError::Compacted.into()
            } else {
                StorageError::Unavailable.into()
            }
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
