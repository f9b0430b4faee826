//! What a comparison of the rows with the target shows.

use async_trait::async_trait;

use super::KEYS_MAX;
use super::bringing::{begin_objects, finish_objects};
use super::caches::move_scan;
use super::contract::{
    CacheScan, CompareIndex, Drift, FOUND, FoundNarinfo, Lease, PublishDone, PublishIntent,
};
use super::documents::note_drifted;
use super::pending::{NOTE_PENDING, note_objects};
use super::records::{Records, records};
use super::removing::BEGIN_DELETING;
use super::rows::{NarKey, keys, nar_records};
use super::targets::hold_lease;
use crate::Result;
use crate::columns::signed;
use crate::contract::{CacheId, UnixSeconds};
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, Text};

pub(super) const DRIFTED_OBJECTS: Sql = both!(
    "UPDATE publish_objects SET state = 0, digest = $4, etag = NULL WHERE state = 1 AND (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
pub(super) const NOTE_NAMING: Sql = records!(
    "INSERT INTO publish_pending (target, cache, hash, since)
     SELECT o.target, o.cache, o.hash, $4 FROM", keyed 3 { nar: bytes 0, tag: bytes 1 }, "AS k CROSS JOIN publish_objects AS o
     WHERE o.target = k.target AND o.cache = k.cache AND o.nar = k.nar AND o.tag = k.tag
     ON CONFLICT (target, cache, hash) DO NOTHING"
);
pub(super) const DRIFTED_NAMING: Sql = records!(
    "UPDATE publish_objects SET state = 0, digest = $4 FROM", keyed 3 { nar: bytes 0, tag: bytes 1 }, "AS k
     WHERE publish_objects.target = k.target AND publish_objects.cache = k.cache AND publish_objects.nar = k.nar
         AND publish_objects.tag = k.tag AND publish_objects.state = 1"
);
// The row stays published: the files are there, and wait for others.
pub(super) const OUTDATED_NAMING: Sql = records!(
    "UPDATE publish_objects SET digest = $4 FROM", keyed 3 { nar: bytes 0, tag: bytes 1 }, "AS k
     WHERE publish_objects.target = k.target AND publish_objects.cache = k.cache AND publish_objects.nar = k.nar
         AND publish_objects.tag = k.tag AND publish_objects.state = 1"
);
// The path that named it last is not known.
pub(super) const NOTE_FOUND_NARS: Sql = records!(
    "INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size, delete_after)
     SELECT $1, $2, k.nar, k.tag, $4, 0, k.file_size, $5 FROM",
    3 { nar: bytes 0, tag: bytes 1, file_size: number 2 }, "AS k WHERE true
     ON CONFLICT (target, cache, nar, tag) DO NOTHING"
);

#[async_trait]
impl CompareIndex for SqlIndex {
    async fn note_drift(
        &self,
        lease: &Lease,
        cache: CacheId,
        drift: &Drift,
        at: UnixSeconds,
        scan: Option<CacheScan>,
    ) -> Result<()> {
        let Drift { narinfos, nars, outdated_nars, documents, found_narinfos, found_nars, grace_ends_at } =
            drift;
        self.write("note what has drifted", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            note_nars(&mut tx, lease, cache, nars, DRIFTED_NAMING, at).await?;
            note_nars(&mut tx, lease, cache, outdated_nars, OUTDATED_NAMING, at).await?;
            for page in narinfos.chunks(KEYS_MAX) {
                let arguments = [Number(lease.target.0), Number(cache.0), List(&keys(page)), Bytes(&[])];
                tx.run(DRIFTED_OBJECTS, &arguments).await?;
                let marks: Vec<_> = page.iter().map(|hash| (cache, *hash, at)).collect();
                note_objects(&mut tx, lease, &marks, NOTE_PENDING).await?;
            }
            note_drifted(&mut tx, lease, cache, documents, at).await?;
            note_found_narinfos(&mut tx, lease, cache, found_narinfos, at).await?;
            note_found_nars(&mut tx, lease, cache, found_nars, *grace_ends_at).await?;
            if scan.is_none() {
                return Ok(());
            }
            let drifted = narinfos.len() + nars.len() + outdated_nars.len() + documents.len();
            move_scan(&mut tx, lease, cache, scan.as_ref(), drifted as u64, Some(at)).await
        })
        .await
    }
}

/// Notes NAR files to be written again, and what names them, by a statement for the narinfos.
async fn note_nars(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[NarKey],
    of_narinfos: Sql,
    at: UnixSeconds,
) -> Result<()> {
    if nars.is_empty() {
        return Ok(());
    }
    let (target, cache, nars) = (Number(lease.target.0), Number(cache.0), nar_records(nars));
    tx.run(BEGIN_DELETING, &[target, cache, Text(&nars)]).await?;
    tx.run(NOTE_NAMING, &[target, cache, Text(&nars), Number(at)]).await?;
    tx.run(of_narinfos, &[target, cache, Text(&nars), Bytes(&[])]).await.map(drop)
}

/// All of it is one step: a row that says only half would be one of a path that the lab began to
/// write.
async fn note_found_narinfos(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    found: &[FoundNarinfo],
    at: UnixSeconds,
) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let intents: Vec<PublishIntent> = found
        .iter()
        .map(|found| PublishIntent {
            hash: found.hash,
            nar: found.nar,
            file_size: found.file_size,
            references: found.references.clone(),
            documents: Vec::new(),
        })
        .collect();
    begin_objects(tx, lease, cache, &intents).await?;
    let done: Vec<PublishDone> = found
        .iter()
        .map(|found| PublishDone {
            hash: found.hash,
            nar: found.nar,
            digest: found.digest.clone().unwrap_or_else(|| FOUND.to_vec()),
            etag: found.etag.clone(),
            upstream: found.upstream,
            references: found.references.clone(),
            documents: Vec::new(),
            stale_documents: Vec::new(),
        })
        .collect();
    // No row named another NAR before, so none is left without a name.
    finish_objects(tx, lease, cache, &done, UnixSeconds::MAX).await?;
    let marks: Vec<_> = found.iter().map(|found| (cache, found.hash, at)).collect();
    note_objects(tx, lease, &marks, NOTE_PENDING).await
}

async fn note_found_nars(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    found: &[(NarKey, u64)],
    delete_after: UnixSeconds,
) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let mut records = Records::default();
    for ((nar, tag), file_size) in found {
        records.row().bytes(nar.as_bytes()).bytes(tag.as_bytes()).number(signed(*file_size));
    }
    let (target, records) = (Number(lease.target.0), records.finish());
    let arguments = [target, Number(cache.0), Text(&records), Bytes(&[]), Number(delete_after)];
    tx.run(NOTE_FOUND_NARS, &arguments).await.map(drop)
}
