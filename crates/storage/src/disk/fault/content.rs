//! One file of the fault disk: what the page cache shows, what the device holds, and how they come together.
//!
//! Content lives in sectors, each with a cache and a device state; a sector that is absent is zeros in both. The
//! length is metadata with its own history: the durable one first, then every later one up to the current.
//! A sector is one of
//! - *clean*: not in `dirty`. Cache and device agree unless a sync failed or lied;
//! - *dirty*: written since the last writeback; a direct read sees the cache, a power loss may see either;
//! - *stale*: cut off by a truncation that is not durable: the device still has the old bytes, which come back only
//!   if a power loss undoes the truncation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use super::super::SECTOR;
use super::ranges::Ranges;
use super::rng::Rng;

/// Lengths that may be pending; the oldest becomes durable by itself when one more comes.
const MAX_PENDING_LENGTHS: usize = 16;

type Block = Arc<[u8; SECTOR]>;

static ZEROS: LazyLock<Block> = LazyLock::new(|| Arc::new([0; SECTOR]));

/// The sector that holds byte `pos`.
pub(super) fn sector_of(pos: u64) -> u64 {
    pos / SECTOR as u64
}

/// The number of sectors that `len` bytes take.
pub(super) fn sectors_for(len: u64) -> u64 {
    len.div_ceil(SECTOR as u64)
}

#[derive(Clone, Debug)]
struct Sector {
    cache: Block,
    dev: Block,
}

/// Which state of the sectors a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The page cache.
    Cache,
    /// A direct read: the device, after writing back what is dirty.
    Direct,
}

/// What a power loss took from a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    /// Dirty sectors that stayed old.
    pub(super) sectors: u64,
    /// 1 if the length is not the one the process saw last.
    pub(super) lengths: u64,
}

/// Content, length and allocation of a file.
#[derive(Clone, Debug)]
pub(super) struct Content {
    sectors: BTreeMap<u64, Sector>,
    dirty: BTreeSet<u64>,
    stale: BTreeSet<u64>,
    /// Never empty: durable length first, current one last.
    lens: Vec<u64>,
    /// Sectors that take room on the device.
    pub(super) allocated: Ranges,
    /// Sectors that cannot be read.
    pub(super) bad: BTreeSet<u64>,
}

impl Content {
    pub(super) fn new() -> Self {
        Self {
            sectors: BTreeMap::new(),
            dirty: BTreeSet::new(),
            stale: BTreeSet::new(),
            lens: vec![0],
            allocated: Ranges::default(),
            bad: BTreeSet::new(),
        }
    }

    /// The length that the process sees.
    pub(super) fn len(&self) -> u64 {
        self.lens.last().copied().unwrap_or(0)
    }

    /// Dirty sectors.
    pub(super) fn dirty_sectors(&self) -> usize {
        self.dirty.len()
    }

    /// Writes bytes that lie within one sector into the cache. The length is the caller's to extend.
    pub(super) fn write_within(&mut self, pos: u64, bytes: &[u8]) {
        let number = sector_of(pos);
        let at = (pos % SECTOR as u64) as usize;
        let sector = self.sector(number);
        Arc::make_mut(&mut sector.cache)[at..at + bytes.len()].copy_from_slice(bytes);
        self.dirty.insert(number);
        self.allocated.insert(number, number + 1);
    }

    /// Fills `buf` from `pos` on; zeros where nothing was written or the file ended before.
    pub(super) fn read(&self, pos: u64, buf: &mut [u8], view: View) {
        buf.fill(0);
        let end = pos.saturating_add(buf.len() as u64).min(self.len());
        if pos >= end {
            return;
        }
        for (&number, sector) in self.sectors.range(sector_of(pos)..sectors_for(end)) {
            let shows_cache =
                view == View::Cache || self.dirty.contains(&number) || self.stale.contains(&number);
            let block = if shows_cache {
                &sector.cache
            } else {
                &sector.dev
            };
            let start = number * SECTOR as u64;
            let (from, to) = (start.max(pos), (start + SECTOR as u64).min(end));
            buf[(from - pos) as usize..(to - pos) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
    }

    /// Whether `[pos, pos + len)` meets an unreadable sector within the file.
    pub(super) fn meets_bad(&self, pos: u64, len: usize) -> bool {
        let end = pos.saturating_add(len as u64).min(self.len());
        pos < end
            && self
                .bad
                .range(sector_of(pos)..sectors_for(end))
                .next()
                .is_some()
    }

    /// Extends the length to at least `len`.
    pub(super) fn extend(&mut self, len: u64) {
        if len > self.len() {
            self.push_len(len);
        }
    }

    /// Cuts or extends to `len`.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len() {
            let keep = sectors_for(len);
            for (&number, sector) in self.sectors.range_mut(keep..) {
                sector.cache = Arc::clone(&ZEROS);
                self.dirty.remove(&number);
                self.stale.insert(number);
            }
            self.allocated.truncate(keep);
            self.clear_tail(len);
        }
        if len != self.len() {
            self.push_len(len);
        }
    }

    /// As if done by another process and synced: no power loss undoes it.
    pub(super) fn set_len_durably(&mut self, len: u64) {
        self.set_len(len);
        self.commit_length();
        self.write_back(sector_of(len));
    }

    /// As if done by another process and synced; `bytes` lie within the file.
    pub(super) fn overwrite_durably(&mut self, pos: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = pos + done as u64;
            let n = (SECTOR - (at % SECTOR as u64) as usize).min(bytes.len() - done);
            self.write_within(at, &bytes[done..done + n]);
            self.write_back(sector_of(at));
            done += n;
        }
    }

    /// Moves a random dirty sector to the device, as the kernel does in the background.
    pub(super) fn write_back_random(&mut self, rng: &mut Rng) {
        let (Some(&first), Some(&last)) = (self.dirty.first(), self.dirty.last()) else {
            return;
        };
        let from = first + rng.below(last - first + 1);
        if let Some(&number) = self.dirty.range(from..).next() {
            self.write_back(number);
        }
    }

    /// A sync that works.
    pub(super) fn sync(&mut self) {
        while let Some(&number) = self.dirty.first() {
            self.write_back(number);
        }
        self.commit_length();
    }

    /// A sync that the crash cuts short: some sectors and perhaps the length are durable, the rest is still dirty.
    pub(super) fn sync_partly(&mut self, rng: &mut Rng) {
        for number in self.dirty.clone() {
            if rng.chance(5) {
                self.write_back(number);
            }
        }
        if rng.chance(5) {
            self.commit_length();
        }
    }

    /// A sync that loses sectors, at least one if any is dirty, and marks all of them clean: the cache shows them,
    /// the device does not. Returns how many. The length stays pending.
    pub(super) fn sync_losing(&mut self, rng: &mut Rng) -> u64 {
        let victim = rng.below(self.dirty.len() as u64) as usize;
        let mut lost = 0;
        for (i, number) in std::mem::take(&mut self.dirty).into_iter().enumerate() {
            if i == victim || rng.chance(5) {
                lost += 1;
            } else {
                self.write_back(number);
            }
        }
        lost
    }

    /// Makes the current length durable, and the truncations before it.
    pub(super) fn commit_length(&mut self) {
        while self.lens.len() > 1 {
            self.commit_oldest_length();
        }
    }

    /// The kernel drops clean pages: reads find what the device holds.
    pub(super) fn evict_clean(&mut self) {
        for (number, sector) in &mut self.sectors {
            if !self.dirty.contains(number) && !self.stale.contains(number) {
                sector.cache = Arc::clone(&sector.dev);
            }
        }
    }

    /// Power fails: every dirty sector is old or new, the length is any of those since the last sync.
    pub(super) fn power_loss(&mut self, bias: u64, rng: &mut Rng) -> Lost {
        let mut lost = Lost::default();
        for number in std::mem::take(&mut self.dirty) {
            if rng.chance(bias) {
                self.write_back(number);
            } else {
                lost.sectors += 1;
            }
        }
        let pending = self.lens.len() as u64 - 1;
        let kept = match pending {
            0 => 0,
            _ if rng.chance(bias) => pending,
            _ if rng.chance(3) => rng.below(pending),
            _ => 0,
        };
        lost.lengths = u64::from(kept < pending);
        for _ in 0..kept {
            self.commit_oldest_length();
        }
        self.lens.truncate(1);
        self.stale.clear();
        self.forget_cache();
        lost
    }

    /// Changes one to eight bytes of a sector, in cache and device alike.
    pub(super) fn rot(&mut self, number: u64, seed: u64) {
        let mut rng = Rng::new(seed);
        let start = number.saturating_mul(SECTOR as u64);
        let room = self.len().saturating_sub(start).min(SECTOR as u64);
        if room == 0 {
            return;
        }
        let mut flips: BTreeMap<usize, u8> = BTreeMap::new();
        for _ in 0..=rng.below(8) {
            flips.insert(rng.below(room) as usize, 1 + rng.below(255) as u8);
        }
        let sector = self.sector(number);
        for block in [&mut sector.cache, &mut sector.dev] {
            let block = Arc::make_mut(block);
            for (&at, &flip) in &flips {
                block[at] ^= flip;
            }
        }
    }

    /// Feeds everything that later behaviour depends on.
    pub(super) fn hash(&self, feed: &mut impl FnMut(&[u8])) {
        for len in &self.lens {
            feed(&len.to_le_bytes());
        }
        for set in [&self.dirty, &self.stale, &self.bad] {
            feed(&(set.len() as u64).to_le_bytes());
            for number in set {
                feed(&number.to_le_bytes());
            }
        }
        feed(&self.allocated.total().to_le_bytes());
        for (number, sector) in &self.sectors {
            feed(&number.to_le_bytes());
            feed(&sector.cache[..]);
            feed(&sector.dev[..]);
        }
    }

    fn sector(&mut self, number: u64) -> &mut Sector {
        self.sectors.entry(number).or_insert_with(|| Sector {
            cache: Arc::clone(&ZEROS),
            dev: Arc::clone(&ZEROS),
        })
    }

    fn write_back(&mut self, number: u64) {
        if let Some(sector) = self.sectors.get_mut(&number) {
            sector.dev = Arc::clone(&sector.cache);
        }
        self.dirty.remove(&number);
        self.stale.remove(&number);
    }

    fn push_len(&mut self, len: u64) {
        self.lens.push(len);
        if self.lens.len() > MAX_PENDING_LENGTHS + 1 {
            self.commit_oldest_length();
        }
    }

    /// The oldest pending length becomes the durable one; what it cut off leaves the device.
    fn commit_oldest_length(&mut self) {
        self.lens.remove(0);
        let durable = self.lens.first().copied().unwrap_or(0);
        let cut: Vec<u64> = self.stale.range(sectors_for(durable)..).copied().collect();
        for number in cut {
            self.stale.remove(&number);
            if let Some(sector) = self.sectors.get_mut(&number) {
                sector.dev = Arc::clone(&ZEROS);
            }
        }
        self.drop_zero_sectors_behind(durable);
    }

    /// Forgets sectors that hold nothing, so that a file that is cut again and again stays small.
    fn drop_zero_sectors_behind(&mut self, len: u64) {
        let empty: Vec<u64> = self
            .sectors
            .range(sectors_for(len.max(self.len()))..)
            .filter(|(number, sector)| {
                !self.dirty.contains(number)
                    && Arc::ptr_eq(&sector.cache, &ZEROS)
                    && Arc::ptr_eq(&sector.dev, &ZEROS)
            })
            .map(|(&number, _)| number)
            .collect();
        for number in empty {
            self.sectors.remove(&number);
        }
    }

    /// Zeros the cache behind `len` in the sector that `len` splits.
    fn clear_tail(&mut self, len: u64) {
        let (number, at) = (sector_of(len), (len % SECTOR as u64) as usize);
        if let Some(sector) = self.sectors.get_mut(&number)
            && at > 0
            && sector.cache[at..].iter().any(|&byte| byte != 0)
        {
            Arc::make_mut(&mut sector.cache)[at..].fill(0);
            self.dirty.insert(number);
        }
    }

    /// After a power loss: the device is all there is, and nothing lies behind the length.
    fn forget_cache(&mut self) {
        let len = self.len();
        let keep = sectors_for(len);
        self.sectors.split_off(&keep);
        for sector in self.sectors.values_mut() {
            sector.cache = Arc::clone(&sector.dev);
        }
        self.clear_tail(len);
        while let Some(&number) = self.dirty.first() {
            self.write_back(number);
        }
        self.allocated.truncate(keep);
        // A truncation that was undone brings its sectors back.
        for &number in self.sectors.keys() {
            self.allocated.insert(number, number + 1);
        }
    }
}
