//! One request, as handlers see it.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use dormer_edge::{decode_file_path, decode_path, split_files};
use dormer_http_host::{Peer, brief};
use http::header::{AUTHORIZATION, AsHeaderName, HOST, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use crate::forwarded::{self, Forwarded, Network};

/// The header of a request's id, in requests and answers.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static(dormer_api::headers::REQUEST_ID);

/// Names a request in its answer, in each of its log lines and in its trace.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

/// Longest id that the server takes from a client or a proxy, in bytes.
const GIVEN_ID_BYTES_MAX: usize = 128;

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().expect("ids are letters, digits and a few signs"))
    }
}

impl RequestId {
    /// An id of our own. Written by hand: most requests get one, and formatting costs three times
    /// as much.
    pub(crate) fn new(number: u64) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 16];
        for (digit, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
            digit[0] = DIGITS[usize::from(byte >> 4)];
            digit[1] = DIGITS[usize::from(byte & 15)];
        }
        Self(HeaderValue::from_bytes(&text).expect("hexadecimal digits are fit for a header"))
    }

    /// The id that a request brings, if it is fit for a log. Its sender wants to find the request
    /// again.
    pub(crate) fn given(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(&REQUEST_ID)?;
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
        let is_sane = (1..=GIVEN_ID_BYTES_MAX).contains(&value.len()) && value.as_bytes().iter().all(allowed);
        is_sane.then(|| Self(value.clone()))
    }

    /// As a header's value.
    pub(crate) fn header_value(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// A path with an escape that no client needs to write.
struct NoAddress;

type DecodedPath = Result<String, NoAddress>;

/// A request without its body.
pub(crate) struct Call {
    parts: Parts,
    /// The path with its escapes decoded, if it has any.
    decoded: Option<DecodedPath>,
    /// The names behind `…/objects/<hash>/file/` or `…/<hash>/files/`, decoded.
    file_names: Vec<String>,
    is_about_public_cache: AtomicBool,
    /// Whether the cookie of a session counts as a token.
    has_session: AtomicBool,
    is_token_counted: AtomicBool,
}

/// The address of the files of an object, and the path of one of them.
fn split_file(path: &str) -> Option<(&str, &str)> {
    let Some(below) = path.strip_prefix("/_api/v2/caches/") else { return split_files(path) };
    let (_, below) = below.split_once("/objects/")?;
    let file = below.split_once('/')?.1.strip_prefix("file/")?;
    Some((&path[..path.len() - file.len() - 1], file))
}

impl Call {
    pub(crate) fn new(parts: Parts) -> Self {
        let path = parts.uri.path();
        let (address, file) = match split_file(path) {
            Some((address, file)) => (address, Some(file)),
            None => (path, None),
        };
        // The names of a file are any text; everything else has one spelling.
        let decode = |file: &str| if file.is_empty() { Some(Vec::new()) } else { decode_file_path(file) };
        let file_names = file.and_then(decode);
        let decoded = match decode_path(address).filter(|_| file.is_none() || file_names.is_some()) {
            Some(Cow::Borrowed(address)) if file.is_some() => Some(Ok(address.to_owned())),
            Some(Cow::Borrowed(_)) => None,
            Some(Cow::Owned(path)) => Some(Ok(path)),
            None => Some(Err(NoAddress)),
        };
        Self {
            parts,
            decoded,
            file_names: file_names.unwrap_or_default(),
            is_about_public_cache: AtomicBool::new(false),
            has_session: AtomicBool::new(false),
            is_token_counted: AtomicBool::new(false),
        }
    }

    /// Lets the cookie of a session count as a token. For pages alone: every other address takes
    /// tokens that a program sends on purpose.
    pub(crate) fn allow_session(&self) {
        self.has_session.store(true, Ordering::Relaxed);
    }

    /// Whether the cookie of a session counts as a token.
    pub(crate) fn allows_session(&self) -> bool {
        self.has_session.load(Ordering::Relaxed)
    }

    /// Whether the token of this request is looked at for the first time.
    pub(crate) fn begin_token(&self) -> bool {
        !self.is_token_counted.swap(true, Ordering::Relaxed)
    }

    /// The query as the address has it; empty for an address without a query.
    pub(crate) fn query_text(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }

    /// The path with its escapes decoded; `None` if it is no address at all.
    pub(crate) fn decoded_path(&self) -> Option<&str> {
        match &self.decoded {
            None => Some(self.path()),
            Some(Ok(path)) => Some(path),
            Some(Err(NoAddress)) => None,
        }
    }

    /// The names that lead to a file in a store path, if the address is one of a file. The decoded
    /// path ends before them.
    pub(crate) fn file_names(&self) -> &[String] {
        &self.file_names
    }

    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    /// The path as it came.
    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// The method, for labels and log lines. Clients can make up any number of methods, so others
    /// share one name.
    pub(crate) fn brief_method(&self) -> &'static str {
        match self.parts.method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::PUT => "PUT",
            Method::POST => "POST",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            _ => "OTHER",
        }
    }

    /// The path, for log lines.
    pub(crate) fn brief_path(&self) -> Cow<'_, str> {
        brief(self.path())
    }

    /// The value of a parameter of the query, as it stands there.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let mut pairs = self.parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
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

    /// The other end of the connection.
    pub(crate) fn peer(&self) -> Option<Peer> {
        self.parts.extensions.get().copied()
    }

    /// Whether the request brings something in place of a token, whatever it is.
    pub(crate) fn sends_token(&self) -> bool {
        self.parts.headers.contains_key(AUTHORIZATION)
    }

    /// The host and port of the request.
    pub(crate) fn host(&self) -> Option<&str> {
        // A request that names an absolute address ignores the header (RFC 9112, 3.2.2).
        self.parts.uri.authority().map(http::uri::Authority::as_str).or_else(|| self.header(HOST))
    }

    /// The address that the client used, with a slash at the end: as a trusted proxy reports it,
    /// else the host of the request.
    pub(crate) fn address(&self, trusted_proxies: &[Network]) -> String {
        let is_trusted = forwarded::is_trusted(self.peer(), trusted_proxies);
        let forwarded = if is_trusted { Forwarded::read(&self.parts.headers) } else { Forwarded::default() };
        forwarded.address(self.host().unwrap_or("localhost"))
    }

    /// Whether the answer is about a public cache.
    pub(crate) fn is_about_public_cache(&self) -> bool {
        self.is_about_public_cache.load(Ordering::Relaxed)
    }

    /// Notes that the answer is about a public cache. Its headers then say so.
    pub(crate) fn set_about_public_cache(&self) {
        self.is_about_public_cache.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_reads_the_same_in_header_and_log() {
        for number in [0, 0x0123_4567_89ab_cdef, u64::MAX] {
            let id = RequestId::new(number);
            assert_eq!(id.header_value().to_str().unwrap(), id.to_string());
            assert_eq!(id.to_string(), format!("{number:016x}"));
        }
    }

    #[test]
    fn methods_have_few_names() {
        let name = |method: &[u8]| {
            let request = http::Request::builder().method(Method::from_bytes(method).unwrap());
            Call::new(request.body(()).unwrap().into_parts().0).brief_method()
        };
        assert_eq!([name(b"PUT"), name(b"BREW"), name(&b"X".repeat(60_000))], ["PUT", "OTHER", "OTHER"]);
    }

    #[test]
    fn a_given_id_is_taken_if_it_is_fit_for_a_log() {
        let given = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).unwrap();
            RequestId::given(&HeaderMap::from_iter([(REQUEST_ID.clone(), value)])).map(|id| id.to_string())
        };
        for sane in ["x", "0af7651916cd43dd8448eb211c80319c", "Root=1-67891233-abcdef012345678912345678"] {
            assert_eq!(given(sane.as_bytes()).as_deref(), Some(sane));
        }
        for other in [&b""[..], b"a b", b"a\"b", b"\xff", b"a\tb", &[b'x'; GIVEN_ID_BYTES_MAX + 1]] {
            assert_eq!(given(other), None, "{other:?}");
        }
    }
}
