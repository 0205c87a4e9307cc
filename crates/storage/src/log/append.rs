//! Appending: stamp, frame, write once, remember for the next cycle.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use timberline_record::{BATCH_HEADER_LEN, Batch};

use super::effects::Effects;
use super::read::max_timestamp;
use super::tail::HEAD_MAX;
use super::{Entry, Log, Pending, State};
use crate::bugs::Bug;
use crate::error::{Error, Result};
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::frame::{self, EntryKind, FRAME_HEADER_LEN, FrameHeader, PAYLOAD_LEN_MAX};
use crate::membership::CONFIG_LEN_MAX;
use crate::place::Place;
use crate::segment::Segment;

/// Space kept behind the frames of a file for its footer and for one change of the log start, bytes.
const SPARE: u64 = 8 << 10;
/// Footer bytes that 64 KiB of frames may need.
const FOOTER_PER_INDEXED: u64 = 48;

/// Where an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its position in the sequence of entries.
    pub index: u64,
    /// Offset of its first record, or of the next one when it has none.
    pub base_offset: i64,
    /// Bytes of its frame.
    pub bytes: u64,
}

/// An entry on its way in.
struct Draft<'a> {
    kind: EntryKind,
    term: u64,
    now_ms: i64,
    record_count: u32,
    payload_len: usize,
    payload_crc: u32,
    /// For data: stamped once the offset is known.
    batch: Option<&'a Batch>,
    body: Bytes,
}

/// A frame as it is written: what stands before the body, and the body.
pub(super) struct Parts {
    pub(super) head: [u8; HEAD_MAX],
    pub(super) head_len: usize,
    pub(super) body: Bytes,
}

impl Log {
    /// Makes sure that this many more bytes can be written. Call it before an entry is proposed: an entry can't be
    /// given back.
    ///
    /// # Errors
    /// [`Error::StorageFull`], which may be retried; [`Error::Poisoned`].
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<()> {
        let mut state = self.state.lock();
        self.check_writable(&state)?;
        self.writable_file(&mut state, frame::frame_len(bytes as usize), false)
            .map(|_| ())
    }

    /// Appends a record batch: stamps base offset and leader epoch, keeps the body by reference. The producer's
    /// sequence is not checked here, see [`Log::check_producer`].
    ///
    /// # Errors
    /// [`Error::StorageFull`] and [`Error::TooLarge`] leave the log unchanged; [`Error::Poisoned`].
    pub fn append_batch(
        self: &Arc<Self>,
        term: u64,
        batch: &Batch,
        now_ms: i64,
    ) -> Result<Appended> {
        let header = batch.header();
        self.append_draft(Draft {
            kind: EntryKind::Data,
            term,
            now_ms,
            record_count: header.record_count as u32,
            payload_len: batch.bytes().len(),
            payload_crc: header.crc,
            batch: Some(batch),
            body: batch.body(),
        })
    }

    /// Appends an entry that takes no offset.
    ///
    /// # Errors
    /// As [`Log::append_batch`]; [`Error::Refused`] for kinds that have a call of their own.
    pub fn append(
        self: &Arc<Self>,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        now_ms: i64,
    ) -> Result<Appended> {
        if matches!(kind, EntryKind::Data | EntryKind::LogStart) {
            return Err(Error::Refused(
                "data and log start have calls of their own".into(),
            ));
        }
        self.append_plain(term, kind, payload, now_ms)
    }

    /// Appends a change of the log start, from retention or a trim. It counts once it is committed. It has space of
    /// its own, so that a full disk can be emptied.
    ///
    /// # Errors
    /// As [`Log::append_batch`].
    pub fn append_log_start(
        self: &Arc<Self>,
        term: u64,
        start: i64,
        now_ms: i64,
    ) -> Result<Appended> {
        let payload = Bytes::copy_from_slice(&start.to_le_bytes());
        self.append_plain(term, EntryKind::LogStart, payload, now_ms)
    }

    fn append_plain(
        self: &Arc<Self>,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        now_ms: i64,
    ) -> Result<Appended> {
        self.append_draft(Draft {
            kind,
            term,
            now_ms,
            record_count: 0,
            payload_len: payload.len(),
            payload_crc: crc32c::crc32c(&payload),
            batch: None,
            body: payload,
        })
    }

    fn append_draft(self: &Arc<Self>, draft: Draft<'_>) -> Result<Appended> {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.check_append(state, draft.kind, draft.term, draft.payload_len)?;
        let len = frame::frame_len(draft.payload_len);
        let segment = self.writable_file(state, len, draft.kind == EntryKind::LogStart)?;
        let (header, parts) = stamp(draft, &state.tail);
        self.write(state, &segment, &header, parts)
    }

    /// Whether an entry can be appended now, wherever it comes from.
    pub(super) fn check_append(
        &self,
        state: &State,
        kind: EntryKind,
        term: u64,
        payload_len: usize,
    ) -> Result<()> {
        let limit = match kind {
            EntryKind::Config => CONFIG_LEN_MAX,
            _ => PAYLOAD_LEN_MAX,
        };
        if payload_len > limit {
            return Err(Error::TooLarge {
                bytes: payload_len as u64,
                limit: limit as u64,
            });
        }
        self.check_writable(state)?;
        if term < state.tail.term {
            return Err(Error::Refused(format!(
                "term {term} is behind the last entry's {}",
                state.tail.term
            )));
        }
        if !state.terms.has_room(term, state.committed.index) {
            return Err(Error::Refused("too many terms are uncommitted".into()));
        }
        if kind == EntryKind::Config && !state.memberships.has_room() {
            return Err(Error::Refused(
                "too many changes of membership are uncommitted".into(),
            ));
        }
        Ok(())
    }

    /// Writes a frame behind the last entry, in the file that has the space, and remembers it.
    pub(super) fn write(
        self: &Arc<Self>,
        state: &mut State,
        segment: &Arc<Segment>,
        header: &FrameHeader,
        parts: Parts,
    ) -> Result<Appended> {
        let (pos, len) = (segment.end(), header.frame_len());
        let head = &parts.head[..parts.head_len];
        let padding = [0u8; 8];
        let pad = len as usize - head.len() - parts.body.len();
        let bufs: [&[u8]; 3] = [head, &parts.body, &padding[..pad]];
        // Half a frame can't be taken back, and its position can't be used again.
        self.shared
            .fatal(segment.append(&self.shared, &bufs, len))?;
        // Either the batch's header is all of it that stands in front, or the whole payload is the body.
        let payload = match &head[FRAME_HEADER_LEN..] {
            [] => &parts.body[..],
            stamped => stamped,
        };
        segment.index_push(
            header.index,
            header.base_offset,
            pos,
            state.tail.chain,
            max_timestamp(header, payload),
        );
        let mut effects = Effects::of(header, payload);
        if parts.head_len == FRAME_HEADER_LEN && self.shared.has_bug(Bug::ForgetFollowersProducers)
        {
            effects.producer = None;
        }
        let place = Place {
            file: segment.id,
            pos: pos + len,
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            time_ms: header.append_time_ms,
        };
        self.remember(state, place, effects);
        state.pending_bytes += len;
        state.pending.push_back(Pending {
            segment: segment.clone(),
            index: header.index,
            pos,
            len,
            head: parts.head,
            head_len: parts.head_len,
            body: parts.body,
        });
        self.size_bytes.fetch_add(len, Ordering::Relaxed);
        self.enqueue(state);
        Ok(Appended {
            index: header.index,
            base_offset: header.base_offset,
            bytes: len,
        })
    }

    fn remember(&self, state: &mut State, place: Place, effects: Effects) {
        if let Some(write) = &effects.producer {
            state.producers.apply(write);
        }
        state
            .terms
            .push(place.index, place.term, state.committed.index);
        if let Some(config) = effects.config {
            state.memberships.push(place.index, config);
        }
        state.active_since_ms.get_or_insert(place.time_ms);
        state.entries.push_back(Entry {
            place,
            producer: effects.producer,
            log_start: effects.log_start,
        });
        state.tail = place;
        self.end_offset.store(place.next_offset, Ordering::Release);
    }

    /// The file that the next `len` bytes go to, with space for them.
    pub(super) fn writable_file(
        self: &Arc<Self>,
        state: &mut State,
        len: u64,
        small: bool,
    ) -> Result<Arc<Segment>> {
        let config = self.config();
        let limit = config.segment_bytes.max(FIRST_FRAME + len);
        if !state.tail_closed
            && let Some(active) = self.files.read().last().cloned()
        {
            // A change of the log start goes into the active file's spare space, however full it is.
            if active.end() + len <= limit || small {
                let spare = if small {
                    0
                } else {
                    SPARE + active.end() / crate::index::INDEX_EVERY * FOOTER_PER_INDEXED
                };
                active.reserve(&self.shared, active.end() + len, spare, limit)?;
                return Ok(active);
            }
        }
        self.start_file(state, len, limit)
    }

    /// Closes the active file by starting the next, so that it can be sealed and, later, go.
    pub(super) fn start_next_file(self: &Arc<Self>, state: &mut State) -> Result<()> {
        let limit = self.config().segment_bytes;
        self.start_file(state, 0, limit)?;
        self.enqueue(state);
        Ok(())
    }

    fn start_file(
        self: &Arc<Self>,
        state: &mut State,
        len: u64,
        limit: u64,
    ) -> Result<Arc<Segment>> {
        let header = FileHeader {
            id: self.shared.allocate_file(),
            spec: self.spec,
            cut: state.tail,
        };
        let path = self.shared.segment_path(&self.spec, header.id);
        let segment = Arc::new(Segment::create(&self.shared, &header, path, limit)?);
        if let Err(error) = segment.reserve(&self.shared, FIRST_FRAME + len, SPARE, limit) {
            let _ = self.shared.disk.remove_file(&segment.path);
            return Err(error);
        }
        {
            let mut files = self.files.write();
            // A file that was started and got no entry would never be complete.
            let is_empty = |f: &Arc<Segment>| f.id != state.tail.file && f.end() == FIRST_FRAME;
            if files.last().is_some_and(is_empty)
                && let Some(empty) = files.pop()
            {
                state.new_files.retain(|f| f.id != empty.id);
                state.dead.push(empty);
            }
            files.push(segment.clone());
        }
        if !self.shared.has_bug(Bug::NoHeaderRecord) {
            state.new_files.push(segment.clone());
        }
        state.tail_closed = false;
        state.active_since_ms = None;
        self.size_bytes.fetch_add(FIRST_FRAME, Ordering::Relaxed);
        // The file before may have been closed with its last entry committed already.
        self.seal_due(state);
        Ok(segment)
    }
}

/// The frame's header, and the frame.
fn stamp(draft: Draft<'_>, tail: &Place) -> (FrameHeader, Parts) {
    let mut header = FrameHeader {
        kind: draft.kind,
        payload_len: draft.payload_len as u32,
        payload_crc: draft.payload_crc,
        term: draft.term,
        index: tail.index + 1,
        base_offset: tail.next_offset,
        record_count: draft.record_count,
        append_time_ms: draft.now_ms.max(tail.time_ms),
        chain: 0,
    };
    header.chain = header.chain_after(tail.chain);
    let mut head = [0; HEAD_MAX];
    head[..FRAME_HEADER_LEN].copy_from_slice(&header.encode());
    let mut head_len = FRAME_HEADER_LEN;
    if let Some(batch) = draft.batch {
        let stamped = batch.stamped_header(header.base_offset, frame::leader_epoch(draft.term));
        head[FRAME_HEADER_LEN..].copy_from_slice(&stamped);
        head_len += BATCH_HEADER_LEN;
    }
    let body = draft.body;
    (
        header,
        Parts {
            head,
            head_len,
            body,
        },
    )
}
