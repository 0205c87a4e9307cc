//! Directories as text: each file a listing of its lines of 16 bytes, all-zero lines left out, so that a change of
//! format is a change that a reviewer can read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use timberline_storage::disk::{Disk, FaultDisk, OpenMode};

use crate::history;

const LINE: usize = 16;

/// The files of a directory by their path in it, `/` between the parts.
#[derive(PartialEq, Eq)]
pub(crate) struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

impl Tree {
    /// What lies below `dir` now.
    pub(crate) fn take(disk: &FaultDisk, dir: &Path) -> Tree {
        let below = disk.files().into_iter().filter_map(|(path, _)| {
            let name = path.strip_prefix(dir).ok()?.to_str()?.to_owned();
            Some((name, disk.raw(&path).unwrap()))
        });
        Tree {
            files: below.collect(),
        }
    }

    /// Writes the files below `dir`, durably.
    pub(crate) fn put(&self, disk: &dyn Disk, dir: &Path) {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            let mut missing: Vec<_> = path.ancestors().skip(1).collect();
            missing.retain(|dir| disk.list(dir).is_err());
            for dir in missing.into_iter().rev() {
                disk.create_dir(dir).unwrap();
                disk.sync_dir(dir.parent().unwrap()).unwrap();
            }
            let file = disk.open(&path, OpenMode::CreateNew).unwrap();
            file.write_at(0, &[bytes]).unwrap();
            file.sync().unwrap();
            disk.sync_dir(path.parent().unwrap()).unwrap();
        }
    }

    pub(crate) fn add(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), bytes);
    }

    /// Removes files whose name ends so; returns how many.
    pub(crate) fn remove_matching(&mut self, end: &str) -> usize {
        let before = self.files.len();
        self.files.retain(|name, _| !name.ends_with(end));
        before - self.files.len()
    }

    /// The committed fixture; all are rewritten first, once, when that was asked for.
    pub(crate) fn load(fixture: &str) -> Tree {
        static UPDATE: Once = Once::new();
        UPDATE.call_once(|| {
            if std::env::var_os("UPDATE_FIXTURES").is_some() {
                let (running, closed) = history::write();
                running.store(history::RUNNING);
                closed.store(history::CLOSED);
                history::write_installed().store(history::INSTALLED);
            }
        });
        let root = fixtures().join(fixture);
        let mut files = BTreeMap::new();
        let mut dirs = vec![root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                    let name = name.strip_suffix(".hex").unwrap().to_owned();
                    files.insert(name, parse(&std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Tree { files }
    }

    /// Compares with the committed fixture.
    pub(crate) fn compare(&self, fixture: &str) {
        let committed = Tree::load(fixture);
        let names = |tree: &Tree| tree.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(&committed), "the files of {fixture}");
        for (name, bytes) in &self.files {
            let (now, then) = (render(bytes), render(&committed.files[name]));
            let differs = now
                .lines()
                .zip(then.lines())
                .find(|(now, then)| now != then);
            assert!(
                now == then,
                "{fixture}/{name} is written differently now (length {} and {}), first here:\n  now  {}\n  then {}",
                bytes.len(),
                committed.files[name].len(),
                differs.map_or("", |d| d.0),
                differs.map_or("", |d| d.1),
            );
        }
    }

    fn store(&self, fixture: &str) {
        let root = fixtures().join(fixture);
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        for (name, bytes) in &self.files {
            let path = root.join(format!("{name}.hex"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, render(bytes)).unwrap();
        }
    }
}

/// `length N`, then a line for each 16 bytes that are not all zero: position, bytes, characters.
fn render(bytes: &[u8]) -> String {
    let mut out = format!("length {}\n", bytes.len());
    for (at, line) in bytes.chunks(LINE).enumerate() {
        if line.iter().all(|b| *b == 0) {
            continue;
        }
        let mut hex = String::new();
        for byte in line {
            write!(hex, "{byte:02x} ").unwrap();
        }
        let shown = line.iter().map(|b| match b {
            0x20..=0x7e => char::from(*b),
            _ => '.',
        });
        let shown: String = shown.collect();
        writeln!(out, "{:08x}  {hex:<48} |{shown}|", at * LINE).unwrap();
    }
    out
}

fn parse(text: &str) -> Vec<u8> {
    let (first, rest) = text.split_once('\n').unwrap();
    let len: usize = first.strip_prefix("length ").unwrap().parse().unwrap();
    let mut bytes = vec![0; len];
    for line in rest.lines() {
        let at = usize::from_str_radix(&line[..8], 16).unwrap();
        let hex = line[8..].split_once('|').unwrap().0.split_whitespace();
        for (slot, byte) in bytes[at..].iter_mut().zip(hex) {
            *slot = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    bytes
}
