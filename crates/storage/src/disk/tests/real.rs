//! What only the real disk can be asked: other processes, a full file system, the meaning of `O_DIRECT`.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use super::super::{Disk, DiskFile, OpenMode, RealDisk};

/// Set for the child process of [`a_second_process_is_locked_out`]: the path it tries to lock.
const LOCK_PATH: &str = "TIMBERLINE_TEST_LOCK_PATH";

/// Runs this very test in a second process, which reports by its exit code whether it got the lock.
fn child_gets_lock(path: &Path) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "disk::tests::real::a_second_process_is_locked_out",
            "--quiet",
        ])
        .env(LOCK_PATH, path)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    match status.code() {
        Some(10) => true,
        Some(11) => false,
        other => panic!("the child ended with {other:?}"),
    }
}

#[test]
fn a_second_process_is_locked_out() {
    let disk = RealDisk::new();
    if let Some(path) = std::env::var_os(LOCK_PATH) {
        match disk.lock(Path::new(&path)) {
            // Leaves without dropping it: the system must free the lock.
            Ok(_held) => std::process::exit(10),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::process::exit(11),
            Err(e) => panic!("{e}"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = disk.lock(&path).unwrap();
    assert!(!child_gets_lock(&path));
    drop(held);
    assert!(child_gets_lock(&path));
    disk.lock(&path).expect("the child's end freed the lock");
}

#[test]
fn a_refused_reservation_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new();
    let file = disk
        .open(&dir.path().join("f"), OpenMode::CreateNew)
        .unwrap();
    file.write_at(0, &[b"content"]).unwrap();
    let too_much = disk.total_bytes(dir.path()).unwrap() * 2;
    let refused = file.reserve(0, too_much).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    let sparse = disk
        .open(&dir.path().join("g"), OpenMode::CreateNew)
        .unwrap();
    if sparse.set_len(too_much).is_ok() {
        let refused = sparse.reserve(0, too_much).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    }
    assert_eq!(file.len().unwrap(), 7);
    let mut buf = [0; 10];
    assert_eq!(file.read_at(0, &mut buf).unwrap(), 7);
    assert_eq!(&buf[..7], b"content");
}

#[test]
fn created_files_are_not_for_others() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new();
    let (sub, file) = (dir.path().join("sub"), dir.path().join("f"));
    disk.create_dir(&sub).unwrap();
    disk.open(&file, OpenMode::CreateNew).unwrap();
    for path in [sub, file] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{}: {mode:o}", path.display());
    }
}

#[test]
fn direct_reads_follow_the_file_not_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new();
    let path = dir.path().join("f");
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(0, &[b"first"]).unwrap();
    file.sync().unwrap();
    disk.rename(&path, &dir.path().join("g")).unwrap();
    let other = disk.open(&path, OpenMode::CreateNew).unwrap();
    other.write_at(0, &[b"other"]).unwrap();
    let mut buf = [0; 5];
    assert_eq!(file.read_device_at(0, &mut buf).unwrap(), 5);
    assert_eq!(&buf, b"first");
}

#[test]
fn refused_direct_reads_fall_back() {
    // procfs has no direct reads, and takes no other fault to say so.
    let disk = RealDisk::new();
    let file: std::sync::Arc<dyn DiskFile> = disk
        .open(Path::new("/proc/version"), OpenMode::ReadOnly)
        .unwrap();
    assert!(!disk.direct_reads_refused());
    let mut buf = [0; 5];
    assert_eq!(file.read_device_at(0, &mut buf).unwrap(), 5);
    assert_eq!(&buf, b"Linux");
    assert!(disk.direct_reads_refused());
}

#[test]
fn direct_reads_are_used_where_the_file_system_has_them() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new();
    let path = dir.path().join("f");
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    file.write_at(0, &[&[7; 5000]]).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let has_them = std::fs::File::options()
        .read(true)
        .custom_flags(direct)
        .open(&path)
        .is_ok();
    let mut buf = [0; 4500];
    assert_eq!(file.read_device_at(600, &mut buf).unwrap(), 4400);
    assert!(buf[..4400].iter().all(|b| *b == 7));
    assert_eq!(disk.direct_reads_refused(), !has_them);
}
