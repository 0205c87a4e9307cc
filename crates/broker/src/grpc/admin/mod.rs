//! `AdminService`: topics and their configuration here; `partitions` moves replicas and leaderships, `brokers` drains and
//! removes brokers, `operations` says how far that is.

mod brokers;
mod operations;
mod partitions;

use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::admin_service_server::AdminService;
use timberline_proto::v1::{
    self, AddPartitionsRequest, AddPartitionsResponse, AlterConfigRequest, AlterConfigResponse,
    BrokerStatus, ClusterInfoRequest, ClusterInfoResponse, ConfigEntry, ConfigSource,
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeConfigRequest, DescribeConfigResponse, DescribeTopicRequest, DescribeTopicResponse,
    ListTopicsRequest, ListTopicsResponse, OffsetRange, PartitionState, TopicInfo, TrimPartition,
    TrimResult, TrimTopicRequest, TrimTopicResponse,
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Services;
use super::metadata::{cluster_info, topic_info};
use crate::auth::Operation;
use crate::clock;
use crate::core::Core;
use crate::errors;
use crate::metadata::plan::{self, NewTopic};
use crate::metadata::table::{Topic, id_bytes};
use crate::partition::TopicHandle;
use crate::shard::Work;
use crate::topic::config::KEYS;
use crate::topic::name::is_internal;

#[tonic::async_trait]
impl AdminService for Services {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        self.call(
            "CreateTopic",
            Operation::Create,
            request,
            async |core, request| {
                if is_internal(&request.name) {
                    return Err(ApiError::new(
                        Reason::InvalidTopicName,
                        "names that begin with `__` are the broker's own",
                    )
                    .with_field("name"));
                }
                let live = core.leadership.live_brokers();
                let new = NewTopic {
                    name: &request.name,
                    partitions: request.partitions,
                    replication_factor: request.replication_factor,
                    config: &request.config,
                    live: &live,
                    id: Uuid::new_v4(),
                    now_ms: clock::now_ms(),
                };
                let bounds = &core.metadata.bounds;
                if request.validate_only {
                    core.metadata
                        .check_only(|table| plan::create_topic(table, &new, bounds))?;
                    return Ok(CreateTopicResponse::default());
                }
                let change = core.metadata.change(&request.request_id, |table| {
                    plan::create_topic(table, &new, bounds)
                });
                let id = change.await?;
                core.all_led(id).await;
                Ok(CreateTopicResponse {
                    topic: info_by_id(core, id),
                })
            },
        )
        .await
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        self.call(
            "DeleteTopic",
            Operation::Delete,
            request,
            async |core, request| {
                let plan =
                    |table: &_| plan::delete_topic(plan::resolve(table, request.topic.as_ref())?);
                if request.validate_only {
                    core.metadata.check_only(plan)?;
                    return Ok(DeleteTopicResponse::default());
                }
                let id = core.metadata.change(&request.request_id, plan).await?;
                Ok(DeleteTopicResponse {
                    topic_id: id_bytes(id),
                })
            },
        )
        .await
    }

    async fn add_partitions(
        &self,
        request: Request<AddPartitionsRequest>,
    ) -> Result<Response<AddPartitionsResponse>, Status> {
        self.call(
            "AddPartitions",
            Operation::Alter,
            request,
            async |core, request| {
                let live = core.leadership.live_brokers();
                let plan = |table: &_| {
                    let topic = plan::resolve(table, request.topic.as_ref())?;
                    let bounds = &core.metadata.bounds;
                    plan::add_partitions(table, topic, request.total, &live, bounds)
                };
                if request.validate_only {
                    core.metadata.check_only(plan)?;
                    return Ok(AddPartitionsResponse::default());
                }
                let id = core.metadata.change(&request.request_id, plan).await?;
                core.all_led(id).await;
                Ok(AddPartitionsResponse {
                    topic: info_by_id(core, id),
                })
            },
        )
        .await
    }

    async fn trim_topic(
        &self,
        request: Request<TrimTopicRequest>,
    ) -> Result<Response<TrimTopicResponse>, Status> {
        self.call(
            "TrimTopic",
            Operation::Delete,
            request,
            async |core, request| {
                plan::check_request_id(&request.request_id)?;
                let topic = core.topic(Operation::Delete, request.topic.as_ref())?;
                if request.partitions.len() > topic.partition_count() {
                    return Err(ApiError::invalid(
                        "partitions",
                        "more partitions than the topic has",
                    ));
                }
                let mut waiting = Vec::with_capacity(request.partitions.len());
                for item in &request.partitions {
                    waiting.push(start_trim(core, &topic, item, request.validate_only));
                }
                let mut results = Vec::with_capacity(waiting.len());
                for (item, started) in request.partitions.iter().zip(waiting) {
                    results.push(finish_trim(&topic, item.partition, started).await);
                }
                Ok(TrimTopicResponse { results })
            },
        )
        .await
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        self.call(
            "ListTopics",
            Operation::Describe,
            request,
            async |core, request| {
                let table = core.metadata.table();
                let shown =
                    |topic: &&Arc<Topic>| request.include_internal || !is_internal(&topic.name);
                let topics = table
                    .topics()
                    .filter(shown)
                    .map(|topic| topic_info(core, topic));
                Ok(ListTopicsResponse {
                    topics: topics.collect(),
                })
            },
        )
        .await
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        self.call(
            "DescribeTopic",
            Operation::Describe,
            request,
            async |core, request| {
                let topic = plan::resolve(&core.metadata.table(), request.topic.as_ref())?.clone();
                let handle = core
                    .directory
                    .by_id(topic.id)
                    .ok_or_else(|| plan::unknown_topic(topic.id))?;
                Ok(DescribeTopicResponse {
                    topic: Some(topic_info(core, &topic)),
                    partitions: partition_states(&handle),
                    config: config_entries(core, &topic),
                })
            },
        )
        .await
    }

    async fn describe_config(
        &self,
        request: Request<DescribeConfigRequest>,
    ) -> Result<Response<DescribeConfigResponse>, Status> {
        self.call(
            "DescribeConfig",
            Operation::Describe,
            request,
            async |core, request| {
                let topic = plan::resolve(&core.metadata.table(), request.topic.as_ref())?.clone();
                Ok(DescribeConfigResponse {
                    entries: config_entries(core, &topic),
                })
            },
        )
        .await
    }

    async fn alter_config(
        &self,
        request: Request<AlterConfigRequest>,
    ) -> Result<Response<AlterConfigResponse>, Status> {
        self.call(
            "AlterConfig",
            Operation::Alter,
            request,
            async |core, request| {
                let plan = |table: &_| {
                    let topic = plan::resolve(table, request.topic.as_ref())?;
                    plan::alter_config(topic, &request.changes, &core.metadata.bounds)
                };
                if request.validate_only {
                    core.metadata.check_only(plan)?;
                    return Ok(AlterConfigResponse::default());
                }
                let id = core.metadata.change(&request.request_id, plan).await?;
                let topic = core.metadata.table().topic(id).cloned();
                let entries = topic
                    .map(|topic| config_entries(core, &topic))
                    .unwrap_or_default();
                Ok(AlterConfigResponse { entries })
            },
        )
        .await
    }

    async fn cluster_info(
        &self,
        request: Request<ClusterInfoRequest>,
    ) -> Result<Response<ClusterInfoResponse>, Status> {
        self.call(
            "ClusterInfo",
            Operation::Describe,
            request,
            async |core, _| {
                let table = core.metadata.table();
                let cluster = cluster_info(core, &table);
                let stats = core.store.stats();
                let brokers = cluster
                    .brokers
                    .iter()
                    .filter(|broker| broker.broker_id == core.config.broker.id);
                let brokers = brokers.map(|broker| BrokerStatus {
                    broker: Some(broker.clone()),
                    disk_free_bytes: stats.disk_free_bytes.unwrap_or(0) as i64,
                    disk_total_bytes: stats.disk_total_bytes.unwrap_or(0) as i64,
                    log_size_bytes: stats.log_bytes as i64,
                    uptime_ms: core.started.elapsed().as_millis() as i64,
                    writable: core.store.poisoned().is_none(),
                });
                let health = brokers::health(core, &table);
                Ok(ClusterInfoResponse {
                    brokers: brokers.collect(),
                    topics: table.topic_count() as i32,
                    partitions: table.partition_count() as i32,
                    cluster: Some(cluster),
                    ..health
                })
            },
        )
        .await
    }

    async fn move_partition(
        &self,
        request: Request<v1::MovePartitionRequest>,
    ) -> Result<Response<v1::MovePartitionResponse>, Status> {
        self.call(
            "MovePartition",
            Operation::Alter,
            request,
            partitions::move_partition,
        )
        .await
    }

    async fn list_reassignments(
        &self,
        request: Request<v1::ListReassignmentsRequest>,
    ) -> Result<Response<v1::ListReassignmentsResponse>, Status> {
        self.call(
            "ListReassignments",
            Operation::Describe,
            request,
            partitions::list_reassignments,
        )
        .await
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        self.call(
            "TransferLeader",
            Operation::Alter,
            request,
            partitions::transfer_leader,
        )
        .await
    }

    async fn elect_preferred(
        &self,
        request: Request<v1::ElectPreferredRequest>,
    ) -> Result<Response<v1::ElectPreferredResponse>, Status> {
        self.call(
            "ElectPreferred",
            Operation::Alter,
            request,
            partitions::elect_preferred,
        )
        .await
    }

    async fn balance(
        &self,
        request: Request<v1::BalanceRequest>,
    ) -> Result<Response<v1::BalanceResponse>, Status> {
        self.call("Balance", Operation::Alter, request, partitions::balance)
            .await
    }

    async fn drain_broker(
        &self,
        request: Request<v1::DrainBrokerRequest>,
    ) -> Result<Response<v1::DrainBrokerResponse>, Status> {
        self.call("DrainBroker", Operation::Alter, request, brokers::drain)
            .await
    }

    async fn undrain_broker(
        &self,
        request: Request<v1::UndrainBrokerRequest>,
    ) -> Result<Response<v1::UndrainBrokerResponse>, Status> {
        self.call("UndrainBroker", Operation::Alter, request, brokers::undrain)
            .await
    }

    async fn decommission_broker(
        &self,
        request: Request<v1::DecommissionBrokerRequest>,
    ) -> Result<Response<v1::DecommissionBrokerResponse>, Status> {
        self.call(
            "DecommissionBroker",
            Operation::Alter,
            request,
            brokers::decommission,
        )
        .await
    }

    async fn remove_broker(
        &self,
        request: Request<v1::RemoveBrokerRequest>,
    ) -> Result<Response<v1::RemoveBrokerResponse>, Status> {
        self.call("RemoveBroker", Operation::Alter, request, brokers::remove)
            .await
    }

    async fn can_stop(
        &self,
        request: Request<v1::CanStopRequest>,
    ) -> Result<Response<v1::CanStopResponse>, Status> {
        self.call("CanStop", Operation::Describe, request, brokers::can_stop)
            .await
    }

    async fn set_feature_level(
        &self,
        request: Request<v1::SetFeatureLevelRequest>,
    ) -> Result<Response<v1::SetFeatureLevelResponse>, Status> {
        self.call(
            "SetFeatureLevel",
            Operation::Alter,
            request,
            brokers::set_feature_level,
        )
        .await
    }

    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::GetOperationResponse>, Status> {
        self.call(
            "GetOperation",
            Operation::Describe,
            request,
            operations::get,
        )
        .await
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        self.call(
            "ListOperations",
            Operation::Describe,
            request,
            operations::list,
        )
        .await
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        self.call(
            "CancelOperation",
            Operation::Alter,
            request,
            operations::cancel,
        )
        .await
    }
}

fn info_by_id(core: &Core, id: Uuid) -> Option<TopicInfo> {
    let topic = core.metadata.table().topic(id).cloned()?;
    Some(topic_info(core, &topic))
}

type Trim = Result<Option<oneshot::Receiver<crate::ack::Outcome>>, ApiError>;

/// Proposes a trim; nothing to wait for when it is only checked.
fn start_trim(core: &Core, topic: &TopicHandle, item: &TrimPartition, check_only: bool) -> Trim {
    let partition = core.led(topic, item.partition)?;
    let log = &partition.log;
    if item
        .before_offset
        .is_some_and(|before| before < 0 || before > log.high_watermark())
    {
        return Err(ApiError::new(
            Reason::OffsetOutOfRange,
            format!(
                "before_offset is not in {}..={}",
                log.log_start(),
                log.high_watermark()
            ),
        )
        .with("log_start", log.log_start())
        .with("high_watermark", log.high_watermark()));
    }
    if check_only {
        return Ok(None);
    }
    let (reply, receiver) = oneshot::channel();
    core.shards.submit(
        partition.replica,
        Work::Trim {
            replica: partition.replica,
            before: item.before_offset,
            reply,
        },
    );
    Ok(Some(receiver))
}

async fn finish_trim(topic: &TopicHandle, number: i32, started: Trim) -> TrimResult {
    let outcome = match started {
        Ok(Some(receiver)) => match receiver.await {
            Ok(outcome) => outcome.map(drop).map_err(|error| *error),
            Err(_) => Err(errors::gone()),
        },
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    TrimResult {
        partition: number,
        log_start_offset: topic
            .hosted_here(number)
            .map_or(0, |partition| partition.log.log_start()),
        error: outcome.err().map(|error| error.to_item()),
    }
}

fn partition_states(handle: &TopicHandle) -> Vec<PartitionState> {
    let states = handle.hosted().into_iter().map(|partition| {
        let log = &partition.log;
        let quarantined = log.quarantined().into_iter().map(|range| OffsetRange {
            from: range.start,
            to: range.end,
        });
        PartitionState {
            partition: partition.number,
            log_start_offset: log.log_start(),
            high_watermark: log.high_watermark(),
            size_bytes: log.size_bytes() as i64,
            segments: log.segments() as i32,
            leader_epoch: partition.leader_epoch(),
            quarantined: quarantined.collect(),
        }
    });
    states.collect()
}

fn config_entries(core: &Core, topic: &Topic) -> Vec<ConfigEntry> {
    let entries = KEYS.iter().map(|key| {
        let default_value = key.default_value(&core.defaults);
        let own = topic.config.get(key.name);
        let source = if own.is_some() {
            ConfigSource::Topic
        } else {
            ConfigSource::Default
        };
        ConfigEntry {
            key: key.name.to_owned(),
            value: own.unwrap_or(&default_value).clone(),
            source: source.into(),
            default_value,
            documentation: key.documentation.to_owned(),
        }
    });
    entries.collect()
}
