//! The PostgreSQL dialect: a server, any number of replicas.
//!
//! Invariants
//! - What two transactions have to agree on is locked before it is looked at; rows are locked in
//!   one order everywhere.
//! - A call that another transaction was in the way of is repeated, with growing random pauses; so
//!   is one whose connection was lost, unless it may have been carried out and a second time would
//!   not be the same.
//! - Every wait is bounded: for a connection, a lock, a statement, an idle transaction, and for a
//!   server that went silent.
//! - Nothing is remembered between calls: other replicas write too.

mod examine;
#[cfg(test)]
mod large_tests;
mod notices;
mod open;
#[cfg(test)]
mod pooler_tests;
mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::task::AbortHandle;

pub(crate) use self::session::Session;
use self::session::Shared;
use super::Database;
use crate::changes::ChangeSender;
use crate::contract::PoolUse;
use crate::known_keys::KnownKeys;
use crate::sql_index::{Access, Effect, SqlIndex};
use crate::{Error, MigrationPlan, Result};

/// Opens indexes in PostgreSQL databases.
#[derive(Debug)]
pub enum PostgresIndex {}

/// The server has this long to end a statement that ran out of time, before the connection is given
/// up.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How to use the server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Most connections of this process; one more listens for changes.
    pub connections_max: u32,
    /// Longest wait for a free connection, and for a server that does not accept any.
    pub acquire_timeout: Duration,
    /// Longest run of a statement, and longest pause within a transaction.
    pub statement_timeout: Duration,
    /// Longest wait for what another transaction holds.
    pub lock_timeout: Duration,
    /// Whether a pooler gives every transaction another connection (PgBouncer's
    /// `pool_mode = transaction`). Then no process can listen for changes, nothing is prepared, and
    /// every look-up is a transaction.
    pub transaction_pooler: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            transaction_pooler: false,
        }
    }
}

/// A PostgreSQL database and the connections to it.
#[derive(Debug)]
pub(crate) struct Postgres {
    pool: PgPool,
    pub(super) shared: Arc<Shared>,
    pub(super) changes: ChangeSender,
    listener: Option<AbortHandle>,
    /// How long a call may go on trying.
    pub(super) patience: Duration,
}

impl PostgresIndex {
    /// Opens a database and brings its schema up to date. `url` is
    /// `postgresql://user:password@host:port/database`, with `sslmode` and the other parameters of
    /// libpq behind a `?`.
    pub async fn open(url: &str, options: PostgresOptions) -> Result<SqlIndex> {
        let connect = open::connect_options(url, &options)?;
        open::prepare(&connect, &options).await?;
        let settings = open::transaction_settings(&options);
        let answer_max = options.statement_timeout + SILENCE_MAX;
        let shared = Arc::new(Shared::new(answer_max, options.transaction_pooler, settings));
        let pool = open::pool_options(&options, &shared).connect_lazy_with(connect.clone());
        let changes = ChangeSender::new();
        let listener = (!options.transaction_pooler).then(|| {
            let one = PgPoolOptions::new().max_connections(1).acquire_timeout(options.acquire_timeout);
            let one = one.max_lifetime(None).idle_timeout(None).connect_lazy_with(connect);
            tokio::spawn(notices::listen(one, changes.clone())).abort_handle()
        });
        let database = Postgres { pool, shared, changes, listener, patience: options.acquire_timeout };
        // Other replicas add keys, too.
        Ok(SqlIndex::over(Database::Postgres(database), KnownKeys::unknown()))
    }

    /// What [`open`](Self::open) would do to the schema. Writes nothing.
    pub async fn plan_migration(url: &str, options: &PostgresOptions) -> Result<MigrationPlan> {
        open::plan(&open::connect_options(url, options)?, options).await
    }

    /// The URL without user and password, for messages. Fails if the text is no URL.
    pub fn name_of(url: &str) -> Result<String> {
        open::name_of(url)
    }
}

impl Postgres {
    fn stop_listening(&self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }

    pub(super) async fn begin(&self, attempt: &'static str, access: Access<'_>) -> Result<Session> {
        Session::begin(&self.pool, &self.shared, attempt, access).await
    }

    pub(super) fn effect(&self, error: &Error) -> Effect {
        if session::is_lost(error) {
            self.shared.note_loss();
        }
        session::effect(error)
    }

    /// Running calls end by their own time-outs.
    pub(super) async fn close(&self) {
        self.stop_listening();
        self.pool.close().await;
    }

    pub(super) fn pool_use(&self) -> PoolUse {
        let (open, idle) = (self.pool.size() as usize, self.pool.num_idle());
        let max = self.pool.options().get_max_connections() as usize;
        // Two numbers, read one after the other.
        PoolUse { open, idle: idle.min(open), max, waiting: self.shared.waiting() }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

#[cfg(test)]
impl SqlIndex {
    /// The database below an index of this dialect.
    pub(super) fn postgres(&self) -> &Postgres {
        let Database::Postgres(database) = &self.database else { panic!("another dialect") };
        database
    }

    /// A session for tests.
    pub(super) async fn postgres_session(&self, access: Access<'_>) -> Session {
        self.postgres().begin("test", access).await.expect("the database answers")
    }
}
