//! The folders of an installation, which only its user can read.

use std::fs;
use std::path::Path;

use super::made::{Made, Observer};
use crate::error::{Error, Result};
use crate::secret_file;
use crate::settings::Settings;

pub(super) fn make_folders(settings: &Settings, observer: Observer<'_>) -> Result<()> {
    if make_private_folder(&settings.data_dir)? {
        observer(&Made::DataFolder(settings.data_dir.clone()))?;
    }
    let mut files = Vec::new();
    if settings.postgres.is_none() {
        files.push(&settings.database_path);
    }
    if settings.master_key.is_none() {
        files.push(&settings.master_key_file);
    }
    for file in files {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            make_private_folder(folder)?;
        }
    }
    // A database implies a store. If the store is missing then, the start must not make a new one.
    let is_new = settings.remote_storage.is_none() && !settings.database_path.exists();
    if is_new && make_private_folder(&settings.storage_path)? {
        observer(&Made::Storage(settings.storage_path.clone()))?;
    }
    Ok(())
}

pub(crate) fn make_private_folder(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(Error::io("make the folder", path))?;
    Ok(true)
}

pub(super) fn warn_if_readable(path: &Path, warnings: &mut Vec<String>) {
    if secret_file::is_readable_by_others(path) {
        warnings.push(format!("{} can be read by other users; chmod 600 it", path.display()));
    }
}
