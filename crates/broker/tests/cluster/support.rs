//! A cluster in one process, and a producer that goes where it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use timberline_broker::config::{ByteSize, HostPorts, Span};
use timberline_broker::{Broker, BrokerConfig, Error, RunningBroker};
use timberline_proto::error::ApiError;
use timberline_proto::internal as pb;
use timberline_proto::internal::peer_call_service_client::PeerCallServiceClient;
use timberline_proto::internal::peer_service_client::PeerServiceClient;
use timberline_proto::v1::admin_service_client::AdminServiceClient;
use timberline_proto::v1::consumer_service_client::ConsumerServiceClient;
use timberline_proto::v1::metadata_service_client::MetadataServiceClient;
use timberline_proto::v1::producer_service_client::ProducerServiceClient;
use timberline_proto::v1::*;
use timberline_storage::disk::FaultDisk;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(crate) use crate::wire::{Fetching, Producing, batch, by_id, by_name, reason};

/// Long enough for a slow machine, short enough to see a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where ports are looked for: below those that the system gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Looks until there is something, for as long as patience lasts.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain: {what}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A port that nobody listens on, and that no other test of this process gets.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % 300) as u16 * 64;
    loop {
        let at = begin + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + at % (PORTS.end - PORTS.start);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A peer address that nobody listens on.
pub(crate) fn free_peer() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A broker, up or down.
pub(crate) struct Member {
    pub(crate) id: i32,
    pub(crate) config: BrokerConfig,
    pub(crate) disk: FaultDisk,
    up: Option<Up>,
    forks: u64,
}

/// A runtime that may be dropped anywhere: what runs on it ends at its next await.
struct Own(Option<Runtime>);

impl Own {
    fn new() -> Own {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Own(Some(
            builder.worker_threads(2).enable_all().build().unwrap(),
        ))
    }

    fn get(&self) -> &Runtime {
        self.0.as_ref().unwrap()
    }

    /// Ends what runs on it, and waits for that. Blocking.
    fn end(mut self) {
        self.0.take().unwrap().shutdown_timeout(PATIENCE);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Up {
    runtime: Own,
    broker: Arc<RunningBroker>,
    channel: Channel,
}

impl Member {
    pub(crate) fn new(id: i32, rack: &str, peer: &str, seeds: &[String]) -> Member {
        let mut config = BrokerConfig::default();
        config.broker.id = id;
        config.broker.rack = rack.to_owned();
        config.broker.shards = 2;
        config.storage.data_dir = PathBuf::from("/data");
        config.storage.journal_bytes = ByteSize(2 << 20);
        config.storage.sync_threads = 2;
        config.listen.grpc = "127.0.0.1:0".parse().unwrap();
        config.listen.http = "127.0.0.1:0".parse().unwrap();
        config.listen.peer = peer.parse().unwrap();
        config.shutdown.drain_timeout = Span(500);
        config.cluster.seeds = HostPorts(seeds.to_vec());
        Member {
            id,
            config,
            disk: FaultDisk::new(id as u64),
            up: None,
            forks: 0,
        }
    }

    /// Starts it, on a runtime of its own. It has to have a cluster for that to end.
    pub(crate) async fn start(&mut self) -> Result<(), Error> {
        assert!(self.up.is_none(), "broker {} is up", self.id);
        let runtime = Own::new();
        let disk = Arc::new(self.disk.clone());
        let start = Broker::start_on(self.config.clone(), disk);
        let started = runtime.get().spawn(start);
        let started = tokio::time::timeout(PATIENCE, started);
        let broker = started.await.expect("it starts in time").unwrap()?;
        let address = format!("http://{}", broker.grpc_addr());
        let channel = Channel::from_shared(address).unwrap().connect_lazy();
        self.up = Some(Up {
            runtime,
            broker: Arc::new(broker),
            channel,
        });
        Ok(())
    }

    /// Ends it as a crash of the process does, or with `power_loss` one of the machine. The disk is what it was at the
    /// moment when nobody heard of the broker any more.
    pub(crate) async fn crash(&mut self, power_loss: bool) {
        let Some(up) = self.up.take() else { return };
        let before = self.disk.clone();
        self.forks += 1;
        let seed = self.forks * 1000 + self.id as u64;
        let ended = tokio::task::spawn_blocking(move || {
            up.runtime.end();
            let left = before.fork(seed);
            drop(up.broker);
            left
        });
        self.disk = ended.await.unwrap();
        match power_loss {
            true => self.disk.power_loss(),
            false => self.disk.kill(),
        }
    }

    /// Stops it cleanly.
    pub(crate) async fn stop(&mut self) {
        let Some(up) = self.up.take() else { return };
        let broker = Arc::clone(&up.broker);
        let stopped = up
            .runtime
            .get()
            .spawn(async move { broker.shutdown().await });
        stopped.await.unwrap().unwrap();
        self.up = Some(up);
        self.crash(false).await;
    }

    /// The machine came back with an empty disk.
    pub(crate) fn lose_disk(&mut self) {
        assert!(self.up.is_none());
        self.forks += 1;
        self.disk = FaultDisk::new(self.forks * 77 + self.id as u64);
    }

    /// Status and body of an HTTP request.
    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        let address = self.up.as_ref().unwrap().broker.http_addr();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The broker itself.
    pub(crate) fn broker(&self) -> Arc<RunningBroker> {
        Arc::clone(&self.up.as_ref().unwrap().broker)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    fn up(&self) -> &Up {
        let up = self.up.as_ref();
        up.unwrap_or_else(|| panic!("broker {} is down", self.id))
    }

    pub(crate) fn cluster_id(&self) -> String {
        self.up().broker.cluster_id()
    }

    pub(crate) fn channel(&self) -> Channel {
        self.up().channel.clone()
    }

    pub(crate) fn address(&self) -> String {
        self.up().broker.advertised().to_owned()
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel())
    }

    pub(crate) fn producer(&self) -> ProducerServiceClient<Channel> {
        ProducerServiceClient::new(self.channel())
    }

    pub(crate) fn consumer(&self) -> ConsumerServiceClient<Channel> {
        ConsumerServiceClient::new(self.channel())
    }

    pub(crate) fn metadata(&self) -> MetadataServiceClient<Channel> {
        MetadataServiceClient::new(self.channel())
    }

    /// A producer id.
    pub(crate) async fn new_producer(&self) -> i64 {
        let request = InitProducerRequest::default();
        let answer = self.producer().init_producer(request).await;
        answer.unwrap().into_inner().producer_id
    }

    /// What it says of the cluster.
    pub(crate) async fn sees(&self) -> GetMetadataResponse {
        let all = GetMetadataRequest::default();
        let answer = self.metadata().get_metadata(all).await;
        answer.unwrap().into_inner()
    }

    /// One partition as it sees it.
    pub(crate) async fn sees_partition(&self, topic: &str, number: i32) -> Option<PartitionInfo> {
        let mut topics = self.sees().await.topics.into_iter();
        let topic = topics.find(|one| one.name == topic)?;
        topic.partitions.into_iter().nth(number as usize)
    }

    /// Files on its disk that belong to a topic.
    pub(crate) fn files_of(&self, topic: &Bytes) -> usize {
        let hex: String = topic.iter().map(|byte| format!("{byte:02x}")).collect();
        let dir = PathBuf::from("/data/logs").join(hex);
        let files = self.disk.files().into_iter();
        files.filter(|(path, _)| path.starts_with(&dir)).count()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(up) = self.up.take() {
            drop(up.runtime);
            // Joins threads: they end by themselves, beside the next test.
            std::thread::spawn(move || drop(up.broker));
        }
    }
}

/// Brokers that were told of the same seeds.
pub(crate) struct Cluster {
    pub(crate) seeds: Vec<String>,
    pub(crate) members: BTreeMap<i32, Member>,
}

impl Cluster {
    /// As many seeds, ids from 1, each in a rack of its own; none is up.
    pub(crate) fn of(count: i32) -> Cluster {
        let seeds: Vec<String> = (0..count).map(|_| free_peer()).collect();
        let member = |id: i32| Member::new(id, &rack(id), &seeds[id as usize - 1], &seeds);
        let members = (1..=count).map(|id| (id, member(id))).collect();
        Cluster { seeds, members }
    }

    /// As [`Cluster::of`], founded: all see all.
    pub(crate) async fn start(count: i32) -> Cluster {
        Self::start_with(count, |_| {}).await
    }

    pub(crate) async fn start_with(count: i32, tweak: fn(&mut BrokerConfig)) -> Cluster {
        let mut cluster = Cluster::of(count);
        let members = cluster.members.values_mut();
        members.for_each(|member| tweak(&mut member.config));
        cluster.start_all().await;
        cluster
    }

    /// Starts all that are down, together, and waits until all see all.
    pub(crate) async fn start_all(&mut self) {
        let down = self.members.values_mut().filter(|one| !one.is_up());
        let started = futures::future::join_all(down.map(Member::start)).await;
        started.into_iter().for_each(|one| one.unwrap());
        self.all_live().await;
    }

    /// Adds one that knows only the first seed that is up.
    pub(crate) async fn join(&mut self, id: i32) {
        let through = self.up().next().unwrap().config.listen.peer.to_string();
        let mut member = Member::new(id, &rack(id), &free_peer(), &[through]);
        member.config.cluster.replacement_after = self
            .members
            .values()
            .next()
            .unwrap()
            .config
            .cluster
            .replacement_after;
        member.start().await.unwrap();
        self.members.insert(id, member);
        self.all_live().await;
    }

    pub(crate) fn at(&self, id: i32) -> &Member {
        &self.members[&id]
    }

    pub(crate) fn at_mut(&mut self, id: i32) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    pub(crate) fn up(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|one| one.is_up())
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.up().map(Member::address).collect()
    }

    /// Waits until everybody that is up says the same of who lives and who controls.
    pub(crate) async fn all_live(&self) {
        let up: Vec<i32> = self.up().map(|one| one.id).collect();
        until("everybody sees everybody", async || {
            let mut controllers = BTreeSet::new();
            for member in self.up() {
                let cluster = member.sees().await.cluster?;
                let live = cluster.brokers.iter().filter(|broker| broker.live);
                let live: Vec<i32> = live.map(|broker| broker.broker_id).collect();
                if live != up || cluster.cluster_id.is_empty() {
                    return None;
                }
                controllers.insert(cluster.controller_id.filter(|id| up.contains(id))?);
            }
            (controllers.len() == 1).then_some(())
        })
        .await;
    }

    /// The controller that all agree on.
    pub(crate) async fn controller(&self) -> i32 {
        until("one controller", async || {
            let mut said = BTreeSet::new();
            for member in self.up() {
                said.insert(member.sees().await.cluster?.controller_id?);
            }
            let one = said.pop_first()?;
            (said.is_empty() && self.at(one).is_up()).then_some(one)
        })
        .await
    }

    /// Somebody up who is not the controller.
    pub(crate) async fn another(&self) -> i32 {
        let controller = self.controller().await;
        self.up().find(|one| one.id != controller).unwrap().id
    }

    /// Creates a topic and waits until all replicas are in sync and all brokers know.
    pub(crate) async fn topic(&self, name: &str, partitions: i32, replicas: i32) -> Bytes {
        let request = create(name, partitions, replicas);
        let any = self.up().next().unwrap();
        let made = any.admin().create_topic(request).await.unwrap();
        let id = made.into_inner().topic.unwrap().topic_id;
        self.in_sync(name, replicas as usize).await;
        id
    }

    /// Waits until every partition has a leader that all agree on, and so many in sync.
    pub(crate) async fn in_sync(&self, topic: &str, replicas: usize) {
        until("all replicas in sync", async || {
            let mut seen = BTreeSet::new();
            for member in self.up() {
                let mut topics = member.sees().await.topics.into_iter();
                let topic = topics.find(|one| one.name == topic)?;
                let whole = topic.partitions.iter().all(|one| {
                    let leader = one.leader_id.filter(|id| self.at(*id).is_up());
                    leader.is_some() && one.in_sync.len() == replicas && one.adding.is_empty()
                });
                let leaders: Vec<_> = topic.partitions.iter().map(|p| p.leader_id).collect();
                whole.then(|| seen.insert(leaders))?;
            }
            (seen.len() == 1).then_some(())
        })
        .await;
    }

    /// The leader that all agree on, among those up.
    pub(crate) async fn leader(&self, topic: &str, number: i32) -> PartitionInfo {
        until("one leader", async || {
            let mut said = BTreeMap::new();
            for member in self.up() {
                let seen = member.sees_partition(topic, number).await?;
                said.insert((seen.leader_id?, seen.leader_epoch), seen);
            }
            let ((id, _), seen) = said.pop_first()?;
            (said.is_empty() && self.at(id).is_up()).then_some(seen)
        })
        .await
    }

    /// All records of a partition, from the beginning to its end as its leader has it now.
    pub(crate) async fn read(&self, topic: &str, number: i32) -> Vec<(i64, String)> {
        until("the partition is read", async || {
            let leader = self.leader(topic, number).await.leader_id?;
            let mut consumer = self.at(leader).consumer();
            let item = ListOffsetsItem {
                topic: Some(by_name(topic)),
                partition: number,
                at: Some(list_offsets_item::At::Latest(true)),
            };
            let items = vec![item];
            let ends = consumer.list_offsets(ListOffsetsRequest { items }).await;
            let end = ends.ok()?.into_inner().results.pop()?;
            let end = end.error.is_none().then_some(end.offset)?;
            let mut read = Vec::new();
            let mut offset = 0;
            while offset < end {
                let request = FetchOnceRequest {
                    topic: Some(by_name(topic)),
                    partition: number,
                    offset,
                    max_wait_ms: 100,
                    ..Default::default()
                };
                let got = consumer.fetch_once(request).await.ok()?.into_inner();
                offset = got.next_offset;
                read.extend(got.records.into_iter().map(|record| {
                    let value = record.value.unwrap();
                    (record.offset, String::from_utf8(value.to_vec()).unwrap())
                }));
            }
            Some(read)
        })
        .await
    }
}

/// The rack of a broker.
pub(crate) fn rack(id: i32) -> String {
    format!("rack-{id}")
}

pub(crate) fn create(name: &str, partitions: i32, replicas: i32) -> CreateTopicRequest {
    CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        replication_factor: replicas,
        ..Default::default()
    }
}

/// Connects to what a broker advertises.
pub(crate) fn channel(address: &str) -> Channel {
    let uri = format!("http://{address}");
    Channel::from_shared(uri).unwrap().connect_lazy()
}

/// One record for one partition, stamped.
pub(crate) fn once(
    topic: &str,
    partition: i32,
    value: &str,
    stamp: Option<(i64, i32)>,
) -> ProduceOnceRequest {
    ProduceOnceRequest {
        topic: Some(by_name(topic)),
        partition: Some(partition),
        records: vec![ProduceRecord {
            value: Some(value.to_owned().into()),
            ..Default::default()
        }],
        producer_id: stamp.map(|(id, _)| id),
        producer_epoch: stamp.map(|_| 0),
        base_sequence: stamp.map(|(_, sequence)| sequence),
    }
}

/// Sends it to one broker, and gives the offset or what it said.
pub(crate) async fn put(channel: Channel, request: ProduceOnceRequest) -> Result<i64, ApiError> {
    let mut producer = ProducerServiceClient::new(channel);
    let answer = producer.produce_once(request).await;
    let answer = answer.map_err(|status: Status| ApiError::from_status(&status))?;
    let result = answer.into_inner().results.pop().unwrap();
    match result.error {
        Some(error) => Err(ApiError::from_item(&error)),
        None => Ok(result.offset),
    }
}

/// Whether a client that follows leaders goes on after such an answer.
fn goes_on(error: &ApiError) -> bool {
    match error.reason {
        Some(reason) => reason.is_retriable(),
        // The connection broke, or nobody listens.
        None => matches!(
            error.code,
            Code::Unavailable | Code::Unknown | Code::Cancelled
        ),
    }
}

/// A producer of one partition that never gives up and never skips: value n is sequence n.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Offsets by value.
    acked: Arc<Mutex<Vec<i64>>>,
    task: JoinHandle<Result<(), ApiError>>,
    topic: String,
    partition: i32,
    /// Where it asks; those that come later are added.
    pub(crate) brokers: Arc<Mutex<Vec<String>>>,
}

/// How long a producer waits for an answer before it sends the same again.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

impl Load {
    pub(crate) async fn start(cluster: &Cluster, topic: &str, partition: i32) -> Load {
        let any = cluster.up().next().unwrap();
        let id = any.new_producer().await;
        let brokers = Arc::new(Mutex::new(cluster.addresses()));
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(Mutex::new(Vec::new()));
        let load = Sender {
            id,
            topic: topic.to_owned(),
            partition,
            brokers: Arc::clone(&brokers),
            stop: Arc::clone(&stop),
            acked: Arc::clone(&acked),
        };
        Load {
            stop,
            acked,
            task: tokio::spawn(load.run()),
            topic: topic.to_owned(),
            partition,
            brokers,
        }
    }

    pub(crate) fn acked(&self) -> usize {
        self.acked.lock().len()
    }

    /// Waits until so many more than now were acknowledged.
    pub(crate) async fn goes_on(&self, more: usize) {
        let goal = self.acked() + more;
        until("the producer goes on", async || {
            assert!(
                !self.task.is_finished() || self.stop.load(Ordering::SeqCst),
                "the producer had an error"
            );
            (self.acked() >= goal).then_some(())
        })
        .await;
    }

    /// Ends it, and checks that everything acknowledged is there where it was said to be, once, and nothing else but what
    /// was under way.
    pub(crate) async fn check(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        if let Err(error) = ended.expect("the last answer").unwrap() {
            panic!("the producer had an error: {error}");
        }
        let mut read = cluster.read(&self.topic, self.partition).await;
        // What tests write beside it is no number.
        read.retain(|(_, value)| value.parse::<usize>().is_ok());
        let acked = self.acked.lock().clone();
        let values: Vec<String> = read.iter().map(|(_, value)| value.clone()).collect();
        let sent: Vec<String> = (0..read.len()).map(|n| n.to_string()).collect();
        assert_eq!(values, sent, "each once and in order");
        for (value, offset) in acked.iter().enumerate() {
            assert_eq!(
                read.get(value).map(|(at, _)| at),
                Some(offset),
                "value {value}"
            );
        }
    }
}

struct Sender {
    id: i64,
    topic: String,
    partition: i32,
    brokers: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    acked: Arc<Mutex<Vec<i64>>>,
}

impl Sender {
    async fn run(self) -> Result<(), ApiError> {
        let mut next = 0usize;
        let mut address = self.brokers.lock()[0].clone();
        let mut channels: BTreeMap<String, Channel> = BTreeMap::new();
        for sequence in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let value = sequence.to_string();
            let stamp = Some((self.id, sequence));
            let offset = loop {
                let connected = channels.entry(address.clone());
                let to = connected.or_insert_with(|| channel(&address)).clone();
                let sent = put(to, once(&self.topic, self.partition, &value, stamp));
                let error = match tokio::time::timeout(ANSWER_WAIT, sent).await {
                    Ok(Ok(offset)) => break offset,
                    Ok(Err(error)) => Some(error),
                    Err(_) => None,
                };
                if let Some(error) = error.as_ref().filter(|error| !goes_on(error)) {
                    return Err(error.clone());
                }
                let told = error.and_then(|error| error.metadata.get("leader_address").cloned());
                address = match told.filter(|told| *told != address) {
                    Some(told) => told,
                    None => {
                        tokio::time::sleep(LOOK_EVERY).await;
                        let brokers = self.brokers.lock();
                        next += 1;
                        brokers[next % brokers.len()].clone()
                    }
                };
            };
            self.acked.lock().push(offset);
        }
        Ok(())
    }
}

/// Waits until an operation has ended, as some broker tells it.
pub(crate) async fn ended(broker: &Member, operation: &Operation) -> Operation {
    until("the operation ends", async || {
        let get = GetOperationRequest {
            operation_id: operation.operation_id.clone(),
        };
        let now = broker.admin().get_operation(get).await.ok()?;
        let now = now.into_inner().operation?;
        (now.state() != OperationState::Running).then_some(now)
    })
    .await
}

/// What a peer listener says of itself.
pub(crate) async fn status(peer: &str) -> Result<pb::StatusResponse, Status> {
    let mut calls = PeerCallServiceClient::new(channel(peer));
    let answer = calls.status(pb::StatusRequest::default()).await?;
    Ok(answer.into_inner())
}

/// Opens a stream as a broker does, from a directory that nobody has.
pub(crate) async fn hello(
    peer: &str,
    cluster_id: &str,
    broker: i32,
) -> Result<pb::peer_answer::Answer, ApiError> {
    let hello = pb::PeerHello {
        cluster_id: cluster_id.to_owned(),
        broker_id: broker,
        directory_id: vec![7; 16].into(),
        boot: 1,
        lane: pb::PeerLane::Prompt.into(),
        version_min: 3,
        version_max: 3,
        receiver_broker_id: 1,
        ..Default::default()
    };
    exchange(peer, vec![pb::peer_message::Message::Hello(hello)]).await
}

/// Opens a stream with these messages, and gives the first answer.
pub(crate) async fn exchange(
    peer: &str,
    messages: Vec<pb::peer_message::Message>,
) -> Result<pb::peer_answer::Answer, ApiError> {
    let messages = messages.into_iter().map(|message| pb::PeerMessage {
        message: Some(message),
    });
    let mut service = PeerServiceClient::new(channel(peer));
    let failed = |status: Status| ApiError::from_status(&status);
    let stream = tokio_stream::iter(messages.collect::<Vec<_>>());
    let mut answers = service.exchange(stream).await.map_err(failed)?.into_inner();
    let first = answers.message().await.map_err(failed)?;
    Ok(first.unwrap().answer.unwrap())
}

/// Has a broker lead partition 0, and waits until all agree that it does.
pub(crate) async fn transfer(cluster: &Cluster, topic: &str, to: i32) {
    until("the leadership is handed over", async || {
        let request = TransferLeaderRequest {
            topic: Some(by_name(topic)),
            broker_id: Some(to),
            ..Default::default()
        };
        let any = cluster.up().next()?;
        let moved = any.admin().transfer_leader(request).await;
        if let Err(refused) = &moved {
            let why = reason(refused);
            // It has to catch up first, or an election came between.
            let again = ["NOT_IN_SYNC", "NOT_LEADER", "NO_LEADER", "TIMEOUT"];
            assert!(again.contains(&why.as_str()), "{refused}");
            return None;
        }
        (cluster.leader(topic, 0).await.leader_id == Some(to)).then_some(())
    })
    .await;
}
