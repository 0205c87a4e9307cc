//! Plans about a partition's replicas: moves that somebody wishes and moves that the planner wants.

use std::collections::HashSet;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use super::known_broker;
use crate::metadata::growth::Growth;
use crate::metadata::moves::Move;
use crate::metadata::placement::Placement;
use crate::metadata::table::{
    Broker, Operation, OperationKind, Partition, Replica, Table, Topic, id_bytes, operation_to,
};

/// A wish to have a partition's replicas elsewhere.
pub(crate) struct MovePartition<'a> {
    pub(crate) topic: &'a Topic,
    pub(crate) partition: i32,
    /// Where the replicas should be, the preferred leader first.
    pub(crate) brokers: &'a [i32],
    /// Id of the operation that this begins.
    pub(crate) operation: Uuid,
    pub(crate) now_ms: i64,
}

/// The partition of a topic.
///
/// # Errors
/// `UNKNOWN_PARTITION`.
fn known_partition(topic: &Topic, number: i32) -> Result<&Partition, ApiError> {
    topic.partition(number).ok_or_else(|| {
        let partitions = topic.partitions.len();
        ApiError::new(
            Reason::UnknownPartition,
            format!(
                "topic `{}` has {partitions} partitions, {number} is not one of them",
                topic.name
            ),
        )
        .with("partitions", partitions)
    })
}

fn in_flight(topic: &Topic, number: i32) -> ApiError {
    ApiError::new(
        Reason::ReassignmentInProgress,
        format!(
            "the replicas of partition {number} of `{}` are being moved already",
            topic.name
        ),
    )
    .with("partition", number)
}

fn command(
    topic: Uuid,
    partition: i32,
    target: &[Replica],
    operation: Option<Uuid>,
    began: Option<&Operation>,
) -> Command {
    Command::ReassignPartition(pb::ReassignPartition {
        topic_id: id_bytes(topic),
        partition,
        target: target
            .iter()
            .map(|replica| pb::Replica {
                replica_id: replica.id,
                broker_id: replica.broker,
                lost: false,
            })
            .collect(),
        operation_id: operation.map(id_bytes).unwrap_or_default(),
        operation: began.map(operation_to),
    })
}

/// The command that moves a partition to other brokers, or gives it another preferred leader. Replicas on brokers that it
/// keeps stay what they are. Their number does not change.
///
/// # Errors
/// `UNKNOWN_PARTITION`, `UNKNOWN_BROKER`, `REASSIGNMENT_IN_PROGRESS`, `INVALID_REPLICATION_FACTOR`; `BROKER_STATE` for a new
/// broker that is not active; `INVALID_ARGUMENT` for a broker named twice, for what is so already, and for a spread over
/// racks that would be worse than it is and than it must be.
pub(crate) fn move_partition(table: &Table, wish: &MovePartition<'_>) -> Result<Command, ApiError> {
    let (topic, number) = (wish.topic, wish.partition);
    let partition = known_partition(topic, number)?;
    if partition.reassign.is_some() {
        return Err(in_flight(topic, number));
    }
    check_brokers(table, partition, wish.brokers)?;
    let mut next = table.next_replica_id();
    let mut target = Vec::with_capacity(wish.brokers.len());
    for &broker in wish.brokers {
        let mut kept = partition.hosted_on(broker);
        target.push(kept.next().copied().unwrap_or_else(|| {
            next += 1;
            Replica {
                id: next - 1,
                broker,
                lost: false,
            }
        }));
    }
    if target[..] == partition.replicas[..] {
        return Err(ApiError::invalid(
            "brokers",
            "the partition's replicas are there already",
        ));
    }
    let began = Operation {
        id: wish.operation,
        kind: OperationKind::Move,
        broker: None,
        partition: Some((topic.id, number)),
        started_at_ms: wish.now_ms,
        total: 1,
        ended: None,
    };
    Ok(command(topic.id, number, &target, None, Some(&began)))
}

fn check_brokers(table: &Table, partition: &Partition, brokers: &[i32]) -> Result<(), ApiError> {
    let replicas = partition.replicas.len();
    if brokers.len() != replicas {
        return Err(ApiError::new(
            Reason::InvalidReplicationFactor,
            format!(
                "the partition has {replicas} replica(s), {} broker(s) are named",
                brokers.len()
            ),
        )
        .with_field("brokers"));
    }
    let mut seen = HashSet::new();
    for &id in brokers {
        if !seen.insert(id) {
            let twice = format!("broker {id} is named twice");
            return Err(ApiError::invalid("brokers", twice));
        }
        let broker = known_broker(table, id)?;
        if !broker.is_active() && partition.hosted_on(id).next().is_none() {
            let why = format!("broker {id} is not active, it gets no new replicas");
            return Err(ApiError::new(Reason::BrokerState, why).with("broker_id", id));
        }
    }
    let placement = Placement::new(table.brokers(), |_, broker| Broker::is_active(broker));
    let now: Vec<i32> = partition.replicas.iter().map(|one| one.broker).collect();
    let most = |brokers| placement.overfull(brokers).map_or(0, |full| full.replicas);
    if most(brokers) > most(&now) {
        return Err(ApiError::invalid(
            "brokers",
            "one rack would have more replicas of the partition than it must",
        ));
    }
    Ok(())
}

/// The command that carries a move of the planner's out, as part of an operation if it belongs to one. `None` when the table
/// has changed so that it does not fit any more.
pub(crate) fn replace(table: &Table, planned: &Move, operation: Option<Uuid>) -> Option<Command> {
    let topic = table.topic(planned.topic)?;
    let partition = topic.partition(planned.partition)?;
    let there = table.brokers().get(&planned.to)?.is_active();
    if partition.reassign.is_some() || !there {
        return None;
    }
    let mut target = partition.replicas.to_vec();
    let rank = target.iter().position(|one| one.id == planned.replica)?;
    target[rank] = Replica {
        id: table.next_replica_id(),
        broker: planned.to,
        lost: false,
    };
    let distinct: HashSet<i32> = target.iter().map(|replica| replica.broker).collect();
    let fits = distinct.len() == target.len();
    fits.then(|| command(topic.id, planned.partition, &target, operation, None))
}

/// The command that gives a partition further replicas. `None` when the table has changed so that it does not fit any more.
pub(crate) fn grow(table: &Table, growth: &Growth) -> Option<Command> {
    let topic = table.topic(growth.topic)?;
    let partition = topic.partition(growth.partition)?;
    let there = |id: &i32| table.brokers().get(id).is_some_and(Broker::is_active);
    if partition.reassign.is_some() || !growth.brokers.iter().all(there) {
        return None;
    }
    let new = (table.next_replica_id()..).zip(&growth.brokers);
    let new = new.map(|(id, broker)| Replica {
        id,
        broker: *broker,
        lost: false,
    });
    let target: Vec<Replica> = partition.replicas.iter().copied().chain(new).collect();
    let distinct: HashSet<i32> = target.iter().map(|replica| replica.broker).collect();
    let fits = distinct.len() == target.len();
    fits.then(|| command(topic.id, growth.partition, &target, None, None))
}

/// The ids by which the change in flight of a partition is known.
fn change(table: &Table, topic: Uuid, number: i32) -> Option<Vec<u64>> {
    let partition = table.topic(topic)?.partition(number)?;
    let change = partition.reassign.as_ref()?;
    Some(change.target.iter().map(|replica| replica.id).collect())
}

/// The command that says that the target of a partition's change is in force: the group has left the joint configuration,
/// and its voters are `voters`, by replica id, as the partition's `revision` wants them. `None` when that is not
/// what is in flight; whether the revision is the current one, the command itself finds.
pub(crate) fn finish_reassign(
    table: &Table,
    topic: Uuid,
    partition: i32,
    voters: &[u64],
    revision: u64,
    now_ms: i64,
) -> Option<Command> {
    let replica_ids = change(table, topic, partition)?;
    let same =
        replica_ids.len() == voters.len() && replica_ids.iter().all(|id| voters.contains(id));
    same.then(|| {
        Command::FinishReassign(pb::FinishReassign {
            topic_id: id_bytes(topic),
            partition,
            replica_ids,
            at_ms: now_ms,
            revision,
        })
    })
}

/// The command that turns the change in flight of a partition back; `None` when there is none, or it is turned back
/// already.
pub(crate) fn turn_back(
    table: &Table,
    topic: Uuid,
    partition: i32,
    now_ms: i64,
) -> Option<Command> {
    let known = table.topic(topic)?.partition(partition)?;
    let in_force = known.replicas[..] == *known.target();
    let replica_ids = change(table, topic, partition).filter(|_| !in_force)?;
    Some(Command::CancelReassign(pb::CancelReassign {
        topic_id: id_bytes(topic),
        partition,
        replica_ids,
        at_ms: now_ms,
    }))
}

/// The command that begins to level the brokers by `total` moves and new orders.
pub(crate) fn begin_balance(total: usize, operation: Uuid, now_ms: i64) -> Command {
    let began = Operation {
        id: operation,
        kind: OperationKind::Balance,
        broker: None,
        partition: None,
        started_at_ms: now_ms,
        total: total as u64,
        ended: None,
    };
    Command::StartOperation(pb::StartOperation {
        operation: Some(operation_to(&began)),
    })
}

/// The broker that is to lead a partition: the one asked for, or the preferred one.
///
/// # Errors
/// `UNKNOWN_PARTITION`; `BROKER_STATE` when it is not active; `NOT_IN_SYNC` when it has no replica in force.
pub(crate) fn new_leader(
    table: &Table,
    topic: &Topic,
    number: i32,
    asked: Option<i32>,
) -> Result<i32, ApiError> {
    let partition = known_partition(topic, number)?;
    let mut replicas = partition.replicas.iter().filter(|one| !one.lost);
    let replica = replicas.find(|one| asked.is_none_or(|asked| asked == one.broker));
    let to = replica.map(|one| one.broker).ok_or_else(|| {
        ApiError::new(
            Reason::NotInSync,
            format!(
                "partition {number} of `{}` has no such replica in force",
                topic.name
            ),
        )
    })?;
    if !known_broker(table, to)?.is_active() {
        let why = format!("broker {to} is not active, it leads nothing");
        return Err(ApiError::new(Reason::BrokerState, why).with("broker_id", to));
    }
    Ok(to)
}

/// The command that puts a partition's replicas in another order; `None` unless `order` names just those in force, and no
/// change is in flight.
pub(crate) fn prefer(table: &Table, topic: Uuid, number: i32, order: &[u64]) -> Option<Command> {
    let partition = table.topic(topic)?.partition(number)?;
    let find = |id: &u64| partition.replicas.iter().find(|one| one.id == *id).copied();
    let target: Vec<Replica> = order.iter().map(find).collect::<Option<_>>()?;
    let distinct: HashSet<&u64> = order.iter().collect();
    let same = distinct.len() == partition.replicas.len() && order.len() == distinct.len();
    (same && partition.reassign.is_none()).then(|| command(topic, number, &target, None, None))
}
