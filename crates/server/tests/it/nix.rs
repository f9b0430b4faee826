//! Nix's own protocol, in both directions.

use std::io::{Read as _, Write as _};

use crate::common::{self, Reply, Server, admin, nar, narinfo, path, signature, sized_nar, token, unzstd};
use async_compression::tokio::bufread as codecs;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// Compresses as Nix would.
pub(crate) fn compress(server: &Server, compression: &str, plain: &[u8]) -> Vec<u8> {
    macro_rules! with {
        ($encoder:ident) => {{
            let mut bytes = Vec::new();
            server.block_on(codecs::$encoder::new(plain).read_to_end(&mut bytes)).unwrap();
            bytes
        }};
    }
    match compression {
        "xz" => with!(XzEncoder),
        "zstd" => with!(ZstdEncoder),
        "bzip2" => with!(BzEncoder),
        "gzip" => with!(GzipEncoder),
        "br" => with!(BrotliEncoder),
        "lz4" => with!(Lz4Encoder),
        "lzma" => with!(LzmaEncoder),
        "none" => plain.to_vec(),
        other => panic!("{other}"),
    }
}

/// Decompresses as Nix would.
fn decompress(server: &Server, compression: &str, bytes: &[u8]) -> Vec<u8> {
    macro_rules! with {
        ($decoder:ident) => {{
            let mut plain = Vec::new();
            let mut decoder = codecs::$decoder::new(bytes);
            server.block_on(decoder.read_to_end(&mut plain)).unwrap();
            plain
        }};
    }
    match compression {
        "xz" => with!(XzDecoder),
        "zstd" => unzstd(bytes),
        "bzip2" => with!(BzDecoder),
        "gzip" => with!(GzipDecoder),
        "br" => with!(BrotliDecoder),
        "lz4" => with!(Lz4Decoder),
        "lzma" => with!(LzmaDecoder),
        "none" => bytes.to_vec(),
        other => panic!("{other}"),
    }
}

/// Names as Nix makes them: it writes no suffix for gzip and lzma.
const FILES: [(&str, &str); 8] = [
    ("xz", "1xz.nar.xz"),
    ("zstd", "1zstd.nar.zst"),
    ("bzip2", "1bzip2.nar.bz2"),
    ("gzip", "1gzip.nar"),
    ("br", "1br.nar.br"),
    ("lz4", "1lz4.nar.lz4"),
    ("lzma", "1lzma.nar"),
    ("none", "1none.nar"),
];

fn put(server: &Server, path: &str, body: &[u8]) -> Reply {
    server.call(&token(&json!({"main": {"r": 1, "w": 1}})), "PUT", path, body)
}

#[test]
fn nix_copy_in_every_compression_is_served_and_given_back_as_it_was_sent() {
    let server = Server::start();
    for (number, (compression, file)) in (1..).zip(FILES) {
        let (path, nar) = (path(number), nar(number.into()));
        let url = format!("/main/nar/{file}");
        let head = || server.call(&admin(), "HEAD", &url, b"").status;
        assert_eq!(head(), 404, "{file}");
        let bytes = compress(&server, compression, &nar);
        let reply = put(&server, &url, &bytes);
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{file}: {reply:?}");
        assert_eq!(head(), 200, "{file}");
        let narinfo_url = format!("/main/{}.narinfo", path.hash());
        assert_eq!(server.get(&narinfo_url).status, 404, "{file}: a NAR alone is no store path");

        let (first, second) = (signature("upstream-1", "A"), signature("upstream-2", "B"));
        let text = narinfo(
            &path,
            &nar,
            file,
            compression,
            &format!(
                "Sig: {first}
Sig: {second}
"
            ),
        );
        let reply = put(&server, &narinfo_url, text.as_bytes());
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{file}: {reply:?}");
        assert_eq!(put(&server, &narinfo_url, text.as_bytes()).status, 200, "a second time changes nothing");

        let served = server.get(&narinfo_url).text();
        assert!(
            served.contains("Compression: zstd\n") && served.contains(&format!("Sig: {second}\nSig: main:")),
            "{served}"
        );
        assert_eq!(unzstd(&server.get(&server.nar_url("main", &path)).body), nar, "{file}");

        // The pusher's Nix remembers its own narinfo and asks for this, with its token.
        let back = server.call(&admin(), "GET", &url, b"");
        assert_eq!((back.status, back.complete), (200, true), "{file}");
        assert_eq!(decompress(&server, compression, &back.body), nar, "{file}");
        assert_eq!(back.header("accept-ranges"), None, "{file}");
        assert_eq!(back.header("content-encoding"), None, "{file}");
    }
}

#[test]
fn an_upload_is_not_there_for_another_cache() {
    let server = Server::start();
    put(&server, "/main/nar/1none.nar", &nar(1));
    assert_eq!(server.call(&admin(), "HEAD", "/team-a/nar/1none.nar", b"").status, 404);
    let text = narinfo(&path(1), &nar(1), "1none.nar", "none", "");
    let reply = server.call(&admin(), "PUT", &format!("/team-a/{}.narinfo", path(1).hash()), text.as_bytes());
    assert_eq!(reply.status, 400, "{reply:?}");
}

#[test]
fn narinfos_that_do_not_match_change_nothing() {
    let server = Server::start();
    let (path, nar) = (path(1), nar(1));
    put(&server, "/main/nar/1.nar", &nar);
    let url = format!("/main/{}.narinfo", path.hash());
    let good = narinfo(&path, &nar, "1.nar", "none", "");
    for (what, text) in [
        ("another file", good.replace("nar/1.nar", "nar/2.nar")),
        ("another folder", good.replace("nar/1.nar", "1.nar")),
        ("a way out", good.replace("nar/1.nar", "nar/../nar/1.nar")),
        ("an address", good.replace("nar/1.nar", "http://elsewhere/nar/1.nar")),
        ("another compression", good.replace("Compression: none", "Compression: xz")),
        (
            "another hash",
            good.replace(
                &dormer_nix::NarHash::digest(&nar).to_nix32(),
                &dormer_nix::NarHash::digest(b"").to_nix32(),
            ),
        ),
        ("another size", good.replace(&format!("NarSize: {}", nar.len()), "NarSize: 1")),
        (
            "another path",
            good.replace("-package-1", "-other")
                .replace(&path.hash().to_string(), &common::path(2).hash().to_string()),
        ),
        ("another store", good.replace("/nix/store", "/gnu/store")),
        ("a reference that is none", good.replace("References: ", "References: x")),
        ("no size", good.replace("NarSize", "Size")),
        ("cut", good[..good.len() - 20].to_owned()),
        ("nothing", String::new()),
    ] {
        assert_ne!(text, good, "{what}");
        let reply = put(&server, &url, text.as_bytes());
        assert_eq!(reply.status, 400, "{what}: {reply:?}");
        assert_eq!(server.get(&url).status, 404, "{what}");
    }
    assert_eq!(put(&server, &url, b"\xff\xfe").status, 400);
    assert_eq!(put(&server, &url, good.as_bytes()).status, 200);
}

#[test]
fn signatures_of_a_second_narinfo_are_added_and_another_nar_is_not_taken() {
    let server = Server::start();
    let path = path(1);
    let url = format!("/main/{}.narinfo", path.hash());
    put(&server, "/main/nar/1.nar", &nar(1));
    put(&server, "/main/nar/2.nar", &nar(2));
    let (a, b, c) = (signature("a", "A"), signature("b", "B"), signature("c", "C"));
    let put_signed = |number, sig: &str| {
        let file = format!("{number}.nar");
        let text = narinfo(&path, &nar(number), &file, "none", &format!("Sig: {sig}\n"));
        put(&server, &url, text.as_bytes())
    };
    put_signed(1, &a);
    put_signed(1, &b);
    let other = put_signed(2, &c);
    assert_eq!(other.status, 200, "the first stays, and a race of two builders is no error");
    let served = server.get(&url).text();
    assert!(served.contains(&format!("Sig: {a}\nSig: {b}\n")) && !served.contains(&c), "{served}");
    assert_eq!(put_signed(1, "no signature").status, 400, "nobody could use it");
    assert_eq!(unzstd(&server.get(&server.nar_url("main", &path)).body), nar(1));
}

#[test]
fn nars_that_cannot_be_decoded_or_are_none_change_nothing() {
    let server = Server::start();
    let good = nar(1);
    for (compression, file) in FILES {
        let bytes = compress(&server, compression, &good);
        let mut cases = vec![
            ("cut", bytes[..bytes.len() - 9].to_vec()),
            ("with garbage behind", [bytes.as_slice(), b"garbage behind the end"].concat()),
            ("random", [&bytes[..16], &common::sized_nar(9, 3000)[200..]].concat()),
            (
                "a NAR with a byte too many",
                compress(&server, compression, &[good.as_slice(), b"\0"].concat()),
            ),
            ("no NAR", compress(&server, compression, &vec![b'x'; 100_000])),
            ("nothing inside", compress(&server, compression, b"")),
            ("nothing", Vec::new()),
        ];
        if compression == "gzip" {
            // Its only mark is its magic: nothing is gzip without one.
            cases.retain(|(what, _)| *what != "nothing");
        }
        for (what, body) in cases {
            let reply = put(&server, &format!("/main/nar/{file}"), &body);
            assert_eq!(reply.status, 400, "{file} {what}: {reply:?}");
            assert_eq!(
                server.call(&admin(), "HEAD", &format!("/main/nar/{file}"), b"").status,
                404,
                "{file} {what}"
            );
        }
    }
}

#[test]
fn a_bomb_is_refused_while_it_unpacks() {
    let server = Server::start_with(|options| options.engine.nar_bytes_max = 4 << 20);
    // A NAR that is one file of 1 GiB of zeros, as a few kilobytes of zstd: refused at 4 MiB, not
    // at the end.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = Vec::new();
    for text in ["nix-archive-1", "(", "type", "regular", "contents"] {
        header.extend_from_slice(&(text.len() as u64).to_le_bytes());
        header.extend_from_slice(text.as_bytes());
        header.resize(header.len().next_multiple_of(8), 0);
    }
    header.extend_from_slice(&(1u64 << 30).to_le_bytes());
    encoder.write_all(&header).unwrap();
    for _ in 0..1024 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let reply = put(&server, "/main/nar/bomb.nar.zst", &bomb);
    assert_eq!(reply.status, 413, "{reply:?}");
    // A window of 1 GiB is refused by its first bytes.
    let reply = put(&server, "/main/nar/bomb.nar.zst", b"\x28\xb5\x2f\xfd\x00\xa0\x00\x00\x00\x00");
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.text().contains("more than allowed"), "{reply:?}");
}

#[test]
fn the_largest_window_fits_the_default_memory() {
    let server = Server::start();
    let nar = nar(1);
    // What `zstd -22` announces for a stream of unknown size: a window of 128 MiB.
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&nar).unwrap();
    let frame = encoder.finish().unwrap();
    assert_eq!(&frame[4..6], [0x00, 17 << 3], "the frame's header");
    let put = server.call(&admin(), "PUT", "/main/nar/x.nar.zst", &frame);
    assert_eq!(put.status, 200, "{put:?}");
}

#[test]
fn unknown_compressions_are_refused_by_name() {
    let server = Server::start();
    // Nix writes no suffix for `compress`, and other programs write `.Z` and `.lz`.
    let (lzip, compress) = (b"LZIP\x01\x0c".as_slice(), b"\x1f\x9d\x90\x0d\x00".as_slice());
    for (file, body) in [
        ("x.nar.lzip", lzip),
        ("x.nar.lz", lzip),
        ("x.nar", lzip),
        ("x.nar", compress),
        ("x.nar.Z", compress),
        ("x.nar", b"random bytes"),
        ("x.nar", b""),
    ] {
        let reply = put(&server, &format!("/main/nar/{file}"), body);
        assert_eq!(reply.status, 400, "{file}: {reply:?}");
        assert!(reply.text().contains("xz, zstd, bzip2, gzip, br, lz4"), "{reply:?}");
        let there = server.call(&admin(), "HEAD", &format!("/main/nar/{file}"), b"");
        assert_eq!(there.status, 404, "{file}: nothing is left of it");
    }
}

#[test]
fn the_servers_own_names_cannot_be_put() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let own = server.nar_url("main", &path(1));
    for url in [own, format!("/main/nar/{}.nar", path(1).hash())] {
        assert_eq!(put(&server, &url, &nar(2)).status, 400);
    }
    assert_eq!(unzstd(&server.get(&server.nar_url("main", &path(1))).body), nar(1));
}

#[test]
fn a_content_encoding_is_taken_off() {
    let server = Server::start();
    let (path, nar) = (path(1), nar(1));
    let bearer = format!("Bearer {}", admin());
    let put = |url: &str, encoding: &str, body: &[u8]| {
        server.request("PUT", url, &[("Authorization", &bearer), ("Content-Encoding", encoding)], body)
    };
    let inner = compress(&server, "xz", &nar);
    assert_eq!(put("/main/nar/1.nar.xz", "gzip", &compress(&server, "gzip", &inner)).status, 200);
    let text = narinfo(&path, &nar, "1.nar.xz", "xz", "");
    let url = format!("/main/{}.narinfo", path.hash());
    for (encoding, name) in [
        ("xz", "xz"),
        ("zstd", "zstd"),
        ("gzip", "x-gzip"),
        ("br", "br"),
        ("bzip2", "bzip2"),
        ("none", "identity"),
    ] {
        assert_eq!(put(&url, name, &compress(&server, encoding, text.as_bytes())).status, 200, "{name}");
        assert_eq!(put(&url, name, b"\xff\xff\xff\xff").status, 400, "{name}");
    }
    let bomb = compress(&server, "gzip", &vec![b' '; 3 << 20]);
    assert_eq!(put(&url, "gzip", &bomb).status, 413);
    assert_eq!(server.get(&url).status, 200);
}

#[test]
fn nix_cache_info_is_served_and_may_be_put_if_it_agrees() {
    let server = Server::start();
    let info = server.get("/main/nix-cache-info");
    assert_eq!(info.text(), "WantMassQuery: 1\nStoreDir: /nix/store\nPriority: 41\n");
    assert_eq!(info.header("content-type"), Some("text/x-nix-cache-info"));
    assert_eq!(info.header("x-attic-cache-visibility"), Some("public"));
    assert_eq!(put(&server, "/main/nix-cache-info", b"StoreDir: /nix/store\n").status, 200);
    let odd = b"Future: x\nno colon\nStoreDir:/nix/store \r\n";
    assert_eq!(put(&server, "/main/nix-cache-info", odd).status, 200);
    assert_eq!(put(&server, "/main/nix-cache-info", b"StoreDir: /gnu/store\n").status, 400);
    assert_eq!(put(&server, "/main/nix-cache-info", b"").status, 400);
    let private = server.call(&admin(), "GET", "/team-a/nix-cache-info", b"");
    assert_eq!((private.status, private.header("x-attic-cache-visibility")), (200, None));
}

#[test]
fn a_listing_is_taken_from_the_nar_and_not_from_the_client() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let url = format!("/main/{}.ls", path(1).hash());
    assert_eq!(
        put(&server, &url, b"{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{}}}").status,
        200
    );
    let listing = server.get(&url);
    let json = listing.json();
    assert_eq!(json["root"]["entries"]["bin"]["entries"]["run"]["executable"], true, "{json}");
    assert_eq!(listing.header("content-length"), Some(listing.body.len().to_string().as_str()));
    let head = server.request("HEAD", &url, &[], b"");
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, listing.header("content-length"), 0)
    );
}

#[test]
fn expect_100_continue_is_honoured() {
    let server = Server::start();
    let nar = nar(1);
    let head = |token: &str| {
        format!(
            "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            nar.len()
        )
    };
    let mut stream = server.connect();
    stream.write_all(head(&admin()).as_bytes()).unwrap();
    let mut answer = [0; 25];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&nar).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(Reply::parse(&rest, false).status, 200);

    // The refusal comes before the body.
    let mut stream = server.connect();
    stream.write_all(head("garbage").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_client_that_is_refused_in_the_middle_of_its_body_sees_why() {
    let server = Server::start();
    // 8 MiB that are no NAR: refused at the first piece, while the client still sends.
    let body = [b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0".as_slice(), &vec![b'x'; 8 << 20]].concat();
    let reply = put(&server, "/main/nar/1.nar", &body);
    assert_eq!(reply.status, 400, "{reply:?}");
    assert_eq!(reply.header("connection"), Some("close"));
}

#[test]
fn a_nar_has_length_tag_and_ranges_under_its_present_name() {
    let server = Server::start();
    let nar = sized_nar(1, 300_000);
    server.push("main", &path(1), &nar);
    let url = server.nar_url("main", &path(1));
    let whole = server.get(&url);
    assert_eq!(whole.status, 200);
    assert_eq!(unzstd(&whole.body), nar);
    let size = whole.body.len();
    assert_eq!(whole.header("content-length"), Some(size.to_string().as_str()));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-encoding"), None);
    assert_eq!(whole.header("x-attic-cache-visibility"), Some("public"));
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(url.contains(etag.trim_matches('"')), "{etag} {url}");

    let head = server.request("HEAD", &url, &[("Range", "bytes=0-1")], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["content-length", "etag", "accept-ranges", "content-type"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }

    for (range, first, end) in [
        ("bytes=0-".to_owned(), 0, size),
        ("bytes=0-0".to_owned(), 0, 1),
        (format!("bytes={}-", size / 2), size / 2, size),
        (format!("bytes={}-{}", size / 3, size / 2), size / 3, size / 2 + 1),
        (format!("bytes={}-", size - 1), size - 1, size),
        ("bytes=-100".to_owned(), size - 100, size),
        (format!("bytes=100-{}", size * 2), 100, size),
    ] {
        let part = server.request("GET", &url, &[("Range", &range)], b"");
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.body, whole.body[first..end], "{range}");
        assert_eq!(part.header("content-range"), Some(format!("bytes {first}-{}/{size}", end - 1).as_str()));
        assert_eq!(part.header("content-length"), Some((end - first).to_string().as_str()));
        assert_eq!(part.header("etag"), Some(etag.as_str()));
    }
    // As Nix resumes, and as a proxy does that has another version.
    let resumed = server.request("GET", &url, &[("Range", "bytes=10-"), ("If-Range", &etag)], b"");
    assert_eq!(resumed.status, 206);
    let other = server.request("GET", &url, &[("Range", "bytes=10-"), ("If-Range", "\"other\"")], b"");
    assert_eq!((other.status, other.body.len()), (200, size));
    // Nothing is ever compressed again.
    let asked = server.request("GET", &url, &[("Accept-Encoding", "zstd, br, gzip, deflate")], b"");
    assert_eq!((asked.header("content-encoding"), asked.body.len()), (None, size));
}

#[test]
fn other_names_of_a_nar_get_its_bytes_whole_and_without_ranges() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let present = server.nar_url("main", &path(1));
    let whole = server.get(&present);
    let old_tag = dormer_format::TagBuilder::new().finish().to_string();
    let (start, _) = present.rsplit_once('-').unwrap();
    for url in [format!("{start}-{old_tag}.nar.zst"), format!("/main/nar/{}.nar", path(1).hash())] {
        let reply = server.get(&url);
        assert_eq!((reply.status, reply.header("accept-ranges")), (200, None), "{url}");
        assert_eq!(reply.body, whole.body);
        let head = server.request("HEAD", &url, &[], b"");
        assert_eq!((head.status, head.header("accept-ranges")), (200, None), "{url}");
        assert_eq!(server.request("GET", &url, &[("Range", "bytes=1-")], b"").status, 412, "{url}");
    }
}

#[test]
fn a_nar_is_not_there_for_another_cache() {
    let server = Server::start();
    server.push("team-a", &path(1), &nar(1));
    let url = server.nar_url("team-a", &path(1)).replace("/team-a/", "/main/");
    assert_eq!(server.get(&url).status, 404);
    assert_eq!(server.get(&format!("/main/nar/{}.nar", path(1).hash())).status, 404);
}

#[test]
fn a_connection_serves_many_requests_and_pipelines() {
    let server = Server::start();
    server.push("main", &path(1), &nar(1));
    let narinfo = format!("/main/{}.narinfo", path(1).hash());
    let one = |url: &str| format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n");
    let last = "GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let requests = [one(&narinfo), one("/main/x"), one(&narinfo), last.to_owned()].concat();
    let mut stream = server.connect();
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let lines: Vec<&str> = answers.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
    assert_eq!(lines, ["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]);
}

#[test]
fn a_server_that_stops_finishes_what_it_began() {
    let mut server = Server::start();
    let nar = sized_nar(1, 300_000);
    let request = format!(
        "PUT /main/nar/1.nar HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        admin(),
        nar.len()
    );
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).unwrap();
    stream.write_all(&nar[..1000]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    server.stop();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(std::net::TcpStream::connect(server.address).is_err(), "no new connections");
    stream.write_all(&nar[1000..]).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Reply::parse(&answer, false).status, 200);
}

#[test]
fn health_and_counters_are_answered() {
    let server =
        Server::start_with(|options| options.server.allowed_hosts = vec!["cache.example.com".to_owned()]);
    assert_eq!(server.get("/healthz").status, 200, "probes come by address");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/_dormer/stats").status, 400);
    let server = Server::start();
    assert_eq!(server.get("/_dormer/stats").status, 404, "off by default");
    assert!(server.get("/").text().contains("binary cache"));
    let server = Server::start_with(|options| options.server.stats = true);
    assert!(server.get("/_dormer/stats").json()["index_statements"].as_u64().unwrap() > 0);
}

#[test]
fn windows_without_end_are_refused() {
    let server = Server::start();
    let bomb = [b"\x28\xb5\x2f\xfd\xe0".as_slice(), &u64::MAX.to_le_bytes(), b"more"].concat();
    let reply = server.call(&admin(), "PUT", "/main/nar/x.nar.zst", &bomb);
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.text().contains("18446744073709551615 bytes to be decoded"), "{reply:?}");
}
