//! What the log of groups holds: one record for each change, in an encoding of its own.
//!
//! A record is a version (1), a kind, and its fields: unsigned numbers as LEB128, signed ones zigzag before that, strings and lists
//! with their length in front. Fields are added at the end of a kind; a reader takes what it knows. A kind or a version that it does not know is an error: state is never
//! guessed.

mod codec;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::assign::Assignor;
use super::parts::{Parts, TopicId, Tp};

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Of the next record to read.
    pub(crate) offset: i64,
    /// Of the last record that was read.
    pub(crate) leader_epoch: Option<i32>,
    /// The coordinator's clock at the commit, ms since the epoch.
    pub(crate) at_ms: i64,
    /// The committer's own.
    pub(crate) metadata: Box<str>,
}

/// What is kept of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberRecord {
    pub(crate) id: Arc<str>,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) client_id: Arc<str>,
    pub(crate) rack: Arc<str>,
    pub(crate) topics: Vec<String>,
    pub(crate) pattern: Option<String>,
    pub(crate) session_ms: i64,
    pub(crate) rebalance_ms: i64,
    pub(crate) poll_ms: i64,
    /// Its epoch; for a new member that at which it came.
    pub(crate) epoch: i64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The group is there, with this assignor; without members since then, if it has none.
    Group {
        group: Arc<str>,
        epoch: i64,
        assignor: Assignor,
        empty_since_ms: Option<i64>,
    },
    /// A member came, or is another than it was.
    Member {
        group: Arc<str>,
        member: Box<MemberRecord>,
    },
    /// A member went; what it held is free.
    MemberGone { group: Arc<str>, member: Arc<str> },
    /// A member got an epoch, and with it holds more or less.
    Grant {
        group: Arc<str>,
        member: Arc<str>,
        epoch: i64,
        added: Parts,
        removed: Parts,
    },
    /// An offset was committed.
    Offset {
        group: Arc<str>,
        tp: Tp,
        committed: Committed,
    },
    /// A committed offset is forgotten; without a partition those of the whole topic.
    OffsetGone {
        group: Arc<str>,
        topic: TopicId,
        partition: Option<u32>,
    },
    /// The group is forgotten, with all it had.
    GroupGone { group: Arc<str> },
    /// Targets rest on the metadata of this revision: a successor must know it.
    Revision(u64),
    /// Nothing: its commit shows that its leader still led.
    Mark,
    /// All groups follow, in records that are part of the image.
    ImageBegin,
    /// The image is whole: it is what was before.
    ImageEnd,
}

/// The codes of assignors in records.
fn assignor_code(assignor: Assignor) -> u64 {
    match assignor {
        Assignor::Sticky => 0,
        Assignor::Range => 1,
        Assignor::RackAware => 2,
    }
}

impl Record {
    /// Whether it can be part of an image.
    pub(crate) fn is_state(&self) -> bool {
        matches!(
            self,
            Record::Group { .. }
                | Record::Member { .. }
                | Record::Grant { .. }
                | Record::Offset { .. }
                | Record::Revision(_)
        )
    }
}
