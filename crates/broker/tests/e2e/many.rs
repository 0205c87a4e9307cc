//! Many of everything.

use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_partitions_in_one_topic_and_in_many() {
    let mut broker = TestBroker::start().await;
    let topic = broker.topic("wide", 5_000, &[]).await;
    let calls = (0..500).map(|n| {
        let mut admin = broker.admin();
        let request = CreateTopicRequest {
            name: format!("narrow-{n}"),
            partitions: 2,
            ..Default::default()
        };
        tokio::spawn(async move { admin.create_topic(request).await.unwrap() })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap();
    }
    let info = broker
        .admin()
        .cluster_info(ClusterInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.topics, info.partitions), (501, 6_000));
    let mut producing = broker.produce().await;
    for partition in (0..5_000).step_by(500) {
        producing.send(&topic, partition, batch(&["a"], None)).await;
        producing.answer().await.ack();
    }
    drop(producing);
    broker.restart().await;
    let info = broker
        .admin()
        .cluster_info(ClusterInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.topics, info.partitions), (501, 6_000));
    // One stream over all of them.
    let mut fetching = assign_all(&broker, &topic).await;
    let mut found = 0;
    while found < 10 {
        found += fetching.data().await.batches.len();
    }
}

/// Assigns every partition, from a task of its own: what the broker has to say must be read meanwhile.
async fn assign_all(broker: &TestBroker, topic: &bytes::Bytes) -> Fetching {
    let fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    let (sender, topic) = (fetching.sender.clone(), topic.clone());
    tokio::spawn(async move {
        for partition in 0..5_000 {
            let assign = FetchAssign {
                topic_id: topic.clone(),
                partition,
                ..Default::default()
            };
            let kind = Some(fetch_request::Kind::Assign(assign));
            if sender.send(FetchRequest { kind }).await.is_err() {
                return;
            }
        }
    });
    fetching
}

#[tokio::test(flavor = "multi_thread")]
async fn many_producers_on_one_partition_share_syncs() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let writers = (0..50).map(|writer| {
        let client = broker.producer();
        let topic = topic.clone();
        tokio::spawn(async move {
            let mut producing = Producing::open(client).await;
            let mut offsets = Vec::new();
            for n in 0..20 {
                let value = format!("{writer}-{n}");
                offsets.push(
                    producing
                        .put(&topic, batch(&[&value], None))
                        .await
                        .ack()
                        .base_offset,
                );
            }
            offsets
        })
    });
    let mut offsets: Vec<i64> = Vec::new();
    for writer in futures::future::join_all(writers).await {
        let of_one = writer.unwrap();
        assert!(of_one.is_sorted());
        offsets.extend(of_one);
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (0..1000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn images_of_the_metadata_carry_everything_over() {
    let mut broker = TestBroker::with(|config| config.log.metadata_image_commands = 16).await;
    let mut kept = Vec::new();
    for n in 0..100 {
        let name = format!("t{n}");
        let id = broker
            .topic(&name, 1 + n % 3, &[("retention.ms", "12345678")])
            .await;
        if n % 4 == 0 {
            let topic = Some(by_id(&id));
            let request = DeleteTopicRequest {
                topic,
                ..Default::default()
            };
            broker.admin().delete_topic(request).await.unwrap();
        } else {
            kept.push((name, id));
        }
        if n % 40 == 39 {
            broker.restart().await;
        }
    }
    let before = broker
        .metadata()
        .get_metadata(GetMetadataRequest::default())
        .await
        .unwrap()
        .into_inner();
    broker.restart().await;
    let after = broker
        .metadata()
        .get_metadata(GetMetadataRequest::default())
        .await
        .unwrap()
        .into_inner();
    let names = |response: &GetMetadataResponse| -> Vec<(String, bytes::Bytes, usize)> {
        let of = |t: &TopicInfo| (t.name.clone(), t.topic_id.clone(), t.partitions.len());
        response.topics.iter().map(of).collect()
    };
    assert_eq!(names(&before), names(&after));
    assert_eq!(after.topics.len(), kept.len());
    for (name, id) in kept {
        let mut producing = broker.produce().await;
        assert_eq!(
            producing
                .put(&id, batch(&[&name], None))
                .await
                .ack()
                .base_offset,
            0
        );
    }
    let (_, metrics) = broker.http("/metrics").await;
    assert!(metrics.contains("timberline_partitions{state=\"quarantined\"} 0"));
}
