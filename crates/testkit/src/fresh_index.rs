//! Databases that have the schema and no rows.
//!
//! Sweeps over the steps of a crash or a race need a new database for each step. All migrations of
//! one take about a tenth of a second, and a copy of a database that has them takes a tenth of
//! that. Tests of opening and migrating make empty databases instead.

use std::path::{Path, PathBuf};

use dormer_index::{Index as _, PostgresIndex, PostgresOptions, SqliteIndex, SqliteOptions};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::services::Postgres;

/// Puts the file of an index with no rows at `path`, unless there is one.
pub async fn place_sqlite_index(path: &Path) {
    static TEMPLATE: OnceCell<(TempDir, PathBuf)> = OnceCell::const_new();
    if path.exists() {
        return;
    }
    let (_, template) = TEMPLATE
        .get_or_init(|| async {
            let folder = TempDir::new().expect("a temporary folder");
            let path = folder.path().join("index.sqlite");
            let index = SqliteIndex::open(&path, SqliteOptions::default()).await.expect("a new index opens");
            index.close().await.expect("it closes");
            drop(index);
            (folder, path)
        })
        .await;
    std::fs::copy(template, path).expect("a copy of the file");
}

/// Creates a database of an index with no rows on a server; returns its URL.
pub async fn create_postgres_index(server: &Postgres) -> String {
    let template = server
        .index_template()
        .get_or_init(|| async {
            let url = server.create_database();
            let index = PostgresIndex::open(&url, PostgresOptions::default()).await.expect("it opens");
            index.close().await.expect("it closes");
            url.rsplit('/').next().expect("a name").to_owned()
        })
        .await;
    server.create_database_like(template)
}
