//! What Raft relies on: frames of another replica, late syncs, commits ahead of this replica's syncs, memberships,
//! terms and hard states.

use std::path::PathBuf;

use super::*;
use crate::disk::RealDisk;
use crate::terms::TERM_RUNS_MAX;
use crate::{CONFIG_LEN_MAX, Cycle, Durability, FrameFault, FrameHeader, FramesOutcome};

fn created(disk: &FaultDisk) -> (Store, Arc<Log>) {
    let store = open(disk).store;
    let log = store.create_replica(spec(1), LogConfig::default()).unwrap();
    settle(&store);
    (store, log)
}

fn reopened(disk: &FaultDisk) -> (Store, Arc<Log>) {
    let opened = open(disk);
    (opened.store, opened.logs[0].clone())
}

fn commands(log: &Arc<Log>, term: u64, count: u64, len: usize) {
    for n in 0..count {
        let payload = Bytes::from(vec![n as u8; len]);
        log.append(term, EntryKind::Command, payload, 1).unwrap();
    }
}

fn config(log: &Arc<Log>, term: u64, payload: &'static str) {
    log.append(term, EntryKind::Config, payload.into(), 1)
        .unwrap();
}

fn vote(log: &Arc<Log>, term: u64, vote: u64) -> u64 {
    log.set_hard_state(HardState {
        term,
        vote,
        commit: 0,
    })
}

fn finish(store: &Store, cycle: Cycle) -> Vec<(ReplicaId, u64)> {
    store.run_cycle(&cycle).unwrap();
    store.finish_cycle(cycle)
}

/// Frames from an index to another, verified where needed.
fn frames(log: &Arc<Log>, from: u64, to: u64, max_bytes: usize) -> Vec<(FrameHeader, Bytes)> {
    let mut all = Vec::new();
    while from + (all.len() as u64) <= to {
        match log.frames(from + all.len() as u64, to, max_bytes).unwrap() {
            FramesOutcome::Frames(some) => all.extend(some),
            FramesOutcome::Cold(cold) => cold.run().unwrap(),
        }
    }
    all
}

#[test]
fn a_followers_log_is_the_leaders_byte_for_byte() {
    let (disk, other) = (FaultDisk::new(20), FaultDisk::new(21));
    let (leader_store, leader) = created(&disk);
    let (store, follower) = created(&other);
    let stamp = |base_sequence| {
        Some(ProducerStamp {
            id: 9,
            epoch: 1,
            base_sequence,
        })
    };
    leader.append(1, EntryKind::Noop, Bytes::new(), 1).unwrap();
    config(&leader, 1, "voters: 1 2");
    for n in 0..3 {
        let batch = batch(&["a", "b"], 100 + n, stamp(2 * n as i32));
        leader.append_batch(2, &batch, 10 - n).unwrap();
    }
    leader.append_log_start(2, 4, 11).unwrap();
    for piece in [1, 200, 1 << 20] {
        for (header, payload) in frames(&leader, follower.last_index() + 1, 2, piece) {
            follower.append_frame(&header, payload).unwrap();
        }
        for (header, payload) in frames(&leader, follower.last_index() + 1, 6, piece) {
            follower.append_frame(&header, payload).unwrap();
        }
    }
    for (store, log) in [(&leader_store, &leader), (&store, &follower)] {
        commit_all(store, log);
        assert_eq!((log.last_index(), log.log_start()), (6, 4));
        assert_eq!(log.membership(), (2, "voters: 1 2".into()));
        let terms: Vec<_> = (0..8).map(|i| log.term_at(i)).collect();
        let known = [0, 1, 1, 2, 2, 2, 2].map(Some);
        assert_eq!(terms, [&known[..], &[None]].concat());
        let repeated = batch(&["a", "b"], 0, stamp(2));
        let check = log.check_producer(repeated.header());
        assert!(matches!(check, SequenceCheck::Duplicate { index: 4, .. }));
        assert_eq!(log.offset_for_time(102).unwrap(), Some((4, 102)));
    }
    assert_eq!(leader.last_chain(), follower.last_chain());
    let bytes = |disk: &FaultDisk| {
        let files = disk.files().into_iter().map(|f| f.0);
        let segments: Vec<PathBuf> = files
            .filter(|p| p.extension().is_some_and(|e| e == "seg"))
            .collect();
        disk.raw(&segments[0]).unwrap()
    };
    assert!(bytes(&disk) == bytes(&other));
}

#[test]
fn frames_that_are_not_the_next_one_are_told_apart() {
    let disk = FaultDisk::new(22);
    let (_store, log) = created(&disk);
    let (_other_store, leader) = created(&FaultDisk::new(23));
    leader.append_batch(3, &batch(&["a"], 1, None), 5).unwrap();
    leader.append_batch(3, &batch(&["b"], 1, None), 5).unwrap();
    let sent = frames(&leader, 1, 2, 1 << 20);
    let (header, payload) = sent[0].clone();

    let refused = |header: &FrameHeader, payload: &Bytes| {
        let before = (log.last_index(), log.last_chain(), log.size_bytes());
        let error = log.append_frame(header, payload.clone()).unwrap_err();
        let after = (log.last_index(), log.last_chain(), log.size_bytes());
        assert_eq!(before, after);
        error
    };
    let fault = |header: &FrameHeader, payload: &Bytes| match refused(header, payload) {
        Error::InvalidFrame { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let next = refused(&sent[1].0, &sent[1].1);
    assert!(matches!(next, Error::Refused(_)), "a gap: {next}");
    let mut other = header;
    other.chain += 1;
    let expected = header.chain;
    assert!(matches!(
        refused(&other, &payload),
        Error::Diverged { index: 1, expected: e, .. } if e == expected
    ));
    let mut rotten = payload.to_vec();
    rotten[68] ^= 1;
    assert_eq!(fault(&header, &rotten.into()), FrameFault::Payload);
    let mut wrong_epoch = payload.to_vec();
    wrong_epoch[15] ^= 1;
    assert_eq!(fault(&header, &wrong_epoch.into()), FrameFault::BatchHeader);
    let mut counted = header;
    counted.record_count = 2;
    counted.chain = counted.chain_after(crate::chain_seed(TOPIC, 1));
    assert_eq!(fault(&counted, &payload), FrameFault::BatchHeader);
    assert_eq!(fault(&header, &payload.slice(..65)), FrameFault::Short);
    let mut none = header;
    none.record_count = 0;
    assert_eq!(fault(&none, &payload), FrameFault::Shape);

    log.append_frame(&header, payload).unwrap();
    let mut behind = sent[1].0;
    behind.kind = EntryKind::Noop;
    (behind.term, behind.payload_len, behind.record_count) = (2, 0, 0);
    behind.payload_crc = 0;
    assert!(matches!(refused(&behind, &Bytes::new()), Error::Refused(_)));
}

#[test]
fn a_large_membership_is_refused() {
    let disk = FaultDisk::new(24);
    let (_store, log) = created(&disk);
    let append = |len| log.append(1, EntryKind::Config, vec![1; len].into(), 1);
    let limit = CONFIG_LEN_MAX as u64;
    assert!(matches!(
        append(CONFIG_LEN_MAX + 1),
        Err(Error::TooLarge { limit: l, .. }) if l == limit
    ));
    append(CONFIG_LEN_MAX).unwrap();
    assert_eq!(log.last_membership().1.len(), CONFIG_LEN_MAX);
    assert_eq!(log.membership(), (0, Bytes::new()));
}

#[test]
fn a_late_cycle_of_what_was_cut_does_not_count_for_what_came_in_its_place() {
    let disk = FaultDisk::new(25);
    let (store, log) = created(&disk);
    commands(&log, 1, 6, 100);
    let cycle = store.begin_cycle(false).cycle.unwrap();
    log.truncate_after(3).unwrap();
    commands(&log, 2, 3, 100);
    finish(&store, cycle);
    assert_eq!(log.durability().index, 3);
    settle(&store);
    assert_eq!(log.durability().index, 6);
    let chain = log.last_chain();
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    assert_eq!((log.last_term(), log.last_chain()), (2, chain));
}

#[test]
fn a_late_direct_sync_of_what_was_cut_does_not_count_either() {
    // Cut while the sync runs, while the cycle that names it waits, and while that one is written.
    for moment in 0..3 {
        let disk = FaultDisk::new(26);
        let (store, log) = created(&disk);
        commands(&log, 1, 6, 30_000);
        let cut = |at| {
            if at == moment {
                log.truncate_after(3).unwrap();
                commands(&log, 2, 3, 100);
            }
        };
        let mut work = store.begin_cycle(false);
        let direct = work.direct.pop().unwrap();
        finish(&store, work.cycle.unwrap());
        cut(0);
        store.run_direct(&direct).unwrap();
        cut(1);
        store.finish_direct(direct);
        let cycle = store.begin_cycle(false).cycle.unwrap();
        cut(2);
        let durable = log.durable_index();
        assert_eq!(durable, 0, "no cycle names the sync yet");
        let has_new = moment < 2;
        finish(&store, cycle);
        // With the new entries in the naming cycle, they are durable by their own copy.
        let expected = if has_new { 6 } else { 3 };
        assert_eq!(log.durability().index, expected, "cut at moment {moment}");
        let (last, chain) = (log.durability().index, frames(&log, 1, expected, 1));
        drop((store, log));
        disk.power_loss();
        let (_store, log) = reopened(&disk);
        if has_new {
            assert_eq!((log.last_index(), log.last_term()), (6, 2));
        }
        let kept = frames(&log, 1, last, 1 << 20);
        let same = kept.iter().zip(&chain).all(|(a, b)| a.0 == b.0);
        assert!(same, "cut at moment {moment}");
    }
}

#[test]
fn a_commit_ahead_of_the_sync_is_lowered_to_what_is_found() {
    let disk = FaultDisk::new(27);
    let (store, log) = created(&disk);
    config(&log, 1, "first");
    commands(&log, 1, 2, 100);
    settle(&store);
    config(&log, 1, "second");
    commands(&log, 1, 2, 100);
    // Both followers have synced; this replica has not.
    log.commit_to(6);
    vote(&log, 2, 1);
    assert_eq!((log.commit_index(), log.durable_index()), (6, 3));
    assert_eq!(log.membership(), (4, "second".into()));
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    let hard = log.hard_state();
    assert_eq!(
        (log.last_index(), log.commit_index(), hard.commit),
        (3, 0, 0)
    );
    assert_eq!(log.last_membership(), (1, "first".into()));
}

#[test]
fn a_checkpoint_makes_what_it_says_is_committed_durable() {
    let disk = FaultDisk::new(28);
    let (store, log) = created(&disk);
    commands(&log, 1, 2, 100);
    config(&log, 1, "members");
    log.commit_to(3);
    store.checkpoint_now(false).unwrap();
    assert_eq!(log.durable_index(), 0, "no cycle has told of them");
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    assert_eq!((log.last_index(), log.commit_index()), (3, 3));
    assert_eq!(log.membership(), (3, "members".into()));
}

#[test]
fn a_file_that_was_sealed_before_its_entries_were_durable_ends_where_they_are_proven() {
    let disk = FaultDisk::new(29);
    let (store, log) = created(&disk);
    commands(&log, 1, 2, 100);
    settle(&store);
    commands(&log, 1, 4, 30_000);
    log.commit_to(6);
    log.maybe_roll(i64::MAX).unwrap();
    let mut work = store.begin_cycle(false);
    assert_eq!(work.direct.len(), 1, "the large ones are synced directly");
    finish(&store, work.cycle.take().unwrap());
    let seal = store.begin_seal().unwrap();
    store.run_seal(seal).unwrap();
    assert_eq!(log.durable_index(), 2);
    drop((work, store, log));
    disk.power_loss();
    for round in 0..3 {
        let (store, log) = reopened(&disk);
        assert_eq!(log.last_index(), 2 + round);
        commands(&log, 2 + round, 1, 100);
        commit_all(&store, &log);
        while let Some(seal) = store.begin_seal() {
            store.run_seal(seal).unwrap();
        }
        assert_eq!(frames(&log, 1, 3 + round, 1 << 20).len() as u64, 3 + round);
        drop((store, log));
        disk.power_loss();
    }
}

#[test]
fn versions_of_hard_states_count_up_and_are_told_when_durable() {
    let disk = FaultDisk::new(30);
    let (store, log) = created(&disk);
    assert_eq!(log.durability(), Durability::default());
    assert_eq!(vote(&log, 3, 1), 1);
    assert_eq!(vote(&log, 3, 1), 1, "nothing changed");
    let cycle = store.begin_cycle(false).cycle.unwrap();
    assert_eq!(vote(&log, 4, 0), 2);
    assert_eq!(log.durability().hard_version, 0);
    assert_eq!(finish(&store, cycle), [(ReplicaId(1), 0)]);
    assert_eq!(log.durability().hard_version, 1);
    assert!(!log.is_hard_state_durable());
    settle(&store);
    assert_eq!(log.durability().hard_version, 2);
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    assert_eq!((log.hard_state().term, log.hard_state().vote), (4, 0));
    assert_eq!(log.durability().hard_version, 0);
}

#[test]
fn a_committed_membership_is_known_after_a_restart() {
    let disk = FaultDisk::new(32);
    let (store, log) = created(&disk);
    commands(&log, 1, 2, 10);
    config(&log, 1, "members");
    settle(&store);
    log.commit_to(3);
    assert_eq!(log.durability().commit, 0);
    assert!(!log.is_hard_state_durable());
    settle(&store);
    assert_eq!(log.durability().commit, 3);
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    assert_eq!(log.membership(), (3, "members".into()));
    assert_eq!(log.durability().commit, 3);
}

#[test]
fn a_commit_index_is_kept_only_with_its_entry() {
    let disk = FaultDisk::new(33);
    let (store, log) = created(&disk);
    commands(&log, 1, 2, 10);
    settle(&store);
    config(&log, 1, "members");
    // Large: synced directly, and known as durable only with the cycle after that.
    commands(&log, 1, 4, 30_000);
    log.commit_to(7);
    let mut work = store.begin_cycle(false);
    assert_eq!(work.direct.len(), 1);
    finish(&store, work.cycle.take().unwrap());
    assert_eq!(log.durability().commit, 2);
}

#[test]
fn a_change_of_the_commit_index_alone_costs_no_cycle() {
    let disk = FaultDisk::new(31);
    let (store, log) = created(&disk);
    commands(&log, 1, 2, 10);
    settle(&store);
    let hard = HardState {
        commit: 2,
        ..log.hard_state()
    };
    assert_eq!(log.set_hard_state(hard), 0);
    assert!(store.begin_cycle(false).is_empty());
    assert_eq!(log.hard_state().commit, 2);
}

#[test]
fn too_many_terms_raise_the_first_index_over_committed_entries_alone() {
    let disk = FaultDisk::new(32);
    let (store, log) = created(&disk);
    let max = TERM_RUNS_MAX as u64;
    for term in 1..max {
        commands(&log, term, 1, 8);
    }
    let append = |term| log.append(term, EntryKind::Noop, Bytes::new(), 1);
    assert!(matches!(append(max), Err(Error::Refused(_))));
    log.commit_to(10);
    for term in max..max + 3 {
        append(term).unwrap();
    }
    assert_eq!((log.first_index(), log.first_stored_index()), (4, 1));
    assert_eq!((log.term_at(2), log.term_at(3)), (None, Some(3)));
    settle(&store);
    store.checkpoint_now(false).unwrap();
    drop((store, log));
    disk.power_loss();
    let (_store, log) = reopened(&disk);
    assert_eq!((log.first_index(), log.last_index()), (4, max + 2));
    assert_eq!(log.term_at(max + 2), Some(max + 2));
    assert!(matches!(
        log.frames(3, 5, 1),
        Err(Error::IndexOutOfRange { index: 3 })
    ));
}

#[test]
fn frames_follow_a_truncation_that_a_remembered_position_did_not_see() {
    let disk = FaultDisk::new(33);
    let (store, log) = created(&disk);
    commands(&log, 1, 8, 100);
    // The position of entry 6 is remembered now.
    assert_eq!(frames(&log, 1, 5, 1 << 20).len(), 5);
    log.truncate_after(3).unwrap();
    commands(&log, 2, 5, 64);
    log.commit_to(8);
    settle(&store);
    let terms: Vec<_> = frames(&log, 6, 8, 1).iter().map(|f| f.0.term).collect();
    assert_eq!(terms, [2, 2, 2]);
    assert_eq!(frames(&log, 1, 8, 1 << 20)[5].1.len(), 64);
}

#[test]
fn a_cut_file_is_not_sealed_while_somebody_reads_what_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let store = Store::open(disk, &dir.path().join("data"), options())
        .unwrap()
        .store;
    let log = store.create_replica(spec(1), LogConfig::default()).unwrap();
    commands(&log, 1, 10, 10_000);
    let held = frames(&log, 6, 10, 1 << 20);
    log.truncate_after(3).unwrap();
    commands(&log, 2, 2, 100);
    commit_all(&store, &log);
    let committed = frames(&log, 1, 5, 1 << 20);
    let seal = || store.run_seal(store.begin_seal().unwrap());
    let refused = seal();
    assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    for (n, (header, payload)) in held.iter().enumerate() {
        assert_eq!((header.term, header.index), (1, 6 + n as u64));
        assert!(payload.iter().all(|&byte| byte == 5 + n as u8));
    }
    drop(held);
    // Slices of what is still there hold nothing up.
    seal().unwrap();
    assert!(committed[2].1.iter().all(|&byte| byte == 2));
    assert_eq!(committed[3].0.term, 2);
}
