//! What the API talks about, as plain structs. The generated types stay inside.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use timberline_proto::error::ApiError;
use timberline_proto::v1;

use crate::operations::{BrokerState, FragileRack};

/// Identity of a topic; a topic made again under the same name has another one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub [u8; 16]);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TopicId {
    /// `None` when there are not 16 bytes.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<TopicId> {
        bytes.try_into().ok().map(TopicId)
    }
}

/// The cluster and its brokers, as clients see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Chosen when the cluster was founded.
    pub cluster_id: String,
    /// The broker that leads the metadata log, if known.
    pub controller_id: Option<i32>,
    /// All brokers.
    pub brokers: Vec<BrokerInfo>,
    /// What all brokers can do; it rises when an operator says so.
    pub feature_level: u32,
}

/// One broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerInfo {
    /// The broker's id.
    pub broker_id: i32,
    /// Its failure domain, if configured.
    pub rack: Option<String>,
    /// HOST:PORT of the listener this client came by.
    pub address: String,
    /// Version of its software.
    pub version: String,
    /// HOST:PORT of probes and metrics; empty if there is none.
    pub http_address: String,
    /// What it is for.
    pub state: BrokerState,
    /// Connected, as far as the broker that answered knows.
    pub live: bool,
    /// Replicas that are on it.
    pub replicas: i32,
}

/// The cluster with the state of its brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Who is in it.
    pub cluster: ClusterInfo,
    /// Number of topics.
    pub topics: i32,
    /// Number of partitions of all topics.
    pub partitions: i32,
    /// Every broker that answered.
    pub brokers: Vec<BrokerStatus>,
    /// Partitions without a leader.
    pub leaderless: i32,
    /// Partitions with replicas that are not in sync.
    pub under_replicated: i32,
    /// Partitions whose spread over racks could be better.
    pub rack_violations: i32,
    /// Whether the loss of any one rack now would leave every partition a majority; a broker without a rack is one.
    pub rack_loss_survivable: bool,
    /// The racks whose loss would not.
    pub fragile: Vec<FragileRack>,
}

/// The state of one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Which one.
    pub broker: BrokerInfo,
    /// Free bytes on the file system of its data directory.
    pub disk_free_bytes: i64,
    /// Size of that file system in bytes.
    pub disk_total_bytes: i64,
    /// Bytes its logs take.
    pub log_size_bytes: i64,
    /// Since its start.
    pub uptime: Duration,
    /// False after a failed sync: reads go on, writes are refused until a restart.
    pub writable: bool,
}

/// A topic and where its partitions are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub topic_id: TopicId,
    /// In the order of their numbers, from 0.
    pub partitions: Vec<PartitionInfo>,
    /// Copies of each partition.
    pub replication_factor: i32,
    /// Whether the cluster keeps it for itself.
    pub internal: bool,
}

/// Where one partition is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: i32,
    /// The broker that leads it, if known.
    pub leader_id: Option<i32>,
    /// Rises with every change of leader.
    pub leader_epoch: i32,
    /// Brokers that hold a copy.
    pub replicas: Vec<i32>,
    /// Those of them that are up to date.
    pub in_sync: Vec<i32>,
    /// Those of them that are not connected, or that lost the replica with their disk.
    pub offline: Vec<i32>,
    /// While replicas move: brokers that get one.
    pub adding: Vec<i32>,
    /// While replicas move: brokers whose replica goes.
    pub removing: Vec<i32>,
}

/// A topic to be created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'.
    pub name: String,
    /// Number of partitions, at least 1.
    pub partitions: i32,
    /// Copies of each partition; 0: the cluster's default.
    pub replication_factor: i32,
    /// Kafka's keys, e.g. `retention.ms`.
    pub config: BTreeMap<String, String>,
    /// Check only, change nothing.
    pub validate_only: bool,
}

impl NewTopic {
    /// A topic with the cluster's default replication and configuration.
    pub fn new(name: impl Into<String>, partitions: i32) -> NewTopic {
        NewTopic {
            name: name.into(),
            partitions,
            ..NewTopic::default()
        }
    }

    /// Sets the number of copies; 0: the cluster's default.
    #[must_use]
    pub fn replication_factor(mut self, replicas: i32) -> NewTopic {
        self.replication_factor = replicas;
        self
    }

    /// Sets one configuration key.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> NewTopic {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Check only, change nothing.
    #[must_use]
    pub fn validate_only(mut self, yes: bool) -> NewTopic {
        self.validate_only = yes;
        self
    }
}

/// A topic with the state of its partitions and its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic.
    pub topic: TopicInfo,
    /// In the order of the partitions' numbers.
    pub partitions: Vec<PartitionState>,
    /// Every configuration key in force.
    pub config: Vec<ConfigEntry>,
}

/// The state of one partition on its leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    /// Its number.
    pub partition: i32,
    /// First offset there is.
    pub log_start_offset: i64,
    /// One after the last committed offset.
    pub high_watermark: i64,
    /// Bytes on disk.
    pub size_bytes: i64,
    /// Segment files.
    pub segments: i32,
    /// Epoch of its leader.
    pub leader_epoch: i32,
    /// Damaged ranges that are not served.
    pub quarantined: Vec<OffsetRange>,
}

/// Offsets `[from, to)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset.
    pub from: i64,
    /// One after the last.
    pub to: i64,
}

/// Where a configuration value comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigSource {
    /// A source this client does not know.
    #[default]
    Unknown,
    /// Built in.
    Default,
    /// The broker's configuration.
    Broker,
    /// Set on the topic.
    Topic,
}

/// One configuration key in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigEntry {
    /// E.g. `retention.ms`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Where the value comes from.
    pub source: ConfigSource,
    /// What it would be if it were not set.
    pub default_value: String,
    /// What it does, for a person.
    pub documentation: String,
}

/// One change of a topic's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// E.g. `retention.ms`.
    pub key: String,
    /// `None`: back to the default.
    pub value: Option<String>,
}

impl ConfigChange {
    /// Sets a key.
    pub fn set(key: impl Into<String>, value: impl Into<String>) -> ConfigChange {
        ConfigChange {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    /// Takes a key back to its default.
    pub fn reset(key: impl Into<String>) -> ConfigChange {
        ConfigChange {
            key: key.into(),
            value: None,
        }
    }
}

/// Answer to a question for an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffsetInfo {
    /// The partition.
    pub partition: i32,
    /// The offset; for a time behind the last record, the high watermark.
    pub offset: i64,
    /// Timestamp of the record found, milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// Epoch of the leader that answered.
    pub leader_epoch: i32,
}

/// What trimming did to one partition.
#[derive(Clone, Debug, PartialEq)]
pub struct TrimOutcome {
    /// The partition.
    pub partition: i32,
    /// Its log start now, or why it was not moved.
    pub result: Result<i64, ApiError>,
}

impl From<v1::ClusterInfo> for ClusterInfo {
    fn from(info: v1::ClusterInfo) -> Self {
        ClusterInfo {
            cluster_id: info.cluster_id,
            controller_id: info.controller_id,
            brokers: info.brokers.into_iter().map(BrokerInfo::from).collect(),
            feature_level: info.feature_level,
        }
    }
}

impl From<v1::BrokerInfo> for BrokerInfo {
    fn from(info: v1::BrokerInfo) -> Self {
        BrokerInfo {
            state: info.state().into(),
            live: info.live,
            replicas: info.replicas,
            broker_id: info.broker_id,
            rack: Some(info.rack).filter(|rack| !rack.is_empty()),
            address: info.address,
            version: info.version,
            http_address: info.http_address,
        }
    }
}

impl From<v1::ClusterInfoResponse> for ClusterStatus {
    fn from(info: v1::ClusterInfoResponse) -> Self {
        ClusterStatus {
            cluster: info.cluster.unwrap_or_default().into(),
            topics: info.topics,
            partitions: info.partitions,
            brokers: info.brokers.into_iter().map(BrokerStatus::from).collect(),
            leaderless: info.leaderless,
            under_replicated: info.under_replicated,
            rack_violations: info.rack_violations,
            rack_loss_survivable: info.rack_loss_survivable,
            fragile: info.fragile.into_iter().map(FragileRack::from).collect(),
        }
    }
}

impl From<v1::BrokerStatus> for BrokerStatus {
    fn from(status: v1::BrokerStatus) -> Self {
        BrokerStatus {
            broker: status.broker.unwrap_or_default().into(),
            disk_free_bytes: status.disk_free_bytes,
            disk_total_bytes: status.disk_total_bytes,
            log_size_bytes: status.log_size_bytes,
            uptime: Duration::from_millis(status.uptime_ms.max(0) as u64),
            writable: status.writable,
        }
    }
}

impl From<v1::TopicInfo> for TopicInfo {
    fn from(info: v1::TopicInfo) -> Self {
        let mut partitions: Vec<_> = info
            .partitions
            .into_iter()
            .map(PartitionInfo::from)
            .collect();
        partitions.sort_by_key(|partition| partition.partition);
        TopicInfo {
            name: info.name,
            topic_id: TopicId::from_wire(&info.topic_id).unwrap_or_default(),
            partitions,
            replication_factor: info.replication_factor,
            internal: info.internal,
        }
    }
}

impl From<v1::PartitionInfo> for PartitionInfo {
    fn from(info: v1::PartitionInfo) -> Self {
        PartitionInfo {
            partition: info.partition,
            leader_id: info.leader_id,
            leader_epoch: info.leader_epoch,
            replicas: info.replicas,
            in_sync: info.in_sync,
            offline: info.offline,
            adding: info.adding,
            removing: info.removing,
        }
    }
}

impl From<v1::PartitionState> for PartitionState {
    fn from(state: v1::PartitionState) -> Self {
        let range = |range: v1::OffsetRange| OffsetRange {
            from: range.from,
            to: range.to,
        };
        PartitionState {
            partition: state.partition,
            log_start_offset: state.log_start_offset,
            high_watermark: state.high_watermark,
            size_bytes: state.size_bytes,
            segments: state.segments,
            leader_epoch: state.leader_epoch,
            quarantined: state.quarantined.into_iter().map(range).collect(),
        }
    }
}

impl From<v1::ConfigEntry> for ConfigEntry {
    fn from(entry: v1::ConfigEntry) -> Self {
        let source = match entry.source() {
            v1::ConfigSource::Unspecified => ConfigSource::Unknown,
            v1::ConfigSource::Default => ConfigSource::Default,
            v1::ConfigSource::Broker => ConfigSource::Broker,
            v1::ConfigSource::Topic => ConfigSource::Topic,
        };
        ConfigEntry {
            key: entry.key,
            value: entry.value,
            source,
            default_value: entry.default_value,
            documentation: entry.documentation,
        }
    }
}
