//! One `Join` stream: connects, says hello, and passes on what the coordinator says until it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use timberline_proto::error::ApiError;
use timberline_proto::v1;
use timberline_proto::v1::join_response::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::core::{Down, Tp, Welcome};
use crate::client::Client;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::types::TopicId;

/// Messages on their way up: heartbeats, each of which is answered before many follow.
pub(crate) const UP_MAX: usize = 64;

#[derive(Debug)]
pub(crate) enum News {
    Said(Down),
    /// Names of the topics in what follows.
    Names(Vec<(TopicId, Arc<str>)>),
    /// It is over, by itself and in order or not; nothing follows.
    Ended(bool),
}

/// Runs one stream to its end. `generation` tells it from the one before.
pub(crate) async fn run(
    client: Client,
    address: Arc<str>,
    requests: mpsc::Receiver<v1::JoinRequest>,
    generation: u64,
    events: mpsc::Sender<(u64, News)>,
) {
    let in_order = match talk(&client, &address, requests, generation, &events).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, %address, "the stream to the group's coordinator ended");
            client.leave(&address);
            false
        }
    };
    // Without a driver nobody wants to know.
    let _ = events.send((generation, News::Ended(in_order))).await;
}

async fn talk(
    client: &Client,
    address: &str,
    requests: mpsc::Receiver<v1::JoinRequest>,
    generation: u64,
    events: &mpsc::Sender<(u64, News)>,
) -> Result<()> {
    let failed = |status: tonic::Status| Error::from_status(address, &status);
    let connection = Connection::open(address, client.options()).await?;
    let mut service = connection.group();
    let joined = service.join(ReceiverStream::new(requests)).await;
    let mut incoming = joined.map_err(failed)?.into_inner();
    while let Some(message) = incoming.message().await.map_err(failed)? {
        let Some(kind) = message.kind else { continue };
        let (names, said) = read(kind);
        if !names.is_empty() && events.send((generation, News::Names(names))).await.is_err() {
            return Ok(());
        }
        if events.send((generation, News::Said(said))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn millis(ms: i64) -> Duration {
    // A broker that says nonsense does not make a busy loop.
    Duration::from_millis(ms.clamp(10, 86_400_000) as u64)
}

fn read(kind: Kind) -> (Vec<(TopicId, Arc<str>)>, Down) {
    let said = match kind {
        Kind::Hello(hello) => Down::Welcome(Welcome {
            member: hello.member_id,
            heartbeat: millis(hello.heartbeat_interval_ms),
            session: millis(hello.session_timeout_ms),
            rebalance: millis(hello.rebalance_timeout_ms),
        }),
        Kind::Beat(_) => Down::Beat,
        Kind::Assignment(assignment) => return read_assignment(assignment),
        Kind::Failure(failure) => {
            Down::Failure(ApiError::from_item(&failure.error.unwrap_or_default()))
        }
        Kind::GoAway(_) => Down::GoAway,
    };
    (Vec::new(), said)
}

fn read_assignment(assignment: v1::JoinAssignment) -> (Vec<(TopicId, Arc<str>)>, Down) {
    let mut names = Vec::new();
    let mut partitions = BTreeSet::new();
    for of_topic in assignment.partitions {
        let Some(topic) = TopicId::from_wire(&of_topic.topic_id) else {
            continue;
        };
        names.push((topic, of_topic.topic.into()));
        let parts = of_topic.partitions.into_iter();
        partitions.extend(parts.map(|partition| Tp { topic, partition }));
    }
    let start = |start: v1::StartPosition| {
        let topic = TopicId::from_wire(&start.topic_id)?;
        let partition = start.partition;
        Some((Tp { topic, partition }, start.offset))
    };
    let starts: BTreeMap<_, _> = assignment.starts.into_iter().filter_map(start).collect();
    let said = Down::Assignment {
        epoch: assignment.member_epoch,
        partitions,
        starts,
    };
    (names, said)
}

/// Partitions as the wire groups them.
pub(crate) fn by_topic(parts: &[Tp]) -> Vec<v1::TopicPartitions> {
    let mut topics: BTreeMap<TopicId, Vec<i32>> = BTreeMap::new();
    for tp in parts {
        topics.entry(tp.topic).or_default().push(tp.partition);
    }
    let topics = topics.into_iter();
    let topics = topics.map(|(topic, partitions)| v1::TopicPartitions {
        topic_id: topic.0.to_vec().into(),
        topic: String::new(),
        partitions,
    });
    topics.collect()
}
