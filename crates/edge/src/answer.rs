//! Answers, as hosts send them.

use std::ops::Range;

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case; `content-length` is among them wherever it is known.
    pub headers: Vec<(&'static str, String)>,
    /// Body. Empty for HEAD, whatever the headers say.
    pub body: Body,
    /// Seconds for which a host may remember this answer by its key, where it has one.
    pub edge_seconds: u32,
}

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// None.
    Empty,
    /// This text.
    Text(String),
    /// These bytes of the object that was found.
    Object(Range<u64>),
}

impl Answer {
    /// A text. Of HEAD the headers alone are sent.
    pub(crate) fn text(status: u16, content_type: &str, text: String, is_head: bool) -> Self {
        let headers = vec![
            ("content-type", content_type.to_owned()),
            ("content-length", text.len().to_string()),
            ("x-content-type-options", "nosniff".to_owned()),
        ];
        let body = if is_head { Body::Empty } else { Body::Text(text) };
        Self { status, headers, body, edge_seconds: 0 }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// "Not here": the one answer for everything that does not exist, or not for this caller.
    pub fn not_found(is_head: bool) -> Self {
        Self::text(404, "text/plain", "not found\n".to_owned(), is_head).with("cache-control", "no-store")
    }

    /// The bucket does not answer. Never the answer for "not here".
    pub fn unavailable(is_head: bool) -> Self {
        Self::text(503, "text/plain", "the store of this cache does not answer\n".to_owned(), is_head)
            .with("cache-control", "no-store")
            .with("retry-after", "5")
    }
}
