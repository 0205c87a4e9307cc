//! Consumer groups from the command line, and the drills about them.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Broker, alone, finish, signal, wait_for};

/// A broker with a topic of three partitions, ten records in each.
fn filled() -> Broker {
    let broker = Broker::start();
    broker
        .run(&["topic", "create", "t", "--partitions", "3"])
        .ok();
    produce(&broker, 0..10);
    broker
}

/// Writes these numbers to each partition, as `PARTITION-NUMBER`.
fn produce(broker: &Broker, numbers: std::ops::Range<usize>) {
    for partition in 0..3 {
        let lines = numbers
            .clone()
            .map(|number| format!("{partition}-{number}\n"));
        let number = partition.to_string();
        broker
            .run_with(&["produce", "t", "-p", &number], lines.collect::<String>())
            .ok();
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn lag(broker: &Broker) -> Vec<Value> {
    let shown = broker.run(&["group", "lag", "g", "-o", "json"]).ok().json();
    shown.as_array().unwrap().clone()
}

fn member(broker: &Broker, more: &[&str]) -> Child {
    broker
        .command([&["consume", "t", "--group", "g"], more].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the group's members hold so many partitions each, in any order.
fn wait_shared(broker: &Broker, counts: &[usize]) -> Value {
    wait_for("the partitions to be shared", || {
        let ran = broker.run(&["group", "describe", "g", "-o", "json"]);
        let group = (ran.code == 0).then(|| ran.json())?;
        let members = group["members"].as_array()?.clone();
        let held = members.iter().map(|one| {
            let parts = one["assigned"]["t"].as_array();
            parts.map_or(0, Vec::len)
        });
        let mut held: Vec<usize> = held.collect();
        held.sort_unstable();
        (held == counts && group["state"] == "stable").then_some(group)
    })
}

#[test]
fn a_group_goes_on_where_it_stands() {
    let broker = filled();
    let read = |more: &[&str]| {
        let args = [&["consume", "t", "--group", "g", "--until-end"], more].concat();
        broker.run(&args).ok().out
    };
    assert_eq!(sorted(&read(&[])).len(), 30);
    assert_eq!(read(&[]), "");
    produce(&broker, 10..12);
    let expected = ["0-10", "0-11", "1-10", "1-11", "2-10", "2-11"];
    assert_eq!(sorted(&read(&[])), expected);
    // A count is exact, in the middle of a batch too: what follows is read next.
    produce(&broker, 12..16);
    let mut all = Vec::new();
    for _ in 0..4 {
        let three = broker.run(&["consume", "t", "-g", "g", "-n", "3"]).ok().out;
        all.extend(three.lines().map(str::to_owned));
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 12);
    // A new group may begin at the end.
    let args = ["consume", "t", "-g", "h", "--from", "end", "--until-end"];
    assert_eq!(broker.run(&args).ok().out, "");
    produce(&broker, 16..17);
    let after = broker.run(&["consume", "t", "-g", "h", "--until-end"]).ok();
    assert_eq!(sorted(&after.out), ["0-16", "1-16", "2-16"]);
    broker
        .run(&["consume", "t", "-g", "g", "--from", "5"])
        .fails(2, &["--from says where a new one begins", "group seek"]);
    broker
        .run(&["consume", "nosuch", "-g", "g"])
        .fails(1, &["nosuch", "UNKNOWN_TOPIC"]);
}

#[test]
fn members_share_and_what_one_had_goes_to_the_others() {
    let broker = filled();
    let members = [
        member(&broker, &[]),
        member(&broker, &[]),
        member(&broker, &[]),
    ];
    let group = wait_shared(&broker, &[1, 1, 1]);
    assert_eq!(group["members"].as_array().unwrap().len(), 3);
    let table = broker.run(&["group", "describe", "g"]).ok().out;
    assert!(table.contains("stable") && table.contains("t 0"), "{table}");
    // While it has members nothing is moved or deleted.
    for args in [&["seek", "g", "--to", "end"][..], &["delete", "g", "--yes"]] {
        broker
            .run(&[&["group"], args].concat())
            .fails(1, &["GROUP_NOT_EMPTY", "next: "]);
    }
    let [mut killed, leaves, stays] = members;
    killed.kill().unwrap();
    let killed = finish(killed);
    wait_shared(&broker, &[1, 2]);
    produce(&broker, 10..20);
    wait_for("all to be committed", || {
        lag(&broker).iter().all(|one| one["lag"] == 0).then_some(())
    });
    signal(leaves.id(), Signal::INT);
    let left = finish(leaves).ok();
    wait_shared(&broker, &[3]);
    signal(stays.id(), Signal::INT);
    let stayed = finish(stays).ok();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in [&killed, &left, &stayed]
        .iter()
        .flat_map(|ran| ran.out.lines())
    {
        *seen.entry(line).or_default() += 1;
    }
    assert_eq!(seen.len(), 60);
    let list = broker.run(&["group", "list", "-o", "json"]).ok().json();
    let expected = json!([{
        "group": "g", "state": "empty", "assignor": "sticky", "members": 0, "coordinator": 1,
    }]);
    assert_eq!(list, expected);
}

#[test]
fn a_group_is_moved_and_deleted() {
    let broker = filled();
    let group = |args: &[&str]| broker.run(&[&["group"], args].concat());
    let offsets = || -> Vec<i64> {
        let all = lag(&broker);
        all.iter()
            .map(|one| one["committed"].as_i64().unwrap())
            .collect()
    };
    group(&["seek", "g", "--to", "end"]).fails(1, &["committed nothing", "--topic"]);
    // It begins where it is told to.
    group(&["seek", "g", "--topic", "t", "--to", "4"]).ok();
    assert_eq!(offsets(), [4, 4, 4]);
    let planned = group(&["seek", "g", "--by", "-3", "--dry-run", "-o", "json"])
        .ok()
        .json();
    let first = json!({"topic": "t", "partition": 0, "before": 4, "offset": 1, "changed": false});
    assert_eq!(planned[0], first);
    assert_eq!(offsets(), [4, 4, 4]);
    group(&[
        "seek",
        "g",
        "--topic",
        "t",
        "--partition",
        "1,2",
        "--to",
        "end",
    ])
    .ok();
    assert_eq!(offsets(), [4, 10, 10]);
    group(&["seek", "g", "--to", "beginning"]).ok();
    group(&["seek", "g", "--to", "@0"]).ok();
    assert_eq!(offsets(), [0, 0, 0]);
    group(&["seek", "g", "--to", "11"]).fails(1, &["OFFSET_OUT_OF_RANGE"]);
    group(&["seek", "g"]).fails(2, &["--to"]);
    group(&["seek", "g", "--topic", "nosuch", "--to", "end"]).fails(1, &["UNKNOWN_TOPIC"]);
    let behind = group(&["lag", "g", "--behind"]).ok().out;
    assert!(
        behind.contains("30 records behind in 3 partitions, group empty"),
        "{behind}"
    );
    // Deleting wants the name.
    group(&["delete", "g", "--dry-run"]).ok();
    broker
        .run_with(&["group", "delete", "g"], "h\n")
        .fails(1, &["that is not the group's id"]);
    broker
        .run_with(&["group", "delete", "g"], "")
        .fails(2, &["nobody typed the group's id", "--yes"]);
    let forgot = group(&["delete", "g", "--topic", "t", "--yes", "-o", "json"])
        .ok()
        .json();
    let expected = json!({"group": "g", "topic": "t", "partitions": [0, 1, 2], "deleted": true});
    assert_eq!(forgot, expected);
    let ran = broker.run_with(&["group", "delete", "g"], "g\n");
    assert_eq!((ran.code, ran.out.as_str()), (0, "deleted g\n"));
    group(&["describe", "g"]).fails(1, &["UNKNOWN_GROUP", "group list"]);
    group(&["delete", "g", "--yes"]).fails(1, &["UNKNOWN_GROUP"]);
    assert_eq!(group(&["list", "-o", "jsonl"]).ok().out, "");
}

#[test]
fn drills_of_groups_lose_nothing() {
    let load = ["-n", "1", "-r", "300", "-p", "6", "-c", "3", "-o", "json"];
    let drill = |kind: &str| {
        let ran = alone([["drill", kind].as_slice(), &load].concat());
        assert_eq!(ran.code, 0, "{kind}: {}{}", ran.out, ran.err);
        let report = ran.json();
        for nothing in ["lost", "errors"] {
            assert_eq!(report[nothing], 0, "{kind}: {report}");
        }
        assert_eq!(report["times"], 1, "{report}");
        assert!(report["read"].as_u64().unwrap() > 100, "{report}");
        report
    };
    let join = drill("group-join");
    assert_eq!(join["unmoved_partitions"], 2);
    assert!(join["last_join_to_all_consumed_ms"]["max"].is_f64());
    let kill = drill("group-kill");
    let took = |what: &str| kill["takeover_ms"][what]["max"].as_f64().unwrap();
    assert!(
        took("leave") > 0.0 && took("kill") > took("leave"),
        "{kill}"
    );
    let coordinator = drill("coordinator-kill");
    assert_eq!(coordinator["moved_back"], 0);
    assert_eq!(coordinator["lost_commits"], 0);
    assert!(coordinator["commits"].as_u64().unwrap() > 0);
}
