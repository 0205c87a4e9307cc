//! What was acknowledged against what was read.
//!
//! Records carry a number of their own, the *tag*. The sender enters the digest of each under its tag before it is sent,
//! and where it lies when it is acknowledged; the reader enters what it finds. The verdict is a matter of counting.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// A digest of a value, 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(xxh3_128(bytes))
    }
}

/// One record in the books.
#[derive(Clone, Copy, Debug)]
struct Entry {
    digest: Digest,
    stored_at: Option<(i32, i64)>,
    read: u32,
}

/// The books. In memory: about 100 bytes a record.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: HashMap<u64, Entry>,
    altered: u64,
    misplaced: u64,
    unknown: u64,
    /// Where the reader is in each partition; offsets must rise.
    positions: HashMap<i32, i64>,
    backwards: u64,
}

/// What the books say. All but the first two must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records read, each counted once.
    pub read: u64,
    /// Acknowledged and not read.
    pub lost: u64,
    /// Times that a record was read again.
    pub duplicated: u64,
    /// Read with other bytes than were sent.
    pub altered: u64,
    /// Read at another place than was acknowledged.
    pub misplaced: u64,
    /// Read and never sent.
    pub unknown: u64,
    /// Offsets that did not rise within a partition.
    pub out_of_order: u64,
}

impl Verdict {
    /// Nothing is lost, doubled, altered or strange.
    pub fn is_clean(&self) -> bool {
        *self
            == Verdict {
                acknowledged: self.acknowledged,
                read: self.read,
                ..Verdict::default()
            }
    }
}

impl Ledger {
    /// A record is about to be sent.
    pub fn sent(&mut self, tag: u64, digest: Digest) {
        let entry = Entry {
            digest,
            stored_at: None,
            read: 0,
        };
        self.entries.insert(tag, entry);
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, tag: u64, partition: i32, offset: i64) {
        if let Some(entry) = self.entries.get_mut(&tag) {
            entry.stored_at = Some((partition, offset));
        }
    }

    /// A record was read.
    pub fn read(&mut self, tag: u64, digest: Digest, partition: i32, offset: i64) {
        let position = self.positions.entry(partition).or_insert(i64::MIN);
        if offset < *position {
            self.backwards += 1;
        }
        *position = offset + 1;
        let Some(entry) = self.entries.get_mut(&tag) else {
            self.unknown += 1;
            return;
        };
        entry.read += 1;
        if entry.digest != digest {
            self.altered += 1;
        }
        if entry
            .stored_at
            .is_some_and(|place| place != (partition, offset))
        {
            self.misplaced += 1;
        }
    }

    /// The count. A record without an acknowledgement may have been read or not; both are right.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict {
            altered: self.altered,
            misplaced: self.misplaced,
            unknown: self.unknown,
            out_of_order: self.backwards,
            ..Verdict::default()
        };
        for entry in self.entries.values() {
            verdict.acknowledged += u64::from(entry.stored_at.is_some());
            verdict.read += u64::from(entry.read > 0);
            verdict.lost += u64::from(entry.stored_at.is_some() && entry.read == 0);
            verdict.duplicated += u64::from(entry.read.saturating_sub(1));
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> Ledger {
        let mut ledger = Ledger::default();
        for tag in 0..4 {
            ledger.sent(tag, Digest::of(&[tag as u8]));
        }
        for tag in 0..3 {
            ledger.acknowledged(tag, 0, tag as i64);
        }
        ledger
    }

    fn read(ledger: &mut Ledger, tag: u64, offset: i64) {
        ledger.read(tag, Digest::of(&[tag as u8]), 0, offset);
    }

    #[test]
    fn all_there_once_is_clean_and_an_unacknowledged_record_may_be_there() {
        let mut ledger = books();
        for tag in 0..3 {
            read(&mut ledger, tag, tag as i64);
        }
        assert!(ledger.verdict().is_clean());
        read(&mut ledger, 3, 3);
        let verdict = ledger.verdict();
        assert!(verdict.is_clean());
        assert_eq!((verdict.acknowledged, verdict.read), (3, 4));
    }

    #[test]
    fn each_kind_of_wrong_is_counted() {
        let mut ledger = books();
        read(&mut ledger, 0, 0);
        read(&mut ledger, 1, 2);
        ledger.read(1, Digest::of(b"other"), 0, 1);
        read(&mut ledger, 99, 7);
        let verdict = ledger.verdict();
        assert!(!verdict.is_clean());
        assert_eq!(
            verdict,
            Verdict {
                acknowledged: 3,
                read: 2,
                lost: 1,
                duplicated: 1,
                altered: 1,
                misplaced: 1,
                unknown: 1,
                out_of_order: 1,
            }
        );
    }
}
