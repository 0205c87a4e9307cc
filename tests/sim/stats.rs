//! What histories met, and what happened in one.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Lines of trace kept for a failure.
const TRACE_MAX: usize = 200_000;

/// Defines the counters of a run, with their sum and their printed form.
macro_rules! stats {
    ($($name:ident),* $(,)?) => {
        /// What histories met.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Stats { $(pub(crate) $name: u64),* }

        impl Stats {
            pub(crate) fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }

            pub(crate) fn lines(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    operations, proposals, duplicates, acks, reads, batches_read, trims, retentions, commits,
    elections, transfers, truncations, membership_changes, joint_changes, replicas_added, replicas_removed,
    messages, lost, duplicated, blocked, stragglers, partitions, one_way_partitions, pauses,
    crashes, kills, power_losses, power_losses_of_all, crashes_in_recovery, fuses, slow_disks,
    poisoned, full_disks, refused_for_space, stopped_for_space, reopened, cycles, direct_syncs, checkpoints, seals, clean_stops,
    tails_cut, recoveries, recovered_entries, cold_reads, pulses, quiesced, liveness_ticks,
}

impl Stats {
    /// What a history lacks that every one must have.
    pub(crate) fn hollow(&self) -> Option<String> {
        let faults = [
            self.crashes,
            self.lost,
            self.partitions,
            self.one_way_partitions,
            self.slow_disks,
            self.full_disks,
            self.pauses,
        ];
        let enough = self.operations >= crate::world::OPERATIONS
            && self.acks >= crate::world::ACKS
            && self.reads >= 50
            && self.elections >= 3
            && self.checkpoints > 0
            && faults.iter().any(|&n| n > 0);
        (!enough).then(|| format!("a hollow history: {self:?}"))
    }
}

/// What happened, as a digest and, where wanted, in words.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    pub(crate) fn new(words: bool) -> Trace {
        Trace {
            hasher: DefaultHasher::new(),
            lines: words.then(VecDeque::new),
        }
    }

    /// Takes an event into the digest; `words` is called only when somebody reads.
    pub(crate) fn note(&mut self, now: u64, event: impl Hash, words: impl FnOnce() -> String) {
        (now, event).hash(&mut self.hasher);
        if let Some(lines) = &mut self.lines {
            if lines.len() == TRACE_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{now:6} {}", words()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default().into()
    }
}
