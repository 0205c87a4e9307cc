//! The simulator: one seed, one history of a store over a fault disk, with crashes wherever the seed says.
//!
//! The disk's work is taken from the store as values and done step by step, in any order that the product's threads
//! could do it in; between the steps the environment acts, the disk writes back, runs full, or fails. A crash is the
//! disk's fuse, a kill or a power loss at any operation, recovery's own included. After each recovery every log is
//! compared with the oracle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use timberline_record::BatchHeader;
use timberline_storage::bugs::Bug;
use timberline_storage::disk::{Disk, FaultDisk, fault::Fault};
use timberline_storage::{
    Checkpoint, CheckpointSync, Cycle, DirectSync, Error, JOURNAL_BYTES_MIN, Log, Opened,
    RecoveryReport, ReplicaId, SealDue, Store, StoreOptions, WriteBack,
};
use uuid::Uuid;

use crate::installs::Incoming;
use crate::oracle::{Check, Promise, Replica, ensure};
use crate::rng::Rng;
use crate::workload;

/// The data directory.
pub(crate) const DIR: &str = "/data";
/// Lines of trace kept for a failure.
const TRACE_MAX: usize = 400;
/// Crashes during one recovery, at most.
const RECOVERY_CRASHES_MAX: u64 = 4;
/// Steps that settling may take: more means that something never ends.
const SETTLE_STEPS_MAX: u32 = 10_000;

/// What a run is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Steps of a history.
    pub(crate) steps: u32,
    pub(crate) bug: Option<Bug>,
    /// Which damage ends the history: `None` for any, otherwise an index into the kinds there are.
    pub(crate) damage: Option<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            steps: 2_000,
            bug: None,
            damage: None,
        }
    }
}

/// Defines the counters of a run, with their sum and their printed form.
macro_rules! stats {
    ($($name:ident),* $(,)?) => {
        /// What histories met.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Stats { $(pub $name: u64),* }

        impl Stats {
            pub(crate) fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }

            pub(crate) fn lines(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    steps, appends, sent, acked, reads, cycles, direct_syncs, write_backs, prewrites, checkpoints, seals, laps, ring_full,
    truncations, log_starts, removed, crashes, kills, power_losses, crashes_in_recovery, tails_cut,
    failed_writes, full_disks, refused, clean_stops, poisoned, damage_episodes, quarantined, broken_logs,
    tables_lost, files_deleted, installs_begun, installs,
}

/// The end of a run.
pub(crate) struct Outcome {
    pub(crate) stats: Stats,
    /// Of everything that happened, and of the disk at the end.
    pub(crate) hash: u64,
    pub(crate) failure: Option<String>,
    pub(crate) trace: VecDeque<String>,
}

/// How a seed's history differs from another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Percent of the occasions on which a fuse is lit.
    fuse: u64,
    /// Weight of a crash out of the blue.
    crash: u64,
    /// Weight of the beginning of a checkpoint: low, and the ring runs full.
    checkpoint: u64,
    /// Weight of a checkpoint's steps: low, and it lasts for laps of the ring.
    linger: u64,
    /// Weight of each step of a cycle: high, and the ring goes round fast.
    cycles: u64,
    /// Weights of small, medium, large and huge batches.
    pub(crate) sizes: [u64; 4],
}

impl Profile {
    fn of(rng: &mut Rng) -> Profile {
        Profile {
            fuse: rng.pick(&[5, 20, 60]),
            crash: rng.pick(&[0, 1, 4]),
            checkpoint: rng.pick(&[24, 24, 6, 1]),
            linger: rng.pick(&[80, 80, 20, 5]),
            cycles: rng.pick(&[110, 110, 300]),
            sizes: rng.pick(&[[60, 28, 10, 2], [30, 60, 10, 0], [90, 10, 0, 0]]),
        }
    }
}

/// One history under way.
pub(crate) struct Sim {
    pub(crate) rng: Rng,
    pub(crate) profile: Profile,
    pub(crate) disk: FaultDisk,
    pub(crate) options: StoreOptions,
    store: Option<Store>,
    pub(crate) logs: BTreeMap<u64, Arc<Log>>,
    pub(crate) replicas: BTreeMap<u64, Replica>,
    /// The cycle in flight, and whether it was run.
    cycle: Option<(Cycle, bool)>,
    directs: Vec<(DirectSync, bool)>,
    /// Write-back ahead of a checkpoint: it may run whenever, or never.
    write_backs: Vec<WriteBack>,
    /// So may zeros ahead of the journal's head.
    prewrite: bool,
    checkpoint: Option<(Checkpoint, Vec<CheckpointSync>)>,
    seals: Vec<SealDue>,
    /// Snapshots on their way in, by replica.
    pub(crate) installs: BTreeMap<u64, Incoming>,
    /// Removed when the checkpoint under way began.
    going: BTreeSet<u64>,
    pub(crate) now_ms: i64,
    pub(crate) next_replica: u64,
    pub(crate) template: BatchHeader,
    /// The disk has a limit.
    full: bool,
    /// Writes and syncs that had failed when the store was opened: one more may poison it.
    failures_before: u64,
    /// The last stop was clean.
    clean: bool,
    /// The recovery before the one that ended did not.
    recovery_cut: bool,
    /// Damage was done to the directory.
    pub(crate) damaged: bool,
    /// The journal's own bytes were damaged: its last cycle looks torn then.
    pub(crate) journal_damaged: bool,
    pub(crate) stats: Stats,
    hasher: DefaultHasher,
    trace: VecDeque<String>,
}

/// Runs one seed. A panic of the code under test is a failure like any other.
pub(crate) fn run(seed: u64, settings: &Settings) -> Outcome {
    let mut sim = Sim::new(seed, settings);
    let result = catch_unwind(AssertUnwindSafe(|| sim.history(settings)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(panic) => Some(panic_text(&*panic)),
    };
    if failure.is_some() {
        // What is left of a broken store may panic again: it is not dropped.
        sim.stats.failed_writes = sim.failures();
        let outcome = Outcome {
            stats: sim.stats,
            hash: 0,
            failure,
            trace: std::mem::take(&mut sim.trace),
        };
        std::mem::forget(sim);
        return outcome;
    }
    sim.drop_store();
    sim.stats.failed_writes = sim.failures();
    sim.disk.state_hash().hash(&mut sim.hasher);
    Outcome {
        stats: sim.stats,
        hash: sim.hasher.finish(),
        failure: None,
        trace: std::mem::take(&mut sim.trace),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    format!("panic: {}", text.unwrap_or_default())
}

impl Sim {
    pub(crate) fn new(seed: u64, settings: &Settings) -> Sim {
        let mut rng = Rng::new(seed);
        let options = StoreOptions {
            journal_bytes: JOURNAL_BYTES_MIN,
            direct_sync_bytes: rng.pick(&[4 << 10, 16 << 10, 64 << 10, 1 << 20]),
            write_back_bytes: rng.pick(&[8 << 10, 64 << 10, 1 << 20]),
            checkpoint_bytes: rng.pick(&[64 << 10, 256 << 10, 1 << 20]),
            open_files_max: rng.pick(&[2, 8, 1_000]),
            directory_id: Some(Uuid::from_u128(1)),
            bug: settings.bug,
            ..StoreOptions::default()
        };
        Sim {
            disk: FaultDisk::new(seed),
            profile: Profile::of(&mut rng),
            rng,
            options,
            store: None,
            logs: BTreeMap::new(),
            replicas: BTreeMap::new(),
            cycle: None,
            directs: Vec::new(),
            write_backs: Vec::new(),
            prewrite: false,
            checkpoint: None,
            seals: Vec::new(),
            installs: BTreeMap::new(),
            going: BTreeSet::new(),
            now_ms: 1_000_000,
            next_replica: 0,
            template: workload::template(),
            full: false,
            failures_before: 0,
            clean: false,
            recovery_cut: false,
            damaged: false,
            journal_damaged: false,
            stats: Stats::default(),
            hasher: DefaultHasher::new(),
            trace: VecDeque::new(),
        }
    }

    pub(crate) fn note(&mut self, line: String) {
        line.hash(&mut self.hasher);
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub(crate) fn checkpoint_runs(&self) -> bool {
        self.checkpoint.is_some()
    }

    pub(crate) fn store(&self) -> Store {
        self.store.clone().expect("a step runs on an open store")
    }

    pub(crate) fn log(&self, id: u64) -> Arc<Log> {
        self.logs[&id].clone()
    }

    pub(crate) fn replica(&mut self, id: u64) -> &mut Replica {
        self.replicas.get_mut(&id).expect("the id is of the map")
    }

    fn history(&mut self, settings: &Settings) -> Check {
        self.maybe_arm_fuse();
        self.open()?;
        for _ in 0..settings.steps {
            self.stats.steps += 1;
            self.step()?;
            self.look_around()?;
        }
        self.damage_episode(settings.damage)
    }

    fn maybe_arm_fuse(&mut self) {
        if self.rng.chance(self.profile.fuse) {
            let scale = self.rng.pick(&[10, 100, 1_000, 4_000]);
            let ops = self.rng.below(scale);
            self.note(format!("fuse {ops}"));
            self.disk.crash_after(ops);
        }
    }

    fn step(&mut self) -> Check {
        let Profile {
            crash,
            checkpoint,
            linger,
            cycles,
            ..
        } = self.profile;
        let weights = [
            480, cycles, cycles, cycles, 90, checkpoint, linger, 40, 20, 6, crash, 4, 4, 3, 3, 20,
            5, 60,
        ];
        match self.rng.weighted(&weights) {
            0 => self.environment(),
            1 => self.begin_cycle(),
            2 => self.run_cycle(),
            3 => self.finish_cycle(),
            4 => self.step_direct(),
            5 => self.begin_checkpoint(),
            6 => self.step_checkpoint(),
            7 => self.step_seal(),
            8 => {
                let sectors = self.rng.within(1, 40);
                self.disk.writeback(sectors);
                Ok(())
            }
            9 => {
                self.maybe_arm_fuse();
                Ok(())
            }
            10 => self.crash(),
            11 => self.plan_failure(),
            12 => self.change_capacity(),
            13 => self.settle(),
            14 => self.close(),
            15 => self.step_ahead(),
            17 => self.step_install(),
            _ => self.check_all(false),
        }
    }

    /// After each step: has the disk crashed, is the store poisoned, what became durable?
    fn look_around(&mut self) -> Check {
        if self.disk.crashed() {
            return self.crash();
        }
        if let Some(why) = self.store().poisoned() {
            ensure!(self.write_failed(), "poisoned without a fault: {why}");
            self.stats.poisoned += 1;
            if self.rng.chance(25) {
                return self.crash();
            }
        }
        self.note_durable()
    }

    /// A write or a sync failed since the store was opened.
    pub(crate) fn write_failed(&self) -> bool {
        self.failures() > self.failures_before
    }

    fn failures(&self) -> u64 {
        let stats = self.disk.stats();
        stats.failed_syncs + stats.write_errors
    }

    /// Whether an error may be, as things stand.
    pub(crate) fn judge(&mut self, what: &str, error: Error) -> Check {
        let allowed = self.disk.crashed()
            || match &error {
                Error::StorageFull { .. } => self.full || self.write_failed(),
                Error::Poisoned { .. } => self.store().poisoned().is_some() || self.damaged,
                _ => self.write_failed(),
            };
        self.note(format!("{what}: {error}"));
        ensure!(allowed, "{what}: {error}");
        Ok(())
    }

    fn note_durable(&mut self) -> Check {
        for (id, log) in &self.logs {
            if let Some(replica) = self.replicas.get_mut(id) {
                self.stats.acked += replica.is_acked_by(log)?;
            }
        }
        Ok(())
    }

    fn begin_cycle(&mut self) -> Check {
        let closing = self.rng.chance(20);
        let work = self.store().begin_cycle(closing);
        self.stats.ring_full += u64::from(work.ring_full);
        self.write_backs.extend(work.write_back);
        self.prewrite |= work.prewrite;
        if work.cycle.is_none() && work.direct.is_empty() {
            return Ok(());
        }
        self.note(format!(
            "begin cycle {} and {} direct, ring full {}",
            work.cycle.is_some(),
            work.direct.len(),
            work.ring_full
        ));
        for direct in work.direct {
            self.directs.push((direct, false));
        }
        if let Some(cycle) = work.cycle {
            ensure!(self.cycle.is_none(), "two cycles in flight");
            self.cycle = Some((cycle, false));
        }
        Ok(())
    }

    fn run_cycle(&mut self) -> Check {
        let store = self.store();
        let Some((cycle, ran)) = &mut self.cycle else {
            return Ok(());
        };
        if *ran {
            return Ok(());
        }
        match store.run_cycle(cycle) {
            Ok(()) => {
                *ran = true;
                self.note("ran cycle".into());
                Ok(())
            }
            Err(error) => {
                self.cycle = None;
                self.judge("running a cycle", error)
            }
        }
    }

    fn finish_cycle(&mut self) -> Check {
        let Some((cycle, true)) = self.cycle.take_if(|(_, ran)| *ran) else {
            return Ok(());
        };
        let durable = |logs: &BTreeMap<u64, Arc<Log>>| -> Vec<_> {
            let of = |(&id, log): (&u64, &Arc<Log>)| (ReplicaId(id), log.durability());
            logs.iter().map(of).collect()
        };
        let before = durable(&self.logs);
        let updates = self.store().finish_cycle(cycle);
        self.note(format!("finish cycle {updates:?}"));
        for (before, (id, after)) in before.iter().zip(durable(&self.logs)) {
            ensure!(
                before.1 == after || updates.contains(&(id, after.index)),
                "{id}: became durable up to {after:?}, and nobody is told"
            );
        }
        for replica in self.replicas.values_mut() {
            replica.before_last_cycle = replica.acked;
        }
        self.note_durable()?;
        for (replica, index) in updates {
            let known = self.replicas.get(&replica.0).filter(|r| !r.removed);
            ensure!(
                known.is_none_or(|r| r.acked >= index),
                "{replica}: told durable {index} of a log that says less"
            );
        }
        Ok(())
    }

    /// What the store does ahead of need.
    fn step_ahead(&mut self) -> Check {
        if self.prewrite && self.rng.chance(50) {
            self.prewrite = false;
            return match self.store().prewrite() {
                Ok(()) => {
                    self.stats.prewrites += 1;
                    Ok(())
                }
                Err(error) => self.judge("zeros ahead of the journal", error),
            };
        }
        if !self.write_backs.is_empty() {
            let at = self.rng.below(self.write_backs.len() as u64) as usize;
            let piece = self.write_backs.swap_remove(at);
            self.store().run_write_back(&piece);
            self.stats.write_backs += 1;
        }
        Ok(())
    }

    fn step_direct(&mut self) -> Check {
        if self.directs.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.directs.len() as u64) as usize;
        let store = self.store();
        if !self.directs[at].1 {
            return match store.run_direct(&self.directs[at].0) {
                Ok(()) => {
                    self.directs[at].1 = true;
                    self.note("ran direct".into());
                    Ok(())
                }
                Err(error) => {
                    self.directs.swap_remove(at);
                    self.judge("a direct sync", error)
                }
            };
        }
        let (direct, _) = self.directs.swap_remove(at);
        store.finish_direct(direct);
        self.note("finish direct".into());
        self.note_durable()
    }

    pub(crate) fn begin_checkpoint(&mut self) -> Check {
        if self.checkpoint.is_none()
            && let Some(mut checkpoint) = self.store().begin_checkpoint()
        {
            let syncs = checkpoint.take_syncs();
            self.note(format!("begin {checkpoint} with {} syncs", syncs.len()));
            self.checkpoint = Some((checkpoint, syncs));
            let removed = self.replicas.iter().filter(|(_, r)| r.removed);
            self.going = removed.map(|(&id, _)| id).collect();
        }
        Ok(())
    }

    pub(crate) fn step_checkpoint(&mut self) -> Check {
        let store = self.store();
        let Some((_, syncs)) = &mut self.checkpoint else {
            return Ok(());
        };
        if let Some(sync) = syncs.pop() {
            return match store.run_checkpoint_sync(&sync) {
                Ok(()) => Ok(()),
                Err(error) => {
                    self.checkpoint = None;
                    self.judge("a checkpoint's sync", error)
                }
            };
        }
        let Some((checkpoint, _)) = self.checkpoint.take() else {
            return Ok(());
        };
        match store.finish_checkpoint(checkpoint) {
            Ok(()) => {
                self.note("finish checkpoint".into());
                for id in std::mem::take(&mut self.going) {
                    if let Some(replica) = self.replicas.get_mut(&id) {
                        replica.gone = true;
                    }
                }
                Ok(())
            }
            Err(error) => self.judge("finishing a checkpoint", error),
        }
    }

    fn step_seal(&mut self) -> Check {
        let store = self.store();
        if self.rng.chance(50)
            && let Some(seal) = store.begin_seal()
        {
            self.seals.push(seal);
        }
        if self.rng.chance(50) || self.seals.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.seals.len() as u64) as usize;
        let seal = self.seals.swap_remove(at);
        match store.run_seal(seal) {
            Ok(()) => {
                self.stats.seals += 1;
                self.note("sealed".into());
                Ok(())
            }
            Err(Error::Damaged { .. }) if self.damaged => Ok(()),
            Err(error) => self.judge("sealing", error),
        }
    }

    fn plan_failure(&mut self) -> Check {
        let part = self
            .rng
            .pick(&["journal", ".seg", "table", "table", "logs"]);
        let skip = self.rng.below(4);
        let fault = self.rng.pick(&[
            Fault::SyncError,
            Fault::SyncError,
            Fault::SyncFull,
            Fault::WriteError,
        ]);
        self.note(format!("{fault:?} at {part} after {skip}"));
        self.disk.inject(fault, part, skip);
        Ok(())
    }

    fn change_capacity(&mut self) -> Check {
        if self.full {
            self.lift_capacity();
            return Ok(());
        }
        let dir = Path::new(DIR);
        let (Ok(total), Ok(free)) = (self.disk.total_bytes(dir), self.disk.free_bytes(dir)) else {
            return Ok(());
        };
        let spare = self.rng.pick(&[0, 4_096, 30_000, 200_000]);
        self.note(format!("disk full but for {spare}"));
        self.disk.set_capacity(Some(total - free + spare));
        self.full = true;
        self.stats.full_disks += 1;
        Ok(())
    }

    pub(crate) fn lift_capacity(&mut self) {
        self.note("disk is freed".into());
        self.disk.set_capacity(None);
        self.full = false;
    }

    /// Does all that waits, in order; then everything must be durable.
    pub(crate) fn settle(&mut self) -> Check {
        self.note("settle".into());
        for _ in 0..SETTLE_STEPS_MAX {
            if self.disk.crashed() || self.store().poisoned().is_some() {
                return Ok(());
            }
            if self.cycle.is_some() {
                self.run_cycle()?;
                self.finish_cycle()?;
                continue;
            }
            if !self.directs.is_empty() {
                self.step_direct()?;
                continue;
            }
            let work = self.store().begin_cycle(false);
            if work.is_empty() && work.ring_full {
                self.begin_checkpoint()?;
                while self.checkpoint.is_some() {
                    self.step_checkpoint()?;
                }
                if self.full {
                    self.lift_capacity();
                }
                continue;
            }
            if work.is_empty() {
                return self.check_settled();
            }
            self.directs
                .extend(work.direct.into_iter().map(|d| (d, false)));
            self.cycle = work.cycle.map(|c| (c, false));
        }
        Err("what waits never becomes durable".into())
    }

    fn check_settled(&mut self) -> Check {
        self.note_durable()?;
        for (id, log) in &self.logs {
            ensure!(
                log.durable_index() == log.last_index() && log.is_hard_state_durable(),
                "r{id}: nothing waits, last {} is durable up to {}, hard state durable: {}",
                log.last_index(),
                log.durable_index(),
                log.is_hard_state_durable()
            );
        }
        Ok(())
    }

    fn close(&mut self) -> Check {
        if self.try_close()? {
            self.crash()?;
        }
        Ok(())
    }

    /// A clean stop; false when something came in between.
    pub(crate) fn try_close(&mut self) -> Check<bool> {
        self.settle()?;
        if self.rng.chance(50) {
            while let Some(seal) = self.seals.pop().or_else(|| self.store().begin_seal()) {
                if let Err(error) = self.store().run_seal(seal) {
                    self.judge("sealing", error)?;
                    break;
                }
            }
        }
        while self.checkpoint.is_some() {
            self.step_checkpoint()?;
        }
        if self.disk.crashed() || self.store().poisoned().is_some() {
            return Ok(false);
        }
        if self.rng.chance(50) {
            self.check_leaks()?;
            if self.disk.crashed() || self.store().poisoned().is_some() {
                return Ok(false);
            }
        }
        match self.store().close() {
            Ok(()) => {
                self.note("closed".into());
                self.stats.clean_stops += 1;
                self.clean = true;
                for replica in self.replicas.values_mut() {
                    replica.gone |= replica.removed;
                }
                Ok(true)
            }
            Err(error) => self.judge("closing", error).map(|()| false),
        }
    }

    /// The process ends, or the power fails; then recovery, which may be stopped the same way.
    pub(crate) fn crash(&mut self) -> Check {
        self.end_process();
        self.open()
    }

    pub(crate) fn end_process(&mut self) {
        self.stats.crashes += 1;
        let kill = self.rng.chance(50);
        let evict = self.rng.chance(20);
        self.note(if kill { "kill" } else { "power loss" }.to_owned());
        // Nobody is left to tidy up what is staged.
        self.disk.crash_after(0);
        self.installs.clear();
        if kill {
            self.disk.kill();
            self.stats.kills += 1;
            if evict {
                self.disk.evict_clean();
            }
        } else {
            self.disk.power_loss();
            self.stats.power_losses += 1;
        }
        self.drop_store();
    }

    pub(crate) fn drop_store(&mut self) {
        if let Some(store) = &self.store {
            let stats = store.stats();
            self.stats.cycles += stats.journal_cycles;
            self.stats.direct_syncs += stats.direct_syncs;
            self.stats.checkpoints += stats.checkpoints;
            self.stats.laps = self
                .stats
                .laps
                .max(stats.journal_position / JOURNAL_BYTES_MIN);
        }
        self.cycle = None;
        self.directs.clear();
        self.write_backs.clear();
        self.prewrite = false;
        self.checkpoint = None;
        self.seals.clear();
        self.installs.clear();
        self.logs.clear();
        self.store = None;
    }

    /// Opens the store, through crashes of recovery itself, and compares all logs with the oracle.
    pub(crate) fn open(&mut self) -> Check {
        for attempt in 0.. {
            if attempt < RECOVERY_CRASHES_MAX {
                self.maybe_arm_fuse();
            }
            if attempt == 0 && self.write_failed() && self.rng.chance(50) {
                // What recovery makes of a failed sync must survive recovery's own end.
                let ops = self.rng.below(60);
                self.note(format!("fuse {ops}"));
                self.disk.crash_after(ops);
            }
            let outcome = self.try_open();
            let failed = self.write_failed() && outcome.is_err();
            if self.disk.crashed() || failed {
                drop(outcome);
                self.stats.crashes_in_recovery += 1;
                self.recovery_cut = true;
                self.end_process();
                continue;
            }
            match outcome {
                Ok(opened) => return self.opened(opened),
                Err(error) if self.full && is_full(&error) => self.lift_capacity(),
                Err(error) => return Err(format!("recovery: {error}")),
            }
        }
        Ok(())
    }

    pub(crate) fn try_open(&mut self) -> Result<Opened, Error> {
        self.failures_before = self.failures();
        Store::open(
            Arc::new(self.disk.clone()) as Arc<dyn Disk>,
            Path::new(DIR),
            self.options.clone(),
        )
    }

    pub(crate) fn opened(&mut self, opened: Opened) -> Check {
        let report = opened.report;
        self.note(format!("recovered {report:?}"));
        self.logs = opened
            .logs
            .into_iter()
            .map(|log| (log.spec().replica.0, log))
            .collect();
        self.store = Some(opened.store);
        self.stats.tables_lost += u64::from(report.table_lost);
        self.stats.files_deleted += report.files_deleted;
        let clean = std::mem::take(&mut self.clean);
        let uncut = !std::mem::take(&mut self.recovery_cut);
        if self.journal_damaged && self.store().poisoned().is_some() {
            // Cuts that the lost cycles told of are not known.
            for replica in self.replicas.values_mut() {
                replica.damaged = true;
            }
        }
        if !self.damaged {
            self.check_report(&report, clean && uncut)?;
        }
        self.check_replicas(clean)?;
        self.check_all(true)?;
        let poisoned = self.store().poisoned();
        ensure!(
            poisoned.is_none() || self.damaged || self.write_failed(),
            "poisoned after recovery: {poisoned:?}"
        );
        Ok(())
    }

    fn check_report(&self, report: &RecoveryReport, clean: bool) -> Check {
        ensure!(
            report.damage.is_empty() && report.foreign.is_empty(),
            "damage without a fault: {report:?}"
        );
        ensure!(!clean || report.clean, "a clean stop is not seen as one");
        Ok(())
    }

    /// When everything waits for nothing, two checkpoints leave no file that is not in use.
    fn check_leaks(&mut self) -> Check {
        self.drop_installs();
        for _ in 0..2 {
            self.begin_checkpoint()?;
            while self.checkpoint.is_some() {
                self.step_checkpoint()?;
            }
            if self.disk.crashed() || self.store().poisoned().is_some() {
                return Ok(());
            }
        }
        let stats = self.store().stats();
        let files = self.segment_files().len();
        ensure!(
            files == stats.segments,
            "{files} segment files, {} in use",
            stats.segments
        );
        let mut all = self.disk.files();
        all.retain(|(path, _)| path.extension().is_some_and(|e| e == "ins"));
        ensure!(all.is_empty(), "rows of installs are left: {all:?}");
        Ok(())
    }

    pub(crate) fn segment_files(&self) -> Vec<(PathBuf, u64)> {
        let mut files = self.disk.files();
        files.retain(|(path, _)| path.extension().is_some_and(|e| e == "seg"));
        files
    }

    /// Which replicas there must be, and what of them.
    fn check_replicas(&mut self, clean: bool) -> Check {
        for id in self.logs.keys() {
            ensure!(
                self.replicas.contains_key(id),
                "r{id} came back from the dead"
            );
        }
        let promise = if self.store().poisoned().is_some() && self.damaged {
            Promise::Nothing
        } else if self.journal_damaged {
            Promise::BeforeLastCycle
        } else {
            Promise::All
        };
        let damaged = self.damaged;
        let ids: Vec<u64> = self.replicas.keys().copied().collect();
        for id in ids {
            let log = self.logs.get(&id).cloned();
            let replica = self.replica(id);
            let Some(log) = log else {
                let promised = match promise {
                    Promise::All => replica.born,
                    Promise::BeforeLastCycle => replica.before_last_cycle > 0,
                    Promise::Nothing => false,
                };
                let lost = promised && !replica.removed;
                ensure!(!lost, "r{id} is lost");
                self.replicas.remove(&id);
                continue;
            };
            ensure!(
                !replica.gone || promise == Promise::Nothing,
                "r{id} was removed and came back"
            );
            replica.removed = false;
            let before = (replica.last(), replica.committed);
            replica.recovered(&log, promise)?;
            let cut = replica.last() < before.0;
            let after = (replica.last(), replica.committed);
            ensure!(
                // The table that was lost knew of a later commit.
                !clean || after == before || damaged,
                "r{id}: a clean stop changed (last, commit) from {before:?} to {after:?}"
            );
            ensure!(
                replica.damaged || log.broken().is_none() && log.quarantined().is_empty(),
                "r{id}: damage without a fault"
            );
            let config = self.log_config();
            log.set_config(config);
            self.stats.tails_cut += u64::from(cut);
        }
        Ok(())
    }

    /// Reads everything, asks everything.
    pub(crate) fn check_all(&mut self, fresh: bool) -> Check {
        let template = self.template;
        let ids: Vec<u64> = self.logs.keys().copied().collect();
        for id in ids {
            let log = self.log(id);
            let max = self.rng.pick(&[1, 5_000, 1 << 20]);
            let time = self.now_ms - self.rng.below(60_000) as i64;
            let first = log.first_stored_index();
            let last = log.last_index();
            let from = if first <= last {
                self.rng.within(first, last)
            } else {
                first
            };
            let every = if self.damaged { 1 } else { 7 };
            let replica = &self.replicas[&id];
            replica.check_figures(&log)?;
            replica.check_seeks(&log, every)?;
            let skipped = replica.check_reads(&log, log.log_start(), max)?;
            replica.check_time(&log, time)?;
            replica.check_bounds(&log)?;
            replica.check_replay(&log, from)?;
            replica.check_terms(&log)?;
            replica.check_membership(&log)?;
            replica.check_frames(&log, log.first_index(), last, max)?;
            if !replica.damaged {
                replica.check_producers(&log, &template)?;
            }
            if fresh {
                self.stats.quarantined += skipped.len() as u64;
            }
        }
        ensure!(
            self.disk.stats().mapped_bad_sectors == 0,
            "an unreadable sector was read through the map (INV-11)"
        );
        Ok(())
    }
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::StorageFull { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}
