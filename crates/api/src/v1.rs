//! `/_api/v1/`: Attic's types, field for field.
//!
//! Optional fields of an upload's metadata are written as `null`, those of a cache's settings are
//! left out, because that is what Attic's client and server write. Unknown fields are ignored when
//! reading.

use dormer_nix::{NarHash, StoreDir, StorePath, StorePathHash};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, excerpt};
use crate::{CacheName, Secret};

/// Metadata as long as this or longer goes into the body instead of a header: many proxies refuse
/// long headers.
pub const NAR_INFO_PREAMBLE_THRESHOLD_BYTES: usize = 4 * 1024;

/// Longest metadata: 1 MiB, some 20,000 references.
pub const NAR_INFO_BYTES_MAX: usize = 1024 * 1024;

/// A cache's settings: the answer to GET, and with any subset of the fields the body of PATCH.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheConfig {
    /// PATCH only: a new signing key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keypair: Option<Keypair>,
    /// GET only: what to write into `substituters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substituter_endpoint: Option<String>,
    /// GET only: the server's address for the API, with a slash at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_endpoint: Option<String>,
    /// GET only: what to write into `trusted-public-keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether anybody may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// The folder that paths live in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_dir: Option<StoreDir>,
    /// Lower is asked first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Keys whose paths clients need not push.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_cache_key_names: Option<Vec<String>>,
    /// How long unused objects are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_period: Option<RetentionPeriod>,
    /// Most bytes that the cache keeps; not Attic's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// How many paths of a name are kept, 0 for all; not Attic's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_latest: Option<u32>,
    /// Whether `upload-path` may give a path another NAR. Attic has no such setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_replacement: Option<bool>,
}

impl CacheConfig {
    /// Whether a PATCH with it would change nothing: the fields that only GET fills do not count.
    pub fn is_empty_patch(&self) -> bool {
        self.keypair.is_none()
            && self.is_public.is_none()
            && self.store_dir.is_none()
            && self.priority.is_none()
            && self.upstream_cache_key_names.is_none()
            && !self.changes_retention()
            && self.allow_replacement.is_none()
    }

    /// Whether a PATCH with it would change what the cache keeps.
    pub fn changes_retention(&self) -> bool {
        self.retention_period.is_some() || self.quota.is_some() || self.keep_latest.is_some()
    }
}

/// How long unused objects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetentionPeriod {
    /// As the server says for all caches.
    Global,
    /// This many seconds.
    Period(u32),
}

/// Most bytes that a cache keeps, as clients download them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quota {
    /// As the server says for all caches.
    Global,
    /// This many bytes; 0 for no quota.
    Bytes(u64),
}

/// A cache's signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keypair {
    /// The server makes one.
    Generate,
    /// This one, as Nix writes secret keys: `name:base64`.
    Keypair(Secret),
}

/// Body of POST `cache-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCacheRequest {
    /// The first signing key.
    pub keypair: Keypair,
    /// Whether anybody may read.
    pub is_public: bool,
    /// The folder that paths live in.
    pub store_dir: StoreDir,
    /// Lower is asked first.
    pub priority: i32,
    /// Keys whose paths clients need not push.
    pub upstream_cache_key_names: Vec<String>,
    /// Whether `upload-path` may give a path another NAR. Attic's client does not send it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub allow_replacement: bool,
}

/// Body of POST `get-missing-paths`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMissingPathsRequest {
    /// The cache to ask about.
    pub cache: CacheName,
    /// The paths to ask for.
    pub store_path_hashes: Vec<StorePathHash>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMissingPathsResponse {
    /// Those that the cache lacks.
    pub missing_paths: Vec<StorePathHash>,
}

/// Metadata of an upload: what a narinfo says, less what the server finds out itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPathNarInfo {
    /// The cache to upload into.
    pub cache: CacheName,
    /// The hash part of `store_path`.
    pub store_path_hash: StorePathHash,
    /// The full path, with the store folder.
    pub store_path: String,
    /// Base names.
    pub references: Vec<String>,
    /// The platform it was built for, if known.
    pub system: Option<String>,
    /// Base name of the derivation, if known.
    pub deriver: Option<String>,
    /// `name:base64`, each.
    pub sigs: Vec<String>,
    /// Content address, if it has one.
    pub ca: Option<String>,
    /// Of the uncompressed NAR; written in hex.
    #[serde(serialize_with = "hex_hash")]
    pub nar_hash: NarHash,
    /// Of the uncompressed NAR, in bytes.
    pub nar_size: u64,
    /// Fields of the narinfo that this version does not know: names and values. Not one of Attic's
    /// fields, so it is left out if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<(String, String)>,
}

/// How metadata travels: as a header's value, or in front of the NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NarInfoForm {
    /// The value of [`crate::headers::NAR_INFO`].
    Header(String),
    /// The first bytes of the body; their number is the value of
    /// [`crate::headers::NAR_INFO_PREAMBLE_SIZE`].
    Preamble(Vec<u8>),
}

impl UploadPathNarInfo {
    /// Reads the JSON, wherever it stood, within [`NAR_INFO_BYTES_MAX`].
    pub fn parse(json: &[u8]) -> Result<Self> {
        check_size(json.len() as u64)?;
        serde_json::from_slice(json).map_err(Error::NarInfoJson)
    }

    /// Reads the value of [`crate::headers::NAR_INFO_PREAMBLE_SIZE`]: a decimal number up to
    /// [`NAR_INFO_BYTES_MAX`].
    pub fn parse_preamble_size(text: &str) -> Result<usize> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too long for u64 is no less too large.
        let size = if digits {
            text.parse().unwrap_or(u64::MAX)
        } else {
            return Err(Error::PreambleSize { text: excerpt(text) });
        };
        check_size(size)
    }

    /// The JSON, in the place where it belongs. Texts with characters that a header cannot hold go
    /// into the body.
    pub fn encode(&self) -> Result<NarInfoForm> {
        let json = serde_json::to_string(self).map_err(Error::NarInfoJson)?;
        check_size(json.len() as u64)?;
        if json.len() < NAR_INFO_PREAMBLE_THRESHOLD_BYTES
            && json.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            Ok(NarInfoForm::Header(json))
        } else {
            Ok(NarInfoForm::Preamble(json.into_bytes()))
        }
    }

    /// Checks the paths against the store folder of the cache. Clients other than Attic's write
    /// references and the deriver as full paths, and a missing deriver as an empty text or
    /// `unknown-deriver`; this accepts both.
    pub fn resolve(&self, store_dir: &StoreDir) -> Result<ResolvedNarInfo> {
        let path = |field, text: &str| {
            let parsed =
                if text.starts_with('/') { StorePath::parse_absolute(store_dir, text) } else { text.parse() };
            parsed.map_err(|source| Error::NarInfoPath { field, source })
        };
        let store_path = StorePath::parse_absolute(store_dir, &self.store_path)
            .map_err(|source| Error::NarInfoPath { field: "store_path", source })?;
        if store_path.hash() != self.store_path_hash {
            return Err(Error::NarInfoHash { declared: self.store_path_hash, actual: store_path.hash() });
        }
        let mut references: Vec<StorePath> =
            self.references.iter().map(|text| path("references", text)).collect::<Result<_>>()?;
        references.sort_unstable();
        references.dedup();
        let deriver = match self.deriver.as_deref() {
            None | Some("" | "unknown-deriver") => None,
            Some(text) => Some(path("deriver", text)?),
        };
        Ok(ResolvedNarInfo { store_path, references, deriver })
    }
}

/// The paths of an upload, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedNarInfo {
    /// What is uploaded.
    pub store_path: StorePath,
    /// What it refers to: sorted, none twice.
    pub references: Vec<StorePath>,
    /// What built it, if known.
    pub deriver: Option<StorePath>,
}

fn check_size(bytes: u64) -> Result<usize> {
    match usize::try_from(bytes) {
        Ok(size) if size <= NAR_INFO_BYTES_MAX => Ok(size),
        _ => Err(Error::NarInfoTooLarge { bytes, max: NAR_INFO_BYTES_MAX as u64 }),
    }
}

fn hex_hash<S: serde::Serializer>(hash: &NarHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("sha256:{}", hash.to_hex()))
}

/// The answer to an upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadPathResult {
    /// Whether anything new was stored.
    pub kind: UploadPathResultKind,
    /// Bytes the NAR takes as it is served.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file_size: Option<u64>,
    /// Part of the NAR, 0 to 1, that the server had already.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frac_deduplicated: Option<f64>,
    /// Whether the path that was here first stays: it has another NAR or other references, and the
    /// cache does not allow replacement.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub kept: bool,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadPathResultKind {
    /// The NAR was stored.
    Uploaded,
    /// The whole NAR was there; only the object is new.
    Deduplicated,
    /// Something that a later version says. Never sent.
    #[serde(other)]
    Unknown,
}
