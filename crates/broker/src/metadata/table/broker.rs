//! A registered broker. Whether it is alive is not here: liveness is soft state.

use timberline_proto::internal as pb;
use uuid::Uuid;

use super::{Rejected, id_bytes, topic_id};

/// Lowest feature level this version can run at.
pub(crate) const FEATURE_LEVEL_MIN: u32 = 1;
/// Highest feature level this version can run at.
pub(crate) const FEATURE_LEVEL_MAX: u32 = 1;

/// A registered broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    /// Its failure domain. Empty: it is one of its own.
    pub(crate) rack: String,
    /// Id of the data directory that its replicas are in.
    pub(crate) directory: Uuid,
    /// HOST:PORT of the clients' listener.
    pub(crate) grpc: String,
    /// HOST:PORT of the other brokers' listener.
    pub(crate) peer: String,
    /// HOST:PORT of probes and metrics.
    pub(crate) http: String,
    pub(crate) version: String,
    /// Lowest and highest feature level it can run at.
    pub(crate) features: (u32, u32),
    pub(crate) state: BrokerState,
}

/// What the operator wants of a broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BrokerState {
    #[default]
    Active,
    /// Keeps its replicas; leads nothing and gets nothing new.
    Draining,
    /// Its replicas move away; then it may be removed.
    Decommissioning,
}

impl Broker {
    /// Whether it may lead, and get new replicas.
    pub(crate) fn is_active(&self) -> bool {
        self.state == BrokerState::Active
    }

    /// Whether it can run at a feature level.
    pub(crate) fn supports(&self, level: u32) -> bool {
        (self.features.0..=self.features.1).contains(&level)
    }
}

/// The state out of a command; what is not said is active.
pub(super) fn state_from(state: pb::BrokerState) -> BrokerState {
    match state {
        pb::BrokerState::Unspecified | pb::BrokerState::Active => BrokerState::Active,
        pb::BrokerState::Draining => BrokerState::Draining,
        pb::BrokerState::Decommissioning => BrokerState::Decommissioning,
    }
}

/// The state for a command.
pub(crate) fn state_to(state: BrokerState) -> pb::BrokerState {
    match state {
        BrokerState::Active => pb::BrokerState::Active,
        BrokerState::Draining => pb::BrokerState::Draining,
        BrokerState::Decommissioning => pb::BrokerState::Decommissioning,
    }
}

/// A broker out of what it says of itself, in a state that is not its own to say.
pub(super) fn broker_from(
    register: &pb::RegisterBroker,
    state: BrokerState,
) -> Result<Broker, Rejected> {
    let low = register.feature_level_min.max(1);
    let high = register.feature_level_max.max(1);
    if low > high {
        return Err(Rejected::Malformed("feature levels"));
    }
    Ok(Broker {
        rack: register.rack.clone(),
        directory: topic_id(&register.directory_id).ok_or(Rejected::Malformed("directory id"))?,
        grpc: register.grpc_address.clone(),
        peer: register.peer_address.clone(),
        http: register.http_address.clone(),
        version: register.version.clone(),
        features: (low, high),
        state,
    })
}

/// A broker for an image.
pub(super) fn broker_to(id: i32, broker: &Broker) -> pb::RegisterBroker {
    pb::RegisterBroker {
        broker_id: id,
        rack: broker.rack.clone(),
        directory_id: id_bytes(broker.directory),
        grpc_address: broker.grpc.clone(),
        peer_address: broker.peer.clone(),
        http_address: broker.http.clone(),
        version: broker.version.clone(),
        feature_level_min: broker.features.0,
        feature_level_max: broker.features.1,
        state: state_to(broker.state).into(),
    }
}
