//! Several brokers: founding, joining, deaths, and partitions on the move.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use timberline_workload::{Cluster, ClusterOptions};

use crate::harness::{Ran, alone, binary, finish, run, wait_for};

/// Brokers in racks a, b, c, …, each on free ports.
struct Brokers {
    cluster: Cluster,
    options: ClusterOptions,
    // Dropped last.
    _dir: TempDir,
}

impl Brokers {
    fn start(count: usize) -> Brokers {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions::new(env!("CARGO_BIN_EXE_timberline"), dir.path(), count);
        let brokers = Brokers {
            cluster: Cluster::start(&options).unwrap(),
            options,
            _dir: dir,
        };
        brokers.wait_healthy(count);
        brokers
    }

    /// Another broker joins; it gets the next number and the rack named.
    fn join(&self, rack: &str) -> Cluster {
        let mut specs = ClusterOptions {
            dir: self.options.dir.join("joined"),
            ..self.options.clone()
        };
        specs.brokers += 1;
        specs.racks = Vec::new();
        let mut spec = specs.plan().unwrap().pop().unwrap();
        spec.rack = Some(rack.to_owned());
        spec.seeds = self.cluster.specs().next().unwrap().seeds.clone();
        Cluster::start_all(&self.options.program, vec![spec]).unwrap()
    }

    fn try_run(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = binary();
        command
            .args(args)
            .env("TIMBERLINE_BOOTSTRAP", self.cluster.bootstrap());
        run(command, input)
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        self.try_run(args, b"").ok()
    }

    fn produce(&self, topic: &str) -> Child {
        binary()
            .args(["produce", topic, "--linger", "0ms"])
            .env("TIMBERLINE_BOOTSTRAP", self.cluster.bootstrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// So many brokers are live, every partition has a leader, and all replicas are in sync.
    #[track_caller]
    fn wait_healthy(&self, brokers: usize) {
        wait_for("a healthy cluster", || {
            let health = self.try_run(&["cluster", "health", "-o", "json"], b"");
            let listed = self.try_run(&["cluster", "brokers", "-o", "json"], b"");
            let live = |value: &Value| value["live"] == true;
            (health.code == 0
                && listed.code == 0
                && listed.json().as_array()?.iter().filter(|b| live(b)).count() == brokers)
                .then_some(())
        });
    }

    #[track_caller]
    fn partitions(&self, topic: &str) -> Vec<Value> {
        let listed = self.run(&["partition", "list", topic, "-o", "json"]).json();
        listed.as_array().unwrap().clone()
    }

    #[track_caller]
    fn leader(&self, topic: &str) -> i32 {
        wait_for("a leader", || {
            let leader = self.partitions(topic)[0]["leader"].as_i64()?;
            i32::try_from(leader).ok()
        })
    }

    #[track_caller]
    fn read(&self, topic: &str) -> Vec<String> {
        let args = ["consume", topic, "--from", "beginning", "--until-end"];
        let mut lines: Vec<_> = self.run(&args).out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

fn lines(range: std::ops::Range<u32>) -> (Vec<String>, String) {
    let lines: Vec<_> = range.map(|number| format!("{number:06}")).collect();
    let text = lines.iter().map(|line| format!("{line}\n")).collect();
    (lines, text)
}

#[test]
fn a_leaders_death_costs_no_record_and_no_error() {
    let mut brokers = Brokers::start(3);
    brokers.run(&["topic", "create", "t", "--replication-factor", "3"]);
    let mut producer = brokers.produce("t");
    let mut stdin = producer.stdin.take().unwrap();
    let (all, _) = lines(0..6000);
    let feed = all.clone();
    let feeder = std::thread::spawn(move || {
        for piece in feed.chunks(20) {
            let text: String = piece.iter().map(|line| format!("{line}\n")).collect();
            stdin.write_all(text.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(400));
        assert!(producer.try_wait().unwrap().is_none(), "it still sends");
        let leader = brokers.leader("t");
        brokers.cluster.kill(leader).unwrap();
        let successor = wait_for("another leader", || {
            Some(brokers.leader("t")).filter(|found| *found != leader)
        });
        assert_ne!(successor, leader);
        brokers.cluster.restart(leader).unwrap();
        brokers.wait_healthy(3);
    }
    feeder.join().unwrap();
    assert_eq!(finish(producer).ok().out, "6000\n");
    assert_eq!(brokers.read("t"), all);
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_with_one_it_goes_on() {
    let mut brokers = Brokers::start(3);
    brokers.run(&["topic", "create", "t", "--replication-factor", "3"]);
    let (first, text) = lines(0..100);
    brokers.try_run(&["produce", "t"], text.as_bytes()).ok();
    let leader = brokers.leader("t");
    let away: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    for id in &away {
        brokers.cluster.kill(*id).unwrap();
    }
    let mut producer = brokers.produce("t");
    let (second, text) = lines(100..200);
    producer
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(producer.try_wait().unwrap().is_none(), "nobody may say yes");
    brokers.cluster.restart(away[0]).unwrap();
    assert_eq!(finish(producer).ok().out, "100\n");
    brokers.cluster.restart(away[1]).unwrap();
    brokers.wait_healthy(3);
    assert_eq!(brokers.read("t"), [first, second].concat());
}

#[test]
fn a_broker_joins_takes_a_partition_over_and_the_one_it_replaces_leaves() {
    let mut brokers = Brokers::start(3);
    let create = [
        "topic",
        "create",
        "t",
        "--replication-factor",
        "3",
        "--partitions",
    ];
    brokers.run(&[create.as_slice(), &["6"]].concat());
    let (all, text) = lines(0..2000);
    brokers.try_run(&["produce", "t"], text.as_bytes()).ok();
    // In the rack of broker 3, which is to go.
    let _fourth = brokers.join("c");
    brokers.wait_healthy(4);
    brokers.run(&["partition", "move", "t", "0", "--to", "1,2,4", "--wait"]);
    assert_eq!(
        brokers.partitions("t")[0]["replicas"],
        serde_json::json!([1, 2, 4])
    );
    assert_eq!(brokers.read("t"), all);
    brokers.run(&["broker", "decommission", "3", "--wait"]);
    let on = |id: i64| {
        let partitions = brokers.partitions("t");
        let replicas = partitions.iter().map(|p| p["replicas"].as_array().unwrap());
        replicas.filter(|ids| ids.contains(&id.into())).count()
    };
    assert_eq!((on(3), on(4)), (0, 6));
    brokers.cluster.kill(3).unwrap();
    brokers.run(&["broker", "decommission", "3", "--remove"]);
    let listed = brokers.run(&["cluster", "brokers", "-o", "json"]).json();
    let listed = listed.as_array().unwrap().iter();
    let ids: Vec<_> = listed.map(|broker| broker["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 4]);
    assert_eq!(brokers.read("t"), all);
}

#[test]
fn a_broker_with_a_new_disk_gets_its_replicas_back() {
    let mut brokers = Brokers::start(3);
    let create = ["topic", "create", "t", "--replication-factor", "3"];
    brokers.run(&create);
    let (all, text) = lines(0..1000);
    brokers.try_run(&["produce", "t"], text.as_bytes()).ok();
    brokers.cluster.kill(2).unwrap();
    let data_dir = brokers.cluster.specs().nth(1).unwrap().data_dir.clone();
    std::fs::remove_dir_all(data_dir).unwrap();
    brokers.cluster.restart(2).unwrap();
    brokers.wait_healthy(3);
    // It has them, or the other one could not acknowledge.
    brokers.cluster.kill(1).unwrap();
    let (more, text) = lines(1000..1100);
    brokers.try_run(&["produce", "t"], text.as_bytes()).ok();
    assert_eq!(brokers.read("t"), [all, more].concat());
}

#[test]
fn a_trim_reaches_the_leader_whoever_is_asked() {
    let brokers = Brokers::start(3);
    let create = [
        "topic",
        "create",
        "t",
        "--replication-factor",
        "3",
        "--partitions",
        "3",
    ];
    brokers.run(&create);
    for partition in ["0", "1", "2"] {
        let (_, text) = lines(0..20);
        let produce = ["produce", "t", "--partition", partition];
        brokers.try_run(&produce, text.as_bytes()).ok();
    }
    // Each broker leads one of them.
    for spec in brokers.cluster.specs() {
        let before = (spec.id * 2).to_string();
        let mut command = binary();
        command
            .args(["topic", "trim", "t", "--before", &before, "--yes"])
            .env("TIMBERLINE_BOOTSTRAP", spec.addresses.grpc.to_string());
        run(command, b"").ok();
        assert_eq!(brokers.read("t").len(), 60 - 6 * spec.id as usize);
    }
}

#[test]
fn a_drill_of_every_kind_loses_nothing() {
    for kind in ["leader-kill", "handoff", "rack-loss"] {
        let load = ["-n", "2", "-p", "6", "-r", "300", "-o", "json"];
        let ran = alone([["drill", kind].as_slice(), &load].concat());
        assert_eq!(ran.code, 0, "{kind}: {}{}", ran.out, ran.err);
        let report = ran.json();
        for nothing in ["lost", "duplicated", "errors"] {
            assert_eq!(report[nothing], 0, "{kind}: {report}");
        }
        assert_eq!(report["times"], 2, "{report}");
        assert!(report["acknowledged"].as_u64().unwrap() > 100, "{report}");
    }
}

#[test]
fn whoever_is_asked_shows_what_leaders_and_all_brokers_say() {
    let mut brokers = Brokers::start(3);
    let create = ["topic", "create", "t", "--partitions", "3"];
    brokers.run(&[&create[..], &["--replication-factor", "1"]].concat());
    for partition in ["0", "1", "2"] {
        let produce = ["produce", "t", "--partition", partition];
        brokers.try_run(&produce, b"one\ntwo\n").ok();
    }
    let asked_at = |bootstrap: &str, args: &[&str]| {
        let mut command = binary();
        command.args(args).env("TIMBERLINE_BOOTSTRAP", bootstrap);
        run(command, b"").ok()
    };
    let ends = |described: &Value| -> Vec<Option<i64>> {
        let partitions = described["partitions"].as_array().unwrap().iter();
        partitions
            .map(|one| one["high_watermark"].as_i64())
            .collect()
    };
    let bootstrap = brokers.cluster.bootstrap();
    for address in bootstrap.split(',') {
        let described = asked_at(address, &["topic", "describe", "t", "-o", "json"]);
        assert_eq!(ends(&described.json()), [Some(2); 3], "{address}");
        let info = asked_at(address, &["cluster", "info", "-o", "json"]).json();
        let all = info["brokers"].as_array().unwrap();
        assert_eq!(all.len(), 3);
        assert!(
            all.iter()
                .all(|one| one["writable"] == true && one["live"] == true)
        );
    }
    let dead = brokers.leader("t");
    brokers.cluster.kill(dead).unwrap();
    wait_for("its partition has nobody to tell its offsets", || {
        let described = brokers
            .run(&["topic", "describe", "t", "-o", "json"])
            .json();
        (ends(&described) == [None, Some(2), Some(2)]).then_some(())
    });
    let table = brokers.run(&["topic", "describe", "t"]).out;
    assert!(table.contains("4 without 1 partition"), "{table}");
    // It may have been the controller.
    wait_for("two that are there, one that is away", || {
        let info = brokers.run(&["cluster", "info"]).out;
        (info.contains("AWAY") && info.contains("(*)")).then_some(())
    });
    // Two are left of three: none of them may go.
    let other = if dead == 1 { "2" } else { "1" };
    wait_for("the metadata need both", || {
        let refused = brokers.try_run(&["broker", "can-stop", other], b"");
        (refused.code == 3 && refused.err.contains("the cluster's metadata")).then_some(())
    });
}
