//! Small values to commit. Ids are made from numbers, so that a case reads like its sentence.

use std::sync::Arc;
use std::time::Duration;

use dormer_format::{ChunkId, ChunkLayout, ChunkRun, EncodingTag, HoleFill, PackId, Recipe, RecipeBuilder};
use dormer_nix::{NarHash, StorePath, StorePathHash};

use crate::{
    CacheId, CacheKey, CachePatch, ChunkRow, CommitOutcome, CommitTarget, Index, NarCommit, NarId, NarSource,
    NewCache, NewChunk, NewNar, NewPack, Object, OutboxPosition, OutboxRow, Result, StoredListing,
    UnixSeconds,
};

/// What every case works on.
pub(super) type Subject = Arc<dyn Index>;

/// When things happen, unless the case is about time.
pub(super) const NOW: UnixSeconds = 1_800_000_000;

/// When marks are set in the outbox; no case uses it.
const MARK_TIME: UnixSeconds = 7;

/// Spreads a number over `N` bytes, as a hash would.
fn bytes<const N: usize>(kind: u8, number: u32) -> [u8; N] {
    let mut state = (u64::from(kind) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    })
}

pub(super) fn chunk_id(number: u32) -> ChunkId {
    ChunkId::from_bytes(bytes(1, number))
}

pub(super) fn pack_id(number: u32) -> PackId {
    PackId::from_bytes(bytes(2, number))
}

pub(super) fn nar_hash(number: u32) -> NarHash {
    NarHash::from_bytes(bytes(3, number))
}

pub(super) fn tag(number: u32) -> EncodingTag {
    EncodingTag::from_bytes(bytes(4, number))
}

pub(super) fn path_hash(number: u32) -> StorePathHash {
    StorePathHash::from_bytes(bytes(5, number))
}

pub(super) fn path(number: u32) -> StorePath {
    StorePath::new(path_hash(number), &format!("package-{number}")).expect("a good name")
}

pub(super) fn chunk(number: u32) -> NewChunk {
    NewChunk {
        id: chunk_id(number),
        offset: 32 + u64::from(number) * 100,
        layout: ChunkLayout {
            raw_len: 1000 + number % 1000,
            holes: vec![10, 500],
            frames: vec![19, 400, 300],
        },
        checksum: u64::MAX - u64::from(number),
    }
}

/// Pack `number` with these chunks.
pub(super) fn pack(number: u32, chunks: impl IntoIterator<Item = u32>) -> NewPack {
    NewPack {
        id: pack_id(number),
        size: 1_000_000 + u64::from(number),
        chunks: chunks.into_iter().map(chunk).collect(),
        created_at: NOW,
    }
}

pub(super) fn recipe(rows: &[ChunkRow]) -> Recipe {
    let mut builder = RecipeBuilder::new();
    for row in rows {
        builder.push_chunk(row.number);
        for _ in &row.layout.holes {
            builder.push_fill(&fill());
        }
    }
    builder.finish()
}

/// What fills all holes.
pub(super) fn fill() -> HoleFill {
    HoleFill::from_bytes(*b"0123456789abcdfghijklmnpqrsvwxyz").expect("nix-base32")
}

/// NAR `number`, made of these rows.
pub(super) fn new_nar(number: u32, rows: &[ChunkRow]) -> NewNar {
    NewNar {
        hash: nar_hash(number),
        size: 10_000 + u64::from(number),
        file_size: 5_000 + u64::from(number),
        tag: tag(number),
        recipe: recipe(rows),
        holed_bytes: rows.iter().map(|row| row.layout.holed_bytes()).sum(),
        listing: StoredListing::Inline(vec![40, 181, 47, 253, number.to_le_bytes()[0]]),
        build_ids: Vec::new(),
        packs: rows.iter().map(|row| row.pack).collect(),
    }
}

/// The object of path `number`.
pub(super) fn object(number: u32) -> Object {
    Object {
        path: path(number),
        references: Vec::new(),
        deriver: None,
        ca: None,
        sigs: Vec::new(),
        system: None,
        extra: Vec::new(),
    }
}

pub(super) fn signed_object(number: u32, sigs: &[&str]) -> Object {
    Object { sigs: sigs.iter().map(|sig| (*sig).to_owned()).collect(), ..object(number) }
}

pub(super) fn key(name: &str) -> CacheKey {
    CacheKey { public_key: format!("{name}:cHVibGlj"), sealed_secret: name.as_bytes().to_vec(), active: true }
}

pub(super) fn new_cache(name: &str) -> NewCache {
    NewCache {
        master_key_proof: None,
        name: name.to_owned(),
        is_public: false,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        upstream_cache_key_names: vec!["cache.nixos.org-1".to_owned()],
        key: key(name),
        created_at: NOW,
        allow_replacement: false,
    }
}

pub(super) async fn cache(index: &Subject, name: &str) -> Result<CacheId> {
    index.create_cache(&new_cache(name)).await
}

/// Commits NAR `number` with one chunk and pack of its own, under a target.
pub(super) async fn push(
    index: &Subject,
    cache: CacheId,
    number: u32,
    target: CommitTarget,
) -> Result<NarId> {
    let rows = index.commit_pack(&pack(number, [number])).await?;
    let nar = NarSource::New(Box::new(new_nar(number, &rows)));
    Ok(committed(&commit(index, cache, nar, target).await?))
}

/// Commits NAR `number` as the object of path `number`.
pub(super) async fn push_object(index: &Subject, cache: CacheId, number: u32) -> Result<NarId> {
    push(index, cache, number, CommitTarget::Object(object(number))).await
}

pub(super) async fn commit(
    index: &Subject,
    cache: CacheId,
    nar: NarSource,
    target: CommitTarget,
) -> Result<CommitOutcome> {
    index
        .commit_nar(&NarCommit {
            cache,
            nar,
            target,
            at: NOW,
            grace_seconds: GRACE_SECONDS,
            known_keys: Vec::new(),
        })
        .await
}

/// How long a replaced NAR stays readable.
pub(super) const GRACE_SECONDS: i64 = 30 * 86_400;

pub(super) fn committed(outcome: &CommitOutcome) -> NarId {
    match outcome {
        CommitOutcome::Committed(nar) => *nar,
        CommitOutcome::Kept => panic!("the commit was refused for an object that was there before"),
    }
}

pub(super) fn alias(file_name: &str) -> CommitTarget {
    CommitTarget::Alias { file_name: file_name.to_owned(), compression: "xz".to_owned() }
}

/// The whole outbox. Rows may show up a moment after their commit, so a mark is set behind them and
/// waited for.
pub(super) async fn outbox(index: &Subject) -> Result<Vec<OutboxRow>> {
    let mark = cache(index, "mark-in-the-outbox").await?;
    let patch = CachePatch { priority: Some(0), ..CachePatch::default() };
    index.update_cache(mark, &patch, MARK_TIME).await?;
    index.delete_cache(mark, None, MARK_TIME).await?;
    for _ in 0..1000 {
        let mut rows = index.outbox_after(OutboxPosition::START, 10_000).await?;
        if rows.iter().any(|row| row.cache == mark) {
            rows.retain(|row| row.at != MARK_TIME);
            return Ok(rows);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a row of the outbox never showed up");
}

/// What came into the outbox after a place.
pub(super) async fn outbox_since(index: &Subject, position: OutboxPosition) -> Result<Vec<OutboxRow>> {
    let rows = outbox(index).await?;
    Ok(rows.into_iter().filter(|row| row.position > position).collect())
}

/// The hashes in the outbox, in order, of one cache.
pub(super) async fn changes(index: &Subject, cache: CacheId) -> Result<Vec<Option<StorePathHash>>> {
    let rows = outbox(index).await?;
    Ok(rows.into_iter().filter(|row| row.cache == cache).map(|row| row.store_path_hash).collect())
}

pub(super) fn run(first: u64, count: u32) -> ChunkRun {
    ChunkRun { first, count }
}

/// Statements that one look-up takes: one, and `BEGIN` and `COMMIT` around it where a pooler stands
/// between.
pub(super) async fn look_up_statements(index: &Subject) -> Result<u64> {
    let before = index.statement_count();
    assert_eq!(index.find_setting("nobody's").await?, None);
    let count = index.statement_count() - before;
    assert!([1, 3].contains(&count), "{count} statements");
    Ok(count)
}
