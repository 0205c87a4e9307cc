//! What can go wrong in a group.

use crate::message::NodeId;

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Why a proposal was not taken. Nothing of it is in the log.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// This replica does not lead.
    #[error("this replica does not lead the group")]
    NotLeader {
        /// Who does, as far as it knows.
        leader: Option<NodeId>,
    },
    /// It leads and hands over just now.
    #[error("the group is being handed over")]
    HandingOver,
    /// Another change of the membership is under way, or this one does not fit.
    #[error("the membership can't be changed now: {0}")]
    Membership(String),
    /// The log could not take it.
    #[error(transparent)]
    Storage(#[from] timberline_storage::Error),
    /// The group stopped after a fault; see the log.
    #[error("the group stopped: {0}")]
    Stopped(String),
}

/// Why a group can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A configuration entry of the log is not one.
    #[error("the log's membership: {0}")]
    Membership(#[from] Malformed),
    /// The log can't be read.
    #[error(transparent)]
    Storage(#[from] timberline_storage::Error),
    /// The Raft library refuses the state.
    #[error("raft: {0}")]
    Raft(String),
}
