//! What clusters have to bear while somebody works with them: the short forms. `just chaos` runs the long ones.
//!
//! `CHAOS_BYTES` says how large the file is that is sent (48 MiB unless told), `CHAOS_SEED` which faults it meets.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::process::Signal;
use timberline_workload::drill::rebuild::{self, RebuildOptions, RebuildWay};
use timberline_workload::{Cluster, ClusterOptions};

use crate::harness::{alone, binary, finish_within, run, signal, wait_for};

const MIB: u64 = 1 << 20;
const FILE_BYTES: u64 = 48 * MIB;
const CHUNK_BYTES: u64 = 64 << 10;
/// The file is sent no faster than this, so that the faults fall into it.
const BYTES_PER_S: u64 = 6 * MIB;

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

/// Makes a file of random bytes.
fn make_file(path: &Path, bytes: u64, rng: &mut SmallRng) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut piece = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(piece.len() as u64) as usize;
        rng.fill_bytes(&mut piece[..len]);
        file.write_all(&piece[..len]).unwrap();
        left -= len as u64;
    }
    file.flush().unwrap();
}

/// Both have the same bytes.
#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    let open = |path: &Path| BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let len = |path: &Path| path.metadata().unwrap().len();
    assert_eq!(
        len(left),
        len(right),
        "the file came back longer or shorter"
    );
    let (mut left, mut right) = (open(left), open(right));
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let read = left.read(&mut ours).unwrap();
        if read == 0 {
            return;
        }
        right.read_exact(&mut theirs[..read]).unwrap();
        assert!(
            ours[..read] == theirs[..read],
            "the file came back altered behind byte {at}"
        );
        at += read;
    }
}

/// Three brokers in three racks that never have rest.
struct Victims {
    cluster: Cluster,
    rng: SmallRng,
    /// What happened, and how often.
    strikes: Vec<(&'static str, u32)>,
}

const STRIKES: [&str; 4] = ["kill", "pause", "drain", "stop"];

impl Victims {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command
            .args(args)
            .env("TIMBERLINE_BOOTSTRAP", self.cluster.bootstrap());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) {
        let ran = run(self.command(args), b"");
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    }

    fn leader(&self) -> Option<i32> {
        let ran = run(
            self.command(&["partition", "list", "files", "-o", "json"]),
            b"",
        );
        let listed = (ran.code == 0).then(|| ran.json())?;
        i32::try_from(listed[0]["leader"].as_i64()?).ok()
    }

    /// Something happens, mostly to whoever leads, and then it is over.
    fn strike(&mut self) {
        let anybody = self.rng.random_range(1..=3);
        let leader = self.rng.random_bool(0.8);
        let kind = self.rng.random_range(0..STRIKES.len());
        let lasts = Duration::from_millis(self.rng.random_range(100..1500));
        let victim = self.leader().filter(|_| leader).unwrap_or(anybody);
        let id = victim.to_string();
        eprintln!("{} broker {victim}, for {lasts:?}", STRIKES[kind]);
        self.strikes[kind].1 += 1;
        match STRIKES[kind] {
            "kill" => {
                self.cluster.kill(victim).unwrap();
                std::thread::sleep(lasts);
                self.cluster.restart(victim).unwrap();
            }
            "pause" => {
                let pid = self.cluster.process(victim).unwrap().pid();
                signal(pid, Signal::STOP);
                std::thread::sleep(lasts);
                signal(pid, Signal::CONT);
            }
            "drain" => {
                self.run(&["broker", "drain", &id, "--wait", "--wait-timeout", "60s"]);
                std::thread::sleep(lasts);
                self.run(&["broker", "undrain", &id]);
            }
            _ => {
                let pid = self.cluster.process(victim).unwrap().pid();
                signal(pid, Signal::TERM);
                wait_for("the broker to stop", || self.cluster.check_alive().err());
                self.cluster.kill(victim).unwrap();
                std::thread::sleep(lasts);
                self.cluster.restart(victim).unwrap();
            }
        }
    }
}

#[test]
fn a_file_comes_back_byte_for_byte_whatever_happens_to_its_leaders() {
    let bytes = from_environment("CHAOS_BYTES", FILE_BYTES);
    let rng = SmallRng::seed_from_u64(from_environment("CHAOS_SEED", 1));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    make_file(&path, bytes, &mut rng.clone());
    let options = ClusterOptions::new(env!("CARGO_BIN_EXE_timberline"), dir.path(), 3);
    let mut victims = Victims {
        cluster: Cluster::start(&options).unwrap(),
        rng,
        strikes: STRIKES.map(|kind| (kind, 0)).to_vec(),
    };
    let ready = || run(victims.command(&["cluster", "health"]), b"").code == 0;
    wait_for("a cluster", || ready().then_some(()));
    victims.run(&["topic", "create", "files", "--replication-factor", "3"]);

    let mut producer = victims
        .command(&["produce", "files", "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = producer.stdin.take().unwrap();
    let mut source = File::open(&path).unwrap();
    let feeder = std::thread::spawn(move || {
        let mut piece = vec![0; 1 << 18];
        let (begun, mut sent) = (Instant::now(), 0_u64);
        loop {
            let read = source.read(&mut piece).unwrap();
            if read == 0 {
                return;
            }
            stdin.write_all(&piece[..read]).unwrap();
            sent += read as u64;
            let due = begun + Duration::from_secs_f64(sent as f64 / BYTES_PER_S as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    while producer.try_wait().unwrap().is_none() && !feeder.is_finished() {
        let rest = victims.rng.random_range(200..1200);
        std::thread::sleep(Duration::from_millis(rest));
        victims.strike();
    }
    feeder.join().unwrap();
    let produced = finish_within(producer, Duration::from_secs(150)).ok();
    assert_eq!(produced.out, format!("{}\n", bytes.div_ceil(CHUNK_BYTES)));
    eprintln!("{bytes} bytes, {:?}", victims.strikes);
    let struck: u32 = victims.strikes.iter().map(|(_, times)| times).sum();
    assert!(struck >= 3, "it met nothing: {:?}", victims.strikes);

    let back = dir.path().join("back");
    let args = [
        "consume",
        "files",
        "--from",
        "beginning",
        "--until-end",
        "--raw",
    ];
    let consumer = victims
        .command(&args)
        .stdin(Stdio::null())
        .stdout(File::create(&back).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish_within(consumer, Duration::from_secs(150)).ok();
    assert_same(&path, &back);
}

/// Runs a drill that must lose nothing, and gives its report.
#[track_caller]
fn drill(args: &[&str]) -> serde_json::Value {
    let ran = alone([&["drill"], args, &["-o", "json"]].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    let report = ran.json();
    for nothing in ["lost", "duplicated", "errors"] {
        assert_eq!(report[nothing], 0, "{args:?}: {report}");
    }
    assert!(report["acknowledged"].as_u64().unwrap() > 100, "{report}");
    report
}

#[test]
fn a_cluster_grows_and_shrinks_and_nobody_who_uses_it_notices() {
    let report = drill(&["resize", "-n", "1", "-p", "12", "-r", "300"]);
    assert_eq!(report["times"], 1, "{report}");
}

#[test]
fn a_replica_is_built_anew_from_sealed_segments_of_a_trimmed_log() {
    let load = ["--rate", "1MB", "--before", "200ms", "--size", "24MiB"];
    let report = drill(&[&["rebuild", "--trimmed", "8MiB"], load.as_slice()].concat());
    assert!(report["log_start"].as_i64().unwrap() > 0, "{report}");
    assert!(report["bytes"].as_u64().unwrap() > 24 << 20, "{report}");
    let fresh = ["rebuild", "--trimmed", "0", "--by", "new-broker"];
    let report = drill(&[fresh.as_slice(), load.as_slice()].concat());
    assert_eq!(report["log_start"], 0, "{report}");
}

/// What a line of a log says of an index.
fn indexes(log: &Path, what: &str) -> Vec<u64> {
    let log = std::fs::read_to_string(log).unwrap();
    let lines = log.lines().filter(|line| line.contains(what));
    let index = |line: &str| {
        let (_, behind) = line.split_once("index=").unwrap();
        behind.split(' ').next().unwrap().parse().unwrap()
    };
    lines.map(index).collect()
}

#[test]
fn what_is_written_while_segments_are_pulled_is_pulled_too_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let options = RebuildOptions {
        cluster: ClusterOptions {
            // So slow that more is written meanwhile than is left to entries.
            flags: ["--set", "cluster.transfer_rate=16MiB"]
                .map(String::from)
                .into(),
            ..ClusterOptions::new(env!("CARGO_BIN_EXE_timberline"), dir.path(), 3)
        },
        way: RebuildWay::LostDisk,
        size: 48 * MIB,
        trimmed: 8 * MIB,
        rate: 8e6,
        record_size: 8 << 10,
        before: Duration::ZERO,
    };
    let mut rebuilt = 0;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ran = runtime.block_on(rebuild::run(&options, |event| {
        if let rebuild::RebuildEvent::Begun { broker, .. } = event {
            rebuilt = broker;
        }
    }));
    let report = ran.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let log = |broker: i32| dir.path().join(format!("broker-{broker}/log"));
    let offers = (1..=3).flat_map(|broker| indexes(&log(broker), "a snapshot is offered"));
    let offers: Vec<_> = offers.collect();
    let taken = indexes(&log(rebuilt), "a snapshot is here");
    assert_eq!((offers.len(), taken.len()), (1, 1), "{offers:?} {taken:?}");
    assert!(taken[0] > offers[0], "{offers:?} {taken:?}");
}
