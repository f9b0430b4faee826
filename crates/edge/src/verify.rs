//! Verifying the signature of a token, for hosts with this crate's feature `verify`.
//!
//! Invariants
//! - The key fixes the algorithm. A token's header can only agree with it: `none`, or a public key
//!   used as a secret, is refused before any signature is looked at.
//! - A token whose signature is wrong, or which is out of bounds, counts as no token.
//! - Dates are not checked here: hosts remember claims, and check the dates at each use.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dormer_api::{TokenBounds, TokenClaims};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{DecodingKey, EncodingKey, crypto};

use crate::token::{Algorithm, HS256_SECRET_BYTES_MIN, SignedToken};

/// A key that verifies tokens.
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

/// A key that cannot verify tokens. The error shows none of its bytes.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It can be guessed from one token, without asking any server.
    #[error("the HS256 secret has {bytes} bytes; it needs at least {HS256_SECRET_BYTES_MIN}")]
    ShortSecret {
        /// Its length.
        bytes: usize,
    },
    /// The bytes are no key of this kind.
    #[error("failed to read {what} in PEM")]
    Unreadable {
        /// The kind of key.
        what: &'static str,
        /// Why.
        source: jsonwebtoken::errors::Error,
    },
}

/// Checks that an HS256 secret is long enough to sign or verify with.
pub fn check_secret(secret: &[u8]) -> Result<(), KeyError> {
    let bytes = secret.len();
    if bytes < HS256_SECRET_BYTES_MIN { Err(KeyError::ShortSecret { bytes }) } else { Ok(()) }
}

/// Verifies tokens with one key.
pub struct TokenVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
    bounds: TokenBounds,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier")
            .field("algorithm", &self.algorithm)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// Verifies with this key. Only tokens within `bounds` count.
    pub fn new(key: &TokenKey, bounds: TokenBounds) -> Result<Self, KeyError> {
        let unreadable = |what| move |source| KeyError::Unreadable { what, source };
        let (algorithm, key) = match key {
            TokenKey::Hs256(secret) => {
                check_secret(secret)?;
                (Algorithm::Hs256, DecodingKey::from_secret(secret))
            }
            TokenKey::Rs256Public(pem) => {
                (Algorithm::Rs256, DecodingKey::from_rsa_pem(pem).map_err(unreadable("an RSA public key"))?)
            }
            TokenKey::Rs256Secret(pem) => {
                let public = EncodingKey::from_rsa_pem(pem)
                    .and_then(|secret| Jwk::from_encoding_key(&secret, jsonwebtoken::Algorithm::RS256))
                    .and_then(|public| DecodingKey::from_jwk(&public));
                (Algorithm::Rs256, public.map_err(unreadable("an RSA private key"))?)
            }
            TokenKey::EdDsaPublic(pem) => (
                Algorithm::EdDsa,
                DecodingKey::from_ed_pem(pem).map_err(unreadable("an ed25519 public key"))?,
            ),
        };
        Ok(Self { algorithm, key, bounds })
    }

    /// The claims of a token. Everything is checked here that does not change with time.
    pub fn verify(&self, token: &str) -> Option<TokenClaims> {
        let token = SignedToken::parse(token).filter(|token| token.algorithm == self.algorithm)?;
        let algorithm = match self.algorithm {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        };
        let signature = URL_SAFE_NO_PAD.encode(&token.signature);
        let holds = crypto::verify(&signature, token.message.as_bytes(), &self.key, algorithm);
        holds.is_ok_and(|holds| holds).then(|| token.verified_claims(&self.bounds)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_keys_are_refused_and_never_shown() {
        let new = |key: &TokenKey| TokenVerifier::new(key, TokenBounds::default());
        for bytes in [0, 1, HS256_SECRET_BYTES_MIN - 1] {
            let short = new(&TokenKey::Hs256(vec![7; bytes]));
            assert!(matches!(short, Err(KeyError::ShortSecret { bytes: said }) if said == bytes));
        }
        assert!(new(&TokenKey::Hs256(vec![7; HS256_SECRET_BYTES_MIN])).is_ok());
        for key in [
            TokenKey::Rs256Public(b"hunter2".to_vec()),
            TokenKey::Rs256Secret(b"hunter2".to_vec()),
            TokenKey::EdDsaPublic(b"hunter2".to_vec()),
        ] {
            let error = new(&key).unwrap_err();
            assert!(!format!("{error:?}{error}{key:?}").contains("hunter2"));
        }
    }
}
