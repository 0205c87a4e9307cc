//! Brokers that are drained, filled, emptied and taken out, and replicas that move, while a producer goes on.

use timberline_proto::v1::*;

use crate::support::*;

async fn drain(broker: &Member, id: i32) -> Operation {
    let request = DrainBrokerRequest {
        request_id: format!("drain {id}"),
        broker_id: id,
    };
    let begun = broker.admin().drain_broker(request).await.unwrap();
    begun.into_inner().operation.unwrap()
}

/// How many partitions of a topic a broker leads, as all see it.
async fn led_by(cluster: &Cluster, topic: &str, partitions: i32, id: i32) -> usize {
    let mut led = 0;
    for number in 0..partitions {
        led += usize::from(cluster.leader(topic, number).await.leader_id == Some(id));
    }
    led
}

#[tokio::test]
async fn a_drain_moves_leaderships_off_and_the_end_of_it_brings_them_back() {
    let cluster = Cluster::start(3).await;
    cluster.topic("t", 6, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    let drained = cluster.leader("t", 0).await.leader_id.unwrap();
    let other = cluster.up().find(|one| one.id != drained).unwrap();
    load.goes_on(10).await;
    let operation = drain(other, drained).await;
    assert_eq!(operation.kind(), OperationKind::Drain);
    until("it leads nothing", async || {
        (led_by(&cluster, "t", 6, drained).await == 0).then_some(())
    })
    .await;
    load.goes_on(10).await;
    until("it may be stopped", async || {
        let stop = CanStopRequest { broker_id: drained };
        let stop = other.admin().can_stop(stop).await.unwrap();
        stop.into_inner().can_stop.then_some(())
    })
    .await;
    for member in cluster.up() {
        let seen = member.sees().await.cluster.unwrap();
        let one = seen.brokers.iter().find(|one| one.broker_id == drained);
        assert_eq!(one.unwrap().state(), BrokerState::Draining);
    }
    let undrain = UndrainBrokerRequest {
        broker_id: drained,
        ..Default::default()
    };
    let back = cluster.at(drained).admin().undrain_broker(undrain).await;
    let back = back.unwrap().into_inner().broker.unwrap();
    assert_eq!(back.state(), BrokerState::Active);
    until("it leads again what it should", async || {
        let seen = cluster.leader("t", 0).await;
        (seen.leader_id == Some(seen.replicas[0])).then_some(())?;
        (led_by(&cluster, "t", 6, drained).await == 2).then_some(())
    })
    .await;
    load.goes_on(10).await;
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_leadership_goes_where_it_is_asked_to() {
    let cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    for to in [2, 3, 1, 3] {
        transfer(&cluster, "t", to).await;
        load.goes_on(10).await;
    }
    load.check(&cluster).await;
    // Somebody without a replica can't have it.
    cluster.topic("narrow", 1, 2).await;
    let seen = cluster.leader("narrow", 0).await;
    let without = (1..=3).find(|id| !seen.replicas.contains(id)).unwrap();
    let request = TransferLeaderRequest {
        topic: Some(by_name("narrow")),
        broker_id: Some(without),
        ..Default::default()
    };
    let refused = cluster.at(without).admin().transfer_leader(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "NOT_IN_SYNC");
    assert_eq!(cluster.leader("narrow", 0).await, seen);
}

#[tokio::test]
async fn a_partition_moves_to_a_fourth_broker_and_leaves_nothing_behind() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 1, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    cluster.join(4).await;
    load.brokers.lock().clone_from(&cluster.addresses());
    load.goes_on(20).await;
    // First one that follows, then the leader itself, goes to whoever has none.
    for leads in [false, true] {
        let seen = cluster.leader("t", 0).await;
        let leader = seen.leader_id.unwrap();
        let new = (1..=4).find(|id| !seen.replicas.contains(id)).unwrap();
        let mut brokers = seen.replicas.clone();
        let goes = brokers
            .iter_mut()
            .find(|id| (**id == leader) == leads)
            .unwrap();
        let old = std::mem::replace(goes, new);
        let request = MovePartitionRequest {
            topic: Some(by_name("t")),
            brokers: brokers.clone(),
            ..Default::default()
        };
        let asked = cluster.at(old);
        let begun = asked.admin().move_partition(request).await.unwrap();
        let operation = begun.into_inner().operation.unwrap();
        let operation = ended(asked, &operation).await;
        assert_eq!(operation.state(), OperationState::Done, "{operation:?}");
        cluster.in_sync("t", 3).await;
        let seen = cluster.leader("t", 0).await;
        assert_eq!(seen.replicas, brokers);
        until("the old replica's files are gone", async || {
            (asked.files_of(&topic) == 0).then_some(())
        })
        .await;
        assert!(cluster.at(new).files_of(&topic) > 0);
        load.goes_on(20).await;
    }
    // The new ones have everything: one of them leads, and is read.
    transfer(&cluster, "t", 4).await;
    load.goes_on(10).await;
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_move_whose_leader_and_controller_die_still_ends() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    cluster.join(4).await;
    load.goes_on(20).await;
    for _ in 0..3 {
        let seen = cluster.leader("t", 0).await;
        let leader = seen.leader_id.unwrap();
        let new = (1..=4).find(|id| !seen.replicas.contains(id)).unwrap();
        let mut brokers = seen.replicas.clone();
        *brokers.iter_mut().find(|id| **id != leader).unwrap() = new;
        let request = MovePartitionRequest {
            topic: Some(by_name("t")),
            brokers: brokers.clone(),
            ..Default::default()
        };
        let begun = cluster
            .at(new)
            .admin()
            .move_partition(request)
            .await
            .unwrap();
        let operation = begun.into_inner().operation.unwrap();
        // Whatever step it is at.
        cluster.at_mut(leader).crash(false).await;
        let controller = cluster.controller().await;
        load.brokers.lock().clone_from(&cluster.addresses());
        load.goes_on(5).await;
        cluster.start_all().await;
        cluster.at_mut(controller).crash(true).await;
        cluster.start_all().await;
        load.brokers.lock().clone_from(&cluster.addresses());
        let operation = ended(cluster.at(new), &operation).await;
        assert_eq!(operation.state(), OperationState::Done, "{operation:?}");
        cluster.in_sync("t", 3).await;
        assert_eq!(cluster.leader("t", 0).await.replicas, brokers);
    }
    load.goes_on(10).await;
    load.check(&cluster).await;
}

#[tokio::test]
async fn a_decommissioned_broker_ends_empty_and_can_be_removed() {
    let mut cluster = Cluster::start(3).await;
    cluster.join(4).await;
    let topic = cluster.topic("t", 8, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    load.goes_on(20).await;
    // A founder, and the controller at that: the metadata have to do without it, too.
    let leaves = cluster.controller().await;
    assert!(cluster.at(leaves).files_of(&topic) > 0);
    let remove = RemoveBrokerRequest {
        broker_id: leaves,
        ..Default::default()
    };
    let other = cluster.another().await;
    let refused = cluster
        .at(other)
        .admin()
        .remove_broker(remove.clone())
        .await;
    assert_eq!(reason(&refused.unwrap_err()), "BROKER_STATE");
    let request = DecommissionBrokerRequest {
        broker_id: leaves,
        ..Default::default()
    };
    let begun = cluster.at(other).admin().decommission_broker(request).await;
    let operation = begun.unwrap().into_inner().operation.unwrap();
    let operation = ended(cluster.at(other), &operation).await;
    assert_eq!(operation.state(), OperationState::Done, "{operation:?}");
    load.goes_on(20).await;
    for member in cluster.up() {
        until("it has no replicas", async || {
            let seen = member.sees().await.cluster?.brokers;
            let one = seen.iter().find(|one| one.broker_id == leaves)?;
            (one.replicas == 0).then_some(())
        })
        .await;
    }
    until("its files are gone", async || {
        (cluster.at(leaves).files_of(&topic) == 0).then_some(())
    })
    .await;
    cluster.in_sync("t", 3).await;
    // It gives up, and does not put itself in again, neither while it still runs nor when it starts anew.
    let removed = cluster.at(other).admin().remove_broker(remove).await;
    removed.unwrap();
    let mut gone = cluster.members.remove(&leaves).unwrap();
    let known = async || {
        for member in cluster.up() {
            let seen = member.sees().await.cluster.unwrap().brokers;
            if seen.iter().any(|one| one.broker_id == leaves) {
                return true;
            }
        }
        false
    };
    until("nobody knows it any more", async || {
        (!known().await).then_some(())
    })
    .await;
    for _ in 0..40 {
        assert!(!known().await, "it came back by itself");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let removed = gone.broker();
    tokio::time::timeout(std::time::Duration::from_secs(10), removed.wait())
        .await
        .expect("it gives up by itself");
    let why = removed.given_up().unwrap();
    assert!(why.contains("removed from the cluster"), "{why}");
    let mut client = gone.metadata();
    let asked = client.get_metadata(GetMetadataRequest::default()).await;
    assert!(asked.is_err(), "its clients are sent away");
    drop(removed);
    gone.stop().await;
    let refused = gone.start().await.unwrap_err();
    assert!(
        matches!(refused, timberline_broker::Error::WrongBroker { configured, .. } if configured == leaves),
        "{refused}"
    );
    load.brokers.lock().clone_from(&cluster.addresses());
    load.goes_on(20).await;
    // The three that are left can lose one: the metadata's voters are among them.
    let controller = cluster.controller().await;
    cluster.at_mut(controller).crash(false).await;
    until("two of the three are a majority", async || {
        let any = cluster.up().next()?;
        any.admin().create_topic(create("after", 1, 2)).await.ok()
    })
    .await;
    cluster.start_all().await;
    load.brokers.lock().clone_from(&cluster.addresses());
    load.check(&cluster).await;
}

/// The sum of a metric over its labels.
async fn metric(member: &Member, name: &str) -> f64 {
    let (status, text) = member.http("/metrics").await;
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

#[tokio::test]
async fn a_broker_that_the_metadata_need_can_not_stop_and_without_them_nobody_is_ready() {
    let mut cluster = Cluster::start(3).await;
    cluster.all_live().await;
    let elections = async |cluster: &Cluster| {
        let mut sum = 0.0;
        for member in cluster.up() {
            sum += metric(member, "timberline_raft_leader_changes_total").await;
        }
        sum
    };
    let before = elections(&cluster).await;
    let can_stop = async |cluster: &Cluster, asked: i32, id: i32| {
        let stop = CanStopRequest { broker_id: id };
        let answer = cluster.at(asked).admin().can_stop(stop).await;
        answer.unwrap().into_inner()
    };
    until("each could be stopped", async || {
        for id in 1..=3 {
            can_stop(&cluster, 1, id).await.can_stop.then_some(())?;
        }
        Some(())
    })
    .await;
    let controller = cluster.controller().await;
    let counted = metric(
        cluster.at(controller),
        "timberline_raft_leader_changes_total",
    )
    .await;
    cluster.at_mut(controller).crash(false).await;
    let left: Vec<i32> = cluster.up().map(|member| member.id).collect();
    // Who needed the other's vote counts its election as well.
    until("the election is counted", async || {
        (elections(&cluster).await > before - counted).then_some(())
    })
    .await;
    until("neither of two can be stopped", async || {
        let told = can_stop(&cluster, left[0], left[1]).await;
        let risk = told.at_risk.first()?;
        assert_eq!((told.can_stop, told.at_risk_count), (false, 1));
        assert_eq!(risk.topic, "(the cluster's metadata)");
        // Right after the election the new leader knows of itself only.
        ((risk.left, risk.needed) == (1, 2)).then_some(())
    })
    .await;
    // The one that is away is not needed.
    until("the one that is away may be", async || {
        let told = can_stop(&cluster, left[0], controller).await;
        told.can_stop.then_some(())
    })
    .await;
    assert_eq!(cluster.at(left[0]).http("/readyz").await.0, 200);
    cluster.at_mut(left[1]).crash(false).await;
    until("a broker that is alone is not ready", async || {
        let (status, why) = cluster.at(left[0]).http("/readyz").await;
        (status == 503).then_some(())?;
        why.contains("no controller is known").then_some(())
    })
    .await;
    cluster.at_mut(controller).start().await.unwrap();
    until("it is ready with another", async || {
        (cluster.at(left[0]).http("/readyz").await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stop_waits_for_nobody_where_there_is_no_successor() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("narrow", 3, 1).await;
    let leader = cluster.leader("narrow", 0).await.leader_id.unwrap();
    let begun = std::time::Instant::now();
    cluster.at_mut(leader).stop().await;
    let took = begun.elapsed();
    assert!(took.as_millis() < 2500, "{took:?}");
}

#[tokio::test]
async fn replicas_that_the_metadata_name_later_are_not_quarantined_for_good() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 6, 3).await;
    cluster.in_sync("t", 3).await;
    for id in 1..=3 {
        cluster.at_mut(id).crash(true).await;
        cluster.at_mut(id).start().await.unwrap();
        cluster.in_sync("t", 3).await;
        until("all are taken up", async || {
            let name = "timberline_partitions{state=\"quarantined\"}";
            (metric(cluster.at(id), name).await == 0.0).then_some(())
        })
        .await;
    }
}
