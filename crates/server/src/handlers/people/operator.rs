//! Pages for operators. To everybody else they look like what is not there, without a look-up.
//!
//! Their figures are those of the API's status, of `/metrics` and of the commands' `--json`. Each
//! takes four statements at most.

use dormer_api::v2::{JobEntry, StatusResponse, TargetEntry};
use dormer_engine::{CollectionReport, CompactionTotals, PackTotals, ScrubReport};
use dormer_index::{AuditFilter, JobId, JobKind, PublishBacklog};
use dormer_pages::{
    AuditRow, AuditView, CollectionFigures, CollectionView, DamageView, ExpiryFigures, JobRow, JobsView,
    MadePlan, OpenJobs, OperatorPage, OverviewView, PackFigures, PlanView, PublishedCacheRow, PublishingView,
    QueueRow, ScrubFigures, ServerFigures, TargetRow, TargetView,
};
use http::{Method, Response};

use super::session::checked_form;
use super::show::{index, query};
use super::{frame, page, see_other};
use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::checks::bad_request;
use crate::handlers::status::{job_entry, status};
use crate::operations::{CompletePlan, Operations, Plan};
use crate::publish_metrics::TargetBacklog;
use crate::request_body::RequestBody;

/// Answers a request for an operator's page.
pub(super) async fn respond(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    method: &Method,
    wanted: OperatorPage,
) -> Result<Response<Body>, Failure> {
    // Whatever the visitor lacks, the answer is that of an absent page.
    let operations = app.open_operations(call).map_err(|_| Failure::NoRoute)?;
    let frame = || frame(app, call);
    let html = match (method, wanted) {
        (&Method::POST, OperatorPage::Collection) => {
            checked_form(app, call, body).await?;
            operations.begin_plan(app.engine.now());
            return Ok(see_other("collection"));
        }
        (&Method::GET, OperatorPage::Overview) => overview(app, operations).await.render(&frame()),
        (&Method::GET, OperatorPage::Jobs) => jobs(app, call, operations).await?.render(&frame()),
        (&Method::GET, OperatorPage::Collection) => collection(operations).await?.render(&frame()),
        (&Method::GET, OperatorPage::Publishing) => publishing(app, call).await?.render(&frame()),
        (&Method::GET, OperatorPage::Damage) => damage(operations).await?.render(&frame()),
        (&Method::GET, OperatorPage::Audit) => audit(app, call).await?.render(&frame()),
        (_, OperatorPage::Collection) => {
            return Err(Failure::MethodNotAllowed { allow: "GET, HEAD, POST" });
        }
        _ => return Err(Failure::MethodNotAllowed { allow: "GET, HEAD" }),
    };
    Ok(page(html))
}

async fn overview(app: &App, operations: &Operations) -> OverviewView {
    let of: &StatusResponse = &status(app, operations).await;
    let publishing = app.metrics.publishing();
    let publishers = publishing.iter().flat_map(|targets| targets.iter());
    let publishers = publishers.filter_map(|of_target| holder(of_target, of.now));
    let mut others: Vec<String> = of.jobs.iter().filter_map(|job| job.holder.clone()).collect();
    others.extend(publishers);
    others.retain(|holder| *holder != of.process);
    others.sort();
    others.dedup();
    let mut queues: Vec<QueueRow> = of.queues.iter().map(queue_row).collect();
    // What somebody waits for comes first.
    queues.sort_by_key(|queue| std::cmp::Reverse(queue.waiting));
    OverviewView {
        server: of.process.clone(),
        version: of.version.clone(),
        started_at: of.started_at,
        not_ready: of.not_ready.clone(),
        figures: ServerFigures {
            answered: of.requests.answered,
            failed: of.requests.failed,
            refused: of.requests.refused,
            in_flight: of.requests.in_flight,
            connections: of.requests.connections,
            narinfos: of.reads.narinfos,
            missing: of.reads.missing,
            nars_read: of.reads.nars,
            sent_bytes: of.requests.sent_bytes,
            nars_pushed: of.pushes.nars,
            pushed_bytes: of.pushes.nar_bytes,
            new_bytes: of.pushes.new_bytes,
            uploading: of.pushes.uploading,
        },
        queues,
        others,
        jobs: of.job_counts.map(|counts| OpenJobs {
            open: counts.open,
            running: counts.running,
            failing: counts.failing,
            first: of.jobs.iter().cloned().map(job_row).collect(),
        }),
        targets: of.known_targets().map(|targets| targets.iter().map(target_row).collect()),
    }
}

fn target_row(target: &TargetEntry) -> TargetRow {
    TargetRow {
        name: target.name.clone(),
        lag_seconds: target.lag_seconds,
        published: target.published,
        pending: target.pending,
        has_failed: target.error.is_some(),
    }
}

/// The process that publishes to a target: a lease that has ended counts for nothing.
fn holder(of: &TargetBacklog, now: i64) -> Option<String> {
    let target = &of.follower.target;
    target.holder.clone().filter(|_| target.lease_ends_at > now)
}

fn queue_row(queue: &dormer_api::v2::QueueStatus) -> QueueRow {
    QueueRow { name: queue.name.clone(), waiting: queue.waiting, in_use: queue.in_use.zip(queue.limit) }
}

fn job_row(job: JobEntry) -> JobRow {
    let about: Vec<String> = [
        job.cache.map(|cache| format!("cache {cache}")),
        job.target.map(|target| format!("target {target}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    JobRow {
        id: job.id,
        kind: job.kind,
        about: (!about.is_empty()).then(|| about.join(", ")),
        rows_done: job.rows_done,
        holder: job.holder,
        created_at: job.created_at,
        stepped_at: job.stepped_at,
        failures: job.failures,
        error: job.error,
    }
}

async fn jobs(app: &App, call: &Call, operations: &Operations) -> Result<JobsView, Failure> {
    let after = number(call, "after")?.map(JobId);
    let rows = JobsView::ROWS;
    let limit = u32::try_from(rows + 1).unwrap_or(u32::MAX);
    let found = operations.jobs().list_jobs(after, limit).await.map_err(index)?;
    let now = app.engine.now();
    let next = (found.len() > rows).then(|| found[rows - 1].id.0);
    Ok(JobsView {
        jobs: found.into_iter().take(rows).map(|job| job_row(job_entry(job, now))).collect(),
        next,
    })
}

/// A parameter of the query that is a number.
fn number(call: &Call, name: &str) -> Result<Option<i64>, Failure> {
    query(call, name)?.map(|number| number.parse()).transpose().map_err(bad_request)
}

async fn collection(operations: &Operations) -> Result<CollectionView, Failure> {
    let last = operations.collector().last().await?;
    let plan = match operations.plan() {
        Plan::None => PlanView::None,
        Plan::Running(since) => PlanView::Running(since),
        Plan::Ended(at, Ok(plan)) => PlanView::Made(Box::new(planned(at, &plan))),
        Plan::Ended(at, Err(reason)) => PlanView::Failed(at, reason),
    };
    let last = last.map(|last| (last.ended_at, collected(&last.report)));
    Ok(CollectionView { server: operations.name().to_owned(), last, plan })
}

fn packs(of: &PackTotals) -> PackFigures {
    PackFigures { packs: of.packs, bytes: of.bytes }
}

fn rewritten(parts: [&CompactionTotals; 2]) -> (PackFigures, u64) {
    let sum =
        |of: fn(&CompactionTotals) -> u64| parts.iter().map(|part| of(part)).fold(0, u64::saturating_add);
    (
        PackFigures { packs: sum(|part| part.packs), bytes: sum(|part| part.bytes) },
        sum(|part| part.bytes_written),
    )
}

fn planned(at: i64, plan: &CompletePlan) -> MadePlan {
    let CompletePlan { expiry, collection } = plan;
    let (compacted, written_bytes) = rewritten([&collection.compact, &collection.recompress]);
    MadePlan {
        at,
        stored_bytes: collection.pack_bytes,
        expiring: ExpiryFigures {
            paths: expiry.paths,
            bytes: expiry.bytes,
            caches: expiry.caches,
            caches_left_out: expiry.caches_left_out,
        },
        figures: CollectionFigures {
            nars: collection.nars,
            nar_bytes: collection.nar_bytes,
            condemned: packs(&collection.condemn),
            waiting: packs(&collection.wait),
            freed: packs(&collection.remove),
            compacted,
            written_bytes,
        },
    }
}

fn collected(report: &CollectionReport) -> CollectionFigures {
    let (compacted, written_bytes) = rewritten([&report.compacted, &report.recompressed]);
    CollectionFigures {
        nars: report.nars,
        nar_bytes: report.nar_bytes,
        condemned: packs(&report.condemned),
        waiting: packs(&report.waiting),
        freed: packs(&report.removed),
        compacted,
        written_bytes,
    }
}

async fn publishing(app: &App, call: &Call) -> Result<PublishingView, Failure> {
    let from = query(call, "from")?;
    app.metrics.refresh().await;
    let targets = app.metrics.publishing();
    let now = app.engine.now();
    let targets = targets.map(|targets| targets.iter().map(|of| target(of, now)).collect());
    Ok(PublishingView { targets, from })
}

fn target(of: &TargetBacklog, now: i64) -> TargetView {
    let mut caches: Vec<&PublishBacklog> = of.caches.iter().collect();
    caches.sort_by_key(|cache| std::cmp::Reverse((cache.reason.is_some(), cache.pending)));
    let row = |cache: &PublishBacklog| PublishedCacheRow {
        name: cache.cache.clone(),
        published: cache.published,
        pending: cache.pending,
        oldest: cache
            .oldest
            .zip(cache.pending_since)
            .map(|(hash, since)| (hash.to_string(), since, cache.reason.clone())),
    };
    let target = &of.follower.target;
    TargetView {
        name: target.name.clone(),
        location: target.location.clone(),
        holder: holder(of, now),
        ran_at: target.ran_at,
        error: target.error.clone(),
        lag_seconds: of.lag_seconds.unsigned_abs(),
        cache_count: of.follower.caches,
        caches: caches.into_iter().map(row).collect(),
    }
}

async fn damage(operations: &Operations) -> Result<DamageView, Failure> {
    let jobs = operations.jobs();
    let running = match jobs.find_job(JobKind::Scrub).await.map_err(index)? {
        Some(job) => operations.scrubber().state(job).await?.map(|state| scrubbed(state.report)),
        None => None,
    };
    let last = operations.scrubber().last().await?.map(|last| (last.ended_at, scrubbed(last.report)));
    let spreading = jobs.find_job(JobKind::SpreadDamage).await.map_err(index)?.is_some();
    Ok(DamageView { running, last, spreading })
}

fn scrubbed(report: ScrubReport) -> ScrubFigures {
    ScrubFigures {
        checked: [report.packs, report.chunks, report.nars],
        bytes_read: report.bytes_read,
        damaged: [report.packs_damaged, report.chunks_damaged, report.nars_damaged],
        packs_lost: report.packs_lost,
        findings: report.findings,
    }
}

async fn audit(app: &App, call: &Call) -> Result<AuditView, Failure> {
    let mut filters = [const { String::new() }; 3];
    for (filter, name) in filters.iter_mut().zip(AuditView::FILTERS) {
        *filter = AuditView::filter(&query(call, name)?.unwrap_or_default());
        let most = AuditView::FILTER_CHARACTERS;
        if filter.chars().count() > most {
            return Err(Failure::BadRequest(format!(
                "a filter has at most {most} characters; end it with … to find actors by their beginning"
            )));
        }
    }
    let wanted = |filter: &str| Some(AuditView::wanted(filter)).filter(|value| !value.is_empty());
    let [cache, action, actor] = &filters;
    let (subject, subject_start) = match AuditView::cut(actor) {
        Some(start) => (None, Some(AuditView::wanted(start))),
        None => (wanted(actor), None),
    };
    let filter = AuditFilter { cache: wanted(cache), action: wanted(action), subject, subject_start };
    let before = number(call, "before")?.unwrap_or(i64::MAX);
    let rows = u32::try_from(AuditView::ROWS).unwrap_or(u32::MAX);
    let found = app.engine.index().audit_before(before, &filter, rows).await.map_err(index)?;
    let row = |(entry, cache): (dormer_index::AuditEntry, Option<String>)| AuditRow {
        at: entry.at,
        subject: entry.subject,
        action: entry.action,
        cache,
        hash: entry.store_path_hash.map(|hash| hash.to_string()),
    };
    Ok(AuditView { filters, entries: found.entries.into_iter().map(row).collect(), next: found.next })
}
