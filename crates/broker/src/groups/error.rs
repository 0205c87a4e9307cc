//! Why the core refuses something. What clients are told of it is made of this at the edge.

use thiserror::Error;

use super::parts::TopicId;

/// A refusal; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Error {
    #[error("no group named `{0}`")]
    UnknownGroup(String),
    #[error("no topic named `{0}`; create it, or subscribe to it by a pattern")]
    UnknownTopicNamed(String),
    #[error("no topic with id {:032x}", .0.0)]
    UnknownTopic(TopicId),
    #[error("the topic has {count} partitions, {partition} is not one of them")]
    UnknownPartition { partition: i64, count: usize },
    #[error("not a member of the group any more: {0}")]
    Fenced(&'static str),
    #[error("another consumer joined with the same instance id")]
    InstanceFenced,
    #[error("the application did not poll for {since_ms} ms, {max_ms} are allowed")]
    PollTimeout { since_ms: i64, max_ms: i64 },
    #[error("the member does not hold this partition at its epoch")]
    NotAssigned,
    #[error("offset {committed} is committed, which is higher")]
    CommitBehind { committed: i64 },
    #[error("offset {offset} is beyond the partition's end, {end}")]
    BeyondEnd { offset: i64, end: i64 },
    #[error("the group has {0} members")]
    NotEmpty(usize),
    #[error("{what} is at its limit of {limit}")]
    Full { what: &'static str, limit: usize },
    #[error("the group uses the assignor `{0}`")]
    InconsistentAssignor(&'static str),
    #[error("the pattern is refused: {0}")]
    InvalidPattern(String),
    #[error("{why}")]
    Invalid { field: &'static str, why: String },
}

impl Error {
    /// An argument that is wrong.
    pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Error {
        let why = why.into();
        Error::Invalid { field, why }
    }
}
