//! The log as the Raft library sees it: indexes and terms, never payload.
//!
//! An entry is a stub of index, term and type. Payload goes from the log to the wire and from the wire to the log
//! without passing through the library, so that applying and sending cost it nothing.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::log_store::LogStore;
use crate::membership::{ConfigEntry, Member, Membership};
use crate::message::SnapshotMark;

/// A follower that lacks more sealed bytes than this gets segments, not entries…
const SHIPPED_FROM_BYTES: u64 = 64 << 20;
/// …and no less than one in so many of all sealed bytes: segments come from the log's beginning, so whoever has the most
/// of it gets the rest sooner as entries. And a follower that has taken in all segments must not need them again, however
/// much was written meanwhile.
const SHIPPED_SHARE: u64 = 2;
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
    /// A snapshot was wanted and could not be offered: a boundary at or behind this index is missing.
    pub(crate) boundary_wanted: Cell<Option<u64>>,
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
    /// Whether a follower that lacks what is from this index on gets segments.
    fn is_shipped(&self, low: u64) -> bool {
        let lacked = self.log.sealed_bytes_from(low);
        lacked > SHIPPED_FROM_BYTES && lacked >= self.log.sealed_bytes_from(0) / SHIPPED_SHARE
    }

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
        if context.can_async() && self.is_shipped(low) {
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

    /// The library silently drops a snapshot whose membership does not name the receiver: none such is offered. What
    /// the log still has behind its boundary follows by entries.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A membership is committed before the library sends to whom it names.
        let named_from = self.log.membership().0;
        let from = named_from
            .max(request_index)
            .max(self.log.first_index() - 1);
        let offered = self.log.boundary().filter(|mark| mark.index >= from);
        let offered = offered.and_then(|mark| {
            let members = ConfigEntry::decode(&mark.membership).ok()?.result;
            members.broker_of(to).map(|_| snapshot(&mark, &members))
        });
        offered.ok_or_else(|| {
            self.boundary_wanted.set(Some(from));
            StorageError::SnapshotTemporarilyUnavailable.into()
        })
    }
}

/// The library's form of a snapshot: where it ends, no data.
pub(crate) fn snapshot(mark: &SnapshotMark, members: &Membership) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = mark.index;
    metadata.term = mark.term;
    metadata.set_conf_state(conf_state(members));
    snapshot
}
