//! The store with its real threads under appends from several others: nothing may stall, nothing may be lost.
//!
//! A ring so small that cycles overflow and wait for checkpoints, segments so small that they roll and seal all the
//! time, replicas that come and go, readers that begin cold. A watchdog turns a deadlock into a failure.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use timberline_record::{Batch, BatchBuilder, Codec, TimestampType};
use timberline_storage::disk::RealDisk;
use timberline_storage::{
    JOURNAL_BYTES_MIN, Listener, Log, LogConfig, ReplicaId, ReplicaSpec, Store, StoreOptions,
};
use uuid::Uuid;

const WRITERS: u64 = 3;
const LOGS_EACH: u64 = 30;
const ROUNDS: u64 = 120;
/// Far longer than the test takes anywhere.
const STALLED_AFTER: Duration = Duration::from_secs(120);

struct Quiet;

impl Listener for Quiet {
    fn durable(&self, _: &[(ReplicaId, u64)]) {}
    fn poisoned(&self, why: &str) {
        panic!("poisoned: {why}");
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        journal_bytes: JOURNAL_BYTES_MIN,
        direct_sync_bytes: 48 << 10,
        checkpoint_bytes: 1 << 20,
        open_files_max: 40,
        ..StoreOptions::default()
    }
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 96 << 10,
        ..LogConfig::default()
    }
}

fn spec(n: u64) -> ReplicaSpec {
    ReplicaSpec {
        replica: ReplicaId(n),
        topic: Uuid::from_u128(u128::from(n % 7) + 1),
        partition: n as u32,
    }
}

fn batch(bytes: usize, fill: u8) -> Batch {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    builder
        .append(1, None, Some(&vec![fill; bytes]), &[])
        .unwrap();
    builder.build(None).unwrap()
}

/// Waits for everything, commits it, and reads it back.
fn settle_and_read(log: &Arc<Log>) -> i64 {
    while log.durable_index() < log.last_index() {
        std::thread::sleep(Duration::from_millis(1));
    }
    log.commit_to(log.last_index());
    read_all(log)
}

fn read_all(log: &Arc<Log>) -> i64 {
    let mut cursor = log.cursor(log.log_start());
    let mut records = 0;
    loop {
        let batches = log.read_blocking(&mut cursor, 64 << 10).unwrap();
        if batches.is_empty() {
            return records;
        }
        for bytes in batches {
            let batch = Batch::parse(bytes).unwrap();
            batch.verify_crc().unwrap();
            records += i64::from(batch.header().record_count);
        }
    }
}

fn write(store: &Store, writer: u64) {
    let first = writer * 1000 + 1;
    let logs: Vec<_> = (first..first + LOGS_EACH)
        .map(|n| store.create_replica(spec(n), config()).unwrap())
        .collect();
    for round in 0..ROUNDS {
        for (n, log) in logs.iter().enumerate() {
            let size = 500 + (round as usize * 977 + n * 131) % 12_000;
            log.append_batch(1, &batch(size, round as u8), round as i64)
                .unwrap();
            log.commit_to(log.durable_index());
        }
        // One comes and goes beside them.
        let passing = store
            .create_replica(spec(first + 500 + round), config())
            .unwrap();
        passing.append_batch(1, &batch(2_000, 7), 1).unwrap();
        store.remove_replica(passing.spec().replica).unwrap();
        assert!(store.poisoned().is_none());
    }
    for log in &logs {
        assert_eq!(settle_and_read(log), ROUNDS as i64);
    }
}

fn run(dir: &Path) {
    let opened = Store::open(Arc::new(RealDisk::new()), dir, options()).unwrap();
    let running = opened.store.start(Arc::new(Quiet)).unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = opened.store.clone();
            std::thread::spawn(move || write(&store, writer))
        })
        .collect();
    for _ in 0..20 {
        opened.store.stats();
        std::thread::sleep(Duration::from_millis(5));
    }
    for writer in writers {
        writer.join().unwrap();
    }
    running.stop().unwrap();
    drop(opened);

    let opened = Store::open(Arc::new(RealDisk::new()), dir, options()).unwrap();
    assert_eq!(opened.logs.len() as u64, WRITERS * LOGS_EACH);
    assert!(
        opened.report.clean && opened.report.damage.is_empty(),
        "{:?}",
        opened.report
    );
    for log in &opened.logs {
        log.commit_to(log.last_index());
        assert_eq!(read_all(log), ROUNDS as i64);
    }
}

#[test]
fn nothing_stalls_and_nothing_is_lost_with_real_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (done, finished) = channel();
    let test = std::thread::spawn(move || {
        run(&path);
        done.send(()).unwrap();
    });
    match finished.recv_timeout(STALLED_AFTER) {
        Ok(()) => test.join().unwrap(),
        Err(RecvTimeoutError::Disconnected) => std::panic::resume_unwind(test.join().unwrap_err()),
        Err(RecvTimeoutError::Timeout) => panic!("stalled: a deadlock, or a wake that was lost"),
    }
}
