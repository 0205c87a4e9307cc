//! The network between brokers: it loses, doubles, delays and reorders, and cuts directed links.

use std::collections::BTreeSet;

use harness::rng::Rng;
use timberline_consensus::Envelope;

use crate::profile::Profile;
use crate::stats::Stats;

/// Delay of a straggler, ms at most.
const STRAGGLE_MS: u64 = 1_500;

#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Nothing goes from the first broker to the second.
    blocked: BTreeSet<(usize, usize)>,
    /// Faults are over.
    pub(crate) calm: bool,
}

impl Network {
    /// When copies of a message arrive, ms from now.
    pub(crate) fn send(
        &self,
        rng: &mut Rng,
        profile: &Profile,
        stats: &mut Stats,
        (from, to): (usize, usize),
    ) -> Vec<u64> {
        stats.messages += 1;
        if self.blocked.contains(&(from, to)) {
            stats.blocked += 1;
            return Vec::new();
        }
        if self.calm {
            return vec![rng.within(0, profile.latency_ms.min(5))];
        }
        if rng.chance(profile.loss) {
            stats.lost += 1;
            return Vec::new();
        }
        let mut copies = 1;
        if rng.chance(profile.duplication) {
            stats.duplicated += 1;
            copies = 2;
        }
        let delay = |rng: &mut Rng, stats: &mut Stats| {
            if rng.chance(profile.stragglers) {
                stats.stragglers += 1;
                return rng.below(STRAGGLE_MS);
            }
            rng.within(0, profile.latency_ms)
        };
        (0..copies).map(|_| delay(rng, stats)).collect()
    }

    pub(crate) fn block(&mut self, from: usize, to: usize) {
        self.blocked.insert((from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }
}

/// For traces.
pub(crate) fn line(envelope: &Envelope) -> String {
    let Envelope {
        from,
        to,
        term,
        body,
        ..
    } = envelope;
    let text = match body {
        timberline_consensus::Body::Append(append) => format!(
            "Append prev {}/{} commit {} frames {:?}",
            append.prev_index,
            append.prev_term,
            append.commit,
            append
                .frames
                .iter()
                .map(|f| (f.header.index, f.header.term))
                .collect::<Vec<_>>()
        ),
        other => format!("{other:?}"),
    };
    format!("n{from}→n{to} t{term} {text}")
}
