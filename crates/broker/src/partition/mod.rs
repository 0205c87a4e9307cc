//! One partition as every thread sees it: its log for reading, its bounds, and who waits for its high watermark.
//!
//! The write side belongs to the partition's shard (`crate::shard`). A partition without traffic costs this struct and
//! its log, nothing else: no task, no timer, no metric.

mod directory;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use timberline_proto::error::{ApiError, Reason};
use timberline_storage::{Log, ReplicaId};
use uuid::Uuid;

use crate::cluster::Cluster;

pub(crate) use directory::{Directory, TopicHandle};
pub(crate) use wait::{Signal, Waiters};

/// Who leads a partition, as the replica here knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lead {
    pub(crate) term: u64,
    /// The leader's broker; `None` while none is known.
    pub(crate) leader: Option<i32>,
    /// The replica here leads.
    pub(crate) here: bool,
    /// It has committed an entry of its term, so that its high watermark is not behind what was acknowledged.
    pub(crate) settled: bool,
}

/// A partition that this broker hosts.
pub(crate) struct Partition {
    pub(crate) topic: Uuid,
    pub(crate) number: i32,
    pub(crate) replica: ReplicaId,
    pub(crate) log: Arc<Log>,
    /// Bytes proposed and not answered yet.
    in_flight: AtomicU64,
    lead: Mutex<Lead>,
    /// Brokers whose replica has what is committed, as its leader here sees it; empty elsewhere.
    in_sync: Mutex<Vec<i32>>,
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
            lead: Mutex::new(Lead {
                term: log.hard_state().term,
                ..Lead::default()
            }),
            in_sync: Mutex::default(),
            closed: AtomicBool::new(false),
            waiters: Waiters::default(),
            log,
        })
    }

    /// The leader's term, as clients know it.
    pub(crate) fn leader_epoch(&self) -> i32 {
        epoch_of(self.lead.lock().term)
    }

    /// Who leads it.
    pub(crate) fn lead(&self) -> Lead {
        *self.lead.lock()
    }

    /// Called by the shard when that changes. Readers look again: they may have to go elsewhere.
    pub(crate) fn set_lead(&self, lead: Lead) {
        let before = std::mem::replace(&mut *self.lead.lock(), lead);
        if before.here != lead.here || before.settled != lead.settled {
            self.waiters.wake();
        }
    }

    /// Brokers whose replica is in sync; empty unless the leader is here.
    pub(crate) fn in_sync(&self) -> Vec<i32> {
        self.in_sync.lock().clone()
    }

    /// Called by the shard; whether it changed.
    pub(crate) fn set_in_sync(&self, brokers: Vec<i32>) -> bool {
        let mut in_sync = self.in_sync.lock();
        let changed = *in_sync != brokers;
        *in_sync = brokers;
        changed
    }

    /// # Errors
    /// `UNKNOWN_TOPIC` once the topic is deleted.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(crate::metadata::plan::unknown_topic(self.topic));
        }
        Ok(())
    }

    /// # Errors
    /// `UNKNOWN_TOPIC`, `NOT_LEADER`, `NO_LEADER`.
    pub(crate) fn check_leads(&self, cluster: &Cluster) -> Result<(), ApiError> {
        self.check_open()?;
        match self.lead().here {
            true => Ok(()),
            false => Err(cluster.not_leader(self.topic, self.number, Some(self.lead()))),
        }
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
