//! The job that removes what a cache keeps no longer: first what is too old, or not among the
//! newest of its name, then the least recently used until the rest fits the quota. At the end, the
//! documents that belong to no object any more, and the logs that are too old. A cache that keeps
//! everything keeps the logs of no object too: somebody may have copied them there alone.
//!
//! Algorithm
//! - An object may go only when no object of the cache refers to it (`object_refs` has a row for
//!   each reference). So referrers go first, and closures are whole after every step, with no mark
//!   to keep right between steps. A root is nothing but an object that may not go: used lately, or
//!   pinned.
//! - A pass walks the objects in the order of their last use. Removing an object frees its
//!   references, and the same step looks at these. One pass is therefore enough, unless a step
//!   frees more objects than it may remove; then another pass follows.
//! - For the quota, two passes add up the bytes of the objects and graces. If they are too many,
//!   graces are cut to a day first, and objects go after that, with a grace of a day.
//!
//! Invariants
//! - A step holds the cache's lock: no commit adds a referrer between its look and its removals. A
//!   use that is recorded meanwhile keeps its object: the removal looks at the time again.
//! - Memory: one page of objects, and those that it frees; nothing grows with the cache.
//!
//! Objects that refer to each other in a circle keep each other. Nix makes no such paths; they can
//! be removed by hand.

use dormer_nix::StorePathHash;

use super::contract::{ExpiryDefaults, JobLease, JobStep};
use super::work::{advance_job, finish_job, hold_job};
use crate::Result;
use crate::changes::Change;
use crate::collect::{ExaminedObject, ExaminedPage};
use crate::columns::{array, corrupt, signed, store_path, unpack_references, unsigned};
use crate::contract::{Cache, CacheId, CacheRules, ExpiryRule, ObjectPlace, ObjectRules, UnixSeconds};
use crate::publish::records::{Records, records};
use crate::rows::Row;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::topics::{documents, objects, outbox};

use Argument::{Bytes, List, Number, Numbers, Text};

/// An object that was used within this time stays, whatever the rules say: a client may rely on the
/// answer that the cache has it.
const SPARED_SECONDS: i64 = 2 * 3_600;

/// The shortest grace, for a cache over its quota.
const SHORT_GRACE_SECONDS: i64 = 86_400;

/// A step may remove this many times the rows of a page, with what it frees.
const CASCADE_FACTOR: usize = 4;

/// Objects that a step removes at most, with what it frees: each is six rows and more, and other
/// writers wait for the step on SQLite.
const REMOVED_MAX: usize = 512;

/// Logs that a step removes at most because of their age: each takes a look for its objects.
const OLD_LOGS_MAX: usize = 256;

const POLICY: Sql = both!(
    "SELECT retention_seconds, quota_bytes, keep_latest,
         EXISTS (SELECT 1 FROM publish_caches AS p WHERE p.cache = caches.id)
     FROM caches WHERE id = $1 AND deleted_at IS NULL"
);

/// What an object counts for a quota: its NAR as clients download it, its traces, and the log of
/// its derivation. The log counts for each output: where one goes and another stays, the log stays.
/// On PostgreSQL, `$collation` is that of the indexes by name; columns of objects have another.
macro_rules! counted_bytes {
    ($collation:literal) => {
        concat!(
            "n.file_size
             + CAST((SELECT coalesce(sum(d.size), 0) FROM documents AS d
                 WHERE d.cache = o.cache AND d.owner = o.hash AND d.kind = 2) AS BIGINT)
             + coalesce((SELECT l.size FROM documents AS l WHERE l.cache = o.cache AND l.name = ('log/' || o.deriver)",
            $collation,
            "), 0)"
        )
    };
}

/// What is looked at of an object: `$1` is the cache, `$2` is now, `$3` how many of a name are
/// kept. `$more` are columns behind these.
macro_rules! examine {
    ($collation:literal, $from:expr) => {
        examine!($collation, "", $from)
    };
    ($collation:literal, $more:literal, $from:expr) => {
        concat!(
            "SELECT o.hash, o.name, o.refs, o.nar, o.last_used_at, o.pushed_at, ",
            counted_bytes!($collation),
            ",
                 EXISTS (SELECT 1 FROM object_refs AS r WHERE r.cache = o.cache AND r.reference = o.hash),
                 EXISTS (SELECT 1 FROM pins AS p WHERE p.cache = o.cache AND p.hash = o.hash
                     AND (p.ends_at IS NULL OR p.ends_at > $2)),
                 (SELECT count(*) FROM (SELECT 1 FROM objects AS m WHERE m.cache = o.cache AND m.name = o.name",
            $collation,
            "
                     AND (m.created_at, m.id) > (o.created_at, o.id) LIMIT $3) AS newer), o.id",
            $more,
            "
             FROM ",
            $from
        )
    };
}
macro_rules! examine_page {
    ($collation:literal) => {
        concat!(
            examine!($collation, "objects AS o CROSS JOIN nars AS n"),
            " WHERE o.cache = $1 AND n.id = o.nar AND (o.last_used_at, o.id) > ($4, $5) AND o.last_used_at < $6
             ORDER BY o.last_used_at, o.id LIMIT $7"
        )
    };
}
pub(crate) const EXAMINE_PAGE: Sql =
    Sql { sqlite: examine_page!(""), postgres: examine_page!(" COLLATE \"C\"") };
pub(crate) const EXAMINE_FREED: Sql = Sql {
    sqlite: concat!(
        examine!("", "json_each($4) AS k CROSS JOIN objects AS o CROSS JOIN nars AS n"),
        " WHERE o.cache = $1 AND o.hash = unhex(k.value) AND n.id = o.nar"
    ),
    postgres: concat!(
        examine!(" COLLATE \"C\"", "objects AS o JOIN nars AS n ON n.id = o.nar"),
        " WHERE o.cache = $1 AND o.hash = ANY ($4::bytea[])"
    ),
};
macro_rules! examine_one {
    ($collation:literal) => {
        concat!(
            examine!(
                $collation,
                ", EXISTS (SELECT 1 FROM publish_caches AS published WHERE published.cache = o.cache)",
                "objects AS o CROSS JOIN nars AS n"
            ),
            " WHERE o.cache = $1 AND o.hash = $4 AND n.id = o.nar"
        )
    };
}
pub(crate) const EXAMINE_ONE: Sql =
    Sql { sqlite: examine_one!(""), postgres: examine_one!(" COLLATE \"C\"") };
// The plus keeps SQLite from reading all objects that are old. On PostgreSQL the rows are locked in
// the order of their hashes, as uses are: neither waits for the other in a circle.
pub(crate) const DELETE_OBJECTS: Sql = Sql {
    sqlite: "DELETE FROM objects WHERE cache = $1 AND +last_used_at < $2
             AND hash IN (SELECT unhex(value) FROM json_each($3)) RETURNING hash",
    postgres: "
        WITH held AS MATERIALIZED (
            SELECT o.id FROM objects AS o WHERE o.cache = $1 AND o.last_used_at < $2 AND o.hash = ANY ($3)
            ORDER BY o.hash FOR UPDATE)
        DELETE FROM objects USING held WHERE objects.id = held.id RETURNING objects.hash",
};
const WRITE_GRACES: Sql = records!(
    "INSERT INTO graces (cache, hash, nar, ends_at) SELECT $1, k.hash, k.nar, $2 FROM",
    3 { hash: bytes 0, nar: number 1 }, "AS k WHERE true
     ON CONFLICT (cache, hash, nar) DO UPDATE SET
         ends_at = CASE WHEN graces.ends_at < excluded.ends_at THEN excluded.ends_at ELSE graces.ends_at END"
);
macro_rules! sum_objects {
    ($collation:literal) => {
        concat!(
            "SELECT o.hash, ",
            counted_bytes!($collation),
            " FROM objects AS o CROSS JOIN nars AS n
             WHERE o.cache = $1 AND o.hash > $2 AND n.id = o.nar ORDER BY o.hash LIMIT $3"
        )
    };
}
pub(crate) const SUM_OBJECTS: Sql =
    Sql { sqlite: sum_objects!(""), postgres: sum_objects!(" COLLATE \"C\"") };
pub(crate) const SUM_GRACES: Sql = both!(
    "SELECT g.hash, g.nar, g.ends_at, n.file_size FROM graces AS g CROSS JOIN nars AS n
     WHERE g.cache = $1 AND (g.hash, g.nar) > ($2, $3) AND n.id = g.nar ORDER BY g.hash, g.nar LIMIT $4"
);
const CUT_GRACES: Sql = records!(
    "UPDATE graces SET ends_at = $2 WHERE cache = $1
         AND (hash, nar) IN (SELECT k.hash, k.nar FROM", 3 { hash: bytes 0, nar: number 1 }, "AS k)"
);
// Whether an object is left that a document belongs to. The name of a log is that of its
// derivation behind `log/`.
macro_rules! examine_documents {
    ($derivation:literal) => {
        concat!(
            "SELECT d.id, d.written_at, d.kind, d.name, CASE
                 WHEN d.kind = 1 THEN EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1 AND o.deriver = ",
            $derivation,
            ") ELSE EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1 AND o.hash = d.owner) END
             FROM documents AS d WHERE d.cache = $1 AND d.id > $2 ORDER BY d.id LIMIT $3"
        )
    };
}
// The columns differ in their collation on PostgreSQL, and an index serves its own only.
pub(crate) const EXAMINE_DOCUMENTS: Sql = Sql {
    sqlite: examine_documents!("substr(d.name, 5)"),
    postgres: examine_documents!("substr(d.name, 5) COLLATE \"default\""),
};
// Noted for the journal too; PostgreSQL does it with the deletion.
const NOTE_DOCUMENTS: Sql = Sql {
    sqlite: "
        INSERT INTO journal_notes (cache, kind, name, changes)
        SELECT cache, 3, name, 1 FROM documents WHERE id IN (SELECT value FROM json_each($1))
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
    postgres: Sql::NOTHING,
};
pub(crate) const DELETE_DOCUMENTS: Sql = Sql {
    sqlite: "DELETE FROM documents WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "
        WITH gone AS (DELETE FROM documents WHERE id = ANY ($1) RETURNING cache, name)
        INSERT INTO journal_notes (cache, kind, name, changes) SELECT cache, 3, name, 1 FROM gone
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
};
const CACHES_WITH_RULES: Sql = both!(
    "SELECT c.id FROM caches AS c
     WHERE c.id > $1 AND c.deleted_at IS NULL
         AND (coalesce(c.retention_seconds, $2) > 0 OR coalesce(c.quota_bytes, $3) > 0
             OR coalesce(c.keep_latest, 0) > 0)
     ORDER BY c.id LIMIT $4"
);
const NOTE_EXPIRED: Sql = both!("UPDATE caches SET expired_at = $2 WHERE id = $1");

// A cache that keeps everything has a job only for its documents: traces may belong to no object,
// and logs may be too old.
const OPEN_DUE: Sql = both!(
    "INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
     SELECT 'expire-cache', c.id, NULL, 0, 0, 0, 0, $1 FROM caches AS c
     WHERE c.deleted_at IS NULL AND (c.expired_at IS NULL OR c.expired_at <= $2 OR c.expired_at > $1)
         AND (coalesce(c.retention_seconds, $3) > 0 OR coalesce(c.quota_bytes, $4) > 0
             OR coalesce(c.keep_latest, 0) > 0 OR EXISTS (SELECT 1 FROM documents AS d WHERE d.cache = c.id))
     ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING"
);

/// Opens a job for each cache that was not expired since `since`; returns how many it opened.
pub(crate) async fn open_due(
    tx: &mut Transaction,
    defaults: &ExpiryDefaults,
    at: UnixSeconds,
    since: UnixSeconds,
) -> Result<u64> {
    let retention = Number(defaults.retention_seconds);
    tx.run(OPEN_DUE, &[Number(at), Number(since), retention, Number(signed(defaults.quota_bytes))]).await
}

/// Caches after one, by number, with rules by which something may expire.
pub(crate) async fn caches_with_rules(
    tx: &mut Transaction,
    defaults: &ExpiryDefaults,
    after: CacheId,
    limit: u32,
) -> Result<Vec<CacheId>> {
    let (retention, quota) = (Number(defaults.retention_seconds), Number(signed(defaults.quota_bytes)));
    let rows = tx.rows(CACHES_WITH_RULES, &[Number(after.0), retention, quota, Number(limit.into())]).await?;
    rows.iter().map(|row| row.column(0, "caches").map(CacheId)).collect()
}

/// A page of objects in the order of their last use, with what the rules say of each. Reads only.
pub(crate) async fn examine_page(
    tx: &mut Transaction,
    cache: CacheId,
    defaults: &ExpiryDefaults,
    after: Option<ObjectPlace>,
    limit: u32,
    at: UnixSeconds,
) -> Result<ExaminedPage> {
    let Some(row) = tx.optional(POLICY, &[Number(cache.0)]).await? else {
        return Ok(ExaminedPage::default());
    };
    let policy = read_policy(&row, defaults)?;
    let ObjectPlace { value, id } = after.unwrap_or(ObjectPlace { value: i64::MIN, id: 0 });
    let keep_latest = Number(policy.keep_latest.unwrap_or(0));
    let end = Number(UnixSeconds::MAX);
    let page =
        [Number(cache.0), Number(at), keep_latest, Number(value), Number(id), end, Number(limit.into())];
    let mut objects = Vec::new();
    for row in &tx.rows(EXAMINE_PAGE, &page).await? {
        // Whether a referrer stays is for the plan to find out.
        let found = Examined { is_referred_to: false, ..read_examined(row)? };
        objects.push(ExaminedObject {
            hash: found.hash,
            bytes: found.file_size,
            may_expire: policy.lets_go(&found, Phase::Rules, at),
            may_be_given_up: policy.lets_go(&found, Phase::Quota, at),
            place: ObjectPlace { value: found.last_used_at, id: found.id },
            references: found.references,
        });
    }
    Ok(ExaminedPage { quota_bytes: policy.quota_bytes, objects })
}

/// What the rules say of one object. One statement, which reads only; `None` if it is not there.
/// `cache` need not be current: its rules are those that the caller shows.
pub(crate) async fn examine_one(
    tx: &mut Transaction,
    cache: &Cache,
    hash: &StorePathHash,
    defaults: &ExpiryDefaults,
    at: UnixSeconds,
) -> Result<Option<ObjectRules>> {
    let mut policy = Policy::of(cache, defaults);
    let key =
        [Number(cache.id.0), Number(at), Number(policy.keep_latest.unwrap_or(0)), Bytes(hash.as_bytes())];
    let Some(row) = tx.optional(EXAMINE_ONE, &key).await? else { return Ok(None) };
    policy.is_published = row.column(11, "publish_caches")?;
    let found = read_examined(&row)?;
    Ok(Some(ObjectRules {
        cache: policy.rules(),
        counts_from: policy.counts_from(&found),
        is_published: policy.is_published,
        stays_until: policy.stays_until(&found),
    }))
}

/// What the job does, and what it has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    phase: Phase,
    /// Whether a step of this pass left objects behind that it freed.
    again: bool,
    /// Bytes that count for the quota: so far while they are added up, and after that those that
    /// are left. Each step asks the rules how many are too much: they may change meanwhile.
    bytes: u64,
    /// Last use of the last object, or NAR of the last grace.
    number: i64,
    /// Row number of the last object, where objects come in the order of their use, or of the last
    /// document.
    id: i64,
    /// The last object or grace, where they come in the order of their hashes; `None` before the
    /// first one.
    hash: Option<StorePathHash>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rules = 0,
    SumObjects = 1,
    SumGraces = 2,
    CutGraces = 3,
    Quota = 4,
    Documents = 5,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Rules, Self::SumObjects, Self::SumGraces, Self::CutGraces, Self::Quota, Self::Documents];
}

impl Cursor {
    fn at(phase: Phase, bytes: u64) -> Self {
        Self { phase, again: false, bytes, number: i64::MIN, id: 0, hash: None }
    }

    fn after(&self) -> &[u8] {
        self.hash.as_ref().map_or(&[], |hash| hash.as_bytes().as_slice())
    }

    fn encode(&self) -> Vec<u8> {
        let flags = [self.phase as u8, u8::from(self.again)];
        [
            &flags[..],
            &self.bytes.to_le_bytes(),
            &self.number.to_le_bytes(),
            &self.id.to_le_bytes(),
            self.after(),
        ]
        .concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let cut = || corrupt("jobs", "a cursor is cut short");
        let (flags, rest) = bytes.split_first_chunk::<2>().ok_or_else(cut)?;
        let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (id, hash) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let phase = Phase::ALL.get(usize::from(flags[0]));
        let phase = *phase.ok_or_else(|| corrupt("jobs", "a cursor past the end"))?;
        let hash = if hash.is_empty() { None } else { Some(array("jobs", hash)?) };
        Ok(Self {
            phase,
            again: flags[1] != 0,
            bytes: u64::from_le_bytes(*sum),
            number: i64::from_le_bytes(*number),
            id: i64::from_le_bytes(*id),
            hash: hash.map(StorePathHash::from_bytes),
        })
    }
}

/// What a cache keeps, with the server's defaults.
#[derive(Debug, Clone, Copy)]
struct Policy {
    retention_seconds: Option<i64>,
    quota_bytes: Option<u64>,
    keep_latest: Option<i64>,
    is_published: bool,
}

fn read_policy(row: &Row, defaults: &ExpiryDefaults) -> Result<Policy> {
    let table = "caches";
    let own: Option<i64> = row.column(0, table)?;
    let quota: Option<i64> = row.column(1, table)?;
    let keep: Option<i64> = row.column(2, table)?;
    let quota = quota.map(|bytes| unsigned(table, bytes)).transpose()?;
    Ok(Policy::new(own, quota, keep, row.column(3, table)?, defaults))
}

impl CacheRules {
    /// Those of a cache.
    pub fn of(cache: &Cache, defaults: &ExpiryDefaults) -> Self {
        Policy::of(cache, defaults).rules()
    }
}

impl Policy {
    /// As if the cache were not published.
    fn of(cache: &Cache, defaults: &ExpiryDefaults) -> Self {
        let keep_latest = cache.keep_latest.map(i64::from);
        Self::new(cache.retention_seconds, cache.quota_bytes, keep_latest, false, defaults)
    }

    fn rules(&self) -> CacheRules {
        CacheRules {
            retention_seconds: self.retention_seconds,
            quota_bytes: self.quota_bytes,
            keep_latest: self.keep_latest.map(i64::unsigned_abs),
        }
    }

    /// A cache's own settings before the defaults; 0 keeps everything.
    fn new(
        retention_seconds: Option<i64>,
        quota_bytes: Option<u64>,
        keep_latest: Option<i64>,
        is_published: bool,
        defaults: &ExpiryDefaults,
    ) -> Self {
        Self {
            retention_seconds: Some(retention_seconds.unwrap_or(defaults.retention_seconds))
                .filter(|seconds| *seconds > 0),
            quota_bytes: Some(quota_bytes.unwrap_or(defaults.quota_bytes)).filter(|bytes| *bytes > 0),
            keep_latest: keep_latest.filter(|count| *count > 0),
            is_published,
        }
    }

    fn keeps_everything(&self) -> bool {
        self.retention_seconds.is_none() && self.quota_bytes.is_none() && self.keep_latest.is_none()
    }

    /// Objects that were used at this time or later need not be looked at.
    fn used_before(&self, phase: Phase, now: UnixSeconds) -> UnixSeconds {
        let spared = now - SPARED_SECONDS;
        // Nothing was pushed later than it was used, and only the last push counts when published.
        let by_age_alone = phase == Phase::Rules && self.keep_latest.is_none() && !self.is_published;
        match self.retention_seconds {
            Some(seconds) if by_age_alone => spared.min(now.saturating_sub(seconds)),
            _ => spared,
        }
    }

    fn lets_go(&self, found: &Examined, phase: Phase, now: UnixSeconds) -> bool {
        if found.is_referred_to || found.is_pinned {
            return false;
        }
        let until = match phase {
            Phase::Quota => Some(spared_until(found)),
            _ => self.stays_until(found).map(|(until, _)| until),
        };
        until.is_some_and(|until| until < now)
    }

    /// The last second for which the rules keep an object that neither a pin nor a referrer keeps,
    /// and the rule that ends it; `None` if only the quota may end it.
    fn stays_until(&self, found: &Examined) -> Option<(UnixSeconds, ExpiryRule)> {
        let spared = spared_until(found);
        if self.keep_latest.is_some_and(|count| found.newer >= count) {
            return Some((spared, ExpiryRule::Newer));
        }
        let seconds = self.retention_seconds?;
        Some((spared.max(self.counts_from(found).saturating_add(seconds)), ExpiryRule::Age))
    }

    /// When the age of an object began.
    fn counts_from(&self, found: &Examined) -> UnixSeconds {
        if self.is_published { found.pushed_at } else { found.last_used_at }
    }
}

/// No rule takes an object before.
fn spared_until(found: &Examined) -> UnixSeconds {
    found.last_used_at.saturating_add(SPARED_SECONDS)
}

/// An object, and what keeps it.
#[derive(Debug)]
struct Examined {
    id: i64,
    hash: StorePathHash,
    references: Vec<StorePathHash>,
    nar: i64,
    last_used_at: UnixSeconds,
    pushed_at: UnixSeconds,
    file_size: u64,
    is_referred_to: bool,
    is_pinned: bool,
    /// Newer ones of its name, counted up to how many are kept.
    newer: i64,
}

fn read_examined(row: &Row) -> Result<Examined> {
    let table = "objects";
    let path = store_path(row.column(0, table)?, row.column(1, table)?)?;
    let references = unpack_references(&path, row.column(2, table)?)?;
    Ok(Examined {
        id: row.column(10, table)?,
        hash: path.hash(),
        references: references
            .iter()
            .map(dormer_nix::StorePath::hash)
            .filter(|hash| *hash != path.hash())
            .collect(),
        nar: row.column(3, table)?,
        last_used_at: row.column(4, table)?,
        pushed_at: row.column(5, table)?,
        file_size: unsigned("nars", row.column(6, "nars")?)?,
        is_referred_to: row.column(7, table)?,
        is_pinned: row.column(8, table)?,
        newer: row.column(9, table)?,
    })
}

/// The arguments of every step.
struct Step {
    cache: CacheId,
    policy: Policy,
    defaults: ExpiryDefaults,
    limit: u32,
    now: UnixSeconds,
}

/// What a step leads to.
struct Outcome {
    /// `None`: the job is done.
    next: Option<Cursor>,
    /// Rows that it changed.
    rows: u64,
}

impl Outcome {
    /// Whatever came before, documents come last.
    fn unless_documents_follow(self, phase: Phase) -> Self {
        match self.next {
            None if phase != Phase::Documents => Self { next: Some(Cursor::at(Phase::Documents, 0)), ..self },
            _ => self,
        }
    }
}

/// Runs one step. The caller holds the cache's lock.
pub(crate) async fn expire_cache_step(
    tx: &mut Transaction,
    lease: &JobLease,
    defaults: &ExpiryDefaults,
    limit: u32,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<JobStep> {
    let progress = hold_job(tx, lease).await?;
    let cache = lease.cache()?;
    let cursor = progress.cursor.as_deref().map(Cursor::decode).transpose()?;
    let cursor = cursor.unwrap_or(Cursor::at(Phase::Rules, 0));
    let Outcome { next, rows } = match tx.optional(POLICY, &[Number(cache.0)]).await? {
        None => Outcome { next: None, rows: 0 },
        Some(row) => {
            let policy = read_policy(&row, defaults)?;
            let step = Step { cache, policy, defaults: *defaults, limit: limit.max(1), now: at };
            match cursor.phase {
                Phase::Rules | Phase::Quota => step.remove_page(tx, cursor).await?,
                Phase::SumObjects => step.sum_objects(tx, cursor).await?,
                Phase::SumGraces => step.sum_graces(tx, cursor).await?,
                Phase::CutGraces => step.cut_graces(tx, cursor).await?,
                Phase::Documents => step.remove_documents(tx, cursor).await?,
            }
            .unless_documents_follow(cursor.phase)
        }
    };
    if let Some(cursor) = next {
        advance_job(tx, lease, &cursor.encode(), rows, at, ends_at).await?;
    } else {
        tx.run(NOTE_EXPIRED, &[Number(cache.0), Number(at)]).await?;
        finish_job(tx, lease).await?;
    }
    Ok(JobStep { rows, is_last: next.is_none() })
}

impl Step {
    /// Removes what may go of a page, and what that frees.
    async fn remove_page(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let Cursor { phase, mut again, mut bytes, .. } = cursor;
        let has_rules = self.policy.retention_seconds.is_some() || self.policy.keep_latest.is_some();
        if phase == Phase::Rules && !has_rules {
            return Ok(Outcome { next: self.after_rules(), rows: 0 });
        }
        let now = self.now;
        let page = [
            Number(self.cache.0),
            Number(now),
            Number(self.policy.keep_latest.unwrap_or(0)),
            Number(cursor.number),
            Number(cursor.id),
            Number(self.policy.used_before(phase, now)),
            Number(i64::from(self.limit)),
        ];
        let page: Vec<Examined> =
            tx.rows(EXAMINE_PAGE, &page).await?.iter().map(read_examined).collect::<Result<_>>()?;
        let is_last_page = page.len() < self.limit as usize;
        let mut last = page.last().map(|found| (found.last_used_at, found.id));
        let mut is_cut = false;

        let mut rows = 0;
        let mut candidates = page;
        let most = (self.limit as usize).saturating_mul(CASCADE_FACTOR).min(REMOVED_MAX);
        loop {
            let mut going = self.choose(candidates, phase, self.excess(bytes));
            if rows == 0 && going.len() > most {
                // In the order of the page: the next step goes on behind the last one of them.
                going.truncate(most);
                last = going.last().map(|going| (going.last_used_at, going.id));
                is_cut = true;
            }
            let gone = self.remove(tx, going, phase).await?;
            rows += gone.len();
            if phase == Phase::Quota {
                bytes = bytes.saturating_sub(gone.iter().map(|gone| gone.file_size).sum());
            }
            let mut freed: Vec<_> = gone.into_iter().flat_map(|gone| gone.references).collect();
            freed.sort_unstable();
            freed.dedup();
            if freed.is_empty() || phase == Phase::Quota && self.excess(bytes) == 0 {
                break;
            }
            if rows >= most {
                again = true;
                break;
            }
            let rest = freed.len().min(most - rows);
            again |= rest < freed.len();
            let keys: Vec<&[u8]> = freed[..rest].iter().map(|hash| hash.as_bytes().as_slice()).collect();
            let keep_latest = Number(self.policy.keep_latest.unwrap_or(0));
            let look = [Number(self.cache.0), Number(now), keep_latest, List(&keys)];
            candidates =
                tx.rows(EXAMINE_FREED, &look).await?.iter().map(read_examined).collect::<Result<_>>()?;
        }
        if rows > 0 {
            // One notice for all of them: a notice for each would be more than what is remembered.
            tx.announce(Change::Cache(self.cache)).await?;
        }
        let next = match last {
            _ if phase == Phase::Quota && self.excess(bytes) == 0 => None,
            Some((number, id)) if is_cut || !is_last_page => {
                Some(Cursor { phase, again, bytes, number, id, hash: None })
            }
            _ if again => Some(Cursor::at(phase, bytes)),
            _ if phase == Phase::Rules => self.after_rules(),
            _ => None,
        };
        Ok(Outcome { next, rows: rows as u64 })
    }

    fn after_rules(&self) -> Option<Cursor> {
        self.policy.quota_bytes.map(|_| Cursor::at(Phase::SumObjects, 0))
    }

    /// Those that may go; for the quota only as many as are too much.
    fn choose(&self, found: Vec<Examined>, phase: Phase, bytes: u64) -> Vec<Examined> {
        let mut found: Vec<_> =
            found.into_iter().filter(|found| self.policy.lets_go(found, phase, self.now)).collect();
        if phase == Phase::Quota {
            found.sort_by_key(|found| (found.last_used_at, found.id));
            let mut left = bytes;
            found.retain(|found| {
                let is_needed = left > 0;
                left = left.saturating_sub(found.file_size);
                is_needed
            });
        }
        found
    }

    /// Removes objects, with graces and outbox rows; returns those that went.
    async fn remove(
        &self,
        tx: &mut Transaction,
        mut going: Vec<Examined>,
        phase: Phase,
    ) -> Result<Vec<Examined>> {
        if going.is_empty() {
            return Ok(going);
        }
        let cache = Number(self.cache.0);
        let keys: Vec<&[u8]> = going.iter().map(|going| going.hash.as_bytes().as_slice()).collect();
        let spared = Number(self.now - SPARED_SECONDS);
        let mut gone = std::collections::HashSet::new();
        for row in &tx.rows(DELETE_OBJECTS, &[cache, spared, List(&keys)]).await? {
            gone.insert(StorePathHash::from_bytes(array("objects", row.column(0, "objects")?)?));
        }
        going.retain(|going| gone.contains(&going.hash));
        if going.is_empty() {
            return Ok(going);
        }
        let grace_seconds = match phase {
            Phase::Quota => self.defaults.grace_seconds.min(SHORT_GRACE_SECONDS),
            _ => self.defaults.grace_seconds,
        };
        let mut graces = Records::default();
        for gone in &going {
            graces.row().bytes(gone.hash.as_bytes()).number(gone.nar);
        }
        let graces = graces.finish();
        let ends_at = Number(self.now.saturating_add(grace_seconds));
        tx.run(WRITE_GRACES, &[cache, ends_at, Text(&graces)]).await?;
        let mut pairs = Vec::new();
        for gone in &going {
            pairs.extend(gone.references.iter().map(|reference| (*reference, gone.hash)));
        }
        objects::drop_refs(tx, self.cache, &pairs).await?;
        let keys: Vec<&[u8]> = going.iter().map(|gone| gone.hash.as_bytes().as_slice()).collect();
        outbox::note_changes(tx, self.cache, &keys, self.now).await?;
        Ok(going)
    }

    async fn sum_objects(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let page = [Number(self.cache.0), Bytes(cursor.after()), Number(i64::from(self.limit))];
        let page = tx.rows(SUM_OBJECTS, &page).await?;
        let mut next = cursor;
        for row in &page {
            next.hash = Some(StorePathHash::from_bytes(array("objects", row.column(0, "objects")?)?));
            next.bytes = next.bytes.saturating_add(unsigned("nars", row.column(1, "nars")?)?);
        }
        if page.len() < self.limit as usize {
            next = Cursor::at(Phase::SumGraces, next.bytes);
        }
        Ok(Outcome { next: Some(next), rows: 0 })
    }

    /// Adds up the bytes in graces that last longer than a day. When all are added up, only what is
    /// too much is kept.
    async fn sum_graces(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let (page, mut next) = self.graces(tx, cursor).await?;
        next.bytes = next.bytes.saturating_add(page.iter().map(|grace| grace.2).sum());
        if next.hash.is_some() {
            return Ok(Outcome { next: Some(next), rows: 0 });
        }
        let next = (self.excess(next.bytes) > 0).then_some(Cursor::at(Phase::CutGraces, next.bytes));
        Ok(Outcome { next, rows: 0 })
    }

    /// Bytes over the quota, if so many are left.
    fn excess(&self, left: u64) -> u64 {
        left.saturating_sub(self.policy.quota_bytes.unwrap_or(u64::MAX))
    }

    async fn cut_graces(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let (page, mut next) = self.graces(tx, cursor).await?;
        let (mut cut, mut rows) = (Records::default(), 0);
        for (hash, nar, file_size) in page {
            if self.excess(next.bytes) > 0 {
                cut.row().bytes(hash.as_bytes()).number(nar);
                next.bytes = next.bytes.saturating_sub(file_size);
                rows += 1;
            }
        }
        if rows > 0 {
            let ends_at = Number(self.now + SHORT_GRACE_SECONDS);
            tx.run(CUT_GRACES, &[Number(self.cache.0), ends_at, Text(&cut.finish())]).await?;
        }
        let next = match next.hash {
            _ if self.excess(next.bytes) == 0 => None,
            Some(_) => Some(next),
            None => Some(Cursor::at(Phase::Quota, next.bytes)),
        };
        Ok(Outcome { next, rows })
    }

    /// Removes those of a page of documents that belong to no object, and logs that are too old. A
    /// document that was written within the grace stays: its path may still be on the way.
    async fn remove_documents(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let table = "documents";
        let page = [Number(self.cache.0), Number(cursor.id), Number(i64::from(self.limit))];
        let page = tx.rows(EXAMINE_DOCUMENTS, &page).await?;
        let is_older = |written_at: UnixSeconds, seconds: i64| written_at < self.now.saturating_sub(seconds);
        let (mut next, mut going, mut old_logs, mut is_cut) = (cursor, Vec::new(), Vec::new(), false);
        for row in &page {
            is_cut = old_logs.len() == OLD_LOGS_MAX;
            if is_cut {
                break;
            }
            next.id = row.column(0, table)?;
            let written_at: UnixSeconds = row.column(1, table)?;
            let (kind, name): (i64, String) = (row.column(2, table)?, row.column(3, table)?);
            let has_object: bool = row.column(4, table)?;
            let log_seconds = self.defaults.log_retention_seconds;
            let is_old_log = kind == documents::LOG && log_seconds > 0 && is_older(written_at, log_seconds);
            let is_orphan = !has_object
                && is_older(written_at, self.defaults.grace_seconds)
                && !(kind == documents::LOG && self.policy.keeps_everything());
            if is_old_log || is_orphan {
                going.push(next.id);
            }
            if is_old_log && has_object {
                old_logs.push(name);
            }
        }
        let mut rows = 0;
        if !going.is_empty() {
            documents::tell_outputs(tx, self.cache, &old_logs, self.now).await?;
            tx.run(NOTE_DOCUMENTS, &[Numbers(&going)]).await?;
            rows = tx.run(DELETE_DOCUMENTS, &[Numbers(&going)]).await?;
        }
        let next = (is_cut || page.len() == self.limit as usize).then_some(next);
        Ok(Outcome { next, rows })
    }

    /// A page of graces: those that last longer than a day, and the cursor behind the page, which
    /// has no hash after the last page.
    async fn graces(
        &self,
        tx: &mut Transaction,
        cursor: Cursor,
    ) -> Result<(Vec<(StorePathHash, i64, u64)>, Cursor)> {
        let table = "graces";
        let page = [
            Number(self.cache.0),
            Bytes(cursor.after()),
            Number(cursor.number),
            Number(i64::from(self.limit)),
        ];
        let (mut long, mut next) = (Vec::new(), cursor);
        let page = tx.rows(SUM_GRACES, &page).await?;
        for row in &page {
            let hash = StorePathHash::from_bytes(array(table, row.column(0, table)?)?);
            (next.hash, next.number) = (Some(hash), row.column(1, table)?);
            let ends_at: UnixSeconds = row.column(2, table)?;
            if ends_at > self.now + SHORT_GRACE_SECONDS {
                long.push((hash, next.number, unsigned("nars", row.column(3, "nars")?)?));
            }
        }
        if page.len() < self.limit as usize {
            next.hash = None;
        }
        Ok((long, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back() {
        for phase in Phase::ALL {
            let cursor = Cursor::at(phase, 7);
            assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
            let hash = Some(StorePathHash::from_bytes([9; 20]));
            let cursor = Cursor { again: true, number: -5, id: 6, hash, ..cursor };
            let encoded = cursor.encode();
            assert_eq!(Cursor::decode(&encoded).unwrap(), cursor);
            assert!(Cursor::decode(&encoded[..encoded.len() - 1]).is_err());
        }
        assert!(Cursor::decode(&[]).is_err());
        assert!(Cursor::decode(&[9; 26]).is_err());
    }

    #[test]
    fn what_keeps_an_object_and_what_lets_it_go() {
        let now = 1_000_000;
        let day = 86_400;
        let old = |age: i64| Examined {
            id: 1,
            hash: StorePathHash::from_bytes([1; 20]),
            references: Vec::new(),
            nar: 1,
            last_used_at: now - age,
            pushed_at: now - 9 * day,
            file_size: 1,
            is_referred_to: false,
            is_pinned: false,
            newer: 0,
        };
        let none =
            Policy { retention_seconds: None, quota_bytes: None, keep_latest: None, is_published: false };
        let by_age = Policy { retention_seconds: Some(day), ..none };
        assert!(by_age.lets_go(&old(day + 1), Phase::Rules, now));
        assert!(!by_age.lets_go(&old(day), Phase::Rules, now));
        assert!(!none.lets_go(&old(9 * day), Phase::Rules, now));
        for kept in
            [Examined { is_pinned: true, ..old(2 * day) }, Examined { is_referred_to: true, ..old(2 * day) }]
        {
            assert!(!by_age.lets_go(&kept, Phase::Rules, now), "{kept:?}");
            assert!(!by_age.lets_go(&kept, Phase::Quota, now), "{kept:?}");
        }
        let published = Policy { is_published: true, ..by_age };
        assert!(published.lets_go(&old(day - 1), Phase::Rules, now), "its last push counts");
        assert!(
            !published.lets_go(&old(SPARED_SECONDS), Phase::Rules, now),
            "but not within two hours of a use"
        );
        let short = Policy { retention_seconds: Some(60), ..none };
        assert!(!short.lets_go(&old(SPARED_SECONDS), Phase::Rules, now));
        assert!(short.lets_go(&old(SPARED_SECONDS + 1), Phase::Rules, now));
        let newest = Policy { keep_latest: Some(2), ..none };
        assert!(newest.lets_go(&Examined { newer: 2, ..old(day) }, Phase::Rules, now));
        assert!(!newest.lets_go(&Examined { newer: 1, ..old(day) }, Phase::Rules, now));
        let spared = now - 9 * day + SPARED_SECONDS;
        assert_eq!(
            newest.stays_until(&Examined { newer: 2, ..old(9 * day) }),
            Some((spared, ExpiryRule::Newer))
        );
        assert_eq!(by_age.stays_until(&old(day)), Some((now, ExpiryRule::Age)));
        assert_eq!(short.stays_until(&old(day)), Some((now - day + SPARED_SECONDS, ExpiryRule::Age)));
        assert_eq!([none.stays_until(&old(day)), newest.stays_until(&old(day))], [None, None]);
        assert!(none.lets_go(&old(day), Phase::Quota, now));
        assert!(!none.lets_go(&old(60), Phase::Quota, now));
    }
}
