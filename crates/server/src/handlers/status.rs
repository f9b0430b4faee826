//! `/_api/v2/status`: what this server does at this moment, for operators.

use dormer_api::v2::{
    JobCounts, JobEntry, PushStatus, QueueStatus, ReadStatus, RequestStatus, StatusResponse, TargetEntry,
};
use dormer_index::{Follower, Job, UnixSeconds};
use http::{Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;
use crate::figures::Figures;
use crate::health;
use crate::operations::Operations;
use crate::route::NARINFO;

/// Jobs that an answer names.
const JOBS: u32 = 20;

/// Shows the status, to a caller that operates the installation.
pub(crate) async fn show_status(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    let operations = app.open_operations(call)?;
    Ok(body::json(StatusCode::OK, &status(app, operations).await))
}

/// Four statements at most. While the database does not answer, jobs and targets are left out, and
/// the status says so: an empty list would say that there are none.
pub(super) async fn status(app: &App, operations: &Operations) -> StatusResponse {
    let reason = app.probes.check().await.err();
    app.metrics.refresh().await;
    let now = app.engine.now();
    // A database that does not answer now would keep the status waiting.
    let found = if reason.as_ref().is_none_or(health::has_database) {
        operations.jobs().list_jobs_by_need(now, JOBS).await.map(Some)
    } else {
        Ok(None)
    };
    let mut not_ready = reason.map(|reason| reason.0.to_owned());
    let found = found.unwrap_or_else(|error| {
        tracing::warn!(error = dormer_nix::with_causes(&error), "failed to list the jobs");
        not_ready = Some("the database does not answer".to_owned());
        None
    });
    let job_counts = found.as_ref().map(|found| JobCounts {
        open: found.open,
        running: found.running,
        failing: found.failing,
    });
    let jobs = found.unwrap_or_default().jobs;
    let figures = app.metrics.figures();
    let targets = app.metrics.publishing();
    StatusResponse {
        process: operations.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: i64::try_from(figures.total("process_start_time_seconds")).unwrap_or(i64::MAX),
        now,
        not_ready,
        requests: requests(&figures),
        reads: reads(&figures),
        pushes: pushes(&figures),
        queues: queues(&figures),
        jobs_known: Some(job_counts.is_some()),
        more_jobs: job_counts.is_some_and(|counts| counts.open > jobs.len() as u64),
        job_counts,
        jobs: jobs.into_iter().map(|job| job_entry(job, now)).collect(),
        targets_known: Some(targets.is_some()),
        targets: targets.iter().flat_map(|targets| targets.iter()).map(target_entry).collect(),
    }
}

fn requests(figures: &Figures) -> RequestStatus {
    let answered = "dormer_http_requests_total";
    RequestStatus {
        answered: figures.total(answered),
        failed: figures.sum(answered, |labels| labels.get("status").starts_with('5')),
        refused: figures.total("dormer_http_refused_total"),
        in_flight: figures.total("dormer_http_requests_in_flight"),
        connections: figures.total("dormer_http_connections"),
        received_bytes: figures.total("dormer_http_received_bytes_total"),
        sent_bytes: figures.total("dormer_http_sent_bytes_total"),
    }
}

fn reads(figures: &Figures) -> ReadStatus {
    let count = |is_route: fn(&str) -> bool, statuses: &[&str]| {
        figures.sum("dormer_http_requests_total", |labels| {
            labels.get("method") == "GET"
                && is_route(labels.get("route"))
                && statuses.contains(&labels.get("status"))
        })
    };
    ReadStatus {
        narinfos: count(|route| route == NARINFO, &["200"]),
        missing: count(|route| route == NARINFO, &["404"]),
        nars: count(|route| route.starts_with("/{cache}/nar/"), &["200", "206"]),
    }
}

fn pushes(figures: &Figures) -> PushStatus {
    PushStatus {
        nars: figures.total("dormer_nars_received_total"),
        nar_bytes: figures.total("dormer_nar_bytes_received_total"),
        new_bytes: figures.total("dormer_chunk_bytes_new_total"),
        uploading: figures.total("dormer_uploads_streaming"),
    }
}

fn queues(figures: &Figures) -> Vec<QueueStatus> {
    let of_budget = |family: &str, name: &str| figures.sum(family, |labels| labels.get("budget") == name);
    let budgets = figures.by_label("dormer_budget_limit", "budget").into_iter();
    let state = |(name, limit): (String, u64)| QueueStatus {
        waiting: of_budget("dormer_budget_waiting", &name),
        in_use: Some(of_budget("dormer_budget_in_use", &name)),
        limit: Some(limit),
        name,
    };
    budgets.map(state).collect()
}

/// A lease that has ended counts for nothing.
pub(super) fn job_entry(job: Job, now: UnixSeconds) -> JobEntry {
    JobEntry {
        id: job.id.0,
        kind: job.kind,
        cache: job.cache_name,
        target: job.target_name,
        rows_done: job.rows_done,
        holder: job.holder.filter(|_| job.lease_ends_at > now),
        created_at: job.created_at,
        stepped_at: job.stepped_at,
        failures: job.failures,
        error: job.error,
    }
}

fn target_entry(of: &crate::publish_metrics::TargetBacklog) -> TargetEntry {
    let Follower { target, published, pending, .. } = &of.follower;
    TargetEntry {
        name: target.name.clone(),
        lag_seconds: of.lag_seconds.unsigned_abs(),
        published: *published,
        pending: *pending,
        error: target.error.as_ref().map(|(error, _)| error.clone()),
    }
}
