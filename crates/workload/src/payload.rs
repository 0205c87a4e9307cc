//! Values of records: random, so that nothing can be compressed, and made ahead, so that making them costs nothing.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Random bytes that values are cut from: far more than any codec's window or batch sees at once.
const POOL_BYTES: usize = 8 << 20;

/// An endless row of values of one size. They are slices of one pool: no copy, no allocation.
#[derive(Clone, Debug)]
pub struct Payloads {
    pool: Bytes,
    size: usize,
    at: usize,
}

impl Payloads {
    /// Values of `size` bytes; the same seed gives the same values.
    pub fn new(size: usize, seed: u64) -> Payloads {
        let mut pool = vec![0; POOL_BYTES.max(size)];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Payloads {
            pool: pool.into(),
            size,
            at: 0,
        }
    }

    /// The next value.
    #[inline]
    pub fn next_value(&mut self) -> Bytes {
        if self.at + self.size > self.pool.len() {
            // Another alignment each time round, so that rounds differ.
            self.at = (self.at + 61) % self.size.max(1) % (self.pool.len() - self.size + 1);
        }
        let value = self.pool.slice(self.at..self.at + self.size);
        self.at += self.size;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_size_and_differ() {
        for size in [
            0,
            1,
            100,
            1024,
            POOL_BYTES / 2 + 1,
            POOL_BYTES,
            POOL_BYTES + 3,
        ] {
            let mut payloads = Payloads::new(size, 7);
            let rounds = 3 * (POOL_BYTES / size.max(1) + 1).min(20_000);
            let first = payloads.next_value();
            for _ in 0..rounds {
                assert_eq!(payloads.next_value().len(), size);
            }
            if (100..POOL_BYTES).contains(&size) {
                assert_ne!(payloads.next_value(), first);
            }
        }
    }
}
