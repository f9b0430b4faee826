//! Looking at a database without changing it.

use std::time::{Duration, UNIX_EPOCH};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Executor as _, Row as _, query};

use super::PostgresOptions;
use super::open;
use super::session::failed;
use crate::{Examination, Result};

const ATTEMPT: &str = "look at the database";

const SERVER: &str = "
    SELECT split_part(version(), ' ', 2), current_setting('fsync'), current_setting('synchronous_commit'),
        current_setting('full_page_writes'), extract(epoch FROM clock_timestamp())::double precision,
        current_database()::text, coalesce(current_schema()::text, ''),
        coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";

/// Tables that we read and write, where we lack a right.
const MISSING_RIGHTS: &str = "
    SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind = 'r'
        AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
            AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
    ORDER BY 1";

pub(super) async fn examine(
    connect: &PgConnectOptions,
    options: &PostgresOptions,
    setting: &str,
) -> Result<Examination> {
    let mut connection = open::first_connection(connect, options).await?;
    let looked = tokio::time::timeout(options.statement_timeout, look(&mut connection, setting)).await;
    let looked = looked.unwrap_or_else(|_| Err(failed(ATTEMPT, sqlx::Error::PoolTimedOut)));
    connection.close().await.map_err(|error| failed(ATTEMPT, error))?;
    looked
}

async fn look(connection: &mut PgConnection, setting: &str) -> Result<Examination> {
    let failed = |error| failed(ATTEMPT, error);
    let row = connection.fetch_one(SERVER).await.map_err(failed)?;
    let text = |column: usize| row.try_get::<String, _>(column).map_err(failed);
    let (database, schema_name) = (text(5)?, text(6)?);
    let found = open::schema_version(connection, &database).await?;
    let mut examination = Examination {
        program: format!("PostgreSQL {}", text(0)?),
        schema: (found > 0).then_some(found),
        schema_known: open::migrations().iter().map(|step| step.version).max().unwrap_or_default(),
        in_use: false,
        time: None,
        unsafe_settings: Vec::new(),
        missing_rights: Vec::new(),
        setting: None,
    };
    for (column, name) in [(1, "fsync"), (2, "synchronous_commit"), (3, "full_page_writes")] {
        if text(column)? == "off" {
            examination.unsafe_settings.push(format!("{name} = off"));
        }
    }
    let seconds: f64 = row.try_get(4).map_err(failed)?;
    examination.time = Duration::try_from_secs_f64(seconds).ok().map(|since| UNIX_EPOCH + since);
    if !row.try_get::<bool, _>(7).map_err(failed)? {
        examination.missing_rights.push(format!("CREATE on schema {schema_name}"));
    }
    if found > 0 {
        for row in connection.fetch_all(MISSING_RIGHTS).await.map_err(failed)? {
            let table: String = row.try_get(0).map_err(failed)?;
            examination.missing_rights.push(format!("SELECT, INSERT, UPDATE, DELETE on table {table}"));
        }
        let value =
            query("SELECT value FROM settings WHERE name = $1").bind(setting).fetch_optional(connection);
        let value = value.await.map_err(failed)?;
        examination.setting = value.map(|row| row.try_get(0)).transpose().map_err(failed)?;
    }
    Ok(examination)
}
