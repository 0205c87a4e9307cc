//! Peers that forge, flood and fall silent: each hurts itself only.

use std::io::{Read, Write};

use timberline_proto::internal::peer_service_client::PeerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::super::hello::{VERSION_MAX, VERSION_MIN};
use super::support::{CLUSTER, Node, beat, commits, pair};
use super::*;

fn hello(broker_id: i32, receiver: i32) -> pb::PeerHello {
    let identity = Node::identity(broker_id);
    Hello {
        cluster_id: CLUSTER.to_owned(),
        broker_id,
        directory: identity.directory,
        boot: identity.boot,
        rack: String::new(),
        lane: LaneId::Prompt,
    }
    .to_wire(receiver)
}

fn greeting(hello: pb::PeerHello) -> pb::PeerMessage {
    pb::PeerMessage {
        message: Some(pb::peer_message::Message::Hello(hello)),
    }
}

fn batch(bytes: impl Into<bytes::Bytes>) -> pb::PeerMessage {
    pb::PeerMessage {
        message: Some(pb::peer_message::Message::Batch(bytes.into())),
    }
}

/// A stream written by hand.
struct Raw {
    messages: mpsc::Sender<pb::PeerMessage>,
    answers: Streaming<pb::PeerAnswer>,
}

impl Raw {
    async fn open(address: &str, first: pb::PeerMessage) -> Result<Raw, Status> {
        let connection = Connection::open(address, Use::Bulk).await.unwrap();
        let origin = connection.origin();
        let (messages, stream) = mpsc::channel(16);
        messages.send(first).await.unwrap();
        let answers = PeerServiceClient::with_origin(connection, origin)
            .max_encoding_message_size(usize::MAX)
            .exchange(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Raw { messages, answers })
    }

    /// The next answer is of this kind.
    async fn answer(&mut self) -> pb::peer_answer::Answer {
        let answer = self.answers.message().await.unwrap();
        answer.unwrap().answer.unwrap()
    }
}

fn reason(status: &Status) -> Option<Reason> {
    ApiError::from_status(status).reason
}

#[test]
fn a_hello_out_of_form_is_refused_with_a_reason() {
    let b = Node::start(2);
    let refused = |change: &dyn Fn(&mut pb::PeerHello), expected| {
        let mut hello = hello(1, 2);
        change(&mut hello);
        let Err(status) = b.block_on(Raw::open(&b.address, greeting(hello))) else {
            panic!("accepted where {expected} was due");
        };
        assert_eq!(reason(&status), Some(expected), "{status}");
    };
    refused(
        &|h| h.version_min = VERSION_MAX + 1,
        Reason::UnsupportedVersion,
    );
    refused(
        &|h| (h.version_min, h.version_max) = (0, VERSION_MIN - 1),
        Reason::UnsupportedVersion,
    );
    refused(&|h| h.receiver_broker_id = 3, Reason::WrongReceiver);
    refused(&|h| h.cluster_id.clear(), Reason::WrongCluster);
    refused(
        &|h| h.cluster_id = "x".repeat(256),
        Reason::MalformedMessage,
    );
    refused(&|h| h.lane = 0, Reason::MalformedMessage);
    refused(&|h| h.lane = 9, Reason::MalformedMessage);
    refused(&|h| (h.lane, h.shard) = (2, 256), Reason::MalformedMessage);
    refused(&|h| h.broker_id = 0, Reason::MalformedMessage);
    refused(
        &|h| h.directory_id = bytes::Bytes::from_static(b"short"),
        Reason::MalformedMessage,
    );
    // A newer sender that still speaks our version.
    let newer = pb::PeerHello {
        version_max: VERSION_MAX + 7,
        ..hello(1, 2)
    };
    let mut raw = b
        .block_on(Raw::open(&b.address, greeting(newer)))
        .ok()
        .unwrap();
    match b.block_on(raw.answer()) {
        pb::peer_answer::Answer::Accepted(accepted) => {
            assert_eq!((accepted.broker_id, accepted.version), (2, VERSION_MAX));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_that_breaks_the_form_ends_and_others_go_on() {
    let (a, b) = pair();
    let first_is_no_hello = b.block_on(Raw::open(&b.address, batch("")));
    assert_eq!(
        reason(&first_is_no_hello.err().unwrap()),
        Some(Reason::HandshakeRequired)
    );
    let forged = [
        (batch("garbage"), Reason::MalformedMessage),
        (batch([0x0a, 0].repeat(5000)), Reason::MalformedMessage),
        (batch(vec![0x0a, 2, 0x10, 1]), Reason::MalformedMessage),
        (pb::PeerMessage::default(), Reason::MalformedMessage),
        (greeting(hello(3, 2)), Reason::HandshakeRequired),
    ];
    let count = forged.len() as u64;
    for (message, expected) in forged {
        let ended = b.block_on(async {
            let mut raw = Raw::open(&b.address, greeting(hello(3, 2))).await?;
            raw.answer().await;
            raw.messages.send(message).await.unwrap();
            raw.answers.message().await.map(|_| ())
        });
        assert_eq!(reason(&ended.unwrap_err()), Some(expected));
    }
    assert_eq!(b.peers.stats().malformed, count);
    a.peers.send(2, 0, vec![beat(1)]);
    b.seen.wait("a message of a sound stream", |events| {
        (commits(events, 1) == [1]).then_some(())
    });
    assert_eq!(a.peers.stats().connections, 2, "they were never cut");
}

#[test]
fn bytes_that_are_not_http_hurt_nobody() {
    let (a, b) = pair();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and what TLS says",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = std::net::TcpStream::connect(&b.address).unwrap();
        socket.write_all(bytes).unwrap();
        // It is hung up, with or without a word.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    a.peers.send(2, 0, vec![beat(1)]);
    b.seen.wait("a message", |events| {
        (commits(events, 1) == [1]).then_some(())
    });
}

#[test]
fn a_message_over_the_bound_is_refused_by_its_length() {
    let b = Node::start(2);
    let code = b.block_on(async {
        let mut raw = Raw::open(&b.address, greeting(hello(1, 2))).await?;
        raw.answer().await;
        let large = vec![0; limits::MESSAGE_BYTES_MAX + 1];
        raw.messages.send(batch(large)).await.unwrap();
        raw.answers.message().await.map(|_| ())
    });
    assert_eq!(code.unwrap_err().code(), tonic::Code::OutOfRange);
}

#[test]
fn a_newer_stream_takes_the_place_of_one_and_an_older_boot_is_refused() {
    use pb::peer_answer::Answer;
    let b = Node::start(2);
    let at_boot = |boot| pb::PeerHello {
        boot,
        ..hello(1, 2)
    };
    b.block_on(async {
        let mut first = Raw::open(&b.address, greeting(at_boot(5)))
            .await
            .ok()
            .unwrap();
        assert!(matches!(first.answer().await, Answer::Accepted(_)));
        let mut second = Raw::open(&b.address, greeting(at_boot(5)))
            .await
            .ok()
            .unwrap();
        assert!(matches!(second.answer().await, Answer::Accepted(_)));
        assert!(matches!(first.answer().await, Answer::Goodbye(_)));
        let older = Raw::open(&b.address, greeting(at_boot(4))).await;
        assert_eq!(reason(&older.err().unwrap()), Some(Reason::DuplicateBroker));
        let mut restarted = Raw::open(&b.address, greeting(at_boot(6)))
            .await
            .ok()
            .unwrap();
        assert!(matches!(restarted.answer().await, Answer::Accepted(_)));
        assert!(matches!(second.answer().await, Answer::Goodbye(_)));
    });
}

#[test]
fn a_sender_that_never_reads_costs_nothing() {
    let (a, b) = pair();
    // Its answers wait in the stream; its messages are read all the same.
    let raw = b
        .block_on(Raw::open(&b.address, greeting(hello(3, 2))))
        .ok()
        .unwrap();
    b.block_on(async {
        for _ in 0..1000 {
            raw.messages.send(batch("")).await.unwrap();
        }
    });
    a.peers.send(2, 0, vec![beat(1)]);
    b.seen.wait("a message", |events| {
        (commits(events, 1) == [1]).then_some(())
    });
}
