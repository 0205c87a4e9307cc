//! Unary calls, at the group's coordinator.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    CommitRequest, CommitResponse, CommitResult, CommittedOffset, DeleteGroupRequest,
    DeleteGroupResponse, DeleteOffsetsRequest, DeleteOffsetsResponse, DeleteOffsetsResult,
    DescribeGroupRequest, DescribeGroupResponse, FetchOffsetsRequest, FetchOffsetsResponse,
    GroupPartition, ListGroupsRequest, ListGroupsResponse, ResetOffsetsRequest,
    ResetOffsetsResponse,
};

use super::{convert, lag};
use crate::core::Core;
use crate::groups::core::api::{Answer, CommitItem, Description, Input};
use crate::groups::limits::ITEMS_MAX;
use crate::groups::parts::Tp;
use crate::groups::record::Committed;
use crate::groups::serve::Handle;
use crate::metadata::table::id_bytes;

fn check_count(count: usize) -> Result<(), ApiError> {
    if count == 0 || count > ITEMS_MAX {
        let why = format!("a call has 1 to {ITEMS_MAX} items");
        return Err(ApiError::invalid("items", why));
    }
    Ok(())
}

/// An answer of another kind than the question is a defect.
fn unexpected(answer: Answer) -> ApiError {
    match answer {
        Answer::Failed(error) => convert::error(&error),
        _ => ApiError::new(Reason::Internal, "the coordinator answered something else"),
    }
}

pub(super) async fn commit(
    core: &Arc<Core>,
    handle: &Handle,
    request: &CommitRequest,
) -> Result<CommitResponse, ApiError> {
    check_count(request.items.len())?;
    let member = match (&request.member_id, request.member_epoch) {
        (None, None) => None,
        (Some(id), Some(epoch)) => Some((Arc::from(id.as_str()), epoch)),
        _ => {
            return Err(ApiError::invalid(
                "member_epoch",
                "member_id and member_epoch go together",
            ));
        }
    };
    // Items that name nothing are answered here, the others by the coordinator.
    let mut results = vec![CommitResult::default(); request.items.len()];
    let mut places = Vec::with_capacity(request.items.len());
    let mut items = Vec::with_capacity(request.items.len());
    for (at, item) in request.items.iter().enumerate() {
        let named = convert::topic(core, item.topic.as_ref())
            .and_then(|topic| Ok((topic, convert::partition(item.partition)?)));
        match named {
            Ok((topic, partition)) => {
                places.push(at);
                items.push(CommitItem {
                    tp: Tp { topic, partition },
                    offset: item.offset,
                    leader_epoch: item.leader_epoch,
                    metadata: item.metadata.as_str().into(),
                    rewind: item.rewind,
                    refused: None,
                });
            }
            Err(error) => {
                results[at].partition = item.partition;
                results[at].error = Some(error.to_item());
            }
        }
    }
    if items.is_empty() {
        return Ok(CommitResponse { results });
    }
    lag::refuse_beyond_end(core, &mut items).await;
    let group = Arc::from(request.group_id.as_str());
    let answer = handle.call(|call| Input::Commit {
        call,
        group,
        member,
        items,
    });
    match answer.await? {
        Answer::Items(answered) => {
            for (at, result) in places.into_iter().zip(answered) {
                results[at] = convert::item_result(result);
            }
            Ok(CommitResponse { results })
        }
        other => Err(unexpected(other)),
    }
}

pub(super) async fn fetch_offsets(
    core: &Arc<Core>,
    handle: &Handle,
    request: &FetchOffsetsRequest,
) -> Result<FetchOffsetsResponse, ApiError> {
    let which = convert::which(core, &request.topics)?;
    let group = Arc::from(request.group_id.as_str());
    let answer = handle.call(|call| Input::Fetch { call, group, which });
    let offsets = match answer.await? {
        Answer::Offsets(offsets) => offsets,
        other => return Err(unexpected(other)),
    };
    let mut names = HashMap::new();
    let offsets = offsets.into_iter().map(|(tp, committed)| {
        let name = names
            .entry(tp.topic)
            .or_insert_with(|| convert::topic_name(core, tp.topic));
        let mut offset = CommittedOffset {
            topic_id: id_bytes(convert::uuid(tp.topic)),
            topic: name.clone(),
            partition: tp.partition as i32,
            ..CommittedOffset::default()
        };
        if let Some(committed) = committed {
            offset.offset = Some(committed.offset);
            offset.leader_epoch = committed.leader_epoch;
            offset.metadata = committed.metadata.into();
            offset.committed_at_ms = Some(committed.at_ms);
        }
        offset
    });
    Ok(FetchOffsetsResponse {
        offsets: offsets.collect(),
    })
}

pub(super) async fn reset_offsets(
    core: &Arc<Core>,
    handle: &Handle,
    request: &ResetOffsetsRequest,
) -> Result<ResetOffsetsResponse, ApiError> {
    check_count(request.items.len())?;
    let before = match describe(handle, &request.group_id).await {
        Ok(description) if description.summary.members > 0 => {
            let members = description.summary.members;
            return Err(convert::error(&crate::groups::error::Error::NotEmpty(
                members,
            )));
        }
        Ok(description) => description.offsets.into_iter().collect(),
        // A group may begin with where it is to begin.
        Err(error) if error.reason == Some(Reason::UnknownGroup) => HashMap::new(),
        Err(error) => return Err(error),
    };
    let mut results = lag::resolve_reset(core, &request.items, &before).await?;
    if request.validate_only {
        return Ok(ResetOffsetsResponse {
            results: results.into_iter().map(|(_, result)| result).collect(),
        });
    }
    let good = |(tp, result): &(Option<Tp>, _)| {
        let result: &timberline_proto::v1::ResetOffsetsResult = result;
        let fine = result.error.is_none();
        tp.filter(|_| fine).map(|tp| (tp, result.offset))
    };
    let offsets: Vec<(Tp, i64)> = results.iter().filter_map(good).collect();
    if offsets.is_empty() {
        return Ok(ResetOffsetsResponse {
            results: results.into_iter().map(|(_, result)| result).collect(),
        });
    }
    let group = Arc::from(request.group_id.as_str());
    let answer = handle.call(|call| Input::Reset {
        call,
        group,
        offsets,
    });
    let answered = match answer.await? {
        Answer::Items(answered) => answered,
        other => return Err(unexpected(other)),
    };
    let pending = results.iter_mut().filter(|one| good(one).is_some());
    for ((_, result), answered) in pending.zip(answered) {
        result.error = answered
            .err()
            .map(|(_, why)| convert::error(&why).to_item());
    }
    Ok(ResetOffsetsResponse {
        results: results.into_iter().map(|(_, result)| result).collect(),
    })
}

/// Groups of the coordinators on this broker.
pub(super) async fn list_here(
    core: &Arc<Core>,
    request: &ListGroupsRequest,
) -> Result<ListGroupsResponse, ApiError> {
    let handles = core.groups.handles();
    let asked = handles.iter().map(|handle| {
        let prefix = request.prefix.clone();
        handle.call(|call| Input::List { call, prefix })
    });
    let mut response = ListGroupsResponse::default();
    for answer in join_all(asked).await {
        match answer {
            Ok(Answer::Groups(groups)) => {
                let groups = groups.iter().map(|one| convert::summary(core, one));
                response.groups.extend(groups);
            }
            Ok(other) => response.errors.push(unexpected(other).to_item()),
            Err(error) => response.errors.push(error.to_item()),
        }
    }
    Ok(response)
}

async fn describe(handle: &Handle, group: &str) -> Result<Description, ApiError> {
    let group = Arc::from(group);
    match handle.call(|call| Input::Describe { call, group }).await? {
        Answer::Description(description) => Ok(*description),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn describe_group(
    core: &Arc<Core>,
    handle: &Handle,
    request: &DescribeGroupRequest,
) -> Result<DescribeGroupResponse, ApiError> {
    let description = describe(handle, &request.group_id).await?;
    let members = description.members.iter();
    let summary = convert::summary(core, &description.summary);
    let mut response = DescribeGroupResponse {
        group_id: summary.group_id,
        state: summary.state,
        assignor: summary.assignor,
        group_epoch: description.epoch,
        coordinator_id: summary.coordinator_id,
        members: members.map(|one| convert::member(core, one)).collect(),
        partitions: partitions(core, &description),
    };
    if !request.no_lag {
        lag::add(core, &mut response.partitions).await;
    }
    Ok(response)
}

/// Every partition that is held or has an offset.
fn partitions(core: &Core, description: &Description) -> Vec<GroupPartition> {
    let mut all: std::collections::BTreeMap<Tp, (Option<&str>, Option<&Committed>)> =
        std::collections::BTreeMap::new();
    for member in &description.members {
        for tp in member.held.iter() {
            all.entry(tp).or_default().0 = Some(&member.id);
        }
    }
    for (tp, committed) in &description.offsets {
        all.entry(*tp).or_default().1 = Some(committed);
    }
    let mut names = HashMap::new();
    all.into_iter()
        .map(|(tp, (member, committed))| {
            let name = names
                .entry(tp.topic)
                .or_insert_with(|| convert::topic_name(core, tp.topic));
            GroupPartition {
                topic_id: id_bytes(convert::uuid(tp.topic)),
                topic: name.clone(),
                partition: tp.partition as i32,
                member_id: member.unwrap_or_default().to_owned(),
                committed_offset: committed.map(|one| one.offset),
                committed_at_ms: committed.map(|one| one.at_ms),
                metadata: committed.map_or_else(String::new, |one| one.metadata.to_string()),
                ..GroupPartition::default()
            }
        })
        .collect()
}

pub(super) async fn delete_group(
    _core: &Arc<Core>,
    handle: &Handle,
    request: &DeleteGroupRequest,
) -> Result<DeleteGroupResponse, ApiError> {
    let group = Arc::from(request.group_id.as_str());
    match handle
        .call(|call| Input::DeleteGroup { call, group })
        .await?
    {
        Answer::Done => Ok(DeleteGroupResponse {}),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn delete_offsets(
    core: &Arc<Core>,
    handle: &Handle,
    request: &DeleteOffsetsRequest,
) -> Result<DeleteOffsetsResponse, ApiError> {
    check_count(request.topics.len())?;
    let which = convert::which(core, &request.topics)?;
    let group = Arc::from(request.group_id.as_str());
    let answer = handle.call(|call| Input::DeleteOffsets { call, group, which });
    match answer.await? {
        Answer::Items(answered) => {
            let results = answered.into_iter().map(|one| {
                let result = convert::item_result(one);
                DeleteOffsetsResult {
                    topic_id: result.topic_id,
                    partition: result.partition,
                    error: result.error,
                }
            });
            Ok(DeleteOffsetsResponse {
                results: results.collect(),
            })
        }
        other => Err(unexpected(other)),
    }
}
