//! `/metrics`: the registry, and what is read at the moment somebody asks.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Gauge, GaugeVec, Opts, TextEncoder};

use super::{name, process};
use crate::core::Core;

/// One gauge with one value.
pub(super) fn gauge(name: &str, help: &str, value: f64) -> MetricFamily {
    labelled(name, help, &[], &[(&[], value)])
}

/// One counter with one value that somebody else counts.
pub(super) fn counter(name: &str, help: &str, value: f64) -> MetricFamily {
    let families = prometheus::Counter::new(name, help).map(|counter| {
        counter.inc_by(value.max(0.0));
        counter.collect()
    });
    families
        .ok()
        .and_then(|mut families| families.pop())
        .unwrap_or_default()
}

/// A gauge with labels; without values it is left out by the encoder.
pub(super) fn labelled(
    name: &str,
    help: &str,
    labels: &[&str],
    values: &[(&[&str], f64)],
) -> MetricFamily {
    let families = if labels.is_empty() {
        Gauge::new(name, help).map(|metric| {
            metric.set(values.first().map_or(0.0, |(_, value)| *value));
            metric.collect()
        })
    } else {
        GaugeVec::new(Opts::new(name, help), labels).map(|metric| {
            for (label_values, value) in values {
                metric.with_label_values(label_values).set(*value);
            }
            metric.collect()
        })
    };
    families
        .ok()
        .and_then(|mut families| families.pop())
        .unwrap_or_default()
}

/// The text of `/metrics`. Blocking: it reads `/proc`.
pub(crate) fn scrape(core: &Core) -> Vec<u8> {
    let mut families = core.metrics.registry.gather();
    let mut push =
        |title: &str, help: &str, value: f64| families.push(gauge(&name(title), help, value));
    let stats = core.store.stats();
    push(
        "log_size_bytes",
        "Bytes of all logs on disk.",
        stats.log_bytes as f64,
    );
    push("segments", "Segment files.", stats.segments as f64);
    push(
        "mapped_segments",
        "Segment files mapped into memory.",
        stats.mapped_segments as f64,
    );
    if let Some(bytes) = stats.disk_free_bytes {
        push(
            "disk_free_bytes",
            "Free space of the data directory's file system.",
            bytes as f64,
        );
    }
    if let Some(bytes) = stats.disk_total_bytes {
        push(
            "disk_size_bytes",
            "Size of the data directory's file system.",
            bytes as f64,
        );
    }
    let (brokers, topics) = {
        let table = core.metadata.table();
        (table.brokers().len(), table.topic_count())
    };
    push("cluster_brokers", "Brokers registered.", brokers as f64);
    push("topics", "Topics.", topics as f64);
    push(
        "active_controller",
        "1 if this broker leads the metadata log.",
        f64::from(u8::from(core.metadata.is_controller())),
    );
    let writable = core.store.poisoned().is_none();
    push(
        "writable",
        "0 after a failed sync, until a restart.",
        f64::from(u8::from(writable)),
    );
    families.push(partitions(core));
    families.push(labelled(
        &name("queue_bytes"),
        "Bytes waiting, by queue.",
        &["queue"],
        &[
            (&["in_flight"], core.budget.in_flight() as f64),
            (&["unsynced"], stats.pending_bytes as f64),
        ],
    ));
    families.push(labelled(
        &name("queue_items"),
        "Items waiting, by queue.",
        &["queue"],
        &[(&["shard_inbox"], core.shards.queued() as f64)],
    ));
    if let Some(peers) = core.cluster.peers() {
        push_peers(&mut families, &peers.stats());
    }
    families.push(labelled(
        &name("build_info"),
        "1, with the version as a label.",
        &["version"],
        &[(&[env!("CARGO_PKG_VERSION")], 1.0)],
    ));
    process::gather(&mut families);
    families.retain(|family| !family.get_metric().is_empty());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::error!(%error, "encoding metrics");
    }
    text
}

fn push_peers(families: &mut Vec<MetricFamily>, stats: &crate::peer::PeerStats) {
    for (title, help, value) in [
        (
            "peer_messages_sent_total",
            "Messages sent to other brokers.",
            stats.messages_sent,
        ),
        (
            "peer_batches_sent_total",
            "Batches of such messages.",
            stats.batches_sent,
        ),
        (
            "peer_messages_received_total",
            "Messages of other brokers.",
            stats.messages_received,
        ),
        (
            "peer_messages_dropped_total",
            "Messages to other brokers that found no room.",
            stats.messages_dropped,
        ),
        (
            "peer_bytes_dropped_total",
            "Bytes of entries in them.",
            stats.bytes_dropped,
        ),
        (
            "peer_leaderships_dropped_total",
            "News of leaders that found no room.",
            stats.leaderships_dropped,
        ),
        (
            "peer_malformed_total",
            "Streams ended because of a malformed message.",
            stats.malformed,
        ),
        (
            "peer_connections_total",
            "Connections made to other brokers.",
            stats.connections,
        ),
    ] {
        families.push(counter(&name(title), help, value as f64));
    }
}

/// Each partition counts once in a cluster: where it is led, or, without a leader, at the controller.
fn partitions(core: &Core) -> MetricFamily {
    let (_, damaged) = core.metadata.partition_counts();
    let (mut led, mut leaderless, mut under_replicated, mut under_quorum) =
        (0u64, 0u64, 0u64, 0u64);
    let controls = core.metadata.is_controller();
    let live = core.leadership.live_brokers();
    for (topic, number, partition) in core.metadata.table().partitions() {
        match core.leadership.leader_of(topic.id, number) {
            Some((_, leader)) if leader == core.cluster.me() => {
                let in_sync = core.leadership.in_sync(topic.id, number);
                let replicas = partition.replicas.iter();
                let whole = replicas.filter(|one| !one.lost && in_sync.contains(&one.broker));
                let whole = whole.count();
                led += 1;
                under_replicated += u64::from(whole < partition.replicas.len());
                under_quorum += u64::from(whole * 2 <= partition.replicas.len());
            }
            Some((_, leader)) if live.contains(&leader) => {}
            // A leader that is gone is none.
            _ => leaderless += u64::from(controls),
        }
    }
    labelled(
        &name("partitions"),
        "Partitions, by state; `quarantined` are replicas on disk that the metadata does not know.",
        &["state"],
        &[
            (&["led"], led as f64),
            (&["leaderless"], leaderless as f64),
            (&["under_replicated"], under_replicated as f64),
            (&["under_quorum"], under_quorum as f64),
            (&["quarantined"], core.metadata.quarantined() as f64),
            (&["damaged"], damaged as f64),
        ],
    )
}
