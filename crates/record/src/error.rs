//! What can be wrong with a batch, in terms that a caller can act on.

use crate::Codec;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a batch was refused.
///
/// [`Error::is_corruption`] parts damaged bytes from well-formed ones that break a rule or a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Fewer bytes than the batch needs. In a concatenation this is its cut-off tail. `needed` is the
    /// sender's claim, up to 2 GiB: bound it before waiting or allocating for so much.
    #[error("batch is cut off: {needed} bytes needed, {available} present")]
    Truncated {
        /// Bytes needed, as far as is known.
        needed: usize,
        /// Bytes present.
        available: usize,
    },
    /// Bytes follow where one batch, or its last record, should have ended.
    #[error("{extra} bytes after the end of the batch")]
    TrailingBytes {
        /// How many bytes follow.
        extra: usize,
    },
    /// Not format v2.
    #[error("batch has magic {magic}, only 2 is served")]
    UnsupportedMagic {
        /// The magic byte found.
        magic: i8,
    },
    /// The codec bits name no codec.
    #[error("unknown compression codec {id}")]
    UnknownCodec {
        /// Bits 0–2 of the attributes.
        id: u8,
    },
    /// A codec's name that is none of `none`, `gzip`, `snappy`, `lz4`, `zstd`.
    #[error("unknown compression codec {name:?}: one of none, gzip, snappy, lz4, zstd")]
    UnknownCodecName {
        /// The name given, cut to 32 characters.
        name: String,
    },
    /// Attribute bits that no version of the format defines: a newer format must not be half-read.
    #[error("batch attributes {attributes:#06x} have undefined bits set")]
    UnknownAttributes {
        /// The attributes found.
        attributes: i16,
    },
    /// A header field has a value that it can't have.
    #[error("batch header: {field} is {value}")]
    InvalidHeader {
        /// The field, by its name in [`crate::BatchHeader`].
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The record count can't fit into the bytes of the body or into the offsets that the batch spans.
    #[error("batch claims {count} records, at most {possible} are possible")]
    ImpossibleCount {
        /// The claimed count.
        count: i32,
        /// What the bytes or offsets allow.
        possible: usize,
    },
    /// The checksum does not match the bytes.
    #[error("batch CRC is {computed:#010x}, its header says {stored:#010x}")]
    CrcMismatch {
        /// The header's checksum.
        stored: u32,
        /// That of the bytes.
        computed: u32,
    },
    /// A batch without records, where one is needed.
    #[error("batch has no records")]
    EmptyBatch,
    /// The batch is, or would become, larger than [`crate::Limits::max_batch_bytes`].
    #[error("batch of {size} bytes exceeds the limit of {limit}")]
    BatchTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// More records than [`crate::Limits::max_records`].
    #[error("batch of {count} records exceeds the limit of {limit}")]
    TooManyRecords {
        /// The count.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A record with more headers than [`crate::Limits::max_headers_per_record`].
    #[error("record {index} has {count} headers, the limit is {limit}")]
    TooManyHeaders {
        /// The record's place in its batch, from 0.
        index: usize,
        /// Its headers.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The records take more than [`crate::Limits::max_decompressed_bytes`] without compression.
    #[error("records exceed {limit} bytes without {codec} compression")]
    DecompressedTooLarge {
        /// The batch's codec.
        codec: Codec,
        /// The limit in bytes.
        limit: usize,
    },
    /// The compressed bytes are damaged.
    #[error("{codec} data: {reason}")]
    Decompress {
        /// The batch's codec.
        codec: Codec,
        /// What its decoder said.
        reason: String,
    },
    /// The codec failed to compress: out of memory, in practice.
    #[error("{codec} compression failed: {reason}")]
    Compress {
        /// The codec.
        codec: Codec,
        /// What it said.
        reason: String,
    },
    /// A record does not follow the format.
    #[error("record {index}: {flaw}")]
    InvalidRecord {
        /// The record's place in its batch, from 0.
        index: usize,
        /// What is wrong with it.
        flaw: RecordFlaw,
    },
    /// The header's maximum timestamp is not that of its records (create time only).
    /// [`crate::Batch::with_max_timestamp`] repairs it.
    #[error("batch claims maximum timestamp {claimed}, its records reach {found}")]
    MaxTimestampMismatch {
        /// The header's, in ms.
        claimed: i64,
        /// The records', in ms.
        found: i64,
    },
    /// A record's timestamp is too far from the batch's first for their difference to be stored.
    #[error("timestamp {timestamp} is out of range of the batch's first, {base}")]
    TimestampOutOfRange {
        /// The record's, in ms.
        timestamp: i64,
        /// The batch's first, in ms.
        base: i64,
    },
}

impl Error {
    /// Whether the bytes are damaged (or lie about themselves), as against a limit or a rule broken
    /// by well-formed bytes or by a builder's caller.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(
            self,
            Error::Truncated { .. }
                | Error::TrailingBytes { .. }
                | Error::InvalidHeader { .. }
                | Error::ImpossibleCount { .. }
                | Error::CrcMismatch { .. }
                | Error::Decompress { .. }
                | Error::InvalidRecord { .. }
        )
    }

    /// Whether a limit was exceeded: the same bytes may pass elsewhere, a retry here will not.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        matches!(
            self,
            Error::BatchTooLarge { .. }
                | Error::TooManyRecords { .. }
                | Error::TooManyHeaders { .. }
                | Error::DecompressedTooLarge { .. }
        )
    }
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFlaw {
    /// The bytes end inside the record.
    #[error("bytes end inside it")]
    CutOff,
    /// A varint longer than its type.
    #[error("a varint overflows")]
    BadVarint,
    /// A length is negative where it may not be, or below −1.
    #[error("a length is negative")]
    NegativeLength,
    /// A key, value or header reaches past the record's end.
    #[error("a field reaches past its end")]
    FieldTooLong,
    /// The record's length does not match its fields.
    #[error("its length does not match its fields")]
    LengthMismatch,
    /// The header count can't fit into the record.
    #[error("its header count can't fit")]
    ImpossibleHeaderCount,
    /// Its offset does not follow from its place in the batch.
    #[error("its offset is out of order")]
    OffsetOutOfOrder,
    /// Base timestamp and delta overflow.
    #[error("its timestamp overflows")]
    TimestampOverflow,
}
