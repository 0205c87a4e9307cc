//! `MetadataService`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use prost::Message;
use timberline_proto::error::ApiError;
use timberline_proto::v1::metadata_service_server::MetadataService;
use timberline_proto::v1::{
    self, BrokerInfo, ClusterInfo, GetMetadataRequest, GetMetadataResponse, PartitionInfo,
    TopicInfo, TopicRef, WatchMetadataRequest, WatchMetadataResponse,
};
use tonic::{Request, Response, Status};

use super::Services;
use crate::auth::{Operation, Resource};
use crate::core::Core;
use crate::lifecycle::Phase;
use crate::metadata::plan;
use crate::metadata::table::{Broker, BrokerState, Replica, Table, Topic, id_bytes};
use crate::topic::name::is_internal;

/// Topics named in one call.
const TOPICS_MAX: usize = 100_000;
/// Partitions of one answer. Clients of a larger cluster name the topics they use.
const ANSWER_PARTITIONS_MAX: usize = 250_000;
/// Shortest time between two answers of a watch: changes in between are told together.
const WATCH_PAUSE: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl MetadataService for Services {
    async fn get_metadata(
        &self,
        request: Request<GetMetadataRequest>,
    ) -> Result<Response<GetMetadataResponse>, Status> {
        self.call(
            "GetMetadata",
            Operation::Describe,
            request,
            async |core, request| {
                check_count(&request.topics)?;
                answer(core, &request.topics, request.no_topics)
            },
        )
        .await
    }

    type WatchMetadataStream =
        Pin<Box<dyn Stream<Item = Result<WatchMetadataResponse, Status>> + Send>>;

    async fn watch_metadata(
        &self,
        request: Request<WatchMetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        let active = self.enter(Operation::Describe, Resource::Cluster)?;
        let topics = request.into_inner().topics;
        check_count(&topics)?;
        let core = Arc::clone(&self.core);
        let mut revisions = core.metadata.revisions();
        revisions.mark_changed();
        // Who leads and who lives is not in the metadata log, and moves without a revision.
        let news = (revisions, core.cluster.changes());
        let state = (core, news, topics, None::<GetMetadataResponse>, active);
        let stream = futures::stream::unfold(Some(state), |state| async move {
            let (core, (mut revisions, mut changes), topics, mut last, active) = state?;
            loop {
                tokio::select! {
                    changed = revisions.changed() => changed.ok()?,
                    changed = changes.changed() => changed.ok()?,
                    () = core.lifecycle.reached(Phase::Draining) => return None,
                }
                if last.is_some() {
                    tokio::time::sleep(WATCH_PAUSE).await;
                }
                let revision = *revisions.borrow_and_update();
                changes.mark_unchanged();
                let metadata = match answer(&core, &topics, false) {
                    Ok(metadata) => metadata,
                    // The topics have grown beyond the bound: the stream ends so.
                    Err(error) => return Some((Err(error.to_status()), None)),
                };
                if last.as_ref() == Some(&metadata) {
                    continue;
                }
                last = Some(metadata.clone());
                let response = WatchMetadataResponse {
                    revision,
                    metadata: Some(metadata),
                };
                core.metrics
                    .response_bytes
                    .inc_by(response.encoded_len() as u64);
                let state = (core, (revisions, changes), topics, last, active);
                return Some((Ok(response), Some(state)));
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn check_count(topics: &[TopicRef]) -> Result<(), ApiError> {
    if topics.len() > TOPICS_MAX {
        return Err(ApiError::invalid(
            "topics",
            format!("a call names at most {TOPICS_MAX} topics"),
        ));
    }
    Ok(())
}

fn answer(
    core: &Core,
    topics: &[TopicRef],
    no_topics: bool,
) -> Result<GetMetadataResponse, ApiError> {
    let table = core.metadata.table();
    let mut response = GetMetadataResponse {
        cluster: Some(cluster_info(core, &table)),
        ..GetMetadataResponse::default()
    };
    if no_topics {
        return Ok(response);
    }
    let (topics, unknown) = plan::resolve_all(&table, topics, ANSWER_PARTITIONS_MAX)?;
    response.topics = topics
        .into_iter()
        .map(|topic| topic_info(core, topic))
        .collect();
    response.unknown = unknown;
    Ok(response)
}

/// The cluster as the table has it.
pub(super) fn cluster_info(core: &Core, table: &Table) -> ClusterInfo {
    let live = core.leadership.live_brokers();
    let mut replicas: HashMap<i32, i32> = HashMap::new();
    for (_, _, partition) in table.partitions() {
        for replica in partition.all() {
            *replicas.entry(replica.broker).or_default() += 1;
        }
    }
    let brokers = table.brokers().iter().map(|(id, broker)| BrokerInfo {
        live: live.contains(id),
        replicas: replicas.get(id).copied().unwrap_or(0),
        ..broker_info(core, *id, broker)
    });
    ClusterInfo {
        cluster_id: table
            .cluster()
            .map(|cluster| cluster.id.clone())
            .unwrap_or_default(),
        controller_id: core.leadership.controller(),
        brokers: brokers.collect(),
        feature_level: table.feature_level(),
    }
}

/// A broker as the table has it; this one knows itself better.
fn broker_info(core: &Core, id: i32, broker: &Broker) -> BrokerInfo {
    let known = |mine: &str, registered: &str| {
        let text = if id == core.config.broker.id {
            mine
        } else {
            registered
        };
        text.to_owned()
    };
    let state = match broker.state {
        BrokerState::Active => v1::BrokerState::Active,
        BrokerState::Draining => v1::BrokerState::Draining,
        BrokerState::Decommissioning => v1::BrokerState::Decommissioning,
    };
    BrokerInfo {
        broker_id: id,
        rack: broker.rack.clone(),
        address: known(&core.grpc_address, &broker.grpc),
        version: known(env!("CARGO_PKG_VERSION"), &broker.version),
        http_address: known(&core.http_address, &broker.http),
        state: state.into(),
        live: false,
        replicas: 0,
    }
}

/// A topic with what is known of its leaders.
pub(super) fn topic_info(core: &Core, topic: &Topic) -> TopicInfo {
    let live = core.leadership.live_brokers();
    let brokers_of = |replicas: &mut dyn Iterator<Item = &Replica>| -> Vec<i32> {
        replicas.map(|replica| replica.broker).collect()
    };
    let partitions = topic.numbered().map(|(number, partition)| {
        let leader = core.leadership.leader_of(topic.id, number);
        let offline = |one: &&Replica| one.lost || !live.contains(&one.broker);
        let replicas = partition.replicas.iter();
        PartitionInfo {
            partition: number,
            leader_id: leader.map(|(_, broker)| broker),
            leader_epoch: leader.map_or(0, |(term, _)| i32::try_from(term).unwrap_or(i32::MAX)),
            in_sync: core.leadership.in_sync(topic.id, number),
            offline: brokers_of(&mut replicas.clone().filter(offline)),
            replicas: brokers_of(&mut replicas.clone()),
            adding: brokers_of(&mut partition.adding()),
            removing: brokers_of(&mut partition.removing()),
        }
    });
    let internal = is_internal(&topic.name);
    // Those of the broker grow with the cluster.
    let replicas = topic.partitions.iter().map(|one| one.replicas.len() as i32);
    TopicInfo {
        name: topic.name.clone(),
        topic_id: id_bytes(topic.id),
        partitions: partitions.collect(),
        replication_factor: match internal {
            true => replicas.min().unwrap_or(topic.replication_factor),
            false => topic.replication_factor,
        },
        internal,
    }
}
