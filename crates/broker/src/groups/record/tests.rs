//! Records survive the way to bytes and back, and bytes that are none are refused.

use super::codec::Malformed;
use super::*;

fn tp(topic: u128, partition: u32) -> Tp {
    Tp {
        topic: TopicId(topic),
        partition,
    }
}

fn samples() -> Vec<Record> {
    let group: Arc<str> = "billing".into();
    let member: Arc<str> = "m-1".into();
    vec![
        Record::Group {
            group: group.clone(),
            epoch: 7,
            assignor: Assignor::RackAware,
            empty_since_ms: Some(1_700_000_000_000),
        },
        Record::Member {
            group: group.clone(),
            member: Box::new(MemberRecord {
                id: member.clone(),
                instance: Some("host-3".into()),
                client_id: "c".into(),
                rack: "a".into(),
                topics: vec!["orders".to_owned(), "ä".to_owned()],
                pattern: Some("x.*".to_owned()),
                session_ms: 10_000,
                rebalance_ms: 60_000,
                poll_ms: 300_000,
                epoch: i64::MAX,
            }),
        },
        Record::MemberGone {
            group: group.clone(),
            member: member.clone(),
        },
        Record::Grant {
            group: group.clone(),
            member,
            epoch: -1,
            added: [tp(1, 0), tp(1, 899), tp(u128::MAX, 3)]
                .into_iter()
                .collect(),
            removed: Parts::default(),
        },
        Record::Offset {
            group: group.clone(),
            tp: tp(9, 3),
            committed: Committed {
                offset: i64::MAX,
                leader_epoch: Some(-1),
                at_ms: i64::MIN,
                metadata: "here".into(),
            },
        },
        Record::OffsetGone {
            group: group.clone(),
            topic: TopicId(3),
            partition: Some(8),
        },
        Record::GroupGone { group },
        Record::Revision(u64::MAX),
        Record::Mark,
        Record::ImageBegin,
        Record::ImageEnd,
    ]
}

#[test]
fn records_come_back_as_they_were() {
    for record in samples() {
        for in_image in [false, true] {
            let bytes = record.encode(in_image);
            assert_eq!(Record::decode(&bytes), Ok((record.clone(), in_image)));
        }
    }
}

/// Version 1 as it was first written: what is in logs must be read for ever.
#[test]
fn the_encoding_of_version_1_stays() {
    let all: Vec<u8> = samples().iter().flat_map(|one| one.encode(false)).collect();
    let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

const GOLDEN: &str = "\
    01010762696c6c696e670e020180a0abfef96201020762696c6c696e67036d2d310106686f73742d330163016102066f\
    726465727302c3a40103782e2aa09c01c0a907c0cf24feffffffffffffffff0101030762696c6c696e67036d2d310104\
    0762696c6c696e67036d2d3101020000000000000000000000000000000102008307ffffffffffffffffffffffffffff\
    ffff01030001050762696c6c696e670000000000000000000000000000000903feffffffffffffffff010101ffffffff\
    ffffffffff01046865726501060762696c6c696e6700000000000000000000000000000003011001070762696c6c696e\
    670108ffffffffffffffffff010109010a010b";

#[test]
fn cut_and_twisted_bytes_are_refused_or_read_but_never_more() {
    for record in samples() {
        let bytes = record.encode(false);
        for len in 0..bytes.len() {
            assert!(
                Record::decode(&bytes[..len]).is_err(),
                "{record:?} at {len}"
            );
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut twisted = bytes.clone();
                twisted[at] ^= 1 << bit;
                // Whatever it is now, it ends.
                let _ = Record::decode(&twisted);
            }
        }
    }
    // Counts beyond the bytes.
    let huge = [1, 4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(Record::decode(&huge), Err(Malformed::Short));
    assert_eq!(Record::decode(&[2, 9]), Err(Malformed::Version(2)));
    assert_eq!(Record::decode(&[1, 99]), Err(Malformed::Kind(99)));
}
