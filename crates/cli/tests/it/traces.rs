//! Traces arrive at a collector, in the form that collectors read.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(home: &std::path::Path, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dormer"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env_clear()
            .env("HOME", home)
            .env("DORMER_METRICS_LISTEN", "off")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().strip_prefix("listening on http://").map(str::to_owned))
            .expect("the server prints its address");
        // Reads the later output, so that the server can go on writing.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// Receives exported traces: the path and the body of each request.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut first = String::new();
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                if first.is_empty() {
                    line.split(' ').nth(1).unwrap().clone_into(&mut first);
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
            if send.send((first, body)).is_err() {
                return;
            }
        }
    });
    (endpoint, receive)
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    attribute.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attribute(attributes, key) {
        Some(Value::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// The span of a route, and the name of the service that sent it.
fn span_of(received: &mpsc::Receiver<(String, Vec<u8>)>, route: &str) -> (Span, String) {
    loop {
        let (path, body) =
            received.recv_timeout(Duration::from_mins(1)).expect("spans are exported in seconds");
        assert_eq!(path, "/v1/traces");
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        for resource in request.resource_spans {
            let of = resource.resource.unwrap();
            let service = text(&of.attributes, "service.name").expect("the sender has a service name");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                if text(&span.attributes, "http.route") == Some(route) {
                    return (span, service.to_owned());
                }
            }
        }
    }
}

#[test]
fn a_request_becomes_a_span_with_its_route_and_status_in_the_trace_that_it_came_with() {
    let home = tempfile::tempdir().unwrap();
    let (endpoint, received) = collector();
    let server = Server::start(
        home.path(),
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")],
    );
    let headers =
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Request-Id: job-7\r\n";
    assert!(server.get("/main/nix-cache-info", headers).starts_with("HTTP/1.1 200"));
    let (span, service) = span_of(&received, "/{cache}/nix-cache-info");
    assert_eq!(service, "dormer");
    assert_eq!(span.name, "GET /{cache}/nix-cache-info");
    assert_eq!(span.kind, SpanKind::Server as i32);
    assert_eq!(attribute(&span.attributes, "http.response.status_code"), Some(&Value::IntValue(200)));
    assert_eq!(text(&span.attributes, "http.request.method"), Some("GET"));
    assert_eq!(text(&span.attributes, "request.id"), Some("job-7"));
    assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    assert_ne!(span.status.unwrap_or_default().code, StatusCode::Error as i32);

    assert!(server.get("/main/00000000000000000000000000000000.narinfo", "").starts_with("HTTP/1.1 404"));
    let (span, _) = span_of(&received, "/{cache}/{hash}.narinfo");
    assert_eq!(attribute(&span.attributes, "http.response.status_code"), Some(&Value::IntValue(404)));
    assert!(span.parent_span_id.is_empty(), "a trace of its own");
}

#[test]
fn a_collector_that_is_not_there_costs_no_request_anything() {
    let home = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    let server = Server::start(
        home.path(),
        // The collector accepts connections and never answers. The queue is full after four spans.
        //
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
        ],
    );
    for _ in 0..200 {
        assert!(server.get("/main/nix-cache-info", "").starts_with("HTTP/1.1 200"));
    }
}
