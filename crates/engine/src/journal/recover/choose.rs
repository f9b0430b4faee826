//! Which files of a journal count, and what is missing among them.

use std::collections::BTreeSet;

use dormer_format::{JournalHeader, JournalKind, JournalName};

use super::recovery::Recovery;
use crate::Result;
use crate::journal::files::read_header;

impl Recovery {
    /// The newest whole snapshot with the segments after it, the newest file first. Without a whole
    /// snapshot, all there is of the newest lineage.
    pub(super) async fn choose(&mut self, names: Vec<JournalName>) -> Result<Vec<JournalName>> {
        let mut ends: Vec<JournalName> =
            names.iter().copied().filter(|name| name.kind == JournalKind::End).collect();
        ends.sort_unstable_by_key(|name| std::cmp::Reverse(name.generation));
        let mut base = None;
        for end in ends {
            if let Some(file) = self.read(&end, false).await?.filter(|file| file.is_whole) {
                if self.wanted.is_some_and(|wanted| wanted != file.header.lineage) {
                    continue;
                }
                base = Some(file.header);
                break;
            }
            self.report.cut_journal_files += 1;
            tracing::warn!(journal.file = %end, "the end of a snapshot is cut short; all files count");
        }
        self.is_snapshot_whole = base.is_some();
        if let Some(base) = base {
            self.count_ignored(&names, &base).await?;
        }
        let mut chosen: Vec<JournalName> = match base {
            Some(base) => names
                .into_iter()
                .filter(|name| match name.kind {
                    JournalKind::Segment => {
                        name.generation >= base.generation && name.position > base.position
                    }
                    JournalKind::Part => name.generation == base.generation,
                    JournalKind::End => false,
                })
                .collect(),
            None => names.into_iter().filter(|name| name.kind != JournalKind::End).collect(),
        };
        // Segments after parts: what a part says is as new as the snapshot's place only.
        chosen.sort_unstable_by_key(|name| {
            std::cmp::Reverse((name.kind == JournalKind::Segment, name.position, name.random))
        });
        let mut lineage = base.map(|base| base.lineage).or(self.wanted);
        if lineage.is_none()
            && let Some(newest) = chosen.iter().copied().max_by_key(|name| (name.generation, name.position))
        {
            lineage = read_header(&self.store, &newest).await?.map(|header| header.lineage);
        }
        let (mut of_lineage, mut parts, mut nameless_parts) = (Vec::new(), BTreeSet::new(), 0);
        for name in chosen {
            let Some(own) = read_header(&self.store, &name).await? else {
                self.report.cut_journal_files += 1;
                nameless_parts += u64::from(name.kind == JournalKind::Part);
                tracing::warn!(journal.file = %name, "a file of the journal has no readable beginning");
                continue;
            };
            if *lineage.get_or_insert(own.lineage) == own.lineage {
                of_lineage.push(name);
                if own.kind == JournalKind::Part {
                    parts.insert(own.number);
                }
            }
        }
        self.lineage = lineage;
        self.count_gaps(base.as_ref(), &of_lineage);
        if let Some(base) = base {
            self.count_missing_parts(&base, &parts, nameless_parts);
        }
        Ok(of_lineage)
    }

    /// Counts segments that are not there: their numbers go up by one. The last one leaves no gap.
    fn count_gaps(&mut self, base: Option<&JournalHeader>, files: &[JournalName]) {
        let segments = files.iter().filter(|name| name.kind == JournalKind::Segment);
        let numbers: BTreeSet<u64> = segments.map(|name| name.position.1).collect();
        let mut before = base.map(|base| base.position.1);
        for number in numbers {
            let missing = before.map_or(0, |before| number.saturating_sub(before.saturating_add(1)));
            if missing > 0 {
                tracing::warn!(before = number, missing, "segments of the journal are not there");
                self.report.cut_journal_files += missing;
            }
            before = Some(number);
        }
    }

    /// Counts parts of the snapshot that are not there: its end says how many there are. A part may
    /// be there twice, because a crash repeats it. The end of an old snapshot has no count.
    fn count_missing_parts(&mut self, end: &JournalHeader, parts: &BTreeSet<u32>, nameless: u64) {
        let found = parts.iter().filter(|number| (1..=end.number).contains(*number)).count() as u64;
        let missing = u64::from(end.number).saturating_sub(found + nameless);
        if missing > 0 {
            tracing::warn!(missing, of = end.number, "parts of a snapshot of the journal are not there");
            self.report.cut_journal_files += missing;
        }
    }

    /// Counts what another lineage wrote after a snapshot: a database that was recovered or
    /// restored since, and lost before its own first snapshot was whole, or that the operator did
    /// not choose. Without a snapshot, its files say what changed, but not what was there.
    async fn count_ignored(&mut self, names: &[JournalName], base: &JournalHeader) -> Result<()> {
        let is_later =
            |name: &&JournalName| name.kind != JournalKind::End && name.generation > base.generation;
        for name in names.iter().filter(is_later) {
            let header = read_header(&self.store, name).await?;
            if let Some(other) = header.filter(|header| header.lineage != base.lineage) {
                self.report.ignored_journal_files += 1;
                self.report.ignored_lineages.insert(format!("{:016x}", other.lineage));
            }
        }
        Ok(())
    }
}
