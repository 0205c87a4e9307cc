//! How long nothing was acknowledged.
//!
//! A gap is the time between two acknowledgements as the application sees them. It belongs to the repetition in which it
//! ends, or in which it is still open: so a gap that is never closed counts as long as it was watched.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::latency::Latencies;

/// Acknowledgements of each partition, and of all together. Shared by the tasks that wait for them.
#[derive(Debug)]
pub(super) struct Gaps {
    lanes: Vec<Mutex<Lane>>,
    any: Mutex<Lane>,
    /// From when a record was due until its acknowledgement, since they were last taken.
    latencies: Mutex<Latencies>,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The last acknowledgement, or when watching began.
    last: Instant,
    /// The longest gap that ended in this repetition.
    longest: Duration,
    /// When the youngest record acknowledged was due.
    due: Option<Instant>,
}

impl Lane {
    fn acknowledged(&mut self, due: Instant, now: Instant) {
        self.longest = self.longest.max(now.saturating_duration_since(self.last));
        self.last = self.last.max(now);
        self.due = self.due.max(Some(due));
    }

    fn longest_until(&self, now: Instant) -> Duration {
        self.longest.max(now.saturating_duration_since(self.last))
    }
}

/// The longest gaps of one repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundGaps {
    /// Of the partition that had the longest.
    pub worst: Duration,
    /// That partition.
    pub partition: i32,
    /// Between any two acknowledgements, whatever their partitions.
    pub any: Duration,
}

impl Gaps {
    pub(super) fn new(partitions: usize, now: Instant) -> Gaps {
        let lane = Lane {
            last: now,
            longest: Duration::ZERO,
            due: None,
        };
        Gaps {
            lanes: (0..partitions).map(|_| Mutex::new(lane)).collect(),
            any: Mutex::new(lane),
            latencies: Mutex::default(),
        }
    }

    /// The latencies of the acknowledgements since the last call.
    pub(super) fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut *lock(&self.latencies))
    }

    /// A record of a partition that was due at `due` is acknowledged.
    pub(super) fn acknowledged(&self, partition: usize, due: Instant, now: Instant) {
        if let Some(lane) = self.lanes.get(partition) {
            lock(lane).acknowledged(due, now);
            lock(&self.any).acknowledged(due, now);
            lock(&self.latencies).add(now.saturating_duration_since(due));
        }
    }

    /// Begins a repetition: gaps that have ended are forgotten, those that are open are not.
    pub(super) fn begin(&self) {
        for lane in self.all() {
            lock(lane).longest = Duration::ZERO;
        }
    }

    /// The longest gaps of the repetition up to now.
    pub(super) fn until(&self, now: Instant) -> RoundGaps {
        let lanes = self.lanes.iter().zip(0..);
        let longest = lanes.map(|(lane, partition)| (lock(lane).longest_until(now), partition));
        let (worst, partition) = longest.max().unwrap_or_default();
        RoundGaps {
            worst,
            partition,
            any: lock(&self.any).longest_until(now),
        }
    }

    /// Partitions of which no record that was due after `since` is acknowledged.
    pub(super) fn silent_since(&self, since: Instant) -> usize {
        let silent = |lane: &&Mutex<Lane>| lock(lane).due.is_none_or(|due| due <= since);
        self.lanes.iter().filter(silent).count()
    }

    fn all(&self) -> impl Iterator<Item = &Mutex<Lane>> {
        self.lanes.iter().chain([&self.any])
    }
}

/// What is held is whole after every step, so one that was held in a panic is as good.
fn lock<T>(lane: &Mutex<T>) -> MutexGuard<'_, T> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Percentiles over the repetitions, in milliseconds: each is the smallest value that so many are not above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GapSummary {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl GapSummary {
    /// Of these; all 0 when there are none.
    pub fn of(gaps: impl IntoIterator<Item = Duration>) -> GapSummary {
        let mut gaps: Vec<_> = gaps.into_iter().collect();
        gaps.sort_unstable();
        let at = |percent: usize| {
            let rank = (gaps.len() * percent).div_ceil(100).max(1);
            gaps.get(rank - 1)
                .map_or(0.0, |gap| (gap.as_secs_f64() * 1e6).round() / 1e3)
        };
        GapSummary {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_worst_partition_and_the_silence_of_all_are_two_things() {
        let t0 = Instant::now();
        let gaps = Gaps::new(2, t0);
        for at in [10, 20, 30] {
            gaps.acknowledged(0, t0, t0 + ms(at));
        }
        gaps.acknowledged(1, t0, t0 + ms(25));
        let round = gaps.until(t0 + ms(30));
        assert_eq!((round.worst, round.partition), (ms(25), 1));
        assert_eq!(round.any, ms(10));
    }

    #[test]
    fn a_gap_over_the_beginning_counts_whole_and_an_open_one_counts_up_to_now() {
        let t0 = Instant::now();
        let gaps = Gaps::new(2, t0);
        gaps.acknowledged(0, t0, t0 + ms(100));
        gaps.acknowledged(1, t0, t0 + ms(100));
        gaps.begin();
        assert_eq!(gaps.until(t0 + ms(100)).worst, ms(0));
        gaps.acknowledged(0, t0, t0 + ms(400));
        assert_eq!(gaps.until(t0 + ms(400)).worst, ms(300));
        // Partition 1 never comes back.
        let round = gaps.until(t0 + ms(1000));
        assert_eq!((round.worst, round.partition), (ms(900), 1));
        assert_eq!(round.any, ms(600));
        gaps.begin();
        assert_eq!(gaps.until(t0 + ms(1100)).worst, ms(1000));
    }

    #[test]
    fn a_late_acknowledgement_of_an_old_record_is_no_recovery() {
        let t0 = Instant::now();
        let gaps = Gaps::new(2, t0);
        let struck = t0 + ms(50);
        gaps.acknowledged(0, t0 + ms(40), t0 + ms(60));
        assert_eq!(gaps.silent_since(struck), 2);
        gaps.acknowledged(0, t0 + ms(51), t0 + ms(70));
        gaps.acknowledged(1, t0 + ms(55), t0 + ms(70));
        assert_eq!(gaps.silent_since(struck), 0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        assert_eq!(GapSummary::of([]), GapSummary::default());
        let one = GapSummary::of([ms(7)]);
        assert_eq!((one.p50, one.p99, one.max), (7.0, 7.0, 7.0));
        let many = GapSummary::of((1..=200).map(ms));
        assert_eq!((many.p50, many.p99, many.max), (100.0, 198.0, 200.0));
        let three = GapSummary::of([ms(30), ms(10), ms(20)]);
        assert_eq!((three.p50, three.p99, three.max), (20.0, 30.0, 30.0));
    }
}
