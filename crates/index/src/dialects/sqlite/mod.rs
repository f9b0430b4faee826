//! The SQLite dialect: one file, one process.
//!
//! Invariants
//! - One connection writes, in transactions that take the write lock at once; the others only read.
//!   Commits are synced.
//! - A lock file keeps other processes out, so what this process calls unknown is not stored.
//! - Every wait is bounded, and what may work later is told from what is a defect in one place
//!   ([`session::failed`]).

mod backup;
mod examine;
mod keys;
#[cfg(test)]
mod large_tests;
mod open;
mod session;
#[cfg(test)]
mod tests;

pub use self::backup::DatabaseCopy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use self::open::DatabaseLock;
pub(crate) use self::session::Session;
use self::session::{Connections, Shared, failed};
use super::Database;
use crate::contract::PoolUse;
use crate::known_keys::KnownKeys;
use crate::sql_index::{Access, SqlIndex};
use crate::{Error, MigrationPlan, Result};

/// Opens indexes in SQLite files.
#[derive(Debug)]
pub enum SqliteIndex {}

/// Opening waits this long for the keys of a small database, so that its first look-ups are cheap
/// too. A large one answers meanwhile.
const KEYS_WAIT: Duration = Duration::from_millis(200);

/// How to run the database.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Connections that read. Each has a thread and up to 2 MiB of cache.
    pub readers: usize,
    /// How long SQLite waits for a lock that another program (a backup) holds.
    pub busy_timeout: Duration,
    /// Longest wait for a connection, and longest run of a statement.
    pub wait_max: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { readers: 4, busy_timeout: Duration::from_secs(10), wait_max: Duration::from_secs(30) }
    }
}

/// A SQLite file and the connections to it.
#[derive(Debug)]
pub(crate) struct Sqlite {
    writer: Arc<Connections>,
    readers: Arc<Connections>,
    pub(super) shared: Arc<Shared>,
    path: PathBuf,
    busy_timeout: Duration,
    /// Held for as long as the database is open, unless it was opened beside another process. Last,
    /// so that it outlives the connections.
    _lock: Option<DatabaseLock>,
}

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

impl Sqlite {
    async fn connect(
        path: &Path,
        options: &SqliteOptions,
        writer: SqliteConnection,
        lock: Option<DatabaseLock>,
    ) -> Result<Self> {
        let mut readers = Vec::with_capacity(options.readers.max(1));
        for _ in 0..options.readers.max(1) {
            readers.push(open::connect(path, options.busy_timeout, false).await?);
        }
        Ok(Self {
            writer: Arc::new(Connections::new(vec![writer])),
            readers: Arc::new(Connections::new(readers)),
            shared: Arc::new(Shared::new(options.wait_max)),
            path: path.to_owned(),
            busy_timeout: options.busy_timeout,
            _lock: lock,
        })
    }

    pub(super) async fn begin(&self, attempt: &'static str, access: Access<'_>) -> Result<Session> {
        match access {
            Access::Read => Session::take(&self.readers, &self.shared, attempt).await,
            // One connection writes: its turn is every lock at once.
            Access::Write(_) => Session::take(&self.writer, &self.shared, attempt).await?.begin().await,
        }
    }

    /// Also folds the log into the main file.
    pub(super) async fn close(&self) -> Result<()> {
        self.readers.close(&self.shared).await?;
        self.writer.close(&self.shared).await
    }

    pub(super) fn pool_use(&self) -> PoolUse {
        let (write, read) = (self.writer.pool_use(), self.readers.pool_use());
        PoolUse {
            open: write.open + read.open,
            idle: write.idle + read.idle,
            max: write.max + read.max,
            waiting: write.waiting + read.waiting,
        }
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
    pub(super) async fn sqlite_session(&self, access: Access<'_>) -> Session {
        self.sqlite().begin("test", access).await.expect("the database answers")
    }
}
