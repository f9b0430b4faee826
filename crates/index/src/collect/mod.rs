//! The collector's statements.
//!
//! Why a removal cannot race a commit:
//! - *A NAR* goes only if its row is locked first and nothing names it when the next statement
//!   looks. A commit that names it holds its row (PostgreSQL: the foreign key's lock), and such a
//!   row is skipped. A commit that comes later finds no row, or fails on the foreign key and is
//!   repeated.
//! - *A pack* is condemned under a lock that waits for every commit that stamps it or holds it
//!   unstamped ([`STAMP_PACKS`](crate::topics::chunks::STAMP_PACKS)). Later commits refuse it.
//! - *A compaction* moves a chunk's row only if it is sound and lies where its bytes were read. A
//!   push that healed or moved the row meanwhile keeps it. What a commit that knows the old place
//!   stamps is argued in docs/STORAGE.md.
//! - *A chunk row* of a condemned pack may move to a new pack, with its number. The removal of a
//!   pack then finds the row elsewhere, and leaves it. Rows are locked in the order of their ids,
//!   like those of a new pack.

mod contract;
pub(crate) mod doomed;
pub(crate) mod ended;
pub(crate) mod marks;
pub(crate) mod moves;
pub(crate) mod packs;
pub(crate) mod purges;

pub use contract::{
    ChunkMove, CollectIndex, CompactedPack, DoomedPack, ExaminedObject, ExaminedPage, LastCollection,
    MarkedNar, PackFate, PackRow, PackedChunk, PacksRemoved, Purge, PurgeId, RowlessPack, StampLimits,
};

use async_trait::async_trait;
use dormer_format::{ChunkRun, PackId};

use self::doomed::{
    COPIES, DOOM_NEW_PACK, DOOM_STRAYS, DOOMED, FORGET_DOOMED, HASTEN_NEW_PACKS, NEVER, NEW_PACK, RELEASE,
    keys, read_doomed,
};
use self::ended::{
    COUNT_ENDED, COUNT_LOGS, ENDED_COUNTED, EXPIRE_ALIASES, EXPIRE_GRACES, NOTE_EXPIRED_ALIASES,
};
use self::marks::{DELETE_NARS, HOLD_NARS, MOVED_CHUNKS};
use self::moves::NOTE_RECOMPRESSED;
use self::packs::{
    CONDEMN_NOW, CONDEMN_PACKS, COUNT_CHUNKS, PACK_CHUNKS, PAGE_PACKS, SPARE_PACKS, read_pack, read_packed,
};
use self::purges::{
    CLOSE_PURGES, FIND_PLACES, FORGET_NOTES, NOTE_TRIED, OPEN_PURGES, PURGE_NOTES, UNTRIED_PURGE, read_place,
    read_purge,
};
use crate::Result;
use crate::columns::{signed, unsigned};
use crate::contract::{CacheId, NarId, ObjectPlace, PackNumber, UnixSeconds};
use crate::jobs::{ExpiryDefaults, JobId, JobKind, JobLease, expire_cache, work};
use crate::sql::Argument::{Bytes, Flag, List, Number, Numbers, Text};
use crate::sql::{Sql, both};
use crate::sql_index::{SqlIndex, Write};
use crate::topics::damage;

// Locks the row: of racing callers one opens the job.
// A time in the future is that of a clock that was wrong.
const TAKE_TURN: Sql =
    both!("UPDATE last_collection SET opened_at = $2 WHERE opened_at <= $1 OR opened_at > $2");
const LAST: Sql = both!("SELECT opened_at, ended_at, listed_at, report FROM last_collection");
const NOTE_FIRST_LISTING: Sql = both!("UPDATE last_collection SET listed_at = 0 WHERE listed_at IS NULL");
const LIST_NEXT_TIME: Sql = both!("UPDATE last_collection SET listed_at = 0 WHERE listed_at IS NOT NULL");
const FINISH: Sql = both!(
    "UPDATE last_collection SET ended_at = $1, report = $2,
         listed_at = CASE WHEN $3 THEN $1 ELSE listed_at END"
);

#[async_trait]
impl CollectIndex for SqlIndex {
    async fn open_collection(&self, due_before: UnixSeconds, at: UnixSeconds) -> Result<Option<JobId>> {
        self.write(Write::from("open a collection").unless_done(), async |mut tx| {
            if tx.run(TAKE_TURN, &[Number(due_before), Number(at)]).await? == 0 {
                return Ok(None);
            }
            let job = work::open_job(&mut tx, JobKind::Collect, None, None, at).await?;
            if due_before == UnixSeconds::MAX {
                // Somebody asks for it now, and not for what an earlier try found.
                work::try_now(&mut tx, job).await?;
            }
            Ok(Some(job))
        })
        .await
    }

    async fn last_collection(&self) -> Result<LastCollection> {
        let table = "last_collection";
        self.read("look at the last collection", async |mut tx| {
            let row = tx.one(LAST, &[]).await?;
            Ok(LastCollection {
                opened_at: row.column(0, table)?,
                ended_at: row.column(1, table)?,
                listed_at: row.column(2, table)?,
                report: row.column(3, table)?,
            })
        })
        .await
    }

    async fn note_first_listing(&self) -> Result<()> {
        self.write("note the first listing", async |mut tx| tx.run(NOTE_FIRST_LISTING, &[]).await.map(drop))
            .await
    }

    async fn list_next_time(&self) -> Result<()> {
        self.write("make a listing due", async |mut tx| tx.run(LIST_NEXT_TIME, &[]).await.map(drop)).await
    }

    async fn advance_collection(
        &self,
        lease: &JobLease,
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()> {
        self.write(Write::from("go on with a collection").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            work::advance_job(&mut tx, lease, &[], rows, at, ends_at).await
        })
        .await
    }

    async fn finish_collection(
        &self,
        lease: &JobLease,
        report: &str,
        listed: bool,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write(Write::from("end a collection").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            tx.run(FINISH, &[Number(at), Text(report), Flag(listed)]).await?;
            work::finish_job(&mut tx, lease).await?;
            // A path was removed with its bytes while this collection ran.
            if tx.optional(UNTRIED_PURGE, &[]).await?.is_some() {
                work::open_job(&mut tx, JobKind::Collect, None, None, at).await?;
            }
            Ok(())
        })
        .await
    }

    async fn expire_graces(&self, limit: u32, at: UnixSeconds) -> Result<u64> {
        self.write("remove graces that are over", async |mut tx| {
            tx.run(EXPIRE_GRACES, &[Number(at), Number(limit.into())]).await
        })
        .await
    }

    async fn expire_aliases(&self, limit: u32, used_until: UnixSeconds) -> Result<u64> {
        self.write("remove old upload aliases", async |mut tx| {
            let page = [Number(used_until), Number(limit.into())];
            tx.run(NOTE_EXPIRED_ALIASES, &page).await?;
            tx.run(EXPIRE_ALIASES, &page).await
        })
        .await
    }

    async fn count_ended(&self, at: UnixSeconds, used_until: UnixSeconds) -> Result<(u64, u64)> {
        self.read("count what is over", async |mut tx| {
            let row = tx.one(COUNT_ENDED, &[Number(at), Number(used_until), Number(ENDED_COUNTED)]).await?;
            Ok((
                unsigned("graces", row.column(0, "graces")?)?,
                unsigned("aliases", row.column(1, "aliases")?)?,
            ))
        })
        .await
    }

    async fn count_logs(&self, written_before: UnixSeconds) -> Result<u64> {
        self.read("count logs", async |mut tx| {
            unsigned(
                "documents",
                tx.one(COUNT_LOGS, &[Number(written_before), Number(ENDED_COUNTED)])
                    .await?
                    .column(0, "documents")?,
            )
        })
        .await
    }

    async fn caches_with_rules(
        &self,
        defaults: &ExpiryDefaults,
        after: CacheId,
        limit: u32,
    ) -> Result<Vec<CacheId>> {
        self.read("find caches with rules", async |mut tx| {
            expire_cache::caches_with_rules(&mut tx, defaults, after, limit).await
        })
        .await
    }

    async fn examine_objects(
        &self,
        cache: CacheId,
        defaults: &ExpiryDefaults,
        after: Option<ObjectPlace>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<ExaminedPage> {
        self.read("look what may expire", async |mut tx| {
            expire_cache::examine_page(&mut tx, cache, defaults, after, limit, at).await
        })
        .await
    }

    async fn mark_nars(
        &self,
        after: NarId,
        limit: u32,
        now: UnixSeconds,
        aliases_since: UnixSeconds,
    ) -> Result<Vec<MarkedNar>> {
        self.read("read the recipes of NARs", async |mut tx| {
            marks::mark_page(&mut tx, after, limit, now, aliases_since).await
        })
        .await
    }

    async fn delete_nars(&self, nars: &[NarId]) -> Result<Vec<NarId>> {
        let ids: Vec<i64> = nars.iter().map(|nar| nar.0).collect();
        self.write("remove NARs without a name", async |mut tx| {
            let held = tx.rows(HOLD_NARS, &[Numbers(&ids)]).await?;
            let held = held.iter().map(|row| row.column(0, "nars")).collect::<Result<Vec<i64>>>()?;
            let deleted = tx.rows(DELETE_NARS, &[Numbers(&held)]).await?;
            deleted.iter().map(|row| row.column(0, "nars").map(NarId)).collect()
        })
        .await
    }

    async fn moved_chunks(&self, after: u64, limit: u32) -> Result<Vec<(u64, PackNumber)>> {
        self.read("read which chunks moved", async |mut tx| {
            let page = [Number(signed(after)), Number(limit.into())];
            tx.rows(MOVED_CHUNKS, &page).await?.iter().map(read_place).collect()
        })
        .await
    }

    async fn page_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>> {
        self.read("read a page of packs", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(PAGE_PACKS, &page).await?.iter().map(read_pack).collect()
        })
        .await
    }

    async fn count_chunks(&self, packs: &[PackNumber]) -> Result<u64> {
        let packs = numbers(packs);
        self.read("count the chunks of packs", async |mut tx| {
            unsigned("chunks", tx.one(COUNT_CHUNKS, &[Numbers(&packs)]).await?.column(0, "chunks")?)
        })
        .await
    }

    async fn pack_chunks(
        &self,
        pack: PackNumber,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PackedChunk>> {
        self.read("read the chunks of a pack", async |mut tx| {
            let page = [Number(pack.0), Number(after.map_or(-1, signed)), Number(limit.into())];
            tx.rows(PACK_CHUNKS, &page).await?.iter().map(read_packed).collect()
        })
        .await
    }

    async fn move_chunks(
        &self,
        pack: &CompactedPack,
        at: UnixSeconds,
        doomed_after: UnixSeconds,
    ) -> Result<Vec<u64>> {
        self.write(Write::from("move chunks to a new pack").unless_done(), async |mut tx| {
            moves::move_to_pack(&mut tx, pack, at, doomed_after).await
        })
        .await
    }

    async fn note_recompressed(&self, packs: &[PackNumber], level: u8) -> Result<()> {
        let packs = numbers(packs);
        self.write("note what was recompressed", async |mut tx| {
            tx.run(NOTE_RECOMPRESSED, &[Numbers(&packs), Number(level.into())]).await.map(drop)
        })
        .await
    }

    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        self.write("mark damaged chunks", async |mut tx| {
            damage::mark_chunks_of_pack(&mut tx, pack, chunks, at).await
        })
        .await
    }

    async fn condemn_packs(
        &self,
        packs: &[PackNumber],
        limits: StampLimits,
        at: UnixSeconds,
    ) -> Result<Vec<PackNumber>> {
        let packs = numbers(packs);
        self.write("condemn packs", async |mut tx| {
            let StampLimits { created_before, used_before } = limits;
            let condemned = [Numbers(&packs), Number(at), Number(created_before), Number(used_before)];
            let condemned = tx.rows(CONDEMN_PACKS, &condemned).await?;
            condemned.iter().map(|row| row.column(0, "packs").map(PackNumber)).collect()
        })
        .await
    }

    async fn condemn_now(&self, packs: &[PackNumber], at: UnixSeconds) -> Result<()> {
        let packs = numbers(packs);
        self.write("condemn packs at once", async |mut tx| {
            tx.run(CONDEMN_NOW, &[Numbers(&packs), Number(at)]).await.map(drop)
        })
        .await
    }

    async fn open_purges(&self, limit: u32) -> Result<Vec<Purge>> {
        self.read("look what is to be purged", async |mut tx| {
            tx.rows(OPEN_PURGES, &[Number(limit.into())]).await?.iter().map(read_purge).collect()
        })
        .await
    }

    async fn purge_notes(&self, after: PurgeId, limit: u32) -> Result<Vec<Purge>> {
        self.read("look what may still be purged", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(PURGE_NOTES, &page).await?.iter().map(read_purge).collect()
        })
        .await
    }

    async fn forget_purge_notes(&self, notes: &[PurgeId]) -> Result<()> {
        let notes: Vec<i64> = notes.iter().map(|note| note.0).collect();
        self.write("forget what was removed", async |mut tx| {
            tx.run(FORGET_NOTES, &[Numbers(&notes)]).await.map(drop)
        })
        .await
    }

    async fn find_places(
        &self,
        run: &ChunkRun,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, PackNumber)>> {
        let end = signed(run.first) + i64::from(run.count);
        let page =
            [Number(after.map_or(signed(run.first) - 1, signed)), Number(end - 1), Number(limit.into())];
        self.read("find where chunks lie", async |mut tx| {
            tx.rows(FIND_PLACES, &page).await?.iter().map(read_place).collect()
        })
        .await
    }

    async fn end_purges(&self, purges: &[PurgeId], is_done: bool, at: UnixSeconds) -> Result<()> {
        let purges: Vec<i64> = purges.iter().map(|purge| purge.0).collect();
        self.write("end purges", async |mut tx| {
            let ended = if is_done {
                tx.run(CLOSE_PURGES, &[Numbers(&purges)]).await
            } else {
                tx.run(NOTE_TRIED, &[Numbers(&purges), Number(at)]).await
            };
            ended.map(drop)
        })
        .await
    }

    async fn spare_packs(&self, packs: &[PackNumber]) -> Result<u64> {
        let packs = numbers(packs);
        self.write("spare condemned packs", async |mut tx| tx.run(SPARE_PACKS, &[Numbers(&packs)]).await)
            .await
    }

    async fn remove_packs(
        &self,
        packs: &[PackNumber],
        condemned_before: UnixSeconds,
        at: UnixSeconds,
    ) -> Result<PacksRemoved> {
        let packs = numbers(packs);
        self.write(Write::from("remove condemned packs").unless_done(), async |mut tx| {
            packs::remove(&mut tx, &packs, condemned_before, at).await
        })
        .await
    }

    async fn packs_without_row(&self, packs: &[PackId]) -> Result<Vec<RowlessPack>> {
        assert!(packs.len() <= crate::topics::KEYS_MAX, "too many packs in one look-up");
        self.read("find packs without a row", async |mut tx| doomed::without_row(&mut tx, packs).await).await
    }

    async fn doom_packs(&self, packs: &[PackId], not_before: Option<UnixSeconds>) -> Result<u64> {
        let keys = keys(packs);
        self.write("note packs without a row", async |mut tx| {
            tx.run(DOOM_STRAYS, &[List(&keys), Number(not_before.unwrap_or(NEVER))]).await
        })
        .await
    }

    async fn release_packs(&self, packs: &[PackId], not_before: UnixSeconds) -> Result<u64> {
        let keys = keys(packs);
        self.write("let packs go that were kept", async |mut tx| {
            tx.run(RELEASE, &[List(&keys), Number(not_before)]).await
        })
        .await
    }

    async fn doomed_packs(
        &self,
        after: Option<DoomedPack>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Vec<DoomedPack>> {
        let since = after.map_or(UnixSeconds::MIN, |pack| pack.not_before);
        let after: &[u8] = after.as_ref().map_or(&[], |pack| pack.id.as_bytes());
        let page = [Number(since), Bytes(after), Number(at), Number(limit.into())];
        self.read("look which packs to delete", async |mut tx| {
            tx.rows(DOOMED, &page).await?.iter().map(read_doomed).collect()
        })
        .await
    }

    async fn may_have_copies(&self, since: Option<UnixSeconds>) -> Result<bool> {
        let since = Number(since.unwrap_or(UnixSeconds::MIN));
        self.read("look for objects that are not deleted", async |mut tx| {
            Ok(tx.optional(COPIES, &[since]).await?.is_some())
        })
        .await
    }

    async fn doom_new_pack(&self, pack: PackId, not_before: UnixSeconds) -> Result<()> {
        self.write("note a new pack", async |mut tx| {
            let row = [Bytes(pack.as_bytes()), Number(not_before), Number(NEW_PACK)];
            tx.run(DOOM_NEW_PACK, &row).await.map(drop)
        })
        .await
    }

    async fn hasten_new_packs(&self, deadline_max: UnixSeconds, at: UnixSeconds) -> Result<u64> {
        self.write("let new packs without a row go", async |mut tx| {
            tx.run(HASTEN_NEW_PACKS, &[Number(NEW_PACK), Number(deadline_max), Number(at)]).await
        })
        .await
    }

    async fn forget_doomed(&self, packs: &[PackId]) -> Result<()> {
        let keys = keys(packs);
        self.write("forget deleted packs", async |mut tx| {
            tx.run(FORGET_DOOMED, &[List(&keys)]).await.map(drop)
        })
        .await
    }

    async fn reload_known_keys(&self) -> Result<()> {
        self.database.reload(&self.known).await
    }
}

fn numbers(packs: &[PackNumber]) -> Vec<i64> {
    packs.iter().map(|pack| pack.0).collect()
}
