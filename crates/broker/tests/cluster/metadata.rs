//! Changes of the metadata: asked of anybody, made once, seen everywhere.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn changes_asked_of_anybody_show_there_at_once() {
    let cluster = Cluster::start(3).await;
    let controller = cluster.controller().await;
    for member in cluster.up() {
        let name = format!("t{}", member.id);
        let mut admin = member.admin();
        let made = admin.create_topic(create(&name, 2, 3)).await.unwrap();
        let made = made.into_inner().topic.unwrap();
        let find = async || {
            let mut topics = member.sees().await.topics.into_iter();
            topics.find(|one| one.name == name)
        };
        let seen = find().await.expect("a new topic");
        assert_eq!(seen.topic_id, made.topic_id);
        // Who leads it is told beside the metadata, and may come a moment later.
        until("it hears of the leaders", async || {
            let partitions = find().await?.partitions;
            let led = partitions.iter().all(|one| one.leader_id.is_some());
            led.then_some(())
        })
        .await;

        let change = ConfigChange {
            key: "retention.ms".to_owned(),
            value: Some("12345".to_owned()),
        };
        let alter = AlterConfigRequest {
            topic: Some(by_name(&name)),
            changes: vec![change],
            ..Default::default()
        };
        admin.alter_config(alter).await.unwrap();
        let describe = DescribeConfigRequest {
            topic: Some(by_name(&name)),
        };
        let entries = admin.describe_config(describe).await.unwrap();
        let mut entries = entries.into_inner().entries.into_iter();
        let entry = entries.rfind(|one| one.key == "retention.ms");
        assert_eq!(entry.unwrap().value, "12345");

        let grow = AddPartitionsRequest {
            topic: Some(by_name(&name)),
            total: 3,
            ..Default::default()
        };
        admin.add_partitions(grow).await.unwrap();
        assert_eq!(find().await.unwrap().partitions.len(), 3);

        let drop = DeleteTopicRequest {
            topic: Some(by_name(&name)),
            ..Default::default()
        };
        admin.delete_topic(drop).await.unwrap();
        assert!(find().await.is_none(), "a deleted topic");
        // What is refused there is refused here, with the same reason.
        let refused = admin.create_topic(create("no/name", 1, 1)).await;
        assert_eq!(reason(&refused.unwrap_err()), "INVALID_TOPIC_NAME");
    }
    assert_eq!(cluster.controller().await, controller);
}

/// Whether a change may be asked for again: nothing is known of its outcome, or nothing was done.
fn again(error: &ApiError) -> bool {
    match error.reason {
        Some(reason) => {
            let passing = [
                Reason::NoLeader,
                Reason::NotLeader,
                Reason::Timeout,
                Reason::PeerUnreachable,
                Reason::Draining,
                Reason::Overloaded,
            ];
            passing.contains(&reason)
        }
        None => true,
    }
}

#[tokio::test]
async fn a_change_whose_controller_died_is_made_once() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let controller = cluster.controller().await;
        let asked = cluster.another().await;
        let mut under_way = Vec::new();
        for n in 0..20 {
            let mut admin = cluster.at(asked).admin();
            let name = format!("t-{round}-{n}");
            let request = CreateTopicRequest {
                request_id: format!("create {name}"),
                ..create(&name, 1, 2)
            };
            under_way.push(async move {
                let made = until("the topic is made", async || {
                    match admin.create_topic(request.clone()).await {
                        Ok(made) => made.into_inner().topic,
                        Err(status) => {
                            let error = ApiError::from_status(&status);
                            assert!(again(&error), "{name}: {error}");
                            None
                        }
                    }
                });
                let topic = made.await;
                assert_eq!(topic.name, name);
                // And again, as if the answer had been lost.
                let once_more = until("it is made still", async || {
                    let made = admin.create_topic(request.clone()).await.ok()?;
                    made.into_inner().topic
                });
                assert_eq!(once_more.await.topic_id, topic.topic_id);
                (name, topic.topic_id)
            });
        }
        let struck = async {
            // Some have been made by now, some are on their way, some are not.
            until("some are made", async || {
                let topics = cluster.at(asked).sees().await.topics;
                (topics.len() > round * 20).then_some(())
            })
            .await;
            cluster.at_mut(controller).crash(false).await;
        };
        let (made, ()) = tokio::join!(futures::future::join_all(under_way), struck);
        let made: BTreeMap<_, _> = made.into_iter().collect();
        assert_eq!(made.len(), 20);
        cluster.start_all().await;
        for member in cluster.up() {
            until("everybody has the same topics", async || {
                let topics = member.sees().await.topics.into_iter();
                let mine = topics.filter(|one| one.name.starts_with(&format!("t-{round}-")));
                let mine: BTreeMap<_, _> = mine.map(|one| (one.name, one.topic_id)).collect();
                (mine == made).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn producer_ids_are_given_once_whoever_controls() {
    let mut cluster = Cluster::start(3).await;
    let mut given = BTreeSet::new();
    for _ in 0..4 {
        for member in cluster.up() {
            for _ in 0..3 {
                let id = member.new_producer().await;
                assert!(given.insert(id), "{id} was given twice");
            }
        }
        let controller = cluster.controller().await;
        cluster.at_mut(controller).crash(true).await;
        for member in cluster.up() {
            let id = until("an id while one is gone", async || {
                let request = InitProducerRequest::default();
                let answer = member.producer().init_producer(request).await.ok()?;
                Some(answer.into_inner().producer_id)
            })
            .await;
            assert!(given.insert(id), "{id} was given twice");
        }
        cluster.start_all().await;
    }
    // An epoch is granted to one caller, and the older one is told.
    let id = cluster.at(1).new_producer().await;
    let raise = InitProducerRequest {
        producer_id: Some(id),
        producer_epoch: Some(0),
    };
    let raised = cluster.at(1).producer().init_producer(raise).await.unwrap();
    assert_eq!(raised.into_inner().producer_epoch, 1);
    let controller = cluster.controller().await;
    cluster.at_mut(controller).crash(false).await;
    until("the epoch is known at the next controller", async || {
        let any = cluster.up().next()?;
        let refused = any.producer().init_producer(raise).await.unwrap_err();
        let error = ApiError::from_status(&refused);
        assert!(
            again(&error) || error.reason == Some(Reason::ProducerFenced),
            "{error}"
        );
        (error.reason == Some(Reason::ProducerFenced)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_topic_leaves_nothing_behind_and_its_name_is_another_topics() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.topic("t", 3, 3).await;
    put(
        cluster
            .at(cluster.leader("t", 0).await.leader_id.unwrap())
            .channel(),
        once("t", 0, "old", None),
    )
    .await
    .unwrap();
    for member in cluster.up() {
        assert!(member.files_of(&old) >= 3, "broker {}", member.id);
    }
    // One is away and has to hear of it later.
    let away = cluster.another().await;
    cluster.at_mut(away).crash(false).await;
    let asked = cluster.up().next().unwrap().id;
    until("the topic is deleted", async || {
        let request = DeleteTopicRequest {
            request_id: "drop".to_owned(),
            topic: Some(by_name("t")),
            ..Default::default()
        };
        let dropped = cluster.at(asked).admin().delete_topic(request).await;
        assert_eq!(dropped.ok()?.into_inner().topic_id, old);
        Some(())
    })
    .await;
    let gone = async |cluster: &Cluster, topic: &Bytes| {
        for member in cluster.up() {
            until("its files are gone", async || {
                (member.files_of(topic) == 0).then_some(())
            })
            .await;
        }
    };
    gone(&cluster, &old).await;
    let new = until("the name is free", async || {
        let made = cluster
            .at(asked)
            .admin()
            .create_topic(create("t", 1, 2))
            .await;
        made.ok()?.into_inner().topic
    })
    .await;
    assert_ne!(new.topic_id, old);
    let leader = cluster.leader("t", 0).await.leader_id.unwrap();
    assert_eq!(cluster.read("t", 0).await, [], "it is nobody's heir");
    let mut producing = Producing::open(cluster.at(leader).producer()).await;
    let refused = producing.put(&old, batch(&["late"], None)).await.error();
    assert_eq!(refused.reason, "UNKNOWN_TOPIC");
    let delete = DeleteTopicRequest {
        topic: Some(by_id(&new.topic_id)),
        ..Default::default()
    };
    cluster
        .at(asked)
        .admin()
        .delete_topic(delete)
        .await
        .unwrap();
    cluster.start_all().await;
    gone(&cluster, &old).await;
    gone(&cluster, &new.topic_id).await;
}

#[tokio::test]
async fn a_watch_tells_of_leaders_and_of_brokers_that_go() {
    let mut cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 3).await;
    let leader = cluster.leader("t", 0).await.leader_id.unwrap();
    let watcher = (1..=3).find(|id| *id != leader).unwrap();
    let request = WatchMetadataRequest::default();
    let watch = cluster.at(watcher).metadata().watch_metadata(request).await;
    let mut watch = watch.unwrap().into_inner();
    let mut told = async |what: &str, seen: &dyn Fn(&GetMetadataResponse) -> bool| {
        loop {
            let next = tokio::time::timeout(PATIENCE, watch.message());
            let next = next.await.unwrap_or_else(|_| panic!("not told: {what}"));
            let metadata = next.unwrap().unwrap().metadata.unwrap();
            if seen(&metadata) {
                return;
            }
        }
    };
    let led_by = |seen: &GetMetadataResponse| seen.topics[0].partitions[0].leader_id;
    let lives = |seen: &GetMetadataResponse, id: i32| {
        let brokers = &seen.cluster.as_ref().unwrap().brokers;
        brokers.iter().any(|one| one.broker_id == id && one.live)
    };
    told("what is", &|seen| led_by(seen) == Some(leader)).await;
    let next = (1..=3).find(|id| *id != leader && *id != watcher).unwrap();
    transfer(&cluster, "t", next).await;
    told("a leader that was asked to", &|seen| {
        led_by(seen) == Some(next)
    })
    .await;
    cluster.at_mut(next).crash(false).await;
    told("a broker that is gone, and who leads now", &|seen| {
        !lives(seen, next) && led_by(seen).is_some_and(|id| id != next)
    })
    .await;
    cluster.start_all().await;
    told("a broker that is back", &|seen| lives(seen, next)).await;
}
