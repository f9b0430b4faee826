//! How a job runner works.

use std::time::Duration;

use dormer_index::ExpiryDefaults;

/// How a runner works.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// How long a lease lasts after the last step, in seconds. It must exceed the difference
    /// between the clocks of two replicas.
    pub lease_seconds: i64,
    /// How often the runner looks for open jobs, and reads the gauges.
    pub poll: Duration,
    /// Most rows in one step.
    pub step_rows_max: u32,
    /// When the runner opens expire jobs; `None` leaves that to others.
    pub expiry: Option<ExpirySchedule>,
    /// What is kept where a cache says nothing.
    pub expiry_defaults: ExpiryDefaults,
    /// How long after the end of a recount the next one is opened, in seconds; `None` leaves that,
    /// and the summing up of changes, to others.
    pub recount_seconds: Option<i64>,
    /// How long the outbox keeps changes; `None` leaves trimming it to others.
    pub outbox: Option<OutboxLimits>,
}

/// How long the outbox keeps changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Every change is kept for so many seconds: a cache that is new to a target looks for what it
    /// had before.
    pub keep_seconds: i64,
    /// A change is kept for so many seconds at most, also if a target has not followed it.
    pub give_up_seconds: i64,
}

impl Default for OutboxLimits {
    /// 30 days, as long as publishing remembers removed paths, and 90 days.
    fn default() -> Self {
        Self { keep_seconds: 30 * 86_400, give_up_seconds: 90 * 86_400 }
    }
}

/// When caches are looked through for what they keep no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpirySchedule {
    /// How long after a cache's last expire job the next one is opened.
    pub interval: Duration,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            lease_seconds: 30,
            poll: Duration::from_secs(2),
            step_rows_max: 4_096,
            expiry: None,
            expiry_defaults: ExpiryDefaults {
                retention_seconds: 0,
                quota_bytes: 0,
                grace_seconds: 30 * 86_400,
                log_retention_seconds: 0,
            },
            recount_seconds: None,
            outbox: None,
        }
    }
}
