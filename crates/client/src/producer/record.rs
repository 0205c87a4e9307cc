//! A record on its way in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A record to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// The topic's name. Keep one `Arc` per topic and clone it: no allocation per record then.
    pub topic: Arc<str>,
    /// `None`: chosen by the key as Kafka's clients choose it, or the current batch of the topic without a key.
    pub partition: Option<i32>,
    /// `None` is a null key, not an empty one.
    pub key: Option<Bytes>,
    /// `None` is a null value (a tombstone in a compacted topic), not an empty one.
    pub value: Option<Bytes>,
    /// In order, duplicates allowed.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub timestamp_ms: Option<i64>,
    /// From `send` to the acknowledgement, all retries included; `None`: the producer's
    /// [`delivery_timeout`](crate::ProducerOptions#structfield.delivery_timeout). Passed before the record was sent, it fails
    /// cleanly; passed later, its outcome is unknown and the producer goes on under a new epoch. Records of different
    /// timeouts do not share a batch.
    pub delivery_timeout: Option<Duration>,
}

impl ProducerRecord {
    /// An empty record: null key, null value.
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        ProducerRecord {
            topic: topic.into(),
            partition: None,
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: None,
            delivery_timeout: None,
        }
    }

    /// A value without a key.
    pub fn value(topic: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        ProducerRecord::new(topic).with_value(value)
    }

    /// A key and a value.
    pub fn keyed(
        topic: impl Into<Arc<str>>,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Self {
        ProducerRecord::new(topic).with_key(key).with_value(value)
    }

    /// Sets the key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the value.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Names the partition.
    #[must_use]
    pub fn with_partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Appends a header.
    #[must_use]
    pub fn with_header(mut self, key: impl Into<String>, value: Option<Bytes>) -> Self {
        self.headers.push((key.into(), value));
        self
    }

    /// Sets how long the record may take to be acknowledged.
    #[must_use]
    pub fn with_delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = Some(timeout);
        self
    }

    /// Sets the timestamp, milliseconds since the Unix epoch.
    #[must_use]
    pub fn with_timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }
}
