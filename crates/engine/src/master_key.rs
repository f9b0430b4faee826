//! Sealing: secrets at rest in the index are encrypted with a key that is not in the index.
//!
//! XChaCha20-Poly1305 with a random 24-byte nonce in front: with random nonces of 192 bits the chance of a repeat stays
//! negligible for any number of secrets. The context is authenticated, so a sealed value cannot be moved to another place.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use crate::{Error, Result};

const NONCE_BYTES: usize = 24;

/// The key that seals signing keys and the installation's secrets.
#[derive(Clone)]
pub struct MasterKey([u8; 32]);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

impl MasterKey {
    /// A key from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Seals a secret for one place.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: context.as_bytes() })
            .expect("secrets are far below the cipher's limit of 256 GiB");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Opens what [`seal`](Self::seal) made for the same place. [`Error::Sealed`] with another key or place.
    pub fn unseal(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let wrong = || Error::Sealed { what: context.to_owned() };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(wrong)?;
        self.cipher()
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context.as_bytes() })
            .map_err(|_| wrong())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_at_its_place() {
        let key = MasterKey::from_bytes([7; 32]);
        let sealed = key.seal("cache main", b"secret");
        assert_eq!(key.unseal("cache main", &sealed).unwrap(), b"secret");
        assert!(key.unseal("cache other", &sealed).is_err());
        assert!(MasterKey::from_bytes([8; 32]).unseal("cache main", &sealed).is_err());
        assert!(key.unseal("cache main", &sealed[..10]).is_err());
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(key.unseal("cache main", &flipped).is_err());
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time_and_never_printed() {
        let key = MasterKey::from_bytes([7; 32]);
        assert_ne!(key.seal("x", b"secret"), key.seal("x", b"secret"));
        assert_eq!(format!("{key:?}"), "MasterKey(redacted)");
    }
}
