//! The acknowledgement of a record, as a future. One completion is shared by all records of a batch.

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

/// The outcome of a batch, set once, and who waits for it.
#[derive(Debug)]
pub(crate) struct Completion {
    partition: i32,
    outcome: OnceLock<Result<BatchAck>>,
    waiting: Mutex<Vec<Waker>>,
}

impl Completion {
    pub(crate) fn new(partition: i32) -> Arc<Completion> {
        Arc::new(Completion {
            partition,
            outcome: OnceLock::new(),
            waiting: Mutex::new(Vec::new()),
        })
    }

    /// Sets the outcome and wakes everybody who waits. Only the first call counts.
    pub(crate) fn complete(&self, outcome: Result<BatchAck>) {
        let waiting = {
            let mut waiting = self.waiting.lock();
            let _ = self.outcome.set(outcome);
            std::mem::take(&mut *waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    /// The outcome, or registers to be woken at it. `slot` is the caller's place among those who wait.
    pub(crate) fn poll(
        &self,
        cx: &Context<'_>,
        slot: &mut Option<usize>,
    ) -> Poll<Result<BatchAck>> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome.clone());
        }
        let mut waiting = self.waiting.lock();
        // Set under the lock: looked at again, lest a wake-up be missed.
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome.clone());
        }
        match slot.and_then(|slot| waiting.get_mut(slot)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                *slot = Some(waiting.len());
                waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Completion {
    /// Waits for the outcome.
    pub(crate) async fn wait(&self) -> Result<BatchAck> {
        let mut slot = None;
        std::future::poll_fn(|cx| self.poll(cx, &mut slot)).await
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
        Some(outcome.clone().map(|ack| self.metadata(ack)))
    }

    fn metadata(&self, ack: BatchAck) -> RecordMetadata {
        RecordMetadata {
            partition: self.completion.partition,
            offset: ack.base_offset + i64::from(self.index),
            timestamp_ms: ack.log_append_time_ms.unwrap_or(self.timestamp_ms),
            duplicate: ack.duplicate,
        }
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let outcome = this.completion.poll(cx, &mut this.slot);
        outcome.map(|outcome| outcome.map(|ack| this.metadata(ack)))
    }
}
