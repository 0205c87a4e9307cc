//! Where replicas go. Pure and deterministic: the same brokers, loads and wishes give the same places.
//!
//! - A failure domain is a rack; a broker without a rack is a domain of its own.
//! - A partition's replicas are spread over domains as evenly as their brokers allow: distinct ones while there are enough,
//!   and so no domain holds a majority where three exist and have brokers enough (INV-10).
//! - Among equal domains and brokers the less loaded gets the replica: first by the topic at hand, so that a new broker does
//!   not get the whole of a new topic, then by all topics. A domain's load is taken per broker.
//! - The preferred leader is the replica whose broker leads least, then the one whose domain does.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::table::{Broker, Table};

/// Number of a failure domain, from 0.
pub(crate) type Domain = usize;

/// The brokers with what is placed on them.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    /// Every registered broker, by id.
    seats: Vec<Seat>,
    /// The rack of each domain; empty for a broker without one.
    racks: Vec<String>,
    /// Open brokers in each domain.
    sizes: Vec<usize>,
    all: Load,
    topics: HashMap<Uuid, Load>,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    broker: i32,
    domain: Domain,
    /// May get new replicas.
    open: bool,
}

/// Counts of replicas and preferred leaders; brokers by their seat.
#[derive(Clone, Debug)]
struct Load {
    replicas: Vec<usize>,
    domain_replicas: Vec<usize>,
    leaders: Vec<usize>,
    domain_leaders: Vec<usize>,
}

impl Load {
    fn new(seats: usize, domains: usize) -> Load {
        Load {
            replicas: vec![0; seats],
            domain_replicas: vec![0; domains],
            leaders: vec![0; seats],
            domain_leaders: vec![0; domains],
        }
    }

    fn count(&mut self, seat: usize, domain: Domain, leads: bool, by: isize) {
        let add = |count: &mut usize| *count = count.saturating_add_signed(by);
        add(&mut self.replicas[seat]);
        add(&mut self.domain_replicas[domain]);
        if leads {
            add(&mut self.leaders[seat]);
            add(&mut self.domain_leaders[domain]);
        }
    }
}

/// Compares `a / of_a` with `b / of_b`.
fn ratio(a: usize, of_a: usize, b: usize, of_b: usize) -> Ordering {
    (a as u128 * of_b as u128).cmp(&(b as u128 * of_a as u128))
}

impl Placement {
    /// Brokers of which those that `open` picks may get new replicas. Nothing is placed.
    pub(crate) fn new(
        brokers: &BTreeMap<i32, Broker>,
        open: impl Fn(i32, &Broker) -> bool,
    ) -> Placement {
        let mut racks: Vec<String> = Vec::new();
        let mut sizes = Vec::new();
        let mut named: BTreeMap<&str, Domain> = BTreeMap::new();
        let mut seats = Vec::with_capacity(brokers.len());
        for (&id, broker) in brokers {
            let fresh = racks.len();
            let domain = match broker.rack.as_str() {
                "" => fresh,
                rack => *named.entry(rack).or_insert(fresh),
            };
            if domain == fresh {
                racks.push(broker.rack.clone());
                sizes.push(0);
            }
            let open = open(id, broker);
            sizes[domain] += usize::from(open);
            seats.push(Seat {
                broker: id,
                domain,
                open,
            });
        }
        let all = Load::new(seats.len(), racks.len());
        Placement {
            seats,
            racks,
            sizes,
            all,
            topics: HashMap::new(),
        }
    }

    /// As [`Placement::new`], with everything that the table has, as it will be when the changes in flight are finished.
    pub(crate) fn of(table: &Table, open: impl Fn(i32, &Broker) -> bool) -> Placement {
        let mut placement = Placement::new(table.brokers(), open);
        for (topic, _, partition) in table.partitions() {
            let brokers = partition.target().iter().map(|replica| replica.broker);
            placement.add(topic.id, brokers);
        }
        placement
    }

    fn seat(&self, broker: i32) -> Option<usize> {
        let at = self.seats.binary_search_by_key(&broker, |seat| seat.broker);
        at.ok()
    }

    /// The failure domain of a registered broker.
    pub(crate) fn domain(&self, broker: i32) -> Option<Domain> {
        Some(self.seats[self.seat(broker)?].domain)
    }

    /// The rack of a domain; empty for a broker without one.
    pub(crate) fn rack(&self, domain: Domain) -> &str {
        self.racks.get(domain).map_or("", String::as_str)
    }

    /// Domains that have a broker that may get new replicas.
    pub(crate) fn open_domains(&self) -> usize {
        self.sizes.iter().filter(|size| **size > 0).count()
    }

    /// Brokers that may get new replicas, in the order of their ids.
    pub(crate) fn open_brokers(&self) -> impl Iterator<Item = i32> + '_ {
        let open = self.seats.iter().filter(|seat| seat.open);
        open.map(|seat| seat.broker)
    }

    /// Replicas that a broker has, of all topics.
    pub(crate) fn replicas(&self, broker: i32) -> usize {
        self.seat(broker).map_or(0, |seat| self.all.replicas[seat])
    }

    /// Replicas that a broker has of one topic.
    pub(crate) fn replicas_of(&self, topic: Uuid, broker: i32) -> usize {
        let load = self.topics.get(&topic);
        load.zip(self.seat(broker))
            .map_or(0, |(load, seat)| load.replicas[seat])
    }

    /// Partitions of which a broker is the preferred leader.
    pub(crate) fn leaders(&self, broker: i32) -> usize {
        self.seat(broker).map_or(0, |seat| self.all.leaders[seat])
    }

    fn count(&mut self, topic: Uuid, broker: i32, leads: bool, by: isize) {
        let Some(seat) = self.seat(broker) else {
            return;
        };
        let domain = self.seats[seat].domain;
        let (seats, domains) = (self.seats.len(), self.racks.len());
        self.all.count(seat, domain, leads, by);
        let load = self.topics.entry(topic);
        let load = load.or_insert_with(|| Load::new(seats, domains));
        load.count(seat, domain, leads, by);
    }

    /// Counts a partition's replicas, the preferred leader first.
    pub(crate) fn add(&mut self, topic: Uuid, brokers: impl Iterator<Item = i32>) {
        for (rank, broker) in brokers.enumerate() {
            self.count(topic, broker, rank == 0, 1);
        }
    }

    /// Counts a replica at another broker; `leads` says whether it is its partition's preferred leader.
    pub(crate) fn shift(&mut self, topic: Uuid, from: i32, to: i32, leads: bool) {
        self.count(topic, from, leads, -1);
        self.count(topic, to, leads, 1);
    }

    /// Counts another broker as a partition's preferred leader.
    pub(crate) fn lead(&mut self, topic: Uuid, from: i32, to: i32) {
        for (broker, leads, by) in [
            (from, true, -1),
            (from, false, 1),
            (to, false, -1),
            (to, true, 1),
        ] {
            self.count(topic, broker, leads, by);
        }
    }

    /// Replicas in each domain.
    pub(crate) fn spread(&self, brokers: &[i32]) -> Vec<usize> {
        let mut spread = vec![0; self.racks.len()];
        for domain in brokers.iter().filter_map(|&broker| self.domain(broker)) {
            spread[domain] += 1;
        }
        spread
    }

    /// The domain that has more replicas than it must, if there is one, and how many it would have with one of them moved
    /// to where there are fewest.
    pub(crate) fn overfull(&self, brokers: &[i32]) -> Option<Overfull> {
        let spread = self.spread(brokers);
        let free = |seat: &&Seat| seat.open && !brokers.contains(&seat.broker);
        let free = self.seats.iter().filter(free);
        let fewest = free.map(|seat| spread[seat.domain]).min()?;
        let most = spread.iter().copied().max()?;
        let domain = spread.iter().position(|count| *count == most)?;
        (fewest + 1 < most).then_some(Overfull {
            domain,
            replicas: most,
            fewest,
        })
    }

    /// The best broker for one more replica of a partition that has replicas at `held`; never one of `held` or one that
    /// `allow` refuses.
    pub(crate) fn choose(
        &self,
        topic: Uuid,
        held: &[i32],
        allow: impl Fn(i32, Domain) -> bool,
    ) -> Option<i32> {
        let spread = self.spread(held);
        let none = Load::new(self.seats.len(), self.racks.len());
        let mine = self.topics.get(&topic).unwrap_or(&none);
        let free = self.seats.iter().enumerate().filter(|(_, seat)| {
            seat.open && !held.contains(&seat.broker) && allow(seat.broker, seat.domain)
        });
        let best = free.min_by(|(a, x), (b, y)| {
            let (of_x, of_y) = (self.sizes[x.domain], self.sizes[y.domain]);
            let by_domain = |load: &[usize]| ratio(load[x.domain], of_x, load[y.domain], of_y);
            spread[x.domain]
                .cmp(&spread[y.domain])
                .then_with(|| by_domain(&mine.domain_replicas))
                .then_with(|| by_domain(&self.all.domain_replicas))
                .then_with(|| x.domain.cmp(&y.domain))
                .then_with(|| mine.replicas[*a].cmp(&mine.replicas[*b]))
                .then_with(|| self.all.replicas[*a].cmp(&self.all.replicas[*b]))
                .then_with(|| x.broker.cmp(&y.broker))
        });
        best.map(|(_, seat)| seat.broker)
    }

    /// Places one new partition and counts it: brokers, the preferred leader first. Fewer than `factor` when there are not
    /// as many open brokers.
    pub(crate) fn place(&mut self, topic: Uuid, factor: usize) -> Vec<i32> {
        let mut brokers = Vec::with_capacity(factor.min(self.seats.len()));
        while brokers.len() < factor {
            match self.choose(topic, &brokers, |_, _| true) {
                Some(broker) => brokers.push(broker),
                None => break,
            }
        }
        if let Some(leader) = self.choose_leader(topic, &brokers) {
            let turn = self.leaders(brokers[leader]);
            let leader = brokers.remove(leader);
            // Who stands next when the leader dies takes turns, too.
            brokers.sort_unstable();
            if !brokers.is_empty() {
                let turn = turn % brokers.len();
                brokers.rotate_left(turn);
            }
            brokers.insert(0, leader);
        }
        self.add(topic, brokers.iter().copied());
        brokers
    }

    /// Position of the broker that should be the preferred leader.
    fn choose_leader(&self, topic: Uuid, brokers: &[i32]) -> Option<usize> {
        let none = Load::new(self.seats.len(), self.racks.len());
        let mine = self.topics.get(&topic).unwrap_or(&none);
        let seats = brokers.iter().enumerate();
        let seats = seats.filter_map(|(at, &broker)| Some((at, self.seat(broker)?)));
        let best = seats.min_by(|&(_, a), &(_, b)| {
            let (x, y) = (self.seats[a], self.seats[b]);
            let leaders = &self.all.domain_leaders;
            mine.leaders[a]
                .cmp(&mine.leaders[b])
                .then_with(|| self.all.leaders[a].cmp(&self.all.leaders[b]))
                .then_with(|| {
                    let (of_x, of_y) = (self.sizes[x.domain], self.sizes[y.domain]);
                    ratio(leaders[x.domain], of_x, leaders[y.domain], of_y)
                })
                .then_with(|| x.broker.cmp(&y.broker))
        });
        best.map(|(at, _)| at)
    }
}

/// A domain with more of a partition's replicas than it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overfull {
    pub(crate) domain: Domain,
    pub(crate) replicas: usize,
    /// What the emptiest domain with a free broker has.
    pub(crate) fewest: usize,
}

/// A majority of `voters`.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}
