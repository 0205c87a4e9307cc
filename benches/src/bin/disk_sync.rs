//! The disk's own rate: 1 MiB into new extents of one file, `fdatasync` after each.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use timberline_benches::{MB, Spread, bench_dir, random_bytes, say, timed};

const PIECE: usize = 1 << 20;
const PIECES: u64 = 1024;

fn main() -> anyhow::Result<()> {
    let mut rates = Vec::new();
    for round in 0..3 {
        let dir = bench_dir()?;
        let file = File::create_new(dir.path().join("file"))?;
        let piece = random_bytes(PIECE, round);
        let took = timed(|| {
            for n in 0..PIECES {
                file.write_all_at(&piece, n * PIECE as u64)?;
                file.sync_data()?;
            }
            Ok(())
        })?;
        rates.push(PIECES as f64 * PIECE as f64 / MB / took.as_secs_f64());
    }
    say(&format!(
        "1 MiB into new extents, synced: {} MB/s",
        Spread::of(&mut rates)
    ));
    Ok(())
}
