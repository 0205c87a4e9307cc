//! Sealing: a closed file whose last entry is committed gets a footer and gives back the space it does not need.
//!
//! It happens beside the writer, on an upkeep thread. A crash in the middle leaves a closed file, which is sealed
//! again.

use std::sync::Arc;

use super::snapshot::Sealed;
use super::{Log, State};
use crate::error::{Error, Result};
use crate::footer::Footer;
use crate::index::SparseIndex;
use crate::membership::Membership;
use crate::place::Place;
use crate::producers::Producers;
use crate::segment::{Segment, full_or};
use crate::store::Store;

/// A file to be sealed.
#[derive(Debug)]
pub struct SealDue {
    log: Arc<Log>,
    file: Complete,
}

/// A closed file whose last entry is committed, and what its footer will say.
#[derive(Debug)]
pub(crate) struct Complete {
    segment: Arc<Segment>,
    last: Place,
    producers: Producers,
    /// As of `last`; none when that, or the producers, are not known.
    membership: Membership,
}

impl State {
    /// The committed membership, if damage did not take config entries.
    fn proven_membership(&self) -> Membership {
        match &self.unproven {
            None => self.memberships.committed.clone(),
            Some(_) => Membership::default(),
        }
    }
}

impl Log {
    /// If the committed place is the end of a closed file, that file can be sealed with the producer state of now.
    ///
    /// The footer may lie where cut entries lay. If the cut was not durable, recovery would look for them there.
    pub(crate) fn seal_due(self: &Arc<Self>, state: &mut State) {
        let files = self.files.read();
        let Some(at) = files.iter().position(|f| f.id == state.committed.file) else {
            return;
        };
        let segment = &files[at];
        let closed = at + 1 < files.len();
        if !closed
            || state.committed.pos < segment.end()
            || segment.is_sealed()
            || state.sealing.contains(&segment.id)
        {
            return;
        }
        let expiry = self.config().producer_expiry_ms;
        let before = state
            .committed
            .time_ms
            .saturating_sub(i64::try_from(expiry).unwrap_or(i64::MAX));
        state.producers.expire(before);
        state.producers_committed.expire(before);
        state.producers_encoded = None;
        let producers = state.producers_committed.clone();
        state.sealing.push(segment.id);
        state.complete.push(Complete {
            segment: segment.clone(),
            last: state.committed,
            producers,
            membership: state.proven_membership(),
        });
        drop(files);
        self.release_seals(state);
    }

    /// Queues the seals of complete files that the journal knows to be closed.
    pub(crate) fn release_seals(self: &Arc<Self>, state: &mut State) {
        if state.complete.is_empty() {
            return;
        }
        let files = self.files.read();
        let is_closed = |file: &Complete| {
            let at = files.iter().position(|f| f.id == file.segment.id);
            let next = at.and_then(|at| files.get(at + 1));
            next.is_some_and(|next| next.is_announced())
        };
        let (closed, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.complete)
            .into_iter()
            .partition(is_closed);
        state.complete = waiting;
        let mut queue = self.shared.queue.lock();
        for file in closed {
            let log = self.clone();
            queue.seals.push_back(SealDue { log, file });
        }
        drop(queue);
        self.shared.wake_upkeep.notify_one();
    }

    /// Closed files that were not sealed when the log was opened: sealed without producers and membership unless the
    /// commit index is their end, since the checkpoint table holds these for the log as a whole.
    pub(crate) fn seal_found(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let files = self.files.read().clone();
        for pair in files.windows(2) {
            let (segment, next) = (&pair[0], &pair[1]);
            let complete =
                next.first.index <= state.committed.index && segment.end() == next.first.pos;
            if complete
                && !segment.is_missing()
                && !segment.is_sealed()
                && !state.sealing.contains(&segment.id)
            {
                state.sealing.push(segment.id);
                // State is kept as of the committed place only.
                let known = next.first.index == state.committed.index;
                let (producers, membership) = match known {
                    true => (state.producers_committed.clone(), state.proven_membership()),
                    false => (Producers::default(), Membership::default()),
                };
                let due = SealDue {
                    log: self.clone(),
                    file: Complete {
                        segment: segment.clone(),
                        last: next.first,
                        producers,
                        membership,
                    },
                };
                self.shared.queue.lock().seals.push_back(due);
            }
        }
    }
}

impl Store {
    /// Takes the next file that waits to be sealed.
    pub fn begin_seal(&self) -> Option<SealDue> {
        self.shared().queue.lock().seals.pop_front()
    }

    /// Seals a file. Blocking.
    ///
    /// # Errors
    /// [`Error::StorageFull`], [`Error::InUse`]: the file waits again, try it later. [`Error::Damaged`]: it stays
    /// unsealed. Anything else poisons the directory.
    pub fn run_seal(&self, seal: SealDue) -> Result<()> {
        let result = seal.run();
        if let Err(Error::StorageFull { .. } | Error::InUse { .. }) = &result {
            self.shared().queue.lock().seals.push_back(seal);
        }
        result
    }
}

impl SealDue {
    /// Writes the footer and syncs the file. Blocking.
    ///
    /// # Errors
    /// [`Error::StorageFull`], [`Error::InUse`]: tried again later. Anything else is final.
    fn run(&self) -> Result<()> {
        let log = &self.log;
        let mut result = self.write_footer();
        if self.file.segment.is_deleted() {
            result = Ok(());
        }
        if let Err(Error::StorageFull { .. } | Error::InUse { .. }) = result {
            // It waits again, and stays marked: a footer is written once.
            return result;
        }
        match &result {
            Ok(()) => self.file.segment.set_sealed(),
            Err(Error::Damaged { .. } | Error::StorageFull { .. } | Error::InUse { .. }) => {}
            Err(error) => log.shared.poison(error.to_string()),
        }
        log.with_state(|state, files| {
            state.sealing.retain(|id| *id != self.file.segment.id);
            self.note_boundary(state, &files.read());
        });
        result
    }

    /// A snapshot can end here, if the log still has the file and the footer says all.
    fn note_boundary(&self, state: &mut State, files: &[Arc<Segment>]) {
        let file = &self.file;
        let newest = state.sealed.as_ref().map_or(0, |s| s.last.index);
        if file.segment.is_sealed()
            && file.membership.index > 0
            && file.last.index > newest
            && files.iter().any(|f| f.id == file.segment.id)
        {
            state.sealed = Some(Sealed {
                last: file.last,
                membership: file.membership.clone(),
            });
        }
    }

    fn write_footer(&self) -> Result<()> {
        let shared = &self.log.shared;
        shared.check_poison()?;
        let segment = &self.file.segment;
        if segment.is_cut_part_held() {
            // The footer would change bytes under somebody's eyes, and the cut file end before them.
            let what = segment.name();
            return Err(Error::InUse { what });
        }
        let index = match segment.index() {
            Some(index) => index,
            None => self.log.load_index(segment)?,
        };
        let footer = Footer {
            first: segment.first,
            last: self.file.last,
            producers: self.file.producers.clone(),
            index: SparseIndex::clone(&index),
            membership: self.file.membership.clone(),
        };
        let bytes = footer.encode();
        let end = self.file.last.pos + bytes.len() as u64;
        let file = &segment.handle(shared)?.file;
        let what = || Error::io(format!("sealing {}", segment.name()));
        file.write_at(self.file.last.pos, &[&bytes])
            .map_err(|e| full_or(e, bytes.len() as u64, what()))?;
        file.set_len(end).map_err(what())?;
        segment.sync(shared)?;
        segment.synced_to(segment.end());
        if let Some(dir) = segment.path.parent() {
            shared.dirs.sync(&*shared.disk, dir)?;
        }
        Ok(())
    }
}
