//! Purges: bytes of removed paths leave the store without their grace (`remove-path --now`).
//!
//! Algorithm, in rounds, each under marks of its own:
//! 1. Mark. Packs that were condemned before the marks began, and hold no live chunk, lose their
//!    rows; their objects are deleted. Those with a live chunk are spared.
//! 2. Find the packs that hold a chunk of a removed path which no NAR needs. Move everything else
//!    that may be needed to new packs, as a compaction does, and condemn these packs at once. The
//!    next round removes them.
//!
//! Invariants
//! - A pack goes only by marks that began after it was condemned, as in any collection. Commits
//!   that know the pack fail after that, and their clients push again.
//! - From a young pack, chunks without a NAR move too: they may belong to uploads that are under
//!   way. A chunk that came into a young pack from another one may be known to an upload by its old
//!   place, so a purge waits until that upload has ended.
//! - A purge is closed when no chunk row is left that only it needs, and when every object is
//!   deleted that may hold one of these chunks. If all of them lay where they came, these are the
//!   objects whose rows went since the path was removed, and those that never had rows: a listing
//!   of this collection found the latter. Otherwise older objects may have copies, and all have to
//!   be deleted. A crash before leaves the purge open, and the next collection goes on.
//! - An object without a row that an upload stored waits until its row cannot come any more. One
//!   that a compaction stored goes at once: no chunk moves to it after [`Collector::hasten`].
//! - A damaged chunk that a live path needs cannot move, and keeps its pack until a push stores the
//!   chunk again. No collection ends that, so the report and the log say it.
//! - Each removal for cause leaves a *note* of the same form, also without `--now`, which may be
//!   asked for later. A note goes under the same conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use dormer_index::{PackNumber, PackRow, PackedChunk, Purge, PurgeId, UnixSeconds};
use roaring::RoaringTreemap;

use super::collection_run::{CollectionRun, PAGE_ROWS, REMOVE_PACKS};
use super::collector::Collector;
use super::compact::{DOOMED_SECONDS, OpenPack};
use super::plan::{Live, PACK_CHUNKS};
use super::report::CollectionReport;
use crate::Result;

/// Purges that one collection takes up. Those that none has tried come first, so purges that have
/// to wait never keep others from their turn.
const PURGES_MAX: u32 = 256;

/// Clocks of replicas differ by less than this, in seconds.
const CLOCKS_DIFFER: i64 = 600;

/// A compaction that noted a new pack so long ago, in seconds, is over or has crashed, and the
/// store has the pack or never gets it. A client of the store may try for longer.
const NEW_PACK_SECONDS: i64 = 600;

/// The first round condemns, the second removes. More are needed only when pushes bring chunks of
/// condemned packs back.
const ROUNDS_MAX: usize = 4;

/// Notes in one page.
const NOTES_PAGE: u32 = 64;

/// Runs of chunks, most of them short, that are looked up between two pauses.
const PAUSE_PAGES: usize = 64;

/// Rows of chunks read at once.
const PAGE_CHUNKS: u32 = 4_096;

/// The purges that a collection took up.
#[derive(Default)]
pub(super) struct Purging {
    purges: Vec<Purge>,
    /// Their chunks that no NAR needs.
    chunks: RoaringTreemap,
    /// Those of which all these chunks were found in the packs that brought them.
    at_home: BTreeSet<PurgeId>,
    /// Packs with some of these chunks that a damaged chunk of a live path keeps.
    damaged: BTreeSet<PackNumber>,
}

impl Purging {
    /// Whether there is anything to purge.
    pub(super) fn is_empty(&self) -> bool {
        self.purges.is_empty()
    }
}

/// What becomes of a pack with chunks of purges.
enum SortedOut {
    /// This has to move, in new packs.
    Moves(Vec<OpenPack>),
    /// An upload that is under way may need the pack.
    Waits,
    /// A live path needs a damaged chunk of it.
    Damaged { chunk: u64 },
}

/// Where chunks of purges lie.
#[derive(Default)]
struct Found {
    packs: BTreeSet<PackNumber>,
    at_home: BTreeSet<PurgeId>,
}

impl Collector {
    /// Removes the bytes that only removed paths needed.
    pub(super) async fn purge(
        &self,
        collection: &mut CollectionRun<'_>,
        report: &mut CollectionReport,
    ) -> Result<Purging> {
        let mut purging = Purging { purges: self.index.open_purges(PURGES_MAX).await?, ..Purging::default() };
        if purging.purges.is_empty() {
            return Ok(purging);
        }
        self.hasten().await?;
        for round in 0..ROUNDS_MAX {
            let condemned = self.condemned_packs(collection).await?;
            let (now, _) = self.begin_marks();
            let marks = self.mark(collection, now, report).await?;
            let live = self.live_packs(marks, Some(collection)).await?;
            // What another process condemns again meanwhile waits for other marks.
            let before = condemned.values().max().map_or(now, |at| at + 1);
            let (mut dead, needed): (Vec<_>, Vec<_>) =
                condemned.into_keys().partition(|pack| live.in_pack(*pack) == 0);
            if collection.kept_before.is_some() {
                // Only what holds the bytes of a removed path goes before a journal that is kept.
                let chunks = unneeded(&purging.purges, &live);
                let found = self.packs_of(collection, &purging.purges, &chunks).await?;
                dead.retain(|pack| found.packs.contains(pack));
            }
            if !needed.is_empty() {
                // A commit was faster than the round before.
                self.index.spare_packs(&needed).await?;
            }
            for packs in dead.chunks(REMOVE_PACKS) {
                let begun = Instant::now();
                let removed = self.index.remove_packs(packs, before, self.clock.now()).await?;
                report.removed.packs += removed.packs.len() as u64;
                report.removed.bytes += removed.bytes;
                report.removed.chunks += removed.chunks;
                collection.step(begun, removed.packs.len() as u64 + removed.chunks).await?;
            }
            self.delete_objects(collection, report).await?;
            let chunks = unneeded(&purging.purges, &live);
            let is_more = !chunks.is_subset(&purging.chunks);
            purging.chunks = chunks;
            let found = self.packs_of(collection, &purging.purges, &purging.chunks).await?;
            if round == 0 {
                purging.at_home = found.at_home;
            } else if is_more {
                // What is unneeded since the first round may have had copies elsewhere.
                purging.at_home.clear();
            }
            let mut goes_on = false;
            purging.damaged.clear();
            for pack in found.packs {
                goes_on |= self.empty_pack(collection, pack, &mut purging, &live, report).await?;
            }
            if !goes_on {
                break;
            }
        }
        Ok(purging)
    }

    /// Lets the packs be deleted that crashed compactions left, and that may hold copies.
    async fn hasten(&self) -> Result<()> {
        let now = self.clock.now();
        let over_after = NEW_PACK_SECONDS.max(self.settings.put_seconds_max);
        let hastened = self.index.hasten_new_packs(now + DOOMED_SECONDS - over_after, now).await?;
        if hastened > 0 {
            tracing::info!(packs = hastened, "packs that compactions left go at once, for a purge");
        }
        Ok(())
    }

    /// Whether a purge wants a listing of the store: one whose path was removed after the last
    /// listing, so that all objects without a row begin to wait; and one that could end. A purge
    /// that waits for known objects could not.
    pub(super) async fn wants_listing(&self, purging: &Purging) -> Result<bool> {
        if purging.is_empty() {
            return Ok(false);
        }
        let listed_at = self.index.last_collection().await?.listed_at;
        if purging.purges.iter().any(|purge| listed_at.is_none_or(|at| at <= purge.removed_at)) {
            return Ok(true);
        }
        // Of all purges, the latest of those at home waits for the fewest objects.
        let at_home = purging.purges.iter().filter(|purge| purging.at_home.contains(&purge.id));
        self.are_objects_deleted(at_home.map(|purge| purge.removed_at).max()).await
    }

    /// Closes the purges whose bytes are gone. Call it when all objects were deleted that can be.
    /// `is_listed` says that all objects without a row are known.
    pub(super) async fn end_purges(
        &self,
        collection: &mut CollectionRun<'_>,
        purging: &Purging,
        is_listed: bool,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let now = self.clock.now();
        report.purge_packs_damaged = purging.damaged.len() as u64;
        for purge in &purging.purges {
            let left = self.packs_of(collection, std::slice::from_ref(purge), &purging.chunks).await?;
            let since = purging.at_home.contains(&purge.id).then_some(purge.removed_at);
            let is_done = is_listed && left.packs.is_empty() && self.are_objects_deleted(since).await?;
            self.index.end_purges(&[purge.id], is_done, now).await?;
            if is_done {
                report.purged += 1;
            } else {
                report.purges_left += 1;
                let oldest = report.oldest_purge.unwrap_or(purge.removed_at);
                report.oldest_purge = Some(oldest.min(purge.removed_at));
            }
        }
        Ok(())
    }

    /// Whether the objects of all packs are deleted that lost their rows, or of those that did so
    /// since a path was removed. What never had rows may hold copies too.
    async fn are_objects_deleted(&self, since: Option<UnixSeconds>) -> Result<bool> {
        let since = since.map(|removed_at| removed_at.saturating_sub(CLOCKS_DIFFER));
        Ok(!self.index.may_have_copies(since).await?)
    }

    /// The notes of removed paths of which no chunk row is left that no NAR needs, by marks that
    /// began at `marked_at`. Reads only.
    pub(super) async fn spent_notes(
        &self,
        collection: &mut CollectionRun<'_>,
        live: &Live,
        marked_at: UnixSeconds,
    ) -> Result<Vec<PurgeId>> {
        let mut spent = Vec::new();
        let mut after = PurgeId(0);
        loop {
            let begun = Instant::now();
            let page = self.index.purge_notes(after, NOTES_PAGE).await?;
            let Some(last) = page.last() else { return Ok(spent) };
            after = last.id;
            // For the marks, a path that was removed after they began is alive.
            for note in page.iter().filter(|note| note.removed_at < marked_at - CLOCKS_DIFFER) {
                if !self.has_unneeded_rows(collection, note, live).await? {
                    spent.push(note.id);
                }
            }
            collection.step(begun, 0).await?;
        }
    }

    async fn has_unneeded_rows(
        &self,
        collection: &mut CollectionRun<'_>,
        note: &Purge,
        live: &Live,
    ) -> Result<bool> {
        for run in &note.runs {
            let mut after = None;
            loop {
                let page = self.index.find_places(run, after, PAGE_CHUNKS).await?;
                collection.keep().await?;
                if page.iter().any(|(chunk, _)| !live.has_chunk(*chunk)) {
                    return Ok(true);
                }
                match page.last() {
                    Some((last, _)) if page.len() == PAGE_CHUNKS as usize => after = Some(*last),
                    _ => break,
                }
            }
        }
        Ok(false)
    }

    /// Forgets these notes, when all objects are deleted. Call it as [`Self::end_purges`].
    pub(super) async fn forget_notes(&self, spent: &[PurgeId]) -> Result<()> {
        if spent.is_empty() || !self.are_objects_deleted(None).await? {
            return Ok(());
        }
        for notes in spent.chunks(NOTES_PAGE as usize) {
            self.index.forget_purge_notes(notes).await?;
        }
        Ok(())
    }

    /// The condemned packs, and since when they are.
    async fn condemned_packs(
        &self,
        collection: &mut CollectionRun<'_>,
    ) -> Result<BTreeMap<PackNumber, UnixSeconds>> {
        let mut condemned = BTreeMap::new();
        let mut after = PackNumber(0);
        loop {
            let begun = Instant::now();
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { return Ok(condemned) };
            after = last.number;
            condemned.extend(page.iter().filter_map(|pack| Some((pack.number, pack.condemned_at?))));
            collection.step(begun, 0).await?;
        }
    }

    /// The packs that hold one of these chunks, and the purges all of whose chunks are at home.
    async fn packs_of(
        &self,
        collection: &mut CollectionRun<'_>,
        purges: &[Purge],
        chunks: &RoaringTreemap,
    ) -> Result<Found> {
        let mut found = Found::default();
        let (mut begun, mut pages) = (Instant::now(), 0);
        for purge in purges {
            let mut away = 0;
            for run in &purge.runs {
                away += chunks.range_cardinality(run.first..run.first + u64::from(run.count));
                let mut after = None;
                loop {
                    let page = self.index.find_places(run, after, PAGE_CHUNKS).await?;
                    for (chunk, pack) in page.iter().filter(|(chunk, _)| chunks.contains(*chunk)) {
                        found.packs.insert(*pack);
                        away -= u64::from(is_home(*chunk, *pack));
                    }
                    pages += 1;
                    if pages % PAUSE_PAGES == 0 {
                        collection.step(begun, 0).await?;
                        begun = Instant::now();
                    }
                    match page.last() {
                        Some((last, _)) if page.len() == PAGE_CHUNKS as usize => after = Some(*last),
                        _ => break,
                    }
                }
            }
            if away == 0 {
                found.at_home.insert(purge.id);
            }
        }
        collection.step(begun, 0).await?;
        Ok(found)
    }

    /// Moves what may be needed out of a pack, and condemns it. `false` if the pack has to wait.
    async fn empty_pack(
        &self,
        collection: &mut CollectionRun<'_>,
        number: PackNumber,
        purging: &mut Purging,
        live: &Live,
        report: &mut CollectionReport,
    ) -> Result<bool> {
        let found = self.index.page_packs(PackNumber(number.0 - 1), 1).await?.pop();
        let Some(pack) = found.filter(|pack| pack.number == number) else { return Ok(true) };
        let open = match self.sort_out(&pack, &purging.chunks, live).await? {
            SortedOut::Moves(open) => open,
            SortedOut::Waits => return Ok(false),
            SortedOut::Damaged { chunk } => {
                tracing::warn!(
                    pack.id = %pack.id,
                    chunk,
                    "bytes of a removed path stay: a live path needs a damaged chunk of the same pack. Push the paths \
                     that are missing again, or remove the path that nobody can push"
                );
                purging.damaged.insert(number);
                return Ok(false);
            }
        };
        // A pack of which nothing has to move needs no store.
        if !open.is_empty() && collection.is_store_down() {
            return Ok(false);
        }
        for open in open {
            let chunks = open.chunks();
            let Some(moved) = self.write_pack(collection, open, report).await? else { return Ok(false) };
            if moved.len() < chunks {
                // Damaged, or moved by another process: the next round looks again.
                return Ok(true);
            }
        }
        if pack.condemned_at.is_none() {
            self.index.condemn_now(&[number], self.clock.now()).await?;
            report.condemned.packs += 1;
            report.condemned.bytes += pack.size;
        }
        Ok(true)
    }

    /// What of a pack has to move, in new packs.
    async fn sort_out(&self, pack: &PackRow, unneeded: &RoaringTreemap, live: &Live) -> Result<SortedOut> {
        let now = self.clock.now();
        let (_, limits) = self.begin_marks();
        let is_young = pack.created_at >= limits.stamps.created_before;
        // An upload that found a chunk where it was before has ended.
        let is_settled = pack.created_at < now - self.settings.upload_seconds_max;
        let mut rows = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.index.pack_chunks(pack.number, after, PAGE_CHUNKS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.row.number);
            for PackedChunk { row, is_damaged } in page {
                let is_live = live.has_chunk(row.number);
                let is_home = is_home(row.number, pack.number);
                if unneeded.contains(row.number) {
                    if !is_home && !is_settled {
                        return Ok(SortedOut::Waits);
                    }
                } else if is_damaged {
                    // Its row must stay until a push heals it.
                    if is_live {
                        return Ok(SortedOut::Damaged { chunk: row.number });
                    }
                    if is_young {
                        return Ok(SortedOut::Waits);
                    }
                } else if is_live || is_young {
                    rows.insert(row.offset, row);
                }
            }
        }
        let mut packs = vec![OpenPack::default()];
        for row in rows.into_values() {
            if !packs.last().is_some_and(|open| open.has_room_for(&row)) {
                packs.push(OpenPack::default());
            }
            packs.last_mut().expect("there is one").add(row);
        }
        packs.retain(|open| open.chunks() > 0);
        Ok(SortedOut::Moves(packs))
    }
}

/// Whether a pack is the one that brought a chunk.
fn is_home(chunk: u64, pack: PackNumber) -> bool {
    chunk / PACK_CHUNKS == pack.0.unsigned_abs()
}

/// The chunks of removed paths that no NAR needs.
fn unneeded(purges: &[Purge], live: &Live) -> RoaringTreemap {
    let mut chunks = RoaringTreemap::new();
    for run in purges.iter().flat_map(|purge| &purge.runs) {
        chunks.extend((run.first..run.first + u64::from(run.count)).filter(|chunk| !live.has_chunk(*chunk)));
    }
    chunks
}
