//! The history whose traces on disk are the fixtures: every kind of journal record, entry and file end, small.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use timberline_record::{Batch, BatchBuilder, Codec, ProducerStamp, TimestampType};
use timberline_storage::disk::{Disk, FaultDisk};
use timberline_storage::{
    EntryKind, FrameHeader, HardState, Log, LogConfig, ReplicaId, ReplicaSpec, Store, StoreOptions,
    chain_seed,
};
use uuid::Uuid;

use crate::DIR;
use crate::dump::Tree;

/// Fixture: killed, with a journal to replay.
pub(crate) const RUNNING: &str = "v2/running";
/// Fixture: stopped cleanly.
pub(crate) const CLOSED: &str = "v2/closed";
/// Fixture: killed behind an install that the table does not know.
pub(crate) const INSTALLED: &str = "v2/installed";
/// End of the name of the file that holds the install's row.
pub(crate) const INSTALL_ROW: &str = ".ins";
/// The same moments as version 1 left them, without replica 5: to be read for ever, written no more.
pub(crate) const RUNNING_V1: &str = "v1/running";
pub(crate) const CLOSED_V1: &str = "v1/closed";
/// Ends of the names of the segments that the newest table of `running` does not list.
pub(crate) const BORN_AFTER_TABLE: [&str; 2] = ["0004.seg", "0005.seg"];
/// Memberships of replica 5.
pub(crate) const FIRST_MEMBERS: &str = "voters: 1 2 5";
pub(crate) const NEXT_MEMBERS: &str = "voters: 1 4 5";
/// The slot with the newest table of `running`.
pub(crate) const NEWER_TABLE: &str = "table.1";

pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        journal_bytes: 1 << 20,
        direct_sync_bytes: 1_000,
        directory_id: Some(Uuid::from_u128(0x0d17_0000_0000_0000_0000_0000_0000_0001)),
        ..StoreOptions::default()
    }
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 2_048,
        ..LogConfig::default()
    }
}

pub(crate) fn spec(replica: u64) -> ReplicaSpec {
    ReplicaSpec {
        replica: ReplicaId(replica),
        topic: Uuid::from_u128(0x7091_c000_0000_0000_0000_0000_0000_000a),
        partition: replica as u32 + 10,
    }
}

fn batch(values: &[&str], timestamp: i64, producer: Option<ProducerStamp>) -> Batch {
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    for value in values {
        let value = Some(value.as_bytes());
        builder.append(timestamp, Some(b"key"), value, &[]).unwrap();
    }
    builder.build(producer).unwrap()
}

/// One record of producer 77.
pub(crate) fn produced(value: &str, timestamp: i64, base_sequence: i32) -> Batch {
    let stamp = ProducerStamp {
        id: 77,
        epoch: 3,
        base_sequence,
    };
    batch(&[value], timestamp, Some(stamp))
}

/// Runs everything that waits until nothing does.
fn settle(store: &Store) {
    loop {
        let work = store.begin_cycle(false);
        if work.is_empty() {
            return;
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

fn closing_mark(store: &Store) {
    let mark = store.begin_cycle(true).cycle.unwrap();
    store.run_cycle(&mark).unwrap();
    store.finish_cycle(mark);
}

fn vote(log: &Arc<Log>, term: u64, vote: u64) {
    let commit = 0;
    log.set_hard_state(HardState { term, vote, commit });
}

/// Replica 5: what a follower is sent. Two memberships in two terms and two files; the second is not committed.
fn change_members(store: &Store) -> Arc<Log> {
    let log = store.create_replica(spec(5), config()).unwrap();
    let mut chain = chain_seed(spec(5).topic, spec(5).partition);
    let mut send = |kind, term, base_offset, payload: Bytes| {
        let is_data = kind == EntryKind::Data;
        let mut header = FrameHeader {
            kind,
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload[if is_data { 21 } else { 0 }..]),
            term,
            index: log.last_index() + 1,
            base_offset,
            record_count: u32::from(is_data),
            append_time_ms: 7_000,
            chain: 0,
        };
        header.chain = header.chain_after(chain);
        chain = header.chain;
        log.append_frame(&header, payload).unwrap();
    };
    let stored = batch(&["sent"], 1_007, None);
    let mut payload = stored.stamped_header(0, 3).to_vec();
    payload.extend_from_slice(&stored.body());
    vote(&log, 3, 2);
    send(EntryKind::Config, 3, 0, FIRST_MEMBERS.into());
    send(EntryKind::Data, 3, 0, payload.into());
    settle(store);
    log.commit_to(2);
    log.maybe_roll(i64::MAX).unwrap();
    vote(&log, 5, 0);
    send(EntryKind::Noop, 5, 1, Bytes::new());
    send(EntryKind::Config, 5, 1, NEXT_MEMBERS.into());
    log
}

/// Writes the directory; returns it as it was while the store ran, and after a clean stop.
pub(crate) fn write() -> (Tree, Tree) {
    let fault = FaultDisk::new(1);
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let opened = Store::open(disk, Path::new(DIR), options()).unwrap();
    let store = opened.store;
    let create = |n| store.create_replica(spec(n), config()).unwrap();

    // Replica 1: records. Its second file comes from a roll, its third from a cut.
    let data = create(1);
    vote(&data, 1, 1);
    data.append(1, EntryKind::Noop, Bytes::new(), 5_000)
        .unwrap();
    let two = batch(&["first", "second"], 1_001, None);
    data.append_batch(1, &two, 5_001).unwrap();
    settle(&store);
    // Enough for a direct sync, which the next cycle names; too much for what is left of the file.
    let large = produced(&"l".repeat(1_200), 1_003, 0);
    data.append_batch(1, &large, 5_003).unwrap();
    settle(&store);
    data.commit_to(3);

    // Replica 3 comes and goes; the table never hears of it.
    let gone = create(3);
    gone.append(1, EntryKind::Noop, Bytes::new(), 5_003)
        .unwrap();
    settle(&store);
    store.remove_replica(ReplicaId(3)).unwrap();
    drop(gone);
    settle(&store);

    store.checkpoint_now(false).unwrap();

    // Replica 2: a state log. Replica 4 has no entry, so no file.
    let state = create(2);
    let empty = create(4);
    vote(&state, 7, 9);
    for (kind, payload) in [
        (EntryKind::Config, &b"voters: 1 2 3"[..]),
        (EntryKind::Command, b"set a"),
        (EntryKind::Command, b""),
    ] {
        let payload = Bytes::copy_from_slice(payload);
        state.append(7, kind, payload, 6_000).unwrap();
    }
    state.append_log_start(7, 0, 5_999).unwrap();
    settle(&store);

    // A clock that goes back: the append time does not.
    data.append_batch(1, &produced("fourth", 1_004, 1), 5_004)
        .unwrap();
    data.append_batch(1, &produced("truncated", 1_005, 2), 4_000)
        .unwrap();
    settle(&store);
    // Another leader never had the last one.
    data.truncate_after(4).unwrap();
    vote(&data, 2, 1);
    data.append(2, EntryKind::Noop, Bytes::new(), 5_006)
        .unwrap();
    data.append_batch(2, &batch(&["afterwards"], 1_006, None), 5_007)
        .unwrap();
    settle(&store);
    let changing = change_members(&store);
    settle(&store);
    closing_mark(&store);
    let running = Tree::take(&fault, Path::new(DIR));

    data.commit_to(data.last_index());
    state.commit_to(state.last_index());
    changing.commit_to(changing.last_index());
    while let Some(seal) = store.begin_seal() {
        store.run_seal(seal).unwrap();
    }
    store.close().unwrap();
    drop((data, state, empty, changing));
    (running, Tree::take(&fault, Path::new(DIR)))
}

/// Two segments of replica 5, with members and a producer, come as a snapshot and take the place of a tail; an entry
/// follows behind them.
pub(crate) fn write_installed() -> Tree {
    let there: Arc<dyn Disk> = Arc::new(FaultDisk::new(2));
    let sender = Store::open(there, Path::new(DIR), options()).unwrap().store;
    let from = sender.create_replica(spec(5), config()).unwrap();
    vote(&from, 3, 0);
    let members = Bytes::from_static(FIRST_MEMBERS.as_bytes());
    from.append(3, EntryKind::Config, members, 7_000).unwrap();
    for sequence in 0..3 {
        let value = "s".repeat(600);
        from.append_batch(3, &produced(&value, 1_008, sequence), 7_001)
            .unwrap();
    }
    settle(&sender);
    from.commit_to(4);
    from.close_active(4).unwrap();
    settle(&sender);
    while let Some(seal) = sender.begin_seal() {
        sender.run_seal(seal).unwrap();
    }
    let snapshot = from.snapshot(4).unwrap().unwrap();
    assert_eq!(snapshot.manifest().segments.len(), 2);

    let fault = FaultDisk::new(1);
    let disk: Arc<dyn Disk> = Arc::new(fault.clone());
    let store = Store::open(disk, Path::new(DIR), options()).unwrap().store;
    let log = store.create_replica(spec(5), config()).unwrap();
    vote(&log, 1, 2);
    log.append(1, EntryKind::Command, "replaced".into(), 6_999)
        .unwrap();
    settle(&store);
    store.checkpoint_now(false).unwrap();
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    for missing in install.missing() {
        for range in missing.ranges {
            let len = (range.end - range.start) as usize;
            let bytes = snapshot.read(missing.segment, range.start, len).unwrap();
            let (segment, pos) = (missing.segment, range.start);
            install.write(segment, pos, &bytes).unwrap();
        }
    }
    install.finish().unwrap();
    log.install(install).unwrap();
    log.append(3, EntryKind::Noop, Bytes::new(), 7_002).unwrap();
    settle(&store);
    closing_mark(&store);
    Tree::take(&fault, Path::new(DIR))
}
