//! Marks: the chunks of every NAR that stays, and the packs that hold them.

use std::time::Instant;

use dormer_index::{NarId, UnixSeconds};

use super::collection_run::{CHANGE_ROWS, CollectionRun, PAGE_NARS, PAGE_ROWS};
use super::collector::Collector;
use super::plan::{Live, Marks};
use super::report::CollectionReport;
use crate::Result;

impl Collector {
    /// Marks the chunks of every NAR that stays, and removes those without a name.
    pub(super) async fn mark(
        &self,
        collection: &mut CollectionRun<'_>,
        now: UnixSeconds,
        report: &mut CollectionReport,
    ) -> Result<Marks> {
        let mut marks = Marks::default();
        let mut after = NarId(0);
        loop {
            let begun = Instant::now();
            let page = self.index.mark_nars(after, PAGE_NARS, now, self.aliases_since(now)).await?;
            let Some(last) = page.last() else { return Ok(marks) };
            after = last.id;
            self.progress.count_nars(page.len());
            let unnamed: Vec<NarId> = page.iter().filter(|nar| !nar.is_named).map(|nar| nar.id).collect();
            let mut deleted = std::collections::HashSet::new();
            for nars in unnamed.chunks(CHANGE_ROWS) {
                deleted.extend(self.index.delete_nars(nars).await?);
            }
            for nar in &page {
                if deleted.contains(&nar.id) {
                    report.nars += 1;
                    report.nar_bytes += nar.size;
                } else {
                    marks.add(&nar.runs);
                }
            }
            collection.step(begun, deleted.len() as u64).await?;
        }
    }

    /// The marked chunks, by the packs that hold them.
    pub(super) async fn live_packs(
        &self,
        mut marks: Marks,
        mut collection: Option<&mut CollectionRun<'_>>,
    ) -> Result<Live> {
        let mut after = 0;
        loop {
            let begun = Instant::now();
            let page = self.index.moved_chunks(after, PAGE_ROWS).await?;
            let Some((last, _)) = page.last() else { return Ok(marks.into_live()) };
            after = *last;
            for (chunk, pack) in page {
                marks.note_moved(chunk, pack);
            }
            if let Some(collection) = &mut collection {
                collection.step(begun, 0).await?;
            }
        }
    }
}
