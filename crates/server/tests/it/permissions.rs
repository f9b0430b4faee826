//! What callers get of a cache: every route that the sources name, by visibility and token. The
//! defect that a route answers without a look at the token is planted into each read, and caught.

use dormer_nix::nar::{Node, encode_tree};
use serde_json::json;

use crate::common::{Reply, Server, admin, nar_info, path, token};
use crate::routes::{Asked, BUILD_ID, documents, requests};

/// What a token may do in the cache that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The caller sends no token, a text that is no token, or a token for another cache.
    Stranger,
    /// All but reading.
    Writer,
    /// Nothing but reading.
    Reader,
}

/// Everybody that some request should be refused to, with the token of each.
fn callers(cache: &str) -> Vec<(Caller, Option<String>)> {
    vec![
        (Caller::Stranger, None),
        (Caller::Stranger, Some("garbage".to_owned())),
        (Caller::Stranger, Some(token(&json!({"other": {"r": 1, "w": 1, "d": 1, "cr": 1, "cq": 1}})))),
        (Caller::Writer, Some(token(&json!({cache: {"w": 1}})))),
        (Caller::Reader, Some(token(&json!({cache: {"r": 1}})))),
    ]
}

fn is_read(asked: &Asked) -> bool {
    matches!(asked.method, "GET" | "HEAD")
}

/// The statuses that refuse a request; none, if the caller is not to be refused.
fn refusals(asked: &Asked, is_public: bool, caller: Caller) -> &'static [u16] {
    match caller {
        // It may not learn that the cache is there.
        Caller::Stranger if !is_public => &[401],
        // A token that may push may ask whether the cache has an upload.
        Caller::Writer if !is_public && is_read(asked) && asked.route != "Nar" => &[403],
        Caller::Reader if !is_read(asked) => &[403],
        // Attic's routes tell them like a private cache does.
        Caller::Stranger if !is_read(asked) => &[401, 403],
        _ => &[],
    }
}

/// The requests that are answered in another way than with the refusal that they should get.
fn leaks(
    cache: &str,
    is_public: bool,
    requests: &[Asked],
    ask: impl Fn(&Asked, Option<&str>) -> Reply,
) -> Vec<String> {
    let mut leaks = Vec::new();
    for (caller, token) in callers(cache) {
        for asked in requests {
            let refusals = refusals(asked, is_public, caller);
            if refusals.is_empty() {
                continue;
            }
            let status = ask(asked, token.as_deref()).status;
            if !refusals.contains(&status) {
                let Asked { method, address, .. } = asked;
                leaks.push(format!("{method} {address}: {status}, not {refusals:?}, for a {caller:?}"));
            }
        }
    }
    leaks
}

fn ask(server: &Server, asked: &Asked, token: Option<&str>) -> Reply {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = Vec::new();
    headers.extend(bearer.as_deref().map(|value| ("Authorization", value)));
    headers.extend(asked.info.as_deref().map(|value| ("X-Attic-Nar-Info", value)));
    server.request(asked.method, &asked.address, &headers, &asked.body)
}

/// A server with a path and a document of each kind, in the public cache and in the private one.
fn filled_server() -> Server {
    let server = Server::start();
    let (folder, rest) = BUILD_ID.split_at(2);
    let file = Node::directory([(format!("{rest}.debug"), Node::file("symbols"))]);
    let folders = ["lib", "debug", ".build-id", folder];
    let nar = encode_tree(&folders.iter().rev().fold(file, |node, name| Node::directory([(*name, node)])));
    let out = path(1);
    let id = documents()[2].trim_start_matches("realisations/").trim_end_matches(".doi").to_owned();
    for cache in ["main", "team-a"] {
        let info = nar_info(cache, &out, &nar, &json!({"deriver": format!("{}-x.drv", out.hash())}));
        let upload = Asked {
            route: "UploadPath",
            method: "PUT",
            address: "/_api/v1/upload-path".to_owned(),
            info: Some(info.to_string()),
            body: nar.clone(),
        };
        assert_eq!(ask(&server, &upload, Some(&admin())).status, 200);
        let trace = json!({"outPath": out.base_name(), "signatures": []}).to_string();
        let realisation =
            json!({"id": id, "outPath": out.base_name(), "signatures": [], "dependentRealisations": {}});
        let [log, build_trace, old_trace, _] = documents();
        for (name, body) in
            [(log, "a log of a build".to_owned()), (build_trace, trace), (old_trace, realisation.to_string())]
        {
            let reply = server.call(&admin(), "PUT", &format!("/{cache}/{name}"), body.as_bytes());
            assert_eq!(reply.status, 200, "{name}: {reply:?}");
        }
    }
    server
}

#[test]
fn no_route_is_served_without_the_permission() {
    let server = filled_server();
    for (cache, is_public) in [("main", true), ("team-a", false)] {
        let found = leaks(cache, is_public, &requests(cache), |asked, token| ask(&server, asked, token));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// A route that answers everybody as it answers a reader is found for each stranger, whichever
/// route it is: a private cache's log among them.
#[test]
fn a_read_that_is_served_to_everyone_is_found() {
    let server = filled_server();
    let mut served = Vec::new();
    for asked in requests("team-a").into_iter().filter(is_read) {
        let planted = ask(&server, &asked, Some(&admin()));
        if planted.status == 200 {
            served.push(asked.address.clone());
        }
        let found = leaks("team-a", false, std::slice::from_ref(&asked), |_, _| planted.clone());
        assert!(found.len() >= 3, "{} {} for everyone: {found:?}", asked.method, asked.address);
    }
    for document in documents() {
        assert!(served.contains(&format!("/team-a/{document}")), "{document} is not there: {served:?}");
    }
}
