//! Deliberate mistakes in the store: a net that misses one proves nothing.

use timberline_storage::bugs::Bug;

use crate::sim::{self, Settings};

/// Histories within which a mistake must be found.
const SEEDS: u64 = 1_500;

/// The first seed that finds it, and how it shows.
fn find(bug: Bug) -> Option<(u64, String)> {
    let settings = Settings {
        bug: Some(bug),
        ..Settings::default()
    };
    let finds = |seed| Some((seed, sim::run(seed, &settings).failure?));
    (0..SEEDS).find_map(finds)
}

#[test]
fn planted_mistakes_are_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for &bug in Bug::ALL {
        match find(bug) {
            Some((seed, how)) => eprintln!("  {bug:?}: seed {seed}: {how:.160}"),
            None => missed.push(bug),
        }
    }
    let _ = std::panic::take_hook();
    assert!(Bug::ALL.len() >= 10, "fewer than ten mistakes are planted");
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
