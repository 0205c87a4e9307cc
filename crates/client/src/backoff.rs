//! Pauses that grow, with jitter, so that many clients don't come back at the same moment.
//!
//! A partition whose leader died has another within a fraction of a second, as a rule, and a pause that had grown to that
//! would double it. So pauses stay short for a while before they grow to their maximum.

use std::time::Duration;

use rand::Rng;

/// Pauses are no longer than this…
const SHORT: Duration = Duration::from_millis(50);
/// …until they add up to this.
const SHORT_FOR: Duration = Duration::from_secs(1);

/// Doubles from `first` to `max`, with a stop on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    spent: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff {
            first,
            max,
            next: first.min(max),
            spent: Duration::ZERO,
        }
    }

    /// The next pause without jitter.
    pub(crate) fn next_exact(&mut self) -> Duration {
        let pause = self.next;
        self.spent = self.spent.saturating_add(pause);
        let bound = match self.spent < SHORT_FOR {
            true => SHORT.max(self.first),
            false => self.max,
        };
        self.next = pause.saturating_mul(2).min(bound).min(self.max);
        pause
    }

    /// The next pause, 50 % to 100 % of the exact one.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let exact = self.next_exact();
        exact.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        *self = Backoff::new(self.first, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn stays_short_as_long_as_a_failover_takes_then_doubles_to_the_maximum() {
        let mut backoff = Backoff::new(ms(20), ms(300));
        let mut pauses: Vec<_> = (0..26).map(|_| backoff.next_exact()).collect();
        let grown = pauses.split_off(21);
        assert_eq!(pauses[..3], [ms(20), ms(40), ms(50)]);
        assert!(pauses[2..].iter().all(|pause| *pause == ms(50)));
        assert_eq!(grown, [ms(100), ms(200), ms(300), ms(300), ms(300)]);
        backoff.reset();
        assert_eq!(backoff.next_exact(), ms(20));
        assert!((ms(20)..=ms(40)).contains(&backoff.next_pause()));
    }

    #[test]
    fn a_first_pause_that_is_long_is_kept() {
        let mut backoff = Backoff::new(ms(400), ms(900));
        let pauses: Vec<_> = (0..5).map(|_| backoff.next_exact()).collect();
        assert_eq!(pauses, [ms(400), ms(400), ms(400), ms(800), ms(900)]);
        assert_eq!(Backoff::new(ms(400), ms(10)).next_exact(), ms(10));
    }
}
