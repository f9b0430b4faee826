//! What ends by itself: graces and upload aliases, which go in pages, and counts for a plan.

use crate::sql::{Sql, both};

// `+ 0` is the expression of the index. PostgreSQL looks at the outer condition again when it has
// waited for a transaction that put the end off.
pub(crate) const EXPIRE_GRACES: Sql = both!(
    "DELETE FROM graces WHERE ends_at <= $1 AND (cache, hash, nar) IN
         (SELECT cache, hash, nar FROM graces WHERE ends_at + 0 <= $1 ORDER BY ends_at + 0 LIMIT $2)"
);
// Noted for the journal too; PostgreSQL does it with the deletion.
pub(super) const NOTE_EXPIRED_ALIASES: Sql = Sql {
    sqlite: "
        INSERT INTO journal_notes (cache, kind, name, changes)
        SELECT cache, 2, file_name, 1 FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
    postgres: Sql::NOTHING,
};
pub(crate) const EXPIRE_ALIASES: Sql = Sql {
    sqlite: "
        DELETE FROM aliases WHERE used_at <= $1 AND (cache, file_name) IN
            (SELECT cache, file_name FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2)",
    postgres: "
        WITH gone AS (
            DELETE FROM aliases WHERE used_at <= $1 AND (cache, file_name) IN
                (SELECT cache, file_name FROM aliases WHERE used_at + 0 <= $1 ORDER BY used_at + 0 LIMIT $2)
            RETURNING cache, file_name)
        INSERT INTO journal_notes (cache, kind, name, changes) SELECT cache, 2, file_name, 1 FROM gone
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
};
/// Ended graces and aliases, and old logs, that are counted for a plan.
pub(super) const ENDED_COUNTED: i64 = 100_000;
/// Counts no further than a limit: millions of graces may end together.
pub(super) const COUNT_ENDED: Sql = both!(
    "SELECT (SELECT count(*) FROM (SELECT 1 FROM graces WHERE ends_at + 0 <= $1 LIMIT $3) AS g),
         (SELECT count(*) FROM (SELECT 1 FROM aliases WHERE used_at + 0 <= $2 LIMIT $3) AS a)"
);
/// Counts no further than a limit, and reads no bodies.
pub(super) const COUNT_LOGS: Sql =
    both!("SELECT count(*) FROM (SELECT 1 FROM documents WHERE kind = 1 AND written_at < $1 LIMIT $2) AS d");
