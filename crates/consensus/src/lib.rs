//! Raft groups over the log: agreement, without I/O and without a clock.
//!
//! A [`Group`] is one replica of one partition (or of the metadata). Messages and ticks go in, effects come out as
//! values in an [`Output`]; the log is reached through [`LogStore`]. Time comes in as an argument.
//!
//! - `message`: what replicas say to each other. `membership`: who they are, and how that changes.
//! - `log_store`: the log as a group needs it. `raft_storage`: the same as the Raft library sees it, without payload.
//! - `group`: one replica. `timing`: who stands for election when. `alive`: which brokers were heard, for groups that are silent.
//!
//! **Architecture invariant:** no tokio, no sockets, no threads, no clock, no randomness but the seeded one.
//! **Architecture invariant:** the only crate that names `raft`. What peers send is checked before it sees it, and a
//! panic inside it stops one group.
#![forbid(unsafe_code)]
#![allow(
    clippy::field_reassign_with_default,
    reason = "the library's messages are generated: a few fields are set, the rest is none of ours"
)]

mod alive;
pub mod bugs;
mod error;
mod group;
mod log_store;
mod membership;
mod message;
mod raft_storage;
mod timing;

pub use alive::{Alive, place};
pub use error::{Malformed, OpenError, Refused};
pub use group::{
    Dropped, FRAMES_MAX, Group, GroupOptions, NotInstalled, Output, PeerView, Pulse, Role,
    SnapshotOffer, Tick, View,
};
pub use log_store::{Frames, LogStore, Proposal, Staged};
pub use membership::{Change, ConfigEntry, MEMBERS_MAX, Member, Membership};
pub use message::{
    Append, AppendReply, Body, Candidacy, Envelope, Frame, Mismatch, NodeId, SnapshotMark,
    VoteReply,
};
pub use timing::Timing;
