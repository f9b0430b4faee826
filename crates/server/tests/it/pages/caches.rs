//! The first page and that of a cache: what each shows to each reader.

use dormer_index::JobIndex as _;
use serde_json::json;

use super::{BROWSER, browse, cookie, named, push, tree, without_way_back};
use crate::common::{Server, admin, nar, now, path, token, token_of};
use crate::routes::pages;

#[test]
fn the_first_page_lists_what_the_visitor_may_see_and_other_programs_get_their_text() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let stranger = browse(&server, None, "/");
    assert_eq!(stranger.status, 200);
    let page = stranger.text();
    assert!(page.contains("href=\"./main/\"") && !page.contains("team-a"), "{page}");
    assert!(page.contains("Sign in") && !page.contains("What the store saves"), "{page}");
    let member = browse(&server, Some(&token_of("alice", &json!({"team-a": {"r": 1}}))), "/").text();
    assert!(member.contains("href=\"./team-a/\"") && member.contains("alice"), "{member}");
    assert!(!member.contains("What the store saves"), "that tells of all caches");
    // A pusher that may not pull learns the name, no more, and gets no link that leads to a 403.
    let pusher = browse(&server, Some(&token(&json!({"team-a": {"w": 1}}))), "/").text();
    assert!(pusher.contains("team-a") && !pusher.contains("href=\"./team-a/\""), "{pusher}");
    assert!(pusher.contains("your token may not read it") && !pusher.contains("none yet"), "{pusher}");
    let all = browse(&server, Some(&admin()), "/").text();
    assert!(all.contains("What the store saves") && all.contains("role=\"img\""), "{all}");
    for accept in [None, Some("*/*"), Some("text/plain")] {
        let headers: Vec<_> = accept.iter().map(|accept| ("Accept", *accept)).collect();
        let reply = server.request("GET", "/", &headers, b"");
        assert!(reply.text().starts_with("This is a Dormer"), "{accept:?}: {reply:?}");
        assert_eq!(reply.header("vary"), Some("accept"));
        assert_eq!(reply.header("cache-control"), Some("public, max-age=60"));
    }
    assert_eq!(server.request("HEAD", "/", &[BROWSER], b"").status, 200);
}

#[test]
fn a_cache_says_how_to_use_it() {
    let server = Server::start();
    push(&server, "main", &named(1, "hello-2.12"), &nar(1), &json!({}));
    let key = server.call(&admin(), "GET", "/_api/v1/cache-config/main", b"").json()["public_key"].clone();
    let page = browse(&server, None, "/main/").text();
    let lines = format!(
        "extra-substituters = http://{}/main\nextra-trusted-public-keys = {}\n",
        server.address,
        key.as_str().unwrap()
    );
    assert!(page.contains(&lines), "{page}");
    assert!(
        page.contains("nix.settings") && page.contains("nixConfig") && page.contains("install-nix-action")
    );
    assert!(page.contains("<dd>1</dd>") && !page.contains("hello-2.12"), "names are for the owner");
    let owner = browse(&server, Some(&admin()), "/main/").text();
    assert!(owner.contains("hello-2.12") && owner.contains("Largest paths"), "{owner}");
    let private = browse(&server, Some(&admin()), "/team-a/").text();
    for text in [
        "machine 127.0.0.1 login token password TOKEN\n",
        "  netrc-file = &quot;/etc/nix/netrc&quot;;\n};\n",
        "needs the netrc file above",
        "- run: sudo mkdir -p /etc/nix &amp;&amp; echo &quot;machine 127.0.0.1 login token password $TOKEN&quot; | sudo install -m 600 /dev/stdin /etc/nix/netrc\n",
        "TOKEN: ${{ secrets.DORMER_TOKEN }}\n- uses: ",
        "      netrc-file = /etc/nix/netrc\n",
    ] {
        assert!(private.contains(text), "{text} in {private}");
        assert!(!page.contains(text), "nobody needs a token for a public cache: {text} in {page}");
    }
    let redirect = browse(&server, None, "/main");
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("main/")));
    assert_eq!(server.get("/main").status, 404, "for other programs nothing is here");
    let unknown = browse(&server, None, "/team-a");
    assert_eq!(
        (unknown.status, unknown.header("location")),
        (308, Some("team-a/")),
        "the same for every name"
    );
}

#[test]
fn a_cache_shows_how_it_grew_and_to_its_owner_how_it_is_used() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let url = server.nar_url("main", &path(1));
    assert_eq!(server.get(&url).status, 200);
    let part = |range: &str| server.request("GET", &url, &[("Range", range)], b"").status;
    assert_eq!([part("bytes=0-3"), part("bytes=4-"), part("bytes=2-3")], [206, 206, 206]);
    assert_eq!(server.request("HEAD", &url, &[], b"").status, 200);
    assert!(!browse(&server, None, "/main/").text().contains("Day by day"), "one day is no growth");
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
    let today = dormer_index::Day::of(now());
    server.block_on(async {
        server.publish.record_sizes(today.before(3), dormer_index::CacheId(0), 9).await.unwrap();
        let activity = dormer_index::CacheActivity { cache: main, pushes: 7, pulls: 30 };
        server.publish.add_activity(today.before(2), &[activity]).await.unwrap();
        server.publish.record_sizes(today.before(1), dormer_index::CacheId(0), 9).await.unwrap();
    });
    let stranger = browse(&server, None, "/main/").text();
    assert!(!stranger.contains("still counts"), "everything is counted: {stranger}");
    assert!(stranger.contains("Day by day") && stranger.contains("then 1 path, now 1."), "{stranger}");
    assert!(!stranger.contains("NARs pulled"), "how much a cache is used is for its owner: {stranger}");
    let owner = browse(&server, Some(&admin()), "/main/").text();
    for text in ["Paths pushed: 7 since ", "NARs pulled: 30 since ", "30 on the busiest day"] {
        assert!(owner.contains(text), "{text} in {owner}");
    }
    let home = browse(&server, Some(&admin()), "/").text();
    assert!(home.contains("svg class=\"growth\"") && home.contains("Stored</dt>"), "{home}");
    assert!(!browse(&server, None, "/").text().contains("class=\"growth\""), "that tells of all caches");

    let ask = |token: &str, route: &str| server.call(token, "GET", route, b"");
    let days = ask(&admin(), "/_api/v2/caches/main/stats?days=3").json()["history"].clone();
    let days = days.as_array().unwrap();
    assert_eq!(days.len(), 3, "{days:?}");
    assert_eq!(
        (&days[0]["pushes"], &days[0]["pulls"], &days[2]["paths"]),
        (&json!(7), &json!(30), &json!(1))
    );
    assert_eq!(days[2]["begins_at"], json!(today.begins_at()));
    let reader = token(&json!({"main": {"r": 1}}));
    let seen = ask(&reader, "/_api/v2/caches/main/stats?days=400").json();
    assert_eq!(seen["history"].as_array().map(Vec::len), Some(4), "from the first day on: {seen}");
    assert!(seen["history"][0].get("pulls").is_none(), "{seen}");
    assert!(ask(&reader, "/_api/v2/caches/main/stats").json().get("history").is_none());
    let all = ask(&admin(), "/_api/v2/stats?days=4").json();
    assert!(all["history"][0]["stored_bytes"].as_u64() > Some(0), "{all}");
    assert!(all["history"][0]["pulls"].is_u64(), "{all}");
    let seen = ask(&token(&json!({"*": {"r": 1}})), "/_api/v2/stats?days=4").json();
    assert!(seen["history"][0]["paths"].is_u64() && seen["history"][0].get("pulls").is_none(), "{seen}");
    for bad in ["0", "401", "x", ""] {
        let reply = ask(&admin(), &format!("/_api/v2/stats?days={bad}"));
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
    }
    let counted = dormer_index::CacheActivity { cache: main, pushes: 1, pulls: 2 };
    assert_eq!(server.engine.activity().take().all(), [counted], "no look, and no download that goes on");
}

#[test]
fn a_private_cache_looks_absent_on_every_page() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &tree(), &json!({}));
    let other = token(&json!({"other": {"r": 1, "w": 1, "d": 1, "cq": 1}}));
    let member = token(&json!({"team-a": {"r": 1}}));
    for session in [None, Some("garbage"), Some(other.as_str())] {
        for ((method, private), (_, unknown)) in pages("team-a").into_iter().zip(pages("team-z")) {
            let read = browse(&server, Some(&member), "/team-a/");
            assert_eq!(read.status, 200, "its member has just read it");
            let ask = |address: &str| {
                let cookie = session.map(cookie);
                let mut headers = vec![BROWSER];
                headers.extend(cookie.as_deref().map(|value| ("Cookie", value)));
                let before = server.index.statement_count();
                let reply = server.request(method, address, &headers, b"form_token=x").without_noise();
                let reply = without_way_back(reply);
                (reply, server.index.statement_count() - before)
            };
            let (hidden, absent) = (ask(&private), ask(&unknown));
            assert_eq!(hidden.0.status, 404, "{method} {private}: {:?}", hidden.0);
            assert_eq!(hidden, absent, "{method} {private} with {session:?}");
        }
    }
    for (method, address) in pages("team-a") {
        if method == "GET" && !address.contains("bin/x") {
            let status = browse(&server, Some(&admin()), &address).status;
            assert!(matches!(status, 200 | 303 | 404), "{address}: {status}");
        }
    }
}
