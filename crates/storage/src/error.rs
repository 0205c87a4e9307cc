//! What can go wrong in the log, in variants that a caller can act on.

use std::io;
use std::path::PathBuf;

use crate::frame::FrameFault;

/// Why an operation of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process, or another store of this one, holds the data directory.
    #[error(
        "data directory {dir} is in use by another process; stop it, or choose another --data-dir"
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory was written by a newer version. Nothing in it was touched.
    #[error(
        "{what} has format version {found}, this program knows up to {known}; run the newer version"
    )]
    NewerFormat {
        /// Which file.
        what: String,
        /// The version found.
        found: u32,
        /// The highest version known here.
        known: u32,
    },
    /// No space could be reserved. Nothing was written; retry when space was freed.
    #[error("no space left for {wanted} more bytes in the data directory")]
    StorageFull {
        /// Bytes that could not be reserved.
        wanted: u64,
    },
    /// A write or a sync failed, or the journal is damaged: nothing is written any more until a restart. Reads go on.
    #[error("the data directory is read-only until a restart: {why}")]
    Poisoned {
        /// The first failure.
        why: String,
    },
    /// The offset is below the log start or above the high watermark.
    #[error("offset {offset} is outside {log_start}..={high_watermark}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: i64,
        /// First offset that is kept.
        log_start: i64,
        /// First offset that is not readable yet.
        high_watermark: i64,
    },
    /// The index is not in the log (any more).
    #[error("entry {index} is not in the log")]
    IndexOutOfRange {
        /// The index asked for.
        index: u64,
    },
    /// Offsets `from..to` fail their checks and have no other copy here; what lies behind them is served.
    #[error("offsets {from}..{to} are damaged: {what}")]
    Damaged {
        /// First offset that can't be served.
        from: i64,
        /// First offset behind the damage.
        to: i64,
        /// What failed.
        what: String,
    },
    /// The directory as a whole can't be opened: the named part is damaged. Nothing was changed.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// Which file.
        what: String,
        /// What failed.
        why: String,
    },
    /// The entry is larger than a frame can be.
    #[error("an entry of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The frame does not continue the log's last entry: it belongs to another history (INV-4).
    #[error(
        "entry {index} belongs to another history: its chain is {found:#018x}, here it would be {expected:#018x}"
    )]
    Diverged {
        /// Index of the frame.
        index: u64,
        /// The chain that its fields would have behind this log's last entry.
        expected: u64,
        /// The chain that it carries.
        found: u64,
    },
    /// A frame from elsewhere is not whole: header and payload don't belong together, or no leader writes them so.
    #[error("entry {index} is not a whole frame: {fault}")]
    InvalidFrame {
        /// Index of the frame.
        index: u64,
        /// What is wrong with it.
        fault: FrameFault,
    },
    /// A file's map is still held by readers of entries that were cut off; retry later.
    #[error("{what} is still being read")]
    InUse {
        /// Which file.
        what: String,
    },
    /// Files of a snapshot are gone: it held more than the bound, or the replica was removed or replaced.
    #[error("{what} is no part of the snapshot any more")]
    Released {
        /// Which file.
        what: String,
    },
    /// The caller broke a rule of the log, e.g. truncated what is committed.
    #[error("refused: {0}")]
    Refused(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an I/O error with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// A damaged part of the directory.
    pub(crate) fn corrupt(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Corrupt {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
