//! The second phase: NARs are rebuilt from their recipes, window by window.

use std::time::Instant;

use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_format::{ChunkRun, HoleFill};
use dormer_index::{ChunkRow, Nar, NarId};
use dormer_nix::NarHasher;

use super::check::decode_chunk;
use super::reads::{TRIES, is_bad_disk};
use super::scrub_run::{PAGE, ScrubRun};
use super::scrubber::Scrubber;
use crate::Result;
use crate::cpu::blocking;
use crate::read::windows;

/// Most stored bytes of a NAR in one fetch.
const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

impl Scrubber {
    /// Checks NARs until none is left (`true`) or the time is over.
    pub(super) async fn nars(&self, run: &mut ScrubRun<'_>) -> Result<bool> {
        loop {
            let page = self.scrub.scrub_nars(NarId(run.state.after), PAGE).await?;
            if page.is_empty() {
                return Ok(true);
            }
            let mut rows = 0;
            for nar in page {
                rows += 1;
                // Its damage is known; the chunks of others are checked with them.
                if !nar.damaged && run.state.takes(nar.id.0) {
                    self.nar(run, &nar).await?;
                }
                // Not before: the lease is renewed, and the cursor saved, while the NAR is read.
                run.state.after = nar.id.0;
                if run.is_slice_over() {
                    run.advance(rows).await?;
                    return Ok(false);
                }
            }
            run.advance(rows).await?;
        }
    }

    /// Rebuilds one NAR.
    async fn nar(&self, run: &mut ScrubRun<'_>, nar: &Nar) -> Result<()> {
        let mut hasher = NarHasher::new();
        let mut fills = nar.recipe.hole_fills();
        // What cannot be hashed need not be judged.
        let (mut whole, mut damaged) = (true, 0);
        for runs in windows(&nar.recipe.runs) {
            let Some(rows) = self.load(&runs).await? else { return Ok(()) };
            for rows in fetches(&rows) {
                let timer = Instant::now();
                let own: Vec<Vec<HoleFill>> = rows
                    .iter()
                    .map(|row| fills.by_ref().take(row.layout.holes.len()).copied().collect())
                    .collect();
                let (read, bad) = self.fetch(run, rows, own, &mut hasher, &mut whole).await?;
                for (row, marked) in bad {
                    damaged += marked;
                    // At once: a run that takes over finds the chunk marked already.
                    run.state.report.chunks_damaged += marked;
                    whole = false;
                    if marked > 0 {
                        run.state.report.note(format!(
                            "{}: chunk {} is damaged",
                            BlobKey::Pack(row.pack_id),
                            row.number
                        ));
                    }
                }
                run.state.report.bytes_read += read;
                self.metrics.count_read(read);
                run.wait(timer, read).await?;
            }
        }
        run.state.report.nars += 1;
        let is_wrong = whole && {
            let (hash, size) = hasher.finish();
            (hash, size) != (nar.hash, nar.size)
                && self.scrub.mark_nar(nar.id, &nar.tag, self.clock.now()).await?
        };
        if damaged > 0 || is_wrong {
            run.state.report.nars_damaged += 1;
            self.metrics.count_damage("nar", 1);
            run.state.report.note(format!("NAR {} does not come back", nar.hash));
        }
        Ok(())
    }

    /// The rows of a window. `None` if a collection removed the NAR meanwhile.
    async fn load(&self, runs: &[ChunkRun]) -> Result<Option<Vec<ChunkRow>>> {
        match self.index.load_chunks(runs).await {
            Ok(rows) => Ok(Some(rows)),
            Err(dormer_index::Error::ChunkGone { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads neighbours in a pack, and feeds the hasher while the NAR is whole. Returns the bytes
    /// that it read, and the chunks that are not as they should be, each with how many of it were
    /// marked: none if it lies elsewhere by now.
    async fn fetch<'r>(
        &self,
        run: &mut ScrubRun<'_>,
        rows: &'r [ChunkRow],
        fills: Vec<Vec<HoleFill>>,
        hasher: &mut NarHasher,
        whole: &mut bool,
    ) -> Result<(u64, Vec<(&'r ChunkRow, u64)>)> {
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let range = first.offset..last.offset + u64::from(last.layout.stored_len());
        let read = range.end - range.start;
        let start = range.start;
        let stored: Vec<Option<Bytes>> =
            match run.while_renewing(self.blobs.get_range(&BlobKey::Pack(first.pack_id), range)).await? {
                Ok(stored) => {
                    let own = |row: &ChunkRow| {
                        let from = usize::try_from(row.offset - start).expect("a fetch is a few MiB");
                        Some(stored.slice(from..from + row.layout.stored_len() as usize))
                    };
                    rows.iter().map(own).collect()
                }
                Err(error) if is_bad_disk(&error) => {
                    let mut stored = Vec::with_capacity(rows.len());
                    for row in rows {
                        stored.push(run.while_renewing(self.stored_chunk(row, TRIES)).await??);
                    }
                    run.while_renewing(self.check_store()).await??;
                    for (row, stored) in rows.iter().zip(&mut stored).filter(|(_, stored)| stored.is_none()) {
                        *stored = run.while_renewing(self.stored_chunk(row, 1)).await??;
                    }
                    run.while_renewing(self.check_store()).await??;
                    stored
                }
                Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                    let mut bad = Vec::new();
                    for row in rows {
                        bad.push((row, self.mark(row).await?));
                    }
                    return Ok((0, bad));
                }
                Err(error) => return Err(error.into()),
            };
        let mut bad = Vec::new();
        for ((row, own), fills) in rows.iter().zip(stored).zip(fills) {
            let (layout, id, checksum) = (row.layout.clone(), row.id, row.checksum);
            let decode = move || decode_chunk(&own?, id, checksum, &layout, &fills);
            match blocking(decode).await {
                Some(raw) if *whole => hasher.update(&raw),
                Some(_) => {}
                None => {
                    *whole = false;
                    bad.push((row, self.mark(row).await?));
                }
            }
        }
        Ok((read, bad))
    }

    async fn mark(&self, row: &ChunkRow) -> Result<u64> {
        let marked = self.scrub.mark_chunks(row.pack, &[row.number], self.clock.now()).await?;
        self.metrics.count_damage("chunk", marked);
        Ok(marked)
    }
}

/// Groups of chunks that lie behind each other in a pack.
fn fetches(rows: &[ChunkRow]) -> impl Iterator<Item = &[ChunkRow]> {
    let end = |row: &ChunkRow| row.offset + u64::from(row.layout.stored_len());
    let mut rest = rows;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut count = 1;
        while let (Some(before), Some(next)) = (rest.get(count - 1), rest.get(count))
            && next.pack == before.pack
            && next.offset == end(before)
            && end(next) - first.offset <= FETCH_BYTES_MAX
        {
            count += 1;
        }
        let (group, others) = rest.split_at(count);
        rest = others;
        Some(group)
    })
}
