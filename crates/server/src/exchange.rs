//! One request and its answer, watched from the head to the last byte: metrics, the span that its log lines and its trace
//! hang on.
//!
//! What happens after the handler returned (a NAR being sent, a cut) still belongs to the request, so the watch travels in
//! the answer's body and ends with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};
use opentelemetry::trace::Status;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::body::Body;
use crate::call::{Call, RequestId};
use crate::metrics::Metrics;
use crate::trace_context;

/// A request being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    span: Span,
    is_traced: bool,
    method: &'static str,
    route: &'static str,
    /// 0 until there is an answer: a client that leaves before is counted so, too.
    status: u16,
    begin: Instant,
    sent_bytes: u64,
}

impl Exchange {
    /// Begins at a request's head. `route` is a template, not a path.
    pub(crate) fn begin(
        metrics: &Arc<Metrics>,
        call: &Call,
        id: &RequestId,
        route: &'static str,
        is_traced: bool,
    ) -> Self {
        let method = known_method(call.method());
        // As important as the most important line inside of it, so that no filter takes the id from that line.
        let span = tracing::error_span!("request", request.id = %id, otel.name = Empty, otel.kind = Empty);
        if is_traced {
            span.record("otel.name", format!("{method} {route}"));
            span.record("otel.kind", "server");
            span.set_attribute("http.request.method", method);
            span.set_attribute("http.route", route);
            span.set_attribute("url.path", call.path().to_owned());
            span.set_attribute("request.id", id.to_string());
            trace_context::adopt(&span, call.headers());
        }
        metrics.http.in_flight.inc();
        Self {
            metrics: Arc::clone(metrics),
            span,
            is_traced,
            method,
            route,
            status: 0,
            begin: Instant::now(),
            sent_bytes: 0,
        }
    }

    /// What log lines of this request are written in.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The answer begins.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let http = &self.metrics.http;
        http.in_flight.dec();
        http.sent_bytes.inc_by(self.sent_bytes);
        let mut digits = [0; 3];
        http.requests
            .with_label_values(&[self.method, self.route, status_label(self.status, &mut digits)])
            .inc();
        let seconds = self.begin.elapsed().as_secs_f64();
        http.seconds.with_label_values(&[self.method, self.route]).observe(seconds);
        if self.is_traced {
            self.span.set_attribute("http.response.status_code", i64::from(self.status));
            let sent = i64::try_from(self.sent_bytes).unwrap_or(i64::MAX);
            self.span.set_attribute("http.response.body.size", sent);
            if self.status == 0 || self.status >= 500 {
                self.span.set_status(Status::error(""));
            }
        }
    }
}

/// A method as a label: there is no end to those that a client could make up.
fn known_method(method: &Method) -> &'static str {
    match *method {
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

/// Three digits, without an allocation; `gone` for a request whose client left before the answer.
fn status_label(status: u16, digits: &mut [u8; 3]) -> &str {
    if !(100..=999).contains(&status) {
        return "gone";
    }
    for (place, divisor) in digits.iter_mut().zip([100, 10, 1]) {
        *place = b'0' + u8::try_from(status / divisor % 10).expect("a digit is below 10");
    }
    std::str::from_utf8(digits).expect("digits are ASCII")
}

/// An answer's body, with the watch on it.
#[derive(Debug)]
pub(crate) struct Watched {
    body: Body,
    exchange: Exchange,
}

impl Watched {
    pub(crate) fn new(body: Body, exchange: Exchange) -> Self {
        Self { body, exchange }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Self { body, exchange } = &mut *self;
        let _in_span = exchange.span.enter();
        let next = Pin::new(body).poll_frame(context);
        match &next {
            Poll::Ready(Some(Ok(frame))) => {
                exchange.sent_bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            }
            Poll::Ready(Some(Err(_))) => exchange.metrics.http.cut.inc(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few() {
        let label = |status| status_label(status, &mut [0; 3]).to_owned();
        assert_eq!([label(0), label(200), label(404), label(503)], ["gone", "200", "404", "503"]);
        assert_eq!(known_method(&Method::from_bytes(b"BREW").unwrap()), "OTHER");
    }
}
