//! The disk's own rate: 1 MiB into new extents of one file, `fdatasync` after each.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use clap::Parser;
use timberline_benches::{MB, Spread, bench_dir, random_bytes, say, timed};

const PIECE: usize = 1 << 20;

/// Measure the disk's own rate: 1 MiB into new extents of one file, synced after each.
#[derive(Parser)]
struct Args {
    /// Files, one after the other; the median is printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Length of each file, MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut rates = Vec::new();
    for round in 0..args.rounds {
        let dir = bench_dir()?;
        let file = File::create_new(dir.path().join("file"))?;
        let piece = random_bytes(PIECE, round);
        let took = timed(|| {
            for n in 0..args.mib {
                file.write_all_at(&piece, n * PIECE as u64)?;
                file.sync_data()?;
            }
            Ok(())
        })?;
        rates.push(args.mib as f64 * PIECE as f64 / MB / took.as_secs_f64());
    }
    say(&format!(
        "1 MiB into new extents, synced: {} MB/s",
        Spread::of(&mut rates)
    ));
    Ok(())
}
