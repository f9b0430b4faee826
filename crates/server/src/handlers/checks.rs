//! Checks and translations that several handlers share.

use dormer_api::RetentionPeriod;
use dormer_index::Cache;
use dormer_nix::{NarHash, NarInfo, StoreDir, StorePath, check_key_name, signature_key_name};

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

/// Most upstream key names of a cache. They are loaded with each cache, and each client gets them.
const UPSTREAM_KEY_NAMES_MAX: usize = 64;

/// Longest `System` and `CA` of a store path, in bytes. Those of Nix have below 100.
const FIELD_BYTES_MAX: usize = 256;

/// Refuses names that no key can have: they would match nothing, and not every database takes every
/// text. Refuses too many names.
pub(crate) fn check_key_names(names: &[String]) -> Result<(), Failure> {
    if names.len() > UPSTREAM_KEY_NAMES_MAX {
        return Err(Failure::BadRequest(format!(
            "a cache has at most {UPSTREAM_KEY_NAMES_MAX} upstream key names, not {}",
            names.len()
        )));
    }
    names.iter().try_for_each(|name| check_key_name(name)).map_err(bad_request)
}

/// Refuses a narinfo with fields that are longer than any that Nix writes.
pub(crate) fn check_fields(narinfo: &NarInfo) -> Result<(), Failure> {
    for (field, text) in [("System", &narinfo.system), ("CA", &narinfo.ca)] {
        if text.as_ref().is_some_and(|text| text.len() > FIELD_BYTES_MAX) {
            return Err(Failure::BadRequest(format!("{field} is longer than {FIELD_BYTES_MAX} bytes")));
        }
    }
    Ok(())
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
