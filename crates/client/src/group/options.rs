//! How a consumer takes part in a group.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, OffsetReset, builders, ensure};

/// Who gets which partitions; the members of a group use the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Assignor {
    /// What the group has; for a new group `Sticky`.
    #[default]
    OfGroup,
    /// Levels the number of partitions and moves as few as that needs.
    Sticky,
    /// Gives each member a contiguous range of each topic, so that equal keys of topics with equally many partitions meet.
    Range,
    /// As `Sticky`; among equally level assignments it prefers members in a rack that has a replica of the partition.
    RackAware,
}

impl Assignor {
    /// Its name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Assignor::OfGroup => "",
            Assignor::Sticky => "sticky",
            Assignor::Range => "range",
            Assignor::RackAware => "rack-aware",
        }
    }
}

/// How a consumer takes part in a group.
///
/// Durations that are zero are left to the broker, whose configuration has defaults for them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupOptions {
    /// The group's id, 1 to 249 bytes.
    pub group: String,
    /// Topics to read, by name; they must exist.
    pub topics: Vec<String>,
    /// A regular expression that a topic's whole name must match; topics that come later are read from their start. Syntax is
    /// that of the Rust `regex` crate.
    pub topic_pattern: Option<String>,
    /// Makes a static member: whoever joins with this id takes the place, and the partitions, of who had it, and a restart within
    /// the session moves nothing.
    pub instance_id: Option<String>,
    /// Who gets which partitions. Default: what the group has.
    pub assignor: Assignor,
    /// How long the member may be silent before its partitions go to others. 0.5 s to 30 min; default: the broker's.
    pub session_timeout: Duration,
    /// How long the member may take to let go of partitions; the application gets three quarters of it. 1 s to 1 h; default: the broker's.
    pub rebalance_timeout: Duration,
    /// How long the application may go without [`recv`](crate::GroupConsumer::recv). 1 s to 24 h; default: the broker's.
    pub max_poll_interval: Duration,
    /// How often what the application is done with is committed by itself: all that was handed out before its last call of
    /// `recv`. `None`: only when it says so. Default 1 s.
    pub auto_commit: Option<Duration>,
    /// Where to begin in a partition in which the group has committed nothing. Partitions and topics that are added while this
    /// member is there are read from their start whatever is said here. Default: at the first record there is.
    pub offset_reset: OffsetReset,
    /// How to fetch. Its own `offset_reset` is not used.
    pub fetch: ConsumerOptions,
    /// How long [`close`](crate::GroupConsumer::close) may take. Default 5 s.
    pub leave_timeout: Duration,
}

impl GroupOptions {
    /// Options for a member of this group, with nothing subscribed.
    pub fn new(group: impl Into<String>) -> GroupOptions {
        GroupOptions {
            group: group.into(),
            topics: Vec::new(),
            topic_pattern: None,
            instance_id: None,
            assignor: Assignor::default(),
            session_timeout: Duration::ZERO,
            rebalance_timeout: Duration::ZERO,
            max_poll_interval: Duration::ZERO,
            auto_commit: Some(Duration::from_secs(1)),
            offset_reset: OffsetReset::Earliest,
            fetch: ConsumerOptions::default(),
            leave_timeout: Duration::from_secs(5),
        }
    }

    builders! {
        topic_pattern: Option<String>,
        instance_id: Option<String>,
        assignor: Assignor,
        session_timeout: Duration,
        rebalance_timeout: Duration,
        max_poll_interval: Duration,
        auto_commit: Option<Duration>,
        offset_reset: OffsetReset,
        fetch: ConsumerOptions,
        leave_timeout: Duration,
    }

    /// Sets [`topics`](Self#structfield.topics).
    #[must_use]
    pub fn topics<S: Into<String>>(mut self, topics: impl IntoIterator<Item = S>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.fetch.check()?;
        let id = |id: &str| (1..=249).contains(&id.len()) && !id.chars().any(char::is_control);
        ensure(
            id(&self.group),
            "group",
            "must have 1 to 249 bytes and no control characters",
        )?;
        ensure(
            self.instance_id.as_deref().is_none_or(id),
            "instance_id",
            "must have 1 to 249 bytes and no control characters",
        )?;
        check_subscription(&self.topics, self.topic_pattern.as_deref())?;
        let span = |option, value: Duration, from: Duration, to: Duration| {
            let holds = value.is_zero() || (from..=to).contains(&value);
            let message = format!("must be zero (the broker's default) or {from:?} to {to:?}");
            ensure(holds, option, &message)
        };
        let (ms, secs) = (Duration::from_millis, Duration::from_secs);
        span(
            "session_timeout",
            self.session_timeout,
            ms(500),
            secs(1_800),
        )?;
        span(
            "rebalance_timeout",
            self.rebalance_timeout,
            secs(1),
            secs(3_600),
        )?;
        span(
            "max_poll_interval",
            self.max_poll_interval,
            secs(1),
            secs(86_400),
        )?;
        ensure(
            self.auto_commit.is_none_or(|every| every >= ms(10)),
            "auto_commit",
            "must be at least 10 ms, or None",
        )?;
        ensure(
            !self.leave_timeout.is_zero(),
            "leave_timeout",
            "must be longer than 0",
        )
    }
}

pub(crate) fn check_subscription(topics: &[String], pattern: Option<&str>) -> Result<()> {
    if topics.is_empty() && pattern.is_none() {
        return Err(Error::InvalidOption {
            option: "topics, topic_pattern",
            message: "name at least one topic, or a pattern".to_owned(),
        });
    }
    Ok(())
}
