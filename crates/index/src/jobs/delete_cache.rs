//! The job that removes what a deleted cache left: objects first, then graces,
//! aliases, references, pins and documents, the end of its sessions, and its history.
//!
//! The deletion itself is a short transaction of the topic of caches: from then on no look-up finds
//! anything of the cache, and no commit adds to it. So a page that the cursor has passed stays
//! empty, and the job needs no second pass.
//!
//! The cursor is one byte for the table and the last key of the page. It keeps a step cheap on
//! PostgreSQL: a scan from the front would read all dead entries of earlier steps again.

use super::contract::{JobLease, JobStep};
use super::work::{advance_job, finish_job, hold_job};
use crate::Result;
use crate::columns::corrupt;
use crate::contract::UnixSeconds;
use crate::sql::{Argument, Sql, Transaction, both};
use crate::topics::history::DELETE_HISTORY;

use Argument::{Bytes, Number, Text};

/// The statements of one table. `$1` is the cache and `$2` the last key of the page before.
struct Table {
    /// The last key of a page; no row when fewer rows are left. `$3` is the page's length less one.
    last_key: Sql,
    /// Removes a page; `$3` is its last key.
    delete_page: Sql,
    /// Removes the rest.
    delete_rest: Sql,
    key_is_text: bool,
}

/// A statement about `object_refs`; the key is the reference and the referrer, one after the other.
macro_rules! refs {
    ($($part:tt),+) => {
        Sql {
            sqlite: concat!($(refs!(@sqlite $part)),+),
            postgres: concat!($(refs!(@postgres $part)),+),
        }
    };
    (@sqlite key) => { "unhex(hex(reference) || hex(referrer))" };
    (@postgres key) => { "reference || referrer" };
    // Part of an empty blob would be NULL.
    (@sqlite 2) => { "(unhex(substr(hex($2), 1, 40)), unhex(substr(hex($2), 41)))" };
    (@sqlite 3) => { "(unhex(substr(hex($3), 1, 40)), unhex(substr(hex($3), 41)))" };
    (@postgres 2) => { "(substr($2::bytea, 1, 20), substr($2::bytea, 21))" };
    (@postgres 3) => { "(substr($3::bytea, 1, 20), substr($3::bytea, 21))" };
    (@sqlite $text:literal) => { $text };
    (@postgres $text:literal) => { $text };
}

// A page of graces may be longer: a path that was pushed again and again has several, which go
// together.
const TABLES: [Table; 7] = [
    Table {
        last_key: both!(
            "SELECT hash FROM objects WHERE cache = $1 AND hash > $2 ORDER BY hash LIMIT 1 OFFSET $3"
        ),
        delete_page: both!("DELETE FROM objects WHERE cache = $1 AND hash > $2 AND hash <= $3"),
        delete_rest: both!("DELETE FROM objects WHERE cache = $1 AND hash > $2"),
        key_is_text: false,
    },
    Table {
        last_key: both!(
            "SELECT hash FROM graces WHERE cache = $1 AND hash > $2 ORDER BY hash LIMIT 1 OFFSET $3"
        ),
        delete_page: both!("DELETE FROM graces WHERE cache = $1 AND hash > $2 AND hash <= $3"),
        delete_rest: both!("DELETE FROM graces WHERE cache = $1 AND hash > $2"),
        key_is_text: false,
    },
    Table {
        last_key: both!(
            "SELECT file_name FROM aliases WHERE cache = $1 AND file_name > $2
             ORDER BY file_name LIMIT 1 OFFSET $3"
        ),
        delete_page: both!("DELETE FROM aliases WHERE cache = $1 AND file_name > $2 AND file_name <= $3"),
        delete_rest: both!("DELETE FROM aliases WHERE cache = $1 AND file_name > $2"),
        key_is_text: true,
    },
    // The key is both columns: a path may have any number of referrers.
    Table {
        last_key: refs!(
            "SELECT ",
            key,
            " FROM object_refs WHERE cache = $1 AND (reference, referrer) > ",
            2,
            "
             ORDER BY reference, referrer LIMIT 1 OFFSET $3"
        ),
        delete_page: refs!(
            "DELETE FROM object_refs WHERE cache = $1 AND (reference, referrer) > ",
            2,
            " AND (reference, referrer) <= ",
            3,
            ""
        ),
        delete_rest: refs!("DELETE FROM object_refs WHERE cache = $1 AND (reference, referrer) > ", 2, ""),
        key_is_text: false,
    },
    Table {
        last_key: both!(
            "SELECT name FROM pins WHERE cache = $1 AND name > $2 ORDER BY name LIMIT 1 OFFSET $3"
        ),
        delete_page: both!("DELETE FROM pins WHERE cache = $1 AND name > $2 AND name <= $3"),
        delete_rest: both!("DELETE FROM pins WHERE cache = $1 AND name > $2"),
        key_is_text: true,
    },
    Table {
        last_key: both!(
            "SELECT name FROM documents WHERE cache = $1 AND name > $2 ORDER BY name LIMIT 1 OFFSET $3"
        ),
        delete_page: both!("DELETE FROM documents WHERE cache = $1 AND name > $2 AND name <= $3"),
        delete_rest: both!("DELETE FROM documents WHERE cache = $1 AND name > $2"),
        key_is_text: true,
    },
    // A session may have many parts, so it only ends here. Its rows are swept in pages of their
    // own.
    Table {
        last_key: both!("SELECT id FROM sessions WHERE cache = $1 AND id > $2 ORDER BY id LIMIT 1 OFFSET $3"),
        delete_page: both!("UPDATE sessions SET ends_at = 0 WHERE cache = $1 AND id > $2 AND id <= $3"),
        delete_rest: both!("UPDATE sessions SET ends_at = 0 WHERE cache = $1 AND id > $2"),
        key_is_text: false,
    },
];

/// Removes one page of one table. The step that empties the last table is the last one.
pub(crate) async fn delete_cache_step(
    tx: &mut Transaction,
    lease: &JobLease,
    limit: u32,
    at: UnixSeconds,
    ends_at: UnixSeconds,
) -> Result<JobStep> {
    let progress = hold_job(tx, lease).await?;
    let cache = Number(lease.cache()?.0);
    let cursor = progress.cursor.as_deref().unwrap_or(&[0]);
    let (number, after) = cursor.split_first().ok_or_else(|| corrupt("jobs", "an empty cursor"))?;
    let table = TABLES.get(usize::from(*number)).ok_or_else(|| corrupt("jobs", "a cursor past the end"))?;
    let after = table.key(after)?;
    let offset = Number(i64::from(limit.max(1)) - 1);
    let rows = tx.rows(table.last_key, &[cache, after, offset]).await?;
    if let Some(row) = rows.first() {
        let last = if table.key_is_text {
            row.column::<String>(0, "aliases")?.into_bytes()
        } else {
            row.column(0, "objects")?
        };
        let rows = tx.run(table.delete_page, &[cache, after, table.key(&last)?]).await?;
        advance_job(tx, lease, &[&[*number], last.as_slice()].concat(), rows, at, ends_at).await?;
        return Ok(JobStep { rows, is_last: false });
    }
    let rows = tx.run(table.delete_rest, &[cache, after]).await?;
    let next = number + 1;
    let is_last = usize::from(next) == TABLES.len();
    if is_last {
        // Few rows: the history is trimmed.
        tx.run(DELETE_HISTORY, &[cache]).await?;
        finish_job(tx, lease).await?;
    } else {
        advance_job(tx, lease, &[next], rows, at, ends_at).await?;
    }
    Ok(JobStep { rows, is_last })
}

impl Table {
    fn key<'k>(&self, bytes: &'k [u8]) -> Result<Argument<'k>> {
        if !self.key_is_text {
            return Ok(Bytes(bytes));
        }
        std::str::from_utf8(bytes).map(Text).map_err(|error| corrupt("jobs", error))
    }
}
