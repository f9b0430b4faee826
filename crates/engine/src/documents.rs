//! Documents: build logs, build traces and debug info.
//!
//! A log is kept compressed, and read back as text: people read logs in browsers, and not every Nix
//! decodes what a cache would send compressed. A trace is kept with the signatures that it came
//! with, and signed when it is read, as narinfos are: a reader needs the cache's public key only.
//!
//! Debug info is not stored: the index knows which NAR has the debug file of a build id, and the
//! answer is a link to it.
//!
//! Each document is one row, written in one transaction, so a crash leaves all of it or nothing.

use bytes::Bytes;
use dormer_index::{Cache, NewDocument, StoredDocument, TraceOutcome};
use dormer_nix::{BuildTrace, DebugLink, DocumentName, StorePath};

use crate::commit::finish;
use crate::{Engine, Error, Result};

/// Logs compress well at any level.
const ZSTD_LEVEL: i32 = 3;

/// How a log's body is compressed.
const ZSTD: &str = "zstd";

impl Engine {
    /// Stores the log of a derivation's build, in the place of the one that is there: the log of
    /// the last build is the one that people look for. The caller bounds its length.
    pub async fn put_log(&self, cache: &Cache, derivation: StorePath, log: Vec<u8>) -> Result<()> {
        let document = self.compressed_log(derivation, log).await?;
        let (engine, cache) = (self.clone(), cache.id);
        finish(async move { Ok(engine.index().put_document(cache, &document, engine.now()).await?) }).await
    }

    /// Stores the log of a derivation's build unless the cache has one, which stays; returns
    /// whether it is stored now.
    pub async fn add_log(&self, cache: &Cache, derivation: StorePath, log: Vec<u8>) -> Result<bool> {
        let document = self.compressed_log(derivation, log).await?;
        let (engine, cache) = (self.clone(), cache.id);
        finish(async move { Ok(engine.index().add_document(cache, &document, engine.now()).await?) }).await
    }

    async fn compressed_log(&self, derivation: StorePath, log: Vec<u8>) -> Result<NewDocument> {
        let size = log.len() as u64;
        let compressed = self.cpu().run(move || zstd::bulk::compress(&log, ZSTD_LEVEL)).await;
        let body = compressed.map_err(Error::CompressDocument)?;
        let owner = derivation.hash();
        let name = DocumentName::Log(derivation);
        Ok(NewDocument { name, owner, size, encoding: Some(ZSTD.to_owned()), body })
    }

    /// Stores a build trace, or adds its signatures to the one that is there. Where the cache has
    /// another path for the same output, the first stays, unless the cache lacks that path and has
    /// the new one, which then takes its place. Signatures in the name of a known key
    /// that the key did not make are dropped, as those of store paths are.
    pub async fn put_trace(&self, cache: &Cache, mut trace: BuildTrace) -> Result<TraceOutcome> {
        let messages = trace.fingerprints();
        let known_keys = self.drop_forged(cache, &trace.out_path, &mut trace.sigs, messages).await?;
        let (engine, cache) = (self.clone(), cache.id);
        finish(async move { Ok(engine.index().merge_trace(cache, &trace, &known_keys, engine.now()).await?) })
            .await
    }

    /// A document as it is served: a log as text, a trace with a signature for each active key of
    /// the cache beside those that it came with, debug info as a link to a NAR of the cache. `None`
    /// if the cache lacks it. A log may be long: the caller bounds how many are decoded at once,
    /// and counts their memory while they are sent.
    pub async fn document(&self, cache: &Cache, name: &DocumentName) -> Result<Option<Bytes>> {
        if let DocumentName::DebugInfo(build_id) = name {
            let found = self.index().find_debug_nar(cache.id, build_id).await?;
            return Ok(found.map(|(hash, tag)| {
                let file = format!("{}-{tag}.nar.zst", hash.to_nix32());
                DebugLink::new(build_id, &file).to_json().into()
            }));
        }
        let Some(stored) = self.index().find_document(cache.id, name).await? else { return Ok(None) };
        match name {
            DocumentName::Log(_) | DocumentName::DebugInfo(_) => self.decode(stored).await.map(Some),
            DocumentName::Trace(key) => {
                let trace = BuildTrace::parse_stored(key, &stored.body).map_err(|error| corrupt(&error))?;
                let mut own = Vec::new();
                for key in self.signing_keys(cache)? {
                    own.extend(trace.fingerprints().iter().map(|text| key.sign(text).to_string()));
                }
                // A signature that the trace came with may be one of these.
                own.retain(|signature| !trace.sigs.contains(signature));
                Ok(Some(Bytes::from(trace.to_json(&own))))
            }
        }
    }

    async fn decode(&self, stored: StoredDocument) -> Result<Bytes> {
        let StoredDocument { size, encoding, body } = stored;
        let bytes = match encoding.as_deref() {
            None => body,
            Some(ZSTD) => {
                let capacity = usize::try_from(size).map_err(|error| corrupt(&error))?;
                let decode = move || zstd::bulk::decompress(&body, capacity);
                self.cpu().run(decode).await.map_err(|error| corrupt(&error))?
            }
            Some(other) => return Err(corrupt(&format_args!("the encoding {other:?}"))),
        };
        if bytes.len() as u64 != size {
            return Err(corrupt(&format_args!("{} bytes instead of {size}", bytes.len())));
        }
        Ok(bytes.into())
    }
}

fn corrupt(what: &dyn std::fmt::Display) -> Error {
    Error::Index(dormer_index::Error::Corrupt { table: "documents", what: what.to_string() })
}
