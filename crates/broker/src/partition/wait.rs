//! Waiting for a partition to move on, without a task or a timer for each.
//!
//! A reader has one [`Signal`] for all its partitions and leaves a weak reference with each partition that it has caught
//! up with. A registration is used once: the wake takes it. Register first, then look at the high watermark again;
//! otherwise a wake in between is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

/// Registrations of readers that are gone are swept out when there are this many, and then at each doubling.
const SWEEP_AT: usize = 16;

/// A reader's bell: the keys of the partitions that moved.
#[derive(Default)]
pub(crate) struct Signal {
    /// Bounded by the registrations, one for each partition of the reader.
    moved: Mutex<Vec<u64>>,
    waker: AtomicWaker,
}

impl Signal {
    pub(crate) fn new() -> Arc<Signal> {
        Arc::new(Signal::default())
    }

    fn ring(&self, key: u64) {
        self.moved.lock().push(key);
        self.waker.wake();
    }

    /// Moves the keys that rang into `keys`; `Pending` if there are none.
    pub(crate) fn poll(&self, context: &mut Context<'_>, keys: &mut Vec<u64>) -> Poll<()> {
        self.waker.register(context.waker());
        let mut moved = self.moved.lock();
        if moved.is_empty() {
            return Poll::Pending;
        }
        keys.append(&mut moved);
        Poll::Ready(())
    }

    /// Waits until anything rings.
    pub(crate) async fn wait(&self) {
        let mut keys = Vec::new();
        std::future::poll_fn(|context| self.poll(context, &mut keys)).await;
    }
}

/// Who waits for one partition.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Whether the list may hold anybody, so that a commit nobody waits for costs one load.
    any: AtomicBool,
    list: Mutex<Vec<(Weak<Signal>, u64)>>,
}

impl Waiters {
    /// Registers once. `key` is what the signal will report.
    pub(crate) fn register(&self, signal: &Arc<Signal>, key: u64) {
        let mut list = self.list.lock();
        if list.len() >= SWEEP_AT && list.len().is_power_of_two() {
            list.retain(|(signal, _)| signal.strong_count() > 0);
        }
        list.push((Arc::downgrade(signal), key));
        // Before the caller's second look at the high watermark: either it sees the move, or `wake` sees this.
        self.any.store(true, Ordering::SeqCst);
    }

    /// Takes a registration back, if it still stands: a reader that moves about must not leave one each time.
    pub(crate) fn forget(&self, signal: &Arc<Signal>, key: u64) {
        let mut list = self.list.lock();
        let mine = |other: &Weak<Signal>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(signal));
        if let Some(at) = list.iter().position(|(other, k)| *k == key && mine(other)) {
            list.swap_remove(at);
        }
    }

    /// Wakes everybody and forgets them.
    pub(crate) fn wake(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let list = {
            let mut list = self.list.lock();
            self.any.store(false, Ordering::SeqCst);
            std::mem::take(&mut *list)
        };
        for (signal, key) in list {
            if let Some(signal) = signal.upgrade() {
                signal.ring(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_used_once_and_the_dead_are_swept() {
        let waiters = Waiters::default();
        let signal = Signal::new();
        let waker = futures::task::noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut keys = Vec::new();
        waiters.wake();
        assert!(signal.poll(&mut context, &mut keys).is_pending());
        waiters.register(&signal, 7);
        waiters.wake();
        waiters.wake();
        assert!(signal.poll(&mut context, &mut keys).is_ready());
        assert_eq!(keys, [7]);
        assert!(signal.poll(&mut context, &mut keys).is_pending());

        for key in 0..1000 {
            waiters.register(&Signal::new(), key);
        }
        assert!(waiters.list.lock().len() <= SWEEP_AT);
        for key in 0..1000 {
            waiters.register(&signal, key);
            waiters.forget(&signal, key);
        }
        assert!(waiters.list.lock().len() <= SWEEP_AT);
        waiters.wake();
        assert!(signal.poll(&mut context, &mut keys).is_pending());
    }
}
