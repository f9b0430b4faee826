//! Tests of what is PostgreSQL's own: the server, its settings, its plans, its failures, and
//! several processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use dormer_format::{ChunkId, EncodingTag};
use dormer_nix::{NarHash, StorePathHash};
use dormer_testkit::create_postgres_index;
use dormer_testkit::services::Postgres as Server;
use sqlx::{AssertSqlSafe, Row as _, query};

use super::*;
use crate::access::{Access, Lock};
use crate::collect;
use crate::jobs::{expire_cache, recount, spread_damage};
use crate::scrub;
use crate::sql::Sql;
use crate::topics::{
    caches, chunks, counters, damage, documents, history, journal, nars, objects, outbox, retention, sessions,
};
use crate::*;

pub(super) const NOW: UnixSeconds = 1_800_000_000;

pub(super) fn options() -> PostgresOptions {
    PostgresOptions {
        connections_max: 8,
        acquire_timeout: Duration::from_mins(1),
        ..PostgresOptions::default()
    }
}

pub(super) async fn open(url: &str) -> SqlIndex {
    PostgresIndex::open(url, options()).await.unwrap()
}

/// Pushes an object with one new chunk.
async fn push(index: &SqlIndex, cache: CacheId) -> Result<StorePathHash> {
    push_output(index, cache, None).await
}

/// Pushes an object with one new chunk that names a derivation.
async fn push_output(index: &SqlIndex, cache: CacheId, deriver: Option<&str>) -> Result<StorePathHash> {
    let pack = NewPack {
        id: dormer_format::PackId::from_bytes(rand::random()),
        size: 1000,
        created_at: NOW,
        chunks: vec![crate::NewChunk {
            id: ChunkId::from_bytes(rand::random()),
            offset: 32,
            layout: dormer_format::ChunkLayout { raw_len: 1000, holes: vec![], frames: vec![500] },
            checksum: rand::random(),
        }],
    };
    let rows = index.commit_pack(&pack).await?;
    let mut recipe = dormer_format::RecipeBuilder::new();
    recipe.push_chunk(rows[0].number);
    let nar = NewNar {
        hash: NarHash::from_bytes(rand::random()),
        size: 1000,
        file_size: 500,
        tag: EncodingTag::from_bytes(rand::random()),
        holed_bytes: 0,
        recipe: recipe.finish(),
        listing: StoredListing::Inline(vec![7; 100]),
        build_ids: Vec::new(),
        packs: vec![rows[0].pack],
    };
    let hash = StorePathHash::from_bytes(rand::random());
    let object = Object {
        path: dormer_nix::StorePath::new(hash, "package").unwrap(),
        references: Vec::new(),
        deriver: deriver.map(str::to_owned),
        ca: None,
        sigs: Vec::new(),
        system: None,
        extra: Vec::new(),
    };
    let target = CommitTarget::Object(object);
    index
        .commit_nar(&NarCommit {
            cache,
            nar: NarSource::New(Box::new(nar)),
            target,
            at: NOW,
            grace_seconds: 60,
            known_keys: Vec::new(),
        })
        .await?;
    Ok(hash)
}

pub(super) async fn cache(index: &SqlIndex, name: &str) -> CacheId {
    let cache = NewCache {
        master_key_proof: None,
        name: name.to_owned(),
        is_public: true,
        store_dir: "/nix/store".to_owned(),
        priority: 40,
        upstream_cache_key_names: Vec::new(),
        key: CacheKey { public_key: "k:p".to_owned(), sealed_secret: vec![0; 60], active: true },
        created_at: NOW,
        allow_replacement: true,
    };
    index.create_cache(&cache).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_meets_the_contract() {
    crate::conformance::run(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await) as Arc<dyn Index>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_remembers_what_is_published() {
    crate::conformance::run_publish(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_answers_in_time_in_a_large_cache() {
    let url = Server::shared().create_database();
    let limit = PostgresOptions { statement_timeout: crate::conformance::bulk::CALL_MAX, ..options() };
    let index = PostgresIndex::open(&url, limit).await.unwrap();
    crate::conformance::bulk::run_bulk(&Arc::new(index)).await.unwrap();
}

/// Commits that share a pack run beside each other: one that is not finished does not keep the next
/// one waiting.
#[tokio::test]
async fn commits_that_share_a_fresh_pack_do_not_wait_for_each_other() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let cache = cache(&index, "main").await;
    push(&index, cache).await.unwrap();
    let stamp = [crate::sql::Argument::Number(NOW + 1), crate::sql::Argument::Numbers(&[1])];
    let mut unfinished = index.postgres_session(Access::Write(&[])).await;
    assert_eq!(unfinished.rows(chunks::STAMP_PACKS, &stamp).await.unwrap().len(), 1);
    let mut next = index.postgres_session(Access::Write(&[])).await;
    let beside = tokio::time::timeout(Duration::from_secs(5), next.rows(chunks::STAMP_PACKS, &stamp)).await;
    assert_eq!(beside.expect("it does not wait").unwrap().len(), 1);
    next.commit().await.unwrap();

    // A collector waits until the commit has ended.
    let mut collector = index.postgres_session(Access::Write(&[])).await;
    collector.execute(query("SET LOCAL lock_timeout = 300")).await.unwrap();
    let condemn = collector.execute(query("UPDATE packs SET condemned_at = 1 WHERE number = 1")).await;
    assert!(matches!(condemn, Err(Error::Unavailable { .. })), "it waits: {condemn:?}");
    collector.roll_back().await;
    unfinished.commit().await.unwrap();

    // A stale stamp is renewed, and a stamp that another commit renewed meanwhile still counts.
    let later = [crate::sql::Argument::Number(NOW + 10_000), crate::sql::Argument::Numbers(&[1])];
    let mut first = index.postgres_session(Access::Write(&[])).await;
    assert_eq!(first.rows(chunks::STAMP_PACKS, &later).await.unwrap().len(), 1);
    let mut second = index.postgres_session(Access::Write(&[])).await;
    let waiting = async { second.rows(chunks::STAMP_PACKS, &later).await.unwrap().len() };
    let ends = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        first.commit().await.unwrap();
    };
    assert_eq!(tokio::join!(waiting, ends).0, 1);
    drop(second);
    assert_eq!(Server::shared().sql(&url, "SELECT used_at FROM packs"), (NOW + 10_000).to_string());
}

/// A removal waits for a commit that names the same derivation, and then sees its object. The
/// commit is held up before its writes: nothing can be put into the table of NARs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stays_for_an_object_whose_commit_has_not_ended() {
    let url = Server::shared().create_database();
    let index = Arc::new(open(&url).await);
    let main = cache(&index, "main").await;
    let derivation: dormer_nix::StorePath = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv".parse().unwrap();
    let first = push_output(&index, main, Some(derivation.base_name())).await.unwrap();
    let name = dormer_nix::DocumentName::Log(derivation.clone());
    let (owner, body) = (derivation.hash(), b"built".to_vec());
    let log = NewDocument { name: name.clone(), owner, size: 5, encoding: None, body };
    index.put_document(main, &log, NOW).await.unwrap();

    // Nothing can be put into the table of NARs, so a commit ends only when this one does.
    let mut holder = index.postgres_session(Access::Write(&[])).await;
    holder.execute(query("LOCK TABLE nars IN SHARE MODE")).await.unwrap();
    let waits_for = async |count: &str| {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while Server::shared().sql(&url, waiting).trim() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let commit = tokio::spawn({
        let (index, deriver) = (Arc::clone(&index), derivation.base_name().to_owned());
        async move { push_output(&index, main, Some(&deriver)).await }
    });
    waits_for("1").await;
    let removal = tokio::spawn({
        let index = Arc::clone(&index);
        async move { index.remove_object(main, &first, Removal::WithGraceUntil(NOW + 1_000), NOW).await }
    });
    let both_wait = tokio::time::timeout(Duration::from_secs(5), waits_for("2")).await;
    assert!(both_wait.is_ok() && !removal.is_finished(), "the removal did not wait for the commit");
    holder.commit().await.unwrap();
    let second = commit.await.unwrap().unwrap();
    assert!(removal.await.unwrap().unwrap());
    assert!(index.find_document(main, &name).await.unwrap().is_some(), "the second object names it");
    assert!(index.remove_object(main, &second, Removal::ForCause, NOW).await.unwrap());
    assert_eq!(index.find_document(main, &name).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_runs_jobs() {
    crate::conformance::run_jobs(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_serves_a_collector() {
    crate::conformance::run_collect(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_serves_a_scrub() {
    crate::conformance::run_scrub(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_counts() {
    crate::conformance::run_counters(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_serves_the_journal() {
    crate::conformance::run_journal(|| async {
        let url = create_postgres_index(Server::shared()).await;
        Arc::new(open(&url).await)
    })
    .await;
}

/// What an older Dormer stored, and counters that somebody changed: a recount makes both right.
#[tokio::test]
async fn a_recount_counts_what_was_there_and_forgets_what_was_wrong() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let main = cache(&index, "main").await;
    push(&index, main).await.unwrap();
    let right = index.stored_counts().await.unwrap();
    assert!(right.is_complete && right.nars == 1 && right.paths.paths == 1, "{right:?}");
    let recount = async || {
        index.open_job(JobKind::Recount, None, None, NOW).await.unwrap();
        let lease = index.lease_job(JobKind::Recount, "a", NOW, NOW + 60).await.unwrap().unwrap();
        while !index.recount_step(&lease, 1, NOW, NOW + 60).await.unwrap().is_last {}
        index.stored_counts().await.unwrap()
    };
    index.tend_counters(NOW, 0).await.unwrap();
    Server::shared().sql(&url, "UPDATE counters SET packs = packs + 7, nar_bytes = 1");
    assert_ne!(index.stored_counts().await.unwrap(), right);
    assert_eq!(recount().await, right);

    for old in [
        "UPDATE objects SET counted = 0",
        "UPDATE nars SET counted = 0, holed_bytes = NULL",
        "UPDATE packs SET counted = 0, raw_bytes = NULL, holed_bytes = NULL",
        "DELETE FROM counters",
        "DELETE FROM counter_changes",
        "UPDATE counter_state SET generation = 1, counted_at = NULL",
    ] {
        Server::shared().sql(&url, old);
    }
    let old = index.stored_counts().await.unwrap();
    assert_eq!((old.is_complete, old.nars), (false, 0));
    assert!(!index.glance_at_caches(&[main]).await.unwrap()[0].is_complete);
    let counted = recount().await;
    assert_eq!((counted.paths, counted.nars, counted.packs), (right.paths, right.nars, right.packs));
    assert!(counted.is_complete && counted.pack_bytes == right.pack_bytes);
}

/// A transaction that has counted an object, a NAR and a pack of a cache, and has not ended.
async fn open_commit(index: &SqlIndex, number: u8) -> Session {
    let mut open = index.postgres_session(Access::Write(&[])).await;
    for sql in [
        "INSERT INTO packs (id, size, created_at, used_at, raw_bytes, holed_bytes, counted)
            SELECT decode(repeat('NN', 16), 'hex'), 7, 1, 1, 8, 9, generation FROM counting",
        "INSERT INTO nars (hash, size, file_size, tag, recipe, holed_bytes, counted)
            SELECT decode(repeat('NN', 32), 'hex'), 7, 7, decode(repeat('NN', 16), 'hex'), '', 0, generation
            FROM counting",
        "INSERT INTO objects (cache, hash, nar, created_at, last_used_at, name, sigs, refs, nar_size, counted)
            SELECT o.cache, decode(repeat('NN', 20), 'hex'), o.nar, 1, 1, 'a', '', '', 7, generation
            FROM counting, (SELECT cache, nar FROM objects LIMIT 1) AS o",
    ] {
        let sql = sql.replace("NN", &format!("{number:02x}"));
        assert_eq!(open.execute(query(AssertSqlSafe(sql))).await.unwrap(), 1);
    }
    open
}

/// Commits to one cache do not wait for each other: one that has not ended holds no counter. A
/// commit that waited would fail here, because none of the others ends before.
#[tokio::test]
async fn commits_to_one_cache_that_have_not_ended_keep_no_other_from_counting() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let main = cache(&index, "main").await;
    push(&index, main).await.unwrap();
    let first = open_commit(&index, 1).await;
    let second = open_commit(&index, 2).await;
    push(&index, main).await.unwrap();
    index.tend_counters(NOW, 0).await.unwrap();
    let paths = async || index.path_counts(main).await.unwrap().paths;
    assert_eq!(paths().await, 2);
    second.commit().await.unwrap();
    first.commit().await.unwrap();
    let stored = index.stored_counts().await.unwrap();
    assert_eq!((paths().await, stored.paths.paths, stored.nars, stored.packs), (4, 4, 4, 4));
    assert_eq!((stored.pack_raw_bytes, stored.pack_holed_bytes), (2 * 1000 + 2 * 8, 2 * 9));
    index.tend_counters(NOW, 0).await.unwrap();
    assert_eq!(index.stored_counts().await.unwrap(), stored);
    let rows = Server::shared().sql(&url, "SELECT count(*) FROM counter_changes");
    assert_eq!(rows.trim(), "0", "all of them are summed up");
}

/// A recount begins when no transaction is left that counts in the generation before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_waits_for_commits_that_have_not_ended() {
    let url = Server::shared().create_database();
    let index = Arc::new(open(&url).await);
    let main = cache(&index, "main").await;
    push(&index, main).await.unwrap();
    let open_end = open_commit(&index, 1).await;
    index.open_job(JobKind::Recount, None, None, NOW).await.unwrap();
    let lease = index.lease_job(JobKind::Recount, "a", NOW, NOW + 60).await.unwrap().unwrap();
    let steps = tokio::spawn({
        let index = Arc::clone(&index);
        async move { while !index.recount_step(&lease, 9, NOW, NOW + 60).await.unwrap().is_last {} }
    });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while Server::shared().sql(&url, waiting).trim() == "0" {
        assert!(!steps.is_finished(), "it did not wait");
        tokio::task::yield_now().await;
    }
    open_end.commit().await.unwrap();
    steps.await.unwrap();
    let old = "SELECT count(*) FROM objects WHERE counted <> (SELECT generation FROM counter_state)";
    assert_eq!(Server::shared().sql(&url, old).trim(), "0", "no row is left behind");
    assert_eq!(index.path_counts(main).await.unwrap().paths, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_meet_the_contract() {
    crate::conformance::run_replicas(|| async {
        let url = create_postgres_index(Server::shared()).await;
        [Arc::new(open(&url).await) as Arc<dyn Index>, Arc::new(open(&url).await)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_migrate_once() {
    let url = Server::shared().create_database();
    let plan = PostgresIndex::plan_migration(&url, &options()).await.unwrap();
    assert_eq!((plan.found, plan.pending.len()), (0, open::migrations().iter().count()));
    assert_eq!(Server::shared().sql(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");
    let opens: Vec<_> = (0..6)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { open(&url).await }
            })
        })
        .collect();
    for opened in opens {
        opened.await.unwrap().check_ready().await.unwrap();
    }
    assert_eq!(
        Server::shared().sql(&url, "SELECT max(version), bool_and(success), count(*) FROM _sqlx_migrations"),
        format!("{}|t|{}", open::schema_known(), open::migrations().iter().count())
    );
    let plan = PostgresIndex::plan_migration(&url, &options()).await.unwrap();
    assert_eq!((plan.found, plan.pending.len()), (open::schema_known(), 0));
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let url = Server::shared().create_database();
    let running = open(&url).await;
    Server::shared().sql(
        &url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (7777, 'later', true, '', 0)",
    );
    let refused = PostgresIndex::open(&url, options()).await;
    assert!(
        matches!(refused, Err(Error::SchemaTooNew { found: 7777, known }) if known == open::schema_known()),
        "{refused:?}"
    );
    let refused = PostgresIndex::plan_migration(&url, &options()).await;
    assert!(matches!(refused, Err(Error::SchemaTooNew { .. })), "{refused:?}");
    running.check_ready().await.unwrap();
}

#[tokio::test]
async fn looking_at_a_database_finds_what_is_there_and_changes_nothing() {
    let server = Server::shared();
    let url = server.create_database();
    let examine = async |url: &str| PostgresIndex::examine(url, &options(), "s").await.unwrap();
    let empty = examine(&url).await;
    assert_eq!((empty.schema, empty.setting.as_ref(), &empty.missing_rights[..]), (None, None, &[][..]));
    assert!(empty.program.starts_with("PostgreSQL 1"), "{empty:?}");
    let skew = empty.time.unwrap().elapsed().unwrap_or_default();
    assert!(skew < Duration::from_mins(10), "{skew:?}: both clocks are this machine's");
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(server.sql(&url, tables), "0", "looking makes nothing");

    let index = open(&url).await;
    index.create_setting("s", b"v").await.unwrap();
    let used = examine(&url).await;
    assert_eq!((used.schema, used.setting.as_deref()), (Some(used.schema_known), Some(&b"v"[..])));
    assert_eq!(used.missing_rights, [""; 0]);

    // A role that may look, but neither write objects nor change the schema.
    let role = format!("reader_{:016x}", rand::random::<u64>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
         REVOKE INSERT ON objects FROM {role}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    );
    server.sql(&url, &grants);
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let limited = examine(&format!("{scheme}://{role}@{place}")).await;
    assert_eq!(limited.missing_rights, ["CREATE on schema public", "INSERT on table objects"]);
    assert_eq!(limited.setting.as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn databases_of_others_are_refused_and_not_touched() {
    let server = Server::shared();
    for (tables, expected) in [
        ("cache nar object chunk chunkref seaql_migrations", "Attic"),
        ("chunkref nar", "Attic"),
        ("packs chunks settings", "another program"),
        ("users", "another program"),
    ] {
        let url = server.create_database();
        for table in tables.split(' ') {
            server.sql(&url, &format!("CREATE TABLE {table} (id INTEGER)"));
        }
        let refused = PostgresIndex::open(&url, options()).await;
        assert!(
            matches!(&refused, Err(Error::ForeignDatabase { owner, .. }) if owner == expected),
            "{tables}: {refused:?}"
        );
        let left = server.sql(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'");
        assert_eq!(left, tables.split(' ').count().to_string());
    }
}

/// After a failover of which only a standby is left: what is stored can be read, also by a process
/// that starts now, and a write fails with a clear error. After the promotion all goes on.
#[tokio::test]
async fn a_standby_is_read_and_takes_no_writes() {
    let server = Server::start();
    let url = server.create_database();
    let before = open(&url).await;
    let cache = cache(&before, "main").await;
    let object = push(&before, cache).await.unwrap();
    server.restart_as_standby();
    let restarted = open(&url).await;
    for index in [&before, &restarted] {
        // A process that knew the primary seeks it for some seconds.
        let begun = std::time::Instant::now();
        while let Err(error) = index.ping().await {
            assert!(begun.elapsed() < Duration::from_secs(30), "{error:?}");
        }
        assert!(index.find_object(cache, &object).await.unwrap().is_some());
        assert!(!index.outbox_after(OutboxPosition::START, 9).await.unwrap().is_empty());
        let refused = index.check_ready().await;
        assert!(
            matches!(&refused, Err(Error::Unavailable { source, .. }) if source.to_string().contains("recovery")),
            "{refused:?}"
        );
    }
    server.sql("postgres", "SELECT pg_promote()");
    for index in [&before, &restarted] {
        index.check_ready().await.unwrap();
    }
    // A standby with an older schema cannot be brought up to date.
    server.sql(
        &url,
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)",
    );
    server.restart_as_standby();
    let refused = PostgresIndex::open(&url, options()).await;
    assert!(matches!(&refused, Err(Error::ServerUnfit { what }) if what.contains("standby")), "{refused:?}");
}

#[tokio::test]
async fn a_server_that_loses_commits_is_refused() {
    let server = Server::start_with(&["fsync=off"]);
    let refused = PostgresIndex::open(&server.create_database(), options()).await;
    assert!(matches!(&refused, Err(Error::ServerUnfit { what }) if what.contains("fsync")), "{refused:?}");

    let server = Server::shared();
    let url = server.create_database();
    let index = open(&url).await;
    index.check_ready().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    server.sql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    let refused = PostgresIndex::open(&url, options()).await;
    let unfit = |what: &str| what.contains("synchronous_commit");
    assert!(matches!(&refused, Err(Error::ServerUnfit { what }) if unfit(what)), "{refused:?}");
    server.sql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = remote_apply"));
    open(&url).await;
    server.sql(
        "postgres",
        &format!("CREATE DATABASE {name}_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"),
    );
    let refused = PostgresIndex::open(&format!("{url}_latin"), options()).await;
    assert!(matches!(&refused, Err(Error::ServerUnfit { what }) if what.contains("LATIN1")), "{refused:?}");
}

#[tokio::test]
async fn what_cannot_be_reached_is_unavailable_and_tells_no_password() {
    let short = PostgresOptions { acquire_timeout: Duration::from_secs(2), ..options() };
    let port = dormer_testkit::services::free_port();
    let nobody = format!("postgresql://dormer:hunter2@127.0.0.1:{port}/dormer");
    let nothing = Server::shared().url("no_such_database");
    for url in [nobody, nothing] {
        let refused = PostgresIndex::open(&url, short.clone()).await.unwrap_err();
        assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
        assert!(!format!("{refused:?} {refused}").contains("hunter2"));
    }
    let wrong = PostgresIndex::open("postgresql://:hunter2@/%zz?port=x", short).await.unwrap_err();
    assert!(!format!("{wrong:?} {wrong}").contains("hunter2"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_is_survived() {
    let server = Server::start();
    let index = open(&server.create_database()).await;
    calls_go_on(index, move || {
        for crash in [false, true, false] {
            std::thread::sleep(Duration::from_millis(700));
            if crash {
                server.kill();
            } else {
                server.stop();
            }
            server.restart();
        }
        server
    })
    .await;
}

/// Pushes and looks things up while `faults` happen: no answer is wrong, and nothing that was
/// acknowledged is lost. What `faults` returns is kept until the end.
pub(super) async fn calls_go_on<T: Send + 'static>(
    index: SqlIndex,
    faults: impl FnOnce() -> T + Send + 'static,
) {
    let index = Arc::new(index);
    let cache = cache(&index, "main").await;
    let done = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (index, done) = (Arc::clone(&index), Arc::clone(&done));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                let mut errors = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    match push(&index, cache).await {
                        Ok(hash) => acknowledged.push(hash),
                        Err(error) => errors.push(error),
                    }
                    if let Some(last) = acknowledged.last() {
                        match index.find_object(cache, last).await {
                            Ok(found) => assert!(found.is_some(), "an acknowledged object is missing"),
                            Err(error) => errors.push(error),
                        }
                    }
                }
                (acknowledged, errors)
            })
        })
        .collect();
    let faults = tokio::task::spawn_blocking(move || {
        let kept = faults();
        std::thread::sleep(Duration::from_millis(700));
        kept
    });
    let _kept = faults.await.unwrap();
    done.store(true, Ordering::SeqCst);
    let mut count = 0;
    for worker in workers {
        let (acknowledged, errors) = worker.await.unwrap();
        for error in errors {
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        }
        for hash in acknowledged {
            assert!(index.find_object(cache, &hash).await.unwrap().is_some(), "nothing is lost");
            count += 1;
        }
    }
    assert!(count > 0);
    index.check_ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_others_is_there_though_a_ping_finds_no_connection() {
    let server = Server::start();
    let few = PostgresOptions { connections_max: 2, ..options() };
    let index = Arc::new(PostgresIndex::open(&server.create_database(), few).await.unwrap());
    let statement = async |index: &SqlIndex, seconds: f64| {
        let mut read = index.postgres().begin("sleep", Access::Read).await?;
        read.all(query("SELECT pg_sleep($1)").bind(seconds)).await?;
        read.commit().await
    };
    let sleep = |seconds: f64| {
        let index = Arc::clone(&index);
        tokio::spawn(async move { statement(&index, seconds).await.unwrap() })
    };
    // Each waits its turn: the ping's would come in 10 s.
    let crowd: Vec<_> = (0..100).map(|_| sleep(0.2)).collect();
    while index.pool_use().waiting < 80 {
        tokio::task::yield_now().await;
    }
    index.ping().await.unwrap();
    assert!(index.pool_use().waiting > 10, "it was not its turn yet");
    for one in crowd {
        one.await.unwrap();
    }
    // All connections are taken, and nobody is answered.
    let before = index.statement_count();
    let silent = [sleep(6.0), sleep(6.0)];
    while index.statement_count() < before + 2 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(index.ping().await, Err(Error::Unavailable { .. })));
    for one in silent {
        one.await.unwrap();
    }
}

/// A way to a server that can vanish: connections stay, and nothing comes of them any more.
struct Way {
    port: u16,
    /// How often it vanished.
    age: tokio::sync::watch::Sender<u32>,
    open: Arc<AtomicBool>,
}

impl Way {
    async fn to(server: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (age, watched) = tokio::sync::watch::channel(0);
        let open = Arc::new(AtomicBool::new(true));
        let is_open = Arc::clone(&open);
        tokio::spawn(async move {
            let mut vanished = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                if !is_open.load(Ordering::SeqCst) {
                    vanished.push(client);
                    continue;
                }
                let (server, mut watched) = (server.clone(), watched.clone());
                tokio::spawn(async move {
                    let mut there = tokio::net::TcpStream::connect(server).await.unwrap();
                    watched.mark_unchanged();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut there) => {}
                        _ = watched.changed() => {
                            // Neither closed nor answered, for as long as the test runs.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { port, age, open }
    }

    fn vanish(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.age.send_modify(|age| *age += 1);
    }

    fn come_back(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

/// As when the machine of the server is lost, and its address is another one's a moment later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_vanished_are_given_up() {
    let url = Server::shared().create_database();
    let (before, rest) = url.split_once("127.0.0.1:").unwrap();
    let (port, rest) = rest.split_once('/').unwrap();
    let way = Way::to(format!("127.0.0.1:{port}")).await;
    let few = PostgresOptions { connections_max: 2, acquire_timeout: Duration::from_secs(10), ..options() };
    let index = PostgresIndex::open(&format!("{before}127.0.0.1:{}/{rest}", way.port), few).await.unwrap();
    let cache = cache(&index, "main").await;
    let hash = StorePathHash::from_bytes([1; 20]);
    assert!(index.find_object(cache, &hash).await.unwrap().is_none());
    way.vanish();
    for _ in 0..3 {
        assert!(matches!(index.ping().await, Err(Error::Unavailable { .. })));
        // A client that goes away does not wait for the end either.
        let gone = tokio::time::timeout(Duration::from_millis(100), index.find_object(cache, &hash)).await;
        assert!(gone.is_err());
    }
    way.come_back();
    let back = async {
        while index.find_object(cache, &hash).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(45), back).await.expect("new connections are made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_unavailable_until_it_is_back() {
    let server = Server::start();
    let short = PostgresOptions { acquire_timeout: Duration::from_millis(300), ..options() };
    let index = PostgresIndex::open(&server.create_database(), short).await.unwrap();
    let cache = cache(&index, "main").await;
    let mut changes = index.changes();
    server.stop();
    for _ in 0..3 {
        let down = index.find_object(cache, &StorePathHash::from_bytes([1; 20])).await;
        assert!(matches!(down, Err(Error::Unavailable { .. })), "never \"not here\": {down:?}");
    }
    assert!(matches!(index.ping().await, Err(Error::Unavailable { .. })));
    server.restart();
    // A connection may need longer than this test's short patience on a busy machine.
    for _ in 0..100 {
        if index.ping().await.is_ok() {
            break;
        }
    }
    index.ping().await.unwrap();
    let told = async { while changes.next().await != Some(Change::Everything) {} };
    tokio::time::timeout(Duration::from_mins(1), told)
        .await
        .expect("a listener that lost its connection comes back");
}

#[tokio::test]
async fn cut_connections_are_replaced_within_the_call() {
    let server = Server::shared();
    let url = server.create_database();
    let index = open(&url).await;
    let cache = cache(&index, "main").await;
    for _ in 0..5 {
        server.sql(
            "postgres",
            &format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
                url.rsplit('/').next().unwrap()
            ),
        );
        push(&index, cache).await.unwrap();
        index.update_cache(cache, &CachePatch::default(), NOW).await.unwrap();
    }
}

#[tokio::test]
async fn waiting_for_a_lock_ends() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let cache = cache(&index, "main").await;
    let short = PostgresOptions { lock_timeout: Duration::from_millis(100), ..options() };
    let hasty = PostgresIndex::open(&url, short).await.unwrap();
    let held = index.postgres_session(Access::Write(&[Lock::Cache(cache.0)])).await;
    let waited = hasty.delete_cache(cache, None, NOW).await;
    assert!(matches!(waited, Err(Error::Unavailable { .. })), "{waited:?}");
    let waited = push(&hasty, cache).await;
    assert!(matches!(waited, Err(Error::Unavailable { .. })), "{waited:?}");
    drop(held);
    push(&index, cache).await.unwrap();
    hasty.delete_cache(cache, None, NOW).await.unwrap();
}

/// A session that is dropped in the middle of its transaction leaves nothing behind, and its
/// connection is not used again.
#[tokio::test]
async fn dropped_transactions_are_undone() {
    let url = Server::shared().create_database();
    let one = PostgresOptions { connections_max: 1, ..options() };
    let index = PostgresIndex::open(&url, one).await.unwrap();
    let mut write = index.postgres_session(Access::Write(&[])).await;
    write.execute(query("INSERT INTO settings (name, value) VALUES ('half', '')")).await.unwrap();
    drop(write);
    assert_eq!(index.find_setting("half").await.unwrap(), None);
    let mut read = index.postgres_session(Access::Read).await;
    let state = read.all(query("SELECT pg_current_xact_id_if_assigned() IS NULL")).await.unwrap();
    assert!(state[0].get::<bool, _>(0), "no transaction is open");
}

#[tokio::test]
async fn corrupt_rows_and_defects_are_told_apart() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let cache = cache(&index, "main").await;
    let hash = push(&index, cache).await.unwrap();
    Server::shared().sql(&url, "UPDATE objects SET refs = '\\x05'");
    let found = index.find_object(cache, &hash).await;
    assert!(matches!(found, Err(Error::Corrupt { table: "objects", .. })), "{found:?}");
    let mut read = index.postgres_session(Access::Read).await;
    let defect = read.all(query("SELECT nonsense")).await;
    assert!(matches!(defect, Err(Error::Database { .. })), "{defect:?}");
}

/// Transaction ids begin again when a dump is restored into another server.
#[tokio::test]
async fn followers_miss_nothing_after_a_move_to_another_server() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let cache = cache(&index, "main").await;
    index.update_cache(cache, &CachePatch::default(), NOW).await.unwrap();
    index.close().await.unwrap();
    Server::shared().sql(&url, "UPDATE outbox SET transaction = transaction + 1000000000");
    let index = open(&url).await;
    index.update_cache(cache, &CachePatch::default(), NOW + 1).await.unwrap();
    let rows = loop {
        let rows = index.outbox_after(OutboxPosition::START, 10).await.unwrap();
        if rows.len() == 2 {
            break rows;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(rows.iter().map(|row| row.at).collect::<Vec<_>>(), [NOW, NOW + 1]);
    assert!(rows[0].position < rows[1].position);
}

/// The plan of a statement in a database without statistics, as prepared: without a look at the
/// parameters.
async fn plan(index: &SqlIndex, sql: Sql, parameters: &str) -> String {
    let mut write = index.postgres_session(Access::Write(&[])).await;
    write.execute(query(AssertSqlSafe(format!("PREPARE looked_at AS {}", sql.postgres)))).await.unwrap();
    let explain = format!("EXPLAIN (COSTS OFF) EXECUTE looked_at ({parameters})");
    let rows = write.all(query(AssertSqlSafe(explain))).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_look_up_searches_an_index_and_scans_no_table() {
    let url = Server::shared().create_database();
    look_ups_search_indexes(&open(&url).await).await;
}

/// However many rows there are, and whether the server has counted them or not.
pub(super) async fn look_ups_search_indexes(index: &SqlIndex) {
    let (bytes, array) = ("'\\x00'", "ARRAY['\\x00'::bytea]");
    for (sql, parameters, indexes) in [
        (chunks::FIND_CHUNKS, array.to_owned(), ["chunks_id_key", "packs_pkey"].as_slice()),
        (chunks::FIND_WINNERS, array.to_owned(), &["chunks_id_key", "packs_pkey"]),
        (chunks::LOAD_CHUNKS, "ARRAY[1], ARRAY[2]".to_owned(), &["chunks_pkey", "packs_pkey"]),
        (chunks::STAMP_PACKS, "1, ARRAY[1]".to_owned(), &["packs_pkey", "chunks_damaged"]),
        (damage::MARK_CHUNKS, "ARRAY[1], 2".to_owned(), &["chunks_pkey"]),
        (spread_damage::PAGE, "1, 2".to_owned(), &["nars_pkey", "listings_pkey"]),
        (nars::FIND_NAR, bytes.to_owned(), &["nars_hash_key", "listings_pkey"]),
        (nars::FIND_NAR_BY_HASH, format!("1, {bytes}, 2"), &["nars_hash_key", "objects_by_nar"]),
        (nars::FIND_NAR_BY_PATH, format!("1, {bytes}"), &["objects_cache_hash_key", "nars_pkey"]),
        (nars::FIND_LISTING, "1".to_owned(), &["listings_pkey"]),
        (nars::LOOK_BY_HASH, format!("1, {bytes}, {bytes}"), &["nars_hash_key", "objects_cache_hash_key"]),
        (nars::LOOK_BY_ID, format!("1, 2, {bytes}"), &["nars_pkey", "objects_cache_hash_key"]),
        (objects::FIND_OBJECT, format!("1, {bytes}"), &["objects_cache_hash_key", "nars_pkey"]),
        (
            objects::FIND_OBJECT_AND_LOG,
            format!("1, {bytes}"),
            &["objects_cache_hash_key", "nars_pkey", "documents_by_name"],
        ),
        (objects::PRESENT_OBJECTS, format!("1, {array}"), &["objects_cache_hash_key", "nars_pkey"]),
        (objects::TOUCH_OBJECTS, format!("1, {array}, 2, true"), &["objects_cache_hash_key", "objects_pkey"]),
        (objects::FIND_ALIAS, "1, 'x', 2".to_owned(), &["aliases_pkey", "nars_pkey"]),
        (objects::DELETE_ALIASES_OF_NAR, "1, 2".to_owned(), &["aliases_by_nar"]),
        (objects::DELETE_GRACES_OF_NAR, "1, 2".to_owned(), &["graces_by_nar"]),
        (objects::DELETE_GRACES_OF_PATH, format!("1, {bytes}"), &["graces_pkey"]),
        (caches::FIND_CACHE, "'x'".to_owned(), &["caches_by_name", "cache_keys_pkey"]),
        (
            caches::LIST_CACHES_OF_NAR,
            "1, 2".to_owned(),
            &["objects_by_nar", "graces_by_nar", "aliases_by_nar"],
        ),
        (
            expire_cache::examined::EXAMINE_PAGE,
            "1, 2, 3, 4, 5, 6, 7".to_owned(),
            &["objects_by_use", "nars_pkey", "object_refs_pkey", "pins_by_path", "objects_by_name"],
        ),
        (
            expire_cache::examined::EXAMINE_FREED,
            format!("1, 2, 3, {array}"),
            &["objects_cache_hash_key", "nars_pkey", "object_refs_pkey", "pins_by_path", "objects_by_name"],
        ),
        (
            expire_cache::examined::EXAMINE_ONE,
            format!("1, 2, 3, {bytes}"),
            &["objects_cache_hash_key", "nars_pkey", "object_refs_pkey", "pins_by_path", "objects_by_name"],
        ),
        (
            expire_cache::objects::DELETE_OBJECTS,
            format!("1, 2, {array}"),
            &["objects_cache_hash_key", "objects_pkey"],
        ),
        (
            expire_cache::examined::SUM_OBJECTS,
            format!("1, {bytes}, 3"),
            &["objects_cache_hash_key", "nars_pkey", "documents_by_owner", "documents_by_name"],
        ),
        (expire_cache::quota::SUM_GRACES, format!("1, {bytes}, 3, 4"), &["graces_pkey", "nars_pkey"]),
        (retention::LIST_PINS, format!("1, 'x', {bytes}, 4, 5"), &["pins_by_name"]),
        (retention::LIST_PINS_OF_PATH, format!("1, {bytes}, 3, 4"), &["pins_by_path"]),
        (retention::FIND_REFERENCES, format!("1, {array}, 3"), &["objects_cache_hash_key"]),
        (retention::FIND_REFERRERS, format!("1, {bytes}, 3"), &["object_refs_pkey"]),
        (
            retention::FIND_KEEPERS,
            format!("1, {bytes}, 3, 4, 5"),
            &["pins_by_path", "object_refs_pkey", "objects_cache_hash_key"],
        ),
        (retention::LIST_EXTREMES, "1, 2".to_owned(), &["objects_by_size", "objects_by_use"]),
        (retention::LIST_BY_USE, "1, 2, 3, 4".to_owned(), &["objects_by_use"]),
        (retention::LIST_BY_AGE, "1, 2, 3, 4".to_owned(), &["objects_by_age"]),
        (retention::LIST_BY_SIZE, "1, 2, 3, 4".to_owned(), &["objects_by_size"]),
        (retention::LIST_BY_NAME, "1, 'x', 3, 4, 'y', 6".to_owned(), &["objects_by_name"]),
        (sessions::FIND, bytes.to_owned(), &["sessions_pkey"]),
        (sessions::OPEN, format!("{bytes}, 1, 'x', 2, 3, 4"), &["caches_pkey", "sessions_by_subject"]),
        (sessions::MAKE_ROOM, "'x', 1, 2".to_owned(), &["sessions_pkey", "sessions_by_subject"]),
        (sessions::ADD_PART, format!("{bytes}, {bytes}, {bytes}, 1"), &["sessions_pkey"]),
        (sessions::FIND_PART, format!("{bytes}, {bytes}"), &["session_parts_pkey"]),
        (sessions::PARTS_AFTER, format!("{bytes}, {bytes}, 1"), &["session_parts_pkey"]),
        (sessions::RECIPES_AFTER, "1, 2, 3, 4".to_owned(), &["objects_by_age", "nars_pkey"]),
        (sessions::SWEEP_PARTS, format!("{bytes}, 2"), &["session_parts_pkey"]),
        (sessions::FIRST_ENDED, "1".to_owned(), &["sessions_by_end"]),
        (sessions::SWEEP_SESSION, bytes.to_owned(), &["sessions_pkey"]),
        (documents::FIND, "1, 'x'".to_owned(), &["documents_by_name"]),
        (documents::HAS, "1, 'x'".to_owned(), &["documents_by_name"]),
        (
            documents::LOOK,
            format!("1, 'x', {bytes}"),
            &["documents_by_name", "documents_by_owner", "objects_cache_hash_key"],
        ),
        (
            documents::FORGET,
            format!("1, {bytes}, {bytes}, 'x'"),
            &["documents_by_owner", "objects_by_deriver"],
        ),
        (
            expire_cache::documents::EXAMINE_DOCUMENTS,
            "1, 2, 3".to_owned(),
            &["documents_by_number", "objects_by_deriver", "objects_cache_hash_key"],
        ),
        (expire_cache::documents::DELETE_DOCUMENTS, "ARRAY[1]".to_owned(), &["documents_pkey"]),
        (documents::OUTPUTS, "1, 'x'".to_owned(), &["objects_by_deriver"]),
        (
            documents::FIND_DEBUG_NAR,
            format!("1, {bytes}, 3, 4"),
            &["build_ids_pkey", "nars_pkey", "objects_by_nar"],
        ),
        (documents::FIND_LOGS, format!("1, {bytes}"), &["documents_by_owner"]),
        (documents::DELETE_LOGS, format!("1, {bytes}"), &["documents_by_owner"]),
        (journal::OBJECTS, format!("1, {array}"), &["objects_cache_hash_key", "nars_pkey", "listings_pkey"]),
        (
            journal::OBJECTS_AFTER,
            format!("1, {bytes}, 3"),
            &["objects_cache_hash_key", "nars_pkey", "listings_pkey"],
        ),
        (journal::ALIAS, "1, 'x'".to_owned(), &["aliases_pkey", "nars_pkey", "listings_pkey"]),
        (journal::ALIASES_AFTER, "1, 'x', 3".to_owned(), &["aliases_pkey", "nars_pkey", "listings_pkey"]),
        (journal::DOCUMENT, "1, 'x', 3".to_owned(), &["documents_by_name"]),
        (journal::DOCUMENT_SIZES, "1, 2".to_owned(), &["documents_pkey"]),
        (journal::DOCUMENTS_AFTER, "1, 2, 3".to_owned(), &["documents_pkey"]),
        (outbox::AFTER, "1, 2, 3".to_owned(), &["outbox_pkey"]),
        (outbox::OBJECTS_OF_NAR, "1, 2, 3, 4".to_owned(), &["objects_by_nar"]),
        (journal::HIDDEN_CHANGE, "1".to_owned(), &["outbox_pkey"]),
        (collect::marks::MARK_END, "1, 2".to_owned(), &["nars_pkey"]),
        (collect::marks::MARK_BYTES, "1, 2".to_owned(), &["nars_pkey", "listings_in_chunks"]),
        (collect::marks::MARK_SIZES, "1, 2".to_owned(), &["nars_pkey", "listings_pkey"]),
        (collect::marks::MARK_RECIPES, "1, 2".to_owned(), &["nars_pkey"]),
        (collect::marks::MARK_LISTINGS, "1, 2".to_owned(), &["listings_in_chunks"]),
        (
            collect::marks::UNNAMED_NARS,
            "1, 2, 3, 4".to_owned(),
            &["nars_pkey", "objects_by_nar", "graces_by_nar", "aliases_by_nar"],
        ),
        (collect::marks::MOVED_CHUNKS, "1, 2".to_owned(), &["chunks_moved"]),
        (collect::packs::COUNT_CHUNKS, "ARRAY[1]".to_owned(), &["chunks_by_pack"]),
        (collect::packs::PACK_CHUNKS, "1, 2, 3".to_owned(), &["chunks_by_pack", "packs_pkey"]),
        (
            collect::moves::MOVE_CHUNKS,
            "1, ARRAY[1], ARRAY[2], ARRAY[3], ARRAY[4], ARRAY[5]".to_owned(),
            &["chunks_pkey"],
        ),
        (
            collect::moves::REFRAME_CHUNKS,
            "1, ARRAY[1], ARRAY[2], ARRAY[3], ARRAY[4], ARRAY[5], ARRAY[6], ARRAY['\\x00'::bytea]".to_owned(),
            &["chunks_pkey"],
        ),
        (counters::PATHS_OF_CACHE, "1".to_owned(), &["counters_pkey", "counter_changes_by_cache"]),
        (history::HISTORY, "1, 2, 3".to_owned(), &["cache_days_pkey"]),
        (history::RECORD_SIZES, "1, 2, 3, 4".to_owned(), &["counters_pkey", "cache_days_pkey"]),
        (history::TRIM, "1, 2".to_owned(), &["cache_days_by_day"]),
        (recount::LAST_OBJECT, "1, 2".to_owned(), &["objects_pkey"]),
        (recount::NARS, "1, 2".to_owned(), &["nars_pkey"]),
        (recount::PACKS, "1, 2".to_owned(), &["packs_pkey"]),
        (chunks::LAYOUTS_OF_PACK, "1".to_owned(), &["chunks_by_pack"]),
        (scrub::CHUNKS_OF_PACK, "1".to_owned(), &["packs_pkey", "chunks_by_pack"]),
        (damage::MARK_CHUNKS_OF_PACK, "ARRAY[1], 2, 3".to_owned(), &["chunks_pkey"]),
        (collect::packs::CONDEMN_PACKS, "ARRAY[1], 2, 3, 4".to_owned(), &["packs_pkey"]),
        (collect::packs::DELETE_CHUNKS, "ARRAY[1]".to_owned(), &["chunks_by_pack", "chunks_pkey"]),
    ] {
        let plan = plan(index, sql, &parameters).await;
        for name in indexes {
            assert!(plan.contains(name), "{name} is not in the plan of {sql:?}:\n{plan}");
        }
        // What does not depend on the rows looked at may be gathered first.
        let gathers = sql != caches::LIST_CACHES_OF_NAR;
        assert!(!(gathers && plan.contains("hashed SubPlan")), "{sql:?}:\n{plan}");
        // A page comes out of the index in its order: a NAR may have as many objects as a cache.
        assert!(!(sql == outbox::OBJECTS_OF_NAR && plan.contains("Sort")), "{sql:?}:\n{plan}");
        // Of another collation, an index would be read for the whole cache.
        assert!(!plan.contains("Filter: (deriver ="), "{sql:?}:\n{plan}");
        assert!(!plan.contains("Filter: (name"), "{sql:?}:\n{plan}");
        let scans: Vec<&str> = plan.lines().filter(|line| line.contains("Seq Scan")).collect();
        assert!(scans.iter().all(|scan| scan.contains("outbox_base")), "{sql:?}:\n{plan}");
    }
}

/// No statement of a trigger can be explained, so the server counts the rows that it reads when one
/// row is updated, deleted and inserted, in each table with a trigger.
#[tokio::test]
async fn no_trigger_reads_a_whole_cache() {
    let url = Server::shared().create_database();
    let index = open(&url).await;
    let main = cache(&index, "main").await;
    push_output(&index, main, Some("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv")).await.unwrap();
    // A table with a trigger needs a row, or the test fails. References to its rows are in the way.
    Server::shared().sql(
        &url,
        "SET session_replication_role = replica;
         INSERT INTO objects (cache, hash, nar, created_at, last_used_at, name, deriver, sigs, refs, nar_size, counted)
             SELECT cache, decode(lpad(to_hex(i), 40, '0'), 'hex'), nar, created_at, last_used_at, name,
                 lpad(i::text, 32, '0') || '-hello.drv', sigs, refs, nar_size, counted
             FROM objects CROSS JOIN generate_series(1, 2000) AS i;
         INSERT INTO documents (cache, kind, owner, written_at, size, digest, name, body)
             SELECT cache, 1, hash, 1, 1, '\\x00', 'log/' || deriver, '\\x00' FROM objects;
         INSERT INTO publish_objects (target, cache, hash, state, nar, tag, digest, upstream)
             SELECT 1, cache, hash, 1, hash, hash, hash, 0 FROM objects;
         INSERT INTO publish_pending (target, cache, hash, since) SELECT 1, cache, hash, 1 FROM objects;
         INSERT INTO publish_nars (target, cache, nar, tag, path, uploaded, file_size)
             SELECT 1, cache, hash, hash, hash, 1, 1 FROM objects;
         DO $$
         DECLARE one record;
         BEGIN
             FOR one IN SELECT conrelid::regclass AS held, conname FROM pg_constraint WHERE contype = 'f' LOOP
                 EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.held, one.conname);
             END LOOP;
         END $$;",
    );
    let tables = Server::shared().sql(
        &url,
        "SELECT tgrelid::regclass, min(attname::text) FROM pg_trigger
         JOIN pg_attribute ON attrelid = tgrelid AND attnum > 0 AND attidentity = '' AND NOT attisdropped
         WHERE NOT tgisinternal GROUP BY tgrelid",
    );
    assert!(tables.contains("documents|"), "{tables}");
    for (table, column) in tables.lines().map(|line| line.split_once('|').unwrap()) {
        let mut write = index.postgres_session(Access::Write(&[])).await;
        // Earlier transactions of the session may still be in the count.
        let before = rows_read(&mut write).await;
        let row = text_of(&mut write, format!("SELECT ctid::text FROM {table} LIMIT 1")).await;
        let keep =
            format!("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM {table} WHERE ctid = '{row}'");
        write.execute(query(AssertSqlSafe(keep))).await.unwrap();
        let update =
            format!("UPDATE {table} SET {column} = {column} WHERE ctid = '{row}' RETURNING ctid::text");
        let row = text_of(&mut write, update).await;
        text_of(&mut write, format!("DELETE FROM {table} WHERE ctid = '{row}' RETURNING ctid::text")).await;
        let insert = format!("INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept");
        write.execute(query(AssertSqlSafe(insert))).await.unwrap();
        let read = rows_read(&mut write).await - before;
        assert!(read < 100, "{table}: {read} rows read");
        write.roll_back().await;
    }
}

/// Rows that this session has read so far, as PostgreSQL counts them.
async fn rows_read(session: &mut Session) -> u64 {
    let count = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::text FROM pg_stat_xact_user_tables";
    text_of(session, count.to_owned()).await.parse().unwrap()
}

/// The one column of the one row of a statement's answer.
async fn text_of(session: &mut Session, sql: String) -> String {
    session.all(query(AssertSqlSafe(sql))).await.unwrap()[0].get(0)
}

/// What a process that begins when another writes can count on: the same answers from several pools
/// at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_within_their_bound() {
    let url = Server::shared().create_database();
    let few = PostgresOptions { connections_max: 3, ..options() };
    let index = Arc::new(PostgresIndex::open(&url, few).await.unwrap());
    let cache = cache(&index, "main").await;
    let most = Arc::new(AtomicU32::new(0));
    let calls: Vec<_> = (0..30)
        .map(|_| {
            let (index, most) = (Arc::clone(&index), Arc::clone(&most));
            tokio::spawn(async move {
                push(&index, cache).await.unwrap();
                most.fetch_max(index.postgres().pool.size(), Ordering::Relaxed);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert!(most.load(Ordering::Relaxed) <= 3);
}
