//! `timberline bench`: load with exact definitions, so that figures compare.
//!
//! - Bytes are bytes of record values, and a megabyte is 10^6 of them.
//! - Values are random; nothing is compressed unless the options ask for it.
//! - `produce`: latency is from the send to the acknowledgement; with a rate, from when the record was *due*, whether
//!   or not the sender got to it (open loop): a stall counts against every record that it delayed.
//! - `consume`: every batch's checksum is verified and every record is handed over; latency is how long each batch was
//!   waited for.
//! - `end-to-end`: latency is from when a record was due to when the reader had it in its hands.

mod consume;
mod end_to_end;
mod produce;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use timberline_client::Error;

use crate::latency::{Latencies, LatencySummary};

pub use consume::{ConsumeLoad, consume};
pub use end_to_end::{EndToEndLoad, SIZE_MIN, end_to_end};
pub use produce::{ProduceLoad, produce};

/// What a run came to; the fields of `bench -o json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Records acknowledged, or read.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Records that failed, are missing or came twice.
    pub errors: u64,
    /// From the first record's turn to the last one's end.
    pub seconds: f64,
    /// 10^6 bytes of values a second.
    pub mb_per_second: f64,
    /// Records a second.
    pub records_per_second: f64,
    /// See the module for what is measured.
    pub latency_ms: LatencySummary,
    /// Why the run ended early, if it did; it is told beside the figures, not among them.
    #[serde(skip)]
    pub first_error: Option<Error>,
}

impl BenchReport {
    pub(crate) fn new(
        records: u64,
        bytes: u64,
        errors: u64,
        took: Duration,
        latencies: &Latencies,
    ) -> BenchReport {
        // A run of one record may end within the clock's step.
        let seconds = took.as_secs_f64().max(1e-9);
        BenchReport {
            records,
            bytes,
            errors,
            seconds,
            mb_per_second: bytes as f64 / 1e6 / seconds,
            records_per_second: records as f64 / seconds,
            latency_ms: latencies.summary(),
            first_error: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_contract() {
        let report = BenchReport::new(
            2,
            3_000_000,
            1,
            Duration::from_secs(2),
            &Latencies::default(),
        );
        let json = serde_json::to_value(&report).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut expected = [
            "records",
            "bytes",
            "errors",
            "seconds",
            "mb_per_second",
            "records_per_second",
            "latency_ms",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(json["mb_per_second"], 1.5);
        assert_eq!(json["records_per_second"], 1.0);
        for percentile in ["p50", "p90", "p99", "p999", "max"] {
            assert!(json["latency_ms"][percentile].is_number());
        }
    }
}
