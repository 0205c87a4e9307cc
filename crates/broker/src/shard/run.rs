//! The loop of one shard.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use timberline_consensus::{Envelope, Output};
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
    ticks: u64,
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
            ticks: 0,
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
        self.ticks = self.ticks.wrapping_add(1);
        let look = self.ticks % IN_SYNC_TICKS == 0;
        let mut needed = false;
        for (replica, writer) in &mut self.writers {
            if !writer.needs_ticks() {
                continue;
            }
            needed = true;
            let mut due = writer.tick(self.ticks);
            if look {
                due |= writer.look_who_is_in_sync(&self.outside.cluster, &mut self.sends);
            }
            if due && !std::mem::replace(&mut writer.touched, true) {
                self.touched.push(*replica);
            }
        }
        // Late ticks count once.
        self.next_tick = needed.then(|| now + TICK);
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
            if self.next_tick.is_none() && writer.needs_ticks() {
                // Groups of several replicas live by ticks, a sole voter's from its first other member on.
                self.next_tick = Some(Instant::now() + TICK);
            }
            for (node, cold) in self.sends.output.cold.drain(..) {
                let inbox = Arc::clone(&self.inbox);
                self.outside.runtime.spawn_blocking(move || {
                    if let Err(error) = cold.run() {
                        tracing::warn!(%replica, %error, "reading entries for a follower");
                    }
                    let _ = inbox.push(Work::ColdDone { replica, node });
                });
            }
        }
        self.touched = touched;
    }

    fn send(&mut self) {
        let Sends {
            messages,
            leaderships,
            ..
        } = &mut self.sends;
        for (broker, messages) in std::mem::take(messages) {
            let Outside {
                cluster, number, ..
            } = &self.outside;
            cluster.send(broker, *number, messages);
        }
        self.outside.cluster.announce(std::mem::take(leaderships));
    }

    fn beat(&mut self, replica: ReplicaId, from: i32, beat: Envelope) {
        let Some(writer) = self.writers.get_mut(&replica) else {
            return;
        };
        if writer.step(from, beat, &self.outside, &mut self.sends) {
            self.touch(replica);
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
                        due |= writer.step(from, envelope, &self.outside, &mut self.sends);
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
        for writer in self.writers.values_mut() {
            writer.stop(&error.message, &self.outside, &mut self.sends);
        }
        self.fail_pending(error);
    }
}
