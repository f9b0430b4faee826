//! What `dormer top` knows of a server: its last answer, and rates between two answers.

use std::collections::VecDeque;
use std::time::Instant;

use dormer_api::v2::StatusResponse;

use crate::error::{Error, Result};
use crate::settings::units::human_size;

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
    pub(super) fn between(before: &StatusResponse, after: &StatusResponse, seconds: f64) -> Option<Self> {
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
pub(super) struct WatchedServer {
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

impl WatchedServer {
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
    pub(super) fn take(&mut self, asked: dormer_client::Result<StatusResponse>) -> Result<()> {
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

/// A rate of bytes, for people.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are never negative")]
pub(super) fn human_rate(bytes: f64) -> String {
    human_size(bytes.round() as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use dormer_api::v2::{
        JobCounts, JobEntry, PushStatus, QueueStatus, ReadStatus, RequestStatus, TargetEntry,
    };

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
            (human_rate(rates.sent_bytes), human_rate(rates.new_bytes)),
            ("2.0 MiB".to_owned(), "204.8 KiB".to_owned())
        );
        let other = StatusResponse { process: "process 13 on lab".to_owned(), ..later() };
        let restarted = StatusResponse { started_at: 2_000, ..later() };
        assert!(Rates::between(&status(), &other, 10.0).is_none());
        assert!(Rates::between(&status(), &restarted, 10.0).is_none());
        assert!(Rates::between(&status(), &later(), 0.0).is_none());
    }

    #[test]
    fn servers_that_answer_in_turns_have_rates_of_their_own() {
        let mut watched = WatchedServer::new("lab".to_owned());
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
        let mut watched = WatchedServer::new("lab".to_owned());
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
        let mut watched = WatchedServer::new("lab".to_owned());
        let begin = Instant::now();
        for second in 0..2 * REMEMBERED as u64 {
            watched.answer(status(), begin + Duration::from_secs(second));
        }
        assert_eq!(watched.rates.len(), REMEMBERED);
    }
}
