//! Looking at a database file without changing it.

use std::fs::{File, TryLockError};
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::index::SqliteIndex;
use super::open;
use super::session::failed;
use crate::{Error, Examination, Result};

const ATTEMPT: &str = "look at the database";

impl SqliteIndex {
    /// Looks at a file, also one that a server has open, and reads the named value `setting`.
    /// [`Error::ForeignDatabase`] if it is not ours, [`Error::SchemaTooNew`] if we are older than
    /// it.
    pub async fn examine(path: impl AsRef<Path>, setting: &str) -> Result<Examination> {
        let path = path.as_ref();
        let mut examination = Examination {
            program: "SQLite".to_owned(),
            schema: None,
            schema_known: open::schema_version(),
            in_use: false,
            time: None,
            pooled: false,
            missing_rights: Vec::new(),
            setting: None,
        };
        if open::inspect(path).await? {
            return Ok(examination);
        }
        examination.in_use = is_locked(path)?;
        // An orderly end leaves no log, and then nothing needs to be made beside the file to read
        // it.
        let has_log = open::beside(path, "-wal").exists();
        let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(!has_log);
        let connection = options.disable_statement_logging().connect().await;
        let mut connection = connection.map_err(|error| failed(ATTEMPT, error))?;
        let read = read(&mut connection, setting, &mut examination).await;
        connection.close().await.map_err(|error| failed(ATTEMPT, error))?;
        read.map_err(|error| failed(ATTEMPT, error))?;
        match examination.schema {
            Some(found) if found > examination.schema_known => {
                Err(Error::SchemaTooNew { found, known: examination.schema_known })
            }
            _ => Ok(examination),
        }
    }
}

async fn read(
    connection: &mut SqliteConnection,
    setting: &str,
    examination: &mut Examination,
) -> sqlx::Result<()> {
    let version = sqlx::query("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
    examination.program = format!("SQLite {}", version.try_get::<&str, _>(0)?);
    let migrated = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'");
    if migrated.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(());
    }
    let newest = sqlx::query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations");
    examination.schema = newest.fetch_one(&mut *connection).await?.try_get(0)?;
    let value = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(setting);
    examination.setting = match value.fetch_optional(&mut *connection).await? {
        Some(row) => Some(row.try_get(0)?),
        None => None,
    };
    Ok(())
}

/// Whether a process holds the lock file. It is not made for this.
fn is_locked(path: &Path) -> Result<bool> {
    let Ok(file) = File::open(open::beside(path, ".lock")) else { return Ok(false) };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(failed(ATTEMPT, error.into())),
    }
}
