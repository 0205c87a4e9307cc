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

    /// What of `from..to` is in no range.
    pub(crate) fn gaps(&self, from: u64, to: u64) -> Vec<std::ops::Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = from;
        for &(low, high) in &self.ranges {
            if low > at && at < to {
                gaps.push(at..low.min(to));
            }
            at = at.max(high);
        }
        if at < to {
            gaps.push(at..to);
        }
        gaps
    }

    /// Drops what lies at or behind a position.
    pub(crate) fn cut(&mut self, at: u64) {
        self.ranges.retain(|r| r.0 < at);
        if let Some(last) = self.ranges.last_mut() {
            last.1 = last.1.min(at);
        }
    }

    /// The end of the last range.
    pub(crate) fn end(&self) -> Option<u64> {
        self.ranges.last().map(|r| r.1)
    }
}
