//! Damage at rest: what a history ends with. One thing rots, vanishes or is cut while the store is down.
//!
//! The rules: one checkpoint table may rot and nothing is lost. A rotten journal is noticed (the store refuses
//! writes), unless it is the last cycle, which looks torn. A damaged segment costs the records that lie there, each
//! answered as damaged; all others are served, right; the log takes appends only while its last entry is proven.

use std::path::PathBuf;

use timberline_storage::Error;

use crate::oracle::{Check, ensure};
use crate::sim::{DIR, Sim};

/// Most entries that one sector can touch: frames have 64 bytes and more.
const ENTRIES_OF_A_SECTOR: u64 = 10;

/// What was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    SegmentRot,
    SegmentBadSector,
    SegmentDeleted,
    SegmentCut,
    Table,
    Journal,
    Index,
}

/// What a seed picks from.
const KINDS: &[Damage] = &[
    Damage::SegmentRot,
    Damage::SegmentRot,
    Damage::SegmentBadSector,
    Damage::SegmentDeleted,
    Damage::SegmentCut,
    Damage::Table,
    Damage::Table,
    Damage::Journal,
    Damage::Index,
    Damage::Index,
];

impl Sim {
    /// Ends the history with one thing damaged, and one more life after it.
    pub(crate) fn damage_episode(&mut self, only: Option<usize>) -> Check {
        let kind = match only {
            Some(at) => KINDS[at % KINDS.len()],
            None => self.rng.pick(KINDS),
        };
        if !self.stop_for(kind)? || !self.inflict(kind)? {
            return Ok(());
        }
        self.stats.damage_episodes += 1;
        self.damaged = true;
        let of_segment = matches!(
            kind,
            Damage::SegmentRot
                | Damage::SegmentBadSector
                | Damage::SegmentDeleted
                | Damage::SegmentCut
        );
        for replica in self.replicas.values_mut() {
            replica.damaged = of_segment;
        }
        self.journal_damaged = kind == Damage::Journal;
        let before = self.stats.quarantined;
        self.open_damaged()?;
        let lost = self.stats.quarantined - before;
        self.note(format!("{kind:?}: {lost} entries can't be served"));
        let one_sector = matches!(kind, Damage::SegmentRot | Damage::SegmentBadSector);
        let bound = if one_sector {
            ENTRIES_OF_A_SECTOR
        } else if of_segment {
            u64::MAX
        } else {
            0
        };
        ensure!(lost <= bound, "{kind:?} took {lost} entries");
        self.live_on()
    }

    /// Brings the store down in a state in which the damage is one fault, not two.
    fn stop_for(&mut self, kind: Damage) -> Check<bool> {
        self.lift_capacity();
        let clean = self.rng.chance(50) || kind == Damage::Index;
        if clean {
            if !self.try_close()? {
                return Ok(false);
            }
        } else if kind == Damage::Table {
            // Both slots are whole.
            self.settle()?;
            for _ in 0..2 {
                self.begin_checkpoint()?;
                while self.checkpoint_runs() {
                    self.step_checkpoint()?;
                }
            }
            if self.disk.crashed() || self.store().poisoned().is_some() {
                return Ok(false);
            }
        }
        self.end_process();
        Ok(true)
    }

    /// False when there is nothing of that kind.
    fn inflict(&mut self, kind: Damage) -> Check<bool> {
        let seed = self.rng.next();
        let path = match kind {
            Damage::Table => format!("{DIR}/table.{}", self.rng.below(2)).into(),
            Damage::Journal => format!("{DIR}/journal").into(),
            _ => {
                let files = self.segment_files();
                if files.is_empty() {
                    return Ok(false);
                }
                files[self.rng.below(files.len() as u64) as usize].0.clone()
            }
        };
        let bytes = self.disk.raw_device(&path).map_err(|e| e.to_string())?;
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
        if used == 0 {
            return Ok(false);
        }
        let sector = self.rng.below(used as u64) / 512;
        self.note(format!("{kind:?} of {} sector {sector}", path.display()));
        let done = match kind {
            Damage::SegmentDeleted => self.disk.delete_outside(&path),
            Damage::SegmentCut => self
                .disk
                .truncate_outside(&path, self.rng.below(used as u64)),
            Damage::SegmentBadSector => self.disk.bad_sector(&path, sector),
            Damage::Index => {
                let Some((at, wrong)) = wrong_index(&bytes) else {
                    return Ok(false);
                };
                self.disk.overwrite_outside(&path, at, &wrong)
            }
            Damage::SegmentRot => self.disk.rot(&path, sector, seed),
            Damage::Table | Damage::Journal => {
                if self.rng.chance(50) {
                    self.disk.rot(&path, sector, seed)
                } else {
                    self.disk.bad_sector(&path, sector)
                }
            }
        };
        done.map_err(|e| e.to_string())?;
        Ok(true)
    }

    fn open_damaged(&mut self) -> Check {
        loop {
            match self.try_open() {
                Ok(opened) => return self.opened(opened),
                // A fault or a fuse that was planned before.
                Err(error) if self.write_failed() || self.disk.crashed() => {
                    self.note(format!("recovery: {error}"));
                    self.end_process();
                }
                Err(error) => return Err(format!("a damaged directory does not open: {error}")),
            }
        }
    }

    /// What can still be appended is kept like anything else; what can't is refused.
    fn live_on(&mut self) -> Check {
        // A drive gives a sector that it can't read another place when it is written again.
        let journal = PathBuf::from(format!("{DIR}/journal"));
        self.disk.heal(&journal).map_err(|e| e.to_string())?;
        self.stats.poisoned += u64::from(self.store().poisoned().is_some());
        let ids: Vec<u64> = self.logs.keys().copied().collect();
        for id in ids {
            self.stats.broken_logs += u64::from(self.log(id).broken().is_some());
            if self.store().poisoned().is_none() && self.rng.chance(40) {
                // Another replica repairs it.
                self.install_whole(id)?;
                if self.disk.crashed() || self.store().poisoned().is_some() {
                    return Ok(());
                }
            }
            let log = self.log(id);
            let broken = log.broken().is_some();
            if broken {
                let outcome = log.reserve(100);
                ensure!(
                    matches!(outcome, Err(Error::Poisoned { .. })),
                    "r{id} is broken and takes appends"
                );
            } else if self.store().poisoned().is_none() {
                for _ in 0..3 {
                    self.append_batch(id)?;
                }
            }
        }
        self.settle()?;
        if self.store().poisoned().is_some() || self.disk.crashed() {
            return Ok(());
        }
        self.check_all(false)?;
        self.journal_damaged = false;
        self.end_process();
        self.open_damaged()
    }
}

/// A footer whose index, checksum and all, sends readers to the second frame for the first.
fn wrong_index(bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let trailer = bytes.len().checked_sub(32)?;
    if bytes.get(trailer..trailer + 8)? != b"TBLFOOTR" {
        return None;
    }
    let start = u64_at(trailer + 16)? as usize;
    let first_frame = 512;
    let second_frame = first_frame + (64 + u64::from(u32_at(520)?)).next_multiple_of(8);
    if second_frame >= start as u64 {
        return None;
    }
    for count in 1..64 {
        let at = trailer.checked_sub(40 * count)?;
        let is_index = u32_at(at - 4)? as usize == count && u64_at(at + 16)? == first_frame;
        let later = if count > 1 {
            u64_at(at + 56)?
        } else {
            u64::MAX
        };
        if is_index && second_frame < later {
            let mut wrong = bytes[start..].to_vec();
            let pos = at - start + 16;
            wrong[pos..pos + 8].copy_from_slice(&second_frame.to_le_bytes());
            let mut crc = crc32fast::Hasher::new();
            crc.update(&u32_at(trailer + 8)?.to_le_bytes());
            crc.update(&wrong[..trailer - start]);
            let crc = crc.finalize();
            wrong[trailer - start + 12..trailer - start + 16].copy_from_slice(&crc.to_le_bytes());
            return Some((start as u64, wrong));
        }
    }
    None
}
