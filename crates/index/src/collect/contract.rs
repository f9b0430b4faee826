//! The port of the collector. Its conventions are those of [`Index`](crate::Index): every method is
//! one transaction, and time is an argument.
//!
//! The calls are safe in any order and by any number of collectors at once: each one that removes
//! something looks again, in its own transaction, whether it may.

use async_trait::async_trait;
use dormer_format::{ChunkLayout, ChunkRun, PackId};
use dormer_nix::StorePathHash;

use crate::Result;
use crate::contract::{CacheId, ChunkRow, NarId, ObjectPlace, PackNumber, UnixSeconds};
use crate::jobs::{ExpiryDefaults, JobId, JobLease};

/// A NAR as the mark phase sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedNar {
    /// Row number.
    pub id: NarId,
    /// Bytes of the archive.
    pub size: u64,
    /// Whether an object, a grace row that has not ended, or an upload alias that still resolves
    /// names it.
    pub is_named: bool,
    /// The chunks of the NAR, and those of its listing.
    pub runs: Vec<ChunkRun>,
}

/// A pack's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRow {
    /// Row number.
    pub number: PackNumber,
    /// Its id, from which the object's name follows.
    pub id: PackId,
    /// Bytes of the object.
    pub size: u64,
    /// When it was stored.
    pub created_at: UnixSeconds,
    /// Stamp of the last commit that used one of its chunks.
    pub used_at: UnixSeconds,
    /// Since when no upload may use it.
    pub condemned_at: Option<UnixSeconds>,
    /// Chunks in the object, also those whose rows lie in another pack. `None` if an older Dormer
    /// stored it.
    pub chunks: Option<u64>,
    /// The least level that its chunks were recompressed at, or would hardly be smaller at; 0:
    /// none.
    pub recompressed_level: u8,
}

/// A chunk whose row lies in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedChunk {
    /// Its row.
    pub row: ChunkRow,
    /// Whether a read found its bytes changed or missing.
    pub is_damaged: bool,
}

/// A pack that a compaction has stored. It has no row yet, and is on the list of doomed packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactedPack {
    /// Its id.
    pub id: PackId,
    /// Bytes of the object.
    pub size: u64,
    /// Raw bytes of its chunks.
    pub raw_bytes: u64,
    /// Those of them in chunks with holes.
    pub holed_bytes: u64,
    /// The least level that its chunks were recompressed at; 0: some were not.
    pub recompressed_level: u8,
    /// Its chunks, with their new places.
    pub chunks: Vec<ChunkMove>,
    /// For each chunk, the XXH3-64 and the layout of its new frames. `None`: the chunks were
    /// copied.
    pub new_frames: Option<Vec<(u64, ChunkLayout)>>,
}

/// A chunk that moves to another pack, with its stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkMove {
    /// Its number, which stays.
    pub number: u64,
    /// The pack that it was read from.
    pub from: PackNumber,
    /// Where its first frame was in that pack.
    pub from_offset: u64,
    /// XXH3-64 of the bytes that were read.
    pub checksum: u64,
    /// Where its first frame is in the new pack.
    pub offset: u64,
}

/// Which packs may be condemned: those that were stored, and stamped for the last time, before
/// these times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampLimits {
    /// The pack was stored before.
    pub created_before: UnixSeconds,
    /// The last stamp was set before.
    pub used_before: UnixSeconds,
}

/// What a removal of packs removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacksRemoved {
    /// Ids of the packs whose rows are gone. Their objects may be deleted now.
    pub packs: Vec<PackId>,
    /// Bytes of these packs.
    pub bytes: u64,
    /// Chunk rows that went with them.
    pub chunks: u64,
}

/// A pack without a row, whose object is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoomedPack {
    /// Its id.
    pub id: PackId,
    /// From when on. For a pack that lost its row, this is when it did.
    pub not_before: UnixSeconds,
    /// Whether it never had a row that this database knows: a listing found it, or a compaction
    /// noted it before it stored it.
    pub is_stray: bool,
}

/// Number of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PurgeId(pub i64);

/// A NAR of a removed path, of which the bytes are to be removed that nothing else needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// Row number.
    pub id: PurgeId,
    /// When its path was removed. Its chunks had their rows until then.
    pub removed_at: UnixSeconds,
    /// The chunks of the NAR, and those of its listing.
    pub runs: Vec<ChunkRun>,
}

/// The collection before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastCollection {
    /// When its job was opened; 0 if there was none.
    pub opened_at: UnixSeconds,
    /// When the last whole one ended.
    pub ended_at: Option<UnixSeconds>,
    /// When the store was last listed.
    pub listed_at: Option<UnixSeconds>,
    /// What the last whole one did, as JSON.
    pub report: String,
}

/// An object as a plan of expiry sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExaminedObject {
    /// Hash of its path.
    pub hash: StorePathHash,
    /// What it refers to, without itself.
    pub references: Vec<StorePathHash>,
    /// Its bytes, as a quota counts them.
    pub bytes: u64,
    /// Whether it is too old, or too many are newer, and nothing but a referrer keeps it.
    pub may_expire: bool,
    /// Whether it may go to make room, and nothing but a referrer keeps it.
    pub may_be_given_up: bool,
    /// Its place in the order of the last use.
    pub place: ObjectPlace,
}

/// A page of objects of a cache, and what the cache may hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExaminedPage {
    /// The quota; `None` for no quota.
    pub quota_bytes: Option<u64>,
    /// The objects.
    pub objects: Vec<ExaminedObject>,
}

/// A pack of the store that has no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowlessPack {
    /// The pack.
    pub id: PackId,
    /// What is noted of it.
    pub fate: PackFate,
}

/// What becomes of a pack without a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackFate {
    /// Nothing is noted.
    Open,
    /// It is never deleted.
    Kept,
    /// Its object goes when its time has come.
    Doomed,
}

/// What the collector asks of the index.
#[async_trait]
pub trait CollectIndex: Send + Sync + std::fmt::Debug + 'static {
    /// Opens the collector's job ([`JobKind::Collect`](crate::JobKind::Collect)) unless one was
    /// opened after `due_before`. Of racing callers, one opens it.
    async fn open_collection(&self, due_before: UnixSeconds, at: UnixSeconds) -> Result<Option<JobId>>;
    /// What is known of the last collection.
    async fn last_collection(&self) -> Result<LastCollection>;
    /// Notes that a recovery has listed the store, and that each pack in it has a row or is on the
    /// list of doomed packs. The next collection lists the store again. Changes nothing if the
    /// store was listed before.
    async fn note_first_listing(&self) -> Result<()>;
    /// Makes a listing of the store due, unless it was never listed.
    async fn list_next_time(&self) -> Result<()>;
    /// Renews the lease until `ends_at`, and counts `rows`. There is no cursor: another process
    /// begins anew, because the marks are in memory.
    /// [`Error::JobLeaseLost`](crate::Error::JobLeaseLost) if another process has taken the lease.
    async fn advance_collection(
        &self,
        lease: &JobLease,
        rows: u64,
        at: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<()>;
    /// Ends the job and keeps its report. `listed` says that the store was listed. If a purge was
    /// noted meanwhile that no collection has tried, another one is opened.
    /// [`Error::JobLeaseLost`](crate::Error::JobLeaseLost) as above.
    async fn finish_collection(
        &self,
        lease: &JobLease,
        report: &str,
        listed: bool,
        at: UnixSeconds,
    ) -> Result<()>;

    /// Removes at most `limit` grace rows that ended at `at` or before; returns how many.
    async fn expire_graces(&self, limit: u32, at: UnixSeconds) -> Result<u64>;
    /// Removes at most `limit` upload aliases that were used last at `used_until` or before;
    /// returns how many.
    async fn expire_aliases(&self, limit: u32, used_until: UnixSeconds) -> Result<u64>;
    /// How many grace rows ended at `at` or before, and how many upload aliases were used last at
    /// `used_until` or before; each counted up to 100,000.
    async fn count_ended(&self, at: UnixSeconds, used_until: UnixSeconds) -> Result<(u64, u64)>;
    /// How many build logs of all caches were written before.
    async fn count_logs(&self, written_before: UnixSeconds) -> Result<u64>;
    /// Caches after one, by number, with rules by which something may expire.
    async fn caches_with_rules(
        &self,
        defaults: &ExpiryDefaults,
        after: CacheId,
        limit: u32,
    ) -> Result<Vec<CacheId>>;
    /// A page of a cache's objects in the order of their last use, after one. Empty at the end, and
    /// if the cache is gone.
    async fn examine_objects(
        &self,
        cache: CacheId,
        defaults: &ExpiryDefaults,
        after: Option<ObjectPlace>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<ExaminedPage>;
    /// A page of NARs after one, by number: at most `limit`, and fewer if their recipes are large;
    /// an empty page is the end. Aliases used after `aliases_since` count as names, and
    /// graces that end after `now`.
    async fn mark_nars(
        &self,
        after: NarId,
        limit: u32,
        now: UnixSeconds,
        aliases_since: UnixSeconds,
    ) -> Result<Vec<MarkedNar>>;
    /// Removes those of these NARs, with their listings, that no object, grace row or alias names
    /// when the transaction looks; returns them. A NAR that a commit is naming at this moment
    /// stays, and so does one that was named meanwhile.
    async fn delete_nars(&self, nars: &[NarId]) -> Result<Vec<NarId>>;
    /// Chunks after a number, by number, that lie in another pack than the one that brought them:
    /// their numbers, and the packs that hold them. Every other chunk lies in the pack
    /// `number / 65,536`.
    async fn moved_chunks(&self, after: u64, limit: u32) -> Result<Vec<(u64, PackNumber)>>;
    /// A page of packs after one, by number.
    async fn page_packs(&self, after: PackNumber, limit: u32) -> Result<Vec<PackRow>>;
    /// How many chunk rows these packs have in all.
    async fn count_chunks(&self, packs: &[PackNumber]) -> Result<u64>;
    /// A page of the chunks whose rows lie in a pack, by number, after one.
    async fn pack_chunks(&self, pack: PackNumber, after: Option<u64>, limit: u32)
    -> Result<Vec<PackedChunk>>;
    /// Gives a compacted pack its row, and moves those chunks to it whose rows are sound and still
    /// lie where they were read; returns their numbers. Recipes stay, since the numbers do. Tags
    /// stay too, unless the chunks get new frames: then the next opening of a NAR finds its new
    /// tag.
    ///
    /// The pack must be on the list of doomed packs, with a deadline after `doomed_after`, and is
    /// taken off it. If it is not on the list (its object may be gone), or if no chunk moves,
    /// nothing changes but that its object may be deleted from `at` on. A second call for the same
    /// pack moves nothing.
    async fn move_chunks(
        &self,
        pack: &CompactedPack,
        at: UnixSeconds,
        doomed_after: UnixSeconds,
    ) -> Result<Vec<u64>>;
    /// Writes down that the chunks of these packs were compressed at a level, or would hardly be
    /// smaller at it.
    async fn note_recompressed(&self, packs: &[PackNumber], level: u8) -> Result<()>;
    /// Marks chunks whose stored bytes cannot be read, and that lie in this pack still: no upload
    /// uses them, and the next push that brings such a chunk heals it. Returns how many were sound
    /// before.
    async fn mark_chunks_damaged(&self, pack: PackNumber, chunks: &[u64], at: UnixSeconds) -> Result<u64>;
    /// Condemns those of these packs that are not condemned and are within the limits when the
    /// transaction has locked them; returns their numbers. It waits for commits that use them. From
    /// then on no look-up finds their chunks for reuse, and no commit may use them.
    async fn condemn_packs(
        &self,
        packs: &[PackNumber],
        limits: StampLimits,
        at: UnixSeconds,
    ) -> Result<Vec<PackNumber>>;
    /// Condemns those of these packs that are not condemned, whatever their age and their stamps.
    /// It waits for commits that use them; later ones fail, and their clients push again. Only
    /// marks that begin after this call tell whether a NAR needs such a pack.
    async fn condemn_now(&self, packs: &[PackNumber], at: UnixSeconds) -> Result<()>;
    /// The purges that were asked for: those that no collection has tried, by number, and then
    /// those that were tried longest ago.
    async fn open_purges(&self, limit: u32) -> Result<Vec<Purge>>;
    /// Purges that nobody has asked for, after one, by number: what removed paths were made of.
    async fn purge_notes(&self, after: PurgeId, limit: u32) -> Result<Vec<Purge>>;
    /// Forgets such purges, except those that were asked for meanwhile.
    async fn forget_purge_notes(&self, notes: &[PurgeId]) -> Result<()>;
    /// Where the chunks lie that have numbers of this run, after a number, by number; those without
    /// a row are left out.
    async fn find_places(
        &self,
        run: &ChunkRun,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, PackNumber)>>;
    /// Closes these purges, or notes that a collection tried them and had to leave some bytes.
    async fn end_purges(&self, purges: &[PurgeId], is_done: bool, at: UnixSeconds) -> Result<()>;
    /// Takes back that these packs are condemned; returns how many were.
    async fn spare_packs(&self, packs: &[PackNumber]) -> Result<u64>;
    /// Removes the rows of those of these packs that were condemned before `condemned_before` and
    /// not stamped since, with their chunk rows. The ids go onto the list of doomed packs in the
    /// same transaction, so that a crash does not forget the objects.
    async fn remove_packs(
        &self,
        packs: &[PackNumber],
        condemned_before: UnixSeconds,
        at: UnixSeconds,
    ) -> Result<PacksRemoved>;

    /// Those of these packs that have no row, in the order given. At most 16,384 a call.
    async fn packs_without_row(&self, packs: &[PackId]) -> Result<Vec<RowlessPack>>;
    /// Puts packs without a row onto the list of doomed packs: their objects may be deleted from
    /// `not_before` on, or never with `None`. What is on the list already stays as it is. Returns
    /// how many are new there.
    async fn doom_packs(&self, packs: &[PackId], not_before: Option<UnixSeconds>) -> Result<u64>;
    /// Lets the objects of those of these doomed packs be deleted from `not_before` on that were
    /// never to be; returns how many.
    async fn release_packs(&self, packs: &[PackId], not_before: UnixSeconds) -> Result<u64>;
    /// At most `limit` doomed packs after one, by their times, whose objects may be deleted at
    /// `at`. One that has a row by now is never among them.
    async fn doomed_packs(
        &self,
        after: Option<DoomedPack>,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Vec<DoomedPack>>;
    /// Whether objects are left that may hold copies of chunks: all doomed packs without a row, or
    /// with `since` those that never had one, and those that lost it then or later. Those that are
    /// never deleted do not count.
    async fn may_have_copies(&self, since: Option<UnixSeconds>) -> Result<bool>;
    /// Puts the id of a pack that a compaction is about to store onto the list of doomed packs.
    async fn doom_new_pack(&self, pack: PackId, not_before: UnixSeconds) -> Result<()>;
    /// Lets the objects of packs be deleted from `at` on that compactions were to store, and whose
    /// deadline is `deadline_max` or earlier: their chunks never moved, and do not from then on.
    /// Returns how many.
    async fn hasten_new_packs(&self, deadline_max: UnixSeconds, at: UnixSeconds) -> Result<u64>;
    /// Takes packs whose objects are gone off the list.
    async fn forget_doomed(&self, packs: &[PackId]) -> Result<()>;
    /// Reads the keys behind the filters again, after many rows were removed: the filters never
    /// forget a key. The old filters answer meanwhile.
    async fn reload_known_keys(&self) -> Result<()>;
}
