//! A batch under construction: records go, encoded, straight into the buffer that will be sent.

use bytes::{Bytes, BytesMut};

use crate::header::{
    BATCH_HEADER_LEN, CONTROL_BIT, CURRENT_MAGIC, LENGTH_PREFIX_LEN, LOG_APPEND_TIME_BIT,
    NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, TRANSACTIONAL_BIT, UNCHECKED_LEN,
};
use crate::{
    Batch, BatchHeader, Codec, Error, Header, Limits, ProducerStamp, Record, Result, TimestampMs,
    TimestampType, varint,
};

/// How a [`BatchBuilder`] builds.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// How to compress; a batch that this would not make smaller is left as it is, with codec `none`.
    pub codec: Codec,
    /// Whose timestamps they are.
    pub timestamp_type: TimestampType,
    /// Whether the batch belongs to a transaction.
    pub transactional: bool,
    /// Whether it is a control batch; for brokers.
    pub control: bool,
    /// Bytes to reserve at first. What an uncompressed batch does not use of them it holds all the same.
    pub capacity: usize,
    /// What the batch must keep to; `max_batch_bytes` counts before compression.
    pub limits: Limits,
}

impl Default for BatchOptions {
    fn default() -> Self {
        BatchOptions {
            codec: Codec::None,
            timestamp_type: TimestampType::CreateTime,
            transactional: false,
            control: false,
            capacity: 16 << 10,
            limits: Limits::default(),
        }
    }
}

/// Collects records into one batch with base offset 0 and leader epoch −1, as a producer sends it.
#[derive(Debug)]
pub struct BatchBuilder {
    options: BatchOptions,
    /// Room for the header, then the records.
    buffer: BytesMut,
    count: usize,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
}

/// The longest of: length, attributes, two deltas, the key's length.
const MAX_PREFIX_LEN: usize = varint::MAX_I32 + 1 + varint::MAX_I64 + 2 * varint::MAX_I32;

impl BatchBuilder {
    /// A builder with this codec and timestamp type, and defaults for the rest.
    #[must_use]
    pub fn new(codec: Codec, timestamp_type: TimestampType) -> BatchBuilder {
        Self::with_options(BatchOptions {
            codec,
            timestamp_type,
            ..BatchOptions::default()
        })
    }

    /// A builder with all options.
    #[must_use]
    pub fn with_options(options: BatchOptions) -> BatchBuilder {
        let capacity = options.capacity.min(options.limits.max_batch_bytes);
        let mut buffer = BytesMut::with_capacity(capacity.max(BATCH_HEADER_LEN));
        buffer.resize(BATCH_HEADER_LEN, 0);
        BatchBuilder {
            options,
            buffer,
            count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
        }
    }

    /// Records so far.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch so far, header included, before compression: what is built is never larger.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.buffer.len()
    }

    /// What [`BatchBuilder::encoded_len`] would be after this record, so that a caller can close the
    /// batch first.
    #[must_use]
    pub fn encoded_len_with(
        &self,
        timestamp: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) -> usize {
        let delta = self.timestamp_delta(timestamp).unwrap_or(i64::MAX);
        let len = record_len(delta, self.count, key, value, headers);
        self.buffer.len() + varint::len(len as i64) + len
    }

    /// The first record's timestamp; `None` before it.
    #[must_use]
    pub fn base_timestamp(&self) -> Option<TimestampMs> {
        (self.count > 0).then_some(self.base_timestamp)
    }

    /// Appends a record. `timestamp` may lie before those of earlier records.
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`], [`Error::TooManyRecords`], [`Error::TooManyHeaders`] by the options'
    /// limits; [`Error::TimestampOutOfRange`]. The batch is then as before.
    #[inline]
    pub fn append(
        &mut self,
        timestamp: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) -> Result<()> {
        let delta = self.timestamp_delta(timestamp)?;
        let len = record_len(delta, self.count, key, value, headers);
        let total = self.buffer.len() + varint::len(len as i64) + len;
        self.check_room(total, headers)?;

        self.buffer.reserve(total - self.buffer.len());
        let mut prefix = [0; MAX_PREFIX_LEN];
        let mut at = varint::write(&mut prefix, len as i64);
        at += 1; // Attributes: none is defined.
        at += varint::write(&mut prefix[at..], delta);
        at += varint::write(&mut prefix[at..], self.count as i64);
        at += varint::write(&mut prefix[at..], nullable_len(key));
        if let Some(key) = key {
            self.buffer.extend_from_slice(&prefix[..at]);
            self.buffer.extend_from_slice(key);
            at = 0;
        }
        at += varint::write(&mut prefix[at..], nullable_len(value));
        self.buffer.extend_from_slice(&prefix[..at]);
        if let Some(value) = value {
            self.buffer.extend_from_slice(value);
        }
        self.put_varint(headers.len() as i64);
        for header in headers {
            self.put_varint(header.key.len() as i64);
            self.buffer.extend_from_slice(&header.key);
            self.put_varint(nullable_len(header.value.as_deref()));
            self.buffer
                .extend_from_slice(header.value.as_deref().unwrap_or_default());
        }
        debug_assert_eq!(self.buffer.len(), total);

        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count += 1;
        Ok(())
    }

    /// Appends a copy of `record`, whose offset does not matter.
    ///
    /// # Errors
    /// As [`BatchBuilder::append`].
    pub fn append_record(&mut self, record: &Record) -> Result<()> {
        self.append(
            record.timestamp,
            record.key.as_deref(),
            record.value.as_deref(),
            &record.headers,
        )
    }

    #[inline]
    fn put_varint(&mut self, value: i64) {
        let mut bytes = [0; varint::MAX_I64];
        let len = varint::write(&mut bytes, value);
        self.buffer.extend_from_slice(&bytes[..len]);
    }

    #[inline]
    fn timestamp_delta(&self, timestamp: TimestampMs) -> Result<i64> {
        if self.count == 0 {
            return Ok(0);
        }
        let delta = timestamp.checked_sub(self.base_timestamp);
        delta.ok_or(Error::TimestampOutOfRange {
            timestamp,
            base: self.base_timestamp,
        })
    }

    #[inline]
    fn check_room(&self, total: usize, headers: &[Header]) -> Result<()> {
        let limits = &self.options.limits;
        // Past this the format's own lengths would overflow, whatever the limits say.
        let limit = limits
            .max_batch_bytes
            .min(
                limits
                    .max_decompressed_bytes
                    .saturating_add(BATCH_HEADER_LEN),
            )
            .min(i32::MAX as usize);
        if total > limit {
            return Err(Error::BatchTooLarge { size: total, limit });
        }
        let limit = limits.max_records.min(i32::MAX as usize);
        if self.count >= limit {
            return Err(Error::TooManyRecords {
                count: self.count + 1,
                limit,
            });
        }
        if headers.len() > limits.max_headers_per_record {
            return Err(Error::TooManyHeaders {
                index: self.count,
                count: headers.len(),
                limit: limits.max_headers_per_record,
            });
        }
        Ok(())
    }

    /// Ends the batch: compresses it if asked, writes its header and its CRC.
    ///
    /// # Errors
    /// [`Error::EmptyBatch`]; [`Error::InvalidHeader`] if the stamp is negative, or missing from a
    /// transaction; [`Error::Compress`] if the codec fails.
    pub fn build(self, producer: Option<ProducerStamp>) -> Result<Batch> {
        if self.count == 0 {
            return Err(Error::EmptyBatch);
        }
        let compressed = self.compressed()?;
        let codec = match compressed {
            Some(_) => self.options.codec,
            None => Codec::None,
        };
        let header = |len: usize| self.header(codec, len, producer);
        let (header, bytes) = match compressed {
            Some(mut bytes) => {
                let header = finish(header(bytes.len()), &mut bytes);
                (header, Bytes::from(bytes))
            }
            None => {
                let header = header(self.buffer.len());
                let mut buffer = self.buffer;
                (finish(header, &mut buffer), buffer.freeze())
            }
        };
        let batch = Batch::from_parts(header, bytes);
        batch.check_producer()?;
        Ok(batch)
    }

    /// The batch compressed, with room for the header; `None` if it is not to be, or gains nothing.
    fn compressed(&self) -> Result<Option<Vec<u8>>> {
        if self.options.codec == Codec::None {
            return Ok(None);
        }
        let plain = &self.buffer[BATCH_HEADER_LEN..];
        let bytes = self.options.codec.compress(plain, BATCH_HEADER_LEN)?;
        Ok((bytes.len() < self.buffer.len()).then_some(bytes))
    }

    fn header(&self, codec: Codec, len: usize, producer: Option<ProducerStamp>) -> BatchHeader {
        let mut attributes = codec.attribute_bits();
        if self.options.timestamp_type == TimestampType::LogAppendTime {
            attributes |= LOG_APPEND_TIME_BIT;
        }
        if self.options.transactional {
            attributes |= TRANSACTIONAL_BIT;
        }
        if self.options.control {
            attributes |= CONTROL_BIT;
        }
        BatchHeader {
            base_offset: 0,
            // Both fit: `append` keeps size and count within `i32`.
            batch_length: (len - LENGTH_PREFIX_LEN) as i32,
            leader_epoch: -1,
            magic: CURRENT_MAGIC,
            crc: 0,
            attributes,
            last_offset_delta: self.count as i32 - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.map_or(NO_PRODUCER_ID, |producer| producer.id),
            producer_epoch: producer.map_or(NO_PRODUCER_EPOCH, |producer| producer.epoch),
            base_sequence: producer.map_or(NO_SEQUENCE, |producer| producer.base_sequence),
            record_count: self.count as i32,
        }
    }
}

/// Writes `header` into the room at the front of `bytes`, with their checksum.
fn finish(mut header: BatchHeader, bytes: &mut [u8]) -> BatchHeader {
    bytes[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
    header.crc = crc32c::crc32c(&bytes[UNCHECKED_LEN..]);
    bytes[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
    header
}

/// The value of a record's length field: the bytes after it.
#[inline]
fn record_len(
    timestamp_delta: i64,
    index: usize,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header],
) -> usize {
    let mut len = 1
        + varint::len(timestamp_delta)
        + varint::len(index as i64)
        + nullable_size(key)
        + nullable_size(value)
        + varint::len(headers.len() as i64);
    for header in headers {
        len += nullable_size(Some(&header.key)) + nullable_size(header.value.as_deref());
    }
    len
}

#[inline]
fn nullable_len(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}

#[inline]
fn nullable_size(bytes: Option<&[u8]>) -> usize {
    varint::len(nullable_len(bytes)) + bytes.map_or(0, <[u8]>::len)
}
