//! Shards: the threads that own the partitions' write side. One partition, one shard, no lock.
//!
//! Front → inbox → check the producer's sequence → propose → (the store syncs) → durable → commit → answer. A shard never
//! waits for a disk or a peer, only for its inbox. Wakes are for bursts: everything in the inbox is done before anybody
//! is woken.

mod inbox;
mod run;
mod writer;

use std::sync::Arc;
use std::thread::JoinHandle;

use timberline_proto::error::ApiError;
use timberline_storage::{Listener, ReplicaId, SyncKind};
use tokio::sync::oneshot;

use crate::ack::{Outcome, Ticket};
use crate::group::Group;
use crate::metrics::Metrics;
use crate::partition::Partition;

use inbox::Inbox;

/// Takes a committed command's index and payload. Called on the shard; must not block.
pub(crate) type OnCommit = Arc<dyn Fn(u64, bytes::Bytes) + Send + Sync>;

/// What a shard is asked to do.
pub(crate) enum Work {
    /// Write a client's batch; the ticket holds the partition.
    Batch {
        batch: timberline_record::Batch,
        /// Replace the producer's timestamps by the time of the append.
        log_append_time: bool,
        ticket: Ticket,
    },
    /// Append to a state log.
    Command {
        replica: ReplicaId,
        payload: bytes::Bytes,
        reply: oneshot::Sender<Outcome>,
    },
    /// Move the log start up; `None`: to the high watermark.
    Trim {
        replica: ReplicaId,
        before: Option<i64>,
        reply: oneshot::Sender<Outcome>,
    },
    /// Take a group over.
    Adopt {
        group: Box<dyn Group>,
        partition: Arc<Partition>,
        /// Told of each committed command, in order, for state logs.
        on_commit: Option<OnCommit>,
    },
    /// Let a group go, its topic was deleted; then do what must wait for the last append.
    Release {
        replica: ReplicaId,
        then: Box<dyn FnOnce() + Send>,
    },
    /// Look at age and retention of all logs.
    Housekeep,
    /// Say when everything before this is done.
    Barrier(std::sync::mpsc::Sender<()>),
}

/// All shards of a broker.
pub(crate) struct Shards {
    inboxes: Vec<Arc<Inbox>>,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Shards {
    /// Starts `count` threads; 0: one for each core.
    ///
    /// # Errors
    /// That of the system, if a thread can't be made.
    pub(crate) fn start(count: usize, metrics: &Arc<Metrics>) -> std::io::Result<Arc<Shards>> {
        let count = if count == 0 {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        } else {
            count
        };
        let mut inboxes = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let inbox = Arc::new(Inbox::default());
            inboxes.push(Arc::clone(&inbox));
            let metrics = Arc::clone(metrics);
            threads.push(
                std::thread::Builder::new()
                    .name(format!("shard-{number}"))
                    .spawn(move || run::Shard::new(inbox, metrics).run())?,
            );
        }
        Ok(Arc::new(Shards {
            inboxes,
            threads: parking_lot::Mutex::new(threads),
            metrics: Arc::clone(metrics),
        }))
    }

    fn inbox(&self, replica: ReplicaId) -> &Inbox {
        let at = replica.0 as usize % self.inboxes.len();
        &self.inboxes[at]
    }

    /// Hands work for a replica to its shard. Work that does not fit is answered with `OVERLOADED`, after the stop with
    /// `DRAINING`.
    pub(crate) fn submit(&self, replica: ReplicaId, work: Work) {
        if let Err(undone) = self.inbox(replica).push(work) {
            undone.work.refuse(undone.error);
        }
    }

    /// Asks every shard to look at age and retention.
    pub(crate) fn housekeep(&self) {
        for inbox in &self.inboxes {
            let _ = inbox.push(Work::Housekeep);
        }
    }

    /// Work that waits, in items.
    pub(crate) fn queued(&self) -> usize {
        self.inboxes.iter().map(|inbox| inbox.len()).sum()
    }

    /// Takes no more work, and returns when nothing will be appended any more. Answers still go out as entries become
    /// durable, until [`Shards::stop`]. Blocking.
    pub(crate) fn close(&self) {
        let (done, all_done) = std::sync::mpsc::channel();
        for inbox in &self.inboxes {
            inbox.close(Work::Barrier(done.clone()));
        }
        drop(done);
        // Each shard drops its sender when it gets there.
        while all_done.recv().is_ok() {}
    }

    /// Ends the threads after what is in the inboxes; what is not committed by then is answered with `DRAINING`.
    pub(crate) fn stop(&self) {
        for inbox in &self.inboxes {
            inbox.stop();
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

impl Work {
    /// Answers work that was not taken.
    fn refuse(self, error: ApiError) {
        let error = Box::new(error);
        match self {
            Work::Batch { ticket, .. } => ticket.complete_now(Err(error)),
            Work::Command { reply, .. } | Work::Trim { reply, .. } => {
                let _ = reply.send(Err(error));
            }
            Work::Adopt { .. } | Work::Release { .. } | Work::Housekeep | Work::Barrier(_) => {}
        }
    }
}

impl Listener for Shards {
    fn durable(&self, updates: &[(ReplicaId, u64)]) {
        if let [only] = self.inboxes.as_slice() {
            return only.durable(updates.iter().copied());
        }
        for (at, inbox) in self.inboxes.iter().enumerate() {
            let count = self.inboxes.len();
            inbox.durable(
                updates
                    .iter()
                    .copied()
                    .filter(|(replica, _)| replica.0 as usize % count == at),
            );
        }
    }

    fn poisoned(&self, why: &str) {
        tracing::error!(why, "storage is read-only until a restart");
        for inbox in &self.inboxes {
            inbox.poison(why);
        }
    }

    fn synced(&self, kind: SyncKind, took: std::time::Duration) {
        self.metrics.synced(kind, took);
    }
}
