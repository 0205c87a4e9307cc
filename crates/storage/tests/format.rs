//! The on-disk format, pinned: a small data directory is written the same way each time and compared with the
//! committed one, byte for byte; the committed one is opened and must give back everything.
//!
//! Two moments are kept. `running`: after a kill, the journal holds what the table does not. `closed`: after a clean
//! stop, with sealed segments. Those of older versions are read alike. `UPDATE_FIXTURES=1` rewrites them, which is right only together with
//! `docs/storage-format.md` and a higher version of what changed.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "format/dump.rs"]
mod dump;
#[path = "format/history.rs"]
mod history;

use std::path::Path;
use std::sync::Arc;

use timberline_record::Batch;
use timberline_storage::disk::{Disk, FaultDisk, OpenMode, RealDisk};
use timberline_storage::{
    EntryKind, Error, Log, Opened, ReplicaId, SequenceCheck, Store, StoreOptions,
};

use dump::Tree;
use history::{CLOSED, CLOSED_V1, FIRST_MEMBERS, INSTALLED, NEXT_MEMBERS, RUNNING, RUNNING_V1};

const DIR: &str = "/data";

fn open(disk: &FaultDisk) -> Result<Opened, Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Store::open(disk, Path::new(DIR), StoreOptions::default())
}

/// A fault disk that holds the directory.
fn disk_with(tree: &Tree) -> FaultDisk {
    let disk = FaultDisk::new(1);
    tree.put(&disk, Path::new(DIR));
    disk
}

fn values(log: &Arc<Log>) -> Vec<String> {
    let mut cursor = log.cursor(log.log_start());
    let mut out = Vec::new();
    loop {
        let batches = log.read_blocking(&mut cursor, 1 << 20).unwrap();
        if batches.is_empty() {
            return out;
        }
        for bytes in batches {
            let records = Batch::parse(bytes).unwrap();
            for record in records.records(&Default::default()).unwrap() {
                let record = record.unwrap();
                assert_eq!(record.offset, out.len() as i64);
                let value = record.value.unwrap();
                out.push(String::from_utf8(value[..value.len().min(8)].to_vec()).unwrap());
            }
        }
    }
}

fn kinds(log: &Arc<Log>) -> Vec<(u64, u64, EntryKind, i64)> {
    let mut out = Vec::new();
    log.replay(1, |entry| {
        out.push((entry.index, entry.term, entry.kind, entry.base_offset));
        Ok(())
    })
    .unwrap();
    out
}

fn log(opened: &Opened, replica: u64) -> Arc<Log> {
    opened.store.log(ReplicaId(replica)).unwrap()
}

/// What both moments hold, once everything is committed.
fn check_contents(opened: &Opened) {
    assert_eq!(opened.report.damage, Vec::<String>::new());
    assert_eq!(opened.report.foreign, Vec::<String>::new());
    assert_eq!(
        opened.store.directory_id(),
        history::options().directory_id.unwrap()
    );
    let ids: Vec<u64> = opened.logs.iter().map(|l| l.spec().replica.0).collect();
    let has_members = ids == [1, 2, 4, 5];
    assert!(
        has_members || ids == [1, 2, 4],
        "replica 3 was removed: {ids:?}"
    );

    let data = log(opened, 1);
    assert_eq!(*data.spec(), history::spec(1));
    let hard = data.hard_state();
    assert_eq!((hard.term, hard.vote), (2, 1));
    data.commit_to(data.last_index());
    use EntryKind::{Command, Config, Data, LogStart, Noop};
    assert_eq!(
        kinds(&data),
        [
            (1, 1, Noop, 0),
            (2, 1, Data, 0),
            (3, 1, Data, 2),
            (4, 1, Data, 3),
            (5, 2, Noop, 4),
            (6, 2, Data, 4),
        ]
    );
    assert_eq!(
        values(&data),
        ["first", "second", "llllllll", "fourth", "afterwar"]
    );
    assert_eq!(data.offset_for_time(1_004).unwrap(), Some((3, 1_004)));
    let check = |sequence| data.check_producer(history::produced("x", 0, sequence).header());
    assert!(matches!(
        check(1),
        SequenceCheck::Duplicate {
            index: 4,
            base_offset: 3,
            append_time_ms: 5_004
        }
    ));
    // The truncated one is forgotten.
    assert_eq!(check(2), SequenceCheck::Accept);

    let state = log(opened, 2);
    assert_eq!((state.hard_state().term, state.hard_state().vote), (7, 9));
    state.commit_to(state.last_index());
    assert_eq!(
        kinds(&state),
        [
            (1, 7, Config, 0),
            (2, 7, Command, 0),
            (3, 7, Command, 0),
            (4, 7, LogStart, 0),
        ]
    );

    let empty = log(opened, 4);
    assert_eq!((empty.last_index(), empty.segments()), (0, 0));
    assert_eq!((empty.first_index(), empty.term_at(0)), (1, Some(0)));
    assert_eq!(empty.membership(), (0, Default::default()));
    if has_members {
        check_members(opened);
    }
}

fn terms(log: &Arc<Log>) -> Vec<Option<u64>> {
    (0..=log.last_index() + 1).map(|i| log.term_at(i)).collect()
}

/// What version 1 did not have.
fn check_members(opened: &Opened) {
    let known = |of: &[u64]| {
        of.iter()
            .copied()
            .map(Some)
            .chain([None])
            .collect::<Vec<_>>()
    };
    assert_eq!(terms(&log(opened, 1)), known(&[0, 1, 1, 1, 1, 2, 2]));
    let state = log(opened, 2);
    assert_eq!(state.membership(), (1, "voters: 1 2 3".into()));

    let changing = log(opened, 5);
    assert_eq!(terms(&changing), known(&[0, 3, 3, 5, 5]));
    assert_eq!(changing.first_index(), 1);
    assert_eq!(
        (changing.hard_state().term, changing.hard_state().vote),
        (5, 0)
    );
    assert_eq!(changing.last_membership(), (4, NEXT_MEMBERS.into()));
    if changing.commit_index() < 4 {
        let before = match changing.commit_index() {
            // The commit index is known when something else was written after it.
            0 => (0, Default::default()),
            _ => (1, FIRST_MEMBERS.into()),
        };
        assert_eq!(changing.membership(), before);
        changing.commit_to(4);
    }
    assert_eq!(changing.membership(), (4, NEXT_MEMBERS.into()));
    assert_eq!(changing.unproven(), None);
}

#[test]
fn the_bytes_are_those_of_the_fixtures() {
    let (running, closed) = history::write();
    running.compare(RUNNING);
    closed.compare(CLOSED);
    history::write_installed().compare(INSTALLED);
}

#[test]
fn an_install_is_replayed_and_what_it_replaced_is_dead() {
    let disk = disk_with(&Tree::load(INSTALLED));
    // Again when the table that recovery writes is lost: the row stays until both tables list its files.
    for _ in 0..2 {
        let opened = open(&disk).unwrap();
        assert_eq!(opened.report.damage, Vec::<String>::new());
        assert_eq!(opened.report.foreign, Vec::<String>::new());
        let log = log(&opened, 5);
        let (last, commit) = (log.last_index(), log.commit_index());
        assert_eq!((last, commit, log.segments()), (5, 4, 3));
        assert_eq!(
            terms(&log),
            [0, 3, 3, 3, 3, 3]
                .map(Some)
                .into_iter()
                .chain([None])
                .collect::<Vec<_>>()
        );
        let hard = log.hard_state();
        assert_eq!((hard.term, hard.vote, hard.commit), (3, 0, 4));
        assert_eq!(log.membership(), (1, FIRST_MEMBERS.into()));
        assert_eq!(values(&log).len(), 3);
        let check = log.check_producer(history::produced("x", 0, 2).header());
        assert!(matches!(check, SequenceCheck::Duplicate { index: 4, .. }));
        assert_eq!((log.unproven(), log.broken()), (None, None));
        drop((log, opened));
        let newer = Path::new(DIR).join("table.0");
        let file = disk.open(&newer, OpenMode::Existing);
        file.unwrap().write_at(0, &[&[0; 8]]).unwrap();
    }
}

#[test]
fn without_its_row_an_install_is_damage() {
    let mut tree = Tree::load(INSTALLED);
    assert_eq!(tree.remove_matching(history::INSTALL_ROW), 1);
    let opened = open(&disk_with(&tree)).unwrap();
    assert_eq!(opened.report.damage.len(), 1, "{:?}", opened.report);
    let log = log(&opened, 5);
    assert!(log.broken().is_some() && log.unproven().is_some());
    assert!(matches!(log.reserve(1), Err(Error::Poisoned { .. })));
}

#[test]
fn a_closed_directory_is_read() {
    for fixture in [CLOSED, CLOSED_V1] {
        let opened = open(&disk_with(&Tree::load(fixture))).unwrap();
        assert!(opened.report.clean);
        assert_eq!((opened.report.cycles, opened.report.bytes_walked), (0, 0));
        assert_eq!(opened.store.boot(), 2);
        check_contents(&opened);
    }
}

#[test]
fn a_killed_directory_is_recovered() {
    for fixture in [RUNNING, RUNNING_V1] {
        let opened = open(&disk_with(&Tree::load(fixture))).unwrap();
        assert!(!opened.report.clean);
        assert!(opened.report.frames > 0);
        check_contents(&opened);
    }
}

#[test]
fn the_journal_alone_restores_files_that_the_table_does_not_list() {
    for fixture in [RUNNING, RUNNING_V1] {
        let mut tree = Tree::load(fixture);
        for name in history::BORN_AFTER_TABLE {
            assert_eq!(tree.remove_matching(name), 1);
        }
        let opened = open(&disk_with(&tree)).unwrap();
        check_contents(&opened);
    }
}

#[test]
fn the_older_table_and_the_journal_make_the_same() {
    for fixture in [RUNNING, RUNNING_V1] {
        let mut tree = Tree::load(fixture);
        assert_eq!(tree.remove_matching(history::NEWER_TABLE), 1);
        tree.add(history::NEWER_TABLE, Vec::new());
        let opened = open(&disk_with(&tree)).unwrap();
        assert!(opened.report.table_lost);
        check_contents(&opened);
    }
}

#[test]
fn a_version_1_row_tells_the_terms_that_its_places_prove() {
    let opened = open(&disk_with(&Tree::load(CLOSED_V1))).unwrap();
    let data = log(&opened, 1);
    // The third file begins behind entry 4 of term 1, the last entry is 6 of term 2: where 2 began is not told.
    assert_eq!((data.first_index(), data.first_stored_index()), (7, 1));
    assert_eq!((data.term_at(5), data.term_at(6)), (None, Some(2)));
    let opened = open(&disk_with(&Tree::load(RUNNING_V1))).unwrap();
    let data = log(&opened, 1);
    // The table's last entry is 3; the walk went on from there.
    let known = [
        None,
        None,
        Some(1),
        Some(1),
        Some(1),
        Some(2),
        Some(2),
        None,
    ];
    assert_eq!(terms(&data), known);
}

#[test]
fn the_real_disk_reads_them_too() {
    for fixture in [RUNNING, CLOSED, RUNNING_V1, CLOSED_V1] {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::default();
        let root = dir.path().join("data");
        Tree::load(fixture).put(&disk, &root);
        let opened = Store::open(Arc::new(disk), &root, StoreOptions::default()).unwrap();
        check_contents(&opened);
        opened.store.close().unwrap();
    }
}

#[test]
fn a_rotten_version_in_one_table_slot_loses_nothing() {
    let disk = disk_with(&Tree::load(CLOSED));
    let file = disk
        .open(&Path::new(DIR).join("table.0"), OpenMode::Existing)
        .unwrap();
    file.write_at(8, &[&[99]]).unwrap();
    let opened = open(&disk).unwrap();
    assert!(opened.report.table_lost);
    check_contents(&opened);
}

#[test]
fn newer_versions_are_refused_and_left_alone() {
    // The version's low byte: of the identity, and of both checkpoint tables.
    for (files, known_here) in [(&["identity"][..], 1), (&["table.0", "table.1"][..], 2)] {
        let disk = disk_with(&Tree::load(CLOSED));
        for name in files {
            let path = Path::new(DIR).join(name);
            let file = disk.open(&path, OpenMode::Existing).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(0, &mut bytes).unwrap();
            bytes[8] = 99;
            // The version is under the checksum: a newer program writes a matching one.
            let body = if *name == "identity" {
                16..32
            } else {
                24..u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize
            };
            let mut crc = crc32fast::Hasher::new();
            crc.update(&bytes[8..12]);
            crc.update(&bytes[body]);
            bytes[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
            file.write_at(0, &[&bytes]).unwrap();
        }
        let before = Tree::take(&disk, Path::new(DIR));
        let refused = open(&disk);
        assert!(
            matches!(
                refused,
                Err(Error::NewerFormat { found: 99, known, .. }) if known == known_here
            ),
            "{refused:?}"
        );
        assert!(before == Tree::take(&disk, Path::new(DIR)));
    }
}
