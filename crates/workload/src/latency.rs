//! Latencies in a histogram, and their summary.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency told apart, in µs: an hour. A longer one counts as this.
const MICROS_MAX: u64 = 3_600_000_000;

/// A histogram of latencies, exact to three digits.
#[derive(Clone, Debug)]
pub struct Latencies {
    micros: Histogram<u64>,
}

/// The percentiles of `bench -o json`, in milliseconds. All 0 when nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            micros: Histogram::new_with_bounds(1, MICROS_MAX, 3)
                .expect("bounds from 1 to an hour and three digits are valid"),
        }
    }
}

impl Latencies {
    /// Adds one; rounded up to a microsecond.
    #[inline]
    pub fn add(&mut self, latency: Duration) {
        let micros = latency.as_nanos().div_ceil(1000);
        self.micros
            .saturating_record(u64::try_from(micros).unwrap_or(MICROS_MAX).max(1));
    }

    /// Takes in those of another histogram.
    pub fn merge(&mut self, other: &Latencies) {
        // Both have the same bounds, so adding can't fail.
        let _ = self.micros.add(&other.micros);
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.micros.len()
    }

    /// The percentiles.
    pub fn summary(&self) -> LatencySummary {
        if self.micros.is_empty() {
            return LatencySummary::default();
        }
        let at = |quantile| self.micros.value_at_quantile(quantile) as f64 / 1000.0;
        LatencySummary {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.micros.max() as f64 / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_milliseconds_and_rounded_up() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), LatencySummary::default());
        for ms in 1..=1000 {
            latencies.add(Duration::from_millis(ms));
        }
        latencies.add(Duration::from_secs(7200));
        let mut all = Latencies::default();
        all.merge(&latencies);
        let summary = all.summary();
        assert_eq!(all.count(), 1001);
        assert!((summary.p50 - 501.0).abs() <= 1.0, "{summary:?}");
        assert!((summary.p99 - 991.0).abs() <= 1.0, "{summary:?}");
        assert!(summary.max >= 3_600_000.0, "{summary:?}");
        let mut one = Latencies::default();
        one.add(Duration::from_nanos(1));
        assert_eq!(one.summary().max, 0.001);
    }
}
