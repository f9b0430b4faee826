//! Documents that belong to no object any more go, and logs that are too old.

use super::cursor::Cursor;
use super::step::{Outcome, Step};
use crate::Result;
use crate::contract::UnixSeconds;
use crate::sql::Argument::{Number, Numbers};
use crate::sql::{Sql, Transaction};
use crate::topics::documents;

/// Logs that a step removes at most because of their age: each takes a look for its objects.
const OLD_LOGS_MAX: usize = 256;

// Whether an object is left that a document belongs to. The name of a log is that of its
// derivation behind `log/`.
macro_rules! examine_documents {
    ($derivation:literal) => {
        concat!(
            "SELECT d.id, d.written_at, d.kind, d.name, CASE
                 WHEN d.kind = 1 THEN EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1 AND o.deriver = ",
            $derivation,
            ") ELSE EXISTS (SELECT 1 FROM objects AS o WHERE o.cache = $1 AND o.hash = d.owner) END
             FROM documents AS d WHERE d.cache = $1 AND d.id > $2 ORDER BY d.id LIMIT $3"
        )
    };
}
// The columns differ in their collation on PostgreSQL, and an index serves its own only.
pub(crate) const EXAMINE_DOCUMENTS: Sql = Sql {
    sqlite: examine_documents!("substr(d.name, 5)"),
    postgres: examine_documents!("substr(d.name, 5) COLLATE \"default\""),
};
// Noted for the journal too; PostgreSQL does it with the deletion.
const NOTE_DOCUMENTS: Sql = Sql {
    sqlite: "
        INSERT INTO journal_notes (cache, kind, name, changes)
        SELECT cache, 3, name, 1 FROM documents WHERE id IN (SELECT value FROM json_each($1))
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
    postgres: Sql::NOTHING,
};
pub(crate) const DELETE_DOCUMENTS: Sql = Sql {
    sqlite: "DELETE FROM documents WHERE id IN (SELECT value FROM json_each($1))",
    postgres: "
        WITH gone AS (DELETE FROM documents WHERE id = ANY ($1) RETURNING cache, name)
        INSERT INTO journal_notes (cache, kind, name, changes) SELECT cache, 3, name, 1 FROM gone
        ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1",
};

impl Step {
    /// Removes those of a page of documents that belong to no object, and logs that are too old. A
    /// document that was written within the grace stays: its path may still be on the way.
    pub(super) async fn remove_documents(&self, tx: &mut Transaction, cursor: Cursor) -> Result<Outcome> {
        let table = "documents";
        let page = [Number(self.cache.0), Number(cursor.id), Number(i64::from(self.limit))];
        let page = tx.rows(EXAMINE_DOCUMENTS, &page).await?;
        let is_older = |written_at: UnixSeconds, seconds: i64| written_at < self.now.saturating_sub(seconds);
        let (mut next, mut going, mut old_logs, mut is_cut) = (cursor, Vec::new(), Vec::new(), false);
        for row in &page {
            is_cut = old_logs.len() == OLD_LOGS_MAX;
            if is_cut {
                break;
            }
            next.id = row.column(0, table)?;
            let written_at: UnixSeconds = row.column(1, table)?;
            let (kind, name): (i64, String) = (row.column(2, table)?, row.column(3, table)?);
            let has_object: bool = row.column(4, table)?;
            let log_seconds = self.defaults.log_retention_seconds;
            let is_old_log = kind == documents::LOG && log_seconds > 0 && is_older(written_at, log_seconds);
            let is_orphan = !has_object
                && is_older(written_at, self.defaults.grace_seconds)
                && !(kind == documents::LOG && self.policy.keeps_everything());
            if is_old_log || is_orphan {
                going.push(next.id);
            }
            if is_old_log && has_object {
                old_logs.push(name);
            }
        }
        let mut rows = 0;
        if !going.is_empty() {
            documents::tell_outputs(tx, self.cache, &old_logs, self.now).await?;
            tx.run(NOTE_DOCUMENTS, &[Numbers(&going)]).await?;
            rows = tx.run(DELETE_DOCUMENTS, &[Numbers(&going)]).await?;
        }
        let next = (is_cut || page.len() == self.limit as usize).then_some(next);
        Ok(Outcome { next, rows })
    }
}
