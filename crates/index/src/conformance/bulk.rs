//! Calls over a whole cache, in a cache that is large: each call ends within [`CALL_MAX`], however
//! many rows there are.
//!
//! A topic that gets a new call over a whole cache adds its case to [`run_bulk`]. Cases share one
//! cache, which the last case deletes.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dormer_format::RecipeBuilder;
use dormer_nix::{StorePath, StorePathHash};

use super::fixtures::{NOW, new_cache};
use crate::columns::{pack_references, pack_signatures};
use crate::contract::{CacheId, CacheIndex as _, ObjectIndex as _, OutboxIndex as _, OutboxPosition};
use crate::sql::Argument::{Bytes, Number};
use crate::sql::{Sql, both};
use crate::sql_index::SqlIndex;
use crate::{CacheTotals, JobIndex as _, JobKind, Result};

/// Longest that a call may take. The index under test is opened with the same limit for a
/// statement.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(2);

/// Rows that the loader writes in one transaction.
const LOAD_PAGE: i64 = 10_000;

/// Bytes of each NAR.
const NAR_BYTES: u64 = 500_000;

// The hash of a NAR ends with its number, and so do the hashes of its object and its tag.
const LOAD_NARS: Sql = Sql {
    sqlite: "
        WITH RECURSIVE n (i) AS (SELECT $1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
        INSERT INTO nars (id, hash, size, file_size, tag, recipe)
        SELECT i, unhex(printf('%064x', i)), $3, 240000, unhex(printf('%032x', i)), $4 FROM n",
    postgres: "
        INSERT INTO nars (id, hash, size, file_size, tag, recipe) OVERRIDING SYSTEM VALUE
        SELECT i, decode(lpad(to_hex(i), 64, '0'), 'hex'), $3, 240000, decode(lpad(to_hex(i), 32, '0'), 'hex'), $4
        FROM generate_series($1::bigint, $2::bigint) AS i",
};
const LOAD_LISTINGS: Sql =
    both!("INSERT INTO listings (nar, body) SELECT id, $3 FROM nars WHERE id BETWEEN $1 AND $2");
const LOAD_OBJECTS: Sql = both!(
    "INSERT INTO objects (cache, hash, nar, created_at, last_used_at, name, sigs, refs)
     SELECT $3, substr(hash, 13, 20), id, $4, $4, 'package', $5, $6 FROM nars WHERE id BETWEEN $1 AND $2"
);
// The loaded rows are of no generation, so no trigger counts them one by one.
const LOAD_COUNTERS: Sql = both!(
    "INSERT INTO counters (cache, generation, paths, path_bytes) SELECT $1, generation, $2, $3 FROM counter_state"
);
const LOAD_OUTBOX: Sql = Sql {
    sqlite: "
        INSERT INTO outbox (cache, hash, at)
        SELECT cache, hash, created_at FROM objects WHERE nar BETWEEN $1 AND $2 AND cache = $3",
    postgres: "
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, o.created_at
        FROM objects AS o CROSS JOIN outbox_base AS b WHERE o.nar BETWEEN $1 AND $2 AND o.cache = $3",
};

/// Objects in the cache: 200,000, or as many as `DORMER_TEST_BULK` says (5,000,000 in the long
/// run).
pub(crate) fn object_count() -> u64 {
    let count = std::env::var("DORMER_TEST_BULK").ok().map(|count| count.parse());
    count.transpose().expect("DORMER_TEST_BULK is a number").unwrap_or(200_000)
}

/// The hash of a loaded object; numbers begin at 1.
pub(crate) fn path_hash(number: u64) -> StorePathHash {
    let mut bytes = [0; 20];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    StorePathHash::from_bytes(bytes)
}

/// Creates a cache and loads it with objects, by statements that write many rows at once.
pub(crate) async fn load(index: &SqlIndex, name: &str, objects: u64) -> Result<CacheId> {
    let cache = index.create_cache(&new_cache(name)).await?;
    let mut recipe = RecipeBuilder::new();
    recipe.push_chunk(65_536);
    let recipe = recipe.finish().encode();
    let path = StorePath::new(path_hash(1), "package").expect("a good name");
    let (sigs, refs) = (pack_signatures(&[]), pack_references(&path, &[]));
    let objects = objects.cast_signed();
    let mut first = 1;
    while first <= objects {
        let last = objects.min(first + LOAD_PAGE - 1);
        let range = [Number(first), Number(last)];
        let nars = [range[0], range[1], Number(NAR_BYTES.cast_signed()), Bytes(&recipe)];
        let rows = [range[0], range[1], Number(cache.0), Number(NOW), Bytes(&sigs), Bytes(&refs)];
        let load = index.write("load rows", async |mut tx| {
            tx.run(LOAD_NARS, &nars).await?;
            tx.run(LOAD_LISTINGS, &[range[0], range[1], Bytes(&[0])]).await?;
            tx.run(LOAD_OBJECTS, &rows).await?;
            tx.run(LOAD_OUTBOX, &rows[..3]).await
        });
        // As the calls do that store one row each.
        for number in first..=last {
            index.known.add_object(cache, &path_hash(number.unsigned_abs()));
        }
        assert_eq!(load.await?, (last - first + 1).unsigned_abs());
        first = last + 1;
    }
    let counted = [Number(cache.0), Number(objects), Number(objects * NAR_BYTES.cast_signed())];
    index.write("load counters", async |mut tx| tx.run(LOAD_COUNTERS, &counted).await).await?;
    Ok(cache)
}

/// Makes a call and checks that it ends in time.
pub(crate) async fn in_time<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let done = call.await?;
    assert!(begun.elapsed() <= CALL_MAX, "{what} took {:?}", begun.elapsed());
    Ok(done)
}

/// Runs every case on an empty index, which is opened with [`CALL_MAX`] as its limit for a
/// statement.
pub(crate) async fn run_bulk(index: &SqlIndex) -> Result<()> {
    let count = object_count();
    let begun = Instant::now();
    let cache = load(index, "bulk", count).await?;
    // Beside the tests' own output, which hides what a test prints that passes.
    let _ = writeln!(std::io::stderr(), "{count} objects are loaded after {:?}", begun.elapsed());
    totals_are_counted(index, cache, count).await?;
    the_outbox_is_read_in_pages(index, cache, count).await?;
    present_objects_are_found_in_pages(index, cache, count).await?;
    a_deleted_cache_goes_in_steps_beside_writes(index, cache, count).await
}

async fn totals_are_counted(index: &SqlIndex, cache: CacheId, count: u64) -> Result<()> {
    let totals = in_time("counting", index.cache_totals(cache)).await?;
    assert_eq!(totals, CacheTotals { object_count: count, nar_bytes: count * NAR_BYTES });
    Ok(())
}

async fn the_outbox_is_read_in_pages(index: &SqlIndex, cache: CacheId, count: u64) -> Result<()> {
    let mut position = OutboxPosition::START;
    let mut rows = 0;
    while rows < count {
        let page = in_time("a page of the outbox", index.outbox_after(position, 1_024)).await?;
        let Some(last) = page.last() else {
            // Rows show up when every older transaction of the server has ended.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        assert!(page.iter().all(|row| row.cache == cache && row.store_path_hash.is_some()));
        (position, rows) = (last.position, rows + page.len() as u64);
    }
    assert_eq!(rows, count);
    assert_eq!(index.outbox_after(position, 1_024).await?, []);
    Ok(())
}

async fn present_objects_are_found_in_pages(index: &SqlIndex, cache: CacheId, count: u64) -> Result<()> {
    for first in (1..=count).step_by(16_384) {
        let hashes: Vec<StorePathHash> = (first..first + 16_384).map(path_hash).collect();
        let found = in_time("which paths are present", index.present_objects(cache, &hashes)).await?;
        assert_eq!(found.len() as u64, (count - first + 1).min(16_384));
    }
    Ok(())
}

/// Each step runs under a lease of one second, and writes and look-ups beside them end in time too.
async fn a_deleted_cache_goes_in_steps_beside_writes(
    index: &SqlIndex,
    cache: CacheId,
    count: u64,
) -> Result<()> {
    in_time("deleting the cache", index.delete_cache(cache, None, NOW)).await?;
    let totals = in_time("counting", index.cache_totals(cache)).await?;
    assert_eq!(totals, CacheTotals::default(), "no look-up finds what the job has not removed yet");
    let clock = Instant::now();
    let now = || NOW + clock.elapsed().as_secs().cast_signed();
    let lease = index.lease_job(JobKind::DeleteCache, "bulk", now(), now() + 1).await?;
    let lease = lease.expect("the deletion opened a job");
    let is_done = AtomicBool::new(false);
    let steps = async {
        let (mut rows, mut longest) = (0, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let step = index.delete_cache_step(&lease, 2_048, now(), now() + 1);
            let step = in_time("a step of the deletion", step).await?;
            longest = longest.max(begun.elapsed());
            rows += step.rows;
            if step.is_last {
                is_done.store(true, Ordering::Relaxed);
                return Ok((rows, longest));
            }
        }
    };
    let beside = async {
        let (mut writes, mut longest) = (0, Duration::ZERO);
        while !is_done.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let other = new_cache(&format!("beside-{writes}"));
            let id = in_time("a write beside the deletion", index.create_cache(&other)).await?;
            let hash = path_hash(1);
            let found = index.find_object(id, &hash);
            assert_eq!(in_time("a look-up beside the deletion", found).await?, None);
            longest = longest.max(begun.elapsed());
            writes += 1;
        }
        Ok((writes, longest))
    };
    let ((rows, step), (writes, wait)) = tokio::try_join!(steps, beside)?;
    let took = clock.elapsed();
    let _ = writeln!(
        std::io::stderr(),
        "{rows} rows are deleted in {took:?}, the longest step took {step:?}; the longest of {writes} writes beside \
         took {wait:?}"
    );
    assert_eq!(rows, count);
    assert!(writes > 0, "nothing was written meanwhile");
    assert_eq!(index.list_jobs(None, 1).await?, []);
    Ok(())
}
