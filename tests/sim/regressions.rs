//! Seeds that found something, named after what it was. What a seed meets changes with the simulator, so the seed alone
//! proves little: most causes also are a planted mistake, which must be found.

use crate::world::{self, Settings};

fn holds(seed: u64) {
    let outcome = world::run(seed, &Settings::default());
    assert_eq!(outcome.failure, None, "seed {seed}");
}

#[test]
fn an_entry_proposed_before_the_new_leaders_first_one() {
    holds(0);
}

#[test]
fn a_learner_that_is_told_to_stand() {
    holds(3);
}

#[test]
fn files_without_records_that_nobody_trimmed() {
    holds(13);
}

#[test]
fn a_late_acceptance_finds_a_leader_that_lost_its_tail() {
    holds(8);
}

#[test]
fn a_lost_commit_index_brings_back_an_old_membership() {
    holds(47);
}

#[test]
fn a_leader_deposed_before_its_first_entry_is_written() {
    holds(249);
}

#[test]
fn a_sole_voter_speaks_before_its_term_is_synced() {
    holds(313);
}

#[test]
fn an_acceptance_and_the_cut_of_its_entry_in_one_turn() {
    holds(313);
}

#[test]
fn an_acceptance_that_became_durable_when_a_newer_term_cut_its_entry() {
    holds(318);
}

#[test]
fn a_follower_begins_more_files_than_a_cycle_holds() {
    holds(2901);
}
