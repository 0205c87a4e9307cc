//! Plans about brokers: who may register, drain, leave; when the feature level may rise.

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use super::active_brokers;
use crate::metadata::table::{
    Broker, BrokerState, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN, Operation, OperationKind, Table,
    id_bytes, operation_to, state_to,
};

/// What a broker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) id: i32,
    pub(crate) rack: String,
    pub(crate) directory: Uuid,
    /// HOST:PORT of each listener, as others reach it.
    pub(crate) grpc: String,
    pub(crate) peer: String,
    pub(crate) http: String,
    pub(crate) version: String,
}

impl Registration {
    /// Whether the table has it so already.
    pub(crate) fn is_known(&self, table: &Table) -> bool {
        let same = |known: &Broker| {
            known.rack == self.rack
                && known.directory == self.directory
                && known.grpc == self.grpc
                && known.peer == self.peer
                && known.http == self.http
                && known.version == self.version
                && known.features == (FEATURE_LEVEL_MIN, FEATURE_LEVEL_MAX)
        };
        table.brokers().get(&self.id).is_some_and(same)
    }
}

/// The command that registers a broker of this version. `lives`: a broker of this id is connected under the directory that
/// the table has.
///
/// # Errors
/// `BROKER_ID_IN_USE` when another one with this id lives; `UNSUPPORTED_VERSION` when it can't run at the feature level.
pub(crate) fn register_broker(
    table: &Table,
    registration: &Registration,
    lives: bool,
) -> Result<Command, ApiError> {
    let id = registration.id;
    let known = table.brokers().get(&id);
    if lives && known.is_some_and(|known| known.directory != registration.directory) {
        return Err(ApiError::new(
            Reason::BrokerIdInUse,
            format!("broker {id} lives with another data directory"),
        )
        .with("broker_id", id));
    }
    let level = table.feature_level();
    if !(FEATURE_LEVEL_MIN..=FEATURE_LEVEL_MAX).contains(&level) {
        return Err(ApiError::new(
            Reason::UnsupportedVersion,
            format!(
                "the cluster is at feature level {level}, this broker can run at {FEATURE_LEVEL_MIN} to {FEATURE_LEVEL_MAX}"
            ),
        ));
    }
    Ok(Command::RegisterBroker(pb::RegisterBroker {
        broker_id: id,
        rack: registration.rack.clone(),
        directory_id: id_bytes(registration.directory),
        grpc_address: registration.grpc.clone(),
        peer_address: registration.peer.clone(),
        http_address: registration.http.clone(),
        version: registration.version.clone(),
        feature_level_min: FEATURE_LEVEL_MIN,
        feature_level_max: FEATURE_LEVEL_MAX,
        state: pb::BrokerState::Unspecified.into(),
    }))
}

/// The broker with this id.
///
/// # Errors
/// `UNKNOWN_BROKER`.
pub(crate) fn known_broker(table: &Table, id: i32) -> Result<&Broker, ApiError> {
    table.brokers().get(&id).ok_or_else(|| {
        ApiError::new(
            Reason::UnknownBroker,
            format!("no broker {id} is registered"),
        )
        .with("broker_id", id)
    })
}

fn set_state(id: i32, state: BrokerState, at_ms: i64, operation: Option<&Operation>) -> Command {
    Command::SetBrokerState(pb::SetBrokerState {
        broker_id: id,
        state: state_to(state).into(),
        at_ms,
        operation: operation.map(operation_to),
    })
}

fn operation_of(
    id: i32,
    kind: OperationKind,
    operation: Uuid,
    total: usize,
    now_ms: i64,
) -> Operation {
    Operation {
        id: operation,
        kind,
        broker: Some(id),
        partition: None,
        started_at_ms: now_ms,
        total: total as u64,
        ended: None,
    }
}

/// The command that begins to drain a broker which leads `leads` partitions: it gets nothing new and hands them over.
///
/// # Errors
/// `UNKNOWN_BROKER`; `BROKER_STATE` unless it is active or draining.
pub(crate) fn begin_drain(
    table: &Table,
    id: i32,
    leads: usize,
    operation: Uuid,
    now_ms: i64,
) -> Result<Command, ApiError> {
    if known_broker(table, id)?.state == BrokerState::Decommissioning {
        return Err(wrong_state(id, "is being decommissioned"));
    }
    let operation = operation_of(id, OperationKind::Drain, operation, leads, now_ms);
    Ok(set_state(
        id,
        BrokerState::Draining,
        now_ms,
        Some(&operation),
    ))
}

fn wrong_state(id: i32, what: &str) -> ApiError {
    ApiError::new(Reason::BrokerState, format!("broker {id} {what}")).with("broker_id", id)
}

/// The command that makes a draining or decommissioning broker an active one again. What has moved stays where it is.
///
/// # Errors
/// `UNKNOWN_BROKER`.
pub(crate) fn undrain(table: &Table, id: i32, now_ms: i64) -> Result<Command, ApiError> {
    known_broker(table, id)?;
    Ok(set_state(id, BrokerState::Active, now_ms, None))
}

/// The command that begins to decommission a broker: its replicas move away.
///
/// # Errors
/// `UNKNOWN_BROKER`; `NOT_ENOUGH_BROKERS` when a partition on it has more replicas than other brokers are active.
pub(crate) fn begin_decommission(
    table: &Table,
    id: i32,
    operation: Uuid,
    now_ms: i64,
) -> Result<Command, ApiError> {
    let broker = known_broker(table, id)?;
    let others = active_brokers(table) - usize::from(broker.is_active());
    let hosted = table.partitions().filter(|(_, _, partition)| {
        let mut replicas = partition.target().iter();
        replicas.any(|replica| replica.broker == id)
    });
    let most = hosted.map(|(_, _, partition)| partition.target().len());
    let needed = most.max().unwrap_or(1);
    if others < needed {
        return Err(ApiError::new(
            Reason::NotEnoughBrokers,
            format!(
                "partitions on broker {id} have up to {needed} replicas, and {others} other broker(s) are active"
            ),
        )
        .with("broker_id", id)
        .with("needed", needed)
        .with("active", others));
    }
    let total = table.replicas_on(id);
    let operation = operation_of(id, OperationKind::Decommission, operation, total, now_ms);
    let state = BrokerState::Decommissioning;
    Ok(set_state(id, state, now_ms, Some(&operation)))
}

/// The command that takes a decommissioned broker out of the cluster.
///
/// # Errors
/// `UNKNOWN_BROKER`; `BROKER_STATE` while it is not being decommissioned or hosts replicas.
pub(crate) fn remove_broker(table: &Table, id: i32, now_ms: i64) -> Result<Command, ApiError> {
    if known_broker(table, id)?.state != BrokerState::Decommissioning {
        return Err(wrong_state(id, "is not being decommissioned"));
    }
    let left = table.replicas_on(id);
    if left > 0 {
        return Err(wrong_state(id, &format!("still hosts {left} replica(s)")));
    }
    Ok(Command::RemoveBroker(pb::RemoveBroker {
        broker_id: id,
        at_ms: now_ms,
    }))
}

/// The command that raises the feature level.
///
/// # Errors
/// `INVALID_ARGUMENT` when it would not rise; `UNSUPPORTED_VERSION` naming a broker that can't run at it.
pub(crate) fn raise_feature_level(table: &Table, level: u32) -> Result<Command, ApiError> {
    let now = table.feature_level();
    if level <= now {
        return Err(ApiError::invalid(
            "level",
            format!("the feature level is {now} and only rises"),
        ));
    }
    let mut brokers = table.brokers().iter();
    if let Some((id, broker)) = brokers.find(|(_, broker)| !broker.supports(level)) {
        let (low, high) = broker.features;
        return Err(ApiError::new(
            Reason::UnsupportedVersion,
            format!("broker {id} can run at feature levels {low} to {high}, not at {level}"),
        )
        .with("broker_id", id));
    }
    Ok(Command::SetFeatureLevel(pb::SetFeatureLevel { level }))
}
