//! When the journal is written, and which process writes it: turns under a lease, the lag, and what
//! happens when a turn fails.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dormer_index::{Error as IndexError, JournalLease, JournalState, SNAPSHOT_WANTED};
use dormer_nix::{Backoff, with_causes};

use super::kept::{ComparedPasts, KEEP_SECONDS};
use super::turn::Turn;
use super::writer::Journal;
use crate::Result;
use crate::restarting::restarting;

/// How long a stop waits for the last changes to be written.
const LAST_WRITE_MAX: Duration = Duration::from_secs(5);

/// A writer that fails waits no longer than this for the next try, or one interval.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// While another process has the lease, a writer looks so many times in an interval. The other one
/// may have died: its changes wait for the interval, the lease and one look, 55 s by default.
const LOOKS_ELSEWHERE: u32 = 4;

/// Between two tries to get a turn that another process has.
const TURN_LOOK: Duration = Duration::from_millis(250);

/// Between two looks at the lag during a turn.
const LAG_LOOK: Duration = Duration::from_secs(1);

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// Nothing is left to write; so many files were written.
    All(u64),
    /// Another process writes.
    Elsewhere,
}

impl Journal {
    /// Writes what changed, every interval, until `shutdown` is ready; then once more.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = shutdown => {}
            () = restarting("journal", &self.metrics.restarts, || self.work()) => {}
        }
        match tokio::time::timeout(LAST_WRITE_MAX, self.write_turn(false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = with_causes(&error),
                    "the last changes are not in the journal; the next start writes them"
                );
            }
            Err(_) => {
                tracing::warn!(
                    "no time to write the last changes to the journal; the next start writes them"
                );
            }
        }
    }

    async fn work(&self) {
        self.note_lag();
        // What is forgotten has to be marked before anything deletes it. If the store does not
        // answer, the first turn asks again.
        let is_other = self.look_back().await.is_ok() && self.is_past_other.load(Ordering::Relaxed);
        let mut pause = if is_other { Duration::ZERO } else { self.settings.interval };
        loop {
            tokio::time::sleep(pause).await;
            pause = self.turn().await;
        }
    }

    /// One turn of [`run`](Self::run): writes all that is due now, and returns how long to wait for
    /// the next turn.
    pub async fn turn(&self) -> Duration {
        let interval = self.settings.interval;
        match self.write_unless_elsewhere().await {
            Ok(written) => {
                self.failures.store(0, Ordering::Relaxed);
                match written {
                    Written::All(_) => interval,
                    Written::Elsewhere => interval / LOOKS_ELSEWHERE,
                }
            }
            Err(error) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                self.metrics.count_failure();
                tracing::warn!(
                    error = with_causes(&error),
                    "failed to write the journal; it is tried again, and until then a lost database loses more"
                );
                Backoff { first: 2 * interval, max: interval.max(PAUSE_MAX) }.bound(failures)
            }
        }
    }

    /// Writes all that is due now, unless another process does. Returns the number of files.
    pub async fn write(&self) -> Result<u64> {
        match self.write_unless_elsewhere().await? {
            Written::All(files) => Ok(files),
            Written::Elsewhere => Ok(0),
        }
    }

    /// Writes all that is due now. While another process does, this one waits. Returns `false` if
    /// the other one goes on for longer than `patience`.
    pub async fn write_within(&self, patience: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            if let Written::All(_) = self.write_unless_elsewhere().await? {
                return Ok(true);
            }
            let Some(left) = patience.checked_sub(begun.elapsed()) else { return Ok(false) };
            tokio::time::sleep(TURN_LOOK.min(left)).await;
        }
    }

    /// Compares database and store, once in a process, and says what it finds.
    async fn look_back(&self) -> Result<()> {
        if self.has_looked_back.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pasts = ComparedPasts::read(&*self.memory, &self.store).await?;
        if pasts.is_database_older {
            tracing::error!(
                keep_days = KEEP_SECONDS / 86_400,
                "the journal in the store is newer than this database, which was restored from a copy: paths that \
                 were pushed since then are unknown to it. The newer journal stays for a while. To have these paths \
                 back, stop every server, set this database aside, and run `dormer recover --from-store`"
            );
        }
        let kept = self.look_at_kept().await?;
        if !kept.is_empty() {
            tracing::warn!(
                journals = kept.len(),
                first_ends_at = self.kept_until.load(Ordering::Relaxed),
                "the store keeps a journal of another past, and the packs from before; `dormer recover` can read it, \
                 and `dormer recover --accept-loss` lets it go"
            );
        }
        self.is_past_other.store(pasts.is_database_older || pasts.is_store_older, Ordering::Relaxed);
        self.has_looked_back.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn write_unless_elsewhere(&self) -> Result<Written> {
        self.look_back().await?;
        let begun_at = self.clock.now();
        // While an older transaction runs, the outbox hides changes that are acknowledged. One that
        // ends during this turn may have hidden them from it, so it counts as well.
        let hidden_at = self.memory.hidden_change().await;
        let written = self.with_lag(self.write_turn(true)).await;
        if matches!(written, Ok(Written::All(_))) {
            match hidden_at {
                Ok(None) => {
                    self.complete_at.store(begun_at, Ordering::Relaxed);
                    self.metrics.set_lag(0);
                    return written;
                }
                Ok(Some(at)) => self.complete_at.store(at.min(begun_at), Ordering::Relaxed),
                // What was written is written; how far it reaches, the next turn tells.
                Err(error) => {
                    tracing::debug!(error = with_causes(&error), "the age of hidden changes is not known");
                }
            }
        }
        self.note_lag();
        written
    }

    fn note_lag(&self) {
        self.metrics.set_lag(self.clock.now() - self.complete_at.load(Ordering::Relaxed));
    }

    /// Tells how far the journal is behind while a turn lasts: the first snapshot of a large cache
    /// takes a while, and a store that hangs takes longer.
    async fn with_lag<T>(&self, turn: impl Future<Output = T>) -> T {
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                done = &mut turn => return done,
                () = tokio::time::sleep(LAG_LOOK) => {
                    self.note_lag();
                }
            }
        }
    }

    /// One turn: all changes, and with `with_snapshot` also what is due of a snapshot.
    async fn write_turn(&self, with_snapshot: bool) -> Result<Written> {
        if !self.is_due(&self.memory.journal_state().await?).await? {
            return Ok(Written::All(0));
        }
        let now = self.clock.now();
        let leased = self.memory.lease_journal(&self.holder, now, now + self.settings.lease_seconds).await?;
        let Some((lease, state)) = leased else { return Ok(Written::Elsewhere) };
        let mut turn = Turn { journal: self, lease, state, files: 0 };
        let written = tokio::select! {
            biased;
            written = Box::pin(turn.write(with_snapshot)) => written,
            lost = self.renew(&lease) => Err(lost.into()),
        };
        let files = turn.files;
        let released = self.memory.release_journal(&lease).await;
        match written {
            // The other process writes all that this one did not note.
            Err(crate::Error::Index(IndexError::JobLeaseLost)) => {
                tracing::warn!("another process took the lease of the journal during a turn, and goes on");
                Ok(Written::Elsewhere)
            }
            Err(error) => Err(error),
            Ok(()) => released.map(|()| Written::All(files)).map_err(Into::into),
        }
    }

    /// Keeps a lease for as long as this is polled and the turn gets on. Returns when the lease is
    /// lost; a database that does not answer is asked again.
    ///
    /// A call to a folder that hangs never ends, and cannot be given up. Another process, whose
    /// folder may answer, has to get the lease then. Should the call end after all, the turn goes
    /// on if the lease is still its own.
    async fn renew(&self, lease: &JournalLease) -> IndexError {
        let (mut steps, mut since, mut is_told) = (self.steps.load(Ordering::Relaxed), Instant::now(), false);
        loop {
            tokio::time::sleep(self.settings.renew_after).await;
            let steps_now = self.steps.load(Ordering::Relaxed);
            if steps_now != steps {
                (steps, since, is_told) = (steps_now, Instant::now(), false);
            }
            if since.elapsed() >= self.settings.stuck_after {
                if !is_told {
                    tracing::warn!(
                        seconds = since.elapsed().as_secs(),
                        "the journal waits for the store, which does not answer; another process may write it now"
                    );
                    is_told = true;
                }
                continue;
            }
            let ends_at = self.clock.now() + self.settings.lease_seconds;
            match self.memory.renew_journal(lease, ends_at).await {
                Ok(()) => {}
                Err(lost @ IndexError::JobLeaseLost) => return lost,
                Err(error) => {
                    tracing::debug!(error = with_causes(&error), "the lease of the journal is not renewed");
                }
            }
        }
    }

    async fn is_due(&self, state: &JournalState) -> Result<bool> {
        let is_past_other = self.is_past_other.load(Ordering::Relaxed);
        Ok(state.lineage == 0
            || state.snapshot.is_some()
            || state.segment_bytes >= SNAPSHOT_WANTED
            || is_past_other && !self.is_past_known.load(Ordering::Relaxed)
            || self.clock.now() >= self.kept_until.load(Ordering::Relaxed)
            || !self.memory.journal_notes(1).await?.is_empty()
            || !self.index.outbox_after(state.cursor, 1).await?.is_empty())
    }
}
