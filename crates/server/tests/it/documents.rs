//! Build logs and build traces: what comes back, what merges, which callers read them, and when
//! they go.

use dormer_nix::nar::{Node, encode_tree};
use dormer_nix::{BuildTrace, DocumentName, PublicKey, SecretKey, StorePath, TraceKey};
use serde_json::{Value, json};

use crate::common::{Reply, Server, admin, nar, nar_info, path, signature, token};
use crate::nix::compress;

const LOG: &[u8] = b"building\n\x1b[31mred\x1b[0m \xff\n<script>alert(1)</script>\n";

fn derivation(seed: u8) -> StorePath {
    StorePath::new(path(seed).hash(), "package.drv").expect("a good name")
}

fn log_address(cache: &str, seed: u8) -> String {
    format!("/{cache}/log/{}", derivation(seed))
}

/// Pushes a path that names a derivation.
fn push_output(server: &Server, seed: u8, derivation: &StorePath) {
    let info = nar_info("main", &path(seed), &nar(seed.into()), &json!({"deriver": derivation.to_string()}));
    let bearer = format!("Bearer {}", admin());
    let headers = [("X-Attic-Nar-Info", info.to_string()), ("Authorization", bearer)];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, &nar(seed.into()));
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn put(server: &Server, address: &str, body: &[u8]) -> Reply {
    let reply = server.call(&admin(), "PUT", address, body);
    assert_eq!(reply.status, 200, "{address}: {reply:?}");
    reply
}

#[test]
fn a_log_comes_back_as_text_whatever_encoding_it_came_in() {
    let server = Server::start();
    let bearer = format!("Bearer {}", admin());
    for (seed, coding) in (1..).zip(["none", "xz", "zstd", "bzip2", "gzip", "br", "lz4"]) {
        let (address, body) = (log_address("main", seed), compress(&server, coding, LOG));
        let mut headers = vec![("Authorization", bearer.as_str())];
        headers.extend((coding != "none").then_some(("Content-Encoding", coding)));
        let reply = server.request("PUT", &address, &headers, &body);
        assert_eq!(reply.status, 200, "{coding}: {reply:?}");
        let reply = server.request("GET", &address, &[("Accept-Encoding", "zstd, br, gzip")], b"");
        assert_eq!((reply.status, reply.body.as_slice()), (200, LOG), "{coding}");
        for (name, value) in [
            ("content-type", Some("text/plain; charset=utf-8")),
            ("x-content-type-options", Some("nosniff")),
            ("cache-control", Some("public, max-age=60")),
            ("content-encoding", None),
        ] {
            assert_eq!(reply.header(name), value, "{coding}: {name}");
        }
        let head = server.request("HEAD", &address, &[], b"");
        assert_eq!((head.status, head.header("content-length")), (200, Some(LOG.len().to_string().as_str())));
    }
    let cut = &compress(&server, "gzip", LOG)[..20];
    let headers = [("Authorization", bearer.as_str()), ("Content-Encoding", "gzip")];
    let reply = server.request("PUT", &log_address("main", 1), &headers, cut);
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(server.get(&log_address("main", 1)).body, LOG, "the one before stays");
    put(&server, &log_address("main", 1), b"");
    assert_eq!(server.get(&log_address("main", 1)).body, b"", "the last one counts");
}

/// What the server says of an output, and whether its signatures by this key hold for a Nix that
/// reads the document.
fn served_trace(server: &Server, key: &TraceKey, public_key: &str) -> (Value, usize) {
    let reply = server.get(&format!("/main/{}", DocumentName::Trace(key.clone())));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{reply:?}");
    let trace = BuildTrace::parse(key, &reply.body).expect("what is served is a trace");
    let public_key: PublicKey = public_key.parse().expect("what is served is a key");
    let holds = |text: &&String| {
        text.parse().is_ok_and(|signature| {
            trace.fingerprints().iter().any(|message| public_key.verify(message, &signature).is_ok())
        })
    };
    (reply.json(), trace.sigs.iter().filter(holds).count())
}

fn public_key(server: &Server) -> String {
    let config = server.call(&admin(), "GET", "/_api/v1/cache-config/main", b"").json();
    config["public_key"].as_str().expect("a cache has a key").to_owned()
}

fn keys() -> [TraceKey; 2] {
    let hash = "0123456789abcdef".repeat(4);
    [
        TraceKey::Hash { hash, output: "out".to_owned() },
        TraceKey::Derivation { derivation: derivation(9), output: "out".to_owned() },
    ]
}

fn trace(key: &TraceKey, out: u8, sigs: &[String]) -> BuildTrace {
    BuildTrace {
        key: key.clone(),
        out_path: path(out),
        dependents: std::collections::BTreeMap::new(),
        sigs: sigs.to_vec(),
        is_keyed: false,
    }
}

#[test]
fn a_trace_is_signed_when_it_is_served_and_gathers_signatures() {
    let server = Server::start();
    let public = public_key(&server);
    for key in keys() {
        let address = format!("/main/{}", DocumentName::Trace(key.clone()));
        let (a, b) = (signature("builder-a", "A"), signature("builder-b", "B"));
        put(&server, &address, trace(&key, 1, std::slice::from_ref(&a)).to_json(&[]).as_bytes());
        put(&server, &address, trace(&key, 1, std::slice::from_ref(&b)).to_json(&[]).as_bytes());
        let (json, genuine) = served_trace(&server, &key, &public);
        assert_eq!((json["outPath"].as_str(), genuine), (Some(path(1).base_name()), 1), "{json}");
        let sigs = BuildTrace::parse(&key, json.to_string().as_bytes()).unwrap().sigs;
        assert_eq!((sigs.len(), &sigs[..2]), (3, &[a, b][..]));
        // Put back as it was served, it is the same.
        assert_eq!(put(&server, &address, json.to_string().as_bytes()).body, b"");
        assert_eq!(served_trace(&server, &key, &public), (json.clone(), 1));

        let reply = put(&server, &address, trace(&key, 2, &[]).to_json(&[]).as_bytes());
        assert_eq!(reply.text(), format!("kept: this output is {} here, not {}\n", path(1), path(2)));
        assert_eq!(served_trace(&server, &key, &public), (json, 1));

        for bad in ["", "{}", "[1]", "{\"outPath\":\"x\"}"] {
            assert_eq!(server.call(&admin(), "PUT", &address, bad.as_bytes()).status, 400, "{bad}");
        }
    }
}

/// Golden files pin both versions of the document: `<name>.put` as Nix sends it, `<name>.served` as
/// the server answers, with the signature of the cache's key. A Nix that is in use reads them, so
/// they never change. `DORMER_WRITE_GOLDEN=1` writes those of a new version.
#[test]
fn traces_are_served_as_the_golden_files_say() {
    let server = Server::start();
    let key = include_str!("../../../nix/tests/data/signing-key.secret");
    let public: PublicKey = include_str!("../../../nix/tests/data/signing-key.public").parse().unwrap();
    let keypair = json!({"keypair": {"Keypair": key}});
    let reply = server.call(&admin(), "PATCH", "/_api/v1/cache-config/main", keypair.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let derivation = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-hello.drv";
    let hash = "ab".repeat(32);
    for (name, address) in [
        ("realisation", format!("realisations/sha256:{hash}!out.doi")),
        ("build-trace", format!("build-trace-v2/{derivation}/out.doi")),
        ("keyed-build-trace", format!("build-trace-v2/{derivation}/dev.doi")),
    ] {
        let sent = std::fs::read(folder.join(format!("{name}.put"))).unwrap();
        let plain = format!("/main/{address}");
        put(&server, &plain, &sent);
        let served = server.get(&plain).body;
        // As Nix spells it since 2.34.
        assert_eq!(server.get(&plain.replace('!', "%21")).body, served, "{name}");
        let golden = folder.join(format!("{name}.served"));
        if std::env::var_os("DORMER_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &served).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&golden).unwrap(), String::from_utf8_lossy(&served), "{name}");
        let Ok(DocumentName::Trace(key)) = plain["/main/".len()..].parse() else { panic!("{plain}") };
        let trace = BuildTrace::parse(&key, &served).unwrap();
        let signature = trace.sigs.last().unwrap().parse().unwrap();
        assert!(trace.fingerprints().iter().any(|text| public.verify(text, &signature).is_ok()), "{name}");
    }
}

#[test]
fn nobody_forges_a_signature_in_the_name_of_a_key_of_the_cache() {
    let server = Server::start();
    let public = public_key(&server);
    let name = public.split(':').next().unwrap();
    for key in keys() {
        let other = SecretKey::generate(name, [5; 32]).unwrap();
        let forged = other.sign(&trace(&key, 1, &[]).fingerprints()[0]).to_string();
        let address = format!("/main/{}", DocumentName::Trace(key.clone()));
        put(&server, &address, trace(&key, 1, std::slice::from_ref(&forged)).to_json(&[]).as_bytes());
        let (json, genuine) = served_trace(&server, &key, &public);
        assert_eq!(genuine, 1);
        assert!(!json.to_string().contains(forged.split(':').nth(1).unwrap()), "{json}");
    }
}

/// Every Nix names a document in its own spelling.
#[test]
fn both_spellings_of_an_address_are_one() {
    let server = Server::start();
    let config = json!({"keypair": "Generate", "is_public": true, "store_dir": "/nix/store", "priority": 41,
        "upstream_cache_key_names": []});
    let create = server.call(&admin(), "POST", "/_api/v1/cache-config/a%2Bb", config.to_string().as_bytes());
    assert_eq!(create.status, 200, "{create:?}");
    let hash = path(1).hash();
    let drv = format!("{hash}-x+y=.drv");
    put(&server, "/a+b/nar/1+2=.nar", &nar(1));
    let narinfo = crate::common::narinfo(&path(1), &nar(1), "1+2=.nar", "none", "");
    put(&server, &format!("/a%2Bb/{hash}.narinfo"), narinfo.as_bytes());
    put(&server, &format!("/a%2bb/log/{}", drv.replace('+', "%2B").replace('=', "%3D")), LOG);
    let [realisation, _] = keys();
    let text = DocumentName::Trace(realisation.clone()).to_string();
    let escaped = text.replace('!', "%21").replace(':', "%3A");
    put(&server, &format!("/a+b/{escaped}"), trace(&realisation, 1, &[]).to_json(&[]).as_bytes());
    for address in [
        "nix-cache-info".to_owned(),
        format!("{hash}.narinfo"),
        format!("{hash}.ls"),
        format!("log/{drv}"),
        text,
        escaped,
        format!("log/{}", drv.replace('+', "%2B")),
    ] {
        let [plain, coded] = ["a+b", "a%2Bb"].map(|cache| server.get(&format!("/{cache}/{address}")));
        assert_eq!(plain.status, 200, "{address}: {plain:?}");
        assert_eq!(plain.without_noise(), coded.without_noise(), "{address}");
    }
    for address in [
        format!("/a%2Bb/{hash}%2enarinfo"),
        format!("/a%2Bb%2F{hash}.narinfo"),
        format!("/a%252Bb/{hash}.narinfo"),
        format!("/a%2/{hash}.narinfo"),
        "/%61+b/nix-cache-info".to_owned(),
        format!("/a%C0%ABb/{hash}.narinfo"),
    ] {
        assert_eq!(server.call(&admin(), "GET", &address, b"").status, 404, "{address}");
    }
}

/// Determinate Nix describes where a path comes from.
#[test]
fn fields_that_the_server_does_not_know_are_served_as_they_came() {
    let server = Server::start();
    let narinfo = |more: &str| crate::common::narinfo(&path(1), &nar(1), "1.nar", "none", more);
    let provenance =
        "Provenance: {\"type\":\"flake\",\"url\":\"git+https://example.org/x?rev=1\"}\nFuture: 1: 2\n";
    put(&server, "/main/nar/1.nar", &nar(1));
    let address = format!("/main/{}.narinfo", path(1).hash());
    put(&server, &address, narinfo(provenance).as_bytes());
    let served = server.get(&address).text();
    assert!(served.ends_with(provenance), "{served}");
    // Its page shows it as text.
    let page = server.request("GET", &format!("/main/{}", path(1).hash()), &[("Accept", "text/html")], b"");
    let shown =
        "{&quot;type&quot;:&quot;flake&quot;,&quot;url&quot;:&quot;git+https://example.org/x?rev=1&quot;}";
    assert!(page.text().contains(&format!("<code>{shown}</code>")), "{page:?}");
    // Another push of the path neither drops nor changes them, and none of them is a known field.
    put(&server, &address, narinfo("").as_bytes());
    put(&server, &address, narinfo("Provenance: {}\nsig: x:AAAA\nDeriver : x\n").as_bytes());
    assert_eq!(server.get(&address).text(), served);
    // They come with an upload of the API too, within the same bounds.
    let bearer = format!("Bearer {}", admin());
    let upload = |extra: serde_json::Value| {
        let info = nar_info("main", &path(2), &nar(2), &json!({ "extra": extra })).to_string();
        let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
        server.request("PUT", "/_api/v1/upload-path", &headers, &nar(2)).status
    };
    assert_eq!(upload(json!([["Sig", "x:AAAA"]])), 400);
    assert_eq!(upload(json!(vec![["A", "x"]; 17])), 400);
    assert_eq!(upload(json!([["Provenance", "{}"], ["Future", "1: 2"]])), 200);
    let served = server.get(&format!("/main/{}.narinfo", path(2).hash())).text();
    assert!(served.ends_with("Provenance: {}\nFuture: 1: 2\n"), "{served}");
}

/// A NAR with the debug file of a build id.
fn debug_nar(build_id: &str, contents: &str) -> Vec<u8> {
    let (folder, rest) = build_id.split_at(2);
    let file = Node::directory([(format!("{rest}.debug"), Node::file(contents))]);
    let folders = ["lib", "debug", ".build-id", folder];
    encode_tree(&folders.iter().rev().fold(file, |node, name| Node::directory([(*name, node)])))
}

fn push_nar(server: &Server, cache: &str, seed: u8, nar: &[u8]) {
    let info = nar_info(cache, &path(seed), nar, &json!({})).to_string();
    let bearer = format!("Bearer {}", admin());
    let headers = [("X-Attic-Nar-Info", info.as_str()), ("Authorization", bearer.as_str())];
    let reply = server.request("PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn debug_info_is_a_link_to_the_nar_that_has_it() {
    let server = Server::start();
    let id = "00ab3f2d5c6e7f8091a2b3c4d5e6f708192a3b4c";
    let address = |cache: &str| format!("/{cache}/debuginfo/{id}.debug");
    assert_eq!(server.get(&address("main")).status, 404);
    // Nix sends its own link, before the NAR; it names an upload, and is not kept.
    put(&server, &address("main"), br#"{"archive":"../nar/x.nar.xz","member":"x"}"#);
    assert_eq!(server.get(&address("main")).status, 404);
    push_nar(&server, "main", 1, &debug_nar(id, "symbols"));
    let reply = server.get(&address("main"));
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("public, max-age=60"));
    let link = reply.json();
    assert_eq!(link["member"], format!("lib/debug/.build-id/00/{}.debug", &id[2..]));
    let archive = link["archive"].as_str().unwrap().strip_prefix("../").unwrap();
    assert!(server.get(&format!("/main/{}.narinfo", path(1).hash())).text().contains(archive));
    assert_eq!(server.get(&format!("/main/{archive}")).status, 200);
    assert_eq!(server.get(&format!("/main/debuginfo/{id}")).json(), link);
    put(&server, &address("main"), b"{}");
    assert_eq!(server.get(&address("main")).json(), link);
    // Of the cache that has the path alone, and for its readers.
    assert_eq!(server.call(&admin(), "GET", &address("team-a"), b"").status, 404);
    push_nar(&server, "team-a", 2, &debug_nar(id, "symbols"));
    assert_eq!(server.get(&address("team-a")).status, 401);
    assert_eq!(server.call(&token(&json!({"main": {"r": 1}})), "GET", &address("team-a"), b"").status, 401);
    let reader = token(&json!({"team-a": {"r": 1}}));
    assert_eq!(server.call(&reader, "GET", &address("team-a"), b"").status, 200);
    assert_eq!(server.call(&reader, "PUT", &address("team-a"), b"{}").status, 403);
    let too_long = server.call(&admin(), "PUT", &address("main"), &vec![b' '; 70_000]);
    assert_eq!(too_long.status, 413, "{too_long:?}");
    for bad in ["x", "00AB", "00ab/3f", "%30%30ab"] {
        assert_eq!(
            server.call(&admin(), "PUT", &format!("/main/debuginfo/{bad}"), b"{}").status,
            404,
            "{bad}"
        );
    }
    let remove = format!("/_api/v2/caches/main/objects/{}", path(1).hash());
    assert_eq!(server.call(&admin(), "DELETE", &remove, b"").json()["removed"], true);
    assert_eq!(server.get(&address("main")).status, 404);
}

/// Fails, as planted once, if `find_document` opens the cache for callers without a permission.
#[test]
fn a_private_caches_documents_are_for_its_readers() {
    let server = Server::start();
    let [_, key] = keys();
    let trace_address = format!("/team-a/{}", DocumentName::Trace(key.clone()));
    put(&server, &log_address("team-a", 1), LOG);
    put(&server, &trace_address, trace(&key, 1, &[]).to_json(&[]).as_bytes());
    for address in [log_address("team-a", 1), trace_address] {
        for reader in [None, Some(token(&json!({"main": {"r": 1, "w": 1}})))] {
            let reply = match &reader {
                None => server.get(&address),
                Some(token) => server.call(token, "GET", &address, b""),
            };
            assert_eq!(reply.status, 401, "{address}");
            assert!(!reply.text().contains("building") && !reply.text().contains("outPath"));
        }
        let reader = token(&json!({"team-a": {"r": 1}}));
        let reply = server.call(&reader, "GET", &address, b"");
        let control = (reply.header("cache-control"), reply.header("vary"));
        assert_eq!((reply.status, control), (200, (Some("private, max-age=60"), Some("authorization"))));
        assert_eq!(server.call(&reader, "PUT", &address, b"x").status, 403);
        assert_eq!(server.call(&admin(), "DELETE", &address, b"").status, 405);
    }
}

#[test]
fn what_is_removed_for_cause_takes_its_documents_along() {
    let server = Server::start();
    let [_, key] = keys();
    for seed in [1, 2] {
        push_output(&server, seed, &derivation(7));
    }
    put(&server, &log_address("main", 7), LOG);
    let trace_address = format!("/main/{}", DocumentName::Trace(key.clone()));
    put(&server, &trace_address, trace(&key, 1, &[]).to_json(&[]).as_bytes());
    let remove = |seed: u8| {
        let address = format!("/_api/v2/caches/main/objects/{}", path(seed).hash());
        assert_eq!(server.call(&admin(), "DELETE", &address, b"").json()["removed"], true);
    };
    remove(1);
    assert_eq!((server.get(&trace_address).status, server.get(&log_address("main", 7)).status), (404, 200));
    remove(2);
    assert_eq!(server.get(&log_address("main", 7)).status, 404);
}

#[test]
fn a_log_goes_with_a_removal_of_its_derivation() {
    let server = Server::start();
    push_output(&server, 1, &derivation(7));
    for number in [7, 8] {
        put(&server, &log_address("main", number), LOG);
    }
    // One belongs to a path, and the other to none.
    for (number, query) in [(7, ""), (8, "?now=true")] {
        let address = format!("/_api/v2/caches/main/objects/{}{query}", derivation(number).hash());
        let reader = token(&json!({"main": {"r": 1, "w": 1}}));
        assert_eq!(server.call(&reader, "DELETE", &address, b"").status, 403);
        assert_eq!(server.get(&log_address("main", number)).status, 200);
        let removed = server.call(&admin(), "DELETE", &address, b"").json();
        assert_eq!((&removed["removed"], &removed["removed_log"]), (&json!(false), &json!(true)));
        assert_eq!(server.get(&log_address("main", number)).status, 404);
        let again = server.call(&admin(), "DELETE", &address, b"").json();
        assert_eq!((&again["removed"], again.get("removed_log")), (&json!(false), None));
    }
    let narinfo = format!("/main/{}.narinfo", path(1).hash());
    assert_eq!(server.get(&narinfo).status, 200, "the path stays");
}
