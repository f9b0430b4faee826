//! One entry of the queue: which paths go to which caches, and what was tried. Pure: bytes in,
//! bytes out.
//!
//! An entry is a JSON object in a file of its own. A reader refuses versions that it does not know
//! and ignores fields that it does not know.
//!
//! | version | the names in `caches` |
//! |---|---|
//! | 1 | `[SERVER:]CACHE`: the settings of the drainer say where that is |
//! | 2 | also `[SERVER:]CACHE@URL`: builds for the server at this address, and for no other |

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::settings::CacheRef;

/// Most bytes of an entry. The kernel gives a hook at most 128 KiB of paths.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;

const VERSION: u32 = 2;

/// What every version has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// A cache that builds are queued for, and where its server was then. The settings or variables of
/// the process that pushes may name another server, which must not get the builds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueuedCache {
    /// The cache as the user named it.
    pub cache: CacheRef,
    /// The server. `None` if nothing said it, as in entries of version 1.
    pub endpoint: Option<Endpoint>,
}

impl From<CacheRef> for QueuedCache {
    fn from(cache: CacheRef) -> Self {
        Self { cache, endpoint: None }
    }
}

impl FromStr for QueuedCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((cache, endpoint)) = text.split_once('@') else {
            return text.parse().map(|cache: CacheRef| cache.into());
        };
        Ok(Self { cache: cache.parse()?, endpoint: Some(endpoint.parse()?) })
    }
}

impl TryFrom<String> for QueuedCache {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<QueuedCache> for String {
    fn from(cache: QueuedCache) -> Self {
        cache.to_string()
    }
}

impl fmt::Display for QueuedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "{}@{endpoint}", self.cache),
            None => self.cache.fmt(f),
        }
    }
}

/// The name of an entry: the time at which it was queued, and random digits. The order is that of
/// the times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(String);

impl EntryId {
    /// A name for an entry that is queued now. `random` tells apart the entries of one moment.
    pub(crate) fn new(now: SystemTime, random: u32) -> Self {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(format!("{:020}-{random:08x}", since_epoch.as_nanos()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last digit, which chooses the folder of the entry.
    pub(crate) fn shard(&self) -> char {
        self.0.chars().next_back().expect("an id ends with a digit")
    }
}

impl FromStr for EntryId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_id = text.split_once('-').is_some_and(|(time, random)| {
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            time.len() == 20
                && time.bytes().all(|byte| byte.is_ascii_digit())
                && random.len() == 8
                && random.chars().all(is_hex)
        });
        if is_id { Ok(Self(text.to_owned())) } else { Err(Error::EntryId { text: text.to_owned() }) }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was tried for one cache of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Number of failures that concern these paths. A server that is away counts for none.
    #[serde(default)]
    pub tries: u32,
    /// The entry rests until this time, in seconds since 1970.
    #[serde(default)]
    pub not_before: u64,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Paths that wait for their push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    pub(super) version: u32,
    /// When the entry was queued, in seconds since 1970.
    pub queued_at: u64,
    /// The caches that do not have all of the paths yet.
    pub caches: BTreeMap<QueuedCache, Standing>,
    /// Absolute store paths.
    #[serde(default)]
    pub paths: Vec<String>,
    /// A derivation whose outputs are meant: Nix 2.8 does not tell its hook the outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<String>,
}

impl QueueEntry {
    /// A new entry of these absolute store paths.
    pub fn new(caches: &[QueuedCache], paths: Vec<String>, now: SystemTime) -> Self {
        let caches = caches.iter().map(|cache| (cache.clone(), Standing::default())).collect();
        Self { version: VERSION, queued_at: seconds(now), caches, paths, derivation: None }
    }

    /// The same with the outputs of a derivation in place of paths.
    pub fn of_derivation(caches: &[QueuedCache], derivation: String, now: SystemTime) -> Self {
        Self { derivation: Some(derivation), ..Self::new(caches, Vec::new(), now) }
    }

    /// The same entry for one of its caches.
    pub(crate) fn only_for(&self, cache: &QueuedCache) -> Self {
        let caches = self.caches.iter().filter(|(other, _)| *other == cache);
        Self {
            caches: caches.map(|(cache, standing)| (cache.clone(), standing.clone())).collect(),
            ..self.clone()
        }
    }

    /// Whether the entry is about this absolute store path.
    pub fn concerns(&self, path: &str) -> bool {
        self.paths.iter().any(|one| one == path)
    }

    /// The entry as the bytes of its file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("an entry has text keys only");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the bytes of a file. Any bytes give an error at worst.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(Error::EntryTooLarge { max: ENTRY_BYTES_MAX });
        }
        // First of all: the rest of a later version may have any form.
        let AnyVersion { version } = serde_json::from_slice(bytes).map_err(Error::EntryJson)?;
        if !(1..=VERSION).contains(&version) {
            return Err(Error::EntryVersion { version });
        }
        serde_json::from_slice(bytes).map_err(Error::EntryJson)
    }
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> QueueEntry {
        let caches = ["main@http://lab:8080".parse().unwrap(), "lab:team".parse().unwrap()];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_400_000);
        QueueEntry::new(&caches, vec!["/nix/store/x".to_owned()], now)
    }

    /// The form of the files, which later versions must read.
    #[test]
    fn an_entry_is_a_line_of_json() {
        let text = "{\"version\":2,\"queued_at\":1764400000,\"caches\":{\"main@http://lab:8080/\":{\"tries\":0,\
                    \"not_before\":0},\"lab:team\":{\"tries\":0,\"not_before\":0}},\"paths\":[\"/nix/store/x\"]}\n";
        assert_eq!(String::from_utf8(entry().encode()).unwrap(), text);
        assert_eq!(QueueEntry::decode(text.as_bytes()).unwrap(), entry());
        let with_more = text.replace("\"paths\"", "\"later\":[1],\"paths\"");
        assert_eq!(QueueEntry::decode(with_more.as_bytes()).unwrap(), entry());
        // Version 1 says nothing about servers.
        let first = text.replace("@http://lab:8080/", "").replace("\"version\":2", "\"version\":1");
        let read = QueueEntry::decode(first.as_bytes()).unwrap();
        assert!(read.caches.keys().all(|cache| cache.endpoint.is_none()));
        assert_eq!(String::from_utf8(read.encode()).unwrap(), first);
    }

    #[test]
    fn a_queued_cache_is_written_as_it_is_read() {
        for (text, written) in [
            ("main", "main"),
            ("lab:main", "lab:main"),
            ("main@https://Lab/base", "main@https://lab/base/"),
            ("lab:main@http://[::1]:8080", "lab:main@http://[::1]:8080/"),
        ] {
            let read: QueuedCache = text.parse().unwrap();
            assert_eq!((read.to_string().as_str(), read.endpoint.is_some()), (written, text.contains('@')));
            assert_eq!(written.parse::<QueuedCache>().unwrap(), read);
        }
        for text in ["", "@http://a", "main@", "main@lab", "main@http://user:p@lab", "a b@http://a"] {
            assert!(text.parse::<QueuedCache>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let text = String::from_utf8(entry().encode()).unwrap();
        for end in 0..text.len() - 2 {
            assert!(QueueEntry::decode(&text.as_bytes()[..end]).is_err(), "the first {end} bytes");
        }
        for (version, later) in [(0, ""), (3, ""), (3, ",\"caches\":7")] {
            let other = format!("{{\"version\":{version}{later}}}");
            let read = QueueEntry::decode(other.as_bytes());
            assert!(matches!(read, Err(Error::EntryVersion { version: seen }) if seen == version), "{other}");
        }
        let foreign = text.replace("lab:team", "lab/team");
        assert!(matches!(QueueEntry::decode(foreign.as_bytes()), Err(Error::EntryJson(_))));
        let large = vec![b' '; ENTRY_BYTES_MAX + 1];
        assert!(matches!(QueueEntry::decode(&large), Err(Error::EntryTooLarge { .. })));
    }

    #[test]
    fn ids_sort_by_time_and_are_safe_names() {
        let at = |nanos| EntryId::new(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos), 0xabc);
        assert!(at(9) < at(10) && at(999_999) < at(1_764_400_000_000_000_000));
        assert_eq!(at(7).to_string().parse::<EntryId>().unwrap(), at(7));
        assert_eq!(at(7).shard(), 'c');
        for text in ["", "-", "../../etc/passwd", "00000000000000000007-00000ABC", "7-00000abc"] {
            assert!(matches!(text.parse::<EntryId>(), Err(Error::EntryId { .. })), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = QueueEntry::decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read_back(
            paths in proptest::collection::vec("\\PC{0,40}", 0..4), tries in 0..9_u32, error in proptest::option::of("\\PC*"),
        ) {
            let mut entry = QueueEntry { paths, ..entry() };
            for standing in entry.caches.values_mut() {
                *standing = Standing { tries, not_before: u64::from(tries), error: error.clone() };
            }
            proptest::prop_assert_eq!(QueueEntry::decode(&entry.encode()).unwrap(), entry);
        }
    }
}
