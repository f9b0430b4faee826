//! From one machine's store through the cache into another's, with every Nix on both ends.

use std::time::{Duration, Instant};

use dormer_tests::{Lab, Machine, Nix, http};

/// The versions that this run used stand in its output; nothing depends on them.
#[expect(clippy::print_stdout, reason = "with --nocapture, or after a failure, it tells what was tried")]
fn report_version(machine: &Machine) {
    let version = machine.run("nix", &["--version"]).succeeds();
    println!("nix of Debian {}: {}", machine.nix_version().name(), version.trim());
}

#[test]
fn a_closure_pushed_by_dormer_is_substituted_and_verified_by_every_nix() {
    let lab = Lab::start();
    let key = lab.public_key("main");
    for pusher in Nix::ALL {
        let salt = format!("by-{}", pusher.name());
        let builder = lab.machine(&format!("builder-{}", pusher.name()), pusher);
        report_version(&builder);
        builder.login(&lab);
        let all = builder.build("all", &[("salt", &salt)]);
        let closure = builder.closure(&all);
        assert_eq!(closure.len(), 6, "library, tool, link, empty, script and the root: {closure:?}");
        let pushed = builder.dormer(&["push", "main", &all]);
        pushed.succeeds();

        for puller in Nix::ALL {
            let machine = lab.machine(&format!("{}-to-{}", pusher.name(), puller.name()), puller);
            machine.configure(std::slice::from_ref(&key));
            machine.substitute(&lab.cache_url("main"), &all).succeeds();
            assert_eq!(machine.closure(&all), closure);
            machine.verify_all();
            let script = format!("{all}/script");
            assert_eq!(machine.run(&script, &[]).succeeds(), format!("data of {salt}\n"));
        }
    }
}

#[test]
fn a_machine_that_does_not_trust_the_key_substitutes_nothing() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "distrust")]);
    builder.dormer(&["push", "main", &all]).succeeds();

    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&["main:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()]);
        machine.substitute(&lab.cache_url("main"), &all).fails();
        assert!(!machine.host_path(&all).exists());
    }
}

#[test]
fn a_farm_of_links_to_thousands_of_store_paths_arrives_whole() {
    const LEAVES: usize = 2500;
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::MIDDLE);
    builder.login(&lab);
    let farm = builder.build("farm", &[("salt", "farm"), ("leaves", &LEAVES.to_string())]);
    let pushed = builder.dormer(&["push", "main", &farm, "-j", "16"]);
    pushed.succeeds();

    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&[lab.public_key("main")]);
        machine.substitute(&lab.cache_url("main"), &farm).succeeds();
        // The leaves and the farm; the list is needed for the build only.
        assert_eq!(machine.closure(&farm).len(), LEAVES + 1);
        machine.verify_all();
    }
}

#[test]
fn a_second_push_of_the_same_closure_sends_nothing() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "twice")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let before = lab.get(&format!("/main/{}.narinfo", &all["/nix/store/".len()..][..32])).text();

    let again = builder.dormer(&["push", "main", &all]);
    let said = format!("{}{}", again.succeeds(), again.stderr());
    assert!(said.contains("0 of 6"), "the last line counts what was pushed: {said}");
    let after = lab.get(&format!("/main/{}.narinfo", &all["/nix/store/".len()..][..32])).text();
    assert_eq!(before, after);
}

#[test]
fn a_dry_run_names_what_it_would_push_and_pushes_nothing() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "dry")]);
    builder.dormer(&["push", "main", &all, "--dry-run"]).succeeds();
    assert_eq!(lab.get(&format!("/main/{}.narinfo", &all["/nix/store/".len()..][..32])).status, 404);
}

#[test]
fn a_removed_path_is_gone_from_the_cache_at_once() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let empty = builder.build("empty", &[("salt", "removed")]);
    builder.dormer(&["push", "main", &empty]).succeeds();
    let narinfo = format!("/main/{}.narinfo", &empty["/nix/store/".len()..][..32]);
    assert_eq!(lab.get(&narinfo).status, 200);

    builder.dormer(&["cache", "remove-path", "main", &empty]).succeeds();
    // At once from the server that was asked; from other replicas when they are told, which they
    // are within 5 s.
    if lab.replicas().len() == 1 {
        assert_eq!(lab.get(&narinfo).status, 404);
    }
    for replica in lab.replicas() {
        let begin = Instant::now();
        while http::get(replica, &narinfo, None).status != 404 {
            assert!(begin.elapsed() < Duration::from_secs(5), "{replica} still serves what was removed");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    builder.dormer(&["push", "main", &empty]).succeeds();
    assert_eq!(lab.get(&narinfo).status, 200, "what was removed can come back");
}

#[test]
fn dormer_use_is_all_that_a_machine_needs_and_unuse_takes_it_back() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "use")]);
    builder.dormer(&["push", "main", &all]).succeeds();

    let user = lab.machine("user", Nix::NEWEST);
    user.login(&lab);
    user.dormer(&["use", "main"]).succeeds();
    let conf = user.home().join(".config/nix/nix.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    assert!(text.contains(&lab.cache_url("main")) && text.contains(&lab.public_key("main")), "{text}");
    user.run("nix-store", &["--realise", &all]).succeeds();
    user.verify_all();

    user.dormer(&["unuse", "main"]).succeeds();
    let text = std::fs::read_to_string(&conf).unwrap_or_default();
    assert!(!text.contains(&lab.cache_url("main")) && !text.contains(&lab.public_key("main")), "{text}");
}

#[test]
fn two_servers_on_one_host_and_tokens_that_do_not_count_are_pointed_out() {
    let (one, two) = (Lab::start(), Lab::start());
    let user = one.machine("user", Nix::NEWEST);
    for (name, lab) in [("one", &one), ("two", &two)] {
        user.dormer(&["login", name, &lab.url(), &lab.admin_token()]).succeeds();
        user.dormer(&["cache", "create", &format!("{name}:secret")]).succeeds();
    }
    user.dormer(&["use", "one:secret"]).succeeds();
    let second = user.dormer(&["use", "two:secret"]);
    second.succeeds();
    let said = second.stderr();
    assert!(said.contains("one is on 127.0.0.1 too: netrc files know no ports"), "{said}");

    let said = user.dormer(&["login", "three", &one.url(), "no.such.token"]).fails();
    assert!(said.contains("has expired, or belongs to another server"), "{said}");
    let said = user.dormer(&["cache", "list", "three"]).fails();
    assert!(said.contains("three"), "nothing was remembered: {said}");
}
