//! Finds the debug files that a listing names, for an index whose build ids are lost.
//!
//! The result is that of [`NarReader::take_build_ids`](super::NarReader::take_build_ids) for the
//! same NAR. Whatever the bytes are, nothing panics: what cannot be read names no debug file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::BUILD_IDS_MAX;
use crate::BuildId;

#[derive(Deserialize)]
struct Listing {
    root: Folder<Root>,
}

#[derive(Deserialize)]
struct Folder<E> {
    entries: Option<E>,
}

#[derive(Deserialize)]
struct Root {
    lib: Option<Folder<Lib>>,
}

#[derive(Deserialize)]
struct Lib {
    debug: Option<Folder<Debug>>,
}

#[derive(Deserialize)]
struct Debug {
    #[serde(rename = ".build-id")]
    build_id: Option<Folder<BTreeMap<String, DebugFiles>>>,
}

type DebugFiles = Folder<BTreeMap<String, File>>;

#[derive(Deserialize)]
struct File {
    r#type: String,
}

/// The build ids of the debug files in a NAR with this listing, at most [`BUILD_IDS_MAX`]: those of
/// `lib/debug/.build-id/<2 digits>/<the others>.debug`.
pub fn listed_build_ids(listing: &[u8]) -> Vec<BuildId> {
    let Ok(Listing { root }) = serde_json::from_slice(listing) else { return Vec::new() };
    let folder = root.entries.and_then(|root| root.lib?.entries?.debug?.entries?.build_id?.entries);
    let folders = folder.unwrap_or_default();
    let files = folders.iter().flat_map(|(digits, folder)| {
        folder.entries.iter().flatten().map(move |(name, file)| (digits, name, file))
    });
    files
        .filter(|(.., file)| file.r#type == "regular")
        .filter_map(|(digits, name, _)| BuildId::of_debug_file(digits.as_bytes(), name.as_bytes()))
        .take(BUILD_IDS_MAX)
        .collect()
}
