//! Store paths as people write them on the command line.

use std::path::Path;

use dormer_client::NixStore;
use dormer_nix::{StorePath, StorePathHash};

use crate::error::Result;

/// Accepts `<hash>-<name>`, a store path that is no longer valid here, or anything that leads to a
/// valid store path.
pub(super) fn store_path(store: &NixStore, path: &Path) -> Result<StorePath> {
    let text = path.to_str().unwrap_or_default();
    match text.parse::<StorePath>().or_else(|_| StorePath::parse_absolute(store.store_dir(), text)) {
        Ok(path) => Ok(path),
        Err(_) => Ok(store.resolve(path)?),
    }
}

/// The hash of what [`store_path`] accepts, or of a bare hash.
pub(super) fn hash_of(store: &NixStore, path: &Path) -> Result<StorePathHash> {
    match path.to_str().unwrap_or_default().parse() {
        Ok(hash) => Ok(hash),
        Err(_) => Ok(store_path(store, path)?.hash()),
    }
}
