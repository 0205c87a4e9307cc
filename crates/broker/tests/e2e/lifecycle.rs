//! Start, restart, drain, probes, the lock.

use std::time::Duration;

use timberline_broker::{Broker, Error};
use timberline_proto::v1::*;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::*;

#[tokio::test]
async fn a_restart_keeps_records_offsets_and_producers() {
    let mut broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    let mut epoch = 0;
    for round in 0..3 {
        let ack = producing
            .put(&topic, batch(&["a", "b"], Some((5, 0, round * 2))))
            .await
            .ack();
        assert_eq!(ack.base_offset, i64::from(round) * 2);
        assert!(ack.leader_epoch > epoch);
        epoch = ack.leader_epoch;
        drop(producing);
        broker.restart().await;
        producing = broker.produce().await;
        // The same batch again is the same batch.
        let ack = producing
            .put(&topic, batch(&["a", "b"], Some((5, 0, round * 2))))
            .await
            .ack();
        assert!(ack.duplicate && ack.base_offset == i64::from(round) * 2);
    }
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    assert_eq!(fetching.values(6).await, ["a", "b", "a", "b", "a", "b"]);
}

#[tokio::test]
async fn a_second_broker_on_the_directory_is_refused() {
    let broker = TestBroker::start().await;
    let error = Broker::start(config(&broker.dir)).await.err().unwrap();
    assert!(
        matches!(
            error,
            Error::Storage(timberline_storage::Error::Locked { .. })
        ),
        "{error}"
    );
    broker.topic("t", 1, &[]).await;
}

#[tokio::test]
async fn a_directory_keeps_its_broker() {
    let mut broker = TestBroker::start().await;
    let cluster = broker.broker().cluster_id();
    broker.restart().await;
    assert_eq!(broker.broker().cluster_id(), cluster);
    let running = broker.running.take().unwrap();
    running.shutdown().await.unwrap();
    drop(running);
    let mut other = config(&broker.dir);
    other.broker.id = 2;
    for _ in 0..200 {
        match Broker::start(other.clone()).await {
            Err(Error::WrongBroker {
                found: 1,
                configured: 2,
            }) => return,
            Err(Error::Storage(timberline_storage::Error::Locked { .. })) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => panic!("{:?}", other.err()),
        }
    }
    panic!("still locked");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let broker = TestBroker::start().await;
    let mut second = config(&broker.dir.with_extension("2"));
    second.listen.grpc = broker.broker().grpc_addr();
    let error = Broker::start(second).await.err().unwrap().to_string();
    assert!(error.contains("listen.grpc"), "{error}");
}

#[tokio::test]
async fn a_drain_tells_streams_and_ends_them_well() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("t", 1, &[]).await;
    let mut producing = broker.produce().await;
    producing.put(&topic, batch(&["a"], None)).await.ack();
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 1, 1).await;
    assert!(matches!(
        fetching.next().await,
        fetch_response::Kind::Progress(_)
    ));
    let shutdown = broker.broker().shutdown();
    let watch = async {
        let mut said = false;
        while let Some(response) = producing
            .receiver
            .message()
            .await
            .expect("the stream ends OK")
        {
            said |= matches!(response.kind, Some(produce_response::Kind::GoAway(_)));
        }
        assert!(said);
        let mut said = false;
        while let Some(response) = fetching
            .receiver
            .message()
            .await
            .expect("the stream ends OK")
        {
            said |= matches!(response.kind, Some(fetch_response::Kind::GoAway(_)));
        }
        assert!(said);
    };
    let (stopped, ()) = tokio::join!(shutdown, watch);
    stopped.unwrap();
    broker.broker().wait().await;
}

#[tokio::test]
async fn probes_health_and_reflection() {
    let broker = TestBroker::start().await;
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(broker.http(path).await.0, 200, "{path}");
    }
    let mut health = HealthClient::new(broker.channel.clone());
    for service in [
        "",
        "timberline.v1.ProducerService",
        "timberline.v1.AdminService",
    ] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(
            status,
            tonic_health::pb::health_check_response::ServingStatus::Serving
        );
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_request::MessageRequest,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(broker.channel.clone());
    let mut stream = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let text = format!("{:?}", stream.message().await.unwrap().unwrap());
    assert!(
        text.contains("timberline.v1.ProducerService") && text.contains("grpc.health.v1.Health"),
        "{text}"
    );
    assert!(!text.contains("internal"), "{text}");
    // Tools print the details of errors by it.
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(
            "google.rpc.ErrorInfo".to_owned(),
        )),
    };
    let mut stream = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let text = format!("{:?}", stream.message().await.unwrap().unwrap());
    assert!(text.contains("FileDescriptorResponse"), "{text}");
}

#[tokio::test]
async fn metrics_count() {
    let broker = TestBroker::start().await;
    let topic = broker.topic("metered", 2, &[]).await;
    let mut producing = broker.produce().await;
    producing.put(&topic, batch(&["a", "b"], None)).await.ack();
    let mut fetching = broker.fetch().await;
    fetching.grant(1 << 20).await;
    fetching.assign(&topic, 0, 0, 1).await;
    fetching.values(2).await;
    let (status, text) = broker.http("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "timberline_records_in_total 2",
        "timberline_records_out_total 2",
        "timberline_partitions{state=\"led\"} 2",
        "timberline_cluster_brokers 1",
        "timberline_active_controller 1",
        "timberline_connections{listener=\"grpc\"} 1",
        "timberline_request_duration_seconds_count{api=\"CreateTopic\",code=\"OK\"} 1",
        "timberline_request_duration_seconds_count{api=\"Produce\",code=\"OK\"} 1",
        "timberline_append_batch_records_count 1",
        "timberline_queue_bytes{queue=\"in_flight\"} 0",
        "timberline_build_info{version=",
        "timberline_disk_free_bytes ",
        "timberline_fsync_duration_seconds_count{kind=\"journal\"}",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_open_fds ",
        "process_start_time_seconds ",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(
        !text.contains("metered"),
        "topics are for /metrics/detailed"
    );
    let (_, text) = broker.http("/metrics/detailed").await;
    assert!(
        text.contains("timberline_partition_high_watermark{topic=\"metered\",partition=\"0\"} 2"),
        "{text}"
    );
}
