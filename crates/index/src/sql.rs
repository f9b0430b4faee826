//! A statement in both dialects, its arguments, and the transaction that it runs in.

use std::sync::{Arc, Mutex, PoisonError};

use crate::changes::Change;
use crate::dialects::Session;
use crate::rows::Row;
use crate::{Error, Result};

/// A statement in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl Sql {
    /// For a dialect whose statement before this one does all of the work. It is not sent.
    pub(crate) const NOTHING: &'static str = "";
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Flag(bool),
    OptionalFlag(Option<bool>),
    Number(i64),
    OptionalNumber(Option<i64>),
    Bytes(&'a [u8]),
    OptionalBytes(Option<&'a [u8]>),
    Text(&'a str),
    OptionalText(Option<&'a str>),
    /// Many keys. PostgreSQL takes an array, SQLite a JSON array of hexadecimal texts.
    List(&'a [&'a [u8]]),
    /// Many numbers. PostgreSQL takes an array, SQLite a JSON array.
    Numbers(&'a [i64]),
    /// Many rows of several columns. It must be the last argument: PostgreSQL takes one array for
    /// each column, SQLite one JSON array of rows.
    Table(&'a [Column<'a>]),
}

/// A column of [`Argument::Table`]. All columns of a table have the same length.
#[derive(Debug)]
pub(crate) enum Column<'a> {
    Numbers(Vec<i64>),
    Bytes(Vec<&'a [u8]>),
}

/// A session that is lent to the work of one call. It goes back when it is dropped, so the work has
/// nothing to return but its result.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// `None` only while this is dropped.
    session: Option<Session>,
    home: Arc<Mutex<Option<Session>>>,
}

impl Transaction {
    /// Lends a session. It comes back to `home`.
    pub(crate) fn lend(session: Session, home: &Arc<Mutex<Option<Session>>>) -> Self {
        Self { session: Some(session), home: Arc::clone(home) }
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("taken only when dropped")
    }

    /// Runs a statement and returns how many rows it changed.
    pub(crate) async fn run(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<u64> {
        self.session().run(sql, arguments).await
    }

    /// Runs a statement that gives rows.
    pub(crate) async fn rows(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Vec<Row>> {
        self.session().rows(sql, arguments).await
    }

    /// Tells other replicas of a change when the transaction commits. SQLite has no other replicas.
    pub(crate) async fn announce(&mut self, change: Change) -> Result<()> {
        self.session().announce(change).await
    }

    /// Runs a statement that gives at most one row. All rows are read, so that a statement which
    /// also writes runs to its end.
    pub(crate) async fn optional(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Option<Row>> {
        Ok(self.rows(sql, arguments).await?.pop())
    }

    /// Runs a statement that gives exactly one row.
    pub(crate) async fn one(&mut self, sql: Sql, arguments: &[Argument<'_>]) -> Result<Row> {
        let row = self.optional(sql, arguments).await?;
        let attempt = self.session().attempt();
        row.ok_or(Error::Database { attempt, source: sqlx::Error::RowNotFound })
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.session.take();
    }
}

/// Writes one text for both dialects.
macro_rules! both {
    ($text:expr) => {
        crate::sql::Sql { sqlite: $text, postgres: $text }
    };
    // Text, the number of a parameter that is a list of keys, text. The list stands between as a
    // table with the column `item`.
    ($before:expr, list $number:literal, $after:expr) => {
        crate::sql::Sql {
            sqlite: concat!(
                $before,
                " (SELECT unhex(value) AS item FROM json_each($",
                $number,
                ")) ",
                $after
            ),
            postgres: concat!(
                $before,
                " (SELECT item FROM unnest($",
                $number,
                "::bytea[]) AS l (item)) ",
                $after
            ),
        }
    };
    // The same with the columns `target` and `cache` too, which are the parameters 1 and 2. The
    // OFFSET keeps the planner from seeing through it: a statement that joins on `k.target` and
    // `k.cache` can only begin at the keys and look each one up. Compared with `$1` and `$2`, a
    // planner that has no figures expects a handful of rows of a cache, and compares each row with
    // each key.
    ($before:expr, keyed $number:literal, $after:expr) => {
        crate::sql::Sql {
            sqlite: concat!(
                $before,
                " (SELECT $1 AS target, $2 AS cache, unhex(value) AS item FROM json_each($",
                $number,
                ") LIMIT -1 OFFSET 0) ",
                $after
            ),
            postgres: concat!(
                $before,
                " (SELECT $1::bigint AS target, $2::bigint AS cache, item FROM unnest($",
                $number,
                "::bytea[]) AS l (item) OFFSET 0) ",
                $after
            ),
        }
    };
}
pub(crate) use both;

/// When a NAR was found damaged, or NULL: by itself, or because it needs a damaged chunk. The
/// parameter is the name that the statement gives to the table `nars`. The table `damaged_nars` is
/// nearly always empty, so this is one look into an empty index and no statement of its own.
macro_rules! damaged {
    ($nar:literal) => {
        concat!(
            "coalesce(",
            $nar,
            ".damaged_at, (SELECT max(dc.damaged_at) FROM damaged_nars AS d CROSS JOIN chunks AS dc
                 WHERE d.nar = ",
            $nar,
            ".id AND dc.number = d.chunk))"
        )
    };
}
pub(crate) use damaged;
