//! What becomes of entries.

use timberline_consensus::{Refused, Role};

use super::world::World;

#[test]
fn an_entry_is_committed_when_a_majority_has_synced_it_the_leader_among_them_or_not() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.slow.insert(1);
    world.propose(1, "a").unwrap();
    world.settle();
    assert_eq!(world.committed(1), ["a"]);
    let disk = world.logs[&1].disk();
    assert!(disk.durable < disk.frames.len() as u64);
}

#[test]
fn an_entry_on_a_minority_is_not_committed() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.slow.extend([2, 3]);
    world.propose(1, "a").unwrap();
    world.settle();
    assert!(world.committed(1).is_empty());
    assert_eq!(world.written(2), ["a"]);
}

#[test]
fn the_tail_that_a_dead_leader_kept_to_itself_is_cut_when_it_returns() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "kept").unwrap();
    world.settle();
    world.cut_off.insert(1);
    world.propose(1, "lost 1").unwrap();
    world.propose(1, "lost 2").unwrap();
    world.wire.clear();
    world.pass(40);
    let leader = world.leader().unwrap();
    assert_ne!(leader, 1);
    world.propose(leader, "new").unwrap();
    world.settle();
    assert_eq!(world.written(1), ["kept", "lost 1", "lost 2"]);
    world.cut_off.clear();
    world.pass(10);
    assert_eq!(world.written(1), ["kept", "new"]);
    assert_eq!(world.committed(1), ["kept", "new"]);
}

#[test]
fn a_late_sync_of_a_cut_entry_does_not_count_for_the_one_in_its_place() {
    // ABA: index 3 is written twice at replica 2; the sync that began for the first must not acknowledge the second.
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.settle();
    world.slow.insert(2);
    world.cut_off.insert(3);
    world.propose(1, "old").unwrap();
    world.settle();
    assert_eq!(world.written(2), ["old"]);
    world.cut_off.clear();
    world.cut_off.insert(1);
    // 3 never saw "old"; 2 does not stand, because its sync hangs, but votes once it is asked.
    world.slow.clear();
    world.slow.insert(2);
    for _ in 0..40 {
        world.tick(3);
        world.turn(3);
        world.settle();
    }
    // The vote of 2 waits for its disk: it ends now, with what was written by then.
    world.logs[&2].sync();
    world.turn(2);
    world.settle();
    if world.leader() != Some(3) {
        // "old" makes 2 the more complete one: then it leads, and nothing was cut.
        return;
    }
    world.propose(3, "new").unwrap();
    world.settle();
    assert_eq!(world.written(2), ["new"]);
    assert!(world.committed(3).is_empty(), "2 has not synced it");
    world.logs[&2].sync();
    world.turn(2);
    world.settle();
    assert_eq!(world.committed(3), ["new"]);
}

#[test]
fn acceptances_of_entries_that_were_cut_are_never_told() {
    let mut world = World::of(&[1, 2, 3, 4, 5]);
    world.elect(1);
    world.slow.insert(2);
    world.cut_off.extend([3, 4, 5]);
    world.propose(1, "a").unwrap();
    world.propose(1, "b").unwrap();
    world.settle();
    world.cut_off = [1].into();
    world.pass(60);
    let leader = world.leader().filter(|&l| l != 1).unwrap();
    world.propose(leader, "c").unwrap();
    world.settle();
    assert_eq!(world.committed(leader), ["c"]);
    assert!(
        world.written(2).is_empty(),
        "the new leader's no-op has cut them off"
    );
    world.seen.clear();
    world.slow.clear();
    world.turn(2);
    world.cut_off.clear();
    world.settle();
    assert!(
        !world
            .seen
            .iter()
            .any(|line| line.starts_with("2→1 t2 AppendReply")),
        "{:?}",
        world.seen
    );
}

#[test]
fn a_power_loss_of_everybody_keeps_what_was_committed() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    for n in 0..20 {
        world.slow = [1 + n % 3].into();
        world.propose(1, &n.to_string()).unwrap();
        world.settle();
        if n % 3 == 0 {
            world.slow.clear();
            world.pass(1);
        }
    }
    let committed = world.committed(1);
    assert!(committed.len() > 10);
    world.slow.clear();
    world.wire.clear();
    for node in [1, 2, 3] {
        world.restart(node);
    }
    world.pass(60);
    let leader = world.leader().unwrap();
    let now = world.committed(leader);
    assert_eq!(now[..committed.len()], committed);
}

#[test]
fn a_follower_refuses_a_proposal_and_names_the_leader() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(2);
    let refused = world.propose(1, "a").unwrap_err();
    assert!(matches!(refused, Refused::NotLeader { leader: Some(2) }));
    assert!(world.wire.is_empty(), "nothing is forwarded");
}

#[test]
fn a_leader_without_space_refuses_and_nothing_is_in_the_log() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.logs[&1].disk().full = true;
    assert!(matches!(world.propose(1, "a"), Err(Refused::Storage(_))));
    assert!(world.written(1).is_empty());
    world.logs[&1].disk().full = false;
    world.propose(1, "a").unwrap();
    world.settle();
    assert_eq!(world.committed(1), ["a"]);
}

#[test]
fn a_follower_without_space_drops_entries_and_gets_them_again() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.logs[&3].disk().full = true;
    let index = world.propose(1, "a").unwrap();
    // The harness expects every step to be taken: this one is dropped.
    while let Some(envelope) = world.wire.pop_front() {
        let to = envelope.to;
        let _ = world.group(to).step(envelope);
        world.turn(to);
    }
    assert_eq!(world.committed(1), ["a"]);
    assert!(world.written(3).is_empty());
    world.logs[&3].disk().full = false;
    world.pass(10);
    assert_eq!(world.group(3).commit_index(), index);
    assert_eq!(world.committed(3), ["a"]);
}

#[test]
fn a_big_backlog_goes_in_messages_of_bounded_size() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.cut_off.insert(3);
    let text = "x".repeat(300 << 10);
    for _ in 0..20 {
        world.propose(1, &text).unwrap();
        world.settle();
    }
    world.cut_off.clear();
    for _ in 0..60 {
        let largest = world.wire.iter().map(|e| e.payload_bytes()).max();
        assert!(largest.unwrap_or(0) < 2 << 20);
        world.pass(1);
    }
    assert_eq!(world.committed(3).len(), 20);
}

#[test]
fn replicas_agree_on_every_byte() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.pass(5);
    world.elect_other(2);
    world.propose(2, "b").unwrap();
    world.pass(5);
    let frames = |node| world.logs[&node].disk().frames.clone();
    assert_eq!(frames(1), frames(2));
    assert_eq!(frames(1), frames(3));
    assert_eq!(world.groups[&1].role(), Role::Follower);
}

impl World {
    fn elect_other(&mut self, node: u64) {
        let leader = self.leader().unwrap();
        self.group(leader).transfer(node);
        self.turn(leader);
        self.settle();
        assert_eq!(self.leader(), Some(node));
    }
}
