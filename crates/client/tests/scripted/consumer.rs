//! What a consumer promises under faults.

use std::time::Duration;

use timberline_client::{
    ApiError, Consumer, ConsumerOptions, Error, OffsetReset, Position, Reason,
};

use crate::broker::Broker;
use crate::{client, soon};

async fn consumer(broker: &Broker, options: ConsumerOptions) -> Consumer {
    client(broker).await.consumer(options).await.unwrap()
}

/// Batches of three records: `0`, `1`, `2` | `3`, `4`, `5` | …
fn fill(broker: &Broker, partition: usize, batches: std::ops::Range<usize>) {
    for batch in batches {
        let values: Vec<_> = (batch * 3..batch * 3 + 3)
            .map(|number| number.to_string())
            .collect();
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        broker.fill(partition, &[&values]);
    }
}

async fn expect(consumer: &mut Consumer, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        let record = soon(consumer.recv()).await.unwrap();
        assert_eq!(record.offset, offset);
        assert_eq!(record.value.as_deref(), Some(offset.to_string().as_bytes()));
        assert_eq!(consumer.position("t", record.partition), Some(offset + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_from_any_position_and_seeks() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..10);
    let mut consumer = consumer(&broker, ConsumerOptions::default()).await;
    assert_eq!(consumer.recv().await.unwrap_err(), Error::NothingAssigned);
    consumer.assign("t", 0, Position::Offset(4)).await.unwrap();
    expect(&mut consumer, 4..8).await;
    assert_eq!(consumer.high_watermark("t", 0), Some(30));
    consumer.seek("t", 0, Position::Earliest).await.unwrap();
    expect(&mut consumer, 0..5).await;
    // The rest of the batch, then whole ones.
    let batch = soon(consumer.recv_batch()).await.unwrap();
    assert_eq!((batch.first_offset(), batch.next_offset()), (5, 6));
    assert_eq!(
        batch
            .records()
            .map(|record| record.unwrap().offset)
            .collect::<Vec<_>>(),
        [5]
    );
    let batch = soon(consumer.recv_batch()).await.unwrap();
    assert_eq!(
        batch
            .records()
            .map(|record| record.unwrap().offset)
            .collect::<Vec<_>>(),
        [6, 7, 8]
    );
    assert_eq!(consumer.position("t", 0), Some(9));
    consumer
        .seek("t", 0, Position::Timestamp(5000))
        .await
        .unwrap();
    assert_eq!(consumer.position("t", 0), Some(30));
    // At the end: waits, is cancelled without loss, then gets what comes.
    assert!(
        tokio::time::timeout(Duration::from_millis(50), consumer.recv())
            .await
            .is_err()
    );
    fill(&broker, 0, 10..11);
    expect(&mut consumer, 30..33).await;
    consumer.unassign("t", 0).unwrap();
    assert_eq!(consumer.recv().await.unwrap_err(), Error::NothingAssigned);
    let error = consumer
        .assign("t", 7, Position::Earliest)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::UnknownPartition));
    let error = consumer
        .assign("nope", 0, Position::Earliest)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::UnknownTopic));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumes_after_lost_streams_and_killed_brokers() {
    let mut broker = Broker::start(1).await;
    fill(&broker, 0, 0..300);
    let options = ConsumerOptions::default().prefetch_bytes(4096_usize);
    let mut consumer = consumer(&broker, options).await;
    consumer.assign("t", 0, Position::Earliest).await.unwrap();
    for round in 0..10 {
        broker.faults(|faults| faults.lose_fetch_after = Some(2));
        expect(&mut consumer, round * 60..(round + 1) * 60).await;
    }
    let mut outages = consumer.outages();
    broker.kill();
    soon(outages.wait_for(Option::is_some)).await.unwrap();
    broker.restart().await;
    soon(outages.wait_for(Option::is_none)).await.unwrap();
    expect(&mut consumer, 600..900).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_is_bounded_by_what_is_granted() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..1000);
    let options = ConsumerOptions::default().prefetch_bytes(8192_usize);
    let mut consumer = consumer(&broker, options).await;
    consumer.assign("t", 0, Position::Earliest).await.unwrap();
    expect(&mut consumer, 0..1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sent = *broker.state.sent.lock();
    assert!((8192..8192 + 200).contains(&sent), "{sent}");
    expect(&mut consumer, 1..3000).await;
    assert!(*broker.state.granted.lock() <= *broker.state.sent.lock() + 8192);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_out_of_range_follows_the_policy() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..10);
    broker.state.logs.lock()[0].log_start = 6;
    let mut strict = consumer(&broker, ConsumerOptions::default()).await;
    strict.assign("t", 0, Position::Offset(2)).await.unwrap();
    let error = soon(strict.recv()).await.unwrap_err();
    let expected = Error::OffsetOutOfRange {
        topic: "t".to_owned(),
        partition: 0,
        offset: 2,
        log_start: 6,
        high_watermark: 30,
    };
    assert_eq!(error, expected);
    strict.seek("t", 0, Position::Earliest).await.unwrap();
    expect(&mut strict, 6..10).await;

    let mut earliest = consumer(
        &broker,
        ConsumerOptions::default().offset_reset(OffsetReset::Earliest),
    )
    .await;
    earliest.assign("t", 0, Position::Offset(99)).await.unwrap();
    expect(&mut earliest, 6..10).await;

    let mut latest = consumer(
        &broker,
        ConsumerOptions::default().offset_reset(OffsetReset::Latest),
    )
    .await;
    latest.assign("t", 0, Position::Offset(99)).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(200), latest.recv())
            .await
            .is_err()
    );
    assert_eq!(latest.position("t", 0), Some(30));
    fill(&broker, 0, 10..11);
    expect(&mut latest, 30..33).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_named_and_can_be_passed() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..10);
    broker.faults(|faults| faults.damage_offset = Some(6));
    let mut reader = consumer(&broker, ConsumerOptions::default()).await;
    reader.assign("t", 0, Position::Earliest).await.unwrap();
    expect(&mut reader, 0..6).await;
    match soon(reader.recv()).await.unwrap_err() {
        Error::CorruptBatch { from: 6, to: 9, .. } => {}
        other => panic!("{other}"),
    }
    reader.seek("t", 0, Position::Offset(9)).await.unwrap();
    expect(&mut reader, 9..30).await;

    // Quarantined by the broker.
    let error = ApiError::new(Reason::DataDamaged, "quarantined")
        .with("damaged_from", 3)
        .with("damaged_to", 12);
    broker.faults(|faults| faults.refuse_fetch.push_back(error));
    reader.seek("t", 0, Position::Offset(3)).await.unwrap();
    match soon(reader.recv()).await.unwrap_err() {
        Error::DataDamaged {
            from: 3, to: 12, ..
        } => {}
        other => panic!("{other}"),
    }
    reader.seek("t", 0, Position::Offset(12)).await.unwrap();
    expect(&mut reader, 12..30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_may_pass_are_retried_and_others_are_told() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..4);
    fill(&broker, 1, 0..4);
    broker.faults(|faults| {
        for reason in [
            Reason::NotLeader,
            Reason::OffsetNotAvailable,
            Reason::Overloaded,
        ] {
            faults
                .refuse_fetch
                .push_back(ApiError::new(reason, "again"));
        }
    });
    let mut reader = consumer(&broker, ConsumerOptions::default()).await;
    reader.assign("t", 0, Position::Earliest).await.unwrap();
    expect(&mut reader, 0..12).await;
    let error = ApiError::new(Reason::Internal, "a defect");
    broker.faults(|faults| faults.refuse_fetch.push_back(error));
    reader.unassign("t", 0).unwrap();
    reader.assign("t", 1, Position::Earliest).await.unwrap();
    assert_eq!(
        soon(reader.recv()).await.unwrap_err().reason(),
        Some(Reason::Internal)
    );
    reader.seek("t", 1, Position::Earliest).await.unwrap();
    expect(&mut reader, 0..12).await;
}
