//! When the shards of other brokers were heard last, in ticks of the shard that listens.
//!
//! A group that fell silent is judged by the shards of its members: the replica with the number `n` is driven by shard
//! `n` modulo the shards of its broker, everywhere.

use std::collections::{BTreeMap, BTreeSet};

/// The shard that drives a replica, among `shards`, of which there is at least one.
pub fn place(replica: u64, shards: usize) -> usize {
    (replica % shards as u64) as usize
}

/// The shards that were heard, and when.
#[derive(Debug, Default)]
pub struct Alive {
    now: u64,
    /// Of each shard of each broker: the tick, [`NEVER`] before the first.
    heard: BTreeMap<i32, Vec<u64>>,
    /// Shards that are silent, as of the last look.
    silent: BTreeSet<(i32, usize)>,
    /// Brokers that came back with another number of shards.
    changed: BTreeSet<i32>,
}

impl Alive {
    /// A tick passed.
    pub fn tick(&mut self) {
        self.now += 1;
    }

    /// Ticks so far, from 1: the numbers that groups are given.
    pub fn now(&self) -> u64 {
        self.now.max(1)
    }

    /// These of a broker's `shards` shards are alive.
    pub fn note(&mut self, broker: i32, shards: usize, alive: impl IntoIterator<Item = usize>) {
        let now = self.now();
        let heard = self.heard.entry(broker).or_default();
        if heard.len() != shards {
            // It is another process.
            if !heard.is_empty() {
                self.changed.insert(broker);
            }
            *heard = vec![NEVER; shards];
        }
        for shard in alive {
            if let Some(at) = heard.get_mut(shard) {
                *at = now;
            }
        }
    }

    /// Ticks since the shard of a broker's replica was heard; `u64::MAX` if it never was.
    pub fn silent_for(&self, broker: i32, replica: u64) -> u64 {
        let heard = self.heard.get(&broker).filter(|shards| !shards.is_empty());
        let at = heard.map_or(NEVER, |shards| shards[place(replica, shards.len())]);
        match at {
            NEVER => u64::MAX,
            at => self.now() - at,
        }
    }

    /// Brokers of which a shard has now been silent for `ticks` and was not at the last look, or which are other processes.
    /// Shards that were never heard drive no group that is silent.
    pub fn fell_silent(&mut self, ticks: u64) -> BTreeSet<i32> {
        let now = self.now();
        let shards = self.heard.iter().flat_map(|(&broker, shards)| {
            let shards = shards.iter().enumerate();
            shards.map(move |(shard, &at)| ((broker, shard), at))
        });
        let silent = shards.filter(|&(_, at)| at != NEVER && now - at >= ticks);
        let silent: BTreeSet<_> = silent.map(|(shard, _)| shard).collect();
        let before = std::mem::replace(&mut self.silent, silent);
        let mut brokers = std::mem::take(&mut self.changed);
        brokers.extend(self.silent.difference(&before).map(|(broker, _)| *broker));
        brokers
    }
}

const NEVER: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(alive: &mut Alive, now: u64) -> &mut Alive {
        alive.now = now;
        alive
    }

    #[test]
    fn a_replica_is_as_silent_as_its_shard() {
        let mut alive = Alive::default();
        assert_eq!(alive.silent_for(2, 0), u64::MAX);
        at(&mut alive, 7).note(2, 2, [1]);
        at(&mut alive, 10);
        assert_eq!([4, 5].map(|n| alive.silent_for(2, n)), [u64::MAX, 3]);
        alive.note(2, 2, [0]);
        assert_eq!([4, 5].map(|n| alive.silent_for(2, n)), [0, 3]);
        alive.note(2, 3, [0]);
        assert_eq!([4, 6].map(|n| alive.silent_for(2, n)), [u64::MAX, 0]);
    }

    #[test]
    fn the_silence_of_each_shard_is_told_once() {
        let mut alive = Alive::default();
        at(&mut alive, 1).note(2, 2, [0]);
        at(&mut alive, 3).note(2, 2, [1]);
        at(&mut alive, 5).note(3, 1, [0]);
        let mut told = |now| Vec::from_iter(at(&mut alive, now).fell_silent(8));
        assert_eq!(told(8), [0; 0]);
        assert_eq!(told(9), [2], "one of its shards");
        assert_eq!(told(10), [0; 0]);
        assert_eq!(told(11), [2], "the other, two ticks later");
        assert_eq!(told(13), [3]);
        at(&mut alive, 14).note(2, 2, [0]);
        let mut told = |now| Vec::from_iter(at(&mut alive, now).fell_silent(8));
        assert_eq!(told(21), [0; 0]);
        assert_eq!(told(22), [2], "again");
    }

    #[test]
    fn a_shard_that_never_beat_is_not_told_and_hides_none() {
        let mut alive = Alive::default();
        at(&mut alive, 1).note(2, 4, [3]);
        assert_eq!(alive.fell_silent(8), BTreeSet::new());
        assert_eq!(at(&mut alive, 9).fell_silent(8), BTreeSet::from([2]));
    }

    #[test]
    fn a_process_with_other_shards_is_told() {
        let mut alive = Alive::default();
        at(&mut alive, 1).note(2, 4, [0, 1, 2, 3]);
        at(&mut alive, 2).note(2, 2, [0]);
        assert_eq!(alive.fell_silent(8), BTreeSet::from([2]));
        assert_eq!(alive.fell_silent(8), BTreeSet::new());
    }
}
