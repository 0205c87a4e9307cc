//! The write side of one partition: sequences checked, entries proposed, answers given when they commit.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use timberline_proto::error::{ApiError, Reason};
use timberline_record::Batch;
use timberline_storage::SequenceCheck;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::ack::{Acked, Outcome, Ticket, Wakes};
use crate::errors;
use crate::group::{Entry, Event, Group, Proposed};
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::shard::OnCommit;

/// One partition's writer. Small while nothing is under way: there may be ten thousand.
pub(super) struct Writer {
    group: Box<dyn Group>,
    partition: Arc<Partition>,
    on_commit: Option<OnCommit>,
    /// Answers that wait for a commit, by index. Bounded by the bytes that `partition::Budget` admits.
    pending: VecDeque<Pending>,
    /// A log-start entry is under way; another would only repeat it.
    trimming_to: Option<i64>,
}

struct Pending {
    index: u64,
    acked: Acked,
    reply: Reply,
}

enum Reply {
    Ticket(Ticket),
    Once(oneshot::Sender<Outcome>),
    /// A state log's command, kept for whoever follows the log.
    Command(oneshot::Sender<Outcome>, Bytes),
    /// Nobody waits; only the log start moves.
    Retention,
}

impl Reply {
    fn complete(self, outcome: Outcome, metrics: &Metrics, wakes: &mut Wakes) {
        match self {
            Reply::Ticket(ticket) => ticket.complete(outcome, metrics, wakes),
            Reply::Once(sender) | Reply::Command(sender, _) => {
                let _ = sender.send(outcome);
            }
            Reply::Retention => {}
        }
    }
}

impl Writer {
    pub(super) fn new(
        group: Box<dyn Group>,
        partition: Arc<Partition>,
        on_commit: Option<OnCommit>,
    ) -> Writer {
        partition.set_term(group.term());
        Writer {
            group,
            partition,
            on_commit,
            pending: VecDeque::new(),
            trimming_to: None,
        }
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
        metrics: &Metrics,
        wakes: &mut Wakes,
    ) {
        match self.admit(batch, log_append_time, now_ms) {
            Ok(acked) => self.answer_when_committed(acked, Reply::Ticket(ticket)),
            Err(error) => return ticket.complete(Err(error), metrics, wakes),
        }
        self.answer_committed(self.group.log().commit_index(), metrics, wakes);
    }

    /// Checks the sequence and proposes. A duplicate is admitted too: with the place of its original.
    fn admit(
        &mut self,
        batch: Batch,
        log_append_time: bool,
        now_ms: i64,
    ) -> Result<Acked, Box<ApiError>> {
        let header = *batch.header();
        let log = self.group.log();
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
        let proposed = self.propose(Entry::Batch(batch), now_ms)?;
        acked.index = proposed.index;
        acked.base_offset = proposed.base_offset;
        Ok(acked)
    }

    fn propose(&mut self, entry: Entry, now_ms: i64) -> Result<Proposed, Box<ApiError>> {
        self.group
            .propose(entry, now_ms)
            .map_err(|why| Box::new(errors::from_refusal(&why)))
    }

    /// Appends to a state log.
    pub(super) fn command(&mut self, payload: Bytes, reply: oneshot::Sender<Outcome>, now_ms: i64) {
        match self.propose(Entry::Command(payload.clone()), now_ms) {
            Ok(proposed) => {
                let reply = Reply::Command(reply, payload);
                self.answer_when_committed(self.acked_at(proposed), reply);
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
    ) {
        let log = self.group.log();
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
            let done = self.acked_at(Proposed {
                index: 0,
                base_offset: 0,
            });
            return drop(reply.send(Ok(done)));
        }
        match self.propose(Entry::LogStart(target), now_ms) {
            Ok(proposed) => self.answer_when_committed(self.acked_at(proposed), Reply::Once(reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn acked_at(&self, proposed: Proposed) -> Acked {
        Acked {
            index: proposed.index,
            base_offset: proposed.base_offset,
            leader_epoch: self.partition.leader_epoch(),
            log_append_time_ms: None,
            duplicate: false,
            log_start: self.group.log().log_start(),
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

    /// The store made everything up to `index` durable.
    pub(super) fn durable(&mut self, index: u64, metrics: &Metrics, wakes: &mut Wakes) {
        self.group.durable(index);
        while let Some(Event::Committed(committed)) = self.group.poll() {
            if self
                .trimming_to
                .is_some_and(|to| to <= self.group.log().log_start())
            {
                self.trimming_to = None;
            }
            self.answer_committed(committed, metrics, wakes);
            self.partition.advanced();
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
            acked.log_start = self.group.log().log_start();
            if let (Some(on_commit), Reply::Command(_, payload)) = (&self.on_commit, &pending.reply)
            {
                on_commit(pending.index, payload.clone());
            }
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

    /// Rolls by age and proposes retention.
    pub(super) fn housekeep(&mut self, now_ms: i64) {
        let log = self.group.log();
        if log.segments() == 0 {
            return;
        }
        if let Err(error) = log.maybe_roll(now_ms) {
            tracing::warn!(replica = %self.partition.replica, %error, "rolling by age");
        }
        let Some(target) = log.retention_target(now_ms) else {
            return;
        };
        if target <= log.log_start() || self.trimming_to.is_some_and(|to| to >= target) {
            return;
        }
        match self.propose(Entry::LogStart(target), now_ms) {
            Ok(proposed) => {
                tracing::info!(replica = %self.partition.replica, target, "retention moves the log start");
                self.trimming_to = Some(target);
                self.answer_when_committed(self.acked_at(proposed), Reply::Retention);
            }
            Err(error) => tracing::warn!(replica = %self.partition.replica, %error, "retention"),
        }
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
