//! Conflict truncation: the log ends at a cut, and goes on in another file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Log;
use crate::bugs::Bug;
use crate::error::{Error, Result};

impl Log {
    /// Drops every entry behind `index`. Nothing is rewritten: the file that holds `index` ends there, the next
    /// append starts another.
    ///
    /// # Errors
    /// [`Error::Refused`] for what is committed (Raft section 5.3: a leader never overwrites it), and behind the end.
    pub fn truncate_after(self: &Arc<Self>, index: u64) -> Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.check_writable(state)?;
        if index < state.committed.index || index > state.tail.index {
            return Err(Error::Refused(format!(
                "truncation to {index} outside {}..={}",
                state.committed.index, state.tail.index
            )));
        }
        if index == state.tail.index {
            return Ok(());
        }
        while state.entries.back().is_some_and(|e| e.place.index > index) {
            state.entries.pop_back();
        }
        state.tail = state.entries.back().map_or(state.committed, |e| e.place);
        if !self.shared.has_bug(Bug::KeepTerms) {
            state.terms.cut(state.tail.index, state.tail.term);
        }
        state.memberships.cut(index);
        self.hints.forget_behind(index);
        state.tail_closed = !self.shared.has_bug(Bug::RewriteInPlace);
        let mut files = self.files.write();
        while files
            .last()
            .is_some_and(|f| f.id != state.tail.file && f.first.index >= index)
        {
            if let Some(dead) = files.pop() {
                state.new_files.retain(|f| f.id != dead.id);
                state.dead.push(dead);
            }
        }
        if let Some(last) = files.last() {
            last.cut_at(state.tail.pos);
        }
        drop(files);
        while state.pending.back().is_some_and(|p| p.index > index) {
            if let Some(frame) = state.pending.pop_back() {
                state.pending_bytes -= frame.len;
            }
        }
        // A late sync of what was cut must not count for what comes in its place.
        state.durable = state.durable.min(index);
        if !self.shared.has_bug(Bug::CountCutSyncs) {
            for mark in &mut state.marks {
                mark.last_index = mark.last_index.min(index);
            }
        }
        state.producers = state.producers_committed.clone();
        for entry in &state.entries {
            if let Some(write) = &entry.producer {
                state.producers.apply(write);
            }
        }
        self.end_offset
            .store(state.tail.next_offset, Ordering::Release);
        Ok(())
    }
}
