//! A topic, its partitions, and which replicas they have or are about to have.

use std::sync::Arc;

use timberline_proto::internal as pb;
use uuid::Uuid;

use super::{Rejected, id_bytes, topic_id};
use crate::topic::config::Explicit;

/// A topic as the metadata log has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Topic {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) replication_factor: i32,
    pub(crate) config: Explicit,
    /// Indexed by partition; dense.
    pub(crate) partitions: Vec<Partition>,
    pub(crate) created_at_ms: i64,
}

/// One replica of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) broker: i32,
    /// Its broker came back with another directory: it is nowhere, and must not be made anew under this id (INV-6).
    pub(crate) lost: bool,
}

/// A partition's replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Those in force: the voters, as far as the table knows. The first is the preferred leader.
    pub(crate) replicas: Box<[Replica]>,
    /// Index of the last command that changed the replicas or what they become. Configuration entries carry it. On a
    /// table that runs ahead of the log it is not known and is 0.
    pub(crate) revision: u64,
    /// What they become, while that is under way.
    pub(crate) reassign: Option<Reassign>,
    /// The replicas are those that it was made with, in their order: they found its group.
    pub(crate) founding: bool,
}

/// A change of replicas in flight: learners are added and catch up, the group goes through a joint configuration, and
/// then the change is finished. Until then nothing is a tombstone, because the group may count on any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reassign {
    /// What will be in force.
    pub(crate) target: Box<[Replica]>,
    /// New replicas of a target that was given up.
    pub(crate) abandoned: Box<[Replica]>,
    /// The operation it belongs to.
    pub(crate) operation: Option<Uuid>,
}

impl Partition {
    /// What is in force, or will be when the change in flight is finished.
    pub(crate) fn target(&self) -> &[Replica] {
        self.reassign
            .as_ref()
            .map_or(&self.replicas, |reassign| &reassign.target)
    }

    /// Replicas that the change in flight adds.
    pub(crate) fn adding(&self) -> impl Iterator<Item = &Replica> {
        let target = self.reassign.iter().flat_map(|change| change.target.iter());
        target.filter(|new| self.replicas.iter().all(|old| old.id != new.id))
    }

    /// Replicas that go when the change in flight is finished.
    pub(crate) fn removing(&self) -> impl Iterator<Item = &Replica> {
        let target = self.target();
        let stays = move |old: &&Replica| target.iter().all(|new| new.id != old.id);
        self.replicas.iter().filter(stays).chain(self.abandoned())
    }

    fn abandoned(&self) -> impl Iterator<Item = &Replica> {
        self.reassign
            .iter()
            .flat_map(|change| change.abandoned.iter())
    }

    /// Every replica that may have files somewhere: in force, being added, given up. Lost ones are among them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Replica> {
        self.replicas
            .iter()
            .chain(self.adding())
            .chain(self.abandoned())
    }

    /// The replicas that a broker has to host. Seldom more than one.
    pub(crate) fn hosted_on(&self, broker: i32) -> impl Iterator<Item = &Replica> {
        self.all()
            .filter(move |replica| replica.broker == broker && !replica.lost)
    }

    /// Whether the change in flight has this target, in any order.
    pub(super) fn becomes(&self, ids: &[u64]) -> bool {
        self.reassign.as_ref().is_some_and(|change| {
            change.target.len() == ids.len() && change.target.iter().all(|r| ids.contains(&r.id))
        })
    }

    /// Marks what the broker had as lost; false if it had nothing.
    pub(super) fn lose(&mut self, broker: i32) -> bool {
        let (target, abandoned) = match &mut self.reassign {
            Some(change) => (&mut change.target[..], &mut change.abandoned[..]),
            None => (&mut [][..], &mut [][..]),
        };
        let mut any = false;
        for replica in self.replicas.iter_mut().chain(target).chain(abandoned) {
            if replica.broker == broker && !replica.lost {
                replica.lost = true;
                any = true;
            }
        }
        any
    }
}

impl Topic {
    /// The partition with this number.
    pub(crate) fn partition(&self, number: i32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(number).ok()?)
    }

    /// Partitions with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (i32, &Partition)> {
        (0..).zip(&self.partitions)
    }
}

/// The partition with this number, to be changed.
pub(super) fn partition_mut(
    topic: &mut Arc<Topic>,
    number: i32,
) -> Result<&mut Partition, Rejected> {
    let at = usize::try_from(number).map_err(|_| Rejected::UnknownPartition)?;
    if at >= topic.partitions.len() {
        return Err(Rejected::UnknownPartition);
    }
    Arc::make_mut(topic)
        .partitions
        .get_mut(at)
        .ok_or(Rejected::UnknownPartition)
}

/// Replicas out of a command. Whether one is lost stands in images only.
pub(super) fn replicas_from(replicas: &[pb::Replica], image: bool) -> Box<[Replica]> {
    replicas
        .iter()
        .map(|replica| Replica {
            id: replica.replica_id,
            broker: replica.broker_id,
            lost: image && replica.lost,
        })
        .collect()
}

fn replicas_to(replicas: &[Replica]) -> Vec<pb::Replica> {
    replicas
        .iter()
        .map(|replica| pb::Replica {
            replica_id: replica.id,
            broker_id: replica.broker,
            lost: replica.lost,
        })
        .collect()
}

/// A partition out of an image.
pub(super) fn partition_from(partition: &pb::Partition) -> Result<Partition, Rejected> {
    let reassign = if partition.target.is_empty() {
        None
    } else {
        Some(Reassign {
            target: replicas_from(&partition.target, true),
            abandoned: replicas_from(&partition.abandoned, true),
            operation: optional_id(&partition.operation_id)?,
        })
    };
    Ok(Partition {
        replicas: replicas_from(&partition.replicas, true),
        revision: partition.revision,
        reassign,
        founding: partition.founding,
    })
}

fn partition_to(number: i32, partition: &Partition) -> pb::Partition {
    let reassign = partition.reassign.as_ref();
    pb::Partition {
        partition: number,
        replicas: replicas_to(&partition.replicas),
        revision: partition.revision,
        founding: partition.founding,
        target: reassign.map_or_else(Vec::new, |change| replicas_to(&change.target)),
        abandoned: reassign.map_or_else(Vec::new, |change| replicas_to(&change.abandoned)),
        operation_id: reassign
            .and_then(|change| change.operation)
            .map(id_bytes)
            .unwrap_or_default(),
    }
}

/// An id that may be left out.
pub(super) fn optional_id(bytes: &[u8]) -> Result<Option<Uuid>, Rejected> {
    if bytes.is_empty() {
        return Ok(None);
    }
    topic_id(bytes).map(Some).ok_or(Rejected::Malformed("id"))
}

/// The command that would create this topic as it is, for an image.
pub(super) fn topic_to(topic: &Topic) -> pb::CreateTopic {
    pb::CreateTopic {
        name: topic.name.clone(),
        topic_id: id_bytes(topic.id),
        partitions: topic
            .numbered()
            .map(|(number, partition)| partition_to(number, partition))
            .collect(),
        replication_factor: topic.replication_factor,
        config: topic.config.clone().into_iter().collect(),
        created_at_ms: topic.created_at_ms,
    }
}
