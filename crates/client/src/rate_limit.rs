//! A limit for the bytes that the client sends in a second, over all its connections.
//!
//! Bodies count, because they are nearly all of the bytes. A body takes its turn piece by piece, so
//! that several connections share the rate.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use dormer_nix::RateSchedule;
use tokio::time::Instant;

/// Most bytes that take one turn. A tenth of a second at 5 Mbit/s.
pub(crate) const TURN_BYTES_MAX: usize = 64 * 1024;

/// Most bytes a second, shared by everything that holds the same limit.
#[derive(Debug)]
pub struct RateLimit {
    begin: Instant,
    schedule: Mutex<RateSchedule>,
}

impl RateLimit {
    /// A limit of so many bytes a second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { begin: Instant::now(), schedule: Mutex::new(RateSchedule::new(bytes_per_second)) }
    }

    /// Waits until these bytes may go. A caller that gives up has used its turn all the same.
    pub(crate) async fn take(&self, bytes: usize) {
        let turn = {
            // Nothing in here can panic half-way.
            let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            schedule.take_turn(self.begin.elapsed(), bytes as u64)
        };
        tokio::time::sleep_until(self.begin + turn).await;
    }
}

/// Splits bytes into pieces that take one turn each.
pub(crate) fn turns(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(TURN_BYTES_MAX));
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_connections_together_keep_the_rate() {
        let limit = std::sync::Arc::new(RateLimit::new(NonZeroU64::new(1000).unwrap()));
        let start = Instant::now();
        let takers = (0..4).map(|_| {
            let limit = std::sync::Arc::clone(&limit);
            tokio::spawn(async move {
                for _ in 0..5 {
                    limit.take(500).await;
                }
            })
        });
        futures::future::join_all(takers).await;
        // The last of 20 turns begins when 19 of them are through.
        assert_eq!((start.elapsed() + Duration::from_millis(500)).as_secs(), 10);
        assert!(start.elapsed() >= Duration::from_millis(9500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_saved_up() {
        let limit = RateLimit::new(NonZeroU64::new(1000).unwrap());
        limit.take(1000).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        let start = Instant::now();
        limit.take(1000).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        limit.take(1).await;
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[test]
    fn turns_are_all_of_the_bytes() {
        for length in [0, 1, TURN_BYTES_MAX, 3 * TURN_BYTES_MAX + 1] {
            let bytes = Bytes::from(vec![7; length]);
            let pieces: Vec<Bytes> = turns(bytes.clone()).collect();
            assert!(pieces.iter().all(|piece| (1..=TURN_BYTES_MAX).contains(&piece.len())));
            assert_eq!(pieces.concat(), bytes);
        }
    }
}
