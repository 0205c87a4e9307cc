//! One partition as every thread sees it: its log for reading, its bounds, and who waits for its high watermark.
//!
//! The write side belongs to the partition's shard (`crate::shard`). A partition without traffic costs this struct and
//! its log, nothing else: no task, no timer, no metric.

mod directory;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use timberline_proto::error::{ApiError, Reason};
use timberline_storage::{Log, ReplicaId};
use uuid::Uuid;

pub(crate) use directory::{Directory, TopicHandle};
pub(crate) use wait::{Signal, Waiters};

/// A partition that this broker hosts.
pub(crate) struct Partition {
    pub(crate) topic: Uuid,
    pub(crate) number: i32,
    pub(crate) replica: ReplicaId,
    pub(crate) log: Arc<Log>,
    /// Bytes proposed and not answered yet.
    in_flight: AtomicU64,
    /// Term in which this broker leads it.
    leader_epoch: AtomicI32,
    /// Set when its topic is deleted; whoever still holds it answers UNKNOWN_TOPIC.
    closed: AtomicBool,
    waiters: Waiters,
}

impl Partition {
    pub(crate) fn new(log: Arc<Log>) -> Arc<Partition> {
        let spec = *log.spec();
        Arc::new(Partition {
            topic: spec.topic,
            number: spec.partition as i32,
            replica: spec.replica,
            in_flight: AtomicU64::new(0),
            leader_epoch: AtomicI32::new(epoch_of(log.hard_state().term)),
            closed: AtomicBool::new(false),
            waiters: Waiters::default(),
            log,
        })
    }

    /// The leader's term, as clients know it.
    pub(crate) fn leader_epoch(&self) -> i32 {
        self.leader_epoch.load(Ordering::Relaxed)
    }

    /// Called by the shard when the term moves.
    pub(crate) fn set_term(&self, term: u64) {
        self.leader_epoch.store(epoch_of(term), Ordering::Relaxed);
    }

    /// # Errors
    /// `UNKNOWN_TOPIC` once the topic is deleted.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(crate::metadata::plan::unknown_topic(self.topic));
        }
        Ok(())
    }

    /// Marks the topic as deleted and wakes everybody who waits here.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.wake();
    }

    /// Called by the shard after the high watermark or the log start moved.
    pub(crate) fn advanced(&self) {
        self.waiters.wake();
    }

    /// Where readers register that are caught up.
    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Takes `bytes` of the partition's bound.
    ///
    /// # Errors
    /// `OVERLOADED` when they do not fit; nothing is taken then.
    fn take(&self, bytes: u64, max: u64) -> Result<(), ApiError> {
        let taken = self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        if taken + bytes > max {
            self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(overloaded("this partition has", taken));
        }
        Ok(())
    }
}

fn epoch_of(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

fn overloaded(who: &str, bytes: u64) -> ApiError {
    ApiError::new(
        Reason::Overloaded,
        format!("{who} {bytes} unacknowledged bytes, as many as allowed"),
    )
    .with_retry_after(RETRY_AFTER_OVERLOAD)
}

/// What a refused writer is told to wait: a few group commits.
const RETRY_AFTER_OVERLOAD: std::time::Duration = std::time::Duration::from_millis(50);

/// The bounds on unacknowledged bytes, of each partition and of the broker.
pub(crate) struct Budget {
    in_flight: AtomicU64,
    broker_max: u64,
    partition_max: u64,
}

impl Budget {
    pub(crate) fn new(broker_max: u64, partition_max: u64) -> Arc<Budget> {
        Arc::new(Budget {
            in_flight: AtomicU64::new(0),
            broker_max,
            partition_max,
        })
    }

    /// Bytes proposed and not answered, in the whole broker.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes `bytes` of both bounds until the permit is dropped.
    ///
    /// # Errors
    /// `OVERLOADED`.
    pub(crate) fn take(
        self: &Arc<Self>,
        partition: &Arc<Partition>,
        bytes: u64,
    ) -> Result<Permit, ApiError> {
        let taken = self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let result = if taken + bytes > self.broker_max {
            Err(overloaded("this broker has", taken))
        } else {
            partition.take(bytes, self.partition_max)
        };
        if let Err(error) = result {
            self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(error);
        }
        Ok(Permit {
            partition: Arc::clone(partition),
            budget: Arc::clone(self),
            bytes,
        })
    }
}

/// Bytes taken of the bounds, given back when dropped.
pub(crate) struct Permit {
    partition: Arc<Partition>,
    budget: Arc<Budget>,
    bytes: u64,
}

impl Permit {
    /// The partition it is for.
    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.partition
            .in_flight
            .fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget
            .in_flight
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
