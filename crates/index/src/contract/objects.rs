//! Objects and upload aliases: what names a NAR in a cache.

use async_trait::async_trait;
use dormer_nix::{StorePath, StorePathHash};

use super::{CacheId, NarSummary, UnixSeconds};
use crate::Result;

/// One store path in one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The path, without the store folder.
    pub path: StorePath,
    /// Paths it refers to, itself included if it does; sorted.
    pub references: Vec<StorePath>,
    /// Base name of the derivation that made it.
    pub deriver: Option<String>,
    /// Content address, as the narinfo gives it.
    pub ca: Option<String>,
    /// Signatures it came with (`name:base64`), not ours.
    pub sigs: Vec<String>,
    /// System it was built for, if the pusher said.
    pub system: Option<String>,
    /// Fields of its narinfo that no part of Dormer knows: names and values.
    pub extra: Vec<(String, String)>,
}

/// An upload alias, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Compression that the name promises, as a narinfo spells it.
    pub compression: String,
    /// The NAR.
    pub nar: NarSummary,
}

/// An object with the NAR it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundObject {
    /// The object.
    pub object: Object,
    /// Its NAR.
    pub nar: NarSummary,
    /// When it was last used, as far as is written down.
    pub last_used_at: UnixSeconds,
}

/// How an object is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A client reads it.
    Pull,
    /// A client has it, and would push it if the cache lacked it. Objects of a published cache
    /// expire by their last push.
    Push,
}

/// How an object is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Its NAR stays readable in this cache until then, for clients that remember the narinfo.
    WithGraceUntil(UnixSeconds),
    /// For cause: object, grace and alias go at once; also those of NARs that the path had before,
    /// and also when the object itself went earlier.
    ForCause,
}

/// Objects and upload aliases: what names a NAR in a cache.
#[async_trait]
pub trait ObjectIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Finds an object by its store hash. Damaged NARs are returned too, marked.
    async fn find_object(&self, cache: CacheId, hash: &StorePathHash) -> Result<Option<FoundObject>>;
    /// The same, and whether the cache has the log of the object's derivation. One statement.
    async fn find_object_and_log(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
    ) -> Result<Option<(FoundObject, bool)>>;
    /// Which of these objects the cache has with a sound NAR and its listing, with the time of
    /// their last push ([`Use::Push`]). One statement, at most 16,384 hashes a call.
    async fn present_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<(StorePathHash, UnixSeconds)>>;
    /// Records that objects were used. Never moves a time backwards.
    async fn touch_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        kind: Use,
        at: UnixSeconds,
    ) -> Result<()>;
    /// Removes an object, with its outbox row. `false` if it was not there; for cause there is an
    /// outbox row then, too.
    async fn remove_object(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        removal: Removal,
        at: UnixSeconds,
    ) -> Result<bool>;
    /// Finds an upload alias of this cache made or used after `since`.
    async fn find_alias(&self, cache: CacheId, file_name: &str, since: UnixSeconds) -> Result<Option<Alias>>;
}
