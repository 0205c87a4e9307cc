//! What a snapshot is: sealed segments, told of by a manifest. No data passes through here.
//!
//! A replica is described by places that are free of file ids: the receiver has files of its own. The bytes of a
//! segment are those of its file from [`crate::FIRST_FRAME`] on, frames and then the footer, at the same positions on
//! both sides; frames are the same bytes on every replica (INV-4), footers are not and are made anew.
//!
//! Invariants: segments follow each other without a gap; all entries are committed at the sender. What a manifest
//! claims of entries is not believed: the receiver computes it from the frames.

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::file_header::FIRST_FRAME;
use crate::footer::{FOOTER_LEN_MAX, TRAILER_LEN};
use crate::ids::FileId;
use crate::membership::CONFIG_LEN_MAX;
use crate::place::Place;

/// Segments of one snapshot, at most.
pub const SNAPSHOT_SEGMENTS_MAX: usize = 1 << 16;
/// Longest segment that is taken, bytes.
const SEGMENT_LEN_MAX: u64 = 1 << 40;

/// The state of a log right behind an entry, the same on every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryPlace {
    /// The entry's index; 0 before the first.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The chain up to it.
    pub chain: u64,
    /// Offset of the next record.
    pub next_offset: i64,
    /// Its append time, ms since the epoch.
    pub time_ms: i64,
}

/// One segment of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentManifest {
    /// What its first frame continues.
    pub first: EntryPlace,
    /// Behind its last frame.
    pub last: EntryPlace,
    /// Position behind its last frame, bytes; the first lies at [`crate::FIRST_FRAME`].
    pub frames_end: u64,
    /// Bytes of footer and trailer behind that; 0 when the sender has none. The last segment has one.
    pub footer_len: u64,
    /// The footer's checksum, as its trailer has it.
    pub footer_crc: u32,
}

impl SegmentManifest {
    /// Position behind the last byte that is shipped.
    pub fn end(&self) -> u64 {
        self.frames_end + self.footer_len
    }

    /// Whether both hold the same entries, and so the same frames.
    pub(crate) fn has_frames_of(&self, other: &SegmentManifest) -> bool {
        (self.first, self.last, self.frames_end) == (other.first, other.last, other.frames_end)
    }
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// The topic of the log.
    pub topic: Uuid,
    /// Its partition.
    pub partition: u32,
    /// First offset that is kept, as of the last entry or later.
    pub log_start: i64,
    /// Index of the last config entry up to the snapshot's end.
    pub membership_index: u64,
    /// That entry's payload.
    pub membership: Bytes,
    /// In order, at least one.
    pub segments: Vec<SegmentManifest>,
}

impl SnapshotManifest {
    /// What the first entry continues.
    pub fn first(&self) -> EntryPlace {
        self.segments.first().map(|s| s.first).unwrap_or_default()
    }

    /// Behind the last entry.
    pub fn last(&self) -> EntryPlace {
        self.segments.last().map(|s| s.last).unwrap_or_default()
    }

    /// Bytes to be shipped.
    pub fn bytes(&self) -> u64 {
        let of = |s: &SegmentManifest| s.end().saturating_sub(FIRST_FRAME);
        self.segments.iter().map(of).sum()
    }

    /// Whether a replica could have written this: bounds, and segments that follow each other.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub(crate) fn check(&self) -> Result<()> {
        let fail = |why: &str| Err(Error::corrupt("a snapshot's manifest", why));
        if self.segments.is_empty() || self.segments.len() > SNAPSHOT_SEGMENTS_MAX {
            return fail("no segments, or too many");
        }
        for segment in &self.segments {
            let (first, last) = (&segment.first, &segment.last);
            if first.index >= last.index
                || first.term > last.term
                || first.next_offset > last.next_offset
                || first.time_ms > last.time_ms
                || first.next_offset < 0
                || segment.frames_end <= FIRST_FRAME
                || segment.frames_end > SEGMENT_LEN_MAX
                || segment.footer_len > FOOTER_LEN_MAX + TRAILER_LEN as u64
                || last.index == u64::MAX
            {
                return fail("a segment with impossible bounds");
            }
        }
        let pairs = self.segments.iter().zip(&self.segments[1..]);
        if !pairs.clone().all(|(a, b)| a.last == b.first) {
            return fail("segments with gaps");
        }
        let (first, last) = (self.first(), self.last());
        if !(first.next_offset..=last.next_offset).contains(&self.log_start) {
            return fail("the log start is outside");
        }
        if self.membership_index == 0
            || self.membership_index > last.index
            || self.membership.len() > CONFIG_LEN_MAX
            || self.segments.last().is_none_or(|s| s.footer_len == 0)
        {
            return fail("no membership");
        }
        Ok(())
    }
}

impl EntryPlace {
    pub(crate) fn of(place: &Place) -> EntryPlace {
        EntryPlace {
            index: place.index,
            term: place.term,
            chain: place.chain,
            next_offset: place.next_offset,
            time_ms: place.time_ms,
        }
    }

    /// The same place in a file.
    pub(crate) fn within(&self, file: FileId, pos: u64) -> Place {
        Place {
            file,
            pos,
            index: self.index,
            term: self.term,
            chain: self.chain,
            next_offset: self.next_offset,
            time_ms: self.time_ms,
        }
    }
}
