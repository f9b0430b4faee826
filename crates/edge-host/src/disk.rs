//! NARs of a remote bucket, kept on this machine's disk within a bound. The NAR that nobody has
//! read for longest goes first.
//!
//! Invariants
//! - A file under its final name is whole: it is written under another name, and renamed after its
//!   last byte.
//! - The bytes of a NAR count before they are written, and are written after the files that they
//!   displace are deleted. So the bound holds at every moment, and a NAR displaces others only as
//!   its bytes come.
//! - One request writes a NAR. Others pass the same NAR on and keep nothing.
//! - No file is touched while the lock is held, and none on a thread of the runtime.
//! - A cache that fails costs a request to the bucket, and nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use dormer_edge::{EdgeKey, Part};
use dormer_stores::ByteStream;
use futures::{StreamExt as _, stream};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use crate::source::{Opened, Source};

/// Marks a file that is not whole.
const PARTIAL: &str = ".partial";

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to use {} as a cache", path.display())]
pub struct DiskCacheError {
    path: PathBuf,
    source: io::Error,
}

/// A folder with NARs. Clones are one cache.
#[derive(Debug, Clone)]
pub struct DiskCache {
    folder: Arc<Path>,
    files: Source,
    bytes_max: u64,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Size and age of each file.
    files: HashMap<String, (u64, u64)>,
    /// Names by age, the one that nobody has read for longest first.
    ages: BTreeMap<u64, String>,
    /// Sizes of files that are being deleted. Nothing is kept under such a name until its file is
    /// gone.
    leaving: HashMap<String, u64>,
    /// Names of NARs that are being written.
    writing: HashSet<String>,
    clock: u64,
    /// Bytes of all files, with what came so far of those that are being written, and without those
    /// that are being deleted.
    bytes: u64,
}

impl DiskCache {
    /// Opens a folder, makes it if it does not exist, and finds the files of earlier runs.
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self, DiskCacheError> {
        let failed = |source| DiskCacheError { path: folder.to_path_buf(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let files = Source::folder(folder).map_err(|error| failed(io::Error::other(error)))?;
        let cache = Self { folder: folder.into(), files, bytes_max, known: Arc::default() };
        cache.find().map_err(failed)?;
        Ok(cache)
    }

    fn find(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Other files are not ours to delete.
            if name.ends_with(PARTIAL) {
                std::fs::remove_file(entry.path())?;
            } else if meta.is_file() && name.ends_with(".nar.zst") {
                found.push((meta.modified()?, name, meta.len()));
            }
        }
        found.sort();
        let leaving = {
            let mut known = self.lock();
            for (_, name, size) in found {
                known.bytes += size;
                known.touch(&name, size);
            }
            known.displace(self.bytes_max, 0)
        };
        self.delete(&leaving);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code panics half-way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a NAR of a cache. Two caches never share a file, because their readers differ.
    fn name_of(key: &EdgeKey) -> Option<String> {
        matches!(key, EdgeKey::Nar(..)).then(|| key.to_string().replace('/', "_"))
    }

    /// The NAR, or a part of it, if it is kept.
    pub(crate) async fn open_nar(&self, key: &EdgeKey, part: Option<Part>) -> Option<Opened> {
        let name = Self::name_of(key)?;
        {
            let mut known = self.lock();
            let (size, _) = *known.files.get(&name)?;
            known.touch(&name, size);
        }
        if self.is_old(key, &name).await {
            // Readers that have the file open read on.
            let _ = tokio::fs::remove_file(self.folder.join(&name)).await;
            self.lock().forget(&name);
            return None;
        }
        match self.files.open(&name, part).await {
            Ok(Opened::Missing) => {
                self.lock().forget(&name);
                None
            }
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(%error, name, "failed to read a kept NAR");
                None
            }
        }
    }

    /// Whether a NAR was kept for as long as an edge may: a NAR that was removed for cause must not
    /// stay for ever.
    async fn is_old(&self, key: &EdgeKey, name: &str) -> bool {
        let Ok(meta) = tokio::fs::metadata(self.folder.join(name)).await else { return false };
        let age = meta.modified().ok().and_then(|kept| kept.elapsed().ok());
        age.is_some_and(|age| age.as_secs() > u64::from(key.edge_seconds()))
    }

    /// Keeps a NAR while it passes.
    pub(crate) async fn keep(&self, key: &EdgeKey, size: u64, bytes: ByteStream) -> ByteStream {
        let Some(writing) = self.begin(key, size).await else { return bytes };
        let pieces = stream::unfold((bytes, Some(writing)), |(mut bytes, mut writing)| async move {
            let piece = bytes.next().await?;
            if let Some(one) = writing.take()
                && let Ok(piece) = &piece
            {
                writing = one.write(piece).await;
            }
            Some((piece, (bytes, writing)))
        });
        Box::pin(pieces)
    }

    async fn begin(&self, key: &EdgeKey, size: u64) -> Option<Writing> {
        let name = Self::name_of(key)?;
        // A NAR that would displace half of all others is not worth it.
        if size == 0 || size > self.bytes_max / 2 {
            return None;
        }
        let number = {
            let mut known = self.lock();
            let is_known = known.leaving.contains_key(&name) || known.files.contains_key(&name);
            if is_known || !known.writing.insert(name.clone()) {
                return None;
            }
            known.clock += 1;
            known.clock
        };
        let partial = self.folder.join(format!("{name}.{number}{PARTIAL}"));
        let reserved = Reserved { cache: self.clone(), name, bytes: 0, partial, is_kept: false };
        let partial = reserved.partial.clone();
        match File::create_new(&partial).await {
            Ok(file) => Some(Writing { file, reserved, left: size }),
            Err(error) => {
                tracing::warn!(%error, path = %partial.display(), "failed to keep a NAR");
                None
            }
        }
    }

    /// Deletes files that were displaced. Blocks.
    fn delete(&self, leaving: &[String]) {
        for name in leaving {
            // Readers that have the file open read on.
            if let Err(error) = std::fs::remove_file(self.folder.join(name)) {
                tracing::warn!(%error, name, "failed to delete a kept NAR");
            }
            self.lock().leaving.remove(name);
        }
    }
}

impl Known {
    fn touch(&mut self, name: &str, size: u64) {
        self.clock += 1;
        if let Some((_, age)) = self.files.insert(name.to_owned(), (size, self.clock)) {
            self.ages.remove(&age);
        }
        self.ages.insert(self.clock, name.to_owned());
    }

    /// Takes out files until so many bytes fit below the bound. The caller deletes them.
    fn displace(&mut self, bytes_max: u64, bytes: u64) -> Vec<String> {
        let mut leaving = Vec::new();
        while self.bytes + bytes > bytes_max
            && let Some((_, name)) = self.ages.pop_first()
        {
            let (size, _) = self.files.remove(&name).unwrap_or_default();
            self.bytes -= size;
            self.leaving.insert(name.clone(), size);
            leaving.push(name);
        }
        leaving
    }

    fn forget(&mut self, name: &str) {
        if let Some((size, age)) = self.files.remove(name) {
            self.ages.remove(&age);
            self.bytes -= size;
        }
    }
}

/// The name of a file that is being written, and its bytes so far. Both are given back unless the
/// file becomes whole.
struct Reserved {
    cache: DiskCache,
    name: String,
    bytes: u64,
    partial: PathBuf,
    is_kept: bool,
}

impl Reserved {
    /// Makes room for more bytes. `None` if the files that are being written leave no room.
    async fn grow(&mut self, more: u64) -> Option<()> {
        let (fits, leaving) = {
            let mut known = self.cache.lock();
            let elsewhere = known.leaving.values().sum::<u64>();
            let leaving = known.displace(self.cache.bytes_max, more + elsewhere);
            let fits = known.bytes + elsewhere + more <= self.cache.bytes_max;
            if fits {
                known.bytes += more;
                self.bytes += more;
            }
            (fits, leaving)
        };
        if !leaving.is_empty() {
            let cache = self.cache.clone();
            // The job runs to its end even if the reader leaves, and so does the accounting.
            tokio::task::spawn_blocking(move || cache.delete(&leaving)).await.ok()?;
        }
        fits.then_some(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (cache, bytes) = (self.cache.clone(), self.bytes);
        let (name, partial) = (std::mem::take(&mut self.name), std::mem::take(&mut self.partial));
        let give_back = move || {
            // The file may not exist, because it could not be made.
            let _ = std::fs::remove_file(partial);
            let mut known = cache.lock();
            known.bytes -= bytes;
            known.writing.remove(&name);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(give_back)),
            Err(_) => give_back(),
        }
    }
}

struct Writing {
    file: File,
    reserved: Reserved,
    left: u64,
}

impl Writing {
    /// Writes a piece. `None` after the last byte, or once writing has failed.
    async fn write(mut self, piece: &Bytes) -> Option<Self> {
        self.left = self.left.checked_sub(piece.len() as u64)?;
        self.reserved.grow(piece.len() as u64).await?;
        match self.file.write_all(piece).await {
            Ok(()) if self.left > 0 => return Some(self),
            Ok(()) => {
                if let Err(error) = self.finish().await {
                    tracing::warn!(%error, "failed to keep a NAR");
                }
            }
            Err(error) => tracing::warn!(%error, "failed to keep a NAR"),
        }
        None
    }

    /// Renames the file after its last byte is on the disk, so that a power cut leaves no file that
    /// is whole in name only.
    async fn finish(mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_data().await?;
        let reserved = &mut self.reserved;
        tokio::fs::rename(&reserved.partial, reserved.cache.folder.join(&reserved.name)).await?;
        reserved.is_kept = true;
        let mut known = reserved.cache.lock();
        known.writing.remove(&reserved.name);
        known.touch(&reserved.name, reserved.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dormer_edge::EdgeKey;

    use super::*;

    fn key(number: u8) -> EdgeKey {
        let hash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        EdgeKey::parse(&format!("c{number}/nar/{hash}-00000000000000000000000000.nar.zst")).unwrap()
    }

    async fn pass(cache: &DiskCache, number: u8, pieces: &[usize], size: u64) {
        let pieces: Vec<_> = pieces.iter().map(|&len| Ok(Bytes::from(vec![number; len]))).collect();
        let mut kept = cache.keep(&key(number), size, Box::pin(stream::iter(pieces))).await;
        while let Some(piece) = kept.next().await {
            piece.unwrap();
        }
    }

    /// Waits until so many files are left: partial ones are deleted in the background.
    async fn settle(cache: &DiskCache, folder: &Path, files: usize) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let partial = || {
            let known = cache.lock();
            !known.writing.is_empty()
                || known.bytes != known.files.values().map(|(size, _)| size).sum::<u64>()
        };
        while std::fs::read_dir(folder).unwrap().count() != files || partial() {
            assert!(std::time::Instant::now() < end, "files are left over");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn has(cache: &DiskCache, number: u8) -> bool {
        matches!(cache.open_nar(&key(number), None).await, Some(Opened::Found(..)))
    }

    #[test]
    fn files_are_deleted_on_a_blocking_thread_outside_of_the_lock() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let cache = DiskCache::open(folder.path(), 100).unwrap();
            for number in [1, 2] {
                pass(&cache, number, &[40], 40).await;
            }
            let first = folder.path().join(DiskCache::name_of(&key(1)).unwrap());
            assert!(first.exists());

            let bytes = stream::iter([Ok(Bytes::from(vec![3; 40]))]);
            let mut third = cache.keep(&key(3), 40, Box::pin(bytes)).await;
            assert_eq!(cache.lock().bytes, 80, "no byte has come");
            assert_eq!(cache.lock().files.len(), 2);

            // The only blocking thread is taken: nothing can be deleted yet, and nothing may wait
            // with the lock.
            let (release, held) = std::sync::mpsc::channel::<()>();
            let taken = tokio::task::spawn_blocking(move || held.recv());
            let mut piece = third.next();
            assert!(futures::poll!(&mut piece).is_pending());
            assert!(first.exists(), "deleted on a thread of the runtime");
            assert!(cache.known.try_lock().is_ok(), "the lock is held");
            assert_eq!(cache.lock().bytes, 80, "the displaced NAR gives its bytes to the new one");

            // The displaced NAR cannot come back before its file is gone.
            let displaced = cache.keep(&key(1), 10, Box::pin(stream::empty())).await;
            drop(displaced);
            assert_eq!(cache.lock().bytes, 80);

            release.send(()).unwrap();
            taken.await.unwrap().unwrap();
            piece.await.unwrap().unwrap();
            assert!(!first.exists() && has(&cache, 3).await);
            pass(&cache, 1, &[10], 10).await;
            assert!(has(&cache, 1).await, "and then it can");
        });
    }

    #[tokio::test]
    async fn nothing_is_kept_for_longer_than_an_edge_may() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        pass(&cache, 1, &[10], 10).await;
        assert!(has(&cache, 1).await);
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let old = std::time::SystemTime::now()
            - std::time::Duration::from_secs(u64::from(key(1).edge_seconds()) + 60);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        assert!(!has(&cache, 1).await && !file.exists());
        pass(&cache, 1, &[10], 10).await;
        assert!(has(&cache, 1).await, "it can be kept again");
    }

    #[tokio::test]
    async fn what_was_not_read_for_longest_goes_and_the_bound_holds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        for number in [1, 2] {
            pass(&cache, number, &[20, 20], 40).await;
        }
        assert!(has(&cache, 1).await);
        pass(&cache, 3, &[40], 40).await;
        assert_eq!((has(&cache, 1).await, has(&cache, 2).await, has(&cache, 3).await), (true, false, true));
        // A NAR that is too large is not kept, nor one with fewer or more bytes than announced.
        pass(&cache, 4, &[60], 60).await;
        pass(&cache, 5, &[3], 10).await;
        pass(&cache, 6, &[30], 10).await;
        settle(&cache, folder.path(), 2).await;
        assert_eq!((has(&cache, 4).await, has(&cache, 5).await, has(&cache, 6).await), (false, false, false));
        assert_eq!(cache.lock().bytes, 80);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);

        // The next run finds them, and what was left half-written is gone.
        std::fs::write(folder.path().join("x.nar.zst.7.partial"), "half").unwrap();
        std::fs::write(folder.path().join("README"), "not ours").unwrap();
        let again = DiskCache::open(folder.path(), 100).unwrap();
        assert!(has(&again, 1).await && has(&again, 3).await);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        let smaller = DiskCache::open(folder.path(), 50).unwrap();
        assert_eq!(smaller.lock().bytes, 40);
    }

    #[tokio::test]
    async fn requests_that_bring_no_bytes_displace_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        for number in [1, 2] {
            pass(&cache, number, &[40], 40).await;
        }
        let mut open = Vec::new();
        for number in 3..9 {
            let pieces = stream::iter([Ok(Bytes::from_static(&[1; 3]))]).chain(stream::pending());
            let mut kept = cache.keep(&key(number), 50, Box::pin(pieces)).await;
            kept.next().await.unwrap().unwrap();
            open.push(kept);
        }
        assert_eq!(cache.lock().bytes, 98);
        drop(open);
        settle(&cache, folder.path(), 2).await;
        assert!(has(&cache, 1).await && has(&cache, 2).await);
        pass(&cache, 3, &[50], 50).await;
        assert!(has(&cache, 3).await, "a request that ended early does not keep the name");
    }

    #[tokio::test]
    async fn one_of_two_that_bring_the_same_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path(), 100).unwrap();
        let pieces = || Box::pin(stream::iter([Ok(Bytes::from_static(&[1; 10]))]).chain(stream::pending()));
        let first = cache.keep(&key(1), 20, pieces()).await;
        let mut second = cache.keep(&key(1), 20, pieces()).await;
        second.next().await.unwrap().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(cache.lock().bytes, 0);
        drop((first, second));
        settle(&cache, folder.path(), 0).await;
        tokio::join!(pass(&cache, 1, &[10, 10], 20), pass(&cache, 1, &[10, 10], 20));
        settle(&cache, folder.path(), 1).await;
        assert_eq!(cache.lock().bytes, 20);
        let Some(Opened::Found(meta, _)) = cache.open_nar(&key(1), Some(Part::From(5))).await else {
            panic!("not kept")
        };
        assert_eq!(meta.size, 20);
        std::fs::remove_file(folder.path().join(DiskCache::name_of(&key(1)).unwrap())).unwrap();
        assert!(!has(&cache, 1).await);
        assert_eq!(cache.lock().bytes, 0);
    }
}
