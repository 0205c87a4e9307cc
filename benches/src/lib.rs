//! Shared pieces of the programs that print the figures of `docs/benchmarks.md`.
//!
//! Each program compares two things within one run, in alternation, and prints the medians and their ratio: on a
//! small noisy machine only the ratio means something.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use timberline_record::{Batch, BatchBuilder, Codec, TimestampType};

/// Bytes of a MB.
pub const MB: f64 = 1e6;

/// A fresh directory for a benchmark's files: under `BENCH_DIR` if set, else the system's temporary directory.
///
/// # Errors
/// When it can't be made.
pub fn bench_dir() -> anyhow::Result<tempfile::TempDir> {
    let base = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    Ok(tempfile::Builder::new()
        .prefix("timberline-bench-")
        .tempdir_in(base)?)
}

/// A batch of incompressible records of `value_bytes` each, `batch_bytes` in all.
///
/// # Errors
/// When the batch can't be built.
pub fn random_batch(batch_bytes: usize, value_bytes: usize, seed: u64) -> anyhow::Result<Batch> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    let mut value = vec![0; value_bytes];
    loop {
        rng.fill_bytes(&mut value);
        builder.append(now_ms(), None, Some(&value), &[])?;
        if builder.encoded_len() + value_bytes + 16 > batch_bytes {
            break;
        }
    }
    Ok(builder.build(None)?)
}

/// Random bytes.
pub fn random_bytes(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    Bytes::from(bytes)
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as i64)
}

/// Measures two things in alternation and prints both medians, their spread and the ratio of the second to the
/// first, each as a rate.
///
/// # Errors
/// What a run returns.
pub fn compare(
    title: &str,
    unit: &str,
    rounds: usize,
    (base_name, mut base): (&str, impl FnMut() -> anyhow::Result<f64>),
    (name, mut ours): (&str, impl FnMut() -> anyhow::Result<f64>),
) -> anyhow::Result<f64> {
    let (mut bases, mut owns) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bases.push(base()?);
        owns.push(ours()?);
    }
    let (b, o) = (Spread::of(&mut bases), Spread::of(&mut owns));
    say(&format!(
        "{title}\n  {base_name:<28} {b} {unit}\n  {name:<28} {o} {unit}\n  ratio {:.2}",
        o.median / b.median
    ));
    Ok(o.median / b.median)
}

/// Median, least and most of some runs.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    /// Of at least one run.
    pub fn of(runs: &mut [f64]) -> Spread {
        runs.sort_by(f64::total_cmp);
        Spread {
            median: runs[runs.len() / 2],
            low: runs[0],
            high: runs[runs.len() - 1],
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>10.1}  ({:.1}–{:.1})",
            self.median, self.low, self.high
        )
    }
}

/// Prints a line of the result.
#[allow(
    clippy::print_stdout,
    reason = "printing figures is what these programs are for"
)]
pub fn say(line: &str) {
    println!("{line}");
}

/// Runs something and says how long it took.
///
/// # Errors
/// What it returns.
pub fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// The topic id that the programs use.
pub fn topic() -> uuid::Uuid {
    uuid::Uuid::from_u128(1)
}
