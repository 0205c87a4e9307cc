//! Recovery: from a directory after any stop to logs that hold all that was acknowledged.
//!
//! ```text
//! identity → tables → journal from the newer table on → per replica: which files, what is proven, walk → checkpoint
//! ```
//!
//! Proof is a contiguous prefix per log: what the table covers, what a cycle holds, what a cycle names. The walk
//! accepts proven frames only; what lies behind the first hole was never acknowledged, and is cut. A proven frame
//! that is bad is damage: quarantined, never cut. Recovery ends in a checkpoint, so what it counted is durable
//! before anybody sees it; and in files nothing is written behind a tail that may have bytes behind it.
//!
//! Cost: the bytes since the last checkpoint. A replica that nothing happened to is taken from its table row.

pub(crate) mod files;
mod format;
mod replica;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::bugs::Bug;
use crate::checkpoint::{self, Checkpoints};
use crate::cycles::Journal;
use crate::disk::{DirLock, DiskFile, OpenMode};
use crate::error::{Error, Result};
use crate::journal::cycle::{self, Record};
use crate::journal::ring::{Ring, Scan, ScanRules};
use crate::log::Log;
use crate::options::LogConfig;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::store::{Inner, Opened, Store};
use crate::table::Table;

use replica::Replay;

/// What recovery met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The last stop was clean: nothing had to be replayed.
    pub clean: bool,
    /// The directory was made just now.
    pub created: bool,
    /// Cycles replayed.
    pub cycles: u64,
    /// Frames copied from the journal into segments.
    pub frames: u64,
    /// Bytes of segments read and checked.
    pub bytes_walked: u64,
    /// Logs whose files were looked at.
    pub logs_walked: u64,
    /// Dead files deleted.
    pub files_deleted: u64,
    /// One checkpoint table was not whole.
    pub table_lost: bool,
    /// Damage met, one line each.
    pub damage: Vec<String>,
    /// Files that no rule explains, left alone.
    pub foreign: Vec<String>,
}

/// File ids of one boot, as a power of two: more than a process can make.
const BOOT_SHIFT: u32 = 32;

/// What the directory's own files say.
struct Found {
    table: Table,
    slot: usize,
    slots: [Arc<dyn DiskFile>; 2],
    ring: Ring,
    scan: Scan,
}

/// Opens a locked directory.
pub(crate) fn open(shared: Arc<Shared>, lock: DirLock) -> Result<Opened> {
    let mut report = RecoveryReport::default();
    let directory = format::open_or_create(&shared, &mut report)?;
    let found = read_found(&shared, &mut report)?;
    if found.table.directory != directory {
        return Err(Error::corrupt(
            shared.dir.display().to_string(),
            "the checkpoint table belongs to another directory",
        ));
    }
    let boot = found.scan.boot + 1;
    // A lost table was the newer one: its time may have left bytes behind any tail.
    report.clean = found.table.clean && found.scan.cycles.is_empty() && !report.table_lost;
    let listing = files::list(&shared, &mut report)?;
    let next_file = listing
        .max_id()
        .max(found.table.next_file.saturating_sub(1))
        + 1;
    // A file that was removed, and whose removal was not durable, comes back after a power loss: its id must not be another
    // file's by then. What was given out since the table is known only from what is left.
    let of_this_boot = if report.clean { 0 } else { boot << BOOT_SHIFT };
    shared.files_begin_at(next_file.max(of_this_boot));
    let mut replay = Replay::new(&shared, &found.table, report.clean, &listing);
    for (_, bytes) in &found.scan.cycles {
        let mut replayed = Ok(());
        let whole = cycle::for_each_record(bytes, |record| {
            let made = match &record {
                Record::NewFile { header } => header.id.0,
                Record::Install { file, .. } => file.0,
                _ => 0,
            };
            shared.files_begin_at(shared.next_file().max(made + 1));
            if replayed.is_ok() {
                replayed = replay.record(&record);
            }
        });
        whole.map_err(|m| Error::corrupt("the journal", m.0))?;
        replayed?;
    }
    report.cycles = found.scan.cycles.iter().filter(|(c, _)| !c.closing).count() as u64;
    let recovered = replay.finish(&mut report)?;
    let (dead, dying) = (recovered.dead, recovered.dying);
    let damaged = found.scan.damaged.clone();
    let store = assemble(shared, lock, found, boot, recovered.logs);
    // The table before is still to be replayed from when the new one is lost.
    store.inner.checkpoints.lock().graveyard = dying;
    match damaged {
        Some(why) => {
            // Which logs the lost cycle touched is not known: nothing may be appended to any.
            report.damage.push(why.clone());
            store
                .shared()
                .poison(format!("the journal is damaged: {why}"));
        }
        None => conclude(&store, &mut report, dead)?,
    }
    let logs = store.logs();
    for log in &logs {
        log.seal_found();
    }
    Ok(Opened {
        store,
        logs,
        report,
    })
}

fn read_found(shared: &Shared, report: &mut RecoveryReport) -> Result<Found> {
    let from_cache = shared.has_bug(Bug::TrustCache);
    let open = |name: &str| open_file(shared, &shared.dir.join(name), OpenMode::Existing);
    let slots = [open(format::TABLES[0])?, open(format::TABLES[1])?];
    let tables = [
        Table::read(&*slots[0], from_cache)?,
        Table::read(&*slots[1], from_cache)?,
    ];
    // The slot that will be overwritten next must not be the only durable one.
    for slot in &slots {
        slot.sync()
            .map_err(Error::io("syncing the checkpoint tables"))?;
    }
    report.table_lost = tables.iter().any(Option::is_none) && !report.created;
    let newest = tables
        .into_iter()
        .enumerate()
        .filter_map(|(slot, table)| table.map(|t| (slot, t)))
        .max_by_key(|(_, table)| table.generation);
    let (slot, table) = newest.ok_or_else(|| checkpoint::no_table(&shared.dir))?;
    let journal = open(format::JOURNAL)?;
    journal.sync().map_err(Error::io("syncing the journal"))?;
    let ring = Ring::new(journal, table.journal_bytes, table.journal_from);
    let rules = ScanRules {
        any_boot: shared.has_bug(Bug::StaleLap),
        from_cache,
    };
    let scan = ring.scan(table.journal_from, table.journal_seq, table.boot, rules)?;
    Ok(Found {
        table,
        slot,
        slots,
        ring,
        scan,
    })
}

fn open_file(shared: &Shared, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
    shared
        .disk
        .open(path, mode)
        .map_err(Error::io(format!("opening {}", path.display())))
}

fn assemble(
    shared: Arc<Shared>,
    lock: DirLock,
    found: Found,
    boot: u64,
    recovered: Vec<(crate::ids::ReplicaSpec, crate::log::LogParts)>,
) -> Store {
    let logs: BTreeMap<_, _> = recovered
        .into_iter()
        .map(|(spec, parts)| {
            let log = Log::new(shared.clone(), spec, LogConfig::default(), parts);
            (spec.replica, Arc::new(log))
        })
        .collect();
    let head = found.scan.head;
    Store {
        inner: Arc::new(Inner {
            logs: RwLock::new(logs),
            journal: Mutex::new(Journal {
                ring: Ring::new(found.ring.file().clone(), found.ring.len(), head),
                head,
                tail: found.table.journal_from,
                seq: found.scan.seq,
                synced_seq: found.scan.seq,
                in_flight: false,
                closed: true,
                direct_running: 0,
                direct_bytes: 0,
                prewriting: false,
                scratch: Vec::new(),
                cycles: 0,
                direct_syncs: 0,
            }),
            checkpoints: Mutex::new(Checkpoints {
                generation: found.table.generation,
                slot: found.slot,
                slots: found.slots,
                covers: found.table.journal_from,
                running: false,
                done: 0,
                graveyard: Vec::new(),
                doomed: Vec::new(),
                last_rows: Vec::new(),
            }),
            directory: found.table.directory,
            boot,
            _lock: lock,
            shared,
        }),
    }
}

/// Recovery ends in a checkpoint: what it counted is durable, the boot number is raised, dead files may go.
fn conclude(store: &Store, report: &mut RecoveryReport, dead: Vec<Arc<Segment>>) -> Result<()> {
    let Some(mut checkpoint) = store.capture(false) else {
        return Err(Error::Refused(
            "recovery found a checkpoint under way".into(),
        ));
    };
    for sync in checkpoint.take_syncs() {
        if !store.shared().has_bug(Bug::CountUnsynced) {
            store.run_checkpoint_sync(&sync)?;
        }
    }
    store.finish_checkpoint(checkpoint)?;
    report.files_deleted = dead.len() as u64;
    store.delete(dead)
}
