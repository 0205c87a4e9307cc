//! Operations: begun, ended, superseded, forgotten within a bound.

use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use super::cluster::Cluster;
use crate::metadata::table::{
    BrokerState, Operation, OperationKind, OperationResult, Rejected, id_bytes, operation_to,
    state_to,
};

fn operation(id: u128, kind: OperationKind, broker: Option<i32>) -> pb::Operation {
    operation_to(&Operation {
        id: Uuid::from_u128(id),
        kind,
        broker,
        partition: None,
        started_at_ms: 1,
        total: 3,
        ended: None,
    })
}

fn set(broker_id: i32, state: BrokerState, operation: Option<pb::Operation>) -> Command {
    Command::SetBrokerState(pb::SetBrokerState {
        broker_id,
        state: state_to(state).into(),
        at_ms: 4,
        operation,
    })
}

fn result(c: &Cluster, id: u128) -> Option<OperationResult> {
    let operation = c.table.operations().get(Uuid::from_u128(id)).unwrap();
    operation.ended.as_ref().map(|ended| ended.result)
}

#[test]
fn one_operation_of_a_broker_is_open() {
    let mut c = Cluster::new(&["a", "b"]);
    let drain = operation(1, OperationKind::Drain, Some(2));
    let request = set(2, BrokerState::Draining, Some(drain));
    c.apply_as("r", request.clone()).unwrap();
    assert_eq!(c.table.applied_request("r"), Some(Uuid::from_u128(1)));
    assert_eq!(c.apply_as("r", request), Err(Rejected::AppliedBefore));
    assert_eq!(result(&c, 1), None);
    let leave = operation(2, OperationKind::Decommission, Some(2));
    c.apply(set(2, BrokerState::Decommissioning, Some(leave.clone())))
        .unwrap();
    assert_eq!(result(&c, 1), Some(OperationResult::Superseded));
    assert_eq!(
        c.apply(set(1, BrokerState::Decommissioning, Some(leave))),
        Err(Rejected::OperationExists)
    );
    c.check_image();
    let remove = pb::RemoveBroker {
        broker_id: 2,
        at_ms: 9,
    };
    c.apply(Command::RemoveBroker(remove)).unwrap();
    assert_eq!(result(&c, 2), Some(OperationResult::Done));
    assert_eq!(
        c.apply(set(2, BrokerState::Active, None)),
        Err(Rejected::UnknownBroker)
    );
}

#[test]
fn a_move_ends_with_its_change() {
    let mut c = Cluster::new(&["a", "b", "c"]);
    let t = c.topic("t", 2, 1);
    for (id, number) in [(1, 0), (2, 1)] {
        let there = c.brokers(t, number)[0];
        c.apply(Command::ReassignPartition(pb::ReassignPartition {
            topic_id: id_bytes(t),
            partition: number,
            target: vec![pb::Replica {
                replica_id: c.table.next_replica_id(),
                broker_id: there % 3 + 1,
                lost: false,
            }],
            operation: Some(operation(id, OperationKind::Move, None)),
            ..Default::default()
        }))
        .unwrap();
        assert_eq!(c.table.changes_of(Uuid::from_u128(id)), 1);
    }
    c.check_image();
    c.finish(t, 0).unwrap();
    assert_eq!(result(&c, 1), Some(OperationResult::Done));
    let ids = c.partition(t, 1).target().iter().map(|r| r.id).collect();
    c.apply(Command::CancelReassign(pb::CancelReassign {
        topic_id: id_bytes(t),
        partition: 1,
        replica_ids: ids,
        at_ms: 3,
    }))
    .unwrap();
    assert_eq!(result(&c, 2), Some(OperationResult::Cancelled));
    c.check_image();
}

#[test]
fn operations_are_bounded() {
    let mut c = Cluster::new(&["a"]);
    let start = |id| {
        Command::StartOperation(pb::StartOperation {
            operation: Some(operation(id, OperationKind::Balance, None)),
        })
    };
    let finish = |id: u128| {
        Command::FinishOperation(pb::FinishOperation {
            operation_id: id_bytes(Uuid::from_u128(id)),
            result: OperationResult::Done.into(),
            at_ms: 1,
            message: "ü".repeat(1000),
        })
    };
    for id in 0..100 {
        c.apply(start(id)).unwrap();
    }
    assert_eq!(c.apply(start(100)), Err(Rejected::TooManyOperations));
    for id in 0..150 {
        c.apply(finish(id)).unwrap();
        assert_eq!(c.apply(finish(id)), Err(Rejected::UnknownOperation));
        c.apply(start(id + 100)).unwrap();
    }
    assert_eq!(c.table.operations().iter().count(), 200);
    assert_eq!(c.table.operations().open().count(), 100);
    let first = c.table.operations().iter().next().unwrap();
    assert_eq!(first.id, Uuid::from_u128(50));
    assert!(first.ended.as_ref().unwrap().message.len() <= 500);
    c.check_image();
}
