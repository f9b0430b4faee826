//! The requests of a push by chunks: `…/sessions`.
//!
//! All of them have the same effect when they are repeated, so the client repeats them after broken
//! connections.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use dormer_api::v2::{
    CommitResponse, SESSION_FORMAT, SessionFormat, SessionId, SessionResponse, decode_missing,
};
use dormer_api::{CacheName, ErrorBody, ErrorName, routes};
use dormer_format::ChunkId;
use futures::stream;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::de::Error as _;

use super::uploads::{counted, limited};
use super::{ANSWER_BYTES_MAX, ApiClient, Failure, Repeat, decode, printable, read_up_to};
use crate::by_chunks::Part;
use crate::error::{Error, Result};
use crate::reporter::UploadReporter;

impl ApiClient {
    /// Opens a session, or joins it again. `None` if the server has no such route, or if the
    /// session is over or belongs to another caller. [`Error::NoChunkApi`] if the server speaks
    /// another format. If `waits` is false, a caller that has as many
    /// sessions as it may have learns it at once: that may last for hours.
    pub(crate) async fn open_session(
        &self,
        cache: &CacheName,
        session: &SessionId,
        waits: bool,
    ) -> Result<Option<SessionResponse>> {
        let action = format!("opening a session in cache {cache}");
        let route = routes::v2_session(cache, session);
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.try_open(&action, &route).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(failure) => failure,
            };
            match failure.error {
                error if is_unknown(&error) => return Ok(None),
                error if !waits && error.is_too_many_sessions() => return Err(error),
                error => {
                    let failure = Failure { error, ..failure };
                    self.pause(&action, tries, failure, |retry| self.reporter.retrying(retry)).await?;
                }
            }
        }
    }

    async fn try_open(&self, action: &str, route: &str) -> Result<SessionResponse, Failure> {
        let response = self.send(action, Repeat::Always, self.request(Method::PUT, route)).await?;
        let body = self.read_body(action, response).await?;
        // First of all: the rest of another format may have any form.
        let lasting = |error| Failure { error, passing: None };
        let SessionFormat { format } = decode(action, &body).map_err(lasting)?;
        if format != SESSION_FORMAT {
            return Err(lasting(Error::NoChunkApi { endpoint: self.endpoint.to_string() }));
        }
        decode(action, &body).map_err(lasting)
    }

    /// For each chunk, whether the server wants to be sent it.
    pub(crate) async fn missing_chunks(
        &self,
        cache: &CacheName,
        session: &SessionId,
        chunks: &[ChunkId],
    ) -> Result<Vec<bool>> {
        let action = format!("asking cache {cache} which chunks it lacks");
        let route = routes::v2_session_missing(cache, session);
        let question: Vec<u8> = chunks.iter().flat_map(|chunk| *chunk.as_bytes()).collect();
        let question = Bytes::from(question);
        let answer_bytes = chunks.len().div_ceil(8);
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            match self.try_post(&action, &route, question.clone(), answer_bytes + 1).await {
                Ok(answer) => break answer,
                Err(failure) => self.pause_session(&action, tries, failure).await?,
            }
        };
        decode_missing(&answer, chunks.len()).ok_or_else(|| Error::Answer {
            action,
            source: serde_json::Error::custom("the answer has another count of chunks than the question"),
        })
    }

    /// Sends a part. Each try sends all of it.
    pub(crate) async fn put_part(
        &self,
        cache: &CacheName,
        session: &SessionId,
        part: &Part,
        reporter: &dyn UploadReporter,
    ) -> Result<()> {
        let action = format!("sending chunks to cache {cache}");
        let route = routes::v2_session_part(cache, session, &part.digest);
        let mut tries = 0;
        loop {
            tries += 1;
            let Err(failure) = self.try_part(&action, &route, part, reporter).await else { return Ok(()) };
            self.pause(&action, tries, failure, |retry| reporter.retrying(retry))
                .await
                .map_err(|error| session_error(&action, error))?;
        }
    }

    async fn try_part(
        &self,
        action: &str,
        route: &str,
        part: &Part,
        reporter: &dyn UploadReporter,
    ) -> Result<(), Failure> {
        let taken = Arc::new(AtomicU64::new(0));
        let pieces = part.pieces.clone().into_iter().map(Ok);
        let body = counted(limited(stream::iter(pieces), self.rate_limit.clone()), Arc::clone(&taken));
        // The length is known, so that no proxy has to hold the body to find it out.
        let request = self
            .request(Method::PUT, route)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, part.size)
            .body(reqwest::Body::wrap_stream(body));
        let exchange = async {
            let response =
                request.send().await.map_err(|error| self.broken(action, Repeat::Always, error))?;
            self.check(action, response).await.map(drop)
        };
        self.watch(action, exchange, &taken, reporter, &AtomicU64::new(0)).await
    }

    /// Commits paths: `body` holds their entries.
    pub(crate) async fn commit_paths(
        &self,
        cache: &CacheName,
        session: &SessionId,
        body: Bytes,
    ) -> Result<CommitResponse> {
        let action = format!("committing paths to cache {cache}");
        let route = routes::v2_session_commit(cache, session);
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            match self.try_post(&action, &route, body.clone(), ANSWER_BYTES_MAX).await {
                Ok(answer) => break answer,
                Err(failure) => self.pause_session(&action, tries, failure).await?,
            }
        };
        serde_json::from_slice(&answer).map_err(|source| Error::Answer { action, source })
    }

    /// Sends bytes, and reads up to `answer_bytes_max` bytes of the answer.
    async fn try_post(
        &self,
        action: &str,
        route: &str,
        body: Bytes,
        answer_bytes_max: usize,
    ) -> Result<Vec<u8>, Failure> {
        if let Some(limit) = &self.rate_limit {
            limit.take(body.len()).await;
        }
        let request = self.request(Method::POST, route).header(CONTENT_TYPE, "application/octet-stream");
        let mut response = self.send(action, Repeat::Always, request.body(body)).await?;
        read_up_to(&mut response, answer_bytes_max)
            .await
            .map_err(|error| self.broken(action, Repeat::Always, error))
    }

    /// Waits before the next try, or returns the error if no try is left. (`with_retries` takes a
    /// closure that borrows, and no task may wait for such a one.)
    async fn pause_session(&self, action: &str, tries: u32, failure: Failure) -> Result<()> {
        let pause = self.pause(action, tries, failure, |retry| self.reporter.retrying(retry)).await;
        pause.map_err(|error| session_error(action, error))
    }
}

/// Whether the server knows no such thing. A missing cache is another error.
fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Refused { status: 404 | 405 | 501, name: None | Some(ErrorName::NotFound), .. })
}

/// A session that opened and is unknown later has ended.
fn session_error(action: &str, error: Error) -> Error {
    if is_unknown(&error) { Error::SessionEnded { action: action.to_owned() } } else { error }
}

/// The error that a server reports for one path of a commit.
pub(crate) fn path_refusal(action: String, body: &ErrorBody) -> Error {
    let message = printable(if body.message.is_empty() { &body.error } else { &body.message });
    match body.name() {
        Some(ErrorName::NoSuchCache) => Error::NoSuchCache { action, message },
        Some(ErrorName::AccessError) => Error::Forbidden { action, message },
        name => Error::Refused { action, status: body.code, name, message },
    }
}

/// Whether the server asks for another try of the path.
pub(crate) fn is_passing(body: &ErrorBody) -> bool {
    matches!(body.name(), Some(ErrorName::TooManyRequests | ErrorName::ServiceUnavailable))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::atomic::Ordering;

    use dormer_api::Secret;
    use dormer_api::v2::PartDigest;

    use super::*;
    use crate::HttpSettings;
    use crate::reporter::Silent;

    /// A server that gives this answer to every request, and how many came.
    fn server(head: String) -> (String, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let count = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let mut stream = stream.expect("a connection");
                let _ = stream.read(&mut [0; 4096]);
                let answer = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        (address, seen)
    }

    #[tokio::test]
    async fn no_request_of_a_session_follows_a_redirect() {
        let (elsewhere, seen) = server("200 OK".to_owned());
        let (address, _) = server(format!("307 Go\r\nLocation: {elsewhere}"));
        let endpoint: crate::Endpoint = address.parse().expect("an address");
        let secret = Secret::new("eyJ.t.k");
        let cache: CacheName = "main".parse().expect("a name");
        let session = SessionId::from_bytes([1; 16]);
        let pieces = vec![Bytes::from_static(b"part")];
        let part = Part { digest: PartDigest::from_bytes([2; 32]), pieces, size: 4, chunks: Vec::new() };
        let mut tried = Vec::new();
        for token in [Some(&secret), None] {
            let api = ApiClient::new(endpoint.clone(), token, HttpSettings::default()).expect("a client");
            let outcomes = [
                ("open_session", api.open_session(&cache, &session, false).await.map(drop)),
                ("missing_chunks", api.missing_chunks(&cache, &session, &[]).await.map(drop)),
                ("put_part", api.put_part(&cache, &session, &part, &Silent).await),
                ("commit_paths", api.commit_paths(&cache, &session, Bytes::new()).await.map(drop)),
            ];
            for (name, outcome) in outcomes {
                let error = outcome.expect_err(name);
                assert!(error.to_string().contains(&elsewhere), "{name}: {error}");
                tried.push(name);
            }
        }
        assert_eq!(seen.load(Ordering::Relaxed), 0, "nothing came from another address");
        // Every method is tried.
        let source = include_str!("sessions.rs").lines();
        let methods = source.filter_map(|line| line.trim_start().strip_prefix("pub(crate) async fn "));
        let methods: Vec<&str> = methods.filter_map(|rest| rest.split('(').next()).collect();
        assert_eq!(tried[..tried.len() / 2], methods);
    }
}
