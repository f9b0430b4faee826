//! Every route that is about a cache, as the sources of the server name them: tables of tests are
//! made of these, so that a new route escapes none.

use std::collections::BTreeSet;

use dormer_nix::{DocumentName, TraceKey};
use serde_json::json;

use crate::common::{nar, nar_info, path};

const DISPATCHER: &str = include_str!("../../src/dispatch.rs");
const ROUTES: &str = include_str!("../../src/route.rs");
const PAGES: &str = include_str!("../../src/page_route.rs");

/// A request about a cache.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The variant of `Route`.
    pub(crate) route: &'static str,
    pub(crate) method: &'static str,
    pub(crate) address: String,
    /// `X-Attic-Nar-Info`.
    pub(crate) info: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// The variants of an enum in a source.
fn variants(source: &'static str, name: &str) -> Vec<&'static str> {
    let (_, rest) = source.split_once(&format!("pub(crate) enum {name}")).expect("the enum is there");
    let (_, rest) = rest.split_once("{\n").expect("it has a body");
    let (body, _) = rest.split_once("\n}").expect("it ends");
    let lines = body.lines().map(str::trim).filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    lines.filter_map(|line| line.split(|c: char| !c.is_alphanumeric()).next()).collect()
}

/// The methods of routes, as the arms of the dispatcher have them.
fn arms() -> BTreeSet<(&'static str, &'static str)> {
    let mut arms = BTreeSet::new();
    for arm in DISPATCHER.split("(&Method::").skip(1) {
        let (method, rest) = arm.split_once(", ").expect("a method and a pattern");
        let (pattern, _) = rest.split_once(" =>").expect("a pattern and a handler");
        for route in pattern.split("Route::").skip(1) {
            let name = route.split(|c: char| !c.is_alphanumeric()).next().expect("a name");
            arms.insert((method, name));
            if method == "GET" {
                arms.insert(("HEAD", name));
            }
        }
    }
    assert!(DISPATCHER.contains("Route::Narinfo(cache, hash) if call.is_read()"), "it stands apart");
    arms.extend([("GET", "Narinfo"), ("HEAD", "Narinfo")]);
    arms
}

/// The addresses of a route that is about a cache.
fn addresses(route: &str, cache: &str) -> Vec<String> {
    let hash = path(1).hash();
    let below = |rest: &str| vec![format!("/{cache}/{rest}")];
    let api = |rest: &str| vec![format!("/_api/v2/caches/{cache}/{rest}")];
    let session = "sessions/".to_owned() + &"a".repeat(32);
    match route {
        // These are about no cache, or about several. `pages` has the pages.
        "Home" | "Alive" | "Ready" | "Stats" | "Caches" | "StoredStats" | "Status" | "Page" => Vec::new(),
        "CacheConfig" => vec![format!("/_api/v1/cache-config/{cache}")],
        "GetMissingPaths" => vec!["/_api/v1/get-missing-paths".to_owned()],
        "UploadPath" => vec!["/_api/v1/upload-path".to_owned()],
        "Object" => [api(&format!("objects/{hash}")), api(&format!("objects/{hash}?now=true"))].concat(),
        "Objects" => api("objects"),
        "Referrers" => api(&format!("objects/{hash}/referrers")),
        "File" => api(&format!("objects/{hash}/file/bin/x")),
        "Purges" => api("purges"),
        "CacheStats" => api("stats"),
        "Pins" => api("pins"),
        "Pin" => api("pins/p"),
        "PinnedPath" => api(&format!("pins/p/{hash}")),
        "Session" => api(&session),
        "SessionMissing" => api(&format!("{session}/missing")),
        "SessionPart" => api(&format!("{session}/parts/{}", "b".repeat(64))),
        "SessionCommit" => api(&format!("{session}/commit")),
        "AtticCacheInfo" => below("attic-cache-info"),
        "NixCacheInfo" => below("nix-cache-info"),
        "Narinfo" => below(&format!("{hash}.narinfo")),
        "Listing" => below(&format!("{hash}.ls")),
        "Nar" => {
            let nar_hash = dormer_nix::NarHash::digest(&nar(1)).to_nix32();
            let tag = dormer_nix::nix32::encode(&[7; 16]);
            [format!("{nar_hash}-{tag}.nar.zst"), format!("{hash}.nar"), "upload.nar.xz".to_owned()]
                .map(|file| format!("/{cache}/nar/{file}"))
                .to_vec()
        }
        "Document" => documents().iter().map(|document| format!("/{cache}/{document}")).collect(),
        other => panic!("the route {other} is new: which addresses does it have?"),
    }
}

/// The build id whose debug info the tables ask for.
pub(crate) const BUILD_ID: &str = "0123456789abcdef0123456789abcdef01234567";

/// An address of every kind of document.
pub(crate) fn documents() -> [String; 4] {
    let hash = path(1).hash();
    let documents = [
        format!("log/{hash}-x.drv"),
        format!("build-trace-v2/{hash}-x.drv/out.doi"),
        format!("realisations/sha256:{}!out.doi", "ab".repeat(32)),
        format!("debuginfo/{BUILD_ID}"),
    ];
    // A new kind does not compile here, and lacks its address below.
    let folder = |address: &String| match DocumentName::of_address(address).expect("a document's address") {
        DocumentName::Log(_) => "log/",
        DocumentName::Trace(TraceKey::Derivation { .. }) => "build-trace-v2/",
        DocumentName::Trace(TraceKey::Hash { .. }) => "realisations/",
        DocumentName::DebugInfo(_) => "debuginfo/",
    };
    let folders: BTreeSet<_> = documents.iter().map(folder).collect();
    assert_eq!(folders, BTreeSet::from(DocumentName::FOLDERS), "a kind of document without an address");
    documents
}

/// Every request about a cache by the protocols and the API.
pub(crate) fn requests(cache: &str) -> Vec<Asked> {
    let arms = arms();
    let routes = variants(ROUTES, "Route");
    assert!(routes.len() >= 30, "{routes:?}");
    let mut requests = Vec::new();
    for route in routes {
        let methods: Vec<_> = arms.iter().filter(|(_, name)| *name == route).map(|(one, _)| *one).collect();
        assert!(route == "Page" || !methods.is_empty(), "the dispatcher has no arm for {route}");
        for address in addresses(route, cache) {
            for method in &methods {
                let body = match (*method, route) {
                    ("GET" | "HEAD" | "DELETE", _) => None,
                    (_, "CacheConfig") => Some(json!({ "is_public": true })),
                    (_, "GetMissingPaths") => {
                        Some(json!({ "cache": cache, "store_path_hashes": [path(1).hash().to_string()] }))
                    }
                    (_, "Objects") => Some(json!({ "sort": "used" })),
                    (_, "Pin") => Some(json!({ "store_path": path(1).to_string() })),
                    _ => Some(json!({})),
                };
                let is_upload = route == "UploadPath";
                requests.push(Asked {
                    route,
                    method,
                    address: address.clone(),
                    info: is_upload.then(|| nar_info(cache, &path(1), &nar(1), &json!({})).to_string()),
                    body: if is_upload {
                        nar(1)
                    } else {
                        body.map_or_else(Vec::new, |body| body.to_string().into())
                    },
                });
            }
        }
    }
    requests
}

/// Every page about a cache, and its forms.
pub(crate) fn pages(cache: &str) -> Vec<(&'static str, String)> {
    let hash = path(1).hash();
    let mut pages = Vec::new();
    for page in variants(PAGES, "PageRoute") {
        match page {
            // These are about no cache. The last answers alike for every name.
            "Asset" | "SignIn" | "SignOut" | "OperatorWithoutSlash" | "Operator" | "CacheWithoutSlash" => {}
            "Cache" => pages.push(("GET", format!("/{cache}/"))),
            "Paths" => {
                pages.extend([("GET", format!("/{cache}/paths")), ("GET", format!("/{cache}/paths?q=x"))]);
            }
            "Pins" => pages.push(("GET", format!("/{cache}/pins"))),
            "OfPath" => {
                for page in variants(PAGES, "PathPage") {
                    let (reads, form): (&[&str], Option<&str>) = match page {
                        "Path" => (&[""], None),
                        "Closure" => (&["/closure"], None),
                        "References" => (&["/references", "/references?from=1"], None),
                        "Referrers" => (&["/referrers"], None),
                        "Files" => (&["/files", "/files/", "/files/bin/x", "/files/bin/x?download=1"], None),
                        "Log" => (&["/log"], None),
                        "Pin" => (&[], Some("/pin")),
                        "Unpin" => (&[], Some("/unpin")),
                        "Remove" => (&["/remove"], Some("/remove")),
                        other => panic!("the page {other} of a path is new: which addresses does it have?"),
                    };
                    let address = |rest: &&str| format!("/{cache}/{hash}{rest}");
                    pages.extend(reads.iter().map(|read| ("GET", address(read))));
                    pages.extend(form.iter().map(|form| ("POST", address(form))));
                }
            }
            other => panic!("the page {other} is new: which addresses does it have?"),
        }
    }
    pages
}
