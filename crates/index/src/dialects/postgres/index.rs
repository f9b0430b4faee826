//! Opens indexes in PostgreSQL databases.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;

use super::database::Postgres;
use super::options::PostgresOptions;
use super::session::Shared;
use super::{notices, open};
use crate::changes::ChangeSender;
use crate::dialects::Database;
use crate::known_keys::KnownKeys;
use crate::sql_index::SqlIndex;
use crate::{MigrationPlan, Result};

/// Opens indexes in PostgreSQL databases.
#[derive(Debug)]
pub enum PostgresIndex {}

/// The server has this long to end a statement that ran out of time, before the connection is given
/// up.
const SILENCE_MAX: Duration = Duration::from_secs(5);

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

#[cfg(test)]
impl SqlIndex {
    /// The database below an index of this dialect.
    pub(super) fn postgres(&self) -> &Postgres {
        let Database::Postgres(database) = &self.database else { panic!("another dialect") };
        database
    }

    /// A session for tests.
    pub(super) async fn postgres_session(&self, access: crate::access::Access<'_>) -> super::Session {
        self.postgres().begin("test", access).await.expect("the database answers")
    }
}
