//! The part of a log that is not committed, or not durable, yet.

use std::sync::Arc;

use bytes::Bytes;

use crate::frame::FRAME_HEADER_LEN;
use crate::ids::FileId;
use crate::place::Place;
use crate::producers::ProducerWrite;
use crate::segment::Segment;

/// An entry that is not committed yet.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Behind the entry.
    pub(crate) place: Place,
    /// What it does to the producer state.
    pub(crate) producer: Option<ProducerWrite>,
    /// The log start it sets.
    pub(crate) log_start: Option<i64>,
}

/// Most bytes in front of a payload: the frame's header and, for data, the batch's stamped one.
pub(crate) const HEAD_MAX: usize = FRAME_HEADER_LEN + timberline_record::BATCH_HEADER_LEN;

/// A frame that no cycle took yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) segment: Arc<Segment>,
    pub(crate) index: u64,
    pub(crate) pos: u64,
    /// With padding.
    pub(crate) len: u64,
    pub(crate) head: [u8; HEAD_MAX],
    pub(crate) head_len: usize,
    pub(crate) body: Bytes,
}

/// A sync that will make entries durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The last entry it covers.
    pub(crate) last_index: u64,
    pub(crate) kind: MarkKind,
    pub(crate) done: bool,
}

/// Which sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkKind {
    /// The cycle in flight.
    Cycle,
    /// A direct sync of the file up to the position, once a cycle names it. `synced`: only the name is missing.
    Direct {
        file: FileId,
        upto: u64,
        synced: bool,
    },
}
