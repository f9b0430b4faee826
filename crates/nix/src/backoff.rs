//! How long to wait before something is tried again.

use std::time::Duration;

/// Pauses that double from try to try, up to a bound. A part of each is random, so that programs
/// which failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first pause.
    pub first: Duration,
    /// Bound of every pause.
    pub max: Duration,
}

impl Backoff {
    /// The pause after so many failed tries in a row, at least one. Half of it is random. `random`
    /// lies in 0 to 1.
    pub fn pause(&self, failed: u32, random: f64) -> Duration {
        self.bound(failed).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// The same, all of it random: for the replicas of one store or database, which fail together.
    pub fn spread_pause(&self, failed: u32, random: f64) -> Duration {
        self.bound(failed).mul_f64(random.clamp(0.0, 1.0))
    }

    /// The longest pause after so many failed tries in a row: for work that one process has.
    pub fn bound(&self, failed: u32) -> Duration {
        let doublings = failed.saturating_sub(1);
        self.first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(10), max: Duration::from_millis(35) };
        let bounds = [0, 1, 2, 3, 31, 32, 33, u32::MAX].map(|failed| backoff.bound(failed).as_millis());
        assert_eq!(bounds, [10, 10, 20, 35, 35, 35, 35, 35]);
    }

    #[test]
    fn half_of_a_pause_is_random_or_all_of_it() {
        let backoff = Backoff { first: Duration::from_secs(2), max: Duration::MAX };
        for (random, seconds) in [(-1.0, 4), (0.0, 4), (0.5, 6), (1.0, 8), (2.0, 8)] {
            assert_eq!(backoff.pause(3, random), Duration::from_secs(seconds), "{random}");
            let all = Duration::from_secs(8).mul_f64(random.clamp(0.0, 1.0));
            assert_eq!(backoff.spread_pause(3, random), all, "{random}");
        }
        assert_eq!(Backoff { first: Duration::MAX, ..backoff }.pause(9, 0.0), Duration::MAX.mul_f64(0.5));
    }
}
