//! The write half of the binary-cache protocol, as `nix copy --to http://…` speaks it.

use std::io;

use dormer_api::{CacheName, Permission};
use dormer_engine::IngestRequest;
use dormer_format::STEP_OUTPUT_BYTES;
use dormer_index::{CommitOutcome, Object, TraceOutcome};
use dormer_nix::{BUILD_TRACE_BYTES_MAX, BuildTrace, CacheInfo, DocumentName, NarInfo, StorePathHash};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::codec::{self, Compression, WindowTooLarge};
use crate::conditions;
use crate::decoder::{Decoder, Input};
use crate::failure::Failure;
use crate::handlers::checks::{bad_request, check_fields, check_signatures, log_kept, store_dir};
use crate::handlers::small_body::{self, Buffered, decoding_failure};
use crate::request_body::RequestBody;
use crate::route::NarFile;

/// Most memory for decoding a NAR that has a `Content-Encoding` too, in bytes: the default of every
/// format. It is taken before the NAR's head is known.
const CODED_DECODER_BYTES_MAX: u64 = 12 * 1024 * 1024;

/// The server writes `nix-cache-info` itself. A client that agrees with it gets 200.
pub(crate) async fn put_cache_info(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Push).await?;
    let Buffered { value: text, memory: _memory } =
        small_body::read_text(app, call, body, "nix-cache-info").await?;
    match CacheInfo::parse(text.as_bytes()).store_dir {
        Some(store_dir) if store_dir == cache.store_dir => Ok(body::empty()),
        Some(store_dir) => Err(Failure::BadRequest(format!(
            "this cache holds paths of {}, not of {store_dir:?}",
            cache.store_dir
        ))),
        None => Err(Failure::BadRequest("nix-cache-info without StoreDir".to_owned())),
    }
}

/// A NAR, compressed or not. It becomes visible with its narinfo; until then its name is an upload
/// alias.
pub(crate) async fn put_nar(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    file: NarFile<'_>,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Push).await?;
    let NarFile::Upload(file_name) = file else {
        return Err(Failure::BadRequest(
            "this name is the server's own: name NARs by the hash of the file".to_owned(),
        ));
    };
    let coding = small_body::content_encoding(call)?;
    let _turn = app.admit_upload(call, body).await?;
    // Bytes that do not compress grow by less than a sixteenth in any of the formats. The limit
    // also ends bodies that decode to nothing.
    let nar_bytes_max = app.engine.settings().nar_bytes_max;
    body.limit(nar_bytes_max.saturating_add(nar_bytes_max / 16 + 1024 * 1024))?;
    let cpu = app.engine.cpu();
    let input: Input<'_> = body.map_err(io::Error::from).boxed();
    let fail_coding = |error| decoding_failure(coding, error);
    let known = |head: &[u8]| {
        let unknown = || Failure::UnknownCompression { file_name: file_name.to_owned() };
        Compression::of_upload(file_name, head).ok_or_else(unknown)
    };

    // The upload takes the memory of its decoders before the first of them begins.
    let (head, input) = codec::peek(input).await.map_err(fail_coding)?;
    let coding_bytes = small_body::content_decoder_bytes(coding, &head)?;
    let decoder_bytes_max = match coding {
        Compression::None => known(&head)?.decoder_bytes(&head)?,
        _ => CODED_DECODER_BYTES_MAX,
    };
    let request = IngestRequest {
        store_dir: cache.store_dir.clone(),
        expected: None,
        extra_memory_bytes: coding_bytes + decoder_bytes_max + 2 * STEP_OUTPUT_BYTES as u64,
    };
    let (mut ingest, _share) = app.begin_ingest(call, request, None).await?;
    let input = Decoder::of(coding, input, coding_bytes, cpu).into_stream().boxed();
    let (head, input) = codec::peek(input).await.map_err(fail_coding)?;
    let compression = known(&head)?;
    let decoder_bytes = compression.decoder_bytes(&head)?;
    if decoder_bytes > decoder_bytes_max {
        return Err(WindowTooLarge(decoder_bytes).into());
    }
    let fail = |error| decoding_failure(compression, error);
    let mut decoder = Decoder::of(compression, input, decoder_bytes, cpu);
    while let Some(piece) = decoder.next().await.map_err(fail)? {
        ingest.write(&piece).await?;
    }
    let ingested = ingest.finish().await?;
    let nar_hash = ingested.nar_hash;
    let (size_bytes, new_bytes) = (ingested.nar_size, ingested.new_chunk_bytes);
    app.engine.commit_alias(&cache, ingested, file_name, compression.name()).await?;
    tracing::info!(cache.name = cache.name, nar.hash = %nar_hash, size_bytes, new_bytes, "took a NAR");
    Ok(body::empty())
}

/// A narinfo: makes the NAR that it names visible as a store path.
pub(crate) async fn put_narinfo(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Push).await?;
    app.admit_push(call, body)?;
    let Buffered { value: text, memory: _memory } =
        small_body::read_text(app, call, body, "the narinfo").await?;
    let narinfo = NarInfo::parse(&text, &store_dir(&cache)?).map_err(bad_request)?;
    if narinfo.store_path.hash() != *hash {
        return Err(Failure::BadRequest(format!(
            "the narinfo is of {}, but was put as {hash}",
            narinfo.store_path
        )));
    }
    let file_name = narinfo.url.strip_prefix("nar/").filter(|file_name| !file_name.contains('/'));
    let Some(file_name) = file_name else {
        return Err(Failure::BadRequest(format!(
            "the narinfo's URL {:?} is not of the form nar/<file>",
            narinfo.url
        )));
    };
    if let Some(alias) = app.engine.find_alias(&cache, file_name).await?
        && alias.compression != narinfo.compression
    {
        return Err(Failure::BadRequest(format!(
            "the narinfo says compression {}, but {file_name} came as {}",
            narinfo.compression, alias.compression
        )));
    }
    check_fields(&narinfo)?;
    check_signatures(&narinfo.sigs)?;
    let object = Object {
        path: narinfo.store_path.clone(),
        references: narinfo.references,
        deriver: narinfo.deriver.map(|deriver| deriver.to_string()),
        ca: narinfo.ca,
        sigs: narinfo.sigs,
        system: narinfo.system,
        extra: narinfo.extra,
    };
    let outcome =
        app.engine.commit_narinfo(&cache, file_name, &narinfo.nar_hash, narinfo.nar_size, object).await?;
    let path = &narinfo.store_path;
    match outcome {
        CommitOutcome::Committed(_) => {
            tracing::info!(cache.name = cache.name, path = %path, "took a store path");
        }
        CommitOutcome::Kept => log_kept(&cache, path, &narinfo.nar_hash),
    }
    Ok(body::empty())
}

/// Reads and drops a listing: the server writes each NAR's listing itself, from the NAR.
pub(crate) async fn put_listing(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    app.open_cache(call, name, Permission::Push).await?;
    app.admit_push(call, body)?;
    body.limit(app.engine.settings().listing_bytes_max as u64)?;
    while body.next().await?.is_some() {}
    Ok(body::empty())
}

/// Largest link to debug info that is taken, in bytes. Nix sends some 200.
const DEBUG_LINK_BYTES_MAX: u64 = 64 * 1024;

/// A build log takes the place of the one that is there, unless `If-None-Match: *` keeps that one.
/// A build trace adds its signatures to the one that is there; one with another path changes
/// nothing, and the answer says so, unless the cache has that path and lacks the first. A link to
/// debug info is read and dropped.
pub(crate) async fn put_document(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    cache: &CacheName,
    name: DocumentName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, cache, Permission::Push).await?;
    app.admit_push(call, body)?;
    match name {
        DocumentName::Log(derivation) => {
            let max = app.settings.log_bytes_max;
            let Buffered { value: log, memory: _memory } =
                small_body::read(app, call, body, "the build log", max).await?;
            let (size_bytes, path) = (log.len(), derivation.clone());
            if !conditions::wants_new_place(call.headers()) {
                app.engine.put_log(&cache, derivation, log).await?;
            } else if !app.engine.add_log(&cache, derivation, log).await? {
                return Err(Failure::PlaceTaken);
            }
            tracing::info!(cache.name = cache.name, %path, size_bytes, "took a build log");
        }
        // The server finds the debug files of a NAR itself, and links to its own names.
        DocumentName::DebugInfo(_) => {
            body.limit(DEBUG_LINK_BYTES_MAX)?;
            while body.next().await?.is_some() {}
        }
        DocumentName::Trace(key) => {
            let Buffered { value: json, memory: _memory } =
                small_body::read(app, call, body, "the build trace", BUILD_TRACE_BYTES_MAX).await?;
            let trace = BuildTrace::parse(&key, &json).map_err(bad_request)?;
            check_signatures(&trace.sigs)?;
            let (name, path) = (DocumentName::Trace(key), trace.out_path.clone());
            match app.engine.put_trace(&cache, trace).await? {
                TraceOutcome::Written => {
                    tracing::info!(cache.name = cache.name, document = %name, %path, "took a build trace");
                }
                TraceOutcome::Unchanged => {}
                TraceOutcome::Kept(first) => {
                    tracing::warn!(
                        cache.name = cache.name, document = %name, %path, kept = %first,
                        "kept the build trace that was here first: the new one has another path"
                    );
                    let said = format!("kept: this output is {first} here, not {path}\n");
                    return Ok(crate::body::text(StatusCode::OK, said));
                }
                TraceOutcome::Full => {
                    tracing::warn!(
                        cache.name = cache.name, document = %name, %path,
                        "left out a build trace: its path has 1,024"
                    );
                    let said = format!("left out: there is no room for more build traces of {path}\n");
                    return Ok(crate::body::text(StatusCode::OK, said));
                }
            }
        }
    }
    Ok(body::empty())
}
