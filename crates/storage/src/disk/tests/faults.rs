//! Each fault of the fault disk, and that a seed is a history.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::fault::{Fault, is_crashed};
use super::super::{Disk, DiskFile, FaultDisk, OpenMode, SECTOR};

/// Seeds tried where one outcome must never be seen and others must all be seen.
const SEEDS: u64 = 200;

fn open(disk: &FaultDisk, path: &str) -> Arc<dyn DiskFile> {
    disk.open(Path::new(path), OpenMode::CreateOrOpen).unwrap()
}

/// A disk with an empty, durable file `/f`.
fn with_file(seed: u64) -> (FaultDisk, Arc<dyn DiskFile>) {
    let disk = FaultDisk::new(seed);
    let file = open(&disk, "/f");
    disk.sync_dir(Path::new("/")).unwrap();
    (disk, file)
}

fn cache(disk: &FaultDisk, path: &str) -> Vec<u8> {
    disk.raw(Path::new(path)).unwrap()
}

fn device(file: &dyn DiskFile) -> Vec<u8> {
    let mut buf = vec![0; file.len().unwrap() as usize];
    file.read_device_at(0, &mut buf).unwrap();
    buf
}

/// `n` sectors of the byte.
fn sectors(n: usize, byte: u8) -> Vec<u8> {
    vec![byte; n * SECTOR]
}

/// The byte that each sector is filled with; panics if one is mixed.
fn fills(bytes: &[u8]) -> Vec<u8> {
    let fill = |sector: &[u8]| {
        assert!(sector.iter().all(|b| *b == sector[0]), "a torn sector");
        sector[0]
    };
    bytes.chunks(SECTOR).map(fill).collect()
}

#[test]
fn power_loss_keeps_what_was_synced_and_mixes_the_rest() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(4, 1)]).unwrap();
        file.sync().unwrap();
        file.write_at(2 * SECTOR as u64, &[&sectors(2, 2)]).unwrap();
        disk.power_loss();
        let fills = fills(&cache(&disk, "/f"));
        assert_eq!(fills[..2], [1, 1], "synced");
        seen.insert(fills[2..].to_vec());
        assert!(is_crashed(&file.read_at(0, &mut [0; 4]).unwrap_err()));
    }
    assert_eq!(
        seen.len(),
        4,
        "each unsynced sector is old or new: {seen:?}"
    );
}

#[test]
fn what_power_loss_keeps_is_durable() {
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(9, 1)]).unwrap();
        disk.power_loss();
        let first = (disk.files(), disk.raw(Path::new("/f")).unwrap());
        disk.power_loss();
        assert_eq!(first, (disk.files(), disk.raw(Path::new("/f")).unwrap()));
    }
}

#[test]
fn kill_keeps_the_cache_until_power_fails() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(3, 7)]).unwrap();
        open(&disk, "/new");
        let lock = disk.lock(Path::new("/lock")).unwrap();
        disk.kill();
        assert_eq!(fills(&cache(&disk, "/f")), [7, 7, 7]);
        assert!(is_crashed(&file.sync().unwrap_err()), "the handle is dead");
        let again = disk.lock(Path::new("/lock")).unwrap();
        drop(lock);
        let taken = disk.lock(Path::new("/lock")).unwrap_err();
        assert_eq!(
            taken.kind(),
            ErrorKind::WouldBlock,
            "a dead lock frees nothing"
        );
        drop(again);
        disk.power_loss();
        let kept = fills(&cache(&disk, "/f")) == [7, 7, 7] && disk.files().len() == 3;
        lost += u64::from(!kept);
    }
    assert!(0 < lost && lost < SEEDS, "{lost}");
}

#[test]
fn an_unsynced_length_is_old_or_new_and_a_synced_one_stays() {
    let mut lens = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(2, 1)]).unwrap();
        file.sync().unwrap();
        file.reserve(0, 10 * SECTOR as u64).unwrap();
        disk.power_loss();
        let bytes = cache(&disk, "/f");
        assert_eq!(fills(&bytes)[..2], [1, 1]);
        assert!(bytes[2 * SECTOR..].iter().all(|b| *b == 0));
        lens.insert(bytes.len() / SECTOR);
    }
    assert_eq!(lens, BTreeSet::from([2, 10]));
}

#[test]
fn an_unsynced_truncation_is_undone_as_a_whole_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(6, 1)]).unwrap();
        file.sync().unwrap();
        file.set_len(2 * SECTOR as u64).unwrap();
        file.set_len(5 * SECTOR as u64).unwrap();
        assert_eq!(fills(&device(&*file)), [1, 1, 0, 0, 0]);
        disk.power_loss();
        seen.insert(fills(&cache(&disk, "/f")));
    }
    let expected = [vec![1; 6], vec![1; 2], vec![1, 1, 0, 0, 0]];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn a_failed_sync_leaves_clean_pages_that_the_device_lacks() {
    let (disk, file) = with_file(3);
    file.write_at(0, &[&sectors(20, 1)]).unwrap();
    file.sync().unwrap();
    file.write_at(0, &[&sectors(20, 2)]).unwrap();
    disk.fail_next_sync("/f");
    assert!(file.sync().is_err());
    file.sync().expect("a second sync claims success");
    assert_eq!(fills(&cache(&disk, "/f")), [2; 20]);
    let held = device(&*file);
    assert!(
        held.contains(&1) && held.contains(&2),
        "some reached the device"
    );
    disk.kill();
    assert_eq!(
        fills(&cache(&disk, "/f")),
        [2; 20],
        "the next process is deceived too"
    );
    let survivor = disk.fork(1);
    survivor.power_loss();
    assert_eq!(cache(&survivor, "/f"), held);
    disk.evict_clean();
    assert_eq!(cache(&disk, "/f"), held);
    assert_eq!(disk.stats().failed_syncs, 1);
}

#[test]
fn a_lying_sync_succeeds_and_loses() {
    let (disk, file) = with_file(4);
    file.write_at(0, &[&sectors(1, 5)]).unwrap();
    disk.lose_next_sync("/f");
    file.sync().unwrap();
    assert_eq!(fills(&cache(&disk, "/f")), [5]);
    assert_eq!(fills(&device(&*file)), [0]);
    disk.power_loss();
    assert_eq!(
        fills(&cache(&disk, "/f")),
        [0],
        "the length survives, the bytes do not"
    );
}

#[test]
fn entries_need_their_directory_synced() {
    let root = Path::new("/");
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = FaultDisk::new(seed);
        let kept = open(&disk, "/kept");
        open(&disk, "/removed");
        disk.sync_dir(root).unwrap();
        kept.write_at(0, &[b"x"]).unwrap();
        kept.sync().unwrap();
        open(&disk, "/created").sync().unwrap();
        disk.remove_file(Path::new("/removed")).unwrap();
        disk.power_loss();
        let names: Vec<String> = disk
            .list(root)
            .unwrap()
            .into_iter()
            .map(|e| e.name)
            .collect();
        assert!(names.contains(&"kept".to_owned()));
        seen.insert(names);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_rename_is_done_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = FaultDisk::new(seed);
        for (name, byte) in [("/old", 1), ("/new", 2), ("/gone", 3)] {
            let file = open(&disk, name);
            file.write_at(0, &[&[byte]]).unwrap();
            file.sync().unwrap();
        }
        disk.sync_dir(Path::new("/")).unwrap();
        disk.rename(Path::new("/new"), Path::new("/old")).unwrap();
        disk.rename(Path::new("/gone"), Path::new("/quarantined"))
            .unwrap();
        disk.power_loss();
        let state: Vec<_> = disk
            .files()
            .into_iter()
            .map(|(path, _)| (path.clone(), disk.raw(&path).unwrap()[0]))
            .collect();
        seen.insert(state);
    }
    let state = |pairs: &[(&str, u8)]| -> Vec<(PathBuf, u8)> {
        pairs
            .iter()
            .map(|(name, byte)| (name.into(), *byte))
            .collect()
    };
    let expected = [
        state(&[("/gone", 3), ("/new", 2), ("/old", 1)]),
        state(&[("/new", 2), ("/old", 1), ("/quarantined", 3)]),
        state(&[("/gone", 3), ("/old", 2)]),
        state(&[("/old", 2), ("/quarantined", 3)]),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn a_lost_directory_takes_its_files_along() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = FaultDisk::new(seed);
        disk.create_dir(Path::new("/d")).unwrap();
        open(&disk, "/d/f").sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.power_loss();
        lost += u64::from(disk.files().is_empty());
        disk.create_dir(Path::new("/d")).unwrap();
    }
    assert!(0 < lost && lost < SEEDS, "{lost}");
}

#[test]
fn a_crash_stops_a_write_in_the_middle() {
    let (disk, file) = with_file(5);
    disk.crash_after(3);
    let error = file.write_at(0, &[&sectors(8, 9)]).unwrap_err();
    assert!(is_crashed(&error) && error.kind() == ErrorKind::Other);
    assert!(disk.crashed());
    for result in [
        file.sync(),
        file.len().map(drop),
        file.map(1).map(drop),
        file.read_at(0, &mut [0; 1]).map(drop),
        disk.list(Path::new("/")).map(drop),
        disk.lock(Path::new("/lock")).map(drop),
        disk.free_bytes(Path::new("/")).map(drop),
        disk.open(Path::new("/f"), OpenMode::Existing).map(drop),
    ] {
        assert!(is_crashed(&result.unwrap_err()));
    }
    disk.kill();
    assert_eq!(fills(&cache(&disk, "/f")), [9; 3]);
    assert_eq!(disk.stats().crashes, 1);
}

#[test]
fn a_crash_in_a_sync_keeps_a_subset() {
    let mut held = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(2, 1)]).unwrap();
        file.sync().unwrap();
        file.write_at(0, &[&sectors(2, 2)]).unwrap();
        disk.crash_after(1);
        assert!(is_crashed(&file.sync().unwrap_err()));
        assert_eq!(disk.stats().crashes_in_sync, 1);
        disk.power_loss();
        held.insert(fills(&cache(&disk, "/f")));
    }
    assert_eq!(held.len(), 4, "{held:?}");
}

#[test]
fn a_crash_at_the_end_of_a_sync_keeps_all_of_it() {
    for seed in 0..SEEDS {
        let (disk, file) = with_file(seed);
        file.write_at(0, &[&sectors(5, 1)]).unwrap();
        disk.crash_after(2);
        assert!(file.sync().is_err());
        disk.power_loss();
        assert_eq!(fills(&cache(&disk, "/f")), [1; 5]);
    }
}

#[test]
fn writeback_makes_sectors_durable_without_a_sync() {
    let (disk, file) = with_file(6);
    file.reserve(0, 50 * SECTOR as u64).unwrap();
    file.sync().unwrap();
    file.write_at(0, &[&sectors(50, 1)]).unwrap();
    disk.writeback(10);
    disk.writeback(1000);
    let hash = disk.state_hash();
    disk.writeback(5);
    assert_ne!(
        hash,
        disk.state_hash(),
        "the draw counts even if nothing is dirty"
    );
    disk.power_loss();
    assert_eq!(fills(&cache(&disk, "/f")), [1; 50]);
    assert_eq!(disk.stats().sectors_lost, 0);
}

#[test]
fn bad_sectors_fail_the_reads_that_meet_them() {
    let (disk, file) = with_file(7);
    file.write_at(0, &[&sectors(4, 1)]).unwrap();
    disk.bad_sector(Path::new("/f"), 2).unwrap();
    let mut buf = [0; SECTOR];
    file.read_at(SECTOR as u64, &mut buf).unwrap();
    for pos in [2 * SECTOR as u64 - 511, 3 * SECTOR as u64 - 1] {
        assert!(file.read_at(pos, &mut buf).is_err());
        assert!(file.read_device_at(pos, &mut buf).is_err());
    }
    file.read_at(3 * SECTOR as u64, &mut buf).unwrap();
    let map = file.map(2048).unwrap();
    assert_eq!(disk.stats().mapped_bad_sectors, 0);
    map.bytes(1024, 5);
    assert_eq!(disk.stats().mapped_bad_sectors, 1);
    disk.heal(Path::new("/f")).unwrap();
    file.read_at(2 * SECTOR as u64, &mut buf).unwrap();
    assert_eq!(disk.stats().read_errors, 4);
}

#[test]
fn planned_faults_strike_the_matching_call_once() {
    let (disk, file) = with_file(8);
    let other = open(&disk, "/other");
    disk.inject(Fault::WriteError, "/f", 1);
    disk.inject(Fault::ReadError, "/f", 0);
    disk.inject(Fault::ReserveFull, "/f", 0);
    disk.inject(Fault::SyncFull, "/f", 0);
    file.write_at(0, &[&sectors(8, 1)]).unwrap();
    other.write_at(0, &[&sectors(8, 1)]).unwrap();
    assert!(file.write_at(0, &[&sectors(8, 2)]).is_err());
    assert!(
        fills(&cache(&disk, "/f")).ends_with(&[1]),
        "never the whole write"
    );
    file.write_at(0, &[&sectors(8, 3)]).unwrap();
    assert!(file.read_at(0, &mut [0; 1]).is_err());
    assert_eq!(file.read_at(0, &mut [0; 1]).unwrap(), 1);
    assert_eq!(
        file.reserve(0, 9999).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    file.reserve(0, 9999).unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::StorageFull);
    disk.inject(Fault::SyncError, "/", 0);
    assert!(disk.sync_dir(Path::new("/")).is_err());
    disk.inject(Fault::WriteFull, "other", 0);
    let full = other.write_at(0, &[b"x"]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
}

#[test]
fn capacity_refuses_and_freed_space_serves_again() {
    let (disk, file) = with_file(9);
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
    disk.set_capacity(Some(10 * SECTOR as u64));
    assert_eq!(
        kind(file.reserve(0, 11 * SECTOR as u64)),
        ErrorKind::StorageFull
    );
    assert_eq!(
        file.len().unwrap(),
        0,
        "a refused reservation changes nothing"
    );
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 10 * SECTOR as u64);
    file.reserve(0, 6 * SECTOR as u64).unwrap();
    let other = open(&disk, "/other");
    assert_eq!(
        kind(other.write_at(0, &[&sectors(5, 1)])),
        ErrorKind::StorageFull
    );
    assert_eq!(
        other.len().unwrap(),
        4 * SECTOR as u64,
        "what fitted was written"
    );
    assert_eq!(
        kind(other.set_len(5 * SECTOR as u64)),
        ErrorKind::StorageFull
    );
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 0);
    file.write_at(0, &[&sectors(6, 2)]).expect("reserved");
    disk.remove_file(Path::new("/other")).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 0, "still open");
    drop(other);
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 4 * SECTOR as u64);
    file.set_len(SECTOR as u64).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/")).unwrap(), 9 * SECTOR as u64);
    disk.set_capacity(None);
    file.reserve(0, 1 << 30).unwrap();
    assert_eq!(disk.stats().no_space, 3);
}

#[test]
fn rot_is_in_cache_and_device_and_the_same_for_a_seed() {
    let rotten = |seed| {
        let (disk, file) = with_file(10);
        file.write_at(0, &[&sectors(3, 1)]).unwrap();
        file.sync().unwrap();
        disk.rot(Path::new("/f"), 1, seed).unwrap();
        disk.rot(Path::new("/f"), 99, seed).unwrap();
        let bytes = cache(&disk, "/f");
        assert_eq!(bytes, device(&*file));
        let wrong = bytes.iter().filter(|b| **b != 1).count();
        assert!((1..=8).contains(&wrong), "{wrong}");
        assert!(
            bytes[..SECTOR]
                .iter()
                .chain(&bytes[2 * SECTOR..])
                .all(|b| *b == 1)
        );
        bytes
    };
    assert_eq!(rotten(1), rotten(1));
    assert_ne!(rotten(1), rotten(2));
}

#[test]
fn changes_from_outside_are_durable() {
    let (disk, file) = with_file(11);
    let path = Path::new("/f");
    file.write_at(0, &[&sectors(4, 1)]).unwrap();
    file.sync().unwrap();
    disk.truncate_outside(path, 1000).unwrap();
    disk.overwrite_outside(path, 990, &[9; 100]).unwrap();
    open(&disk, "/g");
    disk.sync_dir(Path::new("/")).unwrap();
    disk.delete_outside(Path::new("/g")).unwrap();
    disk.power_loss();
    let expected = [vec![1; 990], vec![9; 10]].concat();
    assert_eq!(cache(&disk, "/f"), expected);
    assert_eq!(disk.files(), [(PathBuf::from("/f"), 1000)]);
}

#[test]
fn a_map_shows_the_cache_of_its_time_and_panics_where_the_real_one_kills() {
    let (_disk, file) = with_file(12);
    let map = file.map(1 << 20).unwrap();
    file.write_at(0, &[b"before"]).unwrap();
    let before = Arc::clone(&map).bytes(0, 6);
    file.write_at(0, &[b"after!"]).unwrap();
    assert_eq!(before, b"before"[..]);
    assert_eq!(Arc::clone(&map).bytes(0, 6), b"after!"[..]);
    let beyond = std::panic::AssertUnwindSafe(move || map.bytes(4096, 1));
    assert!(std::panic::catch_unwind(beyond).is_err());
}

#[test]
fn reserved_space_costs_no_memory() {
    let disk = FaultDisk::new(13);
    for n in 0..1000 {
        open(&disk, &format!("/{n}")).reserve(0, 64 << 20).unwrap();
    }
    let free = disk.free_bytes(Path::new("/")).unwrap();
    assert_eq!(
        disk.total_bytes(Path::new("/")).unwrap() - free,
        1000 * (64 << 20)
    );
}

/// A random history over a few files, with crashes, kills and power losses; errors are part of it.
fn history(seed: u64, steps: u64) -> FaultDisk {
    let disk = FaultDisk::new(seed);
    let mut x = seed.wrapping_mul(2).wrapping_add(1);
    let mut draw = |bound: u64| {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % bound
    };
    for step in 0..steps {
        let path = PathBuf::from(format!("/{}", draw(4)));
        if disk.crashed() {
            if draw(2) == 0 {
                disk.kill()
            } else {
                disk.power_loss()
            }
        }
        let Ok(file) = disk.open(&path, OpenMode::CreateOrOpen) else {
            continue;
        };
        let pos = draw(5000);
        let _ = match draw(14) {
            0..=4 => file.write_at(pos, &[&vec![step as u8; draw(3000) as usize]]),
            5..=6 => file.sync(),
            7 => disk.sync_dir(Path::new("/")),
            8 => file.set_len(pos),
            9 => file.reserve(pos, pos + draw(4000)),
            10 => disk.remove_file(&path),
            11 => disk.rename(&path, &PathBuf::from(format!("/{}", draw(4)))),
            12 => {
                disk.writeback(draw(5));
                disk.rot(&path, draw(8), step)
            }
            _ => {
                disk.crash_after(draw(40));
                Ok(())
            }
        };
    }
    disk
}

#[test]
fn one_seed_is_one_history() {
    let mut hashes = BTreeSet::new();
    for seed in 0..20 {
        let (a, b) = (history(seed, 500), history(seed, 500));
        assert_eq!(a.state_hash(), b.state_hash());
        assert_eq!(a.stats(), b.stats());
        hashes.insert(a.state_hash());
        let stats = a.stats();
        assert!(
            stats.crashes > 0 && stats.power_losses > 0,
            "hollow: {stats:?}"
        );
        let fork = a.fork(99);
        assert_eq!(fork.files(), a.files());
        fork.power_loss();
        a.kill();
        assert_eq!(
            a.stats().power_losses,
            stats.power_losses,
            "a fork goes its own way"
        );
    }
    assert_eq!(hashes.len(), 20);
}

#[test]
fn synced_content_survives_any_history() {
    // Whatever happened before: what is synced, file and directory, is there after the power fails.
    for seed in 0..SEEDS {
        let disk = history(seed, 100);
        disk.kill();
        let mut expected = Vec::new();
        for (path, _) in disk.files() {
            let file = disk.open(&path, OpenMode::Existing).unwrap();
            let bytes = vec![seed as u8; 3000];
            file.write_at(100, &[&bytes]).unwrap();
            file.sync().unwrap();
            expected.push((path.clone(), disk.raw(&path).unwrap()[100..3100].to_vec()));
        }
        disk.sync_dir(Path::new("/")).unwrap();
        disk.power_loss();
        let found: Vec<_> = disk
            .files()
            .into_iter()
            .map(|(path, _)| (path.clone(), disk.raw(&path).unwrap()[100..3100].to_vec()))
            .collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}
