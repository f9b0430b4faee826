//! One installation in a temporary folder, opened as often as a test likes.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_blobs::{Blobs, StoreBlobs};
use dormer_engine::{
    CreateCache, Engine, EngineSettings, IngestRequest, Ingested, MasterKey, Result, SystemClock,
};
use dormer_index::{Cache, Index, NarQuery, SqlIndex, SqliteIndex, SqliteOptions};
use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{NarHash, NarHasher, StorePath};
use dormer_testkit::services::Postgres;
use dormer_testkit::{MemoryTarget, create_postgres_index, object_for, place_sqlite_index};
use futures::TryStreamExt;
use tempfile::TempDir;

/// What outlives a process: the database file and the store.
pub(crate) struct Installation {
    pub(crate) folder: TempDir,
    pub(crate) blobs: Arc<dyn Blobs>,
    /// What is in the store: the packs of `blobs`, and a journal.
    pub(crate) files: MemoryTarget,
}

impl Installation {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let files = MemoryTarget::new();
        Self { folder, blobs: Arc::new(StoreBlobs::new(files.store())), files }
    }

    /// Deletes the database when the process that has it open has ended.
    pub(crate) async fn lose_database(&self) {
        self.index().await.close().await.expect("it closes");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(self.folder.path().join(format!("index.sqlite{suffix}")));
        }
    }

    pub(crate) async fn index(&self) -> SqlIndex {
        let path = self.folder.path().join("index.sqlite");
        place_sqlite_index(&path).await;
        // The process before may still be going: its packing task ends a moment after its last
        // handle.
        for _ in 0..1_000 {
            match SqliteIndex::open(&path, SqliteOptions::default()).await {
                Err(dormer_index::Error::Locked { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => return opened.expect("the index opens"),
            }
        }
        panic!("the process before never ended");
    }

    pub(crate) async fn engine(&self) -> Engine {
        engine_over(Arc::new(self.index().await), Arc::clone(&self.blobs), settings())
    }
}

/// The URL of a new index on PostgreSQL, if it is wanted.
pub(crate) async fn new_database(on_postgres: bool) -> Option<String> {
    if on_postgres { Some(create_postgres_index(Postgres::shared()).await) } else { None }
}

/// Small chunks, so that small NARs have many.
pub(crate) fn settings() -> EngineSettings {
    EngineSettings {
        chunk_params: dormer_format::ChunkParams { min: 1024, avg: 4096, max: 16 * 1024 },
        zstd_level: 1,
        pack_wait: Duration::from_millis(5),
        // Tests look at what is answered, and the grid has one of its own.
        session_grid: Duration::from_millis(1),
        ..EngineSettings::default()
    }
}

pub(crate) fn engine_over(index: Arc<dyn Index>, blobs: Arc<dyn Blobs>, settings: EngineSettings) -> Engine {
    Engine::new(index, blobs, MasterKey::from_bytes([9; 32]), settings, Arc::new(SystemClock))
}

pub(crate) async fn create_main(engine: &Engine) -> Arc<Cache> {
    create_cache(engine, "main").await
}

pub(crate) async fn create_cache(engine: &Engine, name: &str) -> Arc<Cache> {
    let new = CreateCache {
        name: name.to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 41,
        upstream_cache_key_names: Vec::new(),
        secret_key: None,
        allow_replacement: true,
    };
    engine.create_cache(new).await.expect("a new cache")
}

pub(crate) fn path(number: u8) -> StorePath {
    let hash = dormer_nix::nix32::encode(&[number; 20]);
    format!("{hash}-package-{number}").parse().expect("a store path")
}

/// A NAR with the debug file of this build id, and these files beside it.
pub(crate) fn debug_nar(build_id: &str, others: impl IntoIterator<Item = (String, Node)>) -> Vec<u8> {
    let (folder, file) = build_id.split_at(2);
    let file = Node::directory([(format!("{file}.debug"), Node::file(format!("debug info of {build_id}")))]);
    let folders = ["debug", ".build-id", folder];
    let lib = folders.iter().rev().fold(file, |node, name| Node::directory([(*name, node)]));
    encode_tree(&Node::directory(others.into_iter().chain([("lib".to_owned(), lib)])))
}

pub(crate) fn hash_of(nar: &[u8]) -> NarHash {
    let mut hasher = NarHasher::new();
    hasher.update(nar);
    hasher.finish().0
}

pub(crate) async fn ingest(engine: &Engine, nar: &[u8]) -> Result<Ingested> {
    let request = IngestRequest {
        store_dir: "/nix/store".to_owned(),
        expected: Some((hash_of(nar), nar.len() as u64)),
        extra_memory_bytes: 0,
    };
    let mut ingest = engine.begin_ingest(request).await?;
    for piece in nar.chunks(10_000) {
        ingest.write(piece).await?;
    }
    ingest.finish().await
}

pub(crate) async fn push(engine: &Engine, cache: &Cache, path: &StorePath, nar: &[u8]) -> Result<()> {
    let ingested = ingest(engine, nar).await?;
    engine.commit_object(cache, ingested, object_for(path, &[])).await.map(drop)
}

/// Served bytes of a NAR, or of a range of them.
pub(crate) async fn served(
    engine: &Engine,
    cache: &Cache,
    nar: &[u8],
    range: Option<std::ops::Range<u64>>,
) -> Result<Option<Vec<u8>>> {
    let Some(open) = engine.open_nar(cache, &NarQuery::Hash(hash_of(nar))).await? else { return Ok(None) };
    let pieces: Vec<Bytes> = open.stream(range).await?.try_collect().await?;
    Ok(Some(pieces.concat()))
}

/// The listing of a path, whole.
pub(crate) async fn listing(engine: &Engine, cache: &Cache, path: &StorePath) -> Result<Option<Vec<u8>>> {
    let Some(stream) = engine.listing(cache, &path.hash()).await? else { return Ok(None) };
    let size = stream.size;
    let pieces: Vec<Bytes> = stream.try_collect().await?;
    let json = pieces.concat();
    assert_eq!(json.len() as u64, size, "as long as announced");
    Ok(Some(json))
}

/// What any zstd decoder makes of served bytes.
pub(crate) fn decompress(served: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    zstd::stream::read::Decoder::new(served)
        .expect("zstd sets up")
        .read_to_end(&mut nar)
        .expect("served bytes are one zstd stream");
    nar
}
