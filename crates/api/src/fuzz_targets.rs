//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! `tests/it/fuzz.rs` runs them over `fuzz/corpus/api_*` and mutations of it; a fuzzer can run them
//! for longer.

use dormer_nix::StoreDir;

use crate::v2::{CommitEntry, CommitResult, decode_missing, encode_missing, read_chunk_ids};
use crate::{CacheName, CacheNamePattern, NarInfoForm, Permissions, PinName, TokenClaims, UploadPathNarInfo};

/// Claims that were read are written so that they read the same, and a token never grants more than
/// its entries' sum.
pub fn fuzz_token_claims(data: &[u8]) {
    let Ok(claims) = TokenClaims::parse(data) else { return };
    let json = serde_json::to_vec(&claims).expect("claims hold nothing that JSON cannot");
    let again = TokenClaims::parse(&json).expect("what we wrote, we read");
    assert_eq!(again, claims);
    let most = claims.access.caches.iter().fold(Permissions::NONE, |sum, (_, one)| sum.union(*one));
    for name in ["main", "team-a", "a", "X+_-9"] {
        let name: CacheName = name.parse().expect("a valid name");
        let granted = claims.permissions_for(&name);
        assert_eq!(granted.union(most), most);
        let exact = claims.access.caches.iter().find(|(pattern, _)| pattern.as_str() == name.as_str());
        if let Some((_, permissions)) = exact {
            assert_eq!(granted, *permissions);
        }
    }
}

/// Upload metadata: the first line is the preamble's size, the rest the JSON. What was read is
/// encoded so that it reads the same, within the limit, and in a form that its place can hold;
/// resolved paths lie in the store.
pub fn fuzz_nar_info_preamble(data: &[u8]) {
    let (size, json) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&[][..], data),
    };
    if let Some(size) =
        std::str::from_utf8(size).ok().and_then(|text| UploadPathNarInfo::parse_preamble_size(text).ok())
    {
        assert!(size <= crate::NAR_INFO_BYTES_MAX);
    }
    let Ok(info) = UploadPathNarInfo::parse(json) else { return };
    // Escapes may be written longer than they were read, so that the limit is passed on the way
    // back.
    if let Ok(form) = info.encode() {
        let bytes = match form {
            NarInfoForm::Header(text) => {
                assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                assert!(text.len() < crate::NAR_INFO_PREAMBLE_THRESHOLD_BYTES);
                text.into_bytes()
            }
            NarInfoForm::Preamble(bytes) => bytes,
        };
        assert_eq!(UploadPathNarInfo::parse(&bytes).expect("what we wrote, we read"), info);
    }
    let store_dir = StoreDir::default();
    if let Ok(resolved) = info.resolve(&store_dir) {
        assert_eq!(resolved.store_path.to_absolute(&store_dir), info.store_path);
        assert_eq!(resolved.store_path.hash(), info.store_path_hash);
        assert!(resolved.references.len() <= info.references.len());
        assert!(resolved.references.is_sorted());
    }
}

/// The body of a commit, and the same bytes as the question and the answer of `missing`. What was
/// read is written back as the same bytes, and its entries lie in the body. Results that were read
/// are written so that they read the same.
pub fn fuzz_commit(data: &[u8]) {
    const PATHS_MAX: usize = 8;
    if let Some(ids) = read_chunk_ids(data) {
        assert!(ids.flatten().eq(data.iter().copied()), "ids lie back to back");
    }
    // The last byte may stand for one to eight chunks.
    for count in (8 * data.len()).saturating_sub(7)..=8 * data.len() {
        if let Some(missing) = decode_missing(data, count) {
            assert_eq!((missing.len(), encode_missing(missing)), (count, data.to_vec()));
        }
    }
    if let Ok(result) = serde_json::from_slice::<CommitResult>(data) {
        let json = serde_json::to_vec(&result).expect("a result holds nothing that JSON cannot");
        let _: CommitResult = serde_json::from_slice(&json).expect("what we wrote, we read");
    }
    let Ok(entries) = CommitEntry::decode_all(data, PATHS_MAX) else { return };
    assert!((1..=PATHS_MAX).contains(&entries.len()));
    let mut again = Vec::new();
    for entry in &entries {
        assert!(entry.info.len() <= crate::NAR_INFO_BYTES_MAX);
        entry.encode_to(&mut again).expect("the lengths were read from 32 bits");
    }
    assert_eq!(again, data, "a body has one spelling");
}

/// A name prints as it was read and is matched by itself as a pattern; it cannot leave its URL
/// segment.
pub fn fuzz_cache_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let pattern = text.parse::<CacheNamePattern>();
    if let Ok(name) = text.parse::<CacheName>() {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains(['/', '.', '%', '*', ' ']) && !text.starts_with('_'));
        assert!(CacheNamePattern::from(&name).matches(&name));
        assert!(pattern.as_ref().is_ok_and(CacheNamePattern::is_exact));
    }
    if let Ok(pin) = text.parse::<PinName>() {
        assert!(pin.as_str() == text && !text.contains(['/', '.', '%', '*', ' ']));
    }
    if let Ok(pattern) = pattern {
        let filled: Result<CacheName, _> = pattern.as_str().replace('*', "").parse();
        if let Ok(name) = filled {
            assert!(pattern.matches(&name));
        }
    }
}
