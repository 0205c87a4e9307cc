//! The dialing side: a link to each known broker, two lines each, kept up or tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{select_all, try_join_all};
use parking_lot::Mutex;
use rand::Rng;
use timberline_proto::codec::SizedCodec;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal::{self as pb, peer_answer::Answer};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Streaming};

use super::Peers;
use super::connection::{Connection, Failure, Use, unreachable};
use super::hello::{LaneId, VERSION_MAX, VERSION_MIN};
use super::lane::{Bounds, Lane};
use super::limits::{ANSWER_BYTES_MAX, BACKOFF_MAX, BACKOFF_MIN, HELLO_TIMEOUT, SOUND_AFTER};
use super::quiet::Quiet;

const EXCHANGE: &str = "/timberline.internal.v1.PeerService/Exchange";

/// Everything towards one broker. Dropped, it hangs up.
pub(super) struct Link {
    pub(super) address: String,
    pub(super) prompt: Arc<Line>,
    pub(super) bulk: Arc<Line>,
    tasks: [AbortHandle; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Link {
    /// Starts to dial, on the current runtime.
    pub(super) fn start(peers: &Peers, broker: i32, address: &str) -> Link {
        let line = |purpose, lanes| {
            Arc::new(Line {
                peers: peers.clone(),
                broker,
                address: address.to_owned(),
                purpose,
                lanes,
                kick: Notify::new(),
                connected: AtomicBool::new(false),
                connection: Mutex::new(None),
                last_error: Mutex::new(None),
                refusals: Quiet::default(),
            })
        };
        let lane = |bounds| Lane::new(bounds, Arc::clone(peers.counters()));
        let prompt = line(Use::Prompt, vec![(LaneId::Prompt, lane(Bounds::PROMPT))]);
        let bulk = line(
            Use::Bulk,
            (0..peers.shards())
                .map(|shard| (LaneId::Bulk(shard), lane(Bounds::BULK)))
                .collect(),
        );
        let tasks =
            [&prompt, &bulk].map(|line| tokio::spawn(Arc::clone(line).run()).abort_handle());
        Link {
            address: address.to_owned(),
            prompt,
            bulk,
            tasks,
        }
    }

    /// The prompt lane.
    pub(super) fn prompt_lane(&self) -> &Lane {
        // A prompt line is made with exactly one lane.
        &self.prompt.lanes[0].1
    }

    /// The bulk lane of a shard.
    pub(super) fn bulk_lane(&self, shard: u16) -> Option<&Lane> {
        self.bulk
            .lanes
            .get(usize::from(shard))
            .map(|(_, lane)| &**lane)
    }
}

/// One connection to one broker, with its lanes.
pub(super) struct Line {
    peers: Peers,
    broker: i32,
    address: String,
    purpose: Use,
    lanes: Vec<(LaneId, Arc<Lane>)>,
    /// Rung when there is reason to dial at once.
    pub(super) kick: Notify,
    pub(super) connected: AtomicBool,
    /// While connected, for calls.
    pub(super) connection: Mutex<Option<Connection>>,
    pub(super) last_error: Mutex<Option<ApiError>>,
    /// Refusals that were logged.
    refusals: Quiet<Option<Reason>>,
}

/// A connection whose lanes were all accepted.
struct Established {
    connection: Connection,
    answers: Vec<Streaming<pb::PeerAnswer>>,
    /// Messages were dropped before it stood.
    dropped: bool,
}

impl Line {
    async fn run(self: Arc<Self>) {
        self.peers.has_cluster().await;
        let mut backoff = Backoff::default();
        // Whether the end of the last connection may still turn out to be the end of the process.
        let mut was_up = false;
        loop {
            match self.dial().await {
                Ok(established) => {
                    let since = Instant::now();
                    self.up(&established);
                    let why = self.end(established).await;
                    self.lost(&why);
                    was_up = true;
                    if since.elapsed() >= SOUND_AFTER {
                        backoff = Backoff::default();
                    }
                }
                Err(failure) => {
                    let refused = failure.refused;
                    self.failed(failure);
                    if refused && std::mem::take(&mut was_up) && self.purpose == Use::Prompt {
                        self.peers.tell(|handler| handler.lost(self.broker, true));
                    }
                }
            }
            let pause = backoff.next();
            // A kick does not go below the first pause: nothing may dial in a loop.
            let least = pause.min(BACKOFF_MIN);
            tokio::time::sleep(least).await;
            tokio::select! {
                () = tokio::time::sleep(pause - least) => {}
                () = self.kick.notified() => {}
            }
        }
    }

    async fn dial(&self) -> Result<Established, Failure> {
        let connection = Connection::open(&self.address, self.purpose).await?;
        let greetings = self
            .lanes
            .iter()
            .map(|(id, lane)| self.greet(&connection, *id, lane));
        let mut answers = Vec::with_capacity(self.lanes.len());
        let mut dropped = false;
        for ((_, lane), (accepted, answer)) in self.lanes.iter().zip(try_join_all(greetings).await?)
        {
            dropped |= lane.up();
            // Gone only if the stream is, which its answers will tell.
            let _ = accepted.send(());
            answers.push(answer);
        }
        Ok(Established {
            connection,
            answers,
            dropped,
        })
    }

    /// Opens the stream of one lane. Its batches wait until the sender that is given back says so.
    async fn greet(
        &self,
        connection: &Connection,
        id: LaneId,
        lane: &Arc<Lane>,
    ) -> Result<(oneshot::Sender<()>, Streaming<pb::PeerAnswer>), Failure> {
        let (accept, accepted) = oneshot::channel();
        let hello = self.peers.hello(id).to_wire(self.broker);
        let stream = lane.stream(hello, accepted);
        let refused = |status: tonic::Status| Failure::from(ApiError::from_status(&status));
        let exchange = async {
            let mut grpc = Grpc::with_origin(connection.clone(), connection.origin())
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            grpc.ready()
                .await
                .map_err(|error| unreachable(&self.address, error))?;
            let codec = SizedCodec::<pb::OutgoingPeerMessage, pb::PeerAnswer>::default();
            let path = PathAndQuery::from_static(EXCHANGE);
            let mut answers = grpc
                .streaming(Request::new(stream), path, codec)
                .await
                .map_err(refused)?
                .into_inner();
            let first = answers.message().await.map_err(refused)?;
            self.check_accepted(first)?;
            Ok((accept, answers))
        };
        tokio::time::timeout(HELLO_TIMEOUT, exchange)
            .await
            .map_err(|_| unreachable(&self.address, "no answer to a hello in time"))?
    }

    fn check_accepted(&self, first: Option<pb::PeerAnswer>) -> Result<(), ApiError> {
        let accepted = match first.and_then(|answer| answer.answer) {
            Some(Answer::Accepted(accepted)) => accepted,
            Some(Answer::Goodbye(goodbye)) => return Err(unreachable(&self.address, goodbye.why)),
            None => return Err(unreachable(&self.address, "no answer to a hello")),
        };
        if accepted.broker_id != self.broker {
            return Err(ApiError::new(
                Reason::WrongReceiver,
                format!("broker {} answers at {}", accepted.broker_id, self.address),
            ));
        }
        if !(VERSION_MIN..=VERSION_MAX).contains(&accepted.version) {
            return Err(ApiError::new(
                Reason::UnsupportedVersion,
                format!("the peer chose version {}", accepted.version),
            ));
        }
        Ok(())
    }

    fn up(&self, established: &Established) {
        tracing::info!(broker = self.broker, address = self.address, line = ?self.purpose, "connected to a peer");
        *self.connection.lock() = Some(established.connection.clone());
        *self.last_error.lock() = None;
        self.connected.store(true, Ordering::SeqCst);
        self.peers.counters().connected();
        if self.purpose == Use::Prompt {
            self.peers.tell(|handler| handler.connected(self.broker));
        } else if established.dropped {
            // Whoever probed meanwhile, by the prompt line, may believe that entries went.
            self.peers.tell(|handler| handler.unreachable(self.broker));
        }
    }

    /// Why the connection ended: the first of its streams that did takes the others along.
    async fn end(&self, established: Established) -> ApiError {
        let ends = established
            .answers
            .into_iter()
            .map(|answers| Box::pin(end_of(answers, &self.address)));
        let (why, _, _) = select_all(ends).await;
        drop(established.connection);
        why
    }

    /// What was on its way may be lost.
    fn lost(&self, why: &ApiError) {
        tracing::info!(broker = self.broker, line = ?self.purpose, %why, "a peer's connection ended");
        *self.connection.lock() = None;
        *self.last_error.lock() = Some(why.clone());
        self.connected.store(false, Ordering::SeqCst);
        self.peers.tell(|handler| match self.purpose {
            Use::Prompt => handler.lost(self.broker, false),
            Use::Bulk => handler.unreachable(self.broker),
        });
    }

    fn failed(&self, failure: Failure) {
        let mut began = false;
        for (_, lane) in &self.lanes {
            began |= lane.down();
        }
        *self.last_error.lock() = Some(failure.error.clone());
        let reason = failure.error.reason;
        let refused = reason != Some(Reason::PeerUnreachable);
        match refused.then(|| self.refusals.due(reason)).flatten() {
            Some(left_out) => {
                tracing::warn!(broker = self.broker, line = ?self.purpose, error = %failure.error, left_out, "refused by a peer");
            }
            None => {
                tracing::debug!(broker = self.broker, error = %failure.error, "no connection to a peer");
            }
        }
        if began {
            self.peers.tell(|handler| handler.unreachable(self.broker));
        }
    }
}

/// Waits for the end of a stream's answers.
async fn end_of(mut answers: Streaming<pb::PeerAnswer>, address: &str) -> ApiError {
    match answers.message().await {
        Ok(Some(pb::PeerAnswer {
            answer: Some(Answer::Goodbye(goodbye)),
        })) => unreachable(address, goodbye.why),
        Ok(_) => unreachable(address, "it ended the stream"),
        Err(status) => ApiError::from_status(&status),
    }
}

/// Pauses between attempts: none, then doubling, with jitter.
#[derive(Default)]
struct Backoff {
    pause: Duration,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}
