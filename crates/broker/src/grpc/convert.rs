//! Between the API's types and ours.

use bytes::Bytes;
use timberline_proto::v1;
use timberline_record as record;

/// A stored record as the unary calls give it. Header keys that are not UTF-8 are shown with replacement characters:
/// the API's are text, the format's are bytes.
pub(super) fn plain_record(record: record::Record) -> v1::Record {
    v1::Record {
        offset: record.offset,
        timestamp_ms: record.timestamp,
        key: record.key,
        value: record.value,
        headers: record
            .headers
            .into_iter()
            .map(|header| v1::RecordHeader {
                key: String::from_utf8_lossy(&header.key).into_owned(),
                value: header.value,
            })
            .collect(),
    }
}

/// Headers of a caller's record.
pub(super) fn headers(headers: Vec<v1::RecordHeader>) -> Vec<record::Header> {
    headers
        .into_iter()
        .map(|header| record::Header {
            key: Bytes::from(header.key),
            value: header.value,
        })
        .collect()
}

/// Records of a stored batch, out of its header: 4 bytes, big-endian, at 57.
pub(super) fn record_count(batch: &[u8]) -> u64 {
    batch
        .get(57..61)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, |bytes| u64::from(u32::from_be_bytes(bytes)))
}
