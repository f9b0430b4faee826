//! Copies of a database file: backups of one that a server has open, and their restoration.
//!
//! Invariants
//! - A copy is one read transaction (`VACUUM INTO`): it is the database as it was at one moment.
//!   SQLite copies in pages, so memory is bounded; the server goes on to read and write.
//! - A copy gets its name only when it was checked and synced. A crash leaves a file `.partial`,
//!   which the next copy replaces.
//! - Nothing is overwritten.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::index::SqliteIndex;
use super::open;
use super::session::failed;
use crate::columns::corrupt;
use crate::contract::UnixSeconds;
use crate::{Error, Result};

const COPY: &str = "copy the database";
const CHECK: &str = "check the copy of the database";
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The schema whose targets say whether their rows were compared with what is there.
const SCHEMA_WITH_COMPARED: i64 = 6;

/// The first schema with a journal.
const SCHEMA_WITH_JOURNAL: i64 = 16;

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseCopy {
    /// Bytes of the file.
    pub bytes: u64,
    /// Its schema.
    pub schema: i64,
    /// Objects in all caches.
    pub objects: u64,
    /// When an object or cache in it changed last; `None` if nothing ever did.
    pub newest_change: Option<UnixSeconds>,
}

impl SqliteIndex {
    /// Copies the database to a new file, also while a server uses it. The copy is verified.
    /// [`Error::FileExists`] if there is such a file.
    pub async fn back_up(path: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<DatabaseCopy> {
        copy(path.as_ref(), to.as_ref(), false).await
    }

    /// Copies a backup to where a server will use it, and holds the database's lock meanwhile. The
    /// copy is verified. Its edge targets count as not compared: they may hold what was published
    /// after the backup. [`Error::FileExists`] if there is a database, [`Error::Locked`] if a
    /// server waits for one.
    pub async fn restore(backup: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<DatabaseCopy> {
        let path = path.as_ref();
        for suffix in ["-wal", "-shm", "-journal"] {
            // The rest of another database would be taken for this one's.
            refuse_existing(&open::beside(path, suffix))?;
        }
        let _lock = open::lock(path)?;
        copy(backup.as_ref(), path, true).await
    }
}

async fn copy(from: &Path, to: &Path, is_restored: bool) -> Result<DatabaseCopy> {
    if open::inspect(from).await? {
        return Err(failed("open the database", io::Error::from(ErrorKind::NotFound).into()));
    }
    refuse_existing(to)?;
    let partial = open::beside(to, ".partial");
    remove_if_there(&partial)?;
    let copied = match vacuum_into(from, &partial).await {
        Ok(()) => check_and_name(&partial, to, is_restored).await,
        Err(error) => Err(error),
    };
    if copied.is_err() {
        // The failure itself is what matters; the next copy replaces the file.
        drop(fs::remove_file(&partial));
    }
    copied
}

/// Gives a copy its name, once it was checked and synced.
async fn check_and_name(partial: &Path, to: &Path, is_restored: bool) -> Result<DatabaseCopy> {
    let checked = check(partial, is_restored).await?;
    let name = || -> io::Result<u64> {
        let file = File::open(partial)?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        // Unlike a rename, a link replaces nothing.
        match fs::hard_link(partial, to) {
            Ok(()) => fs::remove_file(partial)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
            // Some file systems have no links.
            Err(_) => fs::rename(partial, to)?,
        }
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(bytes)
    };
    let bytes = name().map_err(|error| failed(COPY, error.into()))?;
    Ok(DatabaseCopy { bytes, ..checked })
}

fn refuse_existing(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(COPY, error.into())),
        Ok(_) => Err(Error::FileExists { path: path.display().to_string() }),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(COPY, error.into())),
        _ => Ok(()),
    }
}

async fn vacuum_into(from: &Path, to: &Path) -> Result<()> {
    let to = to.to_str().ok_or_else(|| corrupt("database", "the name of the copy is not UTF-8"))?;
    let options = SqliteConnectOptions::new().filename(from).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let mut connection =
        options.disable_statement_logging().connect().await.map_err(|error| failed(COPY, error))?;
    let copied = sqlx::query("VACUUM INTO $1").bind(to).execute(&mut connection).await;
    let closed = connection.close().await;
    copied.and(closed).map_err(|error| failed(COPY, error))
}

/// Reads every page and index of a copy, and says what is in it.
async fn check(path: &Path, is_restored: bool) -> Result<DatabaseCopy> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full);
    let connected = options.disable_statement_logging().connect().await;
    let mut connection = connected.map_err(|error| failed(CHECK, error))?;
    let schema = open::found_version(&mut connection).await?;
    let described = describe(&mut connection, schema, is_restored).await;
    let closed = connection.close().await;
    let (verdict, copy) = described.map_err(|error| failed(CHECK, error))?;
    closed.map_err(|error| failed(CHECK, error))?;
    if verdict == "ok" { Ok(copy) } else { Err(corrupt("database", verdict)) }
}

async fn describe(
    connection: &mut SqliteConnection,
    schema: i64,
    is_restored: bool,
) -> sqlx::Result<(String, DatabaseCopy)> {
    let verdict = sqlx::query("PRAGMA integrity_check(1)").fetch_one(&mut *connection).await?.try_get(0)?;
    let objects: i64 =
        sqlx::query("SELECT count(*) FROM objects").fetch_one(&mut *connection).await?.try_get(0)?;
    let newest_change =
        sqlx::query("SELECT max(at) FROM outbox").fetch_one(&mut *connection).await?.try_get(0)?;
    if is_restored && schema >= SCHEMA_WITH_COMPARED {
        sqlx::query("UPDATE publish_targets SET compared = 0").execute(&mut *connection).await?;
    }
    if is_restored && schema >= SCHEMA_WITH_JOURNAL {
        // The journal goes on from another past: with a new lineage and a snapshot.
        let reset = "UPDATE journal SET lineage = 0, snapshot = NULL, holder = NULL, lease_ends_at = 0";
        sqlx::query(reset).execute(connection).await?;
    }
    Ok((verdict, DatabaseCopy { bytes: 0, schema, objects: objects.unsigned_abs(), newest_change }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Index as _, SettingIndex as _, SqliteIndex, SqliteOptions};

    #[tokio::test]
    async fn a_copy_of_a_database_in_use_is_whole_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let [path, backup, restored] =
            ["index.sqlite", "backup", "restored"].map(|name| folder.path().join(name));
        let index = SqliteIndex::open(&path, SqliteOptions::default()).await.unwrap();
        index.create_setting("a", b"before").await.unwrap();
        fs::write(folder.path().join("backup.partial"), "what a crash left").unwrap();
        let copy = SqliteIndex::back_up(&path, &backup).await.unwrap();
        assert_eq!((copy.schema, copy.objects), (open::schema_version(), 0));
        assert_eq!(copy.bytes, fs::metadata(&backup).unwrap().len());
        index.create_setting("b", b"after").await.unwrap();
        assert!(matches!(SqliteIndex::back_up(&path, &backup).await, Err(Error::FileExists { .. })));
        assert!(matches!(
            SqliteIndex::restore(&backup, &path).await,
            Err(Error::Locked { .. } | Error::FileExists { .. })
        ));
        index.close().await.unwrap();
        drop(index);
        assert!(matches!(SqliteIndex::restore(&backup, &path).await, Err(Error::FileExists { .. })));

        assert_eq!(SqliteIndex::restore(&backup, &restored).await.unwrap().schema, copy.schema);
        assert!(!folder.path().join("restored.partial").exists());
        let index = SqliteIndex::open(&restored, SqliteOptions::default()).await.unwrap();
        assert_eq!(index.find_setting("a").await.unwrap().unwrap(), b"before");
        assert_eq!(index.find_setting("b").await.unwrap(), None);
        index.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_damaged_or_foreign_backup_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [path, backup, restored] =
            ["index.sqlite", "backup", "restored"].map(|name| folder.path().join(name));
        let index = SqliteIndex::open(&path, SqliteOptions::default()).await.unwrap();
        index.close().await.unwrap();
        SqliteIndex::back_up(&path, &backup).await.unwrap();
        let whole = fs::read(&backup).unwrap();
        let mut refused = 0;
        for page in 1..whole.len() / 4096 {
            let mut damaged = whole.clone();
            damaged[page * 4096..][..16].fill(0xa5);
            fs::write(&backup, damaged).unwrap();
            if SqliteIndex::restore(&backup, &restored).await.is_ok() {
                fs::remove_file(&restored).unwrap();
            } else {
                refused += 1;
            }
            assert!(!restored.exists() && !folder.path().join("restored.partial").exists(), "page {page}");
        }
        assert!(refused > 20, "{refused} of {} damaged pages", whole.len() / 4096);
        fs::write(&backup, "another file").unwrap();
        let foreign = SqliteIndex::restore(&backup, &restored).await;
        assert!(matches!(foreign, Err(Error::ForeignDatabase { .. })), "{foreign:?}");
        assert!(SqliteIndex::restore(folder.path().join("none"), &restored).await.is_err());
        fs::write(folder.path().join("restored-wal"), "of another database").unwrap();
        assert!(matches!(SqliteIndex::restore(&path, &restored).await, Err(Error::FileExists { .. })));
    }
}
