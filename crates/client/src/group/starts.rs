//! Where a member begins in partitions that it was given.
//!
//! At the committed offset; else, in what was there when the member came, as the reset policy says, and in what was added later at the
//! first record there is: it is all new to the group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1;
use tokio::sync::oneshot;

use super::core::{Committed, Tp};
use super::listen::Listening;
use super::types::{AssignedPartition, TopicPartition};
use crate::client::{Client, by_id};
use crate::consumer::Position;
use crate::error::{Error, Result};
use crate::options::OffsetReset;
use crate::types::TopicId;

/// Between two attempts after the client's own retries gave up.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Attempts to find a topic that a broker does not know.
const UNKNOWN_TOPIC_TRIES: u32 = 20;

/// Partitions that there were when the member came, by topic.
pub(crate) type Known = HashMap<TopicId, i32>;

/// How many partitions the subscribed topics have now. Of a pattern that the broker evaluates, all topics are candidates.
pub(crate) async fn known(client: &Client, topics: &[String], all: bool) -> Result<Known> {
    let mut known = Known::new();
    let mut add = |info: &crate::types::TopicInfo| {
        known.insert(info.topic_id, info.partitions.len() as i32);
    };
    if all {
        let listed = client.admin().list_topics(false).await?;
        listed.iter().for_each(&mut add);
        return Ok(known);
    }
    for topic in topics {
        match client.fetch_topic(topic).await {
            Ok(view) => add(&view.info),
            // The coordinator says so as well, if it is so.
            Err(error) if !error.is_retriable() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(known)
}

/// A partition whose beginning is known, or why it is not.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) tp: Tp,
    pub(crate) topic: Arc<str>,
    pub(crate) committed: Option<i64>,
    pub(crate) offset: Result<i64>,
    /// The policy chose it: the group has to know of it, or the next member would choose again.
    pub(crate) chosen: bool,
}

pub(crate) struct Resolver {
    pub(crate) client: Client,
    pub(crate) group: String,
    pub(crate) policy: OffsetReset,
    pub(crate) known: Arc<Known>,
    pub(crate) listening: Option<Listening>,
}

impl Resolver {
    /// Finds out where to begin, however long that takes.
    pub(crate) async fn resolve(&self, parts: Vec<(Tp, Arc<str>, Committed)>) -> Vec<Beginning> {
        let mut parts = parts;
        self.ask_for_unknown(&mut parts).await;
        let committed = |committed: Committed| match committed {
            Committed::At(offset) => Some(offset),
            Committed::Nothing | Committed::Unknown => None,
        };
        let asked = parts.iter().map(|(tp, topic, at)| AssignedPartition {
            partition: TopicPartition::new(topic.clone(), tp.partition),
            committed: committed(*at),
            start: None,
        });
        let mut asked: Vec<AssignedPartition> = asked.collect();
        if let Some(listening) = &self.listening {
            let (reply, told) = oneshot::channel();
            listening.assigned(asked.clone(), reply);
            // A listener that took too long has no say.
            asked = told.await.unwrap_or(asked);
        }
        let mut found = Vec::with_capacity(parts.len());
        let mut open: BTreeMap<TopicId, (Arc<str>, Vec<Open>)> = BTreeMap::new();
        for ((tp, topic, at), wanted) in parts.into_iter().zip(asked) {
            let committed = committed(at);
            let (from, chosen) = match (wanted.start, committed) {
                (Some(start), _) => (Some(start), false),
                (None, Some(offset)) => (Some(Position::Offset(offset)), false),
                (None, None) => (self.by_policy(&tp), true),
            };
            let beginning = |offset| Beginning {
                tp,
                topic: topic.clone(),
                committed,
                offset,
                chosen: chosen && from == Some(Position::Latest),
            };
            match from {
                Some(Position::Offset(offset)) => found.push(beginning(Ok(offset))),
                Some(position) => {
                    let (_, of_topic) = open
                        .entry(tp.topic)
                        .or_insert_with(|| (topic.clone(), Vec::new()));
                    of_topic.push((position, beginning(Ok(0))));
                }
                None => found.push(beginning(Err(Error::NoCommittedOffset {
                    group: self.group.clone(),
                    topic: topic.to_string(),
                    partition: tp.partition,
                }))),
            }
        }
        for (id, (topic, of_topic)) in open {
            found.extend(self.look_up(id, &topic, of_topic).await);
        }
        found
    }

    /// Where to begin where nothing is committed; `None`: the application is to decide.
    fn by_policy(&self, tp: &Tp) -> Option<Position> {
        let was_there = self
            .known
            .get(&tp.topic)
            .is_some_and(|&count| tp.partition < count);
        match self.policy {
            OffsetReset::Latest if was_there => Some(Position::Latest),
            OffsetReset::Error if was_there => None,
            _ => Some(Position::Earliest),
        }
    }

    async fn look_up(&self, id: TopicId, topic: &str, open: Vec<Open>) -> Vec<Beginning> {
        let items: Vec<_> = open
            .iter()
            .map(|(at, one)| (one.tp.partition, *at))
            .collect();
        let mut unknown_for = 0;
        let offsets = loop {
            match self.client.offsets_of(topic, by_id(id.0), &items).await {
                // A topic is known to its group before it is known everywhere.
                Err(error)
                    if error.reason() == Some(Reason::UnknownTopic)
                        && unknown_for < UNKNOWN_TOPIC_TRIES =>
                {
                    unknown_for += 1;
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                }
                Err(error) if error.is_retriable() => {
                    tracing::warn!(%error, topic, "where to begin is not known yet");
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                }
                answer => break answer,
            }
        };
        let mut open: Vec<Beginning> = open.into_iter().map(|(_, one)| one).collect();
        match offsets {
            Ok(offsets) => {
                for (one, info) in open.iter_mut().zip(offsets) {
                    one.offset = Ok(info.offset);
                }
            }
            Err(error) => {
                for one in &mut open {
                    one.offset = Err(error.clone());
                    one.chosen = false;
                }
            }
        }
        open
    }

    /// Asks where the group stands in what the coordinator said nothing of.
    async fn ask_for_unknown(&self, parts: &mut [(Tp, Arc<str>, Committed)]) {
        let is_open = |at: &Committed| *at == Committed::Unknown;
        let open = parts.iter().filter(|(_, _, at)| is_open(at));
        let topics: Vec<_> = super::stream::by_topic(&open.map(|(tp, ..)| *tp).collect::<Vec<_>>())
            .into_iter()
            .map(|one| v1::FetchOffsetsTopic {
                topic: TopicId::from_wire(&one.topic_id).map(|id| by_id(id.0)),
                partitions: one.partitions,
            })
            .collect();
        if topics.is_empty() {
            return;
        }
        let request = v1::FetchOffsetsRequest {
            group_id: self.group.clone(),
            topics,
        };
        let answer = loop {
            let asked = self.client.call("FetchOffsets", |connection| {
                let request = request.clone();
                async move { connection.group().fetch_offsets(request).await }
            });
            match asked.await {
                Err(error) if error.is_retriable() => tokio::time::sleep(TRY_AGAIN_AFTER).await,
                answer => break answer.unwrap_or_default(),
            }
        };
        let mut told = HashMap::new();
        for one in answer.offsets {
            if let Some(error) = &one.error {
                tracing::debug!(error = %ApiError::from_item(error), "no committed offset");
            }
            if let Some(topic) = TopicId::from_wire(&one.topic_id) {
                let partition = one.partition;
                told.insert(Tp { topic, partition }, one.offset);
            }
        }
        for (tp, _, at) in parts.iter_mut().filter(|(_, _, at)| is_open(at)) {
            *at = match told.get(tp) {
                Some(Some(offset)) => Committed::At(*offset),
                _ => Committed::Nothing,
            };
        }
    }
}

/// A beginning that is asked for.
type Open = (Position, Beginning);
