//! Tests of the log over an in-memory disk, cycles driven by hand.

mod raft;
mod snapshots;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use timberline_record::{Batch, BatchBuilder, Codec, ProducerStamp, TimestampType};
use uuid::Uuid;

use crate::disk::{Disk, FaultDisk};
use crate::{
    EntryKind, Error, HardState, Log, LogConfig, Opened, ReplicaId, ReplicaSpec, SequenceCheck,
    Store, StoreOptions,
};

const DIR: &str = "/data";
const TOPIC: Uuid = Uuid::from_u128(7);

fn options() -> StoreOptions {
    StoreOptions {
        journal_bytes: 1 << 20,
        direct_sync_bytes: 64 << 10,
        directory_id: Some(Uuid::from_u128(1)),
        ..StoreOptions::default()
    }
}

fn open(disk: &FaultDisk) -> Opened {
    Store::open(
        Arc::new(disk.clone()) as Arc<dyn Disk>,
        Path::new(DIR),
        options(),
    )
    .unwrap()
}

fn spec(n: u64) -> ReplicaSpec {
    ReplicaSpec {
        replica: ReplicaId(n),
        topic: TOPIC,
        partition: n as u32,
    }
}

fn batch(values: &[&str], timestamp: i64, producer: Option<ProducerStamp>) -> Batch {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    for value in values {
        builder
            .append(timestamp, None, Some(value.as_bytes()), &[])
            .unwrap();
    }
    builder.build(producer).unwrap()
}

/// Runs everything that waits until nothing does.
fn settle(store: &Store) {
    loop {
        let work = store.begin_cycle(false);
        if work.is_empty() {
            break;
        }
        for direct in work.direct {
            store.run_direct(&direct).unwrap();
            store.finish_direct(direct);
        }
        if let Some(cycle) = work.cycle {
            store.run_cycle(&cycle).unwrap();
            store.finish_cycle(cycle);
        }
    }
}

fn values(log: &Arc<Log>, from: i64) -> Vec<(i64, String)> {
    let mut cursor = log.cursor(from);
    let mut out = Vec::new();
    loop {
        let batches = log.read_blocking(&mut cursor, 1 << 20).unwrap();
        if batches.is_empty() {
            return out;
        }
        for bytes in batches {
            for record in Batch::parse(bytes)
                .unwrap()
                .records(&Default::default())
                .unwrap()
            {
                let record = record.unwrap();
                if record.offset >= from {
                    out.push((
                        record.offset,
                        String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                    ));
                }
            }
        }
    }
}

fn commit_all(store: &Store, log: &Arc<Log>) {
    settle(store);
    assert_eq!(log.durable_index(), log.last_index());
    log.commit_to(log.last_index());
}

#[test]
fn what_was_synced_is_there_after_power_loss_and_the_rest_is_gone() {
    let disk = FaultDisk::new(1);
    let opened = open(&disk);
    assert!(opened.report.created);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    log.set_hard_state(HardState {
        term: 3,
        vote: 1,
        commit: 0,
    });
    for n in 0..10 {
        log.append_batch(
            3,
            &batch(&[&format!("a{n}"), &format!("b{n}")], 1000 + n, None),
            5000 + n,
        )
        .unwrap();
    }
    assert_eq!(log.high_watermark(), 0);
    commit_all(&opened.store, &log);
    assert_eq!(log.high_watermark(), 20);
    assert_eq!(values(&log, 7).first().unwrap(), &(7, "b3".to_owned()));
    log.append_batch(3, &batch(&["unsynced"], 2000, None), 6000)
        .unwrap();
    drop(log);
    drop(opened);
    disk.power_loss();

    let opened = open(&disk);
    assert!(!opened.report.clean);
    let log = opened.logs[0].clone();
    assert_eq!(log.hard_state().term, 3);
    assert_eq!(log.last_index(), 10);
    log.commit_to(10);
    assert_eq!(values(&log, 0).len(), 20);
    assert_eq!(log.offset_for_time(1005).unwrap(), Some((10, 1005)));
    assert_eq!(log.offset_for_time(9999).unwrap(), None);
}

#[test]
fn a_clean_stop_needs_no_replay_and_goes_on_in_the_same_file() {
    let disk = FaultDisk::new(2);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    log.append_batch(1, &batch(&["one"], 1, None), 1).unwrap();
    commit_all(&opened.store, &log);
    opened.store.close().unwrap();
    drop((log, opened));
    disk.power_loss();

    let opened = open(&disk);
    assert!(opened.report.clean, "{:?}", opened.report);
    assert_eq!(opened.report.cycles, 0);
    let log = opened.logs[0].clone();
    log.append_batch(2, &batch(&["two"], 2, None), 2).unwrap();
    commit_all(&opened.store, &log);
    assert_eq!(log.segments(), 1);
    assert_eq!(values(&log, 0), vec![(0, "one".into()), (1, "two".into())]);
}

#[test]
fn large_appends_are_synced_directly_and_named() {
    let disk = FaultDisk::new(3);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    let large = "x".repeat(40_000);
    for _ in 0..4 {
        log.append_batch(1, &batch(&[&large], 1, None), 1).unwrap();
    }
    commit_all(&opened.store, &log);
    assert_eq!(opened.store.stats().direct_syncs, 1);
    drop((log, opened));
    disk.power_loss();
    let opened = open(&disk);
    assert_eq!(opened.logs[0].last_index(), 4);
}

#[test]
fn segments_roll_seal_and_go() {
    let disk = FaultDisk::new(4);
    let opened = open(&disk);
    let config = LogConfig {
        segment_bytes: 64 << 10,
        retention_bytes: Some(200 << 10),
        ..LogConfig::default()
    };
    let log = opened
        .store
        .create_replica(spec(1), config.clone())
        .unwrap();
    let value = "y".repeat(10_000);
    for n in 0..60 {
        log.append_batch(1, &batch(&[&value], n, None), n).unwrap();
    }
    commit_all(&opened.store, &log);
    assert!(log.segments() >= 9);
    while let Some(seal) = opened.store.begin_seal() {
        opened.store.run_seal(seal).unwrap();
    }
    let target = log.retention_target(100).unwrap();
    log.append_log_start(1, target, 101).unwrap();
    commit_all(&opened.store, &log);
    assert_eq!(log.log_start(), target);
    let before = log.segments();
    opened.store.checkpoint_now(false).unwrap();
    assert!(log.segments() < before);
    assert_eq!(values(&log, target).first().unwrap().0, target);
    assert!(matches!(
        log.read_blocking(&mut log.cursor(0), 1),
        Err(Error::OffsetOutOfRange { .. })
    ));
    drop((log, opened));
    disk.power_loss();
    let opened = open(&disk);
    let log = opened.logs[0].clone();
    log.commit_to(log.last_index());
    assert_eq!(log.log_start(), target);
    assert_eq!(values(&log, target).len() as i64, 60 - target);
}

#[test]
fn a_truncation_is_a_cut_and_survives() {
    let disk = FaultDisk::new(5);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    for n in 0..6 {
        log.append_batch(1, &batch(&[&format!("old{n}")], n, None), n)
            .unwrap();
    }
    settle(&opened.store);
    log.commit_to(2);
    assert!(matches!(log.truncate_after(1), Err(Error::Refused(_))));
    log.truncate_after(3).unwrap();
    log.append_batch(2, &batch(&["new"], 9, None), 9).unwrap();
    settle(&opened.store);
    drop((log, opened));
    disk.power_loss();
    let opened = open(&disk);
    let log = opened.logs[0].clone();
    assert_eq!((log.last_index(), log.last_term()), (4, 2));
    log.commit_to(4);
    let all: Vec<String> = values(&log, 0).into_iter().map(|v| v.1).collect();
    assert_eq!(all, ["old0", "old1", "old2", "new"]);
}

#[test]
fn producers_are_remembered_over_restarts() {
    let disk = FaultDisk::new(6);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    let stamp = |seq| {
        Some(ProducerStamp {
            id: 9,
            epoch: 1,
            base_sequence: seq,
        })
    };
    for n in 0..7 {
        let batch = batch(&["v"], n, stamp(n as i32));
        assert_eq!(log.check_producer(batch.header()), SequenceCheck::Accept);
        log.append_batch(1, &batch, n).unwrap();
    }
    commit_all(&opened.store, &log);
    drop((log, opened));
    disk.power_loss();
    for _ in 0..2 {
        let opened = open(&disk);
        let log = opened.logs[0].clone();
        let check = |seq| log.check_producer(batch(&["v"], 0, stamp(seq)).header());
        assert!(matches!(
            check(6),
            SequenceCheck::Duplicate { base_offset: 6, .. }
        ));
        assert!(matches!(
            check(2),
            SequenceCheck::Duplicate { base_offset: 2, .. }
        ));
        assert_eq!(check(1), SequenceCheck::TooOld);
        assert_eq!(check(7), SequenceCheck::Accept);
        assert_eq!(check(9), SequenceCheck::OutOfOrder { expected: 7 });
        opened.store.close().unwrap();
    }
}

#[test]
fn state_logs_replay_by_index() {
    let disk = FaultDisk::new(7);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    for n in 0..5u8 {
        log.append(1, EntryKind::Command, Bytes::from(vec![n; 3]), 1)
            .unwrap();
    }
    commit_all(&opened.store, &log);
    let mut seen = Vec::new();
    log.replay(3, |entry| {
        seen.push((entry.index, entry.payload[0]));
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, [(3, 2), (4, 3), (5, 4)]);
    assert_eq!(log.high_watermark(), 0);
}

#[test]
fn a_removed_replica_leaves_nothing() {
    let disk = FaultDisk::new(8);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    log.append_batch(1, &batch(&["v"], 1, None), 1).unwrap();
    commit_all(&opened.store, &log);
    opened.store.remove_replica(ReplicaId(1)).unwrap();
    settle(&opened.store);
    // One for each table that may list its files.
    opened.store.checkpoint_now(false).unwrap();
    opened.store.checkpoint_now(false).unwrap();
    assert!(disk.list(Path::new("/data/logs")).unwrap().is_empty());
    drop((log, opened));
    disk.power_loss();
    assert!(open(&disk).logs.is_empty());
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = FaultDisk::new(9);
    let opened = open(&disk);
    let log = opened
        .store
        .create_replica(spec(1), LogConfig::default())
        .unwrap();
    let used = {
        log.append_batch(1, &batch(&["v"], 1, None), 1).unwrap();
        commit_all(&opened.store, &log);
        disk.total_bytes(Path::new(DIR)).unwrap() - disk.free_bytes(Path::new(DIR)).unwrap()
    };
    disk.set_capacity(Some(used + 8192));
    let big = "z".repeat(100_000);
    assert!(matches!(
        log.reserve(120_000),
        Err(Error::StorageFull { .. })
    ));
    assert!(matches!(
        log.append_batch(1, &batch(&[&big], 2, None), 2),
        Err(Error::StorageFull { .. })
    ));
    assert_eq!(values(&log, 0).len(), 1);
    disk.set_capacity(None);
    log.append_batch(1, &batch(&[&big], 2, None), 2).unwrap();
    commit_all(&opened.store, &log);
    assert_eq!(values(&log, 0).len(), 2);
}

#[test]
fn a_second_store_is_refused() {
    let disk = FaultDisk::new(10);
    let _opened = open(&disk);
    let second = Store::open(
        Arc::new(disk.clone()) as Arc<dyn Disk>,
        Path::new(DIR),
        options(),
    );
    assert!(matches!(second, Err(Error::Locked { .. })));
}
