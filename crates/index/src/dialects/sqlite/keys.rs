//! Reads the keys of all chunks, NARs and objects into the filters of
//! [`KnownKeys`](crate::known_keys::KnownKeys).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, query};

use super::database::Sqlite;
use super::open;
use super::session::{Connections, Session, Shared, failed};
use crate::columns::array;
use crate::key_filter::{Key, KeyFilter, id_key, object_key};
use crate::known_keys::{KnownKeys, LoadedFilters};
use crate::rows::Row;
use crate::{Error, Result};
use dormer_nix::{Backoff, with_causes};

/// Opening waits this long for the keys of a small database, so that its first look-ups are cheap
/// too. A large one answers meanwhile.
const KEYS_WAIT: Duration = Duration::from_millis(200);

/// Rows read at once.
const PAGE_ROWS: u16 = 8192;

const ATTEMPT: &str = "load the filter of known keys";

/// Where the keys of a filter come from.
struct Keys {
    table: &'static str,
    count: &'static str,
    /// Row number, cache (or 0) and key bytes of a page of rows after `$1`.
    page: &'static str,
    key: fn(i64, &[u8]) -> Result<Key>,
}

const CHUNK_KEYS: Keys = Keys {
    table: "chunks",
    count: "SELECT count(*) FROM chunks",
    page: "SELECT number, 0, id FROM chunks WHERE number > $1 ORDER BY number LIMIT $2",
    key: |_, id| Ok(id_key(&array("chunks", id)?)),
};

const NAR_KEYS: Keys = Keys {
    table: "nars",
    count: "SELECT count(*) FROM nars",
    page: "SELECT id, 0, hash FROM nars WHERE id > $1 ORDER BY id LIMIT $2",
    key: |_, hash| Ok(id_key(&array("nars", hash)?)),
};

const OBJECT_KEYS: Keys = Keys {
    table: "objects",
    count: "SELECT count(*) FROM objects",
    page: "SELECT id, cache, hash FROM objects WHERE id > $1 ORDER BY id LIMIT $2",
    key: |cache, hash| Ok(object_key(cache, &array("objects", hash)?)),
};

/// What a load needs besides the filters.
struct Source {
    path: PathBuf,
    busy_timeout: Duration,
    writer: Arc<Connections>,
    shared: Arc<Shared>,
}

impl Sqlite {
    /// Reads the keys of the file in the background, and waits a moment for them.
    pub(super) async fn load_keys_in_background(&self, known: &KnownKeys) {
        let Some(filters) = known.filters() else { return };
        let source = self.source();
        let loading = Arc::clone(&filters);
        known.keep_loader(tokio::spawn(async move {
            let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_mins(1) };
            let mut failed = 0;
            while let Err(error) = load(&loading, &source).await {
                tracing::warn!(
                    index.attempt = ATTEMPT,
                    error = with_causes(&error),
                    "keys are not loaded, trying again"
                );
                failed += 1;
                tokio::time::sleep(backoff.spread_pause(failed, rand::random())).await;
            }
        }));
        // Whether they came in time or not, the index answers.
        let _ = tokio::time::timeout(KEYS_WAIT, filters.loaded()).await;
    }

    /// Reads the keys of the file. Old filters answer meanwhile.
    pub(crate) async fn load_keys(&self, filters: &LoadedFilters) -> Result<()> {
        load(filters, &self.source()).await
    }

    fn source(&self) -> Source {
        let (writer, shared) = (Arc::clone(&self.writer), Arc::clone(&self.shared));
        Source { path: self.path.clone(), busy_timeout: self.busy_timeout, writer, shared }
    }
}

async fn load(filters: &LoadedFilters, source: &Source) -> Result<()> {
    filters
        .load(async |filters| {
            // Under the write lock once: a transaction that began earlier, also one of an earlier
            // opener of this process, ends first.
            Session::take(&source.writer, &source.shared, ATTEMPT).await?.begin().await?.commit().await?;
            let mut connection = open::connect(&source.path, source.busy_timeout, false).await?;
            let filled = async {
                fill(&filters.chunks, &mut connection, &CHUNK_KEYS).await?;
                fill(&filters.nars, &mut connection, &NAR_KEYS).await?;
                fill(&filters.objects, &mut connection, &OBJECT_KEYS).await
            };
            let filled = filled.await;
            connection.close().await.map_err(load_failed)?;
            filled
        })
        .await
}

async fn fill(filter: &KeyFilter, connection: &mut SqliteConnection, keys: &Keys) -> Result<()> {
    let count = query(keys.count).fetch_one(&mut *connection).await.map_err(load_failed)?;
    let count: i64 = Row::Sqlite(count).column(0, keys.table)?;
    filter.reserve(usize::try_from(count).unwrap_or_default());
    let mut last = -1_i64;
    loop {
        let page = query(keys.page).bind(last).bind(i64::from(PAGE_ROWS)).fetch_all(&mut *connection).await;
        let page = page.map_err(load_failed)?;
        let count = page.len();
        for row in page.into_iter().map(Row::Sqlite) {
            last = row.column(0, keys.table)?;
            filter.insert((keys.key)(row.column(1, keys.table)?, row.column(2, keys.table)?)?);
        }
        if count < usize::from(PAGE_ROWS) {
            return Ok(());
        }
    }
}

fn load_failed(error: sqlx::Error) -> Error {
    failed(ATTEMPT, error)
}
