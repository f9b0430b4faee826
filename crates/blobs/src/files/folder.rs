//! A tree of files in a folder of the local file system, for any web server or for Nix itself (`file://`).
//!
//! Invariants
//! - A file is written under a temporary name in the same file system, synced, renamed, and its folder synced: a reader sees
//!   the whole old file or the whole new one, and a crash leaves a temporary file at worst.
//! - Temporary files lie below `.partial`, out of every cache's folder.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{FileEntry, FileKind, FileUpload, Files, Stored};
use crate::{Error, Result};

/// Folder of temporary files.
const PARTIAL: &str = ".partial";

/// Larger files are written in parts, to bound what is held in memory.
const SINGLE_PUT_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of a part.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// A tree of files in a folder.
#[derive(Debug, Clone)]
pub struct FolderFiles {
    root: Arc<Path>,
    requests: Arc<[AtomicU64; 2]>,
}

impl FolderFiles {
    /// Opens a folder and clears away what a crash left. One that is not there is made when something is written.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let prepare = || -> io::Result<()> {
            let left = match fs::read_dir(root.join(PARTIAL)) {
                Ok(left) => left,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            for entry in left {
                let entry = entry?;
                // What another run is still writing is younger.
                let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age > ABANDONED {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        prepare().map_err(|source| failed("open", &root.display().to_string(), source))?;
        Ok(Self { root: root.into(), requests: Arc::default() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn partial(&self) -> PathBuf {
        self.root.join(PARTIAL).join(format!("{:032x}", rand::random::<u128>()))
    }

    fn count(&self) {
        self.requests[0].fetch_add(1, Ordering::Relaxed);
    }
}

/// No upload takes longer.
const ABANDONED: std::time::Duration = std::time::Duration::from_hours(24);

#[async_trait]
impl Files for FolderFiles {
    fn location(&self) -> String {
        format!("folder {}", self.root.display())
    }

    fn single_put_max(&self) -> u64 {
        SINGLE_PUT_MAX
    }

    async fn put(&self, name: &str, _kind: &FileKind, parts: Vec<Bytes>) -> Result<Stored> {
        self.count();
        let (partial, path) = (self.partial(), self.path(name));
        blocking("write", name, move || {
            let mut file = create(&partial)?;
            for part in &parts {
                file.write_all(part)?;
            }
            settle(&file, &partial, &path)
        })
        .await
    }

    async fn begin_upload(&self, name: &str, _kind: &FileKind, _size: u64) -> Result<Box<dyn FileUpload>> {
        self.count();
        let (partial, path) = (self.partial(), self.path(name));
        let name = name.to_owned();
        let file = blocking("write", &name, {
            let partial = partial.clone();
            move || create(&partial)
        })
        .await?;
        Ok(Box::new(FolderUpload { name, file: Arc::new(file), partial, path }))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        blocking("read", name, move || match fs::read(&path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.count();
        let path = self.path(name);
        blocking("delete", name, move || match fs::remove_file(&path) {
            Ok(()) => sync_folder(&path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    async fn list(&self, folder: &str, found: &mut (dyn FnMut(FileEntry) + Send)) -> Result<()> {
        self.requests[1].fetch_add(1, Ordering::Relaxed);
        let (root, folder) = (self.root.clone(), folder.to_owned());
        let entries = blocking("list", &folder.clone(), move || {
            let mut entries = Vec::new();
            walk(&root.join(&folder), &folder, &mut entries)?;
            Ok(entries)
        })
        .await?;
        entries.into_iter().for_each(found);
        Ok(())
    }

    async fn is_public(&self, _name: &str) -> Result<Option<bool>> {
        // Who serves the folder is not known here.
        Ok(None)
    }

    fn requests(&self) -> (u64, u64) {
        (self.requests[0].load(Ordering::Relaxed), self.requests[1].load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct FolderUpload {
    name: String,
    file: Arc<File>,
    partial: PathBuf,
    path: PathBuf,
}

#[async_trait]
impl FileUpload for FolderUpload {
    fn part_bytes(&self) -> usize {
        PART_BYTES
    }

    async fn put_part(&mut self, part: Vec<Bytes>) -> Result<()> {
        let file = Arc::clone(&self.file);
        blocking("write", &self.name, move || part.iter().try_for_each(|bytes| (&*file).write_all(bytes)))
            .await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let Self { name, file, partial, path } = *self;
        blocking("write", &name, move || settle(&file, &partial, &path)).await
    }

    async fn abort(self: Box<Self>) {
        // Best effort: what stays is cleared away a day later.
        let _ = fs::remove_file(&self.partial);
    }
}

/// A new temporary file.
fn create(partial: &Path) -> io::Result<File> {
    match File::create_new(partial) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(partial.parent().expect("it lies in a folder"))?;
            File::create_new(partial)
        }
        outcome => outcome,
    }
}

/// Makes a written file durable and puts it in its place.
fn settle(file: &File, partial: &Path, path: &Path) -> io::Result<Stored> {
    file.sync_all()?;
    let folder = path.parent().expect("a file's name has a folder before it");
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        // The folder's own entry, and its parent's: caches lie two folders deep.
        sync_folder(folder)?;
        folder.parent().map_or(Ok(()), sync_folder)?;
    }
    fs::rename(partial, path)?;
    sync_folder(path)?;
    Ok(Stored::default())
}

/// Syncs the folder that an entry lies in.
fn sync_folder(entry: &Path) -> io::Result<()> {
    entry.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn walk(path: &Path, name: &str, entries: &mut Vec<FileEntry>) -> io::Result<()> {
    let folder = match fs::read_dir(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in folder {
        let entry = entry?;
        let Ok(own) = entry.file_name().into_string() else { continue };
        let name = format!("{name}/{own}");
        let meta = entry.metadata()?;
        if meta.is_dir() {
            walk(&entry.path(), &name, entries)?;
        } else if meta.is_file() {
            entries.push(FileEntry { name, size: meta.len(), etag: None });
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    attempt: &'static str,
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    done.map_err(|source| failed(attempt, name, source))
}

fn failed(attempt: &'static str, key: &str, source: io::Error) -> Error {
    let key = key.to_owned();
    if source.kind() == ErrorKind::StorageFull {
        Error::NoSpace { attempt, key, source }
    } else {
        Error::Io { attempt, key, source }
    }
}
