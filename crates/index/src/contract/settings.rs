//! Named values of the installation, and what is sealed with the master key.

use async_trait::async_trait;

use super::CacheId;
use crate::Result;

/// Name of the setting that proves which master key the secrets are sealed with.
pub const MASTER_KEY_PROOF: &str = "master-key-check";

/// Name of the setting that proves which master key some secrets may still be sealed with. It is
/// there while a replacement is under way.
pub const PREVIOUS_KEY_PROOF: &str = "master-key-check-previous";

/// The place of a sealed signing key in the order of [`SettingIndex::list_sealed_keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedKeyPlace {
    /// Its cache.
    pub cache: CacheId,
    /// Its number in the cache.
    pub position: i64,
}

/// A sealed signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Its place.
    pub place: SealedKeyPlace,
    /// The public half, `name:base64`.
    pub public_key: String,
    /// The sealed secret half.
    pub sealed_secret: Vec<u8>,
}

/// Named values of the installation.
#[async_trait]
pub trait SettingIndex: Send + Sync + std::fmt::Debug + 'static {
    /// A named value of the installation (sealed by the caller if it is secret).
    async fn find_setting(&self, name: &str) -> Result<Option<Vec<u8>>>;
    /// Stores a named value unless there is one; returns the one that is there now.
    async fn create_setting(&self, name: &str, value: &[u8]) -> Result<Vec<u8>>;
    /// Puts `after` in the place of the master key's proof `before`, and keeps `before` as the
    /// proof of the key before ([`PREVIOUS_KEY_PROOF`]). From then on no secret is sealed with that
    /// key. [`Error::MasterKeyReplaced`](crate::Error::MasterKeyReplaced) if another proof is
    /// there, or if a replacement is under way.
    async fn begin_rekey(&self, before: &[u8], after: &[u8]) -> Result<()>;
    /// The next `limit` sealed signing keys behind this place, those of retired keys too.
    async fn list_sealed_keys(&self, after: Option<SealedKeyPlace>, limit: u32) -> Result<Vec<SealedKey>>;
    /// Puts each second value in the place of the sealed key, if that is still the same. One
    /// transaction.
    async fn replace_sealed_keys(&self, keys: &[(SealedKey, Vec<u8>)]) -> Result<()>;
    /// Forgets the proof of the key before.
    async fn end_rekey(&self) -> Result<()>;
}
