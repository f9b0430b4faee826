//! Checks folders: whether the server can write, whether other users can read, and how much space
//! is free.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::finding::Finding;
use crate::secret_file;
use crate::settings::Settings;
use crate::settings::units::human_size;

const SUBJECT: &str = "folders";
/// With less free space, the next packs and the database's log do not fit.
const FREE_BYTES_MIN: u64 = 512 << 20;
/// With less free space, the operator should act soon.
const FREE_BYTES_LOW: u64 = 4 << 30;

/// Checks all folders that these settings write to, each once.
pub(super) fn check_all(settings: &Settings) -> Vec<Finding> {
    let parent = |file: &Path| file.parent().unwrap_or(Path::new("/")).to_owned();
    let mut folders: Vec<PathBuf> = Vec::new();
    if settings.uses_data_dir() {
        folders.push(settings.data_dir.clone());
    }
    if settings.postgres.is_none() {
        folders.push(parent(&settings.database_path));
    }
    if settings.remote_storage.is_none() {
        folders.push(settings.storage_path.clone());
    }
    let mut seen = Vec::new();
    folders.retain(|folder| {
        // The start that makes a missing folder also makes the folders in it.
        let is_told = seen
            .iter()
            .any(|other: &PathBuf| other == folder || (!other.exists() && folder.starts_with(other)));
        seen.push(folder.clone());
        !is_told
    });
    folders.iter().map(|folder| check(folder)).collect()
}

fn check(folder: &Path) -> Finding {
    let name = folder.display();
    if !folder.exists() {
        return match nearest_parent(folder).map(|parent| probe(&parent)) {
            Some(Ok(())) => {
                Finding::ok(SUBJECT, format!("{name} does not exist yet: the first start makes it"))
            }
            _ => Finding::fail(
                SUBJECT,
                format!("{name} does not exist, and this user cannot make it"),
                ["make it and give it to the user that the server runs as; and run this check as that user"],
            ),
        };
    }
    if let Err(error) = probe(folder) {
        return Finding::fail(
            SUBJECT,
            format!("{name} cannot be written: {error}"),
            ["give it to the user that the server runs as (chown -R), and run this check as that user"],
        );
    }
    let free = match free_bytes(folder) {
        Ok(free) => free,
        Err(error) => {
            return Finding::warn(SUBJECT, format!("{name}: its free space cannot be read: {error}"), []);
        }
    };
    let room = format!("{name} has {} free", human_size(free));
    if free < FREE_BYTES_MIN {
        return Finding::fail(SUBJECT, room, ["free some space: pushes fail when the disk is full"]);
    }
    if free < FREE_BYTES_LOW {
        return Finding::warn(SUBJECT, room, ["free some space soon: pushes fail when the disk is full"]);
    }
    if secret_file::is_readable_by_others(folder) {
        return Finding::warn(
            SUBJECT,
            format!("{name} is open to other users of this machine"),
            ["chmod 700 it: the packs contain the paths of private caches"],
        );
    }
    Finding::ok(SUBJECT, room)
}

fn nearest_parent(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    folder.ancestors().skip(1).find(|parent| parent.is_dir()).map(Path::to_owned)
}

/// Writes a file, reads it back, finds it in the folder and removes it.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".doctor-{:016x}", rand::random::<u64>()));
    let written = fs::OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(b"dormer doctor")?;
        file.sync_all()
    });
    let checked = written.and_then(|()| {
        let is_same = fs::read(&path)? == b"dormer doctor";
        let is_listed = fs::read_dir(folder)?.any(|entry| entry.is_ok_and(|entry| entry.path() == path));
        if is_same && is_listed {
            Ok(())
        } else {
            Err(io::Error::other("the folder does not list a file that was just written"))
        }
    });
    match (checked, fs::remove_file(&path)) {
        (Ok(()), removed) => removed,
        // A file that was never made cannot be removed, so the first error is the one that matters.
        (Err(error), _) => Err(error),
    }
}

/// Free bytes for users other than root.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        probe(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(probe(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_file_in_a_folders_place_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert_eq!(check(&folder.path().join("file")).status, Status::Fail);
    }
}
