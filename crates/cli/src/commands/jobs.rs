//! `dormer jobs`.

use clap::Args;
use dormer_engine::{Clock as _, SystemClock};
use dormer_index::Job;
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::installation::open_index_beside;
use crate::settings::Settings;
use crate::settings::units::ago;

/// List the work over whole caches that is not done yet
///
/// Deleting a cache, for example, hides the cache at once; a job then removes what the cache held,
/// beside pushes and reads. `dormer serve` runs the jobs. A job that another server left behind is
/// taken up when the lease of that server ends. This command reads only, also beside a server.
///
/// Examples:
///   dormer jobs
///   dormer jobs --json --config /etc/dormer.toml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Jobs in one look-up.
const PAGE: u32 = 1_000;

pub(super) async fn run(args: JobsArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let opened = open_index_beside(&settings).await?;
    let (now, printer) = (SystemClock.now(), &context.printer);
    let mut last = None;
    loop {
        let page = opened.jobs.list_jobs(last, PAGE).await?;
        for job in &page {
            printer.message(&message(job, now))?;
            if !printer.json {
                lines(job, now).iter().try_for_each(|line| printer.data(line))?;
            }
        }
        if page.len() < PAGE as usize {
            if last.is_none() && page.is_empty() {
                printer.say("no jobs are open");
            }
            break;
        }
        last = page.last().map(|job| job.id);
    }
    Ok(opened.index.close().await?)
}

/// The process that runs a job now: a lease that has ended counts for nothing.
fn holder(job: &Job, now: i64) -> Option<&str> {
    job.holder.as_deref().filter(|_| job.lease_ends_at > now)
}

fn message(job: &Job, now: i64) -> serde_json::Value {
    json!({
        "message_type": "job", "id": job.id.0, "kind": job.kind, "cache": job.cache_name,
        "target": job.target_name, "rows_done": job.rows_done, "holder": holder(job, now),
        "created_at": job.created_at, "stepped_at": job.stepped_at, "failures": job.failures,
        "error": job.error,
    })
}

fn lines(job: &Job, now: i64) -> Vec<String> {
    let cache = job.cache_name.as_ref().map(|name| format!(" of cache {name}"));
    let target = job.target_name.as_ref().map(|name| format!(" for target {name}"));
    let state = match holder(job, now) {
        Some(holder) => format!("run by {holder}"),
        None => "waiting".to_owned(),
    };
    let mut lines = vec![format!(
        "{} {}{}{}: {} rows done, opened {}, {state}",
        job.id.0,
        job.kind,
        cache.unwrap_or_default(),
        target.unwrap_or_default(),
        job.rows_done,
        ago(now, job.created_at)
    )];
    lines.extend(job.error.as_ref().map(|error| {
        let tries = if job.failures == 1 {
            "1 failed try".to_owned()
        } else {
            format!("{} failed tries", job.failures)
        };
        format!("  {tries}, the last: {error}")
    }));
    lines
}

#[cfg(test)]
mod tests {
    use dormer_index::JobId;

    use super::*;

    fn job() -> Job {
        Job {
            id: JobId(7),
            kind: "delete-cache".to_owned(),
            cache: None,
            cache_name: Some("main".to_owned()),
            target: None,
            target_name: None,
            rows_done: 4_096,
            holder: Some("lab:12".to_owned()),
            lease_ends_at: 1_030,
            failures: 0,
            created_at: 940,
            stepped_at: Some(1_000),
            error: None,
        }
    }

    #[test]
    fn a_job_is_one_line_for_people() {
        let line = "7 delete-cache of cache main: 4096 rows done, opened 60 seconds ago, run by lab:12";
        assert_eq!(lines(&job(), 1_000), [line]);
    }

    #[test]
    fn an_ended_lease_is_no_holder() {
        let failed = Job { failures: 2, error: Some("it broke".to_owned()), ..job() };
        let lines = lines(&failed, 1_030);
        assert!(lines[0].ends_with("waiting"), "{lines:?}");
        assert_eq!(lines[1], "  2 failed tries, the last: it broke");
        assert_eq!(message(&failed, 1_030)["holder"], serde_json::Value::Null);
        assert_eq!(message(&failed, 1_029)["holder"], "lab:12");
    }
}
