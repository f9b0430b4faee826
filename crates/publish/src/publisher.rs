//! One run: the lease, the outbox, and the caches one after the other.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormer_api::CacheName;
use dormer_engine::Engine;
use dormer_index::{
    Cache, CacheId, CacheScan, Index, Lease, OutboxPosition, PublishIndex, PublishedCache, TargetId,
};
use dormer_nix::{StorePathHash, with_causes};
use dormer_stores::Store;

use crate::bring::PAGE_OBJECTS;
use crate::documents;
use crate::follow::Changed;
use crate::in_flight::InFlight;
use crate::report::{CacheOutcome, Counts, Outcome, Preview, Reporter};
use crate::settings::{TargetSettings, seconds};
use crate::transfer::Sender;
use crate::{Error, Result};

/// Waiting paths that are read to see whether there is work.
const PENDING_LOOKED_AT: u32 = 256;

/// Longest reason that a target keeps of its last failure, in characters.
const ERROR_CHARS_MAX: usize = 500;

/// How a run looks at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What changed since the last run.
    Follow,
    /// Compares with a listing first, which finds what is missing, damaged, or not ours. Removes
    /// caches that the settings no longer name, and adopts a target that moved.
    Reconcile,
}

/// Publishes to one target.
pub struct Publisher {
    pub(crate) engine: Engine,
    pub(crate) state: Arc<dyn PublishIndex>,
    pub(crate) store: Store,
    pub(crate) settings: TargetSettings,
    pub(crate) sender: Sender,
    pub(crate) reporter: Arc<dyn Reporter>,
    pub(crate) holder: String,
    stopping: AtomicBool,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("settings", &self.settings)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher to `store`. `holder` names this process, for others that find the target taken.
    pub fn new(
        engine: Engine,
        state: Arc<dyn PublishIndex>,
        store: Store,
        settings: TargetSettings,
        holder: String,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        let sender = Sender::new(&settings);
        Self { engine, state, store, settings, sender, reporter, holder, stopping: AtomicBool::new(false) }
    }

    /// Lets a run end after the requests under way; the next run goes on from there.
    pub fn stop_soon(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether a run was asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Brings the target up to date with the caches.
    pub async fn run(&self, mode: Mode) -> Result<Outcome> {
        let location = self.store.location().to_owned();
        let target = self.state.open_target(&self.settings.name, &location).await?;
        let moved = target.location != location;
        if (moved || !target.compared) && mode != Mode::Reconcile {
            return Err(if moved {
                Error::Moved { target: target.name, before: target.location, now: location }
            } else {
                Error::Moving { target: target.name, now: location }
            });
        }
        let requests = self.store.requests();
        let lease = self.take_lease(&target).await?;
        let in_flight = InFlight::new(self.settings.concurrency, self.settings.request_timeout);
        let work = async {
            // Read again: another run may have moved the target before this one had the lease.
            let target = self.state.open_target(&self.settings.name, &location).await?;
            let is_compared = target.location == location && target.compared;
            if target.location != location {
                // The rows are about the other location. Until all of them were compared with this
                // one, they are about neither.
                self.state.move_target(&self.renewed(&lease), &location, false).await?;
            }
            let mut run = Run {
                publisher: self,
                in_flight: &in_flight,
                held: lease,
                cursor: target.cursor,
                followed: HashSet::new(),
                untouched: None,
                mode,
            };
            if target.missed_changes {
                run.compare_whole_caches().await?;
            }
            let outcomes = run.all_caches().await?;
            if !is_compared && !self.is_stopping() {
                self.state.move_target(&self.renewed(&lease), &location, true).await?;
            }
            Ok(outcomes)
        };
        let mut work = std::pin::pin!(work);
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            error = self.keep_lease(&lease) => {
                // Nothing begins any more. What is under way is waited for, so that no upload in
                // parts is left open.
                in_flight.lose_lease();
                let _ = tokio::time::timeout(self.settings.request_timeout, work).await;
                return Err(error);
            }
        };
        if in_flight.left_behind() {
            // Not given back: the next run has to wait for what is under way.
            return outcome.map(|_| unreachable!("a request is left behind only after a failure"));
        }
        let error = outcome
            .as_ref()
            .err()
            .map(|error| with_causes(error).chars().take(ERROR_CHARS_MAX).collect::<String>());
        let released =
            self.state.release_lease(&self.renewed(&lease), self.engine.now(), error.as_deref()).await;
        let caches = outcome?;
        released?;
        let (writes, listings) = self.store.requests();
        Ok(Outcome { caches, writes: writes - requests.0, listings: listings - requests.1 })
    }

    /// Whether a run would find anything to do. Costs two statements or three.
    pub async fn has_work(&self) -> Result<bool> {
        let target = self.state.open_target(&self.settings.name, self.store.location()).await?;
        let published = self.state.published_caches(target.id).await?;
        if target.error.is_some() || target.missed_changes || published.is_empty() {
            return Ok(true);
        }
        if !self.index().outbox_after(target.cursor, 1).await?.is_empty() {
            return Ok(true);
        }
        let now = self.engine.now();
        let look_again = target.ran_at.is_none_or(|ran_at| ran_at + self.look_again_seconds() <= now);
        for cache in published {
            let pending = self.state.pending_objects(target.id, cache.cache, None, PENDING_LOOKED_AT).await?;
            // What waits for something was looked at; now and then its time may have come.
            if pending.iter().any(|pending| pending.reason.is_none())
                || (look_again && !pending.is_empty())
                || !self.state.due_nars(target.id, cache.cache, self.engine.now(), 1).await?.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How often waiting paths are looked at when nothing else changes, in seconds: a tenth of the
    /// settling time.
    fn look_again_seconds(&self) -> i64 {
        (seconds(self.settings.settle) / 10).clamp(1, 60)
    }

    /// What a run would do; changes nothing. Needs memory for the hashes of what changed.
    pub async fn preview(&self) -> Result<Vec<Preview>> {
        let targets = self.state.list_targets().await?;
        let target = targets.into_iter().find(|target| target.name == self.settings.name);
        let published = match &target {
            Some(target) => self.state.published_caches(target.id).await?,
            None => Vec::new(),
        };
        let changed = match &target {
            Some(target) => self.changes_after(target.cursor).await?,
            None => Changed::new(),
        };
        let mut previews = Vec::new();
        for (cache, _) in self.selected().await? {
            let mut preview = Preview { cache: cache.name.clone(), ..Preview::default() };
            let known = published.iter().any(|published| published.cache == cache.id);
            let Some(target) = target.as_ref().filter(|_| known) else {
                let totals = self.index().cache_totals(cache.id).await?;
                (preview.publish, preview.bytes) = (totals.object_count, totals.nar_bytes);
                previews.push(preview);
                continue;
            };
            let mut hashes = changed.get(&cache.id).cloned().unwrap_or_default();
            let mut after = None;
            loop {
                let page = self.state.pending_objects(target.id, cache.id, after, 4_096).await?;
                let Some(last) = page.last() else { break };
                after = Some((last.since, last.hash));
                hashes.extend(page.iter().map(|pending| pending.hash));
            }
            let hashes: Vec<StorePathHash> = hashes.into_iter().collect();
            for page in hashes.chunks(4_096) {
                let found = self.state.find_objects(cache.id, page).await?;
                let there = self.state.find_published(target.id, cache.id, page).await?;
                let present: HashSet<StorePathHash> =
                    found.iter().map(|found| found.object.path.hash()).collect();
                preview.publish += found.len() as u64;
                preview.bytes += found.iter().map(|found| found.nar.file_size).sum::<u64>();
                preview.remove += there.iter().filter(|there| !present.contains(&there.hash)).count() as u64;
            }
            previews.push(preview);
        }
        Ok(previews)
    }

    pub(crate) fn index(&self) -> &Arc<dyn Index> {
        self.engine.index()
    }

    /// The caches to publish, with their names as the edge knows them.
    async fn selected(&self) -> Result<Vec<(Cache, CacheName)>> {
        let mut selected = Vec::new();
        for cache in self.index().list_caches().await? {
            let name: CacheName =
                cache.name.parse().map_err(|_| Error::CacheName { name: cache.name.clone() })?;
            if self.settings.selects(&name, cache.is_public) {
                selected.push((cache, name));
            }
        }
        Ok(selected)
    }
}

/// A run that holds the lease.
pub(crate) struct Run<'a> {
    pub(crate) publisher: &'a Publisher,
    pub(crate) in_flight: &'a InFlight,
    /// The lease as it was taken: see [`Run::lease`].
    held: Lease,
    /// Up to where the outbox was followed.
    pub(crate) cursor: OutboxPosition,
    /// Caches whose changes are noted.
    pub(crate) followed: HashSet<CacheId>,
    /// The row of the cache at hand, until something of it is changed in the target.
    untouched: Option<PublishedCache>,
    mode: Mode,
}

impl Run<'_> {
    /// Records, before the first change of the cache at hand in the target, that its state document
    /// is out of date.
    pub(crate) async fn touch(&mut self) -> Result<()> {
        if let Some(mut row) = self.untouched.take() {
            // Never the time that the document gives, whatever the clock does.
            row.published_at = self.now().max(row.published_at.saturating_add(1));
            self.state().write_published_cache(&self.lease(), &row, self.now()).await?;
        }
        Ok(())
    }

    pub(crate) fn target(&self) -> TargetId {
        self.held.target
    }

    /// The lease, for one write: that puts its end off from now.
    pub(crate) fn lease(&self) -> Lease {
        self.publisher.renewed(&self.held)
    }

    pub(crate) fn state(&self) -> &dyn PublishIndex {
        &*self.publisher.state
    }

    pub(crate) fn store(&self) -> &Store {
        &self.publisher.store
    }

    pub(crate) fn now(&self) -> i64 {
        self.publisher.engine.now()
    }

    /// When a NAR may go whose last narinfo goes now.
    pub(crate) fn grace_end(&self) -> i64 {
        self.now().saturating_add(seconds(self.publisher.settings.nar_grace))
    }

    /// The outbox rows of some changes are gone, so every cache is compared with what is written
    /// down of the target. A crash in between repeats this.
    async fn compare_whole_caches(&self) -> Result<()> {
        tracing::warn!(
            target.name = self.publisher.settings.name,
            "the target was away for too long: its caches are compared as a whole"
        );
        for mut row in self.state().published_caches(self.target()).await? {
            match row.scan {
                // These come to the objects by and by, from the first one on.
                Some(
                    CacheScan::Narinfos(_)
                    | CacheScan::Nars(_)
                    | CacheScan::Documents(_)
                    | CacheScan::Past(_),
                ) => {}
                Some(CacheScan::Objects(_) | CacheScan::Published(_)) | None => {
                    row.scan = Some(CacheScan::Objects(None));
                    self.state().write_published_cache(&self.lease(), &row, self.now()).await?;
                }
            }
        }
        self.state().clear_missed_changes(&self.lease()).await?;
        Ok(())
    }

    async fn all_caches(&mut self) -> Result<Vec<CacheOutcome>> {
        let selected = self.publisher.selected().await?;
        let published = self.state().published_caches(self.target()).await?;
        self.followed = published.iter().map(|published| published.cache).collect();
        self.follow().await?;
        let mut outcomes = Vec::new();
        // Before others that may have taken their names.
        for published in &published {
            if !selected.iter().any(|(cache, _)| cache.id == published.cache) {
                outcomes.push(self.leave(published).await?);
            }
        }
        let names: Vec<CacheName> =
            selected.iter().filter(|(cache, _)| cache.is_public).map(|(_, name)| name.clone()).collect();
        documents::write_catalog(self, names).await?;
        let readable = self.readable_by_anybody(&selected).await?;
        for (cache, name) in &selected {
            if self.publisher.is_stopping() {
                break;
            }
            let published = published.iter().find(|published| published.cache == cache.id).cloned();
            if !cache.is_public && readable {
                let location = self.store().location().to_owned();
                let refused = Error::PublicTarget { cache: cache.name.clone(), location };
                let mut outcome = CacheOutcome { cache: cache.name.clone(), ..CacheOutcome::default() };
                outcome.error = Some(refused.to_string());
                if let Some(published) = published {
                    // It was public, or the target was not: what is there goes.
                    outcome.add(self.withdraw(&published).await?);
                }
                outcomes.push(outcome);
                continue;
            }
            outcomes.push(self.cache(cache, name, published).await?);
        }
        outcomes.sort_by(|a, b| a.cache.cmp(&b.cache));
        Ok(outcomes)
    }

    /// Whether private caches must not be published here.
    async fn readable_by_anybody(&self, selected: &[(Cache, CacheName)]) -> Result<bool> {
        if selected.iter().all(|(cache, _)| cache.is_public) {
            return Ok(false);
        }
        // The catalogue names public caches only, so it is a harmless thing to try with.
        let catalog = dormer_edge::EdgeKey::Catalog.to_string();
        Ok(self.store().is_public(&catalog).await?.unwrap_or(false))
    }

    /// A cache that is published and is not selected any more.
    async fn leave(&mut self, published: &PublishedCache) -> Result<CacheOutcome> {
        let caches = self.publisher.index().list_caches().await?;
        let cache = caches.iter().find(|cache| cache.id == published.cache);
        // It is private now, and only a pattern fits it.
        let named =
            |cache: &Cache| cache.name.parse().is_ok_and(|name| self.publisher.settings.selects(&name, true));
        let mut outcome = CacheOutcome { cache: published.name.clone(), ..CacheOutcome::default() };
        match cache {
            Some(cache) if self.mode != Mode::Reconcile && !named(cache) => {
                outcome.note = Some(
                    "is not among the target's caches any more and is left as it is; --reconcile takes it away"
                        .to_owned(),
                );
            }
            _ => {
                outcome.add(self.withdraw(published).await?);
                outcome.note = Some("was taken away".to_owned());
            }
        }
        Ok(outcome)
    }

    async fn cache(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        published: Option<PublishedCache>,
    ) -> Result<CacheOutcome> {
        let mut outcome = CacheOutcome { cache: cache.name.clone(), ..CacheOutcome::default() };
        let mut row = self.cache_row(cache, published).await?;
        // The access rules take effect before the contents.
        documents::write_before(self, cache, name, &mut row, self.mode == Mode::Reconcile).await?;
        self.untouched = Some(PublishedCache { scan: None, ..row.clone() });
        let compares =
            matches!(row.scan, Some(CacheScan::Narinfos(_) | CacheScan::Nars(_) | CacheScan::Documents(_)));
        let Some(counts) = self.scan_cache(cache, name, &mut row).await? else { return Ok(outcome) };
        outcome.add(counts);
        if self.mode == Mode::Reconcile && !compares {
            self.store().delete_abandoned(name.as_str()).await?;
            row.scan = Some(CacheScan::Narinfos(None));
            self.state().write_published_cache(&self.lease(), &row, self.now()).await?;
            let Some(counts) = self.scan_cache(cache, name, &mut row).await? else { return Ok(outcome) };
            outcome.add(counts);
        }
        let (counts, waiting) = self.bring_up_to_date(cache, name).await?;
        outcome.add(counts);
        outcome.waiting = waiting;
        // What is taken away after this is another cache's.
        self.untouched = None;
        documents::write_after(self, cache, name, &mut row, &outcome).await?;
        Ok(outcome)
    }

    /// The cache's row. If the cache is new here, or its keys are others, all of it has to be
    /// looked at: the row says so from now on, whatever becomes of this run.
    async fn cache_row(
        &mut self,
        cache: &Cache,
        published: Option<PublishedCache>,
    ) -> Result<PublishedCache> {
        let basis = documents::basis(cache, &self.publisher.settings);
        let (scan, document) = match published {
            Some(row) if row.basis == basis => return Ok(row),
            Some(PublishedCache { scan: Some(scan @ CacheScan::Past(_)), document, .. }) => (scan, document),
            Some(row) => (CacheScan::Objects(None), row.document),
            None => (CacheScan::Past(OutboxPosition::START), Vec::new()),
        };
        let row = PublishedCache {
            cache: cache.id,
            name: cache.name.clone(),
            basis,
            document,
            published_at: self.now(),
            scan: Some(scan),
        };
        self.state().write_published_cache(&self.lease(), &row, self.now()).await?;
        self.followed.insert(cache.id);
        Ok(row)
    }

    /// Removes and brings what has to be looked at. Returns how many paths still wait, too.
    async fn bring_up_to_date(&mut self, cache: &Cache, name: &CacheName) -> Result<(Counts, u64)> {
        let mut counts = Counts::default();
        self.forget_old_removals(cache).await?;
        loop {
            if self.begin_removals(cache).await? {
                counts += self.remove_all(cache.id, name, Some(cache)).await?;
            }
            let (mut progress, mut waiting) = (0, 0);
            let mut after = None;
            loop {
                let pending =
                    self.state().pending_objects(self.target(), cache.id, after, PAGE_OBJECTS).await?;
                let Some(last) = pending.last() else { break };
                if after.is_none() && pending.len() == PAGE_OBJECTS as usize {
                    let backlog = self.state().publish_counts(self.target(), cache.id).await?;
                    self.publisher.reporter.backlog(&cache.name, backlog.pending);
                }
                after = Some((last.since, last.hash));
                let page = self.publish_page(cache, name, &pending).await?;
                counts += page.counts;
                progress += page.done;
                waiting += page.waiting;
                // What is removed meanwhile, for cause perhaps, does not wait for the end of a long
                // run.
                let changed = self.follow().await?.remove(&cache.id).unwrap_or_default();
                let changed: Vec<StorePathHash> = changed.into_iter().collect();
                if self.begin_removals_among(cache, &changed).await? {
                    counts += self.remove_all(cache.id, name, Some(cache)).await?;
                }
                if self.publisher.is_stopping() {
                    return Ok((counts, waiting));
                }
            }
            counts += self.remove_all(cache.id, name, Some(cache)).await?;
            counts += self.delete_due_nars(cache.id, name, self.now()).await?;
            if progress == 0 || waiting == 0 {
                return Ok((counts, waiting));
            }
        }
    }
}
