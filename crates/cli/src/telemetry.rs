//! What the server tells of itself while it runs: log lines on standard error, and traces for whoever collects them.
//!
//! Traces follow OpenTelemetry's variables and nothing else: they are sent, as OTLP over HTTP, if
//! `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` says where to, or `OTEL_TRACES_EXPORTER` is
//! `otlp`. Spans wait in a bounded queue (`OTEL_BSP_MAX_QUEUE_SIZE`, 2,048) for a thread of their own; when it is full they
//! are dropped, so that a collector that is slow or gone costs no request anything.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, filter};

use crate::commands::Context;
use crate::error::{Error, Result};
use crate::settings::{Environment, LogSettings};

/// How long the last spans have to be sent at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// What must be ended when the server ends.
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Whether spans go anywhere.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what still waits.
    pub(crate) async fn finish(self) {
        let Some(provider) = self.0 else { return };
        let finish = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FINISH_TIMEOUT));
        if let Ok(Err(error)) = finish.await {
            tracing::warn!(%error, "failed to send the last spans");
        }
    }
}

/// Starts log lines, and traces if the environment wants them.
pub(crate) fn start(log: &LogSettings, context: &Context) -> Result<Traces> {
    let filter = log_filter(log, &context.environment)?;
    let colours = io::stderr().is_terminal() && context.environment.text("NO_COLOR")?.is_none();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colours)
        // It would complain about a closed standard error on standard error, and panic.
        .log_internal_errors(false);
    let lines = if log.json {
        // The span of a request has its id; `span` alone would hide it behind an inner one.
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
        // Ours only: those of the exporter's own HTTP client would never end.
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

fn log_filter(log: &LogSettings, environment: &Environment) -> Result<EnvFilter> {
    let from_variable = environment.text("RUST_LOG")?;
    let text = from_variable.unwrap_or(&log.filter);
    EnvFilter::try_new(text).map_err(|error| {
        let name = if from_variable.is_some() { "RUST_LOG" } else { "log.filter" };
        Error::usage(
            format!("{name}: '{text}' is not a filter: {error}"),
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
            return Err(Error::usage(problem, "traces are sent by `otlp`, or not at all with `none`"));
        }
    };
    if !wanted || is_disabled {
        return Ok(false);
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if let Some(protocol) = environment.text(name)?
            && protocol != "http/protobuf"
        {
            let problem = format!("{name}: '{protocol}' is not spoken here");
            return Err(Error::usage(problem, "use http/protobuf, which every collector takes on port 4318"));
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
    if endpoint.starts_with("http:") {
        // A minimal container has no root certificates, and then no client can be built that would use them.
        exporter = exporter.with_http_client(plain_client().map_err(|error| failed(&error))?);
    }
    let exporter = exporter.build().map_err(|error| failed(&error))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(environment)?)
        .build())
}

/// Built on a thread of its own: it has a run time inside, and none may be made within another.
fn plain_client() -> reqwest::Result<reqwest::blocking::Client> {
    let build = || {
        let limit = opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT;
        reqwest::blocking::Client::builder().tls_certs_only([]).timeout(limit).build()
    };
    std::thread::scope(|scope| scope.spawn(build).join()).expect("building a client does not panic")
}

/// Who sends these spans; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say more, or otherwise.
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
        assert_eq!(wants(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(false), "said to others");
    }
}
