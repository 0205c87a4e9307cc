//! Writing: offsets, sequences, fencing, log append time.

use timberline_proto::v1::*;

use crate::support::*;

async fn new_producer(broker: &TestBroker) -> i64 {
    let response = broker
        .producer()
        .init_producer(InitProducerRequest::default())
        .await
        .unwrap();
    response.into_inner().producer_id
}

#[tokio::test]
async fn batches_get_dense_offsets_and_come_back() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let first = producing
        .put(&topic, batch(&["a", "b", "c"], None))
        .await
        .ack();
    let second = producing.put(&topic, batch(&["d"], None)).await.ack();
    assert_eq!((first.base_offset, second.base_offset), (0, 3));
    assert!(first.leader_epoch >= 1 && !first.duplicate);
    assert_eq!(broker.offsets("t").await, (0, 4));

    let mut fetching = broker.fetch().await;
    fetching.assign(&topic, 0, 0, 1).await;
    fetching.grant(1 << 20).await;
    assert_eq!(fetching.values(4).await, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_repeated_batch_is_acknowledged_where_it_was() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let id = new_producer(&broker).await;
    let mut producing = broker.produce().await;
    // Both under way at a time: the copy is answered when the original commits.
    producing
        .send(&topic, 0, batch(&["a", "b"], Some((id, 0, 0))))
        .await;
    producing
        .send(&topic, 0, batch(&["a", "b"], Some((id, 0, 0))))
        .await;
    let (original, copy) = (
        producing.answer().await.ack(),
        producing.answer().await.ack(),
    );
    assert_eq!((original.base_offset, copy.base_offset), (0, 0));
    assert_eq!((original.duplicate, copy.duplicate), (false, true));
    assert_eq!(broker.offsets("t").await, (0, 2));
}

#[tokio::test]
async fn a_gap_is_refused_until_it_is_filled() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let id = new_producer(&broker).await;
    let mut producing = broker.produce().await;
    producing
        .put(&topic, batch(&["0"], Some((id, 0, 0))))
        .await
        .ack();
    for sequence in [2, 3] {
        let error = producing
            .put(&topic, batch(&["x"], Some((id, 0, sequence))))
            .await
            .error();
        assert_eq!(error.reason, "OUT_OF_ORDER_SEQUENCE");
        assert_eq!(error.metadata["expected_sequence"], "1");
    }
    for sequence in [1, 2, 3] {
        producing
            .put(&topic, batch(&["y"], Some((id, 0, sequence))))
            .await
            .ack();
    }
    assert_eq!(broker.offsets("t").await, (0, 4));
}

#[tokio::test]
async fn after_a_refused_batch_later_ones_are_refused_too() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[("max.message.bytes", "200")]).await;
    let id = new_producer(&broker).await;
    let mut producing = broker.produce().await;
    let large = "x".repeat(300);
    producing
        .send(&topic, 0, batch(&["a"], Some((id, 0, 0))))
        .await;
    producing
        .send(&topic, 0, batch(&[&large], Some((id, 0, 1))))
        .await;
    producing
        .send(&topic, 0, batch(&["c"], Some((id, 0, 2))))
        .await;
    let mut reasons = Vec::new();
    for _ in 0..3 {
        match producing.answer().await {
            Answer::Ack(ack) => assert_eq!(ack.correlation_id, 1),
            Answer::Failure(correlation, error) => reasons.push((correlation, error.reason)),
        }
    }
    reasons.sort();
    assert_eq!(
        reasons,
        [
            (2, "RECORD_TOO_LARGE".to_owned()),
            (3, "OUT_OF_ORDER_SEQUENCE".to_owned())
        ]
    );
    // A new epoch starts afresh.
    let raised = InitProducerRequest {
        producer_id: Some(id),
        producer_epoch: Some(0),
    };
    let raised = broker
        .producer()
        .init_producer(raised)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((raised.producer_id, raised.producer_epoch), (id, 1));
    producing
        .put(&topic, batch(&["d"], Some((id, 1, 0))))
        .await
        .ack();
}

#[tokio::test]
async fn an_older_epoch_is_fenced() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let id = new_producer(&broker).await;
    let mut producing = broker.produce().await;
    producing
        .put(&topic, batch(&["new"], Some((id, 3, 0))))
        .await
        .ack();
    let error = producing
        .put(&topic, batch(&["old"], Some((id, 2, 0))))
        .await
        .error();
    assert_eq!(error.reason, "PRODUCER_FENCED");
    assert_eq!(error.code, tonic::Code::FailedPrecondition as i32);
    let error = producing
        .put(&topic, batch(&["?"], Some((id + 1, 0, 7))))
        .await
        .error();
    assert_eq!(error.reason, "UNKNOWN_PRODUCER");
}

#[tokio::test]
async fn an_epoch_is_granted_to_one_caller() {
    let mut broker = TestBroker::start().await;
    let id = new_producer(&broker).await;
    let raise = |epoch| InitProducerRequest {
        producer_id: Some(id),
        producer_epoch: Some(epoch),
    };
    let calls = (0..8).map(|_| {
        let mut producer = broker.producer();
        async move { producer.init_producer(raise(0)).await }
    });
    let answers = futures::future::join_all(calls).await;
    let granted: Vec<_> = answers.iter().flatten().collect();
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].get_ref().producer_epoch, 1);
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(reason(status), "PRODUCER_FENCED");
    }
    // Kept over a restart.
    broker.restart().await;
    let status = broker.producer().init_producer(raise(0)).await.unwrap_err();
    assert_eq!(reason(&status), "PRODUCER_FENCED");
    let next = broker.producer().init_producer(raise(1)).await.unwrap();
    assert_eq!(next.into_inner().producer_epoch, 2);
}

#[tokio::test]
async fn producer_ids_are_never_given_twice() {
    let mut broker = TestBroker::start().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(new_producer(&broker).await);
        ids.push(new_producer(&broker).await);
        broker.restart().await;
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
    for request in [
        InitProducerRequest {
            producer_id: Some(1 << 40),
            producer_epoch: Some(0),
        },
        InitProducerRequest {
            producer_id: Some(-1),
            producer_epoch: Some(0),
        },
        InitProducerRequest {
            producer_id: Some(0),
            producer_epoch: Some(-1),
        },
        InitProducerRequest {
            producer_id: Some(0),
            producer_epoch: None,
        },
    ] {
        broker.producer().init_producer(request).await.unwrap_err();
    }
}

#[tokio::test]
async fn log_append_time_is_the_brokers() {
    let broker = TestBroker::start().await;
    let topic = broker
        .topic("t", 1, &[("message.timestamp.type", "LogAppendTime")])
        .await;
    let mut producing = broker.produce().await;
    let ack = producing.put(&topic, batch(&["a"], None)).await.ack();
    let time = ack.log_append_time_ms.unwrap();
    assert!(time > 1_600_000_000_000);
    let request = FetchOnceRequest {
        topic: Some(by_name("t")),
        ..Default::default()
    };
    let got = broker
        .consumer()
        .fetch_once(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.records[0].timestamp_ms, time);
    // The bytes still carry a right checksum.
    let mut fetching = broker.fetch().await;
    fetching.assign(&topic, 0, 0, 1).await;
    fetching.grant(1 << 20).await;
    assert_eq!(fetching.values(1).await, ["a"]);
}

#[tokio::test]
async fn plain_records_in_one_call() {
    let broker = TestBroker::start().await;
    broker.topic("t", 4, &[]).await;
    let record = |key: Option<&str>, value: &str| ProduceRecord {
        key: key.map(|key| key.to_owned().into()),
        value: Some(value.to_owned().into()),
        headers: vec![RecordHeader {
            key: "h".into(),
            value: None,
        }],
        timestamp_ms: Some(77),
    };
    let request = ProduceOnceRequest {
        topic: Some(by_name("t")),
        records: vec![
            record(Some("k"), "1"),
            record(None, "2"),
            record(Some("k"), "3"),
            record(None, &"x".repeat(2 << 20)),
        ],
        ..Default::default()
    };
    let results = broker
        .producer()
        .produce_once(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results.len(), 4);
    assert_eq!(results[0].partition, results[2].partition);
    assert!(results[2].offset > results[0].offset);
    assert_eq!(
        results[3].error.as_ref().unwrap().reason,
        "RECORD_TOO_LARGE"
    );
    let request = FetchOnceRequest {
        topic: Some(by_name("t")),
        partition: results[0].partition,
        offset: results[0].offset,
        ..Default::default()
    };
    let got = broker
        .consumer()
        .fetch_once(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.records[0].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(
        (got.records[0].timestamp_ms, got.records[0].headers.len()),
        (77, 1)
    );

    // With a sequence, the same call twice writes once.
    let id = new_producer(&broker).await;
    let request = ProduceOnceRequest {
        topic: Some(by_name("t")),
        partition: Some(3),
        records: vec![record(None, "once")],
        producer_id: Some(id),
        producer_epoch: Some(0),
        base_sequence: Some(0),
    };
    let first = broker
        .producer()
        .produce_once(request.clone())
        .await
        .unwrap()
        .into_inner()
        .results;
    let again = broker
        .producer()
        .produce_once(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(first, again);
}
