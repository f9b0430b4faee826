//! Damage: one chunk that is bad concerns every NAR that needs it, and one push heals all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use dormer_nix::StorePathHash;

use super::fixtures::{
    NOW, alias, cache, changes, commit, committed, new_nar, object, pack, path_hash, push_object, recipe, tag,
};
use crate::{
    CacheId, ChunkRow, CommitTarget, Error, Index, JobIndex, JobKind, NarId, NarQuery, NarSource, PackNumber,
    Result, ScrubIndex, StoredListing,
};

/// What every case works on: the contracts of one adapter.
pub(super) struct Three {
    pub(super) index: Arc<dyn Index>,
    pub(super) scrub: Arc<dyn ScrubIndex>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

const MINUTE: i64 = 60;

impl Three {
    /// Names NAR `number` of these rows as the object of path `number`.
    async fn push(&self, cache: CacheId, number: u32, rows: &[ChunkRow]) -> Result<NarId> {
        let nar = NarSource::New(Box::new(new_nar(number, rows)));
        Ok(committed(&commit(&self.index, cache, nar, CommitTarget::Object(object(number))).await?))
    }

    /// Runs the open job to its end, each step by another process, as after a crash; returns how
    /// many steps it took.
    async fn spread(&self, limit: u32) -> Result<u32> {
        let mut steps = 0;
        let (mut now, kind) = (NOW, JobKind::SpreadDamage);
        while let Some(lease) = self.jobs.lease_job(kind, "a", now, now + MINUTE).await? {
            now += MINUTE;
            self.jobs.spread_damage_step(&lease, limit, now, now).await?;
            steps += 1;
            assert!(steps < 1_000, "the job does not end");
        }
        Ok(steps)
    }

    /// Which of the paths up to this number the cache has with a sound NAR.
    async fn sound(&self, cache: CacheId, last: u32) -> Result<Vec<u32>> {
        let mut sound = Vec::new();
        for number in 1..=last {
            let found = self.index.find_object(cache, &path_hash(number)).await?.expect("it is there");
            let hash = found.nar.hash;
            let present = !self.index.present_objects(cache, &[path_hash(number)]).await?.is_empty();
            let read = self.index.find_nar_in_cache(cache, &NarQuery::Hash(hash), NOW).await?.expect("there");
            let known = self.index.find_nar(&hash).await?.expect("there");
            let damaged = [found.nar.damaged, !present, read.damaged, known.damaged];
            assert!(damaged.iter().all(|one| *one == damaged[0]), "{number}: {damaged:?}");
            if present {
                sound.push(number);
            }
        }
        Ok(sound)
    }

    /// Open jobs that spread damage. Reading the outbox opens jobs of its own, which delete caches.
    async fn open_jobs(&self) -> Result<usize> {
        let jobs = self.jobs.list_jobs(None, 100).await?;
        Ok(jobs.iter().filter(|job| job.kind == JobKind::SpreadDamage.as_str()).count())
    }
}

/// Six NARs over four chunks. The third chunk is in the NARs 3 to 6.
async fn shared(three: &Three) -> Result<(CacheId, Vec<ChunkRow>)> {
    let cache = cache(&three.index, "main").await?;
    let rows = three.index.commit_pack(&pack(20, 20..24)).await?;
    for (number, rows) in
        [(1, &rows[..1]), (2, &rows[..2]), (3, &rows[..3]), (4, &rows[1..3]), (5, &rows[2..]), (6, &rows[..])]
    {
        three.push(cache, number, rows).await?;
    }
    Ok((cache, rows))
}

pub(super) async fn a_damaged_chunk_damages_every_nar_that_needs_it(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let reader = three.index.find_object(cache, &path_hash(3)).await?.expect("there").nar.id;
    three.index.mark_damaged(reader, &[rows[2].number], NOW).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 4, 5, 6], "the NAR that was read, at once");
    assert!(three.spread(1).await? > 6);
    assert_eq!(three.sound(cache, 6).await?, [1, 2]);
    // A known NAR that needs the chunk cannot be named.
    let nar = three.index.find_object(cache, &path_hash(5)).await?.expect("there").nar.id;
    let outcome = commit(&three.index, cache, NarSource::Known(nar), alias("f")).await;
    assert!(matches!(outcome, Err(Error::NarGone)), "{outcome:?}");
    assert_eq!(three.open_jobs().await?, 0);
    Ok(())
}

pub(super) async fn storing_a_damaged_chunk_again_heals_every_nar(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let marked = three.scrub.mark_chunks(rows[0].pack, &[rows[2].number, rows[3].number], NOW).await?;
    assert_eq!(marked, 2);
    three.spread(2).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2]);
    let before = changes(&three.index, cache).await?.len();
    // A push of the fourth NAR stores the third chunk only.
    let again = three.index.commit_pack(&pack(21, [22])).await?;
    assert_eq!(again[0].number, rows[2].number);
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 3, 4], "healed at once");
    three.spread(1).await?;
    let told: Vec<Option<StorePathHash>> = changes(&three.index, cache).await?.split_off(before);
    for number in [3, 4] {
        assert!(told.contains(&Some(path_hash(number))), "followers look at path {number} again");
    }
    three.index.commit_pack(&pack(22, [23])).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 3, 4, 5, 6]);
    three.spread(1).await?;
    // Nothing is left: the same chunk may go bad again.
    assert_eq!(three.scrub.mark_chunks(again[0].pack, &[again[0].number], NOW).await?, 1);
    three.spread(100).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2]);
    Ok(())
}

pub(super) async fn chunks_that_are_marked_during_a_pass_get_a_pass_of_their_own(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let pack = rows[0].pack;
    three.scrub.mark_chunks(pack, &[rows[3].number], NOW).await?;
    let lease = three.jobs.lease_job(JobKind::SpreadDamage, "a", NOW, NOW).await?.expect("it is open");
    // The pass begins, and has passed the first five NARs.
    for limit in [1, 5] {
        three.jobs.spread_damage_step(&lease, limit, NOW, NOW).await?;
    }
    three.scrub.mark_chunks(pack, &[rows[1].number], NOW).await?;
    three.jobs.release_job(&lease).await?;
    three.spread(2).await?;
    assert_eq!(three.sound(cache, 6).await?, [1]);
    // A mark after the job has ended opens another one.
    three.scrub.mark_chunks(pack, &[rows[0].number], NOW).await?;
    assert_eq!(three.open_jobs().await?, 1);
    three.spread(2).await?;
    assert_eq!(three.sound(cache, 6).await?, [0_u32; 0]);
    Ok(())
}

pub(super) async fn a_nar_that_is_stored_again_forgets_the_chunks_that_it_needed(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    three.scrub.mark_chunks(rows[0].pack, &[rows[2].number], NOW).await?;
    three.spread(100).await?;
    // Cut at other places, it needs other chunks. The damaged one stays as it is.
    let other = three.index.commit_pack(&pack(30, [30, 31])).await?;
    three.push(cache, 5, &other).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 5]);
    three.spread(100).await?;
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 5]);
    Ok(())
}

/// Empty outputs of many builds are one NAR. However many objects it has, no transaction notes more
/// of them than a page; the job goes on at its cursor.
pub(super) async fn followers_are_told_of_a_nar_with_many_objects_in_pages(three: Three) -> Result<()> {
    const OBJECTS: usize = 300;
    const PAGE: usize = 256;
    let cache = cache(&three.index, "main").await?;
    let rows = three.index.commit_pack(&pack(20, 20..22)).await?;
    let nar = three.push(cache, 1, &rows).await?;
    for number in 2..=300 {
        committed(
            &commit(&three.index, cache, NarSource::Known(nar), CommitTarget::Object(object(number))).await?,
        );
    }
    let told = async |before: usize| -> Result<BTreeSet<Option<StorePathHash>>> {
        Ok(changes(&three.index, cache).await?.split_off(before).into_iter().collect())
    };
    let before = changes(&three.index, cache).await?.len();
    three.index.update_encoding(nar, &tag(9), 7, NOW).await?;
    assert_eq!(told(before).await?.len(), PAGE, "the first page, at once");
    // A push of the NAR itself takes nothing of that away.
    assert_eq!(three.push(cache, 1, &rows).await?, nar);
    three.spread(100).await?;
    assert_eq!(told(before).await?.len(), OBJECTS);
    assert_eq!(three.open_jobs().await?, 0);

    three.scrub.mark_chunks(rows[0].pack, &[rows[0].number, rows[1].number], NOW).await?;
    three.spread(100).await?;
    let before = changes(&three.index, cache).await?.len();
    three.index.commit_pack(&pack(21, 20..22)).await?;
    let (mut noted, mut now) = (before, NOW);
    while let Some(lease) = three.jobs.lease_job(JobKind::SpreadDamage, "a", now, now + MINUTE).await? {
        now += MINUTE;
        three.jobs.spread_damage_step(&lease, 64, now, now).await?;
        let all = changes(&three.index, cache).await?.len();
        assert!(all - noted <= 64, "{} in one step", all - noted);
        noted = all;
    }
    assert_eq!(told(before).await?.len(), OBJECTS);
    // Nothing is left: the same chunks may go bad and be healed again.
    assert_eq!(three.open_jobs().await?, 0);
    Ok(())
}

pub(super) async fn a_listing_that_needs_a_damaged_chunk_is_forgotten(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let own = three.index.commit_pack(&pack(30, [30])).await?;
    let mut nar = new_nar(7, &own);
    nar.listing = StoredListing::Chunks { recipe: recipe(&rows[2..3]), size: 9 };
    nar.packs.push(rows[2].pack);
    let nar = NarSource::New(Box::new(nar));
    let id = committed(&commit(&three.index, cache, nar, CommitTarget::Object(object(7))).await?);
    three.scrub.mark_chunks(rows[2].pack, &[rows[2].number], NOW).await?;
    three.spread(3).await?;
    assert_eq!(three.index.find_listing(id).await?, None);
    let found = three.index.find_object(cache, &path_hash(7)).await?.expect("there");
    assert!(!found.nar.damaged, "the NAR can be read");
    assert_eq!(three.index.present_objects(cache, &[path_hash(7)]).await?, [], "and is pushed again");
    Ok(())
}

pub(super) async fn marks_name_the_place_that_was_read(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let numbers: Vec<u64> = rows.iter().map(|row| row.number).collect();
    let moved = PackNumber(rows[0].pack.0 + 1);
    assert_eq!(three.scrub.mark_chunks(moved, &numbers, NOW).await?, 0);
    let nar = three.index.find_object(cache, &path_hash(2)).await?.expect("there").nar;
    assert!(!three.scrub.mark_nar(nar.id, &tag(99), NOW).await?);
    assert_eq!(three.sound(cache, 6).await?, [1, 2, 3, 4, 5, 6]);
    assert!(three.scrub.mark_nar(nar.id, &nar.tag, NOW).await?);
    assert_eq!(three.sound(cache, 6).await?, [1, 3, 4, 5, 6]);
    assert_eq!(three.scrub.mark_chunks(rows[0].pack, &numbers[..1], NOW).await?, 1);
    assert_eq!(three.scrub.mark_chunks(rows[0].pack, &numbers[..2], NOW).await?, 1, "one was marked before");
    Ok(())
}

pub(super) async fn a_scrub_is_opened_once_and_any_process_continues_it(three: Three) -> Result<()> {
    let (_, rows) = shared(&three).await?;
    let scrub = &three.scrub;
    assert_eq!(scrub.last_scrub().await?.job, None);
    let (job, is_new) = scrub.open_scrub(b"begin", NOW).await?;
    assert!(is_new);
    assert_eq!(scrub.open_scrub(b"other", NOW + 1).await?, (job, false));
    let lease = three.jobs.lease_job(JobKind::Scrub, "a", NOW, NOW + MINUTE).await?.expect("it is open");
    scrub.advance_scrub(&lease, b"half", 3, NOW, NOW + MINUTE).await?;
    let other = three.jobs.lease_job(JobKind::Scrub, "b", NOW + MINUTE, NOW + 2 * MINUTE).await?;
    let other = other.expect("the first lease has ended");
    assert_eq!(scrub.scrub_cursor(job).await?.as_deref(), Some(b"half".as_slice()));
    for outcome in
        [scrub.advance_scrub(&lease, b"old", 1, NOW, NOW).await, scrub.finish_scrub(&lease, "{}", NOW).await]
    {
        assert!(matches!(outcome, Err(Error::JobLeaseLost)), "{outcome:?}");
    }
    scrub.finish_scrub(&other, "{\"packs\":1}", NOW + 9).await?;
    let last = scrub.last_scrub().await?;
    assert_eq!((last.job, last.ended_at, last.report.as_str()), (Some(job), Some(NOW + 9), "{\"packs\":1}"));
    assert_eq!(scrub.scrub_cursor(job).await?, None);
    assert!(scrub.open_scrub(b"begin", NOW).await?.1);
    // It fails, and would be tried again much later, if nobody asked for it.
    let lease = three.jobs.lease_job(JobKind::Scrub, "a", NOW, NOW + MINUTE).await?.expect("it is open");
    three.jobs.fail_job(&lease, "no store", NOW + 60 * MINUTE).await?;
    assert_eq!(three.jobs.lease_job(JobKind::Scrub, "a", NOW, NOW + MINUTE).await?, None);
    let (job, is_new) = scrub.open_scrub(b"begin", NOW).await?;
    assert_eq!((job, is_new), (lease.job, false));
    let again = three.jobs.lease_job(JobKind::Scrub, "a", NOW, NOW + MINUTE).await?;
    assert_eq!(again.map(|again| (again.job, again.failures)), Some((job, 0)));

    let packs = scrub.scrub_packs(PackNumber(0), 10).await?;
    assert_eq!(packs.len(), 1);
    assert_eq!(scrub.chunks_of_pack(packs[0].number).await?, rows);
    assert_eq!(scrub.scrub_packs(packs[0].number, 10).await?, []);
    let nars = scrub.scrub_nars(NarId(0), 4).await?;
    assert_eq!(nars.len(), 4);
    assert_eq!(scrub.scrub_nars(nars[3].id, 4).await?.len(), 2);
    Ok(())
}

pub(super) async fn damage_costs_sound_paths_no_statement(three: Three) -> Result<()> {
    let (cache, rows) = shared(&three).await?;
    let look = async || {
        let before = three.index.statement_count();
        three.index.find_object(cache, &path_hash(1)).await?;
        let between = three.index.statement_count();
        push_object(&three.index, cache, 40).await?;
        let count = (between - before, three.index.statement_count() - between);
        three.index.remove_object(cache, &path_hash(40), crate::Removal::ForCause, NOW).await?;
        Ok::<_, Error>(count)
    };
    let first = look().await?;
    let again = look().await?;
    three.scrub.mark_chunks(rows[0].pack, &[rows[3].number], NOW).await?;
    three.spread(100).await?;
    let damaged = look().await?;
    assert_eq!(first.0, damaged.0);
    assert_eq!(again, damaged);
    Ok(())
}
