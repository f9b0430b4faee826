//! Before something is written to a target, and after.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;

use super::contract::{
    BringIndex, Lease, PublishDone, PublishIntent, PublishedDocument, PublishedNar, WrittenDocument,
};
use super::documents::{Document, forget_documents, write_documents};
use super::pending::DROP_PENDING;
use super::published::nars_of;
use super::records::{Records, records};
use super::targets::hold_lease;
use crate::Result;
use crate::columns::signed;
use crate::contract::{CacheId, UnixSeconds};
use crate::sql::{Argument, Sql, Transaction, both};
use crate::sql_index::SqlIndex;

use Argument::{Bytes, List, Number, Text};

pub(super) const DROP_REMOVED: Sql = both!(
    "DELETE FROM publish_removed WHERE (target, cache, hash) IN
         (SELECT k.target, k.cache, k.item FROM",
    keyed 3,
    "AS k)"
);
// What is there stays there while it is written again.
pub(super) const BEGIN_OBJECTS: Sql = records!(
    "INSERT INTO publish_objects (target, cache, hash, state, nar, tag, digest, upstream)
     SELECT $1, $2, k.hash, 0, k.nar, k.tag, $4, 0 FROM", 3 { hash: bytes 0, nar: bytes 1, tag: bytes 2 }, "AS k WHERE true
     ON CONFLICT (target, cache, hash) DO UPDATE SET
         state = CASE WHEN publish_objects.state = 1 THEN 1 ELSE 0 END, referrers_taken = 0,
         referrers_after = NULL"
);
// Several objects may have one NAR.
pub(super) const BEGIN_NARS: Sql = records!(
    "INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size)
     SELECT $1, $2, k.nar, k.tag, k.hash, 0, k.file_size FROM",
    3 { nar: bytes 0, tag: bytes 1, hash: bytes 2, file_size: number 3 }, "AS k WHERE true
     ON CONFLICT (target, cache, nar, tag) DO UPDATE SET path = excluded.path, delete_after = NULL"
);
pub(super) const ADD_REFS: Sql = records!(
    "INSERT INTO publish_refs (target, cache, reference, referrer)
     SELECT $1, $2, k.reference, k.referrer FROM", 3 { reference: bytes 0, referrer: bytes 1 }, "AS k WHERE true
     ON CONFLICT (target, cache, reference, referrer) DO NOTHING"
);
pub(super) const NOTE_UPLOADED: Sql = records!(
    "UPDATE publish_nars SET uploaded = 1, file_size = k.file_size, file_hash = k.file_hash, etag = k.etag FROM",
    keyed 3 { nar: bytes 0, tag: bytes 1, file_size: number 2, file_hash: bytes 3, etag: text 4 }, "AS k
     WHERE publish_nars.target = k.target AND publish_nars.cache = k.cache AND publish_nars.nar = k.nar AND publish_nars.tag = k.tag"
);
pub(super) const FINISH_OBJECTS: Sql = records!(
    "UPDATE publish_objects SET state = 1, nar = k.nar, tag = k.tag, digest = k.digest, etag = k.etag, upstream = k.upstream
     FROM", keyed 3 { hash: bytes 0, nar: bytes 1, tag: bytes 2, digest: bytes 3, etag: text 4, upstream: number 5 }, "AS k
     WHERE publish_objects.target = k.target AND publish_objects.cache = k.cache AND publish_objects.hash = k.hash"
);
pub(super) const FIND_REFS: Sql = both!(
    "SELECT r.reference, r.referrer FROM", keyed 3, "AS k CROSS JOIN publish_refs AS r
     WHERE r.target = k.target AND r.cache = k.cache AND r.referrer = k.item"
);
pub(super) const DROP_REFS: Sql = records!(
    "DELETE FROM publish_refs WHERE (target, cache, reference, referrer) IN
         (SELECT k.target, k.cache, k.reference, k.referrer FROM", keyed 3 { reference: bytes 0, referrer: bytes 1 }, "AS k)"
);
pub(super) const LEAVE_NARS: Sql = records!(
    "UPDATE publish_nars SET delete_after = $4, path = k.hash FROM", keyed 3 { hash: bytes 0, nar: bytes 1, tag: bytes 2 }, "AS k
     WHERE publish_nars.target = k.target AND publish_nars.cache = k.cache AND publish_nars.nar = k.nar AND publish_nars.tag = k.tag
         AND publish_nars.delete_after IS NULL
         AND (SELECT o.hash FROM publish_objects AS o WHERE o.target = $1 AND o.cache = $2
             AND o.nar = publish_nars.nar AND o.tag = publish_nars.tag LIMIT 1) IS NULL"
);

#[async_trait]
impl BringIndex for SqlIndex {
    async fn begin_publishing(&self, lease: &Lease, cache: CacheId, intents: &[PublishIntent]) -> Result<()> {
        self.write("begin to publish", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            begin_objects(&mut tx, lease, cache, intents).await
        })
        .await
    }

    async fn note_uploaded(&self, lease: &Lease, cache: CacheId, nars: &[PublishedNar]) -> Result<()> {
        self.write("note published NARs", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            let mut records = Records::default();
            for nar in nars {
                let (hash, tag) = (nar.nar.0.as_bytes(), nar.nar.1.as_bytes());
                records.row().bytes(hash).bytes(tag).number(signed(nar.file_size));
                records.optional_bytes(nar.file_hash.as_ref().map(|hash| hash.as_bytes().as_slice()));
                records.text(nar.etag.as_deref());
            }
            let arguments = [Number(lease.target.0), Number(cache.0), Text(&records.finish())];
            tx.run(NOTE_UPLOADED, &arguments).await.map(drop)
        })
        .await
    }

    async fn finish_publishing(
        &self,
        lease: &Lease,
        cache: CacheId,
        done: &[PublishDone],
        delete_after: UnixSeconds,
    ) -> Result<()> {
        self.write("note what was published", async |mut tx| {
            hold_lease(&mut tx, lease).await?;
            finish_objects(&mut tx, lease, cache, done, delete_after).await
        })
        .await
    }
}

pub(super) async fn begin_objects(
    tx: &mut Transaction,
    lease: &Lease,
    id: CacheId,
    intents: &[PublishIntent],
) -> Result<()> {
    let (target, cache) = (Number(lease.target.0), Number(id.0));
    let (mut objects, mut nars, mut references) =
        (Records::default(), Records::default(), Records::default());
    let mut named = HashSet::new();
    let mut any_reference = false;
    let mut documents = Vec::new();
    for PublishIntent { hash, nar: (nar, tag), file_size, references: refers_to, documents: names } in intents
    {
        objects.row().bytes(hash.as_bytes()).bytes(nar.as_bytes()).bytes(tag.as_bytes());
        if named.insert((nar, tag)) {
            nars.row().bytes(nar.as_bytes()).bytes(tag.as_bytes()).bytes(hash.as_bytes());
            nars.number(signed(*file_size));
        }
        for reference in refers_to {
            any_reference = true;
            references.row().bytes(reference.as_bytes()).bytes(hash.as_bytes());
        }
        documents.extend(names.iter().cloned().map(|name| PublishedDocument {
            hash: *hash,
            name,
            digest: Vec::new(),
            file: None,
        }));
    }
    tx.run(BEGIN_OBJECTS, &[target, cache, Text(&objects.finish()), Bytes(&[])]).await?;
    tx.run(BEGIN_NARS, &[target, cache, Text(&nars.finish())]).await?;
    if any_reference {
        tx.run(ADD_REFS, &[target, cache, Text(&references.finish())]).await?;
    }
    write_documents(tx, lease, id, &documents).await
}

pub(super) async fn finish_objects(
    tx: &mut Transaction,
    lease: &Lease,
    id: CacheId,
    done: &[PublishDone],
    delete_after: UnixSeconds,
) -> Result<()> {
    if done.is_empty() {
        return Ok(());
    }
    let hashes: Vec<&[u8]> = done.iter().map(|done| done.hash.as_bytes().as_slice()).collect();
    let before = nars_of(tx, (lease.target, id), &hashes).await?;
    let (target, cache) = (Number(lease.target.0), Number(id.0));
    let mut objects = Records::default();
    for done in done {
        objects.row().bytes(done.hash.as_bytes()).bytes(done.nar.0.as_bytes()).bytes(done.nar.1.as_bytes());
        objects.bytes(&done.digest).text(done.etag.as_deref()).number(i64::from(done.upstream));
    }
    tx.run(FINISH_OBJECTS, &[target, cache, Text(&objects.finish())]).await?;
    let by_hash: HashMap<&[u8], &PublishDone> =
        done.iter().map(|done| (done.hash.as_bytes().as_slice(), done)).collect();
    let mut old_refs = Records::default();
    let mut any_ref = false;
    for row in &tx.rows(FIND_REFS, &[target, cache, List(&hashes)]).await? {
        let (reference, referrer): (&[u8], &[u8]) =
            (row.column(0, "publish_refs")?, row.column(1, "publish_refs")?);
        let refers = by_hash
            .get(referrer)
            .is_some_and(|done| done.references.iter().any(|now| now.as_bytes() == reference));
        if !refers {
            any_ref = true;
            old_refs.row().bytes(reference).bytes(referrer);
        }
    }
    if any_ref {
        tx.run(DROP_REFS, &[target, cache, Text(&old_refs.finish())]).await?;
    }
    let mut left = Records::default();
    let mut any_left = false;
    for (hash, (nar, tag)) in &before {
        if by_hash.get(hash.as_bytes().as_slice()).is_some_and(|done| done.nar != (*nar, *tag)) {
            any_left = true;
            left.row().bytes(hash.as_bytes()).bytes(nar.as_bytes()).bytes(tag.as_bytes());
        }
    }
    if any_left {
        tx.run(LEAVE_NARS, &[target, cache, Text(&left.finish()), Number(delete_after)]).await?;
    }
    tx.run(DROP_PENDING, &[target, cache, List(&hashes)]).await?;
    tx.run(DROP_REMOVED, &[target, cache, List(&hashes)]).await?;
    let documents: Vec<PublishedDocument> = done
        .iter()
        .flat_map(|done| done.documents.iter().cloned().map(|document| (done.hash, document)))
        .map(|(hash, WrittenDocument { name, digest, file })| PublishedDocument {
            hash,
            name,
            digest,
            file: Some(file),
        })
        .collect();
    write_documents(tx, lease, id, &documents).await?;
    let stale: Vec<Document<'_>> =
        done.iter().flat_map(|done| done.stale_documents.iter().map(|name| (&done.hash, name))).collect();
    forget_documents(tx, lease, id, &stale).await
}
