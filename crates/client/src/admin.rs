//! Changing and inspecting topics and their configuration.

use std::collections::{BTreeMap, BTreeSet};

use timberline_proto::error::ApiError;
use timberline_proto::v1;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::client::{Client, by_name};
use crate::connection::Connection;
use crate::consumer::Position;
use crate::error::{Error, Result, is_retriable};
use crate::types::{
    ClusterStatus, ConfigChange, ConfigEntry, NewTopic, OffsetInfo, PartitionState,
    TopicDescription, TopicId, TopicInfo, TrimOutcome,
};

/// Topics, configuration, offsets. Clones share everything.
///
/// Every call is retried until the client's request timeout while brokers can't be reached or say that it may
/// succeed later. A change carries a request id, so that a retry does not apply it twice. All functions are
/// cancel-safe on this side; a change whose future is dropped may or may not be made.
#[derive(Clone)]
pub struct Admin {
    pub(crate) client: Client,
}

/// Where to trim a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimTarget {
    /// The partition.
    pub partition: i32,
    /// The new log start; `None`: the high watermark.
    pub before_offset: Option<i64>,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// Creates a topic, or only checks it.
    ///
    /// # Errors
    /// `TOPIC_EXISTS`, `INVALID_TOPIC_NAME`, `INVALID_CONFIG`, `INVALID_REPLICATION_FACTOR`.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicInfo> {
        let request = v1::CreateTopicRequest {
            request_id: request_id(),
            name: topic.name,
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            config: topic.config.into_iter().collect(),
            validate_only: topic.validate_only,
        };
        let answer = self
            .client
            .call("CreateTopic", |connection| {
                let request = request.clone();
                async move { connection.admin().create_topic(request).await }
            })
            .await?;
        Ok(answer.topic.unwrap_or_default().into())
    }

    /// Deletes a topic and all its records.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn delete_topic(&self, topic: &str, validate_only: bool) -> Result<TopicId> {
        let request = v1::DeleteTopicRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            validate_only,
        };
        let answer = self
            .client
            .call("DeleteTopic", |connection| {
                let request = request.clone();
                async move { connection.admin().delete_topic(request).await }
            })
            .await?;
        if !validate_only {
            self.client.forget_topic(topic);
        }
        Ok(TopicId::from_wire(&answer.topic_id).unwrap_or_default())
    }

    /// Raises the number of partitions to `total`. Keys go to other partitions from then on.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_ARGUMENT` when `total` is not larger.
    pub async fn add_partitions(
        &self,
        topic: &str,
        total: i32,
        validate_only: bool,
    ) -> Result<TopicInfo> {
        let request = v1::AddPartitionsRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            total,
            validate_only,
        };
        let answer = self
            .client
            .call("AddPartitions", |connection| {
                let request = request.clone();
                async move { connection.admin().add_partitions(request).await }
            })
            .await?;
        self.client.forget_topic(topic);
        Ok(answer.topic.unwrap_or_default().into())
    }

    /// Moves the log start of partitions up: the records below are gone for good. One outcome per target, in their order.
    /// Leaders are asked; a leader that moves is followed.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, and those of a leader that does not answer.
    pub async fn trim(
        &self,
        topic: &str,
        targets: &[TrimTarget],
        validate_only: bool,
    ) -> Result<Vec<TrimOutcome>> {
        let options = self.client.options();
        let deadline = Instant::now() + options.request_timeout;
        let mut backoff = Backoff::new(options.retry_backoff, options.retry_backoff_max);
        let mut outcomes: Vec<Option<TrimOutcome>> = vec![None; targets.len()];
        loop {
            let view = self.client.fetch_topic(topic).await?;
            let mut by_leader: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
            for (at, target) in targets.iter().enumerate() {
                if outcomes[at].as_ref().is_none_or(may_end_otherwise) {
                    let known = usize::try_from(target.partition).ok();
                    let leader = known.and_then(|at| view.leaders.get(at).cloned().flatten());
                    let leader = leader.map(|address| address.to_string());
                    by_leader.entry(leader).or_default().push(at);
                }
            }
            let mut silent = None;
            for (leader, asked) in by_leader {
                let chosen: Vec<_> = asked.iter().map(|&at| targets[at]).collect();
                match self
                    .trim_at(leader.as_deref(), topic, &chosen, validate_only)
                    .await
                {
                    Ok(told) => {
                        for (outcome, &at) in told.into_iter().zip(&asked) {
                            outcomes[at] = Some(outcome);
                        }
                    }
                    Err(error) if !error.is_retriable() => return Err(error),
                    Err(error) => silent = Some(error),
                }
            }
            let wait = backoff.next_pause();
            let is_late = Instant::now() + wait >= deadline;
            match silent {
                Some(error) if is_late => return Err(error),
                None if is_late || !outcomes.iter().flatten().any(may_end_otherwise) => {
                    return Ok(outcomes.into_iter().flatten().collect());
                }
                _ => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Asks one broker; `None`: whichever answers.
    async fn trim_at(
        &self,
        leader: Option<&str>,
        topic: &str,
        targets: &[TrimTarget],
        validate_only: bool,
    ) -> Result<Vec<TrimOutcome>> {
        let partition = |target: &TrimTarget| v1::TrimPartition {
            partition: target.partition,
            before_offset: target.before_offset,
        };
        let request = v1::TrimTopicRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            partitions: targets.iter().map(partition).collect(),
            validate_only,
        };
        let ask = |connection: Connection| {
            let request = request.clone();
            async move { connection.admin().trim_topic(request).await }
        };
        let answer = match leader {
            Some(address) => self.client.ask_broker(address, ask).await?,
            None => self.client.call("TrimTopic", ask).await?,
        };
        if answer.results.len() != targets.len() {
            let (told, asked) = (answer.results.len(), targets.len());
            return Err(Error::Protocol {
                message: format!("{told} outcomes of {asked} trims"),
            });
        }
        let outcome = |result: v1::TrimResult| TrimOutcome {
            partition: result.partition,
            result: match &result.error {
                Some(error) => Err(ApiError::from_item(error)),
                None => Ok(result.log_start_offset),
            },
        };
        Ok(answer.results.into_iter().map(outcome).collect())
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list_topics(&self, include_internal: bool) -> Result<Vec<TopicInfo>> {
        let request = v1::ListTopicsRequest { include_internal };
        let answer = self
            .client
            .call("ListTopics", |connection| async move {
                connection.admin().list_topics(request).await
            })
            .await?;
        let mut topics: Vec<_> = answer.topics.into_iter().map(TopicInfo::from).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// A topic with the state of its partitions and its configuration. A partition's state is that of its leader, which is
    /// asked for it; a partition has none while it has no leader, or when its leader does not answer soon.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription> {
        let request = v1::DescribeTopicRequest {
            topic: Some(by_name(topic)),
        };
        let answer = self
            .client
            .call("DescribeTopic", |connection| {
                let request = request.clone();
                async move { connection.admin().describe_topic(request).await }
            })
            .await?;
        let info = TopicInfo::from(answer.topic.unwrap_or_default());
        let leaders = info.partitions.iter();
        let leaders: BTreeSet<i32> = leaders.filter_map(|one| one.leader_id).collect();
        let told = self.ask_each(leaders, |connection| {
            let request = request.clone();
            async move { connection.admin().describe_topic(request).await }
        });
        let mut partitions = Vec::new();
        for (broker, described) in told.await? {
            let led = |state: &v1::PartitionState| {
                let mut infos = info.partitions.iter();
                let info = infos.find(|info| info.partition == state.partition);
                info.is_some_and(|info| info.leader_id == Some(broker))
            };
            let states = described.partitions.into_iter().filter(led);
            partitions.extend(states.map(PartitionState::from));
        }
        partitions.sort_by_key(|state| state.partition);
        Ok(TopicDescription {
            topic: info,
            partitions,
            config: answer.config.into_iter().map(ConfigEntry::from).collect(),
        })
    }

    /// Every configuration key of a topic.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn describe_config(&self, topic: &str) -> Result<Vec<ConfigEntry>> {
        let request = v1::DescribeConfigRequest {
            topic: Some(by_name(topic)),
        };
        let answer = self
            .client
            .call("DescribeConfig", |connection| {
                let request = request.clone();
                async move { connection.admin().describe_config(request).await }
            })
            .await?;
        Ok(answer.entries.into_iter().map(ConfigEntry::from).collect())
    }

    /// Changes a topic's configuration, all changes or none; returns it as it is then.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_CONFIG`.
    pub async fn alter_config(
        &self,
        topic: &str,
        changes: &[ConfigChange],
        validate_only: bool,
    ) -> Result<Vec<ConfigEntry>> {
        let change = |change: &ConfigChange| v1::ConfigChange {
            key: change.key.clone(),
            value: change.value.clone(),
        };
        let request = v1::AlterConfigRequest {
            request_id: request_id(),
            topic: Some(by_name(topic)),
            changes: changes.iter().map(change).collect(),
            validate_only,
        };
        let answer = self
            .client
            .call("AlterConfig", |connection| {
                let request = request.clone();
                async move { connection.admin().alter_config(request).await }
            })
            .await?;
        Ok(answer.entries.into_iter().map(ConfigEntry::from).collect())
    }

    /// The cluster and the state of its brokers.
    ///
    /// # Errors
    /// Those of every call.
    ///
    /// Every broker that is connected is asked for its own state; those that do not answer soon are not among them.
    pub async fn cluster_info(&self) -> Result<ClusterStatus> {
        let request = v1::ClusterInfoRequest {};
        let answer = self
            .client
            .call("ClusterInfo", |connection| async move {
                connection.admin().cluster_info(request).await
            })
            .await?;
        let mut status = ClusterStatus::from(answer);
        let live = status.cluster.brokers.iter().filter(|one| one.live);
        let others: BTreeSet<i32> = live
            .map(|one| one.broker_id)
            .filter(|id| {
                status
                    .brokers
                    .iter()
                    .all(|known| known.broker.broker_id != *id)
            })
            .collect();
        let told = self.ask_each(others, |connection| async move {
            connection.admin().cluster_info(request).await
        });
        for (broker, answer) in told.await? {
            let answer = ClusterStatus::from(answer);
            let own = answer.brokers.into_iter();
            let own = own.filter(|state| state.broker.broker_id == broker);
            status.brokers.extend(own);
        }
        status.brokers.sort_by_key(|state| state.broker.broker_id);
        Ok(status)
    }

    /// Asks each of these brokers, all at once. Those that do not answer soon are left out.
    async fn ask_each<T, F>(
        &self,
        brokers: BTreeSet<i32>,
        make: impl Fn(Connection) -> F,
    ) -> Result<Vec<(i32, T)>>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        if brokers.is_empty() {
            return Ok(Vec::new());
        }
        let cluster = self.client.cluster().await?;
        let known = cluster.brokers.iter();
        let known = known.filter(|one| brokers.contains(&one.broker_id));
        let asked = known.map(|one| {
            let make = &make;
            async move {
                let answer = self.client.ask_broker(&one.address, make).await;
                let answer = answer.inspect_err(|error| {
                    tracing::debug!(broker = one.broker_id, %error, "a broker told nothing");
                });
                Some((one.broker_id, answer.ok()?))
            }
        });
        let answers = futures::future::join_all(asked).await;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Finds one offset per item, in the order of the items. Leaders are asked; a leader that moves is followed.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, of the first item that has one.
    pub async fn list_offsets(
        &self,
        topic: &str,
        items: &[(i32, Position)],
    ) -> Result<Vec<OffsetInfo>> {
        self.client.offsets_of(topic, by_name(topic), items).await
    }
}

/// Asked again, or asked of another broker, it may come out otherwise.
fn may_end_otherwise(outcome: &TrimOutcome) -> bool {
    outcome.result.as_ref().is_err_and(is_retriable)
}

/// One id per change, the same over its retries.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A question for an offset. One for a known offset asks for the log start: it checks that the partition exists.
pub(crate) fn offsets_item(
    topic: v1::TopicRef,
    partition: i32,
    at: Position,
) -> v1::ListOffsetsItem {
    use v1::list_offsets_item::At;
    let at = match at {
        Position::Earliest | Position::Offset(_) => At::Earliest(true),
        Position::Latest => At::Latest(true),
        Position::Timestamp(ms) => At::TimestampMs(ms),
    };
    v1::ListOffsetsItem {
        topic: Some(topic),
        partition,
        at: Some(at),
    }
}

/// The answer to it.
pub(crate) fn offset_info(result: v1::ListOffsetsResult, at: Position) -> Result<OffsetInfo> {
    if let Some(error) = &result.error {
        return Err(ApiError::from_item(error).into());
    }
    Ok(OffsetInfo {
        partition: result.partition,
        offset: match at {
            Position::Offset(offset) => offset,
            _ => result.offset,
        },
        timestamp_ms: result.timestamp_ms,
        leader_epoch: result.leader_epoch,
    })
}
