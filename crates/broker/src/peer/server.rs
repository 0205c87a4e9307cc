//! The listening side: streams from other brokers, and their calls.

use std::net::IpAddr;
use std::sync::Arc;

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::peer_call_service_server::{
    PeerCallService, PeerCallServiceServer,
};
use timberline_proto::internal::peer_service_server::{PeerService, PeerServiceServer};
use timberline_proto::internal::{self as pb, peer_answer::Answer, peer_message::Message};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, malformed};
use super::hello::Hello;
use super::limits::{
    CALL_BYTES_MAX, CONNECTION_STREAMS_MAX, CONNECTION_WINDOW_BYTES, FRAME_BYTES, HANDSHAKES_MAX,
    HEADER_BYTES_MAX, HELLO_TIMEOUT, MESSAGE_BYTES_MAX, PROMPT_KEEPALIVE, PROMPT_KEEPALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES,
};
use super::quiet::Quiet;
use super::sessions::{Session, Sessions};
use super::{PeerHandler, Peers};
use crate::listen::Listener;

/// Answers of one stream: accepted, and why it ends.
const ANSWERS: usize = 2;

/// Serves until [`Peers::close`].
pub(super) fn serve(
    peers: Peers,
    handler: Arc<dyn PeerHandler>,
    listener: Listener,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let closed = peers.closed();
    let service = Service {
        peers,
        handler,
        sessions: Arc::default(),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        refusals: Arc::default(),
    };
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CONNECTION_STREAMS_MAX)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(PROMPT_KEEPALIVE))
        .http2_keepalive_timeout(Some(PROMPT_KEEPALIVE_TIMEOUT))
        .add_service(
            PeerServiceServer::new(service.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(PeerCallServiceServer::new(service).max_decoding_message_size(CALL_BYTES_MAX));
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let connection = listener.next().await;
        Some((Ok::<_, std::io::Error>(connection), listener))
    });
    tokio::spawn(router.serve_with_incoming_shutdown(incoming, closed))
}

#[derive(Clone)]
struct Service {
    peers: Peers,
    handler: Arc<dyn PeerHandler>,
    sessions: Arc<Sessions>,
    handshakes: Arc<Semaphore>,
    /// Refusals that were logged.
    refusals: Arc<Quiet<(Option<IpAddr>, Option<Reason>)>>,
}

impl Service {
    /// Reads and judges the first message.
    async fn handshake(
        &self,
        inbound: &mut Streaming<pb::PeerMessage>,
    ) -> Result<(Hello, u32), ApiError> {
        let first = async {
            // A first message may be as large as a later one: not too many at a time. Never closed.
            let _permit = self.handshakes.acquire().await;
            inbound.message().await
        };
        let first = tokio::time::timeout(HELLO_TIMEOUT, first)
            .await
            .map_err(|_| ApiError::new(Reason::HandshakeRequired, "no hello in time"))?
            .map_err(|status| ApiError::from_status(&status))?;
        let Some(Message::Hello(hello)) = first.and_then(|first| first.message) else {
            let why = "the first message of a stream must be a hello";
            return Err(ApiError::new(Reason::HandshakeRequired, why));
        };
        let (hello, version) = Hello::from_wire(hello, self.peers.broker_id())?;
        self.handler.hello(&hello)?;
        Ok((hello, version))
    }
}

#[tonic::async_trait]
impl PeerService for Service {
    type ExchangeStream = ReceiverStream<Result<pb::PeerAnswer, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::PeerMessage>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let from = request.remote_addr();
        let mut inbound = request.into_inner();
        let greeted = self.handshake(&mut inbound).await;
        let entered = greeted.and_then(|(hello, version)| {
            let session = self.sessions.begin(&hello)?;
            Ok((hello, version, session))
        });
        let (hello, version, session) = entered.map_err(|error| {
            if let Some(left_out) = self
                .refusals
                .due((from.map(|from| from.ip()), error.reason))
            {
                tracing::warn!(?from, %error, left_out, "a peer was refused");
            }
            error.to_status()
        })?;
        tracing::debug!(broker = hello.broker_id, lane = ?hello.lane, boot = hello.boot, "a peer's stream");
        let (answers, out) = mpsc::channel(ANSWERS);
        let accepted = Answer::Accepted(self.peers.accepted(version));
        // There is room: it is the first.
        let _ = answers.try_send(Ok(pb::PeerAnswer {
            answer: Some(accepted),
        }));
        // It is there: dial it now if that is waited with.
        self.peers.nudge(hello.broker_id);
        let receiver = Receiver {
            service: self.clone(),
            from: hello.broker_id,
            session,
            answers,
        };
        tokio::spawn(receiver.run(inbound));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// The reader of one stream.
struct Receiver {
    service: Service,
    from: i32,
    session: Session,
    answers: mpsc::Sender<Result<pb::PeerAnswer, Status>>,
}

impl Receiver {
    async fn run(self, mut inbound: Streaming<pb::PeerMessage>) {
        let closed = self.service.peers.closed();
        tokio::pin!(closed);
        let last = loop {
            tokio::select! {
                biased;
                () = &mut closed => break Some(goodbye("the broker stops")),
                () = self.session.replaced.notified() => break Some(goodbye("another stream took its place")),
                // The sender does not listen any more.
                () = self.answers.closed() => break None,
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(error) = self.take(message) {
                            tracing::warn!(broker = self.from, %error, "a peer's stream is ended");
                            self.service.peers.counters().malformed();
                            break Some(Err(error.to_status()));
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => {
                        tracing::debug!(broker = self.from, %status, "a peer's stream broke");
                        break Some(Err(status));
                    }
                },
            }
        };
        if let Some(last) = last {
            // There is room: it is the second.
            let _ = self.answers.try_send(last);
        }
    }

    /// Hands over what a message holds; all of it or nothing.
    fn take(&self, message: pb::PeerMessage) -> Result<(), ApiError> {
        let bytes = match message.message {
            Some(Message::Batch(bytes)) => bytes,
            Some(Message::Hello(_)) => {
                return Err(ApiError::new(Reason::HandshakeRequired, "a second hello"));
            }
            None => return Err(malformed("a message of an unknown kind")),
        };
        let batch = convert::read_batch(bytes)?;
        if !batch.messages.is_empty() {
            self.service.peers.counters().received(batch.messages.len());
            self.service.handler.messages(self.from, batch.messages);
        }
        if !batch.shard_beats.is_empty() {
            self.service
                .handler
                .shard_beats(self.from, batch.shard_beats);
        }
        if !batch.leaderships.is_empty() {
            self.service
                .handler
                .leaderships(self.from, batch.leaderships);
        }
        Ok(())
    }
}

fn goodbye(why: &str) -> Result<pb::PeerAnswer, Status> {
    Ok(pb::PeerAnswer {
        answer: Some(Answer::Goodbye(pb::PeerGoodbye {
            why: why.to_owned(),
        })),
    })
}

fn answer<T>(result: Result<T, ApiError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| error.to_status())
}

#[tonic::async_trait]
impl PeerCallService for Service {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        answer(self.handler.status(request.into_inner()).await)
    }

    async fn forward(
        &self,
        request: Request<pb::ForwardRequest>,
    ) -> Result<Response<pb::ForwardResponse>, Status> {
        answer(self.handler.forward(request.into_inner()).await)
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        answer(self.handler.join(request.into_inner()).await)
    }

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        answer(self.handler.snapshot(request.into_inner()).await)
    }
}
