//! What the files that were read so far have named.

use std::collections::HashSet;

use dormer_nix::StorePathHash;

/// What the files so far had. Only keys of segments are remembered: a snapshot names each thing
/// once, nearly always, and its states are equally new where it does not.
#[derive(Debug, Default)]
pub(super) struct Seen {
    paths: HashSet<(u64, StorePathHash)>,
    aliases: HashSet<(u64, String)>,
    documents: HashSet<(u64, String)>,
}

impl Seen {
    pub(super) fn had_path(&mut self, cache: u64, hash: StorePathHash, is_part: bool) -> bool {
        if is_part { self.paths.contains(&(cache, hash)) } else { !self.paths.insert((cache, hash)) }
    }

    pub(super) fn had_alias(&mut self, cache: u64, name: &str, is_part: bool) -> bool {
        let key = (cache, name.to_owned());
        if is_part { self.aliases.contains(&key) } else { !self.aliases.insert(key) }
    }

    pub(super) fn had_document(&mut self, cache: u64, name: &str, is_part: bool) -> bool {
        let key = (cache, name.to_owned());
        if is_part { self.documents.contains(&key) } else { !self.documents.insert(key) }
    }
}
