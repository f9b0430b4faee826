//! What the server reports about itself while it runs: log lines on standard error, and traces for
//! a collector.
//!
//! Only OpenTelemetry's variables control traces. The server sends traces, as OTLP over HTTP, if
//! `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` gives an address, or if
//! `OTEL_TRACES_EXPORTER` is `otlp`. Spans wait in a bounded queue (`OTEL_BSP_MAX_QUEUE_SIZE`,
//! 2,048) for their own thread. A full queue drops spans, so that a slow or missing collector costs
//! requests nothing.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use dormer_api::RedactedUrl;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, filter};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::settings::{Environment, LogSettings};
use crate::terminal_text::{LogForm, shown_log_line};

/// Time limit for sending the last spans at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The trace exporter, which must end with the server.
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Whether spans are sent.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the waiting spans.
    pub(crate) async fn finish(self) {
        let Some(provider) = self.0 else { return };
        let finish = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FINISH_TIMEOUT));
        if let Ok(Err(error)) = finish.await {
            tracing::warn!(%error, "failed to send the last spans");
        }
    }
}

/// Starts log lines, and starts traces if the environment asks for them.
pub(crate) fn start(log: &LogSettings, context: &Context) -> Result<Traces> {
    let filter = log_filter(log, &context.environment)?;
    let colours = io::stderr().is_terminal() && context.environment.text("NO_COLOR")?.is_none();
    let form = match (log.json, colours) {
        (true, _) => LogForm::Json,
        (false, true) => LogForm::Coloured,
        (false, false) => LogForm::Plain,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || LogOutput(form))
        .with_ansi(colours)
        // The layer would report a closed standard error on standard error, and panic.
        .log_internal_errors(false);
    let lines = if log.json {
        // The span of a request has its id. `span` alone would hide this span behind an inner one.
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(true)
            .with_filter(filter)
            .boxed()
    } else {
        lines.with_target(false).with_filter(filter).boxed()
    };
    let provider =
        if wants_traces(&context.environment)? { Some(tracer_provider(&context.environment)?) } else { None };
    let spans = provider.as_ref().map(|provider| {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        // Only our spans: those of the exporter's own HTTP client would never end.
        let ours =
            filter::filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("dormer"));
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("dormer"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    tracing_subscriber::registry().with(lines).with(spans).init();
    Ok(Traces(provider))
}

/// Standard error for log lines. Lines have paths and messages of clients in them, and somebody may
/// read them in a terminal.
struct LogOutput(LogForm);

impl io::Write for LogOutput {
    /// The layer writes one whole line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        io::stderr().write_all(shown_log_line(&text, self.0).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn log_filter(log: &LogSettings, environment: &Environment) -> Result<EnvFilter> {
    let from_variable = environment.text("RUST_LOG")?;
    let text = from_variable.unwrap_or(&log.filter);
    EnvFilter::try_new(text).map_err(|_| {
        let name = if from_variable.is_some() { "RUST_LOG" } else { "log.filter" };
        Error::usage(
            // What the parser says may quote the text.
            format!("{name}: '{}' is not a filter", RedactedUrl::new(text)),
            "such as `info` or `warn,dormer_engine=debug`",
        )
    })
}

fn wants_traces(environment: &Environment) -> Result<bool> {
    let is_disabled =
        environment.text("OTEL_SDK_DISABLED")?.is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let has_endpoint = environment.text("OTEL_EXPORTER_OTLP_ENDPOINT")?.is_some()
        || environment.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")?.is_some();
    let wanted = match environment.text("OTEL_TRACES_EXPORTER")? {
        None => has_endpoint,
        Some("otlp") => true,
        Some("none") => false,
        Some(other) => {
            let problem = format!("OTEL_TRACES_EXPORTER: '{other}' is not known");
            return Err(Error::usage(problem, "use `otlp`, or `none` for no traces"));
        }
    };
    if !wanted || is_disabled {
        return Ok(false);
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if let Some(protocol) = environment.text(name)?
            && protocol != "http/protobuf"
        {
            let problem = format!("{name}: '{protocol}' is not supported");
            return Err(Error::usage(
                problem,
                "use http/protobuf, which every collector accepts on port 4318",
            ));
        }
    }
    Ok(true)
}

fn tracer_provider(environment: &Environment) -> Result<SdkTracerProvider> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::usage(
            format!("failed to set up traces: {error}"),
            "check OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_ variables",
        )
    };
    let mut exporter = SpanExporter::builder().with_http();
    let endpoint = environment
        .text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")?
        .or(environment.text("OTEL_EXPORTER_OTLP_ENDPOINT")?)
        .unwrap_or("http://localhost:4318");
    let client = collector_client(endpoint.starts_with("http:")).map_err(|error| failed(&error))?;
    exporter = exporter.with_http_client(client);
    let exporter = exporter.build().map_err(|error| failed(&error))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(environment)?)
        .build())
}

/// A client that follows no redirect: spans and headers, which may hold a key of the collector, go
/// to the address in the settings alone. In a minimal container without root certificates, a client
/// that uses them cannot be built, so one for plain HTTP has none.
///
/// Built on its own thread: the client contains a runtime, which must not be made within another
/// runtime.
fn collector_client(is_plain: bool) -> reqwest::Result<reqwest::blocking::Client> {
    let build = || {
        let client = reqwest::blocking::Client::builder()
            .timeout(opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT)
            .redirect(reqwest::redirect::Policy::none());
        if is_plain { client.tls_certs_only([]).build() } else { client.build() }
    };
    std::thread::scope(|scope| scope.spawn(build).join()).expect("building a client does not panic")
}

/// The sender of these spans. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` can add to it or
/// override it.
fn resource(environment: &Environment) -> Result<Resource> {
    let attributes = environment.text("OTEL_RESOURCE_ATTRIBUTES")?.unwrap_or_default();
    let is_named = environment.text("OTEL_SERVICE_NAME")?.is_some() || attributes.contains("service.name=");
    let resource =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    Ok(if is_named { resource.build() } else { resource.with_service_name("dormer").build() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_leads_the_spans_nowhere_else() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let location = format!("http://{}/", elsewhere.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
        });
        let client = collector_client(true).unwrap();
        assert_eq!(client.post(address).body("spans").send().unwrap().status(), 307);
        elsewhere.set_nonblocking(true).unwrap();
        assert!(elsewhere.accept().is_err(), "nobody came");
    }

    #[test]
    fn traces_are_off_until_the_environment_wants_them() {
        let wants = |variables: &[(&str, &str)]| {
            let environment = Environment::from(variables);
            wants_traces(&environment).map_err(|error| error.chain())
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(wants(&[]), Ok(false));
        assert_eq!(wants(&[endpoint]), Ok(true));
        assert_eq!(wants(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/v1/traces")]), Ok(true));
        assert_eq!(wants(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        assert_eq!(wants(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(wants(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(false));
        assert!(wants(&[endpoint, ("OTEL_TRACES_EXPORTER", "zipkin")]).is_err());
        assert!(wants(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_err());
        assert_eq!(
            wants(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
            Ok(false),
            "the variable is for other signals"
        );
    }
}
