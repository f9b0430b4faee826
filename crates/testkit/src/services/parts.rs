//! The place where `scripts/get-services.sh` puts parts that Debian does not package.

use std::env;
use std::path::{Path, PathBuf};

/// A file among the downloaded parts: below `DORMER_PARTS`, or `target/parts` of the workspace.
/// Panics if the file is missing.
pub(super) fn part(path: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/testkit lies in the workspace");
    let parts = env::var_os("DORMER_PARTS").map_or_else(|| workspace.join("target/parts"), PathBuf::from);
    let file = parts.join(path);
    assert!(file.exists(), "{} is missing: run scripts/get-services.sh {}", file.display(), parts.display());
    file
}
