//! Checking a directory at rest: every frame, checksum, chain and footer. Nothing is changed.
//!
//! It takes the directory's lock, so a broker can't run beside it. What the checkpoint table covers must be whole: a fault
//! there is damage. What lies behind the table in a directory that was not closed cleanly is proven by the journal,
//! which recovery reads at the next start; here those frames are checked as far as they chain, and the rest is counted, not
//! judged.
//!
//! Invariant: memory is bounded by one frame, one footer and the table, whatever the directory holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, Result};
use crate::file_header::{ENCODED_LEN, FIRST_FRAME, FileHeader, HeaderFault};
use crate::footer::Footer;
use crate::frame::{FrameFault, FrameHeader};
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::journal::ring::{Ring, ScanRules};
use crate::place::Place;
use crate::recovery::files;
use crate::scan::FrameScan;
use crate::table::{Table, TableFile, TableReplica};

/// Damaged places listed at most; more are counted in a note.
const DAMAGE_LISTED_MAX: usize = 10_000;

/// The directory's own files, see `docs/storage-format.md`.
const IDENTITY: &str = "identity";
const TABLES: [&str; 2] = ["table.0", "table.1"];
const JOURNAL: &str = "journal";
const LOGS: &str = "logs";
/// Where the directory's id begins in its identity, bytes.
const IDENTITY_ID: usize = 16;

/// What a directory holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// The directory's id.
    pub directory: Uuid,
    /// The last stop was clean: everything is covered by the checkpoint table.
    pub clean: bool,
    /// Cycles in the journal that the next start replays.
    pub journal_cycles: u64,
    /// Every log of the table.
    pub logs: Vec<VerifiedLog>,
    /// Every damaged place.
    pub damage: Vec<VerifiedDamage>,
    /// What is worth knowing and is no damage.
    pub notes: Vec<String>,
}

/// One replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedLog {
    /// Whose it is.
    pub spec: ReplicaSpec,
    /// Segment files.
    pub files: u64,
    /// Whole frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of frames checked.
    pub bytes: u64,
    /// First offset kept.
    pub log_start: i64,
    /// Offset of the next record, as far as the checked frames go.
    pub next_offset: i64,
    /// Bytes behind the checkpoint that do not continue the log as they lie there; the journal may.
    pub unproven_bytes: u64,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedDamage {
    /// The file.
    pub file: String,
    /// Where in it, bytes.
    pub position: u64,
    /// How many bytes can't be used.
    pub bytes: u64,
    /// Offsets `[from, to)` that are lost with it, if that is known.
    pub offsets: Option<(i64, i64)>,
    /// What is wrong.
    pub what: String,
}

/// Checks a data directory that no broker has open. Blocking; it reads everything once.
///
/// # Errors
/// [`Error::Locked`], [`Error::NewerFormat`], [`Error::Corrupt`] when the directory's own files can't be read, I/O errors.
/// Damage of logs is no error but in the report.
pub fn verify_directory(disk: Arc<dyn Disk>, dir: &Path) -> Result<VerifyReport> {
    let _lock = disk.lock(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::Locked {
            dir: dir.to_owned(),
        },
        _ => Error::io(format!("locking {}", dir.display()))(e),
    })?;
    let mut verifier = Verifier {
        disk: &*disk,
        dir,
        report: VerifyReport::default(),
        unlisted: 0,
        tails: BTreeMap::new(),
    };
    let table = verifier.directory()?;
    let present = verifier.list()?;
    let mut live = BTreeSet::new();
    for replica in &table.replicas {
        live.extend(replica.files.iter().map(|file| file.id));
        verifier.replica(replica, &present)?;
    }
    verifier.rest(&table, &present, &live)?;
    let mut report = verifier.report;
    if verifier.unlisted > 0 {
        let more = format!("{} more damaged places are not listed", verifier.unlisted);
        report.notes.push(more);
    }
    Ok(report)
}

/// Segment files by id.
type Present = BTreeMap<FileId, PathBuf>;

struct Verifier<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    report: VerifyReport,
    unlisted: u64,
    /// Of logs that were not closed: which one in the report, and how far its frames go.
    tails: BTreeMap<ReplicaId, (usize, Place)>,
}

/// How far a walk over frames came.
struct Walk {
    place: Place,
    pos: u64,
    frames: u64,
    records: u64,
    bytes: u64,
}

impl Verifier<'_> {
    fn open(&self, path: &Path) -> Result<Arc<dyn DiskFile>> {
        self.disk
            .open(path, OpenMode::ReadOnly)
            .map_err(Error::io(format!("opening {}", path.display())))
    }

    fn damaged(&mut self, damage: VerifiedDamage) {
        if self.report.damage.len() < DAMAGE_LISTED_MAX {
            self.report.damage.push(damage);
        } else {
            self.unlisted += 1;
        }
    }

    /// Identity, tables and journal.
    fn directory(&mut self) -> Result<Table> {
        let mut lost = false;
        let mut tables = Vec::new();
        for name in TABLES {
            match Table::read(&*self.open(&self.dir.join(name))?, false)? {
                Some(table) => tables.push(table),
                None => {
                    lost = true;
                    let note = format!("{name} is not whole; the other one counts");
                    self.report.notes.push(note);
                }
            }
        }
        let newest = tables.into_iter().max_by_key(|table| table.generation);
        let table = newest.ok_or_else(|| {
            Error::corrupt(
                self.dir.display().to_string(),
                "neither checkpoint table is whole",
            )
        })?;
        self.report.directory = table.directory;
        self.check_identity(table.directory)?;
        let journal = self.open(&self.dir.join(JOURNAL))?;
        let ring = Ring::new(journal, table.journal_bytes, table.journal_from);
        let rules = ScanRules::default();
        let scan = ring.scan(table.journal_from, table.journal_seq, table.boot, rules)?;
        self.report.clean = table.clean && scan.cycles.is_empty() && !lost;
        self.report.journal_cycles = scan.cycles.iter().filter(|(c, _)| !c.closing).count() as u64;
        if let Some(what) = scan.damaged {
            self.damaged(VerifiedDamage {
                file: self.dir.join(JOURNAL).display().to_string(),
                position: scan.head % table.journal_bytes.max(1),
                bytes: 0,
                offsets: None,
                what,
            });
        }
        Ok(table)
    }

    /// The identity names the same directory as the table.
    fn check_identity(&self, id: Uuid) -> Result<()> {
        let path = self.dir.join(IDENTITY);
        let mut bytes = [0; 32];
        let read = self
            .open(&path)?
            .read_at(0, &mut bytes)
            .map_err(Error::io(format!("reading {}", path.display())))?;
        if read == bytes.len() && bytes[IDENTITY_ID..] == id.as_bytes()[..] {
            return Ok(());
        }
        Err(Error::corrupt(
            path.display().to_string(),
            "it does not name the directory that the checkpoint table belongs to",
        ))
    }

    /// All segment files; others are noted.
    fn list(&mut self) -> Result<Present> {
        let mut present = Present::new();
        let logs = self.dir.join(LOGS);
        let what = |path: &Path| Error::io(format!("listing {}", path.display()));
        for topic in self.disk.list(&logs).map_err(what(&logs))? {
            let dir = logs.join(&topic.name);
            if !topic.is_dir {
                self.report
                    .notes
                    .push(format!("{} is not ours", dir.display()));
                continue;
            }
            for entry in self.disk.list(&dir).map_err(what(&dir))? {
                let path = dir.join(&entry.name);
                match files::parse(&entry.name).filter(|_| !entry.is_dir) {
                    Some((id, true)) => {
                        present.insert(id, path);
                    }
                    // The row of an install: the next start replays or deletes it.
                    Some(_) => {}
                    None => self
                        .report
                        .notes
                        .push(format!("{} is not ours", path.display())),
                }
            }
        }
        Ok(present)
    }

    fn replica(&mut self, replica: &TableReplica, present: &Present) -> Result<()> {
        let mut log = VerifiedLog {
            spec: replica.spec,
            files: replica.files.len() as u64,
            frames: 0,
            records: 0,
            bytes: 0,
            log_start: replica.log_start,
            next_offset: replica.tail.next_offset,
            unproven_bytes: 0,
        };
        for (at, file) in replica.files.iter().enumerate() {
            let next = replica.files.get(at + 1).map(|next| next.first);
            let Some(path) = present.get(&file.id) else {
                self.damaged(VerifiedDamage {
                    file: format!("segment {}", file.id),
                    position: 0,
                    bytes: file.end,
                    offsets: Some((
                        file.first.next_offset,
                        next.unwrap_or(replica.tail).next_offset,
                    )),
                    what: "the file is missing".to_owned(),
                });
                continue;
            };
            let last = next.unwrap_or(replica.tail);
            self.segment(replica, file, last, next.is_none(), path, &mut log)?;
        }
        let at = self.report.logs.len();
        if !self.report.clean {
            self.tails
                .entry(replica.spec.replica)
                .or_insert((at, replica.tail));
        }
        self.report.logs.push(log);
        Ok(())
    }

    /// One file: header, frames up to where the table says it ends, footer; of the last one also what follows.
    fn segment(
        &mut self,
        replica: &TableReplica,
        file: &TableFile,
        last: Place,
        is_last: bool,
        path: &Path,
        log: &mut VerifiedLog,
    ) -> Result<()> {
        let name = path.display().to_string();
        let handle = self.open(path)?;
        let offsets = Some((file.first.next_offset, last.next_offset));
        if let Some(what) = header_fault(&*handle, replica, file, &name)? {
            self.damaged(VerifiedDamage {
                file: name.clone(),
                position: 0,
                bytes: FIRST_FRAME,
                offsets,
                what,
            });
        }
        let walk = self.walk(&*handle, &name, file.first, file.end, last)?;
        log.frames += walk.frames;
        log.records += walk.records;
        log.bytes += walk.bytes;
        if file.sealed {
            self.footer(&*handle, &name, file, last)?;
        } else if is_last && !self.report.clean {
            let len = handle.len().map_err(Error::io(format!("reading {name}")))?;
            let place = Place {
                file: file.id,
                ..walk.place
            };
            let tail = behind_the_table(&*handle, &name, place, file.end, len, log)?;
            self.tails
                .insert(replica.spec.replica, (self.report.logs.len(), tail));
        }
        Ok(())
    }

    /// Frames from the first to `end`, all of which the table covers.
    fn walk(
        &mut self,
        handle: &dyn DiskFile,
        name: &str,
        first: Place,
        end: u64,
        last: Place,
    ) -> Result<Walk> {
        let mut scan = FrameScan::new(handle, name.to_owned(), end, true);
        let mut walk = Walk {
            place: first,
            pos: FIRST_FRAME,
            frames: 0,
            records: 0,
            bytes: 0,
        };
        let mut after_damage = false;
        while walk.pos < end {
            let fault = match scan.frame(walk.pos)? {
                Ok((header, _)) if after_damage || follows(&header, &walk.place) => {
                    walk.take(&header);
                    after_damage = false;
                    continue;
                }
                Ok(_) => FrameFault::Chain,
                Err(fault) => fault,
            };
            let next = scan.next_whole(walk.pos, walk.place.index)?;
            let (to, offset) = match &next {
                Some((pos, header)) => (*pos, header.base_offset),
                None => (end, last.next_offset),
            };
            self.damaged(VerifiedDamage {
                file: name.to_owned(),
                position: walk.pos,
                bytes: to - walk.pos,
                offsets: Some((walk.place.next_offset, offset)),
                what: fault.to_string(),
            });
            walk.pos = to;
            after_damage = true;
        }
        Ok(walk)
    }

    fn footer(
        &mut self,
        handle: &dyn DiskFile,
        name: &str,
        file: &TableFile,
        last: Place,
    ) -> Result<()> {
        let what = match Footer::read(handle, name)? {
            None => "the footer is not whole; reading goes on without it",
            Some(footer) if footer.last.pos != file.end || footer.last.index != last.index => {
                "the footer disagrees with the checkpoint table"
            }
            Some(_) => return Ok(()),
        };
        self.damaged(VerifiedDamage {
            file: name.to_owned(),
            position: file.end,
            bytes: 0,
            offsets: None,
            what: what.to_owned(),
        });
        Ok(())
    }

    /// Files that no row of the table names: dead ones, and those made since the checkpoint.
    fn rest(&mut self, table: &Table, present: &Present, live: &BTreeSet<FileId>) -> Result<()> {
        let (mut dead, mut unknown) = (0, 0);
        for (id, path) in present.iter().filter(|(id, _)| !live.contains(id)) {
            if id.0 < table.next_file || self.report.clean {
                dead += 1;
            } else if !self.continues(*id, path)? {
                unknown += 1;
            }
        }
        if dead > 0 {
            let note =
                format!("{dead} files belong to no log any more; the next start deletes them");
            self.report.notes.push(note);
        }
        if unknown > 0 {
            let note = format!(
                "{unknown} files are newer than the last checkpoint and continue no log as it lies; the next start judges them"
            );
            self.report.notes.push(note);
        }
        Ok(())
    }

    /// Checks a file that goes on where a log ends, or begins one.
    fn continues(&mut self, id: FileId, path: &Path) -> Result<bool> {
        let name = path.display().to_string();
        let handle = self.open(path)?;
        let Ok(header) = read_header(&*handle, &name)? else {
            return Ok(false);
        };
        let known = self.tails.get(&header.spec.replica).copied();
        let (at, tail) = match known {
            Some(known) => known,
            // The first file of a log that the table does not know yet.
            None if header.cut.file == FileId::NONE => {
                self.report.logs.push(VerifiedLog {
                    spec: header.spec,
                    files: 0,
                    frames: 0,
                    records: 0,
                    bytes: 0,
                    log_start: header.cut.next_offset,
                    next_offset: header.cut.next_offset,
                    unproven_bytes: 0,
                });
                (self.report.logs.len() - 1, header.cut)
            }
            None => return Ok(false),
        };
        let (cut, log) = (header.cut, &mut self.report.logs[at]);
        if header.id != id
            || header.spec != log.spec
            || (cut.file, cut.pos, cut.index, cut.chain)
                != (tail.file, tail.pos, tail.index, tail.chain)
        {
            return Ok(false);
        }
        let len = handle.len().map_err(Error::io(format!("reading {name}")))?;
        let place = Place { file: id, ..cut };
        let tail = behind_the_table(&*handle, &name, place, FIRST_FRAME, len, log)?;
        log.files += 1;
        self.tails.insert(header.spec.replica, (at, tail));
        Ok(true)
    }
}

impl Walk {
    fn take(&mut self, header: &FrameHeader) {
        self.frames += 1;
        self.records += u64::from(header.record_count);
        self.bytes += header.frame_len();
        self.pos += header.frame_len();
        self.place = Place {
            pos: self.pos,
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            time_ms: header.append_time_ms,
            ..self.place
        };
    }
}

/// Frames behind the checkpoint, checked as far as they continue the log; returns the place behind them.
fn behind_the_table(
    handle: &dyn DiskFile,
    name: &str,
    place: Place,
    from: u64,
    len: u64,
    log: &mut VerifiedLog,
) -> Result<Place> {
    let mut scan = FrameScan::new(handle, name.to_owned(), len, true);
    let mut walk = Walk {
        place: Place { pos: from, ..place },
        pos: from,
        frames: 0,
        records: 0,
        bytes: 0,
    };
    while walk.pos < len {
        match scan.frame(walk.pos)? {
            Ok((header, _)) if follows(&header, &walk.place) => walk.take(&header),
            _ => break,
        }
    }
    log.frames += walk.frames;
    log.records += walk.records;
    log.bytes += walk.bytes;
    log.next_offset = walk.place.next_offset;
    log.unproven_bytes += written_bytes(handle, name, walk.pos, len)?;
    Ok(walk.place)
}

fn follows(header: &FrameHeader, place: &Place) -> bool {
    header
        .check_follows(place.index, place.next_offset, place.chain)
        .is_ok()
}

/// What is wrong with a file's header.
fn header_fault(
    handle: &dyn DiskFile,
    replica: &TableReplica,
    file: &TableFile,
    name: &str,
) -> Result<Option<String>> {
    Ok(match read_header(handle, name)? {
        Err(_) => Some("the file's header is not whole".to_owned()),
        Ok(header)
            if header.id != file.id || header.spec != replica.spec || header.cut != file.first =>
        {
            Some("the file's header disagrees with the checkpoint table".to_owned())
        }
        Ok(_) => None,
    })
}

fn read_header(handle: &dyn DiskFile, name: &str) -> Result<Result<FileHeader, HeaderFault>> {
    let mut bytes = [0; ENCODED_LEN];
    let read = handle
        .read_at(0, &mut bytes)
        .map_err(Error::io(format!("reading {name}")))?;
    Ok(FileHeader::decode(&bytes[..read]))
}

/// Bytes from `from` to the last one that is not zero: space is reserved ahead.
fn written_bytes(handle: &dyn DiskFile, name: &str, from: u64, to: u64) -> Result<u64> {
    const STEP: usize = 1 << 20;
    let mut written = 0;
    let mut at = from;
    let mut buf = vec![0; STEP];
    while at < to {
        let want = (to - at).min(STEP as u64) as usize;
        let read = handle
            .read_at(at, &mut buf[..want])
            .map_err(Error::io(format!("reading {name}")))?;
        if read == 0 {
            break;
        }
        if let Some(last) = buf[..read].iter().rposition(|&byte| byte != 0) {
            written = at + last as u64 + 1 - from;
        }
        at += read as u64;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::disk::FaultDisk;
    use crate::{EntryKind, HardState, Log, LogConfig, Store, StoreOptions};

    const DIR: &str = "/data";

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

    /// A store with one log of commands, and the directory's path of the segment.
    fn filled(disk: &FaultDisk, entries: u64) -> (Store, Arc<Log>) {
        let options = StoreOptions {
            journal_bytes: 1 << 20,
            directory_id: Some(Uuid::from_u128(1)),
            ..StoreOptions::default()
        };
        let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
        let store = Store::open(disk, Path::new(DIR), options).unwrap().store;
        let spec = ReplicaSpec {
            replica: ReplicaId(1),
            topic: Uuid::from_u128(7),
            partition: 0,
        };
        let log = store.create_replica(spec, LogConfig::default()).unwrap();
        log.set_hard_state(HardState {
            term: 1,
            vote: 1,
            commit: 0,
        });
        for n in 0..entries {
            let payload = Bytes::from(vec![n as u8 + 1; 100]);
            log.append(1, EntryKind::Command, payload, n as i64)
                .unwrap();
        }
        settle(&store);
        (store, log)
    }

    fn verify(disk: &FaultDisk) -> Result<VerifyReport> {
        verify_directory(Arc::new(disk.clone()), Path::new(DIR))
    }

    fn segment(disk: &FaultDisk) -> PathBuf {
        let logs = Path::new(DIR).join(LOGS);
        let topic = logs.join(&disk.list(&logs).unwrap()[0].name);
        topic.join(&disk.list(&topic).unwrap()[0].name)
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let disk = FaultDisk::new(1);
        let (_store, _log) = filled(&disk, 1);
        assert!(matches!(verify(&disk), Err(Error::Locked { .. })));
    }

    #[test]
    fn frames_behind_the_checkpoint_are_counted_and_the_rest_is_not_damage() {
        let disk = FaultDisk::new(2);
        let (store, log) = filled(&disk, 5);
        drop((store, log));
        let report = verify(&disk).unwrap();
        assert!(!report.clean && report.damage.is_empty(), "{report:?}");
        assert_eq!(
            (report.logs.len(), report.logs[0].frames),
            (1, 5),
            "{report:?}"
        );
        assert_eq!(report.notes, [""; 0]);
    }

    #[test]
    fn every_flipped_byte_below_the_checkpoint_is_found_and_located() {
        let disk = FaultDisk::new(3);
        let (store, log) = filled(&disk, 5);
        log.commit_to(log.last_index());
        drop(log);
        drop(store);
        // Recovery ends in a checkpoint that covers all.
        let options = StoreOptions::default();
        let again = Arc::new(disk.clone()) as Arc<dyn Disk>;
        drop(Store::open(again, Path::new(DIR), options).unwrap());
        let report = verify(&disk).unwrap();
        assert!(report.damage.is_empty(), "{report:?}");
        assert_eq!(report.logs[0].frames, 5);
        let path = segment(&disk);
        let end = FIRST_FRAME + report.logs[0].bytes;
        // Frames are 64 + 100 bytes and padding: every place of headers and payloads that carries meaning.
        let mut at = FIRST_FRAME;
        while at < end {
            let in_frame = (at - FIRST_FRAME) % 168;
            let file = disk.open(&path, OpenMode::Existing).unwrap();
            let mut byte = [0];
            file.read_at(at, &mut byte).unwrap();
            file.write_at(at, &[&[byte[0] ^ 0x10]]).unwrap();
            file.sync().unwrap();
            let damaged = verify(&disk).unwrap();
            if in_frame < 164 {
                assert_eq!(damaged.damage.len(), 1, "byte {at}: {damaged:?}");
                let found = &damaged.damage[0];
                assert!(
                    found.position <= at && at < found.position + found.bytes,
                    "byte {at}: {found:?}"
                );
            }
            file.write_at(at, &[&byte]).unwrap();
            file.sync().unwrap();
            at += 7;
        }
        assert!(verify(&disk).unwrap().damage.is_empty());
        disk.remove_file(&path).unwrap();
        assert!(verify(&disk).unwrap().damage[0].what.contains("missing"));
    }
}
