//! What a broker's disk threads do, step by step and as slowly as the seed says.

use std::sync::Arc;

use timberline_consensus::Membership;
use timberline_storage::{Error, Log, ReplicaId};

use crate::checker::{Check, ensure};
use crate::world::{Event, World};

/// Between two looks of the upkeep, ms.
const UPKEEP_MS: u64 = 60;
/// A slow sync, ms at most.
const SLOW_MS: u64 = 900;

impl World {
    pub(crate) fn flush_soon(&mut self, broker: usize) {
        let delay = self.rng.below(3);
        let at = &mut self.brokers[broker];
        let Some(running) = &mut at.running else {
            return;
        };
        if !running.flush_due && running.cycle.is_none() {
            running.flush_due = true;
            let life = at.life;
            self.after(delay, Event::Flush(broker, life));
        }
    }

    fn sync_ms(&mut self, broker: usize) -> u64 {
        match self.brokers[broker].slow_until > self.now {
            true => self.rng.below(SLOW_MS),
            false => self.rng.below(self.profile.sync_ms + 1),
        }
    }

    pub(crate) fn flush(&mut self, broker: usize) -> Check {
        let closing = self.rng.chance(10);
        let at = &mut self.brokers[broker];
        let life = at.life;
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        running.flush_due = false;
        if running.poisoned || running.cycle.is_some() {
            return Ok(());
        }
        let work = running.store.begin_cycle(closing);
        let ring_full = work.ring_full;
        // Hints ahead of a checkpoint may be dropped: half of them are.
        let (write_back, prewrite) = (work.write_back, work.prewrite);
        let first = running.directs.keys().next_back().map_or(0, |id| id + 1);
        let ids: Vec<u64> = (first..).take(work.direct.len()).collect();
        running.directs.extend(
            ids.iter()
                .copied()
                .zip(work.direct.into_iter().map(|d| (d, false))),
        );
        let has_cycle = work.cycle.is_some();
        running.cycle = work.cycle.map(|cycle| (cycle, false));
        for piece in write_back {
            if self.rng.chance(50)
                && let Some(running) = &self.brokers[broker].running
            {
                running.store.run_write_back(&piece);
            }
        }
        if prewrite && self.rng.chance(50) {
            let at = &self.brokers[broker];
            if let Some(running) = &at.running
                && let Err(error) = running.store.prewrite()
            {
                ensure!(at.may_fail(&error), "b{broker}: writing ahead: {error}");
                return self.look(broker);
            }
        }
        for id in ids {
            let delay = self.sync_ms(broker);
            self.after(delay, Event::Direct(broker, life, id));
        }
        if has_cycle {
            let delay = self.sync_ms(broker);
            self.after(delay, Event::Cycle(broker, life));
        }
        if ring_full {
            self.begin_checkpoint(broker);
            let at = &mut self.brokers[broker];
            if let Some(running) = at
                .running
                .as_mut()
                .filter(|r| !r.flush_due && r.cycle.is_none())
            {
                running.flush_due = true;
                self.after(10, Event::Flush(broker, life));
            }
        }
        self.look(broker)
    }

    /// Runs the cycle in flight, then ends it.
    pub(crate) fn step_cycle(&mut self, broker: usize) -> Check {
        let at = &mut self.brokers[broker];
        let life = at.life;
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        if running.poisoned {
            return Ok(());
        }
        let store = running.store.clone();
        let Some((cycle, ran)) = &mut running.cycle else {
            return Ok(());
        };
        if !*ran {
            match store.run_cycle(cycle) {
                Ok(()) => *ran = true,
                Err(error) => {
                    running.cycle = None;
                    ensure!(at.may_fail(&error), "b{broker}: running a cycle: {error}");
                    return self.look(broker);
                }
            }
            let delay = self.sync_ms(broker) / 2;
            self.after(delay, Event::Cycle(broker, life));
            return self.look(broker);
        }
        let Some((cycle, _)) = running.cycle.take() else {
            return Ok(());
        };
        store.finish_cycle(cycle);
        let nodes: Vec<u64> = running.replicas.keys().copied().collect();
        running.dirty.extend(nodes.iter().copied());
        for node in nodes {
            self.show_durable(broker, node);
        }
        self.turn_soon(broker);
        self.flush_soon(broker);
        self.look(broker)
    }

    pub(crate) fn step_direct(&mut self, broker: usize, id: u64) -> Check {
        let at = &mut self.brokers[broker];
        let life = at.life;
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        if running.poisoned {
            return Ok(());
        }
        let Some((direct, ran)) = running.directs.remove(&id) else {
            return Ok(());
        };
        if ran {
            running.store.finish_direct(direct);
            self.flush_soon(broker);
            return Ok(());
        }
        match running.store.run_direct(&direct) {
            Ok(()) => {
                running.directs.insert(id, (direct, true));
                self.after(1, Event::Direct(broker, life, id));
            }
            Err(error) => ensure!(at.may_fail(&error), "b{broker}: a direct sync: {error}"),
        }
        self.look(broker)
    }

    pub(crate) fn begin_checkpoint(&mut self, broker: usize) {
        let delay = self.sync_ms(broker);
        let at = &mut self.brokers[broker];
        let life = at.life;
        let Some(running) = &mut at.running else {
            return;
        };
        if running.checkpoint.is_none()
            && let Some(mut checkpoint) = running.store.begin_checkpoint()
        {
            let syncs = checkpoint.take_syncs();
            running.checkpoint = Some((checkpoint, syncs));
            self.after(delay, Event::Checkpoint(broker, life));
        }
    }

    pub(crate) fn step_checkpoint(&mut self, broker: usize) -> Check {
        let delay = self.sync_ms(broker);
        let at = &mut self.brokers[broker];
        let life = at.life;
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        if running.poisoned {
            return Ok(());
        }
        let Some((checkpoint, mut syncs)) = running.checkpoint.take() else {
            return Ok(());
        };
        let done = match syncs.pop() {
            Some(sync) => {
                let done = running.store.run_checkpoint_sync(&sync);
                if done.is_ok() {
                    running.checkpoint = Some((checkpoint, syncs));
                    self.after(delay, Event::Checkpoint(broker, life));
                }
                done
            }
            None => running.store.finish_checkpoint(checkpoint),
        };
        if let Err(error) = done {
            let at = &self.brokers[broker];
            ensure!(at.may_fail(&error), "b{broker}: a checkpoint: {error}");
        }
        self.look(broker)
    }

    /// Checkpoints, seals, rolls, writeback, and what the metadata wants gone.
    pub(crate) fn upkeep(&mut self, broker: usize) -> Check {
        let life = self.brokers[broker].life;
        self.after(UPKEEP_MS, Event::Upkeep(broker, life));
        if !self.brokers[broker].works() {
            return Ok(());
        }
        if self.rng.chance(self.profile.checkpoints) {
            self.begin_checkpoint(broker);
        }
        if self.rng.chance(20) {
            let sectors = self.rng.within(1, 40);
            self.brokers[broker].disk.writeback(sectors);
        }
        self.retire(broker)?;
        self.reopen(broker)?;
        let now_ms = self.clock(broker);
        let at = &self.brokers[broker];
        let Some(running) = &at.running else {
            return Ok(());
        };
        for replica in running.replicas.values() {
            if let Err(error) = replica.group.log().maybe_roll(now_ms) {
                ensure!(at.may_fail(&error), "b{broker}: rolling: {error}");
            }
        }
        for _ in 0..2 {
            let Some(seal) = running.store.begin_seal() else {
                break;
            };
            match running.store.run_seal(seal) {
                Ok(()) => self.stats.seals += 1,
                Err(Error::InUse { .. }) => {}
                Err(error) => ensure!(at.may_fail(&error), "b{broker}: sealing: {error}"),
            }
        }
        self.flush_soon(broker);
        self.look(broker)
    }

    /// Replicas whose log had no space for an entry begin again, once what the log has is on stable storage: a group
    /// takes everything it is shown for synced.
    fn reopen(&mut self, broker: usize) -> Check {
        let Some(running) = &mut self.brokers[broker].running else {
            return Ok(());
        };
        let settled =
            |log: &Arc<Log>| log.durable_index() == log.last_index() && log.is_hard_state_durable();
        let stopped = running.replicas.iter();
        let stopped: Vec<u64> = stopped
            .filter(|(_, r)| r.group.stopped().is_some() && settled(r.group.log()))
            .map(|(&node, _)| node)
            .collect();
        // A log that could not be read for a fault of its disk is tried again, too.
        let closed = self.replicas.iter();
        let closed =
            closed.filter(|(n, p)| p.broker == broker && !running.replicas.contains_key(n));
        let closed: Vec<u64> = closed.map(|(&node, _)| node).collect();
        for node in stopped.into_iter().chain(closed) {
            if let Some(running) = &mut self.brokers[broker].running
                && let Some(mut replica) = running.replicas.remove(&node)
            {
                for pending in replica.pending.drain(..) {
                    crate::clients::unanswered(&mut self.groups[replica.of], pending.waiter);
                }
            }
            self.stats.reopened += 1;
            self.open_replica(broker, node)?;
        }
        Ok(())
    }

    /// Replicas that left their group's membership go, once a leader of the others says that they may. It has the newest
    /// membership: in the product the metadata's revision tells one that was deposed and doesn't know.
    fn retire(&mut self, broker: usize) -> Check {
        let leaves = |world: &World, node: u64| {
            let place = world.replicas[&node];
            let mut others = world
                .brokers
                .iter()
                .filter_map(|other| other.running.as_ref())
                .flat_map(|running| running.replicas.iter());
            place.broker == broker
                && place.joined
                && others.any(|(&other, replica)| {
                    world.replicas[&other].group == place.group
                        && replica.group.log().membership().0 == world.groups[place.group].members.0
                        && replica.group.is_membership_kept()
                        && !names(replica.group.membership(), node)
                })
        };
        let nodes: Vec<u64> = self.replicas.keys().copied().collect();
        for node in nodes {
            if !leaves(self, node) || !self.rng.chance(30) {
                continue;
            }
            let Some(running) = &mut self.brokers[broker].running else {
                return Ok(());
            };
            if let Some(mut replica) = running.replicas.remove(&node) {
                for pending in replica.pending.drain(..) {
                    crate::clients::unanswered(&mut self.groups[replica.of], pending.waiter);
                }
            }
            running.dirty.remove(&node);
            let removed = running.store.remove_replica(ReplicaId(node));
            removed.map_err(|e| format!("b{broker}: removing n{node}: {e}"))?;
            self.replicas.remove(&node);
            self.stats.replicas_removed += 1;
            let now = self.now;
            self.trace.note(now, ("retire", node), || {
                format!("b{broker}: n{node} is removed")
            });
        }
        Ok(())
    }
}

fn names(membership: &Membership, node: u64) -> bool {
    let members = membership.members();
    members.iter().any(|member| member.node == node)
}
