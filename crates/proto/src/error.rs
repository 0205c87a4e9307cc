//! Error reasons and their two carriers: `tonic::Status` with `google.rpc.ErrorInfo`, and the in-band [`ItemError`].
//!
//! Clients act on the *reason*, never on the code alone. Reasons are stable: one may be added, none changes its meaning.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::v1::ItemError;

/// The `domain` of every `google.rpc.ErrorInfo` that Timberline sends.
pub const DOMAIN: &str = "timberline";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $code:ident, $retry:literal, $next:literal;)*) => {
        /// Why something was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, for documentation and `timberline explain`.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The stable text, e.g. `NOT_LEADER`.
            pub fn as_str(self) -> &'static str { match self { $(Reason::$variant => $text,)* } }

            /// The gRPC status code that goes with it.
            pub fn code(self) -> Code { match self { $(Reason::$variant => Code::$code,)* } }

            /// Whether the same call may succeed later without being changed.
            pub fn is_retriable(self) -> bool { match self { $(Reason::$variant => $retry,)* } }

            /// What a person should do next, one sentence.
            pub fn advice(self) -> &'static str { match self { $(Reason::$variant => $next,)* } }

            /// The reason with this text.
            pub fn parse(text: &str) -> Option<Reason> {
                match text { $($text => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// This broker does not lead the partition; the metadata names the one that does.
    NotLeader = "NOT_LEADER", Unavailable, true, "Clients follow the new leader by themselves; see `timberline topic describe`.";
    /// No broker leads the partition now.
    NoLeader = "NO_LEADER", Unavailable, true, "Wait for an election; if it lasts, see `timberline cluster info`.";
    /// The broker is starting, draining or stopping.
    Draining = "DRAINING", Unavailable, true, "Retry on another broker, or once this one is back.";
    /// A queue or byte bound is full.
    Overloaded = "OVERLOADED", ResourceExhausted, true, "Wait as long as the error says, then retry.";
    /// No space is left to reserve: writes are refused, reads are served.
    StorageFull = "STORAGE_FULL", ResourceExhausted, true, "Free space on the data directory or shorten retention; writes go on by themselves then.";
    /// A sync failed: the directory is read-only until a restart.
    StoragePoisoned = "STORAGE_POISONED", Unavailable, true, "Check the disk, then restart the broker; reads are served meanwhile.";
    /// The range asked for is damaged on this replica and has no other copy.
    DataDamaged = "DATA_DAMAGED", DataLoss, false, "Read on behind the damaged range, which the metadata names; `timberline verify log` lists all damage.";
    /// No topic of this name or id.
    UnknownTopic = "UNKNOWN_TOPIC", NotFound, false, "List topics with `timberline topic list`, or create it with `timberline topic create`.";
    /// The topic has no such partition.
    UnknownPartition = "UNKNOWN_PARTITION", NotFound, false, "See the partitions with `timberline topic describe`.";
    /// A topic of this name exists, or its name differs only by `.` and `_`.
    TopicExists = "TOPIC_EXISTS", AlreadyExists, false, "Choose another name, or use the topic that exists.";
    /// An argument is malformed or out of range; `BadRequest` names the field.
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, false, "Correct the named field.";
    /// The topic's name is not allowed.
    InvalidTopicName = "INVALID_TOPIC_NAME", InvalidArgument, false, "Use 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'.";
    /// An unknown configuration key, one not served yet, or a value out of range.
    InvalidConfig = "INVALID_CONFIG", InvalidArgument, false, "See the keys with `timberline topic config`.";
    /// More replicas asked for than there are brokers.
    InvalidReplicationFactor = "INVALID_REPLICATION_FACTOR", InvalidArgument, false, "Ask for at most as many replicas as there are brokers.";
    /// No broker of this id is registered.
    UnknownBroker = "UNKNOWN_BROKER", NotFound, false, "See the brokers with `timberline cluster brokers`.";
    /// Another broker with this id lives.
    BrokerIdInUse = "BROKER_ID_IN_USE", FailedPrecondition, false, "Give each broker an id of its own, or stop the other one first.";
    /// The broker is draining, being decommissioned, or in another state that the call does not fit.
    BrokerState = "BROKER_STATE", FailedPrecondition, false, "See the brokers' states with `timberline cluster brokers`; `timberline broker undrain` makes one active again.";
    /// Too few other brokers are active to take the replicas.
    NotEnoughBrokers = "NOT_ENOUGH_BROKERS", FailedPrecondition, false, "Add a broker first, or undrain one.";
    /// The partition's replicas are being moved already.
    ReassignmentInProgress = "REASSIGNMENT_IN_PROGRESS", FailedPrecondition, false, "Wait for the move to end, or cancel it.";
    /// The replica has not caught up, or its broker is not connected: it can't lead.
    NotInSync = "NOT_IN_SYNC", FailedPrecondition, true, "Wait until the replica is in sync; see `timberline topic describe`.";
    /// No operation of this id is known.
    UnknownOperation = "UNKNOWN_OPERATION", NotFound, false, "The last hundred that ended are remembered; list them with `timberline cluster operations`.";
    /// The batch or record is larger than the topic's `max.message.bytes`.
    RecordTooLarge = "RECORD_TOO_LARGE", InvalidArgument, false, "Send smaller records, or raise the topic's max.message.bytes.";
    /// The batch fails its checksum or its structure is wrong.
    CorruptBatch = "CORRUPT_BATCH", InvalidArgument, false, "The client or the network damaged the batch; send it again from intact data.";
    /// The producer's sequence leaves a gap, or an earlier batch of it was refused.
    OutOfOrderSequence = "OUT_OF_ORDER_SEQUENCE", FailedPrecondition, false, "Resend from the missing batch, or take a new epoch with InitProducer.";
    /// The batch is a duplicate of one older than the last five.
    DuplicateSequence = "DUPLICATE_SEQUENCE", FailedPrecondition, false, "It was written before; its offset is not remembered any more.";
    /// A newer epoch of this producer exists.
    ProducerFenced = "PRODUCER_FENCED", FailedPrecondition, false, "Another instance took over this producer id; stop this one.";
    /// The broker does not know this producer id.
    UnknownProducer = "UNKNOWN_PRODUCER", FailedPrecondition, false, "Take a new id with InitProducer.";
    /// The offset is below the log start or behind the end; the metadata has the valid range.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", OutOfRange, false, "Start from `earliest` or `latest`, or from an offset in the valid range.";
    /// The leader can't tell yet whether the offset is valid.
    OffsetNotAvailable = "OFFSET_NOT_AVAILABLE", Unavailable, true, "Retry shortly.";
    /// This broker does not coordinate the group; the metadata names the one that does.
    NotCoordinator = "NOT_COORDINATOR", Unavailable, true, "Clients go to the coordinator by themselves; see `timberline group describe`.";
    /// The group has no coordinator now, or its coordinator still reads the group's log.
    NoCoordinator = "NO_COORDINATOR", Unavailable, true, "Wait for an election; if it lasts, see `timberline cluster info`.";
    /// No group of this id has members or committed offsets.
    UnknownGroup = "UNKNOWN_GROUP", NotFound, false, "List groups with `timberline group list`; a group begins with its first member or commit.";
    /// The caller is not a member of the group any more, or a newer epoch of it exists.
    MemberFenced = "MEMBER_FENCED", FailedPrecondition, false, "Stop what was assigned and join again as a new member; the message says why it was put out.";
    /// Another consumer joined with the same instance id.
    InstanceFenced = "INSTANCE_FENCED", FailedPrecondition, false, "Give each static member an instance id of its own, or stop this one.";
    /// The application did not ask for records within its maximum poll interval.
    PollTimeout = "POLL_TIMEOUT", FailedPrecondition, false, "Poll more often, handle fewer records at a time, or raise max_poll_interval_ms; then join again.";
    /// The member does not hold this partition.
    NotAssigned = "NOT_ASSIGNED", FailedPrecondition, false, "Commit only what is assigned, with the epoch of the assignment; the partition may have moved to another member.";
    /// The offset is lower than the one committed, and nobody asked for that.
    CommitBehind = "COMMIT_BEHIND", FailedPrecondition, false, "An older commit came late and can be dropped; to go back on purpose, set rewind or use `timberline group seek`.";
    /// The group has members.
    GroupNotEmpty = "GROUP_NOT_EMPTY", FailedPrecondition, false, "Stop the group's consumers first; `timberline group describe` lists them.";
    /// The group has as many members as it may, or the coordinator as many groups.
    GroupFull = "GROUP_FULL", ResourceExhausted, false, "Stop members or delete groups, or raise the limit under [groups].";
    /// The group's members use another assignor.
    InconsistentAssignor = "INCONSISTENT_ASSIGNOR", FailedPrecondition, false, "Use the assignor that the group has, or stop its members first.";
    /// A subscription's pattern is not a regular expression, or one that would cost too much.
    InvalidPattern = "INVALID_PATTERN", InvalidArgument, false, "Use a shorter or simpler regular expression; syntax is that of the Rust `regex` crate.";
    /// The stream's first message was not a hello, or a later one was.
    HandshakeRequired = "HANDSHAKE_REQUIRED", FailedPrecondition, false, "Send a hello first, once.";
    /// The peer's protocol version is not supported.
    UnsupportedVersion = "UNSUPPORTED_VERSION", FailedPrecondition, false, "Upgrade the older side.";
    /// A broker of another cluster.
    WrongCluster = "WRONG_CLUSTER", FailedPrecondition, false, "Point the seeds at brokers of this cluster; a data directory never changes its cluster.";
    /// Another data directory is registered, or connected, under this broker id.
    DuplicateBroker = "DUPLICATE_BROKER", AlreadyExists, false, "Give each broker an id and a data directory of its own.";
    /// The broker that was dialed is not the one that was meant.
    WrongReceiver = "WRONG_RECEIVER", FailedPrecondition, true, "Check listen.peer_advertise of the broker that was meant: its address leads elsewhere.";
    /// A message between brokers breaks its format.
    MalformedMessage = "MALFORMED_MESSAGE", InvalidArgument, false, "The network or the sender damaged it; look into the sender's log.";
    /// Another broker can't be reached.
    PeerUnreachable = "PEER_UNREACHABLE", Unavailable, true, "See whether it runs and its peer listener can be reached; `timberline cluster brokers` shows both.";
    /// This part is not built yet.
    NotSupported = "NOT_SUPPORTED", Unimplemented, false, "See the limits in the README.";
    /// The call took too long; its outcome is unknown.
    Timeout = "TIMEOUT", DeadlineExceeded, true, "Retry; changes carry a request id and are applied once.";
    /// A defect of the broker.
    Internal = "INTERNAL", Internal, false, "Look into the broker's log and report it.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error on its way to or from a peer: reason, message, metadata and, if it helps to wait, a delay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What went wrong; `None` when the peer is newer and sent a reason unknown here.
    pub reason: Option<Reason>,
    /// The gRPC code.
    pub code: Code,
    /// One sentence for a person.
    pub message: String,
    /// Facts for a program, e.g. `leader_id`.
    pub metadata: HashMap<String, String>,
    /// How long to wait before trying again.
    pub retry_after: Option<Duration>,
    /// For invalid arguments: the field that is wrong.
    pub field: Option<String>,
}

impl ApiError {
    /// An error with the code of its reason and no metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        ApiError {
            reason: Some(reason),
            code: reason.code(),
            message: message.into(),
            metadata: HashMap::new(),
            retry_after: None,
            field: None,
        }
    }

    /// An `INVALID_ARGUMENT` that names the field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = ApiError::new(Reason::InvalidArgument, message);
        error.field = Some(field.into());
        error
    }

    /// Adds one fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn with_field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Asks the peer to wait before trying again.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The in-band form.
    pub fn to_item(&self) -> ItemError {
        let mut metadata = self.metadata.clone();
        if let Some(field) = &self.field {
            metadata.insert("field".to_owned(), field.clone());
        }
        ItemError {
            code: self.code as i32,
            reason: self.reason.map_or("", Reason::as_str).to_owned(),
            message: self.message.clone(),
            metadata,
            retry_after_ms: self.retry_after.map(|d| d.as_millis() as i64),
        }
    }

    /// Reads the in-band form.
    pub fn from_item(item: &ItemError) -> Self {
        let mut metadata = item.metadata.clone();
        ApiError {
            reason: Reason::parse(&item.reason),
            code: Code::from_i32(item.code),
            message: item.message.clone(),
            field: metadata.remove("field"),
            metadata,
            retry_after: item
                .retry_after_ms
                .map(|ms| Duration::from_millis(ms.max(0) as u64)),
        }
    }

    /// The status form, with `ErrorInfo` and, where they apply, `RetryInfo` and `BadRequest`.
    pub fn to_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        if let Some(reason) = self.reason {
            details.set_error_info(reason.as_str(), DOMAIN, self.metadata.clone());
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        if let Some(field) = &self.field {
            details.add_bad_request_violation(field.clone(), self.message.clone());
        }
        Status::with_error_details(self.code, self.message.clone(), details)
    }

    /// Reads a status; one without our `ErrorInfo` keeps its code and has no reason.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        ApiError {
            reason: info.and_then(|info| Reason::parse(&info.reason)),
            code: status.code(),
            message: status.message().to_owned(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            field: details
                .bad_request()
                .and_then(|bad| bad.field_violations.first())
                .map(|violation| violation.field.clone()),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(reason) = self.reason {
            write!(f, " [{reason}]")?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        error.to_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_carriers_keep_everything() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
            let error = ApiError::new(reason, "why")
                .with("leader_id", 7)
                .with_field("topic")
                .with_retry_after(Duration::from_millis(250));
            assert_eq!(ApiError::from_item(&error.to_item()), error);
            assert_eq!(ApiError::from_status(&error.to_status()), error);
        }
    }

    #[test]
    fn a_foreign_status_keeps_its_code() {
        let error = ApiError::from_status(&Status::out_of_range("too big"));
        assert_eq!((error.reason, error.code), (None, Code::OutOfRange));
    }
}
