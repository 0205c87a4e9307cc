//! One behaviour each.

use super::world::*;
use crate::groups::assign::Assignor;
use crate::groups::core::api::*;
use crate::groups::error::Error;
use crate::groups::parts::Parts;
use crate::groups::subscription::Subscription;

fn world() -> World {
    World::new(topics(1, &[("t", 1, 6), ("u", 2, 2), ("__groups", 3, 16)]))
}

fn ended(messages: &[Message]) -> Option<&Error> {
    messages.iter().find_map(|message| match message {
        Message::End(error) => Some(error),
        _ => None,
    })
}

#[test]
fn what_does_not_move_never_stops_and_what_moves_is_released_first() {
    let mut world = world();
    let a = world.join(join("g", "a", "t"));
    let held = world.settle(&[a]);
    assert_eq!(held[&a].1.len(), 6);
    let b = world.join(join("g", "b", "t"));
    world.pass(100);
    let told = world.take(a);
    let Some(Message::Assignment { epoch, parts, .. }) = told.last() else {
        panic!("{told:?}");
    };
    assert_eq!(parts.len(), 3);
    // Until `a` has let go, `b` gets nothing: not even after more heartbeats.
    world.beat(a, Some(held[&a].0));
    world.pass(1000);
    for message in world.take(b) {
        if let Message::Assignment { epoch, parts, .. } = message {
            assert!(parts.is_empty());
            world.beat(b, Some(epoch));
        }
    }
    world.pass(1000);
    assert_eq!(world.take(b), [Message::Beat]);
    world.beat(a, Some(*epoch));
    let held = world.settle(&[a, b]);
    assert_eq!(held[&b].1.len(), 3);
    assert!(held[&b].1.and(parts).is_empty());
    // A graceful leave gives it back at once.
    world.step(Input::Leave {
        link: b,
        will_return: false,
    });
    assert!(world.take(b).contains(&Message::Left));
    world.pass(30);
    let told = world.take(a);
    let Some(Message::Assignment { parts, starts, .. }) = told.last() else {
        panic!("{told:?}");
    };
    assert_eq!((parts.len(), starts.len()), (6, 3));
}

#[test]
fn nothing_is_said_before_it_is_committed_and_nothing_after_a_lost_lead() {
    let mut world = world();
    let link = world.fresh();
    let mine = Box::new(join("g", "a", "t"));
    world.input(Input::Join { link, join: mine });
    assert!(world.told.is_empty());
    world.fail_over();
    world.commit();
    assert!(world.told.is_empty());
    // The successor never heard of it.
    let mut returning = join("g", "x", "t");
    returning.returning = Some(("a".into(), 1));
    let link = world.join(returning);
    assert!(matches!(ended(&world.take(link)), Some(Error::Fenced(_))));
}

#[test]
fn a_member_comes_back_after_a_failover_and_goes_on() {
    let mut world = world();
    let a = world.join(join("g", "a", "t"));
    let b = world.join(join("g", "b", "t"));
    let held = world.settle(&[a, b]);
    let before = &held[&a];
    let first = before.1.iter().next().unwrap();
    let commit = world.commit_as("g", Some(("a", before.0)), vec![item(first, 7)]);
    assert_eq!(commit, Ok(vec![None]));
    world.image(None);
    world.fail_over();
    let mut back = join("g", "x", "t");
    back.returning = Some(("a".into(), before.0));
    back.owned = before.1.clone();
    let link = world.join(back);
    let told = world.take(link);
    let Some(Message::Assignment {
        epoch,
        parts,
        starts,
    }) = told.last()
    else {
        panic!("{told:?}");
    };
    assert_eq!((*epoch, parts, starts.len()), (before.0, &before.1, 0));
    assert_eq!(world.fetch("g").unwrap()[&first], 7);
    // Who does not come back is put out when its session is over, and `a` gets the rest.
    world.beat(link, Some(*epoch));
    world.pass(9_000);
    world.beat(link, Some(*epoch));
    world.pass(2_000);
    assert_eq!(world.settle(&[link])[&link].1.len(), 6);
}

#[test]
fn a_commit_is_taken_from_who_holds_the_partition_at_its_epoch() {
    let mut world = world();
    let a = world.join(join("g", "a", "t"));
    let (epoch, _) = world.settle(&[a])[&a].clone();
    let mine = |offset| vec![item(tp(1, 0), offset)];
    assert_eq!(
        world.commit_as("g", Some(("a", epoch)), mine(10)),
        Ok(vec![None])
    );
    let behind = Some(Error::CommitBehind { committed: 10 });
    assert_eq!(
        world.commit_as("g", Some(("a", epoch)), mine(9)),
        Ok(vec![behind])
    );
    let mut back = item(tp(1, 0), 9);
    back.rewind = true;
    assert_eq!(
        world.commit_as("g", Some(("a", epoch)), vec![back]),
        Ok(vec![None])
    );
    assert_eq!(
        world.commit_as("g", Some(("a", epoch - 1)), mine(11)),
        Ok(vec![Some(Error::NotAssigned)])
    );
    for member in [("a", epoch + 1), ("b", epoch)] {
        let refused = world.commit_as("g", Some(member), mine(11));
        assert!(matches!(refused, Err(Error::Fenced(_))));
    }
    assert_eq!(
        world.commit_as("g", None, mine(11)),
        Err(Error::NotEmpty(1))
    );
    let places = vec![item(tp(1, 6), 1), item(tp(9, 0), 1), item(tp(1, 1), -1)];
    let errors = world.commit_as("g", Some(("a", epoch)), places).unwrap();
    assert!(matches!(errors[0], Some(Error::UnknownPartition { .. })));
    assert!(matches!(errors[1], Some(Error::UnknownTopic(_))));
    assert!(matches!(errors[2], Some(Error::Invalid { .. })));
    // What moved to another and back is not taken at the epoch of before.
    let b = world.join(join("g", "b", "t"));
    let held = world.settle(&[a, b]);
    let moved = held[&b].1.iter().next().unwrap();
    let gone = vec![item(moved, 5)];
    assert_eq!(
        world.commit_as("g", Some(("a", held[&a].0)), gone.clone()),
        Ok(vec![Some(Error::NotAssigned)])
    );
    world.step(Input::Leave {
        link: b,
        will_return: false,
    });
    let held = world.settle(&[a]);
    assert_eq!(
        world.commit_as("g", Some(("a", epoch)), gone.clone()),
        Ok(vec![Some(Error::NotAssigned)])
    );
    assert_eq!(
        world.commit_as("g", Some(("a", held[&a].0)), gone),
        Ok(vec![None])
    );
}

#[test]
fn a_static_member_takes_the_place_of_the_one_before() {
    let mut world = world();
    let fixed = |id: &str| {
        let mut join = join("g", id, "t");
        join.instance = Some("i".into());
        join
    };
    let a = world.join(fixed("a"));
    let other = world.join(join("g", "o", "t"));
    let before = world.settle(&[a, other])[&a].clone();
    let b = world.join(fixed("b"));
    assert_eq!(ended(&world.take(a)), Some(&Error::InstanceFenced));
    let told = world.take(b);
    let Some(Message::Assignment { parts, starts, .. }) = told.last() else {
        panic!("{told:?}");
    };
    assert_eq!((parts, starts.len()), (&before.1, 3));
    assert!(world.take(other).iter().all(|one| *one == Message::Beat));
    let place = before.1.iter().next().unwrap();
    let late = world.commit_as("g", Some(("a", before.0)), vec![item(place, 1)]);
    assert!(matches!(late, Err(Error::Fenced(_))));
    // Away for a while: nobody gets its partitions.
    world.settle(&[b, other]);
    world.step(Input::Leave {
        link: b,
        will_return: true,
    });
    world.pass(1000);
    assert!(world.take(other).iter().all(|one| *one == Message::Beat));
    world.fail_over();
    let c = world.join(fixed("c"));
    assert!(world.settle(&[c])[&c].1 == before.1);
}

#[test]
fn who_is_silent_slow_or_stuck_is_put_out() {
    let mut world = world();
    let a = world.join(join("g", "a", "t"));
    world.settle(&[a]);
    world.pass(10_000);
    assert_eq!(
        ended(&world.take(a)),
        Some(&Error::Fenced("its session ran out"))
    );
    // It hears of nothing more.
    world.beat(a, None);
    assert!(world.take(a).is_empty());

    let mut slow = join("g", "b", "t");
    slow.rebalance_ms = 1_000;
    let b = world.join(slow);
    world.settle(&[b]);
    let c = world.join(join("g", "c", "t"));
    world.pass(100);
    world.pass(1_000);
    assert!(matches!(ended(&world.take(b)), Some(Error::Fenced(why)) if why.contains("release")));
    // Nobody gets what it held while it may not have heard of that.
    assert!(world.settle(&[c])[&c].1.is_empty());
    for _ in 0..3 {
        world.settle(&[c]);
    }
    world.pass(3_000);
    assert_eq!(world.settle(&[c])[&c].1.len(), 6);

    world.step(Input::Heartbeat {
        link: c,
        applied: None,
        since_poll_ms: 300_001,
    });
    assert!(matches!(
        ended(&world.take(c)),
        Some(Error::PollTimeout { .. })
    ));
}

#[test]
fn bad_joins_are_refused_and_leave_nothing_behind() {
    let mut world = world();
    let refuse = |world: &mut World, change: &dyn Fn(&mut Join)| {
        let mut wrong = join("g", "a", "t");
        change(&mut wrong);
        let link = world.join(wrong);
        let told = world.take(link);
        ended(&told).cloned().unwrap_or_else(|| panic!("{told:?}"))
    };
    let invalid =
        |error: Error, field: &str| matches!(error, Error::Invalid { field: f, .. } if f == field);
    assert!(invalid(
        refuse(&mut world, &|j| j.group = "".into()),
        "group_id"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.group = "a\nb".into()),
        "group_id"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.instance = Some("x".repeat(250).into())),
        "instance_id"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.session_ms = 1),
        "session_timeout_ms"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.session_ms = -1),
        "session_timeout_ms"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.rebalance_ms = i64::MAX),
        "rebalance_timeout_ms"
    ));
    assert!(invalid(
        refuse(&mut world, &|j| j.poll_ms = i64::MIN),
        "max_poll_interval_ms"
    ));
    let to = |topic: &str| Subscription::new(vec![topic.to_owned()], None).unwrap();
    assert_eq!(
        refuse(&mut world, &|j| j.subscription = to("nope")),
        Error::UnknownTopicNamed("nope".to_owned())
    );
    assert!(invalid(
        refuse(&mut world, &|j| j.subscription = to("__groups")),
        "subscription.topics"
    ));
    assert_eq!(world.core.len(), 0);
    assert!(world.log.is_empty());
    let unknown = world.call(|call| Input::Describe {
        call,
        group: "g".into(),
    });
    assert!(matches!(unknown, Answer::Failed(Error::UnknownGroup(_))));

    let a = world.join(join("g", "a", "t"));
    world.settle(&[a]);
    assert_eq!(
        refuse(&mut world, &|j| j.assignor = Some(Assignor::Range)),
        Error::InconsistentAssignor("sticky")
    );
    let full = std::sync::Arc::new(crate::groups::limits::Settings {
        members_max: 1,
        ..Default::default()
    });
    world.settings = full;
    world.fail_over();
    assert!(matches!(
        refuse(&mut world, &|_| ()),
        Error::Full { limit: 1, .. }
    ));
}

#[test]
fn topics_come_grow_and_go() {
    let mut world = world();
    let mut all = join("g", "a", "t");
    all.subscription = Subscription::new(vec![], Some(".*".to_owned())).unwrap();
    let a = world.join(all);
    assert_eq!(world.settle(&[a])[&a].1.len(), 8);
    let grown = topics(2, &[("t", 1, 8), ("u", 2, 2), ("v", 4, 5)]);
    world.step(Input::Topics(grown.clone()));
    world.topics = grown;
    let (epoch, parts) = world.settle(&[a])[&a].clone();
    assert_eq!(parts.len(), 15);
    let items = vec![item(tp(1, 7), 3), item(tp(4, 0), 4)];
    assert_eq!(
        world.commit_as("g", Some(("a", epoch)), items),
        Ok(vec![None, None])
    );
    // A topic that is made anew under the same name is another one.
    let renewed = topics(3, &[("t", 5, 8), ("v", 4, 5)]);
    world.step(Input::Topics(renewed.clone()));
    world.topics = renewed;
    let (_, parts) = world.settle(&[a])[&a].clone();
    assert!(parts.iter().all(|one| one.topic.0 == 5 || one.topic.0 == 4));
    assert_eq!(parts.len(), 13);
    assert_eq!(world.fetch("g").unwrap().len(), 1);
    world.fail_over();
    world.commit();
    assert_eq!(world.fetch("g").unwrap().len(), 1);
}

#[test]
fn offsets_are_moved_deleted_and_expire() {
    let mut world = world();
    let items = vec![item(tp(1, 0), 10), item(tp(2, 0), 20)];
    assert_eq!(world.commit_as("g", None, items), Ok(vec![None, None]));
    let answer = world.call(|call| Input::Reset {
        call,
        group: "g".into(),
        offsets: vec![(tp(1, 0), 3)],
    });
    assert!(matches!(answer, Answer::Items(items) if items[0].is_ok()));
    assert_eq!(world.fetch("g").unwrap()[&tp(1, 0)], 3);
    let a = world.join(join("g", "a", "t"));
    world.settle(&[a]);
    let which = || Which::These(vec![(tp(1, 0).topic, None), (tp(2, 0).topic, None)]);
    let answer = world.call(|call| Input::DeleteOffsets {
        call,
        group: "g".into(),
        which: which(),
    });
    let Answer::Items(results) = answer else {
        panic!("{answer:?}");
    };
    assert!(results[0].is_err() && results[1].is_ok());
    let refused = world.call(|call| Input::DeleteGroup {
        call,
        group: "g".into(),
    });
    assert!(matches!(refused, Answer::Failed(Error::NotEmpty(1))));
    world.step(Input::Leave {
        link: a,
        will_return: false,
    });
    let day = 86_400_000;
    world.pass(6 * day);
    assert_eq!(world.fetch("g").unwrap().len(), 1);
    world.pass(day);
    assert!(matches!(world.fetch("g"), Err(Error::UnknownGroup(_))));
    world.fail_over();
    assert_eq!(world.core.len(), 0);
}

#[test]
fn an_image_that_was_cut_off_is_nothing() {
    let mut world = world();
    let a = world.join(join("g", "a", "t"));
    let (epoch, parts) = world.settle(&[a])[&a].clone();
    let items = parts.iter().map(|tp| item(tp, 5)).collect();
    world.commit_as("g", Some(("a", epoch)), items).unwrap();
    for keep in 0..12 {
        world.image(Some(keep));
        let offset = 6 + keep as i64;
        world
            .commit_as("g", Some(("a", epoch)), vec![item(tp(1, 0), offset)])
            .unwrap();
        world.fail_over();
        world.commit();
        let offsets = world.fetch("g").unwrap();
        assert_eq!((offsets.len(), offsets[&tp(1, 0)]), (6, offset));
    }
}

#[test]
fn a_read_waits_for_a_commit_of_its_own() {
    let mut world = world();
    world
        .commit_as("g", None, vec![item(tp(1, 0), 10)])
        .unwrap();
    let before = world.log.len();
    let call = world.fresh();
    world.input(Input::Fetch {
        call,
        group: "g".into(),
        which: Which::All,
    });
    assert!(world.answers.is_empty());
    world.commit();
    assert!(world.answers.contains_key(&call));
    assert_eq!(world.log.len(), before + 1);
}

#[test]
fn states_say_what_is_going_on() {
    let mut world = world();
    let state = |world: &mut World| {
        let answer = world.call(|call| Input::List {
            call,
            prefix: String::new(),
        });
        match answer {
            Answer::Groups(groups) => groups[0].state,
            other => panic!("{other:?}"),
        }
    };
    let a = world.join(join("g", "a", "t"));
    assert_eq!(state(&mut world), State::Reconciling);
    world.settle(&[a]);
    assert_eq!(state(&mut world), State::Stable);
    world.step(Input::Broken { link: a });
    world.pass(20_000);
    assert_eq!(state(&mut world), State::Empty);
    assert!(Parts::default().is_empty());
}
