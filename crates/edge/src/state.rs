//! The small documents that the publisher writes beside the standard ones.
//!
//! Each names a version. A reader refuses a newer version, because it must not half understand an
//! access rule. A reader ignores unknown fields.

use dormer_api::CacheName;
use serde::{Deserialize, Serialize};

use crate::caching::Visibility;
use crate::error::{Error, Result};

/// Largest document that is written or read, in bytes: room for 20,000 revoked tokens.
pub const STATE_BYTES_MAX: usize = 1024 * 1024;

/// Version of these documents.
const VERSION: u32 = 1;

/// What the edge has to know of a cache (`<cache>/dormer-state.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheState {
    /// Version of this document.
    pub version: u32,
    /// Its name: a document that was copied to another place counts for nothing there.
    pub cache: CacheName,
    /// Whether anybody may read it.
    pub public: bool,
    /// Store folder that its paths live in.
    pub store_dir: String,
    /// Priority that `nix-cache-info` announces.
    pub priority: i32,
    /// Keys that its narinfos are signed with, as they stand in nix.conf.
    pub public_keys: Vec<String>,
    /// Paths that are published.
    pub object_count: u64,
    /// Bytes of their files, compressed; one that several paths share counts once.
    pub file_bytes: u64,
    /// When something was published last, in seconds since 1970 UTC.
    pub published_at: i64,
    /// Ids (`jti`) of tokens that count no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<String>,
}

impl CacheState {
    /// Version that is written.
    pub const VERSION: u32 = VERSION;

    /// Reads a document.
    pub fn parse(json: &[u8]) -> Result<Self> {
        const WHAT: &str = "a cache's state document";
        let state: Self = parse(json, WHAT)?;
        check_version(state.version, WHAT)?;
        Ok(state)
    }

    /// Writes it.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text keys only")
    }

    /// Whether a token decides about answers from the cache.
    pub(crate) fn visibility(&self) -> Visibility {
        if self.public { Visibility::Public } else { Visibility::Private }
    }
}

/// The public caches of a target (`dormer-caches.json`), for the page at `/`. Private ones are not
/// named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Version of this document.
    pub version: u32,
    /// Names, ascending.
    pub caches: Vec<CacheName>,
}

impl Catalog {
    /// A catalogue of these caches.
    pub fn new(mut caches: Vec<CacheName>) -> Self {
        caches.sort();
        caches.dedup();
        Self { version: VERSION, caches }
    }

    /// Reads a document.
    pub fn parse(json: &[u8]) -> Result<Self> {
        const WHAT: &str = "the catalogue of caches";
        let catalog: Self = parse(json, WHAT)?;
        check_version(catalog.version, WHAT)?;
        Ok(catalog)
    }

    /// Writes it.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text keys only")
    }
}

/// The lab that publishes to a target (`dormer-lab.json`). Another lab writes nothing there: it
/// would take the files for strangers, and remove them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabMark {
    /// Version of this document.
    pub version: u32,
    /// The random id that the lab's database and its store carry.
    pub lab: String,
}

impl LabMark {
    /// The mark of a lab.
    pub fn new(lab: String) -> Self {
        Self { version: VERSION, lab }
    }

    /// Reads a document.
    pub fn parse(json: &[u8]) -> Result<Self> {
        const WHAT: &str = "the mark of a lab";
        let mark: Self = parse(json, WHAT)?;
        check_version(mark.version, WHAT)?;
        Ok(mark)
    }

    /// Writes it.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text keys only")
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8], what: &'static str) -> Result<T> {
    if json.len() > STATE_BYTES_MAX {
        return Err(Error::TooLarge { what, bytes: json.len(), max: STATE_BYTES_MAX });
    }
    serde_json::from_slice(json).map_err(|source| Error::Malformed { what, source })
}

fn check_version(found: u32, what: &'static str) -> Result<()> {
    if found == VERSION { Ok(()) } else { Err(Error::TooNew { what, found, known: VERSION }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_the_form_that_was_published() {
        let state = CacheState {
            version: 1,
            cache: "main".parse().unwrap(),
            public: true,
            store_dir: "/nix/store".to_owned(),
            priority: 41,
            public_keys: vec!["main:AAAA".to_owned()],
            object_count: 2,
            file_bytes: 300,
            published_at: 1_800_000_000,
            revoked: vec![],
        };
        let json = r#"{"version":1,"cache":"main","public":true,"store_dir":"/nix/store","priority":41,"public_keys":["main:AAAA"],"object_count":2,"file_bytes":300,"published_at":1800000000}"#;
        assert_eq!(String::from_utf8(state.to_json()).unwrap(), json);
        assert_eq!(CacheState::parse(json.as_bytes()).unwrap(), state);
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
        let catalog = Catalog::new(names(&["b", "a", "b"]));
        assert_eq!(String::from_utf8(catalog.to_json()).unwrap(), r#"{"version":1,"caches":["a","b"]}"#);
        assert_eq!(Catalog::parse(&catalog.to_json()).unwrap(), catalog);
        let mark = LabMark::new("07".to_owned());
        assert_eq!(String::from_utf8(mark.to_json()).unwrap(), r#"{"version":1,"lab":"07"}"#);
        assert_eq!(LabMark::parse(&mark.to_json()).unwrap(), mark);
    }

    #[test]
    fn what_is_newer_broken_or_too_large_is_refused() {
        assert!(matches!(
            Catalog::parse(br#"{"version":2,"caches":[]}"#),
            Err(Error::TooNew { found: 2, .. })
        ));
        assert!(matches!(Catalog::parse(b"{"), Err(Error::Malformed { .. })));
        assert!(matches!(Catalog::parse(&vec![b' '; STATE_BYTES_MAX + 1]), Err(Error::TooLarge { .. })));
        assert!(Catalog::parse(br#"{"version":1,"caches":["../x"]}"#).is_err());
        assert!(Catalog::parse(br#"{"version":1,"caches":["x"],"later":7}"#).is_ok());
    }
}
