//! What publishing remembers: the contract, and the statements behind it.

#[cfg(test)]
mod bulk_tests;
mod contract;
#[cfg(test)]
mod plan_tests;
pub(crate) mod records;
pub(crate) mod work;

pub use contract::{
    AbsentPage, CacheScan, Follower, Lease, NotedFrom, OwnedDocument, PendingObject, PendingVerdicts,
    PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent, PublishState, PublishTarget,
    PublishedCache, PublishedDocument, PublishedFile, PublishedNar, PublishedObject, ReferrersTaken,
    RemovablePage, TargetId,
};

use std::ops::RangeInclusive;

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{BuildId, DocumentName, NarHash, StorePathHash};

use crate::Result;
use crate::contract::{CacheId, FoundObject, UnixSeconds};
use crate::sql_index::SqlIndex;

#[async_trait]
impl PublishIndex for SqlIndex {
    async fn open_target(&self, name: &str, location: &str) -> Result<PublishTarget> {
        self.write("open a target", async |mut tx| work::open_target(&mut tx, name, location).await).await
    }
    async fn list_targets(&self) -> Result<Vec<PublishTarget>> {
        self.read("list targets", async |mut tx| work::list_targets(&mut tx).await).await
    }
    async fn list_followers(&self) -> Result<Vec<Follower>> {
        self.read("list targets and what they lack", async |mut tx| work::list_followers(&mut tx).await).await
    }
    async fn acquire_lease(
        &self,
        target: TargetId,
        holder: &str,
        now: UnixSeconds,
        ends_at: UnixSeconds,
    ) -> Result<Option<Lease>> {
        // Not repeated: a second call is refused by the lease of the first, whose answer was lost.
        self.write("take a target's lease", async |mut tx| {
            work::acquire_lease(&mut tx, target, holder, now, ends_at).await
        })
        .await
    }
    async fn renew_lease(&self, lease: &Lease) -> Result<()> {
        self.write("renew a target's lease", async |mut tx| work::renew_lease(&mut tx, lease).await).await
    }
    async fn release_lease(&self, lease: &Lease, at: UnixSeconds, error: Option<&str>) -> Result<()> {
        self.write("give a target's lease back", async |mut tx| {
            work::release_lease(&mut tx, lease, at, error).await
        })
        .await
    }
    async fn move_target(&self, lease: &Lease, location: &str, compared: bool) -> Result<()> {
        self.write("move a target", async |mut tx| {
            work::move_target(&mut tx, lease, location, compared).await
        })
        .await
    }
    async fn clear_missed_changes(&self, lease: &Lease) -> Result<()> {
        self.write("note what a target missed", async |mut tx| {
            work::clear_missed_changes(&mut tx, lease).await
        })
        .await
    }
    async fn note_pending(
        &self,
        lease: &Lease,
        objects: &[(CacheId, StorePathHash, UnixSeconds)],
        from: NotedFrom,
    ) -> Result<()> {
        self.write("note what to publish", async |mut tx| {
            work::note_pending(&mut tx, lease, objects, &from).await
        })
        .await
    }
    async fn note_cache_step(
        &self,
        lease: &Lease,
        cache: CacheId,
        scan: CacheScan,
        limit: u32,
        at: UnixSeconds,
    ) -> Result<Option<CacheScan>> {
        self.write("note a cache to publish", async |mut tx| {
            work::note_cache_step(&mut tx, lease, cache, &scan, limit, at).await
        })
        .await
    }
    async fn pending_objects(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<(UnixSeconds, StorePathHash)>,
        limit: u32,
    ) -> Result<Vec<PendingObject>> {
        self.read("list what to publish", async |mut tx| {
            work::pending_objects(&mut tx, target, cache, after, limit).await
        })
        .await
    }
    async fn pending_absent(
        &self,
        target: TargetId,
        cache: CacheId,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<AbsentPage> {
        self.read("list what to remove", async |mut tx| {
            work::pending_absent(&mut tx, target, cache, after, limit).await
        })
        .await
    }
    async fn settle_pending(
        &self,
        lease: &Lease,
        cache: CacheId,
        verdicts: &PendingVerdicts,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("note what became of objects", async |mut tx| {
            work::settle_pending(&mut tx, lease, cache, verdicts, at).await
        })
        .await
    }
    async fn find_removed(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<StorePathHash>> {
        self.read("find what was removed", async |mut tx| {
            work::find_removed(&mut tx, target, cache, hashes).await
        })
        .await
    }
    async fn forget_removed(
        &self,
        lease: &Lease,
        cache: CacheId,
        before: UnixSeconds,
        limit: u32,
    ) -> Result<u64> {
        self.write("forget what was removed", async |mut tx| {
            work::forget_removed(&mut tx, lease, cache, before, limit).await
        })
        .await
    }
    async fn published_caches(&self, target: TargetId) -> Result<Vec<PublishedCache>> {
        self.read("list published caches", async |mut tx| work::published_caches(&mut tx, target).await).await
    }
    async fn write_published_cache(
        &self,
        lease: &Lease,
        cache: &PublishedCache,
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("write a published cache", async |mut tx| {
            work::write_published_cache(&mut tx, lease, cache, at).await
        })
        .await
    }
    async fn forget_published_cache(&self, lease: &Lease, cache: CacheId, limit: u32) -> Result<bool> {
        self.write("forget a published cache", async |mut tx| {
            work::forget_published_cache(&mut tx, lease, cache, limit).await
        })
        .await
    }
    async fn publish_counts(&self, target: TargetId, cache: CacheId) -> Result<PublishCounts> {
        self.read("count what is published", async |mut tx| {
            work::publish_counts(&mut tx, target, cache).await
        })
        .await
    }
    async fn publish_backlog(&self, limit: u32) -> Result<Vec<PublishBacklog>> {
        self.read("count what waits to be published", async |mut tx| {
            work::publish_backlog(&mut tx, limit).await
        })
        .await
    }
    async fn forget_pending(&self, lease: &Lease, cache: CacheId, limit: u32) -> Result<bool> {
        self.write("forget what to publish", async |mut tx| {
            work::forget_pending(&mut tx, lease, cache, limit).await
        })
        .await
    }
    async fn find_served_nars(
        &self,
        cache: CacheId,
        nars: &[NarHash],
        now: UnixSeconds,
    ) -> Result<Vec<NarHash>> {
        self.read("find NARs that are served", async |mut tx| {
            work::find_served_nars(&mut tx, cache, nars, now).await
        })
        .await
    }
    async fn find_objects(&self, cache: CacheId, hashes: &[StorePathHash]) -> Result<Vec<FoundObject>> {
        self.read("find objects", async |mut tx| work::find_objects(&mut tx, cache, hashes).await).await
    }
    async fn find_published(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedObject>> {
        self.read("find published objects", async |mut tx| {
            work::find_published(&mut tx, target, cache, hashes).await
        })
        .await
    }
    async fn list_published(
        &self,
        target: TargetId,
        cache: CacheId,
        bytes: RangeInclusive<u8>,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<Vec<PublishedObject>> {
        self.read("list published objects", async |mut tx| {
            work::list_published(&mut tx, target, cache, bytes.clone(), after, limit).await
        })
        .await
    }
    async fn find_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        nars: &[NarHash],
    ) -> Result<Vec<PublishedNar>> {
        self.read("find published NARs", async |mut tx| {
            work::find_published_nars(&mut tx, target, cache, nars).await
        })
        .await
    }
    async fn list_published_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        bytes: RangeInclusive<u8>,
        after: Option<(NarHash, EncodingTag)>,
        limit: u32,
    ) -> Result<Vec<PublishedNar>> {
        self.read("list published NARs", async |mut tx| {
            work::list_published_nars(&mut tx, target, cache, bytes.clone(), after, limit).await
        })
        .await
    }
    async fn due_nars(
        &self,
        target: TargetId,
        cache: CacheId,
        now: UnixSeconds,
        limit: u32,
    ) -> Result<Vec<PublishedNar>> {
        self.read("find NARs to delete", async |mut tx| {
            work::due_nars(&mut tx, target, cache, now, limit).await
        })
        .await
    }
    async fn begin_publishing(&self, lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> Result<()> {
        self.write("begin to publish", async |mut tx| {
            work::begin_publishing(&mut tx, lease, cache, intents).await
        })
        .await
    }
    async fn note_uploaded(&self, lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> Result<()> {
        self.write("note published NARs", async |mut tx| {
            work::note_uploaded(&mut tx, lease, cache, nars).await
        })
        .await
    }
    async fn note_found_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[((NarHash, EncodingTag), u64)],
        delete_after: UnixSeconds,
    ) -> Result<()> {
        self.write("note NARs that were found", async |mut tx| {
            work::note_found_nars(&mut tx, lease, cache, nars, delete_after).await
        })
        .await
    }
    async fn note_found_narinfos(
        &self,
        lease: &Lease,
        cache: CacheId,
        intents: &[PublishIntent],
        found: &[PublishDone],
        at: UnixSeconds,
    ) -> Result<()> {
        self.write("note narinfos that were found", async |mut tx| {
            work::note_found_narinfos(&mut tx, lease, cache, intents, found, at).await
        })
        .await
    }
    async fn finish_publishing(
        &self,
        lease: &Lease,
        cache: CacheId,
        done: &[PublishDone],
        delete_after: UnixSeconds,
    ) -> Result<()> {
        self.write("note what was published", async |mut tx| {
            work::finish_publishing(&mut tx, lease, cache, done, delete_after).await
        })
        .await
    }
    async fn begin_removing(&self, lease: &Lease, cache: CacheId, hashes: &[StorePathHash]) -> Result<()> {
        self.write("begin to remove", async |mut tx| {
            work::begin_removing(&mut tx, lease, cache, hashes).await
        })
        .await
    }
    async fn take_referrers(&self, lease: &Lease, cache: CacheId, at: UnixSeconds) -> Result<ReferrersTaken> {
        self.write("take referrers along", async |mut tx| {
            work::take_referrers(&mut tx, lease, cache, at).await
        })
        .await
    }
    async fn removable(
        &self,
        target: TargetId,
        cache: CacheId,
        any: bool,
        after: Option<StorePathHash>,
        limit: u32,
    ) -> Result<RemovablePage> {
        self.read("find what to remove next", async |mut tx| {
            work::removable(&mut tx, target, cache, any, after, limit).await
        })
        .await
    }
    async fn find_owned_documents(
        &self,
        cache: CacheId,
        owners: &[StorePathHash],
        limit: u32,
    ) -> Result<Vec<OwnedDocument>> {
        self.read("find documents of objects", async |mut tx| {
            work::find_owned_documents(&mut tx, cache, owners, limit).await
        })
        .await
    }
    async fn find_build_ids(
        &self,
        cache: CacheId,
        objects: &[StorePathHash],
        limit: u32,
    ) -> Result<Vec<(StorePathHash, BuildId)>> {
        self.read("find build ids of objects", async |mut tx| {
            work::find_build_ids(&mut tx, cache, objects, limit).await
        })
        .await
    }
    async fn find_published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        hashes: &[StorePathHash],
    ) -> Result<Vec<PublishedDocument>> {
        self.read("find published documents", async |mut tx| {
            work::find_published_documents(&mut tx, target, cache, hashes).await
        })
        .await
    }
    async fn list_published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        after: (&str, Option<StorePathHash>),
        through: &str,
        limit: u32,
    ) -> Result<Vec<PublishedDocument>> {
        self.read("list published documents", async |mut tx| {
            work::list_published_documents(&mut tx, target, cache, after, through, limit).await
        })
        .await
    }
    async fn find_needed_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
    ) -> Result<Vec<(StorePathHash, DocumentName)>> {
        self.read("find documents that others have", async |mut tx| {
            work::find_needed_documents(&mut tx, target, cache, documents).await
        })
        .await
    }
    async fn write_published_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[PublishedDocument],
    ) -> Result<()> {
        self.write("note documents", async |mut tx| {
            work::write_published_documents(&mut tx, lease, cache, documents).await
        })
        .await
    }
    async fn note_document_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
        at: UnixSeconds,
        scan: Option<CacheScan>,
    ) -> Result<()> {
        self.write("note documents that drifted", async |mut tx| {
            work::note_document_drift(&mut tx, lease, cache, documents, at, scan.as_ref()).await
        })
        .await
    }
    async fn forget_published_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
    ) -> Result<()> {
        self.write("forget documents", async |mut tx| {
            work::forget_published_documents(&mut tx, lease, cache, documents).await
        })
        .await
    }
    async fn finish_removing(
        &self,
        lease: &Lease,
        cache: CacheId,
        removed: &[(StorePathHash, UnixSeconds)],
    ) -> Result<()> {
        self.write("note what was removed", async |mut tx| {
            work::finish_removing(&mut tx, lease, cache, removed).await
        })
        .await
    }
    async fn end_graces(
        &self,
        lease: &Lease,
        cache: CacheId,
        hashes: &[StorePathHash],
        at: UnixSeconds,
    ) -> Result<u64> {
        self.write("end graces", async |mut tx| work::end_graces(&mut tx, lease, cache, hashes, at).await)
            .await
    }
    async fn begin_deleting_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
    ) -> Result<()> {
        self.write("begin to delete NARs", async |mut tx| {
            work::begin_deleting_nars(&mut tx, lease, cache, nars).await
        })
        .await
    }
    async fn forget_nars(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
    ) -> Result<()> {
        self.write("forget deleted NARs", async |mut tx| work::forget_nars(&mut tx, lease, cache, nars).await)
            .await
    }
    async fn note_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        objects: &[StorePathHash],
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
        scan: CacheScan,
    ) -> Result<()> {
        self.write("note what is missing", async |mut tx| {
            work::note_drift(&mut tx, lease, cache, objects, nars, at, &scan).await
        })
        .await
    }

    async fn note_other_headers(
        &self,
        lease: &Lease,
        cache: CacheId,
        nars: &[(NarHash, EncodingTag)],
        at: UnixSeconds,
        scan: CacheScan,
    ) -> Result<()> {
        self.write("note what gets other headers", async |mut tx| {
            work::note_other_headers(&mut tx, lease, cache, nars, at, &scan).await
        })
        .await
    }
}
