//! Snapshots from one store to another: what is offered, what is refused, and what is there afterwards.

use super::*;
use crate::{FIRST_FRAME, Install, Snapshot, SnapshotManifest, verify_directory};

/// Voters as of the first entry, and after the change in the middle.
const BEFORE: &str = "voters: 1 2";
const AFTER: &str = "voters: 1 2 3";

fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 8 << 10,
        ..LogConfig::default()
    }
}

fn created(disk: &FaultDisk) -> (Store, Arc<Log>) {
    let store = open(disk).store;
    let log = store.create_replica(spec(1), small()).unwrap();
    settle(&store);
    (store, log)
}

fn seal_all(store: &Store) {
    settle(store);
    while let Some(seal) = store.begin_seal() {
        store.run_seal(seal).unwrap();
    }
}

fn term(log: &Arc<Log>, term: u64) {
    let (vote, commit) = (1, 0);
    log.set_hard_state(HardState { term, vote, commit });
}

fn produce(log: &Arc<Log>, term: u64, sequences: std::ops::Range<i32>) {
    for base_sequence in sequences {
        let stamp = ProducerStamp {
            id: 7,
            epoch: 0,
            base_sequence,
        };
        let value = format!("{base_sequence}:{}", "v".repeat(900));
        let batch = batch(&[&value], i64::from(base_sequence), Some(stamp));
        log.append_batch(term, &batch, 1_000 + i64::from(base_sequence))
            .unwrap();
    }
}

/// A leader with several segments, two terms and a change of members in the middle; everything is committed.
fn leader(disk: &FaultDisk) -> (Store, Arc<Log>) {
    let (store, log) = created(disk);
    term(&log, 2);
    let config = |term, payload: &'static str| {
        log.append(term, EntryKind::Config, payload.into(), 1)
            .unwrap();
    };
    config(2, BEFORE);
    produce(&log, 2, 0..20);
    term(&log, 5);
    config(5, AFTER);
    produce(&log, 5, 20..30);
    settle(&store);
    log.commit_to(log.last_index());
    log.close_active(log.last_index()).unwrap();
    seal_all(&store);
    produce(&log, 5, 30..33);
    settle(&store);
    log.commit_to(log.last_index());
    (store, log)
}

fn newest(log: &Arc<Log>) -> Snapshot {
    let boundary = log.boundary().unwrap();
    log.snapshot(boundary.index).unwrap().unwrap()
}

/// Ships what is missing, in pieces, the last first.
fn ship(from: &Snapshot, to: &mut Install) {
    for missing in to.missing().into_iter().rev() {
        for range in missing.ranges {
            let mut pieces: Vec<u64> = range.clone().step_by(3_000).collect();
            pieces.reverse();
            for pos in pieces {
                let len = (range.end - pos).min(3_000) as usize;
                let bytes = from.read(missing.segment, pos, len).unwrap();
                assert_eq!(bytes.len(), len);
                to.write(missing.segment, pos, &bytes).unwrap();
            }
        }
    }
    assert_eq!((to.missing(), to.missing_bytes()), (vec![], 0));
    to.finish().unwrap();
}

fn all_bytes(snapshot: &Snapshot, segment: usize) -> Vec<u8> {
    let end = snapshot.manifest().segments[segment].end();
    snapshot
        .read(segment, FIRST_FRAME, (end - FIRST_FRAME) as usize)
        .unwrap()
}

fn check_installed(log: &Arc<Log>, from: &Arc<Log>, index: u64) {
    assert_eq!((log.last_index(), log.commit_index()), (index, index));
    assert_eq!(log.last_term(), from.term_at(index).unwrap());
    for at in 0..=index {
        assert_eq!(log.term_at(at), from.term_at(at), "entry {at}");
    }
    assert_eq!(log.membership().1, AFTER);
    assert_eq!(log.hard_state().commit, index);
    assert!(log.hard_state().term >= 5);
    assert_eq!((log.unproven(), log.quarantined()), (None, vec![]));
    let (theirs, ours) = (values(from, 0), values(log, 0));
    assert_eq!(ours, theirs[..ours.len()]);
    assert_eq!(ours.len() as i64, log.high_watermark());
    let repeated = ProducerStamp {
        id: 7,
        epoch: 0,
        base_sequence: ours.len() as i32 - 1,
    };
    let repeated = batch(&["again"], 0, Some(repeated));
    assert!(matches!(
        log.check_producer(repeated.header()),
        SequenceCheck::Duplicate { .. }
    ));
}

#[test]
fn a_snapshot_becomes_the_log_and_stays_it() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let snapshot = newest(&from);
    assert!(snapshot.manifest().segments.len() > 2);
    let (store, log) = created(&here);
    // A tail of another history.
    term(&log, 1);
    log.append(1, EntryKind::Command, "lost".into(), 1).unwrap();
    settle(&store);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    ship(&snapshot, &mut install);
    let index = snapshot.manifest().last().index;
    log.install(install).unwrap();
    check_installed(&log, &from, index);
    assert_eq!(
        log.durability().index,
        0,
        "nothing is promised before the sync"
    );
    settle(&store);
    assert_eq!(log.durability().index, index);
    // What follows goes on behind it, as the leader sent it.
    let next = match from.frames(index + 1, from.last_index(), 1 << 20).unwrap() {
        crate::FramesOutcome::Frames(frames) => frames,
        crate::FramesOutcome::Cold(_) => panic!("just written"),
    };
    for (header, payload) in next {
        log.append_frame(&header, payload).unwrap();
    }
    settle(&store);
    assert_eq!(log.last_chain(), from.last_chain());
    drop((store, log));

    for power_loss in [true, false] {
        if power_loss {
            here.power_loss();
        }
        let opened = open(&here);
        assert_eq!(opened.report.damage, Vec::<String>::new());
        let log = opened.logs[0].clone();
        assert_eq!(log.last_chain(), from.last_chain());
        log.commit_to(index);
        assert_eq!(values(&log, 0).len(), 30);
        opened.store.checkpoint_now(false).unwrap();
        opened.store.checkpoint_now(false).unwrap();
        opened.store.close().unwrap();
    }
    let left = here.files();
    assert!(
        !left
            .iter()
            .any(|(p, _)| p.extension().is_some_and(|e| e == "ins"))
    );
    let report = verify_directory(Arc::new(here.clone()), Path::new(DIR)).unwrap();
    assert_eq!((report.damage, report.notes), (vec![], vec![]));
}

#[test]
fn a_crash_before_the_record_leaves_the_log_as_it_was() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let snapshot = newest(&from);
    let (store, log) = created(&here);
    term(&log, 1);
    log.append(1, EntryKind::Command, "kept".into(), 1).unwrap();
    settle(&store);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    ship(&snapshot, &mut install);
    log.install(install).unwrap();
    drop((store, log));
    here.power_loss();
    let opened = open(&here);
    assert_eq!(opened.logs[0].last_index(), 1);
    assert!(opened.report.files_deleted > 2 && opened.report.foreign.is_empty());
    let segments = here.files().into_iter().map(|(path, _)| path);
    assert_eq!(segments.filter(|p| p.starts_with("/data/logs")).count(), 1);
}

#[test]
fn a_dropped_install_leaves_nothing_and_another_may_begin() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let snapshot = newest(&from);
    let (_store, log) = created(&here);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    let second = log.begin_install(snapshot.manifest().clone());
    assert!(matches!(second, Err(Error::Refused(_))));
    ship(&snapshot, &mut install);
    drop(install);
    let left = here.files();
    assert!(!left.iter().any(|(path, _)| path.starts_with("/data/logs")));
    log.begin_install(snapshot.manifest().clone()).unwrap();
}

#[test]
fn bytes_that_are_not_the_entries_are_refused_and_missing_again() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let snapshot = newest(&from);
    let last = snapshot.manifest().segments.len() - 1;
    let (_store, log) = created(&here);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    for segment in [0, last] {
        let whole = all_bytes(&snapshot, segment);
        let frames = (snapshot.manifest().segments[segment].frames_end - FIRST_FRAME) as usize;
        for at in (0..whole.len()).step_by(13) {
            let mut bad = whole.clone();
            bad[at] ^= 0x40;
            let outcome = install.write(segment, FIRST_FRAME, &bad);
            // Bytes of no meaning: padding. The footer of an inner segment is not needed.
            if outcome.is_ok() {
                let is_padding = at < frames && bad[at] == 0x40;
                assert!(is_padding || (segment != last && at >= frames), "byte {at}");
                install.discard_for_test(segment);
            }
            assert!(install.missing().iter().any(|m| m.segment == segment));
        }
    }
    ship(&snapshot, &mut install);
    log.install(install).unwrap();
}

#[test]
fn a_manifest_that_no_replica_writes_is_refused() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let good = newest(&from).manifest().clone();
    let (_store, log) = created(&here);
    let refused = |change: &dyn Fn(&mut SnapshotManifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        assert!(log.begin_install(manifest.clone()).is_err(), "{manifest:?}");
    };
    refused(&|m| m.segments.clear());
    refused(&|m| m.partition += 1);
    refused(&|m| m.segments[1] = m.segments[0]);
    refused(&|m| m.membership_index = 0);
    refused(&|m| m.membership_index = u64::MAX);
    refused(&|m| m.log_start = -1);
    refused(&|m| m.segments[0].frames_end = u64::MAX);
    refused(&|m| m.segments[0].footer_len = u64::MAX);
    refused(&|m| m.segments[0].first.index = u64::MAX);
    // Of a membership that its entries do not have, the last footer knows nothing.
    let mut other = good.clone();
    other.membership = "voters: 9".into();
    let snapshot = newest(&from);
    let mut install = log.begin_install(other).unwrap();
    let last = good.segments.len() - 1;
    let outcome = install.write(last, FIRST_FRAME, &all_bytes(&snapshot, last));
    assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
}

#[test]
fn a_snapshot_of_another_history_than_what_is_committed_here_is_refused() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (_sender, from) = leader(&there);
    let snapshot = newest(&from);
    let (store, log) = created(&here);
    term(&log, 1);
    log.append(1, EntryKind::Command, "other".into(), 1)
        .unwrap();
    settle(&store);
    log.commit_to(1);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    let outcome = install.write(0, FIRST_FRAME, &all_bytes(&snapshot, 0));
    assert!(matches!(outcome, Err(Error::Diverged { index: 1, .. })));
}

#[test]
fn staging_goes_on_with_another_sender() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (sender, from) = leader(&there);
    let first = newest(&from);
    let (_store, log) = created(&here);
    let mut install = log.begin_install(first.manifest().clone()).unwrap();
    // One whole segment, and half of the next.
    install
        .write(0, FIRST_FRAME, &all_bytes(&first, 0))
        .unwrap();
    let half = all_bytes(&first, 1);
    install
        .write(1, FIRST_FRAME, &half[..half.len() / 2])
        .unwrap();
    drop(first);
    log.close_active(log.last_index()).unwrap();
    produce(&from, 5, 33..50);
    settle(&sender);
    from.commit_to(from.last_index());
    from.close_active(from.last_index()).unwrap();
    seal_all(&sender);
    let second = newest(&from);
    install.resume(second.manifest().clone()).unwrap();
    let missing = install.missing();
    assert_eq!(missing[0].segment, 1);
    assert_eq!(
        missing[0].ranges[0].start,
        FIRST_FRAME + half.len() as u64 / 2
    );
    ship(&second, &mut install);
    log.install(install).unwrap();
    check_installed(&log, &from, second.manifest().last().index);
}

#[test]
fn a_held_snapshot_keeps_its_files_and_lets_them_go() {
    let disk = FaultDisk::new(1);
    let (store, log) = leader(&disk);
    let snapshot = newest(&log);
    let segments = log.segments();
    let forget = |upto: i64| {
        log.append_log_start(5, upto, 2_000).unwrap();
        settle(&store);
        log.commit_to(log.last_index());
        for _ in 0..3 {
            store.checkpoint_now(false).unwrap();
        }
    };
    forget(20);
    assert_eq!(log.segments(), segments);
    assert!(log.first_index() == 1 && !all_bytes(&snapshot, 0).is_empty());
    // Another one begins where the log now does.
    let later = newest(&log);
    assert!(later.manifest().first().index > 0);
    assert_eq!(later.manifest().log_start, 20);
    drop((snapshot, later));
    forget(21);
    assert!(log.segments() < segments && log.first_index() > 1);
}

#[test]
fn what_is_held_has_a_bound() {
    let disk = FaultDisk::new(1);
    let options = StoreOptions {
        pinned_bytes_max: 1,
        ..options()
    };
    let store = Store::open(Arc::new(disk), Path::new(DIR), options)
        .unwrap()
        .store;
    let log = store.create_replica(spec(1), small()).unwrap();
    term(&log, 5);
    log.append(5, EntryKind::Config, AFTER.into(), 1).unwrap();
    produce(&log, 5, 0..30);
    settle(&store);
    log.commit_to(log.last_index());
    log.close_active(1).unwrap();
    seal_all(&store);
    let held: Vec<_> = (0..crate::SNAPSHOTS_MAX).map(|_| newest(&log)).collect();
    let index = log.boundary().unwrap().index;
    assert!(matches!(log.snapshot(index), Err(Error::Refused(_))));
    log.append_log_start(5, 25, 2_000).unwrap();
    settle(&store);
    log.commit_to(log.last_index());
    for _ in 0..3 {
        store.checkpoint_now(false).unwrap();
    }
    assert!(log.first_index() > 1);
    let outcome = held[0].read(0, FIRST_FRAME, 10);
    assert!(
        matches!(outcome, Err(Error::Released { .. })),
        "{outcome:?}"
    );
    assert!(log.snapshot(index).unwrap().is_some());
}

#[test]
fn closing_makes_one_boundary_and_asking_again_none() {
    let disk = FaultDisk::new(1);
    let (store, log) = created(&disk);
    log.close_active(0).unwrap();
    assert_eq!((log.segments(), log.boundary()), (0, None));
    term(&log, 1);
    produce(&log, 1, 0..3);
    log.append(1, EntryKind::Config, AFTER.into(), 1).unwrap();
    for _ in 0..3 {
        log.close_active(4).unwrap();
    }
    assert_eq!(log.segments(), 2);
    seal_all(&store);
    assert_eq!(log.boundary(), None, "the last entry is not committed");
    log.commit_to(4);
    seal_all(&store);
    let boundary = log.boundary().unwrap();
    assert_eq!((boundary.index, boundary.term), (4, 1));
    assert_eq!(
        (boundary.membership_index, &boundary.membership[..]),
        (4, AFTER.as_bytes())
    );
    log.close_active(4).unwrap();
    assert_eq!(log.segments(), 2);
    assert!(matches!(log.close_active(5), Err(Error::Refused(_))));
    store.close().unwrap();
    drop((store, log));
    // Known again after a start, since nothing is behind it.
    let opened = open(&disk);
    assert_eq!(opened.logs[0].boundary(), Some(boundary));
    assert!(opened.logs[0].snapshot(4).unwrap().is_some());
}

#[test]
fn a_damaged_log_is_whole_again_and_known_damage_is_not_sent() {
    let (there, here) = (FaultDisk::new(1), FaultDisk::new(2));
    let (sender, from) = leader(&there);
    let snapshot = newest(&from);
    let (store, log) = created(&here);
    let mut install = log.begin_install(snapshot.manifest().clone()).unwrap();
    ship(&snapshot, &mut install);
    log.install(install).unwrap();
    settle(&store);
    store.checkpoint_now(false).unwrap();
    store.checkpoint_now(false).unwrap();
    drop((store, log));
    for (path, _) in here.files() {
        if path.extension().is_some_and(|e| e == "seg") {
            let file = here.open(&path, crate::disk::OpenMode::Existing).unwrap();
            file.write_at(FIRST_FRAME + 100, &[b"rot"]).unwrap();
        }
    }
    let opened = open(&here);
    let log = opened.logs[0].clone();
    let held = newest(&log);
    assert!(matches!(held.verify(0), Err(Error::Damaged { .. })));
    assert!(!log.quarantined().is_empty());
    let index = log.boundary().unwrap().index;
    assert!(log.snapshot(index).unwrap().is_none());
    drop(held);
    // Nothing new, so nothing to install: a longer one repairs.
    let again = log.begin_install(snapshot.manifest().clone());
    assert!(matches!(again, Err(Error::Refused(_))));
    produce(&from, 5, 33..40);
    settle(&sender);
    from.commit_to(from.last_index());
    from.close_active(from.last_index()).unwrap();
    seal_all(&sender);
    let longer = newest(&from);
    let mut install = log.begin_install(longer.manifest().clone()).unwrap();
    ship(&longer, &mut install);
    log.install(install).unwrap();
    check_installed(&log, &from, longer.manifest().last().index);
}
