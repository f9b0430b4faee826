//! The journal of this process: what it works on, and what it remembers from turn to turn. When it
//! writes is in `schedule`, and what it writes in `turn`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use dormer_blobs::{BlobKey, Blobs, Store};
use dormer_format::{KeptJournal, PackId};
use dormer_index::{Index, JournalIndex, JournalState, UnixSeconds};

use super::kept::{ends_at, kept_journals};
use super::metrics::JournalMetrics;
use super::settings::JournalSettings;
use crate::{Clock, Result};

/// Writes the journal of an index.
#[derive(Debug)]
pub struct Journal {
    pub(super) index: Arc<dyn Index>,
    pub(super) memory: Arc<dyn JournalIndex>,
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) holder: String,
    pub(super) settings: JournalSettings,
    pub(super) metrics: JournalMetrics,
    /// When this process last saw that every change is in the journal.
    pub(super) complete_at: AtomicI64,
    /// Turns that failed since the last good one.
    pub(super) failures: AtomicU32,
    /// Whether this process has looked for another past, without a lease.
    pub(super) has_looked_back: AtomicBool,
    /// Whether it found one, so that a turn is due.
    pub(super) is_past_other: AtomicBool,
    /// Whether a turn of this process has compared the store with the database's past.
    pub(super) is_past_known: AtomicBool,
    /// When the next kept journal goes.
    pub(super) kept_until: AtomicI64,
    /// Steps that turns of this process have ended: files stored, noted or deleted.
    pub(super) steps: AtomicU64,
}

impl Journal {
    /// A journal of an index, given by both of its contracts. `store` is where the packs in `blobs`
    /// are.
    pub fn new(
        index: Arc<dyn Index>,
        journal: Arc<dyn JournalIndex>,
        blobs: Arc<dyn Blobs>,
        store: Store,
        clock: Arc<dyn Clock>,
        holder: String,
        settings: JournalSettings,
    ) -> Self {
        Self {
            index,
            memory: journal,
            blobs,
            store,
            complete_at: AtomicI64::new(clock.now()),
            clock,
            holder,
            settings,
            metrics: JournalMetrics::default(),
            failures: AtomicU32::new(0),
            has_looked_back: AtomicBool::new(false),
            is_past_other: AtomicBool::new(false),
            is_past_known: AtomicBool::new(false),
            kept_until: AtomicI64::new(UnixSeconds::MAX),
            steps: AtomicU64::new(0),
        }
    }

    /// The same for a database that was just recovered from the journal in the store: what is to
    /// stay of that journal is marked already.
    #[must_use]
    pub fn of_recovered(self) -> Self {
        self.has_looked_back.store(true, Ordering::Relaxed);
        self.is_past_known.store(true, Ordering::Relaxed);
        self
    }

    /// What this process wrote, and how far it is behind.
    pub fn metrics(&self) -> JournalMetrics {
        self.metrics.clone()
    }

    /// Reads the marks, and notes when the first of them ends.
    pub(super) async fn look_at_kept(&self) -> Result<Vec<KeptJournal>> {
        let kept = kept_journals(&self.store).await?;
        self.kept_until.store(kept.iter().map(ends_at).min().unwrap_or(UnixSeconds::MAX), Ordering::Relaxed);
        Ok(kept)
    }

    /// Nothing is written where the store is not: below an unmounted folder, or in the store of
    /// another installation. Any name will do, and the answer "not there" is a good one.
    pub(super) async fn check_store(&self) -> Result<()> {
        match self.blobs.head(&BlobKey::Pack(PackId::from_bytes([0; 16]))).await {
            Ok(_) | Err(dormer_blobs::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the segments weigh so much that a new snapshot is to begin.
    pub(super) fn is_heavy(&self, state: &JournalState) -> bool {
        let snapshots = state.snapshot_bytes.saturating_mul(self.settings.snapshot_weight);
        state.segment_bytes > self.settings.segment_bytes_min.max(snapshots)
    }
}
