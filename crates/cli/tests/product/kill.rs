//! `kill -9` in the middle of the work.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Broker, alone, finish, random};

#[test]
fn a_file_survives_kills_in_the_middle_of_its_sending() {
    let mut broker = Broker::start();
    broker.run(&["topic", "create", "files"]).ok();
    let content = random(48 << 20);
    let mut producer = broker
        .command(["produce", "files", "--file", "-", "--chunk", "64KiB"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = producer.stdin.take().unwrap();
    let source = content.clone();
    let feeder = std::thread::spawn(move || {
        // Slow enough that the kills fall into the sending.
        for piece in source.chunks(1 << 20) {
            stdin.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            producer.try_wait().unwrap().is_none(),
            "the kill must come before the end"
        );
        broker.kill();
        std::thread::sleep(Duration::from_millis(100));
        broker.spawn(&[]);
    }
    feeder.join().unwrap();
    let produced = finish(producer).ok();
    assert_eq!(produced.out, format!("{}\n", content.len() / (64 << 10)));
    // Acknowledged is on disk: once more, with nothing under way.
    broker.kill();
    let dir = broker.data_dir();
    let checked = alone(["verify", "log", dir.to_str().unwrap(), "-o", "json"])
        .ok()
        .json();
    let offset = |log: &Value| log["next_offset"].as_i64().unwrap();
    let ends: Vec<_> = checked["logs"]
        .as_array()
        .unwrap()
        .iter()
        .map(offset)
        .collect();
    assert!(
        ends.contains(&768),
        "what is behind the checkpoint is seen too: {checked}"
    );
    assert_eq!(checked["clean_stop"], false);
    broker.spawn(&[]);
    let read = broker
        .run(&[
            "consume",
            "files",
            "--from",
            "beginning",
            "--until-end",
            "--raw",
        ])
        .ok();
    assert_eq!(read.bytes.len(), content.len());
    assert!(read.bytes == content, "the file came back altered");
}

#[test]
fn the_demo_loses_nothing() {
    let ran = alone(["demo", "-o", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("kill -9"), "{}", ran.err);
    let report = ran.json();
    assert_eq!(
        (&report["kills"], &report["lost"], &report["duplicated"]),
        (&2.into(), &0.into(), &0.into())
    );
    assert_eq!(report["identical"], true);
    assert_eq!(report["acknowledged"], report["read"]);
    assert!(report["acknowledged"].as_u64().unwrap() > 100);
}
