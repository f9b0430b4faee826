//! What publishing remembers: the contract, and the statements that both adapters run for it.

mod contract;
mod sql;
pub(crate) mod work;

pub use contract::{
    Lease, PendingObject, PublishBacklog, PublishCounts, PublishDone, PublishIndex, PublishIntent,
    PublishState, PublishTarget, PublishedCache, PublishedNar, PublishedObject, TargetId,
};
pub(crate) use sql::{Argument, Sql, Transaction};

/// Implements the contract for an adapter. `$read` and `$write` are macros of its own that run `work` in a transaction, again
/// if that is the adapter's way.
macro_rules! implement_publish_index {
    ($adapter:ty, $read:ident, $write:ident) => {
        #[async_trait::async_trait]
        impl crate::PublishIndex for $adapter {
            async fn open_target(&self, name: &str, location: &str) -> Result<crate::PublishTarget> {
                $write!(self, "open a target", |tx| work::open_target(tx, name, location))
            }
            async fn list_targets(&self) -> Result<Vec<crate::PublishTarget>> {
                $read!(self, "list targets", |tx| work::list_targets(tx))
            }
            async fn acquire_lease(
                &self,
                target: crate::TargetId,
                holder: &str,
                now: UnixSeconds,
                ends_at: UnixSeconds,
            ) -> Result<Option<crate::Lease>> {
                $write!(self, "take a target's lease", |tx| work::acquire_lease(
                    tx, target, holder, now, ends_at
                ))
            }
            async fn renew_lease(&self, lease: &crate::Lease, ends_at: UnixSeconds) -> Result<()> {
                $write!(self, "renew a target's lease", |tx| work::renew_lease(tx, lease, ends_at))
            }
            async fn release_lease(
                &self,
                lease: &crate::Lease,
                at: UnixSeconds,
                error: Option<&str>,
            ) -> Result<()> {
                $write!(self, "give a target's lease back", |tx| work::release_lease(tx, lease, at, error))
            }
            async fn move_target(&self, lease: &crate::Lease, location: &str) -> Result<()> {
                $write!(self, "move a target", |tx| work::move_target(tx, lease, location))
            }
            async fn note_pending(
                &self,
                lease: &crate::Lease,
                objects: &[(CacheId, StorePathHash, UnixSeconds)],
                cursor: Option<OutboxPosition>,
            ) -> Result<()> {
                $write!(self, "note what to publish", |tx| work::note_pending(tx, lease, objects, cursor))
            }
            async fn note_all_pending(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                at: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "note a cache to publish", |tx| work::note_all_pending(tx, lease, cache, at))
            }
            async fn pending_objects(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                after: Option<(UnixSeconds, StorePathHash)>,
                limit: u32,
            ) -> Result<Vec<crate::PendingObject>> {
                $read!(self, "list what to publish", |tx| work::pending_objects(
                    tx, target, cache, after, limit
                ))
            }
            async fn pending_absent(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                after: Option<StorePathHash>,
                limit: u32,
            ) -> Result<Vec<StorePathHash>> {
                $read!(self, "list what to remove", |tx| work::pending_absent(
                    tx, target, cache, after, limit
                ))
            }
            async fn note_waiting(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                reasons: &[(StorePathHash, String)],
            ) -> Result<()> {
                $write!(self, "note why objects wait", |tx| work::note_waiting(tx, lease, cache, reasons))
            }
            async fn note_lost(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                lost: &[(StorePathHash, StorePathHash)],
            ) -> Result<()> {
                $write!(self, "note what was removed under objects", |tx| work::note_lost(
                    tx, lease, cache, lost
                ))
            }
            async fn note_removed(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                hashes: &[StorePathHash],
                at: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "note what was removed", |tx| work::note_removed(tx, lease, cache, hashes, at))
            }
            async fn find_removed(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                hashes: &[StorePathHash],
            ) -> Result<Vec<StorePathHash>> {
                $read!(self, "find what was removed", |tx| work::find_removed(tx, target, cache, hashes))
            }
            async fn forget_removed(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                before: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "forget what was removed", |tx| work::forget_removed(tx, lease, cache, before))
            }
            async fn drop_pending(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                hashes: &[StorePathHash],
            ) -> Result<()> {
                $write!(self, "note what is done", |tx| work::drop_pending(tx, lease, cache, hashes))
            }
            async fn published_caches(&self, target: crate::TargetId) -> Result<Vec<crate::PublishedCache>> {
                $read!(self, "list published caches", |tx| work::published_caches(tx, target))
            }
            async fn write_published_cache(
                &self,
                lease: &crate::Lease,
                cache: &crate::PublishedCache,
            ) -> Result<()> {
                $write!(self, "write a published cache", |tx| work::write_published_cache(tx, lease, cache))
            }
            async fn forget_published_cache(&self, lease: &crate::Lease, cache: CacheId) -> Result<()> {
                $write!(self, "forget a published cache", |tx| work::forget_published_cache(tx, lease, cache))
            }
            async fn publish_counts(
                &self,
                target: crate::TargetId,
                cache: CacheId,
            ) -> Result<crate::PublishCounts> {
                $read!(self, "count what is published", |tx| work::publish_counts(tx, target, cache))
            }
            async fn publish_backlog(&self, limit: u32) -> Result<Vec<crate::PublishBacklog>> {
                $read!(self, "count what waits to be published", |tx| work::publish_backlog(tx, limit))
            }
            async fn find_objects(
                &self,
                cache: CacheId,
                hashes: &[StorePathHash],
            ) -> Result<Vec<FoundObject>> {
                $read!(self, "find objects", |tx| work::find_objects(tx, cache, hashes))
            }
            async fn find_published(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                hashes: &[StorePathHash],
            ) -> Result<Vec<crate::PublishedObject>> {
                $read!(self, "find published objects", |tx| work::find_published(tx, target, cache, hashes))
            }
            async fn list_published(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                after: Option<StorePathHash>,
                limit: u32,
            ) -> Result<Vec<crate::PublishedObject>> {
                $read!(self, "list published objects", |tx| work::list_published(
                    tx, target, cache, after, limit
                ))
            }
            async fn find_published_nars(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                nars: &[NarHash],
            ) -> Result<Vec<crate::PublishedNar>> {
                $read!(self, "find published NARs", |tx| work::find_published_nars(tx, target, cache, nars))
            }
            async fn list_published_nars(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                after: Option<(NarHash, dormer_format::EncodingTag)>,
                limit: u32,
            ) -> Result<Vec<crate::PublishedNar>> {
                $read!(self, "list published NARs", |tx| {
                    work::list_published_nars(tx, target, cache, after, limit)
                })
            }
            async fn nars_left_by(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                hashes: &[StorePathHash],
            ) -> Result<Vec<crate::PublishedNar>> {
                $read!(self, "find published NARs", |tx| work::nars_left_by(tx, target, cache, hashes))
            }
            async fn due_nars(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                now: UnixSeconds,
                limit: u32,
            ) -> Result<Vec<crate::PublishedNar>> {
                $read!(self, "find NARs to delete", |tx| work::due_nars(tx, target, cache, now, limit))
            }
            async fn begin_publishing(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                intents: &[crate::PublishIntent],
            ) -> Result<()> {
                $write!(self, "begin to publish", |tx| work::begin_publishing(tx, lease, cache, intents))
            }
            async fn note_uploaded(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                nars: &[crate::PublishedNar],
            ) -> Result<()> {
                $write!(self, "note published NARs", |tx| work::note_uploaded(tx, lease, cache, nars))
            }
            async fn finish_publishing(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                done: &[crate::PublishDone],
                delete_after: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "note what was published", |tx| work::finish_publishing(
                    tx,
                    lease,
                    cache,
                    done,
                    delete_after
                ))
            }
            async fn begin_removing(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                hashes: &[StorePathHash],
                at: UnixSeconds,
            ) -> Result<u64> {
                $write!(self, "begin to remove", |tx| work::begin_removing(tx, lease, cache, hashes, at))
            }
            async fn removable(
                &self,
                target: crate::TargetId,
                cache: CacheId,
                any: bool,
                limit: u32,
            ) -> Result<Vec<StorePathHash>> {
                $read!(self, "find what to remove next", |tx| work::removable(tx, target, cache, any, limit))
            }
            async fn finish_removing(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                removed: &[(StorePathHash, UnixSeconds)],
            ) -> Result<()> {
                $write!(self, "note what was removed", |tx| work::finish_removing(tx, lease, cache, removed))
            }
            async fn set_nar_deadline(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                nars: &[(NarHash, EncodingTag)],
                at: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "end a grace", |tx| work::set_nar_deadline(tx, lease, cache, nars, at))
            }
            async fn begin_deleting_nars(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                nars: &[(NarHash, EncodingTag)],
            ) -> Result<()> {
                $write!(self, "begin to delete NARs", |tx| work::begin_deleting_nars(tx, lease, cache, nars))
            }
            async fn forget_nars(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                nars: &[(NarHash, EncodingTag)],
            ) -> Result<()> {
                $write!(self, "forget deleted NARs", |tx| work::forget_nars(tx, lease, cache, nars))
            }
            async fn note_drift(
                &self,
                lease: &crate::Lease,
                cache: CacheId,
                objects: &[StorePathHash],
                nars: &[(NarHash, EncodingTag)],
                at: UnixSeconds,
            ) -> Result<()> {
                $write!(self, "note what is missing", |tx| work::note_drift(
                    tx, lease, cache, objects, nars, at
                ))
            }
        }
    };
}
pub(crate) use implement_publish_index;
