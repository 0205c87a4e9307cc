//! The contract of [`Disk`], run over the real disk in a temporary directory and over the fault disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{DirEntry, Disk, DiskFile, FaultDisk, MapAdvice, OpenMode, RealDisk};

/// Runs the check over each disk in a fresh, existing directory.
fn on_both(check: fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    check(&RealDisk::new(), dir.path());
    let fault = FaultDisk::new(1);
    let root = PathBuf::from("/data");
    fault.create_dir(&root).unwrap();
    check(&fault, &root);
}

fn create(disk: &dyn Disk, path: &Path) -> Arc<dyn DiskFile> {
    disk.open(path, OpenMode::CreateNew).unwrap()
}

fn read(file: &dyn DiskFile, pos: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    let n = file.read_at(pos, &mut buf).unwrap();
    buf.truncate(n);
    let mut device = vec![0xEE; len];
    let n = file.read_device_at(pos, &mut device).unwrap();
    device.truncate(n);
    assert_eq!(
        device, buf,
        "nothing failed: the device agrees with the cache"
    );
    buf
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + salt) % 251) as u8).collect()
}

fn names(disk: &dyn Disk, path: &Path) -> Vec<String> {
    disk.list(path)
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect()
}

#[test]
fn open_modes() {
    on_both(|disk, dir| {
        let path = dir.join("f");
        let missing = |mode| disk.open(&path, mode).unwrap_err().kind();
        assert_eq!(missing(OpenMode::Existing), ErrorKind::NotFound);
        assert_eq!(missing(OpenMode::ReadOnly), ErrorKind::NotFound);
        let file = disk.open(&path, OpenMode::CreateOrOpen).unwrap();
        file.write_at(0, &[b"abc"]).unwrap();
        assert_eq!(missing(OpenMode::CreateNew), ErrorKind::AlreadyExists);
        let again = disk.open(&path, OpenMode::CreateOrOpen).unwrap();
        assert_eq!(read(&*again, 0, 10), b"abc");
        let reader = disk.open(&path, OpenMode::ReadOnly).unwrap();
        assert_eq!(read(&*reader, 1, 10), b"bc");
        assert!(reader.write_at(0, &[b"x"]).is_err());
        assert!(reader.write_at(0, &[b"x", b"y"]).is_err());
        assert!(reader.set_len(0).is_err());
        assert!(reader.reserve(0, 4096).is_err());
        assert_eq!(reader.len().unwrap(), 3);
        for mode in [
            OpenMode::Existing,
            OpenMode::ReadOnly,
            OpenMode::CreateOrOpen,
        ] {
            let error = disk.open(dir, mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IsADirectory, "{mode:?}");
        }
        let orphan = disk.open(&dir.join("no/f"), OpenMode::CreateNew);
        assert_eq!(orphan.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn writes_gather_and_reads_stop_at_the_end() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        assert!(file.is_empty().unwrap());
        file.write_at(0, &[]).unwrap();
        file.write_at(700, &[b"", b""]).unwrap();
        assert_eq!(file.len().unwrap(), 0);
        let (a, b) = (pattern(1500, 1), pattern(10_000, 2));
        file.write_at(300, &[&a, &[], &b]).unwrap();
        assert_eq!(file.len().unwrap(), 300 + 11_500);
        let expected = [vec![0; 300], a, b].concat();
        assert_eq!(read(&*file, 0, 20_000), expected);
        assert_eq!(read(&*file, 511, 2), expected[511..513]);
        assert_eq!(read(&*file, 11_799, 5), expected[11_799..]);
        assert_eq!(read(&*file, 11_800, 5), b"");
        assert_eq!(read(&*file, 1 << 40, 5), b"");
        file.write_at(505, &[b"overwritten"]).unwrap();
        assert_eq!(read(&*file, 505, 11), b"overwritten");
        assert_eq!(read(&*file, 516, 4), expected[516..520]);
    });
}

#[test]
fn more_buffers_than_one_call_takes() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        let bytes = pattern(3 * 2500, 3);
        let bufs: Vec<&[u8]> = bytes.chunks(3).collect();
        file.write_at(17, &bufs).unwrap();
        assert_eq!(read(&*file, 17, bytes.len() + 1), bytes);
    });
}

#[test]
fn direct_reads_of_any_position_and_length() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        let bytes = pattern((1 << 20) + 70_001, 4);
        file.write_at(0, &[&bytes]).unwrap();
        file.sync().unwrap();
        let end = bytes.len();
        for (pos, len) in [
            (0, 1),
            (0, 4096),
            (1, 4096),
            (4095, 2),
            (4097, 100_000),
            (0, end),
            (3, end),
            (511, end + 5000),
            (end - 1, 1),
            (end - 1, 100),
            (end, 10),
            (end + 10_000, 10),
        ] {
            let expected = &bytes[pos.min(end)..(pos + len).min(end)];
            assert_eq!(read(&*file, pos as u64, len), expected, "{len} at {pos}");
        }
    });
}

#[test]
fn reserve_extends_with_zeros_and_keeps_content() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        file.write_at(0, &[b"head"]).unwrap();
        file.reserve(0, 64 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 64 << 20);
        assert_eq!(read(&*file, 0, 6), b"head\0\0");
        assert_eq!(read(&*file, (64 << 20) - 3, 10), [0; 3]);
        file.reserve(100, 5000).unwrap();
        file.reserve(9, 9).unwrap();
        assert_eq!(file.len().unwrap(), 64 << 20, "a shorter end cuts nothing");
        file.set_len(4096).unwrap();
        file.reserve(4096, 8192).unwrap();
        assert_eq!(read(&*file, 0, 9000).len(), 8192);
    });
}

#[test]
fn cut_bytes_do_not_come_back() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        file.write_at(0, &[&pattern(3000, 5)]).unwrap();
        file.sync().unwrap();
        file.set_len(700).unwrap();
        file.set_len(3000).unwrap();
        let expected = [&pattern(700, 5)[..], &[0; 2300]].concat();
        assert_eq!(read(&*file, 0, 4000), expected);
        file.sync().unwrap();
        assert_eq!(read(&*file, 0, 4000), expected);
    });
}

#[test]
fn directories() {
    on_both(|disk, dir| {
        let sub = dir.join("sub");
        disk.create_dir(&sub).unwrap();
        disk.create_dir(&sub).unwrap();
        let deep = disk.create_dir(&dir.join("x/y")).unwrap_err();
        assert_eq!(deep.kind(), ErrorKind::NotFound);
        for name in ["b", "a", "c"] {
            create(disk, &sub.join(name))
                .write_at(0, &[name.as_bytes()])
                .unwrap();
        }
        disk.create_dir(&sub.join("d")).unwrap();
        disk.sync_dir(&sub).unwrap();
        disk.sync_dir(dir).unwrap();
        let entry = |name: &str, is_dir, len| DirEntry {
            name: name.into(),
            is_dir,
            len,
        };
        assert_eq!(
            disk.list(&sub).unwrap(),
            [
                entry("a", false, 1),
                entry("b", false, 1),
                entry("c", false, 1),
                entry("d", true, 0)
            ]
        );
        let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(disk.remove_dir(&sub)), ErrorKind::DirectoryNotEmpty);
        assert_eq!(
            kind(disk.remove_dir(&sub.join("a"))),
            ErrorKind::NotADirectory
        );
        assert_eq!(
            kind(disk.remove_file(&sub.join("d"))),
            ErrorKind::IsADirectory
        );
        assert_eq!(
            kind(disk.create_dir(&sub.join("a"))),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            kind(disk.sync_dir(&sub.join("a"))),
            ErrorKind::NotADirectory
        );
        assert_eq!(kind(disk.sync_dir(&sub.join("no"))), ErrorKind::NotFound);
        assert_eq!(
            kind(disk.list(&sub.join("a")).map(drop)),
            ErrorKind::NotADirectory
        );
        assert_eq!(kind(disk.remove_file(&sub.join("no"))), ErrorKind::NotFound);
        assert_eq!(kind(disk.remove_dir(&sub.join("no"))), ErrorKind::NotFound);
        for name in ["a", "b", "c"] {
            disk.remove_file(&sub.join(name)).unwrap();
        }
        disk.remove_dir(&sub.join("d")).unwrap();
        disk.remove_dir(&sub).unwrap();
        assert!(disk.list(dir).unwrap().is_empty());
    });
}

#[test]
fn rename_replaces_and_handles_follow() {
    on_both(|disk, dir| {
        let (from, to) = (dir.join("from"), dir.join("to"));
        let source = create(disk, &from);
        source.write_at(0, &[b"new"]).unwrap();
        let replaced = create(disk, &to);
        replaced.write_at(0, &[b"old"]).unwrap();
        disk.rename(&from, &to).unwrap();
        assert_eq!(names(disk, dir), ["to"]);
        source.write_at(3, &[b"er"]).unwrap();
        let opened = disk.open(&to, OpenMode::Existing).unwrap();
        assert_eq!(read(&*opened, 0, 10), b"newer");
        assert_eq!(
            read(&*replaced, 0, 10),
            b"old",
            "a handle outlives the name"
        );
        assert_eq!(
            disk.rename(&from, &to).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        disk.rename(&to, &to).unwrap();
        let sub = dir.join("sub");
        disk.create_dir(&sub).unwrap();
        let onto_dir = disk.rename(&to, &sub).unwrap_err().kind();
        assert_eq!(onto_dir, ErrorKind::IsADirectory);
        disk.rename(&to, &sub.join("moved")).unwrap();
        disk.rename(&sub, &dir.join("other")).unwrap();
        assert_eq!(names(disk, &dir.join("other")), ["moved"]);
        let into_itself = disk.rename(&dir.join("other"), &dir.join("other/in"));
        assert_eq!(into_itself.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn removed_file_lives_while_it_is_open() {
    on_both(|disk, dir| {
        let path = dir.join("f");
        let file = create(disk, &path);
        file.write_at(0, &[b"still here"]).unwrap();
        disk.remove_file(&path).unwrap();
        assert!(names(disk, dir).is_empty());
        assert_eq!(read(&*file, 0, 20), b"still here");
        file.write_at(10, &[b"!"]).unwrap();
        file.sync().unwrap();
        create(disk, &path).write_at(0, &[b"another"]).unwrap();
        assert_eq!(read(&*file, 0, 20), b"still here!");
    });
}

#[test]
fn locks_exclude() {
    on_both(|disk, dir| {
        for path in [dir.join("lock"), dir.to_owned()] {
            let held = disk.lock(&path).unwrap();
            let refused = disk.lock(&path).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::WouldBlock);
            drop(held);
            drop(disk.lock(&path).unwrap());
        }
        assert_eq!(names(disk, dir), ["lock"]);
        let nowhere = disk.lock(&dir.join("no/lock")).unwrap_err();
        assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_hint_changes_nothing() {
    on_both(|disk, dir| {
        let path = dir.join("f");
        let file = create(disk, &path);
        file.start_write_back(0, 4096);
        let bytes = pattern(9000, 7);
        file.write_at(0, &[&bytes]).unwrap();
        for (from, to) in [(0, 9000), (4096, 8192), (5, 5), (8, 4), (0, u64::MAX)] {
            file.start_write_back(from, to);
        }
        assert_eq!(file.len().unwrap(), 9000);
        assert_eq!(read(&*file, 0, 9000), bytes);
        file.sync().unwrap();
    });
}

#[test]
fn maps_reach_beyond_the_end_and_outlive_the_file() {
    on_both(|disk, dir| {
        let path = dir.join("f");
        let file = create(disk, &path);
        let map = file.map(1 << 20).unwrap();
        assert_eq!(map.len(), 1 << 20);
        assert!(Arc::clone(&map).bytes(5000, 0).is_empty());
        let bytes = pattern(9000, 6);
        file.write_at(0, &[&bytes]).unwrap();
        let early = Arc::clone(&map).bytes(4000, 5000);
        assert_eq!(early, bytes[4000..]);
        file.reserve(0, 1 << 20).unwrap();
        file.write_at(500_000, &[b"far"]).unwrap();
        let far = Arc::clone(&map).bytes(500_000, 3);
        map.advise(0, 1 << 20, MapAdvice::WillNeed);
        map.advise(100, usize::MAX, MapAdvice::Random);
        map.advise(u64::MAX, 5, MapAdvice::Sequential);
        drop((file, map));
        disk.remove_file(&path).unwrap();
        assert_eq!(early.slice(10..20), bytes[4010..4020]);
        assert_eq!(far, b"far"[..]);
    });
}

#[test]
fn a_slice_beyond_the_map_panics() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        file.write_at(0, &[&pattern(9000, 7)]).unwrap();
        let map = file.map(4096).unwrap();
        for (from, len) in [(4096, 1), (0, 4097), (u64::MAX, 2)] {
            let map = Arc::clone(&map);
            let slice = std::panic::AssertUnwindSafe(move || map.bytes(from, len));
            assert!(std::panic::catch_unwind(slice).is_err(), "{len} at {from}");
        }
    });
}

#[test]
fn absurd_positions_are_errors() {
    on_both(|disk, dir| {
        let file = create(disk, &dir.join("f"));
        assert!(file.write_at(u64::MAX - 1, &[b"abc"]).is_err());
        assert!(file.write_at(u64::MAX - 1, &[b"ab", b"c"]).is_err());
        assert!(file.set_len(u64::MAX).is_err());
        assert!(file.reserve(0, u64::MAX).is_err());
        assert_eq!(file.len().unwrap(), 0);
        assert!(
            file.read_at(u64::MAX - 1, &mut [0; 8])
                .map_or(true, |n| n == 0)
        );
        assert!(
            file.read_device_at(u64::MAX - 1, &mut [0; 8])
                .map_or(true, |n| n == 0)
        );
    });
}

#[test]
fn space_is_known() {
    on_both(|disk, dir| {
        let (free, total) = (
            disk.free_bytes(dir).unwrap(),
            disk.total_bytes(dir).unwrap(),
        );
        assert!(0 < free && free <= total, "{free} of {total}");
    });
}
