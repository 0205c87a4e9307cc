//! `/metrics/detailed`: series for each partition, made while they are asked for and kept nowhere.

use std::fmt::Write;

use crate::core::Core;
use crate::partition::Partition;
use crate::topic::name::is_internal;

type Column = (&'static str, &'static str, fn(&Partition) -> f64);

const COLUMNS: &[Column] = &[
    (
        "partition_log_start_offset",
        "First offset that is kept.",
        |p| p.log.log_start() as f64,
    ),
    (
        "partition_high_watermark",
        "Offset behind the last committed record.",
        |p| p.log.high_watermark() as f64,
    ),
    ("partition_size_bytes", "Bytes on disk.", |p| {
        p.log.size_bytes() as f64
    }),
    ("partition_segments", "Segment files.", |p| {
        p.log.segments() as f64
    }),
    ("partition_leader_epoch", "The leader's term.", |p| {
        f64::from(p.leader_epoch())
    }),
];

/// The text. Topic names need no escaping: they have only letters, digits, '.', '_' and '-'.
pub(crate) fn detailed(core: &Core) -> String {
    let mut topics = core.directory.topics();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    for (title, help, value) in COLUMNS {
        let _ = writeln!(
            text,
            "# HELP timberline_{title} {help}\n# TYPE timberline_{title} gauge"
        );
        for topic in topics.iter().filter(|topic| !is_internal(&topic.name)) {
            for partition in topic.hosted() {
                let _ = writeln!(
                    text,
                    "timberline_{title}{{topic=\"{}\",partition=\"{}\"}} {}",
                    topic.name,
                    partition.number,
                    value(&partition)
                );
            }
        }
    }
    text
}
