//! The places that connections take, and which of them another client may take over.
//!
//! A connection that has sent no head does nothing for its client yet. When all places are taken,
//! the oldest such connection is closed for the next client. Otherwise clients that send half a
//! head would keep all others out.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

/// How long a new connection has for its first head before another client may take its place. A
/// head is one packet, or two on a slow line.
const KEPT_AFTER_BEGIN: Duration = Duration::from_secs(1);

/// How long a connection that was answered keeps its place without another head. The end of the
/// answer is on its way meanwhile.
const KEPT_AFTER_ANSWER: Duration = Duration::from_secs(5);

/// All connections that are served.
#[derive(Debug)]
pub(crate) struct Places {
    begin: Instant,
    open: Mutex<Vec<Weak<Place>>>,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    begin: Instant,
    /// Where its client is, if that counts.
    network: Option<IpAddr>,
    /// When the connection began to wait for a head, in milliseconds since `begin`; [`BUSY`] while
    /// a request is being answered.
    waits_since: AtomicU64,
    has_asked: AtomicBool,
    is_given_up: AtomicBool,
    given_up: Notify,
}

const BUSY: u64 = u64::MAX;

impl Places {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), open: Mutex::default() }
    }

    /// A connection begins.
    pub(crate) fn take(&self, network: Option<IpAddr>) -> Arc<Place> {
        let place = Arc::new(Place::new(self.begin, network));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() == open.capacity() {
            open.retain(|place| place.strong_count() > 0);
        }
        open.push(Arc::downgrade(&place));
        place
    }

    /// Closes the connection that has waited longest for a head; with a network, the one of that
    /// network. `false` if no such connection waits for a head.
    pub(crate) fn give_up_oldest(&self, of: Option<IpAddr>) -> bool {
        let now = millis_since(self.begin);
        let open: Vec<Arc<Place>> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter().filter_map(Weak::upgrade).collect()
        };
        let oldest = open
            .into_iter()
            .filter(|place| of.is_none() || place.network == of)
            .filter_map(|place| place.may_go_since(now).map(|since| (since, place)))
            .min_by_key(|(since, _)| *since);
        let Some((_, place)) = oldest else { return false };
        place.is_given_up.store(true, Ordering::SeqCst);
        place.given_up.notify_one();
        true
    }
}

fn millis_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap_or(BUSY - 1)
}

impl Place {
    fn new(begin: Instant, network: Option<IpAddr>) -> Self {
        Self {
            begin,
            network,
            waits_since: AtomicU64::new(millis_since(begin)),
            has_asked: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            given_up: Notify::new(),
        }
    }

    /// Whether a whole head has come.
    pub(crate) fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::SeqCst)
    }

    /// A head has come. The place is kept until the answer's body, in which this watch is, ends.
    pub(crate) fn begin_answer(self: &Arc<Self>) -> Answering {
        self.has_asked.store(true, Ordering::SeqCst);
        self.waits_since.store(BUSY, Ordering::SeqCst);
        Answering(Arc::clone(self))
    }

    /// Ready when another client takes over the place.
    pub(crate) async fn given_up(&self) {
        self.given_up.notified().await;
    }

    fn may_go_since(&self, now: u64) -> Option<u64> {
        let since = self.waits_since.load(Ordering::SeqCst);
        let kept = if self.has_asked() { KEPT_AFTER_ANSWER } else { KEPT_AFTER_BEGIN };
        let is_kept = since == BUSY || u128::from(now.saturating_sub(since)) < kept.as_millis();
        (!is_kept && !self.is_given_up.load(Ordering::SeqCst)).then_some(since)
    }
}

/// A request being answered. The connection waits for the next head once this is dropped.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Place>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.waits_since.store(millis_since(self.0.begin), Ordering::SeqCst);
    }
}

/// An answer's body that keeps its connection's place.
pub(crate) struct Kept<B> {
    body: B,
    _answering: Answering,
}

impl<B> Kept<B> {
    pub(crate) fn new(body: B, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl<B: http_body::Body<Data = Bytes, Error = io::Error> + Unpin> http_body::Body for Kept<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_connection_without_a_head_goes_first() {
        let mut places = Places::new();
        let [busy, oldest, newer, answered, newest] = [(); 5].map(|()| places.take(None));
        let _answering = busy.begin_answer();
        drop(answered.begin_answer());
        // As if it were three seconds later, with one more connection.
        places.begin -= Duration::from_secs(3);
        for (place, millis) in [(&oldest, 1), (&newer, 2), (&newest, 2_500)] {
            place.waits_since.store(millis, Ordering::SeqCst);
        }
        assert!(places.give_up_oldest(None));
        oldest.given_up().await;
        assert!(places.give_up_oldest(None));
        newer.given_up().await;
        assert!(!places.give_up_oldest(None), "the others are busy, new, or their answer is on its way");
        places.begin -= Duration::from_secs(3);
        assert!(places.give_up_oldest(None));
        answered.given_up().await;
    }

    #[test]
    fn places_of_closed_connections_are_forgotten() {
        let places = Places::new();
        for _ in 0..10_000 {
            places.take(None);
        }
        assert!(places.open.lock().unwrap().capacity() < 100);
    }
}
