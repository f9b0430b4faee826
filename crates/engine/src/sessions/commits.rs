//! Commits the paths of a session: checks their NARs in the background, and makes them visible in
//! order.
//!
//! Algorithm: a check is a task, named by its session and the bytes of its entry. A request begins
//! the checks of its paths, a few at a time, each when the caller's shares and the server have a
//! turn for it, and waits until its time is up. It commits each path
//! whose NAR is sound and whose references, as far as they stand earlier in the request, are
//! committed. What is not done then goes on without the request: the client asks again with the
//! same entries, and finds the task or what it left.
//!
//! Invariants
//! - A path never becomes visible before a reference that stands earlier in its request.
//! - One task checks an entry, however many requests ask for it. What it left is kept for
//!   [`KEPT`], so an answer that was lost costs no second check. A check that no request has asked
//!   for in that time ends.
//! - The request commits, not the task: what a client gave up never becomes visible later. A commit
//!   that has begun goes to its end, and the next request finds it.
//! - Of one request at most [`CHECKS_MAX`] checks run at once, and of all requests as many as there
//!   are turns. Only requests wait for turns: a check that has not begun holds nothing.
//! - A sound NAR that waits for its commit keeps a share of the memory for uploads, and as much of
//!   its caller's. So no caller fills the memory with checks that it does not commit.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dormer_index::{CommitOutcome, Error as IndexError, Object, SessionId};
use dormer_nix::{NarHash, StorePathHash};
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::verify::Verified;
use super::{PushSession, Reader};
use crate::budget::{Budget, BudgetShare};
use crate::commit::finish;
use crate::ingest::{Deduplication, Ingested};
use crate::settings::UPLOAD_BYTES;
use crate::{Engine, Error, ErrorClass, Result};

/// Checks of one request that run at once.
const CHECKS_MAX: usize = 4;

/// How long a check goes on, and what it left is kept, for the next request.
const KEPT: Duration = Duration::from_mins(2);

/// What a check holds of its caller's shares: a turn, and memory for uploads. They return when this
/// is dropped.
pub trait CheckHold: Send {
    /// Returns all but so many bytes: the check has ended, and its NAR waits for the commit.
    fn end_check(&mut self, bytes: u64);
}

/// Takes a caller's shares for one check, when there is room: a turn, and so many bytes of the
/// memory for uploads.
pub type AdmitCheck<'a> = dyn Fn(u64) -> BoxFuture<'a, Box<dyn CheckHold>> + Send + Sync + 'a;

/// What a check needs to begin.
type Admission = (Box<dyn CheckHold>, BudgetShare);

/// A path to commit.
#[derive(Debug, Clone)]
pub struct ChunkedPath {
    /// A digest of the whole entry, which names its check.
    pub digest: NarHash,
    /// The object.
    pub object: Object,
    /// The announced hash of its NAR.
    pub nar_hash: NarHash,
    /// The announced bytes of its NAR.
    pub nar_size: u64,
    /// The NAR manifest: how the NAR is made.
    pub manifest: Bytes,
}

/// A path that was committed.
#[derive(Debug, Clone, PartialEq)]
pub struct CommittedPath {
    /// Bytes that readers will get.
    pub file_size: u64,
    /// What the server may tell about deduplication: [`Deduplication::Whole`] or
    /// [`Deduplication::Untold`].
    pub deduplication: Deduplication,
    /// Whether the path that was here first stays.
    pub is_kept: bool,
}

/// What became of a path.
#[derive(Debug)]
pub enum PathOutcome {
    /// It is durable and visible.
    Committed(CommittedPath),
    /// Its check goes on.
    Verifying,
    /// Its check did not begin, or a reference that stands earlier is not committed.
    Waiting,
    /// The session may not use the chunks at these positions.
    Missing(Vec<u64>),
    /// It cannot be committed as it is.
    Failed(Arc<Error>),
}

/// The session that asks, and a digest of its entry.
type Key = (SessionId, NarHash);

/// The checks that run, and what ended ones left.
#[derive(Debug)]
pub(crate) struct Verifications {
    all: Mutex<HashMap<Key, Arc<Verification>>>,
    turns: Budget,
}

#[derive(Debug)]
struct Verification {
    state: watch::Sender<State>,
    /// When a request last asked for it.
    asked_at: Mutex<Instant>,
}

#[derive(Clone)]
enum State {
    Running,
    /// Sound. The first commit takes what is in it.
    Sound(Arc<Mutex<Option<SoundNar>>>),
    Missing(Arc<Vec<u64>>),
    Failed(Arc<Error>),
    Committed(CommittedPath),
}

/// A sound NAR, with its caller's share of the memory that it keeps.
type SoundNar = (Ingested, Box<dyn CheckHold>);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "Running",
            Self::Sound(_) => "Sound",
            Self::Missing(_) => "Missing",
            Self::Failed(_) => "Failed",
            Self::Committed(_) => "Committed",
        })
    }
}

impl Verification {
    fn new() -> Self {
        Self { state: watch::Sender::new(State::Running), asked_at: Mutex::new(Instant::now()) }
    }

    fn asked_at(&self) -> Instant {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_request(&self) {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the check has ended.
    async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| !matches!(state, State::Running)).await;
    }
}

impl Verifications {
    pub(crate) fn new(turns: usize) -> Self {
        // Requests wait for turns as long as they wait for checks.
        Self { all: Mutex::default(), turns: Budget::of_turns("checks", turns, Duration::MAX, "checks") }
    }

    pub(crate) fn turns(&self) -> &Budget {
        &self.turns
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Verification>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The check of this name that runs or has ended.
    fn find(&self, key: &Key) -> Option<Arc<Verification>> {
        let check = self.lock().get(key).map(Arc::clone)?;
        check.note_request();
        Some(check)
    }

    /// Forgets a check, unless another one has its name by now.
    fn forget(&self, key: &Key, check: &Arc<Verification>) {
        let mut all = self.lock();
        if all.get(key).is_some_and(|present| Arc::ptr_eq(present, check)) {
            all.remove(key);
        }
    }
}

impl Engine {
    /// Commits paths of a session. Each gets an outcome, in order, after `patience` at the latest;
    /// checks go on in the background. `admit` takes the caller's shares for each check.
    ///
    /// An error says that a part of the server cannot be reached. What was committed before is
    /// remembered, so the same request may be repeated.
    pub async fn commit_paths(
        &self,
        session: &PushSession,
        reader: &Reader,
        paths: &[ChunkedPath],
        patience: Duration,
        admit: &AdmitCheck<'_>,
    ) -> Result<Vec<PathOutcome>> {
        let begun = Instant::now();
        let may_tell = self.reads_everything(reader).await?;
        let outcomes = self.commit_in_order(session, reader, paths, begun + patience, admit).await;
        self.answer_on_grid(begun, may_tell).await;
        outcomes
    }

    async fn commit_in_order(
        &self,
        session: &PushSession,
        reader: &Reader,
        paths: &[ChunkedPath],
        until: Instant,
        admit: &AdmitCheck<'_>,
    ) -> Result<Vec<PathOutcome>> {
        let needed = references_before(paths);
        let mut outcomes: Vec<Option<PathOutcome>> = (0..paths.len()).map(|_| None).collect();
        let mut checks: Vec<Arc<Verification>> = Vec::with_capacity(paths.len());
        let mut running = FuturesUnordered::new();
        let ended = |check: Arc<Verification>| async move { check.ended().await };
        let mut admission: Option<BoxFuture<'_, Admission>> = None;
        'work: loop {
            while checks.len() < paths.len() && running.len() < CHECKS_MAX {
                let path = &paths[checks.len()];
                if let Some(check) = self.verifications().find(&(session.id, path.digest)) {
                    admission = None;
                    checks.push(Arc::clone(&check));
                    running.push(ended(check));
                } else {
                    admission.get_or_insert_with(|| self.admit(session, path, admit).boxed());
                    break;
                }
            }
            for (number, check) in checks.iter().enumerate() {
                let is_committed =
                    |earlier: &usize| matches!(outcomes[*earlier], Some(PathOutcome::Committed(_)));
                if outcomes[number].is_none() && needed[number].iter().all(is_committed) {
                    let is_sound = matches!(check.state(), State::Sound(_));
                    outcomes[number] = self.settle(session, reader, &paths[number], check).await?;
                    // The next request commits the others.
                    if is_sound && Instant::now() >= until {
                        break 'work;
                    }
                }
            }
            if checks.len() == paths.len() && running.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                Some(admission_of_next) = OptionFuture::from(admission.as_mut()) => {
                    admission = None;
                    let check = self.begin_check(session, reader, &paths[checks.len()], admission_of_next);
                    checks.push(Arc::clone(&check));
                    running.push(ended(check));
                }
                () = tokio::time::sleep_until(until) => break,
                Some(()) = running.next() => {}
            }
        }
        let mut settled = Vec::with_capacity(paths.len());
        for (number, outcome) in outcomes.into_iter().enumerate() {
            settled.push(match outcome {
                Some(outcome) => outcome,
                None => self.unsettled(session, &paths[number], checks.get(number)),
            });
        }
        Ok(settled)
    }

    /// What to say of a path that was not settled in time.
    fn unsettled(
        &self,
        session: &PushSession,
        path: &ChunkedPath,
        check: Option<&Arc<Verification>>,
    ) -> PathOutcome {
        let Some(check) = check else { return PathOutcome::Waiting };
        let outcome = match check.state() {
            State::Running => return PathOutcome::Verifying,
            State::Sound(_) | State::Committed(_) => return PathOutcome::Waiting,
            State::Missing(chunks) => PathOutcome::Missing(chunks.to_vec()),
            State::Failed(error) if matches!(error.class(), ErrorClass::Busy | ErrorClass::Unavailable) => {
                PathOutcome::Waiting
            }
            State::Failed(error) => PathOutcome::Failed(error),
        };
        self.verifications().forget(&(session.id, path.digest), check);
        outcome
    }

    /// Waits for what a check needs: its caller's shares, then a turn.
    async fn admit(&self, session: &PushSession, path: &ChunkedPath, admit: &AdmitCheck<'_>) -> Admission {
        // A NAR that is too large fails in its check.
        let bytes = self.upload_bytes(&self.check_request(session, path)).unwrap_or(UPLOAD_BYTES);
        let hold = admit(bytes).await;
        (hold, self.verifications().turns.take_at_last(1).await)
    }

    /// Begins the check of a path, unless another request has begun it meanwhile.
    fn begin_check(
        &self,
        session: &PushSession,
        reader: &Reader,
        path: &ChunkedPath,
        admission: Admission,
    ) -> Arc<Verification> {
        let key = (session.id, path.digest);
        let mut all = self.verifications().lock();
        if let Some(present) = all.get(&key) {
            return Arc::clone(present);
        }
        let check = Arc::new(Verification::new());
        all.insert(key, Arc::clone(&check));
        drop(all);
        let (engine, session, reader) = (self.clone(), session.clone(), reader.clone());
        let request = self.check_request(&session, path);
        // A copy: the check must not keep the whole request.
        let manifest = Bytes::copy_from_slice(&path.manifest);
        let begun = Arc::clone(&check);
        let work = async move {
            let work = engine.clone();
            // A task of its own, so that a panic ends the check and nothing waits for ever.
            let checked = async move { work.verify(&session, &reader, &manifest, request).await };
            let checked = tokio::spawn(checked.in_current_span());
            let (hold, turn) = admission;
            let state = watch_over(&begun, checked, KEPT, hold).await;
            drop(turn);
            begun.state.send_replace(state);
            // What waits here keeps alive neither the engine nor a check that was forgotten.
            let (inner, kept) = (Arc::downgrade(&engine.inner), Arc::downgrade(&begun));
            drop((engine, begun));
            tokio::time::sleep(KEPT).await;
            if let (Some(inner), Some(kept)) = (inner.upgrade(), kept.upgrade()) {
                Engine { inner }.verifications().forget(&key, &kept);
            }
        };
        tokio::spawn(work.in_current_span());
        check
    }

    /// What became of a path whose references are committed; `None` while its check runs.
    async fn settle(
        &self,
        session: &PushSession,
        reader: &Reader,
        path: &ChunkedPath,
        check: &Arc<Verification>,
    ) -> Result<Option<PathOutcome>> {
        let key = (session.id, path.digest);
        match check.state() {
            State::Running => Ok(None),
            State::Committed(committed) => Ok(Some(PathOutcome::Committed(committed))),
            State::Missing(chunks) => {
                // The client sends them, and then the NAR is to be looked at again.
                self.verifications().forget(&key, check);
                Ok(Some(PathOutcome::Missing(chunks.to_vec())))
            }
            State::Failed(error) => {
                self.verifications().forget(&key, check);
                match error.class() {
                    ErrorClass::Busy => Ok(Some(PathOutcome::Waiting)),
                    ErrorClass::Unavailable => Err(Error::CheckFailed(error)),
                    _ => Ok(Some(PathOutcome::Failed(error))),
                }
            }
            State::Sound(ingested) => {
                let taken = ingested.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Another request commits it right now.
                let Some((ingested, hold)) = taken else { return Ok(Some(PathOutcome::Waiting)) };
                let (engine, session, reader) = (self.clone(), session.clone(), reader.clone());
                let (object, check) = (path.object.clone(), Arc::clone(check));
                // To its end, also when the request is given up: the check says what became of it.
                let committed = finish(async move {
                    let committed = engine.commit_checked(&session, &reader, object, ingested).await;
                    drop(hold);
                    match &committed {
                        Ok(committed) => {
                            check.state.send_replace(State::Committed(committed.clone()));
                        }
                        Err(_) => engine.verifications().forget(&key, &check),
                    }
                    committed
                });
                match committed.await {
                    Ok(committed) => Ok(Some(PathOutcome::Committed(committed))),
                    // A collection took something since the check: it is to be made again.
                    Err(Error::Index(IndexError::PackGone | IndexError::NarGone)) => {
                        Ok(Some(PathOutcome::Waiting))
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn commit_checked(
        &self,
        session: &PushSession,
        reader: &Reader,
        object: Object,
        ingested: Ingested,
    ) -> Result<CommittedPath> {
        let file_size = ingested.file_size;
        let is_whole = ingested.known
            && (reader.everything
                || self.deduplication(&ingested, |cache| (reader.may_read)(cache)).await?
                    == Deduplication::Whole);
        let deduplication = if is_whole { Deduplication::Whole } else { Deduplication::Untold };
        let outcome = self.commit_object(&session.cache, ingested, object).await?;
        Ok(CommittedPath { file_size, deduplication, is_kept: outcome == CommitOutcome::Kept })
    }
}

/// Waits for a check. Ends it when no request has asked for it in `patience`. Of its caller's
/// shares, only what a sound NAR keeps is held afterwards.
async fn watch_over(
    check: &Verification,
    mut checked: JoinHandle<Result<Verified>>,
    patience: Duration,
    mut hold: Box<dyn CheckHold>,
) -> State {
    loop {
        let asked_at = check.asked_at();
        tokio::select! {
            checked = &mut checked => return match checked {
                Ok(Ok(Verified::Sound(ingested))) => {
                    hold.end_check(ingested.memory_bytes());
                    State::Sound(Arc::new(Mutex::new(Some((*ingested, hold)))))
                }
                Ok(Ok(Verified::Missing(chunks))) => State::Missing(Arc::new(chunks)),
                Ok(Err(error)) => State::Failed(Arc::new(error)),
                Err(_) => State::Failed(Arc::new(Error::CheckLost)),
            },
            () = tokio::time::sleep_until(asked_at + patience) => {
                if check.asked_at() == asked_at {
                    checked.abort();
                    // Then what it held has returned.
                    let _ = checked.await;
                    return State::Failed(Arc::new(Error::Busy { what: "checks" }));
                }
            }
        }
    }
}

/// For each path, the earlier ones that it refers to.
fn references_before(paths: &[ChunkedPath]) -> Vec<Vec<usize>> {
    let mut places: HashMap<StorePathHash, usize> = HashMap::new();
    let mut needed = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let references = path.object.references.iter().filter_map(|path| places.get(&path.hash()));
        needed.push(references.copied().collect());
        places.entry(path.object.path.hash()).or_insert(number);
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoHold;

    impl CheckHold for NoHold {
        fn end_check(&mut self, _: u64) {}
    }

    #[tokio::test]
    async fn a_check_ends_when_no_request_asks_for_it_any_more() {
        const PATIENCE: Duration = Duration::from_millis(40);
        let check = Verification::new();
        let memory = Arc::new(());
        let endless = || {
            let held = Arc::clone(&memory);
            tokio::spawn(async move {
                let () = std::future::pending().await;
                drop(held);
                Ok(Verified::Missing(Vec::new()))
            })
        };
        let state = watch_over(&check, endless(), PATIENCE, Box::new(NoHold)).await;
        assert!(matches!(&state, State::Failed(error) if error.class() == ErrorClass::Busy), "{state:?}");
        assert_eq!(Arc::strong_count(&memory), 1, "what the check held has returned");

        // A request has asked meanwhile.
        *check.asked_at.lock().unwrap() = Instant::now() + KEPT;
        let watched = watch_over(&check, endless(), PATIENCE, Box::new(NoHold));
        assert!(tokio::time::timeout(2 * PATIENCE, watched).await.is_err());
        let ends = tokio::spawn(async { Ok(Verified::Missing(vec![3])) });
        let state = watch_over(&check, ends, KEPT, Box::new(NoHold)).await;
        assert!(matches!(&state, State::Missing(chunks) if **chunks == [3]), "{state:?}");
    }
}
