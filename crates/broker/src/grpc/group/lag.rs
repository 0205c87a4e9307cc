//! Offsets against the ends of partitions: lag, commits that are too far, and where a reset leads.

use std::collections::HashMap;
use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{
    GroupPartition, ResetOffsetsItem, ResetOffsetsResult, reset_offsets_item::To,
};
use uuid::Uuid;

use super::convert;
use crate::core::Core;
use crate::groups::core::api::CommitItem;
use crate::groups::error::Error;
use crate::groups::limits::ITEMS_MAX;
use crate::groups::parts::{TopicId, Tp};
use crate::groups::record::Committed;
use crate::groups::serve::positions::{Position, Question, ask};
use crate::metadata::table::{id_bytes, topic_id};

/// Marks items whose offset lies beyond the end. Where a replica here has as much already nobody is asked; where the leader
/// can't be asked the item is let pass: its client may have read what only the leader that died had told it was committed.
pub(super) async fn refuse_beyond_end(core: &Arc<Core>, items: &mut [CommitItem]) {
    let mut far = Vec::new();
    let mut questions = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let topic = convert::uuid(item.tp.topic);
        let number = item.tp.partition as i32;
        let here = core.directory.by_id(topic);
        let here = here.and_then(|topic| topic.hosted_here(number));
        let known = here.map_or(0, |partition| partition.log.high_watermark());
        if item.offset > known {
            far.push(at);
            questions.push(question(topic, number));
        }
    }
    if far.is_empty() {
        return;
    }
    for (at, answer) in far.into_iter().zip(ask(core, &questions).await) {
        let item = &mut items[at];
        if let Ok(Position { end, .. }) = answer
            && item.offset > end
        {
            let offset = item.offset;
            item.refused = Some(Error::BeyondEnd { offset, end });
        }
    }
}

fn question(topic: Uuid, partition: i32) -> Question {
    Question {
        topic,
        partition,
        age_of: None,
        time_ms: None,
    }
}

/// Adds ends and lag.
pub(super) async fn add(core: &Arc<Core>, partitions: &mut [GroupPartition]) {
    let questions: Vec<Question> = partitions
        .iter()
        .map(|one| Question {
            // Without an offset the group is behind by all there is.
            age_of: Some(one.committed_offset.unwrap_or(0)),
            ..question(topic_id(&one.topic_id).unwrap_or_default(), one.partition)
        })
        .collect();
    for (one, answer) in partitions.iter_mut().zip(ask(core, &questions).await) {
        match answer {
            Ok(position) => {
                let from = one.committed_offset.unwrap_or(0).max(position.log_start);
                let lag = (position.end - from).max(0);
                one.log_start_offset = Some(position.log_start);
                one.end_offset = Some(position.end);
                one.lag = Some(lag);
                one.lag_ms = Some(if lag == 0 {
                    0
                } else {
                    position.age_ms.unwrap_or(0)
                });
            }
            Err(error) => one.error = Some(error.to_item()),
        }
    }
}

/// What each partition of a reset would be set to; an item without a partition to name has none.
///
/// # Errors
/// `INVALID_ARGUMENT` for too many partitions.
pub(super) async fn resolve_reset(
    core: &Arc<Core>,
    items: &[ResetOffsetsItem],
    before: &HashMap<Tp, Committed>,
) -> Result<Vec<(Option<Tp>, ResetOffsetsResult)>, ApiError> {
    let mut results = Vec::new();
    let mut asked: Vec<(usize, To, Question)> = Vec::new();
    for item in items {
        match targets(core, item) {
            Err(error) => {
                let result = ResetOffsetsResult {
                    partition: item.partitions.first().copied().unwrap_or(0),
                    error: Some(error.to_item()),
                    ..ResetOffsetsResult::default()
                };
                results.push((None, result));
            }
            Ok((topic, name, to, numbers)) => {
                for partition in numbers {
                    let topic_id = TopicId(topic.as_u128());
                    let tp = Tp {
                        topic: topic_id,
                        partition,
                    };
                    let time_ms = match &to {
                        To::TimestampMs(time) => Some(*time),
                        _ => None,
                    };
                    let number = partition as i32;
                    let question = Question {
                        time_ms,
                        ..question(topic, number)
                    };
                    asked.push((results.len(), to, question));
                    let result = ResetOffsetsResult {
                        topic_id: id_bytes(topic),
                        topic: name.clone(),
                        partition: number,
                        offset_before: before.get(&tp).map(|one| one.offset),
                        ..ResetOffsetsResult::default()
                    };
                    results.push((Some(tp), result));
                    if results.len() > ITEMS_MAX {
                        let why = format!("a call has at most {ITEMS_MAX} partitions");
                        return Err(ApiError::invalid("items", why));
                    }
                }
            }
        }
    }
    let questions: Vec<Question> = asked.iter().map(|(.., question)| *question).collect();
    let answers = ask(core, &questions).await;
    for ((at, to, _), answer) in asked.into_iter().zip(answers) {
        let result = &mut results[at].1;
        let place = answer.and_then(|position| place(&to, &position, result.offset_before));
        match place {
            Ok(offset) => result.offset = offset,
            Err(error) => result.error = Some(error.to_item()),
        }
    }
    Ok(results)
}

type Targets = (Uuid, String, To, Vec<u32>);

fn targets(core: &Core, item: &ResetOffsetsItem) -> Result<Targets, ApiError> {
    let topic = core.directory.resolve(item.topic.as_ref())?;
    let Some(to) = item
        .to
        .filter(|to| !matches!(to, To::Earliest(false) | To::Latest(false)))
    else {
        return Err(ApiError::invalid(
            "to",
            "set one of earliest, latest, timestamp_ms, offset and shift_by",
        ));
    };
    for number in &item.partitions {
        topic.check_number(*number)?;
    }
    let numbers = match item.partitions.is_empty() {
        true => (0..topic.partition_count() as u32).collect(),
        false => item
            .partitions
            .iter()
            .map(|number| *number as u32)
            .collect(),
    };
    Ok((topic.id, topic.name.clone(), to, numbers))
}

fn place(to: &To, position: &Position, before: Option<i64>) -> Result<i64, ApiError> {
    let (low, high) = (position.log_start, position.end);
    match to {
        To::Earliest(_) => Ok(low),
        To::Latest(_) => Ok(high),
        To::TimestampMs(_) => Ok(position.at_time.unwrap_or(high)),
        To::Offset(offset) if (low..=high).contains(offset) => Ok(*offset),
        To::Offset(offset) => Err(ApiError::new(
            Reason::OffsetOutOfRange,
            format!("offset {offset} is not within {low}..{high}"),
        )
        .with("log_start", low)
        .with("high_watermark", high)),
        To::ShiftBy(by) => match before {
            Some(before) => Ok(before.saturating_add(*by).clamp(low, high)),
            None => Err(ApiError::new(
                Reason::InvalidArgument,
                "nothing is committed that could be shifted; name an offset, earliest or latest",
            )
            .with_field("to")),
        },
    }
}
