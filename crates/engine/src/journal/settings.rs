//! How the journal is written: an operator sets the interval, and tests the rest.

use std::time::Duration;

use crate::lease_renewal::STUCK_AFTER;

/// How the journal is written.
#[derive(Debug, Clone)]
pub struct JournalSettings {
    /// How often changes are written, if there are any. What changed within this time is lost with
    /// the database.
    pub interval: Duration,
    /// How long a lease lasts after its last file, in seconds. A writer that dies delays the next
    /// one by as much.
    pub lease_seconds: i64,
    /// The lease is renewed so often during a turn; a lease lasts several times longer.
    pub renew_after: Duration,
    /// A turn that stores nothing and notes nothing for so long is stuck, and its lease is renewed
    /// no longer. Longer than any call to the store lasts that still may end well.
    pub stuck_after: Duration,
    /// Segments of fewer bytes are no reason for a new snapshot.
    pub segment_bytes_min: i64,
    /// A new snapshot begins when the segments weigh more than so many snapshots.
    pub snapshot_weight: i64,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(20),
            lease_seconds: 30,
            renew_after: Duration::from_secs(5),
            stuck_after: STUCK_AFTER,
            segment_bytes_min: 8 * 1024 * 1024,
            snapshot_weight: 1,
        }
    }
}
