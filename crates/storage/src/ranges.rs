//! A set of byte ranges, merged where they touch.

/// Half-open ranges in order, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    ranges: Vec<(u64, u64)>,
}

impl Ranges {
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.ranges.partition_point(|r| r.1 < from);
        let last = self.ranges.partition_point(|r| r.0 <= to);
        let (mut low, mut high) = (from, to);
        for range in &self.ranges[first..last] {
            low = low.min(range.0);
            high = high.max(range.1);
        }
        self.ranges.splice(first..last, [(low, high)]);
    }

    /// The end of the range that holds `pos`, or `pos` itself.
    pub(crate) fn end_at(&self, pos: u64) -> u64 {
        let after = self.ranges.partition_point(|r| r.0 <= pos);
        match after.checked_sub(1).map(|i| self.ranges[i]) {
            Some((_, end)) if end > pos => end,
            _ => pos,
        }
    }

    /// The end of the last range.
    pub(crate) fn end(&self) -> Option<u64> {
        self.ranges.last().map(|r| r.1)
    }
}
