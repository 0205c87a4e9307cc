//! One broker: its disk, and while it runs its store, its replicas, and the work that is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use timberline_consensus::{Alive, Group, NodeId};
use timberline_storage::disk::FaultDisk;
use timberline_storage::{
    Checkpoint, CheckpointSync, Cycle, DirectSync, Error, Log, Store, StoreOptions,
};

use crate::checker::Told;

/// The data directory.
pub(crate) const DIR: &str = "/data";

/// Who waits for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A producer's batch, by its place in the group's list of producers.
    Producer {
        at: usize,
        epoch: i16,
        sequence: i32,
    },
    Trim,
    Nobody,
}

/// A proposal whose commit somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) index: u64,
    /// `None` for a duplicate whose original is trimmed.
    pub(crate) term: Option<u64>,
    pub(crate) waiter: Waiter,
    pub(crate) told: Told,
}

/// A replica that takes part.
pub(crate) struct Replica {
    pub(crate) of: usize,
    /// Counts openings, of all replicas together.
    pub(crate) opening: u64,
    pub(crate) group: Group<Arc<Log>>,
    /// In the order of indexes.
    pub(crate) pending: VecDeque<Pending>,
    /// Commit index that was shown to the checkers.
    pub(crate) shown: u64,
    pub(crate) led: bool,
    pub(crate) is_stopped: bool,
    /// It is silent, and its clock is not touched before.
    pub(crate) parked_until: Option<u64>,
}

/// Shards of a broker. One thread drives them here, but each beats in its own phase.
pub(crate) const SHARDS: usize = 2;

/// A process.
pub(crate) struct Running {
    pub(crate) store: Store,
    pub(crate) replicas: BTreeMap<NodeId, Replica>,
    /// The cycle in flight, and whether it was run.
    pub(crate) cycle: Option<(Cycle, bool)>,
    pub(crate) directs: BTreeMap<u64, (DirectSync, bool)>,
    /// The clock of its groups, and the shards that it heard.
    pub(crate) alive: Alive,
    /// With what is to be synced before it ends.
    pub(crate) checkpoint: Option<(Checkpoint, Vec<CheckpointSync>)>,
    /// Replicas with something to work off.
    pub(crate) dirty: BTreeSet<NodeId>,
    pub(crate) turn_due: bool,
    pub(crate) flush_due: bool,
    /// A write or a sync failed: nothing takes part any more, reads go on.
    pub(crate) poisoned: bool,
}

impl Running {
    pub(crate) fn new(store: Store) -> Running {
        Running {
            store,
            replicas: BTreeMap::new(),
            cycle: None,
            directs: BTreeMap::new(),
            alive: Alive::default(),
            checkpoint: None,
            dirty: BTreeSet::new(),
            turn_due: false,
            flush_due: false,
            poisoned: false,
        }
    }
}

pub(crate) struct Broker {
    pub(crate) disk: FaultDisk,
    pub(crate) options: StoreOptions,
    /// Counts starts; events of an earlier life mean nothing.
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    /// It does nothing until then, as if stopped by a signal.
    pub(crate) paused_until: u64,
    /// Its syncs take long until then.
    pub(crate) slow_until: u64,
    /// The disk has a limit.
    pub(crate) full: bool,
    /// It is kept down.
    pub(crate) kept_down: bool,
    pub(crate) skew_ms: i64,
    /// Writes and syncs that had failed when the store was opened.
    pub(crate) failures_before: u64,
}

impl Broker {
    pub(crate) fn new(disk: FaultDisk, options: StoreOptions, skew_ms: i64) -> Broker {
        Broker {
            disk,
            options,
            life: 0,
            running: None,
            paused_until: 0,
            slow_until: 0,
            full: false,
            kept_down: false,
            skew_ms,
            failures_before: 0,
        }
    }

    pub(crate) fn failures(&self) -> u64 {
        let stats = self.disk.stats();
        stats.failed_syncs + stats.write_errors
    }

    /// A write or a sync failed since the store was opened.
    pub(crate) fn write_failed(&self) -> bool {
        self.failures() > self.failures_before
    }

    /// Whether an error may be, as things stand.
    pub(crate) fn may_fail(&self, error: &Error) -> bool {
        self.disk.crashed()
            || match error {
                Error::StorageFull { .. } => self.full || self.write_failed(),
                Error::InUse { .. } => true,
                _ => self.write_failed(),
            }
    }

    /// Takes part: up, and its disk in order.
    pub(crate) fn works(&self) -> bool {
        self.running.as_ref().is_some_and(|r| !r.poisoned)
    }
}
