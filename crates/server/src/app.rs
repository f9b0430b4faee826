//! The parts that all requests share, and their turns at what is scarce.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use dormer_engine::Engine;
use dormer_http_host::Probes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Authenticator;
use crate::call::Call;
use crate::failure::Failure;
use crate::health;
use crate::metrics::{Metrics, QueuedRequest};
use crate::push_rate::{PushRates, TooFast};
use crate::request_body::RequestBody;
use crate::settings::ServerSettings;

/// How long a request waits for memory to read its body into, or for its turn to be re-encoded.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// The parts that all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) authenticator: Authenticator,
    pub(crate) settings: ServerSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) probes: Probes,
    push_rates: PushRates,
    uploads: Arc<Semaphore>,
    buffered_kib: Arc<Semaphore>,
    reencodings: Arc<Semaphore>,
    pub(crate) next_request: AtomicU64,
}

impl App {
    pub(crate) fn new(engine: Engine, authenticator: Authenticator, settings: ServerSettings) -> Self {
        let metrics = Metrics::new();
        metrics.register(Box::new(engine.clone())).expect("the engine's names differ from the server's");
        let asked = engine.clone();
        Self {
            metrics: Arc::new(metrics),
            probes: Probes::new(move || Box::pin(health::check(asked.clone()))),
            push_rates: PushRates::new(settings.push_requests_per_second, settings.push_bytes_per_second),
            uploads: semaphore(settings.uploads_max),
            buffered_kib: semaphore(settings.buffered_bytes_max / 1024),
            reencodings: semaphore(settings.reencodings_max),
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
    pub(crate) async fn admit_upload(
        &self,
        call: &Call,
        body: &mut RequestBody,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        self.admit_push(call, body)?;
        let turn = Arc::clone(&self.uploads).acquire_owned();
        self.in_time("uploads", self.engine.settings().upload_wait, turn).await
    }

    /// Memory to read a body into.
    pub(crate) async fn reserve_buffer(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failure> {
        let all = (self.settings.buffered_bytes_max / 1024).max(1);
        let kib = usize::try_from(bytes / 1024 + 1).unwrap_or(usize::MAX).min(all);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.buffered_kib).acquire_many_owned(kib);
        self.in_time("requests", TURN_TIMEOUT, turn).await
    }

    /// A turn to compress an answer.
    pub(crate) async fn reencoding_turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let turn = Arc::clone(&self.reencodings).acquire_owned();
        self.in_time("re-encodings", TURN_TIMEOUT, turn).await
    }

    async fn in_time(
        &self,
        what: &'static str,
        limit: Duration,
        turn: impl Future<Output = Result<OwnedSemaphorePermit, tokio::sync::AcquireError>>,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        let _queued = QueuedRequest::new(&self.metrics, what);
        match tokio::time::timeout(limit, turn).await {
            Ok(turn) => Ok(turn.expect("the semaphores are never closed")),
            Err(_) => Err(Failure::Busy(what)),
        }
    }
}

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)))
}
