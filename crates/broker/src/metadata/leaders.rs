//! Who should lead what, and what a broker's or a rack's end would cost. Pure.
//!
//! Leadership is soft state: it comes in as a view and goes out as transfers, never through the metadata log. Only which
//! replica is *preferred* stands in the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::placement::{Placement, majority};
use super::table::{Broker, Partition, Replica, Table};

/// Transfers of one round; what is left is found by the next.
pub(crate) const LEADER_MOVES_MAX: usize = 256;

/// A leadership to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaderMove {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    pub(crate) from: i32,
    pub(crate) to: i32,
}

/// Leaderships that should move: off brokers that drain or leave to an in-sync replica whose broker leads least, and back
/// to preferred leaders that are in sync. Partitions whose replicas are being changed keep their leader unless it drains.
pub(crate) fn leader_moves(
    table: &Table,
    leaders: &HashMap<(Uuid, i32), i32>,
    in_sync: impl Fn(Uuid, i32) -> Vec<i32>,
    live: &BTreeSet<i32>,
) -> Vec<LeaderMove> {
    let may_lead = |broker: i32| {
        let known = table.brokers().get(&broker);
        live.contains(&broker) && known.is_some_and(Broker::is_active)
    };
    let mut leads: BTreeMap<i32, usize> = BTreeMap::new();
    for leader in leaders.values() {
        *leads.entry(*leader).or_default() += 1;
    }
    let mut off = Vec::new();
    let mut back = Vec::new();
    for (topic, number, partition) in table.partitions() {
        let Some(&from) = leaders.get(&(topic.id, number)) else {
            continue;
        };
        let active = table.brokers().get(&from).is_some_and(Broker::is_active);
        let preferred = partition.replicas.first().map(|replica| replica.broker);
        let settled = active && (preferred == Some(from) || partition.reassign.is_some());
        if settled {
            continue;
        }
        let in_sync = in_sync(topic.id, number);
        let can = |replica: &&Replica| {
            let broker = replica.broker;
            broker != from && !replica.lost && may_lead(broker) && in_sync.contains(&broker)
        };
        let mut candidates = partition.replicas.iter().filter(can);
        let to = if active {
            candidates.find(|replica| Some(replica.broker) == preferred)
        } else {
            candidates.min_by_key(|replica| leads.get(&replica.broker).copied().unwrap_or(0))
        };
        let Some(to) = to.map(|replica| replica.broker) else {
            continue;
        };
        *leads.entry(from).or_default() -= 1;
        *leads.entry(to).or_default() += 1;
        let planned = LeaderMove {
            topic: topic.id,
            partition: number,
            from,
            to,
        };
        if active { &mut back } else { &mut off }.push(planned);
    }
    off.append(&mut back);
    off.truncate(LEADER_MOVES_MAX);
    off
}

/// New orders of replicas that level the preferred leaders over active brokers: partition, and its replicas with the one
/// that is to be preferred first. Nothing but the order changes.
pub(crate) fn level_preferred(table: &Table) -> Vec<(Uuid, i32, Vec<Replica>)> {
    let mut placement = Placement::of(table, |_, broker| broker.is_active());
    let active: BTreeSet<i32> = placement.open_brokers().collect();
    let mut orders = Vec::new();
    for (topic, number, partition) in table.partitions() {
        let Some(first) = partition.replicas.first() else {
            continue;
        };
        if partition.reassign.is_some() || !active.contains(&first.broker) {
            continue;
        }
        let rest = partition.replicas.iter().enumerate().skip(1);
        let rest = rest.filter(|(_, replica)| !replica.lost && active.contains(&replica.broker));
        let least = rest.min_by_key(|(_, replica)| placement.leaders(replica.broker));
        let Some((rank, to)) = least else { continue };
        if placement.leaders(to.broker) + 1 < placement.leaders(first.broker) {
            let mut replicas = partition.replicas.to_vec();
            replicas.swap(0, rank);
            placement.lead(topic.id, first.broker, to.broker);
            orders.push((topic.id, number, replicas));
        }
    }
    orders
}

/// A partition that would be without a majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtRisk {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    /// Voters that are in sync and would be left.
    pub(crate) left: usize,
    /// Voters that a majority needs.
    pub(crate) needed: usize,
}

/// Partitions with a replica on the broker that would have no majority in sync if it stopped now. Empty: it can stop.
pub(crate) fn can_stop(
    table: &Table,
    in_sync: impl Fn(Uuid, i32) -> Vec<i32>,
    broker: i32,
) -> Vec<AtRisk> {
    let hosted = table
        .partitions()
        .filter(|(_, _, partition)| partition.hosted_on(broker).next().is_some());
    let at_risk = hosted.filter_map(|(topic, number, partition)| {
        let in_sync = in_sync(topic.id, number);
        let (left, needed) = left_without(partition, &in_sync, |one| one == broker)?;
        Some(AtRisk {
            topic: topic.id,
            partition: number,
            left,
            needed,
        })
    });
    at_risk.collect()
}

/// The same of a group that is no topic's, say the metadata's: its voters, twice while they change. `None`: the broker can
/// stop, or has no vote.
pub(crate) fn group_at_risk(
    voters: &[Vec<i32>],
    in_sync: &[i32],
    broker: i32,
) -> Option<(usize, usize)> {
    let with_it = voters.iter().filter(|group| group.contains(&broker));
    let mut at_risk = with_it.filter_map(|group| {
        let left = group
            .iter()
            .filter(|one| **one != broker && in_sync.contains(one))
            .count();
        let needed = majority(group.len());
        (left < needed).then_some((left, needed))
    });
    at_risk.next()
}

/// In-sync voters left without some brokers, and how many a majority needs, if they are too few. While a new replica is in
/// sync the group may stand in a joint configuration, and then needs a majority of what it becomes as well.
fn left_without(
    partition: &Partition,
    in_sync: &[i32],
    without: impl Fn(i32) -> bool,
) -> Option<(usize, usize)> {
    let check = |voters: &[Replica]| {
        let stays =
            |one: &&Replica| !one.lost && in_sync.contains(&one.broker) && !without(one.broker);
        let left = voters.iter().filter(stays).count();
        let needed = majority(voters.len());
        (left < needed).then_some((left, needed))
    };
    let mut adding = partition.adding();
    let may_be_joint =
        partition.reassign.is_some() && adding.all(|new| in_sync.contains(&new.broker));
    check(&partition.replicas).or_else(|| {
        let target = may_be_joint.then(|| partition.target());
        target.and_then(check)
    })
}

/// A failure domain whose loss would stop partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fragile {
    /// The rack; empty for a broker without one.
    pub(crate) rack: String,
    /// A broker of it.
    pub(crate) broker: i32,
    /// Partitions that would be without a majority.
    pub(crate) partitions: usize,
}

/// Whether the loss of any one rack leaves every partition a majority: the racks of which that is not true. Empty: it is.
/// A broker without a rack counts as one.
pub(crate) fn rack_loss_survivable(
    table: &Table,
    in_sync: impl Fn(Uuid, i32) -> Vec<i32>,
) -> Vec<Fragile> {
    let placement = Placement::new(table.brokers(), |_, _| true);
    let mut fragile: BTreeMap<usize, Fragile> = BTreeMap::new();
    for (topic, number, partition) in table.partitions() {
        let in_sync = in_sync(topic.id, number);
        let voters = partition.all().map(|replica| replica.broker);
        let of: BTreeMap<usize, i32> = voters
            .filter_map(|broker| Some((placement.domain(broker)?, broker)))
            .collect();
        for (domain, broker) in of {
            let inside = |one| placement.domain(one) == Some(domain);
            if left_without(partition, &in_sync, inside).is_some() {
                let entry = fragile.entry(domain).or_insert_with(|| Fragile {
                    rack: placement.rack(domain).to_owned(),
                    broker,
                    partitions: 0,
                });
                entry.partitions += 1;
            }
        }
    }
    fragile.into_values().collect()
}
