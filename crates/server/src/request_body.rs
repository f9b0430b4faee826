//! A request's body, with its time limits.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::metrics::Metrics;
use crate::push_rate::Pusher;
use crate::settings::ServerSettings;

/// How much of a refused body is read and dropped, and for how long, so that the client sees the
/// answer. If the server closed at once, the unread bytes would cause a reset, which can overtake
/// the answer.
const LINGER_BYTES: u64 = 64 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(10);

/// Why a body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body ended before it was complete")]
    Incomplete,
    #[error("nothing of the body came for too long")]
    Idle,
    #[error("the body took too long to come, or came too slowly")]
    TooSlow,
    #[error("the body is longer than {max} bytes, the limit")]
    TooLong { max: u64 },
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::other(error)
    }
}

/// A wait for more of a body.
struct Pause {
    begin: Instant,
    end: Pin<Box<Sleep>>,
}

/// A body being read.
pub(crate) struct RequestBody {
    incoming: Incoming,
    idle_timeout: Duration,
    /// Fewest bytes a second on average; 0 for any.
    bytes_per_second_min: u32,
    /// How long the server goes on waiting for bytes, all pauses together. A byte earns the time in
    /// which it should have come, up to a pause as long as the idle limit.
    patience: Duration,
    deadline: Instant,
    /// Most bytes that are taken, and the bytes that have come.
    max: u64,
    received: u64,
    metrics: Arc<Metrics>,
    pusher: Option<Arc<Pusher>>,
    pause: Option<Pause>,
    was_polled: bool,
    ended: bool,
    expects_continue: bool,
}

impl RequestBody {
    pub(crate) fn new(
        incoming: Incoming,
        headers: &HeaderMap,
        settings: &ServerSettings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            ended: incoming.is_end_stream(),
            incoming,
            idle_timeout: settings.body_idle_timeout,
            bytes_per_second_min: settings.body_bytes_per_second_min,
            patience: settings.body_idle_timeout,
            deadline: Instant::now() + settings.upload_timeout,
            max: u64::MAX,
            received: 0,
            metrics: Arc::clone(metrics),
            pusher: None,
            pause: None,
            was_polled: false,
            expects_continue: headers.contains_key(EXPECT),
        }
    }

    /// Refuses a body that is longer than this: at once if its length is known, otherwise when more
    /// bytes come.
    pub(crate) fn limit(&mut self, max: u64) -> Result<(), BodyError> {
        self.max = max;
        if self.incoming.size_hint().lower() > max { Err(BodyError::TooLong { max }) } else { Ok(()) }
    }

    /// The length of the body, if its request says it.
    pub(crate) fn known_length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Limits the time of the next part of the body, for small parts during which the request holds
    /// memory or a turn. Returns the argument for [`RequestBody::allow_until`] afterwards.
    pub(crate) fn hurry(&mut self, time: Duration) -> Instant {
        let hurried = self.deadline.min(Instant::now() + time);
        std::mem::replace(&mut self.deadline, hurried)
    }

    /// Ends the limit of [`RequestBody::hurry`].
    pub(crate) fn allow_until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Counts the bytes from now on as pushed by this token.
    pub(crate) fn count_for(&mut self, pusher: Arc<Pusher>) {
        self.pusher = Some(pusher);
    }

    /// The next bytes, as they came; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        StreamExt::next(self).await.transpose()
    }

    /// Whether the client is still sending, or waits for leave to do so.
    pub(crate) fn is_unread(&self) -> bool {
        !self.ended
    }

    /// Reads the rest of a refused body in the background.
    pub(crate) fn linger(mut self) {
        // A client that waits for leave to send does not send: reading would give that leave.
        if self.expects_continue && !self.was_polled {
            return;
        }
        self.max = u64::MAX;
        tokio::spawn(tokio::time::timeout(LINGER_TIME, async move {
            let mut read = 0;
            while let Ok(Some(bytes)) = self.next().await {
                read += bytes.len() as u64;
                if read > LINGER_BYTES {
                    break;
                }
            }
        }));
    }

    fn count(&mut self, bytes: u64) {
        self.received += bytes;
        self.metrics.http.received_bytes.inc_by(bytes);
        let millis = bytes.saturating_mul(1000) / u64::from(self.bytes_per_second_min.max(1));
        let earned = Duration::from_millis(millis);
        self.patience = self.patience.saturating_add(earned).min(self.idle_timeout);
        if let Some(pusher) = &self.pusher {
            pusher.count_bytes(bytes, std::time::Instant::now());
        }
    }

    /// How long the server waits for the next bytes.
    fn longest_pause(&self) -> Duration {
        let patience = if self.bytes_per_second_min == 0 { self.idle_timeout } else { self.patience };
        patience.min(self.idle_timeout).min(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.was_polled = true;
        while !this.ended {
            match Pin::new(&mut this.incoming).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(pause) = this.pause.take() {
                        this.patience = this.patience.saturating_sub(pause.begin.elapsed());
                    }
                    if Instant::now() > this.deadline {
                        return this.fail(BodyError::TooSlow);
                    }
                    // Trailers are nothing that we asked for.
                    if let Ok(bytes) = frame.into_data() {
                        this.count(bytes.len() as u64);
                        if this.received > this.max {
                            let max = this.max;
                            return this.fail(BodyError::TooLong { max });
                        }
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Poll::Ready(Some(Err(_))) => return this.fail(BodyError::Incomplete),
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => {
                    let longest = this.longest_pause();
                    let pause = this.pause.get_or_insert_with(|| Pause {
                        begin: Instant::now(),
                        end: Box::pin(sleep(longest)),
                    });
                    ready!(pause.end.as_mut().poll(context));
                    let is_idle = pause.begin.elapsed() >= this.idle_timeout;
                    return this.fail(if is_idle { BodyError::Idle } else { BodyError::TooSlow });
                }
            }
        }
        Poll::Ready(None)
    }
}
