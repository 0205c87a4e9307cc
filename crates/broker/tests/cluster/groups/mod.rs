//! Consumer groups on clusters: members that share, coordinators that die, offsets that stay, and what is refused.

mod consumer;
mod refused;
mod scale;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::*;
use tonic::transport::Channel;

use self::consumer::*;
use crate::support::*;

/// Commits through whoever answers.
async fn commit(
    to: Channel,
    group: &str,
    member: Option<(&str, i64)>,
    items: Vec<CommitItem>,
) -> Result<Vec<Option<ApiError>>, ApiError> {
    let request = CommitRequest {
        group_id: group.to_owned(),
        member_id: member.map(|(id, _)| id.to_owned()),
        member_epoch: member.map(|(_, epoch)| epoch),
        items,
    };
    let answer = groups(to).commit(request).await;
    let answer = answer.map_err(|status| api_error(&status))?.into_inner();
    let results = answer.results.into_iter();
    Ok(results
        .map(|one| one.error.as_ref().map(ApiError::from_item))
        .collect())
}

fn item(topic: &Bytes, partition: i32, offset: i64) -> CommitItem {
    CommitItem {
        topic: Some(by_id(topic)),
        partition,
        offset,
        ..CommitItem::default()
    }
}

async fn fetch(to: Channel, group: &str) -> Result<BTreeMap<i32, i64>, ApiError> {
    let request = FetchOffsetsRequest {
        group_id: group.to_owned(),
        topics: Vec::new(),
    };
    let answer = groups(to).fetch_offsets(request).await;
    let answer = answer.map_err(|status| api_error(&status))?.into_inner();
    let offsets = answer.offsets.into_iter();
    Ok(offsets
        .map(|one| (one.partition, one.offset.unwrap()))
        .collect())
}

async fn describe(to: Channel, group: &str) -> Result<DescribeGroupResponse, ApiError> {
    let request = DescribeGroupRequest {
        group_id: group.to_owned(),
        no_lag: false,
    };
    let answer = groups(to).describe_group(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| api_error(&status))
}

async fn coordinator(cluster: &Cluster, group: &str) -> i32 {
    until("a coordinator", async || {
        let found = find(&cluster.addresses(), group).await?;
        let up = cluster.up().any(|one| one.id == found.broker_id);
        up.then_some(found.broker_id)
    })
    .await
}

/// Writes so many records to each partition.
async fn fill(cluster: &Cluster, topic: &str, partitions: i32, records: usize) {
    for number in 0..partitions {
        let leader = cluster.leader(topic, number).await.leader_id.unwrap();
        let mut request = once(topic, number, "x", None);
        let one = request.records.pop().unwrap();
        request.records = vec![one; records];
        put(cluster.at(leader).channel(), request).await.unwrap();
    }
}

#[tokio::test]
async fn members_share_and_who_leaves_or_dies_is_replaced() {
    let cluster = Cluster::start(3).await;
    cluster.topic("t", 12, 3).await;
    let join = || Consumer::start(&cluster, wants("g", &["t"]));
    let first = join();
    shared(&[&first], 12).await;
    let (second, third) = (join(), join());
    shared(&[&first, &second, &third], 12).await;
    let described = describe(cluster.at(1).channel(), "g").await.unwrap();
    assert_eq!(described.members.len(), 3);
    assert_eq!(described.partitions.len(), 12);
    third.leave().await;
    shared(&[&first, &second], 12).await;
    // Who stayed kept what it had.
    assert_eq!(first.now().granted, 2);
    drop(second);
    shared(&[&first], 12).await;
    first.leave().await;
    let described = describe(cluster.at(2).channel(), "g").await.unwrap();
    assert_eq!(described.state(), GroupState::Empty);
    assert!(described.members.is_empty());
}

#[tokio::test]
async fn no_commit_is_lost_and_nothing_moves_when_coordinators_die() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 4, 3).await;
    fill(&cluster, "t", 4, 100_000).await;
    let consumer = Consumer::start(&cluster, wants("g", &["t"]));
    shared(&[&consumer], 4).await;
    cluster.in_sync("__groups", 3).await;
    let before = consumer.now();
    let stop = Arc::new(AtomicBool::new(false));
    let acked = Arc::new(Mutex::new(0_i64));
    let committing = tokio::spawn({
        let (stop, acked, topic) = (Arc::clone(&stop), Arc::clone(&acked), topic.clone());
        let (held, brokers) = (Arc::clone(&consumer.held), Arc::clone(&consumer.brokers));
        async move {
            let mut offset = 0;
            while !stop.load(Ordering::SeqCst) {
                let known = brokers.lock().clone();
                let Some(found) = find(&known, "g").await else {
                    continue;
                };
                let to = channel(&found.address);
                let (member, epoch) = {
                    let held = held.lock();
                    (held.member.clone().unwrap(), held.epoch)
                };
                offset += 1;
                let items = (0..4).map(|number| item(&topic, number, offset)).collect();
                let result = commit(to, "g", Some((&member, epoch)), items).await;
                if let Ok(results) = result {
                    assert!(results.iter().all(Option::is_none), "{results:?}");
                    *acked.lock() = offset;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    for round in 0..4 {
        let from = *acked.lock();
        until("commits go on", async || {
            (*acked.lock() >= from + 20).then_some(())
        })
        .await;
        let dead = coordinator(&cluster, "g").await;
        let sure = *acked.lock();
        cluster.at_mut(dead).crash(round % 2 == 1).await;
        consumer.brokers.lock().clone_from(&cluster.addresses());
        let next = coordinator(&cluster, "g").await;
        assert_ne!(next, dead);
        let offsets = until("offsets are read", async || {
            fetch(cluster.at(next).channel(), "g").await.ok()
        })
        .await;
        assert_eq!(offsets.len(), 4);
        assert!(
            offsets.values().all(|offset| *offset >= sure),
            "{offsets:?}"
        );
        cluster.start_all().await;
        consumer.brokers.lock().clone_from(&cluster.addresses());
        cluster.in_sync("__groups", 3).await;
    }
    stop.store(true, Ordering::SeqCst);
    committing.await.unwrap();
    let after = consumer.now();
    assert!(after.rejoined > 0);
    // The same member, with the same partitions, which never stopped.
    assert_eq!(
        (after.member, after.granted, after.revoked),
        (before.member, before.granted, 0)
    );
}

#[tokio::test]
async fn any_broker_answers_and_lag_is_told() {
    let cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 3, 2).await;
    fill(&cluster, "t", 3, 10).await;
    let items = (0..2).map(|number| item(&topic, number, 4 + 6 * i64::from(number)));
    let done = commit(cluster.at(1).channel(), "g", None, items.collect()).await;
    assert_eq!(done.unwrap(), [None, None]);
    for id in 1..=3 {
        let to = || cluster.at(id).channel();
        let offsets = fetch(to(), "g").await.unwrap();
        assert_eq!(offsets, BTreeMap::from([(0, 4), (1, 10)]));
        let described = describe(to(), "g").await.unwrap();
        let lags = described.partitions.iter();
        let lags: Vec<_> = lags
            .map(|one| (one.lag, one.lag_ms.map(|ms| ms > 0)))
            .collect();
        assert_eq!(lags, [(Some(6), Some(true)), (Some(0), Some(false))]);
        let listed = groups(to()).list_groups(ListGroupsRequest::default()).await;
        let listed = listed.unwrap().into_inner();
        assert_eq!(listed.groups.len(), 1);
        assert_eq!(listed.groups[0].group_id, "g");
        assert!(listed.errors.is_empty());
    }
    // Moving offsets: forward and back, by time and by distance.
    let reset = async |to: reset_offsets_item::To, validate_only: bool| {
        let request = ResetOffsetsRequest {
            group_id: "g".to_owned(),
            items: vec![ResetOffsetsItem {
                topic: Some(by_name("t")),
                partitions: vec![0],
                to: Some(to),
            }],
            validate_only,
        };
        let answer = groups(cluster.at(2).channel()).reset_offsets(request).await;
        answer.unwrap().into_inner().results.pop().unwrap()
    };
    use reset_offsets_item::To;
    let latest = reset(To::Latest(true), true).await;
    assert_eq!((latest.offset_before, latest.offset), (Some(4), 10));
    let back = reset(To::ShiftBy(-3), false).await;
    assert_eq!((back.offset_before, back.offset), (Some(4), 1));
    assert_eq!(reset(To::TimestampMs(0), false).await.offset, 0);
    assert_eq!(reset(To::Offset(7), false).await.offset, 7);
    let beyond = reset(To::Offset(11), false).await;
    assert_eq!(beyond.error.unwrap().reason, "OFFSET_OUT_OF_RANGE");
    assert_eq!(fetch(cluster.at(3).channel(), "g").await.unwrap()[&0], 7);
    // Forgetting them.
    let request = DeleteOffsetsRequest {
        group_id: "g".to_owned(),
        topics: vec![FetchOffsetsTopic {
            topic: Some(by_id(&topic)),
            partitions: vec![1],
        }],
    };
    let mut any = groups(cluster.at(1).channel());
    let deleted = any.delete_offsets(request);
    assert!(
        deleted.await.unwrap().into_inner().results[0]
            .error
            .is_none()
    );
    assert_eq!(fetch(cluster.at(3).channel(), "g").await.unwrap().len(), 1);
    let request = DeleteGroupRequest {
        group_id: "g".to_owned(),
    };
    groups(cluster.at(1).channel())
        .delete_group(request)
        .await
        .unwrap();
    let gone = fetch(cluster.at(2).channel(), "g").await.unwrap_err();
    assert_eq!(gone.reason, Some(Reason::UnknownGroup));
}

#[tokio::test]
async fn the_log_is_rewritten_and_everything_is_still_there() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 400, 1).await;
    let text = "m".repeat(1000);
    // Some MiB of commits to one coordinator.
    for round in 0..12 {
        let items = (0..400).map(|number| CommitItem {
            metadata: format!("{text}{round}"),
            ..item(&topic, number, 0)
        });
        let done = until("a commit", async || {
            commit(cluster.at(1).channel(), "g", None, items.clone().collect())
                .await
                .ok()
        })
        .await;
        assert!(done.iter().all(Option::is_none));
    }
    let trimmed = until("the log begins with an image", async || {
        for member in cluster.up() {
            let request = DescribeTopicRequest {
                topic: Some(by_name("__groups")),
            };
            let described = member.admin().describe_topic(request).await.ok()?;
            let partitions = described.into_inner().partitions;
            if let Some(one) = partitions.iter().find(|one| one.log_start_offset > 0) {
                return Some(one.partition);
            }
        }
        None
    })
    .await;
    assert!((0..16).contains(&trimmed));
    for id in 1..=3 {
        cluster.at_mut(id).crash(true).await;
    }
    cluster.start_all().await;
    let offsets = until("offsets are read", async || {
        fetch(cluster.at(2).channel(), "g").await.ok()
    })
    .await;
    assert_eq!(offsets.len(), 400);
    let described = describe(cluster.at(3).channel(), "g").await.unwrap();
    let last = |one: &GroupPartition| one.metadata.ends_with("m11");
    assert!(described.partitions.iter().all(last));
}

#[tokio::test]
async fn topics_that_come_grow_and_go_are_followed() {
    let cluster = Cluster::start(2).await;
    cluster.topic("ta", 3, 1).await;
    let mut pattern = wants("g", &[]);
    pattern.subscription = Some(Subscription {
        topics: Vec::new(),
        topic_pattern: Some("t[a-z]".to_owned()),
    });
    let consumer = Consumer::start(&cluster, pattern);
    shared(&[&consumer], 3).await;
    cluster.topic("tb", 2, 1).await;
    cluster.topic("other", 2, 1).await;
    shared(&[&consumer], 5).await;
    let request = AddPartitionsRequest {
        topic: Some(by_name("ta")),
        total: 6,
        ..AddPartitionsRequest::default()
    };
    let mut admin = cluster.at(1).admin();
    admin.add_partitions(request).await.unwrap();
    shared(&[&consumer], 8).await;
    let request = DeleteTopicRequest {
        topic: Some(by_name("ta")),
        ..DeleteTopicRequest::default()
    };
    admin.delete_topic(request).await.unwrap();
    shared(&[&consumer], 2).await;
}

#[allow(clippy::print_stdout, reason = "figures, for people")]
/// Prints how long things take, for people: `GROUPS_TIMES=1 cargo test --release -p timberline-broker --test cluster -- --nocapture times`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_joining_leaving_and_dying() {
    let large = std::env::var_os("GROUPS_TIMES").is_some();
    let (partitions, members) = if large { (900, 10) } else { (60, 4) };
    let cluster = Cluster::start(3).await;
    cluster.topic("t", partitions, 1).await;
    let begin = std::time::Instant::now();
    let mut consumers = Vec::new();
    for _ in 0..members {
        consumers.push(Consumer::start(&cluster, wants("g", &["t"])));
    }
    shared(&consumers.iter().collect::<Vec<_>>(), partitions as usize).await;
    println!(
        "{members} members hold {partitions} partitions after {:?}",
        begin.elapsed()
    );
    let begin = std::time::Instant::now();
    consumers.push(Consumer::start(&cluster, wants("g", &["t"])));
    shared(&consumers.iter().collect::<Vec<_>>(), partitions as usize).await;
    println!("one more after {:?}", begin.elapsed());
    let begin = std::time::Instant::now();
    consumers.pop().unwrap().leave().await;
    shared(&consumers.iter().collect::<Vec<_>>(), partitions as usize).await;
    println!("one less after {:?}", begin.elapsed());
    let begin = std::time::Instant::now();
    drop(consumers.pop());
    shared(&consumers.iter().collect::<Vec<_>>(), partitions as usize).await;
    println!("one killed, session of 3 s, after {:?}", begin.elapsed());
}

#[tokio::test]
async fn the_groups_topic_grows_with_the_cluster() {
    let mut cluster = Cluster::start(1).await;
    let topic = cluster.topic("t", 1, 1).await;
    fill(&cluster, "t", 1, 10).await;
    let done = commit(cluster.at(1).channel(), "g", None, vec![item(&topic, 0, 7)]).await;
    assert_eq!(done.unwrap(), [None]);
    cluster.join(2).await;
    cluster.join(3).await;
    cluster.in_sync("__groups", 3).await;
    cluster.at_mut(1).crash(true).await;
    let offsets = until("offsets are read", async || {
        fetch(cluster.at(3).channel(), "g").await.ok()
    })
    .await;
    assert_eq!(offsets, BTreeMap::from([(0, 7)]));
}
