//! Folders of services, named after the test program that owns them.
//!
//! A value that lives as long as its program is never dropped, and a program that is killed drops nothing: what it leaves, the next
//! program that starts a service removes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// Begins every name.
const PREFIX: &str = "dormer-";

/// Services that have folders.
const KINDS: [&str; 4] = ["postgres", "pgbouncer", "seaweedfs", "ceph"];

/// A new, empty folder that nobody else may enter, for a service of one of the [`KINDS`].
pub(super) fn own_folder(kind: &str) -> TempDir {
    assert!(KINDS.contains(&kind), "{kind} is not in the list");
    remove_abandoned();
    let prefix = format!("{PREFIX}{kind}-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder")
}

/// Removes the folders of processes that are no more.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| {
            let rest = KINDS.iter().find_map(|kind| rest.strip_prefix(kind)?.strip_prefix('-'))?;
            rest.split('-').next()?.parse::<u32>().ok()
        });
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            // Somebody else's, or another process is removing it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
