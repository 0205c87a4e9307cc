//! When the shards of other brokers were heard last, in ticks of this one.
//!
//! A group that fell silent is judged by the shards of its members (see `consensus`, quiescence): a replica with the number
//! `n` is driven by shard `n` modulo the shards of its broker, everywhere.

use std::collections::BTreeMap;

use timberline_storage::ReplicaId;

use crate::peer::ShardBeats;

/// The shard of a replica among `shards`.
pub(super) fn place(replica: ReplicaId, shards: usize) -> usize {
    replica.0 as usize % shards
}

#[derive(Debug, Default)]
pub(super) struct Alive {
    /// Of each shard of each broker: the tick.
    heard: BTreeMap<i32, Vec<u64>>,
    /// Brokers of which a shard is silent, as of the last look.
    silent: Vec<i32>,
}

impl Alive {
    pub(super) fn note(&mut self, broker: i32, beats: &ShardBeats, now: u64) {
        let heard = self.heard.entry(broker).or_default();
        if heard.len() != usize::from(beats.shards) {
            // Another number of shards: another process.
            *heard = vec![NEVER; beats.shards.into()];
        }
        for &shard in &beats.alive {
            if let Some(at) = heard.get_mut(usize::from(shard)) {
                *at = now;
            }
        }
    }

    /// Ticks since the shard of a broker's replica was heard.
    pub(super) fn silent_for(&self, broker: i32, replica: ReplicaId, now: u64) -> u64 {
        let heard = self.heard.get(&broker).filter(|shards| !shards.is_empty());
        let at = heard.map_or(NEVER, |shards| shards[place(replica, shards.len())]);
        silence(at, now)
    }

    /// Brokers of which a shard has now been silent for `ticks`, and was not before.
    pub(super) fn fell_silent(&mut self, ticks: u64, now: u64) -> Vec<i32> {
        let is_silent = |shards: &Vec<u64>| shards.iter().any(|&at| silence(at, now) >= ticks);
        let silent: Vec<i32> = self
            .heard
            .iter()
            .filter(|(_, shards)| is_silent(shards))
            .map(|(&broker, _)| broker)
            .collect();
        let before = std::mem::replace(&mut self.silent, silent);
        let new = self.silent.iter().filter(|one| !before.contains(one));
        new.copied().collect()
    }
}

/// Ticks count from 1.
const NEVER: u64 = 0;

fn silence(at: u64, now: u64) -> u64 {
    match at {
        NEVER => u64::MAX,
        at => now.saturating_sub(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(shards: u16, alive: &[u16]) -> ShardBeats {
        ShardBeats {
            shards,
            alive: alive.to_vec(),
        }
    }

    #[test]
    fn a_replica_is_as_silent_as_its_shard() {
        let mut alive = Alive::default();
        let silent = |alive: &Alive, replica| alive.silent_for(2, ReplicaId(replica), 10);
        assert_eq!(silent(&alive, 0), u64::MAX);
        alive.note(2, &beats(2, &[1]), 7);
        assert_eq!([silent(&alive, 4), silent(&alive, 5)], [u64::MAX, 3]);
        alive.note(2, &beats(2, &[0]), 10);
        assert_eq!([silent(&alive, 4), silent(&alive, 5)], [0, 3]);
        alive.note(2, &beats(3, &[0]), 10);
        assert_eq!([silent(&alive, 4), silent(&alive, 6)], [u64::MAX, 0]);
    }

    #[test]
    fn a_silence_is_told_once() {
        let mut alive = Alive::default();
        alive.note(2, &beats(2, &[0, 1]), 1);
        alive.note(3, &beats(1, &[0]), 5);
        assert_eq!(alive.fell_silent(8, 8), [0; 0]);
        assert_eq!(alive.fell_silent(8, 9), [2]);
        assert_eq!(alive.fell_silent(8, 10), [0; 0]);
        alive.note(2, &beats(2, &[0]), 11);
        assert_eq!(
            alive.fell_silent(8, 13),
            [3],
            "the other shard of 2 is as it was"
        );
    }
}
