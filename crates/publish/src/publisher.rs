//! One run: the lease, the outbox, and the caches in turns.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use dormer_api::CacheName;
use dormer_engine::Engine;
use dormer_index::{
    Cache, CacheScan, Index, Lease, NarRows, ObjectRows, PublishIndex, TargetId, UnixSeconds,
};
use dormer_nix::{StorePathHash, with_causes};
use dormer_stores::{Store, WriteWindow};
use tokio::sync::watch;

use crate::follow::Changed;
use crate::in_flight::InFlight;
use crate::report::{Outcome, Preview, Reporter};
use crate::rounds::Rounds;
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
    /// The lab's id, if it has one.
    pub(crate) lab: Option<String>,
    /// Unknown caches that a reconciliation removes.
    pub(crate) unwanted: Vec<CacheName>,
    stopping: watch::Sender<bool>,
    /// When a run of this process looked at all paths that wait. `None`: none did, or one failed
    /// since.
    looked_at: Mutex<Option<UnixSeconds>>,
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
        let (stopping, looked_at) = (watch::Sender::new(false), Mutex::new(None));
        let (lab, unwanted) = (None, Vec::new());
        Self { engine, state, store, settings, sender, reporter, holder, lab, unwanted, stopping, looked_at }
    }

    /// The publisher of the lab with this id. It marks the target, and refuses another lab's.
    #[must_use]
    pub fn of_lab(self, lab: Option<String>) -> Self {
        Self { lab, ..self }
    }

    /// The same publisher, whose reconciliation removes these caches from the target if they are
    /// unknown ([`Outcome::unknown`]). A cache that is known stays, and is reported as an error.
    #[must_use]
    pub fn removing(self, unwanted: Vec<CacheName>) -> Self {
        Self { unwanted, ..self }
    }

    /// Lets a run end after the requests under way; the next run goes on from there.
    pub fn stop_soon(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether a run was asked to end.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits for so long. Returns `false` at once if the run is asked to end.
    pub(crate) async fn pause(&self, time: std::time::Duration) -> bool {
        let mut stopping = self.stopping.subscribe();
        tokio::time::timeout(time, stopping.wait_for(|stopping| *stopping)).await.is_err()
    }

    /// Brings the target up to date with the caches.
    pub async fn run(&self, mode: Mode) -> Result<Outcome> {
        let location = self.store.location().to_owned();
        let target = self.state.open_target(&self.settings.name, &location).await?;
        self.check_location(&target, mode).await?;
        let requests = self.store.requests();
        let Some((lease, good_until)) = self.take_lease(&target).await? else {
            // Asked to end before it had begun.
            return Ok(Outcome::default());
        };
        let window = Arc::new(WriteWindow::until(good_until));
        let store = self.store.within(&window);
        let in_flight =
            InFlight::new(self.settings.concurrency, self.settings.request_timeout).within(&window);
        let looks_at_all = self.is_due(self.looked_at());
        let work = async {
            // Read again: another run may have moved the target before this one had the lease.
            let target = self.state.open_target(&self.settings.name, &location).await?;
            self.check_location(&target, mode).await?;
            let place = self.look_at_place(&target, mode).await?;
            if target.location != location || target.compared != place.is_known {
                // The rows are about another location, or about none. Until all of them were
                // compared with this one, they are about neither.
                self.state.move_target(&self.renewed(&lease), &location, place.is_known).await?;
            }
            let run = Run {
                publisher: self,
                store: &store,
                in_flight: &in_flight,
                held: lease,
                adopts: !place.is_known,
                mode,
            };
            if !place.is_marked {
                run.mark_place().await?;
            }
            if target.missed_changes {
                run.compare_whole_caches().await?;
            }
            let mut outcomes = Rounds::new(&run, target.cursor, looks_at_all).all_caches().await?;
            if !place.is_known && !self.is_stopping() {
                self.state.move_target(&self.renewed(&lease), &location, true).await?;
            }
            let unknown = run.look_for_unknown(&mut outcomes).await?;
            Ok((outcomes, unknown))
        };
        let mut work = std::pin::pin!(work);
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            error = self.keep_lease(&lease, &window, good_until) => {
                // Nothing begins any more. What is under way is waited for, so that no upload in
                // parts is left open.
                window.close();
                let _ = tokio::time::timeout(self.settings.request_timeout, work).await;
                self.note_looked_at(None);
                return Err(error);
            }
        };
        let outcome = match outcome {
            Err(Error::Target(dormer_stores::Error::WindowClosed { .. })) => {
                Err(dormer_index::Error::LeaseLost.into())
            }
            outcome => outcome,
        };
        if outcome.is_err() {
            self.note_looked_at(None);
        } else if looks_at_all && !self.is_stopping() {
            self.note_looked_at(Some(self.engine.now()));
        }
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
        let (caches, unknown) = outcome?;
        released?;
        let (writes, listings) = self.store.requests();
        Ok(Outcome { caches, writes: writes - requests.0, listings: listings - requests.1, unknown })
    }

    /// Whether a run would find anything to do. Costs a few statements, and two for each cache.
    pub async fn has_work(&self) -> Result<bool> {
        let target = self.state.open_target(&self.settings.name, self.store.location()).await?;
        let published = self.state.published_caches(target.id).await?;
        let has_changes = target.unseen_since.is_some() || target.missed_changes;
        if has_changes || target.error.is_some() || published.is_empty() {
            return Ok(true);
        }
        let looks_at_all = self.is_due(self.looked_at().or(target.ran_at));
        for (cache, _) in self.selected().await? {
            if !published.iter().any(|published| published.cache == cache.id) {
                continue;
            }
            let pending = self.state.pending_objects(target.id, cache.id, None, PENDING_LOOKED_AT).await?;
            let due = NarRows::Due { at: self.engine.now(), limit: 1 };
            // What waits for something was looked at; now and then its time may have come.
            if pending.iter().any(|pending| pending.reason.is_none())
                || (looks_at_all && !pending.is_empty())
                || !self.state.published_nars(target.id, cache.id, due).await?.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is time to look at all paths that wait, though nothing that they wait for
    /// changed, if this was done then.
    pub(crate) fn is_due(&self, looked_at: Option<UnixSeconds>) -> bool {
        let now = self.engine.now();
        // A time in the future is that of a clock that was wrong.
        looked_at.is_none_or(|at| at + self.look_again_seconds() <= now || at > now)
    }

    fn looked_at(&self) -> Option<UnixSeconds> {
        *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_looked_at(&self, at: Option<UnixSeconds>) {
        *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
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
                let there = self.state.published_objects(target.id, cache.id, ObjectRows::Of(page)).await?;
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
    pub(crate) async fn selected(&self) -> Result<Vec<(Cache, CacheName)>> {
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

/// A run that holds the lease: what all of its parts work with. None of it changes.
pub(crate) struct Run<'a> {
    pub(crate) publisher: &'a Publisher,
    /// The target, to which nothing is written without the lease.
    store: &'a Store,
    pub(crate) in_flight: &'a InFlight,
    /// The lease as it was taken: see [`Run::lease`].
    held: Lease,
    /// Whether NAR files that no row names may be in the target: then they are looked for before
    /// they are sent.
    pub(crate) adopts: bool,
    pub(crate) mode: Mode,
}

impl Run<'_> {
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
        self.store
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
            if row.basis.is_empty() {
                // It is set aside: all of it is looked at when it is selected again.
                continue;
            }
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
}
