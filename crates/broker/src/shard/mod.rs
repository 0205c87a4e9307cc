//! Shards: the threads that own the partitions' write side. One partition, one shard, no lock.
//!
//! Front → inbox → check the producer's sequence → propose → (the store and the peers sync) → commit → answer. A shard
//! never waits for a disk or a peer, only for its inbox and, while it has groups of several replicas, for the next tick.
//! Wakes are for bursts: everything in the inbox is done before a clock ticks, a message leaves or anybody is woken.

mod inbox;
mod run;
mod writer;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use timberline_consensus::{Change, Envelope, Group, NodeId, Timing, View, place};
use timberline_proto::error::ApiError;
use timberline_storage::{Install, Listener, Log, ReplicaId, SyncKind};
use tokio::sync::oneshot;

use crate::ack::{Outcome, Ticket};
use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::partition::Partition;
use crate::peer::ShardBeats;

use inbox::Inbox;

/// The time between two ticks of all groups.
pub(crate) const TICK: Duration = Duration::from_millis(25);

/// One replica of one partition, as a shard drives it.
pub(crate) type LogGroup = Group<Arc<Log>>;

/// Told of a state log's commit index. Called on the shard; must not block.
pub(crate) type OnCommit = Arc<dyn Fn(u64) + Send + Sync>;

/// What is asked of a leader, answered at once.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

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
        group: Box<LogGroup>,
        partition: Arc<Partition>,
        /// Told of the commit index, for state logs.
        on_commit: Option<OnCommit>,
    },
    /// Let a group go, its topic was deleted; then do what must wait for the last append.
    Release {
        replica: ReplicaId,
        then: Box<dyn FnOnce() + Send>,
    },
    /// Messages of another broker's replica of this group.
    Messages {
        replica: ReplicaId,
        from: i32,
        envelopes: Vec<Envelope>,
        bytes: usize,
    },
    /// Beats of another broker's replicas, and its answers to beats, of many groups.
    Beats {
        from: i32,
        beats: Vec<(ReplicaId, Envelope)>,
    },
    /// A read that a follower's entries wait for is done.
    ColdDone { replica: ReplicaId, node: NodeId },
    /// A snapshot was pulled, or was not.
    Staged {
        replica: ReplicaId,
        from: NodeId,
        term: u64,
        staged: Option<Box<Install>>,
    },
    /// A follower pulls a snapshot, and has not given up.
    SendGoesOn { replica: ReplicaId, node: NodeId },
    /// A follower gave up pulling a snapshot.
    SendEnded { replica: ReplicaId, node: NodeId },
    /// Hand over to the replica on `to`, or to whichever is best.
    Transfer {
        replica: ReplicaId,
        to: Option<i32>,
        reply: Option<Reply<()>>,
    },
    /// Hand over everything that is led here.
    Resign,
    /// Change the membership.
    ChangeMembers {
        replica: ReplicaId,
        revision: u64,
        changes: Vec<Change>,
        reply: Reply<u64>,
    },
    /// Show the group.
    View {
        replica: ReplicaId,
        reply: oneshot::Sender<View>,
    },
    /// Connections to a broker were reset, and nobody listens there.
    PeerLost(i32),
    /// Messages to a broker were dropped.
    PeerUnreachable(i32),
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
    /// Starts `count` threads. What has to block is done on `runtime`.
    ///
    /// # Errors
    /// That of the system, if a thread can't be made.
    pub(crate) fn start(
        count: usize,
        timing: Timing,
        metrics: &Arc<Metrics>,
        cluster: &Arc<Cluster>,
        runtime: &tokio::runtime::Handle,
    ) -> std::io::Result<Arc<Shards>> {
        let mut inboxes = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let inbox = Arc::new(Inbox::default());
            inboxes.push(Arc::clone(&inbox));
            let outside = run::Outside {
                number: number as u16,
                timing,
                metrics: Arc::clone(metrics),
                cluster: Arc::clone(cluster),
                runtime: runtime.clone(),
            };
            threads.push(
                std::thread::Builder::new()
                    .name(format!("shard-{number}"))
                    .spawn(move || run::Shard::new(inbox, outside).run())?,
            );
        }
        Ok(Arc::new(Shards {
            inboxes,
            threads: parking_lot::Mutex::new(threads),
            metrics: Arc::clone(metrics),
        }))
    }

    fn inbox(&self, replica: ReplicaId) -> &Inbox {
        &self.inboxes[self.place(replica)]
    }

    fn place(&self, replica: ReplicaId) -> usize {
        place(replica.0, self.inboxes.len())
    }

    /// Hands work for a replica to its shard. Work that does not fit is answered with `OVERLOADED`, after the stop with
    /// `DRAINING`.
    pub(crate) fn submit(&self, replica: ReplicaId, work: Work) {
        if let Err(undone) = self.inbox(replica).push(work) {
            undone.work.refuse(undone.error);
        }
    }

    /// Hands each shard the beats of its groups.
    pub(crate) fn submit_beats(&self, from: i32, beats: Vec<(ReplicaId, Envelope)>) {
        let mut by_shard: Vec<Vec<_>> = self.inboxes.iter().map(|_| Vec::new()).collect();
        for (replica, beat) in beats {
            by_shard[self.place(replica)].push((replica, beat));
        }
        for (inbox, beats) in self.inboxes.iter().zip(by_shard) {
            if !beats.is_empty() {
                // Those that come too late or too many are sent again.
                let _ = inbox.push(Work::Beats { from, beats });
            }
        }
    }

    /// Tells every shard which of another broker's shards are alive. None is woken for it.
    pub(crate) fn note_alive(&self, from: i32, beats: &ShardBeats) {
        for inbox in &self.inboxes {
            inbox.note_alive(from, beats);
        }
    }

    /// Hands work to every shard.
    pub(crate) fn submit_all(&self, work: impl Fn() -> Work) {
        for inbox in &self.inboxes {
            let _ = inbox.push(work());
        }
    }

    /// Asks every shard to look at age and retention.
    pub(crate) fn housekeep(&self) {
        self.submit_all(|| Work::Housekeep);
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

/// Threads for the shards: as configured, or one for each core.
pub(crate) fn shard_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count,
    }
}

impl Work {
    /// Whether it is the broker's own: it is never refused for want of room, and bounded by what it is about.
    fn is_internal(&self) -> bool {
        !matches!(
            self,
            Work::Batch { .. }
                | Work::Command { .. }
                | Work::Trim { .. }
                | Work::Messages { .. }
                | Work::Beats { .. }
        )
    }

    /// Answers work that was not taken.
    fn refuse(self, error: ApiError) {
        let error = Box::new(error);
        match self {
            Work::Batch { ticket, .. } => ticket.complete_now(Err(error)),
            Work::Command { reply, .. } | Work::Trim { reply, .. } => {
                let _ = reply.send(Err(error));
            }
            Work::Transfer { reply, .. } => {
                reply.map(|reply| reply.send(Err(*error)));
            }
            Work::ChangeMembers { reply, .. } => drop(reply.send(Err(*error))),
            // Entries of others are sent again; the rest is of no use to a shard that stops.
            _ => {}
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
                    .filter(|(replica, _)| place(replica.0, count) == at),
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
