//! Record batches, Kafka's format v2 (magic 2): built, viewed, validated and compressed.
//!
//! A [`Batch`] is one [`bytes::Bytes`] whose 61-byte [`BatchHeader`] has been checked. A broker stamps
//! the 21 bytes in front of the checksummed part ([`Batch::stamped_header`]) and keeps the body by
//! reference; a producer fills a [`BatchBuilder`]; a consumer iterates over [`Records`], whose keys
//! and values are slices of the batch, or of the one buffer that it was decompressed into.
//!
//! Layout of a batch (KIP-98, KIP-82), big-endian:
//!
//! | bytes | field | in the CRC |
//! |---|---|---|
//! | 0–7 | base offset | no |
//! | 8–11 | batch length: the bytes after this field | no |
//! | 12–15 | partition leader epoch | no |
//! | 16 | magic, 2 | no |
//! | 17–20 | CRC-32C of all that follows | no |
//! | 21–22 | attributes: codec (bits 0–2), timestamp type (3), transactional (4), control (5), delete horizon (6) | yes |
//! | 23–26 | last offset delta | yes |
//! | 27–34, 35–42 | base timestamp, maximum timestamp (ms) | yes |
//! | 43–50, 51–52, 53–56 | producer id, producer epoch, base sequence (−1: none) | yes |
//! | 57–60 | record count | yes |
//! | 61… | records, compressed as a whole | yes |
//!
//! Invariants:
//! - **Any bytes end in a value or a typed [`Error`]**: no panic, and no allocation that follows from
//!   a claimed size instead of from bytes present and from [`Limits`].
//! - **A header changed inside the CRC carries the old checksum forward** and never recomputes it from
//!   the body, so that a batch damaged before the change still fails [`Batch::verify_crc`] after it.
//! - A batch that [`BatchBuilder`] made passes [`Batch::validate`] under the same limits.
//!
//! What it is not: no I/O, no async, no gRPC types, no knowledge of topics or of who is allowed to
//! send what (control batches, timestamp types), and none of the older formats (magic 0 and 1).
#![forbid(unsafe_code)]

mod batch;
mod builder;
mod codec;
mod crc;
mod error;
mod header;
mod limits;
mod record;
mod varint;
mod walk;

pub use batch::{Batch, Inspection};
pub use builder::{BatchBuilder, BatchOptions};
pub use codec::Codec;
pub use error::{Error, RecordFlaw, Result};
pub use header::{
    BATCH_HEADER_LEN, BatchHeader, CURRENT_MAGIC, LENGTH_PREFIX_LEN, NO_PRODUCER_EPOCH,
    NO_PRODUCER_ID, NO_SEQUENCE, ProducerStamp, TimestampType, UNCHECKED_LEN,
};
pub use limits::Limits;
pub use record::{Header, Record, Records};

/// The position of a record in its partition, from 0, never reused.
pub type Offset = i64;

/// Milliseconds since the Unix epoch; −1 stands for "none" in Kafka's format.
pub type TimestampMs = i64;
