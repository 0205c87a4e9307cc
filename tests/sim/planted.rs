//! Deliberate mistakes in consensus, in the store, and in what a broker makes of both: a net that misses one proves
//! nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use timberline_consensus::bugs::Bug as ConsensusBug;
use timberline_storage::bugs::Bug as StorageBug;

use crate::world::{self, Planted, Settings};

/// Histories within which a mistake must be found.
const SEEDS: u64 = 150;
/// Histories, for those that take a rare coincidence and are looked for one by one, with `SIM_BUG`.
const RARE_SEEDS: u64 = 600;
/// They need, say, a tail cut under a slow sync, and then a crash or an old leader that listens.
const RARE: &[Planted] = &[
    Planted::Consensus(ConsensusBug::AcceptAll),
    Planted::Consensus(ConsensusBug::TellCut),
    Planted::Consensus(ConsensusBug::ForgetProvenMembership),
];
/// Those of the store that a cluster shows soon, without damage at rest; `tests/crash` finds the others.
const OF_STORAGE: &[StorageBug] = &[
    StorageBug::SkipJournalSync,
    StorageBug::SkipDirectSync,
    StorageBug::StaleLap,
    StorageBug::ForgetIdle,
    StorageBug::CountUnsynced,
    StorageBug::FreeEarly,
    StorageBug::NoHeaderRecord,
    StorageBug::SkipClosed,
    StorageBug::ForgetProducers,
    StorageBug::ForgetMembership,
    StorageBug::KeepTerms,
    StorageBug::VoteEarly,
    StorageBug::ForgetFollowersProducers,
    StorageBug::DropUntrimmed,
];

/// The first seed that finds it, and how it shows.
fn find(planted: Planted) -> Option<(u64, String)> {
    let settings = Settings {
        planted: Some(planted),
        ..Settings::default()
    };
    let from = std::env::var("SIM_FROM").ok().and_then(|n| n.parse().ok());
    let from = from.unwrap_or(0);
    let finds = |seed| Some((seed, world::run(seed, &settings).failure?));
    let seeds = match RARE.contains(&planted) {
        true => RARE_SEEDS,
        false => SEEDS,
    };
    (from..from + seeds).find_map(finds)
}

#[test]
fn planted_mistakes_are_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let consensus = ConsensusBug::ALL.iter().copied().map(Planted::Consensus);
    let storage = OF_STORAGE.iter().copied().map(Planted::Storage);
    let broker = [Planted::AnswerByIndex, Planted::NoSequences];
    let all: Vec<Planted> = consensus.chain(storage).chain(broker).collect();
    let only = std::env::var("SIM_BUG").unwrap_or_default();
    let wanted = |p: &&Planted| match only.is_empty() {
        true => !RARE.contains(p),
        false => format!("{p:?}").contains(&only),
    };
    let all: Vec<Planted> = all.iter().filter(wanted).copied().collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..crate::THREADS {
            scope.spawn(|| {
                while let Some(&planted) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match find(planted) {
                        Some((seed, how)) => eprintln!("  {planted:?}: seed {seed}: {how:.160}"),
                        None => {
                            eprintln!("  {planted:?}: missed");
                            missed.lock().expect("no thread panics here").push(planted);
                        }
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().expect("no thread panicked");
    assert!(
        all.len() >= 25 || !only.is_empty(),
        "fewer than 25 mistakes are planted"
    );
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
