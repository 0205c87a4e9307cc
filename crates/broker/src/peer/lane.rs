//! A lane: what waits for one broker on one stream, from the threads that send to the socket that takes.
//!
//! The stream *pulls*: a batch is made when HTTP/2 has room for it, so a slow receiver gets larger batches, and a stalled
//! one fills nothing but this queue. What does not fit is dropped and counted; Raft sends again. While the broker is
//! known to be down everything is dropped, so that it is not greeted with messages of an hour ago.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::{Mutex, MutexGuard};
use timberline_consensus::{Body, Envelope};
use timberline_proto::internal as pb;
use tokio::sync::oneshot;

use super::convert::{ShardBeats, to_wire};
use super::limits::{
    BATCH_BYTES, BATCH_FRAMES, BATCH_LEADERSHIPS, BATCH_MESSAGES, BULK_QUEUE_BYTES,
    BULK_QUEUE_ITEMS, ENVELOPE_BYTES_MAX, ENVELOPE_OVERHEAD_BYTES, GOSSIP_QUEUE_ITEMS,
    PROMPT_QUEUE_BYTES, PROMPT_QUEUE_ITEMS,
};
use super::stats::Counters;

/// Most that a queue holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) items: usize,
    pub(super) bytes: usize,
    pub(super) gossip: usize,
}

impl Bounds {
    pub(super) const PROMPT: Bounds = Bounds {
        items: PROMPT_QUEUE_ITEMS,
        bytes: PROMPT_QUEUE_BYTES,
        gossip: GOSSIP_QUEUE_ITEMS,
    };
    pub(super) const BULK: Bounds = Bounds {
        items: BULK_QUEUE_ITEMS,
        bytes: BULK_QUEUE_BYTES,
        gossip: 0,
    };
}

/// The queue of one lane to one broker.
pub(super) struct Lane {
    bounds: Bounds,
    queue: Mutex<Queue>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Queue {
    envelopes: VecDeque<Envelope>,
    gossip: VecDeque<pb::Leadership>,
    shard_beats: ShardBeats,
    bytes: usize,
    /// The last attempt to connect failed.
    down: bool,
    /// Something was dropped, and there was no room since.
    dropping: bool,
    /// Number of the stream that may take; those before it are over.
    stream: u64,
    /// Of the stream, when it found nothing.
    waker: Option<Waker>,
}

/// What one envelope costs.
struct Cost {
    bytes: usize,
    frames: usize,
}

impl Cost {
    fn of(envelope: &Envelope) -> Cost {
        Cost {
            bytes: ENVELOPE_OVERHEAD_BYTES + envelope.payload_bytes(),
            frames: match &envelope.body {
                Body::Append(append) => append.frames.len(),
                _ => 0,
            },
        }
    }

    /// Whether a receiver would refuse it whatever it stands beside.
    fn is_impossible(&self) -> bool {
        self.bytes > ENVELOPE_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES || self.frames > BATCH_FRAMES
    }
}

impl Lane {
    pub(super) fn new(bounds: Bounds, counters: Arc<Counters>) -> Arc<Lane> {
        Arc::new(Lane {
            bounds,
            queue: Mutex::default(),
            counters,
        })
    }

    /// Queues messages, in order. True: something was dropped, for the first time in this episode. Never blocks.
    pub(super) fn offer(&self, messages: Vec<Envelope>) -> bool {
        let mut began = false;
        let mut queue = self.queue.lock();
        for message in messages {
            let cost = Cost::of(&message);
            let fits = queue.envelopes.is_empty()
                || (queue.envelopes.len() < self.bounds.items
                    && queue.bytes + cost.bytes <= self.bounds.bytes);
            let impossible = cost.is_impossible();
            if impossible {
                // It would be refused again and again: whoever made it breaks the bounds on messages.
                tracing::error!(
                    group = message.group,
                    bytes = cost.bytes,
                    frames = cost.frames,
                    "a message that no broker takes"
                );
            }
            if fits && !queue.down && !impossible {
                queue.bytes += cost.bytes;
                queue.envelopes.push_back(message);
            } else {
                self.counters.dropped(1, cost.bytes);
                began |= !std::mem::replace(&mut queue.dropping, true);
            }
        }
        wake(queue);
        began
    }

    /// Queues leaderships. What does not fit is counted only: it is said again on the next connection.
    pub(super) fn offer_gossip(&self, leaderships: Vec<pb::Leadership>) {
        let mut queue = self.queue.lock();
        let room = if queue.down {
            0
        } else {
            self.bounds.gossip - queue.gossip.len()
        };
        let dropped = leaderships.len().saturating_sub(room);
        queue.gossip.extend(leaderships.into_iter().take(room));
        self.counters.gossip_dropped(dropped);
        wake(queue);
    }

    /// Queues that one of `shards` shards is alive.
    pub(super) fn offer_shard_beat(&self, shard: u16, shards: u16) {
        let mut queue = self.queue.lock();
        if queue.down {
            return;
        }
        queue.shard_beats.set(shard, shards);
        wake(queue);
    }

    /// The stream of a new connection: the hello at once, batches after `accepted`. It ends the one before it.
    pub(super) fn stream(
        self: &Arc<Self>,
        hello: pb::PeerHello,
        accepted: oneshot::Receiver<()>,
    ) -> LaneStream {
        let mut queue = self.queue.lock();
        queue.stream += 1;
        let number = queue.stream;
        wake(queue);
        LaneStream {
            lane: Arc::clone(self),
            number,
            hello: Some(hello),
            accepted: Some(accepted),
        }
    }

    /// Connected: messages are taken. True: some were dropped before.
    pub(super) fn up(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.down = false;
        std::mem::take(&mut queue.dropping)
    }

    /// The broker can't be reached: what waits is dropped, and what comes, until [`Lane::up`]. True: something was
    /// dropped, for the first time in this episode.
    pub(super) fn down(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.down = true;
        let count = queue.envelopes.len();
        self.counters.dropped(count, queue.bytes);
        self.counters.gossip_dropped(queue.gossip.len());
        queue.envelopes = VecDeque::new();
        queue.gossip = VecDeque::new();
        queue.shard_beats = ShardBeats::default();
        queue.bytes = 0;
        count > 0 && !std::mem::replace(&mut queue.dropping, true)
    }

    fn poll_batch(&self, stream: u64, context: &mut Context<'_>) -> Poll<Option<pb::PeerBatch>> {
        let mut queue = self.queue.lock();
        if queue.stream != stream {
            return Poll::Ready(None);
        }
        if queue.is_empty() {
            queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = queue.take();
        if queue.envelopes.len() <= self.bounds.items / 2 && queue.bytes <= self.bounds.bytes / 2 {
            queue.dropping = false;
        }
        drop(queue);
        self.counters.sent(taken.envelopes.len());
        Poll::Ready(Some(to_wire(
            taken.envelopes,
            taken.gossip,
            taken.shard_beats,
        )))
    }
}

/// Whoever waits for something looks, without the lock.
fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

struct Taken {
    envelopes: Vec<Envelope>,
    gossip: Vec<pb::Leadership>,
    shard_beats: ShardBeats,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.envelopes.is_empty() && self.gossip.is_empty() && self.shard_beats.is_empty()
    }

    /// The next batch within the bounds of one.
    fn take(&mut self) -> Taken {
        let mut envelopes = Vec::new();
        let mut total = Cost {
            bytes: 0,
            frames: 0,
        };
        while let Some(next) = self.envelopes.front() {
            let cost = Cost::of(next);
            let full = envelopes.len() >= BATCH_MESSAGES
                || total.bytes + cost.bytes > BATCH_BYTES
                || total.frames + cost.frames > BATCH_FRAMES;
            if full && !envelopes.is_empty() {
                break;
            }
            total.bytes += cost.bytes;
            total.frames += cost.frames;
            envelopes.extend(self.envelopes.pop_front());
        }
        self.bytes -= total.bytes;
        let count = self.gossip.len().min(BATCH_LEADERSHIPS);
        Taken {
            envelopes,
            gossip: self.gossip.drain(..count).collect(),
            shard_beats: std::mem::take(&mut self.shard_beats),
        }
    }
}

/// A lane as the body of a request.
pub(super) struct LaneStream {
    lane: Arc<Lane>,
    number: u64,
    hello: Option<pb::PeerHello>,
    /// Until the receiver has answered: a refuser gets no messages.
    accepted: Option<oneshot::Receiver<()>>,
}

impl Stream for LaneStream {
    type Item = pb::OutgoingPeerMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use pb::outgoing_peer_message::Message;
        let this = self.get_mut();
        let message = |message| pb::OutgoingPeerMessage {
            message: Some(message),
        };
        if let Some(hello) = this.hello.take() {
            return Poll::Ready(Some(message(Message::Hello(hello))));
        }
        if let Some(accepted) = &mut this.accepted {
            match Pin::new(accepted).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(())) => this.accepted = None,
            }
        }
        this.lane
            .poll_batch(this.number, context)
            .map(|batch| batch.map(|batch| message(Message::Batch(batch))))
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
