//! A set of sector numbers kept as ranges: a file's allocation, where 64 MiB reserved at once cost one entry.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent ranges `start..end`.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    map: BTreeMap<u64, u64>,
    total: u64,
}

impl Ranges {
    /// Numbers in the set.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Numbers of `[from, to)` that are not in the set.
    pub(super) fn missing(&self, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        let mut missing = to - from;
        for (&start, &end) in self.map.range(..to).rev() {
            if end <= from {
                break;
            }
            missing -= end.min(to) - start.max(from);
        }
        missing
    }

    /// Adds `[from, to)`.
    pub(super) fn insert(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let (mut from, mut to) = (from, to);
        while let Some((&start, &end)) = self.map.range(..=to).next_back() {
            if end < from {
                break;
            }
            self.map.remove(&start);
            self.total -= end - start;
            from = from.min(start);
            to = to.max(end);
        }
        self.map.insert(from, to);
        self.total += to - from;
    }

    /// Drops every number from `at` on.
    pub(super) fn truncate(&mut self, at: u64) {
        while let Some((&start, &end)) = self.map.last_key_value() {
            if end <= at {
                break;
            }
            self.map.remove(&start);
            self.total -= end - start;
            self.insert(start, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_plain_set() {
        let mut rng = super::super::rng::Rng::new(7);
        for _ in 0..200 {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for _ in 0..40 {
                let from = rng.below(60);
                let to = from + rng.below(12);
                if rng.chance(2) {
                    ranges.truncate(from);
                    set.retain(|&n| n < from);
                } else {
                    let missing = (from..to).filter(|n| !set.contains(n)).count() as u64;
                    assert_eq!(ranges.missing(from, to), missing);
                    ranges.insert(from, to);
                    set.extend(from..to);
                }
                assert_eq!(ranges.total(), set.len() as u64);
                assert_eq!(ranges.missing(0, 100), 100 - set.len() as u64);
                assert_eq!(ranges.missing(to + 1, to), 0);
            }
        }
    }
}
