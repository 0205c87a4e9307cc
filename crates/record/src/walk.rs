//! One record's fields found in its bytes, without touching its key, its value or its headers' contents.

use std::ops::Range;

use crate::varint::Reader;
use crate::{Error, Limits, RecordFlaw, Result};

/// Where a record's fields are; the ranges are checked against the bytes that it was read from.
pub(crate) struct RawRecord {
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: i32,
    pub(crate) key: Option<Range<usize>>,
    pub(crate) value: Option<Range<usize>>,
    pub(crate) header_count: usize,
    /// Where the first header begins.
    pub(crate) headers_at: usize,
    /// Where the next record begins.
    pub(crate) end: usize,
}

/// Where a header's fields are.
pub(crate) struct RawHeader {
    pub(crate) key: Range<usize>,
    pub(crate) value: Option<Range<usize>>,
}

/// Reads the record number `index`, which begins at `at`.
#[inline]
pub(crate) fn record(bytes: &[u8], at: usize, index: usize, limits: &Limits) -> Result<RawRecord> {
    let invalid = |flaw| Error::InvalidRecord { index, flaw };
    let mut outer = Reader::new(bytes, at);
    let len = outer.varint().map_err(invalid)?;
    let len = usize::try_from(len).map_err(|_| invalid(RecordFlaw::NegativeLength))?;
    if len > outer.left() {
        return Err(invalid(RecordFlaw::CutOff));
    }
    let end = outer.at() + len;
    let mut reader = Reader::new(&bytes[..end], outer.at());
    let raw = fields(&mut reader, end).map_err(invalid)?;
    if raw.header_count > limits.max_headers_per_record {
        return Err(Error::TooManyHeaders {
            index,
            count: raw.header_count,
            limit: limits.max_headers_per_record,
        });
    }
    for _ in 0..raw.header_count {
        header(&mut reader).map_err(invalid)?;
    }
    if reader.left() != 0 {
        return Err(invalid(RecordFlaw::LengthMismatch));
    }
    Ok(raw)
}

#[inline]
fn fields(reader: &mut Reader<'_>, end: usize) -> Result<RawRecord, RecordFlaw> {
    reader.byte()?; // Attributes: none is defined, and Kafka ignores them.
    let timestamp_delta = reader.varlong()?;
    let offset_delta = reader.varint()?;
    let key = nullable(reader)?;
    let value = nullable(reader)?;
    let header_count = usize::try_from(reader.varint()?).map_err(|_| RecordFlaw::NegativeLength)?;
    // A header takes two bytes or more.
    if header_count > reader.left() / 2 {
        return Err(RecordFlaw::ImpossibleHeaderCount);
    }
    Ok(RawRecord {
        timestamp_delta,
        offset_delta,
        key,
        value,
        header_count,
        headers_at: reader.at(),
        end,
    })
}

/// Reads one header.
#[inline]
pub(crate) fn header(reader: &mut Reader<'_>) -> Result<RawHeader, RecordFlaw> {
    let key = nullable(reader)?.ok_or(RecordFlaw::NegativeLength)?;
    let value = nullable(reader)?;
    Ok(RawHeader { key, value })
}

/// Reads a length, −1 for null, and passes over as many bytes.
#[inline]
fn nullable(reader: &mut Reader<'_>) -> Result<Option<Range<usize>>, RecordFlaw> {
    let len = reader.varint()?;
    if len == -1 {
        return Ok(None);
    }
    let len = usize::try_from(len).map_err(|_| RecordFlaw::NegativeLength)?;
    let start = reader.skip(len)?;
    Ok(Some(start..start + len))
}
