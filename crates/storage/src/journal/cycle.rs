//! A cycle: what one sync of the journal makes durable, as bytes.
//!
//! A header of [`CYCLE_HEADER_LEN`] bytes, records, and zeros up to a multiple of [`BLOCK`]. The checksum covers all
//! but the zeros, so a cycle is whole or not there.

use crate::codec::{Malformed, Put, Reader};
use crate::file_header::{self, FileHeader};
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::options::HardState;

/// Cycles begin at multiples of this, bytes, so that none shares a page with another.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of a cycle's header.
pub(crate) const CYCLE_HEADER_LEN: usize = 64;
const MAGIC: &[u8; 8] = b"TBLCYCLE";
const CLOSING: u32 = 1;

/// A cycle's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CycleHeader {
    /// It says only that the cycle before it is synced.
    pub(crate) closing: bool,
    /// Start of the process that wrote it, counted.
    pub(crate) boot: u64,
    /// Position in the sequence of all cycles, from 1.
    pub(crate) seq: u64,
    /// Cycles up to this one were synced when it was written.
    pub(crate) synced_through: u64,
    /// Bytes without the padding.
    pub(crate) len: u64,
}

/// One record of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// Bytes of a file: one frame.
    Frame {
        file: FileId,
        pos: u64,
        bytes: &'a [u8],
    },
    /// A replica's hard state.
    HardState {
        replica: ReplicaId,
        state: HardState,
    },
    /// A finished direct sync: the file is durable up to `upto`.
    Named { file: FileId, upto: u64 },
    /// A file came into being.
    NewFile { header: FileHeader },
    /// A replica came into being.
    Create { spec: ReplicaSpec },
    /// A staged snapshot is the replica's log from here on: `file` holds its row, `last_file` is its last segment.
    Install {
        replica: ReplicaId,
        file: FileId,
        last_file: FileId,
    },
    /// A replica is gone.
    Remove { replica: ReplicaId },
}

const FRAME: u8 = 1;
const HARD_STATE: u8 = 2;
const NAMED: u8 = 3;
const NEW_FILE: u8 = 4;
const CREATE: u8 = 5;
const REMOVE: u8 = 6;
const INSTALL: u8 = 7;

/// Bytes that a frame record adds to its frame.
pub(crate) const FRAME_OVERHEAD: u64 = 21;
/// Bytes of the record of a removal.
pub(crate) const REMOVE_RECORD: u64 = 9;
/// Most bytes that a replica's records other than frames take in one cycle, for one file.
pub(crate) const SMALL_RECORDS: u64 = (1 + file_header::ENCODED_LEN as u64) + 33 + 29 + 17 + 25;

/// Collects the records of a cycle.
#[derive(Debug)]
pub(crate) struct CycleBuilder {
    bytes: Vec<u8>,
}

impl CycleBuilder {
    /// `scratch` is emptied and reused.
    pub(crate) fn new(mut scratch: Vec<u8>) -> Self {
        scratch.clear();
        scratch.resize(CYCLE_HEADER_LEN, 0);
        CycleBuilder { bytes: scratch }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == CYCLE_HEADER_LEN
    }

    /// A frame whose parts together are `len` bytes.
    pub(crate) fn frame(&mut self, file: FileId, pos: u64, parts: &[&[u8]], len: u64) {
        self.bytes.u8(FRAME);
        self.bytes.u64(file.0);
        self.bytes.u64(pos);
        self.bytes.u32(len as u32);
        let start = self.bytes.len();
        for part in parts {
            self.bytes.raw(part);
        }
        self.bytes.resize(start + len as usize, 0);
    }

    pub(crate) fn hard_state(&mut self, replica: ReplicaId, state: &HardState) {
        self.bytes.u8(HARD_STATE);
        self.bytes.u64(replica.0);
        self.bytes.u64(state.term);
        self.bytes.u64(state.vote);
        self.bytes.u64(state.commit);
    }

    pub(crate) fn named(&mut self, file: FileId, upto: u64) {
        self.bytes.u8(NAMED);
        self.bytes.u64(file.0);
        self.bytes.u64(upto);
    }

    pub(crate) fn new_file(&mut self, header: &FileHeader) {
        self.bytes.u8(NEW_FILE);
        self.bytes.raw(&header.encode());
    }

    pub(crate) fn create(&mut self, spec: &ReplicaSpec) {
        self.bytes.u8(CREATE);
        self.bytes.u64(spec.replica.0);
        self.bytes.uuid(spec.topic);
        self.bytes.u32(spec.partition);
    }

    pub(crate) fn remove(&mut self, replica: ReplicaId) {
        self.bytes.u8(REMOVE);
        self.bytes.u64(replica.0);
    }

    pub(crate) fn install(&mut self, replica: ReplicaId, file: FileId, last_file: FileId) {
        self.bytes.u8(INSTALL);
        self.bytes.u64(replica.0);
        self.bytes.u64(file.0);
        self.bytes.u64(last_file.0);
    }

    /// Gives the buffer back unused.
    pub(crate) fn into_scratch(self) -> Vec<u8> {
        self.bytes
    }

    /// The cycle's bytes, padded.
    pub(crate) fn finish(
        mut self,
        boot: u64,
        seq: u64,
        synced_through: u64,
        closing: bool,
    ) -> Vec<u8> {
        let len = self.bytes.len() as u64;
        let mut header = Vec::with_capacity(CYCLE_HEADER_LEN);
        header.raw(MAGIC);
        header.u32(0);
        header.u32(if closing { CLOSING } else { 0 });
        header.u64(boot);
        header.u64(seq);
        header.u64(synced_through);
        header.u64(len);
        self.bytes[..header.len()].copy_from_slice(&header);
        let crc = crc32fast::hash(&self.bytes[12..]);
        self.bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(len.next_multiple_of(BLOCK) as usize, 0);
        self.bytes
    }
}

/// Looks at a header without its records: `None` where no cycle begins. The checksum is not checked.
pub(crate) fn peek(bytes: &[u8]) -> Option<CycleHeader> {
    let mut reader = Reader::new(bytes.get(..CYCLE_HEADER_LEN)?);
    let header = (|| {
        if reader.raw(8)? != MAGIC {
            return Err(Malformed("magic"));
        }
        reader.u32()?;
        Ok(CycleHeader {
            closing: reader.u32()? & CLOSING != 0,
            boot: reader.u64()?,
            seq: reader.u64()?,
            synced_through: reader.u64()?,
            len: reader.u64()?,
        })
    })();
    header.ok().filter(|h| h.len >= CYCLE_HEADER_LEN as u64)
}

/// Whether bytes of exactly the length that their header gives are a whole cycle.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() >= CYCLE_HEADER_LEN && bytes[8..12] == crc32fast::hash(&bytes[12..]).to_le_bytes()
}

/// Calls `each` with every record of a whole cycle.
///
/// # Errors
/// [`Malformed`]: an unknown record, written by a newer version or by a defect; never skipped.
pub(crate) fn for_each_record<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(Record<'a>),
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    reader.raw(CYCLE_HEADER_LEN)?;
    while !reader.is_empty() {
        let record = match reader.u8()? {
            FRAME => Record::Frame {
                file: FileId(reader.u64()?),
                pos: reader.u64()?,
                bytes: reader.blob()?,
            },
            HARD_STATE => Record::HardState {
                replica: ReplicaId(reader.u64()?),
                state: HardState {
                    term: reader.u64()?,
                    vote: reader.u64()?,
                    commit: reader.u64()?,
                },
            },
            NAMED => Record::Named {
                file: FileId(reader.u64()?),
                upto: reader.u64()?,
            },
            NEW_FILE => Record::NewFile {
                header: FileHeader::decode(reader.raw(file_header::ENCODED_LEN)?)
                    .map_err(|_| Malformed("file header"))?,
            },
            CREATE => Record::Create {
                spec: ReplicaSpec {
                    replica: ReplicaId(reader.u64()?),
                    topic: reader.uuid()?,
                    partition: reader.u32()?,
                },
            },
            INSTALL => Record::Install {
                replica: ReplicaId(reader.u64()?),
                file: FileId(reader.u64()?),
                last_file: FileId(reader.u64()?),
            },
            REMOVE => Record::Remove {
                replica: ReplicaId(reader.u64()?),
            },
            _ => return Err(Malformed("unknown record")),
        };
        each(record);
    }
    Ok(())
}
