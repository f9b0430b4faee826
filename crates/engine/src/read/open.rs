//! Opens a NAR: proves that its packs exist and recomputes its tag, before the server answers
//! anything.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dormer_blobs::BlobKey;
use dormer_format::{EncodingTag, HoleFill, PackId, Recipe, TagBuilder};
use dormer_index::{Cache, ChunkRow, Nar, NarId, NarQuery};
use dormer_nix::NarHash;
use futures::{StreamExt as _, TryStreamExt as _};

use super::nar_stream::NarStream;
use super::plan::{Chunks, ReadPlan, Window, windows};
use crate::{Engine, Error, Result};

/// Look-ups of packs at once: a NAR of 64 GiB has 2,700 packs.
const LOOKUPS: usize = 16;

/// Memory for opening a NAR: a window of rows, and a recipe of usual size. The stream reserves the
/// memory of a larger recipe.
const OPENING_BYTES: u64 = 512 * 1024;

/// How long a read waits until the new tag of a healed NAR, or damage that it found, is written
/// down. The usual write takes some milliseconds; after it no narinfo names the old tag, or the
/// damaged NAR, any more.
const WRITE_WAIT: Duration = Duration::from_millis(500);

/// A NAR that can be read: its packs were there a moment ago.
#[derive(Debug, Clone)]
pub struct OpenNar {
    engine: Engine,
    plan: Arc<ReadPlan>,
}

impl OpenNar {
    /// SHA-256 of the archive.
    pub fn hash(&self) -> NarHash {
        self.plan.hash
    }

    /// Bytes of the archive.
    pub fn size(&self) -> u64 {
        self.plan.size
    }

    /// Bytes that are served.
    pub fn file_size(&self) -> u64 {
        self.plan.file_size
    }

    /// Names the exact bytes that are served.
    pub fn tag(&self) -> EncodingTag {
        self.plan.tag
    }

    /// Checks that all packs exist; used by HEAD, which reads nothing. [`Error::Damaged`] if one
    /// does not.
    pub async fn prove(&self) -> Result<()> {
        self.engine.prove_packs(&self.plan).await
    }

    /// Starts to read all bytes, or a range of them. When this returns, the first read is verified,
    /// and every pack that the plan names is known to exist.
    pub async fn stream(self, range: Option<Range<u64>>) -> Result<NarStream> {
        let size = self.plan.file_size;
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            return Err(Error::RangeOutside { start: range.start, end: range.end, size });
        }
        let stream = NarStream::begin(self.engine.clone(), Arc::clone(&self.plan), range, 0).await?;
        // After the first read, which has proven its packs.
        self.engine.prove_packs(&self.plan).await?;
        Ok(stream)
    }
}

/// Memory of what decodes the frames of a part: a window as large as a chunk, and its buffers.
const DECODER_BYTES: u64 = 1024 * 1024;

/// Frames that hold a part of an archive. They hold the memory of a decoder, too.
pub struct PartStream {
    /// Whole zstd frames, which decode to a run of the archive's bytes.
    pub frames: NarStream,
    /// Bytes of that run before the part. They belong to the same chunk.
    pub skip: u64,
}

impl OpenNar {
    /// Starts to read the frames that hold these bytes of the archive, and nothing before them.
    /// When this returns, the first read is verified. Other packs of the NAR are not proven to
    /// exist: nobody asked for them.
    pub async fn stream_part(self, part: Range<u64>) -> Result<PartStream> {
        let (served, skip) = self.frames_of(&part).await?;
        let (engine, plan) = (self.engine.clone(), Arc::clone(&self.plan));
        let frames = NarStream::begin(engine, plan, served, DECODER_BYTES).await?;
        Ok(PartStream { frames, skip })
    }

    /// The served bytes of the chunks that hold these bytes of the archive, and how many bytes of
    /// the first chunk come before them.
    async fn frames_of(&self, part: &Range<u64>) -> Result<(Range<u64>, u64)> {
        let size = self.plan.size;
        if part.is_empty() || part.end > size {
            return Err(Error::RangeOutside { start: part.start, end: part.end, size });
        }
        let mut place = FramePlace { part: part.clone(), raw: 0, served: 0, start: None };
        match &self.plan.chunks {
            Chunks::Rows(rows) => place.add(rows),
            Chunks::Windows(windows) => {
                for (number, window) in windows.iter().enumerate() {
                    if place.raw + window.raw_bytes <= part.start {
                        place.raw += window.raw_bytes;
                        place.served += window.served_bytes();
                    } else if place.raw < part.end {
                        let (engine, plan) = (self.engine.clone(), Arc::clone(&self.plan));
                        place.add(&engine.load_window(plan, number).await?);
                    }
                }
            }
        }
        let (start, skip) = place.start.unwrap_or_default();
        Ok((start..place.served, skip))
    }
}

/// Where the frames of a part are, while chunks are counted.
struct FramePlace {
    part: Range<u64>,
    /// Bytes of the archive, and of what is served, up to the next chunk.
    raw: u64,
    served: u64,
    /// Where the first chunk of the part begins, and how much of it comes before the part.
    start: Option<(u64, u64)>,
}

impl FramePlace {
    fn add(&mut self, rows: &[ChunkRow]) {
        for row in rows {
            if self.raw >= self.part.end {
                return;
            }
            let end = self.raw + u64::from(row.layout.raw_len);
            if self.start.is_none() && end > self.part.start {
                self.start = Some((self.served, self.part.start - self.raw));
            }
            self.raw = end;
            self.served += row.layout.spliced_len();
        }
    }
}

impl Engine {
    /// Opens a NAR of a cache. `None` when the cache has no NAR under this key, or when bytes of
    /// the NAR turn out missing.
    pub async fn open_nar(&self, cache: &Cache, key: &NarQuery) -> Result<Option<OpenNar>> {
        let plan_key = (cache.id, self.change_counts().cache_state(cache.id), key.clone());
        if let Some(plan) = self.remembered_plans().get(&plan_key) {
            return Ok(Some(OpenNar { engine: self.clone(), plan }));
        }
        let _memory = self.stream_memory().take(OPENING_BYTES).await?;
        let look = self.look_at_objects(cache.id);
        let Some(nar) = self.index().find_nar_in_cache(cache.id, key, self.now()).await? else {
            return Ok(None);
        };
        let Some(open) = self.open(nar).await? else { return Ok(None) };
        if look.is_fresh(self) {
            self.remembered_plans().insert(plan_key, Arc::clone(&open.plan));
        }
        Ok(Some(open))
    }

    /// Opens the NAR behind an upload alias, and returns the compression that the alias names.
    pub async fn open_alias(&self, cache: &Cache, file_name: &str) -> Result<Option<(String, OpenNar)>> {
        let Some(alias) = self.find_alias(cache, file_name).await? else { return Ok(None) };
        let key = NarQuery::Hash(alias.nar.hash);
        Ok(self.open_nar(cache, &key).await?.map(|open| (alias.compression, open)))
    }

    /// Plans the read, and proves that the packs exist if that costs no requests.
    async fn open(&self, nar: Nar) -> Result<Option<OpenNar>> {
        if nar.damaged {
            return Ok(None);
        }
        let plan = match self.remembered_large_plans().get(&(nar.id, nar.tag)) {
            Some(plan) => plan,
            None => self.plan_read(nar).await?,
        };
        // Over a network, the first read proves most packs. The stream asks for the others after
        // that read.
        if !self.blobs().is_remote() {
            match self.prove_packs(&plan).await {
                Err(Error::Damaged { .. }) => return Ok(None),
                proven => proven?,
            }
        }
        Ok(Some(OpenNar { engine: self.clone(), plan }))
    }

    /// Recomputes the tag from the rows of all chunks.
    async fn plan_read(&self, nar: Nar) -> Result<Arc<ReadPlan>> {
        let change_count = self.change_counts().of_all();
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
        let plan = Arc::new(ReadPlan {
            nar: nar.id,
            hash: nar.hash,
            size: nar.size,
            file_size: proof.file_size,
            tag,
            recipe: nar.recipe,
            packs: proof.packs,
            chunks,
        });
        let is_large = matches!(plan.chunks, Chunks::Windows(_));
        if is_large && self.change_counts().of_all() == change_count {
            let key = (plan.nar, plan.tag);
            self.remembered_large_plans().insert(key, Arc::clone(&plan));
            // A notice between the two lines before forgot the plans that were there.
            if self.change_counts().of_all() != change_count {
                self.remembered_large_plans().invalidate(&key);
            }
        }
        Ok(plan)
    }

    /// Writes the tag that healing gave to a NAR, so that narinfos name it from now on. Waits for
    /// the write only for [`WRITE_WAIT`] and succeeds always: these bytes can be served under
    /// their new tag whether the database takes the update or not, and the next opening of the NAR
    /// tries again.
    async fn update_encoding(&self, nar: &Nar, tag: EncodingTag, file_size: u64) {
        let Some(turn) = self.encoding_updates().try_take_turn() else {
            self.metrics().reads.encoding_failures.inc();
            return;
        };
        let (engine, id, hash) = (self.clone(), nar.id, nar.hash);
        let update = tokio::spawn(async move {
            let _turn = turn;
            match engine.index().update_encoding(id, &tag, file_size, engine.now()).await {
                Ok(()) => engine.forget_nars(),
                Err(error) => {
                    engine.metrics().reads.encoding_failures.inc();
                    tracing::warn!(nar.hash = %hash, %error, "failed to record the new tag of a healed NAR");
                }
            }
        });
        let _ = tokio::time::timeout(WRITE_WAIT, update).await;
    }

    /// Checks that all packs of a NAR exist, or existed within the last minute. If one is missing,
    /// marks the NAR damaged.
    pub(super) async fn prove_packs(&self, plan: &ReadPlan) -> Result<()> {
        let missing = self.missing_packs(&plan.packs).await?;
        if missing.is_empty() {
            return Ok(());
        }
        tracing::error!(nar.hash = %plan.hash, pack.count = missing.len(), "packs of a NAR are missing");
        if self.mark_lost_packs(plan.nar, &plan.hash, &plan.recipe, &missing).await {
            return Err(Error::Damaged { nar: plan.hash });
        }
        // A push healed the chunks meanwhile, and they lie in other packs now.
        self.forget_plans();
        Err(Error::Reencoded { nar: plan.hash })
    }

    /// Over a network, a pack that was just stored or read exists. A local store reads from files
    /// that it has open, which may be gone from their folder.
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

    /// The pack, if it is missing.
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
    pub(super) async fn load_window(self, plan: Arc<ReadPlan>, number: usize) -> Result<Vec<ChunkRow>> {
        let Chunks::Windows(windows) = &plan.chunks else { return Ok(Vec::new()) };
        let window = &windows[number];
        let rows = self.index().load_chunks(&window.runs).await?;
        if window.is_of(&rows) {
            return Ok(rows);
        }
        // Healing gave some chunk other frames: the bytes do not belong to the tag any more.
        self.forget_plans();
        Err(Error::Reencoded { nar: plan.hash })
    }

    /// Marks a NAR and all of its chunks that lie in lost packs now, so that one push heals all of
    /// it. `false` if no chunk does: a healing push was faster.
    pub(super) async fn mark_lost_packs(
        &self,
        nar: NarId,
        hash: &NarHash,
        recipe: &Recipe,
        lost: &BTreeSet<PackId>,
    ) -> bool {
        let mut pages = Vec::new();
        for runs in windows(&recipe.runs) {
            match self.index().load_chunks(&runs).await {
                Ok(rows) => {
                    let rows = rows.iter().filter(|row| lost.contains(&row.pack_id));
                    let chunks: Vec<u64> = rows.map(|row| row.number).collect();
                    if !chunks.is_empty() {
                        pages.push(chunks);
                    }
                }
                Err(error) => tracing::error!(nar.hash = %hash, %error, "failed to mark a NAR damaged"),
            }
        }
        let any = !pages.is_empty();
        if any {
            self.mark_damaged(nar, hash, pages).await;
        }
        any
    }

    /// Packs of a recipe that are missing. Looks up all of them again, because one turned out to be
    /// lost a moment ago.
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

    /// Marks pages of chunks as damaged. Waits for the writes only for [`WRITE_WAIT`]. A failure is
    /// only logged: the caller already answers with an error, and the next read finds the damage
    /// again.
    pub(super) async fn mark_damaged(&self, nar: NarId, hash: &NarHash, pages: Vec<Vec<u64>>) {
        tracing::error!(nar.hash = %hash, chunk.numbers = ?pages, "stored bytes are damaged");
        self.metrics().reads.nars_damaged.inc();
        let Some(turn) = self.encoding_updates().try_take_turn() else {
            tracing::error!(nar.hash = %hash, "too many writes wait for the database to mark a NAR damaged");
            return;
        };
        let (engine, hash) = (self.clone(), *hash);
        let mark = tokio::spawn(async move {
            let _turn = turn;
            for chunks in pages {
                if let Err(error) = engine.index().mark_damaged(nar, &chunks, engine.now()).await {
                    tracing::error!(nar.hash = %hash, %error, "failed to mark a NAR damaged");
                    break;
                }
            }
            engine.forget_nars();
        });
        let _ = tokio::time::timeout(WRITE_WAIT, mark).await;
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
