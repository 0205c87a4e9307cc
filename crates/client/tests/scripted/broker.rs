//! A broker in memory with faults on demand: refusals, lost acknowledgements, lost streams, damage, death.
//!
//! It checks what a broker must check (sequences, epochs) in the strictest way, so that a client that leaves a gap,
//! repeats a record or reorders is found out.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use timberline_client::{ApiError, Reason};
use timberline_proto::v1;
use timberline_proto::v1::admin_service_server::AdminServiceServer;
use timberline_proto::v1::consumer_service_server::{ConsumerService, ConsumerServiceServer};
use timberline_proto::v1::fetch_request::Kind as FetchUp;
use timberline_proto::v1::fetch_response::Kind as FetchDown;
use timberline_proto::v1::group_service_server::GroupServiceServer;
use timberline_proto::v1::metadata_service_server::{MetadataService, MetadataServiceServer};
use timberline_proto::v1::produce_request::Kind as Up;
use timberline_proto::v1::produce_response::Kind as Down;
use timberline_proto::v1::producer_service_server::{ProducerService, ProducerServiceServer};
use timberline_record::{Batch, BatchHeader, Limits};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const TOPIC_ID: [u8; 16] = [7; 16];

/// What goes wrong. Counters count down.
#[derive(Default)]
pub(crate) struct Faults {
    /// The next batches are refused with these.
    pub(crate) refuse: VecDeque<ApiError>,
    /// Batches of more bytes are refused, as by a topic's max.message.bytes.
    pub(crate) max_message_bytes: Option<usize>,
    /// After this many more batches were written, the stream is lost before the acknowledgement.
    pub(crate) lose_stream_after: Option<usize>,
    /// Acknowledgements are held back for so long.
    pub(crate) ack_delay: Duration,
    /// Batches are read and neither written nor answered.
    pub(crate) swallow: bool,
    /// A go-away is sent after this many more batches.
    pub(crate) go_away_after: Option<usize>,
    /// The next assignments are refused with these.
    pub(crate) refuse_fetch: VecDeque<ApiError>,
    /// After this many more batches were fetched, the stream is lost.
    pub(crate) lose_fetch_after: Option<usize>,
    /// The batch at this offset is damaged on its way.
    pub(crate) damage_offset: Option<i64>,
    /// Metadata says that this broker leads all partitions, in this epoch.
    pub(crate) leader: Option<(SocketAddr, i32)>,
    /// Questions for metadata get no answer.
    pub(crate) hang: bool,
    /// Questions for offsets are refused with this.
    pub(crate) refuse_offsets: VecDeque<ApiError>,
}

#[derive(Default)]
struct ProducerState {
    epoch: i16,
    next_sequence: i32,
    last: VecDeque<(i32, i64)>,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) batches: Vec<(BatchHeader, Bytes)>,
    pub(crate) log_start: i64,
    pub(crate) end: i64,
    producers: HashMap<i64, ProducerState>,
}

impl Log {
    fn write(&mut self, bytes: &Bytes) -> Result<(i64, bool), ApiError> {
        let corrupt = |error: timberline_record::Error| {
            ApiError::new(Reason::CorruptBatch, error.to_string())
        };
        let batch = Batch::parse(bytes.clone()).map_err(corrupt)?;
        batch.validate(&Limits::default()).map_err(corrupt)?;
        let header = *batch.header();
        if let Some(stamp) = header.producer() {
            let known = self.producers.contains_key(&stamp.id);
            let state = self.producers.entry(stamp.id).or_default();
            let gap = |expected| {
                let message = format!(
                    "sequence {} where {expected} was expected",
                    stamp.base_sequence
                );
                ApiError::new(Reason::OutOfOrderSequence, message)
            };
            if known && stamp.epoch < state.epoch {
                return Err(ApiError::new(Reason::ProducerFenced, "an old epoch"));
            }
            if !known || stamp.epoch > state.epoch {
                if stamp.base_sequence != 0 {
                    return Err(gap(0));
                }
                *state = ProducerState {
                    epoch: stamp.epoch,
                    ..ProducerState::default()
                };
            }
            if let Some((_, offset)) = state
                .last
                .iter()
                .find(|(sequence, _)| *sequence == stamp.base_sequence)
            {
                return Ok((*offset, true));
            }
            if stamp.base_sequence != state.next_sequence {
                return Err(gap(state.next_sequence));
            }
            state.next_sequence += header.record_count;
            state.last.push_back((stamp.base_sequence, self.end));
            if state.last.len() > 5 {
                state.last.pop_front();
            }
        }
        let base = self.end;
        let stamped = Batch::assemble(&batch.stamped_header(base, 1), &batch.body()).unwrap();
        self.end = stamped.header().next_offset();
        self.batches.push((*stamped.header(), stamped.into_bytes()));
        Ok((base, false))
    }

    /// All values in order.
    pub(crate) fn values(&self) -> Vec<Bytes> {
        let batches = self
            .batches
            .iter()
            .map(|(_, bytes)| Batch::parse(bytes.clone()).unwrap());
        let records = batches.flat_map(|batch| batch.records(&Limits::default()).unwrap());
        records
            .map(|record| record.unwrap().value.unwrap_or_default())
            .collect()
    }
}

pub(crate) struct State {
    pub(crate) address: SocketAddr,
    pub(crate) logs: Mutex<Vec<Log>>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) appended: Notify,
    producers: Mutex<(i64, HashMap<i64, i32>)>,
    pub(crate) init_calls: Mutex<u32>,
    pub(crate) admin: crate::admin::Admin,
    pub(crate) groups: crate::group::service::Groups,
    pub(crate) granted: Mutex<i64>,
    pub(crate) sent: Mutex<i64>,
}

/// A running broker; its data outlives it.
pub(crate) struct Broker {
    pub(crate) state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Clone)]
struct Services(Arc<State>);

impl Broker {
    pub(crate) async fn start(partitions: usize) -> Broker {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            address,
            groups: crate::group::service::Groups::new(address.to_string()),
            logs: Mutex::new((0..partitions).map(|_| Log::default()).collect()),
            faults: Mutex::default(),
            appended: Notify::new(),
            producers: Mutex::new((1000, HashMap::new())),
            init_calls: Mutex::new(0),
            admin: crate::admin::Admin::default(),
            granted: Mutex::new(0),
            sent: Mutex::new(0),
        });
        drop(listener);
        let mut broker = Broker {
            state,
            runtime: None,
        };
        broker.restart().await;
        broker
    }

    /// As `kill -9`: all connections break, what is written stays.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.kill();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let services = Services(self.state.clone());
        let (sender, ready) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let address = services.0.address;
            let listener = loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                match socket.bind(address).and_then(|()| socket.listen(64)) {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            sender.send(()).unwrap();
            let producer =
                ProducerServiceServer::new(services.clone()).max_decoding_message_size(64 << 20);
            tonic::transport::Server::builder()
                .add_service(producer)
                .add_service(
                    ConsumerServiceServer::new(services.clone())
                        .max_encoding_message_size(64 << 20),
                )
                .add_service(AdminServiceServer::new(services.0.admin.clone()))
                .add_service(GroupServiceServer::new(services.0.groups.clone()))
                .add_service(MetadataServiceServer::new(services))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        ready.await.unwrap();
        self.runtime = Some(runtime);
    }

    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.faults.lock());
    }

    pub(crate) fn values(&self, partition: usize) -> Vec<Bytes> {
        self.state.logs.lock()[partition].values()
    }

    pub(crate) fn add_partition(&self) {
        self.state.logs.lock().push(Log::default());
    }

    /// Writes one batch per slice of values into a partition.
    pub(crate) fn fill(&self, partition: usize, batches: &[&[&str]]) {
        for batch in batches {
            let mut builder = timberline_record::BatchBuilder::with_options(Default::default());
            for (at, value) in batch.iter().enumerate() {
                builder
                    .append(1000 + at as i64, None, Some(value.as_bytes()), &[])
                    .unwrap();
            }
            let bytes = builder.build(None).unwrap().into_bytes();
            self.state.logs.lock()[partition].write(&bytes).unwrap();
        }
        self.state.appended.notify_waiters();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn count_down(counter: &mut Option<usize>) -> bool {
    match counter {
        Some(1) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn down(kind: Down) -> Result<v1::ProduceResponse, Status> {
    Ok(v1::ProduceResponse { kind: Some(kind) })
}

#[tonic::async_trait]
impl ProducerService for Services {
    async fn init_producer(
        &self,
        request: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        *self.0.init_calls.lock() += 1;
        let request = request.into_inner();
        let (next, epochs) = &mut *self.0.producers.lock();
        let (id, epoch) = match (request.producer_id, request.producer_epoch) {
            (Some(id), Some(epoch)) if epochs.get(&id) == Some(&epoch) => (id, epoch + 1),
            (Some(_), Some(_)) => {
                return Err(ApiError::new(Reason::ProducerFenced, "not the epoch in use").into());
            }
            _ => {
                *next += 1;
                (*next, 0)
            }
        };
        epochs.insert(id, epoch);
        Ok(Response::new(v1::InitProducerResponse {
            producer_id: id,
            producer_epoch: epoch,
        }))
    }

    type ProduceStream = ReceiverStream<Result<v1::ProduceResponse, Status>>;

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let state = self.0.clone();
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        tokio::spawn(async move {
            let mut greeted = false;
            while let Ok(Some(request)) = requests.message().await {
                let batch = match request.kind {
                    Some(Up::Hello(_)) if !greeted => {
                        greeted = true;
                        let hello = v1::ProduceHello {
                            hello: Some(v1::Hello::default()),
                            max_batch_bytes: 1 << 20,
                            max_in_flight_per_partition: 5,
                            max_in_flight_bytes: 8 << 20,
                        };
                        let _ = sender.send(down(Down::Hello(hello))).await;
                        continue;
                    }
                    Some(Up::Batch(batch)) if greeted => batch,
                    _ => {
                        let error = ApiError::new(Reason::HandshakeRequired, "one hello, first");
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                };
                let (swallow, refusal, delay) = {
                    let mut faults = state.faults.lock();
                    let too_large = faults
                        .max_message_bytes
                        .filter(|&limit| batch.batch.len() > limit)
                        .map(|limit| {
                            let error = ApiError::new(Reason::RecordTooLarge, "too large");
                            error.with("max_message_bytes", limit)
                        });
                    let refusal = too_large.or_else(|| faults.refuse.pop_front());
                    (faults.swallow, refusal, faults.ack_delay)
                };
                if swallow {
                    continue;
                }
                let written = match refusal {
                    Some(error) => Err(error),
                    None => state.logs.lock()[batch.partition as usize].write(&batch.batch),
                };
                state.appended.notify_waiters();
                if count_down(&mut state.faults.lock().lose_stream_after) {
                    let _ = sender.send(Err(Status::unavailable("stream lost"))).await;
                    return;
                }
                tokio::time::sleep(delay).await;
                let answer = match written {
                    Ok((base_offset, duplicate)) => Down::Ack(v1::ProduceAck {
                        correlation_id: batch.correlation_id,
                        topic_id: batch.topic_id,
                        partition: batch.partition,
                        base_offset,
                        duplicate,
                        ..Default::default()
                    }),
                    Err(error) => Down::Failure(v1::ProduceFailure {
                        correlation_id: batch.correlation_id,
                        topic_id: batch.topic_id,
                        partition: batch.partition,
                        error: Some(error.to_item()),
                    }),
                };
                let _ = sender.send(down(answer)).await;
                if count_down(&mut state.faults.lock().go_away_after) {
                    let reason = "draining".to_owned();
                    let _ = sender.send(down(Down::GoAway(v1::GoAway { reason }))).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn produce_once(
        &self,
        _: Request<v1::ProduceOnceRequest>,
    ) -> Result<Response<v1::ProduceOnceResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }
}

#[tonic::async_trait]
impl MetadataService for Services {
    async fn get_metadata(
        &self,
        request: Request<v1::GetMetadataRequest>,
    ) -> Result<Response<v1::GetMetadataResponse>, Status> {
        let (hangs, led) = {
            let faults = self.0.faults.lock();
            (faults.hang, faults.leader)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let (leader_id, leader_epoch) = led.map_or((1, 1), |(_, epoch)| (2, epoch));
        let asked = request.into_inner().topics;
        let is_ours = |topic: &v1::TopicRef| matches!(&topic.r#ref, Some(v1::topic_ref::Ref::Name(name)) if name == "t");
        let partitions = (0..self.0.logs.lock().len()).map(|partition| v1::PartitionInfo {
            partition: partition as i32,
            leader_id: Some(leader_id),
            leader_epoch,
            replicas: vec![1],
            in_sync: vec![1],
            ..Default::default()
        });
        let topic = v1::TopicInfo {
            name: "t".to_owned(),
            topic_id: TOPIC_ID.to_vec().into(),
            partitions: partitions.collect(),
            replication_factor: 1,
            internal: false,
        };
        Ok(Response::new(v1::GetMetadataResponse {
            cluster: Some(v1::ClusterInfo {
                cluster_id: "test".to_owned(),
                controller_id: Some(1),
                brokers: [
                    (1, Some(self.0.address)),
                    (2, led.map(|(address, _)| address)),
                ]
                .into_iter()
                .filter_map(|(broker_id, address)| {
                    Some(v1::BrokerInfo {
                        broker_id,
                        address: address?.to_string(),
                        ..Default::default()
                    })
                })
                .collect(),
                ..Default::default()
            }),
            topics: asked
                .iter()
                .filter(|topic| is_ours(topic))
                .map(|_| topic.clone())
                .collect(),
            unknown: asked
                .iter()
                .filter(|topic| !is_ours(topic))
                .cloned()
                .collect(),
        }))
    }

    type WatchMetadataStream = ReceiverStream<Result<v1::WatchMetadataResponse, Status>>;

    async fn watch_metadata(
        &self,
        _: Request<v1::WatchMetadataRequest>,
    ) -> Result<Response<Self::WatchMetadataStream>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }
}

/// A partition assigned on a fetch stream.
struct Reading {
    partition: i32,
    offset: i64,
    id: u64,
    refusal: Option<ApiError>,
}

impl State {
    /// Sends what credit allows; false when the stream is lost.
    async fn serve(
        &self,
        reading: &mut Vec<Reading>,
        credit: &mut i64,
        sender: &mpsc::Sender<Result<v1::FetchResponse, Status>>,
    ) -> bool {
        let mut at = 0;
        while at < reading.len() {
            let refusal = reading[at].refusal.take();
            let (partition, offset, id) =
                (reading[at].partition, reading[at].offset, reading[at].id);
            let (log_start, end, found) = {
                let logs = self.logs.lock();
                let log = &logs[partition as usize];
                let found = log
                    .batches
                    .iter()
                    .find(|(header, _)| header.next_offset() > offset)
                    .cloned();
                (log.log_start, log.end, found)
            };
            let range = || {
                ApiError::new(Reason::OffsetOutOfRange, "out of range")
                    .with("log_start", log_start)
                    .with("high_watermark", end)
            };
            let bad = offset < log_start || offset > end;
            if let Some(error) = refusal.or_else(|| bad.then(range)) {
                reading.remove(at);
                let failure = FetchDown::Failure(v1::FetchFailure {
                    topic_id: TOPIC_ID.to_vec().into(),
                    partition,
                    assignment_id: id,
                    error: Some(error.to_item()),
                });
                let _ = sender
                    .send(Ok(v1::FetchResponse {
                        kind: Some(failure),
                    }))
                    .await;
                continue;
            }
            let Some((header, bytes)) = found.filter(|_| *credit > 0) else {
                at += 1;
                continue;
            };
            *credit -= bytes.len() as i64;
            *self.sent.lock() += bytes.len() as i64;
            reading[at].offset = header.next_offset();
            let bytes = match self.faults.lock().damage_offset {
                Some(offset) if offset == header.base_offset => {
                    let mut damaged = bytes.to_vec();
                    *damaged.last_mut().unwrap() ^= 1;
                    damaged.into()
                }
                _ => bytes,
            };
            let data = FetchDown::Data(v1::FetchData {
                topic_id: TOPIC_ID.to_vec().into(),
                partition,
                assignment_id: id,
                batches: vec![bytes],
                high_watermark: end,
                log_start_offset: log_start,
                leader_epoch: 1,
            });
            let _ = sender
                .send(Ok(v1::FetchResponse { kind: Some(data) }))
                .await;
            if count_down(&mut self.faults.lock().lose_fetch_after) {
                let _ = sender.send(Err(Status::unavailable("stream lost"))).await;
                return false;
            }
        }
        true
    }
}

#[tonic::async_trait]
impl ConsumerService for Services {
    type FetchStream = ReceiverStream<Result<v1::FetchResponse, Status>>;

    async fn fetch(
        &self,
        request: Request<Streaming<v1::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let state = self.0.clone();
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        tokio::spawn(async move {
            let mut reading: Vec<Reading> = Vec::new();
            let mut credit = 0;
            loop {
                let appended = state.appended.notified();
                if !state.serve(&mut reading, &mut credit, &sender).await {
                    return;
                }
                let request = tokio::select! {
                    () = appended => continue,
                    request = requests.message() => request,
                };
                let Ok(Some(request)) = request else { return };
                match request.kind.unwrap() {
                    FetchUp::Hello(_) => {
                        let hello = FetchDown::Hello(v1::FetchHelloAck::default());
                        let _ = sender
                            .send(Ok(v1::FetchResponse { kind: Some(hello) }))
                            .await;
                    }
                    FetchUp::Assign(assign) => {
                        reading.retain(|reading| reading.partition != assign.partition);
                        reading.push(Reading {
                            partition: assign.partition,
                            offset: assign.offset,
                            id: assign.assignment_id,
                            refusal: state.faults.lock().refuse_fetch.pop_front(),
                        });
                    }
                    FetchUp::Remove(remove) => {
                        reading.retain(|reading| reading.partition != remove.partition)
                    }
                    FetchUp::GrantBytes(bytes) => {
                        credit += bytes;
                        *state.granted.lock() += bytes;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_once(
        &self,
        _: Request<v1::FetchOnceRequest>,
    ) -> Result<Response<v1::FetchOnceResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn list_offsets(
        &self,
        request: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        use v1::list_offsets_item::At;
        let refusal = self.0.faults.lock().refuse_offsets.pop_front();
        let logs = self.0.logs.lock();
        let answer = |item: v1::ListOffsetsItem| {
            if let Some(error) = &refusal {
                return v1::ListOffsetsResult {
                    partition: item.partition,
                    error: Some(error.to_item()),
                    ..Default::default()
                };
            }
            let log = &logs[item.partition as usize];
            let offset = match item.at {
                Some(At::Latest(_)) => log.end,
                Some(At::TimestampMs(ms)) => {
                    let found = log
                        .batches
                        .iter()
                        .find(|(header, _)| header.max_timestamp >= ms);
                    found.map_or(log.end, |(header, _)| header.base_offset)
                }
                _ => log.log_start,
            };
            v1::ListOffsetsResult {
                partition: item.partition,
                offset,
                ..Default::default()
            }
        };
        let results = request.into_inner().items.into_iter().map(answer).collect();
        Ok(Response::new(v1::ListOffsetsResponse { results }))
    }
}
