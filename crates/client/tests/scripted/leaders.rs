//! Leaders that move, die, or stop to answer: clients go where they are told, or ask somebody else.

use std::time::Duration;

use timberline_client::{
    ApiError, Client, ClientOptions, ConsumerOptions, Position, ProducerOptions, ProducerRecord,
    Reason,
};

use crate::broker::Broker;
use crate::{client, soon};

fn elsewhere(to: &Broker, epoch: i32) -> ApiError {
    ApiError::new(Reason::NotLeader, "somebody else leads")
        .with("leader_id", 2)
        .with("leader_address", to.state.address)
        .with("leader_epoch", epoch)
}

fn values(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

async fn send(producer: &timberline_client::Producer, numbers: std::ops::Range<usize>) {
    let mut deliveries = Vec::new();
    for value in values(numbers) {
        let record = ProducerRecord::value("t", value).with_partition(0);
        deliveries.push(producer.send(record).await.unwrap());
    }
    for delivery in deliveries {
        soon(delivery).await.unwrap();
    }
}

fn options() -> ProducerOptions {
    ProducerOptions::default().linger(Duration::ZERO)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_goes_where_a_refusal_says_without_asking_for_metadata() {
    let (old, new) = (Broker::start(1).await, Broker::start(1).await);
    let producer = client(&old).await.producer(options()).await.unwrap();
    producer.prepare("t").await.unwrap();
    old.faults(|faults| {
        faults.refuse = (0..100).map(|_| elsewhere(&new, 5)).collect();
        faults.hang = true;
    });
    send(&producer, 0..50).await;
    assert_eq!(new.values(0), values(0..50));
    assert!(old.values(0).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_name_each_other_are_not_believed_twice() {
    let (one, other) = (Broker::start(1).await, Broker::start(1).await);
    let producer = client(&one).await.producer(options()).await.unwrap();
    one.faults(|faults| faults.refuse = (0..3).map(|_| elsewhere(&other, 5)).collect());
    other.faults(|faults| faults.refuse = (0..3).map(|_| elsewhere(&one, 5)).collect());
    send(&producer, 0..1).await;
    let written = one.values(0).len() + other.values(0).len();
    assert_eq!(written, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_says_nothing_is_left_when_another_one_leads() {
    let (silent, new) = (Broker::start(1).await, Broker::start(1).await);
    let producer = client(&silent).await.producer(options()).await.unwrap();
    send(&producer, 0..1).await;
    // It reads on and answers nothing, as one that is stopped; its connections stay.
    silent.faults(|faults| {
        faults.swallow = true;
        faults.leader = Some((new.state.address, 2));
    });
    // The new leader has what the old one acknowledged.
    let log = std::mem::take(&mut silent.state.logs.lock()[0]);
    new.state.logs.lock()[0] = log;
    send(&producer, 1..40).await;
    assert_eq!(new.values(0), values(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_left_at_once_and_what_it_had_is_not_written_twice() {
    let (mut old, new) = (Broker::start(1).await, Broker::start(1).await);
    let both = ClientOptions::default()
        .bootstrap([old.state.address, new.state.address].map(|address| address.to_string()));
    let client = Client::connect(both).await.unwrap();
    let producer = client.producer(options()).await.unwrap();
    send(&producer, 0..10).await;
    // Written, and dead before the answer.
    old.faults(|faults| faults.swallow = true);
    let record = ProducerRecord::value("t", "10").with_partition(0);
    let open = producer.send(record).await.unwrap();
    let log = std::mem::take(&mut old.state.logs.lock()[0]);
    new.state.logs.lock()[0] = log;
    new.faults(|faults| faults.leader = Some((new.state.address, 2)));
    old.kill();
    assert_eq!(soon(open).await.unwrap().offset, 10);
    send(&producer, 11..30).await;
    assert_eq!(new.values(0), values(0..30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_is_left_for_another() {
    let (hung, well) = (Broker::start(1).await, Broker::start(1).await);
    hung.faults(|faults| faults.hang = true);
    let both = ClientOptions::default()
        .bootstrap([hung.state.address, well.state.address].map(|address| address.to_string()));
    let client = soon(Client::connect(both.clone())).await.unwrap();
    assert_eq!(soon(client.cluster()).await.unwrap().cluster_id, "test");
    // And one that begins to hang later.
    hung.faults(|faults| faults.hang = false);
    let client = soon(Client::connect(both)).await.unwrap();
    hung.faults(|faults| faults.hang = true);
    soon(client.metadata("t")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_where_a_refusal_says() {
    let (old, new) = (Broker::start(1).await, Broker::start(1).await);
    new.fill(0, &[&["0", "1"], &["2"]]);
    old.faults(|faults| faults.refuse_fetch.push_back(elsewhere(&new, 5)));
    let mut consumer = client(&old)
        .await
        .consumer(ConsumerOptions::default())
        .await
        .unwrap();
    consumer.assign("t", 0, Position::Offset(0)).await.unwrap();
    for offset in 0..3 {
        assert_eq!(soon(consumer.recv()).await.unwrap().offset, offset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_follows_a_killed_leader_without_an_error() {
    let (mut old, new) = (Broker::start(1).await, Broker::start(1).await);
    for broker in [&old, &new] {
        broker.fill(0, &[&["0"], &["1"]]);
    }
    let both = ClientOptions::default()
        .bootstrap([old.state.address, new.state.address].map(|address| address.to_string()));
    let client = Client::connect(both).await.unwrap();
    let mut consumer = client.consumer(ConsumerOptions::default()).await.unwrap();
    consumer.assign("t", 0, Position::Earliest).await.unwrap();
    for offset in 0..2 {
        assert_eq!(soon(consumer.recv()).await.unwrap().offset, offset);
    }
    new.faults(|faults| faults.leader = Some((new.state.address, 2)));
    new.fill(0, &[&["2"], &["3"]]);
    old.kill();
    for offset in 2..4 {
        assert_eq!(soon(consumer.recv()).await.unwrap().offset, offset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_asked_of_the_leader() {
    let (other, leader) = (Broker::start(2).await, Broker::start(2).await);
    leader.fill(1, &[&["0", "1", "2"]]);
    other.faults(|faults| faults.leader = Some((leader.state.address, 2)));
    let client = client(&other).await;
    let ends = [(0, Position::Latest), (1, Position::Latest)];
    let found = client.admin().list_offsets("t", &ends).await.unwrap();
    assert_eq!([found[0].offset, found[1].offset], [0, 3]);
    // One that has moved on says where to.
    other.fill(1, &[&["0"], &["1"], &["2"], &["3"]]);
    leader.faults(|faults| faults.refuse_offsets.push_back(elsewhere(&other, 3)));
    let found = client.admin().list_offsets("t", &ends[1..]).await.unwrap();
    assert_eq!(found[0].offset, 4);
}
