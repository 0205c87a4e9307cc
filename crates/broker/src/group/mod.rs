//! The seam between the broker and agreement: *propose* and *committed*.
//!
//! A group owns the write side of one replica's log. Its shard proposes entries, tells it what became durable, and asks
//! it for events. Whether an entry commits because it is on this disk (a group of one, [`Solo`]) or because a majority
//! has it is the group's business alone: callers see only indexes.
//!
//! Invariants: indexes are given in order; an entry that was given an index is later committed or, by an event, dropped;
//! a refusal leaves nothing behind.

mod solo;

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::Batch;
use timberline_storage::Log;

pub(crate) use solo::Solo;

/// What can be proposed.
#[derive(Debug)]
pub(crate) enum Entry {
    /// Records of a client, checked by the front.
    Batch(Batch),
    /// A command of a state log.
    Command(Bytes),
    /// A move of the log start to this offset, by retention or trim.
    LogStart(i64),
}

/// An entry that has its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposed {
    pub(crate) index: u64,
    /// Offset of the first record, for a batch.
    pub(crate) base_offset: i64,
}

/// Why an entry was not taken. Nothing of it is in the log.
#[derive(Debug)]
pub(crate) enum Why {
    /// The log could not take it.
    Storage(timberline_storage::Error),
}

/// What a group decided since it was asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Everything up to this index is committed, and readable.
    Committed(u64),
}

/// One group, as its shard drives it.
pub(crate) trait Group: Send {
    /// The replica's log; read-only for callers.
    fn log(&self) -> &Arc<Log>;

    /// The term that this broker leads in.
    fn term(&self) -> u64;

    /// Proposes one entry at time `now_ms`.
    fn propose(&mut self, entry: Entry, now_ms: i64) -> Result<Proposed, Box<Why>>;

    /// Entries up to `index` are on this broker's stable storage.
    fn durable(&mut self, index: u64);

    /// The next event.
    fn poll(&mut self) -> Option<Event>;
}
