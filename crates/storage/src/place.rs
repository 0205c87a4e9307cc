//! A place in a log: where an entry ends, and what the next one must continue.

use crate::codec::{Malformed, Put, Reader};
use crate::ids::FileId;

/// The state of a log right behind one of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// File that holds the entry; [`FileId::NONE`] before the first file.
    pub(crate) file: FileId,
    /// Position behind the entry in that file, bytes.
    pub(crate) pos: u64,
    /// The entry's index; 0 before the first.
    pub(crate) index: u64,
    /// The entry's term.
    pub(crate) term: u64,
    /// The chain up to the entry.
    pub(crate) chain: u64,
    /// Offset of the next record.
    pub(crate) next_offset: i64,
    /// The entry's append time, ms.
    pub(crate) time_ms: i64,
}

impl Place {
    pub(crate) const LEN: usize = 56;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.file.0);
        out.u64(self.pos);
        out.u64(self.index);
        out.u64(self.term);
        out.u64(self.chain);
        out.i64(self.next_offset);
        out.i64(self.time_ms);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Place, Malformed> {
        Ok(Place {
            file: FileId(reader.u64()?),
            pos: reader.u64()?,
            index: reader.u64()?,
            term: reader.u64()?,
            chain: reader.u64()?,
            next_offset: reader.i64()?,
            time_ms: reader.i64()?,
        })
    }
}
