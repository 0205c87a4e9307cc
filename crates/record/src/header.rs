//! The 61 bytes in front of a batch's records.

use crate::{Codec, Error, Offset, Result, TimestampMs, crc};

/// Bytes of a batch's header.
pub const BATCH_HEADER_LEN: usize = 61;
/// Bytes at the front of a header that its CRC does not cover: what a broker may restamp freely.
pub const UNCHECKED_LEN: usize = 21;
/// Bytes up to and including the length field, which does not count them.
pub const LENGTH_PREFIX_LEN: usize = 12;
/// The format's version, in its magic byte.
pub const CURRENT_MAGIC: i8 = 2;
/// Stands for "no producer id" in a header.
pub const NO_PRODUCER_ID: i64 = -1;
/// Stands for "no producer epoch" in a header.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// Stands for "no sequence" in a header.
pub const NO_SEQUENCE: i32 = -1;

pub(crate) const CODEC_MASK: i16 = 0b111;
pub(crate) const LOG_APPEND_TIME_BIT: i16 = 1 << 3;
pub(crate) const TRANSACTIONAL_BIT: i16 = 1 << 4;
pub(crate) const CONTROL_BIT: i16 = 1 << 5;
pub(crate) const DELETE_HORIZON_BIT: i16 = 1 << 6;
const DEFINED_BITS: i16 =
    CODEC_MASK | LOG_APPEND_TIME_BIT | TRANSACTIONAL_BIT | CONTROL_BIT | DELETE_HORIZON_BIT;

/// The smallest record: length, attributes, two deltas, two lengths and a header count of a byte each.
pub(crate) const MIN_RECORD_LEN: usize = 7;

/// Who set the timestamps of a batch (KIP-32).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer, for each record.
    #[default]
    CreateTime,
    /// The broker, one for the whole batch: its maximum timestamp.
    LogAppendTime,
}

/// The identity and sequence of an idempotent or transactional producer's batch (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerStamp {
    /// The producer id, from 0.
    pub id: i64,
    /// Its epoch, from 0.
    pub epoch: i16,
    /// The sequence number of the batch's first record in its partition, from 0, wrapping after
    /// `i32::MAX` to 0.
    pub base_sequence: i32,
}

/// A batch's header; every one of its 61 bytes is in a field, in their order on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record. Not in the CRC.
    pub base_offset: Offset,
    /// Bytes of the batch after this field: at least 49. Not in the CRC.
    pub batch_length: i32,
    /// Epoch of the leader that appended the batch; −1 from a producer. Not in the CRC.
    pub leader_epoch: i32,
    /// Format version, 2. Not in the CRC.
    pub magic: i8,
    /// CRC-32C of all bytes from the attributes to the batch's end.
    pub crc: u32,
    /// Codec, timestamp type, transactional, control, delete horizon.
    pub attributes: i16,
    /// Last offset minus base offset. Compaction may remove records and keep this.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas add to, in ms.
    pub base_timestamp: TimestampMs,
    /// Largest timestamp of the records; with log append time, that of each, in ms.
    pub max_timestamp: TimestampMs,
    /// Producer id; −1 without one.
    pub producer_id: i64,
    /// Producer epoch; −1 without a producer id.
    pub producer_epoch: i16,
    /// Sequence number of the first record; −1 without a producer id.
    pub base_sequence: i32,
    /// Records present; 0 in a batch that compaction emptied.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads a header from the front of `bytes`, which may go on with the body or anything else.
    ///
    /// # Errors
    /// [`Error::Truncated`] under 61 bytes; an unknown magic, codec or attribute; a length, offset or
    /// count that no batch can have. The body's presence and the CRC are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader> {
        let Some(raw) = bytes.first_chunk::<BATCH_HEADER_LEN>() else {
            return Err(Error::Truncated {
                needed: BATCH_HEADER_LEN,
                available: bytes.len(),
            });
        };
        let header = BatchHeader {
            base_offset: i64::from_be_bytes(field(raw, 0)),
            batch_length: i32::from_be_bytes(field(raw, 8)),
            leader_epoch: i32::from_be_bytes(field(raw, 12)),
            magic: i8::from_be_bytes(field(raw, 16)),
            crc: u32::from_be_bytes(field(raw, 17)),
            attributes: i16::from_be_bytes(field(raw, 21)),
            last_offset_delta: i32::from_be_bytes(field(raw, 23)),
            base_timestamp: i64::from_be_bytes(field(raw, 27)),
            max_timestamp: i64::from_be_bytes(field(raw, 35)),
            producer_id: i64::from_be_bytes(field(raw, 43)),
            producer_epoch: i16::from_be_bytes(field(raw, 51)),
            base_sequence: i32::from_be_bytes(field(raw, 53)),
            record_count: i32::from_be_bytes(field(raw, 57)),
        };
        header.check()?;
        Ok(header)
    }

    /// The header's 61 bytes, with the checksum that it holds.
    #[must_use]
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut raw = [0; BATCH_HEADER_LEN];
        raw[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        raw[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        raw[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        raw[16..17].copy_from_slice(&self.magic.to_be_bytes());
        raw[17..21].copy_from_slice(&self.crc.to_be_bytes());
        raw[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        raw[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        raw[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        raw[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        raw[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        raw[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        raw[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        raw[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        raw
    }

    /// What a header alone can show to be wrong.
    fn check(&self) -> Result<()> {
        if self.magic != CURRENT_MAGIC {
            return Err(Error::UnsupportedMagic { magic: self.magic });
        }
        let invalid = |field, value| Err(Error::InvalidHeader { field, value });
        if self.batch_length < (BATCH_HEADER_LEN - LENGTH_PREFIX_LEN) as i32 {
            return invalid("batch_length", i64::from(self.batch_length));
        }
        if self.attributes & !DEFINED_BITS != 0 {
            return Err(Error::UnknownAttributes {
                attributes: self.attributes,
            });
        }
        let codec = Codec::from_attributes(self.attributes)?;
        if self.last_offset_delta < 0 {
            return invalid("last_offset_delta", i64::from(self.last_offset_delta));
        }
        let last_offset = self
            .base_offset
            .checked_add(i64::from(self.last_offset_delta));
        // The batch's next offset must exist too, hence `<` in the bound above.
        if self.base_offset < 0 || last_offset.is_none_or(|last| last == i64::MAX) {
            return invalid("base_offset", self.base_offset);
        }
        if self.record_count < 0 {
            return invalid("record_count", i64::from(self.record_count));
        }
        let count = self.record_count as usize;
        let by_offsets = self.last_offset_delta as usize + 1;
        let by_bytes = match codec {
            Codec::None => self.body_len() / MIN_RECORD_LEN,
            _ => usize::MAX,
        };
        if count > by_offsets.min(by_bytes) {
            return Err(Error::ImpossibleCount {
                count: self.record_count,
                possible: by_offsets.min(by_bytes),
            });
        }
        Ok(())
    }

    /// Bytes of the whole batch, header included.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        LENGTH_PREFIX_LEN + self.batch_length.max(0) as usize
    }

    /// Bytes of the records, as sent.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.encoded_len().saturating_sub(BATCH_HEADER_LEN)
    }

    /// The codec of the records; `None` for bits that no decoded header has.
    #[must_use]
    pub fn codec(&self) -> Codec {
        Codec::from_attributes(self.attributes).unwrap_or(Codec::None)
    }

    /// Who set the timestamps.
    #[must_use]
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME_BIT == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the records belong to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    /// Whether this is a control batch (a transaction's marker), which readers skip. Producers may
    /// not send one; refusing it is the broker's part.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// Whether the base timestamp is compaction's delete horizon (KIP-534).
    #[must_use]
    pub fn has_delete_horizon(&self) -> bool {
        self.attributes & DELETE_HORIZON_BIT != 0
    }

    /// Offset of the last record, or of the one that compaction removed.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }

    /// Where a reader goes on after this batch.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.last_offset().saturating_add(1)
    }

    /// The producer's identity and sequence, if it sent one.
    #[must_use]
    pub fn producer(&self) -> Option<ProducerStamp> {
        (self.producer_id >= 0).then_some(ProducerStamp {
            id: self.producer_id,
            epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
        })
    }

    /// The same header, appended at `base_offset` by the leader of `leader_epoch`. The CRC stands.
    #[must_use]
    pub fn stamped(self, base_offset: Offset, leader_epoch: i32) -> BatchHeader {
        BatchHeader {
            base_offset,
            leader_epoch,
            ..self
        }
    }

    /// The same header with log append time `now` for every record, its CRC carried over.
    #[must_use]
    pub fn with_log_append_time(self, now: TimestampMs) -> BatchHeader {
        self.with_carried_crc(BatchHeader {
            attributes: self.attributes | LOG_APPEND_TIME_BIT,
            max_timestamp: now,
            ..self
        })
    }

    /// The same header with another maximum timestamp, its CRC carried over.
    #[must_use]
    pub fn with_max_timestamp(self, max_timestamp: TimestampMs) -> BatchHeader {
        self.with_carried_crc(BatchHeader {
            max_timestamp,
            ..self
        })
    }

    /// The same header from another producer, epoch or sequence, its CRC carried over.
    #[must_use]
    pub fn with_producer(self, producer: Option<ProducerStamp>) -> BatchHeader {
        let producer = producer.unwrap_or(ProducerStamp {
            id: NO_PRODUCER_ID,
            epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
        });
        self.with_carried_crc(BatchHeader {
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            ..self
        })
    }

    /// `changed` with the checksum that follows from this header's: right if that one was.
    fn with_carried_crc(self, mut changed: BatchHeader) -> BatchHeader {
        changed.crc = crc::replace_head(
            self.crc,
            &self.encode()[UNCHECKED_LEN..],
            &changed.encode()[UNCHECKED_LEN..],
            self.body_len(),
        );
        changed
    }
}

/// The `N` bytes at `at`; the offsets above keep within the header.
fn field<const N: usize>(raw: &[u8; BATCH_HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}
