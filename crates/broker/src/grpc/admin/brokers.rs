//! Draining, decommissioning and removing brokers; whether one may stop, and what the cluster would survive.

use std::collections::HashMap;
use std::sync::Arc;

use timberline_proto::error::ApiError;
use timberline_proto::v1;
use uuid::Uuid;

use super::operations;
use crate::clock;
use crate::cluster::METADATA;
use crate::core::Core;
use crate::grpc::metadata::cluster_info;
use crate::metadata::leaders::{self, Fragile};
use crate::metadata::leadership::leaders;
use crate::metadata::table::{Table, id_bytes};
use crate::metadata::{moves, plan};

/// How the metadata group is called among partitions at risk. No topic can have this name.
const METADATA_NAME: &str = "(the cluster's metadata)";
/// Partitions at risk that an answer lists.
const AT_RISK_MAX: usize = 1000;

pub(super) async fn drain(
    core: &Arc<Core>,
    request: v1::DrainBrokerRequest,
) -> Result<v1::DrainBrokerResponse, ApiError> {
    let id = request.broker_id;
    let plan = |table: &Table| {
        let leaders = leaders(table, &*core.leadership);
        let leads = leaders.values().filter(|leader| **leader == id).count();
        plan::begin_drain(table, id, leads, Uuid::new_v4(), clock::now_ms())
    };
    let operation = core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::DrainBrokerResponse {
        operation: operations::shown(core, operation),
    })
}

pub(super) async fn undrain(
    core: &Arc<Core>,
    request: v1::UndrainBrokerRequest,
) -> Result<v1::UndrainBrokerResponse, ApiError> {
    let id = request.broker_id;
    let plan = |table: &Table| plan::undrain(table, id, clock::now_ms());
    core.metadata.change(&request.request_id, plan).await?;
    let cluster = cluster_info(core, &core.metadata.table());
    let mut brokers = cluster.brokers.into_iter();
    Ok(v1::UndrainBrokerResponse {
        broker: brokers.find(|broker| broker.broker_id == id),
    })
}

pub(super) async fn decommission(
    core: &Arc<Core>,
    request: v1::DecommissionBrokerRequest,
) -> Result<v1::DecommissionBrokerResponse, ApiError> {
    let id = request.broker_id;
    let plan = |table: &Table| plan::begin_decommission(table, id, Uuid::new_v4(), clock::now_ms());
    if request.validate_only {
        core.metadata.check_only(plan)?;
        return Ok(v1::DecommissionBrokerResponse::default());
    }
    let operation = core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::DecommissionBrokerResponse {
        operation: operations::shown(core, operation),
    })
}

pub(super) async fn remove(
    core: &Arc<Core>,
    request: v1::RemoveBrokerRequest,
) -> Result<v1::RemoveBrokerResponse, ApiError> {
    let plan = |table: &Table| plan::remove_broker(table, request.broker_id, clock::now_ms());
    core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::RemoveBrokerResponse {})
}

pub(super) async fn set_feature_level(
    core: &Arc<Core>,
    request: v1::SetFeatureLevelRequest,
) -> Result<v1::SetFeatureLevelResponse, ApiError> {
    let plan = |table: &Table| plan::raise_feature_level(table, request.level);
    core.metadata.change(&request.request_id, plan).await?;
    let level = core.metadata.table().feature_level();
    Ok(v1::SetFeatureLevelResponse { level })
}

pub(super) async fn can_stop(
    core: &Arc<Core>,
    request: v1::CanStopRequest,
) -> Result<v1::CanStopResponse, ApiError> {
    let table = core.metadata.table();
    plan::known_broker(&table, request.broker_id)?;
    // Of who is gone the leader may not have noticed yet.
    let live = core.leadership.live_brokers();
    let in_sync = |topic, number| -> Vec<i32> {
        let known = core.leadership.in_sync(topic, number).into_iter();
        known.filter(|id| live.contains(id)).collect()
    };
    let at_risk = leaders::can_stop(&table, in_sync, request.broker_id);
    let in_sync = in_sync(METADATA.0, METADATA.1);
    // Nobody is left to miss the metadata of a broker that is alone.
    let voters = match table.brokers().len() {
        1 => Vec::new(),
        _ => core.metadata.voters(),
    };
    let metadata = leaders::group_at_risk(&voters, &in_sync, request.broker_id);
    let metadata = metadata.map(|(left, needed)| v1::PartitionAtRisk {
        topic_id: id_bytes(METADATA.0),
        topic: METADATA_NAME.to_owned(),
        partition: METADATA.1,
        left: left as i32,
        needed: needed as i32,
    });
    let shown = at_risk.iter().map(|one| v1::PartitionAtRisk {
        topic_id: id_bytes(one.topic),
        topic: name_of(&table, one.topic),
        partition: one.partition,
        left: one.left as i32,
        needed: one.needed as i32,
    });
    let count = at_risk.len() + usize::from(metadata.is_some());
    Ok(v1::CanStopResponse {
        can_stop: count == 0,
        at_risk: metadata
            .into_iter()
            .chain(shown)
            .take(AT_RISK_MAX)
            .collect(),
        at_risk_count: count as i32,
    })
}

/// The name of a topic, for people.
pub(super) fn name_of(table: &Table, topic: Uuid) -> String {
    let known = table.topic(topic);
    known.map(|topic| topic.name.clone()).unwrap_or_default()
}

/// What of the cluster's state is computed from table and leadership.
pub(super) fn health(core: &Core, table: &Table) -> v1::ClusterInfoResponse {
    let mut leaderless = 0;
    let mut under_replicated = 0;
    let mut in_sync = HashMap::new();
    let live = core.leadership.live_brokers();
    for (topic, number, partition) in table.partitions() {
        // A leader that is gone is none.
        let leader = core.leadership.leader_of(topic.id, number);
        let led = leader.is_some_and(|(_, id)| id == core.cluster.me() || live.contains(&id));
        leaderless += i32::from(!led);
        let brokers = core.leadership.in_sync(topic.id, number);
        let mut replicas = partition.replicas.iter();
        let whole = replicas.all(|one| !one.lost && brokers.contains(&one.broker));
        under_replicated += i32::from(!whole);
        in_sync.insert((topic.id, number), brokers);
    }
    let view = |topic, number| in_sync.get(&(topic, number)).cloned().unwrap_or_default();
    let fragile = leaders::rack_loss_survivable(table, view);
    let shown = |one: Fragile| v1::FragileRack {
        rack: one.rack,
        broker_id: one.broker,
        partitions: one.partitions as i32,
    };
    v1::ClusterInfoResponse {
        leaderless,
        under_replicated,
        rack_violations: moves::violations(table).len() as i32,
        rack_loss_survivable: fragile.is_empty(),
        fragile: fragile.into_iter().map(shown).collect(),
        ..v1::ClusterInfoResponse::default()
    }
}
