//! The first phase: packs, one after another, are read whole.

use std::time::Instant;

use bytes::Bytes;
use dormer_blobs::BlobKey;
use dormer_index::{ChunkRow, PackNumber, PackRow};
use dormer_nix::with_causes;

use super::check::{PackFindings, check_pack};
use super::reads::{TRIES, is_bad_disk};
use super::scrub_run::{PAGE, ScrubRun};
use super::scrubber::Scrubber;
use super::state::ScrubReport;
use crate::Result;
use crate::cpu::blocking;

/// Chunks of a pack that are tried again; of the others one attempt is enough.
const TRIED_AGAIN: usize = 8;

impl Scrubber {
    /// Checks packs until none is left (`true`) or the time is over.
    pub(super) async fn packs(&self, run: &mut ScrubRun<'_>) -> Result<bool> {
        loop {
            let page = self.scrub.scrub_packs(PackNumber(run.state.after), PAGE).await?;
            if page.is_empty() {
                return Ok(true);
            }
            for pack in page {
                if run.state.takes(pack.number.0) {
                    let timer = Instant::now();
                    let bytes = self.pack(run, &pack).await?;
                    // What is counted is behind the cursor: the wait may save both.
                    run.state.after = pack.number.0;
                    run.wait(timer, bytes).await?;
                }
                run.state.after = pack.number.0;
                run.advance(1).await?;
                if run.is_slice_over() {
                    return Ok(false);
                }
            }
        }
    }

    /// Checks one pack; returns the bytes that it read.
    async fn pack(&self, run: &mut ScrubRun<'_>, pack: &PackRow) -> Result<u64> {
        let rows = self.scrub.chunks_of_pack(pack.number).await?;
        let bytes = match run.while_renewing(self.whole_pack(pack)).await? {
            Ok(bytes) => bytes,
            Err(dormer_blobs::Error::NotFound { .. } | dormer_blobs::Error::Truncated { .. }) => {
                self.lost_pack(pack, &rows, &mut run.state.report).await?;
                return Ok(0);
            }
            Err(error) if is_bad_disk(&error) => {
                return self.unreadable_pack(run, pack, &rows, &error).await;
            }
            Err(error) => return Err(error.into()),
        };
        let report = &mut run.state.report;
        let (read, id) = (bytes.len() as u64, pack.id);
        let (findings, rows) = blocking(move || {
            let findings = check_pack(id, &bytes, &rows);
            (findings, rows)
        })
        .await;
        let PackFindings { whole, chunks } = findings;
        report.packs += 1;
        report.chunks += rows.len() as u64;
        report.bytes_read += read;
        if let Some(what) = whole {
            report.packs_damaged += 1;
            self.metrics.count_damage("pack", 1);
            report.note(format!("{}: {what}", BlobKey::Pack(pack.id)));
        }
        self.damaged_chunks(pack, &chunks, "chunks are damaged", report).await?;
        self.metrics.count_read(read);
        Ok(read)
    }

    /// Reads the chunks of a pack one by one, some of which the disk does not give back.
    async fn unreadable_pack(
        &self,
        run: &mut ScrubRun<'_>,
        pack: &PackRow,
        rows: &[ChunkRow],
        error: &dormer_blobs::Error,
    ) -> Result<u64> {
        let (mut chunks, mut read) = (Vec::new(), 0);
        for row in rows {
            let tries = if chunks.len() < TRIED_AGAIN { TRIES } else { 1 };
            match run.while_renewing(self.stored_chunk(row, tries)).await?? {
                Some(bytes) => read += bytes.len() as u64,
                None => chunks.push(row),
            }
        }
        // Perhaps the whole disk was away. So only a read between two proofs that it is there
        // counts.
        run.while_renewing(self.check_store()).await??;
        let mut unread = Vec::new();
        for row in chunks {
            if run.while_renewing(self.stored_chunk(row, 1)).await??.is_none() {
                unread.push(row.number);
            }
        }
        run.while_renewing(self.check_store()).await??;
        let chunks = unread;
        let report = &mut run.state.report;
        report.packs += 1;
        report.packs_damaged += 1;
        report.chunks += rows.len() as u64;
        report.bytes_read += read;
        self.metrics.count_damage("pack", 1);
        self.metrics.count_read(read);
        report.note(format!("{}: {}", BlobKey::Pack(pack.id), with_causes(error)));
        self.damaged_chunks(pack, &chunks, "chunks cannot be read", report).await?;
        Ok(read)
    }

    async fn whole_pack(&self, pack: &PackRow) -> dormer_blobs::Result<Bytes> {
        let key = BlobKey::Pack(pack.id);
        // A local store reads from a file that it has open, which may be gone from its folder.
        if !self.blobs.is_remote() {
            self.blobs.head(&key).await?;
        }
        self.blobs.get_range(&key, 0..pack.size).await
    }

    async fn lost_pack(&self, pack: &PackRow, rows: &[ChunkRow], report: &mut ScrubReport) -> Result<()> {
        // Pushes have stored all of it elsewhere, so nothing needs the pack.
        if rows.is_empty() {
            return Ok(());
        }
        // A collection may have removed the pack since its row was read.
        let still = self.scrub.scrub_packs(PackNumber(pack.number.0 - 1), 1).await?;
        if still.first().is_none_or(|row| row.number != pack.number) {
            return Ok(());
        }
        report.packs += 1;
        report.packs_lost += 1;
        self.metrics.count_damage("pack", 1);
        report.note(format!("{}: missing or truncated", BlobKey::Pack(pack.id)));
        let chunks: Vec<u64> = rows.iter().map(|row| row.number).collect();
        self.damaged_chunks(pack, &chunks, "chunks are lost", report).await
    }

    async fn damaged_chunks(
        &self,
        pack: &PackRow,
        chunks: &[u64],
        what: &str,
        report: &mut ScrubReport,
    ) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        for chunks in chunks.chunks(4_096) {
            let marked = self.scrub.mark_chunks(pack.number, chunks, self.clock.now()).await?;
            self.metrics.count_damage("chunk", marked);
        }
        report.chunks_damaged += chunks.len() as u64;
        report.note(format!("{}: {} {what}", BlobKey::Pack(pack.id), chunks.len()));
        Ok(())
    }
}
