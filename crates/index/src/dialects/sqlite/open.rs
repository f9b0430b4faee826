//! Opening a database file: which program made it, which process uses it, and the settings of its
//! connections.
//!
//! Invariants
//! - A file that is not ours is looked at through its bytes and an immutable connection: nothing is
//!   written, no file is made beside it.
//! - Our mark (`application_id`) is in the main file before it goes to write-ahead logging, so a
//!   crash at any moment leaves a file that is known as ours.
//! - One process at a time holds the lock file; it may rely on being the only one that adds rows.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::session::failed;
use crate::migrations::{self, MigrationPlan};
use crate::{Error, Result};

/// `DORM`, in the header of every database of ours.
const APPLICATION_ID: u32 = 0x444f_524d;

/// Where a database's header says whose it is: `application_id`, 32 bits, big-endian.
const APPLICATION_ID_OFFSET: usize = 68;

/// First bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How large the write-ahead log stays between checkpoints; SQLite checkpoints at about this size.
const LOG_BYTES_KEPT: u32 = 4 * 1024 * 1024;

const OPEN: &str = "open the database";

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(migrations::sqlite);

/// Newest schema known.
pub(super) fn schema_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().expect("there is a migration")
}

/// Refuses a file that is not ours. Returns whether there is none yet.
pub(super) async fn inspect(path: &Path) -> Result<bool> {
    let header = match read_header(path) {
        Ok(header) => header,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed(OPEN, error.into())),
    };
    if header.is_empty() {
        return Ok(true);
    }
    let foreign = |owner: String| Err(Error::ForeignDatabase { path: path.display().to_string(), owner });
    if !header.starts_with(MAGIC) || header.len() < 100 {
        return foreign("another program".to_owned());
    }
    if header[APPLICATION_ID_OFFSET..].starts_with(&APPLICATION_ID.to_be_bytes()) {
        return Ok(false);
    }
    foreign(owner(path).await.unwrap_or_else(|_| "another program".to_owned()))
}

fn read_header(path: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(100);
    File::open(path)?.take(100).read_to_end(&mut header)?;
    Ok(header)
}

/// Whose tables are in there?
async fn owner(path: &Path) -> sqlx::Result<String> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    let mut connection = options.disable_statement_logging().connect().await?;
    let rows = sqlx::query("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .fetch_all(&mut connection)
        .await;
    connection.close().await?;
    let tables = rows?.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<Vec<String>>>()?;
    let has = |name: &str| tables.iter().any(|table| table == name);
    // "nar" and "chunkref" are together in Attic's schema only; the third is its migration tool's.
    let attic = has("chunkref") && has("nar") || has("seaql_migrations");
    Ok(if attic { "Attic" } else { "another program" }.to_owned())
}

/// The lock beside a database. Dropping it gives the lock back at once, even while a child that
/// this process is starting still has a copy of the open file.
#[derive(Debug)]
pub(super) struct DatabaseLock(File);

impl Drop for DatabaseLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(error = &error as &dyn std::error::Error, "unlocking the database failed");
        }
    }
}

/// Takes the lock beside the database.
pub(super) fn lock(path: &Path) -> Result<DatabaseLock> {
    let lock_path = beside(path, ".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let file = file.map_err(|error| failed("create the lock file", error.into()))?;
    match file.try_lock() {
        Ok(()) => Ok(DatabaseLock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(failed("lock the database", error.into())),
    }
}

/// The same, for a process that means to keep the lock. A server that is about to end, or a
/// follower that migrates, holds it for a moment more.
pub(super) async fn lock_soon(path: &Path) -> Result<DatabaseLock> {
    let begin = Instant::now();
    loop {
        match lock(path) {
            Err(Error::Locked { .. }) if begin.elapsed() < LOCK_WAIT => tokio::time::sleep(LOCK_PAUSE).await,
            outcome => return outcome,
        }
    }
}

const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes the file, with our mark in it. The mark goes through a rollback journal into the main
/// file.
pub(super) async fn create(path: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .synchronous(SqliteSynchronous::Full)
        .pragma("application_id", APPLICATION_ID.to_string());
    let connection = options.disable_statement_logging().connect().await;
    let closed = match connection {
        Ok(connection) => connection.close().await,
        Err(error) => Err(error),
    };
    closed.map_err(|error| failed("create the database", error))
}

/// Opens a connection with everything on that durability rests on.
pub(super) async fn connect(path: &Path, busy_timeout: Duration, writes: bool) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(busy_timeout)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        // In write-ahead mode anything less loses the last commits with the power.
        .synchronous(SqliteSynchronous::Full)
        // macOS: fsync alone does not reach the platter. Elsewhere without effect.
        .pragma("fullfsync", "1")
        .pragma("checkpoint_fullfsync", "1")
        .pragma("journal_size_limit", LOG_BYTES_KEPT.to_string())
        .pragma("temp_store", "MEMORY")
        .pragma("query_only", if writes { "0" } else { "1" });
    options.disable_statement_logging().connect().await.map_err(|error| failed(OPEN, error))
}

/// What an opening would do to the schema. Writes nothing and makes nothing.
pub(super) async fn plan(path: &Path) -> Result<MigrationPlan> {
    if inspect(path).await? {
        return Ok(MigrationPlan::new(0, &MIGRATIONS));
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| failed(OPEN, error))?;
    let found = found_version(&mut connection).await?;
    connection.close().await.map_err(|error| failed(OPEN, error))?;
    Ok(MigrationPlan::new(found, &MIGRATIONS))
}

/// Brings the schema up to date; refuses one that is newer than we know.
pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    found_version(connection).await?;
    MIGRATIONS
        .run_direct(None, connection, false)
        .await
        .map_err(|error| failed("migrate the schema", sqlx::Error::Migrate(Box::new(error))))
}

/// Refuses a schema that is not exactly ours: somebody else uses it, and it cannot be changed under
/// them.
pub(super) async fn check_schema(connection: &mut SqliteConnection) -> Result<()> {
    let (found, known) = (found_version(connection).await?, schema_version());
    if found == known { Ok(()) } else { Err(Error::SchemaTooOld { found, known }) }
}

/// Newest schema that was applied, 0 for an empty database. Refuses one that is newer than we know.
pub(super) async fn found_version(connection: &mut SqliteConnection) -> Result<i64> {
    const ATTEMPT: &str = "read the schema version";
    let exists = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'")
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| failed(ATTEMPT, error))?;
    if exists.is_none() {
        return Ok(0);
    }
    let found = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get::<i64, _>(0))
        .map_err(|error| failed(ATTEMPT, error))?;
    let known = schema_version();
    if found > known { Err(Error::SchemaTooNew { found, known }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_given_back_although_a_starting_child_has_the_file_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.sqlite");
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(Error::Locked { .. })));
        // What a process has between fork and exec.
        let _of_a_child = held.0.try_clone().unwrap();
        drop(held);
        lock(&path).unwrap();
    }
}
