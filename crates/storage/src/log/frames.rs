//! Frames by index as they are stored, committed or not: what a leader sends, and what Raft reads back.
//!
//! Slices of the map, never copies. A slice of an entry that is not committed may outlive the entry: a truncation
//! notes who still holds a map, and the cut file is not sealed before that (see [`crate::segment`]).
//!
//! Where a call begins is known in memory for what is not committed, and for what the last calls ended at; otherwise
//! the sparse index and a walk over at most [`crate::index::INDEX_EVERY`] bytes tell.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::read::ColdTask;
use super::{ColdRead, Log, State};
use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::frame::{FRAME_HEADER_LEN, FrameHeader};
use crate::ids::FileId;
use crate::segment::Segment;

/// Most frames returned by one call.
const FRAMES_MAX: usize = 4096;
/// Calls whose ends are remembered: about one for each follower, and one for applying.
const HINTS_MAX: usize = 8;
/// Bytes looked at beyond what was asked for: headers, and a frame that does not fit.
const WINDOW_SPARE: u64 = 64 << 10;

/// The answer to [`Log::frames`].
#[derive(Debug)]
pub enum FramesOutcome {
    /// Headers and payloads in order, without gaps, without copying.
    Frames(Vec<(FrameHeader, Bytes)>),
    /// The range must be verified first: run it where blocking is allowed, then ask again.
    Cold(ColdRead),
}

/// Where frames begin that follow those answered lately.
#[derive(Debug, Default)]
pub(super) struct Hints(Mutex<HintRing>);

#[derive(Debug, Default)]
struct HintRing {
    hints: [Option<Hint>; HINTS_MAX],
    /// Overwritten next.
    oldest: usize,
}

#[derive(Clone, Copy, Debug)]
struct Hint {
    index: u64,
    file: FileId,
    pos: u64,
}

impl Hints {
    /// Entries behind the index are gone: others may come in their place.
    pub(super) fn forget_behind(&self, index: u64) {
        let mut ring = self.0.lock();
        for hint in &mut ring.hints {
            hint.take_if(|h| h.index > index);
        }
    }

    fn find(&self, index: u64, file: FileId) -> Option<u64> {
        let ring = self.0.lock();
        let mut hints = ring.hints.iter().flatten();
        let found = hints.find(|h| h.index == index && h.file == file);
        found.map(|h| h.pos)
    }

    /// `from` was answered up to `hint`, which takes the place of the hint it came by.
    fn note(&self, from: u64, hint: Hint) {
        let mut ring = self.0.lock();
        let came_by =
            |h: &Option<Hint>| h.is_some_and(|h| h.index == from || h.index == hint.index);
        let at = ring.hints.iter().position(came_by).unwrap_or(ring.oldest);
        if at == ring.oldest {
            ring.oldest = (at + 1) % HINTS_MAX;
        }
        ring.hints[at] = Some(hint);
    }
}

/// A call under way.
struct Walk {
    /// The index wanted next.
    next: u64,
    to: u64,
    room: usize,
    frames: Vec<(FrameHeader, Bytes)>,
    segment: Arc<Segment>,
    pos: u64,
}

enum Start {
    At(Arc<Segment>, u64),
    Cold(Arc<Segment>, ColdTask),
}

impl Log {
    /// Frames from `from` to `to`, both included, as they are stored: about `max_bytes` at most, at least one. It may
    /// end earlier, at the commit index or before a range that must be verified: go on behind the last one.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`] outside [`Log::first_index`] to [`Log::last_index`], [`Error::Damaged`] when `from`
    /// can't be read, I/O errors.
    pub fn frames(self: &Arc<Self>, from: u64, to: u64, max_bytes: usize) -> Result<FramesOutcome> {
        let state = self.state.lock();
        for index in [from, to] {
            if index < from || index < self.first_index_of(&state) || index > state.tail.index {
                return Err(Error::IndexOutOfRange { index });
            }
        }
        let committed = state.committed.index;
        if from > committed {
            // Under the lock until the slices are taken: a truncation sees every map that they hold.
            let start = self.start_of_uncommitted(&state, from)?;
            return self.walk_frames(from, to, max_bytes, start);
        }
        drop(state);
        match self.start_of_committed(from)? {
            Start::At(segment, pos) => {
                self.walk_frames(from, to.min(committed), max_bytes, (segment, pos))
            }
            Start::Cold(segment, task) => Ok(self.cold(segment, task)),
        }
    }

    fn cold(self: &Arc<Self>, segment: Arc<Segment>, task: ColdTask) -> FramesOutcome {
        FramesOutcome::Cold(ColdRead {
            log: self.clone(),
            segment,
            task,
        })
    }

    /// Where the frame of an uncommitted entry begins: behind the entry before it, or first in its file.
    fn start_of_uncommitted(&self, state: &State, from: u64) -> Result<(Arc<Segment>, u64)> {
        let at = state.entries.partition_point(|e| e.place.index < from);
        let before = match at.checked_sub(1) {
            Some(before) => state.entries[before].place,
            None => state.committed,
        };
        let entry = state.entries.get(at).filter(|e| e.place.index == from);
        let files = self.files.read();
        let segment = entry.and_then(|e| files.iter().rev().find(|f| f.id == e.place.file));
        let Some(segment) = segment.filter(|_| before.index + 1 == from) else {
            return Err(lost(from, before.next_offset));
        };
        let continues = before.file == segment.id;
        let pos = if continues { before.pos } else { FIRST_FRAME };
        Ok((segment.clone(), pos))
    }

    /// A position at or shortly before the frame of a committed entry, confirmed by the frame there.
    fn start_of_committed(&self, from: u64) -> Result<Start> {
        let segment = {
            let files = self.files.read();
            let after = files.partition_point(|f| f.first.index < from);
            match after.checked_sub(1) {
                Some(at) => files[at].clone(),
                None => return Err(Error::IndexOutOfRange { index: from }),
            }
        };
        if segment.first.index + 1 == from {
            return Ok(Start::At(segment, FIRST_FRAME));
        }
        if let Some(pos) = self.hints.find(from, segment.id) {
            return Ok(Start::At(segment, pos));
        }
        if segment.is_missing() {
            return Err(lost(from, segment.first.next_offset));
        }
        let Some(index) = segment.index() else {
            return Ok(Start::Cold(segment, ColdTask::LoadIndex));
        };
        let Some(entry) = index.by_index(from) else {
            return Ok(Start::At(segment, FIRST_FRAME));
        };
        if segment.trusted_until(entry.pos) <= entry.pos {
            return Ok(match segment.damage_at(entry.pos) {
                Some(_) => Start::At(segment, entry.pos),
                None => Start::Cold(segment, ColdTask::Verify { pos: entry.pos }),
            });
        }
        let header = segment.slice(&self.shared, entry.pos, FRAME_HEADER_LEN)?;
        let confirmed = FrameHeader::decode(&header).is_ok_and(|h| entry.confirmed_by(&h));
        Ok(if confirmed {
            Start::At(segment, entry.pos)
        } else {
            Start::Cold(segment, ColdTask::RebuildIndex)
        })
    }

    fn walk_frames(
        self: &Arc<Self>,
        from: u64,
        to: u64,
        max_bytes: usize,
        (segment, pos): (Arc<Segment>, u64),
    ) -> Result<FramesOutcome> {
        let mut walk = Walk {
            next: from,
            to,
            room: max_bytes,
            frames: Vec::new(),
            segment,
            pos,
        };
        while walk.wants_more() {
            match self.walk_on(&mut walk) {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) if !walk.frames.is_empty() => break,
                Ok(Some(task)) => return Ok(self.cold(walk.segment, task)),
                Err(error) => return Err(error),
            }
        }
        self.hints.note(
            from,
            Hint {
                index: walk.next,
                file: walk.segment.id,
                pos: walk.pos,
            },
        );
        Ok(FramesOutcome::Frames(walk.frames))
    }

    /// Goes over to the next file, takes the frames of one window, or says what must be done first.
    fn walk_on(&self, walk: &mut Walk) -> Result<Option<ColdTask>> {
        let segment = walk.segment.clone();
        if walk.pos >= segment.end() {
            let next = self.file_after(&segment);
            walk.segment = next.ok_or(Error::IndexOutOfRange { index: walk.next })?;
            walk.pos = FIRST_FRAME;
            return Ok(None);
        }
        if let Some(damage) = segment.damage_at(walk.pos) {
            return Err(Error::Damaged {
                from: damage.offsets.0,
                to: damage.offsets.1,
                what: damage.what,
            });
        }
        let want = (walk.room as u64).saturating_add(WINDOW_SPARE);
        let window = segment.window(&self.shared, walk.pos, want)?;
        if window.is_empty() {
            return Ok(Some(ColdTask::Verify { pos: walk.pos }));
        }
        let mut rest = 0;
        while walk.wants_more() && rest + FRAME_HEADER_LEN <= window.len() {
            let bad = || self.trusted_is_bad(&segment, walk.pos, segment.first.next_offset);
            let header = FrameHeader::decode(&window[rest..]).map_err(|_| bad())?;
            let len = header.frame_len() as usize;
            let mut frame = window.slice(rest..window.len().min(rest + len));
            if frame.len() < len && rest == 0 {
                frame = segment.window(&self.shared, walk.pos, len as u64)?;
                if frame.len() < len {
                    return Err(bad());
                }
            }
            if frame.len() < len {
                // The next window begins with it.
                break;
            }
            if header.index >= walk.next {
                if header.index > walk.next {
                    return Err(lost(walk.next, header.base_offset));
                }
                if len > walk.room && !walk.frames.is_empty() {
                    walk.room = 0;
                    break;
                }
                let payload = FRAME_HEADER_LEN..FRAME_HEADER_LEN + header.payload_len as usize;
                walk.frames.push((header, frame.slice(payload)));
                walk.room = walk.room.saturating_sub(len);
                walk.next += 1;
            }
            walk.pos += len as u64;
            rest += len;
        }
        if rest == 0 && walk.wants_more() {
            return Err(self.trusted_is_bad(&segment, walk.pos, segment.first.next_offset));
        }
        Ok(None)
    }
}

impl Walk {
    fn wants_more(&self) -> bool {
        let full = self.room == 0 && !self.frames.is_empty();
        self.next <= self.to && !full && self.frames.len() < FRAMES_MAX
    }
}

/// An entry whose frame damage took.
fn lost(index: u64, offset: i64) -> Error {
    Error::Damaged {
        from: offset,
        to: offset,
        what: format!("entry {index} was lost to damage"),
    }
}
