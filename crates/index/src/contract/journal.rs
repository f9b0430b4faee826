//! What the journal needs: the present state of caches, objects, aliases and documents, what
//! changed besides objects, and how far the journal is.

use async_trait::async_trait;
use dormer_format::Recipe;
use dormer_nix::{NarHash, StorePathHash};

use super::{Cache, CacheId, Object, OutboxPosition, Pin, StoredListing, UnixSeconds};
use crate::Result;

/// A NAR with all that its row and listing say.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledNar {
    /// SHA-256 of the archive.
    pub hash: NarHash,
    /// Bytes of the archive.
    pub size: u64,
    /// How to rebuild it.
    pub recipe: Recipe,
    /// Its listing, unless it was lost.
    pub listing: Option<StoredListing>,
}

/// An object with its NAR.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledObject {
    /// The cache.
    pub cache: CacheId,
    /// The object.
    pub object: Object,
    /// When it was pushed first.
    pub created_at: UnixSeconds,
    /// Its NAR.
    pub nar: JournaledNar,
}

/// An upload alias with its NAR.
#[derive(Debug, Clone, PartialEq)]
pub struct JournaledAlias {
    /// The cache.
    pub cache: CacheId,
    /// File name below `nar/`.
    pub file_name: String,
    /// Compression that the name promises.
    pub compression: String,
    /// When it was made or used last.
    pub used_at: UnixSeconds,
    /// Its NAR.
    pub nar: JournaledNar,
}

/// A document with all that its row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournaledDocument {
    /// The cache.
    pub cache: CacheId,
    /// Row number.
    pub id: i64,
    /// Address below the cache.
    pub name: String,
    /// Hash of the store path that it belongs to.
    pub owner: StorePathHash,
    /// When it was written.
    pub written_at: UnixSeconds,
    /// Bytes of the document.
    pub size: u64,
    /// How the body is compressed.
    pub encoding: Option<String>,
    /// The document, compressed or not; `None` if it is too large for the journal.
    pub body: Option<Vec<u8>>,
}

/// What besides objects can change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum JournalSubject {
    /// The named values of the installation.
    Settings,
    /// A cache with its keys.
    Cache(CacheId),
    /// An upload alias, by its file name.
    Alias(CacheId, String),
    /// A document, by its address below the cache.
    Document(CacheId, String),
    /// A pin, by its name and the hash of its path.
    Pin(CacheId, String, StorePathHash),
}

/// Something besides an object that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalNote {
    /// What.
    pub subject: JournalSubject,
    /// How often it changed since it was noted first.
    pub(crate) changes: i64,
}

/// How far the journal is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalState {
    /// Random number of this database's past; 0 before the first file.
    pub lineage: i64,
    /// Where files are written.
    pub generation: i64,
    /// Number of the last file under this lease or an earlier one.
    pub sequence: i64,
    /// Outbox rows up to here are written.
    pub cursor: OutboxPosition,
    /// Where the snapshot goes on; `None` if it is whole.
    pub snapshot: Option<Vec<u8>>,
    /// Files up to here (fence, sequence) are older than the snapshot.
    pub base: (i64, i64),
    /// Bytes of the snapshot so far.
    pub snapshot_bytes: i64,
    /// Bytes of the segments since the snapshot began.
    pub segment_bytes: i64,
    /// When a file was written last.
    pub written_at: UnixSeconds,
    /// The last fence that a lease has got. Nobody saves it.
    pub fence: i64,
}

/// Segments of this weight ask for a snapshot, whatever a snapshot weighs: see
/// [`JournalState::segment_bytes`].
pub const SNAPSHOT_WANTED: i64 = 1 << 62;

/// The right to write the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalLease {
    /// Grows with every lease; an older one is worth nothing.
    pub fence: i64,
}

/// What the journal reads and writes in the index.
#[async_trait]
pub trait JournalIndex: Send + Sync + std::fmt::Debug + 'static {
    /// How far the journal is. One statement.
    async fn journal_state(&self) -> Result<JournalState>;
    /// Takes the lease for `holder` if the last one has ended at `now` or was its own, until
    /// `ends_at`. Two calls never get the same fence.
    async fn lease_journal(
        &self,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<(JournalLease, JournalState)>>;
    /// Saves how far the journal is, forgets the notes that were written and did not change
    /// meanwhile, and renews the lease, in one transaction.
    /// [`Error::JobLeaseLost`](crate::Error::JobLeaseLost), and no effect,
    /// if another process has taken the lease.
    async fn save_journal(
        &self,
        lease: &JournalLease,
        state: &JournalState,
        written: &[JournalNote],
        ends_at: UnixSeconds,
    ) -> Result<()>;
    /// Renews the lease until `ends_at`, and saves nothing.
    /// [`Error::JobLeaseLost`](crate::Error::JobLeaseLost) if another
    /// process has taken it.
    async fn renew_journal(&self, lease: &JournalLease, ends_at: UnixSeconds) -> Result<()>;
    /// Gives the lease back.
    async fn release_journal(&self, lease: &JournalLease) -> Result<()>;
    /// Asks the journal's next turn for a snapshot, after which all older files go.
    async fn ask_for_snapshot(&self) -> Result<()>;
    /// The place behind the last outbox row that followers may rely on.
    async fn outbox_end(&self) -> Result<OutboxPosition>;
    /// When the oldest change was made that has ended, and that followers do not see yet, because
    /// an older transaction is running. `None` if they see all of them.
    async fn hidden_change(&self) -> Result<Option<UnixSeconds>>;
    /// What besides objects changed, the first `limit`.
    async fn journal_notes(&self, limit: u32) -> Result<Vec<JournalNote>>;
    /// A cache that is not deleted.
    async fn find_cache_by_id(&self, cache: CacheId) -> Result<Option<Cache>>;
    /// Those of these objects that are there.
    async fn journaled_objects(
        &self,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<JournaledObject>>;
    /// Objects of all caches, by cache and hash, after one.
    async fn journaled_objects_after(
        &self,
        after: Option<(CacheId, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<JournaledObject>>;
    /// An alias.
    async fn journaled_alias(&self, cache: CacheId, file_name: &str) -> Result<Option<JournaledAlias>>;
    /// Aliases of all caches, by cache and file name, after one.
    async fn journaled_aliases_after(
        &self,
        after: (CacheId, &str),
        limit: u32,
    ) -> Result<Vec<JournaledAlias>>;
    /// A document.
    async fn journaled_document(&self, cache: CacheId, name: &str) -> Result<Option<JournaledDocument>>;
    /// Documents of all caches, by row number, after one: at most `limit`, and fewer if they are
    /// large.
    async fn journaled_documents_after(&self, after: i64, limit: u32) -> Result<Vec<JournaledDocument>>;
    /// A pin, also one that has ended.
    async fn journaled_pin(&self, cache: CacheId, name: &str, hash: &StorePathHash) -> Result<Option<Pin>>;
    /// All named values of the installation.
    async fn settings(&self) -> Result<Vec<(String, Vec<u8>)>>;
    /// Whether no cache, NAR or pack was ever made.
    async fn is_empty(&self) -> Result<bool>;
    /// Makes a cache with all its keys; the id in it is not used. A cache of the name that is there
    /// stays as it is.
    async fn restore_cache(&self, cache: &Cache) -> Result<CacheId>;
    /// Stores a named value, whatever there was.
    async fn restore_setting(&self, name: &str, value: &[u8]) -> Result<()>;
}
