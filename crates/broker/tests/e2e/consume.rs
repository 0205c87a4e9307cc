//! Reading: credit, assignments, long polls, offsets by time.

use std::time::{Duration, Instant};

use timberline_proto::v1::*;

use crate::support::*;

#[tokio::test]
async fn no_batch_starts_without_credit() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    for value in ["a", "b", "c"] {
        producing.put(&topic, batch(&[value], None)).await.ack();
    }
    let mut fetching = broker.fetch().await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert!(fetching.silent().await);
    // One byte starts one batch, which overruns it; the overrun is owed.
    fetching.grant(1).await;
    assert_eq!(fetching.values(1).await, ["a"]);
    assert!(fetching.silent().await);
    fetching.grant(1).await;
    assert!(fetching.silent().await);
    fetching.grant(1 << 20).await;
    assert_eq!(fetching.values(2).await, ["b", "c"]);
}

#[tokio::test]
async fn assignments_are_added_moved_and_dropped_in_the_stream() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 2, &[]).await;
    let mut producing = broker.produce().await;
    for partition in [0, 1] {
        for value in ["a", "b"] {
            let value = format!("{value}{partition}");
            producing
                .send(&topic, partition, batch(&[&value], None))
                .await;
            producing.answer().await.ack();
        }
    }
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 1, 7).await;
    let data = fetching.data().await;
    assert_eq!(
        (data.partition, data.assignment_id, data.high_watermark),
        (0, 7, 2)
    );
    assert_eq!(values_of(data.batches[0].clone()), ["b0"]);
    // Moved back.
    fetching.assign(&topic, 0, 0, 8).await;
    let data = fetching.data().await;
    assert_eq!(data.assignment_id, 8);
    fetching.assign(&topic, 1, 0, 9).await;
    let data = fetching.data().await;
    assert_eq!((data.partition, data.assignment_id), (1, 9));
    // Dropped: what comes to it later is not sent.
    let remove = FetchRemove {
        topic_id: topic.clone(),
        partition: 0,
    };
    fetching.send(fetch_request::Kind::Remove(remove)).await;
    assert!(fetching.silent().await);
    producing.put(&topic, batch(&["c0"], None)).await.ack();
    assert!(fetching.silent().await);
    producing.send(&topic, 1, batch(&["c1"], None)).await;
    producing.answer().await.ack();
    assert_eq!(fetching.values(1).await, ["c1"]);
}

#[tokio::test]
async fn a_caught_up_reader_is_told_and_then_woken() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    match fetching.next().await {
        fetch_response::Kind::Progress(p) => {
            assert_eq!((p.high_watermark, p.log_start_offset), (0, 0))
        }
        other => panic!("{other:?}"),
    }
    let mut producing = broker.produce().await;
    for round in 0..20 {
        let value = format!("{round}");
        producing.put(&topic, batch(&[&value], None)).await.ack();
        assert_eq!(fetching.values(1).await, [value]);
    }
}

#[tokio::test]
async fn offsets_outside_the_log_are_refused_with_the_range() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    producing.put(&topic, batch(&["a"], None)).await.ack();
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    for (offset, reason) in [
        (2, "OFFSET_OUT_OF_RANGE"),
        (i64::MAX, "OFFSET_OUT_OF_RANGE"),
        (-1, "INVALID_ARGUMENT"),
    ] {
        fetching.assign(&topic, 0, offset, 5).await;
        match fetching.next().await {
            fetch_response::Kind::Failure(f) => {
                assert_eq!(f.assignment_id, 5);
                let error = f.error.unwrap();
                assert_eq!(error.reason, reason);
                if offset > 0 {
                    assert_eq!(error.metadata["high_watermark"], "1");
                }
            }
            other => panic!("{other:?}"),
        }
        let request = FetchOnceRequest {
            topic: Some(by_id(&topic)),
            offset,
            ..Default::default()
        };
        let status = broker.consumer().fetch_once(request).await.unwrap_err();
        assert_eq!(reason, crate::support::reason(&status));
    }
    // The stream goes on for others.
    fetching.assign(&topic, 0, 0, 6).await;
    assert_eq!(fetching.values(1).await, ["a"]);
}

#[tokio::test]
async fn a_long_poll_waits_for_the_first_record() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let request = FetchOnceRequest {
        topic: Some(by_name("t")),
        max_wait_ms: 300,
        ..Default::default()
    };
    let started = Instant::now();
    let empty = broker
        .consumer()
        .fetch_once(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(empty.records.is_empty() && started.elapsed() >= Duration::from_millis(300));
    assert_eq!(empty.next_offset, 0);

    let mut consumer = broker.consumer();
    let request = FetchOnceRequest {
        max_wait_ms: 20_000,
        ..request
    };
    let waiting = tokio::spawn(async move { consumer.fetch_once(request).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    broker
        .produce()
        .await
        .put(&topic, batch(&["a", "b"], None))
        .await
        .ack();
    let got = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!(got.records.len(), 2);
    assert_eq!(
        (got.records[1].offset, got.next_offset, got.high_watermark),
        (1, 2, 2)
    );
}

#[tokio::test]
async fn pages_end_at_their_bounds_and_go_on() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let values: Vec<String> = (0..50).map(|n| format!("{n:05}")).collect();
    for chunk in values.chunks(7) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        producing.put(&topic, batch(&chunk, None)).await.ack();
    }
    let (mut offset, mut got) = (0, Vec::new());
    while got.len() < 50 {
        let request = FetchOnceRequest {
            topic: Some(by_name("t")),
            offset,
            max_records: 3,
            ..Default::default()
        };
        let page = broker
            .consumer()
            .fetch_once(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.records.len() <= 3 && page.records[0].offset == offset);
        offset = page.next_offset;
        got.extend(
            page.records
                .into_iter()
                .map(|r| String::from_utf8(r.value.unwrap().to_vec()).unwrap()),
        );
    }
    assert_eq!(got, values);
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    broker
        .produce()
        .await
        .put(&topic, batch(&["a", "b", "c"], None))
        .await
        .ack();
    let item = |time| ListOffsetsItem {
        topic: Some(by_id(&topic)),
        partition: 0,
        at: Some(list_offsets_item::At::TimestampMs(time)),
    };
    let missing = ListOffsetsItem {
        topic: Some(by_id(&topic)),
        partition: 9,
        at: None,
    };
    let items = vec![item(0), item(1001), item(9999), missing];
    let results = broker
        .consumer()
        .list_offsets(ListOffsetsRequest { items })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(
        (results[0].offset, results[0].timestamp_ms),
        (0, Some(1000))
    );
    assert_eq!(
        (results[1].offset, results[1].timestamp_ms),
        (1, Some(1001))
    );
    assert_eq!((results[2].offset, results[2].timestamp_ms), (3, None));
    assert_eq!(
        results[3].error.as_ref().unwrap().reason,
        "UNKNOWN_PARTITION"
    );
}

#[tokio::test]
async fn a_trim_moves_the_log_start() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    for value in ["a", "b", "c"] {
        producing.put(&topic, batch(&[value], None)).await.ack();
    }
    let trim = |before_offset| TrimTopicRequest {
        topic: Some(by_name("t")),
        partitions: vec![TrimPartition {
            partition: 0,
            before_offset,
        }],
        ..Default::default()
    };
    let result = broker
        .admin()
        .trim_topic(trim(Some(2)))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!((result.log_start_offset, result.error), (2, None));
    let result = broker
        .admin()
        .trim_topic(trim(Some(1)))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!((result.log_start_offset, result.error), (2, None));
    let result = broker
        .admin()
        .trim_topic(trim(Some(9)))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!(result.error.unwrap().reason, "OFFSET_OUT_OF_RANGE");
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    match fetching.next().await {
        fetch_response::Kind::Failure(f) => assert_eq!(f.error.unwrap().metadata["log_start"], "2"),
        other => panic!("{other:?}"),
    }
    let result = broker
        .admin()
        .trim_topic(trim(None))
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    assert_eq!(result.log_start_offset, 3);
    assert_eq!(broker.offsets("t").await, (3, 3));
}

#[tokio::test]
async fn a_reader_that_never_reads_costs_a_bound_and_disturbs_nobody() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let value = "x".repeat(100_000);
    for _ in 0..100 {
        producing.send(&topic, 0, batch(&[&value], None)).await;
    }
    for _ in 0..100 {
        producing.answer().await.ack();
    }
    // Much credit, and nobody takes what comes: HTTP/2's window holds it back.
    let stuck = broker.fetch().await;
    stuck.grant(i64::MAX).await;
    stuck.grant(i64::MAX).await;
    stuck.assign(&topic, 0, 0, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let other =
        tonic::transport::Channel::from_shared(format!("http://{}", broker.broker().grpc_addr()))
            .unwrap()
            .connect()
            .await
            .unwrap();
    let consumer = consumer_service_client::ConsumerServiceClient::new(other)
        .max_decoding_message_size(1 << 30);
    let mut fetching = Fetching::open(consumer, 0).await;
    fetching.grant(1 << 30).await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert_eq!(fetching.values(100).await.len(), 100);
    drop(stuck);
}

#[tokio::test]
async fn an_assignment_moved_ten_thousand_times_stays_one() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    let (sender, id) = (fetching.sender.clone(), topic.clone());
    let moving = tokio::spawn(async move {
        for assignment_id in 1..=10_000 {
            let assign = FetchAssign {
                topic_id: id.clone(),
                assignment_id,
                ..Default::default()
            };
            let kind = Some(fetch_request::Kind::Assign(assign));
            sender.send(FetchRequest { kind }).await.unwrap();
        }
    });
    loop {
        match fetching.next().await {
            fetch_response::Kind::Progress(p) if p.assignment_id == 10_000 => break,
            fetch_response::Kind::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    moving.await.unwrap();
    let mut producing = broker.produce().await;
    for round in 0..50 {
        let value = format!("{round}");
        producing.put(&topic, batch(&[&value], None)).await.ack();
        let data = fetching.data().await;
        assert_eq!(data.assignment_id, 10_000);
        assert_eq!(data.batches.len(), 1);
    }
    assert!(fetching.silent().await);
}
