//! The present state of things in the index, as records of a file. A thing that is not there any
//! more gets a record that says so.

use std::collections::HashSet;

use dormer_format::{
    ChunkId, ChunkRun, JournalAlias, JournalCache, JournalContent, JournalDocument, JournalKey,
    JournalListing, JournalNar, JournalObject, JournalPath, JournalPin, JournalRecord, NarManifest, Recipe,
};
use dormer_index::{
    Cache, CacheId, Error as IndexError, JournalSubject, JournaledAlias, JournaledDocument, JournaledNar,
    JournaledObject, Pin, StoredListing, UnixSeconds,
};
use dormer_nix::{StorePathHash, with_causes};

use super::files::CHUNKS_MAX;
use super::turn::{File, Turn};
use crate::Result;

/// Pins read at once, and most pins in one record: less than 1 MiB of them.
const PINS_PAGE: u32 = 1_000;

/// Named values that say something of one database, and are not to be in another one.
const OWN_SETTINGS: [&str; 5] =
    ["installation-claimed", "first-start", "index.ready-check", "recovery-begun", "recovery-ended"];

impl Turn<'_> {
    pub(super) async fn add_settings(&self, file: &mut File) -> Result<()> {
        for (name, value) in self.journal.memory.settings().await? {
            if !OWN_SETTINGS.contains(&name.as_str()) {
                file.push(&JournalRecord::Setting { name, value })?;
            }
        }
        Ok(())
    }

    pub(super) async fn add_subject(&self, file: &mut File, subject: &JournalSubject) -> Result<()> {
        match subject {
            // Every segment has all of them.
            JournalSubject::Settings => Ok(()),
            JournalSubject::Cache(cache) => self.add_cache(file, *cache).await,
            JournalSubject::Alias(cache, file_name) => {
                match self.journal.memory.journaled_alias(*cache, file_name).await? {
                    Some(alias) => self.add_alias(file, alias).await,
                    None => file.push(&JournalRecord::Alias(JournalAlias {
                        cache: cache.0.cast_unsigned(),
                        file_name: file_name.clone(),
                        upload: None,
                    })),
                }
            }
            JournalSubject::Document(cache, name) => {
                match self.journal.memory.journaled_document(*cache, name).await? {
                    Some(document) => add_document(file, document),
                    None => file.push(&JournalRecord::Document(JournalDocument {
                        cache: cache.0.cast_unsigned(),
                        name: name.clone(),
                        content: None,
                    })),
                }
            }
            JournalSubject::Pin(cache, name, hash) => {
                let found = self.journal.memory.journaled_pin(*cache, name, hash).await?;
                let cache = cache.0.cast_unsigned();
                file.push(&match found {
                    Some(pin) => JournalRecord::Pin { cache, pin: journal_pin(pin) },
                    None => JournalRecord::PinGone { cache, name: name.clone(), hash: *hash },
                })
            }
        }
    }

    /// The present state of a cache, or that it is gone.
    pub(super) async fn add_cache(&self, file: &mut File, cache: CacheId) -> Result<()> {
        match self.journal.memory.find_cache_by_id(cache).await? {
            Some(cache) => self.push_cache(file, &cache).await,
            None => file.push(&JournalRecord::CacheGone { cache: cache.0.cast_unsigned() }),
        }
    }

    /// A cache with all its pins: the first ones in its record, and the others after it.
    pub(super) async fn push_cache(&self, file: &mut File, cache: &Cache) -> Result<()> {
        let now = self.journal.clock.now();
        let pins = self.pins_after(cache.id, None, now).await?;
        let last = |pins: &[JournalPin]| pins.last().map(|pin| (pin.name.clone(), pin.path.hash()));
        let mut after = last(&pins);
        file.push(&cache_record(cache, pins))?;
        while let Some((name, hash)) = &after {
            let pins = self.pins_after(cache.id, Some((name, hash)), now).await?;
            after = last(&pins);
            if !pins.is_empty() {
                file.push(&JournalRecord::Pins { cache: cache.id.0.cast_unsigned(), pins })?;
            }
        }
        Ok(())
    }

    async fn pins_after(
        &self,
        cache: CacheId,
        after: Option<(&str, &StorePathHash)>,
        now: UnixSeconds,
    ) -> Result<Vec<JournalPin>> {
        let page = self.journal.index.list_pins(cache, after, now, PINS_PAGE).await?;
        Ok(page.into_iter().map(journal_pin).collect())
    }

    /// The present state of these paths. One that is not there is written as gone.
    pub(super) async fn add_paths(
        &self,
        file: &mut File,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<()> {
        let found = self.journal.memory.journaled_objects(cache, hashes).await?;
        let there: HashSet<StorePathHash> = found.iter().map(|found| found.object.path.hash()).collect();
        for object in found {
            self.add_object(file, object).await?;
        }
        for hash in hashes.iter().filter(|hash| !there.contains(hash)) {
            let gone = JournalPath { cache: cache.0.cast_unsigned(), hash: *hash, object: None };
            file.push(&JournalRecord::Path(gone))?;
        }
        Ok(())
    }

    pub(super) async fn add_object(&self, file: &mut File, found: JournaledObject) -> Result<()> {
        let JournaledObject { cache, object, created_at, nar } = found;
        let hash = nar.hash;
        self.add_nar(file, nar).await?;
        file.push(&JournalRecord::Path(JournalPath {
            cache: cache.0.cast_unsigned(),
            hash: object.path.hash(),
            object: Some(JournalObject {
                name: object.path.name().to_owned(),
                nar: hash,
                references: object.references,
                deriver: object.deriver,
                ca: object.ca,
                system: object.system,
                signatures: object.sigs,
                extra: object.extra,
                created_at,
            }),
        }))
    }

    pub(super) async fn add_alias(&self, file: &mut File, alias: JournaledAlias) -> Result<()> {
        let upload = Some((alias.nar.hash, alias.compression, alias.used_at));
        self.add_nar(file, alias.nar).await?;
        let (cache, file_name) = (alias.cache.0.cast_unsigned(), alias.file_name);
        file.push(&JournalRecord::Alias(JournalAlias { cache, file_name, upload }))
    }

    /// A NAR that is not in the file yet, with its chunks by id.
    async fn add_nar(&self, file: &mut File, nar: JournaledNar) -> Result<()> {
        if !file.nars.insert(nar.hash) {
            return Ok(());
        }
        let chunks = match self.chunk_ids(&nar.recipe.runs).await {
            Ok(chunks) => chunks,
            // The path was removed and collected meanwhile, or its row is corrupt. Either way there
            // is nothing to recover it from.
            Err(crate::Error::Index(IndexError::ChunkGone { number })) => {
                tracing::warn!(nar.hash = %nar.hash, chunk = number, "a NAR without its chunks is not in the journal");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let listing = match nar.listing {
            None => JournalListing::Lost,
            Some(StoredListing::Inline(body)) => JournalListing::Inline(body),
            Some(StoredListing::Chunks { recipe, size }) => match self.chunk_ids(&recipe.runs).await {
                Ok(chunks) => JournalListing::Chunks { chunks, size },
                Err(crate::Error::Index(IndexError::ChunkGone { .. })) => JournalListing::Lost,
                Err(error) => return Err(error),
            },
        };
        let fills = Recipe { runs: Vec::new(), ..nar.recipe };
        let recipe = NarManifest { chunks, fills };
        let record = JournalRecord::Nar(JournalNar { hash: nar.hash, size: nar.size, recipe, listing });
        match file.push(&record) {
            // Two million chunks and more: 64 GiB if all of them are as small as chunks get. All
            // other paths must not wait for this one for ever.
            Err(crate::Error::Encode(error @ dormer_format::Error::Journal { .. })) => {
                let error = with_causes(&error);
                tracing::error!(nar.hash = %nar.hash, error, "a NAR with too many chunks is not in the journal");
                Ok(())
            }
            pushed => pushed,
        }
    }

    async fn chunk_ids(&self, runs: &[ChunkRun]) -> Result<Vec<ChunkId>> {
        let mut ids = Vec::new();
        for batch in batches(runs) {
            ids.extend(self.journal.index.load_chunks(&batch).await?.into_iter().map(|row| row.id));
        }
        Ok(ids)
    }
}

fn journal_pin(pin: Pin) -> JournalPin {
    let Pin { name, path, created_at, ends_at } = pin;
    JournalPin { name, path, created_at, ends_at }
}

/// A cache with its first pins.
fn cache_record(cache: &Cache, pins: Vec<JournalPin>) -> JournalRecord {
    let key = |key: &dormer_index::CacheKey| JournalKey {
        public_key: key.public_key.clone(),
        sealed_secret: key.sealed_secret.clone(),
        active: key.active,
    };
    JournalRecord::Cache(JournalCache {
        cache: cache.id.0.cast_unsigned(),
        name: cache.name.clone(),
        is_public: cache.is_public,
        store_dir: cache.store_dir.clone(),
        priority: cache.priority.into(),
        upstream_key_names: cache.upstream_cache_key_names.clone(),
        retention_seconds: cache.retention_seconds,
        quota_bytes: cache.quota_bytes.map(u64::cast_signed),
        keep_latest: cache.keep_latest.map(i64::from),
        allow_replacement: cache.allow_replacement,
        created_at: cache.created_at,
        keys: cache.keys.iter().map(key).collect(),
        pins,
    })
}

pub(super) fn add_document(file: &mut File, document: JournaledDocument) -> Result<()> {
    let JournaledDocument { cache, name, owner, written_at, size, encoding, body, .. } = document;
    let Some(body) = body else {
        tracing::warn!(document = name, "a document is too large for the journal");
        return Ok(());
    };
    let content = Some(JournalContent { owner, written_at, size, encoding, body });
    file.push(&JournalRecord::Document(JournalDocument { cache: cache.0.cast_unsigned(), name, content }))
}

/// Runs in batches that one look-up takes.
fn batches(runs: &[ChunkRun]) -> Vec<Vec<ChunkRun>> {
    let mut batches: Vec<Vec<ChunkRun>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let (mut first, mut left) = (run.first, run.count as usize);
        while left > 0 {
            if room == 0 {
                batches.push(Vec::new());
                room = CHUNKS_MAX;
            }
            let count = left.min(room);
            let part = ChunkRun { first, count: u32::try_from(count).expect("a batch is small") };
            batches.last_mut().expect("it was made").push(part);
            (first, left, room) = (first + count as u64, left - count, room - count);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_number_once_and_are_small_enough() {
        let runs =
            [(5, 20_000), (100_000, 1), (200_000, 40_000)].map(|(first, count)| ChunkRun { first, count });
        let batches = batches(&runs);
        let size = |batch: &Vec<ChunkRun>| batch.iter().map(|run| run.count as usize).sum::<usize>();
        assert!(batches.iter().all(|batch| size(batch) <= CHUNKS_MAX));
        let numbers = |runs: &[ChunkRun]| -> Vec<u64> {
            runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count)).collect()
        };
        assert_eq!(numbers(&batches.concat()), numbers(&runs));
        assert_eq!(batches.len(), 4);
    }
}
