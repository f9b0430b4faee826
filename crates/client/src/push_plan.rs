//! The plan of a push: a value that a dry run prints and that `execute_push` carries out.

use std::collections::BTreeSet;

use dormer_api::CacheName;
use dormer_nix::StorePath;

use crate::path_info::PathInfo;
use crate::push_filter::{ExcludedPath, IncompletePath};

/// What a push will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushPlan {
    /// The cache.
    pub cache: CacheName,
    /// Paths to upload, largest first. The upload of a path waits for the path's references.
    pub missing: Vec<PathInfo>,
    /// Paths left out because the user excluded them.
    pub excluded: Vec<ExcludedPath>,
    /// Paths left out because the cache would lack an excluded reference of them.
    pub incomplete: Vec<IncompletePath>,
    /// Paths that the cache already has.
    pub present: Vec<StorePath>,
    /// Paths left out because an upstream key signed them.
    pub upstream: Vec<StorePath>,
    /// The derivations that made what the cache has or gets, each once. One whose paths are all
    /// left out is not among them.
    pub derivers: Vec<PlannedDeriver>,
    /// The content-addressed outputs of derivations that the cache has or gets.
    pub addressed: Vec<AddressedOutput>,
    /// Paths left out because they are not valid in the local store.
    pub invalid: Vec<StorePath>,
}

/// A derivation that made paths of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDeriver {
    /// The derivation.
    pub derivation: StorePath,
    /// Whether the plan uploads a path that it made.
    pub is_new: bool,
}

/// An output whose path follows from its contents. Readers that have only the derivation find the
/// path by its build trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressedOutput {
    /// What the output became.
    pub path: StorePath,
    /// The derivation that was built.
    pub derivation: StorePath,
    /// Whether the user named the path: its trace is sent after those of its closure.
    pub is_root: bool,
    /// Whether the cache lacked the path.
    pub is_new: bool,
}

impl AddressedOutput {
    /// The output, if a path is one.
    pub(crate) fn of(info: &PathInfo, roots: &BTreeSet<StorePath>) -> Option<Self> {
        let derivation = info.deriver.clone().filter(StorePath::is_derivation)?;
        let is_addressed = info.ca.as_ref().is_some_and(|ca| ca.starts_with("fixed:"));
        let (path, is_root) = (info.path.clone(), roots.contains(&info.path));
        is_addressed.then_some(Self { path, derivation, is_root, is_new: false })
    }

    /// The name of the output, which the path's name ends with: `out` if with nothing.
    pub(crate) fn output(&self) -> Option<&str> {
        let package = self.derivation.derivation_name()?;
        match self.path.name().strip_prefix(package)? {
            "" => Some("out"),
            rest => rest.strip_prefix('-'),
        }
    }
}

impl PushPlan {
    /// Total size of the NARs to upload, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|info| info.nar_size).sum()
    }

    /// The paths that the filter keeps out, with the reason.
    pub fn left_out(&self) -> Vec<(StorePath, String)> {
        let excluded = self.excluded.iter().map(|one| (one.path.clone(), one.exclusion.to_string()));
        let incomplete = self.incomplete.iter().map(|one| {
            (one.path.clone(), format!("it refers to {}, which is excluded", one.excluded_reference))
        });
        excluded.chain(incomplete).collect()
    }

    /// Number of all paths in the plan.
    pub fn path_count(&self) -> usize {
        let left_out = self.excluded.len() + self.incomplete.len() + self.invalid.len();
        self.missing.len() + self.present.len() + self.upstream.len() + left_out
    }
}
