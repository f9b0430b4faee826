//! Sending NARs.
//!
//! Bytes under a name never change: Nix resumes without `If-Range`, and CDNs join ranges. So the
//! server answers and offers ranges only under the name with the present encoding tag. Other names
//! of a NAR get the present bytes whole.

use std::future::ready;
use std::io;
use std::time::{Duration, Instant};

use dormer_api::{CacheName, Permission};
use dormer_edge::AnswerKind;
use dormer_engine::OpenNar;
use dormer_format::EncodingTag;
use dormer_index::{Cache, NarQuery};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Response, StatusCode};
use tokio_util::io::StreamReader;

use crate::app::App;
use crate::body::{Body, NarBody};
use crate::call::Call;
use crate::codec::Compression;
use crate::conditions::{self, Wanted};
use crate::decoder::Decoder;
use crate::exact::Exact;
use crate::failure::Failure;
use crate::reencode::reencode;
use crate::route::NarFile;

const NAR_TYPE: HeaderValue = HeaderValue::from_static("application/x-nix-nar");

/// How long the answer with a re-encoded NAR may take: a minute, and as long as a reader of 256
/// KiB/s takes for the NAR. A slower reader would keep its turn from the pushers that wait for one.
const REENCODING_GRACE: Duration = Duration::from_mins(1);
const REENCODING_BYTES_PER_SECOND_MIN: u64 = 256 * 1024;

/// A NAR by any of its names.
pub(crate) async fn get_nar(
    app: &App,
    call: &Call,
    name: &CacheName,
    file: NarFile<'_>,
) -> Result<Response<Body>, Failure> {
    let (key, tag) = match file {
        NarFile::Encoded(hash, tag) => (NarQuery::Hash(hash), Some(tag)),
        NarFile::StorePath(hash) => (NarQuery::StorePath(hash), None),
        NarFile::Upload(file_name) => return get_upload(app, call, name, file_name).await,
    };
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let open = app.engine.open_nar(&cache, &key).await?.ok_or(Failure::NoSuchObject)?;
    let response = stored(call, open, tag).await?;
    // A download that goes on somewhere behind its first byte was counted when it began.
    let range = response.headers().get(CONTENT_RANGE);
    let begins = range.is_none_or(|range| range.as_bytes().starts_with(b"bytes 0-"));
    if begins && matches!(response.body(), Body::Nar(_)) {
        app.engine.note_pull(&cache);
    }
    Ok(response)
}

/// The bytes as they are stored. `named` is the tag in the name, if there is one.
async fn stored(call: &Call, open: OpenNar, named: Option<EncodingTag>) -> Result<Response<Body>, Failure> {
    let is_present_name = named == Some(open.tag());
    let etag = format!("\"{}\"", open.tag());
    let etag_value = HeaderValue::try_from(&etag).expect("tags are letters and digits");
    if conditions::has_it_already(call.headers(), &etag) {
        let mut response = Response::new(Body::Full(None));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(ETAG, etag_value);
        mark(&mut response, is_present_name);
        return Ok(response);
    }
    let size = open.file_size();
    // Ranges are defined for GET only.
    let wanted = if call.is_head() { Wanted::Whole } else { conditions::wanted(call.headers(), &etag, size) };
    if wanted != Wanted::Whole && !is_present_name {
        return Err(Failure::RangeOfOldName);
    }
    let part = match wanted {
        Wanted::Whole => None,
        Wanted::Part(part) => Some(part),
        Wanted::Outside => return Err(Failure::RangeOutside { size }),
    };
    let length = part.as_ref().map_or(size, |part| part.end - part.start);
    let nar_hash = open.hash();
    let body = if call.is_head() {
        open.prove().await?;
        Body::Unknown
    } else {
        let stream = open.stream(part.clone()).await?;
        Body::Nar(Box::new(NarBody { stream, left: length, nar_hash }))
    };
    let mut response = Response::new(body);
    mark(&mut response, is_present_name);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, NAR_TYPE);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ETAG, etag_value);
    if is_present_name {
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if let Some(part) = part {
        let value = HeaderValue::try_from(format!("bytes {}-{}/{size}", part.start, part.end - 1));
        headers.insert(CONTENT_RANGE, value.expect("digits are fit for a header"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Marks an answer under the name whose bytes never change: caches may keep it.
fn mark(response: &mut Response<Body>, is_present_name: bool) {
    if is_present_name {
        response.extensions_mut().insert(AnswerKind::CurrentNar);
    }
}

/// A NAR by the name of its upload. The pusher's Nix remembers that name for 30 days and expects
/// the compression that the name says. HEAD tells a pusher that it need not upload.
async fn get_upload(
    app: &App,
    call: &Call,
    name: &CacheName,
    file_name: &str,
) -> Result<Response<Body>, Failure> {
    if call.is_head() {
        let readers_and_writers = [Permission::Pull, Permission::Push];
        let cache = app.open_cache_for_any(call, name, &readers_and_writers).await?;
        app.engine.find_alias(&cache, file_name).await?.ok_or(Failure::NoSuchObject)?;
        let mut response = Response::new(Body::Unknown);
        response.headers_mut().insert(CONTENT_TYPE, NAR_TYPE);
        return Ok(response);
    }
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let (compression, open) = open_upload(app, &cache, file_name).await?;
    if compression == Compression::Zstd {
        // What is stored is zstd, if not the very frames that were uploaded.
        return stored(call, open, None).await;
    }
    // Compressing costs CPU, and only the pusher's own Nix asks by this name.
    if app.claims(call).is_none() {
        return Err(Failure::Unauthorized);
    }
    let size = open.size();
    let turn = app.reencoding_turn(call).await?;
    let others_wait = turn.others_wait();
    let nar_hash = open.hash();
    let log = move |error: &dormer_engine::Error| {
        tracing::error!(nar.hash = %nar_hash, error = %error, "cut an answer short");
    };
    let frames = open.stream(None).await?.inspect_err(log).map_err(io::Error::other);
    let limit = Compression::Zstd.decoder_bytes(&[])?;
    let decoder = Decoder::of(Compression::Zstd, frames.boxed(), limit, app.engine.cpu());
    // An answer without a length must not end as if it were whole when it is not.
    let nar = Exact::new(StreamReader::new(decoder.into_stream().boxed()), size);
    let is_in_time = end_of_answer(size);
    let pieces = reencode(nar, compression).and_then(move |piece| {
        // The turn lasts as long as the answer.
        let _ = &turn;
        ready(is_in_time().map(|()| piece))
    });
    let mut response = Response::new(Body::Stream(Box::pin(pieces)));
    response.extensions_mut().insert(others_wait);
    response.headers_mut().insert(CONTENT_TYPE, NAR_TYPE);
    if compression == Compression::None {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok(response)
}

/// Says whether an answer of so many bytes, which begins now and holds a turn, may still go on.
pub(super) fn end_of_answer(size: u64) -> impl Fn() -> io::Result<()> {
    let end = Instant::now() + REENCODING_GRACE + Duration::from_secs(size / REENCODING_BYTES_PER_SECOND_MIN);
    move || if Instant::now() > end { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

async fn open_upload(app: &App, cache: &Cache, file_name: &str) -> Result<(Compression, OpenNar), Failure> {
    let (compression, open) = app.engine.open_alias(cache, file_name).await?.ok_or(Failure::NoSuchObject)?;
    let compression = Compression::from_name(&compression).ok_or(Failure::NoSuchObject)?;
    Ok((compression, open))
}
