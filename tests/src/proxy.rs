//! A TCP proxy that sees requests, cuts connections in the middle of a NAR or of a request, cuts
//! requests that take long, and answers requests itself with 503.

use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How a line that fails answers a request itself.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What one request said, as far as tests want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Method and path, such as `GET /main/nix-cache-info`.
    pub line: String,
    /// The Range header.
    pub range: Option<String>,
    /// The length of the body that the head announces.
    pub body_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    server: String,
    seen: Mutex<Vec<Seen>>,
    /// How many answers to cut still, and after how many bytes.
    cuts: AtomicU64,
    cut_after_bytes: u64,
    /// A request that is still being sent after this time is cut.
    request_time_max: Duration,
    /// How many requests were cut because of that.
    late_requests: AtomicU64,
    /// Whether requests fail.
    fails: bool,
    /// Requests of a line that fails, so far.
    requests: AtomicU64,
}

/// What happens to a request on a line that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The proxy answers with 503, and the server sees nothing.
    Busy,
    /// The connection ends in the middle of the body.
    Cut,
}

impl Fault {
    /// Of ten requests, three are answered with 503 and one is cut. The order is fixed, so that no
    /// request is unlucky for ever.
    fn of_request(number: u64) -> Self {
        match number % 10 {
            1 | 4 | 7 => Self::Busy,
            5 => Self::Cut,
            _ => Self::None,
        }
    }
}

/// A proxy between machines and the lab. Its threads end with their connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy that only looks.
    pub fn watching(server: &str) -> Self {
        Self::cutting(server, 0, 0)
    }

    /// A proxy that cuts the first `cuts` answers to GETs of NARs after so many bytes each.
    pub fn cutting(server: &str, cuts: u64, cut_after_bytes: u64) -> Self {
        Self::listen(server, cuts, cut_after_bytes, Duration::MAX, false)
    }

    /// A proxy that cuts every request that is still being sent after `request_time_max`, as many
    /// do after a minute.
    pub fn hasty(server: &str, request_time_max: Duration) -> Self {
        Self::listen(server, 0, 0, request_time_max, false)
    }

    /// A proxy that answers three of ten requests itself with 503, and cuts one of ten in the
    /// middle of its body. Bodies must have a known length.
    pub fn failing(server: &str) -> Self {
        Self::listen(server, 0, 0, Duration::MAX, true)
    }

    fn listen(
        server: &str,
        cuts: u64,
        cut_after_bytes: u64,
        request_time_max: Duration,
        fails: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener is bound");
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            seen: Mutex::default(),
            cuts: AtomicU64::new(cuts),
            cut_after_bytes,
            request_time_max,
            late_requests: AtomicU64::new(0),
            fails,
            requests: AtomicU64::new(0),
        });
        let stopped = Arc::new(AtomicBool::new(false));
        let (accepted, flag) = (Arc::clone(&shared), Arc::clone(&stopped));
        thread::spawn(move || {
            for client in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    serve(client, &accepted);
                }
            }
        });
        Self { address, shared, stopped }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// A cache's URL through this proxy.
    pub fn cache_url(&self, cache: &str) -> String {
        format!("http://{}/{cache}", self.address)
    }

    /// Every request so far, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no thread panics with the lock").clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.seen.lock().expect("no thread panics with the lock").clear();
    }

    /// How many requests took too long.
    pub fn late_requests(&self) -> u64 {
        self.shared.late_requests.load(Ordering::SeqCst)
    }

    /// How many answers are still to be cut.
    pub fn cuts_left(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

/// Two threads copy, one each way; the requesting one also reads the heads.
fn serve(client: TcpStream, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(&shared.server) else { return };
    let (Ok(client_reader), Ok(server_writer)) = (client.try_clone(), server.try_clone()) else { return };
    // Answer bytes since a GET of a NAR began on this connection; u64::MAX while none is under way.
    let nar_bytes = Arc::new(AtomicU64::new(u64::MAX));
    let (requests, counted) = (Arc::clone(shared), Arc::clone(&nar_bytes));
    thread::spawn(move || copy_requests(client_reader, server_writer, &requests, &counted));
    let answers = Arc::clone(shared);
    thread::spawn(move || copy_answers(server, client, &answers, &nar_bytes));
}

fn copy_requests(mut client: TcpStream, mut server: TcpStream, shared: &Shared, nar_bytes: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    let mut heads = HeadScanner::default();
    let mut begun = Instant::now();
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        let heads_seen = heads.feed(&buffer[..count]);
        if !heads_seen.is_empty() {
            begun = Instant::now();
        } else if begun.elapsed() > shared.request_time_max {
            shared.late_requests.fetch_add(1, Ordering::SeqCst);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
            return;
        }
        // A client sends no second request before the answer to its first.
        if shared.fails && !heads_seen.is_empty() {
            match Fault::of_request(shared.requests.fetch_add(1, Ordering::SeqCst)) {
                Fault::None => {}
                Fault::Busy => {
                    // A client that still sends would see a reset instead of the answer.
                    while heads.body_bytes_left > 0
                        && let Ok(count @ 1..) = client.read(&mut buffer)
                    {
                        heads.feed(&buffer[..count]);
                    }
                    let _ = client.write_all(BUSY);
                    break;
                }
                Fault::Cut => {
                    let _ = server.write_all(&buffer[..count]);
                    let half = heads.body_bytes_left / 2;
                    let _ = std::io::copy(&mut (&client).take(half), &mut server);
                    let _ = client.shutdown(Shutdown::Both);
                    let _ = server.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
        for seen in heads_seen {
            let is_nar = seen.line.starts_with("GET ") && seen.line.contains("/nar/");
            nar_bytes.store(if is_nar { 0 } else { u64::MAX }, Ordering::SeqCst);
            shared.seen.lock().expect("no thread panics with the lock").push(seen);
        }
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
}

fn copy_answers(mut server: TcpStream, mut client: TcpStream, shared: &Shared, nar_bytes: &AtomicU64) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
        let before = nar_bytes.load(Ordering::SeqCst);
        if before == u64::MAX {
            continue;
        }
        let sent = before + count as u64;
        nar_bytes.store(sent, Ordering::SeqCst);
        if sent >= shared.cut_after_bytes
            && shared
                .cuts
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok()
        {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// Finds the heads of requests in what a client sends, over bodies of known length.
#[derive(Debug, Default)]
struct HeadScanner {
    head: Vec<u8>,
    body_bytes_left: u64,
}

impl HeadScanner {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for &byte in bytes {
            if self.body_bytes_left > 0 {
                self.body_bytes_left -= 1;
                continue;
            }
            self.head.push(byte);
            if !self.head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8_lossy(&std::mem::take(&mut self.head)).into_owned();
            let value = |name: &str| {
                text.lines()
                    .filter_map(|line| line.split_once(':'))
                    .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned()))
            };
            self.body_bytes_left = value("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
            seen.push(Seen { line, range: value("range"), body_bytes: self.body_bytes_left });
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_between_bodies_however_the_bytes_arrive() {
        let sent = b"PUT /main/nar/x HTTP/1.1\r\nContent-Length: 18\r\n\r\nGET /no HTTP/1.1\r\nGET /main/nar/x HTTP/1.1\r\n\
            range: bytes=7-\r\n\r\n";
        for size in [1, 7, 50, sent.len()] {
            let mut scanner = HeadScanner::default();
            let seen: Vec<Seen> = sent.chunks(size).flat_map(|piece| scanner.feed(piece)).collect();
            assert_eq!(
                seen,
                [
                    Seen { line: "PUT /main/nar/x".to_owned(), range: None, body_bytes: 18 },
                    Seen {
                        line: "GET /main/nar/x".to_owned(),
                        range: Some("bytes=7-".to_owned()),
                        body_bytes: 0
                    },
                ]
            );
        }
    }
}
