//! The sender's side of a snapshot: where one can end, what it holds, and its bytes.
//!
//! Raft asks for a boundary, the end of a sealed file, and is answered from memory. Whoever ships it takes a
//! [`Snapshot`], whose files stay until it is dropped. Bytes are read through the file, not through the map, and are
//! not checked here: the receiver checks every frame before it believes any, so a check here would cost a second
//! pass over the same bytes and prove less. What is known to be damaged is not offered; a receiver that refuses bytes
//! makes the sender look, see [`Snapshot::verify`].

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{Log, State};
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::footer::Footer;
use crate::membership::Membership;
use crate::place::Place;
use crate::segment::Segment;
use crate::snapshot::{EntryPlace, SegmentManifest, SnapshotManifest};

/// Snapshots of one log that may be held at a time.
pub const SNAPSHOTS_MAX: usize = 8;
/// Bytes answered by one read of a snapshot, at most.
pub const SNAPSHOT_READ_MAX: usize = 4 << 20;

/// Where a snapshot can end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Its last entry.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Index of the last config entry up to there.
    pub membership_index: u64,
    /// That entry's payload.
    pub membership: Bytes,
}

/// The end of a sealed file whose footer tells membership and producers.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) last: Place,
    pub(crate) membership: Membership,
}

/// Keeps files of a log from deletion.
#[derive(Debug)]
struct Hold {
    /// It held more than the bound: its files may be gone.
    released: AtomicBool,
}

/// The holds on a log's files. All end with the last file, so only where they begin counts.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    holds: Vec<(u64, Weak<Hold>)>,
}

impl Pins {
    fn add(&mut self, first_index: u64) -> Option<Arc<Hold>> {
        self.holds.retain(|(_, hold)| hold.strong_count() > 0);
        if self.holds.len() >= SNAPSHOTS_MAX {
            return None;
        }
        let hold = Arc::new(Hold {
            released: AtomicBool::new(false),
        });
        self.holds.push((first_index, Arc::downgrade(&hold)));
        Some(hold)
    }

    /// Whether files from `first_index` on must stay.
    pub(super) fn hold(&self, first_index: u64) -> bool {
        let mut alive = self.holds.iter().filter(|(_, h)| h.strong_count() > 0);
        alive.any(|(from, _)| *from <= first_index)
    }

    /// All that is held is let go.
    pub(super) fn release(&mut self) {
        for (_, hold) in self.holds.drain(..) {
            if let Some(hold) = hold.upgrade() {
                hold.released.store(true, Ordering::Release);
            }
        }
    }
}

/// Sealed segments of a log, kept from deletion as long as this lives, and as long as no more bytes than
/// [`crate::StoreOptions::pinned_bytes_max`] are kept for such reasons alone.
#[derive(Debug)]
pub struct Snapshot {
    log: Arc<Log>,
    manifest: SnapshotManifest,
    files: Vec<Arc<Segment>>,
    hold: Arc<Hold>,
}

impl Log {
    /// The newest entry at which a snapshot can end, if there is one. From memory; after a start the older ones are
    /// not known, [`Log::close_active`] makes a new one.
    pub fn boundary(&self) -> Option<Boundary> {
        let state = self.state.lock();
        self.newest_sealed(&state).map(|sealed| Boundary {
            index: sealed.last.index,
            term: sealed.last.term,
            membership_index: sealed.membership.index,
            membership: sealed.membership.payload,
        })
    }

    /// Bytes of sealed files whose first entry is this one or a later one. From memory, newest first: cheap for whoever
    /// follows closely.
    pub fn sealed_bytes_from(&self, index: u64) -> u64 {
        let files = self.files.read();
        let behind = files
            .iter()
            .rev()
            .take_while(|f| f.first.index + 1 >= index);
        behind.filter(|f| f.is_sealed()).map(|f| f.end()).sum()
    }

    /// Bytes of files whose first entry is this one or a later one, sealed or not. From memory, as
    /// [`Log::sealed_bytes_from`].
    pub fn bytes_from(&self, index: u64) -> u64 {
        let files = self.files.read();
        let behind = files.iter().rev();
        behind
            .take_while(|f| f.first.index + 1 >= index)
            .map(|f| f.end())
            .sum()
    }

    fn newest_sealed(&self, state: &State) -> Option<Sealed> {
        let files = self.files.read();
        let committed = &state.committed;
        let at_commit = files.iter().find(|f| f.id == committed.file);
        let ends_there = at_commit.is_some_and(|f| f.is_sealed() && f.end() == committed.pos);
        if ends_there && state.memberships.committed.index > 0 && state.unproven.is_none() {
            return Some(Sealed {
                last: *committed,
                membership: state.memberships.committed.clone(),
            });
        }
        let known = state.sealed.clone()?;
        files
            .iter()
            .any(|f| f.id == known.last.file)
            .then_some(known)
    }

    /// Closes the active file, unless a boundary at or behind `index` exists or is about to: once the last entry of
    /// the closed file is committed, it is sealed. Call it as often as you like.
    ///
    /// # Errors
    /// [`Error::Refused`] for an index behind the last entry, [`Error::StorageFull`], [`Error::Poisoned`].
    pub fn close_active(self: &Arc<Self>, index: u64) -> Result<()> {
        let mut state = self.state.lock();
        self.check_writable(&state)?;
        if index > state.tail.index {
            return Err(Error::Refused(format!(
                "entry {index} is behind the last, {}",
                state.tail.index
            )));
        }
        let exists = self.newest_sealed(&state);
        if exists.is_some_and(|sealed| sealed.last.index >= index) {
            return Ok(());
        }
        {
            let files = self.files.read();
            let pending = |pair: &[Arc<Segment>]| {
                pair[1].first.index >= index && !pair[0].is_sealed() && !pair[0].is_missing()
            };
            let is_empty = |f: &Arc<Segment>| f.id != state.tail.file;
            if files.windows(2).any(pending) || files.last().is_none_or(is_empty) {
                return Ok(());
            }
        }
        self.start_next_file(&mut state)
    }

    /// The segments from the log's start up to the boundary at `index`; `None` when there is no such boundary (any
    /// more), or damage is known before it. Blocking: it reads footers.
    ///
    /// # Errors
    /// [`Error::Refused`] when too many snapshots are held, I/O errors.
    pub fn snapshot(self: &Arc<Self>, index: u64) -> Result<Option<Snapshot>> {
        let Some((files, ends, hold)) = self.pin(index)? else {
            return Ok(None);
        };
        let mut segments = Vec::with_capacity(files.len());
        for (file, last) in files.iter().zip(&ends) {
            let (footer_len, footer_crc) = match file.is_sealed() {
                true => {
                    let handle = file.handle(&self.shared)?;
                    Footer::extent(&*handle.file, file.end(), &file.name())?.unwrap_or_default()
                }
                false => (0, 0),
            };
            segments.push(SegmentManifest {
                first: EntryPlace::of(&file.first),
                last: *last,
                frames_end: file.end(),
                footer_len,
                footer_crc,
            });
        }
        let Some(last) = files.last() else {
            return Ok(None);
        };
        let footer = Footer::read(&*last.handle(&self.shared)?.file, &last.name())?;
        // A footer of a later start tells neither members nor producers.
        let Some(footer) = footer.filter(|f| f.membership.index > 0) else {
            return Ok(None);
        };
        let end = ends.last().map_or(0, |last| last.next_offset);
        let first = files.first().map_or(0, |f| f.first.next_offset);
        Ok(Some(Snapshot {
            manifest: SnapshotManifest {
                topic: self.spec.topic,
                partition: self.spec.partition,
                log_start: self.log_start().clamp(first, end),
                membership_index: footer.membership.index,
                membership: footer.membership.payload,
                segments,
            },
            log: self.clone(),
            files,
            hold,
        }))
    }

    /// The files up to the boundary that hold anything readable, each with the place behind it, held.
    #[allow(clippy::type_complexity, reason = "three parts of one answer")]
    fn pin(&self, index: u64) -> Result<Option<(Vec<Arc<Segment>>, Vec<EntryPlace>, Arc<Hold>)>> {
        let mut state = self.state.lock();
        self.check_poison_or_removed(&state)?;
        let files = self.files.read();
        let end_of = |at: usize| match files.get(at + 1) {
            Some(next) => Some(EntryPlace::of(&next.first)),
            None => (files[at].id == state.tail.file).then(|| EntryPlace::of(&state.tail)),
        };
        let ends: Vec<_> = (0..files.len()).filter_map(end_of).collect();
        let Some(last) = ends.iter().position(|end| end.index == index) else {
            return Ok(None);
        };
        if index > state.committed.index || !files[last].is_sealed() {
            return Ok(None);
        }
        let log_start = self.log_start();
        let first = ends[..last]
            .iter()
            .take_while(|end| log_start > 0 && end.next_offset <= log_start)
            .count();
        let chosen = files[first..=last].to_vec();
        if chosen.iter().any(|f| !f.damage().is_empty()) {
            return Ok(None);
        }
        let Some(hold) = state.pins.add(files[first].first.index) else {
            return Err(Error::Refused("too many snapshots are held".into()));
        };
        Ok(Some((chosen, ends[first..=last].to_vec(), hold)))
    }

    fn check_poison_or_removed(&self, state: &State) -> Result<()> {
        if state.removed {
            return Err(Error::Refused("the replica was removed".into()));
        }
        Ok(())
    }
}

impl Snapshot {
    /// What it holds.
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// At most `len` bytes of a segment from a position on, at most [`SNAPSHOT_READ_MAX`]; none behind its end.
    /// Blocking. The bytes are not checked: the receiver does.
    ///
    /// # Errors
    /// [`Error::Released`]: the files went, take another snapshot. [`Error::Refused`] for positions outside, I/O
    /// errors.
    pub fn read(&self, segment: usize, pos: u64, len: usize) -> Result<Vec<u8>> {
        let (file, manifest) = self.part(segment)?;
        if pos < FIRST_FRAME || pos > manifest.end() {
            return Err(Error::Refused(format!("position {pos} is outside")));
        }
        let left = (manifest.end() - pos).min(SNAPSHOT_READ_MAX as u64) as usize;
        let mut bytes = vec![0; len.min(left)];
        let read = file
            .handle(&self.log.shared)
            .and_then(|handle| {
                let what = Error::io(format!("reading {}", file.name()));
                handle.file.read_at(pos, &mut bytes).map_err(what)
            })
            .map_err(|error| self.released(file).unwrap_or(error))?;
        if read < bytes.len() {
            return Err(self.released(file).unwrap_or_else(|| {
                Error::corrupt(file.name(), "the file is shorter than its frames")
            }));
        }
        Ok(bytes)
    }

    /// Reads a segment through and notes damage in it; then no snapshot is offered before it is repaired. For a
    /// segment that a receiver refused. Blocking.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Released`], I/O errors.
    pub fn verify(&self, segment: usize) -> Result<()> {
        let (file, _) = self.part(segment)?;
        self.log
            .rebuild_index(file)
            .map_err(|error| self.released(file).unwrap_or(error))?;
        match file.damage().first() {
            None => Ok(()),
            Some(damage) => Err(Error::Damaged {
                from: damage.offsets.0,
                to: damage.offsets.1,
                what: damage.what.clone(),
            }),
        }
    }

    fn part(&self, segment: usize) -> Result<(&Arc<Segment>, &SegmentManifest)> {
        let none = || Error::Refused(format!("there is no segment {segment}"));
        let file = self.files.get(segment).ok_or_else(none)?;
        if let Some(released) = self.released(file) {
            return Err(released);
        }
        let manifest = self.manifest.segments.get(segment).ok_or_else(none)?;
        Ok((file, manifest))
    }

    fn released(&self, file: &Arc<Segment>) -> Option<Error> {
        let gone = self.hold.released.load(Ordering::Acquire) || file.is_deleted();
        gone.then(|| Error::Released { what: file.name() })
    }
}
