//! Answers, as hosts send them.

use std::ops::Range;

use crate::caching::{AnswerKind, Caching, Visibility, caching};

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
    /// An answer without a body, which carries what caches may do with it.
    pub(crate) fn new(status: u16, kind: AnswerKind, visibility: Visibility) -> Self {
        let Caching { cache_control, vary } = caching(kind, visibility, status);
        let mut headers = vec![("cache-control", cache_control.to_owned())];
        headers.extend(vary.map(|value| ("vary", value.to_owned())));
        Self { status, headers, body: Body::Empty, edge_seconds: 0 }
    }

    /// With a text. Of HEAD the headers alone are sent.
    pub(crate) fn text(mut self, content_type: &str, text: String, is_head: bool) -> Self {
        self.headers.extend([
            ("content-type", content_type.to_owned()),
            ("content-length", text.len().to_string()),
            ("x-content-type-options", "nosniff".to_owned()),
        ]);
        if !is_head {
            self.body = Body::Text(text);
        }
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// "Not here": the one answer for everything that does not exist, or not for this caller. A
    /// token may have decided, so the answer says so everywhere.
    pub fn not_found(is_head: bool) -> Self {
        Self::new(404, AnswerKind::Document, Visibility::Private).text(
            "text/plain",
            "not found\n".to_owned(),
            is_head,
        )
    }

    /// The bucket does not answer. Never the answer for "not here".
    pub fn unavailable(is_head: bool) -> Self {
        Self::new(503, AnswerKind::Document, Visibility::Private)
            .text("text/plain", "the store of this cache does not answer\n".to_owned(), is_head)
            .with("retry-after", "5")
    }
}
