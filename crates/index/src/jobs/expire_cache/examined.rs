//! What is looked at of an object: what keeps it, and what it counts for the quota.

use dormer_nix::StorePathHash;

use crate::Result;
use crate::columns::{store_path, unpack_references, unsigned};
use crate::contract::UnixSeconds;
use crate::rows::Row;
use crate::sql::Sql;

/// What an object counts for a quota: its NAR as clients download it, its traces, and the log of
/// its derivation. The log counts for each output: where one goes and another stays, the log stays.
/// On PostgreSQL, `$collation` is that of the indexes by name; columns of objects have another.
macro_rules! counted_bytes {
    ($collation:literal) => {
        concat!(
            "n.file_size
             + CAST((SELECT coalesce(sum(d.size), 0) FROM documents AS d
                 WHERE d.cache = o.cache AND d.owner = o.hash AND d.kind = 2) AS BIGINT)
             + coalesce((SELECT l.size FROM documents AS l WHERE l.cache = o.cache AND l.name = ('log/' || o.deriver)",
            $collation,
            "), 0)"
        )
    };
}

/// What is looked at of an object: `$1` is the cache, `$2` is now, `$3` how many of a name are
/// kept. `$more` are columns behind these.
macro_rules! examine {
    ($collation:literal, $from:expr) => {
        examine!($collation, "", $from)
    };
    ($collation:literal, $more:literal, $from:expr) => {
        concat!(
            "SELECT o.hash, o.name, o.refs, o.nar, o.last_used_at, o.pushed_at, ",
            counted_bytes!($collation),
            ",
                 EXISTS (SELECT 1 FROM object_refs AS r WHERE r.cache = o.cache AND r.reference = o.hash),
                 EXISTS (SELECT 1 FROM pins AS p WHERE p.cache = o.cache AND p.hash = o.hash
                     AND (p.ends_at IS NULL OR p.ends_at > $2)),
                 (SELECT count(*) FROM (SELECT 1 FROM objects AS m WHERE m.cache = o.cache AND m.name = o.name",
            $collation,
            "
                     AND (m.created_at, m.id) > (o.created_at, o.id) LIMIT $3) AS newer), o.id",
            $more,
            "
             FROM ",
            $from
        )
    };
}

macro_rules! examine_page {
    ($collation:literal) => {
        concat!(
            examine!($collation, "objects AS o CROSS JOIN nars AS n"),
            " WHERE o.cache = $1 AND n.id = o.nar AND (o.last_used_at, o.id) > ($4, $5) AND o.last_used_at < $6
             ORDER BY o.last_used_at, o.id LIMIT $7"
        )
    };
}

pub(crate) const EXAMINE_PAGE: Sql =
    Sql { sqlite: examine_page!(""), postgres: examine_page!(" COLLATE \"C\"") };
pub(crate) const EXAMINE_FREED: Sql = Sql {
    sqlite: concat!(
        examine!("", "json_each($4) AS k CROSS JOIN objects AS o CROSS JOIN nars AS n"),
        " WHERE o.cache = $1 AND o.hash = unhex(k.value) AND n.id = o.nar"
    ),
    postgres: concat!(
        examine!(" COLLATE \"C\"", "objects AS o JOIN nars AS n ON n.id = o.nar"),
        " WHERE o.cache = $1 AND o.hash = ANY ($4::bytea[])"
    ),
};
macro_rules! examine_one {
    ($collation:literal) => {
        concat!(
            examine!(
                $collation,
                ", EXISTS (SELECT 1 FROM publish_caches AS published WHERE published.cache = o.cache)",
                "objects AS o CROSS JOIN nars AS n"
            ),
            " WHERE o.cache = $1 AND o.hash = $4 AND n.id = o.nar"
        )
    };
}
pub(crate) const EXAMINE_ONE: Sql =
    Sql { sqlite: examine_one!(""), postgres: examine_one!(" COLLATE \"C\"") };
macro_rules! sum_objects {
    ($collation:literal) => {
        concat!(
            "SELECT o.hash, ",
            counted_bytes!($collation),
            " FROM objects AS o CROSS JOIN nars AS n
             WHERE o.cache = $1 AND o.hash > $2 AND n.id = o.nar ORDER BY o.hash LIMIT $3"
        )
    };
}
pub(crate) const SUM_OBJECTS: Sql =
    Sql { sqlite: sum_objects!(""), postgres: sum_objects!(" COLLATE \"C\"") };

/// An object, and what keeps it.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) id: i64,
    pub(super) hash: StorePathHash,
    pub(super) references: Vec<StorePathHash>,
    pub(super) nar: i64,
    pub(super) last_used_at: UnixSeconds,
    pub(super) pushed_at: UnixSeconds,
    pub(super) file_size: u64,
    pub(super) is_referred_to: bool,
    pub(super) is_pinned: bool,
    /// Newer ones of its name, counted up to how many are kept.
    pub(super) newer: i64,
}

pub(super) fn read_examined(row: &Row) -> Result<Examined> {
    let table = "objects";
    let path = store_path(row.column(0, table)?, row.column(1, table)?)?;
    let references = unpack_references(&path, row.column(2, table)?)?;
    Ok(Examined {
        id: row.column(10, table)?,
        hash: path.hash(),
        references: references
            .iter()
            .map(dormer_nix::StorePath::hash)
            .filter(|hash| *hash != path.hash())
            .collect(),
        nar: row.column(3, table)?,
        last_used_at: row.column(4, table)?,
        pushed_at: row.column(5, table)?,
        file_size: unsigned("nars", row.column(6, "nars")?)?,
        is_referred_to: row.column(7, table)?,
        is_pinned: row.column(8, table)?,
        newer: row.column(9, table)?,
    })
}
