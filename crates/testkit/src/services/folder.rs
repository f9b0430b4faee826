//! Folders of services, named after the test program that owns them.
//!
//! A static value is never dropped, and a killed program drops nothing. The next program that
//! starts a service removes the folders that they leave.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// Begins every name.
const PREFIX: &str = "dormer-";

/// Services with folders.
const KINDS: [&str; 4] = ["postgres", "pgbouncer", "seaweedfs", "ceph"];

/// A new, empty folder for a service of one of the [`KINDS`], closed to other users.
pub(super) fn own_folder(kind: &str) -> TempDir {
    assert!(KINDS.contains(&kind), "{kind} is not in the list");
    remove_abandoned();
    let prefix = format!("{PREFIX}{kind}-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder")
}

/// Removes the folders of processes that no longer exist.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| {
            let rest = KINDS.iter().find_map(|kind| rest.strip_prefix(kind)?.strip_prefix('-'))?;
            rest.split('-').next()?.parse::<u32>().ok()
        });
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            // The folder belongs to another user, or another process is removing it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
