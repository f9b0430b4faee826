//! An HTTP proxy in front of a real server that makes requests fail on purpose.
//!
//! The proxy handles one request per connection: it sends `Connection: close` to both sides. An
//! answer therefore ends with its connection, and a cut stays a cut. Everything else passes
//! unchanged, so signatures stay valid.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest wait on a connection, so that no thread stays for ever.
const IDLE_LIMIT: Duration = Duration::from_mins(2);

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The request and its answer pass.
    Pass,
    /// The proxy answers with this status. The server never sees the request.
    Answer {
        /// Such as 503.
        status: u16,
        /// Seconds in `Retry-After`.
        retry_after: Option<u32>,
    },
    /// The proxy cuts the server's answer off after this many bytes of its body.
    CutAnswer(usize),
    /// The server carries the request out, and the answer is lost.
    LoseAnswer,
    /// The proxy closes the connection without an answer. The server never sees the request.
    Drop,
    /// The proxy waits this long without an answer, and then closes the connection.
    Hang(Duration),
}

/// Chooses the fate of a request by its first line and its number.
type FateRule = Box<dyn Fn(&str, u64) -> Fate + Send + Sync>;

struct Shared {
    server: String,
    plan: Mutex<FateRule>,
    count: AtomicU64,
    heads: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// The proxy. Dropping the value stops it from accepting connections.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// A proxy in front of `http://host:port` that passes everything.
    pub fn start(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the listener is bound");
        let shared = Arc::new(Shared {
            server: endpoint.trim_start_matches("http://").to_owned(),
            plan: Mutex::new(Box::new(|_, _| Fate::Pass)),
            count: AtomicU64::new(0),
            heads: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let serving = Arc::clone(&accepting);
                if let Ok(client) = client {
                    // Every error here is a broken connection.
                    thread::spawn(move || serve(client, &serving).unwrap_or_default());
                }
            }
        });
        Self { address, shared }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the fate of each request from now on. The function gets the request's first line (`GET
    /// /bucket/name HTTP/1.1`) and its number, which starts again at 0.
    pub fn set_plan(&self, plan: impl Fn(&str, u64) -> Fate + Send + Sync + 'static) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(plan);
        self.shared.count.store(0, Ordering::SeqCst);
    }

    /// The heads of all requests since the last call: first line and headers.
    pub fn take_heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    client.set_read_timeout(Some(IDLE_LIMIT))?;
    client.set_write_timeout(Some(IDLE_LIMIT))?;
    let Some((head, begun)) = read_head(&mut client)? else { return Ok(()) };
    let line = head.lines().next().unwrap_or_default().to_owned();
    let fate = {
        let plan = shared.plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan(&line, shared.count.fetch_add(1, Ordering::SeqCst))
    };
    shared.heads.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    let body_bytes = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    match fate {
        Fate::Drop => return client.shutdown(Shutdown::Both),
        Fate::Hang(time) => {
            thread::sleep(time);
            return client.shutdown(Shutdown::Both);
        }
        Fate::Answer { status, retry_after } => {
            // A client that is cut off while it sends would see a broken connection and no answer.
            copy(&mut client, &mut std::io::sink(), body_bytes - begun.len() as u64)?;
            let retry_after =
                retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            let text = "<Error><Code>SlowDown</Code><Message>by the test</Message></Error>";
            let length = text.len();
            let answer = format!(
                "HTTP/1.1 {status} By The Test\r\nConnection: close\r\n{retry_after}Content-Length: {length}\r\n\r\n"
            );
            client.write_all(answer.as_bytes())?;
            // An answer to HEAD has no body.
            if !line.starts_with("HEAD ") {
                client.write_all(text.as_bytes())?;
            }
            return client.shutdown(Shutdown::Write);
        }
        Fate::Pass | Fate::CutAnswer(_) | Fate::LoseAnswer => {}
    }
    let mut server = TcpStream::connect(&shared.server)?;
    server.set_read_timeout(Some(IDLE_LIMIT))?;
    server.set_write_timeout(Some(IDLE_LIMIT))?;
    let (first, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    server.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes())?;
    server.write_all(&begun)?;
    copy(&mut client, &mut server, body_bytes - begun.len() as u64)?;
    let Some((answer, begun)) = read_head(&mut server)? else { return client.shutdown(Shutdown::Both) };
    if fate == Fate::LoseAnswer {
        copy(&mut server, &mut std::io::sink(), u64::MAX)?;
        return client.shutdown(Shutdown::Both);
    }
    client.write_all(answer.as_bytes())?;
    if let Fate::CutAnswer(bytes) = fate {
        client.write_all(&begun[..begun.len().min(bytes)])?;
        copy(&mut server, &mut client, bytes.saturating_sub(begun.len()) as u64)?;
    } else {
        client.write_all(&begun)?;
        copy(&mut server, &mut client, u64::MAX)?;
    }
    client.shutdown(Shutdown::Both)
}

/// Reads the head of a message with its empty line. Returns the head, and the part of the body that
/// arrived with it.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), body)));
        }
    }
}

/// The value of a header in a head.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Copies this many bytes, or fewer if the input ends.
fn copy(from: &mut TcpStream, to: &mut impl std::io::Write, bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read(&mut buffer[..want])?;
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}
