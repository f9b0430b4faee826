//! The files of a journal in their store.

use dormer_blobs::Store;
use dormer_format::{JOURNAL_FOLDER, JournalFile, JournalHeader, JournalName};
use dormer_index::UnixSeconds;

use crate::Result;

/// Chunks in one look-up.
pub(super) const CHUNKS_MAX: usize = 16_384;

/// Names in one page of a listing.
const NAMES_PAGE: usize = 1_000;

/// Bytes of a file that its header takes, and a little more: nothing is known of the rest by then.
const HEAD_BYTES: u64 = 64;

/// Names of all journal files.
pub(super) async fn list(store: &Store) -> Result<Vec<JournalName>> {
    Ok(list_entries(store).await?.into_iter().map(|(name, _)| name).collect())
}

/// Names of all journal files, and when they were written.
pub(super) async fn list_entries(store: &Store) -> Result<Vec<(JournalName, UnixSeconds)>> {
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list_page(JOURNAL_FOLDER, after.as_deref(), NAMES_PAGE).await?;
        let Some(last) = page.last() else { return Ok(names) };
        after = Some(last.name.clone());
        names.extend(
            page.iter()
                .filter_map(|entry| Some((JournalName::parse(&entry.name)?, entry.modified_at / 1_000))),
        );
    }
}

/// The header of a file; `None` if not even that is there.
pub(super) async fn read_header(store: &Store, name: &JournalName) -> Result<Option<JournalHeader>> {
    match store.get_up_to(&name.to_string(), 0..HEAD_BYTES).await {
        Ok(head) => Ok(JournalFile::read(&head).ok().map(|file| file.header)),
        Err(dormer_blobs::Error::Truncated { .. } | dormer_blobs::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
