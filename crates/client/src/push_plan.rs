//! The plan of a push: a value that a dry run prints and that `execute_push` carries out.

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
    /// The derivations that made what the cache has or gets, each once.
    pub derivers: Vec<StorePath>,
    /// Paths left out because they are not valid in the local store.
    pub invalid: Vec<StorePath>,
}

impl PushPlan {
    /// Total size of the NARs to upload, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|info| info.nar_size).sum()
    }

    /// Number of all paths in the plan.
    pub fn path_count(&self) -> usize {
        let left_out = self.excluded.len() + self.incomplete.len() + self.invalid.len();
        self.missing.len() + self.present.len() + self.upstream.len() + left_out
    }
}
