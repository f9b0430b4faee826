//! The files of a path, and the log of its build.

use dormer_nix::nar::{Node, encode_tree};
use serde_json::json;

use super::{BROWSER, browse, push, tree};
use crate::common::{Server, admin, nar, path};

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
