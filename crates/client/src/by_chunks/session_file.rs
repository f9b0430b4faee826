//! The names of sessions on this machine, so that a push that was killed is joined again.
//!
//! Invariants
//! - The name of a session is on the disk before the server learns it.
//! - Two pushes at once never use the same session: a push holds the lock of its file until it
//!   ends, and the kernel frees the lock of a push that was killed.
//! - Without a folder, or on a disk that is full, a push works and cannot be joined again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use dormer_api::CacheName;
use dormer_api::v2::SessionId;
use dormer_nix::NarHash;
use rand::Rng as _;

use crate::endpoint::Endpoint;
use crate::settings::Variables;

/// Most pushes at once from one user to one cache that can be joined again.
const FILES_MAX: u32 = 32;

/// The folder for the names of sessions: `$XDG_STATE_HOME/dormer/push`, else
/// `~/.local/state/dormer/push`. `None` for a user without a home.
pub fn session_folder(variables: Variables<'_>) -> Option<PathBuf> {
    let absolute = |text: String| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
    let state = variables("XDG_STATE_HOME").and_then(absolute);
    let state = state.or_else(|| Some(variables("HOME").and_then(absolute)?.join(".local/state")))?;
    Some(state.join("dormer/push"))
}

/// The session of this push.
#[derive(Debug)]
pub(super) struct SessionFile {
    /// Locked while it is open. `None` if the session is not on the disk.
    file: Option<File>,
    id: SessionId,
    /// Whether an earlier push used the session.
    is_old: bool,
}

impl SessionFile {
    /// The session that the last push left, or a new one.
    pub(super) fn open(folder: Option<&Path>, endpoint: &Endpoint, cache: &CacheName) -> Self {
        let locked = folder.and_then(|folder| match lock_first_free(folder, endpoint, cache) {
            Ok(locked) => locked,
            Err(error) => {
                tracing::debug!(folder = %folder.display(), error = &error as &dyn std::error::Error,
                    "the session of this push cannot be kept");
                None
            }
        });
        let Some((file, old)) = locked else {
            return Self { file: None, id: new_id(), is_old: false };
        };
        let mut session = Self { file: Some(file), id: old.unwrap_or_else(new_id), is_old: old.is_some() };
        if !session.is_old {
            session.renew();
        }
        session
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// Whether an earlier push used the session.
    pub(super) fn is_old(&self) -> bool {
        self.is_old
    }

    /// Takes a new session.
    pub(super) fn renew(&mut self) {
        self.id = new_id();
        self.is_old = false;
        if let Some(file) = &mut self.file
            && let Err(error) = write(file, self.id)
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the session of this push is not kept");
        }
    }
}

impl Drop for SessionFile {
    /// The next push gets the file at once, even while a child that this process is starting still
    /// has a copy of the open file.
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

fn new_id() -> SessionId {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    SessionId::from_bytes(id)
}

/// Locks the first file that no other push uses. Returns the session that is in it.
fn lock_first_free(
    folder: &Path,
    endpoint: &Endpoint,
    cache: &CacheName,
) -> io::Result<Option<(File, Option<SessionId>)>> {
    fs::create_dir_all(folder)?;
    // Two addresses may differ only in characters that no file name holds, so their hash decides.
    let address = endpoint.join(cache.as_str());
    let hash = &NarHash::digest(address.as_bytes()).to_hex()[..16];
    for number in 0..FILES_MAX {
        let path = folder.join(format!("{cache}-{hash}-{number}"));
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                let mut text = String::new();
                // A file that a crash left half written is like a new one.
                let read = Read::by_ref(&mut file).take(64).read_to_string(&mut text);
                let old = read.ok().and_then(|_| text.trim_end().parse().ok());
                return Ok(Some((file, old)));
            }
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

fn write(file: &mut File, id: SessionId) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{id}")?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, cache: &str) -> SessionFile {
        SessionFile::open(Some(folder), &"http://lab".parse().unwrap(), &cache.parse().unwrap())
    }

    #[test]
    fn a_push_joins_the_session_that_the_last_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/down");
        let first = open(&folder, "main");
        assert!(!first.is_old());
        let id = first.id();
        drop(first);
        let mut second = open(&folder, "main");
        assert_eq!((second.id(), second.is_old()), (id, true));
        second.renew();
        assert_ne!(second.id(), id);
        let id = second.id();
        drop(second);
        assert_eq!(open(&folder, "main").id(), id);
        assert_ne!(open(&folder, "other").id(), id);
    }

    #[test]
    fn two_pushes_at_once_have_two_sessions_and_both_are_joined_again() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (open(folder.path(), "main"), open(folder.path(), "main"));
        let ids = [first.id(), second.id()];
        assert_ne!(ids[0], ids[1]);
        // What a process has between fork and exec does not keep the files locked.
        let _of_a_child = first.file.as_ref().unwrap().try_clone().unwrap();
        drop((first, second));
        let (first, second) = (open(folder.path(), "main"), open(folder.path(), "main"));
        assert_eq!([first.id(), second.id()], ids);
    }

    #[test]
    fn a_damaged_file_and_no_folder_give_a_new_session() {
        let folder = tempfile::tempdir().unwrap();
        let id = open(folder.path(), "main").id();
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        for text in ["", "0123", "\u{fffd}"] {
            fs::write(&file, text).unwrap();
            let session = open(folder.path(), "main");
            assert!(!session.is_old() && session.id() != id, "{text:?}");
            drop(session);
            assert!(open(folder.path(), "main").is_old());
        }
        let file_as_folder = SessionFile::open(
            Some(&file.join("x")),
            &"http://lab".parse().unwrap(),
            &"main".parse().unwrap(),
        );
        assert!(!file_as_folder.is_old());
        assert!(file_as_folder.file.is_none());
    }

    #[test]
    fn the_folder_is_that_of_the_users_state() {
        let folder = |variables: &[(&str, &str)]| {
            session_folder(&|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(folder(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Some("/s/dormer/push".into()));
        assert_eq!(folder(&[("HOME", "/h")]), Some("/h/.local/state/dormer/push".into()));
        assert_eq!(folder(&[("XDG_STATE_HOME", "s")]), None);
        assert_eq!(folder(&[]), None);
    }
}
