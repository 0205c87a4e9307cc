//! Disks, brokers and racks that are lost, and what goes on without them.

use timberline_proto::error::Reason;
use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn a_broker_that_lost_its_disk_gets_new_replicas() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 2, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(50).await;
    let lost = cluster.leader("t", 0).await.leader_id.unwrap();
    cluster.at_mut(lost).crash(false).await;
    load.brokers.lock().clone_from(&cluster.addresses());
    load.goes_on(20).await;
    cluster.at_mut(lost).lose_disk();
    cluster.start_all().await;
    assert_eq!(
        cluster.at(lost).cluster_id(),
        cluster.at(lost % 3 + 1).cluster_id()
    );
    cluster.in_sync("t", 3).await;
    assert!(cluster.at(lost).files_of(&topic) >= 2);
    for member in cluster.up() {
        let seen = member.sees_partition("t", 0).await.unwrap();
        assert!(
            seen.offline.is_empty() && seen.replicas.len() == 3,
            "{seen:?}"
        );
    }
    // It has everything: what it lacks nobody else has to make up for.
    load.brokers.lock().clone_from(&cluster.addresses());
    load.goes_on(20).await;
    transfer(&cluster, "t", lost).await;
    load.check(&cluster).await;
    // And it counts in the metadata's majority again, as another member.
    let other = cluster.up().find(|one| one.id != lost).unwrap().id;
    until("it votes on metadata", async || {
        let request = create("probe", 1, 3);
        cluster.at(lost).admin().create_topic(request).await.ok()
    })
    .await;
    cluster.at_mut(other).crash(false).await;
    until("a majority with it", async || {
        let request = create("after", 1, 2);
        cluster.at(lost).admin().create_topic(request).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_broker_whose_sync_fails_steps_down_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 3, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(20).await;
    // One that leads, then one that follows.
    for leads in [true, false] {
        let leader = cluster.leader("t", 0).await.leader_id.unwrap();
        let broken = match leads {
            true => leader,
            false => (1..=3).find(|id| *id != leader).unwrap(),
        };
        cluster.at(broken).disk.fail_next_sync("");
        until("others lead what it led", async || {
            for number in 0..3 {
                let seen = cluster.leader("t", number).await;
                (seen.leader_id != Some(broken) && !seen.in_sync.contains(&broken)).then_some(())?;
            }
            (cluster.controller().await != broken).then_some(())
        })
        .await;
        load.goes_on(20).await;
        let mut admin = cluster.at(broken).admin();
        let info = admin.cluster_info(ClusterInfoRequest {}).await;
        let info = info.unwrap().into_inner();
        let own = info
            .brokers
            .iter()
            .find(|one| one.broker.as_ref().unwrap().broker_id == broken);
        assert!(!own.unwrap().writable);
        // It sends clients to who leads.
        let told = put(cluster.at(broken).channel(), once("t", 1, "x", None)).await;
        let told = told.unwrap_err();
        assert_eq!(told.reason, Some(Reason::NotLeader), "{told}");
        // A restart mends it.
        cluster.at_mut(broken).crash(true).await;
        cluster.start_all().await;
        load.brokers.lock().clone_from(&cluster.addresses());
        cluster.in_sync("t", 3).await;
    }
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_lost_rack_of_three_leaves_every_partition_serving() {
    let mut cluster = Cluster::of(3);
    // Two brokers in each of two racks, one in the third, is for placement to deal with.
    let seeds = cluster.seeds.clone();
    for (id, rack) in [(4, 1), (5, 2)] {
        let name = format!("rack-{rack}");
        cluster
            .members
            .insert(id, Member::new(id, &name, &free_peer(), &seeds));
    }
    cluster.start_all().await;
    cluster.topic("t", 10, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(10).await;
    for rack in [[1, 4], [2, 5]] {
        for id in rack {
            cluster.at_mut(id).crash(false).await;
        }
        load.brokers.lock().clone_from(&cluster.addresses());
        for number in 0..10 {
            let led = until("a partition serves", async || {
                let leader = cluster.leader("t", number).await.leader_id?;
                // The load has partition 0 for itself.
                let to = cluster.at(leader).channel();
                match number {
                    0 => Some(()),
                    _ => put(to, once("t", number, "x", None)).await.ok().map(drop),
                }
            });
            led.await;
        }
        load.goes_on(10).await;
        until("metadata are changed", async || {
            let any = cluster.up().next()?;
            let name = format!("after-{}", rack[0]);
            any.admin().create_topic(create(&name, 1, 2)).await.ok()
        })
        .await;
        cluster.start_all().await;
        cluster.in_sync("t", 3).await;
        load.brokers.lock().clone_from(&cluster.addresses());
    }
    load.check(&cluster).await;
}

#[tokio::test]
async fn without_a_majority_nothing_is_acknowledged_and_with_one_it_goes_on() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(20).await;
    let left = cluster.leader("t", 0).await.leader_id.unwrap();
    let lost: Vec<i32> = (1..=3).filter(|id| *id != left).collect();
    for id in &lost {
        cluster.at_mut(*id).crash(true).await;
    }
    load.brokers.lock().clone_from(&cluster.addresses());
    until("it knows that nobody leads", async || {
        let sent = put(cluster.at(left).channel(), once("t", 0, "x", None)).await;
        let refused = sent.expect_err("acknowledged without a majority");
        (refused.reason == Some(Reason::NoLeader)).then_some(())
    })
    .await;
    let stopped_at = load.acked();
    // Changes of the metadata stop as cleanly, with an answer.
    let refused = cluster
        .at(left)
        .admin()
        .create_topic(create("u", 1, 1))
        .await;
    let why = reason(&refused.unwrap_err());
    assert!(
        ["NO_LEADER", "NOT_LEADER", "TIMEOUT"].contains(&why.as_str()),
        "{why}"
    );
    for _ in 0..10 {
        let sent = put(cluster.at(left).channel(), once("t", 0, "x", None)).await;
        assert_eq!(sent.unwrap_err().reason, Some(Reason::NoLeader));
    }
    assert_eq!(load.acked(), stopped_at);
    cluster.at_mut(lost[0]).start().await.unwrap();
    cluster.all_live().await;
    load.brokers.lock().clone_from(&cluster.addresses());
    load.goes_on(20).await;
    cluster.start_all().await;
    cluster.in_sync("t", 3).await;
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_follower_that_is_left_alone_sends_nobody_to_a_dead_leader() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let leader = cluster.leader("t", 0).await.leader_id.unwrap();
    let alone = (1..=3).find(|id| *id != leader).unwrap();
    for id in (1..=3).filter(|id| *id != alone) {
        cluster.at_mut(id).crash(false).await;
    }
    let alone = cluster.at(alone);
    until("it names no leader", async || {
        let refused = put(alone.channel(), once("t", 0, "x", None))
            .await
            .unwrap_err();
        let typed = [Some(Reason::NoLeader), Some(Reason::NotLeader)];
        assert!(typed.contains(&refused.reason), "{refused}");
        (refused.reason == Some(Reason::NoLeader)).then_some(())
    })
    .await;
    // Nor itself, if it led for a moment.
    until("its metadata name none", async || {
        let seen = alone.sees().await;
        let leader = seen.topics[0].partitions[0].leader_id;
        let controller = seen.cluster?.controller_id;
        (leader.is_none() && controller.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_of_a_broker_that_stays_away_are_rebuilt_elsewhere() {
    let mut cluster = Cluster::start_with(3, |config| {
        config.cluster.replacement_after = timberline_broker::config::Span(1000);
    })
    .await;
    cluster.join(4).await;
    let topic = cluster.topic("t", 4, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(20).await;
    let away = cluster.leader("t", 0).await.leader_id.unwrap();
    cluster.at_mut(away).crash(false).await;
    load.brokers.lock().clone_from(&cluster.addresses());
    until("three of the others have it all", async || {
        for number in 0..4 {
            let seen = cluster.leader("t", number).await;
            let whole = seen.in_sync.len() == 3 && seen.adding.is_empty();
            (whole && !seen.replicas.contains(&away)).then_some(())?;
        }
        Some(())
    })
    .await;
    load.goes_on(20).await;
    // What it has when it comes back is of no use to anybody.
    cluster.start_all().await;
    load.check(&cluster).await;
    until("its old replicas are gone", async || {
        let mut hosted = 0;
        for number in 0..4 {
            hosted += usize::from(cluster.leader("t", number).await.replicas.contains(&away));
        }
        (hosted > 0 || cluster.at(away).files_of(&topic) == 0).then_some(())
    })
    .await;
}
