//! The log of one replica: entries in segment files, written by one shard, read by many.
//!
//! ```text
//! append ──► segment (page cache) ──► pending ──► cycle: journal copy or direct sync ──► durable index
//!                                                                   commit_to ──► high watermark, seals, log start
//! ```
//!
//! Invariants:
//! - Entries have dense indexes, records dense offsets (INV-2); both continue across files and restarts.
//! - No position of a file is ever given new content: a truncation ends the file at a cut, the next append starts
//!   another one; so does the first append after an unclean stop.
//! - Readers see committed records only (INV-3), from the log start on.
//! - A file comes into being with the first entry that needs it: an empty partition costs no file.
//!
//! Not here: when something is synced (`cycles`), what is replicated, and who may write.

mod append;
mod append_frame;
pub(crate) mod capture;
mod commit;
mod cycle;
pub(crate) mod effects;
mod frames;
pub(crate) mod install;
mod raft;
mod read;
mod replay;
mod retention;
pub(crate) mod seal;
mod snapshot;
mod tail;
#[cfg(test)]
mod tests;
mod time;
mod truncate;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::frame;
use crate::ids::ReplicaSpec;
use crate::membership::{Membership, Memberships};
use crate::options::{HardState, LogConfig};
use crate::place::Place;
use crate::producers::Producers;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::terms::TermRuns;

pub use append::Appended;
pub(crate) use append_frame::check_whole;
pub(crate) use cycle::{CycleShare, Room};
pub use frames::FramesOutcome;
pub use raft::Durability;
pub(crate) use read::max_timestamp;
pub use read::{ColdRead, Cursor, ReadOutcome};
pub use replay::EntryRef;
pub use seal::SealDue;
pub use snapshot::{Boundary, SNAPSHOT_READ_MAX, SNAPSHOTS_MAX, Snapshot};
pub(crate) use tail::{Entry, Mark, MarkKind, Pending};

/// One replica's log. All methods take `&self`; appends must come from one thread at a time.
#[derive(Debug)]
pub struct Log {
    spec: ReplicaSpec,
    pub(crate) shared: Arc<Shared>,
    config: RwLock<Arc<LogConfig>>,
    state: Mutex<State>,
    /// Live files in order. Written under `state`, read by readers alone.
    files: RwLock<Vec<Arc<Segment>>>,
    high_watermark: AtomicI64,
    log_start: AtomicI64,
    end_offset: AtomicI64,
    size_bytes: AtomicU64,
    /// Where the last calls of [`Log::frames`] ended.
    hints: frames::Hints,
    /// A snapshot is on its way in.
    pub(crate) staging: AtomicBool,
}

/// What the writer, the flusher and the checkpoint share. Held for one append at most.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) hard: HardState,
    /// Counts the hard states that were set; the commit index alone does not count.
    pub(crate) hard_version: u64,
    /// Hard states up to this version are durable.
    pub(crate) hard_durable: u64,
    /// A commit index that is in a cycle that was synced.
    pub(crate) commit_durable: u64,
    /// The replica itself is not in a cycle yet.
    pub(crate) unborn: bool,
    /// Behind the last entry.
    pub(crate) tail: Place,
    /// The next append starts a file.
    pub(crate) tail_closed: bool,
    /// Entries behind the commit index, oldest first.
    pub(crate) entries: VecDeque<Entry>,
    /// Frames that no cycle took yet, oldest first.
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) pending_bytes: u64,
    /// An install that is in no cycle yet.
    pub(crate) install: Option<install::InstallRecord>,
    /// Files whose header is in no cycle yet.
    pub(crate) new_files: Vec<Arc<Segment>>,
    /// Syncs under way, in the order of the entries they cover.
    pub(crate) marks: VecDeque<Mark>,
    /// Every entry up to here is durable.
    pub(crate) durable: u64,
    /// Behind the last committed entry.
    pub(crate) committed: Place,
    /// Producer state as of the last entry, and as of the last committed one.
    pub(crate) producers: Producers,
    pub(crate) producers_committed: Producers,
    /// Encoded `producers_committed`, while it did not change.
    pub(crate) producers_encoded: Option<Arc<Vec<u8>>>,
    /// Terms of the entries.
    pub(crate) terms: TermRuns,
    pub(crate) memberships: Memberships,
    /// Damage took terms or config entries that nothing else tells of.
    pub(crate) unproven: Option<String>,
    /// Files that are not part of the log any more; deleted after the next checkpoint.
    pub(crate) dead: Vec<Arc<Segment>>,
    /// Waits in the queue for a cycle.
    pub(crate) queued: bool,
    /// A seal of a file is under way or waits.
    pub(crate) sealing: Vec<crate::ids::FileId>,
    /// Complete files whose successor is not announced yet.
    pub(crate) complete: Vec<seal::Complete>,
    /// The newest end of a file that this process sealed, with what its footer says.
    pub(crate) sealed: Option<snapshot::Sealed>,
    /// Snapshots that are being sent.
    pub(crate) pins: snapshot::Pins,
    /// Append time of the first entry of the active file, ms.
    pub(crate) active_since_ms: Option<i64>,
    /// Damage that leaves the last index unprovable: nothing may be appended.
    pub(crate) broken: Option<String>,
    pub(crate) removed: bool,
}

/// What recovery or creation knows of a log.
#[derive(Debug)]
pub(crate) struct LogParts {
    pub(crate) hard: HardState,
    pub(crate) unborn: bool,
    pub(crate) tail: Place,
    pub(crate) tail_closed: bool,
    pub(crate) log_start: i64,
    pub(crate) committed: Place,
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) producers: Producers,
    pub(crate) producers_committed: Producers,
    pub(crate) terms: TermRuns,
    pub(crate) memberships: Memberships,
    pub(crate) unproven: Option<String>,
    pub(crate) files: Vec<Arc<Segment>>,
    pub(crate) dead: Vec<Arc<Segment>>,
    pub(crate) broken: Option<String>,
}

impl LogParts {
    /// A log without entries.
    pub(crate) fn empty(spec: &ReplicaSpec) -> LogParts {
        let origin = Place {
            chain: frame::chain_seed(spec.topic, spec.partition),
            ..Place::default()
        };
        LogParts {
            hard: HardState::default(),
            unborn: true,
            tail: origin,
            tail_closed: false,
            log_start: 0,
            committed: origin,
            entries: VecDeque::new(),
            producers: Producers::default(),
            producers_committed: Producers::default(),
            terms: TermRuns::at(0, 0),
            memberships: Memberships::new(Membership::default()),
            unproven: None,
            files: Vec::new(),
            dead: Vec::new(),
            broken: None,
        }
    }
}

impl Log {
    pub(crate) fn new(
        shared: Arc<Shared>,
        spec: ReplicaSpec,
        config: LogConfig,
        parts: LogParts,
    ) -> Log {
        let size = parts.files.iter().map(|f| f.end()).sum();
        // When the active file's first entry was appended is not kept: the entry before it, or the last, is near.
        let since = parts.files.last().map(|f| match f.first.time_ms {
            0 => parts.tail.time_ms,
            before => before,
        });
        Log {
            spec,
            shared,
            config: RwLock::new(Arc::new(config)),
            high_watermark: AtomicI64::new(parts.committed.next_offset),
            log_start: AtomicI64::new(parts.log_start),
            end_offset: AtomicI64::new(parts.tail.next_offset),
            size_bytes: AtomicU64::new(size),
            files: RwLock::new(parts.files),
            hints: frames::Hints::default(),
            staging: AtomicBool::new(false),
            state: Mutex::new(State {
                hard: parts.hard,
                hard_version: 0,
                hard_durable: 0,
                commit_durable: parts.hard.commit,
                unborn: parts.unborn,
                durable: parts.tail.index,
                tail: parts.tail,
                tail_closed: parts.tail_closed,
                entries: parts.entries,
                pending: VecDeque::new(),
                pending_bytes: 0,
                install: None,
                new_files: Vec::new(),
                marks: VecDeque::new(),
                committed: parts.committed,
                producers: parts.producers,
                producers_committed: parts.producers_committed,
                producers_encoded: None,
                terms: parts.terms,
                memberships: parts.memberships,
                unproven: parts.unproven,
                dead: parts.dead,
                queued: false,
                sealing: Vec::new(),
                complete: Vec::new(),
                sealed: None,
                pins: snapshot::Pins::default(),
                active_since_ms: since,
                broken: parts.broken,
                removed: false,
            }),
        }
    }

    /// What this is a replica of.
    pub fn spec(&self) -> &ReplicaSpec {
        &self.spec
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<LogConfig> {
        self.config.read().clone()
    }

    /// Changes the settings; a new segment size counts from the next file on.
    pub fn set_config(&self, config: LogConfig) {
        *self.config.write() = Arc::new(config);
    }

    /// Index of the last entry; 0 when there is none.
    pub fn last_index(&self) -> u64 {
        self.state.lock().tail.index
    }

    /// Term of the last entry; 0 when there is none.
    pub fn last_term(&self) -> u64 {
        self.state.lock().tail.term
    }

    /// Chain up to the last entry.
    pub fn last_chain(&self) -> u64 {
        self.state.lock().tail.chain
    }

    /// Every entry up to this index is committed.
    pub fn commit_index(&self) -> u64 {
        self.state.lock().committed.index
    }

    /// First offset that is kept.
    pub fn log_start(&self) -> i64 {
        self.log_start.load(Ordering::Acquire)
    }

    /// First offset that is not readable yet.
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// Offset of the next record appended.
    pub fn end_offset(&self) -> i64 {
        self.end_offset.load(Ordering::Acquire)
    }

    /// Bytes in segment files.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Number of segment files.
    pub fn segments(&self) -> usize {
        self.files.read().len()
    }

    /// Ranges of offsets found damaged so far.
    pub fn quarantined(&self) -> Vec<Range<i64>> {
        let files = self.files.read();
        let damage = files.iter().flat_map(|f| f.damage());
        damage.map(|d| d.offsets.0..d.offsets.1).collect()
    }

    /// Why nothing may be appended although the directory is writable: damage hides the last entry.
    pub fn broken(&self) -> Option<String> {
        self.state.lock().broken.clone()
    }

    pub(crate) fn with_state<T>(
        &self,
        work: impl FnOnce(&mut State, &RwLock<Vec<Arc<Segment>>>) -> T,
    ) -> T {
        work(&mut self.state.lock(), &self.files)
    }

    /// Puts the log into the queue for the next cycle.
    pub(crate) fn enqueue(self: &Arc<Self>, state: &mut State) {
        if !state.queued {
            state.queued = true;
            self.shared.mark_dirty(self);
        }
    }

    fn check_writable(&self, state: &State) -> Result<()> {
        self.shared.check_poison()?;
        if state.removed {
            return Err(Error::Refused("the replica was removed".into()));
        }
        match &state.broken {
            None => Ok(()),
            Some(why) => Err(Error::Poisoned { why: why.clone() }),
        }
    }
}
