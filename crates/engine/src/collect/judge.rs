//! Each pack is judged by the marks ([`PackVerdict`]): condemned, spared, removed, or rewritten.

use std::time::Instant;

use dormer_index::{PackNumber, PackRow};

use super::collection_run::{CHANGE_ROWS, CollectionRun, PAGE_ROWS, REMOVE_PACKS};
use super::collector::Collector;
use super::plan::{
    DeadBytes, DeadShare, Live, PackLimits, PackTotals, PackVerdict, Rewrite, RewriteGroup, RewriteGroups,
    RewriteRules, may_be_rewritten,
};
use super::report::CollectionReport;
use crate::Result;
use crate::pace::pause_after;

/// A page of packs by verdict.
#[derive(Default)]
pub(super) struct Judged {
    pub(super) condemn: Vec<PackRow>,
    pub(super) wait: Vec<PackRow>,
    spare: Vec<PackRow>,
    pub(super) remove: Vec<PackRow>,
}

impl Judged {
    pub(super) fn new(page: &[PackRow], live: &Live, limits: &PackLimits) -> Self {
        let mut judged = Self::default();
        for pack in page {
            let is_live = live.in_pack(pack.number) > 0;
            match PackVerdict::new(pack, is_live, limits) {
                PackVerdict::Keep => continue,
                PackVerdict::Condemn => &mut judged.condemn,
                PackVerdict::Wait => &mut judged.wait,
                PackVerdict::Spare => &mut judged.spare,
                PackVerdict::Remove => &mut judged.remove,
            }
            .push(*pack);
        }
        judged
    }
}

impl Collector {
    pub(super) async fn judge_packs(
        &self,
        collection: &mut CollectionRun<'_>,
        live: &Live,
        limits: &PackLimits,
        report: &mut CollectionReport,
    ) -> Result<()> {
        let rules = self.rewrite_rules(Some(collection), live, *limits).await?;
        let mut after = PackNumber(0);
        let mut groups = RewriteGroups::default();
        loop {
            let begun = Instant::now();
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            self.progress.count_packs(page.len());
            let judged = Judged::new(&page, live, limits);
            self.count(&judged.wait, &mut report.waiting).await?;
            if !judged.spare.is_empty() {
                let spared = self.index.spare_packs(&numbers(&judged.spare)).await?;
                tracing::error!(packs = spared, "condemned packs hold live chunks; they are kept");
            }
            collection.step(begun, 0).await?;
            for packs in judged.condemn.chunks(CHANGE_ROWS) {
                let begun = Instant::now();
                let now = self.clock.now();
                let condemned = self.index.condemn_packs(&numbers(packs), limits.stamps, now).await?;
                let condemned: Vec<PackRow> =
                    packs.iter().filter(|pack| condemned.contains(&pack.number)).copied().collect();
                self.count(&condemned, &mut report.condemned).await?;
                collection.step(begun, condemned.len() as u64).await?;
            }
            for packs in judged.remove.chunks(REMOVE_PACKS) {
                let begun = Instant::now();
                let (before, now) = (limits.condemned_before, self.clock.now());
                let removed = self.index.remove_packs(&numbers(packs), before, now).await?;
                report.removed.packs += removed.packs.len() as u64;
                report.removed.bytes += removed.bytes;
                report.removed.chunks += removed.chunks;
                collection.step(begun, removed.packs.len() as u64 + removed.chunks).await?;
            }
            for group in self.gather_rewrites(&mut groups, &page, live, &rules).await? {
                self.compact_if_room(collection, &group, live, limits, report).await?;
            }
        }
        for group in groups.rest() {
            self.compact_if_room(collection, &group, live, limits, report).await?;
        }
        Ok(())
    }

    async fn compact_if_room(
        &self,
        collection: &mut CollectionRun<'_>,
        group: &RewriteGroup,
        live: &Live,
        limits: &PackLimits,
        report: &mut CollectionReport,
    ) -> Result<()> {
        if Self::is_compaction_over(report, group) || collection.is_store_down() {
            return Ok(());
        }
        self.compact_group(collection, group, live, limits, report).await
    }

    /// Adds the packs of a page that are to be rewritten to their groups; returns the groups that
    /// are full.
    pub(super) async fn gather_rewrites(
        &self,
        groups: &mut RewriteGroups,
        page: &[PackRow],
        live: &Live,
        rules: &RewriteRules,
    ) -> Result<Vec<RewriteGroup>> {
        let mut full = Vec::new();
        for pack in page {
            let in_pack = live.in_pack(pack.number);
            let chunks = self.chunks_of(pack).await?;
            if let Some(why) = Rewrite::new(pack, in_pack, chunks, rules) {
                full.extend(groups.add(why, *pack, in_pack, chunks));
            }
        }
        Ok(full)
    }

    /// How many chunks the object of a pack has. Rows of old versions do not say so.
    async fn chunks_of(&self, pack: &PackRow) -> Result<u64> {
        Ok(match pack.chunks {
            Some(chunks) => chunks,
            None => self.index.count_chunks(&[pack.number]).await?,
        })
    }

    /// Looks through all packs for the rules by which this collection rewrites some of them.
    pub(super) async fn rewrite_rules(
        &self,
        collection: Option<&mut CollectionRun<'_>>,
        live: &Live,
        limits: PackLimits,
    ) -> Result<RewriteRules> {
        let dead_share = self.dead_share(collection, live, &limits).await?;
        Ok(RewriteRules { limits, dead_share, recompression: self.recompression() })
    }

    async fn dead_share(
        &self,
        mut collection: Option<&mut CollectionRun<'_>>,
        live: &Live,
        limits: &PackLimits,
    ) -> Result<DeadShare> {
        let mut bytes = DeadBytes::default();
        let mut after = PackNumber(0);
        loop {
            let begun = Instant::now();
            let page = self.index.page_packs(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { return Ok(bytes.threshold()) };
            after = last.number;
            for pack in &page {
                let in_pack = live.in_pack(pack.number);
                if may_be_rewritten(pack, in_pack, limits) {
                    bytes.add(pack, in_pack, self.chunks_of(pack).await?);
                }
            }
            match &mut collection {
                Some(collection) => collection.step(begun, 0).await?,
                None => tokio::time::sleep(pause_after(begun.elapsed())).await,
            }
        }
    }

    pub(super) async fn count(&self, packs: &[PackRow], totals: &mut PackTotals) -> Result<()> {
        for packs in packs.chunks(CHANGE_ROWS) {
            totals.packs += packs.len() as u64;
            totals.bytes += packs.iter().map(|pack| pack.size).sum::<u64>();
            totals.chunks += self.index.count_chunks(&numbers(packs)).await?;
        }
        Ok(())
    }
}

pub(super) fn numbers(packs: &[PackRow]) -> Vec<PackNumber> {
    packs.iter().map(|pack| pack.number).collect()
}
