//! What publishing remembers: leases, what is pending, what lies in a target.

use std::sync::Arc;

use dormer_format::EncodingTag;
use dormer_nix::{BuildId, DocumentName, NarHash, StorePathHash};

use super::fixtures::{NOW, cache, commit, nar_hash, new_nar, object, pack, path_hash, push_object, tag};
use crate::{
    AbsentPage, CacheId, CacheScan, CommitTarget, DocumentRows, Drift, Error, Follower, Forget, FoundNarinfo,
    Index, JobIndex, Lease, NarRows, NarSource, NewDocument, NewNar, NotedFrom, ObjectRows, OutboxPosition,
    PendingVerdicts, PublishBacklog, PublishDone, PublishIndex, PublishIntent, PublishState, PublishTarget,
    PublishedCache, PublishedDocument, PublishedFile, PublishedNar, Removal, Removals, RemovalsBegun, Result,
    WrittenDocument,
};

/// What every case works on: the contracts of one adapter.
pub(super) struct Both {
    pub(super) index: Arc<dyn Index>,
    pub(super) publish: Arc<dyn PublishIndex>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

const HOUR: i64 = 3_600;

async fn target(both: &Both) -> Result<(PublishTarget, Lease)> {
    let target = both.publish.open_target("edge", "s3://bucket").await?;
    let lease = both.publish.acquire_lease(target.id, "me", NOW, NOW + HOUR).await?.expect("nobody holds it");
    Ok((target, lease))
}

fn nar(number: u32) -> (NarHash, EncodingTag) {
    (nar_hash(number), tag(number))
}

fn intent(number: u32, references: &[u32]) -> PublishIntent {
    PublishIntent {
        hash: path_hash(number),
        nar: nar(number),
        file_size: 100 + u64::from(number),
        references: references.iter().map(|number| path_hash(*number)).collect(),
        documents: vec![],
    }
}

fn done(number: u32, references: &[u32]) -> PublishDone {
    PublishDone {
        hash: path_hash(number),
        nar: nar(number),
        digest: vec![7; 32],
        etag: Some("\"e\"".to_owned()),
        upstream: false,
        references: references.iter().map(|number| path_hash(*number)).collect(),
        documents: vec![],
        stale_documents: vec![],
    }
}

fn uploaded(number: u32) -> PublishedNar {
    PublishedNar {
        nar: nar(number),
        uploaded: true,
        file_size: 100 + u64::from(number),
        file_hash: Some(nar_hash(1_000 + number)),
        etag: None,
        delete_after: None,
    }
}

async fn publish(both: &Both, lease: &Lease, cache: CacheId, number: u32, references: &[u32]) -> Result<()> {
    both.publish.begin_publishing(lease, cache, &[intent(number, references)]).await?;
    both.publish.note_uploaded(lease, cache, &[uploaded(number)]).await?;
    both.publish.finish_publishing(lease, cache, &[done(number, references)], NOW + HOUR).await
}

fn hashes(numbers: &[u32]) -> Vec<StorePathHash> {
    let mut hashes: Vec<_> = numbers.iter().map(|number| path_hash(*number)).collect();
    hashes.sort();
    hashes
}

fn settled(numbers: &[u32]) -> PendingVerdicts {
    PendingVerdicts { done: hashes(numbers), ..PendingVerdicts::default() }
}

fn gone(numbers: &[u32]) -> PendingVerdicts {
    PendingVerdicts { removed: hashes(numbers), ..PendingVerdicts::default() }
}

async fn pending(both: &Both, lease: &Lease, cache: CacheId) -> Result<Vec<StorePathHash>> {
    let rows = both.publish.pending_objects(lease.target, cache, None, 100).await?;
    let mut found: Vec<_> = rows.into_iter().map(|row| row.hash).collect();
    found.sort();
    Ok(found)
}

/// Notes the whole cache, two objects at a time.
async fn note_all(both: &Both, lease: &Lease, cache: CacheId, at: i64) -> Result<()> {
    let mut scan = CacheScan::Objects(None);
    while let Some(next) = both.publish.note_cache_step(lease, cache, scan.clone(), 2, at).await? {
        assert_ne!(next, scan, "a step goes on");
        scan = next;
    }
    Ok(())
}

/// The log of a path's derivation.
fn log(number: u32) -> DocumentName {
    let derivation = format!("{}-package-{number}.drv", path_hash(number));
    DocumentName::Log(derivation.parse().expect("a store path"))
}

/// What the lab has of these is looked at.
fn kept(numbers: &[u32]) -> Removals {
    Removals { kept: hashes(numbers), ..Removals::default() }
}

/// A page of NAR files that may be deleted at this time.
async fn due(both: &Both, lease: &Lease, cache: CacheId, at: i64) -> Result<Vec<PublishedNar>> {
    both.publish.published_nars(lease.target, cache, NarRows::Due { at, limit: 10 }).await
}

/// NAR files with these numbers.
async fn nars(both: &Both, lease: &Lease, cache: CacheId, numbers: &[u32]) -> Result<Vec<PublishedNar>> {
    let hashes: Vec<NarHash> = numbers.iter().map(|number| nar_hash(*number)).collect();
    both.publish.published_nars(lease.target, cache, NarRows::Of(&hashes)).await
}

/// Forgets everything of a cache, row by row.
async fn forget_all(both: &Both, lease: &Lease, cache: CacheId) -> Result<()> {
    while !both.publish.forget_rows(lease, cache, Forget::All, 1).await? {}
    Ok(())
}

/// Begins to remove objects and takes their referrers along; returns how many those were.
async fn remove(
    both: &Both,
    lease: &Lease,
    cache: CacheId,
    hashes: &[StorePathHash],
    at: i64,
) -> Result<u64> {
    let removals = Removals { gone: hashes.to_vec(), ..Removals::default() };
    both.publish.begin_removing(lease, cache, &removals, at).await?;
    let mut taken = 0;
    loop {
        let step = both.publish.take_referrers(lease, cache, at).await?;
        taken += step.taken;
        if !step.more {
            return Ok(taken);
        }
    }
}

async fn state(both: &Both, lease: &Lease, cache: CacheId, number: u32) -> Result<Option<PublishState>> {
    let found =
        both.publish.published_objects(lease.target, cache, ObjectRows::Of(&[path_hash(number)])).await?;
    Ok(found.first().map(|object| object.state))
}

pub(super) async fn a_target_is_made_once_and_stays_where_it_is(both: Both) -> Result<()> {
    let first = both.publish.open_target("edge", "s3://bucket").await?;
    assert_eq!((first.cursor, first.holder.clone(), first.ran_at), (OutboxPosition::START, None, None));
    assert!(!first.compared, "nobody knows what is there");
    let again = both.publish.open_target("edge", "s3://other").await?;
    assert_eq!(again, first);
    let other = both.publish.open_target("other", "folder").await?;
    assert_eq!(both.publish.list_targets().await?, [first.clone(), other]);
    let (_, lease) = target(&both).await?;
    both.publish.move_target(&lease, "s3://other", false).await?;
    both.publish.release_lease(&lease, NOW + 1, Some("it broke")).await?;
    let moved = both.publish.open_target("edge", "").await?;
    assert_eq!((moved.location.as_str(), moved.compared), ("s3://other", false));
    assert_eq!((moved.ran_at, moved.error), (Some(NOW + 1), Some(("it broke".to_owned(), NOW + 1))));
    Ok(())
}

pub(super) async fn a_lease_is_given_to_one_at_a_time(both: Both) -> Result<()> {
    let (target, lease) = target(&both).await?;
    assert!(lease.was_released);
    let acquire = |holder, now| both.publish.acquire_lease(target.id, holder, now, now + HOUR);
    assert_eq!(acquire("you", NOW + 1).await?, None);
    assert_eq!(acquire("me", NOW + 1).await?, None, "two programs may have one name");
    both.publish.renew_lease(&Lease { ends_at: NOW + 2 * HOUR, ..lease }).await?;
    assert_eq!(acquire("you", NOW + HOUR).await?, None);
    let next = acquire("you", NOW + 2 * HOUR).await?.expect("the lease has ended");
    assert!(next.fence > lease.fence && !next.was_released);
    assert!(matches!(
        both.publish.renew_lease(&Lease { ends_at: NOW + 9 * HOUR, ..lease }).await,
        Err(Error::LeaseLost)
    ));
    assert!(matches!(both.publish.release_lease(&lease, NOW, None).await, Err(Error::LeaseLost)));
    both.publish.release_lease(&next, NOW, None).await?;
    assert!(matches!(both.publish.renew_lease(&next).await, Err(Error::LeaseLost)), "given back is lost");
    let last = acquire("me", NOW).await?.expect("it was given back");
    assert!(last.was_released && last.fence > next.fence);
    Ok(())
}

pub(super) async fn a_lost_lease_writes_nothing(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (target, old) = target(&both).await?;
    both.publish.acquire_lease(target.id, "you", NOW + HOUR, NOW + 2 * HOUR).await?.expect("it has ended");
    let (one, key) = (hashes(&[1]), [nar(1)]);
    let removals = Removals { gone: one.clone(), ..Removals::default() };
    let drift = Drift { narinfos: one.clone(), nars: key.to_vec(), ..Drift::default() };
    let position = OutboxPosition { transaction: 1, number: 1 };
    let outcomes = [
        both.publish.note_pending(&old, &[(id, path_hash(1), NOW)], NotedFrom::Outbox(position)).await,
        note_all(&both, &old, id, NOW).await,
        both.publish.settle_pending(&old, id, &settled(&[1]), NOW).await,
        both.publish.forget_rows(&old, id, Forget::All, 9).await.map(drop),
        both.publish.forget_rows(&old, id, Forget::Pending, 9).await.map(drop),
        both.publish.forget_rows(&old, id, Forget::RemovedBefore(NOW), 9).await.map(drop),
        publish(&both, &old, id, 1, &[]).await,
        both.publish.note_uploaded(&old, id, &[uploaded(1)]).await,
        both.publish.finish_publishing(&old, id, &[done(1, &[])], NOW).await,
        both.publish.begin_removing(&old, id, &removals, NOW).await.map(drop),
        both.publish.take_referrers(&old, id, NOW).await.map(drop),
        both.publish.finish_removing(&old, id, &one, NOW, NOW).await,
        both.publish.take_documents(&old, id, &[(path_hash(1), log(1))], NOW).await.map(drop),
        both.publish.begin_deleting_nars(&old, id, &key).await,
        both.publish.finish_deleting_nars(&old, id, &key).await,
        both.publish.note_drift(&old, id, &drift, NOW, Some(CacheScan::Nars(None))).await,
        both.publish.move_target(&old, "elsewhere", true).await,
        both.publish.clear_missed_changes(&old).await,
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::LeaseLost)), "{outcome:?}");
    }
    let target = both.publish.open_target("edge", "").await?;
    assert_eq!((target.cursor, target.location.as_str()), (OutboxPosition::START, "s3://bucket"));
    assert_eq!(state(&both, &old, id, 1).await?, None);
    Ok(())
}

pub(super) async fn pending_objects_come_oldest_first_and_once(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    let position = OutboxPosition { transaction: 3, number: 4 };
    let noted = [(id, path_hash(1), NOW + 2), (id, path_hash(2), NOW - 1), (id, path_hash(1), NOW)];
    both.publish.note_pending(&lease, &noted, NotedFrom::Outbox(position)).await?;
    both.publish.note_pending(&lease, &[(id, path_hash(2), NOW + 7)], NotedFrom::Referrers).await?;
    both.publish.note_pending(&lease, &[(id, path_hash(2), NOW + 1)], NotedFrom::Outbox(position)).await?;
    assert_eq!(both.publish.open_target("edge", "").await?.cursor, position);
    let waiting = PendingVerdicts {
        waiting: vec![(path_hash(2), "it rains".to_owned())],
        ..PendingVerdicts::default()
    };
    both.publish.settle_pending(&lease, id, &waiting, NOW).await?;
    let rows = both.publish.pending_objects(lease.target, id, None, 100).await?;
    let seen: Vec<_> = rows.iter().map(|row| (row.hash, row.since, row.reason.as_deref())).collect();
    assert_eq!(seen, [(path_hash(2), NOW + 1, Some("it rains")), (path_hash(1), NOW + 2, None)]);
    let rest = both.publish.pending_objects(lease.target, id, Some((NOW + 1, path_hash(2))), 100).await?;
    assert_eq!(rest.len(), 1);
    assert_eq!(both.publish.pending_objects(lease.target, id, None, 1).await?.len(), 1);
    let counts = both.publish.publish_counts(lease.target, id).await?;
    assert_eq!((counts.pending, counts.pending_since, counts.published), (2, Some(NOW + 1), 0));
    both.publish.settle_pending(&lease, id, &settled(&[1, 2]), NOW).await?;
    assert_eq!(pending(&both, &lease, id).await?, []);
    Ok(())
}

pub(super) async fn a_whole_cache_can_be_noted(both: Both) -> Result<()> {
    let (id, other) = (cache(&both.index, "main").await?, cache(&both.index, "other").await?);
    for number in 1..=3 {
        push_object(&both.index, id, number).await?;
    }
    push_object(&both.index, other, 4).await?;
    let (_, lease) = target(&both).await?;
    publish(&both, &lease, id, 9, &[]).await?;
    note_all(&both, &lease, id, NOW).await?;
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1, 2, 3, 9]));
    let all = both.publish.pending_absent(lease.target, id, None, 10).await?;
    assert_eq!((all.absent, all.next), (hashes(&[9]), hashes(&[1, 2, 3, 9]).last().copied()));
    assert_eq!(both.publish.pending_absent(lease.target, id, Some(path_hash(9)), 10).await?.absent, []);
    // A page ends after so many objects, not after so many that are absent.
    let first = both.publish.pending_absent(lease.target, id, None, 1).await?;
    assert_eq!(first.next, hashes(&[1, 2, 3, 9]).first().copied());
    assert_eq!(both.publish.pending_absent(lease.target, id, all.next, 1).await?, AbsentPage::default());
    let found = both.publish.find_objects(id, &hashes(&[1, 2, 9])).await?;
    assert_eq!(found.len(), 2);
    // Nothing of it is looked at any more, and nothing else is forgotten.
    note_all(&both, &lease, other, NOW).await?;
    let mut pages = 1;
    while !both.publish.forget_rows(&lease, id, Forget::Pending, 3).await? {
        pages += 1;
    }
    assert_eq!((pages, pending(&both, &lease, id).await?), (2, Vec::new()));
    assert_eq!(pending(&both, &lease, other).await?, hashes(&[4]));
    assert!(state(&both, &lease, id, 9).await?.is_some());
    Ok(())
}

pub(super) async fn what_was_removed_is_remembered_for_a_while(both: Both) -> Result<()> {
    let (id, other) = (cache(&both.index, "main").await?, cache(&both.index, "other").await?);
    let (_, lease) = target(&both).await?;
    both.publish
        .note_pending(&lease, &[(id, path_hash(1), NOW), (id, path_hash(4), NOW)], NotedFrom::Referrers)
        .await?;
    both.publish.settle_pending(&lease, id, &gone(&[1, 2]), NOW).await?;
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[4]));
    let find = async |numbers: &[u32]| -> Result<Vec<StorePathHash>> {
        let mut found = both.publish.find_removed(lease.target, id, &hashes(numbers)).await?;
        found.sort_unstable();
        Ok(found)
    };
    let mut both_of_them = hashes(&[1, 2]);
    both_of_them.sort_unstable();
    assert_eq!(find(&[1, 2, 3]).await?, both_of_them);
    assert_eq!(find(&[4]).await?, hashes(&[4]), "it was there, and nobody has looked since");
    assert_eq!(both.publish.find_removed(lease.target, other, &hashes(&[1])).await?, []);
    // A path that waits for a removed one remembers it by itself from then on.
    let lost = PendingVerdicts { lost: vec![(path_hash(4), path_hash(1))], ..PendingVerdicts::default() };
    both.publish.settle_pending(&lease, id, &lost, NOW).await?;
    let waiting = both.publish.pending_objects(lease.target, id, None, 10).await?;
    assert_eq!(waiting.iter().map(|row| row.lost).collect::<Vec<_>>(), [Some(path_hash(1))]);
    // Published again, or long ago.
    publish(&both, &lease, id, 2, &[]).await?;
    both.publish.settle_pending(&lease, id, &gone(&[3]), NOW + 10).await?;
    assert_eq!(find(&[1, 2, 3]).await?.len(), 2);
    let forget = |before, limit| both.publish.forget_rows(&lease, id, Forget::RemovedBefore(before), limit);
    assert!(!forget(NOW + 10, 1).await?, "a full page may not be the last one");
    assert!(forget(NOW + 10, 1).await?);
    assert_eq!(find(&[1, 2, 3]).await?, hashes(&[3]));
    both.publish.settle_pending(&lease, id, &gone(&[3]), NOW + 20).await?;
    assert!(forget(NOW + 20, 9).await?);
    assert_eq!(find(&[3]).await?, hashes(&[3]));
    forget_all(&both, &lease, id).await?;
    assert_eq!(find(&[3]).await?, []);
    Ok(())
}

pub(super) async fn an_object_is_there_when_it_is_finished(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    both.publish.note_pending(&lease, &[(id, path_hash(1), NOW)], NotedFrom::Referrers).await?;
    both.publish.begin_publishing(&lease, id, &[intent(1, &[2])]).await?;
    assert_eq!(state(&both, &lease, id, 1).await?, Some(PublishState::Writing));
    let there = nars(&both, &lease, id, &[1, 2]).await?;
    assert_eq!(there.len(), 1);
    assert!(!there[0].uploaded && there[0].file_hash.is_none());
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1]));
    both.publish.note_uploaded(&lease, id, &[uploaded(1)]).await?;
    assert_eq!(nars(&both, &lease, id, &[1]).await?, [uploaded(1)]);
    both.publish.finish_publishing(&lease, id, &[done(1, &[2])], NOW).await?;
    let found =
        both.publish.published_objects(lease.target, id, ObjectRows::Of(&hashes(&[1]))).await?.remove(0);
    assert_eq!((found.state, found.nar, found.digest.len()), (PublishState::Published, nar(1), 32));
    assert_eq!(found.etag.as_deref(), Some("\"e\""));
    assert_eq!(pending(&both, &lease, id).await?, []);
    // Written again, it stays there meanwhile, and an uploaded NAR stays uploaded.
    both.publish.begin_publishing(&lease, id, &[intent(1, &[2])]).await?;
    assert_eq!(state(&both, &lease, id, 1).await?, Some(PublishState::Published));
    assert_eq!(nars(&both, &lease, id, &[1]).await?, [uploaded(1)]);
    let page = |after| ObjectRows::Page { bytes: 0..=255, after, limit: 10 };
    assert_eq!(both.publish.published_objects(lease.target, id, page(None)).await?.len(), 1);
    assert_eq!(both.publish.published_objects(lease.target, id, page(Some(path_hash(1)))).await?, []);
    let counts = both.publish.publish_counts(lease.target, id).await?;
    assert_eq!((counts.published, counts.nars, counts.file_bytes), (1, 1, 101));
    Ok(())
}

pub(super) async fn a_nar_that_nothing_names_may_go(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    publish(&both, &lease, id, 1, &[]).await?;
    // The object gets another NAR.
    let other = PublishIntent { nar: nar(5), ..intent(1, &[]) };
    both.publish.begin_publishing(&lease, id, &[other]).await?;
    both.publish
        .finish_publishing(&lease, id, &[PublishDone { nar: nar(5), ..done(1, &[]) }], NOW + 10)
        .await?;
    let due = |at| due(&both, &lease, id, at);
    // All of them, page by page.
    let mut listed = Vec::new();
    let mut after = None;
    let page = |after| NarRows::Page { bytes: 0..=255, after, limit: 1 };
    while let [one] = &both.publish.published_nars(lease.target, id, page(after)).await?[..] {
        after = Some(one.nar);
        listed.push(one.nar);
    }
    let mut all = [nar(1), nar(5)];
    all.sort_by_key(|(hash, tag)| (hash.as_bytes()[31], *hash.as_bytes(), *tag.as_bytes()));
    assert_eq!(listed, all);
    assert_eq!(due(NOW + 9).await?, []);
    assert_eq!(due(NOW + 10).await?.iter().map(|due| due.nar).collect::<Vec<_>>(), [nar(1)]);
    let ended = both.publish.begin_removing(&lease, id, &kept(&[1, 9]), NOW + 10).await?;
    assert_eq!(ended, RemovalsBegun { leaving: 0, unserved: 0, graces_ended: 1 });
    // Named again before it went.
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: nar(1), ..intent(2, &[]) }]).await?;
    assert_eq!(due(NOW + 99).await?, []);
    both.publish.finish_publishing(&lease, id, &[PublishDone { nar: nar(1), ..done(2, &[]) }], NOW).await?;
    // Two objects with one NAR: it stays until both are gone.
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: nar(1), ..intent(3, &[]) }]).await?;
    both.publish.finish_publishing(&lease, id, &[PublishDone { nar: nar(1), ..done(3, &[]) }], NOW).await?;
    remove(&both, &lease, id, &hashes(&[2]), NOW).await?;
    both.publish.finish_removing(&lease, id, &hashes(&[2]), NOW, NOW).await?;
    assert_eq!(due(NOW + 99).await?, []);
    remove(&both, &lease, id, &hashes(&[3]), NOW).await?;
    both.publish.finish_removing(&lease, id, &hashes(&[3]), NOW + HOUR, NOW + 20).await?;
    assert_eq!(due(NOW + 19).await?, []);
    assert_eq!(both.publish.begin_removing(&lease, id, &kept(&[1, 2, 3]), NOW).await?.graces_ended, 1);
    assert_eq!(due(NOW).await?.len(), 1, "what something names has no deadline");
    both.publish.begin_deleting_nars(&lease, id, &[nar(1)]).await?;
    assert!(!due(NOW).await?[0].uploaded);
    both.publish.finish_deleting_nars(&lease, id, &[nar(1), nar(5)]).await?;
    assert_eq!(due(NOW).await?, []);
    assert_eq!(nars(&both, &lease, id, &[5]).await?.len(), 1);
    Ok(())
}

pub(super) async fn an_intent_that_came_to_nothing_leaves_nothing(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    both.publish.begin_publishing(&lease, id, &[intent(1, &[])]).await?;
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: nar(5), ..intent(1, &[]) }]).await?;
    remove(&both, &lease, id, &hashes(&[1]), NOW).await?;
    both.publish.finish_removing(&lease, id, &hashes(&[1]), NOW + HOUR, NOW).await?;
    assert_eq!(due(&both, &lease, id, NOW).await?.len(), 2);
    assert_eq!(state(&both, &lease, id, 1).await?, None);
    Ok(())
}

pub(super) async fn referrers_are_removed_first_and_know_what_they_lost(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    // 3 → 2 → 1, 4 → 1, 5 alone.
    for (number, references) in [(1, vec![]), (2, vec![1]), (3, vec![2]), (4, vec![1]), (5, vec![])] {
        publish(&both, &lease, id, number, &references).await?;
    }
    let removable = async |any| -> Result<Vec<StorePathHash>> {
        Ok(both.publish.removable(lease.target, id, any, None, 10).await?.hashes)
    };
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW + 5).await?, 3);
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW + 5).await?, 0);
    let rows = both.publish.pending_objects(lease.target, id, None, 10).await?;
    let mut lost: Vec<_> = rows.iter().map(|row| (row.hash, row.since, row.lost)).collect();
    lost.sort();
    let mut expected = vec![
        (path_hash(2), NOW + 5, Some(path_hash(1))),
        (path_hash(3), NOW + 5, Some(path_hash(2))),
        (path_hash(4), NOW + 5, Some(path_hash(1))),
    ];
    expected.sort();
    assert_eq!(lost, expected);
    let mut order = Vec::new();
    loop {
        let mut next = removable(false).await?;
        if next.is_empty() {
            break;
        }
        next.sort();
        order.push(next.clone());
        both.publish.finish_removing(&lease, id, &next, NOW, NOW).await?;
    }
    assert_eq!(order, [hashes(&[3, 4]), hashes(&[2]), hashes(&[1])]);
    assert_eq!(state(&both, &lease, id, 5).await?, Some(PublishState::Published));
    Ok(())
}

pub(super) async fn what_an_upstream_key_signed_takes_nothing_along(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    publish(&both, &lease, id, 1, &[]).await?;
    both.publish
        .finish_publishing(&lease, id, &[PublishDone { upstream: true, ..done(1, &[]) }], NOW)
        .await?;
    publish(&both, &lease, id, 2, &[1]).await?;
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW).await?, 0);
    assert_eq!(both.publish.removable(lease.target, id, false, None, 10).await?.hashes, hashes(&[1]));
    assert_eq!(state(&both, &lease, id, 2).await?, Some(PublishState::Published));
    Ok(())
}

pub(super) async fn a_circle_can_be_removed(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    publish(&both, &lease, id, 1, &[2]).await?;
    publish(&both, &lease, id, 2, &[1]).await?;
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW).await?, 1);
    assert_eq!(both.publish.removable(lease.target, id, false, None, 10).await?.hashes, []);
    let mut any = both.publish.removable(lease.target, id, true, None, 10).await?.hashes;
    any.sort();
    assert_eq!(any, hashes(&[1, 2]));
    Ok(())
}

pub(super) async fn new_references_replace_the_old_ones(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    for (number, references) in [(1, vec![]), (2, vec![]), (3, vec![1])] {
        publish(&both, &lease, id, number, &references).await?;
    }
    both.publish.begin_publishing(&lease, id, &[intent(3, &[2])]).await?;
    // While it is written again, both count.
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW).await?, 1);
    publish(&both, &lease, id, 3, &[2]).await?;
    assert_eq!(remove(&both, &lease, id, &hashes(&[1]), NOW).await?, 0);
    assert_eq!(remove(&both, &lease, id, &hashes(&[2]), NOW).await?, 1);
    Ok(())
}

pub(super) async fn drift_is_looked_at_again(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    for number in 1..=3 {
        publish(&both, &lease, id, number, &[]).await?;
    }
    let drift = Drift { narinfos: hashes(&[1]), nars: vec![nar(2)], ..Drift::default() };
    both.publish.note_drift(&lease, id, &drift, NOW, Some(CacheScan::Nars(Some(7)))).await?;
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1, 2]));
    assert_eq!(state(&both, &lease, id, 1).await?, Some(PublishState::Writing));
    assert_eq!(state(&both, &lease, id, 2).await?, Some(PublishState::Writing));
    assert_eq!(state(&both, &lease, id, 3).await?, Some(PublishState::Published));
    assert!(!nars(&both, &lease, id, &[2]).await?[0].uploaded);
    // Files that nobody wrote down go after a grace; one with a row stays what it is.
    let found_nars = vec![(nar(2), 9), (nar(8), 9)];
    let drift = Drift { found_nars, grace_ends_at: NOW + HOUR, ..Drift::default() };
    both.publish.note_drift(&lease, id, &drift, NOW, None).await?;
    assert_eq!(due(&both, &lease, id, NOW).await?, []);
    let after_grace = due(&both, &lease, id, NOW + HOUR).await?;
    assert_eq!(after_grace.iter().map(|nar| (nar.nar, nar.file_size)).collect::<Vec<_>>(), [(nar(8), 9)]);
    publish(&both, &lease, id, 8, &[]).await?;
    assert_eq!(due(&both, &lease, id, NOW + HOUR).await?, []);
    // A NAR with other headers is sent again, and what names it stays published meanwhile.
    let drift = Drift { outdated_nars: vec![nar(3)], ..Drift::default() };
    both.publish.note_drift(&lease, id, &drift, NOW, None).await?;
    assert_eq!(state(&both, &lease, id, 3).await?, Some(PublishState::Published));
    assert!(!nars(&both, &lease, id, &[3]).await?[0].uploaded);
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1, 2, 3]));
    Ok(())
}

pub(super) async fn what_was_found_leaves_without_haste(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    let narinfo = |number, digest: Option<Vec<u8>>| FoundNarinfo {
        hash: path_hash(number),
        nar: nar(number),
        file_size: 9,
        digest,
        etag: None,
        upstream: false,
        references: vec![],
    };
    // The lab knows nothing of 1, and removed 2.
    let found_narinfos = vec![narinfo(1, None), narinfo(2, Some(vec![7]))];
    let drift = Drift { found_narinfos, ..Drift::default() };
    both.publish.note_drift(&lease, id, &drift, NOW, None).await?;
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1, 2]));
    let there = both.publish.published_objects(lease.target, id, ObjectRows::Of(&hashes(&[1, 2]))).await?;
    let mut found: Vec<_> = there.iter().map(|row| (row.hash, row.was_found())).collect();
    found.sort_unstable();
    let mut expected = [(path_hash(1), true), (path_hash(2), false)];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(there.iter().all(|row| row.state == PublishState::Published));
    let gone = Removals { gone: hashes(&[1, 2]), ..Removals::default() };
    let begun = both.publish.begin_removing(&lease, id, &gone, NOW).await?;
    assert_eq!(begun, RemovalsBegun { leaving: 2, unserved: 1, graces_ended: 0 });
    assert!(begun.is_urgent());
    both.publish.finish_removing(&lease, id, &hashes(&[1, 2]), NOW + HOUR, NOW).await?;
    let due_at = async |at| -> Result<Vec<_>> {
        let mut due: Vec<_> = due(&both, &lease, id, at).await?.iter().map(|nar| nar.nar).collect();
        due.sort_unstable();
        Ok(due)
    };
    assert_eq!(due_at(NOW).await?, [nar(2)]);
    let mut all = [nar(1), nar(2)];
    all.sort_unstable();
    assert_eq!(due_at(NOW + HOUR).await?, all);
    Ok(())
}

pub(super) async fn a_removal_settles_what_the_cache_lacks(both: Both) -> Result<()> {
    let (id, other) = (cache(&both.index, "main").await?, cache(&both.index, "other").await?);
    let (_, lease) = target(&both).await?;
    // 1 is in the cache, 2 was removed, an upstream signed 3, and 4 was never published.
    push_object(&both.index, id, 1).await?;
    push_object(&both.index, other, 2).await?;
    let served = both.index.find_object(id, &path_hash(1)).await?.expect("it was pushed").nar;
    let of_lab = (served.hash, served.tag);
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: of_lab, ..intent(1, &[]) }]).await?;
    both.publish.finish_publishing(&lease, id, &[PublishDone { nar: of_lab, ..done(1, &[]) }], NOW).await?;
    publish(&both, &lease, id, 2, &[]).await?;
    publish(&both, &lease, id, 3, &[]).await?;
    both.publish
        .finish_publishing(&lease, id, &[PublishDone { upstream: true, ..done(3, &[]) }], NOW)
        .await?;
    let marks: Vec<_> = (1..=4).map(|number| (id, path_hash(number), NOW)).collect();
    both.publish.note_pending(&lease, &marks, NotedFrom::Referrers).await?;
    let removals = Removals { gone: hashes(&[2, 3, 4]), replaced: hashes(&[1]), kept: vec![] };
    let begun = both.publish.begin_removing(&lease, id, &removals, NOW).await?;
    assert_eq!(begun, RemovalsBegun { leaving: 2, unserved: 2, graces_ended: 0 }, "1 is served");
    assert_eq!(state(&both, &lease, id, 1).await?, Some(PublishState::Published));
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1, 2, 3]), "4 needs no look");
    let removed = async || -> Result<Vec<StorePathHash>> {
        both.publish.settle_pending(&lease, id, &settled(&[1]), NOW).await?;
        let mut found = both.publish.find_removed(lease.target, id, &hashes(&[1, 2, 3, 4])).await?;
        found.sort_unstable();
        Ok(found)
    };
    assert_eq!(removed().await?, hashes(&[2, 3, 4]), "2 and 3 are still to be looked at");
    // The lab serves the NAR of 1 in this cache, so that has a grace. It has one in another cache
    // only for 2.
    // A call whose answer was lost is repeated.
    for _ in 0..2 {
        both.publish.finish_removing(&lease, id, &hashes(&[1, 2, 3]), NOW + HOUR, NOW).await?;
        assert_eq!(removed().await?, hashes(&[2, 4]), "a referrer finds 3 at the upstream");
    }
    let mut due_now: Vec<_> = due(&both, &lease, id, NOW).await?.iter().map(|nar| nar.nar).collect();
    due_now.sort_unstable();
    let mut unserved = [nar(2), nar(3)];
    unserved.sort_unstable();
    assert_eq!(due_now, unserved);
    assert_eq!(due(&both, &lease, id, NOW + HOUR).await?.len(), 3);
    // Removed for cause and pushed again: the published NAR is served no more.
    let replaced = PublishDone { nar: nar(9), ..done(1, &[]) };
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: nar(9), ..intent(1, &[]) }]).await?;
    both.publish.finish_publishing(&lease, id, &[replaced], NOW).await?;
    let removals = Removals { replaced: hashes(&[1]), ..Removals::default() };
    let begun = both.publish.begin_removing(&lease, id, &removals, NOW).await?;
    assert_eq!((begun.leaving, begun.unserved), (1, 1));
    assert_eq!(state(&both, &lease, id, 1).await?, Some(PublishState::Removing));
    Ok(())
}

pub(super) async fn documents_of_objects_are_found(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    // What the lab has of them, the newest first.
    for number in [1, 2, 3] {
        let (name, owner, body) = (log(number), path_hash(number), vec![7]);
        let document = NewDocument { name, owner, size: 9, encoding: None, body };
        both.index.put_document(id, &document, NOW).await?;
    }
    let owned = async |owners: &[u32], limit| -> Result<Vec<DocumentName>> {
        let found = both.publish.find_lab_documents(id, &hashes(owners), &[], limit).await?;
        assert!(found.owned.iter().all(|found| found.size == 9 && found.digest.len() == 32));
        assert_eq!(found.build_ids, []);
        Ok(found.owned.into_iter().map(|found| found.name).collect())
    };
    assert_eq!(owned(&[1, 3, 4], 10).await?, [log(3), log(1)]);
    assert_eq!(owned(&[1, 2, 3], 2).await?, [log(3), log(2)]);
    assert_eq!(owned(&[], 2).await?, []);
    // Build ids of the NARs of objects.
    let rows = both.index.commit_pack(&pack(7, [7])).await?;
    let build_ids: Vec<BuildId> = ["aa01", "aa02"].map(|id| id.parse().expect("a build id")).to_vec();
    let nar = NewNar { build_ids: build_ids.clone(), ..new_nar(7, &rows) };
    let target = CommitTarget::Object(object(7));
    commit(&both.index, id, NarSource::New(Box::new(nar)), target).await?;
    push_object(&both.index, id, 8).await?;
    let build_ids_of = async |objects: &[u32], limit| -> Result<Vec<(StorePathHash, BuildId)>> {
        Ok(both.publish.find_lab_documents(id, &hashes(&[1]), &hashes(objects), limit).await?.build_ids)
    };
    let mut found = build_ids_of(&[7, 8], 10).await?;
    found.sort_unstable();
    assert_eq!(found, build_ids.iter().map(|build_id| (path_hash(7), build_id.clone())).collect::<Vec<_>>());
    assert_eq!(build_ids_of(&[7, 8], 1).await?.len(), 1);
    assert_eq!(build_ids_of(&[], 1).await?, []);
    Ok(())
}

pub(super) async fn documents_come_and_go_with_their_objects(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    let file = |etag: &str| PublishedFile {
        digest: vec![6; 32],
        etag: Some(etag.to_owned()).filter(|etag| !etag.is_empty()),
    };
    let written = |name: DocumentName, etag| WrittenDocument { name, digest: vec![5; 32], file: file(etag) };
    let row = |hash: u32, name: DocumentName, etag: Option<&str>| PublishedDocument {
        hash: path_hash(hash),
        name,
        digest: etag.map_or_else(Vec::new, |_| vec![5; 32]),
        file: etag.map(file),
    };
    let find = async |numbers: &[u32]| {
        both.publish.published_documents(lease.target, id, DocumentRows::Of(&hashes(numbers))).await
    };
    let finish = async |number: u32, documents: Vec<WrittenDocument>, stale_documents: Vec<DocumentName>| {
        let done = PublishDone { documents, stale_documents, ..done(number, &[]) };
        both.publish.finish_publishing(&lease, id, &[done], NOW).await
    };
    // 1 has a log alone, 2 and 3 share one.
    let intents = [(1, 1), (2, 2), (3, 2)]
        .map(|(number, document)| PublishIntent { documents: vec![log(document)], ..intent(number, &[]) });
    both.publish.begin_publishing(&lease, id, &intents).await?;
    assert_eq!(find(&[1, 4]).await?, [row(1, log(1), None)]);
    finish(1, vec![written(log(1), "\"f\"")], vec![]).await?;
    finish(2, vec![written(log(2), "\"e\"")], vec![]).await?;
    finish(3, vec![written(log(2), "")], vec![]).await?;
    assert_eq!(find(&[1]).await?, [row(1, log(1), Some("\"f\""))]);
    let list = async |limit: u32, through: &str| -> Result<Vec<PublishedDocument>> {
        let (mut found, mut after) = (Vec::new(), ("log/".to_owned(), None));
        loop {
            let page = DocumentRows::Page { after: (after.0.as_str(), after.1), through, limit };
            let page = both.publish.published_documents(lease.target, id, page).await?;
            let Some(last) = page.last() else { return Ok(found) };
            after = (last.name.to_string(), Some(last.hash));
            found.extend(page);
        }
    };
    let mut all =
        [row(1, log(1), Some("\"f\"")), row(2, log(2), Some("\"e\"")), row(3, log(2), Some(""))].to_vec();
    all.sort_by_key(|row| (row.name.to_string(), row.hash));
    assert_eq!(list(1, "log0").await?, all);
    assert_eq!(list(2, "log0").await?, all);
    let first = all[0].name.to_string();
    assert_eq!(
        list(9, &first).await?,
        all.iter().filter(|row| row.name == all[0].name).cloned().collect::<Vec<_>>()
    );
    assert_eq!(list(9, "log/0").await?, []);
    // One of two that share a document does not take it along.
    let take = async |documents: &[(u32, DocumentName)]| {
        let documents: Vec<_> =
            documents.iter().map(|(number, name)| (path_hash(*number), name.clone())).collect();
        both.publish.take_documents(&lease, id, &documents, NOW).await
    };
    assert_eq!(take(&[(1, log(1)), (2, log(2))]).await?, [log(1)], "3 has the other one");
    assert_eq!(find(&[1]).await?, [row(1, log(1), None)], "the file may be gone");
    assert_eq!(find(&[2]).await?, [row(2, log(2), Some("\"e\""))]);
    assert_eq!(take(&[(2, log(2)), (3, log(2))]).await?, [log(2)], "nobody else has it");
    assert_eq!(take(&[(2, log(2)), (3, log(2))]).await?, [log(2)], "likewise when it is repeated");
    // The rows go with what the objects become.
    finish(2, vec![], vec![log(2)]).await?;
    assert_eq!(find(&[2]).await?, []);
    both.publish.finish_removing(&lease, id, &hashes(&[3]), NOW, NOW).await?;
    assert_eq!(find(&[1, 2, 3]).await?, [row(1, log(1), None)]);
    // A link to debug info is written again when the NAR that it leads to may go.
    let link = DocumentName::DebugInfo("aa01".parse().expect("a build id"));
    finish(1, vec![written(log(1), ""), written(link.clone(), "")], vec![]).await?;
    finish(2, vec![written(link.clone(), "")], vec![]).await?;
    assert_eq!(pending(&both, &lease, id).await?, []);
    assert_eq!(take(&[(2, link.clone())]).await?, []);
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1]));
    assert!(find(&[1]).await?.contains(&row(1, link, None)));
    // Drift: looked at again, with nothing written.
    both.publish.settle_pending(&lease, id, &settled(&[1]), NOW).await?;
    let scan = CacheScan::Documents(Some("log/x".to_owned()));
    let drift = Drift { documents: vec![(path_hash(1), log(1))], ..Drift::default() };
    both.publish.note_drift(&lease, id, &drift, NOW, Some(scan)).await?;
    assert!(find(&[1]).await?.contains(&row(1, log(1), None)));
    assert_eq!(pending(&both, &lease, id).await?, hashes(&[1]));
    forget_all(&both, &lease, id).await?;
    assert_eq!(find(&[1, 2, 3]).await?, []);
    Ok(())
}

pub(super) async fn a_cache_is_remembered_and_forgotten(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    let mut published = PublishedCache {
        cache: id,
        name: "main".to_owned(),
        basis: vec![1],
        document: vec![],
        published_at: NOW,
        scan: Some(CacheScan::Past(OutboxPosition { transaction: 3, number: 4 })),
    };
    both.publish.write_published_cache(&lease, &published, NOW).await?;
    published.document = vec![2, 3];
    both.publish
        .write_published_cache(&lease, &PublishedCache { scan: None, ..published.clone() }, NOW)
        .await?;
    assert_eq!(both.publish.published_caches(lease.target).await?, [published.clone()]);
    assert!(both.index.glance_at_caches(&[id]).await?[0].is_published);
    // People see this work as a job, run by the holder of the target's lease.
    let jobs = both.jobs.list_jobs(None, 10).await?;
    assert_eq!(jobs.len(), 1);
    assert_eq!(
        (jobs[0].kind.as_str(), jobs[0].cache, jobs[0].target),
        ("scan-cache", Some(id), Some(lease.target))
    );
    assert_eq!((jobs[0].holder.as_deref(), jobs[0].lease_ends_at), (Some("me"), NOW + HOUR));
    assert_eq!((jobs[0].rows_done, jobs[0].created_at, jobs[0].stepped_at), (0, NOW, None));
    let by_need = both.jobs.list_jobs_by_need(NOW, 10).await?;
    assert_eq!((by_need.open, by_need.running, &by_need.jobs), (1, 1, &jobs));
    assert_eq!(both.jobs.list_jobs_by_need(NOW + HOUR, 10).await?.running, 0, "the target's lease has ended");
    let backlog = both.jobs.job_backlog(NOW).await?;
    assert_eq!((backlog[0].running, backlog[0].waiting), (1, 0));
    assert_eq!(both.jobs.job_backlog(NOW + HOUR).await?[0].running, 0, "the target's lease has ended");
    // How far the work over all of it has come is written down with each of its steps.
    let scans = [
        CacheScan::Narinfos(None),
        CacheScan::Nars(Some(255)),
        CacheScan::Documents(None),
        CacheScan::Documents(Some("log/x".to_owned())),
        CacheScan::Objects(Some(path_hash(1))),
    ];
    for scan in scans {
        both.publish.note_drift(&lease, id, &Drift::default(), NOW, Some(scan.clone())).await?;
        assert_eq!(both.publish.published_caches(lease.target).await?[0].scan, Some(scan));
    }
    let noted = [(id, path_hash(8), NOW), (id, path_hash(9), NOW)];
    both.publish.note_pending(&lease, &noted, NotedFrom::Scan(id, CacheScan::Published(None))).await?;
    assert_eq!(both.jobs.list_jobs(None, 10).await?[0].rows_done, 2);
    assert_eq!(both.publish.published_caches(lease.target).await?[0].scan, Some(CacheScan::Published(None)));
    assert_eq!(both.publish.note_cache_step(&lease, id, CacheScan::Published(None), 9, NOW).await?, None);
    assert_eq!(both.publish.published_caches(lease.target).await?[0].scan, None);
    assert_eq!(both.jobs.list_jobs(None, 10).await?, []);
    // What was compared with another location does not count.
    both.publish.write_published_cache(&lease, &published, NOW).await?;
    both.publish.move_target(&lease, "s3://bucket", true).await?;
    assert_eq!(both.publish.published_caches(lease.target).await?, [published]);
    both.publish.move_target(&lease, "s3://other", false).await?;
    assert_eq!(both.publish.published_caches(lease.target).await?[0].scan, None);
    publish(&both, &lease, id, 1, &[]).await?;
    both.index.remove_object(id, &path_hash(1), Removal::ForCause, NOW).await?;
    forget_all(&both, &lease, id).await?;
    assert_eq!(both.publish.published_caches(lease.target).await?, []);
    assert_eq!(both.publish.publish_counts(lease.target, id).await?, crate::PublishCounts::default());
    Ok(())
}

pub(super) async fn what_waits_is_counted_for_all_targets_at_once(both: Both) -> Result<()> {
    assert_eq!(both.publish.publish_backlog(10).await?, []);
    let ids = [cache(&both.index, "main").await?, cache(&both.index, "other").await?];
    let (first, lease) = target(&both).await?;
    let second = both.publish.open_target("another", "s3://bucket/another").await?;
    let elsewhere = both.publish.acquire_lease(second.id, "me", NOW, NOW + HOUR).await?.expect("it is new");
    let published = |cache, name: &str| PublishedCache {
        cache,
        name: name.to_owned(),
        basis: vec![],
        document: vec![],
        published_at: NOW,
        scan: None,
    };
    for (lease, cache, name) in
        [(&lease, ids[0], "main"), (&lease, ids[1], "other"), (&elsewhere, ids[0], "main")]
    {
        both.publish.write_published_cache(lease, &published(cache, name), NOW).await?;
    }
    publish(&both, &lease, ids[0], 1, &[]).await?;
    both.publish.begin_publishing(&lease, ids[0], &[intent(2, &[])]).await?;
    let noted = [(ids[1], path_hash(3), NOW + 2), (ids[1], path_hash(4), NOW + 1)];
    both.publish.note_pending(&lease, &noted, NotedFrom::Referrers).await?;
    let hold = PendingVerdicts {
        waiting: vec![(path_hash(4), "for another path".to_owned())],
        ..PendingVerdicts::default()
    };
    both.publish.settle_pending(&lease, ids[1], &hold, NOW + 3).await?;
    let row = |target: &PublishTarget, cache: &str, published, pending, pending_since: Option<i64>| {
        PublishBacklog {
            target: target.id,
            cache: cache.to_owned(),
            published,
            pending,
            pending_since,
            // The oldest of those that wait, and why.
            oldest: pending_since.map(|_| path_hash(4)),
            reason: pending_since.map(|_| "for another path".to_owned()),
        }
    };
    let all = [
        row(&first, "main", 1, 0, None),
        row(&first, "other", 0, 2, Some(NOW + 1)),
        row(&second, "main", 0, 0, None),
    ];
    assert_eq!(both.publish.publish_backlog(10).await?, all);
    assert_eq!(both.publish.publish_backlog(1).await?, all[..1]);

    // What `outbox_after` would tell each target, for all of them at once.
    for number in [21, 22] {
        push_object(&both.index, ids[0], number).await?;
    }
    // On PostgreSQL rows appear when no older transaction of the server runs.
    let changes = async || both.index.outbox_after(OutboxPosition::START, 10).await;
    while changes().await?.len() < 2 {
        tokio::task::yield_now().await;
    }
    let last = changes().await?[1].position;
    both.publish.note_pending(&lease, &[], NotedFrom::Outbox(last)).await?;
    let targets = both.publish.list_targets().await?;
    let mut expected = Vec::new();
    for target in &targets {
        let unseen = both.index.outbox_after(target.cursor, 1).await?;
        assert_eq!(target.unseen_since, unseen.first().map(|row| row.at));
        assert_eq!(both.publish.open_target(&target.name, "").await?, *target);
        let rows = all.iter().filter(|row| row.target == target.id);
        expected.push(Follower {
            caches: rows.clone().count() as u64,
            published: rows.clone().map(|row| row.published).sum(),
            pending: rows.clone().map(|row| row.pending).sum(),
            pending_since: rows.filter_map(|row| row.pending_since).min(),
            target: target.clone(),
        });
    }
    assert_eq!(both.publish.list_followers().await?, expected);
    let unseen: Vec<bool> = targets.iter().map(|target| target.unseen_since.is_some()).collect();
    assert_eq!(unseen, [true, false], "another has followed nothing, edge everything");
    Ok(())
}

pub(super) async fn every_write_renews_the_lease(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (target, lease) = target(&both).await?;
    let later = Lease { ends_at: NOW + 2 * HOUR, ..lease };
    publish(&both, &later, id, 1, &[]).await?;
    assert_eq!(both.publish.acquire_lease(target.id, "you", NOW + HOUR, NOW + 9 * HOUR).await?, None);
    // An older one does not shorten it.
    note_all(&both, &lease, id, NOW).await?;
    assert_eq!(both.publish.acquire_lease(target.id, "you", NOW + HOUR, NOW + 9 * HOUR).await?, None);
    assert!(both.publish.acquire_lease(target.id, "you", NOW + 2 * HOUR, NOW + 9 * HOUR).await?.is_some());
    Ok(())
}

pub(super) async fn rows_come_in_the_order_of_names(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    for number in 1..=40 {
        publish(&both, &lease, id, number, &[]).await?;
    }
    let mut expected: Vec<_> = (1..=40).map(path_hash).collect();
    expected.sort_by_key(|hash| (hash.as_bytes()[19], *hash));
    let list = async |bytes: std::ops::RangeInclusive<u8>| -> Result<Vec<StorePathHash>> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = ObjectRows::Page { bytes: bytes.clone(), after, limit: 3 };
            let page = both.publish.published_objects(lease.target, id, page).await?;
            let Some(last) = page.last() else { return Ok(found) };
            after = Some(last.hash);
            found.extend(page.iter().map(|row| row.hash));
        }
    };
    assert_eq!(list(0..=255).await?, expected);
    let middle = 100..=200;
    expected.retain(|hash| middle.contains(&hash.as_bytes()[19]));
    assert_eq!(list(middle).await?, expected);
    Ok(())
}

pub(super) async fn a_grace_lasts_while_the_lab_serves_the_nar(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    let (_, lease) = target(&both).await?;
    push_object(&both.index, id, 1).await?;
    let served = both.index.find_object(id, &path_hash(1)).await?.expect("it was pushed").nar;
    let of_lab = |number| PublishIntent { nar: (served.hash, served.tag), ..intent(number, &[]) };
    both.publish.begin_publishing(&lease, id, &[of_lab(1)]).await?;
    let finished = PublishDone { nar: (served.hash, served.tag), ..done(1, &[]) };
    both.publish.finish_publishing(&lease, id, &[finished], NOW).await?;
    // Another one is published instead.
    publish(&both, &lease, id, 1, &[]).await?;
    both.publish.begin_publishing(&lease, id, &[PublishIntent { nar: nar(5), ..intent(1, &[]) }]).await?;
    both.publish
        .finish_publishing(&lease, id, &[PublishDone { nar: nar(5), ..done(1, &[]) }], NOW + HOUR)
        .await?;
    let before = due(&both, &lease, id, NOW + HOUR).await?.len();
    let ended = both.publish.begin_removing(&lease, id, &kept(&[1]), NOW).await?.graces_ended;
    assert!(due(&both, &lease, id, NOW).await?.iter().all(|due| due.nar.0 != served.hash));
    both.index.remove_object(id, &path_hash(1), Removal::ForCause, NOW).await?;
    let all_ended = both.publish.begin_removing(&lease, id, &kept(&[1]), NOW).await?.graces_ended;
    assert_eq!(all_ended, ended + 1, "of {before}");
    Ok(())
}

pub(super) async fn the_outbox_is_trimmed_to_what_is_needed(both: Both) -> Result<()> {
    let id = cache(&both.index, "main").await?;
    for number in 1..=6 {
        push_object(&both.index, id, number).await?;
    }
    // On PostgreSQL rows appear when no older transaction of the server runs.
    let rest = async || both.index.outbox_after(OutboxPosition::START, 100).await;
    while rest().await?.len() < 6 {
        tokio::task::yield_now().await;
    }
    let all = rest().await?;
    let trim = |keep_since, give_up_before, limit| both.jobs.trim_outbox(keep_since, give_up_before, limit);
    assert_eq!(trim(NOW, NOW, 100).await?, 0, "they are not old enough");
    assert_eq!(trim(NOW + 1, 0, 2).await?, 2, "nobody follows");
    assert_eq!(rest().await?, all[2..]);

    let (target, lease) = target(&both).await?;
    let missed = async || Ok::<_, Error>(both.publish.open_target("edge", "").await?.missed_changes);
    assert_eq!(trim(NOW + 1, NOW, 100).await?, 0, "the target has not seen them");
    both.publish.note_pending(&lease, &[], NotedFrom::Outbox(all[3].position)).await?;
    let late = both.publish.open_target("late", "").await?;
    assert_eq!(trim(NOW + 1, NOW, 100).await?, 0, "another one has not");
    let late_lease = both.publish.acquire_lease(late.id, "me", NOW, NOW + HOUR).await?.expect("it is free");
    both.publish.note_pending(&late_lease, &[], NotedFrom::Outbox(all[5].position)).await?;
    assert_eq!(trim(NOW + 1, NOW, 100).await?, 2);
    assert_eq!(rest().await?, all[4..]);
    assert!(!missed().await?);

    // It does not come back.
    assert_eq!(trim(NOW + 1, NOW + 1, 1).await?, 1);
    assert_eq!(rest().await?, all[5..]);
    assert!(missed().await?);
    let others = both.publish.list_targets().await?;
    assert_eq!(others.iter().map(|target| target.missed_changes).collect::<Vec<_>>(), [true, false]);
    assert_eq!(others[0].cursor, all[3].position);
    both.publish.clear_missed_changes(&lease).await?;
    assert!(!missed().await?);
    assert_eq!(target.id, lease.target);

    // What comes now lies behind everything that was there.
    assert_eq!(trim(NOW + 1, NOW + 1, 100).await?, 1);
    push_object(&both.index, id, 7).await?;
    while rest().await?.is_empty() {
        tokio::task::yield_now().await;
    }
    let new = rest().await?;
    assert_eq!((new.len(), new[0].store_path_hash), (1, Some(path_hash(7))));
    assert!(new[0].position > all[5].position);
    Ok(())
}
