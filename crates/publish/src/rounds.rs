//! The caches of a target take turns, in rounds.
//!
//! A run goes through its caches one after the other. A cache with much to do keeps its turn for
//! half a minute at most ([`TargetSettings::turn`](crate::TargetSettings::turn)). Then a new round
//! begins: the run looks again which caches there are and which of them are public, and removes
//! first what they removed for cause. So that leaves the target within about a minute, however long
//! another cache takes. Of the caches with equally many turns, those that changed come first. Each
//! cache keeps its place between two turns.

use std::collections::{BTreeMap, HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::CacheState;
use dormer_index::{
    Cache, CacheId, CacheScan, Drift, NarRows, OutboxPosition, PendingObject, PublishedCache, PublishedNar,
    UnixSeconds,
};
use dormer_nix::StorePathHash;

use crate::bring::PAGE_OBJECTS;
use crate::documents;
use crate::plan::Wait;
use crate::publisher::{Mode, Run};
use crate::report::{CacheOutcome, Counts};
use crate::turn::Turn;
use crate::{Error, Result};

/// Waiting paths read together when most of them are passed over.
const PASSED_OVER_PAGE: u32 = 4 * PAGE_OBJECTS;

/// NARs that are noted as out of date in one transaction.
const NOTED_TOGETHER: u32 = 2_048;

/// Changed paths of a cache that a run remembers, about 4 MB. With more, it looks at all paths.
const CHANGED_MAX: usize = 100_000;

/// How far a run has come with a cache.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are steps of a run that come in any order")]
struct CacheProgress {
    /// Turns that were over before the cache was up to date.
    cut: u32,
    /// Whether the cache was up to date once in this run.
    is_finished: bool,
    /// Whether the comparison with a listing has begun in this run.
    is_compared: bool,
    /// Whether the removals of everything noted before this run were begun.
    removals_begun: bool,
    /// Whether a withdrawal of the whole cache was noted, and the cache had no turn since.
    is_withdrawal_noted: bool,
    /// Whether something is being removed that the lab no longer serves.
    is_urgent: bool,
    /// Whether something changed since the last turn.
    has_changed: bool,
    /// What changed and was not looked at for removals.
    changed: ChangedPaths,
    /// What changed or was published in this run.
    moved: ChangedPaths,
    pass: Pass,
}

/// A way through the paths that have to be looked at.
#[derive(Debug, Default)]
struct Pass {
    /// Behind the last page.
    after: Option<(UnixSeconds, StorePathHash)>,
    /// Paths that need not be looked at any more.
    progress: u64,
    /// Paths that wait.
    waiting: u64,
}

/// Paths of a cache, or all of them if there are too many to remember.
#[derive(Debug, Default)]
struct ChangedPaths {
    hashes: HashSet<StorePathHash>,
    is_all: bool,
}

impl ChangedPaths {
    fn all() -> Self {
        Self { hashes: HashSet::new(), is_all: true }
    }

    fn add(&mut self, hash: StorePathHash) {
        if self.hashes.len() >= CHANGED_MAX {
            *self = Self::all();
        }
        if !self.is_all {
            self.hashes.insert(hash);
        }
    }

    fn is_empty(&self) -> bool {
        self.hashes.is_empty() && !self.is_all
    }
}

impl CacheProgress {
    fn new(looks_at_all: bool) -> Self {
        Self {
            cut: 0,
            is_finished: false,
            is_compared: false,
            removals_begun: false,
            is_withdrawal_noted: false,
            is_urgent: false,
            has_changed: false,
            changed: ChangedPaths::default(),
            moved: ChangedPaths { hashes: HashSet::new(), is_all: looks_at_all },
            pass: Pass::default(),
        }
    }

    /// Records that a path changed in the lab.
    fn note_changed(&mut self, hash: StorePathHash) {
        self.has_changed = true;
        self.changed.add(hash);
        self.moved.add(hash);
    }

    /// All paths are looked at in this run: a scan noted them.
    fn look_at_all(&mut self) {
        self.moved = ChangedPaths::all();
        self.removals_begun = false;
    }

    /// Those of a page that are worth a look, and those that wait for one of them.
    fn worth_a_look(&self, mut page: Vec<PendingObject>) -> Vec<PendingObject> {
        if self.moved.is_all {
            return page;
        }
        let (chosen, passed): (Vec<_>, Vec<_>) =
            page.iter().partition(|pending| self.is_worth_a_look(pending));
        let mut behind: HashMap<StorePathHash, Vec<StorePathHash>> = HashMap::new();
        for pending in passed {
            if let Some(reference) = pending.reason.as_deref().and_then(Wait::reference_in) {
                behind.entry(reference).or_default().push(pending.hash);
            }
        }
        let mut unfollowed: Vec<StorePathHash> = chosen.iter().map(|pending| pending.hash).collect();
        let mut chosen: HashSet<StorePathHash> = unfollowed.iter().copied().collect();
        while let Some(hash) = unfollowed.pop() {
            for behind in behind.remove(&hash).unwrap_or_default() {
                if chosen.insert(behind) {
                    unfollowed.push(behind);
                }
            }
        }
        page.retain(|pending| chosen.contains(&pending.hash));
        page
    }

    /// Whether looking at a path may come to something new: it was not looked at since it was
    /// noted, or it or what it waits for changed.
    fn is_worth_a_look(&self, pending: &PendingObject) -> bool {
        let Some(reason) = &pending.reason else { return true };
        self.moved.hashes.contains(&pending.hash)
            || Wait::reference_in(reason).is_some_and(|reference| self.moved.hashes.contains(&reference))
    }
}

/// The result of a turn.
struct TurnOutcome {
    outcome: CacheOutcome,
    /// Whether the cache is up to date.
    is_done: bool,
}

/// The rounds of a run: how far it has followed the outbox, and how far it has come with each
/// cache.
pub(crate) struct Rounds<'a> {
    run: &'a Run<'a>,
    /// Up to where the outbox was followed.
    followed_to: OutboxPosition,
    /// Caches whose changes are noted.
    followed: HashSet<CacheId>,
    caches: HashMap<CacheId, CacheProgress>,
    /// Whether paths that wait are looked at though nothing changed that they wait for.
    looks_at_all: bool,
    /// When this run last began to look at all paths that wait, or when it began.
    looks_at_all_since: UnixSeconds,
}

impl<'a> Rounds<'a> {
    /// The rounds of a run that goes on in the outbox after this position.
    pub(crate) fn new(run: &'a Run<'a>, followed_to: OutboxPosition, looks_at_all: bool) -> Self {
        Self {
            run,
            followed_to,
            followed: HashSet::new(),
            caches: HashMap::new(),
            looks_at_all,
            looks_at_all_since: run.now(),
        }
    }

    /// How far this run has come with a cache.
    fn progress_of(&mut self, cache: CacheId) -> &mut CacheProgress {
        let looks_at_all = self.looks_at_all;
        self.caches.entry(cache).or_insert_with(|| CacheProgress::new(looks_at_all))
    }

    /// Notes what changed since the last look, here and in the index.
    async fn follow(&mut self) -> Result<()> {
        while let Some(page) = self.run.follow_page(self.followed_to, &self.followed).await? {
            self.followed_to = page.cursor;
            for (cache, hash) in page.changed {
                self.progress_of(cache).note_changed(hash);
            }
        }
        Ok(())
    }

    /// Gives the caches their turns until each was up to date once, or the run is asked to end.
    pub(crate) async fn all_caches(mut self) -> Result<Vec<CacheOutcome>> {
        let mut outcomes: BTreeMap<CacheId, CacheOutcome> = BTreeMap::new();
        while !self.round(&mut outcomes).await? && !self.run.publisher.is_stopping() {}
        let mut outcomes: Vec<CacheOutcome> = outcomes.into_values().collect();
        outcomes.sort_by(|a, b| a.cache.cmp(&b.cache));
        Ok(outcomes)
    }

    /// One round. Returns whether everything is done.
    async fn round(&mut self, outcomes: &mut BTreeMap<CacheId, CacheOutcome>) -> Result<bool> {
        let selected = self.run.publisher.selected().await?;
        let mut published = self.published_caches().await?;
        let is_selected = |id: CacheId| selected.iter().any(|(cache, _)| cache.id == id);
        self.followed = published.keys().copied().filter(|id| is_selected(*id)).collect();
        self.follow().await?;
        // Their names may be taken by others, which have to wait until they are gone.
        let mut leaving: HashSet<String> = HashSet::new();
        let mut rows: Vec<&PublishedCache> =
            published.values().filter(|row| !is_selected(row.cache)).collect();
        rows.sort_unstable_by_key(|row| row.cache);
        for row in rows {
            let turn = self.leave(row).await?;
            if !turn.is_done {
                leaving.insert(row.name.clone());
            }
            merge(outcomes, row.cache, turn.outcome);
        }
        let names: Vec<CacheName> =
            selected.iter().filter(|(cache, _)| cache.is_public).map(|(_, name)| name.clone()).collect();
        documents::write_catalog(self.run, names).await?;
        let readable = self.readable_by_anybody(&selected).await?;
        let mut in_line = Vec::new();
        for (cache, name) in &selected {
            if self.run.publisher.is_stopping() {
                return Ok(false);
            }
            if !cache.is_public && readable {
                let turn = self.refuse(cache, published.get(&cache.id)).await?;
                if !turn.is_done {
                    leaving.insert(cache.name.clone());
                }
                merge(outcomes, cache.id, turn.outcome);
            } else if !leaving.contains(&cache.name) {
                if !cache.is_public
                    && let Err(error) = self.run.store().close_to_others(name.as_str()).await
                {
                    // The other caches are published.
                    let mut outcome = CacheOutcome::of(&cache.name);
                    outcome.error = Some(Error::OpenFolder { cache: cache.name.clone(), error }.to_string());
                    merge(outcomes, cache.id, outcome);
                    continue;
                }
                in_line.push((cache, name));
            }
        }
        self.look_again();
        let mut any_urgent = false;
        for (cache, name) in &in_line {
            if let Some(row) = published.get(&cache.id)
                && let Some(counts) = self.remove_urgent(cache, name, row).await?
            {
                outcomes.entry(cache.id).or_insert_with(|| CacheOutcome::of(&cache.name)).add(counts);
                any_urgent = true;
            }
        }
        if any_urgent {
            // The state documents of these caches are out of date now: their turns have to know.
            published = self.published_caches().await?;
        }
        in_line.retain(|(cache, _)| {
            self.caches.get(&cache.id).is_none_or(|progress| !progress.is_finished || progress.has_changed)
        });
        // A cache that has used up its turns comes behind the others, and changes come first.
        in_line.sort_by_key(|(cache, _)| {
            self.caches.get(&cache.id).map_or((0, true), |progress| (progress.cut, !progress.has_changed))
        });
        for (cache, name) in in_line {
            if self.run.publisher.is_stopping() {
                return Ok(false);
            }
            let turn = self.cache(cache, name, published.get(&cache.id).cloned()).await?;
            merge(outcomes, cache.id, turn.outcome);
            let progress = self.progress_of(cache.id);
            progress.is_finished = turn.is_done;
            if !turn.is_done {
                progress.cut += 1;
                return Ok(false);
            }
        }
        Ok(leaving.is_empty())
    }

    /// After a while, looks at all paths that wait, also of caches that were up to date in this
    /// run: the time of some has come.
    fn look_again(&mut self) {
        if !self.run.publisher.is_due(Some(self.looks_at_all_since)) {
            return;
        }
        self.looks_at_all_since = self.run.now();
        for progress in self.caches.values_mut().filter(|progress| progress.pass.waiting > 0) {
            progress.is_finished = false;
            progress.moved = ChangedPaths::all();
        }
    }

    /// What is recorded of each cache in the target.
    async fn published_caches(&self) -> Result<HashMap<CacheId, PublishedCache>> {
        let rows = self.run.state().published_caches(self.run.target()).await?;
        Ok(rows.into_iter().map(|row| (row.cache, row)).collect())
    }

    /// Removes what a cache removed for cause, before any cache has its turn. `None` if there is
    /// nothing of that kind.
    async fn remove_urgent(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        row: &PublishedCache,
    ) -> Result<Option<Counts>> {
        let mut counts = None;
        let progress = self.progress_of(cache.id);
        if (!progress.changed.is_empty() || progress.is_urgent) && !self.run.publisher.is_stopping() {
            let mut turn = Turn::begin(self.run);
            turn.set_up_to_date(row);
            let changed = std::mem::take(&mut self.progress_of(cache.id).changed);
            let is_urgent = self.begin_removals_of(&turn, cache, changed).await?;
            let progress = self.progress_of(cache.id);
            progress.is_urgent |= is_urgent;
            if progress.is_urgent {
                let removed = counts.insert(Counts::default());
                let is_gone = self.remove_noted(&mut turn, cache, name, removed).await?;
                self.progress_of(cache.id).is_urgent = !is_gone;
            }
        }
        Ok(counts)
    }

    /// Whether private caches must not be published here.
    async fn readable_by_anybody(&self, selected: &[(Cache, CacheName)]) -> Result<bool> {
        if selected.iter().all(|(cache, _)| cache.is_public) {
            return Ok(false);
        }
        // The catalogue names public caches only, so it is a harmless thing to try with.
        let catalog = dormer_edge::EdgeKey::Catalog.to_string();
        Ok(self.run.store().is_public(&catalog).await?.unwrap_or(false))
    }

    /// A private cache in a target that anybody can read.
    async fn refuse(&mut self, cache: &Cache, published: Option<&PublishedCache>) -> Result<TurnOutcome> {
        let location = self.run.store().location().to_owned();
        let refused = Error::PublicTarget { cache: cache.name.clone(), location };
        let mut outcome = CacheOutcome::of(&cache.name);
        outcome.error = Some(refused.to_string());
        let mut is_done = true;
        if let Some(published) = published {
            // It was public, or the target was not: what is there goes.
            let (counts, is_gone) = self.withdraw(published).await?;
            outcome.add(counts);
            is_done = is_gone;
        }
        Ok(TurnOutcome { outcome, is_done })
    }

    /// A cache that is published and is not selected any more.
    async fn leave(&mut self, published: &PublishedCache) -> Result<TurnOutcome> {
        let caches = self.run.publisher.index().list_caches().await?;
        let cache = caches.iter().find(|cache| cache.id == published.cache);
        // It is private now, and only a pattern fits it.
        let named = |cache: &Cache| {
            cache.name.parse().is_ok_and(|name| self.run.publisher.settings.selects(&name, true))
        };
        // What the target shows to anybody goes when the cache becomes private, whatever the
        // settings name.
        let is_exposed = |cache: &Cache| {
            !cache.is_public && CacheState::parse(&published.document).map_or(true, |state| state.public)
        };
        let mut outcome = CacheOutcome::of(&published.name);
        let mut is_done = true;
        match cache {
            Some(cache) if self.run.mode != Mode::Reconcile && !named(cache) && !is_exposed(cache) => {
                self.run.set_aside(published).await?;
                outcome.note = Some(
                    "is not among the target's caches any more and is left as it is; --reconcile takes it away"
                        .to_owned(),
                );
            }
            _ => {
                let (counts, is_gone) = self.withdraw(published).await?;
                outcome.add(counts);
                is_done = is_gone;
                outcome.note = is_gone.then(|| "was taken away".to_owned());
            }
        }
        Ok(TurnOutcome { outcome, is_done })
    }

    /// Removes a whole cache: its state document first, so that the edge no longer serves it; then
    /// everything in it. Returns whether all is gone; if not, its turn is over.
    async fn withdraw(&mut self, published: &PublishedCache) -> Result<(Counts, bool)> {
        let name: CacheName =
            published.name.parse().map_err(|_| Error::CacheName { name: published.name.clone() })?;
        let mut turn = Turn::begin(self.run);
        if !self.progress_of(published.cache).is_withdrawal_noted
            && !self.run.note_withdrawal(published, &name).await?
        {
            return Ok((Counts::default(), false));
        }
        self.progress_of(published.cache).is_withdrawal_noted = true;
        self.run.withdraw(&mut turn, published, &name).await
    }

    /// The turn of a cache.
    async fn cache(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        published: Option<PublishedCache>,
    ) -> Result<TurnOutcome> {
        let mut turn = Turn::begin(self.run);
        let mut outcome = CacheOutcome::of(&cache.name);
        let progress = self.progress_of(cache.id);
        (progress.is_withdrawal_noted, progress.has_changed) = (false, false);
        let mut row = self.cache_row(cache, published).await?;
        let is_first = self.run.mode == Mode::Reconcile && !self.progress_of(cache.id).is_compared;
        if !self.follow_visibility(cache, name, &mut row, &mut outcome).await? {
            return Ok(TurnOutcome { outcome, is_done: false });
        }
        // The access rules take effect before the contents.
        documents::write_before(self.run, cache, name, &mut row, is_first).await?;
        turn.set_up_to_date(&row);
        let compares = row.scan.as_ref().is_some_and(CacheScan::is_comparison);
        let progress = self.progress_of(cache.id);
        progress.is_compared |= compares;
        if row.scan.is_some() {
            progress.look_at_all();
        }
        let (counts, is_done) = self.run.scan_cache(&turn, cache, name, &mut row, self.followed_to).await?;
        outcome.add(counts);
        if !is_done {
            return Ok(TurnOutcome { outcome, is_done });
        }
        if is_first && !compares {
            let progress = self.progress_of(cache.id);
            progress.is_compared = true;
            progress.look_at_all();
            self.run.store().delete_abandoned(name.as_str()).await?;
            row.scan = Some(CacheScan::Narinfos(None));
            self.run.state().write_published_cache(&self.run.lease(), &row, self.run.now()).await?;
            let (counts, is_done) =
                self.run.scan_cache(&turn, cache, name, &mut row, self.followed_to).await?;
            outcome.add(counts);
            if !is_done {
                return Ok(TurnOutcome { outcome, is_done });
            }
        }
        let (counts, is_done) = self.bring_up_to_date(&mut turn, cache, name).await?;
        outcome.add(counts);
        outcome.waiting = self.progress_of(cache.id).pass.waiting;
        documents::write_after(self.run, cache, name, &mut row, &outcome).await?;
        Ok(TurnOutcome { outcome, is_done })
    }

    /// Notes everything of a cache as out of date if the cache was public when it was written and
    /// is private now, or the reverse: the headers that a bucket keeps with a file say which caches
    /// may keep it. The access rules take effect first. NARs of a private cache that nothing names
    /// go at once, because nothing would write them again. Returns `false` if the run is to end.
    async fn follow_visibility(
        &self,
        cache: &Cache,
        name: &CacheName,
        row: &mut PublishedCache,
        outcome: &mut CacheOutcome,
    ) -> Result<bool> {
        let Ok(before) = CacheState::parse(&row.document) else { return Ok(true) };
        // Between the first step and the last, the row says that nobody knows which rules are in
        // force: an earlier run may have ended there, and the cache may have changed again.
        let is_settled = !before.store_dir.is_empty();
        if self.run.store().is_folder() || is_settled && before.public == cache.is_public {
            return Ok(true);
        }
        if is_settled {
            // As exposed as it may be.
            let unsettled = CacheState { public: true, store_dir: String::new(), ..before.clone() };
            row.document = unsettled.to_json();
            self.run.state().write_published_cache(&self.run.lease(), row, self.run.now()).await?;
        }
        documents::write_access_rules(self.run, cache, name, &before).await?;
        let scan = row.scan.get_or_insert(CacheScan::Objects(None)).clone();
        let mut after = None;
        loop {
            let page = NarRows::Page { bytes: 0..=u8::MAX, after, limit: NOTED_TOGETHER };
            let nars = self.run.state().published_nars(self.run.target(), cache.id, page).await?;
            let Some(last) = nars.last() else { return Ok(true) };
            after = Some(last.nar);
            let (unnamed, named): (Vec<_>, Vec<_>) =
                nars.into_iter().partition(|nar| nar.delete_after.is_some() && !cache.is_public);
            let keys = |nars: Vec<PublishedNar>| nars.into_iter().map(|nar| nar.nar).collect::<Vec<_>>();
            let (unnamed, outdated_nars) = (keys(unnamed), keys(named));
            if !unnamed.is_empty() {
                self.run.delete_nars(cache.id, name, &unnamed).await?;
                outcome.nars_deleted += unnamed.len() as u64;
            }
            let drift = Drift { outdated_nars, ..Drift::default() };
            let (lease, now) = (self.run.lease(), self.run.now());
            self.run.state().note_drift(&lease, cache.id, &drift, now, Some(scan.clone())).await?;
            if self.run.publisher.is_stopping() {
                return Ok(false);
            }
        }
    }

    /// The cache's row. If the cache is new here, or its keys are others, all of it has to be
    /// looked at: the row says so from now on, whatever becomes of this run.
    async fn cache_row(
        &mut self,
        cache: &Cache,
        published: Option<PublishedCache>,
    ) -> Result<PublishedCache> {
        let basis = documents::basis(cache, &self.run.publisher.settings);
        let (scan, document) = match published {
            Some(row) if row.basis == basis => return Ok(row),
            Some(PublishedCache { scan: Some(scan @ CacheScan::Past(_)), document, .. }) => (scan, document),
            // Nobody followed its changes while it was set aside.
            Some(row) if row.basis.is_empty() => (CacheScan::Past(OutboxPosition::START), row.document),
            Some(row) => (CacheScan::Objects(None), row.document),
            None => (CacheScan::Past(OutboxPosition::START), Vec::new()),
        };
        let row = PublishedCache {
            cache: cache.id,
            name: cache.name.clone(),
            basis,
            document,
            published_at: self.run.now(),
            scan: Some(scan),
        };
        self.run.state().write_published_cache(&self.run.lease(), &row, self.run.now()).await?;
        self.followed.insert(cache.id);
        Ok(row)
    }

    /// Removes and brings what has to be looked at, from where the last turn ended. Returns whether
    /// all is done; if not, the turn is over.
    async fn bring_up_to_date(
        &mut self,
        turn: &mut Turn<'_>,
        cache: &Cache,
        name: &CacheName,
    ) -> Result<(Counts, bool)> {
        let mut counts = Counts::default();
        self.run.forget_old_removals(cache).await?;
        let progress = self.progress_of(cache.id);
        if progress.pass.after.is_none() {
            progress.pass = Pass::default();
        }
        // An earlier turn may have ended while it removed something.
        let mut is_urgent = progress.cut > 0;
        loop {
            is_urgent |= self.begin_new_removals(turn, cache).await?;
            if is_urgent && !self.remove_noted(turn, cache, name, &mut counts).await? {
                return Ok((counts, false));
            }
            is_urgent = false;
            loop {
                let progress = self.progress_of(cache.id);
                let after = progress.pass.after;
                let limit = if progress.moved.is_all { PAGE_OBJECTS } else { PASSED_OVER_PAGE };
                let pending =
                    self.run.state().pending_objects(self.run.target(), cache.id, after, limit).await?;
                let Some(last) = pending.last().map(|last| (last.since, last.hash)) else { break };
                if after.is_none() && pending.len() == limit as usize {
                    let backlog = self.run.state().publish_counts(self.run.target(), cache.id).await?;
                    self.run.publisher.reporter.backlog(&cache.name, backlog.pending);
                }
                let progress = self.progress_of(cache.id);
                let all = pending.len();
                let pending = progress.worth_a_look(pending);
                let mut waiting = (all - pending.len()) as u64;
                if !progress.moved.is_all
                    && !self.remove_absent(turn, cache, name, &pending, &mut counts).await?
                {
                    return Ok((counts, false));
                }
                for page in pending.chunks(PAGE_OBJECTS as usize) {
                    let page = self.run.publish_page(turn, cache, name, page).await?;
                    counts += page.counts;
                    let progress = self.progress_of(cache.id);
                    page.published.into_iter().for_each(|hash| progress.moved.add(hash));
                    progress.pass.progress += page.done;
                    if page.is_cut {
                        return Ok((counts, false));
                    }
                    waiting += page.waiting;
                }
                let progress = self.progress_of(cache.id);
                progress.pass.after = Some(last);
                progress.pass.waiting += waiting;
                // What is removed meanwhile, for cause perhaps, does not wait for the end of a long
                // run.
                self.follow().await?;
                if self.begin_new_removals(turn, cache).await?
                    && !self.remove_noted(turn, cache, name, &mut counts).await?
                {
                    return Ok((counts, false));
                }
                if turn.has_to_pause() {
                    return Ok((counts, false));
                }
            }
            if !self.remove_noted(turn, cache, name, &mut counts).await? {
                return Ok((counts, false));
            }
            let progress = self.progress_of(cache.id);
            progress.pass.after = None;
            if progress.pass.progress == 0 || progress.pass.waiting == 0 {
                return Ok((counts, true));
            }
            progress.pass = Pass::default();
        }
    }

    /// Begins the removals of what changed since the last look, or of everything that was noted.
    /// Returns whether some of it has to leave the target at once.
    async fn begin_new_removals(&mut self, turn: &Turn<'_>, cache: &Cache) -> Result<bool> {
        let progress = self.progress_of(cache.id);
        let changed = std::mem::take(&mut progress.changed);
        let is_first = !std::mem::replace(&mut progress.removals_begun, true);
        if is_first && progress.moved.is_all {
            self.run.begin_removals(turn, cache).await
        } else {
            self.begin_removals_of(turn, cache, changed).await
        }
    }

    async fn begin_removals_of(&self, turn: &Turn<'_>, cache: &Cache, changed: ChangedPaths) -> Result<bool> {
        if changed.is_all {
            return self.run.begin_removals(turn, cache).await;
        }
        let changed: Vec<StorePathHash> = changed.hashes.into_iter().collect();
        self.run.begin_removals_among(turn, cache, &changed).await
    }

    /// Begins the removals of those of these paths that the cache no longer has: the last run may
    /// have noted them at its end. Returns whether all of it is gone that has to go at once.
    async fn remove_absent(
        &self,
        turn: &mut Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        pending: &[PendingObject],
        counts: &mut Counts,
    ) -> Result<bool> {
        let hashes: Vec<StorePathHash> = pending.iter().map(|pending| pending.hash).collect();
        let is_urgent = self.run.begin_removals_among(turn, cache, &hashes).await?;
        Ok(!is_urgent || self.remove_noted(turn, cache, name, counts).await?)
    }

    /// Removes what is to be removed. Returns whether all of it is gone.
    async fn remove_noted(
        &self,
        turn: &mut Turn<'_>,
        cache: &Cache,
        name: &CacheName,
        counts: &mut Counts,
    ) -> Result<bool> {
        let (removed, is_done) = self.run.remove_all(turn, cache.id, name, Some(cache)).await?;
        *counts += removed;
        Ok(is_done)
    }
}

/// Adds the result of a turn.
fn merge(outcomes: &mut BTreeMap<CacheId, CacheOutcome>, cache: CacheId, turn: CacheOutcome) {
    let added = outcomes.entry(cache).or_insert_with(|| CacheOutcome::of(&turn.cache));
    added.add_turn(turn);
}
