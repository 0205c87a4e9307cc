//! Bytes that lie: every one ends in a typed error, within the limits, without a panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use bytes::Bytes;
use proptest::prelude::*;
use timberline_record::{
    BATCH_HEADER_LEN, Batch, BatchBuilder, BatchHeader, Codec, Error, Header, Limits,
    ProducerStamp, Record, RecordFlaw, TimestampType, UNCHECKED_LEN,
};

/// A batch of a few records of every kind, compressible.
fn sample(codec: Codec) -> Batch {
    let mut builder = BatchBuilder::new(codec, TimestampType::CreateTime);
    let headers = [Header::new("h", Some("v")), Header::new("h", None::<Bytes>)];
    builder
        .append(1_000, Some(b"key"), Some(&[b'x'; 300]), &headers)
        .unwrap();
    builder.append(990, None, None, &[]).unwrap();
    builder
        .append(
            1_010,
            Some(b""),
            Some(b"value value value value"),
            &headers[1..],
        )
        .unwrap();
    let stamp = ProducerStamp {
        id: 5,
        epoch: 0,
        base_sequence: 17,
    };
    let batch = builder.build(Some(stamp)).unwrap();
    assert_eq!(batch.header().codec(), codec);
    batch
}

/// Puts a right CRC on tampered bytes, so that what lies behind it is reached.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes[UNCHECKED_LEN..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// `batch` with another body, its length and CRC right.
fn with_body(batch: &Batch, body: &[u8]) -> Batch {
    let mut header = *batch.header();
    header.batch_length = (BATCH_HEADER_LEN - 12 + body.len()) as i32;
    Batch::parse(with_crc([&header.encode()[..], body].concat()).into()).unwrap()
}

fn read_all(batch: &Batch, limits: &Limits) -> Result<Vec<Record>, Error> {
    batch.records(limits)?.collect()
}

/// Everything a broker or a client would do with bytes from outside.
fn exercise(bytes: Vec<u8>) -> Option<Batch> {
    let limits = Limits::default();
    let bytes = Bytes::from(bytes);
    let _ = BatchHeader::decode(&bytes);
    let _ = Batch::split_first(&mut bytes.clone());
    let batch = Batch::parse(bytes).ok()?;
    let header = batch.header();
    let _ = (
        header.codec(),
        header.timestamp_type(),
        header.next_offset(),
        header.producer(),
    );
    let stamped = Batch::assemble(&batch.stamped_header(3, 4), &batch.body());
    let _ = batch
        .clone()
        .with_header(batch.with_log_append_time(i64::MIN));
    let _ = stamped.map(|stamped| read_all(&stamped, &limits));
    let _ = batch.verify_crc();
    let _ = read_all(&batch, &limits);
    batch.validate(&limits).ok().map(|()| batch)
}

#[test]
fn truncated_at_every_byte() {
    for codec in Codec::ALL {
        let bytes = sample(codec).into_bytes();
        for len in 0..bytes.len() {
            let cut = bytes.slice(..len);
            let parsed = Batch::parse(cut.clone());
            assert!(matches!(parsed, Err(Error::Truncated { available, .. }) if available == len));
            assert_eq!(Batch::split_first(&mut cut.clone()), parsed);

            // The same with a header that owns up to the shorter body.
            if len >= BATCH_HEADER_LEN {
                let mut honest = cut.to_vec();
                honest[8..12].copy_from_slice(&(len as i32 - 12).to_be_bytes());
                assert_eq!(exercise(with_crc(honest)), None, "{codec} {len}");
            }
        }
    }
}

#[test]
fn every_bit_of_the_header_flipped() {
    for codec in Codec::ALL {
        let bytes = sample(codec).into_bytes();
        for bit in 0..8 * BATCH_HEADER_LEN {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let survived = exercise(flipped.clone());
            // Outside the CRC are the base offset and the leader epoch; all else is noticed.
            let unchecked = bit / 8 < 8 || (12..16).contains(&(bit / 8));
            assert!(survived.is_none() || unchecked, "{codec} bit {bit}");
            exercise(with_crc(flipped));
        }
    }
}

#[test]
fn every_byte_of_the_header_set_to_every_value() {
    for codec in [Codec::None, Codec::Lz4] {
        let bytes = sample(codec).into_bytes();
        for at in 0..BATCH_HEADER_LEN {
            for value in 0..=u8::MAX {
                let mut changed = bytes.to_vec();
                changed[at] = value;
                exercise(changed.clone());
                exercise(with_crc(changed));
            }
        }
    }
}

#[test]
fn every_byte_of_the_body_damaged() {
    for codec in Codec::ALL {
        let bytes = sample(codec).into_bytes();
        for at in BATCH_HEADER_LEN..bytes.len() {
            for mask in [1, 0x80, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= mask;
                assert_eq!(exercise(damaged.clone()), None, "{codec} byte {at}");
                exercise(with_crc(damaged));
            }
        }
    }
}

/// One compressed stream that expands to `len` zero bytes.
fn bomb(codec: Codec, len: usize) -> Vec<u8> {
    let zeros = vec![0; len];
    match codec {
        Codec::None => zeros,
        Codec::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::Write::write_all(&mut encoder, &zeros).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Snappy => snap::raw::Encoder::new().compress_vec(&zeros).unwrap(),
        Codec::Lz4 => {
            let frame =
                lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max4MB);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(frame, Vec::new());
            std::io::Write::write_all(&mut encoder, &zeros).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Zstd => zstd::bulk::compress(&zeros, 19).unwrap(),
    }
}

#[test]
fn bombs() {
    let limits = Limits {
        max_decompressed_bytes: 1 << 20,
        ..Limits::default()
    };
    for codec in Codec::ALL {
        let body = bomb(codec, 16 << 20);
        let batch = with_body(&sample(codec), &body);
        let refused = Error::DecompressedTooLarge {
            codec,
            limit: 1 << 20,
        };
        assert_eq!(read_all(&batch, &limits), Err(refused.clone()));
        if body.len() < limits.max_batch_bytes {
            assert_eq!(batch.validate(&limits), Err(refused.clone()));
        }
        assert!(refused.is_limit() && !refused.is_corruption());
    }
}

#[test]
fn snappy_bomb_in_framing() {
    let mut body = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    let block = bomb(Codec::Snappy, 64 << 10);
    for _ in 0..1_000 {
        body.extend_from_slice(&(block.len() as u32).to_be_bytes());
        body.extend_from_slice(&block);
    }
    let limits = Limits {
        max_decompressed_bytes: 1 << 20,
        ..Limits::default()
    };
    let batch = with_body(&sample(Codec::Snappy), &body);
    let refused = read_all(&batch, &limits);
    assert!(
        matches!(refused, Err(Error::DecompressedTooLarge { .. })),
        "{refused:?}"
    );
}

#[test]
fn claimed_sizes_without_the_bytes() {
    // Each claims to expand to about 30 MiB, within the limits, and holds next to nothing.
    let snappy = [&[0x80, 0x80, 0x80, 0x0f][..], &[0; 20]].concat();
    // Magic; single segment, 8-byte content size; the size; a raw block of 3 bytes, the last.
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    zstd.extend_from_slice(&(30u64 << 20).to_le_bytes());
    zstd.extend_from_slice(&[0x19, 0, 0, 1, 2, 3]);
    // Magic; window of 2 GiB, no content size; an empty last block.
    let window = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let framed = [
        b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".as_slice(),
        &[0x7f, 0xff, 0xff, 0xff, 1],
    ]
    .concat();
    let cases = [
        (Codec::Snappy, snappy),
        (Codec::Snappy, framed),
        (Codec::Zstd, zstd),
        (Codec::Zstd, window),
        (Codec::Snappy, Vec::from(*b"\x82SNAPPY\0")),
        (Codec::Gzip, vec![0x1f, 0x8b]),
        (Codec::Lz4, vec![0x04, 0x22, 0x4d, 0x18]),
    ];
    for (codec, body) in cases {
        let batch = with_body(&sample(codec), &body);
        let refused = read_all(&batch, &Limits::default());
        assert!(refused.is_err(), "{codec} {body:x?}");
        assert!(refused.unwrap_err().is_corruption());
        assert!(batch.validate(&Limits::default()).is_err());
    }
}

#[test]
fn counts_larger_than_the_bytes_left() {
    let limits = Limits::default();
    for codec in Codec::ALL {
        for count in [4i32, 1_000, 1 << 24, i32::MAX] {
            let mut bytes = sample(codec).bytes().to_vec();
            bytes[57..61].copy_from_slice(&count.to_be_bytes());
            bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
            let read = Batch::parse(with_crc(bytes.clone()).into())
                .and_then(|batch| read_all(&batch, &limits));
            match read {
                Err(Error::ImpossibleCount { .. } | Error::TooManyRecords { .. }) => {}
                Err(Error::InvalidRecord {
                    index: 3,
                    flaw: RecordFlaw::CutOff,
                }) => {}
                other => panic!("{codec} {count}: {other:?}"),
            }
            assert_eq!(exercise(with_crc(bytes)), None);
        }
        // Fewer records than there are leave bytes over; more than offsets are impossible.
        let mut bytes = sample(codec).bytes().to_vec();
        bytes[57..61].copy_from_slice(&2i32.to_be_bytes());
        let batch = Batch::parse(with_crc(bytes.clone()).into()).unwrap();
        let left_over = batch.records(&limits).unwrap().last();
        assert!(
            matches!(left_over, Some(Err(Error::TrailingBytes { .. }))),
            "{left_over:?}"
        );
        assert!(batch.validate(&limits).is_err());
        bytes[23..27].copy_from_slice(&0i32.to_be_bytes());
        assert!(matches!(
            Batch::parse(bytes.into()),
            Err(Error::ImpossibleCount { .. })
        ));
    }
}

/// The uncompressed sample with one record of these bytes instead of its own.
fn one_record(record: &[u8]) -> Result<Vec<Record>, Error> {
    let mut header = *sample(Codec::None).header();
    header.record_count = 1;
    header.last_offset_delta = 0;
    header.batch_length = (BATCH_HEADER_LEN - 12 + record.len()) as i32;
    let batch = Batch::parse(with_crc([&header.encode()[..], record].concat()).into())?;
    let read = read_all(&batch, &Limits::default());
    match batch.inspect(&Limits::default()) {
        Ok(_) => assert!(read.is_ok(), "validated, but unreadable"),
        Err(error) => assert_eq!(read, Err(error)),
    }
    read
}

#[test]
fn records_that_break_the_format() {
    use RecordFlaw::*;
    // Length, attributes, timestamp delta, offset delta, key, value, headers; lengths are doubled by zigzag.
    assert_eq!(one_record(&[12, 0, 0, 0, 1, 1, 0]).unwrap().len(), 1);
    let cases: [(&[u8], RecordFlaw); 14] = [
        (&[14, 0, 0, 0, 1, 1, 0], CutOff),
        (&[1, 0, 0, 0, 1, 1, 0], NegativeLength),
        (&[12, 0, 0, 0, 3, 1, 0], NegativeLength),
        (&[12, 0, 0, 0, 1, 5, 0], NegativeLength),
        (&[12, 0, 0, 0, 1, 1, 1], NegativeLength),
        (&[12, 0, 0, 0, 8, 1, 0], FieldTooLong),
        (&[12, 0, 0, 0, 1, 0x7e, 0], FieldTooLong),
        (&[12, 0, 0, 0, 1, 1, 2], ImpossibleHeaderCount),
        (&[16, 0, 0, 0, 1, 1, 2, 1, 0], NegativeLength),
        (&[16, 0, 0, 0, 1, 1, 2, 0, 2], FieldTooLong),
        (&[14, 0, 0, 0, 1, 1, 0, 0], LengthMismatch),
        (&[12, 0, 0, 2, 1, 1, 0], OffsetOutOfOrder),
        (&[12, 0, 0, 1, 1, 1, 0], OffsetOutOfOrder),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 1, 0], BadVarint),
    ];
    for (bytes, flaw) in cases {
        assert_eq!(
            one_record(bytes),
            Err(Error::InvalidRecord { index: 0, flaw }),
            "{bytes:?}"
        );
    }
    let far = [
        30, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 1, 1, 0,
    ];
    let far = one_record(&far);
    assert_eq!(
        far,
        Err(Error::InvalidRecord {
            index: 0,
            flaw: TimestampOverflow
        })
    );
    assert_eq!(
        one_record(&[12, 0, 0, 0, 1, 1, 0, 9]),
        Err(Error::TrailingBytes { extra: 1 })
    );
}

#[test]
fn headers_beyond_the_limit() {
    let limits = Limits {
        max_headers_per_record: 1,
        ..Limits::default()
    };
    let batch = sample(Codec::None);
    let refused = Error::TooManyHeaders {
        index: 0,
        count: 2,
        limit: 1,
    };
    assert_eq!(batch.validate(&limits), Err(refused.clone()));
    assert_eq!(read_all(&batch, &limits), Err(refused));
}

#[test]
fn limits_of_the_batch() {
    let batch = sample(Codec::Zstd);
    let size = batch.bytes().len();
    let limits = Limits {
        max_batch_bytes: size,
        max_records: 3,
        ..Limits::default()
    };
    batch.validate(&limits).unwrap();
    let tight = Limits {
        max_batch_bytes: size - 1,
        ..limits
    };
    assert_eq!(
        batch.validate(&tight),
        Err(Error::BatchTooLarge {
            size,
            limit: size - 1
        })
    );
    assert!(batch.records(&tight).is_ok());
    let few = Limits {
        max_records: 2,
        ..limits
    };
    assert_eq!(
        batch.validate(&few),
        Err(Error::TooManyRecords { count: 3, limit: 2 })
    );
    assert!(batch.records(&few).is_err());
}

/// The sample with one header field changed, and the CRC right.
fn changed(change: impl FnOnce(&mut BatchHeader)) -> Result<Batch, Error> {
    let batch = sample(Codec::None);
    let mut header = *batch.header();
    change(&mut header);
    Batch::parse(with_crc([&header.encode()[..], &batch.body()].concat()).into())
}

#[test]
fn header_fields_that_cannot_be() {
    let parse = |change: fn(&mut BatchHeader)| changed(change).unwrap_err();
    let invalid = |field, value| Error::InvalidHeader { field, value };
    assert_eq!(parse(|h| h.magic = 1), Error::UnsupportedMagic { magic: 1 });
    assert_eq!(parse(|h| h.attributes |= 7), Error::UnknownCodec { id: 7 });
    assert_eq!(
        parse(|h| h.attributes = 1 << 7),
        Error::UnknownAttributes { attributes: 1 << 7 }
    );
    assert_eq!(parse(|h| h.batch_length = 48), invalid("batch_length", 48));
    assert_eq!(parse(|h| h.batch_length = -1), invalid("batch_length", -1));
    assert_eq!(parse(|h| h.base_offset = -1), invalid("base_offset", -1));
    assert_eq!(
        parse(|h| h.base_offset = i64::MAX - 2),
        invalid("base_offset", i64::MAX - 2)
    );
    assert_eq!(
        parse(|h| h.last_offset_delta = -1),
        invalid("last_offset_delta", -1)
    );
    assert_eq!(parse(|h| h.record_count = -1), invalid("record_count", -1));
    assert_eq!(
        parse(|h| h.batch_length -= 1),
        Error::TrailingBytes { extra: 1 }
    );
    changed(|h| h.base_offset = i64::MAX - 3).unwrap();
}

#[test]
fn header_fields_that_producers_may_not_send() {
    let validate = |change: fn(&mut BatchHeader)| {
        changed(change)
            .unwrap()
            .validate(&Limits::default())
            .unwrap_err()
    };
    let invalid = |field, value| Error::InvalidHeader { field, value };
    assert_eq!(validate(|h| h.producer_id = -2), invalid("producer_id", -2));
    assert_eq!(
        validate(|h| h.producer_epoch = -1),
        invalid("producer_epoch", -1)
    );
    assert_eq!(
        validate(|h| h.base_sequence = -1),
        invalid("base_sequence", -1)
    );
    assert_eq!(
        validate(|h| h.last_offset_delta = 3),
        invalid("last_offset_delta", 3)
    );
    let wrong = validate(|h| h.max_timestamp = 1_011);
    assert_eq!(
        wrong,
        Error::MaxTimestampMismatch {
            claimed: 1_011,
            found: 1_010
        }
    );
    let batch = changed(|h| h.max_timestamp = 1_011).unwrap();
    let found = batch.inspect(&Limits::default()).unwrap();
    assert_eq!(
        (found.max_timestamp, found.max_timestamp_offset_delta),
        (1_010, 2)
    );
    let repaired = batch.with_max_timestamp(found.max_timestamp);
    batch
        .with_header(repaired)
        .unwrap()
        .validate(&Limits::default())
        .unwrap();
}

#[test]
fn a_compacted_batch_is_read_but_not_accepted() {
    // Without its middle record, and one more removed at its end.
    let record = |delta: u8| [12, 0, 0, 2 * delta, 1, 1, 0];
    let mut header = *sample(Codec::None).header();
    header.record_count = 2;
    header.last_offset_delta = 3;
    header.base_offset = 40;
    header.batch_length = 49 + 14;
    let bytes = [&header.encode()[..], &record(0), &record(2)].concat();
    let batch = Batch::parse(with_crc(bytes).into()).unwrap();
    let read = read_all(&batch, &Limits::default()).unwrap();
    assert_eq!(
        read.iter().map(|record| record.offset).collect::<Vec<_>>(),
        [40, 42]
    );
    assert_eq!(batch.header().next_offset(), 44);
    assert!(batch.validate(&Limits::default()).is_err());

    // Emptied altogether, whatever its codec.
    for codec in Codec::ALL {
        header.record_count = 0;
        header.attributes = codec.attribute_bits();
        header.batch_length = 49;
        let batch = Batch::parse(with_crc(header.encode().to_vec()).into()).unwrap();
        assert_eq!(read_all(&batch, &Limits::default()), Ok(Vec::new()));
        assert_eq!(batch.validate(&Limits::default()), Err(Error::EmptyBatch));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bodies_never_panic(codec in 0..5usize, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut header = *sample(Codec::None).header();
        header.attributes = Codec::ALL[codec].attribute_bits();
        header.record_count = 1;
        header.last_offset_delta = 0;
        header.batch_length = 49 + body.len() as i32;
        exercise(with_crc([&header.encode()[..], &body].concat()));
    }

    #[test]
    fn tampered_batches_never_panic(
        codec in 0..5usize,
        changes in proptest::collection::vec((BATCH_HEADER_LEN..400, any::<u8>()), 1..6),
    ) {
        let mut bytes = sample(Codec::ALL[codec]).bytes().to_vec();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        exercise(with_crc(bytes));
    }
}
