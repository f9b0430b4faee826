//! How many builds could not be queued, and why the last one could not.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Spool, give_to_owner};
use crate::error::{Error, Result};
use crate::queue::entry::seconds;

/// Bytes of the file `refused`, which exists at its full length from the start, so that a full disk
/// can take it.
pub(super) const REFUSED_BYTES: usize = 1024;

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

    pub(super) fn prepare_refused(&self) -> io::Result<()> {
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
}

/// At most `max` bytes of a text, without characters that JSON writes in six bytes.
fn shortened(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace(char::is_control, " ")
}
