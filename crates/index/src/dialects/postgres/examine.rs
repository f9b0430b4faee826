//! Looking at a database without changing it.

use std::time::{Duration, UNIX_EPOCH};

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::index::PostgresIndex;
use super::open;
use super::options::PostgresOptions;
use super::session::failed;
use crate::{Error, Examination, Result};

const ATTEMPT: &str = "look at the database";

/// Version, microseconds since 1970, and whether tables can be made where ours are or would be.
const SERVER: &str = "
    SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
        current_schema()::text, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";

/// Our tables, each with a right to it that is missing.
const MISSING_RIGHTS: &str = "
    SELECT format('%s on table %s', privilege, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND c.relname <> '_sqlx_migrations'
        AND NOT has_table_privilege(c.oid, privilege)
    ORDER BY c.relname, privilege";

impl PostgresIndex {
    /// Looks at a database and reads the named value `setting`.
    /// [`Error::ServerUnfit`](crate::Error::ServerUnfit),
    /// [`Error::ForeignDatabase`](crate::Error::ForeignDatabase),
    /// [`Error::SchemaTooNew`](crate::Error::SchemaTooNew),
    /// [`Error::UnsaidPooler`](crate::Error::UnsaidPooler) and
    /// [`Error::Untrusted`](crate::Error::Untrusted) as for [`open`](Self::open).
    pub async fn examine(url: &str, options: &PostgresOptions, setting: &str) -> Result<Examination> {
        let connect = open::connect_options(url, options)?;
        let mut connection = open::first_connection(&connect, options).await?;
        let server = open::check_server(&mut connection).await?;
        let schema = open::schema_version(&mut connection, &server.database).await?;
        let mut examination = Examination {
            program: String::new(),
            schema: (schema > 0).then_some(schema),
            schema_known: open::schema_known(),
            in_use: false,
            time: None,
            pooled: open::sees_pooler(&mut connection, &connect, options).await?,
            missing_rights: Vec::new(),
            setting: None,
        };
        if examination.pooled && !options.transaction_pooler {
            return Err(Error::UnsaidPooler);
        }
        let read = read(&mut connection, setting, &mut examination).await;
        read.map_err(|error| failed(ATTEMPT, error))?;
        connection.close().await.map_err(|error| failed(ATTEMPT, error))?;
        Ok(examination)
    }
}

async fn read(
    connection: &mut PgConnection,
    setting: &str,
    examination: &mut Examination,
) -> sqlx::Result<()> {
    let server = connection.fetch_one(SERVER).await?;
    examination.program = format!("PostgreSQL {}", server.try_get::<&str, _>(0)?);
    let micros = u64::try_from(server.try_get::<i64, _>(1)?).unwrap_or(0);
    examination.time = Some(UNIX_EPOCH + Duration::from_micros(micros));
    let schema: Option<&str> = server.try_get(2)?;
    if !server.try_get::<bool, _>(3)? {
        examination.missing_rights.push(format!("CREATE on schema {}", schema.unwrap_or("public")));
    }
    if examination.schema.is_none() {
        return Ok(());
    }
    for row in connection.fetch_all(MISSING_RIGHTS).await? {
        examination.missing_rights.push(row.try_get(0)?);
    }
    if examination.missing_rights.iter().any(|right| right == "SELECT on table settings") {
        return Ok(());
    }
    // A statement with a parameter is sent in two steps, between which a pooler must not change the
    // connection.
    let mut transaction = connection.begin().await?;
    let value = sqlx::query("SELECT value FROM settings WHERE name = $1").persistent(false).bind(setting);
    examination.setting = match value.fetch_optional(&mut *transaction).await? {
        Some(row) => Some(row.try_get(0)?),
        None => None,
    };
    transaction.commit().await
}
