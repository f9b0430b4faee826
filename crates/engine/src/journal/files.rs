//! The files of a journal in their store.

use dormer_blobs::Store;
use dormer_format::{JOURNAL_FOLDER, JournalName};

use crate::Result;

/// Chunks in one look-up.
pub(super) const CHUNKS_MAX: usize = 16_384;

/// Names in one page of a listing.
const NAMES_PAGE: usize = 1_000;

/// Names of all journal files.
pub(super) async fn list(store: &Store) -> Result<Vec<JournalName>> {
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list_page(JOURNAL_FOLDER, after.as_deref(), NAMES_PAGE).await?;
        let Some(last) = page.last() else { return Ok(names) };
        after = Some(last.name.clone());
        names.extend(page.iter().filter_map(|entry| JournalName::parse(&entry.name)));
    }
}
