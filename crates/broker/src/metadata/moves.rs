//! Which replicas should be elsewhere: what is lost, what is on brokers that are gone or leave, what is spread badly, and,
//! when asked, what would level the brokers. Pure: a table and a view of who lives in, moves out.
//!
//! A move replaces one replica of a partition by a new one; a partition has one change in flight at a time. Every plan is
//! complete and in order of urgency; [`admit`] cuts it to what may be in flight at once, so that a plan is made anew when
//! something ends and nothing has to be remembered between.
//!
//! Not here: whether the new replica has caught up, and the steps of the configuration, which are the group's.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use uuid::Uuid;

use super::placement::{Domain, Overfull, Placement, majority};
use super::table::{Broker, BrokerState, Partition, Replica, Table, Topic};

/// Changes of replicas in flight in the cluster.
pub(crate) const MOVES_MAX: usize = 8;
/// Changes in flight that bring a broker a replica.
pub(crate) const MOVES_PER_BROKER_MAX: usize = 2;
/// Moves of one plan to level brokers; what is left is found by the next.
pub(crate) const BALANCE_MOVES_MAX: usize = 1000;
/// Brokers whose numbers of replicas differ by no more are level.
const LEVEL_WITHIN: usize = 1;

/// Who lives, as far as this broker knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Brokers that are connected.
    pub(crate) live: &'a BTreeSet<i32>,
    /// Brokers that have not been for so long that their replicas are to be rebuilt elsewhere.
    pub(crate) gone: &'a BTreeSet<i32>,
}

/// Why a replica should move; the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Its broker came back without it.
    Lost,
    /// Its broker is gone for too long.
    Gone,
    /// Its broker is being decommissioned.
    Decommission,
    /// Its domain has more replicas of the partition than it must.
    Spread,
    /// Its broker has more replicas than others.
    Balance,
}

/// One replica to be replaced by a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    /// Id of the replica that goes.
    pub(crate) replica: u64,
    pub(crate) from: i32,
    /// The same as `from` when only the disk was lost.
    pub(crate) to: i32,
    pub(crate) why: Why,
}

/// A partition whose spread over domains could be better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) topic: Uuid,
    pub(crate) partition: i32,
    /// The rack that has more of its replicas than it must.
    pub(crate) rack: String,
    pub(crate) replicas: usize,
    /// Whether it has a majority of them, so that the rack's loss stops the partition (INV-10).
    pub(crate) majority: bool,
}

/// Partitions whose spread could be better with the brokers that are active, whether or not they live.
pub(crate) fn violations(table: &Table) -> Vec<Violation> {
    let placement = Placement::new(table.brokers(), |_, broker| broker.is_active());
    let all = table.partitions().filter_map(|(topic, number, partition)| {
        let brokers = brokers_of(partition.target());
        let overfull = placement.overfull(&brokers)?;
        Some(Violation {
            topic: topic.id,
            partition: number,
            rack: placement.rack(overfull.domain).to_owned(),
            replicas: overfull.replicas,
            majority: overfull.replicas >= majority(brokers.len()),
        })
    });
    all.collect()
}

fn brokers_of(replicas: &[Replica]) -> Vec<i32> {
    replicas.iter().map(|replica| replica.broker).collect()
}

/// A rack of several brokers of which none lives: then it is the rack that has to come back, and rebuilding its replicas
/// elsewhere would only load those that are left. A rack of one broker is not told apart from its broker.
fn rack_is_gone(table: &Table, view: View<'_>) -> bool {
    let mut racks: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for (id, broker) in table.brokers() {
        if !broker.rack.is_empty() && broker.state != BrokerState::Decommissioning {
            let (brokers, lives) = racks.entry(&broker.rack).or_default();
            *brokers += 1;
            *lives |= view.live.contains(id);
        }
    }
    let mut racks = racks.values();
    racks.any(|(brokers, lives)| *brokers > 1 && !lives)
}

/// Changes in flight that can't end, because a broker they add a replica to is gone, is leaving or has lost it: to be
/// turned back.
pub(crate) fn stuck(table: &Table, view: View<'_>) -> Vec<(Uuid, i32)> {
    let bad = |replica: &Replica| {
        replica.lost
            || view.gone.contains(&replica.broker) && !view.live.contains(&replica.broker)
            || table
                .brokers()
                .get(&replica.broker)
                .is_none_or(|broker| broker.state == BrokerState::Decommissioning)
    };
    let stuck = table
        .partitions()
        .filter(|(_, _, partition)| partition.adding().any(bad));
    stuck.map(|(topic, number, _)| (topic.id, number)).collect()
}

/// Moves that repair: the most urgent first, at most one of a partition, none of one whose replicas are being changed or
/// that has no majority to change them.
pub(crate) fn healing(table: &Table, view: View<'_>) -> Vec<Move> {
    let open = |id, broker: &Broker| broker.is_active() && view.live.contains(&id);
    let mut healing = Healing {
        table,
        view,
        placement: Placement::of(table, open),
        paused: rack_is_gone(table, view),
        domains: domains(table),
        moves: Vec::new(),
    };
    for why in [Why::Lost, Why::Gone, Why::Decommission, Why::Spread] {
        healing.pass(why);
    }
    healing.moves
}

/// Domains of brokers that are not leaving.
fn domains(table: &Table) -> usize {
    let stays = |_, broker: &Broker| broker.state != BrokerState::Decommissioning;
    Placement::new(table.brokers(), stays).open_domains()
}

struct Healing<'a> {
    table: &'a Table,
    view: View<'a>,
    placement: Placement,
    /// Nothing is rebuilt elsewhere while a whole rack is gone.
    paused: bool,
    /// Domains that there are or will be again.
    domains: usize,
    moves: Vec<Move>,
}

impl Healing<'_> {
    fn pass(&mut self, why: Why) {
        let planned: HashSet<(Uuid, i32)> = self.moves.iter().map(Move::key).collect();
        for (topic, number, partition) in self.table.partitions() {
            if partition.reassign.is_some()
                || planned.contains(&(topic.id, number))
                || !self.can_change(partition)
            {
                continue;
            }
            let replicas = &partition.replicas;
            let found = match why {
                Why::Lost => self.lost(replicas),
                Why::Gone => self.gone(topic, replicas),
                Why::Decommission => self.leaving(topic, replicas),
                Why::Spread | Why::Balance => self.spread(topic, replicas),
            };
            let Some((rank, to)) = found else { continue };
            let replica = replicas[rank];
            self.placement
                .shift(topic.id, replica.broker, to, rank == 0);
            self.moves.push(Move {
                topic: topic.id,
                partition: number,
                replica: replica.id,
                from: replica.broker,
                to,
                why,
            });
        }
    }

    fn lives(&self, broker: i32) -> bool {
        self.view.live.contains(&broker)
    }

    /// Whether a majority lives, so that a change can be agreed on.
    fn can_change(&self, partition: &Partition) -> bool {
        let replicas = partition.replicas.iter();
        let usable = replicas.filter(|replica| !replica.lost && self.lives(replica.broker));
        usable.count() >= majority(partition.replicas.len())
    }

    /// A lost replica is made anew where it was. A draining broker gets nothing new; it waits.
    fn lost(&self, replicas: &[Replica]) -> Option<(usize, i32)> {
        let may = |replica: &Replica| {
            let broker = self.table.brokers().get(&replica.broker);
            self.lives(replica.broker) && broker.is_some_and(Broker::is_active)
        };
        let rank = replicas.iter().position(|one| one.lost && may(one))?;
        Some((rank, replicas[rank].broker))
    }

    /// Replicas of a gone broker go elsewhere, but no rack gets a majority of a partition for it where there are three.
    fn gone(&self, topic: &Topic, replicas: &[Replica]) -> Option<(usize, i32)> {
        if self.paused {
            return None;
        }
        let is_gone = |one: &Replica| self.view.gone.contains(&one.broker);
        let mut ranks = replicas.iter();
        let rank = ranks.position(|one| is_gone(one) && !self.lives(one.broker))?;
        let spread = self.placement.spread(&others(replicas, rank));
        let most = majority(replicas.len());
        let three = self.domains >= 3;
        self.choose(topic, replicas, rank, |domain| {
            !three || spread[domain] + 1 < most
        })
    }

    fn leaving(&self, topic: &Topic, replicas: &[Replica]) -> Option<(usize, i32)> {
        let leaves = |one: &Replica| {
            let broker = self.table.brokers().get(&one.broker);
            broker.is_none_or(|broker| broker.state == BrokerState::Decommissioning)
        };
        let rank = replicas.iter().position(leaves)?;
        self.choose(topic, replicas, rank, |_| true)
    }

    /// One replica out of the fullest domain, the preferred leader last.
    fn spread(&self, topic: &Topic, replicas: &[Replica]) -> Option<(usize, i32)> {
        let brokers = brokers_of(replicas);
        let Overfull {
            domain,
            replicas: most,
            ..
        } = self.placement.overfull(&brokers)?;
        let rank = brokers
            .iter()
            .rposition(|&broker| self.placement.domain(broker) == Some(domain))?;
        let spread = self.placement.spread(&brokers);
        self.choose(topic, replicas, rank, |to| spread[to] + 1 < most)
    }

    /// A place for the replica of this rank that no other replica of the partition is on.
    fn choose(
        &self,
        topic: &Topic,
        replicas: &[Replica],
        rank: usize,
        allow: impl Fn(Domain) -> bool,
    ) -> Option<(usize, i32)> {
        let others = others(replicas, rank);
        let from = replicas[rank].broker;
        let allow = |broker, domain| broker != from && allow(domain);
        let to = self.placement.choose(topic.id, &others, allow)?;
        Some((rank, to))
    }
}

fn others(replicas: &[Replica], rank: usize) -> Vec<i32> {
    let others = replicas.iter().enumerate().filter(|(at, _)| *at != rank);
    others.map(|(_, replica)| replica.broker).collect()
}

impl Move {
    fn key(&self) -> (Uuid, i32) {
        (self.topic, self.partition)
    }
}

/// What of a plan may begin now.
pub(crate) fn admit(table: &Table, plan: &[Move]) -> Vec<Move> {
    let mut in_flight = 0;
    let mut receiving: BTreeMap<i32, usize> = BTreeMap::new();
    for (_, _, partition) in table.partitions() {
        in_flight += usize::from(partition.reassign.is_some());
        for replica in partition.adding() {
            *receiving.entry(replica.broker).or_default() += 1;
        }
    }
    let mut admitted = Vec::new();
    for one in plan {
        if in_flight >= MOVES_MAX {
            break;
        }
        let receives = receiving.entry(one.to).or_default();
        if *receives < MOVES_PER_BROKER_MAX {
            *receives += 1;
            in_flight += 1;
            admitted.push(*one);
        }
    }
    admitted
}

/// Moves that level the replicas over active, living brokers without spreading any partition worse: only as many as are
/// needed, at most [`BALANCE_MOVES_MAX`]. Partitions with a change in flight, or not all of whose brokers live, stay.
pub(crate) fn balance(table: &Table, live: &BTreeSet<i32>) -> Vec<Move> {
    let open = |id, broker: &Broker| broker.is_active() && live.contains(&id);
    let mut balance = Balance {
        placement: Placement::of(table, open),
        movable: BTreeMap::new(),
    };
    for (topic, number, partition) in table.partitions() {
        let whole = partition.replicas.iter();
        if partition.reassign.is_some() || !whole.clone().all(|one| live.contains(&one.broker)) {
            continue;
        }
        for (rank, replica) in whole.enumerate() {
            let movable = Movable {
                topic: topic.id,
                number,
                rank,
                replica: *replica,
                partition,
            };
            let of = balance.movable.entry(replica.broker).or_default();
            of.push(movable);
        }
    }
    let mut moves = Vec::new();
    while moves.len() < BALANCE_MOVES_MAX {
        match balance.next() {
            Some(one) => moves.push(one),
            None => break,
        }
    }
    moves
}

struct Balance<'a> {
    placement: Placement,
    /// Replicas of partitions that are not moved yet, by broker.
    movable: BTreeMap<i32, Vec<Movable<'a>>>,
}

#[derive(Clone, Copy)]
struct Movable<'a> {
    topic: Uuid,
    number: i32,
    rank: usize,
    replica: Replica,
    partition: &'a Partition,
}

impl<'a> Balance<'a> {
    /// The next move, from a broker with many to one with few.
    fn next(&mut self) -> Option<Move> {
        let mut brokers: Vec<i32> = self.placement.open_brokers().collect();
        brokers.sort_by_key(|&broker| (self.placement.replicas(broker), broker));
        for &from in brokers.iter().rev() {
            for &to in &brokers {
                if self.placement.replicas(from) <= self.placement.replicas(to) + LEVEL_WITHIN {
                    break;
                }
                if let Some(found) = self.best(from, to) {
                    return Some(self.take(found, to));
                }
            }
        }
        None
    }

    /// The replica whose topic gains most by moving, one that is no preferred leader before one that is.
    fn best(&self, from: i32, to: i32) -> Option<Movable<'a>> {
        let movable = self.movable.get(&from)?.iter();
        let fits = movable.filter(|one| self.fits(one, to));
        let gain = |one: &Movable<'_>| {
            let on = |broker| self.placement.replicas_of(one.topic, broker);
            on(from) as i64 - on(to) as i64
        };
        fits.copied().max_by_key(|one| {
            let first = std::cmp::Reverse((one.replica.id, one.number));
            (gain(one), one.rank > 0, first)
        })
    }

    fn fits(&self, one: &Movable<'_>, to: i32) -> bool {
        let brokers = brokers_of(&one.partition.replicas);
        let domain = |broker| self.placement.domain(broker);
        let (Some(here), Some(there)) = (domain(one.replica.broker), domain(to)) else {
            return false;
        };
        let spread = self.placement.spread(&brokers);
        !brokers.contains(&to) && (here == there || spread[there] < spread[here])
    }

    fn take(&mut self, one: Movable<'_>, to: i32) -> Move {
        let planned = Move {
            topic: one.topic,
            partition: one.number,
            replica: one.replica.id,
            from: one.replica.broker,
            to,
            why: Why::Balance,
        };
        let leads = one.rank == 0;
        self.placement.shift(planned.topic, planned.from, to, leads);
        for movable in self.movable.values_mut() {
            movable.retain(|other| (other.topic, other.number) != planned.key());
        }
        planned
    }
}
