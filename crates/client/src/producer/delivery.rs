//! The acknowledgement of a record, as a future. One completion is shared by all records of a
//! batch, also when the batch is cut later.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::error::Result;

/// Where a record was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordMetadata {
    /// The partition.
    pub partition: i32,
    /// The record's offset in it.
    pub offset: i64,
    /// The timestamp stored, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// An earlier attempt, whose acknowledgement got lost, had already stored it (once).
    pub duplicate: bool,
}

/// What an acknowledgement says about a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchAck {
    pub(crate) base_offset: i64,
    pub(crate) log_append_time_ms: Option<i64>,
    pub(crate) duplicate: bool,
}

/// The outcome of the records that were gathered in one batch, set once, and who waits for it.
#[derive(Debug)]
pub(crate) struct Completion {
    partition: i32,
    outcome: OnceLock<Outcome>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<Waker>,
    /// Outcomes of the parts of a batch that was cut, until there are all.
    parts: Vec<(Part, Result<BatchAck>)>,
}

impl Waiting {
    fn has(&self, part: Part) -> bool {
        self.parts.iter().any(|(other, _)| *other == part)
    }
}

/// Some records of a batch: it was too large for the broker and went in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the first.
    first: u32,
    /// How many. At least one.
    pub(crate) records: u32,
    /// How many there are in all parts.
    of: u32,
}

impl Part {
    pub(crate) fn whole(records: u32) -> Part {
        Part {
            first: 0,
            records,
            of: records,
        }
    }

    /// Both halves; a single record has none.
    pub(crate) fn halves(self) -> Option<(Part, Part)> {
        let count = self.records / 2;
        let first = Part {
            records: count,
            ..self
        };
        let second = Part {
            first: self.first + count,
            records: self.records - count,
            ..self
        };
        (count > 0).then_some((first, second))
    }
}

#[derive(Debug)]
enum Outcome {
    Whole(Result<BatchAck>),
    /// In order, without gaps.
    Parts(Vec<(Part, Result<BatchAck>)>),
}

impl Outcome {
    /// What became of one record: the acknowledgement of its batch, and its place there.
    fn of(&self, index: u32) -> Result<(BatchAck, u32)> {
        match self {
            Outcome::Whole(outcome) => outcome.clone().map(|ack| (ack, index)),
            Outcome::Parts(parts) => {
                let at = parts.partition_point(|(part, _)| part.first <= index);
                let (part, outcome) = &parts[at.saturating_sub(1)];
                outcome.clone().map(|ack| (ack, index - part.first))
            }
        }
    }

    /// The first failure of any record.
    fn failure(&self) -> Result<()> {
        match self {
            Outcome::Whole(outcome) => outcome.clone().map(drop),
            Outcome::Parts(parts) => {
                let outcomes = parts.iter().map(|(_, outcome)| outcome.clone().map(drop));
                outcomes.collect()
            }
        }
    }
}

impl Completion {
    pub(crate) fn new(partition: i32) -> Arc<Completion> {
        Arc::new(Completion {
            partition,
            outcome: OnceLock::new(),
            waiting: Mutex::default(),
        })
    }

    /// Sets the outcome, or that of a part, and with the last one wakes everybody who waits. Of several calls for
    /// the same records only the first counts.
    pub(crate) fn complete(&self, part: Part, outcome: Result<BatchAck>) {
        let wakers = {
            let mut waiting = self.waiting.lock();
            if self.outcome.get().is_some() || waiting.has(part) {
                return;
            }
            let outcome = if part.records == part.of {
                Outcome::Whole(outcome)
            } else {
                waiting.parts.push((part, outcome));
                let known: u32 = waiting.parts.iter().map(|(part, _)| part.records).sum();
                if known < part.of {
                    return;
                }
                let mut parts = std::mem::take(&mut waiting.parts);
                parts.sort_unstable_by_key(|(part, _)| part.first);
                Outcome::Parts(parts)
            };
            let _ = self.outcome.set(outcome);
            std::mem::take(&mut waiting.wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }

    /// The outcome, or registers to be woken at it. `slot` is the caller's place among those who wait.
    fn poll(&self, cx: &Context<'_>, slot: &mut Option<usize>) -> Poll<&Outcome> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        let wakers = &mut self.waiting.lock().wakers;
        // Set under the lock: looked at again, lest a wake-up be missed.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        match slot.and_then(|slot| wakers.get_mut(slot)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                *slot = Some(wakers.len());
                wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Completion {
    /// Waits for the outcome. The first failure, if there is any.
    pub(crate) async fn wait(&self) -> Result<()> {
        let mut slot = None;
        std::future::poll_fn(|cx| self.poll(cx, &mut slot).map(Outcome::failure)).await
    }
}

/// Resolves when the record is acknowledged or has failed. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "a delivery that nobody awaits hides a failure; flush() reports failures too"]
pub struct Delivery {
    completion: Arc<Completion>,
    index: u32,
    timestamp_ms: i64,
    slot: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(completion: Arc<Completion>, index: u32, timestamp_ms: i64) -> Delivery {
        Delivery {
            completion,
            index,
            timestamp_ms,
            slot: None,
        }
    }

    /// The partition the record goes to.
    pub fn partition(&self) -> i32 {
        self.completion.partition
    }

    /// The outcome if it is known already, without waiting.
    pub fn try_result(&self) -> Option<Result<RecordMetadata>> {
        let outcome = self.completion.outcome.get()?;
        Some(self.metadata(outcome))
    }

    fn metadata(&self, outcome: &Outcome) -> Result<RecordMetadata> {
        let (ack, place) = outcome.of(self.index)?;
        Ok(RecordMetadata {
            partition: self.completion.partition,
            offset: ack.base_offset + i64::from(place),
            timestamp_ms: ack.log_append_time_ms.unwrap_or(self.timestamp_ms),
            duplicate: ack.duplicate,
        })
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let outcome = this.completion.poll(cx, &mut this.slot);
        outcome.map(|outcome| this.metadata(outcome))
    }
}
