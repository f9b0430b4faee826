//! Which paths a target commits next: those whose chunks it has, references first.
//!
//! Paths are numbered in an order in which each path comes after its references (`push_order`). A
//! path waits for its references with smaller numbers; larger ones are in a circle with it.
//!
//! Invariants
//! - A path is in a batch only if each of its references is committed or stands earlier in the
//!   batch.
//! - A path that is lost takes with it all paths that refer to it, directly or through others,
//!   unless they are committed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::numbers::PathNumber;

/// Where a path of one target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The target already has it, or does not want it.
    NotOurs,
    /// The target lacks chunks of it, or nobody knows its chunks yet.
    Open,
    /// The target has its chunks.
    Ready,
    /// It is committed.
    Committed,
    /// It failed, or a reference of it did.
    Lost,
}

/// References and referrers of all paths of a push, without those of a path to itself.
#[derive(Debug, Default)]
pub(super) struct PathGraph {
    /// The references with smaller numbers.
    references: Vec<Vec<PathNumber>>,
    /// All referrers.
    referrers: Vec<Vec<PathNumber>>,
}

impl PathGraph {
    /// The graph of the paths `0..references.len()`.
    pub(super) fn new(references: Vec<Vec<PathNumber>>) -> Self {
        let mut graph = Self { references, referrers: Vec::new() };
        graph.referrers.resize_with(graph.references.len(), Vec::new);
        for (path, references) in graph.references.iter_mut().enumerate() {
            references.retain(|reference| *reference != path);
            for reference in &*references {
                graph.referrers[*reference].push(path);
            }
            references.retain(|reference| *reference < path);
        }
        graph
    }
}

/// The paths of one target.
#[derive(Debug)]
pub(super) struct CommitOrder {
    graph: Arc<PathGraph>,
    fates: Vec<Fate>,
    ready: BTreeSet<PathNumber>,
    /// Paths that are neither committed nor lost.
    left: usize,
}

impl CommitOrder {
    /// An order of the paths that `wants` says yes to.
    pub(super) fn new(graph: Arc<PathGraph>, wants: &[bool]) -> Self {
        let fate = |wanted: &bool| if *wanted { Fate::Open } else { Fate::NotOurs };
        let fates = wants.iter().map(fate).collect();
        let left = wants.iter().filter(|wanted| **wanted).count();
        Self { graph, fates, ready: BTreeSet::new(), left }
    }

    /// Whether the target still wants this path, and is not done with it.
    pub(super) fn is_left(&self, path: PathNumber) -> bool {
        matches!(self.fates[path], Fate::Open | Fate::Ready)
    }

    /// Number of paths that are neither committed nor lost.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The first path that is neither committed nor lost.
    pub(super) fn first_left(&self) -> Option<PathNumber> {
        (0..self.fates.len()).find(|path| self.is_left(*path))
    }

    /// Paths whose chunks the target has.
    pub(super) fn ready(&self) -> &BTreeSet<PathNumber> {
        &self.ready
    }

    /// The target has all chunks of this path.
    pub(super) fn set_ready(&mut self, path: PathNumber) {
        if self.fates[path] == Fate::Open {
            self.fates[path] = Fate::Ready;
            self.ready.insert(path);
        }
    }

    /// The target lacks chunks of this path again.
    pub(super) fn set_open(&mut self, path: PathNumber) {
        if self.fates[path] == Fate::Ready {
            self.fates[path] = Fate::Open;
            self.ready.remove(&path);
        }
    }

    /// The paths that can be committed in one request, in its order, as long as `fits` says so.
    pub(super) fn batch(&self, mut fits: impl FnMut(PathNumber) -> bool) -> Vec<PathNumber> {
        let mut batch = BTreeSet::new();
        for &path in &self.ready {
            let settled = |reference: &PathNumber| {
                matches!(self.fates[*reference], Fate::NotOurs | Fate::Committed) || batch.contains(reference)
            };
            if !self.graph.references[path].iter().all(settled) {
                continue;
            }
            if !fits(path) {
                break;
            }
            batch.insert(path);
        }
        batch.into_iter().collect()
    }

    /// The path is committed.
    pub(super) fn set_committed(&mut self, path: PathNumber) {
        self.end(path, Fate::Committed);
    }

    /// The path failed. Returns the paths that are lost with it.
    pub(super) fn lose(&mut self, path: PathNumber) -> Vec<PathNumber> {
        self.end(path, Fate::Lost);
        let mut lost = BTreeSet::new();
        let mut to_visit = vec![path];
        while let Some(visited) = to_visit.pop() {
            for referrer in self.graph.referrers[visited].clone() {
                if self.is_left(referrer) {
                    self.end(referrer, Fate::Lost);
                    lost.insert(referrer);
                    to_visit.push(referrer);
                }
            }
        }
        lost.into_iter().collect()
    }

    fn end(&mut self, path: PathNumber, fate: Fate) {
        if self.is_left(path) {
            self.left -= 1;
            self.ready.remove(&path);
            self.fates[path] = fate;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(references: Vec<Vec<usize>>) -> CommitOrder {
        let wants = vec![true; references.len()];
        CommitOrder::new(Arc::new(PathGraph::new(references)), &wants)
    }

    #[test]
    fn a_batch_holds_references_before_their_referrers() {
        // 1 → 0, 2 → 1, 3 alone.
        let mut order = order(vec![vec![], vec![0, 1], vec![1], vec![]]);
        assert!(order.batch(|_| true).is_empty());
        order.set_ready(2);
        order.set_ready(1);
        assert!(order.batch(|_| true).is_empty(), "their reference is not there");
        order.set_ready(3);
        order.set_ready(0);
        assert_eq!(order.batch(|_| true), [0, 1, 2, 3]);
        assert_eq!(order.batch(|path| path < 2), [0, 1]);
        order.set_committed(0);
        assert_eq!(order.batch(|_| true), [1, 2, 3]);
        order.set_open(1);
        assert_eq!(order.batch(|_| true), [3]);
        assert_eq!(order.left(), 3);
    }

    #[test]
    fn a_lost_path_takes_only_its_referrers() {
        let mut order = order(vec![vec![], vec![0], vec![1], vec![]]);
        for path in 0..4 {
            order.set_ready(path);
        }
        assert_eq!(order.lose(1), [2]);
        assert_eq!(order.batch(|_| true), [0, 3]);
        assert_eq!((order.left(), order.first_left()), (2, Some(0)));
        order.set_committed(2);
        assert_eq!(order.left(), 2, "what is lost stays lost");
    }

    #[test]
    fn references_that_the_target_has_are_not_waited_for() {
        let graph = Arc::new(PathGraph::new(vec![vec![], vec![0]]));
        let mut order = CommitOrder::new(graph, &[false, true]);
        order.set_ready(0);
        order.set_ready(1);
        assert_eq!(order.batch(|_| true), [1]);
    }

    #[test]
    fn the_members_of_a_circle_are_committed_together_and_lost_together() {
        let mut circle = order(vec![vec![1], vec![0]]);
        circle.set_ready(0);
        circle.set_ready(1);
        assert_eq!(circle.batch(|_| true), [0, 1]);
        assert_eq!(circle.lose(0), [1]);
        assert_eq!(circle.left(), 0);
    }

    proptest! {
        #[test]
        fn every_path_is_committed_once_and_after_its_references(
            references in proptest::collection::vec(proptest::collection::vec(0..30_usize, 0..4), 1..30),
            readiness in proptest::collection::vec(0..30_usize, 0..200),
            size in 1..5_usize,
        ) {
            let count = references.len();
            let references: Vec<Vec<usize>> =
                references.into_iter().enumerate().map(|(path, all)| {
                    all.into_iter().filter(|reference| *reference < path).collect()
                }).collect();
            let mut order = order(references.clone());
            let mut committed = Vec::new();
            for path in readiness.into_iter().filter(|path| *path < count).chain(0..count) {
                order.set_ready(path);
                let mut room = size;
                let batch = order.batch(|_| { room = room.saturating_sub(1); room > 0 || size == 1 });
                for path in batch {
                    prop_assert!(references[path].iter().all(|reference| committed.contains(reference)));
                    committed.push(path);
                    order.set_committed(path);
                }
            }
            while order.left() > 0 {
                let batch = order.batch(|_| true);
                prop_assert!(!batch.is_empty());
                for path in batch {
                    prop_assert!(!committed.contains(&path));
                    committed.push(path);
                    order.set_committed(path);
                }
            }
            prop_assert_eq!(committed.len(), count);
        }
    }
}
