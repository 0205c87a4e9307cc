//! The table: what the commands of the metadata log say in sum. No I/O, no clock, no randomness.
//!
//! A command that does not fit (its topic is gone, its name taken) changes nothing and says so: proposals are checked
//! against a table that runs ahead of the committed one, and one that was refused may have been counted on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use timberline_proto::internal as pb;
use uuid::Uuid;

use super::epochs::Epochs;
use crate::topic::{config::Explicit, name};

/// Request ids that are remembered, so that a retried change is applied once; the oldest is forgotten first.
pub(crate) const REQUESTS_REMEMBERED: usize = 4096;

/// A topic as the metadata log has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Topic {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) replication_factor: i32,
    pub(crate) config: Explicit,
    /// Indexed by partition; dense.
    pub(crate) partitions: Vec<Box<[Replica]>>,
    pub(crate) created_at_ms: i64,
}

/// One replica of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) broker: i32,
}

/// A registered broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) rack: String,
    pub(crate) directory: Uuid,
}

/// The cluster's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) founded_at_ms: i64,
}

/// The whole state. Cheap enough to clone when it must be rebuilt: topics are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    cluster: Option<Cluster>,
    brokers: BTreeMap<i32, Broker>,
    topics: HashMap<Uuid, Arc<Topic>>,
    names: BTreeMap<String, Uuid>,
    /// By [`name::collision_key`].
    collisions: HashMap<String, Uuid>,
    partitions: usize,
    next_producer_id: i64,
    next_replica_id: u64,
    requests: HashMap<String, Uuid>,
    request_order: VecDeque<String>,
    tombstones: BTreeSet<u64>,
    epochs: Epochs,
}

/// What applying a command changed, for whoever follows the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Nothing that concerns local logs.
    None,
    /// Replicas may have to be created: the topic is new or has more partitions.
    Grown(Arc<Topic>),
    /// The topic's configuration changed.
    Configured(Arc<Topic>),
    /// The topic is gone; its replicas are tombstones.
    Deleted(Arc<Topic>),
    /// Everything may have changed.
    Replaced,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("the request was applied before")]
    AppliedBefore,
    #[error("a topic of this name exists")]
    NameTaken,
    #[error("the topic does not exist")]
    UnknownTopic,
    #[error("the partitions do not follow the ones that exist")]
    NotDense,
    #[error("a producer's epoch of this height was granted")]
    EpochGranted,
    #[error("malformed command: {0}")]
    Malformed(&'static str),
    #[error("a command of a kind unknown to this version")]
    UnknownKind,
}

/// A topic id out of 16 bytes.
pub(crate) fn topic_id(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

/// The 16 bytes of a topic id.
pub(crate) fn id_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn replicas_of(partition: &pb::Partition) -> Box<[Replica]> {
    partition
        .replicas
        .iter()
        .map(|replica| Replica {
            id: replica.replica_id,
            broker: replica.broker_id,
        })
        .collect()
}

fn partition_of(number: usize, replicas: &[Replica]) -> pb::Partition {
    pb::Partition {
        partition: number as i32,
        replicas: replicas
            .iter()
            .map(|replica| pb::Replica {
                replica_id: replica.id,
                broker_id: replica.broker,
            })
            .collect(),
    }
}

impl Table {
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub(crate) fn brokers(&self) -> &BTreeMap<i32, Broker> {
        &self.brokers
    }

    /// Topics in the order of their names.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    pub(crate) fn topic(&self, id: Uuid) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    pub(crate) fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.names.get(name).and_then(|id| self.topics.get(id))
    }

    /// The topic whose name would collide with this one.
    pub(crate) fn colliding(&self, name: &str) -> Option<&Arc<Topic>> {
        self.collisions
            .get(&name::collision_key(name))
            .and_then(|id| self.topics.get(id))
    }

    pub(crate) fn topic_count(&self) -> usize {
        self.topics.len()
    }

    pub(crate) fn partition_count(&self) -> usize {
        self.partitions
    }

    /// First producer id that no reservation covers.
    pub(crate) fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// First replica id never given; 0 is group 0's.
    pub(crate) fn next_replica_id(&self) -> u64 {
        self.next_replica_id.max(1)
    }

    /// The topic that an applied request concerned.
    pub(crate) fn applied_request(&self, request: &str) -> Option<Uuid> {
        self.requests.get(request).copied()
    }

    /// Replicas whose files may be deleted.
    pub(crate) fn tombstones(&self) -> &BTreeSet<u64> {
        &self.tombstones
    }

    /// Epochs granted to producer ids.
    pub(crate) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Applies one command, all or nothing.
    ///
    /// # Errors
    /// [`Rejected`]; the table is as before.
    pub(crate) fn apply(&mut self, command: &pb::MetadataCommand) -> Result<Effect, Rejected> {
        use pb::metadata_command::Command;
        let request = command.request_id.as_str();
        if !request.is_empty() && self.requests.contains_key(request) {
            return Err(Rejected::AppliedBefore);
        }
        let (effect, topic) = match command.command.as_ref().ok_or(Rejected::UnknownKind)? {
            Command::FoundCluster(found) => {
                self.cluster = Some(Cluster {
                    id: found.cluster_id.clone(),
                    founded_at_ms: found.founded_at_ms,
                });
                (Effect::None, Uuid::nil())
            }
            Command::RegisterBroker(register) => {
                self.register(register)?;
                (Effect::None, Uuid::nil())
            }
            Command::CreateTopic(create) => {
                let topic = self.create(create)?;
                let id = topic.id;
                (Effect::Grown(topic), id)
            }
            Command::DeleteTopic(delete) => {
                let topic = self.delete(&delete.topic_id)?;
                let id = topic.id;
                (Effect::Deleted(topic), id)
            }
            Command::AddPartitions(add) => {
                let topic = self.grow(add)?;
                let id = topic.id;
                (Effect::Grown(topic), id)
            }
            Command::AlterTopicConfig(alter) => {
                let topic = self.alter(alter)?;
                let id = topic.id;
                (Effect::Configured(topic), id)
            }
            Command::ReserveProducerIds(reserve) => {
                self.next_producer_id = self.next_producer_id.max(reserve.next);
                (Effect::None, Uuid::nil())
            }
            Command::GrantEpoch(grant) => {
                if !self.epochs.grant(grant.producer_id, grant.epoch) {
                    return Err(Rejected::EpochGranted);
                }
                (Effect::None, Uuid::nil())
            }
            Command::Image(image) => {
                *self = Table::from_image(image)?;
                (Effect::Replaced, Uuid::nil())
            }
        };
        if !request.is_empty() {
            self.remember(request.to_owned(), topic);
        }
        Ok(effect)
    }

    fn remember(&mut self, request: String, topic: Uuid) {
        if self.request_order.len() == REQUESTS_REMEMBERED {
            if let Some(oldest) = self.request_order.pop_front() {
                self.requests.remove(&oldest);
            }
        }
        self.request_order.push_back(request.clone());
        self.requests.insert(request, topic);
    }

    fn register(&mut self, register: &pb::RegisterBroker) -> Result<(), Rejected> {
        let directory =
            topic_id(&register.directory_id).ok_or(Rejected::Malformed("directory id"))?;
        let broker = Broker {
            rack: register.rack.clone(),
            directory,
        };
        self.brokers.insert(register.broker_id, broker);
        Ok(())
    }

    fn create(&mut self, create: &pb::CreateTopic) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&create.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        let key = name::collision_key(&create.name);
        if self.collisions.contains_key(&key) || self.topics.contains_key(&id) {
            return Err(Rejected::NameTaken);
        }
        let mut partitions = Vec::with_capacity(create.partitions.len());
        self.append_partitions(&mut partitions, &create.partitions)?;
        let topic = Arc::new(Topic {
            id,
            name: create.name.clone(),
            replication_factor: create.replication_factor,
            config: create.config.clone().into_iter().collect(),
            partitions,
            created_at_ms: create.created_at_ms,
        });
        self.partitions += topic.partitions.len();
        self.names.insert(topic.name.clone(), id);
        self.collisions.insert(key, id);
        self.topics.insert(id, Arc::clone(&topic));
        Ok(topic)
    }

    /// Adds partitions whose numbers go on where `partitions` ends, and notes the replica ids they use.
    fn append_partitions(
        &mut self,
        partitions: &mut Vec<Box<[Replica]>>,
        more: &[pb::Partition],
    ) -> Result<(), Rejected> {
        let mut next = self.next_replica_id();
        for partition in more {
            if usize::try_from(partition.partition) != Ok(partitions.len()) {
                return Err(Rejected::NotDense);
            }
            let replicas = replicas_of(partition);
            for replica in &replicas {
                next = next.max(replica.id.saturating_add(1));
            }
            partitions.push(replicas);
        }
        self.next_replica_id = next;
        Ok(())
    }

    fn delete(&mut self, id: &[u8]) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(id).ok_or(Rejected::Malformed("topic id"))?;
        let topic = self.topics.remove(&id).ok_or(Rejected::UnknownTopic)?;
        self.names.remove(&topic.name);
        self.collisions.remove(&name::collision_key(&topic.name));
        self.partitions -= topic.partitions.len();
        let replicas = topic.partitions.iter().flat_map(|replicas| replicas.iter());
        self.tombstones.extend(replicas.map(|replica| replica.id));
        Ok(topic)
    }

    fn grow(&mut self, add: &pb::AddPartitions) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&add.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        let old = self.topics.get(&id).ok_or(Rejected::UnknownTopic)?;
        let mut topic = Topic::clone(old);
        let before = topic.partitions.len();
        self.append_partitions(&mut topic.partitions, &add.partitions)?;
        self.partitions += topic.partitions.len() - before;
        let topic = Arc::new(topic);
        self.topics.insert(id, Arc::clone(&topic));
        Ok(topic)
    }

    fn alter(&mut self, alter: &pb::AlterTopicConfig) -> Result<Arc<Topic>, Rejected> {
        let id = topic_id(&alter.topic_id).ok_or(Rejected::Malformed("topic id"))?;
        let topic = self.topics.get_mut(&id).ok_or(Rejected::UnknownTopic)?;
        let changed = Arc::make_mut(topic);
        changed.config.extend(alter.set.clone());
        for key in &alter.unset {
            changed.config.remove(key);
        }
        Ok(Arc::clone(topic))
    }

    /// The whole table as a command. `keep` says which tombstones are still needed.
    pub(crate) fn image(&self, keep: impl Fn(u64) -> bool) -> pb::MetadataImage {
        pb::MetadataImage {
            cluster: self.cluster.as_ref().map(|cluster| pb::FoundCluster {
                cluster_id: cluster.id.clone(),
                founded_at_ms: cluster.founded_at_ms,
            }),
            brokers: self
                .brokers
                .iter()
                .map(|(&id, broker)| pb::RegisterBroker {
                    broker_id: id,
                    rack: broker.rack.clone(),
                    directory_id: id_bytes(broker.directory),
                })
                .collect(),
            topics: self.topics().map(|topic| create_command(topic)).collect(),
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
            tombstones: self
                .tombstones
                .iter()
                .copied()
                .filter(|&id| keep(id))
                .collect(),
            epochs: self
                .epochs
                .iter()
                .map(|(producer_id, epoch)| pb::GrantEpoch { producer_id, epoch })
                .collect(),
            epochs_forgotten_below: self.epochs.forgotten_below(),
        }
    }

    fn from_image(image: &pb::MetadataImage) -> Result<Table, Rejected> {
        let mut table = Table {
            next_producer_id: image.next_producer_id,
            next_replica_id: image.next_replica_id,
            tombstones: image.tombstones.iter().copied().collect(),
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
        for broker in &image.brokers {
            table.register(broker)?;
        }
        for topic in &image.topics {
            table.create(topic)?;
        }
        for request in &image.requests {
            let topic = topic_id(&request.topic_id).ok_or(Rejected::Malformed("topic id"))?;
            table.remember(request.request_id.clone(), topic);
        }
        Ok(table)
    }
}

/// The command that would create this topic as it is.
fn create_command(topic: &Topic) -> pb::CreateTopic {
    pb::CreateTopic {
        name: topic.name.clone(),
        topic_id: id_bytes(topic.id),
        partitions: topic
            .partitions
            .iter()
            .enumerate()
            .map(|(number, replicas)| partition_of(number, replicas))
            .collect(),
        replication_factor: topic.replication_factor,
        config: topic.config.clone().into_iter().collect(),
        created_at_ms: topic.created_at_ms,
    }
}
