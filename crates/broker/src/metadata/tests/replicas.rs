//! Brokers that come, change and go, and replicas that move.

use timberline_proto::internal::{self as pb, metadata_command::Command};
use uuid::Uuid;

use super::cluster::Cluster;
use crate::metadata::table::{BrokerState, Effect, Rejected, id_bytes};

fn reassign(topic: Uuid, partition: i32, target: &[(u64, i32)]) -> Command {
    Command::ReassignPartition(pb::ReassignPartition {
        topic_id: id_bytes(topic),
        partition,
        target: target
            .iter()
            .map(|&(replica_id, broker_id)| pb::Replica {
                replica_id,
                broker_id,
                lost: false,
            })
            .collect(),
        ..Default::default()
    })
}

fn cancel(topic: Uuid, partition: i32, ids: &[u64]) -> Command {
    Command::CancelReassign(pb::CancelReassign {
        topic_id: id_bytes(topic),
        partition,
        replica_ids: ids.to_vec(),
        at_ms: 8,
    })
}

#[test]
fn a_late_word_of_an_earlier_change_buries_nothing() {
    let mut c = Cluster::new(&["a", "b", "c", "a"]);
    let t = c.topic("t", 1, 3);
    c.apply(reassign(t, 0, &[(4, 4), (2, 2), (3, 3)])).unwrap();
    let moved = c.partition(t, 0).revision;
    c.finish(t, 0).unwrap();
    c.apply(reassign(t, 0, &[(5, 1), (2, 2), (3, 3)])).unwrap();
    let back = crate::metadata::plan::turn_back(&c.table, t, 0, 1).unwrap();
    c.apply(back).unwrap();
    // The group may count on 5 by now; an old leader says again that 4, 2 and 3 are all there are.
    let late = |revision| {
        Command::FinishReassign(pb::FinishReassign {
            topic_id: id_bytes(t),
            partition: 0,
            replica_ids: vec![4, 2, 3],
            at_ms: 9,
            revision,
        })
    };
    assert_eq!(c.apply(late(moved)), Err(Rejected::ChangeNotInFlight));
    assert!(!c.table.tombstones().contains_key(&5));
    c.apply(late(c.partition(t, 0).revision)).unwrap();
    assert!(c.table.tombstones().contains_key(&5));
}

#[test]
fn a_replica_moves() {
    let mut c = Cluster::new(&["a", "b", "c", "a"]);
    let t = c.topic("t", 1, 3);
    assert_eq!(c.brokers(t, 0), [1, 2, 3]);
    let created = c.partition(t, 0).revision;
    assert_eq!(created, c.index);

    let effect = c.apply(reassign(t, 0, &[(4, 4), (2, 2), (3, 3)])).unwrap();
    assert!(matches!(effect, Effect::Replicas { buried, .. } if buried.is_empty()));
    let p = c.partition(t, 0);
    assert_eq!(p.revision, c.index);
    assert_eq!(p.adding().map(|r| r.id).collect::<Vec<_>>(), [4]);
    assert_eq!(p.removing().map(|r| r.id).collect::<Vec<_>>(), [1]);
    assert_eq!(p.hosted_on(4).count(), 1);
    assert_eq!(c.brokers(t, 0), [1, 2, 3]);
    c.check_image();
    assert_eq!(
        c.apply(reassign(t, 0, &[(5, 4), (2, 2), (3, 3)])),
        Err(Rejected::ChangeInFlight)
    );

    let effect = c.finish(t, 0).unwrap();
    assert!(matches!(effect, Effect::Replicas { buried, .. } if buried[0].id == 1));
    assert_eq!(c.brokers(t, 0), [4, 2, 3]);
    assert_eq!(c.partition(t, 0).revision, c.index);
    assert_eq!(c.table.tombstones().get(&1), Some(&1));
    assert_eq!(c.finish(t, 0), Err(Rejected::ChangeNotInFlight));
    c.check_image();

    let bury = pb::BuryReplicas {
        replica_ids: vec![1],
    };
    c.apply(Command::BuryReplicas(bury)).unwrap();
    assert!(c.table.tombstones().is_empty());
}

#[test]
fn a_move_given_up_buries_its_replica_only_when_the_group_has_left_it() {
    let mut c = Cluster::new(&["a", "b", "c", "a"]);
    let t = c.topic("t", 1, 3);
    c.apply(reassign(t, 0, &[(4, 4), (2, 2), (3, 3)])).unwrap();
    assert_eq!(
        c.apply(cancel(t, 0, &[1, 2, 3])),
        Err(Rejected::ChangeNotInFlight)
    );
    c.apply(cancel(t, 0, &[4, 3, 2])).unwrap();
    assert!(c.table.tombstones().is_empty());
    let p = c.partition(t, 0);
    assert_eq!(p.revision, c.index);
    assert_eq!(p.hosted_on(4).count(), 1);
    assert_eq!(p.removing().map(|r| r.id).collect::<Vec<_>>(), [4]);
    c.check_image();
    c.finish(t, 0).unwrap();
    assert_eq!(c.brokers(t, 0), [1, 2, 3]);
    assert_eq!(c.table.tombstones().get(&4), Some(&4));
    // The id was given: never again.
    assert_eq!(
        c.apply(reassign(t, 0, &[(4, 4), (2, 2), (3, 3)])),
        Err(Rejected::ReplicaIdTaken)
    );
}

#[test]
fn another_order_is_in_force_at_once() {
    let mut c = Cluster::new(&["a", "b", "c"]);
    let t = c.topic("t", 1, 3);
    let revision = c.partition(t, 0).revision;
    c.apply(reassign(t, 0, &[(2, 2), (1, 1), (3, 3)])).unwrap();
    assert_eq!(c.brokers(t, 0), [2, 1, 3]);
    // Nothing for the group to do, so its revision stays.
    assert_eq!(c.partition(t, 0).revision, revision);
    assert_eq!(c.partition(t, 0).reassign, None);
}

#[test]
fn changes_that_do_not_fit_are_refused() {
    let mut c = Cluster::new(&["a", "b", "c"]);
    let t = c.topic("t", 1, 2);
    for (target, why) in [
        (&[][..], Rejected::Malformed("target")),
        (&[(1, 1), (9, 1)], Rejected::Malformed("target")),
        (&[(1, 1), (9, 7)], Rejected::UnknownBroker),
    ] {
        assert_eq!(c.apply(reassign(t, 0, target)), Err(why));
    }
    let fits = [(1, 1), (9, 3)];
    assert_eq!(
        c.apply(reassign(t, 1, &fits)),
        Err(Rejected::UnknownPartition)
    );
    assert_eq!(
        c.apply(reassign(Uuid::nil(), 0, &fits)),
        Err(Rejected::UnknownTopic)
    );
    c.apply(reassign(t, 0, &fits)).unwrap();
}

#[test]
fn a_topic_that_dies_takes_the_replicas_in_flight_along() {
    let mut c = Cluster::new(&["a", "b", "c"]);
    let t = c.topic("t", 1, 2);
    let here = c.brokers(t, 0);
    let free = (1..=3).find(|id| !here.contains(id)).unwrap();
    c.apply(reassign(t, 0, &[(1, here[0]), (9, free)])).unwrap();
    let delete = pb::DeleteTopic {
        topic_id: id_bytes(t),
    };
    c.apply(Command::DeleteTopic(delete)).unwrap();
    let ids: Vec<u64> = c.table.tombstones().keys().copied().collect();
    assert_eq!(ids, [1, 2, 9]);
}

#[test]
fn a_broker_that_lost_its_disk_has_lost_its_replicas() {
    let mut c = Cluster::new(&["a", "b", "c"]);
    let t = c.topic("t", 3, 3);
    let gone = c.topic("gone", 1, 3);
    let delete = pb::DeleteTopic {
        topic_id: id_bytes(gone),
    };
    c.apply(Command::DeleteTopic(delete)).unwrap();
    assert_eq!(c.table.tombstones().len(), 3);
    // The same directory again: a restart.
    assert_eq!(
        c.register(2, "b", 1),
        Effect::Broker {
            id: 2,
            lost: vec![]
        }
    );
    let Effect::Broker { lost, .. } = c.register(2, "b", 2) else {
        panic!("not a broker's effect");
    };
    assert_eq!(lost.len(), 1);
    for (_, _, partition) in c.table.partitions() {
        assert_eq!(partition.hosted_on(2).count(), 0);
        assert_eq!(partition.hosted_on(1).count(), 1);
        assert_eq!(partition.replicas.iter().filter(|r| r.lost).count(), 1);
    }
    // What was to be deleted there is deleted.
    assert!(c.table.tombstones().values().all(|broker| *broker != 2));
    c.check_image();

    let old = c.partition(t, 0).replicas.clone();
    let target = old.iter().map(|r| match r.broker {
        2 => (100, 2),
        broker => (r.id, broker),
    });
    let target: Vec<(u64, i32)> = target.collect();
    c.apply(reassign(t, 0, &target)).unwrap();
    assert_eq!(c.partition(t, 0).hosted_on(2).next().unwrap().id, 100);
    c.finish(t, 0).unwrap();
    assert!(c.partition(t, 0).replicas.iter().all(|r| !r.lost));
    // Nothing is left of a lost replica, so nothing has to be deleted.
    assert_eq!(c.table.tombstones().len(), 2);
}

#[test]
fn a_broker_goes_when_it_is_empty() {
    let mut c = Cluster::new(&["a", "b"]);
    let t = c.topic("t", 1, 2);
    let remove = |broker_id| {
        Command::RemoveBroker(pb::RemoveBroker {
            broker_id,
            at_ms: 1,
        })
    };
    assert_eq!(c.apply(remove(3)), Err(Rejected::UnknownBroker));
    assert_eq!(c.apply(remove(2)), Err(Rejected::BrokerInUse));
    c.set_state(2, BrokerState::Decommissioning);
    assert_eq!(c.apply(remove(2)), Err(Rejected::BrokerInUse));
    c.register(3, "b", 1);
    let one = *c
        .partition(t, 0)
        .replicas
        .iter()
        .find(|r| r.broker == 1)
        .unwrap();
    c.apply(reassign(t, 0, &[(one.id, 1), (9, 3)])).unwrap();
    c.finish(t, 0).unwrap();
    assert_eq!(c.table.tombstones().len(), 1);
    c.apply(remove(2)).unwrap();
    assert!(!c.table.brokers().contains_key(&2));
    assert!(c.table.tombstones().is_empty());
}

#[test]
fn the_feature_level_rises_when_all_can_follow() {
    let mut c = Cluster::new(&["a", "b"]);
    let level = |level| Command::SetFeatureLevel(pb::SetFeatureLevel { level });
    assert_eq!(c.table.feature_level(), 1);
    assert_eq!(c.apply(level(3)), Err(Rejected::FeatureLevel));
    let old = |broker_id| {
        Command::RegisterBroker(pb::RegisterBroker {
            broker_id,
            directory_id: id_bytes(Uuid::from_u128(5)),
            feature_level_min: 1,
            feature_level_max: 1,
            ..Default::default()
        })
    };
    c.apply(old(3)).unwrap();
    assert_eq!(c.apply(level(2)), Err(Rejected::FeatureLevel));
    c.set_state(3, BrokerState::Decommissioning);
    let remove = pb::RemoveBroker {
        broker_id: 3,
        at_ms: 0,
    };
    c.apply(Command::RemoveBroker(remove)).unwrap();
    c.apply(level(2)).unwrap();
    assert_eq!(c.apply(level(1)), Err(Rejected::FeatureLevel));
    // One that can't follow does not come in any more.
    assert_eq!(c.apply(old(3)), Err(Rejected::FeatureLevel));
    c.check_image();
}
