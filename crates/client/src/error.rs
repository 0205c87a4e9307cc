//! The one error type of this crate.

use std::time::Duration;

use timberline_proto::error::{ApiError, Reason};

/// What an operation of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Cheap enough to clone: all records of a failed batch get the same error.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused, with a reason; [`Error::reason`] gives it.
    #[error("{}", explained(.0))]
    Api(Box<ApiError>),

    /// No connection, or it broke. The outcome of a call that changes something is unknown.
    #[error(
        "cannot reach {address}: {message}. Check that the broker runs and that the address is right"
    )]
    Transport {
        /// Address or addresses tried, HOST:PORT.
        address: String,
        /// What the transport said.
        message: String,
    },

    /// No answer in time. The outcome of a call that changes something is unknown; it may be repeated.
    #[error(
        "{what} got no answer within {after:?}. Check the broker's health, or raise the timeout"
    )]
    Timeout {
        /// The operation.
        what: String,
        /// How long it was given.
        after: Duration,
    },

    /// The producer or consumer was closed.
    #[error("closed: no more operations are possible on this handle; make a new one")]
    Closed,

    /// The producer's buffer is full. Only from [`crate::Producer::try_send`]; `send` waits instead.
    #[error(
        "the producer's buffer is full: wait for deliveries, use send(), or raise buffer_bytes"
    )]
    BufferFull,

    /// The topic's metadata is not here yet. Only from [`crate::Producer::try_send`]; it is being fetched.
    #[error(
        "metadata of topic {topic} is not loaded yet: call prepare() or send() first, or retry shortly"
    )]
    TopicNotReady {
        /// The topic.
        topic: String,
    },

    /// A record was not acknowledged within the delivery timeout.
    #[error("not acknowledged within {after:?}: {}. Last problem: {last}", outcome(*.outcome_unknown))]
    DeliveryTimeout {
        /// False: the record was certainly not written. True: it may have been.
        outcome_unknown: bool,
        /// The delivery timeout.
        after: Duration,
        /// The last error seen for the batch or its partition, or what was waited for.
        last: String,
    },

    /// A record sent before a sequence break could not be confirmed: it may or may not have been written.
    #[error(
        "outcome unknown, the record may or may not have been written: {message}. Read the partition back to find out"
    )]
    OutcomeUnknown {
        /// What happened.
        message: String,
    },

    /// The record cannot be sent as it is.
    #[error("invalid record: {message}")]
    InvalidRecord {
        /// What is wrong with it, and the limit.
        message: String,
    },

    /// An option has a value out of range.
    #[error("invalid option {option}: {message}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },

    /// A fetched batch fails its checksum or its structure is wrong. Seek to `to` to read on behind it.
    #[error(
        "damaged batch in {topic}/{partition}, offsets [{from}, {to}): {message}. Seek to {to} to read on behind it"
    )]
    CorruptBatch {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// First offset of the range.
        from: i64,
        /// One after its last offset.
        to: i64,
        /// What is wrong with it.
        message: String,
    },

    /// The broker has a damaged range here and no other copy of it. Seek to `to` to read on behind it.
    #[error(
        "{topic}/{partition} is damaged in offsets [{from}, {to}): {message}. Seek to {to} to read on behind it"
    )]
    DataDamaged {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// First offset of the range.
        from: i64,
        /// One after its last offset.
        to: i64,
        /// What the broker said.
        message: String,
    },

    /// The position is outside of the log and the consumer's policy is to say so.
    #[error(
        "offset {offset} of {topic}/{partition} is out of range, valid is [{log_start}, {high_watermark}]. Seek to earliest, to latest or into this range"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The position asked for.
        offset: i64,
        /// First offset there is.
        log_start: i64,
        /// One after the last offset there is.
        high_watermark: i64,
    },

    /// The partition is not assigned to this consumer.
    #[error(
        "{topic}/{partition} is not assigned to this consumer: assign it first, or leave it to the member of the group that has it"
    )]
    NotAssigned {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },

    /// The consumer has no partition to read from, so that waiting would never end.
    #[error("no partition is assigned: call assign() before recv()")]
    NothingAssigned,

    /// The group has committed nothing in this partition and the consumer's policy is to say so.
    #[error(
        "group {group} has no committed offset in {topic}/{partition}. Seek to earliest, to latest or to an offset"
    )]
    NoCommittedOffset {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },

    /// Too many commits wait for their answers.
    #[error("{limit} commits wait for an answer: await some of them, or commit less often")]
    TooManyCommits {
        /// How many may wait.
        limit: usize,
    },

    /// The peer broke the protocol.
    #[error(
        "protocol violation by the broker: {message}. Check that client and broker have compatible versions"
    )]
    Protocol {
        /// What was wrong.
        message: String,
    },
}

impl Error {
    /// The broker's reason, if the broker gave one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Error::Api(error) => error.reason,
            _ => None,
        }
    }

    /// Whether the same call may succeed later, unchanged. For a record whose outcome is unknown, sending it
    /// again may write it twice.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Api(error) => is_retriable(error),
            Error::Transport { .. }
            | Error::Timeout { .. }
            | Error::BufferFull
            | Error::TopicNotReady { .. }
            | Error::TooManyCommits { .. }
            | Error::DeliveryTimeout { .. } => true,
            _ => false,
        }
    }

    /// Whether the record may have been written although this is an error.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Error::DeliveryTimeout {
                outcome_unknown, ..
            } => *outcome_unknown,
            Error::OutcomeUnknown { .. } | Error::Timeout { .. } | Error::Transport { .. } => true,
            Error::Api(error) => {
                matches!(
                    error.reason,
                    Some(Reason::Timeout | Reason::DuplicateSequence)
                )
            }
            _ => false,
        }
    }

    /// Reads a status of a call to `address`.
    pub(crate) fn from_status(address: &str, status: &tonic::Status) -> Error {
        let error = ApiError::from_status(status);
        let transport = matches!(
            status.code(),
            tonic::Code::Unavailable
                | tonic::Code::Cancelled
                | tonic::Code::Unknown
                | tonic::Code::Internal
        );
        if error.reason.is_none() && transport {
            let mut message = status.message().to_owned();
            let mut source = std::error::Error::source(status);
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            return Error::Transport {
                address: address.to_owned(),
                message,
            };
        }
        error.into()
    }
}

/// Whether the same request may succeed later; falls back on the code for reasons of newer brokers.
pub(crate) fn is_retriable(error: &ApiError) -> bool {
    use tonic::Code;
    match error.reason {
        Some(reason) => reason.is_retriable(),
        None => matches!(
            error.code,
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted
        ),
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Error {
        Error::Api(Box::new(error))
    }
}

fn explained(error: &ApiError) -> String {
    match error.reason {
        Some(reason) => format!("{error}. {}", reason.advice()),
        None => error.to_string(),
    }
}

fn outcome(unknown: bool) -> &'static str {
    if unknown {
        "the outcome is unknown, the record may or may not have been written"
    } else {
        "the record was not written"
    }
}
