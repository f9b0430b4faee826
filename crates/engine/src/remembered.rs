//! What the engine remembers between requests: under which keys, and how much of it. The module
//! [`coherence`](crate::coherence) says when it forgets.

use std::time::Duration;

use dormer_format::EncodingTag;
use dormer_index::{Cache, CacheId, NarId, NarQuery};
use dormer_nix::StorePathHash;

use crate::change_counts::CacheState;

/// How long the engine remembers settings of caches, narinfos and read plans.
pub(crate) const REMEMBERED: Duration = Duration::from_millis(1_500);

/// How long the engine remembers the plan of a large NAR. A client that resumes a download asks
/// again within minutes. A collection keeps packs for longer than that, over an hour, after their
/// chunks have moved: no remembered plan outlives the packs that it names.
pub(crate) const LARGE_PLAN_REMEMBERED: Duration = Duration::from_mins(10);

/// Memory for remembered narinfos, and for remembered read plans, in bytes each. Half of the latter
/// is for plans of large NARs.
pub(crate) const REMEMBERED_BYTES: u64 = 4 * 1024 * 1024;

/// Memory for the settings of caches, and again for their signing keys, in bytes: some thousand
/// caches.
pub(crate) const REMEMBERED_CACHE_BYTES: u64 = 1024 * 1024;

/// How long a pack is known to exist after it was stored, read or looked up.
pub(crate) const PACK_PROOF: Duration = Duration::from_mins(1);

/// The key of a remembered narinfo.
pub(crate) type NarinfoKey = (CacheId, StorePathHash);

/// The key of a remembered read plan. It contains the state of the cache, so a change of an object
/// discards the plans of its cache and of no other.
pub(crate) type PlanKey = (CacheId, CacheState, NarQuery);

/// The key of a remembered plan of a large NAR: all that can change its bytes. The index names the
/// NAR and its present tag at each opening, so the plan may be remembered for long, whatever
/// happens to the cache meanwhile. Each window is compared with the plan when it is loaded.
pub(crate) type LargePlanKey = (NarId, EncodingTag);

/// Memory of a remembered cache, in bytes.
pub(crate) fn cache_weight(name: &str, cache: &Cache) -> u32 {
    let names = cache.upstream_cache_key_names.iter().map(|name| name.len() + 32);
    let keys = cache.keys.iter().map(|key| key.public_key.len() + key.sealed_secret.len() + 64);
    let fixed = 2 * name.len() + cache.store_dir.len() + 256;
    u32::try_from(fixed + names.chain(keys).sum::<usize>()).unwrap_or(u32::MAX)
}
