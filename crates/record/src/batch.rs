//! One batch in one buffer, looked at without copying.

use bytes::{Bytes, BytesMut};

use crate::header::{BATCH_HEADER_LEN, UNCHECKED_LEN};
use crate::{
    BatchHeader, Codec, Error, Limits, NO_PRODUCER_ID, Offset, RecordFlaw, Records, Result,
    TimestampMs, TimestampType, walk,
};

/// One record batch: its bytes, and its header decoded and checked.
///
/// Cheap to clone. Holding one says nothing about the body: [`Batch::verify_crc`] tells whether it is
/// as it was sent, [`Batch::validate`] whether it was well made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

/// What [`Batch::inspect`] found in the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The largest timestamp, in ms, whatever the header says of it: that of the records, or with
    /// log append time the header's.
    pub max_timestamp: TimestampMs,
    /// Offset delta of the first record with that timestamp.
    pub max_timestamp_offset_delta: i32,
    /// Bytes of the records without compression.
    pub uncompressed_len: usize,
    /// Records whose key is null; a compacted topic takes none.
    pub null_keys: usize,
}

impl Batch {
    /// Takes `bytes` as exactly one batch; looks at its header only.
    ///
    /// # Errors
    /// Those of [`BatchHeader::decode`]; [`Error::Truncated`] or [`Error::TrailingBytes`] if the
    /// length is another.
    pub fn parse(bytes: Bytes) -> Result<Batch> {
        let header = Self::complete_header(&bytes)?;
        let needed = header.encoded_len();
        if bytes.len() > needed {
            return Err(Error::TrailingBytes {
                extra: bytes.len() - needed,
            });
        }
        Ok(Batch { header, bytes })
    }

    /// Takes the first batch off `bytes`, a concatenation of them, which moves on behind it.
    ///
    /// # Errors
    /// As [`Batch::parse`]; `bytes` then stay as they are. [`Error::Truncated`] is how a response
    /// ends that was cut inside a batch.
    pub fn split_first(bytes: &mut Bytes) -> Result<Batch> {
        let header = Self::complete_header(bytes)?;
        let bytes = bytes.split_to(header.encoded_len());
        Ok(Batch { header, bytes })
    }

    /// Puts a header, say a stamped one, in front of a body; copies both.
    ///
    /// # Errors
    /// As [`Batch::parse`].
    pub fn assemble(header: &[u8; BATCH_HEADER_LEN], body: &[u8]) -> Result<Batch> {
        let mut bytes = BytesMut::with_capacity(BATCH_HEADER_LEN + body.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(body);
        Self::parse(bytes.freeze())
    }

    /// Of the builder, which knows that they belong together.
    pub(crate) fn from_parts(header: BatchHeader, bytes: Bytes) -> Batch {
        debug_assert_eq!(header.encoded_len(), bytes.len());
        Batch { header, bytes }
    }

    fn complete_header(bytes: &[u8]) -> Result<BatchHeader> {
        let header = BatchHeader::decode(bytes)?;
        let needed = header.encoded_len();
        if bytes.len() < needed {
            return Err(Error::Truncated {
                needed,
                available: bytes.len(),
            });
        }
        Ok(header)
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole batch, without a clone of the handle.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The records as sent, compressed or not: all after the 61 bytes of the header.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.bytes.slice(BATCH_HEADER_LEN..)
    }

    /// Compares the checksum with the bytes.
    ///
    /// # Errors
    /// [`Error::CrcMismatch`].
    pub fn verify_crc(&self) -> Result<()> {
        let computed = crc32c::crc32c(&self.bytes[UNCHECKED_LEN..]);
        if computed == self.header.crc {
            Ok(())
        } else {
            Err(Error::CrcMismatch {
                stored: self.header.crc,
                computed,
            })
        }
    }

    /// Checks all that a producer's batch must keep to: size, CRC, every record's structure and every
    /// count, offset deltas from 0 without gaps, the maximum timestamp, the producer's fields.
    ///
    /// An uncompressed body is walked in place, past keys and values; a compressed one is
    /// decompressed within `limits` and thrown away.
    ///
    /// # Errors
    /// Any of [`Error`]. Control batches and timestamp types are the broker's to judge.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let found = self.inspect(limits)?;
        if self.header.timestamp_type() == TimestampType::CreateTime
            && found.max_timestamp != self.header.max_timestamp
        {
            return Err(Error::MaxTimestampMismatch {
                claimed: self.header.max_timestamp,
                found: found.max_timestamp,
            });
        }
        Ok(())
    }

    /// As [`Batch::validate`], but reports the maximum timestamp instead of judging the header's, for
    /// producers that are sloppy about it: Kafka corrects it, and [`Batch::with_max_timestamp`] does.
    ///
    /// # Errors
    /// Any of [`Error`] but [`Error::MaxTimestampMismatch`].
    pub fn inspect(&self, limits: &Limits) -> Result<Inspection> {
        let size = self.bytes.len();
        if size > limits.max_batch_bytes {
            return Err(Error::BatchTooLarge {
                size,
                limit: limits.max_batch_bytes,
            });
        }
        self.check_counts(limits)?;
        self.check_producer()?;
        if self.header.record_count == 0 {
            return Err(Error::EmptyBatch);
        }
        if self.header.record_count - 1 != self.header.last_offset_delta {
            return Err(Error::InvalidHeader {
                field: "last_offset_delta",
                value: i64::from(self.header.last_offset_delta),
            });
        }
        self.verify_crc()?;
        match self.header.codec() {
            Codec::None => self.inspect_records(&self.bytes[BATCH_HEADER_LEN..], limits),
            _ => self.inspect_records(&self.decompressed(limits)?, limits),
        }
    }

    fn inspect_records(&self, data: &[u8], limits: &Limits) -> Result<Inspection> {
        let mut found = Inspection {
            max_timestamp: TimestampMs::MIN,
            max_timestamp_offset_delta: 0,
            uncompressed_len: data.len(),
            null_keys: 0,
        };
        let mut at = 0;
        for delta in 0..self.header.record_count {
            let index = delta as usize;
            let raw = walk::record(data, at, index, limits)?;
            let invalid = |flaw| Error::InvalidRecord { index, flaw };
            if raw.offset_delta != delta {
                return Err(invalid(RecordFlaw::OffsetOutOfOrder));
            }
            let timestamp = self
                .header
                .base_timestamp
                .checked_add(raw.timestamp_delta)
                .ok_or(invalid(RecordFlaw::TimestampOverflow))?;
            if timestamp > found.max_timestamp {
                found.max_timestamp = timestamp;
                found.max_timestamp_offset_delta = delta;
            }
            found.null_keys += usize::from(raw.key.is_none());
            at = raw.end;
        }
        if at != data.len() {
            return Err(Error::TrailingBytes {
                extra: data.len() - at,
            });
        }
        if self.header.timestamp_type() == TimestampType::LogAppendTime {
            found.max_timestamp = self.header.max_timestamp;
            found.max_timestamp_offset_delta = 0;
        }
        Ok(found)
    }

    /// The records, each checked when its turn comes. Neither the CRC is looked at nor
    /// [`Limits::max_batch_bytes`]. Gaps between offsets are no error here: compaction leaves them.
    ///
    /// # Errors
    /// Damaged or too much compressed data, more records than allowed.
    pub fn records(&self, limits: &Limits) -> Result<Records> {
        self.check_counts(limits)?;
        let data = match self.header.codec() {
            Codec::None => self.body(),
            // An emptied batch may keep its codec without keeping an empty stream of it.
            _ if self.header.body_len() == 0 => Bytes::new(),
            _ => Bytes::from(self.decompressed(limits)?),
        };
        Ok(Records::new(data, self.header, *limits))
    }

    fn decompressed(&self, limits: &Limits) -> Result<Vec<u8>> {
        let body = &self.bytes[BATCH_HEADER_LEN..];
        self.header
            .codec()
            .decompress(body, limits.max_decompressed_bytes)
    }

    fn check_counts(&self, limits: &Limits) -> Result<()> {
        let count = self.header.record_count as usize;
        if count > limits.max_records {
            return Err(Error::TooManyRecords {
                count,
                limit: limits.max_records,
            });
        }
        let body = self.header.body_len();
        if self.header.codec() == Codec::None && body > limits.max_decompressed_bytes {
            return Err(Error::DecompressedTooLarge {
                codec: Codec::None,
                limit: limits.max_decompressed_bytes,
            });
        }
        Ok(())
    }

    /// A producer id comes with an epoch and, but for control batches, a sequence; a transaction
    /// comes with a producer id.
    pub(crate) fn check_producer(&self) -> Result<()> {
        let header = &self.header;
        let invalid = |field, value| Err(Error::InvalidHeader { field, value });
        if header.producer_id < NO_PRODUCER_ID {
            return invalid("producer_id", header.producer_id);
        }
        if header.producer_id == NO_PRODUCER_ID {
            return if header.is_transactional() {
                invalid("producer_id", header.producer_id)
            } else {
                Ok(())
            };
        }
        if header.producer_epoch < 0 {
            return invalid("producer_epoch", i64::from(header.producer_epoch));
        }
        if header.base_sequence < 0 && !header.is_control() {
            return invalid("base_sequence", i64::from(header.base_sequence));
        }
        Ok(())
    }

    /// The header's bytes as appended at `base_offset` by the leader of `leader_epoch`. Both lie
    /// outside the CRC, so the body stays as it is, by reference.
    #[must_use]
    pub fn stamped_header(&self, base_offset: Offset, leader_epoch: i32) -> [u8; BATCH_HEADER_LEN] {
        self.header.stamped(base_offset, leader_epoch).encode()
    }

    /// The header with log append time `now` (`message.timestamp.type=LogAppendTime`), its CRC right
    /// if it was before. Combine with [`BatchHeader::stamped`] and [`BatchHeader::encode`].
    #[must_use]
    pub fn with_log_append_time(&self, now: TimestampMs) -> BatchHeader {
        self.header.with_log_append_time(now)
    }

    /// The header with the maximum timestamp corrected, its CRC right if it was before.
    #[must_use]
    pub fn with_max_timestamp(&self, max_timestamp: TimestampMs) -> BatchHeader {
        self.header.with_max_timestamp(max_timestamp)
    }

    /// The batch under another header of the same length. In place if nothing else holds the bytes;
    /// a copy otherwise.
    ///
    /// # Errors
    /// Those of [`BatchHeader::decode`]; [`Error::InvalidHeader`] if `header` has another length.
    pub fn with_header(self, header: BatchHeader) -> Result<Batch> {
        if header.batch_length != self.header.batch_length {
            return Err(Error::InvalidHeader {
                field: "batch_length",
                value: i64::from(header.batch_length),
            });
        }
        let raw = header.encode();
        BatchHeader::decode(&raw)?;
        let mut bytes = self
            .bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[..BATCH_HEADER_LEN].copy_from_slice(&raw);
        Ok(Batch {
            header,
            bytes: bytes.freeze(),
        })
    }
}
