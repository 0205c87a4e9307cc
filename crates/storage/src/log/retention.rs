//! Retention and rolling: which sealed segments may go, and when an old file is full.

use std::sync::Arc;

use super::Log;
use crate::error::Result;

impl Log {
    /// The log start that size and age allow, by append times and over sealed segments only; `None` when nothing is
    /// to go. The leader proposes it with [`Log::append_log_start`].
    pub fn retention_target(&self, now_ms: i64) -> Option<i64> {
        let config = self.config();
        let files = self.files.read();
        let log_start = self.log_start();
        let mut size: u64 = files.iter().map(|f| f.end()).sum();
        let mut target = None;
        for pair in files.windows(2) {
            let (segment, next) = (&pair[0], &pair[1]);
            if !segment.is_sealed() {
                break;
            }
            let too_large = config
                .retention_bytes
                .is_some_and(|max| size > max && size - segment.end() >= max);
            let too_old = config.retention_ms.is_some_and(|max| {
                now_ms.saturating_sub(next.first.time_ms) > i64::try_from(max).unwrap_or(i64::MAX)
            });
            if !too_large && !too_old {
                break;
            }
            size -= segment.end();
            target = Some(next.first.next_offset);
        }
        target.filter(|t| *t > log_start)
    }

    /// Closes the active file when its first entry is older than the configuration allows.
    ///
    /// # Errors
    /// None today; a roll costs nothing until the next append.
    pub fn maybe_roll(self: &Arc<Self>, now_ms: i64) -> Result<()> {
        let max = i64::try_from(self.config().segment_ms).unwrap_or(i64::MAX);
        let mut state = self.state.lock();
        let old = state
            .active_since_ms
            .is_some_and(|since| now_ms.saturating_sub(since) > max);
        // A file without entries is not closed for its age.
        let has_entries = self
            .files
            .read()
            .last()
            .is_some_and(|f| f.id == state.tail.file);
        if old && has_entries && self.check_writable(&state).is_ok() {
            self.start_next_file(&mut state)?;
            state.active_since_ms = None;
        }
        Ok(())
    }
}
