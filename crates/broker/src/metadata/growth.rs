//! Internal topics grow with the cluster: made on one broker, they get their three replicas when there are three. Pure.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::moves::MOVES_MAX;
use super::placement::Placement;
use super::table::{Broker, Table};
use crate::topic::name::is_internal;

/// Replicas that a partition of an internal topic is to have. Two would be no safer than one when either goes.
const REPLICAS: usize = 3;

/// A partition that is to have replicas on further brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    pub(crate) brokers: Vec<i32>,
}

/// What may begin now: as many as may be in flight beside the changes that are, and only where all replicas live.
pub(crate) fn growth(table: &Table, live: &BTreeSet<i32>) -> Vec<Growth> {
    let open = |id, broker: &Broker| broker.is_active() && live.contains(&id);
    let mut placement = Placement::of(table, open);
    if placement.open_brokers().count() < REPLICAS {
        return Vec::new();
    }
    let partitions = table.partitions();
    let in_flight = partitions.filter(|(_, _, partition)| partition.reassign.is_some());
    let room = MOVES_MAX.saturating_sub(in_flight.count());
    let small = table.partitions().filter(|(topic, _, partition)| {
        let mut replicas = partition.replicas.iter();
        is_internal(&topic.name)
            && partition.reassign.is_none()
            && partition.replicas.len() < REPLICAS
            && replicas.all(|one| !one.lost && live.contains(&one.broker))
    });
    let mut growth = Vec::new();
    for (topic, number, partition) in small.take(room) {
        let mut held: Vec<i32> = partition.replicas.iter().map(|one| one.broker).collect();
        let mut brokers = Vec::new();
        while held.len() < REPLICAS {
            let Some(broker) = placement.choose(topic.id, &held, |_, _| true) else {
                break;
            };
            held.push(broker);
            brokers.push(broker);
        }
        if held.len() == REPLICAS {
            placement.add(topic.id, brokers.iter().copied());
            growth.push(Growth {
                topic: topic.id,
                partition: number,
                brokers,
            });
        }
    }
    growth
}
