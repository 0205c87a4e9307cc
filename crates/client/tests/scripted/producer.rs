//! What a producer promises under faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use timberline_client::{
    ApiError, BatchInfo, Codec, Delivery, Error, Observer, Partitioner, Partitioning, Producer,
    ProducerObserver, ProducerOptions, ProducerRecord, Reason,
};

use crate::broker::Broker;
use crate::{client, soon};

fn options() -> ProducerOptions {
    ProducerOptions::default()
        .linger(Duration::ZERO)
        .retry_backoff(Duration::from_millis(5))
        .retry_backoff_max(Duration::from_millis(50))
        .delivery_timeout(Duration::from_secs(20))
}

fn value(number: usize) -> String {
    format!("value {number:08}")
}

async fn send(
    producer: &Producer,
    partition: i32,
    numbers: std::ops::Range<usize>,
) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in numbers {
        let record = ProducerRecord::value("t", value(number)).with_partition(partition);
        deliveries.push(producer.send(record).await.unwrap());
    }
    deliveries
}

/// All are delivered, at offsets that hold them, once and in order.
async fn check_all(broker: &Broker, partition: usize, deliveries: Vec<Delivery>) {
    let count = deliveries.len();
    for (number, delivery) in deliveries.into_iter().enumerate() {
        let stored = soon(delivery).await.unwrap();
        assert_eq!(
            (stored.partition, stored.offset),
            (partition as i32, number as i64)
        );
    }
    let expected: Vec<_> = (0..count).map(value).collect();
    assert!(
        broker.values(partition) == expected,
        "lost, repeated or reordered"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delivers_in_order_at_the_offsets_told() {
    let broker = Broker::start(3).await;
    let producer = client(&broker).await.producer(options()).await.unwrap();
    let deliveries = send(&producer, 1, 0..20_000).await;
    soon(producer.flush()).await.unwrap();
    assert_eq!(producer.buffered_bytes(), 0);
    check_all(&broker, 1, deliveries).await;
    soon(producer.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linger_gathers_records_into_one_batch_per_partition() {
    let broker = Broker::start(2).await;
    let producer = client(&broker)
        .await
        .producer(options().linger(Duration::from_millis(200)))
        .await
        .unwrap();
    let mut deliveries = send(&producer, 0, 0..50).await;
    deliveries.extend(send(&producer, 1, 50..100).await);
    for delivery in deliveries {
        soon(delivery).await.unwrap();
    }
    let logs = broker.state.logs.lock();
    assert!(
        logs.iter()
            .all(|log| log.batches.len() == 1 && log.end == 50)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_batch_does_not_linger_and_every_codec_is_read_back() {
    for codec in Codec::ALL {
        let broker = Broker::start(1).await;
        let slow = options()
            .linger(Duration::from_secs(15))
            .batch_bytes(4096_usize)
            .codec(codec);
        let producer = client(&broker).await.producer(slow).await.unwrap();
        let mut deliveries = send(&producer, 0, 0..1000).await;
        // Those of full batches come at once; the last one waits for the flush.
        let last = deliveries.pop().unwrap();
        soon(deliveries.remove(0)).await.unwrap();
        assert!(last.try_result().is_none());
        soon(producer.flush()).await.unwrap();
        assert_eq!(last.try_result().unwrap().unwrap().offset, 999);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_sticky_partitions() {
    let broker = Broker::start(4).await;
    let producer = client(&broker)
        .await
        .producer(options().batch_bytes(1024_usize))
        .await
        .unwrap();
    // murmur2("21") = -973932308, as Kafka's own test says; its lower 31 bits mod 4 are 0.
    let expected = (-973_932_308_i32 & 0x7fff_ffff) % 4;
    let delivery = producer
        .send(ProducerRecord::keyed("t", "21", "v"))
        .await
        .unwrap();
    assert_eq!(soon(delivery).await.unwrap().partition, expected);
    for number in 0..2000 {
        drop(
            producer
                .send(ProducerRecord::value("t", value(number)))
                .await
                .unwrap(),
        );
    }
    soon(producer.flush()).await.unwrap();
    let counts: Vec<_> = broker.state.logs.lock().iter().map(|log| log.end).collect();
    assert_eq!(counts.iter().sum::<i64>(), 2001);
    assert!(counts.iter().all(|&count| count > 200), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_acknowledgement_is_asked_for_and_nothing_is_written_twice() {
    let broker = Broker::start(1).await;
    let producer = client(&broker)
        .await
        .producer(options().batch_bytes(1024_usize))
        .await
        .unwrap();
    let mut deliveries = Vec::new();
    let mut duplicates = 0;
    for round in 0..20 {
        broker.faults(|faults| faults.lose_stream_after = Some(1 + round % 4));
        deliveries.extend(send(&producer, 0, round * 300..(round + 1) * 300).await);
        soon(producer.flush()).await.unwrap();
        let told = deliveries.iter().filter_map(Delivery::try_result);
        duplicates = told.filter(|told| told.as_ref().unwrap().duplicate).count();
    }
    assert!(duplicates > 0, "no stream was lost at the right moment");
    check_all(&broker, 0, deliveries).await;
    assert_eq!(*broker.state.init_calls.lock(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_batch_and_those_behind_it_are_sent_again_in_order() {
    let broker = Broker::start(1).await;
    let producer = client(&broker)
        .await
        .producer(options().batch_bytes(1024_usize))
        .await
        .unwrap();
    let mut deliveries = Vec::new();
    let reasons = [
        Reason::Overloaded,
        Reason::NotLeader,
        Reason::NoLeader,
        Reason::StorageFull,
        Reason::Draining,
    ];
    for (round, &reason) in reasons.iter().cycle().take(20).enumerate() {
        let error = ApiError::new(reason, "again").with_retry_after(Duration::from_millis(3));
        broker.faults(|faults| faults.refuse.push_back(error));
        deliveries.extend(send(&producer, 0, round * 300..(round + 1) * 300).await);
    }
    check_all(&broker, 0, deliveries).await;
    assert_eq!(*broker.state.init_calls.lock(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rides_out_killed_brokers() {
    let mut broker = Broker::start(2).await;
    let producer = client(&broker)
        .await
        .producer(options().batch_bytes(2048_usize))
        .await
        .unwrap();
    let sender = tokio::spawn({
        let producer = producer.clone();
        async move {
            let mut deliveries = [Vec::new(), Vec::new()];
            for number in 0..20_000 {
                for partition in 0..2 {
                    let more = send(&producer, partition, number..number + 1).await;
                    deliveries[partition as usize].extend(more);
                }
                if number % 50 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            deliveries
        }
    });
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        broker.kill();
        tokio::time::sleep(Duration::from_millis(60)).await;
        broker.restart().await;
    }
    let [first, second] = soon(sender).await.unwrap();
    check_all(&broker, 0, first).await;
    check_all(&broker, 1, second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_a_go_away() {
    let broker = Broker::start(1).await;
    broker.faults(|faults| faults.go_away_after = Some(3));
    let producer = client(&broker)
        .await
        .producer(options().batch_bytes(1024_usize))
        .await
        .unwrap();
    let deliveries = send(&producer, 0, 0..2000).await;
    check_all(&broker, 0, deliveries).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_refused_for_good_fails_alone() {
    let broker = Broker::start(1).await;
    let producer = client(&broker).await.producer(options()).await.unwrap();
    soon(send(&producer, 0, 0..1).await.remove(0))
        .await
        .unwrap();
    broker.faults(|faults| {
        faults.ack_delay = Duration::from_millis(20);
        faults
            .refuse
            .push_back(ApiError::new(Reason::RecordTooLarge, "too large"));
    });
    let refused = send(&producer, 0, 1..2).await.remove(0);
    let mut behind = Vec::new();
    for number in 2..6 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        behind.extend(send(&producer, 0, number..number + 1).await);
    }
    let error = soon(refused).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::RecordTooLarge));
    for delivery in behind {
        soon(delivery).await.unwrap();
    }
    let expected: Vec<_> = [0, 2, 3, 4, 5].map(value).to_vec();
    assert_eq!(broker.values(0), expected);
    assert_eq!(*broker.state.init_calls.lock(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_too_large_only_the_record_too_large_fails() {
    for (codec, idempotent) in [
        (Codec::None, true),
        (Codec::Lz4, true),
        (Codec::None, false),
    ] {
        let broker = Broker::start(1).await;
        broker.faults(|faults| faults.max_message_bytes = Some(2000));
        let mut gathers = options()
            .linger(Duration::from_millis(20))
            .codec(codec)
            .idempotent(idempotent);
        if !idempotent {
            // Else a refused batch may be overtaken.
            gathers = gathers.max_in_flight_per_partition(1_usize);
        }
        let producer = client(&broker).await.producer(gathers).await.unwrap();
        // Nothing that a codec makes small.
        let mut noise = 1_u64;
        let mut values: Vec<Vec<u8>> = Vec::new();
        for number in 0..400_usize {
            let len = if number == 123 {
                4000
            } else {
                20 + number % 50
            };
            let bytes = (0..len).map(|_| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (noise >> 56) as u8
            });
            values.push(bytes.collect());
        }
        let mut deliveries = Vec::new();
        for value in &values {
            let record = ProducerRecord::value("t", value.clone()).with_partition(0);
            deliveries.push(producer.send(record).await.unwrap());
        }
        soon(producer.flush()).await.unwrap_err();
        let mut next = 0;
        for (number, delivery) in deliveries.into_iter().enumerate() {
            match soon(delivery).await {
                Ok(stored) => {
                    assert_eq!(stored.offset, next, "{codec:?}: record {number}");
                    next += 1;
                }
                Err(error) => {
                    assert_eq!(number, 123, "{codec:?}: {error}");
                    assert_eq!(error.reason(), Some(Reason::RecordTooLarge));
                }
            }
        }
        values.remove(123);
        assert!(broker.values(0) == values, "lost, repeated or reordered");
        assert_eq!(producer.buffered_bytes(), 0);
        // The limit is known now: what comes next is not refused first.
        let batches = broker.state.logs.lock()[0].batches.len();
        let deliveries = send(&producer, 0, 0..200).await;
        for delivery in deliveries {
            soon(delivery).await.unwrap();
        }
        let logs = broker.state.logs.lock();
        let behind = logs[0].batches[batches..].iter();
        let largest = behind.map(|(_, bytes)| bytes.len()).max();
        assert!(codec != Codec::None || largest > Some(1500), "{largest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_says_whether_the_outcome_is_known_and_blocks_nothing() {
    let mut broker = Broker::start(2).await;
    let short = options().delivery_timeout(Duration::from_millis(300));
    let producer = client(&broker).await.producer(short).await.unwrap();
    soon(send(&producer, 0, 0..1).await.remove(0))
        .await
        .unwrap();

    // Taken by the broker and never answered.
    broker.faults(|faults| faults.swallow = true);
    let swallowed = send(&producer, 0, 1..2).await.remove(0);
    let error = soon(swallowed).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::DeliveryTimeout {
                outcome_unknown: true,
                ..
            }
        ),
        "{error}"
    );

    // The sequence that is missing now stops neither this partition nor another one.
    broker.faults(|faults| faults.swallow = false);
    soon(send(&producer, 0, 2..3).await.remove(0))
        .await
        .unwrap();
    soon(send(&producer, 1, 3..4).await.remove(0))
        .await
        .unwrap();
    assert_eq!(*broker.state.init_calls.lock(), 2);

    // Never sent at all.
    broker.kill();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let unsent = send(&producer, 0, 4..5).await.remove(0);
    let error = soon(unsent).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::DeliveryTimeout {
                outcome_unknown: false,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(producer.buffered_bytes(), 0);

    broker.restart().await;
    soon(send(&producer, 0, 5..6).await.remove(0))
        .await
        .unwrap();
    assert_eq!(broker.values(0), [0, 2, 5].map(value).to_vec());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_buffer_is_bounded_and_gives_records_back() {
    let broker = Broker::start(1).await;
    broker.faults(|faults| faults.swallow = true);
    let small = options()
        .buffer_bytes(8_192_usize)
        .batch_bytes(1024_usize)
        .delivery_timeout(Duration::from_millis(500));
    let producer = client(&broker).await.producer(small).await.unwrap();
    let record = ProducerRecord::value("t", vec![7; 1000]);
    let unknown = producer.try_send(record.clone()).unwrap_err();
    assert!(matches!(unknown.error, Error::TopicNotReady { .. }));
    producer.prepare("t").await.unwrap();
    let mut taken = 0;
    let refused = loop {
        match producer.try_send(record.clone()) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(taken, 7);
    assert_eq!(
        (refused.error, refused.record),
        (Error::BufferFull, record.clone())
    );
    // Waits until those above have failed.
    let waiting = producer.send(record);
    broker.faults(|faults| faults.swallow = false);
    let delivery = soon(waiting).await.unwrap();
    soon(delivery).await.unwrap();
    let large = ProducerRecord::value("t", vec![0; 9000]);
    assert!(matches!(
        producer.send(large).await,
        Err(Error::InvalidRecord { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_what_is_wrong() {
    let broker = Broker::start(1).await;
    let client = client(&broker).await;
    let producer = client.producer(options()).await.unwrap();
    let error = producer
        .send(ProducerRecord::value("nope", "v"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::UnknownTopic));
    let error = producer
        .send(ProducerRecord::value("t", "v").with_partition(9))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::UnknownPartition));
    let other = producer.clone();
    soon(producer.close()).await.unwrap();
    assert_eq!(
        other
            .send(ProducerRecord::value("t", "v"))
            .await
            .unwrap_err(),
        Error::Closed
    );
    assert!(matches!(
        client
            .producer(options().max_in_flight_per_partition(6_usize))
            .await,
        Err(Error::InvalidOption { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_producer_still_delivers() {
    let broker = Broker::start(1).await;
    let producer = client(&broker)
        .await
        .producer(options().linger(Duration::from_secs(10)))
        .await
        .unwrap();
    let deliveries = send(&producer, 0, 0..10).await;
    drop(producer);
    check_all(&broker, 0, deliveries).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_idempotence_nothing_is_stamped() {
    let broker = Broker::start(1).await;
    let producer = client(&broker)
        .await
        .producer(options().idempotent(false))
        .await
        .unwrap();
    let deliveries = send(&producer, 0, 0..100).await;
    check_all(&broker, 0, deliveries).await;
    assert_eq!(*broker.state.init_calls.lock(), 0);
    assert!(
        broker.state.logs.lock()[0]
            .batches
            .iter()
            .all(|(header, _)| header.producer().is_none())
    );
}

/// By the value's first byte; those that begin with `-` have no preference, and `?` is a mistake.
struct ByFirstByte;

impl Partitioner for ByFirstByte {
    fn partition(&self, record: &ProducerRecord, partitions: usize) -> Option<usize> {
        let first = record.value.as_ref().and_then(|value| value.first());
        match first {
            Some(b'-') | None => None,
            Some(b'?') => Some(partitions),
            Some(first) => Some(usize::from(*first) % partitions),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_partitioner_chooses_and_its_mistakes_are_told() {
    let broker = Broker::start(3).await;
    let options = options().partitioner(Partitioning::custom(ByFirstByte));
    let producer = client(&broker).await.producer(options).await.unwrap();
    let send = async |value: &'static str| producer.send(ProducerRecord::value("t", value)).await;
    for (value, partition) in [("a", 1), ("b", 2), ("c", 0), ("d", 1)] {
        let stored = soon(send(value).await.unwrap()).await.unwrap();
        assert_eq!(stored.partition, partition, "{value}");
    }
    soon(send("-").await.unwrap()).await.unwrap();
    let error = send("?").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::UnknownPartition));
    let named = ProducerRecord::value("t", "?").with_partition(2);
    let stored = soon(producer.send(named).await.unwrap()).await.unwrap();
    assert_eq!(stored.partition, 2, "who names one is not asked about");
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl ProducerObserver for Counts {
    fn batch_sent(&self, batch: &BatchInfo<'_>) {
        self.sent.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(batch.bytes as u64, Ordering::SeqCst);
    }

    fn batch_acknowledged(&self, batch: &BatchInfo<'_>, took: Duration) {
        assert_eq!((batch.topic, batch.partition), ("t", 0));
        assert!(took < Duration::from_secs(20));
        let records = u64::from(batch.records);
        self.acknowledged.fetch_add(records, Ordering::SeqCst);
    }

    fn batch_failed(&self, batch: &BatchInfo<'_>, error: &Error) {
        assert!(matches!(error, Error::DeliveryTimeout { .. }), "{error}");
        let records = u64::from(batch.records);
        self.failed.fetch_add(records, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_hears_of_every_batch() {
    let mut broker = Broker::start(1).await;
    let counts = Arc::new(Counts::default());
    let options = options().observer(Observer::shared(counts.clone()));
    let producer = client(&broker).await.producer(options).await.unwrap();
    for delivery in send(&producer, 0, 0..100).await {
        soon(delivery).await.unwrap();
    }
    broker.kill();
    let late = ProducerRecord::value("t", "late")
        .with_partition(0)
        .with_delivery_timeout(Duration::from_millis(100));
    let failed = soon(producer.send(late).await.unwrap()).await;
    assert!(matches!(failed, Err(Error::DeliveryTimeout { .. })));
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert_eq!([&counts.acknowledged, &counts.failed].map(count), [100, 1]);
    assert!(count(&counts.sent) >= 1 && count(&counts.sent) <= 101);
    assert!(count(&counts.bytes) > 100 * 14);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_has_a_deadline_of_its_own() {
    let mut broker = Broker::start(1).await;
    let producer = client(&broker).await.producer(options()).await.unwrap();
    for delivery in send(&producer, 0, 0..1).await {
        soon(delivery).await.unwrap();
    }
    broker.kill();
    let patient = send(&producer, 0, 1..3).await;
    let soon_wanted = ProducerRecord::value("t", "soon")
        .with_partition(0)
        .with_delivery_timeout(Duration::from_millis(150));
    let hurried = producer.send(soon_wanted).await.unwrap();
    let behind = send(&producer, 0, 3..5).await;
    let error = soon(hurried).await.unwrap_err();
    let Error::DeliveryTimeout {
        outcome_unknown,
        after,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(after, Duration::from_millis(150));
    broker.restart().await;
    let mut stored = vec![value(0)];
    for (number, delivery) in (1..).zip(patient.into_iter().chain(behind)) {
        match soon(delivery).await {
            Ok(_) => stored.push(value(number)),
            // They were under way behind the one whose sequence may be missing now.
            Err(Error::OutcomeUnknown { .. }) if outcome_unknown => {}
            Err(error) => panic!("{error}"),
        }
    }
    let values = broker.values(0);
    if !outcome_unknown {
        assert_eq!(values, (0..5).map(value).collect::<Vec<_>>());
    }
    for value in stored {
        let times = values.iter().filter(|stored| **stored == value.as_bytes());
        assert_eq!(times.count(), 1, "{value}");
    }
}
