//! A bare relay with three synced copies: a client streams batches over TCP to a leader, which writes them to its file
//! and forwards them to two followers; each batch is acknowledged once two of the three have synced it.
//!
//! What TCP and the disk allow a replicated log on this machine, for `timberline bench produce` against three brokers to
//! be compared with. Leader and followers are processes, with files in one directory, and there is nothing else: no
//! consensus, no partitions, no checksums. On every connection bytes go one way and positions, how many of them are
//! synced, the other.
//!
//! Prints one JSON object. `disk_sync` prints the disk's own rate, which the three copies share.
#![forbid(unsafe_code)]

mod client;
mod copy;
mod process;
mod replica;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use timberline_benches::{MB, bench_dir, say};

use client::{Load, Outcome};
use process::Replica;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure a relay that keeps three synced copies and does nothing else.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Bytes of a batch; the default is 100 records of 1 KiB.
    #[arg(long, default_value_t = 100 << 10)]
    batch: usize,
    /// Bytes to send in all.
    #[arg(long, default_value_t = 2_000_000_000)]
    bytes: u64,
    /// Seconds after which no more is sent.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Bytes unacknowledged at a time.
    #[arg(long, default_value_t = 16 << 20)]
    in_flight: usize,
    /// MB a second; latencies then run from when a batch was due [default: as fast as it goes].
    #[arg(long)]
    rate: Option<f64>,
}

/// What this program starts itself as.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Lead {
        file: PathBuf,
        followers: Vec<SocketAddr>,
    },
    #[command(hide = true)]
    Follow { file: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(role) = &args.role else {
        return measure(&args);
    };
    process::end_with_parent();
    match role {
        Role::Lead { file, followers } => replica::lead(file, followers),
        Role::Follow { file } => replica::follow(file),
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        (1..=args.in_flight).contains(&args.batch),
        "--batch is at least 1 and at most --in-flight"
    );
    anyhow::ensure!(
        args.rate.is_none_or(|rate| rate > 0.0),
        "--rate is more than 0"
    );
    let dir = bench_dir()?;
    let mut replicas = start(dir.path())?;
    let load = Load {
        batch_bytes: args.batch,
        batches: args.bytes.div_ceil(args.batch as u64),
        longest: Duration::from_secs(args.seconds),
        in_flight: args.in_flight / args.batch,
        every: args
            .rate
            .map(|rate| Duration::from_secs_f64(args.batch as f64 / MB / rate)),
    };
    let outcome = load.run(replicas[0].address)?;
    for replica in &mut replicas {
        let bytes = replica.finish()?;
        anyhow::ensure!(
            bytes == outcome.bytes,
            "a replica has {bytes} of {} bytes",
            outcome.bytes
        );
    }
    report(&outcome);
    Ok(())
}

/// The leader, then its followers.
fn start(dir: &Path) -> anyhow::Result<Vec<Replica>> {
    let followers = ["follower-1", "follower-2"]
        .iter()
        .map(|name| Replica::start("follow", &dir.join(name), &[]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let addresses: Vec<SocketAddr> = followers.iter().map(|f| f.address).collect();
    let mut replicas = vec![Replica::start("lead", &dir.join("leader"), &addresses)?];
    replicas.extend(followers);
    Ok(replicas)
}

fn report(outcome: &Outcome) {
    let ms = |portion| outcome.latency(portion).as_secs_f64() * 1000.0;
    let seconds = outcome.took.as_secs_f64();
    say(&serde_json::json!({
        "bytes": outcome.bytes,
        "seconds": seconds,
        "mb_per_second": outcome.bytes as f64 / MB / seconds,
        "latency_ms": { "p50": ms(0.5), "p99": ms(0.99), "max": ms(1.0) },
    })
    .to_string());
}
