//! A shard's inbox: bounded, filled from any thread, emptied in bursts by one.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use timberline_proto::error::{ApiError, Reason};
use timberline_storage::ReplicaId;

use super::Work;
use crate::errors;
use crate::peer::ShardBeats;

/// Items that may wait. Their bytes are bounded by `partition::Budget`; this bounds what tiny ones add up to.
const INBOX_ITEMS_MAX: usize = 262_144;
/// Bytes of other brokers' entries that may wait. What is beyond is dropped; their leaders send it again.
const PEER_BYTES_MAX: usize = 64 << 20;
/// Other brokers' beats that may wait, some 100 MiB. What is beyond is dropped, and sent again in 100 ms.
const BEATS_MAX: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    burst: Burst,
    sleeping: bool,
    stopped: bool,
}

/// Work that was not taken, and why.
pub(super) struct Undone {
    pub(super) work: Work,
    pub(super) error: ApiError,
}

/// All that came since the shard looked last.
#[derive(Default)]
pub(super) struct Burst {
    pub(super) work: Vec<Work>,
    /// Payload of other brokers' messages in it.
    pub(super) peer_bytes: usize,
    /// Other brokers' beats in it.
    pub(super) beats: usize,
    /// The highest durable index of each replica: as many as there are replicas, however slow the shard.
    pub(super) durable: HashMap<ReplicaId, u64>,
    /// Shards of other brokers that were heard: as many as there are. Nobody is woken for them.
    pub(super) alive: BTreeMap<i32, ShardBeats>,
    pub(super) poisoned: Option<String>,
    pub(super) stop: bool,
}

impl Burst {
    fn is_empty(&self) -> bool {
        self.work.is_empty() && self.durable.is_empty() && self.poisoned.is_none() && !self.stop
    }
}

impl Inbox {
    /// Gives the work back if the inbox is full or stopped. Only clients' work counts against the bound.
    pub(super) fn push(&self, work: Work) -> Result<(), Box<Undone>> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Box::new(Undone {
                work,
                error: errors::draining(),
            }));
        }
        if let Work::Messages { bytes, .. } = &work {
            let bytes = *bytes;
            if state.burst.peer_bytes > 0 && state.burst.peer_bytes + bytes > PEER_BYTES_MAX {
                let error = ApiError::new(Reason::Overloaded, "other brokers' entries wait");
                return Err(Box::new(Undone { work, error }));
            }
            state.burst.peer_bytes += bytes;
        }
        if let Work::Beats { beats, .. } = &work {
            if state.burst.beats + beats.len() > BEATS_MAX {
                let error = ApiError::new(Reason::Overloaded, "other brokers' beats wait");
                return Err(Box::new(Undone { work, error }));
            }
            state.burst.beats += beats.len();
        }
        if !work.is_internal() && state.burst.work.len() >= INBOX_ITEMS_MAX {
            let error = ApiError::new(
                Reason::Overloaded,
                "the partition's shard has too much to do",
            )
            .with_retry_after(std::time::Duration::from_millis(50));
            return Err(Box::new(Undone { work, error }));
        }
        state.burst.work.push(work);
        self.wake(state);
        Ok(())
    }

    pub(super) fn durable(&self, updates: impl Iterator<Item = (ReplicaId, u64)>) {
        let mut state = self.state.lock();
        for (replica, index) in updates {
            let known = state.burst.durable.entry(replica).or_default();
            *known = index.max(*known);
        }
        if !state.burst.durable.is_empty() {
            self.wake(state);
        }
    }

    pub(super) fn note_alive(&self, from: i32, beats: &ShardBeats) {
        let mut state = self.state.lock();
        state.burst.alive.entry(from).or_default().add(beats);
    }

    pub(super) fn poison(&self, why: &str) {
        let mut state = self.state.lock();
        state.burst.poisoned = Some(why.to_owned());
        self.wake(state);
    }

    /// Takes `last`, and nothing after it.
    pub(super) fn close(&self, last: Work) {
        let mut state = self.state.lock();
        if !state.stopped {
            state.stopped = true;
            state.burst.work.push(last);
            self.wake(state);
        }
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.burst.stop = true;
        self.wake(state);
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().burst.work.len()
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        if std::mem::take(&mut state.sleeping) {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Waits for something, or until `deadline`, and exchanges it for `empty`, whose buffers are used again.
    pub(super) fn take(&self, empty: &mut Burst, deadline: Option<Instant>) {
        debug_assert!(empty.is_empty());
        let mut state = self.state.lock();
        while state.burst.is_empty() {
            state.sleeping = true;
            match deadline {
                None => self.filled.wait(&mut state),
                Some(at) => {
                    if self.filled.wait_until(&mut state, at).timed_out() {
                        break;
                    }
                }
            }
        }
        state.sleeping = false;
        std::mem::swap(&mut state.burst, empty);
    }
}
