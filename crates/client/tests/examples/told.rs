//! What the other examples print.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use timberline_client::{Client, ProducerOptions, ProducerRecord};

use crate::harness::Broker;

async fn send(client: &Client, records: impl IntoIterator<Item = ProducerRecord>) {
    let producer = client.producer(ProducerOptions::default()).await.unwrap();
    for record in records {
        // `close` tells of failures.
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await.unwrap();
}

#[test]
fn hello_says_what_is_stored_and_what_comes_back() {
    let mut broker = Broker::start();
    let told = broker.example("hello", &["greetings"]).ends();
    let words: Vec<_> = told.lines().map(|line| line.split(' ')).collect();
    assert_eq!(words.len(), 6, "{told}");
    let read = words.iter().filter_map(|words| words.clone().nth(2));
    assert_eq!(read.collect::<Vec<_>>(), ["hello", "from", "timberline"]);
    let places = |verb: &str| -> Vec<&str> {
        let lines = told.lines().filter_map(|line| line.strip_prefix(verb));
        lines.filter_map(|rest| rest.split(' ').nth(1)).collect()
    };
    assert_eq!(places("stored").len(), 3);
    assert_eq!(places("stored"), places("read"));
    // Once more, into the topic that is there now.
    let again = broker.example("hello", &["greetings"]).ends();
    assert!(again.contains("/3 hello\n"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_leaves_nothing_to_repeat() {
    let mut broker = Broker::start();
    let client = broker.topic("orders", 3).await;
    let numbers = |range: std::ops::Range<u64>| {
        range.map(|one| {
            ProducerRecord::value("orders", one.to_string()).with_partition((one % 3) as i32)
        })
    };
    send(&client, numbers(0..300)).await;
    let mut first = broker.example("worker", &["orders", "mailer"]);
    first.says(300);
    let first = first.stop();
    send(&client, numbers(300..600)).await;
    let mut second = broker.example("worker", &["orders", "mailer"]);
    second.says(300);
    let second = second.stop();
    assert!(first.ends_with("left\n") && second.ends_with("left\n"));
    let values = |said: &str| -> Vec<u64> {
        let words = said.lines().filter_map(|line| line.split(' ').nth(2));
        let mut values: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        values.sort();
        values
    };
    assert_eq!(values(&first), (0..300).collect::<Vec<_>>());
    assert_eq!(values(&second), (300..600).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_which_one_is_killed_handle_every_record() {
    let mut broker = Broker::start();
    let client = broker.topic("orders", 4).await;
    let load = crate::harness::Load::start(client, "orders");
    let mut killed = broker.example("worker", &["orders", "mailer"]);
    let mut stays = broker.example("worker", &["orders", "mailer"]);
    killed.says(200);
    stays.says(200);
    let first = killed.said();
    killed.kill();
    let sent = load.stop().await;
    let handled = |said: &str| -> BTreeSet<u64> {
        let words = said.lines().filter_map(|line| line.split(' ').nth(2));
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let first = handled(&first);
    crate::harness::wait_for("every record", || {
        let mut all = handled(&stays.said());
        all.extend(&first);
        (all.len() as u64 == sent).then_some(())
    });
    stays.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_group_of_a_fan_out_reads_everything_and_goes_on_where_it_was() {
    let mut broker = Broker::start();
    let client = broker.topic("orders", 3).await;
    let records = |count| {
        (0..count).map(|one: u32| ProducerRecord::keyed("orders", one.to_string(), "order"))
    };
    send(&client, records(300)).await;
    let told = broker
        .example("fan_out", &["orders", "billing", "audit"])
        .ends();
    assert_eq!(told, "billing: 300 records\naudit: 300 records\n");
    send(&client, records(50)).await;
    let told = broker
        .example("fan_out", &["orders", "billing", "search"])
        .ends();
    assert_eq!(told, "billing: 50 records\nsearch: 350 records\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_begins_at_the_time_asked_for() {
    let mut broker = Broker::start();
    let client = broker.topic("orders", 3).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ago = |hours: u64| (now - Duration::from_secs(hours * 3_600)).as_millis() as i64;
    // Partition 2 has nothing of the last hours.
    let old = (0..30).map(|one| (one % 3, "old", ago(5)));
    let new = (0..20).map(|one| (one % 2, "new", ago(1)));
    for part in [old.collect::<Vec<_>>(), new.collect()] {
        let records = part.into_iter().map(|(partition, value, at)| {
            ProducerRecord::value("orders", value)
                .with_partition(partition)
                .with_timestamp_ms(at)
        });
        send(&client, records).await;
    }
    let told = broker.example("replay", &["orders", "7200"]).ends();
    assert_eq!(told.lines().count(), 20, "{told}");
    assert!(told.lines().all(|line| line.ends_with(" new")), "{told}");
    let told = broker.example("replay", &["orders", "36000"]).ends();
    assert_eq!(told.lines().count(), 50, "{told}");
    let told = broker.example("replay", &["orders", "60"]).ends();
    assert_eq!(told, "");
}
