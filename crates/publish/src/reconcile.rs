//! Comparing with a listing: what is missing or damaged is written anew, what is not ours goes.
//!
//! A file is damaged when its size or the store's tag of it is not what was written down. Where a store gives no tags (a
//! folder), narinfos are read and compared. What nobody wrote down is deleted only below the caches that are published, and
//! only if it is named as the layout names things.

use std::collections::{HashMap, HashSet};

use dormer_api::CacheName;
use dormer_blobs::FileEntry;
use dormer_edge::EdgeKey;
use dormer_format::EncodingTag;
use dormer_index::{Cache, PublishState};
use dormer_nix::{NarHash, StorePathHash};

use crate::Result;
use crate::all_of::all_of;
use crate::publisher::Run;
use crate::report::CacheOutcome;
use crate::upload::nar_file;

/// Rows compared together.
const PAGE: u32 = 2_048;

impl Run<'_> {
    /// Compares what is written down of a cache with what is there. Needs memory for the names of all its files.
    pub(crate) async fn reconcile(
        &mut self,
        cache: &Cache,
        name: &CacheName,
        outcome: &mut CacheOutcome,
    ) -> Result<()> {
        let mut there: HashMap<EdgeKey, FileEntry> = HashMap::new();
        self.files()
            .list(name.as_str(), &mut |entry| {
                if let Ok(key) = EdgeKey::parse(&entry.name) {
                    there.insert(key, entry);
                }
            })
            .await?;
        let mut known: HashSet<EdgeKey> =
            HashSet::from([EdgeKey::State(name.clone()), EdgeKey::CacheInfo(name.clone())]);
        let (mut objects, mut nars): (Vec<StorePathHash>, Vec<(NarHash, EncodingTag)>) =
            (Vec::new(), Vec::new());
        let mut after = None;
        loop {
            let rows = self.state().list_published(self.target(), cache.id, after, PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.hash);
            for row in &rows {
                let key = EdgeKey::Narinfo(name.clone(), row.hash);
                let mut sound = there
                    .get(&key)
                    .is_some_and(|entry| same_etag(entry.etag.as_deref(), row.etag.as_deref()));
                if sound && row.etag.is_none() && row.state == PublishState::Published {
                    let text = self.files().get(&key.to_string()).await?.unwrap_or_default();
                    sound = NarHash::digest(&text).as_bytes().as_slice() == row.digest;
                }
                if !sound && row.state == PublishState::Published {
                    objects.push(row.hash);
                }
                known.insert(EdgeKey::Listing(name.clone(), row.hash));
                known.insert(key);
            }
        }
        // Those in grace, too, and those that were never finished: a push may name them again.
        let mut after = None;
        loop {
            let rows = self.state().list_published_nars(self.target(), cache.id, after, PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.nar);
            for nar in rows {
                let key = EdgeKey::Nar(name.clone(), nar_file(nar.nar));
                let sound = there.get(&key).is_some_and(|entry| {
                    entry.size == nar.file_size && same_etag(entry.etag.as_deref(), nar.etag.as_deref())
                });
                if nar.uploaded && !sound {
                    nars.push(nar.nar);
                }
                known.insert(key);
            }
        }
        outcome.repaired += (objects.len() + nars.len()) as u64;
        self.state().note_drift(&self.lease, cache.id, &objects, &nars, self.now()).await?;
        // What was never noted, or whose row was lost, is looked at too.
        self.state().note_all_pending(&self.lease, cache.id, self.now()).await?;

        let mut strangers: Vec<EdgeKey> = there.into_keys().filter(|key| !known.contains(key)).collect();
        // Narinfos before NARs.
        strangers.sort_by_key(|key| matches!(key, EdgeKey::Nar(..)));
        let (narinfos, files): (Vec<_>, Vec<_>) =
            strangers.into_iter().partition(|key| matches!(key, EdgeKey::Narinfo(..)));
        for group in [narinfos, files] {
            outcome.repaired += group.len() as u64;
            let run = &*self;
            let deletions =
                group.into_iter().map(|key| async move { Ok(run.files().delete(&key.to_string()).await?) });
            all_of(deletions, self.publisher.settings.concurrency).await?;
        }
        Ok(())
    }
}

/// Whether two tags say the same; one that is not known says nothing.
fn same_etag(listed: Option<&str>, written: Option<&str>) -> bool {
    match (listed, written) {
        (Some(listed), Some(written)) => listed.trim_matches('"') == written.trim_matches('"'),
        _ => true,
    }
}
