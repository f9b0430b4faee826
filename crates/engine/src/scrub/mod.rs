//! The scrub: reads stored bytes again and checks every hash.
//!
//! Algorithm
//! 1. *Packs*, one after another: read the whole object; compare its BLAKE3, its table, and for
//!    each chunk of the index that lies in it the XXH3-64, and the BLAKE3 of what decodes.
//! 2. *NARs*: rebuild each from its recipe, window by window, and compare size and SHA-256. This
//!    finds recipes, fills and rows that are wrong although all chunks are sound.
//!
//! A sample takes a share of the packs and NARs, chosen by their numbers and the seed of the run:
//! each run takes others, and a run that goes on in another process takes the same.
//!
//! Damage is marked at once. A chunk is marked at the place that was read, so a chunk that a push
//! healed meanwhile is not marked. A store that cannot be reached marks nothing: the run stops and
//! is taken up again later. Where a disk has bad sectors, the chunks are read one by one, and those
//! that do not come are damaged, if the store as a whole answers.
//!
//! Invariants
//! - The state of a run ([`ScrubState`]) is the cursor of its job. It moves after each pack and
//!   each page of NARs, so a crash repeats one of them at most.
//! - Memory: one pack, its rows, and one decoded chunk; or a window of rows and the bytes of one
//!   fetch.
//! - At least four fifths of the time belong to others, and no more bytes are read than the limit
//!   allows.

mod check;
mod metrics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dormer_blobs::{BlobKey, Blobs};
use dormer_format::{ChunkRun, HoleFill, PackId, checksum};
use dormer_index::{
    ChunkRow, Index, JobId, JobIndex, JobKind, JobLease, Nar, NarId, PackNumber, PackRow, ScrubIndex,
    UnixSeconds,
};
use dormer_nix::{NarHasher, with_causes};
use serde::{Deserialize, Serialize};

use self::check::{PackFindings, check_pack, decode_chunk};
pub use self::metrics::ScrubMetrics;
use crate::cpu::blocking;
use crate::pace::{pause_after, tried};
use crate::read::windows;
use crate::{Clock, Error, Result};

/// Packs or NARs in one look-up.
const PAGE: u32 = 64;

/// Most stored bytes of a NAR in one fetch.
const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Findings that a report names; the log has all of them.
const NAMED_MAX: usize = 100;

/// The lease is renewed at least so often while the store or a limit of bytes makes the run wait.
const RENEW_AFTER: Duration = Duration::from_secs(3);

/// Attempts to read a chunk before it counts as damaged because the disk does not give it back.
const TRIES: u32 = 3;

/// Chunks of a pack that are tried again; of the others one attempt is enough.
const TRIED_AGAIN: usize = 8;

/// What Linux says of bad sectors, and of a file system whose own checksums differ: `EIO`,
/// `EBADMSG`, `EUCLEAN`. Every other failure may be one of the whole store.
const BAD_DISK: [i32; 3] = [5, 74, 117];

/// What a scrub looks at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScrubOptions {
    /// The share of packs and NARs, in millionths.
    pub share_ppm: u32,
    /// Most stored bytes read in a second; `None` for no limit but the pauses.
    pub bytes_per_second: Option<u64>,
}

/// Everything.
pub const FULL_PPM: u32 = 1_000_000;

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Packs that were read.
    pub packs: u64,
    /// Packs that are missing or truncated in the store.
    pub packs_lost: u64,
    /// Packs whose header, table or trailer is wrong.
    pub packs_damaged: u64,
    /// Chunks that were checked in packs.
    pub chunks: u64,
    /// Chunks that are damaged, known or new.
    pub chunks_damaged: u64,
    /// NARs that were rebuilt.
    pub nars: u64,
    /// NARs that did not come back as they were pushed.
    pub nars_damaged: u64,
    /// Stored bytes that were read.
    pub bytes_read: u64,
    /// The first findings, for people.
    pub findings: Vec<String>,
}

impl ScrubReport {
    /// Whether anything is damaged.
    pub fn found_damage(&self) -> bool {
        self.packs_lost + self.packs_damaged + self.chunks_damaged + self.nars_damaged > 0
    }

    fn note(&mut self, finding: String) {
        tracing::error!(finding, "a scrub found damage");
        if self.findings.len() < NAMED_MAX {
            self.findings.push(finding);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Packs,
    Nars,
}

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScrubState {
    options: ScrubOptions,
    /// Chooses the sample.
    seed: u64,
    phase: Phase,
    /// The last pack or NAR.
    after: i64,
    /// What the run found so far.
    pub report: ScrubReport,
}

impl ScrubState {
    fn new(options: ScrubOptions, seed: u64) -> Self {
        Self { options, seed, phase: Phase::Packs, after: 0, report: ScrubReport::default() }
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts are JSON")
    }

    /// Reads a job's cursor.
    pub fn decode(cursor: &[u8]) -> Result<Self> {
        serde_json::from_slice(cursor).map_err(|error| {
            Error::Index(dormer_index::Error::Corrupt { table: "jobs", what: error.to_string() })
        })
    }

    fn takes(&self, number: i64) -> bool {
        if self.options.share_ppm >= FULL_PPM {
            return true;
        }
        let key = [self.seed.to_le_bytes(), number.to_le_bytes()].concat();
        // Below a million in 64 bits: the remainder is even enough.
        dormer_format::checksum(&key) % u64::from(FULL_PPM) < u64::from(self.options.share_ppm)
    }
}

/// The last scrub that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedScrub {
    /// When it ended.
    pub ended_at: UnixSeconds,
    /// What it found.
    pub report: ScrubReport,
}

/// Reads stored bytes again and checks every hash. Clones share their counters.
#[derive(Debug, Clone)]
pub struct Scrubber {
    index: Arc<dyn Index>,
    scrub: Arc<dyn ScrubIndex>,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
    metrics: ScrubMetrics,
    renew_after: Duration,
}

fn read_report(text: &str) -> Result<ScrubReport> {
    serde_json::from_str(text).map_err(|error| {
        Error::Index(dormer_index::Error::Corrupt { table: "last_scrub", what: error.to_string() })
    })
}

/// The lease of a run, and how long it lasts.
struct Turn<'a> {
    lease: &'a JobLease,
    lease_seconds: i64,
}

impl Scrubber {
    /// A scrub over an index, by its two contracts, and its store.
    pub fn new(
        index: Arc<dyn Index>,
        scrub: Arc<dyn ScrubIndex>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { index, scrub, blobs, clock, metrics: ScrubMetrics::new(), renew_after: RENEW_AFTER }
    }

    /// The same with another time after which the lease is renewed.
    #[must_use]
    pub fn renewing_after(self, renew_after: Duration) -> Self {
        Self { renew_after, ..self }
    }

    /// The counters of this process.
    pub fn metrics(&self) -> ScrubMetrics {
        self.metrics.clone()
    }

    /// Opens a run. `false` if one is open already, which goes on with its own options.
    pub async fn open(&self, options: ScrubOptions) -> Result<(JobId, bool)> {
        let state = ScrubState::new(options, rand::random());
        Ok(self.scrub.open_scrub(&state.encode(), self.clock.now()).await?)
    }

    /// Where an open run is; `None` if it has ended.
    pub async fn state(&self, job: JobId) -> Result<Option<ScrubState>> {
        let cursor = self.scrub.scrub_cursor(job).await?;
        cursor.map(|cursor| ScrubState::decode(&cursor)).transpose()
    }

    /// The report of the last run that ended, if it is this one.
    pub async fn report(&self, job: JobId) -> Result<Option<ScrubReport>> {
        let last = self.scrub.last_scrub().await?;
        if last.job != Some(job) {
            return Ok(None);
        }
        read_report(&last.report).map(Some)
    }

    /// The last run that ended, whichever process ran it.
    pub async fn last(&self) -> Result<Option<EndedScrub>> {
        let last = self.scrub.last_scrub().await?;
        let Some(ended_at) = last.ended_at else { return Ok(None) };
        Ok(Some(EndedScrub { ended_at, report: read_report(&last.report)? }))
    }

    /// Shows the last run that ended in the gauges of this process.
    pub(crate) async fn show_last(&self) -> Result<()> {
        if let Some(last) = self.last().await? {
            self.metrics.show(&last);
        }
        Ok(())
    }

    /// Takes the lease of the open run for `holder` and works for about `slice`. Then it gives the
    /// lease back, unless the run has ended. `false` if another process holds the lease.
    pub async fn work_now(
        &self,
        jobs: &dyn JobIndex,
        holder: &str,
        lease_seconds: i64,
        slice: Duration,
    ) -> Result<bool> {
        let now = self.clock.now();
        let lease = jobs.lease_job(JobKind::Scrub, holder, now, now + lease_seconds).await?;
        let Some(lease) = lease else { return Ok(false) };
        match self.work(&lease, lease_seconds, slice).await {
            Ok(true) => Ok(true),
            Ok(false) => Ok(jobs.release_job(&lease).await.map(|()| true)?),
            Err(error) => {
                // If this fails too, the lease ends by itself.
                let _ = jobs.fail_job(&lease, &with_causes(&error), self.clock.now()).await;
                Err(error)
            }
        }
    }

    /// Works under a lease until the run has ended (`true`), or for about `slice`.
    pub(crate) async fn work(&self, lease: &JobLease, lease_seconds: i64, slice: Duration) -> Result<bool> {
        let Some(mut state) = self.state(lease.job).await? else { return Ok(true) };
        let turn = Turn { lease, lease_seconds };
        let begun = Instant::now();
        loop {
            let ended = match state.phase {
                Phase::Packs => self.packs(&turn, &mut state, begun, slice).await?,
                Phase::Nars => self.nars(&turn, &mut state, begun, slice).await?,
            };
            match (ended, state.phase) {
                (false, _) => return Ok(false),
                (true, Phase::Packs) => (state.phase, state.after) = (Phase::Nars, 0),
                (true, Phase::Nars) => {
                    let text = serde_json::to_string(&state.report).expect("numbers and texts are JSON");
                    self.scrub.finish_scrub(lease, &text, self.clock.now()).await?;
                    return Ok(true);
                }
            }
        }
    }

    /// Checks packs until none is left (`true`) or the time is over.
    async fn packs(
        &self,
        turn: &Turn<'_>,
        state: &mut ScrubState,
        begun: Instant,
        slice: Duration,
    ) -> Result<bool> {
        loop {
            let page = self.scrub.scrub_packs(PackNumber(state.after), PAGE).await?;
            if page.is_empty() {
                return Ok(true);
            }
            for pack in page {
                if state.takes(pack.number.0) {
                    let timer = Instant::now();
                    let bytes = self.pack(turn, &pack, state).await?;
                    self.wait(turn, state, timer, bytes).await?;
                }
                state.after = pack.number.0;
                self.advance(turn, state, 1).await?;
                if begun.elapsed() >= slice {
                    return Ok(false);
                }
            }
        }
    }

    /// Checks one pack; returns the bytes that it read.
    async fn pack(&self, turn: &Turn<'_>, pack: &PackRow, state: &mut ScrubState) -> Result<u64> {
        let rows = self.scrub.chunks_of_pack(pack.number).await?;
        let bytes = match self.while_renewing(turn, state, self.whole_pack(pack)).await? {
            Ok(bytes) => bytes,
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                self.lost_pack(pack, &rows, &mut state.report).await?;
                return Ok(0);
            }
            Err(error) if is_bad_disk(&error) => {
                return self.unreadable_pack(turn, pack, &rows, &error, state).await;
            }
            Err(error) => return Err(error.into()),
        };
        let report = &mut state.report;
        let (read, id) = (bytes.len() as u64, pack.id);
        let (findings, rows) = blocking(move || {
            let findings = check_pack(id, &bytes, &rows);
            (findings, rows)
        })
        .await;
        let PackFindings { whole, chunks } = findings;
        report.packs += 1;
        report.chunks += rows.len() as u64;
        report.bytes_read += read;
        if let Some(what) = whole {
            report.packs_damaged += 1;
            self.metrics.count_damage("pack", 1);
            report.note(format!("{}: {what}", BlobKey::Pack(pack.id)));
        }
        self.damaged_chunks(pack, &chunks, "chunks are damaged", report).await?;
        self.metrics.count_read(read);
        Ok(read)
    }

    /// Reads the chunks of a pack one by one, some of which the disk does not give back.
    async fn unreadable_pack(
        &self,
        turn: &Turn<'_>,
        pack: &PackRow,
        rows: &[ChunkRow],
        error: &dormer_blobs::Error,
        state: &mut ScrubState,
    ) -> Result<u64> {
        let (mut chunks, mut read) = (Vec::new(), 0);
        let mut renewed = Instant::now();
        for row in rows {
            let tries = if chunks.len() < TRIED_AGAIN { TRIES } else { 1 };
            match self.while_renewing(turn, state, self.stored_chunk(row, tries)).await?? {
                Some(bytes) => read += bytes.len() as u64,
                None => chunks.push(row),
            }
            if renewed.elapsed() >= self.renew_after {
                self.advance(turn, state, 0).await?;
                renewed = Instant::now();
            }
        }
        // Perhaps the whole disk was away. So only a read between two proofs that it is there
        // counts.
        self.check_store().await?;
        let mut unread = Vec::new();
        for row in chunks {
            if self.while_renewing(turn, state, self.stored_chunk(row, 1)).await??.is_none() {
                unread.push(row.number);
            }
            if renewed.elapsed() >= self.renew_after {
                self.advance(turn, state, 0).await?;
                renewed = Instant::now();
            }
        }
        self.check_store().await?;
        let chunks = unread;
        let report = &mut state.report;
        report.packs += 1;
        report.packs_damaged += 1;
        report.chunks += rows.len() as u64;
        report.bytes_read += read;
        self.metrics.count_damage("pack", 1);
        self.metrics.count_read(read);
        report.note(format!("{}: {}", BlobKey::Pack(pack.id), with_causes(error)));
        self.damaged_chunks(pack, &chunks, "chunks cannot be read", report).await?;
        Ok(read)
    }

    /// The stored bytes of a chunk. `None` if they are others, or if the disk does not give them
    /// back.
    async fn stored_chunk(&self, row: &ChunkRow, tries: u32) -> Result<Option<Bytes>> {
        let range = row.offset..row.offset + u64::from(row.layout.stored_len());
        let key = BlobKey::Pack(row.pack_id);
        let attempt = |_| self.blobs.get_range(&key, range.clone());
        match tried(tries, attempt, |read| !matches!(read, Err(error) if is_bad_disk(error))).await {
            Ok(bytes) => Ok((checksum(&bytes) == row.checksum).then_some(bytes)),
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => Ok(None),
            Err(error) if is_bad_disk(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Nothing is marked while the store as a whole is away. A look at a name, or a read, may be
    /// answered from memory when the disk is gone; a write cannot. What a crash leaves of it is an
    /// object without a row, which a listing finds.
    async fn check_store(&self) -> Result<()> {
        let key = BlobKey::Pack(PackId::from_bytes(rand::random()));
        self.blobs.put(&key, &[Bytes::from_static(b"is the disk there?")]).await?;
        Ok(self.blobs.delete(&key).await?)
    }

    async fn whole_pack(&self, pack: &PackRow) -> dormer_blobs::Result<Bytes> {
        let key = BlobKey::Pack(pack.id);
        // A local store reads from a file that it has open, which may be gone from its folder.
        if !self.blobs.is_remote() {
            self.blobs.head(&key).await?;
        }
        self.blobs.get_range(&key, 0..pack.size).await
    }

    async fn lost_pack(&self, pack: &PackRow, rows: &[ChunkRow], report: &mut ScrubReport) -> Result<()> {
        // Pushes have stored all of it elsewhere, so nothing needs the pack.
        if rows.is_empty() {
            return Ok(());
        }
        // A collection may have removed the pack since its row was read.
        let still = self.scrub.scrub_packs(PackNumber(pack.number.0 - 1), 1).await?;
        if still.first().is_none_or(|row| row.number != pack.number) {
            return Ok(());
        }
        report.packs += 1;
        report.packs_lost += 1;
        self.metrics.count_damage("pack", 1);
        report.note(format!("{}: missing or truncated", BlobKey::Pack(pack.id)));
        let chunks: Vec<u64> = rows.iter().map(|row| row.number).collect();
        self.damaged_chunks(pack, &chunks, "chunks are lost", report).await
    }

    async fn damaged_chunks(
        &self,
        pack: &PackRow,
        chunks: &[u64],
        what: &str,
        report: &mut ScrubReport,
    ) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        for chunks in chunks.chunks(4_096) {
            let marked = self.scrub.mark_chunks(pack.number, chunks, self.clock.now()).await?;
            self.metrics.count_damage("chunk", marked);
        }
        report.chunks_damaged += chunks.len() as u64;
        report.note(format!("{}: {} {what}", BlobKey::Pack(pack.id), chunks.len()));
        Ok(())
    }

    /// Checks NARs until none is left (`true`) or the time is over.
    async fn nars(
        &self,
        turn: &Turn<'_>,
        state: &mut ScrubState,
        begun: Instant,
        slice: Duration,
    ) -> Result<bool> {
        loop {
            let page = self.scrub.scrub_nars(NarId(state.after), PAGE).await?;
            if page.is_empty() {
                return Ok(true);
            }
            let mut rows = 0;
            for nar in page {
                state.after = nar.id.0;
                rows += 1;
                // Its damage is known; the chunks of others are checked with them.
                if nar.damaged || !state.takes(nar.id.0) {
                    continue;
                }
                self.nar(turn, state, &nar).await?;
                if begun.elapsed() >= slice {
                    self.advance(turn, state, rows).await?;
                    return Ok(false);
                }
            }
            self.advance(turn, state, rows).await?;
        }
    }

    /// Rebuilds one NAR.
    async fn nar(&self, turn: &Turn<'_>, state: &mut ScrubState, nar: &Nar) -> Result<()> {
        let mut hasher = NarHasher::new();
        let mut fills = nar.recipe.hole_fills();
        // What cannot be hashed need not be judged.
        let (mut whole, mut damaged) = (true, 0);
        for runs in windows(&nar.recipe.runs) {
            let Some(rows) = self.load(&runs).await? else { return Ok(()) };
            for rows in fetches(&rows) {
                let timer = Instant::now();
                let own: Vec<Vec<HoleFill>> = rows
                    .iter()
                    .map(|row| fills.by_ref().take(row.layout.holes.len()).copied().collect())
                    .collect();
                let (read, bad) = self.fetch(rows, own, &mut hasher, &mut whole).await?;
                for (row, marked) in bad {
                    damaged += marked;
                    whole = false;
                    if marked > 0 {
                        state.report.note(format!(
                            "{}: chunk {} is damaged",
                            BlobKey::Pack(row.pack_id),
                            row.number
                        ));
                    }
                }
                state.report.bytes_read += read;
                self.metrics.count_read(read);
                self.wait(turn, state, timer, read).await?;
            }
        }
        state.report.nars += 1;
        state.report.chunks_damaged += damaged;
        let is_wrong = whole && {
            let (hash, size) = hasher.finish();
            (hash, size) != (nar.hash, nar.size)
                && self.scrub.mark_nar(nar.id, &nar.tag, self.clock.now()).await?
        };
        if damaged > 0 || is_wrong {
            state.report.nars_damaged += 1;
            self.metrics.count_damage("nar", 1);
            state.report.note(format!("NAR {} does not come back", nar.hash));
        }
        Ok(())
    }

    /// The rows of a window. `None` if a collection removed the NAR meanwhile.
    async fn load(&self, runs: &[ChunkRun]) -> Result<Option<Vec<ChunkRow>>> {
        match self.index.load_chunks(runs).await {
            Ok(rows) => Ok(Some(rows)),
            Err(dormer_index::Error::ChunkGone { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads neighbours in a pack, and feeds the hasher while the NAR is whole. Returns the bytes
    /// that it read, and the chunks that are not as they should be, each with how many of it were
    /// marked: none if it lies elsewhere by now.
    async fn fetch<'r>(
        &self,
        rows: &'r [ChunkRow],
        fills: Vec<Vec<HoleFill>>,
        hasher: &mut NarHasher,
        whole: &mut bool,
    ) -> Result<(u64, Vec<(&'r ChunkRow, u64)>)> {
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let range = first.offset..last.offset + u64::from(last.layout.stored_len());
        let read = range.end - range.start;
        let start = range.start;
        let stored: Vec<Option<Bytes>> =
            match self.blobs.get_range(&BlobKey::Pack(first.pack_id), range).await {
                Ok(stored) => {
                    let own = |row: &ChunkRow| {
                        let from = usize::try_from(row.offset - start).expect("a fetch is a few MiB");
                        Some(stored.slice(from..from + row.layout.stored_len() as usize))
                    };
                    rows.iter().map(own).collect()
                }
                Err(error) if is_bad_disk(&error) => {
                    let mut stored = Vec::with_capacity(rows.len());
                    for row in rows {
                        stored.push(self.stored_chunk(row, TRIES).await?);
                    }
                    self.check_store().await?;
                    for (row, stored) in rows.iter().zip(&mut stored).filter(|(_, stored)| stored.is_none()) {
                        *stored = self.stored_chunk(row, 1).await?;
                    }
                    self.check_store().await?;
                    stored
                }
                Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                    let mut bad = Vec::new();
                    for row in rows {
                        bad.push((row, self.mark(row).await?));
                    }
                    return Ok((0, bad));
                }
                Err(error) => return Err(error.into()),
            };
        let mut bad = Vec::new();
        for ((row, own), fills) in rows.iter().zip(stored).zip(fills) {
            let (layout, id, checksum) = (row.layout.clone(), row.id, row.checksum);
            let decode = move || decode_chunk(&own?, id, checksum, &layout, &fills);
            match blocking(decode).await {
                Some(raw) if *whole => hasher.update(&raw),
                Some(_) => {}
                None => {
                    *whole = false;
                    bad.push((row, self.mark(row).await?));
                }
            }
        }
        Ok((read, bad))
    }

    async fn mark(&self, row: &ChunkRow) -> Result<u64> {
        let marked = self.scrub.mark_chunks(row.pack, &[row.number], self.clock.now()).await?;
        self.metrics.count_damage("chunk", marked);
        Ok(marked)
    }

    /// Leaves the rest of the time to others: as long as the work took, and longer if so many bytes
    /// take longer under the limit.
    async fn wait(&self, turn: &Turn<'_>, state: &ScrubState, timer: Instant, bytes: u64) -> Result<()> {
        let took = timer.elapsed();
        let due = state.options.bytes_per_second.map_or(Duration::ZERO, |limit| {
            Duration::from_millis(bytes.saturating_mul(1_000) / limit.max(1))
        });
        let mut left = pause_after(took).max(due.saturating_sub(took));
        while left > self.renew_after {
            tokio::time::sleep(self.renew_after).await;
            left -= self.renew_after;
            self.advance(turn, state, 0).await?;
        }
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// Waits for requests to the store, which may take longer than the lease lasts.
    async fn while_renewing<T>(
        &self,
        turn: &Turn<'_>,
        state: &ScrubState,
        requests: impl Future<Output = T>,
    ) -> Result<T> {
        tokio::pin!(requests);
        loop {
            tokio::select! {
                done = &mut requests => return Ok(done),
                () = tokio::time::sleep(self.renew_after) => self.advance(turn, state, 0).await?,
            }
        }
    }

    async fn advance(&self, turn: &Turn<'_>, state: &ScrubState, rows: u64) -> Result<()> {
        let now: UnixSeconds = self.clock.now();
        let ends_at = now + turn.lease_seconds;
        Ok(self.scrub.advance_scrub(turn.lease, &state.encode(), rows, now, ends_at).await?)
    }
}

fn is_bad_disk(error: &dormer_blobs::Error) -> bool {
    matches!(error, dormer_blobs::Error::Io { source, .. }
        if source.raw_os_error().is_some_and(|code| BAD_DISK.contains(&code)))
}

/// Groups of chunks that lie behind each other in a pack.
fn fetches(rows: &[ChunkRow]) -> impl Iterator<Item = &[ChunkRow]> {
    let end = |row: &ChunkRow| row.offset + u64::from(row.layout.stored_len());
    let mut rest = rows;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut count = 1;
        while let (Some(before), Some(next)) = (rest.get(count - 1), rest.get(count))
            && next.pack == before.pack
            && next.offset == end(before)
            && end(next) - first.offset <= FETCH_BYTES_MAX
        {
            count += 1;
        }
        let (group, others) = rest.split_at(count);
        rest = others;
        Some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(share_ppm: u32, seed: u64) -> ScrubState {
        ScrubState::new(ScrubOptions { share_ppm, bytes_per_second: None }, seed)
    }

    #[test]
    fn a_sample_takes_about_its_share_and_each_seed_takes_others() {
        let taken = |state: &ScrubState| (0..10_000).filter(|n| state.takes(*n)).collect::<Vec<i64>>();
        let (one, other) = (taken(&state(50_000, 1)), taken(&state(50_000, 2)));
        assert!((400..600).contains(&one.len()), "{}", one.len());
        assert_ne!(one, other);
        assert_eq!(taken(&state(FULL_PPM, 1)).len(), 10_000);
        assert_eq!(one, taken(&ScrubState::decode(&state(50_000, 1).encode()).unwrap()));
    }

    #[test]
    fn a_cursor_that_is_cut_short_is_an_error() {
        let encoded = state(5, 6).encode();
        assert!(ScrubState::decode(&encoded[..encoded.len() - 1]).is_err());
    }
}
