//! The collector of this process: what it works on, and when the next collection is due.

use std::sync::{Arc, Mutex};

use dormer_blobs::{Blobs, Store};
use dormer_index::{CollectIndex, DoomedPack, JournalIndex, UnixSeconds};
use dormer_nix::with_causes;

use super::metrics::CollectMetrics;
use super::plan::PackLimits;
use super::progress::{CollectionProgress, Progress};
use super::recompress::Recompression;
use super::report::EndedCollection;
use super::settings::CollectSettings;
use crate::journal::kept_before;
use crate::{Clock, Result};

/// Frees what nothing needs. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Collector {
    pub(super) index: Arc<dyn CollectIndex>,
    pub(super) blobs: Arc<dyn Blobs>,
    /// Where the journal is, and what the database knows of it, if there is one.
    journal: Option<(Store, Arc<dyn JournalIndex>)>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: CollectSettings,
    pub(super) metrics: CollectMetrics,
    pub(super) progress: Arc<Progress>,
    /// Where the next pass of deletions begins, if the store failed in the last one.
    pub(super) deleting_after: Arc<Mutex<Option<DoomedPack>>>,
}

impl Collector {
    /// A collector over an index and its store.
    pub fn new(
        index: Arc<dyn CollectIndex>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
        settings: CollectSettings,
    ) -> Self {
        Self {
            index,
            blobs,
            journal: None,
            clock,
            settings,
            metrics: CollectMetrics::new(),
            progress: Arc::default(),
            deleting_after: Arc::default(),
        }
    }

    /// Leaves what a journal in this store may need, if one is kept there.
    #[must_use]
    pub fn with_journal(self, store: Store, memory: Arc<dyn JournalIndex>) -> Self {
        Self { journal: Some((store, memory)), ..self }
    }

    /// Where the collection or the plan is that this collector, or a clone of it, makes now.
    pub fn progress(&self) -> CollectionProgress {
        self.progress.now()
    }

    /// The counters of this process.
    pub fn metrics(&self) -> CollectMetrics {
        self.metrics.clone()
    }

    /// Opens the job of the next collection if it is due. Returns when to ask again.
    pub(crate) async fn open_if_due(&self) -> Result<Option<UnixSeconds>> {
        let Some(interval) = self.settings.interval_seconds else { return Ok(None) };
        let now = self.clock.now();
        let last = self.index.last_collection().await?.opened_at;
        if last + interval <= now {
            self.index.open_collection(now - interval, now).await?;
            return Ok(Some(now + interval));
        }
        Ok(Some(last + interval))
    }

    /// The last whole collection, whichever process ran it.
    pub async fn last(&self) -> Result<Option<EndedCollection>> {
        EndedCollection::read(&self.index.last_collection().await?)
    }

    /// Shows the last whole collection in the gauges of this process.
    pub(crate) async fn show_last(&self) -> Result<()> {
        if let Some(last) = self.last().await? {
            self.metrics.show(&last);
        }
        Ok(())
    }

    /// The packs that were there by then stay, because the store keeps a journal of another past.
    pub(super) async fn kept_before(&self) -> Option<UnixSeconds> {
        let Some((store, memory)) = &self.journal else { return None };
        match kept_before(&**memory, store, self.clock.now()).await {
            Ok(before) => before,
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(
                    error,
                    "whether the store keeps an older journal is not known; no old pack goes now"
                );
                Some(UnixSeconds::MAX)
            }
        }
    }

    /// The time of the snapshot: whatever is committed later stamps its packs later.
    pub(super) fn begin_marks(&self) -> (UnixSeconds, PackLimits) {
        let now = self.clock.now();
        (now, PackLimits::new(now, self.settings.upload_seconds_max))
    }

    pub(super) fn recompression(&self) -> Option<Recompression> {
        let cold_before = self.clock.now() - self.settings.cold_seconds;
        self.settings.recompress_level.map(|level| Recompression { level, cold_before })
    }

    pub(super) fn aliases_since(&self, now: UnixSeconds) -> UnixSeconds {
        now - self.settings.alias_seconds
    }
}
