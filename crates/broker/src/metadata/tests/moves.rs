//! Repairs and levelling: what moves, that nothing else does, and that it ends.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::cluster::Cluster;
use super::placement::{cluster, spreads, width};
use crate::metadata::moves::{self, MOVES_MAX, MOVES_PER_BROKER_MAX, Why};
use crate::metadata::placement::{Placement, majority};
use crate::metadata::plan;
use crate::metadata::table::BrokerState;

fn check_racks(c: &Cluster) {
    for spread in spreads(&c.table) {
        let replicas: usize = spread.values().sum();
        let most = *spread.values().max().unwrap();
        assert!(replicas == 1 || most < majority(replicas), "{spread:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decommissioned_broker_ends_empty_and_nothing_else_moves(
        sizes in prop::collection::vec(2usize..4, 3..5),
        topics in prop::collection::vec((1i32..20, 1i32..4), 1..4),
        leaver in 0usize..100,
    ) {
        let mut c = cluster(&sizes);
        for (at, (partitions, factor)) in topics.iter().enumerate() {
            c.topic(&format!("t{at}"), *partitions, *factor);
        }
        let leaver = (leaver % c.table.brokers().len()) as i32 + 1;
        let had = c.table.replicas_on(leaver);
        c.set_state(leaver, BrokerState::Decommissioning);
        let all = c.all_live();
        let plan = moves::healing(&c.table, all.view());
        prop_assert_eq!(&plan, &moves::healing(&c.table, all.view()));
        let moves = c.heal(&all);
        prop_assert_eq!(c.table.replicas_on(leaver), 0);
        prop_assert_eq!(moves.len(), had);
        prop_assert!(moves.iter().all(|one| one.from == leaver && one.why == Why::Decommission));
        check_racks(&c);
        prop_assert_eq!(moves::violations(&c.table), vec![]);
        let remove = plan::remove_broker(&c.table, leaver, 1).unwrap();
        c.apply(remove).unwrap();
        c.check_image();
    }

    #[test]
    fn a_new_broker_gets_its_share_and_nothing_else_moves(
        racks in 1usize..5,
        size in 1usize..4,
        partitions in 1i32..40,
    ) {
        let mut c = cluster(&vec![size; racks]);
        c.topic("t", partitions, racks.min(3) as i32);
        let new = (racks * size) as i32 + 1;
        c.register(new, "r0", 1);
        let live: BTreeSet<i32> = (1..=new).collect();
        prop_assert_eq!(c.heal(&c.all_live()), vec![]);
        let plan = moves::balance(&c.table, &live);
        let total = partitions as usize * racks.min(3);
        let share = total.div_ceil(new as usize);
        let others = plan.iter().filter(|one| one.to != new).count();
        prop_assert!(plan.len() - others <= share, "{plan:?}");
        // With more racks than replicas, what may not move to the new broker may have to go by way of another.
        prop_assert!(others <= if racks > 3 { share } else { 0 }, "{plan:?}");
        c.carry_out(&plan);
        prop_assert_eq!(moves::balance(&c.table, &live), vec![]);
        if racks >= 3 {
            check_racks(&c);
        }
        if racks <= 3 {
            // Each rack has a replica of everything: what can be levelled are the rack's own brokers.
            let placement = Placement::of(&c.table, |_, _| true);
            let first = (1..=new).filter(|&id| placement.domain(id) == Some(0));
            let replicas = first.map(|id| placement.replicas(id));
            prop_assert!(width(replicas) <= 1);
        }
    }

    #[test]
    fn replicas_of_a_gone_broker_are_rebuilt_in_its_rack(
        sizes in prop::collection::vec(2usize..4, 3..5),
        partitions in 1i32..30,
        dead in 0usize..100,
    ) {
        let mut c = cluster(&sizes);
        c.topic("t", partitions, 3);
        let dead = (dead % c.table.brokers().len()) as i32 + 1;
        let had = c.table.replicas_on(dead);
        let mut all = c.all_live();
        all.live.remove(&dead);
        prop_assert_eq!(c.heal(&all), vec![], "not gone for long enough");
        all.kill(dead);
        let moves = c.heal(&all);
        prop_assert_eq!(moves.len(), had);
        prop_assert_eq!(c.table.replicas_on(dead), 0);
        check_racks(&c);
        // It comes back: nothing moves back by itself.
        prop_assert_eq!(c.heal(&c.all_live()), vec![]);
    }

    #[test]
    fn a_bad_spread_is_repaired_when_racks_come(
        first in 3usize..6,
        more in prop::collection::vec(1usize..3, 1..4),
        partitions in 1i32..20,
    ) {
        let mut c = cluster(&[first]);
        c.topic("t", partitions, 3);
        prop_assert_eq!(moves::violations(&c.table), vec![]);
        let mut id = first as i32;
        for (rack, size) in more.iter().enumerate() {
            for _ in 0..*size {
                id += 1;
                c.register(id, &format!("new{rack}"), 1);
            }
        }
        let violations = moves::violations(&c.table);
        prop_assert_eq!(violations.len(), partitions as usize);
        prop_assert!(violations.iter().all(|one| one.rack == "r0" && one.majority));
        let moves = c.heal(&c.all_live());
        prop_assert!(moves.iter().all(|one| one.why == Why::Spread));
        prop_assert_eq!(moves::violations(&c.table), vec![]);
        let needed = (more.len().min(2)) * partitions as usize;
        let few = if more.len() == 1 { partitions as usize } else { needed };
        prop_assert_eq!(moves.len(), few);
    }
}

#[test]
fn healing_pauses_while_a_whole_rack_is_gone() {
    let mut c = cluster(&[2, 2, 2, 2]);
    c.topic("t", 12, 3);
    let mut all = c.all_live();
    all.kill(1);
    assert!(!moves::healing(&c.table, all.view()).is_empty());
    all.kill(2);
    assert_eq!(moves::healing(&c.table, all.view()), []);
    // Its brokers are given up by the operator: then it is not a rack to wait for.
    c.set_state(1, BrokerState::Decommissioning);
    c.set_state(2, BrokerState::Decommissioning);
    c.heal(&all);
    assert_eq!((c.table.replicas_on(1), c.table.replicas_on(2)), (0, 0));
    check_racks(&c);
}

#[test]
fn no_rack_gets_a_majority_because_another_is_gone() {
    let mut c = cluster(&[1, 2, 2]);
    c.topic("t", 6, 3);
    let mut all = c.all_live();
    all.kill(1);
    assert_eq!(moves::healing(&c.table, all.view()), []);
    // With a fourth rack there is a place.
    c.register(6, "r3", 1);
    all.live.insert(6);
    assert_eq!(c.heal(&all).len(), 6);
    check_racks(&c);
}

#[test]
fn a_lost_disk_is_filled_again_where_it_was() {
    let mut c = cluster(&[1, 1, 1]);
    let t = c.topic("t", 3, 3);
    c.register(2, "r1", 2);
    let mut all = c.all_live();
    all.live.remove(&2);
    assert_eq!(moves::healing(&c.table, all.view()), []);
    all.live.insert(2);
    c.set_state(2, BrokerState::Draining);
    assert_eq!(moves::healing(&c.table, all.view()), []);
    c.set_state(2, BrokerState::Active);
    let plan = moves::healing(&c.table, all.view());
    assert!(plan.iter().all(|one| (one.from, one.to) == (2, 2)));
    assert_eq!(c.heal(&all).len(), 3);
    for number in 0..3 {
        assert!(c.partition(t, number).replicas.iter().all(|one| !one.lost));
        assert_eq!(c.partition(t, number).hosted_on(2).count(), 1);
    }
}

#[test]
fn what_has_no_majority_is_left_alone() {
    let mut c = cluster(&[1, 1, 1, 1]);
    let t = c.topic("t", 1, 3);
    c.topic("single", 1, 1);
    let [a, b, _] = c.brokers(t, 0)[..] else {
        panic!("not three replicas");
    };
    let mut all = c.all_live();
    all.kill(a);
    all.kill(b);
    assert_eq!(moves::healing(&c.table, all.view()), []);
}

#[test]
fn changes_that_can_not_end_are_turned_back() {
    let mut c = cluster(&[2, 2, 2]);
    let t = c.topic("t", 1, 3);
    let from = c.brokers(t, 0)[0];
    let mut all = c.all_live();
    all.kill(from);
    let plan = c.due(&all);
    let replace = plan::replace(&c.table, &plan[0], None).unwrap();
    c.apply(replace).unwrap();
    assert_eq!(moves::stuck(&c.table, all.view()), []);
    assert_eq!(moves::healing(&c.table, all.view()), []);
    all.kill(plan[0].to);
    assert_eq!(moves::stuck(&c.table, all.view()), [(t, 0)]);
    let back = plan::turn_back(&c.table, t, 0, 1).unwrap();
    c.apply(back).unwrap();
    assert_eq!(plan::turn_back(&c.table, t, 0, 1), None);
    assert_eq!(moves::stuck(&c.table, all.view()), []);
    c.finish(t, 0).unwrap();
    assert_eq!(c.brokers(t, 0)[0], from);
}

#[test]
fn moves_in_flight_are_bounded() {
    let mut c = cluster(&[4, 4, 4]);
    c.topic("t", 80, 3);
    c.set_state(1, BrokerState::Decommissioning);
    let all = c.all_live();
    // Three brokers of the rack may take two each.
    let first = c.due(&all);
    assert_eq!(first.len(), 3 * MOVES_PER_BROKER_MAX);
    for one in &first {
        let replace = plan::replace(&c.table, one, None).unwrap();
        c.apply(replace).unwrap();
    }
    assert_eq!(c.due(&all), []);
    for id in [5, 9] {
        c.set_state(id, BrokerState::Decommissioning);
    }
    let more = c.due(&all);
    assert_eq!(first.len() + more.len(), MOVES_MAX);
}
