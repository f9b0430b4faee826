//! Sends the build traces of what a push brought, after the paths.
//!
//! A reader that has only the derivation of a content-addressed path finds the path by its trace.
//! Nix tells the trace of the derivation that was built, in which the paths of all inputs stand. A
//! reader gets to the same derivation, because it finds the traces of the inputs first.
//!
//! The traces of the paths that the user named come last: if nothing else is new and the cache has
//! those, this push ended before. A trace of a path that the cache had before is sent only if the
//! cache lacks it: other derivations may have led to the same path.

use std::collections::BTreeSet;

use dormer_api::{CacheName, ErrorName};
use dormer_nix::{BuildTrace, DocumentName, StorePath};
use futures::StreamExt as _;

use crate::api::ApiClient;
use crate::error::{Error, Result};
use crate::nix_store::NixStore;
use crate::push_plan::AddressedOutput;

/// Traces that are sent at once.
const TRACES_AT_ONCE: usize = 8;

/// What became of build traces.
#[derive(Debug, Default)]
pub struct TraceSummary {
    /// Traces that the cache has now.
    pub sent: Vec<DocumentName>,
    /// Traces that give way to what the cache has: there the output is another path.
    pub kept: Vec<DocumentName>,
    /// Whether the server takes no build traces.
    pub is_unsupported: bool,
    /// Traces that were refused.
    pub failed: Vec<(DocumentName, Error)>,
}

/// Sends the build traces of these outputs, whose paths the cache has. With `unless_known`, sends
/// none if the cache has those of the paths that the user named. Fails if Nix or the server does as
/// a whole.
pub async fn push_traces(
    api: &ApiClient,
    store: &NixStore,
    cache: &CacheName,
    outputs: &[AddressedOutput],
    unless_known: bool,
) -> Result<TraceSummary> {
    let mut summary = TraceSummary::default();
    if outputs.is_empty() || !store.has_traces() {
        return Ok(summary);
    }
    let (roots, others): (Vec<AddressedOutput>, Vec<AddressedOutput>) =
        outputs.iter().cloned().partition(|output| output.is_root);
    let last = store.build_traces(&roots).await?;
    if unless_known && !last.is_empty() && has_all(api, cache, &last).await? {
        return Ok(summary);
    }
    let known: BTreeSet<&StorePath> =
        others.iter().filter(|output| !output.is_new).map(|output| &output.path).collect();
    for traces in [store.build_traces(&others).await?, last] {
        let mut answers = futures::stream::iter(traces)
            .map(|trace| {
                let is_known = known.contains(&trace.out_path);
                async move {
                    let name = DocumentName::Trace(trace.key.clone());
                    let has_it = if is_known { api.has_document(cache, &name).await } else { Ok(false) };
                    let sent = match has_it {
                        Ok(true) => return None,
                        Ok(false) => api.put_trace(cache, &trace).await,
                        Err(error) => Err(error),
                    };
                    Some((name, sent))
                }
            })
            .buffer_unordered(TRACES_AT_ONCE);
        while let Some(answer) = answers.next().await {
            let Some((name, sent)) = answer else { continue };
            match sent {
                Ok(true) => summary.sent.push(name),
                Ok(false) => summary.kept.push(name),
                Err(error) if error.is_fatal_for_push() => return Err(error),
                // Attic knows no build traces, and answers what it answers to any unknown address.
                Err(
                    Error::Refused { status: 404 | 405, name: None | Some(ErrorName::NotFound), .. }
                    | Error::Refused { status: 501, .. },
                ) => {
                    summary.is_unsupported = true;
                    return Ok(summary);
                }
                Err(error) => summary.failed.push((name, error)),
            }
        }
        if !summary.failed.is_empty() {
            // Those that follow would say that all of these are there.
            break;
        }
    }
    Ok(summary)
}

async fn has_all(api: &ApiClient, cache: &CacheName, traces: &[BuildTrace]) -> Result<bool> {
    for trace in traces {
        if !api.has_document(cache, &DocumentName::Trace(trace.key.clone())).await? {
            return Ok(false);
        }
    }
    Ok(true)
}
