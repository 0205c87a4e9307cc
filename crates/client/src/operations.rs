//! Brokers' states, moves of replicas and leaders, and the work that outlasts the call that began it.

use timberline_proto::error::ApiError;
use timberline_proto::v1;

use crate::types::TopicId;

/// Makes an enum of the wire one with names for people; values of newer brokers are `Unknown`.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident: $wire:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            /// One that this client does not know.
            #[default]
            Unknown,
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// As it is written for people and programs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $name::Unknown => "unknown",
                    $($name::$variant => $text,)*
                }
            }
        }

        impl From<v1::$wire> for $name {
            fn from(wire: v1::$wire) -> $name {
                match wire {
                    v1::$wire::Unspecified => $name::Unknown,
                    $(v1::$wire::$variant => $name::$variant,)*
                }
            }
        }
    };
}

named! {
    /// What a broker is for.
    BrokerState: BrokerState {
        /// It holds and leads.
        Active = "active",
        /// It keeps its replicas, leads nothing and gets nothing new.
        Draining = "draining",
        /// Its replicas move away; then it may be removed.
        Decommissioning = "decommissioning",
    }
}

named! {
    /// What an operation does.
    OperationKind: OperationKind {
        /// Hands a broker's leaderships over.
        Drain = "drain",
        /// Moves a broker's replicas to others.
        Decommission = "decommission",
        /// Moves the replicas of one partition.
        Move = "move",
        /// Levels replicas over brokers.
        Balance = "balance",
    }
}

named! {
    /// How far an operation is.
    OperationState: OperationState {
        /// It goes on.
        Running = "running",
        /// It came to its end.
        Done = "done",
        /// Somebody ended it.
        Cancelled = "cancelled",
        /// It can't come to its end; the message says why.
        Failed = "failed",
        /// Another one about the same broker took its place.
        Superseded = "superseded",
    }
}

/// Work that outlasts the call that began it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// A UUID.
    pub operation_id: String,
    /// What it does.
    pub kind: OperationKind,
    /// How far it is.
    pub state: OperationState,
    /// The broker it is about.
    pub broker_id: Option<i32>,
    /// The partition it is about.
    pub partition: Option<(TopicId, i32)>,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: i64,
    /// `None` while it runs.
    pub ended_at_ms: Option<i64>,
    /// Leaderships of a drain, replicas of a decommission, moves otherwise.
    pub done: i64,
    /// Of so many.
    pub total: i64,
    /// For a person.
    pub message: String,
}

/// A leadership that was handed over, or not.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaderMove {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Who led.
    pub from: i32,
    /// Who leads.
    pub to: i32,
    /// Why it was not handed over.
    pub error: Option<ApiError>,
}

/// A replica that moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaMove {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The broker that has it.
    pub from: i32,
    /// The broker that gets it.
    pub to: i32,
}

/// A change of replicas in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reassignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Brokers of the replicas in force.
    pub replicas: Vec<i32>,
    /// What they become.
    pub target: Vec<i32>,
    /// The operation it belongs to; `None` when the cluster heals itself.
    pub operation_id: Option<String>,
}

/// Whether a broker can stop without a partition losing its majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CanStop {
    /// It can.
    pub can_stop: bool,
    /// Partitions that would be without one; at most the first 1,000.
    pub at_risk: Vec<PartitionAtRisk>,
    /// How many there are in all.
    pub at_risk_count: i32,
}

/// A partition that would be without a majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionAtRisk {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Voters in sync that would be left.
    pub left: i32,
    /// How many a majority needs.
    pub needed: i32,
}

/// A rack whose loss would leave partitions without a majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FragileRack {
    /// The rack; `None`: the broker below, which has none.
    pub rack: Option<String>,
    /// The broker, if it has no rack.
    pub broker_id: i32,
    /// How many partitions.
    pub partitions: i32,
}

impl From<v1::Operation> for Operation {
    fn from(wire: v1::Operation) -> Operation {
        Operation {
            kind: wire.kind().into(),
            state: wire.state().into(),
            operation_id: wire.operation_id,
            broker_id: wire.broker_id,
            partition: wire
                .partition
                .and_then(|at| Some((TopicId::from_wire(&at.topic_id)?, at.partition))),
            started_at_ms: wire.started_at_ms,
            ended_at_ms: wire.ended_at_ms,
            done: wire.done,
            total: wire.total,
            message: wire.message,
        }
    }
}

impl From<v1::LeaderMove> for LeaderMove {
    fn from(wire: v1::LeaderMove) -> LeaderMove {
        LeaderMove {
            error: wire.error.as_ref().map(ApiError::from_item),
            topic: wire.topic,
            partition: wire.partition,
            from: wire.from,
            to: wire.to,
        }
    }
}

impl From<v1::ReplicaMove> for ReplicaMove {
    fn from(wire: v1::ReplicaMove) -> ReplicaMove {
        ReplicaMove {
            topic: wire.topic,
            partition: wire.partition,
            from: wire.from,
            to: wire.to,
        }
    }
}

impl From<v1::Reassignment> for Reassignment {
    fn from(wire: v1::Reassignment) -> Reassignment {
        Reassignment {
            topic: wire.topic,
            partition: wire.partition,
            replicas: wire.replicas,
            target: wire.target,
            operation_id: Some(wire.operation_id).filter(|id| !id.is_empty()),
        }
    }
}

impl From<v1::CanStopResponse> for CanStop {
    fn from(wire: v1::CanStopResponse) -> CanStop {
        let at_risk = |risk: v1::PartitionAtRisk| PartitionAtRisk {
            topic: risk.topic,
            partition: risk.partition,
            left: risk.left,
            needed: risk.needed,
        };
        CanStop {
            can_stop: wire.can_stop,
            at_risk: wire.at_risk.into_iter().map(at_risk).collect(),
            at_risk_count: wire.at_risk_count,
        }
    }
}

impl From<v1::FragileRack> for FragileRack {
    fn from(wire: v1::FragileRack) -> FragileRack {
        FragileRack {
            rack: Some(wire.rack).filter(|rack| !rack.is_empty()),
            broker_id: wire.broker_id,
            partitions: wire.partitions,
        }
    }
}
