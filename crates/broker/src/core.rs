//! What every service of a running broker shares.

use std::sync::Arc;
use std::time::{Duration, Instant};

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::TopicRef;
use timberline_record::Limits;
use timberline_storage::Store;
use uuid::Uuid;

use crate::auth::{Operation, Principal, Resource, authorize};
use crate::cluster::Cluster;
use crate::config::BrokerConfig;
use crate::groups::serve::Coordinators;
use crate::lifecycle::Lifecycle;
use crate::metadata::frontend::Frontend;
use crate::metadata::leadership::Leadership;
use crate::metrics::Metrics;
use crate::partition::{Budget, Directory, Partition, TopicHandle};
use crate::shard::Shards;
use crate::topic::config::{Defaults, TopicConfig};
use crate::topic::name::is_internal;

/// How long the creation of a topic waits for the first leaders of its partitions.
const LEADERS_WAIT: Duration = Duration::from_secs(2);

/// How long a broker may know of no controller and count as ready.
const CONTROLLER_GRACE: Duration = Duration::from_secs(5);

/// The running broker, behind its listeners.
pub(crate) struct Core {
    pub(crate) config: BrokerConfig,
    pub(crate) defaults: Defaults,
    pub(crate) store: Store,
    pub(crate) shards: Arc<Shards>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) metadata: Arc<Frontend>,
    /// Who leads and who lives; not in the metadata log.
    pub(crate) leadership: Arc<dyn Leadership>,
    /// The same, with everything else about the other brokers.
    pub(crate) cluster: Arc<Cluster>,
    /// The cluster's id, before the metadata has it too.
    pub(crate) cluster_id: String,
    pub(crate) budget: Arc<Budget>,
    /// Coordinators of consumer groups.
    pub(crate) groups: Arc<Coordinators>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) started: Instant,
    /// HOST:PORT that clients are told.
    pub(crate) grpc_address: String,
    pub(crate) http_address: String,
}

impl Core {
    /// The bounds on a batch for this topic.
    pub(crate) fn batch_limits(&self, topic: &TopicConfig) -> Limits {
        Limits {
            max_batch_bytes: topic.max_message_bytes,
            max_decompressed_bytes: self.config.limits.decompressed_bytes_max.as_usize(),
            ..Limits::default()
        }
    }

    /// Bounds for reading batches that are stored: they passed when they were written, perhaps under wider ones.
    pub(crate) fn read_limits(&self) -> Limits {
        Limits {
            max_batch_bytes: usize::MAX,
            max_decompressed_bytes: 1 << 30,
            ..Limits::default()
        }
    }

    /// The topic that a caller names, if the caller may do this to it.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC`, `INVALID_ARGUMENT`, or what the door says.
    pub(crate) fn topic(
        &self,
        operation: Operation,
        reference: Option<&TopicRef>,
    ) -> Result<Arc<TopicHandle>, ApiError> {
        let topic = self.directory.resolve(reference)?;
        check_internal(operation, &topic)?;
        authorize(
            Principal::Anonymous,
            operation,
            Resource::Topic(&topic.name),
        )?;
        Ok(topic)
    }

    /// As [`Core::topic`], by the 16 bytes of an id.
    ///
    /// # Errors
    /// As [`Core::topic`].
    pub(crate) fn topic_by_id(
        &self,
        operation: Operation,
        id: &[u8],
    ) -> Result<Arc<TopicHandle>, ApiError> {
        let topic = self.directory.by_id_bytes(id)?;
        check_internal(operation, &topic)?;
        authorize(
            Principal::Anonymous,
            operation,
            Resource::Topic(&topic.name),
        )?;
        Ok(topic)
    }

    /// A partition that is led here.
    ///
    /// # Errors
    /// `UNKNOWN_PARTITION`, `UNKNOWN_TOPIC`, `NOT_LEADER`, `NO_LEADER`.
    pub(crate) fn led(&self, topic: &TopicHandle, number: i32) -> Result<Arc<Partition>, ApiError> {
        match topic.hosted_here(number) {
            Some(partition) => {
                self.check_led(&partition)?;
                Ok(partition)
            }
            None => {
                topic.check_number(number)?;
                Err(self.cluster.not_leader(topic.id, number, None))
            }
        }
    }

    /// As [`Core::led`], for reading: what is committed can be read from a directory that takes no more writes, as long
    /// as nobody else leads.
    ///
    /// # Errors
    /// As [`Core::led`].
    pub(crate) fn readable(
        &self,
        topic: &TopicHandle,
        number: i32,
    ) -> Result<Arc<Partition>, ApiError> {
        match (self.led(topic, number), topic.hosted_here(number)) {
            (Err(error), Some(partition)) if error.reason == Some(Reason::StoragePoisoned) => {
                partition.check_open()?;
                Ok(partition)
            }
            (led, _) => led,
        }
    }

    /// Whether readers may stay.
    ///
    /// # Errors
    /// As [`Core::led`].
    pub(crate) fn check_readable(&self, partition: &Partition) -> Result<(), ApiError> {
        match self.check_led(partition) {
            Err(error) if error.reason == Some(Reason::StoragePoisoned) => Ok(()),
            led => led,
        }
    }

    fn check_led(&self, partition: &Partition) -> Result<(), ApiError> {
        let led = partition.check_leads(&self.cluster);
        led.map_err(|error| self.poisoned_first(error))
    }

    /// When nobody leads while this broker's directory takes no more writes, it is not an election that would help.
    pub(crate) fn poisoned_first(&self, error: ApiError) -> ApiError {
        match self.store.poisoned() {
            Some(why) if error.reason == Some(Reason::NoLeader) => {
                ApiError::new(Reason::StoragePoisoned, why)
            }
            _ => error,
        }
    }

    /// Waits, not for ever, until every partition of a topic has a leader that this broker knows.
    pub(crate) async fn all_led(&self, topic: Uuid) {
        let mut changes = self.cluster.changes();
        let all = changes.wait_for(|_| {
            let table = self.metadata.table();
            let known = table.topic(topic);
            known.is_none_or(|topic| {
                let mut numbers = topic.numbered();
                numbers.all(|(number, _)| self.cluster.leader_of(topic.id, number).is_some())
            })
        });
        let _ = tokio::time::timeout(LEADERS_WAIT, all).await;
    }

    /// Whether this broker has been without a controller for longer than elections take.
    fn lonely(&self) -> Option<String> {
        let missed = self.cluster.without_controller_for();
        let missed = missed.filter(|span| *span >= CONTROLLER_GRACE)?;
        Some(format!(
            "no controller is known for {} s: the metadata has no majority, or this broker does not reach it",
            missed.as_secs()
        ))
    }

    /// Why the broker is not ready, if it is not.
    pub(crate) fn not_ready(&self) -> Option<String> {
        use crate::lifecycle::Phase;
        match self.lifecycle.phase() {
            Phase::Starting => Some("starting".to_owned()),
            Phase::Serving => match self.store.poisoned() {
                Some(why) => Some(format!("read-only until a restart: {why}")),
                None => self.lonely(),
            },
            Phase::Draining | Phase::Stopped => Some("draining".to_owned()),
        }
    }
}

/// Internal topics are written by the broker alone.
fn check_internal(operation: Operation, topic: &TopicHandle) -> Result<(), ApiError> {
    let changes = matches!(operation, Operation::Write | Operation::Delete);
    match changes && is_internal(&topic.name) {
        true => Err(ApiError::invalid(
            "topic",
            format!("`{}` is internal: only the broker writes it", topic.name),
        )),
        false => Ok(()),
    }
}
