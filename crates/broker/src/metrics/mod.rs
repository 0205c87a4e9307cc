//! What the broker counts. One registry of its own.
//!
//! Hot paths touch handles made once. What is only looked at (partitions, disk, process) is read when somebody scrapes.
//! A value that is not known is left out.

mod detailed;
mod process;
mod scrape;

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
};
use timberline_storage::SyncKind;
use tonic::Code;

pub(crate) use detailed::detailed;
pub(crate) use scrape::scrape;

const LATENCY_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0,
];
const BATCH_RECORDS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0,
];

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    produced_ok: Histogram,
    pub(crate) request_bytes: IntCounter,
    pub(crate) response_bytes: IntCounter,
    records_in: IntCounter,
    bytes_in: IntCounter,
    records_out: IntCounter,
    bytes_out: IntCounter,
    batch_records: Histogram,
    fsync: HistogramVec,
    fsync_journal: Histogram,
    fsync_direct: Histogram,
    commit: Histogram,
    connections: IntGaugeVec,
    leader_changes: IntCounter,
}

fn name(name: &str) -> String {
    format!("timberline_{name}")
}

impl Metrics {
    /// # Errors
    /// Only if two metrics had the same name.
    pub(crate) fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |title: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let options = HistogramOpts::new(name(title), help).buckets(buckets.to_vec());
            let metric = HistogramVec::new(options, labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let counter = |title: &str, help: &str| {
            let metric = IntCounter::new(name(title), help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let requests = histogram(
            "request_duration_seconds",
            "Time from a request, or a batch of a stream, to its answer.",
            &["api", "code"],
            LATENCY_SECONDS,
        )?;
        let fsync = histogram(
            "fsync_duration_seconds",
            "Time of one sync, by what was synced.",
            &["kind"],
            LATENCY_SECONDS,
        )?;
        let commit = histogram(
            "commit_duration_seconds",
            "Time from a batch's arrival to its commit.",
            &[],
            LATENCY_SECONDS,
        )?;
        let batch_records = histogram(
            "append_batch_records",
            "Records in an appended batch.",
            &[],
            BATCH_RECORDS,
        )?;
        let connections = IntGaugeVec::new(
            Opts::new(name("connections"), "Open connections, by listener."),
            &["listener"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        let none: [&str; 0] = [];
        Ok(Metrics {
            produced_ok: requests.with_label_values(&["Produce", "OK"]),
            request_bytes: counter("request_bytes_total", "Bytes of request messages.")?,
            response_bytes: counter("response_bytes_total", "Bytes of response messages.")?,
            records_in: counter("records_in_total", "Records appended for clients.")?,
            bytes_in: counter("bytes_in_total", "Bytes of batches appended for clients.")?,
            records_out: counter("records_out_total", "Records sent to consumers.")?,
            bytes_out: counter("bytes_out_total", "Bytes of batches sent to consumers.")?,
            fsync_journal: fsync.with_label_values(&["journal"]),
            fsync_direct: fsync.with_label_values(&["direct"]),
            batch_records: batch_records.with_label_values(&none),
            commit: commit.with_label_values(&none),
            leader_changes: counter(
                "raft_leader_changes_total",
                "Terms in which this broker came to lead a partition or the metadata.",
            )?,
            requests,
            fsync,
            connections,
            registry,
        })
    }

    /// A replica here leads in a new term.
    pub(crate) fn elected(&self) {
        self.leader_changes.inc();
    }

    /// A call was answered.
    pub(crate) fn answered(&self, api: &str, code: Code, took: Duration) {
        self.requests
            .with_label_values(&[api, code_name(code)])
            .observe(took.as_secs_f64());
    }

    /// A batch got its answer.
    pub(crate) fn committed(&self, code: Code, took: Duration) {
        if code == Code::Ok {
            let seconds = took.as_secs_f64();
            self.produced_ok.observe(seconds);
            self.commit.observe(seconds);
        } else {
            self.answered("Produce", code, took);
        }
    }

    /// A client's batch is in the log.
    pub(crate) fn appended(&self, records: u64, bytes: u64) {
        self.records_in.inc_by(records);
        self.bytes_in.inc_by(bytes);
        self.batch_records.observe(records as f64);
    }

    /// Batches went to a consumer.
    pub(crate) fn sent(&self, records: u64, bytes: u64) {
        self.records_out.inc_by(records);
        self.bytes_out.inc_by(bytes);
    }

    pub(crate) fn synced(&self, kind: SyncKind, took: Duration) {
        let seconds = took.as_secs_f64();
        match kind {
            SyncKind::Journal => self.fsync_journal.observe(seconds),
            SyncKind::Direct => self.fsync_direct.observe(seconds),
            SyncKind::Checkpoint => self
                .fsync
                .with_label_values(&["checkpoint"])
                .observe(seconds),
            SyncKind::Table => self.fsync.with_label_values(&["table"]).observe(seconds),
        }
    }

    /// The gauge of open connections of a listener.
    pub(crate) fn connections(&self, listener: &str) -> IntGauge {
        self.connections.with_label_values(&[listener])
    }
}

/// A code as gRPC spells it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
