//! Opens indexes in SQLite files.

use std::path::Path;

use super::database::Sqlite;
use super::open;
use super::options::SqliteOptions;
use super::session::failed;
use crate::dialects::Database;
use crate::known_keys::KnownKeys;
use crate::sql_index::SqlIndex;
use crate::{Error, MigrationPlan, Result};

/// Opens indexes in SQLite files.
#[derive(Debug)]
pub enum SqliteIndex {}

impl SqliteIndex {
    /// Opens a database, or makes it. Keys are read in the background; until then look-ups of
    /// unknown keys cost a statement.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<SqlIndex> {
        let path = path.as_ref();
        // Before the lock: nothing is made beside a file that is not ours.
        open::inspect(path).await?;
        let lock = open::lock_soon(path).await?;
        if open::inspect(path).await? {
            open::create(path).await?;
        }
        let mut writer = open::connect(path, options.busy_timeout, true).await?;
        open::migrate(&mut writer).await?;
        let database = Sqlite::connect(path, &options, writer, Some(lock)).await?;
        let known = KnownKeys::to_be_loaded();
        database.load_keys_in_background(&known).await;
        Ok(SqlIndex::over(Database::Sqlite(database), known))
    }

    /// Opens a database beside a process that may have it open, or open it later, in full. For
    /// followers: they may write what they alone know (publishing's rows) and correct rows, but
    /// must not add chunks, NARs, objects or caches, which the other process would call absent.
    /// Fails with [`Error::SchemaTooOld`](crate::Error::SchemaTooOld) if the schema is older than
    /// ours and the other process is there, so that it cannot be changed.
    pub async fn open_beside(path: impl AsRef<Path>, options: SqliteOptions) -> Result<SqlIndex> {
        let path = path.as_ref();
        if open::inspect(path).await? {
            return Err(failed(
                "open the database",
                std::io::Error::from(std::io::ErrorKind::NotFound).into(),
            ));
        }
        let mut writer = open::connect(path, options.busy_timeout, true).await?;
        // The lock is only taken when it is needed: a server that starts at this moment would be
        // refused.
        if let Err(too_old) = open::check_schema(&mut writer).await {
            match open::lock(path) {
                Ok(_lock) => open::migrate(&mut writer).await?,
                Err(Error::Locked { .. }) => return Err(too_old),
                Err(error) => return Err(error),
            }
        }
        let database = Sqlite::connect(path, &options, writer, None).await?;
        Ok(SqlIndex::over(Database::Sqlite(database), KnownKeys::unknown()))
    }

    /// What [`open`](Self::open) would do to the schema of a file, or of a new one. Writes nothing
    /// and makes nothing.
    pub async fn plan_migration(path: impl AsRef<Path>) -> Result<MigrationPlan> {
        open::plan(path.as_ref()).await
    }
}

#[cfg(test)]
impl SqlIndex {
    /// The database below an index of this dialect.
    pub(super) fn sqlite(&self) -> &Sqlite {
        let Database::Sqlite(database) = &self.database else { panic!("another dialect") };
        database
    }

    /// A session for tests.
    pub(super) async fn sqlite_session(&self, access: crate::access::Access<'_>) -> super::Session {
        self.sqlite().begin("test", access).await.expect("the database answers")
    }
}
