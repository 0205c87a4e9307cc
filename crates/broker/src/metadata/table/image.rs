//! The whole table as one command, and back.

use timberline_proto::internal as pb;

use super::broker::{broker_from, broker_to, state_from};
use super::operation::{operation_from, operation_to};
use super::topic::{partition_from, topic_to};
use super::{Cluster, Rejected, Table, Topic, id_bytes, topic_id};
use crate::metadata::epochs::Epochs;

impl Table {
    /// The whole table as a command. `keep` says which tombstones are still needed.
    pub(crate) fn image(&self, keep: impl Fn(u64) -> bool) -> pb::MetadataImage {
        let kept = || self.tombstones.iter().filter(|(id, _)| keep(**id));
        pb::MetadataImage {
            cluster: self.cluster.as_ref().map(|cluster| pb::FoundCluster {
                cluster_id: cluster.id.clone(),
                founded_at_ms: cluster.founded_at_ms,
                feature_level: 0,
            }),
            feature_level: self.feature_level,
            brokers: self
                .brokers
                .iter()
                .map(|(&id, broker)| broker_to(id, broker))
                .collect(),
            topics: self.topics().map(|topic| topic_to(topic)).collect(),
            next_producer_id: self.next_producer_id,
            next_replica_id: self.next_replica_id,
            requests: self
                .request_order
                .iter()
                .map(|request| pb::AppliedRequest {
                    request_id: request.clone(),
                    topic_id: id_bytes(self.requests.get(request).copied().unwrap_or_default()),
                })
                .collect(),
            tombstones: kept().map(|(&id, _)| id).collect(),
            tombstone_brokers: kept().map(|(_, &broker)| broker).collect(),
            epochs: self
                .epochs
                .iter()
                .map(|(producer_id, epoch)| pb::GrantEpoch { producer_id, epoch })
                .collect(),
            epochs_forgotten_below: self.epochs.forgotten_below(),
            operations: self.operations.iter().map(operation_to).collect(),
        }
    }

    pub(super) fn from_image(image: &pb::MetadataImage) -> Result<Table, Rejected> {
        // An image of one broker, from before tombstones had theirs, has them all on it.
        let only = image.brokers.first().map_or(0, |broker| broker.broker_id);
        let brokers = image.tombstone_brokers.iter().copied();
        let brokers = brokers.chain(std::iter::repeat(only));
        let mut table = Table {
            next_producer_id: image.next_producer_id,
            next_replica_id: image.next_replica_id,
            feature_level: image.feature_level,
            tombstones: image.tombstones.iter().copied().zip(brokers).collect(),
            cluster: image.cluster.as_ref().map(|cluster| Cluster {
                id: cluster.cluster_id.clone(),
                founded_at_ms: cluster.founded_at_ms,
            }),
            epochs: Epochs::new(image.epochs_forgotten_below),
            ..Table::default()
        };
        for grant in &image.epochs {
            table.epochs.grant(grant.producer_id, grant.epoch);
        }
        for register in &image.brokers {
            let state =
                pb::BrokerState::try_from(register.state).map_err(|_| Rejected::UnknownKind)?;
            let broker = broker_from(register, state_from(state))?;
            table.brokers.insert(register.broker_id, broker);
        }
        for topic in &image.topics {
            table.restore(topic)?;
        }
        for request in &image.requests {
            let topic = topic_id(&request.topic_id).ok_or(Rejected::Malformed("topic id"))?;
            table.remember(request.request_id.clone(), topic);
        }
        for operation in &image.operations {
            table.operations.push(operation_from(operation)?);
        }
        Ok(table)
    }

    /// Takes a topic in as an image has it.
    fn restore(&mut self, create: &pb::CreateTopic) -> Result<(), Rejected> {
        let id = topic_id(&create.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        if self.colliding(&create.name).is_some() || self.topics.contains_key(&id) {
            return Err(Rejected::NameTaken);
        }
        let mut partitions = Vec::with_capacity(create.partitions.len());
        for partition in &create.partitions {
            if usize::try_from(partition.partition) != Ok(partitions.len()) {
                return Err(Rejected::NotDense);
            }
            partitions.push(partition_from(partition)?);
        }
        let topic = Topic {
            id,
            name: create.name.clone(),
            replication_factor: create.replication_factor,
            config: create.config.clone().into_iter().collect(),
            partitions,
            created_at_ms: create.created_at_ms,
        };
        // The counter is never below what is in use.
        let used = topic
            .partitions
            .iter()
            .flat_map(|partition| partition.all());
        let highest = used.map(|replica| replica.id.saturating_add(1)).max();
        self.next_replica_id = self.next_replica_id.max(highest.unwrap_or(0));
        self.insert(topic);
        Ok(())
    }
}
