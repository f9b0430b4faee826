//! What a collection would free, and what it did: the numbers that an operator reads.

use dormer_index::{LastCollection, UnixSeconds};
use serde::{Deserialize, Serialize};

use super::plan::{CompactionTotals, PackTotals, RewriteGroup};
use crate::{Error, Result};

/// What a collection would free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionPlan {
    /// Bytes of all packs that the plan looked at.
    #[serde(default)]
    pub pack_bytes: u64,
    /// NARs without a name.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Packs that would be condemned: no NAR needs them.
    pub condemn: PackTotals,
    /// Packs that are condemned already, and whose grace is not over.
    pub wait: PackTotals,
    /// Packs that would be removed.
    pub remove: PackTotals,
    /// Packs that would be compacted, and what that costs.
    pub compact: CompactionTotals,
    /// Packs that would be recompressed, by this collection and the next ones. What they would be
    /// then is not known: the bytes to write are those that are read.
    #[serde(default)]
    pub recompress: CompactionTotals,
    /// Graces that are over: paths whose NARs stay no longer for them.
    #[serde(default)]
    pub graces: u64,
    /// Upload aliases that no longer resolve.
    #[serde(default)]
    pub aliases: u64,
}

impl CollectionPlan {
    pub(super) fn totals_of(&mut self, group: &RewriteGroup) -> &mut CompactionTotals {
        if group.level.is_some() { &mut self.recompress } else { &mut self.compact }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectionReport {
    /// Graces that were over.
    pub graces: u64,
    /// Upload aliases that no longer resolved.
    pub aliases: u64,
    /// NARs without a name.
    pub nars: u64,
    /// Their bytes, uncompressed.
    pub nar_bytes: u64,
    /// Packs that were condemned. Their bytes are freed by a later collection.
    pub condemned: PackTotals,
    /// Packs that were condemned before, and wait.
    pub waiting: PackTotals,
    /// Packs whose rows were removed.
    pub removed: PackTotals,
    /// Objects that were deleted from the store.
    pub objects_deleted: u64,
    /// Failed attempts to delete an object. A later collection tries again.
    pub objects_left: u64,
    /// Packs without a row that a listing found first. A later collection deletes them.
    pub strays_found: u64,
    /// Packs without a row that stay: they are most of the store, which another database may use,
    /// or older than the database. The last listing found them, which may be one of an earlier
    /// collection.
    pub strays_kept: u64,
    /// Packs that were compacted and condemned, and what that cost.
    pub compacted: CompactionTotals,
    /// Packs that were recompressed and condemned, and what that cost. It does not count those that
    /// are hardly smaller at the higher level, which stay.
    pub recompressed: CompactionTotals,
    /// NARs of removed paths whose bytes left the store without their grace.
    pub purged: u64,
    /// Those of which some bytes have to wait.
    pub purges_left: u64,
    /// When the first path was removed of those whose bytes have to wait.
    pub oldest_purge: Option<UnixSeconds>,
    /// Packs that keep bytes of removed paths because a live path needs a damaged chunk of them. No
    /// later collection changes that: a push has to store the chunk again.
    pub purge_packs_damaged: u64,
}

/// The last whole collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedCollection {
    /// When it ended.
    pub ended_at: UnixSeconds,
    /// What it did.
    pub report: CollectionReport,
}

impl EndedCollection {
    pub(super) fn read(last: &LastCollection) -> Result<Option<Self>> {
        let Some(ended_at) = last.ended_at else { return Ok(None) };
        let report = serde_json::from_str(&last.report).map_err(|error| {
            Error::Index(dormer_index::Error::Corrupt { table: "last_collection", what: error.to_string() })
        })?;
        Ok(Some(Self { ended_at, report }))
    }
}
