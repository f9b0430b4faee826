//! Tokens of requests: Attic's JWTs, verified once and remembered.
//!
//! Invariants
//! - A token that is expired or not yet valid counts as no token, as one that does not verify.
//! - Only the claims of a verified token are remembered; its dates are checked at each use.

use std::sync::Arc;

use dormer_api::{TOKEN_BYTES_MAX, TokenClaims, presented_token};
use dormer_edge::TokenVerifier;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use moka::sync::Cache as Memory;

/// Memory for remembered tokens, in bytes. An RSA signature costs 20 µs to verify, as much as a
/// narinfo's whole answer.
const REMEMBERED_BYTES: u64 = 4 * 1024 * 1024;

/// Finds and verifies the tokens of requests.
#[derive(Debug)]
pub struct Authenticator {
    verifier: TokenVerifier,
    remembered: Memory<String, Arc<TokenClaims>>,
}

impl Authenticator {
    /// Remembers what `verifier` finds.
    pub fn new(verifier: TokenVerifier) -> Self {
        let remembered = Memory::builder()
            .max_capacity(REMEMBERED_BYTES)
            // Claims take about as much as the token that they were read from.
            .weigher(|token: &String, _| u32::try_from(token.len() * 2 + 256).unwrap_or(u32::MAX))
            .build();
        Self { verifier, remembered }
    }

    /// The claims of the token that a request carries, if it counts now.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, now: i64) -> Option<Arc<TokenClaims>> {
        self.verify(&header_token(headers)?, now)
    }

    /// The claims of a token, if it counts now.
    pub(crate) fn verify(&self, token: &str, now: i64) -> Option<Arc<TokenClaims>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let claims = if let Some(claims) = self.remembered.get(token) {
            claims
        } else {
            let claims = Arc::new(self.verifier.verify(token)?);
            self.remembered.insert(token.to_owned(), Arc::clone(&claims));
            claims
        };
        claims.is_valid_at(now).then_some(claims)
    }
}

/// The token in the headers of a request.
pub(crate) fn header_token(headers: &HeaderMap) -> Option<String> {
    presented_token(headers.get(AUTHORIZATION)?.to_str().ok()?)
}
