//! From topic ids and names to the partitions hosted here. Written by the metadata backend, read by every call.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::{TopicRef, topic_ref};
use uuid::Uuid;

use super::Partition;
use crate::metadata::plan::{unknown_topic, unknown_topic_named};
use crate::metadata::table::topic_id;
use crate::topic::config::TopicConfig;

/// A topic as calls need it.
pub(crate) struct TopicHandle {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) config: ArcSwap<TopicConfig>,
    /// Indexed by partition; `None` is hosted elsewhere.
    partitions: RwLock<Vec<Option<Arc<Partition>>>>,
}

impl TopicHandle {
    pub(crate) fn new(id: Uuid, name: String, config: TopicConfig) -> Arc<TopicHandle> {
        Arc::new(TopicHandle {
            id,
            name,
            config: ArcSwap::from_pointee(config),
            partitions: RwLock::new(Vec::new()),
        })
    }

    pub(crate) fn partition_count(&self) -> usize {
        self.partitions.read().len()
    }

    /// # Errors
    /// `UNKNOWN_PARTITION`.
    pub(crate) fn check_number(&self, number: i32) -> Result<(), ApiError> {
        let count = self.partition_count();
        if usize::try_from(number).is_ok_and(|at| at < count) {
            return Ok(());
        }
        Err(ApiError::new(
            Reason::UnknownPartition,
            format!(
                "topic `{}` has {count} partitions, {number} is not one of them",
                self.name
            ),
        )
        .with("partitions", count))
    }

    /// The partition, if it is hosted here.
    pub(crate) fn hosted_here(&self, number: i32) -> Option<Arc<Partition>> {
        let partitions = self.partitions.read();
        partitions.get(usize::try_from(number).ok()?)?.clone()
    }

    /// Takes a replica in, in place of another one or of none. Partitions in between are hosted elsewhere.
    pub(crate) fn set(&self, number: i32, partition: Option<Arc<Partition>>) {
        let mut partitions = self.partitions.write();
        let at = usize::try_from(number).unwrap_or(0);
        if partitions.len() <= at {
            partitions.resize(at + 1, None);
        }
        partitions[at] = partition;
    }

    /// The partitions hosted here.
    pub(crate) fn hosted(&self) -> Vec<Arc<Partition>> {
        self.partitions
            .read()
            .iter()
            .flatten()
            .map(Arc::clone)
            .collect()
    }
}

/// All topics.
#[derive(Default)]
pub(crate) struct Directory {
    topics: RwLock<Topics>,
}

#[derive(Default)]
struct Topics {
    by_id: HashMap<Uuid, Arc<TopicHandle>>,
    by_name: HashMap<String, Uuid>,
}

impl Directory {
    pub(crate) fn by_id(&self, id: Uuid) -> Option<Arc<TopicHandle>> {
        self.topics.read().by_id.get(&id).map(Arc::clone)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<TopicHandle>> {
        let topics = self.topics.read();
        let id = topics.by_name.get(name)?;
        topics.by_id.get(id).map(Arc::clone)
    }

    /// # Errors
    /// `UNKNOWN_TOPIC`, or `INVALID_ARGUMENT` for an id that is not 16 bytes.
    pub(crate) fn by_id_bytes(&self, bytes: &[u8]) -> Result<Arc<TopicHandle>, ApiError> {
        let id = topic_id(bytes)
            .ok_or_else(|| ApiError::invalid("topic_id", "a topic id has 16 bytes"))?;
        self.by_id(id).ok_or_else(|| unknown_topic(id))
    }

    /// # Errors
    /// As [`Directory::by_id_bytes`].
    pub(crate) fn resolve(
        &self,
        reference: Option<&TopicRef>,
    ) -> Result<Arc<TopicHandle>, ApiError> {
        match reference.and_then(|reference| reference.r#ref.as_ref()) {
            Some(topic_ref::Ref::Id(bytes)) => self.by_id_bytes(bytes),
            Some(topic_ref::Ref::Name(name)) => {
                let topics = self.topics.read();
                let id = topics.by_name.get(name);
                id.and_then(|id| topics.by_id.get(id))
                    .map(Arc::clone)
                    .ok_or_else(|| unknown_topic_named(name))
            }
            None => Err(ApiError::invalid("topic", "name a topic by name or by id")),
        }
    }

    pub(crate) fn insert(&self, topic: Arc<TopicHandle>) {
        let mut topics = self.topics.write();
        topics.by_name.insert(topic.name.clone(), topic.id);
        topics.by_id.insert(topic.id, topic);
    }

    /// Takes a topic out; its partitions are closed.
    pub(crate) fn remove(&self, id: Uuid) -> Option<Arc<TopicHandle>> {
        let topic = {
            let mut topics = self.topics.write();
            let topic = topics.by_id.remove(&id)?;
            topics.by_name.remove(&topic.name);
            topic
        };
        for partition in topic.hosted() {
            partition.close();
        }
        Some(topic)
    }

    /// Every topic, in no order.
    pub(crate) fn topics(&self) -> Vec<Arc<TopicHandle>> {
        self.topics.read().by_id.values().map(Arc::clone).collect()
    }
}
