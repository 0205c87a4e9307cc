//! The frame: how one Raft entry lies in a segment file.
//!
//! A frame is a header of [`FRAME_HEADER_LEN`] bytes, the payload, and zeros up to a multiple of 8. It counts in two
//! number spaces: `index` counts entries, `base_offset` counts records. `docs/storage-format.md` has the bytes.
//!
//! Invariants: a header that decodes was written by us, whole; a payload that passes [`FrameHeader::check_payload`]
//! belongs to its header; the chain of a frame follows from the chain before it, so a frame of another history
//! (INV-4) is told apart by eight bytes.
//!
//! Not here: positions in files, and what entries mean.

use timberline_record::{BATCH_HEADER_LEN, BatchHeader};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 64;
/// Version of the frame format written here.
pub(crate) const FRAME_VERSION: u8 = 1;
/// Longest payload, in bytes.
pub const PAYLOAD_LEN_MAX: usize = 128 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A record batch; takes offsets.
    Data,
    /// A new leader's first entry; takes no offset.
    Noop,
    /// A change of membership; takes no offset.
    Config,
    /// The log start moves up; takes no offset.
    LogStart,
    /// A command of a state log such as the cluster's metadata; takes no offset.
    Command,
}

impl EntryKind {
    fn code(self) -> u8 {
        match self {
            EntryKind::Data => 1,
            EntryKind::Noop => 2,
            EntryKind::Config => 3,
            EntryKind::LogStart => 4,
            EntryKind::Command => 5,
        }
    }

    fn from_code(code: u8) -> Option<EntryKind> {
        Some(match code {
            1 => EntryKind::Data,
            2 => EntryKind::Noop,
            3 => EntryKind::Config,
            4 => EntryKind::LogStart,
            5 => EntryKind::Command,
            _ => return None,
        })
    }
}

/// Why bytes are not the frame they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The header's checksum does not match: torn, rotten, or never written.
    #[error("header checksum does not match")]
    Header,
    /// A newer version wrote it.
    #[error("format version {0} is newer than this program's")]
    Version(u8),
    /// The kind is unknown: a newer version wrote it. It must never be skipped.
    #[error("unknown entry kind {0}")]
    Kind(u8),
    /// Header values that no writer produces.
    #[error("impossible length or count")]
    Shape,
    /// The payload's checksum does not match.
    #[error("payload checksum does not match")]
    Payload,
    /// The first 21 bytes of the batch, which its own checksum does not cover, disagree with the frame.
    #[error("batch header disagrees with the frame")]
    BatchHeader,
    /// The frame does not continue the entry before it.
    #[error("does not continue the entry before it")]
    Chain,
    /// The file ends inside the frame.
    #[error("the file ends inside the frame")]
    Short,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the entry is.
    pub kind: EntryKind,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// CRC-32C: for data the batch's own, otherwise of the whole payload.
    pub payload_crc: u32,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// Position in the sequence of entries, from 1.
    pub index: u64,
    /// For data the offset of the first record; otherwise the next record's.
    pub base_offset: i64,
    /// Records in it; 0 unless data.
    pub record_count: u32,
    /// The leader's clock when it was appended, ms since the epoch; never goes back within a log.
    pub append_time_ms: i64,
    /// Digest of this entry and all before it.
    pub chain: u64,
}

impl FrameHeader {
    /// Bytes of header, payload and padding together.
    pub fn frame_len(&self) -> u64 {
        frame_len(self.payload_len as usize)
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        self.base_offset + i64::from(self.record_count)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[4] = FRAME_VERSION;
        out[5] = self.kind.code();
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.term.to_le_bytes());
        out[24..32].copy_from_slice(&self.index.to_le_bytes());
        out[32..40].copy_from_slice(&self.base_offset.to_le_bytes());
        out[40..44].copy_from_slice(&self.record_count.to_le_bytes());
        out[48..56].copy_from_slice(&self.append_time_ms.to_le_bytes());
        out[56..64].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header. `bytes` may be longer.
    ///
    /// # Errors
    /// [`FrameFault`]: too short, a wrong checksum, an unknown version or kind, an impossible length.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, FrameFault> {
        let Some(bytes) = bytes.first_chunk::<FRAME_HEADER_LEN>() else {
            return Err(FrameFault::Short);
        };
        if u32_at(bytes, 0) != crc32fast::hash(&bytes[4..]) {
            return Err(FrameFault::Header);
        }
        if bytes[4] != FRAME_VERSION {
            return Err(FrameFault::Version(bytes[4]));
        }
        let kind = EntryKind::from_code(bytes[5]).ok_or(FrameFault::Kind(bytes[5]))?;
        let header = FrameHeader {
            kind,
            payload_len: u32_at(bytes, 8),
            payload_crc: u32_at(bytes, 12),
            term: u64_at(bytes, 16),
            index: u64_at(bytes, 24),
            base_offset: u64_at(bytes, 32) as i64,
            record_count: u32_at(bytes, 40),
            append_time_ms: u64_at(bytes, 48) as i64,
            chain: u64_at(bytes, 56),
        };
        header.check_shape()?;
        Ok(header)
    }

    /// Whether length and count are within what a writer produces.
    ///
    /// # Errors
    /// [`FrameFault::Shape`].
    pub(crate) fn check_shape(&self) -> Result<(), FrameFault> {
        let is_data = self.kind == EntryKind::Data;
        if self.payload_len as usize > PAYLOAD_LEN_MAX
            || (is_data && (self.payload_len as usize) < BATCH_HEADER_LEN)
            || is_data == (self.record_count == 0)
        {
            return Err(FrameFault::Shape);
        }
        Ok(())
    }

    /// The chain that this header must carry when the entry before it has the chain `previous`.
    pub fn chain_after(&self, previous: u64) -> u64 {
        let mut fields = [0u8; 45];
        fields[0] = self.kind.code();
        fields[1..5].copy_from_slice(&self.payload_len.to_le_bytes());
        fields[5..9].copy_from_slice(&self.payload_crc.to_le_bytes());
        fields[9..17].copy_from_slice(&self.term.to_le_bytes());
        fields[17..25].copy_from_slice(&self.index.to_le_bytes());
        fields[25..33].copy_from_slice(&self.base_offset.to_le_bytes());
        fields[33..37].copy_from_slice(&self.record_count.to_le_bytes());
        fields[37..45].copy_from_slice(&self.append_time_ms.to_le_bytes());
        xxh3_64_with_seed(&fields, previous)
    }

    /// Whether this entry continues one with the given index, next offset and chain.
    ///
    /// # Errors
    /// [`FrameFault::Chain`].
    pub fn check_follows(
        &self,
        index: u64,
        next_offset: i64,
        chain: u64,
    ) -> Result<(), FrameFault> {
        let follows = self.index == index + 1
            && self.base_offset == next_offset
            && self.chain == self.chain_after(chain);
        if follows {
            Ok(())
        } else {
            Err(FrameFault::Chain)
        }
    }

    /// Whether the payload is the one that was written.
    ///
    /// # Errors
    /// [`FrameFault::Short`], [`FrameFault::Payload`], [`FrameFault::BatchHeader`].
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameFault> {
        if payload.len() != self.payload_len as usize {
            return Err(FrameFault::Short);
        }
        if self.kind != EntryKind::Data {
            let matches = crc32c::crc32c(payload) == self.payload_crc;
            return if matches {
                Ok(())
            } else {
                Err(FrameFault::Payload)
            };
        }
        // The batch's first 21 bytes are outside its checksum: the frame vouches for them.
        let batch = BatchHeader::decode(payload).map_err(|_| FrameFault::BatchHeader)?;
        let agrees = batch.base_offset == self.base_offset
            && batch.leader_epoch == leader_epoch(self.term)
            && batch.batch_length as i64 == i64::from(self.payload_len) - 12
            && batch.crc == self.payload_crc;
        if !agrees {
            return Err(FrameFault::BatchHeader);
        }
        let matches =
            crc32c::crc32c(&payload[timberline_record::UNCHECKED_LEN..]) == self.payload_crc;
        if matches {
            Ok(())
        } else {
            Err(FrameFault::Payload)
        }
    }
}

/// Bytes of a frame with a payload of this length.
pub fn frame_len(payload_len: usize) -> u64 {
    ((FRAME_HEADER_LEN + payload_len) as u64).next_multiple_of(8)
}

/// The chain before a partition's first entry.
pub fn chain_seed(topic: Uuid, partition: u32) -> u64 {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(topic.as_bytes());
    bytes[16..].copy_from_slice(&partition.to_le_bytes());
    xxh3_64(&bytes)
}

/// A term as clients see it.
pub fn leader_epoch(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

fn u32_at(bytes: &[u8; FRAME_HEADER_LEN], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8; FRAME_HEADER_LEN], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}
