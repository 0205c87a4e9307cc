//! Appending a frame as another replica wrote it: checked, then stored byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use timberline_record::BatchHeader;

use super::append::Parts;
use super::tail::HEAD_MAX;
use super::{Appended, Log, State};
use crate::error::{Error, Result};
use crate::frame::{EntryKind, FRAME_HEADER_LEN, FrameFault, FrameHeader};

impl Log {
    /// Appends exactly this frame: header and payload are stored as the leader stored them. It must be the next entry
    /// and continue the chain. Producer state, log start and membership follow as with a local append.
    ///
    /// # Errors
    /// [`Error::Refused`] for an index that is not the next or a term that is behind, [`Error::Diverged`] for a frame
    /// of another history (INV-4), [`Error::InvalidFrame`] for one that is not whole (INV-11), [`Error::TooLarge`] and
    /// [`Error::StorageFull`]: the log is unchanged. [`Error::Poisoned`].
    pub fn append_frame(
        self: &Arc<Self>,
        header: &FrameHeader,
        payload: Bytes,
    ) -> Result<Appended> {
        // It needs nothing of the log: other threads may go on meanwhile.
        check_whole(header, &payload).map_err(|fault| Error::InvalidFrame {
            index: header.index,
            fault,
        })?;
        let mut state = self.state.lock();
        let state = &mut *state;
        self.check_append(state, header.kind, header.term, payload.len())?;
        check_next(state, header)?;
        let small = header.kind == EntryKind::LogStart;
        let segment = self.writable_file(state, header.frame_len(), small)?;
        let mut head = [0; HEAD_MAX];
        head[..FRAME_HEADER_LEN].copy_from_slice(&header.encode());
        let parts = Parts {
            head,
            head_len: FRAME_HEADER_LEN,
            body: payload,
        };
        self.write(state, &segment, header, parts)
    }
}

/// Whether a leader could have written this frame, and the payload is its own.
pub(crate) fn check_whole(header: &FrameHeader, payload: &[u8]) -> Result<(), FrameFault> {
    header.check_shape()?;
    header.check_payload(payload)?;
    match header.kind {
        EntryKind::Data => {
            let batch = BatchHeader::decode(payload).map_err(|_| FrameFault::BatchHeader)?;
            let agrees = i64::from(batch.record_count) == i64::from(header.record_count);
            agrees.then_some(()).ok_or(FrameFault::BatchHeader)
        }
        EntryKind::LogStart if payload.len() != 8 => Err(FrameFault::Shape),
        _ => Ok(()),
    }
}

/// Whether the frame is the next entry of this history.
fn check_next(state: &State, header: &FrameHeader) -> Result<()> {
    let tail = &state.tail;
    if header.index != tail.index + 1 {
        return Err(Error::Refused(format!(
            "entry {} is not the next behind {}",
            header.index, tail.index
        )));
    }
    // Offset and time are part of the chain: with the same history they can't differ.
    let follows = header
        .check_follows(tail.index, tail.next_offset, tail.chain)
        .is_ok();
    if follows && header.append_time_ms >= tail.time_ms {
        return Ok(());
    }
    Err(Error::Diverged {
        index: header.index,
        expected: header.chain_after(tail.chain),
        found: header.chain,
    })
}
