//! What the consumer of a group promises, whatever its coordinator does.

mod listener;
pub(crate) mod service;

use std::time::Duration;

use timberline_client::{
    ApiError, Error, GroupConsumer, GroupOptions, OffsetCommit, OffsetReset, Position, Reason,
};

use crate::broker::Broker;
use crate::{client, soon};
use service::Heard::{self, Applied, Commit, Hello, Leave};

/// Batches of three records: `0`, `1`, `2` | `3`, `4`, `5` | …
fn fill(broker: &Broker, partition: usize, records: std::ops::Range<usize>) {
    for first in records.step_by(3) {
        let values: Vec<_> = (first..first + 3)
            .map(|number| number.to_string())
            .collect();
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        broker.fill(partition, &[&values]);
    }
}

fn options() -> GroupOptions {
    GroupOptions::new("g").topics(["t"])
}

/// Commits only when it is told to, or when it lets go.
fn rarely() -> GroupOptions {
    options().auto_commit(Duration::from_secs(3_600))
}

async fn member(broker: &Broker, options: GroupOptions) -> GroupConsumer {
    let client = client(broker).await;
    let consumer = client.group_consumer(options).await.unwrap();
    broker.state.groups.joined(1).await;
    consumer
}

/// A member that was given these partitions.
async fn member_of(broker: &Broker, options: GroupOptions, partitions: &[i32]) -> GroupConsumer {
    let consumer = member(broker, options).await;
    broker.state.groups.assign(1, partitions, partitions);
    broker.state.groups.applied(1).await;
    consumer
}

async fn expect(consumer: &mut GroupConsumer, partition: i32, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        let record = soon(consumer.recv()).await.unwrap();
        assert_eq!((record.partition, record.offset), (partition, offset));
    }
}

/// Nothing comes while this long.
async fn expect_nothing(consumer: &mut GroupConsumer) {
    let waited = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
    assert!(waited.is_err(), "{waited:?}");
}

fn commits(broker: &Broker) -> Vec<Heard> {
    let heard = broker.state.groups.heard();
    let is_commit = |one: &Heard| matches!(one, Commit(..));
    heard.into_iter().filter(is_commit).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_is_done_with_and_committed_before_it_is_acknowledged() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..30);
    let groups = &broker.state.groups;
    let mut consumer = member_of(&broker, rarely(), &[0]).await;
    expect(&mut consumer, 0, 0..5).await;
    // The application has record 4 in hand.
    groups.assign(2, &[1], &[1]);
    fill(&broker, 1, 0..3);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!groups.heard().contains(&Applied(2)));
    // It comes back for more: of what it holds then.
    expect(&mut consumer, 1, 0..3).await;
    let heard = groups.heard();
    let tail = heard
        .iter()
        .filter(|one| !matches!(one, Applied(1) | Hello(..)));
    let tail: Vec<_> = tail.cloned().collect();
    assert_eq!(tail, [Commit(0, 5, false), Applied(2)]);
    assert_eq!(consumer.position("t", 0), None);
    assert_eq!(consumer.assignment().len(), 1);
    assert_eq!(consumer.membership().borrow().epoch, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_and_a_go_away_are_not_noticed() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..300);
    let groups = &broker.state.groups;
    let mut consumer = member_of(&broker, rarely(), &[0, 1]).await;
    for round in 0..4_i64 {
        match round % 2 {
            0 => groups.break_stream(),
            _ => {
                let reason = "draining".to_owned();
                let kind = timberline_proto::v1::JoinGoAway { reason };
                groups.say(timberline_proto::v1::join_response::Kind::GoAway(kind));
            }
        }
        expect(&mut consumer, 0, round * 30..(round + 1) * 30).await;
        groups.joined(round as usize + 2).await;
        // What it may hold is the same.
        groups.assign(1, &[0, 1], &[]);
    }
    let back = groups.heard();
    let back = back.iter().filter(|one| matches!(one, Hello(Some(_), _)));
    let expected = Hello(Some("m1".to_owned()), vec![0, 1]);
    assert!(back.clone().count() == 4 && back.into_iter().all(|one| *one == expected));
    expect(&mut consumer, 0, 120..150).await;
    assert_eq!(commits(&broker), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_fenced_or_cut_off_begins_again_where_the_group_stands() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..60);
    let groups = &broker.state.groups;
    groups.script(|script| script.session_ms = 2_000);
    let mut consumer = member_of(&broker, rarely(), &[0]).await;
    expect(&mut consumer, 0, 0..9).await;
    soon(consumer.commit()).await.unwrap();
    expect(&mut consumer, 0, 9..12).await;
    groups.fail(Reason::MemberFenced);
    groups.joined(2).await;
    assert_eq!(groups.heard().last(), Some(&Hello(None, vec![])));
    groups.assign(7, &[0], &[0]);
    groups.applied(7).await;
    expect(&mut consumer, 0, 9..15).await;
    // Cut off: nobody answers its heartbeats, so others may have what it had.
    groups.script(|script| script.silent = true);
    groups
        .until("it comes back holding nothing", |script| {
            script.heard.contains(&Hello(Some("m2".to_owned()), vec![]))
        })
        .await;
    expect_nothing(&mut consumer).await;
    let hellos = groups.0.lock().hellos.len();
    groups.script(|script| script.silent = false);
    groups.joined(hellos + 1).await;
    groups.assign(8, &[0], &[0]);
    groups.applied(8).await;
    expect(&mut consumer, 0, 9..12).await;
    assert_eq!(commits(&broker), [Commit(0, 9, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_poll_is_told_and_joins_again() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..6);
    let groups = &broker.state.groups;
    groups.script(|script| script.session_ms = 2_000);
    let mut consumer = member_of(&broker, rarely(), &[0]).await;
    expect(&mut consumer, 0, 0..2).await;
    groups
        .until("its age is told", |script| script.since_poll_ms > 100)
        .await;
    groups.fail(Reason::PollTimeout);
    let told = soon(async {
        loop {
            match consumer.recv().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        }
    });
    assert_eq!(told.await.reason(), Some(Reason::PollTimeout));
    assert_eq!(groups.heard().last(), Some(&Applied(1)));
    // To ask again is to be there again.
    expect_nothing(&mut consumer).await;
    groups.joined(2).await;
    assert_eq!(groups.heard().last(), Some(&Hello(None, vec![])));
    groups.assign(2, &[0], &[0]);
    expect(&mut consumer, 0, 0..6).await;
    groups
        .until("it polls", |script| script.since_poll_ms == 0)
        .await;
    // That somebody took its place is final.
    groups.fail(Reason::InstanceFenced);
    for _ in 0..2 {
        let error = soon(consumer.recv()).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::InstanceFenced));
    }
    soon(consumer.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_committed_offset_the_policy_decides_and_what_is_added_is_read_from_its_start() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..9);
    let groups = &broker.state.groups;
    let latest = rarely().offset_reset(OffsetReset::Latest);
    let mut consumer = member_of(&broker, latest, &[0]).await;
    expect_nothing(&mut consumer).await;
    // Whoever gets it next must not choose again.
    groups
        .until("the choice is committed", |script| {
            script.committed.contains_key(&0)
        })
        .await;
    assert_eq!(commits(&broker), [Commit(0, 9, false)]);
    // A partition is added.
    broker.add_partition();
    fill(&broker, 1, 0..3);
    groups.assign(2, &[0, 1], &[1]);
    groups.applied(2).await;
    expect(&mut consumer, 1, 0..3).await;
    fill(&broker, 0, 9..12);
    expect(&mut consumer, 0, 9..12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_leaves_it_to_the_application() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..9);
    fill(&broker, 1, 0..3);
    broker.state.groups.script(|script| {
        script.committed.insert(1, 0);
    });
    let strict = rarely().offset_reset(OffsetReset::Error);
    let mut consumer = member_of(&broker, strict, &[0, 1]).await;
    let mut read = 0;
    let error = loop {
        match soon(consumer.recv()).await {
            Ok(record) => {
                assert_eq!(record.partition, 1);
                read += 1;
            }
            Err(error) => break error,
        }
    };
    let (group, topic, partition) = ("g".to_owned(), "t".to_owned(), 0);
    let expected = Error::NoCommittedOffset {
        group,
        topic,
        partition,
    };
    assert_eq!(error, expected);
    assert_eq!(consumer.position("t", 0), None);
    expect(&mut consumer, 1, read..3).await;
    // Nothing is known of the other one, so nothing is committed of it.
    soon(consumer.commit()).await.unwrap();
    assert_eq!(commits(&broker), [Commit(1, 3, false)]);
    consumer.seek("t", 0, Position::Offset(6)).await.unwrap();
    expect(&mut consumer, 0, 6..9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_taken_refused_repeated_and_go_back_only_on_purpose() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..30);
    let groups = &broker.state.groups;
    let manual = options().auto_commit(None);
    let mut consumer = member_of(&broker, manual, &[0]).await;
    let first = soon(consumer.recv()).await.unwrap();
    expect(&mut consumer, 0, 1..6).await;
    // By record, and by position.
    soon(consumer.commit_offsets([OffsetCommit::after(&first)]))
        .await
        .unwrap();
    groups.script(|script| {
        for reason in [
            Reason::NotCoordinator,
            Reason::NoCoordinator,
            Reason::Overloaded,
        ] {
            script
                .refuse_commits
                .push_back(ApiError::new(reason, "again"));
        }
    });
    soon(consumer.commit()).await.unwrap();
    assert_eq!(commits(&broker), [Commit(0, 1, false), Commit(0, 6, false)]);
    let older = OffsetCommit::new("t", 0, 2);
    let error = soon(consumer.commit_offsets([older.clone()]))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CommitBehind));
    soon(consumer.commit_offsets([older.rewind()]))
        .await
        .unwrap();
    // Who seeks goes back on purpose.
    consumer.seek("t", 0, Position::Earliest).await.unwrap();
    expect(&mut consumer, 0, 0..1).await;
    soon(consumer.commit()).await.unwrap();
    assert_eq!(
        commits(&broker)[2..],
        [Commit(0, 2, true), Commit(0, 1, true)]
    );
    // From elsewhere, without waiting, and of what it has not.
    let committer = consumer.committer();
    let elsewhere = tokio::spawn(async move {
        drop(committer.commit_async([OffsetCommit::new("t", 0, 3)]));
        let last = committer.commit([OffsetCommit::new("t", 0, 4).metadata("x")]);
        last.await.unwrap();
        committer.commit([OffsetCommit::new("t", 1, 4)]).await
    });
    let error = soon(elsewhere).await.unwrap().unwrap_err();
    assert!(
        matches!(error, Error::NotAssigned { partition: 1, .. }),
        "{error}"
    );
    assert_eq!(groups.0.lock().committed[&0], 4);
    // Nothing is committed that nobody asked for.
    expect(&mut consumer, 0, 1..9).await;
    soon(consumer.close()).await.unwrap();
    assert_eq!(groups.0.lock().committed[&0], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_with_is_committed_by_itself() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..30);
    let groups = &broker.state.groups;
    let often = options().auto_commit(Duration::from_millis(10));
    let mut consumer = member_of(&broker, often, &[0]).await;
    expect(&mut consumer, 0, 0..4).await;
    // The last one is in hand.
    groups
        .until("a commit", |script| script.committed.get(&0) == Some(&3))
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(groups.0.lock().committed[&0], 3);
    let batch = soon(consumer.recv_batch()).await.unwrap();
    assert_eq!((batch.first_offset(), batch.next_offset()), (4, 6));
    groups
        .until("a commit", |script| script.committed.get(&0) == Some(&4))
        .await;
    // To close is to be done with all of it.
    soon(consumer.close()).await.unwrap();
    let heard = groups.heard();
    assert_eq!(
        heard[heard.len() - 2..],
        [Commit(0, 6, false), Leave(false)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_hands_out_nothing_and_others_go_on() {
    let broker = Broker::start(2).await;
    fill(&broker, 0, 0..9);
    let mut consumer = member_of(&broker, rarely(), &[0, 1]).await;
    expect(&mut consumer, 0, 0..4).await;
    consumer.pause("t", 0).unwrap();
    assert_eq!(consumer.is_paused("t", 0), Some(true));
    expect_nothing(&mut consumer).await;
    fill(&broker, 1, 0..3);
    expect(&mut consumer, 1, 0..3).await;
    assert_eq!(consumer.lag("t", 1), Some(0));
    consumer.resume("t", 0).unwrap();
    expect(&mut consumer, 0, 4..9).await;
    let error = consumer.pause("t", 7).unwrap_err();
    assert!(matches!(error, Error::NotAssigned { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_says_that_it_comes_back() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..3);
    let mut consumer = member_of(&broker, rarely().instance_id("i".to_owned()), &[0]).await;
    expect(&mut consumer, 0, 0..3).await;
    let hello = broker.state.groups.0.lock().hellos[0].clone();
    assert_eq!(hello.instance_id.as_deref(), Some("i"));
    soon(consumer.close()).await.unwrap();
    let heard = broker.state.groups.heard();
    assert_eq!(heard[heard.len() - 2..], [Commit(0, 3, false), Leave(true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_consumer_leaves_without_what_it_had_in_hand() {
    let broker = Broker::start(1).await;
    fill(&broker, 0, 0..3);
    let mut consumer = member_of(&broker, rarely(), &[0]).await;
    expect(&mut consumer, 0, 0..3).await;
    drop(consumer);
    let groups = &broker.state.groups;
    groups
        .until("it leaves", |script| script.heard.contains(&Leave(false)))
        .await;
    assert_eq!(commits(&broker), [Commit(0, 2, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_that_make_no_sense_are_refused() {
    let broker = Broker::start(1).await;
    let client = client(&broker).await;
    for (options, named) in [
        (GroupOptions::new("").topics(["t"]), "group"),
        (GroupOptions::new("g"), "topics, topic_pattern"),
        (
            options().session_timeout(Duration::from_millis(1)),
            "session_timeout",
        ),
        (options().auto_commit(Duration::ZERO), "auto_commit"),
    ] {
        match client.group_consumer(options).await.err() {
            Some(Error::InvalidOption { option, .. }) => assert_eq!(option, named),
            other => panic!("{other:?}"),
        }
    }
}
