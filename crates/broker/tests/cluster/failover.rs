//! Leaders that go: what was acknowledged stays, clients are told where to go, nothing is written twice.

use std::collections::BTreeSet;

use timberline_proto::error::Reason;
use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn what_a_dead_leader_acknowledged_is_read_at_the_next_one() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 2, 3).await;
    let load = Load::start(&cluster, "t", 0).await;
    for round in 0..3 {
        load.goes_on(30).await;
        let before = cluster.leader("t", 0).await;
        let dead = before.leader_id.unwrap();
        cluster.at_mut(dead).crash(round == 1).await;
        let after = cluster.leader("t", 0).await;
        assert!(after.leader_epoch > before.leader_epoch);
        load.goes_on(30).await;
        cluster.start_all().await;
        load.brokers.lock().clone_from(&cluster.addresses());
        cluster.in_sync("t", 3).await;
    }
    load.check(&cluster).await;
}

#[tokio::test]
async fn who_does_not_lead_says_who_does() {
    let cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 2).await;
    let leads = cluster.leader("t", 0).await;
    let leader = leads.leader_id.unwrap();
    let mut without_replica = 0;
    for member in cluster.up().filter(|one| one.id != leader) {
        without_replica += usize::from(!leads.replicas.contains(&member.id));
        let told = put(member.channel(), once("t", 0, "x", None)).await;
        let told = told.unwrap_err();
        assert_eq!(told.reason, Some(Reason::NotLeader));
        let fact = |key: &str| told.metadata.get(key).cloned().unwrap_or_default();
        assert_eq!(fact("leader_id"), leader.to_string());
        assert_eq!(fact("leader_address"), cluster.at(leader).address());
        assert_eq!(fact("leader_epoch"), leads.leader_epoch.to_string());
        let offset = put(channel(&fact("leader_address")), once("t", 0, "x", None)).await;
        offset.unwrap();
    }
    assert_eq!(without_replica, 1, "one of the three has no replica");
}

#[tokio::test]
async fn a_leader_without_followers_acknowledges_nothing_and_steps_down() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let leader = cluster.leader("t", 0).await.leader_id.unwrap();
    put(cluster.at(leader).channel(), once("t", 0, "kept", None))
        .await
        .unwrap();
    let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        cluster.at_mut(*id).crash(false).await;
    }
    // Whatever it says until it notices: it is no acknowledgement. Then it says that nobody leads.
    until("it has stepped down", async || {
        let sent = put(cluster.at(leader).channel(), once("t", 0, "lost?", None)).await;
        let refused = sent.expect_err("acknowledged without a majority");
        assert!(
            matches!(refused.reason, Some(Reason::NoLeader | Reason::NotLeader)),
            "{refused}"
        );
        (refused.reason == Some(Reason::NoLeader)).then_some(())
    })
    .await;
    // The other two go on without it; what it has and they have not is not theirs.
    cluster.at_mut(leader).crash(false).await;
    let (first, second) = {
        let mut down = cluster.members.values_mut().filter(|one| one.id != leader);
        (down.next().unwrap(), down.next().unwrap())
    };
    let (one, other) = tokio::join!(first.start(), second.start());
    one.unwrap();
    other.unwrap();
    cluster.all_live().await;
    let next = cluster.leader("t", 0).await.leader_id.unwrap();
    let offset = put(cluster.at(next).channel(), once("t", 0, "new", None))
        .await
        .unwrap();
    assert_eq!(offset, 1);
    cluster.start_all().await;
    cluster.in_sync("t", 3).await;
    let read = cluster.read("t", 0).await;
    assert_eq!(read, [(0, "kept".to_owned()), (1, "new".to_owned())]);
    // Also by the one that had led, when it leads again.
    transfer(&cluster, "t", leader).await;
    assert_eq!(cluster.read("t", 0).await, read);
}

#[tokio::test]
async fn a_batch_sent_again_to_the_next_leader_is_stored_once() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 1, 3).await;
    let id = cluster.at(1).new_producer().await;
    let mut sequence = 0;
    for round in 0..2 {
        let leader = cluster.leader("t", 0).await.leader_id.unwrap();
        let mut producing = Producing::open(cluster.at(leader).producer()).await;
        let batches: Vec<_> = (0..5)
            .map(|n| {
                batch(
                    &[&format!("{round}-{n}"), "more"],
                    Some((id, 0, sequence + n * 2)),
                )
            })
            .collect();
        for one in &batches {
            let ack = producing.put(&topic, one.clone()).await.ack();
            assert!(!ack.duplicate);
        }
        // Its answers are as if they had been lost: the same bytes go to the next leader.
        cluster.at_mut(leader).crash(false).await;
        let next = cluster.leader("t", 0).await.leader_id.unwrap();
        assert_ne!(next, leader);
        let mut producing = Producing::open(cluster.at(next).producer()).await;
        for (n, one) in batches.iter().enumerate() {
            let ack = producing.put(&topic, one.clone()).await.ack();
            let base_offset = i64::from(sequence) + n as i64 * 2;
            assert_eq!((ack.duplicate, ack.base_offset), (true, base_offset));
        }
        sequence += 10;
        // What the producer may send next is known there, too: neither a gap nor an older epoch.
        let gap = batch(&["gap"], Some((id, 0, sequence + 1)));
        let refused = producing.put(&topic, gap).await.error();
        assert_eq!(refused.reason, "OUT_OF_ORDER_SEQUENCE");
        let mut producing = Producing::open(cluster.at(next).producer()).await;
        let on = batch(&["on"], Some((id, 0, sequence)));
        let ack = producing.put(&topic, on).await.ack();
        assert_eq!(ack.base_offset, i64::from(sequence));
        sequence += 1;
        cluster.start_all().await;
        cluster.in_sync("t", 3).await;
    }
    let read = cluster.read("t", 0).await;
    assert_eq!(read.len(), sequence as usize);
    let newer = cluster.leader("t", 0).await.leader_id.unwrap();
    let mut producing = Producing::open(cluster.at(newer).producer()).await;
    let epoch = batch(&["next epoch"], Some((id, 1, 0)));
    producing.put(&topic, epoch).await.ack();
    cluster.at_mut(newer).crash(false).await;
    let next = cluster.leader("t", 0).await.leader_id.unwrap();
    let mut producing = Producing::open(cluster.at(next).producer()).await;
    let fenced = batch(&["older"], Some((id, 0, sequence)));
    assert_eq!(
        producing.put(&topic, fenced).await.error().reason,
        "PRODUCER_FENCED"
    );
}

#[tokio::test]
async fn streams_are_told_in_band_where_their_partition_went() {
    let cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 1, 3).await;
    // The one that is preferred, so that it is given the leadership back in the end.
    let first = until("the preferred leader leads", async || {
        let seen = cluster.leader("t", 0).await;
        seen.leader_id.filter(|id| *id == seen.replicas[0])
    })
    .await;
    let mut producing = Producing::open(cluster.at(first).producer()).await;
    producing.put(&topic, batch(&["a"], None)).await.ack();
    let mut fetching = Fetching::open(cluster.at(first).consumer(), 0).await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert_eq!(fetching.values(1).await, ["a"]);
    // While it drains nobody hands the leadership back.
    let drain = DrainBrokerRequest {
        broker_id: first,
        ..Default::default()
    };
    cluster.at(first).admin().drain_broker(drain).await.unwrap();
    let others: BTreeSet<String> = cluster.up().map(Member::address).collect();
    let names_another = |error: &ItemError| {
        let reasons = ["NOT_LEADER", "NO_LEADER"];
        assert!(reasons.contains(&error.reason.as_str()), "{error:?}");
        let address = error.metadata.get("leader_address");
        address.is_some_and(|told| others.contains(told) && *told != cluster.at(first).address())
    };
    until("the fetch stream names the next leader", async || {
        loop {
            match fetching.next().await {
                fetch_response::Kind::Failure(failure) => {
                    if names_another(&failure.error.unwrap()) {
                        return Some(());
                    }
                    fetching.assign(&topic, 0, 1, 1).await;
                    return None;
                }
                fetch_response::Kind::Progress(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    })
    .await;
    // Both streams go on, and of other partitions nothing is said.
    until("the produce stream names the next leader", async || {
        producing.send(&topic, 0, batch(&["b"], None)).await;
        loop {
            let next = tokio::time::timeout(PATIENCE, producing.receiver.message());
            match next.await.unwrap().unwrap().unwrap().kind.unwrap() {
                produce_response::Kind::LeaderMoved(moved) => assert_ne!(moved.leader_id, first),
                produce_response::Kind::Failure(failure) => {
                    return names_another(&failure.error.unwrap()).then_some(());
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    })
    .await;
    let undrain = UndrainBrokerRequest {
        broker_id: first,
        ..Default::default()
    };
    cluster
        .at(first)
        .admin()
        .undrain_broker(undrain)
        .await
        .unwrap();
    until("it leads again", async || {
        (cluster.leader("t", 0).await.leader_id == Some(first)).then_some(())
    })
    .await;
    let ack = producing.put(&topic, batch(&["b"], None)).await.ack();
    assert_eq!(ack.base_offset, 1);
    fetching.assign(&topic, 0, 1, 2).await;
    assert_eq!(fetching.values(1).await, ["b"]);
}

#[tokio::test]
async fn the_preferred_leaders_lead_again_when_they_are_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 6, 3).await;
    let preferred = async |cluster: &Cluster| {
        until("the preferred leaders lead", async || {
            for number in 0..6 {
                let seen = cluster.at(1).sees_partition("t", number).await?;
                (seen.leader_id == seen.replicas.first().copied()).then_some(())?;
            }
            Some(())
        })
        .await;
    };
    preferred(&cluster).await;
    cluster.at_mut(2).crash(false).await;
    for number in 0..6 {
        assert_ne!(cluster.leader("t", number).await.leader_id, Some(2));
    }
    cluster.start_all().await;
    preferred(&cluster).await;
    let mut leaders = BTreeSet::new();
    for number in 0..6 {
        leaders.insert(cluster.leader("t", number).await.leader_id);
    }
    assert_eq!(leaders.len(), 3, "every broker leads some");
}
