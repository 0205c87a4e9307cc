//! Brokers in one process over loopback, each with a runtime of its own, so that one can be killed.

mod hostile;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use timberline_proto::error::Reason;
use timberline_proto::internal as pb;

use super::limits::{BULK_QUEUE_BYTES, STREAM_WINDOW_BYTES};
use super::*;
use support::{CLUSTER, Event, Node, append, beat, commits, pair};

#[test]
fn each_lane_keeps_its_order() {
    let (a, b) = pair();
    for number in 1..=2000 {
        a.peers
            .send(2, 0, vec![beat(number), append(10, number, 100)]);
        a.peers.send(2, 1, vec![append(11, number, 100)]);
    }
    let expected: Vec<u64> = (1..=2000).collect();
    for group in [1, 10, 11] {
        let seen = b.seen.wait("all messages of a lane", |events| {
            let seen = commits(events, group);
            (seen.len() >= 2000).then_some(seen)
        });
        assert_eq!(seen, expected, "group {group}");
    }
    let stats = a.peers.stats();
    assert_eq!((stats.messages_sent, stats.messages_dropped), (6000, 0));
    assert!(stats.batches_sent < 6000, "nothing was batched");
}

#[test]
fn a_large_frame_passes_whole() {
    let (a, b) = pair();
    // Larger than the queue.
    let sent = append(10, 1, BULK_QUEUE_BYTES + (8 << 20));
    a.peers.send(2, 0, vec![sent.clone()]);
    let received = b.seen.wait("the append", |events| {
        let mut seen = events.iter().filter_map(Event::message);
        seen.next().cloned()
    });
    assert!(received == sent, "the payload has changed");
}

#[test]
fn a_dead_broker_is_told_and_found_again_when_it_is_back() {
    let (a, mut b) = pair();
    b.kill();
    a.seen.wait("the end of the connection", |events| {
        let lost: Vec<_> = events
            .iter()
            .filter(|event| matches!(event, Event::Lost(..)))
            .collect();
        (lost == [&Event::Lost(2, false), &Event::Lost(2, true)]).then_some(())
    });
    a.wait_down(2);
    a.seen.forget();
    for number in 1..=10 {
        a.peers
            .send(2, 0, vec![beat(number), append(10, number, 10)]);
    }
    assert_eq!(a.peers.stats().messages_dropped, 20);
    assert_eq!(a.seen.count(&Event::Unreachable(2)), 1);
    let b = b.restart();
    a.wait_connected(2);
    a.peers.send(2, 0, vec![beat(11), append(10, 11, 10)]);
    for group in [1, 10] {
        let seen = b.seen.wait("a message", |events| {
            let seen = commits(events, group);
            (!seen.is_empty()).then_some(seen)
        });
        assert_eq!(seen, [11], "what was dropped must not come");
    }
    // The other way the dead one dials by itself.
    b.wait_connected(1);
}

#[test]
fn a_stopping_broker_says_goodbye() {
    let (a, b) = pair();
    b.peers.close();
    a.seen.wait("the goodbye", |events| {
        events.contains(&Event::Lost(2, false)).then_some(())
    });
    b.serving.wait_end();
}

#[test]
fn a_stalled_receiver_costs_counted_drops_and_holds_up_nothing_prompt() {
    let (a, b) = pair();
    b.seen.stall(true);
    a.seen.forget();
    let payload = 1 << 20;
    // More than queue, window and sockets hold.
    let most = 20 * (BULK_QUEUE_BYTES + STREAM_WINDOW_BYTES as usize) / payload;
    let mut sent = 0;
    while a.peers.stats().messages_dropped == 0 {
        sent += 1;
        assert!(sent < most as u64, "the queue has no bound");
        a.peers.send(2, 0, vec![append(10, sent, payload)]);
    }
    // The bulk lane is full and stalled; prompt messages pass all the same.
    for number in 1..=100 {
        a.peers.send(2, 0, vec![beat(number)]);
    }
    b.seen.wait("prompt messages", |events| {
        (commits(events, 1).len() == 100).then_some(())
    });
    assert_eq!(commits(&b.seen.events(), 10).len(), 0);
    assert_eq!(a.seen.count(&Event::Unreachable(2)), 1);
    let dropped = a.peers.stats().messages_dropped;
    b.seen.stall(false);
    let kept = sent - dropped;
    let seen = b.seen.wait("what was not dropped", |events| {
        let seen = commits(events, 10);
        (seen.len() as u64 == kept).then_some(seen)
    });
    assert_eq!(seen, (1..=kept).collect::<Vec<_>>());
}

#[test]
fn who_may_not_speak_is_refused_with_a_reason() {
    let b = Node::start(2);
    let refused = |mut node: Node, expected| {
        node.know(&[(2, &b.address)]);
        let error = node.wait_refused(2);
        assert_eq!(error.reason, Some(expected), "{error}");
        assert!(!node.peers.state(2).unwrap().prompt);
        node.kill();
    };
    let stranger = Node::prepare(1);
    stranger.peers.set_cluster("another");
    refused(stranger, Reason::WrongCluster);
    refused(Node::start(9), Reason::UnknownBroker);
    let mut copy = Node::identity(1);
    copy.directory = uuid::Uuid::from_u128(77);
    refused(Node::start_as(copy), Reason::DuplicateBroker);
    // The address of broker 3 leads to broker 2.
    let mut lost = Node::start(1);
    lost.know(&[(3, &b.address)]);
    assert_eq!(lost.wait_refused(3).reason, Some(Reason::WrongReceiver));
    assert!(b.seen.events().is_empty(), "{:?}", b.seen.events());
}

#[test]
fn nobody_is_dialed_before_there_is_a_cluster() {
    let b = Node::start(2);
    let mut a = Node::prepare(1);
    a.know(&[(2, &b.address)]);
    // It answers without one, and before it is known.
    let status = a.block_on(a.peers.status(&b.address, pb::StatusRequest::default()));
    assert_eq!(status.unwrap().founded, CLUSTER);
    assert_eq!(a.peers.stats().connections, 0);
    a.peers.set_cluster(CLUSTER);
    a.wait_connected(2);
}

#[test]
fn links_follow_what_is_known() {
    let (mut a, b) = pair();
    let c = Node::start(3);
    let mut other = Node::start(2);
    other.know(&[]);
    // Broker 2 has moved, 3 is new, and this one is not dialed.
    a.seen.forget();
    a.know(&[
        (1, &a.address.clone()),
        (2, &other.address),
        (3, &c.address),
    ]);
    a.seen.wait("the end of the old link", |events| {
        events.contains(&Event::Lost(2, false)).then_some(())
    });
    a.wait_connected(2);
    a.wait_connected(3);
    assert_eq!(a.peers.state(1), None);
    a.peers.send(2, 0, vec![beat(5)]);
    other.seen.wait("a message", |events| {
        (commits(events, 1) == [5]).then_some(())
    });
    assert!(commits(&b.seen.events(), 1).is_empty());
    a.know(&[(3, &c.address)]);
    assert_eq!(a.peers.state(2), None);
    a.peers.send(2, 0, vec![beat(6)]);
    assert_eq!(a.peers.stats().messages_dropped, 1);
}

#[test]
fn soft_state_and_calls_pass() {
    let (a, b) = pair();
    let leaderships: Vec<_> = (0..20_000)
        .map(|partition| pb::Leadership {
            topic_id: vec![7; 16].into(),
            partition,
            term: 3,
            broker_id: 1,
            ..Default::default()
        })
        .collect();
    a.peers.gossip(2, leaderships.clone());
    let seen = b.seen.wait("all leaderships", |events| {
        let all: Vec<_> = events.iter().flat_map(Event::leaderships).collect();
        (all.len() == 20_000).then_some(all)
    });
    assert_eq!(seen, leaderships);

    let forward = |method: &str| {
        let request = pb::ForwardRequest {
            method: method.to_owned(),
            payload: vec![1; 1 << 20].into(),
        };
        a.block_on(a.peers.forward(2, request, Duration::from_secs(10)))
    };
    let done = forward("echo").unwrap();
    assert_eq!(done.revision, 1 << 20);
    let refused = forward("other").unwrap_err();
    assert_eq!(refused.reason, Some(Reason::NotLeader));
    assert_eq!(refused.metadata["leader_id"], "3");
    let never = a.block_on(a.peers.forward(
        2,
        pb::ForwardRequest {
            method: "never".to_owned(),
            ..Default::default()
        },
        Duration::from_millis(50),
    ));
    assert_eq!(never.unwrap_err().reason, Some(Reason::Timeout));
    let unknown = pb::ForwardRequest::default();
    let unknown = a.block_on(a.peers.forward(8, unknown, Duration::from_secs(1)));
    assert_eq!(unknown.unwrap_err().reason, Some(Reason::UnknownBroker));

    let join = a.block_on(a.peers.join(&b.address, pb::JoinRequest::default()));
    assert_eq!(join.unwrap().cluster_id, CLUSTER);
    let mut b = b;
    b.kill();
    let gone = a.block_on(a.peers.status(&b.address, pb::StatusRequest::default()));
    assert_eq!(gone.unwrap_err().reason, Some(Reason::PeerUnreachable));
}

#[test]
fn a_handle_that_is_not_started_drops_and_counts() {
    let peers = Peers::new(Node::identity(1), 1);
    peers.set_known(BTreeMap::from([(
        2,
        PeerInfo {
            address: "127.0.0.1:1".to_owned(),
            rack: String::new(),
        },
    )]));
    peers.send(2, 0, vec![beat(1)]);
    assert_eq!(peers.stats().messages_dropped, 1);
}
