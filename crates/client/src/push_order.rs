//! The order of uploads: a path starts only after its references.
//!
//! The server shows each path as soon as it acknowledges the upload. A reader that finds a path
//! without one of its references remembers the miss for an hour. So a push that ends early, or that
//! somebody reads from, must never have shown a path before the path's references.
//!
//! Invariants
//! - The queue gives each planned path out once, or reports it as dropped or left over.
//! - When the queue gives a path out, the uploads of all its planned references are acknowledged.
//!   The exception is a circle among references, whose members start together.
//! - Among the paths that may start, the one with the longest chain comes first: its own bytes, and
//!   the bytes of the uploads that wait for it one after the other. If a long chain started last,
//!   everybody would wait for it alone. Between paths that nothing waits for, that is the largest.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use dormer_nix::StorePath;

use crate::path_info::PathInfo;

/// Sorts paths in the order of uploads without references.
pub(crate) fn sort_largest_first(infos: &mut [PathInfo]) {
    infos.sort_by(|a, b| b.nar_size.cmp(&a.nar_size).then_with(|| a.path.cmp(&b.path)));
}

/// All paths, each after its references. The members of a circle follow each other.
pub(crate) fn closure_order(infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut queue = UploadQueue::new(infos);
    let mut ordered = Vec::new();
    while let Some((number, info)) = queue.next() {
        ordered.push(info);
        queue.acknowledge(number);
    }
    ordered
}

/// For each path, the numbers of the planned paths that it refers to, without itself.
fn planned_references(infos: &[PathInfo]) -> Vec<BTreeSet<UploadNumber>> {
    let numbers: HashMap<&StorePath, UploadNumber> =
        infos.iter().enumerate().map(|(number, info)| (&info.path, number)).collect();
    let of_path = |(number, info): (UploadNumber, &PathInfo)| {
        let planned = info.references.iter().filter_map(|path| numbers.get(path).copied());
        planned.filter(|reference| *reference != number).collect()
    };
    infos.iter().enumerate().map(of_path).collect()
}

/// For each path, the bytes of the longest chain that begins with it and goes on with paths that
/// wait for it. The members of a circle, and what they refer to, count alone.
fn chain_bytes(infos: &[PathInfo], references: &[BTreeSet<UploadNumber>]) -> Vec<u64> {
    let mut referrers = vec![0_usize; infos.len()];
    for reference in references.iter().flatten() {
        referrers[*reference] += 1;
    }
    let mut chains: Vec<u64> = infos.iter().map(|info| info.nar_size).collect();
    let mut known: Vec<UploadNumber> = (0..infos.len()).filter(|number| referrers[*number] == 0).collect();
    while let Some(number) = known.pop() {
        for &reference in &references[number] {
            let chain = infos[reference].nar_size.saturating_add(chains[number]);
            chains[reference] = chains[reference].max(chain);
            referrers[reference] -= 1;
            if referrers[reference] == 0 {
                known.push(reference);
            }
        }
    }
    chains
}

/// Number of a planned upload in the queue.
pub(crate) type UploadNumber = usize;

/// The uploads of a push that have not started.
#[derive(Debug)]
pub(crate) struct UploadQueue {
    /// Longest chain first, so that a smaller number is a more urgent upload.
    uploads: Vec<PlannedUpload>,
    /// The uploads that may start.
    ready: BTreeSet<UploadNumber>,
    /// Number of uploads that were given out and have not ended.
    running: usize,
}

#[derive(Debug)]
struct PlannedUpload {
    /// `None` once the path was given out or dropped.
    info: Option<PathInfo>,
    /// The planned uploads that refer to this one, without itself.
    referrers: Vec<UploadNumber>,
    /// The planned uploads that this one refers to, without itself.
    references: Vec<UploadNumber>,
    /// Number of `references` that this upload still waits for.
    awaited: usize,
}

impl UploadQueue {
    /// A queue of all these paths.
    pub(crate) fn new(mut infos: Vec<PathInfo>) -> Self {
        sort_largest_first(&mut infos);
        let chains = chain_bytes(&infos, &planned_references(&infos));
        let mut chained: Vec<(u64, PathInfo)> = chains.into_iter().zip(infos).collect();
        // Stable: among equal chains, the largest stays first.
        chained.sort_by_key(|(bytes, _)| Reverse(*bytes));
        let infos: Vec<PathInfo> = chained.into_iter().map(|(_, info)| info).collect();
        let references = planned_references(&infos);
        let mut uploads: Vec<PlannedUpload> = infos
            .into_iter()
            .zip(references)
            .map(|(info, references)| PlannedUpload {
                info: Some(info),
                referrers: Vec::new(),
                awaited: references.len(),
                references: references.into_iter().collect(),
            })
            .collect();
        for number in 0..uploads.len() {
            for reference in uploads[number].references.clone() {
                uploads[reference].referrers.push(number);
            }
        }
        let ready = (0..uploads.len()).filter(|number| uploads[*number].awaited == 0).collect();
        Self { uploads, ready, running: 0 }
    }

    /// Gives out the next path to upload. `None` if the queue is empty, or if every path in it
    /// waits for an upload that is running.
    pub(crate) fn next(&mut self) -> Option<(UploadNumber, PathInfo)> {
        if self.ready.is_empty() && self.running == 0 {
            self.release_circle();
        }
        let number = self.ready.pop_first()?;
        let info = self.uploads[number].info.take()?;
        self.running += 1;
        Some((number, info))
    }

    /// The server acknowledged this upload.
    pub(crate) fn acknowledge(&mut self, number: UploadNumber) {
        self.running -= 1;
        for referrer in self.uploads[number].referrers.clone() {
            let upload = &mut self.uploads[referrer];
            // A released member of a circle waits for nothing any more.
            if upload.info.is_some() && upload.awaited > 0 {
                upload.awaited -= 1;
                if upload.awaited == 0 {
                    self.ready.insert(referrer);
                }
            }
        }
    }

    /// This upload failed. Drops the paths that refer to it, directly or through others, and
    /// returns them.
    pub(crate) fn fail(&mut self, number: UploadNumber) -> Vec<StorePath> {
        self.running -= 1;
        let mut dropped = Vec::new();
        let mut to_visit = vec![number];
        while let Some(number) = to_visit.pop() {
            for referrer in self.uploads[number].referrers.clone() {
                if let Some(info) = self.uploads[referrer].info.take() {
                    self.ready.remove(&referrer);
                    dropped.push(info.path);
                    to_visit.push(referrer);
                }
            }
        }
        dropped
    }

    /// The paths that are still in the queue.
    pub(crate) fn into_rest(self) -> Vec<StorePath> {
        self.uploads.into_iter().filter_map(|upload| upload.info).map(|info| info.path).collect()
    }

    /// Lets the members of one circle start, if all paths wait for each other. Chooses a circle
    /// that waits for nothing outside. Nix makes no circles, but nothing stops a damaged store from
    /// claiming one, and a push must end.
    fn release_circle(&mut self) {
        // The last root of a sweep over the referrers is reached from no earlier root. So
        // everything that the root waits for also waits for the root: these paths are the circle.
        let mut seen = BTreeSet::new();
        let mut last_root = None;
        for number in self.waiting() {
            if !seen.contains(&number) {
                last_root = Some(number);
                self.sweep(number, &mut seen, |upload| &upload.referrers);
            }
        }
        let Some(root) = last_root else { return };
        let mut circle = BTreeSet::new();
        self.sweep(root, &mut circle, |upload| &upload.references);
        for member in circle {
            self.uploads[member].awaited = 0;
            self.ready.insert(member);
        }
    }

    fn waiting(&self) -> Vec<UploadNumber> {
        (0..self.uploads.len()).filter(|number| self.uploads[*number].info.is_some()).collect()
    }

    /// Adds to `seen` the waiting paths that lead from `root`, and `root` itself.
    fn sweep(
        &self,
        root: UploadNumber,
        seen: &mut BTreeSet<UploadNumber>,
        neighbours: impl Fn(&PlannedUpload) -> &[UploadNumber],
    ) {
        let mut to_visit = vec![root];
        while let Some(number) = to_visit.pop() {
            if self.uploads[number].info.is_some() && seen.insert(number) {
                to_visit.extend(neighbours(&self.uploads[number]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dormer_nix::{NarHash, StoreDir};
    use proptest::prelude::*;

    use super::*;

    fn path(number: usize) -> StorePath {
        format!("{number:032}-p").parse().unwrap()
    }

    /// One path for each `(size, references)`.
    fn infos(paths: &[(u64, Vec<usize>)]) -> Vec<PathInfo> {
        let info = |(number, (nar_size, references)): (usize, &(u64, Vec<usize>))| PathInfo {
            store_dir: StoreDir::default(),
            path: path(number),
            nar_hash: NarHash::digest(b""),
            nar_size: *nar_size,
            references: references.iter().copied().map(path).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            system: None,
            extra: Vec::new(),
        };
        paths.iter().enumerate().map(info).collect()
    }

    fn queue(paths: &[(u64, Vec<usize>)]) -> UploadQueue {
        UploadQueue::new(infos(paths))
    }

    /// The number of a path in the test, and in the queue.
    fn start(queue: &mut UploadQueue) -> Option<(usize, UploadNumber)> {
        queue.next().map(|(number, info)| (info.path.hash().to_string().parse().unwrap(), number))
    }

    #[test]
    fn a_path_waits_for_its_references_and_the_longest_chain_starts() {
        // 0 → 1 → 2, and 3 refers to itself and to a path that is not planned.
        let mut queue = queue(&[(900, vec![1]), (5, vec![2, 2]), (10, vec![]), (50, vec![3, 77])]);
        let (first, two) = start(&mut queue).unwrap();
        let (second, three) = start(&mut queue).unwrap();
        assert_eq!((first, second), (2, 3), "900 bytes wait for 2");
        assert!(queue.next().is_none(), "1 waits for 2");
        queue.acknowledge(three);
        assert!(queue.next().is_none());
        queue.acknowledge(two);
        let (third, one) = start(&mut queue).unwrap();
        assert_eq!(third, 1);
        assert!(queue.next().is_none(), "0 waits for 1");
        queue.acknowledge(one);
        assert_eq!(start(&mut queue).unwrap().0, 0);
        assert!(queue.into_rest().is_empty());
    }

    /// How long a push takes that runs `jobs` uploads at once, each with a connection of its own:
    /// `start_seconds`, and its bytes at `rate`. What the jobs share (the server's processors, a
    /// link) makes an order matter less.
    fn seconds(paths: &[(u64, Vec<usize>)], jobs: usize, start_seconds: f64, rate: f64) -> f64 {
        let mut queue = queue(paths);
        let (mut now, mut running) = (0.0, Vec::new());
        loop {
            while running.len() < jobs
                && let Some((path, number)) = start(&mut queue)
            {
                #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
                let bytes = paths[path].0 as f64;
                running.push((now + start_seconds + bytes / rate, number));
            }
            let earliest = (0..running.len()).min_by(|a, b| running[*a].0.total_cmp(&running[*b].0));
            let Some(earliest) = earliest else { return now };
            let (end, number) = running.swap_remove(earliest);
            now = end;
            queue.acknowledge(number);
        }
    }

    /// The packages of the benchmark's corpus, with more references than its store paths have.
    #[test]
    fn the_order_costs_a_real_closure_no_more_than_a_twentieth_of_the_time() {
        let graph = include_str!("../tests/data/bench_graph.txt");
        let ordered: Vec<(u64, Vec<usize>)> = graph
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let mut words = line.split(' ').skip(1).map(|word| word.parse::<usize>().unwrap());
                (words.next().unwrap() as u64, words.collect())
            })
            .collect();
        assert!(
            ordered.len() > 150 && ordered.iter().filter(|(_, references)| references.len() > 1).count() > 50
        );
        let unordered: Vec<_> = ordered.iter().map(|(size, _)| (*size, Vec::new())).collect();
        let mut worst: f64 = 0.0;
        // The default number of jobs, from a modem's latency to a lab's, slow and fast.
        for jobs in [1, 2, 5] {
            for start_seconds in [0.005, 0.05, 0.2] {
                for rate in [5e6, 25e6, 100e6] {
                    let [with, without] =
                        [&ordered, &unordered].map(|paths| seconds(paths, jobs, start_seconds, rate));
                    assert!(
                        with <= without * 1.05,
                        "{jobs} jobs, {start_seconds} s, {rate} B/s: {with} s instead of {without} s"
                    );
                    worst = worst.max(with / without);
                }
            }
        }
        println!("{worst:.4} times the time without an order, at worst");
    }

    #[test]
    fn a_failure_drops_every_referrer_and_nothing_else() {
        let mut queue = queue(&[(9, vec![1]), (8, vec![2]), (7, vec![]), (6, vec![])]);
        let (_, two) = start(&mut queue).unwrap();
        assert_eq!(queue.fail(two), [path(1), path(0)]);
        assert_eq!(start(&mut queue).unwrap().0, 3);
        assert!(queue.next().is_none());
    }

    #[test]
    fn a_circle_starts_together_after_its_references_and_before_its_referrers() {
        // 0 → {1, 2} ⇄, 2 → 3, 3 ⇄ 4, 4 → 5.
        let mut queue = queue(&[
            (100, vec![1]),
            (90, vec![2]),
            (80, vec![1, 3]),
            (70, vec![4]),
            (60, vec![3, 5]),
            (50, vec![]),
        ]);
        let mut waves = Vec::new();
        loop {
            let wave: Vec<_> = std::iter::from_fn(|| start(&mut queue)).collect();
            if wave.is_empty() {
                break;
            }
            for (_, number) in &wave {
                queue.acknowledge(*number);
            }
            waves.push(wave.into_iter().map(|(path, _)| path).collect::<Vec<_>>());
        }
        assert_eq!(waves, [vec![5], vec![3, 4], vec![1, 2], vec![0]]);
    }

    /// Which paths each path leads to by its references.
    fn reach(paths: &[(u64, Vec<usize>)]) -> Vec<BTreeSet<usize>> {
        let of = |root: usize| {
            let mut seen = BTreeSet::new();
            let mut to_visit = paths[root].1.clone();
            while let Some(number) = to_visit.pop() {
                if seen.insert(number) {
                    to_visit.extend(&paths[number].1);
                }
            }
            seen
        };
        (0..paths.len()).map(of).collect()
    }

    proptest! {
        /// For any references, circles included, and any order of ends and failures: the module's
        /// invariants hold, and every path is accounted for.
        #[test]
        fn no_path_starts_before_its_references(
            paths in prop::collection::vec((0..4_u64, prop::collection::vec(0..12_usize, 0..4)), 12),
            jobs in 1..6_usize,
            ends in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 12),
        ) {
            let reach = reach(&paths);
            let mut queue = queue(&paths);
            let (mut acknowledged, mut failed, mut dropped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut running = Vec::new();
            let mut ends = ends.into_iter();
            loop {
                while running.len() < jobs {
                    let Some((started, number)) = start(&mut queue) else { break };
                    for reference in &paths[started].1 {
                        let is_circle = reach[*reference].contains(&started);
                        prop_assert!(
                            acknowledged.contains(reference) || is_circle,
                            "{started} started before {reference}",
                        );
                    }
                    running.push((started, number));
                }
                if running.is_empty() {
                    break;
                }
                let (index, fails) = ends.next().unwrap();
                let (ended, number) = running.swap_remove(index.index(running.len()));
                if fails {
                    failed.insert(ended);
                    for path in queue.fail(number) {
                        let path: usize = path.hash().to_string().parse().unwrap();
                        prop_assert!(reach[path].contains(&ended), "{path} does not refer to {ended}");
                        prop_assert!(dropped.insert(path));
                    }
                } else {
                    queue.acknowledge(number);
                    prop_assert!(acknowledged.insert(ended));
                }
            }
            prop_assert!(queue.into_rest().is_empty());
            prop_assert_eq!(acknowledged.len() + failed.len() + dropped.len(), paths.len());
            // Outside of circles, nothing was shown without its references.
            for shown in &acknowledged {
                for reference in &paths[*shown].1 {
                    prop_assert!(acknowledged.contains(reference) || reach[*reference].contains(shown));
                }
            }
        }
    }
}
