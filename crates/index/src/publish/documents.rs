//! Documents of the lab that belong to objects, and what is written down of those in a target.

use std::collections::HashSet;

use async_trait::async_trait;
use dormer_nix::{BuildId, DocumentName, StorePathHash};

use super::KEYS_MAX;
use super::contract::{
    DocumentRows, LabDocuments, Lease, OwnedDocument, PublishedDocument, PublishedDocumentIndex,
    PublishedFile, TargetId,
};
use super::pending::{NOTE_PENDING, note_objects};
use super::records::{Records, records};
use super::rows::{after_bytes, keys, read_hash};
use super::targets::hold_lease;
use crate::Result;
use crate::columns::{corrupt, unsigned};
use crate::contract::{CacheId, UnixSeconds};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, Text};

const TABLE: &str = "publish_documents";

/// An object and a document that it has.
pub(super) type Document<'a> = (&'a StorePathHash, &'a DocumentName);

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

#[async_trait]
impl PublishedDocumentIndex for SqlIndex {
    async fn find_lab_documents(
        &self,
        cache: CacheId,
        owners: &[StorePathHash],
        objects: &[StorePathHash],
        limit: u32,
    ) -> Result<LabDocuments> {
        assert!(owners.len().max(objects.len()) <= KEYS_MAX, "too many objects in one look-up");
        if owners.is_empty() && objects.is_empty() {
            return Ok(LabDocuments::default());
        }
        self.read("find documents of objects", async |mut tx| {
            let (cache, limit) = (Number(cache.0), Number(i64::from(limit)));
            let mut found = LabDocuments::default();
            if !owners.is_empty() {
                let rows = tx.rows(FIND_OWNED, &[cache, List(&keys(owners)), limit]).await?;
                found.owned = rows.iter().map(read_owned).collect::<Result<_>>()?;
            }
            if !objects.is_empty() {
                let rows = tx.rows(FIND_BUILD_IDS, &[cache, List(&keys(objects)), limit]).await?;
                found.build_ids = rows.iter().map(read_build_id).collect::<Result<_>>()?;
            }
            Ok(found)
        })
        .await
    }

    async fn published_documents(
        &self,
        target: TargetId,
        cache: CacheId,
        rows: DocumentRows<'_>,
    ) -> Result<Vec<PublishedDocument>> {
        let (target, cache) = (Number(target.0), Number(cache.0));
        self.read("find published documents", async |mut tx| {
            let rows = match rows {
                DocumentRows::Of(hashes) => {
                    assert!(hashes.len() <= KEYS_MAX, "too many objects in one look-up");
                    tx.rows(FIND_DOCUMENTS, &[target, cache, List(&keys(hashes))]).await?
                }
                DocumentRows::Page { after: (name, hash), through, limit } => {
                    let hash = Bytes(after_bytes(hash.as_ref()));
                    let limit = Number(i64::from(limit));
                    tx.rows(LIST_DOCUMENTS, &[target, cache, Text(name), hash, Text(through), limit]).await?
                }
            };
            rows.iter().map(read_published_document).collect()
        })
        .await
    }

    async fn take_documents(
        &self,
        lease: &Lease,
        cache: CacheId,
        documents: &[(StorePathHash, DocumentName)],
        at: UnixSeconds,
    ) -> Result<Vec<DocumentName>> {
        self.write("take documents from objects", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            // One of several that share a document is the last to have it.
            let mut taken: Vec<Document<'_>> = documents.iter().map(|(hash, name)| (hash, name)).collect();
            taken.sort_unstable_by(|a, b| a.1.cmp(b.1));
            let (mut last, mut others): (Vec<Document<'_>>, Vec<Document<'_>>) = (Vec::new(), Vec::new());
            for document in taken {
                match last.last() {
                    Some((_, name)) if *name == document.1 => others.push(document),
                    _ => last.push(document),
                }
            }
            forget_documents(&mut tx, lease, cache, &others).await?;
            let needed = find_needed(&mut tx, (lease.target, cache), &last).await?;
            // A link to debug info may lead to the NAR of an object that goes: another object's
            // next.
            let links: Vec<(StorePathHash, DocumentName)> = needed
                .iter()
                .filter(|(_, name)| matches!(name, DocumentName::DebugInfo(_)))
                .cloned()
                .collect();
            note_drifted(&mut tx, lease, cache, &links, at).await?;
            let needed: HashSet<&DocumentName> = needed.iter().map(|(_, name)| name).collect();
            last.retain(|(_, name)| !needed.contains(name));
            note_unwritten(&mut tx, lease, cache, &last).await?;
            Ok(last.into_iter().map(|(_, name)| name.clone()).collect())
        })
        .await
    }
}

/// Those of these documents that another object than the one given has, with such an object.
async fn find_needed(
    tx: &mut Transaction,
    (target, cache): (TargetId, CacheId),
    documents: &[Document<'_>],
) -> Result<Vec<(StorePathHash, DocumentName)>> {
    if documents.is_empty() {
        return Ok(Vec::new());
    }
    let records = name_records(documents);
    let rows = tx.rows(FIND_NEEDED, &[Number(target.0), Number(cache.0), Text(&records)]).await?;
    let mut needed = Vec::new();
    for row in &rows {
        if row.column::<Option<&[u8]>>(0, TABLE)?.is_some() {
            needed.push((read_hash(row, 0, TABLE)?, read_name(row.column(1, TABLE)?)?));
        }
    }
    Ok(needed)
}

/// Writes down documents that may be there from now on, or that are there.
pub(super) async fn write_documents(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[PublishedDocument],
) -> Result<()> {
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

/// Forgets documents that are gone, or that an object no longer has.
pub(super) async fn forget_documents(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[Document<'_>],
) -> Result<()> {
    if documents.is_empty() {
        return Ok(());
    }
    let arguments = [Number(lease.target.0), Number(cache.0), Text(&name_records(documents))];
    tx.run(FORGET_DOCUMENTS, &arguments).await.map(drop)
}

/// Writes down that documents may be missing.
async fn note_unwritten(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[Document<'_>],
) -> Result<()> {
    if documents.is_empty() {
        return Ok(());
    }
    let arguments = [Number(lease.target.0), Number(cache.0), Text(&name_records(documents)), Bytes(&[])];
    tx.run(DRIFTED, &arguments).await.map(drop)
}

/// Writes down that documents are not there, or not as they should be. Their objects have to be
/// looked at again.
pub(super) async fn note_drifted(
    tx: &mut Transaction,
    lease: &Lease,
    cache: CacheId,
    documents: &[(StorePathHash, DocumentName)],
    at: UnixSeconds,
) -> Result<()> {
    if documents.is_empty() {
        return Ok(());
    }
    let drifted: Vec<Document<'_>> = documents.iter().map(|(hash, name)| (hash, name)).collect();
    note_unwritten(tx, lease, cache, &drifted).await?;
    let mut marks: Vec<_> = documents.iter().map(|(hash, _)| (cache, *hash, at)).collect();
    marks.sort_unstable();
    marks.dedup();
    note_objects(tx, lease, &marks, NOTE_PENDING).await
}

fn name_records(documents: &[Document<'_>]) -> String {
    let mut records = Records::default();
    for (hash, name) in documents {
        records.row().bytes(hash.as_bytes()).text(Some(&name.to_string()));
    }
    records.finish()
}

fn read_owned(row: &Row) -> Result<OwnedDocument> {
    Ok(OwnedDocument {
        owner: read_hash(row, 0, "documents")?,
        name: read_name(row.column(1, "documents")?)?,
        size: unsigned("documents", row.column(2, "documents")?)?,
        digest: row.column(3, "documents")?,
    })
}

fn read_build_id(row: &Row) -> Result<(StorePathHash, BuildId)> {
    let build_id: Vec<u8> = row.column(1, "build_ids")?;
    let build_id = BuildId::from_bytes(&build_id).map_err(|error| corrupt("build_ids", error))?;
    Ok((read_hash(row, 0, "objects")?, build_id))
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
