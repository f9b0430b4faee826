//! Jobs: their leases, and the deletion of a cache in steps.

use std::sync::Arc;

use dormer_nix::{DocumentName, StorePath};

use super::fixtures::{NOW, alias, cache, changes, nar_hash, object, path, path_hash, push, push_object};
use crate::{
    CacheId, CacheTotals, CommitTarget, Error, Index, Job, JobIndex, JobKind, JobLease, NarQuery,
    NewDocument, Object, Removal, Result,
};

/// What every case works on: both contracts of one adapter.
pub(super) struct Both {
    pub(super) index: Arc<dyn Index>,
    pub(super) jobs: Arc<dyn JobIndex>,
}

const MINUTE: i64 = 60;

impl Both {
    async fn lease(&self, holder: &str, now: i64) -> Result<Option<JobLease>> {
        self.jobs.lease_job(JobKind::DeleteCache, holder, now, now + MINUTE).await
    }

    async fn only_job(&self) -> Result<Job> {
        let mut jobs = self.jobs.list_jobs(None, 10).await?;
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        Ok(jobs.remove(0))
    }

    /// Runs a job's steps to its end; returns how many rows each changed.
    async fn run(&self, lease: &JobLease, limit: u32, now: i64) -> Result<Vec<u64>> {
        let mut rows = Vec::new();
        loop {
            let step = self.jobs.delete_cache_step(lease, limit, now, now + MINUTE).await?;
            rows.push(step.rows);
            if step.is_last {
                return Ok(rows);
            }
        }
    }

    /// A deleted cache that had 12 objects, one path in two graces and one in one, 2 aliases, 2
    /// references and 3 logs.
    async fn deleted_cache(&self, name: &str) -> Result<CacheId> {
        let id = cache(&self.index, name).await?;
        let references = vec![path(2), path(3)];
        push(&self.index, id, 1, CommitTarget::Object(Object { references, ..object(1) })).await?;
        for number in 2..=14 {
            push_object(&self.index, id, number).await?;
        }
        push(&self.index, id, 20, CommitTarget::Object(object(13))).await?;
        for number in 13..=14 {
            let grace = Removal::WithGraceUntil(NOW + 1000);
            assert!(self.index.remove_object(id, &path_hash(number), grace, NOW).await?);
        }
        push(&self.index, id, 21, alias("é.nar.xz")).await?;
        push(&self.index, id, 22, alias("f.nar.xz")).await?;
        for number in 1..=3 {
            let derivation = StorePath::new(path_hash(number), "package.drv").expect("a good name");
            let name = DocumentName::Log(derivation);
            let document =
                NewDocument { name, owner: path_hash(number), size: 1, encoding: None, body: vec![0] };
            self.index.put_document(id, &document, NOW).await?;
        }
        self.index.delete_cache(id, None, NOW).await?;
        Ok(id)
    }
}

const ROWS: u64 = 12 + 3 + 2 + 2 + 3;

pub(super) async fn a_job_is_opened_once(both: Both) -> Result<()> {
    assert_eq!(both.jobs.list_jobs(None, 10).await?, []);
    let id = cache(&both.index, "main").await?;
    let note = |cache, target| both.jobs.open_job(JobKind::ScanCache, cache, target, NOW);
    let target = crate::TargetId(7);
    let first = note(Some(id), Some(target)).await?;
    assert_eq!(note(Some(id), Some(target)).await?, first);
    let others = [
        note(Some(id), None).await?,
        note(None, Some(target)).await?,
        both.jobs.open_job(JobKind::DeleteCache, Some(id), Some(target), NOW).await?,
    ];
    assert!(others.iter().all(|other| *other > first), "{others:?}");
    assert_eq!(note(Some(id), None).await?, others[0]);
    both.index.delete_cache(id, None, NOW + 5).await?;
    both.index.delete_cache(id, None, NOW + 6).await?;
    let jobs = both.jobs.list_jobs(None, 10).await?;
    assert_eq!(jobs.len(), 5);
    assert_eq!(both.jobs.find_job(JobKind::Scrub).await?, None);
    both.jobs.open_job(JobKind::Scrub, None, None, NOW).await?;
    let all = both.jobs.list_jobs(None, 10).await?;
    assert_eq!(both.jobs.find_job(JobKind::Scrub).await?, Some(all[5].id));
    assert_eq!(both.jobs.find_job(JobKind::DeleteCache).await?, None, "that one has a cache");
    let last = &jobs[4];
    assert_eq!((last.kind.as_str(), last.cache, last.target), ("delete-cache", Some(id), None));
    assert_eq!((last.cache_name.as_deref(), last.target_name.as_deref()), (Some("main"), None));
    assert_eq!((last.created_at, last.rows_done, last.stepped_at), (NOW + 5, 0, None));
    assert_eq!((&last.holder, last.failures, &last.error), (&None, 0, &None));
    assert_eq!(both.jobs.list_jobs(Some(jobs[1].id), 2).await?, jobs[2..4]);
    Ok(())
}

pub(super) async fn a_job_has_one_holder_at_a_time(both: Both) -> Result<()> {
    assert_eq!(both.lease("a", NOW).await?, None);
    let id = both.deleted_cache("main").await?;
    assert_eq!(both.jobs.lease_job(JobKind::ScanCache, "a", NOW, NOW + 1).await?, None, "another kind");
    let first = both.lease("a", NOW).await?.expect("nobody holds it");
    assert_eq!((first.cache, first.target, first.failures), (Some(id), None, 0));
    assert_eq!(both.lease("b", NOW + MINUTE - 1).await?, None);
    assert_eq!(both.lease("a", NOW + MINUTE - 1).await?, None, "two processes may have one name");
    let job = both.only_job().await?;
    assert_eq!((job.holder.as_deref(), job.lease_ends_at), (Some("a"), NOW + MINUTE));
    // A step renews the lease.
    both.jobs.delete_cache_step(&first, 5, NOW + 50, NOW + 110).await?;
    assert_eq!(both.lease("b", NOW + 109).await?, None);
    let second = both.lease("b", NOW + 110).await?.expect("the lease has ended");
    assert!(second.job == first.job && second.fence > first.fence);
    both.jobs.release_job(&second).await?;
    assert!(matches!(both.jobs.release_job(&second).await, Err(Error::JobLeaseLost)), "it was given back");
    assert_eq!(both.only_job().await?.holder, None);
    assert!(both.lease("a", NOW).await?.expect("it was given back").fence > second.fence);
    Ok(())
}

pub(super) async fn racing_processes_never_share_a_lease(both: Both) -> Result<()> {
    for name in ["a", "b", "c"] {
        let id = cache(&both.index, name).await?;
        both.index.delete_cache(id, None, NOW).await?;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let jobs = Arc::clone(&both.jobs);
        tasks.spawn(async move {
            let mut leases = Vec::new();
            for _ in 0..3 {
                leases.extend(jobs.lease_job(JobKind::DeleteCache, "x", NOW, NOW + MINUTE).await?);
            }
            Ok::<_, Error>(leases)
        });
    }
    let mut jobs = Vec::new();
    while let Some(leases) = tasks.join_next().await {
        jobs.extend(leases.expect("no panic")?.into_iter().map(|lease| lease.job));
    }
    jobs.sort_unstable();
    let open: Vec<_> = both.jobs.list_jobs(None, 10).await?.into_iter().map(|job| job.id).collect();
    assert_eq!(jobs, open);
    Ok(())
}

pub(super) async fn a_lost_lease_changes_nothing(both: Both) -> Result<()> {
    both.deleted_cache("main").await?;
    let lost = both.lease("a", NOW).await?.expect("nobody holds it");
    let lease = both.lease("b", NOW + MINUTE).await?.expect("the lease has ended");
    let before = both.only_job().await?;
    let step = both.jobs.delete_cache_step(&lost, 100, NOW, NOW + 9 * MINUTE).await;
    assert!(matches!(step, Err(Error::JobLeaseLost)), "{step:?}");
    assert!(matches!(both.jobs.release_job(&lost).await, Err(Error::JobLeaseLost)));
    assert!(matches!(both.jobs.fail_job(&lost, "e", NOW).await, Err(Error::JobLeaseLost)));
    assert_eq!(both.only_job().await?, before);
    let rows: u64 = both.run(&lease, 100, NOW).await?.iter().sum();
    assert_eq!(rows, ROWS, "the holder finds every row");
    let step = both.jobs.delete_cache_step(&lease, 100, NOW, NOW + MINUTE).await;
    assert!(matches!(step, Err(Error::JobLeaseLost)), "the job is done: {step:?}");
    Ok(())
}

pub(super) async fn a_failed_job_waits_for_its_next_try(both: Both) -> Result<()> {
    both.deleted_cache("main").await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    both.jobs.fail_job(&lease, "it broke", NOW + 10).await?;
    let job = both.only_job().await?;
    assert_eq!((job.failures, job.error.as_deref(), &job.holder), (1, Some("it broke"), &None));
    assert_eq!(both.lease("b", NOW + 9).await?, None);
    let lease = both.lease("b", NOW + 10).await?.expect("the pause has ended");
    assert_eq!(lease.failures, 1);
    both.jobs.fail_job(&lease, "again", NOW + 20).await?;
    assert_eq!(both.only_job().await?.failures, 2);
    let lease = both.lease("b", NOW + 20).await?.expect("the pause has ended");
    both.jobs.delete_cache_step(&lease, 5, NOW + 21, NOW + 80).await?;
    let job = both.only_job().await?;
    assert_eq!((job.failures, job.error, job.stepped_at), (0, None, Some(NOW + 21)), "a good step");
    Ok(())
}

pub(super) async fn a_deleted_cache_is_removed_in_steps(both: Both) -> Result<()> {
    let other = cache(&both.index, "other").await?;
    push_object(&both.index, other, 1).await?;
    push(&both.index, other, 21, alias("f.nar.xz")).await?;
    both.deleted_cache("main").await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    let rows = both.run(&lease, 5, NOW).await?;
    // Objects, graces (a page ends with the last grace of a path), aliases, references, pins,
    // documents, sessions.
    assert_eq!(rows, [5, 5, 2, 3, 2, 2, 0, 3, 0]);
    assert_eq!(both.jobs.list_jobs(None, 10).await?, [], "the last step took the job along");
    assert!(both.index.find_object(other, &path_hash(1)).await?.is_some());
    assert!(both.index.find_alias(other, "f.nar.xz", 0).await?.is_some());
    // One row a page: every boundary is crossed.
    both.deleted_cache("main").await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    let rows = both.run(&lease, 1, NOW).await?;
    assert_eq!(rows.iter().sum::<u64>(), ROWS);
    assert!(rows.iter().all(|rows| *rows <= 2), "{rows:?}");
    Ok(())
}

pub(super) async fn another_process_continues_at_the_cursor(both: Both) -> Result<()> {
    both.deleted_cache("main").await?;
    let (mut now, mut rows) = (NOW, 0);
    // Each process runs one step and is never heard of again.
    for process in 0.. {
        let lease = both.lease(&format!("process {process}"), now).await?.expect("the lease has ended");
        let step = both.jobs.delete_cache_step(&lease, 3, now, now + MINUTE).await?;
        rows += step.rows;
        if step.is_last {
            assert!(process > 4, "{process} steps");
            break;
        }
        assert_eq!(both.only_job().await?.rows_done, rows);
        now += MINUTE;
    }
    assert_eq!(rows, ROWS);
    assert_eq!(both.jobs.list_jobs(None, 10).await?, []);
    Ok(())
}

pub(super) async fn a_deleted_cache_is_invisible_before_its_job_runs(both: Both) -> Result<()> {
    let index = &both.index;
    let gone = both.deleted_cache("main").await?;
    let again = cache(index, "main").await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    for step in 0.. {
        for cache in [gone, again] {
            let hashes: Vec<_> = (1..=22).map(path_hash).collect();
            assert_eq!(index.present_objects(cache, &hashes).await?, []);
            for number in 1..=22 {
                assert_eq!(index.find_object(cache, &path_hash(number)).await?, None);
                let by_path = NarQuery::StorePath(path_hash(number));
                for key in [NarQuery::Hash(nar_hash(number)), by_path] {
                    assert_eq!(index.find_nar_in_cache(cache, &key, NOW).await?, None);
                }
                let nar = index.find_nar(&nar_hash(number)).await?;
                if let Some(nar) = nar {
                    assert_eq!(index.list_caches_of_nar(nar.id, NOW).await?, []);
                }
            }
            assert_eq!(index.find_alias(cache, "f.nar.xz", 0).await?, None);
            assert_eq!(index.cache_totals(cache).await?, CacheTotals::default());
            let grace = Removal::WithGraceUntil(NOW + 1);
            assert!(!index.remove_object(cache, &path_hash(12), grace, NOW).await?, "it is not there");
        }
        if both.jobs.delete_cache_step(&lease, 5, NOW, NOW + MINUTE).await?.is_last {
            assert_eq!(step, 8);
            break;
        }
    }
    Ok(())
}

pub(super) async fn the_rest_of_a_deleted_cache_tells_no_follower(both: Both) -> Result<()> {
    let gone = both.deleted_cache("main").await?;
    let before = changes(&both.index, gone).await?;
    assert_eq!(before.last(), Some(&None), "the deletion is the last change of the cache");
    let nar = both.index.find_nar(&nar_hash(1)).await?.expect("its row stays");
    both.index.update_encoding(nar.id, &nar.tag, nar.file_size + 1, NOW).await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    both.run(&lease, 5, NOW).await?;
    assert_eq!(changes(&both.index, gone).await?, before);
    Ok(())
}

pub(super) async fn jobs_that_need_an_operator_come_first(both: Both) -> Result<()> {
    let by_need = |limit| both.jobs.list_jobs_by_need(NOW, limit);
    assert_eq!(by_need(10).await?, crate::JobsByNeed::default());
    // The oldest is the scan, and it waits.
    both.jobs.open_job(JobKind::Scrub, None, None, NOW).await?;
    for name in ["a", "b", "c", "d"] {
        let id = cache(&both.index, name).await?;
        both.index.delete_cache(id, None, NOW).await?;
    }
    // The first runs, the lease of the second has ended, and the third has failed.
    both.lease("a", NOW).await?.expect("nobody holds it");
    both.lease("b", NOW - MINUTE).await?.expect("nobody holds it");
    let third = both.jobs.list_jobs(None, 10).await?[3].id;
    let failed = both.lease("c", NOW - MINUTE - 1).await?.expect("nobody holds it");
    assert_eq!(failed.job, third);
    both.jobs.fail_job(&failed, "no luck", NOW + MINUTE).await?;
    let all = both.jobs.list_jobs(None, 10).await?;
    let found = by_need(10).await?;
    let ids: Vec<_> = found.jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids, [3, 1, 0, 2, 4].map(|place: usize| all[place].id), "{all:?}");
    assert_eq!((found.open, found.running, found.failing), (5, 1, 1));
    assert_eq!(found.jobs[0], all[3], "it has what the list has");
    let first = by_need(2).await?;
    assert_eq!((&first.jobs[..], first.open), (&found.jobs[..2], 5));
    assert_eq!(both.jobs.list_jobs_by_need(NOW + MINUTE, 10).await?.running, 0, "its lease has ended");
    Ok(())
}

pub(super) async fn jobs_are_counted_by_kind(both: Both) -> Result<()> {
    assert_eq!(both.jobs.job_backlog(NOW).await?, []);
    both.deleted_cache("a").await?;
    both.deleted_cache("b").await?;
    both.jobs.open_job(JobKind::ScanCache, None, Some(crate::TargetId(1)), NOW - 5).await?;
    let lease = both.lease("a", NOW).await?.expect("nobody holds it");
    both.jobs.delete_cache_step(&lease, 5, NOW, NOW + MINUTE).await?;
    let counts = |running, waiting, rows_done, oldest_created_at, kind: &str| crate::JobBacklog {
        kind: kind.to_owned(),
        running,
        waiting,
        rows_done,
        oldest_created_at,
        failures_max: 0,
    };
    let note = counts(0, 1, 0, NOW - 5, "scan-cache");
    let expected = [counts(1, 1, 5, NOW, "delete-cache"), note.clone()];
    assert_eq!(both.jobs.job_backlog(NOW).await?, expected);
    let expected = [counts(0, 2, 5, NOW, "delete-cache"), note];
    assert_eq!(both.jobs.job_backlog(NOW + MINUTE).await?, expected, "its lease has ended");
    for failures in 1..=2 {
        let lease = both.lease("a", NOW + MINUTE).await?.expect("nobody holds it");
        both.jobs.fail_job(&lease, "no luck", NOW).await?;
        assert_eq!(both.jobs.job_backlog(NOW).await?[0].failures_max, failures);
    }
    Ok(())
}
