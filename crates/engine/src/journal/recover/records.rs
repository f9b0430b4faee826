//! Paths, aliases and documents of one file of the journal become rows, unless a newer file named
//! them.

use std::collections::HashMap;
use std::sync::Arc;

use dormer_format::{
    JournalAlias, JournalDocument, JournalFile, JournalKind, JournalNar, JournalObject, JournalPath,
    JournalRecord,
};
use dormer_index::{
    CacheId, CommitTarget, Index, NarCommit, NarId, NarSource, NewDocument, Object, UnixSeconds, Use,
};
use dormer_nix::{DocumentName, NarHash, StorePath, StorePathHash};

use super::nars::restored_nar;
use super::recovery::Recovery;
use super::report::{RecoveryEvent, Tell};
use super::seen::Seen;
use crate::Result;
use crate::journal::files::CHUNKS_MAX;

/// Paths that the report names. Each one is told when it is found.
const LOST_NAMED_MAX: usize = 20;

impl Recovery {
    pub(super) async fn recover_file(
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
