//! What a consumer and its driver share: the partitions wanted, what was fetched, and the bytes given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use timberline_record::Batch;
use tokio::sync::{Notify, watch};

use crate::error::Error;

/// A partition that the application wants, from an offset on. Each move of it is a new one with a new id.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: [u8; 16],
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) progress: Arc<Progress>,
}

impl Wanted {
    /// Names the partition, whatever the assignment.
    pub(crate) fn key(&self) -> ([u8; 16], i32) {
        (self.topic_id, self.partition)
    }
}

/// How far a partition is, for those who look from outside; −1 before the first news.
#[derive(Debug)]
pub(crate) struct Progress {
    /// One after the last readable offset, as last heard.
    pub(crate) high_watermark: AtomicI64,
    /// The application is done with what comes before.
    pub(crate) done: AtomicI64,
    /// The application went back on purpose: the next commit may be lower than the one before.
    pub(crate) rewound: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            high_watermark: AtomicI64::new(-1),
            done: AtomicI64::new(-1),
            rewound: AtomicBool::new(false),
        }
    }
}

/// Bytes of one stream's batches on their way to the application.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    /// In the queue.
    pub(crate) queued: AtomicUsize,
    /// Taken out of it, not granted again yet.
    pub(crate) returned: AtomicUsize,
}

/// What the driver hands to the application, in order. The queue is bounded by the bytes granted, and by one entry
/// per assignment for what is not data.
#[derive(Debug)]
pub(crate) enum Item {
    Data {
        assignment: u64,
        batch: Batch,
        credit: Arc<Credit>,
    },
    /// The position was moved by the reset policy.
    Moved { assignment: u64, offset: i64 },
    /// The partition is paused.
    Failed { assignment: u64, error: Error },
}

/// A broker that leads assigned partitions is out of reach. The consumer goes on trying.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Since when.
    pub since: Instant,
    /// What happened last.
    pub error: Error,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// By assignment id. At most one per partition.
    pub(crate) wanted: Mutex<BTreeMap<u64, Wanted>>,
    pub(crate) wanted_changed: AtomicBool,
    pub(crate) closed: AtomicBool,
    /// Wakes the driver.
    pub(crate) wake: Notify,
    /// The longest outage there is now.
    pub(crate) outage: watch::Sender<Option<Outage>>,
    /// Bytes returned that the driver was not woken for yet.
    unsaid: AtomicUsize,
}

impl Shared {
    pub(crate) fn change(&self, remove: &[u64], add: Vec<(u64, Wanted)>) {
        let mut wanted = self.wanted.lock();
        for id in remove {
            wanted.remove(id);
        }
        wanted.extend(add);
        drop(wanted);
        self.wanted_changed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The application took a batch out of the queue. The driver is woken every `threshold` bytes.
    pub(crate) fn give_back(&self, credit: &Credit, bytes: usize, threshold: usize) {
        credit.queued.fetch_sub(bytes, Ordering::Relaxed);
        credit.returned.fetch_add(bytes, Ordering::Relaxed);
        if self.unsaid.fetch_add(bytes, Ordering::Relaxed) + bytes >= threshold {
            self.unsaid.store(0, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}
