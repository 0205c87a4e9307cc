//! Batches made by two other implementations (Kafka's own in Java, kafka-python), and batches of ours
//! kept from when the format was fixed. How they came about: `fixtures/README.md`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use timberline_record::{
    Batch, BatchBuilder, BatchOptions, Codec, Header, Limits, ProducerStamp, Record, TimestampType,
};

fn fixture(dir: &str, name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    root.join(dir).join(name)
}

fn read(dir: &str, name: &str) -> Bytes {
    std::fs::read(fixture(dir, name)).unwrap().into()
}

fn manifest() -> Value {
    serde_json::from_slice(&read("kafka-python", "manifest.json")).unwrap()
}

fn bytes(described: &Value) -> Option<Bytes> {
    let hex = described.get("hex")?.as_str().unwrap();
    let once: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let times = described
        .get("times")
        .map_or(1, |times| times.as_u64().unwrap());
    Some(once.repeat(times as usize).into())
}

fn records(manifest: &Value, set: &str) -> Vec<Record> {
    let set = manifest["records"][set].as_array().unwrap();
    let record = |(index, record): (usize, &Value)| Record {
        offset: index as i64,
        timestamp: record["timestamp"].as_i64().unwrap(),
        key: bytes(&record["key"]),
        value: bytes(&record["value"]),
        headers: record["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|header| Header {
                key: bytes(&header[0]).unwrap(),
                value: bytes(&header[1]),
            })
            .collect(),
    };
    set.iter().enumerate().map(record).collect()
}

fn stamp(producer: &Value) -> Option<ProducerStamp> {
    Some(ProducerStamp {
        id: producer.get("id")?.as_i64().unwrap(),
        epoch: producer["epoch"].as_i64().unwrap() as i16,
        base_sequence: producer["base_sequence"].as_i64().unwrap() as i32,
    })
}

fn build(records: &[Record], options: BatchOptions, producer: Option<ProducerStamp>) -> Batch {
    let mut builder = BatchBuilder::with_options(options);
    for record in records {
        builder.append_record(record).unwrap();
    }
    builder.build(producer).unwrap()
}

fn options(case: &Value) -> BatchOptions {
    BatchOptions {
        codec: case["codec"].as_str().unwrap().parse().unwrap(),
        timestamp_type: match case["log_append_time"].as_bool().unwrap() {
            true => TimestampType::LogAppendTime,
            false => TimestampType::CreateTime,
        },
        transactional: case["transactional"].as_bool().unwrap(),
        ..BatchOptions::default()
    }
}

fn decoded(batch: &Batch) -> Vec<Record> {
    let records = batch.records(&Limits::default()).unwrap();
    records.collect::<Result<_, _>>().unwrap()
}

#[test]
fn kafka_pythons_batches_are_read() {
    let manifest = manifest();
    let cases = manifest["batches"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let file = case["file"].as_str().unwrap();
        let batch = Batch::parse(read("kafka-python", file)).unwrap();
        batch.validate(&Limits::default()).unwrap();
        let header = batch.header();
        assert_eq!(header.codec(), options(case).codec, "{file}");
        assert_eq!(header.timestamp_type(), options(case).timestamp_type);
        assert_eq!(header.is_transactional(), options(case).transactional);
        assert_eq!(header.producer(), stamp(&case["producer"]), "{file}");
        assert_eq!(i64::from(header.crc), case["crc"].as_i64().unwrap());
        assert_eq!(
            header.base_timestamp,
            case["base_timestamp"].as_i64().unwrap()
        );
        assert_eq!(
            header.max_timestamp,
            case["max_timestamp"].as_i64().unwrap()
        );
        assert_eq!(
            i64::from(header.record_count),
            case["record_count"].as_i64().unwrap()
        );

        let mut expected = records(&manifest, case["records"].as_str().unwrap());
        if header.timestamp_type() == TimestampType::LogAppendTime {
            expected
                .iter_mut()
                .for_each(|record| record.timestamp = header.max_timestamp);
        }
        assert_eq!(decoded(&batch), expected, "{file}");
    }
}

#[test]
fn ours_equal_kafka_pythons_byte_for_byte() {
    let manifest = manifest();
    let mut compared = 0;
    for case in manifest["batches"].as_array().unwrap() {
        if case["codec"] != "none" {
            continue; // Compressors differ in their output, not in its meaning.
        }
        let records = records(&manifest, case["records"].as_str().unwrap());
        let ours = build(&records, options(case), stamp(&case["producer"]));
        // It sends leader epoch 0 where we send, as Java does, -1: outside the CRC.
        let ours = [&ours.stamped_header(0, 0)[..], &ours.body()].concat();
        assert_eq!(ours, read("kafka-python", case["file"].as_str().unwrap()));
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn javas_batches_are_read() {
    let manifest = manifest();
    let append_time = 1_800_000_000_000;
    let cases = [
        ("none", Codec::None),
        ("gzip", Codec::Gzip),
        ("snappy", Codec::Snappy),
        ("lz4", Codec::Lz4),
        ("lz4-level-17", Codec::Lz4),
        ("zstd", Codec::Zstd),
        // Its frame asks for a window of 128 MiB.
        ("zstd-level-22", Codec::Zstd),
        ("log-append-time", Codec::Gzip),
    ];
    for (name, codec) in cases {
        let mut expected = records(&manifest, "mixed");
        let batch = Batch::parse(read("kafka-java", &format!("mixed-{name}.batch"))).unwrap();
        batch.validate(&Limits::default()).unwrap();
        assert_eq!(batch.header().codec(), codec, "{name}");
        let producer = stamp(&manifest["batches"][0]["producer"]);
        assert_eq!(batch.header().producer(), producer, "{name}");
        if name == "log-append-time" {
            assert_eq!(batch.header().max_timestamp, append_time);
            for record in &mut expected {
                record.timestamp = append_time;
            }
        }
        assert_eq!(decoded(&batch), expected, "{name}");
    }
}

#[test]
fn javas_commit_marker_is_a_control_batch() {
    let batch = Batch::parse(read("kafka-java", "commit-marker.batch")).unwrap();
    batch.validate(&Limits::default()).unwrap();
    let header = batch.header();
    assert!(header.is_control() && header.is_transactional());
    assert_eq!((header.base_offset, header.leader_epoch), (42, 3));
    assert_eq!(header.base_sequence, -1);
    let records = decoded(&batch);
    assert_eq!(records.len(), 1);
    // Version 0, type 1: a commit.
    assert_eq!(records[0].key.as_deref(), Some(&[0, 0, 0, 1][..]));
}

#[test]
fn ours_equal_javas_byte_for_byte() {
    // Snappy too, as there is one encoder that all follow; the others differ in their output.
    for codec in [Codec::None, Codec::Snappy] {
        let (file, ours, _) = our_batch(codec);
        assert_eq!(ours.bytes(), &read("kafka-java", &file), "{file}");
    }
}

fn our_batch(codec: Codec) -> (String, Batch, Vec<Record>) {
    let manifest = manifest();
    let records = records(&manifest, "mixed");
    let producer = stamp(&manifest["batches"][0]["producer"]);
    let options = BatchOptions {
        codec,
        ..BatchOptions::default()
    };
    let batch = build(&records, options, producer);
    (format!("mixed-{codec}.batch"), batch, records)
}

#[test]
fn ours_are_as_they_were() {
    for codec in Codec::ALL {
        let (file, now, records) = our_batch(codec);
        let then = Batch::parse(read("timberline", &file)).unwrap();
        then.validate(&Limits::default()).unwrap();
        assert_eq!(decoded(&then), records, "{file}");
        if codec == Codec::None {
            assert_eq!(now, then, "the format changed");
        }
        // A newer compressor may give other bytes, and so another length and checksum.
        let mut header = *now.header();
        header.batch_length = then.header().batch_length;
        header.crc = then.header().crc;
        assert_eq!(&header, then.header(), "{file}");
    }
}

#[test]
#[ignore = "overwrites the fixtures under fixtures/timberline: for a deliberate change of format"]
fn write_our_fixtures() {
    std::fs::create_dir_all(fixture("timberline", "")).unwrap();
    for codec in Codec::ALL {
        let (file, batch, _) = our_batch(codec);
        std::fs::write(fixture("timberline", &file), batch.bytes()).unwrap();
    }
}
