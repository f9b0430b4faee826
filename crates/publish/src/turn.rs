//! The turn of one cache in a run.

use dormer_index::PublishedCache;
use tokio::time::Instant;

use crate::Result;
use crate::publisher::Run;

/// A turn: until when the cache may keep the others waiting, and whether something of it was
/// changed in the target.
pub(crate) struct Turn<'a> {
    run: &'a Run<'a>,
    ends_at: Instant,
    /// The row of the cache while its state document is up to date.
    up_to_date: Option<PublishedCache>,
}

impl<'a> Turn<'a> {
    /// Begins the turn of a cache that has no state document, or whose document goes.
    pub(crate) fn begin(run: &'a Run<'a>) -> Self {
        Self { run, ends_at: Instant::now() + run.publisher.settings.turn, up_to_date: None }
    }

    /// From now on, the state document of the cache with this row is up to date.
    pub(crate) fn set_up_to_date(&mut self, row: &PublishedCache) {
        self.up_to_date = Some(PublishedCache { scan: None, ..row.clone() });
    }

    /// Records, before the first change of the cache in the target, that its state document is out
    /// of date.
    pub(crate) async fn mark_out_of_date(&mut self) -> Result<()> {
        if let Some(mut row) = self.up_to_date.take() {
            let now = self.run.now();
            // Never the time that the document gives, whatever the clock does.
            row.published_at = now.max(row.published_at.saturating_add(1));
            self.run.state().write_published_cache(&self.run.lease(), &row, now).await?;
        }
        Ok(())
    }

    /// Whether the work at hand has to make room for others, or the whole run has to end.
    pub(crate) fn has_to_pause(&self) -> bool {
        self.run.publisher.is_stopping() || Instant::now() >= self.ends_at
    }
}
