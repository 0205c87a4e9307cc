//! Commands about topics.

use std::collections::HashSet;
use std::sync::Arc;

use timberline_proto::internal as pb;

use super::topic::replicas_from;
use super::{Partition, Rejected, Replica, Table, Topic, topic_id};
use crate::topic::name;

impl Table {
    pub(super) fn create(
        &mut self,
        index: u64,
        create: &pb::CreateTopic,
    ) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&create.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        if self.colliding(&create.name).is_some() || self.topics.contains_key(&id) {
            return Err(Rejected::NameTaken);
        }
        let mut partitions = Vec::with_capacity(create.partitions.len());
        self.append_partitions(index, &mut partitions, &create.partitions)?;
        Ok(self.insert(Topic {
            id,
            name: create.name.clone(),
            replication_factor: create.replication_factor,
            config: create.config.clone().into_iter().collect(),
            partitions,
            created_at_ms: create.created_at_ms,
        }))
    }

    /// Takes a topic in that was checked.
    pub(super) fn insert(&mut self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.partitions += topic.partitions.len();
        self.names.insert(topic.name.clone(), topic.id);
        self.collisions
            .insert(name::collision_key(&topic.name), topic.id);
        self.topics.insert(topic.id, Arc::clone(&topic));
        topic
    }

    /// Adds partitions whose numbers go on where `partitions` ends, and notes the replica ids they use.
    fn append_partitions(
        &mut self,
        index: u64,
        partitions: &mut Vec<Partition>,
        more: &[pb::Partition],
    ) -> Result<(), Rejected> {
        for partition in more {
            if usize::try_from(partition.partition) != Ok(partitions.len()) {
                return Err(Rejected::NotDense);
            }
            partitions.push(Partition {
                replicas: replicas_from(&partition.replicas, false),
                revision: index,
                reassign: None,
                founding: true,
            });
        }
        let new = partitions.iter().skip(partitions.len() - more.len());
        self.claim(new.flat_map(|partition| partition.replicas.iter()))
    }

    /// Notes that these replicas exist: new ids, on registered brokers.
    pub(super) fn claim<'a>(
        &mut self,
        new: impl Iterator<Item = &'a Replica>,
    ) -> Result<(), Rejected> {
        let mut next = self.next_replica_id();
        let mut seen = HashSet::new();
        for replica in new {
            if replica.id < self.next_replica_id() || !seen.insert(replica.id) {
                return Err(Rejected::ReplicaIdTaken);
            }
            if !self.brokers.contains_key(&replica.broker) {
                return Err(Rejected::UnknownBroker);
            }
            next = next.max(replica.id.saturating_add(1));
        }
        self.next_replica_id = next;
        Ok(())
    }

    pub(super) fn delete(&mut self, id: &[u8]) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(id).ok_or(Rejected::Malformed("topic id"))?;
        let topic = self.topics.remove(&id).ok_or(Rejected::UnknownTopic)?;
        self.names.remove(&topic.name);
        self.collisions.remove(&name::collision_key(&topic.name));
        self.partitions -= topic.partitions.len();
        let replicas = topic.partitions.iter().flat_map(Partition::all);
        self.bury(replicas);
        Ok(topic)
    }

    /// Makes tombstones of replicas. A lost one is nowhere and needs none.
    pub(super) fn bury<'a>(&mut self, replicas: impl Iterator<Item = &'a Replica>) {
        let there = replicas.filter(|replica| !replica.lost);
        self.tombstones
            .extend(there.map(|replica| (replica.id, replica.broker)));
    }

    pub(super) fn grow(
        &mut self,
        index: u64,
        add: &pb::AddPartitions,
    ) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&add.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        let old = self.topics.get(&id).ok_or(Rejected::UnknownTopic)?;
        let mut topic = Topic::clone(old);
        let before = topic.partitions.len();
        self.append_partitions(index, &mut topic.partitions, &add.partitions)?;
        self.partitions += topic.partitions.len() - before;
        let topic = Arc::new(topic);
        self.topics.insert(id, Arc::clone(&topic));
        Ok(topic)
    }

    pub(super) fn alter(&mut self, alter: &pb::AlterTopicConfig) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&alter.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        let topic = self.topics.get_mut(&id).ok_or(Rejected::UnknownTopic)?;
        let changed = Arc::make_mut(topic);
        changed.config.extend(alter.set.clone());
        for key in &alter.unset {
            changed.config.remove(key);
        }
        Ok(Arc::clone(topic))
    }
}
