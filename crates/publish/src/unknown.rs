//! Caches in the target that nothing is written down of: those of a database that was lost, for
//! one. No comparison reaches them, because each is of a cache.
//!
//! A reconciliation names them, and removes them only when the operator names them: an older
//! version of another lab, which leaves no mark, may own them.

use std::collections::HashSet;

use dormer_api::CacheName;
use dormer_edge::EdgeKey;

use crate::documents;
use crate::publisher::{Mode, Run};
use crate::report::CacheOutcome;
use crate::{Error, Result};

/// Names listed together: as many as a store gives in one answer.
const LISTED_PAGE: usize = 1_000;

impl Run<'_> {
    /// Looks for unknown caches, and removes those that the operator names. Returns those that
    /// stay.
    pub(crate) async fn look_for_unknown(&self, outcomes: &mut Vec<CacheOutcome>) -> Result<Vec<CacheName>> {
        if self.mode != Mode::Reconcile || self.publisher.is_stopping() {
            return Ok(Vec::new());
        }
        let mut unknown = match self.unknown_caches().await {
            // Others may use the bucket, and this lab may not look at what they have there.
            Err(Error::Target(error)) if self.publisher.unwanted.is_empty() => {
                tracing::warn!(%error, "failed to look for unknown caches in the target");
                return Ok(Vec::new());
            }
            unknown => unknown?,
        };
        if self.publisher.is_stopping() {
            return Ok(unknown);
        }
        for name in &self.publisher.unwanted {
            outcomes.push(if unknown.contains(name) {
                self.remove_unknown(name).await?
            } else {
                let location = self.store().location();
                let error = format!("cache '{name}' is no unknown cache of {location}: it is not removed");
                CacheOutcome { error: Some(error), ..CacheOutcome::of(name.as_str()) }
            });
        }
        unknown.retain(|name| !self.publisher.unwanted.contains(name));
        Ok(unknown)
    }

    /// The caches in the target that neither the settings nor the rows name. Costs a listing for
    /// each folder of the target, and two reads for each that may be one.
    async fn unknown_caches(&self) -> Result<Vec<CacheName>> {
        let mut known: HashSet<String> = HashSet::new();
        known.extend(self.publisher.selected().await?.into_iter().map(|(cache, _)| cache.name));
        known.extend(self.state().published_caches(self.target()).await?.into_iter().map(|row| row.name));
        let mut unknown = Vec::new();
        let mut after: Option<String> = None;
        while !self.publisher.is_stopping() {
            let page = self.store().list_page("", after.as_deref(), LISTED_PAGE).await?;
            let Some(last) = page.last() else { break };
            let is_last = page.len() < LISTED_PAGE;
            let folders: HashSet<&str> =
                page.iter().filter_map(|entry| Some(entry.name.split_once('/')?.0)).collect();
            for folder in folders {
                if known.insert(folder.to_owned())
                    && let Ok(name) = folder.parse()
                    && self.is_cache(&name).await?
                {
                    unknown.push(name);
                }
            }
            if is_last {
                break;
            }
            // The first name after all that begin with the folder's: `0` comes after `/`.
            after =
                Some(last.name.split_once('/').map_or(last.name.clone(), |(folder, _)| format!("{folder}0")));
        }
        unknown.sort_unstable();
        Ok(unknown)
    }

    /// Whether a cache lies there, or what a removal has left of one.
    async fn is_cache(&self, name: &CacheName) -> Result<bool> {
        for key in [EdgeKey::State(name.clone()), EdgeKey::CacheInfo(name.clone())] {
            if self.store().head(&key.to_string()).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes an unknown cache: its state document first, so that the edge no longer serves it,
    /// and `nix-cache-info` last, by which the next run finds what is left. Nothing says what
    /// refers to what, so narinfos go in the order of their names, and the NARs after them. Other
    /// files stay.
    async fn remove_unknown(&self, name: &CacheName) -> Result<CacheOutcome> {
        let mut outcome = CacheOutcome::of(name.as_str());
        documents::remove_state(self, name).await?;
        for takes_nars in [false, true] {
            let mut after: Option<String> = None;
            loop {
                if self.publisher.is_stopping() {
                    return Ok(outcome);
                }
                let page = self.store().list_page(name.as_str(), after.as_deref(), LISTED_PAGE).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                let keys: Vec<EdgeKey> = page
                    .iter()
                    .filter_map(|entry| EdgeKey::parse(&entry.name).ok())
                    .filter(|key| match key {
                        EdgeKey::Nar(..) => takes_nars,
                        EdgeKey::CacheInfo(_) => false,
                        _ => !takes_nars,
                    })
                    .collect();
                outcome.removed +=
                    keys.iter().filter(|key| matches!(key, EdgeKey::Narinfo(..))).count() as u64;
                outcome.nars_deleted +=
                    keys.iter().filter(|key| matches!(key, EdgeKey::Nar(..))).count() as u64;
                self.delete_all(keys).await?;
            }
        }
        documents::remove_cache_info(self, name).await?;
        outcome.note = Some("was taken away".to_owned());
        Ok(outcome)
    }
}
