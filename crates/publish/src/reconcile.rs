//! Comparing with a listing: what is missing or damaged is written again, what is not ours goes.
//!
//! A file is damaged when its size or the store's tag of it is not what was written down. Where a
//! store gives no tags (a folder), narinfos are read and compared.
//!
//! What nobody wrote down goes only below the caches that are published, only if it is named as the
//! layout names things, and only if the lab's cache does not have it: a database that was recovered
//! or restored, or a target under a new name, does not know all that it published before. What the
//! lab has stays for its readers until it is written again. What the lab does not have is written
//! down as if this database had published it. So it leaves like all that a lab removes: referrers
//! first, and a NAR after its grace.
//!
//! The listing and the rows are two streams in the same order, merged step by step, so the memory
//! does not grow with the cache. A listing comes in the order of names. Names show a hash in Nix's
//! base 32, which begins with the last byte: so the rows come in the order of last bytes, and a
//! step ends where the last byte changes. Rows of documents come in the order of names.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::{EdgeKey, NarFile};
use dormer_format::EncodingTag;
use dormer_index::{
    Cache, CacheScan, DocumentRows, Drift, FoundNarinfo, NarQuery, NarRows, ObjectRows, PublishIntent,
    PublishState, PublishedDocument, PublishedFile,
};
use dormer_nix::{DocumentName, NarHash, NarInfo, StoreDir, StorePath, StorePathHash, nix32};
use dormer_stores::FileEntry;

use crate::Result;
use crate::bring::is_signed_upstream;
use crate::publisher::Run;
use crate::transfer::{FilePlace, nar_file};

/// Rows compared together.
const ROWS_PAGE: u32 = 2_048;

/// Files listed together: about 10 MB of names and sizes.
const FILES_PAGE: usize = 50_000;

/// Narinfos without a row that are read together.
const FOUND_PAGE: usize = 512;

/// Where the comparison of documents ends: a name in none of their folders.
const END: &str = "end";

/// What a step of the listing gave.
struct ListedFiles<K> {
    files: HashMap<K, FileEntry>,
    /// The last byte of a hash up to which the listing is complete.
    through: u8,
}

impl Run<'_> {
    /// Compares the narinfos after this last byte of their hashes. Returns where the scan goes on,
    /// and how many files were not as they should be.
    pub(crate) async fn compare_narinfos(
        &self,
        cache: &Cache,
        name: &CacheName,
        after: Option<u8>,
    ) -> Result<(CacheScan, u64)> {
        let Some(first) = after.map_or(Some(0), |byte| byte.checked_add(1)) else {
            return Ok((CacheScan::Nars(None), 0));
        };
        // NARs lie in a folder among them.
        let nars = format!("{name}/nar/");
        let start = after.map(|byte| format!("{name}/{}", last_text(byte, 20)));
        let mut listings = Vec::new();
        let listed = self
            .list_through(name.as_str(), start, Some(&nars), |entry| match EdgeKey::parse(&entry.name) {
                Ok(EdgeKey::Narinfo(_, hash)) => Some((*hash.as_bytes().last()?, Some(hash))),
                Ok(EdgeKey::Listing(_, hash)) => {
                    listings.push(hash);
                    Some((*hash.as_bytes().last()?, None))
                }
                _ => None,
            })
            .await?;
        let mut narinfos = listed.files;
        listings.retain(|hash| hash.as_bytes().last() <= Some(&listed.through));
        let mut drifted: Vec<StorePathHash> = Vec::new();
        let mut known_listings = HashSet::new();
        let listings_of: HashSet<StorePathHash> = listings.iter().copied().collect();
        let mut row_after = None;
        loop {
            let page = ObjectRows::Page { bytes: first..=listed.through, after: row_after, limit: ROWS_PAGE };
            let rows = self.state().published_objects(self.target(), cache.id, page).await?;
            let Some(last) = rows.last() else { break };
            row_after = Some(last.hash);
            for row in &rows {
                let entry = narinfos.remove(&row.hash);
                let mut sound =
                    entry.is_some_and(|entry| same_etag(entry.etag.as_deref(), row.etag.as_deref()));
                let is_written = row.state == PublishState::Published && !row.was_found();
                if sound && row.etag.is_none() && is_written {
                    let key = EdgeKey::Narinfo(name.clone(), row.hash);
                    let text = self.store().get(&key.to_string()).await?.unwrap_or_default();
                    sound = NarHash::digest(&text).as_bytes().as_slice() == row.digest;
                }
                if !sound && row.state == PublishState::Published {
                    drifted.push(row.hash);
                }
                if listings_of.contains(&row.hash) {
                    known_listings.insert(row.hash);
                }
            }
        }
        let (mut found, mut strangers) = (HashSet::new(), Vec::new());
        let unknown: Vec<(StorePathHash, FileEntry)> = narinfos.into_iter().collect();
        for page in unknown.chunks(FOUND_PAGE) {
            let unreadable = self.note_found(cache, name, page, &mut found).await?;
            strangers.extend(unreadable.into_iter().map(|hash| EdgeKey::Narinfo(name.clone(), hash)));
        }
        self.delete_all(strangers.clone()).await?;
        let listings = listings
            .into_iter()
            .filter(|hash| !known_listings.contains(hash) && !found.contains(hash))
            .map(|hash| EdgeKey::Listing(name.clone(), hash));
        let repaired = (drifted.len() + found.len() + strangers.len()) as u64
            + self.delete_strangers(cache, listings.collect()).await?;
        let next = CacheScan::Narinfos(Some(listed.through));
        let drift = Drift { narinfos: drifted, ..Drift::default() };
        self.state().note_drift(&self.lease(), cache.id, &drift, self.now(), Some(next.clone())).await?;
        Ok((next, repaired))
    }

    /// Compares NAR files, likewise: also those in grace, and those that were never finished. A
    /// push may name them again.
    pub(crate) async fn compare_nars(
        &self,
        cache: &Cache,
        name: &CacheName,
        after: Option<u8>,
    ) -> Result<(CacheScan, u64)> {
        let Some(first) = after.map_or(Some(0), |byte| byte.checked_add(1)) else {
            return Ok((CacheScan::Documents(None), 0));
        };
        let folder = format!("{name}/nar");
        let start = after.map(|byte| format!("{folder}/{}", last_text(byte, 32)));
        let listed = self
            .list_through(&folder, start, None, |entry| match EdgeKey::parse(&entry.name) {
                Ok(EdgeKey::Nar(_, file)) => {
                    let key = (file.hash, EncodingTag::from_bytes(file.tag));
                    Some((*file.hash.as_bytes().last()?, Some(key)))
                }
                _ => None,
            })
            .await?;
        let mut files = listed.files;
        let mut drifted: Vec<(NarHash, EncodingTag)> = Vec::new();
        let mut sound_ones: Vec<(NarHash, EncodingTag)> = Vec::new();
        let mut known: HashSet<NarHash> = HashSet::new();
        let mut row_after = None;
        loop {
            let page = NarRows::Page { bytes: first..=listed.through, after: row_after, limit: ROWS_PAGE };
            let rows = self.state().published_nars(self.target(), cache.id, page).await?;
            let Some(last) = rows.last() else { break };
            row_after = Some(last.nar);
            for nar in rows {
                known.insert(nar.nar.0);
                let sound = files.remove(&nar.nar).is_some_and(|entry| {
                    entry.size == nar.file_size && same_etag(entry.etag.as_deref(), nar.etag.as_deref())
                });
                if nar.uploaded {
                    if sound { &mut sound_ones } else { &mut drifted }.push(nar.nar);
                }
            }
        }
        let others = self.with_other_headers(cache, name, sound_ones).await?;
        // Narinfos that were not written again yet may name them.
        let mut left = Vec::new();
        for (nar, entry) in files {
            let is_of_lab = !known.contains(&nar.0)
                && self
                    .publisher
                    .index()
                    .find_nar_in_cache(cache.id, &NarQuery::Hash(nar.0), self.now())
                    .await?
                    .is_some();
            if !is_of_lab {
                left.push((nar, entry.size));
            }
        }
        for page in left.chunks(ROWS_PAGE as usize) {
            // The step is not over: the same part of the listing follows again after a crash.
            let (found_nars, grace_ends_at) = (page.to_vec(), self.grace_end());
            let drift = Drift { found_nars, grace_ends_at, ..Drift::default() };
            self.state().note_drift(&self.lease(), cache.id, &drift, self.now(), None).await?;
        }
        let repaired = (drifted.len() + others.len() + left.len()) as u64;
        let next = CacheScan::Nars(Some(listed.through));
        let drift = Drift { nars: drifted, outdated_nars: others, ..Drift::default() };
        self.state().note_drift(&self.lease(), cache.id, &drift, self.now(), Some(next.clone())).await?;
        Ok((next, repaired))
    }

    /// Those of these NAR files that have other headers than the cache's present visibility asks
    /// for. The rows of a database that was restored may be older than the files, and a listing
    /// shows no headers, so each file costs a request.
    async fn with_other_headers(
        &self,
        cache: &Cache,
        name: &CacheName,
        nars: Vec<(NarHash, EncodingTag)>,
    ) -> Result<Vec<(NarHash, EncodingTag)>> {
        if !self.adopts || self.store().is_folder() {
            return Ok(Vec::new());
        }
        let looks = nars.into_iter().map(|nar| async move {
            let key = EdgeKey::Nar(name.clone(), nar_file(nar));
            let place = FilePlace::in_target(&key, cache.is_public);
            let there = self.store().head(&place.name).await?;
            Ok(there.is_none_or(|there| !place.has_its_headers(self.store(), &there)).then_some(nar))
        });
        Ok(self.in_flight.all(looks).await?.into_iter().flatten().collect())
    }

    /// Compares logs and traces after this name below the cache.
    pub(crate) async fn compare_documents(
        &self,
        cache: &Cache,
        name: &CacheName,
        after: Option<String>,
    ) -> Result<(CacheScan, u64)> {
        let after = after.unwrap_or_else(|| DocumentName::FOLDERS[0].to_owned());
        let place = DocumentName::FOLDERS.iter().position(|folder| after.starts_with(folder));
        let Some(place) = place else {
            // What was never noted, or whose row was lost, is looked at too.
            return Ok((CacheScan::Objects(None), 0));
        };
        let folder = DocumentName::FOLDERS[place];
        let in_target = |below: &str| format!("{name}/{below}");
        let start = (after != folder).then(|| in_target(&after));
        let page = self
            .store()
            .list_page(in_target(folder).trim_end_matches('/'), start.as_deref(), FILES_PAGE)
            .await?;
        let prefix = in_target("");
        let below = |entry: &FileEntry| entry.name.strip_prefix(&prefix).map(str::to_owned);
        let (through, next) = match page.last().filter(|_| page.len() == FILES_PAGE).and_then(below) {
            Some(last) => (last.clone(), last),
            // The first name after all that begin with the folder's: `0` comes after `/`.
            None => (
                format!("{}0", folder.trim_end_matches('/')),
                DocumentName::FOLDERS.get(place + 1).map_or_else(|| END.to_owned(), ToString::to_string),
            ),
        };
        let mut files: HashMap<DocumentName, FileEntry> = page
            .into_iter()
            .filter_map(|entry| match EdgeKey::parse(&entry.name) {
                Ok(EdgeKey::Document(_, name)) => Some((name, entry)),
                _ => None,
            })
            .collect();
        let mut drifted: Vec<(StorePathHash, DocumentName)> = Vec::new();
        // The rows of one document, which may be on two pages.
        let mut rows_of_one: Vec<PublishedDocument> = Vec::new();
        let mut row_after = (after, None);
        loop {
            let after = (row_after.0.as_str(), row_after.1);
            let page = DocumentRows::Page { after, through: &through, limit: ROWS_PAGE };
            let rows = self.state().published_documents(self.target(), cache.id, page).await?;
            let is_last = rows.is_empty();
            for row in rows {
                row_after = (row.name.to_string(), Some(row.hash));
                if rows_of_one.first().is_some_and(|one| one.name != row.name) {
                    self.compare_document(name, &mut rows_of_one, &mut files, &mut drifted).await?;
                }
                rows_of_one.push(row);
            }
            if is_last {
                self.compare_document(name, &mut rows_of_one, &mut files, &mut drifted).await?;
                break;
            }
        }
        let strangers: Vec<EdgeKey> =
            files.into_keys().map(|document| EdgeKey::Document(name.clone(), document)).collect();
        let documents: HashSet<&DocumentName> = drifted.iter().map(|(_, document)| document).collect();
        let repaired = documents.len() as u64 + self.delete_strangers(cache, strangers).await?;
        let next = CacheScan::Documents(Some(next));
        let drift = Drift { documents: drifted, ..Drift::default() };
        self.state().note_drift(&self.lease(), cache.id, &drift, self.now(), Some(next.clone())).await?;
        Ok((next, repaired))
    }

    /// Compares the file of a document with its rows. Objects share a document: the file is that of
    /// the row that was written last, and any of them may be.
    async fn compare_document(
        &self,
        name: &CacheName,
        rows: &mut Vec<PublishedDocument>,
        files: &mut HashMap<DocumentName, FileEntry>,
        drifted: &mut Vec<(StorePathHash, DocumentName)>,
    ) -> Result<()> {
        let rows = std::mem::take(rows);
        let Some(document) = rows.first().map(|row| row.name.clone()) else { return Ok(()) };
        let entry = files.remove(&document);
        // One that was not written yet may be there or not.
        let written: Vec<&PublishedFile> = rows.iter().filter_map(|row| row.file.as_ref()).collect();
        if written.is_empty() {
            return Ok(());
        }
        let is_sound = match entry.as_ref() {
            None => false,
            Some(FileEntry { etag: Some(etag), .. }) if written.iter().all(|file| file.etag.is_some()) => {
                written.iter().any(|file| same_etag(Some(etag), file.etag.as_deref()))
            }
            Some(_) => {
                let key = EdgeKey::Document(name.clone(), document);
                let content = self.store().get(&key.to_string()).await?.unwrap_or_default();
                let digest = NarHash::digest(&content);
                written.iter().any(|file| file.digest == digest.as_bytes())
            }
        };
        if !is_sound {
            drifted.extend(rows.into_iter().map(|row| (row.hash, row.name)));
        }
        Ok(())
    }

    /// Writes down narinfos without a row that the lab's cache does not have either, as if they had
    /// been published: `found` are those. Returns those that no reader could use.
    async fn note_found(
        &self,
        cache: &Cache,
        name: &CacheName,
        page: &[(StorePathHash, FileEntry)],
        found: &mut HashSet<StorePathHash>,
    ) -> Result<Vec<StorePathHash>> {
        let hashes: Vec<StorePathHash> = page.iter().map(|(hash, _)| *hash).collect();
        let of_lab = self.state().find_objects(cache.id, &hashes).await?;
        // They are written again. A removal that comes before must find them.
        let settings = &self.publisher.settings;
        let written_again: Vec<PublishIntent> = of_lab
            .iter()
            .map(|found| {
                let (hash, nar) = (found.object.path.hash(), &found.nar);
                let references = found.object.references.iter().map(StorePath::hash);
                PublishIntent {
                    hash,
                    nar: (nar.hash, settings.published_tag(nar.tag)),
                    file_size: nar.file_size,
                    references: references.filter(|other| *other != hash).collect(),
                    documents: Vec::new(),
                }
            })
            .collect();
        if !written_again.is_empty() {
            self.state().begin_publishing(&self.lease(), cache.id, &written_again).await?;
        }
        let of_lab: HashSet<StorePathHash> = of_lab.iter().map(|found| found.object.path.hash()).collect();
        let reads = page.iter().filter(|(hash, _)| !of_lab.contains(hash)).map(|(hash, entry)| async move {
            let key = EdgeKey::Narinfo(name.clone(), *hash);
            Ok((*hash, entry, self.store().get(&key.to_string()).await?.unwrap_or_default()))
        });
        let texts = self.in_flight.all(reads).await?;
        // What this lab removed is removed as it says: for cause, perhaps.
        let unknown: Vec<StorePathHash> = texts.iter().map(|(hash, ..)| *hash).collect();
        let removed = self.state().find_removed(self.target(), cache.id, &unknown).await?;
        let (mut found_narinfos, mut unreadable) = (Vec::new(), Vec::new());
        for (hash, entry, text) in texts {
            let Some((narinfo, nar)) = read_narinfo(cache, hash, &text) else {
                unreadable.push(hash);
                continue;
            };
            let references: Vec<StorePathHash> =
                narinfo.references.iter().map(StorePath::hash).filter(|other| *other != hash).collect();
            found_narinfos.push(FoundNarinfo {
                hash,
                nar,
                file_size: narinfo.file_size.unwrap_or_default(),
                digest: removed.contains(&hash).then(|| NarHash::digest(&text).as_bytes().to_vec()),
                etag: entry.etag.clone(),
                upstream: is_signed_upstream(cache, &narinfo.sigs),
                references,
            });
        }
        if !found_narinfos.is_empty() {
            found.extend(found_narinfos.iter().map(|narinfo| narinfo.hash));
            let drift = Drift { found_narinfos, ..Drift::default() };
            self.state().note_drift(&self.lease(), cache.id, &drift, self.now(), None).await?;
        }
        Ok(unreadable)
    }

    /// Deletes those files without a row that the lab's cache does not have either; returns how
    /// many these are.
    async fn delete_strangers(&self, cache: &Cache, files: Vec<EdgeKey>) -> Result<u64> {
        let index = self.publisher.index();
        let mut strangers = Vec::new();
        for key in files {
            let is_of_lab = match &key {
                EdgeKey::Listing(_, hash) => index.find_object(cache.id, hash).await?.is_some(),
                EdgeKey::Document(_, name) => index.has_document(cache.id, name).await?,
                _ => false,
            };
            if !is_of_lab {
                strangers.push(key);
            }
        }
        let deleted = strangers.len() as u64;
        self.delete_all(strangers).await?;
        Ok(deleted)
    }

    /// Lists a folder after a name, in the order of names, until a page is full and the last byte
    /// of the hashes in it changes. `read` gives that byte of a file's name, and the key under
    /// which the file is wanted, if it is. What lies in the folder `without` is passed over.
    async fn list_through<K: std::hash::Hash + Eq>(
        &self,
        folder: &str,
        mut after: Option<String>,
        without: Option<&str>,
        mut read: impl FnMut(&FileEntry) -> Option<(u8, Option<K>)>,
    ) -> Result<ListedFiles<K>> {
        let mut files: Vec<(u8, K, FileEntry)> = Vec::new();
        let (mut lowest, mut highest) = (None, 0);
        loop {
            let page = self.store().list_page(folder, after.as_deref(), FILES_PAGE).await?;
            let is_last = page.len() < FILES_PAGE;
            after = page.last().map(|entry| entry.name.clone());
            for entry in page {
                if let Some(without) = without
                    && entry.name.starts_with(without)
                {
                    continue;
                }
                if let Some((byte, key)) = read(&entry) {
                    lowest.get_or_insert(byte);
                    highest = byte;
                    files.extend(key.map(|key| (byte, key, entry)));
                }
            }
            if is_last {
                let files = files.into_iter().map(|(_, key, entry)| (key, entry)).collect();
                return Ok(ListedFiles { files, through: u8::MAX });
            }
            if let Some(without) = without
                && after.as_ref().is_some_and(|after| after.starts_with(without))
            {
                // The first name after all that begin with the folder's: `0` comes after `/`.
                after = Some(format!("{}0", without.trim_end_matches('/')));
            }
            if let Some(lowest) = lowest
                && lowest < highest
            {
                // There may be more with the highest byte: those are the next step's.
                let files = files
                    .into_iter()
                    .filter(|(byte, ..)| *byte < highest)
                    .map(|(_, key, entry)| (key, entry))
                    .collect();
                return Ok(ListedFiles { files, through: highest - 1 });
            }
        }
    }
}

/// Reads a narinfo of the target. Returns `None` unless it is one of this path, with a NAR as the
/// layout names it.
fn read_narinfo(
    cache: &Cache,
    hash: StorePathHash,
    text: &[u8],
) -> Option<(NarInfo, (NarHash, EncodingTag))> {
    let store_dir: StoreDir = cache.store_dir.parse().ok()?;
    let narinfo = NarInfo::parse(std::str::from_utf8(text).ok()?, &store_dir).ok()?;
    let file: NarFile = narinfo.url.strip_prefix("nar/")?.parse().ok()?;
    let nar = (file.hash, EncodingTag::from_bytes(file.tag));
    (narinfo.store_path.hash() == hash).then_some((narinfo, nar))
}

/// A name after all names that begin with a hash with this last byte, of so many bytes, and before
/// those of the next.
fn last_text(byte: u8, bytes: usize) -> String {
    let mut hash = vec![0xff; bytes];
    hash[bytes - 1] = byte;
    format!("{}z", nix32::encode(&hash))
}

/// Whether two tags say the same; one that is not known says nothing.
fn same_etag(listed: Option<&str>, written: Option<&str>) -> bool {
    match (listed, written) {
        (Some(listed), Some(written)) => listed.trim_matches('"') == written.trim_matches('"'),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Names come in the order of the last bytes of their hashes.
        #[test]
        fn a_name_shows_the_last_byte_first(a in any::<[u8; 20]>(), b in any::<[u8; 20]>()) {
            let text = |hash: &[u8; 20]| nix32::encode(hash);
            if a[19] < b[19] {
                prop_assert!(text(&a) < text(&b));
                let end = last_text(a[19], 20);
                let name = format!("{}.narinfo", text(&a));
                prop_assert!(name < end && end < text(&b));
            }
        }

        #[test]
        fn so_does_a_nars(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            if a[31] < b[31] {
                let end = last_text(a[31], 32);
                let name = format!("{}-tag", nix32::encode(&a));
                prop_assert!(name < end && end < nix32::encode(&b));
            }
        }
    }
}
