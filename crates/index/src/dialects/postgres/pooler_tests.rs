//! Through a real PgBouncer, by session and by transaction: the contract holds, and what
//! docs/DEPLOYING.md says does not work does not, and is told before it does harm.

use std::sync::Arc;
use std::time::Duration;

use dormer_testkit::services::{PgBouncer, PoolMode, Postgres as Server};

use super::tests::{calls_go_on, options};
use super::*;
use crate::*;

fn pooled() -> PostgresOptions {
    PostgresOptions { transaction_pooler: true, ..options() }
}

/// A server with room for what a pooler keeps of many databases, and the pooler.
fn start(mode: PoolMode) -> (Server, PgBouncer) {
    let server = Server::start_with(&["max_connections=900"]);
    let pooler = PgBouncer::start(&server, mode);
    (server, pooler)
}

async fn meets_the_contract(mode: PoolMode, options: PostgresOptions) {
    let (server, pooler) = start(mode);
    let open = async || {
        let url = pooler.url(&server.create_database());
        Arc::new(PostgresIndex::open(&url, options.clone()).await.unwrap())
    };
    // By session is what the server does, too: all of it only in the long run.
    if mode == PoolMode::Transaction || std::env::var_os("DORMER_TEST_LONG").is_some() {
        crate::conformance::run(async || open().await as Arc<dyn Index>).await;
        crate::conformance::run_publish(open).await;
    }
    let open_two = async || {
        let url = pooler.url(&server.create_database());
        let a = PostgresIndex::open(&url, options.clone()).await.unwrap();
        let b = PostgresIndex::open(&url, options.clone()).await.unwrap();
        [Arc::new(a) as Arc<dyn Index>, Arc::new(b)]
    };
    match mode {
        PoolMode::Session => crate::conformance::run_replicas(open_two).await,
        PoolMode::Transaction => crate::conformance::run_silent_replicas(open_two).await,
    }
}

/// What one client prepared would meet what another one prepares under the same name, on the same
/// connection of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_behind_on_a_connection_that_others_get() {
    let (server, pooler) = start(PoolMode::Transaction);
    let url = pooler.url(&server.create_database());
    let opened = async || {
        PostgresIndex::examine(&url, &pooled(), "s").await.unwrap();
        PostgresIndex::plan_migration(&url, &pooled()).await.unwrap();
        PostgresIndex::open(&url, pooled()).await.unwrap()
    };
    for replica in [opened().await, opened().await] {
        super::tests::cache(&replica, &format!("cache-{}", rand::random::<u32>())).await;
    }
    let left = "SELECT count(*) FROM pg_prepared_statements";
    let set = "SELECT concat(current_setting('enable_seqscan'), current_setting('statement_timeout'))";
    for _ in 0..8 {
        assert_eq!((server.sql(&url, left).as_str(), server.sql(&url, set).as_str()), ("0", "on0"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_met_through_a_pooler_by_session() {
    meets_the_contract(PoolMode::Session, options()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_met_through_a_pooler_by_transaction() {
    meets_the_contract(PoolMode::Transaction, pooled()).await;
}

/// The other way is safe, too: it only costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_by_transaction_that_nobody_spoke_of_is_refused_and_one_by_session_is_not() {
    let (server, pooler) = start(PoolMode::Transaction);
    let url = server.create_database();
    let through = pooler.url(&url);
    let refused = PostgresIndex::open(&through, options()).await;
    assert!(matches!(refused, Err(Error::UnsaidPooler)), "{refused:?}");
    let refused = PostgresIndex::examine(&through, &options(), "s").await;
    assert!(matches!(refused, Err(Error::UnsaidPooler)), "{refused:?}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.sql(&url, tables), "0", "nothing was made");

    PostgresIndex::open(&through, pooled()).await.unwrap();
    let seen = async |url: &str| PostgresIndex::examine(url, &pooled(), "s").await.unwrap().pooled;
    assert!(seen(&through).await);
    assert!(!seen(&url).await, "without a pooler");
    let by_session = PgBouncer::start(&server, PoolMode::Session);
    assert!(!seen(&by_session.url(&url)).await);
    PostgresIndex::open(&by_session.url(&url), options()).await.unwrap();
}

/// Nobody hears of changes; asked, the index knows them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_notice_comes_through_a_pooler_by_transaction() {
    let (server, pooler) = start(PoolMode::Transaction);
    let url = server.create_database();
    let silent = PostgresIndex::open(&pooler.url(&url), pooled()).await.unwrap();
    let direct = PostgresIndex::open(&url, options()).await.unwrap();
    let (mut at_silent, mut at_direct) = (silent.changes(), direct.changes());
    let cache = super::tests::cache(&silent, "main").await;
    let heard = async {
        loop {
            silent.update_cache(cache, &CachePatch::default(), super::tests::NOW).await.unwrap();
            let next = tokio::time::timeout(Duration::from_millis(200), at_direct.next()).await;
            if next == Ok(Some(Change::Cache(cache))) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), heard).await.expect("one without a pooler is told");
    direct.update_cache(cache, &CachePatch::default(), super::tests::NOW + 1).await.unwrap();
    assert!(silent.postgres().listener.is_none());
    let own = async {
        while let Some(change) = at_silent.next().await {
            assert_ne!(change, Change::Everything, "no listener runs, so none reconnects");
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(300), own).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_the_server_and_the_pooler_are_survived() {
    let (server, mut pooler) = start(PoolMode::Transaction);
    let index = PostgresIndex::open(&pooler.url(&server.create_database()), pooled()).await.unwrap();
    calls_go_on(index, move || {
        std::thread::sleep(Duration::from_millis(700));
        server.restart();
        std::thread::sleep(Duration::from_millis(700));
        pooler.restart();
        std::thread::sleep(Duration::from_millis(700));
        server.kill();
        server.restart();
        (server, pooler)
    })
    .await;
}
