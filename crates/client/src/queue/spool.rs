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
//! - The number of entries is bounded ([`SHARD_ENTRIES_MAX`], `DEAD_MAX`). A full queue refuses.
//!
//! All calls block for as long as the disk takes.

mod dead_letters;
mod drainer_lock;
mod refused;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use self::dead_letters::DeadLetter;
pub use self::drainer_lock::DrainerLock;
pub use self::refused::Refused;

use super::entry::{ENTRY_BYTES_MAX, EntryId, QueueEntry, QueuedCache, Standing};
use crate::durable_file::{replace_file, sync_folder};
use crate::error::{Error, Result};

/// Most entries in one of the 16 folders, which share the entries evenly: 65,536 in all. Counting
/// this many names takes a hook a millisecond.
const SHARD_ENTRIES_MAX: usize = 4096;

const SHARDS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
const SUFFIX: &str = ".json";

/// The queue on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    folder: PathBuf,
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

    fn shard(&self, id: &EntryId) -> PathBuf {
        self.folder.join("pending").join(id.shard().to_string())
    }

    fn path(&self, id: &EntryId) -> PathBuf {
        self.shard(id).join(file_name(id))
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
