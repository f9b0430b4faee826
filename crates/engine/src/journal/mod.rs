//! The journal: what the index holds, as compact objects beside the packs, so that a lost index can
//! be made anew.
//!
//! Algorithm
//! - A *segment* holds the present state of what changed since the segment before: paths that the
//!   outbox names, and caches, pins, upload aliases and documents that notes name. It also has the
//!   settings.
//! - A *snapshot* holds the present state of everything, in parts, and an end. It is written in
//!   pages with a cursor, while segments go on. When the segments since the last snapshot weigh as
//!   much as the snapshot, a new one begins; once it is whole, all older files go. So the journal
//!   never takes more than about three times what it describes.
//! - A segment ends at some MiB, and so does a part. A large change is several segments.
//!
//! Invariants
//! - One holder of the lease writes at a time. The lease only saves work: every file has its own
//!   name, and its place is (fence, sequence). A process that lost its lease may still write a
//!   file, but the place of that file is before all files of its successor. The successor begins
//!   where the last *saved* file ended, and so writes again all that the lost file has.
//!   The lease is renewed while a turn goes on, however long the store or the database takes: else
//!   a slow store would let every turn lose its lease, and nothing would ever be saved.
//! - A file is stored before the index says so. A crash in between writes it again.
//! - A snapshot's place is fixed before its first page is read: every state in it is as new as that
//!   place, and what changes later is in a segment with a later place.
//! - A database that goes on from an earlier state of itself (it was restored from a copy) begins a
//!   new lineage. Its first turn shows that: the store then has files of fences that this database
//!   has not given yet. The journal that it has forgotten is kept for a while ([`kept`]). If the
//!   store went back, and lacks the last file, the lineage is a new one too.
//! - A process compares database and store once. After that, without a change nothing is requested
//!   of the store, and nothing is written to the index.

mod files;
mod kept;
mod metrics;
mod recover;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs, Store};
use dormer_format::{
    ChunkId, ChunkRun, JournalAlias, JournalCache, JournalContent, JournalDocument, JournalHeader,
    JournalKey, JournalKind, JournalListing, JournalName, JournalNar, JournalObject, JournalPath, JournalPin,
    JournalRecord, JournalWriter, KeptJournal, NarManifest, PackId, Recipe,
};
use dormer_index::{
    Cache, CacheId, CacheSelection, Error as IndexError, Index, JournalIndex, JournalLease, JournalNote,
    JournalState, JournalSubject, JournaledAlias, JournaledDocument, JournaledNar, JournaledObject,
    OutboxPosition, OutboxRow, Pin, SNAPSHOT_WANTED, StoredListing, UnixSeconds,
};
use dormer_nix::{Backoff, NarHash, StorePathHash, with_causes};

use self::files::{CHUNKS_MAX, list};
pub(crate) use self::kept::kept_before;
pub use self::kept::{
    ComparedPasts, KEEP_SECONDS, StoredJournal, keep_journal, kept_journals, release_kept_journals,
    renew_kept_journals, stored_journals,
};
use self::kept::{ends_at, is_live};
pub use self::metrics::JournalMetrics;
pub use self::recover::{Recovered, Recovery, RecoveryEvent, RecoveryIndex};
use crate::pace::pause_after;
use crate::restarting::restarting;
use crate::{Clock, Result};

/// Outbox rows in a segment.
const ROWS_MAX: u32 = 1_000;

/// Notes in a segment.
const NOTES_MAX: u32 = 1_000;

/// Caches, objects or aliases read at once. A recipe has 1 MiB at most and an inline listing 64
/// KiB, so the largest page is 55 MiB; with usual ones it is less than 1 MiB.
const PAGE: u32 = 50;

/// Documents read at once, unless they are large.
const DOCUMENTS_PAGE: u32 = 200;

/// A segment takes no more changes at about this size.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;

/// Pins read at once, and most pins in one record: less than 1 MiB of them.
const PINS_PAGE: u32 = 1_000;

/// A part of a snapshot ends at about this size.
const PART_BYTES: usize = 1024 * 1024;

/// How long a stop waits for the last changes to be written.
const LAST_WRITE_MAX: Duration = Duration::from_secs(5);

/// A writer that fails waits no longer than this for the next try, or one interval.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// While another process has the lease, a writer looks so many times in an interval. The other one
/// may have died: its changes wait for the interval, the lease and one look, 55 s by default.
const LOOKS_ELSEWHERE: u32 = 4;

/// Between two tries to get a turn that another process has.
const TURN_LOOK: Duration = Duration::from_millis(250);

/// Between two looks at the lag during a turn.
const LAG_LOOK: Duration = Duration::from_secs(1);

/// Named values that say something of one database, and are not to be in another one.
const OWN_SETTINGS: [&str; 5] =
    ["installation-claimed", "first-start", "index.ready-check", "recovery-begun", "recovery-ended"];

/// How the journal is written.
#[derive(Debug, Clone)]
pub struct JournalSettings {
    /// How often changes are written, if there are any. What changed within this time is lost with
    /// the database.
    pub interval: Duration,
    /// How long a lease lasts after its last file, in seconds. A writer that dies delays the next
    /// one by as much.
    pub lease_seconds: i64,
    /// The lease is renewed so often during a turn; a lease lasts several times longer.
    pub renew_after: Duration,
    /// Segments of fewer bytes are no reason for a new snapshot.
    pub segment_bytes_min: i64,
    /// A new snapshot begins when the segments weigh more than so many snapshots.
    pub snapshot_weight: i64,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(20),
            lease_seconds: 30,
            renew_after: Duration::from_secs(5),
            segment_bytes_min: 8 * 1024 * 1024,
            snapshot_weight: 1,
        }
    }
}

/// Writes the journal of an index.
#[derive(Debug)]
pub struct Journal {
    index: Arc<dyn Index>,
    memory: Arc<dyn JournalIndex>,
    blobs: Arc<dyn Blobs>,
    store: Store,
    clock: Arc<dyn Clock>,
    holder: String,
    settings: JournalSettings,
    metrics: JournalMetrics,
    /// When this process last saw that every change is in the journal.
    complete_at: AtomicI64,
    /// Turns that failed since the last good one.
    failures: AtomicU32,
    /// Whether this process has looked for another past, without a lease.
    has_looked_back: AtomicBool,
    /// Whether it found one, so that a turn is due.
    is_past_other: AtomicBool,
    /// Whether a turn of this process has compared the store with the database's past.
    is_past_known: AtomicBool,
    /// When the next kept journal goes.
    kept_until: AtomicI64,
}

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// Nothing is left to write; so many files were written.
    All(u64),
    /// Another process writes.
    Elsewhere,
}

impl Journal {
    /// A journal of an index, given by both of its contracts. `store` is where the packs in `blobs`
    /// are.
    pub fn new(
        index: Arc<dyn Index>,
        journal: Arc<dyn JournalIndex>,
        blobs: Arc<dyn Blobs>,
        store: Store,
        clock: Arc<dyn Clock>,
        holder: String,
        settings: JournalSettings,
    ) -> Self {
        Self {
            index,
            memory: journal,
            blobs,
            store,
            complete_at: AtomicI64::new(clock.now()),
            clock,
            holder,
            settings,
            metrics: JournalMetrics::default(),
            failures: AtomicU32::new(0),
            has_looked_back: AtomicBool::new(false),
            is_past_other: AtomicBool::new(false),
            is_past_known: AtomicBool::new(false),
            kept_until: AtomicI64::new(UnixSeconds::MAX),
        }
    }

    /// The same for a database that was just recovered from the journal in the store: what is to
    /// stay of that journal is marked already.
    #[must_use]
    pub fn of_recovered(self) -> Self {
        self.has_looked_back.store(true, Ordering::Relaxed);
        self.is_past_known.store(true, Ordering::Relaxed);
        self
    }

    /// What this process wrote, and how far it is behind.
    pub fn metrics(&self) -> JournalMetrics {
        self.metrics.clone()
    }

    /// Writes what changed, every interval, until `shutdown` is ready; then once more.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = shutdown => {}
            () = restarting("journal", &self.metrics.restarts, || self.work()) => {}
        }
        match tokio::time::timeout(LAST_WRITE_MAX, self.write_turn(false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = with_causes(&error),
                    "the last changes are not in the journal; the next start writes them"
                );
            }
            Err(_) => {
                tracing::warn!(
                    "no time to write the last changes to the journal; the next start writes them"
                );
            }
        }
    }

    async fn work(&self) {
        self.note_lag();
        // What is forgotten has to be marked before anything deletes it. If the store does not
        // answer, the first turn asks again.
        let is_other = self.look_back().await.is_ok() && self.is_past_other.load(Ordering::Relaxed);
        let mut pause = if is_other { Duration::ZERO } else { self.settings.interval };
        loop {
            tokio::time::sleep(pause).await;
            pause = self.turn().await;
        }
    }

    /// One turn of [`run`](Self::run): writes all that is due now, and returns how long to wait for
    /// the next turn.
    pub async fn turn(&self) -> Duration {
        let interval = self.settings.interval;
        match self.write_unless_elsewhere().await {
            Ok(written) => {
                self.failures.store(0, Ordering::Relaxed);
                match written {
                    Written::All(_) => interval,
                    Written::Elsewhere => interval / LOOKS_ELSEWHERE,
                }
            }
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                self.metrics.count_failure();
                tracing::warn!(
                    error = with_causes(&error),
                    "failed to write the journal; it is tried again, and until then a lost database loses more"
                );
                Backoff { first: 2 * interval, max: interval.max(PAUSE_MAX) }.bound(failures)
            }
        }
    }

    /// Writes all that is due now, unless another process does. Returns the number of files.
    pub async fn write(&self) -> Result<u64> {
        match self.write_unless_elsewhere().await? {
            Written::All(files) => Ok(files),
            Written::Elsewhere => Ok(0),
        }
    }

    /// Writes all that is due now. While another process does, this one waits. Returns `false` if
    /// the other one goes on for longer than `patience`.
    pub async fn write_within(&self, patience: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            if let Written::All(_) = self.write_unless_elsewhere().await? {
                return Ok(true);
            }
            let Some(left) = patience.checked_sub(begun.elapsed()) else { return Ok(false) };
            tokio::time::sleep(TURN_LOOK.min(left)).await;
        }
    }

    /// Compares database and store, once in a process, and says what it finds.
    async fn look_back(&self) -> Result<()> {
        if self.has_looked_back.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pasts = ComparedPasts::read(&*self.memory, &self.store).await?;
        if pasts.is_database_older {
            tracing::error!(
                keep_days = KEEP_SECONDS / 86_400,
                "the journal in the store is newer than this database, which was restored from a copy: paths that \
                 were pushed since then are unknown to it. The newer journal stays for a while. To have these paths \
                 back, stop every server, set this database aside, and run `dormer recover --from-store`"
            );
        }
        let kept = self.look_at_kept().await?;
        if !kept.is_empty() {
            tracing::warn!(
                journals = kept.len(),
                first_ends_at = self.kept_until.load(Ordering::Relaxed),
                "the store keeps a journal of another past, and the packs from before; `dormer recover` can read it, \
                 and `dormer recover --accept-loss` lets it go"
            );
        }
        self.is_past_other.store(pasts.is_database_older || pasts.is_store_older, Ordering::Relaxed);
        self.has_looked_back.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reads the marks, and notes when the first of them ends.
    async fn look_at_kept(&self) -> Result<Vec<KeptJournal>> {
        let kept = kept_journals(&self.store).await?;
        self.kept_until.store(kept.iter().map(ends_at).min().unwrap_or(UnixSeconds::MAX), Ordering::Relaxed);
        Ok(kept)
    }

    async fn write_unless_elsewhere(&self) -> Result<Written> {
        self.look_back().await?;
        let begun_at = self.clock.now();
        // While an older transaction runs, the outbox hides changes that are acknowledged. One that
        // ends during this turn may have hidden them from it, so it counts as well.
        let hidden_at = self.memory.hidden_change().await;
        let written = self.with_lag(self.write_turn(true)).await;
        if matches!(written, Ok(Written::All(_))) {
            match hidden_at {
                Ok(None) => {
                    self.complete_at.store(begun_at, Ordering::Relaxed);
                    self.metrics.set_lag(0);
                    return written;
                }
                Ok(Some(at)) => self.complete_at.store(at.min(begun_at), Ordering::Relaxed),
                // What was written is written; how far it reaches, the next turn tells.
                Err(error) => {
                    tracing::debug!(error = with_causes(&error), "the age of hidden changes is not known");
                }
            }
        }
        self.note_lag();
        written
    }

    fn note_lag(&self) {
        self.metrics.set_lag(self.clock.now() - self.complete_at.load(Ordering::Relaxed));
    }

    /// Tells how far the journal is behind while a turn lasts: the first snapshot of a large cache
    /// takes a while, and a store that hangs takes longer.
    async fn with_lag<T>(&self, turn: impl Future<Output = T>) -> T {
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                done = &mut turn => return done,
                () = tokio::time::sleep(LAG_LOOK) => {
                    self.note_lag();
                }
            }
        }
    }

    /// One turn: all changes, and with `with_snapshot` also what is due of a snapshot.
    async fn write_turn(&self, with_snapshot: bool) -> Result<Written> {
        if !self.is_due(&self.memory.journal_state().await?).await? {
            return Ok(Written::All(0));
        }
        let now = self.clock.now();
        let leased = self.memory.lease_journal(&self.holder, now, now + self.settings.lease_seconds).await?;
        let Some((lease, state)) = leased else { return Ok(Written::Elsewhere) };
        let mut turn = Turn { journal: self, lease, state, files: 0 };
        let written = tokio::select! {
            biased;
            written = Box::pin(turn.write(with_snapshot)) => written,
            lost = self.renew(&lease) => Err(lost.into()),
        };
        let files = turn.files;
        let released = self.memory.release_journal(&lease).await;
        match written {
            // The other process writes all that this one did not note.
            Err(crate::Error::Index(IndexError::JobLeaseLost)) => {
                tracing::warn!("another process took the lease of the journal during a turn, and goes on");
                Ok(Written::Elsewhere)
            }
            Err(error) => Err(error),
            Ok(()) => released.map(|()| Written::All(files)).map_err(Into::into),
        }
    }

    /// Keeps a lease for as long as this is polled. Returns when the lease is lost; a database that
    /// does not answer is asked again.
    async fn renew(&self, lease: &JournalLease) -> IndexError {
        loop {
            tokio::time::sleep(self.settings.renew_after).await;
            let ends_at = self.clock.now() + self.settings.lease_seconds;
            match self.memory.renew_journal(lease, ends_at).await {
                Ok(()) => {}
                Err(lost @ IndexError::JobLeaseLost) => return lost,
                Err(error) => {
                    tracing::debug!(error = with_causes(&error), "the lease of the journal is not renewed");
                }
            }
        }
    }

    /// Nothing is written where the store is not: below an unmounted folder, or in the store of
    /// another installation. Any name will do, and the answer "not there" is a good one.
    async fn check_store(&self) -> Result<()> {
        match self.blobs.head(&BlobKey::Pack(PackId::from_bytes([0; 16]))).await {
            Ok(_) | Err(dormer_blobs::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the segments weigh so much that a new snapshot is to begin.
    fn is_heavy(&self, state: &JournalState) -> bool {
        let snapshots = state.snapshot_bytes.saturating_mul(self.settings.snapshot_weight);
        state.segment_bytes > self.settings.segment_bytes_min.max(snapshots)
    }

    async fn is_due(&self, state: &JournalState) -> Result<bool> {
        let is_past_other = self.is_past_other.load(Ordering::Relaxed);
        Ok(state.lineage == 0
            || state.snapshot.is_some()
            || state.segment_bytes >= SNAPSHOT_WANTED
            || is_past_other && !self.is_past_known.load(Ordering::Relaxed)
            || self.clock.now() >= self.kept_until.load(Ordering::Relaxed)
            || !self.memory.journal_notes(1).await?.is_empty()
            || !self.index.outbox_after(state.cursor, 1).await?.is_empty())
    }
}

/// How far a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    next: Cursor,
    /// Parts that are stored. `None` if the snapshot was begun when parts had no numbers.
    parts: Option<u32>,
}

impl Snapshot {
    const BEGIN: Self = Self { next: Cursor::Caches(String::new()), parts: Some(0) };

    fn encode(&self) -> Vec<u8> {
        let next = self.next.encode();
        match self.parts {
            Some(parts) => [&[COUNTED], &parts.to_be_bytes()[..], &next].concat(),
            None => next,
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (parts, next) = match bytes.split_first()? {
            (&COUNTED, rest) => {
                let (parts, next) = rest.split_first_chunk::<4>()?;
                (Some(u32::from_be_bytes(*parts)), next)
            }
            _ => (None, bytes),
        };
        Some(Self { next: Cursor::decode(next)?, parts })
    }
}

/// The first byte of a [`Snapshot`] that counts its parts. No cursor begins with it.
const COUNTED: u8 = 4;

/// Where a snapshot goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    Caches(String),
    Objects(Option<(CacheId, StorePathHash)>),
    Aliases(CacheId, String),
    Documents(i64),
}

impl Cursor {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Caches(name) => [&[0], name.as_bytes()].concat(),
            Self::Objects(None) => vec![1],
            Self::Objects(Some((cache, hash))) => {
                [&[1], &cache.0.to_be_bytes()[..], hash.as_bytes()].concat()
            }
            Self::Aliases(cache, name) => [&[2], &cache.0.to_be_bytes()[..], name.as_bytes()].concat(),
            Self::Documents(id) => [&[3], &id.to_be_bytes()[..]].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some(match kind {
            0 => Self::Caches(text(rest)?),
            1 if rest.is_empty() => Self::Objects(None),
            3 => Self::Documents(i64::from_be_bytes(rest.try_into().ok()?)),
            _ => {
                let (cache, rest) = rest.split_first_chunk::<8>()?;
                let cache = CacheId(i64::from_be_bytes(*cache));
                match kind {
                    1 => Self::Objects(Some((cache, StorePathHash::from_bytes(rest.try_into().ok()?)))),
                    2 => Self::Aliases(cache, text(rest)?),
                    _ => return None,
                }
            }
        })
    }
}

/// The time of one lease.
struct Turn<'a> {
    journal: &'a Journal,
    lease: JournalLease,
    state: JournalState,
    files: u64,
}

/// A file in the making: each NAR once.
struct File {
    writer: JournalWriter,
    name: JournalName,
    nars: HashSet<NarHash>,
}

impl Turn<'_> {
    async fn write(&mut self, with_snapshot: bool) -> Result<()> {
        self.journal.check_store().await?;
        self.compare_past().await?;
        self.end_kept().await?;
        loop {
            let begun = Instant::now();
            let is_heavy = self.journal.is_heavy(&self.state);
            if self.state.lineage == 0 || is_heavy && self.state.snapshot.is_none() {
                self.begin_snapshot().await?;
            }
            let wrote_segment = self.write_segment().await?;
            // Changes first: they are what a loss of the database would lose.
            if wrote_segment {
                continue;
            }
            if self.state.snapshot.is_none() || !with_snapshot {
                return Ok(());
            }
            self.write_part().await?;
            tokio::time::sleep(pause_after(begun.elapsed())).await;
        }
    }

    /// Finds out, once in a process, whether database and store have the same past. If not,
    /// everything is written anew. A journal that the database has forgotten is marked before.
    async fn compare_past(&mut self) -> Result<()> {
        if self.journal.is_past_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pasts = ComparedPasts::new(&self.list().await?, &self.state, self.lease.fence);
        if pasts.is_database_older {
            self.keep_newest().await?;
        }
        if self.state.lineage != 0 && (pasts.is_database_older || pasts.is_store_older) {
            tracing::warn!(
                "the journal and the database have different pasts: one of them was restored from a copy. \
                 Everything is written to the journal anew"
            );
            self.state.lineage = 0;
        }
        self.journal.is_past_known.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Marks the newest journal that a recovery can begin with.
    async fn keep_newest(&self) -> Result<()> {
        let Journal { store, clock, .. } = self.journal;
        if let Some(newest) = stored_journals(store).await?.first() {
            keep_journal(store, newest.first, newest.through, clock.now()).await?;
        }
        self.journal.look_at_kept().await.map(drop)
    }

    /// Deletes kept journals whose time is over. While a snapshot is written, its end does that.
    async fn end_kept(&self) -> Result<()> {
        let is_over = self.journal.clock.now() >= self.journal.kept_until.load(Ordering::Relaxed);
        if is_over && self.state.lineage != 0 && self.state.snapshot.is_none() {
            self.delete_older().await?;
        }
        Ok(())
    }

    async fn begin_snapshot(&mut self) -> Result<()> {
        let newest = self.list().await?.iter().map(|name| name.generation).max().unwrap_or(0);
        let state = &mut self.state;
        if state.lineage == 0 {
            // Only what changes from now on needs a segment.
            state.cursor = self.journal.memory.outbox_end().await?;
            state.lineage = (rand::random::<i64>() & i64::MAX) | 1;
        }
        state.generation = state.generation.max(newest.cast_signed()) + 1;
        state.base = (self.lease.fence, state.sequence);
        state.snapshot = Some(Snapshot::BEGIN.encode());
        state.snapshot_bytes = 0;
        state.segment_bytes = 0;
        self.save(&[]).await
    }

    /// Writes a segment; `false` if nothing changed.
    async fn write_segment(&mut self) -> Result<bool> {
        let rows = self.journal.index.outbox_after(self.state.cursor, ROWS_MAX).await?;
        let mut notes = self.journal.memory.journal_notes(NOTES_MAX).await?;
        if rows.is_empty() && notes.is_empty() {
            return Ok(false);
        }
        self.state.sequence += 1;
        let mut file = self.begin_file(JournalKind::Segment, (self.lease.fence, self.state.sequence), 0);
        self.add_settings(&mut file).await?;
        let cursor = self.add_rows(&mut file, &rows).await?;
        let mut added = 0;
        while added < notes.len() && file.writer.bytes() < SEGMENT_BYTES {
            self.add_subject(&mut file, &notes[added].subject).await?;
            added += 1;
        }
        notes.truncate(added);
        let bytes = self.store(file).await?;
        self.state.segment_bytes = self.state.segment_bytes.saturating_add(bytes);
        self.state.cursor = cursor;
        self.save(&notes).await?;
        Ok(true)
    }

    /// Adds what rows of the outbox name, each thing once, until the segment is full. Returns the
    /// place of the last row that was added.
    async fn add_rows(&self, file: &mut File, rows: &[OutboxRow]) -> Result<OutboxPosition> {
        let mut cursor = self.state.cursor;
        let (mut seen_caches, mut seen_paths) = (HashSet::new(), HashSet::new());
        for page in rows.chunks(PAGE as usize) {
            if file.writer.bytes() >= SEGMENT_BYTES {
                break;
            }
            let mut paths: BTreeMap<CacheId, BTreeSet<StorePathHash>> = BTreeMap::new();
            for row in page {
                cursor = row.position;
                match row.store_path_hash {
                    Some(hash) if seen_paths.insert((row.cache, hash)) => {
                        paths.entry(row.cache).or_default().insert(hash);
                    }
                    None if seen_caches.insert(row.cache) => self.add_cache(file, row.cache).await?,
                    _ => {}
                }
            }
            for (cache, hashes) in paths {
                let hashes: Vec<StorePathHash> = hashes.into_iter().collect();
                self.add_paths(file, cache, &hashes).await?;
            }
        }
        Ok(cursor)
    }

    async fn add_subject(&self, file: &mut File, subject: &JournalSubject) -> Result<()> {
        match subject {
            // Every segment has all of them.
            JournalSubject::Settings => Ok(()),
            JournalSubject::Cache(cache) => self.add_cache(file, *cache).await,
            JournalSubject::Alias(cache, file_name) => {
                match self.journal.memory.journaled_alias(*cache, file_name).await? {
                    Some(alias) => self.add_alias(file, alias).await,
                    None => file.push(&JournalRecord::Alias(JournalAlias {
                        cache: cache.0.cast_unsigned(),
                        file_name: file_name.clone(),
                        upload: None,
                    })),
                }
            }
            JournalSubject::Document(cache, name) => {
                match self.journal.memory.journaled_document(*cache, name).await? {
                    Some(document) => add_document(file, document),
                    None => file.push(&JournalRecord::Document(JournalDocument {
                        cache: cache.0.cast_unsigned(),
                        name: name.clone(),
                        content: None,
                    })),
                }
            }
            JournalSubject::Pin(cache, name, hash) => {
                let found = self.journal.memory.journaled_pin(*cache, name, hash).await?;
                let cache = cache.0.cast_unsigned();
                file.push(&match found {
                    Some(pin) => JournalRecord::Pin { cache, pin: journal_pin(pin) },
                    None => JournalRecord::PinGone { cache, name: name.clone(), hash: *hash },
                })
            }
        }
    }

    /// The present state of a cache, or that it is gone.
    async fn add_cache(&self, file: &mut File, cache: CacheId) -> Result<()> {
        match self.journal.memory.find_cache_by_id(cache).await? {
            Some(cache) => self.push_cache(file, &cache).await,
            None => file.push(&JournalRecord::CacheGone { cache: cache.0.cast_unsigned() }),
        }
    }

    /// The present state of these paths. One that is not there is written as gone.
    async fn add_paths(&self, file: &mut File, cache: CacheId, hashes: &[StorePathHash]) -> Result<()> {
        let found = self.journal.memory.journaled_objects(cache, hashes).await?;
        let there: HashSet<StorePathHash> = found.iter().map(|found| found.object.path.hash()).collect();
        for object in found {
            self.add_object(file, object).await?;
        }
        for hash in hashes.iter().filter(|hash| !there.contains(hash)) {
            let gone = JournalPath { cache: cache.0.cast_unsigned(), hash: *hash, object: None };
            file.push(&JournalRecord::Path(gone))?;
        }
        Ok(())
    }

    async fn add_object(&self, file: &mut File, found: JournaledObject) -> Result<()> {
        let JournaledObject { cache, object, created_at, nar } = found;
        let hash = nar.hash;
        self.add_nar(file, nar).await?;
        file.push(&JournalRecord::Path(JournalPath {
            cache: cache.0.cast_unsigned(),
            hash: object.path.hash(),
            object: Some(JournalObject {
                name: object.path.name().to_owned(),
                nar: hash,
                references: object.references,
                deriver: object.deriver,
                ca: object.ca,
                system: object.system,
                signatures: object.sigs,
                extra: object.extra,
                created_at,
            }),
        }))
    }

    async fn add_alias(&self, file: &mut File, alias: JournaledAlias) -> Result<()> {
        let upload = Some((alias.nar.hash, alias.compression, alias.used_at));
        self.add_nar(file, alias.nar).await?;
        let (cache, file_name) = (alias.cache.0.cast_unsigned(), alias.file_name);
        file.push(&JournalRecord::Alias(JournalAlias { cache, file_name, upload }))
    }

    /// A NAR that is not in the file yet, with its chunks by id.
    async fn add_nar(&self, file: &mut File, nar: JournaledNar) -> Result<()> {
        if !file.nars.insert(nar.hash) {
            return Ok(());
        }
        let chunks = match self.chunk_ids(&nar.recipe.runs).await {
            Ok(chunks) => chunks,
            // The path was removed and collected meanwhile, or its row is corrupt. Either way there
            // is nothing to recover it from.
            Err(crate::Error::Index(IndexError::ChunkGone { number })) => {
                tracing::warn!(nar.hash = %nar.hash, chunk = number, "a NAR without its chunks is not in the journal");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let listing = match nar.listing {
            None => JournalListing::Lost,
            Some(StoredListing::Inline(body)) => JournalListing::Inline(body),
            Some(StoredListing::Chunks { recipe, size }) => match self.chunk_ids(&recipe.runs).await {
                Ok(chunks) => JournalListing::Chunks { chunks, size },
                Err(crate::Error::Index(IndexError::ChunkGone { .. })) => JournalListing::Lost,
                Err(error) => return Err(error),
            },
        };
        let fills = Recipe { runs: Vec::new(), ..nar.recipe };
        let recipe = NarManifest { chunks, fills };
        let record = JournalRecord::Nar(JournalNar { hash: nar.hash, size: nar.size, recipe, listing });
        match file.push(&record) {
            // Two million chunks and more: 64 GiB if all of them are as small as chunks get. All
            // other paths must not wait for this one for ever.
            Err(crate::Error::Encode(error @ dormer_format::Error::Journal { .. })) => {
                let error = with_causes(&error);
                tracing::error!(nar.hash = %nar.hash, error, "a NAR with too many chunks is not in the journal");
                Ok(())
            }
            pushed => pushed,
        }
    }

    async fn chunk_ids(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkId>> {
        let mut ids = Vec::new();
        for batch in batches(runs) {
            ids.extend(self.journal.index.load_chunks(&batch).await?.into_iter().map(|row| row.id));
        }
        Ok(ids)
    }

    async fn add_settings(&self, file: &mut File) -> Result<()> {
        for (name, value) in self.journal.memory.settings().await? {
            if !OWN_SETTINGS.contains(&name.as_str()) {
                file.push(&JournalRecord::Setting { name, value })?;
            }
        }
        Ok(())
    }

    /// A cache with all its pins: the first ones in its record, and the others after it.
    async fn push_cache(&self, file: &mut File, cache: &Cache) -> Result<()> {
        let now = self.journal.clock.now();
        let pins = self.pins_after(cache.id, None, now).await?;
        let last = |pins: &[JournalPin]| pins.last().map(|pin| (pin.name.clone(), pin.path.hash()));
        let mut after = last(&pins);
        file.push(&cache_record(cache, pins))?;
        while let Some((name, hash)) = &after {
            let pins = self.pins_after(cache.id, Some((name, hash)), now).await?;
            after = last(&pins);
            if !pins.is_empty() {
                file.push(&JournalRecord::Pins { cache: cache.id.0.cast_unsigned(), pins })?;
            }
        }
        Ok(())
    }

    async fn pins_after(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
    ) -> Result<Vec<JournalPin>> {
        let page = self.journal.index.list_pins(cache, after, now, PINS_PAGE).await?;
        Ok(page.into_iter().map(journal_pin).collect())
    }

    /// Writes the next part of the snapshot. The last one is followed by the end, and by the
    /// deletion of all older files.
    async fn write_part(&mut self) -> Result<()> {
        let snapshot = self.state.snapshot.as_deref().and_then(Snapshot::decode);
        let Snapshot { next, parts } = snapshot.unwrap_or(Snapshot::BEGIN);
        let parts = parts.map(|parts| parts + 1);
        let number = parts.unwrap_or(0);
        let mut file = self.begin_file(JournalKind::Part, self.state.base, number);
        if next == Snapshot::BEGIN.next {
            self.add_settings(&mut file).await?;
        }
        let mut cursor = Some(next);
        while let Some(at) = cursor.take_if(|_| file.writer.bytes() < PART_BYTES) {
            cursor = self.add_page(&mut file, at).await?;
            if cursor.is_none() {
                break;
            }
        }
        let bytes = self.store(file).await?;
        self.state.snapshot_bytes += bytes;
        if cursor.is_none() {
            let end = self.begin_file(JournalKind::End, self.state.base, number);
            let bytes = self.store(end).await?;
            self.state.snapshot_bytes += bytes;
        }
        self.state.snapshot = cursor.map(|next| Snapshot { next, parts }.encode());
        self.save(&[]).await?;
        if self.state.snapshot.is_none() {
            self.delete_older().await?;
        }
        Ok(())
    }

    /// Adds a page of everything; returns where the next one begins.
    async fn add_page(&self, file: &mut File, at: Cursor) -> Result<Option<Cursor>> {
        Ok(Some(match at {
            Cursor::Caches(after) => {
                let page = self.journal.index.list_caches_after(&after, CacheSelection::All, PAGE).await?;
                for cache in &page {
                    self.push_cache(file, cache).await?;
                }
                page.last().map_or(Cursor::Objects(None), |last| Cursor::Caches(last.name.clone()))
            }
            Cursor::Objects(after) => {
                let page = self.journal.memory.journaled_objects_after(after, PAGE).await?;
                let last = page.last().map(|last| (last.cache, last.object.path.hash()));
                for object in page {
                    self.add_object(file, object).await?;
                }
                last.map_or(Cursor::Aliases(CacheId(0), String::new()), |last| Cursor::Objects(Some(last)))
            }
            Cursor::Aliases(cache, after) => {
                let page = self.journal.memory.journaled_aliases_after((cache, &after), PAGE).await?;
                let Some(last) = page.last().map(|last| (last.cache, last.file_name.clone())) else {
                    return Ok(Some(Cursor::Documents(0)));
                };
                for alias in page {
                    self.add_alias(file, alias).await?;
                }
                Cursor::Aliases(last.0, last.1)
            }
            Cursor::Documents(after) => {
                let page = self.journal.memory.journaled_documents_after(after, DOCUMENTS_PAGE).await?;
                let Some(last) = page.last().map(|last| last.id) else { return Ok(None) };
                for document in page {
                    add_document(file, document)?;
                }
                Cursor::Documents(last)
            }
        }))
    }

    /// Deletes the files of older generations, except those that a mark keeps. If it is
    /// interrupted, the next snapshot does it.
    async fn delete_older(&self) -> Result<()> {
        let store = &self.journal.store;
        let now = self.journal.clock.now();
        let (live, ended): (Vec<KeptJournal>, Vec<KeptJournal>) =
            kept_journals(store).await?.into_iter().partition(|kept| is_live(kept, now));
        for name in self.list().await? {
            let is_older = name.generation < self.state.generation.cast_unsigned();
            if is_older && !live.iter().any(|kept| kept.has(name.generation)) {
                store.delete(&name.to_string()).await?;
            }
        }
        for kept in ended {
            store.delete(&kept.to_string()).await?;
        }
        self.journal.look_at_kept().await.map(drop)
    }

    async fn list(&self) -> Result<Vec<JournalName>> {
        list(&self.journal.store).await
    }

    fn begin_file(&self, kind: JournalKind, position: (i64, i64), number: u32) -> File {
        let position = (position.0.cast_unsigned(), position.1.cast_unsigned());
        let generation = self.state.generation.cast_unsigned();
        let header =
            JournalHeader { kind, lineage: self.state.lineage.cast_unsigned(), generation, position, number };
        File {
            writer: JournalWriter::new(&header),
            name: JournalName { generation, kind, position, random: rand::random() },
            nars: HashSet::new(),
        }
    }

    async fn store(&mut self, file: File) -> Result<i64> {
        let bytes = Bytes::from(file.writer.finish().map_err(crate::Error::Encode)?);
        let length = bytes.len();
        self.journal.store.put(&file.name.to_string(), None, [bytes]).await?;
        self.files += 1;
        self.journal.metrics.count_file(file.name.kind, length as u64);
        Ok(i64::try_from(length).unwrap_or(i64::MAX))
    }

    async fn save(&mut self, written: &[JournalNote]) -> Result<()> {
        let now: UnixSeconds = self.journal.clock.now();
        self.state.written_at = now;
        let ends_at = now + self.journal.settings.lease_seconds;
        Ok(self.journal.memory.save_journal(&self.lease, &self.state, written, ends_at).await?)
    }
}

impl File {
    fn push(&mut self, record: &JournalRecord) -> Result<()> {
        self.writer.push(record).map_err(crate::Error::Encode)
    }
}

fn journal_pin(pin: Pin) -> JournalPin {
    let Pin { name, path, created_at, ends_at } = pin;
    JournalPin { name, path, created_at, ends_at }
}

/// A cache with its first pins.
fn cache_record(cache: &Cache, pins: Vec<JournalPin>) -> JournalRecord {
    let key = |key: &dormer_index::CacheKey| JournalKey {
        public_key: key.public_key.clone(),
        sealed_secret: key.sealed_secret.clone(),
        active: key.active,
    };
    JournalRecord::Cache(JournalCache {
        cache: cache.id.0.cast_unsigned(),
        name: cache.name.clone(),
        is_public: cache.is_public,
        store_dir: cache.store_dir.clone(),
        priority: cache.priority.into(),
        upstream_key_names: cache.upstream_cache_key_names.clone(),
        retention_seconds: cache.retention_seconds,
        quota_bytes: cache.quota_bytes.map(u64::cast_signed),
        keep_latest: cache.keep_latest.map(i64::from),
        allow_replacement: cache.allow_replacement,
        created_at: cache.created_at,
        keys: cache.keys.iter().map(key).collect(),
        pins,
    })
}

fn add_document(file: &mut File, document: JournaledDocument) -> Result<()> {
    let JournaledDocument { cache, name, owner, written_at, size, encoding, body, .. } = document;
    let Some(body) = body else {
        tracing::warn!(document = name, "a document is too large for the journal");
        return Ok(());
    };
    let content = Some(JournalContent { owner, written_at, size, encoding, body });
    file.push(&JournalRecord::Document(JournalDocument { cache: cache.0.cast_unsigned(), name, content }))
}

/// Runs in batches that one look-up takes.
fn batches(runs: &[ChunkRun]) -> Vec<Vec<ChunkRun>> {
    let mut batches: Vec<Vec<ChunkRun>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let (mut first, mut left) = (run.first, run.count as usize);
        while left > 0 {
            if room == 0 {
                batches.push(Vec::new());
                room = CHUNKS_MAX;
            }
            let count = left.min(room);
            let part = ChunkRun { first, count: u32::try_from(count).expect("a batch is small") };
            batches.last_mut().expect("it was made").push(part);
            (first, left, room) = (first + count as u64, left - count, room - count);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let hash = StorePathHash::from_bytes([7; 20]);
        for cursor in [
            Cursor::Caches(String::new()),
            Cursor::Caches("main".to_owned()),
            Cursor::Objects(None),
            Cursor::Objects(Some((CacheId(3), hash))),
            Cursor::Aliases(CacheId(0), String::new()),
            Cursor::Aliases(CacheId(1 << 40), "x.nar.xz".to_owned()),
            Cursor::Documents(0),
            Cursor::Documents(1 << 40),
        ] {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        let counted = Snapshot { next: Cursor::Documents(7), parts: Some(u32::MAX) };
        assert_eq!(Snapshot::decode(&counted.encode()), Some(counted));
        let begun_before = Snapshot { next: Cursor::Objects(None), parts: None };
        assert_eq!(begun_before.encode(), [1]);
        assert_eq!(Snapshot::decode(&[1]), Some(begun_before));
        assert_eq!(Snapshot::decode(&[COUNTED, 0, 0, 0, 1]), None);
        for bytes in [&[][..], &[1, 2], &[2], &[3, 0, 0, 0, 0, 0, 0, 0], &[4], &[0, 0xff]] {
            assert_eq!(Cursor::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn batches_hold_every_number_once_and_are_small_enough() {
        let runs =
            [(5, 20_000), (100_000, 1), (200_000, 40_000)].map(|(first, count)| ChunkRun { first, count });
        let batches = batches(&runs);
        let size = |batch: &Vec<ChunkRun>| batch.iter().map(|run| run.count as usize).sum::<usize>();
        assert!(batches.iter().all(|batch| size(batch) <= CHUNKS_MAX));
        let numbers = |runs: &[ChunkRun]| -> Vec<u64> {
            runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count)).collect()
        };
        assert_eq!(numbers(&batches.concat()), numbers(&runs));
        assert_eq!(batches.len(), 4);
    }
}
