//! How published caches lie in a bucket: one type names every object, and says what it is and how
//! long it lives.
//!
//! ```text
//! dormer-caches.json                       the public caches that are published here
//! dormer-lab.json                          the lab that publishes here
//! main/nix-cache-info
//! main/dormer-state.json                   its visibility, its keys, what was published when
//! main/<store hash>.narinfo
//! main/<store hash>.ls
//! main/nar/<NarHash>-<encoding tag>.nar.zst
//! main/log/<derivation>                    and build-trace-v2/…, realisations/…, debuginfo/…
//! ```
//!
//! Invariants
//! - Below a cache lies a standard static binary cache: any file server, CDN or Nix itself can
//!   serve it.
//! - A NAR's name names its exact bytes, so they never change; everything else may be overwritten.
//! - A name parses back from its printed form, and from nothing else.

use std::fmt;
use std::str::FromStr;

use dormer_api::CacheName;
use dormer_nix::{DocumentName, NarHash, StorePathHash, nix32};

use crate::caching::AnswerKind;
use crate::error::{Error, Result};

/// How long a host may answer from a state document that it read, in seconds: by then a revoked
/// token stops working.
pub const STATE_SECONDS: u32 = 30;

/// Largest narinfo that is published, in bytes. The server takes none that is larger than
/// [`dormer_nix::NARINFO_BYTES_MAX`], and adds signatures.
pub const NARINFO_BYTES_MAX: usize = 2 * dormer_nix::NARINFO_BYTES_MAX;

/// How long a host may remember that an object is not there, in seconds: by then a freshly
/// published path appears.
pub const MISS_SECONDS: u32 = 5;

/// Catalogue of a target.
const CATALOG: &str = "dormer-caches.json";

/// Names the lab of a target.
const LAB: &str = "dormer-lab.json";

/// Describes a cache to the edge.
const STATE: &str = "dormer-state.json";

/// Describes a cache to Nix.
const CACHE_INFO: &str = "nix-cache-info";

/// Behind a NAR's name.
const NAR_SUFFIX: &str = ".nar.zst";

/// Bytes of an encoding tag.
const TAG_BYTES: usize = 16;

/// A published NAR: its hash and the tag of its encoding, which together name its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarFile {
    /// SHA-256 of the archive, uncompressed.
    pub hash: NarHash,
    /// Names the exact bytes that are served for it.
    pub tag: [u8; TAG_BYTES],
}

impl NarFile {
    /// The tag as it stands in the name: 26 characters.
    pub fn tag_text(&self) -> String {
        nix32::encode(&self.tag)
    }
}

impl fmt::Display for NarFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}{NAR_SUFFIX}", self.hash.to_nix32(), self.tag_text())
    }
}

impl FromStr for NarFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.strip_suffix(NAR_SUFFIX).and_then(|stem| stem.split_once('-'));
        parts
            .and_then(|(hash, tag)| {
                Some(Self { hash: NarHash::from_nix32(hash).ok()?, tag: nix32::decode_array(tag).ok()? })
            })
            .ok_or_else(|| no_name(text))
    }
}

/// Every kind of object of a target, by its name below the target's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeKey {
    /// `dormer-caches.json`: the public caches of the target ([`Catalog`](crate::Catalog)).
    Catalog,
    /// `dormer-lab.json`: the lab that publishes to the target ([`LabMark`](crate::LabMark)).
    Lab,
    /// `<cache>/dormer-state.json` ([`CacheState`](crate::CacheState)).
    State(CacheName),
    /// `<cache>/nix-cache-info`.
    CacheInfo(CacheName),
    /// `<cache>/<hash>.narinfo`.
    Narinfo(CacheName, StorePathHash),
    /// `<cache>/<hash>.ls`.
    Listing(CacheName, StorePathHash),
    /// `<cache>/nar/<NarHash>-<tag>.nar.zst`.
    Nar(CacheName, NarFile),
    /// A build log, a build trace or debug info, under Nix's name for it.
    Document(CacheName, DocumentName),
}

impl EdgeKey {
    /// Reads a name back. An error for a text that is no name of the layout.
    pub fn parse(name: &str) -> Result<Self> {
        if name == CATALOG {
            return Ok(Self::Catalog);
        }
        if name == LAB {
            return Ok(Self::Lab);
        }
        let parsed = name.split_once('/').and_then(|(cache, rest)| {
            let cache: CacheName = cache.parse().ok()?;
            if let Some(file) = rest.strip_prefix("nar/") {
                return Some(Self::Nar(cache, file.parse().ok()?));
            }
            if DocumentName::is_in_folder(rest) {
                return Some(Self::Document(cache, rest.parse().ok()?));
            }
            if let Some(hash) = rest.strip_suffix(".narinfo") {
                return Some(Self::Narinfo(cache, hash.parse().ok()?));
            }
            if let Some(hash) = rest.strip_suffix(".ls") {
                return Some(Self::Listing(cache, hash.parse().ok()?));
            }
            match rest {
                STATE => Some(Self::State(cache)),
                CACHE_INFO => Some(Self::CacheInfo(cache)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| no_name(name))
    }

    /// Reads an address as a client spells it: [`DocumentName::of_address`] has a second spelling.
    pub fn of_address(address: &str) -> Result<Self> {
        Self::parse(address).or_else(|error| {
            let (cache, document) = address.split_once('/').ok_or(error)?;
            let name = DocumentName::of_address(document).map_err(|_| no_name(address))?;
            Ok(Self::Document(cache.parse().map_err(|_| no_name(address))?, name))
        })
    }

    /// The cache it belongs to; none for the documents of the whole target.
    pub fn cache(&self) -> Option<&CacheName> {
        match self {
            Self::Catalog | Self::Lab => None,
            Self::State(cache)
            | Self::CacheInfo(cache)
            | Self::Narinfo(cache, _)
            | Self::Listing(cache, _)
            | Self::Document(cache, _)
            | Self::Nar(cache, _) => Some(cache),
        }
    }

    /// Its media type.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Catalog | Self::Lab | Self::State(_) | Self::Listing(..) => "application/json",
            Self::CacheInfo(_) => "text/x-nix-cache-info",
            Self::Narinfo(..) => "text/x-nix-narinfo",
            Self::Nar(..) => "application/x-nix-nar",
            Self::Document(_, name) => document_type(name),
        }
    }

    /// The row of [`caching`](crate::caching) that says what clients and proxies may keep.
    pub fn answer_kind(&self) -> AnswerKind {
        match self {
            Self::Catalog | Self::Lab | Self::State(_) => AnswerKind::State,
            Self::CacheInfo(_) | Self::Narinfo(..) | Self::Listing(..) | Self::Document(..) => {
                AnswerKind::Document
            }
            Self::Nar(..) => AnswerKind::CurrentNar,
        }
    }

    /// Seconds that a host may keep the object in its own cache. This bounds how long something
    /// that was removed for cause is still answered. A narinfo's life is far below the shortest
    /// grace of a NAR (a day), so a client with a narinfo from a cache still finds its NAR.
    pub fn edge_seconds(&self) -> u32 {
        const MINUTE: u32 = 60;
        const DAY: u32 = 24 * 60 * MINUTE;
        match self {
            Self::Catalog | Self::Lab | Self::State(_) => STATE_SECONDS,
            Self::CacheInfo(_) | Self::Narinfo(..) | Self::Document(..) => 5 * MINUTE,
            Self::Listing(..) => 60 * MINUTE,
            Self::Nar(..) => 7 * DAY,
        }
    }
}

impl fmt::Display for EdgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog => f.write_str(CATALOG),
            Self::Lab => f.write_str(LAB),
            Self::State(cache) => write!(f, "{cache}/{STATE}"),
            Self::CacheInfo(cache) => write!(f, "{cache}/{CACHE_INFO}"),
            Self::Narinfo(cache, hash) => write!(f, "{cache}/{hash}.narinfo"),
            Self::Listing(cache, hash) => write!(f, "{cache}/{hash}.ls"),
            Self::Nar(cache, file) => write!(f, "{cache}/nar/{file}"),
            Self::Document(cache, name) => write!(f, "{cache}/{name}"),
        }
    }
}

/// The media type of a document, in the lab and at the edge. Browsers show both.
pub fn document_type(name: &DocumentName) -> &'static str {
    match name {
        DocumentName::Log(_) => "text/plain; charset=utf-8",
        DocumentName::Trace(_) | DocumentName::DebugInfo(_) => "application/json",
    }
}

fn no_name(text: &str) -> Error {
    Error::Key { text: text.chars().take(120).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
    const NAR: &str =
        "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73-0123456789abcdfghijklmnpqr.nar.zst";

    #[test]
    fn what_nix_reads_has_the_type_that_its_manual_names() {
        for (name, content_type) in [
            ("main/nix-cache-info".to_owned(), "text/x-nix-cache-info"),
            (format!("main/{HASH}.narinfo"), "text/x-nix-narinfo"),
            (format!("main/{HASH}.ls"), "application/json"),
        ] {
            assert_eq!(EdgeKey::parse(&name).unwrap().content_type(), content_type);
        }
    }

    #[test]
    fn names_are_those_of_a_static_binary_cache() {
        let cache = || "main".parse::<CacheName>().unwrap();
        let hash: StorePathHash = HASH.parse().unwrap();
        let file: NarFile = format!("{}-{}.nar.zst", &NAR[..52], nix32::encode(&[7; 16])).parse().unwrap();
        let (log, trace) = (format!("log/{HASH}-x.drv"), format!("build-trace-v2/{HASH}-x.drv/out.doi"));
        let debug = "debuginfo/00ab3f.debug";
        for (key, name) in [
            (EdgeKey::Catalog, "dormer-caches.json".to_owned()),
            (EdgeKey::Lab, "dormer-lab.json".to_owned()),
            (EdgeKey::State(cache()), "main/dormer-state.json".to_owned()),
            (EdgeKey::CacheInfo(cache()), "main/nix-cache-info".to_owned()),
            (EdgeKey::Narinfo(cache(), hash), format!("main/{HASH}.narinfo")),
            (EdgeKey::Listing(cache(), hash), format!("main/{HASH}.ls")),
            (EdgeKey::Nar(cache(), file), format!("main/nar/{file}")),
            (EdgeKey::Document(cache(), log.parse().unwrap()), format!("main/{log}")),
            (EdgeKey::Document(cache(), trace.parse().unwrap()), format!("main/{trace}")),
            (EdgeKey::Document(cache(), debug.parse().unwrap()), format!("main/{debug}")),
        ] {
            assert_eq!(key.to_string(), name);
            assert_eq!(EdgeKey::parse(&name).unwrap(), key);
        }
    }

    #[test]
    fn what_is_no_name_does_not_parse() {
        for name in [
            "",
            "main",
            "main/",
            "/main/nix-cache-info",
            "main/nar/x.nar.zst",
            "main/nar/../nix-cache-info",
            "main//nix-cache-info",
            "_x/nix-cache-info",
            "main/1k8c.narinfo",
            "dormer-caches.json/",
            "main/log/x.drv",
            "main/log/",
            "main/build-trace-v2/x/out.doi",
            "main/realisations/sha256:x!out.doi",
            "main/nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.zst",
        ] {
            assert!(EdgeKey::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_narinfo_is_forgotten_long_before_a_nars_grace_ends() {
        let narinfo = EdgeKey::Narinfo("main".parse().unwrap(), HASH.parse().unwrap());
        // A proxy may keep it for as long once more, from the moment that the host lets it go.
        assert!(2 * narinfo.edge_seconds() < 24 * 3_600);
    }

    proptest! {
        #[test]
        fn every_nar_file_parses_back(hash: [u8; 32], tag: [u8; 16]) {
            let file = NarFile { hash: NarHash::from_bytes(hash), tag };
            prop_assert_eq!(file.to_string().parse::<NarFile>().unwrap(), file);
        }

        #[test]
        fn what_parses_prints_the_same(name in "[a-z0-9-]{1,8}/(nar/)?[0-9a-z-]{0,60}(\\.narinfo|\\.ls|\\.nar\\.zst)?") {
            if let Ok(key) = EdgeKey::parse(&name) {
                prop_assert_eq!(key.to_string(), name);
            }
        }
    }
}
