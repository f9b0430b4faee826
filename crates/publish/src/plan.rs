//! Which of a page of paths can be published now, and in which order. Pure.
//!
//! A path can be published when each of its references is published, is an upstream's, or is
//! published before it. Other paths wait, and so do all that refer to them. Circles wait for ever:
//! Nix could not fetch them either.

use std::collections::HashMap;
use std::fmt;

use dormer_index::UnixSeconds;
use dormer_nix::StorePathHash;

/// A path to publish.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) hash: StorePathHash,
    /// What it refers to, itself left out.
    pub(crate) references: Vec<StorePathHash>,
    pub(crate) since: UnixSeconds,
    /// A reference that was removed under it.
    pub(crate) lost: Option<StorePathHash>,
}

/// What is known of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reference {
    /// It is in the target, and in the cache.
    Published,
    /// It is in the cache, but not in the target.
    Present,
    /// It is in the cache, but its NAR is damaged there.
    Damaged,
    /// The cache had it, and has it no more.
    Removed,
    /// The cache does not have it.
    Lacking,
}

/// Why a path waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For a reference that the cache lacks, until it counts as upstream's.
    Settling(StorePathHash, UnixSeconds),
    /// For a reference that was removed from the cache.
    Removed(StorePathHash),
    /// For a reference that is still to be published.
    Behind(StorePathHash),
    /// For a reference whose NAR is damaged.
    Damaged(StorePathHash),
    /// It refers to itself through others.
    Circle,
    /// Its own NAR cannot be read.
    Unreadable,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settling(reference, _) => {
                write!(
                    f,
                    "its reference {reference} is not in the cache; it counts as upstream's when the settling time is over"
                )
            }
            Self::Removed(reference) => {
                write!(
                    f,
                    "its reference {reference} was removed from the cache; push that again, or remove this path too"
                )
            }
            Self::Behind(reference) => write!(f, "its reference {reference} is not published yet"),
            Self::Damaged(reference) => {
                write!(f, "its reference {reference} is damaged in the cache; push that again")
            }
            Self::Circle => f.write_str("its references form a circle"),
            Self::Unreadable => f.write_str("its NAR cannot be read in the cache; push it again"),
        }
    }
}

impl Wait {
    /// The reference that a reason names, by what [`Wait`] is displayed as.
    pub(crate) fn reference_in(reason: &str) -> Option<StorePathHash> {
        reason.strip_prefix("its reference ")?.split(' ').next()?.parse().ok()
    }
}

/// What becomes of a page.
#[derive(Debug, Default)]
pub(crate) struct BringPlan {
    /// Positions of candidates; those of a level refer only to those of levels before, and to what
    /// is published.
    pub(crate) levels: Vec<Vec<usize>>,
    /// Positions of those that wait.
    pub(crate) waiting: Vec<(usize, Wait)>,
    /// References outside of the page that are present and not published: a later page has to bring
    /// them.
    pub(crate) awaited: Vec<StorePathHash>,
}

/// Plans a page. `known` tells the state of each reference that is no candidate of this page, or is
/// published already.
pub(crate) fn plan_bringing(
    candidates: &[Candidate],
    known: &HashMap<StorePathHash, Reference>,
    now: UnixSeconds,
    settle_seconds: i64,
) -> BringPlan {
    let places: HashMap<StorePathHash, usize> =
        candidates.iter().enumerate().map(|(place, candidate)| (candidate.hash, place)).collect();
    let mut plan = BringPlan::default();
    // For each candidate: how many of the page go before it, and which go after it.
    let mut before = vec![0_usize; candidates.len()];
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); candidates.len()];
    let mut waits: Vec<Option<Wait>> = vec![None; candidates.len()];
    for (place, candidate) in candidates.iter().enumerate() {
        for reference in &candidate.references {
            let kind = known.get(reference).copied().unwrap_or(Reference::Lacking);
            let wait = match (kind, places.get(reference)) {
                (Reference::Published, _) => continue,
                (_, Some(&other)) => {
                    before[place] += 1;
                    after[other].push(place);
                    continue;
                }
                (Reference::Present, None) => {
                    plan.awaited.push(*reference);
                    Wait::Behind(*reference)
                }
                (Reference::Damaged, None) => Wait::Damaged(*reference),
                (Reference::Removed, None) => Wait::Removed(*reference),
                (Reference::Lacking, None) if candidate.lost == Some(*reference) => Wait::Removed(*reference),
                (Reference::Lacking, None) => {
                    let until = candidate.since.saturating_add(settle_seconds);
                    if until <= now {
                        continue;
                    }
                    Wait::Settling(*reference, until)
                }
            };
            // A removed reference is reported first: the other reasons pass by themselves.
            if waits[place].is_none() || matches!(wait, Wait::Removed(_)) {
                waits[place] = Some(wait);
            }
        }
    }
    // A path that waits holds up those that refer to it, through all generations.
    let mut held: Vec<usize> = (0..candidates.len()).filter(|place| waits[*place].is_some()).collect();
    while let Some(place) = held.pop() {
        for &behind in &after[place] {
            if waits[behind].is_none() {
                waits[behind] = Some(Wait::Behind(candidates[place].hash));
                held.push(behind);
            }
        }
    }
    let is_free =
        |waits: &[Option<Wait>], before: &[usize], place: usize| waits[place].is_none() && before[place] == 0;
    let mut level: Vec<usize> =
        (0..candidates.len()).filter(|place| is_free(&waits, &before, *place)).collect();
    let mut placed = vec![false; candidates.len()];
    while !level.is_empty() {
        let mut next = Vec::new();
        for &place in &level {
            placed[place] = true;
            for &behind in &after[place] {
                before[behind] -= 1;
                if is_free(&waits, &before, behind) {
                    next.push(behind);
                }
            }
        }
        plan.levels.push(std::mem::replace(&mut level, next));
    }
    for (place, wait) in waits.into_iter().enumerate() {
        if !placed[place] {
            plan.waiting.push((place, wait.unwrap_or(Wait::Circle)));
        }
    }
    plan.awaited.sort_unstable();
    plan.awaited.dedup();
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(number: u8) -> StorePathHash {
        StorePathHash::from_bytes([number; 20])
    }

    #[test]
    fn a_reason_names_the_reference_that_is_waited_for() {
        let other = hash(7);
        for wait in
            [Wait::Settling(other, 5), Wait::Removed(other), Wait::Behind(other), Wait::Damaged(other)]
        {
            assert_eq!(Wait::reference_in(&wait.to_string()), Some(other), "{wait}");
        }
        for wait in [Wait::Circle, Wait::Unreadable] {
            assert_eq!(Wait::reference_in(&wait.to_string()), None, "{wait}");
        }
    }

    fn candidate(number: u8, references: &[u8]) -> Candidate {
        Candidate {
            hash: hash(number),
            references: references.iter().map(|number| hash(*number)).collect(),
            since: 100,
            lost: None,
        }
    }

    fn plan(candidates: &[Candidate], known: &[(u8, Reference)], now: i64) -> BringPlan {
        let known = known.iter().map(|(number, kind)| (hash(*number), *kind)).collect();
        plan_bringing(candidates, &known, now, 300)
    }

    #[test]
    fn references_go_first() {
        let candidates = [candidate(3, &[2, 1]), candidate(2, &[1]), candidate(1, &[]), candidate(4, &[])];
        let plan = plan(&candidates, &[], 100);
        assert_eq!(plan.levels, [vec![2, 3], vec![1], vec![0]]);
        assert!(plan.waiting.is_empty() && plan.awaited.is_empty());
    }

    #[test]
    fn a_reference_that_the_cache_lacks_counts_as_upstream_after_a_while() {
        let candidates = [candidate(1, &[9]), candidate(2, &[1])];
        let early = plan(&candidates, &[], 399);
        assert_eq!(early.levels, Vec::<Vec<usize>>::new());
        assert_eq!(early.waiting, [(0, Wait::Settling(hash(9), 400)), (1, Wait::Behind(hash(1)))]);
        assert_eq!(plan(&candidates, &[], 400).levels, [vec![0], vec![1]]);
    }

    #[test]
    fn a_reference_that_was_removed_never_does() {
        let lost = Candidate { lost: Some(hash(9)), ..candidate(1, &[9]) };
        assert_eq!(plan(std::slice::from_ref(&lost), &[], 10_000).waiting, [(0, Wait::Removed(hash(9)))]);
        assert_eq!(plan(&[lost], &[(9, Reference::Published)], 100).levels, [vec![0]]);
        let still_there = plan(&[candidate(1, &[9])], &[(9, Reference::Removed)], 10_000);
        assert_eq!(still_there.waiting, [(0, Wait::Removed(hash(9)))]);
    }

    #[test]
    fn others_are_waited_for_and_asked_for() {
        let waiting = plan(
            &[candidate(1, &[8]), candidate(2, &[7])],
            &[(8, Reference::Present), (7, Reference::Damaged)],
            10_000,
        );
        assert_eq!(waiting.waiting, [(0, Wait::Behind(hash(8))), (1, Wait::Damaged(hash(7)))]);
        assert_eq!(waiting.awaited, [hash(8)]);
    }

    #[test]
    fn a_circle_waits_and_so_does_what_refers_to_it() {
        let plan = plan(
            &[candidate(1, &[2]), candidate(2, &[1]), candidate(3, &[1]), candidate(4, &[])],
            &[],
            10_000,
        );
        assert_eq!(plan.levels, [vec![3]]);
        assert!(plan.waiting.iter().all(|(_, wait)| *wait == Wait::Circle) && plan.waiting.len() == 3);
    }

    proptest! {
        /// Any graph, circles included: a path goes after its references, unless they are published
        /// or an upstream's.
        #[test]
        fn a_path_goes_after_its_references(
            edges in proptest::collection::vec((0..20_u8, 0..30_u8), 0..60),
            published in proptest::collection::hash_set(0..30_u8, 0..10),
            present in proptest::collection::hash_set(20..30_u8, 0..5),
            now in 100..500_i64,
        ) {
            let candidates: Vec<Candidate> = (0..20)
                .map(|number| {
                    let references: Vec<u8> =
                        edges.iter().filter(|(from, to)| *from == number && *to != number).map(|(_, to)| *to).collect();
                    candidate(number, &references)
                })
                .collect();
            let known: HashMap<_, _> = (0..30)
                .filter_map(|number| {
                    let kind = if published.contains(&number) { Reference::Published }
                        else if number < 20 || present.contains(&number) { Reference::Present }
                        else { return None };
                    Some((hash(number), kind))
                })
                .collect();
            let plan = plan_bringing(&candidates, &known, now, 300);
            let mut there: std::collections::HashSet<StorePathHash> =
                published.iter().map(|number| hash(*number)).collect();
            let mut count = plan.waiting.len();
            for level in &plan.levels {
                for &place in level {
                    for reference in &candidates[place].references {
                        let upstream = !known.contains_key(reference) && now >= 400;
                        prop_assert!(there.contains(reference) || upstream);
                    }
                }
                there.extend(level.iter().map(|place| candidates[*place].hash));
                count += level.len();
            }
            prop_assert_eq!(count, candidates.len());
        }
    }
}
