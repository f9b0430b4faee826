//! Pages for people: what each shows to each reader, sessions, forms, and attacks on them.

mod caches;
mod costs;
mod files;
mod forms;
mod operators;
mod paths;
mod sessions;

use dormer_nix::StorePath;
use dormer_nix::nar::{Node, encode_tree};
use serde_json::{Value, json};

use crate::common::{Reply, Server, admin, nar, nar_info, now, path};
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
