//! Commands about brokers and the feature level.

use std::sync::Arc;

use timberline_proto::internal as pb;
use uuid::Uuid;

use super::broker::{broker_from, state_from};
use super::operation::operation_from;
use super::{BrokerState, Effect, Ended, OperationResult, Partition, Rejected, Table, Topic};

impl Table {
    /// A broker says who it is. Its state is not its own to say. With another directory, what it had is lost.
    pub(super) fn register(&mut self, register: &pb::RegisterBroker) -> Result<Effect, Rejected> {
        let id = register.broker_id;
        let known = self.brokers.get(&id);
        let state = known.map_or(BrokerState::Active, |known| known.state);
        let broker = broker_from(register, state)?;
        if !broker.supports(self.feature_level()) {
            return Err(Rejected::FeatureLevel);
        }
        let other_disk = known.is_some_and(|known| known.directory != broker.directory);
        self.brokers.insert(id, broker);
        let lost = if other_disk {
            // Its tombstones went with the disk.
            self.tombstones.retain(|_, broker| *broker != id);
            self.lose_replicas(id)
        } else {
            Vec::new()
        };
        Ok(Effect::Broker { id, lost })
    }

    fn lose_replicas(&mut self, broker: i32) -> Vec<Arc<Topic>> {
        let had = |topic: &Topic| {
            let mut partitions = topic.partitions.iter();
            partitions.any(|partition| partition.hosted_on(broker).next().is_some())
        };
        let mut lost = Vec::new();
        for id in self.names.values() {
            if let Some(topic) = self.topics.get_mut(id).filter(|topic| had(topic)) {
                for partition in &mut Arc::make_mut(topic).partitions {
                    partition.lose(broker);
                }
                lost.push(Arc::clone(topic));
            }
        }
        lost
    }

    pub(super) fn set_broker_state(
        &mut self,
        set: &pb::SetBrokerState,
    ) -> Result<(Effect, Uuid), Rejected> {
        let id = set.broker_id;
        let state = pb::BrokerState::try_from(set.state).map_err(|_| Rejected::UnknownKind)?;
        if !self.brokers.contains_key(&id) {
            return Err(Rejected::UnknownBroker);
        }
        let operation = set.operation.as_ref().map(operation_from).transpose()?;
        if let Some(operation) = &operation {
            let mut open = self.operations.open();
            let closing = open.by_ref().filter(|one| one.broker == Some(id)).count();
            self.operations.check(operation, closing)?;
        }
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.state = state_from(state);
        }
        let superseded = Ended::plainly(OperationResult::Superseded, set.at_ms);
        self.operations
            .end(|one| one.broker == Some(id), &superseded);
        let began = operation.as_ref().map_or(Uuid::nil(), |one| one.id);
        operation
            .into_iter()
            .for_each(|one| self.operations.push(one));
        let lost = Vec::new();
        Ok((Effect::Broker { id, lost }, began))
    }

    /// Takes a broker out that is being decommissioned and hosts nothing. Its tombstones go with it.
    pub(super) fn remove_broker(&mut self, remove: &pb::RemoveBroker) -> Result<Effect, Rejected> {
        let id = remove.broker_id;
        let broker = self.brokers.get(&id).ok_or(Rejected::UnknownBroker)?;
        if broker.state != BrokerState::Decommissioning || self.replicas_on(id) > 0 {
            return Err(Rejected::BrokerInUse);
        }
        self.brokers.remove(&id);
        self.tombstones.retain(|_, broker| *broker != id);
        let done = Ended::plainly(OperationResult::Done, remove.at_ms);
        self.operations.end(|one| one.broker == Some(id), &done);
        let lost = Vec::new();
        Ok(Effect::Broker { id, lost })
    }

    /// Replicas that name the broker, lost ones and ones in flight included.
    pub(crate) fn replicas_on(&self, broker: i32) -> usize {
        let on = |partition: &Partition| partition.all().filter(|one| one.broker == broker).count();
        self.partitions()
            .map(|(_, _, partition)| on(partition))
            .sum()
    }

    /// The level only rises, and every registered broker must be able to follow.
    pub(super) fn raise_feature_level(&mut self, level: u32) -> Result<(), Rejected> {
        let all = self.brokers.values().all(|broker| broker.supports(level));
        if level < self.feature_level() || !all {
            return Err(Rejected::FeatureLevel);
        }
        self.feature_level = level;
        Ok(())
    }
}
