//! Answers, as hosts send them.

use std::ops::Range;

use dormer_pages::{ASSET_HEADERS, Asset, Frame, PAGE_HEADERS, ProblemView};

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

    /// A page. Its headers are those of the lab's pages.
    pub(crate) fn page(status: u16, visibility: Visibility, html: String, is_head: bool) -> Self {
        Self::page_of_kind(AnswerKind::Page, status, visibility, html, is_head)
    }

    /// A page that shows something which the request says: nobody keeps it.
    pub(crate) fn page_of_one_request(
        status: u16,
        visibility: Visibility,
        html: String,
        is_head: bool,
    ) -> Self {
        Self::page_of_kind(AnswerKind::Api, status, visibility, html, is_head)
    }

    fn page_of_kind(
        kind: AnswerKind,
        status: u16,
        visibility: Visibility,
        html: String,
        is_head: bool,
    ) -> Self {
        let mut answer = Self::new(status, kind, visibility);
        answer.headers.extend(PAGE_HEADERS.map(|(name, value)| (name, value.to_owned())));
        answer.headers.push(("content-length", html.len().to_string()));
        if !is_head {
            answer.body = Body::Text(html);
        }
        answer
    }

    /// A file that pages load.
    pub(crate) fn asset(asset: Asset, is_head: bool) -> Self {
        let mut answer = Self::new(200, AnswerKind::Page, Visibility::Public);
        answer.headers.extend(ASSET_HEADERS.map(|(name, value)| (name, value.to_owned())));
        answer.headers.extend([
            ("content-type", asset.content_type().to_owned()),
            ("content-length", asset.text().len().to_string()),
        ]);
        if !is_head {
            answer.body = Body::Text(asset.text().to_owned());
        }
        answer
    }

    /// Leads a browser on. `location` is relative and made of escaped segments.
    pub(crate) fn redirect(status: u16, visibility: Visibility, location: String, is_head: bool) -> Self {
        let answer = Self::new(status, AnswerKind::Page, visibility);
        answer.text("text/plain", String::new(), is_head).with("location", location)
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

    /// "Not here" at the address of a page: the same for everything that does not exist, or not for
    /// this caller. It differs by the depth of the address alone, because its links are relative.
    pub(crate) fn no_page(frame: &Frame, is_head: bool) -> Self {
        Self::page(404, Visibility::Private, ProblemView::nothing_here().render(frame), is_head)
    }

    /// The bucket does not answer. Never the answer for "not here".
    pub fn unavailable(is_head: bool) -> Self {
        Self::later("the store of this cache does not answer\n", is_head)
    }

    /// The host makes too many pages.
    pub fn busy(is_head: bool) -> Self {
        Self::later("this host is busy with other pages\n", is_head)
    }

    fn later(text: &str, is_head: bool) -> Self {
        Self::new(503, AnswerKind::Document, Visibility::Private)
            .text("text/plain", text.to_owned(), is_head)
            .with("retry-after", "5")
    }
}
