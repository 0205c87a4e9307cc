//! Topics, configuration, metadata.

use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn a_topic_is_created_once_for_a_request_id() {
    let broker = TestBroker::start().await;
    let request = CreateTopicRequest {
        request_id: "r1".to_owned(),
        name: "t".to_owned(),
        partitions: 3,
        ..Default::default()
    };
    let first = broker
        .admin()
        .create_topic(request.clone())
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    let again = broker
        .admin()
        .create_topic(request.clone())
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!(first, again);
    assert_eq!((first.partitions.len(), first.replication_factor), (3, 1));
    assert_eq!(first.partitions[2].leader_id, Some(1));
    let other = CreateTopicRequest {
        request_id: "r2".to_owned(),
        ..request
    };
    let status = broker.admin().create_topic(other).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (tonic::Code::AlreadyExists, "TOPIC_EXISTS")
    );
}

#[tokio::test]
async fn a_request_id_under_way_is_waited_for() {
    let broker = TestBroker::start().await;
    let calls = (0..32).map(|_| {
        let mut admin = broker.admin();
        let request = CreateTopicRequest {
            request_id: "same".to_owned(),
            name: "t".to_owned(),
            partitions: 1,
            ..Default::default()
        };
        tokio::spawn(async move {
            admin
                .create_topic(request)
                .await
                .unwrap()
                .into_inner()
                .topic
                .unwrap()
                .topic_id
        })
    });
    let ids = futures::future::join_all(calls).await;
    let first = ids[0].as_ref().unwrap().clone();
    assert!(ids.into_iter().all(|id| id.unwrap() == first));
}

#[tokio::test]
async fn more_replicas_than_brokers() {
    let broker = TestBroker::start().await;
    let request = CreateTopicRequest {
        name: "t".to_owned(),
        partitions: 1,
        replication_factor: 3,
        ..Default::default()
    };
    let status = broker.admin().create_topic(request).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_REPLICATION_FACTOR");
}

#[tokio::test]
async fn configuration_is_checked_shown_and_takes_effect() {
    let mut broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[("retention.ms", "1000")]).await;
    let alter = |key: &str, value: Option<&str>| AlterConfigRequest {
        topic: Some(by_name("t")),
        changes: vec![ConfigChange {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        }],
        ..Default::default()
    };
    let status = broker
        .admin()
        .alter_config(alter("max.mesage.bytes", Some("1")))
        .await
        .unwrap_err();
    assert!(
        status.message().contains("`max.message.bytes`"),
        "{}",
        status.message()
    );
    broker
        .admin()
        .alter_config(alter("max.message.bytes", Some("100")))
        .await
        .unwrap();
    let value = "x".repeat(200);
    let mut producing = broker.produce().await;
    let error = producing.put(&topic, batch(&[&value], None)).await.error();
    assert_eq!(error.metadata["max_message_bytes"], "100");
    // Kept over a restart, and taken back.
    drop(producing);
    broker.restart().await;
    let request = DescribeConfigRequest {
        topic: Some(by_name("t")),
    };
    let entries = broker
        .admin()
        .describe_config(request)
        .await
        .unwrap()
        .into_inner()
        .entries;
    let entry = |key: &str| {
        entries
            .iter()
            .find(|entry| entry.key == key)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (
            entry("max.message.bytes").value.as_str(),
            entry("max.message.bytes").source()
        ),
        ("100", ConfigSource::Topic)
    );
    assert_eq!(entry("retention.ms").default_value, "604800000");
    assert_eq!(entry("segment.bytes").source(), ConfigSource::Default);
    broker
        .admin()
        .alter_config(alter("max.message.bytes", None))
        .await
        .unwrap();
    broker
        .produce()
        .await
        .put(&topic, batch(&[&value], None))
        .await
        .ack();
}

#[tokio::test]
async fn partitions_only_grow() {
    let mut broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let add = |total, validate_only| AddPartitionsRequest {
        topic: Some(by_name("t")),
        total,
        validate_only,
        ..Default::default()
    };
    broker.admin().add_partitions(add(5, true)).await.unwrap();
    let info = broker
        .admin()
        .add_partitions(add(4, false))
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!(info.partitions.len(), 4);
    let status = broker
        .admin()
        .add_partitions(add(2, false))
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "INVALID_ARGUMENT");
    let mut producing = broker.produce().await;
    producing.send(&topic, 3, batch(&["a"], None)).await;
    producing.answer().await.ack();
    drop(producing);
    broker.restart().await;
    let request = DescribeTopicRequest {
        topic: Some(by_name("t")),
    };
    let described = broker
        .admin()
        .describe_topic(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(described.partitions.len(), 4);
    assert_eq!(described.partitions[3].high_watermark, 1);
    // The term rose.
    assert!(described.partitions[3].leader_epoch >= 2);
}

#[tokio::test]
async fn a_watch_tells_what_changes() {
    let broker = TestBroker::start().await;
    let request = WatchMetadataRequest {
        topics: vec![by_name("t")],
    };
    let mut watch = broker
        .metadata()
        .watch_metadata(request)
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.metadata.as_ref().unwrap().unknown.len(), 1);
    assert_eq!(first.metadata.unwrap().cluster.unwrap().brokers.len(), 1);
    broker.topic("other", 1, &[]).await;
    broker.topic("t", 2, &[]).await;
    let second = tokio::time::timeout(PATIENCE, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.metadata.unwrap().topics[0].partitions.len(), 2);
}

#[tokio::test]
async fn the_cluster_says_what_it_is() {
    let broker = TestBroker::start().await;
    broker.topic("t", 3, &[]).await;
    let info = broker
        .admin()
        .cluster_info(ClusterInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.topics, info.partitions), (1, 3));
    let status = &info.brokers[0];
    assert!(status.writable && status.disk_total_bytes > 0);
    assert_eq!(
        status.broker.as_ref().unwrap().address,
        broker.broker().grpc_addr().to_string()
    );
    let all = broker
        .metadata()
        .get_metadata(GetMetadataRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.cluster, info.cluster);
    assert_eq!(all.topics[0].name, "t");
    let listed = broker
        .admin()
        .list_topics(ListTopicsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.topics, all.topics);
}

#[tokio::test]
async fn a_deleted_topic_leaves_no_files() {
    let mut broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    broker
        .produce()
        .await
        .put(&topic, batch(&["a"], None))
        .await
        .ack();
    // A clean stop writes the journaled bytes to the topic's own files.
    broker.restart().await;
    assert!(!segments_of(&broker, &topic).is_empty());
    broker
        .admin()
        .delete_topic(DeleteTopicRequest {
            topic: Some(by_id(&topic)),
            ..Default::default()
        })
        .await
        .unwrap();
    let request = DeleteTopicRequest {
        topic: Some(by_id(&topic)),
        ..Default::default()
    };
    assert_eq!(
        reason(&broker.admin().delete_topic(request).await.unwrap_err()),
        "UNKNOWN_TOPIC"
    );
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let left = segments_of(&broker, &topic);
        if left.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    broker.restart().await;
    let (_, metrics) = broker.http("/metrics").await;
    assert!(
        metrics.contains("timberline_partitions{state=\"quarantined\"} 0"),
        "{metrics}"
    );
}

/// Paths of the topic's segments.
fn segments_of(broker: &TestBroker, topic: &[u8]) -> Vec<String> {
    let id = uuid::Uuid::from_slice(topic).unwrap().simple().to_string();
    let mut names = walk(&broker.dir);
    names.retain(|name| name.contains(&id) && name.ends_with(".seg"));
    names
}

/// Everything below a directory; what is deleted meanwhile may be missing.
fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return names;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            names.extend(walk(&path));
        }
        names.push(path.display().to_string());
    }
    names
}
