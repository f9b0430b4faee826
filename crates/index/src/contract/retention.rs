//! What a cache keeps, lists of what is in it, and removals by hand.

use async_trait::async_trait;
use dormer_nix::{StorePath, StorePathHash};

use super::{Cache, CacheId, UnixSeconds};
use crate::Result;
use crate::jobs::ExpiryDefaults;

/// A pin: a name in a cache that keeps a path, and with it all that the path refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Name; several paths may have it.
    pub name: String,
    /// The path, in the cache or not.
    pub path: StorePath,
    /// When it was added last.
    pub created_at: UnixSeconds,
    /// When it keeps the path no longer; `None` is never.
    pub ends_at: Option<UnixSeconds>,
}

/// A rule that lets an object go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryRule {
    /// The object is too old.
    Age,
    /// It is not among the newest of its name.
    Newer,
}

/// What a cache keeps, with the server's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRules {
    /// How long the cache keeps an unused object; `None` is for ever.
    pub retention_seconds: Option<i64>,
    /// Most bytes of its NARs as served; `None` is any number.
    pub quota_bytes: Option<u64>,
    /// How many of a name it keeps; `None` is all.
    pub keep_latest: Option<u64>,
}

/// What the rules of a cache say of one of its objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRules {
    /// The rules.
    pub cache: CacheRules,
    /// Whether the cache is published: then the last push counts instead of the last use.
    pub is_published: bool,
    /// When the object's age began.
    pub counts_from: UnixSeconds,
    /// The last second for which the rules keep the object by itself, and the rule that ends it;
    /// `None` if only the quota may. Afterwards the next expire job removes the object, unless
    /// something keeps it.
    pub stays_until: Option<(UnixSeconds, ExpiryRule)>,
}

/// Objects that a look for the keepers of an object walks through at most, itself among them.
pub const KEEPERS_WINDOW: i64 = 128;

/// What the rules say of an object, and what keeps it whatever they say. Each list has at most the
/// limit of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepers {
    /// The rules.
    pub rules: ObjectRules,
    /// Its own pins that have not ended, by name.
    pub pins: Vec<Pin>,
    /// Objects that refer to it, by hash; itself left out.
    pub referrers: Vec<StorePath>,
    /// Pins of objects that refer to it, directly or not.
    pub pins_above: Vec<Pin>,
    /// Whether the look ended at its bound: more objects may refer to it.
    pub is_cut: bool,
}

/// Objects of a cache that stand out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtremeObjects {
    /// The largest, the largest first.
    pub largest: Vec<ListedObject>,
    /// The longest unused, the longest unused first.
    pub longest_unused: Vec<ListedObject>,
}

/// The order of [`RetentionIndex::list_objects`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectOrder {
    /// The longest unused first.
    Used,
    /// The oldest first.
    Age,
    /// The largest first.
    Size,
}

/// An object as people list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Store path.
    pub path: StorePath,
    /// Bytes of its NAR, uncompressed.
    pub nar_size: u64,
    /// When it was pushed first.
    pub created_at: UnixSeconds,
    /// When it was last used, as far as is written down.
    pub last_used_at: UnixSeconds,
    /// Its place in the order that it was listed in.
    pub place: ObjectPlace,
}

/// A place in an order of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectPlace {
    /// Time or size.
    pub value: i64,
    /// Row number.
    pub id: i64,
}

/// What a removal for cause found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemovedForCause {
    /// Whether the object was there.
    pub was_there: bool,
    /// Whether the cache had the log of a build of the path, which is a derivation then.
    pub had_log: bool,
    /// Whether the collector removes bytes of the path: it was asked to, and knows which they are.
    pub is_purged: bool,
}

/// NARs of removed paths whose bytes are to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PurgeCounts {
    /// All of them.
    pub waiting: u64,
    /// Those that no collection has tried yet.
    pub untried: u64,
}

/// Something that a person did and that cannot be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Number, ascending.
    pub number: i64,
    /// When.
    pub at: UnixSeconds,
    /// Subject of the token, if it names one.
    pub subject: Option<String>,
    /// What was done, in a word or two.
    pub action: String,
    /// In which cache.
    pub cache: CacheId,
    /// To which path. `None`: to the cache.
    pub store_path_hash: Option<StorePathHash>,
}

/// Which entries of the audit are wanted. A field that is `None` leaves none out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Those in a cache that has or had this name.
    pub cache: Option<String>,
    /// Those of this action.
    pub action: Option<String>,
    /// Those of this subject.
    pub subject: Option<String>,
    /// Those of subjects that begin so.
    pub subject_start: Option<String>,
}

/// A page of the audit, the newest entry first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditPage {
    /// The entries, each with the name of its cache. A deleted cache keeps its name.
    pub entries: Vec<(AuditEntry, Option<String>)>,
    /// What `before` has to be for the next page; `None` after the last one.
    pub next: Option<i64>,
}

/// Most entries of the audit that one page looks at.
pub const AUDIT_WINDOW: i64 = 10_000;

/// How large an object is, and what it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectReferences {
    /// The object.
    pub hash: StorePathHash,
    /// Bytes of its NAR, uncompressed.
    pub nar_size: u64,
    /// What it refers to, itself left out. `None` if those of the others are long: ask again.
    pub references: Option<Vec<StorePath>>,
}

/// What a cache keeps by hand, and what is in it.
#[async_trait]
pub trait RetentionIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Adds a pin, or renews the one of the same name and path. With `keep`, only so many paths of
    /// the name stay pinned, the newest. [`Error::CacheGone`](crate::Error::CacheGone) if the cache
    /// is not there.
    async fn add_pin(&self, cache: CacheId, pin: &Pin, keep: Option<u32>) -> Result<()>;
    /// Removes the pins of a name, or only that of one path; returns how many there were.
    async fn remove_pins(&self, cache: CacheId, name: &str, hash: Option<&StorePathHash>) -> Result<u64>;
    /// Pins that have not ended, after a name and hash, by name and hash.
    async fn list_pins(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>>;
    /// What the rules of a cache say of an object, and what keeps it whatever they say; `None` if
    /// it is not there. Two statements, whose work [`KEEPERS_WINDOW`] and `limit` bound.
    async fn find_keepers(
        &self,
        cache: &Cache,
        hash: &StorePathHash,
        defaults: &ExpiryDefaults,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Option<Keepers>>;
    /// Pins of one path that have not ended, by name.
    async fn list_pins_of_path(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<Pin>>;
    /// How large these objects are and what they refer to; one that the cache lacks is left out. At
    /// most 16,384 hashes a call. References are read until they have so many bytes, which those of
    /// one object may exceed: at least those of one object are read, if the bytes are not 0.
    async fn find_references(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
        bytes_max: u64,
    ) -> Result<Vec<ObjectReferences>>;
    /// A page of the objects that refer to a path, after one of them, by hash; itself left out. The
    /// path need not be there.
    async fn list_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        after: Option<&StorePathHash>,
        limit: u32,
    ) -> Result<Vec<StorePath>>;
    /// Some of the objects that refer to a path, itself left out; the path need not be there.
    async fn find_referrers(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        limit: u32,
    ) -> Result<Vec<StorePathHash>>;
    /// The first objects of a cache by size and by use: the largest, and the longest unused. One
    /// statement.
    async fn list_extremes(&self, cache: CacheId, limit: u32) -> Result<ExtremeObjects>;
    /// Objects after a place of the same order.
    async fn list_objects(
        &self,
        cache: CacheId,
        order: ObjectOrder,
        after: Option<ObjectPlace>,
        limit: u32,
    ) -> Result<Vec<ListedObject>>;
    /// Objects whose name begins with a text, after a name and a place of this order: by the bytes
    /// of the name, then by age. `after` names an object that begins with the text, too. Upper and
    /// lower case differ.
    async fn list_objects_by_name(
        &self,
        cache: CacheId,
        prefix: &str,
        after: Option<(&str, ObjectPlace)>,
        limit: u32,
    ) -> Result<Vec<ListedObject>>;
    /// Removes an object as [`Removal::ForCause`](crate::Removal::ForCause) does, with an audit
    /// entry in the same transaction, also if it was not there. If the path is a derivation, the
    /// logs of its builds go too, with an outbox row for each object that names it. The same
    /// transaction notes the object's NAR, and the NARs of its graces. With `purge`, the collector
    /// removes the bytes that nothing else needs without their grace, and a collection is opened:
    /// bytes of these NARs, and of those that an earlier removal of the same path noted and that
    /// are still in the store.
    async fn remove_for_cause(
        &self,
        cache: CacheId,
        hash: &StorePathHash,
        subject: Option<&str>,
        purge: bool,
        at: UnixSeconds,
    ) -> Result<RemovedForCause>;
    /// How many NARs of removed paths of a cache still have bytes to be removed, and how many of
    /// these no collection has tried yet. With `paths`, only NARs of these paths count.
    async fn count_purges(&self, cache: CacheId, paths: Option<&[StorePathHash]>) -> Result<PurgeCounts>;
    /// Entries after a number, in order.
    async fn audit_after(&self, number: i64, limit: u32) -> Result<Vec<AuditEntry>>;
    /// At most `limit` entries before a number that fit a filter, the newest first. One statement,
    /// which looks at [`AUDIT_WINDOW`] entries at most: a page may have fewer entries than `limit`,
    /// or none, and a `next`.
    async fn audit_before(&self, before: i64, filter: &AuditFilter, limit: u32) -> Result<AuditPage>;
}
