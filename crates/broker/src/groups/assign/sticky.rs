//! `sticky`: who holds something keeps it, what is free goes to who has least, and then who has most gives to who has
//! least until that levels nothing any more.
//!
//! With equal subscriptions the counts differ by at most one, and no fewer moves lead there. With different ones no single
//! move would level more; chains of moves are not looked for.
//!
//! Cost: partitions and members, each times a logarithm. Topics with the same subscribers share one heap of them, whose
//! entries may be out of date and are put right when they come up.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use super::{Demand, NONE};

/// Where each partition would rather go: the free ones are offered there first.
pub(super) struct Preference<'a> {
    /// For each partition, or [`NONE`].
    pub(super) wanted: &'a [u32],
}

pub(super) fn assign(demand: &Demand<'_>) -> Vec<u32> {
    from(demand, &demand.held, None)
}

/// As [`assign`], beginning with other owners, and with partitions first put where they would rather be.
pub(super) fn from(
    demand: &Demand<'_>,
    owners: &[u32],
    preference: Option<Preference<'_>>,
) -> Vec<u32> {
    let mut state = State::new(demand);
    state.keep(owners);
    if let Some(preference) = preference {
        state.grant(preference.wanted);
    }
    state.give_free();
    state.level();
    state.owners
}

struct State<'a> {
    demand: &'a Demand<'a>,
    topic_of: Vec<u32>,
    /// For each topic, the class of topics with its subscribers.
    class_of: Vec<u32>,
    /// For each member, the classes of its topics.
    classes: Vec<Vec<u32>>,
    /// For each class, members with the least first; an entry counts while its count is the member's.
    least: Vec<BinaryHeap<Reverse<(u32, u32)>>>,
    counts: Vec<u32>,
    owners: Vec<u32>,
}

impl<'a> State<'a> {
    fn new(demand: &'a Demand<'a>) -> State<'a> {
        let members = demand.members.len();
        let mut by_subscribers: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut class_of = Vec::with_capacity(demand.topics.len());
        for subscribers in demand.subscribers() {
            let next = by_subscribers.len() as u32;
            class_of.push(*by_subscribers.entry(subscribers).or_insert(next));
        }
        let mut least = vec![BinaryHeap::new(); by_subscribers.len()];
        let mut classes = vec![Vec::new(); members];
        for (subscribers, class) in by_subscribers {
            for member in &subscribers {
                classes[*member as usize].push(class);
            }
            let entries = subscribers.into_iter().map(|member| Reverse((0, member)));
            least[class as usize] = entries.collect();
        }
        State {
            topic_of: demand.topic_of(),
            class_of,
            classes,
            least,
            counts: vec![0; members],
            owners: vec![NONE; demand.held.len()],
            demand,
        }
    }

    fn wants(&self, member: u32, partition: u32) -> bool {
        let topic = self.topic_of[partition as usize];
        let wish = self.demand.members.get(member as usize);
        wish.is_some_and(|wish| wish.topics.binary_search(&topic).is_ok())
    }

    fn keep(&mut self, owners: &[u32]) {
        for (partition, member) in (0..).zip(owners.iter().copied()) {
            if member != NONE && self.wants(member, partition) {
                self.take(partition, member);
            }
        }
    }

    fn take(&mut self, partition: u32, member: u32) {
        self.owners[partition as usize] = member;
        self.counts[member as usize] += 1;
    }

    /// Puts partitions where they would rather be; what that unlevels is levelled later.
    fn grant(&mut self, wanted: &[u32]) {
        for (partition, member) in wanted.iter().enumerate() {
            let before = self.owners[partition];
            if *member == NONE || *member == before {
                continue;
            }
            if before != NONE {
                self.counts[before as usize] -= 1;
            }
            self.take(partition as u32, *member);
        }
    }

    /// The subscriber of a class that has least.
    fn least_of(&mut self, class: u32) -> Option<u32> {
        let heap = &mut self.least[class as usize];
        loop {
            let Reverse((count, member)) = heap.peek().copied()?;
            let now = self.counts[member as usize];
            if count == now {
                return Some(member);
            }
            heap.pop();
            // One that has less by now has an entry of its own for that.
            if count < now {
                heap.push(Reverse((now, member)));
            }
        }
    }

    fn give_free(&mut self) {
        for partition in 0..self.owners.len() as u32 {
            if self.owners[partition as usize] == NONE {
                let class = self.class_of[self.topic_of[partition as usize] as usize];
                if let Some(member) = self.least_of(class) {
                    self.take(partition, member);
                }
            }
        }
    }

    fn level(&mut self) {
        // What each member has, by topic: any partition of a topic is as good as another.
        let mut has: Vec<HashMap<u32, Vec<u32>>> = vec![HashMap::new(); self.counts.len()];
        for (partition, owner) in self.owners.iter().enumerate() {
            if *owner != NONE {
                let topic = self.topic_of[partition];
                let topics = &mut has[*owner as usize];
                topics.entry(topic).or_default().push(partition as u32);
            }
        }
        let counts = self.counts.iter().enumerate();
        let mut most: BTreeSet<(u32, u32)> = counts.map(|(at, n)| (*n, at as u32)).collect();
        // Each step moves a partition down by at least two, or is done with a member for good or until it gets something.
        while let Some((count, giver)) = most.pop_last() {
            if count < 2 {
                break;
            }
            let Some((topic, taker)) = self.best_move(&has[giver as usize], count) else {
                continue;
            };
            let Some(partition) = self.choose(&mut has[giver as usize], topic, giver, taker) else {
                continue;
            };
            has[taker as usize]
                .entry(topic)
                .or_default()
                .push(partition);
            self.owners[partition as usize] = taker;
            let taken = self.counts[taker as usize];
            self.counts[taker as usize] = taken + 1;
            self.counts[giver as usize] = count - 1;
            for class in &self.classes[giver as usize] {
                self.least[*class as usize].push(Reverse((count - 1, giver)));
            }
            most.insert((count - 1, giver));
            most.remove(&(taken, taker));
            most.insert((taken + 1, taker));
        }
    }

    /// Of the topics that a member has, the one with the neediest subscriber, if a move to it levels.
    fn best_move(&mut self, has: &HashMap<u32, Vec<u32>>, count: u32) -> Option<(u32, u32)> {
        let mut best: Option<(u32, u32, u32)> = None;
        let mut seen = Vec::new();
        let mut topics: Vec<u32> = has
            .iter()
            .filter(|(_, partitions)| !partitions.is_empty())
            .map(|(topic, _)| *topic)
            .collect();
        topics.sort_unstable();
        for topic in topics {
            let class = self.class_of[topic as usize];
            // Topics with the same subscribers have the same neediest.
            if seen.contains(&class) {
                continue;
            }
            seen.push(class);
            if let Some(taker) = self.least_of(class) {
                let has = self.counts[taker as usize];
                if has + 2 <= count && best.is_none_or(|(least, _, _)| has < least) {
                    best = Some((has, topic, taker));
                }
            }
        }
        best.map(|(_, topic, taker)| (topic, taker))
    }

    /// The partition that goes: the one that gains most in nearness, of those the one that its owner does not hold yet, of those
    /// the last.
    fn choose(
        &self,
        has: &mut HashMap<u32, Vec<u32>>,
        topic: u32,
        giver: u32,
        taker: u32,
    ) -> Option<u32> {
        let partitions = has.get_mut(&topic)?;
        let racks = self.demand.members[giver as usize].rack.is_some()
            || self.demand.members[taker as usize].rack.is_some();
        let value = |partition: u32| {
            let gain = if racks {
                i16::from(self.demand.nearness(topic, partition, taker))
                    - i16::from(self.demand.nearness(topic, partition, giver))
            } else {
                0
            };
            let free = self.demand.held[partition as usize] != giver;
            (free, gain)
        };
        // Without racks the last is as good as any that is held; those given just now come last.
        let at = match racks {
            false => partitions.len().checked_sub(1)?,
            true => (0..partitions.len()).max_by_key(|at| value(partitions[*at]))?,
        };
        Some(partitions.swap_remove(at))
    }
}
