//! A consumer that does what the protocol asks for, and reads nothing: it follows the coordinator, applies assignments at once,
//! and comes back with its id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::group_service_client::GroupServiceClient;
use timberline_proto::v1::*;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::*;

pub(super) type Tp = (Bytes, i32);

pub(super) fn groups(channel: Channel) -> GroupServiceClient<Channel> {
    GroupServiceClient::new(channel)
}

pub(super) fn api_error(status: &tonic::Status) -> ApiError {
    ApiError::from_status(status)
}

/// How a broker at an address is connected to.
pub(super) type Connect = Arc<dyn Fn(&str) -> Channel + Send + Sync>;

/// Where a group is coordinated, as any of these brokers says.
pub(super) async fn find(brokers: &[String], group: &str) -> Option<FindCoordinatorResponse> {
    find_by(&(Arc::new(channel) as Connect), brokers, group).await
}

async fn find_by(
    connect: &Connect,
    brokers: &[String],
    group: &str,
) -> Option<FindCoordinatorResponse> {
    for broker in brokers {
        let request = FindCoordinatorRequest {
            group_id: group.to_owned(),
        };
        if let Ok(found) = groups(connect(broker)).find_coordinator(request).await {
            return Some(found.into_inner());
        }
    }
    None
}

pub(super) fn wants(group: &str, topics: &[&str]) -> JoinHello {
    JoinHello {
        hello: Some(Hello {
            software: "test".to_owned(),
            protocol_version: 1,
            rack: String::new(),
        }),
        group_id: group.to_owned(),
        subscription: Some(Subscription {
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            topic_pattern: None,
        }),
        session_timeout_ms: 3_000,
        ..JoinHello::default()
    }
}

/// An open stream.
pub(super) struct Link {
    pub(super) up: mpsc::Sender<JoinRequest>,
    pub(super) down: Streaming<JoinResponse>,
}

impl Link {
    /// Sends a first message and waits for the first answer.
    pub(super) async fn open(
        to: Channel,
        first: join_request::Kind,
    ) -> Result<(Link, join_response::Kind), ApiError> {
        let (up, requests) = mpsc::channel(16);
        let first = JoinRequest { kind: Some(first) };
        up.send(first).await.unwrap();
        let down = groups(to).join(ReceiverStream::new(requests)).await;
        let mut down = down.map_err(|status| api_error(&status))?.into_inner();
        let answer = down.message().await.map_err(|status| api_error(&status))?;
        let kind = answer.and_then(|answer| answer.kind);
        let kind = kind.ok_or_else(|| ApiError::new(Reason::Draining, "the stream ended"))?;
        match kind {
            join_response::Kind::Failure(failure) => {
                // In band; the stream then ends OK.
                assert!(matches!(down.message().await, Ok(None)));
                Err(ApiError::from_item(&failure.error.unwrap()))
            }
            kind => Ok((Link { up, down }, kind)),
        }
    }

    pub(super) async fn say(&self, kind: join_request::Kind) -> bool {
        let request = JoinRequest { kind: Some(kind) };
        self.up.send(request).await.is_ok()
    }
}

#[derive(Clone, Default)]
pub(super) struct Held {
    pub(super) member: Option<String>,
    pub(super) epoch: i64,
    pub(super) parts: BTreeMap<Tp, Option<i64>>,
    /// Assignments that took something away.
    pub(super) revoked: usize,
    /// How often something was assigned that was not held.
    pub(super) granted: usize,
    pub(super) rejoined: usize,
    pub(super) failed: Option<Reason>,
}

pub(super) struct Consumer {
    pub(super) held: Arc<Mutex<Held>>,
    leave: watch::Sender<bool>,
    pub(super) brokers: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Consumer {
    /// Its process dies.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Consumer {
    pub(super) fn start(cluster: &Cluster, hello: JoinHello) -> Consumer {
        Consumer::start_by(Arc::new(channel), cluster.addresses(), hello)
    }

    pub(super) fn start_by(connect: Connect, brokers: Vec<String>, hello: JoinHello) -> Consumer {
        let held = Arc::new(Mutex::new(Held::default()));
        let brokers = Arc::new(Mutex::new(brokers));
        let (leave, leaving) = watch::channel(false);
        let task = tokio::spawn(run(
            connect,
            hello,
            Arc::clone(&held),
            Arc::clone(&brokers),
            leaving,
        ));
        Consumer {
            held,
            leave,
            brokers,
            task,
        }
    }

    pub(super) fn now(&self) -> Held {
        self.held.lock().clone()
    }

    /// Leaves, and waits until the coordinator has said that it knows.
    pub(super) async fn leave(mut self) {
        self.leave.send_replace(true);
        (&mut self.task).await.unwrap();
    }
}

async fn run(
    connect: Connect,
    hello: JoinHello,
    held: Arc<Mutex<Held>>,
    brokers: Arc<Mutex<Vec<String>>>,
    mut leaving: watch::Receiver<bool>,
) {
    loop {
        let known = brokers.lock().clone();
        if let Some(found) = find_by(&connect, &known, &hello.group_id).await {
            match stream(connect(&found.address), &hello, &held, &mut leaving).await {
                Ok(true) => return,
                Ok(false) => held.lock().rejoined += 1,
                Err(error) => {
                    let mut held = held.lock();
                    match error.reason {
                        Some(Reason::MemberFenced) => *held = Held::default(),
                        Some(reason) if !reason.is_retriable() => {
                            held.failed = Some(reason);
                            return;
                        }
                        _ => {}
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One stream; whether the member has left.
async fn stream(
    to: Channel,
    hello: &JoinHello,
    held: &Mutex<Held>,
    leaving: &mut watch::Receiver<bool>,
) -> Result<bool, ApiError> {
    let mut hello = hello.clone();
    {
        let held = held.lock();
        if let Some(member) = &held.member {
            hello.member_id = Some(member.clone());
            hello.member_epoch = Some(held.epoch);
            let mut owned: BTreeMap<Bytes, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in held.parts.keys() {
                owned.entry(topic.clone()).or_default().push(*partition);
            }
            hello.owned = owned
                .into_iter()
                .map(|(topic_id, partitions)| TopicPartitions {
                    topic_id,
                    topic: String::new(),
                    partitions,
                })
                .collect();
        }
    }
    let first = join_request::Kind::Hello(hello);
    let (mut link, answer) = Link::open(to, first).await?;
    let join_response::Kind::Hello(welcome) = answer else {
        return Ok(false);
    };
    held.lock().member = Some(welcome.member_id);
    let beat = Duration::from_millis(welcome.heartbeat_interval_ms as u64);
    let mut beats = tokio::time::interval(beat);
    let mut applied = None;
    loop {
        tokio::select! {
            _ = beats.tick() => {
                let beat = JoinHeartbeat { applied_epoch: applied, since_poll_ms: 0 };
                if !link.say(join_request::Kind::Heartbeat(beat)).await {
                    return Ok(false);
                }
            }
            changed = leaving.changed() => {
                if changed.is_ok() {
                    link.say(join_request::Kind::Leave(JoinLeave::default())).await;
                }
            }
            message = link.down.message() => match message {
                Ok(Some(JoinResponse { kind: Some(kind) })) => match kind {
                    join_response::Kind::Assignment(assignment) => {
                        applied = Some(assignment.member_epoch);
                        apply(&mut held.lock(), assignment);
                        beats.reset_immediately();
                    }
                    join_response::Kind::Failure(failure) => {
                        return Err(ApiError::from_item(&failure.error.unwrap()));
                    }
                    join_response::Kind::GoAway(_) => return Ok(false),
                    join_response::Kind::Beat(_) | join_response::Kind::Hello(_) => {}
                },
                Ok(_) => return Ok(*leaving.borrow()),
                Err(_) => return Ok(false),
            },
        }
    }
}

fn apply(held: &mut Held, assignment: JoinAssignment) {
    let named: Vec<Tp> = assignment
        .partitions
        .iter()
        .flat_map(|topic| {
            let id = topic.topic_id.clone();
            topic.partitions.iter().map(move |one| (id.clone(), *one))
        })
        .collect();
    let before = held.parts.len();
    held.parts.retain(|tp, _| named.contains(tp));
    held.revoked += usize::from(held.parts.len() < before);
    held.granted += usize::from(!assignment.starts.is_empty());
    for start in assignment.starts {
        let tp = (start.topic_id, start.partition);
        held.parts.insert(tp, start.offset);
    }
    held.epoch = assignment.member_epoch;
    assert_eq!(held.parts.len(), named.len());
}

/// Waits until the consumers hold so many partitions, each once, evenly.
pub(super) async fn shared(consumers: &[&Consumer], partitions: usize) {
    until("the partitions are shared", async || {
        let held: Vec<_> = consumers.iter().map(|one| one.now().parts).collect();
        let mut all: Vec<&Tp> = held.iter().flat_map(BTreeMap::keys).collect();
        all.sort();
        all.dedup();
        let counts = held.iter().map(BTreeMap::len);
        let even = counts.clone().max()? - counts.clone().min()? <= 1;
        (all.len() == partitions && counts.sum::<usize>() == partitions && even).then_some(())
    })
    .await;
}
