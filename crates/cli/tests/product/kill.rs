//! `kill -9` in the middle of the work.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Broker, alone, finish, random, wait_for};

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
    let kills: Vec<_> = ran
        .err
        .lines()
        .filter(|line| line.contains("kill -9   broker"))
        .collect();
    assert_eq!(kills.len(), 2, "{}", ran.err);
    // `… with 512 of 1024 pieces acknowledged`
    let (_, counts) = kills[0].split_once("with ").unwrap();
    let counts: Vec<f64> = counts
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let share = counts[0] / counts[1];
    assert!((0.29..=0.6).contains(&share), "{}", kills[0]);
    let report = ran.json();
    assert_eq!(report["brokers"], 3);
    assert_eq!(
        (&report["kills"], &report["lost"], &report["duplicated"]),
        (&2.into(), &0.into(), &0.into())
    );
    assert_eq!(report["identical"], true);
    assert_eq!(report["acknowledged"], report["read"]);
    assert!(report["acknowledged"].as_u64().unwrap() > 100);
}

#[test]
fn a_bench_ends_soon_when_the_broker_is_gone_for_good() {
    let mut broker = Broker::start();
    broker.run(&["topic", "create", "load"]).ok();
    let bench = broker
        .command([
            "bench",
            "produce",
            "load",
            "--records",
            "1000000000",
            "--timeout",
            "2s",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("records of the bench", || {
        let topic = broker
            .run(&["consume", "load", "--tail", "1", "--until-end", "--raw"])
            .ok();
        (!topic.bytes.is_empty()).then_some(())
    });
    broker.kill();
    let begun = Instant::now();
    let ran = finish(bench).fails(
        4,
        &[
            "records done",
            "not acknowledged within 2s",
            "next:",
            "cannot reach",
        ],
    );
    // One timeout for the first failure, and none for what was sent after it.
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(ran.out.contains("MB/s"), "{}", ran.out);
}
