//! Pages that only show: the caches, a cache, its paths and pins, a path, its closure and its log.

use std::collections::HashMap;
use std::sync::Arc;

use dormer_api::v2::{HistoryEntry, name_fits};
use dormer_api::{CacheName, Permission, Permissions, PinName, TokenClaims};
use dormer_edge::{foreign_signatures, hash_in, key_names, provenance};
use dormer_index::{
    Cache, CacheRules, ExpiryDefaults, ExpiryRule, ExtremeObjects, FoundObject, Keepers, ListedObject,
    ObjectOrder, ObjectPlace, PathCounts, Pin, StoredCounts,
};
use dormer_nix::{DocumentName, StoreDir, StorePath, StorePathHash};
use dormer_pages::{
    CacheRow, CacheView, ClosureView, Contents, Counts, HomeView, LogView, PastDay, PathRow, PathStay,
    PathView, PathsView, PinRow, PinsView, ProblemView, Relation, RelationsView, Savings, SizedPath,
    SortedBy, StayEnd, StayView, path_address,
};
use http::{Response, StatusCode};

use super::{frame, page, see_other};
use crate::access::{known_caches, selection};
use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::attic::may_pull_everything;
use crate::handlers::browse::{OWNER, QUERY_BYTES_MAX, look_through_closure};
use crate::handlers::checks::{bad_request, store_dir};
use crate::handlers::history::{self, Present};
use crate::handlers::retention::{read_place, write_place};

/// Caches on a page. One more tells whether there are more.
const SHOWN_CACHES: usize = 50;
const LISTED_CACHES: u32 = 51;

/// Paths and pins on a page.
const PAGE_PATHS: usize = 50;
const PAGE_PINS: u32 = 36;

/// Paths that the page of a cache names, of the largest and of the longest unused.
const EXTREMES: u32 = 10;

/// Paths that a search looks through for names that have a text anywhere, with one look-up each: no
/// index finds these, so a search goes on with another request. The first look is small, because a
/// text that is in many names fills the page with it.
const SEARCHED_PATHS: [u32; 2] = [1_000, 2_000];

/// Referrers and pins of each kind that the page of a path is told: one more than it names.
const KEEPERS: u32 = 17;

/// Pins that the page of consequences is told: one more than it names.
const PINS: u32 = 9;

/// The rest of a failure of the index.
pub(super) fn index(error: dormer_index::Error) -> Failure {
    Failure::Engine(error.into())
}

/// `/`
pub(super) async fn home(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    let claims = app.claims(call);
    let after =
        query(call, "after")?.map(|name| name.parse::<CacheName>()).transpose().map_err(bad_request)?;
    let after = after.map_or_else(String::new, |name| name.to_string());
    let known = known_caches(claims.as_deref());
    let mut caches = app.engine.list_caches_after(&after, selection(&known), LISTED_CACHES).await?;
    let has_more = caches.len() > SHOWN_CACHES;
    caches.truncate(SHOWN_CACHES);
    let next = caches.last().filter(|_| has_more).map(|last| last.name.clone());
    // As in the API, only readers learn what a cache holds.
    let may_pull = |cache: &&Cache| {
        let name = cache.name.parse::<CacheName>();
        cache.is_public
            || name.is_ok_and(|name| {
                claims.as_ref().is_some_and(|claims| claims.permissions_for(&name).allows(Permission::Pull))
            })
    };
    let numbers: Vec<_> = caches.iter().filter(may_pull).map(|cache| cache.id).collect();
    let glances = app.engine.index().glance_at_caches(&numbers).await.map_err(index)?;
    let mut is_complete = glances.iter().all(|glance| glance.is_complete);
    let glances: HashMap<_, _> = glances.into_iter().map(|glance| (glance.cache, glance)).collect();
    let caches = caches.into_iter().map(|cache| {
        let glance = glances.get(&cache.id);
        CacheRow {
            counts: glance.map(|glance| (glance.counts.paths, glance.counts.bytes)),
            newest_at: glance.and_then(|glance| glance.newest_at),
            is_public: cache.is_public,
            name: cache.name,
        }
    });
    let caches = caches.collect();
    let operates = claims.as_deref().is_some_and(TokenClaims::may_operate) && app.operations.get().is_some();
    let (savings, history) = match claims.as_deref() {
        Some(claims) if may_pull_everything(claims) => {
            let counts = app.engine.index().stored_counts().await.map_err(index)?;
            is_complete &= counts.is_complete;
            let (savings, history) = whole_store(app, claims, &counts).await?;
            (Some(savings), history)
        }
        _ => (None, Vec::new()),
    };
    let view = HomeView { caches, next, has_figures: true, is_complete, savings, history };
    let frame = frame(app, call);
    Ok(page(if operates { view.render_for_operator(&frame) } else { view.render(&frame) }))
}

/// What the store saves, and its last days. One statement.
async fn whole_store(
    app: &App,
    claims: &TokenClaims,
    counts: &StoredCounts,
) -> Result<(Savings, Vec<PastDay>), Failure> {
    let stats = crate::handlers::stats::answer(counts);
    let present = crate::handlers::stats::present(counts, claims);
    let days = history::read(app, None, present, history::PAGE_DAYS).await?;
    let savings = Savings {
        path_bytes: stats.path_bytes,
        stored_bytes: stats.stored_bytes,
        by_same_nars: stats.saved_by_same_nars,
        by_chunks: stats.saved_by_chunks,
        by_holes: stats.saved_by_holes,
        by_compression: stats.saved_by_compression,
    };
    Ok((savings, days.iter().map(past_day).collect()))
}

fn past_day(day: &HistoryEntry) -> PastDay {
    PastDay {
        begins_at: day.begins_at,
        paths: day.paths,
        path_bytes: day.nar_bytes,
        stored_bytes: day.stored_bytes,
        activity: day.pushes.zip(day.pulls),
    }
}

/// What the visitor may do with a cache that it may read.
pub(super) struct Opened {
    pub(super) cache: Arc<Cache>,
    /// Of the token; of a public cache, everybody may also pull.
    own: Permissions,
}

impl Opened {
    /// Whether the visitor may list what is in the cache.
    pub(super) fn may_list(&self) -> bool {
        OWNER.into_iter().any(|one| self.own.allows(one))
    }

    pub(super) fn may(&self, permission: Permission) -> bool {
        self.own.allows(permission)
    }

    pub(super) fn store_dir(&self) -> Result<StoreDir, Failure> {
        store_dir(&self.cache)
    }
}

/// The cache, for a visitor that may pull from it.
pub(super) async fn open(app: &App, call: &Call, name: &CacheName) -> Result<Opened, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    Ok(Opened { cache, own: app.permissions(call, name) })
}

/// The path, for a visitor that may pull from its cache. Looking is no use: the path does not live
/// longer because somebody reads about it.
pub(super) async fn find(app: &App, opened: &Opened, hash: &StorePathHash) -> Result<FoundObject, Failure> {
    let found = app.engine.index().find_object(opened.cache.id, hash).await.map_err(index)?;
    found.ok_or(Failure::NoSuchObject)
}

/// A parameter of the query, decoded.
pub(super) fn query(call: &Call, name: &str) -> Result<Option<String>, Failure> {
    let bad = || Failure::BadRequest("the query cannot be read".to_owned());
    let fields = dormer_edge::decode_form(call.query_text()).ok_or_else(bad)?;
    Ok(fields.into_iter().find(|(key, _)| key == name).map(|(_, value)| value))
}

fn substituter(app: &App, call: &Call, cache: &str) -> String {
    let settings = &app.settings;
    let configured = settings.substituter_endpoint.as_ref().or(settings.api_endpoint.as_ref());
    let address = configured.cloned().unwrap_or_else(|| call.address(&settings.trusted_proxies));
    format!("{address}{cache}")
}

/// `/{cache}/`
pub(super) async fn cache(app: &App, call: &Call, name: &CacheName) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    let cache = &opened.cache;
    let glances = app.engine.index().glance_at_caches(&[cache.id]).await.map_err(index)?;
    let glance = glances.first();
    let counts = glance.map_or_else(PathCounts::default, |glance| glance.counts);
    let newest_at = glance.and_then(|glance| glance.newest_at);
    // How much a cache is used is for those alone that may list it.
    let present = Present { counts, stored_bytes: None, shows_activity: opened.may_list() };
    let days = history::read(app, Some(cache.id), present, history::PAGE_DAYS).await?;
    let extremes = if opened.may_list() {
        Some(app.engine.index().list_extremes(cache.id, EXTREMES).await.map_err(index)?)
    } else {
        None
    };
    let (largest, longest_unused) = match extremes {
        None => (None, None),
        Some(ExtremeObjects { largest, longest_unused }) => {
            (Some(largest.iter().map(sized).collect()), Some(longest_unused.iter().map(path_row).collect()))
        }
    };
    let rules = CacheRules::of(cache, &expiry_defaults(app));
    let settings = &app.settings;
    let server = settings.api_endpoint.clone().unwrap_or_else(|| call.address(&settings.trusted_proxies));
    let view = CacheView {
        name: cache.name.clone(),
        is_public: cache.is_public,
        substituter: substituter(app, call, &cache.name),
        server: Some(server.trim_end_matches('/').to_owned()),
        public_keys: active_keys(cache),
        upstream_key_names: cache.upstream_cache_key_names.clone(),
        store_dir: cache.store_dir.clone(),
        priority: cache.priority,
        contents: Contents::Stored(Counts {
            paths: counts.paths,
            nar_bytes: counts.bytes,
            newest_at,
            is_complete: glance.is_none_or(|glance| glance.is_complete),
        }),
        retention_seconds: rules.retention_seconds,
        is_published: glance.is_some_and(|glance| glance.is_published),
        lets_go: lets_go(app),
        quota_bytes: rules.quota_bytes,
        keep_latest: rules.keep_latest,
        history: days.iter().map(past_day).collect(),
        largest,
        longest_unused,
        shows_pins: opened.may(Permission::ConfigureCacheRetention),
        shows_store: app.claims(call).as_deref().is_some_and(may_pull_everything),
    };
    Ok(page(view.render(&frame(app, call))))
}

fn active_keys(cache: &Cache) -> Vec<String> {
    cache.keys.iter().filter(|key| key.active).map(|key| key.public_key.clone()).collect()
}

fn sized(object: &ListedObject) -> SizedPath {
    SizedPath { base_name: object.path.to_string(), nar_bytes: object.nar_size }
}

fn path_row(object: &ListedObject) -> PathRow {
    PathRow {
        base_name: object.path.to_string(),
        nar_bytes: object.nar_size,
        created_at: object.created_at,
        used_at: object.last_used_at,
    }
}

/// `/{cache}/paths`
pub(super) async fn paths(app: &App, call: &Call, name: &CacheName) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    let wanted = query(call, "q")?.unwrap_or_default().trim().to_owned();
    if wanted.len() > QUERY_BYTES_MAX {
        return Err(Failure::BadRequest(format!("a search has at most {QUERY_BYTES_MAX} bytes")));
    }
    if let Some(hash) = hash_in(&wanted, &opened.store_dir()?) {
        return Ok(see_other(&format!("../{}", path_address(name.as_str(), &hash.to_string()))));
    }
    let sort = match query(call, "sort")? {
        None => SortedBy::Size,
        Some(sort) => SortedBy::named(&sort)
            .ok_or_else(|| Failure::BadRequest("`sort` is none of used, age and size".to_owned()))?,
    };
    let found = if opened.may_list() {
        let after = query(call, "after")?.as_deref().map(SearchPlace::read).transpose()?;
        // A list is cheap; a search reads thousands of rows, so callers take turns.
        let _turn = if wanted.is_empty() { None } else { Some(app.search_turn(call).await?) };
        Some(search(app, &opened.cache, &wanted, sort, after).await?)
    } else {
        None
    };
    let (next, looked_through) = found
        .as_ref()
        .map_or((None, None), |found| (found.next.as_ref().map(SearchPlace::write), found.looked_through));
    let paths = found.map(|found| found.paths);
    let notice = (paths.is_none() && !wanted.is_empty())
        .then(|| "This is no hash and no store path, and you may not search by name here.".to_owned());
    let view = PathsView {
        cache: opened.cache.name.clone(),
        query: wanted,
        sort,
        paths,
        next,
        looked_through,
        notice,
    };
    Ok(page(view.render(&frame(app, call))))
}

/// What a search found.
#[derive(Default)]
struct Search {
    paths: Vec<PathRow>,
    /// The place behind what was looked at, if something is left.
    next: Option<SearchPlace>,
    /// How many paths it looked through, if it ended at its bound.
    looked_through: Option<u64>,
}

/// Where a search goes on.
enum SearchPlace {
    /// Among the names that begin with the text.
    Named(String, ObjectPlace),
    /// Among all paths, in the order of the list.
    Listed(ObjectPlace),
}

impl SearchPlace {
    fn write(&self) -> String {
        match self {
            Self::Named(name, place) => format!("{}.{name}", write_place(*place)),
            Self::Listed(place) => write_place(*place),
        }
    }

    /// Numbers have no dots, and names may.
    fn read(text: &str) -> Result<Self, Failure> {
        let mut parts = text.splitn(3, '.');
        let (Some(value), Some(id), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return read_place(text).map(Self::Listed);
        };
        Ok(Self::Named(name.to_owned(), read_place(&format!("{value}.{id}"))?))
    }
}

/// Paths whose name has a text in it, from a place on: first those whose name begins with it, by
/// name, then others, in the order of the list.
async fn search(
    app: &App,
    cache: &Cache,
    wanted: &str,
    sort: SortedBy,
    after: Option<SearchPlace>,
) -> Result<Search, Failure> {
    let order = match sort {
        SortedBy::Used => ObjectOrder::Used,
        SortedBy::Age => ObjectOrder::Age,
        SortedBy::Size => ObjectOrder::Size,
    };
    let pattern = if wanted.contains('*') { wanted.to_owned() } else { format!("*{wanted}*") };
    let one_page = [1 + u32::try_from(PAGE_PATHS).unwrap_or(0)];
    let looks = if wanted.is_empty() { &one_page[..] } else { &SEARCHED_PATHS };
    let (mut paths, mut looked_through) = (Vec::new(), 0);
    // `text*` fits the names that begin with `text`, and no others.
    let (prefix, is_all) = match wanted.split_once('*') {
        None => (Some(wanted).filter(|text| !text.is_empty()), false),
        Some((text, rest)) => (Some(text).filter(|text| !text.is_empty() && rest.is_empty()), true),
    };
    let (named, mut after) = match after {
        Some(SearchPlace::Listed(place)) => (None, Some(place)),
        Some(SearchPlace::Named(name, place)) => (Some((name, place)), None),
        None => (None, None),
    };
    if let (Some(prefix), None) = (prefix, after) {
        // A place of another search is none of this one.
        let named = named.as_ref().filter(|(name, _)| name.starts_with(prefix));
        let named = named.map(|(name, place)| (name.as_str(), *place));
        let limit = u32::try_from(PAGE_PATHS).unwrap_or(0);
        let found = app.engine.index().list_objects_by_name(cache.id, prefix, named, limit).await;
        let found = found.map_err(index)?;
        let last = found.last().filter(|_| found.len() == PAGE_PATHS);
        let next = last.map(|last| SearchPlace::Named(last.path.name().to_owned(), last.place));
        paths.extend(found.iter().map(path_row));
        if next.is_some() || is_all {
            return Ok(Search { paths, next, looked_through: None });
        }
    }
    let begins = |name: &str| prefix.is_some_and(|prefix| name.starts_with(prefix));
    for limit in looks.iter().copied() {
        let found = app.engine.index().list_objects(cache.id, order, after, limit).await.map_err(index)?;
        let is_last = found.len() < limit as usize;
        looked_through += found.len() as u64;
        for object in found {
            if !name_fits(&pattern, object.path.name()) || begins(object.path.name()) {
                after = Some(object.place);
                continue;
            }
            if paths.len() == PAGE_PATHS {
                return Ok(Search { paths, next: after.map(SearchPlace::Listed), looked_through: None });
            }
            after = Some(object.place);
            paths.push(path_row(&object));
        }
        if is_last {
            return Ok(Search { paths, ..Search::default() });
        }
    }
    Ok(Search { paths, next: after.map(SearchPlace::Listed), looked_through: Some(looked_through) })
}

/// `/{cache}/pins`
pub(super) async fn pins(app: &App, call: &Call, name: &CacheName) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    if !opened.may(Permission::ConfigureCacheRetention) {
        return Err(Failure::Forbidden(Permission::ConfigureCacheRetention));
    }
    let place = query(call, "after")?;
    let after = place.as_deref().map(pin_place).transpose()?;
    let after = after.as_ref().map(|(name, hash)| (name.as_str(), hash));
    let now = app.engine.now();
    let found =
        app.engine.index().list_pins(opened.cache.id, after, now, PAGE_PINS + 1).await.map_err(index)?;
    let last = found.get(PAGE_PINS as usize - 1).filter(|_| found.len() > PAGE_PINS as usize);
    let next = last.map(|pin| format!("{}.{}", pin.path.hash(), pin.name));
    let pins = found.into_iter().take(PAGE_PINS as usize).map(pin_row).collect();
    let view = PinsView { cache: opened.cache.name.clone(), pins, after: place, next };
    Ok(page(view.render(&frame(app, call))))
}

/// The place behind a pin: its name and the hash of its path. The forms of a page repeat it, so it
/// is no longer than a name.
pub(super) fn pin_place(text: &str) -> Result<(PinName, StorePathHash), Failure> {
    let Some((hash, name)) = text.split_once('.') else {
        return Err(Failure::BadRequest("`after` is not the `next` of a page".to_owned()));
    };
    Ok((name.parse().map_err(bad_request)?, hash.parse().map_err(bad_request)?))
}

pub(super) fn pin_row(pin: Pin) -> PinRow {
    PinRow {
        name: pin.name,
        base_name: pin.path.to_string(),
        created_at: pin.created_at,
        ends_at: pin.ends_at,
    }
}

/// What refers to a path, for a visitor that may know; and whether there is more.
pub(super) async fn referrers(
    app: &App,
    cache: &Cache,
    hash: &StorePathHash,
    after: Option<&StorePathHash>,
    limit: u32,
) -> Result<(Vec<String>, bool), Failure> {
    let found = app.engine.index().list_referrers(cache.id, hash, after, limit + 1).await.map_err(index)?;
    let has_more = found.len() > limit as usize;
    Ok((found.iter().take(limit as usize).map(StorePath::to_string).collect(), has_more))
}

/// `/{cache}/{hash}`
pub(super) async fn path(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    let cache = &opened.cache;
    let found = app.engine.index().find_object_and_log(cache.id, hash).await.map_err(index)?;
    let (FoundObject { object, nar, last_used_at }, has_log) = found.ok_or(Failure::NoSuchObject)?;
    let kept = keeping(app, &opened, hash).await?;
    let own_keys = key_names(&active_keys(cache));
    let view = PathView {
        cache: cache.name.clone(),
        substituter: substituter(app, call, &cache.name),
        store_dir: cache.store_dir.clone(),
        base_name: object.path.to_string(),
        nar_url: (!nar.damaged).then(|| format!("nar/{}-{}.nar.zst", nar.hash.to_nix32(), nar.tag)),
        nar_hash: format!("sha256:{}", nar.hash.to_nix32()),
        nar_bytes: nar.size,
        file_bytes: Some(nar.file_size),
        has_log: Some(has_log),
        deriver: object.deriver,
        system: object.system,
        content_address: object.ca,
        provenance: provenance(&object.extra),
        signatures: foreign_signatures(object.sigs, &own_keys),
        own_keys,
        references: others(&object.references, &object.path),
        shows_closure: true,
        referrers: kept.referrers,
        pins: kept.pins,
        used_at: opened.may_list().then_some(last_used_at),
        is_public: cache.is_public,
        stay: Some(kept.stay),
        may_remove: opened.may(Permission::Delete),
    };
    Ok(page(view.render(&frame(app, call))))
}

/// How long a path stays, and what keeps it, as far as the visitor may know.
struct Keeping {
    stay: StayView,
    referrers: Option<(Vec<String>, bool)>,
    pins: Option<Vec<PinRow>>,
}

/// What the server keeps where a cache says nothing. A server without jobs lets nothing go.
fn expiry_defaults(app: &App) -> ExpiryDefaults {
    app.operations.get().map_or(
        ExpiryDefaults { retention_seconds: 0, quota_bytes: 0, grace_seconds: 0, log_retention_seconds: 0 },
        |operations| *operations.collector().expiry_defaults(),
    )
}

/// Whether the server looks by itself for what its rules keep no longer.
fn lets_go(app: &App) -> bool {
    app.operations.get().is_some_and(|operations| operations.collector().is_automatic())
}

/// Two statements for a visitor that may list the cache, and one for others.
async fn keeping(app: &App, opened: &Opened, hash: &StorePathHash) -> Result<Keeping, Failure> {
    let cache = &opened.cache;
    let defaults = expiry_defaults(app);
    let lets_go = lets_go(app);
    let stay = |rules: &CacheRules, is_published, of_path| {
        let CacheRules { retention_seconds, quota_bytes, keep_latest } = *rules;
        StayView { retention_seconds, quota_bytes, keep_latest, is_published, lets_go, of_path }
    };
    // When a path was used, and what needs it, is for those alone that the API tells it.
    if !opened.may_list() {
        let glances = app.engine.index().glance_at_caches(&[cache.id]).await.map_err(index)?;
        let is_published = glances.first().is_some_and(|glance| glance.is_published);
        let stay = stay(&CacheRules::of(cache, &defaults), is_published, None);
        return Ok(Keeping { stay, referrers: None, pins: None });
    }
    let now = app.engine.now();
    let found = app.engine.index().find_keepers(cache, hash, &defaults, now, KEEPERS).await.map_err(index)?;
    let Keepers { rules, pins, referrers, pins_above, is_cut } = found.ok_or(Failure::NoSuchObject)?;
    let sees_pins = opened.may(Permission::ConfigureCacheRetention);
    let rows = |pins: Vec<Pin>| sees_pins.then(|| pins.into_iter().map(pin_row).collect());
    let end = rules.stays_until.map(|(until, rule)| match rule {
        ExpiryRule::Age => (until, StayEnd::Age),
        ExpiryRule::Newer => (until, StayEnd::Newer),
    });
    let of_path = PathStay { counts_from: rules.counts_from, end, pins_above: rows(pins_above), is_cut };
    let stay = stay(&rules.cache, rules.is_published, Some(of_path));
    let has_more = referrers.len() == KEEPERS as usize;
    let referrers = referrers.iter().take(KEEPERS as usize - 1).map(StorePath::to_string).collect();
    Ok(Keeping { stay, referrers: Some((referrers, has_more)), pins: rows(pins) })
}

/// The first pins of a path; `None` for a visitor that may not see pins.
pub(super) async fn pins_of(
    app: &App,
    opened: &Opened,
    hash: &StorePathHash,
) -> Result<Option<Vec<Pin>>, Failure> {
    if !opened.may(Permission::ConfigureCacheRetention) {
        return Ok(None);
    }
    let found = app.engine.index().list_pins_of_path(opened.cache.id, hash, app.engine.now(), PINS);
    Ok(Some(found.await.map_err(index)?))
}

/// References but the one to the path itself.
fn others(references: &[StorePath], path: &StorePath) -> Vec<String> {
    references.iter().filter(|reference| *reference != path).map(StorePath::to_string).collect()
}

/// `/{cache}/{hash}/closure`
pub(super) async fn closure(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    // A request that waits holds no object: one may have thousands of references.
    let _turn = app.search_turn(call).await?;
    let path = find(app, &opened, hash).await?.object.path;
    let closure = look_through_closure(app, &opened.cache, &path).await?;
    let largest = closure.largest.into_iter();
    let view = ClosureView {
        cache: opened.cache.name.clone(),
        base_name: path.to_string(),
        paths: closure.paths,
        nar_bytes: closure.nar_bytes,
        largest: largest
            .map(|(path, nar_bytes)| SizedPath { base_name: path.to_string(), nar_bytes })
            .collect(),
        missing: closure.missing.paths.iter().map(StorePath::to_string).collect(),
        is_complete: closure.missing.is_complete,
    };
    Ok(page(view.render(&frame(app, call))))
}

/// `/{cache}/{hash}/references`
pub(super) async fn references(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    let from = query(call, "from")?.map_or(Ok(0), |from| from.parse::<usize>()).map_err(bad_request)?;
    let object = find(app, &opened, hash).await?.object;
    let all = others(&object.references, &object.path);
    let cache = opened.cache.name.clone();
    let signatures = foreign_signatures(object.sigs, &key_names(&active_keys(&opened.cache)));
    let view = RelationsView::references(cache, object.path.to_string(), &all, from, signatures);
    Ok(page(view.render(&frame(app, call))))
}

/// `/{cache}/{hash}/referrers`
pub(super) async fn all_referrers(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    if !opened.may_list() {
        return Err(Failure::Forbidden(OWNER[0]));
    }
    let after = query(call, "after")?.map(|after| after.parse::<StorePathHash>()).transpose();
    let after = after.map_err(bad_request)?;
    let object = find(app, &opened, hash).await?.object;
    let limit = u32::try_from(RelationsView::ROWS).unwrap_or(0);
    let (paths, has_more) = referrers(app, &opened.cache, hash, after.as_ref(), limit).await?;
    let next = paths.last().filter(|_| has_more).and_then(|last| last.split('-').next());
    let view = RelationsView {
        cache: opened.cache.name.clone(),
        base_name: object.path.to_string(),
        relation: Relation::Referrers,
        signatures: Vec::new(),
        next: next.map(str::to_owned),
        paths,
    };
    Ok(page(view.render(&frame(app, call))))
}

/// The name of the log of a derivation.
fn log_name(deriver: &str) -> Option<DocumentName> {
    format!("log/{deriver}").parse().ok().filter(|name| matches!(name, DocumentName::Log(_)))
}

/// `/{cache}/{hash}/log`
pub(super) async fn log(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let opened = open(app, call, name).await?;
    let from = query(call, "from")?.map(|from| from.parse::<usize>()).transpose().map_err(bad_request)?;
    // A request that waits holds neither an object nor a log.
    let _turn = app.search_turn(call).await?;
    let found = find(app, &opened, hash).await?;
    let log = match found.object.deriver.as_deref().and_then(log_name) {
        Some(log) => app.engine.document(&opened.cache, &log).await?,
        None => None,
    };
    let frame = frame(app, call);
    let (Some(log), Some(deriver)) = (log, found.object.deriver) else {
        let view = ProblemView {
            title: "No build log".to_owned(),
            text: "The cache has no log of the build that made this path.".to_owned(),
            request: None,
            from_elsewhere: false,
        };
        let mut response = page(view.render(&frame));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    };
    let view = LogView {
        cache: opened.cache.name.clone(),
        is_public: opened.cache.is_public,
        base_name: found.object.path.to_string(),
        deriver,
        log: &log,
        from,
    };
    Ok(page(view.render(&frame)))
}
