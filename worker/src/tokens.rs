//! Verifying tokens with WebCrypto.
//!
//! Invariants
//! - The Worker holds one key, and the key fixes the algorithm: a token that names another one does
//!   not count.
//! - The key cannot make a token that the lab would take: it is a public key, or a secret of the
//!   edge's own.
//! - Settings that are set but unreadable let nobody in, and the log says so.

use std::cell::RefCell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_api::{TokenBounds, TokenClaims};
use dormer_edge::{Algorithm, HS256_SECRET_BYTES_MIN, SignedToken};
use wasm_bindgen::JsValue;

use crate::runtime::{self, CryptoKey};

/// Variables that hold a key. One of them is set. Each is base64, of a PEM or of the secret's
/// bytes, as in the lab.
const KEYS: [(&str, Algorithm); 3] = [
    ("TOKEN_ED25519_PUBKEY_BASE64", Algorithm::EdDsa),
    ("TOKEN_RS256_PUBKEY_BASE64", Algorithm::Rs256),
    ("TOKEN_HS256_SECRET_BASE64", Algorithm::Hs256),
];

/// An imported key, and the text that it comes from: a new deployment may reuse an isolate.
#[derive(Clone)]
struct Verifier {
    text: String,
    algorithm: Algorithm,
    key: CryptoKey,
}

thread_local! {
    static VERIFIER: RefCell<Option<Verifier>> = const { RefCell::new(None) };
}

/// The claims of a token whose signature holds.
pub(crate) async fn verified(environment: &JsValue, token: &str) -> Option<TokenClaims> {
    let token = SignedToken::parse(token)?;
    let verifier = match verifier(environment).await {
        Ok(verifier) => verifier?,
        Err(reason) => {
            runtime::log_error(&reason);
            return None;
        }
    };
    if token.algorithm != verifier.algorithm {
        return None;
    }
    let message = token.message.as_bytes();
    if !runtime::holds(&parameters(verifier.algorithm), &verifier.key, &token.signature, message).await {
        return None;
    }
    let audiences = runtime::variable(environment, "TOKEN_AUDIENCES").unwrap_or_default();
    let bounds = TokenBounds {
        issuer: runtime::variable(environment, "TOKEN_ISSUER"),
        audiences: audiences.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
    };
    token.verified_claims(&bounds)
}

async fn verifier(environment: &JsValue) -> Result<Option<Verifier>, String> {
    let mut set = KEYS
        .iter()
        .filter_map(|&(name, algorithm)| Some((name, algorithm, runtime::variable(environment, name)?)));
    let Some((name, algorithm, text)) = set.next() else { return Ok(None) };
    if let Some((other, ..)) = set.next() {
        return Err(format!("{name} and {other} are both set: tokens count only when one of them is"));
    }
    let known = VERIFIER.with_borrow(Clone::clone);
    if let Some(known) = known.filter(|known| known.text == text && known.algorithm == algorithm) {
        return Ok(Some(known));
    }
    let unreadable = || format!("{name} is not what it should be: no token counts");
    let bytes = STANDARD.decode(text.trim()).map_err(|_| unreadable())?;
    let (format, bytes) = match algorithm {
        Algorithm::Hs256 if bytes.len() < HS256_SECRET_BYTES_MIN => {
            return Err(format!("{name} has fewer than {HS256_SECRET_BYTES_MIN} bytes: no token counts"));
        }
        Algorithm::Hs256 => ("raw", bytes),
        Algorithm::Rs256 | Algorithm::EdDsa => ("spki", from_pem(&bytes).ok_or_else(unreadable)?),
    };
    let key =
        runtime::verifying_key(format, &bytes, &parameters(algorithm)).await.map_err(|_| unreadable())?;
    let verifier = Verifier { text, algorithm, key };
    VERIFIER.set(Some(verifier.clone()));
    Ok(Some(verifier))
}

/// The parameters of an algorithm for WebCrypto.
fn parameters(algorithm: Algorithm) -> JsValue {
    match algorithm {
        Algorithm::Hs256 => runtime::object(&[("name", "HMAC".into()), ("hash", "SHA-256".into())]),
        Algorithm::Rs256 => {
            runtime::object(&[("name", "RSASSA-PKCS1-v1_5".into()), ("hash", "SHA-256".into())])
        }
        Algorithm::EdDsa => runtime::object(&[("name", "Ed25519".into())]),
    }
}

/// The DER in a PEM of a public key.
fn from_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}
