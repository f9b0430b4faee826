//! What the files of a journal say of a cache and its pins.

use std::collections::BTreeMap;

use dormer_format::{JournalCache, JournalPin};
use dormer_index::{Cache, CacheId, CacheKey};
use dormer_nix::StorePathHash;

/// Pins by name and hash; `None` for one that is gone.
pub(super) type PinStates = BTreeMap<(String, StorePathHash), Option<JournalPin>>;

/// What one file says of a cache. Of two records in a file the later one counts, as it does of two
/// files.
#[derive(Debug, Default)]
pub(super) struct CacheStates {
    /// Whether the file says what became of the cache, and not only of some pins.
    pub(super) has_cache: bool,
    /// The cache without its pins; `None` also if it is gone.
    pub(super) cache: Option<JournalCache>,
    pub(super) pins: PinStates,
}

impl CacheStates {
    pub(super) fn of_cache(mut cache: JournalCache) -> Self {
        let pins = std::mem::take(&mut cache.pins);
        let mut states = Self { has_cache: true, cache: Some(cache), pins: PinStates::new() };
        states.add_pins(pins);
        states
    }

    pub(super) fn of_gone() -> Self {
        Self { has_cache: true, ..Self::default() }
    }

    pub(super) fn add_pins(&mut self, pins: Vec<JournalPin>) {
        for pin in pins {
            self.pins.insert((pin.name.clone(), pin.path.hash()), Some(pin));
        }
    }
}

pub(super) fn restored_cache(cache: &JournalCache) -> Cache {
    Cache {
        id: CacheId(0),
        name: cache.name.clone(),
        is_public: cache.is_public,
        store_dir: cache.store_dir.clone(),
        priority: i32::try_from(cache.priority).unwrap_or(i32::MAX),
        upstream_cache_key_names: cache.upstream_key_names.clone(),
        retention_seconds: cache.retention_seconds,
        quota_bytes: cache.quota_bytes.map(i64::unsigned_abs),
        keep_latest: cache.keep_latest.and_then(|keep| u32::try_from(keep).ok()),
        keys: cache
            .keys
            .iter()
            .map(|key| CacheKey {
                public_key: key.public_key.clone(),
                sealed_secret: key.sealed_secret.clone(),
                active: key.active,
            })
            .collect(),
        created_at: cache.created_at,
        allow_replacement: cache.allow_replacement,
    }
}
