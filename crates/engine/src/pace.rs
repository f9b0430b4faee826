//! How much work over a whole cache does at once, how long it then leaves the index to others, and
//! how long work waits that failed.

use std::time::Duration;

use dormer_nix::Backoff;

/// Between two attempts of the same request to the store or the index.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(12) };

/// Waits after a failed attempt, the first one being number 1.
pub(crate) async fn back_off(attempt: u32) {
    tokio::time::sleep(BACKOFF.pause(attempt, rand::random())).await;
}

/// Tries something up to `tries` times, with pauses, until `is_final` says that another try would
/// not help; returns the last outcome. `attempt` gets the number of the try, from 1.
pub(crate) async fn tried<T, Attempt: Future<Output = T>>(
    tries: u32,
    attempt: impl Fn(u32) -> Attempt,
    is_final: impl Fn(&T) -> bool,
) -> T {
    let mut number = 1;
    loop {
        let outcome = attempt(number).await;
        if number >= tries || is_final(&outcome) {
            return outcome;
        }
        back_off(number).await;
        number += 1;
    }
}

/// How many rows a step changes, so that it takes some 50 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepSize {
    pub(crate) rows: u32,
    rows_max: u32,
}

impl StepSize {
    const ROWS_MIN: u32 = 64;
    const TOO_SHORT: Duration = Duration::from_millis(25);
    const TOO_LONG: Duration = Duration::from_millis(50);

    pub(crate) fn new(rows_max: u32) -> Self {
        Self { rows: rows_max.min(512), rows_max }
    }

    pub(crate) fn after(self, took: Duration) -> Self {
        let rows = if took > Self::TOO_LONG {
            (self.rows / 2).max(Self::ROWS_MIN)
        } else if took < Self::TOO_SHORT {
            self.rows.saturating_mul(2)
        } else {
            self.rows
        };
        Self { rows: rows.min(self.rows_max), ..self }
    }
}

/// How many times as long as a step the pause after it is. Pushes and pulls that saturate two cores
/// kept 0.8 of their rate beside collections that paused for as long as they worked.
const PAUSE_FACTOR: u32 = 4;

/// The pause after a step: others have four fifths of the time. Within the longest pause, a job's
/// lease of 30 s does not end.
pub(crate) fn pause_after(took: Duration) -> Duration {
    (took * PAUSE_FACTOR).clamp(Duration::from_millis(5), Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_step_follows_the_time_that_it_takes() {
        let ms = Duration::from_millis;
        let max = 4_096;
        for (rows, took, next) in [
            (512, ms(1), 1_024),
            (512, ms(24), 1_024),
            (512, ms(25), 512),
            (512, ms(50), 512),
            (512, ms(51), 256),
            (4_096, ms(1), 4_096),
            (100, ms(900), 64),
            (64, ms(900), 64),
        ] {
            let size = StepSize { rows, rows_max: max }.after(took);
            assert_eq!(size.rows, next, "{rows} rows took {took:?}");
        }
        assert_eq!(StepSize::new(2).rows, 2);
        assert_eq!(StepSize::new(2).after(ms(900)).rows, 2, "never more than the most");
    }
}
