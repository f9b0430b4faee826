//! The documents of a static cache: build traces and build logs, after the paths.
//!
//! Invariants
//! - A trace is imported only if the cache has the path that it leads to, so a reader of the trace
//!   finds the path.
//! - A trace is imported only if a trusted key signed it, or if the caller asked for what is
//!   unsigned. The server signs a trace when it serves it, and nothing in a trace proves itself.
//! - A log that the cache has stays: it may be that of a later build.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use dormer_format::Compression;
use dormer_nix::{BUILD_TRACE_BYTES_MAX, BuildTrace, DocumentName, StorePath, StorePathHash, TraceKey};
use futures::{Stream, StreamExt as _};

use super::{Flow, Import, PathState, is_signed_by};
use crate::build_logs::BuildLog;
use crate::error::{Error, Result};
use crate::fetch_error::FetchError;
use crate::push::MISSING_PATHS_BATCH_MAX;
use crate::static_cache::StaticCache;

/// Documents of a listing that are handled together.
const DOCUMENTS_PER_BATCH: usize = 1_000;

/// Longest log that is read, as the source holds it. A server takes far shorter ones by default.
const LOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Logs that are read at once: each may take [`LOG_BYTES_MAX`].
const LOGS_AT_ONCE_MAX: usize = 4;

/// What became of a document.
enum DocumentEnd {
    Imported,
    /// The cache has it, or another one that it keeps.
    Kept,
    /// The source does not have it.
    Absent,
}

type DocumentOutcome = (DocumentName, Result<DocumentEnd, DocumentFailure>);

/// Why a document was not imported.
enum DocumentFailure {
    Source(FetchError),
    Server(Error),
}

impl DocumentFailure {
    /// Whether the document is longer than the client reads or the server takes. No later import
    /// could bring it.
    fn is_too_long(&self) -> bool {
        matches!(
            self,
            Self::Source(FetchError::TooLarge { .. }) | Self::Server(Error::Refused { status: 413, .. })
        )
    }
}

impl Import<'_> {
    /// Imports the documents that a listing of the source finds. `is_whole`: all of them; otherwise
    /// only the traces of what this import knows to be in the cache.
    pub(super) async fn import_listed(&mut self, is_whole: bool) -> Result<Flow> {
        for folder in DocumentName::FOLDERS {
            let is_wanted = match folder {
                "log/" => self.options.logs && is_whole,
                "build-trace-v2/" | "realisations/" => self.options.traces,
                // The server finds debug info in the paths.
                _ => false,
            };
            if !is_wanted {
                continue;
            }
            let source = std::sync::Arc::clone(&self.source);
            let Some(mut listing) = source.list_documents(folder) else { return Ok(Flow::GoesOn) };
            loop {
                let (mut traces, mut logs) = (Vec::new(), Vec::new());
                while traces.len() + logs.len() < DOCUMENTS_PER_BATCH
                    && let Some(name) = listing.next().await
                {
                    let location = source.location();
                    match name.map_err(|source| Error::List { location, source })? {
                        DocumentName::Trace(key) => traces.push(key),
                        DocumentName::Log(derivation) => logs.push(derivation),
                        DocumentName::DebugInfo(_) => {}
                    }
                }
                if traces.is_empty() && logs.is_empty() {
                    break;
                }
                if self.import_traces(traces, is_whole).await?.is_stopped()
                    || self.import_logs(logs).await.is_stopped()
                {
                    return Ok(Flow::Stopped);
                }
            }
        }
        Ok(Flow::GoesOn)
    }

    async fn import_traces(&mut self, keys: Vec<TraceKey>, is_whole: bool) -> Result<Flow> {
        let (source, concurrency) = (&*self.source, (self.options.jobs * 4).clamp(4, 64));
        let reads: Vec<_> = futures::stream::iter(keys)
            .map(|key| async move {
                let read = read_trace(source, &key).await;
                (DocumentName::Trace(key), read)
            })
            .buffer_unordered(concurrency)
            .collect()
            .await;
        let mut traces: Vec<BuildTrace> = Vec::new();
        for (name, read) in reads {
            match read {
                Ok(None) => {}
                Ok(Some(trace)) if !is_whole && !self.is_in_cache(&trace.out_path.hash()) => {}
                Ok(Some(trace)) if self.options.allow_unsigned || self.is_trusted(&trace) => {
                    traces.push(trace);
                }
                Ok(Some(_)) => self.fail_document(&name, DocumentFailure::Source(FetchError::UnsignedTrace)),
                Err(error) => self.fail_document(&name, DocumentFailure::Source(error)),
            }
        }
        let unknown: HashSet<StorePathHash> =
            traces.iter().map(|trace| trace.out_path.hash()).filter(|hash| !self.is_in_cache(hash)).collect();
        let unknown: Vec<StorePathHash> = unknown.into_iter().collect();
        let mut lacking: HashSet<StorePathHash> = HashSet::new();
        for hashes in unknown.chunks(MISSING_PATHS_BATCH_MAX) {
            lacking.extend(self.api.get_missing_paths(self.cache, hashes.to_vec()).await?);
        }
        let all = traces.len();
        traces.retain(|trace| !lacking.contains(&trace.out_path.hash()));
        self.summary.traces_without_path += (all - traces.len()) as u64;
        if self.options.dry_run {
            self.summary.traces += traces.len() as u64;
            return Ok(Flow::GoesOn);
        }
        let (api, cache, jobs) = (self.api, self.cache, self.options.jobs.max(1));
        let uploads = futures::stream::iter(traces)
            .map(|trace| async move {
                let put = api.put_trace(cache, &trace).await;
                let end = put.map(|taken| if taken { DocumentEnd::Imported } else { DocumentEnd::Kept });
                (DocumentName::Trace(trace.key), end.map_err(DocumentFailure::Server))
            })
            .buffer_unordered(jobs);
        let ends = until_fatal(uploads).await;
        Ok(self.count_documents(ends))
    }

    /// Imports the logs of these derivations, as far as the source has them and the cache does not.
    pub(super) async fn import_logs(&mut self, derivations: Vec<StorePath>) -> Flow {
        let (api, cache, source, is_dry) = (self.api, self.cache, &*self.source, self.options.dry_run);
        let uploads = futures::stream::iter(derivations)
            .map(|derivation| async move {
                let end = import_log(api, cache, source, &derivation, is_dry).await;
                (DocumentName::Log(derivation), end)
            })
            .buffer_unordered(self.options.jobs.clamp(1, LOGS_AT_ONCE_MAX));
        let ends = until_fatal(uploads).await;
        self.count_documents(ends)
    }

    fn count_documents(&mut self, ends: Vec<DocumentOutcome>) -> Flow {
        let mut flow = Flow::GoesOn;
        for (name, end) in ends {
            match (&name, end) {
                (DocumentName::Log(_), Ok(DocumentEnd::Imported)) => self.summary.logs += 1,
                (_, Ok(DocumentEnd::Imported)) => self.summary.traces += 1,
                (_, Ok(DocumentEnd::Kept)) => self.summary.documents_kept += 1,
                (_, Ok(DocumentEnd::Absent)) => {}
                (_, Err(failure)) => {
                    if is_fatal_failure(&failure) {
                        flow = Flow::Stopped;
                    }
                    self.fail_document(&name, failure);
                }
            }
        }
        flow
    }

    fn fail_document(&mut self, name: &DocumentName, failure: DocumentFailure) {
        let reason = match &failure {
            DocumentFailure::Source(error) => dormer_nix::with_causes(error),
            DocumentFailure::Server(error) => dormer_nix::with_causes(error),
        };
        // Paths can do without their logs.
        if matches!(name, DocumentName::Log(_)) && failure.is_too_long() {
            self.reporter.document_left_out(name, &reason);
            self.summary.logs_too_long += 1;
            return;
        }
        self.reporter.document_failed(name, &reason);
        self.summary.documents_failed += 1;
        if let DocumentFailure::Server(error) = failure
            && error.is_fatal_for_push()
        {
            self.summary.stopped_by.get_or_insert(error);
        }
    }

    fn is_in_cache(&self, hash: &StorePathHash) -> bool {
        self.path_states.get(hash) == Some(&PathState::InCache)
    }

    fn is_trusted(&self, trace: &BuildTrace) -> bool {
        // The first text has all that the trace says; another leaves out what it depends on, which
        // the cache's own key would then vouch for.
        let Some(text) = trace.fingerprints().into_iter().next() else { return false };
        is_signed_by(&trace.sigs, &text, &self.options.trusted_keys)
    }

    /// The derivers of paths that are about to be uploaded, if their logs are wanted.
    pub(super) fn derivers_of<'a>(
        &self,
        planned: impl Iterator<Item = &'a crate::path_info::PathInfo>,
    ) -> HashMap<StorePathHash, StorePath> {
        let is_wanted = self.options.logs && !self.is_whole;
        planned
            .filter(|_| is_wanted)
            .filter_map(|info| Some((info.path.hash(), info.deriver.clone()?)))
            .collect()
    }
}

/// What became of documents, up to the first failure after which no other can succeed. What is
/// under way then is given up.
async fn until_fatal(uploads: impl Stream<Item = DocumentOutcome>) -> Vec<DocumentOutcome> {
    let mut uploads = pin!(uploads);
    let mut ends = Vec::new();
    while let Some(end) = uploads.next().await {
        let is_fatal = is_fatal(&end.1);
        ends.push(end);
        if is_fatal {
            break;
        }
    }
    ends
}

fn is_fatal(end: &Result<DocumentEnd, DocumentFailure>) -> bool {
    end.as_ref().is_err_and(is_fatal_failure)
}

fn is_fatal_failure(failure: &DocumentFailure) -> bool {
    matches!(failure, DocumentFailure::Server(error) if error.is_fatal_for_push())
}

async fn read_trace(source: &dyn StaticCache, key: &TraceKey) -> Result<Option<BuildTrace>, FetchError> {
    let name = DocumentName::Trace(key.clone()).to_string();
    let Some(json) = source.get(&name, BUILD_TRACE_BYTES_MAX).await? else { return Ok(None) };
    BuildTrace::parse(key, &json).map(Some).map_err(FetchError::Trace)
}

async fn import_log(
    api: &crate::api::ApiClient,
    cache: &dormer_api::CacheName,
    source: &dyn StaticCache,
    derivation: &StorePath,
    is_dry: bool,
) -> Result<DocumentEnd, DocumentFailure> {
    // Spares reading the source. A token that may not pull learns it when it sends the log.
    if api.has_log(cache, derivation).await.map_err(DocumentFailure::Server)? {
        return Ok(DocumentEnd::Kept);
    }
    let name = DocumentName::Log(derivation.clone()).to_string();
    let found = source.get(&name, LOG_BYTES_MAX).await.map_err(DocumentFailure::Source)?;
    let Some(bytes) = found else { return Ok(DocumentEnd::Absent) };
    if !is_dry {
        let encoding = compression_of(&bytes);
        let log = BuildLog { bytes: bytes.into(), encoding };
        if !api.add_log(cache, derivation, log).await.map_err(DocumentFailure::Server)? {
            return Ok(DocumentEnd::Kept);
        }
    }
    Ok(DocumentEnd::Imported)
}

/// What `Content-Encoding` calls the compression of a log, which its first bytes tell; `None` for
/// text. Nix compresses logs by `log-compression`, and a folder keeps no header that says so.
/// Brotli has no such bytes.
fn compression_of(log: &[u8]) -> Option<&'static str> {
    let compression = Compression::of_upload("", log)?;
    (compression != Compression::None).then(|| compression.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_log_is_known_by_its_first_bytes() {
        let cases: [(&[u8], Option<&str>); 9] = [
            (b"\xfd7zXZ\0\0\x04", Some("xz")),
            (b"BZh91AY&SY", Some("bzip2")),
            (b"\x1f\x8b\x08\0", Some("gzip")),
            (b"\x28\xb5\x2f\xfd\0", Some("zstd")),
            (b"\x04\x22\x4d\x18", Some("lz4")),
            (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", Some("lzma")),
            (b"building\n", None),
            (b"\x0d\0\0\0\0\0\0\0nix-archive-1", None),
            (b"", None),
        ];
        for (bytes, name) in cases {
            assert_eq!(compression_of(bytes), name);
        }
    }
}
