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
    Cache, CacheId, DocumentRows, FoundObject, PublishDone, PublishState, PublishedFile, PublishedObject,
    WrittenDocument,
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

impl DocumentPlan {
    /// The documents of an object that will be written.
    pub(crate) fn wanted_of(&self, hash: &StorePathHash) -> Vec<DocumentName> {
        self.wanted.get(hash).into_iter().flatten().map(|wanted| wanted.name.clone()).collect()
    }

    /// Adds what became of the object's documents.
    pub(crate) fn complete(&self, mut done: PublishDone) -> PublishDone {
        let hash = [done.hash];
        done.documents = of(&self.wanted, &hash)
            .filter_map(|(_, wanted)| {
                let (digest, file) = self.written.get(&wanted.name)?.clone();
                Some(WrittenDocument { name: wanted.name.clone(), digest, file })
            })
            .collect();
        done.stale_documents = of(&self.stale, &hash).map(|(_, name)| name.clone()).collect();
        done
    }
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
        for there in self.state().published_documents(self.target(), cache.id, DocumentRows::Of(&all)).await?
        {
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
        let rows = DocumentRows::Of(hashes);
        let there = self.state().published_documents(self.target(), cache, rows).await?;
        let there = there.into_iter().map(|there| (there.hash, there.name)).collect();
        self.take_documents(cache, name, there).await
    }

    /// Takes documents from objects, and deletes those that no other object has. Their rows go when
    /// the objects are finished.
    async fn take_documents(
        &self,
        cache: CacheId,
        name: &CacheName,
        taken: Vec<(StorePathHash, DocumentName)>,
    ) -> Result<()> {
        if taken.is_empty() {
            return Ok(());
        }
        let gone = self.state().take_documents(&self.lease(), cache, &taken, self.now()).await?;
        let deletions =
            gone.into_iter().map(|document| EdgeKey::Document(name.clone(), document).to_string());
        // A row may be of a name that the store never took: a target can move to a folder.
        let deletions = deletions
            .filter(|key| self.store().takes_name(key))
            .map(|key| async move { Ok(self.store().delete(&key).await?) });
        self.in_flight.all(deletions).await.map(drop)
    }
}

/// The values of these objects, one by one.
fn of<'a, T>(
    by_object: &'a HashMap<StorePathHash, Vec<T>>,
    hashes: &'a [StorePathHash],
) -> impl Iterator<Item = (StorePathHash, &'a T)> {
    hashes.iter().flat_map(|hash| by_object.get(hash).into_iter().flatten().map(|value| (*hash, value)))
}
