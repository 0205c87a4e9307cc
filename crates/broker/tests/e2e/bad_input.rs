//! What a hostile or broken client sends: typed errors, and the broker goes on.

use bytes::{Bytes, BytesMut};
use timberline_proto::v1::*;
use timberline_record::{BatchBuilder, Codec, TimestampType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn damaged_and_forged_batches_are_refused_in_band() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let good = batch(&["a", "b"], None);
    let mut producing = broker.produce().await;
    let flipped = |at: usize| {
        let mut bytes = BytesMut::from(&good[..]);
        bytes[at] ^= 0xff;
        bytes.freeze()
    };
    let mut bad: Vec<Bytes> = (0..good.len()).map(|len| good.slice(..len)).collect();
    // Base offset and leader epoch are the broker's to stamp; everything else is covered.
    bad.extend((8..12).chain(16..good.len()).map(flipped));
    let mut longer = BytesMut::from(&good[..]);
    longer.extend_from_slice(b"tail");
    bad.push(longer.freeze());
    for bytes in bad {
        let error = producing.put(&topic, bytes).await.error();
        assert_eq!(error.code, tonic::Code::InvalidArgument as i32, "{error:?}");
    }
    producing.put(&topic, good.clone()).await.ack();
    assert_eq!(broker.offsets("t").await, (0, 2));
}

#[tokio::test]
async fn too_large_is_said_and_not_retried() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let value = "x".repeat(1 << 20);
    let options = timberline_record::BatchOptions {
        limits: timberline_record::Limits {
            max_batch_bytes: 1 << 30,
            ..Default::default()
        },
        ..Default::default()
    };
    let mut builder = BatchBuilder::with_options(options);
    builder
        .append(1, None, Some(value.as_bytes()), &[])
        .unwrap();
    builder
        .append(1, None, Some(value.as_bytes()), &[])
        .unwrap();
    let large = builder.build(None).unwrap().into_bytes();
    let error = producing.put(&topic, large).await.error();
    assert_eq!(
        (error.reason.as_str(), error.code),
        ("RECORD_TOO_LARGE", tonic::Code::InvalidArgument as i32)
    );
    assert_eq!(error.metadata["max_message_bytes"], "1048588");
    producing.put(&topic, batch(&["fits"], None)).await.ack();
    // Beyond what the broker receives at all: the stream ends, with our reason.
    producing
        .send(&topic, 0, Bytes::from(vec![0; 17 << 20]))
        .await;
    let status = loop {
        match producing.receiver.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), "RECORD_TOO_LARGE");
}

#[tokio::test]
async fn a_bomb_is_not_unpacked() {
    let broker = TestBroker::with(|config| {
        config.limits.decompressed_bytes_max = timberline_broker::config::ByteSize(1 << 20);
    })
    .await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let zeros = vec![0; 30 << 20];
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let options = timberline_record::BatchOptions {
            codec,
            limits: timberline_record::Limits {
                max_batch_bytes: 1 << 30,
                ..Default::default()
            },
            ..Default::default()
        };
        let mut builder = BatchBuilder::with_options(options);
        builder.append(1, None, Some(&zeros), &[]).unwrap();
        let bomb = builder.build(None).unwrap().into_bytes();
        let error = producing.put(&topic, bomb).await.error();
        assert_eq!(error.reason, "RECORD_TOO_LARGE", "{codec:?}");
    }
}

#[tokio::test]
async fn unknown_topics_and_partitions() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let nobody = Bytes::from_static(&[7; 16]);
    assert_eq!(
        producing
            .put(&nobody, batch(&["a"], None))
            .await
            .error()
            .reason,
        "UNKNOWN_TOPIC"
    );
    let short = Bytes::from_static(b"short");
    assert_eq!(
        producing
            .put(&short, batch(&["a"], None))
            .await
            .error()
            .reason,
        "INVALID_ARGUMENT"
    );
    for partition in [-1, 1, i32::MAX, i32::MIN] {
        producing.send(&topic, partition, batch(&["a"], None)).await;
        assert_eq!(producing.answer().await.error().reason, "UNKNOWN_PARTITION");
    }
    let request = FetchOnceRequest {
        topic: Some(by_name("nobody")),
        ..Default::default()
    };
    let status = broker.consumer().fetch_once(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (tonic::Code::NotFound, "UNKNOWN_TOPIC")
    );
    let status = broker
        .consumer()
        .fetch_once(FetchOnceRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_recreated_topic_is_not_the_old_ones_heir() {
    let broker = TestBroker::start().await;
    let old = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    producing.put(&old, batch(&["old"], None)).await.ack();
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&old, 0, 0, 1).await;
    assert_eq!(fetching.values(1).await, ["old"]);
    broker
        .admin()
        .delete_topic(DeleteTopicRequest {
            topic: Some(by_name("t")),
            ..Default::default()
        })
        .await
        .unwrap();
    // Whoever waits there is told.
    let failure = loop {
        match fetching.next().await {
            fetch_response::Kind::Failure(failure) => break failure,
            fetch_response::Kind::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure.error.unwrap().reason, "UNKNOWN_TOPIC");
    let new = broker.topic("t", 1, &[]).await;
    assert_ne!(old, new);
    assert_eq!(
        producing
            .put(&old, batch(&["x"], None))
            .await
            .error()
            .reason,
        "UNKNOWN_TOPIC"
    );
    assert_eq!(
        producing
            .put(&new, batch(&["x"], None))
            .await
            .ack()
            .base_offset,
        0
    );
}

#[tokio::test]
async fn streams_begin_with_one_hello() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let bad_hello = Hello {
        protocol_version: 0,
        ..hello()
    };
    let data = ProduceBatch {
        topic_id: topic.clone(),
        batch: batch(&["a"], None),
        ..Default::default()
    };
    for (kinds, expected) in [
        (
            vec![Some(produce_request::Kind::Batch(data))],
            "HANDSHAKE_REQUIRED",
        ),
        (vec![None], "HANDSHAKE_REQUIRED"),
        (
            vec![
                Some(produce_request::Kind::Hello(hello())),
                Some(produce_request::Kind::Hello(hello())),
            ],
            "HANDSHAKE_REQUIRED",
        ),
        (
            vec![Some(produce_request::Kind::Hello(bad_hello))],
            "UNSUPPORTED_VERSION",
        ),
        (
            vec![Some(produce_request::Kind::Hello(hello())), None],
            "INVALID_ARGUMENT",
        ),
    ] {
        let requests = kinds.into_iter().map(|kind| ProduceRequest { kind });
        let stream = tokio_stream::iter(requests);
        let mut receiver = broker
            .producer()
            .produce(stream)
            .await
            .unwrap()
            .into_inner();
        let status = loop {
            match receiver.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended well"),
                Err(status) => break status,
            }
        };
        assert_eq!(reason(&status), expected);
    }
    let stream = tokio_stream::iter([FetchRequest {
        kind: Some(fetch_request::Kind::GrantBytes(1)),
    }]);
    let status = match broker.consumer().fetch(stream).await {
        Ok(response) => response.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(reason(&status), "HANDSHAKE_REQUIRED");
    assert_eq!(broker.offsets("t").await, (0, 0));
}

#[tokio::test]
async fn hostile_names_are_refused_everywhere() {
    let broker = TestBroker::start().await;
    let huge = "x".repeat(10_240);
    for name in [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a\0b",
        "a b",
        "☃",
        huge.as_str(),
    ] {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions: 1,
            ..Default::default()
        };
        let status = broker.admin().create_topic(request).await.unwrap_err();
        assert_eq!(reason(&status), "INVALID_TOPIC_NAME", "{name:?}");
        let request = DescribeTopicRequest {
            topic: Some(by_name(name)),
        };
        let status = broker.admin().describe_topic(request).await.unwrap_err();
        assert_eq!(reason(&status), "UNKNOWN_TOPIC", "{name:?}");
    }
    for partitions in [0, -1, 1_000_000, i32::MAX] {
        let request = CreateTopicRequest {
            name: "t".to_owned(),
            partitions,
            ..Default::default()
        };
        let status = broker.admin().create_topic(request).await.unwrap_err();
        assert_eq!(reason(&status), "INVALID_ARGUMENT");
    }
}

#[tokio::test]
async fn garbage_on_the_ports_disturbs_nobody() {
    let broker = TestBroker::with(|config| {
        config.listen.handshake_timeout = timberline_broker::config::Span(200);
    })
    .await;
    for address in [broker.broker().grpc_addr(), broker.broker().http_addr()] {
        for garbage in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            &[0; 100],
            b"GET / HTTP/0.9\r\n",
            b"",
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            // Also the one who says nothing is sent away.
            let mut answer = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
            let _ = end.await.expect("the connection is closed");
        }
    }
    broker.topic("t", 1, &[]).await;
}

#[tokio::test]
async fn timestamps_that_lie_are_corrected() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut builder = BatchBuilder::new(Codec::None, TimestampType::CreateTime);
    builder.append(500, None, Some(b"a"), &[]).unwrap();
    let honest = builder.build(None).unwrap();
    let lying = honest.with_max_timestamp(9_000);
    let lying = honest.with_header(lying).unwrap();
    broker
        .produce()
        .await
        .put(&topic, lying.into_bytes())
        .await
        .ack();
    let item = ListOffsetsItem {
        topic: Some(by_id(&topic)),
        partition: 0,
        at: Some(list_offsets_item::At::TimestampMs(501)),
    };
    let results = broker
        .consumer()
        .list_offsets(ListOffsetsRequest { items: vec![item] })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!((results[0].offset, results[0].timestamp_ms), (1, None));
}

#[tokio::test]
async fn offsets_by_time_are_bounded() {
    let broker = TestBroker::start().await;
    broker.topic("t", 1, &[]).await;
    let ask = |count: usize, at: list_offsets_item::At| {
        let item = ListOffsetsItem {
            topic: Some(by_name("t")),
            partition: 0,
            at: Some(at),
        };
        let mut consumer = broker.consumer();
        let items = vec![item; count];
        async move { consumer.list_offsets(ListOffsetsRequest { items }).await }
    };
    let status = ask(1001, list_offsets_item::At::TimestampMs(1)).await;
    assert_eq!(reason(&status.unwrap_err()), "INVALID_ARGUMENT");
    ask(1000, list_offsets_item::At::TimestampMs(1))
        .await
        .unwrap();
    ask(1001, list_offsets_item::At::Latest(true))
        .await
        .unwrap();
}
