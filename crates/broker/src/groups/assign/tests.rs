//! What each assignor promises, over random questions.

use std::rc::Rc;

use proptest::prelude::*;

use super::*;

struct Question {
    racks: Vec<Vec<Box<[Rack]>>>,
    wishes: Vec<(Rc<[u32]>, Option<Rack>)>,
    held: Vec<u32>,
}

impl Question {
    /// Topics with this many partitions, members that all want all of them.
    fn equal(partitions: &[usize], members: usize) -> Question {
        let all: Rc<[u32]> = (0..partitions.len() as u32).collect();
        let racks = |count: &usize| vec![Box::<[Rack]>::default(); *count];
        Question {
            racks: partitions.iter().map(racks).collect(),
            wishes: vec![(all, None); members],
            held: vec![NONE; partitions.iter().sum()],
        }
    }

    fn demand(&self) -> Demand<'_> {
        let mut base = 0;
        let topics = self.racks.iter().map(|racks| {
            let topic = TopicOf { racks, base };
            base += racks.len() as u32;
            topic
        });
        let topics = topics.collect();
        let wish = |(topics, rack): &(Rc<[u32]>, Option<Rack>)| Wish {
            topics: Rc::clone(topics),
            rack: *rack,
        };
        Demand {
            members: self.wishes.iter().map(wish).collect(),
            topics,
            held: self.held.clone(),
        }
    }

    fn answer(&self, assignor: Assignor) -> Vec<u32> {
        assign(assignor, &self.demand())
    }
}

fn counts(owners: &[u32], members: usize) -> Vec<usize> {
    let mut counts = vec![0_usize; members];
    for owner in owners {
        counts[*owner as usize] += 1;
    }
    counts
}

fn moved(held: &[u32], owners: &[u32]) -> usize {
    let pairs = held.iter().zip(owners);
    pairs
        .filter(|(before, after)| **before != NONE && before != after)
        .count()
}

/// Moves that any level assignment needs: what members hold beyond their share, where as many as there is a rest may keep one more.
fn moves_needed(held: &[u32], members: usize) -> usize {
    let mut counts = vec![0_usize; members];
    for owner in held.iter().filter(|owner| **owner != NONE) {
        counts[*owner as usize] += 1;
    }
    let (each, rest) = (held.len() / members, held.len() % members);
    let excess: usize = counts.iter().map(|count| count.saturating_sub(each)).sum();
    let over = counts.iter().filter(|count| **count > each).count();
    excess - over.min(rest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sticky_is_level_and_moves_no_more_than_that_needs(
        partitions in prop::collection::vec(1_usize..40, 1..6),
        members in 1_usize..12,
        seed in prop::collection::vec(0_u32..14, 240),
    ) {
        let mut question = Question::equal(&partitions, members);
        for (held, seed) in question.held.iter_mut().zip(seed) {
            *held = if (seed as usize) < members { seed } else { NONE };
        }
        let owners = question.answer(Assignor::Sticky);
        let counts = counts(&owners, members);
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        prop_assert_eq!(moved(&question.held, &owners), moves_needed(&question.held, members));
        // Asked again, nothing moves.
        question.held.clone_from(&owners);
        prop_assert_eq!(question.answer(Assignor::Sticky), owners);
    }

    #[test]
    fn nobody_gets_what_it_did_not_ask_for(
        partitions in prop::collection::vec(1_usize..20, 1..6),
        wishes in prop::collection::vec((prop::collection::btree_set(0_u32..6, 0..6), prop::option::of(0_u16..3)), 1..10),
        seed in prop::collection::vec(0_u32..14, 120),
    ) {
        let mut question = Question::equal(&partitions, 0);
        for (topics, rack) in wishes {
            let topics = topics.into_iter().filter(|topic| (*topic as usize) < partitions.len());
            question.wishes.push((topics.collect(), rack));
        }
        for (held, seed) in question.held.iter_mut().zip(seed) {
            *held = if (seed as usize) < question.wishes.len() { seed } else { NONE };
        }
        for racks in question.racks.iter_mut().flatten().enumerate() {
            *racks.1 = [racks.0 as u16 % 3, (racks.0 as u16 + 1) % 4].into();
        }
        let demand = question.demand();
        let topic_of = demand.topic_of();
        for assignor in Assignor::ALL {
            let owners = question.answer(assignor);
            for (at, owner) in owners.iter().enumerate() {
                let wanted = |wish: &Wish| wish.topics.contains(&topic_of[at]);
                if *owner == NONE {
                    prop_assert!(!demand.members.iter().any(wanted));
                } else {
                    prop_assert!(wanted(&demand.members[*owner as usize]));
                }
            }
        }
    }

    #[test]
    fn rack_aware_is_as_level_and_near_where_it_can_be(
        count in 1_usize..60,
        members in prop::collection::vec(prop::option::of(0_u16..3), 1..12),
    ) {
        let mut question = Question::equal(&[count], members.len());
        for (at, racks) in question.racks[0].iter_mut().enumerate() {
            *racks = [at as u16 % 3].into();
        }
        for (wish, rack) in question.wishes.iter_mut().zip(&members) {
            wish.1 = *rack;
        }
        let owners = question.answer(Assignor::RackAware);
        let counts = counts(&owners, members.len());
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        question.held.clone_from(&owners);
        prop_assert_eq!(question.answer(Assignor::RackAware), owners);
    }
}

#[test]
fn members_in_each_rack_get_what_is_led_there() {
    let mut question = Question::equal(&[90], 6);
    for (at, racks) in question.racks[0].iter_mut().enumerate() {
        let at = at as u16;
        *racks = [at % 3, (at + 1) % 3, (at + 2) % 3].into();
    }
    for (at, wish) in question.wishes.iter_mut().enumerate() {
        wish.1 = Some(at as u16 % 3);
    }
    let demand = question.demand();
    let owners = question.answer(Assignor::RackAware);
    assert_eq!(counts(&owners, 6), [15; 6]);
    for (at, owner) in owners.iter().enumerate() {
        assert_eq!(demand.nearness(0, at as u32, *owner), 2);
    }
}

#[test]
fn ranges_are_contiguous_and_alike_for_like_topics() {
    let question = Question::equal(&[10, 10, 3], 4);
    let owners = question.answer(Assignor::Range);
    assert_eq!(owners[..10], [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]);
    assert_eq!(owners[10..20], owners[..10]);
    assert_eq!(owners[20..], [0, 1, 2]);
}

/// Ten thousand partitions and a thousand members are worked out many times over in the time that one test may take;
/// anything quadratic would not end.
#[test]
fn large_groups_are_no_trouble() {
    for assignor in [Assignor::Sticky, Assignor::RackAware] {
        let mut question = Question::equal(&[1000; 10], 0);
        let all: Rc<[u32]> = (0..10).collect();
        for racks in question.racks.iter_mut().flatten().enumerate() {
            *racks.1 = [racks.0 as u16 % 3].into();
        }
        for member in 0..1000 {
            question.wishes.push((Rc::clone(&all), Some(member % 3)));
            if member % 20 == 19 {
                question.held = question.answer(assignor);
            }
        }
        assert_eq!(counts(&question.held, 1000), [10; 1000]);
    }
}
