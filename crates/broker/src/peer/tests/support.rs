//! A broker that records what it is told.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use timberline_consensus::{Append, Body, Envelope, Frame};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_storage::{EntryKind, FrameHeader};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::super::*;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;

pub(super) const CLUSTER: &str = "c1";
/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    Connected(i32),
    Lost(i32, bool),
    Unreachable(i32),
    Message(i32, Box<Envelope>),
    Leaderships(i32, Vec<pb::Leadership>),
    ShardBeats(i32, ShardBeats),
}

impl Event {
    pub(super) fn message(&self) -> Option<&Envelope> {
        match self {
            Event::Message(_, envelope) => Some(envelope),
            _ => None,
        }
    }

    pub(super) fn leaderships(&self) -> Vec<pb::Leadership> {
        match self {
            Event::Leaderships(_, leaderships) => leaderships.clone(),
            _ => Vec::new(),
        }
    }
}

/// The commits of a group's messages, in the order in which they came.
pub(super) fn commits(events: &[Event], group: u64) -> Vec<u64> {
    let of_group = events
        .iter()
        .filter_map(Event::message)
        .filter(|m| m.group == group);
    of_group
        .map(|message| match &message.body {
            Body::Beat { commit, .. } => *commit,
            Body::Append(append) => append.commit,
            other => panic!("not sent: {other:?}"),
        })
        .collect()
}

/// A prompt message of group 1.
pub(super) fn beat(commit: u64) -> Envelope {
    Envelope {
        group: 1,
        from: 1,
        to: 2,
        term: 1,
        body: Body::Beat {
            commit,
            quiesce: false,
        },
    }
}

/// A bulk message with one frame.
pub(super) fn append(group: u64, commit: u64, bytes: usize) -> Envelope {
    let payload = vec![commit as u8; bytes];
    let header = FrameHeader {
        kind: EntryKind::Command,
        payload_len: bytes as u32,
        payload_crc: crc32c::crc32c(&payload),
        term: 1,
        index: commit + 1,
        base_offset: 0,
        record_count: 0,
        append_time_ms: 0,
        chain: 0,
    };
    let frames = vec![Frame {
        header,
        payload: payload.into(),
    }];
    let append = Append {
        prev_index: commit,
        prev_term: 1,
        commit,
        frames,
    };
    Envelope {
        group,
        body: Body::Append(append),
        ..beat(0)
    }
}

#[derive(Default)]
pub(super) struct Recorder {
    events: Mutex<Vec<Event>>,
    changed: Condvar,
    stalled: Mutex<bool>,
    released: Condvar,
}

impl Recorder {
    fn record(&self, event: Event) {
        self.events.lock().push(event);
        self.changed.notify_all();
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    pub(super) fn forget(&self) {
        self.events.lock().clear();
    }

    pub(super) fn count(&self, event: &Event) -> usize {
        self.events.lock().iter().filter(|e| *e == event).count()
    }

    /// While stalled, whoever brings entries waits.
    pub(super) fn stall(&self, stalled: bool) {
        *self.stalled.lock() = stalled;
        self.released.notify_all();
    }

    /// Waits until `look` finds what it looks for.
    pub(super) fn wait<T>(&self, what: &str, look: impl Fn(&[Event]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events.lock();
        loop {
            if let Some(found) = look(&events) {
                return found;
            }
            let late = self.changed.wait_until(&mut events, deadline).timed_out();
            assert!(!late, "no {what} among {} events", events.len());
        }
    }
}

#[tonic::async_trait]
impl PeerHandler for Recorder {
    fn hello(&self, hello: &Hello) -> Result<(), ApiError> {
        let registered = (1..=3).contains(&hello.broker_id);
        let reason = if hello.cluster_id != CLUSTER {
            Reason::WrongCluster
        } else if !registered {
            Reason::UnknownBroker
        } else if hello.directory != Node::identity(hello.broker_id).directory {
            Reason::DuplicateBroker
        } else {
            return Ok(());
        };
        Err(ApiError::new(reason, "not you"))
    }

    fn messages(&self, from: i32, batch: Vec<Envelope>) {
        if batch.iter().any(Envelope::is_bulk) {
            // The thread's other tasks go on elsewhere.
            tokio::task::block_in_place(|| {
                let mut stalled = self.stalled.lock();
                self.released.wait_while(&mut stalled, |stalled| *stalled);
            });
        }
        let mut events = self.events.lock();
        events.extend(batch.into_iter().map(|m| Event::Message(from, Box::new(m))));
        self.changed.notify_all();
    }

    fn shard_beats(&self, from: i32, beats: ShardBeats) {
        self.record(Event::ShardBeats(from, beats));
    }

    fn leaderships(&self, from: i32, leaderships: Vec<pb::Leadership>) {
        self.record(Event::Leaderships(from, leaderships));
    }

    fn connected(&self, broker: i32) {
        self.record(Event::Connected(broker));
    }

    fn lost(&self, broker: i32, refused: bool) {
        self.record(Event::Lost(broker, refused));
    }

    fn unreachable(&self, broker: i32) {
        self.record(Event::Unreachable(broker));
    }

    async fn status(&self, _: pb::StatusRequest) -> Result<pb::StatusResponse, ApiError> {
        Ok(pb::StatusResponse {
            founded: CLUSTER.to_owned(),
            ..Default::default()
        })
    }

    async fn forward(&self, request: pb::ForwardRequest) -> Result<pb::ForwardResponse, ApiError> {
        match request.method.as_str() {
            "echo" => Ok(pb::ForwardResponse {
                revision: request.payload.len() as u64,
                outcome: Some(pb::forward_response::Outcome::Payload(request.payload)),
            }),
            "never" => std::future::pending().await,
            _ => Err(ApiError::new(Reason::NotLeader, "ask another").with("leader_id", 3)),
        }
    }

    async fn join(&self, _: pb::JoinRequest) -> Result<pb::JoinResponse, ApiError> {
        Ok(pb::JoinResponse {
            cluster_id: CLUSTER.to_owned(),
            ..Default::default()
        })
    }

    async fn snapshot(
        &self,
        _request: pb::SnapshotRequest,
    ) -> Result<pb::SnapshotResponse, ApiError> {
        Ok(pb::SnapshotResponse::default())
    }
}

/// Told when the listener's task has ended.
pub(super) struct Serving(mpsc::Receiver<()>);

impl Serving {
    pub(super) fn wait_end(&self) {
        // An error is the end too: the sender went with the task.
        let timed_out = self.0.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        assert!(!timed_out, "the listener goes on");
    }
}

pub(super) struct Node {
    pub(super) peers: Peers,
    pub(super) seen: Arc<Recorder>,
    pub(super) address: String,
    pub(super) serving: Serving,
    runtime: Option<Runtime>,
    identity: PeerIdentity,
    known: BTreeMap<i32, PeerInfo>,
}

impl Node {
    pub(super) fn identity(broker_id: i32) -> PeerIdentity {
        PeerIdentity {
            broker_id,
            rack: "r".to_owned(),
            directory: Uuid::from_u128(broker_id as u128),
            boot: 1,
        }
    }

    /// A broker that listens and belongs to no cluster.
    pub(super) fn prepare(broker_id: i32) -> Node {
        Node::open(Node::identity(broker_id), "127.0.0.1:0")
    }

    pub(super) fn start(broker_id: i32) -> Node {
        Node::start_as(Node::identity(broker_id))
    }

    pub(super) fn start_as(identity: PeerIdentity) -> Node {
        let node = Node::open(identity, "127.0.0.1:0");
        node.peers.set_cluster(CLUSTER);
        node
    }

    fn open(identity: PeerIdentity, address: &str) -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(3)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::new(Recorder::default());
        let peers = Peers::new(identity.clone(), 2);
        let socket = TcpListener::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let (ended, serving) = mpsc::channel();
        runtime.block_on(async {
            peers.start(Arc::clone(&seen) as Arc<dyn PeerHandler>);
            let listener = Listener::new(
                tokio::net::TcpListener::from_std(socket).unwrap(),
                100,
                Duration::from_secs(10),
                Metrics::new().unwrap().connections("peer"),
                Lifecycle::new(),
            );
            let task = peers.serve(listener).unwrap();
            tokio::spawn(async move {
                let _ = task.await;
                let _ = ended.send(());
            });
        });
        Node {
            peers,
            seen,
            address,
            serving: Serving(serving),
            runtime: Some(runtime),
            identity,
            known: BTreeMap::new(),
        }
    }

    pub(super) fn know(&mut self, brokers: &[(i32, &str)]) {
        let info = |address: &str| PeerInfo {
            address: address.to_owned(),
            rack: "r".to_owned(),
        };
        self.known = brokers.iter().map(|(id, a)| (*id, info(a))).collect();
        self.peers.set_known(self.known.clone());
    }

    /// Ends all at once, as the death of a process does.
    pub(super) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }

    /// The next boot, at the same address.
    pub(super) fn restart(mut self) -> Node {
        self.kill();
        self.identity.boot += 1;
        let mut node = Node::open(self.identity.clone(), &self.address);
        node.peers.set_cluster(CLUSTER);
        node.known = self.known.clone();
        node.peers.set_known(node.known.clone());
        node
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    /// Waits until the state of a link is as wanted. There is no event for each of its changes, so it looks again and again.
    fn wait_state<T>(&self, broker: i32, look: impl Fn(PeerState) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.peers.state(broker).unwrap();
            if let Some(found) = look(state.clone()) {
                return found;
            }
            assert!(Instant::now() < deadline, "{state:?}");
            std::thread::yield_now();
        }
    }

    pub(super) fn wait_connected(&self, broker: i32) {
        self.wait_state(broker, |state| (state.prompt && state.bulk).then_some(()));
    }

    /// Waits until a connection was tried again in vain, by both lines.
    pub(super) fn wait_down(&self, broker: i32) {
        let links = self.peers.shared.links.load();
        let link = &links[&broker];
        let deadline = Instant::now() + PATIENCE;
        let is_down = |line: &super::super::link::Line| {
            line.last_error
                .lock()
                .as_ref()
                .is_some_and(|error| error.message.contains("refused"))
        };
        while !(is_down(&link.prompt) && is_down(&link.bulk)) {
            assert!(Instant::now() < deadline, "not down");
            std::thread::yield_now();
        }
    }

    pub(super) fn wait_refused(&self, broker: i32) -> ApiError {
        self.wait_state(broker, |state| {
            state
                .last_error
                .filter(|e| e.reason != Some(Reason::PeerUnreachable))
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.seen.stall(false);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Brokers 1 and 2, connected both ways.
pub(super) fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::start(1), Node::start(2));
    a.know(&[(2, &b.address)]);
    b.know(&[(1, &a.address)]);
    a.wait_connected(2);
    b.wait_connected(1);
    (a, b)
}
