//! Calls: retried while that may help, with the same request id; and refusals as they are.

use std::sync::Arc;

use parking_lot::Mutex;
use timberline_client::{
    ApiError, ConfigChange, ConfigSource, NewTopic, OperationKind, OperationState, Position,
    Reason, TrimTarget,
};
use timberline_proto::v1;
use timberline_proto::v1::admin_service_server::AdminService;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::{client, soon};

/// What the admin service was asked, and what it answers next instead of doing it.
#[derive(Default)]
pub(crate) struct Script {
    refuse: Vec<Reason>,
    creations: Vec<v1::CreateTopicRequest>,
    changes: Vec<v1::ConfigChange>,
}

#[derive(Clone, Default)]
pub(crate) struct Admin(pub(crate) Arc<Mutex<Script>>);

impl Admin {
    fn check(&self) -> Result<(), Status> {
        match self.0.lock().refuse.pop() {
            Some(reason) => Err(ApiError::new(reason, "scripted").into()),
            None => Ok(()),
        }
    }
}

fn topic(name: &str) -> v1::TopicInfo {
    v1::TopicInfo {
        name: name.to_owned(),
        topic_id: vec![9; 16].into(),
        partitions: vec![v1::PartitionInfo::default()],
        replication_factor: 1,
        internal: false,
    }
}

fn unscripted() -> Status {
    Status::unimplemented("not scripted")
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        self.0.lock().creations.push(request);
        self.check()?;
        Ok(Response::new(v1::CreateTopicResponse {
            topic: Some(topic(&name)),
        }))
    }

    async fn delete_topic(
        &self,
        _: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        self.check()?;
        let topic_id = vec![9; 16].into();
        Ok(Response::new(v1::DeleteTopicResponse { topic_id }))
    }

    async fn add_partitions(
        &self,
        _: Request<v1::AddPartitionsRequest>,
    ) -> Result<Response<v1::AddPartitionsResponse>, Status> {
        Err(ApiError::invalid("total", "must grow").into())
    }

    async fn trim_topic(
        &self,
        request: Request<v1::TrimTopicRequest>,
    ) -> Result<Response<v1::TrimTopicResponse>, Status> {
        let result = |partition: v1::TrimPartition| v1::TrimResult {
            partition: partition.partition,
            log_start_offset: partition.before_offset.unwrap_or(77),
            error: (partition.partition > 1)
                .then(|| ApiError::new(Reason::UnknownPartition, "no").to_item()),
        };
        let results = request
            .into_inner()
            .partitions
            .into_iter()
            .map(result)
            .collect();
        Ok(Response::new(v1::TrimTopicResponse { results }))
    }

    async fn list_topics(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let topics = vec![topic("b"), topic("a")];
        Ok(Response::new(v1::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        _: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        Err(ApiError::new(Reason::UnknownTopic, "no such topic").into())
    }

    async fn describe_config(
        &self,
        _: Request<v1::DescribeConfigRequest>,
    ) -> Result<Response<v1::DescribeConfigResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn alter_config(
        &self,
        request: Request<v1::AlterConfigRequest>,
    ) -> Result<Response<v1::AlterConfigResponse>, Status> {
        self.0.lock().changes = request.into_inner().changes;
        let entries = vec![v1::ConfigEntry {
            key: "retention.ms".to_owned(),
            value: "5".to_owned(),
            source: v1::ConfigSource::Topic.into(),
            ..Default::default()
        }];
        Ok(Response::new(v1::AlterConfigResponse { entries }))
    }

    async fn cluster_info(
        &self,
        _: Request<v1::ClusterInfoRequest>,
    ) -> Result<Response<v1::ClusterInfoResponse>, Status> {
        Ok(Response::new(v1::ClusterInfoResponse {
            topics: 3,
            ..Default::default()
        }))
    }

    async fn move_partition(
        &self,
        _: Request<v1::MovePartitionRequest>,
    ) -> Result<Response<v1::MovePartitionResponse>, Status> {
        Err(unscripted())
    }

    async fn list_reassignments(
        &self,
        _: Request<v1::ListReassignmentsRequest>,
    ) -> Result<Response<v1::ListReassignmentsResponse>, Status> {
        Err(unscripted())
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        self.check()?;
        let leader_id = request.into_inner().broker_id.unwrap_or(1);
        Ok(Response::new(v1::TransferLeaderResponse { leader_id }))
    }

    async fn elect_preferred(
        &self,
        _: Request<v1::ElectPreferredRequest>,
    ) -> Result<Response<v1::ElectPreferredResponse>, Status> {
        Err(unscripted())
    }

    async fn balance(
        &self,
        _: Request<v1::BalanceRequest>,
    ) -> Result<Response<v1::BalanceResponse>, Status> {
        Err(unscripted())
    }

    async fn drain_broker(
        &self,
        request: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        let operation = v1::Operation {
            operation_id: "an id".to_owned(),
            kind: v1::OperationKind::Drain.into(),
            state: v1::OperationState::Running.into(),
            broker_id: Some(request.into_inner().broker_id),
            total: 7,
            ..Default::default()
        };
        Ok(Response::new(v1::DrainBrokerResponse {
            operation: Some(operation),
        }))
    }

    async fn undrain_broker(
        &self,
        _: Request<v1::UndrainBrokerRequest>,
    ) -> Result<Response<v1::UndrainBrokerResponse>, Status> {
        Err(unscripted())
    }

    async fn decommission_broker(
        &self,
        _: Request<v1::DecommissionBrokerRequest>,
    ) -> Result<Response<v1::DecommissionBrokerResponse>, Status> {
        Err(unscripted())
    }

    async fn remove_broker(
        &self,
        _: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        Err(unscripted())
    }

    async fn can_stop(
        &self,
        _: Request<v1::CanStopRequest>,
    ) -> Result<Response<v1::CanStopResponse>, Status> {
        let at_risk = v1::PartitionAtRisk {
            topic: "t".to_owned(),
            partition: 3,
            left: 1,
            needed: 2,
            ..Default::default()
        };
        Ok(Response::new(v1::CanStopResponse {
            can_stop: false,
            at_risk: vec![at_risk],
            at_risk_count: 1,
        }))
    }

    async fn set_feature_level(
        &self,
        _: Request<v1::SetFeatureLevelRequest>,
    ) -> Result<Response<v1::SetFeatureLevelResponse>, Status> {
        Err(unscripted())
    }

    async fn get_operation(
        &self,
        _: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::GetOperationResponse>, Status> {
        Err(unscripted())
    }

    async fn list_operations(
        &self,
        _: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        Err(unscripted())
    }

    async fn cancel_operation(
        &self,
        _: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        Err(unscripted())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_retried_under_one_request_id() {
    let broker = Broker::start(1).await;
    let admin = client(&broker).await.admin();
    let script = &broker.state.admin.0;
    script.lock().refuse = vec![Reason::Overloaded, Reason::Draining];
    let new = NewTopic::new("orders", 3).config("retention.ms", "5");
    let created = soon(admin.create_topic(new)).await.unwrap();
    assert_eq!(
        (created.name.as_str(), created.topic_id.0),
        ("orders", [9; 16])
    );
    let creations = std::mem::take(&mut script.lock().creations);
    assert_eq!(creations.len(), 3);
    assert!(!creations[0].request_id.is_empty());
    assert!(creations.iter().all(|creation| *creation == creations[0]));

    script.lock().refuse = vec![Reason::TopicExists];
    let error = soon(admin.create_topic(NewTopic::new("orders", 3)))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::TopicExists));
    assert!(error.to_string().contains("TOPIC_EXISTS"), "{error}");
    assert_ne!(
        script.lock().creations[0].request_id,
        creations[0].request_id
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_typed() {
    let broker = Broker::start(1).await;
    broker.fill(0, &[&["0", "1"], &["2"]]);
    let admin = client(&broker).await.admin();
    let names: Vec<_> = admin
        .list_topics(false)
        .await
        .unwrap()
        .into_iter()
        .map(|topic| topic.name)
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(admin.cluster_info().await.unwrap().topics, 3);
    assert_eq!(admin.delete_topic("a", false).await.unwrap().0, [9; 16]);
    let error = admin.add_partitions("a", 1, false).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::InvalidArgument));
    assert_eq!(
        admin.describe_topic("a").await.unwrap_err().reason(),
        Some(Reason::UnknownTopic)
    );
    let changes = [
        ConfigChange::set("retention.ms", "5"),
        ConfigChange::reset("segment.bytes"),
    ];
    let config = admin.alter_config("a", &changes, false).await.unwrap();
    assert_eq!(
        (config[0].value.as_str(), config[0].source),
        ("5", ConfigSource::Topic)
    );
    let asked = broker.state.admin.0.lock().changes.clone();
    assert_eq!(
        (asked[0].value.as_deref(), asked[1].value.as_deref()),
        (Some("5"), None)
    );
    let target = |partition, before_offset| TrimTarget {
        partition,
        before_offset,
    };
    let outcomes = admin
        .trim(
            "t",
            &[target(0, Some(5)), target(1, None), target(2, None)],
            false,
        )
        .await
        .unwrap();
    assert_eq!(outcomes[0].result, Ok(5));
    assert_eq!(outcomes[1].result, Ok(77));
    assert_eq!(
        outcomes[2].result.as_ref().unwrap_err().reason,
        Some(Reason::UnknownPartition)
    );
    let items = [
        (0, Position::Earliest),
        (0, Position::Latest),
        (0, Position::Timestamp(1001)),
    ];
    let offsets = admin.list_offsets("t", &items).await.unwrap();
    assert_eq!(
        offsets.iter().map(|info| info.offset).collect::<Vec<_>>(),
        [0, 3, 0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_ride_out_a_restart_and_a_wrong_address_is_told_at_once() {
    let mut broker = Broker::start(1).await;
    let client = client(&broker).await;
    broker.kill();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.cluster().await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    broker.restart().await;
    assert_eq!(soon(call).await.unwrap().unwrap().cluster_id, "test");
    let nobody =
        timberline_client::ClientOptions::default().bootstrap(["127.0.0.1:1, 127.0.0.1:2"]);
    let error = soon(timberline_client::Client::connect(nobody))
        .await
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1, 127.0.0.1:2") && text.contains("refused"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_and_leaders_are_moved() {
    let broker = Broker::start(1).await;
    let admin = client(&broker).await.admin();
    broker.state.admin.0.lock().refuse = vec![Reason::NoLeader];
    let leader = soon(admin.transfer_leader("t", 0, Some(3))).await;
    assert_eq!(leader.unwrap(), 3);
    let drain = admin.drain_broker(2).await.unwrap();
    assert_eq!(
        (drain.kind, drain.state, drain.broker_id, drain.total),
        (OperationKind::Drain, OperationState::Running, Some(2), 7)
    );
    let risk = admin.can_stop(2).await.unwrap();
    assert!(!risk.can_stop);
    assert_eq!((risk.at_risk[0].left, risk.at_risk[0].needed), (1, 2));
}
