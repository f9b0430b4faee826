//! The database as a whole: whether it answers and takes writes, and how it is used.

use async_trait::async_trait;
use tokio::time::timeout;

use crate::contract::{CallCounts, Index, PING_MAX, PoolUse};
use crate::sql::Argument::Bytes;
use crate::sql::{Sql, both};
use crate::sql_index::SqlIndex;
use crate::{Error, Result};

const PING: &str = "ask the database for a sign of life";

const ONE: Sql = Sql { sqlite: "SELECT 1", postgres: "SELECT 1::bigint" };

// A write of its own: on SQLite, beginning a transaction alone does not notice a full disk.
const CHECK_READY: Sql = both!(
    "INSERT INTO settings (name, value) VALUES ('index.ready-check', $1)
     ON CONFLICT (name) DO UPDATE SET value = excluded.value"
);

#[async_trait]
impl Index for SqlIndex {
    async fn ping(&self) -> Result<()> {
        let before = self.database.answer_count();
        // A standby answers as well: what is stored can be read from it.
        let ask = self.read(PING, async |mut tx| tx.one(ONE, &[]).await.map(drop));
        let timed_out = |_| Err(Error::Unavailable { attempt: PING, source: sqlx::Error::PoolTimedOut });
        match timeout(PING_MAX, ask).await.unwrap_or_else(timed_out) {
            Ok(()) => Ok(()),
            // All connections are taken, by calls that are answered.
            Err(Error::Unavailable { source: sqlx::Error::PoolTimedOut, .. })
                if self.database.answer_count() > before =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn check_ready(&self) -> Result<()> {
        self.write("check that the database is writable", async |mut tx| {
            tx.run(CHECK_READY, &[Bytes(&[])]).await.map(drop)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.known.stop_loading().await;
        self.database.close().await
    }

    fn statement_count(&self) -> u64 {
        self.database.statement_count()
    }

    fn call_counts(&self) -> CallCounts {
        self.counts()
    }

    fn pool_use(&self) -> PoolUse {
        self.database.pool_use()
    }
}
