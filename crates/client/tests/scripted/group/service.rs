//! A coordinator that says what the test has it say, and remembers the order of what it heard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use timberline_client::{ApiError, Reason};
use timberline_proto::v1;
use timberline_proto::v1::group_service_server::GroupService;
use timberline_proto::v1::join_request::Kind as Up;
use timberline_proto::v1::join_response::Kind as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::broker::TOPIC_ID;

/// What it heard, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// A hello: member id, and the partitions it names.
    Hello(Option<String>, Vec<i32>),
    Applied(i64),
    /// Partition, offset, rewind.
    Commit(i32, i64, bool),
    Leave(bool),
}

pub(crate) struct Script {
    pub(crate) heard: Vec<Heard>,
    pub(crate) hellos: Vec<v1::JoinHello>,
    pub(crate) committed: BTreeMap<i32, i64>,
    /// Commits are refused with these.
    pub(crate) refuse_commits: VecDeque<ApiError>,
    /// Neither hellos nor heartbeats are answered.
    pub(crate) silent: bool,
    pub(crate) since_poll_ms: i64,
    pub(crate) session_ms: i64,
    address: String,
    stream: Option<mpsc::UnboundedSender<Result<v1::JoinResponse, Status>>>,
    members: u32,
}

#[derive(Clone)]
pub(crate) struct Groups(pub(crate) Arc<Mutex<Script>>);

impl Groups {
    pub(crate) fn new(address: String) -> Groups {
        Groups(Arc::new(Mutex::new(Script {
            heard: Vec::new(),
            hellos: Vec::new(),
            committed: BTreeMap::new(),
            refuse_commits: VecDeque::new(),
            silent: false,
            since_poll_ms: 0,
            session_ms: 20_000,
            address,
            stream: None,
            members: 0,
        })))
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.lock());
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.0.lock().heard.clone()
    }

    pub(crate) fn say(&self, kind: Down) {
        let script = self.0.lock();
        let stream = script.stream.as_ref().expect("nobody has joined");
        let _ = stream.send(Ok(v1::JoinResponse { kind: Some(kind) }));
    }

    /// Gives these partitions; of those that are new, where the group stands.
    pub(crate) fn assign(&self, epoch: i64, partitions: &[i32], new: &[i32]) {
        let committed = self.0.lock().committed.clone();
        let start = |partition: &i32| v1::StartPosition {
            topic_id: TOPIC_ID.to_vec().into(),
            partition: *partition,
            offset: committed.get(partition).copied(),
            leader_epoch: None,
        };
        self.say(Down::Assignment(v1::JoinAssignment {
            member_epoch: epoch,
            partitions: vec![v1::TopicPartitions {
                topic_id: TOPIC_ID.to_vec().into(),
                topic: "t".to_owned(),
                partitions: partitions.to_vec(),
            }],
            starts: new.iter().map(start).collect(),
        }));
    }

    /// Ends the membership, and the stream in order.
    pub(crate) fn fail(&self, reason: Reason) {
        let error = Some(ApiError::new(reason, "scripted").to_item());
        self.say(Down::Failure(v1::JoinFailure { error }));
        self.0.lock().stream = None;
    }

    pub(crate) fn break_stream(&self) {
        let stream = self.0.lock().stream.take();
        let lost = Err(Status::unavailable("stream lost"));
        let _ = stream.expect("nobody has joined").send(lost);
    }

    /// Waits until this holds of what it heard.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Script) -> bool) {
        for _ in 0..10_000 {
            if holds(&self.0.lock()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never: {what}; heard {:?}", self.heard());
    }

    /// Waits for so many hellos in all.
    pub(crate) async fn joined(&self, times: usize) {
        let joined = |script: &Script| script.hellos.len() >= times && script.stream.is_some();
        self.until("a hello", joined).await;
    }

    pub(crate) async fn applied(&self, epoch: i64) {
        let applied = Heard::Applied(epoch);
        self.until("an assignment is applied", |script| {
            script.heard.contains(&applied)
        })
        .await;
    }
}

fn unscripted<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not scripted"))
}

impl Script {
    fn hear(&mut self, kind: Up) -> Option<Down> {
        match kind {
            Up::Hello(hello) => {
                let owned = hello.owned.iter();
                let owned = owned.flat_map(|topic| topic.partitions.clone()).collect();
                self.heard
                    .push(Heard::Hello(hello.member_id.clone(), owned));
                let member_id = hello.member_id.clone().unwrap_or_else(|| {
                    self.members += 1;
                    format!("m{}", self.members)
                });
                self.hellos.push(hello);
                let answered = !self.silent;
                answered.then_some(Down::Hello(v1::JoinHelloAck {
                    hello: None,
                    member_id,
                    assignor: "sticky".to_owned(),
                    heartbeat_interval_ms: self.session_ms / 40,
                    session_timeout_ms: self.session_ms,
                    rebalance_timeout_ms: 40_000,
                    max_poll_interval_ms: 60_000,
                    coordinator_epoch: 1,
                }))
            }
            Up::Heartbeat(beat) => {
                self.since_poll_ms = beat.since_poll_ms;
                if let Some(epoch) = beat.applied_epoch {
                    let applied = Heard::Applied(epoch);
                    if self.heard.last() != Some(&applied) {
                        self.heard.push(applied);
                    }
                }
                (!self.silent).then_some(Down::Beat(v1::JoinBeat {}))
            }
            Up::Leave(leave) => {
                self.heard.push(Heard::Leave(leave.will_return));
                self.stream = None;
                None
            }
            Up::Subscription(_) => None,
        }
    }
}

#[tonic::async_trait]
impl GroupService for Groups {
    async fn find_coordinator(
        &self,
        _: Request<v1::FindCoordinatorRequest>,
    ) -> Result<Response<v1::FindCoordinatorResponse>, Status> {
        Ok(Response::new(v1::FindCoordinatorResponse {
            broker_id: 1,
            address: self.0.lock().address.clone(),
            coordinator_epoch: 1,
        }))
    }

    type JoinStream = UnboundedReceiverStream<Result<v1::JoinResponse, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<v1::JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::unbounded_channel();
        let script = self.0.clone();
        tokio::spawn(async move {
            // The script has the only other end: without it the stream is over.
            let weak = sender.downgrade();
            let mut first = Some(sender);
            while let Ok(Some(request)) = requests.message().await {
                let mut script = script.lock();
                let answer = script.hear(request.kind.unwrap());
                if let Some(sender) = first.take() {
                    script.stream = Some(sender);
                }
                let (Some(sender), Some(kind)) = (weak.upgrade(), answer) else {
                    continue;
                };
                let _ = sender.send(Ok(v1::JoinResponse { kind: Some(kind) }));
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        let mut script = self.0.lock();
        if let Some(error) = script.refuse_commits.pop_front() {
            return Err(error.into());
        }
        let mut results = Vec::new();
        for item in request.into_inner().items {
            let (partition, offset) = (item.partition, item.offset);
            let known = script.committed.get(&partition).copied().unwrap_or(-1);
            let error = (offset < known && !item.rewind).then(|| {
                let error = ApiError::new(Reason::CommitBehind, "behind");
                error.with("committed_offset", known).to_item()
            });
            if error.is_none() {
                script.committed.insert(partition, offset);
                script
                    .heard
                    .push(Heard::Commit(partition, offset, item.rewind));
            }
            results.push(v1::CommitResult {
                topic_id: TOPIC_ID.to_vec().into(),
                partition,
                error,
            });
        }
        Ok(Response::new(v1::CommitResponse { results }))
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        let committed = self.0.lock().committed.clone();
        let topics = request.into_inner().topics;
        let asked = topics.into_iter().flat_map(|topic| topic.partitions);
        let offset = |partition: i32| v1::CommittedOffset {
            topic_id: TOPIC_ID.to_vec().into(),
            topic: "t".to_owned(),
            partition,
            offset: committed.get(&partition).copied(),
            ..Default::default()
        };
        Ok(Response::new(v1::FetchOffsetsResponse {
            offsets: asked.map(offset).collect(),
        }))
    }

    async fn reset_offsets(
        &self,
        _: Request<v1::ResetOffsetsRequest>,
    ) -> Result<Response<v1::ResetOffsetsResponse>, Status> {
        unscripted()
    }

    async fn list_groups(
        &self,
        _: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        unscripted()
    }

    async fn describe_group(
        &self,
        _: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        unscripted()
    }

    async fn delete_group(
        &self,
        _: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        unscripted()
    }

    async fn delete_offsets(
        &self,
        _: Request<v1::DeleteOffsetsRequest>,
    ) -> Result<Response<v1::DeleteOffsetsResponse>, Status> {
        unscripted()
    }
}
