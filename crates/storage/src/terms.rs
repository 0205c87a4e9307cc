//! Runs of terms: which term each entry has, kept in memory, since Raft asks several times for each entry.
//!
//! Terms never fall along a log, so a log is a few runs of entries of one term. The first run begins at the *base*,
//! the lowest index whose term is known; below it nothing is said. The runs are written with each checkpoint and
//! extended by recovery's walk.

use std::collections::VecDeque;

use crate::codec::{Malformed, Put, Reader};
use crate::place::Place;

/// Runs kept for a log; more, and its base rises over the oldest.
pub(crate) const TERM_RUNS_MAX: usize = 1024;

/// Entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Index of its first entry.
    first: u64,
    term: u64,
}

/// The terms of a log's entries. Never empty; the end is the log's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TermRuns {
    runs: VecDeque<Run>,
}

impl TermRuns {
    /// Knows the term of one entry; of the origin it is 0.
    pub(crate) fn at(index: u64, term: u64) -> TermRuns {
        TermRuns {
            runs: VecDeque::from([Run { first: index, term }]),
        }
    }

    /// What places of one log, in order, say for certain as of the last of them: terms do not fall, so between two
    /// places of the same term there is no other.
    pub(crate) fn of_places<'a>(
        places: impl DoubleEndedIterator<Item = &'a Place>,
        last: &Place,
    ) -> TermRuns {
        let same = places
            .rev()
            .filter(|p| p.index <= last.index)
            .take_while(|p| p.term == last.term);
        let base = same.map(|p| p.index).min().unwrap_or(last.index);
        TermRuns::at(base.min(last.index), last.term)
    }

    /// Lowest index whose term is known.
    pub(crate) fn base(&self) -> u64 {
        self.runs.front().map_or(0, |r| r.first)
    }

    /// The term of an entry that is not behind the end; `None` below the base.
    pub(crate) fn get(&self, index: u64) -> Option<u64> {
        let after = self.runs.partition_point(|r| r.first <= index);
        after.checked_sub(1).map(|at| self.runs[at].term)
    }

    /// Whether an entry of this term can follow without raising the base above `committed`.
    pub(crate) fn has_room(&self, term: u64, committed: u64) -> bool {
        let grows = self.runs.back().is_some_and(|r| r.term != term);
        !grows
            || self.runs.len() < TERM_RUNS_MAX
            || self.runs.get(1).is_none_or(|r| r.first <= committed)
    }

    /// An entry is appended. `committed`: the base does not rise above it.
    pub(crate) fn push(&mut self, index: u64, term: u64, committed: u64) {
        if self.runs.back().is_none_or(|r| r.term != term) {
            self.runs.push_back(Run { first: index, term });
        }
        while self.runs.len() > TERM_RUNS_MAX && self.runs[1].first <= committed {
            self.runs.pop_front();
        }
    }

    /// Entries behind `index`, which has this term, are gone.
    pub(crate) fn cut(&mut self, index: u64, term: u64) {
        while self.runs.back().is_some_and(|r| r.first > index) {
            self.runs.pop_back();
        }
        if self.runs.is_empty() {
            *self = TermRuns::at(index, term);
        }
    }

    /// Entries before `index` are gone; its own term stays known.
    pub(crate) fn drop_below(&mut self, index: u64) {
        while self.runs.get(1).is_some_and(|r| r.first <= index) {
            self.runs.pop_front();
        }
        if let Some(first) = self.runs.front_mut() {
            first.first = first.first.max(index);
        }
    }

    /// Takes over what `other`, which agrees up to here, knows of the entries behind `from` up to `to`.
    pub(crate) fn extend_from(&mut self, other: &TermRuns, from: u64, to: u64) {
        let known = other
            .runs
            .iter()
            .filter(|r| r.first > from && r.first <= to);
        self.runs.extend(known);
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.runs.len() as u32);
        for run in &self.runs {
            out.u64(run.first);
            out.u64(run.term);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<TermRuns, Malformed> {
        let count = reader.count(16)?;
        let mut runs = VecDeque::with_capacity(count);
        for _ in 0..count {
            runs.push_back(Run {
                first: reader.u64()?,
                term: reader.u64()?,
            });
        }
        let rising = runs
            .iter()
            .zip(runs.iter().skip(1))
            .all(|(a, b): (&Run, &Run)| a.first < b.first);
        if runs.is_empty() || !rising {
            return Err(Malformed("runs of terms out of order"));
        }
        Ok(TermRuns { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u64, u64)]) -> TermRuns {
        TermRuns {
            runs: of
                .iter()
                .map(|&(first, term)| Run { first, term })
                .collect(),
        }
    }

    #[test]
    fn every_index_from_the_base_on_has_its_term() {
        let mut terms = TermRuns::at(0, 0);
        for (index, term) in [(1, 1), (2, 1), (3, 4), (4, 4), (5, 9)] {
            terms.push(index, term, 0);
        }
        let known: Vec<_> = (0..=5).map(|i| terms.get(i)).collect();
        assert_eq!(known, [0, 1, 1, 4, 4, 9].map(Some));
        terms.drop_below(3);
        assert_eq!(
            (terms.base(), terms.get(2), terms.get(3)),
            (3, None, Some(4))
        );
        terms.cut(4, 4);
        assert_eq!(terms, runs(&[(3, 4)]));
    }

    #[test]
    fn a_cut_below_the_base_leaves_what_it_is_told() {
        let mut terms = runs(&[(10, 5), (12, 6)]);
        terms.cut(8, 3);
        assert_eq!(terms, runs(&[(8, 3)]));
    }

    #[test]
    fn the_bound_raises_the_base_over_committed_entries_alone() {
        let mut terms = TermRuns::at(0, 0);
        for n in 1..TERM_RUNS_MAX as u64 {
            terms.push(n, n, 0);
        }
        let next = TERM_RUNS_MAX as u64;
        assert!(terms.has_room(next - 1, 0), "the same term needs no run");
        assert!(!terms.has_room(next, 0) && terms.has_room(next, 1));
        terms.push(next, next, 5);
        assert_eq!((terms.base(), terms.runs.len()), (1, TERM_RUNS_MAX));
        assert_eq!(terms.get(next), Some(next));
    }

    #[test]
    fn places_tell_the_last_terms_entries_only() {
        let place = |index, term| Place {
            index,
            term,
            ..Place::default()
        };
        let places = [place(0, 0), place(10, 2), place(20, 3), place(30, 3)];
        let known = |last: Place| TermRuns::of_places(places.iter(), &last);
        assert_eq!(known(place(40, 3)), runs(&[(20, 3)]));
        assert_eq!(known(place(40, 4)), runs(&[(40, 4)]));
        assert_eq!(known(place(25, 3)), runs(&[(20, 3)]));
        assert_eq!(known(place(0, 0)), runs(&[(0, 0)]));
    }

    #[test]
    fn encoded_runs_come_back_and_disorder_is_refused() {
        for (of, good) in [
            (runs(&[(0, 0), (1, 3), (9, 4)]), true),
            (runs(&[]), false),
            (runs(&[(9, 3), (9, 4)]), false),
        ] {
            let mut bytes = Vec::new();
            of.encode(&mut bytes);
            let decoded = TermRuns::decode(&mut Reader::new(&bytes));
            assert_eq!(decoded.is_ok(), good);
            assert!(decoded.is_err() || decoded == Ok(of));
        }
    }
}
