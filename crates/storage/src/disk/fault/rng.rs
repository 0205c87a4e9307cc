//! The fault disk's generator: xorshift64*, our own so that a seed means the same history on every platform and
//! with every version of every dependency.

/// A seeded generator of choices; not for secrets.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// Spreads the seed first, so that neighbouring seeds differ from the first draw on.
    pub(super) fn new(seed: u64) -> Self {
        let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((z ^ (z >> 31)).max(1))
    }

    /// The next draw.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    /// True in `tenths` of ten draws.
    pub(super) fn chance(&mut self, tenths: u64) -> bool {
        self.below(10) < tenths
    }

    /// How much of what is unsynced a power loss keeps, in tenths: often all or nothing.
    pub(super) fn bias(&mut self) -> u64 {
        [0, 1, 5, 9, 10][self.below(5) as usize]
    }

    /// The generator's position, for state hashes.
    pub(super) fn state(&self) -> u64 {
        self.0
    }
}
