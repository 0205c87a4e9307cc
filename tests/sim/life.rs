//! Brokers begin, end and come back.

use std::path::Path;
use std::sync::Arc;

use timberline_consensus::{ConfigEntry, Group, GroupOptions, Member, NodeId, Timing};
use timberline_storage::disk::Disk;
use timberline_storage::{EntryKind, Error, HardState, Log, Opened, ReplicaId, Store};

use crate::broker::{DIR, Replica, Running};
use crate::checker::{Check, Recovered, Terms, ensure};
use crate::shard::read_frames;
use crate::world::{Event, Planted, World};

/// Crashes during one recovery, at most.
const RECOVERY_CRASHES_MAX: u64 = 3;
/// Entries behind the commit index that are compared after most recoveries.
const COMPARED: u64 = 40;
/// Cycles that settling may take.
const SETTLE_MAX: u32 = 1_000;

/// How a broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// The process dies; the page cache survives.
    Kill,
    /// Unsynced sectors and directory entries are old or new.
    PowerLoss,
}

impl World {
    /// Starts the brokers and founds the groups, undisturbed.
    pub(crate) fn found(&mut self) -> Check {
        for broker in 0..self.brokers.len() {
            self.start(broker)?;
        }
        for group in 0..self.groups.len() {
            let brokers = self.profile.groups[group].brokers.clone();
            let voters: Vec<Member> = brokers
                .iter()
                .map(|&broker| Member {
                    node: self.place(group, broker),
                    broker: broker as i32,
                })
                .collect();
            let entry = ConfigEntry::founding(voters.clone());
            for member in voters {
                let log = self.make(member.broker as usize, member.node)?;
                let now = self.clock(0);
                let appended = log.append(1, EntryKind::Config, entry.encode(), now);
                appended.map_err(|e| format!("founding: {e}"))?;
                log.commit_to(1);
                log.set_hard_state(HardState {
                    term: 1,
                    vote: 0,
                    commit: 1,
                });
            }
        }
        for broker in 0..self.brokers.len() {
            self.settle(broker)?;
        }
        let nodes: Vec<NodeId> = self.replicas.keys().copied().collect();
        for node in nodes {
            let place = self.replicas[&node];
            self.show_durable(place.broker, node);
            self.open_replica(place.broker, node)?;
        }
        Ok(())
    }

    /// Makes what waits durable, at once.
    fn settle(&mut self, broker: usize) -> Check {
        let Some(running) = &self.brokers[broker].running else {
            return Ok(());
        };
        let store = running.store.clone();
        for _ in 0..SETTLE_MAX {
            let work = store.begin_cycle(false);
            if work.is_empty() {
                return Ok(());
            }
            for direct in work.direct {
                store.run_direct(&direct).map_err(|e| e.to_string())?;
                store.finish_direct(direct);
            }
            if let Some(cycle) = work.cycle {
                store.run_cycle(&cycle).map_err(|e| e.to_string())?;
                store.finish_cycle(cycle);
            }
        }
        Err("what waits never becomes durable".into())
    }

    /// Makes a replica's log.
    pub(crate) fn make(&mut self, broker: usize, node: NodeId) -> Check<Arc<Log>> {
        let (spec, group) = (self.spec(node), self.replicas[&node].group);
        let config = self.profile.log_config(group);
        let Some(running) = &self.brokers[broker].running else {
            return Err(format!("b{broker} is down"));
        };
        let made = running.store.create_replica(spec, config);
        made.map_err(|e| format!("b{broker}: making n{node}: {e}"))
    }

    /// Opens a replica's group on its log.
    pub(crate) fn open_replica(&mut self, broker: usize, node: NodeId) -> Check {
        let group = self.replicas[&node].group;
        let options = GroupOptions {
            node,
            tag: self.groups[group].tag,
            seed: self.rng.next(),
            timing: Timing::default(),
        };
        let failing = &self.brokers[broker];
        let Some(running) = &failing.running else {
            return Ok(());
        };
        let Some(log) = running.store.log(ReplicaId(node)) else {
            return Err(format!("b{broker}: n{node} has no log"));
        };
        log.set_config(self.profile.log_config(group));
        let opened = match self.settings.planted {
            Some(Planted::Consensus(bug)) => Group::open_planted(options, log.clone(), bug),
            _ => Group::open(options, log.clone()),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(_) if failing.disk.crashed() || failing.write_failed() => return Ok(()),
            Err(error) => return Err(format!("b{broker}: opening n{node}: {error}")),
        };
        self.openings += 1;
        let replica = Replica {
            of: group,
            opening: self.openings,
            group: opened,
            pending: Default::default(),
            shown: 0,
            led: false,
            is_stopped: false,
            parked_until: None,
        };
        if let Some(running) = &mut self.brokers[broker].running {
            running.replicas.insert(node, replica);
        }
        self.mark(broker, node);
        Ok(())
    }

    pub(crate) fn maybe_fuse(&mut self, broker: usize) {
        if !self.calm && self.rng.chance(self.profile.fuse) {
            let scale = self.rng.pick(&[10, 100, 1_000, 4_000]);
            let ops = self.rng.below(scale);
            self.stats.fuses += 1;
            self.brokers[broker].disk.crash_after(ops);
        }
    }

    /// Starts a broker: recovery, which may be stopped as anything else, and all its replicas.
    pub(crate) fn start(&mut self, broker: usize) -> Check {
        let founding = self.replicas.is_empty();
        for attempt in 0.. {
            if !founding && attempt < RECOVERY_CRASHES_MAX {
                self.maybe_fuse(broker);
            }
            let at = &mut self.brokers[broker];
            at.failures_before = at.failures();
            let disk = Arc::new(at.disk.clone()) as Arc<dyn Disk>;
            let outcome = Store::open(disk, Path::new(DIR), at.options.clone());
            if at.disk.crashed() || at.write_failed() && outcome.is_err() {
                drop(outcome);
                self.stats.crashes_in_recovery += 1;
                self.cut_power(broker, None);
                continue;
            }
            match outcome {
                Ok(opened) => return self.started(broker, opened),
                Err(error) if at.full && is_full(&error) => self.lift_capacity(broker),
                Err(error) => return Err(format!("b{broker}: recovery: {error}")),
            }
        }
        Ok(())
    }

    fn started(&mut self, broker: usize, opened: Opened) -> Check {
        let report = opened.report;
        ensure!(
            report.damage.is_empty() && report.foreign.is_empty(),
            "b{broker}: damage without a fault: {report:?}"
        );
        let at = &mut self.brokers[broker];
        at.life += 1;
        let life = at.life;
        at.running = Some(Running::new(opened.store.clone()));
        let now = self.now;
        self.trace.note(now, ("start", broker, life), || {
            format!("b{broker} starts, life {life}: {report:?}")
        });
        for log in opened.logs {
            let node = log.spec().replica.0;
            if !self.replicas.contains_key(&node) {
                // Its tombstone came while it was down.
                let removed = opened.store.remove_replica(ReplicaId(node));
                removed.map_err(|e| format!("b{broker}: removing n{node}: {e}"))?;
                continue;
            }
            self.show_recovered(broker, node, &log)?;
        }
        let here: Vec<NodeId> = self.replicas_of(broker);
        for node in here {
            if opened.store.log(ReplicaId(node)).is_none() {
                self.checker.missing(node)?;
                if let Err(why) = self.make(broker, node) {
                    ensure!(
                        self.brokers[broker].disk.crashed() || self.brokers[broker].write_failed(),
                        "{why}"
                    );
                    continue;
                }
            }
            self.open_replica(broker, node)?;
        }
        self.stats.recoveries += 1;
        let first = self.rng.below(self.profile.tick_ms[broker]);
        self.after(first, Event::Tick(broker, life));
        self.after(first + 3, Event::Upkeep(broker, life));
        self.look(broker)
    }

    fn replicas_of(&self, broker: usize) -> Vec<NodeId> {
        let here = self.replicas.iter().filter(|(_, p)| p.broker == broker);
        here.map(|(&node, _)| node).collect()
    }

    fn show_recovered(&mut self, broker: usize, node: NodeId, log: &Arc<Log>) -> Check {
        let (first, last, committed) = (log.first_index(), log.last_index(), log.commit_index());
        let from = match self.rng.chance(25) {
            true => first,
            false => first.max((committed + 1).saturating_sub(COMPARED)),
        };
        let frames = match from <= last {
            true => read_frames(log, from, last, &mut self.stats),
            false => Ok(Vec::new()),
        };
        let frames = match frames {
            Ok(frames) => frames,
            Err(_)
                if self.brokers[broker].disk.crashed() || self.brokers[broker].write_failed() =>
            {
                return Ok(());
            }
            Err(error) => {
                return Err(format!(
                    "b{broker}: n{node}: reading what was recovered: {error}"
                ));
            }
        };
        self.stats.tails_cut += u64::from(last < self.replicas[&node].last);
        self.stats.recovered_entries += frames.len() as u64;
        let hard = log.hard_state();
        let now = self.now;
        self.trace
            .note(now, (node, last, committed, hard.term, hard.vote), || {
                format!(
                    "n{node} recovers last {last} (first {first}), commit {committed}, {hard:?}"
                )
            });
        self.checker.recovered(&Recovered {
            group: self.replicas[&node].group,
            node,
            term: hard.term,
            vote: hard.vote,
            committed,
            log_start: log.log_start(),
            frames: &frames,
            terms: Terms {
                first,
                last,
                at: &|index| log.term_at(index),
            },
        })
    }

    /// A broker ends, in this way or any, and will come back.
    pub(crate) fn crash(&mut self, broker: usize, end: Option<End>) -> Check {
        if self.brokers[broker].running.is_none() {
            return Ok(());
        }
        self.stats.crashes += 1;
        self.end(broker);
        self.cut_power(broker, end);
        self.tell_others(broker);
        let delay = match self.calm {
            true => 20,
            false => self.rng.pick(&[20, 200, 1_500]),
        };
        let delay = self.rng.within(1, delay);
        let life = self.brokers[broker].life;
        if !self.brokers[broker].kept_down {
            self.after(delay, Event::Start(broker, life));
        }
        Ok(())
    }

    /// The process is gone; whoever waits for it is not answered.
    fn end(&mut self, broker: usize) {
        let at = &mut self.brokers[broker];
        at.life += 1;
        at.paused_until = 0;
        let Some(mut running) = at.running.take() else {
            return;
        };
        let stats = running.store.stats();
        self.stats.cycles += stats.journal_cycles;
        self.stats.direct_syncs += stats.direct_syncs;
        self.stats.checkpoints += stats.checkpoints;
        for (node, replica) in &mut running.replicas {
            if let Some(place) = self.replicas.get_mut(node) {
                place.last = replica.group.log().last_index();
            }
            for pending in replica.pending.drain(..) {
                crate::clients::unanswered(&mut self.groups[replica.of], pending.waiter);
            }
        }
        drop(running);
    }

    fn cut_power(&mut self, broker: usize, end: Option<End>) {
        let end = match end {
            Some(end) => end,
            None => self.rng.pick(&[End::Kill, End::PowerLoss]),
        };
        let evict = self.rng.chance(20);
        let disk = &self.brokers[broker].disk;
        match end {
            End::Kill => {
                disk.kill();
                self.stats.kills += 1;
                if evict {
                    disk.evict_clean();
                }
            }
            End::PowerLoss => {
                disk.power_loss();
                self.stats.power_losses += 1;
            }
        }
        let now = self.now;
        self.trace
            .note(now, (broker, end), || format!("b{broker}: {end:?}"));
    }

    /// Connections are reset: others may notice at once, or not.
    fn tell_others(&mut self, dead: usize) {
        for other in 0..self.brokers.len() {
            if !self.brokers[other].works() || !self.rng.chance(50) {
                continue;
            }
            let replicas = &self.replicas;
            let Some(running) = &mut self.brokers[other].running else {
                continue;
            };
            for (&node, replica) in &mut running.replicas {
                let is_lost = |node: NodeId| replicas.get(&node).is_some_and(|p| p.broker == dead);
                replica.group.lost(is_lost);
                running.dirty.insert(node);
            }
            self.turn_soon(other);
        }
    }

    /// A clean stop, if nothing is under way.
    pub(crate) fn stop(&mut self, broker: usize) -> Check {
        let at = &self.brokers[broker];
        let Some(running) = at.running.as_ref().filter(|r| !r.poisoned) else {
            return Ok(());
        };
        if running.cycle.is_some() || !running.directs.is_empty() || running.checkpoint.is_some() {
            return Ok(());
        }
        match running.store.close() {
            Ok(()) => self.stats.clean_stops += 1,
            Err(error) => ensure!(at.may_fail(&error), "b{broker}: closing: {error}"),
        }
        self.crash(broker, None)
    }

    /// After each step of a broker: has its disk stopped, is its store poisoned?
    pub(crate) fn look(&mut self, broker: usize) -> Check {
        let at = &mut self.brokers[broker];
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        if at.disk.crashed() {
            return self.crash(broker, None);
        }
        if !running.poisoned
            && let Some(why) = running.store.poisoned()
        {
            running.poisoned = true;
            ensure!(
                at.write_failed(),
                "b{broker}: poisoned without a fault: {why}"
            );
            self.stats.poisoned += 1;
            let life = at.life;
            let now = self.now;
            self.trace.note(now, (broker, "poisoned"), || {
                format!("b{broker} is poisoned: {why}")
            });
            let delay = match self.calm {
                true => 10,
                false => self.rng.within(1, 800),
            };
            self.after(delay, Event::Crash(broker, life));
        }
        Ok(())
    }

    pub(crate) fn lift_capacity(&mut self, broker: usize) {
        let at = &mut self.brokers[broker];
        at.disk.set_capacity(None);
        at.full = false;
    }
}

pub(crate) fn is_full(error: &Error) -> bool {
    match error {
        Error::StorageFull { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}
