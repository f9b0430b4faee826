//! A connection with limits on how long its writes may make no progress.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::listener::Stream;

/// A reader that takes fewer bytes a second makes next to no progress.
const SLOW_BYTES_PER_SECOND: u64 = 64 * 1024;

/// How long a reader may make next to no progress while others wait for what it holds.
const SLOW_TIME_MAX: Duration = Duration::from_secs(5);

/// How often a connection whose reader takes nothing looks whether others wait.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Whether others wait for what slow readers hold.
pub(crate) type AskOthers = Box<dyn Fn() -> bool + Send + Sync>;

/// A connection with these limits. Without them, a reader that stops reading would hold its
/// slot and the bytes that were read for it, and others would wait for them.
pub(crate) struct Socket {
    stream: Stream,
    write_timeout: Duration,
    others_wait: AskOthers,
    stall: Option<Stall>,
    /// The time that writes have waited, less the time in which a slow reader would have taken the
    /// bytes that were written.
    slow_time: Duration,
}

/// A write that waits for the reader.
struct Stall {
    begin: Instant,
    look: Pin<Box<Sleep>>,
}

impl Socket {
    pub(crate) fn new(stream: Stream, write_timeout: Duration, others_wait: AskOthers) -> Self {
        Self { stream, write_timeout, others_wait, stall: None, slow_time: Duration::ZERO }
    }

    fn watch(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if let Some(stall) = self.stall.take() {
                self.slow_time = (self.slow_time + stall.begin.elapsed()).min(SLOW_TIME_MAX);
            }
            let bytes = *written.as_ref().unwrap_or(&0) as u64;
            let earned = Duration::from_millis(bytes * 1000 / SLOW_BYTES_PER_SECOND);
            self.slow_time = self.slow_time.saturating_sub(earned);
            return Poll::Ready(written);
        }
        let interval = LOOK_INTERVAL.min(self.write_timeout);
        loop {
            let stall = self
                .stall
                .get_or_insert_with(|| Stall { begin: Instant::now(), look: Box::pin(sleep(interval)) });
            ready!(stall.look.as_mut().poll(context));
            let stalled = stall.begin.elapsed();
            let is_slow = self.slow_time + stalled >= SLOW_TIME_MAX;
            if stalled >= self.write_timeout || is_slow && (self.others_wait)() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let next = interval.min(self.write_timeout.saturating_sub(stalled));
            stall.look.set(sleep(next));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
