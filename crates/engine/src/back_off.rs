//! The pause between two attempts of the same work.

use std::time::Duration;

/// The first pause without its random part.
const FIRST_MS: u64 = 100;

/// Waits after a failed attempt, the first one being number 1: 100, 200, 400 ms and so on, each
/// with up to as much again at random, so that tasks which failed together do not come back
/// together.
pub(crate) async fn pause_after(attempt: u32) {
    let base = FIRST_MS << attempt.saturating_sub(1).min(6);
    tokio::time::sleep(Duration::from_millis(base + rand::random_range(0..=base))).await;
}
