//! A SQLite file and the connections to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::open::{self, DatabaseLock};
use super::options::SqliteOptions;
use super::session::{Connections, Session, Shared};
use crate::Result;
use crate::access::Access;
use crate::contract::PoolUse;

/// A SQLite file and the connections to it.
#[derive(Debug)]
pub(crate) struct Sqlite {
    pub(super) writer: Arc<Connections>,
    pub(super) readers: Arc<Connections>,
    pub(crate) shared: Arc<Shared>,
    pub(super) path: PathBuf,
    pub(super) busy_timeout: Duration,
    /// Held for as long as the database is open, unless it was opened beside another process. Last,
    /// so that it outlives the connections.
    _lock: Option<DatabaseLock>,
}

impl Sqlite {
    pub(super) async fn connect(
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

    pub(crate) async fn begin(&self, attempt: &'static str, access: Access<'_>) -> Result<Session> {
        match access {
            Access::Read => Session::take(&self.readers, &self.shared, attempt).await,
            // One connection writes: its turn is every lock at once.
            Access::Write(_) => Session::take(&self.writer, &self.shared, attempt).await?.begin().await,
        }
    }

    /// Also folds the log into the main file.
    pub(crate) async fn close(&self) -> Result<()> {
        self.readers.close(&self.shared).await?;
        self.writer.close(&self.shared).await
    }

    pub(crate) fn pool_use(&self) -> PoolUse {
        let (write, read) = (self.writer.pool_use(), self.readers.pool_use());
        PoolUse {
            open: write.open + read.open,
            idle: write.idle + read.idle,
            max: write.max + read.max,
            waiting: write.waiting + read.waiting,
        }
    }
}
