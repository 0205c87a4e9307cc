//! Producer state: what an idempotent producer wrote last, so that a repeated batch is answered, not appended (INV-8).
//!
//! The last five batches of an id and epoch are remembered, as Kafka's clients expect. The state is not derived
//! data, since old segments go: it is saved with seals and checkpoints, and replayed from there. Two copies are
//! kept: one as of the commit index, one as of the last entry; a truncation goes back to the first and replays.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use timberline_record::BatchHeader;

use crate::codec::{Malformed, Put, Reader};

/// Batches remembered for each producer.
pub const BATCHES_REMEMBERED: usize = 5;
/// Producers remembered for each partition; the one silent for longest is forgotten first.
pub const PRODUCERS_MAX: usize = 10_000;

/// The answer to "may this batch be appended?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCheck {
    /// It is next.
    Accept,
    /// It was appended before.
    Duplicate {
        /// Index of the entry that holds it.
        index: u64,
        /// Where its first record lies.
        base_offset: i64,
        /// When it was appended, ms since the epoch.
        append_time_ms: i64,
    },
    /// It was appended before, longer ago than is remembered.
    TooOld,
    /// A batch before it is missing.
    OutOfOrder {
        /// The sequence that would be next.
        expected: i32,
    },
    /// A newer epoch of the same producer has written.
    Fenced {
        /// That epoch.
        current_epoch: i16,
    },
    /// The id is not known here, and the batch is not a first one.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    index: u64,
    time_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Oldest first.
    marks: VecDeque<Mark>,
}

/// One appended batch, as the state sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProducerWrite {
    pub(crate) id: i64,
    epoch: i16,
    mark: Mark,
}

impl ProducerWrite {
    /// `None` for a batch without a producer.
    pub(crate) fn of(
        batch: &BatchHeader,
        base_offset: i64,
        index: u64,
        time_ms: i64,
    ) -> Option<Self> {
        (batch.producer_id >= 0).then(|| ProducerWrite {
            id: batch.producer_id,
            epoch: batch.producer_epoch,
            mark: Mark {
                first_sequence: batch.base_sequence,
                last_sequence: sequence_after(batch.base_sequence, batch.record_count - 1),
                base_offset,
                index,
                time_ms,
            },
        })
    }
}

/// Sequences count from 0 to `i32::MAX` and start again.
fn sequence_after(sequence: i32, steps: i32) -> i32 {
    (i64::from(sequence) + i64::from(steps)).rem_euclid(1 << 31) as i32
}

/// The state of all producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    // Ordered, so that what is saved does not depend on a hasher.
    map: BTreeMap<i64, Producer>,
}

impl Producers {
    pub(crate) fn check(&self, batch: &BatchHeader) -> SequenceCheck {
        if batch.producer_id < 0 {
            return SequenceCheck::Accept;
        }
        let first = batch.base_sequence;
        let Some(producer) = self.map.get(&batch.producer_id) else {
            return if first == 0 {
                SequenceCheck::Accept
            } else {
                SequenceCheck::Unknown
            };
        };
        if batch.producer_epoch < producer.epoch {
            return SequenceCheck::Fenced {
                current_epoch: producer.epoch,
            };
        }
        if batch.producer_epoch > producer.epoch {
            return if first == 0 {
                SequenceCheck::Accept
            } else {
                SequenceCheck::OutOfOrder { expected: 0 }
            };
        }
        let last = sequence_after(first, batch.record_count - 1);
        for mark in &producer.marks {
            if (mark.first_sequence, mark.last_sequence) == (first, last) {
                return SequenceCheck::Duplicate {
                    index: mark.index,
                    base_offset: mark.base_offset,
                    append_time_ms: mark.time_ms,
                };
            }
        }
        let Some(newest) = producer.marks.back() else {
            return SequenceCheck::Accept;
        };
        let expected = sequence_after(newest.last_sequence, 1);
        // Half the number space counts as behind.
        let ahead = (i64::from(first) - i64::from(expected)).rem_euclid(1 << 31);
        match ahead {
            0 => SequenceCheck::Accept,
            n if n < 1 << 30 => SequenceCheck::OutOfOrder { expected },
            _ => SequenceCheck::TooOld,
        }
    }

    pub(crate) fn apply(&mut self, write: &ProducerWrite) {
        let producer = self.map.entry(write.id).or_insert_with(|| Producer {
            epoch: write.epoch,
            marks: VecDeque::with_capacity(BATCHES_REMEMBERED),
        });
        if write.epoch != producer.epoch {
            producer.epoch = write.epoch;
            producer.marks.clear();
        }
        if producer.marks.len() == BATCHES_REMEMBERED {
            producer.marks.pop_front();
        }
        producer.marks.push_back(write.mark);
        if self.map.len() > PRODUCERS_MAX {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        let quietest = self
            .map
            .iter()
            .min_by_key(|(_, p)| p.marks.back().map_or(i64::MIN, |m| m.time_ms))
            .map(|(&id, _)| id);
        if let Some(id) = quietest {
            self.map.remove(&id);
        }
    }

    /// Forgets producers whose last batch is older than `before_ms`.
    pub(crate) fn expire(&mut self, before_ms: i64) {
        self.map
            .retain(|_, p| p.marks.back().is_some_and(|m| m.time_ms >= before_ms));
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.map.len() as u32);
        for (id, producer) in &self.map {
            out.i64(*id);
            out.u32(producer.epoch as u16 as u32);
            out.u32(producer.marks.len() as u32);
            for mark in &producer.marks {
                out.u32(mark.first_sequence as u32);
                out.u32(mark.last_sequence as u32);
                out.i64(mark.base_offset);
                out.u64(mark.index);
                out.i64(mark.time_ms);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Producers, Malformed> {
        let mut map = BTreeMap::new();
        for _ in 0..reader.count(16)? {
            let id = reader.i64()?;
            let epoch = reader.u32()? as u16 as i16;
            let count = reader.count(32)?;
            if count > BATCHES_REMEMBERED {
                return Err(Malformed("remembers too many batches"));
            }
            let mut marks = VecDeque::with_capacity(BATCHES_REMEMBERED);
            for _ in 0..count {
                marks.push_back(Mark {
                    first_sequence: reader.u32()? as i32,
                    last_sequence: reader.u32()? as i32,
                    base_offset: reader.i64()?,
                    index: reader.u64()?,
                    time_ms: reader.i64()?,
                });
            }
            map.insert(id, Producer { epoch, marks });
        }
        Ok(Producers { map })
    }
}
