//! What a runner has to do every minute, beside its jobs.

use std::time::{Duration, Instant};

use dormer_index::{CacheId, Day, Error as IndexError};
use dormer_nix::with_causes;

use super::runner::{JobRunner, RELEASE_MAX};
use super::settings::OutboxLimits;
use crate::Error;

/// How often the runner tends the counters of what is stored, and the outbox.
const TEND_EVERY: Duration = Duration::from_mins(1);

/// How often the runner writes down what caches hold, beside the first time on each day.
const SIZES_EVERY: Duration = Duration::from_hours(1);

/// Pages that the runner tends at once, of thousands of rows each. A minute of pushes leaves fewer.
const TENDED_PAGES_MAX: u32 = 64;

impl JobRunner {
    /// What has to be done every minute, also while a job runs that takes days.
    pub(super) async fn tend(&self) {
        let mut sizes_at = None;
        loop {
            self.tend_counters().await;
            self.show_last_runs().await;
            self.write_activity().await;
            self.write_sizes(&mut sizes_at).await;
            self.trim_outbox().await;
            self.sweep_sessions().await;
            tokio::time::sleep(TEND_EVERY).await;
        }
    }

    /// Sums up changes of counters, opens a recount that is due, and reads the gauges.
    async fn tend_counters(&self) {
        if let Some(seconds) = self.settings.recount_seconds {
            let now = self.clock.now();
            for _ in 0..TENDED_PAGES_MAX {
                match self.jobs.tend_counters(now, now.saturating_sub(seconds)).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::warn!(error, "failed to tend the counters; the runner tries again");
                        break;
                    }
                }
            }
        }
        if let Some(counters) = &self.counters {
            // What could not be asked for is not shown.
            self.stored.write(counters.stored_counts().await.ok().as_ref());
        }
    }

    /// Shows in gauges what the last collection and the last scrub found. A command or another
    /// replica may have run them.
    async fn show_last_runs(&self) {
        let shown = async {
            if let Some(collector) = &self.collector {
                collector.show_last().await?;
            }
            if let Some(scrubber) = &self.scrubber {
                scrubber.show_last().await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = shown.await {
            let error = with_causes(&error);
            tracing::warn!(error, "failed to read the last collection and scrub; the runner tries again");
        }
    }

    /// Writes down the pushes and pulls since the last time. Where the answer of the database was
    /// lost, a minute may count twice: nobody is harmed by that, and a database that is away for an
    /// hour loses nothing.
    async fn write_activity(&self) {
        let Some(activity) = &self.activity else { return };
        let taken = activity.take();
        match self.jobs.add_activity(Day::of(self.clock.now()), taken.all()).await {
            Ok(()) => taken.forget(),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "failed to write down pushes and pulls; the runner tries again");
            }
        }
    }

    /// Writes down the pushes and pulls of the requests that ended after [`run`](Self::run) had.
    pub async fn finish(&self) {
        if tokio::time::timeout(RELEASE_MAX, self.write_activity()).await.is_err() {
            tracing::warn!("no time to write down the last pushes and pulls");
        }
    }

    /// Writes down what caches hold if it is time for that, and deletes what is too old. Several
    /// servers write the same.
    async fn write_sizes(&self, written_at: &mut Option<(Instant, Day)>) {
        let today = Day::of(self.clock.now());
        let is_fresh = |(at, day): (Instant, Day)| day == today && at.elapsed() < SIZES_EVERY;
        if self.activity.is_none() || written_at.is_some_and(is_fresh) {
            return;
        }
        let written = async {
            let mut after = Some(CacheId(0));
            while let Some(last) = after {
                after = self.jobs.record_sizes(today, last, self.settings.step_rows_max).await?;
            }
            for _ in 0..TENDED_PAGES_MAX {
                if self.jobs.trim_history(today, self.settings.step_rows_max).await? == 0 {
                    break;
                }
            }
            Ok::<_, IndexError>(())
        };
        match written.await {
            Ok(()) => *written_at = Some((Instant::now(), today)),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "failed to write down what caches hold; the runner tries again");
            }
        }
    }

    /// Deletes the rows of the outbox that nobody needs any more.
    async fn trim_outbox(&self) {
        let Some(OutboxLimits { keep_seconds, give_up_seconds }) = self.settings.outbox else { return };
        let now = self.clock.now();
        let (keep_since, give_up_before) =
            (now.saturating_sub(keep_seconds), now.saturating_sub(give_up_seconds));
        for _ in 0..TENDED_PAGES_MAX {
            match self.jobs.trim_outbox(keep_since, give_up_before, self.settings.step_rows_max).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "failed to trim the outbox; the runner tries again");
                    break;
                }
            }
        }
    }

    /// Deletes what is left of pushes by chunks that ended.
    async fn sweep_sessions(&self) {
        for _ in 0..TENDED_PAGES_MAX {
            match self.jobs.sweep_sessions(self.clock.now(), self.settings.step_rows_max).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "failed to sweep sessions; the runner tries again");
                    break;
                }
            }
        }
    }
}
