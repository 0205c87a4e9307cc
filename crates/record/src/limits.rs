//! The bounds that every reader and builder works under.

/// Bounds on a batch. What exceeds one ends in a typed error, before memory is spent on it.
///
/// The defaults admit all that Kafka's own defaults admit. A broker sets `max_batch_bytes` from
/// `max.message.bytes`; readers need not, as the bytes of a batch that they iterate over are already
/// in memory: only [`crate::Batch::validate`] and the builder look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a batch as sent and stored, its header included.
    pub max_batch_bytes: usize,
    /// Records in a batch.
    pub max_records: usize,
    /// Bytes of a batch's records once decompressed; also bounds what a builder collects.
    pub max_decompressed_bytes: usize,
    /// Headers of one record; each costs its reader 64 bytes for as little as 2 on the wire.
    pub max_headers_per_record: usize,
}

impl Limits {
    /// Kafka's default `max.message.bytes`: 1 MiB and the 12 bytes in front of a batch's length.
    pub const DEFAULT_MAX_BATCH_BYTES: usize = 1_048_588;
    /// A million records, the most that 7 MB can hold.
    pub const DEFAULT_MAX_RECORDS: usize = 1_000_000;
    /// 32 MiB: 32 times the default batch, far above what real records reach.
    pub const DEFAULT_MAX_DECOMPRESSED_BYTES: usize = 32 << 20;
    /// 4,096 headers.
    pub const DEFAULT_MAX_HEADERS_PER_RECORD: usize = 4_096;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_batch_bytes: Self::DEFAULT_MAX_BATCH_BYTES,
            max_records: Self::DEFAULT_MAX_RECORDS,
            max_decompressed_bytes: Self::DEFAULT_MAX_DECOMPRESSED_BYTES,
            max_headers_per_record: Self::DEFAULT_MAX_HEADERS_PER_RECORD,
        }
    }
}
