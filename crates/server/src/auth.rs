//! Tokens of requests: Attic's JWTs, verified once and remembered.
//!
//! Invariants
//! - A token that is expired or not yet valid counts as no token, as one that does not verify.
//! - Only the claims of a verified token are remembered; its dates are checked at each use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormer_api::{TOKEN_BYTES_MAX, TokenClaims, presented_token};
use dormer_edge::TokenVerifier;
use dormer_http_host::brief;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use moka::sync::Cache as Memory;
use prometheus::{IntCounterVec, Opts};

use crate::call::Call;

/// Memory for remembered tokens, in bytes. An RSA signature costs 20 µs to verify, as much as a
/// narinfo's whole answer.
const REMEMBERED_BYTES: u64 = 4 * 1024 * 1024;

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// How long before its end a token counts as ending, and how long after its end its use is still a
/// mistake that operators should hear of. `dormer doctor --client` warns as early.
const NOTICE_SECONDS: i64 = 14 * DAY_SECONDS;

/// Finds and verifies the tokens of requests.
#[derive(Debug)]
pub struct Authenticator {
    verifier: TokenVerifier,
    remembered: Memory<String, Arc<Remembered>>,
    ending: IntCounterVec,
}

/// A token that was verified.
#[derive(Debug)]
struct Remembered {
    claims: Arc<TokenClaims>,
    /// Whether the log says that it ends.
    is_logged: AtomicBool,
}

impl Authenticator {
    /// Remembers what `verifier` finds.
    pub fn new(verifier: TokenVerifier) -> Self {
        let remembered = Memory::builder()
            .max_capacity(REMEMBERED_BYTES)
            // Claims take about as much as the token that they were read from.
            .weigher(|token: &String, _| u32::try_from(token.len() * 2 + 256).unwrap_or(u32::MAX))
            .build();
        let ending = Opts::new(
            "dormer_ending_token_requests_total",
            "Requests with a token that was made for more than four weeks and ends within 14d or 1d, or ended less than \
             14 days ago; the log names the token once",
        );
        let ending = IntCounterVec::new(ending, &["ends"]).expect("name and label are well formed");
        // Prometheus sees an increase only from a value that it saw before.
        for ends in ["14d", "1d", "ended"] {
            ending.with_label_values(&[ends]);
        }
        Self { verifier, remembered, ending }
    }

    /// The counter of requests whose tokens end.
    pub(crate) fn ending(&self) -> &IntCounterVec {
        &self.ending
    }

    /// The claims of the token that a request carries, if it counts now.
    pub(crate) fn authenticate(&self, call: &Call, now: i64) -> Option<Arc<TokenClaims>> {
        self.verify(call, &header_token(call.headers())?, now)
    }

    /// The claims of a token, if it counts now. Handlers ask as often as they need: a request
    /// counts once.
    pub(crate) fn verify(&self, call: &Call, token: &str, now: i64) -> Option<Arc<TokenClaims>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let remembered = if let Some(remembered) = self.remembered.get(token) {
            remembered
        } else {
            let claims = Arc::new(self.verifier.verify(token)?);
            let remembered = Arc::new(Remembered { claims, is_logged: AtomicBool::new(false) });
            self.remembered.insert(token.to_owned(), Arc::clone(&remembered));
            remembered
        };
        if let Some(ends) = ends(&remembered.claims, now) {
            if call.begin_token() {
                self.ending.with_label_values(&[ends]).inc();
            }
            remembered.log_end(ends);
        }
        remembered.claims.is_valid_at(now).then(|| Arc::clone(&remembered.claims))
    }
}

impl Remembered {
    fn log_end(&self, ends: &str) {
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            let TokenClaims { sub, jti, exp, .. } = &*self.claims;
            tracing::warn!(
                subject = brief(sub.as_deref().unwrap_or_default()).as_ref(),
                token.id = brief(jti.as_deref().unwrap_or_default()).as_ref(),
                token.exp = exp.unwrap_or_default(),
                "a token in use ends ({ends})"
            );
        }
    }
}

/// How close to its end a token is, if operators should know.
fn ends(claims: &TokenClaims, now: i64) -> Option<&'static str> {
    let end = claims.exp?;
    // A token that is made anew for each job always ends soon. One without a date was made
    // elsewhere, by hand.
    if claims.iat.is_some_and(|made| end.saturating_sub(made) <= 2 * NOTICE_SECONDS) {
        return None;
    }
    match end.saturating_sub(now) {
        left if left <= -NOTICE_SECONDS => None,
        left if left <= 0 => Some("ended"),
        left if left <= DAY_SECONDS => Some("1d"),
        left if left <= NOTICE_SECONDS => Some("14d"),
        _ => None,
    }
}

/// The token in the headers of a request.
pub(crate) fn header_token(headers: &HeaderMap) -> Option<String> {
    presented_token(headers.get(AUTHORIZATION)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_made_for_long_is_told_before_its_end_and_a_while_after_it() {
        let year = 365 * DAY_SECONDS;
        let claims = |iat| TokenClaims { exp: Some(year), iat, ..TokenClaims::default() };
        for iat in [None, Some(0), Some(year - 29 * DAY_SECONDS)] {
            for (left, told) in [
                (15 * DAY_SECONDS, None),
                (14 * DAY_SECONDS, Some("14d")),
                (DAY_SECONDS + 1, Some("14d")),
                (DAY_SECONDS, Some("1d")),
                (1, Some("1d")),
                (0, Some("ended")),
                (-13 * DAY_SECONDS, Some("ended")),
                (-14 * DAY_SECONDS, None),
            ] {
                assert_eq!(ends(&claims(iat), year - left), told, "made at {iat:?}, {left} s are left");
            }
        }
        assert_eq!(ends(&claims(Some(year - 28 * DAY_SECONDS)), year - 1), None);
        assert_eq!(ends(&TokenClaims::default(), year), None);
    }
}
