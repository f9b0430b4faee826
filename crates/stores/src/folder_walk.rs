//! The files of a folder in the order of their names.
//!
//! A file system gives names in no order. So a walk reads one folder at a time, keeps the first
//! names of it, and goes into a folder only when its turn comes in the order of names: `a.b` comes
//! before `a/b`, and that before `a0`. Folders whose names all come before the page are not read.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::abandoned::is_staged;
use crate::list::FileEntry;
use crate::{Error, Result};

/// Folders in folders. A link that leads back would have no end.
const DEPTH_MAX: usize = 16;

/// The first `limit` files below `folder` that come after a name.
pub(crate) async fn first_files(
    root: &Arc<Path>,
    folder: &str,
    after: Option<String>,
    limit: usize,
) -> Result<Vec<FileEntry>> {
    let (root, key) = (Arc::clone(root), folder.to_owned());
    let mut prefix = folder.trim_matches('/').to_owned();
    if !prefix.is_empty() {
        prefix.push('/');
    }
    let walk = move || {
        let mut page = Vec::new();
        add_files(&root, &prefix, after.as_deref(), limit, DEPTH_MAX, &mut page)?;
        Ok(page)
    };
    let walked = tokio::task::spawn_blocking(walk).await;
    walked.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|source| Error::Io {
        attempt: "list",
        key,
        source,
    })
}

/// Adds the files below a folder, whose name ends with a slash, until the page is full.
fn add_files(
    root: &Path,
    folder: &str,
    after: Option<&str>,
    limit: usize,
    depth: usize,
    page: &mut Vec<FileEntry>,
) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("too many folders lie in each other"));
    }
    // The last name of this folder that was looked at.
    let mut behind: Option<String> = None;
    loop {
        let wanted = limit - page.len();
        let (names, is_cut) = first_names(&root.join(folder), folder, (after, behind.as_deref()), wanted)?;
        for name in &names {
            if page.len() == limit {
                return Ok(());
            }
            if name.ends_with('/') {
                add_files(root, name, after, limit, depth - 1, page)?;
            } else {
                page.extend(entry(root, name)?);
            }
        }
        let Some(last) = names.last().filter(|_| is_cut && page.len() < limit) else { return Ok(()) };
        // Some were folders without a file.
        behind = Some(last.clone());
    }
}

/// The first names in one folder that are files after a name, or folders that may hold some; those
/// of folders end with a slash. Names up to `behind` were looked at. Also returns whether there are
/// more.
fn first_names(
    path: &Path,
    folder: &str,
    (after, behind): (Option<&str>, Option<&str>),
    limit: usize,
) -> io::Result<(BTreeSet<String>, bool)> {
    let mut names = BTreeSet::new();
    let mut is_cut = false;
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok((names, false)),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(own) = entry.file_name().into_string() else { continue };
        let mut kind = entry.file_type()?;
        if kind.is_symlink() {
            match fs::metadata(entry.path()) {
                Ok(meta) => kind = meta.file_type(),
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        let name = if kind.is_dir() { format!("{folder}{own}/") } else { format!("{folder}{own}") };
        let is_before = after.is_some_and(|after| {
            name.as_str() <= after && !(kind.is_dir() && after.starts_with(name.as_str()))
        });
        let is_passed = is_before || behind.is_some_and(|behind| name.as_str() <= behind);
        if is_passed || (!kind.is_dir() && is_staged(&own)) {
            continue;
        }
        names.insert(name);
        if names.len() > limit {
            names.pop_last();
            is_cut = true;
        }
    }
    Ok((names, is_cut))
}

/// A file, unless it was deleted meanwhile.
fn entry(root: &Path, name: &str) -> io::Result<Option<FileEntry>> {
    let meta = match fs::metadata(root.join(name)) {
        Ok(meta) => meta,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Some(FileEntry {
        name: name.to_owned(),
        size: meta.len(),
        etag: None,
        modified_at: i64::try_from(modified.as_millis()).unwrap_or(i64::MAX),
    }))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
