//! The threads of a data directory: one flusher, a few that sync, one that works ahead in small pieces (of the
//! checkpoint: write-back of journaled bytes; of the journal's head: its first lap), one for upkeep (seals and checkpoints).
//!
//! Idle is idle: all wait on condition variables; the only timer is the flusher's, which writes one closing mark a
//! moment after the last cycle and then sleeps until there is work.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::checkpoint::CheckpointSync;
use crate::cycles::{DirectSync, WriteBack};
use crate::error::{Error, Result};
use crate::shared::Listener;
use crate::store::Store;

/// How long the journal is idle before it writes a closing mark.
const CLOSING_AFTER: Duration = Duration::from_millis(300);
/// How long a seal that found no space waits before it is tried again.
const SEAL_RETRY: Duration = Duration::from_secs(5);

/// Work for the pool.
enum Sync {
    Direct(DirectSync),
    Checkpoint(CheckpointSync, Sender<Result<()>>),
}

/// Work ahead of need: none of it is waited for.
enum Ahead {
    /// Of a checkpoint.
    WriteBack(WriteBack),
    /// Of the journal's head.
    Prewrite,
}

/// The running threads.
#[derive(Debug)]
pub struct Running {
    store: Store,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Refused`] when it runs already; [`Error::Io`] when the host gives no thread.
    pub fn start(&self, listener: Arc<dyn Listener>) -> Result<Running> {
        self.shared().listen(listener)?;
        let (work, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for n in 0..self.shared().options.sync_threads.max(1) {
            let (store, queue) = (self.clone(), queue.clone());
            threads.push(spawn(format!("sync-{n}"), move || {
                run_pool(&store, &queue)
            })?);
        }
        let (store, pool) = (self.clone(), work.clone());
        let (ahead, aheads) = channel();
        threads.push(spawn("flusher".into(), move || {
            run_flusher(&store, &pool, &ahead);
        })?);
        let store = self.clone();
        threads.push(spawn("ahead".into(), move || {
            run_ahead(&store, &aheads);
        })?);
        let store = self.clone();
        threads.push(spawn("upkeep".into(), move || run_upkeep(&store, &work))?);
        Ok(Running {
            store: self.clone(),
            threads,
        })
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name)
        .stack_size(512 << 10)
        .spawn(work)
        .map_err(Error::io("starting a thread"))
}

fn run_flusher(store: &Store, pool: &Sender<Sync>, ahead: &Sender<Ahead>) {
    let shared = store.shared();
    let mut closing = false;
    let mut wait_for_ring = false;
    loop {
        {
            let mut queue = shared.queue.lock();
            let has_work =
                !queue.dirty.is_empty() || !queue.named.is_empty() || !queue.removed.is_empty();
            if shared.poisoned().is_some() || (queue.stop && (!has_work || wait_for_ring)) {
                if queue.stop {
                    return;
                }
                shared.wake.wait(&mut queue);
                continue;
            }
            if !has_work || wait_for_ring {
                closing = shared.wake.wait_for(&mut queue, CLOSING_AFTER).timed_out();
                if closing && store.inner.journal.lock().closed && !wait_for_ring {
                    shared.wake.wait(&mut queue);
                    closing = false;
                }
            }
        }
        let work = store.begin_cycle(closing);
        closing = false;
        wait_for_ring = work.ring_full && work.is_empty();
        if work.ring_full {
            shared.want_checkpoint();
        }
        for direct in work.direct {
            // The pool lives as long as this sender.
            let _ = pool.send(Sync::Direct(direct));
        }
        for piece in work.write_back {
            let _ = ahead.send(Ahead::WriteBack(piece));
        }
        if work.prewrite {
            let _ = ahead.send(Ahead::Prewrite);
        }
        if let Some(cycle) = work.cycle
            && store.run_cycle(&cycle).is_ok()
        {
            store.finish_cycle(cycle);
        }
    }
}

fn run_pool(store: &Store, queue: &Mutex<Receiver<Sync>>) {
    loop {
        let next = queue.lock().recv();
        match next {
            Ok(Sync::Direct(direct)) => {
                if store.run_direct(&direct).is_ok() {
                    store.finish_direct(direct);
                }
            }
            Ok(Sync::Checkpoint(sync, done)) => {
                // Whoever waits may be gone after a poison.
                let _ = done.send(store.run_checkpoint_sync(&sync));
            }
            Err(_) => return,
        }
    }
}

/// One small piece at a time: the journal's own syncs must not wait behind more than that.
fn run_ahead(store: &Store, work: &Receiver<Ahead>) {
    while let Ok(next) = work.recv() {
        match next {
            Ahead::WriteBack(piece) => store.run_write_back(&piece),
            Ahead::Prewrite => {
                // An error has poisoned the directory.
                let _ = store.prewrite();
            }
        }
    }
}

fn run_upkeep(store: &Store, pool: &Sender<Sync>) {
    let shared = store.shared();
    loop {
        let checkpoint = {
            let mut queue = shared.queue.lock();
            if queue.stop {
                return;
            }
            let idle = queue.seals.is_empty() && !queue.checkpoint_wanted;
            if idle || shared.poisoned().is_some() {
                shared.wake_upkeep.wait(&mut queue);
                continue;
            }
            std::mem::take(&mut queue.checkpoint_wanted)
        };
        if checkpoint {
            // An error has poisoned the directory.
            let _ = run_checkpoint(store, pool);
        }
        if let Some(seal) = store.begin_seal()
            && let Err(Error::StorageFull { .. } | Error::InUse { .. }) = store.run_seal(seal)
        {
            let mut queue = shared.queue.lock();
            if !queue.stop {
                shared.wake_upkeep.wait_for(&mut queue, SEAL_RETRY);
            }
        }
    }
}

fn run_checkpoint(store: &Store, pool: &Sender<Sync>) -> Result<()> {
    let Some(mut checkpoint) = store.begin_checkpoint() else {
        return Ok(());
    };
    let (done, results) = channel();
    for sync in checkpoint.take_syncs() {
        let _ = pool.send(Sync::Checkpoint(sync, done.clone()));
    }
    drop(done);
    for result in results {
        result?;
    }
    store.finish_checkpoint(checkpoint)
}

impl Running {
    /// Ends the threads after what was appended is durable, and writes a last checkpoint that says so. Blocking.
    ///
    /// # Errors
    /// What the last syncs answered; the directory recovers from any of it.
    pub fn stop(mut self) -> Result<()> {
        self.end_threads();
        self.store.close()
    }

    fn end_threads(&mut self) {
        let shared = self.store.shared();
        shared.queue.lock().stop = true;
        shared.wake.notify_all();
        shared.wake_upkeep.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end_threads();
    }
}

impl Store {
    /// Writes out what is pending and a last, clean checkpoint. Only when no threads run.
    ///
    /// # Errors
    /// [`Error::Poisoned`], and what the syncs answered.
    pub fn close(&self) -> Result<()> {
        self.shared().check_poison()?;
        loop {
            let work = self.begin_cycle(false);
            if work.is_empty() && !work.ring_full {
                break;
            }
            for direct in work.direct {
                self.run_direct(&direct)?;
                self.finish_direct(direct);
            }
            if let Some(cycle) = work.cycle {
                self.run_cycle(&cycle)?;
                self.finish_cycle(cycle);
            } else if work.ring_full {
                self.checkpoint_now(false)?;
            }
        }
        self.checkpoint_now(true)
    }

    /// A checkpoint on this thread.
    ///
    /// # Errors
    /// What the syncs answered.
    pub fn checkpoint_now(&self, clean: bool) -> Result<()> {
        let Some(mut checkpoint) = self.capture(clean) else {
            return Ok(());
        };
        for sync in checkpoint.take_syncs() {
            self.run_checkpoint_sync(&sync)?;
        }
        self.finish_checkpoint(checkpoint)
    }
}
