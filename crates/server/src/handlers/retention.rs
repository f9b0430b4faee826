//! `/_api/v2/`: what is in a cache, and what keeps it there.

use dormer_api::v2::{
    AddPinRequest, AddPinResponse, ListObjectsRequest, ListObjectsResponse, ListPinsRequest,
    ListPinsResponse, ObjectEntry, PinEntry, RemovePinsResponse, RemoveReferrersResponse, SortObjects,
};
use dormer_api::{CacheName, Permission, PinName};
use dormer_index::{CacheId, ObjectOrder, ObjectPlace, Pin};
use dormer_nix::{StorePath, StorePathHash};
use http::{Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::caches::wants_bytes_gone;
use crate::handlers::checks::bad_request;
use crate::handlers::small_body::{Buffered, read_json};
use crate::request_body::RequestBody;

/// Objects or pins in one answer.
const PAGE: u32 = 1_000;

/// Lists a page of what is in a cache. A listing names every path, which a reader of a public cache
/// does not learn: so it needs a permission of the cache's owner.
pub(crate) async fn list_objects(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let owner = [Permission::ConfigureCacheRetention, Permission::Delete];
    let cache = app.open_cache_for_any(call, name, &owner).await?;
    let Buffered::<ListObjectsRequest> { value: request, memory: _memory } =
        read_json(app, call, body).await?;
    let after = request.after.as_deref().map(read_place).transpose()?;
    let (objects, next) = page_of_objects(app, cache.id, request.sort, after).await?;
    let next = next.map(write_place);
    Ok(body::json(StatusCode::OK, &ListObjectsResponse { objects, next }))
}

/// A page of objects, and where the next one begins.
pub(super) async fn page_of_objects(
    app: &App,
    cache: CacheId,
    sort: SortObjects,
    after: Option<ObjectPlace>,
) -> Result<(Vec<ObjectEntry>, Option<ObjectPlace>), Failure> {
    let order = match sort {
        SortObjects::Used => ObjectOrder::Used,
        SortObjects::Age => ObjectOrder::Age,
        SortObjects::Size => ObjectOrder::Size,
    };
    let found = app.engine.index().list_objects(cache, order, after, PAGE).await;
    let found = found.map_err(dormer_engine::Error::from)?;
    let next = found.last().filter(|_| found.len() == PAGE as usize).map(|last| last.place);
    let entry = |object: &dormer_index::ListedObject| ObjectEntry {
        store_path: object.path.to_string(),
        nar_size: object.nar_size,
        created_at: object.created_at,
        last_used_at: object.last_used_at,
    };
    Ok((found.iter().map(entry).collect(), next))
}

pub(super) fn write_place(place: ObjectPlace) -> String {
    format!("{}.{}", place.value, place.id)
}

pub(super) fn read_place(text: &str) -> Result<ObjectPlace, Failure> {
    let place = text
        .split_once('.')
        .and_then(|(value, id)| Some(ObjectPlace { value: value.parse().ok()?, id: id.parse().ok()? }));
    place.ok_or_else(|| Failure::BadRequest("`after` is not the `next` of a page".to_owned()))
}

/// Removes what refers to a path, directly or not.
pub(crate) async fn remove_referrers(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Delete).await?;
    let claims = app.claims(call);
    let subject = claims.as_ref().and_then(|claims| claims.sub.as_deref());
    let (removed, more) = app.engine.remove_referrers(&cache, hash, subject, wants_bytes_gone(call)?).await?;
    if removed > 0 {
        tracing::info!(cache.name = %name, object.hash = %hash, removed, "removed what refers to a store path");
    }
    Ok(body::json(StatusCode::OK, &RemoveReferrersResponse { removed, more }))
}

/// Pins a path under a name.
pub(crate) async fn add_pin(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    pin: &PinName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::ConfigureCacheRetention).await?;
    let Buffered::<AddPinRequest> { value: request, memory: _memory } = read_json(app, call, body).await?;
    if request.keep == Some(0) {
        return Err(Failure::BadRequest("`keep` is 0, but the new path stays pinned".to_owned()));
    }
    let now = app.engine.now();
    let pin = Pin {
        name: pin.as_str().to_owned(),
        path: request.store_path.parse().map_err(bad_request)?,
        created_at: now,
        ends_at: request.keep_for_seconds.map(|seconds| now.saturating_add(seconds.into())),
    };
    let _turn = app.search_turn(call).await?;
    let missing = app.engine.add_pin(&cache, &pin, request.keep).await?;
    tracing::info!(cache.name = %name, pin.name = pin.name, object.hash = %pin.path.hash(), "pinned a store path");
    let paths = missing.paths.iter().map(StorePath::to_string).collect();
    Ok(body::json(StatusCode::OK, &AddPinResponse { missing: paths, complete: missing.is_complete }))
}

/// Lists a page of pins.
pub(crate) async fn list_pins(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::ConfigureCacheRetention).await?;
    let Buffered::<ListPinsRequest> { value: request, memory: _memory } = read_json(app, call, body).await?;
    let after = match &request.after {
        None => None,
        Some(pin) => {
            Some((pin.name.as_str(), pin.store_path.parse::<StorePath>().map_err(bad_request)?.hash()))
        }
    };
    let after = after.as_ref().map(|(name, hash)| (*name, hash));
    let pins = app.engine.index().list_pins(cache.id, after, app.engine.now(), PAGE).await;
    let pins = pins.map_err(dormer_engine::Error::from)?;
    let more = pins.len() == PAGE as usize;
    let entry = |pin: Pin| PinEntry {
        store_path: pin.path.to_string(),
        name: pin.name,
        created_at: pin.created_at,
        ends_at: pin.ends_at,
    };
    let pins = pins.into_iter().map(entry).collect();
    Ok(body::json(StatusCode::OK, &ListPinsResponse { pins, more }))
}

/// Removes the pins of a name, or that of one path. That there are none is no error.
pub(crate) async fn remove_pins(
    app: &App,
    call: &Call,
    name: &CacheName,
    pin: &PinName,
    hash: Option<&StorePathHash>,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::ConfigureCacheRetention).await?;
    let removed = app.engine.index().remove_pins(cache.id, pin.as_str(), hash).await;
    let removed = removed.map_err(dormer_engine::Error::from)?;
    tracing::info!(cache.name = %name, pin.name = pin.as_str(), removed, "removed pins");
    Ok(body::json(StatusCode::OK, &RemovePinsResponse { removed }))
}
