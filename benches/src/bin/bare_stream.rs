//! A bare tonic stream of produce messages: the server writes them to a prewritten file and acknowledges after a
//! grouped sync; nothing else. What gRPC and the disk allow on this machine, for `timberline bench produce` to be
//! compared with.
//!
//! CRC-32C at both ends, as the broker and its client do. Prints one JSON object.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clap::Parser;
use timberline_benches::{MB, bench_dir, random_batch, say};
use timberline_proto::v1::producer_service_client::ProducerServiceClient;
use timberline_proto::v1::producer_service_server::{ProducerService, ProducerServiceServer};
use timberline_proto::v1::{self, produce_request, produce_response};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Length of the prewritten file, bytes.
const FILE_BYTES: u64 = 512 << 20;
const WINDOW: u32 = 8 << 20;
const FRAME: u32 = 1 << 20;

#[derive(Parser)]
struct Args {
    /// Bytes of a message.
    #[arg(long, default_value_t = 256 << 10)]
    batch: usize,
    /// Bytes to send in all.
    #[arg(long, default_value_t = 2_000_000_000)]
    bytes: u64,
    /// Messages unacknowledged at a time.
    #[arg(long, default_value_t = 20)]
    in_flight: usize,
}

type Acks = mpsc::UnboundedSender<Result<v1::ProduceResponse, Status>>;
type Job = (Bytes, u64, Acks);

struct Server {
    jobs: mpsc::UnboundedSender<Job>,
}

#[tonic::async_trait]
impl ProducerService for Server {
    type ProduceStream = Pin<Box<dyn Stream<Item = Result<v1::ProduceResponse, Status>> + Send>>;

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let mut incoming = request.into_inner();
        let (acks, outgoing) = mpsc::unbounded_channel();
        let jobs = self.jobs.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                if let Some(produce_request::Kind::Batch(batch)) = message.kind {
                    let crc = crc32c::crc32c(&batch.batch[timberline_record::UNCHECKED_LEN..]);
                    if batch.batch[17..21] != crc.to_be_bytes() {
                        return;
                    }
                    if jobs
                        .send((batch.batch, batch.correlation_id, acks.clone()))
                        .is_err()
                    {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            outgoing,
        ))))
    }

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        Err(Status::unimplemented("a bare stream has no producers"))
    }

    async fn produce_once(
        &self,
        _: Request<v1::ProduceOnceRequest>,
    ) -> Result<Response<v1::ProduceOnceResponse>, Status> {
        Err(Status::unimplemented("a bare stream has no records"))
    }
}

/// Writes what is there, syncs once, acknowledges all of it.
fn write_and_sync(mut jobs: mpsc::UnboundedReceiver<Job>, file: &File) -> std::io::Result<()> {
    let mut at = 0;
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while let Ok(next) = jobs.try_recv() {
            group.push(next);
        }
        for (bytes, _, _) in &group {
            if at + bytes.len() as u64 > FILE_BYTES {
                at = 0;
            }
            file.write_all_at(bytes, at)?;
            at += bytes.len() as u64;
        }
        file.sync_data()?;
        for (_, correlation_id, acks) in group {
            let ack = v1::ProduceAck {
                correlation_id,
                ..v1::ProduceAck::default()
            };
            let _ = acks.send(Ok(v1::ProduceResponse {
                kind: Some(produce_response::Kind::Ack(ack)),
            }));
        }
    }
    Ok(())
}

async fn serve(dir: &std::path::Path) -> anyhow::Result<std::net::SocketAddr> {
    let file = File::create_new(dir.join("file"))?;
    let zeros = vec![0; 1 << 20];
    for n in 0..FILE_BYTES >> 20 {
        file.write_all_at(&zeros, n << 20)?;
    }
    file.sync_all()?;
    let (jobs, queue) = mpsc::unbounded_channel();
    std::thread::spawn(move || write_and_sync(queue, &file));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = ProducerServiceServer::new(Server { jobs }).max_decoding_message_size(64 << 20);
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    Ok(address)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dir = bench_dir()?;
    let address = serve(dir.path()).await?;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true)
        .connect()
        .await?;
    let mut client = ProducerServiceClient::new(channel);
    let pool: Vec<Bytes> = (0..32)
        .map(|n| random_batch(args.batch, 1024, n).map(|b| b.bytes().clone()))
        .collect::<anyhow::Result<_>>()?;
    let (send, requests) = mpsc::channel(args.in_flight);
    let mut acks = client
        .produce(ReceiverStream::new(requests))
        .await?
        .into_inner();
    let permits = Arc::new(Semaphore::new(args.in_flight));
    let messages = args.bytes / args.batch as u64;
    let began = Instant::now();
    let sender_permits = permits.clone();
    let sender = tokio::spawn(async move {
        for n in 0..messages {
            let Ok(permit) = sender_permits.acquire().await else {
                return;
            };
            permit.forget();
            let batch = pool[n as usize % pool.len()].clone();
            // The client computes the checksum of every batch it builds.
            std::hint::black_box(crc32c::crc32c(&batch));
            let message = v1::ProduceRequest {
                kind: Some(produce_request::Kind::Batch(v1::ProduceBatch {
                    correlation_id: n,
                    batch,
                    ..v1::ProduceBatch::default()
                })),
            };
            if send.send(message).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    });
    let mut acknowledged = 0;
    while acknowledged < messages {
        acks.next()
            .await
            .ok_or_else(|| anyhow::anyhow!("the stream ended"))??;
        permits.add_permits(1);
        acknowledged += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    sender.abort();
    let bytes = messages * args.batch as u64;
    say(&serde_json::json!({
        "bytes": bytes,
        "messages": messages,
        "seconds": seconds,
        "mb_per_second": bytes as f64 / MB / seconds,
    })
    .to_string());
    Ok(())
}
