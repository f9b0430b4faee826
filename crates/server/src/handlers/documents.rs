//! The small documents of the binary-cache protocol: cache descriptions, narinfos, listings, build
//! logs, build traces and debug info.

use std::io;

use dormer_api::{CacheName, Permission};
use dormer_edge::document_type;
use dormer_nix::{CacheInfo, DocumentName, StorePathHash};
use futures::TryStreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;

/// `nix-cache-info`.
pub(crate) async fn nix_cache_info(
    app: &App,
    call: &Call,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let info = CacheInfo {
        store_dir: Some(cache.store_dir.clone()),
        want_mass_query: Some(true),
        priority: Some(cache.priority),
    };
    Ok(body::document("text/x-nix-cache-info", info.to_string()))
}

/// A narinfo. A hit may be 5 s old, a miss never is.
pub(crate) async fn find_narinfo(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let text = app.engine.narinfo(&cache, hash).await?.ok_or(Failure::NoSuchObject)?;
    Ok(body::document("text/x-nix-narinfo", text))
}

/// A NAR's listing, as it was written down when the NAR came.
pub(crate) async fn find_listing(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let listing = app.engine.listing(&cache, hash).await?.ok_or(Failure::NoSuchObject)?;
    let length = listing.size;
    let path = *hash;
    let log = move |error: &dormer_engine::Error| {
        tracing::error!(path = %path, error = %error, "cut a listing short");
    };
    let pieces = listing.inspect_err(log).map_err(io::Error::other);
    let body = if call.is_head() { Body::Unknown } else { Body::Stream(Box::pin(pieces)) };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// A build log, a build trace, or debug info.
pub(crate) async fn find_document(
    app: &App,
    call: &Call,
    cache: &CacheName,
    name: &DocumentName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, cache, Permission::Pull).await?;
    let bytes = app.engine.document(&cache, name).await?.ok_or(Failure::NoSuchObject)?;
    let mut response = body::document(document_type(name), bytes);
    // A log holds whatever a build printed, and a browser shows it.
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}
