//! What peers must not be able to do.

use timberline_consensus::{
    Append, AppendReply, Body, Candidacy, Dropped, Envelope, Mismatch, VoteReply,
};

use super::world::{TAG, World};

fn envelope(from: u64, to: u64, term: u64, body: Body) -> Envelope {
    Envelope {
        group: TAG,
        from,
        to,
        term,
        body,
    }
}

#[test]
fn messages_for_others_are_dropped() {
    let mut world = World::of(&[1, 2, 3]);
    let beat = |from, to| {
        envelope(
            from,
            to,
            2,
            Body::Beat {
                commit: 0,
                quiesce: false,
            },
        )
    };
    for bad in [
        beat(2, 3),
        beat(1, 1),
        beat(0, 1),
        Envelope {
            group: 5,
            ..beat(2, 1)
        },
    ] {
        assert_eq!(world.group(1).step(bad), Err(Dropped::Misaddressed));
    }
}

#[test]
fn a_replica_that_lost_what_it_acknowledged_stops_instead_of_voting() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.pass(5);
    // Its disk went back behind what it told the leader.
    world.groups.remove(&2);
    {
        let mut disk = world.logs[&2].disk();
        disk.frames.truncate(1);
        disk.durable = 1;
        disk.committed = 1;
    }
    world.open(2);
    let beat = envelope(
        1,
        2,
        2,
        Body::Beat {
            commit: 3,
            quiesce: false,
        },
    );
    assert_eq!(world.group(2).step(beat), Err(Dropped::Stopped));
    assert!(world.group(2).stopped().unwrap().contains("lost"));
}

#[test]
fn impossible_numbers_stop_nothing() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.settle();
    let huge = u64::MAX - 1;
    let candidacy = |n| Candidacy {
        last_index: n,
        last_term: n,
        commit: n,
        commit_term: n,
        transfer: true,
    };
    let vote = VoteReply {
        granted: true,
        commit: huge,
        commit_term: huge,
    };
    let refused = |hint| AppendReply {
        index: huge,
        refused: Some(Mismatch {
            hint,
            hint_term: huge,
        }),
        commit: huge,
    };
    let append = |index, term, commit| Append {
        prev_index: index,
        prev_term: term,
        commit,
        frames: Vec::new(),
    };
    let bodies = [
        Body::PreVote(candidacy(huge)),
        Body::Vote(candidacy(huge)),
        Body::VoteReply(vote),
        Body::PreVoteReply(vote),
        Body::AppendReply(refused(huge)),
        Body::AppendReply(refused(0)),
        Body::AppendReply(AppendReply {
            index: huge,
            refused: None,
            commit: huge,
        }),
        Body::Append(append(huge, 2, huge)),
        Body::Append(append(0, huge, 0)),
        Body::Append(append(1, 1, huge)),
        Body::Append(append(50, 2, huge)),
        Body::BeatReply {
            commit: huge,
            quiesced: false,
        },
        Body::TimeoutNow,
    ];
    for node in [1, 2] {
        for term in [0, 1, 2, huge] {
            for body in &bodies {
                for from in [3, 77] {
                    let message = envelope(from, node, term, body.clone());
                    let _ = world.group(node).step(message);
                    world.turn(node);
                    assert_eq!(world.group(node).stopped(), None, "{body:?} in term {term}");
                }
            }
        }
    }
    world.wire.clear();
    world.pass(100);
    let leader = world.leader().unwrap();
    world.propose(leader, "b").unwrap();
    world.pass(5);
    assert_eq!(world.committed(leader), ["a", "b"]);
}

#[test]
fn frames_must_follow_each_other_and_the_message() {
    let mut world = World::of(&[1, 2, 3]);
    world.elect(1);
    world.propose(1, "a").unwrap();
    world.propose(1, "b").unwrap();
    let frames = world.logs[&1].disk().frames[2..].to_vec();
    let append = |prev_index, frames| {
        Body::Append(Append {
            prev_index,
            prev_term: 2,
            commit: 0,
            frames,
        })
    };
    let mut swapped = frames.clone();
    swapped.swap(0, 1);
    let mut short = frames.clone();
    short[1].payload = short[1].payload.slice(..0);
    let mut late = frames.clone();
    late[1].header.term = 9;
    for bad in [
        append(2, swapped),
        append(2, short),
        append(2, late),
        append(7, frames.clone()),
    ] {
        let result = world.group(2).step(envelope(1, 2, 2, bad));
        assert!(matches!(result, Err(Dropped::Malformed(_))), "{result:?}");
    }
    assert_eq!(
        world.group(2).step(envelope(1, 2, 2, append(2, frames))),
        Ok(())
    );
}
