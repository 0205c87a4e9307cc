//! Figures of the product as users run it: the `timberline` binary, brokers as processes of their own, on loopback.
//!
//! It needs `cargo build --release --bin timberline` first, and runs what lies beside it in `target/release`.
#![forbid(unsafe_code)]

mod broker;
mod cluster;
mod process;

use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use serde_json::Value;
use timberline_benches::{MB, Spread, bench_dir, say};

use broker::Broker;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Alternations.
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
}

#[derive(Subcommand)]
enum What {
    /// Produce with every ack after its sync, against a bare stream that writes and syncs.
    Produce {
        /// Records of 1 KiB in a round.
        #[arg(long, default_value_t = 2_000_000)]
        records: u64,
    },
    /// The ack's latency at 20 MB/s, linger 0.
    Latency {
        /// Seconds of load.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Consume from the page cache.
    Consume {
        /// Records of 1 KiB.
        #[arg(long, default_value_t = 3_000_000)]
        records: u64,
    },
    /// A broker with 100 empty partitions that nobody uses: CPU and memory.
    Idle {
        /// Seconds to watch.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// From exec to serving, on an empty directory and after `kill -9` with data.
    Restart {
        /// GiB of data.
        #[arg(long, default_value_t = 10)]
        gib: u64,
    },
    /// Three brokers with three replicas of each partition, and nobody uses them: CPU and memory.
    ClusterIdle {
        /// How many.
        #[arg(long, default_value_t = 1_000)]
        partitions: u64,
        /// Seconds to watch.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Three replicas: the same load over few partitions and over many.
    ClusterSpread {
        /// Few.
        #[arg(long, default_value_t = 30)]
        few: u64,
        /// Many.
        #[arg(long, default_value_t = 1_000)]
        many: u64,
        /// Records of 1 KiB in a run.
        #[arg(long, default_value_t = 1_500_000)]
        records: u64,
    },
    /// Three replicas: where the CPU goes, by thread.
    ClusterCpu {
        /// Partitions.
        #[arg(long, default_value_t = 30)]
        partitions: u64,
        /// Records of 1 KiB.
        #[arg(long, default_value_t = 1_500_000)]
        records: u64,
    },
    /// Partitions created on one broker: time, disk, memory.
    Partitions {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        count: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.what {
        What::Produce { records } => produce(records, args.rounds),
        What::Latency { seconds } => latency(seconds, args.rounds),
        What::Consume { records } => consume(records, args.rounds),
        What::Idle { seconds } => idle(seconds),
        What::Restart { gib } => restart(gib, args.rounds),
        What::Partitions { count } => partitions(count),
        What::ClusterIdle {
            partitions,
            seconds,
        } => cluster::idle(partitions, seconds),
        What::ClusterSpread { few, many, records } => {
            cluster::spread(few, many, records, args.rounds)
        }
        What::ClusterCpu {
            partitions,
            records,
        } => cluster::cpu(partitions, records),
    }
}

fn produce(records: u64, rounds: usize) -> anyhow::Result<()> {
    let (mut bare, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let bytes = (records * 1024).to_string();
        let output = process::run(&process::beside("bare_stream")?, &["--bytes", &bytes])?;
        bare.push(number(&output, &["mb_per_second"])?);
        let dir = bench_dir()?;
        let broker = Broker::start(dir.path())?;
        let topic = format!("bench-{round}");
        broker.client(&["topic", "create", &topic, "--partitions", "4"])?;
        let result = broker.bench(&[
            "produce",
            &topic,
            "--records",
            &records.to_string(),
            "--size",
            "1KiB",
        ])?;
        ours.push(number(&result, &["mb_per_second"])?);
        ratios.push(ours[round] / bare[round]);
        say(&format!(
            "round {round}: bare {:.0}, timberline {:.0} MB/s; {}",
            bare[round],
            ours[round],
            latencies(&result)
        ));
    }
    say(&format!(
        "bare stream, grouped sync   {} MB/s",
        Spread::of(&mut bare)
    ));
    say(&format!(
        "timberline bench produce    {} MB/s",
        Spread::of(&mut ours)
    ));
    say(&format!(
        "ratio                       {:.2}",
        Spread::of(&mut ratios).median
    ));
    Ok(())
}

fn latency(seconds: u64, rounds: usize) -> anyhow::Result<()> {
    let mut p99 = Vec::new();
    for round in 0..rounds {
        let dir = bench_dir()?;
        let broker = Broker::start(dir.path())?;
        let topic = format!("latency-{round}");
        broker.client(&["topic", "create", &topic, "--partitions", "4"])?;
        let rate = 20_000_000 / 1024;
        let records = (rate * seconds).to_string();
        let rate = rate.to_string();
        let result = broker.bench(&[
            "produce",
            &topic,
            "--records",
            &records,
            "--size",
            "1KiB",
            "--rate",
            &rate,
            "--linger",
            "0ms",
        ])?;
        say(&format!("round {round}: {}", latencies(&result)));
        p99.push(number(&result, &["latency_ms", "p99"])?);
    }
    say(&format!(
        "p99 ack at 20 MB/s, linger 0: {} ms",
        Spread::of(&mut p99)
    ));
    Ok(())
}

fn consume(records: u64, rounds: usize) -> anyhow::Result<()> {
    let dir = bench_dir()?;
    let broker = Broker::start(dir.path())?;
    let count = records.to_string();
    broker.client(&["topic", "create", "bench", "--partitions", "4"])?;
    broker.bench(&["produce", "bench", "--records", &count, "--size", "1KiB"])?;
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let result = broker.bench(&["consume", "bench", "--records", &count])?;
        rates.push(number(&result, &["mb_per_second"])?);
    }
    say(&format!(
        "consume, page cache: {} MB/s",
        Spread::of(&mut rates)
    ));
    say(&format!("broker: {}", broker.memory()?));
    Ok(())
}

fn idle(seconds: u64) -> anyhow::Result<()> {
    let dir = bench_dir()?;
    let broker = Broker::start(dir.path())?;
    broker.client(&["topic", "create", "idle", "--partitions", "100"])?;
    std::thread::sleep(Duration::from_secs(3));
    let (cpu, began) = (broker.cpu_seconds()?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let used = (broker.cpu_seconds()? - cpu) / began.elapsed().as_secs_f64() * 100.0;
    say(&format!(
        "idle, 100 empty partitions: {used:.3} % CPU over {seconds} s; {}",
        broker.memory()?
    ));
    Ok(())
}

fn restart(gib: u64, rounds: usize) -> anyhow::Result<()> {
    let mut fresh = Vec::new();
    for _ in 0..rounds {
        let dir = bench_dir()?;
        fresh.push(Broker::start(dir.path())?.started_in.as_secs_f64());
    }
    say(&format!(
        "start to serving, empty directory: {} ms",
        Spread::of(&mut millis(&fresh))
    ));
    let dir = bench_dir()?;
    let broker = Broker::start(dir.path())?;
    broker.client(&["topic", "create", "bench", "--partitions", "4"])?;
    let records = ((gib << 30) / 1024).to_string();
    let result = broker.bench(&["produce", "bench", "--records", &records, "--size", "1KiB"])?;
    say(&format!(
        "filled with {gib} GiB at {:.0} MB/s",
        number(&result, &["mb_per_second"])?
    ));
    let mut after = Vec::new();
    let mut broker = Some(broker);
    for _ in 0..rounds {
        if let Some(running) = broker.take() {
            // Some load, so that the stop is in the middle of work.
            running.bench(&["produce", "bench", "--records", "100000", "--size", "1KiB"])?;
            running.kill()?;
        }
        let next = Broker::start(dir.path())?;
        after.push(next.started_in.as_secs_f64());
        broker = Some(next);
    }
    say(&format!(
        "restart after kill -9 with {gib} GiB: {} ms",
        Spread::of(&mut millis(&after))
    ));
    Ok(())
}

fn millis(seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|s| s * 1000.0).collect()
}

fn partitions(count: u64) -> anyhow::Result<()> {
    let dir = bench_dir()?;
    let broker = Broker::start(dir.path())?;
    let began = Instant::now();
    broker.client(&[
        "topic",
        "create",
        "many",
        "--partitions",
        &count.to_string(),
    ])?;
    let created = began.elapsed();
    broker.client(&["topic", "describe", "many", "-o", "json"])?;
    say(&format!(
        "{count} partitions: {:.2} s, {:.0} MB of disk, {}",
        created.as_secs_f64(),
        process::disk_bytes(dir.path())? as f64 / MB,
        broker.memory()?
    ));
    Ok(())
}

fn number(result: &Value, path: &[&str]) -> anyhow::Result<f64> {
    let mut at = result;
    for key in path {
        at = &at[key];
    }
    at.as_f64()
        .ok_or_else(|| anyhow::anyhow!("no {} in {result}", path.join(".")))
}

fn latencies(result: &Value) -> String {
    let l = &result["latency_ms"];
    format!(
        "ack ms p50 {} p90 {} p99 {} p99.9 {} max {}",
        l["p50"], l["p90"], l["p99"], l["p999"], l["max"]
    )
}
