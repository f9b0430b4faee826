//! Pages for operators, and the status that they show.

use dormer_index::{JobIndex as _, JobKind, PendingIndex as _, PublishedCacheIndex as _, TargetIndex as _};
use serde_json::json;

use super::{BROWSER, browse, cookie, form_token, push, submit, without_way_back};
use crate::common::{self, Server, admin, nar, now, path, token, token_with};

const OPERATOR_PAGES: [&str; 6] = ["", "jobs", "collection", "publishing", "damage", "audit"];

#[test]
fn pages_for_operators_look_absent_to_everybody_else() {
    let server = Server::start();
    // Each lacks something: a cache, the permission to configure, the one to read.
    let others = [
        json!({"main": {"r": 1, "cr": 1}, "team-a": {"r": 1, "cr": 1}}),
        json!({"*": {"r": 1, "w": 1, "d": 1, "cq": 1}}),
        json!({"*": {"cr": 1}}),
        json!({"team-*": {"r": 1}, "*": {"r": 1, "cr": 1}}),
    ];
    let mut others: Vec<String> = others.iter().map(token).collect();
    // Its claim says no.
    others.push(token_with(&json!({"caches": {"*": {"r": 1, "cr": 1}}, "operate": 0})));
    let others = others.iter().map(String::as_str);
    for session in [None, Some("garbage")].into_iter().chain(others.map(Some)) {
        let absent = without_way_back(browse(&server, session, "/none/").without_noise());
        for name in OPERATOR_PAGES {
            let address = format!("/_dormer/{name}");
            let before = server.index.statement_count();
            let hidden = browse(&server, session, &address);
            assert_eq!(server.index.statement_count(), before, "{address} with {session:?}");
            assert_eq!(without_way_back(hidden.without_noise()), absent, "{address} with {session:?}");
        }
        let post = server.request("POST", "/_dormer/collection", &[BROWSER], b"form_token=x");
        assert_eq!(post.status, 404, "{post:?}");
        let home = browse(&server, session, "/").text();
        assert!(!home.contains("href=\"./_dormer/\""), "{home}");
    }
    assert!(browse(&server, Some(&admin()), "/").text().contains("href=\"./_dormer/\""));
    let typed = browse(&server, None, "/_dormer");
    assert_eq!((typed.status, typed.header("location")), (308, Some("_dormer/")), "for everybody");
}

#[test]
fn operators_see_jobs_publishing_and_the_audit_and_each_page_costs_four_statements_at_most() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
    let workflow = format!("repo:company/{}", "name-".repeat(60));
    let unseen = "eve\u{202e}\u{200b}";
    for (number, subject) in [(1, "ada"), (2, "<script>bob"), (3, workflow.as_str()), (4, unseen)] {
        let hash = path(number).hash();
        let removal =
            server.index.remove_for_cause(main, &hash, Some(subject), false, now() + i64::from(number));
        server.block_on(removal).unwrap();
    }
    server.block_on(async {
        let target = server.publish.open_target("edge", "s3://bucket/edge").await.unwrap();
        let lease = server.publish.acquire_lease(target.id, "me", now(), now() + 60).await.unwrap().unwrap();
        let published = dormer_index::PublishedCache {
            cache: main,
            name: "main".to_owned(),
            basis: vec![],
            document: vec![],
            published_at: now(),
            scan: None,
        };
        server.publish.write_published_cache(&lease, &published, now()).await.unwrap();
        let waiting = [(main, path(3).hash(), now() - 500)];
        server.publish.note_pending(&lease, &waiting, dormer_index::NotedFrom::Referrers).await.unwrap();
        let verdicts = dormer_index::PendingVerdicts {
            waiting: vec![(path(3).hash(), "a reference is not there yet".to_owned())],
            ..dormer_index::PendingVerdicts::default()
        };
        server.publish.settle_pending(&lease, main, &verdicts, now()).await.unwrap();
        server.publish.release_lease(&lease, now(), Some("no route to host")).await.unwrap();
        server.publish.open_job(JobKind::Recount, None, None, now() - 100).await.unwrap();
    });
    let see = |address: &str| {
        let before = server.index.statement_count();
        let reply = browse(&server, Some(&admin()), address);
        let cost = server.index.statement_count() - before;
        assert_eq!(reply.status, 200, "{address}: {reply:?}");
        assert!(cost <= 4, "{address} took {cost} statements");
        reply.text()
    };
    let overview = see("/_dormer/");
    for text in ["Database and object store answer.", "NARs pushed</dt><dd>1<", "recount", "edge"] {
        assert!(overview.contains(text), "{text} in {overview}");
    }
    let jobs = see("/_dormer/jobs");
    assert!(jobs.contains("recount") && jobs.contains("waiting"), "{jobs}");
    assert!(!see("/_dormer/jobs?after=1000").contains("recount"));
    let publishing = see("/_dormer/publishing");
    for text in ["s3://bucket/edge", "no route to host", "a reference is not there yet", "8 minutes"] {
        assert!(publishing.contains(text), "{text} in {publishing}");
    }
    let damage = see("/_dormer/damage");
    assert!(damage.contains("None has ended yet"), "{damage}");
    let audit = see("/_dormer/audit");
    assert!(
        audit.contains("ada") && audit.contains("&lt;script&gt;bob") && audit.contains("remove path"),
        "{audit}"
    );
    let (newest, oldest) = (audit.find("bob").unwrap(), audit.find(">ada<").unwrap());
    assert!(newest < oldest, "the newest first");
    let by_actor = see("/_dormer/audit?actor=ada&cache=main&action=remove%20path");
    assert!(by_actor.contains(">ada<") && !by_actor.contains("bob"), "{by_actor}");
    assert!(see("/_dormer/audit?cache=team-a").contains("Nothing here."));
    assert!(see("/_dormer/audit?before=1").contains("Nothing here."));
    assert_eq!(browse(&server, Some(&admin()), "/_dormer/audit?before=x").status, 400);
    // What the page shows of a long actor finds it, and so does the whole actor.
    let (_, shown) = audit.split_once("repo:").unwrap();
    let shown = format!("repo:{}", shown.split('<').next().unwrap());
    assert!(shown.ends_with('…') && workflow.starts_with(shown.trim_end_matches('…')), "{shown}");
    for actor in [shown.as_str(), workflow.as_str()] {
        let found = see(&format!("/_dormer/audit?actor={}", dormer_pages::escape_segment(actor)));
        assert!(found.contains("repo:") && !found.contains(">ada<"), "{found}");
    }
    // So does what it shows of characters that cannot be seen, from the table and from its form.
    let shown = r"eve\u{202e}\u{200b}";
    for actor in [shown, unseen] {
        let found = see(&format!("/_dormer/audit?actor={}", dormer_pages::escape_segment(actor)));
        assert!(found.contains(&format!("\"Actor\">{shown}<")) && !found.contains(">ada<"), "{found}");
        assert!(found.contains(&format!("value=\"{shown}\"")), "{found}");
    }
    assert!(see("/_dormer/audit?actor=eve").contains("Nothing here."));
    let long = format!("/_dormer/audit?actor={}", "x".repeat(500));
    assert_eq!(browse(&server, Some(&admin()), &long).status, 400);
    assert_eq!(
        server
            .request(
                "POST",
                "/_dormer/audit",
                &[BROWSER, ("Authorization", &format!("Bearer {}", admin()))],
                b""
            )
            .status,
        405
    );
}

#[test]
fn jobs_that_fail_or_run_come_before_older_ones_and_targets_are_paged_by_name() {
    let server = Server::start();
    server.block_on(async {
        let jobs = &server.publish;
        for cache in 1..=25 {
            let cache = Some(dormer_index::CacheId(cache));
            jobs.open_job(JobKind::ScanCache, cache, None, now()).await.unwrap();
        }
        for kind in [JobKind::Recount, JobKind::Scrub] {
            jobs.open_job(kind, None, None, now()).await.unwrap();
            let lease = jobs.lease_job(kind, "lab 2", now(), now() + 60).await.unwrap().unwrap();
            if kind == JobKind::Recount {
                jobs.fail_job(&lease, "no room", now() + 60).await.unwrap();
            }
        }
        for number in 1..=11 {
            jobs.open_target(&format!("edge-{number:02}"), "s3://bucket").await.unwrap();
        }
    });
    let status = server.call(&admin(), "GET", "/_api/v2/status", b"").json();
    let kinds: Vec<_> = status["jobs"].as_array().unwrap().iter().map(|job| job["kind"].clone()).collect();
    assert_eq!(
        (&kinds[..3], kinds.len()),
        (&[json!("recount"), json!("scrub"), json!("scan-cache")][..], 20)
    );
    assert_eq!(status["job_counts"], json!({"open": 27, "running": 1, "failing": 1}));
    assert_eq!(status["more_jobs"], true);
    let see = |address: &str| browse(&server, Some(&admin()), &format!("/_dormer/{address}")).text();
    let overview = see("");
    for text in [
        "27 jobs are open: 1 failing, 1 running.",
        "the last: no room",
        "run by lab 2",
        "<a href=\"../_dormer/jobs\">And 19 more jobs.</a>",
        "<li>lab 2</li>",
    ] {
        assert!(overview.contains(text), "{text} in {overview}");
    }
    let next_of = |page: &str, address: &str| {
        let (_, rest) = page.split_once("rel=\"next\" href=\"").expect("the list goes on");
        see(&format!("{address}{}", rest.split('"').next().unwrap()))
    };
    let rest = next_of(&see("jobs"), "jobs");
    assert!(rest.contains("recount") && rest.contains("scrub"), "the oldest first: {rest}");
    let first = see("publishing");
    assert!(first.contains("<h2>edge-01<") && first.contains("<h2>edge-08<"), "{first}");
    let rest = next_of(&first, "publishing");
    assert!(rest.contains("<h2>edge-09<") && rest.contains("<h2>edge-11<"), "{rest}");
    assert!(!rest.contains("<h2>edge-08<") && !rest.contains("rel=\"next\""), "{rest}");
}

/// The caches of targets are named up to a bound. What waits in others counts all the same.
#[test]
fn a_target_behind_a_thousand_caches_of_another_shows_what_waits() {
    let server = Server::start();
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
    let published = |cache, name: String| dormer_index::PublishedCache {
        cache,
        name,
        basis: vec![],
        document: vec![],
        published_at: now(),
        scan: None,
    };
    server.block_on(async {
        let state = &server.publish;
        let lease = async |name: &str| {
            let target = state.open_target(name, "s3://bucket").await.unwrap();
            state.acquire_lease(target.id, "me", now(), now() + 60).await.unwrap().unwrap()
        };
        let (large, small) = (lease("large").await, lease("small").await);
        for number in 100..1_105 {
            let cache = published(dormer_index::CacheId(number), format!("cache-{number:04}"));
            state.write_published_cache(&large, &cache, now()).await.unwrap();
        }
        state.write_published_cache(&small, &published(main, "main".to_owned()), now()).await.unwrap();
        let waiting = [(main, path(3).hash(), now() - 5_000)];
        state.note_pending(&small, &waiting, dormer_index::NotedFrom::Referrers).await.unwrap();
    });
    let status = server.call(&admin(), "GET", "/_api/v2/status", b"").json();
    let small = &status["targets"][1];
    assert_eq!((&small["name"], &small["pending"]), (&json!("small"), &json!(1)), "{status}");
    assert!(small["lag_seconds"].as_u64() >= Some(5_000), "{status}");
    let publishing = browse(&server, Some(&admin()), "/_dormer/publishing").text();
    assert!(
        publishing.contains("And 995 more caches.") && publishing.contains("Lag: 83 minutes."),
        "{publishing}"
    );
}

/// A server that has just begun remembers nothing.
#[test]
fn the_first_look_at_a_page_for_operators_costs_four_statements_too() {
    let pages =
        OPERATOR_PAGES.into_iter().flat_map(|page| Server::on_each_database().map(|server| (page, server)));
    for (page, server) in pages {
        let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
        server.block_on(async {
            for name in ["edge", "far"] {
                server.publish.open_target(name, "s3://bucket/edge").await.unwrap();
            }
            for kind in [JobKind::Recount, JobKind::Scrub] {
                server.publish.open_job(kind, None, None, now()).await.unwrap();
            }
            server.index.remove_for_cause(main, &path(1).hash(), Some("ada"), false, now()).await.unwrap();
        });
        let before = server.index.statement_count();
        let reply = browse(&server, Some(&admin()), &format!("/_dormer/{page}"));
        let cost = server.index.statement_count() - before;
        assert_eq!(reply.status, 200, "{page}: {reply:?}");
        assert!((1..=4).contains(&cost), "{page:?} took {cost} statements");
    }
}

/// An empty list would say that nothing is open and nothing was published.
#[test]
fn what_the_database_does_not_say_is_unknown_in_the_status_and_on_the_pages() {
    let server = Server::start();
    let see = || {
        let status = || server.call(&admin(), "GET", "/_api/v2/status", b"").json();
        // What was told is remembered for two seconds, which may end between two questions.
        let (status, page) = common::until("both say the same time", || {
            let (before, page) = (status(), browse(&server, Some(&admin()), "/_dormer/").text());
            let after = status();
            let is_same = ["jobs_known", "targets_known"].iter().all(|name| before[name] == after[name]);
            is_same.then_some((after, page))
        });
        assert_eq!((&status["jobs"], &status["targets"]), (&json!([]), &json!([])), "{status}");
        let known = ["jobs_known", "targets_known"].map(|name| status[name].as_bool().unwrap());
        assert_eq!(page.contains("No job is open."), known[0], "{page}");
        assert_eq!(page.contains("does not say now which jobs are open"), !known[0], "{page}");
        assert_eq!(page.contains("Nothing was published yet."), known[1], "{page}");
        assert_eq!(page.contains("does not say now how far targets are"), !known[1], "{page}");
        assert_eq!(page.contains("None holds a job or a target now."), known == [true, true], "{page}");
        known
    };
    assert_eq!(see(), [true, true]);
    server.store.set_down(true);
    common::until("the store is missed", || (server.get("/readyz").status == 503).then_some(()));
    assert_eq!(see(), [true, true], "the store is no database");
    server.store.set_down(false);
    let take_away = |table: &str| {
        let sql = format!("PRAGMA legacy_alter_table = ON; ALTER TABLE {table} RENAME TO {table}_away");
        let file = server.folder.path().join("index.sqlite");
        let output = std::process::Command::new("sqlite3").arg(file).arg(sql).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    take_away("outbox");
    common::until("the targets are asked for again", || (see() == [true, false]).then_some(()));
    take_away("jobs");
    assert_eq!(see(), [false, false]);
}

/// The claim opens the pages for operators, and no cache: to its holder, a private cache looks like
/// one that does not exist.
#[test]
fn a_token_that_only_operates_learns_nothing_of_caches() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    let operator = token_with(&json!({"caches": {}, "operate": 1}));
    for name in OPERATOR_PAGES {
        assert_eq!(browse(&server, Some(&operator), &format!("/_dormer/{name}")).status, 200, "{name}");
    }
    assert_eq!(server.call(&operator, "GET", "/_api/v2/status", b"").status, 200);
    let home = browse(&server, Some(&operator), "/").text();
    assert!(home.contains("href=\"./_dormer/\"") && home.contains("main"), "{home}");
    assert!(!home.contains("team-a") && !home.contains("What the store saves"), "{home}");
    assert!(!server.call(&operator, "GET", "/_api/v2/caches", b"").text().contains("team-a"));
    for (hidden, absent) in [
        ("/_api/v1/cache-config/team-a", "/_api/v1/cache-config/team-z"),
        ("/team-a/nix-cache-info", "/team-z/nix-cache-info"),
        ("/_api/v2/caches/team-a/objects", "/_api/v2/caches/team-z/objects"),
    ] {
        let (hidden, absent) =
            (server.call(&operator, "GET", hidden, b""), server.call(&operator, "GET", absent, b""));
        assert_eq!(hidden.status, 401, "{hidden:?}");
        assert_eq!(hidden.without_noise(), absent.without_noise());
    }
    assert_eq!(browse(&server, Some(&operator), "/team-a/").status, 404);
    assert_eq!(server.call(&operator, "GET", "/_api/v2/stats", b"").status, 403);
}

/// A plan reads all recipes, so no look at a page makes one.
#[test]
fn a_plan_of_a_collection_is_made_when_an_operator_asks_with_a_form_of_the_page() {
    let server = Server::start();
    // One token, because the token of a form belongs to it.
    let token = admin();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap();
    let hash = path(1).hash();
    let removed = server.engine.remove_object(&main, &hash, Some("ada"));
    assert!(server.block_on(removed).unwrap().was_there);
    let see = || browse(&server, Some(&token), "/_dormer/collection").text();
    assert!(see().contains("No plan was made"), "{}", see());
    let forged = submit(&server, &token, "/_dormer/collection", "form_token=0", &[]);
    assert_eq!(forged.status, 403, "{forged:?}");
    let foreign = submit(&server, &token, "/_dormer/collection", "", &[("Sec-Fetch-Site", "cross-site")]);
    assert_eq!(foreign.status, 403, "{foreign:?}");
    assert!(see().contains("No plan was made"));
    let fields = format!("form_token={}", form_token(&server, &token));
    let asked = submit(&server, &token, "/_dormer/collection", &fields, &[]);
    assert_eq!((asked.status, asked.header("location")), (303, Some("collection")), "{asked:?}");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !see().contains("Planned ") {
        assert!(std::time::Instant::now() < end, "{}", see());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let page = see();
    assert!(
        page.contains("NARs to remove, uncompressed</dt><dd>1, ") && page.contains("role=\"img\""),
        "{page}"
    );
    assert!(page.contains("Paths that expire</dt><dd>0<"), "{page}");
    // The same figures as those of the command.
    let collector = server.engine.collector(server.publish.clone(), None, 86_400);
    assert_eq!(server.block_on(collector.plan()).unwrap().nars, 1);
    // A second wish meanwhile is the same plan.
    let again = submit(&server, &token, "/_dormer/collection", &fields, &[]);
    assert_eq!(again.status, 303);
    assert!(see().contains("Planned "), "it is fresh");
    let collected = server.block_on(collector.run_now(&*server.publish, "test", 30)).unwrap();
    assert!(collected.is_some(), "nobody else collects");
    let page = see();
    assert!(page.contains("so the plan holds no longer.") && !page.contains("Planned "), "{page}");
    assert!(
        page.contains("NARs removed, uncompressed</dt><dd>1, ") && !page.contains("role=\"img\""),
        "{page}"
    );
}

/// The status says what `/metrics` says at that moment.
#[test]
fn the_status_of_a_server_is_for_operators_and_agrees_with_the_metrics() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    assert_eq!(server.get(&format!("/main/{}.narinfo", path(1).hash())).status, 200);
    assert_eq!(server.get(&format!("/main/{}.narinfo", path(9).hash())).status, 404);
    let url = server.nar_url("main", &path(1));
    assert_eq!(server.get(&url).status, 200);
    let route = "/_api/v2/status";
    assert_eq!(server.get(route).status, 401);
    let reader = token(&json!({"*": {"r": 1}}));
    assert_eq!(server.call(&reader, "GET", route, b"").status, 403);
    assert_eq!(
        server.request("GET", route, &[("Cookie", &cookie(&admin()))], b"").status,
        401,
        "a page's session"
    );
    let reply = server.call(&admin(), "GET", route, b"");
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("private, no-store")));
    let status = reply.json();
    assert_eq!(status["process"], "test");
    assert_eq!(status["reads"], json!({"narinfos": 2, "missing": 1, "nars": 1}));
    assert_eq!(status["pushes"]["nars"], 1);
    for (field, metric) in [
        ("/pushes/nar_bytes", "dormer_nar_bytes_received_total"),
        ("/pushes/new_bytes", "dormer_chunk_bytes_new_total"),
        ("/requests/received_bytes", "dormer_http_received_bytes_total"),
    ] {
        assert_eq!(status.pointer(field).unwrap(), server.metric(metric), "{field}");
    }
    let memory = status["queues"].as_array().unwrap().iter().find(|queue| queue["name"] == "upload_memory");
    assert!(memory.is_some_and(|queue| queue["limit"].as_u64() > Some(0)), "{status}");
    assert!(status.get("not_ready").is_none());
    assert_eq!(server.call(&admin(), "POST", route, b"").status, 405);
}
