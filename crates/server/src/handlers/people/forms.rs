//! Forms: they pin, unpin and remove paths, with the permissions of the API.

use dormer_api::{CacheName, Permission, PinName};
use dormer_index::Pin;
use dormer_nix::StorePathHash;
use dormer_pages::{Note, RemoveView, escape_segment, path_address};
use http::Response;

use super::session::checked_form;
use super::show::{find, index, open, pin_place, pins_of, referrers};
use super::{frame, page, see_other};
use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::checks::bad_request;
use crate::request_body::RequestBody;

/// Referrers that the page of consequences names.
const REFERRERS: u32 = 40;

/// Longest life of a pin with an end, in days.
const PIN_DAYS_MAX: i64 = 36_500;

/// Pins a path.
pub(super) async fn pin(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    app.open_cache(call, name, Permission::ConfigureCacheRetention).await?;
    let form = checked_form(app, call, body).await?;
    let opened = open(app, call, name).await?;
    let pin_name: PinName = form.field("name").unwrap_or_default().parse().map_err(bad_request)?;
    let days = form.field("days").filter(|days| !days.is_empty());
    let days = days.map(str::parse::<i64>).transpose().map_err(bad_request)?;
    if days.is_some_and(|days| !(1..=PIN_DAYS_MAX).contains(&days)) {
        return Err(Failure::BadRequest(format!("a pin lasts 1 to {PIN_DAYS_MAX} days")));
    }
    let found = find(app, &opened, hash).await?;
    let now = app.engine.now();
    let pin = Pin {
        name: pin_name.as_str().to_owned(),
        path: found.object.path,
        created_at: now,
        ends_at: days.map(|days| now.saturating_add(days * 86_400)),
    };
    app.engine.index().add_pin(opened.cache.id, &pin, None).await.map_err(index)?;
    tracing::info!(cache.name = %name, pin.name = pin.name, object.hash = %hash, "pinned a store path");
    Ok(see_other(&told(&path_page(name, hash), Note::Pinned)))
}

/// Removes a pin of a path.
pub(super) async fn unpin(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::ConfigureCacheRetention).await?;
    let form = checked_form(app, call, body).await?;
    let pin_name: PinName = form.field("name").unwrap_or_default().parse().map_err(bad_request)?;
    let removed =
        app.engine.index().remove_pins(cache.id, pin_name.as_str(), Some(hash)).await.map_err(index)?;
    tracing::info!(cache.name = %name, pin.name = pin_name.as_str(), removed, "removed pins");
    // A list of pins goes on where it was.
    let back = match (form.field("back"), form.field("after")) {
        (Some("pins"), Some(after)) => {
            pin_place(after)?;
            format!("../pins?after={}", escape_segment(after))
        }
        (Some("pins"), None) => "../pins".to_owned(),
        _ => path_page(name, hash),
    };
    Ok(see_other(&told(&back, Note::Unpinned)))
}

/// Says what a removal would do.
pub(super) async fn consequences(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    if !opened.may(Permission::Delete) {
        return Err(Failure::Forbidden(Permission::Delete));
    }
    let found = find(app, &opened, hash).await?;
    let cache = &opened.cache;
    let pins = pins_of(app, &opened, hash).await?;
    let pins = pins.map(|pins| pins.into_iter().map(|pin| pin.name).collect());
    let view = RemoveView {
        cache: cache.name.clone(),
        store_dir: cache.store_dir.clone(),
        base_name: found.object.path.to_string(),
        nar_bytes: found.nar.size,
        referrers: referrers(app, cache, hash, None, REFERRERS).await?,
        pins,
    };
    Ok(page(view.render(&frame(app, call))))
}

/// Removes a path for cause.
pub(super) async fn remove(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Delete).await?;
    checked_form(app, call, body).await?;
    let claims = app.claims(call);
    let subject = claims.as_ref().and_then(|claims| claims.sub.as_deref());
    if app.engine.remove_object(&cache, hash, subject).await?.was_there {
        tracing::info!(cache.name = %name, object.hash = %hash, purge = false, "removed a store path");
    }
    Ok(see_other(&told("../", Note::Removed)))
}

/// A page that says what was done.
fn told(page: &str, note: Note) -> String {
    format!("{page}{}{}", if page.contains('?') { '&' } else { '?' }, note.parameter())
}

/// The page of a path, as seen from a form below it.
fn path_page(name: &CacheName, hash: &StorePathHash) -> String {
    format!("../../{}", path_address(name.as_str(), &hash.to_string()))
}
