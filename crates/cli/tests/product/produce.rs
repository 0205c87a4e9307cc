//! What goes in comes out: lines, keys, JSON, files.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Broker, finish, random, wait_for};

const TEXT: &str = "one\n\nthree ünï\r\n\tfour:with:colons\nlast";

#[test]
fn lines_come_back_as_they_were_and_the_count_is_on_standard_output() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    let produced = broker.run_with(&["produce", "t"], TEXT).ok();
    assert_eq!(produced.out, "5\n");
    let read = [
        "consume",
        "t",
        "--from",
        "beginning",
        "--until-end",
        "--raw",
    ];
    let mut with_delimiter = read.to_vec();
    with_delimiter.extend(["--delimiter", r"\n"]);
    assert_eq!(broker.run(&with_delimiter).ok().out, format!("{TEXT}\n"));
    assert_eq!(broker.run(&read).ok().out, TEXT.replace('\n', ""));
    assert_eq!(
        broker.run(&["consume", "t", "--until-end"]).ok().out,
        format!("{TEXT}\n")
    );
    assert_eq!(broker.run_with(&["produce", "t"], "").ok().out, "0\n");
}

#[test]
fn keys_headers_partitions_and_the_template() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--partitions", "4"])
        .ok();
    let flags = [
        "produce",
        "t",
        "-K",
        ":",
        "--partition",
        "2",
        "-H",
        "a=1",
        "-H",
        "a=2",
    ];
    broker.run_with(&flags, "k1:v1\n:v2\nk3:v:3\n").ok();
    broker
        .run_with(&["produce", "t", "--key", "fix"], "v4\n")
        .ok();
    let format = r"%t|%p|%o|%k|%v|%h|%K|%V%%\n";
    let read = broker.run(&[
        "consume",
        "t",
        "--partitions",
        "2",
        "--until-end",
        "--count",
        "3",
        "--format",
        format,
    ]);
    assert_eq!(
        read.ok().out,
        "t|2|0|k1|v1|a=1,a=2|2|2%\nt|2|1||v2|a=1,a=2|0|2%\nt|2|2|k3|v:3|a=1,a=2|2|3%\n"
    );
    let pairs = broker.run(&["consume", "t", "--until-end", "-K", "="]).ok();
    assert!(
        pairs.out.contains("k1=v1\n") && pairs.out.contains("fix=v4\n"),
        "{}",
        pairs.out
    );
    broker
        .run_with(&["produce", "t", "-K", ":"], "k:v\nnone\n")
        .fails(1, &["line 2", "BAD_INPUT", "next:"]);
}

#[test]
fn json_is_taken_back_whatever_the_bytes() {
    let broker = Broker::start();
    for topic in ["a", "b", "c"] {
        broker
            .run(&["topic", "create", topic, "--partitions", "2"])
            .ok();
    }
    let records = [
        json!({"partition": 1, "timestamp_ms": 1234, "key": "k", "value": "v", "headers": [{"key": "h", "value": "1"}, {"key": "h", "value": null}]}),
        json!({"partition": 1, "key": null, "value": null}),
        json!({"partition": 1, "key_base64": "/wA=", "value_base64": "gIE=", "headers": [{"key": "b", "value_base64": "/w=="}]}),
        json!({"partition": 0, "value": ""}),
    ];
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    assert_eq!(
        broker
            .run_with(&["produce", "a", "--format", "json"], lines)
            .ok()
            .out,
        "4\n"
    );
    let first = broker
        .run(&["consume", "a", "--until-end", "-o", "jsonl"])
        .ok();
    assert_eq!(
        broker
            .run_with(&["produce", "b", "--format", "json"], &first.out)
            .ok()
            .out,
        "4\n"
    );
    let array = broker
        .run(&["consume", "b", "--until-end", "-o", "json"])
        .ok();
    assert_eq!(
        broker
            .run_with(&["produce", "c", "--format", "json"], &array.out)
            .ok()
            .out,
        "4\n"
    );
    let third = broker
        .run(&["consume", "c", "--until-end", "-o", "jsonl"])
        .ok();

    let sorted = |mut records: Vec<Value>| {
        for record in &mut records {
            record.as_object_mut().unwrap().remove("topic");
        }
        records.sort_by_key(|record| (record["partition"].as_i64(), record["offset"].as_i64()));
        records
    };
    let read = sorted(first.json_lines());
    assert_eq!(read, sorted(serde_json::from_str(&array.out).unwrap()));
    assert_eq!(read, sorted(third.json_lines()));
    assert_eq!(read[0]["value"], "");
    assert_eq!(read[0]["key"], Value::Null);
    assert_eq!(
        read[1],
        json!({"partition": 1, "offset": 0, "timestamp_ms": 1234, "key": "k", "value": "v", "headers": [{"key": "h", "value": "1"}, {"key": "h", "value": null}]})
    );
    assert_eq!(
        (&read[2]["key"], &read[2]["value"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(read[3]["key_base64"], "/wA=");
    assert_eq!(read[3]["value_base64"], "gIE=");
    assert_eq!(
        read[3]["headers"],
        json!([{"key": "b", "value_base64": "/w=="}])
    );
    broker
        .run_with(
            &["produce", "a", "--format", "json"],
            "{\"value\":\"x\"}\n{\"vlaue\":\"y\"}\n",
        )
        .fails(1, &["line 2", "vlaue", "BAD_INPUT"]);
}

#[test]
fn a_file_in_pieces_is_the_same_file() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "files", "--partitions", "3"])
        .ok();
    let content = random(3_000_017);
    let path = broker.path("file");
    fs::write(&path, &content).unwrap();
    let file = path.to_str().unwrap();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let flags = [
            "produce", "files", "--file", file, "--chunk", "64KiB", "-z", codec,
        ];
        assert_eq!(broker.run(&flags).ok().out, "46\n");
        let read = broker
            .run(&["consume", "files", "--tail", "46", "--until-end", "--raw"])
            .ok();
        assert!(read.bytes == content, "{codec}");
    }
    let described = broker
        .run(&["topic", "describe", "files", "-o", "json"])
        .ok()
        .json();
    let ends: Vec<_> = described["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["high_watermark"].as_i64().unwrap())
        .collect();
    assert_eq!(ends, [230, 0, 0], "one partition, 0");
    let piped = broker
        .run_with(
            &[
                "produce", "files", "--file", "-", "--chunk", "1MB", "-p", "2", "-o", "json",
            ],
            &content,
        )
        .ok();
    let summary = piped.json();
    assert_eq!(
        (&summary["records"], &summary["bytes"], &summary["failed"]),
        (&json!(4), &json!(3_000_017), &json!(0))
    );
}

#[test]
fn a_record_too_large_is_refused_and_what_went_before_is_counted() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--config", "max.message.bytes=1000"])
        .ok();
    let mut producer = broker
        .command(["produce", "t", "--linger", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = producer.stdin.take().unwrap();
    stdin.write_all(b"small\n").unwrap();
    // The bound is of a batch: together in one they would be refused together.
    wait_for("the first record", || {
        let read = broker.run(&["consume", "t", "--from", "beginning", "--until-end"]);
        (read.out == "small\n").then_some(())
    });
    stdin
        .write_all(format!("{}\n", "x".repeat(5000)).as_bytes())
        .unwrap();
    drop(stdin);
    let ran = finish(producer);
    let ran = ran.fails(1, &["RECORD_TOO_LARGE", "next:"]);
    assert_eq!(ran.out, "1\n");
}
