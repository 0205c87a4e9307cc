//! Operations and how far they are.

use std::sync::Arc;

use timberline_proto::error::ApiError;
use timberline_proto::v1;
use uuid::Uuid;

use crate::clock;
use crate::core::Core;
use crate::metadata::leadership::leaders;
use crate::metadata::plan;
use crate::metadata::table::{Operation, OperationKind, OperationResult, Table, id_bytes};

pub(super) async fn get(
    core: &Arc<Core>,
    request: v1::GetOperationRequest,
) -> Result<v1::GetOperationResponse, ApiError> {
    let id = parse(&request.operation_id)?;
    let table = core.metadata.table();
    let operation = plan::known_operation(&table, id)?;
    Ok(v1::GetOperationResponse {
        operation: Some(show(core, &table, operation)),
    })
}

pub(super) async fn list(
    core: &Arc<Core>,
    request: v1::ListOperationsRequest,
) -> Result<v1::ListOperationsResponse, ApiError> {
    let table = core.metadata.table();
    let all = table.operations().iter();
    let asked = all.filter(|one| request.include_ended || one.ended.is_none());
    Ok(v1::ListOperationsResponse {
        operations: asked.map(|one| show(core, &table, one)).collect(),
    })
}

pub(super) async fn cancel(
    core: &Arc<Core>,
    request: v1::CancelOperationRequest,
) -> Result<v1::CancelOperationResponse, ApiError> {
    let id = parse(&request.operation_id)?;
    let plan = |table: &Table| plan::cancel(table, id, clock::now_ms());
    core.metadata.change(&request.request_id, plan).await?;
    Ok(v1::CancelOperationResponse {
        operation: shown(core, id),
    })
}

fn parse(id: &str) -> Result<Uuid, ApiError> {
    Uuid::parse_str(id)
        .map_err(|_| ApiError::invalid("operation_id", "an operation's id is a UUID"))
}

/// The operation with this id as clients see it, if there is one.
pub(super) fn shown(core: &Core, id: Uuid) -> Option<v1::Operation> {
    let table = core.metadata.table();
    let operation = table.operations().get(id)?;
    Some(show(core, &table, operation))
}

fn show(core: &Core, table: &Table, operation: &Operation) -> v1::Operation {
    // What is left of one that has ended is nothing, whoever leads.
    let left = if operation.ended.is_some() {
        0
    } else {
        let leaders = leaders(table, &*core.leadership);
        let live = core.leadership.live_brokers();
        plan::remaining(table, operation, &leaders, &live) as u64
    };
    let ended = operation.ended.as_ref();
    let total = operation.total;
    let done = match ended.map(|ended| ended.result) {
        None | Some(OperationResult::Done) => total.saturating_sub(left),
        // How far it had come is not known any more.
        Some(_) => 0,
    };
    v1::Operation {
        operation_id: operation.id.to_string(),
        kind: kind(operation.kind).into(),
        state: state(ended.map(|ended| ended.result)).into(),
        broker_id: operation.broker,
        partition: operation
            .partition
            .map(|(topic, partition)| v1::TopicPartition {
                topic_id: id_bytes(topic),
                partition,
            }),
        started_at_ms: operation.started_at_ms,
        ended_at_ms: ended.map(|ended| ended.at_ms),
        done: i64::try_from(done).unwrap_or(i64::MAX),
        total: i64::try_from(total).unwrap_or(i64::MAX),
        message: ended.map(|ended| ended.message.clone()).unwrap_or_default(),
    }
}

fn kind(kind: OperationKind) -> v1::OperationKind {
    match kind {
        OperationKind::Unspecified => v1::OperationKind::Unspecified,
        OperationKind::Drain => v1::OperationKind::Drain,
        OperationKind::Decommission => v1::OperationKind::Decommission,
        OperationKind::Move => v1::OperationKind::Move,
        OperationKind::Balance => v1::OperationKind::Balance,
    }
}

fn state(result: Option<OperationResult>) -> v1::OperationState {
    match result {
        None | Some(OperationResult::Unspecified) => v1::OperationState::Running,
        Some(OperationResult::Done) => v1::OperationState::Done,
        Some(OperationResult::Cancelled) => v1::OperationState::Cancelled,
        Some(OperationResult::Failed) => v1::OperationState::Failed,
        Some(OperationResult::Superseded) => v1::OperationState::Superseded,
    }
}
