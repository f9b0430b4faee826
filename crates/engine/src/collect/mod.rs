//! The collector: frees what nothing needs.
//!
//! Algorithm, in the order of a run:
//! 1. Delete the objects of packs whose rows are gone; a run that was cut short may have left some.
//! 2. Remove graces that are over, and upload aliases that no longer resolve.
//! 3. Mark: read all NARs in pages. Those without a name are removed; the chunks of all others join
//!    a bitmap. It takes at most two bytes for a chunk, so 20 million chunks take 40 MB.
//! 4. Judge each pack ([`plan::PackVerdict`]): condemn it, wait, or remove its row and then its
//!    object. Packs with many dead chunks and small packs are compacted ([`compact`]).
//! 5. Remove the bytes of paths that were removed together with them ([`purge`]).
//! 6. Now and then, and for each purge, list the store and note the packs without a row.
//!
//! docs/STORAGE.md argues why no order of these steps and those of uploads loses a live chunk.
//!
//! Invariants
//! - An object is deleted only after the transaction that removed its row, which also noted the
//!   object as doomed.
//! - A pack goes only if it was condemned before the marks of this run began. So no commit could
//!   use the pack since, and the marks saw every NAR that used the pack before.
//! - Marks live in memory: a process that takes over a run begins again. What was freed stays
//!   freed.
//! - While the store keeps a journal of another past, the packs from before stay, and so do those
//!   without a row: only that journal may say what they hold. Purges go before it.

mod compact;
mod expiry;
mod metrics;
mod plan;
mod progress;
mod purge;
mod recompress;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormer_blobs::{BlobKey, Blobs, Store};
use dormer_format::PackId;
use dormer_index::{
    CollectIndex, DoomedPack, ExpiryDefaults, JobIndex, JobKind, JobLease, JournalIndex, LastCollection,
    NarId, PackFate, PackNumber, PackRow, UnixSeconds,
};
use dormer_nix::with_causes;
use serde::{Deserialize, Serialize};

pub(crate) use self::compact::COMPACTION_BYTES_MAX;
pub use self::expiry::ExpiryTotals;
pub use self::metrics::CollectMetrics;
pub use self::plan::{CompactionTotals, PackTotals};
use self::plan::{
    DeadBytes, DeadShare, Live, Marks, PackLimits, PackVerdict, Rewrite, RewriteGroup, RewriteGroups,
    RewriteRules, may_be_rewritten, stray_seconds,
};
use self::progress::Progress;
pub use self::progress::{CollectionPhase, CollectionProgress};
use self::recompress::Recompression;
use crate::journal::kept_before;
use crate::pace::pause_after;
use crate::{Clock, Error, Result};

/// NARs in one page: a page of recipes is some 400 KiB.
const PAGE_NARS: u32 = 4_096;

/// Rows of packs, or of moved chunks, in one page.
const PAGE_ROWS: u32 = 4_096;

/// Graces or aliases removed in one transaction.
const EXPIRE_ROWS: u32 = 1_024;

/// NARs removed, or packs condemned, in one transaction.
const CHANGE_ROWS: usize = 256;

/// Packs whose rows go in one transaction: some 800 chunk rows. A pack of tiny NARs may have
/// 65,536.
const REMOVE_PACKS: usize = 4;

/// Objects deleted between two looks at the list.
const DELETE_OBJECTS: u32 = 64;

/// So many packs in a row that cannot be read or stored mean that the store fails.
const REWRITE_FAILURES_MAX: u32 = 2;

/// So many objects in a row that cannot be deleted mean that the store fails.
const DELETE_FAILURES_MAX: usize = 8;

/// Packs looked up at once after a listing.
const LISTED_PACKS: usize = 1_000;

/// A listing that finds more packs without a row than this, and more than packs with one, is not
/// believed: another installation may share the store.
const STRAYS_BELIEVED: usize = 100;

/// How long a purge waits for the rows of packs that were listed without one. Most uploads commit a
/// row within some 50 ms after they have stored the pack.
const ROWS_FOLLOW: Duration = Duration::from_secs(1);

/// How a collector works.
#[derive(Debug, Clone)]
pub struct CollectSettings {
    /// Seconds between the beginnings of two collections; `None` for none but those that are asked
    /// for.
    pub interval_seconds: Option<i64>,
    /// Seconds between two listings of the store.
    pub listing_seconds: i64,
    /// The longest upload that the server allows, in seconds. What an upload may use stays longer.
    pub upload_seconds_max: i64,
    /// The longest time that the store's client tries to store an object, in seconds.
    pub put_seconds_max: i64,
    /// Seconds for which an upload alias resolves.
    pub alias_seconds: i64,
    /// What caches without rules of their own keep; for the plan.
    pub expiry_defaults: ExpiryDefaults,
    /// The zstd level that cold packs are recompressed at; `None` leaves them as they are.
    pub recompress_level: Option<u8>,
    /// A pack is cold so many seconds after it was stored, and after a commit used it last.
    pub cold_seconds: i64,
    /// The lease is renewed at least so often; a lease lasts several times longer.
    pub renew_after: Duration,
}

impl Default for CollectSettings {
    fn default() -> Self {
        Self {
            interval_seconds: Some(3_600),
            listing_seconds: 7 * 86_400,
            upload_seconds_max: 86_400,
            put_seconds_max: 0,
            alias_seconds: 30 * 86_400,
            expiry_defaults: ExpiryDefaults {
                retention_seconds: 0,
                quota_bytes: 0,
                grace_seconds: 30 * 86_400,
                log_retention_seconds: 0,
            },
            recompress_level: None,
            cold_seconds: 30 * 86_400,
            renew_after: Duration::from_secs(3),
        }
    }
}

/// What a collection would free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionPlan {
    /// Bytes of all packs that the plan looked at.
    #[serde(default)]
    pub pack_bytes: u64,
    /// NARs without a name.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Packs that would be condemned: no NAR needs them.
    pub condemn: PackTotals,
    /// Packs that are condemned already, and whose grace is not over.
    pub wait: PackTotals,
    /// Packs that would be removed.
    pub remove: PackTotals,
    /// Packs that would be compacted, and what that costs.
    pub compact: CompactionTotals,
    /// Packs that would be recompressed, by this collection and the next ones. What they would be
    /// then is not known: the bytes to write are those that are read.
    #[serde(default)]
    pub recompress: CompactionTotals,
    /// Graces that are over: paths whose NARs stay no longer for them.
    #[serde(default)]
    pub graces: u64,
    /// Upload aliases that no longer resolve.
    #[serde(default)]
    pub aliases: u64,
}

impl CollectionPlan {
    fn totals_of(&mut self, group: &RewriteGroup) -> &mut CompactionTotals {
        if group.level.is_some() { &mut self.recompress } else { &mut self.compact }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectionReport {
    /// Graces that were over.
    pub graces: u64,
    /// Upload aliases that no longer resolved.
    pub aliases: u64,
    /// NARs without a name.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Packs that were condemned. Their bytes are freed by a later collection.
    pub condemned: PackTotals,
    /// Packs that were condemned before, and wait.
    pub waiting: PackTotals,
    /// Packs whose rows were removed.
    pub removed: PackTotals,
    /// Objects that were deleted from the store.
    pub objects_deleted: u64,
    /// Failed attempts to delete an object. A later collection tries again.
    pub objects_left: u64,
    /// Packs without a row that a listing found first. A later collection deletes them.
    pub strays_found: u64,
    /// Packs without a row that stay: they are most of the store, which another database may use,
    /// or older than the database. The last listing found them, which may be one of an earlier
    /// collection.
    pub strays_kept: u64,
    /// Packs that were compacted and condemned, and what that cost.
    pub compacted: CompactionTotals,
    /// Packs that were recompressed and condemned, and what that cost. It does not count those that
    /// are hardly smaller at the higher level, which stay.
    pub recompressed: CompactionTotals,
    /// NARs of removed paths whose bytes left the store without their grace.
    pub purged: u64,
    /// Those of which some bytes have to wait.
    pub purges_left: u64,
    /// When the first path was removed of those whose bytes have to wait.
    pub oldest_purge: Option<UnixSeconds>,
    /// Packs that keep bytes of removed paths because a live path needs a damaged chunk of them. No
    /// later collection changes that: a push has to store the chunk again.
    pub purge_packs_damaged: u64,
}

/// The last whole collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedCollection {
    /// When it ended.
    pub ended_at: UnixSeconds,
    /// What it did.
    pub report: CollectionReport,
}

impl EndedCollection {
    fn read(last: &LastCollection) -> Result<Option<Self>> {
        let Some(ended_at) = last.ended_at else { return Ok(None) };
        let report = serde_json::from_str(&last.report).map_err(|error| {
            Error::Index(dormer_index::Error::Corrupt { table: "last_collection", what: error.to_string() })
        })?;
        Ok(Some(Self { ended_at, report }))
    }
}

/// Frees what nothing needs. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Collector {
    index: Arc<dyn CollectIndex>,
    blobs: Arc<dyn Blobs>,
    /// Where the journal is, and what the database knows of it, if there is one.
    journal: Option<(Store, Arc<dyn JournalIndex>)>,
    clock: Arc<dyn Clock>,
    settings: CollectSettings,
    metrics: CollectMetrics,
    progress: Arc<Progress>,
    /// Where the next pass of deletions begins, if the store failed in the last one.
    deleting_after: Arc<Mutex<Option<DoomedPack>>>,
}

/// The lease of a run, and where the run is.
struct Turn<'a> {
    index: &'a dyn CollectIndex,
    clock: &'a dyn Clock,
    lease: &'a JobLease,
    lease_seconds: i64,
    renewed: Instant,
    renew_after: Duration,
    rows: u64,
    /// Packs that were there by then stay for a journal that is kept, and so do those without rows.
    kept_before: Option<UnixSeconds>,
    /// Packs in a row that could not be rewritten, because the store failed.
    store_failures: u32,
}

impl Turn<'_> {
    /// Whether this run leaves packs as they are, because the store fails.
    fn is_store_down(&self) -> bool {
        self.store_failures >= REWRITE_FAILURES_MAX
    }

    /// Ends a step of some rows: renews the lease if that is due, and pauses for as long as the
    /// step took.
    async fn step(&mut self, begun: Instant, rows: u64) -> Result<()> {
        self.rows += rows;
        let took = begun.elapsed();
        if self.renewed.elapsed() >= self.renew_after {
            self.renew().await?;
        }
        tokio::time::sleep(pause_after(took)).await;
        Ok(())
    }

    /// Renews the lease in the middle of a step, if that is due.
    async fn keep(&mut self) -> Result<()> {
        if self.renewed.elapsed() >= self.renew_after { self.renew().await } else { Ok(()) }
    }

    /// Waits for requests to the store, which may take longer than the lease lasts.
    async fn while_renewing<T>(&mut self, requests: impl Future<Output = T>) -> Result<T> {
        tokio::pin!(requests);
        loop {
            tokio::select! {
                done = &mut requests => return Ok(done),
                () = tokio::time::sleep(self.renew_after) => self.renew().await?,
            }
        }
    }

    async fn renew(&mut self) -> Result<()> {
        let now = self.clock.now();
        let (rows, ends_at) = (std::mem::take(&mut self.rows), now + self.lease_seconds);
        self.index.advance_collection(self.lease, rows, now, ends_at).await?;
        self.renewed = Instant::now();
        Ok(())
    }
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

    /// Opens a collection, takes its lease for `holder` and runs it. `None` if another process is
    /// running one.
    pub async fn run_now(
        &self,
        jobs: &dyn JobIndex,
        holder: &str,
        lease_seconds: i64,
    ) -> Result<Option<CollectionReport>> {
        let now = self.clock.now();
        self.index.open_collection(UnixSeconds::MAX, now).await?;
        let lease = jobs.lease_job(JobKind::Collect, holder, now, now + lease_seconds).await?;
        let Some(lease) = lease else { return Ok(None) };
        let outcome = self.run(&lease, lease_seconds).await;
        if let Err(error) = &outcome {
            // If this fails too, the lease ends by itself.
            let _ = jobs.fail_job(&lease, &with_causes(error), self.clock.now()).await;
        }
        outcome.map(Some)
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

    /// What a collection would free now. Reads only.
    pub async fn plan(&self) -> Result<CollectionPlan> {
        let mut plan = CollectionPlan::default();
        let (now, mut limits) = self.begin_marks();
        limits.kept_before = self.kept_before().await;
        self.progress.begin(CollectionPhase::Expiring);
        (plan.graces, plan.aliases) = self.index.count_ended(now, self.aliases_since(now)).await?;
        self.progress.begin(CollectionPhase::Marking);
        let mut marks = Marks::default();
        let mut after = NarId(0);
        loop {
            let begun = Instant::now();
            let page = self.index.mark_nars(after, PAGE_NARS, now, self.aliases_since(now)).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            self.progress.count_nars(page.len());
            for nar in &page {
                if nar.is_named {
                    marks.add(&nar.runs);
                } else {
                    plan.nars += 1;
                    plan.nar_bytes += nar.size;
                }
            }
            tokio::time::sleep(pause_after(begun.elapsed())).await;
        }
        let live = self.live_packs(marks, None).await?;
        let rules = self.rewrite_rules(None, &live, limits).await?;
        self.progress.begin(CollectionPhase::Judging);
        let mut after = PackNumber(0);
        let mut groups = RewriteGroups::default();
        loop {
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            self.progress.count_packs(page.len());
            plan.pack_bytes += page.iter().map(|pack| pack.size).sum::<u64>();
            let judged = Judged::new(&page, &live, &limits);
            for group in self.gather_rewrites(&mut groups, &page, &live, &rules).await? {
                self.plan_group(&group, &live, plan.totals_of(&group)).await?;
            }
            for (packs, totals) in [
                (&judged.condemn, &mut plan.condemn),
                (&judged.wait, &mut plan.wait),
                (&judged.remove, &mut plan.remove),
            ] {
                self.count(packs, totals).await?;
            }
        }
        for group in groups.rest() {
            self.plan_group(&group, &live, plan.totals_of(&group)).await?;
        }
        Ok(plan)
    }

    /// Adds the packs of a page that are to be rewritten to their groups; returns the groups that
    /// are full.
    async fn gather_rewrites(
        &self,
        groups: &mut RewriteGroups,
        page: &[PackRow],
        live: &Live,
        rules: &RewriteRules,
    ) -> Result<Vec<RewriteGroup>> {
        let mut full = Vec::new();
        for pack in page {
            let in_pack = live.in_pack(pack.number);
            let chunks = self.chunks_of(pack).await?;
            if let Some(why) = Rewrite::new(pack, in_pack, chunks, rules) {
                full.extend(groups.add(why, *pack, in_pack, chunks));
            }
        }
        Ok(full)
    }

    /// How many chunks the object of a pack has. Rows of old versions do not say so.
    async fn chunks_of(&self, pack: &PackRow) -> Result<u64> {
        Ok(match pack.chunks {
            Some(chunks) => chunks,
            None => self.index.count_chunks(&[pack.number]).await?,
        })
    }

    /// Looks through all packs for the rules by which this collection rewrites some of them.
    async fn rewrite_rules(
        &self,
        turn: Option<&mut Turn<'_>>,
        live: &Live,
        limits: PackLimits,
    ) -> Result<RewriteRules> {
        let dead_share = self.dead_share(turn, live, &limits).await?;
        Ok(RewriteRules { limits, dead_share, recompression: self.recompression() })
    }

    async fn dead_share(
        &self,
        mut turn: Option<&mut Turn<'_>>,
        live: &Live,
        limits: &PackLimits,
    ) -> Result<DeadShare> {
        let mut bytes = DeadBytes::default();
        let mut after = PackNumber(0);
        loop {
            let begun = Instant::now();
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { return Ok(bytes.threshold()) };
            after = last.number;
            for pack in &page {
                let in_pack = live.in_pack(pack.number);
                if may_be_rewritten(pack, in_pack, limits) {
                    bytes.add(pack, in_pack, self.chunks_of(pack).await?);
                }
            }
            match &mut turn {
                Some(turn) => turn.step(begun, 0).await?,
                None => tokio::time::sleep(pause_after(begun.elapsed())).await,
            }
        }
    }

    /// Runs a collection under the lease of its job, to the end.
    pub(crate) async fn run(&self, lease: &JobLease, lease_seconds: i64) -> Result<CollectionReport> {
        let timer = Instant::now();
        let outcome = self.run_uncounted(lease, lease_seconds).await;
        self.metrics.count(&outcome, timer.elapsed(), self.clock.now());
        outcome
    }

    async fn run_uncounted(&self, lease: &JobLease, lease_seconds: i64) -> Result<CollectionReport> {
        let mut report = CollectionReport::default();
        let turn = &mut Turn {
            index: &*self.index,
            clock: &*self.clock,
            lease,
            lease_seconds,
            renewed: Instant::now(),
            renew_after: self.settings.renew_after,
            rows: 0,
            kept_before: self.kept_before().await,
            store_failures: 0,
        };
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(turn, &mut report).await?;
        self.progress.begin(CollectionPhase::Expiring);
        self.expire_names(turn, &mut report).await?;
        // The order matters: what is condemned below is judged by these marks.
        let (now, mut limits) = self.begin_marks();
        limits.kept_before = turn.kept_before;
        self.progress.begin(CollectionPhase::Marking);
        let marks = self.mark(turn, now, &mut report).await?;
        let live = self.live_packs(marks, Some(turn)).await?;
        self.progress.begin(CollectionPhase::Judging);
        self.judge_packs(turn, &live, &limits, &mut report).await?;
        let notes = self.spent_notes(turn, &live, now).await?;
        drop(live);
        self.progress.begin(CollectionPhase::Purging);
        let purging = self.purge(turn, &mut report).await?;
        self.progress.begin(CollectionPhase::Deleting);
        self.delete_objects(turn, &mut report).await?;
        let listing = self.list_if_due(turn, self.wants_listing(&purging).await?, &mut report).await?;
        self.end_purges(turn, &purging, listing == Listing::Believed, &mut report).await?;
        self.forget_notes(&notes).await?;
        if report.nars > 0 || report.removed.packs > 0 {
            self.index.reload_known_keys().await?;
        }
        let text = serde_json::to_string(&report).expect("numbers are JSON");
        self.index.finish_collection(lease, &text, listing != Listing::Skipped, self.clock.now()).await?;
        Ok(report)
    }

    /// The packs that were there by then stay, because the store keeps a journal of another past.
    async fn kept_before(&self) -> Option<UnixSeconds> {
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
    fn begin_marks(&self) -> (UnixSeconds, PackLimits) {
        let now = self.clock.now();
        (now, PackLimits::new(now, self.settings.upload_seconds_max))
    }

    fn recompression(&self) -> Option<Recompression> {
        let cold_before = self.clock.now() - self.settings.cold_seconds;
        self.settings.recompress_level.map(|level| Recompression { level, cold_before })
    }

    fn aliases_since(&self, now: UnixSeconds) -> UnixSeconds {
        now - self.settings.alias_seconds
    }

    async fn expire_names(&self, turn: &mut Turn<'_>, report: &mut CollectionReport) -> Result<()> {
        let now = self.clock.now();
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_graces(EXPIRE_ROWS, now).await?;
            report.graces += removed;
            if removed == 0 {
                break;
            }
            turn.step(begun, removed).await?;
        }
        loop {
            let begun = Instant::now();
            let removed = self.index.expire_aliases(EXPIRE_ROWS, self.aliases_since(now)).await?;
            report.aliases += removed;
            if removed == 0 {
                return Ok(());
            }
            turn.step(begun, removed).await?;
        }
    }

    /// Marks the chunks of every NAR that stays, and removes those without a name.
    async fn mark(
        &self,
        turn: &mut Turn<'_>,
        now: UnixSeconds,
        report: &mut CollectionReport,
    ) -> Result<Marks> {
        let mut marks = Marks::default();
        let mut after = NarId(0);
        loop {
            let begun = Instant::now();
            let page = self.index.mark_nars(after, PAGE_NARS, now, self.aliases_since(now)).await?;
            let Some(last) = page.last() else { return Ok(marks) };
            after = last.id;
            self.progress.count_nars(page.len());
            let unnamed: Vec<NarId> = page.iter().filter(|nar| !nar.is_named).map(|nar| nar.id).collect();
            let mut deleted = std::collections::HashSet::new();
            for nars in unnamed.chunks(CHANGE_ROWS) {
                deleted.extend(self.index.delete_nars(nars).await?);
            }
            for nar in &page {
                if deleted.contains(&nar.id) {
                    report.nars += 1;
                    report.nar_bytes += nar.size;
                } else {
                    marks.add(&nar.runs);
                }
            }
            turn.step(begun, deleted.len() as u64).await?;
        }
    }

    /// The marked chunks, by the packs that hold them.
    async fn live_packs(&self, mut marks: Marks, mut turn: Option<&mut Turn<'_>>) -> Result<Live> {
        let mut after = 0;
        loop {
            let begun = Instant::now();
            let page = self.index.moved_chunks(after, PAGE_ROWS).await?;
            let Some((last, _)) = page.last() else { return Ok(marks.into_live()) };
            after = *last;
            for (chunk, pack) in page {
                marks.note_moved(chunk, pack);
            }
            if let Some(turn) = &mut turn {
                turn.step(begun, 0).await?;
            }
        }
    }

    async fn judge_packs(
        &self,
        turn: &mut Turn<'_>,
        live: &Live,
        limits: &PackLimits,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let rules = self.rewrite_rules(Some(turn), live, *limits).await?;
        let mut after = PackNumber(0);
        let mut groups = RewriteGroups::default();
        loop {
            let begun = Instant::now();
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            self.progress.count_packs(page.len());
            let judged = Judged::new(&page, live, limits);
            self.count(&judged.wait, &mut report.waiting).await?;
            if !judged.spare.is_empty() {
                let spared = self.index.spare_packs(&numbers(&judged.spare)).await?;
                tracing::error!(packs = spared, "condemned packs hold live chunks; they are kept");
            }
            turn.step(begun, 0).await?;
            for packs in judged.condemn.chunks(CHANGE_ROWS) {
                let begun = Instant::now();
                let now = self.clock.now();
                let condemned = self.index.condemn_packs(&numbers(packs), limits.stamps, now).await?;
                let condemned: Vec<PackRow> =
                    packs.iter().filter(|pack| condemned.contains(&pack.number)).copied().collect();
                self.count(&condemned, &mut report.condemned).await?;
                turn.step(begun, condemned.len() as u64).await?;
            }
            for packs in judged.remove.chunks(REMOVE_PACKS) {
                let begun = Instant::now();
                let (before, now) = (limits.condemned_before, self.clock.now());
                let removed = self.index.remove_packs(&numbers(packs), before, now).await?;
                report.removed.packs += removed.packs.len() as u64;
                report.removed.bytes += removed.bytes;
                report.removed.chunks += removed.chunks;
                turn.step(begun, removed.packs.len() as u64 + removed.chunks).await?;
            }
            for group in self.gather_rewrites(&mut groups, &page, live, &rules).await? {
                self.compact_if_room(turn, &group, live, limits, report).await?;
            }
        }
        for group in groups.rest() {
            self.compact_if_room(turn, &group, live, limits, report).await?;
        }
        Ok(())
    }

    async fn compact_if_room(
        &self,
        turn: &mut Turn<'_>,
        group: &RewriteGroup,
        live: &Live,
        limits: &PackLimits,
        report: &mut CollectionReport,
    ) -> Result<()> {
        if Self::is_compaction_over(report, group) || turn.is_store_down() {
            return Ok(());
        }
        self.compact_group(turn, group, live, limits, report).await
    }

    /// Deletes the objects of doomed packs. One that cannot be deleted stays on the list for a
    /// later pass. Several in a row mean that the store fails, and end the pass: the next one goes
    /// on after them, so that they never keep others from their turn.
    async fn delete_objects(&self, turn: &mut Turn<'_>, report: &mut CollectionReport) -> Result<()> {
        let mut after = self.lock_deleting().take();
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let doomed = self.index.doomed_packs(after, DELETE_OBJECTS, self.clock.now()).await?;
            if doomed.is_empty() {
                return Ok(());
            }
            let mut deleted = Vec::with_capacity(doomed.len());
            for pack in doomed {
                after = Some(pack);
                if pack.is_stray && turn.kept_before.is_some() {
                    continue;
                }
                match turn.while_renewing(self.blobs.delete(&BlobKey::Pack(pack.id))).await? {
                    Ok(()) => {
                        deleted.push(pack.id);
                        failures = 0;
                    }
                    Err(error) => {
                        self.metrics.count_delete_failure();
                        report.objects_left += 1;
                        failures += 1;
                        let error = with_causes(&error);
                        tracing::warn!(pack.id = %pack.id, error, "a pack cannot be deleted; a later collection tries again");
                        if failures == DELETE_FAILURES_MAX {
                            break;
                        }
                    }
                }
                turn.keep().await?;
            }
            self.index.forget_doomed(&deleted).await?;
            report.objects_deleted += deleted.len() as u64;
            turn.step(begun, deleted.len() as u64).await?;
            if failures == DELETE_FAILURES_MAX {
                *self.lock_deleting() = after;
                return Ok(());
            }
        }
    }

    fn lock_deleting(&self) -> MutexGuard<'_, Option<DoomedPack>> {
        self.deleting_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes packs without a row, if it is time for a listing or one is needed. The first listing
    /// of a database may find packs of another one; these are never deleted.
    async fn list_if_due(
        &self,
        turn: &mut Turn<'_>,
        is_needed: bool,
        report: &mut CollectionReport,
    ) -> Result<Listing> {
        let last = self.index.last_collection().await?;
        // What the last listing found counts until the next one.
        report.strays_kept = EndedCollection::read(&last)?.map_or(0, |ended| ended.report.strays_kept);
        let (now, listed_at) = (self.clock.now(), last.listed_at);
        if !is_needed && listed_at.is_some_and(|at| now < at + self.settings.listing_seconds) {
            return Ok(Listing::Skipped);
        }
        turn.renew().await?;
        self.progress.begin(CollectionPhase::Listing);
        // The listing first, the rows second: the listing lacks a pack that is stored meanwhile.
        let listed = match turn.while_renewing(self.blobs.list()).await? {
            Ok(listed) => listed,
            // All else of the run is done, and a later run lists again.
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "the store cannot be listed; a later collection tries again");
                return Ok(Listing::Skipped);
            }
        };
        let Strays { new: strays, kept, listed } = self.strays_among(&listed, Some(turn)).await?;
        if strays.len() > STRAYS_BELIEVED && strays.len() as u64 * 2 > listed && listed_at.is_some() {
            report.strays_kept = (strays.len() + kept.len()) as u64;
            tracing::error!(
                packs = strays.len(),
                listed,
                "most packs in the store have no row, and nothing of them is deleted: another database may use this \
                 store, or this database is older than its store and has to be recovered; only if neither is so, \
                 `dormer gc --delete-strays` lets them go"
            );
            return Ok(Listing::Doubted);
        }
        report.strays_kept = kept.len() as u64;
        let not_before = listed_at.map(|_| now + stray_seconds(self.settings.upload_seconds_max));
        for packs in strays.chunks(LISTED_PACKS) {
            let found = self.index.doom_packs(packs, not_before).await?;
            if not_before.is_some() {
                report.strays_found += found;
            } else if found > 0 {
                report.strays_kept += found;
                tracing::warn!(
                    packs = found,
                    "the store holds packs that this database never knew; they stay until `dormer gc --delete-strays`"
                );
            }
        }
        if is_needed && report.strays_found > 0 {
            // Uploads that run have stored some of them, and bring their rows.
            tokio::time::sleep(ROWS_FOLLOW).await;
        }
        Ok(Listing::Believed)
    }

    /// Lists the store, and finds the packs without a row.
    pub async fn find_strays(&self) -> Result<Strays> {
        self.progress.begin(CollectionPhase::Listing);
        let listed = self.blobs.list().await?;
        self.strays_among(&listed, None).await
    }

    async fn strays_among(&self, listed: &[BlobKey], mut turn: Option<&mut Turn<'_>>) -> Result<Strays> {
        let listed: Vec<PackId> = listed.iter().map(|BlobKey::Pack(pack)| *pack).collect();
        let mut strays = Strays { new: Vec::new(), kept: Vec::new(), listed: listed.len() as u64 };
        for some in listed.chunks(LISTED_PACKS) {
            let begun = Instant::now();
            for pack in self.index.packs_without_row(some).await? {
                match pack.fate {
                    PackFate::Open => strays.new.push(pack.id),
                    PackFate::Kept => strays.kept.push(pack.id),
                    PackFate::Doomed => {}
                }
            }
            match &mut turn {
                Some(turn) => turn.step(begun, 0).await?,
                None => tokio::time::sleep(pause_after(begun.elapsed())).await,
            }
        }
        Ok(strays)
    }

    /// Lets packs without a row be deleted by a later collection, however many they are, and also
    /// those that were there before the database. Those that uploads may be storing now get their
    /// rows before that, and stay. Returns when that is, in seconds from now.
    pub async fn doom_strays(&self, strays: &Strays) -> Result<i64> {
        let seconds = stray_seconds(self.settings.upload_seconds_max);
        let not_before = self.clock.now() + seconds;
        for packs in strays.new.chunks(LISTED_PACKS) {
            self.index.doom_packs(packs, Some(not_before)).await?;
        }
        for packs in strays.kept.chunks(LISTED_PACKS) {
            self.index.release_packs(packs, not_before).await?;
        }
        // Its report then says what stays.
        self.index.list_next_time().await?;
        Ok(seconds)
    }

    async fn count(&self, packs: &[PackRow], totals: &mut PackTotals) -> Result<()> {
        for packs in packs.chunks(CHANGE_ROWS) {
            totals.packs += packs.len() as u64;
            totals.bytes += packs.iter().map(|pack| pack.size).sum::<u64>();
            totals.chunks += self.index.count_chunks(&numbers(packs)).await?;
        }
        Ok(())
    }
}

/// What a collection knows of the objects in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// It did not list them.
    Skipped,
    /// All packs without a row are on the list of doomed packs.
    Believed,
    /// They are so many that the store may be another database's.
    Doubted,
}

/// Packs in the store that no row knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strays {
    /// Those of which nothing is noted.
    pub new: Vec<PackId>,
    /// Those that were there before the database.
    pub kept: Vec<PackId>,
    /// Packs in the store.
    pub listed: u64,
}

/// A page of packs by verdict.
#[derive(Default)]
struct Judged {
    condemn: Vec<PackRow>,
    wait: Vec<PackRow>,
    spare: Vec<PackRow>,
    remove: Vec<PackRow>,
}

impl Judged {
    fn new(page: &[PackRow], live: &Live, limits: &PackLimits) -> Self {
        let mut judged = Self::default();
        for pack in page {
            let is_live = live.in_pack(pack.number) > 0;
            match PackVerdict::new(pack, is_live, limits) {
                PackVerdict::Keep => continue,
                PackVerdict::Condemn => &mut judged.condemn,
                PackVerdict::Wait => &mut judged.wait,
                PackVerdict::Spare => &mut judged.spare,
                PackVerdict::Remove => &mut judged.remove,
            }
            .push(*pack);
        }
        judged
    }
}

fn numbers(packs: &[PackRow]) -> Vec<PackNumber> {
    packs.iter().map(|pack| pack.number).collect()
}
