//! Which redirects the client follows.
//!
//! A request carries a token, and perhaps a secret key or a NAR. Only the server that the user
//! chose may have them. So the client follows a redirect only for GET, and only to the same origin:
//! the same scheme, host and port. Any other redirect is an answer, which the caller reports.

use reqwest::redirect::Policy;

/// Most redirects that the client follows for one request.
const REDIRECTS_MAX: usize = 3;

/// Follows redirects to the origin of the first request. For clients that only send GET.
pub(crate) fn to_same_origin() -> Policy {
    Policy::custom(|attempt| {
        let is_same =
            attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
        if is_same && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
    })
}

/// Follows redirects to anywhere, as Nix does. For GET without any secret.
pub(crate) fn without_secrets() -> Policy {
    Policy::limited(REDIRECTS_MAX)
}
