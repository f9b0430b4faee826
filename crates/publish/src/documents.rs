//! The small documents about caches: `nix-cache-info`, the state document, the catalogue.
//!
//! The publisher writes the access rules of a cache before the cache's contents, and the counts
//! after them. It does not repeat a document that has not changed.

use dormer_api::CacheName;
use dormer_edge::{CacheState, Catalog, EdgeKey};
use dormer_index::{Cache, PublishedCache};
use dormer_nix::{CacheInfo, NarHash};

use crate::Result;
use crate::publisher::Run;
use crate::report::CacheOutcome;
use crate::settings::TargetSettings;
use crate::transfer::put_small;

/// Digest of what every path of a cache depends on: what its narinfo is made of, and which
/// documents it has beside it. When it changes, the publisher looks at all paths again.
///
/// Only what differs from the default settings is in it: otherwise a new setting would make every
/// target look at everything.
pub(crate) fn basis(cache: &Cache, settings: &TargetSettings) -> Vec<u8> {
    let options =
        [("logs", settings.logs), ("no traces", !settings.traces), ("debug info", settings.debug_info)];
    let mut text = format!("1\n{}\n", cache.store_dir);
    for key in cache.keys.iter().filter(|key| key.active) {
        text.push_str(&key.public_key);
        text.push('\n');
    }
    for (option, _) in options.into_iter().filter(|(_, is_set)| *is_set) {
        text.push_str(option);
        text.push('\n');
    }
    NarHash::digest(text.as_bytes()).as_bytes().to_vec()
}

/// The text of `nix-cache-info`.
pub(crate) fn cache_info(cache: &Cache) -> String {
    let info = CacheInfo {
        store_dir: Some(cache.store_dir.clone()),
        want_mass_query: Some(true),
        priority: Some(cache.priority),
    };
    info.to_string()
}

fn describe(run: &Run<'_>, cache: &Cache, name: &CacheName, before: Option<&CacheState>) -> CacheState {
    CacheState {
        version: CacheState::VERSION,
        cache: name.clone(),
        public: cache.is_public,
        store_dir: cache.store_dir.clone(),
        priority: cache.priority,
        public_keys: cache.keys.iter().filter(|key| key.active).map(|key| key.public_key.clone()).collect(),
        object_count: before.map_or(0, |before| before.object_count),
        file_bytes: before.map_or(0, |before| before.file_bytes),
        published_at: before.map_or(0, |before| before.published_at),
        revoked: run.publisher.settings.revoked_tokens.clone(),
    }
}

/// Writes the access rules alone, and does not write down that it did.
pub(crate) async fn write_access_rules(
    run: &Run<'_>,
    cache: &Cache,
    name: &CacheName,
    before: &CacheState,
) -> Result<()> {
    let state = describe(run, cache, name, Some(before));
    let key = EdgeKey::State(name.clone());
    run.in_flight.one(put_small(run.store(), &key, state.public, state.to_json())).await.map(drop)
}

/// Writes what readers need first: the access rules, and the store folder. With `again`, the
/// publisher writes them even if they have not changed, because the target may have lost them.
pub(crate) async fn write_before(
    run: &Run<'_>,
    cache: &Cache,
    name: &CacheName,
    row: &mut PublishedCache,
    anew: bool,
) -> Result<()> {
    let before = CacheState::parse(&row.document).ok();
    let state = describe(run, cache, name, before.as_ref());
    let same_info = before.as_ref().is_some_and(|before| {
        before.store_dir == state.store_dir
            && before.priority == state.priority
            && before.public == state.public
    });
    if anew || !same_info {
        let text = cache_info(cache).into_bytes();
        let key = EdgeKey::CacheInfo(name.clone());
        run.in_flight.one(put_small(run.store(), &key, cache.is_public, text)).await?;
    }
    if anew || before.as_ref() != Some(&state) {
        write_state(run, name, row, &state).await?;
    }
    Ok(())
}

/// Writes what there is now, if this run changed it, or an earlier run that ended before this step.
pub(crate) async fn write_after(
    run: &Run<'_>,
    cache: &Cache,
    name: &CacheName,
    row: &mut PublishedCache,
    outcome: &CacheOutcome,
) -> Result<()> {
    let before = CacheState::parse(&row.document).ok();
    let told = before.as_ref().is_some_and(|before| before.published_at == row.published_at);
    if !outcome.changed() && told {
        return Ok(());
    }
    let counts = run.state().publish_counts(run.target(), cache.id).await?;
    let mut state = describe(run, cache, name, before.as_ref());
    state.object_count = counts.published;
    state.file_bytes = counts.file_bytes;
    // An earlier run may have marked the row out of date and ended too early, within this second or
    // by a clock that was ahead.
    state.published_at = run.now().max(row.published_at);
    row.published_at = state.published_at;
    write_state(run, name, row, &state).await
}

async fn write_state(
    run: &Run<'_>,
    name: &CacheName,
    row: &mut PublishedCache,
    state: &CacheState,
) -> Result<()> {
    let json = state.to_json();
    let key = EdgeKey::State(name.clone());
    run.in_flight.one(put_small(run.store(), &key, state.public, json.clone())).await?;
    row.document = json;
    Ok(run.state().write_published_cache(&run.lease(), row, run.now()).await?)
}

/// Writes the catalogue of public caches, unless the same is there. Costs one read.
pub(crate) async fn write_catalog(run: &Run<'_>, names: Vec<CacheName>) -> Result<()> {
    let json = Catalog::new(names).to_json();
    let there = run.store().get(&EdgeKey::Catalog.to_string()).await?;
    if there.as_deref() == Some(json.as_slice()) {
        return Ok(());
    }
    run.in_flight.one(put_small(run.store(), &EdgeKey::Catalog, true, json)).await.map(drop)
}

/// Removes a cache's state document.
pub(crate) async fn remove_state(run: &Run<'_>, name: &CacheName) -> Result<()> {
    delete(run, &EdgeKey::State(name.clone())).await
}

/// Removes `nix-cache-info`, without which the folder is no cache to Nix.
pub(crate) async fn remove_cache_info(run: &Run<'_>, name: &CacheName) -> Result<()> {
    delete(run, &EdgeKey::CacheInfo(name.clone())).await
}

async fn delete(run: &Run<'_>, key: &EdgeKey) -> Result<()> {
    run.in_flight.one(async { Ok(run.store().delete(&key.to_string()).await?) }).await
}
