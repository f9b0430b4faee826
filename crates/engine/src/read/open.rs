//! Opening a NAR: its packs are proven to be there, and its tag is computed anew, before anything is answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use dormer_blobs::BlobKey;
use dormer_format::{EncodingTag, HoleFill, PackId, Recipe, TagBuilder};
use dormer_index::{Cache, ChunkRow, Nar, NarId, NarKey};
use dormer_nix::NarHash;

use super::OpenNar;
use super::plan::windows;
use crate::{Engine, Result};

/// What is remembered of a NAR between reads.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) nar: NarId,
    pub(super) hash: NarHash,
    pub(super) size: u64,
    pub(super) file_size: u64,
    pub(super) tag: EncodingTag,
    pub(super) recipe: Recipe,
    /// All rows, if they are few.
    pub(super) rows: Option<Arc<[ChunkRow]>>,
}

impl Plan {
    /// About how many bytes this plan takes, for the bound on those remembered.
    pub(crate) fn weight(&self) -> u32 {
        let rows = self.rows.as_ref().map_or(0, |rows| rows.len() * 192);
        let recipe =
            self.recipe.runs.len() * 16 + self.recipe.hashes.len() * 32 + self.recipe.fills.len() * 8;
        u32::try_from(256 + rows + recipe).unwrap_or(u32::MAX)
    }
}

/// What a read is asked for by.
pub(crate) type PlanKey = (dormer_index::CacheId, NarKey);

impl Engine {
    /// Opens a NAR of a cache. `None` when the cache has none by this key, or when its bytes are found missing.
    pub async fn open_nar(&self, cache: &Cache, key: &NarKey) -> Result<Option<OpenNar>> {
        let plan_key = (cache.id, key.clone());
        if let Some(plan) = self.remembered_plans().get(&plan_key) {
            return Ok(Some(OpenNar { engine: self.clone(), plan }));
        }
        let Some(nar) = self.index().find_nar_in_cache(cache.id, key, self.now()).await? else {
            return Ok(None);
        };
        let Some(open) = self.open(nar).await? else { return Ok(None) };
        self.remembered_plans().insert(plan_key, Arc::clone(&open.plan));
        Ok(Some(open))
    }

    /// Opens the NAR behind an upload alias, with the compression that its name promises.
    pub async fn open_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<(String, OpenNar)>> {
        let Some(alias) = self.find_alias(cache, file_name).await? else { return Ok(None) };
        let key = NarKey::Hash(alias.nar.hash);
        Ok(self.open_nar(cache, &key).await?.map(|open| (alias.compression, open)))
    }

    /// Proves the packs and recomputes the tag.
    async fn open(&self, nar: Nar) -> Result<Option<OpenNar>> {
        if nar.damaged {
            return Ok(None);
        }
        let mut proof = Proof::default();
        let windows = windows(&nar.recipe.runs);
        let mut kept = None;
        let mut fills = nar.recipe.hole_fills();
        let only_one = windows.len() <= 1;
        for window in windows {
            let rows = self.index().load_chunks(&window).await?;
            proof.add(&rows, &mut fills);
            if only_one {
                kept = Some(Arc::from(rows));
            }
        }
        let missing = self.missing_packs(&proof.packs).await?;
        if !missing.is_empty() {
            tracing::error!(nar.hash = %nar.hash, pack.count = missing.len(), "packs of a NAR are missing");
            self.mark_lost_packs(&nar, &missing).await;
            return Ok(None);
        }
        let tag = proof.tag.finish();
        if tag != nar.tag || proof.file_size != nar.file_size {
            self.index().update_encoding(nar.id, &tag, proof.file_size).await?;
            self.forget_narinfos();
        }
        let plan = Plan {
            nar: nar.id,
            hash: nar.hash,
            size: nar.size,
            file_size: proof.file_size,
            tag,
            recipe: nar.recipe,
            rows: kept,
        };
        Ok(Some(OpenNar { engine: self.clone(), plan: Arc::new(plan) }))
    }

    async fn missing_packs(&self, packs: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        let mut missing = BTreeSet::new();
        for pack in packs {
            if self.proven_packs().contains_key(pack) {
                continue;
            }
            match self.blobs().head(&BlobKey::Pack(*pack)).await {
                Ok(_) => self.proven_packs().insert(*pack, ()),
                Err(dormer_blobs::Error::NotFound { .. }) => {
                    missing.insert(*pack);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(missing)
    }

    async fn mark_lost_packs(&self, nar: &Nar, missing: &BTreeSet<PackId>) {
        for window in windows(&nar.recipe.runs) {
            match self.index().load_chunks(&window).await {
                Ok(rows) => {
                    let lost: Vec<u64> = rows
                        .iter()
                        .filter(|row| missing.contains(&row.pack_id))
                        .map(|row| row.number)
                        .collect();
                    self.mark_damaged(nar.id, &nar.hash, &lost).await;
                }
                Err(error) => tracing::error!(nar.hash = %nar.hash, %error, "failed to mark a NAR damaged"),
            }
        }
    }

    /// Marks damage. Failing to do so is logged only: the caller already answers with an error, and the next read finds it again.
    pub(super) async fn mark_damaged(&self, nar: NarId, hash: &NarHash, chunks: &[u64]) {
        tracing::error!(nar.hash = %hash, chunk.numbers = ?chunks, "stored bytes are damaged");
        self.metrics().nars_damaged.inc();
        if let Err(error) = self.index().mark_damaged(nar, chunks, self.now()).await {
            tracing::error!(nar.hash = %hash, %error, "failed to mark a NAR damaged");
        }
        self.forget_narinfos();
        self.remembered_plans().invalidate_all();
    }
}

#[derive(Default)]
struct Proof {
    tag: TagBuilder,
    file_size: u64,
    packs: BTreeSet<PackId>,
}

impl Proof {
    fn add<'a>(&mut self, rows: &[ChunkRow], fills: &mut impl Iterator<Item = &'a HoleFill>) {
        for row in rows {
            self.tag.push_chunk(&row.id, row.checksum, &row.layout);
            for fill in fills.by_ref().take(row.layout.holes.len()) {
                self.tag.push_fill(fill);
            }
            self.file_size += row.layout.spliced_len();
            self.packs.insert(row.pack_id);
        }
    }
}
