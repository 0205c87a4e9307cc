//! Round trips, and bytes that no broker sends.

use proptest::collection::vec;
use proptest::prelude::*;
use timberline_storage::EntryKind;

use super::*;

fn frame(index: u64, payload: Vec<u8>) -> Frame {
    Frame {
        header: FrameHeader {
            kind: EntryKind::Command,
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
            term: 3,
            index,
            base_offset: 17,
            record_count: 0,
            append_time_ms: 1_700_000_000_000,
            chain: index.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        },
        payload: payload.into(),
    }
}

fn append(prev_index: u64, payloads: Vec<Vec<u8>>) -> Body {
    let frames = payloads.into_iter().zip(prev_index + 1..);
    Body::Append(Append {
        prev_index,
        prev_term: 2,
        commit: prev_index,
        frames: frames
            .map(|(payload, index)| frame(index, payload))
            .collect(),
    })
}

fn candidacy() -> impl Strategy<Value = Candidacy> {
    any::<(u64, u64, u64, u64, bool)>().prop_map(
        |(last_index, last_term, commit, commit_term, transfer)| Candidacy {
            last_index,
            last_term,
            commit,
            commit_term,
            transfer,
        },
    )
}

fn vote() -> impl Strategy<Value = VoteReply> {
    any::<(bool, u64, u64)>().prop_map(|(granted, commit, commit_term)| VoteReply {
        granted,
        commit,
        commit_term,
    })
}

fn body() -> impl Strategy<Value = Body> {
    let mismatch = any::<Option<(u64, u64)>>()
        .prop_map(|m| m.map(|(hint, hint_term)| Mismatch { hint, hint_term }));
    prop_oneof![
        candidacy().prop_map(Body::PreVote),
        vote().prop_map(Body::PreVoteReply),
        candidacy().prop_map(Body::Vote),
        vote().prop_map(Body::VoteReply),
        (0..u64::MAX / 2, vec(vec(any::<u8>(), 0..40), 0..6)).prop_map(|(p, f)| append(p, f)),
        (any::<u64>(), mismatch, any::<u64>()).prop_map(|(index, refused, commit)| {
            Body::AppendReply(AppendReply {
                index,
                refused,
                commit,
            })
        }),
        any::<(u64, bool)>().prop_map(|(commit, quiesce)| Body::Beat { commit, quiesce }),
        any::<(u64, bool)>().prop_map(|(commit, quiesced)| Body::BeatReply { commit, quiesced }),
        Just(Body::TimeoutNow),
        (any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..40)).prop_map(|(index, term, bytes)| {
            Body::Snapshot(SnapshotMark {
                index,
                term,
                membership: bytes.into(),
            })
        }),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (any::<u64>(), 1..u64::MAX, 1..u64::MAX, any::<u64>(), body()).prop_map(
        |(group, from, to, term, body)| Envelope {
            group,
            from,
            to,
            term,
            body,
        },
    )
}

/// What the sender writes, as the receiver's type reads it.
fn on_the_wire(batch: pb::PeerBatch) -> Bytes {
    let sent = pb::OutgoingPeerMessage {
        message: Some(pb::outgoing_peer_message::Message::Batch(batch)),
    };
    let received = pb::PeerMessage::decode(sent.encode_to_vec().as_slice()).unwrap();
    match received.message {
        Some(pb::peer_message::Message::Batch(bytes)) => bytes,
        other => panic!("not a batch: {other:?}"),
    }
}

fn batch(envelopes: Vec<Envelope>) -> Bytes {
    on_the_wire(to_wire(envelopes, Vec::new(), ShardBeats::default()))
}

fn one(body: Body) -> Envelope {
    Envelope {
        group: 7,
        from: 1,
        to: 2,
        term: 3,
        body,
    }
}

proptest! {
    #[test]
    fn every_envelope_comes_back(envelopes in vec(envelope(), 0..8)) {
        let (beats, others): (Vec<_>, Vec<_>) = envelopes.iter().cloned().partition(Envelope::is_beat);
        let expected = [others, beats].concat();
        prop_assert_eq!(read_batch(batch(envelopes)).unwrap().messages, expected);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = read_batch(bytes.into());
    }

    #[test]
    fn a_damaged_batch_never_panics_nor_brings_another_payload(
        envelopes in vec(envelope(), 1..4), at in any::<prop::sample::Index>(), bit in 0..8,
    ) {
        let mut bytes = batch(envelopes).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        if let Ok(received) = read_batch(bytes.into()) {
            for message in received.messages {
                if let Body::Append(append) = message.body {
                    for frame in append.frames {
                        prop_assert_eq!(frame.header.check_payload(&frame.payload), Ok(()));
                    }
                }
            }
        }
    }
}

#[test]
fn a_batch_cut_anywhere_is_refused_or_shorter() {
    let sent = vec![
        one(append(4, vec![b"abc".to_vec(), Vec::new()])),
        one(Body::TimeoutNow),
        one(Body::Beat {
            commit: 9,
            quiesce: false,
        }),
    ];
    let bytes = batch(sent.clone());
    for end in 0..bytes.len() {
        if let Ok(received) = read_batch(bytes.slice(..end)) {
            assert!(received.messages.len() < sent.len());
            assert_eq!(received.messages, sent[..received.messages.len()]);
        }
    }
}

#[test]
fn payloads_are_not_copied() {
    let bytes = batch(vec![one(append(0, vec![vec![7; 5000]]))]);
    let received = read_batch(bytes.clone()).unwrap();
    let Body::Append(append) = &received.messages[0].body else {
        panic!("an append was sent");
    };
    let payload = append.frames[0].payload.as_ptr() as usize;
    let message = bytes.as_ptr() as usize..bytes.as_ptr() as usize + bytes.len();
    assert!(message.contains(&payload));
}

fn refused(bytes: Bytes, why: &str) {
    let error = read_batch(bytes).unwrap_err();
    assert_eq!(error.reason, Some(Reason::MalformedMessage));
    assert!(
        error.message.contains(why),
        "{:?} does not say {why:?}",
        error.message
    );
}

fn refused_message(change: impl FnOnce(&mut pb::RaftMessage), why: &str) {
    let append = one(append(4, vec![b"abc".to_vec(), b"de".to_vec()]));
    let mut message = message_to_wire(append).unwrap();
    change(&mut message);
    let batch = pb::PeerBatch {
        messages: vec![message],
        ..pb::PeerBatch::default()
    };
    refused(on_the_wire(batch), why);
}

fn refused_frame(change: impl FnOnce(&mut pb::Frame), why: &str) {
    refused_message(
        |message| match &mut message.body {
            Some(Wire::Append(append)) => change(&mut append.frames[1]),
            _ => panic!("an append was made"),
        },
        why,
    );
}

#[test]
fn forged_messages_are_refused() {
    refused_message(|m| m.body = None, "without a body");
    refused_message(|m| m.from = 0, "nobody");
    refused_message(|m| m.to = 0, "nobody");
    refused_frame(|f| f.header = Bytes::new(), "header of 0 bytes");
    refused_frame(
        |f| f.header = Bytes::from(vec![0; 65]),
        "header of 65 bytes",
    );
    refused_frame(
        |f| f.header = Bytes::from(vec![0; 64]),
        "checksum does not match",
    );
    refused_frame(|f| f.payload = Bytes::from_static(b"dx"), "entry 6");
    refused_frame(|f| f.payload = Bytes::from_static(b"d"), "entry 6");
    let other = frame(9, b"de".to_vec());
    let header = Bytes::copy_from_slice(&other.header.encode());
    refused_frame(|f| f.header = header, "entry 9 where 6 is next");
    refused_message(
        |m| {
            if let Some(Wire::Append(append)) = &mut m.body {
                append.prev_index = u64::MAX;
            }
        },
        "is next",
    );
    let leadership = pb::Leadership {
        topic_id: Bytes::from_static(&[1; 15]),
        ..pb::Leadership::default()
    };
    let batch = pb::PeerBatch {
        leaderships: vec![leadership],
        ..pb::PeerBatch::default()
    };
    refused(on_the_wire(batch), "15 bytes");
    refused(Bytes::from_static(&[0x0b]), "wire type");
    refused(
        Bytes::from_static(&[
            0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ]),
        "ends inside",
    );
}

#[test]
fn counts_are_bounded_before_anything_is_made_of_them() {
    // Two bytes each: a decoder would make some hundred of them.
    refused([0x0a, 0].repeat(1 << 20).into(), "more than 4096 messages");
    refused(
        [0x12, 0].repeat(1 << 20).into(),
        "more than 8192 leaderships",
    );
    let frames = [0x22, 0].repeat(BATCH_FRAMES / 2 + 1);
    let field = |key: u8, bytes: &[u8]| {
        let mut out = vec![key];
        prost::encoding::encode_varint(bytes.len() as u64, &mut out);
        out.extend_from_slice(bytes);
        out
    };
    // In two messages, and in one whose body comes twice.
    let append = field(0x4a, &frames);
    refused(
        field(0x0a, &append).repeat(2).into(),
        "more than 65536 frames",
    );
    refused(
        field(0x0a, &append.repeat(2)).into(),
        "more than 65536 frames",
    );
    let full = vec![one(Body::TimeoutNow); BATCH_MESSAGES];
    assert_eq!(read_batch(batch(full.clone())).unwrap().messages, full);
}

#[test]
fn beats_that_are_none_are_refused() {
    let beat = one(Body::Beat {
        commit: 9,
        quiesce: false,
    });
    let beats = to_wire(vec![beat.clone()], Vec::new(), ShardBeats::default()).beats;
    let with = |beats: Vec<u8>| {
        read_batch(on_the_wire(pb::PeerBatch {
            beats: beats.into(),
            ..pb::PeerBatch::default()
        }))
    };
    assert_eq!(with(beats.to_vec()).unwrap().messages, [beat]);
    let (mut kind, mut nobody) = (beats.to_vec(), beats.to_vec());
    kind[0] = 4;
    nobody[9..17].fill(0);
    let (cut, many) = (beats[1..].to_vec(), beats.repeat(BATCH_MESSAGES + 1));
    for beats in [kind, nobody, cut, many] {
        assert_eq!(
            with(beats).unwrap_err().reason,
            Some(Reason::MalformedMessage)
        );
    }
}

#[test]
fn shards_that_a_broker_cannot_have_are_refused() {
    let read = |shards, shard_beats: Vec<u8>| {
        let batch = pb::PeerBatch {
            shards,
            shard_beats: shard_beats.into(),
            ..pb::PeerBatch::default()
        };
        read_batch(batch.encode_to_vec().into()).map(|received| received.shard_beats)
    };
    let mut beats = ShardBeats::default();
    for shard in [9, 0] {
        beats.set(shard, 10);
    }
    let wire = to_wire(Vec::new(), Vec::new(), beats);
    let received = read(wire.shards, wire.shard_beats.to_vec()).unwrap();
    assert_eq!(received, beats);
    assert_eq!(
        (received.shards(), received.alive().collect::<Vec<_>>()),
        (10, vec![0, 9])
    );
    for (shards, alive) in [
        (9, vec![1, 2]),
        (0, vec![1]),
        (257, vec![1]),
        (u32::MAX, vec![1]),
        (256, vec![1; 33]),
    ] {
        let error = read(shards, alive).unwrap_err();
        assert_eq!(error.reason, Some(Reason::MalformedMessage));
    }
}
