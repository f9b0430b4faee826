//! The Worker as it is deployed, in the real workerd with an R2 bucket, and real nix that
//! substitutes from it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_tests::edge::{Attacked, Published, Workerd, WorkerdOptions, attack};
use dormer_tests::http::{self, Reply};
use dormer_tests::{Lab, Nix, Run, part, workspace_root};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// What the module may have, gzipped: it is loaded before an isolate's first answer.
const MODULE_BYTES_MAX: usize = 400 * 1000;

const SECRET: [u8; 32] = [9; 32];

fn secret_variable() -> (String, String) {
    ("TOKEN_HS256_SECRET_BASE64".to_owned(), STANDARD.encode(SECRET))
}

fn server_key(name: &str) -> Vec<u8> {
    fs::read(workspace_root().join("crates/server/tests/data").join(name)).unwrap()
}

fn sign(claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    encode(&Header::new(algorithm), claims, key).unwrap()
}

fn pull_everything() -> Value {
    json!({ "exp": 4_000_000_000_i64, "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 } } } })
}

/// A token of the algorithm `none`.
fn unsigned(claims: &Value) -> String {
    let part = |json: &Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}.", part(&json!({ "alg": "none" })), part(claims))
}

fn get(address: &str, path: &str, token: Option<&str>) -> Reply {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
    http::ask(address, "GET", path, &headers, b"")
}

/// Waits for what a published change shows within seconds, and longer for what was remembered.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(90), "{what} did not come about");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A lab with a public and two private caches, published.
fn published(lab: &Lab) -> (Published, Vec<String>) {
    let published = Published::new();
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let root = builder.build("all", &[("salt", "edge")]);
    builder.dormer(&["push", "main", &root]).succeeds();
    published.add(lab, "main", true, &builder.closure(&root));
    let hidden = builder.build("library", &[("salt", "hidden")]);
    builder.dormer(&["push", "secret", &hidden]).succeeds();
    published.add(lab, "secret", false, std::slice::from_ref(&hidden));
    published.describe("secret", false, &[lab.public_key("secret")], &["stolen"]);
    published.describe("other", false, &[], &[]);
    published.catalog(&["main"]);
    (published, vec![root, hidden])
}

#[test]
fn three_nix_versions_substitute_from_the_worker_and_changes_reach_them() {
    let lab = Lab::start();
    let (published, roots) = published(&lab);
    let [root, hidden] = roots.as_slice() else { panic!("{roots:?}") };
    let worker = Workerd::start(
        &published,
        &WorkerdOptions { variables: vec![secret_variable()], ..WorkerdOptions::default() },
    );
    let url = |cache: &str| format!("http://{}/{cache}", worker.address());
    let token = sign(&pull_everything(), Algorithm::HS256, &EncodingKey::from_secret(&SECRET));
    for nix in Nix::ALL {
        let reader = lab.machine(nix.name(), nix);
        reader.configure(&[lab.public_key("main"), lab.public_key("secret")]);
        reader.substitute(&url("main"), root).succeeds();
        reader.verify_all();
        // A private cache is no cache without a token.
        reader.substitute(&url("secret"), hidden).fails();
        reader.set_netrc(worker.address(), &token);
        reader.forget_caches();
        reader.substitute(&url("secret"), hidden).succeeds();
        reader.verify_all();
        // Keys decide: what the reader does not trust it does not take.
        let stranger = lab.machine(&format!("stranger-{}", nix.name()), nix);
        stranger.substitute(&url("main"), root).fails();
    }

    // What is asked for too early, is published, and is removed again.
    let builder = lab.machine("late", Nix::NEWEST);
    builder.login(&lab);
    let late = builder.build("library", &[("salt", "late")]);
    let narinfo = format!("/main/{}.narinfo", &late["/nix/store/".len()..][..32]);
    assert_eq!(get(worker.address(), &narinfo, None).status, 404);
    builder.dormer(&["push", "main", &late]).succeeds();
    published.add(&lab, "main", true, std::slice::from_ref(&late));
    for (name, path) in published.files() {
        worker.put(&name, &path);
    }
    eventually("the update", || get(worker.address(), &narinfo, None).status == 200);
    let reader = lab.machine("reader-of-late", Nix::MIDDLE);
    reader.configure(&[lab.public_key("main")]);
    reader.substitute(&url("main"), &late).succeeds();
    // What is removed is forgotten with the data centre's memory: another address of this Worker
    // has one of its own.
    worker.delete(&narinfo[1..]);
    let elsewhere = worker.address().replace("127.0.0.1", "localhost");
    assert_eq!(get(&elsewhere, &narinfo, None).status, 404);
}

#[test]
fn attacks_fail_and_a_request_costs_two_calls_at_most() {
    let lab = Lab::start();
    let (published, _) = published(&lab);
    let claims = pull_everything();
    let rsa_public = server_key("rsa-test-only.pub.pem");
    let ed_public = server_key("ed25519-test-only.pub.pem");
    let rsa = EncodingKey::from_rsa_pem(&server_key("rsa-test-only.pem")).unwrap();
    let ed = EncodingKey::from_ed_pem(&server_key("ed25519-test-only.pem")).unwrap();
    let hmac = EncodingKey::from_secret(&SECRET);
    let hmac_by_public_key = |pem: &[u8]| sign(&claims, Algorithm::HS256, &EncodingKey::from_secret(pem));
    let (by_hmac, by_rsa, by_ed) = (
        sign(&claims, Algorithm::HS256, &hmac),
        sign(&claims, Algorithm::RS256, &rsa),
        sign(&claims, Algorithm::EdDSA, &ed),
    );
    let text = |name: &str, value: &[u8]| (name.to_owned(), STANDARD.encode(value));
    for (variable, algorithm, key, forged) in [
        (secret_variable(), Algorithm::HS256, &hmac, vec![by_rsa.clone(), by_ed.clone()]),
        (
            text("TOKEN_RS256_PUBKEY_BASE64", &rsa_public),
            Algorithm::RS256,
            &rsa,
            vec![by_hmac.clone(), by_ed, hmac_by_public_key(&rsa_public)],
        ),
        (
            text("TOKEN_ED25519_PUBKEY_BASE64", &ed_public),
            Algorithm::EdDSA,
            &ed,
            vec![by_hmac, by_rsa, hmac_by_public_key(&ed_public)],
        ),
    ] {
        let others = EncodingKey::from_secret(&[1; 32]);
        let mut forged = forged;
        forged.extend([
            unsigned(&claims),
            sign(&claims, Algorithm::HS256, &others),
            sign(&claims, Algorithm::HS384, &hmac),
        ]);
        let worker = Workerd::start(
            &published,
            &WorkerdOptions { variables: vec![variable], ..WorkerdOptions::default() },
        );
        attack(&Attacked {
            address: worker.address(),
            published: &published,
            sign: &|claims| sign(claims, algorithm, key),
            forged,
            reads: &|| Some(worker.calls().into_iter().map(|(_, key)| key).collect()),
            knows_address: true,
        });
    }
}

#[test]
fn a_request_is_two_calls_to_r2_at_most_and_a_remembered_one_none() {
    let lab = Lab::start();
    let (published, _) = published(&lab);
    let worker = Workerd::start(&published, &WorkerdOptions::default());
    let nar = format!("/main/{}", published.some_nar("main"));
    let get = |path: &str| get(worker.address(), path, None);
    let mut most = 0;
    for path in [
        "/",
        "/main",
        "/main/",
        "/main/nix-cache-info",
        &nar,
        "/absent/nix-cache-info",
        "/main/00000000000000000000000000000000.narinfo",
    ] {
        get(path);
        most = most.max(worker.calls().len());
    }
    assert!(most <= 2, "{most} calls for one request");
    // A page about a path is made of at most two of its documents, which are remembered as for
    // anybody.
    let narinfo = published.files().into_iter().map(|(name, _)| name).find(|name| name.ends_with(".narinfo"));
    let page = narinfo.unwrap().replace(".narinfo", "/files/");
    assert_eq!(get(&format!("/{page}")).status, 200);
    assert!(worker.calls().len() <= 2, "its cache's state is known");
    eventually("a page from memory", || get(&format!("/{page}")).status == 200 && worker.calls().is_empty());
    eventually("a NAR from memory", || {
        get(&nar);
        worker.calls().is_empty()
    });

    // "The bucket does not answer" is never "not here", and what is remembered is still answered.
    worker.fail(true);
    assert_eq!(get(&nar).status, 200);
    for path in [format!("/main/{}.narinfo", "1".repeat(32)), "/unknown/nix-cache-info".to_owned()] {
        let reply = get(&path);
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{reply:?}");
    }
    worker.fail(false);
    assert_eq!(get("/unknown/nix-cache-info").status, 404);
}

/// The Worker asks for a part, and for the size when R2 says that there is no such part.
#[test]
fn a_part_of_a_nar_that_grows_between_two_calls_to_r2_is_not_answered_without_its_bytes() {
    let published = Published::new();
    published.describe("main", true, &[], &[]);
    let nar = format!("main/nar/{}-{}.nar.zst", "0".repeat(52), "0".repeat(26));
    published.write(&nar, &[7; 10]);
    let worker = Workerd::start(&published, &WorkerdOptions::default());
    let larger = published.path().join("larger");
    fs::write(&larger, [7; 20]).unwrap();
    let get = || http::ask(worker.address(), "GET", &format!("/{nar}"), &[("Range", "bytes=10-")], b"");
    assert_eq!(get().status, 416);
    worker.grow(&larger);
    let between = get();
    assert_eq!((between.status, between.header("retry-after")), (503, Some("5")), "{between:?}");
    let after = get();
    assert_eq!((after.status, after.body.len()), (206, 10), "{after:?}");
}

#[test]
fn a_token_that_is_revoked_stops_working() {
    let lab = Lab::start();
    let (published, _) = published(&lab);
    let worker = Workerd::start(
        &published,
        &WorkerdOptions { variables: vec![secret_variable()], ..WorkerdOptions::default() },
    );
    let mut claims = pull_everything();
    claims["jti"] = "lost".into();
    let token = sign(&claims, Algorithm::HS256, &EncodingKey::from_secret(&SECRET));
    let get = || get(worker.address(), "/secret/nix-cache-info", Some(&token)).status;
    assert_eq!(get(), 200);
    published.describe("secret", false, &[], &["stolen", "lost"]);
    worker.put("secret/dormer-state.json", &published.path().join("secret/dormer-state.json"));
    eventually("the revocation", || get() == 404);
}

#[test]
fn a_worker_with_unreadable_or_several_keys_lets_nobody_into_private_caches() {
    let published = Published::new();
    published.describe("main", true, &[], &[]);
    published.describe("secret", false, &[], &[]);
    for cache in ["main", "secret"] {
        published.write(&format!("{cache}/nix-cache-info"), b"StoreDir: /nix/store\n");
    }
    let token = sign(&pull_everything(), Algorithm::HS256, &EncodingKey::from_secret(&SECRET));
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for variables in [
        vec![],
        vec![variable("TOKEN_HS256_SECRET_BASE64", "!"), variable("PAGES", "off")],
        vec![variable("TOKEN_HS256_SECRET_BASE64", &STANDARD.encode("short"))],
        vec![variable("TOKEN_RS256_PUBKEY_BASE64", &STANDARD.encode("no key"))],
        vec![secret_variable(), variable("TOKEN_RS256_PUBKEY_BASE64", "x")],
        vec![secret_variable(), variable("TOKEN_ISSUER", "somebody else")],
        vec![secret_variable(), variable("TOKEN_AUDIENCES", "somewhere,else")],
    ] {
        let worker = Workerd::start(
            &published,
            &WorkerdOptions { variables: variables.clone(), ..WorkerdOptions::default() },
        );
        let get =
            |cache: &str| get(worker.address(), &format!("/{cache}/nix-cache-info"), Some(&token)).status;
        assert_eq!((get("main"), get("secret")), (200, 404), "{variables:?}");
        let has_pages = !variables.iter().any(|(name, _)| name == "PAGES");
        let page = self::get(worker.address(), "/main/", None);
        assert_eq!(page.status == 200, has_pages, "{page:?}");
    }
}

#[test]
fn the_module_is_small() {
    let module = fs::read(workspace_root().join("worker/dist/dormer_worker_bg.wasm")).unwrap();
    let mut gzip =
        Command::new("gzip").arg("-9c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = gzip.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&module).unwrap());
    let packed = gzip.wait_with_output().unwrap().stdout.len();
    writer.join().unwrap();
    assert!(packed > 1_000 && packed <= MODULE_BYTES_MAX, "the module has {packed} bytes, gzipped");
}

#[test]
fn wrangler_takes_the_worker_as_it_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrangler = Command::new(part("worker-node/node_modules/.bin/wrangler"));
    wrangler
        .args(["deploy", "--dry-run", "--outdir"])
        .arg(folder.path().join("out"))
        .current_dir(workspace_root().join("worker"))
        .env("HOME", folder.path())
        .env("CI", "1")
        .env("WRANGLER_SEND_METRICS", "false");
    let said = Run::of(&mut wrangler);
    let text = said.succeeds() + &said.stderr();
    for name in ["dormer_worker_bg.wasm", "env.BUCKET (nix-cache)", "--dry-run: exiting now"] {
        assert!(text.contains(name), "{said}");
    }
    assert!(!text.contains("WARNING"), "{said}");
}
