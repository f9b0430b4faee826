//! Store paths: the folder, the hash part, and the base name.
//!
//! Invariants
//! - The name of a [`StorePath`] has 1 to 211 characters of `0-9a-zA-Z+-._?=`, and its first
//!   dash-separated part is neither `.` nor `..`. The newest Nix accepts exactly these names. A
//!   base name is therefore safe as a file name, as a URL segment and as a line.
//! - A [`StoreDir`] is absolute and normal, so `dir + "/" + base name` is the only spelling of a
//!   path.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::nix32;
use crate::text::{is_line, serde_as_string};

/// Longest name of a store path in bytes. Nix computes this from the 255 bytes of a file name, less
/// the hash, the dash and a suffix such as `.drv.chroot`.
pub const STORE_PATH_NAME_BYTES_MAX: usize = 211;

/// Characters of the hash part.
const HASH_CHARS: usize = 32;

/// Longest store folder in bytes; real ones are about ten.
const STORE_DIR_BYTES_MAX: usize = 1024;

/// The folder that contains a store's paths, nearly always `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(String);

impl StoreDir {
    /// The folder, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".to_owned())
    }
}

impl FromStr for StoreDir {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let normal = |part: &str| !matches!(part, "" | "." | "..");
        match text.strip_prefix('/') {
            Some(rest)
                if text.len() <= STORE_DIR_BYTES_MAX && is_line(text) && rest.split('/').all(normal) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Error::store_dir(text)),
        }
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

serde_as_string!(StoreDir, "an absolute folder");

/// The hash part of a store path: 20 bytes, written as 32 characters of nix-base32. The hash
/// identifies an object within a cache.
///
/// The order is that of the bytes, which differs from the order of the texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; 20]);

impl StorePathHash {
    /// Makes a hash part from the decoded bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The decoded bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl FromStr for StorePathHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        nix32::decode_array(text).map(Self).map_err(|_| Error::store_path_hash(text))
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&nix32::encode(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_string!(StorePathHash, "the hash of a store path");

/// A store path without its folder: `<hash>-<name>`. The order is that of the texts, as in Nix's
/// lists of references.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    /// The whole text, because comparing, printing and serving a path happen millions of times more
    /// often than reading its parts.
    base_name: Box<str>,
}

impl StorePath {
    /// Joins a hash and a name. Fails on a bad name.
    pub fn new(hash: StorePathHash, name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { base_name: format!("{hash}-{name}").into() })
    }

    /// Reads a full path, which must lie directly in `store_dir`.
    pub fn parse_absolute(store_dir: &StoreDir, text: &str) -> Result<Self> {
        text.strip_prefix(store_dir.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|base_name| !base_name.contains('/'))
            .ok_or_else(|| Error::ForeignStoreDir {
                text: crate::text::excerpt(text),
                store_dir: store_dir.to_string(),
            })?
            .parse()
    }

    /// The full path.
    pub fn to_absolute(&self, store_dir: &StoreDir) -> String {
        format!("{store_dir}/{self}")
    }

    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        self.base_name[..HASH_CHARS].parse().expect("checked when the path was made")
    }

    /// The name part.
    pub fn name(&self) -> &str {
        &self.base_name[HASH_CHARS + 1..]
    }

    /// The name without `.drv`, if the path is a derivation.
    pub fn derivation_name(&self) -> Option<&str> {
        self.name().strip_suffix(".drv")
    }

    /// Whether the path is a derivation: its name ends with `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.derivation_name().is_some()
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.base_name
    }
}

impl FromStr for StorePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (hash, name) = text
            .split_at_checked(HASH_CHARS)
            .and_then(|(hash, rest)| Some((hash, rest.strip_prefix('-')?)))
            .ok_or_else(|| Error::store_path(text))?;
        hash.parse::<StorePathHash>()?;
        check_name(name)?;
        Ok(Self { base_name: text.into() })
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base_name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_string!(StorePath, "a store path without its folder");

/// Nix's rules for names. Nix before 2.20 accepted any name that does not start with a dot, and
/// later any name. The newest Nix refuses names that begin like the folders `.` and `..`.
fn check_name(name: &str) -> Result<()> {
    if is_name(name) { Ok(()) } else { Err(Error::store_path_name(name)) }
}

/// Whether this can be the name of a store path, or of a derivation's output.
pub(crate) fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    let first = name.split('-').next().unwrap_or_default();
    !name.is_empty()
        && name.len() <= STORE_PATH_NAME_BYTES_MAX
        && name.bytes().all(known)
        && !matches!(first, "." | "..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::strategies;

    const BASE_NAME: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello-2.12.1";

    #[test]
    fn a_path_reads_in_both_forms() {
        let path: StorePath = BASE_NAME.parse().unwrap();
        assert_eq!(path.name(), "hello-2.12.1");
        assert_eq!(path.hash().to_string(), "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5");
        let store_dir = StoreDir::default();
        assert_eq!(path.to_absolute(&store_dir), format!("/nix/store/{BASE_NAME}"));
        assert_eq!(StorePath::parse_absolute(&store_dir, &path.to_absolute(&store_dir)), Ok(path));
    }

    #[test]
    fn a_derivation_is_known_by_its_name() {
        let path = |end: &str| format!("{BASE_NAME}{end}").parse::<StorePath>().unwrap();
        assert_eq!(
            (path(".drv").derivation_name(), path(".drv").is_derivation()),
            (Some("hello-2.12.1"), true)
        );
        assert!(!path("").is_derivation() && !path(".drv.lock").is_derivation());
    }

    #[test]
    fn paths_outside_the_store_folder_are_refused() {
        let store_dir = StoreDir::default();
        for text in [
            BASE_NAME.to_owned(),
            format!("/nix/store{BASE_NAME}"),
            format!("/nix/store//{BASE_NAME}"),
            format!("/nix/store/{BASE_NAME}/bin"),
            format!("/nix/store/{BASE_NAME}/"),
            format!("/gnu/store/{BASE_NAME}"),
            format!("/nix/store/../{BASE_NAME}"),
            format!("/nix/storefoo/{BASE_NAME}"),
        ] {
            assert!(
                matches!(StorePath::parse_absolute(&store_dir, &text), Err(Error::ForeignStoreDir { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_base_names_are_refused() {
        let hash = &BASE_NAME[..32];
        for text in [
            String::new(),
            hash.to_owned(),
            format!("{hash}-"),
            format!("{hash}_a"),
            format!("{hash}-."),
            format!("{hash}-.."),
            format!("{hash}-.-a"),
            format!("{hash}-..-a"),
            format!("{hash}-a/b"),
            format!("{hash}-a b"),
            format!("{hash}-a\n"),
            format!("{hash}-a\0"),
            format!("{hash}-é"),
            format!("{hash}-{}", "a".repeat(212)),
            format!("{}-a", &hash[1..]),
            format!("e{}-a", &hash[1..]),
            format!("{}-a", hash.to_uppercase()),
            "é".repeat(20),
        ] {
            assert!(text.parse::<StorePath>().is_err(), "{text:?}");
        }
        assert!(format!("{hash}-{}", "a".repeat(211)).parse::<StorePath>().is_ok());
        assert!(format!("{hash}-...").parse::<StorePath>().is_ok());
        assert!(format!("{hash}-.a-?=+_").parse::<StorePath>().is_ok());
    }

    #[test]
    fn store_folders_are_absolute_and_normal() {
        for text in ["/nix/store", "/gnu/store", "/home/a b/nix", "/x"] {
            assert_eq!(text.parse::<StoreDir>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/",
            "nix/store",
            "/nix/store/",
            "/nix//store",
            "/nix/../store",
            "/nix/.",
            "/..",
            "/a\nb",
            "//",
        ] {
            assert!(text.parse::<StoreDir>().is_err(), "{text:?}");
        }
        assert!(format!("/{}", "a".repeat(1024)).parse::<StoreDir>().is_err());
    }

    proptest! {
        #[test]
        fn parse_undoes_display(path in strategies::store_path(), store_dir in strategies::store_dir()) {
            prop_assert_eq!(path.to_string().parse(), Ok(path.clone()));
            prop_assert_eq!(StorePath::new(path.hash(), path.name()), Ok(path.clone()));
            prop_assert_eq!(StorePath::parse_absolute(&store_dir, &path.to_absolute(&store_dir)), Ok(path.clone()));
            prop_assert_eq!(store_dir.to_string().parse(), Ok(store_dir));
            let json = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<StorePath>(&json).unwrap(), path);
        }

        #[test]
        fn paths_are_ordered_as_their_texts(a in strategies::store_path(), b in strategies::store_path()) {
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
