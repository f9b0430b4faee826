//! Entries that were given up, each for one cache, with the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dormer_nix::NarHash;

use super::{SUFFIX, Spool, fresh, names_in, read_bounded, remove, write_whole};
use crate::error::{Error, Result};
use crate::queue::entry::{EntryId, QueueEntry, QueuedCache, Standing};

/// Dead letters that a start queues again: the rest waits for the next one, so that they leave room
/// for new entries.
const REVIVED_MAX: usize = 1_000;

/// Most dead letters. The oldest make room.
const DEAD_MAX: usize = 10_000;

/// An entry that was given up for one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The name of its file, without the suffix.
    pub name: String,
    /// The entry, with the reason in the standing of its cache. `None` if nothing can read it.
    pub entry: Option<QueueEntry>,
}

impl Spool {
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

    /// Drops a dead letter. Returns `false` if it is gone.
    pub fn drop_dead(&self, letter: &DeadLetter) -> Result<bool> {
        let _editing = self.edit()?;
        remove(&self.dead_path(letter))
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

    fn dead_path(&self, letter: &DeadLetter) -> PathBuf {
        self.folder.join("dead").join(format!("{}{SUFFIX}", letter.name))
    }
}

fn dead_names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = names_in(folder)?;
    names.retain(|name| name.ends_with(SUFFIX) && !name.starts_with('.'));
    names.sort_unstable();
    Ok(names)
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
