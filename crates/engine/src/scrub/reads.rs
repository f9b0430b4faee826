//! Reads of single chunks where a disk may have bad sectors, and the proof that the store is there.

use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_format::{PackId, checksum};
use dormer_index::ChunkRow;

use super::scrubber::Scrubber;
use crate::Result;
use crate::pace::tried;

/// Attempts to read a chunk before it counts as damaged because the disk does not give it back.
pub(super) const TRIES: u32 = 3;

/// What Linux says of bad sectors, and of a file system whose own checksums differ: `EIO`,
/// `EBADMSG`, `EUCLEAN`. Every other failure may be one of the whole store.
const BAD_DISK: [i32; 3] = [5, 74, 117];

impl Scrubber {
    /// The stored bytes of a chunk. `None` if they are others, or if the disk does not give them
    /// back.
    pub(super) async fn stored_chunk(&self, row: &ChunkRow, tries: u32) -> Result<Option<Bytes>> {
        let range = row.offset..row.offset + u64::from(row.layout.stored_len());
        let key = BlobKey::Pack(row.pack_id);
        let attempt = |_| self.blobs.get_range(&key, range.clone());
        match tried(tries, attempt, |read| !matches!(read, Err(error) if is_bad_disk(error))).await {
            Ok(bytes) => Ok((checksum(&bytes) == row.checksum).then_some(bytes)),
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => Ok(None),
            Err(error) if is_bad_disk(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Nothing is marked while the store as a whole is away. A look at a name, or a read, may be
    /// answered from memory when the disk is gone; a write cannot. What a crash leaves of it is an
    /// object without a row, which a listing finds.
    pub(super) async fn check_store(&self) -> Result<()> {
        let key = BlobKey::Pack(PackId::from_bytes(rand::random()));
        self.blobs.put(&key, &[Bytes::from_static(b"is the disk there?")]).await?;
        Ok(self.blobs.delete(&key).await?)
    }
}

pub(super) fn is_bad_disk(error: &dormer_blobs::Error) -> bool {
    matches!(error, dormer_blobs::Error::Io { source, .. }
        if source.raw_os_error().is_some_and(|code| BAD_DISK.contains(&code)))
}
