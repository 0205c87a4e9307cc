//! Changes of the membership, interrupted at every step.

use timberline_consensus::{Body, Change, Envelope, Refused, Role, VoteReply};

use super::world::{TAG, World, member};

fn change(world: &mut World, leader: u64, changes: Vec<Change>) -> Result<u64, Refused> {
    let index = world.group(leader).propose_membership(5, changes, 0)?;
    world.turn(leader);
    Ok(index)
}

fn voters(world: &World, node: u64) -> Vec<u64> {
    let membership = world.groups[&node].membership();
    let mut voters: Vec<_> = membership.voters.iter().map(|m| m.node).collect();
    voters.sort_unstable();
    voters
}

#[test]
fn a_learner_is_added_follows_and_gets_a_vote() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.settle();
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    assert_eq!(world.committed(4), ["a"]);
    assert_eq!(voters(&world, 4), [1, 2, 3]);
    // A learner does not count: two of three voters are needed.
    world.slow.extend([2, 3]);
    world.propose(1, "b").unwrap();
    world.settle();
    assert_eq!(world.committed(1), ["a"]);
    world.slow.clear();
    world.pass(5);
    change(&mut world, 1, vec![Change::AddVoter(member(4))]).unwrap();
    world.pass(10);
    for node in 1..=4 {
        assert_eq!(voters(&world, node), [1, 2, 3, 4]);
    }
}

#[test]
fn voters_are_exchanged_through_a_joint_configuration() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    change(
        &mut world,
        1,
        vec![Change::AddVoter(member(4)), Change::Remove(3)],
    )
    .unwrap();
    world.pass(10);
    assert_eq!(voters(&world, 1), [1, 2, 4]);
    assert!(!world.groups[&1].membership().is_joint());
    world.groups.remove(&3);
    world.propose(1, "a").unwrap();
    world.pass(5);
    assert_eq!(world.committed(4), ["a"]);
}

#[test]
fn a_joint_configuration_needs_both_majorities() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    for node in [4, 5, 6] {
        world.add_empty(node);
        change(&mut world, 1, vec![Change::AddLearner(member(node))]).unwrap();
        world.pass(5);
    }
    let changes = [4, 5, 6].map(|n| Change::AddVoter(member(n))).into_iter();
    let changes = changes
        .chain([Change::Remove(2), Change::Remove(3)])
        .collect();
    change(&mut world, 1, changes).unwrap();
    world.settle();
    // Applied, and left at the next tick of the leader; until then two of {1,2,3} and three of {1,4,5,6} are needed.
    assert!(world.groups[&1].membership().is_joint());
    world.slow.extend([2, 3]);
    world.propose(1, "a").unwrap();
    world.settle();
    assert!(
        world.committed(1).is_empty(),
        "the old voters' majority is missing"
    );
    world.slow.clear();
    world.slow.extend([4, 5, 6]);
    world.turn(2);
    world.turn(3);
    world.propose(1, "b").unwrap();
    world.settle();
    assert!(
        !world.committed(1).contains(&"b".to_owned()),
        "the new voters' majority is missing"
    );
    world.slow.clear();
    world.pass(10);
    assert_eq!(world.committed(1), ["a", "b"]);
    assert_eq!(voters(&world, 1), [1, 4, 5, 6]);
}

#[test]
fn whatever_step_a_change_is_interrupted_at_the_next_leader_finishes_it() {
    // The leader dies after so many deliveries; whoever leads next is in the old or the new membership, and a joint one
    // ends by itself.
    for deliveries in 0..40 {
        let mut world = World::of(&[1, 2, 3]);
        world.elect(1);
        world.add_empty(4);
        change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
        world.pass(10);
        let changes = vec![Change::AddVoter(member(4)), Change::Remove(3)];
        change(&mut world, 1, changes).unwrap();
        for _ in 0..deliveries {
            if !world.deliver() {
                world.tick(1);
                world.turn(1);
            }
        }
        world.restart(1);
        world.cut_off.insert(1);
        world.wire.clear();
        world.pass(80);
        let leader = world.leader();
        let leader = leader.filter(|&l| l != 1);
        let leader = leader.unwrap_or_else(|| panic!("no leader after {deliveries} deliveries"));
        let membership = world.groups[&leader].membership();
        assert!(
            !membership.is_joint(),
            "after {deliveries} deliveries: {membership:?}"
        );
        world.propose(leader, "after").unwrap();
        world.pass(5);
        assert_eq!(world.committed(leader), ["after"]);
        world.cut_off.clear();
        world.pass(20);
        assert_eq!(world.committed(1), ["after"]);
    }
}

#[test]
fn a_leader_that_steps_down_inside_a_transfer_leaves_one_leader() {
    for deliveries in 0..12 {
        let mut world = World::of(&[1, 2, 3]);
        world.elect(1);
        world.propose(1, "a").unwrap();
        world.settle();
        world.group(1).transfer(2);
        world.turn(1);
        for _ in 0..deliveries {
            world.deliver();
        }
        world.restart(1);
        world.pass(80);
        let leader = world.leader().unwrap();
        world.propose(leader, "b").unwrap();
        world.pass(5);
        for node in 1..=3 {
            assert_eq!(
                world.committed(node),
                ["a", "b"],
                "after {deliveries} deliveries"
            );
        }
    }
}

#[test]
fn changes_that_do_not_fit_are_refused_and_leave_nothing_in_the_log() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    let last = world.written(1).len();
    let refused = |result: Result<u64, Refused>| matches!(result, Err(Refused::Membership(_)));
    let voter = |node| Change::AddVoter(member(node));
    assert!(refused(change(&mut world, 1, Vec::new())), "not joint");
    let all = vec![Change::Remove(1), Change::Remove(2), Change::Remove(3)];
    assert!(refused(change(&mut world, 1, all)), "nobody left");
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    assert!(
        refused(change(&mut world, 1, vec![voter(5)])),
        "one at a time"
    );
    world.settle();
    assert!(refused(world.group(1).propose_membership(
        4,
        vec![Change::AddLearner(member(5))],
        0
    )));
    assert_eq!(world.written(1).len(), last);
    assert!(matches!(
        change(&mut world, 2, vec![voter(4)]),
        Err(Refused::NotLeader { .. })
    ));
}

#[test]
fn a_leader_that_is_removed_commits_its_removal_and_goes() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    change(&mut world, 1, vec![Change::Remove(1)]).unwrap();
    world.settle();
    assert_ne!(world.leader(), Some(1));
    world.pass(60);
    let leader = world.leader().unwrap();
    assert_ne!(leader, 1);
    assert_eq!(voters(&world, leader), [2, 3]);
}

#[test]
fn the_membership_is_found_again_after_a_restart() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    for node in 1..=4 {
        let before = world.groups[&node].membership().clone();
        world.restart(node);
        assert_eq!(*world.groups[&node].membership(), before);
    }
}

/// Whether the leader says that members who left may go.
fn kept(world: &World, leader: u64) -> bool {
    world.groups[&leader].view().membership_kept
}

#[test]
fn who_leaves_stays_until_those_who_stay_know_it_for_good() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    let exchange = vec![Change::AddVoter(member(4)), Change::Remove(3)];
    change(&mut world, 1, exchange).unwrap();
    for _ in 0..200 {
        if kept(&world, 1) && voters(&world, 1) == [1, 2, 4] {
            break;
        }
        world.pass(1);
    }
    assert!(kept(&world, 1));
    assert!(!kept(&world, 2), "only a leader knows");
    // Power fails everywhere, the leader does not come back, and the one that left is gone: the others need nobody else.
    world.crash(1);
    world.crash(3);
    world.restart(2);
    world.restart(4);
    for node in [2, 4] {
        assert_eq!(voters(&world, node), [1, 2, 4]);
    }
    world.pass(60);
    let leads = |node: u64| world.groups[&node].role() == Role::Leader;
    assert!(leads(2) || leads(4));
}

#[test]
fn a_member_that_answers_but_does_not_know_yet_is_waited_for() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    world.slow.insert(2);
    let exchange = vec![Change::AddVoter(member(4)), Change::Remove(3)];
    change(&mut world, 1, exchange).unwrap();
    world.pass(10);
    assert!(!world.groups[&1].membership().is_joint(), "3 and 4 have it");
    assert!(!kept(&world, 1), "2 answers, and has synced nothing");
    world.slow.clear();
    world.pass(10);
    assert!(kept(&world, 1));
}

#[test]
fn a_member_that_is_away_is_not_waited_for() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.add_empty(4);
    change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(10);
    world.crash(2);
    let exchange = vec![Change::AddVoter(member(4)), Change::Remove(3)];
    change(&mut world, 1, exchange).unwrap();
    world.pass(60);
    assert!(!world.groups[&1].membership().is_joint());
    assert!(kept(&world, 1));
    // It comes back with the old membership; one of the two that know dies; the other tells it.
    world.crash(3);
    world.restart(2);
    world.crash(1);
    world.pass(100);
    assert_eq!(voters(&world, 2), [1, 2, 4]);
    let leads = |node: u64| world.groups[&node].role() == Role::Leader;
    assert!(leads(2) || leads(4));
}

#[test]
fn a_membership_that_the_leader_itself_has_not_applied_is_not_kept() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.pass(10);
    assert!(world.group(1).is_membership_kept());
    // Committed by the others, while the leader's own disk still holds it up.
    world.slow.insert(1);
    world.add_empty(4);
    let index = change(&mut world, 1, vec![Change::AddLearner(member(4))]).unwrap();
    world.pass(20);
    assert!(world.group(1).commit_index() >= index);
    assert_eq!(world.group(1).membership().broker_of(4), None);
    assert!(
        !world.group(1).is_membership_kept(),
        "4 would be taken for one that left"
    );
    world.slow.clear();
    world.turn(1);
    world.pass(20);
    assert!(world.group(1).is_membership_kept());
    assert!(world.group(1).membership().broker_of(4).is_some());
}

#[test]
fn a_refusal_of_a_lower_term_still_tells_what_is_committed() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    let index = world.propose(1, "a").unwrap();
    world.settle();
    assert_eq!(world.group(1).commit_index(), index);
    assert!(
        world.group(2).commit_index() < index,
        "it has the record, and not the news"
    );
    // One that was removed stays at the term in which it was: it may be the only one that knows.
    world.group(2).campaign();
    world.turn(2);
    let (term, commit) = (world.group(2).term(), index);
    let refusal = |commit_term| Envelope {
        group: TAG,
        from: 1,
        to: 2,
        term: term - 1,
        body: Body::PreVoteReply(VoteReply {
            granted: false,
            commit,
            commit_term,
        }),
    };
    world.group(2).step(refusal(term + 1)).unwrap();
    world.turn(2);
    assert!(
        world.group(2).commit_index() < index,
        "of another entry than it has"
    );
    world.group(2).step(refusal(term)).unwrap();
    world.turn(2);
    assert_eq!(world.group(2).commit_index(), index);
    assert_eq!(world.group(2).role(), Role::Follower);
}
