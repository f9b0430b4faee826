//! Removing: referrers first, a narinfo before its NAR, and the NAR after its grace. A NAR that the
//! lab no longer serves goes at once.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_format::EncodingTag;
use dormer_index::{Cache, CacheId, PendingVerdicts, PublishedCache, PublishedObject};
use dormer_nix::{NarHash, StorePathHash};

use crate::publisher::Run;
use crate::report::Counts;
use crate::transfer::nar_file;
use crate::{Error, Result, documents};

/// Objects removed together.
const PAGE: u32 = 512;

/// Rows scanned, or forgotten, together.
const SCANNED_PAGE: u32 = 4_096;

/// In place of the digest of a narinfo that a comparison found in the target, and that neither the
/// rows nor the lab know. No word of the lab says that it was removed for cause.
pub(crate) const FOUND: &[u8] = b"found";

/// How long a removal is remembered. A push takes hours at most, and a path that waits for the
/// removed one by then has it in its own row.
const REMOVED_KEPT_SECONDS: i64 = 30 * 86_400;

impl Run<'_> {
    /// Begins to remove what the cache no longer has. Returns whether some of it was removed for
    /// cause: the lab no longer serves its NAR, so it must leave the target at once.
    pub(crate) async fn begin_removals(&mut self, cache: &Cache) -> Result<bool> {
        let mut urgent = false;
        let mut after = None;
        loop {
            let page = self.state().pending_absent(self.target(), cache.id, after, SCANNED_PAGE).await?;
            if page.next.is_none() || self.publisher.is_stopping() {
                return Ok(urgent);
            }
            after = page.next;
            for absent in page.absent.chunks(PAGE as usize) {
                urgent |= self.begin_removing_absent(cache, absent).await?;
            }
        }
    }

    /// The same for those of these objects that the cache no longer has.
    pub(crate) async fn begin_removals_among(
        &mut self,
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
            urgent |= self.begin_removing_absent(cache, &absent).await?;
        }
        Ok(urgent)
    }

    async fn begin_removing_absent(&mut self, cache: &Cache, absent: &[StorePathHash]) -> Result<bool> {
        if absent.is_empty() {
            return Ok(false);
        }
        let there = self.state().find_published(self.target(), cache.id, absent).await?;
        let served = self.served_nars(cache, there.iter().map(|row| row.nar.0)).await?;
        let mut urgent = there.iter().any(|row| !served.contains(&row.nar.0) && row.digest != FOUND);
        let gone: HashSet<StorePathHash> = there.iter().map(|row| row.hash).collect();
        self.remove_with_referrers(cache.id, &gone.iter().copied().collect::<Vec<_>>()).await?;
        urgent |= self.end_graces(cache, absent).await?;
        let settled: Vec<StorePathHash> =
            absent.iter().filter(|hash| !gone.contains(hash)).copied().collect();
        self.settle(cache.id, &PendingVerdicts { removed: settled, ..PendingVerdicts::default() }).await?;
        Ok(urgent)
    }

    /// Records that these objects are being removed, and all that refers to them, through all
    /// generations.
    async fn remove_with_referrers(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<()> {
        if hashes.is_empty() {
            return Ok(());
        }
        self.state().begin_removing(&self.lease(), cache, hashes).await?;
        // `remove_all` goes on with it.
        self.take_referrers(cache).await.map(drop)
    }

    /// Takes along all that refers to what is being removed. Returns whether that has come to its
    /// end, before which nothing goes; if not, the turn of the cache is over. Each turn takes a
    /// step.
    async fn take_referrers(&self, cache: CacheId) -> Result<bool> {
        while self.state().take_referrers(&self.lease(), cache, self.now()).await?.more {
            if self.has_to_pause() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins to remove paths that the cache has with another NAR by now, while the lab no longer
    /// serves the published one: they were removed for cause and pushed again. Returns whether
    /// there are any.
    pub(crate) async fn begin_replacements(
        &mut self,
        cache: &Cache,
        present: &HashMap<StorePathHash, NarHash>,
        published: &HashMap<StorePathHash, PublishedObject>,
    ) -> Result<bool> {
        let replaced: Vec<&PublishedObject> = published
            .values()
            .filter(|row| present.get(&row.hash).is_some_and(|nar| *nar != row.nar.0))
            .collect();
        let served = self.served_nars(cache, replaced.iter().map(|row| row.nar.0)).await?;
        let gone: Vec<StorePathHash> =
            replaced.iter().filter(|row| !served.contains(&row.nar.0)).map(|row| row.hash).collect();
        self.remove_with_referrers(cache.id, &gone).await?;
        let present: Vec<StorePathHash> = present.keys().copied().collect();
        Ok(self.end_graces(cache, &present).await? || !gone.is_empty())
    }

    /// Ends the graces of earlier NARs of these paths that the lab no longer serves. Returns
    /// whether there are any.
    async fn end_graces(&self, cache: &Cache, hashes: &[StorePathHash]) -> Result<bool> {
        if hashes.is_empty() {
            return Ok(false);
        }
        Ok(self.state().end_graces(&self.lease(), cache.id, hashes, self.now()).await? > 0)
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
        let before = self.now() - REMOVED_KEPT_SECONDS;
        while self.state().forget_removed(&self.lease(), cache.id, before, SCANNED_PAGE).await? > 0
            && !self.publisher.is_stopping()
        {}
        Ok(())
    }

    /// Those of these NARs that the lab serves in the cache.
    async fn served_nars(
        &self,
        cache: &Cache,
        nars: impl Iterator<Item = NarHash>,
    ) -> Result<HashSet<NarHash>> {
        let mut nars: Vec<NarHash> = nars.collect();
        if nars.is_empty() {
            return Ok(HashSet::new());
        }
        nars.sort_unstable();
        nars.dedup();
        Ok(self.state().find_served_nars(cache.id, &nars, self.now()).await?.into_iter().collect())
    }

    /// Removes the narinfos that are being removed, referrers first. Without a `cache`, all of the
    /// cache goes, and its NARs have no grace. Returns whether all are gone; if not, the turn of
    /// the cache is over. Each turn removes a page.
    pub(crate) async fn remove_all(
        &mut self,
        cache_id: CacheId,
        name: &CacheName,
        cache: Option<&Cache>,
    ) -> Result<(Counts, bool)> {
        // Also of what an earlier run recorded before it ended.
        if !self.take_referrers(cache_id).await? {
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
                if self.publisher.is_stopping() || (counts.removed + removed > 0 && self.has_to_pause()) {
                    counts.removed += removed;
                    return Ok((counts, false));
                }
                let page = self.state().removable(self.target(), cache_id, any, after, PAGE).await?;
                if page.next.is_none() {
                    break;
                }
                (after, is_empty) = (page.next, false);
                if !page.hashes.is_empty() {
                    removed += self.remove_page(cache_id, name, cache, page.hashes).await?;
                }
            }
            counts.removed += removed;
            if is_empty || (removed == 0 && any) {
                break;
            }
            any = removed == 0;
        }
        let (deleted, is_done) = self.delete_due_nars(cache_id, name, self.now()).await?;
        counts += deleted;
        Ok((counts, is_done))
    }

    async fn remove_page(
        &mut self,
        cache_id: CacheId,
        name: &CacheName,
        cache: Option<&Cache>,
        next: Vec<StorePathHash>,
    ) -> Result<u64> {
        self.touch().await?;
        let rows = self.state().find_published(self.target(), cache_id, &next).await?;
        self.take_documents_of(cache_id, name, &next).await?;
        let run = &*self;
        // Listings also where none are published now: they may have been.
        let deletions = next.iter().map(|hash| async move {
            run.store().delete(&EdgeKey::Narinfo(name.clone(), *hash).to_string()).await?;
            Ok(run.store().delete(&EdgeKey::Listing(name.clone(), *hash).to_string()).await?)
        });
        self.in_flight.all(deletions).await?;
        let served = match cache {
            Some(cache) => self.served_nars(cache, rows.iter().map(|row| row.nar.0)).await?,
            None => HashSet::new(),
        };
        let has_grace =
            |row: &PublishedObject| served.contains(&row.nar.0) || (cache.is_some() && row.digest == FOUND);
        let gone_at = |row: &PublishedObject| if has_grace(row) { self.grace_end() } else { self.now() };
        let removed: Vec<_> = rows.iter().map(|row| (row.hash, gone_at(row))).collect();
        let count = next.len() as u64;
        // Those that are gone for good; those that were taken along are looked at again.
        let present = self.state().find_objects(cache_id, &next).await?;
        let present: HashSet<StorePathHash> = present.iter().map(|found| found.object.path.hash()).collect();
        let upstreams: HashSet<StorePathHash> =
            rows.iter().filter(|row| row.upstream).map(|row| row.hash).collect();
        let (upstream, absent): (Vec<StorePathHash>, Vec<StorePathHash>) = next
            .into_iter()
            .filter(|hash| !present.contains(hash))
            .partition(|hash| upstreams.contains(hash));
        // A referrer of an upstream's path finds that path elsewhere.
        let verdicts = PendingVerdicts { removed: absent, done: upstream, ..PendingVerdicts::default() };
        // Before the rows go: what is still to be looked at ends the graces of NARs that it named.
        self.settle(cache_id, &verdicts).await?;
        self.state().finish_removing(&self.lease(), cache_id, &removed).await?;
        for (hash, _) in &removed {
            self.publisher.reporter.path_removed(name.as_str(), hash);
        }
        Ok(count)
    }

    /// Deletes NARs whose grace is over at this time. Returns whether all are gone; if not, the
    /// turn of the cache is over. Each turn deletes a page.
    pub(crate) async fn delete_due_nars(
        &mut self,
        cache: CacheId,
        name: &CacheName,
        now: i64,
    ) -> Result<(Counts, bool)> {
        let mut counts = Counts::default();
        loop {
            if self.publisher.is_stopping() || (counts.nars_deleted > 0 && self.has_to_pause()) {
                return Ok((counts, false));
            }
            let due = self.state().due_nars(self.target(), cache, now, PAGE).await?;
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
        Ok(self.state().forget_nars(&self.lease(), cache, nars).await?)
    }

    /// Deletes files.
    pub(crate) async fn delete_all(&self, files: impl IntoIterator<Item = EdgeKey>) -> Result<()> {
        let deletions =
            files.into_iter().map(|key| async move { Ok(self.store().delete(&key.to_string()).await?) });
        self.in_flight.all(deletions).await.map(drop)
    }

    /// Removes a whole cache: its state document first, so that the edge no longer serves it; then
    /// everything in it. Returns whether all is gone; if not, its turn is over.
    pub(crate) async fn withdraw(&mut self, published: &PublishedCache) -> Result<(Counts, bool)> {
        let name: CacheName =
            published.name.parse().map_err(|_| Error::CacheName { name: published.name.clone() })?;
        self.untouched = None;
        self.begin_turn();
        if !self.turns_of(published.cache).is_withdrawal_noted
            && !self.note_withdrawal(published, &name).await?
        {
            return Ok((Counts::default(), false));
        }
        self.turns_of(published.cache).is_withdrawal_noted = true;
        let (mut counts, mut is_done) = self.remove_all(published.cache, &name, None).await?;
        if is_done {
            // Also those that were in grace.
            let (deleted, all) = self.delete_due_nars(published.cache, &name, i64::MAX).await?;
            counts += deleted;
            is_done = all;
        }
        if !is_done {
            return Ok((counts, false));
        }
        documents::remove_cache_info(self, &name).await?;
        while !self.state().forget_published_cache(&self.lease(), published.cache, SCANNED_PAGE).await? {
            if self.publisher.is_stopping() {
                return Ok((counts, false));
            }
        }
        Ok((counts, true))
    }

    /// Notes that all of a cache goes, and takes its state document away. Returns `false` if the
    /// run is to end.
    async fn note_withdrawal(&mut self, published: &PublishedCache, name: &CacheName) -> Result<bool> {
        // If the cache is published again before this is done, nothing counts as written.
        let unknown = PublishedCache { basis: Vec::new(), document: Vec::new(), ..published.clone() };
        self.state().write_published_cache(&self.lease(), &unknown, self.now()).await?;
        documents::remove_state(self, name).await?;
        let mut after = None;
        loop {
            if self.publisher.is_stopping() {
                return Ok(false);
            }
            let rows = self
                .state()
                .list_published(self.target(), published.cache, 0..=u8::MAX, after, SCANNED_PAGE)
                .await?;
            let Some(last) = rows.last() else { return Ok(true) };
            after = Some(last.hash);
            let hashes: Vec<StorePathHash> = rows.iter().map(|row| row.hash).collect();
            self.state().begin_removing(&self.lease(), published.cache, &hashes).await?;
        }
    }

    /// Sets a cache aside that the settings no longer name: nothing of it is looked at any more.
    /// When it is selected again, all of it is.
    pub(crate) async fn set_aside(&mut self, published: &PublishedCache) -> Result<()> {
        if !published.basis.is_empty() {
            let unknown = PublishedCache { basis: Vec::new(), scan: None, ..published.clone() };
            self.state().write_published_cache(&self.lease(), &unknown, self.now()).await?;
        }
        while !self.state().forget_pending(&self.lease(), published.cache, SCANNED_PAGE).await?
            && !self.publisher.is_stopping()
        {}
        Ok(())
    }
}
