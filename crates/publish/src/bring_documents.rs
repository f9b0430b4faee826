//! Build logs, build traces and debug info in a target: a document is there only while the narinfo
//! of an object that it belongs to is.
//!
//! Invariants
//! - A document is written after that narinfo and deleted before it, so no reader finds a trace
//!   whose path is not there.
//! - A row says that a document may be there before it is written. The row goes after the document.
//! - A document that several objects share (the log of a derivation with several outputs) stays
//!   until the last of their rows goes.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_edge::EdgeKey;
use dormer_index::{
    Cache, CacheId, FoundObject, PublishState, PublishedDocument, PublishedFile, PublishedObject,
};
use dormer_nix::{DocumentName, NarHash, StorePathHash};

use crate::Result;
use crate::owned_documents::{DocumentKinds, OwnedDocuments, WantedDocument, find_documents};
use crate::publisher::Run;
use crate::transfer::put_small;

/// What the documents of a page of objects need.
#[derive(Debug, Default)]
pub(crate) struct DocumentPlan {
    /// Those to write, by object.
    wanted: HashMap<StorePathHash, Vec<WantedDocument>>,
    /// Those that an object has no more, by object.
    stale: HashMap<StorePathHash, Vec<DocumentName>>,
    /// Those that were written with this page already: objects share them.
    written: HashMap<DocumentName, (Vec<u8>, PublishedFile)>,
    /// Those that the target cannot hold.
    pub(crate) left_out: u64,
}

impl Run<'_> {
    /// Compares the documents of these objects with what is in the target.
    pub(crate) async fn plan_documents(
        &self,
        cache: &Cache,
        name: &CacheName,
        objects: &[&FoundObject],
        published: &HashMap<StorePathHash, PublishedObject>,
    ) -> Result<DocumentPlan> {
        let mut plan = DocumentPlan::default();
        let mut groups = vec![objects];
        while let Some(group) = groups.pop() {
            if !self.plan_group(cache, name, group, published, &mut plan).await? {
                let (first, rest) = group.split_at(group.len() / 2);
                groups.extend([first, rest]);
            }
        }
        Ok(plan)
    }

    /// The same for a group of them. Returns `false`, and adds nothing to the plan, if the group
    /// has too many documents and can be split.
    async fn plan_group(
        &self,
        cache: &Cache,
        name: &CacheName,
        objects: &[&FoundObject],
        published: &HashMap<StorePathHash, PublishedObject>,
        plan: &mut DocumentPlan,
    ) -> Result<bool> {
        let settings = &self.publisher.settings;
        let kinds =
            DocumentKinds { logs: settings.logs, traces: settings.traces, debug_info: settings.debug_info };
        let published_tag = |tag| settings.published_tag(tag);
        let found = find_documents(self.state(), cache, objects, kinds, published_tag).await?;
        let Some(mut found) = found else { return Ok(false) };
        let key = |document: &DocumentName| EdgeKey::Document(name.clone(), document.clone());
        plan.left_out += found.leave_out(|document| self.store().takes_name(&key(document).to_string()));
        let OwnedDocuments { mut wanted, is_all } = found;
        let all: HashSet<StorePathHash> = objects.iter().map(|found| found.object.path.hash()).collect();
        let all: Vec<StorePathHash> = all.into_iter().collect();
        for there in self.state().find_published_documents(self.target(), cache.id, &all).await? {
            // In a new place, or after drift, no row of an object says that its files are there.
            let is_there = published
                .get(&there.hash)
                .is_some_and(|row| row.state == PublishState::Published && !row.digest.is_empty());
            let key = (there.hash, there.name);
            match wanted.get(&key) {
                None if is_all => plan.stale.entry(key.0).or_default().push(key.1),
                Some(document) if is_there && document.digest == there.digest => drop(wanted.remove(&key)),
                None | Some(_) => {}
            }
        }
        for ((hash, _), document) in wanted {
            plan.wanted.entry(hash).or_default().push(document);
        }
        Ok(true)
    }

    /// Writes down which documents of these objects are about to be written.
    pub(crate) async fn begin_documents(
        &self,
        cache: CacheId,
        plan: &DocumentPlan,
        hashes: &[StorePathHash],
    ) -> Result<()> {
        let intents: Vec<PublishedDocument> = of(&plan.wanted, hashes)
            .map(|(hash, wanted)| PublishedDocument {
                hash,
                name: wanted.name.clone(),
                digest: Vec::new(),
                file: None,
            })
            .collect();
        if intents.is_empty() {
            return Ok(());
        }
        Ok(self.state().write_published_documents(&self.lease(), cache, &intents).await?)
    }

    /// Writes the documents of these objects, whose narinfos are there, and deletes those that they
    /// have no more. Returns how many there were of both.
    pub(crate) async fn bring_documents(
        &self,
        cache: &Cache,
        name: &CacheName,
        plan: &mut DocumentPlan,
        hashes: &[StorePathHash],
    ) -> Result<u64> {
        let mut begun: HashSet<&DocumentName> = HashSet::new();
        let writing = of(&plan.wanted, hashes)
            .filter(|(_, wanted)| {
                let before = plan.written.get(&wanted.name);
                before.is_none_or(|(digest, _)| *digest != wanted.digest) && begun.insert(&wanted.name)
            })
            .map(|(_, wanted)| async move {
                let file = self.write_document(cache, name, wanted).await?;
                Ok(file.map(|file| (wanted.name.clone(), (wanted.digest.clone(), file))))
            });
        let files: Vec<_> = self.in_flight.all(writing).await?.into_iter().flatten().collect();
        let mut changed = files.len() as u64;
        plan.written.extend(files);
        let written: Vec<PublishedDocument> = of(&plan.wanted, hashes)
            .filter_map(|(hash, wanted)| {
                let (digest, file) = plan.written.get(&wanted.name)?;
                let (name, digest, file) = (wanted.name.clone(), digest.clone(), Some(file.clone()));
                Some(PublishedDocument { hash, name, digest, file })
            })
            .collect();
        if !written.is_empty() {
            self.state().write_published_documents(&self.lease(), cache.id, &written).await?;
        }
        let stale: Vec<_> = of(&plan.stale, hashes).map(|(hash, name)| (hash, name.clone())).collect();
        changed += stale.len() as u64;
        self.take_documents(cache.id, name, stale).await?;
        Ok(changed)
    }

    /// Writes a document. Returns `None` if the lab has it no more, and then the outbox tells, or
    /// if what is stored is damaged: Nix can do without.
    async fn write_document(
        &self,
        cache: &Cache,
        name: &CacheName,
        wanted: &WantedDocument,
    ) -> Result<Option<PublishedFile>> {
        let _memory = self.publisher.sender.reserve(wanted.size).await;
        let Some(bytes) = wanted.read(&self.publisher.engine, cache).await? else { return Ok(None) };
        self.publisher.sender.throttle(bytes.len() as u64).await;
        let key = EdgeKey::Document(name.clone(), wanted.name.clone());
        let digest = NarHash::digest(&bytes).as_bytes().to_vec();
        let stored = put_small(self.store(), &key, cache.is_public, bytes.to_vec()).await?;
        Ok(Some(PublishedFile { digest, etag: stored.etag }))
    }

    /// Deletes all documents of objects whose narinfos are about to go.
    pub(crate) async fn take_documents_of(
        &self,
        cache: CacheId,
        name: &CacheName,
        hashes: &[StorePathHash],
    ) -> Result<()> {
        let there = self.state().find_published_documents(self.target(), cache, hashes).await?;
        let there = there.into_iter().map(|there| (there.hash, there.name)).collect();
        self.take_documents(cache, name, there).await
    }

    /// Takes documents from objects, and deletes those that no other object has.
    async fn take_documents(
        &self,
        cache: CacheId,
        name: &CacheName,
        mut taken: Vec<(StorePathHash, DocumentName)>,
    ) -> Result<()> {
        if taken.is_empty() {
            return Ok(());
        }
        // One of several that share a document is the last to have it.
        taken.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        let mut last: Vec<(StorePathHash, DocumentName)> = Vec::new();
        let mut others = Vec::new();
        for document in taken {
            match last.last() {
                Some((_, name)) if *name == document.1 => others.push(document),
                _ => last.push(document),
            }
        }
        if !others.is_empty() {
            self.state().forget_published_documents(&self.lease(), cache, &others).await?;
        }
        let needed = self.state().find_needed_documents(self.target(), cache, &last).await?;
        // A link to debug info may lead to the NAR of an object that goes: another object's next.
        let links: Vec<(StorePathHash, DocumentName)> = needed
            .iter()
            .filter(|(_, document)| matches!(document, DocumentName::DebugInfo(_)))
            .cloned()
            .collect();
        if !links.is_empty() {
            let (lease, now) = (self.lease(), self.now());
            self.state().note_document_drift(&lease, cache, &links, now, None).await?;
        }
        let needed: HashSet<DocumentName> = needed.into_iter().map(|(_, document)| document).collect();
        let deletions = last.iter().filter(|(_, document)| !needed.contains(document));
        // A row may be of a name that the store never took: a target can move to a folder.
        let deletions = deletions
            .map(|(_, document)| EdgeKey::Document(name.clone(), document.clone()).to_string())
            .filter(|key| self.store().takes_name(key))
            .map(|key| async move { Ok(self.store().delete(&key).await?) });
        self.in_flight.all(deletions).await?;
        Ok(self.state().forget_published_documents(&self.lease(), cache, &last).await?)
    }
}

/// The values of these objects, one by one.
fn of<'a, T>(
    by_object: &'a HashMap<StorePathHash, Vec<T>>,
    hashes: &'a [StorePathHash],
) -> impl Iterator<Item = (StorePathHash, &'a T)> {
    hashes.iter().flat_map(|hash| by_object.get(hash).into_iter().flatten().map(|value| (*hash, value)))
}
