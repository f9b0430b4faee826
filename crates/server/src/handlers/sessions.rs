//! Push by chunks: sessions, their parts and their commits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormer_api::v2::{
    CommitEntry, CommitResponse, CommitResult, PartDigest, SESSION_FORMAT, SessionId, SessionResponse,
    encode_missing, read_chunk_ids,
};
use dormer_api::{CacheName, Permission, UploadPathNarInfo, UploadPathResult, UploadPathResultKind};
use dormer_engine::{
    CheckHold, ChunkedPath, CommittedPath, Deduplication, MISSING_CHUNKS_MAX, PART_CHUNKS_MAX, PathOutcome,
    PushSession, Reader, part_memory_bytes,
};
use dormer_format::ChunkId;
use dormer_index::{CacheVisibility, SessionId as SessionKey};
use dormer_nix::{NarHasher, StorePathHash};
use futures::FutureExt as _;
use http::{Response, StatusCode};
use serde::Deserialize;

use crate::app::App;
use crate::body::{self, Body};
use crate::body_memory::LAST_RESORT_TIMEOUT;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::attic::{may_pull_everything, may_read, object};
use crate::handlers::checks::{bad_request, log_kept, store_dir};
use crate::handlers::small_body::{self, Buffered};
use crate::request_body::{BodyError, RequestBody};
use crate::settings::COMMIT_BYTES_MAX;

/// Most paths in a commit.
const COMMIT_PATHS_MAX: usize = 512;

/// More than a part with one chunk takes beside the chunk: the header, the frames' heads, the
/// table and the trailer.
const PART_OVERHEAD_BYTES: u64 = 16 * 1024;

/// Memory that a part takes at a time.
const PART_STEP_BYTES: u64 = 4 * 1024;

/// How long a commit waits for its checks before it answers what is done. Many proxies give up
/// after 60 s, and a client shows progress with each answer.
const COMMIT_PATIENCE: Duration = Duration::from_secs(8);

/// Opens a session, or joins it again.
pub(crate) async fn open_session(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    session: SessionId,
) -> Result<Response<Body>, Failure> {
    // The present settings: a cache that was made a moment ago by another replica is there.
    let cache = app.open_current_cache(call, name, Permission::Push).await?;
    app.admit_push(call, body)?;
    let store_dir = store_dir(&cache)?;
    let session = app.engine.open_session(cache, key(session), &app.caller(call).0).await?;
    let settings = app.engine.settings();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let answer = SessionResponse {
        format: SESSION_FORMAT,
        store_dir,
        chunk_min: settings.chunk_params.min,
        chunk_avg: settings.chunk_params.avg,
        chunk_max: settings.chunk_params.max,
        level: settings.zstd_level,
        part_bytes_max: part_bytes_max(app),
        part_chunks_max: count(PART_CHUNKS_MAX),
        missing_chunks_max: count(MISSING_CHUNKS_MAX),
        commit_bytes_max: COMMIT_BYTES_MAX as u64,
        commit_paths_max: count(COMMIT_PATHS_MAX),
        ends_at: session.ends_at(),
    };
    Ok(body::json(StatusCode::OK, &answer))
}

/// Says which chunks the session has to send.
pub(crate) async fn find_missing_chunks(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    session: SessionId,
) -> Result<Response<Body>, Failure> {
    let session = find_session(app, call, name, session).await?;
    app.admit_push(call, body)?;
    let max = MISSING_CHUNKS_MAX * dormer_api::v2::CHUNK_ID_BYTES;
    let Buffered { value: bytes, memory: _memory } =
        small_body::read(app, call, body, "the list of chunks", max).await?;
    let ids = read_chunk_ids(&bytes).ok_or_else(|| {
        Failure::BadRequest("the body does not consist of chunk ids of 32 bytes".to_owned())
    })?;
    let ids: Vec<ChunkId> = ids.map(ChunkId::from_bytes).collect();
    let missing = app.engine.missing_chunks(&session, &reader(app, call), &ids).await?;
    Ok(body::document("application/octet-stream", encode_missing(missing)))
}

/// Takes a part: a pack of chunks.
pub(crate) async fn put_part(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    session: SessionId,
    digest: PartDigest,
) -> Result<Response<Body>, Failure> {
    let session = find_session(app, call, name, session).await?;
    let turn = app.admit_upload(call, body).await?;
    let what = "the part";
    let max = part_bytes_max(app);
    small_body::refuse_coding(call, "a part is compressed already")?;
    body.limit(max).map_err(|_| Failure::TooLong { what, max })?;
    let mut memory = app.begin_part(call);
    // Address space alone: the system gives memory when bytes come.
    let length = body.known_length().unwrap_or_default().min(max);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    let mut counted = 0;
    while let Some(piece) = body.next().await.map_err(|error| match error {
        BodyError::TooLong { .. } => Failure::TooLong { what, max },
        error => Failure::Body(error),
    })? {
        // In steps: each may count for a little more than its bytes.
        let needed = (bytes.len() + piece.len()) as u64;
        if needed > counted {
            let step = (needed - counted).next_multiple_of(PART_STEP_BYTES);
            counted += step;
            if memory.grow(step).await? {
                body.hurry(LAST_RESORT_TIMEOUT);
            }
        }
        bytes.extend_from_slice(&piece);
    }
    memory.grow(part_memory_bytes(bytes.len() as u64).saturating_sub(counted)).await?;
    let bytes = Bytes::from(bytes);
    // The engine goes on when the caller leaves, and keeps turn and memory until it has ended.
    let hold = (turn, memory.into_hold());
    app.engine.receive_part(&session, &reader(app, call), *digest.as_bytes(), bytes, hold).await?;
    Ok(body::no_content())
}

/// Makes paths of the session's chunks.
pub(crate) async fn commit_paths(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    session: SessionId,
) -> Result<Response<Body>, Failure> {
    let session = find_session(app, call, name, session).await?;
    // Also held until the checks have ended that this request begins.
    let turn = Arc::new(app.admit_upload(call, body).await?);
    let (what, max) = ("the commit", COMMIT_BYTES_MAX as u64);
    small_body::refuse_coding(call, "a commit is sent as it is")?;
    body.limit(max).map_err(|_| Failure::TooLong { what, max })?;
    body.hurry(small_body::WHOLE_BODY_TIMEOUT);
    let mut memory = app.begin_buffer(call);
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await? {
        if memory.grow(piece.len() as u64).await? {
            body.hurry(LAST_RESORT_TIMEOUT);
        }
        bytes.extend_from_slice(&piece);
    }
    let bytes = Bytes::from(bytes);
    let entries = CommitEntry::decode_all(&bytes, COMMIT_PATHS_MAX).map_err(bad_request)?;
    // What is read from the metadata takes about as much as the text.
    memory.grow(entries.iter().map(|entry| 2 * entry.info.len() as u64).sum()).await?;
    drop(entries);
    // All of it is parsed and hashed.
    let read = {
        let (session, name, bytes) = (session.clone(), name.clone(), bytes.clone());
        move || read_entries(&session, &name, &bytes)
    };
    let (results, paths) = app.engine.cpu().run(read).await?;
    let reader = reader(app, call);
    let caller = app.caller(call);
    let admit = |bytes| {
        let (caller, turn) = (&caller, Arc::clone(&turn));
        async move { Box::new(app.admit_check(caller, bytes, turn).await) as Box<dyn CheckHold> }.boxed()
    };
    let outcomes = app.engine.commit_paths(&session, &reader, &paths, COMMIT_PATIENCE, &admit).await?;
    let mut outcomes =
        outcomes.into_iter().zip(&paths).map(|(outcome, path)| result(&session, path, outcome));
    let results = results
        .into_iter()
        .map(|result| result.unwrap_or_else(|| outcomes.next().expect("each sound entry has an outcome")))
        .collect();
    Ok(body::json(StatusCode::OK, &CommitResponse { results }))
}

/// Largest part, in bytes: what the settings say, or a part with one chunk that cannot be
/// compressed, if that is more.
fn part_bytes_max(app: &App) -> u64 {
    let chunk = u64::from(app.engine.settings().chunk_params.max);
    (app.settings.part_bytes_max as u64).max(chunk + chunk / 128 + PART_OVERHEAD_BYTES)
}

async fn find_session(
    app: &App,
    call: &Call,
    name: &CacheName,
    session: SessionId,
) -> Result<PushSession, Failure> {
    let cache = app.open_cache(call, name, Permission::Push).await?;
    Ok(app.engine.find_session(cache, key(session), &app.caller(call).0).await?)
}

fn key(session: SessionId) -> SessionKey {
    SessionKey(*session.as_bytes())
}

/// What the caller may read.
fn reader(app: &App, call: &Call) -> Reader {
    let claims = app.claims(call);
    if claims.as_deref().is_some_and(may_pull_everything) {
        return Reader::of_everything();
    }
    Reader::of_some(move |cache: &CacheVisibility| may_read(claims.as_deref(), cache))
}

/// The paths of a commit, and a result for each entry: `None` for those of the paths.
fn read_entries(
    session: &PushSession,
    name: &CacheName,
    bytes: &Bytes,
) -> Result<(Vec<Option<CommitResult>>, Vec<ChunkedPath>), Failure> {
    let entries = CommitEntry::decode_all(bytes, COMMIT_PATHS_MAX).map_err(bad_request)?;
    let mut results = Vec::with_capacity(entries.len());
    let mut paths = Vec::with_capacity(entries.len());
    // Paths that this request does not commit, whatever the engine finds.
    let mut held_back = HashSet::new();
    for entry in entries {
        let info = entry.info;
        match read_entry(session, name, bytes, entry) {
            Ok(path) if refers_to(&path, &held_back) => {
                held_back.insert(path.object.path.hash());
                results.push(Some(CommitResult::Waiting));
            }
            Ok(path) => {
                results.push(None);
                paths.push(path);
            }
            Err(failure) => {
                held_back.extend(named_paths(info));
                results.push(Some(CommitResult::Failed { error: failure.body() }));
            }
        }
    }
    Ok((results, paths))
}

/// One path of a commit.
fn read_entry(
    session: &PushSession,
    cache: &CacheName,
    body: &Bytes,
    entry: CommitEntry<'_>,
) -> Result<ChunkedPath, Failure> {
    let info = UploadPathNarInfo::parse(entry.info).map_err(bad_request)?;
    if info.cache != *cache {
        return Err(Failure::BadRequest("the metadata names another cache than the address".to_owned()));
    }
    let object = object(session.cache(), &info)?;
    let mut digest = NarHasher::new();
    digest.update(&(entry.info.len() as u64).to_le_bytes());
    digest.update(entry.info);
    digest.update(entry.manifest);
    Ok(ChunkedPath {
        digest: digest.finish().0,
        object,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        manifest: body.slice_ref(entry.manifest),
    })
}

/// Whether a path refers to one of these paths, other than itself.
fn refers_to(path: &ChunkedPath, hashes: &HashSet<StorePathHash>) -> bool {
    let mut references = path.object.references.iter().map(dormer_nix::StorePath::hash);
    references.any(|reference| reference != path.object.path.hash() && hashes.contains(&reference))
}

/// The paths that refused metadata is about, as far as it can be read: what refers to them waits.
fn named_paths(info: &[u8]) -> impl Iterator<Item = StorePathHash> {
    #[derive(Default, Deserialize)]
    struct Named {
        store_path_hash: Option<String>,
        store_path: Option<String>,
    }
    let Named { store_path_hash, store_path } = serde_json::from_slice(info).unwrap_or_default();
    let of_path = store_path.and_then(|path| {
        let (_, base_name) = path.rsplit_once('/')?;
        Some(base_name.split_once('-')?.0.to_owned())
    });
    store_path_hash.into_iter().chain(of_path).filter_map(|hash| hash.parse().ok())
}

fn result(session: &PushSession, path: &ChunkedPath, outcome: PathOutcome) -> CommitResult {
    match outcome {
        PathOutcome::Committed(committed) => {
            let (cache, size_bytes) = (session.cache(), path.nar_size);
            if committed.is_kept {
                log_kept(cache, &path.object.path, &path.nar_hash);
            } else {
                tracing::info!(cache.name = cache.name, path = %path.object.path, size_bytes, "took a store path by chunks");
            }
            CommitResult::Committed(describe(&committed))
        }
        PathOutcome::Verifying => CommitResult::Verifying,
        PathOutcome::Waiting => CommitResult::Waiting,
        PathOutcome::Missing(chunks) => CommitResult::Missing { chunks },
        PathOutcome::Failed(error) => {
            CommitResult::Failed { error: Failure::Engine(dormer_engine::Error::CheckFailed(error)).body() }
        }
    }
}

fn describe(committed: &CommittedPath) -> UploadPathResult {
    let (kind, frac_deduplicated) = match committed.deduplication {
        Deduplication::Whole => (UploadPathResultKind::Deduplicated, Some(1.0)),
        Deduplication::Part(part) => (UploadPathResultKind::Uploaded, Some(part)),
        Deduplication::Untold => (UploadPathResultKind::Uploaded, None),
    };
    UploadPathResult {
        kind,
        file_size: Some(committed.file_size),
        frac_deduplicated,
        kept: committed.is_kept,
    }
}
