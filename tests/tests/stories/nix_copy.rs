//! `nix copy --to` without any client, in every compression that Nix can send.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use dormer_tests::{Lab, Machine, Nix, Proxy};

fn pusher(lab: &Lab, name: &str, nix: Nix) -> Machine {
    let machine = lab.machine(name, nix);
    machine.set_netrc(lab.address(), &lab.token(&["--pull", "main", "--push", "main"]));
    machine.configure(&[lab.public_key("main")]);
    machine
}

/// A pusher whose builds carry its own signature, and so does the narinfo that its Nix remembers.
/// That Nix never sees the cache's signature.
fn signing_pusher(lab: &Lab, name: &str, nix: Nix) -> Machine {
    let machine = pusher(lab, name, nix);
    let secret = machine.home().join("secret-key");
    let public = machine.home().join("public-key");
    let (secret_path, public_path) = (secret.to_str().unwrap(), public.to_str().unwrap());
    machine
        .run("nix-store", &["--generate-binary-cache-key", "pusher-1", secret_path, public_path])
        .succeeds();
    let public_key = std::fs::read_to_string(public_path).unwrap().trim().to_owned();
    machine.configure(&[public_key]);
    machine.sign_builds(&secret);
    machine
}

/// Copies in one compression, then fetches the path on two machines: one that never heard of it,
/// and the pusher, which remembers its own narinfo and asks for the very file that it sent.
fn copies_and_fetches_back(compression: &str, suffix: &str) {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = signing_pusher(&lab, &format!("pusher-{}", nix.name()), nix);
        let all = machine.build("all", &[("salt", &format!("{compression}-{}", nix.name()))]);
        let closure = machine.closure(&all);
        let proxy = Proxy::watching(lab.address());
        let target = format!("{}?compression={compression}", proxy.cache_url("main"));
        machine.run("nix", &["copy", "--to", &target, &all]).succeeds();
        let put = |line: &str| line.starts_with("PUT /main/nar/") && line.ends_with(suffix);
        let puts = proxy.seen().iter().filter(|seen| put(&seen.line)).count();
        // The NAR of the empty file is the same for all versions, and a HEAD finds what the first
        // one sent.
        assert!((closure.len() - 1..=closure.len()).contains(&puts), "{puts} NARs were put");

        let fresh = lab.machine(&format!("fresh-{}", nix.name()), nix);
        fresh.configure(&[lab.public_key("main")]);
        fresh.substitute(&lab.cache_url("main"), &all).succeeds();
        assert_eq!(fresh.closure(&all), closure);
        fresh.verify_all();

        proxy.forget();
        machine.delete(&closure);
        machine.substitute(&proxy.cache_url("main"), &all).succeeds();
        assert_eq!(machine.closure(&all), closure);
        machine.verify_all();
        let get = |line: &str| line.starts_with("GET /main/nar/") && line.ends_with(suffix);
        let (own, other): (Vec<_>, Vec<_>) = proxy
            .seen()
            .into_iter()
            .map(|seen| seen.line)
            .filter(|line| line.starts_with("GET /main/nar/"))
            .partition(|line| get(line));
        assert_eq!(
            (own.len(), other.len()),
            (closure.len(), 0),
            "the pusher remembers its own names: {other:?}"
        );
    }
}

#[test]
fn nix_copy_with_xz_comes_back_even_to_the_pusher_whose_narinfo_cache_is_warm() {
    copies_and_fetches_back("xz", ".nar.xz");
}

#[test]
fn nix_copy_with_zstd_comes_back() {
    copies_and_fetches_back("zstd", ".nar.zst");
}

#[test]
fn nix_copy_with_bzip2_comes_back() {
    copies_and_fetches_back("bzip2", ".nar.bz2");
}

#[test]
fn nix_copy_with_brotli_comes_back() {
    copies_and_fetches_back("br", ".nar.br");
}

#[test]
fn nix_copy_with_gzip_comes_back() {
    copies_and_fetches_back("gzip", ".nar");
}

#[test]
fn nix_copy_with_lz4_comes_back() {
    copies_and_fetches_back("lz4", ".nar.lz4");
}

#[test]
fn nix_copy_with_lzma_comes_back() {
    copies_and_fetches_back("lzma", ".nar");
}

#[test]
fn nix_copy_without_compression_comes_back() {
    copies_and_fetches_back("none", ".nar");
}

#[test]
fn a_compression_that_the_cache_does_not_take_is_refused_by_name() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = pusher(&lab, &format!("pusher-{}", nix.name()), nix);
        for compression in ["lzip", "compress"] {
            let empty = machine.build("empty", &[("salt", &format!("{compression}-{}", nix.name()))]);
            let target = format!("{}?compression={compression}", lab.cache_url("main"));
            let said = machine.run("nix", &["copy", "--to", &target, &empty]).fails();
            assert!(said.contains("HTTP error 400"), "{compression}: {said}");
            assert!(said.contains("xz, zstd, bzip2"), "the answer says what is taken: {said}");
            let narinfo = format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32]);
            assert_eq!(lab.get(&narinfo).status, 404);
        }
    }
}

#[test]
fn narinfos_that_come_compressed_are_served_as_text() {
    let lab = Lab::start();
    let machine = pusher(&lab, "pusher", Nix::NEWEST);
    for coding in ["xz", "zstd", "br", "gzip", "bzip2"] {
        let empty = machine.build("empty", &[("salt", &format!("narinfo-{coding}"))]);
        let target = format!("{}?narinfo-compression={coding}", lab.cache_url("main"));
        machine.run("nix", &["copy", "--to", &target, &empty]).succeeds();
        let reply = lab.get(&format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32]));
        assert_eq!((reply.status, reply.header("content-encoding")), (200, None), "{coding}: {reply:?}");
        assert!(reply.text().starts_with(&format!("StorePath: {empty}\n")), "{coding}: {reply:?}");
    }
}

#[test]
fn signatures_that_the_pusher_made_are_served_beside_the_caches_own() {
    let lab = Lab::start();
    let machine = pusher(&lab, "pusher", Nix::NEWEST);
    let empty = machine.build("empty", &[("salt", "signed")]);
    let secret = machine.run("nix", &["key", "generate-secret", "--key-name", "upstream-1"]).succeeds();
    let key_file = machine.home().join("key");
    std::fs::write(&key_file, secret).unwrap();
    machine.run("nix", &["store", "sign", "--key-file", key_file.to_str().unwrap(), &empty]).succeeds();
    machine.run("nix", &["copy", "--to", &lab.cache_url("main"), &empty]).succeeds();

    let narinfo = lab.get(&format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32])).text();
    let signers: Vec<&str> = narinfo
        .lines()
        .filter_map(|line| line.strip_prefix("Sig: "))
        .filter_map(|signature| signature.split(':').next())
        .collect();
    let own_key = lab.public_key("main");
    let own = own_key.split(':').next().unwrap();
    assert!(signers.contains(&"upstream-1") && signers.contains(&own), "{narinfo}");
}

#[test]
fn nix_copy_without_a_token_changes_nothing() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        let empty = machine.build("empty", &[("salt", &format!("anonymous-{}", nix.name()))]);
        machine.run("nix", &["copy", "--to", &lab.cache_url("main"), &empty]).fails();
        assert_eq!(lab.get(&format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32])).status, 404);
    }
}
