//! Commitment: what readers may see, what may be sealed, where the log starts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use timberline_record::BatchHeader;

use super::{Log, State};
use crate::producers::SequenceCheck;

impl Log {
    /// Raises the commit index; it never goes back, and never behind the last entry.
    pub fn commit_to(self: &Arc<Self>, index: u64) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut log_start: Option<i64> = None;
        let mut members_change = false;
        while let Some(entry) = state.entries.front().filter(|e| e.place.index <= index) {
            if entry.place.file != state.committed.file {
                // The file before is complete with what is committed so far.
                self.seal_due(state);
            }
            let Some(entry) = state.entries.pop_front() else {
                break;
            };
            if let Some(write) = &entry.producer {
                state.producers_committed.apply(write);
                state.producers_encoded = None;
            }
            if let Some(start) = entry.log_start {
                log_start = log_start.max(Some(start.min(entry.place.next_offset)));
            }
            state.committed = entry.place;
            members_change |= state.memberships.commit(state.committed.index);
        }
        if state.committed.index > state.hard.commit {
            // Not worth a cycle of its own: it rides with the next one.
            state.hard.commit = state.committed.index;
        }
        if members_change {
            // This one is: those who are members no more wait for it with what they have.
            state.hard_version += 1;
            self.enqueue(state);
        }
        self.seal_due(state);
        self.high_watermark
            .fetch_max(state.committed.next_offset, Ordering::AcqRel);
        if let Some(start) = log_start {
            self.log_start.fetch_max(start, Ordering::AcqRel);
            self.shared.want_checkpoint();
        }
    }

    /// Whether the batch's producer may append it now.
    pub fn check_producer(&self, batch: &BatchHeader) -> SequenceCheck {
        self.state.lock().producers.check(batch)
    }
}

impl State {
    /// Encoded producer state as of the commit index.
    pub(crate) fn producers_bytes(&mut self) -> Arc<Vec<u8>> {
        if let Some(bytes) = &self.producers_encoded {
            return bytes.clone();
        }
        let mut bytes = Vec::new();
        self.producers_committed.encode(&mut bytes);
        let bytes = Arc::new(bytes);
        self.producers_encoded = Some(bytes.clone());
        bytes
    }
}
