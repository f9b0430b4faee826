//! Calls over a whole cache, in a cache that is large: each call ends within [`CALL_MAX`], however
//! many rows there are.
//!
//! Each kind of job has its case in [`Bulk::run_job`], which does not compile without one. A topic
//! that gets another call over a whole cache adds its case to [`run_bulk`]. Cases share one cache,
//! which the last case deletes.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dormer_format::RecipeBuilder;
use dormer_nix::{StorePath, StorePathHash};

use super::fixtures::{NOW, Subject, nar_hash, new_cache, path_hash as pushed_hash, push_object};
use crate::columns::{pack_references, pack_signatures};
use crate::contract::{
    CacheId, CacheIndex as _, NarId, NarQuery, ObjectIndex as _, ObjectPlace, OutboxIndex as _,
    OutboxPosition, PackNumber, SessionIndex, UnixSeconds,
};
use crate::sql::Argument::{Bytes, Number};
use crate::sql::{Sql, both};
use crate::sql_index::SqlIndex;
use crate::{
    CacheScan, CacheTotals, CollectIndex as _, ExpiryDefaults, JobIndex as _, JobKind, JobLease, JobStep,
    JournalIndex as _, PendingIndex as _, Result, ScrubIndex as _, TargetIndex as _,
};

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
// PostgreSQL counts only ids that it gives itself.
const SKIP_IDS: Sql =
    Sql { sqlite: "SELECT $1", postgres: "SELECT setval(pg_get_serial_sequence('nars', 'id'), $1)" };
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
    let load = index.write("load counters", async |mut tx| {
        tx.rows(SKIP_IDS, &[Number(objects)]).await?;
        tx.run(LOAD_COUNTERS, &counted).await
    });
    load.await?;
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
pub(crate) async fn run_bulk(index: &Arc<SqlIndex>) -> Result<()> {
    let count = object_count();
    let begun = Instant::now();
    let cache = load(index, "bulk", count).await?;
    // Beside the tests' own output, which hides what a test prints that passes.
    let _ = writeln!(std::io::stderr(), "{count} objects are loaded after {:?}", begun.elapsed());
    totals_are_counted(index, cache, count).await?;
    the_outbox_is_read_in_pages(index, cache, count).await?;
    present_objects_are_found_in_pages(index, cache, count).await?;
    let bulk = Bulk::new(index, cache, count).await?;
    bulk.journal().await?;
    for kind in JobKind::ALL.into_iter().filter(|kind| *kind != JobKind::DeleteCache) {
        bulk.run_job(kind).await?;
    }
    bulk.run_job(JobKind::DeleteCache).await?;
    // The recount was not run to its end.
    let left = index.list_jobs(None, 2).await?;
    assert!(matches!(&left[..], [job] if job.kind == JobKind::Recount.as_str()), "{left:?}");
    Ok(())
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

/// Longest that a usual step may take: the shortest lease.
const LEASE: Duration = Duration::from_secs(1);

/// Objects that the quota leaves no room for.
const EXPIRED: u64 = 1_000;

/// Steps of a scan that pushes run beside. `publish/bulk_tests.rs` runs whole scans.
const SCAN_STEPS: u32 = 10;

/// Steps of a recount, which counts each row by a trigger: all of them take half a minute.
const RECOUNT_STEPS: u32 = 10;

/// Rows of a page, as large as a job's own or larger.
const PAGE: u32 = 4_096;

/// A large cache, and a small one that is pushed to meanwhile.
struct Bulk {
    index: Arc<SqlIndex>,
    cache: CacheId,
    count: u64,
    beside: CacheId,
    pushes: AtomicU32,
    clock: Instant,
}

impl Bulk {
    async fn new(index: &Arc<SqlIndex>, cache: CacheId, count: u64) -> Result<Self> {
        let beside = index.create_cache(&new_cache("beside")).await?;
        let (index, pushes, clock) = (Arc::clone(index), AtomicU32::new(0), Instant::now());
        Ok(Self { index, cache, count, beside, pushes, clock })
    }

    fn now(&self) -> UnixSeconds {
        NOW + self.clock.elapsed().as_secs().cast_signed()
    }

    /// Runs a job's calls over the whole cache.
    async fn run_job(&self, kind: JobKind) -> Result<()> {
        let begun = Instant::now();
        match kind {
            JobKind::DeleteCache => self.delete().await?,
            JobKind::ExpireCache => self.expire().await?,
            JobKind::ScanCache => self.scan().await?,
            JobKind::Collect => self.collect().await?,
            JobKind::SpreadDamage => self.spread_damage().await?,
            JobKind::Scrub => self.scrub().await?,
            JobKind::Recount => self.recount().await?,
        }
        let _ = writeln!(std::io::stderr(), "{} took {:?}", kind.as_str(), begun.elapsed());
        Ok(())
    }

    async fn lease(&self, kind: JobKind) -> Result<JobLease> {
        let lease = self.index.lease_job(kind, "bulk", self.now(), self.now() + 1).await?;
        Ok(lease.unwrap_or_else(|| panic!("no job of {kind:?} is open")))
    }

    /// Runs steps to the last one, each within [`CALL_MAX`]; returns how many rows they changed. A
    /// busy machine delays single steps; a step that grows with the cache is slow every time.
    async fn run_steps(&self, kind: JobKind, step: impl AsyncFn() -> Result<JobStep>) -> Result<u64> {
        let (mut rows, mut times) = (0, Vec::new());
        loop {
            let begun = Instant::now();
            let done = in_time(kind.as_str(), step()).await?;
            times.push(begun.elapsed());
            rows += done.rows;
            if done.is_last {
                break;
            }
        }
        times.sort_unstable();
        assert!(times[times.len() / 2] < LEASE, "steps of {kind:?} outlast their lease: {times:?}");
        Ok(rows)
    }

    /// Pushes and reads for as long as `work` goes on: each ends in time.
    async fn beside_pushes<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let is_done = AtomicBool::new(false);
        let work = async {
            let done = work.await;
            is_done.store(true, Ordering::Relaxed);
            done
        };
        let pushes = async {
            let index: Subject = Arc::clone(&self.index) as _;
            let before = self.pushes.load(Ordering::Relaxed);
            while !is_done.load(Ordering::Relaxed) {
                let number = self.pushes.fetch_add(1, Ordering::Relaxed) + 1;
                in_time("a push", push_object(&index, self.beside, number)).await?;
                let found =
                    in_time("a look-up", index.find_object(self.beside, &pushed_hash(number))).await?;
                assert!(found.is_some(), "what was pushed is there");
                let key = NarQuery::Hash(nar_hash(number));
                let nar = in_time("opening", index.find_nar_in_cache(self.beside, &key, NOW)).await?;
                assert!(nar.is_some(), "what was pushed can be read");
            }
            Ok(self.pushes.load(Ordering::Relaxed) - before)
        };
        let (done, pushes) = tokio::try_join!(work, pushes)?;
        assert!(pushes > 0, "nothing was pushed meanwhile");
        Ok(done)
    }

    async fn expire(&self) -> Result<()> {
        const DAY: i64 = 86_400;
        let quota_bytes = (self.count - EXPIRED) * 240_000;
        let defaults = ExpiryDefaults {
            retention_seconds: 0,
            quota_bytes,
            grace_seconds: 30 * DAY,
            log_retention_seconds: 0,
        };
        let at = NOW + 10 * DAY;
        self.index.open_job(JobKind::ExpireCache, Some(self.cache), None, NOW).await?;
        let lease = self.lease(JobKind::ExpireCache).await?;
        let step = async || self.index.expire_cache_step(&lease, &defaults, PAGE, at, at + 1).await;
        // Rows of no generation are not counted when they go, either: the totals say nothing here.
        assert_eq!(self.run_steps(JobKind::ExpireCache, step).await?, EXPIRED);
        Ok(())
    }

    async fn scan(&self) -> Result<()> {
        let index = &self.index;
        let target = index.open_target("edge", "memory").await?;
        let lease = index.acquire_lease(target.id, "bulk", self.now(), self.now() + 1).await?;
        let lease = lease.expect("nobody holds it");
        let steps = async {
            let mut scan = CacheScan::Objects(None);
            for _ in 0..SCAN_STEPS {
                let step = index.note_cache_step(&lease, self.cache, scan, PAGE, NOW);
                let Some(next) = in_time("a step of a scan", step).await? else { return Ok(()) };
                scan = next;
            }
            Ok(())
        };
        self.beside_pushes(steps).await
    }

    async fn collect(&self) -> Result<()> {
        let index = &self.index;
        let opened = index.open_collection(NOW, NOW).await?;
        assert!(opened.is_some(), "none was opened before");
        let lease = self.lease(JobKind::Collect).await?;
        assert_eq!(in_time("counting what ended", index.count_ended(NOW, NOW - 1)).await?, (0, 0));
        assert_eq!(in_time("expiring graces", index.expire_graces(PAGE, NOW)).await?, 0);
        assert_eq!(in_time("expiring aliases", index.expire_aliases(PAGE, NOW - 1)).await?, 0);
        let rules = ExpiryDefaults {
            retention_seconds: 86_400,
            quota_bytes: 0,
            grace_seconds: 86_400,
            log_retention_seconds: 0,
        };
        let after = Some(ObjectPlace { value: NOW, id: self.count.cast_signed() / 2 });
        let page = index.examine_objects(self.cache, &rules, after, PAGE, NOW);
        assert_eq!(in_time("a page of objects", page).await?.objects.len(), PAGE as usize);
        let (mut after, mut named) = (NarId(0), 0);
        loop {
            let page = in_time("marking NARs", index.mark_nars(after, PAGE, NOW, NOW)).await?;
            let Some(last) = page.last() else { break };
            named += page.iter().filter(|nar| nar.is_named).count() as u64;
            if after == NarId(0) {
                let ids: Vec<NarId> = page.iter().take(PAGE as usize / 4).map(|nar| nar.id).collect();
                assert_eq!(in_time("deleting NARs", index.delete_nars(&ids)).await?, []);
            }
            after = last.id;
            let ends_at = self.now() + 1;
            let advance = index.advance_collection(&lease, page.len() as u64, self.now(), ends_at);
            in_time("renewing", advance).await?;
        }
        assert_eq!(named, self.count + u64::from(self.pushes.load(Ordering::Relaxed)));
        assert_eq!(in_time("moved chunks", index.moved_chunks(0, PAGE)).await?, []);
        in_time("a page of packs", index.page_packs(PackNumber(0), PAGE)).await?;
        in_time("ending", index.finish_collection(&lease, "{}", false, self.now())).await
    }

    async fn spread_damage(&self) -> Result<()> {
        let index: Subject = Arc::clone(&self.index) as _;
        // The loaded recipes have the first pack's chunk.
        let number = self.pushes.load(Ordering::Relaxed);
        assert!(number > 1, "a scan ran before, and pushes beside it");
        let key = NarQuery::Hash(nar_hash(number));
        let find = async || index.find_nar_in_cache(self.beside, &key, NOW).await;
        let nar = find().await?.expect("it was pushed");
        let rows = index.load_chunks(&nar.recipe.runs).await?;
        SessionIndex::mark_chunks_damaged(&*index, rows[0].pack, &[rows[0].number], NOW).await?;
        let lease = self.lease(JobKind::SpreadDamage).await?;
        let step = async || self.index.spread_damage_step(&lease, PAGE, self.now(), self.now() + 1).await;
        assert_eq!(self.run_steps(JobKind::SpreadDamage, step).await?, 1, "one NAR has the chunk");
        assert!(find().await?.is_some_and(|nar| nar.damaged));
        Ok(())
    }

    async fn scrub(&self) -> Result<()> {
        let index = &self.index;
        index.open_scrub(b"", NOW).await?;
        let lease = self.lease(JobKind::Scrub).await?;
        let packs = in_time("a page of packs", index.scrub_packs(PackNumber(0), PAGE)).await?;
        assert_eq!(in_time("chunks of a pack", index.chunks_of_pack(packs[0].number)).await?.len(), 1);
        let mut after = NarId(0);
        loop {
            let page = in_time("a page of NARs", index.scrub_nars(after, PAGE)).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            let (rows, ends_at) = (page.len() as u64, self.now() + 1);
            in_time("renewing", index.advance_scrub(&lease, b"x", rows, self.now(), ends_at)).await?;
        }
        in_time("ending", index.finish_scrub(&lease, "{}", self.now())).await
    }

    async fn recount(&self) -> Result<()> {
        self.index.open_job(JobKind::Recount, None, None, NOW).await?;
        let lease = self.lease(JobKind::Recount).await?;
        for _ in 0..RECOUNT_STEPS {
            let step = self.index.recount_step(&lease, PAGE, self.now(), self.now() + 1);
            let done = in_time("a step of a recount", step).await?;
            assert!(!done.is_last, "the cache has more objects than that");
        }
        Ok(())
    }

    /// The journal has a lease of its own, and no job.
    async fn journal(&self) -> Result<()> {
        let index = &self.index;
        let lease = index.lease_journal("bulk", self.now(), self.now() + 1).await?;
        let (lease, state) = lease.expect("nobody holds it");
        in_time("the end of the outbox", index.outbox_end()).await?;
        in_time("a hidden change", index.hidden_change()).await?;
        let notes = in_time("what changed", index.journal_notes(PAGE)).await?;
        let (mut after, mut objects) = (None, 0);
        loop {
            let page = in_time("a page of objects", index.journaled_objects_after(after, PAGE)).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.cache, last.object.path.hash()));
            objects += page.len() as u64;
            in_time("renewing", index.renew_journal(&lease, self.now() + 1)).await?;
        }
        assert_eq!(objects, self.count);
        in_time("aliases", index.journaled_aliases_after((CacheId(0), ""), PAGE)).await?;
        in_time("documents", index.journaled_documents_after(0, PAGE)).await?;
        in_time("saving", index.save_journal(&lease, &state, &notes, self.now() + 1)).await?;
        index.release_journal(&lease).await
    }

    async fn delete(&self) -> Result<()> {
        let index = &self.index;
        in_time("deleting the cache", index.delete_cache(self.cache, None, NOW)).await?;
        let totals = in_time("counting", index.cache_totals(self.cache)).await?;
        assert_eq!(totals, CacheTotals::default(), "no look-up finds what the job has not removed yet");
        let lease = self.lease(JobKind::DeleteCache).await?;
        let step = async || index.delete_cache_step(&lease, 2_048, self.now(), self.now() + 1).await;
        let rows = self.beside_pushes(self.run_steps(JobKind::DeleteCache, step)).await?;
        assert_eq!(rows, self.count, "objects, and graces of those that expired");
        let pushed = index.cache_totals(self.beside).await?.object_count;
        assert_eq!(pushed, u64::from(self.pushes.load(Ordering::Relaxed)), "each push was counted");
        Ok(())
    }
}
