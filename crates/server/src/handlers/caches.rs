//! `/_api/v2/`: requests that Attic's API lacks.

use dormer_api::v2::{CacheEntry, ListCachesResponse, PURGED_PATHS_MAX, PurgesResponse, RemovePathResponse};
use dormer_api::{CacheName, Permission, routes};
use dormer_index::{Cache, PurgeCounts, RemovedForCause};
use dormer_nix::StorePathHash;
use http::header::AUTHORIZATION;
use http::{Response, StatusCode};

use crate::access::{known_caches, selection};
use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::checks::{bad_request, retention_period, store_dir};

/// Most caches in one answer.
const PAGE_CACHES: u32 = 100;

/// The caches that the caller may know of, in pages: public ones, and those on which the token has
/// any permission. An invalid token is refused, although none is needed: its caller wants to know,
/// and `dormer login` asks here.
pub(crate) async fn list_caches(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    let claims = app.claims(call);
    if claims.is_none() && call.headers().contains_key(AUTHORIZATION) {
        return Err(Failure::Unauthorized);
    }
    let after = call.query("after").map(str::parse::<CacheName>).transpose().map_err(bad_request)?;
    let after = after.map_or_else(String::new, |name| name.to_string());
    let known = known_caches(claims.as_deref());
    let page = app.engine.list_caches_after(&after, selection(&known), PAGE_CACHES).await?;
    let is_last = page.len() < PAGE_CACHES as usize;
    let entries = page.into_iter().map(|cache| entry(cache.name.parse().map_err(bad_request)?, cache));
    let caches = entries.collect::<Result<Vec<_>, Failure>>()?;
    let next = caches.last().filter(|_| !is_last).map(|entry| entry.name.clone());
    Ok(body::json(StatusCode::OK, &ListCachesResponse { caches, next }))
}

fn entry(name: CacheName, cache: Cache) -> Result<CacheEntry, Failure> {
    Ok(CacheEntry {
        name,
        is_public: cache.is_public,
        store_dir: store_dir(&cache)?,
        priority: cache.priority,
        retention_period: retention_period(&cache),
        public_keys: cache.keys.into_iter().filter(|key| key.active).map(|key| key.public_key).collect(),
        upstream_cache_key_names: cache.upstream_cache_key_names,
    })
}

/// Whether the bytes are to go too, without their grace.
pub(super) fn wants_bytes_gone(call: &Call) -> Result<bool, Failure> {
    match call.query("now") {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Failure::BadRequest("`now` is neither true nor false".to_owned())),
    }
}

/// The paths that the query names, if it names any.
fn named_paths(call: &Call) -> Result<Option<Vec<StorePathHash>>, Failure> {
    let Some(text) = call.query(routes::PATHS_QUERY) else { return Ok(None) };
    let paths = text.split(',').map(str::parse).collect::<Result<Vec<_>, _>>().map_err(bad_request)?;
    if paths.len() > PURGED_PATHS_MAX {
        return Err(Failure::BadRequest(format!("`paths` are more than {PURGED_PATHS_MAX}")));
    }
    Ok(Some(paths))
}

/// How much of removed paths is still to be removed from the store: of the paths that the query
/// names, or of all.
pub(crate) async fn count_purges(
    app: &App,
    call: &Call,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Delete).await?;
    let paths = named_paths(call)?;
    let counts = app.engine.index().count_purges(cache.id, paths.as_deref()).await;
    let PurgeCounts { waiting, untried } = counts.map_err(dormer_engine::Error::from)?;
    Ok(body::json(StatusCode::OK, &PurgesResponse { waiting, untried }))
}

/// Removes one store path from a cache at once.
pub(crate) async fn remove_object(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Delete).await?;
    let claims = app.claims(call);
    let subject = claims.as_ref().and_then(|claims| claims.sub.as_deref());
    let purge = wants_bytes_gone(call)?;
    let RemovedForCause { was_there: removed, had_log: removed_log, is_purged: purging } = if purge {
        app.engine.purge_object(&cache, hash, subject).await?
    } else {
        app.engine.remove_object(&cache, hash, subject).await?
    };
    if removed || purging {
        tracing::info!(cache.name = %name, object.hash = %hash, purge, "removed a store path");
    }
    if removed_log {
        tracing::info!(cache.name = %name, object.hash = %hash, "removed the build log of a derivation");
    }
    let purging = purge.then_some(purging);
    Ok(body::json(StatusCode::OK, &RemovePathResponse { removed, removed_log, purging }))
}
