//! The header of a segment file: which replica it belongs to and which place of the log it continues.
//!
//! It fills the file's first sector, so that it is there or not, never half. It is written once. A journal record
//! carries it too, so that a file created just before a crash can be made again.

use crate::codec::{Malformed, Put, Reader, versioned_crc};
use crate::ids::{FileId, ReplicaId, ReplicaSpec};
use crate::place::Place;

/// Where a file's first frame lies, in bytes: behind the header's sector.
pub const FIRST_FRAME: u64 = 512;
const MAGIC: &[u8; 8] = b"TBLSEGMT";
const VERSION: u32 = 1;
/// Bytes of the encoded header.
pub(crate) const ENCODED_LEN: usize = 108;

/// What a segment file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Its own id.
    pub(crate) id: FileId,
    /// Whose it is.
    pub(crate) spec: ReplicaSpec,
    /// Where the file before ends and this one goes on: file and position are the cut.
    pub(crate) cut: Place,
}

/// Why a header was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Not a whole header of ours.
    Bad,
    /// A newer version.
    Version(u32),
}

impl FileHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENCODED_LEN);
        out.raw(MAGIC);
        out.u32(VERSION);
        out.u32(0);
        out.u64(self.id.0);
        out.u64(self.spec.replica.0);
        out.uuid(self.spec.topic);
        out.u32(self.spec.partition);
        self.cut.encode(&mut out);
        debug_assert_eq!(out.len(), ENCODED_LEN);
        let crc = versioned_crc(VERSION, &out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<FileHeader, HeaderFault> {
        let Some(bytes) = bytes.get(..ENCODED_LEN) else {
            return Err(HeaderFault::Bad);
        };
        let mut reader = Reader::new(bytes);
        Self::read(&mut reader).map_err(|_| HeaderFault::Bad)?
    }

    fn read(reader: &mut Reader<'_>) -> Result<Result<FileHeader, HeaderFault>, Malformed> {
        if reader.raw(8)? != MAGIC {
            return Err(Malformed("magic"));
        }
        let version = reader.u32()?;
        let crc = reader.u32()?;
        let mut rest = *reader;
        if versioned_crc(version, rest.raw(ENCODED_LEN - 16)?) != crc {
            return Err(Malformed("checksum"));
        }
        if version != VERSION {
            return Ok(Err(HeaderFault::Version(version)));
        }
        let id = FileId(reader.u64()?);
        let spec = ReplicaSpec {
            replica: ReplicaId(reader.u64()?),
            topic: reader.uuid()?,
            partition: reader.u32()?,
        };
        let cut = Place::decode(reader)?;
        Ok(Ok(FileHeader { id, spec, cut }))
    }
}
