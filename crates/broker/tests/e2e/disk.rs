//! Disks that fail: full, poisoned, cut off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use timberline_broker::config::{ByteSize, Span};
use timberline_proto::v1::*;
use timberline_storage::disk::FaultDisk;

use crate::support::*;

async fn on(disk: &FaultDisk) -> TestBroker {
    TestBroker::on(
        Arc::new(disk.clone()),
        PathBuf::from("/data"),
        None,
        |config| {
            config.storage.journal_bytes = ByteSize(4 << 20);
            config.log.housekeeping_interval = Span(200);
        },
    )
    .await
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let disk = FaultDisk::new(1);
    let broker = on(&disk).await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let value = "x".repeat(100_000);
    producing.put(&topic, batch(&[&value], None)).await.ack();
    let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
    disk.set_capacity(Some(used + (1 << 20)));
    let (mut taken, mut full) = (1, None);
    for _ in 0..400 {
        match producing.put(&topic, batch(&[&value], None)).await {
            Answer::Ack(_) => taken += 1,
            Answer::Failure(_, error) => {
                full = Some(error);
                break;
            }
        }
    }
    let error = full.expect("the disk fills");
    assert_eq!(error.reason, "STORAGE_FULL");
    assert!(error.retry_after_ms.is_some());
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 30).await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert_eq!(fetching.values(taken).await.len(), taken);
    assert_eq!(broker.http("/readyz").await.0, 200);

    disk.set_capacity(None);
    producing.put(&topic, batch(&[&value], None)).await.ack();
    assert_eq!(fetching.values(1).await.len(), 1);
}

#[tokio::test]
async fn a_failed_sync_poisons_writes_and_leaves_reads() {
    let disk = FaultDisk::new(2);
    let mut broker = on(&disk).await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    producing.put(&topic, batch(&["kept"], None)).await.ack();
    disk.fail_next_sync("");
    let error = producing.put(&topic, batch(&["lost"], None)).await.error();
    assert_eq!(error.reason, "STORAGE_POISONED");
    let error = producing.put(&topic, batch(&["also"], None)).await.error();
    assert_eq!(error.reason, "STORAGE_POISONED");
    let (status, why) = broker.http("/readyz").await;
    assert_eq!(status, 503, "{why}");
    assert_eq!(broker.http("/livez").await.0, 200);
    let info = broker
        .admin()
        .cluster_info(ClusterInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!info.brokers[0].writable);
    let request = CreateTopicRequest {
        name: "u".to_owned(),
        partitions: 1,
        ..Default::default()
    };
    let status = broker.admin().create_topic(request).await.unwrap_err();
    assert_eq!(reason(&status), "STORAGE_POISONED");
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert_eq!(fetching.values(1).await, ["kept"]);
    // What was not acknowledged was never readable.
    assert!(fetching.silent().await);
    drop((producing, fetching));
    let survivor = disk.fork(3);
    survivor.kill();
    broker.restart_on(Arc::new(survivor)).await;
    broker
        .produce()
        .await
        .put(&topic, batch(&["again"], None))
        .await
        .ack();
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    let values = fetching.values(2).await;
    assert_eq!(values[0], "kept");
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_loss_of_power() {
    for seed in 0..6 {
        let disk = FaultDisk::new(seed);
        let mut broker = on(&disk).await;
        let topic = broker.topic("t", 1, &[]).await;
        let mut producing = broker.produce().await;
        let values: Vec<String> = (0..40)
            .map(|n| format!("{n}-{}", "x".repeat(n * 997)))
            .collect();
        for (at, value) in values.iter().enumerate() {
            producing
                .send(&topic, 0, batch(&[value], Some((9, 0, at as i32))))
                .await;
        }
        let acknowledged = 20 + seed as usize;
        for _ in 0..acknowledged {
            producing.answer().await.ack();
        }
        // The disk as a loss of power leaves it now, while appends and syncs go on.
        let left = disk.fork(seed + 100);
        left.power_loss();
        drop(producing);
        broker.restart_on(Arc::new(left)).await;
        let end = broker.offsets("t").await.1 as usize;
        assert!(end >= acknowledged, "{end} of {acknowledged} left");
        let mut fetching = broker.fetch().await;
        fetching.grant(1 << 30).await;
        fetching.assign(&topic, 0, 0, 1).await;
        assert_eq!(fetching.values(end).await, values[..end]);
        // The producer goes on where the log ends, and what is there already stays once.
        let mut producing = broker.produce().await;
        for (at, value) in values.iter().enumerate().skip(end.saturating_sub(3)) {
            let ack = producing
                .put(&topic, batch(&[value], Some((9, 0, at as i32))))
                .await
                .ack();
            assert_eq!((ack.base_offset, ack.duplicate), (at as i64, at < end));
        }
        assert_eq!(fetching.values(values.len() - end).await, values[end..]);
    }
}

#[tokio::test]
async fn retention_by_size_lets_old_segments_go() {
    let disk = FaultDisk::new(4);
    let broker = on(&disk).await;
    let topic = broker
        .topic(
            "t",
            1,
            &[("segment.bytes", "1048576"), ("retention.bytes", "2097152")],
        )
        .await;
    let mut producing = broker.produce().await;
    let value = "x".repeat(100_000);
    for _ in 0..60 {
        producing.put(&topic, batch(&[&value], None)).await.ack();
    }
    let mut start = 0;
    for _ in 0..200 {
        start = broker.offsets("t").await.0;
        if start > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start > 0, "nothing was deleted");
    let request = FetchOnceRequest {
        topic: Some(by_name("t")),
        offset: start,
        ..Default::default()
    };
    let got = broker
        .consumer()
        .fetch_once(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.records[0].offset, start);
}
