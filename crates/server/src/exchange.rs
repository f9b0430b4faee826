//! One request and its answer, watched from the head to the last byte: metrics, and the span of its
//! log lines and its trace.
//!
//! Events after the handler returns (sending a NAR, a cut) still belong to the request. So the
//! watch is a part of the answer's body, and ends with it.
//!
//! A narinfo from memory writes no log line, and the watch must cost less than finding the narinfo:
//! half of all requests are misses of narinfos. Such a request gets a span only when it has to wait
//! or fails, and its counters are looked up once.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use opentelemetry::trace::Status;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::body::Body;
use crate::call::{Call, RequestId};
use crate::metrics::Metrics;
use crate::route::NARINFO;
use crate::trace_context;

/// A request being answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    /// None until something may be logged.
    span: Span,
    id: RequestId,
    is_traced: bool,
    method: &'static str,
    route: &'static str,
    /// 0 until the answer begins, and so for a client that leaves before.
    status: u16,
    begin: Instant,
    sent_bytes: u64,
}

impl Exchange {
    /// Begins at a request's head. `route` is a template, not a path.
    pub(crate) fn begin(
        metrics: &Arc<Metrics>,
        call: &Call,
        id: RequestId,
        route: &'static str,
        is_traced: bool,
    ) -> Self {
        let method = call.brief_method();
        metrics.http.in_flight.inc();
        let mut exchange = Self {
            metrics: Arc::clone(metrics),
            span: Span::none(),
            id,
            is_traced,
            method,
            route,
            status: 0,
            begin: Instant::now(),
            sent_bytes: 0,
        };
        let may_come_from_memory = method == "GET" && route == NARINFO;
        if is_traced || !may_come_from_memory || tracing::enabled!(tracing::Level::DEBUG) {
            let span = exchange.open_span();
            if is_traced {
                span.record("otel.name", format!("{method} {route}"));
                span.record("otel.kind", "server");
                span.set_attribute("http.request.method", method);
                span.set_attribute("http.route", route);
                span.set_attribute("url.path", call.brief_path().into_owned());
                span.set_attribute("request.id", exchange.id.to_string());
                trace_context::adopt(&span, call.headers());
            }
        }
        exchange
    }

    /// The request's id.
    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// Opens the span of this request's log lines.
    pub(crate) fn open_span(&mut self) -> Span {
        if self.span.is_none() {
            // As important as the most important line inside of it, so that no filter takes the id
            // from that line.
            self.span =
                tracing::error_span!("request", request.id = %self.id, otel.name = Empty, otel.kind = Empty);
        }
        self.span.clone()
    }

    /// Waits for the handler, in the request's span. The span is opened only if the handler has to
    /// wait.
    pub(crate) async fn hold<T>(&mut self, handler: impl Future<Output = T>) -> T {
        let mut handler = pin!(handler);
        if self.span.is_none()
            && let Poll::Ready(answer) = futures::poll!(handler.as_mut())
        {
            return answer;
        }
        handler.instrument(self.open_span()).await
    }

    /// The span of this request's log lines; none if it is not open.
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
        let seconds = self.begin.elapsed().as_secs_f64();
        match (self.method, self.route, self.status) {
            ("GET", NARINFO, 200) => http.narinfos.hits.inc(),
            ("GET", NARINFO, 404) => http.narinfos.misses.inc(),
            (method, route, status) => {
                http.requests.with_label_values(&[method, route, status_label(status, &mut [0; 3])]).inc();
            }
        }
        match (self.method, self.route) {
            ("GET", NARINFO) => http.narinfos.seconds.observe(seconds),
            (method, route) => http.seconds.with_label_values(&[method, route]).observe(seconds),
        }
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
    }
}
