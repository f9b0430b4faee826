//! The small documents of the binary-cache protocol: cache descriptions, narinfos, listings, build
//! logs, build traces and debug info.

use std::io;

use dormer_api::{CacheName, Permission};
use dormer_edge::document_type;
use dormer_nix::{CacheInfo, DocumentName, StorePathHash};
use futures::{StreamExt as _, TryStreamExt as _};
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
    let open = async || app.engine.listing(&cache, hash).await?.ok_or(Failure::NoSuchObject);
    let mut listing = open().await?;
    let mut length = listing.size;
    if !call.is_head() && !listing.is_in_chunks {
        let json = listing.try_next().await?.unwrap_or_default();
        return Ok(body::document("application/json", json));
    }
    let path = *hash;
    let log = move |error: &dormer_engine::Error| {
        tracing::error!(path = %path, error = %error, "cut a listing short");
    };
    let mut response = if call.is_head() {
        Response::new(Body::Unknown)
    } else {
        // A request that waits for its turn holds no bytes.
        drop(listing);
        let turn = app.file_turn(call).await?;
        let others_wait = turn.others_wait();
        listing = open().await?;
        length = listing.size;
        let pieces = listing.inspect_err(log).map_err(io::Error::other).inspect(move |_| {
            // The turn lasts as long as the answer.
            let _ = &turn;
        });
        let mut response = Response::new(Body::Stream(Box::pin(pieces)));
        response.extensions_mut().insert(others_wait);
        response
    };
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
    let bytes = {
        let is_log = matches!(name, DocumentName::Log(_));
        let _turn = if is_log { Some(app.decoding_turn(call).await?) } else { None };
        app.engine.document(&cache, name).await?.ok_or(Failure::NoSuchObject)?
    };
    let mut response = body::document(document_type(name), bytes);
    // A log holds whatever a build printed, and a browser shows it.
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}
