//! Pages for people: what each shows to each reader, sessions, forms, and attacks on them.

use dormer_index::{JobIndex as _, PendingIndex as _, PublishedCacheIndex as _, TargetIndex as _};
use dormer_nix::StorePath;
use dormer_nix::nar::{Node, encode_tree};
use serde_json::{Value, json};

use crate::common::{self, Reply, Server, admin, nar, nar_info, now, path, token, token_of, token_with};
use crate::routes::pages;

const BROWSER: (&str, &str) = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

const PAGE_BYTES_MAX: usize = 50_000;

fn cookie(token: &str) -> String {
    format!("dormer={token}")
}

/// What a browser gets, signed in with this token or not.
fn browse(server: &Server, token: Option<&str>, address: &str) -> Reply {
    let cookie = token.map(cookie);
    let mut headers = vec![BROWSER];
    headers.extend(cookie.as_deref().map(|value| ("Cookie", value)));
    let reply = server.request("GET", address, &headers, b"");
    if reply.header("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
        assert!(reply.body.len() <= PAGE_BYTES_MAX, "{address} has {} bytes", reply.body.len());
        let policy = reply.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{address}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{address}");
        assert_eq!(reply.header("cache-control"), Some("private, no-store"), "{address}");
        let depends_on = if address == "/" || address.starts_with("/?") {
            "accept, authorization, cookie"
        } else {
            "authorization, cookie"
        };
        assert_eq!(reply.header("vary"), Some(depends_on), "{address}: a cookie counts as a token here");
        assert_eq!(reply.header("www-authenticate"), None, "{address}: no browser asks for a password");
    }
    reply
}

/// Sends a form as a browser does.
fn submit(server: &Server, token: &str, address: &str, fields: &str, more: &[(&str, &str)]) -> Reply {
    let cookie = cookie(token);
    let mut headers = vec![
        BROWSER,
        ("Cookie", cookie.as_str()),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Sec-Fetch-Site", "same-origin"),
    ];
    headers.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    headers.extend(more.iter().filter(|(_, value)| !value.is_empty()));
    server.request("POST", address, &headers, fields.as_bytes())
}

/// A token that was for a cache until a second ago.
fn ended_token(cache: &str) -> String {
    let claims = json!({"exp": now() - 1, "https://jwt.attic.rs/v1": {"caches": {cache: {"r": 1}}}});
    let key = jsonwebtoken::EncodingKey::from_secret(crate::common::SECRET);
    crate::common::sign(jsonwebtoken::Algorithm::HS256, &key, &claims)
}

/// The proof that the forms of this session bring.
fn form_token(server: &Server, token: &str) -> String {
    let home = browse(server, Some(token), "/").text();
    let (_, rest) = home.split_once("name=\"form_token\" value=\"").expect("a signed-in page has a form");
    rest.split('"').next().expect("a text has a first part").to_owned()
}

/// A page leads back to the address that was asked for, be something there or not.
fn without_way_back(mut reply: Reply) -> Reply {
    let mut text = reply.text();
    while let Some((before, rest)) = text.split_once("?back=") {
        let (_, after) = rest.split_once('"').expect("the address ends");
        text = format!("{before}\"{after}");
    }
    reply.body = text.into_bytes();
    reply.headers.retain(|(name, _)| name != "content-length");
    reply
}

fn push(server: &Server, cache: &str, path: &StorePath, nar: &[u8], more: &Value) {
    let info = nar_info(cache, path, nar, more).to_string();
    let bearer = format!("Bearer {}", admin());
    let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn named(number: u8, name: &str) -> StorePath {
    format!("{}-{name}", path(number).hash()).parse().expect("the name is valid")
}

fn tree() -> Vec<u8> {
    let bin = Node::directory([
        (b"hello".to_vec(), Node::file(b"#!/bin/sh\necho \"hello\" && <b>\n".to_vec())),
        (b"zero".to_vec(), Node::file(vec![0; 100])),
    ]);
    encode_tree(&Node::directory([
        (b"bin".to_vec(), bin),
        (b"link".to_vec(), Node::symlink("bin/hello")),
        (b"a \"<script>alert(1)".to_vec(), Node::file(b"x".to_vec())),
        (b"javascript:alert(1)".to_vec(), Node::file(Vec::new())),
    ]))
}

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
fn a_path_leads_to_what_it_needs_and_what_needs_it() {
    let server = Server::start();
    let (library, program) = (named(1, "library-1.0"), named(2, "program-2.0"));
    push(&server, "main", &library, &tree(), &json!({}));
    let more = json!({"references": [library.to_string(), path(9).to_string()], "deriver": format!("{}.drv", program)});
    push(&server, "main", &program, &nar(2), &more);
    let page = browse(&server, None, &format!("/main/{}", program.hash()));
    assert_eq!(page.status, 200);
    let text = page.text();
    assert!(text.contains(&format!("/nix/store/{program}")), "{text}");
    assert!(text.contains(&format!("href=\"../main/{}\"", library.hash())), "{text}");
    assert!(text.contains("nix copy --from") && text.contains("Signed here with"), "{text}");
    assert!(
        !text.contains("Needed by") && !text.contains("Pin this path") && !text.contains("Remove"),
        "{text}"
    );
    let owner = browse(&server, Some(&admin()), &format!("/main/{}", library.hash())).text();
    assert!(owner.contains("Needed by") && owner.contains(&program.hash().to_string()), "{owner}");
    assert!(owner.contains("Pin this path") && owner.contains("Remove this path"), "{owner}");
    let references = browse(&server, None, &format!("/main/{}/references", program.hash())).text();
    assert!(
        references.contains("1 to 2 of 2 other paths.") && references.contains("library-1.0"),
        "{references}"
    );
    let referrers = format!("/main/{}/referrers", library.hash());
    assert_eq!(browse(&server, None, &referrers).status, 403, "what needs a path is for the owner");
    let all = browse(&server, Some(&admin()), &referrers).text();
    assert!(all.contains("program-2.0") && !all.contains("rel=\"next\""), "{all}");
    let rest = browse(&server, Some(&admin()), &format!("{referrers}?after={}", program.hash())).text();
    assert!(!rest.contains("program-2.0") && rest.contains("Nothing here."), "{rest}");
    for bad in ["references?from=x", "referrers?after=x"] {
        let address = format!("/main/{}/{bad}", library.hash());
        assert_eq!(browse(&server, Some(&admin()), &address).status, 400, "{bad}");
    }
    let closure = browse(&server, None, &format!("/main/{}/closure", program.hash())).text();
    assert!(closure.contains("2 paths") && closure.contains("library-1.0"), "{closure}");
    assert!(closure.contains("Not in this cache") && closure.contains(path(9).name()), "{closure}");
    let miss = browse(&server, None, &format!("/main/{}", path(7).hash()));
    assert_eq!(miss.status, 404);
    assert!(miss.text().contains("Nothing here"), "{miss:?}");
}

#[test]
fn a_search_finds_a_path_by_hash_or_name_and_reads_a_bounded_part_of_a_cache() {
    let server = Server::start();
    for (number, name) in [(1, "hello-2.12"), (2, "hello-3.0"), (3, "other")] {
        push(&server, "main", &named(number, name), &nar(number.into()), &json!({}));
    }
    let hash = path(1).hash().to_string();
    for query in [
        hash.clone(),
        format!("{hash}-hello-2.12"),
        format!("/nix/store/{hash}-hello-2.12"),
        format!("+/nix/store/{hash}-hello-2.12/bin/hello+"),
    ] {
        let reply = browse(&server, None, &format!("/main/paths?q={}", query.replace('/', "%2F")));
        assert_eq!(
            (reply.status, reply.header("location")),
            (303, Some(format!("../main/{hash}").as_str())),
            "{query}"
        );
    }
    let found = |query: &str| browse(&server, Some(&admin()), &format!("/main/paths?{query}")).text();
    let hello = found("q=hello");
    assert!(
        hello.contains("hello-2.12") && hello.contains("hello-3.0") && !hello.contains(">other<"),
        "{hello}"
    );
    assert!(found("q=hello*0&sort=age").contains("hello-3.0"));
    assert!(!found("q=hello*0").contains("hello-2.12"));
    assert!(found("q=no+such+thing").contains("Nothing here."));
    assert!(found("").contains(">other<"));
    for bad in ["q=%ff", "sort=x", "after=x", &format!("q={}", "x".repeat(301))] {
        assert_eq!(browse(&server, Some(&admin()), &format!("/main/paths?{bad}")).status, 400, "{bad}");
    }
    // A reader of a public cache learns no names.
    for reader in [None, Some(token(&json!({"main": {"r": 1, "w": 1}})))] {
        let page = browse(&server, reader.as_deref(), "/main/paths?q=hello").text();
        assert!(!page.contains("hello-2.12") && page.contains("may not search by name"), "{page}");
    }
    let before = server.index.statement_count();
    found("q=nothing-fits");
    let cost = server.index.statement_count() - before;
    assert!(cost <= 4, "{cost} statements");
}

/// Neither the answer nor the work of a search depends on other tenants, so its time does not tell
/// of them.
#[test]
fn a_search_neither_finds_nor_reads_what_other_caches_hold() {
    let server = Server::start();
    push(&server, "main", &named(1, "hello-2.12"), &nar(1), &json!({}));
    let owner = token(&json!({"main": {"r": 1, "cq": 1}}));
    let search = |query: &str| {
        let before = server.index.statement_count();
        let page = browse(&server, Some(&owner), &format!("/main/paths?q={query}")).text();
        assert!(!page.contains("secret") || query == "secret", "{page}");
        (page.matches("<th scope=\"row\">").count(), server.index.statement_count() - before)
    };
    browse(&server, Some(&owner), "/main/");
    let alone = [search("hello"), search("secret")];
    for number in 2..=40 {
        push(&server, "team-a", &named(number, "hello-secret"), &nar(1), &json!({}));
    }
    assert_eq!([search("hello"), search("secret")], alone);
    assert_eq!([alone[0].0, alone[1].0], [1, 0]);
}

#[test]
fn the_page_of_a_path_says_when_and_why_it_goes() {
    let server = Server::start();
    let (library, program) = (named(1, "library-1.0"), named(2, "program-2.0"));
    push(&server, "main", &library, &nar(1), &json!({}));
    let see = |token: Option<&str>, path: &StorePath| {
        browse(&server, token, &format!("/main/{}", path.hash())).text()
    };
    let for_good = "It stays for good: the cache keeps its paths";
    assert!(see(None, &library).contains(for_good) && see(Some(&admin()), &library).contains(for_good));
    let week = br#"{"retention_period": {"Period": 604800}}"#;
    let patched = server.call(&admin(), "PATCH", "/_api/v1/cache-config/main", week);
    assert_eq!(patched.status, 200, "{patched:?}");
    let owner = see(Some(&admin()), &library);
    // Within the first second it is seven days.
    let is_dated = owner.contains("</strong>, in 6 days") || owner.contains("</strong>, in 7 days");
    assert!(owner.contains("It goes after ") && is_dated, "{owner}");
    let stranger = see(None, &library);
    assert!(stranger.contains("keeps a path for 7 days after its last use."), "{stranger}");
    assert!(!stranger.contains("It goes after"), "when a path was used is for the owner: {stranger}");

    push(&server, "main", &program, &nar(2), &json!({"references": [library.to_string()]}));
    let proof = form_token(&server, &admin());
    let pin = format!("/main/{}/pin", program.hash());
    let pinned = submit(&server, &admin(), &pin, &format!("form_token={proof}&name=release"), &[]);
    assert_eq!(pinned.status, 303, "{pinned:?}");
    let owner = see(Some(&admin()), &library);
    let program_link = format!("href=\"../main/{}\"", program.hash());
    for text in [
        "It stays as long as ",
        &program_link,
        "by the pin <strong>release</strong>, for good",
        "Without that, ",
    ] {
        assert!(owner.contains(text), "{text} in {owner}");
    }
    assert!(see(Some(&admin()), &program).contains("The pin <strong>release</strong> keeps it for good."));
    let deleter = see(Some(&token(&json!({"main": {"r": 1, "d": 1}}))), &library);
    assert!(
        deleter.contains("It stays as long as ") && !deleter.contains("release"),
        "pins need `cq`: {deleter}"
    );
    assert!(deleter.contains(", unless a pin, which you may not see, keeps it, or somebody "), "{deleter}");
    let stranger = see(None, &library);
    assert!(!stranger.contains("release") && !stranger.contains("program-2.0"), "{stranger}");
}

#[test]
fn a_path_that_is_one_file_is_shown_and_downloaded() {
    let server = Server::start();
    push(&server, "main", &path(1), &encode_tree(&Node::file("a patch")), &json!({}));
    let files = format!("/main/{}/files", path(1).hash());
    let slash = browse(&server, None, &format!("{files}/"));
    assert_eq!(slash.status, 303, "{slash:?}");
    assert!(slash.header("location").unwrap().ends_with("/files"), "{slash:?}");
    assert!(browse(&server, None, &files).text().contains("a patch"));
    let bytes = browse(&server, None, &format!("{files}?download=1"));
    assert_eq!((bytes.status, bytes.body.as_slice()), (200, b"a patch".as_slice()), "{bytes:?}");
}

#[test]
fn a_huge_folder_is_paged_and_begins_at_a_name() {
    let server = Server::start();
    let entries =
        (0..3_000).map(|number| (format!("entry-{number:04}").into_bytes(), Node::file(Vec::new())));
    push(&server, "main", &path(1), &encode_tree(&Node::directory(entries)), &json!({}));
    let files = format!("/main/{}/files/", path(1).hash());
    let see = |query: &str| browse(&server, None, &format!("{files}{query}")).text();
    let rows = |page: &str| page.matches("<th scope=\"row\">").count();
    let (mut page, mut seen) = (see(""), 0);
    assert!(!page.contains("The first") && page.contains("Entries 1 to "), "{page}");
    loop {
        assert!(page.contains(&format!(">entry-{seen:04}<")), "{seen}: {page}");
        seen += rows(&page);
        let Some((_, rest)) = page.split_once("rel=\"next\" href=\"") else { break };
        let next = rest.split('"').next().unwrap().to_owned();
        assert_eq!(next, format!("?from={seen}"), "no entry is left out");
        page = see(&next);
    }
    assert_eq!(seen, 3_000);
    assert!(page.contains("The first"), "{page}");
    let begun = see("?at=entry-29");
    assert!(begun.contains("Entries 2,901 to 3,000, by name.") && !begun.contains("entry-2899"), "{begun}");
    assert!(see("?at=f").contains("Nothing is here.") && see("?from=9999").contains("The first"));
    assert_eq!(browse(&server, None, &format!("{files}?at={}", "x".repeat(301))).status, 400);
}

#[test]
fn files_are_shown_as_text_and_downloaded_as_bytes() {
    let server = Server::start();
    push(&server, "main", &path(1), &tree(), &json!({}));
    let files = format!("/main/{}/files", path(1).hash());
    let slash = browse(&server, None, &files);
    let location = slash.header("location").unwrap();
    assert_eq!((slash.status, location), (303, format!("../../main/{}/files/", path(1).hash()).as_str()));
    let root = browse(&server, None, &format!("{files}/")).text();
    assert!(root.contains("href=\"bin/\"") && root.contains("href=\"link\""), "{root}");
    assert!(root.contains("href=\"javascript%3Aalert%281%29\""), "{root}");
    assert!(!root.contains("<script>alert") && root.contains("a &quot;&lt;script&gt;alert(1)"), "{root}");
    let file = browse(&server, None, &format!("{files}/bin/hello")).text();
    assert!(file.contains("echo &quot;hello&quot; &amp;&amp; &lt;b&gt;"), "{file}");
    assert!(browse(&server, None, &format!("{files}/bin/zero")).text().contains("This is no text"));
    assert!(browse(&server, None, &format!("{files}/link")).text().contains("A link to"));
    for (address, location) in [("/bin", "bin/"), ("/bin/hello/", "bin/hello")] {
        let reply = browse(&server, None, &format!("{files}{address}"));
        assert_eq!(reply.status, 303, "{address}: {reply:?}");
        assert!(reply.header("location").unwrap().ends_with(&format!("/files/{location}")), "{reply:?}");
    }
    let strange = browse(&server, None, &format!("{files}/a%20%22%3Cscript%3Ealert(1)%3C%2Fscript%3E"));
    assert_eq!(strange.status, 404, "a slash is no part of a name");
    for (address, status) in
        [("/none", 404), ("/bin/..", 404), ("//", 404), ("/bin//hello", 404), ("/bin/?from=x", 400)]
    {
        assert_eq!(browse(&server, None, &format!("{files}{address}")).status, status, "{address}");
    }
    assert_eq!(browse(&server, None, &format!("{files}/{}", "a/".repeat(65))).status, 400);
    let (length, head) =
        (file.len().to_string(), server.request("HEAD", &format!("{files}/bin/hello"), &[BROWSER], b""));
    assert!(head.status == 200 && head.header("content-length").is_none_or(|of| of == length), "{head:?}");
    // A download that was cut short goes on.
    let (all, part) = (&b"#!/bin/sh\necho \"hello\" && <b>\n"[..], format!("{files}/bin/hello?download=1"));
    let whole = server.request("GET", &part, &[], b"");
    let tag = whole.header("etag").unwrap().to_owned();
    assert_eq!((whole.status, whole.header("accept-ranges")), (200, Some("bytes")));
    for (range, condition, status, place) in [
        ("bytes=2-8", tag.as_str(), 206, 2..9),
        ("bytes=10-", tag.as_str(), 206, 10..all.len()),
        ("bytes=-4", tag.as_str(), 206, all.len() - 4..all.len()),
        ("bytes=10-", "\"another file\"", 200, 0..all.len()),
        ("bytes=0-1,3-4", tag.as_str(), 200, 0..all.len()),
    ] {
        let reply = server.request("GET", &part, &[("Range", range), ("If-Range", condition)], b"");
        assert_eq!((reply.status, &reply.body[..]), (status, &all[place.clone()]), "{range}: {reply:?}");
        let told = format!("bytes {}-{}/{}", place.start, place.end - 1, all.len());
        assert_eq!(reply.header("content-range"), (status == 206).then_some(told.as_str()), "{range}");
    }
    let outside = server.request("GET", &part, &[("Range", "bytes=99-")], b"");
    assert_eq!(
        (outside.status, outside.header("content-range")),
        (416, Some(format!("bytes */{}", all.len()).as_str())),
        "{outside:?}"
    );
    let other = server.request("GET", &format!("{files}/bin/zero?download=1"), &[], b"");
    assert_ne!(other.header("etag"), Some(tag.as_str()), "another file of the same NAR");
    let bytes = browse(&server, None, &format!("{files}/bin/hello?download=1"));
    assert_eq!((bytes.status, &bytes.body[..9]), (200, &b"#!/bin/sh"[..]));
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ] {
        assert_eq!(bytes.header(name), Some(value), "{name}");
    }
}

#[test]
fn a_log_is_text_with_safe_colours() {
    let server = Server::start();
    let derivation = format!("{}-hello.drv", path(8).hash());
    push(&server, "main", &path(1), &nar(1), &json!({ "deriver": derivation }));
    let address = format!("/main/{}/log", path(1).hash());
    let none = browse(&server, None, &address);
    assert!(none.status == 404 && none.text().contains("No build log"), "{none:?}");
    let offers = || browse(&server, None, &format!("/main/{}", path(1).hash())).text().contains("Build log");
    assert!(!offers(), "there is none");
    let log = "\u{1b}[31mfailed\u{1b}[0m <script>alert(1)</script>\u{1b}]8;;javascript:x\u{7}\u{202e}\n";
    let put = server.call(&admin(), "PUT", &format!("/main/log/{derivation}"), log.as_bytes());
    assert_eq!(put.status, 200, "{put:?}");
    assert!(offers());
    let page = browse(&server, None, &address).text();
    assert!(
        page.contains("<span class=\"t1\">failed</span> &lt;script&gt;alert(1)&lt;/script&gt;\u{fffd}\n"),
        "{page}"
    );
    // One line of escapes and marks, as long as a log may be, is as long a page as any other log.
    let line = "\u{1b}[31m\u{1b}]8;;x\u{7}<b>\u{202e}\0\r".repeat(4 * 1024 * 1024 / 25);
    let other = format!("{}-long.drv", path(9).hash());
    push(&server, "main", &path(2), &nar(2), &json!({ "deriver": other }));
    let put = server.call(&admin(), "PUT", &format!("/main/log/{other}"), line.as_bytes());
    assert_eq!(put.status, 200, "{put:?}");
    let longer = server.call(&admin(), "PUT", &format!("/main/log/{other}"), &vec![b'x'; 100 << 20]);
    assert_eq!(longer.status, 413, "{longer:?}");
    for from in ["", "?from=0", "?from=2000001", "?from=99999999"] {
        let page = browse(&server, None, &format!("/main/{}/log{from}", path(2).hash())).text();
        assert!(!page.contains("<b>") && !page.contains("\u{202e}"), "{from}");
        assert!(page.chars().all(|one| one == '\n' || one == '\t' || !one.is_control()), "{from}");
    }
    // The protocol's address stays what it is.
    let plain = server.request("GET", &format!("/main/log/{derivation}"), &[BROWSER], b"");
    assert_eq!(
        (plain.header("content-type"), plain.text().as_str()),
        (Some("text/plain; charset=utf-8"), log)
    );
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

#[test]
fn a_token_becomes_a_session_that_ends_with_it_and_is_no_token_elsewhere() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    let good = token(&json!({"team-a": {"r": 1}}));
    let sign_in = |token: &str, more: &[(&str, &str)]| {
        let mut headers = vec![BROWSER, ("Sec-Fetch-Site", "same-origin")];
        headers.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        headers.extend(more);
        server.request("POST", "/_dormer/sign-in", &headers, format!("token=+{token}%0A").as_bytes())
    };
    let reply = sign_in(&good, &[]);
    assert_eq!((reply.status, reply.header("location")), (303, Some("../")), "{reply:?}");
    let set = reply.header("set-cookie").unwrap().to_owned();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(pair, cookie(&good));
    let (attributes, life) = attributes.split_once("; Max-Age=").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
    assert!((3_500..=3_600).contains(&life.parse::<i64>().unwrap()), "{life}");
    // It leads back to the page that asked, and to no other host.
    let asked = browse(&server, None, "/team-a/paths?q=x").text();
    let form = "_dormer/sign-in?back=team-a%2Fpaths%3Fq%3Dx";
    assert!(asked.contains(&format!("href=\"../{form}\"")), "{asked}");
    let form = browse(&server, None, &format!("/{form}")).text();
    assert!(form.contains("name=\"back\" value=\"team-a/paths?q=x\""), "{form}");
    let evil = browse(&server, None, "/_dormer/sign-in?back=//evil.example/").text();
    assert!(!evil.contains("evil"), "{evil}");
    for (back, location) in [
        ("team-a%2Fpaths%3Fq%3Dx", "../team-a/paths?q=x"),
        ("%2F%2Fevil.example", "../"),
        ("https%3A%2F%2Fevil.example", "../"),
        ("%5C%5Cevil.example", "../"),
        ("x%0D%0ASet-Cookie%3A+a", "../"),
        ("..%2F..%2Fx", "../"),
    ] {
        let headers = [BROWSER, ("Sec-Fetch-Site", "same-origin")];
        let fields = format!("token={good}&back={back}");
        let reply = server.request("POST", "/_dormer/sign-in", &headers, fields.as_bytes());
        assert_eq!((reply.status, reply.header("location")), (303, Some(location)), "{back}: {reply:?}");
    }
    let secure = sign_in(&good, &[("X-Forwarded-Proto", "https")]);
    let set = secure.header("set-cookie").unwrap();
    assert!(set.starts_with("__Host-dormer=") && set.contains("; Secure"), "{set}");
    // A proxy that ends TLS need not be a trusted one: the operator said what the address is.
    let behind_proxy =
        Server::start_with(|options| options.server.api_endpoint = Some("https://cache.example/".to_owned()));
    let headers = [BROWSER, ("Sec-Fetch-Site", "same-origin")];
    let signed_in =
        behind_proxy.request("POST", "/_dormer/sign-in", &headers, format!("token={}", admin()).as_bytes());
    let set = signed_in.header("set-cookie").unwrap();
    assert!(set.starts_with("__Host-dormer=") && set.contains("; Secure"), "{set}");
    // At another address of the server, the page says where to go.
    let own = format!("http://{}", behind_proxy.address);
    let body = format!("token={}", admin());
    let elsewhere = |origin: &str| {
        behind_proxy.request("POST", "/_dormer/sign-in", &[BROWSER, ("Origin", origin)], body.as_bytes())
    };
    let reply = elsewhere(&own);
    assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{reply:?}");
    assert!(reply.text().contains("sign in at https://cache.example/"), "{reply:?}");
    let foreign = elsewhere("https://evil.example");
    assert!(foreign.status == 403 && !foreign.text().contains("sign in at"), "{foreign:?}");
    // Over HTTPS, only the cookie that no other host can plant counts.
    let over_https = |cookie: String| {
        let headers = [BROWSER, ("X-Forwarded-Proto", "https"), ("Cookie", cookie.as_str())];
        server.request("GET", "/team-a/", &headers, b"").status
    };
    assert_eq!([over_https(cookie(&good)), over_https(format!("__Host-{}", cookie(&good)))], [404, 200]);

    for bad in ["", "garbage", "a.b.c", &good[1..], &format!("{good}%3B+Domain%3Dx")] {
        let reply = sign_in(bad, &[]);
        assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{bad}: {reply:?}");
        assert!(bad.len() < 10 || !reply.text().contains(bad), "no page shows a token");
    }
    let long: Value =
        (0..200).map(|n| (format!("cache-{n}"), json!({"r": 1}))).collect::<serde_json::Map<_, _>>().into();
    let reply = sign_in(&token(&long), &[]);
    assert!(reply.status == 403 && reply.text().contains("too long"), "{reply:?}");
    for foreign in
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Site", "none")]
    {
        let reply = sign_in(&good, &[foreign]);
        assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{foreign:?}");
    }

    // Anybody may send a form: none is decoded.
    for (address, coding) in [("sign-in", "gzip"), ("sign-in", "bzip2"), ("sign-out", "zstd")] {
        let address = format!("/_dormer/{address}");
        let reply = submit(&server, &good, &address, "garbage", &[("Content-Encoding", coding)]);
        assert_eq!(reply.status, 415, "{address} as {coding}: {reply:?}");
    }

    assert_eq!(browse(&server, Some(&good), "/team-a/").status, 200);
    let ended = ended_token("team-a");
    assert_eq!(browse(&server, Some(&ended), "/team-a/").status, 404, "it has ended");

    // The protocols and the API know no cookies.
    let cookie = cookie(&admin());
    for (method, address, status) in [
        ("GET", "/team-a/nix-cache-info".to_owned(), 401),
        ("GET", format!("/team-a/{}.narinfo", path(1).hash()), 401),
        ("GET", "/_api/v1/cache-config/team-a".to_owned(), 401),
        ("DELETE", format!("/_api/v2/caches/team-a/objects/{}", path(1).hash()), 401),
        ("GET", format!("/_api/v2/caches/team-a/objects/{}/file/bin/x", path(1).hash()), 401),
    ] {
        let reply = server.request(method, &address, &[("Cookie", &cookie), BROWSER], b"");
        assert_eq!(reply.status, status, "{method} {address}");
    }
    assert!(!server.request("GET", "/_api/v2/caches", &[("Cookie", &cookie)], b"").text().contains("team-a"));

    let proof = form_token(&server, &good);
    assert!(!proof.contains(&good));
    let out = submit(&server, &good, "/_dormer/sign-out", &format!("form_token={proof}"), &[]);
    assert_eq!(out.status, 303, "{out:?}");
    assert!(
        out.header("set-cookie").unwrap().starts_with("dormer=; ")
            && out.header("set-cookie").unwrap().contains("Max-Age=0")
    );
}

#[test]
fn a_form_after_the_end_of_its_session_says_so_and_leads_back_to_its_page() {
    let server = Server::start();
    let path = path(1);
    push(&server, "main", &path, &nar(1), &json!({}));
    let ended = ended_token("main");
    push(&server, "team-a", &path, &nar(1), &json!({}));
    let page = format!("main/{}", path.hash());
    for (form, back) in [("pin", &page), ("unpin", &page), ("remove", &page)] {
        let reply = submit(&server, &ended, &format!("/{page}/{form}"), "form_token=x&name=a", &[]);
        let text = reply.text();
        assert!(reply.status == 403 && text.contains("Your session has ended"), "{form}: {text}");
        let (_, way) = text.split_once("?back=").expect("a way to sign in, and back");
        let (way, _) = way.split_once('"').expect("the address ends");
        assert_eq!(&way.replace("%2F", "/"), back, "{form}");
    }
    let unseen = ["absent", "team-a"].map(|cache| {
        let address = format!("/{cache}/{}/pin", path.hash());
        without_way_back(submit(&server, &ended, &address, "form_token=x", &[]).without_noise())
    });
    assert!(unseen[0] == unseen[1] && unseen[0].text().contains("Your session has ended"), "{unseen:?}");
    let out = submit(&server, &ended, "/_dormer/sign-out", "form_token=x", &[]);
    assert!(out.status == 303 && out.header("set-cookie").unwrap().contains("Max-Age=0"), "{out:?}");
    let foreign = [("Sec-Fetch-Site", "cross-site")];
    assert_eq!(submit(&server, &ended, "/_dormer/sign-out", "", &foreign).status, 403);
}

/// A proxy with a password of its own: the browser sends it with every request.
#[test]
fn a_session_counts_beside_a_password_that_is_no_token() {
    let server = Server::start();
    let owner = token(&json!({"team-a": {"r": 1}}));
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    for password in ["Basic dXNlcjpwYXNzd29yZA==", "Bearer no-token"] {
        let headers = [BROWSER, ("Cookie", &cookie(&owner)), ("Authorization", password)];
        assert_eq!(server.request("GET", "/team-a/", &headers, b"").status, 200, "{password}");
        let headers = [BROWSER, ("Authorization", password)];
        assert_eq!(server.request("GET", "/team-a/", &headers, b"").status, 404, "{password}");
    }
}

#[test]
fn forms_change_only_what_a_page_of_the_same_session_sent_with_its_permission() {
    let server = Server::start();
    let (library, program) = (named(1, "library"), named(2, "program"));
    push(&server, "main", &library, &nar(1), &json!({}));
    push(&server, "main", &program, &nar(2), &json!({"references": [library.to_string()]}));
    let owner = token_of("owner", &json!({"main": {"r": 1, "d": 1, "cq": 1}}));
    let proof = form_token(&server, &owner);
    let of = |rest: &str| format!("/main/{}/{rest}", library.hash());
    let pins = || {
        let reply = server.call(&admin(), "POST", "/_api/v2/caches/main/pins", b"{}").json();
        reply["pins"].as_array().unwrap().iter().map(|pin| pin["name"].clone()).collect::<Vec<_>>()
    };
    let fields = format!("form_token={proof}&name=release&days=30");
    let origin = format!("http://{}", server.address);
    // Another site, another session, no proof, and no permission.
    let stolen = form_token(&server, &token_of("other", &json!({"main": {"r": 1, "d": 1, "cq": 1}})));
    for (fields, more) in [
        (fields.clone(), &[("Sec-Fetch-Site", "cross-site")][..]),
        (fields.clone(), &[("Sec-Fetch-Site", "same-site")]),
        (fields.clone(), &[("Sec-Fetch-Site", ""), ("Origin", "https://evil.example")]),
        (fields.clone(), &[("Sec-Fetch-Site", ""), ("Origin", "null")]),
        ("name=release".to_owned(), &[]),
        (format!("form_token={stolen}&name=release"), &[]),
        ("form_token=&name=release".to_owned(), &[]),
    ] {
        for form in ["pin", "unpin", "remove"] {
            let reply = submit(&server, &owner, &of(form), &fields, more);
            assert_eq!(reply.status, 403, "{form} {fields} {more:?}: {reply:?}");
        }
    }
    for weak in [json!({"main": {"r": 1}}), json!({"main": {"r": 1, "w": 1}})] {
        let weak = token(&weak);
        let proof = form_token(&server, &weak);
        for form in ["pin", "unpin", "remove"] {
            let reply = submit(&server, &weak, &of(form), &format!("form_token={proof}&name=release"), &[]);
            assert_eq!(reply.status, 403, "{form}: {reply:?}");
        }
        assert_eq!(browse(&server, Some(&weak), &of("remove")).status, 403);
        assert_eq!(browse(&server, Some(&weak), "/main/pins").status, 403);
    }
    assert_eq!(pins(), Vec::<Value>::new());
    assert_eq!(server.get(&format!("/main/{}.narinfo", library.hash())).status, 200);

    let pinned = submit(&server, &owner, &of("pin"), &fields, &[("Sec-Fetch-Site", ""), ("Origin", &origin)]);
    let back = format!("../../main/{}?done=pinned", library.hash());
    assert_eq!((pinned.status, pinned.header("location")), (303, Some(back.as_str())), "{pinned:?}");
    assert_eq!(pins(), [json!("release")]);
    assert!(browse(&server, Some(&owner), "/main/pins").text().contains("release"));
    for bad in ["name=", "name=a/b", "name=x&days=0", "name=x&days=99999", "name=x&days=y"] {
        let reply = submit(&server, &owner, &of("pin"), &format!("form_token={proof}&{bad}"), &[]);
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
    }
    let consequences = browse(&server, Some(&owner), &of("remove")).text();
    assert!(
        consequences.contains("1 path in this cache need it") && consequences.contains("program"),
        "{consequences}"
    );
    assert!(consequences.contains("It is pinned as") && consequences.contains("release"), "{consequences}");
    let unpinned =
        submit(&server, &owner, &of("unpin"), &format!("form_token={proof}&name=release&back=pins"), &[]);
    assert_eq!((unpinned.status, unpinned.header("location")), (303, Some("../pins?done=unpinned")));
    assert_eq!(pins(), Vec::<Value>::new());
    let removed = submit(&server, &owner, &of("remove"), &format!("form_token={proof}"), &[]);
    assert_eq!((removed.status, removed.header("location")), (303, Some("../?done=removed")), "{removed:?}");
    assert_eq!(server.get(&format!("/main/{}.narinfo", library.hash())).status, 404);
    let audit = server.block_on(server.index.audit_after(0, 100)).unwrap();
    assert_eq!(audit.last().unwrap().subject.as_deref(), Some("owner"));
}

#[test]
fn a_page_says_what_its_form_did_and_a_list_of_pins_goes_on_where_it_was() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let owner = token_of("owner", &json!({"main": {"r": 1, "d": 1, "cq": 1}}));
    let proof = form_token(&server, &owner);
    let send = |form: &str, fields: &str| {
        let address = format!("/main/{}/{form}", path(1).hash());
        submit(&server, &owner, &address, &format!("form_token={proof}&{fields}"), &[])
    };
    for number in 0..38 {
        assert_eq!(send("pin", &format!("name=pin-{number:02}")).status, 303);
    }
    let see = |address: &str| browse(&server, Some(&owner), address).text();
    let first = see("/main/pins");
    let (_, next) = first.split_once("rel=\"next\" href=\"?").expect("there are more pins");
    let next = next.split('"').next().unwrap();
    let second = see(&format!("/main/pins?{next}"));
    assert!(second.contains(">pin-36<") && second.contains(">pin-37<"), "{second}");
    let (_, after) = second.split_once("name=\"after\" value=\"").expect("the form knows its page");
    let after = after.split('"').next().unwrap();
    for (name, left) in [("pin-36", ">pin-37<"), ("pin-37", "No more pins.")] {
        let reply = send("unpin", &format!("name={name}&back=pins&after={after}"));
        let location = reply.header("location").unwrap().strip_prefix("..").unwrap().to_owned();
        let page = see(&format!("/main{location}"));
        assert!(page.contains("The pin is removed.") && page.contains(left), "{location}: {page}");
        assert!(!page.contains(">pin-00<"), "the first page is another one: {page}");
    }
    for bad in ["x", "x.y", "//evil.example", &format!("{after}%0d%0aSet-Cookie:x")] {
        let reply = send("unpin", &format!("name=pin-00&back=pins&after={bad}"));
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
    }
    let long = format!("/main/pins?after={}.{}", path(1).hash(), "x".repeat(2_000));
    assert_eq!(browse(&server, Some(&owner), &long).status, 400);
    let removed = send("remove", "");
    assert_eq!(removed.header("location"), Some("../?done=removed"));
    assert!(see("/main/?done=removed").contains("The path is removed"));
    // A link of another site brings no session, and says nothing.
    let stranger = browse(&server, None, "/main/?done=removed").text();
    assert!(!stranger.contains("The path is removed") && stranger.contains("Use this cache"), "{stranger}");
}

/// A browser keeps the session back from what a page of another site leads to.
#[test]
fn a_page_that_a_link_of_another_site_leads_to_can_be_opened_again() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    let see = |address: &str, session: Option<&str>, site: Option<&str>| {
        let cookie = session.map(cookie);
        let mut headers = vec![BROWSER];
        headers.extend(cookie.as_deref().map(|value| ("Cookie", value)));
        headers.extend(site.map(|site| ("Sec-Fetch-Site", site)));
        server.request("GET", address, &headers, b"")
    };
    let again = "<a href=\"\">Open this page again</a>";
    for (address, status) in [("/team-a/", 404), ("/none/", 404), ("/main/pins", 403), ("/_dormer/", 404)] {
        for site in [Some("cross-site"), None] {
            let reply = see(address, None, site);
            assert_eq!(reply.status, status, "{address}: {reply:?}");
            assert!(reply.text().contains(again), "{address} from {site:?}: {}", reply.text());
        }
        // Here the browser has sent what it has.
        for site in ["same-origin", "same-site", "none"] {
            assert!(!see(address, None, Some(site)).text().contains(again), "{address} from {site}");
        }
        let weak = token(&json!({"main": {"r": 1}}));
        let reply = see(address, Some(&weak), Some("same-origin"));
        assert!(reply.status == status && !reply.text().contains(again), "{address}: {reply:?}");
    }
    let reader = token(&json!({"team-a": {"r": 1}}));
    assert_eq!(see("/team-a/", Some(&reader), Some("same-origin")).status, 200);
    let sent = server.request("POST", "/_dormer/collection", &[BROWSER], b"form_token=x");
    assert!(!sent.text().contains(again), "the address of a form is no page");
}

#[test]
fn the_first_page_and_those_of_a_cache_and_a_path_cost_four_statements_at_most() {
    let server = Server::start();
    for number in 1..=60 {
        let references: Vec<String> = (1..number).map(|other| path(other).to_string()).collect();
        push(&server, "main", &path(number), &nar(1), &json!({ "references": references }));
    }
    // Caches that a visitor may not know of cost no statement, however many there are.
    for number in 0..250 {
        let new = dormer_engine::CreateCache {
            name: format!("hidden-{number:03}"),
            is_public: false,
            store_dir: "/nix/store".to_owned(),
            priority: 41,
            upstream_cache_key_names: Vec::new(),
            secret_key: None,
            allow_replacement: false,
        };
        server.block_on(server.engine.create_cache(new)).unwrap();
    }
    let all = json!({"r": 1, "cq": 1});
    let member = token(&json!({"hidden-*": {}, "hidden-249": {"r": 1}, "m*": all, "t*": all}));
    let home = browse(&server, Some(&member), "/").text();
    for (name, is_there) in [("main", true), ("team-a", true), ("hidden-249", true), ("hidden-248", false)] {
        assert_eq!(home.contains(&format!("href=\"./{name}/\"")), is_there, "{name}");
    }
    let listed = server.call(&member, "GET", "/_api/v2/caches", b"").json();
    assert_eq!(listed["caches"].as_array().map(Vec::len), Some(3), "{listed}");
    // Of this one, nothing is remembered.
    let before = server.index.statement_count();
    assert_eq!(browse(&server, Some(&admin()), "/hidden-000/").status, 200);
    assert!(server.index.statement_count() - before <= 4);
    for session in [None, Some(member), Some(admin())] {
        for address in [
            "/".to_owned(),
            "/main/".to_owned(),
            format!("/main/{}", path(30).hash()),
            "/main/paths".to_owned(),
        ] {
            let before = server.index.statement_count();
            assert_eq!(browse(&server, session.as_deref(), &address).status, 200);
            let cost = server.index.statement_count() - before;
            assert!(cost <= 4, "{address} took {cost} statements");
        }
    }
}

/// Most statements of each page. One without a row here takes four.
fn statements_max(address: &str) -> u64 {
    match address {
        _ if address.ends_with("/closure") => 66,
        _ if address.contains("/files") => 8,
        _ => 4,
    }
}

#[test]
fn no_page_costs_more_than_its_bound_whatever_the_cache_holds() {
    let server = Server::start();
    let bin = Node::directory([(b"x".to_vec(), Node::file(b"a text".to_vec()))]);
    let derivation = format!("{}-hello.drv", path(8).hash());
    let tree = encode_tree(&Node::directory([(b"bin".to_vec(), bin)]));
    push(
        &server,
        "main",
        &path(1),
        &tree,
        &json!({ "deriver": derivation, "references": [path(9).to_string()] }),
    );
    let log = format!("/main/log/{derivation}");
    assert_eq!(server.call(&admin(), "PUT", &log, &b"a line\n".repeat(200_000)).status, 200);
    let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap();
    let rules = dormer_engine::UpdateCache {
        retention_seconds: Some(Some(86_400)),
        quota_bytes: Some(Some(1 << 40)),
        keep_latest: Some(Some(2)),
        ..dormer_engine::UpdateCache::default()
    };
    server.block_on(server.engine.update_cache(&main, rules)).unwrap();
    // A chain: each refers to the one before it.
    for number in 2..=90 {
        push(
            &server,
            "main",
            &path(number),
            &nar(1),
            &json!({ "references": [path(number - 1).to_string()] }),
        );
    }
    for number in [1, 5] {
        let pin = dormer_index::Pin {
            name: format!("pin-{number}"),
            path: path(number),
            created_at: now(),
            ends_at: None,
        };
        server.block_on(server.index.add_pin(main.id, &pin, None)).unwrap();
    }
    let longest = format!("/main/{}/closure", path(90).hash());
    let reads = pages("main").into_iter().filter(|(method, _)| *method == "GET");
    let more = ["/", "/main/paths?q=package*", "/main/paths?q=pack", "/main/paths?q=*age"].map(str::to_owned);
    let reads: Vec<String> = reads.map(|(_, address)| address).chain([longest.clone()]).chain(more).collect();
    let owner = token(&json!({"main": {"r": 1, "cq": 1, "d": 1}}));
    for session in [None, Some(owner), Some(admin())] {
        for address in &reads {
            // As for the first visitor after a while: a change makes the server forget.
            let no_change = dormer_engine::UpdateCache::default();
            server.block_on(server.engine.update_cache(&main, no_change)).unwrap();
            let before = server.index.statement_count();
            let reply = browse(&server, session.as_deref(), address);
            let cost = server.index.statement_count() - before;
            assert!(cost <= statements_max(address), "{address} took {cost} statements: {}", reply.status);
            assert!(
                *address != longest || reply.text().contains("larger than this page looks at"),
                "{}",
                reply.text()
            );
        }
    }
}

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
    for (number, subject) in [(1, "ada"), (2, "<script>bob"), (3, workflow.as_str())] {
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
        server.publish.open_job(dormer_index::JobKind::Recount, None, None, now() - 100).await.unwrap();
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

/// A server that has just begun remembers nothing.
#[test]
fn the_first_look_at_a_page_for_operators_costs_four_statements_too() {
    for page in OPERATOR_PAGES {
        let server = Server::start();
        let main = server.block_on(server.engine.find_cache("main")).unwrap().unwrap().id;
        server.block_on(async {
            for name in ["edge", "far"] {
                server.publish.open_target(name, "s3://bucket/edge").await.unwrap();
            }
            for kind in [dormer_index::JobKind::Recount, dormer_index::JobKind::Scrub] {
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

#[test]
fn what_fails_is_a_page_too_and_says_nothing_of_the_inside() {
    let server = Server::start();
    push(&server, "main", &path(1), &tree(), &json!({}));
    let file = format!("/main/{}/files/bin/hello?download=1", path(1).hash());
    server.store.set_down(true);
    let down = browse(&server, None, &file);
    assert_eq!(down.status, 503, "{down:?}");
    assert!(down.header("content-type").unwrap().starts_with("text/html"));
    assert!(down.header("retry-after").is_some() && !down.text().contains("secret"), "{down:?}");
    server.store.set_down(false);
    for (method, address, status) in [
        ("PUT", "/main/", 405),
        ("POST", "/main/pins", 405),
        ("GET", "/_dormer/sign-out", 405),
        ("DELETE", "/main/paths", 405),
    ] {
        let reply = server.request(method, address, &[BROWSER], b"");
        assert_eq!(reply.status, status, "{method} {address}: {reply:?}");
        assert!(reply.header("allow").is_some(), "{method} {address}");
    }
}

#[test]
fn style_script_and_icon_come_from_here() {
    let server = Server::start();
    for (name, kind) in
        [("style.css", "text/css"), ("script.js", "text/javascript"), ("icon.svg", "image/svg+xml")]
    {
        let reply = server.get(&format!("/_dormer/pages/{name}"));
        assert_eq!(reply.status, 200);
        assert!(reply.header("content-type").unwrap().starts_with(kind), "{reply:?}");
        assert_eq!(reply.header("cache-control"), Some("public, max-age=60"));
    }
    assert_eq!(server.get("/_dormer/pages/other").status, 404);
}

#[test]
fn without_pages_everything_is_as_programs_know_it() {
    let server = Server::start_with(|options| options.server.pages = false);
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let home = server.request("GET", "/", &[BROWSER], b"");
    assert!(home.text().starts_with("This is a Dormer") && home.header("vary").is_none(), "{home:?}");
    let mut pages = pages("main");
    pages.extend([
        ("GET", "/main".to_owned()),
        ("GET", "/_dormer/".to_owned()),
        ("GET", "/_dormer/sign-in".to_owned()),
        ("GET", "/_dormer/pages/style.css".to_owned()),
    ]);
    for (method, address) in pages {
        let reply = server.request(method, &address, &[BROWSER, ("Cookie", &cookie(&admin()))], b"");
        assert_eq!(reply.status, 404, "{method} {address}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"), "{address}");
    }
}
