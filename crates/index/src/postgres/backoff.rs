//! Pauses between tries: each up to twice as long as the one before, and random, so that replicas which failed together do
//! not try again together.

use std::time::Duration;

/// The pauses of one call.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next_max: Duration,
}

impl Backoff {
    /// The first pause is at most `min`, none is longer than `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next_max: min }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next_max.mul_f64(rand::random_range(0.0..=1.0));
        self.next_max = (self.next_max * 2).min(self.max);
        pause
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.next_max = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        for max in [10, 20, 35, 35, 35] {
            assert!(backoff.next() <= Duration::from_millis(max));
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(10));
    }
}
