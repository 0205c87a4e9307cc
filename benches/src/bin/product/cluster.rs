//! Three brokers in three racks on loopback, as `timberline dev up` starts them; taken down when dropped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use timberline_benches::{MB, Spread, bench_dir, say};

use crate::process::{self, Cpu};
use crate::{latencies, number};

/// Replicas of every topic here.
const REPLICAS: &str = "3";
/// Until a new topic's groups have leaders and the idle ones are silent.
const SETTLE: Duration = Duration::from_secs(15);

struct Cluster {
    dir: TempDir,
    bootstrap: String,
    /// By broker.
    pids: Vec<u32>,
}

impl Cluster {
    fn up() -> anyhow::Result<Cluster> {
        let dir = bench_dir()?;
        let mut cluster = Cluster {
            dir,
            bootstrap: String::new(),
            pids: Vec::new(),
        };
        let base = format!("{}", 20_000 + std::process::id() % 20_000);
        let up = [
            "up",
            "--brokers",
            "3",
            "--racks",
            "a,b,c",
            "--detach",
            "--base-port",
            &base,
        ];
        cluster.dev(&up)?;
        let status = cluster.dev(&["status", "-o", "json"])?;
        let bootstrap = status["bootstrap"].as_str();
        cluster.bootstrap = bootstrap.unwrap_or_default().to_owned();
        let brokers = status["brokers"].as_array().cloned().unwrap_or_default();
        let pids = brokers.iter().filter_map(|broker| broker["pid"].as_u64());
        cluster.pids = pids.map(|pid| pid as u32).collect();
        anyhow::ensure!(cluster.pids.len() == 3, "not all brokers run: {status}");
        Ok(cluster)
    }

    fn dev(&self, args: &[&str]) -> anyhow::Result<Value> {
        let dir = self.dir.path().to_string_lossy();
        let all = [&["dev"], args, &["--dir", &dir]].concat();
        process::run(&process::beside("timberline")?, &all)
    }

    fn client(&self, args: &[&str]) -> anyhow::Result<Value> {
        let all = [args, &["--bootstrap", &self.bootstrap]].concat();
        process::run(&process::beside("timberline")?, &all)
    }

    fn create(&self, topic: &str, partitions: u64) -> anyhow::Result<()> {
        let partitions = partitions.to_string();
        let of = [
            "--partitions",
            &partitions,
            "--replication-factor",
            REPLICAS,
        ];
        self.client(&[&["topic", "create", topic][..], &of].concat())?;
        Ok(())
    }

    fn produce(&self, topic: &str, records: u64) -> anyhow::Result<Value> {
        let records = records.to_string();
        let load = ["--records", &records, "--size", "1KiB", "-o", "json"];
        self.client(&[&["bench", "produce", topic][..], &load].concat())
    }

    /// CPU of all brokers so far, by thread name.
    fn cpu(&self) -> anyhow::Result<BTreeMap<String, Cpu>> {
        let mut all = BTreeMap::new();
        for &pid in &self.pids {
            for (thread, cpu) in process::cpu_of_threads(pid)? {
                *all.entry(thread).or_default() += cpu;
            }
        }
        Ok(all)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.dev(&["down"]) {
            say(&format!("taking the brokers down: {error}"));
        }
    }
}

/// Partitions that nobody uses: CPU and memory.
pub(crate) fn idle(partitions: u64, seconds: u64) -> anyhow::Result<()> {
    let cluster = Cluster::up()?;
    cluster.create("idle", partitions)?;
    std::thread::sleep(SETTLE);
    let of_each = || -> anyhow::Result<Vec<f64>> {
        let pids = cluster.pids.iter();
        pids.map(|&pid| process::cpu_seconds(pid)).collect()
    };
    let (before, began) = (of_each()?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, took) = (of_each()?, began.elapsed().as_secs_f64());
    let mut total = 0.0;
    for ((pid, before), after) in cluster.pids.iter().zip(before).zip(after) {
        let used = (after - before) / took * 100.0;
        total += used;
        say(&format!(
            "{used:.2} % of a core; {}",
            process::memory(*pid)?
        ));
    }
    say(&format!(
        "idle, {partitions} partitions x {REPLICAS} on three brokers: {total:.2} % of a core in all over {seconds} s"
    ));
    Ok(())
}

/// The same load over few partitions and over many, one after the other.
pub(crate) fn spread(few: u64, many: u64, records: u64, rounds: usize) -> anyhow::Result<()> {
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let mut rates = Vec::new();
        for partitions in [few, many] {
            let cluster = Cluster::up()?;
            cluster.create("bench", partitions)?;
            std::thread::sleep(Duration::from_secs(3));
            let result = cluster.produce("bench", records)?;
            rates.push(number(&result, &["mb_per_second"])?);
            say(&format!(
                "round {round}, {partitions} partitions: {:.0} MB/s; {}",
                rates[rates.len() - 1],
                latencies(&result)
            ));
        }
        ratios.push(rates[1] / rates[0]);
    }
    say(&format!(
        "{many} partitions against {few}: {}",
        Spread::of(&mut ratios)
    ));
    Ok(())
}

/// Where the CPU goes while three replicas are written, by thread.
pub(crate) fn cpu(partitions: u64, records: u64) -> anyhow::Result<()> {
    let cluster = Cluster::up()?;
    cluster.create("bench", partitions)?;
    std::thread::sleep(Duration::from_secs(3));
    let (before, client) = (cluster.cpu()?, process::cpu_of_children()?);
    let result = cluster.produce("bench", records)?;
    let client = process::cpu_of_children()? - client;
    let mut parts: Vec<(String, f64)> =
        vec![("the client, a process of its own".to_owned(), client)];
    for (thread, after) in cluster.cpu()? {
        let before = before.get(&thread).copied().unwrap_or_default();
        parts.push((format!("brokers: {thread}"), after - before));
    }
    parts.retain(|(_, seconds)| *seconds > 0.0);
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let bytes = number(&result, &["bytes"])?;
    let all: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    say("ms of CPU per MB | ns per record |    % | part");
    for (part, seconds) in &parts {
        say(&format!(
            "{:16.2} | {:13.0} | {:4.1} | {part}",
            seconds * 1e3 / (bytes / MB),
            seconds * 1e9 / records as f64,
            seconds / all * 100.0,
        ));
    }
    say(&format!(
        "{all:.1} s for {:.0} MB at {:.0} MB/s; {}",
        bytes / MB,
        number(&result, &["mb_per_second"])?,
        latencies(&result)
    ));
    Ok(())
}
