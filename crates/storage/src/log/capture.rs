//! The log's row in a checkpoint table.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Log, State};
use crate::bugs::Bug;
use crate::segment::Segment;
use crate::table::{TableFile, TableReplica};

/// What a checkpoint takes from a log.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) row: TableReplica,
    /// Segments to be synced before the table is written, up to where.
    pub(crate) unsynced: Vec<(Arc<Segment>, u64)>,
    /// Files that the row does without: deleted once the table is durable.
    pub(crate) deletable: Vec<Arc<Segment>>,
}

impl Log {
    /// Captures the log. What is deletable is fixed here, together with the row that does without it.
    pub(crate) fn capture(&self) -> Capture {
        let mut state = self.state.lock();
        let deletable = self.drop_below_log_start(&mut state);
        let files = self.files.read();
        let skip_closed = self.shared.has_bug(Bug::SkipClosed);
        let unsynced = files
            .iter()
            .enumerate()
            .filter(|(i, f)| f.is_dirty() && !(skip_closed && i + 1 < files.len()))
            .map(|(_, f)| (f.clone(), f.end()))
            .collect();
        let listed = files.iter().map(|f| TableFile {
            id: f.id,
            first: f.first,
            end: f.end(),
            sealed: f.is_sealed(),
        });
        let producers = if self.shared.has_bug(Bug::ForgetProducers) {
            Arc::new(vec![0; 4])
        } else {
            state.producers_bytes()
        };
        Capture {
            row: TableReplica {
                spec: self.spec,
                hard: state.hard,
                log_start: self.log_start(),
                tail_closed: state.tail_closed,
                broken: state.broken.is_some(),
                unproven: state.unproven.is_some(),
                tail: state.tail,
                committed: state.committed,
                files: listed.collect(),
                producers,
                membership: state.memberships.committed.clone(),
                terms: state.terms.clone(),
            },
            unsynced,
            deletable,
        }
    }

    /// Takes files that hold nothing readable any more out of the log. The file of the committed place stays.
    fn drop_below_log_start(&self, state: &mut State) -> Vec<Arc<Segment>> {
        let log_start = self.log_start();
        let mut deletable = std::mem::take(&mut state.dead);
        let mut files = self.files.write();
        // The record of an install finds at least one of its files in a table that comes before it.
        let may_go = match state.install {
            None => files.len(),
            Some(_) => 1,
        };
        // Where nothing was trimmed nothing goes: entries without records lie at offset 0, too.
        let any = log_start > 0 || self.shared.has_bug(Bug::DropUntrimmed);
        let below = files[..may_go.min(files.len())]
            .windows(2)
            .take_while(|pair| {
                let next = &pair[1].first;
                any && next.next_offset <= log_start
                    && next.index < state.committed.index
                    && !state.sealing.contains(&pair[0].id)
            })
            .count();
        let held = |f: &Arc<Segment>| state.pins.hold(f.first.index);
        let mut going = files[..below].iter().take_while(|f| !held(f)).count();
        let kept: u64 = files[going..below].iter().map(|f| f.end()).sum();
        if kept > self.shared.options.pinned_bytes_max {
            state.pins.release();
            going = below;
        }
        deletable.extend(files.drain(..going));
        if let Some(first) = files.first() {
            state.terms.drop_below(first.first.index);
        }
        let dropped: u64 = deletable.iter().map(|f| f.end()).sum();
        let size = self.size_bytes.load(Ordering::Relaxed);
        self.size_bytes
            .store(size.saturating_sub(dropped), Ordering::Relaxed);
        deletable
    }

    /// Takes the log out of service; returns its files.
    pub(crate) fn retire(&self) -> Vec<Arc<Segment>> {
        let mut state = self.state.lock();
        state.removed = true;
        state.pending.clear();
        state.pending_bytes = 0;
        state.new_files.clear();
        let mut files: Vec<_> = self.files.write().drain(..).collect();
        files.append(&mut state.dead);
        files
    }
}
