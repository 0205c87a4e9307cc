//! Topics, the cluster, bench, completions, explain.

use serde_json::{Value, json};

use crate::harness::{Broker, alone};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn the_life_of_a_topic() {
    let broker = Broker::start();
    let created = broker.run(&[
        "topic",
        "create",
        "t",
        "--partitions",
        "2",
        "--config",
        "retention.ms=1000000",
    ]);
    assert_eq!(created.ok().out, "created t with 2 partitions\n");
    broker.run(&["topic", "create", "other", "--dry-run"]).ok();
    let list = broker.run(&["topic", "list", "-o", "json"]).ok().json();
    assert_eq!(
        list.as_array().unwrap().len(),
        1,
        "--dry-run creates nothing"
    );
    assert_eq!(
        keys(&list[0]),
        [
            "internal",
            "name",
            "partitions",
            "replication_factor",
            "topic_id"
        ]
    );
    assert_eq!(
        (&list[0]["name"], &list[0]["partitions"]),
        (&json!("t"), &json!(2))
    );
    assert!(
        broker
            .run(&["topic", "list"])
            .ok()
            .out
            .starts_with("TOPIC ")
    );

    broker
        .run(&[
            "topic",
            "config",
            "t",
            "--set",
            "retention.ms=5",
            "--dry-run",
        ])
        .ok();
    broker
        .run(&[
            "topic",
            "config",
            "t",
            "--set",
            "segment.bytes=2097152",
            "--reset",
            "retention.ms",
        ])
        .ok();
    let config = broker
        .run(&["topic", "config", "t", "-o", "json"])
        .ok()
        .json();
    let entry = |key: &str| {
        let entries = config.as_array().unwrap().iter();
        entries
            .filter(|entry| entry["key"] == key)
            .map(|entry| (entry["value"].clone(), entry["source"].clone()))
            .next()
            .unwrap()
    };
    assert_eq!(entry("segment.bytes"), (json!("2097152"), json!("topic")));
    assert_eq!(entry("retention.ms").1, "default");

    broker
        .run(&["topic", "add-partitions", "t", "--total", "3"])
        .ok();
    broker
        .run_with(&["produce", "t", "-p", "2"], "a\nb\nc\n")
        .ok();
    broker
        .run(&[
            "topic",
            "trim",
            "t",
            "--partition",
            "2",
            "--before",
            "2",
            "--dry-run",
        ])
        .ok();
    broker
        .run_with(
            &["topic", "trim", "t", "--partition", "2", "--before", "2"],
            "wrong\n",
        )
        .fails(1, &["nothing was changed"]);
    assert_eq!(
        broker.run(&["consume", "t", "--until-end"]).ok().out,
        "a\nb\nc\n"
    );
    broker
        .run(&[
            "topic",
            "trim",
            "t",
            "--partition",
            "2",
            "--before",
            "2",
            "--yes",
        ])
        .ok();
    assert_eq!(broker.run(&["consume", "t", "--until-end"]).ok().out, "c\n");
    let described = broker
        .run(&["topic", "describe", "t", "-o", "json"])
        .ok()
        .json();
    assert_eq!(
        keys(&described),
        [
            "config",
            "internal",
            "name",
            "partitions",
            "replication_factor",
            "topic_id"
        ]
    );
    let partition = &described["partitions"][2];
    assert_eq!(
        keys(partition),
        [
            "high_watermark",
            "in_sync",
            "leader",
            "leader_epoch",
            "log_start_offset",
            "partition",
            "quarantined",
            "replicas",
            "segments",
            "size_bytes"
        ]
    );
    assert_eq!(
        (&partition["log_start_offset"], &partition["high_watermark"]),
        (&json!(2), &json!(3))
    );

    broker.run(&["topic", "delete", "t", "--dry-run"]).ok();
    broker.run(&["topic", "delete", "t"]).fails(2, &["--yes"]);
    broker
        .run_with(&["topic", "delete", "t"], "tt\n")
        .fails(1, &["nothing was changed"]);
    let deleted = broker.run_with(&["topic", "delete", "t"], "t\n");
    assert_eq!((deleted.code, deleted.out.as_str()), (0, "deleted t\n"));
    broker
        .run(&["topic", "delete", "t", "--yes"])
        .fails(1, &["UNKNOWN_TOPIC", "topic list"]);
    assert_eq!(broker.run(&["topic", "list", "-o", "jsonl"]).ok().out, "");
}

#[test]
fn what_is_wrong_with_a_topic_is_said() {
    let broker = Broker::start();
    broker.run(&["topic", "create", "t"]).ok();
    for (args, reason) in [
        (&["topic", "create", "t"][..], "TOPIC_EXISTS"),
        (&["topic", "create", "no spaces"], "INVALID_TOPIC_NAME"),
        (
            &["topic", "create", "x", "--config", "retension.ms=1"],
            "did you mean `retention.ms`",
        ),
        (
            &["topic", "create", "x", "--config", "cleanup.policy=compact"],
            "not served yet",
        ),
        (
            &["topic", "create", "x", "-r", "3"],
            "INVALID_REPLICATION_FACTOR",
        ),
        (
            &["topic", "config", "t", "--set", "retention.ms=soon"],
            "INVALID_CONFIG",
        ),
        (&["topic", "describe", "x"], "UNKNOWN_TOPIC"),
        (
            &["topic", "add-partitions", "t", "--total", "1"],
            "INVALID_ARGUMENT",
        ),
        (&["produce", "x"], "UNKNOWN_TOPIC"),
        (&["produce", "t", "-p", "5"], "UNKNOWN_PARTITION"),
        (&["consume", "x"], "UNKNOWN_TOPIC"),
        (&["consume", "t", "-p", "5"], "UNKNOWN_PARTITION"),
        (&["consume", "t", "--from", "9"], "OFFSET_OUT_OF_RANGE"),
    ] {
        let ran = broker
            .run(args)
            .fails(1, &["error: ", reason, "\n  next: "]);
        assert_eq!(ran.out, "", "{args:?}");
    }
    for args in [
        &["topic", "create", "x", "--partitions", "0"][..],
        &["topic", "create", "x", "--config", "novalue"],
        &["topic", "trim", "t"],
        &["topic", "config", "t", "--set", "a=1", "--reset", "a"],
        &["produce", "t", "--chunk", "1KiB"],
        &["produce", "t", "-z", "rar"],
        &["bench", "end-to-end", "t", "--size", "10"],
    ] {
        broker.run(args).fails(2, &[]);
    }
}

#[test]
fn the_cluster() {
    let broker = Broker::start_with(&["--rack", "r1", "--broker-id", "4"]);
    let info = broker.run(&["cluster", "info", "-o", "json"]).ok().json();
    assert_eq!(
        keys(&info),
        [
            "brokers",
            "cluster_id",
            "controller_id",
            "feature_level",
            "leaderless",
            "partitions",
            "rack_loss_survivable",
            "rack_violations",
            "topics",
            "under_replicated"
        ]
    );
    assert_eq!(
        keys(&info["brokers"][0]),
        [
            "disk_free_bytes",
            "disk_total_bytes",
            "grpc",
            "http",
            "id",
            "live",
            "log_size_bytes",
            "rack",
            "state",
            "uptime_ms",
            "version",
            "writable"
        ]
    );
    let found = &info["brokers"][0];
    assert_eq!(
        (&found["id"], &found["rack"], &found["grpc"]),
        (&json!(4), &json!("r1"), &json!(broker.grpc()))
    );
    assert!(broker.run(&["cluster", "info"]).ok().out.contains("r1"));
    assert!(
        broker
            .run(&["cluster", "info", "-o", "yaml"])
            .ok()
            .out
            .contains("rack: \"r1\"")
    );
}

#[test]
fn bench_prints_the_fields_of_the_contract() {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--partitions", "4"])
        .ok();
    let fields = [
        "bytes",
        "errors",
        "latency_ms",
        "mb_per_second",
        "records",
        "records_per_second",
        "seconds",
    ];
    let check = |args: &[&str], records: u64, bytes: u64| {
        let report = broker.run(args).ok().json();
        assert_eq!(keys(&report), fields, "{args:?}");
        assert_eq!(
            keys(&report["latency_ms"]),
            ["max", "p50", "p90", "p99", "p999"]
        );
        assert_eq!(
            (&report["records"], &report["errors"], &report["bytes"]),
            (&json!(records), &json!(0), &json!(bytes)),
            "{args:?}"
        );
        let ms = |name: &str| report["latency_ms"][name].as_f64().unwrap();
        assert!(ms("p50") > 0.0 && ms("p50") <= ms("p99") && ms("p99") <= ms("max"));
    };
    check(
        &[
            "bench",
            "produce",
            "t",
            "--records",
            "20000",
            "--size",
            "1KiB",
            "-o",
            "json",
        ],
        20_000,
        20_480_000,
    );
    check(
        &[
            "bench",
            "produce",
            "t",
            "--records",
            "3000",
            "--size",
            "100",
            "--rate",
            "10000",
            "--linger",
            "0",
            "--producers",
            "2",
            "--keys",
            "10",
            "-o",
            "json",
        ],
        3000,
        300_000,
    );
    check(
        &["bench", "consume", "t", "--records", "23000", "-o", "json"],
        23_000,
        20_780_000,
    );
    check(&["bench", "consume", "t", "-o", "json"], 23_000, 20_780_000);
    check(
        &[
            "bench",
            "end-to-end",
            "t",
            "--records",
            "2000",
            "--rate",
            "5000",
            "--size",
            "100",
            "-o",
            "json",
        ],
        2000,
        200_000,
    );
    broker
        .run(&[
            "bench",
            "consume",
            "t",
            "--records",
            "99999",
            "--timeout",
            "300ms",
        ])
        .fails(4, &["25000 of 99999"]);
    assert!(
        broker
            .run(&["bench", "consume", "t"])
            .ok()
            .out
            .contains("MB/s")
    );
}

#[test]
fn completions_know_the_topics() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = alone(["completions", shell]).ok().out;
        assert!(
            script.contains("TIMBERLINE_COMPLETE") && script.contains("timberline"),
            "{shell}: {script}"
        );
    }
    let broker = Broker::start();
    broker.run(&["topic", "create", "orders-eu"]).ok();
    let mut command = broker.command(["--", "timberline", "consume", "ord"]);
    command.env("TIMBERLINE_COMPLETE", "fish");
    let candidates = crate::harness::run(command, b"").ok().out;
    assert!(candidates.starts_with("orders-eu\t"), "{candidates}");
    // No broker: no topics, and no complaint.
    let mut command = crate::harness::binary();
    command
        .args(["--", "timberline", "consume", ""])
        .env("TIMBERLINE_COMPLETE", "fish")
        .env("TIMBERLINE_BOOTSTRAP", "127.0.0.1:1");
    assert!(
        !crate::harness::run(command, b"")
            .ok()
            .out
            .contains("orders")
    );
}

#[test]
fn explain_knows_reasons_and_keys() {
    assert!(
        alone(["explain", "NOT_LEADER"])
            .ok()
            .out
            .contains("retriable    yes")
    );
    assert!(
        alone(["explain", "log.segment_bytes"])
            .ok()
            .out
            .contains("TIMBERLINE_LOG__SEGMENT_BYTES")
    );
    assert!(
        alone(["explain", "UNREACHABLE"])
            .ok()
            .out
            .contains("timberline server")
    );
    assert!(
        alone(["explain"])
            .ok()
            .out
            .contains("storage.journal_bytes")
    );
    alone(["explain", "nonsense"]).fails(1, &["nonsense"]);
}
