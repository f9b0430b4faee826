//! How long a cache, or Nix, is left alone after failures.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::retry::{Passing, RetryPolicy};

/// The failures of a cache, or of Nix, since its last success, and how long nothing is tried after
/// them.
#[derive(Debug, Default)]
pub(super) struct FailurePause {
    pub(super) failures: u32,
    not_before: Option<Instant>,
    pub(super) paused_by: Option<Arc<Error>>,
}

impl FailurePause {
    /// One failure more. Returns the pause until the next try, which is no shorter than the server
    /// asks for.
    pub(super) fn lengthen(&mut self, retry: &RetryPolicy, retry_after: Option<Duration>) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = retry.wait(self.failures, Passing::Broken).unwrap_or(Duration::MAX);
        let pause = pause.max(retry_after.unwrap_or_default().min(retry.retry_after_max));
        self.not_before = Instant::now().checked_add(pause);
        pause
    }

    pub(super) fn is_refused(&self) -> bool {
        self.paused_by.as_ref().is_some_and(|error| error.is_refusal())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.not_before.is_some_and(|until| Instant::now() < until)
    }
}
