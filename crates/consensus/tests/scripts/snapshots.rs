//! Followers that lack what no leader has as entries any more.

use timberline_consensus::{Change, NotInstalled, Role, SnapshotOffer};

use super::world::{World, member};

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn propose_all(world: &mut World, leader: u64, range: std::ops::Range<u32>) {
    for text in texts(range) {
        world.propose(leader, &text).unwrap();
        world.settle();
    }
}

/// The leader seals what it has, and forgets all of it but `keep` entries.
fn forget(world: &World, node: u64, keep: u64) {
    let mut disk = world.logs[&node].disk();
    disk.close();
    let upto = disk.committed - keep;
    disk.drop_upto(upto);
}

fn last(world: &World, node: u64) -> (u64, u64) {
    let group = &world.groups[&node];
    (group.view().last_index, group.commit_index())
}

/// Replica 3 of three was away while 1 led, wrote, and forgot.
fn lagging() -> World {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    propose_all(&mut world, 1, 0..3);
    world.cut_off.insert(3);
    propose_all(&mut world, 1, 3..10);
    forget(&world, 1, 2);
    propose_all(&mut world, 1, 10..12);
    world.wire.clear();
    world.cut_off.clear();
    world.pass(8);
    world
}

fn the_offer(world: &mut World) -> (u64, SnapshotOffer) {
    assert_eq!(world.offers.len(), 1, "{:?}", world.offers);
    world.offers.remove(0)
}

#[test]
fn a_follower_beyond_the_logs_start_gets_a_snapshot_and_the_tail_as_entries() {
    let mut world = lagging();
    assert_eq!(world.offers.len(), 1);
    let mark = world.offers[0].1.mark.clone();
    assert!(world.groups[&1].peers()[2].in_snapshot);
    world.pass(20);
    assert_eq!(world.offers.len(), 1, "one at a time");
    world.ship();
    world.pass(8);
    assert_eq!(world.committed(3), texts(0..12)[8..]);
    assert!(mark.index < last(&world, 1).0, "the tail came by Raft");
    assert_eq!(last(&world, 3), last(&world, 1));
    assert!(!world.groups[&1].peers()[2].in_snapshot);
    // And it counts again.
    world.cut_off.insert(2);
    propose_all(&mut world, 1, 12..13);
    assert_eq!(world.committed(1).last().unwrap(), "12");
}

#[test]
fn who_has_the_most_of_a_log_gets_the_rest_as_entries_and_others_get_segments() {
    const MIB: u64 = 1 << 20;
    // Replica 3 lacks all of the second segment, which is larger than what is always sent as entries.
    for (first_bytes, segments) in [(300 * MIB, false), (50 * MIB, true)] {
        let mut world = World::of(&[1, 2, 3]);
        world.elect(1);
        propose_all(&mut world, 1, 0..3);
        world.cut_off.insert(3);
        propose_all(&mut world, 1, 3..10);
        {
            let mut disk = world.logs[&1].disk();
            disk.close();
            disk.sealed = vec![(1, first_bytes), (6, 100 * MIB)];
        }
        world.wire.clear();
        world.cut_off.clear();
        world.pass(8);
        assert_eq!(world.offers.len(), usize::from(segments));
        assert_eq!(last(&world, 3) == last(&world, 1), !segments);
    }
}

#[test]
fn a_learner_is_added_long_after_the_logs_beginning_is_gone() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    propose_all(&mut world, 1, 0..10);
    for node in [1, 2, 3] {
        forget(&world, node, 2);
    }
    world.add_empty(4);
    let learner = vec![Change::AddLearner(member(4))];
    world.group(1).propose_membership(5, learner, 0).unwrap();
    world.turn(1);
    // The boundary that there is does not name it: nothing is offered from there.
    world.closes = false;
    world.pass(20);
    assert!(world.offers.is_empty());
    world.closes = true;
    world.pass(20);
    assert_eq!(world.offers.len(), 1);
    world.ship();
    propose_all(&mut world, 1, 10..12);
    world.pass(8);
    assert_eq!(last(&world, 4), last(&world, 1));
    let voter = vec![Change::AddVoter(member(4))];
    world.group(1).propose_membership(6, voter, 0).unwrap();
    world.turn(1);
    world.pass(8);
    for node in [1, 2, 3, 4] {
        assert!(world.groups[&node].membership().is_voter(4));
        assert_eq!(world.groups[&node].revision(), 6);
    }
    // It can lead, and be found again.
    world.restart(4);
    world.pass(4);
    world.group(1).transfer(4);
    world.turn(1);
    world.settle();
    assert_eq!(world.leader(), Some(4));
    propose_all(&mut world, 4, 12..13);
    world.pass(8);
    assert_eq!(world.committed(1).last().unwrap(), "12");
}

#[test]
fn the_answer_waits_for_the_disk() {
    let mut world = lagging();
    world.slow.insert(3);
    world.seen.clear();
    world.ship();
    world.pass(4);
    let answered = |world: &World| {
        world
            .seen
            .iter()
            .any(|l| l.starts_with("3→1") && l.contains("AppendReply"))
    };
    assert!(!answered(&world), "{:?}", world.seen);
    assert_eq!(world.groups[&1].peers()[2].matched, 5);
    world.slow.clear();
    world.turn(3);
    world.settle();
    world.pass(8);
    assert!(answered(&world));
    assert_eq!(last(&world, 3), last(&world, 1));
}

#[test]
fn a_snapshot_replaces_a_tail_that_nobody_else_has() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(3);
    propose_all(&mut world, 3, 0..2);
    world.cut_off.insert(3);
    for text in ["lost 1", "lost 2"] {
        world.propose(3, text).unwrap();
    }
    world.wire.clear();
    world.pass(40);
    let leader = world.leader().filter(|&l| l != 3).unwrap();
    propose_all(&mut world, leader, 2..9);
    forget(&world, leader, 1);
    world.cut_off.clear();
    world.pass(8);
    assert_eq!(world.written(3), ["0", "1", "lost 1", "lost 2"]);
    world.ship();
    world.pass(8);
    assert_eq!(last(&world, 3), last(&world, leader));
    assert_eq!(world.written(3), texts(8..9));
    propose_all(&mut world, leader, 9..10);
    world.pass(8);
    assert_eq!(world.committed(3), texts(8..10));
}

#[test]
fn the_leader_changes_while_a_snapshot_is_shipped() {
    let mut world = lagging();
    let (from, offer) = the_offer(&mut world);
    let staged = world.staged(from, &offer);
    forget(&world, 2, 2);
    world.group(1).transfer(2);
    world.turn(1);
    world.settle();
    assert_eq!(world.leader(), Some(2));
    propose_all(&mut world, 2, 12..13);
    // What is staged is committed, whoever leads: the new leader is answered.
    world.group(3).install(from, offer.term, staged).unwrap();
    world.turn(3);
    assert!(world.wire.iter().any(|e| (e.from, e.to) == (3, 2)));
    world.pass(8);
    assert!(last(&world, 3).1 >= offer.mark.index);
    // The new one had offered its own, which ends further on.
    assert!(
        world
            .offers
            .iter()
            .all(|(by, own)| *by == 2 && own.mark.index > offer.mark.index)
    );
    world.ship();
    world.pass(8);
    assert_eq!(last(&world, 3), last(&world, 2));
    assert_eq!(world.groups[&3].leader(), Some(2));
    // The old one reports to nobody.
    world.group(1).snapshot_sent(3, true);
    world.pass(4);
    assert!(world.offers.is_empty());
}

#[test]
fn without_a_leader_a_snapshot_waits() {
    let mut world = lagging();
    let (from, offer) = the_offer(&mut world);
    let staged = world.staged(from, &offer);
    world.cut_off.insert(3);
    // It stands, alone, in a term of its own.
    world.group(3).campaign();
    world.turn(3);
    world.wire.clear();
    world.restart(3);
    let term = world.groups[&3].term();
    let outcome = world.group(3).install(from, 1, staged);
    match (outcome, term) {
        (Err(NotInstalled::NoLeader(staged)), _) => {
            world.cut_off.clear();
            world.pass(40);
            let outcome = world.group(3).install(from, 1, staged);
            assert!(outcome.is_ok(), "{outcome:?}");
            world.turn(3);
            world.pass(40);
        }
        (outcome, term) => panic!("{outcome:?} in term {term}"),
    }
    let leader = world.leader().unwrap();
    assert_eq!(last(&world, 3), last(&world, leader));
}

#[test]
fn the_follower_restarts_at_every_step() {
    for synced in [false, true] {
        let mut world = lagging();
        let (from, offer) = the_offer(&mut world);
        let staged = world.staged(from, &offer);
        if !synced {
            world.slow.insert(3);
        }
        world.group(3).install(from, offer.term, staged).unwrap();
        world.turn(3);
        world.slow.clear();
        world.wire.clear();
        world.restart(3);
        let at = world.logs[&3].disk().committed;
        assert_eq!(at == offer.mark.index, synced);
        // Nobody told the leader anything; its transport has.
        world.group(1).snapshot_sent(3, false);
        world.pass(20);
        // Offered again; who has it says so.
        assert_eq!(world.offers.len(), 1);
        world.ship();
        world.pass(8);
        assert!(world.offers.is_empty());
        assert_eq!(last(&world, 3), last(&world, 1));
    }
}

#[test]
fn a_failed_snapshot_is_offered_again() {
    let mut world = lagging();
    for _ in 0..3 {
        let (from, offer) = the_offer(&mut world);
        world.group(from).snapshot_sent(offer.to, false);
        world.turn(from);
        world.settle();
        world.pass(12);
    }
    world.ship();
    world.pass(8);
    assert_eq!(last(&world, 3), last(&world, 1));
}

#[test]
fn an_old_snapshot_that_arrives_late_is_ignored() {
    let mut world = lagging();
    let (from, offer) = the_offer(&mut world);
    let late = world.staged(from, &offer);
    let staged = late.clone();
    world.group(3).install(from, offer.term, staged).unwrap();
    world.turn(3);
    world.group(1).snapshot_sent(3, true);
    world.pass(8);
    let before = last(&world, 3);
    assert!(before.0 > offer.mark.index);
    let outcome = world.group(3).install(from, offer.term, late.clone());
    assert!(matches!(outcome, Err(NotInstalled::Stale)));
    let outcome = world.group(1).install(2, offer.term, late);
    assert!(
        matches!(outcome, Err(NotInstalled::Stale)),
        "a leader has it all"
    );
    assert_eq!(last(&world, 3), before);
    assert_eq!(world.groups[&1].role(), Role::Leader);
}

#[test]
fn a_snapshot_of_entries_that_are_there_commits_them() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    propose_all(&mut world, 1, 0..4);
    // 3 has the entries and does not know that they are committed.
    world.propose(1, "4").unwrap();
    while world.groups[&3].view().last_index < last(&world, 1).0 {
        assert!(world.deliver());
    }
    world.wire.retain(|e| e.to != 3);
    let to_others: Vec<_> = world.wire.iter().map(|e| e.to).collect();
    assert!(to_others.contains(&1));
    world.cut_off.insert(3);
    world.settle();
    let (index, committed) = last(&world, 1);
    assert_eq!(index, committed);
    assert!(last(&world, 3).1 < committed);
    world.logs[&1].disk().close();
    let mark = world.logs[&1].disk().boundary.clone().unwrap();
    let offer = SnapshotOffer {
        to: 3,
        term: world.groups[&1].term(),
        mark,
    };
    let staged = world.staged(1, &offer);
    world.group(3).install(1, offer.term, staged).unwrap();
    world.turn(3);
    assert_eq!(last(&world, 3), (index, committed));
    assert_eq!(world.committed(3), texts(0..5));
}

#[test]
fn a_snapshot_that_does_not_name_its_receiver_is_refused_aloud() {
    let mut world = lagging();
    let (from, mut offer) = the_offer(&mut world);
    offer.to = 4;
    world.add_empty(4);
    let staged = world.staged(from, &offer);
    let outcome = world.group(4).install(from, offer.term, staged);
    assert!(matches!(outcome, Err(NotInstalled::Foreign)));
}
