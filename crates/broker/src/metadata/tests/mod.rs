mod cluster;
mod control;
mod leaders;
mod moves;
mod operations;
mod placement;
mod replicas;

use std::collections::{BTreeSet, HashMap};

use timberline_proto::error::Reason;
use timberline_proto::internal::{self as pb, metadata_command::Command};
use timberline_proto::v1::ConfigChange;
use uuid::Uuid;

use super::epochs::EPOCHS_REMEMBERED;
use super::plan::{self, Bounds, NewTopic};
use super::table::{Effect, INDEX_UNKNOWN as NEXT, REQUESTS_REMEMBERED, Rejected, Table};
use crate::config::BrokerConfig;
use crate::topic::config::Defaults;

fn bounds() -> Bounds {
    Bounds {
        topic_partitions_max: 1000,
        partitions_max: 1500,
        defaults: Defaults::new(&BrokerConfig::default()),
    }
}

fn command(request: &str, command: Command) -> pb::MetadataCommand {
    pb::MetadataCommand {
        request_id: request.to_owned(),
        command: Some(command),
    }
}

fn founded() -> Table {
    let mut table = Table::default();
    for (request, c) in [
        (
            "",
            Command::FoundCluster(pb::FoundCluster {
                cluster_id: "c".into(),
                founded_at_ms: 1,
                ..Default::default()
            }),
        ),
        (
            "",
            Command::RegisterBroker(pb::RegisterBroker {
                broker_id: 1,
                rack: "a".into(),
                directory_id: super::table::id_bytes(Uuid::from_u128(9)),
                ..Default::default()
            }),
        ),
    ] {
        table.apply(NEXT, &command(request, c)).unwrap();
    }
    table
}

fn create(table: &mut Table, name: &str, partitions: i32) -> Result<Uuid, Option<Reason>> {
    let id = Uuid::new_v4();
    let config = HashMap::new();
    let new = NewTopic {
        name,
        partitions,
        replication_factor: 0,
        config: &config,
        live: &BTreeSet::new(),
        id,
        now_ms: 5,
    };
    let planned = plan::create_topic(table, &new, &bounds()).map_err(|error| error.reason)?;
    table.apply(NEXT, &command("", planned)).unwrap();
    Ok(id)
}

#[test]
fn a_topic_lives_grows_and_dies() {
    let mut table = founded();
    let id = create(&mut table, "orders", 3).unwrap();
    let topic = table.topic_named("orders").unwrap().clone();
    assert_eq!(
        (topic.id, topic.partitions.len(), topic.replication_factor),
        (id, 3, 1)
    );
    let replicas: Vec<u64> = topic.partitions.iter().map(|p| p.replicas[0].id).collect();
    assert_eq!(replicas, [1, 2, 3]);

    let grown = plan::add_partitions(&table, &topic, 5, &BTreeSet::new(), &bounds()).unwrap();
    table.apply(NEXT, &command("", grown)).unwrap();
    assert_eq!(table.topic(id).unwrap().partitions[4].replicas[0].id, 5);
    assert_eq!(table.partition_count(), 5);

    let gone = plan::delete_topic(&topic).unwrap();
    let effect = table.apply(NEXT, &command("", gone.clone())).unwrap();
    assert!(matches!(effect, Effect::Deleted(t) if t.partitions.len() == 5));
    assert_eq!(
        table.tombstones().keys().copied().collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(
        table.apply(NEXT, &command("", gone)),
        Err(Rejected::UnknownTopic)
    );
    // A recreated topic is another topic, with replicas of its own.
    let again = create(&mut table, "orders", 1).unwrap();
    assert_ne!(again, id);
    assert_eq!(table.topic(again).unwrap().partitions[0].replicas[0].id, 6);
}

#[test]
fn names_collide_as_in_kafka() {
    let mut table = founded();
    create(&mut table, "a.b", 1).unwrap();
    for name in ["a.b", "a_b"] {
        assert_eq!(create(&mut table, name, 1), Err(Some(Reason::TopicExists)));
    }
    create(&mut table, "a-b", 1).unwrap();
    assert_eq!(
        create(&mut table, "../x", 1),
        Err(Some(Reason::InvalidTopicName))
    );
}

#[test]
fn counts_are_bounded() {
    let mut table = founded();
    for partitions in [0, -1, i32::MIN, 1001, i32::MAX] {
        assert_eq!(
            create(&mut table, "t", partitions),
            Err(Some(Reason::InvalidArgument))
        );
    }
    create(&mut table, "first", 1000).unwrap();
    assert_eq!(
        create(&mut table, "second", 501),
        Err(Some(Reason::InvalidArgument))
    );
    create(&mut table, "third", 500).unwrap();
    let first = table.topic_named("first").unwrap();
    for total in [-1, 0, 999, 1000, 1001] {
        let error =
            plan::add_partitions(&table, first, total, &BTreeSet::new(), &bounds()).unwrap_err();
        assert_eq!(error.reason, Some(Reason::InvalidArgument));
    }
}

#[test]
fn more_replicas_than_brokers_are_refused() {
    let table = founded();
    let config = HashMap::new();
    for factor in [2, 3, -1, i32::MAX] {
        let new = NewTopic {
            name: "t",
            partitions: 1,
            replication_factor: factor,
            config: &config,
            live: &BTreeSet::new(),
            id: Uuid::new_v4(),
            now_ms: 0,
        };
        let error = plan::create_topic(&table, &new, &bounds()).unwrap_err();
        assert_eq!(
            error.reason,
            Some(Reason::InvalidReplicationFactor),
            "{factor}"
        );
    }
}

#[test]
fn a_request_is_applied_once_and_remembered_within_a_bound() {
    let mut table = founded();
    let reserve = |next| Command::ReserveProducerIds(pb::ReserveProducerIds { next });
    table.apply(NEXT, &command("one", reserve(10))).unwrap();
    assert_eq!(
        table.apply(NEXT, &command("one", reserve(20))),
        Err(Rejected::AppliedBefore)
    );
    assert_eq!(table.next_producer_id(), 10);
    for n in 0..REQUESTS_REMEMBERED {
        table
            .apply(NEXT, &command(&format!("r{n}"), reserve(30)))
            .unwrap();
    }
    assert_eq!(table.applied_request("one"), None);
    assert!(table.applied_request("r0").is_some());
    assert!(plan::check_request_id(&"x".repeat(65)).is_err());
}

#[test]
fn reservations_never_go_back() {
    let mut table = founded();
    let reserve = |next| Command::ReserveProducerIds(pb::ReserveProducerIds { next });
    table.apply(NEXT, &command("", reserve(2000))).unwrap();
    table.apply(NEXT, &command("", reserve(1000))).unwrap();
    assert_eq!(table.next_producer_id(), 2000);
}

#[test]
fn an_image_restores_the_table() {
    let mut table = founded();
    let id = create(&mut table, "kept", 7).unwrap();
    let gone = create(&mut table, "gone", 2).unwrap();
    let alter = plan::alter_config(
        table.topic(id).unwrap(),
        &[ConfigChange {
            key: "retention.ms".into(),
            value: Some("5".into()),
        }],
        &bounds(),
    )
    .unwrap();
    table.apply(NEXT, &command("alter", alter)).unwrap();
    let delete = plan::delete_topic(table.topic(gone).unwrap()).unwrap();
    table.apply(NEXT, &command("delete", delete)).unwrap();
    for grant in [(7, 1), (3, 4), (7, 2)] {
        table.apply(NEXT, &command("", grant_epoch(grant))).unwrap();
    }

    let mut restored = Table::default();
    let image = Command::Image(table.image(|_| true));
    assert_eq!(
        restored.apply(NEXT, &command("", image)),
        Ok(Effect::Replaced)
    );
    assert_eq!(restored, table);
    assert_eq!(restored.applied_request("delete"), Some(gone));

    let image = Command::Image(table.image(|replica| replica == 8));
    restored.apply(NEXT, &command("", image)).unwrap();
    assert_eq!(
        restored.tombstones().keys().copied().collect::<Vec<_>>(),
        [8]
    );
    // Ids of replicas that are gone are not given again.
    assert_eq!(restored.next_replica_id(), 10);
}

fn grant_epoch((producer_id, epoch): (i64, i32)) -> Command {
    Command::GrantEpoch(pb::GrantEpoch { producer_id, epoch })
}

#[test]
fn an_epoch_is_granted_once() {
    let mut table = founded();
    let reserve = Command::ReserveProducerIds(pb::ReserveProducerIds { next: 1_000_000 });
    table.apply(NEXT, &command("", reserve)).unwrap();
    let raise = |table: &mut Table, id, epoch| {
        let planned = plan::raise_epoch(table, id, epoch).map_err(|error| error.reason)?;
        let some = planned.is_some();
        if let Some(planned) = planned {
            table.apply(NEXT, &command("", planned)).unwrap();
        }
        Ok(some)
    };
    assert_eq!(raise(&mut table, 5, 0), Ok(true));
    assert_eq!(raise(&mut table, 5, 0), Err(Some(Reason::ProducerFenced)));
    assert_eq!(
        table.apply(NEXT, &command("", grant_epoch((5, 1)))),
        Err(Rejected::EpochGranted)
    );
    assert_eq!(raise(&mut table, 5, 1), Ok(true));
    // The last epoch ends the id.
    assert_eq!(raise(&mut table, 6, 32_765), Ok(true));
    assert_eq!(raise(&mut table, 6, 32_766), Ok(false));
    assert_eq!(raise(&mut table, 6, 32_767), Ok(false));
    assert_eq!(
        raise(&mut table, 6, 32_768),
        Err(Some(Reason::InvalidArgument))
    );
    assert_eq!(
        raise(&mut table, 1_000_000, 0),
        Err(Some(Reason::UnknownProducer))
    );
    // Of what is forgotten nothing is granted again; what is younger is not touched.
    for id in 0..EPOCHS_REMEMBERED as i64 {
        raise(&mut table, 100 + id, 0).unwrap();
    }
    assert_eq!(table.epochs().iter().count(), EPOCHS_REMEMBERED);
    for forgotten in [4, 5, 6] {
        assert_eq!(raise(&mut table, forgotten, 0), Ok(false));
    }
    assert_eq!(raise(&mut table, 7, 0), Ok(true));
    assert_eq!(raise(&mut table, 200, 0), Err(Some(Reason::ProducerFenced)));
}

#[test]
fn references_are_resolved_once_and_within_a_bound() {
    use timberline_proto::v1::{TopicRef, topic_ref::Ref};
    let mut table = founded();
    let a = create(&mut table, "a", 3).unwrap();
    create(&mut table, "b", 2).unwrap();
    let by = |name: &str| TopicRef {
        r#ref: Some(Ref::Name(name.to_owned())),
    };
    let by_id = TopicRef {
        r#ref: Some(Ref::Id(super::table::id_bytes(a))),
    };
    let references = [by("b"), by("a"), by_id, by("a"), by("c"), by("b")];
    let (topics, unknown) = plan::resolve_all(&table, &references, 5).unwrap();
    let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!((names, unknown), (vec!["b", "a"], vec![by("c")]));
    assert_eq!(plan::resolve_all(&table, &[], 5).unwrap().0.len(), 2);
    for references in [&references[..], &[]] {
        let error = plan::resolve_all(&table, references, 4).unwrap_err();
        assert_eq!(error.reason, Some(Reason::InvalidArgument));
    }
}

#[test]
fn configuration_is_changed_and_taken_back() {
    let mut table = founded();
    let id = create(&mut table, "t", 1).unwrap();
    let change = |key: &str, value: Option<&str>| ConfigChange {
        key: key.into(),
        value: value.map(Into::into),
    };
    let plan = |table: &Table, changes: &[ConfigChange]| {
        plan::alter_config(table.topic(id).unwrap(), changes, &bounds())
    };
    let set = plan(
        &table,
        &[
            change("retention.ms", Some("1000")),
            change("segment.ms", Some("60000")),
        ],
    )
    .unwrap();
    table.apply(NEXT, &command("", set)).unwrap();
    assert_eq!(table.topic(id).unwrap().config.len(), 2);
    let unset = plan(&table, &[change("retention.ms", None)]).unwrap();
    table.apply(NEXT, &command("", unset)).unwrap();
    assert_eq!(table.topic(id).unwrap().config.get("retention.ms"), None);
    for bad in [
        vec![],
        vec![change("x", None)],
        vec![change("retention.ms", Some("x"))],
        vec![change("segment.ms", None), change("segment.ms", Some("1"))],
    ] {
        assert!(plan(&table, &bad).is_err());
    }
}

#[test]
fn commands_that_do_not_fit_change_nothing() {
    let mut table = founded();
    create(&mut table, "t", 1).unwrap();
    let before = table.clone();
    let id = super::table::id_bytes(Uuid::new_v4());
    let gap = pb::Partition {
        partition: 3,
        ..Default::default()
    };
    let bad = [
        Command::DeleteTopic(pb::DeleteTopic {
            topic_id: bytes::Bytes::from_static(b"short"),
        }),
        Command::DeleteTopic(pb::DeleteTopic {
            topic_id: id.clone(),
        }),
        Command::AddPartitions(pb::AddPartitions {
            topic_id: id.clone(),
            partitions: vec![],
        }),
        Command::CreateTopic(pb::CreateTopic {
            name: "u".into(),
            topic_id: id,
            partitions: vec![gap],
            ..Default::default()
        }),
        Command::CreateTopic(pb::CreateTopic {
            name: "t".into(),
            topic_id: super::table::id_bytes(Uuid::new_v4()),
            ..Default::default()
        }),
    ];
    for c in bad {
        assert!(table.apply(NEXT, &command("r", c)).is_err());
        assert_eq!(table, before);
    }
    assert_eq!(
        table.apply(NEXT, &pb::MetadataCommand::default()),
        Err(Rejected::UnknownKind)
    );
}
