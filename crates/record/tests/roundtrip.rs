//! What goes into a builder comes out of the batch, for every codec and option.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use timberline_record::{
    BATCH_HEADER_LEN, Batch, BatchBuilder, BatchHeader, BatchOptions, Codec, Error, Header, Limits,
    ProducerStamp, Record, TimestampType,
};

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop_oneof![
        vec(any::<u8>(), 0..max).prop_map(Bytes::from),
        (any::<u8>(), 0..8 * max).prop_map(|(byte, len)| Bytes::from(vec![byte; len])),
    ]
}

fn header() -> impl Strategy<Value = Header> {
    // Few keys, so that they repeat.
    let key = prop_oneof![Just(Bytes::from_static(b"a")), bytes(3)];
    (key, option::of(bytes(20))).prop_map(|(key, value)| Header { key, value })
}

fn record() -> impl Strategy<Value = Record> {
    let timestamp = prop_oneof![
        1_700_000_000_000i64..1_700_000_100_000,
        -1i64..100,
        // Any two of these are apart by less than an `i64` holds.
        i64::MIN / 2..i64::MAX / 2,
    ];
    let headers = prop_oneof![Just(Vec::new()), vec(header(), 0..6)];
    (
        timestamp,
        option::of(bytes(40)),
        option::of(bytes(300)),
        headers,
    )
        .prop_map(|(timestamp, key, value, headers)| Record {
            offset: 0,
            timestamp,
            key,
            value,
            headers,
        })
}

fn stamp() -> impl Strategy<Value = ProducerStamp> {
    (0..=i64::MAX, 0..=i16::MAX, 0..=i32::MAX).prop_map(|(id, epoch, base_sequence)| {
        ProducerStamp {
            id,
            epoch,
            base_sequence,
        }
    })
}

fn options() -> impl Strategy<Value = BatchOptions> {
    (
        0..Codec::ALL.len(),
        any::<bool>(),
        any::<bool>(),
        0usize..5_000,
    )
        .prop_map(|(codec, append_time, control, capacity)| BatchOptions {
            codec: Codec::ALL[codec],
            timestamp_type: match append_time {
                true => TimestampType::LogAppendTime,
                false => TimestampType::CreateTime,
            },
            control,
            capacity,
            ..BatchOptions::default()
        })
}

fn decode(batch: &Batch) -> Result<Vec<Record>, Error> {
    batch.records(&Limits::default())?.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_round_trip(
        records in vec(record(), 1..30),
        options in options(),
        producer in option::of(stamp()),
        transactional in any::<bool>(),
        base_offset in 0..i64::MAX - 100,
        leader_epoch in any::<i32>(),
        now in any::<i64>(),
    ) {
        let options = BatchOptions { transactional: transactional && producer.is_some(), ..options };
        let mut builder = BatchBuilder::with_options(options);
        for (index, record) in records.iter().enumerate() {
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            let expected = builder.encoded_len_with(record.timestamp, key, value, &record.headers);
            builder.append_record(record).unwrap();
            prop_assert_eq!(builder.encoded_len(), expected);
            prop_assert_eq!(builder.record_count(), index + 1);
        }
        let plain_len = builder.encoded_len();
        let batch = builder.build(producer).unwrap();
        let limits = Limits::default();
        batch.validate(&limits).unwrap();
        prop_assert!(batch.bytes().len() <= plain_len);
        let inspection = batch.inspect(&limits).unwrap();
        prop_assert_eq!(inspection.uncompressed_len, plain_len - BATCH_HEADER_LEN);
        let null_keys = records.iter().filter(|record| record.key.is_none()).count();
        prop_assert_eq!(inspection.null_keys, null_keys);

        // The parsed batch is the built one.
        prop_assert_eq!(&Batch::parse(batch.bytes().clone()).unwrap(), &batch);
        let header = *batch.header();
        prop_assert!(header.codec() == options.codec || header.codec() == Codec::None);
        prop_assert_eq!(header.timestamp_type(), options.timestamp_type);
        prop_assert_eq!(header.is_control(), options.control);
        prop_assert_eq!(header.is_transactional(), options.transactional);
        prop_assert_eq!(header.producer(), producer);
        prop_assert_eq!(header.base_timestamp, records[0].timestamp);
        let max_timestamp = records.iter().map(|record| record.timestamp).max().unwrap();
        prop_assert_eq!(header.max_timestamp, max_timestamp);

        let expected = |base: i64, append_time: Option<i64>| -> Vec<Record> {
            let numbered = (base..).zip(&records);
            numbered.map(|(offset, record)| Record {
                offset,
                timestamp: append_time.unwrap_or(record.timestamp),
                ..record.clone()
            }).collect()
        };
        let append_time = (options.timestamp_type == TimestampType::LogAppendTime).then_some(max_timestamp);
        prop_assert_eq!(decode(&batch).unwrap(), expected(0, append_time));

        // Stamped by a broker: the body as it was, the CRC still right.
        let stamped = batch.stamped_header(base_offset, leader_epoch);
        let stamped = Batch::assemble(&stamped, &batch.body()).unwrap();
        stamped.validate(&limits).unwrap();
        prop_assert_eq!(stamped.header().leader_epoch, leader_epoch);
        prop_assert_eq!(stamped.header().next_offset(), base_offset + records.len() as i64);
        prop_assert_eq!(decode(&stamped).unwrap(), expected(base_offset, append_time));

        // Log append time: the CRC follows without the body.
        let appended = batch.with_log_append_time(now).stamped(base_offset, leader_epoch);
        let appended = batch.clone().with_header(appended).unwrap();
        appended.verify_crc().unwrap();
        prop_assert_eq!(decode(&appended).unwrap(), expected(base_offset, Some(now)));
        prop_assert_eq!(appended.inspect(&limits).unwrap().max_timestamp, now);
    }

    #[test]
    fn batches_split_off_a_concatenation(sets in vec(vec(record(), 1..4), 1..6), cut in 1usize..60) {
        let mut all = Vec::new();
        let mut batches = Vec::new();
        for records in &sets {
            let mut builder = BatchBuilder::new(Codec::Lz4, TimestampType::CreateTime);
            for record in records {
                builder.append_record(record).unwrap();
            }
            let batch = builder.build(None).unwrap();
            all.extend_from_slice(batch.bytes());
            batches.push(batch);
        }
        all.extend_from_slice(&batches[0].bytes()[..cut]);
        let mut rest = Bytes::from(all);
        for batch in &batches {
            prop_assert_eq!(&Batch::split_first(&mut rest).unwrap(), batch);
        }
        prop_assert_eq!(rest.len(), cut);
        let cut_off = Batch::split_first(&mut rest).unwrap_err();
        let truncated = matches!(cut_off, Error::Truncated { available, .. } if available == cut);
        prop_assert!(truncated, "{:?}", cut_off);
        prop_assert_eq!(rest.len(), cut);
    }

    #[test]
    fn headers_round_trip(raw in proptest::array::uniform32(any::<u8>()), more in vec(any::<u8>(), 29)) {
        let mut bytes = [&raw[..], &more].concat();
        // Most random headers are refused; these fields let many through.
        bytes[0] &= 0x7f;
        bytes[8] &= 0x7f;
        bytes[16] = 2;
        bytes[21] = 0;
        bytes[22] &= 0x7b;
        bytes[23] &= 0x7f;
        bytes[57] = 0;
        if let Ok(header) = BatchHeader::decode(&bytes) {
            prop_assert_eq!(&header.encode()[..], &bytes[..]);
        }
    }
}

#[test]
fn producer_restamped_keeps_a_right_crc_and_a_wrong_one() {
    let mut builder = BatchBuilder::new(Codec::Zstd, TimestampType::CreateTime);
    builder
        .append(5, Some(b"k"), Some(&[7; 5_000]), &[])
        .unwrap();
    let batch = builder.build(None).unwrap();
    let stamp = ProducerStamp {
        id: 9,
        epoch: 1,
        base_sequence: 30,
    };
    let stamped = batch.header().with_producer(Some(stamp));
    let restamped = batch.clone().with_header(stamped).unwrap();
    assert_eq!(restamped.header().producer(), Some(stamp));
    restamped.validate(&Limits::default()).unwrap();
    // The original, still held, is untouched.
    batch.validate(&Limits::default()).unwrap();
    assert_eq!(batch.header().producer(), None);

    let mut damaged = batch.bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = Batch::parse(damaged.into()).unwrap();
    let header = damaged.with_log_append_time(1);
    let damaged = damaged.with_header(header).unwrap();
    assert!(matches!(
        damaged.verify_crc(),
        Err(Error::CrcMismatch { .. })
    ));
}

#[test]
fn incompressible_records_stay_uncompressed() {
    let mut seed = 7u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    let value: Vec<u8> = (0..4_000).map(|_| noise()).collect();
    for codec in Codec::ALL {
        let mut builder = BatchBuilder::new(codec, TimestampType::CreateTime);
        builder.append(0, None, Some(&value), &[]).unwrap();
        let batch = builder.build(None).unwrap();
        assert_eq!(batch.header().codec(), Codec::None);
        batch.validate(&Limits::default()).unwrap();
    }
}

#[test]
fn refused_appends_leave_the_batch_as_it_was() {
    let limits = Limits {
        max_batch_bytes: 200,
        max_records: 3,
        max_headers_per_record: 2,
        ..Limits::default()
    };
    let options = BatchOptions {
        limits,
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::with_options(options);
    assert!(builder.is_empty());
    let header = Header::new("k", Some("v"));
    let headers = vec![header; 3];
    builder
        .append(i64::MIN, None, Some(b"first"), &headers[..2])
        .unwrap();
    let len = builder.encoded_len();

    let too_large = builder.append(-1, None, Some(&[0; 150]), &[]);
    assert!(
        matches!(too_large, Err(Error::BatchTooLarge { limit: 200, .. })),
        "{too_large:?}"
    );
    let headers = builder.append(-1, None, None, &headers);
    assert_eq!(
        headers,
        Err(Error::TooManyHeaders {
            index: 1,
            count: 3,
            limit: 2
        })
    );
    let far = builder.append(1, None, None, &[]);
    assert_eq!(
        far,
        Err(Error::TimestampOutOfRange {
            timestamp: 1,
            base: i64::MIN
        })
    );
    assert_eq!((builder.encoded_len(), builder.record_count()), (len, 1));

    builder.append(-1, None, None, &[]).unwrap();
    builder.append(i64::MIN, None, None, &[]).unwrap();
    let fourth = builder.append(-1, None, None, &[]);
    assert_eq!(fourth, Err(Error::TooManyRecords { count: 4, limit: 3 }));
    let batch = builder.build(None).unwrap();
    assert_eq!(batch.header().record_count, 3);
    batch.validate(&limits).unwrap();
}

#[test]
fn what_cannot_be_built() {
    let empty = BatchBuilder::new(Codec::Gzip, TimestampType::CreateTime);
    assert_eq!(empty.build(None), Err(Error::EmptyBatch));

    let options = BatchOptions {
        transactional: true,
        ..BatchOptions::default()
    };
    let mut builder = BatchBuilder::with_options(options);
    builder.append(0, None, None, &[]).unwrap();
    let nobodys = builder.build(None);
    assert_eq!(
        nobodys,
        Err(Error::InvalidHeader {
            field: "producer_id",
            value: -1
        })
    );
}
