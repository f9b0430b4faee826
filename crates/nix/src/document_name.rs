//! The addresses of the documents that a binary cache keeps beside its store paths, below the
//! cache's own address.
//!
//! ```text
//! log/<hash>-<name>.drv                                   a build log
//! build-trace-v2/<hash>-<name>.drv/<output>.doi           a build trace (Nix 2.35 and later)
//! realisations/sha256:<64 hex digits>!<output>.doi        the same before 2.35: a realisation
//! debuginfo/<build id>.debug                              a link to a file of debug info
//! ```
//!
//! Invariants
//! - A name parses back from its printed form, and from nothing else.
//! - No part of a name is empty, `.` or `..`, or holds a slash: a name is safe as a file's.

use std::fmt;
use std::str::FromStr;

use crate::build_id::BuildId;
use crate::error::{Error, Result};
use crate::store_path::{StorePath, is_name};

const LOG: &str = "log/";
const DERIVATION_TRACE: &str = "build-trace-v2/";
const HASH_TRACE: &str = "realisations/";
const TRACE_SUFFIX: &str = ".doi";
const DEBUG_INFO: &str = "debuginfo/";
const DEBUG_INFO_SUFFIX: &str = ".debug";

/// What a build trace is about: one output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TraceKey {
    /// Before Nix 2.35: the hash of the derivation modulo its inputs.
    Hash {
        /// SHA-256 in lower-case hexadecimal digits, without `sha256:`.
        hash: String,
        /// Name of the output, `out` nearly always.
        output: String,
    },
    /// Since Nix 2.35: the resolved derivation.
    Derivation {
        /// The derivation's store path, which ends with `.drv`.
        derivation: StorePath,
        /// Name of the output.
        output: String,
    },
}

impl TraceKey {
    /// Reads the id in a realisation: `sha256:<hex>!<output>`.
    pub(crate) fn parse_id(id: &str) -> Option<Self> {
        let (hash, output) = id.strip_prefix("sha256:")?.split_once('!')?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_valid = hash.len() == 64 && hash.bytes().all(is_digit) && is_name(output);
        is_valid.then(|| Self::Hash { hash: hash.to_owned(), output: output.to_owned() })
    }

    pub(crate) fn of_derivation(derivation: &str, output: &str) -> Option<Self> {
        let derivation = parse_derivation(derivation)?;
        is_name(output).then(|| Self::Derivation { derivation, output: output.to_owned() })
    }
}

/// The name of a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentName {
    /// The log of a derivation's build.
    Log(StorePath),
    /// Which path an output of a derivation became.
    Trace(TraceKey),
    /// Where the debug info of a program is.
    DebugInfo(BuildId),
}

impl DocumentName {
    /// Reads an address as a client spells it. Clients also ask for debug info without `.debug`.
    pub fn of_address(address: &str) -> Result<Self> {
        match address.strip_prefix(DEBUG_INFO) {
            Some(file) if !file.ends_with(DEBUG_INFO_SUFFIX) => {
                file.parse().map(Self::DebugInfo).map_err(|_| Error::document_name(address))
            }
            _ => address.parse(),
        }
    }

    /// The folders of documents, in the order of names; each ends with a slash.
    pub const FOLDERS: [&str; 4] = [DERIVATION_TRACE, DEBUG_INFO, LOG, HASH_TRACE];

    /// Whether an address is in a folder of documents. It need not be the name of one.
    pub fn is_in_folder(address: &str) -> bool {
        Self::FOLDERS.into_iter().any(|folder| address.starts_with(folder))
    }
}

impl fmt::Display for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(derivation) => write!(f, "{LOG}{derivation}"),
            Self::DebugInfo(build_id) => write!(f, "{DEBUG_INFO}{build_id}{DEBUG_INFO_SUFFIX}"),
            Self::Trace(TraceKey::Derivation { derivation, output }) => {
                write!(f, "{DERIVATION_TRACE}{derivation}/{output}{TRACE_SUFFIX}")
            }
            Self::Trace(TraceKey::Hash { hash, output }) => {
                write!(f, "{HASH_TRACE}sha256:{hash}!{output}{TRACE_SUFFIX}")
            }
        }
    }
}

impl FromStr for DocumentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = if let Some(derivation) = text.strip_prefix(LOG) {
            parse_derivation(derivation).map(Self::Log)
        } else if let Some(file) = text.strip_prefix(DEBUG_INFO) {
            let build_id = file.strip_suffix(DEBUG_INFO_SUFFIX).and_then(|build_id| build_id.parse().ok());
            build_id.map(Self::DebugInfo)
        } else if let Some(key) = text.strip_prefix(DERIVATION_TRACE) {
            let parts = key.strip_suffix(TRACE_SUFFIX).and_then(|key| key.split_once('/'));
            parts
                .and_then(|(derivation, output)| TraceKey::of_derivation(derivation, output))
                .map(Self::Trace)
        } else {
            let id = text.strip_prefix(HASH_TRACE).and_then(|id| id.strip_suffix(TRACE_SUFFIX));
            id.and_then(TraceKey::parse_id).map(Self::Trace)
        };
        parsed.ok_or_else(|| Error::document_name(text))
    }
}

fn parse_derivation(base_name: &str) -> Option<StorePath> {
    base_name.parse().ok().filter(StorePath::is_derivation)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DRV: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello-2.12+x.drv";

    #[test]
    fn names_are_those_of_nix() {
        let hex = "0123456789abcdef".repeat(4);
        let derivation: StorePath = DRV.parse().unwrap();
        for (text, name) in [
            (format!("log/{DRV}"), DocumentName::Log(derivation.clone())),
            (
                format!("build-trace-v2/{DRV}/out.doi"),
                DocumentName::Trace(TraceKey::Derivation { derivation, output: "out".to_owned() }),
            ),
            (format!("debuginfo/{hex}.debug"), DocumentName::DebugInfo(hex.parse().unwrap())),
            (
                format!("realisations/sha256:{hex}!dev-x.doi.doi"),
                DocumentName::Trace(TraceKey::Hash { hash: hex.clone(), output: "dev-x.doi".to_owned() }),
            ),
        ] {
            assert_eq!(text.parse().as_ref(), Ok(&name));
            assert_eq!(name.to_string(), text);
            assert_eq!(DocumentName::of_address(&text).as_ref(), Ok(&name));
            assert!(DocumentName::is_in_folder(&text));
        }
        let folders = DocumentName::FOLDERS.map(str::to_owned).to_vec();
        assert!(folders.is_sorted() && folders.iter().all(|folder| folder.ends_with('/')));
    }

    #[test]
    fn debug_info_has_a_second_spelling() {
        let name = DocumentName::DebugInfo("00ab3f".parse().unwrap());
        assert_eq!(name.to_string(), "debuginfo/00ab3f.debug");
        assert!("debuginfo/00ab3f".parse::<DocumentName>().is_err());
        for text in ["debuginfo/00ab3f", "debuginfo/00ab3f.debug"] {
            assert_eq!(DocumentName::of_address(text).as_ref(), Ok(&name));
        }
        for text in ["debuginfo/", "debuginfo/.debug", "debuginfo/00AB", "debuginfo/00ab/3f", "00ab3f"] {
            assert!(DocumentName::of_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_does_not_parse() {
        let hex = "0123456789abcdef".repeat(4);
        for text in [
            String::new(),
            "log/".to_owned(),
            DRV.to_owned(),
            format!("/log/{DRV}"),
            format!("log/{DRV}/"),
            format!("log//{DRV}"),
            format!("log/../log/{DRV}"),
            format!("log/{}", &DRV[..DRV.len() - 4]),
            format!("log/{DRV}.bz2"),
            format!("log/{DRV}\n"),
            format!("build-trace-v2/{DRV}.doi"),
            format!("build-trace-v2/{DRV}/out"),
            format!("build-trace-v2/{DRV}/.doi"),
            format!("build-trace-v2/{DRV}/...doi"),
            format!("build-trace-v2/{DRV}/a/b.doi"),
            format!("build-trace-v2/{DRV}/a!b.doi"),
            format!("build-trace-v1/{DRV}/out.doi"),
            format!("realisations/sha256:{hex}!out"),
            format!("realisations/sha256:{hex}!.doi"),
            format!("realisations/sha256:{hex}!a!b.doi"),
            format!("realisations/sha256:{}!out.doi", hex.to_uppercase()),
            format!("realisations/sha256:{}!out.doi", &hex[1..]),
            format!("realisations/sha512:{hex}!out.doi"),
            format!("realisations/{hex}!out.doi"),
            format!("realisations/{DRV}!out.doi"),
        ] {
            assert!(text.parse::<DocumentName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(
            text in "(log/|build-trace-v2/|realisations/|debuginfo/)?([0-9a-g]{0,9}|sha256:[0-9a-f]{64}!|[0-9a-d]{32}-[a-z.]{0,6}(\\.drv)?/?)[a-z./]{0,6}(\\.doi|\\.debug)?",
        ) {
            if let Ok(name) = text.parse::<DocumentName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
