//! `dormer top`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use dormer_api::v2::{JobCounts, StatusResponse};
use dormer_client::{ApiClient, ServerName};
use serde_json::json;

use super::top_screen::Screen;
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};
use crate::settings::units::{counted, human_duration, human_size, parse_duration};

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

/// Servers behind one address whose last answers are remembered.
const SERVERS: usize = 16;

/// Rates that the screen remembers: as many as a wide terminal has columns.
const REMEMBERED: usize = 240;

/// What a server did in a second, between two of its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) narinfos: f64,
    pub(super) nars: f64,
    pub(super) sent_bytes: f64,
    pub(super) pushes: f64,
    pub(super) pushed_bytes: f64,
    pub(super) new_bytes: f64,
    pub(super) requests: f64,
}

impl Rates {
    /// `None` if another process answered: counters of two processes have no difference.
    fn between(before: &StatusResponse, after: &StatusResponse, seconds: f64) -> Option<Self> {
        if before.process != after.process || before.started_at != after.started_at || seconds <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "rates are shown with few digits")]
        let rate = |of: fn(&StatusResponse) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        Some(Self {
            narinfos: rate(|status| status.reads.narinfos + status.reads.missing),
            nars: rate(|status| status.reads.nars),
            sent_bytes: rate(|status| status.requests.sent_bytes),
            pushes: rate(|status| status.pushes.nars),
            pushed_bytes: rate(|status| status.pushes.nar_bytes),
            new_bytes: rate(|status| status.pushes.new_bytes),
            requests: rate(|status| status.requests.answered),
        })
    }
}

/// What is known of a server.
#[derive(Debug)]
pub(super) struct Watched {
    /// The server's name in the settings.
    pub(super) server: String,
    /// The last answer.
    pub(super) status: Option<StatusResponse>,
    /// Why the last question had no answer.
    pub(super) failure: Option<String>,
    /// Rates of the last answer. The first one of a process has none.
    pub(super) now: Option<Rates>,
    /// Rates of all answers that have some, the newest last.
    pub(super) rates: VecDeque<Rates>,
    /// The last answer of each server, and when it came; the newest is the last.
    answers: VecDeque<(StatusResponse, Instant)>,
}

impl Watched {
    pub(super) fn new(server: String) -> Self {
        Self {
            server,
            status: None,
            failure: None,
            now: None,
            rates: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// Takes what came of a question. What may pass is shown; a token that is refused ends the
    /// command.
    fn take(&mut self, asked: dormer_client::Result<StatusResponse>) -> Result<()> {
        use dormer_client::Error::{Forbidden, Unauthorized};
        match asked {
            Ok(status) => self.answer(status, Instant::now()),
            Err(error @ (Unauthorized { .. } | Forbidden { .. })) => return Err(error.into()),
            Err(error) => (self.now, self.failure) = (None, Some(Error::from(error).chain())),
        }
        Ok(())
    }

    /// Takes an answer that came at `at`.
    pub(super) fn answer(&mut self, status: StatusResponse, at: Instant) {
        // Behind a load balancer, others may have answered since.
        let is_same = |(before, _): &(StatusResponse, Instant)| {
            before.process == status.process && before.started_at == status.started_at
        };
        let before = self.answers.iter().position(is_same).and_then(|place| self.answers.remove(place));
        self.now = before.and_then(|(before, then)| {
            Rates::between(&before, &status, at.duration_since(then).as_secs_f64())
        });
        if let Some(rates) = self.now {
            if self.rates.len() == REMEMBERED {
                self.rates.pop_front();
            }
            self.rates.push_back(rates);
        }
        if self.answers.len() == SERVERS {
            self.answers.pop_front();
        }
        self.answers.push_back((status.clone(), at));
        (self.status, self.failure) = (Some(status), None);
    }
}

pub(super) async fn run(args: &TopArgs, context: &Context) -> Result<()> {
    let server = context.server(args.server.as_ref())?;
    let api = context.watching_client_for(&server)?;
    let mut watched = Watched::new(server.name.to_string());
    // The first answer tells of a wrong address or token, before anything is drawn.
    watched.answer(api.status().await?, Instant::now());
    if context.printer.draws() {
        return draw(args, &api, watched).await;
    }
    print(args, context, &api, watched).await
}

async fn print(args: &TopArgs, context: &Context, api: &ApiClient, mut watched: Watched) -> Result<()> {
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

async fn draw(args: &TopArgs, api: &ApiClient, mut watched: Watched) -> Result<()> {
    let failed = |source| Error::Io { attempt: "draw on the terminal".to_owned(), source };
    let mut stop = Box::pin(super::serve::stop_signal()?);
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
            whole(rates.sent_bytes),
            rates.pushes,
            whole(rates.pushed_bytes)
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

/// A rate of bytes, for people.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are never negative")]
pub(super) fn whole(bytes: f64) -> String {
    human_size(bytes.round() as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use dormer_api::v2::{JobEntry, PushStatus, QueueStatus, ReadStatus, RequestStatus, TargetEntry};

    use super::*;

    pub(crate) fn status() -> StatusResponse {
        StatusResponse {
            process: "process 12 on lab".to_owned(),
            version: "0.1.0".to_owned(),
            started_at: 1_000,
            now: 4_700,
            not_ready: None,
            requests: RequestStatus {
                answered: 900,
                failed: 2,
                refused: 1,
                in_flight: 3,
                connections: 9,
                received_bytes: 5 << 20,
                sent_bytes: 90 << 20,
            },
            reads: ReadStatus { narinfos: 500, missing: 300, nars: 80 },
            pushes: PushStatus { nars: 20, nar_bytes: 64 << 20, new_bytes: 8 << 20, uploading: 2 },
            queues: vec![
                QueueStatus {
                    name: "upload_memory".to_owned(),
                    waiting: 4,
                    in_use: Some(72 << 20),
                    limit: Some(144 << 20),
                },
                QueueStatus { name: "uploads".to_owned(), waiting: 1, in_use: None, limit: None },
            ],
            jobs: vec![JobEntry {
                id: 7,
                kind: "delete-cache".to_owned(),
                cache: Some("old".to_owned()),
                target: None,
                rows_done: 4_096,
                holder: Some("process 12 on lab".to_owned()),
                created_at: 4_640,
                stepped_at: Some(4_699),
                failures: 0,
                error: None,
            }],
            jobs_known: Some(true),
            more_jobs: false,
            job_counts: Some(JobCounts { open: 1, running: 1, failing: 0 }),
            targets: vec![TargetEntry {
                name: "edge".to_owned(),
                lag_seconds: 65,
                published: 1_200,
                pending: 30,
                error: None,
            }],
            targets_known: Some(true),
        }
    }

    /// The same server, while its database does not answer.
    pub(crate) fn without_database() -> StatusResponse {
        StatusResponse {
            not_ready: Some("the database does not answer".to_owned()),
            jobs: Vec::new(),
            jobs_known: Some(false),
            job_counts: None,
            targets: Vec::new(),
            targets_known: Some(false),
            ..status()
        }
    }

    /// The same server some work later.
    pub(crate) fn later() -> StatusResponse {
        let mut later = status();
        later.reads.narinfos += 100;
        later.reads.nars += 20;
        later.requests.sent_bytes += 20 << 20;
        later.requests.answered += 130;
        later.pushes.nars += 10;
        later.pushes.nar_bytes += 30 << 20;
        later.pushes.new_bytes += 2 << 20;
        later
    }

    #[test]
    fn rates_are_between_two_answers_of_one_process() {
        let rates = Rates::between(&status(), &later(), 10.0).unwrap();
        assert_eq!((rates.narinfos, rates.nars, rates.pushes, rates.requests), (10.0, 2.0, 1.0, 13.0));
        assert_eq!(
            (whole(rates.sent_bytes), whole(rates.new_bytes)),
            ("2.0 MiB".to_owned(), "204.8 KiB".to_owned())
        );
        let other = StatusResponse { process: "process 13 on lab".to_owned(), ..later() };
        let restarted = StatusResponse { started_at: 2_000, ..later() };
        assert!(Rates::between(&status(), &other, 10.0).is_none());
        assert!(Rates::between(&status(), &restarted, 10.0).is_none());
        assert!(Rates::between(&status(), &later(), 0.0).is_none());
    }

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
    fn servers_that_answer_in_turns_have_rates_of_their_own() {
        let mut watched = Watched::new("lab".to_owned());
        let other =
            |status: StatusResponse| StatusResponse { process: "process 9 on b".to_owned(), ..status };
        let answers = [status(), other(status()), later(), other(status()), other(later())];
        let begin = Instant::now();
        for (second, answer) in (0..).step_by(10).zip(answers) {
            watched.answer(answer, begin + Duration::from_secs(second));
        }
        let narinfos: Vec<f64> = watched.rates.iter().map(|rates| rates.narinfos).collect();
        assert_eq!(narinfos, [5.0, 0.0, 10.0]);
        for number in 0..2 * SERVERS {
            watched.answer(StatusResponse { process: number.to_string(), ..status() }, begin);
        }
        assert_eq!(watched.answers.len(), SERVERS);
    }

    #[test]
    fn a_rate_is_of_the_process_that_answered_last() {
        let mut watched = Watched::new("lab".to_owned());
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        watched.answer(status(), at(0));
        assert_eq!(watched.now, None, "the first answer has none");
        watched.answer(later(), at(10));
        assert_eq!(watched.now.map(|rates| rates.narinfos), Some(10.0));
        // The server was restarted: its counters begin anew.
        let restarted = |status: StatusResponse| StatusResponse { started_at: 4_705, ..status };
        watched.answer(restarted(status()), at(20));
        assert_eq!((watched.now, watched.rates.len()), (None, 1), "the picture keeps what was before");
        watched.answer(restarted(later()), at(40));
        assert_eq!(watched.now.map(|rates| rates.narinfos), Some(5.0));
        // A server that does not answer has no rate either.
        watched.take(Err(dormer_client::Error::NoDefaultServer)).unwrap();
        assert!(watched.now.is_none() && watched.failure.is_some());
    }

    #[test]
    fn only_so_many_rates_are_remembered() {
        let mut watched = Watched::new("lab".to_owned());
        let begin = Instant::now();
        for second in 0..2 * REMEMBERED as u64 {
            watched.answer(status(), begin + Duration::from_secs(second));
        }
        assert_eq!(watched.rates.len(), REMEMBERED);
    }

    #[test]
    fn an_interval_is_neither_tiny_nor_endless() {
        assert_eq!(parse_interval("500ms"), Ok(Duration::from_millis(500)));
        assert!(["0", "499ms", "2h", "soon", ""].iter().all(|text| parse_interval(text).is_err()));
    }
}
