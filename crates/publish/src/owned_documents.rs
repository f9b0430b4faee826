//! Which documents objects have: build logs, build traces and debug info. Publishing and exporting
//! ask in the same way.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use dormer_engine::{Engine, Error as EngineError};
use dormer_format::EncodingTag;
use dormer_index::{Cache, Error as IndexError, FoundObject, PublishIndex};
use dormer_nix::{DebugLink, DocumentName, NarHash, StorePathHash};

use crate::Result;
use crate::transfer::nar_file;

/// Documents looked up together. Where a group of objects has more, it is looked at in parts, and
/// of one object with more only the newest are found.
const OWNED_MAX: u32 = 16_384;

/// Which documents are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocumentKinds {
    pub(crate) logs: bool,
    pub(crate) traces: bool,
    pub(crate) debug_info: bool,
}

/// A document to write.
#[derive(Debug, Clone)]
pub(crate) struct WantedDocument {
    pub(crate) name: DocumentName,
    /// Bytes of the document.
    pub(crate) size: u64,
    /// Of what it depends on.
    pub(crate) digest: Vec<u8>,
    /// The document, if the lab does not store it as it is published.
    pub(crate) text: Option<String>,
}

impl WantedDocument {
    /// The document as readers get it. Returns `None` if the lab has it no more, or if what is
    /// stored is damaged: Nix can do without.
    pub(crate) async fn read(&self, engine: &Engine, cache: &Cache) -> Result<Option<Bytes>> {
        if let Some(text) = &self.text {
            return Ok(Some(text.clone().into()));
        }
        match engine.document(cache, &self.name).await {
            Ok(bytes) => Ok(bytes),
            Err(error @ EngineError::Index(IndexError::Corrupt { .. })) => {
                tracing::warn!(document = %self.name, %error, "a document cannot be read");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The documents of a group of objects.
#[derive(Debug, Default)]
pub(crate) struct OwnedDocuments {
    /// By object and name. Objects share documents.
    pub(crate) wanted: HashMap<(StorePathHash, DocumentName), WantedDocument>,
    /// Whether these are all.
    pub(crate) is_all: bool,
}

impl OwnedDocuments {
    /// Leaves out documents that the place cannot hold; says which, and returns how many.
    pub(crate) fn leave_out(&mut self, takes: impl Fn(&DocumentName) -> bool) -> u64 {
        let mut left_out: HashSet<DocumentName> = HashSet::new();
        self.wanted.retain(|(_, name), _| {
            let is_taken = takes(name);
            if !is_taken && left_out.insert(name.clone()) {
                tracing::warn!(document = %name, "a document is left out: its name is too long");
            }
            is_taken
        });
        left_out.len() as u64
    }
}

/// Finds the documents of these objects (at most 8,192). `published_tag` maps the tag of a NAR in
/// the lab to the one that it is published under. Returns `None` if the group has too many
/// documents and can be split.
pub(crate) async fn find_documents(
    index: &dyn PublishIndex,
    cache: &Cache,
    objects: &[&FoundObject],
    kinds: DocumentKinds,
    published_tag: impl Fn(EncodingTag) -> EncodingTag,
) -> Result<Option<OwnedDocuments>> {
    let mut outputs: HashMap<&str, Vec<StorePathHash>> = HashMap::new();
    let hashes: HashSet<StorePathHash> = objects.iter().map(|found| found.object.path.hash()).collect();
    let mut owners: Vec<StorePathHash> = Vec::new();
    if kinds.traces {
        owners.extend(&hashes);
    }
    for found in objects.iter().filter(|_| kinds.logs) {
        let deriver = found.object.deriver.as_deref().unwrap_or_default();
        if let Some(owner) = deriver.get(..32).and_then(|hash| hash.parse().ok()) {
            owners.push(owner);
            outputs.entry(deriver).or_default().push(found.object.path.hash());
        }
    }
    owners.sort_unstable();
    owners.dedup();
    // What a trace is signed with.
    let keys: Vec<&str> =
        cache.keys.iter().filter(|key| key.active).map(|key| key.public_key.as_str()).collect();
    let keys = keys.join("\n");
    let mut wanted: HashMap<(StorePathHash, DocumentName), WantedDocument> = HashMap::new();
    let with_debug_info: Vec<StorePathHash> = hashes.iter().copied().filter(|_| kinds.debug_info).collect();
    let found = index.find_lab_documents(cache.id, &owners, &with_debug_info, OWNED_MAX).await?;
    let is_all = found.owned.len().max(found.build_ids.len()) < OWNED_MAX as usize;
    if !is_all && objects.len() > 1 {
        return Ok(None);
    }
    for owned in found.owned {
        let (belongs_to, digest) = match &owned.name {
            DocumentName::Log(derivation) if kinds.logs => {
                (outputs.get(derivation.base_name()).cloned().unwrap_or_default(), owned.digest)
            }
            DocumentName::Trace(_) if kinds.traces && hashes.contains(&owned.owner) => {
                let basis = [owned.digest.as_slice(), keys.as_bytes()].concat();
                (vec![owned.owner], NarHash::digest(&basis).as_bytes().to_vec())
            }
            DocumentName::Log(_) | DocumentName::Trace(_) | DocumentName::DebugInfo(_) => continue,
        };
        for hash in belongs_to {
            let (name, size, digest) = (owned.name.clone(), owned.size, digest.clone());
            wanted.insert((hash, name.clone()), WantedDocument { name, size, digest, text: None });
        }
    }
    if !found.build_ids.is_empty() {
        let nars: HashMap<StorePathHash, String> = objects
            .iter()
            .map(|found| {
                let nar = (found.nar.hash, published_tag(found.nar.tag));
                (found.object.path.hash(), nar_file(nar).to_string())
            })
            .collect();
        for (hash, build_id) in found.build_ids {
            let link = DebugLink::new(&build_id, &nars[&hash]).to_json();
            let digest = NarHash::digest(link.as_bytes()).as_bytes().to_vec();
            let (name, size) = (DocumentName::DebugInfo(build_id), link.len() as u64);
            wanted.insert((hash, name.clone()), WantedDocument { name, size, digest, text: Some(link) });
        }
    }
    Ok(Some(OwnedDocuments { wanted, is_all }))
}
