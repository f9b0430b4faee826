//! Recovery: an empty index is filled from the packs and the journal.
//!
//! Algorithm
//! 1. The newest whole snapshot is chosen, with all segments after it.
//! 2. The tables of all packs are read, and packs and chunks become rows.
//! 3. The files are read from the newest to the oldest. The first record about a thing counts;
//!    caches first, then paths, aliases and documents.
//!
//! A chunk may lie in several packs: a compaction moved it, or a push healed it. The newest pack is
//! read first, because its copy is the one that the lost index named, and the chunk gets one row.
//!
//! Everything goes through the same calls as a push, so every invariant of the index holds at every
//! moment, and an interrupted recovery simply begins again: what is there already stays, and packs
//! that have a row are not read again.
//!
//! Memory: one file of the journal, all caches with their pins, the keys of the segments' records,
//! the ids of all packs, and one listing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dormer_blobs::{BlobKey, Store};
use dormer_format::{
    ChunkId, Decoder, JournalAlias, JournalCache, JournalDocument, JournalFile, JournalHeader, JournalKind,
    JournalListing, JournalName, JournalNar, JournalObject, JournalPath, JournalPin, JournalRecord,
    PACK_TRAILER_BYTES, PackEntry, PackId, RecipeBuilder, TagBuilder, checksum, read_table, read_trailer,
};
use dormer_index::{
    Cache, CacheId, CacheKey, ChunkRow, CollectIndex, CommitTarget, Index, JournalIndex, NarCommit, NarId,
    NarSource, NewChunk, NewDocument, NewNar, NewPack, Object, PackNumber, Pin, StoredListing, UnixSeconds,
    Use,
};
use dormer_nix::nar::{LISTING_BYTES_MAX, listed_build_ids};
use dormer_nix::{DocumentName, NarHash, StorePath, StorePathHash, with_causes};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::files::{CHUNKS_MAX, list, read_header};
use crate::ingest_listing::GATHERED_BYTES_MAX;
use crate::{Clock, Error, Result};

/// Bytes read from the end of a pack at first: the tables of nearly all packs fit.
const TAIL_BYTES: u64 = 64 * 1024;

/// Packs whose tables are read at once.
const PACKS_AT_ONCE: usize = 8;

/// Packs that the index is asked about at once.
const PACKS_PAGE: usize = 1_000;

/// Folder of the packs.
const PACKS: &str = "packs";

/// Paths that the report names. Each one is told when it is found.
const LOST_NAMED_MAX: usize = 20;

/// An empty index, by each of its contracts.
#[derive(Debug, Clone)]
pub struct RecoveryIndex {
    /// The index.
    pub index: Arc<dyn Index>,
    /// The same.
    pub journal: Arc<dyn JournalIndex>,
    /// The same.
    pub collect: Arc<dyn CollectIndex>,
}

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Recovered {
    /// Packs in the store.
    pub packs_found: u64,
    /// Packs that have a row now.
    pub packs: u64,
    /// Chunks in those of them that this run read.
    pub chunks: u64,
    /// Packs whose tables could not be read.
    pub unreadable_packs: u64,
    /// Files of the journal that count.
    pub journal_files: u64,
    /// Files that are missing their end, or could not be read at all, and segments and parts that
    /// are not there.
    pub cut_journal_files: u64,
    /// Files that do not count although they are newer: another lineage wrote them, and no snapshot
    /// of it is whole.
    pub ignored_journal_files: u64,
    /// These lineages.
    pub ignored_lineages: BTreeSet<String>,
    /// Caches.
    pub caches: u64,
    /// Paths.
    pub paths: u64,
    /// Upload aliases.
    pub aliases: u64,
    /// Pins.
    pub pins: u64,
    /// Documents: build logs and build traces.
    pub documents: u64,
    /// Paths and aliases whose bytes are not in the store.
    pub lost: u64,
    /// The first of them, with their caches.
    pub lost_paths: Vec<String>,
}

impl Recovered {
    /// Whether something is missing that the journal or the packs once had.
    pub fn has_losses(&self) -> bool {
        self.lost + self.unreadable_packs + self.cut_journal_files > 0
    }
}

/// What a recovery tells while it runs.
#[derive(Debug, Clone, Copy)]
pub enum RecoveryEvent<'a> {
    /// What was done so far.
    Progress(&'a Recovered),
    /// A path or an alias whose bytes are not in the store, with its cache.
    Lost(&'a str),
}

/// Is told what happens.
type Tell<'a> = &'a (dyn Fn(RecoveryEvent<'_>) + Send + Sync);

/// A store to recover from.
#[derive(Debug)]
pub struct Recovery {
    store: Store,
    /// The only lineage that counts, if the operator chose one.
    wanted: Option<u64>,
    /// That of the files.
    lineage: Option<u64>,
    /// The newest first.
    names: Vec<JournalName>,
    settings: Vec<(String, Vec<u8>)>,
    /// By label, without their pins; `None` for one that is gone.
    caches: HashMap<u64, Option<JournalCache>>,
    /// The pins of each cache, by label.
    pins: HashMap<u64, PinStates>,
    is_snapshot_whole: bool,
    report: Recovered,
}

impl Recovery {
    /// Reads from the journal what is to be recovered: its files, settings and caches. Changes
    /// nothing. The lineage with the newest whole snapshot counts.
    pub async fn open(store: Store) -> Result<Self> {
        Self::open_lineage(store, None).await
    }

    /// The same for a lineage that the operator chose.
    pub async fn open_lineage(store: Store, wanted: Option<u64>) -> Result<Self> {
        let names = list(&store).await?;
        let mut this = Self {
            store,
            wanted,
            lineage: None,
            names: Vec::new(),
            settings: Vec::new(),
            caches: HashMap::new(),
            pins: HashMap::new(),
            is_snapshot_whole: false,
            report: Recovered::default(),
        };
        this.names = this.choose(names).await?;
        let mut settings: Option<Vec<(String, Vec<u8>)>> = None;
        for name in this.names.clone() {
            let Some(file) = this.read(&name, true).await? else { continue };
            let mut own_settings = Vec::new();
            let mut own_caches: HashMap<u64, CacheStates> = HashMap::new();
            for record in file.records {
                match record {
                    JournalRecord::Setting { name, value } => own_settings.push((name, value)),
                    JournalRecord::Cache(cache) => {
                        own_caches.insert(cache.cache, CacheStates::of_cache(cache));
                    }
                    JournalRecord::CacheGone { cache } => {
                        own_caches.insert(cache, CacheStates::of_gone());
                    }
                    JournalRecord::Pins { cache, pins } => {
                        own_caches.entry(cache).or_default().add_pins(pins);
                    }
                    JournalRecord::Pin { cache, pin } => {
                        own_caches.entry(cache).or_default().add_pins(vec![pin]);
                    }
                    JournalRecord::PinGone { cache, name, hash } => {
                        own_caches.entry(cache).or_default().pins.insert((name, hash), None);
                    }
                    _ => {}
                }
            }
            for (label, own) in own_caches {
                this.add_older(label, own);
            }
            // A file that has settings has all that there were.
            if !own_settings.is_empty() {
                settings.get_or_insert(own_settings);
            }
        }
        this.settings = settings.unwrap_or_default();
        this.settings.sort_unstable();
        this.keep_newest_of_each_name();
        Ok(this)
    }

    /// Adds what a file says of a cache to what later files say.
    fn add_older(&mut self, label: u64, own: CacheStates) {
        // The record of a cache has all its pins, so nothing older counts.
        if self.caches.contains_key(&label) {
            return;
        }
        let pins = self.pins.entry(label).or_default();
        for (key, state) in own.pins {
            pins.entry(key).or_insert(state);
        }
        if own.has_cache {
            self.caches.insert(label, own.cache);
        }
    }

    /// A deleted cache whose name another one has now: should the record of its deletion be lost,
    /// it is still not to come back, least of all under the rights of the other one.
    fn keep_newest_of_each_name(&mut self) {
        let mut newest: HashMap<String, u64> = HashMap::new();
        for (label, cache) in &self.caches {
            if let Some(cache) = cache {
                let kept = newest.entry(cache.name.clone()).or_insert(*label);
                *kept = (*kept).max(*label);
            }
        }
        for (label, cache) in &mut self.caches {
            if cache.as_ref().is_some_and(|cache| newest[&cache.name] != *label) {
                *cache = None;
            }
        }
    }

    /// Whether there is a journal at all.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the journal has a snapshot that was finished. Without one, paths from before it may
    /// be missing.
    pub fn is_snapshot_whole(&self) -> bool {
        self.is_snapshot_whole
    }

    /// The lineage that is recovered.
    pub fn lineage(&self) -> Option<u64> {
        self.lineage
    }

    /// The generations that are recovered, the first and the last.
    pub fn generations(&self) -> Option<(u64, u64)> {
        let generations = self.names.iter().map(|name| name.generation);
        Some((generations.clone().min()?, generations.max()?))
    }

    /// A named value of the lost installation.
    pub fn setting(&self, name: &str) -> Option<&[u8]> {
        self.settings.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    /// The newest whole snapshot with the segments after it, the newest file first. Without a whole
    /// snapshot, all there is of the newest lineage.
    async fn choose(&mut self, names: Vec<JournalName>) -> Result<Vec<JournalName>> {
        let mut ends: Vec<JournalName> =
            names.iter().copied().filter(|name| name.kind == JournalKind::End).collect();
        ends.sort_unstable_by_key(|name| std::cmp::Reverse(name.generation));
        let mut base = None;
        for end in ends {
            if let Some(file) = self.read(&end, false).await?.filter(|file| file.is_whole) {
                if self.wanted.is_some_and(|wanted| wanted != file.header.lineage) {
                    continue;
                }
                base = Some(file.header);
                break;
            }
            self.report.cut_journal_files += 1;
            tracing::warn!(journal.file = %end, "the end of a snapshot is cut short; all files count");
        }
        self.is_snapshot_whole = base.is_some();
        if let Some(base) = base {
            self.count_ignored(&names, &base).await?;
        }
        let mut chosen: Vec<JournalName> = match base {
            Some(base) => names
                .into_iter()
                .filter(|name| match name.kind {
                    JournalKind::Segment => {
                        name.generation >= base.generation && name.position > base.position
                    }
                    JournalKind::Part => name.generation == base.generation,
                    JournalKind::End => false,
                })
                .collect(),
            None => names.into_iter().filter(|name| name.kind != JournalKind::End).collect(),
        };
        // Segments after parts: what a part says is as new as the snapshot's place only.
        chosen.sort_unstable_by_key(|name| {
            std::cmp::Reverse((name.kind == JournalKind::Segment, name.position, name.random))
        });
        let mut lineage = base.map(|base| base.lineage).or(self.wanted);
        if lineage.is_none()
            && let Some(newest) = chosen.iter().copied().max_by_key(|name| (name.generation, name.position))
        {
            lineage = read_header(&self.store, &newest).await?.map(|header| header.lineage);
        }
        let (mut of_lineage, mut parts, mut nameless_parts) = (Vec::new(), BTreeSet::new(), 0);
        for name in chosen {
            let Some(own) = read_header(&self.store, &name).await? else {
                self.report.cut_journal_files += 1;
                nameless_parts += u64::from(name.kind == JournalKind::Part);
                tracing::warn!(journal.file = %name, "a file of the journal has no readable beginning");
                continue;
            };
            if *lineage.get_or_insert(own.lineage) == own.lineage {
                of_lineage.push(name);
                if own.kind == JournalKind::Part {
                    parts.insert(own.number);
                }
            }
        }
        self.lineage = lineage;
        self.count_gaps(base.as_ref(), &of_lineage);
        if let Some(base) = base {
            self.count_missing_parts(&base, &parts, nameless_parts);
        }
        Ok(of_lineage)
    }

    /// Counts segments that are not there: their numbers go up by one. The last one leaves no gap.
    fn count_gaps(&mut self, base: Option<&JournalHeader>, files: &[JournalName]) {
        let segments = files.iter().filter(|name| name.kind == JournalKind::Segment);
        let numbers: BTreeSet<u64> = segments.map(|name| name.position.1).collect();
        let mut before = base.map(|base| base.position.1);
        for number in numbers {
            let missing = before.map_or(0, |before| number.saturating_sub(before.saturating_add(1)));
            if missing > 0 {
                tracing::warn!(before = number, missing, "segments of the journal are not there");
                self.report.cut_journal_files += missing;
            }
            before = Some(number);
        }
    }

    /// Counts parts of the snapshot that are not there: its end says how many there are. A part may
    /// be there twice, because a crash repeats it. The end of an old snapshot has no count.
    fn count_missing_parts(&mut self, end: &JournalHeader, parts: &BTreeSet<u32>, nameless: u64) {
        let found = parts.iter().filter(|number| (1..=end.number).contains(*number)).count() as u64;
        let missing = u64::from(end.number).saturating_sub(found + nameless);
        if missing > 0 {
            tracing::warn!(missing, of = end.number, "parts of a snapshot of the journal are not there");
            self.report.cut_journal_files += missing;
        }
    }

    /// Counts what another lineage wrote after a snapshot: a database that was recovered or
    /// restored since, and lost before its own first snapshot was whole, or that the operator did
    /// not choose. Without a snapshot, its files say what changed, but not what was there.
    async fn count_ignored(&mut self, names: &[JournalName], base: &JournalHeader) -> Result<()> {
        let is_later =
            |name: &&JournalName| name.kind != JournalKind::End && name.generation > base.generation;
        for name in names.iter().filter(is_later) {
            let header = read_header(&self.store, name).await?;
            if let Some(other) = header.filter(|header| header.lineage != base.lineage) {
                self.report.ignored_journal_files += 1;
                self.report.ignored_lineages.insert(format!("{:016x}", other.lineage));
            }
        }
        Ok(())
    }

    /// What is known before anything is recovered.
    pub fn report(&self) -> &Recovered {
        &self.report
    }

    /// Reads a file as far as it goes. With `counts`, a file that is cut is counted and told.
    async fn read(&mut self, name: &JournalName, counts: bool) -> Result<Option<JournalFile>> {
        let text = name.to_string();
        let Some(bytes) = self.store.get(&text).await? else { return Ok(None) };
        let read = JournalFile::read(&bytes);
        let is_whole = read.as_ref().is_ok_and(|file| file.is_whole);
        if counts {
            self.report.journal_files += 1;
            self.report.cut_journal_files += u64::from(!is_whole);
            if !is_whole {
                tracing::warn!(
                    journal.file = text,
                    "a file of the journal is cut short; the rest of it is lost"
                );
            }
        }
        Ok(read.ok())
    }

    /// Fills the index, which has to be empty or half recovered, and returns what was done.
    /// `tell` is told what was done so far, now and then, and each path that is lost.
    pub async fn run(mut self, into: &RecoveryIndex, clock: &dyn Clock, tell: Tell<'_>) -> Result<Recovered> {
        let now = clock.now();
        let RecoveryIndex { index, journal, .. } = into;
        self.recover_packs(into, now, tell).await?;
        for (name, value) in &self.settings {
            journal.restore_setting(name, value).await?;
        }
        let mut ids = HashMap::new();
        let mut labels: Vec<&u64> = self.caches.keys().collect();
        labels.sort_unstable();
        for label in labels {
            let Some(cache) = &self.caches[label] else { continue };
            let id = journal.restore_cache(&restored_cache(cache)).await?;
            ids.insert(*label, id);
            self.report.caches += 1;
            // Of a name, the pin that was added last is the newest.
            let mut pins: Vec<_> = self.pins[label].values().flatten().collect();
            pins.sort_by_key(|pin| pin.created_at);
            for pin in pins {
                let (name, path) = (pin.name.clone(), pin.path.clone());
                let pin = Pin { name, path, created_at: pin.created_at, ends_at: pin.ends_at };
                index.add_pin(id, &pin, None).await?;
                self.report.pins += 1;
            }
        }
        let mut seen = Seen::default();
        for name in self.names.clone() {
            let Some(file) = self.read(&name, false).await? else { continue };
            self.recover_file(index, file, &ids, &mut seen, now, tell).await?;
            tell(RecoveryEvent::Progress(&self.report));
        }
        Ok(self.report)
    }

    async fn recover_packs(&mut self, into: &RecoveryIndex, now: UnixSeconds, tell: Tell<'_>) -> Result<()> {
        let mut packs = self.list_packs().await?;
        self.report.packs_found = packs.len() as u64;
        packs.sort_unstable_by_key(|pack| (std::cmp::Reverse(pack.modified_at), *pack.id.as_bytes()));
        for page in packs.chunks(PACKS_PAGE) {
            let ids: Vec<PackId> = page.iter().map(|pack| pack.id).collect();
            // Also those that a collection would delete: they may hold what the journal names.
            let new = into.collect.packs_without_row(&ids).await?;
            let new: HashSet<PackId> = new.into_iter().map(|pack| pack.id).collect();
            self.report.packs += (page.len() - new.len()) as u64;
            let store = self.store.clone();
            let mut tables = futures::stream::iter(page.iter().filter(|pack| new.contains(&pack.id)))
                .map(|pack| {
                    let store = &store;
                    async move { (pack, read_pack_table(store, pack).await) }
                })
                .buffered(PACKS_AT_ONCE);
            while let Some((pack, read)) = tables.next().await {
                match read {
                    Ok(entries) => {
                        let chunks = entries.into_iter().map(new_chunk).collect();
                        let pack = NewPack { id: pack.id, size: pack.size, chunks, created_at: now };
                        into.index.commit_pack(&pack).await?;
                        self.report.chunks += pack.chunks.len() as u64;
                        self.report.packs += 1;
                    }
                    Err(
                        error @ (Error::Pack { .. } | Error::Blobs(dormer_blobs::Error::Truncated { .. })),
                    ) => {
                        tracing::warn!(
                            pack.id = %pack.id,
                            error = with_causes(&error),
                            "the table of a pack cannot be read"
                        );
                        self.report.unreadable_packs += 1;
                    }
                    // The store failed: that says nothing of the pack.
                    Err(error) => return Err(error),
                }
                tell(RecoveryEvent::Progress(&self.report));
            }
        }
        Ok(())
    }

    async fn list_packs(&self) -> Result<Vec<StoredPack>> {
        let mut packs = Vec::new();
        let mut entries = self.store.list(PACKS);
        while let Some(entry) = entries.try_next().await? {
            if let Some(BlobKey::Pack(id)) = BlobKey::parse(&entry.name) {
                packs.push(StoredPack { id, size: entry.size, modified_at: entry.modified_at });
            }
        }
        Ok(packs)
    }

    async fn recover_file(
        &mut self,
        index: &Arc<dyn Index>,
        file: JournalFile,
        caches: &HashMap<u64, CacheId>,
        seen: &mut Seen,
        now: UnixSeconds,
        tell: Tell<'_>,
    ) -> Result<()> {
        let mut nars: HashMap<NarHash, JournalNar> = HashMap::new();
        let (mut paths, mut aliases, mut documents) = (Vec::new(), Vec::new(), Vec::new());
        for record in file.records {
            match record {
                JournalRecord::Nar(nar) => {
                    nars.insert(nar.hash, nar);
                }
                JournalRecord::Path(path) => paths.push(path),
                JournalRecord::Alias(alias) => aliases.push(alias),
                JournalRecord::Document(document) => documents.push(document),
                _ => {}
            }
        }
        let is_part = file.header.kind == JournalKind::Part;
        let mut used: HashMap<CacheId, Vec<StorePathHash>> = HashMap::new();
        for path in paths {
            if seen.had_path(path.cache, path.hash, is_part) {
                continue;
            }
            if let Some(cache) = caches.get(&path.cache)
                && let Some(hash) = self.recover_path(index, *cache, path, &nars, tell).await?
            {
                used.entry(*cache).or_default().push(hash);
            }
        }
        for (cache, hashes) in used {
            // When a path was used is not in the journal. Nothing expires because of that.
            for page in hashes.chunks(CHUNKS_MAX) {
                index.touch_objects(cache, page, Use::Push, now).await?;
            }
        }
        for alias in aliases {
            let was_seen = seen.had_alias(alias.cache, &alias.file_name, is_part);
            if let (false, Some(cache)) = (was_seen, caches.get(&alias.cache)) {
                self.recover_alias(index, *cache, alias, &nars, tell).await?;
            }
        }
        for document in documents {
            let was_seen = seen.had_document(document.cache, &document.name, is_part);
            if let (false, Some(cache)) = (was_seen, caches.get(&document.cache)) {
                self.recover_document(index, *cache, document, tell).await?;
            }
        }
        Ok(())
    }

    /// Commits a path; returns its hash if it is there now.
    async fn recover_path(
        &mut self,
        index: &Arc<dyn Index>,
        cache: CacheId,
        path: JournalPath,
        nars: &HashMap<NarHash, JournalNar>,
        tell: Tell<'_>,
    ) -> Result<Option<StorePathHash>> {
        let Some(object) = path.object else { return Ok(None) };
        let label = path.cache;
        let name = format!("{}-{}", path.hash, object.name);
        let (nar, created_at) = (object.nar, object.created_at);
        let is_there = match restored_object(path.hash, object) {
            Some(object) => {
                let target = CommitTarget::Object(object);
                self.commit(index, cache, nars.get(&nar), nar, target, created_at).await?
            }
            None => false,
        };
        if is_there {
            self.report.paths += 1;
            return Ok(Some(path.hash));
        }
        self.lost(label, &name, tell);
        Ok(None)
    }

    async fn recover_alias(
        &mut self,
        index: &Arc<dyn Index>,
        cache: CacheId,
        alias: JournalAlias,
        nars: &HashMap<NarHash, JournalNar>,
        tell: Tell<'_>,
    ) -> Result<()> {
        let Some((nar, compression, used_at)) = alias.upload else { return Ok(()) };
        let target = CommitTarget::Alias { file_name: alias.file_name.clone(), compression };
        if self.commit(index, cache, nars.get(&nar), nar, target, used_at).await? {
            self.report.aliases += 1;
        } else {
            self.lost(alias.cache, &format!("nar/{}", alias.file_name), tell);
        }
        Ok(())
    }

    async fn recover_document(
        &mut self,
        index: &Arc<dyn Index>,
        cache: CacheId,
        document: JournalDocument,
        tell: Tell<'_>,
    ) -> Result<()> {
        let Some(content) = document.content else { return Ok(()) };
        let Ok(name) = document.name.parse::<DocumentName>() else {
            self.lost(document.cache, &document.name, tell);
            return Ok(());
        };
        let written_at = content.written_at;
        let (owner, size, encoding, body) = (content.owner, content.size, content.encoding, content.body);
        index.put_document(cache, &NewDocument { name, owner, size, encoding, body }, written_at).await?;
        self.report.documents += 1;
        Ok(())
    }

    fn lost(&mut self, cache: u64, name: &str, tell: Tell<'_>) {
        let cache = self.caches.get(&cache).and_then(Option::as_ref).map_or("?", |cache| &cache.name);
        let name = format!("{cache}/{name}");
        tell(RecoveryEvent::Lost(&name));
        self.report.lost += 1;
        if self.report.lost_paths.len() < LOST_NAMED_MAX {
            self.report.lost_paths.push(name);
        }
    }

    /// Commits a NAR under a name; `false` if its bytes are not in the store.
    async fn commit(
        &self,
        index: &Arc<dyn Index>,
        cache: CacheId,
        nar: Option<&JournalNar>,
        hash: NarHash,
        target: CommitTarget,
        at: UnixSeconds,
    ) -> Result<bool> {
        let known = index.find_nar(&hash).await?.filter(|nar| !nar.damaged);
        let mut is_listing_lost = false;
        let source = match (known, nar) {
            (Some(known), _) => NarSource::Known(known.id),
            (None, None) => return Ok(false),
            (None, Some(nar)) => {
                let Some(restored) = restored_nar(index, &self.store, nar).await? else { return Ok(false) };
                is_listing_lost = restored.is_listing_lost;
                NarSource::New(Box::new(restored.nar))
            }
        };
        let commit = NarCommit { cache, nar: source, target, at, grace_seconds: 0, known_keys: Vec::new() };
        index.commit_nar(&commit).await?;
        if is_listing_lost {
            let id: Option<NarId> = index.find_nar(&hash).await?.map(|nar| nar.id);
            if let Some(id) = id {
                index.mark_listing_lost(id, &[], at).await?;
            }
        }
        Ok(true)
    }
}

/// Pins by name and hash; `None` for one that is gone.
type PinStates = BTreeMap<(String, StorePathHash), Option<JournalPin>>;

/// What one file says of a cache. Of two records in a file the later one counts, as it does of two
/// files.
#[derive(Debug, Default)]
struct CacheStates {
    /// Whether the file says what became of the cache, and not only of some pins.
    has_cache: bool,
    /// The cache without its pins; `None` also if it is gone.
    cache: Option<JournalCache>,
    pins: PinStates,
}

impl CacheStates {
    fn of_cache(mut cache: JournalCache) -> Self {
        let pins = std::mem::take(&mut cache.pins);
        let mut states = Self { has_cache: true, cache: Some(cache), pins: PinStates::new() };
        states.add_pins(pins);
        states
    }

    fn of_gone() -> Self {
        Self { has_cache: true, ..Self::default() }
    }

    fn add_pins(&mut self, pins: Vec<JournalPin>) {
        for pin in pins {
            self.pins.insert((pin.name.clone(), pin.path.hash()), Some(pin));
        }
    }
}

/// What the files so far had. Only keys of segments are remembered: a snapshot names each thing
/// once, nearly always, and its states are equally new where it does not.
#[derive(Debug, Default)]
struct Seen {
    paths: HashSet<(u64, StorePathHash)>,
    aliases: HashSet<(u64, String)>,
    documents: HashSet<(u64, String)>,
}

impl Seen {
    fn had_path(&mut self, cache: u64, hash: StorePathHash, is_part: bool) -> bool {
        if is_part { self.paths.contains(&(cache, hash)) } else { !self.paths.insert((cache, hash)) }
    }

    fn had_alias(&mut self, cache: u64, name: &str, is_part: bool) -> bool {
        let key = (cache, name.to_owned());
        if is_part { self.aliases.contains(&key) } else { !self.aliases.insert(key) }
    }

    fn had_document(&mut self, cache: u64, name: &str, is_part: bool) -> bool {
        let key = (cache, name.to_owned());
        if is_part { self.documents.contains(&key) } else { !self.documents.insert(key) }
    }
}

fn restored_cache(cache: &JournalCache) -> Cache {
    Cache {
        id: CacheId(0),
        name: cache.name.clone(),
        is_public: cache.is_public,
        store_dir: cache.store_dir.clone(),
        priority: i32::try_from(cache.priority).unwrap_or(i32::MAX),
        upstream_cache_key_names: cache.upstream_key_names.clone(),
        retention_seconds: cache.retention_seconds,
        quota_bytes: cache.quota_bytes.map(i64::unsigned_abs),
        keep_latest: cache.keep_latest.and_then(|keep| u32::try_from(keep).ok()),
        keys: cache
            .keys
            .iter()
            .map(|key| CacheKey {
                public_key: key.public_key.clone(),
                sealed_secret: key.sealed_secret.clone(),
                active: key.active,
            })
            .collect(),
        created_at: cache.created_at,
        allow_replacement: cache.allow_replacement,
    }
}

fn restored_object(hash: StorePathHash, object: JournalObject) -> Option<Object> {
    Some(Object {
        path: StorePath::new(hash, &object.name).ok()?,
        references: object.references,
        deriver: object.deriver,
        ca: object.ca,
        sigs: object.signatures,
        system: object.system,
        extra: object.extra,
    })
}

/// A NAR with the numbers that its chunks have now.
struct RestoredNar {
    nar: NewNar,
    /// The listing is not in the store: the NAR is to be marked after its commit.
    is_listing_lost: bool,
}

/// `None` if one of the NAR's chunks is not in the store, or if chunks and fills do not fit
/// together. A listing alone never loses a NAR: the next push brings it back.
async fn restored_nar(
    index: &Arc<dyn Index>,
    store: &Store,
    nar: &JournalNar,
) -> Result<Option<RestoredNar>> {
    let Some(rows) = find_all(index, &nar.recipe.chunks).await? else { return Ok(None) };
    let (mut recipe, mut tag) = (RecipeBuilder::new(), TagBuilder::new());
    let (mut holes, mut raw_bytes, mut holed_bytes, mut file_size) = (0, 0, 0, 0);
    for row in &rows {
        recipe.push_chunk(row.number);
        tag.push_chunk(&row.id, row.checksum, &row.layout);
        holes += row.layout.holes.len() as u64;
        raw_bytes += u64::from(row.layout.raw_len);
        holed_bytes += row.layout.holed_bytes();
        file_size += row.layout.spliced_len();
    }
    if holes != nar.recipe.fills.hole_count() || raw_bytes != nar.size {
        return Ok(None);
    }
    for fill in nar.recipe.fills.hole_fills() {
        recipe.push_fill(fill);
        tag.push_fill(fill);
    }
    let mut packs: Vec<PackNumber> = rows.iter().map(|row| row.pack).collect();
    let mut build_ids = Vec::new();
    let listing = match &nar.listing {
        JournalListing::Lost => None,
        JournalListing::Inline(body) => {
            // A body that cannot be read is found, and marked as lost, by the first reader.
            if let Ok(json) = zstd::bulk::decompress(body, GATHERED_BYTES_MAX) {
                build_ids = listed_build_ids(&json);
            }
            Some(StoredListing::Inline(body.clone()))
        }
        JournalListing::Chunks { chunks, size } => match find_all(index, chunks).await? {
            Some(rows) => match read_listing(store, &rows, *size).await? {
                Some(json) => {
                    build_ids = listed_build_ids(&json);
                    let mut recipe = RecipeBuilder::new();
                    for row in &rows {
                        recipe.push_chunk(row.number);
                    }
                    packs.extend(rows.iter().map(|row| row.pack));
                    Some(StoredListing::Chunks { recipe: recipe.finish(), size: *size })
                }
                None => None,
            },
            None => None,
        },
    };
    let is_listing_lost = listing.is_none();
    let listing = listing.unwrap_or(StoredListing::Inline(Vec::new()));
    packs.sort_unstable();
    packs.dedup();
    let nar = NewNar {
        hash: nar.hash,
        size: nar.size,
        file_size,
        tag: tag.finish(),
        recipe: recipe.finish(),
        holed_bytes,
        listing,
        build_ids,
        packs,
    };
    Ok(Some(RestoredNar { nar, is_listing_lost }))
}

/// The JSON of a listing in chunks, at most [`LISTING_BYTES_MAX`]. It is empty if a chunk is
/// damaged: the first reader finds that, too. `None` if a pack is gone or short since its table was
/// read.
async fn read_listing(store: &Store, rows: &[ChunkRow], size: u64) -> Result<Option<Vec<u8>>> {
    let mut json = Vec::new();
    if size > LISTING_BYTES_MAX as u64 {
        return Ok(Some(json));
    }
    let mut decoder = Decoder::new().map_err(Error::Encode)?;
    for row in rows {
        let range = row.offset..row.offset + u64::from(row.layout.stored_len());
        let key = BlobKey::Pack(row.pack_id).to_string();
        let frames = match read_exactly(store, &key, range).await {
            Ok(frames) => frames,
            Err(Error::Blobs(
                error @ (dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }),
            )) => {
                tracing::warn!(error = with_causes(&error), "a listing is lost; its NAR is not");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if checksum(&frames) != row.checksum {
            return Ok(Some(Vec::new()));
        }
        let Ok(bytes) = decoder.decode(&frames, &row.layout, &[]) else { return Ok(Some(Vec::new())) };
        json.extend_from_slice(&bytes);
    }
    Ok(Some(json))
}

async fn find_all(index: &Arc<dyn Index>, chunks: &[ChunkId]) -> Result<Option<Vec<ChunkRow>>> {
    let mut rows = Vec::with_capacity(chunks.len());
    for batch in chunks.chunks(CHUNKS_MAX) {
        for found in index.find_chunks(batch).await? {
            let Some(row) = found else { return Ok(None) };
            rows.push(row);
        }
    }
    Ok(Some(rows))
}

fn new_chunk(entry: PackEntry) -> NewChunk {
    NewChunk { id: entry.id, offset: entry.offset, layout: entry.layout, checksum: entry.checksum }
}

/// A pack as the store lists it.
#[derive(Debug, Clone, Copy)]
struct StoredPack {
    id: PackId,
    size: u64,
    modified_at: i64,
}

/// The table of a pack, by one request nearly always.
async fn read_pack_table(store: &Store, pack: &StoredPack) -> Result<Vec<PackEntry>> {
    let (key, size) = (BlobKey::Pack(pack.id).to_string(), pack.size);
    let unreadable = |source| Error::Pack { key: key.clone(), source };
    let begin = size.saturating_sub(TAIL_BYTES);
    let tail = if size == 0 { Bytes::new() } else { read_exactly(store, &key, begin..size).await? };
    let Some(trailer) = tail.last_chunk::<PACK_TRAILER_BYTES>() else {
        return Err(dormer_blobs::Error::Truncated { key }.into());
    };
    let trailer = read_trailer(trailer, size).map_err(unreadable)?;
    let range = trailer.table_range();
    let table = if range.start >= begin {
        let at = |place: u64| usize::try_from(place - begin).expect("it lies in the tail");
        tail.slice(at(range.start)..at(range.end))
    } else {
        read_exactly(store, &key, range).await?
    };
    read_table(&trailer, &table).map_err(unreadable)
}

async fn read_exactly(store: &Store, key: &str, range: Range<u64>) -> Result<Bytes> {
    let bytes = store.get_up_to(key, range.clone()).await?;
    if bytes.len() as u64 == range.end - range.start {
        Ok(bytes)
    } else {
        Err(dormer_blobs::Error::Truncated { key: key.to_owned() }.into())
    }
}
