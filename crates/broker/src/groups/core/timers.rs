//! When members have to be looked at. An entry is not taken back when a deadline moves: it is found out when it rings.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::group::Slot;

/// One entry for each member, and one more for each that got an earlier deadline since.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(u64, Arc<str>, Slot)>>);

impl Timers {
    pub(super) fn push(&mut self, at_ms: u64, group: &Arc<str>, slot: Slot) {
        self.0.push(Reverse((at_ms, Arc::clone(group), slot)));
    }

    pub(super) fn pop(&mut self, now_ms: u64) -> Option<(Arc<str>, Slot)> {
        let Reverse((at, ..)) = self.0.peek()?;
        if *at > now_ms {
            return None;
        }
        let Reverse((_, group, slot)) = self.0.pop()?;
        Some((group, slot))
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((at, ..))| *at)
    }
}
