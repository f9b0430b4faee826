//! The parts that all requests share, and their turns at what is scarce.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::auth::Authenticator;
use crate::body_memory::LAST_RESORT_TIMEOUT;
use crate::call::Call;
use crate::failure::Failure;
use crate::health;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::push_rate::{PushRates, TooFast, caller, caller_without_token};
use crate::request_body::RequestBody;
use crate::settings::ServerSettings;
use crate::shares::{Caller, Share, Shares};
use dormer_engine::{AnswerMemory, CheckHold, Engine, Ingest, IngestRequest, UploadMemory};
use dormer_http_host::Probes;
use futures::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;

/// How long a request waits for memory to read its body into, or for its turn to be re-encoded.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests for a file out of a path, or for a listing in chunks. Each takes a MiB of the memory
/// for reads while it lasts: at most half of what streams hold throughout.
const FILES_MAX: usize = 8;

/// Requests that look through a listing or a closure. One caller has one at a time.
const SEARCHES_MAX: usize = 2;

/// Logs that are decoded at once: short work, each with memory for the whole log. One caller
/// decodes three at a time.
const DECODINGS_MAX: usize = 4;

/// The parts that all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) authenticator: Authenticator,
    pub(crate) settings: ServerSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) probes: Probes,
    /// What operators look at beside requests.
    pub(crate) operations: OnceLock<Operations>,
    push_rates: PushRates,
    uploads: Shares,
    /// Each pusher's part of the engine's memory for uploads.
    upload_memory: Shares,
    /// Each pusher's part of the engine's turns to check NARs of pushes by chunks.
    checks: Shares,
    body_memory: Shares,
    reencodings: Shares,
    files: Shares,
    /// The part of the engine's memory for reads that long answers may hold.
    long_answers: Shares,
    searches: Shares,
    decodings: Shares,
    pub(crate) next_request: AtomicU64,
}

impl App {
    pub(crate) fn new(engine: Engine, authenticator: Authenticator, settings: ServerSettings) -> Self {
        let metrics = Metrics::new();
        metrics.register(Box::new(engine.clone())).expect("the engine's names differ from the server's");
        metrics.register(Box::new(authenticator.ending().clone())).expect("its name is its own");
        let asked = engine.clone();
        let engine_settings = engine.settings();
        let uploads = Shares::of_turns("uploads", settings.uploads_max);
        let upload_memory =
            Shares::per_caller("upload_memory_shares", engine_settings.upload_memory_bytes_max);
        let checks = Shares::turns_per_caller("check_shares", engine_settings.checks_max());
        let body_memory = Shares::of_memory("body_memory", settings.buffered_bytes_max as u64);
        let reencodings = Shares::of_turns("reencodings", settings.reencodings_max);
        let files = Shares::of_turns("files", FILES_MAX);
        let long_answers = Shares::of_memory("long_answer_memory", engine_settings.read_memory_bytes / 4);
        let searches = Shares::of_turns("searches", SEARCHES_MAX);
        let decodings = Shares::of_turns("log_decodings", DECODINGS_MAX);
        let watched = [
            uploads.watch(),
            upload_memory.watch(),
            checks.watch(),
            body_memory.watch(),
            reencodings.watch(),
            files.watch(),
            long_answers.watch(),
            searches.watch(),
            decodings.watch(),
        ];
        engine.watch_budgets(move || watched.iter().map(|now| now()).collect());
        Self {
            metrics: Arc::new(metrics),
            probes: Probes::new(move || Box::pin(health::check(asked.clone()))),
            operations: OnceLock::new(),
            push_rates: PushRates::new(settings.push_requests_per_second, settings.push_bytes_per_second),
            uploads,
            upload_memory,
            checks,
            body_memory,
            reencodings,
            files,
            long_answers,
            searches,
            decodings,
            // A random start, so that the ids of two runs or replicas differ in a shared log.
            next_request: AtomicU64::new(rand::random()),
            engine,
            authenticator,
            settings,
        }
    }

    /// Counts a push, if its token may push so fast.
    pub(crate) fn admit_push(&self, call: &Call, body: &mut RequestBody) -> Result<(), Failure> {
        let claims = self.claims(call).unwrap_or_default();
        let admitted = self.push_rates.admit(&claims, Instant::now());
        let pusher = admitted.map_err(|TooFast(wait)| Failure::TooFast(wait))?;
        if let Some(pusher) = pusher {
            body.count_for(pusher);
        }
        Ok(())
    }

    /// Counts an upload, and waits for its turn. The turn lasts as long as what is returned.
    pub(crate) async fn admit_upload(&self, call: &Call, body: &mut RequestBody) -> Result<Share, Failure> {
        self.admit_push(call, body)?;
        let turn = async { self.uploads.take(&self.caller(call), 1).await };
        in_time("uploads", self.engine.settings().upload_wait, turn).await
    }

    /// Begins an upload when its pusher's share and the engine have memory for it. The share is
    /// held as long as what is returned beside the upload. `metadata` is what the upload holds
    /// while it waits: if others wait for that alone, it waits for a short time.
    pub(crate) async fn begin_ingest(
        &self,
        call: &Call,
        request: IngestRequest,
        metadata: Option<&BufferShare>,
    ) -> Result<(Ingest, Share), Failure> {
        let bytes = self.engine.upload_bytes(&request)?;
        let caller = self.caller(call);
        let begun = async {
            let share = self.upload_memory.take(&caller, bytes);
            let share = in_time("uploads", self.engine.settings().upload_wait, share).await?;
            Ok::<_, Failure>((self.engine.begin_ingest(request).await?, share))
        };
        if metadata.is_some_and(BufferShare::is_last_resort) {
            return in_time("uploads", LAST_RESORT_TIMEOUT, begun).await?;
        }
        begun.await
    }

    /// Memory for a part of a session. It grows with the bytes that come.
    pub(crate) fn begin_part(&self, call: &Call) -> PartShare<'_> {
        PartShare {
            app: self,
            of_pusher: self.upload_memory.begin(&self.caller(call)),
            of_engine: self.engine.begin_upload_memory(),
            last_resort: None,
        }
    }

    /// A caller's shares for a check of a NAR, which the engine admits: a turn, and memory for
    /// uploads. The check also keeps the turn of its `upload`. The commit that asks for them gives
    /// up in time.
    pub(crate) async fn admit_check(&self, caller: &Caller, bytes: u64, upload: Arc<Share>) -> CheckShares {
        let turn = self.checks.take(caller, 1).await;
        CheckShares { turns: Some((turn, upload)), memory: self.upload_memory.take(caller, bytes).await }
    }

    /// The caller that a request's memory and turns count for.
    pub(crate) fn caller(&self, call: &Call) -> Caller {
        self.claims(call).map_or_else(|| caller_without_token(call.peer()), |claims| caller(&claims))
    }

    /// Memory for a body that is read whole. It grows with the bytes that come.
    pub(crate) fn begin_buffer(&self, call: &Call) -> BufferShare {
        BufferShare(self.body_memory.begin(&self.caller(call)))
    }

    /// A turn to compress an answer.
    pub(crate) async fn reencoding_turn(&self, call: &Call) -> Result<Share, Failure> {
        let turn = async { self.reencodings.take(&self.caller(call), 1).await };
        in_time("re-encodings", TURN_TIMEOUT, turn).await
    }

    /// A turn to send a file out of a path, or a listing that is read in chunks.
    pub(crate) async fn file_turn(&self, call: &Call) -> Result<Share, Failure> {
        let turn = async { self.files.take(&self.caller(call), 1).await };
        in_time("files", TURN_TIMEOUT, turn).await
    }

    /// A turn to look through a listing, a closure or the names of a cache.
    pub(crate) async fn search_turn(&self, call: &Call) -> Result<Share, Failure> {
        let turn = async { self.searches.take(&self.caller(call), 1).await };
        in_time("searches", TURN_TIMEOUT, turn).await
    }

    /// A turn to decode a log.
    pub(crate) async fn decoding_turn(&self, call: &Call) -> Result<Share, Failure> {
        let turn = async { self.decodings.take(&self.caller(call), 1).await };
        in_time("logs", TURN_TIMEOUT, turn).await
    }

    /// Memory of a long answer while it is sent: of its caller's share, and of the engine.
    pub(crate) async fn long_answer_memory(
        &self,
        call: &Call,
        bytes: u64,
    ) -> Result<(Share, AnswerMemory), Failure> {
        let share = async { self.long_answers.take(&self.caller(call), bytes).await };
        let share = in_time("long answers", TURN_TIMEOUT, share).await?;
        Ok((share, self.engine.answer_memory(bytes).await?))
    }

    /// Memory in which an answer waits that cannot be made again, out of that for bodies; `None` if
    /// its caller's share has no room now. So no such answer waits in memory that is not counted.
    pub(crate) fn waiting_answer_memory(&self, call: &Call, bytes: u64) -> Option<Share> {
        let caller = self.caller(call);
        // A turn of the run time that is over says nothing of the room.
        tokio::task::unconstrained(self.body_memory.take(&caller, bytes)).now_or_never()
    }
}

/// Waits for a turn at `what`, for so long at most.
async fn in_time<T>(
    what: &'static str,
    limit: Duration,
    turn: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, turn).await.map_err(|_| Failure::Busy(what))
}

/// What a body that is read whole holds of the memory for such bodies.
pub(crate) struct BufferShare(Share);

impl BufferShare {
    /// Whether requests of all callers may wait for this one alone.
    fn is_last_resort(&self) -> bool {
        self.0.is_last_resort()
    }

    /// Takes more when there is more. Returns whether others now wait for this request alone.
    pub(crate) async fn grow(&mut self, bytes: u64) -> Result<bool, Failure> {
        in_time("requests", TURN_TIMEOUT, self.0.grow(bytes)).await
    }
}

/// What a check of a NAR holds of its caller's shares.
pub(crate) struct CheckShares {
    /// To check, and that of the upload.
    turns: Option<(Share, Arc<Share>)>,
    memory: Share,
}

impl CheckHold for CheckShares {
    fn end_check(&mut self, bytes: u64) {
        self.turns = None;
        self.memory.shrink_to(bytes);
    }
}

/// What a part of a session holds of the memory for uploads.
pub(crate) struct PartShare<'a> {
    app: &'a App,
    of_pusher: Share,
    of_engine: UploadMemory,
    /// The turn that bodies take too which go beyond the limit: so all of them together take no
    /// more than one.
    last_resort: Option<OwnedSemaphorePermit>,
}

impl PartShare<'_> {
    /// Takes more when there is more. Returns whether others now wait for this request alone.
    pub(crate) async fn grow(&mut self, bytes: u64) -> Result<bool, Failure> {
        if self.last_resort.is_some() {
            return Ok(true);
        }
        let Self { app, of_pusher, of_engine, last_resort } = self;
        let grown = async {
            let is_beyond_share = of_pusher.grow(bytes).await;
            tokio::select! {
                biased;
                () = of_engine.grow(bytes) => is_beyond_share,
                turn = app.body_memory.last_resort() => {
                    *last_resort = Some(turn);
                    true
                }
            }
        };
        in_time("uploads", app.engine.settings().upload_wait, grown).await
    }

    /// What the part holds, to keep it for as long as the engine works.
    pub(crate) fn into_hold(self) -> impl Send + 'static + use<> {
        (self.of_pusher, self.of_engine, self.last_resort)
    }
}
