//! How a cluster begins, who is let in, and what survives a restart of everybody.

use std::collections::BTreeSet;

use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn seeds_found_one_cluster_and_all_are_registered() {
    let cluster = Cluster::start(3).await;
    let ids: BTreeSet<String> = cluster.up().map(Member::cluster_id).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(!ids.first().unwrap().is_empty());
    for member in cluster.up() {
        let seen = member.sees().await.cluster.unwrap();
        let brokers: Vec<_> = seen
            .brokers
            .iter()
            .map(|b| (b.broker_id, b.rack.clone()))
            .collect();
        assert_eq!(brokers, [1, 2, 3].map(|id| (id, rack(id))));
        for broker in seen.brokers {
            assert_eq!(broker.address, cluster.at(broker.broker_id).address());
            assert_eq!(broker.state(), BrokerState::Active);
        }
    }
}

#[tokio::test]
async fn nobody_founds_while_a_seed_does_not_answer() {
    let mut cluster = Cluster::of(3);
    let seeds = cluster.seeds.clone();
    let mut first = cluster.members.remove(&1).unwrap();
    let mut second = cluster.members.remove(&2).unwrap();
    let two = tokio::spawn(async move {
        let (one, other) = tokio::join!(first.start(), second.start());
        one.unwrap();
        other.unwrap();
        (first, second)
    });
    // Each asks the seeds ten times a second; both answer, and neither has founded anything.
    for round in 0..20 {
        for seed in &seeds[..2] {
            let answer = until("the seed answers", async || status(seed).await.ok()).await;
            assert_eq!(answer.founded, "", "round {round}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!two.is_finished());
    let mut third = cluster.members.remove(&3).unwrap();
    third.start().await.unwrap();
    let (first, second) = two.await.unwrap();
    cluster
        .members
        .extend([(1, first), (2, second), (3, third)]);
    cluster.all_live().await;
    let ids: BTreeSet<String> = cluster.up().map(Member::cluster_id).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_fourth_broker_joins_through_one_seed_and_does_not_vote() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("before", 1, 3).await;
    cluster.join(4).await;
    let newcomer = cluster.at(4);
    assert_eq!(newcomer.cluster_id(), cluster.at(1).cluster_id());
    until("it knows the topics", async || {
        let topics = newcomer.sees().await.topics;
        topics.iter().any(|one| one.name == "before").then_some(())
    })
    .await;
    // It takes part: it is told of changes and given replicas.
    cluster.topic("wide", 4, 4).await;
    // Three of four voters would be a majority, two of four would not: two founders alone still make changes.
    let controller = cluster.controller().await;
    let gone = (1..=3).find(|id| *id != controller).unwrap();
    cluster.at_mut(4).crash(false).await;
    cluster.at_mut(gone).crash(false).await;
    until("two founders are a majority", async || {
        let request = create("after", 1, 2);
        let made = cluster.at(controller).admin().create_topic(request).await;
        made.ok()
    })
    .await;
}

#[tokio::test]
async fn a_restart_of_everybody_keeps_the_cluster_its_topics_and_records() {
    let mut cluster = Cluster::start(3).await;
    let before = cluster.at(1).cluster_id();
    let topic = cluster.topic("kept", 3, 3).await;
    let load = Load::start(&cluster, "kept", 0).await;
    load.goes_on(20).await;
    for power_loss in [false, true] {
        for member in cluster.members.values_mut() {
            member.crash(power_loss).await;
        }
        cluster.start_all().await;
        cluster.in_sync("kept", 3).await;
        load.brokers.lock().clone_from(&cluster.addresses());
        load.goes_on(20).await;
    }
    for member in cluster.up() {
        assert_eq!(member.cluster_id(), before);
        let topics = member.sees().await.topics;
        assert_eq!(topics.len(), 1);
        assert_eq!(topics[0].topic_id, topic);
        assert_eq!(topics[0].partitions.len(), 3);
    }
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_clean_restart_one_by_one_is_not_seen_by_a_producer() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    for id in 1..=3 {
        load.goes_on(20).await;
        cluster.at_mut(id).stop().await;
        load.goes_on(20).await;
        cluster.at_mut(id).start().await.unwrap();
        cluster.all_live().await;
        cluster.in_sync("t", 3).await;
        load.brokers.lock().clone_from(&cluster.addresses());
    }
    load.check(&cluster).await;
}
