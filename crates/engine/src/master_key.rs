//! Encrypts the secrets that are kept in the index with a key that is not in the index.
//!
//! The cipher is XChaCha20-Poly1305 with a random 24-byte nonce in front of each sealed value. With
//! random nonces of 192 bits, the chance of a repeat stays negligible for any number of secrets.
//! The cipher authenticates the context, so a sealed value cannot be moved to another place. Keys
//! and unsealed secrets are overwritten in memory when they are dropped.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use dormer_index::MASTER_KEY_PROOF;
use zeroize::Zeroizing;

use crate::{Error, Result};

const NONCE_BYTES: usize = 24;

/// The key that seals signing keys, and keys that it may replace.
#[derive(Clone)]
pub struct MasterKey {
    current: Key,
    /// Keys that secrets may still be sealed with, while the current one replaces them.
    previous: Vec<Key>,
}

type Key = Zeroizing<[u8; 32]>;

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(redacted)")
    }
}

impl MasterKey {
    /// A key from its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self { current: Zeroizing::new(bytes), previous: Vec::new() }
    }

    /// The same key, which also opens what these keys sealed.
    #[must_use]
    pub fn with_previous(self, previous: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self { previous: previous.into_iter().map(Zeroizing::new).collect(), ..self }
    }

    /// Seals a secret for one place, with the current key.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Vec<u8> {
        seal_with(&self.current, context, plain)
    }

    /// Opens a value that one of the keys [`seal`](Self::seal)ed for the same place.
    /// [`Error::Sealed`] with another key or place.
    pub fn unseal(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        keys.find_map(|key| unseal_with(key, context, sealed))
            .ok_or_else(|| Error::Sealed { what: context.to_owned() })
    }

    /// Whether the current key sealed this value for this place.
    pub fn is_sealed_with_current(&self, context: &str, sealed: &[u8]) -> bool {
        unseal_with(&self.current, context, sealed).is_some()
    }

    /// The proof of the current key, to be kept beside what it seals.
    pub fn proof(&self) -> Vec<u8> {
        self.seal(MASTER_KEY_PROOF, PROOF)
    }

    /// Whether one of the keys made this proof.
    pub fn opens_proof(&self, proof: &[u8]) -> bool {
        self.unseal(MASTER_KEY_PROOF, proof).is_ok_and(|plain| plain.as_slice() == PROOF)
    }

    /// Whether the current key made this proof.
    pub fn made_proof(&self, proof: &[u8]) -> bool {
        self.is_sealed_with_current(MASTER_KEY_PROOF, proof)
    }

    /// Seals a secret with the key that made this proof: other replicas know that key. The current
    /// key takes over when the proof is its own. [`Error::Sealed`] if none of the keys made it.
    pub(crate) fn seal_like(&self, proof: &[u8], context: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        keys.find(|key| unseal_with(key, MASTER_KEY_PROOF, proof).is_some())
            .map(|key| seal_with(key, context, plain))
            .ok_or_else(|| Error::Sealed { what: "the database".to_owned() })
    }
}

/// What a proof holds.
const PROOF: &[u8] = b"dormer";

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&(**key).into())
}

fn seal_with(key: &Key, context: &str, plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let sealed = cipher(key)
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: context.as_bytes() })
        .expect("secrets are far below the cipher's limit of 256 GiB");
    [nonce.as_slice(), &sealed].concat()
}

fn unseal_with(key: &Key, context: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload { msg: sealed, aad: context.as_bytes() };
    cipher(key).decrypt(&XNonce::from(*nonce), payload).map(Zeroizing::new).ok()
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
    fn a_key_that_replaces_another_opens_what_both_sealed() {
        let old = MasterKey::from_bytes([7; 32]);
        let new = MasterKey::from_bytes([8; 32]);
        let both = new.clone().with_previous([[7; 32]]);
        for (sealed, is_current) in [(old.seal("x", b"secret"), false), (new.seal("x", b"secret"), true)] {
            assert_eq!(both.unseal("x", &sealed).unwrap().as_slice(), b"secret");
            assert!(both.unseal("y", &sealed).is_err());
            assert_eq!(both.is_sealed_with_current("x", &sealed), is_current);
        }
        // Until the database has the new key's proof, new secrets are for everybody.
        assert!(both.opens_proof(&old.proof()) && !both.made_proof(&old.proof()));
        let sealed = both.seal_like(&old.proof(), "x", b"secret").unwrap();
        assert!(old.unseal("x", &sealed).is_ok());
        let sealed = both.seal_like(&new.proof(), "x", b"secret").unwrap();
        assert!(new.unseal("x", &sealed).is_ok() && old.unseal("x", &sealed).is_err());
        assert!(matches!(old.seal_like(&new.proof(), "x", b"secret"), Err(Error::Sealed { .. })));
    }

    #[test]
    fn secrets_in_memory_are_overwritten_when_they_are_dropped() {
        fn overwrites<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let key = MasterKey::from_bytes([7; 32]);
        overwrites(&key.current);
        overwrites(&key.unseal("x", &key.seal("x", b"secret")).unwrap());
        overwrites(&cipher(&key.current));
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time_and_never_printed() {
        let key = MasterKey::from_bytes([7; 32]);
        assert_ne!(key.seal("x", b"secret"), key.seal("x", b"secret"));
        assert_eq!(format!("{key:?}"), "MasterKey(redacted)");
    }
}
