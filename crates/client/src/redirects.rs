//! Which redirects the client follows.
//!
//! A request to the server of the user carries a token, and perhaps a secret key or a NAR. Only
//! that server may have them. So the client follows a redirect of it only for GET, and only to the
//! same origin: the same scheme, host and port. Any other redirect is an answer, which the caller
//! reports.
//!
//! A GET without any secret follows redirects to other hosts, as Nix does: public caches send their
//! readers to the host of a bucket or of releases. It never goes from https to http, where anybody
//! on the way could answer.

use reqwest::Url;
use reqwest::redirect::{Attempt, Policy};

/// Most redirects that the client follows for one request.
const REDIRECTS_MAX: usize = 3;

/// Follows redirects to the origin of the first request. For clients that only send GET.
pub(crate) fn to_same_origin() -> Policy {
    follow_if(|asked, next| asked.first().is_some_and(|first| first.origin() == next.origin()))
}

/// Follows redirects to other hosts, but not from https to http. For GET without any secret.
pub(crate) fn without_secrets() -> Policy {
    follow_if(is_no_downgrade)
}

fn follow_if(is_allowed: fn(&[Url], &Url) -> bool) -> Policy {
    Policy::custom(move |attempt: Attempt<'_>| {
        let follows =
            attempt.previous().len() <= REDIRECTS_MAX && is_allowed(attempt.previous(), attempt.url());
        if follows { attempt.follow() } else { attempt.stop() }
    })
}

/// Whether the next address is as safe from others on the way as each one before.
fn is_no_downgrade(asked: &[Url], next: &Url) -> bool {
    next.scheme() == "https" || asked.iter().all(|url| url.scheme() == "http")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_redirect_leads_from_https_to_http() {
        for (asked, next, follows) in [
            (&["https://a"][..], "https://b", true),
            (&["http://a"], "https://b", true),
            (&["http://a"], "http://b", true),
            (&["https://a"], "http://a", false),
            (&["http://a", "https://b"], "http://a", false),
            (&["https://a", "https://b"], "ftp://a", false),
        ] {
            let urls: Vec<Url> = asked.iter().map(|url| url.parse().expect("an address")).collect();
            assert_eq!(
                is_no_downgrade(&urls, &next.parse().expect("an address")),
                follows,
                "{asked:?} {next}"
            );
        }
    }
}
