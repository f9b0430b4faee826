//! Pushes what is in the queue.
//!
//! All due entries of a cache are pushed as one plan, so that their closures are looked at once. A
//! failure of the server or of Nix makes the cache wait, and changes no entry: hours without a
//! server cost nothing. A failure of a path is noted in the entry, which rests and is tried again,
//! and becomes a dead letter after the tries of [`DrainerOptions::entry_retry`].
//!
//! Invariants
//! - An entry is settled only after every path of it is in the cache, or is one that the cache's
//!   filter or upstream keys leave out. The build traces of its paths were sent before.
//! - An entry that cannot be read is reported, and stops no other.
//! - The future may be dropped at any time. What was acknowledged is found by the next plan.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormer_nix::StorePath;
use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::drain_contract::{DrainEnd, DrainReporter, DrainScope, DrainTargets, DrainerOptions, RootEnd};
use super::entry::{EntryId, QueueEntry, QueuedCache, Standing, seconds};
use super::failure_pause::FailurePause;
use super::push_batch::push_batch;
use super::spool::{DrainerLock, Spool};
use crate::error::{Error, Result};
use crate::nix_store::NixStore;
use crate::retry::Passing;

/// Most paths of one plan. Their closures, some kilobytes for each path, are in memory.
const ROOTS_MAX: usize = 1_000;

/// Most bytes of paths that the drainer remembers, of its oldest entries. The others wait on the
/// disk; an entry has some 200 bytes.
const KNOWN_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How often the drainer looks for new entries.
const POLL: Duration = Duration::from_secs(1);

/// Most derivations at a look whose outputs are asked for. Each is a call of Nix, and plans that
/// run wait for it.
const OUTPUTS_AT_ONCE: usize = 16;

/// Pushes what is in the queue.
pub struct Drainer {
    spool: Spool,
    _lock: DrainerLock,
    store: NixStore,
    targets: Arc<dyn DrainTargets>,
    reporter: Arc<dyn DrainReporter>,
    options: DrainerOptions,
    known: BTreeMap<EntryId, QueueEntry>,
    /// Entries that could not be read at the last look.
    unreadable: BTreeSet<EntryId>,
    caches: HashMap<QueuedCache, CacheState>,
    /// The calls of Nix that ask for the outputs of derivations.
    nix: FailurePause,
    /// Entries in the folder at the last look.
    waiting: usize,
    dead: usize,
}

/// What is remembered of a cache between plans.
#[derive(Debug, Default)]
struct CacheState {
    is_busy: bool,
    pause: FailurePause,
}

/// The entries of one plan, with their paths.
type Batch = Vec<(EntryId, BTreeSet<StorePath>)>;

/// The plans that are being carried out, one for each cache. Their uploads are tasks of their own.
type RunningPlans = FuturesUnordered<LocalBoxFuture<'static, BatchEnd>>;

/// The result of a plan.
struct BatchEnd {
    cache: QueuedCache,
    batch: Batch,
    roots: HashMap<StorePath, RootEnd>,
    /// The failure of the server or of Nix that ended it.
    stopped: Option<Error>,
}

impl Drainer {
    /// A drainer of `spool`, which holds the lock of it.
    pub fn new(
        spool: Spool,
        lock: DrainerLock,
        store: NixStore,
        targets: Arc<dyn DrainTargets>,
        reporter: Arc<dyn DrainReporter>,
        options: DrainerOptions,
    ) -> Self {
        let (known, caches, nix) = (BTreeMap::new(), HashMap::new(), FailurePause::default());
        Self {
            spool,
            _lock: lock,
            store,
            targets,
            reporter,
            options,
            known,
            unreadable: BTreeSet::new(),
            caches,
            nix,
            waiting: 0,
            dead: 0,
        }
    }

    /// Pushes until nothing is left that can be pushed now. With `patience`, entries that rest and
    /// caches that fail are tried again for that long, unless they refuse this client.
    pub async fn drain(&mut self, patience: Option<Duration>) -> Result<DrainEnd> {
        let (_, ended) = watch::channel(true);
        self.drain_after(ended, patience, None).await
    }

    /// Pushes what comes until `ended` becomes true, and then drains as [`Drainer::drain`] does.
    /// With a `scope`, entries outside of it are pushed as well, but nothing waits for their next
    /// try.
    pub async fn drain_after(
        &mut self,
        mut ended: watch::Receiver<bool>,
        patience: Option<Duration>,
        scope: Option<&DrainScope>,
    ) -> Result<DrainEnd> {
        self.dead = 0;
        let mut patient_until = None;
        self.revive_unread()?;
        let mut running = self.no_plans();
        loop {
            self.scan()?;
            if *ended.borrow_and_update() && patient_until.is_none() {
                patient_until = Some(Instant::now() + patience.unwrap_or_default());
                self.forget_refusals();
            }
            self.start_due(&mut running).await?;
            if let Some(until) = patient_until {
                if running.is_empty() && (self.is_futile(scope) || Instant::now() >= until) {
                    return Ok(self.drain_end(scope));
                }
                self.next(&mut running).await?;
            } else {
                tokio::select! {
                    next = self.next(&mut running) => next?,
                    // A sender that went away says the same.
                    changed = ended.changed() => if changed.is_err() {
                        let (_, over) = watch::channel(true);
                        ended = over;
                    },
                }
            }
        }
    }

    /// Pushes what comes, until the future is dropped.
    pub async fn watch(&mut self) -> Result<()> {
        self.revive_unread()?;
        let mut running = self.no_plans();
        loop {
            self.scan()?;
            self.start_due(&mut running).await?;
            self.next(&mut running).await?;
        }
    }

    /// A drainer of an older version may have run until now.
    fn revive_unread(&self) -> Result<()> {
        match self.spool.revive_unread()? {
            0 => {}
            count => self.reporter.entries_revived(count),
        }
        Ok(())
    }

    /// Lets caches that refused this client be tried once more: it may have another token by now.
    fn forget_refusals(&mut self) {
        for state in self.caches.values_mut().filter(|state| state.pause.is_refused()) {
            state.pause = FailurePause::default();
        }
    }

    /// Whether no entry of the scope can be pushed by waiting longer: none is left, or each of them
    /// is for caches that refuse this client, or cannot be read.
    fn is_futile(&self, scope: Option<&DrainScope>) -> bool {
        let is_in_memory = self.known.len() + self.unreadable.len() >= self.waiting;
        let is_refused =
            |cache: &QueuedCache| self.caches.get(cache).is_some_and(|state| state.pause.is_refused());
        let in_scope = |cache: &QueuedCache| scope.is_none_or(|scope| scope.caches.contains(cache));
        let mut entries =
            self.known.iter().filter(|(id, entry)| scope.is_none_or(|scope| scope.has(id, entry)));
        is_in_memory
            && entries.all(|(_, entry)| entry.caches.keys().filter(|cache| in_scope(cache)).all(is_refused))
    }

    fn drain_end(&self, scope: Option<&DrainScope>) -> DrainEnd {
        // Entries that found no room in memory may be in the scope.
        let known_outside =
            |scope: &DrainScope| self.known.iter().filter(|(id, entry)| !scope.has(id, entry)).count();
        let unreadable_outside =
            |scope: &DrainScope| self.unreadable.iter().filter(|id| !scope.is_since(id)).count();
        let outside = scope.map_or(0, |scope| known_outside(scope) + unreadable_outside(scope));
        let waiting = self.waiting.saturating_sub(outside);
        let counts = |cache: &QueuedCache| scope.is_none_or(|scope| scope.caches.contains(cache));
        let caches = self.caches.iter().filter(|(cache, _)| counts(cache));
        let paused_by = caches
            .map(|(_, state)| &state.pause)
            .chain([&self.nix])
            .find_map(|pause| pause.paused_by.clone());
        DrainEnd { waiting, dead: self.dead, paused_by }
    }

    /// The plans at the start. Those of an earlier call ended with it, also if an error ended it.
    fn no_plans(&mut self) -> RunningPlans {
        for state in self.caches.values_mut() {
            state.is_busy = false;
        }
        RunningPlans::new()
    }

    /// Waits for the end of a plan, or until it is time to look again.
    async fn next(&mut self, running: &mut RunningPlans) -> Result<()> {
        tokio::select! {
            Some(ended) = running.next() => self.end_batch(ended),
            () = tokio::time::sleep(POLL) => Ok(()),
        }
    }

    /// Learns which entries came and went.
    fn scan(&mut self) -> Result<()> {
        let ids: BTreeSet<EntryId> = self.spool.ids()?.into_iter().collect();
        self.known.retain(|id, _| ids.contains(id));
        self.unreadable.retain(|id| ids.contains(id));
        self.waiting = ids.len();
        let mut bytes: usize = self.known.values().map(path_bytes).sum();
        for id in ids {
            if bytes > KNOWN_BYTES_MAX {
                break;
            }
            if self.known.contains_key(&id) {
                continue;
            }
            match self.spool.read(&id) {
                Ok(Some(entry)) => {
                    bytes += path_bytes(&entry);
                    self.unreadable.remove(&id);
                    self.known.insert(id, entry);
                }
                Ok(None) => {}
                Err(error) => {
                    if self.unreadable.insert(id.clone()) {
                        self.reporter.entry_unreadable(&id, &dormer_nix::with_causes(&error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a plan for each cache that has due entries and no plan.
    async fn start_due(&mut self, running: &mut RunningPlans) -> Result<()> {
        self.find_outputs().await?;
        let caches: BTreeSet<QueuedCache> =
            self.known.values().flat_map(|entry| entry.caches.keys().cloned()).collect();
        for cache in caches {
            let state = self.caches.entry(cache.clone()).or_default();
            if state.is_busy || state.pause.is_paused() {
                continue;
            }
            let batch = self.due_batch(&cache)?;
            if batch.is_empty() {
                continue;
            }
            self.caches.entry(cache.clone()).or_default().is_busy = true;
            let (targets, store, reporter) =
                (Arc::clone(&self.targets), self.store.clone(), Arc::clone(&self.reporter));
            running.push(Box::pin(async move {
                let paths = batch.iter().flat_map(|(_, paths)| paths.iter().cloned()).collect();
                let (roots, stopped) = push_batch(&cache, paths, &*targets, &store, &*reporter).await;
                BatchEnd { cache, batch, roots, stopped }
            }));
        }
        Ok(())
    }

    /// Puts the outputs of a derivation in its place. Entries at rest keep their rest. A failure of
    /// Nix as a whole makes all of them wait, and costs none a try.
    async fn find_outputs(&mut self) -> Result<()> {
        if self.nix.is_paused() {
            return Ok(());
        }
        let now = seconds(SystemTime::now());
        let without_paths = self.known.iter().filter_map(|(id, entry)| {
            let derivation = entry.derivation.clone().filter(|_| entry.paths.is_empty())?;
            let is_due = |(_, standing): &(&QueuedCache, &Standing)| standing.not_before <= now;
            let due: Vec<QueuedCache> =
                entry.caches.iter().filter(is_due).map(|(cache, _)| cache.clone()).collect();
            (!due.is_empty()).then(|| (id.clone(), derivation, due))
        });
        let without_paths: Vec<_> = without_paths.take(OUTPUTS_AT_ONCE).collect();
        for (id, derivation, due) in without_paths {
            let reason = match self.store.outputs_of(&derivation).await {
                Ok(paths) if paths.is_empty() => format!("{derivation} has no outputs"),
                Ok(paths) => {
                    self.nix = FailurePause::default();
                    if let Some(entry) = self.known.get_mut(&id) {
                        entry.paths = paths;
                    }
                    continue;
                }
                Err(error) => dormer_nix::with_causes(&error),
            };
            // As for paths: this question fails only if Nix as a whole does.
            let path = StorePath::parse_absolute(self.store.store_dir(), &derivation);
            if let Ok(path) = path
                && let Err(failure) = self.store.invalid_paths(&[path]).await
            {
                let pause = self.nix.lengthen(&self.options.cache_retry, None);
                for cache in &due {
                    self.reporter.cache_paused(cache, &dormer_nix::with_causes(&failure), pause);
                }
                self.nix.paused_by = Some(Arc::new(failure));
                return Ok(());
            }
            for cache in &due {
                self.fail(&id, cache, &reason)?;
            }
        }
        Ok(())
    }

    /// The entries of a cache that are due. An entry with a malformed path becomes a dead letter.
    fn due_batch(&mut self, cache: &QueuedCache) -> Result<Batch> {
        let now = seconds(SystemTime::now());
        let (mut batch, mut malformed, mut count) = (Batch::new(), Vec::new(), 0);
        for (id, entry) in &self.known {
            let Some(standing) = entry.caches.get(cache) else { continue };
            if standing.not_before > now || entry.paths.is_empty() {
                continue;
            }
            let store_dir = self.store.store_dir();
            let paths = entry.paths.iter().map(|path| StorePath::parse_absolute(store_dir, path));
            match paths.collect::<Result<BTreeSet<_>, _>>() {
                Ok(paths) => {
                    count += paths.len();
                    if count > ROOTS_MAX && !batch.is_empty() {
                        break;
                    }
                    batch.push((id.clone(), paths));
                }
                Err(error) => malformed.push((id.clone(), dormer_nix::with_causes(&error))),
            }
        }
        for (id, reason) in malformed {
            self.bury(&id, cache, &reason)?;
        }
        Ok(batch)
    }

    /// Writes down the result of a plan.
    fn end_batch(&mut self, ended: BatchEnd) -> Result<()> {
        let BatchEnd { cache, batch, roots, stopped } = ended;
        let mut reason = stopped.as_ref().map(|error| dormer_nix::with_causes(error));
        let mut is_any_settled = false;
        for (id, paths) in batch {
            let ends: Vec<(&StorePath, Option<&RootEnd>)> =
                paths.iter().map(|path| (path, roots.get(path))).collect();
            let failure = ends.iter().find_map(|(path, end)| match end {
                Some(RootEnd::Failed(reason)) => Some(format!("{path}: {reason}")),
                _ => None,
            });
            let gone = ends.iter().find(|(_, end)| matches!(end, Some(RootEnd::Gone)));
            let open = ends.iter().find(|(_, end)| end.is_none());
            if let Some(reason) = failure {
                self.fail(&id, &cache, &reason)?;
            } else if let Some((path, _)) = open {
                // The push ended before its turn. Without a pause, it would start again at once.
                reason.get_or_insert_with(|| format!("{path} was not tried"));
            } else if let Some((path, _)) = gone {
                self.bury(
                    &id,
                    &cache,
                    &format!("{path} is not in the store any more, and the cache lacks it"),
                )?;
            } else {
                let left = self.spool.settle(&id, &cache)?;
                self.remember(&id, left);
                is_any_settled = true;
            }
        }
        let state = self.caches.entry(cache.clone()).or_default();
        state.is_busy = false;
        if is_any_settled {
            // The server works: one path that it always fails must not slow the others more and
            // more.
            state.pause.failures = 0;
        }
        let Some(reason) = reason else {
            *state = CacheState::default();
            return Ok(());
        };
        let retry_after = stopped.as_ref().and_then(Error::retry_after);
        let pause = state.pause.lengthen(&self.options.cache_retry, retry_after);
        self.reporter.cache_paused(&cache, &reason, pause);
        state.pause.paused_by = stopped.map(Arc::new);
        Ok(())
    }

    /// Notes a failure of an entry, which rests, or becomes a dead letter after the last try.
    fn fail(&mut self, id: &EntryId, cache: &QueuedCache, reason: &str) -> Result<()> {
        let before = self.known.get(id).and_then(|entry| entry.caches.get(cache));
        let tries = before.map_or(0, |standing| standing.tries) + 1;
        let Some(pause) = self.options.entry_retry.wait(tries, Passing::Broken) else {
            return self.bury(id, cache, reason);
        };
        let not_before = seconds(SystemTime::now() + pause);
        let standing = Standing { tries, not_before, error: Some(reason.to_owned()) };
        let left = self.spool.note_failure(id, cache, &standing)?;
        self.reporter.entry_failed(cache, id, &standing);
        self.remember(id, left);
        Ok(())
    }

    fn bury(&mut self, id: &EntryId, cache: &QueuedCache, reason: &str) -> Result<()> {
        let before = self.known.get(id).and_then(|entry| entry.caches.get(cache));
        let tries = before.map_or(0, |standing| standing.tries) + 1;
        let standing = Standing { tries, not_before: 0, error: Some(reason.to_owned()) };
        let left = self.spool.bury(id, cache, &standing)?;
        self.dead += 1;
        self.reporter.entry_dead(cache, id, reason);
        self.remember(id, left);
        Ok(())
    }

    fn remember(&mut self, id: &EntryId, left: Option<QueueEntry>) {
        match left {
            // The outputs of a derivation are known already.
            Some(left) => {
                let paths = self.known.get(id).map(|known| known.paths.clone()).unwrap_or_default();
                self.known.insert(id.clone(), QueueEntry { paths, ..left });
            }
            None => {
                self.known.remove(id);
            }
        }
    }
}

fn path_bytes(entry: &QueueEntry) -> usize {
    entry.paths.iter().map(String::len).sum()
}
