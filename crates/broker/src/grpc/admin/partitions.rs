//! Moving replicas and leaderships.

use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;
use uuid::Uuid;

use super::brokers::name_of;
use super::operations;
use crate::clock;
use crate::core::Core;
use crate::metadata::leaders::{self, LeaderMove};
use crate::metadata::leadership::leaders;
use crate::metadata::table::{Partition, Replica, Table, Topic, id_bytes};
use crate::metadata::{moves, plan};

pub(super) async fn move_partition(
    core: &Arc<Core>,
    request: v1::MovePartitionRequest,
) -> Result<v1::MovePartitionResponse, ApiError> {
    let plan = |table: &Table| {
        let topic = plan::resolve(table, request.topic.as_ref())?;
        let wish = plan::MovePartition {
            topic,
            partition: request.partition,
            brokers: &request.brokers,
            operation: Uuid::new_v4(),
            now_ms: clock::now_ms(),
        };
        plan::move_partition(table, &wish)
    };
    if request.validate_only {
        core.metadata.check_only(plan)?;
        return Ok(v1::MovePartitionResponse::default());
    }
    let operation = core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::MovePartitionResponse {
        operation: operations::shown(core, operation),
    })
}

pub(super) async fn list_reassignments(
    core: &Arc<Core>,
    request: v1::ListReassignmentsRequest,
) -> Result<v1::ListReassignmentsResponse, ApiError> {
    let table = core.metadata.table();
    let only = match &request.topic {
        Some(_) => Some(plan::resolve(&table, request.topic.as_ref())?.id),
        None => None,
    };
    let all = table.partitions();
    let asked = all.filter(|(topic, _, _)| only.is_none_or(|only| only == topic.id));
    let reassignments =
        asked.filter_map(|(topic, number, partition)| reassignment(topic, number, partition));
    Ok(v1::ListReassignmentsResponse {
        reassignments: reassignments.collect(),
    })
}

fn reassignment(topic: &Topic, number: i32, partition: &Partition) -> Option<v1::Reassignment> {
    let change = partition.reassign.as_ref()?;
    let broker = |replica: &Replica| replica.broker;
    Some(v1::Reassignment {
        topic_id: id_bytes(topic.id),
        topic: topic.name.clone(),
        partition: number,
        replicas: partition.replicas.iter().map(broker).collect(),
        target: change.target.iter().map(broker).collect(),
        adding: partition.adding().map(broker).collect(),
        removing: partition.removing().map(broker).collect(),
        operation_id: change
            .operation
            .map(|id| id.to_string())
            .unwrap_or_default(),
    })
}

pub(super) async fn transfer_leader(
    core: &Arc<Core>,
    request: v1::TransferLeaderRequest,
) -> Result<v1::TransferLeaderResponse, ApiError> {
    plan::check_request_id(&request.request_id)?;
    let (topic, to) = {
        let table = core.metadata.table();
        let topic = plan::resolve(&table, request.topic.as_ref())?;
        let to = plan::new_leader(&table, topic, request.partition, request.broker_id)?;
        (topic.id, to)
    };
    let number = request.partition;
    let led = core.leadership.leader_of(topic, number);
    // A transfer that took place is not made again: a retry finds its leader.
    if led.is_none_or(|(_, leader)| leader != to) {
        if !core.leadership.in_sync(topic, number).contains(&to) {
            let why = format!("the replica on broker {to} is not in sync");
            return Err(ApiError::new(Reason::NotInSync, why).with("broker_id", to));
        }
        core.leadership.transfer(topic, number, to).await?;
    }
    Ok(v1::TransferLeaderResponse { leader_id: to })
}

pub(super) async fn elect_preferred(
    core: &Arc<Core>,
    request: v1::ElectPreferredRequest,
) -> Result<v1::ElectPreferredResponse, ApiError> {
    plan::check_request_id(&request.request_id)?;
    let planned = {
        let table = core.metadata.table();
        let mut leaders = leaders(&table, &*core.leadership);
        if request.topic.is_some() {
            let only = plan::resolve(&table, request.topic.as_ref())?.id;
            leaders.retain(|(topic, _), _| *topic == only);
        }
        let in_sync = |topic, number| core.leadership.in_sync(topic, number);
        let live = core.leadership.live_brokers();
        let planned = leaders::leader_moves(&table, &leaders, in_sync, &live);
        let named = planned.iter().map(|one| (*one, name_of(&table, one.topic)));
        named.collect::<Vec<(LeaderMove, String)>>()
    };
    let mut moves = Vec::with_capacity(planned.len());
    for (one, topic) in planned {
        let result = if request.validate_only {
            Ok(())
        } else {
            let transfer = core.leadership.transfer(one.topic, one.partition, one.to);
            transfer.await
        };
        moves.push(v1::LeaderMove {
            topic_id: id_bytes(one.topic),
            topic,
            partition: one.partition,
            from: one.from,
            to: one.to,
            error: result.err().map(|error| error.to_item()),
        });
    }
    Ok(v1::ElectPreferredResponse { moves })
}

pub(super) async fn balance(
    core: &Arc<Core>,
    request: v1::BalanceRequest,
) -> Result<v1::BalanceResponse, ApiError> {
    let live = core.leadership.live_brokers();
    let (moves, orders) = {
        let table = core.metadata.table();
        let orders = leaders::level_preferred(&table).len();
        let planned = moves::balance(&table, &live);
        let shown = planned.iter().map(|one| v1::ReplicaMove {
            topic_id: id_bytes(one.topic),
            topic: name_of(&table, one.topic),
            partition: one.partition,
            from: one.from,
            to: one.to,
        });
        (shown.collect::<Vec<v1::ReplicaMove>>(), orders)
    };
    let total = moves.len() + orders;
    if request.validate_only || total == 0 {
        return Ok(v1::BalanceResponse {
            operation: None,
            moves,
        });
    }
    let plan = |_: &Table| {
        let now = clock::now_ms();
        Ok(plan::begin_balance(total, Uuid::new_v4(), now))
    };
    let operation = core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::BalanceResponse {
        operation: operations::shown(core, operation),
        moves,
    })
}
