//! Looking at groups from outside, and moving where they stand.

use std::time::Duration;

use timberline_proto::error::ApiError;
use timberline_proto::v1;

use crate::admin::Admin;
use crate::client::by_name;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::group::{OffsetCommit, TopicPartition};
use crate::types::TopicId;

/// How a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupState {
    /// A state this client does not know.
    #[default]
    Unknown,
    /// No members; its offsets are kept until they expire.
    Empty,
    /// Members, and a new assignment is due.
    Assigning,
    /// Partitions are on their way from one member to another.
    Reconciling,
    /// Every member holds what it should.
    Stable,
}

impl GroupState {
    /// Its name, in small letters.
    pub fn as_str(self) -> &'static str {
        match self {
            GroupState::Unknown => "unknown",
            GroupState::Empty => "empty",
            GroupState::Assigning => "assigning",
            GroupState::Reconciling => "reconciling",
            GroupState::Stable => "stable",
        }
    }
}

/// A group in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its id.
    pub group: String,
    /// How it is.
    pub state: GroupState,
    /// Who gets which partitions: `sticky`, `range` or `rack-aware`.
    pub assignor: String,
    /// How many members it has.
    pub members: i32,
    /// The broker that coordinates it.
    pub coordinator_id: i32,
}

/// The groups of all coordinators that answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupList {
    /// Ordered by id.
    pub groups: Vec<GroupSummary>,
    /// Of coordinators that did not answer: their groups are missing.
    pub errors: Vec<ApiError>,
}

/// The broker that coordinates a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coordinator {
    /// Its number.
    pub broker_id: i32,
    /// HOST:PORT of its listener for clients.
    pub address: String,
    /// Rises with each change of the coordinator.
    pub epoch: i64,
}

/// A group with its members, its offsets and its lag.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupDescription {
    /// Its id.
    pub group: String,
    /// How it is.
    pub state: GroupState,
    /// Who gets which partitions: `sticky`, `range` or `rack-aware`.
    pub assignor: String,
    /// Rises with each change of the group.
    pub epoch: i64,
    /// The broker that coordinates it.
    pub coordinator_id: i32,
    /// Who is in it.
    pub members: Vec<GroupMember>,
    /// Every partition that is assigned or has a committed offset.
    pub partitions: Vec<GroupPartition>,
}

/// A member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMember {
    /// Given by the coordinator.
    pub member_id: String,
    /// Of a static member.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it comes from; empty while it is not connected.
    pub client_address: String,
    /// Its failure domain, if it named one.
    pub rack: Option<String>,
    /// Of its assignment.
    pub epoch: i64,
    /// Topics that it subscribed to by name.
    pub topics: Vec<String>,
    /// The pattern that it subscribed to.
    pub topic_pattern: Option<String>,
    /// What it holds.
    pub assigned: Vec<TopicPartition>,
    /// What it is to hold.
    pub target: Vec<TopicPartition>,
    /// Whether it is with the coordinator now.
    pub connected: bool,
    /// How long it may be silent.
    pub session_timeout: Duration,
}

/// Where a group stands in a partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupPartition {
    /// The topic's name; empty when the topic is gone.
    pub topic: String,
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The member that holds it.
    pub member_id: Option<String>,
    /// The next record that the group is to read.
    pub committed: Option<i64>,
    /// When that was committed, milliseconds since the Unix epoch.
    pub committed_at_ms: Option<i64>,
    /// Free text that was committed with it.
    pub metadata: String,
    /// First offset there is.
    pub log_start: Option<i64>,
    /// One after the last readable offset.
    pub end: Option<i64>,
    /// Records from the committed offset, or else from the log start, to the end.
    pub lag: Option<i64>,
    /// Age of the first of them, by the time it was appended; zero without lag.
    pub lag_time: Option<Duration>,
    /// Why end and lag are missing.
    pub error: Option<ApiError>,
}

/// Some partitions of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSelection {
    /// The topic's name.
    pub topic: String,
    /// Empty: those that have a committed offset.
    pub partitions: Vec<i32>,
}

impl TopicSelection {
    /// All partitions of a topic that have a committed offset.
    pub fn all(topic: impl Into<String>) -> TopicSelection {
        TopicSelection {
            topic: topic.into(),
            partitions: Vec::new(),
        }
    }
}

/// What a group has committed in a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic's name; empty when the topic is gone.
    pub topic: String,
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// The next record that the group is to read; `None`: nothing is committed.
    pub offset: Option<i64>,
    /// Free text that was committed with it.
    pub metadata: String,
    /// By the coordinator's clock, milliseconds since the Unix epoch.
    pub committed_at_ms: Option<i64>,
}

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// At the first record there is.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// At the first record with this timestamp or a later one, milliseconds since the Unix epoch.
    Timestamp(i64),
    /// At this offset, which must be within the log.
    Offset(i64),
    /// So many records further, or back, but within the log.
    ShiftBy(i64),
}

/// Partitions of a topic, and where the group is to go on in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetTarget {
    /// The topic's name.
    pub topic: String,
    /// Empty: all.
    pub partitions: Vec<i32>,
    /// Where to.
    pub to: ResetTo,
}

/// What a reset did to one partition, or would do.
#[derive(Clone, Debug, PartialEq)]
pub struct ResetOutcome {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Where the group stood.
    pub before: Option<i64>,
    /// Where it stands, or why it was not moved.
    pub result: Result<i64, ApiError>,
}

/// What a change of offsets did to one partition.
#[derive(Clone, Debug, PartialEq)]
pub struct OffsetOutcome {
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: i32,
    /// Why nothing was changed.
    pub error: Option<ApiError>,
}

/// Groups. A call may reach any broker; it is handed on to the group's coordinator.
impl Admin {
    /// The groups whose ids begin with this; empty: all.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list_groups(&self, prefix: &str) -> Result<GroupList> {
        let request = v1::ListGroupsRequest {
            prefix: prefix.to_owned(),
        };
        let answer = self
            .client
            .call("ListGroups", |connection| {
                let request = request.clone();
                async move { connection.group().list_groups(request).await }
            })
            .await?;
        let groups = answer.groups.into_iter().map(GroupSummary::from);
        let errors = answer.errors.iter().map(ApiError::from_item);
        Ok(GroupList {
            groups: groups.collect(),
            errors: errors.collect(),
        })
    }

    /// Who coordinates a group.
    ///
    /// # Errors
    /// `NO_COORDINATOR` while nobody does.
    pub async fn find_coordinator(&self, group: &str) -> Result<Coordinator> {
        let request = v1::FindCoordinatorRequest {
            group_id: group.to_owned(),
        };
        let answer = self
            .client
            .call("FindCoordinator", |connection| {
                let request = request.clone();
                async move { connection.group().find_coordinator(request).await }
            })
            .await?;
        Ok(Coordinator {
            broker_id: answer.broker_id,
            address: answer.address,
            epoch: answer.coordinator_epoch,
        })
    }

    /// Members, assignments, committed offsets and, if that is wanted, lag, for which the leaders of the partitions are asked.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`.
    pub async fn describe_group(&self, group: &str, with_lag: bool) -> Result<GroupDescription> {
        let request = v1::DescribeGroupRequest {
            group_id: group.to_owned(),
            no_lag: !with_lag,
        };
        let answer = self
            .client
            .call("DescribeGroup", |connection| {
                let request = request.clone();
                async move { connection.group().describe_group(request).await }
            })
            .await?;
        Ok(answer.into())
    }

    /// What a group has committed; without a selection, all of it. What is answered was committed before, and no later answer
    /// is lower unless somebody asked for it.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`, `UNKNOWN_TOPIC`.
    pub async fn group_offsets(
        &self,
        group: &str,
        topics: &[TopicSelection],
    ) -> Result<Vec<CommittedOffset>> {
        let request = v1::FetchOffsetsRequest {
            group_id: group.to_owned(),
            topics: topics.iter().map(selection).collect(),
        };
        let answer = self
            .client
            .call("FetchOffsets", |connection| {
                let request = request.clone();
                async move { connection.group().fetch_offsets(request).await }
            })
            .await?;
        let offset = |one: v1::CommittedOffset| match &one.error {
            Some(error) => Err(ApiError::from_item(error).into()),
            None => Ok(one.into()),
        };
        answer.offsets.into_iter().map(offset).collect()
    }

    /// Commits offsets for a group without members, say for a consumer that is assigned by hand. One outcome per offset, in their
    /// order.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        offsets: &[OffsetCommit],
    ) -> Result<Vec<OffsetOutcome>> {
        let item = |one: &OffsetCommit| v1::CommitItem {
            topic: Some(by_name(&one.topic)),
            partition: one.partition,
            offset: one.offset,
            leader_epoch: None,
            metadata: one.metadata.clone(),
            rewind: one.rewind,
        };
        let request = v1::CommitRequest {
            group_id: group.to_owned(),
            member_id: None,
            member_epoch: None,
            items: offsets.iter().map(item).collect(),
        };
        let answer = self
            .client
            .call("Commit", |connection| {
                let request = request.clone();
                async move { connection.group().commit(request).await }
            })
            .await?;
        all_told(answer.results.len(), offsets.len())?;
        let outcome = |one: v1::CommitResult| OffsetOutcome {
            topic_id: TopicId::from_wire(&one.topic_id).unwrap_or_default(),
            partition: one.partition,
            error: one.error.as_ref().map(ApiError::from_item),
        };
        Ok(answer.results.into_iter().map(outcome).collect())
    }

    /// Moves where a group without members stands, or only says where it would stand.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`, `UNKNOWN_TOPIC`.
    pub async fn reset_group_offsets(
        &self,
        group: &str,
        targets: &[ResetTarget],
        validate_only: bool,
    ) -> Result<Vec<ResetOutcome>> {
        let request = v1::ResetOffsetsRequest {
            group_id: group.to_owned(),
            items: targets.iter().map(reset_item).collect(),
            validate_only,
        };
        let answer = self
            .client
            .call("ResetOffsets", |connection| {
                let request = request.clone();
                async move { connection.group().reset_offsets(request).await }
            })
            .await?;
        Ok(answer.results.into_iter().map(ResetOutcome::from).collect())
    }

    /// Deletes a group without members, with its offsets.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`, `UNKNOWN_GROUP`.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let request = v1::DeleteGroupRequest {
            group_id: group.to_owned(),
        };
        let ask = |connection: Connection| {
            let request = request.clone();
            async move { connection.group().delete_group(request).await }
        };
        self.client.call("DeleteGroup", ask).await.map(|_| ())
    }

    /// Forgets committed offsets of topics that no member of the group is subscribed to. One outcome per partition.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP`, `UNKNOWN_TOPIC`.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        topics: &[TopicSelection],
    ) -> Result<Vec<OffsetOutcome>> {
        let request = v1::DeleteOffsetsRequest {
            group_id: group.to_owned(),
            topics: topics.iter().map(selection).collect(),
        };
        let answer = self
            .client
            .call("DeleteOffsets", |connection| {
                let request = request.clone();
                async move { connection.group().delete_offsets(request).await }
            })
            .await?;
        let outcome = |one: v1::DeleteOffsetsResult| OffsetOutcome {
            topic_id: TopicId::from_wire(&one.topic_id).unwrap_or_default(),
            partition: one.partition,
            error: one.error.as_ref().map(ApiError::from_item),
        };
        Ok(answer.results.into_iter().map(outcome).collect())
    }
}

fn all_told(told: usize, asked: usize) -> Result<()> {
    if told == asked {
        return Ok(());
    }
    Err(Error::Protocol {
        message: format!("{told} outcomes of {asked} items"),
    })
}

fn selection(topic: &TopicSelection) -> v1::FetchOffsetsTopic {
    v1::FetchOffsetsTopic {
        topic: Some(by_name(&topic.topic)),
        partitions: topic.partitions.clone(),
    }
}

fn reset_item(target: &ResetTarget) -> v1::ResetOffsetsItem {
    use v1::reset_offsets_item::To;
    let to = match target.to {
        ResetTo::Earliest => To::Earliest(true),
        ResetTo::Latest => To::Latest(true),
        ResetTo::Timestamp(ms) => To::TimestampMs(ms),
        ResetTo::Offset(offset) => To::Offset(offset),
        ResetTo::ShiftBy(records) => To::ShiftBy(records),
    };
    v1::ResetOffsetsItem {
        topic: Some(by_name(&target.topic)),
        partitions: target.partitions.clone(),
        to: Some(to),
    }
}

fn flat(topics: Vec<v1::TopicPartitions>) -> Vec<TopicPartition> {
    let of_topic = |one: v1::TopicPartitions| {
        let name: std::sync::Arc<str> = one.topic.into();
        let parts = one.partitions.into_iter();
        parts
            .map(|partition| TopicPartition::new(name.clone(), partition))
            .collect::<Vec<_>>()
    };
    topics.into_iter().flat_map(of_topic).collect()
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn span(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}

impl From<v1::GroupState> for GroupState {
    fn from(state: v1::GroupState) -> Self {
        match state {
            v1::GroupState::Unspecified => GroupState::Unknown,
            v1::GroupState::Empty => GroupState::Empty,
            v1::GroupState::Assigning => GroupState::Assigning,
            v1::GroupState::Reconciling => GroupState::Reconciling,
            v1::GroupState::Stable => GroupState::Stable,
        }
    }
}

impl From<v1::GroupSummary> for GroupSummary {
    fn from(group: v1::GroupSummary) -> Self {
        GroupSummary {
            state: group.state().into(),
            group: group.group_id,
            assignor: group.assignor,
            members: group.members,
            coordinator_id: group.coordinator_id,
        }
    }
}

impl From<v1::DescribeGroupResponse> for GroupDescription {
    fn from(told: v1::DescribeGroupResponse) -> Self {
        GroupDescription {
            state: told.state().into(),
            group: told.group_id,
            assignor: told.assignor,
            epoch: told.group_epoch,
            coordinator_id: told.coordinator_id,
            members: told.members.into_iter().map(GroupMember::from).collect(),
            partitions: told
                .partitions
                .into_iter()
                .map(GroupPartition::from)
                .collect(),
        }
    }
}

impl From<v1::GroupMember> for GroupMember {
    fn from(member: v1::GroupMember) -> Self {
        let subscription = member.subscription.unwrap_or_default();
        GroupMember {
            member_id: member.member_id,
            instance_id: member.instance_id,
            client_id: member.client_id,
            client_address: member.client_address,
            rack: some(member.rack),
            epoch: member.member_epoch,
            topics: subscription.topics,
            topic_pattern: subscription.topic_pattern,
            assigned: flat(member.assigned),
            target: flat(member.target),
            connected: member.connected,
            session_timeout: span(member.session_timeout_ms),
        }
    }
}

impl From<v1::GroupPartition> for GroupPartition {
    fn from(one: v1::GroupPartition) -> Self {
        GroupPartition {
            topic: one.topic,
            topic_id: TopicId::from_wire(&one.topic_id).unwrap_or_default(),
            partition: one.partition,
            member_id: some(one.member_id),
            committed: one.committed_offset,
            committed_at_ms: one.committed_at_ms,
            metadata: one.metadata,
            log_start: one.log_start_offset,
            end: one.end_offset,
            lag: one.lag,
            lag_time: one.lag_ms.map(span),
            error: one.error.as_ref().map(ApiError::from_item),
        }
    }
}

impl From<v1::CommittedOffset> for CommittedOffset {
    fn from(one: v1::CommittedOffset) -> Self {
        CommittedOffset {
            topic: one.topic,
            topic_id: TopicId::from_wire(&one.topic_id).unwrap_or_default(),
            partition: one.partition,
            offset: one.offset,
            metadata: one.metadata,
            committed_at_ms: one.committed_at_ms,
        }
    }
}

impl From<v1::ResetOffsetsResult> for ResetOutcome {
    fn from(one: v1::ResetOffsetsResult) -> Self {
        ResetOutcome {
            topic: one.topic,
            partition: one.partition,
            before: one.offset_before,
            result: match &one.error {
                Some(error) => Err(ApiError::from_item(error)),
                None => Ok(one.offset),
            },
        }
    }
}
