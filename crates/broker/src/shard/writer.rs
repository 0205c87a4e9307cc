//! The write side of one partition: sequences checked, entries proposed, answers given when they commit.
//!
//! An answer is given in the term in which its entry was proposed, or not at all: a deposed leader acknowledges nothing
//! (INV-7), and whoever waits is told where to go.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use timberline_consensus::{
    Alive, Body, Change, Envelope, Group, Member, NodeId, Output, PeerView, Proposal, Pulse,
    Refused, SnapshotMark, Tick, View,
};
use timberline_proto::error::{ApiError, Reason};
use timberline_record::Batch;
use timberline_storage::{Appended, Install, Log, SequenceCheck};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::run::{Outside, Sends};
use super::{LogGroup, OnCommit};
use crate::ack::{Acked, Outcome, Ticket, Wakes};
use crate::cluster::Cluster;
use crate::cluster::transfer::Pull;
use crate::errors;
use crate::metadata::backend::METADATA_REPLICA;
use crate::metrics::Metrics;
use crate::partition::{Lead, Partition};

/// How long a follower has to come for a snapshot, or for its next piece, before it is offered the newest.
const OFFERED_FOR: Duration = Duration::from_secs(15);
/// Space that a group which stopped for want of it must find.
const REVIVED_WITH_BYTES: u64 = 1 << 20;
/// Senders remembered beside the membership: leaders that a new replica does not know as members yet.
const SENDERS_MAX: usize = 16;

/// One partition's writer. Small while nothing is under way: there may be ten thousand.
pub(super) struct Writer {
    group: LogGroup,
    /// It is among those that take their turn in this burst.
    pub(super) touched: bool,
    /// It is among those that tick.
    pub(super) ticking: bool,
    /// The tick at which it ticks again, if it is silent by then.
    pub(super) quiet_until: u64,
    /// The leader as everybody was told.
    lead: Lead,
    /// Replicas that wrote and the brokers they wrote from, the latest last.
    senders: Vec<(NodeId, i32)>,
    partition: Arc<Partition>,
    on_commit: Option<OnCommit>,
    /// Answers that wait for a commit, by index. Bounded by the bytes that `partition::Budget` admits.
    pending: VecDeque<Pending>,
    /// A log-start entry is under way; another would only repeat it.
    trimming_to: Option<i64>,
    /// A snapshot is being pulled.
    pulling: bool,
    /// Term and commit index at the last look at who is in sync.
    looked: (u64, u64),
    /// Followers that were offered a snapshot, and when: one that does not come for it is offered it again.
    offered: Vec<(NodeId, Instant)>,
}

struct Pending {
    index: u64,
    acked: Acked,
    reply: Reply,
}

enum Reply {
    Ticket(Ticket),
    Once(oneshot::Sender<Outcome>),
    /// Nobody waits; only the log start moves.
    Retention,
}

impl Reply {
    fn complete(self, outcome: Outcome, metrics: &Metrics, wakes: &mut Wakes) {
        match self {
            Reply::Ticket(ticket) => ticket.complete(outcome, metrics, wakes),
            Reply::Once(sender) => {
                let _ = sender.send(outcome);
            }
            Reply::Retention => {}
        }
    }
}

impl Writer {
    pub(super) fn new(
        group: LogGroup,
        partition: Arc<Partition>,
        on_commit: Option<OnCommit>,
    ) -> Writer {
        Writer {
            group,
            touched: false,
            ticking: false,
            quiet_until: 0,
            lead: Lead::default(),
            senders: Vec::new(),
            partition,
            on_commit,
            pending: VecDeque::new(),
            trimming_to: None,
            pulling: false,
            looked: (0, 0),
            offered: Vec::new(),
        }
    }

    fn log(&self) -> &Arc<Log> {
        self.group.log()
    }

    pub(super) fn topic(&self) -> Uuid {
        self.partition.topic
    }

    /// Writes a client's batch, or answers why not.
    pub(super) fn write(
        &mut self,
        batch: Batch,
        log_append_time: bool,
        ticket: Ticket,
        now_ms: i64,
        outside: &Outside,
        wakes: &mut Wakes,
    ) {
        match self.admit(batch, log_append_time, now_ms, &outside.cluster) {
            Ok(acked) => self.answer_when_committed(acked, Reply::Ticket(ticket)),
            Err(error) => ticket.complete(Err(error), &outside.metrics, wakes),
        }
    }

    /// Checks the sequence and proposes. A duplicate is admitted too: with the place of its original.
    fn admit(
        &mut self,
        batch: Batch,
        log_append_time: bool,
        now_ms: i64,
        cluster: &Cluster,
    ) -> Result<Acked, Box<ApiError>> {
        // The sequences of a replica that does not lead are not the partition's.
        if !self.group.is_leader() {
            return Err(Box::new(self.not_leader(cluster)));
        }
        let header = *batch.header();
        let log = self.log();
        let mut acked = Acked {
            index: 0,
            base_offset: 0,
            leader_epoch: self.partition.leader_epoch(),
            log_append_time_ms: log_append_time.then_some(now_ms),
            duplicate: false,
            log_start: log.log_start(),
        };
        match log.check_producer(&header) {
            SequenceCheck::Accept => {}
            SequenceCheck::Duplicate {
                index,
                base_offset,
                append_time_ms,
            } => {
                acked.index = index;
                acked.base_offset = base_offset;
                acked.duplicate = true;
                acked.log_append_time_ms = log_append_time.then_some(append_time_ms);
                return Ok(acked);
            }
            refused => return Err(Box::new(sequence_error(&header, refused))),
        }
        let batch = if log_append_time {
            let stamped = batch.with_log_append_time(now_ms);
            batch
                .with_header(stamped)
                .map_err(|error| Box::new(errors::from_record(&error)))?
        } else {
            batch
        };
        let proposed = self.propose(&Proposal::Batch(batch), now_ms, cluster)?;
        acked.index = proposed.index;
        acked.base_offset = proposed.base_offset;
        Ok(acked)
    }

    fn propose(
        &mut self,
        proposal: &Proposal,
        now_ms: i64,
        cluster: &Cluster,
    ) -> Result<Appended, Box<ApiError>> {
        self.group
            .propose(proposal, now_ms)
            .map_err(|why| Box::new(self.refusal(&why, cluster)))
    }

    fn not_leader(&self, cluster: &Cluster) -> ApiError {
        let partition = &self.partition;
        let lead = Some(self.current_lead());
        cluster.not_leader(partition.topic, partition.number, lead)
    }

    fn refusal(&self, why: &Refused, cluster: &Cluster) -> ApiError {
        match why {
            Refused::NotLeader { .. } => self.not_leader(cluster),
            Refused::HandingOver => errors::handing_over(),
            Refused::Storage(error) => errors::from_storage(error),
            Refused::Membership(why) => ApiError::new(Reason::Overloaded, why.clone()),
            Refused::Stopped(why) => ApiError::new(Reason::StoragePoisoned, why.clone()),
        }
    }

    /// Appends to a state log.
    pub(super) fn command(
        &mut self,
        payload: Bytes,
        reply: oneshot::Sender<Outcome>,
        now_ms: i64,
        outside: &Outside,
    ) {
        match self.propose(&Proposal::Command(payload), now_ms, &outside.cluster) {
            Ok(appended) => {
                self.answer_when_committed(self.acked_at(appended.index), Reply::Once(reply));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Moves the log start up to `before`, or to the high watermark.
    pub(super) fn trim(
        &mut self,
        before: Option<i64>,
        reply: oneshot::Sender<Outcome>,
        now_ms: i64,
        outside: &Outside,
    ) {
        if !self.group.is_leader() {
            return drop(reply.send(Err(Box::new(self.not_leader(&outside.cluster)))));
        }
        let log = self.log();
        let (log_start, high_watermark) = (log.log_start(), log.high_watermark());
        let target = before.unwrap_or(high_watermark);
        if target > high_watermark || target < 0 {
            let error = ApiError::new(
                Reason::OffsetOutOfRange,
                format!("can't trim to {target}: the records are {log_start}..{high_watermark}"),
            )
            .with("log_start", log_start)
            .with("high_watermark", high_watermark);
            return drop(reply.send(Err(Box::new(error))));
        }
        if target <= log_start {
            return drop(reply.send(Ok(self.acked_at(0))));
        }
        match self.propose(&Proposal::LogStart(target), now_ms, &outside.cluster) {
            Ok(appended) => {
                self.answer_when_committed(self.acked_at(appended.index), Reply::Once(reply));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn acked_at(&self, index: u64) -> Acked {
        Acked {
            index,
            base_offset: 0,
            leader_epoch: self.partition.leader_epoch(),
            log_append_time_ms: None,
            duplicate: false,
            log_start: self.log().log_start(),
        }
    }

    /// Keeps the answer in index order; a duplicate may have to wait for an original in the middle.
    fn answer_when_committed(&mut self, acked: Acked, reply: Reply) {
        let pending = Pending {
            index: acked.index,
            acked,
            reply,
        };
        if self
            .pending
            .back()
            .is_none_or(|last| last.index <= pending.index)
        {
            self.pending.push_back(pending);
        } else {
            let at = self
                .pending
                .partition_point(|other| other.index <= pending.index);
            self.pending.insert(at, pending);
        }
    }

    /// Works off what came: tells who leads, answers what is committed, passes messages on.
    pub(super) fn turn(
        &mut self,
        now_ms: i64,
        outside: &Outside,
        sends: &mut Sends,
        wakes: &mut Wakes,
    ) {
        let rose = self.group.turn(now_ms, &mut sends.output);
        self.offer(&mut sends.output);
        self.post(sends);
        let lead = self.current_lead();
        if lead != self.lead {
            self.lead_changed(lead, outside, sends, wakes);
        }
        if rose {
            let started = self.log().log_start();
            if self.trimming_to.is_some_and(|to| to <= started) {
                self.trimming_to = None;
            }
            if let Some(on_commit) = &self.on_commit {
                on_commit(self.group.commit_index());
            }
            self.partition.advanced();
        }
        if !self.pending.is_empty() {
            let committed = self.group.commit_index();
            self.answer_committed(committed, &outside.metrics, wakes);
        }
    }

    fn current_lead(&self) -> Lead {
        let leader = self.group.leader();
        Lead {
            term: self.group.term(),
            leader: leader.and_then(|node| self.broker_of(node)),
            here: self.group.is_leader(),
            settled: self.group.is_caught_up(),
        }
    }

    fn lead_changed(
        &mut self,
        lead: Lead,
        outside: &Outside,
        sends: &mut Sends,
        wakes: &mut Wakes,
    ) {
        let before = std::mem::replace(&mut self.lead, lead);
        self.partition.set_lead(lead);
        if before.here && !lead.here {
            self.partition.set_in_sync(Vec::new());
        }
        // A candidate was in this term before.
        if lead.here && !(before.here && before.term == lead.term) {
            outside.metrics.elected();
            self.look_who_is_in_sync(&outside.cluster, sends);
        }
        let heard = outside.cluster.note_lead(&self.partition, lead);
        sends.leaderships.extend(heard);
        if before.here && (!lead.here || lead.term != before.term) {
            self.trimming_to = None;
            let error = self.not_leader(&outside.cluster);
            self.fail_pending(&error, &outside.metrics, wakes);
        }
        tracing::debug!(replica = %self.partition.replica, ?lead, "leader");
    }

    /// Addresses the messages of a turn.
    fn post(&mut self, sends: &mut Sends) {
        for envelope in sends.output.messages.drain(..) {
            if let Some(broker) = self.broker_of(envelope.to) {
                sends.messages.entry(broker).or_default().push(envelope);
            }
        }
    }

    fn broker_of(&self, node: NodeId) -> Option<i32> {
        self.group.membership().broker_of(node).or_else(|| {
            let mut senders = self.senders.iter().rev();
            senders.find(|(other, _)| *other == node).map(|(_, b)| *b)
        })
    }

    /// Takes a message of another broker in, if it may speak for the replica that it names. Returns whether a turn has
    /// something to do.
    pub(super) fn step(
        &mut self,
        from: i32,
        envelope: Envelope,
        alive: &Alive,
        outside: &Outside,
        sends: &mut Sends,
    ) -> bool {
        let node = envelope.from;
        let silent_for = alive.silent_for(from, replica_of(node, self.is_metadata()));
        match self.group.membership().broker_of(node) {
            Some(broker) if broker != from => {
                tracing::warn!(replica = %self.partition.replica, node, from, broker, "a message from the wrong broker is dropped");
                return false;
            }
            Some(_) => match self.group.pulse(&envelope, alive.now(), silent_for) {
                Pulse::Beat(reply) => {
                    sends.messages.entry(from).or_default().push(reply);
                    return false;
                }
                Pulse::Reply => return false,
                Pulse::Other => {}
            },
            None => {
                self.senders.retain(|(other, _)| *other != node);
                if self.senders.len() == SENDERS_MAX {
                    self.senders.remove(0);
                }
                self.senders.push((node, from));
            }
        }
        if let Body::Snapshot(mark) = &envelope.body {
            let mark = mark.clone();
            self.pull(from, node, envelope.term, mark, outside);
        } else if let Err(why) = self.group.step(envelope) {
            tracing::debug!(replica = %self.partition.replica, node, %why, "a message is dropped");
        }
        true
    }

    /// What followers lack of the log's tail goes to them as sealed segments: they are told, and come for it.
    fn offer(&mut self, output: &mut Output) {
        if let Some(index) = output.close_after.take()
            && let Err(error) = self.log().close_active(index)
        {
            tracing::debug!(replica = %self.partition.replica, %error, "closing the active segment for a snapshot");
        }
        for offer in output.snapshots.drain(..) {
            tracing::info!(replica = %self.partition.replica, to = offer.to, index = offer.mark.index, "a snapshot is offered");
            self.offered.retain(|(node, _)| *node != offer.to);
            self.offered.push((offer.to, Instant::now()));
            output.messages.push(Envelope {
                group: self.group.tag(),
                from: self.group.node(),
                to: offer.to,
                term: offer.term,
                body: Body::Snapshot(offer.mark),
            });
        }
    }

    /// A leader offers a snapshot. One at a time; an offer that is not taken up comes again.
    fn pull(
        &mut self,
        broker: i32,
        from: NodeId,
        term: u64,
        mark: SnapshotMark,
        outside: &Outside,
    ) {
        let known = term >= self.group.term() && mark.index > self.group.commit_index();
        if !known || std::mem::replace(&mut self.pulling, true) {
            return;
        }
        let pull = Pull {
            cluster: Arc::clone(&outside.cluster),
            log: Arc::clone(self.log()),
            broker,
            from,
            term,
            node: self.group.node(),
            tag: self.group.tag(),
            mark,
        };
        outside.runtime.spawn(pull.run());
    }

    /// A pull has ended.
    pub(super) fn staged(&mut self, from: NodeId, term: u64, staged: Option<Box<Install>>) {
        self.pulling = false;
        let Some(staged) = staged else { return };
        if let Err(why) = self.group.install(from, term, *staged) {
            tracing::warn!(replica = %self.partition.replica, %why, "a snapshot was pulled in vain");
        }
    }

    /// A follower pulls what it was offered: it is not offered anything else meanwhile.
    pub(super) fn send_goes_on(&mut self, node: NodeId) {
        if let Some((_, at)) = self.offered.iter_mut().find(|(other, _)| *other == node) {
            *at = Instant::now();
        }
    }

    /// Sending a snapshot to a follower has ended.
    pub(super) fn send_ended(&mut self, node: NodeId, ok: bool) {
        self.offered.retain(|(other, _)| *other != node);
        if self.group.is_leader() {
            self.group.snapshot_sent(node, ok);
        }
    }

    /// Whether it is to tick, or is silent and to tick later.
    pub(super) fn needs_ticks(&self) -> bool {
        self.group.needs_ticks()
    }

    /// Whether it needs no tick for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.group.is_quiet()
    }

    pub(super) fn tick(&mut self, alive: &Alive, sends: &mut Sends) -> Tick {
        let of_metadata = self.is_metadata();
        let silent_for =
            |member: Member| alive.silent_for(member.broker, replica_of(member.node, of_metadata));
        let tick = self.group.tick(alive.now(), silent_for, &mut sends.output);
        self.post(sends);
        tick
    }

    fn is_metadata(&self) -> bool {
        self.partition.replica == METADATA_REPLICA
    }

    pub(super) fn has_member_on(&self, brokers: &BTreeSet<i32>) -> bool {
        let members = self.group.membership().members();
        members
            .iter()
            .any(|member| brokers.contains(&member.broker))
    }

    pub(super) fn cold_done(&mut self, node: NodeId) {
        self.group.cold_done(node);
    }

    pub(super) fn view(&self) -> View {
        self.group.view()
    }

    /// Connections to a broker were reset and nobody listens there.
    pub(super) fn lost(&mut self, broker: i32) {
        let members = self.group.membership().members();
        let on_it: Vec<NodeId> = members
            .iter()
            .filter(|member| member.broker == broker)
            .map(|member| member.node)
            .collect();
        if !on_it.is_empty() {
            self.group.lost(|node| on_it.contains(&node));
        }
    }

    /// Messages to or from a broker may have been lost.
    pub(super) fn unreachable(&mut self, broker: i32) {
        for member in self.group.membership().members() {
            if member.broker == broker {
                self.group.unreachable(member.node);
            }
        }
    }

    /// Hands over to the replica on a broker, or to the voter that has most.
    pub(super) fn transfer(&mut self, to: Option<i32>, outside: &Outside) -> Result<(), ApiError> {
        if !self.group.is_leader() {
            return Err(self.not_leader(&outside.cluster));
        }
        let node = self.group.node();
        let membership = self.group.membership();
        let peers = self.group.peers();
        let best = peers
            .iter()
            .filter(|peer| peer.node != node && peer.active && membership.is_voter(peer.node))
            .filter(|peer| to.is_none_or(|to| membership.broker_of(peer.node) == Some(to)))
            .max_by_key(|peer| peer.matched)
            .map(|peer| peer.node);
        match best {
            Some(best) => {
                self.group.transfer(best);
                Ok(())
            }
            None => Err(ApiError::new(
                Reason::NotInSync,
                "no other replica could take over now",
            )),
        }
    }

    pub(super) fn change_members(
        &mut self,
        revision: u64,
        changes: Vec<Change>,
        now_ms: i64,
        outside: &Outside,
    ) -> Result<u64, ApiError> {
        self.group
            .propose_membership(revision, changes, now_ms)
            .map_err(|why| self.refusal(&why, &outside.cluster))
    }

    /// A leader looks who has what was committed at the look before: under load somebody always lacks the latest. The others
    /// hear of it if it changed. Returns whether a turn has something to do.
    pub(super) fn look_who_is_in_sync(&mut self, cluster: &Cluster, sends: &mut Sends) -> bool {
        if !self.group.is_leader() {
            return false;
        }
        let gives_up = !self.offered.is_empty();
        // Offers that nobody came for: the message may be lost, or the follower has pulled it in vain.
        let late = |(_, at): &&(NodeId, Instant)| at.elapsed() > OFFERED_FOR;
        if let Some((node, _)) = self.offered.iter().find(late).copied() {
            let peers = self.group.peers();
            let waits = |peer: &&PeerView| peer.node == node && peer.in_snapshot;
            if peers.iter().any(|peer| waits(&peer)) {
                self.send_ended(node, false);
            } else {
                self.offered.retain(|(other, _)| *other != node);
            }
        }
        let now = (self.group.term(), self.group.commit_index());
        let before = std::mem::replace(&mut self.looked, now);
        // A new leader has nothing to compare with.
        let committed = if before.0 == now.0 { before.1 } else { now.1 };
        let node = self.group.node();
        let membership = self.group.membership();
        let mut brokers: Vec<i32> = self
            .group
            .peers()
            .iter()
            .filter(|peer| peer.node == node || (peer.active && peer.matched >= committed))
            .filter(|peer| membership.is_voter(peer.node))
            .filter_map(|peer| membership.broker_of(peer.node))
            .collect();
        brokers.sort_unstable();
        if self.partition.set_in_sync(brokers) {
            tracing::debug!(replica = %self.partition.replica, committed, peers = ?self.group.peers(), "in sync");
            sends
                .leaderships
                .extend(cluster.note_lead(&self.partition, self.lead));
        }
        gives_up
    }

    /// Takes no part any more; nobody is led from here.
    pub(super) fn stop(&mut self, why: &str, outside: &Outside, sends: &mut Sends) {
        self.group.stop(why.to_owned());
        let lead = self.current_lead();
        if lead != self.lead {
            self.lead = lead;
            self.partition.set_lead(lead);
            sends
                .leaderships
                .extend(outside.cluster.note_lead(&self.partition, lead));
        }
    }

    fn answer_committed(&mut self, committed: u64, metrics: &Metrics, wakes: &mut Wakes) {
        while self
            .pending
            .front()
            .is_some_and(|first| first.index <= committed)
        {
            let Some(pending) = self.pending.pop_front() else {
                break;
            };
            let mut acked = pending.acked;
            acked.log_start = self.log().log_start();
            pending.reply.complete(Ok(acked), metrics, wakes);
        }
        if self.pending.is_empty() && self.pending.capacity() > PENDING_KEPT {
            self.pending = VecDeque::new();
        }
    }

    /// Answers everything that waits with an error: its outcome is not known to be durable.
    pub(super) fn fail_pending(&mut self, error: &ApiError, metrics: &Metrics, wakes: &mut Wakes) {
        for pending in self.pending.drain(..) {
            pending
                .reply
                .complete(Err(Box::new(error.clone())), metrics, wakes);
        }
    }

    /// A group that stopped for want of space goes on when there is some.
    fn revive(&mut self) {
        if !self.group.stopped_for_space() {
            return;
        }
        let log = Arc::clone(self.log());
        let durable = log.durability().index >= log.last_index() && log.is_hard_state_durable();
        if !durable || log.reserve(REVIVED_WITH_BYTES).is_err() {
            return;
        }
        match Group::open(self.group.options(), log) {
            Ok(group) => {
                tracing::info!(replica = %self.partition.replica, "there is space again: the replica takes part");
                self.group = group;
            }
            Err(error) => {
                tracing::error!(replica = %self.partition.replica, %error, "opening the group again");
            }
        }
    }

    /// Rolls by age and proposes retention.
    pub(super) fn housekeep(&mut self, now_ms: i64, outside: &Outside) {
        self.revive();
        let log = self.log();
        if log.segments() == 0 {
            return;
        }
        if let Err(error) = log.maybe_roll(now_ms) {
            tracing::warn!(replica = %self.partition.replica, %error, "rolling by age");
        }
        if !self.group.is_leader() {
            return;
        }
        let Some(target) = log.retention_target(now_ms) else {
            return;
        };
        if target <= log.log_start() || self.trimming_to.is_some_and(|to| to >= target) {
            return;
        }
        match self.propose(&Proposal::LogStart(target), now_ms, &outside.cluster) {
            Ok(appended) => {
                tracing::info!(replica = %self.partition.replica, target, "retention moves the log start");
                self.trimming_to = Some(target);
                self.answer_when_committed(self.acked_at(appended.index), Reply::Retention);
            }
            Err(error) => tracing::warn!(replica = %self.partition.replica, %error, "retention"),
        }
    }
}

/// The replica behind a member's number: all of the metadata group have the same.
fn replica_of(node: NodeId, of_metadata: bool) -> u64 {
    match of_metadata {
        true => METADATA_REPLICA.0,
        false => node,
    }
}

/// Room for answers that is kept while nothing is under way.
const PENDING_KEPT: usize = 64;

fn sequence_error(header: &timberline_record::BatchHeader, check: SequenceCheck) -> ApiError {
    let (id, epoch, sequence) = (
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
    );
    let error = match check {
        SequenceCheck::OutOfOrder { expected } => ApiError::new(
            Reason::OutOfOrderSequence,
            format!("producer {id} sent sequence {sequence}, next is {expected}"),
        )
        .with("expected_sequence", expected),
        SequenceCheck::Fenced { current_epoch } => ApiError::new(
            Reason::ProducerFenced,
            format!("producer {id} has epoch {current_epoch}, this is {epoch}"),
        )
        .with("current_epoch", current_epoch),
        SequenceCheck::TooOld => ApiError::new(
            Reason::DuplicateSequence,
            format!("producer {id} wrote sequence {sequence} more than five batches ago"),
        ),
        _ => ApiError::new(
            Reason::UnknownProducer,
            format!("producer {id} is not known here and sequence {sequence} is not its first"),
        ),
    };
    error.with("producer_id", id)
}
