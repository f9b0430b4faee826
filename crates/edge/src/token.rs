//! Tokens at the edge: taken apart, and judged once a host has verified the signature.
//!
//! Verifying needs cryptography, which each host has in its own form (WebCrypto, a library). The
//! host's key fixes the algorithm; the token's own header is only compared with it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dormer_api::{CacheName, Permission, TokenBounds, TokenClaims};
use serde::Deserialize;

use crate::state::CacheState;

/// Shortest secret for HS256, in bytes: RFC 7518 demands as many as the hash has.
pub const HS256_SECRET_BYTES_MIN: usize = 32;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256, by a shared secret.
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// Ed25519.
    EdDsa,
}

/// A token that was taken apart. Believe nothing in it before its signature is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// The algorithm that the token names. A host compares it with the algorithm of its key and
    /// uses no other.
    pub algorithm: Algorithm,
    /// The name of the key that the token names.
    pub key_id: Option<String>,
    /// The signed text.
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
    /// Extensions that the verifier must understand. We know none.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

impl SignedToken {
    /// Takes a compact JWT apart. `None` if the text is no JWT, or names another algorithm than
    /// these three.
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

    /// The claims, for a host that has verified the signature. `None` if their form is not ours or
    /// they are out of bounds.
    pub fn verified_claims(&self, bounds: &TokenBounds) -> Option<TokenClaims> {
        let claims = TokenClaims::parse(&self.claims).ok()?;
        bounds.admit(&claims).then_some(claims)
    }
}

/// Whether a verified token lets its bearer read a cache at this time (seconds since 1970 UTC).
pub fn may_read(claims: &TokenClaims, cache: &CacheName, state: &CacheState, now: i64) -> bool {
    let is_revoked = claims.jti.as_ref().is_some_and(|id| state.revoked.contains(id));
    claims.is_valid_at(now) && !is_revoked && claims.permissions_for(cache).allows(Permission::Pull)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
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
            r#"{"alg":"HS256","alg":"HS256"}"#,
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
