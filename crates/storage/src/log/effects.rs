//! What an entry does besides being there: the one reading of it for appends, replicated frames and recovery.

use bytes::Bytes;
use timberline_record::BatchHeader;

use crate::frame::{EntryKind, FrameHeader};
use crate::producers::ProducerWrite;

/// What an entry changes when it is appended, and when it is committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    /// What it does to the producer state.
    pub(crate) producer: Option<ProducerWrite>,
    /// The log start it sets.
    pub(crate) log_start: Option<i64>,
    /// The membership it sets. A copy: it outlives the entry, whose bytes may be a slice of something large.
    pub(crate) config: Option<Bytes>,
}

impl Effects {
    /// The effects of a checked frame.
    pub(crate) fn of(header: &FrameHeader, payload: &[u8]) -> Effects {
        let mut effects = Effects::default();
        match header.kind {
            EntryKind::Data => {
                let batch = BatchHeader::decode(payload).ok();
                effects.producer = batch.and_then(|b| {
                    ProducerWrite::of(&b, header.base_offset, header.index, header.append_time_ms)
                });
            }
            EntryKind::LogStart => {
                let start = payload.first_chunk::<8>();
                effects.log_start = start.map(|b| i64::from_le_bytes(*b));
            }
            EntryKind::Config => effects.config = Some(Bytes::copy_from_slice(payload)),
            EntryKind::Noop | EntryKind::Command => {}
        }
        effects
    }
}
