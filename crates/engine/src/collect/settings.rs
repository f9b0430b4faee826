//! How a collector works: what an operator sets, and the defaults.

use std::time::Duration;

use dormer_index::ExpiryDefaults;

use crate::lease_renewal::STUCK_AFTER;

/// How a collector works.
#[derive(Debug, Clone)]
pub struct CollectSettings {
    /// Seconds between the beginnings of two collections; `None` for none but those that are asked
    /// for.
    pub interval_seconds: Option<i64>,
    /// Seconds between two listings of the store.
    pub listing_seconds: i64,
    /// The longest upload that the server allows, in seconds. What an upload may use stays longer.
    pub upload_seconds_max: i64,
    /// The longest time that the store's client tries to store an object, in seconds.
    pub put_seconds_max: i64,
    /// Seconds for which an upload alias resolves.
    pub alias_seconds: i64,
    /// What caches without rules of their own keep; for the plan.
    pub expiry_defaults: ExpiryDefaults,
    /// The zstd level that cold packs are recompressed at; `None` leaves them as they are.
    pub recompress_level: Option<u8>,
    /// A pack is cold so many seconds after it was stored, and after a commit used it last.
    pub cold_seconds: i64,
    /// The lease is renewed at least so often; a lease lasts several times longer.
    pub renew_after: Duration,
    /// A call to a folder that takes longer is stuck, and the lease is renewed no more.
    pub stuck_after: Duration,
}

impl Default for CollectSettings {
    fn default() -> Self {
        Self {
            interval_seconds: Some(3_600),
            listing_seconds: 7 * 86_400,
            upload_seconds_max: 86_400,
            put_seconds_max: 0,
            alias_seconds: 30 * 86_400,
            expiry_defaults: ExpiryDefaults {
                retention_seconds: 0,
                quota_bytes: 0,
                grace_seconds: 30 * 86_400,
                log_retention_seconds: 0,
            },
            recompress_level: None,
            cold_seconds: 30 * 86_400,
            renew_after: Duration::from_secs(3),
            stuck_after: STUCK_AFTER,
        }
    }
}
