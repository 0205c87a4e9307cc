//! Where the broker stands between start and stop, and how many calls are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// The phases, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Recovering; nothing is served yet.
    Starting,
    Serving,
    /// New calls are refused, streams are told to go.
    Draining,
    Stopped,
}

/// Shared by everything that starts or ends with the broker.
pub(crate) struct Lifecycle {
    phase: watch::Sender<Phase>,
    active: AtomicUsize,
    idle: Notify,
    /// Why the broker can't go on, although nobody stopped it.
    given_up: watch::Sender<Option<String>>,
    /// Rung once, when connections that are still open must go.
    pub(crate) hang_up: Notify,
}

impl Lifecycle {
    pub(crate) fn new() -> Arc<Lifecycle> {
        Arc::new(Lifecycle {
            phase: watch::Sender::new(Phase::Starting),
            active: AtomicUsize::new(0),
            idle: Notify::new(),
            given_up: watch::Sender::new(None),
            hang_up: Notify::new(),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        tracing::info!(?phase, "broker");
        self.phase.send_replace(phase);
    }

    /// The broker can't go on: clients are told to go, and whoever runs it hears why. Only the first reason counts.
    pub(crate) fn give_up(&self, why: &str) {
        let first = self.given_up.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert_with(|| why.to_owned());
            first
        });
        if first {
            tracing::error!(why, "the broker gives up");
            if self.phase() < Phase::Draining {
                self.enter(Phase::Draining);
            }
        }
    }

    pub(crate) fn why_given_up(&self) -> Option<String> {
        self.given_up.borrow().clone()
    }

    /// Ends when the broker has given up.
    pub(crate) async fn gave_up(&self) {
        let mut given_up = self.given_up.subscribe();
        // The sender lives as long as this.
        let _ = given_up.wait_for(Option::is_some).await;
    }

    /// Ends when `phase` is reached. Owns what it needs, so that a stream can keep it.
    pub(crate) fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.phase.subscribe();
        async move {
            // An error means that the broker is gone altogether: that is later than any phase.
            let _ = receiver.wait_for(|now| *now >= phase).await;
        }
    }

    /// Counts a call or a stream until the guard is dropped.
    pub(crate) fn active(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::SeqCst);
        Active(Arc::clone(self))
    }

    /// Ends when no call is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.active.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// A call under way.
pub(crate) struct Active(Arc<Lifecycle>);

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
