//! The W3C trace context of a request: a proxy or client that traces hands its trace on in
//! `traceparent`.

use http::HeaderMap;
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes the span a part of the request's trace, if the request names one.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let parent =
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
    if let Err(error) = span.set_parent(parent) {
        tracing::debug!(?error, "failed to join a trace");
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
