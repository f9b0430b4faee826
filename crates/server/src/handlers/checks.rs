//! Checks and translations that several handlers share.

use dormer_api::RetentionPeriod;
use dormer_engine::{Error, SIGNATURES_MAX};
use dormer_index::Cache;
use dormer_nix::{NarHash, NarInfo, StoreDir, StorePath, check_key_name, nix32, signature_key_name};

use crate::failure::Failure;

/// The store folder of a cache.
pub(crate) fn store_dir(cache: &Cache) -> Result<StoreDir, Failure> {
    let corrupt = dormer_index::Error::Corrupt { table: "caches", what: "store folder".to_owned() };
    cache.store_dir.parse().map_err(|_| Failure::Engine(corrupt.into()))
}

/// The retention of a cache, as Attic's API says it.
pub(crate) fn retention_period(cache: &Cache) -> RetentionPeriod {
    cache.retention_seconds.map_or(RetentionPeriod::Global, |seconds| {
        RetentionPeriod::Period(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
    })
}

/// Most upstream key names of a cache. They are loaded with each cache, and each client gets them.
const UPSTREAM_KEY_NAMES_MAX: usize = 64;

/// Longest `System` of a store path, in bytes. Those of Nix have below 100.
const SYSTEM_BYTES_MAX: usize = 256;

/// Refuses names that no key can have: they would match nothing, and not every database takes every
/// text. Refuses too many names.
pub(crate) fn check_key_names(names: &[String]) -> Result<(), Failure> {
    if names.len() > UPSTREAM_KEY_NAMES_MAX {
        return Err(Failure::BadRequest(format!(
            "a cache has at most {UPSTREAM_KEY_NAMES_MAX} upstream key names, not {}",
            names.len()
        )));
    }
    names.iter().try_for_each(|name| check_key_name(name)).map_err(bad_request)
}

/// Refuses a narinfo with a `System` that is longer than any that Nix writes, or with a `CA`
/// because of which Nix would refuse the whole narinfo.
pub(crate) fn check_fields(narinfo: &NarInfo) -> Result<(), Failure> {
    if narinfo.system.as_ref().is_some_and(|text| text.len() > SYSTEM_BYTES_MAX) {
        return Err(Failure::BadRequest(format!("System is longer than {SYSTEM_BYTES_MAX} bytes")));
    }
    if narinfo.ca.as_ref().is_some_and(|text| !is_content_address(text)) {
        return Err(Failure::BadRequest(
            "CA is neither text:sha256:<hash> nor fixed:[r:|git:]<algorithm>:<hash>".to_owned(),
        ));
    }
    Ok(())
}

/// Whether Nix reads this as a content address.
fn is_content_address(text: &str) -> bool {
    if let Some(digest) = text.strip_prefix("text:sha256:") {
        return is_digest(digest, 32);
    }
    let Some(fixed) = text.strip_prefix("fixed:") else { return false };
    let hash = fixed.strip_prefix("r:").or_else(|| fixed.strip_prefix("git:")).unwrap_or(fixed);
    let Some((algorithm, digest)) = hash.split_once(':') else { return false };
    let bytes = match algorithm {
        "md5" => 16,
        "sha1" => 20,
        "sha256" | "blake3" => 32,
        "sha512" => 64,
        _ => return false,
    };
    is_digest(digest, bytes)
}

/// Whether this is a digest of so many bytes, in any of Nix's forms.
fn is_digest(text: &str, bytes: usize) -> bool {
    // The lengths differ, so no text has two meanings.
    let is_hex = || text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_nix32 = || nix32::decode(text).is_ok_and(|decoded| decoded.len() == bytes);
    let is_base64 = || {
        let digits = text.trim_end_matches('=');
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
        text.len() == 4 * bytes.div_ceil(3)
            && digits.len() == (4 * bytes).div_ceil(3)
            && digits.bytes().all(is_digit)
    };
    is_hex() || is_nix32() || is_base64()
}

/// Refuses texts that are no signatures: they would stand in the narinfo, where no client can use
/// them. Refuses too many, before the bytes of the NAR come.
pub(crate) fn check_signatures(signatures: &[String]) -> Result<(), Failure> {
    if signatures.len() > SIGNATURES_MAX {
        let count = signatures.len();
        return Err(Failure::Engine(Error::TooManySignatures { count, max: SIGNATURES_MAX }));
    }
    signatures.iter().try_for_each(|signature| signature_key_name(signature).map(drop)).map_err(bad_request)
}

/// Logs that an upload changed nothing, because its path is there with something else.
pub(crate) fn log_kept(cache: &Cache, path: &StorePath, nar_hash: &NarHash) {
    tracing::warn!(
        cache.name = cache.name, %path, nar.hash = %nar_hash,
        "kept the store path that was here first: the new one has another NAR or other references"
    );
}

/// The failure for a bad text of the client, with its cause.
pub(crate) fn bad_request(error: impl std::error::Error + 'static) -> Failure {
    Failure::BadRequest(dormer_nix::with_causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_address_has_a_form_that_nix_reads() {
        let sha256 = nix32::encode(&[7; 32]);
        for good in [
            format!("text:sha256:{sha256}"),
            format!("fixed:sha256:{sha256}"),
            format!("fixed:r:sha256:{sha256}"),
            format!("fixed:r:blake3:{sha256}"),
            format!("fixed:git:sha1:{}", nix32::encode(&[7; 20])),
            format!("fixed:md5:{}", nix32::encode(&[7; 16])),
            format!("fixed:sha512:{}", "0aF".repeat(43).split_at(128).0),
            format!("fixed:r:sha256:{}=", "A".repeat(43)),
            format!("fixed:sha512:{}==", "A".repeat(86)),
        ] {
            assert!(is_content_address(&good), "{good}");
        }
        for bad in [
            String::new(),
            "x".to_owned(),
            "text:sha256:".to_owned(),
            format!("text:sha1:{}", nix32::encode(&[7; 20])),
            format!("text:r:sha256:{sha256}"),
            format!("fixed:{sha256}"),
            format!("fixed:x:sha256:{sha256}"),
            format!("fixed:r:git:sha256:{sha256}"),
            format!("fixed:r:sha3:{sha256}"),
            format!("fixed:r:sha1:{sha256}"),
            format!("fixed:r:sha256-{sha256}"),
            format!("fixed:r:sha256:{}e", &sha256[1..]),
            format!("fixed:r:sha256:{}", "A".repeat(44)),
            format!("fixed:r:sha256:{sha256} "),
            format!("nar:sha256:{sha256}"),
        ] {
            assert!(!is_content_address(&bad), "{bad:?}");
        }
    }
}
