//! Why a request fails, and the one table from failures to status codes.
//!
//! Status codes are part of the contract, because Nix acts on them. 404 means "not here, ask the
//! next cache", so a database that is down must never look like 404. The table has no wildcard: a
//! new failure needs a decision.

use std::time::Duration;

use bytes::Bytes;
use dormer_api::{ErrorBody, ErrorName, Permission};
use dormer_engine::{Error as EngineError, ErrorClass};
use dormer_http_host::{NotReady, brief};
use dormer_nix::nar::NarError;
use dormer_nix::with_causes;
use http::header::{ALLOW, CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use crate::body::{self, Body};
use crate::call::Call;
use crate::codec::{SUPPORTED, WindowTooLarge};
use crate::request_body::BodyError;
use crate::route::Route;
use crate::settings::ServerSettings;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("there is nothing at this address")]
    NoRoute,
    #[error("this address is not for this method")]
    MethodNotAllowed { allow: &'static str },
    #[error("this server does not answer to this host name")]
    BadHost,
    #[error("no permission: a token is needed, and none was sent")]
    Unauthorized,
    #[error("the token does not allow to {0} here")]
    Forbidden(Permission),
    #[error("the token does not allow to operate this server: make one with --operate")]
    NoOperator,
    #[error("there is no such cache")]
    NoSuchCache,
    #[error("the cache does not have this")]
    NoSuchObject,
    #[error("this form did not come from a page of this session: open the page again")]
    ForeignForm,
    #[error("nobody signs in at this address: sign in at {0}")]
    OtherAddress(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("cannot tell how {file_name} is compressed: expected {SUPPORTED}")]
    UnknownCompression { file_name: String },
    #[error("decoding the body as {compression}")]
    Decode { compression: &'static str, source: std::io::Error },
    #[error("the body needs {0} bytes to be decoded, which is more than allowed")]
    Window(u64),
    #[error("the content encoding {0:?} is not supported: expected {SUPPORTED}")]
    ContentEncoding(String),
    #[error("a content encoding is not for this body: {0}")]
    Coded(&'static str),
    #[error("{what} is longer than {max} bytes, the limit")]
    TooLong { what: &'static str, max: u64 },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the range is outside of the {size} bytes there are")]
    RangeOutside { size: u64 },
    #[error(
        "these bytes have another encoding by now: ranges are answered under the name in the present narinfo only"
    )]
    RangeOfOldName,
    #[error("the cache has this, and the upload asks to keep what is here")]
    PlaceTaken,
    #[error("too many {0} at once")]
    Busy(&'static str),
    #[error("this token pushes faster than allowed: try again in {} s", .0.as_secs_f64().ceil())]
    TooFast(Duration),
    #[error(transparent)]
    NotReady(NotReady),
    #[error("a defect: the handler panicked")]
    Panicked,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<WindowTooLarge> for Failure {
    fn from(WindowTooLarge(bytes): WindowTooLarge) -> Self {
        Self::Window(bytes)
    }
}

/// The answer to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    status: StatusCode,
    name: ErrorName,
    /// How much the client learns.
    tell: Tell,
}

/// How much the client learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// The failure with all its causes.
    Everything,
    /// This phrase; the log has the rest.
    Phrase(&'static str),
}

/// What a caller hears whose token does not help: not a word of which of these it is.
const TOKEN_DOES_NOT_COUNT: &str = "no permission: the token that was sent does not count here: it has ended, is for another server, or \
     permits nothing here";

const UNAVAILABLE: Tell = Tell::Phrase("a part of the server is unavailable, try again later");
const INTERNAL: Tell = Tell::Phrase("internal error: the server's log has more under this request's id");

impl Failure {
    fn verdict(&self) -> Verdict {
        use ErrorName as Name;
        let of = |status, name| Verdict { status, name, tell: Tell::Everything };
        match self {
            Self::NoRoute | Self::Engine(EngineError::NoSession) => of(StatusCode::NOT_FOUND, Name::NotFound),
            Self::MethodNotAllowed { .. } => of(StatusCode::METHOD_NOT_ALLOWED, Name::RequestError),
            Self::Unauthorized => of(StatusCode::UNAUTHORIZED, Name::Unauthorized),
            Self::Forbidden(_) | Self::NoOperator | Self::ForeignForm | Self::OtherAddress(_) => {
                of(StatusCode::FORBIDDEN, Name::AccessError)
            }
            Self::NoSuchCache => of(StatusCode::NOT_FOUND, Name::NoSuchCache),
            Self::NoSuchObject => of(StatusCode::NOT_FOUND, Name::NoSuchObject),
            Self::BadHost
            | Self::BadRequest(_)
            | Self::Decode { .. }
            | Self::Window(_)
            | Self::Body(BodyError::Incomplete) => of(StatusCode::BAD_REQUEST, Name::RequestError),
            Self::UnknownCompression { .. } => of(StatusCode::BAD_REQUEST, Name::InvalidCompressionType),
            Self::ContentEncoding(_) | Self::Coded(_) => {
                of(StatusCode::UNSUPPORTED_MEDIA_TYPE, Name::InvalidCompressionType)
            }
            Self::Body(BodyError::Idle | BodyError::TooSlow) => {
                of(StatusCode::REQUEST_TIMEOUT, Name::RequestError)
            }
            Self::TooFast(_) => of(StatusCode::TOO_MANY_REQUESTS, Name::TooManyRequests),
            Self::Engine(EngineError::TooManySessions { .. }) => {
                of(StatusCode::TOO_MANY_REQUESTS, Name::TooManySessions)
            }
            Self::RangeOutside { .. } => of(StatusCode::RANGE_NOT_SATISFIABLE, Name::RequestError),
            Self::RangeOfOldName | Self::PlaceTaken => {
                of(StatusCode::PRECONDITION_FAILED, Name::RequestError)
            }
            Self::Busy(_) | Self::NotReady(_) => {
                of(StatusCode::SERVICE_UNAVAILABLE, Name::ServiceUnavailable)
            }
            Self::TooLong { .. }
            | Self::Body(BodyError::TooLong { .. })
            | Self::Engine(
                EngineError::NarTooLarge { .. } | EngineError::MalformedNar(NarError::TooLarge { .. }),
            ) => of(StatusCode::PAYLOAD_TOO_LARGE, Name::RequestError),
            Self::Engine(EngineError::Index(dormer_index::Error::CacheGone)) => {
                of(StatusCode::NOT_FOUND, Name::NoSuchCache)
            }
            Self::Panicked => engine_verdict(ErrorClass::Internal),
            Self::Engine(error) => engine_verdict(error.class()),
        }
    }

    /// The failure as one of several results in an answer.
    pub(crate) fn body(&self) -> ErrorBody {
        let Verdict { status, name, tell } = self.verdict();
        let message = match tell {
            Tell::Everything => with_causes(self),
            Tell::Phrase(phrase) => phrase.to_owned(),
        };
        ErrorBody { code: status.as_u16(), ..ErrorBody::new(name, message) }
    }

    /// Answers the request, and writes the log line that this failure deserves.
    /// `has_token` says whether the caller has a token that counts.
    pub(crate) fn answer(self, call: &Call, settings: &ServerSettings, has_token: bool) -> Response<Body> {
        let Verdict { status, name, tell } = self.verdict();
        let is_api = Route::is_api(call.path());
        if self.is_everyday_miss(call) {
            // Half of all requests of a Nix client are misses of narinfos, so they cost no
            // allocation.
            return body::text(status, Bytes::from_static(b"the cache does not have this\n"));
        }
        let mut detail = with_causes(&self);
        if matches!(self, Self::Unauthorized) && call.sends_token() {
            // Whether the cache exists makes no difference.
            TOKEN_DOES_NOT_COUNT.clone_into(&mut detail);
        }
        self.log(call, status, &detail, has_token);
        let message = match tell {
            Tell::Everything => detail,
            Tell::Phrase(phrase) => phrase.to_owned(),
        };
        let mut response = if is_api {
            let error = ErrorBody { code: status.as_u16(), ..ErrorBody::new(name, message) };
            body::json(status, &error)
        } else {
            body::text(status, message + "\n")
        };
        let headers = response.headers_mut();
        match &self {
            Self::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"dormer\""));
            }
            Self::MethodNotAllowed { allow } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::RangeOutside { size } => {
                let value = HeaderValue::try_from(format!("bytes */{size}"));
                headers.insert(CONTENT_RANGE, value.expect("digits are fit for a header"));
            }
            _ => {}
        }
        if let Self::TooFast(wait) = self {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        } else if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(settings.retry_after)));
        }
        response
    }

    /// Whether the failure is a plain "not here", which gets no log line.
    pub(crate) fn is_everyday_miss(&self, call: &Call) -> bool {
        matches!(self, Self::NoSuchObject) && !Route::is_api(call.path())
    }

    /// The limit that the request ran into, for counting.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Busy(what) | Self::Engine(EngineError::Busy { what }) => Some(what),
            Self::TooFast(_) => Some("push rate"),
            _ => None,
        }
    }

    fn log(&self, call: &Call, status: StatusCode, detail: &str, has_token: bool) {
        let (method, path, detail) = (call.brief_method(), call.brief_path(), brief(detail));
        let (path, detail) = (path.as_ref(), detail.as_ref());
        let is_anonymous_rejection = !has_token && (self.limit().is_some() || !status.is_server_error());
        if matches!(self, Self::NotReady(_)) || is_anonymous_rejection {
            // Probes come every few seconds, and the check itself logs which part does not answer.
            // Anybody can cause rejections, as many as the network takes.
            tracing::debug!(method, path, status = status.as_u16(), error = detail, "request refused");
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!(method, path, status = status.as_u16(), error = detail, "request failed");
        } else if status.is_server_error() {
            tracing::error!(method, path, status = status.as_u16(), error = detail, "request failed");
        } else if call.is_read() {
            // Misses, scans and forgotten tokens happen every day.
            tracing::debug!(method, path, status = status.as_u16(), error = detail, "request refused");
        } else {
            tracing::info!(method, path, status = status.as_u16(), error = detail, "request refused");
        }
    }
}

/// Rounded up: a client that returns a moment too early fails again.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

fn engine_verdict(class: ErrorClass) -> Verdict {
    use ErrorName as Name;
    let (status, name, tell) = match class {
        ErrorClass::BadInput => (StatusCode::BAD_REQUEST, Name::RequestError, Tell::Everything),
        ErrorClass::Missing => (
            StatusCode::NOT_FOUND,
            Name::NoSuchObject,
            Tell::Phrase("the cache does not have this in a readable state"),
        ),
        ErrorClass::Conflict => (StatusCode::BAD_REQUEST, Name::CacheAlreadyExists, Tell::Everything),
        ErrorClass::Busy => (StatusCode::SERVICE_UNAVAILABLE, Name::ServiceUnavailable, Tell::Everything),
        ErrorClass::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Name::ServiceUnavailable, UNAVAILABLE),
        ErrorClass::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Name::InternalServerError, INTERNAL),
    };
    Verdict { status, name, tell }
}
