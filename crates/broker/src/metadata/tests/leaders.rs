//! Who should lead, and what stopping costs.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::cluster::Cluster;
use super::placement::{cluster, width};
use crate::metadata::leaders::{self, can_stop, leader_moves, rack_loss_survivable};
use crate::metadata::placement::Placement;
use crate::metadata::plan;
use crate::metadata::table::BrokerState;

type Leaders = HashMap<(Uuid, i32), i32>;

fn preferred(c: &Cluster) -> Leaders {
    let partitions = c.table.partitions();
    let led = partitions.map(|(t, number, p)| ((t.id, number), p.replicas[0].broker));
    led.collect()
}

fn everyone(c: &Cluster) -> impl Fn(Uuid, i32) -> Vec<i32> + '_ {
    |topic, number| c.brokers(topic, number)
}

#[test]
fn a_draining_broker_hands_over_to_whoever_leads_least() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("t", 30, 3);
    let mut leaders = preferred(&c);
    let live = c.all_live().live;
    assert_eq!(leader_moves(&c.table, &leaders, everyone(&c), &live), []);
    c.set_state(1, BrokerState::Draining);
    let moves = leader_moves(&c.table, &leaders, everyone(&c), &live);
    assert_eq!(moves.len(), 10);
    for one in &moves {
        assert_eq!(one.from, 1);
        leaders.insert((one.topic, one.partition), one.to);
    }
    let mut leads = BTreeMap::new();
    for leader in leaders.values() {
        *leads.entry(*leader).or_insert(0) += 1;
    }
    assert_eq!(leads, BTreeMap::from([(2, 15), (3, 15)]));
    assert_eq!(leader_moves(&c.table, &leaders, everyone(&c), &live), []);
    // Back again when it is.
    c.set_state(1, BrokerState::Active);
    let moves = leader_moves(&c.table, &leaders, everyone(&c), &live);
    assert_eq!(moves.iter().filter(|one| one.to == 1).count(), 10);
    assert_eq!(moves.len(), 10);
}

#[test]
fn nobody_gets_to_lead_who_is_not_in_sync_or_does_not_live() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("t", 6, 3);
    let leaders = preferred(&c);
    c.set_state(1, BrokerState::Draining);
    let mut live = c.all_live().live;
    live.remove(&2);
    let moves = leader_moves(&c.table, &leaders, |_, _| vec![1, 2, 3], &live);
    assert!(!moves.is_empty() && moves.iter().all(|one| one.to == 3));
    assert_eq!(
        leader_moves(&c.table, &leaders, |_, _| vec![1, 2], &live),
        []
    );
}

#[test]
fn preferred_leaders_can_be_levelled_by_order_alone() {
    let mut c = cluster(&[1, 1, 1]);
    let t = c.topic("t", 12, 3);
    for number in 0..12 {
        let mut brokers = c.brokers(t, number);
        brokers.sort_unstable();
        let topic = c.table.topic(t).unwrap().clone();
        let wish = plan::MovePartition {
            topic: &topic,
            partition: number,
            brokers: &brokers,
            operation: Uuid::from_u128(number as u128),
            now_ms: 1,
        };
        if let Ok(command) = plan::move_partition(&c.table, &wish) {
            c.apply(command).unwrap();
        }
    }
    let leads = |c: &Cluster, id| Placement::of(&c.table, |_, _| true).leaders(id);
    assert_eq!(leads(&c, 1), 12);
    for (topic, number, replicas) in leaders::level_preferred(&c.table) {
        let brokers: Vec<i32> = replicas.iter().map(|one| one.broker).collect();
        let topic = c.table.topic(topic).unwrap().clone();
        let wish = plan::MovePartition {
            topic: &topic,
            partition: number,
            brokers: &brokers,
            operation: Uuid::from_u128(number as u128 + 100),
            now_ms: 1,
        };
        let command = plan::move_partition(&c.table, &wish).unwrap();
        c.apply(command).unwrap();
    }
    assert!(width((1..=3).map(|id| leads(&c, id))) <= 1);
}

#[test]
fn a_group_is_at_risk_by_its_voters() {
    let at_risk = |voters: &[&[i32]], in_sync: &[i32], broker| {
        let voters: Vec<Vec<i32>> = voters.iter().map(|group| group.to_vec()).collect();
        leaders::group_at_risk(&voters, in_sync, broker)
    };
    assert_eq!(at_risk(&[&[1, 2, 3]], &[1, 2, 3], 1), None);
    assert_eq!(at_risk(&[&[1, 2, 3]], &[1, 2], 1), Some((1, 2)));
    // The one that is away already costs nothing more; who has no vote never does.
    assert_eq!(at_risk(&[&[1, 2, 3]], &[1, 2], 3), None);
    assert_eq!(at_risk(&[&[1, 2, 3]], &[1], 4), None);
    assert_eq!(at_risk(&[&[1, 2, 3]], &[], 1), Some((0, 2)));
    // While voters change, both groups need a majority.
    assert_eq!(
        at_risk(&[&[1, 2, 3], &[1, 4]], &[1, 2, 3, 4], 4),
        Some((1, 2))
    );
}

#[test]
fn a_broker_can_stop_when_majorities_are_left() {
    let mut c = cluster(&[1, 1, 1]);
    let t = c.topic("t", 2, 3);
    assert_eq!(can_stop(&c.table, everyone(&c), 1), []);
    let lagging = |_: Uuid, number: i32| match number {
        0 => vec![1, 2],
        _ => vec![1, 2, 3],
    };
    let at_risk = can_stop(&c.table, lagging, 1);
    assert_eq!(at_risk.len(), 1);
    let one = at_risk[0];
    assert_eq!(
        (one.topic, one.partition, one.left, one.needed),
        (t, 0, 1, 2)
    );
    // The one that lags is not what the majority needs.
    assert_eq!(can_stop(&c.table, lagging, 3), []);
    let single = c.topic("single", 1, 1);
    let host = c.brokers(single, 0)[0];
    assert_eq!(can_stop(&c.table, everyone(&c), host).len(), 1);
    assert_eq!(can_stop(&c.table, everyone(&c), 99), []);
}

#[test]
fn surviving_the_loss_of_a_rack_is_computed() {
    let mut c = cluster(&[2, 2, 2]);
    let t = c.topic("t", 6, 3);
    assert_eq!(rack_loss_survivable(&c.table, everyone(&c)), []);
    let lagging = |topic, number| {
        let mut brokers = c.brokers(topic, number);
        if number == 0 {
            brokers.truncate(2);
        }
        brokers
    };
    let fragile = rack_loss_survivable(&c.table, lagging);
    assert_eq!(fragile.len(), 2);
    assert!(fragile.iter().all(|one| one.partitions == 1));
    assert_eq!(c.brokers(t, 0).len(), 3);
    c.topic("pair", 1, 2);
    assert_eq!(rack_loss_survivable(&c.table, everyone(&c)).len(), 2);
}
