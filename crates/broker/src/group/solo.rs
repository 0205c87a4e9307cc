//! A group of one: what is durable here is committed.

use std::sync::Arc;

use timberline_storage::{Appended, EntryKind, Error, HardState, Log};

use super::{Entry, Event, Group, Proposed, Why};

/// Reserved beside an entry's payload: frame header, padding, and what the file around it may need.
const ENTRY_OVERHEAD_BYTES: u64 = 4096;
/// The vote of a sole voter: itself.
const SELF: u64 = 1;

/// The only replica of its partition.
pub(crate) struct Solo {
    log: Arc<Log>,
    term: u64,
    /// Highest index known to be durable.
    durable: u64,
    /// Highest index reported as committed.
    committed: u64,
}

impl Solo {
    /// Takes the log over: a sole voter elects itself, so the term rises, and what recovery found durable is committed.
    pub(crate) fn lead(log: Arc<Log>) -> Solo {
        let last = log.last_index();
        let term = log.hard_state().term.max(log.last_term()) + 1;
        log.commit_to(last);
        log.set_hard_state(HardState {
            term,
            vote: SELF,
            commit: last,
        });
        Solo {
            log,
            term,
            durable: last,
            committed: last,
        }
    }

    fn append(&self, entry: &Entry, now_ms: i64) -> Result<Appended, Error> {
        let payload_bytes = match entry {
            Entry::Batch(batch) => batch.bytes().len(),
            Entry::Command(payload) => payload.len(),
            Entry::LogStart(_) => 0,
        };
        // Log-start changes have their own reserve: they are what frees space.
        if !matches!(entry, Entry::LogStart(_)) {
            self.log
                .reserve(payload_bytes as u64 + ENTRY_OVERHEAD_BYTES)?;
        }
        match entry {
            Entry::Batch(batch) => self.log.append_batch(self.term, batch, now_ms),
            Entry::Command(payload) => {
                self.log
                    .append(self.term, EntryKind::Command, payload.clone(), now_ms)
            }
            Entry::LogStart(offset) => self.log.append_log_start(self.term, *offset, now_ms),
        }
    }
}

impl Group for Solo {
    fn log(&self) -> &Arc<Log> {
        &self.log
    }

    fn term(&self) -> u64 {
        self.term
    }

    fn propose(&mut self, entry: Entry, now_ms: i64) -> Result<Proposed, Box<Why>> {
        match self.append(&entry, now_ms) {
            Ok(appended) => Ok(Proposed {
                index: appended.index,
                base_offset: appended.base_offset,
            }),
            Err(error) => Err(Box::new(Why::Storage(error))),
        }
    }

    fn durable(&mut self, index: u64) {
        self.durable = self.durable.max(index);
    }

    fn poll(&mut self) -> Option<Event> {
        if self.durable <= self.committed {
            return None;
        }
        self.committed = self.durable;
        self.log.commit_to(self.committed);
        Some(Event::Committed(self.committed))
    }
}
