//! The objects of packs whose rows are gone are deleted from the store, also when the store fails
//! now and then.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use dormer_blobs::BlobKey;
use dormer_index::DoomedPack;
use dormer_nix::with_causes;

use super::collection_run::CollectionRun;
use super::collector::Collector;
use super::report::CollectionReport;
use crate::Result;

/// Objects deleted between two looks at the list.
const DELETE_OBJECTS: u32 = 64;

/// So many objects in a row that cannot be deleted mean that the store fails.
const DELETE_FAILURES_MAX: usize = 8;

impl Collector {
    /// Deletes the objects of doomed packs. One that cannot be deleted stays on the list for a
    /// later pass. Several in a row mean that the store fails, and end the pass: the next one goes
    /// on after them, so that they never keep others from their turn.
    pub(super) async fn delete_objects(
        &self,
        collection: &mut CollectionRun<'_>,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let mut after = self.lock_deleting().take();
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let doomed = self.index.doomed_packs(after, DELETE_OBJECTS, self.clock.now()).await?;
            if doomed.is_empty() {
                return Ok(());
            }
            let mut deleted = Vec::with_capacity(doomed.len());
            for pack in doomed {
                after = Some(pack);
                if pack.is_stray && collection.kept_before.is_some() {
                    continue;
                }
                match collection.while_renewing(self.blobs.delete(&BlobKey::Pack(pack.id))).await? {
                    Ok(()) => {
                        deleted.push(pack.id);
                        failures = 0;
                    }
                    Err(error) => {
                        self.metrics.count_delete_failure();
                        report.objects_left += 1;
                        failures += 1;
                        let error = with_causes(&error);
                        tracing::warn!(pack.id = %pack.id, error, "a pack cannot be deleted; a later collection tries again");
                        if failures == DELETE_FAILURES_MAX {
                            break;
                        }
                    }
                }
                collection.keep().await?;
            }
            self.index.forget_doomed(&deleted).await?;
            report.objects_deleted += deleted.len() as u64;
            collection.step(begun, deleted.len() as u64).await?;
            if failures == DELETE_FAILURES_MAX {
                *self.lock_deleting() = after;
                return Ok(());
            }
        }
    }

    fn lock_deleting(&self) -> MutexGuard<'_, Option<DoomedPack>> {
        self.deleting_after.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
