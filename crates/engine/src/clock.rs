//! Time as an argument, so that tests own it.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use dormer_index::UnixSeconds;

/// Where the engine reads the time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Seconds since 1970-01-01 UTC.
    fn now(&self) -> UnixSeconds;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixSeconds {
        // A clock before 1970 is treated as 1970: every comparison with stored times then errs
        // towards keeping data.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
    }
}
