//! Encrypts the secrets that are kept in the index with a key that is not in the index.
//!
//! The cipher is XChaCha20-Poly1305 with a random 24-byte nonce in front of each sealed value. With
//! random nonces of 192 bits, the chance of a repeat stays negligible for any number of secrets.
//! The cipher authenticates the context, so a sealed value cannot be moved to another place. Keys
//! and unsealed secrets are overwritten in memory when they are dropped.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::{Error, Result};

const NONCE_BYTES: usize = 24;

/// The key that seals signing keys and the installation's secrets.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

impl MasterKey {
    /// A key from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
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

    /// Opens a value that [`seal`](Self::seal) made for the same place. [`Error::Sealed`] with
    /// another key or place.
    pub fn unseal(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let wrong = || Error::Sealed { what: context.to_owned() };
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(wrong)?;
        self.cipher()
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context.as_bytes() })
            .map(Zeroizing::new)
            .map_err(|_| wrong())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&(*self.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_at_its_place() {
        let key = MasterKey::from_bytes([7; 32]);
        let sealed = key.seal("cache main", b"secret");
        assert_eq!(key.unseal("cache main", &sealed).unwrap().as_slice(), b"secret");
        assert!(key.unseal("cache other", &sealed).is_err());
        assert!(MasterKey::from_bytes([8; 32]).unseal("cache main", &sealed).is_err());
        assert!(key.unseal("cache main", &sealed[..10]).is_err());
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(key.unseal("cache main", &flipped).is_err());
    }

    #[test]
    fn secrets_in_memory_are_overwritten_when_they_are_dropped() {
        fn overwrites<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let key = MasterKey::from_bytes([7; 32]);
        overwrites(&key.0);
        overwrites(&key.unseal("x", &key.seal("x", b"secret")).unwrap());
        overwrites(&key.cipher());
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time_and_never_printed() {
        let key = MasterKey::from_bytes([7; 32]);
        assert_ne!(key.seal("x", b"secret"), key.seal("x", b"secret"));
        assert_eq!(format!("{key:?}"), "MasterKey(redacted)");
    }
}
