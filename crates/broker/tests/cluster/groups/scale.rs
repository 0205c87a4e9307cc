//! Many groups with many members, over few connections. `GROUPS_SCALE=1000` and `--nocapture` for a thousand groups, with figures.

#![allow(clippy::print_stdout, reason = "figures, for people")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tonic::transport::Channel;

use super::consumer::*;
use crate::support::*;

const MEMBERS: usize = 10;
const PARTITIONS: usize = 16;
/// Connections to each broker: one carries no more than 1,024 streams.
const CONNECTIONS: usize = 6;

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.unwrap_or(0) / 1024
}

/// Some connections to each broker, in turn.
fn shared_connections() -> Connect {
    let known: Mutex<HashMap<String, (usize, Vec<Channel>)>> = Mutex::default();
    Arc::new(move |address: &str| {
        let mut known = known.lock();
        let (turn, channels) = known.entry(address.to_owned()).or_insert_with(|| {
            let channels = std::iter::repeat_with(|| channel(address));
            (0, channels.take(CONNECTIONS).collect())
        });
        *turn += 1;
        channels[*turn % CONNECTIONS].clone()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_groups_converge() {
    let groups = std::env::var("GROUPS_SCALE").ok();
    let groups: usize = groups.and_then(|groups| groups.parse().ok()).unwrap_or(30);
    let cluster = Cluster::start(3).await;
    cluster.topic("t", PARTITIONS as i32, 1).await;
    let brokers = cluster.addresses();
    until("a coordinator", async || find(&brokers, "g0").await).await;
    let before = resident_mib();
    let begin = Instant::now();
    let connect = shared_connections();
    let consumers: Vec<Vec<Consumer>> = (0..groups)
        .map(|group| {
            let mut hello = wants(&format!("g{group}"), &["t"]);
            hello.session_timeout_ms = 30_000;
            let start = || Consumer::start_by(Arc::clone(&connect), brokers.clone(), hello.clone());
            std::iter::repeat_with(start).take(MEMBERS).collect()
        })
        .collect();
    until("all groups share their partitions", async || {
        let whole = |group: &Vec<Consumer>| {
            let counts = group.iter().map(|one| one.held.lock().parts.len());
            let level = counts.clone().all(|count| (1..=2).contains(&count));
            level && counts.sum::<usize>() == PARTITIONS
        };
        consumers.iter().all(whole).then_some(())
    })
    .await;
    println!(
        "{groups} groups of {MEMBERS} after {:?}; brokers and members together {before} -> {} MiB",
        begin.elapsed(),
        resident_mib()
    );
}
