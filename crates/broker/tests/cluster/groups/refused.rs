//! What is refused, and with which reason.

use timberline_proto::error::{ApiError, Reason};
use timberline_proto::v1::*;

use super::consumer::*;
use super::{commit, coordinator, describe, fetch, fill, item};
use crate::support::*;

/// A reason, the field it names, and what brings it about.
type Case = (Reason, &'static str, Box<dyn Fn(&mut JoinHello)>);

async fn refused(cluster: &Cluster, group: &str, hello: JoinHello) -> ApiError {
    let at = coordinator(cluster, group).await;
    let first = join_request::Kind::Hello(hello);
    let opened = Link::open(cluster.at(at).channel(), first).await;
    opened.map(|(_, kind)| kind).unwrap_err()
}

#[tokio::test]
async fn bad_joins_are_told_what_to_do() {
    let cluster = Cluster::start(1).await;
    cluster.topic("t", 4, 1).await;
    let joined = Consumer::start(&cluster, wants("g", &["t"]));
    shared(&[&joined], 4).await;
    let cases: Vec<Case> = vec![
        (Reason::UnknownTopic, "subscription.topics", {
            Box::new(|h| h.subscription = wants("g", &["nope"]).subscription)
        }),
        (Reason::InvalidArgument, "subscription.topics", {
            Box::new(|h| h.subscription = wants("g", &["__groups"]).subscription)
        }),
        (Reason::InvalidArgument, "subscription", {
            Box::new(|h| h.subscription = None)
        }),
        (Reason::InvalidPattern, "subscription.topic_pattern", {
            Box::new(|h| {
                let subscription = h.subscription.as_mut().unwrap();
                subscription.topic_pattern = Some("(a{1000}){1000}".to_owned());
            })
        }),
        (Reason::InvalidArgument, "assignor", {
            Box::new(|h| h.assignor = "fair".to_owned())
        }),
        (Reason::InconsistentAssignor, "", {
            Box::new(|h| h.assignor = "range".to_owned())
        }),
        (Reason::InvalidArgument, "session_timeout_ms", {
            Box::new(|h| h.session_timeout_ms = i64::MAX)
        }),
        (Reason::InvalidArgument, "rebalance_timeout_ms", {
            Box::new(|h| h.rebalance_timeout_ms = -1)
        }),
        (Reason::InvalidArgument, "max_poll_interval_ms", {
            Box::new(|h| h.max_poll_interval_ms = 1)
        }),
        (Reason::InvalidArgument, "instance_id", {
            Box::new(|h| h.instance_id = Some("x".repeat(10_000)))
        }),
        (Reason::MemberFenced, "", {
            Box::new(|h| h.member_id = Some("nobody".to_owned()))
        }),
        (Reason::UnsupportedVersion, "", {
            Box::new(|h| h.hello = None)
        }),
    ];
    for (reason, field, change) in cases {
        let mut wrong = wants("g", &["t"]);
        change(&mut wrong);
        let error = refused(&cluster, "g", wrong).await;
        assert_eq!(error.reason, Some(reason), "{error}");
        assert_eq!(error.field.unwrap_or_default(), field);
    }
    let beat = join_request::Kind::Heartbeat(JoinHeartbeat::default());
    let early = Link::open(cluster.at(1).channel(), beat).await;
    let early = early.map(|(_, kind)| kind).unwrap_err();
    assert_eq!(early.reason, Some(Reason::HandshakeRequired));
    let mut nameless = wants("g", &["t"]);
    nameless.group_id = String::new();
    let first = join_request::Kind::Hello(nameless);
    let nameless = Link::open(cluster.at(1).channel(), first).await;
    let nameless = nameless.map(|(_, kind)| kind).unwrap_err();
    assert_eq!(nameless.field.as_deref(), Some("group_id"));
    // Nobody noticed.
    assert_eq!(joined.now().granted, 1);
}

#[tokio::test]
async fn bad_commits_are_refused_one_by_one() {
    let cluster = Cluster::start(3).await;
    let topic = cluster.topic("t", 3, 1).await;
    fill(&cluster, "t", 3, 10).await;
    let to = || cluster.at(1).channel();
    let unknown = fetch(to(), "g").await.unwrap_err();
    assert_eq!(unknown.reason, Some(Reason::UnknownGroup));
    let unknown = describe(to(), "g").await.unwrap_err();
    assert_eq!(unknown.reason, Some(Reason::UnknownGroup));
    let mut nameless = item(&topic, 0, 1);
    nameless.topic = None;
    let mut named = item(&topic, 0, 1);
    named.topic = Some(by_name("nope"));
    let mut wordy = item(&topic, 0, 1);
    wordy.metadata = "x".repeat(5000);
    let items = vec![
        item(&topic, 0, 10),
        item(&topic, 1, 11),
        item(&topic, 3, 1),
        item(&topic, -1, 1),
        item(&topic, 2, -1),
        nameless,
        named,
        wordy,
    ];
    let results = commit(to(), "g", None, items).await.unwrap();
    let reasons: Vec<_> = results
        .into_iter()
        .map(|one| one.map(|error| error.reason.unwrap()))
        .collect();
    let wanted = [
        None,
        Some(Reason::OffsetOutOfRange),
        Some(Reason::UnknownPartition),
        Some(Reason::InvalidArgument),
        Some(Reason::InvalidArgument),
        Some(Reason::InvalidArgument),
        Some(Reason::UnknownTopic),
        Some(Reason::InvalidArgument),
    ];
    assert_eq!(reasons, wanted);
    let none = commit(to(), "g", None, Vec::new()).await.unwrap_err();
    assert_eq!(none.field.as_deref(), Some("items"));

    let member = Consumer::start(&cluster, wants("g", &["t"]));
    shared(&[&member], 3).await;
    let held = member.now();
    assert_eq!(held.parts[&(topic.clone(), 0)], Some(10));
    let id = held.member.unwrap();
    let one = || vec![item(&topic, 0, 10)];
    let reason = |result: Result<Vec<Option<ApiError>>, ApiError>| match result {
        Ok(results) => results[0].as_ref().and_then(|error| error.reason),
        Err(error) => error.reason,
    };
    let mine = commit(to(), "g", Some((&id, held.epoch)), one()).await;
    assert_eq!(reason(mine), None);
    let anybody = commit(to(), "g", None, one()).await;
    assert_eq!(reason(anybody), Some(Reason::GroupNotEmpty));
    let early = commit(to(), "g", Some((&id, held.epoch - 1)), one()).await;
    assert_eq!(reason(early), Some(Reason::NotAssigned));
    let ahead = commit(to(), "g", Some((&id, held.epoch + 1)), one()).await;
    assert_eq!(reason(ahead), Some(Reason::MemberFenced));
    let behind = vec![item(&topic, 0, 9)];
    let behind = commit(to(), "g", Some((&id, held.epoch)), behind).await;
    assert_eq!(reason(behind), Some(Reason::CommitBehind));
    let request = DeleteGroupRequest {
        group_id: "g".to_owned(),
    };
    let full = groups(to()).delete_group(request).await.unwrap_err();
    assert_eq!(api_error(&full).reason, Some(Reason::GroupNotEmpty));
    member.leave().await;
    let fenced = commit(to(), "g", Some((&id, held.epoch)), one()).await;
    assert_eq!(reason(fenced), Some(Reason::MemberFenced));
}

#[tokio::test]
async fn a_broker_that_does_not_coordinate_says_who_does() {
    let cluster = Cluster::start(3).await;
    cluster.topic("t", 1, 1).await;
    let at = coordinator(&cluster, "g").await;
    for member in cluster.up().filter(|one| one.id != at) {
        let first = join_request::Kind::Hello(wants("g", &["t"]));
        let told = Link::open(member.channel(), first).await;
        let told = told.map(|(_, kind)| kind).unwrap_err();
        assert_eq!(told.reason, Some(Reason::NotCoordinator));
        assert_eq!(told.metadata["coordinator_id"], at.to_string());
        let address = &told.metadata["coordinator_address"];
        assert_eq!(*address, cluster.at(at).address());
    }
}

#[tokio::test]
async fn a_static_member_replaces_and_one_that_does_not_poll_is_put_out() {
    let cluster = Cluster::start(1).await;
    cluster.topic("t", 4, 1).await;
    let fixed = || JoinHello {
        instance_id: Some("i".to_owned()),
        ..wants("g", &["t"])
    };
    let first = Consumer::start(&cluster, fixed());
    shared(&[&first], 4).await;
    let second = Consumer::start(&cluster, fixed());
    shared(&[&second], 4).await;
    until("the first is fenced", async || {
        (first.now().failed == Some(Reason::InstanceFenced)).then_some(())
    })
    .await;
    second.leave().await;
    let first = join_request::Kind::Hello(wants("g", &["t"]));
    let (mut link, _) = Link::open(cluster.at(1).channel(), first).await.unwrap();
    let stuck = JoinHeartbeat {
        applied_epoch: None,
        since_poll_ms: 300_001,
    };
    assert!(link.say(join_request::Kind::Heartbeat(stuck)).await);
    let error = loop {
        let message = link.down.message().await.unwrap().unwrap();
        if let Some(join_response::Kind::Failure(failure)) = message.kind {
            break failure.error.unwrap();
        }
    };
    assert_eq!(error.reason, "POLL_TIMEOUT");
    assert!(link.down.message().await.unwrap().is_none());
}

#[tokio::test]
async fn the_groups_topic_is_the_brokers_own() {
    let cluster = Cluster::start(1).await;
    coordinator(&cluster, "g").await;
    let to = || cluster.at(1).channel();
    let written = put(to(), once("__groups", 0, "x", None)).await.unwrap_err();
    assert_eq!(written.field.as_deref(), Some("topic"));
    let mut admin = cluster.at(1).admin();
    let topic = || Some(by_name("__groups"));
    let deleted = admin.delete_topic(DeleteTopicRequest {
        topic: topic(),
        ..Default::default()
    });
    assert_eq!(reason(&deleted.await.unwrap_err()), "INVALID_ARGUMENT");
    let grown = admin.add_partitions(AddPartitionsRequest {
        topic: topic(),
        total: 17,
        ..Default::default()
    });
    assert_eq!(reason(&grown.await.unwrap_err()), "INVALID_ARGUMENT");
    let trimmed = admin.trim_topic(TrimTopicRequest {
        topic: topic(),
        partitions: vec![TrimPartition::default()],
        ..Default::default()
    });
    assert_eq!(reason(&trimmed.await.unwrap_err()), "INVALID_ARGUMENT");
    let altered = admin.alter_config(AlterConfigRequest {
        topic: topic(),
        changes: vec![ConfigChange {
            key: "retention.ms".to_owned(),
            value: Some("1".to_owned()),
        }],
        ..Default::default()
    });
    assert_eq!(reason(&altered.await.unwrap_err()), "INVALID_ARGUMENT");
    let made = admin
        .create_topic(create("__mine", 1, 1))
        .await
        .unwrap_err();
    assert_eq!(reason(&made), "INVALID_TOPIC_NAME");
}
