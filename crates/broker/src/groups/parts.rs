//! Sets of partitions, grouped by topic: what a member holds, what it should hold, what moves.

use std::collections::BTreeMap;

/// A topic's id: the 16 bytes of its UUID as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TopicId(pub(crate) u128);

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tp {
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
}

/// A set of partitions. Numbers are kept in order, four bytes each; a topic without any is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(BTreeMap<TopicId, Vec<u32>>);

impl Parts {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    pub(crate) fn contains(&self, tp: Tp) -> bool {
        let numbers = self.0.get(&tp.topic);
        numbers.is_some_and(|numbers| numbers.binary_search(&tp.partition).is_ok())
    }

    /// Whether it was new. Cheap in ascending order.
    pub(crate) fn insert(&mut self, tp: Tp) -> bool {
        let numbers = self.0.entry(tp.topic).or_default();
        if numbers.last().is_none_or(|last| *last < tp.partition) {
            numbers.push(tp.partition);
            return true;
        }
        match numbers.binary_search(&tp.partition) {
            Ok(_) => false,
            Err(at) => {
                numbers.insert(at, tp.partition);
                true
            }
        }
    }

    /// In order of topic and number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tp> + '_ {
        self.0.iter().flat_map(|(topic, numbers)| {
            numbers.iter().map(|partition| Tp {
                topic: *topic,
                partition: *partition,
            })
        })
    }

    /// Topics with their partitions, in order.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (TopicId, &[u32])> {
        self.0.iter().map(|(topic, all)| (*topic, all.as_slice()))
    }

    /// Those that `keep` says yes to.
    pub(crate) fn filter(&self, mut keep: impl FnMut(Tp) -> bool) -> Parts {
        self.iter().filter(|tp| keep(*tp)).collect()
    }

    /// Those that are not in `other`.
    pub(crate) fn minus(&self, other: &Parts) -> Parts {
        self.filter(|tp| !other.contains(tp))
    }

    /// Those that are in both.
    pub(crate) fn and(&self, other: &Parts) -> Parts {
        self.filter(|tp| other.contains(tp))
    }

    pub(crate) fn add(&mut self, other: &Parts) {
        for tp in other.iter() {
            self.insert(tp);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Parts) {
        if !other.is_empty() {
            *self = self.minus(other);
        }
    }

    /// Takes out what it has of a topic.
    pub(crate) fn remove_topic(&mut self, topic: TopicId) -> bool {
        self.0.remove(&topic).is_some()
    }
}

impl FromIterator<Tp> for Parts {
    fn from_iter<I: IntoIterator<Item = Tp>>(all: I) -> Parts {
        let mut parts = Parts::default();
        for tp in all {
            parts.insert(tp);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(of: &[(u128, u32)]) -> Parts {
        let tp = |(topic, partition): &(u128, u32)| Tp {
            topic: TopicId(*topic),
            partition: *partition,
        };
        of.iter().map(tp).collect()
    }

    #[test]
    fn sets_are_sets() {
        let a = parts(&[(1, 3), (1, 1), (2, 0), (1, 3)]);
        let b = parts(&[(1, 1), (3, 7)]);
        assert_eq!(a.len(), 3);
        assert_eq!(a.minus(&b), parts(&[(1, 3), (2, 0)]));
        assert_eq!(a.and(&b), parts(&[(1, 1)]));
        let mut both = a.clone();
        both.add(&b);
        assert_eq!(both, parts(&[(1, 1), (1, 3), (2, 0), (3, 7)]));
        both.subtract(&a);
        assert_eq!(both, parts(&[(3, 7)]));
        assert!(both.remove_topic(TopicId(3)) && both.is_empty());
    }
}
