//! Commands that change which replicas a partition has.
//!
//! ```text
//!  in force {1,2,3} ── Reassign target {1,2,4} ──► 4 is made, caught up as a learner, joint ── Finish ──► {1,2,4}, 3 buried
//!                                             └─ Cancel ──► target {1,2,3} again, 4 abandoned ── Finish ──► {1,2,3}, 4 buried
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use timberline_proto::internal as pb;
use uuid::Uuid;

use super::operation::operation_from;
use super::topic::{optional_id, partition_mut, replicas_from};
use super::{
    Effect, Ended, OperationKind, OperationResult, Partition, Reassign, Rejected, Replica, Table,
    Topic, topic_id,
};

impl Table {
    fn partition(&self, topic: &[u8], number: i32) -> Result<(Uuid, &Partition), Rejected> {
        let id = topic_id(topic).ok_or(Rejected::Malformed("topic id"))?;
        let topic = self.topics.get(&id).ok_or(Rejected::UnknownTopic)?;
        let partition = topic.partition(number).ok_or(Rejected::UnknownPartition)?;
        Ok((id, partition))
    }

    /// Changes a partition that exists, and gives its topic.
    fn change_partition(
        &mut self,
        id: Uuid,
        number: i32,
        change: impl FnOnce(&mut Partition),
    ) -> Result<Arc<Topic>, Rejected> {
        let topic = self.topics.get_mut(&id).ok_or(Rejected::UnknownTopic)?;
        change(partition_mut(topic, number)?);
        Ok(Arc::clone(topic))
    }

    /// Begins a change; a new order of the same replicas is in force at once.
    pub(super) fn reassign(
        &mut self,
        index: u64,
        reassign: &pb::ReassignPartition,
    ) -> Result<(Effect, Uuid), Rejected> {
        let number = reassign.partition;
        let (id, partition) = self.partition(&reassign.topic_id, number)?;
        if partition.reassign.is_some() {
            return Err(Rejected::ChangeInFlight);
        }
        let (target, new) = target_of(partition, &reassign.target)?;
        let removes = target.len() - new.len() < partition.replicas.len();
        let operation = reassign
            .operation
            .as_ref()
            .map(operation_from)
            .transpose()?;
        if let Some(operation) = &operation {
            self.operations.check(operation, 0)?;
        }
        let belongs_to = match &operation {
            Some(operation) => Some(operation.id),
            None => optional_id(&reassign.operation_id)?,
        };
        self.claim(new.iter())?;
        let began = operation.as_ref().map_or(id, |one| one.id);
        let at_once = new.is_empty() && !removes;
        if let Some(mut operation) = operation {
            if at_once {
                let at_ms = operation.started_at_ms;
                operation.ended = Some(Ended::plainly(OperationResult::Done, at_ms));
            }
            self.operations.push(operation);
        }
        let topic = self.change_partition(id, number, |partition| {
            if at_once {
                partition.replicas = target;
                partition.founding = false;
                return;
            }
            partition.revision = index;
            partition.founding = false;
            partition.reassign = Some(Reassign {
                target,
                abandoned: Box::default(),
                operation: belongs_to,
            });
        })?;
        let effect = Effect::Replicas {
            topic,
            partition: number,
            buried: Vec::new(),
        };
        Ok((effect, began))
    }

    /// The target is in force.
    pub(super) fn finish_reassign(
        &mut self,
        index: u64,
        finish: &pb::FinishReassign,
    ) -> Result<Effect, Rejected> {
        let number = finish.partition;
        let (id, partition) = self.partition(&finish.topic_id, number)?;
        let late = finish.revision != 0
            && ![finish.revision, super::INDEX_UNKNOWN].contains(&partition.revision);
        if late || !partition.becomes(&finish.replica_ids) {
            return Err(Rejected::ChangeNotInFlight);
        }
        let buried: Vec<Replica> = partition.removing().copied().collect();
        self.bury(buried.iter());
        let mut operation = None;
        let topic = self.change_partition(id, number, |partition| {
            if let Some(change) = partition.reassign.take() {
                partition.replicas = change.target;
                operation = change.operation;
            }
            partition.revision = index;
            partition.founding = false;
        })?;
        if let Some(operation) = operation {
            let done = Ended::plainly(OperationResult::Done, finish.at_ms);
            self.end_move(operation, &done);
        }
        Ok(Effect::Replicas {
            topic,
            partition: number,
            buried,
        })
    }

    /// What is in force is the target again.
    pub(super) fn cancel_reassign(
        &mut self,
        index: u64,
        cancel: &pb::CancelReassign,
    ) -> Result<Effect, Rejected> {
        let number = cancel.partition;
        let (id, partition) = self.partition(&cancel.topic_id, number)?;
        let adds = partition.adding().next().is_some();
        let removes = partition.removing().next().is_some();
        if !partition.becomes(&cancel.replica_ids) || !(adds || removes) {
            return Err(Rejected::ChangeNotInFlight);
        }
        let abandoned: Vec<Replica> = partition.adding().copied().collect();
        let mut operation = None;
        let topic = self.change_partition(id, number, |partition| {
            partition.revision = index;
            partition.founding = false;
            if let Some(change) = &mut partition.reassign {
                change.target = partition.replicas.clone();
                change.abandoned = change.abandoned.iter().copied().chain(abandoned).collect();
                operation = change.operation.take();
            }
        })?;
        if let Some(operation) = operation {
            let ended = Ended::plainly(OperationResult::Cancelled, cancel.at_ms);
            self.end_move(operation, &ended);
        }
        Ok(Effect::Replicas {
            topic,
            partition: number,
            buried: Vec::new(),
        })
    }

    /// A move of one partition ends with its change; the other kinds are more than one change.
    fn end_move(&mut self, id: Uuid, ended: &Ended) {
        let this = |one: &super::Operation| one.id == id && one.kind == OperationKind::Move;
        self.operations.end(this, ended);
    }

    /// Changes in flight that belong to an operation.
    pub(crate) fn changes_of(&self, operation: Uuid) -> usize {
        let of = |partition: &Partition| {
            let change = partition.reassign.as_ref();
            change.is_some_and(|change| change.operation == Some(operation))
        };
        self.partitions()
            .filter(|(_, _, partition)| of(partition))
            .count()
    }
}

/// The target of a change, and those of its replicas that are new. Replicas that stay are taken from the table.
fn target_of(
    partition: &Partition,
    target: &[pb::Replica],
) -> Result<(Box<[Replica]>, Vec<Replica>), Rejected> {
    if target.is_empty() {
        return Err(Rejected::Malformed("target"));
    }
    let mut target = replicas_from(target, false);
    let mut new = Vec::new();
    let mut brokers = HashSet::new();
    for replica in &mut target {
        let mut old = partition.replicas.iter();
        match old.find(|old| old.id == replica.id) {
            Some(old) => *replica = *old,
            None => new.push(*replica),
        }
        if !brokers.insert(replica.broker) {
            return Err(Rejected::Malformed("target"));
        }
    }
    Ok((target, new))
}
