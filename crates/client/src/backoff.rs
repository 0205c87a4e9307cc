//! Pauses that grow, with jitter, so that many clients don't come back at the same moment.

use std::time::Duration;

use rand::Rng;

/// Doubles from `first` to `max`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    doublings: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff {
            first,
            max,
            doublings: 0,
        }
    }

    /// The next pause without jitter.
    pub(crate) fn next_exact(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        let pause = self.first.saturating_mul(factor).min(self.max);
        if pause < self.max {
            self.doublings += 1;
        }
        pause
    }

    /// The next pause, 50 % to 100 % of the exact one.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let exact = self.next_exact();
        exact.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.doublings = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_starts_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(50), ms(300));
        let pauses: Vec<_> = (0..5).map(|_| backoff.next_exact()).collect();
        assert_eq!(pauses, [ms(50), ms(100), ms(200), ms(300), ms(300)]);
        backoff.reset();
        assert_eq!(backoff.next_exact(), ms(50));
        assert!((ms(50)..=ms(100)).contains(&backoff.next_pause()));
    }
}
