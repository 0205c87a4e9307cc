//! Raft groups over the log.
#![forbid(unsafe_code)]

mod message;

pub use message::{
    Append, AppendReply, Body, Candidacy, Envelope, Frame, Mismatch, NodeId, SnapshotMark,
    VoteReply,
};
