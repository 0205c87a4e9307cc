//! What comes again and again is said once, and then now and then.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two times that the same is said.
const EVERY: Duration = Duration::from_secs(10);
/// Things that are kept apart; beyond, only what was known before is said.
const KEYS_MAX: usize = 256;

/// Says of each thing whether it should be said now.
pub(super) struct Quiet<K> {
    said: Mutex<HashMap<K, Said>>,
}

struct Said {
    at: Instant,
    /// Not said since.
    left_out: u64,
}

impl<K> Default for Quiet<K> {
    fn default() -> Quiet<K> {
        Quiet {
            said: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash> Quiet<K> {
    /// How often it was left out since it was said last, if it is time to say it again.
    pub(super) fn due(&self, key: K) -> Option<u64> {
        self.due_at(key, Instant::now())
    }

    fn due_at(&self, key: K, now: Instant) -> Option<u64> {
        let mut said = self.said.lock();
        if let Some(known) = said.get_mut(&key) {
            if now.saturating_duration_since(known.at) < EVERY {
                known.left_out += 1;
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.left_out));
        }
        if said.len() >= KEYS_MAX {
            said.retain(|_, known| now.saturating_duration_since(known.at) < EVERY);
        }
        if said.len() >= KEYS_MAX {
            return None;
        }
        said.insert(
            key,
            Said {
                at: now,
                left_out: 0,
            },
        );
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_then_one_in_ten_seconds() {
        let quiet = Quiet::default();
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(quiet.due_at("a", at(0)), Some(0));
        assert_eq!(quiet.due_at("a", at(1)), None);
        assert_eq!(quiet.due_at("b", at(2)), Some(0));
        assert_eq!(quiet.due_at("a", at(9_999)), None);
        assert_eq!(quiet.due_at("a", at(10_000)), Some(2));
        assert_eq!(quiet.due_at("a", at(10_001)), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let quiet = Quiet::default();
        let begun = Instant::now();
        let due = (0..1000).filter(|key| quiet.due_at(*key, begun).is_some());
        assert_eq!(due.count(), KEYS_MAX);
        assert_eq!(quiet.due_at(1000, begun + EVERY), Some(0));
    }
}
