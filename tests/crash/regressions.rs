//! What the simulator found, each as the smallest scenario that shows it, named after its cause.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use timberline_storage::disk::{Disk, FaultDisk};
use timberline_storage::{
    EntryKind, Error, FIRST_FRAME, HardState, JOURNAL_BYTES_MIN, Log, LogConfig, Opened, ReplicaId,
    ReplicaSpec, Store, StoreOptions, frame_len,
};
use uuid::Uuid;

use crate::rng::Rng;
use crate::sim::DIR;
use crate::workload;

/// A store and its log, driven by hand.
struct Bench {
    disk: FaultDisk,
    options: StoreOptions,
    store: Option<Store>,
    log: Option<Arc<Log>>,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let mut bench = Bench {
            disk: FaultDisk::new(seed),
            options: StoreOptions {
                journal_bytes: JOURNAL_BYTES_MIN,
                directory_id: Some(Uuid::from_u128(1)),
                ..StoreOptions::default()
            },
            store: None,
            log: None,
        };
        bench.open();
        bench.create(1);
        bench
    }

    fn try_open(&self) -> Result<Opened, Error> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        Store::open(disk, Path::new(DIR), self.options.clone())
    }

    /// Opens the store; no damage may be met.
    fn open(&mut self) {
        let opened = self.try_open().expect("the directory opens");
        assert_eq!(opened.report.damage, Vec::<String>::new());
        self.log = opened.logs.first().cloned();
        self.store = Some(opened.store);
    }

    fn create(&mut self, id: u64) -> Arc<Log> {
        let spec = ReplicaSpec {
            replica: ReplicaId(id),
            topic: Uuid::from_u128(u128::from(id)),
            partition: 0,
        };
        let config = LogConfig {
            segment_bytes: 16 << 10,
            ..LogConfig::default()
        };
        let log = self.store().create_replica(spec, config);
        let log = log.expect("a new id");
        self.log.get_or_insert_with(|| log.clone());
        log
    }

    fn store(&self) -> Store {
        self.store.clone().expect("the store is open")
    }

    fn log(&self) -> Arc<Log> {
        self.log.clone().expect("there is a log")
    }

    fn append(&self, term: u64, count: u64) {
        for n in 0..count {
            let payload = Bytes::from(vec![n as u8; 200]);
            let appended = self.log().append(term, EntryKind::Command, payload, 1);
            appended.expect("there is space");
        }
    }

    /// Batches of a few thousand bytes, so that files fill.
    fn append_data(&self, term: u64, count: u64) {
        let mut rng = Rng::new(count);
        for n in 0..count {
            let (batch, _) = workload::batch(&mut rng, &[0, 1, 0, 0], n as i64, None);
            let appended = self.log().append_batch(term, &batch, n as i64);
            appended.expect("there is space");
        }
    }

    fn settle(&self) {
        let store = self.store();
        loop {
            let work = store.begin_cycle(false);
            if work.is_empty() {
                return;
            }
            for direct in work.direct {
                store.run_direct(&direct).expect("the disk is whole");
                store.finish_direct(direct);
            }
            if let Some(cycle) = work.cycle {
                store.run_cycle(&cycle).expect("the disk is whole");
                store.finish_cycle(cycle);
            }
        }
    }

    fn seal_all(&self) {
        let store = self.store();
        while let Some(seal) = store.begin_seal() {
            store.run_seal(seal).expect("the disk is whole");
        }
    }

    fn checkpoint(&self) {
        let done = self.store().checkpoint_now(false);
        done.expect("the disk is whole");
    }

    fn stop(&mut self, kill: bool) {
        if kill {
            self.disk.kill();
        } else {
            self.disk.power_loss();
        }
        (self.store, self.log) = (None, None);
    }

    fn segments(&self) -> Vec<PathBuf> {
        let files = self.disk.files().into_iter().map(|(path, _)| path);
        files
            .filter(|p| p.extension().is_some_and(|e| e == "seg"))
            .collect()
    }
}

#[test]
fn entries_behind_the_tables_end_of_the_active_file_are_found() {
    let mut bench = Bench::new(1);
    bench.append(1, 3);
    bench.settle();
    bench.checkpoint();
    bench.append(1, 3);
    bench.settle();
    bench.stop(false);
    bench.open();
    assert_eq!(bench.log().last_index(), 6);
}

#[test]
fn a_checkpoint_does_not_count_a_file_whose_sync_failed_elsewhere() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        bench.append(1, 20);
        bench.settle();
        let store = bench.store();
        let mut checkpoint = store.begin_checkpoint().expect("none is under way");
        let syncs = checkpoint.take_syncs();
        bench
            .log()
            .append(1, EntryKind::Command, vec![7; 70_000].into(), 1)
            .expect("space");
        let work = store.begin_cycle(false);
        bench.disk.fail_next_sync(".seg");
        for direct in &work.direct {
            assert!(store.run_direct(direct).is_err());
        }
        // The pages are clean now: a second sync of the file would succeed.
        for sync in &syncs {
            let _ = store.run_checkpoint_sync(sync);
        }
        assert!(store.finish_checkpoint(checkpoint).is_err());
        bench.stop(true);
        bench.open();
        assert!(bench.log().last_index() >= 20, "seed {seed}");
    }
}

#[test]
fn a_vote_becomes_durable_although_the_commit_moved_during_its_cycle() {
    let bench = Bench::new(2);
    bench.append(1, 3);
    bench.settle();
    let (store, log) = (bench.store(), bench.log());
    log.set_hard_state(HardState {
        term: 5,
        vote: 2,
        commit: 0,
    });
    let cycle = store.begin_cycle(false).cycle.expect("a vote waits");
    log.commit_to(2);
    store.run_cycle(&cycle).expect("the disk is whole");
    store.finish_cycle(cycle);
    assert!(log.is_hard_state_durable());
}

#[test]
fn what_only_the_cache_showed_is_durable_after_recovery() {
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        bench.append(1, 3);
        bench.settle();
        // The file, its directory and the data directory itself: known to the cache alone.
        bench.stop(true);
        bench.open();
        bench.append(2, 2);
        bench.settle();
        bench.stop(false);
        bench.open();
        assert_eq!(bench.log().last_index(), 5, "seed {seed}");
    }
}

#[test]
fn a_directory_whose_making_was_cut_anywhere_is_whole_afterwards() {
    for (ops, seed) in (0..60).flat_map(|ops| (0..12).map(move |seed| (ops, seed))) {
        let disk = FaultDisk::new(1 + ops * 12 + seed);
        disk.crash_after(ops);
        let mut bench = Bench {
            disk,
            options: StoreOptions {
                journal_bytes: JOURNAL_BYTES_MIN,
                ..StoreOptions::default()
            },
            store: None,
            log: None,
        };
        let _ = bench.try_open();
        bench.stop(true);
        bench.open();
        bench.create(1);
        bench.append(1, 1);
        bench.settle();
        bench.stop(false);
        bench.open();
        let last = bench.log.as_ref().map(|log| log.last_index());
        assert_eq!(last, Some(1), "cut after {ops}, seed {seed}");
    }
}

#[test]
fn a_footer_does_not_overwrite_cut_entries_before_the_cut_is_durable() {
    let mut bench = Bench::new(3);
    bench.append(1, 10);
    bench.settle();
    let log = bench.log();
    log.commit_to(5);
    bench.checkpoint();
    log.truncate_after(5).expect("not committed");
    bench.append(2, 1);
    bench.seal_all();
    bench.stop(true);
    bench.open();
    assert_eq!((bench.log().last_index(), bench.log().last_term()), (10, 1));
}

#[test]
fn a_table_without_space_is_put_off_and_nothing_is_poisoned() {
    let mut bench = Bench::new(4);
    for id in 2..400 {
        bench.create(id);
    }
    bench.settle();
    let dir = Path::new(DIR);
    let total = bench.disk.total_bytes(dir).expect("the directory is there");
    let free = bench.disk.free_bytes(dir).expect("the directory is there");
    bench.disk.set_capacity(Some(total - free));
    let outcome = bench.store().checkpoint_now(false);
    assert!(
        matches!(outcome, Err(Error::StorageFull { .. })),
        "{outcome:?}"
    );
    assert_eq!(bench.store().poisoned(), None);
    bench.disk.set_capacity(None);
    bench.checkpoint();
    bench.stop(false);
    let opened = bench.try_open().expect("the directory opens");
    assert_eq!(opened.logs.len(), 399);
}

#[test]
fn a_started_file_without_entries_does_not_end_retention_for_ever() {
    let mut bench = Bench::new(5);
    bench.append_data(1, 3);
    bench.settle();
    bench.log().commit_to(3);
    bench.log().maybe_roll(i64::MAX).expect("there is space");
    bench.settle();
    bench.seal_all();
    bench.checkpoint();
    let rolled_at = bench.log().end_offset();
    bench.stop(false);
    bench.open();
    bench.log().set_config(LogConfig {
        segment_bytes: 16 << 10,
        retention_bytes: Some(1),
        ..LogConfig::default()
    });
    bench.append_data(2, 40);
    bench.settle();
    bench.log().commit_to(43);
    bench.settle();
    bench.seal_all();
    let target = bench.log().retention_target(1);
    assert!(target > Some(rolled_at), "{target:?} beyond {rolled_at}");
}

#[test]
fn a_lost_newer_table_takes_no_file_with_it() {
    for slot in 0..2 {
        let mut bench = Bench::new(6);
        bench.append_data(1, 40);
        bench.settle();
        bench.log().commit_to(10);
        bench.seal_all();
        bench.checkpoint();
        bench.log().commit_to(40);
        let target = bench.log().high_watermark();
        let trimmed = bench.log().append_log_start(1, target, 100);
        trimmed.expect("there is space");
        bench.settle();
        bench.log().commit_to(41);
        let before = bench.log().segments();
        bench.checkpoint();
        assert!(bench.log().segments() < before);
        bench.stop(true);
        let table = format!("{DIR}/table.{slot}");
        let rotten = bench.disk.rot(Path::new(&table), 0, 1);
        rotten.expect("there is a table");
        bench.open();
        assert_eq!(bench.log().last_index(), 41);
    }
}

#[test]
fn journaled_frames_of_a_missing_file_break_the_log_rather_than_vanish() {
    let mut bench = Bench::new(7);
    bench.append(1, 3);
    bench.settle();
    bench.checkpoint();
    bench.append(1, 3);
    bench.settle();
    bench.stop(false);
    for path in bench.segments() {
        bench.disk.delete_outside(&path).expect("it is there");
    }
    let opened = bench.try_open().expect("the directory opens");
    assert!(!opened.report.damage.is_empty());
    assert!(opened.logs[0].broken().is_some());
}

#[test]
fn an_unreadable_sector_of_the_journal_hides_no_later_cycle() {
    let mut bench = Bench::new(8);
    bench.checkpoint();
    let journal = PathBuf::from(format!("{DIR}/journal"));
    let before = bench.store().stats().journal_position;
    for _ in 0..3 {
        bench.append(1, 1);
        bench.settle();
    }
    bench.stop(false);
    let sector = before % JOURNAL_BYTES_MIN / 512;
    bench
        .disk
        .bad_sector(&journal, sector)
        .expect("it is there");
    let opened = bench.try_open().expect("the directory opens");
    assert!(opened.store.poisoned().is_some(), "{:?}", opened.report);
}

#[test]
fn damage_does_not_lead_to_a_tail_that_was_cut_off() {
    let mut bench = Bench::new(9);
    bench.append(1, 10);
    bench.settle();
    bench.log().commit_to(3);
    bench.checkpoint();
    bench.log().truncate_after(8).expect("not committed");
    bench.append(2, 2);
    bench.settle();
    let chain = bench.log().last_chain();
    bench.stop(false);
    let frame = frame_len(200);
    let fourth = FIRST_FRAME + 3 * frame;
    let file = bench.segments().remove(0);
    let cut = bench.disk.truncate_outside(&file, fourth + 10);
    cut.expect("it is there");
    let opened = bench.try_open().expect("the directory opens");
    let log = &opened.logs[0];
    assert!(log.broken().is_some() || log.last_chain() == chain);
    assert_eq!((log.last_index(), log.last_term()), (10, 2));
}

#[test]
fn a_missing_files_damage_ends_where_the_next_file_begins() {
    let mut bench = Bench::new(10);
    bench.append_data(1, 2);
    bench.settle();
    bench.checkpoint();
    let file = bench.segments().remove(0);
    bench.append_data(1, 30);
    bench.settle();
    bench.log().commit_to(32);
    bench.settle();
    let next = bench.segments();
    assert!(next.len() > 1, "the log went on in another file");
    bench.stop(true);
    bench.disk.delete_outside(&file).expect("it is there");
    let opened = bench.try_open().expect("the directory opens");
    let log = &opened.logs[0];
    assert_eq!(log.last_index(), 32);
    log.commit_to(32);
    let Err(Error::Damaged { to, .. }) = log.read_blocking(&mut log.cursor(0), 1) else {
        panic!("the missing file was read");
    };
    let after = log.read_blocking(&mut log.cursor(to), 1);
    let first = after.expect("what lies behind is served").remove(0);
    let batch = timberline_record::Batch::parse(first).expect("a batch");
    assert_eq!(batch.header().base_offset, to);
}

#[test]
fn a_missing_file_that_was_empty_at_the_table_breaks_the_log() {
    let mut bench = Bench::new(11);
    bench.append(1, 3);
    bench.settle();
    bench.log().commit_to(3);
    bench.log().maybe_roll(i64::MAX).expect("there is space");
    bench.settle();
    bench.checkpoint();
    bench.append(1, 3);
    bench.settle();
    bench.stop(true);
    let file = bench.segments().remove(1);
    bench.disk.delete_outside(&file).expect("it is there");
    let opened = bench.try_open().expect("the directory opens");
    assert!(opened.logs[0].broken().is_some());
}

#[test]
fn a_broken_log_stays_broken_over_restarts() {
    let mut bench = Bench::new(12);
    bench.append(1, 3);
    bench.settle();
    bench.checkpoint();
    bench.append(1, 3);
    bench.settle();
    bench.stop(false);
    let file = bench.segments().remove(0);
    bench.disk.delete_outside(&file).expect("it is there");
    for _ in 0..3 {
        let opened = bench.try_open().expect("the directory opens");
        assert!(opened.logs[0].broken().is_some());
        let refused = opened.logs[0].reserve(100);
        assert!(matches!(refused, Err(Error::Poisoned { .. })));
        bench.disk.power_loss();
    }
}

#[test]
fn a_missing_active_file_is_not_gone_on_in() {
    let mut bench = Bench::new(13);
    bench.append(1, 3);
    bench.settle();
    bench.log().commit_to(3);
    bench.log().maybe_roll(i64::MAX).expect("there is space");
    bench.store().close().expect("the disk is whole");
    bench.stop(true);
    let file = bench.segments().remove(1);
    bench.disk.delete_outside(&file).expect("it is there");
    let opened = bench.try_open().expect("the directory opens");
    (bench.store, bench.log) = (Some(opened.store), opened.logs.first().cloned());
    bench.append(1, 1);
    bench.settle();
    assert_eq!(bench.log().durable_index(), 4);
}

#[test]
fn a_lost_membership_is_told_of_until_somebody_repairs_it() {
    let mut bench = Bench::new(14);
    let config = |payload: &'static str| {
        let appended = bench.log().append(1, EntryKind::Config, payload.into(), 1);
        appended.expect("there is space");
    };
    config("known");
    bench.append(1, 2);
    bench.log().commit_to(3);
    config("lost");
    bench.append(1, 2);
    bench.settle();
    bench.checkpoint();
    bench.stop(false);
    // In the fourth frame's payload: its header still tells what it was.
    let at = FIRST_FRAME + frame_len(5) + 2 * frame_len(200) + 64;
    let file = bench.segments().remove(0);
    let rotten = bench.disk.overwrite_outside(&file, at, b"x");
    rotten.expect("it is there");
    for _ in 0..2 {
        let opened = bench.try_open().expect("the directory opens");
        let log = &opened.logs[0];
        assert!(log.unproven().is_some() && log.broken().is_none());
        assert_eq!(log.membership(), (1, "known".into()));
        let terms: Vec<_> = (0..=7).map(|index| log.term_at(index)).collect();
        assert_eq!(terms[1..7], [Some(1); 6]);
        bench.disk.power_loss();
    }
}

#[test]
fn a_hole_behind_the_table_takes_the_terms_before_it() {
    let mut bench = Bench::new(15);
    bench.log().set_config(LogConfig::default());
    bench.append(1, 3);
    bench.settle();
    bench.log().commit_to(3);
    bench.checkpoint();
    // Behind the table: directly synced, so that the journal has no copy.
    for term in 2..6 {
        let payload = Bytes::from(vec![term as u8; 90_000]);
        let appended = bench.log().append(term, EntryKind::Command, payload, 1);
        appended.expect("there is space");
    }
    bench.settle();
    bench.stop(false);
    let file = bench.segments().remove(0);
    // The headers of the fourth and the fifth frame.
    let fourth = FIRST_FRAME + 3 * frame_len(200);
    for at in [fourth, fourth + frame_len(90_000)] {
        let rotten = bench.disk.overwrite_outside(&file, at, b"x");
        rotten.expect("it is there");
    }
    let opened = bench.try_open().expect("the directory opens");
    let log = &opened.logs[0];
    assert!(log.unproven().is_some(), "{:?}", opened.report);
    assert_eq!((log.last_index(), log.last_term()), (7, 5));
    let first = log.first_index();
    assert!(first > 4, "terms of 4 and 5 are not known");
    let known: Vec<_> = (first - 1..=7).filter_map(|i| log.term_at(i)).collect();
    let right: Vec<_> = (first - 1..=7).map(|i| i - 2).collect();
    assert_eq!(known, right);
}

/// An install was dropped and its file removed; that was not durable, so a power loss brought the file back. Its id was that
/// of a new file of another replica by then.
#[test]
fn a_removed_file_comes_back_under_the_id_of_another() {
    let outcome = crate::sim::run(1382, &crate::sim::Settings::default());
    assert_eq!(outcome.failure, None);
}
