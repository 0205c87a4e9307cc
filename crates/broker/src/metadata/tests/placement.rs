//! Properties of placement, over clusters of many shapes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use uuid::Uuid;

use super::bounds;
use super::cluster::Cluster;
use crate::metadata::placement::{Placement, majority};
use crate::metadata::plan::{self, NewTopic};
use crate::metadata::table::{BrokerState, Table};

/// Largest minus smallest.
pub(super) fn width(counts: impl Iterator<Item = usize> + Clone) -> usize {
    counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
}

fn racks_of(sizes: &[usize]) -> Vec<String> {
    let racks = sizes.iter().enumerate();
    racks
        .flat_map(|(rack, size)| std::iter::repeat_n(format!("r{rack}"), *size))
        .collect()
}

pub(super) fn cluster(sizes: &[usize]) -> Cluster {
    let racks = racks_of(sizes);
    Cluster::new(&racks.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Replicas of each rack in each partition.
pub(super) fn spreads(table: &Table) -> Vec<BTreeMap<String, usize>> {
    let partitions = table.partitions();
    let spread = partitions.map(|(_, _, partition)| {
        let mut spread = BTreeMap::new();
        for replica in &partition.replicas {
            let rack = table.brokers()[&replica.broker].rack.clone();
            *spread.entry(rack).or_insert(0) += 1;
        }
        spread
    });
    spread.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rack_has_a_majority_where_three_exist(
        sizes in prop::collection::vec(1usize..5, 3..6),
        factor in 1i32..6,
        partitions in 1i32..40,
    ) {
        let mut c = cluster(&sizes);
        let factor = factor.min(c.table.brokers().len() as i32);
        c.topic("t", partitions, factor);
        let factor = factor as usize;
        // The most that even spreading needs: brokers taken from the racks in turn.
        let mut least = 0;
        let mut taken = 0;
        while taken < factor {
            least += 1;
            taken = sizes.iter().map(|size| *size.min(&least)).sum();
        }
        for spread in spreads(&c.table) {
            let most = *spread.values().max().unwrap();
            prop_assert_eq!(most, least);
            if factor > 1 && sizes.iter().all(|size| *size >= 2) {
                prop_assert!(most < majority(factor));
            }
            prop_assert!(spread.len() == factor.min(sizes.len()));
        }
    }

    #[test]
    fn equal_racks_are_levelled(
        racks in 1usize..6,
        size in 1usize..5,
        topics in prop::collection::vec((1i32..30, 1i32..4), 1..8),
    ) {
        let mut c = cluster(&vec![size; racks]);
        let brokers = c.table.brokers().len() as i32;
        for (at, (partitions, factor)) in topics.iter().enumerate() {
            c.topic(&format!("t{at}"), *partitions, (*factor).min(brokers));
        }
        let placement = Placement::of(&c.table, |_, _| true);
        let replicas = (1..=brokers).map(|id| placement.replicas(id));
        prop_assert!(width(replicas.clone()) <= 1, "{:?}", replicas.collect::<Vec<_>>());
        let leaders = (1..=brokers).map(|id| placement.leaders(id));
        // What one topic leaves uneven the next one evens out where it can; one with a single replica can't.
        prop_assert!(width(leaders.clone()) <= 1 + topics.len(), "{:?}", leaders.collect::<Vec<_>>());
    }

    #[test]
    fn one_topic_of_as_many_replicas_as_racks_levels_its_leaders(
        racks in 1usize..5,
        size in 1usize..4,
        partitions in 1i32..60,
    ) {
        let mut c = cluster(&vec![size; racks]);
        c.topic("t", partitions, racks as i32);
        let placement = Placement::of(&c.table, |_, _| true);
        let brokers = 1..=(racks * size) as i32;
        let leaders = brokers.map(|id| placement.leaders(id));
        prop_assert!(width(leaders.clone()) <= 1, "{:?}", leaders.collect::<Vec<_>>());
    }

    #[test]
    fn the_same_wishes_give_the_same_places(
        sizes in prop::collection::vec(1usize..4, 1..5),
        partitions in 1i32..30,
    ) {
        let place = || {
            let mut c = cluster(&sizes);
            let factor = (c.table.brokers().len() as i32).min(3);
            c.topic("a", partitions, factor);
            c.topic("b", partitions, 1);
            c.table
        };
        prop_assert_eq!(place(), place());
    }

    #[test]
    fn only_active_brokers_get_replicas(
        sizes in prop::collection::vec(1usize..4, 2..5),
        out in prop::collection::vec(0usize..12, 1..3),
        partitions in 1i32..30,
    ) {
        let mut c = cluster(&sizes);
        let brokers = c.table.brokers().len();
        for (at, id) in out.iter().enumerate() {
            let state = [BrokerState::Draining, BrokerState::Decommissioning][at % 2];
            c.set_state((id % brokers) as i32 + 1, state);
        }
        let active = c.table.brokers().values().filter(|b| b.is_active()).count();
        prop_assume!(active > 0);
        c.topic("t", partitions, active.min(3) as i32);
        for (_, _, partition) in c.table.partitions() {
            prop_assert_eq!(partition.replicas.len(), active.min(3));
            for replica in &partition.replicas {
                prop_assert!(c.table.brokers()[&replica.broker].is_active());
            }
        }
    }
}

#[test]
fn a_new_broker_does_not_get_the_whole_of_a_new_topic() {
    let mut c = cluster(&[1, 1, 1]);
    c.topic("old", 30, 3);
    c.register(4, "r0", 1);
    let new = c.topic("new", 4, 3);
    let placement = Placement::of(&c.table, |_, _| true);
    assert_eq!(placement.replicas_of(new, 4), 2);
    assert_eq!(placement.replicas_of(new, 1), 2);
}

#[test]
fn a_broker_without_a_rack_is_a_domain_of_its_own() {
    let c = Cluster::new(&["", "", "a", "a"]);
    let mut placement = Placement::new(c.table.brokers(), |_, _| true);
    assert_eq!(placement.open_domains(), 3);
    let mut brokers = placement.place(Uuid::nil(), 3);
    brokers.sort_unstable();
    assert_eq!(brokers, [1, 2, 3]);
    assert_eq!(placement.overfull(&[1, 2, 3]), None);
    let overfull = placement.overfull(&[1, 3, 4]).unwrap();
    assert_eq!(placement.rack(overfull.domain), "a");
}

#[test]
fn a_new_topic_does_not_wait_for_a_broker_that_is_away() {
    let mut c = cluster(&[1, 1, 1]);
    let config = HashMap::new();
    let live = BTreeSet::from([1, 3]);
    let new = |name, replication_factor| NewTopic {
        name,
        partitions: 6,
        replication_factor,
        config: &config,
        live: &live,
        id: Uuid::new_v4(),
        now_ms: 1,
    };
    let create = plan::create_topic(&c.table, &new("two", 2), &bounds()).unwrap();
    c.apply(create).unwrap();
    assert_eq!(c.table.replicas_on(2), 0);
    let two = c.table.topic_named("two").unwrap().clone();
    let grow = plan::add_partitions(&c.table, &two, 9, &live, &bounds()).unwrap();
    c.apply(grow).unwrap();
    assert_eq!(c.table.replicas_on(2), 0);
    // Where those that live are too few, a majority of them has to do.
    let create = plan::create_topic(&c.table, &new("three", 3), &bounds()).unwrap();
    c.apply(create).unwrap();
    assert_eq!(c.table.replicas_on(2), 6);
}
