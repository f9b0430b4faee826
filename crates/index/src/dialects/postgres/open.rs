//! Opening a database: whether the server can be relied on, whose the database is, and which schema
//! it has.
//!
//! Invariants
//! - A database that is not ours is only looked at.
//! - The schema is brought up to date in one transaction under a lock that ends with it: replicas
//!   that start at once wait for each other, and a crash leaves the old schema. Locks of a session
//!   would be lost behind a pooler.
//! - Every connection, not only the first, is checked for settings that would lose acknowledged
//!   commits.

use std::collections::HashMap;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::options::PostgresOptions;
use super::session::{SILENT, Shared, failed};
use crate::migrations::{self, MigrationPlan};
use crate::{Error, Result};

const OPEN: &str = "open the database";
const READ_URL: &str = "read the database's URL";
const MIGRATE: &str = "migrate the schema";

/// Key of the lock for migrations.
const MIGRATION_LOCK: i64 = 0x444f_524d_4552_0001;

/// Longest wait for another replica's migration.
const MIGRATION_WAIT: Duration = Duration::from_mins(10);

/// Oldest server that knows what we use: 64-bit transaction ids and their snapshots.
const SERVER_VERSION_MIN: i32 = 130_000;

/// How long a connection to a standby is used. Then its address is asked again: it may lead to a
/// primary by now.
const STANDBY_USED: Duration = Duration::from_secs(10);

/// The tables that make a database ours.
const OUR_TABLES: [&str; 5] = ["_sqlx_migrations", "settings", "packs", "chunks", "outbox"];

const OTHER_TABLES: &str = "
    SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
        AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')";

/// What the server is asked about itself.
const SERVER: &str = "
    SELECT current_setting('server_version_num')::int, current_setting('fsync'),
        current_setting('synchronous_commit'), current_setting('server_encoding'), pg_is_in_recovery(),
        current_database()::text";

/// Lifts the base above every transaction that wrote a row, if this server's ids have not reached
/// them yet: a dump was restored into it.
const LIFT_BASE: &str = "
    UPDATE outbox_base SET base = newest.transaction
    FROM (SELECT transaction FROM outbox ORDER BY transaction DESC LIMIT 1) AS newest
    WHERE newest.transaction >= base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint";

pub(super) fn migrations() -> Migrator {
    migrations::postgres()
}

/// Where a URL leads, for people.
pub(super) fn name_of(url: &str) -> Result<String> {
    let connect = PgConnectOptions::from_str(url).map_err(|error| failed(READ_URL, error))?;
    let place = match connect.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", connect.get_host(), connect.get_port()),
    };
    let database = connect.get_database().unwrap_or_else(|| connect.get_username());
    Ok(format!("PostgreSQL database '{database}' on {place}"))
}

/// Where and how to connect. The URL may hold a password: it is in no message.
///
/// Nothing is asked for at the start of a session that PgBouncer does not know: it refuses the
/// rest, in every mode.
pub(super) fn connect_options(url: &str, options: &PostgresOptions) -> Result<PgConnectOptions> {
    let connect = PgConnectOptions::from_str(url).map_err(|error| failed(READ_URL, error))?;
    let connect = connect.application_name("dormer").disable_statement_logging().extra_float_digits(None);
    Ok(if options.transaction_pooler { connect.statement_cache_capacity(0) } else { connect })
}

/// What holds in every session of ours.
///
/// Look-ups go by an index, key by key. A young database has no statistics, and plans are kept: the
/// planner would choose to read a small table whole, and still do so when it has a million rows. So
/// whole-table joins are forbidden; the tests read the plans.
fn session_settings(options: &PostgresOptions) -> Vec<(&'static str, String)> {
    let milliseconds = |duration: Duration| duration.as_millis().max(1).to_string();
    let off = || "off".to_owned();
    vec![
        ("statement_timeout", milliseconds(options.statement_timeout)),
        ("lock_timeout", milliseconds(options.lock_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(options.statement_timeout)),
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("enable_seqscan", off()),
        ("enable_hashjoin", off()),
        ("enable_mergejoin", off()),
        ("jit", off()),
    ]
}

/// Makes them hold in a session. Through a pooler by transactions they would hold in somebody
/// else's.
async fn begin_session(connection: &mut PgConnection, options: &PostgresOptions) -> sqlx::Result<()> {
    if options.transaction_pooler {
        return Ok(());
    }
    let settings = session_settings(options);
    let each: Vec<String> = settings.iter().map(|(name, value)| format!("SET {name} = '{value}';")).collect();
    sqlx::raw_sql(AssertSqlSafe(each.concat())).execute(connection).await.map(drop)
}

/// The same for one transaction: `;SET LOCAL …` for each.
pub(super) fn transaction_settings(options: &PostgresOptions) -> String {
    let settings = session_settings(options);
    let each: Vec<String> =
        settings.iter().map(|(name, value)| format!(";SET LOCAL {name} = '{value}'")).collect();
    each.concat()
}

/// How connections are kept.
pub(super) fn pool_options(options: &PostgresOptions, shared: &std::sync::Arc<Shared>) -> PgPoolOptions {
    let (shared, connected) = (std::sync::Arc::clone(shared), std::sync::Arc::clone(shared));
    let own_options = options.clone();
    PgPoolOptions::new()
        .max_connections(options.connections_max)
        .acquire_timeout(options.acquire_timeout)
        .idle_timeout(Duration::from_mins(10))
        .max_lifetime(Duration::from_mins(30))
        // Ours asks only when there is doubt.
        .test_before_acquire(false)
        .before_acquire(move |connection, state| {
            let (doubts, may_be_standby) = (shared.doubts(&state), shared.may_be_standby(&state));
            let is_wanted = state.age < STANDBY_USED && !shared.is_older_than_primary(&state);
            Box::pin(async move {
                if may_be_standby {
                    let row = connection.fetch_one("SELECT pg_is_in_recovery()").await?;
                    return Ok(!row.try_get::<bool, _>(0)? || is_wanted);
                }
                if doubts {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            let (options, shared) = (own_options.clone(), std::sync::Arc::clone(&connected));
            Box::pin(async move {
                begin_session(connection, &options).await?;
                match check_server(connection).await {
                    Ok(server) if !server.is_standby => {
                        shared.note_primary();
                        Ok(())
                    }
                    Ok(_) if shared.accepts_standby() => Ok(()),
                    Ok(_) => Err(sqlx::Error::Configuration("the server is a standby".into())),
                    Err(Error::Unavailable { source, .. } | Error::Database { source, .. }) => Err(source),
                    Err(unfit) => Err(sqlx::Error::Configuration(unfit.into())),
                }
            })
        })
}

/// Newest schema that is known.
pub(super) fn schema_known() -> i64 {
    migrations().iter().map(|migration| migration.version).max().expect("there is a migration")
}

/// Looks at the server and the database before anything is written, and brings the schema up to
/// date. A standby takes no writes: it can be read if its schema is up to date already.
pub(super) async fn prepare(connect: &PgConnectOptions, options: &PostgresOptions) -> Result<()> {
    let look = async {
        let mut connection = first_connection(connect, options).await?;
        let server = check_server(&mut connection).await?;
        refuse_unsaid_pooler(&mut connection, connect, options).await?;
        begin_session(&mut connection, options).await.map_err(|error| failed(OPEN, error))?;
        Ok((connection, server))
    };
    let (mut connection, server) = in_time(options, look).await?;
    if server.is_standby {
        let found = in_time(options, schema_version(&mut connection, &server.database)).await?;
        let known = schema_known();
        if found < known {
            let what = format!(
                "it is a standby with schema version {found}, and only a primary can bring it to {known}"
            );
            return Err(Error::ServerUnfit { what });
        }
        tracing::warn!("the database is a standby: what is stored can be read, and nothing can be pushed");
    } else {
        migrate(&mut connection, &server.database).await?;
    }
    connection.close().await.map_err(|error| failed(OPEN, error))
}

/// What [`prepare`] would do to the schema.
pub(super) async fn plan(connect: &PgConnectOptions, options: &PostgresOptions) -> Result<MigrationPlan> {
    let look = async {
        let mut connection = first_connection(connect, options).await?;
        let server = check_server(&mut connection).await?;
        begin_session(&mut connection, options).await.map_err(|error| failed(OPEN, error))?;
        let found = schema_version(&mut connection, &server.database).await?;
        connection.close().await.map_err(|error| failed(OPEN, error))?;
        Ok(MigrationPlan::new(found, &migrations()))
    };
    in_time(options, look).await
}

/// Bounds a first look at a server, which may take connections and fall silent: its own time-outs
/// are not set yet.
async fn in_time<T>(options: &PostgresOptions, look: impl Future<Output = Result<T>>) -> Result<T> {
    // Twice: a second connection is made to see whether there is a pooler.
    let patience = 2 * options.acquire_timeout + options.statement_timeout;
    let silent = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, SILENT));
    tokio::time::timeout(patience, look).await.unwrap_or_else(|_| Err(failed(OPEN, silent())))
}

pub(super) async fn first_connection(
    connect: &PgConnectOptions,
    options: &PostgresOptions,
) -> Result<PgConnection> {
    let connected = tokio::time::timeout(options.acquire_timeout, connect.connect()).await;
    connected.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(|source| {
        if is_of_tls(&source) {
            Error::Untrusted { source }
        } else {
            failed("connect to the database", source)
        }
    })
}

/// Whether the two sides could not agree on a connection that nobody else reads: what comes of the
/// certificate, or of a server that has none.
fn is_of_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        // What TLS makes of another side that it does not trust, or that does not speak it.
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

async fn refuse_unsaid_pooler(
    connection: &mut PgConnection,
    connect: &PgConnectOptions,
    options: &PostgresOptions,
) -> Result<()> {
    if !options.transaction_pooler && sees_pooler(connection, connect, options).await? {
        return Err(Error::UnsaidPooler);
    }
    Ok(())
}

/// Whether a pooler between us and the server gives every transaction another connection. Two
/// clients that are connected at the same time have a process of the server each, unless such a
/// pooler gives both the same, one after the other. A busy one may do so late or never, so "no" is
/// no proof.
pub(super) async fn sees_pooler(
    connection: &mut PgConnection,
    connect: &PgConnectOptions,
    options: &PostgresOptions,
) -> Result<bool> {
    const PROCESS: &str = "SELECT concat(pg_backend_pid(), ' since ', pg_postmaster_start_time())";
    const TRIES: usize = 4;
    // A server that has no room for a second one, or a pooler that has none, will say so when it is
    // needed.
    let Ok(mut other) = first_connection(connect, options).await else { return Ok(false) };
    let process = async |connection: &mut PgConnection| {
        let row = connection.fetch_one(PROCESS).await;
        row.and_then(|row| row.try_get::<String, _>(0)).map_err(|error| failed(OPEN, error))
    };
    let mut is_shared = false;
    for _ in 0..TRIES {
        is_shared = is_shared || process(connection).await? == process(&mut other).await?;
    }
    other.close().await.map_err(|error| failed(OPEN, error))?;
    Ok(is_shared)
}

/// What a server says about itself.
#[derive(Debug)]
pub(super) struct ServerFacts {
    /// The database's name.
    pub(super) database: String,
    /// Whether it takes no writes.
    pub(super) is_standby: bool,
}

/// Refuses a server that would lose acknowledged commits, or cannot do what we need.
pub(super) async fn check_server(connection: &mut PgConnection) -> Result<ServerFacts> {
    let row = connection.fetch_one(SERVER).await.map_err(|error| failed(OPEN, error))?;
    let text = |column: usize| row.try_get::<String, _>(column).map_err(|error| failed(OPEN, error));
    let version: i32 = row.try_get(0).map_err(|error| failed(OPEN, error))?;
    let is_standby: bool = row.try_get(4).map_err(|error| failed(OPEN, error))?;
    let unfit = |what: String| Err(Error::ServerUnfit { what });
    if version < SERVER_VERSION_MIN {
        return unfit(format!("it is version {}; Dormer needs 13 or newer", version / 10_000));
    }
    for (column, setting) in [(1, "fsync"), (2, "synchronous_commit")] {
        if text(column)? == "off" {
            return unfit(format!(
                "it runs with {setting} = off: uploads that were acknowledged could be lost"
            ));
        }
    }
    let encoding = text(3)?;
    if encoding != "UTF8" {
        return unfit(format!("the database's encoding is {encoding}; Dormer needs UTF8"));
    }
    Ok(ServerFacts { database: text(5)?, is_standby })
}

/// Newest schema that was applied, 0 for an empty database. Refuses databases of others and newer
/// schemas.
pub(super) async fn schema_version(connection: &mut PgConnection, database: &str) -> Result<i64> {
    const ATTEMPT: &str = "read the schema version";
    let rows = connection.fetch_all(OTHER_TABLES).await.map_err(|error| failed(ATTEMPT, error))?;
    let tables = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<Vec<String>>>();
    let tables = tables.map_err(|error| failed(ATTEMPT, error))?;
    if tables.is_empty() {
        return Ok(0);
    }
    let has = |name: &str| tables.iter().any(|table| table == name);
    if !OUR_TABLES.into_iter().all(has) {
        // "nar" and "chunkref" are together in Attic's schema only; the third is its migration
        // tool's.
        let attic = has("chunkref") && has("nar") || has("seaql_migrations");
        let owner = if attic { "Attic" } else { "another program" }.to_owned();
        return Err(Error::ForeignDatabase { path: format!("PostgreSQL database '{database}'"), owner });
    }
    let row = connection.fetch_one("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").await;
    let found: i64 = row.and_then(|row| row.try_get(0)).map_err(|error| failed(ATTEMPT, error))?;
    let known = schema_known();
    if found > known { Err(Error::SchemaTooNew { found, known }) } else { Ok(found) }
}

async fn migrate(connection: &mut PgConnection, database: &str) -> Result<()> {
    let wait = MIGRATION_WAIT.as_millis();
    let lock = format!(
        "SET LOCAL lock_timeout = {wait}; SET LOCAL statement_timeout = 0;
         SET LOCAL idle_in_transaction_session_timeout = {wait}; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
    );
    let failed = |error| failed(MIGRATE, error);
    let mut transaction = connection.begin().await.map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *transaction).await.map_err(failed)?;
    // A step that waits longer for a table makes all later callers wait behind it. It fails
    // instead, and the next start tries it again.
    let impatient = sqlx::raw_sql("SET LOCAL lock_timeout = 10000").execute(&mut *transaction).await;
    impatient.map_err(failed)?;
    schema_version(&mut transaction, database).await?;
    apply_migrations(&mut transaction).await.map_err(failed)?;
    transaction.execute(LIFT_BASE).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// Takes the steps that were not taken yet, as the library would, but without its prepared
/// statements: through a pooler by transactions their names stay behind on a connection of the
/// server, where the next replica's meet them.
async fn apply_migrations(connection: &mut PgConnection) -> sqlx::Result<()> {
    const TABLE: &str = "
        CREATE TABLE IF NOT EXISTS _sqlx_migrations (
            version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
            success BOOLEAN NOT NULL, checksum BYTEA NOT NULL, execution_time BIGINT NOT NULL)";
    let refused = |error| Err(sqlx::Error::Migrate(Box::new(error)));
    connection.execute(TABLE).await?;
    let rows = connection.fetch_all("SELECT version, checksum, success FROM _sqlx_migrations").await?;
    let mut applied = HashMap::new();
    for row in rows {
        let version: i64 = row.try_get(0)?;
        if !row.try_get::<bool, _>(2)? {
            return refused(MigrateError::Dirty(version));
        }
        applied.insert(version, row.try_get::<Vec<u8>, _>(1)?);
    }
    for migration in migrations().iter() {
        match applied.get(&migration.version) {
            Some(checksum) if *checksum == *migration.checksum => {}
            Some(_) => return refused(MigrateError::VersionMismatch(migration.version)),
            None => {
                sqlx::raw_sql(migration.sql.clone()).execute(&mut *connection).await?;
                let note = format!(
                    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                     VALUES ({}, '{}', true, '\\x{}', 0)",
                    migration.version,
                    migration.description.replace('\'', "''"),
                    hex::encode(&migration.checksum)
                );
                sqlx::raw_sql(AssertSqlSafe(note)).execute(&mut *connection).await?;
            }
        }
    }
    Ok(())
}
