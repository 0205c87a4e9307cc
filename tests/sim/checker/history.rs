//! What is committed in one group, learnt from whichever replica calls it committed first; every other one must agree.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use timberline_consensus::NodeId;
use timberline_record::BatchHeader;
use timberline_storage::{EntryKind, FrameHeader};

use super::{Check, Recovered, Seen, Told, ensure};

/// Producer id, epoch and sequence of a batch.
pub(crate) type Stamp = (i64, i16, i32);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    header: FrameHeader,
    digest: u64,
    stamp: Option<Stamp>,
    /// Term of the replica that called it committed.
    by: u64,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    seed: u64,
    /// From index 1.
    entries: Vec<Entry>,
    by_offset: BTreeMap<i64, u64>,
    stamps: BTreeMap<Stamp, u64>,
    /// Log starts, by the index that set them.
    starts: BTreeMap<u64, i64>,
    /// Acknowledged batches: index and offset.
    acked: BTreeMap<u64, i64>,
    /// Highest committed index by the term in which that was said.
    reach: BTreeMap<u64, u64>,
}

pub(crate) fn digest(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

impl History {
    pub(super) fn new(seed: u64) -> History {
        History {
            seed,
            ..History::default()
        }
    }

    /// Highest index known to be committed.
    pub(crate) fn committed(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        Some(
            self.entries
                .get(index.checked_sub(1)? as usize)?
                .header
                .term,
        )
    }

    fn next_offset(&self, index: u64) -> i64 {
        match index {
            0 => 0,
            _ => self.entries[index as usize - 1].header.next_offset(),
        }
    }

    fn start_at(&self, index: u64) -> i64 {
        self.starts
            .range(..=index)
            .map(|(_, &s)| s)
            .max()
            .unwrap_or(0)
    }

    /// Log start as of everything committed.
    pub(crate) fn log_start(&self) -> i64 {
        self.start_at(u64::MAX)
    }

    /// A replica calls these entries committed.
    pub(super) fn commits(
        &mut self,
        node: NodeId,
        by: u64,
        news: &[(FrameHeader, Bytes)],
    ) -> Check {
        for (header, payload) in news {
            if header.index <= self.committed() {
                self.same(node, header, payload)?;
            } else {
                self.learn(node, by, header, payload)?;
            }
        }
        Ok(())
    }

    /// INV-4.
    fn same(&self, node: NodeId, header: &FrameHeader, payload: &[u8]) -> Check {
        let known = &self.entries[header.index as usize - 1];
        ensure!(
            known.header == *header && known.digest == digest(payload),
            "n{node}: entry {} is committed as {:?} and here as {header:?} (INV-4)",
            header.index,
            known.header
        );
        Ok(())
    }

    fn learn(&mut self, node: NodeId, by: u64, header: &FrameHeader, payload: &[u8]) -> Check {
        let before = self.entries.last().map(|e| e.header);
        let chain = before.map_or(self.seed, |h| h.chain);
        let next = before.map_or(0, |h| h.next_offset());
        ensure!(
            header.index == self.committed() + 1,
            "n{node}: entry {} is committed behind {}",
            header.index,
            self.committed()
        );
        ensure!(
            header.base_offset == next
                && header.check_follows(header.index - 1, next, chain).is_ok(),
            "n{node}: entry {header:?} does not follow offset {next} (INV-2)"
        );
        ensure!(
            before.is_none_or(|b| b.term <= header.term),
            "n{node}: the term goes back at entry {}",
            header.index
        );
        let mut stamp = None;
        if header.kind == EntryKind::Data {
            let batch = BatchHeader::decode(payload).map_err(|e| e.to_string())?;
            ensure!(
                batch.base_offset == next,
                "n{node}: the batch of entry {} says offset {}",
                header.index,
                batch.base_offset
            );
            stamp = stamp_of(&batch);
            self.by_offset.insert(next, header.index);
        }
        if let Some(stamp) = stamp {
            let first = *self.stamps.entry(stamp).or_insert(header.index);
            ensure!(
                first == header.index,
                "n{node}: batch {stamp:?} is at {first} and at {} (INV-8)",
                header.index
            );
        }
        if header.kind == EntryKind::LogStart {
            let start = payload.first_chunk().map_or(0, |b| i64::from_le_bytes(*b));
            self.starts
                .insert(header.index, start.min(header.base_offset));
        }
        self.entries.push(Entry {
            header: *header,
            digest: digest(payload),
            stamp,
            by,
        });
        self.reach.insert(by, header.index);
        Ok(())
    }

    /// A leader's log has whatever leaders of earlier terms committed.
    pub(super) fn led(&self, seen: &Seen<'_>) -> Check {
        let earlier = self.reach.range(..seen.term);
        let Some(reach) = earlier.map(|(_, &index)| index).max() else {
            return Ok(());
        };
        let term = self.term_at(reach).unwrap_or(0);
        ensure!(
            seen.terms.holds(reach, term),
            "g{} n{}: leads in term {} without entry {reach} of term {term}, which is committed",
            seen.group,
            seen.node,
            seen.term
        );
        ensure!(
            !seen.caught_up || seen.committed >= reach,
            "g{} n{}: leads in term {}, its commit index is {}, an earlier leader's was {reach}",
            seen.group,
            seen.node,
            seen.term,
            seen.committed
        );
        Ok(())
    }

    /// What a replica says of itself.
    pub(super) fn figures(&self, seen: &Seen<'_>) -> Check {
        let who = format!("g{} n{}", seen.group, seen.node);
        ensure!(
            seen.committed <= self.committed(),
            "{who}: commit index {} that nobody has shown",
            seen.committed
        );
        let want = self.next_offset(seen.committed);
        ensure!(
            seen.high_watermark == want,
            "{who}: high watermark {}, at commit index {} it is {want} (INV-3)",
            seen.high_watermark,
            seen.committed
        );
        let (least, most) = (self.start_at(seen.committed), self.log_start());
        ensure!(
            (least..=most).contains(&seen.log_start),
            "{who}: log start {}, must be in {least}..={most}",
            seen.log_start
        );
        Ok(())
    }

    /// INV-1, INV-8: what a client is told is committed, and is its own.
    pub(super) fn acked(&mut self, index: u64, term: Option<u64>, told: &Told) -> Check {
        let Told { stamp, crc, offset } = *told;
        let entry = index
            .checked_sub(1)
            .and_then(|i| self.entries.get(i as usize));
        let Some(entry) = entry else {
            return Err(format!(
                "entry {index} is acknowledged and not committed (INV-1)"
            ));
        };
        let header = &entry.header;
        ensure!(
            term.is_none_or(|t| t == header.term)
                && header.base_offset == offset
                && stamp.is_none_or(|s| entry.stamp == Some(s))
                && crc.is_none_or(|c| header.payload_crc == c),
            "acknowledged {stamp:?} as entry {index} of term {term:?} at offset {offset}, there is {entry:?} (INV-1)"
        );
        if header.kind == EntryKind::Data {
            self.acked.insert(index, offset);
        }
        Ok(())
    }

    /// INV-3: what a reader saw is committed, and whole.
    pub(crate) fn read(&self, node: NodeId, from: i64, batches: &[Bytes]) -> Check {
        let mut next = None;
        for bytes in batches {
            let batch = BatchHeader::decode(bytes).map_err(|e| e.to_string())?;
            let offset = batch.base_offset;
            let index = self.by_offset.get(&offset);
            let entry = index.map(|&i| &self.entries[i as usize - 1]);
            let Some(entry) = entry else {
                return Err(format!(
                    "n{node}: a reader saw offset {offset}, which is not committed (INV-3)"
                ));
            };
            ensure!(
                entry.digest == digest(bytes),
                "n{node}: a reader saw other bytes at offset {offset} (INV-3)"
            );
            let end = entry.header.next_offset();
            ensure!(
                next.map_or(offset <= from && from < end, |n| n == offset),
                "n{node}: a reader at {from} was given {offset} behind {next:?} (INV-2)"
            );
            next = Some(end);
        }
        Ok(())
    }

    pub(super) fn recovered(&mut self, found: &Recovered<'_>) -> Check {
        let (group, node) = (found.group, found.node);
        ensure!(
            found.committed <= self.committed(),
            "g{group} n{node}: recovers commit index {}, {} is committed",
            found.committed,
            self.committed()
        );
        let (least, most) = (self.start_at(found.committed), self.log_start());
        ensure!(
            (least..=most).contains(&found.log_start),
            "g{group} n{node}: recovers log start {}, must be in {least}..={most}",
            found.log_start
        );
        for (header, payload) in found.frames {
            if header.index <= found.committed {
                self.same(node, header, payload)?;
            }
        }
        Ok(())
    }

    /// Everything acknowledged from the log start on lies in these frames, and they are the committed ones.
    pub(crate) fn holds_all(&self, node: NodeId, frames: &[(FrameHeader, Bytes)]) -> Check {
        for (header, payload) in frames {
            ensure!(
                header.index <= self.committed(),
                "n{node}: entry {} is not committed at rest",
                header.index
            );
            self.same(node, header, payload)?;
        }
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
            return Err(format!("n{node} has nothing"));
        };
        ensure!(
            last.0.index == self.committed(),
            "n{node} ends at {}, {} is committed (INV-4)",
            last.0.index,
            self.committed()
        );
        let start = self.log_start();
        for (&index, &offset) in &self.acked {
            let gone = self.entries[index as usize - 1].header.next_offset() <= start;
            ensure!(
                gone || index >= first.0.index,
                "n{node}: offset {offset} was acknowledged and is not there (INV-1)"
            );
        }
        Ok(())
    }
}

fn stamp_of(batch: &BatchHeader) -> Option<Stamp> {
    let producer = batch.producer()?;
    Some((producer.id, producer.epoch, producer.base_sequence))
}
