//! Opening a NAR: its packs are proven to be there, and its tag is computed anew, before anything is answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dormer_blobs::BlobKey;
use dormer_format::{EncodingTag, HoleFill, PackId, Recipe, TagBuilder};
use dormer_index::{Cache, ChunkRow, Nar, NarId, NarKey};
use dormer_nix::NarHash;
use futures::{StreamExt as _, TryStreamExt as _};

use super::OpenNar;
use super::plan::{ROWS_MAX, Window, windows};
use crate::{Engine, Error, Result};

/// About what one chunk's row takes in memory, in bytes.
const ROW_BYTES: usize = 192;

/// About what one pack's id takes in a set, in bytes.
const PACK_BYTES: usize = 32;

/// Packs that are looked up at once: a NAR of 64 GiB has 2,700.
const LOOKUPS: usize = 16;

/// Memory for opening a NAR: a window of rows, and its recipe as most are. What a larger one takes is reserved with its stream.
const OPENING_BYTES: u64 = 512 * 1024;

/// How long opening a healed NAR waits until its new tag is written. The usual write takes some milliseconds; after it no
/// narinfo names the old tag any more.
const ENCODING_WAIT: Duration = Duration::from_millis(500);

/// New tags that are being written at once. When there are more, the next opening of the NAR writes the tag.
pub(crate) const ENCODING_UPDATES_MAX: usize = 8;

/// What is remembered of a NAR between reads.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) nar: NarId,
    pub(super) hash: NarHash,
    pub(super) size: u64,
    pub(super) file_size: u64,
    pub(super) tag: EncodingTag,
    pub(super) recipe: Recipe,
    pub(super) packs: BTreeSet<PackId>,
    pub(super) chunks: Chunks,
}

/// Which chunks a NAR has.
#[derive(Debug)]
pub(super) enum Chunks {
    /// The rows themselves, if they are few.
    Rows(Arc<[ChunkRow]>),
    /// Where they are loaded from, and what they have to be then.
    Windows(Vec<Window>),
}

impl Plan {
    /// About how many bytes this plan takes, for the bound on those remembered.
    pub(crate) fn weight(&self) -> u32 {
        let recipe =
            self.recipe.runs.len() * 16 + self.recipe.hashes.len() * 32 + self.recipe.fills.len() * 8;
        let chunks = match &self.chunks {
            Chunks::Rows(rows) => rows.len() * ROW_BYTES,
            Chunks::Windows(windows) => windows.len() * 64 + self.recipe.runs.len() * 16,
        };
        u32::try_from(256 + recipe + chunks + self.packs.len() * PACK_BYTES).unwrap_or(u32::MAX)
    }

    /// What a stream holds from beginning to end, in bytes: the plan, and the rows that it loads: a window that is being
    /// read and the next one.
    pub(super) fn stream_bytes(&self) -> u64 {
        let loaded = match &self.chunks {
            Chunks::Rows(_) => 0,
            Chunks::Windows(_) => 2 * ROWS_MAX * ROW_BYTES,
        };
        u64::from(self.weight()) + loaded as u64
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
        let _memory = self.stream_memory().reserve(OPENING_BYTES).await?;
        let look = self.look();
        let Some(nar) = self.index().find_nar_in_cache(cache.id, key, self.now()).await? else {
            return Ok(None);
        };
        let Some(open) = self.open(nar).await? else { return Ok(None) };
        if look.is_fresh(self) {
            self.remembered_plans().insert(plan_key, Arc::clone(&open.plan));
        }
        Ok(Some(open))
    }

    /// Opens the NAR behind an upload alias, with the compression that its name promises.
    pub async fn open_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<(String, OpenNar)>> {
        let Some(alias) = self.find_alias(cache, file_name).await? else { return Ok(None) };
        let key = NarKey::Hash(alias.nar.hash);
        Ok(self.open_nar(cache, &key).await?.map(|open| (alias.compression, open)))
    }

    /// Recomputes the tag, and proves the packs if that costs no requests.
    async fn open(&self, nar: Nar) -> Result<Option<OpenNar>> {
        if nar.damaged {
            return Ok(None);
        }
        let mut proof = Proof::default();
        let mut fills = nar.recipe.hole_fills();
        let mut groups = windows(&nar.recipe.runs);
        let chunks = if groups.len() <= 1 {
            let rows = self.index().load_chunks(&groups.pop().unwrap_or_default()).await?;
            proof.add(&rows, &mut fills);
            Chunks::Rows(rows.into())
        } else {
            let mut windows = Vec::with_capacity(groups.len());
            for runs in groups {
                let rows = self.index().load_chunks(&runs).await?;
                proof.add(&rows, &mut fills);
                windows.push(Window::new(runs, &rows));
            }
            Chunks::Windows(windows)
        };
        let tag = proof.tag.finish();
        if tag != nar.tag || proof.file_size != nar.file_size {
            self.update_encoding(&nar, tag, proof.file_size).await;
        }
        let plan = Plan {
            nar: nar.id,
            hash: nar.hash,
            size: nar.size,
            file_size: proof.file_size,
            tag,
            recipe: nar.recipe,
            packs: proof.packs,
            chunks,
        };
        // Over a network the first read proves most packs, so who reads asks for the others when that is done.
        if !self.blobs().is_remote() {
            match self.prove_packs(&plan).await {
                Err(Error::Damaged { .. }) => return Ok(None),
                proven => proven?,
            }
        }
        Ok(Some(OpenNar { engine: self.clone(), plan: Arc::new(plan) }))
    }

    /// Writes the tag that healing gave to a NAR, so that narinfos name it from now on. Waits for the write only for
    /// [`ENCODING_WAIT`] and succeeds always: these bytes can be served under their new tag whether the database takes the
    /// update or not, and the next opening of the NAR tries again.
    async fn update_encoding(&self, nar: &Nar, tag: EncodingTag, file_size: u64) {
        let Ok(turn) = Arc::clone(self.encoding_updates()).try_acquire_owned() else {
            self.metrics().encoding_failures.inc();
            return;
        };
        let (engine, id, hash) = (self.clone(), nar.id, nar.hash);
        let update = tokio::spawn(async move {
            let _turn = turn;
            match engine.index().update_encoding(id, &tag, file_size, engine.now()).await {
                Ok(()) => engine.forget_narinfos(),
                Err(error) => {
                    engine.metrics().encoding_failures.inc();
                    tracing::warn!(nar.hash = %hash, %error, "failed to record the new tag of a healed NAR");
                }
            }
        });
        let _ = tokio::time::timeout(ENCODING_WAIT, update).await;
    }

    /// Makes sure that all packs of a NAR are there, or were within a minute. If one is not, the NAR is marked.
    pub(super) async fn prove_packs(&self, plan: &Plan) -> Result<()> {
        let missing = self.missing_packs(&plan.packs).await?;
        if missing.is_empty() {
            return Ok(());
        }
        tracing::error!(nar.hash = %plan.hash, pack.count = missing.len(), "packs of a NAR are missing");
        if self.mark_lost_packs(plan.nar, &plan.hash, &plan.recipe, &missing).await {
            return Err(Error::Damaged { nar: plan.hash });
        }
        // Healed meanwhile, and somewhere else by now.
        self.remembered_plans().invalidate_all();
        Err(Error::Reencoded { nar: plan.hash })
    }

    /// Over a network, what was just stored or read is there. A local store reads from files that it has open, which may be
    /// gone from their folder.
    pub(super) fn note_proof(&self, pack: PackId) {
        if self.blobs().is_remote() && !self.proven_packs().contains_key(&pack) {
            self.proven_packs().insert(pack, ());
        }
    }

    async fn missing_packs(&self, packs: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        let unproven = packs.iter().copied().filter(|pack| !self.proven_packs().contains_key(pack));
        let unproven: Vec<PackId> = unproven.collect();
        let looks = futures::stream::iter(unproven.into_iter().map(|pack| self.is_lost(pack)));
        let looks: Vec<Option<PackId>> = looks.buffer_unordered(LOOKUPS).try_collect().await?;
        Ok(looks.into_iter().flatten().collect())
    }

    /// The pack, if it is not there.
    async fn is_lost(&self, pack: PackId) -> Result<Option<PackId>> {
        match self.blobs().head(&BlobKey::Pack(pack)).await {
            Ok(_) => {
                self.proven_packs().insert(pack, ());
                Ok(None)
            }
            Err(dormer_blobs::Error::NotFound { .. }) => Ok(Some(pack)),
            Err(error) => Err(error.into()),
        }
    }

    /// Loads the rows of a window, which must be those that the tag was computed from.
    pub(super) async fn load_window(self, plan: Arc<Plan>, number: usize) -> Result<Vec<ChunkRow>> {
        let Chunks::Windows(windows) = &plan.chunks else { return Ok(Vec::new()) };
        let window = &windows[number];
        let rows = self.index().load_chunks(&window.runs).await?;
        if window.is_of(&rows) {
            return Ok(rows);
        }
        // Healing gave some chunk other frames: these bytes are not those of the tag any more.
        self.remembered_plans().invalidate_all();
        Err(Error::Reencoded { nar: plan.hash })
    }

    /// Marks a NAR and all of its chunks that lie in lost packs by now, so that one push heals all of it. `false` if none
    /// does: a healing push was faster.
    pub(super) async fn mark_lost_packs(
        &self,
        nar: NarId,
        hash: &NarHash,
        recipe: &Recipe,
        lost: &BTreeSet<PackId>,
    ) -> bool {
        let mut any = false;
        for runs in windows(&recipe.runs) {
            match self.index().load_chunks(&runs).await {
                Ok(rows) => {
                    let rows = rows.iter().filter(|row| lost.contains(&row.pack_id));
                    let chunks: Vec<u64> = rows.map(|row| row.number).collect();
                    if !chunks.is_empty() {
                        any = true;
                        self.mark_damaged(nar, hash, &chunks).await;
                    }
                }
                Err(error) => tracing::error!(nar.hash = %hash, %error, "failed to mark a NAR damaged"),
            }
        }
        any
    }

    /// Packs of a recipe that are not there: looked up anew, because one of them turned out to be lost a moment ago.
    pub(crate) async fn lost_packs(&self, recipe: &Recipe) -> Result<BTreeSet<PackId>> {
        let mut packs = BTreeSet::new();
        for runs in windows(&recipe.runs) {
            packs.extend(self.index().load_chunks(&runs).await?.iter().map(|row| row.pack_id));
        }
        for pack in &packs {
            self.proven_packs().invalidate(pack);
        }
        self.missing_packs(&packs).await
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
