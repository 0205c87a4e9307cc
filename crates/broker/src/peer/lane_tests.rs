//! What a queue takes, drops and gives, without a network.

use futures::StreamExt;
use futures::task::noop_waker;
use prost::Message;
use timberline_consensus::Append;

use super::*;
use crate::peer::convert::read_batch;

const SMALL: Bounds = Bounds {
    items: 8,
    bytes: 8 * ENVELOPE_OVERHEAD_BYTES,
    gossip: 4,
};

fn beat(commit: u64) -> Envelope {
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

fn beats(commits: std::ops::Range<u64>) -> Vec<Envelope> {
    commits.map(beat).collect()
}

fn mark(bytes: usize) -> Envelope {
    let mark = timberline_consensus::SnapshotMark {
        index: 1,
        term: 1,
        membership: vec![0; bytes].into(),
    };
    Envelope {
        body: Body::Snapshot(mark),
        ..beat(0)
    }
}

fn lane(bounds: Bounds) -> (Arc<Lane>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    (Lane::new(bounds, Arc::clone(&counters)), counters)
}

/// An accepted stream, its hello taken.
fn open(lane: &Arc<Lane>) -> LaneStream {
    let (accept, accepted) = oneshot::channel();
    let mut stream = lane.stream(pb::PeerHello::default(), accepted);
    accept.send(()).unwrap();
    assert!(matches!(poll(&mut stream), Poll::Ready(Some(_))));
    stream
}

fn poll(stream: &mut LaneStream) -> Poll<Option<pb::OutgoingPeerMessage>> {
    stream.poll_next_unpin(&mut Context::from_waker(&noop_waker()))
}

fn next_batch(stream: &mut LaneStream) -> Option<pb::PeerBatch> {
    match poll(stream) {
        Poll::Pending => None,
        Poll::Ready(Some(pb::OutgoingPeerMessage {
            message: Some(pb::outgoing_peer_message::Message::Batch(batch)),
        })) => Some(batch),
        other => panic!("not a batch: {other:?}"),
    }
}

fn commits(batch: &pb::PeerBatch) -> Vec<u64> {
    let alone = pb::PeerBatch {
        beats: batch.beats.clone(),
        ..pb::PeerBatch::default()
    };
    let received = read_batch(alone.encode_to_vec().into()).unwrap();
    let commit = |message: &Envelope| match message.body {
        Body::Beat { commit, .. } => commit,
        ref other => panic!("not a beat: {other:?}"),
    };
    received.messages.iter().map(commit).collect()
}

#[test]
fn what_waits_goes_in_one_batch_in_order() {
    let (lane, counters) = lane(SMALL);
    let mut stream = open(&lane);
    assert_eq!(next_batch(&mut stream), None);
    assert!(!lane.offer(beats(0..3)));
    assert!(!lane.offer(beats(3..5)));
    lane.offer_gossip(vec![pb::Leadership::default(); 2]);
    let batch = next_batch(&mut stream).unwrap();
    assert_eq!(commits(&batch), [0, 1, 2, 3, 4]);
    assert_eq!(batch.leaderships.len(), 2);
    assert_eq!(next_batch(&mut stream), None);
    assert_eq!(
        (
            counters.totals().messages_sent,
            counters.totals().batches_sent
        ),
        (5, 1)
    );
}

#[test]
fn a_drop_episode_is_told_once_and_ends_when_there_is_room() {
    let (lane, counters) = lane(SMALL);
    let mut stream = open(&lane);
    assert!(lane.offer(beats(0..10)), "two do not fit");
    assert!(!lane.offer(beats(10..11)), "told before");
    assert_eq!(counters.totals().messages_dropped, 3);
    assert_eq!(
        commits(&next_batch(&mut stream).unwrap()),
        (0..8).collect::<Vec<_>>()
    );
    assert!(!lane.offer(beats(0..8)));
    assert!(lane.offer(beats(8..9)), "a new episode");
    lane.offer_gossip(vec![pb::Leadership::default(); 5]);
    assert_eq!(counters.totals().leaderships_dropped, 1);
}

#[test]
fn batches_are_bounded_and_a_large_envelope_goes_alone() {
    let (lane, _) = lane(Bounds::PROMPT);
    let mut stream = open(&lane);
    lane.offer(beats(0..BATCH_MESSAGES as u64 + 1));
    let mut beats = || commits(&next_batch(&mut stream).unwrap()).len();
    assert_eq!([beats(), beats()], [BATCH_MESSAGES, 1]);
    lane.offer(vec![mark(10), mark(3 * BATCH_BYTES), mark(10), mark(10)]);
    let sizes = std::iter::from_fn(|| next_batch(&mut stream)).map(|b| b.messages.len());
    assert_eq!(sizes.collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn an_empty_queue_takes_one_that_is_larger_than_it() {
    let (lane, counters) = lane(SMALL);
    assert!(!lane.offer(vec![mark(1 << 20)]));
    assert!(lane.offer(beats(0..1)));
    assert_eq!(counters.totals().messages_dropped, 1);
}

#[test]
fn what_no_receiver_takes_is_not_sent() {
    let (lane, counters) = lane(SMALL);
    let frames = Vec::new();
    let mut append = Append {
        prev_index: 0,
        prev_term: 0,
        commit: 0,
        frames,
    };
    let frame = timberline_consensus::Frame {
        header: timberline_storage::FrameHeader {
            kind: timberline_storage::EntryKind::Noop,
            payload_len: 0,
            payload_crc: 0,
            term: 1,
            index: 1,
            base_offset: 0,
            record_count: 0,
            append_time_ms: 0,
            chain: 0,
        },
        payload: bytes::Bytes::new(),
    };
    append.frames = vec![frame; BATCH_FRAMES + 1];
    let body = Body::Append(append);
    assert!(lane.offer(vec![Envelope { body, ..beat(0) }]));
    assert_eq!(counters.totals().messages_dropped, 1);
    let mut stream = open(&lane);
    assert_eq!(next_batch(&mut stream), None);
}

#[test]
fn a_broker_that_is_down_gets_nothing_old() {
    let (lane, counters) = lane(SMALL);
    assert!(!lane.offer(beats(0..2)), "the first attempt is under way");
    assert!(lane.down());
    assert!(!lane.offer(beats(2..3)), "told before");
    assert!(!lane.down());
    assert_eq!(counters.totals().messages_dropped, 3);
    let mut stream = open(&lane);
    assert!(lane.up(), "some were dropped");
    assert!(!lane.up());
    lane.offer(beats(3..4));
    assert_eq!(commits(&next_batch(&mut stream).unwrap()), [3]);
}

#[test]
fn nothing_goes_before_the_hello_is_accepted_nor_by_an_old_stream() {
    let (lane, _) = lane(SMALL);
    lane.offer(beats(0..1));
    let (accept, accepted) = oneshot::channel();
    let mut old = lane.stream(pb::PeerHello::default(), accepted);
    assert!(matches!(poll(&mut old), Poll::Ready(Some(_))));
    assert!(poll(&mut old).is_pending());
    let mut new = open(&lane);
    accept.send(()).unwrap();
    assert!(matches!(poll(&mut old), Poll::Ready(None)));
    assert_eq!(commits(&next_batch(&mut new).unwrap()), [0]);
    // Refused.
    let (accept, accepted) = oneshot::channel();
    let mut refused = lane.stream(pb::PeerHello::default(), accepted);
    assert!(matches!(poll(&mut refused), Poll::Ready(Some(_))));
    drop(accept);
    assert!(matches!(poll(&mut refused), Poll::Ready(None)));
}
