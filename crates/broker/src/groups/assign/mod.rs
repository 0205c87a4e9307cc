//! Assignors: pure functions from who wants what, and who holds what, to who should hold it.
//!
//! Members, topics and partitions are numbers here; the same question gets the same answer everywhere. Partitions of all topics are numbered
//! through, so that ten thousand of them are one array.

mod rack;
mod range;
mod sticky;
#[cfg(test)]
mod tests;

use super::topics::Rack;

/// Nobody.
pub(crate) const NONE: u32 = u32::MAX;

/// How partitions are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Assignor {
    /// Level, and with as few moves as that needs.
    #[default]
    Sticky,
    /// A contiguous range of each topic for each member, in the order of the members.
    Range,
    /// As sticky, and near to replicas where that does not cost balance.
    RackAware,
}

impl Assignor {
    pub(crate) const ALL: [Assignor; 3] = [Assignor::Sticky, Assignor::Range, Assignor::RackAware];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Assignor::Sticky => "sticky",
            Assignor::Range => "range",
            Assignor::RackAware => "rack-aware",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Assignor> {
        Assignor::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// A question for an assignor.
pub(crate) struct Demand<'a> {
    /// In an order that stays: by id.
    pub(crate) members: Vec<Wish>,
    pub(crate) topics: Vec<TopicOf<'a>>,
    /// For each partition, numbered through, the member that holds it now, or [`NONE`].
    pub(crate) held: Vec<u32>,
}

/// What one member wants.
pub(crate) struct Wish {
    /// Numbers of topics, in order, each once.
    pub(crate) topics: std::rc::Rc<[u32]>,
    pub(crate) rack: Option<Rack>,
}

/// One topic of a demand.
pub(crate) struct TopicOf<'a> {
    /// Racks of each partition's replicas, the preferred leader's first.
    pub(crate) racks: &'a [Box<[Rack]>],
    /// Number of its first partition.
    pub(crate) base: u32,
}

impl TopicOf<'_> {
    fn partitions(&self) -> std::ops::Range<u32> {
        self.base..self.base + self.racks.len() as u32
    }
}

impl Demand<'_> {
    /// The topic of each partition.
    fn topic_of(&self) -> Vec<u32> {
        let mut topic_of = vec![0; self.held.len()];
        for (number, topic) in self.topics.iter().enumerate() {
            for partition in topic.partitions() {
                topic_of[partition as usize] = number as u32;
            }
        }
        topic_of
    }

    /// For each topic its subscribers, in order.
    fn subscribers(&self) -> Vec<Vec<u32>> {
        let mut subscribers = vec![Vec::new(); self.topics.len()];
        for (member, wish) in self.members.iter().enumerate() {
            for topic in wish.topics.iter() {
                subscribers[*topic as usize].push(member as u32);
            }
        }
        subscribers
    }

    /// How near a member is to a partition: 2 in the rack of its preferred leader, 1 in that of another replica.
    fn nearness(&self, topic: u32, partition: u32, member: u32) -> u8 {
        let Some(rack) = self.members[member as usize].rack else {
            return 0;
        };
        let topic = &self.topics[topic as usize];
        let racks = &topic.racks[(partition - topic.base) as usize];
        match racks.iter().position(|other| *other == rack) {
            Some(0) => 2,
            Some(_) => 1,
            None => 0,
        }
    }
}

/// The member that should hold each partition; [`NONE`] where nobody wants it.
pub(crate) fn assign(assignor: Assignor, demand: &Demand<'_>) -> Vec<u32> {
    match assignor {
        Assignor::Sticky => sticky::assign(demand),
        Assignor::Range => range::assign(demand),
        Assignor::RackAware => rack::assign(demand),
    }
}
