//! The server's API over HTTP: requests with time-outs, retries and clear errors.
//!
//! There are two kinds of time-out. The server must answer a small request within
//! [`HttpSettings::idle_timeout`]. An upload may take as long as it makes progress: it fails when
//! the connection took no byte and gave no answer for that time. So a server may work long on a
//! NAR, or let an upload wait its turn, and the client still notices a dead connection.
//!
//! After a broken connection, the client repeats every request that has no effect, or the same
//! effect, when repeated. It repeats creating and destroying a cache only if the request was not
//! sent, or was answered by 429 or 503. After a lost answer, a repetition could report a success as
//! a failure.

mod caches;
mod documents;
mod paths;
mod pins;
mod sessions;
mod uploads;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormer_api::{ErrorBody, ErrorName, Secret, headers};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::certificates::http_client;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::rate_limit::RateLimit;
use crate::redirects;
use crate::reporter::{Retry, RetryReporter, Silent};
use crate::retry::{Passing, RetryPolicy, repeat, retry_after};
use crate::settings::process_variables;
use crate::token_expiry;

pub use paths::FileDownload;
pub(crate) use sessions::{is_passing, path_refusal};
pub use uploads::AcknowledgedUpload;

/// Longest answer that the client reads: a list of some 50,000 caches, or of 400,000 missing paths.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest error answer that the client reads. A longer one is not an error body of Dormer.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Longest excerpt from an error answer that is not JSON, such as the page of a proxy.
const ERROR_CHARS_MAX: usize = 200;

/// Time-outs and retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Time limit for opening a connection, including TLS.
    pub connect_timeout: Duration,
    /// Longest time without progress on a connection. Longer than a server lets an upload wait its
    /// turn.
    pub idle_timeout: Duration,
    /// How often the client repeats requests.
    pub retry: RetryPolicy,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(3),
            retry: RetryPolicy::default(),
        }
    }
}

/// A client of one server. Cloning is cheap; clones share their connections.
#[derive(Clone)]
pub struct ApiClient {
    /// For GET: follows redirects to the same origin.
    reading: reqwest::Client,
    /// For everything else: follows no redirect.
    writing: reqwest::Client,
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    /// When the token says that it expires.
    expiry: Option<SystemTime>,
    /// Whether metadata always stands in front of the NAR.
    forces_preamble: bool,
    /// For the bodies of uploads.
    rate_limit: Option<Arc<RateLimit>>,
    settings: Arc<HttpSettings>,
    reporter: Arc<dyn RetryReporter>,
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient")
            .field("endpoint", &self.endpoint)
            .field("with_token", &self.authorization.is_some())
            .finish_non_exhaustive()
    }
}

/// When the client may repeat a request after its connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Always,
    IfNotSent,
}

/// One failed try.
struct Failure {
    error: Error,
    passing: Option<Passing>,
}

impl ApiClient {
    /// A client for the server at `endpoint`. It sends `token` with every request.
    pub fn new(endpoint: Endpoint, token: Option<&Secret>, settings: HttpSettings) -> Result<Self> {
        let authorization = token.map(bearer).transpose()?;
        let http = |redirects| build(&endpoint, &settings, redirects);
        let (reading, writing) = (http(redirects::to_same_origin())?, http(Policy::none())?);
        Ok(Self {
            reading,
            writing,
            endpoint,
            authorization,
            expiry: token.and_then(token_expiry::token_expiry),
            forces_preamble: false,
            rate_limit: None,
            settings: Arc::new(settings),
            reporter: Arc::new(Silent),
        })
    }

    /// Sends the metadata of every upload in front of the NAR instead of in a header, for proxies
    /// with little room for headers.
    pub fn with_forced_preamble(mut self, forces_preamble: bool) -> Self {
        self.forces_preamble = forces_preamble;
        self
    }

    /// Sends the bodies of uploads within this limit, which clients may share.
    pub fn with_rate_limit(mut self, rate_limit: Option<Arc<RateLimit>>) -> Self {
        self.rate_limit = rate_limit;
        self
    }

    /// Tells `reporter` about requests that are tried again. Each upload has its own reporter.
    pub fn with_retry_reporter(mut self, reporter: Arc<dyn RetryReporter>) -> Self {
        self.reporter = reporter;
        self
    }

    /// The server's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn stalled(&self, action: &str) -> Failure {
        let seconds = self.settings.idle_timeout.as_secs();
        let error = Error::Stalled { action: action.to_owned(), seconds };
        Failure { error, passing: Some(Passing::Broken) }
    }

    /// Sends a request and reads the body of the answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        action: &str,
        repeat: Repeat,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T> {
        self.with_retries(action, async || {
            let response = self.send(action, repeat, request()).await?;
            self.read(action, response).await
        })
        .await
    }

    /// Sends a request and ignores the body of the answer.
    async fn tell(&self, action: &str, repeat: Repeat, request: impl Fn() -> RequestBuilder) -> Result<()> {
        self.with_retries(action, async || self.send(action, repeat, request()).await.map(drop)).await
    }

    async fn with_retries<T>(
        &self,
        action: &str,
        attempt: impl AsyncFn() -> Result<T, Failure>,
    ) -> Result<T> {
        repeat(
            || attempt(),
            |tries, failure| self.pause(action, tries, failure, |retry| self.reporter.retrying(retry)),
        )
        .await
    }

    /// Waits before the next try, or returns the error if no try is left.
    async fn pause(
        &self,
        action: &str,
        tries: u32,
        failure: Failure,
        report: impl FnOnce(&Retry<'_>),
    ) -> Result<()> {
        let policy = &self.settings.retry;
        let error = failure.error.after(tries);
        let Some(wait) = failure.passing.and_then(|passing| policy.wait(tries, passing)) else {
            return Err(error);
        };
        tracing::debug!(
            action,
            tries,
            wait_ms = wait.as_millis(),
            error = &error as &dyn std::error::Error,
            "trying again"
        );
        report(&Retry { action, tries, tries_max: policy.tries_max, wait, error: &error });
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn request(&self, method: Method, route: &str) -> RequestBuilder {
        let http = if method == Method::GET { &self.reading } else { &self.writing };
        let request = http.request(method, self.endpoint.join(route));
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization.clone()),
            None => request,
        }
    }

    async fn send(&self, action: &str, repeat: Repeat, request: RequestBuilder) -> Result<Response, Failure> {
        let request = request.timeout(self.settings.idle_timeout);
        let response = request.send().await.map_err(|error| self.broken(action, repeat, error))?;
        let response = self.check(action, response).await;
        response.map_err(|failure| match (repeat, failure.passing) {
            // 500, 502 and similar answers may come after the request took effect.
            (Repeat::IfNotSent, Some(Passing::Broken)) => Failure { passing: None, ..failure },
            _ => failure,
        })
    }

    fn broken(&self, action: &str, repeat: Repeat, source: reqwest::Error) -> Failure {
        let sent = !source.is_connect();
        // A malformed request stays malformed.
        let hopeless = source.is_builder() || (sent && repeat == Repeat::IfNotSent);
        let endpoint = self.endpoint.to_string();
        // Drops the URL, because the action describes the request better.
        let source = source.without_url();
        let error = Error::Unreachable { action: action.to_owned(), endpoint, tries: 1, source };
        Failure { error, passing: (!hopeless).then_some(Passing::Broken) }
    }

    /// Turns every answer that is not a success into an error.
    async fn check(&self, action: &str, mut response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let retry_after = retry_after(response.headers());
        let request_id = header(HeaderName::from_static(headers::REQUEST_ID))
            .map(|id| format!(" (request {})", printable(id)));
        let location = header(LOCATION).map(printable);
        let body = read_up_to(&mut response, ERROR_BYTES_MAX).await.unwrap_or_default();
        let (name, message) = describe(status, &body);
        // The server's log says more about the request under this id.
        let message = message + request_id.as_deref().unwrap_or_default();
        let passing = Passing::of_status(status.as_u16(), retry_after);
        let action = action.to_owned();
        let error = match (status.as_u16(), name) {
            (_, Some(ErrorName::NoSuchCache)) => Error::NoSuchCache { action, message },
            (_, Some(ErrorName::CacheAlreadyExists)) => Error::CacheExists { action, message },
            (401, _) => Error::Unauthorized {
                action,
                with_token: self.authorization.is_some(),
                expiry: self.expiry.map(|expiry| token_expiry::describe(expiry, SystemTime::now())),
                message,
            },
            (403, _) => Error::Forbidden { action, message },
            (status, name) if passing.is_some() => {
                Error::Unavailable { action, status, name, tries: 1, retry_after, message }
            }
            (status, name) => match location.filter(|_| (300..400).contains(&status)) {
                Some(location) => Error::Redirected { action, status, location },
                None => Error::Refused { action, status, name, message },
            },
        };
        Err(Failure { error, passing })
    }

    async fn read<T: DeserializeOwned>(&self, action: &str, response: Response) -> Result<T, Failure> {
        let body = self.read_body(action, response).await?;
        decode(action, &body).map_err(|error| Failure { error, passing: None })
    }

    async fn read_body(&self, action: &str, mut response: Response) -> Result<Vec<u8>, Failure> {
        let body = read_up_to(&mut response, ANSWER_BYTES_MAX + 1)
            .await
            .map_err(|error| self.broken(action, Repeat::Always, error))?;
        if body.len() > ANSWER_BYTES_MAX {
            let error = Error::AnswerTooLarge { action: action.to_owned(), max: ANSWER_BYTES_MAX };
            return Err(Failure { error, passing: None });
        }
        Ok(body)
    }
}

fn decode<T: DeserializeOwned>(action: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|source| Error::Answer { action: action.to_owned(), source })
}

impl Error {
    /// Records the number of tries.
    fn after(mut self, done: u32) -> Self {
        if let Self::Unreachable { tries, .. } | Self::Unavailable { tries, .. } = &mut self {
            *tries = done;
        }
        self
    }
}

fn build(endpoint: &Endpoint, settings: &HttpSettings, redirects: Policy) -> Result<reqwest::Client> {
    let builder = http_client(endpoint.is_encrypted(), &process_variables)?
        .connect_timeout(settings.connect_timeout)
        .redirect(redirects);
    // An upload that was given up leaves its connection to the kernel, which would keep trying for
    // a quarter of an hour. This limit is twice our own time-out, so that our clearer error comes
    // first.
    #[cfg(target_os = "linux")]
    let builder = builder.tcp_user_timeout(settings.idle_timeout * 2);
    builder.build().map_err(Error::HttpClient)
}

pub(crate) fn bearer(token: &Secret) -> Result<HeaderValue> {
    // A token is base64 and dots. Any other byte is a mistake, and could end the header early.
    let valid = |byte: u8| byte.is_ascii_graphic();
    if token.expose().is_empty() || !token.expose().bytes().all(valid) {
        return Err(Error::MalformedToken);
    }
    let text = Secret::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(text.expose()).map_err(|_| Error::MalformedToken)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read_up_to(response: &mut Response, max: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        let room = max - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == max {
            break;
        }
    }
    Ok(body)
}

/// The name and the message of an error, from Dormer's error body or from any other body.
fn describe(status: StatusCode, body: &[u8]) -> (Option<ErrorName>, String) {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        let message = printable(if body.message.is_empty() { &body.error } else { &body.message });
        return (body.name(), message);
    }
    let text = printable(&String::from_utf8_lossy(body));
    let reason = status.canonical_reason().unwrap_or("an unknown status");
    (None, if text.is_empty() || text.starts_with('<') { reason.to_owned() } else { text })
}

/// Foreign text on one line, without control characters that a terminal would obey.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(ERROR_CHARS_MAX).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_cannot_be_sent_are_refused_and_not_shown() {
        assert!(bearer(&Secret::new("eyJ.a-b_c.d")).is_ok_and(|value| value.is_sensitive()));
        for text in ["", "a b", "a\r\nX: y", "é"] {
            let error = bearer(&Secret::new(text)).unwrap_err();
            assert!(matches!(error, Error::MalformedToken), "{text:?}");
        }
    }

    #[test]
    fn error_bodies_become_one_printable_line() {
        let describe = |body: &str| describe(StatusCode::BAD_GATEWAY, body.as_bytes());
        assert_eq!(
            describe(r#"{"code":404,"error":"NoSuchObject","message":"no\u001b[31m such\nobject"}"#),
            (Some(ErrorName::NoSuchObject), "no [31m such object".to_owned())
        );
        assert_eq!(describe("<html><h1>502</h1>"), (None, "Bad Gateway".to_owned()));
        assert_eq!(describe(""), (None, "Bad Gateway".to_owned()));
        assert_eq!(describe("upstream died"), (None, "upstream died".to_owned()));
        assert_eq!(describe(&"x".repeat(1000)).1.len(), ERROR_CHARS_MAX);
    }
}
