//! The loop of one shard.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use timberline_consensus::{Alive, Envelope, Output, Tick, Timing};
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::internal as pb;
use timberline_storage::ReplicaId;

use super::inbox::{Burst, Inbox};
use super::writer::Writer;
use super::{TICK, Work};
use crate::ack::Wakes;
use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::{clock, errors};

/// Buffers for a burst larger than this are not kept for the next.
const BURST_KEPT: usize = 4096;
/// Ticks between two looks at who is in sync.
const IN_SYNC_TICKS: u64 = 8;

/// What a shard reaches beside its inbox.
pub(super) struct Outside {
    pub(super) number: u16,
    pub(super) timing: Timing,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) runtime: tokio::runtime::Handle,
}

/// What a burst collects for the end.
#[derive(Default)]
pub(super) struct Sends {
    pub(super) output: Output,
    /// By broker.
    pub(super) messages: BTreeMap<i32, Vec<Envelope>>,
    pub(super) leaderships: Vec<pb::Leadership>,
    /// That this shard is alive.
    pub(super) shard_beat: bool,
}

pub(super) struct Shard {
    inbox: Arc<Inbox>,
    /// One for each replica that this shard owns.
    writers: HashMap<ReplicaId, Writer>,
    outside: Outside,
    /// Replicas that have to take their turn in this burst; each is in it once.
    touched: Vec<ReplicaId>,
    sends: Sends,
    /// Streams with new answers, woken at the end of the burst.
    wakes: Wakes,
    now_ms: i64,
    /// When all groups tick next; `None` while none needs to.
    next_tick: Option<Instant>,
    /// Those that tick; each is in it once.
    ticking: Vec<ReplicaId>,
    /// Those that are silent, by the tick at which they may have to say something.
    quiet: BTreeMap<u64, Vec<ReplicaId>>,
    /// The clock of all groups here, and which shards of others it has heard.
    alive: Alive,
    /// Nothing is durable here any more: others must not take this shard for alive.
    poisoned: bool,
}

impl Shard {
    pub(super) fn new(inbox: Arc<Inbox>, outside: Outside) -> Shard {
        Shard {
            inbox,
            writers: HashMap::new(),
            outside,
            touched: Vec::new(),
            sends: Sends::default(),
            wakes: Wakes::default(),
            now_ms: 0,
            next_tick: None,
            ticking: Vec::new(),
            quiet: BTreeMap::new(),
            alive: Alive::default(),
            poisoned: false,
        }
    }

    pub(super) fn run(mut self) {
        let mut burst = Burst::default();
        loop {
            self.inbox.take(&mut burst, self.next_tick);
            // The leader's time never goes back within a shard; the log sees to it across restarts.
            self.now_ms = clock::now_ms().max(self.now_ms);
            for (replica, _) in burst.durable.drain() {
                self.touch(replica);
            }
            for (broker, beats) in std::mem::take(&mut burst.alive) {
                self.alive.note(broker, beats.shards(), beats.alive());
            }
            for work in burst.work.drain(..) {
                self.perform(work);
            }
            burst.peer_bytes = 0;
            burst.beats = 0;
            // Only now: what waited in the inbox may be a beat.
            self.tick();
            self.turns();
            if let Some(why) = burst.poisoned.take() {
                let error = ApiError::new(Reason::StoragePoisoned, why);
                self.step_down(&error);
            }
            self.send();
            self.wakes.wake();
            if burst.stop {
                self.fail_pending(&errors::draining());
                self.wakes.wake();
                return;
            }
            if burst.work.capacity() > BURST_KEPT {
                burst.work = Vec::new();
            }
        }
    }

    fn touch(&mut self, replica: ReplicaId) {
        if let Some(writer) = self.writers.get_mut(&replica)
            && !std::mem::replace(&mut writer.touched, true)
        {
            self.touched.push(replica);
        }
    }

    fn touch_all(&mut self) {
        for (replica, writer) in &mut self.writers {
            if !std::mem::replace(&mut writer.touched, true) {
                self.touched.push(*replica);
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.next_tick.is_none_or(|at| at > now) {
            return;
        }
        self.alive.tick();
        let number = self.alive.now();
        self.sends.shard_beat =
            number.is_multiple_of(self.outside.timing.beat_ticks as u64) && !self.poisoned;
        self.wake_quiet(number);
        let look = number.is_multiple_of(IN_SYNC_TICKS);
        let mut ticking = std::mem::take(&mut self.ticking);
        ticking.retain(|replica| {
            let Some(writer) = self.writers.get_mut(replica) else {
                return false;
            };
            if !writer.needs_ticks() {
                writer.ticking = false;
                return false;
            }
            let tick = writer.tick(&self.alive, &mut self.sends);
            let mut due = tick == Tick::Due;
            if look || matches!(tick, Tick::Quiet { .. }) {
                due |= writer.look_who_is_in_sync(&self.outside.cluster, &mut self.sends);
            }
            if due && !std::mem::replace(&mut writer.touched, true) {
                self.touched.push(*replica);
            }
            if let Tick::Quiet { until } = tick {
                writer.ticking = false;
                if std::mem::replace(&mut writer.quiet_until, until) != until {
                    self.quiet.entry(until).or_default().push(*replica);
                }
            }
            writer.ticking
        });
        self.ticking = ticking;
        let needed = !self.ticking.is_empty() || !self.quiet.is_empty();
        // Late ticks count once.
        self.next_tick = needed.then(|| now + TICK);
    }

    /// Those tick again that are silent and due, or whose members may be gone.
    fn wake_quiet(&mut self, number: u64) {
        while let Some(due) = self.quiet.first_entry()
            && *due.key() <= number
        {
            let (at, replicas) = due.remove_entry();
            for replica in replicas {
                // Who woke since then and is silent again has another entry.
                let writer = self.writers.get(&replica);
                if writer.is_some_and(|writer| writer.quiet_until == at) {
                    self.keep_ticking(replica);
                }
            }
        }
        let silent_ticks = self.outside.timing.silent_ticks as u64;
        let silent = self.alive.fell_silent(silent_ticks);
        if silent.is_empty() {
            return;
        }
        tracing::debug!(shard = self.outside.number, brokers = ?silent, "shards fell silent");
        for (replica, writer) in &mut self.writers {
            if !writer.ticking && writer.needs_ticks() && writer.has_member_on(&silent) {
                writer.ticking = true;
                self.ticking.push(*replica);
            }
        }
    }

    /// The replica ticks, if it has to.
    fn keep_ticking(&mut self, replica: ReplicaId) {
        if let Some(writer) = self.writers.get_mut(&replica)
            && !writer.ticking
            && writer.needs_ticks()
        {
            writer.ticking = true;
            self.ticking.push(replica);
            if self.next_tick.is_none() {
                // Groups of several replicas live by ticks, a sole voter's from its first other member on.
                self.next_tick = Some(Instant::now() + TICK);
            }
        }
    }

    fn keep_ticking_all(&mut self) {
        let woken = |(replica, writer): (&ReplicaId, &Writer)| {
            (!writer.ticking && !writer.is_quiet()).then_some(*replica)
        };
        let woken: Vec<ReplicaId> = self.writers.iter().filter_map(woken).collect();
        for replica in woken {
            self.keep_ticking(replica);
        }
    }

    /// Everybody who was touched works off what came.
    fn turns(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for replica in touched.drain(..) {
            let Some(writer) = self.writers.get_mut(&replica) else {
                continue;
            };
            writer.touched = false;
            writer.turn(self.now_ms, &self.outside, &mut self.sends, &mut self.wakes);
            let wakes = !writer.ticking && !writer.is_quiet();
            for (node, cold) in self.sends.output.cold.drain(..) {
                let inbox = Arc::clone(&self.inbox);
                self.outside.runtime.spawn_blocking(move || {
                    if let Err(error) = cold.run() {
                        tracing::warn!(%replica, %error, "reading entries for a follower");
                    }
                    let _ = inbox.push(Work::ColdDone { replica, node });
                });
            }
            if wakes {
                self.keep_ticking(replica);
            }
        }
        self.touched = touched;
    }

    fn send(&mut self) {
        let Sends {
            messages,
            leaderships,
            shard_beat,
            ..
        } = &mut self.sends;
        for (broker, messages) in std::mem::take(messages) {
            let Outside {
                cluster, number, ..
            } = &self.outside;
            cluster.send(broker, *number, messages);
        }
        if std::mem::take(shard_beat) {
            self.outside.cluster.shard_beat(self.outside.number);
        }
        self.outside.cluster.announce(std::mem::take(leaderships));
    }

    fn beat(&mut self, replica: ReplicaId, from: i32, beat: Envelope) {
        let Some(writer) = self.writers.get_mut(&replica) else {
            return;
        };
        let due = writer.step(from, beat, &self.alive, &self.outside, &mut self.sends);
        let wakes = !writer.ticking && !writer.is_quiet();
        if due {
            self.touch(replica);
        } else if wakes {
            self.keep_ticking(replica);
        }
    }

    fn perform(&mut self, work: Work) {
        let (metrics, now_ms) = (&self.outside.metrics, self.now_ms);
        let replica = match work {
            Work::Batch {
                batch,
                log_append_time,
                ticket,
            } => {
                let replica = ticket.partition().replica;
                match self.writers.get_mut(&replica) {
                    Some(writer) => writer.write(
                        batch,
                        log_append_time,
                        ticket,
                        now_ms,
                        &self.outside,
                        &mut self.wakes,
                    ),
                    None => {
                        let error = crate::metadata::plan::unknown_topic(ticket.partition().topic);
                        ticket.complete(Err(Box::new(error)), metrics, &mut self.wakes);
                    }
                }
                replica
            }
            Work::Command {
                replica,
                payload,
                reply,
            } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.command(payload, reply, now_ms, &self.outside);
                }
                replica
            }
            Work::Trim {
                replica,
                before,
                reply,
            } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.trim(before, reply, now_ms, &self.outside);
                }
                replica
            }
            Work::Messages {
                replica,
                from,
                envelopes,
                ..
            } => {
                let mut due = false;
                if let Some(writer) = self.writers.get_mut(&replica) {
                    for envelope in envelopes {
                        due |= writer.step(
                            from,
                            envelope,
                            &self.alive,
                            &self.outside,
                            &mut self.sends,
                        );
                    }
                }
                if !due {
                    return;
                }
                replica
            }
            Work::Beats { from, beats } => {
                for (replica, beat) in beats {
                    self.beat(replica, from, beat);
                }
                return;
            }
            Work::Adopt {
                group,
                partition,
                on_commit,
            } => {
                let replica = partition.replica;
                let writer = Writer::new(*group, partition, on_commit);
                self.writers.insert(replica, writer);
                replica
            }
            Work::ColdDone { replica, node } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.cold_done(node);
                }
                replica
            }
            Work::Staged {
                replica,
                from,
                term,
                staged,
            } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.staged(from, term, staged);
                }
                replica
            }
            Work::SendGoesOn { replica, node } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.send_goes_on(node);
                }
                return;
            }
            Work::SendEnded { replica, node } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    writer.send_ended(node, false);
                }
                replica
            }
            Work::Transfer { replica, to, reply } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    let answer = writer.transfer(to, &self.outside);
                    reply.map(|reply| reply.send(answer));
                }
                replica
            }
            Work::ChangeMembers {
                replica,
                revision,
                changes,
                reply,
            } => {
                if let Some(writer) = self.writers.get_mut(&replica) {
                    let answer = writer.change_members(revision, changes, now_ms, &self.outside);
                    let _ = reply.send(answer);
                }
                replica
            }
            Work::View { replica, reply } => {
                if let Some(writer) = self.writers.get(&replica) {
                    let _ = reply.send(writer.view());
                }
                return;
            }
            Work::Release { replica, then } => {
                if let Some(mut writer) = self.writers.remove(&replica) {
                    let error = crate::metadata::plan::unknown_topic(writer.topic());
                    writer.fail_pending(&error, metrics, &mut self.wakes);
                }
                then();
                return;
            }
            other => return self.perform_for_all(other),
        };
        self.touch(replica);
    }

    fn perform_for_all(&mut self, work: Work) {
        match work {
            Work::PeerLost(broker) => {
                self.writers.values_mut().for_each(|w| w.lost(broker));
                self.touch_all();
            }
            Work::PeerUnreachable(broker) => {
                self.writers
                    .values_mut()
                    .for_each(|w| w.unreachable(broker));
                self.keep_ticking_all();
            }
            Work::Resign => {
                for writer in self.writers.values_mut() {
                    // Those without a successor go on until the stop.
                    let _ = writer.transfer(None, &self.outside);
                }
                self.touch_all();
            }
            Work::Housekeep => {
                for writer in self.writers.values_mut() {
                    writer.housekeep(self.now_ms, &self.outside);
                }
                self.touch_all();
            }
            Work::Barrier(done) => drop(done),
            _ => {}
        }
    }

    fn fail_pending(&mut self, error: &ApiError) {
        for writer in self.writers.values_mut() {
            writer.fail_pending(error, &self.outside.metrics, &mut self.wakes);
        }
    }

    /// Nothing will be durable here any more: no part in any group, until a restart.
    fn step_down(&mut self, error: &ApiError) {
        self.poisoned = true;
        for writer in self.writers.values_mut() {
            writer.stop(&error.message, &self.outside, &mut self.sends);
        }
        self.fail_pending(error);
    }
}
