//! The right to push what is in the queue, which one process has.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::time::Duration;

use super::{SHARDS, Spool, names_in, open_lock};
use crate::durable_file::UNFINISHED;
use crate::error::{Error, Result};

/// An unfinished file of this age belongs to a process that died.
pub(super) const UNFINISHED_AGE: Duration = Duration::from_hours(1);

/// The right to push what is in the queue. It ends with the process. Dropping it gives it back at
/// once, even while a child that this process is starting still has a copy of the open file.
#[derive(Debug)]
pub struct DrainerLock(File);

impl Drop for DrainerLock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Spool {
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
}
