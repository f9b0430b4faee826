//! When to try again, and after how long.
//!
//! Pauses double ([`Backoff`]). The client obeys `Retry-After`. After a 429 or 503 without it, the
//! client waits longer than after a broken connection.

use std::time::{Duration, SystemTime};

use dormer_nix::Backoff;
use rand::RngExt as _;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How often and how patiently the client repeats requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most tries, including the first.
    pub tries_max: u32,
    /// Pause after the first failure. Each further failure doubles the pause.
    pub wait_first: Duration,
    /// Pause after the first 429 or 503 without `Retry-After`. Each further one doubles the pause.
    pub wait_first_busy: Duration,
    /// Longest pause that the client chooses itself.
    pub wait_max: Duration,
    /// Longest `Retry-After` that the client obeys. If the server asks for more, the client gives
    /// up instead of coming early.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    /// Six tries over about 10 to 20 seconds, or up to 2 minutes if the server says that it is
    /// busy. Long enough for a restart of the server, and short enough for a person to wait.
    fn default() -> Self {
        Self {
            tries_max: 6,
            wait_first: Duration::from_millis(500),
            wait_first_busy: Duration::from_secs(3),
            wait_max: Duration::from_secs(30),
            retry_after_max: Duration::from_mins(5),
        }
    }
}

/// What is known about a temporary failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The connection broke, or the server made a mistake.
    Broken,
    /// The server is overloaded, and perhaps said when to come back.
    Busy { retry_after: Option<Duration> },
}

impl Passing {
    /// What a later try is worth after an answer with this status; `None` if it would fail in the
    /// same way.
    pub(crate) fn of_status(status: u16, retry_after: Option<Duration>) -> Option<Self> {
        match status {
            429 | 503 => Some(Self::Busy { retry_after }),
            408 | 500 | 502 | 504 => Some(Self::Broken),
            _ => None,
        }
    }
}

/// Makes attempts until one succeeds. After a failed one, `pause` waits before the next, or returns
/// the error that ends the tries.
pub(crate) async fn repeat<T, F, E, Attempt, Pause>(
    attempt: impl Fn() -> Attempt,
    pause: impl Fn(u32, F) -> Pause,
) -> Result<T, E>
where
    Attempt: Future<Output = Result<T, F>>,
    Pause: Future<Output = Result<(), E>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => pause(tries, failure).await?,
        }
    }
}

impl RetryPolicy {
    /// The pause before the next try, or `None` to give up.
    pub(crate) fn wait(&self, tries: u32, passing: Passing) -> Option<Duration> {
        self.wait_with(tries, passing, rand::rng().random_range(0.0..1.0))
    }

    /// `jitter` lies in 0 to 1.
    fn wait_with(&self, tries: u32, passing: Passing, jitter: f64) -> Option<Duration> {
        if tries >= self.tries_max {
            return None;
        }
        let doubled = |first| Backoff { first, max: self.wait_max }.pause(tries, jitter);
        match passing {
            Passing::Broken => Some(doubled(self.wait_first)),
            Passing::Busy { retry_after: None } => Some(doubled(self.wait_first_busy)),
            // Never earlier than asked, and up to a tenth later.
            Passing::Busy { retry_after: Some(wait) } if wait <= self.retry_after_max => {
                Some(wait.mul_f64(1.0 + jitter / 10.0))
            }
            Passing::Busy { .. } => None,
        }
    }
}

/// The `Retry-After` of an answer.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// Reads `Retry-After`: seconds, or a date. A date in the past means now.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_end() {
        let policy = RetryPolicy::default();
        let longest = |tries| policy.wait_with(tries, Passing::Broken, 1.0);
        assert_eq!(longest(1), Some(Duration::from_millis(500)));
        assert_eq!(longest(2), Some(Duration::from_secs(1)));
        assert_eq!(longest(5), Some(Duration::from_secs(8)));
        assert_eq!(longest(6), None);
        let patient = RetryPolicy { tries_max: 1000, ..policy };
        assert_eq!(patient.wait_with(999, Passing::Broken, 1.0), Some(Duration::from_secs(30)));
        assert_eq!(patient.wait_with(999, Passing::Broken, 0.0), Some(Duration::from_secs(15)));
    }

    #[test]
    fn a_busy_server_is_given_longer() {
        let policy = RetryPolicy::default();
        let busy = Passing::Busy { retry_after: None };
        assert!(policy.wait_with(1, busy, 0.0) > policy.wait_with(1, Passing::Broken, 1.0));
    }

    #[test]
    fn retry_after_is_a_floor_and_too_long_a_one_gives_up() {
        let policy = RetryPolicy::default();
        let after = |seconds| Passing::Busy { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(policy.wait_with(1, after(7), 0.0), Some(Duration::from_secs(7)));
        assert!(policy.wait_with(5, after(7), 1.0) <= Some(Duration::from_millis(7700)));
        assert_eq!(policy.wait_with(1, after(301), 0.0), None);
        assert_eq!(policy.wait_with(6, after(0), 0.0), None);
    }

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text| parse_retry_after(text, now);
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_mins(1)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for text in ["", "-1", "soon", "1.5", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
