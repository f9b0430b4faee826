//! The pages of a lab, visited by a real Chromium.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{NarHash, StorePath, nix32};
use dormer_testkit::{Random, package_nar};
use dormer_tests::edge::{Published, Workerd, WorkerdOptions};
use dormer_tests::{Lab, LabOptions, http, part, workspace_root};
use serde_json::json;

/// Packages with what they need, each after it, and their size in KiB.
const PACKAGES: [(&str, &[&str], usize); 12] = [
    ("glibc-2.40-66", &[], 2_900),
    ("gcc-14.2.1-lib", &["glibc-2.40-66"], 1_700),
    ("zlib-1.3.1", &["glibc-2.40-66"], 120),
    ("zstd-1.5.7", &["glibc-2.40-66", "gcc-14.2.1-lib"], 500),
    ("openssl-3.4.1", &["glibc-2.40-66", "zlib-1.3.1"], 1_400),
    ("sqlite-3.48.0", &["glibc-2.40-66", "zlib-1.3.1"], 900),
    ("curl-8.12.1", &["glibc-2.40-66", "openssl-3.4.1", "zlib-1.3.1", "zstd-1.5.7"], 450),
    ("bash-5.2p37", &["glibc-2.40-66"], 800),
    ("git-2.48.1", &["glibc-2.40-66", "bash-5.2p37", "curl-8.12.1", "zlib-1.3.1"], 2_300),
    ("python3-3.12.9", &["glibc-2.40-66", "openssl-3.4.1", "sqlite-3.48.0", "bash-5.2p37"], 2_600),
    ("hello-2.12.1", &["glibc-2.40-66"], 60),
    ("nix-2.26.2", &["glibc-2.40-66", "curl-8.12.1", "sqlite-3.48.0", "zstd-1.5.7", "git-2.48.1"], 1_900),
];

const LOG: &str = "\u{1b}[1munpacking sources\u{1b}[0m\nunpacking source archive /build/curl-8.12.1.tar.xz\n\
    \u{1b}[1mconfiguring\u{1b}[0m\nchecking for gcc... \u{1b}[32myes\u{1b}[0m\nchecking for \"libpsl\"... \u{1b}[33mno\u{1b}[0m\n\
    \u{1b}[1mbuilding\u{1b}[0m\nmake: 'all' is up to date & <fine>\n\u{1b}[31;1mwarning:\u{1b}[0m 2 tests were skipped\n";

const README: &str = "curl is a command line tool for transferring data specified with URL syntax.\n";

fn path(name: &str, salt: u8) -> StorePath {
    let mut seed = [salt; 20];
    for (place, byte) in name.bytes().enumerate() {
        seed[place % 20] = seed[place % 20].wrapping_mul(31).wrapping_add(byte);
    }
    format!("{}-{name}", nix32::encode(&seed)).parse().unwrap()
}

fn push(lab: &Lab, cache: &str, path: &StorePath, nar: &[u8], references: &[StorePath]) {
    let info = json!({
        "cache": cache, "store_path_hash": path.hash().to_string(), "store_path": format!("/nix/store/{path}"),
        "references": references.iter().map(StorePath::to_string).collect::<Vec<_>>(), "system": "x86_64-linux",
        "deriver": format!("{}.drv", self::path(path.name(), 9)), "sigs": [], "ca": null,
        "nar_hash": format!("sha256:{}", NarHash::digest(nar).to_hex()), "nar_size": nar.len(),
    });
    let bearer = format!("Bearer {}", lab.admin_token());
    let headers = [("X-Attic-Nar-Info", info.to_string()), ("Authorization", bearer)];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let reply = http::ask(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// A cache with packages, also rebuilt ones, and a private cache.
fn fill(lab: &Lab) {
    lab.create_cache("secret", &[]);
    for salt in 0..2 {
        for (number, (name, needs, kib)) in PACKAGES.iter().enumerate() {
            let needs: Vec<StorePath> = needs.iter().map(|name| path(name, salt)).collect();
            // A rebuild changes nothing but the paths that are named.
            let nar = if *name == "curl-8.12.1" {
                let docs = Node::directory([(b"README.md".to_vec(), Node::file(README))]);
                let bin = Node::file(Random::new(number as u64).bytes(kib * 1024));
                let link = Node::symlink(format!("/nix/store/{}/lib", needs[0]));
                encode_tree(&Node::directory([
                    (b"bin".to_vec(), Node::directory([(b"curl".to_vec(), bin)])),
                    (b"doc".to_vec(), docs),
                    (b"lib".to_vec(), link),
                ]))
            } else {
                package_nar(&mut Random::new(number as u64), kib * 1024, &needs)
            };
            push(lab, "main", &path(name, salt), &nar, &needs);
        }
    }
    push_longest_words(lab);
    let alone = path("company-secrets-1.0", 0);
    push(lab, "secret", &alone, &package_nar(&mut Random::new(99), 10_000, &[]), &[]);
    write_log(lab);
    let bearer = format!("Bearer {}", lab.admin_token());
    // Something that a collection would free.
    let old = path("gcc-13.3.0-lib", 0);
    push(lab, "main", &old, &package_nar(&mut Random::new(98), 1_600 * 1024, &[]), &[]);
    let address = format!("/_api/v2/caches/main/objects/{}", old.hash());
    let removed = http::ask(lab.address(), "DELETE", &address, &[("Authorization", &bearer)], b"");
    assert_eq!(removed.status, 200, "{removed:?}");
}

/// Uploads the log of one of the packages.
fn write_log(lab: &Lab) {
    let bearer = format!("Bearer {}", lab.admin_token());
    let address = format!("/main/log/{}.drv", path("curl-8.12.1", 9));
    let put = http::ask(lab.address(), "PUT", &address, &[("Authorization", &bearer)], LOG.as_bytes());
    assert_eq!(put.status, 200, "{put:?}");
}

/// A store path with the longest name, or another part of it.
fn longest(number: usize) -> StorePath {
    let name = format!("{number}-{}", "w".repeat(209 - number.to_string().len() + 1));
    path(&name, u8::try_from(number).unwrap())
}

/// A path with the longest words that pages show: none has a place where a line could end.
fn push_longest_words(lab: &Lab) {
    let files = Node::directory([
        (vec![b'n'; 250], Node::directory([(vec![b'f'; 250], Node::file("t".repeat(3_000)))])),
        (b"link".to_vec(), Node::symlink("l".repeat(1_000))),
        (b"x\n\x1b[2K\xe2\x80\xae".to_vec(), Node::file("\u{202e}\u{1b}[31m")),
    ]);
    let nar = encode_tree(&files);
    let references: Vec<String> = (1..=60).map(|number| longest(number).to_string()).collect();
    let signature = |number: usize| format!("{}-{number}:{}A==", "k".repeat(90), "S".repeat(85));
    for number in [1, 0] {
        let path = longest(number);
        let info = json!({
            "cache": "main", "store_path_hash": path.hash().to_string(), "store_path": format!("/nix/store/{path}"),
            "references": if number == 0 { &references[..] } else { &[] }, "system": "s".repeat(100),
            "deriver": format!("{}-{}.drv", longest(9).hash(), "d".repeat(207)),
            "sigs": (0..16).map(signature).collect::<Vec<_>>(),
            "ca": format!("fixed:r:sha256:{}", NarHash::digest(&nar).to_nix32()),
            "extra": [["Provenance", format!("{{\"url\":\"{}\"}}", "p".repeat(2_000))]],
            "nar_hash": format!("sha256:{}", NarHash::digest(&nar).to_hex()), "nar_size": nar.len(),
        });
        let bearer = format!("Bearer {}", lab.admin_token());
        let headers = [("X-Attic-Nar-Info", info.to_string()), ("Authorization", bearer)];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = http::ask(lab.address(), "PUT", "/_api/v1/upload-path", &headers, &nar);
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// Gives the cache and the installation sixty days of history, as if the lab were that old.
fn grow_old(lab: &mut Lab) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let days = (0..60_u64).flat_map(|age| {
        let (day, week) = (now / 86_400 - 60 + age, age / 7);
        let (paths, bytes) = (3 * week, (week * week + 2) * 400_000);
        let (pushes, pulls) = (3 * u64::from(age % 7 == 0), 5 + (age * age * 7) % 90);
        [
            format!("((SELECT id FROM caches WHERE name = 'main'), {day}, {paths}, {bytes}, NULL, {pushes}, {pulls})"),
            format!("(0, {day}, {paths}, {bytes}, {}, {pushes}, {pulls})", bytes / 3),
        ]
    });
    let rows = days.collect::<Vec<_>>().join(", ");
    lab.kill();
    lab.sql(&format!(
        "INSERT INTO cache_days (cache, day, paths, path_bytes, stored_bytes, pushes, pulls) VALUES {rows}"
    ));
    lab.restart();
}

/// Publishes the cache, without the rebuilt packages.
fn publish(lab: &Lab) -> Published {
    let published = Published::new();
    let paths: Vec<String> =
        PACKAGES.iter().map(|(name, ..)| format!("/nix/store/{}", path(name, 0))).collect();
    published.add(lab, "main", true, &paths);
    published.write(&format!("main/log/{}.drv", path("curl-8.12.1", 9)), LOG.as_bytes());
    published.describe("secret", false, &[], &[]);
    published.catalog(&["main"]);
    published
}

/// A browser does on the pages what a person does, in two widths and two themes, with and without
/// scripts: `tests/browser/pages.mjs` says what it does and what must hold. The pages are those of
/// a lab, and of a Worker that the lab's cache is published to.
#[test]
fn a_browser_finds_its_way_through_the_pages() {
    let mut lab = Lab::start();
    fill(&lab);
    grow_old(&mut lab);
    let worker = Workerd::start(&publish(&lab), &WorkerdOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let wanted = env::var_os("DORMER_PAGES_PICTURES").map(PathBuf::from);
    let facts = |name: &str| json!({ "name": name, "hash": path(name, 0).hash().to_string() });
    let visit = json!({
        "url": lab.url().trim_end_matches('/'), "edge": format!("http://{}", worker.address()), "token": lab.admin_token(), "chromium": "/usr/bin/chromium",
        "modules": part("browser-node"), "pictures": wanted.unwrap_or_else(|| folder.path().join("pictures")),
        "program": facts("curl-8.12.1"), "reference": facts("openssl-3.4.1"),
        "longest": { "hash": longest(0).hash().to_string(), "needed": longest(1).hash().to_string() },
        "file": { "hash": path("curl-8.12.1", 0).hash().to_string(), "names": ["doc", "README.md"], "text": README.trim_end() },
    });
    let output = Command::new("node")
        .arg(workspace_root().join("tests/browser/pages.mjs"))
        .env("VISIT", visit.to_string())
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Paths in a cache: more than one search by name looks through.
const PATHS: u32 = 4_000;

/// Hash of a path of [`rows_of_paths`].
fn hash_of(number: u32) -> String {
    nix32::encode(format!("{number:020}").as_bytes())
}

/// Paths `package-1` and so on, each larger than the one before, as rows alone. Three hundred need
/// the largest one, and one of these is pinned. `key` makes a key of so many bytes of the number
/// `i`.
fn rows_of_paths(key: impl Fn(&str, usize) -> String, empty: &str) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let numbers =
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {PATHS})");
    let (cache, largest) = ("(SELECT id FROM caches WHERE name = 'main')", key(&PATHS.to_string(), 20));
    let (nar, tag, path) = (key("i", 32), key("i", 16), key("i", 20));
    format!(
        "{numbers} INSERT INTO nars (hash, size, file_size, tag, recipe)
             SELECT {nar}, 5000 + i, 2000 + i, {tag}, {empty} FROM n;
         {numbers} INSERT INTO objects (cache, hash, nar, created_at, last_used_at, pushed_at, name, nar_size, sigs, refs, deriver)
             SELECT {cache}, {path}, m.id, {now}, {now}, {now}, 'package-' || i, 5000 + i, {empty}, {empty}, '{deriver}'
             FROM n JOIN nars AS m ON m.hash = {nar};
         {numbers} INSERT INTO object_refs (cache, reference, referrer) SELECT {cache}, {largest}, {path} FROM n WHERE i <= 300;
         INSERT INTO pins (cache, name, hash, path_name, created_at) VALUES ({cache}, 'release', {pinned}, 'package-7', {now});
         UPDATE caches SET retention_seconds = 864000 WHERE name = 'main';",
        pinned = key("7", 20),
        deriver = format_args!("{}-package.drv", hash_of(1)),
    )
}

/// The pages of a server with thousands of paths: what each costs the database, what that of a path
/// says of its end, and how a search goes on behind its bound.
fn look_at_thousands_of_paths(mut lab: Lab) {
    let docs = Node::directory([(b"README.md".to_vec(), Node::file(README))]);
    let nar = encode_tree(&Node::directory([(b"doc".to_vec(), docs)]));
    push(&lab, "main", &path("curl-8.12.1", 0), &nar, &[path("zlib-1.3.1", 0)]);
    write_log(&lab);
    if lab.is_embedded() {
        lab.kill();
        lab.sql(&rows_of_paths(
            |number, bytes| format!("CAST(printf('%0{bytes}d', {number}) AS BLOB)"),
            "x''",
        ));
        lab.restart();
    } else {
        let key = |number: &str, bytes| format!("convert_to(lpad(({number})::text, {bytes}, '0'), 'UTF8')");
        lab.sql(&rows_of_paths(key, "''"));
    }
    // One replica, because each counts its own statements.
    let address = lab.replicas()[0].to_owned();
    let ask_as = |token: &str, page: &str| {
        let cookie = format!("dormer={token}");
        let headers = [("Accept", "text/html"), ("Cookie", cookie.as_str())];
        let reply = http::request(&address, "GET", page, &headers, b"");
        assert_eq!(reply.status, 200, "{page}: {reply:?}");
        reply.text()
    };
    let admin = lab.admin_token();
    let ask = |page: &str| ask_as(&admin, page);
    let forget = || {
        let bearer = format!("Bearer {admin}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let config = "/_api/v1/cache-config/main";
        let patched = http::request(&address, "PATCH", config, &headers, b"{\"priority\":41}");
        assert_eq!(patched.status, 200, "{patched:?}");
    };
    let statements = || {
        let stats = http::get(&address, "/_dormer/stats", None).json();
        stats["index_statements"].as_u64().unwrap()
    };
    let (largest, lonely) = (format!("/main/{}", hash_of(PATHS)), format!("/main/{}", hash_of(PATHS - 1)));
    let named = |text: &str| format!("/main/paths?q={text}");
    let (nothing, begin) = (named("no-such-name"), named("package-10"));
    let (curl, mut pages) = (format!("/main/{}", path("curl-8.12.1", 0).hash()), Vec::new());
    for path in [&largest, &lonely, &curl] {
        pages.extend(["", "/references", "/referrers", "/remove"].map(|page| (format!("{path}{page}"), 4)));
    }
    pages.extend([(format!("{curl}/log"), 4), (format!("{curl}/files/"), 8)]);
    pages.extend([(format!("{curl}/files/doc/README.md"), 8), (format!("{curl}/closure"), 66)]);
    pages.extend(
        ["/", "/main/", "/main/paths", "/main/pins", &nothing, &begin].map(|page| (page.to_owned(), 4)),
    );
    let operator = ["", "jobs", "collection", "publishing", "damage", "audit"];
    pages.extend(operator.map(|page| (format!("/_dormer/{page}"), 4)));
    let owner = lab.token(&["--pull", "main", "--delete", "main", "--configure-cache-retention", "main"]);
    for (session, is_operator) in [(owner, false), (lab.admin_token(), true)] {
        for (page, most) in pages.iter().filter(|(page, _)| is_operator || !page.starts_with("/_dormer/")) {
            // The server's own work may come between. Before each look, a change makes the server
            // forget what it knows of caches.
            let costs = (0..4).map(|_| {
                forget();
                let before = statements();
                ask_as(&session, page);
                statements() - before
            });
            let cost = costs.min().unwrap();
            // What targets wait for is remembered for two seconds, whatever changes.
            let least = u64::from(!page.starts_with("/_dormer/"));
            assert!((least..=*most).contains(&cost), "{page} took {cost} statements");
        }
    }

    let page = ask(&largest);
    for text in [
        "more than 16 paths",
        "by the pin <strong>release</strong>, for good",
        "and maybe more",
        "Without that, ",
    ] {
        assert!(page.contains(text), "{text} in {page}");
    }
    let page = ask(&lonely);
    let is_dated = page.contains("</strong>, in 9 days") || page.contains("</strong>, in 10 days");
    assert!(page.contains("It goes after ") && is_dated, "{page}");
    let owner = ask("/main/");
    assert!(owner.contains("Least used paths") && owner.contains("package-4000"), "{owner}");

    // One of eleven is behind the bound.
    let next_of = |page: &str| {
        let (_, rest) = page.split_once("rel=\"next\" href=\"").expect("the search goes on");
        ask(&format!("/main/paths{}", rest.split('"').next().unwrap().replace("&amp;", "&")))
    };
    let shown = |page: &str| page.matches("<th scope=\"row\">").count();
    let page = ask("/main/paths?q=e-101");
    assert!(page.contains("it looked through 3,000 paths, the largest first. "), "{page}");
    assert!(shown(&page) == 10 && !page.contains(">package-101<"), "{page}");
    let page = next_of(&page);
    assert!(page.contains(">package-101<") && !page.contains(">package-1010<"), "{page}");
    assert!(!page.contains("rel=\"next\"") && !page.contains("it looked through"), "{page}");

    // Names that begin with the text are found at once, small as these paths are, and each once.
    let first = ask(&begin);
    assert!(first.contains(">package-10<") && first.contains(">package-1039<"), "{first}");
    assert!(shown(&first) == 50 && !first.contains("it looked through"), "{first}");
    let second = next_of(&first);
    assert!(shown(&second) == 50 && second.contains(">package-1084<"), "{second}");
    let third = next_of(&second);
    assert!(shown(&third) == 11 && third.contains("it looked through 3,000 paths"), "{third}");
    let last = next_of(&third);
    assert!(shown(&last) == 0 && !last.contains("rel=\"next\""), "{last}");
    let all = ask("/main/paths?q=package-100*");
    assert!(shown(&all) == 11 && !all.contains("rel=\"next\""), "{all}");
}

#[test]
fn pages_over_thousands_of_paths_cost_four_statements_at_most_on_each_database() {
    let quiet = [("DORMER_STATS", "true"), ("DORMER_GARBAGE_COLLECTION_INTERVAL", "0s")];
    let environment = quiet.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = LabOptions { environment, ..LabOptions::default() };
    for lab in [Lab::start_with(options.clone()), Lab::start_production_with(options)] {
        look_at_thousands_of_paths(lab);
    }
}
