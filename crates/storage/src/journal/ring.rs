//! The ring file that holds the journal's cycles: positions, wrapping, writing ahead of itself, scanning.
//!
//! Positions are absolute and only grow; the place in the file is the position modulo the ring's length. The first
//! lap is reserved but not yet written; zeros are written a little ahead of its head, so that a cycle's sync finds
//! blocks that are there already. That is for speed alone: a cycle that overtakes the zeros is as good, and nobody
//! reads them.

use std::sync::Arc;

use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::journal::cycle::{self, BLOCK, CycleHeader};

/// Zeros are written this far ahead of the head in the first lap, bytes.
const AHEAD: u64 = 4 << 20;
/// They are due when this much of it is missing, bytes.
const AHEAD_DUE: u64 = 256 << 10;
/// And written in pieces of this size, bytes: a cycle waits for one at most.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Longest cycle, bytes: what recovery reads at once.
pub(crate) const CYCLE_BYTES_MAX: u64 = 8 << 20;

/// The ring.
#[derive(Debug)]
pub(crate) struct Ring {
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Absolute position up to which the first lap was written.
    prewritten: u64,
}

/// What a scan of the journal found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Whole cycles in order, each with its bytes.
    pub(crate) cycles: Vec<(CycleHeader, Vec<u8>)>,
    /// Absolute position behind the last.
    pub(crate) head: u64,
    /// Sequence of the last, or the one the scan began after.
    pub(crate) seq: u64,
    /// Boot number of the last, or the one the scan began with.
    pub(crate) boot: u64,
    /// A cycle is missing although a later one proves that it was synced.
    pub(crate) damaged: Option<String>,
}

impl Ring {
    /// A ring over a file of this length whose head is at `head`.
    pub(crate) fn new(file: Arc<dyn DiskFile>, len: u64, head: u64) -> Ring {
        Ring {
            file,
            len,
            prewritten: if head >= len { len } else { head },
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Longest cycle that this ring takes, bytes.
    pub(crate) fn cycle_bytes_max(&self) -> u64 {
        CYCLE_BYTES_MAX.min(self.len / 8)
    }

    /// Writes a padded cycle at an absolute position. Not synced.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = at + bytes.len() as u64;
        self.prewritten = self.prewritten.max(end.min(self.len));
        let at = at % self.len;
        let room = (self.len - at) as usize;
        if bytes.len() <= room {
            return self.put(at, bytes);
        }
        self.put(at, &bytes[..room])?;
        self.put(0, &bytes[room..])
    }

    /// Whether zeros should be written ahead of this head.
    pub(crate) fn is_prewrite_due(&self, head: u64) -> bool {
        self.prewritten < self.len.min(head + AHEAD - AHEAD_DUE)
    }

    /// Writes one piece of zeros ahead of `head`, behind which no cycle was begun. Not synced. False when there is
    /// nothing left to do.
    pub(crate) fn prewrite(&mut self, head: u64) -> Result<bool> {
        let from = self.prewritten.max(head);
        let end = self.len.min(head + AHEAD);
        if from >= end {
            return Ok(false);
        }
        let piece = &ZEROS[..ZEROS.len().min((end - from) as usize)];
        self.put(from, piece)?;
        self.prewritten = from + piece.len() as u64;
        Ok(true)
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_at(at, &[bytes])
            .map_err(Error::io("writing the journal"))
    }

    fn get(&self, at: u64, bytes: &mut [u8], from_cache: bool) -> Result<()> {
        let at = at % self.len;
        let room = ((self.len - at) as usize).min(bytes.len());
        let (head, rest) = bytes.split_at_mut(room);
        for (at, part) in [(at, head), (0, rest)] {
            if part.is_empty() {
                continue;
            }
            let read = self.read_part(at, part, from_cache)?;
            part[read..].fill(0);
        }
        Ok(())
    }

    /// Reads within the file; what the device can't read is zeros, block by block, so that one sector hides no other.
    fn read_part(&self, at: u64, part: &mut [u8], from_cache: bool) -> Result<usize> {
        let read = |at, part: &mut [u8]| {
            if from_cache {
                self.file.read_at(at, part)
            } else {
                self.file.read_device_at(at, part)
            }
        };
        match read(at, part) {
            Err(e) if is_unreadable(&e) => {}
            other => return other.map_err(Error::io("reading the journal")),
        }
        let mut at = at;
        for block in part.chunks_mut(BLOCK as usize) {
            let got = read(at, block)
                .or_else(unreadable_is_empty)
                .map_err(Error::io("reading the journal"))?;
            block[got..].fill(0);
            at += block.len() as u64;
        }
        Ok(part.len())
    }

    /// Reads cycles from `from` on: each must follow the one before by sequence, and come from the same boot or a
    /// later one.
    pub(crate) fn scan(&self, from: u64, seq: u64, boot: u64, rules: ScanRules) -> Result<Scan> {
        let mut scan = Scan {
            head: from,
            seq,
            boot,
            ..Scan::default()
        };
        while scan.head - from < self.len {
            let Some((header, bytes)) = self.read_cycle(scan.head, rules)? else {
                break;
            };
            let follows = header.seq == scan.seq + 1 && header.boot >= scan.boot;
            if !follows && !rules.any_boot {
                break;
            }
            scan.seq = header.seq;
            scan.boot = header.boot.max(scan.boot);
            scan.head += header.len.next_multiple_of(BLOCK);
            scan.cycles.push((header, bytes));
        }
        scan.damaged = self.look_behind(&scan, rules)?;
        Ok(scan)
    }

    /// A cycle is written only after the one before it is synced. So a whole later cycle that says so proves that
    /// the missing one was there. It begins within the longest cycle's length.
    fn look_behind(&self, scan: &Scan, rules: ScanRules) -> Result<Option<String>> {
        let window = (self.cycle_bytes_max() + 2 * BLOCK).min(self.len);
        let mut bytes = vec![0; window as usize];
        self.get(scan.head, &mut bytes, rules.from_cache)?;
        for block in 0..window / BLOCK {
            let Some(header) = cycle::peek(&bytes[(block * BLOCK) as usize..]) else {
                continue;
            };
            let later = header.seq > scan.seq
                && header.boot >= scan.boot
                && header.synced_through > scan.seq;
            if later && self.read_cycle(scan.head + block * BLOCK, rules)?.is_some() {
                return Ok(Some(format!(
                    "cycle {} is damaged, cycle {} proves that it was synced",
                    scan.seq + 1,
                    header.seq
                )));
            }
        }
        Ok(None)
    }

    fn read_cycle(&self, at: u64, rules: ScanRules) -> Result<Option<(CycleHeader, Vec<u8>)>> {
        let mut first = [0; BLOCK as usize];
        self.get(at, &mut first, rules.from_cache)?;
        let Some(header) = cycle::peek(&first) else {
            return Ok(None);
        };
        if header.len > self.cycle_bytes_max() {
            return Ok(None);
        }
        let mut bytes = vec![0; header.len as usize];
        if header.len <= BLOCK {
            bytes.copy_from_slice(&first[..header.len as usize]);
        } else {
            self.get(at, &mut bytes, rules.from_cache)?;
        }
        Ok(cycle::is_whole(&bytes).then_some((header, bytes)))
    }
}

/// How a scan reads; anything but the default is a planted mistake.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScanRules {
    pub(crate) any_boot: bool,
    pub(crate) from_cache: bool,
}

/// An unreadable sector is damage like any other: it fails the checksum.
pub(crate) fn unreadable_is_empty(error: std::io::Error) -> std::io::Result<usize> {
    if is_unreadable(&error) {
        Ok(0)
    } else {
        Err(error)
    }
}

fn is_unreadable(error: &std::io::Error) -> bool {
    const EIO: i32 = 5;
    error.raw_os_error() == Some(EIO)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::{Disk, FaultDisk, OpenMode};

    fn ring(len: u64, head: u64) -> Ring {
        let disk = FaultDisk::new(1);
        let file = disk
            .open(Path::new("journal"), OpenMode::CreateNew)
            .unwrap();
        file.reserve(0, len).unwrap();
        Ring::new(file, len, head)
    }

    fn byte(ring: &Ring, at: u64) -> u8 {
        let mut byte = [0];
        ring.file.read_at(at, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn zeros_stay_ahead_of_the_head_and_off_its_cycles() {
        let mut ring = ring(16 << 20, 0);
        let cycle = vec![7; 2 * BLOCK as usize];
        let (mut head, mut pieces) = (0, 0);
        while head < 2 * ring.len() {
            let at = head;
            head += cycle.len() as u64;
            // Begun and not yet written: the place is taken.
            if ring.is_prewrite_due(head) {
                while ring.prewrite(head).unwrap() {
                    pieces += 1;
                }
                assert!(!ring.is_prewrite_due(head));
            }
            ring.write(at, &cycle).unwrap();
            assert_eq!(byte(&ring, at % ring.len()), 7);
            assert!(head >= ring.len() || ring.prewritten >= head);
        }
        // Each place once, and none in the second lap.
        assert!(pieces <= (ring.len() / ZEROS.len() as u64) + 64);
        assert!(
            (0..ring.len())
                .step_by(BLOCK as usize)
                .all(|at| byte(&ring, at) == 7)
        );
    }

    #[test]
    fn a_cycle_may_overtake_the_zeros() {
        let mut ring = ring(16 << 20, 0);
        assert!(ring.prewrite(0).unwrap());
        let cycle = vec![7; 1 << 20];
        ring.write(0, &cycle).unwrap();
        while ring.prewrite(1 << 20).unwrap() {}
        assert_eq!((byte(&ring, 0), byte(&ring, (1 << 20) - 1)), (7, 7));
        assert_eq!(ring.prewritten, (1 << 20) + AHEAD);
    }

    #[test]
    fn a_later_lap_is_never_prewritten() {
        let mut ring = ring(1 << 20, 3 << 20);
        assert!(!ring.is_prewrite_due(3 << 20));
        assert!(!ring.prewrite(3 << 20).unwrap());
    }
}
