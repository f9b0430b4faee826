//! A server that follows a script, one step per connection: it answers, lies, stalls or hangs up.
//! It speaks just enough HTTP to read the exact bytes of a client, and shares no code with the
//! client.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Reads the whole request, then answers with this status, these extra header lines and this
    /// body.
    Answer(u16, &'static str, String),
    /// Reads the head of the request only, answers, and hangs up.
    AnswerEarly(u16, String),
    /// Reads the whole request and hangs up without an answer.
    HangUp,
    /// Reads this many bytes of the body and hangs up.
    HangUpAfter(usize),
    /// Reads the head, then reads nothing and answers nothing.
    Stall,
}

/// One request as received.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// `GET /path HTTP/1.1`
    pub(crate) line: String,
    /// Names in lower case, in the order of arrival.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, decoded if it came in chunks.
    pub(crate) body: Vec<u8>,
    /// Whether the body was complete.
    pub(crate) is_whole: bool,
    /// When the server had read the head.
    pub(crate) at: Instant,
}

impl Request {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A running server, which ends with the test.
pub(crate) struct Server {
    /// `http://127.0.0.1:PORT`
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that follows `steps` in order, and repeats the last one for ever.
    pub(crate) async fn scripted(steps: impl IntoIterator<Item = Step>) -> Self {
        let steps: Vec<Step> = steps.into_iter().collect();
        Self::answering(move |number, _| steps[number.min(steps.len() - 1)].clone()).await
    }

    /// A server that decides by the number of the request and its first line.
    pub(crate) async fn answering(decide: impl Fn(usize, &str) -> Step + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (decide, seen) = (Arc::new(decide), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (decide, seen) = (Arc::clone(&decide), Arc::clone(&seen));
                // A client may go away at any time. That ends the connection, not the test.
                tokio::spawn(async move { serve(stream, &*decide, &seen).await.ok() });
            }
        });
        Self { address, requests }
    }

    /// The requests so far, in the order in which their heads arrived.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

/// Serves one request per connection. Every answer closes the connection, so that each step is one
/// connection.
async fn serve(
    mut stream: TcpStream,
    decide: &(dyn Fn(usize, &str) -> Step + Send + Sync),
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let Some((request, rest)) = read_head(&mut stream).await? else { return Ok(()) };
    let (number, step) = {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push(request.clone());
        (seen.len() - 1, decide(seen.len() - 1, &request.line))
    };
    let body_max = match step {
        Step::Answer(..) | Step::HangUp => usize::MAX,
        Step::HangUpAfter(bytes) => bytes,
        Step::AnswerEarly(..) | Step::Stall => 0,
    };
    let (body, is_whole) = read_body(&mut stream, rest, &request, body_max).await;
    {
        let mut seen = seen.lock().expect("not poisoned");
        seen[number].body = body;
        seen[number].is_whole = is_whole;
    }
    match step {
        Step::Answer(status, headers, body) => {
            answer(&mut stream, status, headers, &body).await?;
        }
        Step::AnswerEarly(status, body) => {
            answer(&mut stream, status, "", &body).await?;
            // Closing with unread input resets the connection, and the reset could overtake the
            // answer.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Step::HangUp | Step::HangUpAfter(_) => {}
        Step::Stall => tokio::time::sleep(Duration::from_mins(1)).await,
    }
    Ok(())
}

/// Reads the head of a request, and what came of its body already. `None` if the client went away.
pub(crate) async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<(Request, Vec<u8>)>> {
    let mut input = Vec::new();
    let head_end = loop {
        if let Some(at) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(None);
        }
    };
    let rest = input.split_off(head_end + 4);
    let head = String::from_utf8(input).expect("a head of ASCII");
    let mut lines = head.trim_end().split("\r\n").map(str::to_owned);
    let line = lines.next().expect("a first line");
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a header line");
            (name.to_lowercase(), value.trim().to_owned())
        })
        .collect();
    let request = Request { line, headers, body: Vec::new(), is_whole: false, at: Instant::now() };
    Ok(Some((request, rest)))
}

async fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await
}

/// Reads at least `max` bytes of the body, or all of it, and says whether it was complete.
pub(crate) async fn read_body(
    stream: &mut TcpStream,
    mut input: Vec<u8>,
    request: &Request,
    max: usize,
) -> (Vec<u8>, bool) {
    let length = request.header("content-length").map(|value| value.parse::<usize>().expect("a length"));
    let chunked = request.header("transfer-encoding") == Some("chunked");
    loop {
        let (body, is_whole) = match length {
            Some(length) => (input[..input.len().min(length)].to_vec(), input.len() >= length),
            None if chunked => dechunk(&input),
            None => (Vec::new(), true),
        };
        if is_whole || body.len() >= max {
            return (body, is_whole);
        }
        match stream.read_buf(&mut input).await {
            Ok(0) | Err(_) => return (body, false),
            Ok(_) => {}
        }
    }
}

/// The contents of the chunks so far, and whether the last chunk has arrived.
///
fn dechunk(mut input: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(line_end) = input.windows(2).position(|window| window == b"\r\n") {
        let line = std::str::from_utf8(&input[..line_end]).expect("a chunk's size");
        let size = usize::from_str_radix(line, 16).expect("a chunk's size in hex");
        input = &input[line_end + 2..];
        if size == 0 {
            return (body, input.starts_with(b"\r\n"));
        }
        body.extend_from_slice(&input[..input.len().min(size)]);
        if input.len() < size + 2 {
            break;
        }
        input = &input[size + 2..];
    }
    (body, false)
}
