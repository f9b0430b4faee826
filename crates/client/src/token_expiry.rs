//! When a token expires, as the token itself says. Only the server can verify a token; this is for
//! messages to the token's owner.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dormer_api::Secret;
use serde::Deserialize;

/// The time in the `exp` claim. `None` if the text is not a JWT, or has no such claim.
pub fn token_expiry(token: &Secret) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = token.expose().split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
}

/// Explains to the owner of a refused token what its expiry means.
pub(crate) fn describe(expiry: SystemTime, now: SystemTime) -> String {
    // The library cannot write the years after 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let date = httpdate::fmt_http_date(expiry.min(last));
    if expiry <= now { format!("it expired on {date}") } else { format!("it is valid until {date}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> Secret {
        Secret::new(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn the_expiry_is_read_from_the_token() {
        let expiry = token_expiry(&token(r#"{"sub":"ada","exp":784111777}"#)).unwrap();
        assert_eq!(expiry, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        let before = SystemTime::UNIX_EPOCH;
        assert_eq!(describe(expiry, before), "it is valid until Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(describe(expiry, expiry), "it expired on Sun, 06 Nov 1994 08:49:37 GMT");
        for other in
            [token("{}"), token(r#"{"exp":-1}"#), token("x"), Secret::new("eyJ"), Secret::new("a.!.c")]
        {
            assert_eq!(token_expiry(&other), None);
        }
        let latest = token_expiry(&token(r#"{"exp":9223372036854775807}"#));
        latest.map(|expiry| describe(expiry, before));
    }
}
