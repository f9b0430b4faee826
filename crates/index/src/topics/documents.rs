//! Documents: build logs and build traces, by their address below a cache.
//!
//! A document belongs to objects. A log belongs to the objects that name its derivation as their
//! deriver; a trace belongs to the object that the output became. It goes with the last of them: at
//! once when that one is removed by hand, and with an expire job of the cache otherwise.
//! Removing a derivation by hand removes its log too, whether or not the cache has the derivation.

use async_trait::async_trait;
use dormer_format::EncodingTag;
use dormer_nix::{BuildId, BuildTrace, DocumentName, NarHash, StorePathHash};

use super::{journal_notes, outbox};
use crate::columns::{corrupt, nar_hash, signed, tag, unsigned};
use crate::contract::{
    CacheId, DocumentIndex, JournalSubject, NewDocument, StoredDocument, TraceOutcome, UnixSeconds,
};
use crate::object_conflict::merge_signatures;
use crate::sql::Argument::{Bytes, Number, OptionalBytes, OptionalText, Text};
use crate::sql::{Sql, Transaction, both, damaged};
use crate::sql_index::{LOCK_LOG, Lock, SqlIndex, Write, log_key};
use crate::{Error, Result};

const TABLE: &str = "documents";

/// Kinds in the table.
pub(crate) const LOG: i64 = 1;
pub(crate) const TRACE: i64 = 2;

/// Most traces of one path. A path that a thousand derivations become is a path that has not
/// changed for years; without a bound, one small path could bring any number of documents.
const PATH_TRACES_MAX: i64 = 1_024;

macro_rules! write_row {
    ($conflict:literal) => {
        both!(concat!(
            "INSERT INTO documents (cache, kind, owner, written_at, size, encoding, digest, name, body)
             SELECT c.id, $2, $3, $4, $5, $6, $7, $8, $9 FROM caches AS c WHERE c.id = $1 AND c.deleted_at IS NULL
             ON CONFLICT (cache, name) DO ",
            $conflict
        ))
    };
}
const WRITE: Sql = write_row!(
    "UPDATE SET owner = excluded.owner, written_at = excluded.written_at,
         size = excluded.size, encoding = excluded.encoding, digest = excluded.digest, body = excluded.body"
);
const ADD: Sql = write_row!("NOTHING");
pub(crate) const FIND: Sql = both!(
    "SELECT size, encoding, body FROM documents WHERE cache = $1 AND name = $2
         AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)"
);
pub(crate) const HAS: Sql = both!("SELECT d.cache FROM documents AS d WHERE d.cache = $1 AND d.name = $2");
/// Whether the cache is there, what it has under this name, whether it has the path of that and the
/// path `$3`, and how many documents `$3` has.
pub(crate) const LOOK: Sql = both!(
    "SELECT c.id, d.body,
         (SELECT o.cache FROM objects AS o WHERE o.cache = $1 AND o.hash = d.owner),
         (SELECT o.cache FROM objects AS o WHERE o.cache = $1 AND o.hash = $3),
         (SELECT COUNT(*) FROM documents AS t WHERE t.cache = $1 AND t.owner = $3)
     FROM (SELECT 1) AS one
     LEFT JOIN caches AS c ON c.id = $1 AND c.deleted_at IS NULL
     LEFT JOIN documents AS d ON d.cache = $1 AND d.name = $2"
);
/// `$2` is a path that is no longer there, `$3` and `$4` are hash and base name of its deriver. A
/// deriver that other objects name keeps its log.
pub(crate) const FORGET: Sql = both!(
    "DELETE FROM documents WHERE cache = $1 AND owner IN ($2, $3) AND (kind = 2 AND owner = $2
         OR kind = 1 AND owner = $3 AND NOT EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1 AND o.deriver = $4))
     RETURNING name"
);

/// The logs of a derivation that is removed by hand.
pub(crate) const FIND_LOGS: Sql =
    both!("SELECT name FROM documents WHERE cache = $1 AND owner = $2 AND kind = 1");
pub(crate) const DELETE_LOGS: Sql =
    both!("DELETE FROM documents WHERE cache = $1 AND owner = $2 AND kind = 1 RETURNING name");

/// The outputs of a log's derivation. The triggers that follow [`WRITE`] find them in the same way.
pub(crate) const OUTPUTS: Sql =
    both!("SELECT o.hash FROM objects AS o WHERE o.cache = $1 AND o.deriver = $2 LIMIT 256");

/// `$2` is a build id. Looks through its newest NARs below `$3`, `$4` at most, for one of which the
/// cache has an object. NARs of other caches with the same build id count too, so their number is
/// bounded. The first column is the last NAR that was looked at, if more may follow. Asked with
/// EXISTS, PostgreSQL would gather all objects of the cache first. Asked with `build_id = $2`, it
/// would look through the newest NARs for a rare build id.
pub(crate) const FIND_DEBUG_NAR: Sql = both!(concat!(
    "SELECT
         (SELECT CASE WHEN count(*) = $4 THEN min(newest.nar) END FROM
             (SELECT nar FROM build_ids WHERE build_id >= $2 AND (build_id, nar) < ($2, $3)
                 ORDER BY build_id DESC, nar DESC LIMIT $4) AS newest),
         found.hash, found.tag
     FROM (SELECT 1) AS one LEFT JOIN
         (SELECT n.hash, n.tag FROM
             (SELECT nar FROM build_ids WHERE build_id >= $2 AND (build_id, nar) < ($2, $3)
                 ORDER BY build_id DESC, nar DESC LIMIT $4) AS newest
             CROSS JOIN nars AS n WHERE n.id = newest.nar AND ",
    damaged!("n"),
    " IS NULL AND (SELECT o.cache FROM objects AS o WHERE o.nar = n.id AND o.cache = $1 LIMIT 1) IS NOT NULL
             AND EXISTS (SELECT 1 FROM caches WHERE id = $1 AND deleted_at IS NULL)
         ORDER BY newest.nar DESC LIMIT 1) AS found ON true"
));
/// NARs that the first look for debug info goes through, and each further one. Another tenant may
/// push NARs with any build id: debug info is found behind 65,600 of them.
pub(crate) const DEBUG_LOOKS: [i64; 17] = {
    let mut looks = [4_096; 17];
    looks[0] = 64;
    looks
};

#[async_trait]
impl DocumentIndex for SqlIndex {
    async fn put_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Result<()> {
        let locks = [Lock::CacheShared(cache.0)];
        self.write(Write::from("store a document").with_locks(&locks), async |mut tx| {
            if write(&mut tx, WRITE, cache, document, at).await? { Ok(()) } else { Err(Error::CacheGone) }
        })
        .await
    }

    async fn add_document(&self, cache: CacheId, document: &NewDocument, at: UnixSeconds) -> Result<bool> {
        let locks = [Lock::CacheShared(cache.0)];
        let text = document.name.to_string();
        self.write(Write::from("add a document").with_locks(&locks), async |mut tx| {
            if write(&mut tx, ADD, cache, document, at).await? {
                return Ok(true);
            }
            // It is there, or the cache is not.
            let found = tx.optional(FIND, &[Number(cache.0), Text(&text)]).await?;
            found.map(|_| false).ok_or(Error::CacheGone)
        })
        .await
    }

    async fn merge_trace(
        &self,
        cache: CacheId,
        trace: &BuildTrace,
        known_keys: &[String],
        at: UnixSeconds,
    ) -> Result<TraceOutcome> {
        let name = DocumentName::Trace(trace.key.clone());
        let text = name.to_string();
        let locks = [Lock::CacheShared(cache.0), name_lock(cache, &text)];
        self.write(Write::from("store a build trace").with_locks(&locks), async |mut tx| {
            let hash = trace.out_path.hash();
            let row = tx.one(LOOK, &[Number(cache.0), Text(&text), Bytes(hash.as_bytes())]).await?;
            let is_there = |column| Ok(row.column::<Option<i64>>(column, "objects")?.is_some());
            if row.column::<Option<i64>>(0, "caches")?.is_none() {
                return Err(Error::CacheGone);
            }
            let mut merged = trace.clone();
            merged.sigs = merge_signatures(&[], &trace.sigs, known_keys);
            let mut is_more_of_path = true;
            if let Some(body) = row.column::<Option<Vec<u8>>>(1, TABLE)? {
                let present =
                    BuildTrace::parse_stored(&trace.key, &body).map_err(|error| corrupt(TABLE, error))?;
                if present.out_path == trace.out_path {
                    let sigs = merge_signatures(&present.sigs, &trace.sigs, known_keys);
                    if sigs == present.sigs {
                        return Ok(TraceOutcome::Unchanged);
                    }
                    merged = BuildTrace { sigs, ..present };
                    is_more_of_path = false;
                } else if is_there(2)? || !is_there(3)? {
                    return Ok(TraceOutcome::Kept(present.out_path));
                }
                // What leads to a path that is not here gives way to what leads to one that is.
            }
            let body = merged.to_json(&[]).into_bytes();
            if is_more_of_path && row.column::<i64>(4, TABLE)? >= PATH_TRACES_MAX {
                return Ok(TraceOutcome::Full);
            }
            let (size, owner) = (body.len() as u64, merged.out_path.hash());
            let document = NewDocument { name: name.clone(), owner, size, encoding: None, body };
            if write(&mut tx, WRITE, cache, &document, at).await? {
                Ok(TraceOutcome::Written)
            } else {
                Err(Error::CacheGone)
            }
        })
        .await
    }

    async fn find_document(&self, cache: CacheId, name: &DocumentName) -> Result<Option<StoredDocument>> {
        let text = name.to_string();
        self.read("find a document", async |mut tx| {
            let Some(row) = tx.optional(FIND, &[Number(cache.0), Text(&text)]).await? else {
                return Ok(None);
            };
            Ok(Some(StoredDocument {
                size: unsigned(TABLE, row.column(0, TABLE)?)?,
                encoding: row.column(1, TABLE)?,
                body: row.column(2, TABLE)?,
            }))
        })
        .await
    }

    async fn has_document(&self, cache: CacheId, name: &DocumentName) -> Result<bool> {
        let text = name.to_string();
        self.read("look for a document", async |mut tx| {
            Ok(tx.optional(HAS, &[Number(cache.0), Text(&text)]).await?.is_some())
        })
        .await
    }

    async fn find_debug_nar(
        &self,
        cache: CacheId,
        build_id: &BuildId,
    ) -> Result<Option<(NarHash, EncodingTag)>> {
        self.read("find debug info", async |mut tx| {
            let mut before = i64::MAX;
            for limit in DEBUG_LOOKS {
                let key = [Number(cache.0), Bytes(build_id.as_bytes()), Number(before), Number(limit)];
                let row = tx.one(FIND_DEBUG_NAR, &key).await?;
                if let Some(hash) = row.column::<Option<&[u8]>>(1, "nars")? {
                    return Ok(Some((nar_hash(hash)?, tag(row.column(2, "nars")?)?)));
                }
                let Some(last) = row.column(0, "build_ids")? else { break };
                before = last;
            }
            Ok(None)
        })
        .await
    }
}

/// Writers of one name wait for each other, whatever they name as its owner.
fn name_lock(cache: CacheId, name: &str) -> Lock {
    let digest = NarHash::digest(name.as_bytes());
    Lock::object(cache.0, digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// Writes a document by [`WRITE`] or [`ADD`]; returns whether it did. Triggers note it for the
/// journal, and its objects in the outbox.
async fn write(
    tx: &mut Transaction,
    sql: Sql,
    cache: CacheId,
    document: &NewDocument,
    at: UnixSeconds,
) -> Result<bool> {
    let NewDocument { name, owner, size, encoding, body } = document;
    let (text, digest) = (name.to_string(), NarHash::digest(body));
    let kind = match name {
        DocumentName::Log(_) => LOG,
        DocumentName::Trace(_) => TRACE,
        DocumentName::DebugInfo(_) => panic!("debug info is in NARs"),
    };
    let row = [
        Number(cache.0),
        Number(kind),
        Bytes(owner.as_bytes()),
        Number(at),
        Number(signed(*size)),
        OptionalText(encoding.as_deref()),
        Bytes(digest.as_bytes()),
        Text(&text),
        Bytes(body),
    ];
    Ok(tx.run(sql, &row).await? > 0)
}

/// Forgets what belonged to an object alone that is no longer there. The caller holds the locks of
/// the cache and the object.
pub(crate) async fn forget(
    tx: &mut Transaction,
    cache: CacheId,
    hash: &StorePathHash,
    deriver: Option<&str>,
) -> Result<()> {
    let derivation = deriver.and_then(|deriver| deriver.get(..32)?.parse::<StorePathHash>().ok());
    let owner = derivation.as_ref().map(|hash| hash.as_bytes().as_slice());
    let arguments = [Number(cache.0), Bytes(hash.as_bytes()), OptionalBytes(owner), OptionalText(deriver)];
    if let Some(deriver) = deriver {
        // A commit of another object that names the derivation may not have ended. Only a statement
        // that begins after it sees that object.
        tx.run(LOCK_LOG, &[Number(log_key(cache.0, deriver))]).await?;
    }
    for row in tx.rows(FORGET, &arguments).await? {
        journal_notes::note(tx, &JournalSubject::Document(cache, row.column(0, TABLE)?)).await?;
    }
    Ok(())
}

/// Forgets the logs of a derivation, whichever objects name it, and tells the followers of these
/// objects; returns whether there was one. The caller holds the locks of the cache and the object.
///
/// A log that is being put meanwhile stays, as if it came a moment later. A lock for its writer
/// would change nothing: the writer would wait, and then store the log all the same.
pub(crate) async fn forget_logs(
    tx: &mut Transaction,
    cache: CacheId,
    derivation: &StorePathHash,
    at: UnixSeconds,
) -> Result<bool> {
    let arguments = [Number(cache.0), Bytes(derivation.as_bytes())];
    let rows = tx.rows(FIND_LOGS, &arguments).await?;
    let mut names: Vec<String> = rows.iter().map(|row| row.column(0, TABLE)).collect::<Result<_>>()?;
    // In one order for all removals. The database would walk through the cache to sort.
    names.sort_unstable();
    for name in &names {
        // Before the rows are deleted, because a removal of an output takes the two in this order.
        // And a commit of an output may not have ended: its object is to be told too.
        tx.run(LOCK_LOG, &[Number(log_key(cache.0, deriver_of(name)))]).await?;
    }
    let gone = tx.rows(DELETE_LOGS, &arguments).await?;
    let gone: Vec<String> = gone.iter().map(|row| row.column(0, TABLE)).collect::<Result<_>>()?;
    tell_outputs(tx, cache, &gone, at).await?;
    let is_gone = !gone.is_empty();
    for name in gone {
        journal_notes::note(tx, &JournalSubject::Document(cache, name)).await?;
    }
    Ok(is_gone)
}

/// Tells followers of the objects whose logs go: targets have these logs too.
pub(crate) async fn tell_outputs(
    tx: &mut Transaction,
    cache: CacheId,
    logs: &[String],
    at: UnixSeconds,
) -> Result<()> {
    let mut outputs: Vec<Vec<u8>> = Vec::new();
    for log in logs {
        for row in &tx.rows(OUTPUTS, &[Number(cache.0), Text(deriver_of(log))]).await? {
            outputs.push(row.column(0, "objects")?);
        }
    }
    if outputs.is_empty() {
        return Ok(());
    }
    let keys: Vec<&[u8]> = outputs.iter().map(Vec::as_slice).collect();
    outbox::note_changes(tx, cache, &keys, at).await
}

/// The derivation of a log, as objects name it.
fn deriver_of(log: &str) -> &str {
    log.strip_prefix("log/").unwrap_or_default()
}
