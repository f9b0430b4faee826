//! When bytes may be sent, so that a rate is kept.

use std::num::NonZeroU64;
use std::time::Duration;

/// Gives bytes their turns, so that there are at most so many in a second.
#[derive(Debug, Clone)]
pub struct RateSchedule {
    bytes_per_second: NonZeroU64,
    /// When the bytes that took a turn so far are through.
    free_at: Duration,
}

impl RateSchedule {
    /// A schedule of so many bytes a second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, free_at: Duration::ZERO }
    }

    /// Takes a turn for these bytes, and returns when it begins. Times count from any fixed moment.
    /// Time without traffic is not saved up: a burst would break the limit.
    pub fn take_turn(&mut self, now: Duration, bytes: u64) -> Duration {
        let turn = self.free_at.max(now);
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let length = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.free_at = turn.saturating_add(length);
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_each_other_and_a_pause_is_not_saved_up() {
        let mut schedule = RateSchedule::new(NonZeroU64::new(1_000).unwrap());
        let second = Duration::from_secs(1);
        assert_eq!(schedule.take_turn(second, 500), second);
        assert_eq!(schedule.take_turn(second, 2_000), second * 3 / 2);
        assert_eq!(schedule.take_turn(second * 2, 1), second * 7 / 2);
        assert_eq!(schedule.take_turn(second * 60, 1), second * 60);
        assert!(schedule.take_turn(second * 60, 1) < second * 61);
        schedule.take_turn(second, u64::MAX);
        assert!(schedule.take_turn(second, u64::MAX) > second * 1_000_000);
    }
}
