//! Identities: replicas and files. Both count up and are never reused within a data directory.

use std::fmt;

use uuid::Uuid;

/// One incarnation of a replica of a partition. A replica that lost its disk comes back under a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// One segment file of a data directory. 0 is no file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl FileId {
    /// Stands for "no file": the cut of a replica's first file points here.
    pub const NONE: FileId = FileId(0);
    /// The entry lies in no file of this directory: an installed snapshot begins behind it.
    pub(crate) const ELSEWHERE: FileId = FileId(u64::MAX);
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}", self.0)
    }
}

/// What a replica is a replica of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaSpec {
    /// The incarnation.
    pub replica: ReplicaId,
    /// The topic's id. The nil id is the cluster's metadata.
    pub topic: Uuid,
    /// The partition of the topic.
    pub partition: u32,
}
