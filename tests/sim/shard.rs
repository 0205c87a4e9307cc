//! What a broker's shard does: steps messages, ticks, works off, answers. Everything that a replica shows goes to the
//! checkers here.

use std::sync::Arc;

use bytes::Bytes;
use timberline_consensus::{
    ConfigEntry, Dropped, Envelope, Member, NodeId, Output, Pulse, Role, Tick, Timing,
};
use timberline_storage::disk::FaultDisk;
use timberline_storage::{EntryKind, Error, FrameHeader, FramesOutcome, Log, ReplicaId};

use crate::broker::{Pending, SHARDS, Waiter};
use crate::checker::{Check, Seen, Terms, ensure};
use crate::network::line;
use crate::stats::Stats;
use crate::world::{Event, Planted, World};

/// Bytes in one answer of the log.
const READ_BYTES: usize = 64 << 10;

/// Entries `from..=to`, verified where that is needed.
pub(crate) fn read_frames(
    log: &Arc<Log>,
    from: u64,
    to: u64,
    stats: &mut Stats,
) -> Result<Vec<(FrameHeader, Bytes)>, Error> {
    let (mut next, mut all) = (from, Vec::new());
    while next <= to {
        match log.frames(next, to, READ_BYTES)? {
            FramesOutcome::Cold(cold) => {
                stats.cold_reads += 1;
                cold.run()?;
            }
            FramesOutcome::Frames(frames) => {
                next = frames.last().map_or(u64::MAX, |f| f.0.index + 1);
                all.extend(frames);
            }
        }
    }
    Ok(all)
}

fn failures(disk: &FaultDisk) -> u64 {
    let stats = disk.stats();
    stats.failed_syncs + stats.write_errors
}

impl World {
    pub(crate) fn turn_soon(&mut self, broker: usize) {
        let delay = self.rng.below(3);
        let at = &mut self.brokers[broker];
        let Some(running) = &mut at.running else {
            return;
        };
        if !running.turn_due {
            running.turn_due = true;
            let life = at.life;
            self.after(delay, Event::Turn(broker, life));
        }
    }

    /// The replica has something to work off.
    pub(crate) fn mark(&mut self, broker: usize, node: NodeId) {
        if let Some(running) = &mut self.brokers[broker].running {
            running.dirty.insert(node);
        }
        self.turn_soon(broker);
    }

    pub(crate) fn deliver(&mut self, envelope: Envelope) -> Check {
        let Some(place) = self.replicas.get(&envelope.to).copied() else {
            return Ok(());
        };
        let at = &self.brokers[place.broker];
        if !at.works() {
            return Ok(());
        }
        if at.paused_until > self.now {
            let until = at.paused_until;
            self.at(until, Event::Deliver(envelope));
            return Ok(());
        }
        let now = self.now;
        let key = (envelope.from, envelope.to, envelope.term);
        self.trace.note(now, key, || line(&envelope));
        let node = envelope.to;
        let at = &mut self.brokers[place.broker];
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        let Some(replica) = running.replicas.get_mut(&node) else {
            return Ok(());
        };
        let from = self.replicas.get(&envelope.from).map(|place| place.broker);
        let alive = &running.alive;
        let silent = from.map_or(u64::MAX, |from| {
            alive.silent_for(from as i32, envelope.from)
        });
        match replica.group.pulse(&envelope, alive.now(), silent) {
            Pulse::Beat(reply) => {
                self.stats.pulses += 1;
                self.send(reply);
                return self.look(place.broker);
            }
            Pulse::Reply => return self.look(place.broker),
            Pulse::Other => {}
        }
        match replica.group.step(envelope) {
            Ok(()) | Err(Dropped::Stopped) => {}
            Err(Dropped::NoSpace) => {
                let excused = at.full || at.disk.crashed() || at.write_failed();
                ensure!(excused, "n{node}: a message is dropped for want of space");
                self.stats.refused_for_space += 1;
            }
            Err(why) => return Err(format!("n{node}: a message of a peer is dropped: {why}")),
        }
        self.mark(place.broker, node);
        self.look(place.broker)
    }

    pub(crate) fn tick(&mut self, broker: usize) -> Check {
        // The inbox before the clock.
        self.turns(broker)?;
        let life = self.brokers[broker].life;
        let Some(running) = &mut self.brokers[broker].running else {
            return Ok(());
        };
        if running.poisoned {
            return Ok(());
        }
        running.alive.tick();
        let (now, mut out) = (running.alive.now(), Output::default());
        let timing = Timing::default();
        let silent = running.alive.fell_silent(timing.silent_ticks as u64);
        let alive = &running.alive;
        for (&node, replica) in &mut running.replicas {
            if !replica.group.needs_ticks() {
                continue;
            }
            let group = &mut replica.group;
            let members = group.membership().members();
            let may_be_alone = members.iter().any(|member| silent.contains(&member.broker));
            let parked = replica.parked_until.is_some_and(|until| until > now);
            if parked && group.is_quiet() && !may_be_alone {
                continue;
            }
            let silent_for = |of: Member| alive.silent_for(of.broker, of.node);
            let was_parked = replica.parked_until.take().is_some();
            match group.tick(now, silent_for, &mut out) {
                Tick::Due => {
                    running.dirty.insert(node);
                }
                Tick::Quiet { until } => {
                    replica.parked_until = Some(until);
                    self.stats.quiesced += u64::from(!was_parked);
                }
                Tick::Idle => {}
            }
        }
        for envelope in out.messages {
            self.send(envelope);
        }
        for shard in 0..SHARDS {
            let beat_ticks = timing.beat_ticks as u64;
            if now % beat_ticks == shard as u64 * (beat_ticks / SHARDS as u64) {
                self.tell_shard(broker, shard);
            }
        }
        self.turns(broker)?;
        let period = self.profile.tick_ms[broker];
        self.after(period, Event::Tick(broker, life));
        Ok(())
    }

    /// A shard of a broker beats.
    fn tell_shard(&mut self, broker: usize, shard: usize) {
        for to in (0..self.brokers.len()).filter(|to| *to != broker) {
            let link = (broker, to);
            let delays = self
                .network
                .send(&mut self.rng, &self.profile, &mut self.stats, link);
            for delay in delays {
                self.after(delay, Event::ShardBeat(broker, shard, to));
            }
        }
    }

    pub(crate) fn hear_shard(&mut self, from: usize, shard: usize, to: usize) {
        let until = self.brokers[to].paused_until;
        if until > self.now {
            self.at(until, Event::ShardBeat(from, shard, to));
        } else if let Some(running) = &mut self.brokers[to].running {
            running.alive.note(from as i32, SHARDS, [shard]);
        }
    }

    /// Works off what is dirty.
    pub(crate) fn turns(&mut self, broker: usize) -> Check {
        let Some(running) = &mut self.brokers[broker].running else {
            return Ok(());
        };
        running.turn_due = false;
        if running.poisoned {
            return Ok(());
        }
        let life = self.brokers[broker].life;
        while let Some(node) = self.next_dirty(broker) {
            self.turn(broker, node)?;
            self.look(broker)?;
            if self.brokers[broker].life != life || !self.brokers[broker].works() {
                return Ok(());
            }
        }
        self.flush_soon(broker);
        Ok(())
    }

    fn next_dirty(&mut self, broker: usize) -> Option<NodeId> {
        self.brokers[broker].running.as_mut()?.dirty.pop_first()
    }

    /// One replica works off what it has.
    fn turn(&mut self, broker: usize, node: NodeId) -> Check {
        let now_ms = self.clock(broker);
        let at = &mut self.brokers[broker];
        let crashed = at.disk.clone();
        let Some(running) = &mut at.running else {
            return Ok(());
        };
        let Some(replica) = running.replicas.get_mut(&node) else {
            return Ok(());
        };
        if replica.is_stopped {
            return Ok(());
        }
        let group = &mut replica.group;
        let log = group.log().clone();
        let before = group.membership().clone();
        let last = log.last_index();
        let last_term = log.term_at(last);
        let mut out = Output::default();
        group.turn(now_ms, &mut out);
        if crashed.crashed() {
            return Ok(());
        }
        if let Some(why) = group.stopped() {
            let why = why.to_owned();
            let full = at.full && why.contains("no space left");
            let failed = failures(&at.disk) > at.failures_before;
            ensure!(full || failed, "b{broker} n{node}: the group stops: {why}");
            self.stats.stopped_for_space += u64::from(full);
            replica.is_stopped = true;
            return Ok(());
        }
        if log.last_index() < last || log.first_index() <= last && log.term_at(last) != last_term {
            self.stats.truncations += 1;
        }
        let committed = log.commit_index();
        let from = (replica.shown + 1).max(log.first_index());
        let news = match from <= committed {
            true => read_frames(&log, from, committed, &mut self.stats),
            false => Ok(Vec::new()),
        };
        let news = match news {
            Ok(news) => news,
            Err(_) if at.disk.crashed() || failures(&at.disk) > at.failures_before => return Ok(()),
            Err(error) => return Err(format!("b{broker} n{node}: committed entries: {error}")),
        };
        let fresh = replica.shown == 0;
        replica.shown = replica.shown.max(committed);
        self.stats.commits += news.len() as u64;
        let of = replica.of;
        let (leads, term) = (replica.group.role() == Role::Leader, replica.group.term());
        if leads && !replica.led {
            self.stats.elections += 1;
        }
        replica.led = leads;
        let terms = Terms {
            first: log.first_index(),
            last: log.last_index(),
            at: &|index| log.term_at(index),
        };
        let now = self.now;
        self.trace.note(now, (node, term, committed, terms.last, leads), || {
            format!(
                "  n{node} term {term} leads {leads} commit {committed} last {} {:?} durable {:?}",
                terms.last,
                log.term_at(terms.last),
                log.durability()
            )
        });
        self.checker.seen(&Seen {
            group: of,
            node,
            life: replica.opening,
            fresh,
            leads,
            caught_up: replica.group.is_caught_up(),
            term,
            committed,
            high_watermark: log.high_watermark(),
            log_start: log.log_start(),
            members: [&before, replica.group.membership()],
            news: &news,
            terms: Terms {
                first: terms.first,
                last: terms.last,
                at: terms.at,
            },
        })?;
        for envelope in &out.messages {
            self.checker.sent(of, replica.opening, envelope, &terms)?;
        }
        for (to, cold) in out.cold {
            self.stats.cold_reads += 1;
            if let Err(error) = cold.run() {
                ensure!(
                    at.disk.crashed() || failures(&at.disk) > at.failures_before,
                    "n{node}: a cold read: {error}"
                );
            }
            replica.group.cold_done(to);
            running.dirty.insert(node);
        }
        for envelope in out.messages {
            self.send(envelope);
        }
        self.note_members(of, &news)?;
        self.answer(broker, node)
    }

    /// The newest membership becomes known to the metadata.
    fn note_members(&mut self, of: usize, news: &[(FrameHeader, Bytes)]) -> Check {
        for (header, payload) in news {
            if header.kind != EntryKind::Config {
                continue;
            }
            let entry = ConfigEntry::decode(payload).map_err(|e| e.to_string())?;
            let table = &mut self.groups[of];
            if header.index > table.members.0 {
                self.stats.membership_changes += u64::from(header.index > 1);
                self.stats.joint_changes += u64::from(entry.result.is_joint());
                for member in entry.result.members() {
                    if let Some(place) = self.replicas.get_mut(&member.node) {
                        place.joined = true;
                    }
                }
                table.members = (header.index, entry.result);
            }
        }
        Ok(())
    }

    /// Answers what is committed; a leader that was deposed answers nothing (INV-7).
    fn answer(&mut self, broker: usize, node: NodeId) -> Check {
        loop {
            let Some(running) = &mut self.brokers[broker].running else {
                return Ok(());
            };
            let Some(replica) = running.replicas.get_mut(&node) else {
                return Ok(());
            };
            let of = replica.of;
            let log = replica.group.log();
            let Some(&Pending {
                index,
                term,
                waiter,
                told,
            }) = replica.pending.front()
            else {
                return Ok(());
            };
            let leads = replica.group.is_leader();
            let by_index = self.settings.planted == Some(Planted::AnswerByIndex);
            if (leads || by_index) && index > log.commit_index() {
                return Ok(());
            }
            let holds = log.term_at(index);
            replica.pending.pop_front();
            if by_index {
                self.checker.acked(of, index, None, &told)?;
            } else if !leads || term.is_some() && holds.is_some() && holds != term {
                crate::clients::unanswered(&mut self.groups[of], waiter);
                continue;
            }
            self.stats.acks += 1;
            let now = self.now;
            self.trace.note(now, ("ack", of, index), || {
                format!("  g{of} acknowledges {index} {told:?}")
            });
            let lost = self.rng.chance(self.profile.answers_lost) && !self.calm;
            if lost {
                // Told, but not heard: the promise counts from the moment it is made.
                crate::clients::unanswered(&mut self.groups[of], waiter);
            } else if let Waiter::Producer {
                at,
                epoch,
                sequence,
            } = waiter
            {
                self.groups[of].producers[at].acked(epoch, sequence);
            }
            self.checker.acked(of, index, term, &told)?;
        }
    }

    /// What a log says to be durable.
    pub(crate) fn show_durable(&mut self, broker: usize, node: NodeId) {
        let Some(running) = &self.brokers[broker].running else {
            return;
        };
        let Some(log) = running.store.log(ReplicaId(node)) else {
            return;
        };
        let terms = Terms {
            first: log.first_index(),
            last: log.last_index(),
            at: &|index| log.term_at(index),
        };
        self.checker.durable(node, log.durable_index(), &terms);
    }
}
