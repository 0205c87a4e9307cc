//! Brokers, moves and operations, as far as one broker can tell.

use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn a_broker_drains_once_for_a_request_id_and_comes_back() {
    let mut broker = TestBroker::start().await;
    broker.topic("t", 2, &[]).await;
    let request = DrainBrokerRequest {
        request_id: "drain".to_owned(),
        broker_id: 1,
    };
    let begin = || async {
        let answer = broker.admin().drain_broker(request.clone()).await.unwrap();
        answer.into_inner().operation.unwrap()
    };
    let first = begin().await;
    assert_eq!(begin().await, first);
    assert_eq!(first.kind(), OperationKind::Drain);
    assert_eq!(first.state(), OperationState::Running);
    assert_eq!((first.done, first.total, first.broker_id), (0, 2, Some(1)));

    broker.restart().await;
    let info = broker.admin().cluster_info(ClusterInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    let me = info.cluster.unwrap().brokers.remove(0);
    assert_eq!(
        (me.state(), me.live, me.replicas),
        (BrokerState::Draining, true, 2)
    );
    // Nothing new while it drains.
    let create = CreateTopicRequest {
        name: "u".to_owned(),
        partitions: 1,
        ..Default::default()
    };
    let status = broker.admin().create_topic(create.clone()).await;
    assert_eq!(reason(&status.unwrap_err()), "INVALID_REPLICATION_FACTOR");

    let undrain = UndrainBrokerRequest {
        broker_id: 1,
        ..Default::default()
    };
    let back = broker.admin().undrain_broker(undrain).await.unwrap();
    let back = back.into_inner().broker.unwrap();
    assert_eq!(back.state(), BrokerState::Active);
    let get = GetOperationRequest {
        operation_id: first.operation_id.clone(),
    };
    let ended = broker.admin().get_operation(get).await.unwrap();
    let ended = ended.into_inner().operation.unwrap();
    assert_eq!(ended.state(), OperationState::Superseded);
    for (include_ended, count) in [(false, 0), (true, 1)] {
        let list = ListOperationsRequest { include_ended };
        let list = broker.admin().list_operations(list).await.unwrap();
        assert_eq!(list.into_inner().operations.len(), count);
    }
    broker.admin().create_topic(create).await.unwrap();
}

#[tokio::test]
async fn the_only_broker_can_not_stop_or_leave() {
    let broker = TestBroker::start().await;
    let stop = CanStopRequest { broker_id: 1 };
    let empty = broker.admin().can_stop(stop).await.unwrap().into_inner();
    assert!(empty.can_stop);
    broker.topic("t", 3, &[]).await;
    let full = broker.admin().can_stop(stop).await.unwrap().into_inner();
    assert_eq!((full.can_stop, full.at_risk_count), (false, 3));
    assert_eq!((full.at_risk[0].left, full.at_risk[0].needed), (0, 1));
    let leave = DecommissionBrokerRequest {
        broker_id: 1,
        ..Default::default()
    };
    let status = broker.admin().decommission_broker(leave).await;
    assert_eq!(reason(&status.unwrap_err()), "NOT_ENOUGH_BROKERS");
    let info = broker.admin().cluster_info(ClusterInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert!(!info.rack_loss_survivable);
    assert_eq!((info.leaderless, info.under_replicated), (0, 0));
    assert_eq!(info.fragile[0].partitions, 3);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_its_reason() {
    let broker = TestBroker::start().await;
    broker.topic("t", 1, &[]).await;
    let of = |partition, brokers: &[i32]| MovePartitionRequest {
        topic: Some(by_name("t")),
        partition,
        brokers: brokers.to_vec(),
        ..Default::default()
    };
    for (request, why) in [
        (of(0, &[1]), "INVALID_ARGUMENT"),
        (of(0, &[2]), "UNKNOWN_BROKER"),
        (of(0, &[]), "INVALID_REPLICATION_FACTOR"),
        (of(-1, &[1]), "UNKNOWN_PARTITION"),
    ] {
        let status = broker.admin().move_partition(request).await.unwrap_err();
        assert_eq!(reason(&status), why);
    }
    let transfer = |broker_id| TransferLeaderRequest {
        topic: Some(by_name("t")),
        broker_id,
        ..Default::default()
    };
    let led = broker.admin().transfer_leader(transfer(None)).await;
    assert_eq!(led.unwrap().into_inner().leader_id, 1);
    let status = broker.admin().transfer_leader(transfer(Some(7))).await;
    assert_eq!(reason(&status.unwrap_err()), "NOT_IN_SYNC");
    let drain = DrainBrokerRequest {
        broker_id: 9,
        ..Default::default()
    };
    let status = broker.admin().drain_broker(drain).await.unwrap_err();
    assert_eq!(reason(&status), "UNKNOWN_BROKER");
    let remove = RemoveBrokerRequest {
        broker_id: 1,
        ..Default::default()
    };
    let status = broker.admin().remove_broker(remove).await.unwrap_err();
    assert_eq!(reason(&status), "BROKER_STATE");
    for (id, why) in [
        ("x", "INVALID_ARGUMENT"),
        ("00000000-0000-0000-0000-000000000001", "UNKNOWN_OPERATION"),
    ] {
        let get = GetOperationRequest {
            operation_id: id.to_owned(),
        };
        let status = broker.admin().get_operation(get).await.unwrap_err();
        assert_eq!(reason(&status), why);
    }
    for (level, why) in [(1, "INVALID_ARGUMENT"), (99, "UNSUPPORTED_VERSION")] {
        let request = SetFeatureLevelRequest {
            level,
            ..Default::default()
        };
        let status = broker.admin().set_feature_level(request).await;
        assert_eq!(reason(&status.unwrap_err()), why);
    }
    let level = BalanceRequest::default();
    let level = broker.admin().balance(level).await.unwrap().into_inner();
    assert_eq!((level.operation, level.moves.len()), (None, 0));
    let list = ListReassignmentsRequest::default();
    let list = broker.admin().list_reassignments(list).await.unwrap();
    assert!(list.into_inner().reassignments.is_empty());
    let elect = ElectPreferredRequest::default();
    let elect = broker.admin().elect_preferred(elect).await.unwrap();
    assert!(elect.into_inner().moves.is_empty());
}
