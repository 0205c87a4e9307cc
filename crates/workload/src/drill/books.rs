//! The books of a drill: a [`Ledger`](crate::Ledger) that costs two bits a record.
//!
//! Records of a partition are numbered from 0, and the number is in the value, with a checksum over all of it. So whether
//! a record was acknowledged and whether it was read are a bit each. Where it was acknowledged and where it was read is
//! compared in sum: the sums over a mix of number and offset are equal if all places are, and differ by chance once in 2⁶⁴.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::ledger::Verdict;

/// Run, partition, number, checksum.
const RUN_BYTES: usize = 8;
const HEAD_BYTES: usize = RUN_BYTES + 4 + 8;
/// Bytes of the smallest value.
pub const SIZE_MIN: usize = HEAD_BYTES + 8;
/// Records of one partition, at most: 8 MiB of bits.
pub(super) const RECORDS_MAX: u64 = 1 << 26;

/// A value that tells what it is. `filler` is as long as the value, and gives what is not told.
pub(super) fn value(run: u64, partition: i32, number: u64, filler: &Bytes) -> Bytes {
    let size = filler.len().max(SIZE_MIN);
    let mut value = BytesMut::with_capacity(size);
    value.put_u64(run);
    value.put_i32(partition);
    value.put_u64(number);
    let from = HEAD_BYTES.min(filler.len());
    value.put_slice(&filler[from..filler.len().saturating_sub(8).max(from)]);
    // A filler that is too short gives nothing.
    value.resize(size - 8, 0);
    let checksum = xxh3_64(&value);
    value.put_u64(checksum);
    value.freeze()
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Record {
        partition: i32,
        number: u64,
    },
    Altered,
    /// Of another run.
    Foreign,
}

/// What a value of this run is.
pub(super) fn recognize(run: u64, value: &[u8]) -> Seen {
    let field = |at: usize| {
        let bytes = value.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    if value.len() < SIZE_MIN || field(0) != Some(run) {
        return Seen::Foreign;
    }
    let (told, checksum) = value.split_at(value.len() - 8);
    let partition = told.get(RUN_BYTES..RUN_BYTES + 4);
    let partition = partition.and_then(|bytes| bytes.try_into().ok());
    match (partition, field(RUN_BYTES + 4)) {
        (Some(partition), Some(number)) if xxh3_64(told).to_be_bytes() == checksum => {
            Seen::Record {
                partition: i32::from_be_bytes(partition),
                number,
            }
        }
        _ => Seen::Altered,
    }
}

/// A row of bits that grows.
#[derive(Clone, Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    /// Sets a bit; false when it was set before.
    fn set(&mut self, at: u64) -> bool {
        let word = (at / 64) as usize;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (at % 64);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    fn get(&self, at: u64) -> bool {
        let word = self.words.get((at / 64) as usize);
        word.is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// Bits that are set here and not there.
    fn without(&self, other: &Bits) -> u64 {
        let theirs = other.words.iter().chain(std::iter::repeat(&0));
        let pairs = self.words.iter().zip(theirs);
        pairs
            .map(|(ours, theirs)| u64::from((ours & !theirs).count_ones()))
            .sum()
    }
}

/// The books of one partition.
#[derive(Clone, Debug)]
pub(super) struct Books {
    run: u64,
    partition: i32,
    /// Records numbered so far: higher numbers were never sent.
    sent: u64,
    acknowledged: Bits,
    read: Bits,
    /// Sums of places: of all that are acknowledged, and of those of them that were read.
    places: u64,
    places_read: u64,
    again: u64,
    altered: u64,
    unknown: u64,
    out_of_order: u64,
    /// Behind the last offset and number read.
    position: i64,
    next_number: u64,
}

impl Books {
    pub(super) fn new(run: u64, partition: i32) -> Books {
        Books {
            run,
            partition,
            sent: 0,
            acknowledged: Bits::default(),
            read: Bits::default(),
            places: 0,
            places_read: 0,
            again: 0,
            altered: 0,
            unknown: 0,
            out_of_order: 0,
            position: 0,
            next_number: 0,
        }
    }

    /// The record of this number is on its way.
    pub(super) fn sent(&mut self, number: u64) {
        self.sent = self.sent.max(number + 1);
    }

    /// It lies there.
    pub(super) fn acknowledged(&mut self, number: u64, offset: i64) {
        if self.acknowledged.set(number) {
            self.places = self.places.wrapping_add(place(number, offset));
        }
    }

    /// A record was read.
    pub(super) fn read(&mut self, value: &[u8], offset: i64) {
        self.seen(recognize(self.run, value), offset);
    }

    /// A record was read, and this is what it is.
    pub(super) fn seen(&mut self, seen: Seen, offset: i64) {
        if offset < self.position {
            self.out_of_order += 1;
        }
        self.position = offset + 1;
        let number = match seen {
            Seen::Record { partition, number }
                if partition == self.partition && number < self.sent =>
            {
                number
            }
            Seen::Altered => {
                self.altered += 1;
                return;
            }
            _ => {
                self.unknown += 1;
                return;
            }
        };
        if !self.read.set(number) {
            self.again += 1;
            return;
        }
        // A producer keeps the order of a partition, so numbers rise.
        if number < self.next_number {
            self.out_of_order += 1;
        }
        self.next_number = number + 1;
        if self.acknowledged.get(number) {
            self.places_read = self.places_read.wrapping_add(place(number, offset));
        }
    }

    pub(super) fn acknowledged_count(&self) -> u64 {
        self.acknowledged.count
    }

    /// The count. A record without an acknowledgement may have been read or not; both are right. `misplaced` is 1 for a
    /// partition with places that differ.
    pub(super) fn verdict(&self) -> Verdict {
        let lost = self.acknowledged.without(&self.read);
        Verdict {
            acknowledged: self.acknowledged.count,
            read: self.read.count,
            lost,
            duplicated: self.again,
            altered: self.altered,
            // With records lost the sums differ all the same.
            misplaced: u64::from(lost == 0 && self.places != self.places_read),
            unknown: self.unknown,
            out_of_order: self.out_of_order,
        }
    }
}

fn place(number: u64, offset: i64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..].copy_from_slice(&offset.to_be_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 77;

    fn filler() -> Bytes {
        Bytes::from(vec![5; 100])
    }

    fn books(records: u64) -> Books {
        let mut books = Books::new(RUN, 3);
        for number in 0..records {
            books.sent(number);
            books.acknowledged(number, number as i64);
        }
        books
    }

    fn read(books: &mut Books, number: u64, offset: i64) {
        books.read(&value(RUN, 3, number, &filler()), offset);
    }

    #[test]
    fn a_value_tells_what_it_is_and_a_changed_one_is_found_out() {
        for size in [0, 1, SIZE_MIN, SIZE_MIN + 1, 1000] {
            let value = value(RUN, 3, 9, &Bytes::from(vec![5; size]));
            assert_eq!(value.len(), size.max(SIZE_MIN));
            let seen = Seen::Record {
                partition: 3,
                number: 9,
            };
            assert_eq!(recognize(RUN, &value), seen);
            assert_eq!(recognize(RUN + 1, &value), Seen::Foreign);
            for at in RUN_BYTES..value.len() {
                let mut other = value.to_vec();
                other[at] ^= 1;
                assert_eq!(recognize(RUN, &other), Seen::Altered);
            }
        }
        assert_eq!(recognize(RUN, b""), Seen::Foreign);
    }

    #[test]
    fn all_there_once_is_clean_and_so_is_one_without_an_acknowledgement() {
        let mut books = books(200);
        books.sent(200);
        for number in 0..=200 {
            read(&mut books, number, number as i64);
        }
        let verdict = books.verdict();
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.read), (200, 201));
    }

    #[test]
    fn each_kind_of_wrong_is_counted() {
        let mut some = books(130);
        for number in (0..130).filter(|number| ![64, 129].contains(number)) {
            read(&mut some, number, number as i64);
        }
        read(&mut some, 5, 200);
        read(&mut some, 5000, 201);
        some.read(b"something", 202);
        some.read(&value(RUN, 4, 1, &filler()), 203);
        let mut bad = value(RUN, 3, 64, &filler()).to_vec();
        bad[50] ^= 1;
        some.read(&bad, 204);
        let verdict = some.verdict();
        assert_eq!(
            verdict,
            Verdict {
                acknowledged: 130,
                read: 128,
                lost: 2,
                duplicated: 1,
                altered: 1,
                misplaced: 0,
                unknown: 3,
                out_of_order: 0,
            }
        );
        // Two that changed places.
        let mut swapped = books(2);
        read(&mut swapped, 1, 0);
        read(&mut swapped, 0, 1);
        let verdict = swapped.verdict();
        assert_eq!((verdict.misplaced, verdict.out_of_order), (1, 1));
        // And one elsewhere, in the right order.
        let mut moved = books(2);
        read(&mut moved, 0, 0);
        read(&mut moved, 1, 7);
        assert_eq!(moved.verdict().misplaced, 1);
    }
}
