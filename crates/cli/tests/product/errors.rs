//! Exit codes and texts that need no broker.

use std::fs;

use tempfile::TempDir;

use crate::harness::{alone, binary, run};

#[test]
fn an_unreachable_broker() {
    let mut command = binary();
    command.args(["topic", "list", "--bootstrap", "127.0.0.1:1"]);
    let ran = run(command, b"").fails(
        1,
        &[
            "error: cannot reach 127.0.0.1:1: ",
            "[UNREACHABLE]",
            "next: Start one with `timberline server`",
        ],
    );
    assert_eq!(ran.out, "");
}

#[test]
fn what_is_not_built_yet_is_refused_with_exit_code_2() {
    for flag in ["--kafka-listen", "--kafka-advertise"] {
        alone(["server", flag, "127.0.0.1:1"]).fails(2, &[flag, "not built yet", "NOT_BUILT"]);
    }
    for words in [
        &["verify", "replicas"][..],
        &["bench", "failover"],
        &["profile"],
    ] {
        alone(words).fails(2, &["not built yet", "timberline --help"]);
    }
}

#[test]
fn usage() {
    alone([""; 0]).fails(2, &["Usage: timberline"]);
    alone(["prodcue"]).fails(2, &["produce"]);
    alone(["produce"]).fails(2, &["<TOPIC>"]);
    alone(["topic", "create", "t", "--partitions", "many"]).fails(2, &["many"]);
    alone(["bench", "produce", "t", "--size", "1XB"]).fails(2, &["1XB"]);
    let help = alone(["--help"]).ok().out;
    assert!(
        help.contains("timberline demo") && help.contains("Exit codes"),
        "{help}"
    );
    for command in [
        "server",
        "produce",
        "consume",
        "demo",
        "topic create",
        "topic trim",
        "bench produce",
        "verify log",
        "cluster info",
        "completions",
        "explain",
    ] {
        let mut words: Vec<_> = command.split(' ').collect();
        words.push("--help");
        let help = alone(words).ok().out;
        assert!(
            help.contains("Examples:") && help.contains(&format!("timberline {command}")),
            "{command} does not teach by example"
        );
    }
    assert!(alone(["--version"]).ok().out.starts_with("timberline "));
}

#[test]
fn configuration_errors_name_key_line_and_the_nearest_key() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("broker.toml");
    let name = file.to_str().unwrap();
    let check = |text: &str, parts: &[&str]| {
        fs::write(&file, text).unwrap();
        let ran = alone([
            "server",
            "--config",
            name,
            "--data-dir",
            dir.path().join("d").to_str().unwrap(),
        ]);
        ran.fails(2, parts).fails(2, &["CONFIG_INVALID", "next:"]);
    };
    check(
        "[log]\nsegment_byte = \"1GiB\"\n",
        &[
            "broker.toml:2",
            "log.segment_byte",
            "did you mean `log.segment_bytes`",
        ],
    );
    check("\n[lisen]\n", &["broker.toml:2", "lisen", "[listen]"]);
    check(
        "[log]\nsegment_bytes = \"lots\"\n",
        &["broker.toml:2", "log.segment_bytes", "lots"],
    );
    check("[broker]\nid = 0\n", &["broker.id", "out of range"]);
    check("[broker\n", &["broker.toml:1"]);
    check(
        "[listen]\ngrpc = \"0.0.0.0:0\"\n",
        &["listen.grpc", "loopback", "listen.insecure"],
    );
    alone(["server", "--set", "log.segment_byte=1GiB"]).fails(2, &["flag", "did you mean"]);
    alone(["server", "--config", "/nonexistent/x.toml"]).fails(2, &["/nonexistent/x.toml"]);
    alone(["server", "--log-filter", "=x="]).fails(2, &["log filter"]);
    let mut command = binary();
    command
        .arg("server")
        .env("TIMBERLINE_LOG__SEGMENT_BYTE", "1GiB");
    run(command, b"").fails(2, &["TIMBERLINE_LOG__SEGMENT_BYTE", "did you mean"]);
    assert!(!dir.path().join("d").exists(), "nothing was made");
}
