//! The windowed count.

use std::collections::BTreeMap;

use crate::harness::{Broker, Load, kill_in_turn, pause, wait_for, windows};

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_counted_once_although_counters_are_killed() {
    let mut broker = Broker::start();
    let client = broker.topic("orders", 4).await;
    let load = Load::start(client.clone(), "orders");
    let path = broker.path("counts");
    let args = ["orders", path.to_str().unwrap()];
    let mut counters = kill_in_turn(&mut broker, "windowed_count", &args, 5);
    for _ in 0..2 {
        let [one, other] = &mut counters;
        pause(one, other);
        counters.reverse();
    }
    let sent = load.stop().await;

    // The group's offsets are written behind the counts, so they say when all is counted.
    let admin = client.admin();
    let runtime = tokio::runtime::Handle::current();
    wait_for("all records", || {
        let offsets = admin.group_offsets("windowed-count", &[]);
        let offsets = tokio::task::block_in_place(|| runtime.block_on(offsets)).unwrap();
        let done: i64 = offsets.iter().map(|one| one.offset.unwrap_or(0)).sum();
        (done as u64 >= sent).then_some(())
    });
    for counter in counters {
        counter.stop();
    }
    let shown = broker.example("windowed_count", &[args[0], args[1], "--show"]);
    let counted: BTreeMap<(u64, String), u64> = shown
        .ends()
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap();
            let at = (next().parse().unwrap(), next().to_owned());
            (at, next().parse().unwrap())
        })
        .collect();
    assert_eq!(counted.values().sum::<u64>(), sent);
    assert_eq!(counted, windows(sent));
}
