//! Crash points: seeded histories of a store over a disk that loses power, fails, fills and rots, each checked
//! against an oracle that forgets nothing.
//!
//! ```text
//! cargo test -p timberline-tests --test crash                                   a few thousand crash points
//! CRASH_SEEDS=10000 cargo test --release -p timberline-tests --test crash -- --nocapture seeds
//! CRASH_SEEDS=4000 CRASH_STEPS=300 CRASH_DAMAGE=3 …                  short histories that end with one kind of damage
//! CRASH_SEED=17 cargo test -p timberline-tests --test crash -- --nocapture seeds     one seed, its trace printed
//! ```

mod damage;
mod installs;
mod oracle;
mod planted;
mod regressions;
mod sim;
mod workload;

use std::time::Instant;

use harness::rng;
use sim::{Settings, Stats};

/// Seeds of a plain test run.
const SEEDS: u64 = 120;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds() {
    let plain = Settings::default();
    let settings = Settings {
        steps: env("CRASH_STEPS").map_or(plain.steps, |n| n as u32),
        damage: env("CRASH_DAMAGE").map(|n| n as usize),
        ..plain
    };
    let (from, count) = match env("CRASH_SEED") {
        Some(seed) => (seed, 1),
        None => (
            env("CRASH_FROM").unwrap_or(0),
            env("CRASH_SEEDS").unwrap_or(SEEDS),
        ),
    };
    let began = Instant::now();
    let mut stats = Stats::default();
    for seed in from..from + count {
        let outcome = sim::run(seed, &settings);
        stats.add(&outcome.stats);
        if let Some(why) = outcome.failure {
            for line in &outcome.trace {
                eprintln!("  {line}");
            }
            panic!("seed {seed}: {why}");
        }
    }
    let took = began.elapsed().as_secs_f64();
    eprintln!(
        "{count} seeds in {took:.1} s, {:.0} an hour",
        count as f64 * 3600.0 / took
    );
    for (name, value) in stats.lines() {
        eprintln!("  {name:20} {value}");
        // Broken logs are rare: they are looked for in long runs, and in a test of their own.
        let rare = name == "broken_logs";
        assert!(
            value > 0 || rare || count < SEEDS || settings.damage.is_some(),
            "no history met {name}"
        );
    }
}

#[test]
fn a_seed_is_a_history() {
    let settings = Settings::default();
    for seed in 0..10 {
        let (once, again) = (sim::run(seed, &settings), sim::run(seed, &settings));
        assert_eq!(once.failure, None, "seed {seed}");
        assert_eq!(once.hash, again.hash, "seed {seed} went two ways");
        assert_ne!(once.hash, sim::run(seed + 1, &settings).hash);
    }
}
