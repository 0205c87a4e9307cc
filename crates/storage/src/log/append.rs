//! Appending: stamp, frame, write once, remember for the next cycle.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use timberline_record::{BATCH_HEADER_LEN, Batch};

use super::tail::HEAD_MAX;
use super::{Entry, Log, Pending, State};
use crate::bugs::Bug;
use crate::error::{Error, Result};
use crate::file_header::{FIRST_FRAME, FileHeader};
use crate::frame::{self, EntryKind, FRAME_HEADER_LEN, FrameHeader, PAYLOAD_LEN_MAX};
use crate::place::Place;
use crate::producers::ProducerWrite;
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
    max_timestamp: i64,
    log_start: Option<i64>,
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
            max_timestamp: header.max_timestamp,
            log_start: None,
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
        self.append_plain(term, kind, payload, now_ms, None)
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
        self.append_plain(term, EntryKind::LogStart, payload, now_ms, Some(start))
    }

    fn append_plain(
        self: &Arc<Self>,
        term: u64,
        kind: EntryKind,
        payload: Bytes,
        now_ms: i64,
        log_start: Option<i64>,
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
            max_timestamp: i64::MIN,
            log_start,
        })
    }

    fn append_draft(self: &Arc<Self>, draft: Draft<'_>) -> Result<Appended> {
        if draft.payload_len > PAYLOAD_LEN_MAX {
            return Err(Error::TooLarge {
                bytes: draft.payload_len as u64,
                limit: PAYLOAD_LEN_MAX as u64,
            });
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        self.check_writable(state)?;
        if draft.term < state.tail.term {
            return Err(Error::Refused(format!(
                "term {} is behind the last entry's {}",
                draft.term, state.tail.term
            )));
        }
        let len = frame::frame_len(draft.payload_len);
        let segment = self.writable_file(state, len, draft.log_start.is_some())?;
        let (header, head, head_len) = stamp(&draft, &state.tail);
        let pos = segment.end();
        let padding = [0u8; 8];
        let pad = len as usize - head_len - draft.body.len();
        let bufs: [&[u8]; 3] = [&head[..head_len], &draft.body, &padding[..pad]];
        // Half a frame can't be taken back, and its position can't be used again.
        self.shared
            .fatal(segment.append(&self.shared, &bufs, len))?;
        segment.index_push(
            header.index,
            header.base_offset,
            pos,
            state.tail.chain,
            draft.max_timestamp,
        );
        self.remember(
            state,
            &segment,
            &header,
            &draft,
            Placed {
                pos,
                len,
                head,
                head_len,
            },
        );
        Ok(Appended {
            index: header.index,
            base_offset: header.base_offset,
            bytes: len,
        })
    }

    fn remember(
        self: &Arc<Self>,
        state: &mut State,
        segment: &Arc<Segment>,
        header: &FrameHeader,
        draft: &Draft<'_>,
        placed: Placed,
    ) {
        let producer = draft.batch.and_then(|batch| {
            ProducerWrite::of(
                batch.header(),
                header.base_offset,
                header.index,
                header.append_time_ms,
            )
        });
        if let Some(write) = &producer {
            state.producers.apply(write);
        }
        state.tail = Place {
            file: segment.id,
            pos: placed.pos + placed.len,
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: header.next_offset(),
            time_ms: header.append_time_ms,
        };
        state.active_since_ms.get_or_insert(header.append_time_ms);
        state.entries.push_back(Entry {
            place: state.tail,
            producer,
            log_start: draft.log_start,
        });
        state.pending_bytes += placed.len;
        state.pending.push_back(Pending {
            segment: segment.clone(),
            index: header.index,
            pos: placed.pos,
            len: placed.len,
            head: placed.head,
            head_len: placed.head_len,
            body: draft.body.clone(),
        });
        self.end_offset
            .store(state.tail.next_offset, Ordering::Release);
        self.size_bytes.fetch_add(placed.len, Ordering::Relaxed);
        self.enqueue(state);
    }

    /// The file that the next `len` bytes go to, with space for them.
    fn writable_file(
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

struct Placed {
    pos: u64,
    len: u64,
    head: [u8; HEAD_MAX],
    head_len: usize,
}

/// The frame's header, and all bytes in front of the body.
fn stamp(draft: &Draft<'_>, tail: &Place) -> (FrameHeader, [u8; HEAD_MAX], usize) {
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
    (header, head, head_len)
}
