//! What the collector asks: removals that look again before they remove.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dormer_format::{ChunkLayout, PackId};
use dormer_nix::{DocumentName, StorePath};

use super::fixtures::{
    GRACE_SECONDS, NOW, alias, cache, chunk_id, commit, fill, nar_hash, new_nar, object, pack, pack_id,
    path_hash, push, push_object, run,
};
use crate::{
    ChunkMove, ChunkRow, CollectIndex, CommitTarget, CompactedPack, Error, Index, JobIndex, JobKind,
    MarkedNar, NarId, NarSource, NewDocument, PackFate, PackNumber, PackRow, PurgeCounts, PurgeId, Removal,
    Result, StampLimits, StoredListing,
};

/// What every case works on: the contracts of one adapter.
pub(super) struct Three {
    pub(super) index: Arc<dyn Index>,
    pub(super) collect: Arc<dyn CollectIndex>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

/// Everything is old enough.
const ANY: StampLimits = StampLimits { created_before: NOW + 1, used_before: NOW + 1 };

impl Three {
    async fn marked(&self, now: i64) -> Result<Vec<MarkedNar>> {
        self.collect.mark_nars(NarId(0), 1_000, now, NOW - 1).await
    }

    async fn named(&self, now: i64) -> Result<Vec<bool>> {
        Ok(self.marked(now).await?.iter().map(|nar| nar.is_named).collect())
    }

    async fn packs(&self) -> Result<Vec<PackRow>> {
        self.collect.page_packs(PackNumber(0), 1_000).await
    }

    async fn doomed(&self, at: i64) -> Result<Vec<PackId>> {
        Ok(self.collect.doomed_packs(None, 9, at).await?.iter().map(|pack| pack.id).collect())
    }

    async fn numbers(&self) -> Result<Vec<PackNumber>> {
        Ok(self.packs().await?.iter().map(|pack| pack.number).collect())
    }
}

pub(super) async fn collections_are_opened_when_due_and_once(three: Three) -> Result<()> {
    let first = three.collect.last_collection().await?;
    assert_eq!((first.opened_at, first.ended_at, first.listed_at), (0, None, None));
    assert_eq!(three.collect.open_collection(-1, NOW).await?, None);
    let job = three.collect.open_collection(NOW - 60, NOW).await?.expect("none was opened before");
    assert_eq!(three.collect.open_collection(NOW - 60, NOW).await?, None);
    assert_eq!(three.collect.open_collection(i64::MAX, NOW + 1).await?, Some(job), "it is open already");
    let lease = three.jobs.lease_job(JobKind::Collect, "a", NOW, NOW + 60).await?.expect("nobody has it");
    three.collect.advance_collection(&lease, 7, NOW + 2, NOW + 90).await?;
    let open = three.jobs.list_jobs(None, 10).await?.remove(0);
    assert_eq!((open.id, open.rows_done, open.lease_ends_at), (job, 7, NOW + 90));
    let other = three.jobs.lease_job(JobKind::Collect, "b", NOW + 90, NOW + 150).await?.expect("it ended");
    for outcome in [
        three.collect.advance_collection(&lease, 1, NOW, NOW).await,
        three.collect.finish_collection(&lease, "{}", true, NOW).await,
    ] {
        assert!(matches!(outcome, Err(Error::JobLeaseLost)), "{outcome:?}");
    }
    assert_eq!(three.collect.last_collection().await?.ended_at, None);
    three.collect.finish_collection(&other, "{\"a\":1}", false, NOW + 100).await?;
    let last = three.collect.last_collection().await?;
    assert_eq!((last.opened_at, last.ended_at, last.listed_at), (NOW + 1, Some(NOW + 100), None));
    three.collect.list_next_time().await?;
    assert_eq!(three.collect.last_collection().await?.listed_at, None, "the first listing is special");
    assert_eq!(last.report, "{\"a\":1}");
    assert_eq!(three.jobs.list_jobs(None, 10).await?, []);
    three.collect.open_collection(i64::MAX, NOW + 200).await?;
    let lease = three.jobs.lease_job(JobKind::Collect, "a", NOW + 200, NOW + 260).await?.expect("it is open");
    three.collect.finish_collection(&lease, "{}", true, NOW + 201).await?;
    assert_eq!(three.collect.last_collection().await?.listed_at, Some(NOW + 201));
    three.collect.note_first_listing().await?;
    assert_eq!(three.collect.last_collection().await?.listed_at, Some(NOW + 201), "it is not the first");
    three.collect.list_next_time().await?;
    assert_eq!(three.collect.last_collection().await?.listed_at, Some(0));
    Ok(())
}

pub(super) async fn the_first_listing_can_be_a_recoverys(three: Three) -> Result<()> {
    assert_eq!(three.collect.last_collection().await?.listed_at, None);
    three.collect.note_first_listing().await?;
    assert_eq!(three.collect.last_collection().await?.listed_at, Some(0), "the next one is due");
    Ok(())
}

pub(super) async fn an_explicit_ask_for_a_collection_forgets_earlier_failures(three: Three) -> Result<()> {
    let first = async || Ok::<_, Error>(three.jobs.list_jobs(None, 10).await?.remove(0));
    three.collect.open_collection(i64::MAX, NOW).await?;
    let lease = three.jobs.lease_job(JobKind::Collect, "a", NOW, NOW + 60).await?.expect("it is open");
    three.jobs.fail_job(&lease, "the store is away", NOW + 300).await?;
    three.collect.open_collection(NOW, NOW + 1).await?;
    assert_eq!(first().await?.error.as_deref(), Some("the store is away"), "it is only due");
    three.collect.open_collection(i64::MAX, NOW + 2).await?;
    let job = first().await?;
    assert_eq!((job.error, job.failures, job.lease_ends_at), (None, 0, 0));
    let lease = three.jobs.lease_job(JobKind::Collect, "a", NOW + 2, NOW + 60).await?.expect("it is open");
    three.collect.open_collection(i64::MAX, NOW + 3).await?;
    assert_eq!(first().await?.lease_ends_at, NOW + 60, "a holder keeps its lease");
    three.jobs.fail_job(&lease, "again", NOW + 300).await?;
    assert_eq!((first().await?.error.as_deref(), first().await?.failures), (Some("again"), 1));
    Ok(())
}

pub(super) async fn what_names_a_nar_is_told_with_its_chunks(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    for number in 1..=3 {
        push_object(&three.index, id, number).await?;
    }
    push(&three.index, id, 4, alias("f.nar.xz")).await?;
    let grace = Removal::WithGraceUntil(NOW + 10);
    three.index.remove_object(id, &path_hash(2), grace, NOW).await?;
    three.index.remove_object(id, &path_hash(3), Removal::ForCause, NOW).await?;
    assert_eq!(three.named(NOW).await?, [true, true, false, true]);
    assert_eq!(three.named(NOW + 9).await?, [true, true, false, true]);
    assert_eq!(three.named(NOW + 10).await?, [true, false, false, true], "its grace is over");
    let later = three.collect.mark_nars(NarId(0), 1_000, NOW, NOW).await?;
    assert!(!later[3].is_named, "its alias is too old");

    // The chunks of a listing count too.
    let rows = three.index.commit_pack(&pack(5, [51, 52, 53])).await?;
    let mut nar = new_nar(5, &rows[..2]);
    nar.listing = StoredListing::Chunks { recipe: super::fixtures::recipe(&rows[2..]), size: 2_000_000 };
    let target = CommitTarget::Object(object(5));
    commit(&three.index, id, NarSource::New(Box::new(nar)), target).await?;
    let marked = three.marked(NOW).await?;
    assert_eq!(marked[4].runs, [run(rows[0].number, 2), run(rows[2].number, 1)]);
    assert_eq!(marked[4].size, 10_005);
    let page = three.collect.mark_nars(marked[1].id, 2, NOW, NOW - 1).await?;
    assert_eq!(page, marked[2..4]);
    Ok(())
}

pub(super) async fn a_page_of_large_recipes_is_short(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    for number in 1..=4 {
        let rows = three.index.commit_pack(&pack(number, [number])).await?;
        let mut nar = new_nar(number, &rows);
        // Some 800 kB: two of them fit 2 MiB, and three do not.
        nar.recipe.hashes = vec![fill(); 40_000];
        commit(&three.index, id, NarSource::New(Box::new(nar)), CommitTarget::Object(object(number))).await?;
    }
    // The job that looks for a damaged chunk reads the same pages.
    let chunk = three.index.find_chunks(&[chunk_id(4)]).await?.remove(0).expect("it was stored");
    let nar = three.index.find_nar(&nar_hash(4)).await?.expect("it was pushed").id;
    three.index.mark_damaged(nar, &[chunk.number], NOW).await?;
    let lease = three.jobs.lease_job(JobKind::SpreadDamage, "a", NOW, NOW).await?.expect("it is open");
    for found in [0, 0, 1] {
        assert_eq!(three.jobs.spread_damage_step(&lease, 1_000, NOW, NOW).await?.rows, found);
    }
    let mut after = NarId(0);
    for length in [2, 2, 0] {
        let page = three.collect.mark_nars(after, 1_000, NOW, NOW).await?;
        assert_eq!(page.len(), length, "after {after:?}");
        after = page.last().map_or(after, |nar| nar.id);
    }
    Ok(())
}

pub(super) async fn old_logs_are_counted(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let derivation = StorePath::new(path_hash(1), "package.drv").expect("a good name");
    let (owner, name) = (derivation.hash(), DocumentName::Log(derivation));
    let log = NewDocument { name, owner, size: 1, encoding: None, body: vec![b'x'] };
    three.index.put_document(id, &log, NOW).await?;
    assert_eq!((three.collect.count_logs(NOW).await?, three.collect.count_logs(NOW + 1).await?), (0, 1));
    Ok(())
}

pub(super) async fn graces_and_aliases_end(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    for number in 1..=5 {
        push_object(&three.index, id, number).await?;
        let grace = Removal::WithGraceUntil(NOW + i64::from(number));
        three.index.remove_object(id, &path_hash(number), grace, NOW).await?;
    }
    push(&three.index, id, 9, alias("f.nar.xz")).await?;
    assert_eq!(three.collect.expire_graces(2, NOW + 3).await?, 2);
    assert_eq!(three.collect.expire_graces(2, NOW + 3).await?, 1);
    assert_eq!(three.collect.expire_graces(2, NOW + 3).await?, 0);
    let found = async |number, now| {
        three.index.find_nar_in_cache(id, &crate::NarQuery::Hash(nar_hash(number)), now).await
    };
    assert!(found(3, NOW).await?.is_none() && found(4, NOW).await?.is_some());
    assert_eq!(three.collect.expire_aliases(5, NOW - 1).await?, 0);
    assert!(three.index.find_alias(id, "f.nar.xz", 0).await?.is_some());
    assert_eq!(three.collect.expire_aliases(5, NOW).await?, 1);
    assert!(three.index.find_alias(id, "f.nar.xz", 0).await?.is_none());
    Ok(())
}

pub(super) async fn only_nars_without_a_name_are_deleted(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let object_nar = push_object(&three.index, id, 1).await?;
    let grace_nar = push_object(&three.index, id, 2).await?;
    let alias_nar = push(&three.index, id, 3, alias("f.nar.xz")).await?;
    let unnamed = push_object(&three.index, id, 4).await?;
    // Even a grace that is over protects its NAR until its row goes.
    three.index.remove_object(id, &path_hash(2), Removal::WithGraceUntil(NOW - 1), NOW).await?;
    three.index.remove_object(id, &path_hash(4), Removal::ForCause, NOW).await?;
    let all = [object_nar, grace_nar, alias_nar, unnamed, NarId(9_999)];
    assert_eq!(three.collect.delete_nars(&all).await?, [unnamed]);
    assert_eq!(three.collect.delete_nars(&all).await?, []);
    assert_eq!(three.index.find_nar(&nar_hash(4)).await?, None);
    assert_eq!(three.index.find_listing(unnamed).await?, None);
    assert!(three.index.find_nar(&nar_hash(2)).await?.is_some());
    // It cannot be named any more, and can be stored again.
    let target = CommitTarget::Object(object(4));
    let named = commit(&three.index, id, NarSource::Known(unnamed), target).await;
    assert!(matches!(named, Err(Error::NarGone)), "{named:?}");
    assert!(push_object(&three.index, id, 4).await? > unnamed, "numbers are never given twice");
    Ok(())
}

pub(super) async fn racing_names_and_deletions_agree(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    for number in 0..30 {
        let nar = push_object(&three.index, id, number).await?;
        three.index.remove_object(id, &path_hash(number), Removal::ForCause, NOW).await?;
        let (index, collect) = (Arc::clone(&three.index), Arc::clone(&three.collect));
        let name = tokio::spawn(async move {
            let target = CommitTarget::Object(object(number));
            commit(&index, id, NarSource::Known(nar), target).await
        });
        let delete = tokio::spawn(async move { collect.delete_nars(&[nar]).await });
        let (named, deleted) = (name.await.expect("no panic"), delete.await.expect("no panic")?);
        match named {
            Ok(_) => assert_eq!(deleted, [], "it was named"),
            Err(Error::NarGone) => assert_eq!(deleted, [nar]),
            Err(error) => return Err(error),
        }
        let found = three.index.find_object(id, &path_hash(number)).await?;
        assert_eq!(found.is_some(), deleted.is_empty());
    }
    Ok(())
}

pub(super) async fn a_condemned_pack_is_not_reused(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let rows = three.index.commit_pack(&pack(1, [1, 2])).await?;
    three.index.commit_pack(&pack(2, [3])).await?;
    let packs = three.packs().await?;
    assert_eq!((packs[0].id, packs[0].size), (pack_id(1), 1_000_001));
    assert_eq!((packs[0].created_at, packs[0].used_at, packs[0].condemned_at), (NOW, NOW, None));
    let numbers = three.numbers().await?;
    assert_eq!(three.collect.page_packs(numbers[0], 5).await?, packs[1..]);
    assert_eq!(three.collect.count_chunks(&numbers).await?, 3);

    for limits in [StampLimits { created_before: NOW, ..ANY }, StampLimits { used_before: NOW, ..ANY }] {
        assert_eq!(three.collect.condemn_packs(&numbers, limits, NOW + 5).await?, [], "{limits:?}");
    }
    assert_eq!(three.collect.condemn_packs(&numbers[..1], ANY, NOW + 5).await?, numbers[..1]);
    assert_eq!(three.collect.condemn_packs(&numbers[..1], ANY, NOW + 9).await?, [], "it is already");
    assert_eq!(three.packs().await?[0].condemned_at, Some(NOW + 5));
    assert_eq!(three.index.find_chunks(&[chunk_id(1), chunk_id(3)]).await?[0], None);
    let target = CommitTarget::Object(object(1));
    let late = commit(&three.index, id, NarSource::New(Box::new(new_nar(1, &rows))), target).await;
    assert!(matches!(late, Err(Error::PackGone)), "{late:?}");

    assert_eq!(three.collect.spare_packs(&numbers).await?, 1);
    assert_eq!(three.packs().await?[0].condemned_at, None);
    let target = CommitTarget::Object(object(1));
    commit(&three.index, id, NarSource::New(Box::new(new_nar(1, &rows))), target).await?;
    Ok(())
}

pub(super) async fn removed_packs_are_doomed_and_moved_chunks_stay(three: Three) -> Result<()> {
    let old = three.index.commit_pack(&pack(1, [1, 2])).await?;
    three.index.commit_pack(&pack(2, [3])).await?;
    let numbers = three.numbers().await?;
    assert_eq!(three.collect.remove_packs(&numbers, NOW + 99, NOW).await?, crate::PacksRemoved::default());
    three.collect.condemn_packs(&numbers[..1], ANY, NOW + 5).await?;
    assert_eq!(
        three.collect.remove_packs(&numbers, NOW + 5, NOW).await?,
        crate::PacksRemoved::default(),
        "too early"
    );

    // A push stores chunk 2 again: its row moves, with its number.
    let new = three.index.commit_pack(&pack(4, [2])).await?;
    assert_eq!((new[0].number, new[0].pack_id), (old[1].number, pack_id(4)));
    assert_eq!(three.collect.moved_chunks(0, 9).await?, [(old[1].number, new[0].pack)]);
    assert_eq!(three.collect.moved_chunks(old[1].number, 9).await?, []);

    let removed = three.collect.remove_packs(&numbers, NOW + 6, NOW + 7).await?;
    assert_eq!((removed.packs, removed.bytes, removed.chunks), (vec![pack_id(1)], 1_000_001, 1));
    assert_eq!(three.numbers().await?, [numbers[1], new[0].pack]);
    let gone = three.index.load_chunks(&[run(old[0].number, 1)]).await;
    assert!(matches!(gone, Err(Error::ChunkGone { .. })), "{gone:?}");
    assert_eq!(three.index.load_chunks(&[run(old[1].number, 1)]).await?, new);
    assert_eq!(three.doomed(NOW + 6).await?, []);
    assert_eq!(three.doomed(NOW + 7).await?, [pack_id(1)]);
    three.collect.forget_doomed(&[pack_id(1)]).await?;
    assert_eq!(three.doomed(NOW + 7).await?, []);
    three.collect.reload_known_keys().await?;
    assert_eq!(three.index.find_chunks(&[chunk_id(1)]).await?, [None]);
    assert!(three.index.find_chunks(&[chunk_id(2)]).await?[0].is_some());
    Ok(())
}

pub(super) async fn packs_without_a_row_are_doomed_later(three: Three) -> Result<()> {
    three.index.commit_pack(&pack(1, [1])).await?;
    let all = [pack_id(3), pack_id(1), pack_id(2)];
    let without = async || -> Result<Vec<_>> {
        let packs = three.collect.packs_without_row(&all).await?;
        Ok(packs.into_iter().map(|pack| (pack.id, pack.fate)).collect())
    };
    assert_eq!(without().await?, [(pack_id(3), PackFate::Open), (pack_id(2), PackFate::Open)]);
    assert_eq!(three.collect.doom_packs(&[pack_id(2)], None).await?, 1);
    assert_eq!(
        three.collect.doom_packs(&all, Some(NOW + 5)).await?,
        1,
        "the others have a row, or are there"
    );
    assert_eq!(without().await?, [(pack_id(3), PackFate::Doomed), (pack_id(2), PackFate::Kept)]);
    assert_eq!(three.doomed(NOW + 4).await?, []);
    assert_eq!(three.doomed(i64::MAX - 1).await?, [pack_id(3)]);
    // Its row comes after all: the object stays.
    three.index.commit_pack(&pack(3, [3])).await?;
    assert_eq!(three.doomed(i64::MAX - 1).await?, []);
    // A pack that a listing found too early goes like any other.
    let number = three.packs().await?.iter().find(|row| row.id == pack_id(3)).expect("there").number;
    three.collect.condemn_packs(&[number], ANY, NOW + 5).await?;
    three.collect.remove_packs(&[number], NOW + 6, NOW + 2).await?;
    assert_eq!(three.doomed(NOW + 2).await?, [pack_id(3)]);
    // It lost its row at that time. What never had one may have copies of any chunk.
    let may_have_copies = async |since| three.collect.may_have_copies(since).await;
    assert!(may_have_copies(None).await? && may_have_copies(Some(NOW + 2)).await?);
    assert!(!may_have_copies(Some(NOW + 3)).await?);
    // In the order of their times, then of their ids, after any place.
    let mut later = [7, 8, 9].map(pack_id);
    later.sort_unstable_by_key(|pack| *pack.as_bytes());
    three.collect.doom_packs(&later, Some(NOW + 3)).await?;
    let mut doomed = Vec::new();
    while let [next] = three.collect.doomed_packs(doomed.last().copied(), 1, NOW + 3).await?[..] {
        doomed.push(next);
    }
    assert!(may_have_copies(Some(NOW + 9)).await?, "also before their time");
    let expected = [(pack_id(3), NOW + 2)].into_iter().chain(later.map(|pack| (pack, NOW + 3)));
    assert!(doomed.iter().map(|pack| (pack.id, pack.not_before)).eq(expected), "{doomed:?}");
    three.collect.forget_doomed(&later).await?;
    assert!(!may_have_copies(Some(NOW + 9)).await?, "a pack that is never deleted does not count");
    assert_eq!(three.collect.release_packs(&all, NOW + 20).await?, 1, "unless they are let go");
    assert_eq!(three.collect.release_packs(&all, NOW + 30).await?, 0);
    assert!(three.doomed(NOW + 20).await?.contains(&pack_id(2)) && may_have_copies(Some(NOW + 9)).await?);
    Ok(())
}

pub(super) async fn new_packs_without_a_row_may_go_early(three: Three) -> Result<()> {
    let rows = three.index.commit_pack(&pack(1, [1])).await?;
    let moves = vec![ChunkMove {
        number: rows[0].number,
        from: rows[0].pack,
        from_offset: rows[0].offset,
        checksum: rows[0].checksum,
        offset: 32,
    }];
    let new = CompactedPack {
        id: pack_id(7),
        size: 5_000,
        raw_bytes: 9_000,
        holed_bytes: 0,
        recompressed_level: 0,
        chunks: moves,
        new_frames: None,
    };
    three.collect.doom_packs(&[pack_id(6)], Some(NOW + 90)).await?;
    three.collect.doom_new_pack(new.id, NOW + 90).await?;
    assert!(three.collect.may_have_copies(Some(NOW + 99)).await?);
    assert_eq!(three.collect.hasten_new_packs(NOW + 89, NOW + 1).await?, 0, "it is too new");
    assert_eq!(three.collect.hasten_new_packs(NOW + 90, NOW + 1).await?, 1, "not what a listing found");
    assert_eq!(three.doomed(NOW + 1).await?, [new.id]);
    assert_eq!(three.collect.hasten_new_packs(NOW + 90, NOW + 1).await?, 0);
    // The process that stored it wakes up.
    let nothing: [u64; 0] = [];
    assert_eq!(three.collect.move_chunks(&new, NOW, NOW + 50).await?, nothing, "its object may be gone");
    assert_eq!(three.index.load_chunks(&[run(rows[0].number, 1)]).await?, rows);
    Ok(())
}

/// Commits that use a pack, and collectors that condemn it, at the same time.
pub(super) async fn racing_commits_and_condemnations_agree(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    for number in 0..30 {
        let rows = three.index.commit_pack(&pack(number, [number])).await?;
        let (index, collect, packs) =
            (Arc::clone(&three.index), Arc::clone(&three.collect), vec![rows[0].pack]);
        // The commit stamps: its time is later than the limit.
        let commit_it = tokio::spawn(async move {
            let nar = NarSource::New(Box::new(new_nar(number, &rows)));
            let commit = crate::NarCommit {
                known_keys: Vec::new(),
                cache: id,
                nar,
                target: CommitTarget::Object(object(number)),
                at: NOW + 10_000,
                grace_seconds: GRACE_SECONDS,
            };
            index.commit_nar(&commit).await
        });
        let condemn = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(u64::from(number) * 50)).await;
            collect.condemn_packs(&packs, ANY, NOW + 10_000).await
        });
        let (committed, condemned) = (commit_it.await.expect("no panic"), condemn.await.expect("no panic")?);
        match committed {
            Ok(_) => assert_eq!(condemned, [], "a live pack is not condemned"),
            Err(Error::PackGone) => assert_eq!(condemned.len(), 1),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) async fn chunks_move_only_from_where_they_were_read(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let rows = three.index.commit_pack(&pack(1, [1, 2, 3, 4])).await?;
    let numbers = three.numbers().await?;
    assert_eq!(three.packs().await?[0].chunks, Some(4));
    // Of the wrong pack, nothing is marked.
    let elsewhere = PackNumber(rows[2].pack.0 + 1);
    assert_eq!(three.collect.mark_chunks_damaged(elsewhere, &[rows[2].number], NOW).await?, 0);
    assert_eq!(three.collect.mark_chunks_damaged(rows[2].pack, &[rows[2].number], NOW).await?, 1);
    let packed = three.collect.pack_chunks(numbers[0], None, 9).await?;
    assert_eq!(packed.iter().map(|chunk| chunk.row.clone()).collect::<Vec<_>>(), rows);
    assert_eq!(packed.iter().map(|chunk| chunk.is_damaged).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!(three.collect.pack_chunks(numbers[0], Some(rows[0].number), 2).await?, packed[1..3]);

    let moves = |rows: &[ChunkRow]| -> Vec<ChunkMove> {
        let to = |(row, offset): (&ChunkRow, u64)| ChunkMove {
            number: row.number,
            from: row.pack,
            from_offset: row.offset,
            checksum: row.checksum,
            offset,
        };
        rows.iter().zip((32..).step_by(1_000)).map(to).collect()
    };
    let compacted = |number, chunks| {
        let id = pack_id(number);
        CompactedPack {
            id,
            size: 5_000,
            raw_bytes: 9_000,
            holed_bytes: 4_000,
            recompressed_level: 0,
            chunks,
            new_frames: None,
        }
    };
    let mut new = compacted(7, moves(&rows));
    // The second lies elsewhere than it was read, the fourth has other bytes.
    new.chunks[1].from_offset += 1;
    new.chunks[3].checksum ^= 1;
    let nothing: Vec<u64> = Vec::new();
    assert_eq!(three.collect.move_chunks(&new, NOW, NOW).await?, nothing, "it is not on the list");
    three.collect.doom_packs(&[new.id], Some(NOW + 5)).await?;
    assert_eq!(three.collect.move_chunks(&new, NOW, NOW + 5).await?, nothing, "its object may go soon");
    assert_eq!(three.numbers().await?, numbers);
    assert_eq!(three.collect.move_chunks(&new, NOW, NOW + 4).await?, [rows[0].number]);
    assert_eq!(three.collect.move_chunks(&new, NOW, NOW + 4).await?, nothing, "a second time");
    assert_eq!(three.doomed(NOW + 9).await?, []);
    let added = three.packs().await?[1];
    assert_eq!((added.id, added.size, added.chunks), (new.id, 5_000, Some(4)));
    assert_eq!((added.created_at, added.condemned_at), (NOW, None));
    let expected =
        ChunkRow { pack: added.number, pack_id: new.id, offset: new.chunks[0].offset, ..rows[0].clone() };
    assert_eq!(three.index.load_chunks(&[run(rows[0].number, 1)]).await?, std::slice::from_ref(&expected));
    assert_eq!(three.index.load_chunks(&[run(rows[1].number, 3)]).await?, rows[1..]);
    assert_eq!(three.index.find_chunks(&[chunk_id(1)]).await?, [Some(expected)]);
    assert_eq!(three.collect.moved_chunks(0, 9).await?, [(rows[0].number, added.number)]);

    // A commit that knows the old place goes through: the chunk is there.
    let target = CommitTarget::Object(object(1));
    commit(&three.index, id, NarSource::New(Box::new(new_nar(1, &rows[..1]))), target).await?;

    // A pack that no chunk moves to gets no row, and may be deleted.
    let again = compacted(8, moves(&rows[..1]));
    three.collect.doom_packs(&[again.id], Some(NOW + 100)).await?;
    assert_eq!(three.collect.move_chunks(&again, NOW + 1, NOW).await?, nothing, "it moved before");
    assert_eq!(three.doomed(NOW + 1).await?, [again.id]);
    assert_eq!(three.numbers().await?, [numbers[0], added.number]);
    Ok(())
}

pub(super) async fn chunks_get_new_frames_where_they_were_read(three: Three) -> Result<()> {
    let rows = three.index.commit_pack(&pack(1, [1, 2, 3])).await?;
    let numbers = three.numbers().await?;
    let to = |(row, offset): (&ChunkRow, u64)| ChunkMove {
        number: row.number,
        from: row.pack,
        from_offset: row.offset,
        checksum: row.checksum,
        offset,
    };
    let layout = |row: &ChunkRow| {
        let frames = row.layout.frames.iter().map(|frame| frame - 1).collect();
        ChunkLayout { frames, ..row.layout.clone() }
    };
    let mut new = CompactedPack {
        id: pack_id(7),
        size: 5_000,
        raw_bytes: 9_000,
        holed_bytes: 4_000,
        recompressed_level: 9,
        chunks: rows.iter().zip((32..).step_by(1_000)).map(to).collect(),
        new_frames: Some(rows.iter().map(|row| (row.checksum ^ 7, layout(row))).collect()),
    };
    // The second has other bytes by now.
    new.chunks[1].checksum ^= 1;
    three.collect.doom_packs(&[new.id], Some(NOW + 5)).await?;
    let moved = three.collect.move_chunks(&new, NOW, NOW).await?;
    assert_eq!(HashSet::from([rows[0].number, rows[2].number]), moved.into_iter().collect());
    let added = three.packs().await?[1];
    assert_eq!((added.id, added.recompressed_level), (new.id, 9));
    let expected = |place: usize| ChunkRow {
        pack: added.number,
        pack_id: new.id,
        offset: new.chunks[place].offset,
        checksum: rows[place].checksum ^ 7,
        layout: layout(&rows[place]),
        ..rows[place].clone()
    };
    let found = three.index.load_chunks(&[run(rows[0].number, 3)]).await?;
    assert_eq!(found, [expected(0), rows[1].clone(), expected(2)]);

    let levels = async || {
        let packs = three.packs().await?;
        Ok::<_, Error>(packs.iter().map(|pack| pack.recompressed_level).collect::<Vec<_>>())
    };
    assert_eq!(levels().await?, [0, 9]);
    three.collect.note_recompressed(&[numbers[0], added.number], 5).await?;
    assert_eq!(levels().await?, [5, 9], "a level never sinks");
    Ok(())
}

pub(super) async fn a_purge_is_noted_with_the_removal_and_kept_until_it_is_done(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let counts = async || three.index.count_purges(id, None).await;
    let counts_of = async |numbers: &[u32]| {
        let paths: Vec<_> = numbers.iter().map(|number| path_hash(*number)).collect();
        three.index.count_purges(id, Some(&paths)).await
    };
    for number in 1..=3 {
        push_object(&three.index, id, number).await?;
    }
    let runs: Vec<_> = three.marked(NOW).await?.into_iter().map(|nar| nar.runs).collect();
    // The NAR that the path had before is in its grace.
    push_object(&three.index, id, 4).await?;
    three.index.remove_object(id, &path_hash(3), Removal::WithGraceUntil(NOW + 9), NOW).await?;
    let remove = async |number, purge| {
        let removed = three.index.remove_for_cause(id, &path_hash(number), None, purge, NOW).await?;
        Ok::<_, Error>((removed.was_there, removed.is_purged))
    };
    assert_eq!(remove(4, false).await?, (true, false));
    assert_eq!(three.collect.open_purges(9).await?, []);
    assert_eq!(counts().await?, PurgeCounts { waiting: 0, untried: 0 });
    assert_eq!(three.jobs.list_jobs(None, 9).await?, []);
    let notes = three.collect.purge_notes(PurgeId(0), 9).await?;
    assert_eq!(three.collect.purge_notes(notes[0].id, 9).await?, []);
    assert_eq!((notes.len(), notes[0].removed_at), (1, NOW));

    assert_eq!(remove(1, true).await?, (true, true));
    assert_eq!(remove(1, true).await?, (false, true), "it is noted");
    assert_eq!(remove(3, true).await?, (false, true), "it was in its grace");
    assert_eq!(remove(5, true).await?, (false, false), "it was never there");
    let purges = three.collect.open_purges(9).await?;
    assert_eq!(purges.iter().map(|purge| purge.runs.clone()).collect::<Vec<_>>(), [&runs[0][..], &runs[2]]);
    assert_eq!(three.collect.open_purges(1).await?, purges[..1]);
    assert_eq!(counts().await?, PurgeCounts { waiting: 2, untried: 2 });
    assert_eq!(counts_of(&[1, 1, 5]).await?, PurgeCounts { waiting: 1, untried: 1 });
    assert_eq!(counts_of(&[1, 3]).await?, PurgeCounts { waiting: 2, untried: 2 });
    assert_eq!(counts_of(&[4]).await?, PurgeCounts { waiting: 0, untried: 0 }, "nobody asked for its bytes");
    assert_eq!(counts_of(&[]).await?, PurgeCounts { waiting: 0, untried: 0 });
    let jobs = three.jobs.list_jobs(None, 9).await?;
    assert_eq!(jobs.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), [JobKind::Collect.as_str()]);

    // A purge that a collection has not tried opens another one at its end.
    let end = async |now| {
        let lease = three.jobs.lease_job(JobKind::Collect, "a", now, now + 60).await?.expect("it is open");
        three.collect.finish_collection(&lease, "{}", false, now).await
    };
    end(NOW).await?;
    three.collect.end_purges(&[purges[0].id], true, NOW).await?;
    three.collect.end_purges(&[purges[1].id], false, NOW).await?;
    assert_eq!(counts().await?, PurgeCounts { waiting: 1, untried: 0 });
    end(NOW + 100).await?;
    assert_eq!(three.jobs.list_jobs(None, 9).await?, []);

    // A path that was removed without its bytes: they can be asked for until they are gone.
    assert_eq!(remove(4, true).await?, (false, true));
    assert_eq!(three.collect.purge_notes(PurgeId(0), 9).await?, []);
    three.collect.forget_purge_notes(&[notes[0].id]).await?;
    assert_eq!(counts().await?, PurgeCounts { waiting: 2, untried: 1 }, "it was asked for");
    assert_eq!(counts_of(&[3]).await?, PurgeCounts { waiting: 1, untried: 0 });
    assert_eq!(counts_of(&[4]).await?, PurgeCounts { waiting: 1, untried: 1 });
    let order = async || {
        let open = three.collect.open_purges(9).await?;
        Ok::<_, Error>(open.iter().map(|purge| purge.id).collect::<Vec<_>>())
    };
    assert_eq!(order().await?, [notes[0].id, purges[1].id], "the one that was not tried");
    three.collect.end_purges(&[notes[0].id], false, NOW + 1).await?;
    assert_eq!(order().await?, [purges[1].id, notes[0].id], "the one that was tried longest ago");
    // Asking again is another try.
    assert_eq!(remove(4, true).await?, (false, true));
    assert_eq!(counts().await?, PurgeCounts { waiting: 2, untried: 1 });
    end(NOW + 200).await?;
    assert_eq!(three.jobs.list_jobs(None, 9).await?.len(), 1, "a collection for that");
    three.collect.end_purges(&[notes[0].id], true, NOW + 2).await?;
    assert_eq!(remove(4, true).await?, (false, false));
    assert_eq!(remove(2, false).await?, (true, false));
    let note = three.collect.purge_notes(PurgeId(0), 9).await?.pop().expect("each removal leaves one");
    three.collect.forget_purge_notes(&[note.id]).await?;
    assert_eq!(remove(2, true).await?, (false, false), "its bytes were gone");

    let run = runs[2][0];
    let places = three.collect.find_places(&run, None, 9).await?;
    assert_eq!(places.len(), run.count as usize);
    assert_eq!(places[0].0, run.first);
    assert_eq!(three.collect.find_places(&run, Some(run.first + u64::from(run.count) - 1), 9).await?, []);
    Ok(())
}

pub(super) async fn packs_are_condemned_at_once_whatever_their_stamps(three: Three) -> Result<()> {
    let id = cache(&three.index, "main").await?;
    let rows = three.index.commit_pack(&pack(1, [1])).await?;
    let numbers = three.numbers().await?;
    three.collect.condemn_now(&numbers, NOW).await?;
    let condemned = three.packs().await?[0];
    assert_eq!(condemned.condemned_at, Some(condemned.used_at + 1), "later than the stamp");
    let target = CommitTarget::Object(object(1));
    let late = commit(&three.index, id, NarSource::New(Box::new(new_nar(1, &rows))), target).await;
    assert!(matches!(late, Err(Error::PackGone)), "{late:?}");
    three.collect.condemn_now(&numbers, NOW + 50).await?;
    assert_eq!(three.packs().await?[0], condemned, "it was before");
    let removed = three.collect.remove_packs(&numbers, NOW + 2, NOW).await?;
    assert_eq!(removed.packs, [pack_id(1)]);
    Ok(())
}
