//! Taking back: referrers first, a narinfo before its NAR, the NAR after its grace, or at once where the lab itself does not
//! serve it any more.

use std::collections::HashMap;

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_format::EncodingTag;
use dormer_index::{Cache, CacheId, NarKey, PublishedCache, PublishedObject};
use dormer_nix::{NarHash, StorePathHash};

use crate::all_of::all_of;
use crate::publisher::Run;
use crate::report::CacheOutcome;
use crate::upload::nar_file;
use crate::{Error, Result, documents};

/// Rows taken back together.
const PAGE: u32 = 512;

/// How long it is remembered that a cache had a path once. A push takes hours at most; who waits for the path by then knows by
/// itself that it was lost.
const REMOVED_KEPT_SECONDS: i64 = 30 * 86_400;

impl Run<'_> {
    /// Notes what the cache has no more. Returns whether some of it was removed for cause: the lab serves its NAR no more, and so
    /// it must go from the target at once.
    pub(crate) async fn begin_removals(&mut self, cache: &Cache) -> Result<bool> {
        let mut urgent = false;
        let mut after = None;
        loop {
            let absent = self.state().pending_absent(self.target(), cache.id, after, PAGE).await?;
            let Some(last) = absent.last() else { return Ok(urgent) };
            after = Some(*last);
            let there = self.state().find_published(self.target(), cache.id, &absent).await?;
            for row in &there {
                urgent |= !self.lab_serves(cache, &row.nar.0).await?;
            }
            let gone: Vec<StorePathHash> = there.iter().map(|row| row.hash).collect();
            if !gone.is_empty() {
                self.state().begin_removing(&self.lease, cache.id, &gone, self.now()).await?;
            }
            urgent |= self.end_graces(cache, &absent).await?;
            let settled: Vec<StorePathHash> =
                absent.iter().filter(|hash| !gone.contains(hash)).copied().collect();
            self.state().note_removed(&self.lease, cache.id, &settled, self.now()).await?;
        }
    }

    /// Begins to take back what is in the cache as another NAR by now, where the lab serves the published one no more: it was
    /// removed for cause, and pushed again since. Returns whether there is such.
    pub(crate) async fn begin_replacements(
        &mut self,
        cache: &Cache,
        present: &HashMap<StorePathHash, NarHash>,
        published: &HashMap<StorePathHash, PublishedObject>,
    ) -> Result<bool> {
        let mut gone = Vec::new();
        for row in published.values() {
            let replaced = present.get(&row.hash).is_some_and(|nar| *nar != row.nar.0);
            if replaced && !self.lab_serves(cache, &row.nar.0).await? {
                gone.push(row.hash);
            }
        }
        if !gone.is_empty() {
            self.state().begin_removing(&self.lease, cache.id, &gone, self.now()).await?;
        }
        let present: Vec<StorePathHash> = present.keys().copied().collect();
        Ok(self.end_graces(cache, &present).await? || !gone.is_empty())
    }

    /// What these paths had before may be in grace here, and in the lab no longer: that ends now. Returns whether there is such.
    async fn end_graces(&mut self, cache: &Cache, hashes: &[StorePathHash]) -> Result<bool> {
        let mut ended: Vec<(NarHash, EncodingTag)> = Vec::new();
        for nar in self.state().nars_left_by(self.target(), cache.id, hashes).await? {
            if !self.lab_serves(cache, &nar.nar.0).await? {
                ended.push(nar.nar);
            }
        }
        if !ended.is_empty() {
            self.state().set_nar_deadline(&self.lease, cache.id, &ended, self.now()).await?;
        }
        Ok(!ended.is_empty())
    }

    /// Forgets what was removed so long ago that no push under way can have counted on it.
    pub(crate) async fn forget_old_removals(&self, cache: &Cache) -> Result<()> {
        Ok(self.state().forget_removed(&self.lease, cache.id, self.now() - REMOVED_KEPT_SECONDS).await?)
    }

    async fn lab_serves(&self, cache: &Cache, nar: &NarHash) -> Result<bool> {
        let found =
            self.publisher.index().find_nar_in_cache(cache.id, &NarKey::Hash(*nar), self.now()).await?;
        Ok(found.is_some())
    }

    /// Removes narinfos that are to go, referrers first. Without a `cache` it is gone as a whole, and so are its NARs.
    pub(crate) async fn remove_all(
        &mut self,
        cache_id: CacheId,
        name: &CacheName,
        cache: Option<&Cache>,
        outcome: &mut CacheOutcome,
    ) -> Result<()> {
        // Also what was about to be written anew, and was not: its old narinfo may still be there.
        self.state().begin_removing(&self.lease, cache_id, &[], self.now()).await?;
        loop {
            let mut next = self.state().removable(self.target(), cache_id, false, PAGE).await?;
            if next.is_empty() {
                // Those in a circle refer to each other only, so in any order.
                next = self.state().removable(self.target(), cache_id, true, PAGE).await?;
            }
            if next.is_empty() {
                break;
            }
            self.touch().await?;
            let rows = self.state().find_published(self.target(), cache_id, &next).await?;
            let run = &*self;
            // Listings also where none are published now: they may have been.
            let deletions = next.iter().map(|hash| async move {
                run.files().delete(&EdgeKey::Narinfo(name.clone(), *hash).to_string()).await?;
                Ok(run.files().delete(&EdgeKey::Listing(name.clone(), *hash).to_string()).await?)
            });
            all_of(deletions, self.publisher.settings.concurrency).await?;
            let mut removed = Vec::with_capacity(rows.len());
            for row in &rows {
                let in_grace = match cache {
                    Some(cache) => self.lab_serves(cache, &row.nar.0).await?,
                    None => false,
                };
                removed.push((row.hash, if in_grace { self.grace_end() } else { self.now() }));
            }
            self.state().finish_removing(&self.lease, cache_id, &removed).await?;
            for hash in &next {
                self.publisher.reporter.path_removed(&outcome.cache, hash);
            }
            outcome.removed += next.len() as u64;
            // Those that are gone for good; those that were taken along are looked at again.
            let present = self.state().find_objects(cache_id, &next).await?;
            let (upstream, absent): (Vec<StorePathHash>, Vec<StorePathHash>) = next
                .into_iter()
                .filter(|hash| !present.iter().any(|found| found.object.path.hash() == *hash))
                .partition(|hash| rows.iter().any(|row| row.hash == *hash && row.upstream));
            self.state().note_removed(&self.lease, cache_id, &absent, self.now()).await?;
            // Found elsewhere by whoever refers to it.
            self.state().drop_pending(&self.lease, cache_id, &upstream).await?;
        }
        self.delete_due_nars(cache_id, name, self.now(), outcome).await
    }

    /// Deletes NARs whose grace is over at this time.
    pub(crate) async fn delete_due_nars(
        &mut self,
        cache: CacheId,
        name: &CacheName,
        now: i64,
        outcome: &mut CacheOutcome,
    ) -> Result<()> {
        loop {
            let due = self.state().due_nars(self.target(), cache, now, PAGE).await?;
            if due.is_empty() {
                return Ok(());
            }
            let keys: Vec<(NarHash, EncodingTag)> = due.iter().map(|nar| nar.nar).collect();
            self.state().begin_deleting_nars(&self.lease, cache, &keys).await?;
            let run = &*self;
            let deletions = keys.iter().map(|nar| async move {
                Ok(run.files().delete(&EdgeKey::Nar(name.clone(), nar_file(*nar)).to_string()).await?)
            });
            all_of(deletions, self.publisher.settings.concurrency).await?;
            self.state().forget_nars(&self.lease, cache, &keys).await?;
            outcome.nars_deleted += keys.len() as u64;
        }
    }

    /// Takes a whole cache back: its state document first, so that the edge knows it no more; then everything in it.
    pub(crate) async fn withdraw(&mut self, published: &PublishedCache) -> Result<CacheOutcome> {
        let mut outcome = CacheOutcome { cache: published.name.clone(), ..CacheOutcome::default() };
        let name: CacheName =
            published.name.parse().map_err(|_| Error::CacheName { name: published.name.clone() })?;
        // Should it be published again before all of this is done, nothing counts as written.
        let unknown = PublishedCache { basis: Vec::new(), document: Vec::new(), ..published.clone() };
        self.state().write_published_cache(&self.lease, &unknown).await?;
        documents::remove_state(self, &name).await?;
        let mut after = None;
        loop {
            let rows = self.state().list_published(self.target(), published.cache, after, PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.hash);
            let hashes: Vec<StorePathHash> = rows.iter().map(|row| row.hash).collect();
            self.state().begin_removing(&self.lease, published.cache, &hashes, self.now()).await?;
        }
        self.remove_all(published.cache, &name, None, &mut outcome).await?;
        // Also those that were in grace.
        self.delete_due_nars(published.cache, &name, i64::MAX, &mut outcome).await?;
        documents::remove_cache_info(self, &name).await?;
        self.state().forget_published_cache(&self.lease, published.cache).await?;
        outcome.note = Some("was taken away".to_owned());
        Ok(outcome)
    }
}
