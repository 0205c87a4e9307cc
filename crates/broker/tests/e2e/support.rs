//! A broker in a temporary directory, and the few client calls that the tests are made of.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use timberline_broker::{Broker, BrokerConfig, Error, RunningBroker};
use timberline_proto::error::ApiError;
use timberline_proto::v1::admin_service_client::AdminServiceClient;
use timberline_proto::v1::consumer_service_client::ConsumerServiceClient;
use timberline_proto::v1::metadata_service_client::MetadataServiceClient;
use timberline_proto::v1::producer_service_client::ProducerServiceClient;
use timberline_proto::v1::*;
use timberline_record::{BatchBuilder, Codec, ProducerStamp, TimestampType};
use timberline_storage::disk::{Disk, RealDisk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Long enough for a slow machine, short enough to see a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestBroker {
    pub(crate) dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
    disk: Arc<dyn Disk>,
    tweak: fn(&mut BrokerConfig),
    pub(crate) running: Option<RunningBroker>,
    pub(crate) channel: Channel,
}

pub(crate) fn config(dir: &Path) -> BrokerConfig {
    let mut config = BrokerConfig::default();
    config.storage.data_dir = dir.to_owned();
    config.storage.journal_bytes = timberline_broker::config::ByteSize(4 << 20);
    config.listen.grpc = "127.0.0.1:0".parse().unwrap();
    config.listen.http = "127.0.0.1:0".parse().unwrap();
    config.shutdown.drain_timeout = timberline_broker::config::Span(2_000);
    config
}

async fn connect(broker: &RunningBroker) -> Channel {
    Channel::from_shared(format!("http://{}", broker.grpc_addr()))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

impl TestBroker {
    pub(crate) async fn start() -> TestBroker {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(tweak: fn(&mut BrokerConfig)) -> TestBroker {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        Self::on(Arc::new(RealDisk::new()), dir, Some(temp), tweak).await
    }

    pub(crate) async fn on(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        temp: Option<tempfile::TempDir>,
        tweak: fn(&mut BrokerConfig),
    ) -> TestBroker {
        let mut config = config(&dir);
        tweak(&mut config);
        let running = Broker::start_on(config, disk.clone()).await.unwrap();
        let channel = connect(&running).await;
        TestBroker {
            dir,
            _temp: temp,
            disk,
            tweak,
            running: Some(running),
            channel,
        }
    }

    pub(crate) fn broker(&self) -> &RunningBroker {
        self.running.as_ref().unwrap()
    }

    /// Stops cleanly and starts again on the same directory, perhaps on another disk.
    pub(crate) async fn restart_on(&mut self, disk: Arc<dyn Disk>) {
        let running = self.running.take().unwrap();
        let _ = running.shutdown().await;
        drop(running);
        self.disk = disk;
        let running = self.start_again().await.unwrap();
        self.channel = connect(&running).await;
        self.running = Some(running);
    }

    pub(crate) async fn restart(&mut self) {
        let disk = self.disk.clone();
        self.restart_on(disk).await;
    }

    /// The directory's lock goes with the last connection: a moment after the stop.
    async fn start_again(&self) -> Result<RunningBroker, Error> {
        let mut config = config(&self.dir);
        (self.tweak)(&mut config);
        let mut result = Broker::start_on(config.clone(), self.disk.clone()).await;
        for _ in 0..200 {
            match result {
                Err(Error::Storage(timberline_storage::Error::Locked { .. })) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    result = Broker::start_on(config.clone(), self.disk.clone()).await;
                }
                other => return other,
            }
        }
        result
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(crate) fn producer(&self) -> ProducerServiceClient<Channel> {
        ProducerServiceClient::new(self.channel.clone()).max_encoding_message_size(1 << 30)
    }

    pub(crate) fn consumer(&self) -> ConsumerServiceClient<Channel> {
        ConsumerServiceClient::new(self.channel.clone()).max_decoding_message_size(1 << 30)
    }

    pub(crate) fn metadata(&self) -> MetadataServiceClient<Channel> {
        MetadataServiceClient::new(self.channel.clone()).max_decoding_message_size(1 << 30)
    }

    /// Creates a topic, and gives its id.
    pub(crate) async fn topic(
        &self,
        name: &str,
        partitions: i32,
        config: &[(&str, &str)],
    ) -> Bytes {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            config: config
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Default::default()
        };
        let response = self
            .admin()
            .create_topic(request)
            .await
            .unwrap()
            .into_inner();
        response.topic.unwrap().topic_id
    }

    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        http(self.broker().http_addr(), path).await
    }

    pub(crate) async fn produce(&self) -> Producing {
        Producing::open(self.producer()).await
    }

    pub(crate) async fn fetch(&self) -> Fetching {
        Fetching::open(self.consumer(), 0).await
    }

    pub(crate) async fn offsets(&self, topic: &str) -> (i64, i64) {
        let item = |at| ListOffsetsItem {
            topic: Some(by_name(topic)),
            partition: 0,
            at: Some(at),
        };
        let items = vec![
            item(list_offsets_item::At::Earliest(true)),
            item(list_offsets_item::At::Latest(true)),
        ];
        let results = self
            .consumer()
            .list_offsets(ListOffsetsRequest { items })
            .await
            .unwrap();
        let results = results.into_inner().results;
        (results[0].offset, results[1].offset)
    }
}

pub(crate) async fn http(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

pub(crate) fn by_name(name: &str) -> TopicRef {
    TopicRef {
        r#ref: Some(topic_ref::Ref::Name(name.to_owned())),
    }
}

pub(crate) fn by_id(id: &Bytes) -> TopicRef {
    TopicRef {
        r#ref: Some(topic_ref::Ref::Id(id.clone())),
    }
}

pub(crate) fn reason(status: &Status) -> String {
    ApiError::from_status(status)
        .reason
        .map_or_else(String::new, |r| r.to_string())
}

/// A batch with these values, all stamped with time 1000 and up.
pub(crate) fn batch(values: &[&str], stamp: Option<(i64, i16, i32)>) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    for (at, value) in values.iter().enumerate() {
        builder
            .append(1000 + at as i64, None, Some(value.as_bytes()), &[])
            .unwrap();
    }
    let stamp = stamp.map(|(id, epoch, base_sequence)| ProducerStamp {
        id,
        epoch,
        base_sequence,
    });
    builder.build(stamp).unwrap().into_bytes()
}

pub(crate) fn hello() -> Hello {
    Hello {
        software: "test".to_owned(),
        protocol_version: 1,
        rack: String::new(),
    }
}

/// A produce stream behind its handshake.
pub(crate) struct Producing {
    pub(crate) sender: mpsc::Sender<ProduceRequest>,
    pub(crate) receiver: Streaming<ProduceResponse>,
    next: u64,
}

pub(crate) enum Answer {
    Ack(ProduceAck),
    Failure(u64, ItemError),
}

impl Answer {
    pub(crate) fn ack(self) -> ProduceAck {
        match self {
            Answer::Ack(ack) => ack,
            Answer::Failure(_, error) => panic!("refused: {error:?}"),
        }
    }

    pub(crate) fn error(self) -> ItemError {
        match self {
            Answer::Ack(ack) => panic!("taken: {ack:?}"),
            Answer::Failure(_, error) => error,
        }
    }
}

impl Producing {
    pub(crate) async fn open(mut client: ProducerServiceClient<Channel>) -> Producing {
        let (sender, requests) = mpsc::channel(1024);
        let kind = Some(produce_request::Kind::Hello(hello()));
        sender.send(ProduceRequest { kind }).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut receiver = client.produce(stream).await.unwrap().into_inner();
        let first = receiver.message().await.unwrap().unwrap();
        assert!(matches!(first.kind, Some(produce_response::Kind::Hello(_))));
        Producing {
            sender,
            receiver,
            next: 0,
        }
    }

    pub(crate) async fn send(&mut self, topic: &Bytes, partition: i32, batch: Bytes) -> u64 {
        self.next += 1;
        let kind = Some(produce_request::Kind::Batch(ProduceBatch {
            correlation_id: self.next,
            topic_id: topic.clone(),
            partition,
            batch,
        }));
        self.sender.send(ProduceRequest { kind }).await.unwrap();
        self.next
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        let next = tokio::time::timeout(PATIENCE, self.receiver.message());
        match next
            .await
            .expect("an answer in time")
            .unwrap()
            .unwrap()
            .kind
            .unwrap()
        {
            produce_response::Kind::Ack(ack) => Answer::Ack(ack),
            produce_response::Kind::Failure(f) => {
                Answer::Failure(f.correlation_id, f.error.unwrap())
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Sends one batch and waits for its answer.
    pub(crate) async fn put(&mut self, topic: &Bytes, batch: Bytes) -> Answer {
        self.send(topic, 0, batch).await;
        self.answer().await
    }
}

/// A fetch stream behind its handshake.
pub(crate) struct Fetching {
    pub(crate) sender: mpsc::Sender<FetchRequest>,
    pub(crate) receiver: Streaming<FetchResponse>,
}

impl Fetching {
    pub(crate) async fn open(
        mut client: ConsumerServiceClient<Channel>,
        max_response_bytes: i64,
    ) -> Fetching {
        let (sender, requests) = mpsc::channel(1024);
        let hello = FetchHello {
            hello: Some(hello()),
            max_response_bytes,
            ..Default::default()
        };
        sender
            .send(FetchRequest {
                kind: Some(fetch_request::Kind::Hello(hello)),
            })
            .await
            .unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut receiver = client.fetch(stream).await.unwrap().into_inner();
        let first = receiver.message().await.unwrap().unwrap();
        assert!(matches!(first.kind, Some(fetch_response::Kind::Hello(_))));
        Fetching { sender, receiver }
    }

    pub(crate) async fn send(&self, kind: fetch_request::Kind) {
        self.sender
            .send(FetchRequest { kind: Some(kind) })
            .await
            .unwrap();
    }

    pub(crate) async fn assign(&self, topic: &Bytes, partition: i32, offset: i64, id: u64) {
        self.send(fetch_request::Kind::Assign(FetchAssign {
            topic_id: topic.clone(),
            partition,
            offset,
            assignment_id: id,
            leader_epoch: None,
        }))
        .await;
    }

    pub(crate) async fn grant(&self, bytes: i64) {
        self.send(fetch_request::Kind::GrantBytes(bytes)).await;
    }

    pub(crate) async fn next(&mut self) -> fetch_response::Kind {
        let next = tokio::time::timeout(PATIENCE, self.receiver.message());
        next.await
            .expect("a response in time")
            .unwrap()
            .unwrap()
            .kind
            .unwrap()
    }

    /// The next data, whatever progress comes before it.
    pub(crate) async fn data(&mut self) -> FetchData {
        loop {
            match self.next().await {
                fetch_response::Kind::Data(data) => return data,
                fetch_response::Kind::Progress(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Values of `count` records, in order.
    pub(crate) async fn values(&mut self, count: usize) -> Vec<String> {
        let mut values = Vec::new();
        while values.len() < count {
            for batch in self.data().await.batches {
                values.extend(values_of(batch));
            }
        }
        values
    }

    /// Whether nothing but progress comes for a while.
    pub(crate) async fn silent(&mut self) -> bool {
        let quiet = Duration::from_millis(200);
        loop {
            match tokio::time::timeout(quiet, self.receiver.message()).await {
                Err(_) => return true,
                Ok(Ok(Some(FetchResponse {
                    kind: Some(fetch_response::Kind::Progress(_)),
                }))) => {}
                Ok(_) => return false,
            }
        }
    }
}

pub(crate) fn values_of(batch: Bytes) -> Vec<String> {
    let batch = timberline_record::Batch::parse(batch).unwrap();
    batch.verify_crc().unwrap();
    batch
        .records(&Default::default())
        .unwrap()
        .map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap())
        .collect()
}
