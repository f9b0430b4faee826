//! Before something is written to a target, and after.

use super::{DROP_PENDING, KEYS_MAX, hold_lease, keys, nar_of};
use crate::Result;
use crate::columns::signed;
use crate::contract::{CacheId, UnixSeconds};
use crate::publish::contract::{Lease, PublishDone, PublishIntent, PublishedNar};
use crate::publish::sql::{Argument, Sql, Transaction, both};

use Argument::{Bytes, List, Number, OptionalBytes, OptionalText};

const DROP_REMOVED: Sql = both!(
    "DELETE FROM publish_removed WHERE target = $1 AND cache = $2 AND hash IN",
    list 3,
    ""
);
// What is there stays there while it is written anew.
const BEGIN_OBJECT: Sql = both!(
    "INSERT INTO publish_objects (target, cache, hash, state, nar, tag, digest, upstream)
     VALUES ($1, $2, $3, 0, $4, $5, $6, 0)
     ON CONFLICT (target, cache, hash) DO UPDATE SET
         state = CASE WHEN publish_objects.state = 1 THEN 1 ELSE 0 END"
);
const BEGIN_NAR: Sql = both!(
    "INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size) VALUES ($1, $2, $3, $4, $5, 0, $6)
     ON CONFLICT (target, cache, nar, tag) DO UPDATE SET path = excluded.path, delete_after = NULL"
);
const ADD_REFS: Sql = both!(
    "INSERT INTO publish_refs (target, cache, reference, referrer) SELECT t.id, $2, k.item, $4
     FROM", list 3, "AS k CROSS JOIN publish_targets AS t WHERE t.id = $1
     ON CONFLICT (target, cache, reference, referrer) DO NOTHING"
);
const NOTE_UPLOADED: Sql = both!(
    "UPDATE publish_nars SET uploaded = 1, file_size = $5, file_hash = $6, etag = $7
     WHERE target = $1 AND cache = $2 AND nar = $3 AND tag = $4"
);
const FINISH_OBJECT: Sql = both!(
    "UPDATE publish_objects SET state = 1, nar = $4, tag = $5, digest = $6, etag = $7, upstream = $8
     WHERE target = $1 AND cache = $2 AND hash = $3"
);
const DROP_OLD_REFS: Sql = both!(
    "DELETE FROM publish_refs WHERE target = $1 AND cache = $2 AND referrer = $3 AND reference NOT IN",
    list 4,
    ""
);
const LEAVE_NAR: Sql = both!(
    "UPDATE publish_nars SET delete_after = $6, path = $3
     WHERE target = $1 AND cache = $2 AND nar = $4 AND tag = $5 AND delete_after IS NULL
         AND NOT EXISTS (SELECT 1 FROM publish_objects AS o WHERE o.target = publish_nars.target
             AND o.cache = publish_nars.cache AND o.nar = publish_nars.nar AND o.tag = publish_nars.tag)"
);

pub(crate) async fn begin_publishing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    intents: &[PublishIntent],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for intent in intents {
        let (hash, nar, tag) =
            (Bytes(intent.hash.as_bytes()), Bytes(intent.nar.0.as_bytes()), Bytes(intent.nar.1.as_bytes()));
        tx.run(BEGIN_OBJECT, &[target, cache, hash, nar, tag, Bytes(&[])]).await?;
        tx.run(BEGIN_NAR, &[target, cache, nar, tag, hash, Number(signed(intent.file_size))]).await?;
        if !intent.references.is_empty() {
            tx.run(ADD_REFS, &[target, cache, List(&keys(&intent.references)), hash]).await?;
        }
    }
    Ok(())
}

pub(crate) async fn note_uploaded(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    nars: &[PublishedNar],
) -> Result<()> {
    hold_lease(tx, lease).await?;
    for nar in nars {
        let arguments = [
            Number(lease.target.0),
            Number(cache.0),
            Bytes(nar.nar.0.as_bytes()),
            Bytes(nar.nar.1.as_bytes()),
            Number(signed(nar.file_size)),
            OptionalBytes(nar.file_hash.as_ref().map(|hash| hash.as_bytes().as_slice())),
            OptionalText(nar.etag.as_deref()),
        ];
        tx.run(NOTE_UPLOADED, &arguments).await?;
    }
    Ok(())
}

pub(crate) async fn finish_publishing(
    tx: &mut impl Transaction,
    lease: &Lease,
    cache: CacheId,
    done: &[PublishDone],
    delete_after: UnixSeconds,
) -> Result<()> {
    hold_lease(tx, lease).await?;
    let place = (lease.target, cache);
    let (target, cache) = (Number(lease.target.0), Number(cache.0));
    for done in done {
        let hash = Bytes(done.hash.as_bytes());
        let before = nar_of(tx, place, &done.hash).await?;
        let arguments = [
            target,
            cache,
            hash,
            Bytes(done.nar.0.as_bytes()),
            Bytes(done.nar.1.as_bytes()),
            Bytes(&done.digest),
            OptionalText(done.etag.as_deref()),
            Number(i64::from(done.upstream)),
        ];
        tx.run(FINISH_OBJECT, &arguments).await?;
        tx.run(DROP_OLD_REFS, &[target, cache, hash, List(&keys(&done.references))]).await?;
        if let Some((nar, tag)) = before.filter(|before| *before != done.nar) {
            let (nar, tag) = (Bytes(nar.as_bytes()), Bytes(tag.as_bytes()));
            tx.run(LEAVE_NAR, &[target, cache, hash, nar, tag, Number(delete_after)]).await?;
        }
    }
    let hashes: Vec<&[u8]> = done.iter().map(|done| done.hash.as_bytes().as_slice()).collect();
    for page in hashes.chunks(KEYS_MAX) {
        tx.run(DROP_PENDING, &[target, cache, List(page)]).await?;
        tx.run(DROP_REMOVED, &[target, cache, List(page)]).await?;
    }
    Ok(())
}
