//! `rack-aware`: sticky, near to replicas.
//!
//! Partitions that somebody nearer could hold are offered to those, evenly; then all is levelled as `sticky` does, so that balance is the
//! same. What comes out counts only if it is nearer on the whole than what `sticky` alone would do: without a gain nothing moves.

use super::{Demand, NONE, sticky};

/// How often the outcome is tried to be made nearer still. Each time it must gain, so it ends by itself much sooner.
const ROUNDS_MAX: usize = 16;

pub(super) fn assign(demand: &Demand<'_>) -> Vec<u32> {
    let mut owners = sticky::assign(demand);
    if demand.members.iter().all(|wish| wish.rack.is_none()) {
        return owners;
    }
    let topic_of = demand.topic_of();
    let score = |owners: &[u32]| -> u64 {
        let pairs = owners.iter().enumerate();
        pairs
            .filter(|(_, owner)| **owner != NONE)
            .map(|(at, owner)| u64::from(demand.nearness(topic_of[at], at as u32, *owner)))
            .sum()
    };
    // With different subscriptions levelling may end elsewhere: balance comes first.
    let balance = |owners: &[u32]| -> u64 {
        let mut counts = vec![0_u64; demand.members.len()];
        for owner in owners.iter().filter(|owner| **owner != NONE) {
            counts[*owner as usize] += 1;
        }
        counts.into_iter().map(|count| count * count).sum()
    };
    for _ in 0..ROUNDS_MAX {
        let wanted = wanted(demand, &owners, &topic_of);
        let wanted = sticky::Preference { wanted: &wanted };
        let nearer = sticky::from(demand, &owners, Some(wanted));
        if balance(&nearer) > balance(&owners) || score(&nearer) <= score(&owners) {
            break;
        }
        owners = nearer;
    }
    owners
}

/// For each partition that is not as near to its owner as it could be, who should have it: of the nearest subscribers the
/// one with least, as long as it has no more than its share.
fn wanted(demand: &Demand<'_>, plain: &[u32], topic_of: &[u32]) -> Vec<u32> {
    let subscribers = demand.subscribers();
    // Subscribers of each topic by rack.
    let by_rack: Vec<std::collections::BTreeMap<u16, Vec<u32>>> = subscribers
        .iter()
        .map(|members| {
            let mut by_rack = std::collections::BTreeMap::<u16, Vec<u32>>::new();
            for member in members {
                if let Some(rack) = demand.members[*member as usize].rack {
                    by_rack.entry(rack).or_default().push(*member);
                }
            }
            by_rack
        })
        .collect();
    let mut wanted = vec![NONE; plain.len()];
    let mut counts = vec![0_usize; demand.members.len()];
    let mut nearness = vec![0; plain.len()];
    for (at, owner) in plain.iter().enumerate() {
        if *owner != NONE {
            nearness[at] = demand.nearness(topic_of[at], at as u32, *owner);
            if nearness[at] == 2 {
                counts[*owner as usize] += 1;
            }
        }
    }
    let assigned = plain.iter().filter(|owner| **owner != NONE).count();
    let share = assigned.div_ceil(demand.members.len().max(1));
    // Next to look at in each topic's rack: round robin, so that it costs nothing to find one with room.
    let mut turns = std::collections::HashMap::<(u32, u16), usize>::new();
    for (at, owner) in plain.iter().enumerate() {
        if *owner == NONE || nearness[at] == 2 {
            continue;
        }
        let number = topic_of[at];
        let topic = &demand.topics[number as usize];
        let racks = &topic.racks[at - topic.base as usize];
        let better = racks
            .iter()
            .take(if nearness[at] == 1 { 1 } else { racks.len() });
        for rack in better {
            let Some(members) = by_rack[number as usize].get(rack) else {
                continue;
            };
            let turn = turns.entry((number, *rack)).or_default();
            // Those that are full stay full: skip them once and for all.
            while *turn < members.len() && counts[members[*turn] as usize] >= share {
                *turn += 1;
            }
            if let Some(member) = members.get(*turn) {
                counts[*member as usize] += 1;
                wanted[at] = *member;
                break;
            }
        }
    }
    wanted
}
