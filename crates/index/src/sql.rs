//! The transaction that statements run in.

use std::sync::{Arc, Mutex, PoisonError};

use crate::changes::Change;
use crate::dialects::Session;
use crate::rows::Row;
use crate::{Error, Result};

pub(crate) use crate::statement::{Argument, Column, Sql, both, damaged};

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
