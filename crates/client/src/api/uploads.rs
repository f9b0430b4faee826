//! Uploads of whole NARs, by Attic's API, and what all uploads share: they may take as long as the
//! connection takes bytes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormer_api::{NarInfoForm, UploadPathNarInfo, UploadPathResult, headers, routes};
use futures::{Stream, StreamExt as _, stream};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::time::Instant;

use super::{ApiClient, Failure, Repeat};
use crate::error::{Error, Result};
use crate::nar_stream::{NarFailure, OpenNar};
use crate::rate_limit::{RateLimit, turns};
use crate::reporter::UploadReporter;

/// An upload that the server acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct AcknowledgedUpload {
    /// The server's answer.
    pub result: UploadPathResult,
    /// Bytes of the NAR that the connection took, in all tries.
    pub bytes_sent: u64,
}

impl ApiClient {
    /// Uploads one NAR. Each try reads the NAR from its beginning.
    pub async fn upload_path(
        &self,
        info: &UploadPathNarInfo,
        source: &dyn OpenNar,
        reporter: &dyn UploadReporter,
    ) -> Result<AcknowledgedUpload> {
        let action = format!("uploading {}", info.store_path);
        let form = info.encode().map_err(|source| {
            match info.store_path.rsplit('/').next().unwrap_or("").parse() {
                Ok(path) => Error::Describe { path, source },
                Err(_) => Error::InvalidPath { path: info.store_path.clone() },
            }
        })?;
        let form = match form {
            NarInfoForm::Header(json) if self.forces_preamble => NarInfoForm::Preamble(json.into_bytes()),
            form => form,
        };
        let bytes_sent = AtomicU64::new(0);
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.try_upload(&action, &form, source, reporter, &bytes_sent).await {
                Ok(result) => return Ok(AcknowledgedUpload { result, bytes_sent: bytes_sent.into_inner() }),
                Err(failure) => failure,
            };
            self.pause(&action, tries, failure, |retry| reporter.retrying(retry)).await?;
        }
    }

    async fn try_upload(
        &self,
        action: &str,
        form: &NarInfoForm,
        source: &dyn OpenNar,
        reporter: &dyn UploadReporter,
        bytes_sent: &AtomicU64,
    ) -> Result<UploadPathResult, Failure> {
        let (nar, outcome) = source.open();
        let taken = Arc::new(AtomicU64::new(0));
        let body = counted(limited(nar, self.rate_limit.clone()), Arc::clone(&taken));
        let request =
            self.request(Method::PUT, routes::UPLOAD_PATH).header(CONTENT_TYPE, "application/octet-stream");
        let request = match form {
            NarInfoForm::Header(json) => {
                request.header(headers::NAR_INFO, json).body(reqwest::Body::wrap_stream(body))
            }
            NarInfoForm::Preamble(json) => {
                let preamble = Bytes::copy_from_slice(json);
                request
                    .header(headers::NAR_INFO_PREAMBLE_SIZE, json.len())
                    .body(reqwest::Body::wrap_stream(stream::iter([Ok(preamble)]).chain(body)))
            }
        };
        let exchange = async {
            let response =
                request.send().await.map_err(|error| self.broken(action, Repeat::Always, error))?;
            let response = self.check(action, response).await?;
            self.read(action, response).await
        };
        let answer = self.watch(action, exchange, &taken, reporter, bytes_sent).await;
        // A stalled connection keeps its body. Asking for the outcome takes the NAR away from the
        // connection. A broken disk, source or path also breaks the request, and is the better
        // explanation.
        match (answer, outcome.failure().await) {
            (Ok(result), _) => Ok(result),
            (Err(_), Some(NarFailure::Dump(dump))) => {
                let error = Error::Dump { path: source.name(), source: dump };
                Err(Failure { error, passing: None })
            }
            (Err(_), Some(NarFailure::Fetch(fetch))) => {
                let passing = fetch.passing();
                Err(Failure { error: Error::Fetch { source: fetch }, passing })
            }
            (Err(failure), None) => Err(failure),
        }
    }

    /// Runs an exchange as long as the connection takes bytes, and reports these bytes.
    pub(super) async fn watch<T>(
        &self,
        action: &str,
        exchange: impl Future<Output = Result<T, Failure>>,
        taken: &AtomicU64,
        reporter: &dyn UploadReporter,
        bytes_sent: &AtomicU64,
    ) -> Result<T, Failure> {
        /// Five reports a second for each transfer are smooth enough for a progress bar.
        const LOOK: Duration = Duration::from_millis(200);
        let mut seen = 0;
        let mut moved = Instant::now();
        let report = |seen: &mut u64| {
            let bytes = taken.load(Ordering::Relaxed) - *seen;
            if bytes > 0 {
                *seen += bytes;
                bytes_sent.fetch_add(bytes, Ordering::Relaxed);
                reporter.progress(bytes);
            }
            bytes > 0
        };
        let mut exchange = std::pin::pin!(exchange);
        loop {
            match tokio::time::timeout(LOOK.min(self.settings.idle_timeout), &mut exchange).await {
                Ok(answer) => {
                    report(&mut seen);
                    return answer;
                }
                Err(_) if report(&mut seen) => moved = Instant::now(),
                Err(_) if moved.elapsed() >= self.settings.idle_timeout => return Err(self.stalled(action)),
                Err(_) => {}
            }
        }
    }
}

/// Counts the bytes that the connection takes.
pub(super) fn counted(
    nar: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    taken: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    nar.inspect(move |piece| {
        if let Ok(piece) = piece {
            taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
}

/// Hands out bytes as the limit permits.
pub(super) fn limited(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    limit: Option<Arc<RateLimit>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let Some(limit) = limit else { return pieces.left_stream() };
    let in_turns = pieces.flat_map(|piece| match piece {
        Ok(bytes) => stream::iter(turns(bytes).map(Ok)).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    });
    let wait = move |piece: io::Result<Bytes>| {
        let limit = Arc::clone(&limit);
        async move {
            if let Ok(bytes) = &piece {
                limit.take(bytes.len()).await;
            }
            piece
        }
    };
    in_turns.then(wait).right_stream()
}
