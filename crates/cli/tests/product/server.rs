//! Starting, stopping, and checking what lies on disk.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::harness::{Broker, alone, segments};

#[test]
fn it_says_where_it_is_and_stops_cleanly() {
    let mut broker = Broker::start_with(&["--log-format", "json"]);
    let said = broker.announced();
    assert!(
        said.contains(broker.grpc()) && said.contains(broker.data_dir().to_str().unwrap()),
        "{said}"
    );
    let http = said
        .split("http://")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&http).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(get("/metrics").contains("timberline_"));
    broker.run(&["topic", "create", "t"]).ok();
    broker.run_with(&["produce", "t"], "kept\n").ok();
    assert_eq!(broker.stop().code(), Some(0));
    for line in broker.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
    }
    let dir = broker.data_dir();
    let report = alone(["verify", "log", dir.to_str().unwrap(), "-o", "json"])
        .ok()
        .json();
    assert_eq!(
        (&report["clean_stop"], &report["damage"]),
        (&json!(true), &json!([]))
    );
    broker.spawn(&[]);
    assert_eq!(
        broker.run(&["consume", "t", "--until-end"]).ok().out,
        "kept\n"
    );
}

#[test]
fn the_data_directory_belongs_to_one_process_and_one_broker() {
    let mut broker = Broker::start();
    let dir = broker.data_dir();
    let dir = dir.to_str().unwrap();
    let free = [
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    let second = |more: &[&str]| {
        let mut args = vec!["server", "--data-dir", dir];
        args.extend(free);
        args.extend(more);
        alone(args)
    };
    second(&[]).fails(
        1,
        &[dir, "in use by another process", "DATA_DIR_IN_USE", "next:"],
    );
    alone(["verify", "log", dir]).fails(1, &["DATA_DIR_IN_USE", "Stop the broker"]);
    alone([
        "server",
        "--data-dir",
        "/tmp",
        "--grpc-listen",
        broker.grpc(),
        "--http-listen",
        "127.0.0.1:0",
    ])
    .fails(1, &["cannot listen", "listen.grpc", "ADDRESS_IN_USE"]);
    broker.stop();
    second(&["--broker-id", "9"]).fails(1, &["belongs to broker 1", "--broker-id 1"]);
    alone(["verify", "log", "/nonexistent"]).fails(1, &["/nonexistent"]);
}

#[test]
fn damage_is_found_offline_told_to_readers_and_stepped_over() {
    let mut broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    for n in 0..5 {
        broker
            .run_with(&["produce", "t"], format!("record {n}\n"))
            .ok();
    }
    broker.stop();
    let dir = broker.data_dir();
    let (file, at) = segments(&dir)
        .into_iter()
        .find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(8).position(|window| window == b"record 2")?;
            Some((path, at as u64))
        })
        .unwrap();
    OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(b"RECORD", at)
        .unwrap();

    let verified = alone([
        "verify",
        "log",
        "--data-dir",
        dir.to_str().unwrap(),
        "-o",
        "json",
    ]);
    let report = verified.fails(3, &["1 damaged", "DATA_DAMAGED"]).json();
    let damage = &report["damage"][0];
    assert_eq!(damage["file"], file.to_str().unwrap());
    assert_eq!(damage["offsets"], json!({"from": 2, "to": 3}));
    let (from, len) = (
        damage["position"].as_u64().unwrap(),
        damage["bytes"].as_u64().unwrap(),
    );
    assert!(from <= at && at < from + len, "{damage}");
    assert!(
        alone(["verify", "log", dir.to_str().unwrap()])
            .out
            .contains("payload checksum")
    );

    broker.spawn(&[]);
    let read = broker.run(&["consume", "t", "--until-end"]);
    let read = read.fails(1, &["DATA_DAMAGED", "--skip-damaged"]);
    assert_eq!(read.out, "record 0\nrecord 1\n");
    let read = broker.run(&["consume", "t", "--until-end", "--skip-damaged"]);
    assert_eq!(
        (read.code, read.out.as_str()),
        (0, "record 0\nrecord 1\nrecord 3\nrecord 4\n")
    );
    assert!(
        read.err.contains("warning") && read.err.contains("[2, 3)"),
        "{}",
        read.err
    );
}
