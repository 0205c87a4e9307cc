//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals since the start, over all brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerStats {
    /// Messages that went into a stream.
    pub(crate) messages_sent: u64,
    /// Batches they went in.
    pub(crate) batches_sent: u64,
    /// Messages that did not fit, or had nowhere to go.
    pub(crate) messages_dropped: u64,
    /// Their size.
    pub(crate) bytes_dropped: u64,
    /// Leaderships that did not fit, or had nowhere to go.
    pub(crate) leaderships_dropped: u64,
    /// Messages that came.
    pub(crate) messages_received: u64,
    /// Streams ended because of a malformed message.
    pub(crate) malformed: u64,
    /// Connections made, prompt and bulk.
    pub(crate) connections: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    messages_sent: AtomicU64,
    batches_sent: AtomicU64,
    messages_dropped: AtomicU64,
    bytes_dropped: AtomicU64,
    leaderships_dropped: AtomicU64,
    messages_received: AtomicU64,
    malformed: AtomicU64,
    connections: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn sent(&self, messages: usize) {
        add(&self.messages_sent, messages);
        add(&self.batches_sent, 1);
    }

    pub(super) fn dropped(&self, messages: usize, bytes: usize) {
        add(&self.messages_dropped, messages);
        add(&self.bytes_dropped, bytes);
    }

    pub(super) fn gossip_dropped(&self, leaderships: usize) {
        add(&self.leaderships_dropped, leaderships);
    }

    pub(super) fn received(&self, messages: usize) {
        add(&self.messages_received, messages);
    }

    pub(super) fn malformed(&self) {
        add(&self.malformed, 1);
    }

    pub(super) fn connected(&self) {
        add(&self.connections, 1);
    }

    pub(super) fn totals(&self) -> PeerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerStats {
            messages_sent: read(&self.messages_sent),
            batches_sent: read(&self.batches_sent),
            messages_dropped: read(&self.messages_dropped),
            bytes_dropped: read(&self.bytes_dropped),
            leaderships_dropped: read(&self.leaderships_dropped),
            messages_received: read(&self.messages_received),
            malformed: read(&self.malformed),
            connections: read(&self.connections),
        }
    }
}
