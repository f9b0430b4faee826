//! One request, as handlers see it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{AsHeaderName, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

/// Names a request in its answer and in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestId(pub(crate) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl RequestId {
    /// As a header's value. By hand: it is on every answer, and formatting costs three times as much.
    pub(crate) fn header_value(self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (digit, byte) in text.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            digit[0] = DIGITS[usize::from(byte >> 4)];
            digit[1] = DIGITS[usize::from(byte & 15)];
        }
        HeaderValue::from_bytes(&text).expect("hexadecimal digits are fit for a header")
    }
}

/// A request without its body.
pub(crate) struct Call {
    pub(crate) id: RequestId,
    parts: Parts,
    is_about_public_cache: AtomicBool,
}

impl Call {
    pub(crate) fn new(id: RequestId, parts: Parts) -> Self {
        Self { id, parts, is_about_public_cache: AtomicBool::new(false) }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(crate) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    /// Whether the request only reads.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.parts.method, Method::GET | Method::HEAD)
    }

    /// A header's text; `None` also if it is not ASCII.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Host and port that the client asked for.
    pub(crate) fn host(&self) -> Option<&str> {
        // A request that names an absolute address ignores the header (RFC 9112, 3.2.2).
        self.parts.uri.authority().map(http::uri::Authority::as_str).or_else(|| self.header(HOST))
    }

    /// Whether a proxy says that the client came by TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.header("x-forwarded-proto").is_some_and(|proto| proto.eq_ignore_ascii_case("https"))
    }

    /// Whether the answer is about a public cache.
    pub(crate) fn is_about_public_cache(&self) -> bool {
        self.is_about_public_cache.load(Ordering::Relaxed)
    }

    /// Notes that the answer is about a public cache, which its headers then say.
    pub(crate) fn set_about_public_cache(&self) {
        self.is_about_public_cache.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_reads_the_same_in_header_and_log() {
        for id in [RequestId(0), RequestId(0x0123_4567_89ab_cdef), RequestId(u64::MAX)] {
            assert_eq!(id.header_value().to_str().unwrap(), id.to_string());
        }
    }
}
