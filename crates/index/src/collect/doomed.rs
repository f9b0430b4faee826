//! The list of doomed packs: objects in the store that no row knows, and when they may be deleted.

use std::collections::{HashMap, HashSet};

use dormer_format::PackId;

use super::contract::{DoomedPack, PackFate, RowlessPack};
use crate::Result;
use crate::contract::UnixSeconds;
use crate::rows::{Row, read_pack_id};
use crate::sql::Argument::List;
use crate::sql::{Sql, Transaction, both};

/// The deadline of a doomed pack whose object is never deleted.
pub(super) const NEVER: UnixSeconds = UnixSeconds::MAX;
/// What `doomed_packs.had_row` says of an object that a listing found, or to which no chunk moved.
pub(super) const HAD_NO_ROW: i64 = 0;
/// Of a pack that had chunk rows and lost them at the time in `not_before`.
pub(super) const LOST_ROW: i64 = 1;
/// Of a pack that a compaction noted before it stored it.
pub(super) const NEW_PACK: i64 = 2;

const PACKS_WITH_ROW: Sql =
    both!("SELECT p.id FROM", list 1, "AS k CROSS JOIN packs AS p WHERE p.id = k.item");
const PACKS_ON_LIST: Sql = both!(
    "SELECT d.id, d.not_before FROM", list 1, "AS k CROSS JOIN doomed_packs AS d WHERE d.id = k.item"
);
pub(super) const DOOM_STRAYS: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before) SELECT k.item, $2 FROM", list 1,
    "AS k WHERE NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = k.item)
     ON CONFLICT (id) DO NOTHING"
);
// A listing may have found the object before the pack got its row.
pub(super) const DOOM_REMOVED: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before, had_row) SELECT k.item, $2, $3 FROM", list 1,
    "AS k WHERE true ON CONFLICT (id) DO UPDATE SET not_before = excluded.not_before, had_row = excluded.had_row"
);
pub(super) const DOOMED: Sql = both!(
    "SELECT d.id, d.not_before, d.had_row FROM doomed_packs AS d WHERE (d.not_before, d.id) > ($1, $2)
         AND d.not_before <= $3
         AND NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = d.id)
     ORDER BY d.not_before, d.id LIMIT $4"
);
pub(super) const COPIES: Sql = both!(
    "SELECT d.not_before FROM doomed_packs AS d
     WHERE d.not_before < 9223372036854775807 AND (d.had_row <> 1 OR d.not_before >= $1)
         AND NOT EXISTS (SELECT 1 FROM packs AS p WHERE p.id = d.id) LIMIT 1"
);
pub(super) const DOOM_NEW_PACK: Sql = both!(
    "INSERT INTO doomed_packs (id, not_before, had_row) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING"
);
pub(super) const HASTEN_NEW_PACKS: Sql = both!(
    "UPDATE doomed_packs SET not_before = $3 WHERE had_row = $1 AND not_before > $3 AND not_before <= $2"
);
pub(super) const RELEASE: Sql = both!(
    "UPDATE doomed_packs SET not_before = $2
     WHERE not_before = 9223372036854775807 AND id IN (SELECT k.item FROM", list 1, "AS k)"
);
pub(super) const FORGET_DOOMED: Sql =
    both!("DELETE FROM doomed_packs WHERE id IN (SELECT k.item FROM", list 1, "AS k)");

/// Those of these packs that have no row, and what is to become of them
/// ([`CollectIndex::packs_without_row`](super::CollectIndex::packs_without_row)).
pub(super) async fn without_row(tx: &mut Transaction, packs: &[PackId]) -> Result<Vec<RowlessPack>> {
    let keys = keys(packs);
    let rows = tx.rows(PACKS_WITH_ROW, &[List(&keys)]).await?;
    let known = rows.iter().map(read_pack_id).collect::<Result<HashSet<_>>>()?;
    let mut noted = HashMap::new();
    for row in tx.rows(PACKS_ON_LIST, &[List(&keys)]).await? {
        let not_before: UnixSeconds = row.column(1, "doomed packs")?;
        let fate = if not_before == NEVER { PackFate::Kept } else { PackFate::Doomed };
        noted.insert(read_pack_id(&row)?, fate);
    }
    let without = packs.iter().filter(|pack| !known.contains(pack));
    Ok(without
        .map(|id| RowlessPack { id: *id, fate: noted.get(id).copied().unwrap_or(PackFate::Open) })
        .collect())
}

/// Columns: id, time.
pub(super) fn read_doomed(row: &Row) -> Result<DoomedPack> {
    let table = "doomed_packs";
    // A compaction may have moved chunks into a pack that it noted after this database was copied.
    let is_stray = row.column::<i64>(2, table)? != LOST_ROW;
    Ok(DoomedPack { id: read_pack_id(row)?, not_before: row.column(1, table)?, is_stray })
}

pub(super) fn keys(packs: &[PackId]) -> Vec<&[u8]> {
    packs.iter().map(|pack| pack.as_bytes().as_slice()).collect()
}
