//! Between the API's types and the core's.

use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    self, CommitResult, FetchOffsetsTopic, GroupMember, GroupState, GroupSummary, JoinAssignment,
    JoinFailure, JoinHello, StartPosition, TopicPartitions, TopicRef, join_response,
};
use uuid::Uuid;

use crate::core::Core;
use crate::groups::assign::Assignor;
use crate::groups::core::api::{Join, MemberView, Message, Start, State, Summary, Which};
use crate::groups::error::Error;
use crate::groups::limits::{ITEMS_MAX, PARTITIONS_MAX};
use crate::groups::parts::{Parts, TopicId, Tp};
use crate::groups::subscription::Subscription;
use crate::metadata::plan;
use crate::metadata::table::{id_bytes, topic_id};

/// What a client hears of a refusal of the core.
pub(super) fn error(error: &Error) -> ApiError {
    let text = error.to_string();
    match error {
        Error::UnknownGroup(group) => {
            ApiError::new(Reason::UnknownGroup, text).with("group", group)
        }
        Error::UnknownTopicNamed(name) => {
            let mut error = plan::unknown_topic_named(name);
            error.message = text;
            error.with_field("subscription.topics")
        }
        Error::UnknownTopic(id) => plan::unknown_topic(uuid(*id)),
        Error::UnknownPartition { count, .. } => {
            ApiError::new(Reason::UnknownPartition, text).with("partitions", count)
        }
        Error::Fenced(_) => ApiError::new(Reason::MemberFenced, text),
        Error::InstanceFenced => ApiError::new(Reason::InstanceFenced, text),
        Error::PollTimeout { .. } => ApiError::new(Reason::PollTimeout, text),
        Error::NotAssigned => ApiError::new(Reason::NotAssigned, text),
        Error::CommitBehind { committed } => {
            ApiError::new(Reason::CommitBehind, text).with("committed_offset", committed)
        }
        Error::BeyondEnd { end, .. } => {
            ApiError::new(Reason::OffsetOutOfRange, text).with("high_watermark", end)
        }
        Error::NotEmpty(members) => {
            ApiError::new(Reason::GroupNotEmpty, text).with("members", members)
        }
        Error::Full { limit, .. } => ApiError::new(Reason::GroupFull, text).with("limit", limit),
        Error::InconsistentAssignor(has) => {
            ApiError::new(Reason::InconsistentAssignor, text).with("assignor", has)
        }
        Error::InvalidPattern(_) => {
            ApiError::new(Reason::InvalidPattern, text).with_field("subscription.topic_pattern")
        }
        Error::Invalid { field, .. } => ApiError::invalid(*field, text),
    }
}

pub(super) fn uuid(topic: TopicId) -> Uuid {
    Uuid::from_u128(topic.0)
}

fn bytes(topic: TopicId) -> bytes::Bytes {
    id_bytes(uuid(topic))
}

pub(super) fn topic_name(core: &Core, topic: TopicId) -> String {
    let topic = core.directory.by_id(uuid(topic));
    topic.map_or_else(String::new, |topic| topic.name.clone())
}

/// The topic that a reference names.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_ARGUMENT`.
pub(super) fn topic(core: &Core, reference: Option<&TopicRef>) -> Result<TopicId, ApiError> {
    let topic = core.directory.resolve(reference)?;
    Ok(TopicId(topic.id.as_u128()))
}

/// # Errors
/// `INVALID_ARGUMENT` for what can't be the number of a partition.
pub(super) fn partition(number: i32) -> Result<u32, ApiError> {
    let number = u32::try_from(number).ok();
    let number = number.filter(|number| *number < PARTITIONS_MAX);
    number.ok_or_else(|| ApiError::invalid("partition", "no topic has such a partition"))
}

pub(super) fn subscription(wanted: Option<v1::Subscription>) -> Result<Subscription, ApiError> {
    let wanted = wanted.unwrap_or_default();
    Subscription::new(wanted.topics, wanted.topic_pattern).map_err(|why| error(&why))
}

/// What a member says when it comes.
///
/// # Errors
/// `INVALID_ARGUMENT`, `INVALID_PATTERN`.
pub(super) fn join(hello: JoinHello, address: String) -> Result<Join, ApiError> {
    let assignor = match hello.assignor.as_str() {
        "" => None,
        name => Some(Assignor::parse(name).ok_or_else(|| {
            let known = Assignor::ALL.map(Assignor::name).join(", ");
            ApiError::invalid("assignor", format!("assignors are {known}"))
        })?),
    };
    let returning = match (hello.member_id, hello.member_epoch) {
        (None, None) => None,
        (Some(id), epoch) if !id.is_empty() => Some((Arc::from(id), epoch.unwrap_or(0))),
        _ => {
            return Err(ApiError::invalid(
                "member_id",
                "a member that comes back sends its id and its epoch; a new one neither",
            ));
        }
    };
    Ok(Join {
        group: hello.group_id.into(),
        returning,
        new_id: Uuid::new_v4().to_string().into(),
        instance: hello.instance_id.map(Arc::from),
        subscription: subscription(hello.subscription)?,
        assignor,
        session_ms: hello.session_timeout_ms,
        rebalance_ms: hello.rebalance_timeout_ms,
        poll_ms: hello.max_poll_interval_ms,
        client_id: hello.client_id.into(),
        address: address.into(),
        rack: hello.hello.unwrap_or_default().rack.into(),
        owned: parts(&hello.owned)?,
    })
}

fn parts(topics: &[TopicPartitions]) -> Result<Parts, ApiError> {
    let count: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    if count > ITEMS_MAX {
        return Err(ApiError::invalid("owned", "too many partitions"));
    }
    let mut parts = Parts::default();
    for of_topic in topics {
        let topic = topic_id(&of_topic.topic_id)
            .ok_or_else(|| ApiError::invalid("owned.topic_id", "a topic id has 16 bytes"))?;
        let topic = TopicId(topic.as_u128());
        for number in &of_topic.partitions {
            let partition = partition(*number)?;
            parts.insert(Tp { topic, partition });
        }
    }
    Ok(parts)
}

pub(super) fn topic_partitions(core: &Core, parts: &Parts) -> Vec<TopicPartitions> {
    let topics = parts.topics().map(|(topic, numbers)| TopicPartitions {
        topic_id: bytes(topic),
        topic: topic_name(core, topic),
        partitions: numbers.iter().map(|number| *number as i32).collect(),
    });
    topics.collect()
}

fn start(start: Start) -> StartPosition {
    StartPosition {
        topic_id: bytes(start.tp.topic),
        partition: start.tp.partition as i32,
        offset: start.committed.map(|(offset, _)| offset),
        leader_epoch: start.committed.and_then(|(_, epoch)| epoch),
    }
}

/// What a member is told. `Left` is the end of the stream, without a message.
pub(super) fn message(
    core: &Core,
    message: Message,
    coordinator_epoch: u64,
) -> Option<join_response::Kind> {
    Some(match message {
        Message::Welcome {
            member,
            assignor,
            session_ms,
            rebalance_ms,
            poll_ms,
        } => join_response::Kind::Hello(v1::JoinHelloAck {
            hello: Some(super::super::produce_stream::our_hello(core)),
            member_id: member.to_string(),
            assignor: assignor.name().to_owned(),
            heartbeat_interval_ms: (session_ms / 4).clamp(100, 5_000),
            session_timeout_ms: session_ms,
            rebalance_timeout_ms: rebalance_ms,
            max_poll_interval_ms: poll_ms,
            coordinator_epoch: coordinator_epoch as i64,
        }),
        Message::Beat => join_response::Kind::Beat(v1::JoinBeat {}),
        Message::Assignment {
            epoch,
            parts,
            starts,
        } => join_response::Kind::Assignment(JoinAssignment {
            member_epoch: epoch,
            partitions: topic_partitions(core, &parts),
            starts: starts.into_iter().map(start).collect(),
        }),
        Message::End(why) => failure(&error(&why)),
        Message::Left => return None,
    })
}

pub(super) fn failure(error: &ApiError) -> join_response::Kind {
    let error = Some(error.to_item());
    join_response::Kind::Failure(JoinFailure { error })
}

/// Which offsets a call means.
///
/// # Errors
/// `UNKNOWN_TOPIC`, `INVALID_ARGUMENT`.
pub(super) fn which(core: &Core, topics: &[FetchOffsetsTopic]) -> Result<Which, ApiError> {
    if topics.is_empty() {
        return Ok(Which::All);
    }
    let count: usize = topics.iter().map(|one| one.partitions.len().max(1)).sum();
    if count > ITEMS_MAX {
        let why = format!("a call has at most {ITEMS_MAX} partitions");
        return Err(ApiError::invalid("topics", why));
    }
    let mut which = Vec::with_capacity(topics.len());
    for wanted in topics {
        let topic = topic(core, wanted.topic.as_ref())?;
        let numbers = wanted.partitions.iter().map(|number| partition(*number));
        let numbers: Vec<u32> = numbers.collect::<Result<_, _>>()?;
        which.push((topic, (!numbers.is_empty()).then_some(numbers)));
    }
    Ok(Which::These(which))
}

pub(super) fn item_result(result: Result<Tp, (Tp, Error)>) -> CommitResult {
    let (tp, why) = match result {
        Ok(tp) => (tp, None),
        Err((tp, why)) => (tp, Some(error(&why).to_item())),
    };
    CommitResult {
        topic_id: bytes(tp.topic),
        partition: tp.partition as i32,
        error: why,
    }
}

fn state(state: State) -> i32 {
    let state = match state {
        State::Empty => GroupState::Empty,
        State::Assigning => GroupState::Assigning,
        State::Reconciling => GroupState::Reconciling,
        State::Stable => GroupState::Stable,
    };
    state.into()
}

pub(super) fn summary(core: &Core, summary: &Summary) -> GroupSummary {
    GroupSummary {
        group_id: summary.group.to_string(),
        state: state(summary.state),
        assignor: summary.assignor.name().to_owned(),
        members: summary.members as i32,
        coordinator_id: core.cluster.me(),
    }
}

pub(super) fn member(core: &Core, member: &MemberView) -> GroupMember {
    let topics = member.subscription.topics.iter();
    let pattern = member.subscription.pattern.as_deref();
    GroupMember {
        member_id: member.id.to_string(),
        instance_id: member.instance.as_deref().map(str::to_owned),
        client_id: member.client_id.to_string(),
        client_address: member.address.to_string(),
        rack: member.rack.to_string(),
        member_epoch: member.epoch,
        subscription: Some(v1::Subscription {
            topics: topics.map(|name| name.to_string()).collect(),
            topic_pattern: pattern.map(str::to_owned),
        }),
        assigned: topic_partitions(core, &member.held),
        target: topic_partitions(core, &member.target),
        connected: member.connected,
        session_timeout_ms: member.session_ms,
    }
}
