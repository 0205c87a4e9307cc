//! Changing and inspecting topics and their configuration.

use crate::client::Client;
use crate::consumer::Position;
use crate::error::{Error, Result};
use crate::types::{
    ClusterStatus, ConfigChange, ConfigEntry, NewTopic, OffsetInfo, TopicDescription, TopicId,
    TopicInfo, TrimOutcome,
};

/// Topics, configuration, offsets. Clones share everything.
///
/// Every call is retried until the client's request timeout while brokers can't be reached or say that it may
/// succeed later. A change carries a request id, so that a retry does not apply it twice. All functions are
/// cancel-safe on this side; a change whose future is dropped may or may not be made.
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

/// Where to trim a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimTarget {
    /// The partition.
    pub partition: i32,
    /// The new log start; `None`: the high watermark.
    pub before_offset: Option<i64>,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// Creates a topic, or only checks it.
    ///
    /// # Errors
    /// `TOPIC_EXISTS`, `INVALID_TOPIC_NAME`, `INVALID_CONFIG`, `INVALID_REPLICATION_FACTOR`.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicInfo> {
        let _ = (topic, &self.client);
        Err(Error::Closed)
    }

    /// Deletes a topic and all its records.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn delete_topic(&self, topic: &str, validate_only: bool) -> Result<TopicId> {
        let _ = (topic, validate_only);
        Err(Error::Closed)
    }

    /// Raises the number of partitions to `total`. Keys go to other partitions from then on.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_ARGUMENT` when `total` is not larger.
    pub async fn add_partitions(
        &self,
        topic: &str,
        total: i32,
        validate_only: bool,
    ) -> Result<TopicInfo> {
        let _ = (topic, total, validate_only);
        Err(Error::Closed)
    }

    /// Moves the log start of partitions up: the records below are gone for good. One outcome per partition.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn trim(
        &self,
        topic: &str,
        targets: &[TrimTarget],
        validate_only: bool,
    ) -> Result<Vec<TrimOutcome>> {
        let _ = (topic, targets, validate_only);
        Err(Error::Closed)
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list_topics(&self, include_internal: bool) -> Result<Vec<TopicInfo>> {
        let _ = include_internal;
        Err(Error::Closed)
    }

    /// A topic with the state of its partitions and its configuration.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription> {
        let _ = topic;
        Err(Error::Closed)
    }

    /// Every configuration key of a topic.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`.
    pub async fn describe_config(&self, topic: &str) -> Result<Vec<ConfigEntry>> {
        let _ = topic;
        Err(Error::Closed)
    }

    /// Changes a topic's configuration, all changes or none; returns it as it is then.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_CONFIG`.
    pub async fn alter_config(
        &self,
        topic: &str,
        changes: &[ConfigChange],
        validate_only: bool,
    ) -> Result<Vec<ConfigEntry>> {
        let _ = (topic, changes, validate_only);
        Err(Error::Closed)
    }

    /// The cluster and the state of its brokers.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn cluster_info(&self) -> Result<ClusterStatus> {
        Err(Error::Closed)
    }

    /// Finds one offset per item, in the order of the items.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `UNKNOWN_PARTITION`, of the first item that has one.
    pub async fn list_offsets(
        &self,
        topic: &str,
        items: &[(i32, Position)],
    ) -> Result<Vec<OffsetInfo>> {
        let _ = (topic, items);
        Err(Error::Closed)
    }
}
