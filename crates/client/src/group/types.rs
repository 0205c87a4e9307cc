//! What a consumer of a group and its application say to each other.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::consumer::{ConsumedRecord, Position, RecordBatch};
use crate::group::Committer;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> TopicPartition {
        TopicPartition {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A position to commit: the next record of the partition that the group is to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetCommit {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset of the next record to read.
    pub offset: i64,
    /// Free text that is kept with it, up to 4 KiB.
    pub metadata: String,
    /// Take it although the group is further. Otherwise that is refused with `COMMIT_BEHIND`.
    pub rewind: bool,
}

impl OffsetCommit {
    /// The group is to go on at this offset.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32, offset: i64) -> OffsetCommit {
        OffsetCommit {
            topic: topic.into(),
            partition,
            offset,
            metadata: String::new(),
            rewind: false,
        }
    }

    /// The group is done with this record and all before it.
    pub fn after(record: &ConsumedRecord) -> OffsetCommit {
        OffsetCommit::new(record.topic.clone(), record.partition, record.offset + 1)
    }

    /// The group is done with this batch and all before it.
    pub fn after_batch(batch: &RecordBatch) -> OffsetCommit {
        OffsetCommit::new(
            batch.topic().clone(),
            batch.partition(),
            batch.next_offset(),
        )
    }

    /// Sets [`metadata`](Self#structfield.metadata).
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> OffsetCommit {
        self.metadata = metadata.into();
        self
    }

    /// Sets [`rewind`](Self#structfield.rewind).
    #[must_use]
    pub fn rewind(mut self) -> OffsetCommit {
        self.rewind = true;
        self
    }
}

/// A partition that the consumer is about to read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// Which one.
    pub partition: TopicPartition,
    /// Where the group stands in it.
    pub committed: Option<i64>,
    /// Where to begin, if not where the group stands or the reset policy says.
    pub start: Option<Position>,
}

/// Partitions that go to others.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Revocation {
    /// Nothing more of them is handed out.
    pub partitions: Vec<TopicPartition>,
    /// When the consumer goes on, whether the listener is finished or not.
    pub deadline: Instant,
    /// For last commits of them: they are still this member's.
    pub committer: Committer,
}

/// What a listener's function returns.
pub type ListenerFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Is told when partitions come and go. Partitions that stay are read on meanwhile.
///
/// Functions are called one after the other by a task of the consumer's, never by `recv`; a listener that takes part in what the
/// application does shares state with it. What a function does not finish in time is dropped.
pub trait RebalanceListener: Send + Sync + 'static {
    /// Partitions are new to the consumer; nothing of them is handed out before this has returned. Each may be given another
    /// [`start`](AssignedPartition::start), say for positions that are kept elsewhere.
    fn assigned<'a>(&'a self, partitions: &'a mut [AssignedPartition]) -> ListenerFuture<'a> {
        let _ = partitions;
        Box::pin(std::future::ready(()))
    }

    /// Partitions go to others as soon as this has returned, at the deadline at the latest. The application has come back for
    /// more since the last record of them was handed out, or the deadline is near. With auto-commit all that was handed out is
    /// committed afterwards.
    fn revoked<'a>(&'a self, revocation: &'a Revocation) -> ListenerFuture<'a> {
        let _ = revocation;
        Box::pin(std::future::ready(()))
    }

    /// Partitions have gone to others already: the member was put out, or cut off for longer than its session. Nothing of them
    /// can be committed any more.
    fn lost<'a>(&'a self, partitions: &'a [TopicPartition]) -> ListenerFuture<'a> {
        let _ = partitions;
        Box::pin(std::future::ready(()))
    }
}
