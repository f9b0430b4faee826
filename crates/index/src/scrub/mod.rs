//! The scrub's statements.
//!
//! A scrub judges bytes that it read a moment ago. Meanwhile a push may have stored a chunk again,
//! or a collection may have moved it. So each mark names the place that was read, and marks nothing
//! that lies elsewhere by then.

mod contract;

pub use contract::{LastScrub, ScrubIndex};

use async_trait::async_trait;
use dormer_format::EncodingTag;

use crate::Result;
use crate::changes::Change;
use crate::collect::PackRow;
use crate::collect::packs::read_pack;
use crate::contract::{ChunkRow, Nar, NarId, PackNumber, UnixSeconds};
use crate::jobs::{JobId, JobKind, JobLease, work};
use crate::rows::{read_chunk, read_nar};
use crate::sql::Argument::{Bytes, Number, Text};
use crate::sql::{Sql, both, damaged};
use crate::sql_index::{SqlIndex, Write};
use crate::topics::damage;

const BEGIN: Sql = both!("UPDATE jobs SET cursor = $2 WHERE id = $1 AND cursor IS NULL");
const CURSOR: Sql = both!("SELECT cursor FROM jobs WHERE id = $1 AND kind = 'scrub'");
const LAST: Sql = both!("SELECT job, ended_at, report FROM last_scrub");
const FINISH: Sql = both!("UPDATE last_scrub SET job = $1, ended_at = $2, report = $3");
const PACKS: Sql = both!(
    "SELECT id, number, size, created_at, used_at, condemned_at, chunks, recompressed_level FROM packs
     WHERE number > $1 AND condemned_at IS NULL ORDER BY number LIMIT $2"
);
pub(crate) const CHUNKS_OF_PACK: Sql = both!(
    "SELECT CAST(0 AS BIGINT), c.number, c.id, c.pack, p.id, c.start, c.checksum, c.layout
     FROM packs AS p CROSS JOIN chunks AS c
     WHERE p.number = $1 AND c.pack = p.number ORDER BY c.start"
);
const NARS: Sql = both!(concat!(
    "SELECT n.id, n.hash, n.size, n.file_size, n.tag, ",
    damaged!("n"),
    ", n.recipe FROM nars AS n WHERE n.id > $1 ORDER BY n.id LIMIT $2"
));
const MARK_NAR_OF_TAG: Sql =
    both!("UPDATE nars SET damaged_at = $2 WHERE id = $1 AND tag = $3 AND damaged_at IS NULL");

#[async_trait]
impl ScrubIndex for SqlIndex {
    async fn open_scrub(&self, cursor: &[u8], at: UnixSeconds) -> Result<(JobId, bool)> {
        self.write(Write::from("open a scrub").unless_done(), async |mut tx| {
            let job = work::open_job(&mut tx, JobKind::Scrub, None, None, at).await?;
            let is_new = tx.run(BEGIN, &[Number(job.0), Bytes(cursor)]).await? == 1;
            // Somebody asks for it now, and not for what an earlier try found.
            work::try_now(&mut tx, job).await?;
            Ok((job, is_new))
        })
        .await
    }

    async fn scrub_cursor(&self, job: JobId) -> Result<Option<Vec<u8>>> {
        self.read("look where a scrub is", async |mut tx| {
            let row = tx.optional(CURSOR, &[Number(job.0)]).await?;
            row.map_or(Ok(None), |row| row.column(0, "jobs"))
        })
        .await
    }

    async fn advance_scrub(
        &self,
        lease: &JobLease,
        cursor: &[u8],
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()> {
        self.write(Write::from("go on with a scrub").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            work::advance_job(&mut tx, lease, cursor, rows, at, ends_at).await
        })
        .await
    }

    async fn finish_scrub(&self, lease: &JobLease, report: &str, at: UnixSeconds) -> Result<()> {
        self.write(Write::from("end a scrub").unless_done(), async |mut tx| {
            work::hold_job(&mut tx, lease).await?;
            tx.run(FINISH, &[Number(lease.job.0), Number(at), Text(report)]).await?;
            work::finish_job(&mut tx, lease).await
        })
        .await
    }

    async fn last_scrub(&self) -> Result<LastScrub> {
        let table = "last_scrub";
        self.read("look at the last scrub", async |mut tx| {
            let row = tx.one(LAST, &[]).await?;
            Ok(LastScrub {
                job: row.column::<Option<i64>>(0, table)?.map(JobId),
                ended_at: row.column(1, table)?,
                report: row.column(2, table)?,
            })
        })
        .await
    }

    async fn scrub_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>> {
        self.read("read a page of packs", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(PACKS, &page).await?.iter().map(read_pack).collect()
        })
        .await
    }

    async fn chunks_of_pack(&self, pack: PackNumber) -> Result<Vec<ChunkRow>> {
        self.read("read the chunks of a pack", async |mut tx| {
            tx.rows(CHUNKS_OF_PACK, &[Number(pack.0)]).await?.iter().map(read_chunk).collect()
        })
        .await
    }

    async fn scrub_nars(&self, after: NarId, limit: u32) -> Result<Vec<Nar>> {
        self.read("read a page of NARs", async |mut tx| {
            let page = [Number(after.0), Number(limit.into())];
            tx.rows(NARS, &page).await?.iter().map(read_nar).collect()
        })
        .await
    }

    async fn mark_chunks(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64> {
        self.write("mark damaged chunks", async |mut tx| {
            damage::mark_chunks_of_pack(&mut tx, pack, chunks, at).await
        })
        .await
    }

    async fn mark_nar(&self, nar: NarId, tag: &EncodingTag, at: UnixSeconds) -> Result<bool> {
        self.write("mark a damaged NAR", async |mut tx| {
            let marked = tx.run(MARK_NAR_OF_TAG, &[Number(nar.0), Number(at), Bytes(tag.as_bytes())]).await?;
            tx.announce(Change::Everything).await?;
            Ok(marked == 1)
        })
        .await
    }
}
