//! How both databases carry publishing's statements out: every one of them searches an index,
//! however many rows there are, and a page begins where the last one ended.

use dormer_testkit::services::Postgres;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _, query, raw_sql};

use super::bulk_tests::fill_postgres;
use super::plans::{FEW_ROWS, PAGES, SOURCES, many_rows, takes_any_rows};
use crate::sql::Sql;
use crate::{CacheId, Index as _, PostgresIndex, PostgresOptions, SqliteIndex, SqliteOptions};

/// Statements that go on where the last page ended, with the place in the plan that shows it.
struct Page {
    sql: Sql,
    sqlite: &'static str,
    postgres: &'static str,
}

fn pages() -> Vec<Page> {
    PAGES.iter().map(|((_, sql), sqlite, postgres)| Page { sql: *sql, sqlite, postgres }).collect()
}

/// A statement that stands in no list would be planned in no test.
#[test]
fn every_statement_of_publishing_is_in_a_list() {
    let mut listed: Vec<&str> =
        many_rows().iter().map(|(name, _)| *name).chain(FEW_ROWS.iter().copied()).collect();
    // The two dialects of `FORGET_DOCUMENTS`.
    listed.extend(["documents::FORGET_ON_SQLITE", "documents::FORGET_ON_POSTGRESQL"]);
    listed.sort_unstable();
    listed.dedup();
    let mut written: Vec<String> = SOURCES
        .iter()
        .flat_map(|(module, source)| source.lines().map(move |line| (module, line)))
        .filter_map(|(module, line)| {
            let (_, rest) = line.split_once("const ")?;
            let (name, of) = rest.split_once(": ")?;
            (of.starts_with("Sql") || of.starts_with("[(Sql")).then(|| format!("{module}::{name}"))
        })
        .collect();
    written.sort_unstable();
    assert_eq!(listed, written);
}

#[tokio::test]
async fn sqlite_searches_for_whatever_publishing_asks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.sqlite");
    let index = SqliteIndex::open(&path, SqliteOptions::default()).await.unwrap();
    index.close().await.unwrap();
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let mut plan = async |sql: Sql| -> String {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", sql.sqlite));
        let rows = query(explain)
            .fetch_all(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", sql.sqlite));
        rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("\n")
    };
    for Page { sql, sqlite, .. } in pages() {
        let plan = plan(sql).await;
        assert!(plan.contains(sqlite), "{sqlite} is not in the plan of {}:\n{plan}", sql.sqlite);
        assert!(!plan.contains("TEMP B-TREE"), "{} sorts:\n{plan}", sql.sqlite);
    }
    for (name, sql) in many_rows() {
        let plan = plan(sql).await;
        for step in plan.lines().filter(|step| step.contains("SCAN")) {
            // What is unfolded from a parameter, and a page that was cut out before. The backlog
            // has a row for each published cache.
            let harmless = step.contains("VIRTUAL TABLE")
                || step == "SCAN p"
                || step == "SCAN x"
                || step == "SCAN k"
                || (name == "caches::LIST_BACKLOG" && step.starts_with("SCAN c"));
            assert!(harmless, "{step} in the plan of {}:\n{plan}", sql.sqlite);
        }
        for step in plan.lines().filter(|step| step.ends_with("(target=? AND cache=?)")) {
            assert!(
                takes_any_rows(sql),
                "{step} reads a whole cache, in the plan of {}:\n{plan}",
                sql.sqlite
            );
        }
    }
}

#[tokio::test]
async fn postgresql_searches_for_whatever_publishing_asks() {
    let url = Postgres::shared().create_database();
    drop(PostgresIndex::open(&url, PostgresOptions::default()).await.unwrap());
    // Of tables that nobody has analysed, PostgreSQL expects four rows of a cache.
    Postgres::shared().sql(&url, &fill_postgres(2_000, CacheId(1)));
    Postgres::shared().sql(&url, "ANALYZE");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    // As the index has them: plans do not depend on what the server has counted.
    let settings =
        "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
        SET enable_mergejoin = off";
    raw_sql(settings).execute(&mut connection).await.unwrap();
    let mut plan = async |sql: Sql| -> String {
        let prepare = format!("PREPARE looked_at AS {}", sql.postgres);
        raw_sql(AssertSqlSafe(prepare))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", sql.postgres));
        let count = (1..10).take_while(|number| sql.postgres.contains(&format!("${number}"))).count();
        let parameters = vec!["NULL"; count].join(", ");
        let explain = AssertSqlSafe(format!("EXPLAIN (COSTS OFF) EXECUTE looked_at ({parameters})"));
        let rows = raw_sql(explain).fetch_all(&mut connection).await.unwrap();
        raw_sql("DEALLOCATE looked_at").execute(&mut connection).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
    };
    for Page { sql, postgres, .. } in pages() {
        let plan = plan(sql).await;
        assert!(plan.contains(postgres), "{postgres} is not in the plan of {}:\n{plan}", sql.postgres);
    }
    for (name, sql) in many_rows() {
        let plan = plan(sql).await;
        assert!(!plan.contains("Seq Scan"), "{name}: {}:\n{plan}", sql.postgres);
        for index in ["publish_objects_by_name", "publish_nars_by_name"] {
            let orders = sql.postgres.contains("ORDER BY substr");
            assert!(orders || !plan.contains(index), "{index} in the plan of {}:\n{plan}", sql.postgres);
        }
        for step in plan.lines().filter(|step| step.trim() == "Index Cond: ((target = $1) AND (cache = $2))")
        {
            assert!(
                takes_any_rows(sql),
                "{step} reads a whole cache, in the plan of {}:\n{plan}",
                sql.postgres
            );
        }
    }
}
