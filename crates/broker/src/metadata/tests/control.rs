//! Rounds of the controller, until nothing is left to do.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::cluster::{Cluster, Liveness};
use super::placement::{cluster, width};
use crate::metadata::control::{Action, Soft, actions, transfers};
use crate::metadata::moves;
use crate::metadata::placement::Placement;
use crate::metadata::plan;
use crate::metadata::table::OperationResult;

const ROUNDS_MAX: usize = 500;

/// Runs rounds: transfers take place, changes begun in a round are finished before the next.
fn settle(c: &mut Cluster, liveness: &Liveness, leaders: &mut HashMap<(Uuid, i32), i32>) {
    for _ in 0..ROUNDS_MAX {
        let everyone = |topic, number| c.brokers(topic, number);
        let soft = Soft {
            view: liveness.view(),
            leaders,
            in_sync: &everyone,
            voters: &BTreeSet::new(),
        };
        let due = actions(&c.table, &soft, 50);
        let handed = transfers(&c.table, &soft);
        if due.is_empty() && handed.is_empty() {
            return;
        }
        for one in handed {
            leaders.insert((one.topic, one.partition), one.to);
        }
        for action in due {
            if let Some(command) = action.plan(&c.table, 50) {
                c.apply(command).unwrap();
            }
        }
        let changing = c.table.partitions();
        let changing: Vec<(Uuid, i32)> = changing
            .filter(|(_, _, partition)| partition.reassign.is_some())
            .map(|(topic, number, _)| (topic.id, number))
            .collect();
        for (topic, number) in changing {
            let target = c.partition(topic, number).target().iter();
            let finish = Action::Finish {
                topic,
                partition: number,
                voters: target.map(|replica| replica.id).rev().collect(),
                revision: c.partition(topic, number).revision,
            };
            let finish = finish.plan(&c.table, 50).unwrap();
            c.apply(finish).unwrap();
            let brokers = c.brokers(topic, number);
            let leader = leaders.entry((topic, number)).or_insert(brokers[0]);
            if !brokers.contains(leader) {
                *leader = brokers[0];
            }
        }
        c.check_image();
    }
    panic!("the controller does not come to rest");
}

fn preferred(c: &Cluster) -> HashMap<(Uuid, i32), i32> {
    let partitions = c.table.partitions();
    let led = partitions.map(|(t, number, p)| ((t.id, number), p.replicas[0].broker));
    led.collect()
}

fn result(c: &Cluster, id: u128) -> Option<OperationResult> {
    let operation = c.table.operations().get(Uuid::from_u128(id)).unwrap();
    operation.ended.as_ref().map(|ended| ended.result)
}

#[test]
fn three_brokers_become_five_and_three_again() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("t", 30, 3);
    let mut leaders = preferred(&c);
    c.register(4, "r0", 1);
    c.register(5, "r1", 1);
    let all = c.all_live();
    settle(&mut c, &all, &mut leaders);
    assert_eq!(c.table.replicas_on(4), 0, "levelling is asked for");

    let planned = moves::balance(&c.table, &all.live).len();
    c.apply(plan::begin_balance(planned, Uuid::from_u128(1), 1))
        .unwrap();
    settle(&mut c, &all, &mut leaders);
    assert_eq!(result(&c, 1), Some(OperationResult::Done));
    let replicas: Vec<usize> = (1..=5).map(|id| c.table.replicas_on(id)).collect();
    assert_eq!(replicas, [15, 15, 30, 15, 15]);
    let placement = Placement::of(&c.table, |_, _| true);
    assert!(width((1..=5).map(|id| placement.leaders(id))) <= 1);
    assert_eq!(leaders, preferred(&c));

    for (operation, id) in [(2, 4), (3, 5)] {
        let leave = plan::begin_decommission(&c.table, id, Uuid::from_u128(operation), 1).unwrap();
        c.apply(leave).unwrap();
    }
    settle(&mut c, &all, &mut leaders);
    for (operation, id) in [(2, 4), (3, 5)] {
        assert_eq!(result(&c, operation), Some(OperationResult::Done));
        assert_eq!(c.table.replicas_on(id), 0);
        let remove = plan::remove_broker(&c.table, id, 2).unwrap();
        c.apply(remove).unwrap();
    }
    assert_eq!(moves::violations(&c.table), []);
    assert_eq!(c.table.brokers().len(), 3);
}

#[test]
fn a_drain_ends_when_nothing_is_led() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("t", 9, 3);
    let mut leaders = preferred(&c);
    let drain = plan::begin_drain(&c.table, 2, 3, Uuid::from_u128(1), 1).unwrap();
    c.apply(drain).unwrap();
    let all = c.all_live();
    let operation = c.table.operations().open().next().unwrap();
    assert_eq!(plan::remaining(&c.table, operation, &leaders, &all.live), 3);
    settle(&mut c, &all, &mut leaders);
    assert_eq!(result(&c, 1), Some(OperationResult::Done));
    assert!(leaders.values().all(|leader| *leader != 2));
    assert_eq!(c.table.replicas_on(2), 9);
}

#[test]
fn a_cancelled_decommission_leaves_the_broker_active() {
    let mut c = cluster(&[2, 2, 2]);
    c.topic("t", 12, 3);
    let id = Uuid::from_u128(1);
    let leave = plan::begin_decommission(&c.table, 1, id, 1).unwrap();
    c.apply(leave).unwrap();
    let cancel = plan::cancel(&c.table, id, 2).unwrap();
    c.apply(cancel).unwrap();
    assert!(c.table.brokers()[&1].is_active());
    assert_eq!(result(&c, 1), Some(OperationResult::Superseded));
    assert!(plan::cancel(&c.table, id, 3).is_err());
    let all = c.all_live();
    assert_eq!(moves::healing(&c.table, all.view()), []);
}

#[test]
fn too_few_brokers_can_not_be_left() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("t", 1, 3);
    let leave = plan::begin_decommission(&c.table, 1, Uuid::nil(), 1);
    let error = leave.unwrap_err();
    assert_eq!(
        error.reason,
        Some(timberline_proto::error::Reason::NotEnoughBrokers)
    );
    assert_eq!(error.metadata["needed"], "3");
}

#[test]
fn a_decommission_does_not_end_while_its_broker_votes_on_metadata() {
    let mut c = cluster(&[1, 1, 1]);
    let leave = plan::begin_decommission(&c.table, 2, Uuid::from_u128(1), 1).unwrap();
    c.apply(leave).unwrap();
    let all = c.all_live();
    let ends = |voters: &[i32]| {
        let voters = voters.iter().copied().collect();
        plan::settle(&c.table, &HashMap::new(), &all.live, &voters, 2).len()
    };
    assert_eq!(ends(&[1, 2, 3]), 0);
    assert_eq!(ends(&[1, 3]), 1);
}
