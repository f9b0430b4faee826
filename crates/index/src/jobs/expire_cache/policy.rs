//! What a cache keeps: its own rules before the server's defaults, and what they say of an object.

use super::cursor::Phase;
use super::examined::Examined;
use crate::Result;
use crate::columns::unsigned;
use crate::contract::{Cache, CacheRules, ExpiryRule, UnixSeconds};
use crate::jobs::contract::ExpiryDefaults;
use crate::rows::Row;
use crate::sql::{Sql, both};

/// An object that was used within this time stays, whatever the rules say: a client may rely on the
/// answer that the cache has it.
pub(super) const SPARED_SECONDS: i64 = 2 * 3_600;

/// The shortest grace, for a cache over its quota.
pub(super) const SHORT_GRACE_SECONDS: i64 = 86_400;

pub(super) const POLICY: Sql = both!(
    "SELECT retention_seconds, quota_bytes, keep_latest,
         EXISTS (SELECT 1 FROM publish_caches AS p WHERE p.cache = caches.id)
     FROM caches WHERE id = $1 AND deleted_at IS NULL"
);

/// What a cache keeps, with the server's defaults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) retention_seconds: Option<i64>,
    pub(super) quota_bytes: Option<u64>,
    pub(super) keep_latest: Option<i64>,
    pub(super) is_published: bool,
}

pub(super) fn read_policy(row: &Row, defaults: &ExpiryDefaults) -> Result<Policy> {
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
    pub(super) fn of(cache: &Cache, defaults: &ExpiryDefaults) -> Self {
        let keep_latest = cache.keep_latest.map(i64::from);
        Self::new(cache.retention_seconds, cache.quota_bytes, keep_latest, false, defaults)
    }

    pub(super) fn rules(&self) -> CacheRules {
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

    pub(super) fn keeps_everything(&self) -> bool {
        self.retention_seconds.is_none() && self.quota_bytes.is_none() && self.keep_latest.is_none()
    }

    /// Objects that were used at this time or later need not be looked at.
    pub(super) fn used_before(&self, phase: Phase, now: UnixSeconds) -> UnixSeconds {
        let spared = now - SPARED_SECONDS;
        // Nothing was pushed later than it was used, and only the last push counts when published.
        let by_age_alone = phase == Phase::Rules && self.keep_latest.is_none() && !self.is_published;
        match self.retention_seconds {
            Some(seconds) if by_age_alone => spared.min(now.saturating_sub(seconds)),
            _ => spared,
        }
    }

    pub(super) fn lets_go(&self, found: &Examined, phase: Phase, now: UnixSeconds) -> bool {
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
    pub(super) fn stays_until(&self, found: &Examined) -> Option<(UnixSeconds, ExpiryRule)> {
        let spared = spared_until(found);
        if self.keep_latest.is_some_and(|count| found.newer >= count) {
            return Some((spared, ExpiryRule::Newer));
        }
        let seconds = self.retention_seconds?;
        Some((spared.max(self.counts_from(found).saturating_add(seconds)), ExpiryRule::Age))
    }

    /// When the age of an object began.
    pub(super) fn counts_from(&self, found: &Examined) -> UnixSeconds {
        if self.is_published { found.pushed_at } else { found.last_used_at }
    }
}

/// No rule takes an object before.
fn spared_until(found: &Examined) -> UnixSeconds {
    found.last_used_at.saturating_add(SPARED_SECONDS)
}

#[cfg(test)]
mod tests {
    use dormer_nix::StorePathHash;

    use super::*;

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
