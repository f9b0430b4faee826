//! One turn: what a process writes while it holds the lease. Changes come before a snapshot,
//! because they are what a loss of the database would lose.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use dormer_format::{JournalHeader, JournalKind, JournalName, JournalRecord, JournalWriter, KeptJournal};
use dormer_index::{
    CacheId, JournalLease, JournalNote, JournalState, OutboxPosition, OutboxRow, UnixSeconds,
};
use dormer_nix::{NarHash, StorePathHash};

use super::files::list;
use super::kept::{ComparedPasts, is_live, keep_journal, kept_journals, stored_journals};
use super::writer::Journal;
use crate::Result;
use crate::pace::pause_after;

/// Outbox rows in a segment.
const ROWS_MAX: u32 = 1_000;

/// Notes in a segment.
const NOTES_MAX: u32 = 1_000;

/// Caches, objects or aliases read at once. A recipe has 1 MiB at most and an inline listing 64
/// KiB, so the largest page is 55 MiB; with usual ones it is less than 1 MiB.
pub(super) const PAGE: u32 = 50;

/// A segment takes no more changes at about this size.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;

/// The time of one lease.
pub(super) struct Turn<'a> {
    pub(super) journal: &'a Journal,
    pub(super) lease: JournalLease,
    pub(super) state: JournalState,
    pub(super) files: u64,
}

/// A file in the making: each NAR once.
pub(super) struct File {
    pub(super) writer: JournalWriter,
    name: JournalName,
    pub(super) nars: HashSet<NarHash>,
}

impl Turn<'_> {
    pub(super) async fn write(&mut self, with_snapshot: bool) -> Result<()> {
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
            self.end_step();
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
            self.end_step();
        }
        Ok(cursor)
    }

    /// Deletes the files of older generations, except those that a mark keeps. If it is
    /// interrupted, the next snapshot does it.
    pub(super) async fn delete_older(&self) -> Result<()> {
        let store = &self.journal.store;
        let now = self.journal.clock.now();
        let (live, ended): (Vec<KeptJournal>, Vec<KeptJournal>) =
            kept_journals(store).await?.into_iter().partition(|kept| is_live(kept, now));
        for name in self.list().await? {
            let is_older = name.generation < self.state.generation.cast_unsigned();
            if is_older && !live.iter().any(|kept| kept.has(name.generation)) {
                store.delete(&name.to_string()).await?;
                self.end_step();
            }
        }
        for kept in ended {
            store.delete(&kept.to_string()).await?;
        }
        self.journal.look_at_kept().await.map(drop)
    }

    pub(super) async fn list(&self) -> Result<Vec<JournalName>> {
        list(&self.journal.store).await
    }

    pub(super) fn begin_file(&self, kind: JournalKind, position: (i64, i64), number: u32) -> File {
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

    pub(super) async fn store(&mut self, file: File) -> Result<i64> {
        let bytes = Bytes::from(file.writer.finish().map_err(crate::Error::Encode)?);
        let length = bytes.len();
        self.journal.store.put(&file.name.to_string(), None, [bytes]).await?;
        self.files += 1;
        self.end_step();
        self.journal.metrics.count_file(file.name.kind, length as u64);
        Ok(i64::try_from(length).unwrap_or(i64::MAX))
    }

    pub(super) async fn save(&mut self, written: &[JournalNote]) -> Result<()> {
        let now: UnixSeconds = self.journal.clock.now();
        self.state.written_at = now;
        let ends_at = now + self.journal.settings.lease_seconds;
        self.journal.memory.save_journal(&self.lease, &self.state, written, ends_at).await?;
        self.end_step();
        Ok(())
    }

    /// The turn gets on, so its lease is worth renewing.
    fn end_step(&self) {
        self.journal.steps.fetch_add(1, Ordering::Relaxed);
    }
}

impl File {
    pub(super) fn push(&mut self, record: &JournalRecord) -> Result<()> {
        self.writer.push(record).map_err(crate::Error::Encode)
    }
}
