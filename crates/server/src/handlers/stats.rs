//! `/_api/v2/`: what caches and the whole installation hold, in numbers that writes keep up to
//! date.

use dormer_api::v2::{CacheStatsResponse, ObjectEntry, StatsResponse};
use dormer_api::{CacheName, Permission, TokenClaims};
use dormer_index::{CacheId, ObjectOrder, StoredCounts};
use http::{Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::attic::{may_everywhere, may_pull_everything};
use crate::handlers::browse::OWNER;
use crate::handlers::history::{self, Present, wanted_days};

/// Paths that an answer names in each order.
const NAMED: u32 = 10;

/// Shows what a cache holds. What it saves is not told: chunks belong to all caches, and the figure
/// would tell a reader of one cache what others have.
pub(crate) async fn show_cache_stats(
    app: &App,
    call: &Call,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_cache(call, name, Permission::Pull).await?;
    let index = app.engine.index();
    let counts = index.path_counts(cache.id).await.map_err(dormer_engine::Error::from)?;
    let stored = index.stored_counts().await.map_err(dormer_engine::Error::from)?;
    // Paths are named to those only that may list the cache.
    let own = app.permissions(call, name);
    let may_list = own.allows(Permission::ConfigureCacheRetention) || own.allows(Permission::Delete);
    let (largest, longest_unused) = if may_list {
        let largest = named(app, cache.id, ObjectOrder::Size).await?;
        (Some(largest), Some(named(app, cache.id, ObjectOrder::Used).await?))
    } else {
        (None, None)
    };
    let history = match wanted_days(call)? {
        Some(days) => {
            let present = Present { counts, stored_bytes: None, shows_activity: may_list };
            Some(history::read(app, Some(cache.id), present, days).await?)
        }
        None => None,
    };
    let answer = CacheStatsResponse {
        paths: counts.paths,
        nar_bytes: counts.bytes,
        complete: stored.is_complete,
        largest,
        longest_unused,
        history,
    };
    Ok(body::json(StatusCode::OK, &answer))
}

async fn named(app: &App, cache: CacheId, order: ObjectOrder) -> Result<Vec<ObjectEntry>, Failure> {
    let found = app.engine.index().list_objects(cache, order, None, NAMED).await;
    let found = found.map_err(dormer_engine::Error::from)?;
    let entry = |object: dormer_index::ListedObject| ObjectEntry {
        store_path: object.path.to_string(),
        nar_size: object.nar_size,
        created_at: object.created_at,
        last_used_at: object.last_used_at,
    };
    Ok(found.into_iter().map(entry).collect())
}

/// Shows what the whole installation holds, to a caller that may read every cache.
pub(crate) async fn show_stats(app: &App, call: &Call) -> Result<Response<Body>, Failure> {
    let claims = match app.claims(call) {
        Some(claims) if may_pull_everything(&claims) => claims,
        Some(_) => return Err(Failure::Forbidden(Permission::Pull)),
        None => return Err(Failure::Unauthorized),
    };
    let counts = app.engine.index().stored_counts().await.map_err(dormer_engine::Error::from)?;
    let history = match wanted_days(call)? {
        Some(days) => Some(history::read(app, None, present(&counts, &claims), days).await?),
        None => None,
    };
    Ok(body::json(StatusCode::OK, &StatsResponse { history, ..answer(&counts) }))
}

/// What the history of the installation says of today, to a caller with these claims.
pub(super) fn present(counts: &StoredCounts, claims: &TokenClaims) -> Present {
    // As in each cache: those that may list paths may know how much they are used.
    let shows_activity = OWNER.into_iter().any(|one| may_everywhere(claims, one));
    Present { counts: counts.paths, stored_bytes: Some(counts.pack_bytes), shows_activity }
}

pub(super) fn answer(counts: &StoredCounts) -> StatsResponse {
    let less = |whole: u64, part: u64| whole.cast_signed().saturating_sub(part.cast_signed());
    let same_nars = less(counts.paths.bytes, counts.nar_bytes);
    let holes = less(counts.nar_holed_bytes, counts.pack_holed_bytes);
    StatsResponse {
        paths: counts.paths.paths,
        path_bytes: counts.paths.bytes,
        nars: counts.nars,
        packs: counts.packs,
        stored_bytes: counts.pack_bytes,
        saved_by_same_nars: same_nars,
        saved_by_chunks: less(counts.nar_bytes, counts.pack_raw_bytes).saturating_sub(holes),
        saved_by_holes: holes,
        saved_by_compression: less(counts.pack_raw_bytes, counts.pack_bytes),
        complete: counts.is_complete,
        history: None,
    }
}

#[cfg(test)]
mod tests {
    use dormer_index::PathCounts;

    use super::*;

    #[test]
    fn savings_add_up_to_what_the_store_does_not_hold() {
        let counts = StoredCounts {
            paths: PathCounts { paths: 9, bytes: 10_000 },
            nars: 5,
            nar_bytes: 7_000,
            nar_holed_bytes: 4_000,
            packs: 2,
            pack_bytes: 900,
            pack_raw_bytes: 2_500,
            pack_holed_bytes: 1_000,
            is_complete: true,
        };
        let answer = answer(&counts);
        let savings = [
            answer.saved_by_same_nars,
            answer.saved_by_chunks,
            answer.saved_by_holes,
            answer.saved_by_compression,
        ];
        assert_eq!(savings, [3_000, 1_500, 3_000, 1_600]);
        assert_eq!(savings.iter().sum::<i64>(), 10_000 - 900);
    }
}
