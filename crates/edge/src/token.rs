//! Tokens at the edge: found in a request, taken apart, and, once a host has verified the signature, judged.
//!
//! Verifying needs cryptography, which each host has in its own form (WebCrypto, a library). The host's key fixes the
//! algorithm; what a token says of itself is only compared with it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use dormer_api::{Audience, CacheName, Permission, TokenClaims};
use serde::Deserialize;

use crate::state::CacheState;

/// Longest `Authorization` header that is looked at, in bytes. Tokens of OIDC issuers take some KiB.
const AUTHORIZATION_BYTES_MAX: usize = 16 * 1024;

/// Clocks of two machines differ by this much, in seconds.
const LEEWAY_SECONDS: i64 = 60;

/// The token that a request presents: `Bearer`, or the password of `Basic`, as Nix sends what stands in netrc.
pub fn presented_token(authorization: &str) -> Option<String> {
    if authorization.len() > AUTHORIZATION_BYTES_MAX {
        return None;
    }
    let (scheme, value) = authorization.trim().split_once(' ')?;
    let value = value.trim();
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        value.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
        pair.split_once(':')?.1.to_owned()
    } else {
        return None;
    };
    (!token.is_empty()).then_some(token)
}

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256, by a secret of the edge's own.
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// Ed25519.
    EdDsa,
}

/// A token that was taken apart. Nothing in it may be believed before its signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// What it says it is signed with. A host compares it with the algorithm of its key and uses no other.
    pub algorithm: Algorithm,
    /// Name of the key that it says it is signed with.
    pub key_id: Option<String>,
    /// What is signed.
    pub message: String,
    /// The signature.
    pub signature: Vec<u8>,
    /// The claims as JSON.
    claims: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that whoever verifies has to understand. We know none.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// Who has to have made a token, and for whom. Nothing set: anybody, for anybody, as long as the signature holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBounds {
    /// Only tokens with this `iss` count.
    pub issuer: Option<String>,
    /// Only tokens with one of these in `aud` count; empty: `aud` is not looked at.
    pub audiences: Vec<String>,
}

impl SignedToken {
    /// Takes a compact JWT apart; `None` if it is none, or signed in another way than these three.
    pub fn parse(token: &str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::Hs256,
            "RS256" => Algorithm::Rs256,
            "EdDSA" => Algorithm::EdDsa,
            _ => return None,
        };
        Some(Self {
            algorithm,
            key_id: header.kid,
            message: message.to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
            claims: URL_SAFE_NO_PAD.decode(claims).ok()?,
        })
    }

    /// The claims, for a host that has verified the signature. `None` if they are not of our form or out of bounds.
    pub fn verified_claims(&self, bounds: &TokenBounds) -> Option<TokenClaims> {
        let claims = TokenClaims::parse(&self.claims).ok()?;
        let by_right = bounds.issuer.is_none() || claims.iss == bounds.issuer;
        let named = claims.aud.as_ref().map_or(&[][..], Audience::names);
        let for_us =
            bounds.audiences.is_empty() || named.iter().any(|audience| bounds.audiences.contains(audience));
        (by_right && for_us).then_some(claims)
    }
}

/// Whether a verified token lets its bearer read a cache at this time (seconds since 1970 UTC).
pub fn may_read(claims: &TokenClaims, cache: &CacheName, state: &CacheState, now: i64) -> bool {
    let expired = claims.exp.is_some_and(|end| end <= now);
    let too_early = claims.nbf.is_some_and(|begin| begin > now.saturating_add(LEEWAY_SECONDS));
    let revoked = claims.jti.as_ref().is_some_and(|id| state.revoked.contains(id));
    !expired && !too_early && !revoked && claims.permissions_for(cache).allows(Permission::Pull)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_basics_password() {
        assert_eq!(presented_token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(presented_token("bearer  abc ").as_deref(), Some("abc"));
        let basic = format!("Basic {}", STANDARD.encode("anything:a:b"));
        assert_eq!(presented_token(&basic).as_deref(), Some("a:b"));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Digest x",
            "Basic %%%",
            "Basic YWJj",
            &format!("Basic {}", STANDARD.encode("x:")),
        ] {
            assert_eq!(presented_token(header), None, "{header}");
        }
        assert_eq!(presented_token(&format!("Bearer {}", "a".repeat(20_000))), None);
    }

    #[test]
    fn only_three_algorithms_are_known() {
        let token = |header: &str| format!("{}.{}.{}", encode(header), encode("{}"), encode("signature"));
        let parsed = SignedToken::parse(&token(r#"{"alg":"RS256","kid":"k"}"#)).unwrap();
        assert_eq!((parsed.algorithm, parsed.key_id.as_deref()), (Algorithm::Rs256, Some("k")));
        assert_eq!(parsed.signature, b"signature");
        assert!(parsed.verified_claims(&TokenBounds::default()).is_some());
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS512"}"#,
            "{}",
            "x",
            r#"{"alg":"HS256","crit":[]}"#,
        ] {
            assert_eq!(SignedToken::parse(&token(header)), None, "{header}");
        }
        for text in ["", ".", "..", "a.b", "a.b.c.d"] {
            assert_eq!(SignedToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_token_counts_within_its_bounds_only() {
        let claims = encode(r#"{"iss":"lab","aud":["edge","other"]}"#);
        let token = SignedToken::parse(&format!("{}.{claims}.AA", encode(r#"{"alg":"HS256"}"#))).unwrap();
        let counts = |issuer: Option<&str>, audiences: &[&str]| {
            let audiences = audiences.iter().map(|&name| name.to_owned()).collect();
            token.verified_claims(&TokenBounds { issuer: issuer.map(str::to_owned), audiences }).is_some()
        };
        assert!(counts(None, &[]) && counts(Some("lab"), &["edge"]) && counts(None, &["x", "other"]));
        assert!(!counts(Some("x"), &[]) && !counts(None, &["x"]) && !counts(Some("lab"), &["labs"]));
    }
}
