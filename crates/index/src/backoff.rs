//! Pauses between tries. Each pause is random and at most twice the longest one before, so that
//! replicas which failed together do not try again together.

use std::time::Duration;

/// The pauses of one call.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next_max: Duration,
}

impl Backoff {
    /// The first pause is at most `min`, and no pause is longer than `max`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next_max: min }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next_max.mul_f64(rand::random_range(0.0..=1.0));
        self.next_max = (self.next_max * 2).min(self.max);
        pause
    }

    /// Begins again with short pauses, after a success.
    pub(crate) fn reset(&mut self) {
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
