//! Where partitions begin and end, and how old their records are: asked of whoever leads them, one call for each broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prost::Message;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use uuid::Uuid;

use crate::auth::Operation;
use crate::clock;
use crate::cluster::node;
use crate::core::Core;
use crate::errors;
use crate::metadata::leadership::Leadership;
use crate::metadata::table::id_bytes;

/// Partitions in one call between brokers.
const ITEMS_MAX: usize = 10_000;
/// How long another broker may take.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What is asked about one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    /// How old the record at this offset is.
    pub(crate) age_of: Option<i64>,
    /// Where the records of this time begin, ms since the epoch.
    pub(crate) time_ms: Option<i64>,
}

/// What its leader says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position {
    pub(crate) log_start: i64,
    /// The high watermark.
    pub(crate) end: i64,
    pub(crate) age_ms: Option<i64>,
    pub(crate) at_time: Option<i64>,
}

/// Answers in the order of the questions.
pub(crate) async fn ask(
    core: &Arc<Core>,
    questions: &[Question],
) -> Vec<Result<Position, ApiError>> {
    let mut by_leader: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    let mut answers: Vec<Result<Position, ApiError>> = Vec::with_capacity(questions.len());
    for (at, question) in questions.iter().enumerate() {
        let leader = core.cluster.leader_of(question.topic, question.partition);
        if let Some((_, leader)) = leader {
            by_leader.entry(leader).or_default().push(at);
        }
        let none = core
            .cluster
            .not_leader(question.topic, question.partition, None);
        answers.push(Err(none));
    }
    let calls = by_leader.iter().flat_map(|(&leader, places)| {
        let pieces = places.chunks(ITEMS_MAX);
        pieces.map(move |places| async move {
            let questions: Vec<Question> = places.iter().map(|at| questions[*at]).collect();
            (places, ask_leader(core, leader, questions).await)
        })
    });
    for (places, result) in join_all(calls).await {
        match result {
            Ok(results) => {
                for (at, result) in places.iter().zip(results) {
                    answers[*at] = result;
                }
            }
            Err(error) => {
                for at in places {
                    answers[*at] = Err(error.clone());
                }
            }
        }
    }
    answers
}

async fn ask_leader(
    core: &Arc<Core>,
    leader: i32,
    questions: Vec<Question>,
) -> Result<Vec<Result<Position, ApiError>>, ApiError> {
    let items = questions.into_iter().map(|question| pb::PositionsItem {
        topic_id: id_bytes(question.topic),
        partition: question.partition,
        age_of: question.age_of,
        timestamp_ms: question.time_ms,
    });
    let request = pb::PositionsRequest {
        items: items.collect(),
    };
    let response = if leader == core.cluster.me() {
        answer(core, request).await?
    } else {
        let peers = core.cluster.peers();
        let peers = peers.ok_or_else(|| {
            ApiError::new(Reason::UnknownBroker, "there are no other brokers here")
        })?;
        let request = pb::ForwardRequest {
            method: node::POSITIONS.to_owned(),
            payload: request.encode_to_vec().into(),
        };
        let payload = node::forwarded_within(peers, leader, request, ANSWER_WAIT).await?;
        pb::PositionsResponse::decode(payload)
            .map_err(|error| ApiError::new(Reason::MalformedMessage, error.to_string()))?
    };
    let results = response.results.into_iter().map(|result| {
        if let Some(error) = result.error {
            return Err(ApiError::from_item(&error));
        }
        Ok(Position {
            log_start: result.log_start_offset,
            end: result.end_offset,
            age_ms: result.age_ms,
            at_time: result.offset_at_time,
        })
    });
    Ok(results.collect())
}

/// Answers for partitions that are led here.
///
/// # Errors
/// `INVALID_ARGUMENT` for too many of them.
pub(crate) async fn answer(
    core: &Arc<Core>,
    request: pb::PositionsRequest,
) -> Result<pb::PositionsResponse, ApiError> {
    if request.items.len() > ITEMS_MAX {
        return Err(ApiError::invalid("items", "too many partitions"));
    }
    let core = Arc::clone(core);
    // Ages and times are read from segments.
    let results = tokio::task::spawn_blocking(move || {
        let one = |item| {
            look_up(&core, &item).unwrap_or_else(|error| pb::PositionsResult {
                error: Some(error.to_item()),
                ..pb::PositionsResult::default()
            })
        };
        request.items.into_iter().map(one).collect()
    });
    let results = results.await.map_err(|_| errors::gone())?;
    Ok(pb::PositionsResponse { results })
}

fn look_up(core: &Core, item: &pb::PositionsItem) -> Result<pb::PositionsResult, ApiError> {
    let topic = core.topic_by_id(Operation::Describe, &item.topic_id)?;
    let partition = core.readable(&topic, item.partition)?;
    let lead = partition.lead();
    if lead.here && !lead.settled {
        return Err(ApiError::new(
            Reason::OffsetNotAvailable,
            "the partition's new leader does not know its end yet",
        ));
    }
    let log = &partition.log;
    let storage = |error| errors::from_storage(&error);
    let end = log.high_watermark();
    let appended = match item.age_of {
        Some(offset) => log.append_time_of(offset).map_err(storage)?,
        None => None,
    };
    let at_time = match item.timestamp_ms {
        Some(time) => {
            let found = log.offset_for_time(time).map_err(storage)?;
            Some(found.map_or(end, |(offset, _)| offset))
        }
        None => None,
    };
    Ok(pb::PositionsResult {
        log_start_offset: log.log_start(),
        end_offset: end,
        age_ms: appended.map(|at| (clock::now_ms() - at).max(0)),
        offset_at_time: at_time,
        error: None,
    })
}
