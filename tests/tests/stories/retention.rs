//! Retention as users see it: what is unused goes, what is pinned stays, and real Nix agrees.

use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::{Lab, LabOptions, Machine, Nix};

/// The part of a narinfo's address that names a path.
fn hash(path: &str) -> &str {
    &path["/nix/store/".len()..][..32]
}

/// What `dormer cache ls` names. Listing is no use.
fn listed(machine: &Machine) -> String {
    machine.dormer(&["cache", "ls", "main"]).succeeds()
}

#[test]
fn an_unused_closure_expires_and_a_pinned_one_stays() {
    let settings = "[garbage-collection]\ninterval = \"1s\"\n".to_owned();
    let mut lab = Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let pinned = builder.build("all", &[("salt", "pinned")]);
    let unused = builder.build("all", &[("salt", "unused")]);
    let closure = builder.closure(&pinned);
    builder.dormer(&["push", "main", &pinned, "--pin", "release"]).succeeds();
    builder.dormer(&["push", "main", &unused]).succeeds();
    builder.dormer(&["cache", "configure", "main", "--retention-period", "1d"]).succeeds();
    let pins = builder.dormer(&["pin", "list", "main"]).succeeds();
    assert!(pins.starts_with("release  ") && pins.contains(hash(&pinned)), "{pins}");
    let narinfo = lab.get(&format!("/main/{}.narinfo", hash(&unused)));
    let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned));
    let nar = format!("/main/{}", url.expect("a narinfo has a URL"));
    assert!(listed(&builder).contains(hash(&unused)));

    // Two days pass.
    lab.kill();
    lab.sql("UPDATE objects SET last_used_at = last_used_at - 172800, pushed_at = pushed_at - 172800");
    lab.restart();
    let begun = Instant::now();
    while listed(&builder).contains(hash(&unused)) {
        assert!(begun.elapsed() < Duration::from_mins(1), "it never expires: {}", lab.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(lab.get(&format!("/main/{}.narinfo", hash(&unused))).status, 404);
    assert_eq!(lab.get(&nar).status, 200, "the NAR is readable during its grace");

    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&[lab.public_key("main")]);
        machine.substitute(&lab.cache_url("main"), &pinned).succeeds();
        assert_eq!(machine.closure(&pinned), closure);
        machine.verify_all();
        machine.substitute(&lab.cache_url("main"), &unused).fails();
    }

    // By hand, with what refers to it, pinned or not: a leaked secret must go.
    let library = closure.iter().find(|path| path.contains("library")).expect("the closure has a library");
    builder.dormer(&["cache", "remove-path", "main", library, "--with-referrers"]).succeeds();
    let left = listed(&builder);
    assert!(!left.contains(hash(library)) && !left.contains(hash(&pinned)), "{left}");
    builder.dormer(&["pin", "remove", "main", "release"]).succeeds();
    assert_eq!(builder.dormer(&["pin", "list", "main"]).succeeds(), "");
    builder.dormer(&["push", "main", &pinned]).succeeds();
    assert!(listed(&builder).contains(hash(library)));
}
