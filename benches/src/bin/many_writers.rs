//! A thousand writers with one 1 KiB append in flight each, synced before it counts: each to a partition of its own,
//! against all to one partition.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use timberline_benches::{bench_dir, compare, now_ms, random_batch, topic};
use timberline_storage::disk::RealDisk;
use timberline_storage::{Listener, Log, LogConfig, ReplicaId, ReplicaSpec, Store, StoreOptions};

const WRITERS: u64 = 1000;
const RUN: Duration = Duration::from_secs(5);

struct Tell(Sender<Vec<(ReplicaId, u64)>>);

impl Listener for Tell {
    fn durable(&self, updates: &[(ReplicaId, u64)]) {
        let _ = self.0.send(updates.to_vec());
    }
    fn poisoned(&self, _: &str) {}
}

fn main() -> anyhow::Result<()> {
    compare(
        "1,000 writers, one 1 KiB append in flight each",
        "appends/s",
        3,
        ("all to one partition", || run(1)),
        ("each to its own", || run(WRITERS)),
    )?;
    Ok(())
}

fn run(partitions: u64) -> anyhow::Result<f64> {
    let dir = bench_dir()?;
    let opened = Store::open(
        Arc::new(RealDisk::new()),
        dir.path(),
        StoreOptions::default(),
    )?;
    let (tell, told) = channel();
    let running = opened.store.start(Arc::new(Tell(tell)))?;
    let batch = random_batch(1024, 900, 1)?;
    let mut logs: HashMap<ReplicaId, (Arc<Log>, u64)> = HashMap::new();
    for n in 1..=partitions {
        let spec = ReplicaSpec {
            replica: ReplicaId(n),
            topic: topic(),
            partition: n as u32,
        };
        let log = opened.store.create_replica(spec, LogConfig::default())?;
        logs.insert(spec.replica, (log, 0));
    }
    for (log, _) in logs.values() {
        for _ in 0..WRITERS / partitions {
            log.append_batch(1, &batch, now_ms())?;
        }
    }
    let began = Instant::now();
    let mut done = 0u64;
    while began.elapsed() < RUN {
        for (replica, index) in told.recv()? {
            let Some((log, seen)) = logs.get_mut(&replica) else {
                continue;
            };
            let freed = index - *seen;
            *seen = index;
            done += freed;
            for _ in 0..freed {
                log.append_batch(1, &batch, now_ms())?;
            }
        }
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    running.stop()?;
    Ok(rate)
}
