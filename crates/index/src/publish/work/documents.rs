//! What is written down of documents in a target.

use dormer_nix::{BuildId, DocumentName, StorePathHash};

use super::caches::move_scan;
use super::pending::{NOTE_PENDING, note_objects};
use super::{KEYS_MAX, after_bytes, hold_lease, keys, read_hash};
use crate::Result;
use crate::columns::{corrupt, unsigned};
use crate::contract::{CacheId, UnixSeconds};
use crate::publish::contract::{CacheScan, Lease, OwnedDocument, PublishedDocument, PublishedFile, TargetId};
use crate::publish::records::{Records, records};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};

use Argument::{Bytes, List, Number, Text};

const TABLE: &str = "publish_documents";

// CROSS JOIN: from the keys to their rows, never the other way round.
pub(super) const FIND_OWNED: Sql = both!(
    "SELECT d.owner, d.name, d.size, d.digest FROM", list 2, "AS k CROSS JOIN documents AS d
     WHERE d.cache = $1 AND d.owner = k.item ORDER BY d.id DESC LIMIT $3"
);
pub(super) const FIND_BUILD_IDS: Sql = both!(
    "SELECT o.hash, b.build_id FROM", list 2, "AS k CROSS JOIN objects AS o CROSS JOIN build_ids AS b
     WHERE o.cache = $1 AND o.hash = k.item AND b.nar = o.nar LIMIT $3"
);
pub(super) const FIND_DOCUMENTS: Sql = both!(
    "SELECT d.hash, d.name, d.digest, d.content, d.etag FROM", keyed 3, "AS k CROSS JOIN publish_documents AS d
     WHERE d.target = k.target AND d.cache = k.cache AND d.hash = k.item"
);
pub(super) const LIST_DOCUMENTS: Sql = both!(
    "SELECT d.hash, d.name, d.digest, d.content, d.etag FROM publish_documents AS d
     WHERE d.target = $1 AND d.cache = $2 AND (d.name, d.hash) > ($3, $4) AND d.name <= $5
     ORDER BY d.name, d.hash LIMIT $6"
);
// An object beside those that the document is taken from.
pub(super) const FIND_NEEDED: Sql = records!(
    "SELECT (SELECT d.hash FROM publish_documents AS d WHERE d.target = k.target AND d.cache = k.cache
             AND d.name = k.name AND d.hash <> k.hash ORDER BY d.hash LIMIT 1), k.name
     FROM", keyed 3 { hash: bytes 0, name: text 1 }, "AS k"
);
pub(super) const WRITE_DOCUMENTS: Sql = records!(
    "INSERT INTO publish_documents (target, cache, hash, name, digest, content, etag)
     SELECT $1, $2, k.hash, k.name, k.digest, k.content, k.etag
     FROM", 3 { hash: bytes 0, name: text 1, digest: bytes 2, content: bytes 3, etag: text 4 }, "AS k WHERE true
     ON CONFLICT (target, cache, hash, name) DO UPDATE SET digest = excluded.digest, content = excluded.content,
         etag = excluded.etag"
);
pub(super) const DRIFTED: Sql = records!(
    "UPDATE publish_documents SET digest = $4, content = NULL, etag = NULL FROM", keyed 3 { hash: bytes 0, name: text 1 }, "AS k
     WHERE publish_documents.target = k.target AND publish_documents.cache = k.cache
         AND publish_documents.hash = k.hash AND publish_documents.name = k.name"
);
// SQLite searches for all four columns only if the first two are given by themselves; PostgreSQL
// begins at the keys only if they are not.
const FORGET_ON_SQLITE: Sql = records!(
    "DELETE FROM publish_documents WHERE target = $1 AND cache = $2 AND (hash, name) IN
         (SELECT k.hash, k.name FROM", keyed 3 { hash: bytes 0, name: text 1 }, "AS k)"
);
const FORGET_ON_POSTGRESQL: Sql = records!(
    "DELETE FROM publish_documents WHERE (target, cache, hash, name) IN
         (SELECT k.target, k.cache, k.hash, k.name FROM", keyed 3 { hash: bytes 0, name: text 1 }, "AS k)"
);
pub(super) const FORGET_DOCUMENTS: Sql =
    Sql { sqlite: FORGET_ON_SQLITE.sqlite, postgres: FORGET_ON_POSTGRESQL.postgres };

pub(crate) async fn find_owned_documents(
    tx: &mut Transaction,
    cache: CacheId,
    owners: &[StorePathHash],
    limit: u32,
) -> Result<Vec<OwnedDocument>> {
    assert!(owners.len() <= KEYS_MAX, "too many objects in one look-up");
    if owners.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(FIND_OWNED, &[Number(cache.0), List(&keys(owners)), Number(i64::from(limit))]).await?;
    rows.iter()
        .map(|row| {
            Ok(OwnedDocument {
                owner: read_hash(row, 0, "documents")?,
                name: read_name(row.column(1, "documents")?)?,
                size: unsigned("documents", row.column(2, "documents")?)?,
                digest: row.column(3, "documents")?,
            })
        })
        .collect()
}

pub(crate) async fn find_build_ids(
    tx: &mut Transaction,
    cache: CacheId,
    objects: &[StorePathHash],
    limit: u32,
) -> Result<Vec<(StorePathHash, BuildId)>> {
    assert!(objects.len() <= KEYS_MAX, "too many objects in one look-up");
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let arguments = [Number(cache.0), List(&keys(objects)), Number(i64::from(limit))];
    tx.rows(FIND_BUILD_IDS, &arguments)
        .await?
        .iter()
        .map(|row| {
            let build_id: Vec<u8> = row.column(1, "build_ids")?;
            let build_id = BuildId::from_bytes(&build_id).map_err(|error| corrupt("build_ids", error))?;
            Ok((read_hash(row, 0, "objects")?, build_id))
        })
        .collect()
}

pub(crate) async fn find_published_documents(
    tx: &mut Transaction,
    target: TargetId,
    cache: CacheId,
    hashes: &[StorePathHash],
) -> Result<Vec<PublishedDocument>> {
    assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.rows(FIND_DOCUMENTS, &[Number(target.0), Number(cache.0), List(&keys(hashes))]).await?;
    rows.iter().map(read_published_document).collect()
}

pub(crate) async fn list_published_documents(
    tx: &mut Transaction,
    target: TargetId,
    cache: CacheId,
    after: (&str, Option<StorePathHash>),
    through: &str,
    limit: u32,
) -> Result<Vec<PublishedDocument>> {
    let (name, hash) = after;
    let arguments = [
        Number(target.0),
        Number(cache.0),
        Text(name),
        Bytes(after_bytes(hash.as_ref())),
        Text(through),
        Number(i64::from(limit)),
    ];
    tx.rows(LIST_DOCUMENTS, &arguments).await?.iter().map(read_published_document).collect()
}

pub(crate) async fn find_needed_documents(
    tx: &mut Transaction,
    target: TargetId,
    cache: CacheId,
    documents: &[(StorePathHash, DocumentName)],
) -> Result<Vec<(StorePathHash, DocumentName)>> {
    if documents.is_empty() {
        return Ok(Vec::new());
    }
    let arguments = [Number(target.0), Number(cache.0), Text(&name_records(documents))];
    let rows = tx.rows(FIND_NEEDED, &arguments).await?;
    let mut needed = Vec::new();
    for row in &rows {
        if row.column::<Option<&[u8]>>(0, TABLE)?.is_some() {
            needed.push((read_hash(row, 0, TABLE)?, read_name(row.column(1, TABLE)?)?));
        }
    }
    Ok(needed)
}

pub(crate) async fn write_published_documents(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[PublishedDocument],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    if documents.is_empty() {
        return Ok(());
    }
    let mut records = Records::default();
    for PublishedDocument { hash, name, digest, file } in documents {
        records.row().bytes(hash.as_bytes()).text(Some(&name.to_string())).bytes(digest);
        records.optional_bytes(file.as_ref().map(|file| file.digest.as_slice()));
        records.text(file.as_ref().and_then(|file| file.etag.as_deref()));
    }
    let arguments = [Number(lease.target.0), Number(cache.0), Text(&records.finish())];
    tx.run(WRITE_DOCUMENTS, &arguments).await.map(drop)
}

pub(crate) async fn forget_published_documents(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[(StorePathHash, DocumentName)],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    if documents.is_empty() {
        return Ok(());
    }
    let arguments = [Number(lease.target.0), Number(cache.0), Text(&name_records(documents))];
    tx.run(FORGET_DOCUMENTS, &arguments).await.map(drop)
}

pub(crate) async fn note_document_drift(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[(StorePathHash, DocumentName)],
    at: UnixSeconds,
    scan: Option<&CacheScan>,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    if !documents.is_empty() {
        let records = name_records(documents);
        let arguments = [Number(lease.target.0), Number(cache.0), Text(&records), Bytes(&[])];
        tx.run(DRIFTED, &arguments).await?;
        let mut marks: Vec<_> = documents.iter().map(|(hash, _)| (cache, *hash, at)).collect();
        marks.sort_unstable();
        marks.dedup();
        note_objects(tx, lease, &marks, NOTE_PENDING).await?;
    }
    if scan.is_none() {
        return Ok(());
    }
    move_scan(tx, lease, cache, scan, documents.len() as u64, Some(at)).await
}

fn name_records(documents: &[(StorePathHash, DocumentName)]) -> String {
    let mut records = Records::default();
    for (hash, name) in documents {
        records.row().bytes(hash.as_bytes()).text(Some(&name.to_string()));
    }
    records.finish()
}

fn read_published_document(row: &Row) -> Result<PublishedDocument> {
    let digest: Option<Vec<u8>> = row.column(3, TABLE)?;
    let etag = row.column(4, TABLE)?;
    Ok(PublishedDocument {
        hash: read_hash(row, 0, TABLE)?,
        name: read_name(row.column(1, TABLE)?)?,
        digest: row.column(2, TABLE)?,
        file: digest.map(|digest| PublishedFile { digest, etag }),
    })
}

fn read_name(text: &str) -> Result<DocumentName> {
    text.parse().map_err(|error| corrupt(TABLE, error))
}
