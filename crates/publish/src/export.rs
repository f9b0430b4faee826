//! Exporting: one cache, as a standard static cache at the root of a folder or bucket.
//!
//! An export needs no row and no lease: what lies in the target says what is done. It reads the
//! cache in pages, the oldest paths first, because pushes bring references first. For each page it
//! adds the references that are not exported yet, plans (`plan`, pure), sends the NARs, and writes
//! the narinfos level by level, and the documents of a level after its narinfos.
//!
//! Invariants
//! - The export writes a narinfo after its NAR and after the narinfos of its references. So a
//!   reader finds whole closures at every moment, also after a crash.
//! - A document is written after the narinfo of an object that it belongs to, so no reader finds a
//!   trace whose path is not there. Documents of a path that is there already are looked at too:
//!   they may be younger than the path, and an earlier run may have ended before them.
//! - A file that is there and right is not written again. A path costs one read for that, a NAR one
//!   look at its size, and a document one read.
//! - Memory is bounded by the settings: the paths that are planned together, the hashes of the
//!   paths and the names of the documents that were exported last, and the account of the sender. A
//!   path that the export has forgotten is looked up in the target.
//! - Two exports of a cache to one place do no harm: they write the same NARs under the same names.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_engine::Engine;
use dormer_format::EncodingTag;
use dormer_index::{Cache, FoundObject, ObjectOrder, ObjectPlace, PublishIndex, PublishedNar};
use dormer_nix::{CacheInfo, DocumentName, NarHash, NarInfo, StoreDir, StorePath, StorePathHash};
use dormer_stores::{Error as StoreError, Store};

use crate::documents::cache_info;
use crate::in_flight::{InFlight, Requests};
use crate::owned_documents::{DocumentKinds, WantedDocument, find_documents};
use crate::plan::{Candidate, Reference, Wait, plan_bringing};
use crate::report::Reporter;
use crate::settings::TargetSettings;
use crate::transfer::{FilePlace, NarToSend, Sender, Sent, nar_file};
use crate::{Error, Result};

/// References looked up together.
const REFERENCES_PAGE: usize = 4_096;

/// Most failed paths that an outcome names.
const FAILED_NAMED_MAX: usize = 10_000;

/// Names of documents take more memory than hashes, so fewer are remembered.
const HASHES_PER_NAME: usize = 8;

/// Longest link to debug info that is looked into, in bytes.
const LINK_BYTES_MAX: usize = 4 * 1024;

/// How an export works.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of the export by itself")]
pub struct ExportSettings {
    /// Whether listings (`.ls`) are written, at one more request for each path.
    pub listings: bool,
    /// Whether build logs are written, at one more request for each.
    pub logs: bool,
    /// Whether build traces are written, at one more request for each.
    pub traces: bool,
    /// Whether debug info is written, at one more request for each debug file.
    pub debug_info: bool,
    /// Most requests at once.
    pub concurrency: usize,
    /// Memory for files that are being sent, in bytes.
    pub memory_bytes: u64,
    /// Most bytes sent per second; 0 sets no limit.
    pub bandwidth: u64,
    /// Paths that are read together.
    pub page_objects: u32,
    /// Most paths that are planned together: a page and references of it. Each holds its row in
    /// memory: about a KiB.
    pub planned_max: usize,
    /// Most exported paths that are remembered, twice: some 40 bytes each. With logs or debug info,
    /// an eighth as many names of them: some 250 bytes each.
    pub remembered_max: usize,
}

impl Default for ExportSettings {
    fn default() -> Self {
        let TargetSettings { logs, traces, debug_info, concurrency, memory_bytes, bandwidth, .. } =
            TargetSettings::default();
        Self {
            listings: true,
            logs,
            traces,
            debug_info,
            concurrency,
            memory_bytes,
            bandwidth,
            page_objects: 1_024,
            planned_max: 16 * 1_024,
            remembered_max: 500_000,
        }
    }
}

/// The result of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportOutcome {
    /// Narinfos that were written.
    pub exported: u64,
    /// Paths that were there already.
    pub unchanged: u64,
    /// NARs that were sent.
    pub nars_uploaded: u64,
    /// Bytes of these NARs.
    pub bytes_uploaded: u64,
    /// Build logs, build traces and links to debug info that were written.
    pub documents: u64,
    /// Those that were not written, because the place takes no names of that length.
    pub left_out: u64,
    /// Paths that could not be exported.
    pub failed: u64,
    /// The first of these, with the reasons.
    pub failures: Vec<(StorePathHash, String)>,
}

/// Exports `cache` to the root of `store`.
pub async fn export(
    engine: &Engine,
    index: &dyn PublishIndex,
    store: &Store,
    cache: &Cache,
    settings: &ExportSettings,
    reporter: &dyn Reporter,
) -> Result<ExportOutcome> {
    let name: CacheName = cache.name.parse().map_err(|_| Error::CacheName { name: cache.name.clone() })?;
    let target_settings = TargetSettings {
        memory_bytes: settings.memory_bytes,
        bandwidth: settings.bandwidth,
        ..TargetSettings::default()
    };
    let mut export = Export {
        engine,
        index,
        store,
        cache,
        name,
        settings,
        reporter,
        sender: Sender::new(&target_settings),
        // A request that nobody waits for any more does no harm here.
        in_flight: InFlight::new(settings.concurrency, Duration::ZERO),
        is_new: false,
        exported: Remembered::new(settings.remembered_max),
        shared: Remembered::new((settings.remembered_max / HASHES_PER_NAME).max(1)),
        outcome: ExportOutcome::default(),
    };
    export.begin().await?;
    let waits = export.passes().await?;
    export.conclude(waits).await
}

/// What was exported last.
struct Remembered<T> {
    /// Most of each half.
    max: usize,
    recent: HashSet<T>,
    older: HashSet<T>,
    has_forgotten: bool,
}

impl<T: Eq + Hash> Remembered<T> {
    fn new(max: usize) -> Self {
        Self { max, recent: HashSet::new(), older: HashSet::new(), has_forgotten: false }
    }

    fn insert(&mut self, one: T) {
        if self.recent.len() >= self.max {
            self.has_forgotten |= !self.older.is_empty();
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(one);
    }

    fn contains(&self, one: &T) -> bool {
        self.recent.contains(one) || self.older.contains(one)
    }
}

type NarKey = (NarHash, EncodingTag);

/// What lies in the target of a path.
enum InTarget {
    /// All, and it is right.
    Right,
    /// The NAR; the narinfo has to be written.
    Nar(PublishedNar),
    Nothing,
}

/// Paths that are planned together.
#[derive(Default)]
struct Page {
    candidates: Vec<Candidate>,
    found: Vec<FoundObject>,
    known: HashMap<StorePathHash, Reference>,
    /// NARs that lie in the target already.
    nars: HashMap<NarKey, PublishedNar>,
}

struct Export<'a> {
    engine: &'a Engine,
    index: &'a dyn PublishIndex,
    store: &'a Store,
    cache: &'a Cache,
    name: CacheName,
    settings: &'a ExportSettings,
    reporter: &'a dyn Reporter,
    sender: Sender,
    in_flight: InFlight,
    /// Whether the target held no cache, so that no file of it needs to be looked up.
    is_new: bool,
    exported: Remembered<StorePathHash>,
    /// Documents that several objects may have.
    shared: Remembered<DocumentName>,
    outcome: ExportOutcome,
}

impl Export<'_> {
    fn place(&self, key: &EdgeKey) -> FilePlace {
        FilePlace::at_root(key, self.cache.is_public)
    }

    /// Writes `nix-cache-info`, unless the same is there. Refuses a place that holds a cache of
    /// another store folder, and a public place for a private cache.
    async fn begin(&mut self) -> Result<()> {
        let place = self.place(&EdgeKey::CacheInfo(self.name.clone()));
        let text = cache_info(self.cache);
        let before = self.store.get(&place.name).await?;
        self.is_new = before.is_none();
        if let Some(before) = &before {
            let there = CacheInfo::parse(before).store_dir;
            if let Some(there) = there.filter(|there| *there != self.cache.store_dir) {
                return Err(Error::OtherStoreDir {
                    location: self.store.location().to_owned(),
                    store_dir: self.cache.store_dir.clone(),
                    there,
                });
            }
        }
        if before.as_deref() != Some(text.as_bytes()) {
            place.put_small(self.store, text.into_bytes()).await?;
        }
        // The file says nothing of the cache's paths, so it is a harmless thing to try with.
        if !self.cache.is_public && self.store.is_public(&place.name).await? == Some(true) {
            let location = self.store.location().to_owned();
            return Err(Error::PublicTarget { cache: self.cache.name.clone(), location });
        }
        Ok(())
    }

    /// Reads the whole cache, again while that brings more. One pass is enough unless references
    /// are much younger than their referrers. Returns what waits in the end.
    async fn passes(&mut self) -> Result<Vec<(StorePathHash, Wait)>> {
        loop {
            let before = self.outcome.exported;
            let waits = self.pass().await?;
            if self.outcome.exported == before
                || !waits.iter().any(|(_, wait)| matches!(wait, Wait::Behind(_)))
            {
                return Ok(waits);
            }
        }
    }

    async fn pass(&mut self) -> Result<Vec<(StorePathHash, Wait)>> {
        let mut waits: HashMap<StorePathHash, Wait> = HashMap::new();
        let mut not_named = 0;
        let mut listed_count = 0;
        let mut after: Option<ObjectPlace> = None;
        loop {
            let listed = self
                .engine
                .index()
                .list_objects(self.cache.id, ObjectOrder::Age, after, self.settings.page_objects)
                .await?;
            let Some(last) = listed.last() else {
                // One that waited as a reference may have been exported with its own page.
                waits.retain(|hash, _| !self.exported.contains(hash));
                self.outcome.failed = waits.len() as u64 + not_named;
                let others = self.outcome.exported + self.outcome.failed;
                self.outcome.unchanged = u64::saturating_sub(listed_count, others);
                return Ok(waits.into_iter().collect());
            };
            after = Some(last.place);
            listed_count += listed.len() as u64;
            let wanted: Vec<StorePathHash> = listed
                .iter()
                .map(|object| object.path.hash())
                .filter(|hash| !self.exported.contains(hash))
                .collect();
            if !wanted.is_empty() {
                let (page, damaged) = self.look_at(wanted).await?;
                let waiting = self.bring(page).await?;
                let damaged = damaged.into_iter().map(|hash| (hash, Wait::Unreadable));
                for (hash, wait) in damaged.chain(waiting) {
                    if waits.len() < FAILED_NAMED_MAX {
                        waits.insert(hash, wait);
                    } else if !waits.contains_key(&hash) {
                        not_named += 1;
                    }
                }
            }
        }
    }

    /// Loads these paths, and the references that are to be exported before them, as far as they
    /// fit. Returns damaged paths apart.
    async fn look_at(&mut self, wanted: Vec<StorePathHash>) -> Result<(Page, Vec<StorePathHash>)> {
        let mut page = Page::default();
        let mut damaged = Vec::new();
        let mut seen: HashSet<StorePathHash> = wanted.iter().copied().collect();
        let mut next = wanted;
        while !next.is_empty() {
            let mut references = Vec::new();
            let mut candidates = Vec::new();
            for hashes in next.chunks(REFERENCES_PAGE) {
                for found in self.index.find_objects(self.cache.id, hashes).await? {
                    let hash = found.object.path.hash();
                    if found.nar.damaged {
                        page.known.insert(hash, Reference::Damaged);
                        damaged.push(hash);
                        continue;
                    }
                    page.known.insert(hash, Reference::Present);
                    candidates.push(found);
                }
            }
            let mut right = Vec::new();
            for (found, in_target) in self.look_in_target(candidates).await? {
                let hash = found.object.path.hash();
                match in_target {
                    InTarget::Right => {
                        page.known.insert(hash, Reference::Published);
                        right.push(found);
                        continue;
                    }
                    InTarget::Nar(nar) => {
                        page.nars.insert(nar.nar, nar);
                    }
                    InTarget::Nothing => {}
                }
                let mut own: Vec<StorePathHash> =
                    found.object.references.iter().map(StorePath::hash).collect();
                own.retain(|reference| *reference != hash);
                own.sort_unstable();
                own.dedup();
                for reference in &own {
                    if self.exported.contains(reference) {
                        page.known.insert(*reference, Reference::Published);
                    } else if seen.insert(*reference) {
                        references.push(*reference);
                    }
                }
                page.candidates.push(Candidate { hash, references: own, since: 0, lost: None });
                page.found.push(found);
            }
            self.complete(&right.iter().collect::<Vec<_>>()).await?;
            if page.candidates.len() + references.len() > self.settings.planned_max {
                self.note_others(&mut page, &references).await?;
                break;
            }
            next = references;
        }
        Ok((page, damaged))
    }

    /// Says of references that do not fit where they are. A later page brings those that only the
    /// cache has.
    async fn note_others(&mut self, page: &mut Page, references: &[StorePathHash]) -> Result<()> {
        for hashes in references.chunks(REFERENCES_PAGE) {
            let found = self.index.find_objects(self.cache.id, hashes).await?;
            let (damaged, sound): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.nar.damaged);
            page.known.extend(damaged.iter().map(|found| (found.object.path.hash(), Reference::Damaged)));
            let mut right = Vec::new();
            for (found, in_target) in self.look_in_target(sound).await? {
                let hash = found.object.path.hash();
                if let InTarget::Right = in_target {
                    page.known.insert(hash, Reference::Published);
                    right.push(found);
                } else {
                    page.known.insert(hash, Reference::Present);
                }
            }
            self.complete(&right.iter().collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Looks for these paths in the target. A new target is not asked.
    async fn look_in_target(&self, found: Vec<FoundObject>) -> Result<Vec<(FoundObject, InTarget)>> {
        if self.is_new && !self.exported.has_forgotten {
            return Ok(found.into_iter().map(|found| (found, InTarget::Nothing)).collect());
        }
        let looks = found.into_iter().map(async |found| {
            let there = self.look_for(&found).await?;
            Ok((found, there))
        });
        self.in_flight.all(looks).await
    }

    async fn look_for(&self, found: &FoundObject) -> Result<InTarget> {
        let place = self.place(&EdgeKey::Narinfo(self.name.clone(), found.object.path.hash()));
        let Some(there) = self.store.get(&place.name).await? else { return Ok(InTarget::Nothing) };
        let store_dir: StoreDir = self.cache.store_dir.parse().unwrap_or_default();
        let Some(info) =
            std::str::from_utf8(&there).ok().and_then(|text| NarInfo::parse(text, &store_dir).ok())
        else {
            return Ok(InTarget::Nothing);
        };
        let nar_place = self.nar_place((found.nar.hash, found.nar.tag));
        let (Some(file_hash), true) = (info.file_hash, info.url == nar_place.name) else {
            return Ok(InTarget::Nothing);
        };
        let there_size = self.store.head(&nar_place.name).await?.map(|meta| meta.size);
        if there_size != Some(found.nar.file_size) {
            return Ok(InTarget::Nothing);
        }
        let text = self.engine.published_narinfo(self.cache, found.clone(), file_hash)?;
        if text.as_bytes() == &there[..] {
            return Ok(InTarget::Right);
        }
        Ok(InTarget::Nar(PublishedNar {
            nar: (found.nar.hash, found.nar.tag),
            uploaded: true,
            file_size: found.nar.file_size,
            file_hash: Some(file_hash),
            etag: None,
            delete_after: None,
        }))
    }

    fn nar_place(&self, nar: NarKey) -> FilePlace {
        self.place(&EdgeKey::Nar(self.name.clone(), nar_file(nar)))
    }

    /// Brings a page: NARs, then narinfos level by level. Returns what waits.
    async fn bring(&mut self, mut page: Page) -> Result<Vec<(StorePathHash, Wait)>> {
        // What the cache lacks is an upstream's, at once: an export has no time to settle.
        let plan = plan_bringing(&page.candidates, &page.known, 0, 0);
        let mut waits: Vec<(StorePathHash, Wait)> =
            plan.waiting.iter().map(|(place, wait)| (page.candidates[*place].hash, wait.clone())).collect();
        let mut gone: HashSet<StorePathHash> = HashSet::new();
        for level in &plan.levels {
            self.send_nars(&mut page, level).await?;
            let mut ready = Vec::new();
            for &place in level {
                let candidate = &page.candidates[place];
                let nar = &page.found[place].nar;
                let reference = candidate.references.iter().find(|reference| gone.contains(reference));
                let wait = match (page.nars.contains_key(&(nar.hash, nar.tag)), reference) {
                    (_, Some(reference)) => Wait::Behind(*reference),
                    (false, None) => Wait::Unreadable,
                    (true, None) => {
                        ready.push(place);
                        continue;
                    }
                };
                gone.insert(candidate.hash);
                waits.push((candidate.hash, wait));
            }
            let writes = ready.iter().map(|&place| self.write_narinfo(&page, place));
            self.in_flight.all(writes).await?;
            self.outcome.exported += ready.len() as u64;
            let ready: Vec<&FoundObject> = ready.into_iter().map(|place| &page.found[place]).collect();
            self.complete(&ready).await?;
        }
        Ok(waits)
    }

    /// Sends the NARs of a level that are not there. One that cannot be read is left out.
    async fn send_nars(&mut self, page: &mut Page, level: &[usize]) -> Result<()> {
        let mut asked: HashSet<NarKey> = HashSet::new();
        let wanted: Vec<NarToSend> = level
            .iter()
            .map(|&place| &page.found[place].nar)
            .filter(|nar| {
                let key = (nar.hash, nar.tag);
                !page.nars.contains_key(&key) && asked.insert(key)
            })
            .map(|nar| NarToSend { nar: (nar.hash, nar.tag), size: nar.size, published_tag: nar.tag })
            .collect();
        let mut wanted = wanted.into_iter();
        let mut requests = Requests::new(&self.in_flight);
        loop {
            while requests.has_room()
                && let Some(nar) = wanted.next()
            {
                let place = self.nar_place(nar.nar);
                let (engine, store, cache, sender) = (self.engine, self.store, self.cache, &self.sender);
                requests
                    .begin(async move { sender.send_nar(engine, store, cache, &place, nar, false).await });
            }
            match requests.next().await {
                None => return requests.end(),
                Some(Sent::Done(nar) | Sent::Found(nar)) => {
                    self.reporter.nar_uploaded(&self.cache.name, nar.file_size);
                    self.outcome.nars_uploaded += 1;
                    self.outcome.bytes_uploaded += nar.file_size;
                    page.nars.insert(nar.nar, nar);
                }
                Some(Sent::Unreadable) => {}
            }
        }
    }

    async fn write_narinfo(&self, page: &Page, place: usize) -> Result<()> {
        let found = &page.found[place];
        let nar = &page.nars[&(found.nar.hash, found.nar.tag)];
        let file_hash = nar.file_hash.expect("a NAR that was sent has one");
        let hash = found.object.path.hash();
        if self.settings.listings {
            let listing = self.place(&EdgeKey::Listing(self.name.clone(), hash));
            self.sender.send_listing(self.engine, self.store, self.cache, &hash, &listing).await?;
        }
        let text = self.engine.published_narinfo(self.cache, found.clone(), file_hash)?;
        let narinfo = self.place(&EdgeKey::Narinfo(self.name.clone(), hash));
        narinfo.put_small(self.store, text.into_bytes()).await?;
        self.reporter.path_published(&self.cache.name, &found.object.path);
        Ok(())
    }

    /// Writes the documents of these objects, whose narinfos are there. Then the objects are
    /// exported.
    async fn complete(&mut self, objects: &[&FoundObject]) -> Result<()> {
        let ExportSettings { logs, traces, debug_info, .. } = *self.settings;
        let kinds = DocumentKinds { logs, traces, debug_info };
        let mut groups: Vec<&[&FoundObject]> = Vec::new();
        if logs || traces || debug_info {
            groups.extend(objects.chunks(REFERENCES_PAGE));
        }
        while let Some(group) = groups.pop() {
            let found = find_documents(self.index, self.cache, group, kinds, |tag| tag).await?;
            let Some(mut found) = found else {
                let (first, rest) = group.split_at(group.len() / 2);
                groups.extend([first, rest]);
                continue;
            };
            let is_taken = |name: &DocumentName| {
                let key = EdgeKey::Document(self.name.clone(), name.clone());
                self.store.takes_name(&self.place(&key).name)
            };
            let left_out = found.leave_out(is_taken);
            self.outcome.left_out += left_out;
            let mut wanted: HashMap<DocumentName, WantedDocument> = HashMap::new();
            for ((_, name), document) in found.wanted {
                if !self.shared.contains(&name) {
                    wanted.insert(name, document);
                }
            }
            let writes = wanted.values().map(|document| self.write_document(document));
            let written = self.in_flight.all(writes).await?;
            self.outcome.documents += written.into_iter().map(u64::from).sum::<u64>();
            // A trace belongs to one object.
            for name in wanted.into_keys().filter(|name| !matches!(name, DocumentName::Trace(_))) {
                self.shared.insert(name);
            }
        }
        for found in objects {
            self.exported.insert(found.object.path.hash());
        }
        Ok(())
    }

    /// Writes a document, unless the same is there. Returns whether it was written.
    async fn write_document(&self, wanted: &WantedDocument) -> Result<bool> {
        let _memory = self.sender.reserve(2 * wanted.size).await;
        let Some(bytes) = wanted.read(self.engine, self.cache).await? else { return Ok(false) };
        let place = self.place(&EdgeKey::Document(self.name.clone(), wanted.name.clone()));
        let has_forgotten = self.exported.has_forgotten || self.shared.has_forgotten;
        if (!self.is_new || has_forgotten) && self.is_there(&place, &wanted.name, &bytes).await? {
            return Ok(false);
        }
        self.sender.throttle(bytes.len() as u64).await;
        place.put_small(self.store, bytes.to_vec()).await?;
        Ok(true)
    }

    /// Whether the target has this document.
    async fn is_there(&self, place: &FilePlace, name: &DocumentName, bytes: &[u8]) -> Result<bool> {
        if bytes.is_empty() {
            return Ok(self.store.head(&place.name).await?.is_some_and(|meta| meta.size == 0));
        }
        // One byte more, because what is longer than our document is another one.
        let range = 0..bytes.len().max(LINK_BYTES_MAX) as u64 + 1;
        let there = match self.store.get_up_to(&place.name, range).await {
            Ok(there) => there,
            Err(StoreError::NotFound { .. } | StoreError::Truncated { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if there[..] == *bytes || !matches!(name, DocumentName::DebugInfo(_)) {
            return Ok(there[..] == *bytes);
        }
        // Several NARs may have the file of a build id, and a link to any of them will do.
        let Ok(link) = serde_json::from_slice::<serde_json::Value>(&there) else { return Ok(false) };
        let archive = link["archive"].as_str().and_then(|archive| archive.strip_prefix("../"));
        let Some(nar) = archive else { return Ok(false) };
        let key = format!("{}/{nar}", self.name);
        let Ok(key @ EdgeKey::Nar(..)) = EdgeKey::parse(&key) else { return Ok(false) };
        Ok(self.store.head(&self.place(&key).name).await?.is_some())
    }

    /// What was removed from the cache while the export ran is no failure.
    async fn conclude(mut self, waits: Vec<(StorePathHash, Wait)>) -> Result<ExportOutcome> {
        let mut there: HashSet<StorePathHash> = HashSet::new();
        let hashes: Vec<StorePathHash> = waits.iter().map(|(hash, _)| *hash).collect();
        for hashes in hashes.chunks(REFERENCES_PAGE) {
            let found = self.index.find_objects(self.cache.id, hashes).await?;
            there.extend(found.iter().map(|found| found.object.path.hash()));
        }
        let named: HashSet<StorePathHash> = hashes.iter().copied().collect();
        let gone = named.iter().filter(|hash| !there.contains(*hash)).count() as u64;
        self.outcome.failed = self.outcome.failed.saturating_sub(gone);
        self.outcome.failures = waits
            .into_iter()
            .filter(|(hash, _)| there.contains(hash))
            .map(|(hash, wait)| (hash, wait.to_string()))
            .collect();
        Ok(self.outcome)
    }
}
