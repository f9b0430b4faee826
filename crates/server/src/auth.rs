//! Tokens: Attic's JWTs, as Bearer or as the password of Basic.
//!
//! Invariants
//! - The key fixes the algorithm. A token's header can only agree with it: `none`, or a public key used as a secret, is
//!   refused before any signature is looked at.
//! - A token that does not verify, is expired, not yet valid, or made by or for somebody else counts as no token.
//! - What is remembered of a verified token is its claims; its dates are checked at each use.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::TokenClaims;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation, decode, decode_header};
use moka::sync::Cache as Remembered;

/// Longest token looked at, in bytes; the headers' limit is larger.
const TOKEN_BYTES_MAX: usize = 32 * 1024;

/// Memory for remembered tokens, in bytes. An RSA signature costs 20 µs to verify, as much as a narinfo's whole answer.
const REMEMBERED_BYTES: u64 = 4 * 1024 * 1024;

/// How far ahead of ours the clock of whoever makes tokens may be, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// What tokens are verified with.
#[derive(Clone)]
pub enum TokenKey {
    /// HS256: the shared secret.
    Hs256(Vec<u8>),
    /// RS256: a public key in PEM.
    Rs256Public(Vec<u8>),
    /// RS256: a private key in PEM, of which only the public half is kept.
    Rs256Secret(Vec<u8>),
    /// EdDSA: an ed25519 public key in PEM.
    EdDsaPublic(Vec<u8>),
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hs256(_) => "Hs256(redacted)",
            Self::Rs256Public(_) => "Rs256Public(…)",
            Self::Rs256Secret(_) => "Rs256Secret(redacted)",
            Self::EdDsaPublic(_) => "EdDsaPublic(…)",
        })
    }
}

/// A key that cannot verify tokens. Says nothing of its bytes.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Anybody could sign with it.
    #[error("the HS256 secret is empty")]
    EmptySecret,
    /// It is not what it was read as.
    #[error("failed to read {what} in PEM")]
    Unreadable {
        /// Which kind of key.
        what: &'static str,
        /// Why.
        source: jsonwebtoken::errors::Error,
    },
}

/// Verifies tokens.
pub struct Authenticator {
    key: DecodingKey,
    validation: Validation,
    bound_issuer: Option<String>,
    bound_audiences: Vec<String>,
    remembered: Remembered<String, Arc<TokenClaims>>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator")
            .field("algorithms", &self.validation.algorithms)
            .field("bound_issuer", &self.bound_issuer)
            .field("bound_audiences", &self.bound_audiences)
            .finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Verifies tokens with this key.
    pub fn new(key: &TokenKey) -> Result<Self, KeyError> {
        let unreadable = |what| move |source| KeyError::Unreadable { what, source };
        let (algorithm, key) = match key {
            TokenKey::Hs256(secret) if secret.is_empty() => return Err(KeyError::EmptySecret),
            TokenKey::Hs256(secret) => (Algorithm::HS256, DecodingKey::from_secret(secret)),
            TokenKey::Rs256Public(pem) => {
                (Algorithm::RS256, DecodingKey::from_rsa_pem(pem).map_err(unreadable("an RSA public key"))?)
            }
            TokenKey::Rs256Secret(pem) => {
                let public = EncodingKey::from_rsa_pem(pem)
                    .and_then(|secret| Jwk::from_encoding_key(&secret, Algorithm::RS256))
                    .and_then(|public| DecodingKey::from_jwk(&public));
                (Algorithm::RS256, public.map_err(unreadable("an RSA private key"))?)
            }
            TokenKey::EdDsaPublic(pem) => (
                Algorithm::EdDSA,
                DecodingKey::from_ed_pem(pem).map_err(unreadable("an ed25519 public key"))?,
            ),
        };
        // Dates, issuer and audience are checked here, by the engine's clock and Attic's rules.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let remembered = Remembered::builder()
            .max_capacity(REMEMBERED_BYTES)
            // Claims take about as much as the token that they were read from.
            .weigher(|token: &String, _| u32::try_from(token.len() * 2 + 256).unwrap_or(u32::MAX))
            .build();
        Ok(Self { key, validation, bound_issuer: None, bound_audiences: Vec::new(), remembered })
    }

    /// Only tokens with this `iss` count.
    pub fn with_bound_issuer(self, issuer: impl Into<String>) -> Self {
        Self { bound_issuer: Some(issuer.into()), ..self }
    }

    /// Only tokens with at least one of these in `aud` count. None given: `aud` is not looked at.
    pub fn with_bound_audiences(self, audiences: impl IntoIterator<Item = String>) -> Self {
        Self { bound_audiences: audiences.into_iter().collect(), ..self }
    }

    /// The claims of the token that a request carries, if it counts now.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, now: i64) -> Option<Arc<TokenClaims>> {
        let token = token_of(headers)?;
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let claims = if let Some(claims) = self.remembered.get(&token) {
            claims
        } else {
            let claims = Arc::new(self.verify(&token)?);
            self.remembered.insert(token, Arc::clone(&claims));
            claims
        };
        is_current(&claims, now).then_some(claims)
    }

    /// Everything about a token that does not change with time.
    pub(crate) fn verify(&self, token: &str) -> Option<TokenClaims> {
        // Extensions marked critical must be understood by whoever verifies; we know none.
        if decode_header(token).ok()?.crit.is_some() {
            return None;
        }
        let claims = decode::<TokenClaims>(token, &self.key, &self.validation).ok()?.claims;
        let issued_by_right = self.bound_issuer.is_none() || claims.iss == self.bound_issuer;
        let audiences = claims.aud.as_ref().map_or(&[][..], dormer_api::Audience::names);
        let made_for_us = self.bound_audiences.is_empty()
            || audiences.iter().any(|audience| self.bound_audiences.contains(audience));
        (issued_by_right && made_for_us).then_some(claims)
    }
}

fn is_current(claims: &TokenClaims, now: i64) -> bool {
    claims.exp.is_none_or(|exp| now < exp) && claims.nbf.is_none_or(|nbf| nbf <= now + CLOCK_SKEW_SECONDS)
}

/// The token in `Authorization`: after `Bearer`, or the password after `Basic`, whose user name may be anything.
fn token_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_the_password_of_basic() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert_eq!(token_of(&headers("Bearer a.b.c")).unwrap(), "a.b.c");
        assert_eq!(token_of(&headers("bearer  a.b.c ")).unwrap(), "a.b.c");
        assert_eq!(token_of(&headers(&basic("any:a.b.c"))).unwrap(), "a.b.c");
        assert_eq!(token_of(&headers(&basic(":a:b"))).unwrap(), "a:b");
        for none in ["Bearer", "a.b.c", "Digest a.b.c", "Basic a.b.c", &basic("a.b.c")] {
            assert_eq!(token_of(&headers(none)), None, "{none}");
        }
        assert_eq!(token_of(&HeaderMap::new()), None);
    }

    #[test]
    fn dates_are_checked_at_each_use() {
        let claims = TokenClaims { exp: Some(100), nbf: Some(50), ..TokenClaims::default() };
        for (now, current) in [(19, false), (20, true), (50, true), (99, true), (100, false)] {
            assert_eq!(is_current(&claims, now), current, "{now}");
        }
        assert!(is_current(&TokenClaims::default(), 0));
    }

    #[test]
    fn keys_that_are_none_are_refused_and_never_shown() {
        assert!(matches!(Authenticator::new(&TokenKey::Hs256(Vec::new())), Err(KeyError::EmptySecret)));
        for key in [
            TokenKey::Rs256Public(b"hunter2".to_vec()),
            TokenKey::Rs256Secret(b"hunter2".to_vec()),
            TokenKey::EdDsaPublic(b"hunter2".to_vec()),
        ] {
            let error = Authenticator::new(&key).unwrap_err();
            assert!(!format!("{error:?}{error}{key:?}").contains("hunter2"));
        }
    }
}
