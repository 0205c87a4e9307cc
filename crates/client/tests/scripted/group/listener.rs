//! Listeners: when they are told, what waits for them, and what they may do.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use timberline_client::{
    AssignedPartition, GroupConsumer, ListenerFuture, OffsetCommit, Position, Reason,
    RebalanceListener, Revocation, TopicPartition,
};
use tokio::sync::Notify;

use super::service::Heard::{Applied, Commit};
use super::{expect, expect_nothing, fill, options, rarely};
use crate::broker::Broker;
use crate::{client, soon};

/// Writes down what it is told; lets go when the test says so.
#[derive(Clone, Default)]
struct Notes {
    told: Arc<Mutex<Vec<String>>>,
    go: Arc<Notify>,
    /// Where to begin instead.
    start: Option<Position>,
}

impl Notes {
    fn write(&self, what: &str, partitions: impl Iterator<Item = TopicPartition>) {
        let names: Vec<_> = partitions.map(|one| one.to_string()).collect();
        self.told.lock().push(format!("{what} {}", names.join(" ")));
    }
}

impl Notes {
    fn has(&self, what: &str) -> bool {
        self.told.lock().iter().any(|told| told == what)
    }
}

impl RebalanceListener for Notes {
    fn assigned<'a>(&'a self, partitions: &'a mut [AssignedPartition]) -> ListenerFuture<'a> {
        Box::pin(async move {
            self.write(
                "assigned",
                partitions.iter().map(|one| one.partition.clone()),
            );
            for one in partitions {
                one.start = self.start;
            }
        })
    }

    fn revoked<'a>(&'a self, revocation: &'a Revocation) -> ListenerFuture<'a> {
        Box::pin(async move {
            self.write("revoked", revocation.partitions.iter().cloned());
            self.go.notified().await;
            // What workers have done meanwhile.
            let commit = OffsetCommit::new("t", 0, 7);
            revocation.committer.commit([commit]).await.unwrap();
            self.write("done", std::iter::empty());
        })
    }

    fn lost<'a>(&'a self, partitions: &'a [TopicPartition]) -> ListenerFuture<'a> {
        self.write("lost", partitions.iter().cloned());
        Box::pin(std::future::ready(()))
    }
}

async fn start(broker: &Broker, options: super::GroupOptions, notes: &Notes) -> GroupConsumer {
    let client = client(broker).await;
    let consumer = client.group_consumer_with(options, notes.clone());
    let consumer = consumer.await.unwrap();
    broker.state.groups.joined(1).await;
    broker.state.groups.assign(1, &[0, 1], &[0, 1]);
    broker.state.groups.applied(1).await;
    consumer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_waits_for_the_listener_and_the_rest_is_read_on() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..9);
    let groups = &broker.state.groups;
    let notes = Notes::default();
    let mut consumer = start(&broker, options().auto_commit(None), &notes).await;
    expect(&mut consumer, 0, 0..9).await;
    groups.assign(2, &[1], &[]);
    soon(async {
        while !notes.has("revoked t/0") {
            expect_nothing(&mut consumer).await;
        }
    })
    .await;
    fill(&broker, 1, 0..6);
    expect(&mut consumer, 1, 0..3).await;
    fill(&broker, 0, 9..12);
    expect(&mut consumer, 1, 3..6).await;
    assert_eq!(*notes.told.lock(), ["assigned t/0 t/1", "revoked t/0"]);
    assert!(!groups.heard().contains(&Applied(2)));
    notes.go.notify_one();
    groups.applied(2).await;
    let heard = groups.heard();
    assert_eq!(heard[heard.len() - 2..], [Commit(0, 7, false), Applied(2)]);
    assert_eq!(notes.told.lock().last().map(String::as_str), Some("done "));
    expect_nothing(&mut consumer).await;
    // To close asks it as well.
    notes.go.notify_one();
    groups.script(|script| {
        script.committed.remove(&0);
    });
    tokio::time::timeout(Duration::from_secs(20), consumer.close())
        .await
        .unwrap()
        .unwrap();
    assert!(notes.told.lock().contains(&"revoked t/1".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_says_where_to_begin_and_hears_what_is_lost() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..9);
    let notes = Notes {
        start: Some(Position::Offset(5)),
        ..Notes::default()
    };
    fill(&broker, 1, 0..3);
    // Behind the end of the other one, which goes where the policy says.
    let mut consumer = start(&broker, rarely(), &notes).await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        let record = soon(consumer.recv()).await.unwrap();
        seen.push((record.partition, record.offset));
    }
    seen.sort_unstable();
    assert_eq!(seen[..4], [(0, 5), (0, 6), (0, 7), (0, 8)]);
    assert_eq!(seen[4..], [(1, 0), (1, 1), (1, 2)]);
    broker.state.groups.fail(Reason::MemberFenced);
    broker.state.groups.joined(2).await;
    soon(async {
        while !consumer.assignment().is_empty() || !notes.has("lost t/0 t/1") {
            let _ = tokio::time::timeout(Duration::from_millis(5), consumer.recv()).await;
        }
    })
    .await;
}
