//! Snapshots: everything, in parts, with a cursor that outlives the process.

use dormer_format::JournalKind;
use dormer_index::{CacheId, CacheSelection};
use dormer_nix::StorePathHash;

use super::records::add_document;
use super::turn::{File, PAGE, Turn};
use crate::Result;

/// Documents read at once, unless they are large.
const DOCUMENTS_PAGE: u32 = 200;

/// A part of a snapshot ends at about this size.
const PART_BYTES: usize = 1024 * 1024;

/// How far a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    next: Cursor,
    /// Parts that are stored. `None` if the snapshot was begun when parts had no numbers.
    parts: Option<u32>,
}

impl Snapshot {
    const BEGIN: Self = Self { next: Cursor::Caches(String::new()), parts: Some(0) };

    fn encode(&self) -> Vec<u8> {
        let next = self.next.encode();
        match self.parts {
            Some(parts) => [&[COUNTED], &parts.to_be_bytes()[..], &next].concat(),
            None => next,
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (parts, next) = match bytes.split_first()? {
            (&COUNTED, rest) => {
                let (parts, next) = rest.split_first_chunk::<4>()?;
                (Some(u32::from_be_bytes(*parts)), next)
            }
            _ => (None, bytes),
        };
        Some(Self { next: Cursor::decode(next)?, parts })
    }
}

/// The first byte of a [`Snapshot`] that counts its parts. No cursor begins with it.
const COUNTED: u8 = 4;

/// Where a snapshot goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    Caches(String),
    Objects(Option<(CacheId, StorePathHash)>),
    Aliases(CacheId, String),
    Documents(i64),
}

impl Cursor {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Caches(name) => [&[0], name.as_bytes()].concat(),
            Self::Objects(None) => vec![1],
            Self::Objects(Some((cache, hash))) => {
                [&[1], &cache.0.to_be_bytes()[..], hash.as_bytes()].concat()
            }
            Self::Aliases(cache, name) => [&[2], &cache.0.to_be_bytes()[..], name.as_bytes()].concat(),
            Self::Documents(id) => [&[3], &id.to_be_bytes()[..]].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        Some(match kind {
            0 => Self::Caches(text(rest)?),
            1 if rest.is_empty() => Self::Objects(None),
            3 => Self::Documents(i64::from_be_bytes(rest.try_into().ok()?)),
            _ => {
                let (cache, rest) = rest.split_first_chunk::<8>()?;
                let cache = CacheId(i64::from_be_bytes(*cache));
                match kind {
                    1 => Self::Objects(Some((cache, StorePathHash::from_bytes(rest.try_into().ok()?)))),
                    2 => Self::Aliases(cache, text(rest)?),
                    _ => return None,
                }
            }
        })
    }
}

impl Turn<'_> {
    pub(super) async fn begin_snapshot(&mut self) -> Result<()> {
        let newest = self.list().await?.iter().map(|name| name.generation).max().unwrap_or(0);
        let state = &mut self.state;
        if state.lineage == 0 {
            // Only what changes from now on needs a segment.
            state.cursor = self.journal.memory.outbox_end().await?;
            state.lineage = (rand::random::<i64>() & i64::MAX) | 1;
        }
        state.generation = state.generation.max(newest.cast_signed()) + 1;
        state.base = (self.lease.fence, state.sequence);
        state.snapshot = Some(Snapshot::BEGIN.encode());
        state.snapshot_bytes = 0;
        state.segment_bytes = 0;
        self.save(&[]).await
    }

    /// Writes the next part of the snapshot. The last one is followed by the end, and by the
    /// deletion of all older files.
    pub(super) async fn write_part(&mut self) -> Result<()> {
        let snapshot = self.state.snapshot.as_deref().and_then(Snapshot::decode);
        let Snapshot { next, parts } = snapshot.unwrap_or(Snapshot::BEGIN);
        let parts = parts.map(|parts| parts + 1);
        let number = parts.unwrap_or(0);
        let mut file = self.begin_file(JournalKind::Part, self.state.base, number);
        if next == Snapshot::BEGIN.next {
            self.add_settings(&mut file).await?;
        }
        let mut cursor = Some(next);
        while let Some(at) = cursor.take_if(|_| file.writer.bytes() < PART_BYTES) {
            cursor = self.add_page(&mut file, at).await?;
            if cursor.is_none() {
                break;
            }
        }
        let bytes = self.store(file).await?;
        self.state.snapshot_bytes += bytes;
        if cursor.is_none() {
            let end = self.begin_file(JournalKind::End, self.state.base, number);
            let bytes = self.store(end).await?;
            self.state.snapshot_bytes += bytes;
        }
        self.state.snapshot = cursor.map(|next| Snapshot { next, parts }.encode());
        self.save(&[]).await?;
        if self.state.snapshot.is_none() {
            self.delete_older().await?;
        }
        Ok(())
    }

    /// Adds a page of everything; returns where the next one begins.
    async fn add_page(&self, file: &mut File, at: Cursor) -> Result<Option<Cursor>> {
        Ok(Some(match at {
            Cursor::Caches(after) => {
                let page = self.journal.index.list_caches_after(&after, CacheSelection::All, PAGE).await?;
                for cache in &page {
                    self.push_cache(file, cache).await?;
                }
                page.last().map_or(Cursor::Objects(None), |last| Cursor::Caches(last.name.clone()))
            }
            Cursor::Objects(after) => {
                let page = self.journal.memory.journaled_objects_after(after, PAGE).await?;
                let last = page.last().map(|last| (last.cache, last.object.path.hash()));
                for object in page {
                    self.add_object(file, object).await?;
                }
                last.map_or(Cursor::Aliases(CacheId(0), String::new()), |last| Cursor::Objects(Some(last)))
            }
            Cursor::Aliases(cache, after) => {
                let page = self.journal.memory.journaled_aliases_after((cache, &after), PAGE).await?;
                let Some(last) = page.last().map(|last| (last.cache, last.file_name.clone())) else {
                    return Ok(Some(Cursor::Documents(0)));
                };
                for alias in page {
                    self.add_alias(file, alias).await?;
                }
                Cursor::Aliases(last.0, last.1)
            }
            Cursor::Documents(after) => {
                let page = self.journal.memory.journaled_documents_after(after, DOCUMENTS_PAGE).await?;
                let Some(last) = page.last().map(|last| last.id) else { return Ok(None) };
                for document in page {
                    add_document(file, document)?;
                }
                Cursor::Documents(last)
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let hash = StorePathHash::from_bytes([7; 20]);
        for cursor in [
            Cursor::Caches(String::new()),
            Cursor::Caches("main".to_owned()),
            Cursor::Objects(None),
            Cursor::Objects(Some((CacheId(3), hash))),
            Cursor::Aliases(CacheId(0), String::new()),
            Cursor::Aliases(CacheId(1 << 40), "x.nar.xz".to_owned()),
            Cursor::Documents(0),
            Cursor::Documents(1 << 40),
        ] {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        let counted = Snapshot { next: Cursor::Documents(7), parts: Some(u32::MAX) };
        assert_eq!(Snapshot::decode(&counted.encode()), Some(counted));
        let begun_before = Snapshot { next: Cursor::Objects(None), parts: None };
        assert_eq!(begun_before.encode(), [1]);
        assert_eq!(Snapshot::decode(&[1]), Some(begun_before));
        assert_eq!(Snapshot::decode(&[COUNTED, 0, 0, 0, 1]), None);
        for bytes in [&[][..], &[1, 2], &[2], &[3, 0, 0, 0, 0, 0, 0, 0], &[4], &[0, 0xff]] {
            assert_eq!(Cursor::decode(bytes), None, "{bytes:?}");
        }
    }
}
