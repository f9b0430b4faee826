//! Removing: referrers first, a narinfo before its NAR, and the NAR after its grace. A NAR that the
//! lab no longer serves goes at once.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_format::EncodingTag;
use dormer_index::{
    Cache, CacheId, Forget, NarRows, ObjectRows, PendingVerdicts, PublishedCache, PublishedObject, Removals,
    RemovalsBegun,
};
use dormer_nix::{NarHash, StorePathHash};

use crate::publisher::Run;
use crate::report::Counts;
use crate::transfer::nar_file;
use crate::turn::Turn;
use crate::{Result, documents};

/// Objects removed together.
const PAGE: u32 = 512;

/// Rows scanned, or forgotten, together.
const SCANNED_PAGE: u32 = 4_096;

/// How long a removal is remembered. A push takes hours at most, and a path that waits for the
/// removed one by then has it in its own row.
const REMOVED_KEPT_SECONDS: i64 = 30 * 86_400;

impl Run<'_> {
    /// Begins to remove what the cache no longer has. Returns whether some of it was removed for
    /// cause: the lab no longer serves its NAR, so it must leave the target at once.
    pub(crate) async fn begin_removals(&self, turn: &Turn<'_>, cache: &Cache) -> Result<bool> {
        let mut urgent = false;
        let mut after = None;
        loop {
            let page = self.state().pending_absent(self.target(), cache.id, after, SCANNED_PAGE).await?;
            if page.next.is_none() || self.publisher.is_stopping() {
                return Ok(urgent);
            }
            after = page.next;
            for absent in page.absent.chunks(PAGE as usize) {
                urgent |= self.begin_removing_absent(turn, cache, absent).await?;
            }
        }
    }

    /// The same for those of these objects that the cache no longer has.
    pub(crate) async fn begin_removals_among(
        &self,
        turn: &Turn<'_>,
        cache: &Cache,
        changed: &[StorePathHash],
    ) -> Result<bool> {
        let mut urgent = false;
        for page in changed.chunks(PAGE as usize) {
            if self.publisher.is_stopping() {
                break;
            }
            let found = self.state().find_objects(cache.id, page).await?;
            let present: HashSet<StorePathHash> =
                found.iter().map(|found| found.object.path.hash()).collect();
            let absent: Vec<StorePathHash> =
                page.iter().filter(|hash| !present.contains(hash)).copied().collect();
            urgent |= self.begin_removing_absent(turn, cache, &absent).await?;
        }
        Ok(urgent)
    }

    async fn begin_removing_absent(
        &self,
        turn: &Turn<'_>,
        cache: &Cache,
        absent: &[StorePathHash],
    ) -> Result<bool> {
        if absent.is_empty() {
            return Ok(false);
        }
        let removals = Removals { gone: absent.to_vec(), ..Removals::default() };
        Ok(self.begin_removing(turn, cache.id, &removals).await?.is_urgent())
    }

    /// Records that objects are being removed, and all that refers to them, through all
    /// generations.
    async fn begin_removing(
        &self,
        turn: &Turn<'_>,
        cache: CacheId,
        removals: &Removals,
    ) -> Result<RemovalsBegun> {
        let begun = self.state().begin_removing(&self.lease(), cache, removals, self.now()).await?;
        if begun.leaving > 0 {
            // `remove_all` goes on with it.
            self.take_referrers(turn, cache).await?;
        }
        Ok(begun)
    }

    /// Takes along all that refers to what is being removed. Returns whether that has come to its
    /// end, before which nothing goes; if not, the turn of the cache is over. Each turn takes a
    /// step.
    async fn take_referrers(&self, turn: &Turn<'_>, cache: CacheId) -> Result<bool> {
        while self.state().take_referrers(&self.lease(), cache, self.now()).await?.more {
            if turn.has_to_pause() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins to remove paths that the cache has with another NAR by now, while the lab no longer
    /// serves the published one: they were removed for cause and pushed again. Returns whether
    /// there are any.
    pub(crate) async fn begin_replacements(
        &self,
        turn: &Turn<'_>,
        cache: &Cache,
        present: &HashMap<StorePathHash, NarHash>,
        published: &HashMap<StorePathHash, PublishedObject>,
    ) -> Result<bool> {
        if present.is_empty() {
            return Ok(false);
        }
        let is_replaced = |hash: &StorePathHash| {
            published.get(hash).is_some_and(|row| present.get(hash) != Some(&row.nar.0))
        };
        let (replaced, kept) = present.keys().copied().partition(is_replaced);
        let removals = Removals { replaced, kept, ..Removals::default() };
        let begun = self.begin_removing(turn, cache.id, &removals).await?;
        Ok(begun.leaving > 0 || begun.is_urgent())
    }

    /// Records the verdicts on objects.
    pub(crate) async fn settle(&self, cache: CacheId, verdicts: &PendingVerdicts) -> Result<()> {
        if verdicts.is_empty() {
            return Ok(());
        }
        Ok(self.state().settle_pending(&self.lease(), cache, verdicts, self.now()).await?)
    }

    /// Forgets removals that are older than any push under way.
    pub(crate) async fn forget_old_removals(&self, cache: &Cache) -> Result<()> {
        let old = Forget::RemovedBefore(self.now() - REMOVED_KEPT_SECONDS);
        while !self.state().forget_rows(&self.lease(), cache.id, old, SCANNED_PAGE).await?
            && !self.publisher.is_stopping()
        {}
        Ok(())
    }

    /// Removes the narinfos that are being removed, referrers first. Without a `cache`, all of the
    /// cache goes, and its NARs have no grace. Returns whether all are gone; if not, the turn of
    /// the cache is over. Each turn removes a page.
    pub(crate) async fn remove_all(
        &self,
        turn: &mut Turn<'_>,
        cache_id: CacheId,
        name: &CacheName,
        cache: Option<&Cache>,
    ) -> Result<(Counts, bool)> {
        // Also of what an earlier run recorded before it ended.
        if !self.take_referrers(turn, cache_id).await? {
            return Ok((Counts::default(), false));
        }
        let mut counts = Counts::default();
        // In passes over what is being removed: what is removed in one lets others go in the next.
        // When a pass removes nothing, the rest is in circles: those refer to each other only, and
        // go in any order.
        let mut any = false;
        loop {
            let mut removed = 0;
            let mut after = None;
            let mut is_empty = true;
            loop {
                if self.publisher.is_stopping() || (counts.removed + removed > 0 && turn.has_to_pause()) {
                    counts.removed += removed;
                    return Ok((counts, false));
                }
                let page = self.state().removable(self.target(), cache_id, any, after, PAGE).await?;
                if page.next.is_none() {
                    break;
                }
                (after, is_empty) = (page.next, false);
                if !page.hashes.is_empty() {
                    removed += self.remove_page(turn, cache_id, name, cache, page.hashes).await?;
                }
            }
            counts.removed += removed;
            if is_empty || (removed == 0 && any) {
                break;
            }
            any = removed == 0;
        }
        let (deleted, is_done) = self.delete_due_nars(turn, cache_id, name, self.now()).await?;
        counts += deleted;
        Ok((counts, is_done))
    }

    async fn remove_page(
        &self,
        turn: &mut Turn<'_>,
        cache_id: CacheId,
        name: &CacheName,
        cache: Option<&Cache>,
        next: Vec<StorePathHash>,
    ) -> Result<u64> {
        turn.mark_out_of_date().await?;
        self.take_documents_of(cache_id, name, &next).await?;
        // Listings also where none are published now: they may have been.
        let deletions = next.iter().map(|hash| async move {
            self.store().delete(&EdgeKey::Narinfo(name.clone(), *hash).to_string()).await?;
            Ok(self.store().delete(&EdgeKey::Listing(name.clone(), *hash).to_string()).await?)
        });
        self.in_flight.all(deletions).await?;
        let now = self.now();
        let grace_end = if cache.is_some() { self.grace_end() } else { now };
        self.state().finish_removing(&self.lease(), cache_id, &next, grace_end, now).await?;
        for hash in &next {
            self.publisher.reporter.path_removed(name.as_str(), hash);
        }
        Ok(next.len() as u64)
    }

    /// Deletes NARs whose grace is over at this time. Returns whether all are gone; if not, the
    /// turn of the cache is over. Each turn deletes a page.
    async fn delete_due_nars(
        &self,
        turn: &Turn<'_>,
        cache: CacheId,
        name: &CacheName,
        now: i64,
    ) -> Result<(Counts, bool)> {
        let mut counts = Counts::default();
        loop {
            if self.publisher.is_stopping() || (counts.nars_deleted > 0 && turn.has_to_pause()) {
                return Ok((counts, false));
            }
            let due = self
                .state()
                .published_nars(self.target(), cache, NarRows::Due { at: now, limit: PAGE })
                .await?;
            if due.is_empty() {
                return Ok((counts, true));
            }
            let keys: Vec<(NarHash, EncodingTag)> = due.iter().map(|nar| nar.nar).collect();
            self.delete_nars(cache, name, &keys).await?;
            counts.nars_deleted += keys.len() as u64;
        }
    }

    /// Deletes NARs that nothing names.
    pub(crate) async fn delete_nars(
        &self,
        cache: CacheId,
        name: &CacheName,
        nars: &[(NarHash, EncodingTag)],
    ) -> Result<()> {
        self.state().begin_deleting_nars(&self.lease(), cache, nars).await?;
        self.delete_all(nars.iter().map(|nar| EdgeKey::Nar(name.clone(), nar_file(*nar)))).await?;
        Ok(self.state().finish_deleting_nars(&self.lease(), cache, nars).await?)
    }

    /// Deletes files.
    pub(crate) async fn delete_all(&self, files: impl IntoIterator<Item = EdgeKey>) -> Result<()> {
        let deletions =
            files.into_iter().map(|key| async move { Ok(self.store().delete(&key.to_string()).await?) });
        self.in_flight.all(deletions).await.map(drop)
    }

    /// Removes everything of a cache whose withdrawal was noted. Returns whether all is gone; if
    /// not, its turn is over.
    pub(crate) async fn withdraw(
        &self,
        turn: &mut Turn<'_>,
        published: &PublishedCache,
        name: &CacheName,
    ) -> Result<(Counts, bool)> {
        let (mut counts, mut is_done) = self.remove_all(turn, published.cache, name, None).await?;
        if is_done {
            // Also those that were in grace.
            let (deleted, all) = self.delete_due_nars(turn, published.cache, name, i64::MAX).await?;
            counts += deleted;
            is_done = all;
        }
        if !is_done {
            return Ok((counts, false));
        }
        documents::remove_cache_info(self, name).await?;
        let id = published.cache;
        while !self.state().forget_rows(&self.lease(), id, Forget::All, SCANNED_PAGE).await? {
            if self.publisher.is_stopping() {
                return Ok((counts, false));
            }
        }
        Ok((counts, true))
    }

    /// Notes that all of a cache goes, and takes its state document away first, so that the edge no
    /// longer serves it. Returns `false` if the run is to end.
    pub(crate) async fn note_withdrawal(&self, published: &PublishedCache, name: &CacheName) -> Result<bool> {
        // If the cache is published again before this is done, nothing counts as written.
        let unknown = PublishedCache { basis: Vec::new(), document: Vec::new(), ..published.clone() };
        self.state().write_published_cache(&self.lease(), &unknown, self.now()).await?;
        documents::remove_state(self, name).await?;
        let mut after = None;
        loop {
            if self.publisher.is_stopping() {
                return Ok(false);
            }
            let page = ObjectRows::Page { bytes: 0..=u8::MAX, after, limit: SCANNED_PAGE };
            let rows = self.state().published_objects(self.target(), published.cache, page).await?;
            let Some(last) = rows.last() else { return Ok(true) };
            after = Some(last.hash);
            let gone = rows.iter().map(|row| row.hash).collect();
            let removals = Removals { gone, ..Removals::default() };
            self.state().begin_removing(&self.lease(), published.cache, &removals, self.now()).await?;
        }
    }

    /// Sets a cache aside that the settings no longer name: nothing of it is looked at any more.
    /// When it is selected again, all of it is.
    pub(crate) async fn set_aside(&self, published: &PublishedCache) -> Result<()> {
        if !published.basis.is_empty() {
            let unknown = PublishedCache { basis: Vec::new(), scan: None, ..published.clone() };
            self.state().write_published_cache(&self.lease(), &unknown, self.now()).await?;
        }
        let id = published.cache;
        while !self.state().forget_rows(&self.lease(), id, Forget::Pending, SCANNED_PAGE).await?
            && !self.publisher.is_stopping()
        {}
        Ok(())
    }
}
