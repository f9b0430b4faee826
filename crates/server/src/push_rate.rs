//! The rate at which a token may push: one bucket per pusher, refilled with time.
//!
//! Requests are counted when they come; bytes as they come in, so that the request that goes over
//! the limit still ends well and the next one waits: an upload cannot be judged by its size before
//! it was received.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormer_api::TokenClaims;
use dormer_http_host::Peer;
use moka::sync::Cache as Remembered;

use crate::shares::Caller;

/// What may come at once after a pause: as much as in this time at the allowed rate.
const BURST: Duration = Duration::from_secs(10);

/// Memory for pushers, in bytes: some 10,000. A forgotten pusher begins with a full bucket.
const PUSHERS_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Longest time that a pusher is told to wait; it may be told so again.
const RETRY_MAX: Duration = Duration::from_hours(1);

/// Too fast; how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFast(pub(crate) Duration);

/// The limits, and where everybody stands.
#[derive(Debug)]
pub(crate) struct PushRates {
    /// 0: no limit.
    requests_per_second: u64,
    bytes_per_second: u64,
    pushers: Remembered<Caller, Arc<Pusher>>,
}

/// One pusher.
#[derive(Debug)]
pub(crate) struct Pusher {
    requests: Bucket,
    bytes: Bucket,
}

impl PushRates {
    pub(crate) fn new(requests_per_second: u64, bytes_per_second: u64) -> Self {
        // A bucket is full long before it is forgotten, unless its owner is deep in debt.
        let pushers = Remembered::builder()
            .max_capacity(PUSHERS_BYTES_MAX)
            .weigher(|caller: &Caller, _| u32::try_from(caller.0.len() + 200).unwrap_or(u32::MAX))
            .time_to_idle(RETRY_MAX)
            .build();
        Self { requests_per_second, bytes_per_second, pushers }
    }

    /// Counts a push, if it may begin. `None`: nothing is limited.
    pub(crate) fn admit(&self, claims: &TokenClaims, now: Instant) -> Result<Option<Arc<Pusher>>, TooFast> {
        if self.requests_per_second == 0 && self.bytes_per_second == 0 {
            return Ok(None);
        }
        let pusher = self.pushers.get_with(caller(claims), || {
            Arc::new(Pusher {
                requests: Bucket::new(self.requests_per_second, now),
                bytes: Bucket::new(self.bytes_per_second, now),
            })
        });
        pusher.bytes.wait_for(0, now)?;
        pusher.requests.wait_for(1, now)?;
        pusher.requests.take(1, now);
        Ok(Some(pusher))
    }
}

impl Pusher {
    /// Counts bytes that came in.
    pub(crate) fn count_bytes(&self, bytes: u64, now: Instant) {
        self.bytes.take(bytes, now);
    }
}

/// The network that a request without a token comes from. All clients of a proxy are one, and so
/// are those of a Unix socket. No token's caller has such a name: those have a line break.
pub(crate) fn caller_without_token(peer: Option<Peer>) -> Caller {
    let network = peer.and_then(|peer| peer.network());
    Caller(network.map_or_else(|| "this machine".to_owned(), |network| network.to_string()))
}

/// The subject that a token was made for; without a subject, the token's own name. Tokens with
/// neither are one caller.
pub(crate) fn caller(claims: &TokenClaims) -> Caller {
    let name = claims.sub.as_deref().or(claims.jti.as_deref()).unwrap_or_default();
    Caller(format!("{}\n{name}", claims.iss.as_deref().unwrap_or_default()))
}

/// Fills at a rate up to its size; may be below zero.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    size: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
    fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        let size = (per_second * BURST.as_secs_f64()).max(1.0);
        Self { per_second, size, level: Mutex::new((size, now)) }
    }

    fn level(&self, now: Instant) -> std::sync::MutexGuard<'_, (f64, Instant)> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(level.1).as_secs_f64();
        *level = ((level.0 + elapsed * self.per_second).min(self.size), now.max(level.1));
        level
    }

    /// Whether there are as many as `wanted` in it, and how long until there are.
    #[expect(clippy::cast_precision_loss, reason = "0 or 1")]
    fn wait_for(&self, wanted: u64, now: Instant) -> Result<(), TooFast> {
        if self.per_second == 0.0 {
            return Ok(());
        }
        let missing = wanted as f64 - self.level(now).0;
        if missing <= 0.0 {
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(RETRY_MAX);
        Err(TooFast(wait.min(RETRY_MAX)))
    }

    #[expect(clippy::cast_precision_loss, reason = "a fraction of a byte in 9 PB")]
    fn take(&self, count: u64, now: Instant) {
        self.level(now).0 -= count as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(sub: Option<&str>, jti: Option<&str>) -> TokenClaims {
        let text = |text: Option<&str>| text.map(str::to_owned);
        TokenClaims { sub: text(sub), jti: text(jti), ..TokenClaims::default() }
    }

    #[test]
    fn requests_beyond_the_burst_wait_for_the_rate() {
        let rates = PushRates::new(2, 0);
        let ada = claims(Some("ada"), None);
        let now = Instant::now();
        for _ in 0..20 {
            rates.admit(&ada, now).unwrap();
        }
        assert_eq!(rates.admit(&ada, now).unwrap_err(), TooFast(Duration::from_millis(500)));
        assert!(rates.admit(&claims(Some("bob"), None), now).is_ok(), "another pusher has another bucket");
        let later = now + Duration::from_millis(500);
        rates.admit(&ada, later).unwrap();
        assert!(rates.admit(&ada, later).is_err());
        let much_later = now + Duration::from_mins(10);
        for _ in 0..20 {
            rates.admit(&ada, much_later).unwrap();
        }
        assert!(rates.admit(&ada, much_later).is_err(), "a pause earns no more than the burst");
        assert!(rates.admit(&ada, now).is_err(), "a clock that goes back admits nothing");
    }

    #[test]
    fn bytes_are_paid_after_they_came() {
        let rates = PushRates::new(0, 1000);
        let ada = claims(None, Some("id-1"));
        let now = Instant::now();
        let pusher = rates.admit(&ada, now).unwrap().unwrap();
        pusher.count_bytes(15_000, now);
        assert_eq!(rates.admit(&ada, now).unwrap_err(), TooFast(Duration::from_secs(5)));
        let later = now + Duration::from_secs(5);
        rates.admit(&ada, later).unwrap();
        pusher.count_bytes(u64::MAX, later);
        assert_eq!(rates.admit(&ada, later).unwrap_err(), TooFast(RETRY_MAX));
    }

    #[test]
    fn without_limits_nobody_is_remembered() {
        let rates = PushRates::new(0, 0);
        for _ in 0..1000 {
            assert!(rates.admit(&claims(None, None), Instant::now()).unwrap().is_none());
        }
        assert_eq!(rates.pushers.iter().count(), 0);
    }

    #[test]
    fn a_subject_with_several_tokens_is_one_pusher() {
        let name = |sub, jti| caller(&claims(sub, jti));
        assert_eq!(name(Some("ada"), Some("1")), name(Some("ada"), Some("2")));
        assert_ne!(name(None, Some("1")), name(None, Some("2")));
        assert_ne!(name(Some("ada"), None), name(Some("bob"), None));
    }

    #[test]
    fn without_a_token_each_network_is_a_caller() {
        let from = |text: &str| caller_without_token(Some(Peer::Tcp(text.parse().unwrap())));
        assert_eq!(from("192.0.2.1:1"), from("192.0.2.1:2"));
        assert_ne!(from("192.0.2.1:1"), from("192.0.2.2:1"));
        assert_eq!(from("[2001:db8::1]:1"), from("[2001:db8::2]:1"), "a site is one client");
        assert_eq!(caller_without_token(Some(Peer::Unix)), caller_without_token(None));
        for other in [claims(None, None), claims(Some("192.0.2.1"), None)] {
            assert_ne!(from("192.0.2.1:1"), caller(&other), "no token takes its place");
        }
    }
}
