//! How a seed's history differs from another's: size of the cluster, what is wrong with network and disks, and how
//! often.

use harness::rng::Rng;
use timberline_storage::{JOURNAL_BYTES_MIN, LogConfig, StoreOptions};
use uuid::Uuid;

/// A group as it is founded.
#[derive(Clone, Debug)]
pub(crate) struct GroupPlan {
    /// Brokers of the founding voters.
    pub(crate) brokers: Vec<usize>,
    /// Its log start moves. Replicas that begin at nothing can't join then: there are no snapshots yet.
    pub(crate) trims: bool,
    pub(crate) producers: u64,
}

/// One seed's choices. Percentages and milliseconds of the simulated clock.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) tick_ms: Vec<u64>,
    pub(crate) groups: Vec<GroupPlan>,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) latency_ms: u64,
    pub(crate) stragglers: u64,
    pub(crate) sync_ms: u64,
    /// Between two client operations, about.
    pub(crate) pace_ms: u64,
    /// Between two faults, about.
    pub(crate) fault_ms: u64,
    /// Weights of the faults; see `faults`.
    pub(crate) faults: [u64; 11],
    /// Percent of the occasions on which a starting broker's disk is set to stop by itself.
    pub(crate) fuse: u64,
    pub(crate) checkpoints: u64,
    /// Weights of small, medium and large batches.
    pub(crate) sizes: [u64; 3],
    pub(crate) answers_lost: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) store: StoreOptions,
}

impl Profile {
    pub(crate) fn of(rng: &mut Rng) -> Profile {
        let brokers = rng.pick(&[3, 3, 3, 4, 5]);
        let mut groups = Vec::new();
        for at in 0..rng.within(3, 4) {
            let voters = match at {
                0 => rng.within(1, 2),
                3 if brokers == 5 => 5,
                _ => 3,
            } as usize;
            let first = rng.below(brokers) as usize;
            groups.push(GroupPlan {
                brokers: (first..first + voters)
                    .map(|b| b % brokers as usize)
                    .collect(),
                trims: at == 2 || rng.chance(20),
                producers: rng.within(1, 3),
            });
        }
        let crashes = rng.pick(&[0, 10, 30]);
        Profile {
            tick_ms: (0..brokers).map(|_| rng.within(18, 34)).collect(),
            groups,
            loss: rng.pick(&[0, 0, 1, 5, 15, 30]),
            duplication: rng.pick(&[0, 2, 20]),
            latency_ms: rng.pick(&[1, 5, 20]),
            stragglers: rng.pick(&[0, 1, 10]),
            sync_ms: rng.pick(&[1, 5, 20]),
            pace_ms: rng.pick(&[4, 8, 12]),
            fault_ms: rng.pick(&[200, 400, 900]),
            faults: [
                crashes,
                crashes,
                rng.pick(&[0, 2, 8]),
                rng.pick(&[10, 30, 60]),
                rng.pick(&[0, 10, 30]),
                20,
                rng.pick(&[5, 15, 40]),
                rng.pick(&[0, 4, 10]),
                rng.pick(&[0, 3, 10]),
                rng.pick(&[0, 5, 10]),
                rng.pick(&[0, 5, 10]),
            ],
            fuse: rng.pick(&[0, 10, 40]),
            checkpoints: rng.pick(&[5, 20, 50]),
            sizes: rng.pick(&[[80, 18, 2], [95, 5, 0], [40, 50, 10]]),
            answers_lost: rng.pick(&[0, 5, 20]),
            segment_bytes: rng.pick(&[4 << 10, 16 << 10, 48 << 10]),
            store: StoreOptions {
                journal_bytes: JOURNAL_BYTES_MIN,
                direct_sync_bytes: rng.pick(&[4 << 10, 16 << 10, 64 << 10, 1 << 20]),
                write_back_bytes: rng.pick(&[8 << 10, 64 << 10, 1 << 20]),
                checkpoint_bytes: rng.pick(&[64 << 10, 256 << 10, 1 << 20]),
                open_files_max: rng.pick(&[4, 1_000]),
                ..StoreOptions::default()
            },
        }
    }

    pub(crate) fn brokers(&self) -> usize {
        self.tick_ms.len()
    }

    pub(crate) fn log_config(&self, group: usize) -> LogConfig {
        LogConfig {
            segment_bytes: self.segment_bytes,
            segment_ms: 4_000,
            retention_bytes: self.groups[group].trims.then_some(32 << 10),
            retention_ms: None,
            ..LogConfig::default()
        }
    }

    pub(crate) fn store_options(&self, broker: usize) -> StoreOptions {
        StoreOptions {
            directory_id: Some(Uuid::from_u128(1 + broker as u128)),
            ..self.store.clone()
        }
    }
}
