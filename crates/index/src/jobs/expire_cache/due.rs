//! What is due by the rules of caches: for opening jobs, planning collections and showing objects.

use dormer_nix::StorePathHash;

use super::cursor::Phase;
use super::examined::{EXAMINE_ONE, EXAMINE_PAGE, Examined, read_examined};
use super::policy::{POLICY, Policy, read_policy};
use crate::Result;
use crate::collect::{ExaminedObject, ExaminedPage};
use crate::columns::signed;
use crate::contract::{Cache, CacheId, ObjectPlace, ObjectRules, UnixSeconds};
use crate::jobs::contract::ExpiryDefaults;
use crate::sql::Argument::{Bytes, Number};
use crate::sql::{Sql, Transaction, both};

const CACHES_WITH_RULES: Sql = both!(
    "SELECT c.id FROM caches AS c
     WHERE c.id > $1 AND c.deleted_at IS NULL
         AND (coalesce(c.retention_seconds, $2) > 0 OR coalesce(c.quota_bytes, $3) > 0
             OR coalesce(c.keep_latest, 0) > 0)
     ORDER BY c.id LIMIT $4"
);

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
