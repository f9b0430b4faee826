//! `dormer top`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use dormer_api::v2::{JobCounts, StatusResponse};
use dormer_client::{ApiClient, ServerName};
use serde_json::json;

use super::top_screen::Screen;
use super::watched_server::{Rates, WatchedServer, human_rate};
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};
use crate::settings::units::{counted, human_duration, parse_duration};
use crate::signals::stop_signal;

/// Follow what a server does: reads, pushes, jobs and queues
///
/// On a terminal, the command fills the screen and ends with q or Ctrl-C. Without one, it prints a
/// line for each interval, and with --json the server's whole status. Behind a load balancer, each
/// answer may come from another server: rates are shown between two answers of the same one.
///
/// The token must be one of an operator: `dormer token create --operate`, or one that reads and
/// configures all caches (--pull '*' --configure-cache '*').
///
/// Examples:
///   dormer top
///   dormer top --server lab --interval 10s
///   dormer top --json --count 1
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct TopArgs {
    /// The server; without it, the default one
    #[arg(long)]
    server: Option<ServerName>,
    /// How often to ask, from 500ms to 1h
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_interval)]
    interval: Duration,
    /// End after so many answers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    pub(super) endpoint: EndpointArgs,
}

fn parse_interval(text: &str) -> std::result::Result<Duration, String> {
    let range = Duration::from_millis(500)..=Duration::from_hours(1);
    parse_duration(text)
        .filter(|interval| range.contains(interval))
        .ok_or_else(|| "expected a time from 500ms to 1h, such as 2s".to_owned())
}

pub(super) async fn run(args: &TopArgs, context: &Context) -> Result<()> {
    let server = context.server(args.server.as_ref())?;
    let api = context.watching_client_for(&server)?;
    let mut watched = WatchedServer::new(server.name.to_string());
    // The first answer tells of a wrong address or token, before anything is drawn.
    watched.answer(api.status().await?, Instant::now());
    if context.printer.draws() {
        return draw(args, &api, watched).await;
    }
    print(args, context, &api, watched).await
}

async fn print(args: &TopArgs, context: &Context, api: &ApiClient, mut watched: WatchedServer) -> Result<()> {
    let printer = &context.printer;
    let mut answers = 0;
    loop {
        if let Some(failure) = &watched.failure {
            printer.warn(failure);
        } else if let Some(status) = &watched.status {
            let mut message = json!(status);
            message["message_type"] = "status".into();
            message["server"] = watched.server.as_str().into();
            printer.message(&message)?;
            if !printer.json {
                printer.data(&line(status, watched.now.as_ref()))?;
            }
        }
        answers += 1;
        if args.count.is_some_and(|count| answers >= count) {
            return Ok(());
        }
        tokio::time::sleep(args.interval).await;
        watched.take(api.status().await)?;
    }
}

async fn draw(args: &TopArgs, api: &ApiClient, mut watched: WatchedServer) -> Result<()> {
    let failed = |source| Error::Io { attempt: "draw on the terminal".to_owned(), source };
    let mut stop = Box::pin(stop_signal()?);
    let mut screen = Screen::open().map_err(failed)?;
    let mut answers = 1;
    loop {
        screen.draw(&watched).map_err(failed)?;
        if args.count.is_some_and(|count| answers >= count) {
            return Ok(());
        }
        let next = async {
            tokio::time::sleep(args.interval).await;
            api.status().await
        };
        let mut next = std::pin::pin!(next);
        let asked = loop {
            tokio::select! {
                // Nobody waits for a question that is under way.
                () = &mut stop => return Ok(()),
                is_resized = screen.is_resized() => {
                    if !is_resized {
                        return Ok(());
                    }
                    screen.draw(&watched).map_err(failed)?;
                }
                asked = &mut next => break asked,
            }
        };
        watched.take(asked)?;
        answers += 1;
    }
}

/// One interval, for logs and pipes.
fn line(status: &StatusResponse, rates: Option<&Rates>) -> String {
    let waiting: u64 = status.queues.iter().map(|queue| queue.waiting).sum();
    let lag = status.known_targets().map_or_else(
        || "unknown".to_owned(),
        |targets| {
            let seconds = targets.iter().map(|target| target.lag_seconds).max().unwrap_or(0);
            human_duration(Duration::from_secs(seconds))
        },
    );
    let jobs = match (status.job_counts, status.known_jobs()) {
        (Some(JobCounts { open, failing: 0, .. }), _) => counted(open, "job", "jobs"),
        (Some(JobCounts { open, failing, .. }), _) => {
            format!("{}, {failing} failing", counted(open, "job", "jobs"))
        }
        // An earlier server counts none.
        (None, Some(jobs)) if status.more_jobs => format!("{}+ jobs", jobs.len()),
        (None, Some(jobs)) => counted(jobs.len() as u64, "job", "jobs"),
        (None, None) => "jobs unknown".to_owned(),
    };
    let mut line = match rates {
        Some(rates) => format!(
            "reads {:.1}/s, {}/s; pushes {:.1}/s, {}/s",
            rates.narinfos + rates.nars,
            human_rate(rates.sent_bytes),
            rates.pushes,
            human_rate(rates.pushed_bytes)
        ),
        None => format!(
            "{} and {} since the start",
            counted(status.reads.narinfos + status.reads.missing + status.reads.nars, "read", "reads"),
            counted(status.pushes.nars, "push", "pushes")
        ),
    };
    let _ = write!(
        line,
        "; {} in flight, {} uploading, {waiting} waiting; {jobs}; lag {lag}",
        status.requests.in_flight, status.pushes.uploading
    );
    if let Some(reason) = &status.not_ready {
        let _ = write!(line, "; not ready: {reason}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::watched_server::tests::{later, status, without_database};

    #[test]
    fn an_interval_is_one_line() {
        assert_eq!(
            line(&status(), None),
            "880 reads and 20 pushes since the start; 3 in flight, 2 uploading, 5 waiting; 1 job; lag 1 min 05 s"
        );
        let rates = Rates::between(&status(), &later(), 10.0);
        let away = StatusResponse { not_ready: Some("the database does not answer".to_owned()), ..later() };
        assert_eq!(
            line(&away, rates.as_ref()),
            "reads 12.0/s, 2.0 MiB/s; pushes 1.0/s, 3.0 MiB/s; 3 in flight, 2 uploading, 5 waiting; 1 job; lag 1 min 05 s; \
             not ready: the database does not answer"
        );
    }

    #[test]
    fn what_the_database_does_not_say_is_unknown() {
        let of = |status: &StatusResponse| line(status, None).split_once("waiting; ").unwrap().1.to_owned();
        let unknown = "jobs unknown; lag unknown; not ready: the database does not answer";
        assert_eq!(of(&without_database()), unknown);
        // An earlier server does not tell the two apart.
        let earlier = StatusResponse { jobs_known: None, targets_known: None, ..without_database() };
        assert_eq!(of(&earlier), unknown);
        let idle = StatusResponse {
            jobs_known: Some(true),
            targets_known: Some(true),
            not_ready: None,
            ..without_database()
        };
        assert_eq!(of(&idle), "0 jobs; lag 0.0 s");
        let counts = Some(JobCounts { open: 31, running: 4, failing: 2 });
        let busy = StatusResponse { job_counts: counts, more_jobs: true, ..status() };
        assert_eq!(of(&busy), "31 jobs, 2 failing; lag 1 min 05 s");
        assert_eq!(of(&StatusResponse { job_counts: None, ..busy }), "1+ jobs; lag 1 min 05 s");
    }

    #[test]
    fn an_interval_is_neither_tiny_nor_endless() {
        assert_eq!(parse_interval("500ms"), Ok(Duration::from_millis(500)));
        assert!(["0", "499ms", "2h", "soon", ""].iter().all(|text| parse_interval(text).is_err()));
    }
}
