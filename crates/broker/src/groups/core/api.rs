//! What goes into the core and what comes out.

use std::sync::Arc;

use crate::groups::assign::Assignor;
use crate::groups::error::Error;
use crate::groups::parts::{Parts, Tp};
use crate::groups::record::{Committed, Record};
use crate::groups::subscription::Subscription;
use crate::groups::topics::Topics;

/// The time, as the core's inputs bring it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// Never goes back; for timeouts. ms since any moment.
    pub(crate) mono_ms: u64,
    /// For what is kept: ms since the epoch.
    pub(crate) wall_ms: i64,
}

/// A member's connection. Chosen by whoever holds it, never used twice.
pub(crate) type Link = u64;
/// A call that waits for its answer. As a link.
pub(crate) type Call = u64;

/// What a member says when it comes.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) group: Arc<str>,
    /// Of one that comes back: its id and the last epoch that it applied.
    pub(crate) returning: Option<(Arc<str>, i64)>,
    /// The id of one that is new; never used before.
    pub(crate) new_id: Arc<str>,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) subscription: Subscription,
    /// `None`: what the group has.
    pub(crate) assignor: Option<Assignor>,
    /// 0: the default.
    pub(crate) session_ms: i64,
    pub(crate) rebalance_ms: i64,
    pub(crate) poll_ms: i64,
    pub(crate) client_id: Arc<str>,
    pub(crate) address: Arc<str>,
    pub(crate) rack: Arc<str>,
    /// What one that comes back still holds.
    pub(crate) owned: Parts,
}

/// One partition's offset, to be committed.
#[derive(Clone, Debug)]
pub(crate) struct CommitItem {
    pub(crate) tp: Tp,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: Option<i32>,
    pub(crate) metadata: Box<str>,
    /// It may be lower than what is committed.
    pub(crate) rewind: bool,
    /// What the edge found wrong with it.
    pub(crate) refused: Option<Error>,
}

/// Which offsets are meant.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    All,
    /// In the order of the answer; `None`: all of the topic that are committed.
    These(Vec<(crate::groups::parts::TopicId, Option<Vec<u32>>)>),
}

/// Something happens.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Join {
        link: Link,
        join: Box<Join>,
    },
    Heartbeat {
        link: Link,
        applied: Option<i64>,
        since_poll_ms: i64,
    },
    Subscribe {
        link: Link,
        subscription: Subscription,
    },
    Leave {
        link: Link,
        will_return: bool,
    },
    /// The connection is gone, without a word.
    Broken {
        link: Link,
    },
    Commit {
        call: Call,
        group: Arc<str>,
        /// Id and epoch.
        member: Option<(Arc<str>, i64)>,
        items: Vec<CommitItem>,
    },
    Fetch {
        call: Call,
        group: Arc<str>,
        which: Which,
    },
    /// Commits for a group without members.
    Reset {
        call: Call,
        group: Arc<str>,
        offsets: Vec<(Tp, i64)>,
    },
    DeleteOffsets {
        call: Call,
        group: Arc<str>,
        which: Which,
    },
    DeleteGroup {
        call: Call,
        group: Arc<str>,
    },
    Describe {
        call: Call,
        group: Arc<str>,
    },
    List {
        call: Call,
        prefix: String,
    },
    /// The metadata changed.
    Topics(Arc<Topics>),
}

impl Input {
    /// The call that waits for its answer.
    pub(crate) fn call(&self) -> Option<Call> {
        match self {
            Input::Commit { call, .. }
            | Input::Fetch { call, .. }
            | Input::Reset { call, .. }
            | Input::DeleteOffsets { call, .. }
            | Input::DeleteGroup { call, .. }
            | Input::Describe { call, .. }
            | Input::List { call, .. } => Some(*call),
            _ => None,
        }
    }
}

/// Where reading of a partition begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) tp: Tp,
    /// Offset and leader epoch, if something is committed.
    pub(crate) committed: Option<(i64, Option<i32>)>,
}

/// Said to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Welcome {
        member: Arc<str>,
        assignor: Assignor,
        session_ms: i64,
        rebalance_ms: i64,
        poll_ms: i64,
    },
    /// Answers one heartbeat.
    Beat,
    /// All that it may hold, and which of that is new to it.
    Assignment {
        epoch: i64,
        parts: Parts,
        starts: Vec<Start>,
    },
    /// It left. Nothing comes after it.
    Left,
    /// It is put out, or was not let in. Nothing comes after it.
    End(Error),
}

/// How a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Empty,
    Assigning,
    Reconciling,
    Stable,
}

/// A group in a list.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) group: Arc<str>,
    pub(crate) state: State,
    pub(crate) assignor: Assignor,
    pub(crate) members: usize,
}

/// A member in a description.
#[derive(Clone, Debug)]
pub(crate) struct MemberView {
    pub(crate) id: Arc<str>,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) client_id: Arc<str>,
    pub(crate) address: Arc<str>,
    pub(crate) rack: Arc<str>,
    pub(crate) epoch: i64,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) held: Parts,
    pub(crate) target: Parts,
    pub(crate) connected: bool,
    pub(crate) session_ms: i64,
}

/// A group, described.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) summary: Summary,
    pub(crate) epoch: i64,
    pub(crate) members: Vec<MemberView>,
    pub(crate) offsets: Vec<(Tp, Committed)>,
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// One for each item.
    Items(Vec<Result<Tp, (Tp, Error)>>),
    Offsets(Vec<(Tp, Option<Committed>)>),
    Groups(Vec<Summary>),
    Description(Box<Description>),
    Done,
    Failed(Error),
}

/// Something that is to be said, as soon as all records before it are committed.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Tell { link: Link, message: Message },
    Answer { call: Call, answer: Answer },
}

/// What an input led to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// In order.
    pub(crate) records: Vec<Record>,
    /// In order; all of them after the records.
    pub(crate) effects: Vec<Effect>,
    /// Somebody reads what must be known to be the newest.
    pub(crate) mark: bool,
}

impl Output {
    pub(super) fn tell(&mut self, link: Link, message: Message) {
        self.effects.push(Effect::Tell { link, message });
    }

    pub(super) fn answer(&mut self, call: Call, answer: Answer) {
        self.effects.push(Effect::Answer { call, answer });
    }
}
