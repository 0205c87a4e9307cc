//! The table: what the commands of the metadata log say in sum. No I/O, no clock, no randomness.
//!
//! - `topic`, `broker`, `operation` are the things it holds; `topics`, `replicas`, `brokers` are what commands do to them.
//! - `image` is the whole of it as one command.
//!
//! A command that does not fit (its topic is gone, its name taken) changes nothing and says so: proposals are checked
//! against a table that runs ahead of the committed one, and one that was refused may have been counted on.
//!
//! **Invariants.** A replica id is given once (a command that gives one again is refused). A replica becomes a tombstone
//! only when nothing can count on it any more: with its topic, or when a change of replicas is *finished*; giving a change
//! up only turns it back. Liveness and leadership are not here: they are soft state.

mod broker;
mod brokers;
mod image;
mod operation;
mod replicas;
mod topic;
mod topics;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use timberline_proto::internal as pb;
use uuid::Uuid;

use super::epochs::Epochs;
use crate::topic::name;

pub(crate) use broker::{Broker, BrokerState, FEATURE_LEVEL_MAX, FEATURE_LEVEL_MIN, state_to};
pub(crate) use operation::{
    Ended, Operation, OperationKind, OperationResult, Operations, operation_to,
};
pub(crate) use topic::{Partition, Reassign, Replica, Topic};

use operation::operation_from;

/// Request ids that are remembered, so that a retried change is applied once; the oldest is forgotten first.
pub(crate) const REQUESTS_REMEMBERED: usize = 4096;

/// Index of a command that has none yet: it is tried on a table that runs ahead of the log.
pub(crate) const INDEX_UNKNOWN: u64 = 0;

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
    feature_level: u32,
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
    /// With the broker that has to carry each out.
    tombstones: BTreeMap<u64, i32>,
    epochs: Epochs,
    operations: Operations,
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
    /// A broker registered, changed its state, or was removed. `lost` are topics of which it had replicas in a directory
    /// that it has no more: they are marked, and `moves` replaces them.
    Broker { id: i32, lost: Vec<Arc<Topic>> },
    /// A change of a partition's replicas began, was turned back or was finished: those of
    /// [`Partition::hosted_on`] may have to be created, and `buried` are tombstones now.
    Replicas {
        topic: Arc<Topic>,
        partition: i32,
        buried: Vec<Replica>,
    },
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
    #[error("the topic has no such partition")]
    UnknownPartition,
    #[error("the broker is not registered")]
    UnknownBroker,
    #[error("the operation does not exist or has ended")]
    UnknownOperation,
    #[error("an operation of this id exists")]
    OperationExists,
    #[error("too many operations are open")]
    TooManyOperations,
    #[error("the partitions do not follow the ones that exist")]
    NotDense,
    #[error("a replica id was given before")]
    ReplicaIdTaken,
    #[error("the partition's replicas are being changed already")]
    ChangeInFlight,
    #[error("this change of the partition's replicas is not in flight")]
    ChangeNotInFlight,
    #[error("the broker hosts replicas, or is not being decommissioned")]
    BrokerInUse,
    #[error("a broker can't run at the feature level")]
    FeatureLevel,
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

impl Table {
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The level that new kinds of commands, frames and fields wait for.
    pub(crate) fn feature_level(&self) -> u32 {
        self.feature_level.max(1)
    }

    pub(crate) fn brokers(&self) -> &BTreeMap<i32, Broker> {
        &self.brokers
    }

    /// Topics in the order of their names.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// Every partition of every topic, in the order of the topics' names.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (&Arc<Topic>, i32, &Partition)> {
        self.topics().flat_map(|topic| {
            let numbered = topic.numbered();
            numbered.map(move |(number, partition)| (topic, number, partition))
        })
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

    /// What an applied request concerned: a topic, or the operation it began; nil for neither.
    pub(crate) fn applied_request(&self, request: &str) -> Option<Uuid> {
        self.requests.get(request).copied()
    }

    /// Replicas whose files may be deleted, with the broker that has them.
    pub(crate) fn tombstones(&self) -> &BTreeMap<u64, i32> {
        &self.tombstones
    }

    /// Epochs granted to producer ids.
    pub(crate) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Operations, open and ended.
    pub(crate) fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Applies one command, all or nothing. `index` is that of its entry, [`INDEX_UNKNOWN`] while it is only proposed.
    ///
    /// # Errors
    /// [`Rejected`]; the table is as before.
    pub(crate) fn apply(
        &mut self,
        index: u64,
        command: &pb::MetadataCommand,
    ) -> Result<Effect, Rejected> {
        let request = command.request_id.as_str();
        if !request.is_empty() && self.requests.contains_key(request) {
            return Err(Rejected::AppliedBefore);
        }
        let command = command.command.as_ref().ok_or(Rejected::UnknownKind)?;
        let (effect, concerned) = self.dispatch(index, command)?;
        if !request.is_empty() {
            self.remember(request.to_owned(), concerned);
        }
        Ok(effect)
    }

    /// The effect, and what the command concerned.
    fn dispatch(
        &mut self,
        index: u64,
        command: &pb::metadata_command::Command,
    ) -> Result<(Effect, Uuid), Rejected> {
        use pb::metadata_command::Command;
        let nothing = (Effect::None, Uuid::nil());
        Ok(match command {
            Command::FoundCluster(found) => {
                self.cluster = Some(Cluster {
                    id: found.cluster_id.clone(),
                    founded_at_ms: found.founded_at_ms,
                });
                self.feature_level = self.feature_level.max(found.feature_level);
                nothing
            }
            Command::RegisterBroker(register) => (self.register(register)?, Uuid::nil()),
            Command::SetBrokerState(set) => self.set_broker_state(set)?,
            Command::RemoveBroker(remove) => (self.remove_broker(remove)?, Uuid::nil()),
            Command::CreateTopic(create) => {
                let topic = self.create(index, create)?;
                let id = topic.id;
                (Effect::Grown(topic), id)
            }
            Command::DeleteTopic(delete) => {
                let topic = self.delete(&delete.topic_id)?;
                let id = topic.id;
                (Effect::Deleted(topic), id)
            }
            Command::AddPartitions(add) => {
                let topic = self.grow(index, add)?;
                let id = topic.id;
                (Effect::Grown(topic), id)
            }
            Command::AlterTopicConfig(alter) => {
                let topic = self.alter(alter)?;
                let id = topic.id;
                (Effect::Configured(topic), id)
            }
            Command::ReassignPartition(reassign) => self.reassign(index, reassign)?,
            Command::FinishReassign(finish) => (self.finish_reassign(index, finish)?, Uuid::nil()),
            Command::CancelReassign(cancel) => (self.cancel_reassign(index, cancel)?, Uuid::nil()),
            Command::SetFeatureLevel(set) => {
                self.raise_feature_level(set.level)?;
                nothing
            }
            Command::StartOperation(start) => {
                let operation = start.operation.as_ref();
                let operation = operation_from(operation.ok_or(Rejected::Malformed("operation"))?)?;
                self.operations.check(&operation, 0)?;
                let id = operation.id;
                self.operations.push(operation);
                (Effect::None, id)
            }
            Command::FinishOperation(finish) => (Effect::None, self.finish_operation(finish)?),
            Command::BuryReplicas(bury) => {
                for replica in &bury.replica_ids {
                    self.tombstones.remove(replica);
                }
                nothing
            }
            Command::ReserveProducerIds(reserve) => {
                self.next_producer_id = self.next_producer_id.max(reserve.next);
                nothing
            }
            Command::GrantEpoch(grant) => {
                if !self.epochs.grant(grant.producer_id, grant.epoch) {
                    return Err(Rejected::EpochGranted);
                }
                nothing
            }
            Command::Image(image) => {
                *self = Table::from_image(image)?;
                (Effect::Replaced, Uuid::nil())
            }
        })
    }

    fn remember(&mut self, request: String, concerned: Uuid) {
        if self.request_order.len() == REQUESTS_REMEMBERED
            && let Some(oldest) = self.request_order.pop_front()
        {
            self.requests.remove(&oldest);
        }
        self.request_order.push_back(request.clone());
        self.requests.insert(request, concerned);
    }

    fn finish_operation(&mut self, finish: &pb::FinishOperation) -> Result<Uuid, Rejected> {
        let result = OperationResult::try_from(finish.result).map_err(|_| Rejected::UnknownKind)?;
        let id = topic_id(&finish.operation_id).ok_or(Rejected::Malformed("operation id"))?;
        if result == OperationResult::Unspecified {
            return Err(Rejected::Malformed("operation result"));
        }
        let ended = Ended::new(result, finish.at_ms, &finish.message);
        if self.operations.end(|operation| operation.id == id, &ended) == 0 {
            return Err(Rejected::UnknownOperation);
        }
        Ok(id)
    }
}
