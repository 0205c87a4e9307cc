//! The process's own figures, out of `/proc`, under the names that Prometheus clients use.

use prometheus::proto::MetricFamily;

use super::scrape::gauge;

/// Clock ticks a second in `/proc/self/stat`; 100 on every Linux this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What could be read; the rest is left out.
pub(super) fn gather(into: &mut Vec<MetricFamily>) {
    // Fields are counted behind the name, which is in parentheses and may hold anything.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        let seconds = (user + system) / TICKS_PER_SECOND;
        into.push(super::scrape::counter(
            "process_cpu_seconds_total",
            "CPU time used, seconds.",
            seconds,
        ));
    }
    if let Some(bytes) = number(20) {
        into.push(gauge(
            "process_virtual_memory_bytes",
            "Address space, bytes.",
            bytes,
        ));
    }
    if let (Some(ticks), Some(boot)) = (number(19), boot_time()) {
        let start = boot + ticks / TICKS_PER_SECOND;
        into.push(gauge(
            "process_start_time_seconds",
            "Start of the process, seconds since the epoch.",
            start,
        ));
    }
    if let Some(bytes) = resident_bytes() {
        into.push(gauge(
            "process_resident_memory_bytes",
            "Resident memory, bytes.",
            bytes,
        ));
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        into.push(gauge(
            "process_open_fds",
            "Open file descriptors.",
            entries.count() as f64,
        ));
    }
}

fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}
