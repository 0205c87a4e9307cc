//! The one error type of this crate.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a workload could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client library gave up.
    #[error(transparent)]
    Client(#[from] timberline_client::Error),
    /// The load makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No record came for too long, and more are wanted.
    #[error(
        "{read} of {wanted} records came, then none for {after:?}: the topic holds fewer, or nobody produces"
    )]
    Starved {
        /// Records read.
        read: u64,
        /// Records asked for.
        wanted: u64,
        /// How long was waited for the next.
        after: Duration,
    },
    /// Partitions acknowledge nothing.
    #[error("{partitions} partitions have acknowledged nothing for {after:?}")]
    Silent {
        /// How many.
        partitions: usize,
        /// For how long.
        after: Duration,
    },
    /// Nobody reads partitions.
    #[error(
        "{partitions} partitions are read by nobody, or not by those who are to, after {after:?}"
    )]
    Unread {
        /// How many are read by nobody.
        partitions: usize,
        /// How long was waited for it.
        after: Duration,
    },
    /// Nobody leads.
    #[error("not all partitions have a leader after {after:?}")]
    Leaderless {
        /// How long was waited for one.
        after: Duration,
    },
    /// Replicas are not up to date.
    #[error("not all replicas are there and in sync after {after:?}")]
    NotInSync {
        /// How long was waited for them.
        after: Duration,
    },
    /// An operation of the cluster did not come to its end.
    #[error("{what} is {state}: {message}")]
    Operation {
        /// Which.
        what: String,
        /// What it is instead of done.
        state: &'static str,
        /// What the cluster says.
        message: String,
    },
    /// The broker's process can't be started, or ended by itself.
    #[error("{what}; its log is {log}:\n{tail}")]
    Process {
        /// What happened.
        what: String,
        /// Where it logs.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A file can't be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A task of the workload panicked.
    #[error("a task of the workload ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// What happened to a broker, with the end of its log.
    pub(crate) fn process(what: String, log: &Path) -> Error {
        Error::Process {
            what,
            log: log.to_owned(),
            tail: crate::process::tail_of(log),
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
