//! Counters say what a count would say, whatever happened before.

use std::collections::HashMap;
use std::sync::Arc;

use super::fixtures::{
    NOW, alias, cache, commit, committed, new_nar, object, pack, pack_id, path_hash, push_object, tag,
};
use crate::{
    CacheActivity, CacheGlance, CacheId, ChunkMove, ChunkRow, CollectIndex, CommitTarget, CompactedPack, Day,
    HistoryDay, Index, JobIndex, JobKind, JobLease, NarId, NarSource, ObjectOrder, PackNumber, PathCounts,
    Removal, Result, ScrubIndex, StampLimits, StoredCounts,
};

/// What every case works on: the contracts of one adapter.
pub(super) struct Four {
    pub(super) index: Arc<dyn Index>,
    pub(super) collect: Arc<dyn CollectIndex>,
    pub(super) scrub: Arc<dyn ScrubIndex>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

const MINUTE: i64 = 60;
const ANY: StampLimits = StampLimits { created_before: NOW + 1, used_before: NOW + 1 };

impl Four {
    async fn count_paths(&self, cache: CacheId) -> Result<PathCounts> {
        let objects = self.index.list_objects(cache, ObjectOrder::Age, None, 10_000).await?;
        Ok(PathCounts {
            paths: objects.len() as u64,
            bytes: objects.iter().map(|object| object.nar_size).sum(),
        })
    }

    /// What everything holds, row by row. Sizes of chunks are those of the packs as they were
    /// committed.
    async fn count_all(
        &self,
        caches: &[CacheId],
        packs: &HashMap<PackNumber, [u64; 2]>,
    ) -> Result<StoredCounts> {
        let mut counted = StoredCounts { is_complete: true, ..StoredCounts::default() };
        for cache in caches {
            let PathCounts { paths, bytes } = self.count_paths(*cache).await?;
            counted.paths.paths += paths;
            counted.paths.bytes += bytes;
        }
        for nar in self.scrub.scrub_nars(NarId(0), 10_000).await? {
            counted.nars += 1;
            counted.nar_bytes += nar.size;
            let rows = self.index.load_chunks(&nar.recipe.runs).await?;
            counted.nar_holed_bytes += rows.iter().map(|row| row.layout.holed_bytes()).sum::<u64>();
        }
        for pack in self.collect.page_packs(PackNumber(0), 10_000).await? {
            counted.packs += 1;
            counted.pack_bytes += pack.size;
            let [raw, holed] = packs[&pack.number];
            counted.pack_raw_bytes += raw;
            counted.pack_holed_bytes += holed;
        }
        Ok(counted)
    }

    /// Moves the chunks of one pack to a new one; returns the new pack with its sizes.
    async fn compact(&self, number: u32, which: u64) -> Result<Option<(PackNumber, [u64; 2])>> {
        let packs = self.collect.page_packs(PackNumber(0), 10_000).await?;
        let Some(old) = packs.get(usize::try_from(which).expect("few") % packs.len().max(1)) else {
            return Ok(None);
        };
        let chunks = self.collect.pack_chunks(old.number, None, 100).await?;
        let rows: Vec<&ChunkRow> = chunks.iter().map(|chunk| &chunk.row).collect();
        let id = pack_id(number);
        self.collect.doom_packs(&[id], Some(NOW + 5)).await?;
        let to = |(row, offset): (&&ChunkRow, u64)| ChunkMove {
            number: row.number,
            from: row.pack,
            from_offset: row.offset,
            checksum: row.checksum,
            offset,
        };
        let new = CompactedPack {
            id,
            size: 2_000 + u64::from(number),
            raw_bytes: rows.iter().map(|row| u64::from(row.layout.raw_len)).sum(),
            holed_bytes: rows.iter().map(|row| row.layout.holed_bytes()).sum(),
            recompressed_level: 0,
            new_frames: None,
            chunks: rows.iter().zip((32..).step_by(1_000)).map(to).collect(),
        };
        if self.collect.move_chunks(&new, NOW, NOW).await?.is_empty() {
            return Ok(None);
        }
        let packs = self.collect.page_packs(PackNumber(0), 10_000).await?;
        let added = packs.iter().find(|pack| pack.id == id).expect("chunks moved to it");
        Ok(Some((added.number, [new.raw_bytes, new.holed_bytes])))
    }

    async fn finish_deletion(&self) -> Result<()> {
        let lease = self.jobs.lease_job(JobKind::DeleteCache, "a", NOW, NOW + MINUTE).await?.expect("open");
        while !self.jobs.delete_cache_step(&lease, 3, NOW, NOW + MINUTE).await?.is_last {}
        Ok(())
    }
}

/// A generator that every case can repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn number(&mut self, bound: u32) -> u32 {
        u32::try_from(self.below(bound.into())).expect("below a u32")
    }
}

pub(super) async fn an_empty_index_holds_nothing(four: Four) -> Result<()> {
    let stored = four.index.stored_counts().await?;
    assert_eq!(stored, StoredCounts { is_complete: true, ..StoredCounts::default() });
    let main = cache(&four.index, "main").await?;
    assert_eq!(four.index.path_counts(main).await?, PathCounts::default());
    let before = four.index.statement_count();
    four.index.path_counts(main).await?;
    four.index.stored_counts().await?;
    let nothing = CacheGlance {
        cache: main,
        counts: PathCounts::default(),
        newest_at: None,
        is_published: false,
        is_complete: true,
    };
    assert_eq!(four.index.glance_at_caches(&[main]).await?, [nothing]);
    assert_eq!(four.index.glance_at_caches(&[]).await?, []);
    assert!(four.index.statement_count() - before <= 6, "a look-up each");
    Ok(())
}

pub(super) async fn random_histories_keep_the_counters_right(four: Four) -> Result<()> {
    let mut random = Random(7);
    let mut caches = vec![cache(&four.index, "a").await?, cache(&four.index, "b").await?];
    let mut packs: HashMap<PackNumber, [u64; 2]> = HashMap::new();
    let (mut next_pack, mut compacted, mut deleted) = (1_000, 0, 0);
    let mut recount: Option<JobLease> = None;
    for step in 0..240 {
        let which = usize::try_from(random.below(caches.len() as u64)).expect("few");
        let (home, number) = (caches[which], 1 + random.number(12));
        match random.below(10) {
            // A push. Its pack may hold chunks that are there already.
            0..=3 => {
                next_pack += 1;
                let first = random.number(30);
                let mut new = pack(next_pack, first..first + 3);
                for chunk in new.chunks.iter_mut().filter(|chunk| chunk.layout.raw_len % 2 == 1) {
                    chunk.layout.holes.clear();
                    chunk.layout.frames = vec![719];
                }
                let rows = four.index.commit_pack(&new).await?;
                let raw = new.chunks.iter().map(|chunk| u64::from(chunk.layout.raw_len)).sum();
                let holed = new.chunks.iter().map(|chunk| chunk.layout.holed_bytes()).sum();
                let all = four.collect.page_packs(PackNumber(0), 10_000).await?;
                let own = all.iter().find(|row| row.id == pack_id(next_pack)).expect("just committed");
                packs.insert(own.number, [raw, holed]);
                let nar = NarSource::New(Box::new(new_nar(number, &rows)));
                let path = 1 + random.number(12);
                let target =
                    if random.below(5) == 0 { alias("f") } else { CommitTarget::Object(object(path)) };
                commit(&four.index, home, nar, target).await?;
            }
            4 => {
                let removal =
                    if number % 2 == 0 { Removal::ForCause } else { Removal::WithGraceUntil(NOW - 1) };
                four.index.remove_object(home, &path_hash(number), removal, NOW).await?;
            }
            // A NAR that is damaged is replaced by the next push.
            5 => {
                if let Some(found) = four.index.find_object(home, &path_hash(number)).await? {
                    four.scrub.mark_nar(found.nar.id, &found.nar.tag, NOW).await?;
                }
            }
            6 => {
                four.collect.expire_graces(100, NOW).await?;
                let nars = four.collect.mark_nars(NarId(0), 1_000, NOW, NOW).await?;
                let unnamed: Vec<NarId> = nars.iter().filter(|nar| !nar.is_named).map(|nar| nar.id).collect();
                four.collect.delete_nars(&unnamed).await?;
            }
            // The packs that no recipe needs go.
            7 => {
                let nars = four.collect.mark_nars(NarId(0), 1_000, NOW, NOW).await?;
                let mut needed = Vec::new();
                for nar in &nars {
                    needed.extend(four.index.load_chunks(&nar.runs).await?.iter().map(|row| row.pack));
                }
                let idle: Vec<PackNumber> =
                    packs.keys().filter(|pack| !needed.contains(pack)).copied().collect();
                four.collect.condemn_packs(&idle, ANY, NOW + 1).await?;
                four.collect.remove_packs(&idle, NOW + 2, NOW).await?;
                let left = four.collect.page_packs(PackNumber(0), 10_000).await?;
                packs.retain(|number, _| left.iter().any(|pack| pack.number == *number));
            }
            // A pack is rewritten: its chunks move to a new one.
            8 => {
                next_pack += 1;
                if let Some((pack, sizes)) = four.compact(next_pack, random.below(1_000)).await? {
                    packs.insert(pack, sizes);
                    compacted += 1;
                }
            }
            _ if step % 3 == 0 => {
                four.index.delete_cache(home, None, NOW).await?;
                four.finish_deletion().await?;
                deleted += 1;
                caches[which] = cache(&four.index, if which == 0 { "a" } else { "b" }).await?;
            }
            _ => {}
        }
        // A recount goes on beside all of this.
        if recount.is_none() && step % 20 == 0 {
            four.jobs.open_job(JobKind::Recount, None, None, NOW).await?;
            recount = four.jobs.lease_job(JobKind::Recount, "a", NOW, NOW + MINUTE).await?;
        }
        if let Some(lease) = recount
            && four.jobs.recount_step(&lease, 2, NOW, NOW + MINUTE).await?.is_last
        {
            recount = None;
        }
        if step % 7 == 0 {
            four.jobs.tend_counters(NOW, NOW - 1).await?;
        }
        let glances = four.index.glance_at_caches(&caches).await?;
        assert_eq!(glances.len(), caches.len(), "step {step}");
        for cache in &caches {
            let counts = four.count_paths(*cache).await?;
            assert_eq!(four.index.path_counts(*cache).await?, counts, "step {step}");
            let glance = glances.iter().find(|glance| glance.cache == *cache).expect("each cache once");
            assert_eq!(glance.counts, counts, "step {step}");
            let newest_at = four.index.list_objects(*cache, ObjectOrder::Age, None, 10_000).await?;
            let newest_at = newest_at.last().map(|object| object.created_at);
            assert_eq!(glance.newest_at, newest_at, "step {step}");
        }
        let counted = four.count_all(&caches, &packs).await?;
        assert_eq!(four.index.stored_counts().await?, counted, "step {step}");
    }
    assert!(four.index.stored_counts().await?.nars > 0);
    assert!(compacted > 3 && deleted > 0, "{compacted} compactions, {deleted} caches deleted");
    Ok(())
}

pub(super) async fn pushes_beside_a_recount_are_counted_once(four: Four) -> Result<()> {
    let main = cache(&four.index, "main").await?;
    for number in 1..=6 {
        push_object(&four.index, main, number).await?;
    }
    four.jobs.open_job(JobKind::Recount, None, None, NOW).await?;
    let lease = four.jobs.lease_job(JobKind::Recount, "a", NOW, NOW + MINUTE).await?.expect("open");
    let pushes = async {
        for number in 7..=30 {
            push_object(&four.index, main, number).await?;
        }
        Ok(())
    };
    let steps = async {
        while !four.jobs.recount_step(&lease, 2, NOW, NOW + MINUTE).await?.is_last {
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    let (pushed, counted): (Result<()>, Result<()>) = tokio::join!(pushes, steps);
    pushed.and(counted)?;
    assert_eq!(four.index.path_counts(main).await?, four.count_paths(main).await?);
    assert_eq!(four.index.path_counts(main).await?.paths, 30);
    assert_eq!(four.index.stored_counts().await?.nars, 30);
    Ok(())
}

pub(super) async fn a_recount_is_opened_when_it_is_due(four: Four) -> Result<()> {
    let open = async || Ok::<_, crate::Error>(four.jobs.list_jobs(None, 10).await?.len());
    // The schema was made now, by the clock of the database, and long before `NOW`.
    four.jobs.tend_counters(NOW, 0).await?;
    assert_eq!(open().await?, 0);
    four.jobs.tend_counters(NOW, NOW - 1).await?;
    four.jobs.tend_counters(NOW, NOW - 1).await?;
    assert_eq!(open().await?, 1);
    let lease = four.jobs.lease_job(JobKind::Recount, "a", NOW, NOW + MINUTE).await?.expect("open");
    while !four.jobs.recount_step(&lease, 2, NOW, NOW + MINUTE).await?.is_last {}
    four.jobs.tend_counters(NOW, NOW - 1).await?;
    assert_eq!(open().await?, 0);
    Ok(())
}

pub(super) async fn a_healed_nar_is_counted_as_it_is_now(four: Four) -> Result<()> {
    let main = cache(&four.index, "main").await?;
    let nar = push_object(&four.index, main, 1).await?;
    let before = four.index.stored_counts().await?;
    assert!(four.scrub.mark_nar(nar, &tag(1), NOW).await?);
    let rows = four.index.commit_pack(&pack(50, 50..54)).await?;
    let again = NarSource::New(Box::new(new_nar(1, &rows)));
    committed(&commit(&four.index, main, again, CommitTarget::Object(object(1))).await?);
    let after = four.index.stored_counts().await?;
    assert_eq!((after.nars, after.nar_bytes, after.paths), (1, before.nar_bytes, before.paths));
    let holed = rows.iter().map(|row| row.layout.holed_bytes()).sum::<u64>();
    assert_eq!(after.nar_holed_bytes, holed);
    Ok(())
}

pub(super) async fn a_history_has_the_days_on_which_something_changed(four: Four) -> Result<()> {
    let main = cache(&four.index, "main").await?;
    let other = cache(&four.index, "other").await?;
    let today = Day::of(NOW);
    let history = async |cache: Option<CacheId>| four.index.history(cache, today.before(100)).await;
    let record = async |day: Day, limit: u32| {
        let (mut after, mut pages) = (CacheId(0), 0);
        while let Some(last) = four.jobs.record_sizes(day, after, limit).await? {
            (after, pages) = (last, pages + 1);
        }
        Ok::<_, crate::Error>(pages)
    };
    push_object(&four.index, main, 1).await?;
    assert_eq!(record(today.before(40), 1).await?, 2, "a cache in each page");
    let first = four.index.path_counts(main).await?;
    record(today.before(39), 9).await?;
    push_object(&four.index, main, 2).await?;
    record(today.before(39), 9).await?;
    record(today.before(39), 9).await?;
    let second = four.index.path_counts(main).await?;
    // What rests is written again after 30 days, not before.
    for days in [38, 10, 8, 0] {
        record(today.before(days), 9).await?;
    }
    let counts = async |cache| {
        let days = history(Some(cache)).await?;
        Ok::<_, crate::Error>(
            days.into_iter().map(|day| (today.0 - day.day.0, day.counts)).collect::<Vec<_>>(),
        )
    };
    assert_eq!(counts(main).await?, [(40, Some(first)), (39, Some(second)), (8, Some(second))]);
    let nothing = Some(PathCounts::default());
    assert_eq!(counts(other).await?, [(40, nothing), (8, nothing)]);
    let all = history(None).await?;
    assert_eq!(all.len(), 6, "the installation has every day: {all:?}");
    let stored = four.index.stored_counts().await?;
    assert_eq!((all[5].counts, all[5].stored_bytes), (Some(stored.paths), Some(stored.pack_bytes)));

    // Activity adds up, and takes nothing of the sizes away.
    let activity = |cache, pushes, pulls| CacheActivity { cache, pushes, pulls };
    let yesterday = today.before(1);
    four.jobs.add_activity(yesterday, &[]).await?;
    four.jobs.add_activity(yesterday, &[activity(main, 1, 2), activity(other, 3, 0)]).await?;
    four.jobs.add_activity(yesterday, &[activity(main, 10, 20), activity(CacheId(99), 5, 5)]).await?;
    let last = |days: Vec<HistoryDay>| days.into_iter().rev().find(|day| day.day == yesterday);
    let of = |pushes, pulls| HistoryDay { day: yesterday, counts: None, stored_bytes: None, pushes, pulls };
    assert_eq!(last(history(Some(main)).await?), Some(of(11, 22)));
    assert_eq!(last(history(Some(other)).await?), Some(of(3, 0)));
    assert_eq!(last(history(None).await?), Some(of(19, 27)), "what is gone counts for the installation");
    assert_eq!(history(Some(CacheId(99))).await?, []);
    four.jobs.add_activity(today.before(39), &[activity(main, 4, 0)]).await?;
    assert_eq!(
        (history(Some(main)).await?[1].counts, history(Some(main)).await?[1].pushes),
        (Some(second), 4)
    );
    assert_eq!(four.index.history(Some(main), today.before(8)).await?.len(), 1, "after a day, not on it");

    // What is too old goes, page by page.
    let later = Day(today.0 + crate::HISTORY_DAYS - 39);
    let mut gone = Vec::new();
    while gone.last() != Some(&0) {
        gone.push(four.jobs.trim_history(later, 2).await?);
    }
    assert_eq!(gone, [2, 2, 1, 0], "days 40 and 39 of three");
    assert_eq!(counts(main).await?, [(8, Some(second)), (1, None)]);

    // A cache takes its history along.
    four.index.delete_cache(main, None, NOW).await?;
    four.jobs.add_activity(yesterday, &[activity(main, 1, 1)]).await?;
    record(today, 9).await?;
    four.finish_deletion().await?;
    assert_eq!(history(Some(main)).await?, []);
    assert!(!history(Some(other)).await?.is_empty());
    Ok(())
}
