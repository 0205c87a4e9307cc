//! The way back: from a shard to the stream or the call that waits for an answer.
//!
//! A stream's answers go through one [`AckSink`], whose length is bounded by what the stream lets be in flight. The
//! shard wakes a stream once for a burst, not once for a batch.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use timberline_proto::error::ApiError;
use tokio::sync::oneshot;

use crate::metrics::Metrics;
use crate::partition::{Partition, Permit};

/// What became of a proposal. Errors are rare and large, so they are boxed.
pub(crate) type Outcome = Result<Acked, Box<ApiError>>;

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) index: u64,
    pub(crate) base_offset: i64,
    pub(crate) leader_epoch: i32,
    /// Set when the topic uses log append time.
    pub(crate) log_append_time_ms: Option<i64>,
    /// The batch was there before.
    pub(crate) duplicate: bool,
    pub(crate) log_start: i64,
}

/// An answer on its way to a stream.
pub(crate) struct Answer {
    pub(crate) correlation_id: u64,
    pub(crate) topic: uuid::Uuid,
    pub(crate) partition: i32,
    /// Bytes that are not in flight any more.
    pub(crate) bytes: u64,
    pub(crate) outcome: Outcome,
}

/// Where the answers of one produce stream collect.
#[derive(Default)]
pub(crate) struct AckSink {
    answers: Mutex<Vec<Answer>>,
    waker: AtomicWaker,
}

impl AckSink {
    /// Moves what is there into `into`; `Pending` if there is nothing.
    pub(crate) fn poll(&self, context: &mut Context<'_>, into: &mut Vec<Answer>) -> Poll<()> {
        self.waker.register(context.waker());
        let mut answers = self.answers.lock();
        if answers.is_empty() {
            return Poll::Pending;
        }
        into.append(&mut answers);
        Poll::Ready(())
    }

    /// Whether this is the first since the stream looked, so that somebody must wake it.
    fn push(&self, answer: Answer) -> bool {
        let mut answers = self.answers.lock();
        answers.push(answer);
        answers.len() == 1
    }
}

/// Streams to wake when a burst is done. Bounded by the streams there are: each is in it once.
#[derive(Default)]
pub(crate) struct Wakes {
    sinks: Vec<Arc<AckSink>>,
}

impl Wakes {
    pub(crate) fn wake(&mut self) {
        for sink in self.sinks.drain(..) {
            sink.waker.wake();
        }
    }
}

enum To {
    Stream {
        sink: Arc<AckSink>,
        correlation_id: u64,
    },
    Call(oneshot::Sender<Outcome>),
}

/// A batch's claim to an answer, with the bytes it holds of the bounds.
pub(crate) struct Ticket {
    to: To,
    permit: Permit,
    bytes: u64,
    records: u64,
    started: Instant,
}

impl Ticket {
    /// For a batch of a stream.
    pub(crate) fn for_stream(
        sink: &Arc<AckSink>,
        correlation_id: u64,
        permit: Permit,
        bytes: u64,
        records: u64,
    ) -> Ticket {
        let sink = Arc::clone(sink);
        Ticket {
            to: To::Stream {
                sink,
                correlation_id,
            },
            permit,
            bytes,
            records,
            started: Instant::now(),
        }
    }

    /// For a batch of a unary call.
    pub(crate) fn for_call(
        sender: oneshot::Sender<Outcome>,
        permit: Permit,
        bytes: u64,
        records: u64,
    ) -> Ticket {
        Ticket {
            to: To::Call(sender),
            permit,
            bytes,
            records,
            started: Instant::now(),
        }
    }

    /// The partition the batch is for.
    pub(crate) fn partition(&self) -> &Arc<Partition> {
        self.permit.partition()
    }

    /// Answers; a stream is woken by the end of the burst.
    pub(crate) fn complete(self, outcome: Outcome, metrics: &Metrics, wakes: &mut Wakes) {
        let code = match &outcome {
            Ok(acked) => {
                if !acked.duplicate {
                    metrics.appended(self.records, self.bytes);
                }
                tonic::Code::Ok
            }
            Err(error) => error.code,
        };
        metrics.committed(code, self.started.elapsed());
        if let Some(sink) = self.deliver(outcome) {
            wakes.sinks.push(sink);
        }
    }

    /// Answers at once, from outside a shard.
    pub(crate) fn complete_now(self, outcome: Outcome) {
        if let Some(sink) = self.deliver(outcome) {
            sink.waker.wake();
        }
    }

    fn deliver(self, outcome: Outcome) -> Option<Arc<AckSink>> {
        let (topic, partition) = (self.partition().topic, self.partition().number);
        match self.to {
            To::Stream {
                sink,
                correlation_id,
            } => {
                let answer = Answer {
                    correlation_id,
                    topic,
                    partition,
                    bytes: self.bytes,
                    outcome,
                };
                sink.push(answer).then_some(sink)
            }
            To::Call(sender) => {
                let _ = sender.send(outcome);
                None
            }
        }
    }
}
