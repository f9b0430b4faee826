//! An object store in a folder of the local file system.
//!
//! Invariants
//! - An object is written under a temporary name in the same file system, synced, renamed, and the
//!   folders that gained an entry are synced: only then does `put` return. A crash leaves the whole
//!   object or a temporary file.
//! - Temporary files are locked while they are written; `open` deletes those that nobody holds.
//! - A file at its root marks the folder as a store of ours. What is missing is missing only while
//!   that file is there: an unmounted file system loses nothing, and nothing is made where it was.
//! - A kept file handle is dropped when its object is deleted, so that the space comes back.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormer_format::PackId;
use rand::random;

use crate::buffer_pool::{Buffer, BufferPool};
use crate::contract::{BlobKey, Blobs};
use crate::{Error, Result};

/// Folder of temporary files, below the store's.
const TEMPORARY: &str = "tmp";

/// Folder of packs, as in their names.
const PACKS: &str = "packs";

/// File that marks a store, below its folder. It is made last when a store is made.
const MARKER: &str = "dormer-store";

/// File handles kept open. 512 packs of 32 MiB are 16 GiB of hot data; most systems allow 1,024
/// handles to a process.
const HANDLES_MAX: u64 = 512;

/// How long an unused handle stays: one that was opened while its object was deleted must not hold
/// the space for good.
const HANDLE_IDLE: Duration = Duration::from_mins(5);

/// Slices handed to one `writev`; Linux takes at most 1,024.
const SLICES_MAX: usize = 1024;

/// An object store in a folder. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalBlobs {
    root: Arc<Path>,
    /// What the marker says: other bytes are another store.
    marker: Arc<[u8]>,
    handles: moka::sync::Cache<BlobKey, Arc<File>>,
    buffers: BufferPool,
}

impl LocalBlobs {
    /// Opens a folder, makes it if it is not there, and clears away what a crash left.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let root: Arc<Path> = dir.as_ref().into();
        let marker = prepare(&root).map_err(|source| failed("open", &root.display(), source))?;
        Ok(Self::with_marker(root, marker))
    }

    /// Opens a folder that was made before: [`Error::StoreGone`] when it is not there any more.
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<Self> {
        let root = dir.as_ref();
        let exists =
            root.join(MARKER).exists() || list_packs(&root.join(PACKS)).is_ok_and(|packs| !packs.is_empty());
        if exists { Self::open(root) } else { Err(gone(root)) }
    }

    fn with_marker(root: Arc<Path>, marker: Arc<[u8]>) -> Self {
        Self {
            root,
            marker,
            handles: moka::sync::Cache::builder().max_capacity(HANDLES_MAX).time_to_idle(HANDLE_IDLE).build(),
            buffers: BufferPool::default(),
        }
    }

    /// Fails if the folder is not the one that was opened.
    fn check_there(&self) -> Result<()> {
        match fs::read(self.root.join(MARKER)) {
            Ok(marker) if *marker == *self.marker => Ok(()),
            Ok(_) => Err(gone(&self.root)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(gone(&self.root))
            }
            Err(error) => Err(failed("look at", &self.root.join(MARKER).display(), error)),
        }
    }

    /// Tells a missing object from a missing store.
    fn failed(&self, attempt: &'static str, key: &BlobKey, source: io::Error) -> Error {
        match failed(attempt, key, source) {
            missing @ Error::NotFound { .. } => self.check_there().err().unwrap_or(missing),
            other => other,
        }
    }

    fn path(&self, key: &BlobKey) -> PathBuf {
        self.root.join(key.to_string())
    }

    /// Runs work that may wait for the disk where waiting is allowed.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(&this)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!(
                    "blocking work is never cancelled once it runs, and its handle is not aborted"
                ),
            },
        }
    }

    fn handle(&self, key: &BlobKey) -> Result<Arc<File>> {
        if let Some(handle) = self.handles.get(key) {
            return Ok(handle);
        }
        let file = File::open(self.path(key)).map_err(|source| self.failed("open", key, source))?;
        let handle = Arc::new(file);
        self.handles.insert(*key, Arc::clone(&handle));
        Ok(handle)
    }

    fn put_blocking(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        self.check_there()?;
        let path = self.path(key);
        let temporary = self.root.join(TEMPORARY).join(format!("{:032x}.tmp", random::<u128>()));
        let written = write_object(&temporary, &path, parts);
        if written.is_err() {
            // Whatever is left of it is cleared at the next start.
            drop(fs::remove_file(&temporary));
        }
        written.map_err(|source| failed("store", key, source))
    }

    fn list_blocking(&self) -> Result<Vec<BlobKey>> {
        self.check_there()?;
        let packs = self.root.join(PACKS);
        list_packs(&packs).map_err(|source| failed("list", &packs.display(), source))
    }
}

#[async_trait]
impl Blobs for LocalBlobs {
    async fn put(&self, key: &BlobKey, parts: &[Bytes]) -> Result<()> {
        let (key, parts) = (*key, parts.to_vec());
        self.blocking(move |this| this.put_blocking(&key, &parts)).await
    }

    async fn get_range(&self, key: &BlobKey, range: Range<u64>) -> Result<Bytes> {
        let Ok(len) = usize::try_from(range.end.saturating_sub(range.start)) else {
            return Err(Error::Truncated { key: key.to_string() });
        };
        let mut buffer = self.buffers.take(len);
        let mut done = 0;
        // What lies in the page cache is copied right here: handing it to another thread costs more
        // than the copy.
        if let Some(handle) = self.handles.get(key) {
            done = read_cached(&handle, buffer.as_mut(), range.start);
        }
        if done < len {
            let key = *key;
            buffer = self
                .blocking(move |this| {
                    let handle = this.handle(&key)?;
                    read_rest(&handle, &mut buffer, done, range.start).map_err(|source| {
                        match source.kind() {
                            ErrorKind::UnexpectedEof => Error::Truncated { key: key.to_string() },
                            _ => failed("read", &key, source),
                        }
                    })?;
                    Ok::<Buffer, Error>(buffer)
                })
                .await?;
        }
        Ok(buffer.into_bytes())
    }

    async fn head(&self, key: &BlobKey) -> Result<u64> {
        let key = *key;
        // By name and not by a kept handle, which would outlive the object.
        self.blocking(move |this| {
            let metadata =
                fs::metadata(this.path(&key)).map_err(|source| this.failed("look up", &key, source))?;
            Ok(metadata.len())
        })
        .await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        let key = *key;
        self.blocking(move |this| {
            let deleted = fs::remove_file(this.path(&key));
            this.handles.invalidate(&key);
            match deleted {
                Err(error) if error.kind() == ErrorKind::NotFound => this.check_there(),
                Err(error) => Err(failed("delete", &key, error)),
                Ok(()) => Ok(()),
            }
        })
        .await
    }

    async fn list(&self) -> Result<Vec<BlobKey>> {
        self.blocking(Self::list_blocking).await
    }
}

/// Makes the folders durable and deletes temporary files that no process is writing. Returns what
/// the marker says.
fn prepare(root: &Path) -> io::Result<Arc<[u8]>> {
    create_folders(&root.join(PACKS))?;
    let temporary = root.join(TEMPORARY);
    create_folders(&temporary)?;
    let marker = read_or_make_marker(root)?;
    for entry in fs::read_dir(&temporary)? {
        let path = entry?.path();
        let orphan = match File::open(&path) {
            Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if orphan {
            tracing::info!(path = %path.display(), "deleting what an interrupted write left");
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(marker)
}

fn read_or_make_marker(root: &Path) -> io::Result<Arc<[u8]>> {
    let path = root.join(MARKER);
    let text = format!(
        "Dormer keeps packs in this folder. Without this file it takes the folder for unmounted.\n{:032x}\n",
        random::<u128>()
    );
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    // Another process may be making it: what it says is read when it is whole.
    file.lock()?;
    let mut marker = Vec::new();
    file.read_to_end(&mut marker)?;
    if marker.is_empty() {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        sync_folder(root)?;
        marker = text.into_bytes();
    }
    Ok(marker.into())
}

fn gone(root: &Path) -> Error {
    Error::StoreGone { path: root.display().to_string(), marker: MARKER }
}

/// Writes, syncs, renames and syncs the folder; see the module's invariants for the order.
fn write_object(temporary: &Path, path: &Path, parts: &[Bytes]) -> io::Result<()> {
    let folder = path.parent().expect("an object lies in a folder");
    make_shard(folder)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(temporary)?;
    file.lock()?;
    write_parts(&mut file, parts)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder(folder)
}

/// Writes all parts, many with one system call.
fn write_parts(file: &mut File, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    // Drops empty parts at the front, so that a write of nothing is never taken for a full disk.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let count = left.len().min(SLICES_MAX);
        match file.write_vectored(&left[..count]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes one of the folders that packs lie in, and nothing above it: where the store was, nothing
/// grows in its absence.
fn make_shard(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => {}
        // Made by another thread a moment ago, perhaps: its entry must be durable before ours
        // counts.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_folder(folder.parent().expect("it lies below the store"))
}

/// Makes a folder and its missing parents, and syncs each folder that gained an entry.
fn create_folders(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => {}
        // Made by another thread a moment ago, perhaps: its entry must be durable before ours
        // counts.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = folder.parent().ok_or(error)?;
            create_folders(parent)?;
            return create_folders(folder);
        }
        Err(error) => return Err(error),
    }
    match folder.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Reads what the page cache holds, without waiting for the disk; returns how much that was.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    use rustix::io::{ReadWriteFlags, preadv2};
    // An error here (not cached, not supported by this file system) is no failure: the waiting read
    // follows.
    preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// Other systems cannot ask the page cache without waiting.
#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8], _: u64) -> usize {
    0
}

/// Reads the rest of a buffer whose first `done` bytes are there; `start` is the offset of its
/// first byte.
fn read_rest(file: &File, buffer: &mut Buffer, done: usize, start: u64) -> io::Result<()> {
    file.read_exact_at(&mut buffer.as_mut()[done..], start + done as u64)
}

/// All packs below `packs`. Files that are not ours are passed over.
fn list_packs(packs: &Path) -> io::Result<Vec<BlobKey>> {
    let mut keys = Vec::new();
    for shard in fs::read_dir(packs)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(shard.path())? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".pack")?.parse::<PackId>().ok());
            let key = id.map(BlobKey::Pack).filter(|key| shard.path().ends_with(&key.to_string()[..8]));
            keys.extend(key);
        }
    }
    Ok(keys)
}

/// Classifies what the file system said.
fn failed(attempt: &'static str, key: &dyn std::fmt::Display, source: io::Error) -> Error {
    let key = key.to_string();
    match source.kind() {
        ErrorKind::NotFound if attempt != "store" => Error::NotFound { key },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::WriteZero => {
            Error::NoSpace { attempt, key, source }
        }
        _ => Error::Io { attempt, key, source },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn key(byte: u8) -> BlobKey {
        BlobKey::Pack(PackId::from_bytes([byte; 16]))
    }

    fn files(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_meets_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        crate::conformance::run(&LocalBlobs::open(folder.path().join("a/b")).unwrap()).await;
        assert!(files(&folder.path().join("a/b/tmp")).is_empty(), "every temporary file was renamed");
    }

    #[tokio::test]
    async fn objects_are_there_after_reopening_under_their_documented_names() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        blobs.put(&key(0xab), &["hello".into(), Bytes::new(), " world".into()]).await.unwrap();
        drop(blobs);
        let path = folder.path().join("packs/ab/abababababababababababababababab.pack");
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        assert_eq!(blobs.get_range(&key(0xab), 6..11).await.unwrap(), "world");
        assert_eq!(blobs.list().await.unwrap(), [key(0xab)]);
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_are_cleared_but_not_what_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        drop(LocalBlobs::open(folder.path()).unwrap());
        let temporary = folder.path().join("tmp");
        fs::write(temporary.join("dead.tmp"), b"half a pack").unwrap();
        let live = File::create(temporary.join("live.tmp")).unwrap();
        live.lock().unwrap();
        drop(LocalBlobs::open(folder.path()).unwrap());
        assert_eq!(files(&temporary), ["live.tmp"]);
        drop(live);
        drop(LocalBlobs::open(folder.path()).unwrap());
        assert!(files(&temporary).is_empty());
    }

    #[tokio::test]
    async fn a_failed_put_leaves_nothing_and_says_what_failed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        // A file where the shard's folder would be.
        fs::write(folder.path().join("packs/07"), b"").unwrap();
        let error = blobs.put(&key(7), &["x".into()]).await.unwrap_err();
        assert!(matches!(error, Error::Io { attempt: "store", .. }), "{error:?}");
        assert!(files(&folder.path().join("tmp")).is_empty());
        assert!(blobs.list().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_loses_nothing_and_nothing_is_made_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (root, away) = (folder.path().join("store"), folder.path().join("away"));
        let blobs = LocalBlobs::open(&root).unwrap();
        blobs.put(&key(1), &["x".into()]).await.unwrap();
        fs::rename(&root, &away).unwrap();
        // As an unmounted file system leaves it, as if it had never been, and with another one in
        // its place.
        let other = folder.path().join("other");
        drop(LocalBlobs::open(&other).unwrap());
        for place in ["empty", "none", "other"] {
            match place {
                "empty" => fs::create_dir(&root).unwrap(),
                "none" => fs::remove_dir(&root).unwrap(),
                _ => fs::rename(&other, &root).unwrap(),
            }
            let errors = [
                blobs.get_range(&key(1), 0..1).await.map(drop),
                blobs.head(&key(1)).await.map(drop),
                blobs.put(&key(2), &["y".into()]).await,
                blobs.delete(&key(1)).await,
                blobs.list().await.map(drop),
            ];
            for error in errors {
                assert!(matches!(error, Err(Error::StoreGone { .. })), "{place}: {error:?}");
            }
            if place == "empty" {
                assert!(files(&root).is_empty());
                assert!(matches!(LocalBlobs::open_existing(&root), Err(Error::StoreGone { .. })));
            }
        }
        fs::remove_dir_all(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        assert_eq!(blobs.get_range(&key(1), 0..1).await.unwrap(), "x");
        blobs.put(&key(2), &["y".into()]).await.unwrap();
        assert_eq!(LocalBlobs::open_existing(&root).unwrap().head(&key(2)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_store_from_before_there_were_markers_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        blobs.put(&key(1), &["x".into()]).await.unwrap();
        fs::remove_file(folder.path().join(MARKER)).unwrap();
        let blobs = LocalBlobs::open_existing(folder.path()).unwrap();
        assert_eq!(blobs.head(&key(1)).await.unwrap(), 1);
        assert!(matches!(blobs.head(&key(2)).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn deleting_drops_the_kept_handle() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        blobs.put(&key(1), &["x".into()]).await.unwrap();
        blobs.get_range(&key(1), 0..1).await.unwrap();
        let handle = Arc::downgrade(&blobs.handles.get(&key(1)).unwrap());
        blobs.delete(&key(1)).await.unwrap();
        // moka drops a value once no thread is inside any of the process's caches, and the other
        // tests of this program use caches too.
        let deadline = Instant::now() + Duration::from_secs(30);
        while handle.upgrade().is_some() {
            assert!(Instant::now() < deadline, "the file is closed, so its space is free");
            blobs.handles.run_pending_tasks();
            tokio::task::yield_now().await;
        }
        assert!(matches!(blobs.get_range(&key(1), 0..1).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn foreign_files_are_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(folder.path()).unwrap();
        blobs.put(&key(2), &["x".into()]).await.unwrap();
        let packs = folder.path().join("packs");
        fs::write(packs.join("README"), b"").unwrap();
        fs::write(packs.join("02/note.txt"), b"").unwrap();
        fs::write(packs.join("02/03030303030303030303030303030303.pack"), b"wrong shard").unwrap();
        assert_eq!(blobs.list().await.unwrap(), [key(2)]);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = failed("store", &"a", io::Error::from_raw_os_error(28));
        assert!(matches!(full, Error::NoSpace { attempt: "store", .. }));
        let quota = failed("store", &"a", io::Error::from_raw_os_error(122));
        assert!(matches!(quota, Error::NoSpace { .. }));
        assert!(matches!(failed("read", &"a", io::Error::from_raw_os_error(5)), Error::Io { .. }));
        assert!(matches!(failed("read", &"a", io::Error::from_raw_os_error(2)), Error::NotFound { .. }));
    }

    #[test]
    fn parts_beyond_one_system_call_arrive_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let parts: Vec<Bytes> =
            (0..5000_u32).map(|n| n.to_le_bytes()[..(n % 5) as usize].to_vec().into()).collect();
        write_parts(&mut File::create(&path).unwrap(), &parts).unwrap();
        assert_eq!(fs::read(&path).unwrap(), parts.concat());
        write_parts(&mut File::create(&path).unwrap(), &[Bytes::new(), Bytes::new()]).unwrap();
        assert!(fs::read(&path).unwrap().is_empty());
    }
}
