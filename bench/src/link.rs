//! A link between a client and a server, in this process: it counts bytes and requests, and may add
//! a round-trip time and limit the bandwidth.
//!
//! Bytes wait in memory from their arrival to the end of their delay. The limit counts for all
//! connections of one direction together, as a line does.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Result};

/// One read from a socket.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces on their way: 16 MiB, more than fits a line of 100 ms and 1 Gbit/s.
const PIECES_MAX: usize = 1024;
/// How every answer begins.
const ANSWER: &[u8] = b"HTTP/1.1 ";

/// How the link behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkKind {
    pub(crate) name: &'static str,
    /// Time for a byte to get there and for the answer to come back.
    round_trip: Duration,
    /// `None` for no limit.
    bits_per_second: Option<f64>,
}

/// No delay and no limit: only counts.
pub(crate) const DIRECT: LinkKind =
    LinkKind { name: "direct", round_trip: Duration::ZERO, bits_per_second: None };
/// A line to another town.
pub(crate) const SLOW: LinkKind = LinkKind {
    name: "100 ms, 100 Mbit/s",
    round_trip: Duration::from_millis(100),
    bits_per_second: Some(100e6),
};

/// A time without bytes from the client that is worth a note.
const GAP_MIN: Duration = Duration::from_millis(50);

/// What went over a link.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// Bytes from the client, with the heads of the requests.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Answers of the server.
    pub(crate) requests: u64,
}

/// A time in which no bytes from the client were on the line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gap {
    /// Since the link started.
    pub(crate) begin: Duration,
    pub(crate) length: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
}

/// A running link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    counters: Arc<Counters>,
    /// From the client to the server.
    up: Line,
    stopped: Arc<AtomicBool>,
}

impl Link {
    /// A link to `server` on a free port.
    pub(crate) fn start(server: SocketAddr, kind: LinkKind) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context(|| "open a link".to_owned())?;
        let address = listener.local_addr().context(|| "open a link".to_owned())?;
        let (counters, stopped) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        let (counted, flag) = (Arc::clone(&counters), Arc::clone(&stopped));
        let (up, down) = (Line::new(kind), Line::new(kind));
        let line_up = up.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    break;
                }
                // A connection that cannot be opened is closed, which the client reports.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) {
                    let _ = carry(client, server, &up, &down, &counted);
                }
            }
        });
        Ok(Self { address, counters, up: line_up, stopped })
    }

    /// What went over it so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let Counters { sent, received, requests } = &*self.counters;
        Traffic { sent: of(sent), received: of(received), requests: of(requests) }
    }

    /// When the line from the client was idle for at least [`GAP_MIN`], up to the last byte.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        self.up.state().gaps.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

/// One direction, shared by all connections.
#[derive(Debug, Clone)]
struct Line {
    delay: Duration,
    bytes_per_second: Option<f64>,
    state: Arc<Mutex<LineState>>,
}

#[derive(Debug)]
struct LineState {
    begun: Instant,
    /// When all bytes that came so far are through.
    free_at: Instant,
    gaps: Vec<Gap>,
}

impl Line {
    fn new(kind: LinkKind) -> Self {
        let bytes_per_second = kind.bits_per_second.map(|bits| bits / 8.0);
        let now = Instant::now();
        let state = LineState { begun: now, free_at: now, gaps: Vec::new() };
        Self { delay: kind.round_trip / 2, bytes_per_second, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When bytes that come now are through.
    fn arrival(&self, bytes: usize, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_second else { return now + self.delay };
        let mut state = self.state();
        let idle_since = state.free_at;
        let length = now.saturating_duration_since(idle_since);
        if length >= GAP_MIN {
            let begin = idle_since - state.begun;
            state.gaps.push(Gap { begin, length });
        }
        state.free_at = idle_since.max(now) + Duration::from_secs_f64(bytes as f64 / rate);
        state.free_at + self.delay
    }
}

fn carry(
    client: TcpStream,
    server: TcpStream,
    up: &Line,
    down: &Line,
    counters: &Arc<Counters>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_out, server_out) = (client.try_clone()?, server.try_clone()?);
    let counted = Arc::clone(counters);
    direction(client, server_out, up.clone(), move |bytes| {
        counted.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    });
    let counted = Arc::clone(counters);
    let mut answers = AnswerCounter::default();
    direction(server, client_out, down.clone(), move |bytes| {
        counted.received.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        counted.requests.fetch_add(answers.feed(bytes), Ordering::SeqCst);
    });
    Ok(())
}

/// Two threads: one reads and stamps, one waits and writes.
fn direction(
    mut from: TcpStream,
    mut to: TcpStream,
    line: Line,
    mut count: impl FnMut(&[u8]) + Send + 'static,
) {
    let (sender, receiver): (SyncSender<(Instant, Vec<u8>)>, Receiver<_>) = sync_channel(PIECES_MAX);
    thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut piece) {
            count(&piece[..bytes]);
            if sender.send((line.arrival(bytes, Instant::now()), piece[..bytes].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        while let Ok((at, piece)) = receiver.recv() {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Counts the heads of answers. No answer of a push holds these bytes in its body.
#[derive(Debug, Default)]
struct AnswerCounter {
    matched: usize,
}

impl AnswerCounter {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut found = 0;
        for &byte in bytes {
            // `H` occurs only at the start, so a mismatch begins anew at once.
            self.matched = match byte {
                byte if byte == ANSWER[self.matched] => self.matched + 1,
                byte if byte == ANSWER[0] => 1,
                _ => 0,
            };
            if self.matched == ANSWER.len() {
                found += 1;
                self.matched = 0;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_however_they_arrive() {
        let stream = b"HTTP/1.1 200 X\r\n\r\nHTHTTP/1.1 404 HTTP/1.0 HTTP/1.1 204";
        for size in [1, 3, stream.len()] {
            let mut counter = AnswerCounter::default();
            assert_eq!(stream.chunks(size).map(|piece| counter.feed(piece)).sum::<u64>(), 3);
        }
    }

    #[test]
    fn a_link_carries_counts_and_delays() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the link connects");
            let mut request = [0; 5];
            stream.read_exact(&mut request).expect("the request");
            stream.write_all(b"HTTP/1.1 200 X").expect("the answer");
        });
        let kind = LinkKind { round_trip: Duration::from_millis(40), ..SLOW };
        let link = Link::start(server, kind).expect("a link");
        let begun = Instant::now();
        let mut client = TcpStream::connect(link.address).expect("the link listens");
        client.write_all(b"hello").expect("it takes bytes");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the answer");
        assert_eq!(answer, b"HTTP/1.1 200 X");
        assert!(begun.elapsed() >= Duration::from_millis(40));
        let Traffic { sent, received, requests } = link.traffic();
        assert_eq!((sent, received, requests), (5, 14, 1));
    }

    #[test]
    fn a_line_notes_when_it_was_idle() {
        let kind = LinkKind { bits_per_second: Some(8e3), ..SLOW };
        let line = Line::new(kind);
        let begun = line.state().begun;
        // Ten bytes take 10 ms.
        for _ in 0..10 {
            line.arrival(10, begun);
        }
        assert!(line.state().gaps.is_empty(), "bytes wait for each other");
        line.arrival(10, begun + Duration::from_millis(180));
        let [Gap { begin, length }] = line.state().gaps[..] else { panic!("{:?}", line.state().gaps) };
        assert_eq!((begin, length), (Duration::from_millis(100), Duration::from_millis(80)));
    }
}
