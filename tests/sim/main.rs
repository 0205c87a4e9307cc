//! The simulator: several brokers' consensus and storage, on disks that lose power, fail, fill and stall, and on a
//! network that loses, doubles, delays, reorders and cuts. One seed, one history.
//!
//! ```text
//! cargo test -p timberline-tests --test sim                                      some hundred histories
//! SIM_SEEDS=10000 cargo test --release -p timberline-tests --test sim -- --nocapture seeds
//! SIM_SEED=17 cargo test -p timberline-tests --test sim -- --nocapture seeds     one seed, its trace printed
//! SIM_BUG=TellCut cargo test --release … -- --nocapture planted                 one planted mistake, however rare
//! ```
//!
//! A history has two phases: *safety*, at least 2,000 client operations under faults without end, then *liveness*:
//! faults stop, and the cluster must come to rest in a bounded time (`liveness`). The `checker` stands apart and sees
//! only what clients, peers and disks could see.
//!
//! Not simulated: rot and other damage at rest, until replicas repair each other (`tests/crash` does it for one store);
//! snapshots, so that a log start moves only over what every member has (`tests/crash` and the scripts of `consensus` ship them).

mod broker;
mod checker;
mod clients;
mod faults;
mod flusher;
mod life;
mod liveness;
mod members;
mod network;
mod planted;
mod profile;
mod regressions;
mod shard;
mod stats;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use stats::Stats;
use world::Settings;

/// Seeds of a plain test run.
const SEEDS: u64 = 200;
/// Threads that run seeds, one each.
const THREADS: usize = 2;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all threads; the sums, and the failures by seed.
fn run_all(from: u64, count: u64) -> (Stats, Vec<(u64, String)>) {
    let next = AtomicU64::new(from);
    let sums = Mutex::new((Stats::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let outcome = world::run(seed, &Settings::default());
                    let hollow = outcome.stats.hollow();
                    let mut sums = sums
                        .lock()
                        .expect("no thread panics while it holds the sums");
                    sums.0.add(&outcome.stats);
                    if let Some(why) = outcome.failure.or(hollow) {
                        eprintln!("seed {seed}: {why:.600}");
                        sums.1.push((seed, why));
                    }
                }
            });
        }
    });
    sums.into_inner().expect("no thread panicked")
}

fn run_one(seed: u64) {
    let settings = Settings {
        words: true,
        ..Settings::default()
    };
    let outcome = world::run(seed, &settings);
    for line in &outcome.trace {
        eprintln!("{line}");
    }
    for (name, value) in outcome.stats.lines() {
        eprintln!("  {name:20} {value}");
    }
    if let Some(why) = outcome.failure {
        panic!("seed {seed}: {why}");
    }
}

#[test]
fn seeds() {
    if let Some(seed) = env("SIM_SEED") {
        return run_one(seed);
    }
    let from = env("SIM_FROM").unwrap_or(0);
    let count = env("SIM_SEEDS").unwrap_or(SEEDS);
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let (stats, failures) = run_all(from, count);
    let _ = std::panic::take_hook();
    let took = began.elapsed().as_secs_f64();
    eprintln!(
        "{count} seeds in {took:.1} s, {:.0} an hour",
        count as f64 * 3600.0 / took
    );
    for (name, value) in stats.lines() {
        eprintln!("  {name:20} {value}");
        assert!(value > 0 || count < SEEDS, "no history met {name}");
    }
    assert!(
        failures.is_empty(),
        "{} seeds failed: {failures:?}",
        failures.len()
    );
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..5 {
        let (once, again) = (
            world::run(seed, &Settings::default()),
            world::run(seed, &Settings::default()),
        );
        assert_eq!(once.hash, again.hash, "seed {seed} went two ways");
        assert_eq!(once.stats, again.stats, "seed {seed} went two ways");
    }
}
