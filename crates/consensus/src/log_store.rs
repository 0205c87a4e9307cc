//! The log as consensus needs it. The product's is [`timberline_storage::Log`]; scripts bring one in memory whose
//! durability they control.

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::Batch;
use timberline_storage::{
    Appended, ColdRead, Durability, EntryKind, Error, FramesOutcome, HardState, Install, Log,
};

use crate::message::{Frame, SnapshotMark};

/// Reserved beside an entry's payload: frame header, padding, and what the file around it may need, bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 4096;

/// What a leader can append.
#[derive(Clone, Debug)]
pub enum Proposal {
    /// Records of a client, checked.
    Batch(Batch),
    /// A command of a state log.
    Command(Bytes),
    /// A move of the log start to this offset, by retention or trim.
    LogStart(i64),
}

impl Proposal {
    /// Bytes of its payload.
    pub fn len(&self) -> usize {
        match self {
            Proposal::Batch(batch) => batch.bytes().len(),
            Proposal::Command(payload) => payload.len(),
            Proposal::LogStart(_) => 8,
        }
    }

    /// Whether it has no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Frames, or the work that makes them readable.
#[derive(Debug)]
pub enum Frames {
    /// In order.
    Ready(Vec<Frame>),
    /// Run it where blocking is allowed, then ask again.
    Cold(ColdRead),
}

/// A snapshot that has come in whole: checked, and on stable storage beside the log.
pub trait Staged {
    /// Where it ends.
    fn mark(&self) -> SnapshotMark;
}

/// One replica's log. Its methods take `&self`; one thread at a time writes.
pub trait LogStore: Send {
    /// A snapshot beside the log.
    type Staged: Staged;
    /// First index that can be read; the term before it is known.
    fn first_index(&self) -> u64;
    /// Index of the last entry; 0 for none.
    fn last_index(&self) -> u64;
    /// Term of an entry from `first_index - 1` to the last; 0 at index 0.
    fn term_at(&self, index: u64) -> Option<u64>;
    /// Everything up to it is committed.
    fn commit_index(&self) -> u64;
    /// Term and vote as set last.
    fn hard_state(&self) -> HardState;
    /// Index and payload of the last committed configuration entry; (0, empty) before any.
    fn membership(&self) -> (u64, Bytes);
    /// Makes sure of space for so many bytes of payload.
    ///
    /// # Errors
    /// Those of the log; nothing is changed.
    fn reserve(&self, bytes: u64) -> Result<(), Error>;
    /// Appends a leader's entry.
    ///
    /// # Errors
    /// Those of the log.
    fn append(&self, term: u64, proposal: &Proposal, now_ms: i64) -> Result<Appended, Error>;
    /// Appends a leader's no-op or configuration entry.
    ///
    /// # Errors
    /// Those of the log.
    fn append_internal(
        &self,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        now_ms: i64,
    ) -> Result<Appended, Error>;
    /// Appends a follower's copy of an entry.
    ///
    /// # Errors
    /// Those of the log; one of them says that the histories differ (INV-4).
    fn append_frame(&self, frame: &Frame) -> Result<(), Error>;
    /// Drops what is behind the index.
    ///
    /// # Errors
    /// Those of the log.
    fn truncate_after(&self, index: u64) -> Result<(), Error>;
    /// Sets term and vote; the answer counts up and is compared with [`Durability::hard_version`].
    fn set_hard_state(&self, hard: HardState) -> u64;
    /// What is on stable storage.
    fn durability(&self) -> Durability;
    /// Everything up to the index is committed.
    fn commit_to(&self, index: u64);
    /// Entries `from..=to`, at least one, about `max_bytes` at most.
    ///
    /// # Errors
    /// Those of the log.
    fn frames(&self, from: u64, to: u64, max_bytes: usize) -> Result<Frames, Error>;
    /// The newest end of sealed segments: a snapshot can be made of all up to there. From memory.
    fn boundary(&self) -> Option<SnapshotMark>;
    /// The snapshot is the log from here on: commit and last index are its end. It is durable when
    /// [`Durability::index`] says so of its last entry; until then only what was committed before is.
    ///
    /// # Errors
    /// Those of the log; nothing is changed.
    fn install(&self, staged: Self::Staged) -> Result<(), Error>;
}

impl Staged for Install {
    fn mark(&self) -> SnapshotMark {
        let (index, term, membership) = self.end();
        SnapshotMark {
            index,
            term,
            membership,
        }
    }
}

impl LogStore for Arc<Log> {
    type Staged = Install;

    fn first_index(&self) -> u64 {
        Log::first_index(self)
    }

    fn last_index(&self) -> u64 {
        Log::last_index(self)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        Log::term_at(self, index)
    }

    fn commit_index(&self) -> u64 {
        Log::commit_index(self)
    }

    fn hard_state(&self) -> HardState {
        Log::hard_state(self)
    }

    fn membership(&self) -> (u64, Bytes) {
        Log::membership(self)
    }

    fn reserve(&self, bytes: u64) -> Result<(), Error> {
        Log::reserve(self, bytes + ENTRY_OVERHEAD_BYTES)
    }

    fn append(&self, term: u64, proposal: &Proposal, now_ms: i64) -> Result<Appended, Error> {
        match proposal {
            Proposal::Batch(batch) => self.append_batch(term, batch, now_ms),
            Proposal::Command(payload) => {
                Log::append(self, term, EntryKind::Command, payload.clone(), now_ms)
            }
            Proposal::LogStart(offset) => self.append_log_start(term, *offset, now_ms),
        }
    }

    fn append_internal(
        &self,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        now_ms: i64,
    ) -> Result<Appended, Error> {
        Log::append(self, term, kind, payload, now_ms)
    }

    fn append_frame(&self, frame: &Frame) -> Result<(), Error> {
        Log::append_frame(self, &frame.header, frame.payload.clone()).map(drop)
    }

    fn truncate_after(&self, index: u64) -> Result<(), Error> {
        Log::truncate_after(self, index)
    }

    fn set_hard_state(&self, hard: HardState) -> u64 {
        Log::set_hard_state(self, hard)
    }

    fn durability(&self) -> Durability {
        Log::durability(self)
    }

    fn commit_to(&self, index: u64) {
        Log::commit_to(self, index);
    }

    fn frames(&self, from: u64, to: u64, max_bytes: usize) -> Result<Frames, Error> {
        Ok(match Log::frames(self, from, to, max_bytes)? {
            FramesOutcome::Frames(frames) => Frames::Ready(
                frames
                    .into_iter()
                    .map(|(header, payload)| Frame { header, payload })
                    .collect(),
            ),
            FramesOutcome::Cold(cold) => Frames::Cold(cold),
        })
    }

    fn boundary(&self) -> Option<SnapshotMark> {
        Log::boundary(self).map(|boundary| SnapshotMark {
            index: boundary.index,
            term: boundary.term,
            membership: boundary.membership,
        })
    }

    fn install(&self, staged: Install) -> Result<(), Error> {
        Log::install(self, staged)
    }
}
