//! The folder that holds the queue.
//!
//! ```text
//! pending/0 … pending/f    one file for each entry, in the folder of the last digit of its id
//! dead/                    entries that were given up, each for one cache, with the reason
//! refused                  how many builds could not be queued, and why the last one could not
//! sessions/                the names of sessions of pushes by chunks
//! drainer.lock             held by the process that pushes; edit.lock: held during a change
//! ```
//!
//! Invariants
//! - A file with an entry's name is complete: it was written under another name, synced and
//!   renamed, and the folder was synced. `enqueue` answers after that.
//! - An entry leaves `pending` only after its push was acknowledged, after its dead letter was
//!   written and synced, or because the user dropped it.
//! - An existing entry changes only under `edit.lock`, and only if it is still there: a change
//!   never brings back what somebody dropped.
//! - The content of an entry that other processes see changes under a new id, except by the holder
//!   of `drainer.lock`, which may therefore remember what it read.
//! - The number of entries is bounded ([`SHARD_ENTRIES_MAX`], [`DEAD_MAX`]). A full queue refuses.
//!
//! All calls block for as long as the disk takes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dormer_nix::NarHash;
use serde::{Deserialize, Serialize};

use super::entry::{ENTRY_BYTES_MAX, EntryId, QueueEntry, QueuedCache, Standing, seconds};
use crate::durable_file::{UNFINISHED, replace_file, sync_folder};
use crate::error::{Error, Result};

/// Most entries in one of the 16 folders, which share the entries evenly: 65,536 in all. Counting
/// this many names takes a hook a millisecond.
const SHARD_ENTRIES_MAX: usize = 4096;

/// Dead letters that a start queues again: the rest waits for the next one, so that they leave room
/// for new entries.
const REVIVED_MAX: usize = 1_000;

/// Most dead letters. The oldest make room.
const DEAD_MAX: usize = 10_000;

/// An unfinished file of this age belongs to a process that died.
const UNFINISHED_AGE: Duration = Duration::from_hours(1);

/// Bytes of the file `refused`, which exists at its full length from the start, so that a full disk
/// can take it.
const REFUSED_BYTES: usize = 1024;

const SHARDS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
const SUFFIX: &str = ".json";

/// The queue on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    folder: PathBuf,
}

/// The right to push what is in the queue. It ends with the process. Dropping it gives it back at
/// once, even while a child that this process is starting still has a copy of the open file.
#[derive(Debug)]
pub struct DrainerLock(File);

impl Drop for DrainerLock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// An entry that was given up for one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The name of its file, without the suffix.
    pub name: String,
    /// The entry, with the reason in the standing of its cache. `None` if nothing can read it.
    pub entry: Option<QueueEntry>,
}

/// Builds that could not be queued.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refused {
    /// How many there were.
    pub count: u64,
    /// When the last one was refused, in seconds since 1970.
    pub last_at: u64,
    /// Why the last one was refused.
    pub last_reason: String,
}

impl Spool {
    /// Opens the queue in `folder`, and makes what is missing of it. Only its user can read it.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let make = || -> io::Result<()> {
            let mut private = DirBuilder::new();
            private.recursive(true).mode(0o700);
            if Self::is_made(&folder) {
                return Ok(());
            }
            private.create(folder.join("dead"))?;
            for shard in SHARDS {
                private.create(folder.join("pending").join(shard.to_string()))?;
            }
            // Made by the owner, so that root finds them and does not make them.
            for lock in ["drainer.lock", "edit.lock"] {
                open_lock(&folder.join(lock))?;
            }
            sync_folder(&folder.join("pending"))?;
            sync_folder(&folder)
        };
        make().map_err(|source| Error::Queue { attempt: "make the folder", path: folder.clone(), source })?;
        let spool = Self { folder };
        // A queue without a counter of refused builds still works.
        let _ = spool.prepare_refused();
        Ok(spool)
    }

    /// Whether there is a queue in `folder`, so that opening it makes nothing.
    pub fn is_made(folder: &Path) -> bool {
        // The last of the folders.
        folder.join("pending/f").is_dir()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder for the names of the drainer's sessions: a service has no home for them.
    pub fn session_folder(&self) -> PathBuf {
        self.folder.join("sessions")
    }

    /// Adds an entry. It is on the disk when this returns.
    pub fn enqueue(&self, entry: &QueueEntry, now: SystemTime) -> Result<EntryId> {
        let bytes = entry.encode();
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(Error::EntryTooLarge { max: ENTRY_BYTES_MAX });
        }
        let id = EntryId::new(now, rand::random());
        let shard = self.shard(&id);
        let failed = |attempt| {
            let path = shard.clone();
            move |source| Error::Queue { attempt, path, source }
        };
        let waiting = fs::read_dir(&shard).map_err(failed("count the entries in"))?.count();
        if waiting >= SHARD_ENTRIES_MAX {
            return Err(Error::QueueFull { folder: self.folder.clone() });
        }
        write_whole(&shard, &file_name(&id), &bytes).map_err(failed("write an entry into"))?;
        Ok(id)
    }

    /// The names of all entries, oldest first.
    pub fn ids(&self) -> Result<Vec<EntryId>> {
        let mut ids = Vec::new();
        for shard in SHARDS {
            let shard = self.folder.join("pending").join(shard.to_string());
            let names = names_in(&shard).map_err(|source| Error::Queue {
                attempt: "list the entries in",
                path: shard.clone(),
                source,
            })?;
            ids.extend(names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse::<EntryId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads an entry; `None` if it is gone. An entry that nothing can read becomes a dead letter.
    /// One of a later version is an error, and waits for a program that knows this version.
    pub fn read(&self, id: &EntryId) -> Result<Option<QueueEntry>> {
        let path = self.path(id);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Queue { attempt: "read", path, source }),
        };
        match QueueEntry::decode(&bytes) {
            Ok(entry) => return Ok(Some(entry)),
            Err(error @ Error::EntryVersion { .. }) => return Err(error),
            Err(_) => {}
        }
        let _editing = self.edit()?;
        let dead = self.folder.join("dead").join(file_name(id));
        match fs::rename(&path, dead) {
            // Another process may have been faster.
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Queue { attempt: "give up", path: path.clone(), source })
            }
            _ => Ok(None),
        }
    }

    /// All entries, oldest first; the error for one that cannot be read now.
    pub fn entries(&self) -> Result<Vec<(EntryId, Result<QueueEntry>)>> {
        let mut entries = Vec::new();
        for id in self.ids()? {
            if let Some(entry) = self.read(&id).transpose() {
                entries.push((id, entry));
            }
        }
        Ok(entries)
    }

    /// One cache has all paths of an entry. Returns what is left of the entry.
    pub(crate) fn settle(&self, id: &EntryId, cache: &QueuedCache) -> Result<Option<QueueEntry>> {
        self.change(id, |entry| {
            entry.caches.remove(cache);
        })
    }

    /// Notes a failure of an entry. Returns what is left of the entry.
    pub(crate) fn note_failure(
        &self,
        id: &EntryId,
        cache: &QueuedCache,
        standing: &Standing,
    ) -> Result<Option<QueueEntry>> {
        self.change(id, |entry| {
            if let Some(old) = entry.caches.get_mut(cache) {
                *old = standing.clone();
            }
        })
    }

    /// Gives an entry up for one cache: its dead letter is on the disk before the entry loses the
    /// cache. Returns what is left of the entry.
    pub(crate) fn bury(
        &self,
        id: &EntryId,
        cache: &QueuedCache,
        standing: &Standing,
    ) -> Result<Option<QueueEntry>> {
        let editing = self.edit()?;
        let Some(entry) = self.read_under_lock(id)? else { return Ok(None) };
        let mut letter = entry.only_for(cache);
        if let Some(old) = letter.caches.get_mut(cache) {
            *old = standing.clone();
        }
        let dead = self.folder.join("dead");
        let name = format!("{id}.{}{SUFFIX}", file_part(cache));
        write_whole(&dead, &name, &letter.encode()).map_err(|source| Error::Queue {
            attempt: "write a dead letter into",
            path: dead.clone(),
            source,
        })?;
        drop(editing);
        let left = self.settle(id, cache)?;
        self.forget_oldest_dead()?;
        Ok(left)
    }

    /// The dead letters, oldest first.
    pub fn dead(&self) -> Result<Vec<DeadLetter>> {
        let folder = self.folder.join("dead");
        let failed =
            |source| Error::Queue { attempt: "read the dead letters in", path: folder.clone(), source };
        let mut letters = Vec::new();
        for name in dead_names(&folder).map_err(failed)? {
            let entry = match read_bounded(&folder.join(&name)) {
                Ok(bytes) => QueueEntry::decode(&bytes).ok(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            letters.push(DeadLetter { name: name.trim_end_matches(SUFFIX).to_owned(), entry });
        }
        Ok(letters)
    }

    /// Queues a dead letter again, as if nothing had been tried. With `forgets_servers`, the
    /// settings say where its caches are. Returns `false` if it is gone or cannot be read.
    pub fn revive(&self, letter: &DeadLetter, forgets_servers: bool, now: SystemTime) -> Result<bool> {
        let _editing = self.edit()?;
        let Some(entry) = &letter.entry else { return Ok(false) };
        let path = self.dead_path(letter);
        if !path.exists() {
            return Ok(false);
        }
        self.enqueue(&fresh(entry, forgets_servers), now)?;
        remove(&path)?;
        Ok(true)
    }

    /// Queues again what an older version gave up because it could not read it, and what this one
    /// can, up to [`REVIVED_MAX`]. Returns how many entries these are. A dead letter that cannot be
    /// read stays one, and stops no push.
    pub(crate) fn revive_unread(&self) -> Result<usize> {
        let _editing = self.edit()?;
        let folder = self.folder.join("dead");
        let names = self.dead_names()?;
        let mut revived = 0;
        for name in names {
            // The name of what was tried and given up also names the cache.
            let Ok(id) = name.trim_end_matches(SUFFIX).parse::<EntryId>() else { continue };
            let dead = folder.join(&name);
            let is_readable = read_bounded(&dead).is_ok_and(|bytes| QueueEntry::decode(&bytes).is_ok());
            if is_readable && fs::rename(&dead, self.path(&id)).is_ok() {
                revived += 1;
            }
            if revived == REVIVED_MAX {
                break;
            }
        }
        Ok(revived)
    }

    /// Lets a waiting entry be tried at once, as if nothing had been tried. With `forgets_servers`,
    /// the settings say where its caches are. Returns `false` if it is gone.
    pub fn hasten(&self, id: &EntryId, forgets_servers: bool, now: SystemTime) -> Result<bool> {
        let _editing = self.edit()?;
        let Some(entry) = self.read_under_lock(id)? else { return Ok(false) };
        self.enqueue(&fresh(&entry, forgets_servers), now)?;
        remove(&self.path(id))?;
        Ok(true)
    }

    /// Drops an entry without a push. Returns `false` if it is gone.
    pub fn drop_entry(&self, id: &EntryId) -> Result<bool> {
        let _editing = self.edit()?;
        remove(&self.path(id))
    }

    /// Drops a dead letter. Returns `false` if it is gone.
    pub fn drop_dead(&self, letter: &DeadLetter) -> Result<bool> {
        let _editing = self.edit()?;
        remove(&self.dead_path(letter))
    }

    /// Takes the right to push, unless another process has it.
    pub fn try_lock_drainer(&self) -> Result<Option<DrainerLock>> {
        let path = self.folder.join("drainer.lock");
        let failed = |source| Error::Queue { attempt: "lock", path: path.clone(), source };
        let mut file = open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Only for people and `queue list`: the lock itself is what counts.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        self.remove_unfinished();
        Ok(Some(DrainerLock(file)))
    }

    /// The process that pushes, if there is one.
    pub fn drainer(&self) -> Result<Option<u32>> {
        let path = self.folder.join("drainer.lock");
        let failed = |source| Error::Queue { attempt: "look at", path: path.clone(), source };
        let file = open_lock(&path).map_err(failed)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let text = fs::read_to_string(&path).unwrap_or_default();
                Ok(Some(text.trim().parse().unwrap_or(0)))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Counts a build that could not be queued. Best effort: the caller has said why already.
    pub fn count_refused(&self, reason: &str, now: SystemTime) {
        let Ok(_editing) = self.edit() else { return };
        let mut refused = self.refused();
        refused.count += 1;
        refused.last_at = seconds(now);
        refused.last_reason = shortened(reason, REFUSED_BYTES / 4);
        let _ = self.write_refused(&refused);
    }

    /// What could not be queued.
    pub fn refused(&self) -> Refused {
        let bytes = fs::read(self.folder.join("refused")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Forgets what could not be queued.
    pub fn forget_refused(&self) -> Result<()> {
        let _editing = self.edit()?;
        self.write_refused(&Refused::default()).map_err(|source| Error::Queue {
            attempt: "clear",
            path: self.folder.join("refused"),
            source,
        })
    }

    fn prepare_refused(&self) -> io::Result<()> {
        if self.folder.join("refused").exists() {
            return Ok(());
        }
        self.write_refused(&Refused::default())
    }

    /// Writes over the bytes that are there, which needs no space.
    fn write_refused(&self, refused: &Refused) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(refused)?;
        bytes.resize(REFUSED_BYTES, b' ');
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(false).mode(0o600).open(self.folder.join("refused"))?;
        give_to_owner(&self.folder, &file)?;
        file.write_all(&bytes)
    }

    /// Changes an entry that is still there. An entry without caches goes.
    fn change(&self, id: &EntryId, change: impl FnOnce(&mut QueueEntry)) -> Result<Option<QueueEntry>> {
        let _editing = self.edit()?;
        let Some(mut entry) = self.read_under_lock(id)? else { return Ok(None) };
        change(&mut entry);
        if entry.caches.is_empty() {
            remove(&self.path(id))?;
            return Ok(None);
        }
        let shard = self.shard(id);
        write_whole(&shard, &file_name(id), &entry.encode()).map_err(|source| Error::Queue {
            attempt: "change an entry in",
            path: shard.clone(),
            source,
        })?;
        Ok(Some(entry))
    }

    fn read_under_lock(&self, id: &EntryId) -> Result<Option<QueueEntry>> {
        let path = self.path(id);
        match read_bounded(&path) {
            Ok(bytes) => QueueEntry::decode(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Queue { attempt: "read", path, source }),
        }
    }

    /// Waits for the other process that changes an entry, which takes milliseconds.
    fn edit(&self) -> Result<File> {
        let path = self.folder.join("edit.lock");
        let locked = open_lock(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| Error::Queue { attempt: "lock", path, source })
    }

    fn dead_names(&self) -> Result<Vec<String>> {
        let folder = self.folder.join("dead");
        dead_names(&folder).map_err(|source| Error::Queue {
            attempt: "read the dead letters in",
            path: folder,
            source,
        })
    }

    fn forget_oldest_dead(&self) -> Result<()> {
        let folder = self.folder.join("dead");
        let names = self.dead_names()?;
        for name in names.iter().take(names.len().saturating_sub(DEAD_MAX)) {
            remove(&folder.join(name))?;
        }
        Ok(())
    }

    /// Removes what processes left that were killed while they wrote.
    fn remove_unfinished(&self) {
        let shards = SHARDS.iter().map(|shard| self.folder.join("pending").join(shard.to_string()));
        for folder in shards.chain([self.folder.join("dead")]) {
            let Ok(names) = names_in(&folder) else { continue };
            for name in names.iter().filter(|name| name.starts_with(UNFINISHED)) {
                let path = folder.join(name);
                let age = fs::metadata(&path)
                    .and_then(|file| file.modified())
                    .ok()
                    .and_then(|at| at.elapsed().ok());
                if age.is_some_and(|age| age > UNFINISHED_AGE) {
                    let _ = fs::remove_file(path);
                }
            }
        }
    }

    fn shard(&self, id: &EntryId) -> PathBuf {
        self.folder.join("pending").join(id.shard().to_string())
    }

    fn path(&self, id: &EntryId) -> PathBuf {
        self.shard(id).join(file_name(id))
    }

    fn dead_path(&self, letter: &DeadLetter) -> PathBuf {
        self.folder.join("dead").join(format!("{}{SUFFIX}", letter.name))
    }
}

/// The entry as if nothing had been tried, for its own servers or for those of the settings.
fn fresh(entry: &QueueEntry, forgets_servers: bool) -> QueueEntry {
    let caches = entry.caches.keys().cloned().map(|cache| {
        let cache = if forgets_servers { cache.cache.into() } else { cache };
        (cache, Standing::default())
    });
    QueueEntry { caches: caches.collect(), ..entry.clone() }
}

/// A cache in the name of a file. Addresses have signs that no file's name can have.
fn file_part(cache: &QueuedCache) -> String {
    let name = cache.cache.to_string().replace(':', "@");
    match &cache.endpoint {
        Some(endpoint) => {
            format!("{name}.{}", &NarHash::digest(endpoint.to_string().as_bytes()).to_hex()[..8])
        }
        None => name,
    }
}

fn file_name(id: &EntryId) -> String {
    format!("{id}{SUFFIX}")
}

/// The names in a folder that are text, as ours are.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn dead_names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = names_in(folder)?;
    names.retain(|name| name.ends_with(SUFFIX) && !name.starts_with('.'));
    names.sort_unstable();
    Ok(names)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the decoder sees that it is too much.
    File::open(path)?.take(ENTRY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Queue { attempt: "remove", path: path.to_owned(), source }),
    }
}

/// The daemon of Nix writes as root, and the process of the folder's owner must read it. Others
/// cannot give files away, and need not: nobody else reads what they write.
fn give_to_owner(folder: &Path, file: &File) -> io::Result<()> {
    let (owner, writer) = (fs::metadata(folder)?, file.metadata()?);
    if owner.uid() == writer.uid() || writer.uid() != 0 {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Writes a file that its folder's owner can read.
fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace_file(&folder.join(name), 0o600, |file| {
        give_to_owner(folder, file)?;
        file.write_all(bytes)
    })
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// At most `max` bytes of a text, without characters that JSON writes in six bytes.
fn shortened(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn caches(texts: &[&str]) -> Vec<QueuedCache> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn entry(cache_names: &[&str], path: &str) -> QueueEntry {
        QueueEntry::new(&caches(cache_names), vec![path.to_owned()], at(1))
    }

    fn spool() -> (tempfile::TempDir, Spool) {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("a/queue")).unwrap();
        (folder, spool)
    }

    fn paths(spool: &Spool) -> Vec<String> {
        spool.entries().unwrap().into_iter().flat_map(|(_, entry)| entry.unwrap().paths).collect()
    }

    /// Every file below a folder, with its bytes.
    fn files(folder: &Path) -> usize {
        let below = |entry: fs::DirEntry| match entry.path() {
            path if path.is_dir() => files(&path),
            _ => 1,
        };
        fs::read_dir(folder).unwrap().map(|entry| below(entry.unwrap())).sum()
    }

    #[test]
    fn entries_come_back_oldest_first_and_leave_when_every_cache_has_them() {
        let (_folder, spool) = spool();
        let second = spool.enqueue(&entry(&["a", "b"], "/2"), at(2)).unwrap();
        let first = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
        assert_eq!(paths(&spool), ["/1", "/2"]);
        let [a, b] = ["a", "b"].map(|text| text.parse::<QueuedCache>().unwrap());
        assert_eq!(
            spool.settle(&second, &a).unwrap().unwrap().caches.into_keys().collect::<Vec<_>>(),
            std::slice::from_ref(&b)
        );
        assert_eq!(spool.settle(&first, &a).unwrap(), None);
        assert_eq!(paths(&spool), ["/2"]);
        assert_eq!(spool.settle(&second, &b).unwrap(), None);
        assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
    }

    #[test]
    fn only_its_user_can_read_the_queue() {
        use std::os::unix::fs::PermissionsExt as _;
        fn check(folder: &Path, seen: &mut usize) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}: {mode:o}", path.display());
                *seen += 1;
                if path.is_dir() {
                    check(&path, seen);
                }
            }
        }
        let (folder, spool) = spool();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.path().join("a")), mode(spool.folder())), (0o700, 0o700));
        // Also in an existing folder that others may read: entries, a dead letter, refusals.
        fs::set_permissions(spool.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
        let id = spool.enqueue(&entry(&["a", "b"], "/2"), at(1)).unwrap();
        let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
        spool.bury(&id, &"a".parse().unwrap(), &standing).unwrap();
        spool.count_refused("no room", at(2));
        let mut seen = 0;
        check(spool.folder(), &mut seen);
        assert!(seen >= 18 + 6, "{seen}");
    }

    /// A folder in the place of an entry cannot be read, even by root.
    #[test]
    fn an_entry_that_cannot_be_read_hides_no_other() {
        let (_folder, spool) = spool();
        let [broken, good] = [1, 2].map(|second| spool.enqueue(&entry(&["a"], "/1"), at(second)).unwrap());
        fs::remove_file(spool.path(&broken)).unwrap();
        fs::create_dir(spool.path(&broken)).unwrap();
        assert!(spool.read(&broken).is_err());
        let entries = spool.entries().unwrap();
        let seen: Vec<(&EntryId, bool)> = entries.iter().map(|(id, entry)| (id, entry.is_ok())).collect();
        assert_eq!(seen, [(&broken, false), (&good, true)]);
    }

    #[test]
    fn a_change_does_not_bring_back_what_was_dropped() {
        let (_folder, spool) = spool();
        let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
        assert!(spool.drop_entry(&id).unwrap());
        let cache = "a".parse().unwrap();
        let standing = Standing { tries: 1, not_before: 5, error: Some("x".to_owned()) };
        assert_eq!(spool.note_failure(&id, &cache, &standing).unwrap(), None);
        assert_eq!(spool.bury(&id, &cache, &standing).unwrap(), None);
        assert!(!spool.hasten(&id, false, at(2)).unwrap() && !spool.drop_entry(&id).unwrap());
        assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
    }

    #[test]
    fn a_dead_letter_has_its_reason_and_comes_back_on_request() {
        let (_folder, spool) = spool();
        let id = spool.enqueue(&entry(&["lab:a", "b"], "/1"), at(1)).unwrap();
        let cache: QueuedCache = "lab:a".parse().unwrap();
        let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
        let left = spool.bury(&id, &cache, &standing).unwrap().unwrap();
        assert_eq!(left.caches.into_keys().collect::<Vec<_>>(), caches(&["b"]));
        let dead = spool.dead().unwrap();
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].entry.as_ref().unwrap().caches, [(cache.clone(), standing)].into());
        assert!(spool.revive(&dead[0], false, at(3)).unwrap());
        assert!(!spool.revive(&dead[0], false, at(3)).unwrap(), "it is revived once");
        assert!(spool.dead().unwrap().is_empty());
        let (_, back) = spool.entries().unwrap().pop().unwrap();
        assert_eq!(back.unwrap().caches, [(cache, Standing::default())].into());
    }

    #[test]
    fn what_nothing_can_read_does_not_stop_the_rest() {
        let (_folder, spool) = spool();
        let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
        spool.enqueue(&entry(&["a"], "/2"), at(2)).unwrap();
        fs::write(spool.path(&id), "{\"version\":1").unwrap();
        assert_eq!(paths(&spool), ["/2"]);
        let dead = spool.dead().unwrap();
        assert_eq!((dead.len(), &dead[0].entry), (1, &None));
        assert!(!spool.revive(&dead[0], false, at(3)).unwrap() && spool.drop_dead(&dead[0]).unwrap());
        assert!(spool.dead().unwrap().is_empty());
    }

    /// A version of before gave up each entry that it could not read, by moving its file.
    #[test]
    fn what_an_older_version_could_not_read_comes_back_and_nothing_else() {
        let (_folder, spool) = spool();
        let [unread, broken, tried] =
            [1, 2, 3].map(|second| spool.enqueue(&entry(&["a@http://lab"], "/1"), at(second)).unwrap());
        fs::write(spool.path(&broken), "{\"version\":2").unwrap();
        for id in [&unread, &broken] {
            fs::rename(spool.path(id), spool.folder().join("dead").join(file_name(id))).unwrap();
        }
        let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
        spool.bury(&tried, &"a@http://lab".parse().unwrap(), &standing).unwrap();
        // The disk gives an error for one of them, which comes first.
        let bad = spool.enqueue(&entry(&["a@http://lab"], "/2"), at(0)).unwrap();
        fs::remove_file(spool.path(&bad)).unwrap();
        fs::create_dir(spool.folder().join("dead").join(file_name(&bad))).unwrap();
        assert_eq!((spool.revive_unread().unwrap(), spool.revive_unread().unwrap()), (1, 0));
        assert_eq!(spool.ids().unwrap(), [unread]);
        assert_eq!(paths(&spool), ["/1"]);
        fs::remove_dir(spool.folder().join("dead").join(file_name(&bad))).unwrap();
        assert_eq!(spool.dead().unwrap().len(), 2, "what nothing can read, and what was tried");
    }

    #[test]
    fn an_entry_of_a_later_version_waits_for_a_later_program() {
        let (_folder, spool) = spool();
        let id = spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
        let later = "{\"version\":3,\"caches\":[\"a\"]}";
        fs::write(spool.path(&id), later).unwrap();
        let cache = "a".parse().unwrap();
        let (standing, is_later) = (Standing::default(), |error| matches!(error, Error::EntryVersion { .. }));
        assert!(is_later(spool.read(&id).unwrap_err()));
        assert!(is_later(spool.settle(&id, &cache).unwrap_err()));
        assert!(is_later(spool.note_failure(&id, &cache, &standing).unwrap_err()));
        assert!(is_later(spool.bury(&id, &cache, &standing).unwrap_err()));
        assert!(is_later(spool.hasten(&id, false, at(2)).unwrap_err()));
        let [(_, read)] = &spool.entries().unwrap()[..] else { panic!("it is listed") };
        assert!(read.as_ref().is_err_and(|error| error.to_string().contains("version 3")));
        assert_eq!(fs::read_to_string(spool.path(&id)).unwrap(), later);
        assert!(spool.dead().unwrap().is_empty() && spool.drop_entry(&id).unwrap());
    }

    /// One name on two servers: each has its own entry, dead letter and fate.
    #[test]
    fn a_cache_is_another_one_on_another_server() {
        let (_folder, spool) = spool();
        let [one, other] =
            ["main@http://one", "main@http://other"].map(|text| text.parse::<QueuedCache>().unwrap());
        let both = [one.clone(), other.clone()];
        let id = spool.enqueue(&QueueEntry::new(&both, vec!["/1".to_owned()], at(1)), at(1)).unwrap();
        let standing = Standing { tries: 8, not_before: 0, error: Some("damaged".to_owned()) };
        spool.bury(&id, &one, &standing).unwrap();
        spool.bury(&id, &other, &standing).unwrap();
        let dead = spool.dead().unwrap();
        assert_eq!(dead.len(), 2, "{dead:?}");
        assert!(
            spool.revive(&dead[0], false, at(2)).unwrap() && spool.revive(&dead[1], true, at(3)).unwrap()
        );
        let revived =
            spool.entries().unwrap().into_iter().flat_map(|(_, entry)| entry.unwrap().caches.into_keys());
        let revived: Vec<QueuedCache> = revived.collect();
        assert!(both.contains(&revived[0]) && revived[1].to_string() == "main", "{revived:?}");
    }

    #[test]
    fn one_process_drains() {
        let (_folder, spool) = spool();
        let lock = spool.try_lock_drainer().unwrap().unwrap();
        assert!(Spool::open(spool.folder()).unwrap().try_lock_drainer().unwrap().is_none());
        assert_eq!(spool.drainer().unwrap(), Some(std::process::id()));
        drop(lock);
        assert_eq!(spool.drainer().unwrap(), None);
        assert!(spool.try_lock_drainer().unwrap().is_some());
    }

    #[test]
    fn a_full_queue_refuses_and_takes_entries_again_later() {
        let (_folder, spool) = spool();
        for shard in SHARDS {
            let folder = spool.folder().join("pending").join(shard.to_string());
            for number in 0..SHARD_ENTRIES_MAX {
                File::create(folder.join(number.to_string())).unwrap();
            }
        }
        let refused = spool.enqueue(&entry(&["a"], "/1"), at(1));
        assert!(matches!(refused, Err(Error::QueueFull { .. })), "{refused:?}");
        for shard in SHARDS {
            fs::remove_file(spool.folder().join("pending").join(shard.to_string()).join("0")).unwrap();
        }
        spool.enqueue(&entry(&["a"], "/1"), at(1)).unwrap();
    }

    #[test]
    fn refused_builds_are_counted_in_a_file_of_fixed_size() {
        let (_folder, spool) = spool();
        let size = || fs::metadata(spool.folder().join("refused")).unwrap().len();
        assert_eq!((spool.refused(), size()), (Refused::default(), REFUSED_BYTES as u64));
        let reason = "\u{1}\"\\é".repeat(200);
        for count in 1..=3 {
            spool.count_refused(&reason, at(7));
            assert_eq!(
                (spool.refused().count, spool.refused().last_at, size()),
                (count, 7, REFUSED_BYTES as u64)
            );
        }
        spool.forget_refused().unwrap();
        assert_eq!(spool.refused(), Refused::default());
    }

    #[test]
    fn leftovers_of_killed_processes_go_and_fresh_ones_stay() {
        let (_folder, spool) = spool();
        let old = spool.folder().join("pending/3").join(format!("{UNFINISHED}1"));
        let fresh = spool.folder().join("dead").join(format!("{UNFINISHED}2"));
        File::create(&fresh).unwrap();
        File::create(&old).unwrap().set_modified(SystemTime::now() - 2 * UNFINISHED_AGE).unwrap();
        assert!(paths(&spool).is_empty() && spool.dead().unwrap().is_empty());
        let before = files(spool.folder());
        drop(spool.try_lock_drainer().unwrap());
        assert!(!old.exists() && fresh.exists());
        assert_eq!(files(spool.folder()), before - 1);
    }
}
