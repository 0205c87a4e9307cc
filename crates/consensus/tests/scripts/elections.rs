//! Who leads, and when it changes.

use timberline_consensus::Role;

use super::world::World;

#[test]
fn an_election_asks_first_and_ends_with_a_committed_no_op() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    assert_eq!(
        world.seen[..8],
        [
            "1→2 t2 PreVote",
            "1→3 t2 PreVote",
            "2→1 t2 PreVoteReply",
            "3→1 t2 PreVoteReply",
            "1→2 t2 Vote",
            "1→3 t2 Vote",
            "2→1 t2 VoteReply",
            "3→1 t2 VoteReply",
        ]
    );
    assert!(world.group(1).is_caught_up());
    assert_eq!(world.group(1).commit_index(), 2);
}

#[test]
fn a_vote_is_told_only_after_its_sync() {
    let mut world = World::of(&[1, 2, 3]);
    world.slow.extend([2, 3]);
    world.group(1).campaign();
    world.turn(1);
    world.settle();
    // Both were asked and have decided; neither may say so yet (INV-5).
    assert_eq!(world.group(1).role(), Role::Candidate);
    assert!(world.seen.iter().any(|line| line == "1→2 t2 Vote"));
    assert!(
        !world
            .seen
            .iter()
            .any(|line| line.contains("VoteReply") && !line.contains("PreVoteReply"))
    );
    world.slow.clear();
    world.turn(2);
    world.settle();
    assert_eq!(world.leader(), Some(1));
}

#[test]
fn a_voter_that_lost_power_before_its_sync_may_vote_again_for_it_told_nobody() {
    let mut world = World::of(&[1, 2, 3]);
    world.cut_off.insert(3);
    world.slow.insert(2);
    world.group(1).campaign();
    world.turn(1);
    world.settle();
    world.restart(2);
    world.slow.clear();
    world.wire.clear();
    assert_eq!(world.group(2).term(), 1);
    world.cut_off.clear();
    world.cut_off.insert(1);
    world.elect(3);
    assert_eq!(world.group(3).term(), 2);
}

#[test]
fn successors_stand_by_rank_and_the_first_one_wins() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(2);
    world.pass(1);
    world.groups.remove(&2);
    // The voter behind the leader stands two ticks after the timeout; the next would four later.
    world.pass(12);
    assert_eq!(world.leader(), None);
    world.pass(2);
    assert_eq!(world.leader(), Some(3));
}

#[test]
fn a_broken_connection_to_the_leader_cuts_the_wait_short() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.pass(1);
    world.groups.remove(&1);
    for node in [2, 3] {
        world.group(node).lost(|lost| lost == 1);
    }
    world.pass(2);
    assert_eq!(world.leader(), Some(2));
}

#[test]
fn a_leader_that_hears_of_nobody_steps_down() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.cut_off.insert(1);
    world.pass(30);
    assert_eq!(world.group(1).role(), Role::Follower);
    // The others have a leader of a later term, and the old one finds back without disturbing it.
    let term = world.groups[&world.leader().unwrap()].term();
    world.cut_off.clear();
    world.pass(30);
    assert_eq!(world.groups[&world.leader().unwrap()].term(), term);
}

#[test]
fn a_replica_that_was_cut_off_disturbs_nobody_when_it_returns() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.cut_off.insert(3);
    world.pass(100);
    world.cut_off.clear();
    world.pass(20);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.group(1).term(), 2);
}

#[test]
fn a_beat_is_answered_while_a_sync_is_under_way() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.slow.extend([2, 3]);
    world.propose(1, "a").unwrap();
    world.settle();
    // A stall much longer than the election timeout does not depose a healthy leader.
    world.pass(60);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.group(1).term(), 2);
    assert_eq!(world.committed(1), Vec::<String>::new());
    world.slow.clear();
    world.pass(5);
    assert_eq!(world.committed(1), ["a"]);
}

#[test]
fn leadership_goes_over_on_request_without_a_timeout() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.settle();
    world.group(1).transfer(3);
    world.turn(1);
    world.settle();
    assert_eq!(world.leader(), Some(3));
    assert_eq!(world.group(1).role(), Role::Follower);
}

#[test]
fn a_sole_voter_leads_at_once_and_needs_no_ticks() {
    let mut world = World::of(&[1]);
    assert_eq!(world.leader(), Some(1));
    assert!(!world.group(1).needs_ticks());
    world.propose(1, "a").unwrap();
    assert_eq!(world.committed(1), ["a"]);
    world.restart(1);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.committed(1), ["a"]);
    assert_eq!(world.group(1).term(), 3);
}

#[test]
fn a_hand_over_to_one_that_is_gone_is_given_up_soon() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.cut_off.insert(2);
    world.group(1).transfer(2);
    world.turn(1);
    assert!(world.propose(1, "a").is_err(), "it is being handed over");
    world.pass(6);
    world.propose(1, "b").unwrap();
    world.pass(1);
    assert_eq!(world.committed(1), ["b"]);
    // Told that the successor is gone, it does not wait at all.
    world.group(1).transfer(2);
    world.group(1).lost(|node| node == 2);
    world.propose(1, "c").unwrap();
}
