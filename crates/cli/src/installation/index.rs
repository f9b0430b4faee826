//! Opens the index: as its server, or beside one.

use dormer_index::{OpenIndex, PostgresIndex, SqliteIndex, SqliteOptions};

use crate::error::{Error, Result};
use crate::settings::Settings;

/// Opens the index that the settings name and brings its schema up to date.
pub(crate) async fn open_index(settings: &Settings) -> Result<OpenIndex> {
    Ok(match &settings.postgres {
        Some(server) => PostgresIndex::open(server.url.expose(), server.options.clone()).await?.into(),
        None => SqliteIndex::open(&settings.database_path, SqliteOptions::default()).await?.into(),
    })
}

/// Opens the index beside a server that may have it open. Makes none, and refuses an older schema:
/// only `serve`, `migrate` and what stands in for a server bring it up to date. A command that
/// looks at a database must not keep an older server from starting again.
pub(crate) async fn open_index_beside(settings: &Settings) -> Result<OpenIndex> {
    let path = &settings.database_path;
    let plan = match &settings.postgres {
        Some(server) => PostgresIndex::plan_migration(server.url.expose(), &server.options).await?,
        None => SqliteIndex::plan_migration(path).await?,
    };
    match (plan.pending.last(), &settings.postgres) {
        (None, Some(_)) => open_index(settings).await,
        (None, None) => Ok(SqliteIndex::open_beside(path, SqliteOptions::default()).await?.into()),
        (Some(_), _) if plan.found == 0 => Err(Error::NoInstallation { path: path.clone() }),
        (Some(newest), _) => {
            let (found, known) = (plan.found, newest.version);
            Err(dormer_index::Error::SchemaTooOld { found, known }.into())
        }
    }
}

/// Another replica may make the index at the same time. Then both report that they made it.
pub(super) async fn index_is_new(settings: &Settings) -> Result<bool> {
    let Some(server) = &settings.postgres else { return Ok(!settings.database_path.exists()) };
    Ok(PostgresIndex::plan_migration(server.url.expose(), &server.options).await?.found == 0)
}
