//! Checks and translations that several handlers share.

use dormer_api::RetentionPeriod;
use dormer_index::Cache;
use dormer_nix::{NarHash, StoreDir, StorePath, signature_key_name};

use crate::failure::Failure;

/// The store folder of a cache.
pub(crate) fn store_dir(cache: &Cache) -> Result<StoreDir, Failure> {
    let corrupt = dormer_index::Error::Corrupt { table: "caches", what: "store folder".to_owned() };
    cache.store_dir.parse().map_err(|_| Failure::Engine(corrupt.into()))
}

/// The retention of a cache, as Attic's API says it.
pub(crate) fn retention_period(cache: &Cache) -> RetentionPeriod {
    cache.retention_seconds.map_or(RetentionPeriod::Global, |seconds| {
        RetentionPeriod::Period(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
    })
}

/// Refuses texts that are no signatures: they would stand in the narinfo, where no client can use
/// them.
pub(crate) fn check_signatures(signatures: &[String]) -> Result<(), Failure> {
    signatures.iter().try_for_each(|signature| signature_key_name(signature).map(drop)).map_err(bad_request)
}

/// Logs that an upload changed nothing, because its path is there with something else.
pub(crate) fn log_kept(cache: &Cache, path: &StorePath, nar_hash: &NarHash) {
    tracing::warn!(
        cache.name = cache.name, %path, nar.hash = %nar_hash,
        "kept the store path that was here first: the new one has another NAR or other references"
    );
}

/// The failure for a bad text of the client, with its cause.
pub(crate) fn bad_request(error: impl std::error::Error + 'static) -> Failure {
    Failure::BadRequest(dormer_nix::with_causes(&error))
}
