//! How far operations are, and which have come to their end.

use std::collections::{BTreeSet, HashMap};

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use crate::metadata::table::{Operation, OperationKind, OperationResult, Table, id_bytes};
use crate::metadata::{leaders, moves};

/// The operation with this id.
///
/// # Errors
/// `UNKNOWN_OPERATION`.
pub(crate) fn known_operation(table: &Table, id: Uuid) -> Result<&Operation, ApiError> {
    table.operations().get(id).ok_or_else(|| {
        ApiError::new(
            Reason::UnknownOperation,
            format!("no operation {id}, or it ended long ago"),
        )
        .with("operation_id", id)
    })
}

/// Units of work that an open operation has left, from the table and from who leads what.
pub(crate) fn remaining(
    table: &Table,
    operation: &Operation,
    led: &HashMap<(Uuid, i32), i32>,
    live: &BTreeSet<i32>,
) -> usize {
    if operation.ended.is_some() {
        return 0;
    }
    let broker = operation.broker.unwrap_or_default();
    match operation.kind {
        OperationKind::Drain => led.values().filter(|leader| **leader == broker).count(),
        OperationKind::Decommission => table.replicas_on(broker),
        OperationKind::Balance => {
            let moves = moves::balance(table, live).len();
            table.changes_of(operation.id) + moves + leaders::level_preferred(table).len()
        }
        OperationKind::Move | OperationKind::Unspecified => table.changes_of(operation.id),
    }
}

/// The commands that end open operations which have nothing left to do. A decommission also waits until its broker is none
/// of the metadata's `voters`: then it may be turned off. It is not removed by it: that is `remove_broker`.
pub(crate) fn settle(
    table: &Table,
    led: &HashMap<(Uuid, i32), i32>,
    live: &BTreeSet<i32>,
    voters: &BTreeSet<i32>,
    now_ms: i64,
) -> Vec<Command> {
    let open = table.operations().open();
    let votes = |operation: &Operation| {
        operation.kind == OperationKind::Decommission
            && operation.broker.is_some_and(|id| voters.contains(&id))
    };
    let done =
        open.filter(|operation| remaining(table, operation, led, live) == 0 && !votes(operation));
    let ends = done.map(|operation| {
        // A move ends with its change; without one, its topic is gone.
        let gone = operation.kind == OperationKind::Move && topic_is_gone(table, operation);
        let (result, message) = if gone {
            (OperationResult::Failed, "the topic was deleted")
        } else {
            (OperationResult::Done, "")
        };
        finish(operation.id, result, message, now_ms)
    });
    ends.collect()
}

fn topic_is_gone(table: &Table, operation: &Operation) -> bool {
    let topic = operation.partition.map(|(topic, _)| topic);
    topic.is_some_and(|topic| table.topic(topic).is_none())
}

fn finish(id: Uuid, result: OperationResult, message: &str, now_ms: i64) -> Command {
    Command::FinishOperation(pb::FinishOperation {
        operation_id: id_bytes(id),
        result: result.into(),
        at_ms: now_ms,
        message: message.to_owned(),
    })
}

/// The command that gives an open operation up: a drain or decommission makes its broker active again, a move turns back,
/// levelling begins no more moves.
///
/// # Errors
/// `UNKNOWN_OPERATION` also for one that has ended.
pub(crate) fn cancel(table: &Table, id: Uuid, now_ms: i64) -> Result<Command, ApiError> {
    let operation = known_operation(table, id)?;
    if operation.ended.is_some() {
        let why = format!("operation {id} has ended");
        return Err(ApiError::new(Reason::UnknownOperation, why).with("operation_id", id));
    }
    let turned = match (operation.broker, operation.partition) {
        (Some(broker), _) => Some(super::undrain(table, broker, now_ms)?),
        (_, Some((topic, partition))) => super::turn_back(table, topic, partition, now_ms),
        _ => None,
    };
    Ok(turned.unwrap_or_else(|| finish(id, OperationResult::Cancelled, "", now_ms)))
}
