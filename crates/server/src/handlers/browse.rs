//! `/_api/v2/`: looking into a cache. What a cache says of one path, what refers to it, which paths
//! have a name, and one file out of a path.
//!
//! A reader of a cache may ask about a path that it can name. Lists name paths that it cannot, so
//! they are for the cache's owner.

use std::io;
use std::ops::Range;

use bytes::{Buf as _, Bytes};
use dormer_api::v2::{
    ClosureEntry, ListObjectsResponse, ListReferrersResponse, ObjectResponse, SortObjects, name_fits,
};
use dormer_api::{CacheName, Permission};
use dormer_engine::Closure;
use dormer_index::{Cache, NarQuery};
use dormer_nix::nar::{ListedNode, ListingSearch};
use dormer_nix::{NarHash, NarInfo, StorePath, StorePathHash, with_causes};
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::codec::Compression;
use crate::conditions::{self, Wanted};
use crate::decoder::Decoder;
use crate::failure::Failure;
use crate::handlers::checks::{bad_request, store_dir};
use crate::handlers::nar::end_of_answer;
use crate::handlers::retention::{page_of_objects, read_place, write_place};
use crate::shares::Share;

/// Most paths of a closure that are counted: three look-ups in the index.
const CLOSURE_PATHS_MAX: usize = 8_192;

/// Referrers in one answer.
const REFERRERS_PAGE: u32 = 1_000;

/// Longest text to search for, in bytes: longer than the longest name.
pub(super) const QUERY_BYTES_MAX: usize = 300;

/// Most pages of objects that one request with a name looks through.
const SEARCHED_PAGES: usize = 10;

pub(super) const OWNER: [Permission; 2] = [Permission::ConfigureCacheRetention, Permission::Delete];

/// What the cache says of a path.
pub(crate) async fn find_object(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    // A request that waits holds no narinfo: one may have thousands of references.
    let _turn = app.search_turn(call).await?;
    let text = app.engine.narinfo(&cache, hash).await?.ok_or(Failure::NoSuchObject)?;
    let store_dir = store_dir(&cache)?;
    let corrupt = |what: String| dormer_index::Error::Corrupt { table: "objects", what };
    let narinfo = std::str::from_utf8(&text)
        .map_err(|error| corrupt(error.to_string()))
        .and_then(|text| NarInfo::parse(text, &store_dir).map_err(|error| corrupt(with_causes(&error))))
        .map_err(dormer_engine::Error::from)?;
    let closure = look_through_closure(app, &cache, &narinfo.store_path).await?;
    let own = app.permissions(call, name);
    let referrers = if OWNER.into_iter().any(|permission| own.allows(permission)) {
        Some(page_of_referrers(app, &cache, hash, None).await?)
    } else {
        None
    };
    let (referrers, next_referrers) = referrers.map(|page| (page.referrers, page.next)).unzip();
    let object = ObjectResponse {
        store_path: narinfo.store_path.to_string(),
        url: narinfo.url,
        compression: narinfo.compression,
        file_size: narinfo.file_size,
        nar_hash: format!("sha256:{}", narinfo.nar_hash.to_nix32()),
        nar_size: narinfo.nar_size,
        references: narinfo.references.iter().map(StorePath::to_string).collect(),
        deriver: narinfo.deriver.map(|path| path.to_string()),
        system: narinfo.system,
        ca: narinfo.ca,
        signatures: narinfo.sigs,
        extra: narinfo.extra.into_iter().collect(),
        closure: ClosureEntry {
            paths: closure.paths,
            nar_size: closure.nar_bytes,
            missing: closure.missing.paths.len() as u64,
            complete: closure.missing.is_complete,
        },
        referrers,
        next_referrers: next_referrers.flatten(),
    };
    Ok(body::json(StatusCode::OK, &object))
}

/// Walks through the closure of a path. Anybody may ask for that, and it takes up to 64 look-ups,
/// so the request holds a search turn.
pub(super) async fn look_through_closure(
    app: &App,
    cache: &Cache,
    path: &StorePath,
) -> Result<Closure, Failure> {
    Ok(app.engine.closure(cache, path, CLOSURE_PATHS_MAX).await?)
}

/// A page of what refers to a path.
pub(crate) async fn list_referrers(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache_for_any(call, name, &OWNER).await?;
    let after = call.query("after").map(str::parse::<StorePathHash>).transpose().map_err(bad_request)?;
    Ok(body::json(StatusCode::OK, &page_of_referrers(app, &cache, hash, after.as_ref()).await?))
}

async fn page_of_referrers(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
    after: Option<&StorePathHash>,
) -> Result<ListReferrersResponse, Failure> {
    let found = app.engine.index().list_referrers(cache.id, hash, after, REFERRERS_PAGE).await;
    let found = found.map_err(dormer_engine::Error::from)?;
    let next = found.last().filter(|_| found.len() == REFERRERS_PAGE as usize).map(StorePath::hash);
    Ok(ListReferrersResponse { referrers: found.iter().map(StorePath::to_string).collect(), next })
}

/// A page of the objects with a name, in the order that the caller wants. No index has names in
/// that order, so a request looks through some thousand objects, and its answer may be short:
/// `next` says whether there is more to look through.
pub(crate) async fn list_objects(
    app: &App,
    call: &Call,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache_for_any(call, name, &OWNER).await?;
    let sort = match call.query("sort") {
        None | Some("used") => SortObjects::Used,
        Some("age") => SortObjects::Age,
        Some("size") => SortObjects::Size,
        Some(_) => return Err(Failure::BadRequest("`sort` is none of used, age and size".to_owned())),
    };
    let pattern = match call.query("name").map(dormer_edge::decode_file_path) {
        None => None,
        Some(names) => match names.as_deref() {
            Some([pattern]) if pattern.len() <= QUERY_BYTES_MAX => Some(pattern.clone()),
            Some([_]) => {
                return Err(Failure::BadRequest(format!("`name` is longer than {QUERY_BYTES_MAX} bytes")));
            }
            _ => return Err(Failure::BadRequest("`name` is no pattern of names".to_owned())),
        },
    };
    let mut after = call.query("after").map(read_place).transpose()?;
    // A page is cheap; a search reads thousands of rows, so callers take turns.
    let _turn = if pattern.is_some() { Some(app.search_turn(call).await?) } else { None };
    let mut objects = Vec::new();
    for _ in 0..SEARCHED_PAGES {
        let (page, next) = page_of_objects(app, cache.id, sort, after).await?;
        objects.extend(page.into_iter().filter(|object| {
            let name = object.store_path.split_once('-').map_or("", |(_, name)| name);
            pattern.as_ref().is_none_or(|pattern| name_fits(pattern, name))
        }));
        after = next;
        // A page more would make the answer twice as long as a page.
        if after.is_none() || pattern.is_none() || objects.len() >= 1_000 {
            break;
        }
    }
    Ok(body::json(StatusCode::OK, &ListObjectsResponse { objects, next: after.map(write_place) }))
}

/// One file out of a path, or a range of it: the frames that hold it are read and decoded, and
/// nothing before them.
pub(crate) async fn get_file(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let names = call.file_names();
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let turn = app.search_turn(call).await?;
    let (nar, search) = search_listing(app, &cache, hash, ListingSearch::new(names)).await?;
    drop(turn);
    let is_none = |what: &str| Failure::BadRequest(format!("{} is {what}", names.join("/")));
    let (size, start) = match search.finish() {
        Some(ListedNode::File { size, nar_offset, .. }) => (size, nar_offset),
        Some(ListedNode::Directory) => return Err(is_none("a folder")),
        Some(ListedNode::Symlink(target)) => return Err(is_none(&format!("a link to {target}"))),
        None => return Err(Failure::NoSuchObject),
    };
    // The bytes of a NAR never change, and a file lies in one place of it.
    let etag = format!("\"{}-{start}\"", nar.to_nix32());
    // Ranges are defined for GET only.
    let wanted = if call.is_head() { Wanted::Whole } else { conditions::wanted(call.headers(), &etag, size) };
    let part = match wanted {
        Wanted::Whole => None,
        Wanted::Part(part) => Some(part),
        Wanted::Outside => return Err(Failure::RangeOutside { size }),
    };
    let Range { start: skipped, end } = part.clone().unwrap_or(0..size);
    let length = end - skipped;
    let mut response = if call.is_head() || size == 0 {
        Response::new(if call.is_head() { Body::Unknown } else { Body::Full(None) })
    } else {
        let turn = app.file_turn(call).await?;
        let others_wait = turn.others_wait();
        let pieces = file_pieces(app, turn, &cache, nar, start + skipped, length).await?;
        let mut response = Response::new(Body::Stream(Box::pin(pieces)));
        response.extensions_mut().insert(others_wait);
        response
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(ETAG, HeaderValue::try_from(etag).expect("a hash and a number are fit for a header"));
    // A file holds whatever a build made, and no browser may take it for a page.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if part.is_some() {
        let value = HeaderValue::try_from(format!("bytes {skipped}-{}/{size}", end - 1));
        headers.insert(CONTENT_RANGE, value.expect("digits are fit for a header"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Looks through the listing of a path, in jobs of the CPU pool: a listing may have 64 MiB. Returns
/// the NAR that it lists. The request holds a search turn.
pub(super) async fn search_listing(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
    mut search: ListingSearch,
) -> Result<(NarHash, ListingSearch), Failure> {
    let mut listing = app.engine.listing(cache, hash).await?.ok_or(Failure::NoSuchObject)?;
    let nar = listing.nar;
    while let Some(piece) = listing.try_next().await? {
        let job = move || (search.feed(&piece), search);
        let has_ended;
        (has_ended, search) = app.engine.cpu().run(job).await;
        if has_ended {
            break;
        }
    }
    Ok((nar, search))
}

/// Bytes of a NAR, uncompressed, from a place on. The stream holds its turn.
pub(super) async fn file_pieces(
    app: &App,
    turn: Share,
    cache: &Cache,
    nar: NarHash,
    start: u64,
    size: u64,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, Failure> {
    let end = start.checked_add(size).ok_or(Failure::NoSuchObject)?;
    let open = app.engine.open_nar(cache, &NarQuery::Hash(nar)).await?.ok_or(Failure::NoSuchObject)?;
    let part = open.stream_part(Range { start, end }).await?;
    let log = move |error: &dormer_engine::Error| {
        tracing::error!(nar.hash = %nar, error = %error, "cut a file short");
    };
    let frames = part.frames.inspect_err(log).map_err(io::Error::other);
    let limit = Compression::Zstd.decoder_bytes(&[])?;
    let decoder = Decoder::of(Compression::Zstd, frames.boxed(), limit, app.engine.cpu());
    let is_in_time = end_of_answer(size);
    Ok(part_of(decoder.into_stream().boxed(), part.skip, size).and_then(move |piece| {
        // The turn lasts as long as the answer.
        let _ = &turn;
        future::ready(is_in_time().map(|()| piece))
    }))
}

/// So many bytes of a stream after the first ones. It fails if there are fewer.
fn part_of(
    stream: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    skip: u64,
    take: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((stream, skip, take), async |(mut stream, mut skip, left)| {
        if left == 0 {
            return Ok(None);
        }
        loop {
            let Some(mut piece) = stream.try_next().await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let skipped = usize::try_from(skip).map_or(piece.len(), |skip| skip.min(piece.len()));
            piece.advance(skipped);
            skip -= skipped as u64;
            if piece.is_empty() {
                continue;
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            let left = left - piece.len() as u64;
            return Ok(Some((piece, (stream, skip, left))));
        }
    })
}
