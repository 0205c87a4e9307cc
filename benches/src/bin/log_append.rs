//! Appending 16 KiB batches to the log, synced every 1 MiB, against plain sequential `pwrite` and `fdatasync`.
//!
//! Both keep at most one MiB unsynced behind the one being written: the log syncs on a thread of its own while the
//! next MiB is appended, as the broker does, and an append counts when its sync is durable.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use timberline_benches::{MB, bench_dir, compare, now_ms, random_batch, timed};
use timberline_record::Batch;
use timberline_storage::disk::RealDisk;
use timberline_storage::{Listener, LogConfig, ReplicaId, ReplicaSpec, Store, StoreOptions};

const BATCH: usize = 16 << 10;
const PER_SYNC: usize = 64;
const SYNCS: usize = 1024;

struct Tell(Sender<u64>);

impl Listener for Tell {
    fn durable(&self, updates: &[(ReplicaId, u64)]) {
        for (_, index) in updates {
            let _ = self.0.send(*index);
        }
    }
    fn poisoned(&self, _: &str) {}
}

fn main() -> anyhow::Result<()> {
    let batches: Vec<Batch> = (0..PER_SYNC as u64)
        .map(|n| random_batch(BATCH, 1000, n))
        .collect::<anyhow::Result<_>>()?;
    let bytes = batches.iter().map(|b| b.bytes().len()).sum::<usize>() * SYNCS;
    compare(
        "append of 16 KiB batches, synced every 1 MiB",
        "MB/s",
        5,
        ("pwrite + fdatasync", || plain(&batches, bytes)),
        ("log", || log(&batches, bytes)),
    )?;
    Ok(())
}

fn plain(batches: &[Batch], bytes: usize) -> anyhow::Result<f64> {
    let dir = bench_dir()?;
    let file = File::create_new(dir.path().join("file"))?;
    let took = timed(|| {
        let mut at = 0;
        for _ in 0..SYNCS {
            for batch in batches {
                file.write_all_at(batch.bytes(), at)?;
                at += batch.bytes().len() as u64;
            }
            file.sync_data()?;
        }
        Ok(())
    })?;
    Ok(bytes as f64 / MB / took.as_secs_f64())
}

fn log(batches: &[Batch], bytes: usize) -> anyhow::Result<f64> {
    let dir = bench_dir()?;
    let opened = Store::open(
        Arc::new(RealDisk::new()),
        dir.path(),
        StoreOptions::default(),
    )?;
    let (tell, told) = channel();
    let running = opened.store.start(Arc::new(Tell(tell)))?;
    let spec = ReplicaSpec {
        replica: ReplicaId(1),
        topic: timberline_benches::topic(),
        partition: 0,
    };
    let log = opened.store.create_replica(spec, LogConfig::default())?;
    let took = timed(|| {
        let mut durable = 0;
        for n in 0..SYNCS {
            for batch in batches {
                log.append_batch(1, batch, now_ms())?;
            }
            // One MiB may be on its way to the disk while the next is appended.
            while durable < (n * PER_SYNC) as u64 {
                durable = told.recv()?;
            }
        }
        while durable < (SYNCS * PER_SYNC) as u64 {
            durable = told.recv()?;
        }
        Ok(())
    })?;
    running.stop()?;
    Ok(bytes as f64 / MB / took.as_secs_f64())
}
