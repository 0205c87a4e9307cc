//! Groups in which nothing happens, and what wakes them.

use timberline_consensus::{Role, Timing};

use super::world::World;

/// Three voters led by 1 that have fallen silent.
fn quiet() -> World {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.shards_beat = true;
    world.pass(20);
    assert_eq!(are_quiet(&mut world), [true; 3]);
    world.seen.clear();
    world
}

fn are_quiet(world: &mut World) -> [bool; 3] {
    [1, 2, 3].map(|node| world.group(node).is_quiet())
}

#[test]
fn a_group_in_which_nothing_happens_says_nothing_but_that_now_and_then() {
    let mut world = quiet();
    let renew = Timing::default().renew_ticks;
    world.pass(10 * renew);
    let per_round = 4;
    assert_eq!(world.seen.len(), 10 * per_round, "{:?}", world.seen);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.group(1).term(), world.group(3).term());
    assert!(world.group(1).peers().iter().all(|peer| peer.active));
}

#[test]
fn a_record_wakes_a_group_and_it_falls_silent_again() {
    let mut world = quiet();
    world.propose(1, "one").unwrap();
    world.turn(1);
    assert!(!world.group(1).is_quiet());
    world.settle();
    assert_eq!(are_quiet(&mut world), [false; 3]);
    world.pass(20);
    assert_eq!(are_quiet(&mut world), [true; 3]);
    let last = world.group(1).commit_index();
    assert_eq!(
        [2, 3].map(|node| world.group(node).commit_index()),
        [last; 2]
    );
}

#[test]
fn a_leader_whose_shard_falls_silent_is_replaced_as_soon_as_one_that_beat() {
    let timing = Timing::default();
    let mut world = quiet();
    world.cut_off.insert(1);
    world.pass(timing.election_ticks);
    assert_eq!(world.group(2).role(), Role::Follower);
    assert_eq!(world.group(2).leader(), Some(1), "it may still be there");
    world.pass(timing.first_ticks);
    assert_eq!(world.group(2).role(), Role::Leader);
}

#[test]
fn a_leader_that_was_cut_off_while_silent_steps_down() {
    let timing = Timing::default();
    let mut world = quiet();
    world.cut_off.insert(1);
    world.pass(timing.silent_ticks + timing.election_ticks);
    assert_ne!(world.group(1).role(), Role::Leader);
}

#[test]
fn a_pause_that_is_shorter_than_the_timeout_changes_nothing() {
    let mut world = quiet();
    world.cut_off.insert(1);
    world.pass(Timing::default().election_ticks);
    world.cut_off.clear();
    world.pass(40);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(are_quiet(&mut world), [true; 3]);
    assert_eq!([1, 2, 3].map(|node| world.group(node).term()), [2; 3]);
}

#[test]
fn a_follower_that_starts_again_beside_a_silent_leader_finds_it() {
    let mut world = quiet();
    world.restart(3);
    assert_eq!(world.group(3).leader(), None);
    world.pass(3 * Timing::default().election_ticks);
    assert_eq!(world.group(3).leader(), Some(1));
    assert_eq!(
        world.group(1).term(),
        2,
        "it asked in advance, and was heard"
    );
}

#[test]
fn a_follower_that_is_never_asked_again_stands_whatever_the_shards_say() {
    let mut world = quiet();
    // The leader's group is gone, its shard is not.
    world.groups.remove(&1);
    world.pass(Timing::default().forget_ticks + 2 * Timing::default().election_ticks);
    assert_eq!(world.group(2).role(), Role::Leader);
}

#[test]
fn a_group_whose_follower_lacks_something_stays_awake() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.shards_beat = true;
    world.slow.insert(3);
    world.propose(1, "one").unwrap();
    world.turn(1);
    world.settle();
    world.pass(40);
    assert!(!world.group(1).is_quiet());
    world.slow.clear();
    world.turn(3);
    world.pass(40);
    assert_eq!(are_quiet(&mut world), [true; 3]);
}

#[test]
fn after_a_broken_connection_a_group_falls_silent_again() {
    let mut world = quiet();
    world.group(1).unreachable(2);
    world.group(2).unreachable(1);
    assert_eq!(are_quiet(&mut world), [false, false, true]);
    world.pass(2 * Timing::default().renew_ticks);
    assert_eq!(are_quiet(&mut world), [true; 3]);
    assert_eq!(world.leader(), Some(1));
    assert_eq!([1, 2, 3].map(|node| world.group(node).term()), [2; 3]);
}

#[test]
fn a_leader_that_is_cut_off_while_it_asks_steps_down_as_soon() {
    let timing = Timing::default();
    let mut world = quiet();
    // It asks again, and nobody hears it.
    while world.group(1).is_quiet() {
        world.pass(1);
        if world.seen.iter().any(|line| line.starts_with("1→2")) {
            break;
        }
    }
    world.cut_off.insert(1);
    world.pass(timing.silent_ticks + timing.beat_ticks + timing.election_ticks);
    assert_ne!(world.group(1).role(), Role::Leader);
}
