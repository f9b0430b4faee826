//! What a collection would free now. It reads what a collection reads, and changes nothing.

use std::time::Instant;

use dormer_index::{NarId, PackNumber};

use super::collection_run::{PAGE_NARS, PAGE_ROWS};
use super::collector::Collector;
use super::judge::Judged;
use super::plan::{Marks, RewriteGroups};
use super::progress::CollectionPhase;
use super::report::CollectionPlan;
use crate::Result;
use crate::pace::pause_after;

impl Collector {
    /// What a collection would free now. Reads only.
    pub async fn plan(&self) -> Result<CollectionPlan> {
        let mut plan = CollectionPlan::default();
        let (now, mut limits) = self.begin_marks();
        limits.kept_before = self.kept_before().await;
        self.progress.begin(CollectionPhase::Expiring);
        (plan.graces, plan.aliases) = self.index.count_ended(now, self.aliases_since(now)).await?;
        self.progress.begin(CollectionPhase::Marking);
        let mut marks = Marks::default();
        let mut after = NarId(0);
        loop {
            let begun = Instant::now();
            let page = self.index.mark_nars(after, PAGE_NARS, now, self.aliases_since(now)).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            self.progress.count_nars(page.len());
            for nar in &page {
                if nar.is_named {
                    marks.add(&nar.runs);
                } else {
                    plan.nars += 1;
                    plan.nar_bytes += nar.size;
                }
            }
            tokio::time::sleep(pause_after(begun.elapsed())).await;
        }
        let live = self.live_packs(marks, None).await?;
        let rules = self.rewrite_rules(None, &live, limits).await?;
        self.progress.begin(CollectionPhase::Judging);
        let mut after = PackNumber(0);
        let mut groups = RewriteGroups::default();
        loop {
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            self.progress.count_packs(page.len());
            plan.pack_bytes += page.iter().map(|pack| pack.size).sum::<u64>();
            let judged = Judged::new(&page, &live, &limits);
            for group in self.gather_rewrites(&mut groups, &page, &live, &rules).await? {
                self.plan_group(&group, &live, plan.totals_of(&group)).await?;
            }
            for (packs, totals) in [
                (&judged.condemn, &mut plan.condemn),
                (&judged.wait, &mut plan.wait),
                (&judged.remove, &mut plan.remove),
            ] {
                self.count(packs, totals).await?;
            }
        }
        for group in groups.rest() {
            self.plan_group(&group, &live, plan.totals_of(&group)).await?;
        }
        Ok(plan)
    }
}
