//! Many groups with many members, over few connections. `GROUPS_SCALE=1000` and `--nocapture` for a thousand groups, with figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use timberline_proto::v1::*;
use tonic::transport::Channel;

use super::consumer::*;
use crate::support::*;

const MEMBERS: usize = 10;
const PARTITIONS: usize = 16;
/// Below the streams that one connection may have.
const STREAMS_MAX: usize = 900;

/// What each member of each group holds.
type Held = Arc<Mutex<BTreeMap<(usize, usize), usize>>>;

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.unwrap_or(0) / 1024
}

async fn member(to: Channel, group: usize, number: usize, held: Held) {
    let mut first = wants(&format!("g{group}"), &["t"]);
    first.session_timeout_ms = 30_000;
    let first = join_request::Kind::Hello(first);
    let (mut link, _) = Link::open(to, first).await.unwrap_or_else(|error| {
        println!("{error}");
        panic!("{error}")
    });
    let mut beats = tokio::time::interval(Duration::from_secs(5));
    let mut applied_epoch = None;
    loop {
        tokio::select! {
            _ = beats.tick() => {
                let beat = JoinHeartbeat { applied_epoch, since_poll_ms: 0 };
                link.say(join_request::Kind::Heartbeat(beat)).await;
            }
            message = link.down.message() => {
                let Ok(Some(message)) = message else { return };
                if let Some(join_response::Kind::Assignment(told)) = message.kind {
                    let count = told.partitions.iter().map(|one| one.partitions.len()).sum();
                    held.lock().insert((group, number), count);
                    applied_epoch = Some(told.member_epoch);
                    beats.reset_immediately();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_groups_converge() {
    let groups = std::env::var("GROUPS_SCALE").ok();
    let groups: usize = groups.and_then(|groups| groups.parse().ok()).unwrap_or(30);
    let cluster = Cluster::start(3).await;
    cluster.topic("t", PARTITIONS as i32, 1).await;
    let brokers = cluster.addresses();
    let mut places = Vec::new();
    for group in 0..groups {
        let group = format!("g{group}");
        let found = until("a coordinator", async || find(&brokers, &group).await).await;
        places.push(found.address);
    }
    let before = resident_mib();
    let begin = Instant::now();
    let held = Held::default();
    let mut connections: BTreeMap<&str, (usize, Channel)> = BTreeMap::new();
    let mut tasks = Vec::new();
    for (group, address) in places.iter().enumerate() {
        for number in 0..MEMBERS {
            let fresh = || (0, channel(address));
            let connection = connections.entry(address).or_insert_with(fresh);
            if connection.0 == STREAMS_MAX {
                *connection = fresh();
            }
            connection.0 += 1;
            let to = connection.1.clone();
            tasks.push(tokio::spawn(member(to, group, number, Arc::clone(&held))));
        }
    }
    let mut shown = Instant::now();
    until("all groups share their partitions", async || {
        let held = held.lock();
        let mut sums = vec![0; groups];
        for ((group, _), count) in held.iter() {
            sums[*group] += count;
        }
        let each = held.values().all(|count| (1..=2).contains(count));
        let whole = sums.iter().filter(|sum| **sum == PARTITIONS).count();
        if shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            println!("{whole} groups whole, {} members heard", held.len());
        }
        let all = whole == groups && held.len() == groups * MEMBERS;
        (each && all).then_some(())
    })
    .await;
    println!(
        "{groups} groups of {MEMBERS} after {:?}; brokers and members together {before} -> {} MiB",
        begin.elapsed(),
        resident_mib()
    );
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}
