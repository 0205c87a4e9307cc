//! What replicas of a group say to each other. Our own types: no peer's bytes reach the Raft library's own decoder.

use bytes::Bytes;
use timberline_storage::FrameHeader;

/// One replica's number within consensus, unique in the cluster and never reused. 0 is nobody.
pub type NodeId = u64;

/// A message of one replica to another of the same group.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The group, named by the chain seed of its topic and partition; a second check beside the ids.
    pub group: u64,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's term; for pre-votes the term it would campaign in (Raft section 9.6).
    pub term: u64,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Would you vote for me? Changes nothing at the receiver.
    PreVote(Candidacy),
    /// The answer to [`Body::PreVote`].
    PreVoteReply(VoteReply),
    /// Vote for me (Raft section 5.2).
    Vote(Candidacy),
    /// The answer to [`Body::Vote`].
    VoteReply(VoteReply),
    /// Entries, or a probe without any (Raft section 5.3).
    Append(Append),
    /// The answer to [`Body::Append`].
    AppendReply(AppendReply),
    /// The leader is there.
    Beat {
        /// What the receiver surely has and may commit.
        commit: u64,
        /// It would fall silent from here on: its shard's beats are to stand for its own.
        quiesce: bool,
    },
    /// The answer to [`Body::Beat`].
    BeatReply {
        /// The commit index that the sender will still know after a restart.
        commit: u64,
        /// It has everything, and takes the leader's shard for the leader until it hears otherwise.
        quiesced: bool,
    },
    /// Campaign at once: the leader hands over to the receiver (Raft section 3.10).
    TimeoutNow,
    /// Sealed segments stand for everything up to here; they were shipped beside this stream, staged and verified.
    Snapshot(SnapshotMark),
}

/// What a candidate says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidacy {
    /// Index of its last entry.
    pub last_index: u64,
    /// Term of its last entry.
    pub last_term: u64,
    /// Its commit index and the term there: a receiver that has the entry may commit it too.
    pub commit: u64,
    /// Term of the entry at `commit`.
    pub commit_term: u64,
    /// The leader asked for it: a lease does not stand against it.
    pub transfer: bool,
}

/// An answer to a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// Whether the vote is given.
    pub granted: bool,
    /// The voter's commit index, when it refuses.
    pub commit: u64,
    /// Term of the entry at `commit`.
    pub commit_term: u64,
}

/// Entries for a follower.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Index of the entry before the first frame.
    pub prev_index: u64,
    /// Term of that entry.
    pub prev_term: u64,
    /// The leader's commit index.
    pub commit: u64,
    /// Frames in order, dense from `prev_index + 1`.
    pub frames: Vec<Frame>,
}

/// An entry as it lies in the log: header and payload are the same bytes on every replica (INV-4).
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Index, term, kind, offsets, chain.
    pub header: FrameHeader,
    /// The stored payload, by reference.
    pub payload: Bytes,
}

/// An answer to entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendReply {
    /// Everything up to here is the leader's and on stable storage; for a refusal the index that did not match.
    pub index: u64,
    /// Set when the entry before the first did not match: where to try next.
    pub refused: Option<Mismatch>,
    /// The commit index that the follower will still know after a restart.
    pub commit: u64,
}

/// Where a follower's log may meet the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Try behind this index.
    pub hint: u64,
    /// The follower's term there.
    pub hint_term: u64,
}

/// The end of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotMark {
    /// Last index that it holds.
    pub index: u64,
    /// Term there.
    pub term: u64,
    /// Membership as of that index, encoded.
    pub membership: Bytes,
}

impl Envelope {
    /// Whether it goes by the way of bulk; everything else is prompt: no sync and no transfer may hold it up.
    pub fn is_bulk(&self) -> bool {
        matches!(&self.body, Body::Append(append) if !append.frames.is_empty())
    }

    /// Whether it is a beat or the answer to one: nearly all that idle groups say.
    pub fn is_beat(&self) -> bool {
        matches!(self.body, Body::Beat { .. } | Body::BeatReply { .. })
    }

    /// Bytes of payload, for the bound of a queue.
    pub fn payload_bytes(&self) -> usize {
        match &self.body {
            Body::Append(append) => append.frames.iter().map(|f| f.payload.len() + 64).sum(),
            Body::Snapshot(mark) => mark.membership.len(),
            _ => 0,
        }
    }
}
