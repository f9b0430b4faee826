//! What caches' rules let go: a plan in memory, without the locks of the jobs that do it.
//!
//! Algorithm: read all objects of a cache in the order of their last use, with what the rules say
//! of each. Remove those that may go and that no object refers to, and then what they referred to.
//! What is left goes by the quota, in the same way, until the rest fits. The job
//! ([`JobKind::ExpireCache`](dormer_index::JobKind::ExpireCache)) comes to the same, page by page.
//!
//! Memory: about 150 bytes for each object of one cache, and four for each of its references. A
//! cache of more than [`OBJECTS_MAX`] objects is left out. A cache without rules is not read.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use dormer_index::{CacheId, ExaminedObject, ExpiryDefaults, UnixSeconds};
use dormer_nix::StorePathHash;
use serde::{Deserialize, Serialize};

use super::collector::Collector;
use super::progress::CollectionPhase;
use crate::Result;
use crate::pace::pause_after;

/// Objects of a cache that is planned.
const OBJECTS_MAX: usize = 2_000_000;

/// Objects in one page, with their references.
const PAGE_OBJECTS: u32 = 1_024;

/// Caches in one page.
const PAGE_CACHES: u32 = 256;

/// What the rules of caches let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryTotals {
    /// Caches that let something go.
    pub caches: u64,
    /// Paths that expire when the server looks through their caches next. Their NARs stay readable
    /// for the grace.
    pub paths: u64,
    /// Their bytes, as a quota counts them.
    pub bytes: u64,
    /// Caches that are too large to plan.
    pub caches_left_out: u64,
    /// Build logs that are older than logs are kept, of all caches.
    #[serde(default)]
    pub logs: u64,
}

impl Collector {
    /// What the server keeps where a cache says nothing.
    pub fn expiry_defaults(&self) -> &ExpiryDefaults {
        &self.settings.expiry_defaults
    }

    /// Whether servers look by themselves for what is kept no longer.
    pub fn is_automatic(&self) -> bool {
        self.settings.interval_seconds.is_some()
    }

    /// What the rules of all caches let go now, which is not the work of a collection: the NARs
    /// follow when their graces are over. Reads only. It takes much memory, so it is for commands.
    pub async fn plan_expiry(&self) -> Result<ExpiryTotals> {
        self.progress.begin(CollectionPhase::Expiring);
        let now = self.clock.now();
        let mut totals = ExpiryTotals::default();
        let log_seconds = self.settings.expiry_defaults.log_retention_seconds;
        if log_seconds > 0 {
            totals.logs = self.index.count_logs(now.saturating_sub(log_seconds)).await?;
        }
        let mut after = CacheId(0);
        loop {
            let page =
                self.index.caches_with_rules(&self.settings.expiry_defaults, after, PAGE_CACHES).await?;
            let Some(last) = page.last() else { return Ok(totals) };
            after = *last;
            for cache in page {
                let Some((mut objects, quota)) = self.read_objects(cache, now).await? else {
                    totals.caches_left_out += 1;
                    continue;
                };
                let mut gone = objects.remove(Rule::AgeAndNumber, u64::MAX);
                let excess = quota.map_or(0, |quota| objects.bytes.saturating_sub(quota));
                let given_up = objects.remove(Rule::Quota, excess);
                gone.0 += given_up.0;
                gone.1 += given_up.1;
                totals.caches += u64::from(gone.0 > 0);
                totals.paths += gone.0;
                totals.bytes += gone.1;
            }
        }
    }

    /// The objects of a cache, and its quota. `None` if they are too many.
    async fn read_objects(&self, cache: CacheId, now: UnixSeconds) -> Result<Option<(Objects, Option<u64>)>> {
        let (mut objects, mut after) = (Objects::default(), None);
        loop {
            let begun = Instant::now();
            let defaults = &self.settings.expiry_defaults;
            let page = self.index.examine_objects(cache, defaults, after, PAGE_OBJECTS, now).await?;
            let Some(last) = page.objects.last() else { return Ok(Some((objects, page.quota_bytes))) };
            after = Some(last.place);
            for object in &page.objects {
                objects.add(object);
            }
            if objects.by_use.len() > OBJECTS_MAX {
                return Ok(None);
            }
            tokio::time::sleep(pause_after(begun.elapsed())).await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    AgeAndNumber,
    Quota,
}

/// An object of a cache, or a path that one refers to and the cache lacks.
#[derive(Debug, Default)]
struct Planned {
    is_there: bool,
    may_expire: bool,
    may_be_given_up: bool,
    bytes: u64,
    /// Objects that refer to it and stay.
    referrers: u32,
    /// Its references, in [`Objects::references`].
    references: Range<usize>,
}

#[derive(Debug, Default)]
struct Objects {
    /// Where each path is in `all`.
    places: HashMap<StorePathHash, usize>,
    all: Vec<Planned>,
    references: Vec<u32>,
    /// Those that are there, the least recently used first.
    by_use: Vec<usize>,
    /// Bytes of those that stay.
    bytes: u64,
}

impl Objects {
    fn place(&mut self, hash: StorePathHash) -> usize {
        let next = self.all.len();
        let place = *self.places.entry(hash).or_insert(next);
        if place == next {
            self.all.push(Planned::default());
        }
        place
    }

    fn add(&mut self, object: &ExaminedObject) {
        let place = self.place(object.hash);
        // One that was used between two pages comes twice.
        if self.all[place].is_there {
            return;
        }
        let first = self.references.len();
        for reference in &object.references {
            let other = self.place(*reference);
            self.all[other].referrers += 1;
            self.references.push(u32::try_from(other).expect("a plan has fewer paths"));
        }
        let planned = &mut self.all[place];
        planned.is_there = true;
        planned.may_expire = object.may_expire;
        planned.may_be_given_up = object.may_be_given_up;
        planned.bytes = object.bytes;
        planned.references = first..self.references.len();
        self.by_use.push(place);
        self.bytes = self.bytes.saturating_add(object.bytes);
    }

    /// Removes what a rule lets go until it has removed `excess` bytes; returns how many objects
    /// went, and their bytes.
    fn remove(&mut self, rule: Rule, excess: u64) -> (u64, u64) {
        let (mut paths, mut bytes) = (0, 0_u64);
        let mut next = Vec::new();
        for at in 0..self.by_use.len() {
            next.push(self.by_use[at]);
            while let Some(place) = next.pop() {
                if bytes >= excess {
                    return (paths, bytes);
                }
                let object = &mut self.all[place];
                let may_go = match rule {
                    Rule::AgeAndNumber => object.may_expire,
                    Rule::Quota => object.may_be_given_up,
                };
                if !object.is_there || object.referrers > 0 || !may_go {
                    continue;
                }
                object.is_there = false;
                paths += 1;
                bytes = bytes.saturating_add(object.bytes);
                self.bytes = self.bytes.saturating_sub(object.bytes);
                for reference in object.references.clone() {
                    let other = self.references[reference] as usize;
                    self.all[other].referrers -= 1;
                    next.push(other);
                }
            }
        }
        (paths, bytes)
    }
}

#[cfg(test)]
mod tests {
    use dormer_index::ObjectPlace;

    use super::*;

    fn hash(number: u8) -> StorePathHash {
        StorePathHash::from_bytes([number; 20])
    }

    /// Objects of ten bytes: number, references, whether it is old, whether it may be given up.
    fn objects(all: &[(u8, &[u8], bool, bool)]) -> Objects {
        let mut objects = Objects::default();
        for (number, references, may_expire, may_be_given_up) in all {
            objects.add(&ExaminedObject {
                hash: hash(*number),
                references: references.iter().map(|other| hash(*other)).collect(),
                bytes: 10,
                may_expire: *may_expire,
                may_be_given_up: *may_be_given_up,
                place: ObjectPlace { value: 0, id: 0 },
            });
        }
        objects
    }

    #[test]
    fn what_something_refers_to_goes_after_it_or_stays_with_it() {
        // 1 → 2 → 3, 4 → 3, 5 → a path that is not there.
        let chain = |keeps_4: bool| {
            objects(&[
                (3, &[], true, true),
                (2, &[3], true, true),
                (1, &[2], true, true),
                (4, &[3], !keeps_4, !keeps_4),
                (5, &[9], true, true),
            ])
        };
        assert_eq!(chain(false).remove(Rule::AgeAndNumber, u64::MAX), (5, 50));
        assert_eq!(chain(true).remove(Rule::AgeAndNumber, u64::MAX), (3, 30), "4 keeps 3");
        assert_eq!(chain(true).remove(Rule::Quota, 11), (2, 20));
        assert_eq!(chain(true).remove(Rule::Quota, 0), (0, 0));
        let mut circle = objects(&[(1, &[2], true, true), (2, &[1], true, true)]);
        assert_eq!(circle.remove(Rule::AgeAndNumber, u64::MAX), (0, 0));
    }

    #[test]
    fn the_quota_takes_what_the_rules_left() {
        let mut objects = objects(&[
            (1, &[], true, true),
            (2, &[], false, true),
            (3, &[], false, true),
            (4, &[], false, false),
        ]);
        assert_eq!(objects.remove(Rule::AgeAndNumber, u64::MAX), (1, 10));
        assert_eq!(objects.bytes, 30);
        assert_eq!(objects.remove(Rule::Quota, 15), (2, 20));
        assert_eq!(objects.remove(Rule::Quota, 15), (0, 0), "the last one is pinned");
    }
}
