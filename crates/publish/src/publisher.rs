//! One run: the lease, the outbox, the caches one after the other.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormer_api::CacheName;
use dormer_blobs::Files;
use dormer_engine::Engine;
use dormer_index::{
    Cache, CacheId, Index, Lease, OutboxPosition, PublishIndex, PublishTarget, PublishedCache, TargetId,
};
use dormer_nix::StorePathHash;

use crate::documents;
use crate::report::{CacheOutcome, Outcome, Preview, Reporter};
use crate::settings::{TargetSettings, seconds};
use crate::upload::Sender;
use crate::{Error, Result};

/// Outbox rows followed at once.
const OUTBOX_PAGE: u32 = 1_000;

/// Stands before the place of a target that moved, until all that is written down was compared with what is there.
const BETWEEN_PLACES: &str = "not yet compared: ";

/// Waiting paths that are looked at to see whether there is anything to do.
const PENDING_LOOKED_AT: u32 = 256;

/// How a run looks at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What changed since the last run.
    Follow,
    /// Compares with a listing first: finds what is missing, damaged, or not ours. Takes caches back that the settings do not
    /// name any more, and adopts a target that moved.
    Reconcile,
}

/// Publishes to one target.
pub struct Publisher {
    pub(crate) engine: Engine,
    pub(crate) state: Arc<dyn PublishIndex>,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) settings: TargetSettings,
    pub(crate) sender: Sender,
    pub(crate) reporter: Arc<dyn Reporter>,
    holder: String,
    stopping: AtomicBool,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("settings", &self.settings)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher to `files`. `holder` says who it is, to others who find the target taken.
    pub fn new(
        engine: Engine,
        state: Arc<dyn PublishIndex>,
        files: Arc<dyn Files>,
        settings: TargetSettings,
        holder: String,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        let sender = Sender::new(&settings);
        Self { engine, state, files, settings, sender, reporter, holder, stopping: AtomicBool::new(false) }
    }

    /// Lets a run end after what is under way; the next one goes on from there.
    pub fn stop_soon(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether a run was asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Brings the target up to date with the caches.
    pub async fn run(&self, mode: Mode) -> Result<Outcome> {
        let location = self.files.location();
        let target = self.state.open_target(&self.settings.name, &location).await?;
        let moved = target.location != location;
        if moved && mode != Mode::Reconcile {
            let before = target.location.strip_prefix(BETWEEN_PLACES).unwrap_or(&target.location).to_owned();
            return Err(if before == location {
                Error::Moving { target: target.name, now: location }
            } else {
                Error::Moved { target: target.name, before, now: location }
            });
        }
        let requests = self.files.requests();
        let lease = self.take_lease(&target).await?;
        let work = async {
            if moved {
                // What is written down is of the other place. Until all of it was compared with this one, it is of neither.
                self.state.move_target(&lease, &format!("{BETWEEN_PLACES}{location}")).await?;
            }
            // Read again: another run may have moved it before the lease was ours.
            let cursor = self.state.open_target(&self.settings.name, &location).await?.cursor;
            let mut run =
                Run { publisher: self, lease, cursor, followed: HashSet::new(), untouched: None, mode };
            let outcomes = run.all_caches().await?;
            if moved && !self.is_stopping() {
                self.state.move_target(&lease, &location).await?;
            }
            Ok(outcomes)
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            // Not given back: what is under way was not waited for, so whoever comes next has to.
            error = self.keep_lease(&lease) => return Err(error),
        };
        let error = outcome.as_ref().err().map(chain);
        let released = self.state.release_lease(&lease, self.engine.now(), error.as_deref()).await;
        let caches = outcome?;
        released?;
        let (writes, listings) = self.files.requests();
        Ok(Outcome { caches, writes: writes - requests.0, listings: listings - requests.1 })
    }

    /// Whether a run would find anything to do. Costs two statements or three.
    pub async fn has_work(&self) -> Result<bool> {
        let target = self.state.open_target(&self.settings.name, &self.files.location()).await?;
        let published = self.state.published_caches(target.id).await?;
        if target.error.is_some() || published.is_empty() {
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

    /// How often waiting paths are looked at when nothing else changes, in seconds: a tenth of the time that they wait for an
    /// upstream's.
    fn look_again_seconds(&self) -> i64 {
        (seconds(self.settings.settle) / 10).clamp(1, 60)
    }

    /// What a run would do, without doing anything. Needs memory for the hashes of what changed.
    pub async fn preview(&self) -> Result<Vec<Preview>> {
        let targets = self.state.list_targets().await?;
        let target = targets.into_iter().find(|target| target.name == self.settings.name);
        let published = match &target {
            Some(target) => self.state.published_caches(target.id).await?,
            None => Vec::new(),
        };
        let changed = match &target {
            Some(target) => self.changes_after(target.cursor).await?,
            None => HashMap::new(),
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

    async fn changes_after(
        &self,
        mut cursor: OutboxPosition,
    ) -> Result<HashMap<CacheId, HashSet<StorePathHash>>> {
        let mut changed: HashMap<CacheId, HashSet<StorePathHash>> = HashMap::new();
        loop {
            let rows = self.index().outbox_after(cursor, OUTBOX_PAGE).await?;
            let Some(last) = rows.last() else { return Ok(changed) };
            cursor = last.position;
            for row in rows {
                changed.entry(row.cache).or_default().extend(row.store_path_hash);
            }
        }
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

    /// Takes the lease. One that ended without a word is waited for, and then the longest request that its holder may still have
    /// under way; one that is renewed meanwhile is in use.
    async fn take_lease(&self, target: &PublishTarget) -> Result<Lease> {
        let mut known = target.clone();
        for last_try in [false, true] {
            let now = self.engine.now();
            let ends_at = now + seconds(self.settings.lease);
            if let Some(lease) = self.state.acquire_lease(target.id, &self.holder, now, ends_at).await? {
                if !lease.was_released {
                    self.wait_out(&lease).await?;
                }
                return Ok(lease);
            }
            let held = self.state.open_target(&target.name, &target.location).await?;
            let left = (held.lease_ends_at - now).max(0);
            let renewed = held.lease_ends_at > known.lease_ends_at && known.holder.is_some();
            if last_try || renewed {
                let holder = held.holder.unwrap_or_else(|| "another program".to_owned());
                return Err(Error::Busy { target: held.name, holder, seconds: left });
            }
            known = held;
            tokio::time::sleep(Duration::from_secs(left.unsigned_abs() + 1)).await;
        }
        unreachable!("the last try returns")
    }

    async fn wait_out(&self, lease: &Lease) -> Result<()> {
        tracing::info!(target.name = %self.settings.name, wait = ?self.settings.request_timeout, "the last run ended without a word; waiting for what it may have under way");
        let until = tokio::time::Instant::now() + self.settings.request_timeout;
        while tokio::time::Instant::now() < until {
            let left = until - tokio::time::Instant::now();
            tokio::time::sleep(left.min(self.settings.lease / 3)).await;
            self.state.renew_lease(lease, self.engine.now() + seconds(self.settings.lease)).await?;
        }
        Ok(())
    }

    /// Keeps the lease alive; returns only when it is lost, or so near to its end that it counts as lost.
    async fn keep_lease(&self, lease: &Lease) -> Error {
        let pause = self.settings.lease / 3;
        let mut good_until = tokio::time::Instant::now() + self.settings.lease;
        loop {
            tokio::time::sleep(pause).await;
            let asked = tokio::time::Instant::now();
            let renewal = self.state.renew_lease(lease, self.engine.now() + seconds(self.settings.lease));
            match tokio::time::timeout_at(good_until, renewal).await {
                Ok(Ok(())) => good_until = asked + self.settings.lease,
                // The database may be away for a moment.
                Ok(Err(dormer_index::Error::Unavailable { .. }))
                    if tokio::time::Instant::now() + pause < good_until => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return dormer_index::Error::LeaseLost.into(),
            }
        }
    }
}

/// An error with its causes, for a column that people read.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text.chars().take(500).collect()
}

/// A run that holds the lease.
pub(crate) struct Run<'a> {
    pub(crate) publisher: &'a Publisher,
    pub(crate) lease: Lease,
    cursor: OutboxPosition,
    /// Caches whose changes are noted.
    followed: HashSet<CacheId>,
    /// The row of the cache at hand, until something of it is changed in the target.
    untouched: Option<PublishedCache>,
    mode: Mode,
}

impl Run<'_> {
    /// Before anything of the cache at hand is changed in the target: its row says so, until its state document does.
    pub(crate) async fn touch(&mut self) -> Result<()> {
        if let Some(mut row) = self.untouched.take() {
            // Never the time that the document gives, whatever the clock does.
            row.published_at = self.now().max(row.published_at.saturating_add(1));
            self.state().write_published_cache(&self.lease, &row).await?;
        }
        Ok(())
    }

    pub(crate) fn target(&self) -> TargetId {
        self.lease.target
    }

    pub(crate) fn state(&self) -> &dyn PublishIndex {
        &*self.publisher.state
    }

    pub(crate) fn files(&self) -> &dyn Files {
        &*self.publisher.files
    }

    pub(crate) fn now(&self) -> i64 {
        self.publisher.engine.now()
    }

    /// When a NAR may go whose last narinfo goes now.
    pub(crate) fn grace_end(&self) -> i64 {
        self.now().saturating_add(seconds(self.publisher.settings.nar_grace))
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
                let location = self.files().location();
                let refused = Error::PublicTarget { cache: cache.name.clone(), location };
                let mut outcome = CacheOutcome { cache: cache.name.clone(), ..CacheOutcome::default() };
                outcome.error = Some(refused.to_string());
                if let Some(published) = published {
                    // It was public, or the target was not: what is there goes.
                    let taken = self.withdraw(&published).await?;
                    outcome.removed = taken.removed;
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
        Ok(self.files().is_public(&catalog).await?.unwrap_or(false))
    }

    /// A cache that is published and is not selected any more.
    async fn leave(&mut self, published: &PublishedCache) -> Result<CacheOutcome> {
        let caches = self.publisher.index().list_caches().await?;
        let cache = caches.iter().find(|cache| cache.id == published.cache);
        let named =
            |cache: &Cache| cache.name.parse().is_ok_and(|name| self.publisher.settings.selects(&name, true));
        match cache {
            // It is private now, and only a pattern fits it.
            Some(cache) if named(cache) => self.withdraw(published).await,
            None => self.withdraw(published).await,
            Some(_) if self.mode == Mode::Reconcile => self.withdraw(published).await,
            Some(_) => Ok(CacheOutcome {
                cache: published.name.clone(),
                note: Some(
                    "is not among the target's caches any more and is left as it is; --reconcile takes it away".to_owned(),
                ),
                ..CacheOutcome::default()
            }),
        }
    }

    /// Notes what changed since the last look.
    pub(crate) async fn follow(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            let rows = self.publisher.index().outbox_after(self.cursor, OUTBOX_PAGE).await?;
            let Some(last) = rows.last() else { return Ok(any) };
            let cursor = last.position;
            let mut noted = HashSet::new();
            let mut marks = Vec::new();
            for row in &rows {
                if let Some(hash) = row.store_path_hash
                    && self.followed.contains(&row.cache)
                    && noted.insert((row.cache, hash))
                {
                    marks.push((row.cache, hash, row.at));
                }
            }
            any |= !marks.is_empty();
            self.state().note_pending(&self.lease, &marks, Some(cursor)).await?;
            self.cursor = cursor;
        }
    }

    /// Notes what a cache that is new here had before, so that what was removed from it is known.
    async fn note_past(&self, cache: CacheId) -> Result<()> {
        let mut position = OutboxPosition::START;
        while position < self.cursor {
            let rows = self.publisher.index().outbox_after(position, OUTBOX_PAGE).await?;
            let Some(last) = rows.last() else { break };
            position = last.position;
            let mut noted = HashSet::new();
            let marks: Vec<_> = rows
                .iter()
                .filter(|row| row.cache == cache)
                .filter_map(|row| Some((cache, row.store_path_hash?, row.at)))
                .filter(|(_, hash, _)| noted.insert(*hash))
                .collect();
            self.state().note_pending(&self.lease, &marks, None).await?;
        }
        Ok(())
    }

    async fn cache(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        published: Option<PublishedCache>,
    ) -> Result<CacheOutcome> {
        let mut outcome = CacheOutcome { cache: cache.name.clone(), ..CacheOutcome::default() };
        let basis = documents::basis(cache);
        let mut row = match published {
            Some(row) if row.basis == basis => row,
            // New here, or its keys are others: all of it has to be looked at.
            known => {
                self.state().note_all_pending(&self.lease, cache.id, self.now()).await?;
                if known.is_none() {
                    self.note_past(cache.id).await?;
                }
                let row = PublishedCache {
                    cache: cache.id,
                    name: cache.name.clone(),
                    basis,
                    document: known.map(|row| row.document).unwrap_or_default(),
                    published_at: self.now(),
                };
                self.state().write_published_cache(&self.lease, &row).await?;
                self.followed.insert(cache.id);
                row
            }
        };
        // Who may read it counts before what there is to read.
        let anew = self.mode == Mode::Reconcile;
        documents::write_before(self, cache, name, &mut row, anew).await?;
        self.untouched = Some(row.clone());
        if self.mode == Mode::Reconcile {
            self.reconcile(cache, name, &mut outcome).await?;
        }
        self.bring_up_to_date(cache, name, &mut outcome).await?;
        // What is taken away after this is another cache's.
        self.untouched = None;
        documents::write_after(self, cache, name, &mut row, &outcome).await?;
        Ok(outcome)
    }

    async fn bring_up_to_date(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        outcome: &mut CacheOutcome,
    ) -> Result<()> {
        self.forget_old_removals(cache).await?;
        loop {
            let urgent = self.begin_removals(cache).await?;
            if urgent {
                self.remove_all(cache.id, name, Some(cache), outcome).await?;
            }
            let mut progress = 0;
            let mut left = 0;
            let mut after = None;
            outcome.waiting = 0;
            loop {
                let pending = self
                    .state()
                    .pending_objects(self.target(), cache.id, after, crate::page::PAGE_OBJECTS)
                    .await?;
                let Some(last) = pending.last() else { break };
                if after.is_none() && pending.len() == crate::page::PAGE_OBJECTS as usize {
                    let counts = self.state().publish_counts(self.target(), cache.id).await?;
                    self.publisher.reporter.backlog(&cache.name, counts.pending);
                }
                after = Some((last.since, last.hash));
                let page = self.publish_page(cache, name, &pending, outcome).await?;
                progress += page.done;
                left += page.waiting;
                outcome.waiting += page.waiting;
                // What is removed meanwhile, for cause perhaps, does not wait for the end of a long run.
                if self.follow().await? && self.begin_removals(cache).await? {
                    self.remove_all(cache.id, name, Some(cache), outcome).await?;
                }
                if self.publisher.is_stopping() {
                    return Ok(());
                }
            }
            self.remove_all(cache.id, name, Some(cache), outcome).await?;
            self.delete_due_nars(cache.id, name, self.now(), outcome).await?;
            if progress == 0 || left == 0 {
                return Ok(());
            }
        }
    }
}
