//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run the targets over `fuzz/corpus/client_*` and over mutations of it. A fuzzer can run
//! them for longer (`fuzz/README.md`).

use dormer_api::{CacheName, UploadPathNarInfo};

use crate::PathInfo;

/// The output of `nix path-info --json` in any of its forms: each path appears once, in order. Its
/// metadata survives being sent, and names the path.
pub fn fuzz_path_info(data: &[u8]) {
    let Ok(infos) = PathInfo::parse_all(data) else { return };
    assert!(infos.windows(2).all(|pair| pair[0].path < pair[1].path));
    let cache: CacheName = "main".parse().expect("a valid name");
    for info in &infos {
        assert!(info.absolute_path().starts_with(&info.store_dir.to_string()));
        let sent = info.upload_info(&cache);
        let json = serde_json::to_vec(&sent).expect("metadata always fits JSON");
        // Metadata has a size limit. Below the limit, the reader gets what the client sent.
        let Ok(read) = UploadPathNarInfo::parse(&json) else { continue };
        assert_eq!(read, sent);
        if let Ok(resolved) = read.resolve(&info.store_dir) {
            assert_eq!(resolved.store_path, info.path);
        }
    }
}
