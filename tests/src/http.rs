//! HTTP as bytes on a socket: what a test sends is what stands in it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// No answer takes this long, even of a server that ingests a gigabyte on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(5);

/// An answer.
#[derive(Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Names (in lower case) and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body, without transfer coding.
    pub body: Vec<u8>,
    /// Whether the body is as long as the headers or the transfer coding promise.
    pub complete: bool,
}

impl Reply {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.text();
        let short: String = text.chars().take(800).collect();
        write!(f, "{} {:?} ({} bytes) {short}", self.status, self.headers, self.body.len())
    }
}

/// Sends these very bytes and reads the answer until the server closes; the request should say
/// `Connection: close`.
#[track_caller]
pub fn exchange(address: &str, request: &[u8]) -> Reply {
    let mut stream = connect(address);
    // A server that refuses a body early may close before it has read it all: its answer counts,
    // not our broken pipe.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    parse(&answer, request.starts_with(b"HEAD "))
}

/// Like [`request`], but leaves as soon as the answer is whole: workerd closes a connection only
/// seconds later.
#[track_caller]
pub fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut stream = connect(address);
    let _ = stream.write_all(&request_bytes(address, method, path, headers, body));
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !is_whole(&answer, method == "HEAD") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
        }
    }
    parse(&answer, method == "HEAD")
}

/// Whether an answer that says its length has come to its end.
fn is_whole(answer: &[u8], is_head: bool) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    if head.starts_with("http/1.1 100") {
        return false;
    }
    if is_head || head.starts_with("http/1.1 304") {
        return true;
    }
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

/// A connection with a time limit on each read and write.
#[track_caller]
pub fn connect(address: &str) -> TcpStream {
    let stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("no server at {address}: {error}"));
    stream.set_read_timeout(Some(TIMEOUT)).expect("a time limit is not zero");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a time limit is not zero");
    stream
}

/// A request with these header lines and a body of known length.
#[track_caller]
pub fn request(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    exchange(address, &request_bytes(address, method, path, headers, body))
}

fn request_bytes(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !matches!(method, "GET" | "HEAD") || !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// A connection that is kept from one request to the next, as Nix and Attic's client keep theirs.
/// Answers must say their length.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    is_closed: bool,
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::with_capacity(256 * 1024, stream), is_closed: false })
    }

    /// Whether the server said that no further request fits on this connection.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Sends these very bytes and reads one answer. An error leaves the connection useless.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Reply> {
        self.stream.get_mut().write_all(request)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_until(b'\n', &mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut reply = parse(&head, true);
        self.is_closed = reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let length = reply.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or_else(|| panic!("an answer without a length: {reply:?}"));
        if !request.starts_with(b"HEAD ") {
            reply.body = vec![0; length];
            self.stream.read_exact(&mut reply.body)?;
        }
        Ok(reply)
    }
}

/// A GET, with or without a token.
#[track_caller]
pub fn get(address: &str, path: &str, token: Option<&str>) -> Reply {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
    request(address, "GET", path, &headers, b"")
}

/// A body in chunked transfer coding, in pieces that fall everywhere.
pub fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 1024);
    // A prime far from every buffer size: pieces end in the middle of everything.
    for piece in body.chunks(7919) {
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[track_caller]
fn parse(answer: &[u8], is_head: bool) -> Reply {
    let mut rest = answer;
    loop {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no answer: {:?}", String::from_utf8_lossy(&rest[..rest.len().min(300)]))
        });
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let body = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let status_line = lines.next().expect("split gives at least one part");
        let status: u16 = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("no status line: {status_line:?}"));
        if status == 100 {
            rest = body;
            continue;
        }
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let value = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let (body, complete) = if is_head {
            (Vec::new(), body.is_empty())
        } else if value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            unchunk(body)
        } else {
            let promised = value("content-length").and_then(|length| length.parse::<usize>().ok());
            (body.to_vec(), promised.is_none_or(|length| length == body.len()))
        };
        return Reply { status, headers, body, complete };
    }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { return (body, false) };
        let size =
            std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(size) = size else { return (body, false) };
        rest = &rest[end + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(&rest[..rest.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}
